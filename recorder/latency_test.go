package recorder

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/broker/codec"
)

// BenchmarkLatency is how long appends take while sessions end, their blocks are
// rewritten, tables are merged and the value log is collected: 64 sessions at a time,
// of 500 calls each, whose answers have 4 KB; of ten, the oldest is deleted. Given
// enough calls (-benchtime 1000000x), all of that comes to its steady state.
func BenchmarkLatency(b *testing.B) {
	for name, sync := range map[string]Sync{"interval": SyncInterval, "always": SyncAlways, "none": SyncNone} {
		b.Run("sync "+name, func(b *testing.B) { benchmarkLatency(b, sync, 0) })
	}
}

// BenchmarkStalls is BenchmarkLatency at so many calls a second, which come whether the
// one before is on record or not: an append takes from when it is due. How late the
// machine wakes those who wait is told, too.
func BenchmarkStalls(b *testing.B) {
	for _, rate := range []int{500, 1000, 2000} {
		b.Run(fmt.Sprintf("%d calls a second", rate), func(b *testing.B) { benchmarkLatency(b, SyncInterval, rate) })
	}
}

func benchmarkLatency(b *testing.B, mode Sync, rate int) {
	const parallel, calls = 64, 500
	l := open(b, Options{Dir: b.TempDir(), Sync: mode})
	var (
		left    atomic.Int64
		workers sync.WaitGroup
		mu      sync.Mutex
		took    []time.Duration // appends
		bounds  []time.Duration // starts and ends
		woken   []time.Duration
		ended   []string
	)
	left.Store(int64(b.N))
	stop := make(chan struct{})
	workers.Go(func() {
		for tick := time.NewTicker(5 * time.Second); ; {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			if _, err := l.collect(); err != nil {
				b.Error(err)
			}
		}
	})
	b.ResetTimer()
	var sessions sync.WaitGroup
	for n := range parallel {
		sessions.Go(func() {
			due := time.Now()
			if rate > 0 {
				due = due.Add(time.Duration(n) * time.Second / time.Duration(rate))
			}
			var mine, edges, late []time.Duration
			var answer []byte
			for left.Load() > 0 {
				began := time.Now()
				r := start(b, l)
				if edges = append(edges, time.Since(began)); rate > 0 && time.Until(due) < 0 {
					due = time.Now()
				}
				for i := range calls {
					if left.Add(-1) < 0 {
						break
					}
					request := fmt.Appendf(nil, `{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"query","arguments":{"sql":"SELECT * FROM orders WHERE id > %d LIMIT 40"}}}`, i, rand.IntN(1e6))
					answer = append(answer[:0], `{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"`...)
					for len(answer) < 4000 {
						answer = fmt.Appendf(answer, `{\"id\":%d,\"name\":\"Customer %x\",\"orders\":%d}\n`, rand.IntN(1e6), rand.Uint32(), rand.IntN(100))
					}
					answer = append(answer, `"}]}}`...)
					if rate > 0 {
						time.Sleep(time.Until(due))
						late = append(late, time.Since(due))
					}
					for _, f := range []Frame{{Bytes: request}, {Direction: codec.S2C, Bytes: bytes.Clone(answer)}} {
						began := time.Now()
						if rate > 0 {
							began = due
						}
						if err := r.Append(f); err != nil {
							b.Error(err)
							return
						}
						mine = append(mine, time.Since(began))
					}
					if rate > 0 {
						due = due.Add(parallel * time.Second / time.Duration(rate))
					}
				}
				began = time.Now()
				if err := r.End(Ended, ""); err != nil {
					b.Error(err)
				}
				edges = append(edges, time.Since(began))
				mu.Lock()
				if ended = append(ended, r.ID()); len(ended)%10 == 0 {
					if err := l.erase(ended[len(ended)-10]); err != nil {
						b.Error(err)
					}
				}
				mu.Unlock()
			}
			mu.Lock()
			took, bounds, woken = append(took, mine...), append(bounds, edges...), append(woken, late...)
			mu.Unlock()
		})
	}
	sessions.Wait()
	b.StopTimer()
	close(stop)
	workers.Wait()
	d, err := l.Disk()
	if err != nil {
		b.Fatal(err)
	}
	at := func(q float64, of []time.Duration) float64 {
		slices.Sort(of)
		return float64(of[int(q*float64(len(of)-1))].Microseconds()) / 1000
	}
	b.ReportMetric(at(0.5, took), "ms-p50")
	b.ReportMetric(at(0.99, took), "ms-p99")
	b.ReportMetric(at(0.999, took), "ms-p99.9")
	b.ReportMetric(at(1, took), "ms-max")
	b.ReportMetric(at(0.99, bounds), "ms-start-or-end-p99")
	if rate > 0 {
		b.ReportMetric(at(0.999, woken), "ms-woken-p99.9")
	}
	b.ReportMetric(float64(2*b.N)/b.Elapsed().Seconds(), "frames/s")
	b.ReportMetric(float64(d.All())/float64(1<<20), "MiB-on-disk")
	b.ReportMetric(float64(d.Pending), "sessions-to-rewrite")
}
