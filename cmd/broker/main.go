// Broker puts access control, masking and recording in front of MCP servers.
//
// Run broker help for its commands.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"example.com/broker/recorder"
	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	status := run(ctx)
	stop()
	os.Exit(status) // the only Exit of the program
}

// run executes the command line and returns the exit status: 0 done, 1 failed,
// 2 wrong usage, 3 done with what could be read, and something could not.
func run(ctx context.Context) int {
	cmd := &cobra.Command{
		Use:   "broker",
		Short: "Access control, masking and recording for MCP servers",
		Long: `Broker is the only way to your MCP servers. It knows the caller by a client
certificate, lets through what the policy allows, masks secrets in answers, and
keeps every frame on record, so that a session can be replayed byte for byte.`,
		Example:       "  broker demo\n  broker serve --config broker.yaml",
		SilenceErrors: true, // run prints them
		SilenceUsage:  true,
	}
	cmd.AddCommand(serve(), agentCommand(), connect(), configCommand(),
		sessions(), replay(), verify(), hold(), deleteCommand(), archiveCommand(), exportCommand(), importCommand(), ca(), token(), policyCommand(), logCommand(), demo(), demoServer(), versionCommand()) // one file each
	cmd.AddCommand(login(), logout())
	cmd.AddCommand(accessCommands()...)

	started := false // what cobra refuses before that (a missing argument, too) is wrong usage
	cmd.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		err := cmd.ValidateRequiredFlags() // cobra itself looks later
		if err == nil {
			err = cmd.ValidateFlagGroups()
		}
		started = err == nil
		_, command, _ := strings.Cut(cmd.CommandPath(), " ")
		cmd.SetContext(recorder.WithCommand(cmd.Context(), command))
		return err
	}
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "broker: error:", err)
	var usage usageError
	if !started || errors.As(err, &usage) {
		fmt.Fprintln(os.Stderr, "broker: hint: see broker help")
		return 2
	}
	if hint := hint(err); hint != "" {
		fmt.Fprintln(os.Stderr, "broker: hint:", hint)
	}
	if errors.Is(err, errNotAll) {
		return 3
	}
	return 1
}

// errNotAll is returned where all is well by what could be read, and something could not.
var errNotAll = errors.New("not all recordings could be read")

// A usageError is a flag's or an argument's value that cannot be.
type usageError struct{ error }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}
