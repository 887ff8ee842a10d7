package recorder

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Badger leaves out what is in a damaged block, and does not say so: a hold that was there
// reads as none, and what must be kept would be deleted. So which sessions are held is also
// in a file of its own, which is whole or is known not to be:
//
//	mcp-broker holds 1 <SHA-256 of what follows, in hexadecimal>
//	<session>
//	…
//
// A session is held if either says so. The file is written before a hold is in the
// database, and behind its release: a kill in between leaves the session held.

const (
	holdsFile = "HOLDS"
	holdsHead = "mcp-broker holds 1 "
)

// errHolds is returned where something would be deleted, or held, and what is held is not
// known.
var errHolds = errors.New("which sessions are held cannot be read, so that none is deleted")

// A holdSet is the sessions of the file. tree.mu is held when they are used.
type holdSet struct {
	path string
	ids  map[string]bool
	err  error // they are not known
}

// openHolds reads the file, or makes it of what the database has, for a log that was
// written before there was one.
func (l *Log) openHolds() error {
	h := &l.holds
	h.path, h.ids = filepath.Join(l.o.Dir, holdsFile), map[string]bool{}
	text, err := os.ReadFile(h.path)
	switch {
	case err == nil:
		h.err = h.parse(string(text))
	case !errors.Is(err, fs.ErrNotExist):
		h.err = fmt.Errorf("%w: %w", errHolds, err)
	default:
		if err := l.keys(holdKey(""), func(id string) bool { h.ids[id] = true; return true }); err != nil {
			return err
		}
		if len(h.ids) > 0 {
			h.err = h.write()
		}
	}
	if h.err != nil {
		l.o.Log.Error("holds are not known; remove the file to make it anew of what the log has, or bring it back", "file", h.path, "error", h.err)
	}
	return nil
}

func (h *holdSet) parse(text string) error {
	head, rest, _ := strings.Cut(text, "\n")
	sum := sha256.Sum256([]byte(rest))
	if head != holdsHead+hex.EncodeToString(sum[:]) {
		return fmt.Errorf("%w: %s is damaged", errHolds, h.path)
	}
	for id := range strings.Lines(rest) {
		h.ids[strings.TrimSuffix(id, "\n")] = true
	}
	return nil
}

func (h *holdSet) write() error {
	rest := ""
	for _, id := range slices.Sorted(maps.Keys(h.ids)) {
		rest += id + "\n"
	}
	sum := sha256.Sum256([]byte(rest))
	return writeFile(h.path, []byte(holdsHead+hex.EncodeToString(sum[:])+"\n"+rest), 0o600)
}

// copyTo writes the file for a log in another folder.
func (h holdSet) copyTo(dir string) error {
	if h.path = filepath.Join(dir, holdsFile); h.err != nil || len(h.ids) == 0 {
		return h.err
	}
	return h.write()
}

// set puts a session in, or takes it out.
func (h *holdSet) set(session string, held bool) error {
	if h.err != nil {
		return h.err
	}
	had := h.ids[session]
	if had == held {
		return nil
	}
	put := func(held bool) {
		if delete(h.ids, session); held {
			h.ids[session] = true
		}
	}
	put(held)
	err := h.write()
	if err != nil {
		put(had || held) // the file has the one or the other
	}
	return err
}

// held reports whether a session is held. l.tree.mu is held.
func (l *Log) held(session string) (bool, error) {
	if l.holds.err != nil {
		return true, l.holds.err
	}
	hold, err := l.value(holdKey(session))
	return hold != nil || l.holds.ids[session], err
}
