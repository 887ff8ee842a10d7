package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"example.com/broker/recorder"
	"github.com/spf13/cobra"
)

func archiveCommand() *cobra.Command {
	var (
		data   string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "archive",
		Short: "say how archiving stands",
		Long: `Say where recordings move to (recording.archive in broker.yaml), how many are there,
and what fails. They are listed, replayed, exported and verified as all others, and
deleted with broker delete.`,
		Example: "  broker archive --data /var/lib/broker --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			src, err := dialOrOpen(data)
			if err != nil {
				return err
			}
			defer src.Close()
			archivist, ok := src.(recorder.Archivist)
			if !ok {
				return errors.New("this source of recordings has no archive")
			}
			a, err := archivist.Archiving(cmd.Context())
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return json.NewEncoder(out).Encode(a)
			}
			if a.To != "" {
				fmt.Fprintln(out, "sessions move to", a.To)
			}
			fmt.Fprintf(out, "%d sessions are archived\n", a.Sessions)
			if a.Undeleted > 0 {
				fmt.Fprintf(out, "%d objects of deleted sessions are to be deleted\n", a.Undeleted)
			}
			if f := a.Failing; f != nil {
				fmt.Fprintf(out, "it fails since %s: %s\n", f.Since.Local().Format(time.DateTime), f.Error)
			}
			return nil
		},
	}
	addData(cmd, &data)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print it as JSON")
	return cmd
}
