package recorder

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"
)

// A Disk is what a log takes of its disk, in bytes: as many as its files have there,
// of which some are longer than that.
type Disk struct {
	Values int64 // the value log, where large blocks are; what is deleted takes its place until it is collected
	Tables int64 // all else that is kept: small blocks, sessions, the tree
	Recent int64 // the journal, and what is not in tables yet
	Other  int64
	Free   int64 // of the disk, for everybody

	Sessions int64 // on record
	Pending  int64 // of them: have ended, and their blocks are not rewritten yet

	Collected Collection // the last one; zero: there was none since the log was opened
}

// A Collection is what a look for dead values has come to.
type Collection struct {
	Time  time.Time
	Files int   // of the value log, that were freed
	Err   error // why it did not come to its end
}

// All is what all files of the log take.
func (d Disk) All() int64 { return d.Values + d.Tables + d.Recent + d.Other }

// Disk looks at what the log takes of its disk.
func (l *Log) Disk() (Disk, error) {
	var d Disk
	err := filepath.WalkDir(l.o.Dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if errors.Is(err, fs.ErrNotExist) { // files come and go
			return nil
		}
		if err != nil {
			return err
		}
		part := &d.Other
		switch ext := filepath.Ext(path); {
		case ext == ".vlog":
			part = &d.Values
		case ext == ".sst":
			part = &d.Tables
		case ext == ".mem", filepath.Dir(path) == l.journal.dir:
			part = &d.Recent
		}
		*part += st.Blocks * 512
		return nil
	})
	if err != nil {
		return d, fmt.Errorf("disk use of %s: %w", l.o.Dir, err)
	}
	if c := l.collected.Load(); c != nil {
		d.Collected = *c
	}
	if d.Free, err = l.space(); err != nil {
		return d, fmt.Errorf("free space: %w", err)
	}
	l.tree.mu.Lock()
	d.Sessions = l.tree.size
	l.tree.mu.Unlock()
	l.mu.Lock()
	d.Sessions += int64(len(l.live))
	l.mu.Unlock()
	err = l.keys(rewriteKey(""), func(string) bool { d.Pending++; return true })
	return d, err
}

// Reserved returns how many bytes must stay free on the disk.
func (l *Log) Reserved() int64 { return l.o.Free }

const (
	// collectInterval is how often the value log is looked at.
	collectInterval = 10 * time.Minute
	// collectRatio is how much of a file of the value log must be dead to be collected:
	// the rest of it is written again.
	collectRatio = 0.5
)

// collectNow frees what deleted values take of the disk.
func (l *Log) collectNow() bool {
	files, err := l.collect()
	if err != nil {
		l.o.Log.Warn("the value log cannot be collected now", "error", err)
	}
	l.collected.Store(&Collection{Time: time.Now(), Files: files, Err: err})
	return true
}

// collect frees files of the value log that are mostly dead, and returns how many.
func (l *Log) collect() (files int, err error) {
	// Badger counts a value as dead when it merges the tables that have its key. Those
	// are small beside the values, and where little is written, that is not before long.
	if dead := l.dead.Load(); dead > int64(valueFileSize) {
		if err := l.db.Flatten(1); err != nil {
			return 0, err
		}
		l.dead.Add(-dead)
	}
	for !l.closed() {
		err := l.db.RunValueLogGC(collectRatio)
		if errors.Is(err, badger.ErrNoRewrite) || errors.Is(err, badger.ErrRejected) { // ErrRejected: it is being closed
			return files, nil
		}
		if err != nil {
			return files, err
		}
		files++
	}
	return files, nil
}
