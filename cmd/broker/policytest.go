package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"example.com/broker/broker/policy"
	"example.com/broker/broker/trial"
	"example.com/broker/recorder"
	"github.com/spf13/cobra"
)

func policyTest() *cobra.Command {
	var p policyTrial
	cmd := &cobra.Command{
		Use:   "test FILE",
		Short: "run a policy over recordings: what would change for what was used",
		Long: `Run the policy of a broker.yaml, or of a file with policy and detectors only, over
the recordings of the last 30 days, and say what would not be as it was: which
sessions and calls it would refuse, hold for an approval or let through, and which
values it would mask. Without --against it is compared with what happened, with
--against OLD with what that file decides.

Recordings hold what was delivered, so that there are limits. What was masked in
them cannot be looked at again: it counts as found where the policy still has the
detector, and conditions see the mark. Groups are those of the time of the session,
"now" in conditions is the time of the frame, "auto" and grants are not looked at.
A tool that was left out of a list is not on record.

What a rule with "mode: observe" would do is listed in brackets, and changes nothing.

Exit status: 0 if nothing that was used would newly be refused or held, 1 if
something would (0 with --exit-zero), 2 for wrong usage, 3 if nothing would by
what could be read, and not all recordings could: they are named.`,
		Example: "  broker policy test new.yaml --since 30d\n  broker policy test new.yaml --against broker.yaml --server bigquery --json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p.file, p.out, p.err = args[0], cmd.OutOrStdout(), cmd.ErrOrStderr()
			var err error
			if p.o.Since, p.o.Until, err = timeSpan(p.since, p.until); err != nil {
				return err
			}
			return p.run(cmd.Context())
		},
	}
	addData(cmd, &p.data)
	cmd.Flags().StringVar(&p.since, "since", "30d", "look at what was used since `WHEN`: how long ago (30d, 12h), or a date (2026-11-01, or RFC 3339)")
	cmd.Flags().StringVar(&p.until, "until", "", "and until `WHEN`")
	cmd.Flags().StringVar(&p.o.Subject, "subject", "", "only sessions of that `SUBJECT`")
	cmd.Flags().StringVar(&p.o.Server, "server", "", "only sessions with that `SERVER`")
	cmd.Flags().StringVar(&p.against, "against", "", "compare with what the policy of `FILE` decides, not with what happened")
	cmd.Flags().BoolVar(&p.json, "json", false, "print one JSON object")
	cmd.Flags().BoolVar(&p.exitZero, "exit-zero", false, "exit with 0 whatever would change")
	return cmd
}

// A policyTrial is what broker policy test is asked for.
type policyTrial struct {
	file, against, data, since, until string
	json, exitZero                    bool
	o                                 trial.Options
	out, err                          io.Writer
}

func (p *policyTrial) run(ctx context.Context) error {
	files := make([]*brokerConfig, 1, 2)
	var err error
	if files[0], err = readPolicyFile(p.file); err != nil {
		return err
	}
	p.o.New = files[0].policy
	if p.against != "" {
		old, err := readPolicyFile(p.against)
		if err != nil {
			return err
		}
		p.o.Old, files = old.policy, append(files, old)
	}
	if p.o.Show, err = maskAll(files...); err != nil {
		return err
	}
	src, err := openSource(p.data)
	if err != nil {
		return err
	}
	defer src.Close()
	show := progress(p.err)
	p.o.Progress = func(sessions, frames int64) { show("%d sessions, %d frames", sessions, frames) }
	r, err := trial.Run(recorder.ReadsAll(ctx), src, p.o)
	if err != nil {
		return err
	}
	if err := p.print(r); err != nil {
		return err
	}
	p.warn(r)
	if n := r.Newly.Refused + r.Newly.Held; n > 0 && !p.exitZero {
		return errWouldRefuse
	}
	if len(r.Damaged) > 0 || len(r.Unreached) > 0 {
		return errNotAll
	}
	return nil
}

// errWouldRefuse is returned where a policy takes away what was used.
var errWouldRefuse = errors.New("some of what was used would be refused or held")

// warn says what a trial could not look at.
func (p *policyTrial) warn(r *trial.Report) {
	if len(r.Damaged) > 0 {
		fmt.Fprintf(p.err, "broker: warning: %d recordings are damaged, and what cannot be read is left out: %s\n", len(r.Damaged), strings.Join(r.Damaged, ", "))
	}
	if len(r.Unreached) > 0 {
		fmt.Fprintf(p.err, "broker: warning: %d recordings are in an archive that cannot be reached, and are left out: %s\n", len(r.Unreached), strings.Join(r.Unreached, ", "))
	}
	if r.Unread > 0 {
		fmt.Fprintf(p.err, "broker: warning: %d frames cannot be judged\n", r.Unread)
	}
}

func (p *policyTrial) print(r *trial.Report) error {
	if p.json {
		e := json.NewEncoder(p.out)
		e.SetEscapeHTML(false)
		return e.Encode(struct {
			Policy  string `json:"policy"`
			Against string `json:"against,omitempty"`
			*trial.Report
		}{p.file, p.against, r})
	}
	than := "what happened"
	if p.against != "" {
		than = p.against
	}
	fmt.Fprintf(p.out, "%s beside %s: %d sessions, %d calls, %d frames since %s\n", p.file, than, r.Sessions, r.Calls, r.Frames, r.Since.Local().Format(time.DateTime))
	n := r.Newly
	_, err := fmt.Fprintf(p.out, "newly refused %d, held %d, passed %d; frames newly masked %d, unmasked %d, tools hidden in %d\n",
		n.Refused, n.Held, n.Passed, n.Masked, n.Unmasked, n.Hidden)
	if len(r.Changes) == 0 || err != nil {
		return err
	}
	if n.Observed > 0 {
		fmt.Fprintf(p.out, "%d calls and frames that pass, and of which rules that are only observed would say otherwise\n", n.Observed)
	}
	fmt.Fprintln(p.out)
	table := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "WAS\tNOW\tRULE\tSERVER\tWHAT\tSUBJECT\tCOUNT\tSESSIONS\tWHY")
	for _, c := range r.Changes {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", c.Was, becomes(c), orDash(c.Rule), c.Server, what(c), c.Subject, c.Count, c.Sessions, why(c))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if r.LeftOut > 0 {
		fmt.Fprintf(p.out, "and %d more, of too many kinds to be listed\n", r.LeftOut)
	}
	fmt.Fprintln(p.out, "\nexamples:")
	for _, c := range r.Changes {
		fmt.Fprintf(p.out, "%s, %s → %s, %s, %s\n", what(c), c.Was, becomes(c), orDash(c.Rule), c.Subject)
		for _, e := range c.Examples {
			_, err = fmt.Fprintln(p.out, strings.TrimRight(fmt.Sprintf("  broker replay %s  %s  %s", e.Session, e.Time.Local().Format(time.DateTime), e.Arguments), " "))
		}
	}
	return err
}

// what says what a change is of.
func what(c *trial.Change) string {
	name := c.Name
	if name == "" {
		name = c.Method
	}
	return strings.TrimSpace(c.Of + " " + name)
}

// becomes says what would become of it.
func becomes(c *trial.Change) string {
	if c.Mode == policy.Observe.String() {
		return "(" + c.Now + ")"
	}
	return c.Now
}

// why says why it would be so.
func why(c *trial.Change) string {
	switch {
	case c.Detector != "":
		return fmt.Sprintf("%s (%d)", c.Detector, c.Values)
	case c.Calls > 0:
		return strings.TrimPrefix(fmt.Sprintf("%s; %d calls were made in it", c.Reason, c.Calls), "; ")
	}
	return c.Reason
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
