package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"example.com/broker/codec"
	"example.com/broker/recorder"
	"example.com/broker/recorder/player"
	"example.com/broker/recorder/rerun"
	"example.com/broker/stream"
	"github.com/charmbracelet/x/term"
	"github.com/spf13/cobra"
)

func replay() *cobra.Command {
	var (
		direction      string
		blocked, serve bool
		raw, follow    bool
		speed          float64
		against        againstFlags
		originals      originalsFlags
		from           sourceFlags
	)
	cmd := &cobra.Command{
		Use:   "replay SESSION",
		Short: "play a session, write its bytes, or put it in the place of a client or a server",
		Long: `On a terminal, play a session: its frames with the time between them; ? shows the
keys. Elsewhere, or with --raw, write the bytes of a session on record. With --direction s2c they are, byte for
byte, what the client received; with c2s, what the server received; both is one
after the other as they passed. Frames that were refused reached nobody: --blocked
adds them where the client (c2s) or the server (s2c) sent them. Of a session that
runs, --follow goes on until it ends.

With --originals, what was masked or edited is replaced by what was sent, byte for
byte, where the broker keeps that (recording.originals). It is sealed to auditors:
--identity names the key of one.

With --broker the recording is read from a broker anywhere, by one of its auditors
(auditors in broker.yaml); else from --data, on the broker's machine.

With --serve it stands in for the server: it answers a client on stdin and stdout
with what is on record, by method and params. A client's configuration can run it,
and so can stdio in broker.yaml. A request that is not on record gets an error with
code 404, which names those that are like it.

With --against it stands in for the client: it sends the requests on record to
SERVER, through the broker and with your own rights, and reports what is answered
differently; exit status 1 if anything is. Times (RFC 3339, and numbers near now),
cursors, progress tokens and what --ignore names are not compared; what was masked
cannot be, and is listed. What was refused when it was recorded is not sent, except
with --blocked.`,
		Example: `  broker replay --direction s2c 06a2n8mwvg5c3k0q
  broker replay --follow 06a2n8mwvg5c3k0q
  broker replay --originals --identity auditor.txt --direction s2c 06a2n8mwvg5c3k0q
  broker replay --broker mcp.example.com:8443 --identity olga.pem 06a2n8mwvg5c3k0q
  claude mcp add bigquery -- broker replay --serve --data /var/lib/broker 06a2n8mwvg5c3k0q
  broker replay --against bigquery-test --ignore '$.result.content[*].text' 06a2n8mwvg5c3k0q`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			view, err := viewOf(direction, blocked)
			if err != nil {
				return err
			}
			if speed <= 0 {
				return usagef("--speed %g: must be over 0", speed)
			}
			if against.client.identity, err = originals.forBroker(); err != nil {
				return err
			}
			from.client = against.client
			if serve {
				return serveRecording(cmd.Context(), from, args[0], cmd.InOrStdin(), cmd.OutOrStdout())
			}
			if against.server != "" {
				against.blocked = blocked
				from.client.broker = "" // is that of the session
				return against.run(cmd.Context(), from, args[0], cmd.OutOrStdout())
			}
			src, err := from.open()
			if err != nil {
				return err
			}
			defer src.Close()
			in, out := cmd.InOrStdin(), cmd.OutOrStdout()
			ctx := cmd.Context()
			if originals.open {
				ctx = recorder.WithCommand(ctx, "replay --originals")
			}
			if src, err = originals.source(src, in); err != nil {
				return err
			}
			if !raw && isTerminal(in) && isTerminal(out) {
				return play(ctx, in, out, src, args[0], direction, speed, follow)
			}
			view.Follow = follow
			err = recorder.Replay(ctx, out, src, args[0], view)
			if follow && errors.Is(err, context.Canceled) {
				return nil // an interrupt is the way to end it
			}
			return err
		},
	}
	addData(cmd, &from.data)
	cmd.Flags().StringVar(&direction, "direction", "both", "`SIDE` to replay: c2s, s2c or both")
	cmd.Flags().BoolVar(&blocked, "blocked", false, "add the frames that were refused; with --against, send them")
	cmd.Flags().BoolVar(&raw, "raw", false, "write bytes to a terminal, too")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "of a session that runs, go on until it ends")
	cmd.Flags().Float64Var(&speed, "speed", 1, "play so many `TIMES` as fast, on a terminal")
	cmd.Flags().BoolVar(&serve, "serve", false, "stand in for the server, on stdin and stdout")
	against.add(cmd)
	originals.add(cmd)
	cmd.MarkFlagsMutuallyExclusive("serve", "against", "originals")
	cmd.MarkFlagsMutuallyExclusive("serve", "against", "follow")
	cmd.MarkFlagsMutuallyExclusive("serve", "direction")
	cmd.MarkFlagsMutuallyExclusive("against", "direction")
	cmd.MarkFlagsMutuallyExclusive("serve", "blocked")
	cmd.RegisterFlagCompletionFunc("direction", cobra.FixedCompletions([]string{"both", "c2s", "s2c"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.ValidArgsFunction = completeSessions(&from.data)
	return cmd
}

// isTerminal reports whether what is read or written is a terminal.
func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(f.Fd())
}

// play plays a recording on a terminal.
func play(ctx context.Context, in io.Reader, out io.Writer, src recorder.Source, session, direction string, speed float64, follow bool) error {
	o := player.Options{Speed: speed, Live: follow}
	for _, d := range []codec.Direction{codec.C2S, codec.S2C} {
		if direction == d.String() {
			o.Only = &d
		}
	}
	return player.Play(ctx, in, out, src, session, o)
}

// serveRecording answers a client from a recording.
func serveRecording(ctx context.Context, from sourceFlags, session string, in io.Reader, out io.Writer) error {
	tape, err := openTape(ctx, from, session)
	if err != nil {
		return err
	}
	defer tape.Close()
	done := make(chan error, 1)
	go func() { done <- rerun.Serve(in, out, session, tape) }() // ends with the process: nothing wakes a read of stdin
	select {
	case err := <-done:
		return err
	case <-ctx.Done(): // a client that is done sends SIGTERM
		return nil
	}
}

// againstFlags say how a recording is run against a server.
type againstFlags struct {
	client  clientFlags
	server  string
	ignore  []string
	junit   string
	asJSON  bool
	wait    time.Duration
	blocked bool
}

func (f *againstFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.server, "against", "", "send the requests to `SERVER` and report what is answered differently")
	cmd.Flags().StringArrayVar(&f.ignore, "ignore", nil, "do not compare what is at this `PATH` of a frame, or in members of this name; may be repeated")
	cmd.Flags().StringVar(&f.junit, "junit", "", "write the report to `FILE` as JUnit's XML, too")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "one JSON object a line: each request, and at the end the rest")
	cmd.Flags().DurationVar(&f.wait, "wait", time.Minute, "how long to wait for an answer")
	f.client.addBroker(cmd) // --identity is of originalsFlags
	cmd.MarkFlagFilename("junit", "xml")
}

// run runs a recording against a server.
func (f *againstFlags) run(ctx context.Context, from sourceFlags, session string, out io.Writer) error {
	ignore, err := codec.NewFields(f.ignore)
	if err != nil {
		return usagef("--ignore: %w", err)
	}
	tape, err := openTape(ctx, from, session)
	if err != nil {
		return err
	}
	defer tape.Close()
	conn, err := f.client.dial(ctx, f.server, stream.Dial)
	if err != nil {
		return err
	}
	r, err := rerun.Against(ctx, conn, session, f.server, tape, rerun.Options{Ignore: ignore, Blocked: f.blocked, Wait: f.wait})
	if err != nil {
		return err
	}
	if f.junit != "" {
		file, err := os.Create(f.junit)
		if err != nil {
			return fmt.Errorf("write report: %w", err)
		}
		if err := errors.Join(r.WriteJUnit(file), file.Close()); err != nil {
			return fmt.Errorf("write report %s: %w", f.junit, err)
		}
	}
	write := r.WriteText
	if f.asJSON {
		write = r.WriteJSON
	}
	if err := write(out); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if !r.Same() {
		return fmt.Errorf("session %s: %s does not answer as it is on record", session, f.server)
	}
	return nil
}

// openTape reads a recording, and lets go of the log: others may want it.
func openTape(ctx context.Context, from sourceFlags, session string) (*recorder.Tape, error) {
	src, err := from.open()
	if err != nil {
		return nil, err
	}
	defer src.Close()
	tape, err := recorder.ReadTape(ctx, src, session)
	if err != nil {
		return nil, err
	}
	if tape.Damaged != nil {
		fmt.Fprintf(os.Stderr, "broker: warning: session %s: %v\n", session, tape.Damaged)
	}
	return tape, nil
}

// completeSessions completes the newest sessions.
func completeSessions(data *string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) (ids []cobra.Completion, _ cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		src, err := openSource(*data)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer src.Close()
		for s, err := range src.Sessions(context.Background()) {
			if err != nil || len(ids) == 50 {
				break
			}
			ids = append(ids, cobra.CompletionWithDesc(s.ID, s.Subject+" "+s.Server))
		}
		return ids, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
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
