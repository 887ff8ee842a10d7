package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"example.com/broker/recorder"
	"filippo.io/age"
	"github.com/charmbracelet/x/term"
	"github.com/spf13/cobra"
)

// originalsFlags say who opens the originals of masked frames.
type originalsFlags struct {
	open       bool
	identities []string
}

func (f *originalsFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.open, "originals", false, "write what was sent in the place of what was masked; --identity names the key that opens it")
	cmd.Flags().StringArrayVar(&f.identities, "identity", nil, "`FILE` with a certificate and its key, for a broker (default: what broker login stored); or with an identity of age or a private key of SSH, for originals, which may also come on stdin (-); may be repeated")
	cmd.MarkFlagFilename("identity", "pem", "txt")
}

// forBroker returns the files that are for a broker: a file with a certificate is,
// and so is any where no originals are opened.
func (f *originalsFlags) forBroker() (string, error) {
	files := slices.DeleteFunc(slices.Clone(f.identities), f.isKey)
	if len(files) > 1 {
		return "", usagef("--identity %s, %s: the broker knows you by one certificate", files[0], files[1])
	}
	if len(files) == 0 {
		return "", nil
	}
	return files[0], nil
}

// isKey reports whether a file opens originals.
func (f *originalsFlags) isKey(path string) bool {
	if !f.open {
		return false
	}
	if path == "-" {
		return true
	}
	text, err := os.ReadFile(path)
	return err != nil || !bytes.Contains(text, []byte("-----BEGIN CERTIFICATE-----"))
}

// source returns src with the originals, if they are asked for.
func (f *originalsFlags) source(src recorder.Source, stdin io.Reader) (recorder.Source, error) {
	if !f.open {
		return src, nil
	}
	var all []age.Identity
	for _, path := range f.identities {
		if !f.isKey(path) {
			continue
		}
		text, err := readIdentity(path, stdin)
		if err != nil {
			return nil, err
		}
		ids, err := recorder.ParseIdentities(text, func() ([]byte, error) { return askPassphrase(path) })
		if err != nil {
			return nil, fmt.Errorf("identity %s: %w", path, err)
		}
		all = append(all, ids...)
	}
	if len(all) == 0 {
		return nil, usagef("--originals needs --identity FILE: who opens them")
	}
	return recorder.OpenOriginals(src, all...), nil
}

func readIdentity(path string, stdin io.Reader) ([]byte, error) {
	if path != "-" {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("identity: %w", err)
		}
		return text, nil
	}
	text, err := io.ReadAll(io.LimitReader(stdin, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("identity on stdin: %w", err)
	}
	return text, nil
}

// askPassphrase asks on the terminal for what protects a file.
func askPassphrase(path string) ([]byte, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, errors.New("has a passphrase, and there is no terminal to ask for it; decrypt it, and give it on stdin with --identity -")
	}
	defer tty.Close()
	fmt.Fprintf(tty, "Passphrase of %s: ", path)
	secret, err := term.ReadPassword(tty.Fd())
	fmt.Fprintln(tty)
	return secret, err
}
