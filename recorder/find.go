package recorder

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// A Query says which sessions are looked for: those that fit each of its fields that is
// not empty. Of a list, one value is enough, but for Text.
type Query struct {
	Subjects []string
	Groups   []string // that the subject had
	Servers  []string
	Tools    []string // called, also in calls that were refused
	Verdicts []string // what became of calls and frames, of Verdicts
	States   []string // of States

	// The session was there at some time from Since on, and before Until.
	Since, Until time.Time

	// Text is what stands in the session's frames, as they are on record, all of it
	// somewhere: words with what is between them, which begin and end where words do.
	// See words.go for what that is.
	Text []string

	Before string // only sessions that are listed behind that one
}

// The verdicts that a [Query] knows. Approved is a session that somebody gave access
// to, or one with a call that somebody approved.
var Verdicts = []string{"blocked", "masked", "approved", "observed"}

// States are those of sessions.
var States = []string{Running, Ended, Refused, Interrupted}

// Check returns what is wrong with a query that cannot be answered.
func (q *Query) Check() error {
	for _, v := range q.Verdicts {
		if !slices.Contains(Verdicts, v) {
			return fmt.Errorf("verdict %q: must be one of %s", v, strings.Join(Verdicts, ", "))
		}
	}
	for _, s := range q.States {
		if !slices.Contains(States, s) {
			return fmt.Errorf("state %q: must be one of %s", s, strings.Join(States, ", "))
		}
	}
	for _, t := range q.Text {
		switch {
		case len(t) > maxPhrase:
			return fmt.Errorf("text %.20q…: is longer than %d bytes", t, maxPhrase)
		case len(wordsOf(newPhrase(t))) == 0:
			return fmt.Errorf("text %q: has no word", t)
		}
	}
	return nil
}

// isAll reports whether all sessions are looked for.
func (q *Query) isAll() bool { return len(q.values()) == 0 }

// values is the query as the socket has it.
func (q *Query) values() url.Values {
	v := url.Values{}
	for name, list := range q.lists() {
		if len(*list) > 0 {
			v[name] = *list
		}
	}
	for name, t := range map[string]time.Time{"since": q.Since, "until": q.Until} {
		if !t.IsZero() {
			v.Set(name, t.UTC().Format(time.RFC3339Nano))
		}
	}
	if q.Before != "" {
		v.Set("before", q.Before)
	}
	return v
}

func (q *Query) lists() map[string]*[]string {
	return map[string]*[]string{"subject": &q.Subjects, "group": &q.Groups, "server": &q.Servers, "tool": &q.Tools,
		"verdict": &q.Verdicts, "state": &q.States, "text": &q.Text}
}

// queryOf is the query of values.
func queryOf(v url.Values) (q Query, err error) {
	for name, list := range q.lists() {
		*list = v[name]
	}
	for name, t := range map[string]*time.Time{"since": &q.Since, "until": &q.Until} {
		if text := v.Get(name); text != "" {
			if *t, err = time.Parse(time.RFC3339Nano, text); err != nil {
				return q, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	q.Before = v.Get("before")
	return q, q.Check()
}

// verdicts returns those of a session.
func (s *Session) verdicts() (v []string) {
	if s.Blocked > 0 {
		v = append(v, "blocked")
	}
	if s.Masked > 0 {
		v = append(v, "masked")
	}
	if s.Approved > 0 || s.Access == Approval && s.C2S.Frames > 0 { // before there is a grant, nothing is delivered
		v = append(v, "approved")
	}
	if len(s.Observed) > 0 {
		v = append(v, "observed")
	}
	return v
}

// fits reports whether what is known of a session beside its frames is looked for.
func (q *Query) fits(s *Session) bool {
	oneOf := func(wanted []string, has ...string) bool {
		return len(wanted) == 0 || slices.ContainsFunc(has, func(v string) bool { return slices.Contains(wanted, v) })
	}
	return (q.Before == "" || s.ID < q.Before) &&
		oneOf(q.Subjects, s.Subject) && oneOf(q.Groups, s.Groups...) && oneOf(q.Servers, s.Server) &&
		oneOf(q.Verdicts, s.verdicts()...) && oneOf(q.States, s.State) &&
		(q.Until.IsZero() || s.Start.Before(q.Until)) && (s.End.IsZero() || !s.End.Before(q.Since))
}

// Find implements [Source].
func (l *Log) Find(ctx context.Context, q Query) iter.Seq2[Session, error] {
	if q.isAll() {
		return l.Sessions(ctx)
	}
	return func(yield func(Session, error) bool) {
		if err := q.Check(); err != nil {
			yield(Session{}, err)
			return
		}
		if l.unreadable.Load() {
			yield(Session{}, *l.unwritable.Load())
			return
		}
		var f *finder
		if err := guarded(func() error { f = l.newFinder(&q); return nil }); err != nil {
			yield(Session{}, err)
			return
		}
		defer f.close()
		if err := f.run(ctx, yield); err != nil {
			yield(Session{}, err)
		}
	}
}

// A finder answers one query.
type finder struct {
	log       *Log
	q         *Query
	txn       *badger.Txn
	iterators []*badger.Iterator
	segments  []segment // with words, the one with the newest session first
	unindexed []string  // sessions whose frames have to be read, and sessions whose
	loose     []string  // words are in no segment; sorted
	root      idSet
	phrases   []phrase

	visited int // keys that were looked at
	read    int // sessions whose frames were
}

func (l *Log) newFinder(q *Query) *finder {
	f := &finder{log: l, q: q}
	// First these, then the database: what is indexed in between is in both.
	sets := &l.index.sets
	sets.Lock()
	f.unindexed, f.loose = slices.Clone(sets.unindexed), slices.Clone(sets.loose)
	sets.Unlock()
	f.txn = l.db.NewTransaction(false)
	for _, t := range q.Text {
		f.phrases = append(f.phrases, newPhrase(t))
	}
	if len(q.Text) > 0 {
		it := f.iterator([]byte("x/g/"), true)
		for it.Seek([]byte("x/g/\xff")); it.Valid(); it.Next() {
			f.visited++
			f.segments = append(f.segments, segmentOf(string(it.Item().Key()[len("x/g/"):])))
		}
	}
	f.root = f.plan()
	return f
}

func (f *finder) close() {
	for _, it := range f.iterators {
		it.Close()
	}
	f.txn.Discard()
}

func (f *finder) iterator(prefix []byte, backwards bool) *badger.Iterator {
	it := f.txn.NewIterator(badger.IteratorOptions{Prefix: prefix, Reverse: backwards})
	f.iterators = append(f.iterators, it)
	return it
}

// plan returns the sessions that may be found: all of those that are, and few others.
func (f *finder) plan() idSet {
	q := f.q
	var all intersection
	oneOf := func(field byte, values []string) (u union) {
		for _, v := range values {
			u = append(u, f.keys(fieldPrefix(field, v)))
		}
		return u
	}
	if f.log.index.missing {
		return f.keys([]byte("s/"))
	}
	for field, values := range map[byte][]string{fieldSubject: q.Subjects, fieldGroup: q.Groups, fieldServer: q.Servers} {
		if len(values) > 0 {
			all = append(all, oneOf(field, values))
		}
	}
	// The others may also be in what is not indexed.
	for field, values := range map[byte][]string{fieldTool: q.Tools, fieldVerdict: q.Verdicts, fieldState: q.States} {
		if len(values) > 0 {
			all = append(all, append(oneOf(field, values), f.unread()))
		}
	}
	if !q.Since.IsZero() {
		u := union{f.unread(), f.keys(fieldPrefix(fieldLength, string(rune('a'+len(lengthClasses)))))}
		for k, longest := range lengthClasses {
			keys := f.keys(fieldPrefix(fieldLength, string(rune('a'+k))))
			keys.floor = idAt(q.Since.Add(-longest))
			u = append(u, keys)
		}
		all = append(all, u)
	}
	for _, p := range f.phrases {
		for _, h := range wordsOf(p) {
			all = append(all, union{&wordSessions{f: f, hash: h, loose: listSet{f: f, ids: f.loose}, segments: f.segments}, f.unread()})
		}
	}
	if len(all) == 0 {
		return f.keys([]byte("s/"))
	}
	return all
}

// unread are the sessions of which the index does not know what is in them.
func (f *finder) unread() idSet {
	return union{&listSet{f: f, ids: f.unindexed}, f.keys(muchKey(""))}
}

// run calls yield with what is found, until it returns false.
func (f *finder) run(ctx context.Context, yield func(Session, error) bool) error {
	bound := "\xff"
	if !f.q.Until.IsZero() {
		bound = idAt(f.q.Until.Add(time.Millisecond))
	}
	if f.q.Before != "" {
		bound = min(bound, older(f.q.Before))
	}
	for {
		var id string
		err := guarded(func() (err error) { id, err = f.root.at(bound); return err })
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || id == "" {
			return err
		}
		bound = older(id)
		s, err := f.log.session(id)
		switch {
		case errors.Is(err, ErrNoSession): // it has been deleted
			continue
		case errors.Is(err, ErrDamaged):
			if !yield(s, err) {
				return nil
			}
			continue
		case err != nil:
			return err
		}
		if !f.q.fits(&s) {
			continue
		}
		holds, err := f.holds(ctx, &s)
		if err != nil {
			return err
		}
		if holds && !yield(s, nil) {
			return nil
		}
	}
}

// older is behind every id that is older than id, and no other.
func older(id string) string {
	last := len(id) - 1
	if id[last] == 0 {
		return id[:last]
	}
	return id[:last] + string([]byte{id[last] - 1, 0xff})
}

// holds reports whether what is looked for is in the session's frames.
func (f *finder) holds(ctx context.Context, s *Session) (bool, error) {
	tool := len(f.q.Tools) == 0
	if !tool {
		list, err := f.log.value(toolsKey(s.ID))
		if err != nil {
			return false, err
		}
		if list != nil {
			var tools []string
			if err := json.Unmarshal(list, &tools); err != nil {
				return false, fmt.Errorf("index: %w", err)
			}
			if tool = slices.ContainsFunc(tools, f.wants); !tool {
				return false, nil
			}
		}
	}
	if tool && len(f.phrases) == 0 {
		return true, nil
	}
	f.read++
	var (
		x       indexer // puts calls together
		r       reading
		plained []byte
		phrases = slices.Clone(f.phrases)
	)
	for fr, err := range f.log.frames(ctx, *s) {
		if errors.Is(err, ErrDamaged) {
			continue // what cannot be read is not found
		}
		if err != nil {
			return false, err
		}
		if len(phrases) > 0 {
			r.frame(&fr, func(text []byte) {
				plained = plain(plained[:0], text)
				phrases = slices.DeleteFunc(phrases, func(p phrase) bool { return p.in(plained) })
			})
		}
		if !tool {
			if line, whole := x.callOf(&fr); whole {
				tool = f.wants(toolOf(&x.parser, line))
			}
		}
		if tool && len(phrases) == 0 {
			return true, nil
		}
	}
	return false, nil
}

func (f *finder) wants(tool string) bool { return slices.Contains(f.q.Tools, tool) }

// An idSet is a set of sessions, by their ids, which are asked for newest first.
type idSet interface {
	// at returns the newest that is not newer than id, or "" if there is none. No id
	// is newer than that of the call before.
	at(id string) (string, error)
}

// An intersection is what is in all of its sets: each of them leaps to where the others
// are.
type intersection []idSet

func (n intersection) at(id string) (string, error) {
	for agree := 0; ; {
		for _, s := range n {
			found, err := s.at(id)
			if err != nil || found == "" {
				return "", err
			}
			if found != id {
				id, agree = found, 0
			}
			if agree++; agree == len(n) {
				return id, nil
			}
		}
	}
}

// A union is what is in one of its sets.
type union []idSet

func (u union) at(id string) (string, error) {
	best := ""
	for _, s := range u {
		found, err := s.at(id)
		if err != nil {
			return "", err
		}
		best = max(best, found)
	}
	return best, nil
}

// keySet are the sessions that stand behind a prefix in keys.
type keySet struct {
	f      *finder
	it     *badger.Iterator
	prefix []byte
	floor  string // no older ones

	begun bool
	key   string // of the iterator; "": behind its end
}

func (f *finder) keys(prefix []byte) *keySet {
	return &keySet{f: f, it: f.iterator(prefix, true), prefix: prefix}
}

func (k *keySet) at(id string) (string, error) {
	for step := 0; !k.begun || k.key > id; step++ {
		if k.begun && k.key == "" {
			return "", nil
		}
		if step == 0 && k.begun { // often it is the next
			k.it.Next()
		} else {
			k.it.Seek(append(k.prefix[:len(k.prefix):len(k.prefix)], id...))
		}
		k.load()
	}
	if k.key < k.floor {
		return "", nil
	}
	return k.key, nil
}

// load takes the key at which the iterator is.
func (k *keySet) load() {
	k.f.visited++
	k.begun, k.key = true, ""
	if k.it.ValidForPrefix(k.prefix) {
		k.key = string(k.it.Item().Key()[len(k.prefix):])
	}
}

// listSet are sessions in memory.
type listSet struct {
	f   *finder
	ids []string // sorted
}

func (l *listSet) at(id string) (string, error) {
	for n := len(l.ids); n > 0; n = len(l.ids) {
		if l.ids[n-1] <= id {
			return l.ids[n-1], nil
		}
		l.f.visited++
		l.ids = l.ids[:n-1]
	}
	return "", nil
}

// wordSessions are the sessions with a word.
type wordSessions struct {
	f        *finder
	hash     wordHash
	loose    listSet   // those that are in no segment yet
	segments []segment // that have not been looked at, the one with the newest session first
	open     [][]string
}

func (w *wordSessions) at(id string) (string, error) {
	best, err := w.isLoose(id)
	if err != nil {
		return "", err
	}
	look := func(found []string) []string {
		for len(found) > 0 && found[len(found)-1] > id {
			found = found[:len(found)-1]
		}
		if len(found) > 0 {
			best = max(best, found[len(found)-1])
		}
		return found
	}
	open := w.open[:0]
	for _, found := range w.open {
		if found = look(found); len(found) > 0 {
			open = append(open, found)
		}
	}
	for best < id && len(w.segments) > 0 && w.segments[0].last > best {
		s := w.segments[0]
		w.segments = w.segments[1:]
		if s.first > id {
			continue
		}
		found, err := w.inSegment(s)
		if err != nil {
			return "", err
		}
		if found = look(found); len(found) > 0 {
			open = append(open, found)
		}
	}
	w.open = open
	return best, nil
}

// isLoose is at of the sessions that are in no segment.
func (w *wordSessions) isLoose(id string) (string, error) {
	for {
		found, err := w.loose.at(id)
		if err != nil || found == "" {
			return "", err
		}
		ok := false
		err = w.value(wordsKey(found), func(words []byte) {
			for ; len(words) >= 4 && !ok; words = words[4:] {
				ok = binary.LittleEndian.Uint32(words) == w.hash
			}
		})
		if err != nil || ok {
			return found, err
		}
		id = older(found)
	}
}

// inSegment returns the sessions of a segment that have the word, the oldest first.
func (w *wordSessions) inSegment(s segment) (found []string, err error) {
	var places []uint32
	err = w.value(chunkKey(w.hash>>restBits, s), func(chunk []byte) {
		at := func(i int) uint32 { return binary.LittleEndian.Uint32(chunk[4*i:]) }
		n := len(chunk) / 4
		first := sort.Search(n, func(i int) bool { return at(i) >= entry(w.hash, 0) })
		for i := first; i < n && at(i) <= entry(w.hash, 1<<bucketBits-1); i++ {
			places = append(places, at(i)&(1<<bucketBits-1))
		}
	})
	if err != nil || len(places) == 0 {
		return nil, err
	}
	err = w.value(segmentKey(s), func(ids []byte) {
		for _, p := range places {
			if at := int(p) * idSize; at+idSize <= len(ids) {
				found = append(found, string(ids[at:at+idSize]))
			}
		}
	})
	return found, err
}

// value calls f with the value of a key, if there is one.
func (w *wordSessions) value(key []byte, f func(v []byte)) error {
	w.f.visited++
	item, err := w.f.txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	return item.Value(func(v []byte) error { f(v); return nil })
}
