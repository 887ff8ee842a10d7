package recorder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"example.com/broker/codec"
)

// following opens a log and its two sources: itself, and its socket.
func following(t *testing.T) (*Log, map[string]Source) {
	t.Helper()
	data := t.TempDir()
	l := open(t, Options{Dir: filepath.Join(data, "log")})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ServeSocket(ctx, data, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for range 1000 {
		if _, err := os.Stat(filepath.Join(data, socketFile)); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	src, err := DialSource(data)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return l, map[string]Source{"log": l, "socket": src}
}

// Whoever follows a session gets each frame when it is on record, and all of them,
// once, in order; and is done when the session is.
func TestFollow(t *testing.T) {
	l, sources := following(t)
	for name, src := range sources {
		t.Run(name, func(t *testing.T) {
			r := start(t, l)
			if err := r.Append(Frame{Bytes: []byte("before")}); err != nil {
				t.Fatal(err)
			}
			in, out := io.Pipe()
			done := make(chan error, 1)
			go func() {
				err := Replay(t.Context(), out, src, r.ID(), View{Follow: true})
				out.CloseWithError(err)
				done <- err
			}()
			next := func(want string) {
				t.Helper()
				got := make([]byte, len(want))
				if _, err := io.ReadFull(in, got); err != nil || string(got) != want {
					t.Fatalf("got %q, %v, want %q", got, err, want)
				}
			}
			next("before\n")
			for i := range 50 {
				if err := r.Append(Frame{Direction: codec.S2C, Bytes: fmt.Append(nil, i)}); err != nil {
					t.Fatal(err)
				}
				next(fmt.Sprintln(i)) // it is there before the next is recorded
			}
			var want bytes.Buffer
			go func() {
				for i := range 200 {
					r.Append(Frame{Bytes: fmt.Append(nil, "c", i)}, Frame{Direction: codec.S2C, Bytes: bytes.Repeat([]byte("s"), i*100)})
				}
				r.End(Ended, "closed")
			}()
			for i := range 200 {
				fmt.Fprintf(&want, "c%d\n%s\n", i, bytes.Repeat([]byte("s"), i*100))
			}
			next(want.String())
			if rest, err := io.ReadAll(in); err != nil || len(rest) > 0 {
				t.Errorf("behind the end: %q, %v", rest, err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// A session that has ended is read to its end; one that does not exist is named;
// whoever follows can go away.
func TestFollowEnds(t *testing.T) {
	l, sources := following(t)
	ended := start(t, l)
	ended.Append(Frame{Bytes: []byte("a")})
	ended.End(Ended, "closed")
	runs := start(t, l)
	for name, src := range sources {
		var out bytes.Buffer
		if err := Replay(t.Context(), &out, src, ended.ID(), View{Follow: true}); err != nil || out.String() != "a\n" {
			t.Errorf("%s: of one that has ended %q, %v", name, &out, err)
		}
		if err := Replay(t.Context(), &out, src, "none", View{Follow: true}); !errors.Is(err, ErrNoSession) {
			t.Errorf("%s: of none: %v", name, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := Replay(ctx, &out, src, runs.ID(), View{Follow: true}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: given up: %v", name, err)
		}
		cancel()
	}
	if err := runs.Append(Frame{Bytes: []byte("b")}); err != nil {
		t.Error(err)
	}
}

// The end of the broker is not the end of the session.
func TestFollowCut(t *testing.T) {
	data := t.TempDir()
	l := open(t, Options{Dir: filepath.Join(data, "log")})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ServeSocket(ctx, data, l) }()
	r := start(t, l)
	src, err := OpenSource(data)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	followed := make(chan error, 1)
	go func() { followed <- Replay(t.Context(), io.Discard, src, r.ID(), View{Follow: true}) }()
	for {
		r.mu.Lock()
		waits := r.changed != nil
		r.mu.Unlock()
		if waits {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
	if err := <-followed; err == nil {
		t.Error("a session that was cut has ended")
	}
}
