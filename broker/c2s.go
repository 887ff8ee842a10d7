package broker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"example.com/broker/broker/policy"
	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// pumpC2S judges what the client sends, until its end. It waits in Next, as pumpS2C
// does: what is done with a line is in functions of its own, see [Broker.serve].
func (s *session) pumpC2S(r *lineReader, v *view) error {
	defer v.rest()
	for {
		line, err := r.Next()
		if over, err := s.handleC2S(r, v, line, err); over || err != nil {
			return err
		}
	}
}

// handleC2S handles what a Reader of the client's lines has returned. over says that
// nothing comes behind it.
func (s *session) handleC2S(r *lineReader, v *view, line []byte, err error) (over bool, _ error) {
	if s.over.Load() {
		return true, nil
	}
	s.active.Store(int64(time.Since(s.began)))
	switch tooLarge := tooLargeIn(err); {
	case err == nil:
		err = s.c2s(v, line)
	case tooLarge != nil:
		err = s.answer(tooLarge.ID, &Refusal{Code: tooLarge.Code, Reason: "refused: " + tooLarge.Reason})
	case errors.Is(err, io.ErrUnexpectedEOF): // half a frame reaches nobody
		s.toServer.queue(recorder.Blocked, line)
		return true, s.toServer.flush()
	case err == io.EOF:
		return true, s.toServer.flush()
	default:
		return true, fmt.Errorf("%w: %w", errClientGone, err)
	}
	if err == nil && !r.Buffered() {
		v.rest()
		err = s.toServer.flush()
	}
	return false, err
}

// tooLargeIn returns what is known of a frame that a Reader has discarded, or nil.
func tooLargeIn(err error) *codec.Error {
	if err == nil {
		return nil
	}
	var e *codec.Error
	errors.As(err, &e)
	return e
}

// c2s handles one line of the client. Errors end the session.
func (s *session) c2s(v *view, line []byte) error {
	if blank(line) {
		return nil
	}
	f, err := v.parse(line, codec.C2S)
	if err != nil {
		var bad *codec.Error
		if !errors.As(err, &bad) {
			return err
		}
		return s.refuse(line, bad.ID, &Refusal{Code: bad.Code, Reason: "refused: " + bad.Reason})
	}
	if err := s.refresh(v); err != nil {
		if r := refusalOf(err); f.Kind == codec.Request {
			s.refuse(line, f.ID, r)
		}
		return err
	}
	if s.room.waits() {
		if here, err := s.room.c2s(f, line, v); here {
			return err
		}
		// The session has reached its server meanwhile.
	}
	if f.Kind == codec.Response {
		if s.calls.answer(f) { // to what the broker asked
			return s.toServer.queue(recorder.Blocked, line)
		}
		if _, ok := s.fromServer.done(f.ID); !ok {
			s.log.Debug("client answered what was not asked")
			return s.toServer.queue(recorder.Blocked, line)
		}
		return s.toServer.queue(recorder.Delivered, line)
	}
	if f.Kind == codec.Notification && !bytes.HasPrefix(f.Method, []byte("notifications/")) {
		s.log.Info("request without an id is kept back", "method", short(string(f.Method)))
		return s.toServer.queue(recorder.Blocked, line)
	}
	passed := passage{verdict: recorder.Delivered}
	if f.Arguments != nil && v.terms.Masking.Requests != policy.RequestsPass {
		masked, findings := s.masks(v).MaskArguments(make([]byte, 0, len(line)+1), f)
		if len(findings) > 0 {
			// The record, too, has what the server gets, or would have got.
			line, passed = masked, passage{recorder.Masked, line}
			if err := s.toServer.findings(findings); err != nil {
				return err
			}
			if v.terms.Masking.Requests == policy.RequestsDeny {
				s.log.Info("call refused: something was found in its arguments", "method", short(string(f.Method)), "rule", v.terms.Rule)
				if f.Kind == codec.Notification { // has no answer
					return s.toServer.queueChanged(passed.came, nil, recorder.Blocked, line)
				}
				return s.refuseChanged(passed.came, line, bytes.Clone(f.ID), &Refusal{Code: CodeDenied, Rule: v.terms.Rule, Reason: "refused: the arguments hold what must not reach the server: " + kinds(findings)})
			}
			if f, err = v.parse(line, codec.C2S); err != nil {
				return fmt.Errorf("mask arguments: %w", err)
			}
		}
	}
	s.learn(f)
	verdict := v.terms.Call(f, time.Now())
	if verdict.Access == policy.Approval && f.Kind == codec.Request && s.desk != nil {
		return s.approval(f, line, passed, v.terms, verdict)
	}
	if r := ofVerdict(verdict); r != nil {
		s.log.Info("call refused", "method", short(string(f.Method)), "code", r.Code, "rule", r.Rule)
		if f.Kind == codec.Notification { // has no answer
			return s.toServer.queueChanged(passed.came, nil, recorder.Blocked, line)
		}
		return s.refuseChanged(passed.came, line, f.ID, r)
	}
	if string(f.Method) == "notifications/cancelled" {
		s.forget(&s.fromClient, f)
	}
	note := s.observe(v, f)
	if ours(f) != nil { // of an approval that is not needed any more
		return s.passEdited(f, passed.came, "", note)
	}
	return s.pass(f, line, passed, "", note)
}

// kinds lists the detectors of findings, each once.
func kinds(findings []codec.Finding) string {
	var names []string
	for _, f := range findings {
		if !slices.Contains(names, f.Detector) {
			names = append(names, f.Detector)
		}
	}
	return strings.Join(names, ", ")
}

// A passage is how what the client sent passes, if it does.
type passage struct {
	verdict recorder.Verdict
	came    []byte // what the client sent, if that is something else than what passes; or nil
}

// pass delivers what the client sent. call is the digest of an approved call; note
// may be nil.
func (s *session) pass(f *codec.Frame, line []byte, p passage, call string, note *recorder.Note) error {
	if f.Kind == codec.Request {
		if r := s.register(f, call); r != nil {
			return s.refuseChanged(p.came, line, f.ID, r)
		}
	}
	return s.toServer.queueChanged(p.came, note, p.verdict, line)
}

// register puts a request in flight, or returns why it cannot be.
func (s *session) register(f *codec.Frame, call string) *Refusal {
	switch s.fromClient.add(f, call) {
	case duplicate:
		return &Refusal{Code: -32600, Reason: "refused: a request with this id is in flight"}
	case full:
		return &Refusal{Code: CodeLimit, Reason: fmt.Sprintf("refused: over %d requests in flight", s.fromClient.limit)}
	}
	return nil
}

// learn notes what the client says of itself.
func (s *session) learn(f *codec.Frame) {
	switch string(f.Method) {
	case "initialize":
		s.calls.elicits.Store(elicitsURL(codec.Member(f.Params, "capabilities")))
	case "logging/setLevel":
		s.wantsLog.Store(true)
	}
	if f.Meta != nil && !s.wantsLog.Load() && codec.Member(f.Meta, metaLogLevel) != nil {
		s.wantsLog.Store(true)
	}
}
