package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"example.com/broker/recorder"
	"github.com/spf13/cobra"
)

func sessions() *cobra.Command {
	var (
		from   sourceFlags
		asJSON bool
		limit  int
	)
	cmd := &cobra.Command{
		Use:   "sessions",
		Short: "list recordings, newest first",
		Long: `List the sessions on record, newest first. It works beside a running broker
(through the socket in its data folder) and without one (from the log itself). With
--broker it asks a broker anywhere, as one of its auditors.`,
		Example: "  broker sessions --data /var/lib/broker --json\n  broker sessions --broker mcp.example.com:8443",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			src, err := from.open()
			if err != nil {
				return err
			}
			defer src.Close()
			table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			lines := json.NewEncoder(cmd.OutOrStdout())
			if !asJSON {
				fmt.Fprintln(table, "SESSION\tSTART\tSTATE\tSUBJECT\tSERVER\tFRAMES\tBLOCKED\tMASKED\tTIME")
			}
			n := 0
			for s, err := range src.Sessions(cmd.Context()) {
				if err != nil {
					return err
				}
				if n++; limit > 0 && n > limit {
					break
				}
				if asJSON {
					if err := lines.Encode(s); err != nil {
						return err
					}
					continue
				}
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\n", s.ID, s.Start.Local().Format(time.DateTime),
					s.State, cmp.Or(s.Subject, "-"), s.Server, s.C2S.Frames+s.S2C.Frames, s.Blocked, s.Masked, length(s))
			}
			return table.Flush()
		},
	}
	from.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object a line, with all that is known of a session")
	cmd.Flags().IntVarP(&limit, "limit", "n", 50, "list at most `N` sessions; 0 means all")
	return cmd
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
	if src, err := recorder.DialSource(data); err == nil {
		return src, nil
	}
	if err := checkData(data); err != nil {
		return nil, err
	}
	src, err := recorder.OpenSource(data)
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
