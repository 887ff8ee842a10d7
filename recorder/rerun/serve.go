package rerun

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// CodeNotRecorded is that of the answer to a request that is not on record.
const CodeNotRecorded = 404

const codeMethodNotFound = -32601

// Serve stands in for the server of the session on a tape, until in ends. A
// request is answered as it was when its method and params are on record, whatever
// its id and its progress token; each time with the next of the answers that it
// had, and at last with the last again. Of what else is in _meta, a request that
// is on record without it does not have to have the same. A handshake is answered
// whoever the client says that it is.
//
// What the server sent before an answer is sent before it. Where it asked the
// client, the answer waits for the client's.
func Serve(in io.Reader, out io.Writer, session string, t *recorder.Tape) error {
	s, err := read(t)
	if err != nil {
		return fmt.Errorf("session %s: %w", session, err)
	}
	v := &server{script: s, session: session, out: bufio.NewWriterSize(out, 64<<10), next: map[requestKey]int{}, known: map[requestKey][]*exchange{}, asked: map[string]*turn{}, under: map[string]*turn{}}
	if err := v.index(); err != nil {
		return fmt.Errorf("session %s: %w", session, err)
	}
	r := codec.NewReader(in, codec.Limits{})
	for {
		line, err := r.Next()
		var refused *codec.Error
		switch {
		case errors.As(err, &refused):
			v.refuse(refused)
		case err == io.EOF:
			return v.out.Flush()
		case err != nil && err != io.ErrUnexpectedEOF:
			return fmt.Errorf("read requests: %w", err)
		case len(bytes.TrimSpace(line)) == 0:
		default:
			if err := v.frame(line); err != nil {
				return fmt.Errorf("session %s: %w", session, err)
			}
		}
		if !r.Buffered() {
			if err := v.out.Flush(); err != nil {
				return fmt.Errorf("write answers: %w", err)
			}
		}
	}
}

// A server is a recording that answers.
type server struct {
	*script
	session string
	out     *bufio.Writer
	p       codec.Parser
	known   map[requestKey][]*exchange
	next    map[requestKey]int // the exchange of known that is next
	started bool
	count   int64            // of requests to the client
	asked   map[string]*turn // waits for the client's answer, by the raw id of the request
	under   map[string]*turn // not answered, by the raw id of the client's request
}

// A turn is a request of the client that is being answered.
type turn struct {
	of    *exchange
	id    []byte // raw; of the client's request
	token []byte // raw
	steps []step // to come
	asked string // the raw id of the request to the client that it waits for
	stays bool   // it has no answer before the client cancels it
}

// A requestKey is the SHA-256 of what a request says.
type requestKey [sha256.Size]byte

// keysOf returns what a request is found by: all that it says but for its progress
// token; without its _meta; and, of a handshake, its method.
func keysOf(method string, params []byte) (keys []requestKey) {
	add := func(kind string, v any) {
		text, err := json.Marshal(v)
		if err == nil {
			keys = append(keys, sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s", kind, method, text)))
		}
	}
	v, _ := decode(params).(map[string]any)
	if v == nil {
		v = map[string]any{}
	}
	if meta, ok := v["_meta"].(map[string]any); ok {
		if delete(meta, "progressToken"); len(meta) == 0 {
			delete(v, "_meta")
		}
	}
	add("exact", v)
	delete(v, "_meta")
	add("loose", v)
	if method == initialize || method == discover {
		add("method", nil)
	}
	return keys
}

// decode returns a JSON text as encoding/json does, with numbers as they are written.
func decode(text []byte) any {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return nil
	}
	return v
}

func (v *server) index() error {
	// One that was never answered counts where there is none like it: of a client that
	// was in the waiting room, the broker repeats the handshake.
	for _, answered := range []bool{true, false} {
		for _, e := range v.exchanges {
			if answered != (e.answer >= 0 || e.cancelled) {
				continue
			}
			f, err := v.parse(&v.p, e.at)
			if err != nil {
				return err
			}
			for _, k := range keysOf(e.method, f.Params) {
				if answered || v.known[k] == nil {
					v.known[k] = append(v.known[k], e)
				}
			}
		}
	}
	return nil
}

// lookup returns the exchange that answers a request, or nil.
func (v *server) lookup(f *codec.Frame) *exchange {
	for _, k := range keysOf(string(f.Method), f.Params) {
		if known := v.known[k]; len(known) > 0 {
			n := v.next[k]
			v.next[k] = min(n+1, len(known)-1)
			return known[n]
		}
	}
	return nil
}

func (v *server) refuse(e *codec.Error) {
	v.out.Write(append(codec.AppendError(nil, e.ID, e.Code, "refused: "+e.Reason, nil), '\n'))
}

// frame takes a frame of the client.
func (v *server) frame(line []byte) error {
	f, err := v.p.Parse(line, codec.C2S)
	var refused *codec.Error
	if errors.As(err, &refused) {
		v.refuse(refused)
		return nil
	}
	if !v.started {
		v.started = true
		if err := v.send(&turn{}, v.prelude); err != nil {
			return err
		}
	}
	switch f.Kind {
	case codec.Request:
		e := v.lookup(f)
		if e == nil {
			return v.unknown(f)
		}
		t := &turn{of: e, id: bytes.Clone(f.ID), token: bytes.Clone(codec.Member(f.Meta, "progressToken")), steps: e.steps, stays: e.answer < 0 || e.method == listen}
		v.under[string(t.id)] = t
		return v.goOn(t)
	case codec.Response:
		if t := v.asked[string(f.ID)]; t != nil {
			delete(v.asked, string(f.ID))
			return v.goOn(t)
		}
	case codec.Notification:
		if string(f.Method) != cancelled {
			return nil
		}
		t := v.under[string(codec.Member(f.Params, "requestId"))]
		if t == nil {
			return nil
		}
		delete(v.asked, t.asked)
		for i, st := range t.steps {
			if st.at < 0 { // so it was on record, and what came of it is there
				t.steps = t.steps[i+1:]
				return v.goOn(t)
			}
		}
		delete(v.under, string(t.id))
	}
	return nil
}

// goOn sends what comes next in a turn, up to where it waits for the client.
func (v *server) goOn(t *turn) error {
	for len(t.steps) > 0 {
		st := t.steps[0]
		if st.at < 0 { // it was cancelled here, and the client is expected to
			return nil
		}
		t.steps = t.steps[1:]
		if err := v.send(t, []step{st}); err != nil {
			return err
		}
		if st.ask != nil && st.ask.answer >= 0 {
			t.asked = strconv.FormatInt(v.count, 10)
			v.asked[t.asked] = t
			return nil
		}
	}
	if t.stays {
		return nil
	}
	delete(v.under, string(t.id))
	if err := v.copy(v.out, t.of.answer, t.id, nil, t.id); err != nil {
		return err
	}
	return v.send(t, t.of.after)
}

// send sends what the server sent, in a turn.
func (v *server) send(t *turn, steps []step) error {
	for _, st := range steps {
		if st.progress && t.token == nil {
			continue // the client has not asked for it
		}
		var id []byte
		if st.ask != nil {
			v.count++
			id = strconv.AppendInt(nil, v.count, 10)
		}
		err := v.copy(v.out, st.at, id, t.token, t.id)
		if err != nil {
			return err
		}
	}
	return nil
}

// near bounds what is said of requests like one that is not on record.
const (
	nearCount = 3
	nearBytes = 1 << 10
)

// unknown answers a request that is not on record.
func (v *server) unknown(f *codec.Frame) error {
	method, name := string(f.Method), cmp.Or(string(f.Name), string(f.URI))
	if method == ping {
		v.out.Write(append(codec.AppendResult(nil, f.ID, struct{}{}), '\n'))
		return nil
	}
	type similar struct {
		Frame  int             `json:"frame"` // on the tape, from 1 on
		Params json.RawMessage `json:"params,omitempty"`
		same   int
	}
	data := struct {
		Session string    `json:"session"`
		Near    []similar `json:"near,omitempty"`
		Names   []string  `json:"names,omitempty"`
	}{Session: v.session}
	wanted := decode(f.Params)
	id := bytes.Clone(f.ID)
	for _, e := range v.exchanges {
		if e.method != method {
			continue
		}
		if e.name != name {
			if e.name != "" && len(data.Names) < 20 && !slices.Contains(data.Names, e.name) {
				data.Names = append(data.Names, e.name)
			}
			continue
		}
		of, err := v.parse(&v.p, e.at)
		if err != nil {
			return err
		}
		params := bytes.Clone(of.Params)
		if meta := codec.Member(of.Params, "_meta"); meta != nil {
			params = codec.Without(nil, &codec.Frame{Line: params}, params, "_meta")
		}
		one := similar{Frame: e.at + 1, same: alike(wanted, decode(of.Params))}
		if len(params) <= nearBytes {
			one.Params = params
		}
		same := func(o similar) bool { return one.Params != nil && bytes.Equal(o.Params, one.Params) }
		if slices.ContainsFunc(data.Near, same) {
			continue
		}
		data.Near = append(data.Near, one)
		slices.SortStableFunc(data.Near, func(a, b similar) int { return b.same - a.same })
		data.Near = data.Near[:min(len(data.Near), nearCount)]
	}
	code, why := CodeNotRecorded, fmt.Sprintf("%s is not on record in session %s", quoted(label(method, name)), v.session)
	switch {
	case len(data.Near) > 0:
		why += "; it is with other params, see near"
	case len(data.Names) > 0:
		why += "; there are others by this method, see names"
	case method == discover:
		code = codeMethodNotFound // so that a client of both eras goes on with the older one
	}
	v.out.Write(append(codec.AppendError(nil, id, code, why, data), '\n'))
	return nil
}

// quoted is a text that a client has sent, short and without control characters.
func quoted(s string) string {
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return strconv.Quote(s)
}

// alike counts the values that two JSON values have in common.
func alike(a, b any) int {
	switch a := a.(type) {
	case map[string]any:
		b, _ := b.(map[string]any)
		n := 0
		for k, v := range a {
			if w, ok := b[k]; ok {
				n += 1 + alike(v, w)
			}
		}
		return n
	case []any:
		b, _ := b.([]any)
		n := 0
		for i := range min(len(a), len(b)) {
			n += alike(a[i], b[i])
		}
		return n
	}
	if _, ok := b.(map[string]any); ok {
		return 0
	}
	if _, ok := b.([]any); ok {
		return 0
	}
	if a == b {
		return 1
	}
	return 0
}
