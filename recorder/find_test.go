package recorder

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/broker/codec"
)

// A made session is one on record of which the test knows all that can be looked for.
type made struct {
	Session
	tools  []string
	frames []string
}

// fits is what a query means, as simple as it can be said.
func (m *made) fits(q *Query, state string) bool {
	one := func(wanted []string, has ...string) bool {
		for _, w := range wanted {
			if slices.Contains(has, w) {
				return true
			}
		}
		return len(wanted) == 0
	}
	var verdicts []string
	for v, n := range map[string]int64{"blocked": m.Blocked, "masked": m.Masked, "approved": m.Approved, "observed": int64(len(m.Observed))} {
		if n > 0 {
			verdicts = append(verdicts, v)
		}
	}
	text := true
	for _, t := range q.Text {
		expr := exprs[t]
		if expr == nil {
			expr = regexp.MustCompile(`(?i)(^|[^\pL\pN])` + strings.ReplaceAll(regexp.QuoteMeta(t), " ", `\s+`) + `($|[^\pL\pN])`)
			exprs[t] = expr
		}
		text = text && slices.ContainsFunc(m.frames, expr.MatchString)
	}
	return text && one(q.Subjects, m.Subject) && one(q.Groups, m.Groups...) && one(q.Servers, m.Server) &&
		one(q.Tools, m.tools...) &&
		one(q.Verdicts, verdicts...) && one(q.States, state) &&
		(q.Since.IsZero() || state == Running || !m.End.Before(q.Since)) && (q.Until.IsZero() || m.Start.Before(q.Until)) &&
		(q.Before == "" || m.ID < q.Before)
}

var exprs = map[string]*regexp.Regexp{} // by what Text says

var (
	someWords = strings.Fields("drop table users select name from where id order 17 4711 über 東 mail")
	someTools = []string{"query", "execute_sql", "list", "drop"}
)

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// makeSession records a session with frames of some words.
func makeSession(t testing.TB, l *Log, r *rand.Rand, end bool) (*made, *Recording) {
	t.Helper()
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(r.Int64N(int64(20 * 24 * time.Hour))))
	m := &made{Session: Session{Start: start, Subject: pick(r, []string{"ada", "bob", "eve"}), Server: pick(r, []string{"a", "b", "c"}),
		Groups: pick(r, [][]string{nil, {"x"}, {"y"}, {"x", "y"}})}}
	rec, err := l.Start(m.Session)
	if err != nil {
		t.Fatal(err)
	}
	m.ID = rec.ID()
	for range 1 + r.IntN(4) {
		var text []string
		for range 1 + r.IntN(6) {
			text = append(text, pick(r, someWords))
		}
		verdict := pick(r, []Verdict{Delivered, Delivered, Delivered, Masked, Blocked, Edited})
		f := Frame{Direction: codec.Direction(r.IntN(2)), Time: start, Verdict: verdict}
		line := fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"%s"}}`,
			strings.Join(text, pick(r, []string{" ", "\t ", "-"})))
		if r.IntN(3) == 0 {
			tool := pick(r, someTools)
			f.Direction = codec.C2S
			line = fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"arguments":{"a":"%s"},"name":"%s"}}`,
				strings.Join(text, " "), tool)
			m.tools = append(m.tools, tool)
		}
		m.frames = append(m.frames, line)
		f.Bytes = []byte(line)
		frames := []Frame{f}
		switch {
		case f.Verdict == Blocked:
			m.Blocked++
		case r.IntN(5) == 0:
			note := pick(r, []string{`{"mode":"enforce","says":"approval","rule":"r"}`, `{"mode":"observe","says":"deny","rule":"r"}`})
			frames = []Frame{{Direction: f.Direction, Time: start, Verdict: Noted, Bytes: []byte(note)}, f}
			if strings.Contains(note, "enforce") {
				m.Approved++
			} else {
				m.Observed = map[string]int64{"deny": 1}
			}
		}
		if f.Verdict == Masked {
			m.Masked++
		}
		if len(frames) == 1 && r.IntN(6) == 0 && f.Verdict != Blocked { // in parts
			cut := r.IntN(len(line))
			rest := f
			f.Bytes, f.More, rest.Bytes = f.Bytes[:cut], true, f.Bytes[cut:]
			frames = []Frame{f, rest}
		}
		if err := rec.Append(frames...); err != nil {
			t.Fatal(err)
		}
	}
	if m.State = Running; end {
		m.State = pick(r, []string{Ended, Refused})
		m.End = start.Add(time.Duration(r.ExpFloat64() * r.ExpFloat64() * float64(pick(r, []time.Duration{time.Second, time.Hour, 100 * time.Hour}))))
		if err := rec.EndAt(m.End, m.State, "closed"); err != nil {
			t.Fatal(err)
		}
	}
	return m, rec
}

func makeQuery(r *rand.Rand, all []*made) (q Query) {
	some := func(from ...string) (list []string) {
		for range 1 + r.IntN(2) {
			list = append(list, pick(r, from))
		}
		return list
	}
	when := func() time.Time { return pick(r, all).Start.Add(time.Duration(r.NormFloat64() * float64(time.Hour))) }
	for range 1 + r.IntN(3) {
		switch r.IntN(10) {
		case 0:
			q.Subjects = some("ada", "bob", "eve", "nobody")
		case 1:
			q.Groups = some("x", "y", "z")
		case 2:
			q.Servers = some("a", "b", "c", "none")
		case 3:
			q.Tools = some(append(someTools, "none")...)
		case 4:
			q.Verdicts = some(Verdicts...)
		case 5:
			q.States = some(States...)
		case 6:
			q.Since = when()
		case 7:
			q.Until = when()
		case 8:
			q.Before = pick(r, all).ID
		case 9:
			for range 1 + r.IntN(2) {
				q.Text = append(q.Text, pick(r, []string{pick(r, someWords), pick(r, someWords) + " " + pick(r, someWords),
					"Drop Table", "jsonrpc", "4711-id", "none", `name":"drop`, "us", "ordern"}))
			}
		}
	}
	return q
}

// ids returns the sessions that are found.
func ids(t testing.TB, src Source, q Query) (found []string) {
	t.Helper()
	for s, err := range src.Find(t.Context(), q) {
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, s.ID)
	}
	return found
}

// indexed waits until all that has ended is indexed, in segments where there is enough
// for one.
func indexed(t testing.TB, l *Log) {
	t.Helper()
	for range 3000 {
		sets := &l.index.sets
		sets.Lock()
		done := len(sets.ended) == 0 && len(sets.loose) < l.o.segment
		sets.Unlock()
		if done {
			l.index.mu.Lock() // the last is written
			defer l.index.mu.Unlock()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("what has ended is not indexed")
}

// TestFind compares what random queries find with what a look at each session says: of
// sessions that run, are not indexed, are in segments, after the log was opened again,
// through the socket, and after some have been deleted.
func TestFind(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	data := t.TempDir()
	o := Options{Dir: filepath.Join(data, "log"), segment: 32}
	l := open(t, o)
	var all []*made
	recs := map[string]*Recording{}
	check := func(name string, src Source) {
		t.Helper()
		hits := 0
		for range 100 {
			q := makeQuery(r, all)
			want := []string{}
			for _, m := range all {
				if m.fits(&q, m.State) {
					want = append(want, m.ID)
				}
			}
			slices.Sort(want)
			slices.Reverse(want)
			if got := ids(t, src, q); !slices.Equal(got, want) {
				t.Errorf("%s, %+v: found %d\n%v\nwant %d\n%v", name, q, len(got), got, len(want), want)
				return
			}
			hits += len(want)
		}
		if hits == 0 {
			t.Errorf("%s: nothing was found at all", name)
		}
	}
	more := func(n int) {
		for range n {
			m, rec := makeSession(t, l, r, r.IntN(8) > 0)
			all, recs[m.ID] = append(all, m), rec
		}
	}
	l.index.mu.Lock() // nothing is indexed
	more(70)
	check("not indexed", l)
	l.index.mu.Unlock()
	indexed(t, l)
	check("indexed", l)
	more(70)
	check("while it is indexed", l)
	indexed(t, l)
	if segments, err := l.segments(); err != nil || len(segments) < 3 {
		t.Errorf("%d segments, error %v", len(segments), err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- ServeSocket(ctx, data, l) }()
	src := dial(t, data)
	check("through the socket", src)
	src.Close()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = open(t, o)
	for _, m := range all {
		if m.State == Running {
			m.State, m.End = Interrupted, m.Start
		}
	}
	check("opened again", l)
	indexed(t, l)
	check("indexed again", l)

	// The first half of them is deleted, as it stands in the index.
	slices.SortFunc(all, func(a, b *made) int { return strings.Compare(a.ID, b.ID) })
	for _, m := range all[:len(all)/2] {
		forgetSession(t, l, m.ID)
	}
	all = all[len(all)/2:]
	check("some deleted", l)
	for _, m := range all {
		forgetSession(t, l, m.ID)
	}
	if err := l.tidyIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.keys([]byte("x/"), func(key string) bool {
		if key != "v" {
			t.Errorf("what is deleted leaves x/%.40q", key)
		}
		return true
	})
}

// forgetSession deletes a session with its index.
func forgetSession(t *testing.T, l *Log, id string) {
	t.Helper()
	s, err := l.session(id)
	if err != nil {
		t.Fatal(err)
	}
	l.index.mu.Lock()
	defer l.index.mu.Unlock()
	gone, err := l.forget(&s)
	if err == nil {
		err = l.commit(append(gone, write{key: sessionKey(id)})...)
	}
	if err != nil {
		t.Fatal(err)
	}
	l.forgotten(id)
}

// dial waits for a log's socket.
func dial(t *testing.T, data string) Source {
	t.Helper()
	for {
		if src, err := DialSource(data); err == nil {
			return src
		}
		time.Sleep(time.Millisecond)
	}
}

// fillLog puts sessions on record as they would be in the index, one a minute, without
// their frames: but for every rare one, of which there are ten, and for the newest.
func fillLog(t testing.TB, l *Log, n int) {
	t.Helper()
	l.index.mu.Lock() // away from what indexes by itself
	defer l.index.mu.Unlock()
	r := rand.New(rand.NewPCG(1, 2))
	zipf := rand.NewZipf(r, 1.1, 8, 20_000)
	begin := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	batch := l.db.NewWriteBatch()
	put := func(writes ...write) {
		for _, w := range writes {
			if err := batch.Set(w.key, w.value); err != nil {
				t.Fatal(err)
			}
		}
	}
	var words wordSet
	for i := range n {
		s := Session{Start: begin.Add(time.Duration(i) * time.Minute), State: Ended, Groups: []string{fmt.Sprint("group-", i%20), "all"},
			Subject: fmt.Sprint("user-", i%1000), Server: fmt.Sprint("server-", i%50), Transport: "tls", C2S: Count{20, 4000}, S2C: Count{20, 80_000}}
		s.ID, s.End = newID(s.Start), s.Start.Add(time.Duration(r.ExpFloat64()*float64(20*time.Minute)))
		words.reset()
		text := fmt.Sprint("word-", i%7)
		rare := i%(n/10) == n/20
		if rare {
			s.Subject, s.Blocked, text = "rare", 1, text+" a rare needle"
		}
		words.addText([]byte(text))
		for range 60 {
			words.addText(fmt.Appendf(nil, "w%d %x", zipf.Uint64(), r.Uint32()))
		}
		if rare || i > n-200 {
			put(write{blockKey(s.ID, 0, 0), blockOf(s.Start, firstHash(s.ID), []Frame{{Direction: codec.S2C, Time: s.Start, Bytes: []byte(text)}})})
		}
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		x := indexer{words: words, tools: map[string]bool{fmt.Sprint("tool-", i%300): true}}
		writes, err := x.writes(&s)
		if err != nil {
			t.Fatal(err)
		}
		put(append(startPostings(&s), write{sessionKey(s.ID), b})...)
		put(slices.DeleteFunc(writes, func(w write) bool { return w.value == nil })...)
		if l.index.sets.loose = insert(l.index.sets.loose, s.ID); len(l.index.sets.loose) == l.o.segment {
			if err := batch.Flush(); err != nil {
				t.Fatal(err)
			}
			batch = l.db.NewWriteBatch()
			if err := l.makeSegment(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := batch.Flush(); err != nil {
		t.Fatal(err)
	}
}

// costs are queries with ten results, or limited to fifty, whatever the number of
// sessions.
var costs = []struct {
	name  string
	query Query
	limit int
	want  int
}{
	{"the newest on a server", Query{Servers: []string{"server-7"}}, 40, 40},
	{"a rare subject", Query{Subjects: []string{"rare"}}, 0, 10},
	{"a rare verdict, a group of all", Query{Verdicts: []string{"blocked"}, Groups: []string{"all"}}, 0, 10},
	{"a tool, by one of a group", Query{Tools: []string{"tool-17", "tool-18"}, Groups: []string{"group-17"}}, 5, 5},
	{"ten minutes of the second day", Query{Since: time.Date(2024, 1, 2, 0, 0, 30, 0, time.UTC), Until: time.Date(2024, 1, 2, 0, 10, 0, 0, time.UTC)}, 0, 29},
	{"a rare word", Query{Text: []string{"needle"}}, 0, 10},
	{"a phrase, and a server of many", Query{Text: []string{"a rare needle"}, Groups: []string{"all"}}, 0, 10},
	{"a frequent word", Query{Text: []string{"word-3"}}, 20, 20},
}

// find returns how many sessions are found, and how many keys and sessions were looked at.
func find(t testing.TB, l *Log, q Query, limit int) (found, visited, read int) {
	t.Helper()
	f := l.newFinder(&q)
	defer f.close()
	err := f.run(t.Context(), func(Session, error) bool { found++; return found != limit })
	if err != nil {
		t.Fatal(err)
	}
	return found, f.visited, f.read
}

// TestFindCost checks that what is looked at grows with what is found and not with what
// is on record: for text, a look or two a word and segment.
func TestFindCost(t *testing.T) {
	const small, large, segment = 2_000, 6_000, 500
	logs := map[int]*Log{}
	for _, n := range []int{small, large} {
		logs[n] = open(t, Options{Dir: t.TempDir(), segment: segment})
		fillLog(t, logs[n], n)
	}
	for _, tt := range costs {
		t.Run(tt.name, func(t *testing.T) {
			found, few, read := find(t, logs[small], tt.query, tt.limit)
			again, many, _ := find(t, logs[large], tt.query, tt.limit)
			if found != tt.want || again != tt.want || read > 2*found {
				t.Errorf("found %d and %d, want %d; %d were read", found, again, tt.want, read)
			}
			words := 0
			for _, text := range tt.query.Text {
				words += len(wordsOf([]byte(text)))
			}
			if most := 10*found + 60 + (1+2*words)*small/segment; few > most {
				t.Errorf("%d keys for %d that were found; want at most %d", few, found, most)
			}
			if most := few + few/4 + (1+2*words)*(large-small)/segment; many > most {
				t.Errorf("%d keys of %d sessions, and %d of %d; want at most %d", few, small, many, large, most)
			}
		})
	}
}

// BenchmarkFind looks among as many sessions as RECORDER_FIND_SESSIONS says.
func BenchmarkFind(b *testing.B) {
	n := 20_000
	if text := os.Getenv("RECORDER_FIND_SESSIONS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			b.Fatal(err)
		}
	}
	l := open(b, Options{Dir: b.TempDir()})
	fillLog(b, l, n)
	for _, tt := range costs {
		b.Run(tt.name, func(b *testing.B) {
			var found, visited int
			for b.Loop() {
				found, visited, _ = find(b, l, tt.query, tt.limit)
			}
			b.ReportMetric(float64(found), "found")
			b.ReportMetric(float64(visited), "keys")
		})
	}
	b.Run("all that is on record", func(b *testing.B) {
		if n > 100_000 {
			b.Skip("takes long")
		}
		for b.Loop() {
			for s := range l.Sessions(b.Context()) {
				_ = s
			}
		}
	})
}

// BenchmarkIndex shows what a frame of 4 KB costs when it is recorded and when it is
// indexed: rows of a table, each with names and numbers of its own, in JSON in a string,
// 100 frames a session.
func BenchmarkIndex(b *testing.B) {
	const frames = 100
	r := rand.New(rand.NewPCG(1, 2))
	zipf := rand.NewZipf(r, 1.1, 8, 20_000)
	answers := make([][]byte, 5*frames)
	for i := range answers {
		var rows []byte
		for len(rows) < 3300 {
			rows = fmt.Appendf(rows, `{\"id\":%d,\"name\":\"name%d name%d\",\"mail\":\"[masked:email]\",\"note\":\"word%d word%d word%d\"},`,
				r.IntN(1e6), zipf.Uint64(), zipf.Uint64(), zipf.Uint64(), zipf.Uint64(), zipf.Uint64())
		}
		answers[i] = fmt.Appendf(nil, `{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"[%s{}]"}],"isError":false}}`, i, rows)
	}
	session := func(b *testing.B, n int, answer func([]byte)) {
		for i := range frames {
			answer(answers[(n*frames+i)%len(answers)])
		}
	}
	// Time of the processor, for other things run on the machine.
	used := func() time.Duration {
		var u syscall.Rusage
		syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	var from time.Duration
	perFrame := func(b *testing.B) {
		b.ReportMetric(float64(used()-from)/float64(b.N*frames), "cpu-ns/frame")
	}
	b.Run("append", func(b *testing.B) {
		rec := start(b, open(b, Options{Dir: b.TempDir()}))
		from = used()
		for n := 0; b.Loop(); n++ {
			session(b, n, func(f []byte) { rec.Append(Frame{Direction: codec.S2C, Bytes: f}) })
		}
		perFrame(b)
	})
	var x indexer
	b.Run("words", func(b *testing.B) {
		from = used()
		for n := 0; b.Loop(); n++ {
			x.reset()
			session(b, n, func(f []byte) { x.add(&Frame{Direction: codec.S2C, Bytes: f}) })
		}
		b.ReportMetric(float64(x.words.n)/frames, "words/frame")
		perFrame(b)
	})
	b.Run("read and write", func(b *testing.B) { // with its share of segments
		l := open(b, Options{Dir: b.TempDir()})
		rec := start(b, l)
		session(b, 0, func(f []byte) { rec.Append(Frame{Direction: codec.S2C, Bytes: f}) })
		l.index.mu.Lock()
		defer l.index.mu.Unlock()
		rec.End(Ended, "closed")
		s := rec.session
		from = used()
		for b.Loop() {
			s.ID = newID(s.Start)
			x.reset()
			for f := range l.Frames(b.Context(), rec.ID()) {
				x.add(&f)
			}
			writes, err := x.writes(&s)
			if err != nil {
				b.Fatal(err)
			}
			if err := l.commit(writes...); err != nil {
				b.Fatal(err)
			}
			if l.index.sets.loose = insert(l.index.sets.loose, s.ID); len(l.index.sets.loose) == 1000 {
				l.o.segment = 1000
				if err := l.makeSegment(); err != nil {
					b.Fatal(err)
				}
			}
		}
		perFrame(b)
	})
}

// TestFindFails checks that a search which is under way when Badger fails ends with an error.
func TestFindFails(t *testing.T) {
	f := &finder{log: open(t, Options{Dir: t.TempDir()}), q: &Query{}, root: brokenSet{}}
	if err := f.run(t.Context(), func(Session, error) bool { return true }); err == nil {
		t.Error("it ended well")
	}
}

// A brokenSet is one of a Badger that has no table.
type brokenSet struct{}

func (brokenSet) at(string) (string, error) { panic("no table") }
