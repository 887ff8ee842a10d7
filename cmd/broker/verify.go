package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"example.com/broker/recorder"
	"github.com/spf13/cobra"
)

func verify() *cobra.Command {
	var v verification
	cmd := &cobra.Command{
		Use:   "verify [SESSION]",
		Short: "prove that recordings are whole and unchanged",
		Long: `Prove that a session, or the whole log, is as it was recorded: nothing changed,
dropped, added, cut off or put in another order. Each block of a session hangs on
the one before, the sessions hang together in a Merkle tree, and its head, the
checkpoint, is signed by the key log.key in the data folder.

Who can write to the log and has that key can make all of it anew. Keep
checkpoints elsewhere (--save), and verify that the log goes on from there
(--since); a copy of log.pub goes with them (--key).

Sessions whose archive cannot be reached are named, and the others verified: exit
status 3, if nothing is wrong with those, and 1 if something is.

Auditors verify from anywhere (--broker), by a copy of log.pub that they have.

--proof writes a proof that a session is in the tree, with its record, in the
format of C2SP tlog-proof. --check verifies such a proof, without the log.`,
		Example: "  broker verify\n  broker verify 06a2n8mwvg5c3k0q --proof session.tlog-proof\n  broker verify --since yesterday.checkpoint --save today.checkpoint --key log.pub\n  broker verify --broker mcp.example.com:8443 --key log.pub",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			v.out, v.err = cmd.OutOrStdout(), cmd.ErrOrStderr()
			if len(args) > 0 {
				v.session = args[0]
			}
			switch {
			case v.check != "" && (v.session != "" || v.since != "" || v.save != "" || v.proof != ""):
				return usagef("--check verifies a proof alone; leave out the rest but --key")
			case v.proof != "" && v.session == "":
				return usagef("--proof is of one session; name it")
			case v.from.client.broker != "" && v.key == "" && v.check == "":
				return usagef("with --broker, --key says by which key signatures are verified: a copy of the broker's log.pub, not from the broker itself")
			case v.session != "" && (v.since != "" || v.save != ""):
				return usagef("--since and --save are for the whole log")
			}
			return v.run(cmd.Context())
		},
	}
	v.from.add(cmd)
	cmd.Flags().BoolVar(&v.json, "json", false, "print the findings as JSON")
	cmd.Flags().StringVar(&v.key, "key", "", "verify signatures by the key in `FILE` (default log.pub in the data folder)")
	cmd.Flags().StringVar(&v.since, "since", "", "the log must go on from the checkpoint in `FILE`")
	cmd.Flags().StringVar(&v.save, "save", "", "write the checkpoint to `FILE` if all is well")
	cmd.Flags().StringVar(&v.proof, "proof", "", "write the session's proof to `FILE` (- for stdout)")
	cmd.Flags().StringVar(&v.check, "check", "", "verify the proof in `FILE`, without the log")
	return cmd
}

// A verification is what broker verify is asked for.
type verification struct {
	from                                    sourceFlags
	session, key, since, save, proof, check string
	json                                    bool
	out, err                                io.Writer
}

// errUnverified is returned where something is not as it was recorded.
var errUnverified = errors.New("recordings are not as they were written")

func (v *verification) run(ctx context.Context) error {
	key, err := v.verifier()
	if err != nil {
		return err
	}
	if v.check != "" {
		return v.checkProof(key)
	}
	src, err := v.from.open()
	if err != nil {
		return err
	}
	defer src.Close()
	var r recorder.Report
	if v.session != "" {
		r, err = recorder.VerifySession(ctx, src, v.session, key)
	} else {
		var older *recorder.Checkpoint
		if v.since != "" {
			text, err := os.ReadFile(v.since)
			if err != nil {
				return err
			}
			c, err := recorder.OpenCheckpoint(text, key)
			if err != nil {
				return fmt.Errorf("%s: %w", v.since, err)
			}
			older = &c
		}
		show := progress(v.err)
		r, err = recorder.VerifyLog(recorder.ReadsAll(ctx), src, key, older, func(n int) { show("%d sessions", n) })
	}
	if err != nil {
		return err
	}
	if err := v.print(r); err != nil {
		return err
	}
	if len(r.Faults) > 0 {
		return errUnverified
	}
	if len(r.Unverified) > 0 {
		return errNotAll
	}
	if v.save != "" && r.Seen != nil {
		if err := os.WriteFile(v.save, r.Seen.Note, 0o644); err != nil {
			return err
		}
	}
	if v.proof != "" {
		return v.writeProof(ctx, src)
	}
	return nil
}

func (v *verification) verifier() (string, error) {
	if v.key == "" {
		return recorder.ReadVerifier(v.from.data)
	}
	text, err := os.ReadFile(v.key)
	if err != nil {
		return "", err
	}
	return string(bytes.TrimSpace(text)), nil
}

// print prints what has been found.
func (v *verification) print(r recorder.Report) error {
	out := v.out
	if v.proof == "-" {
		out = v.err
	}
	if v.json {
		type head struct {
			Origin string `json:"origin"`
			Size   int64  `json:"size"`
			Head   string `json:"head"`
		}
		all := struct {
			recorder.Report
			Checkpoint *head `json:"checkpoint,omitempty"`
		}{Report: r}
		if r.Seen != nil {
			all.Checkpoint = &head{r.Seen.Origin, r.Seen.Size, r.Seen.Head.String()}
		}
		return json.NewEncoder(out).Encode(all)
	}
	for _, f := range r.Faults {
		fmt.Fprintln(out, f)
	}
	for _, u := range r.Unverified {
		fmt.Fprintln(out, u)
	}
	if len(r.Faults) > 0 {
		return nil
	}
	if n := len(r.Unverified); n > 0 {
		_, err := fmt.Fprintf(out, "%d of %d sessions could not be verified; nothing is wrong with the others\n", n, r.Sessions)
		return err
	}
	what := fmt.Sprintf("%d sessions with %d frames are", r.Sessions, r.Frames)
	if v.session != "" {
		what = fmt.Sprintf("session %s with %d frames is", v.session, r.Frames)
	}
	fmt.Fprintln(out, what, "whole and unchanged")
	if r.Running > 0 {
		fmt.Fprintf(out, "%d of them run, and are in no checkpoint yet\n", r.Running)
	}
	if r.Deleted > 0 {
		fmt.Fprintf(out, "%d sessions were deleted, as the log itself says\n", r.Deleted)
	}
	if r.Seen != nil {
		fmt.Fprintf(out, "by the checkpoint of %s: %d sessions, head %s\n", r.Seen.Origin, r.Seen.Size, r.Seen.Head)
	}
	return nil
}

func (v *verification) writeProof(ctx context.Context, src recorder.Source) error {
	p, err := src.Proof(ctx, v.session)
	if err != nil {
		return fmt.Errorf("session %s: %w", v.session, err)
	}
	text, err := p.MarshalText()
	if err != nil {
		return err
	}
	if v.proof == "-" {
		_, err = v.out.Write(text)
		return err
	}
	return os.WriteFile(v.proof, text, 0o644)
}

func (v *verification) checkProof(key string) error {
	text, err := os.ReadFile(v.check)
	if err != nil {
		return err
	}
	var p recorder.Proof
	if err := p.UnmarshalText(text); err != nil {
		return fmt.Errorf("%s: %w", v.check, err)
	}
	s, c, err := p.Check(key)
	if err != nil {
		return fmt.Errorf("%s: %w", v.check, err)
	}
	if v.json {
		return json.NewEncoder(v.out).Encode(s)
	}
	fmt.Fprintf(v.out, "session %s of %s with %s, from %s to %s, is number %d of the %d in the checkpoint of %s\n",
		s.ID, s.Subject, s.Server, s.Start.Local().Format(time.DateTime), s.End.Local().Format(time.DateTime), p.Index+1, c.Size, c.Origin)
	return nil
}
