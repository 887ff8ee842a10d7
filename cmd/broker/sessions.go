package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"example.com/broker/recorder"
	"example.com/broker/recorder/archive"
	"github.com/spf13/cobra"
)

func sessions() *cobra.Command {
	var (
		l            listing
		since, until string
	)
	cmd := &cobra.Command{
		Use:   "sessions",
		Short: "list recordings, newest first, and find them",
		Long: `List the sessions on record, newest first: all of them, or those that fit every
flag that is given. Where a flag is given several times, or with several values
(--server a,b), one of them is enough; of --text, all have to be there.

--text finds words in the frames as they are on record, with escapes resolved, also
in JSON within strings; masked values are not on record. Case does not matter, and
white space of any length is one space. What stands between words counts: "drop
table" finds DROP TABLE, and neither "drop the table" nor "drop tables".

It works beside a running broker (through the socket in its data folder) and
without one (from the log itself). With --broker it asks a broker anywhere, as one
of its auditors.`,
		Example: `  broker sessions --data /var/lib/broker --json
  broker sessions --broker mcp.example.com:8443
  broker sessions --server bigquery --tool execute_sql --verdict blocked --since 30d
  broker sessions --subject ada@example.com --text "drop table" --limit 0`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if l.query.Since, l.query.Until, err = timeSpan(since, until); err != nil {
				return err
			}
			if err := l.query.Check(); err != nil {
				return usagef("--%w", err)
			}
			l.out, l.err = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return l.run(cmd.Context())
		},
	}
	l.from.add(cmd)
	f, q := cmd.Flags(), &l.query
	f.StringArrayVar(&q.Subjects, "subject", nil, "only sessions of that `SUBJECT`")
	f.StringArrayVar(&q.Groups, "group", nil, "only of subjects that were in that `GROUP`")
	f.StringSliceVar(&q.Servers, "server", nil, "only with that `SERVER`")
	f.StringSliceVar(&q.Tools, "tool", nil, "only with a call of that `TOOL`, whatever became of it")
	f.StringSliceVar(&q.Verdicts, "verdict", nil, "only with a frame that was `VERDICT`: blocked, masked, approved, observed")
	f.StringSliceVar(&q.States, "state", nil, "only those that are `STATE`: open, ended, refused, interrupted")
	f.StringArrayVar(&q.Text, "text", nil, "only with those `WORDS` in a frame")
	f.StringVar(&since, "since", "", "only those that were there since `WHEN`: 30d, 12h, 2026-11-01 or RFC 3339")
	f.StringVar(&until, "until", "", "and before `WHEN`")
	f.StringVar(&q.Before, "before", "", "only what is listed behind `SESSION`: the next page")
	f.BoolVar(&l.json, "json", false, "one JSON object a line, with all that is known of a session")
	f.IntVarP(&l.limit, "limit", "n", 50, "list at most `N` sessions; 0 means all")
	cmd.RegisterFlagCompletionFunc("verdict", cobra.FixedCompletions(recorder.Verdicts, cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(recorder.States, cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("before", completeSessions(&l.from.data))
	for flag, of := range map[string]func(recorder.Session) []string{
		"subject": func(s recorder.Session) []string { return []string{s.Subject} },
		"group":   func(s recorder.Session) []string { return s.Groups },
		"server":  func(s recorder.Session) []string { return []string{s.Server} },
	} {
		cmd.RegisterFlagCompletionFunc(flag, completeFromSessions(&l.from.data, of))
	}
	for _, flag := range []string{"tool", "text", "since", "until"} {
		cmd.RegisterFlagCompletionFunc(flag, cobra.NoFileCompletions)
	}
	return cmd
}

// A listing is what broker sessions is asked for.
type listing struct {
	from     sourceFlags
	query    recorder.Query
	json     bool
	limit    int
	out, err io.Writer
}

func (l *listing) run(ctx context.Context) error {
	src, err := l.from.open()
	if err != nil {
		return err
	}
	defer src.Close()
	table := tabwriter.NewWriter(l.out, 0, 0, 2, ' ', 0)
	lines := json.NewEncoder(l.out)
	if !l.json {
		fmt.Fprintln(table, "SESSION\tSTART\tSTATE\tSUBJECT\tSERVER\tFRAMES\tBLOCKED\tMASKED\tTIME")
	}
	n, last := 0, ""
	var damaged error
	for s, err := range src.Find(ctx, l.query) {
		if errors.Is(err, recorder.ErrDamaged) {
			damaged = errors.Join(damaged, err)
			continue
		}
		if err != nil {
			return err
		}
		if n++; l.limit > 0 && n > l.limit {
			defer fmt.Fprintf(l.err, "broker: hint: there are more; go on with --before %s, or list all with --limit 0\n", last)
			break
		}
		if last = s.ID; l.json {
			if err := lines.Encode(s); err != nil {
				return err
			}
			continue
		}
		state := s.State
		if s.Archived != "" {
			state += ", archived"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\n", s.ID, s.Start.Local().Format(time.DateTime),
			state, cmp.Or(s.Subject, "-"), s.Server, s.C2S.Frames+s.S2C.Frames, s.Blocked, s.Masked, length(s))
	}
	return errors.Join(table.Flush(), damaged)
}

// completeFromSessions completes with what the newest sessions have.
func completeFromSessions(data *string, of func(recorder.Session) []string) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) (values []cobra.Completion, _ cobra.ShellCompDirective) {
		src, err := openSource(*data)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer src.Close()
		n := 0
		for s, err := range src.Sessions(context.Background()) {
			if n++; err != nil || n > 500 {
				break
			}
			values = append(values, of(s)...)
		}
		slices.Sort(values)
		return slices.Compact(values), cobra.ShellCompDirectiveNoFileComp
	}
}

// length is how long a session took, or has taken so far.
func length(s recorder.Session) string {
	end := s.End
	if end.IsZero() {
		if s.State != "open" {
			return "?"
		}
		end = time.Now()
	}
	return end.Sub(s.Start).Round(time.Millisecond).String()
}

// addData adds the flag of the commands that read the broker's data folder.
func addData(cmd *cobra.Command, data *string) {
	cmd.Flags().StringVar(data, "data", "data", "the broker's data `DIR`")
	cmd.MarkFlagDirname("data")
}

// openSource opens the recordings in a broker's data folder: through the
// running broker, which root may ask, too, or from the log, which only its
// owner may open.
func openSource(data string) (recorder.Source, error) {
	src, err := dialOrOpen(data)
	if err != nil {
		return nil, err
	}
	if _, log := src.(*recorder.Log); !log {
		return src, nil // a broker has started meanwhile
	}
	if _, err := os.Stat(filepath.Join(data, accessDir)); errors.Is(err, fs.ErrNotExist) {
		return src, nil // no broker has run here: there is no audit
	}
	return &notedSource{Source: src, data: data, done: map[string]bool{}}, nil
}

// dialOrOpen is openSource of which no word is left.
func dialOrOpen(data string) (recorder.Source, error) {
	if src, err := recorder.DialSource(data); err == nil {
		return src, nil
	}
	if err := checkData(data); err != nil {
		return nil, err
	}
	src, err := recorder.OpenSource(data)
	if l, ok := src.(*recorder.Log); ok {
		l.OpenArchives(archive.Open)
	}
	return src, err
}

// sourceFlags say where recordings are: in a data folder here, or with a broker.
type sourceFlags struct {
	data   string
	client clientFlags
}

func (f *sourceFlags) add(cmd *cobra.Command) {
	addData(cmd, &f.data)
	f.client.add(cmd)
	cmd.MarkFlagsMutuallyExclusive("data", "broker")
	usage := cmd.Flags().Lookup("broker")
	usage.Usage = "read them from the broker at `ADDR`, host:port, as one of its auditors"
}

// open opens the recordings.
func (f *sourceFlags) open() (recorder.Source, error) {
	if f.client.broker == "" {
		return openSource(f.data)
	}
	return f.client.source()
}

// source opens the recordings of a broker.
func (f *clientFlags) source() (recorder.Source, error) {
	c, err := f.api()
	if err != nil {
		return nil, err
	}
	c.http.Timeout = 0 // of a session that is followed, answers have no end
	return recorder.NewRemote(c.base+"/api/v1/recordings", c.http), nil
}
