package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"example.com/broker/recorder"
	"github.com/spf13/cobra"
)

// logCommand is about the log as a whole.
func logCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "log",
		Short: "encrypt the log, and change what its key is wrapped by",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(logEncrypt(), logDecrypt(), logRotateKey())
	return cmd
}

// wrapperFlag reads a flag that says what wraps the log's key.
func wrapperFlag(name, value string) (string, error) {
	if path, ok := strings.CutPrefix(value, "file:"); ok {
		abs, err := filepath.Abs(path)
		if err != nil {
			return "", err
		}
		value = "file:" + abs
	}
	if err := recorder.CheckWrapper(value); err != nil {
		return "", usagef("--%s: %w", name, err)
	}
	return value, nil
}

func logEncrypt() *cobra.Command {
	var data, key string
	cmd := &cobra.Command{
		Use:   "encrypt --key KEY",
		Short: "write the log anew, encrypted",
		Long: `Write the log in the data folder anew, encrypted with a new key that KEY wraps: a
log that has been written without encryption, or one whose own key shall change. The
broker must not run, and the disk needs room for the log twice. Afterwards
recording.encryption.key in broker.yaml says KEY.`,
		Example: "  openssl rand -base64 32 > /etc/broker/log-secret\n  broker log encrypt --data /var/lib/broker --key file:/etc/broker/log-secret",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			by, err := wrapperFlag("key", key)
			if err != nil {
				return err
			}
			return reencrypt(cmd, data, by)
		},
	}
	addData(cmd, &data)
	cmd.Flags().StringVar(&key, "key", "", "what wraps the log's key: file:PATH or gcpkms://projects/…")
	cmd.MarkFlagRequired("key")
	return cmd
}

func logDecrypt() *cobra.Command {
	var data string
	cmd := &cobra.Command{
		Use:   "decrypt",
		Short: "write the log anew, without encryption",
		Long: `Write the log in the data folder anew, without encryption. The broker must not run,
and the disk needs room for the log twice. Afterwards there is no recording.encryption
in broker.yaml.`,
		Example: "  broker log decrypt --data /var/lib/broker",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return reencrypt(cmd, data, "") },
	}
	addData(cmd, &data)
	return cmd
}

func reencrypt(cmd *cobra.Command, data, by string) error {
	if err := checkData(data); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(data, "log")); err != nil {
		return fmt.Errorf("log in %s: %w", data, err)
	}
	shown := int64(0)
	err := recorder.Reencrypt(data, by, func(done, of int64) {
		if done-shown >= 256<<20 {
			shown = done
			fmt.Fprintf(cmd.ErrOrStderr(), "broker: %d of about %d MiB are written\n", done>>20, of>>20)
		}
	})
	return err
}

func logRotateKey() *cobra.Command {
	var data, key, old string
	cmd := &cobra.Command{
		Use:   "rotate-key --key KEY",
		Short: "wrap the log's key by another one",
		Long: `Wrap the key that the log is encrypted with by KEY, and no longer by what has
wrapped it so far. It takes a moment, the broker may run, and the log stays as it is;
what has wrapped its key is not needed any more. Afterwards recording.encryption.key
in broker.yaml says KEY. The log's own key changes with broker log encrypt.`,
		Example: "  broker log rotate-key --data /var/lib/broker --key gcpkms://projects/p/locations/europe-west1/keyRings/broker/cryptoKeys/log",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			by, err := wrapperFlag("key", key)
			if err == nil && old != "" {
				old, err = wrapperFlag("old", old)
			}
			if err == nil {
				err = checkData(data)
			}
			if err != nil {
				return err
			}
			return recorder.RotateEncryption(filepath.Join(data, "log"), old, by)
		},
	}
	addData(cmd, &data)
	cmd.Flags().StringVar(&key, "key", "", "what wraps the log's key from now on: file:PATH or gcpkms://projects/…")
	cmd.Flags().StringVar(&old, "old", "", "what wraps it so far (default: what the log says)")
	cmd.MarkFlagRequired("key")
	return cmd
}
