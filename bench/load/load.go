// Package load puts load on whatever makes calls, and says how long they took.
//
// A [Caller] makes one call after another; each has a goroutine. In a closed loop a
// caller makes the next call when it has the answer to the last:
//
//	result, err := load.Run(ctx, callers, load.Plan{Warmup: time.Second, Duration: 5 * time.Second})
//
// That says how much passes, and makes slow answers rare: while a caller waits, it does
// not ask. In an open loop calls fall due at a constant rate, whether those before have
// been answered or not, and a call has taken as long as it is from when it fell due:
//
//	load.Run(ctx, callers, load.Plan{Rate: 4000, …})
//
// So what waits behind a slow answer has waited, too (else it is omitted in coordination
// with what is measured: Tene, "How NOT to Measure Latency"). Latencies are kept in HDR
// histograms, to three digits, from 1 µs to 1 min.
package load

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// A Caller makes calls, one at a time. Call returns when the answer is there and has
// been checked.
type Caller interface {
	Call(ctx context.Context) (Answer, error)
}

// An Answer is what came of a call.
type Answer struct {
	Calls int           // how many calls this was: one if zero, more if they went together
	Bytes int64         // of the answer
	First time.Duration // from the call to the first byte of the answer
}

// A Plan says how calls are made.
type Plan struct {
	Warmup   time.Duration // goes before, and is not counted
	Duration time.Duration // what is counted
	Rate     float64       // calls a second of all callers together; if zero, the loop is closed
	Started  func()        // called when counting begins; may be nil
	Ended    func()        // called when it ends, before callers are waited for; may be nil
}

// A Result is what was counted.
type Result struct {
	Latency *hdrhistogram.Histogram // ns
	First   *hdrhistogram.Histogram // to the first byte, ns
	Calls   int64
	Bytes   int64
}

const (
	least    = int64(time.Microsecond)
	most     = int64(time.Minute)
	accuracy = 3 // significant digits
)

func newResult() *Result {
	return &Result{Latency: hdrhistogram.New(least, most, accuracy), First: hdrhistogram.New(least, most, accuracy)}
}

// Run makes calls until the plan's time is over, and then waits for those under way. The
// first call that fails ends it: of what does not work, nothing is said.
func Run(ctx context.Context, callers []Caller, p Plan) (*Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	begin := time.Now()
	w := window{begin: begin.Add(p.Warmup), end: begin.Add(p.Warmup + p.Duration)}

	results := make([]*Result, len(callers))
	var calling sync.WaitGroup
	for i, c := range callers {
		results[i] = newResult()
		calling.Go(func() {
			var err error
			if p.Rate > 0 {
				every := time.Duration(float64(len(callers)) / p.Rate * float64(time.Second))
				// Callers take turns, so that calls do not fall due together.
				err = w.open(ctx, c, results[i], begin.Add(every*time.Duration(i)/time.Duration(len(callers))), every)
			} else {
				err = w.closed(ctx, c, results[i])
			}
			if err != nil {
				cancel(fmt.Errorf("caller %d: %w", i, err))
			}
		})
	}
	at(ctx, w.begin, p.Started)
	at(ctx, w.end, p.Ended)
	calling.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	sum := newResult()
	for _, r := range results {
		sum.Calls += r.Calls
		sum.Bytes += r.Bytes
		sum.Latency.Merge(r.Latency)
		sum.First.Merge(r.First)
	}
	return sum, nil
}

// at calls f at a time, or, if ctx is done before, not at all.
func at(ctx context.Context, when time.Time, f func()) {
	timer := time.NewTimer(time.Until(when))
	defer timer.Stop()
	select {
	case <-timer.C:
		if f != nil {
			f()
		}
	case <-ctx.Done():
	}
}

// A window is the time that counts.
type window struct{ begin, end time.Time }

// closed makes one call after another. What is answered within the window counts.
func (w window) closed(ctx context.Context, c Caller, r *Result) error {
	for start := time.Now(); start.Before(w.end) && ctx.Err() == nil; {
		a, err := c.Call(ctx)
		if err != nil {
			return err
		}
		now := time.Now()
		if !now.Before(w.begin) && now.Before(w.end) {
			r.add(a, now.Sub(start))
		}
		start = now
	}
	return nil
}

// open makes calls when they are due. What falls due within the window counts, whenever
// it is answered. A caller that has waited for its turn wakes up to a millisecond late,
// which is not the fault of what is measured, and not counted.
func (w window) open(ctx context.Context, c Caller, r *Result, due time.Time, every time.Duration) error {
	for ; due.Before(w.end) && ctx.Err() == nil; due = due.Add(every) {
		start := due
		if time.Now().Before(due) {
			at(ctx, due, nil)
			start = time.Now()
		}
		a, err := c.Call(ctx)
		if err != nil {
			return err
		}
		if !due.Before(w.begin) {
			r.add(a, time.Since(start))
		}
	}
	return nil
}

func (r *Result) add(a Answer, took time.Duration) {
	r.Calls += int64(max(a.Calls, 1))
	r.Bytes += a.Bytes
	r.Latency.RecordValue(bounded(took))
	r.First.RecordValue(bounded(a.First))
}

func bounded(d time.Duration) int64 { return min(max(int64(d), least), most) }
