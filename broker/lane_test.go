package broker

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// A testRecording keeps frames in memory, or fails. wrote tells how much had
// been written when it was asked.
type testRecording struct {
	out    *bytes.Buffer
	frames []string
	early  bool // something was written before it was on record
	on     int  // bytes on record that are to be delivered
	err    error
}

func (r *testRecording) Append(frames ...recorder.Frame) error {
	if r.err != nil {
		return r.err
	}
	for _, f := range frames {
		r.frames = append(r.frames, fmt.Sprintf("%v %.10s", f.Verdict, f.Bytes))
		if f.Verdict != recorder.Blocked {
			r.on += len(f.Bytes) + 1
		}
	}
	return nil
}

func (r *testRecording) End(string, string) error { return nil }

// Write is the receiver's.
func (r *testRecording) Write(p []byte) (int, error) {
	r.out.Write(p)
	r.early = r.early || r.out.Len() > r.on
	return len(p), nil
}

func TestLane(t *testing.T) {
	rec := &testRecording{out: &bytes.Buffer{}}
	l := lane{direction: codec.S2C, rec: rec, w: rec, gone: errClientGone}
	big := strings.Repeat("b", copySize+1)
	for _, f := range []struct {
		v    recorder.Verdict
		line string
	}{
		{recorder.Blocked, "x1"}, {recorder.Delivered, "a1"}, {recorder.Masked, "a2"}, {recorder.Blocked, "x2"},
		{recorder.Delivered, ""}, {recorder.Blocked, "x3"}, {recorder.Delivered, big}, {recorder.Answered, "a3"}, {recorder.Blocked, "x4"},
	} {
		line := []byte(f.line)
		if err := l.queue(f.v, line[:len(line):len(line)]); err != nil {
			t.Fatal(err)
		}
		for i := range line {
			line[i] = '#' // queue has not kept it
		}
	}
	if err := l.flush(); err != nil {
		t.Fatal(err)
	}
	if want := "a1\na2\n\n" + big + "\na3\n"; rec.out.String() != want {
		t.Errorf("delivered %.60q, want %.60q", rec.out, want)
	}
	want := []string{"blocked x1", "delivered a1", "masked a2", "blocked x2", "delivered ", "blocked x3", "delivered bbbbbbbbbb", "answered a3", "blocked x4"}
	if !slices.Equal(rec.frames, want) {
		t.Errorf("on record %q, want %q", rec.frames, want)
	}
	if rec.early {
		t.Error("something was delivered before it was on record")
	}
}

// TestLaneBroken checks that a client can read why its session ends, where the end of a long
// frame cannot be put on record, and that nothing else is behind what is.
func TestLaneBroken(t *testing.T) {
	for _, v := range []recorder.Verdict{recorder.Delivered, recorder.Cut} {
		rec := &testRecording{out: &bytes.Buffer{}}
		l := lane{rec: rec, w: rec, gone: errClientGone}
		if err := l.part(nil, recorder.Frame{}, recorder.Delivered, []byte(`{"long":1}`), nil); err != nil {
			t.Fatal(err)
		}
		rec.err = recorder.ErrUnavailable
		if err := l.end(v); !errors.Is(err, recorder.ErrUnavailable) {
			t.Errorf("%v: %v", v, err)
		}
		if got := rec.out.String(); got != `{"long":1}` {
			t.Errorf("%v: delivered %q, and its end is not on record", v, got)
		}
		l.say([]byte("why"))
		l.say([]byte("again"))
		if got, want := rec.out.String(), "{\"long\":1}\nwhy\nagain\n"; got != want {
			t.Errorf("%v: said %q, want %q", v, got, want)
		}
	}
}

func TestLaneDeliversNothingUnrecorded(t *testing.T) {
	rec := &testRecording{out: &bytes.Buffer{}, err: recorder.ErrUnavailable}
	l := lane{rec: rec, w: rec, gone: errClientGone}
	l.queue(recorder.Delivered, []byte("small"))
	if err := l.flush(); !errors.Is(err, recorder.ErrUnavailable) {
		t.Errorf("flush: %v", err)
	}
	if err := l.queue(recorder.Delivered, make([]byte, copySize+1)); !errors.Is(err, recorder.ErrUnavailable) {
		t.Errorf("queue: %v", err)
	}
	if rec.out.Len() > 0 {
		t.Errorf("delivered %q", rec.out)
	}
	l.say([]byte("why")) // the client must learn it
	if got := rec.out.String(); got != "why\n" {
		t.Errorf("said %q", got)
	}
}
