package load

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A stutter answers in a millisecond, but once in a second takes as long as that.
type stutter struct {
	pause time.Duration
	last  time.Time
}

func (s *stutter) Call(context.Context) (Answer, error) {
	took := time.Millisecond
	if time.Since(s.last) >= time.Second {
		took, s.last = s.pause, time.Now()
	}
	time.Sleep(took)
	return Answer{Bytes: 10, First: took}, nil
}

// TestCoordinatedOmission checks that an open loop counts what waits behind a slow
// answer: with pauses of 500 ms in each second, half of all calls fall due in one.
func TestCoordinatedOmission(t *testing.T) {
	for _, test := range []struct {
		name     string
		rate     float64
		p75, p99 time.Duration // at least, at most
	}{
		{"closed", 0, time.Millisecond, 2 * time.Millisecond},
		{"open", 100, 200 * time.Millisecond, 510 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, err := Run(t.Context(), []Caller{&stutter{pause: 500 * time.Millisecond, last: time.Now()}},
					Plan{Warmup: time.Second, Duration: 10 * time.Second, Rate: test.rate})
				if err != nil {
					t.Fatal(err)
				}
				p75, p99 := time.Duration(r.Latency.ValueAtQuantile(75)), time.Duration(r.Latency.ValueAtQuantile(99))
				if p75 < test.p75 || p99 > test.p99 {
					t.Errorf("p75 is %v, want at least %v; p99 is %v, want at most %v", p75, test.p75, p99, test.p99)
				}
				if test.rate > 0 && r.Calls != 1000 {
					t.Errorf("%d calls fell due, want 1000", r.Calls)
				}
				if r.Bytes != 10*r.Calls {
					t.Errorf("%d bytes of %d calls", r.Bytes, r.Calls)
				}
			})
		})
	}
}

// TestOpenSpread checks that callers take turns.
func TestOpenSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var times []time.Time
		note := func() (Answer, error) {
			mu.Lock()
			defer mu.Unlock()
			times = append(times, time.Now())
			return Answer{}, nil
		}
		callers := []Caller{callerFunc(note), callerFunc(note), callerFunc(note), callerFunc(note)}
		if _, err := Run(t.Context(), callers, Plan{Duration: time.Second, Rate: 100}); err != nil {
			t.Fatal(err)
		}
		if len(times) != 100 {
			t.Fatalf("%d calls, want 100", len(times))
		}
		for i, at := range times[1:] {
			if d := at.Sub(times[i]); d != 10*time.Millisecond {
				t.Fatalf("call %d comes %v after the one before, want 10ms", i+1, d)
			}
		}
	})
}

type callerFunc func() (Answer, error)

func (f callerFunc) Call(context.Context) (Answer, error) { return f() }

// TestFailure checks that a call that fails ends all, and says why.
func TestFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		var n atomic.Int64
		fails := callerFunc(func() (Answer, error) {
			time.Sleep(time.Millisecond)
			if n.Add(1) > 3 {
				return Answer{}, broken
			}
			return Answer{}, nil
		})
		began := time.Now()
		_, err := Run(t.Context(), []Caller{fails, fails}, Plan{Duration: time.Hour})
		if !errors.Is(err, broken) {
			t.Errorf("got %v, want %v", err, broken)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

// TestWindow checks that what is answered before the window, or behind it, is not counted.
func TestWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var started, ended time.Time
		begin := time.Now()
		slow := callerFunc(func() (Answer, error) { time.Sleep(300 * time.Millisecond); return Answer{Calls: 2}, nil })
		r, err := Run(t.Context(), []Caller{slow}, Plan{
			Warmup: time.Second, Duration: time.Second,
			Started: func() { started = time.Now() }, Ended: func() { ended = time.Now() },
		})
		if err != nil {
			t.Fatal(err)
		}
		if r.Calls != 6 { // at 1.2, 1.5, 1.8 s
			t.Errorf("%d calls counted, want 6", r.Calls)
		}
		if started.Sub(begin) != time.Second || ended.Sub(begin) != 2*time.Second {
			t.Errorf("counted from %v to %v", started.Sub(begin), ended.Sub(begin))
		}
	})
}
