package recorder

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestReading checks that whoever reads frames through the socket is told of before,
// by the user of the system, and that nothing is read where that fails.
func TestReading(t *testing.T) {
	data := t.TempDir()
	var told []string
	fails := false
	l := open(t, Options{Dir: filepath.Join(data, "log"), Read: func(_ context.Context, r Reading) error {
		if fails {
			return errors.New("the disk is full")
		}
		id := "all"
		if r.Session != nil {
			id = r.Session.Subject
		}
		told = append(told, r.By+" "+r.Command+" "+id)
		return nil
	}})
	var ids []string
	for range 3 {
		r := start(t, l)
		if err := errors.Join(r.Append(Frame{Bytes: []byte("x")}), r.End(Ended, "")); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.ID())
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ServeSocket(ctx, data, l) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	src, err := DialSource(data)
	for n := 0; err != nil && n < 1000; n++ {
		time.Sleep(time.Millisecond)
		src, err = DialSource(data)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	read := func(ctx context.Context, id string) (n int, err error) {
		for _, e := range src.Frames(ctx, id) {
			if n++; e != nil {
				n, err = n-1, e
			}
		}
		return n, err
	}
	replay := WithCommand(t.Context(), "replay")
	if n, err := read(replay, ids[0]); n != 1 || err != nil {
		t.Fatalf("%d frames, %v", n, err)
	}
	for range src.Sessions(replay) { // a list is no Reading here
	}
	if _, err := src.Session(replay, ids[0]); err != nil {
		t.Fatal(err)
	}
	verify := ReadsAll(WithCommand(t.Context(), "verify"))
	for _, id := range ids {
		if n, err := read(verify, id); n != 1 || err != nil {
			t.Fatalf("%d frames, %v", n, err)
		}
	}
	if _, err := read(WithCommand(t.Context(), "a\nb"), ids[0]); err == nil {
		t.Error("a command with a newline can be sent")
	}
	me := LocalUser(os.Getuid())
	if want := []string{me + " replay ada", me + " verify all"}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
	fails = true
	if n, err := read(replay, ids[0]); n != 0 || err == nil {
		t.Errorf("%d frames are read without a record of it: %v", n, err)
	}
}
