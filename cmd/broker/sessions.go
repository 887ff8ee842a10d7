package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"example.com/broker/recorder"
	"github.com/spf13/cobra"
)

func sessions() *cobra.Command {
	var (
		data   string
		asJSON bool
		limit  int
	)
	cmd := &cobra.Command{
		Use:   "sessions",
		Short: "list recordings, newest first",
		Long: `List the sessions on record, newest first. It works beside a running broker
(through the socket in its data folder) and without one (from the log itself).`,
		Example: "  broker sessions --data /var/lib/broker --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			src, err := openSource(data)
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
			var damaged error
			for s, err := range src.Sessions(cmd.Context()) {
				if errors.Is(err, recorder.ErrDamaged) {
					damaged = errors.Join(damaged, err)
					continue
				}
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
			return errors.Join(table.Flush(), damaged)
		},
	}
	addData(cmd, &data)
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
	return recorder.OpenSource(data)
}
