package recorder

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	"github.com/dgraph-io/badger/v4"
)

// The blocks of a session that has ended can move to an archive: they become an object
// in a bucket, and all else of the session stays in the log, so that it is found and
// proven as before. Whoever reads its blocks gets them from there.
//
// An object is an age file, to a key of its own that is in the log: the bucket has
// nothing that can be read, or changed unnoticed, and a session whose key is deleted is
// gone, whatever copies the bucket keeps. In it is what the socket answers for the
// session's blocks, see [ServeSocket]: its record, the blocks, a length of 0.
//
// In the database:
//
//	a/<session>          where its blocks are, or are being written: archived in JSON
//	e/<session>/<object> the URL of an object that is to be deleted; empty
//	p/<place>            the URL of an archive: its place, and options behind a ?
//	m                    how far archiving has come: moved in JSON
//
// See archiving.go for how they move.

// ErrArchive is wrapped by errors of an archive that cannot be reached, or does not do
// what it is asked for. What it has is not damaged for that.
var ErrArchive = errors.New("the archive cannot be used now")

// An Archive keeps objects by their names, each written once and as a whole. Its errors
// need not repeat the name.
type Archive interface {
	// Create begins an object, in the place of one that is there. It is there for good
	// when Close has returned nil, and is not if ctx is done before.
	Create(ctx context.Context, name string) (io.WriteCloser, error)
	// Open reads an object. Its error wraps [fs.ErrNotExist] if there is none.
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	// Delete deletes an object; nil if there is none.
	Delete(ctx context.Context, name string) error
	Close() error
}

// An archived is where the blocks of a session are.
type archived struct {
	At     string    `json:"at"`            // the archive's place
	Object string    `json:"object"`        // its name there
	Key    string    `json:"key"`           // an identity of age's, which opens it
	Time   time.Time `json:"time,omitzero"` // since when they are; zero: they are being written
}

// newArchived returns where the blocks of a session shall be. No object has the name of
// another, not even of one that a copy of this log writes.
func newArchived(session, place string) (*archived, error) {
	key, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, err
	}
	var other [4]byte
	rand.Read(other[:])
	return &archived{At: place, Object: fmt.Sprintf("%s-%x.age", session, other), Key: key.String()}, nil
}

// url is the object's.
func (a *archived) url() string { return a.At + "/" + a.Object }

func archivedKey(id string) []byte          { return []byte("a/" + id) }
func undeletedKey(id, object string) []byte { return []byte("e/" + id + "/" + object) }
func placeKey(place string) []byte          { return []byte("p/" + place) }

// placeOf returns the place of an archive: its URL without options, which may change.
func placeOf(url string) string {
	place, _, _ := strings.Cut(url, "?")
	return strings.TrimRight(place, "/")
}

// archives are those that are open.
type archives struct {
	sync.Mutex
	opener  func(ctx context.Context, url string) (Archive, error)
	byPlace map[string]Archive
}

// OpenArchives is Options.OpenArchive of a log that is open.
func (l *Log) OpenArchives(f func(ctx context.Context, url string) (Archive, error)) {
	l.archives.Lock()
	defer l.archives.Unlock()
	l.archives.opener = f
}

// archive returns the archive of a place.
func (l *Log) archive(ctx context.Context, place string) (Archive, error) {
	all := &l.archives
	all.Lock()
	defer all.Unlock()
	if a := all.byPlace[place]; a != nil {
		return a, nil
	}
	if all.opener == nil {
		return nil, errors.New("archives are not read here")
	}
	url := l.o.Archive
	if placeOf(url) != place {
		b, err := l.value(placeKey(place))
		if err != nil {
			return nil, err
		}
		if url = string(b); b == nil {
			return nil, errors.New("the log does not know how to get there")
		}
	}
	a, err := all.opener(ctx, url)
	if err != nil {
		return nil, err
	}
	if all.byPlace == nil {
		all.byPlace = map[string]Archive{}
	}
	all.byPlace[place] = a
	return a, nil
}

func (a *archives) close() (err error) {
	a.Lock()
	defer a.Unlock()
	for _, archive := range a.byPlace {
		err = errors.Join(err, archive.Close())
	}
	a.byPlace = nil
	return err
}

// archivedIn returns where the blocks of a session are, or nil if they are in the log.
func archivedIn(txn *badger.Txn, session string) (*archived, error) {
	a, err := markIn(txn, session)
	if a != nil && a.Time.IsZero() {
		return nil, err
	}
	return a, err
}

// markIn is archivedIn, also of those that are being written.
func markIn(txn *badger.Txn, session string) (*archived, error) {
	b, err := valueOf(txn, archivedKey(session))
	if b == nil || err != nil {
		return nil, err
	}
	a := new(archived)
	if json.Unmarshal(b, a) != nil || a.At == "" || a.Object == "" {
		return nil, fmt.Errorf("%w: where session %s is archived cannot be read", ErrDamaged, session)
	}
	return a, nil
}

// markOf is markIn of now.
func (l *Log) markOf(session string) (a *archived, err error) {
	err = l.view(func(txn *badger.Txn) error {
		a, err = markIn(txn, session)
		return err
	})
	return a, err
}

// A source is a reader that knows whether it was at fault.
type source struct {
	io.Reader
	err error
}

func (s *source) Read(b []byte) (int, error) {
	n, err := s.Reader.Read(b)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// fetch is [Log.blocks] of a session whose blocks are archived. Where its object is not
// what was written, f gets one that is lost, and that is the end. An error wraps
// [ErrArchive], or is f's.
func (l *Log) fetch(ctx context.Context, a *archived, from uint32, f func(n uint32, b []byte) (bool, error)) error {
	failed := func(err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%w: read %s: %w", ErrArchive, a.url(), err)
	}
	next := from
	damaged := func(what string) error {
		_, err := f(next, lost(fmt.Sprintf("%s %s", a.url(), what)))
		return err
	}
	in, err := l.archive(ctx, a.At)
	if err != nil {
		return failed(err)
	}
	object, err := in.Open(ctx, a.Object)
	if errors.Is(err, fs.ErrNotExist) {
		return damaged("is not there")
	}
	if err != nil {
		return failed(err)
	}
	defer object.Close()
	var (
		src  = &source{Reader: object}
		err2 error // f's
		over bool
	)
	key, err := age.ParseX25519Identity(a.Key)
	if err != nil {
		return damaged("has a key that cannot be read")
	}
	plain, err := age.Decrypt(src, key)
	if err == nil {
		err = readBlocks(bufio.NewReaderSize(plain, 64<<10), func(Session) {}, func(b Block) bool {
			count := uint32(1)
			if h, err := readHeader(b.Bytes); err == nil {
				count = h.count
			}
			if b.Number+count <= from {
				return true
			}
			var goOn bool
			goOn, err2 = f(b.Number, b.Bytes)
			next, over = b.Number+count, !goOn || err2 != nil
			return !over
		}, nil)
	}
	switch {
	case over:
		return err2
	case src.err != nil:
		return failed(src.err)
	case err != nil:
		return damaged("is not what was written")
	}
	return nil
}
