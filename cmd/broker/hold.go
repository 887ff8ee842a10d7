package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"example.com/broker/broker"
	"example.com/broker/recorder"
	"github.com/spf13/cobra"
)

func hold() *cobra.Command {
	var (
		data, reason    string
		release, asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "hold [SESSION…]",
		Short: "keep recordings from being deleted, or list those that are held",
		Long: `Hold sessions: neither retention (keep in broker.yaml) nor broker delete deletes them
until they are released. Without a session, list what is held, by whom and why.
Each is an event.`,
		Example: "  broker hold --reason 'incident 4711' 06a2n8mwvg5c3k0q\n  broker hold --release 06a2n8mwvg5c3k0q\n  broker hold",
		RunE: func(cmd *cobra.Command, sessions []string) error {
			if release && (len(sessions) == 0 || reason != "") {
				return usagef("--release takes sessions, and no --reason")
			}
			c, err := openCustodian(data)
			if err != nil {
				return err
			}
			defer c.Close()
			if len(sessions) == 0 {
				return listHolds(cmd.Context(), c, asJSON, cmd.OutOrStdout())
			}
			for _, id := range sessions {
				if release {
					err = c.Release(cmd.Context(), id, c.by)
				} else {
					err = c.Hold(cmd.Context(), recorder.Hold{Session: id, By: c.by, Reason: reason})
				}
				if err != nil {
					return fmt.Errorf("session %s: %w", id, err)
				}
			}
			return nil
		},
	}
	addData(cmd, &data)
	cmd.Flags().StringVar(&reason, "reason", "", "`WHY` they are held")
	cmd.Flags().BoolVar(&release, "release", false, "release them")
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object a line")
	cmd.ValidArgsFunction = completeSessions(&data)
	return cmd
}

func listHolds(ctx context.Context, c *custodian, asJSON bool, out io.Writer) error {
	table, lines := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0), json.NewEncoder(out)
	if !asJSON {
		fmt.Fprintln(table, "SESSION\tSINCE\tBY\tREASON")
	}
	for h, err := range c.Holds(ctx) {
		if err != nil {
			return err
		}
		if asJSON {
			err = lines.Encode(h)
		} else {
			_, err = fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", h.Session, h.Time.Local().Format(time.DateTime), h.By, h.Reason)
		}
		if err != nil {
			return err
		}
	}
	return table.Flush()
}

func deleteCommand() *cobra.Command {
	var data, reason string
	cmd := &cobra.Command{
		Use:   "delete SESSION…",
		Short: "delete recordings for good",
		Long: `Delete sessions that have ended, before their time. What is left is a leaf of the
log's tree that says which, when, by whom and why, so that broker verify still proves
the rest; and an event. Sessions that are held are not deleted.`,
		Example: "  broker delete --reason 'asked by the person' 06a2n8mwvg5c3k0q",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, sessions []string) error {
			if reason == "" {
				return usagef("say why: --reason")
			}
			c, err := openCustodian(data)
			if err != nil {
				return err
			}
			defer c.Close()
			for _, id := range sessions {
				if err := c.Delete(cmd.Context(), id, c.by, reason); err != nil {
					return fmt.Errorf("session %s: %w", id, err)
				}
			}
			return nil
		},
	}
	addData(cmd, &data)
	cmd.Flags().StringVar(&reason, "reason", "", "`WHY` they are deleted")
	cmd.ValidArgsFunction = completeSessions(&data)
	return cmd
}

// A custodian holds and deletes sessions of a data folder.
type custodian struct {
	recorder.Custodian
	io.Closer
	by string
}

// openCustodian opens a data folder: through the running broker, or, without one, its
// log; then it leaves word of each event.
func openCustodian(data string) (*custodian, error) {
	src, err := dialOrOpen(data)
	if err != nil {
		return nil, err
	}
	c, ok := src.(recorder.Custodian)
	if !ok {
		src.Close()
		return nil, errors.New("this source of recordings holds and deletes none")
	}
	if l, ok := src.(*recorder.Log); ok {
		l.TellCustody(func(_ context.Context, c recorder.Custody) error {
			return noteEvent(data, c.What+"-"+recorder.NewID(), broker.CustodyEvent(c, "log"))
		})
	}
	return &custodian{c, src, recorder.LocalUser(os.Getuid())}, nil
}
