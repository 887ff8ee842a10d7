package rerun

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// A Conn carries frames to a server and back.
type Conn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Options say how a recording is run against a server.
type Options struct {
	Ignore  *codec.Fields // what is not compared: names of members, and paths from the frame
	Blocked bool          // also send what was refused when it was recorded
	Wait    time.Duration // for an answer; if zero, a minute
}

const (
	defaultWait = time.Minute
	// lateTime is how long notifications that are on record are waited for at the end,
	// and endTime how long the server has to end.
	lateTime = time.Second
	endTime  = 5 * time.Second
)

// Against sends the requests on a tape to a server, and closes the connection. A
// frame is sent when all has arrived that the client had when it sent it, as fast
// as that comes; so what was under way at the same time is so again. Ids are new;
// what the server names something by in an answer (a cursor, requestState, a task)
// is what the next request has in the place of the name on record. What the server
// asks is answered as the client did.
//
// A server that answers otherwise is no error: see [Report.Same].
func Against(ctx context.Context, conn Conn, session, server string, t *recorder.Tape, o Options) (*Report, error) {
	defer conn.Close()
	o.Wait = cmp.Or(o.Wait, defaultWait)
	s, err := read(t)
	if err != nil {
		return nil, fmt.Errorf("session %s: %w", session, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	c := &client{script: s, o: o, conn: conn, arrived: make(chan arrival), waits: map[string]*run{}, names: map[string][]byte{}}
	done := make(chan struct{})
	go c.receive(ctx, done)
	defer func() { cancel(); conn.Close(); <-done }()

	if err := c.play(ctx); err != nil {
		return nil, fmt.Errorf("session %s: %w", session, err)
	}
	r, err := c.report()
	if err != nil {
		return nil, fmt.Errorf("session %s: %w", session, err)
	}
	r.Session, r.Server = session, server
	return r, nil
}

// A client is a recording that asks.
type client struct {
	*script
	o       Options
	conn    Conn
	p       codec.Parser
	arrived chan arrival
	over    error // why nothing arrives any more; nil while something may

	runs  []*run          // of each exchange
	waits map[string]*run // not answered, by raw id
	names map[string][]byte
	notes []live
	asked []*asking
}

// An arrival is a frame of the server, or why there is none.
type arrival struct {
	line []byte
	time time.Time
	err  error
}

// A live is a frame that has arrived.
type live struct {
	line []byte
	time time.Time
}

// A run is an exchange that is run again.
type run struct {
	of     *exchange
	id     string // raw; empty: it was not sent
	sent   time.Time
	answer *live
	failed string // why there is no answer, or none that can be compared
}

// An asking is a request of the server that has come now.
type asking struct {
	of *ask // nil: there is none like it on record
	live
	method string
}

// receive hands over what arrives, until nothing does or ctx is done.
func (c *client) receive(ctx context.Context, done chan<- struct{}) {
	defer close(done)
	r := codec.NewReader(c.conn, codec.Limits{Frame: maxHeld})
	for {
		line, err := r.Next()
		select {
		case c.arrived <- arrival{bytes.Clone(line), time.Now(), err}:
		case <-ctx.Done():
			return
		}
		var tooLong *codec.Error
		if err != nil && !errors.As(err, &tooLong) {
			return
		}
	}
}

// play goes over the recording.
func (c *client) play(ctx context.Context) error {
	requests, answers := map[int]*run{}, map[int]*run{}
	for _, e := range c.exchanges {
		r := &run{of: e}
		c.runs = append(c.runs, r)
		requests[e.at] = r
		if e.answer >= 0 {
			answers[e.answer] = r
		}
	}
	for i := range c.tape.Len() {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		var err error
		if r := requests[i]; r != nil {
			err = c.request(ctx, r)
		} else if r := answers[i]; r != nil {
			err = c.wait(ctx, r)
		} else if f := c.tape.Frame(i); f.Direction == codec.C2S && f.Verdict != recorder.Blocked && f.Verdict != recorder.Answered {
			err = c.notify(ctx, i)
		}
		if err != nil {
			return err
		}
	}
	wanted := len(c.recordedNotes())
	late := time.Now().Add(lateTime)
	for len(c.notes) < wanted && c.over == nil && time.Now().Before(late) {
		if err := c.take(ctx, time.Until(late)); err != nil {
			return err
		}
	}
	c.conn.CloseWrite()
	for end := time.Now().Add(endTime); c.over == nil && time.Now().Before(end); {
		if err := c.take(ctx, time.Until(end)); err != nil {
			return err
		}
	}
	return nil
}

// request sends the request of an exchange, if it may be sent.
func (c *client) request(ctx context.Context, r *run) error {
	e := r.of
	switch {
	case c.o.Blocked:
	case e.blocked:
		r.failed = "refused when it was recorded"
		return nil
	case e.made:
		r.failed = "answered by the broker when it was recorded"
		return nil
	}
	if c.over != nil {
		r.failed = "not sent: the session has ended"
		return nil
	}
	line, err := c.tape.Head(e.at, maxHeld)
	if err != nil {
		return err
	}
	r.id = strconv.Itoa(e.number)
	for _, name := range []string{"requestState", "cursor", "taskId"} {
		if view := codec.Member(codec.Member(line[:len(line):len(line)], "params"), name); view != nil {
			if now, ok := c.names[string(view)]; ok {
				line = splice(line, view, now)
			}
		}
	}
	line = rewrite(line, []byte(r.id), nil, nil)
	c.waits[r.id] = r
	r.sent = time.Now()
	if err := c.send(ctx, line); err != nil {
		return err
	}
	// A handshake whose answer the client had from the broker before: the server must
	// be up before the next frame.
	if e.method == initialize && e.answer < 0 {
		return c.wait(ctx, r)
	}
	return nil
}

// wait waits for the answer to a request, if there is to be one.
func (c *client) wait(ctx context.Context, r *run) error {
	if r.id == "" || r.of.cancelled {
		return nil
	}
	for deadline := time.Now().Add(c.o.Wait); r.answer == nil && r.failed == ""; {
		if c.over != nil {
			r.failed = "not answered: the session has ended"
		} else if !time.Now().Before(deadline) {
			r.failed = fmt.Sprintf("not answered within %s", c.o.Wait)
		} else if err := c.take(ctx, time.Until(deadline)); err != nil {
			return err
		}
	}
	if r.answer != nil && r.of.answer >= 0 && c.tape.Frame(r.of.answer).Length <= maxHeld {
		return c.learn(r)
	}
	return nil
}

// learn notes what the server now calls what it has named in an answer.
func (c *client) learn(r *run) error {
	then, err := c.tape.Head(r.of.answer, maxHeld)
	if err != nil {
		return err
	}
	for _, path := range [][]string{{"requestState"}, {"nextCursor"}, {"task", "taskId"}} {
		a, b := codec.Member(then, "result"), codec.Member(r.answer.line, "result")
		for _, name := range path {
			a, b = codec.Member(a, name), codec.Member(b, name)
		}
		if len(a) > 0 && len(b) > 0 && !bytes.Equal(a, b) {
			c.names[string(a)] = bytes.Clone(b)
		}
	}
	return nil
}

// notify sends a notification of the client's. Its answers are sent when the server asks.
func (c *client) notify(ctx context.Context, i int) error {
	f, err := c.parse(&c.p, i)
	if err != nil || f == nil || f.Kind != codec.Notification {
		return err
	}
	line := f.Line
	if string(f.Method) == cancelled {
		id := codec.Member(f.Params, "requestId")
		var of *run
		for _, r := range c.runs { // the latest of that id
			if r.of.at < i && r.of.id == string(id) {
				of = r
			}
		}
		if of == nil || of.id == "" {
			return nil
		}
		line = splice(line, id, []byte(of.id))
	}
	return c.send(ctx, line)
}

// send sends a frame. What arrives meanwhile is taken: a server may not read on
// before it is read from.
func (c *client) send(ctx context.Context, line []byte) error {
	if c.over != nil {
		return nil
	}
	sent := make(chan error, 1)
	go func() { // ends with the write, which the end of the connection ends
		_, err := c.conn.Write(append(line[:len(line):len(line)], '\n'))
		sent <- err
	}()
	var answers [][]byte
	for {
		select {
		case err := <-sent:
			if err != nil {
				if cause := context.Cause(ctx); cause != nil {
					return cause
				}
				// The server has ended; what it said before may still come.
				return nil
			}
			for _, a := range answers {
				if err := c.send(ctx, a); err != nil {
					return err
				}
			}
			return nil
		case a := <-c.arrived:
			reply, err := c.arrive(a)
			if err != nil {
				return err
			}
			if reply != nil {
				answers = append(answers, reply)
			}
			if c.over != nil {
				return nil
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// take waits for one frame, for at most d.
func (c *client) take(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case a := <-c.arrived:
		reply, err := c.arrive(a)
		if err != nil || reply == nil {
			return err
		}
		return c.send(ctx, reply)
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// arrive takes a frame of the server, and returns what is to be answered.
func (c *client) arrive(a arrival) (reply []byte, err error) {
	var tooLong *codec.Error
	switch {
	case errors.As(a.err, &tooLong):
		if r := c.waits[string(tooLong.ID)]; r != nil {
			delete(c.waits, r.id)
			r.failed = fmt.Sprintf("answered with more than %d MiB, which are not compared", maxHeld>>20)
		}
		return nil, nil
	case a.err != nil:
		c.over = a.err
		return nil, nil
	case len(bytes.TrimSpace(a.line)) == 0:
		return nil, nil
	}
	f, err := c.p.Parse(a.line, codec.S2C)
	if err != nil {
		return nil, nil // the broker lets none through
	}
	switch f.Kind {
	case codec.Response:
		if r := c.waits[string(f.ID)]; r != nil {
			delete(c.waits, r.id)
			r.answer = &live{a.line, a.time}
		}
	case codec.Notification:
		c.notes = append(c.notes, live{a.line, a.time})
	case codec.Request:
		return c.asks(f, a)
	}
	return nil, nil
}

// asks answers a request of the server as the client did: the same request, or else
// the next of its method.
func (c *client) asks(f *codec.Frame, a arrival) (reply []byte, err error) {
	id, method, params := bytes.Clone(f.ID), string(f.Method), bytes.Clone(f.Params)
	taken := map[*ask]bool{}
	for _, one := range c.asked {
		taken[one.of] = true
	}
	var of *ask
	want := keysOf(method, params)[0]
	for _, one := range c.script.asks {
		if taken[one] || one.method != method {
			continue
		}
		then, err := c.parse(&c.p, one.at)
		if err != nil {
			return nil, err
		}
		if same := keysOf(method, then.Params)[0] == want; same || of == nil {
			if of = one; same {
				break
			}
		}
	}
	if of == nil && method == ping {
		return codec.AppendResult(nil, id, struct{}{}), nil
	}
	c.asked = append(c.asked, &asking{of, live{a.line, a.time}, method})
	if of == nil {
		return codec.AppendError(nil, id, CodeNotRecorded, fmt.Sprintf("%s is not on record", quoted(method)), nil), nil
	}
	if of.answer < 0 {
		return nil, nil
	}
	line, err := c.tape.Head(of.answer, maxHeld)
	if err != nil {
		return nil, err
	}
	return rewrite(line, id, nil, nil), nil
}

// recordedNotes returns the notifications that the client received, by their places on
// the tape.
func (c *client) recordedNotes() (notes []int) {
	add := func(steps []step) {
		for _, st := range steps {
			if st.at >= 0 && st.ask == nil {
				notes = append(notes, st.at)
			}
		}
	}
	add(c.prelude)
	for _, r := range c.runs {
		if r.id != "" { // of what was not sent, nothing is expected
			add(r.of.steps)
			add(r.of.after)
		}
	}
	return notes
}

// compare compares a frame on record with one that has arrived.
func (c *client) compare(at int, l live) (*comparison, error) {
	taped := c.tape.Frame(at)
	line, err := c.tape.Head(at, maxHeld)
	if err != nil {
		return nil, err
	}
	d := &comparison{ignore: c.o.Ignore, then: taped.Time, now: l.time, recordedMasked: taped.Verdict == recorder.Masked}
	recorded, _ := decode(line).(map[string]any)
	now, _ := decode(l.line).(map[string]any)
	for _, envelope := range []string{"id", "jsonrpc"} {
		delete(recorded, envelope)
		delete(now, envelope)
	}
	for _, side := range []map[string]any{recorded, now} {
		if e, ok := side["error"].(map[string]any); ok {
			if data, ok := e["data"].(map[string]any); ok {
				for _, name := range brokers {
					delete(data, name)
				}
			}
		}
	}
	d.compare(recorded, now)
	return d, nil
}

// report says what was answered differently.
func (c *client) report() (*Report, error) {
	r := &Report{}
	for _, run := range c.runs {
		one, err := c.outcome(run)
		if err != nil {
			return nil, err
		}
		r.Exchanges = append(r.Exchanges, *one)
	}
	taken := map[*ask]bool{}
	for _, a := range c.asked {
		if a.of == nil {
			r.Additional = append(r.Additional, message(a.line))
			continue
		}
		taken[a.of] = true
		d, err := c.compare(a.of.at, a.live)
		if err != nil {
			return nil, err
		}
		if len(d.differences) > 0 {
			one := Exchange{Frame: a.of.at + 1, Method: a.method, Asked: true}
			one.take(d)
			r.Exchanges = append(r.Exchanges, one)
		}
	}
	var missing []int
	for _, run := range c.runs {
		if run.id == "" || run.answer == nil {
			continue
		}
		for _, st := range run.of.steps {
			if st.ask != nil && !taken[st.ask] && st.ask.method != ping {
				missing = append(missing, st.at)
			}
		}
	}
	notes, err := c.match(r)
	if err != nil {
		return nil, err
	}
	for _, at := range append(missing, notes...) {
		line, err := c.tape.Head(at, maxHeld)
		if err != nil {
			return nil, err
		}
		m := message(line)
		m.Frame = at + 1
		r.Missing = append(r.Missing, m)
	}
	return r, nil
}

// maxMatched bounds with how many notifications one is compared.
const maxMatched = 1000

// match finds the notifications that have come again, notes in r which came in
// addition, and returns which are missing.
func (c *client) match(r *Report) (missing []int, err error) {
	left := c.notes
	for _, at := range c.recordedNotes() {
		found := false
		for i, l := range left[:min(len(left), maxMatched)] {
			d, err := c.compare(at, l)
			if err != nil {
				return nil, err
			}
			if found = len(d.differences) == 0; found {
				left = append(left[:i:i], left[i+1:]...)
				break
			}
		}
		if !found {
			missing = append(missing, at)
		}
	}
	for _, l := range left {
		r.Additional = append(r.Additional, message(l.line))
	}
	return missing, nil
}

// outcome says what became of an exchange.
func (c *client) outcome(r *run) (*Exchange, error) {
	e := r.of
	one := &Exchange{Frame: e.at + 1, Method: e.method, Name: e.name, Reason: r.failed}
	if r.answer != nil {
		one.Seconds = r.answer.time.Sub(r.sent).Seconds()
	}
	switch {
	case r.id == "":
		one.Outcome = Skipped
		if c.over != nil && r.failed == "not sent: the session has ended" {
			one.Outcome = Different
		}
	case e.cancelled:
		one.Outcome, one.Reason = Skipped, "cancelled by the client"
	case e.answer < 0:
		one.Outcome, one.Reason = Skipped, "without an answer on record"
	case r.answer == nil:
		one.Outcome = Different
	case c.tape.Frame(e.answer).Length > maxHeld:
		one.Outcome, one.Reason = Skipped, fmt.Sprintf("the answer on record has more than %d MiB", maxHeld>>20)
	default:
		d, err := c.compare(e.answer, *r.answer)
		if err != nil {
			return nil, err
		}
		one.take(d)
	}
	return one, nil
}

// message is a frame of the server's, as a Report has it.
func message(line []byte) Message {
	var method string
	json.Unmarshal(codec.Member(line, "method"), &method)
	m := Message{Method: method}
	if params := codec.Member(line, "params"); params != nil {
		m.Params = short(decode(params))
	}
	return m
}
