// Package rerun runs a session on record again, with the recording in the place
// of one of the two sides.
//
// [Serve] is the server: it gives a client the answers that are on record.
// [Against] is the client: it sends the requests on record to a server that runs,
// and reports what it answers differently.
//
// Both read the recording as exchanges: a request, what the server sent before its
// answer, and the answer. What is on record was accepted by a [codec.Parser]; what
// cannot be read all the same, because a block is damaged or a frame was cut, is
// left out.
package rerun

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// maxHeld is the longest frame that is read as a whole, in bytes. What is longer
// is passed on, and not compared.
const maxHeld = 64 << 20

// Methods that have a meaning here.
const (
	initialize  = "initialize"
	initialized = "notifications/initialized"
	discover    = "server/discover"
	cancelled   = "notifications/cancelled"
	listen      = "subscriptions/listen"
	ping        = "ping"

	metaSubscription = "io.modelcontextprotocol/subscriptionId"
)

// A script is a recording as exchanges.
type script struct {
	tape      *recorder.Tape
	exchanges []*exchange
	asks      []*ask
	prelude   []step // what the server sent before there was a request
}

// An exchange is a request of the client's and what came of it.
type exchange struct {
	number  int // of the request among all, from 1 on
	at      int // of the request on the tape
	method  string
	name    string // of the tool or prompt, or the resource's URI
	id      string // raw
	token   string // raw progressToken, or empty
	blocked bool   // it did not reach the server
	steps   []step // what came from the server before the answer, in order
	answer  int    // on the tape; -1: none
	made    bool   // the answer is the broker's own
	// cancelled by the client before there was an answer
	cancelled bool
	after     []step // what came from the server when no request was under way
}

// A step is a notification or a request of the server's, or, without a frame, the
// client's notice that it has cancelled.
type step struct {
	at  int  // on the tape; -1: the client has cancelled
	ask *ask // nil: a notification
	// progress: it goes by the progress token of its exchange
	progress bool
}

// An ask is a request of the server's.
type ask struct {
	at     int
	method string
	id     string // raw
	answer int    // of the client, on the tape; -1: none
}

// label names a request to a person.
func label(method, name string) string {
	if name == "" {
		return method
	}
	return method + " " + name
}

// read reads the recording on a tape.
func read(t *recorder.Tape) (*script, error) {
	s := &script{tape: t}
	var p codec.Parser
	var under []*exchange // no answer yet, in the order of their requests
	var last *exchange
	asks := map[string][]*ask{} // no answer yet, by id
	for i := range t.Len() {
		f, err := s.parse(&p, i)
		if err != nil {
			return nil, err
		}
		if f == nil {
			continue
		}
		taped := t.Frame(i)
		if taped.Direction == codec.C2S {
			switch f.Kind {
			case codec.Request:
				if taped.Verdict == recorder.Answered {
					continue // the broker's own; the client has not sent it
				}
				last = &exchange{
					number: len(s.exchanges) + 1, at: i, method: string(f.Method), name: string(f.Name), id: string(f.ID), token: token(f),
					blocked: taped.Verdict == recorder.Blocked, answer: -1,
				}
				if last.name == "" {
					last.name = string(f.URI)
				}
				s.exchanges = append(s.exchanges, last)
				under = append(under, last)
			case codec.Notification:
				if string(f.Method) == cancelled {
					if e := find(under, string(codec.Member(f.Params, "requestId"))); e != nil && !e.cancelled {
						e.cancelled = true
						e.steps = append(e.steps, step{at: -1})
					}
				}
			case codec.Response:
				id := string(f.ID)
				if waiting := asks[id]; len(waiting) > 0 && taped.Verdict != recorder.Blocked {
					waiting[0].answer = i
					asks[id] = waiting[1:]
				}
			}
			continue
		}
		if taped.Verdict == recorder.Blocked {
			continue // the client has not seen it
		}
		if f.Kind == codec.Response {
			for n, e := range under {
				if e.id == string(f.ID) {
					e.answer, e.made = i, taped.Verdict == recorder.Answered
					under = append(under[:n], under[n+1:]...)
					break
				}
			}
			continue
		}
		st := step{at: i, progress: f.Kind == codec.Notification && codec.Member(f.Params, "progressToken") != nil}
		if f.Kind == codec.Request {
			st.ask = &ask{at: i, method: string(f.Method), id: string(f.ID), answer: -1}
			s.asks = append(s.asks, st.ask)
			asks[st.ask.id] = append(asks[st.ask.id], st.ask)
		}
		switch e := owner(under, f); {
		case e != nil:
			e.steps = append(e.steps, st)
		case last != nil:
			last.after = append(last.after, st)
		default:
			s.prelude = append(s.prelude, st)
		}
	}
	return s, nil
}

// owner returns the exchange under way that a frame of the server's belongs to:
// the one that it names, or the latest.
func owner(under []*exchange, f *codec.Frame) *exchange {
	if f.Kind == codec.Notification {
		if raw := codec.Member(f.Params, "progressToken"); raw != nil {
			for _, e := range under {
				if e.token == string(raw) {
					return e
				}
			}
		}
		if e := find(under, string(codec.Member(f.Meta, metaSubscription))); e != nil {
			return e
		}
	}
	for i := len(under) - 1; i >= 0; i-- {
		if under[i].method != listen {
			return under[i]
		}
	}
	return nil
}

func find(exchanges []*exchange, id string) *exchange {
	for _, e := range exchanges {
		if e.id == id && id != "" {
			return e
		}
	}
	return nil
}

// token returns the raw progress token of a request, or nothing.
func token(f *codec.Frame) string { return string(codec.Member(f.Meta, "progressToken")) }

// parse returns a view of frame i of the tape, or nil if there is none: it is cut, or
// no frame. Of a long response it has the id only.
func (s *script) parse(p *codec.Parser, i int) (*codec.Frame, error) {
	taped := s.tape.Frame(i)
	if taped.Part || taped.Length == 0 {
		return nil, nil
	}
	if taped.Length > maxHeld {
		head, err := s.tape.Head(i, 64<<10)
		if err != nil {
			return nil, err
		}
		id, _, ok := idIn(head)
		if taped.Direction != codec.S2C || !ok {
			return nil, nil
		}
		return &codec.Frame{Kind: codec.Response, ID: id}, nil
	}
	line, err := s.tape.Head(i, maxHeld)
	if err != nil {
		return nil, err
	}
	f, err := p.Parse(line, taped.Direction)
	if err != nil {
		return nil, nil
	}
	return f, nil
}

// idIn returns the raw id in the beginning of a response, and its offset, if it is
// in front of the result.
func idIn(head []byte) (id []byte, at int64, ok bool) {
	d := json.NewDecoder(bytes.NewReader(head))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, 0, false
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, 0, false
		}
		var raw json.RawMessage
		if name == "result" || d.Decode(&raw) != nil {
			return nil, 0, false
		}
		if name == "id" {
			return raw, d.InputOffset() - int64(len(raw)), true
		}
	}
	return nil, 0, false
}

// copy writes frame i of the tape with other ids: of the request that it answers or
// that the server makes, and what its progress and its subscription go by. Nil leaves
// one as it is.
func (s *script) copy(w io.Writer, i int, id, token, subscription []byte) error {
	taped := s.tape.Frame(i)
	if taped.Length > maxHeld {
		head, err := s.tape.Head(i, 64<<10)
		if err != nil {
			return err
		}
		old, at, ok := idIn(head)
		if !ok {
			return fmt.Errorf("frame %d is not a response", i+1)
		}
		r := s.tape.Reader(i)
		if _, err := io.CopyN(io.Discard, r, at+int64(len(old))); err != nil {
			return err
		}
		_, err = io.Copy(w, io.MultiReader(bytes.NewReader(head[:at]), bytes.NewReader(id), r, bytes.NewReader([]byte{'\n'})))
		return err
	}
	line, err := s.tape.Head(i, maxHeld)
	if err != nil {
		return err
	}
	_, err = w.Write(append(rewrite(line, id, token, subscription), '\n'))
	return err
}

// rewrite returns line with other ids, as copy says.
func rewrite(line, id, token, subscription []byte) []byte {
	put := func(text []byte, path ...string) {
		view := line[:len(line):len(line)]
		for _, name := range path {
			if view = codec.Member(view, name); view == nil {
				return
			}
		}
		if text != nil {
			line = splice(line, view, text)
		}
	}
	put(id, "id")
	put(token, "params", "progressToken")
	put(subscription, "params", "_meta", metaSubscription)
	put(subscription, "result", "_meta", metaSubscription)
	return line
}

// splice is [codec.Splice] in line whose array may go on behind it.
func splice(line, view, text []byte) []byte {
	clipped := line[:len(line):len(line)]
	return codec.Splice(make([]byte, 0, len(line)+len(text)+1), clipped, view, text)
}
