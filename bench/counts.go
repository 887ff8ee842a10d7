package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"text/tabwriter"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A count is what a call takes of the broker's process. Instructions are zero where the
// machine does not count them.
type count struct {
	Objects      float64 `json:"allocs"`
	Bytes        float64 `json:"bytes"`
	Instructions float64 `json:"instructions,omitempty"`
}

// countWorks are counted by calls, and not by time.
var countWorks = []struct {
	name  string
	work  work
	each  int  // calls of a session
	loose bool // see looseAllowance
}{
	{"tls", work{protocol: overTLS, sessions: 1, tool: toolEcho}, 20000, false},
	{"tls-pipelined", work{protocol: overTLS, sessions: 4, depth: 32, tool: toolEcho}, 400, true},
	{"tls-64k", work{protocol: overTLS, sessions: 1, tool: toolMedium}, 4000, true}, // fewer, and a block that is written between them counts
	{"quic", work{protocol: overQUIC, sessions: 1, tool: toolEcho}, 5000, true},
	{"http1", work{protocol: overHTTP1, sessions: 1, tool: toolEcho}, 5000, false},
}

// How much more than on file counts may be, as a part of it. What comes frame by frame
// takes the same on any machine, but for how often a buffer is found that can be used
// again. How other frames come together, in reads, appends and packets, depends on how busy
// the machine is: of those, only what is far above is found, and bytes say nothing.
const (
	allowance      = 0.15
	bytesAllowance = 0.5
	looseAllowance = 1.5
)

// runCounts counts, and compares with a file, or writes it.
func runCounts(ctx context.Context, o options, path string, update bool) error {
	return inBed(ctx, o, func(b *bed, x *exchanges) error {
		t, err := b.startTarget(ctx, makers[1])
		if err != nil {
			return err
		}
		defer t.stop()
		counts := map[string]count{}
		for _, w := range countWorks {
			c, err := countWork(ctx, x, t, w.work, w.each)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			counts[w.name] = c
		}
		if update {
			text, err := json.MarshalIndent(counts, "", "  ")
			if err != nil {
				return err
			}
			return os.WriteFile(path, append(text, '\n'), 0o644)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var on map[string]count
		if err := json.Unmarshal(text, &on); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return compareCounts(on, counts, path)
	})
}

// compareCounts prints counts beside those on file, and fails if any is above.
func compareCounts(on, counts map[string]count, path string) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "work\ta call takes\ton file\tnow\t")
	worse := 0
	for _, w := range countWorks {
		was, is := on[w.name], counts[w.name]
		objects, bytes := allowance, bytesAllowance
		if w.loose {
			objects, bytes = looseAllowance, math.Inf(1)
		}
		for _, row := range []struct {
			what      string
			was, is   float64
			allowance float64
		}{{"allocations", was.Objects, is.Objects, objects}, {"bytes allocated", was.Bytes, is.Bytes, bytes}, {"instructions", was.Instructions, is.Instructions, objects}} {
			verdict := ""
			switch {
			case row.is == 0 || row.was == 0 && row.what == "instructions":
				verdict = "not counted here"
			case row.is > row.was*(1+row.allowance)+0.5:
				verdict = "worse"
				worse++
			case row.is < row.was/(1+row.allowance)-0.5:
				verdict = "better: write it down with -update"
			}
			fmt.Fprintf(t, "%s\t%s\t%.1f\t%.1f\t%s\n", w.name, row.what, row.was, row.is, verdict)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if worse > 0 {
		return fmt.Errorf("%d counts are worse than %s says; if that is meant, write it anew with -update", worse, path)
	}
	return nil
}

// countWork makes calls and counts what they take.
func countWork(ctx context.Context, x *exchanges, t *target, w work, each int) (count, error) {
	sessions, err := dialAll(ctx, t.endpoints[w.protocol], w.protocol, w.sessions, buffer)
	if err != nil {
		return count{}, err
	}
	defer closeAll(sessions)
	depth := max(w.depth, 1)
	calls := func(n int) error {
		done := make(chan error, len(sessions))
		for _, s := range sessions {
			go func() {
				c := &caller{session: s, requests: w.requests(x), depth: depth}
				for range n {
					if _, err := c.Call(ctx); err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
		}
		var errs []error
		for range sessions {
			errs = append(errs, <-done)
		}
		return errors.Join(errs...)
	}
	if err := calls(each / 10); err != nil { // pools fill
		return count{}, err
	}
	instructions, err := countEvents(t.processes[0].cmd.Process.Pid, unix.PERF_TYPE_HARDWARE, unix.PERF_COUNT_HW_INSTRUCTIONS)
	if err != nil && !errors.Is(err, errNotCounted) {
		return count{}, err
	}
	defer instructions.close()
	before, err := t.usage(ctx)
	if err != nil {
		return count{}, err
	}
	from := instructions.read()
	if err := calls(each); err != nil {
		return count{}, err
	}
	to := instructions.read()
	after, err := t.usage(ctx)
	if err != nil {
		return count{}, err
	}
	n := float64(each * depth * len(sessions))
	return count{
		Objects:      (after.allocated.objects - before.allocated.objects) / n,
		Bytes:        (after.allocated.bytes - before.allocated.bytes) / n,
		Instructions: float64(to-from) / n,
	}, nil
}

// errNotCounted is the error of a machine that does not count, or does not tell.
var errNotCounted = errors.New("events are not counted here")

// A counter counts events of a process: one for each of its threads, and what they start.
type counter []int

// countEvents counts events of a kind that perf_event_open(2) knows.
func countEvents(pid int, kind uint32, event uint64) (c counter, err error) {
	threads, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
	if err != nil {
		return nil, err
	}
	for _, thread := range threads {
		tid, err := strconv.Atoi(thread.Name())
		if err != nil {
			return nil, err
		}
		a := unix.PerfEventAttr{Type: kind, Config: event, Bits: unix.PerfBitInherit}
		a.Size = uint32(unsafe.Sizeof(a))
		fd, err := unix.PerfEventOpen(&a, tid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if err != nil {
			c.close()
			return nil, fmt.Errorf("%w: %w", errNotCounted, err)
		}
		c = append(c, fd)
	}
	return c, nil
}

// read returns how many there were so far.
func (c counter) read() (sum uint64) {
	for _, fd := range c {
		var b [8]byte
		if n, err := unix.Read(fd, b[:]); err == nil && n == len(b) {
			sum += binary.NativeEndian.Uint64(b[:])
		}
	}
	return sum
}

func (c counter) close() {
	for _, fd := range c {
		unix.Close(fd)
	}
}
