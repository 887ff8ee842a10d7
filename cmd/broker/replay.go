package main

import (
	"example.com/broker/codec"
	"example.com/broker/recorder"
	"github.com/spf13/cobra"
)

func replay() *cobra.Command {
	var (
		data, direction string
		blocked         bool
	)
	cmd := &cobra.Command{
		Use:   "replay SESSION",
		Short: "write a session's bytes as they were delivered",
		Long: `Write the bytes of a session on record. With --direction s2c they are, byte for
byte, what the client received; with c2s, what the server received; both is one
after the other as they passed. Frames that were refused reached nobody: --blocked
adds them where the client (c2s) or the server (s2c) sent them.`,
		Example: "  broker replay --direction s2c 06a2n8mwvg5c3k0q",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			view, err := viewOf(direction, blocked)
			if err != nil {
				return err
			}
			src, err := openSource(data)
			if err != nil {
				return err
			}
			defer src.Close()
			return recorder.Replay(cmd.Context(), cmd.OutOrStdout(), src, args[0], view)
		},
	}
	addData(cmd, &data)
	cmd.Flags().StringVar(&direction, "direction", "both", "`SIDE` to replay: c2s, s2c or both")
	cmd.Flags().BoolVar(&blocked, "blocked", false, "add the frames that were refused")
	cmd.RegisterFlagCompletionFunc("direction", cobra.FixedCompletions([]string{"both", "c2s", "s2c"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// viewOf says what a replay writes: with c2s alone, what the server received; else
// what clients' connections carried.
func viewOf(direction string, blocked bool) (recorder.View, error) {
	var side codec.Direction
	switch direction {
	case "both", codec.C2S.String():
		side = codec.C2S
	case codec.S2C.String():
		side = codec.S2C
	default:
		return recorder.View{}, usagef("--direction %q: must be c2s, s2c or both", direction)
	}
	return recorder.View{Server: direction == codec.C2S.String() && !blocked, Want: func(f recorder.Frame) bool {
		return (direction == "both" || f.Direction == side) && (blocked || f.Verdict != recorder.Blocked)
	}}, nil
}
