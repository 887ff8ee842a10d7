package recorder

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"

	"example.com/broker/codec"
)

// recordText records a session that says something to its client.
func recordText(t testing.TB, l *Log, text string) string {
	t.Helper()
	r := start(t, l)
	if err := r.Append(Frame{Direction: codec.S2C, Bytes: []byte(text)}); err != nil {
		t.Fatal(err)
	}
	if err := r.End(Ended, "closed"); err != nil {
		t.Fatal(err)
	}
	return r.ID()
}

// putIndex puts that into the place of a log's index while the log is closed: Badger
// takes no writes while it drops keys, and a log that is open writes when it likes.
func putIndex(t *testing.T, o Options, index ...write) {
	t.Helper()
	db, err := badger.Open(badgerOptions(Options{Dir: o.Dir, Log: silent}, nil))
	if err != nil {
		t.Fatal(err)
	}
	put := func(txn *badger.Txn) error {
		for _, w := range index {
			if err := set(txn, w); err != nil {
				return err
			}
		}
		return nil
	}
	if err := errors.Join(db.DropPrefix([]byte("x/")), db.Update(put), db.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestIndexOfOldLog checks that a log that has no index, or one of another version,
// gets one when it is opened.
func TestIndexOfOldLog(t *testing.T) {
	for _, version := range []string{"", "0"} {
		o := Options{Dir: t.TempDir(), segment: 4}
		l := open(t, o)
		var want []string
		for i := range 10 {
			want = append(want, recordText(t, l, fmt.Sprintf("drop table t%d", i)))
		}
		indexed(t, l)
		l.Close()
		var old []write
		if version != "" {
			old = []write{{versionKey, []byte(version)}, posting(fieldSubject, "ada", "0000000000000000")}
		}
		putIndex(t, o, old...)
		l = open(t, o)
		for _, wait := range []bool{false, true} {
			if wait {
				indexed(t, l)
			}
			for _, q := range []Query{{Text: []string{"Drop Table"}}, {Subjects: []string{"ada"}, Groups: []string{"g"}}} {
				got := ids(t, l, q)
				slices.Sort(got)
				if slices.Sort(want); !slices.Equal(got, want) {
					t.Errorf("version %q, indexed %v, %+v: found %q, want %q", version, wait, q, got, want)
				}
			}
		}
		if f, _, read := find(t, l, Query{Text: []string{"t7"}}, 0); f != 1 || read != 1 {
			t.Errorf("version %q: found %d, read %d: it is not indexed", version, f, read)
		}
	}
}

// TestIndexUnavailable checks that what cannot be indexed, because nothing can be
// written, is found by reading.
func TestIndexUnavailable(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	l := open(t, o)
	want := recordText(t, l, "drop table")
	l.Close()
	putIndex(t, o)
	o.Free = 1 << 60
	l = open(t, o)
	if err := l.Ready(); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("the log can be written: %v", err)
	}
	for _, q := range []Query{{Text: []string{"drop table"}}, {Subjects: []string{"ada"}}, {Since: time.Now().Add(-time.Hour)}} {
		if got := ids(t, l, q); !slices.Equal(got, []string{want}) {
			t.Errorf("%+v: found %q, want %q", q, got, want)
		}
	}
}

// TestSegmentHalfMade checks that a segment that was being made when the process died
// loses nothing and leaves nothing, wherever that was.
func TestSegmentHalfMade(t *testing.T) {
	var more []byte // for several commits of chunks
	for i := range 5000 {
		more = fmt.Appendf(more, " w%d", i)
	}
	for commits := range 8 {
		t.Run(fmt.Sprint("after commit ", commits), func(t *testing.T) {
			o := Options{Dir: t.TempDir(), segment: 1000}
			l := open(t, o)
			for i := range 8 {
				recordText(t, l, fmt.Sprintf("drop table t%d%s", i, more))
			}
			indexed(t, l)
			died := errors.New("dies here")
			left := commits
			l.index.mu.Lock()
			l.failBy(func() error {
				if left--; left < 0 {
					return died
				}
				return nil
			})
			err := l.makeSegment()
			if l.fault.Store(nil); commits < 5 && !errors.Is(err, died) {
				t.Errorf("making it: %v", err)
			}
			l.index.mu.Unlock()
			check := func(when string) {
				t.Helper()
				if n := len(ids(t, l, Query{Text: []string{"drop table"}})); n != 8 {
					t.Errorf("%s, %d of 8 are found", when, n)
				}
				if n := len(ids(t, l, Query{Text: []string{"t3"}})); n != 1 {
					t.Errorf("%s, the one with a rare word is found %d times", when, n)
				}
			}
			check("at once")
			l.Close()
			o.segment = 7 // which is another one
			l = open(t, o)
			check("opened again")
			indexed(t, l)
			check("made again")
			if segments, err := l.segments(); err != nil || len(segments) != 1 {
				t.Errorf("there are %d segments, error %v", len(segments), err)
			}
			chunks := map[string]bool{}
			l.keys([]byte("x/c/"), func(key string) bool { chunks[key[2:]] = true; return true })
			if building, _ := l.value(buildingKey); len(chunks) != 1 || building != nil {
				t.Errorf("chunks of %d segments are left, being made is %q", len(chunks), building)
			}
		})
	}
}

// TestTooMuch checks that sessions with more than the index takes are found all the same.
func TestTooMuch(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	var words []byte
	for i := range maxWords + 10 {
		words = fmt.Appendf(words, "w%d ", i)
	}
	much := recordText(t, l, string(words))
	r := start(t, l)
	for i := range maxTools + 10 {
		call := fmt.Appendf(nil, `{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"tool-%d"}}`, i, i)
		if err := r.Append(Frame{Direction: codec.C2S, Verdict: Blocked, Bytes: call}); err != nil {
			t.Fatal(err)
		}
	}
	long := string(bytes.Repeat([]byte("long"), maxValue))
	for _, tool := range []string{long, `a\u0000b`} {
		call := fmt.Appendf(nil, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"%s"}}`, tool)
		if err := r.Append(Frame{Direction: codec.C2S, Bytes: call}); err != nil {
			t.Fatal(err)
		}
	}
	r.End(Ended, "closed")
	indexed(t, l)
	for name, tt := range map[string]struct {
		query Query
		want  string
	}{
		"the last word":       {Query{Text: []string{fmt.Sprint("w", maxWords+9)}}, much},
		"the last tool":       {Query{Tools: []string{fmt.Sprint("tool-", maxTools+9)}}, r.ID()},
		"a long tool":         {Query{Tools: []string{long}}, r.ID()},
		"with a NUL":          {Query{Tools: []string{"a\x00b"}}, r.ID()},
		"the verdict of some": {Query{Verdicts: []string{"blocked"}}, r.ID()},
	} {
		if got := ids(t, l, tt.query); !slices.Equal(got, []string{tt.want}) {
			t.Errorf("%s: found %q, want %q", name, got, tt.want)
		}
	}
	if got := ids(t, l, Query{Tools: []string{long[:maxValue]}}); len(got) != 0 {
		t.Errorf("the beginning of a tool is found: %q", got)
	}
}

// TestFindApproved checks what counts as approved: access that somebody gave, once it was
// used, and a call.
func TestFindApproved(t *testing.T) {
	l := open(t, Options{Dir: t.TempDir()})
	record := func(access string, frames ...Frame) string {
		r, err := l.Start(Session{Subject: "ada", Server: "s", Access: access})
		if err != nil {
			t.Fatal(err)
		}
		r.Append(frames...)
		r.End(Ended, "closed")
		return r.ID()
	}
	ping := []byte(`{"jsonrpc":"2.0","id":1,"method":"ping"}`)
	record("allow", Frame{Bytes: ping})
	record("approval", Frame{Verdict: Blocked, Bytes: ping}, Frame{Direction: codec.S2C, Verdict: Answered, Bytes: ping}) // in the waiting room
	want := []string{record("approval", Frame{Bytes: ping}),
		record("allow", Frame{Verdict: Noted, Bytes: []byte(`{"mode":"enforce","says":"approval","rule":"r"}`)}, Frame{Bytes: ping})}
	indexed(t, l)
	got := ids(t, l, Query{Verdicts: []string{"approved"}})
	slices.Sort(got)
	if slices.Sort(want); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

// TestLengthClasses checks the law that --since stands on: a session that ended at a time
// is not older than its class says.
func TestLengthClasses(t *testing.T) {
	start := time.Date(2026, 3, 1, 12, 0, 0, 999_999, time.UTC)
	for _, length := range append(slices.Clone(lengthClasses), -time.Hour, 0, 1, time.Second-1, 40*24*time.Hour, 20*365*24*time.Hour) {
		s := Session{ID: newID(start), Start: start, End: start.Add(length)}
		k := int(lengthClass(&s)[0] - 'a')
		if k < len(lengthClasses) && s.ID < idAt(s.End.Add(-lengthClasses[k])) {
			t.Errorf("%v long: class %d, which is at most %v long", length, k, lengthClasses[k])
		}
	}
	if id := newID(start); !timeOf(id).Equal(start.Truncate(time.Millisecond)) {
		t.Errorf("id %s of %v says %v", id, start, timeOf(id))
	}
}
