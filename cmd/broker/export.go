package main

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"

	"example.com/broker/recorder"
	"example.com/broker/recorder/export"
	"github.com/spf13/cobra"
)

func exportCommand() *cobra.Command {
	var (
		from        sourceFlags
		format, out string
	)
	cmd := &cobra.Command{
		Use:   "export SESSION --format FORMAT",
		Short: "write a session for other tools: Wireshark, programs, auditors, browsers",
		Long: `Write a session on record in a format of other tools, as its client has sent and
received it:

  pcapng  a TCP stream, with the recorded times, for Wireshark and tshark
  ndjson  a JSON object a frame, with verdict and findings
  html    one page for people, which needs no network and no JavaScript
  har     requests and responses of a session by HTTP, without headers

What was recorded unmasked is in the file, too.`,
		Example: "  broker export 06a2n8mwvg5c3k0q --format pcapng --out session.pcapng\n  broker export 06a2n8mwvg5c3k0q --format ndjson | jq 'select(.verdict == \"blocked\")'",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(export.Formats(), format) {
				return usagef("--format %q: must be one of %s", format, strings.Join(export.Formats(), ", "))
			}
			if f, ok := cmd.OutOrStdout().(*os.File); ok && out == "" && export.Binary(format) && isTerminal(f) {
				return usagef("%s is not for a terminal; name a file with --out", format)
			}
			src, err := from.open()
			if err != nil {
				return err
			}
			defer src.Close()
			w := &outFile{path: out, stdout: cmd.OutOrStdout()}
			if err = export.Write(cmd.Context(), w, src, args[0], format); err == nil {
				_, err = w.Write(nil) // a session without frames makes a file, too
			}
			switch err = errors.Join(err, w.Close()); {
			case errors.Is(err, export.ErrFormat):
				return hinted{err, "--format ndjson holds every session"}
			case errors.Is(err, recorder.ErrDamaged):
				return hinted{err, "what is whole has been written; broker verify says more"}
			}
			return err
		},
	}
	from.add(cmd)
	cmd.Flags().StringVar(&format, "format", "", "`FORMAT`: "+strings.Join(export.Formats(), ", "))
	cmd.Flags().StringVarP(&out, "out", "o", "", "write to `FILE`, readable by its owner alone (default stdout)")
	cmd.MarkFlagRequired("format")
	cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(export.Formats(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// An outFile is made when there is something to write, so that a session that is
// not on record leaves none.
type outFile struct {
	path   string // if empty, stdout
	stdout io.Writer
	file   *os.File
}

func (o *outFile) Write(b []byte) (int, error) {
	if o.path == "" {
		return o.stdout.Write(b)
	}
	if o.file == nil {
		f, err := os.OpenFile(o.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return 0, err
		}
		o.file = f
	}
	return o.file.Write(b)
}

func (o *outFile) Close() error {
	if o.file == nil {
		return nil
	}
	return o.file.Close()
}
