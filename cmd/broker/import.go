package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"example.com/broker/recorder"
	"example.com/broker/recorder/capture"
	"github.com/spf13/cobra"
)

func importCommand() *cobra.Command {
	var (
		data   string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "import CAPTURE",
		Short: "record the MCP in a capture of a network (pcap, pcapng)",
		Long: `Record each TCP stream of a capture that is MCP in the clear: JSON-RPC, a frame a
line. Such a session has the addresses and the times of the capture, names the
file that it is from, and has no subject, because nobody has proven to be one. What
is not MCP (TLS, HTTP, …) is counted.

The log must be free: stop the broker that runs on the data folder, or import into
another folder.`,
		Example: "  broker import office.pcapng --data ./imported\n  broker sessions --data ./imported",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			sum := sha256.New()
			if _, err := io.Copy(sum, f); err != nil {
				return err
			}
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return fmt.Errorf("%w; a capture is read twice, and must be a file", err)
			}
			l, err := openLog(data)
			if err != nil {
				return err
			}
			as := recorder.Imported{File: filepath.Base(args[0]), SHA256: hex.EncodeToString(sum.Sum(nil))}
			report, err := capture.Import(cmd.Context(), f, capture.To(l), as)
			if err == nil {
				err = l.Settle(cmd.Context()) // no broker may ever run on it
			}
			err = errors.Join(err, l.Close())
			if err == nil || len(report.Sessions) > 0 {
				err = errors.Join(printImport(cmd.OutOrStdout(), as, report, asJSON), err)
			}
			if err != nil {
				return fmt.Errorf("import %s: %w", args[0], err)
			}
			return nil
		},
	}
	addData(cmd, &data)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	return cmd
}

// openLog opens the log of a data folder for writing, and makes it where there is
// none.
func openLog(data string) (*recorder.Log, error) {
	if _, err := os.Stat(data); err == nil {
		if err := checkData(data); err != nil {
			return nil, err
		}
	}
	key, err := recorder.OpenKey(data)
	if err != nil {
		return nil, err
	}
	l, err := recorder.Open(recorder.Options{Dir: filepath.Join(data, "log"), Key: key, Log: slog.New(slog.DiscardHandler)})
	if errors.Is(err, recorder.ErrInUse) {
		return nil, hinted{err, "stop the broker that runs on " + data + ", or import into another folder with --data"}
	}
	return l, err
}

func printImport(w io.Writer, as recorder.Imported, r *capture.Report, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(struct {
			recorder.Imported
			*capture.Report
		}{as, r})
	}
	for _, s := range r.Sessions {
		fmt.Fprintf(w, "session %s: %s to %s, %d frames to the server, %d to the client%s%s%s\n", s.ID, s.Client, s.Server, s.C2S, s.S2C,
			counted(s.Blocked, "blocked"), counted(s.Incomplete, "incomplete: segments are missing"), counted(s.Unchecked, "too long to be checked"))
	}
	fmt.Fprintf(w, "%d sessions from %d packets of %s\n", len(r.Sessions), r.Packets, as.File)
	for _, skipped := range []struct {
		what string
		by   map[string]int64
	}{{"streams", r.Streams}, {"packets", r.Skipped}} {
		var parts []string
		for _, why := range slices.Sorted(maps.Keys(skipped.by)) {
			parts = append(parts, fmt.Sprintf("%d %s", skipped.by[why], why))
		}
		if len(parts) > 0 {
			fmt.Fprintf(w, "skipped %s: %s\n", skipped.what, strings.Join(parts, ", "))
		}
	}
	if r.Fault != "" {
		fmt.Fprintf(w, "the capture was not read to its end: %s\n", r.Fault)
	}
	return nil
}

func counted(n int64, what string) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", %d %s", n, what)
}
