package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"time"

	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
)

// What broker ca issue has issued goes on record by way of a folder: the broker,
// which has the store open, takes it from there, now or when it next runs.

func issuedDir(data string) string { return filepath.Join(data, "issued") }

// noteIssued leaves word of a certificate, before anybody gets it.
func noteIssued(data string, id identity.Identity, leaf *x509.Certificate) error {
	dir := issuedDir(data)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	by := ""
	if u, err := user.Current(); err == nil {
		by = "local:" + u.Username
	}
	e := grant.IssuedEvent(id, leaf, "")
	e.Time, e.Actor, e.Via = time.Now(), by, "ca issue"
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return writePrivate(filepath.Join(dir, leaf.SerialNumber.Text(16)), b)
}

// recordIssued puts on record what noteIssued has left.
func (in *installation) recordIssued(ctx context.Context) error {
	dir := issuedDir(in.config.Data)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		b, err := os.ReadFile(path)
		var e grant.Event
		if err == nil && entry.Name()[0] == '.' { // being written
			continue
		}
		if err == nil {
			err = json.Unmarshal(b, &e)
		}
		if err == nil {
			e.Detail["noted"] = e.Time.UTC().Format(time.RFC3339)
			err = in.desk.Record(ctx, e)
		}
		if err == nil {
			err = os.Remove(path) // killed before this, it is on record twice, with one serial
		}
		if err != nil {
			return err
		}
	}
	return err
}
