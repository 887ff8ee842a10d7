package broker

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"example.com/broker/broker/policy"
	"example.com/broker/codec"
	"example.com/broker/recorder"
	"example.com/broker/stream"
)

// pumpS2C masks what the server sends, until its end.
func (s *session) pumpS2C(r *codec.Reader, v *view) error {
	defer v.rest()
	for {
		line, err := r.Next()
		if over, err := s.handleS2C(r, v, line, err); over || err != nil {
			return err
		}
	}
}

// handleS2C handles what a Reader of the server's lines has returned. over says that
// nothing comes behind it.
func (s *session) handleS2C(r *codec.Reader, v *view, line []byte, err error) (over bool, _ error) {
	if s.over.Load() {
		return true, nil
	}
	s.active.Store(int64(time.Since(s.began)))
	switch tooLarge := tooLargeIn(err); {
	case err == nil:
		err = s.s2c(v, line)
	case err == codec.ErrLong:
		err = s.flow(r, v)
	case tooLarge != nil:
		s.log.Warn("server sent a frame over the limit", "limit", s.limits.Frame)
		s.coming, err = nil, nil
		if _, ok := s.fromClient.done(tooLarge.ID); ok {
			err = s.answer(tooLarge.ID, &Refusal{Code: CodeTooLarge, Reason: "refused: the server's answer is over the broker's limit for a frame"})
		}
		s.note()
	case errors.Is(err, io.ErrUnexpectedEOF):
		if len(line) > 0 {
			s.keepBack(v, line)
		}
		s.toClient.flush()
		return true, errServerClosed
	case err == io.EOF:
		return true, s.toClient.flush()
	default:
		return true, fmt.Errorf("read from server: %w", err)
	}
	if err == nil && !r.Buffered() {
		v.rest()
		err = s.toClient.flush()
		s.note()
	}
	if err != nil {
		s.toClient.flush() // what came before is good
	}
	return false, err
}

// flow passes a long response while it arrives. Where it must be held, because it
// is judged as a whole or its client needs it whole, the Reader waits for it.
func (s *session) flow(r *codec.Reader, v *view) error {
	id, ok := r.Long()
	if ok {
		id, ok = s.flows(id)
	}
	if !ok {
		r.Whole()
		return nil
	}
	id, announced := bytes.Clone(id), s.coming != nil
	s.coming = nil
	if err := s.refresh(v); err != nil {
		return err
	}
	refused := ""
	if v.terms.HidesTools() { // whatever was asked, as in s2c
		refused = "tools"
	}
	m := s.masks(v)
	if m == nil {
		m = v.observes()
	}
	f, rest, err := v.acquire().Flow(r, m, refused, func(part codec.Part) error {
		if s.over.Load() {
			return errSessionOver
		}
		s.active.Store(int64(time.Since(s.began)))
		about, verdict, err := s.aboutPart(v, part)
		if err != nil {
			return err
		}
		return s.toClient.part(id, about, verdict, part.Bytes, part.Came)
	})
	s.observed.frame()
	if err == nil {
		if id == nil || s.fromClient.same(id, f.ID) {
			req, ok := s.fromClient.done(f.ID)
			s.note()
			if ok && req.flows() || req.cancelled { // the rest of it is the client's to ignore
				return s.toClient.end(recorder.Delivered)
			}
		}
		s.log.Warn("server answered what it was not asked, at length")
		err = errServerFrame
	}
	if cut := s.toClient.end(recorder.Cut); cut != nil {
		return cmp.Or(err, cut)
	}
	if len(rest) > 0 {
		s.keepBack(v, rest)
	}
	var bad *codec.Error
	switch {
	case err == errSessionOver:
		return nil
	case errors.As(err, &bad) && bad.Code == codec.CodeTooLarge:
		s.log.Warn("server sent a frame that would cost too much", "error", err)
		if bad.ID != nil {
			id = bad.ID
		}
		if id == nil {
			id = s.fromClient.only()
		}
		switch req, ok := s.fromClient.done(id); {
		case id != nil && ok:
			s.note()
			return s.answer(id, &Refusal{Code: CodeTooLarge, Reason: "refused: " + bad.Reason})
		case id != nil && req.cancelled:
			return nil
		}
		return errServerFrame
	case errors.As(err, &bad) && announced:
		return s.answerCut(id, err)
	case errors.As(err, &bad):
		s.log.Warn("server sent what is not a valid frame", "error", err)
		return errServerFrame
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errServerClosed
	}
	return err
}

// answerCut answers a request in the place of what the agent has said to be its answer, and
// what is none: mostly, the server's response has broken off. What else the agent says of it
// comes too late.
func (s *session) answerCut(id []byte, err error) error {
	s.log.Warn("server's answer was cut, or is not a valid frame", "error", err)
	if _, ok := s.fromClient.done(id); !ok {
		return nil
	}
	s.note()
	return s.answer(id, errAnswerCut)
}

// flows reports whether a long response may pass before it is whole, and to which
// request: that of id or, if that is nil, as far as it is known.
func (s *session) flows(id []byte) ([]byte, bool) {
	if id == nil {
		id = s.coming
	}
	web, byURL := s.client.(relayed)
	if !byURL {
		return id, s.fromClient.flows(id)
	}
	if id == nil { // it goes into the HTTP response that the id, which comes behind it, says
		id = s.fromClient.sole()
	}
	return id, id != nil && s.fromClient.flows(id) && web.TakesParts(id)
}

// s2c handles one line of the server.
func (s *session) s2c(v *view, line []byte) error {
	if blank(line) {
		return nil
	}
	announced := s.coming
	s.coming = nil
	f, err := v.parse(line, codec.S2C)
	if err != nil {
		if s.keepBack(v, line); announced != nil {
			return s.answerCut(announced, err)
		}
		s.log.Warn("server sent what is not a valid frame", "error", err)
		s.toClient.flush()
		return errServerFrame
	}
	if err := s.refresh(v); err != nil {
		return err
	}
	verdict, came, sent := recorder.Delivered, line, []byte(nil) // sent, if something else is on record
	switch {
	case f.Kind == codec.Response && !bytes.Equal(f.ID, []byte("null")):
		req, ok := s.fromClient.done(f.ID)
		if !ok { // cancelled, answered before, or asked by the broker
			verdict = recorder.Blocked
			break
		}
		s.note()
		if f.Result != nil {
			s.faces.see(s.server, req.method, f.Result)
			s.calls.round(req.call, f.Result)
		}
		// Whatever was asked: a client may have used its id twice.
		if f.Result != nil && v.terms.HidesTools() {
			out := v.place()
			var dropped int
			if *out, dropped = s.filterTools(*out, f, v.terms); dropped > 0 {
				verdict, sent = recorder.Edited, came
				line = bytes.Clone(*out)
				if f, err = v.parse(line, codec.S2C); err != nil {
					return fmt.Errorf("filter tools/list: %w", err)
				}
			}
		}
	case f.Kind == codec.Request:
		switch s.fromServer.add(f, "") {
		case full:
			s.log.Warn("server asks too much at once", "limit", s.fromServer.limit)
			no := &Refusal{Code: CodeLimit, Reason: fmt.Sprintf("refused: over %d requests in flight", s.fromServer.limit)}
			if err := s.toServer.queue(recorder.Answered, no.appendTo(nil, f.ID, s.id)); err != nil {
				return err
			}
			if err := s.toServer.flush(); err != nil {
				return err
			}
			verdict = recorder.Blocked
		case duplicate:
			s.log.Warn("server repeats the id of a request in flight")
			verdict = recorder.Blocked
		}
	case f.Kind != codec.Notification:
	case string(f.Method) == stream.UpstreamAnswer: // the agent's, as are these
		s.coming = bytes.Clone(codec.Member(f.Params, "id"))
		return nil
	case bytes.HasPrefix(f.Method, []byte(stream.UpstreamPrefix)):
		return s.toClient.relay(line)
	case string(f.Method) == "notifications/cancelled":
		s.forget(&s.fromServer, f)
	case string(f.Method) == "notifications/progress":
		s.fromClient.progressed(codec.Member(f.Params, "progressToken"))
	case s.room.acknowledged(f): // by the room, before
		verdict = recorder.Blocked
	}
	var note *recorder.Note
	if m := v.observes(); m != nil && verdict != recorder.Blocked {
		out := v.place()
		var findings []codec.Finding
		*out, findings = m.Mask(*out, f)
		note = s.observeFound(v, findings)
		s.observed.frame()
	}
	if m := s.masks(v); m != nil {
		out := v.place()
		var findings []codec.Finding
		if *out, findings = m.Mask(*out, f); len(findings) > 0 {
			if sent = came; verdict != recorder.Blocked {
				verdict = recorder.Masked
			}
			if err := s.toClient.findings(findings); err != nil {
				return err
			}
		}
		*out = append(*out, '\n')
		line = (*out)[:len(*out)-1]
	}
	return s.toClient.queueChanged(sent, note, verdict, line)
}

// keepBack puts what is no frame on record, as far as the policy lets it be seen.
func (s *session) keepBack(v *view, line []byte) error {
	if err := s.refresh(v); err != nil {
		return err
	}
	m := s.masks(v)
	if m == nil { // nobody gets it: what is only observed needs not be there
		m = v.observes()
	}
	if m == nil {
		return s.toClient.queue(recorder.Blocked, line)
	}
	masked := m.MaskText(make([]byte, 0, len(line)+1), line)
	came := line
	if bytes.Equal(masked, line) {
		came = nil
	}
	return s.toClient.queueChanged(came, nil, recorder.Blocked, append(masked, '\n')[:len(masked)])
}

// filterTools appends an answer to tools/list to dst without what the policy refuses
// whatever the arguments, and says how many that are. With none, dst is of no use.
func (s *session) filterTools(dst []byte, f *codec.Frame, t *policy.Terms) ([]byte, int) {
	tools := codec.Member(f.Result, "tools")
	if len(tools) == 0 || tools[0] != '[' {
		return dst, 0
	}
	var name []byte
	out, dropped := codec.Filter(dst, f, tools, func(tool []byte) bool {
		if len(tool) == 0 || tool[0] != '{' {
			return true
		}
		raw := codec.Member(tool, "name")
		if len(raw) == 0 || raw[0] != '"' {
			return true
		}
		name = codec.Unquote(name[:0], raw)
		return !t.Hides(string(name))
	})
	if dropped > 0 {
		out = s.privately(out)
	}
	return out, dropped
}

// privately says of a list that is not everybody's that it must not be kept for
// others, nor for longer than the grant.
func (s *session) privately(line []byte) []byte {
	if scope := codec.Member(codec.Member(line, "result"), "cacheScope"); scope != nil {
		line = codec.Splice(nil, line, scope, []byte(`"private"`))
	}
	s.mu.Lock()
	use := s.use
	s.mu.Unlock()
	ttl := codec.Member(codec.Member(line, "result"), "ttlMs")
	if use == nil || ttl == nil {
		return line
	}
	left := max(time.Until(use.Until).Milliseconds(), 0)
	if n, err := strconv.ParseFloat(string(ttl), 64); err != nil || n > float64(left) {
		line = codec.Splice(nil, line, ttl, strconv.AppendInt(nil, left, 10))
	}
	return line
}
