package main

import (
	"context"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"time"
)

// A process with thousands of sessions that wait has as much garbage as it has memory in
// use: what their handshakes took. Go collects it when as much again has been allocated,
// which may be never, so that it is collected here, and given back to the system, when the
// broker has come to rest.
const (
	restInterval = 100 * time.Millisecond
	restingAt    = 128 << 10 // who allocates less in an interval rests
	leastGarbage = 8 << 20   // that is worth it, and an eighth of what is in use
)

// ballastSize is of memory that counts as heap: Go collects a heap when it has doubled. One of a
// few MiB would be collected whenever 4 MiB have been allocated, and each time all of the
// process's own data and stacks would be gone over. Nobody touches it, so it takes none of the
// system's.
const ballastSize = 32 << 20

// giveBack gives memory back whenever the process rests, until ctx is done.
func giveBack(ctx context.Context) {
	tick := time.NewTicker(restInterval)
	defer tick.Stop()
	var before uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := readMemory()
		if now.resting(before) {
			debug.FreeOSMemory()
		}
		before = now.allocated
	}
}

// A memory is what the runtime says of the heap, in bytes.
type memory struct {
	allocated uint64 // since the start
	used      uint64 // now, garbage among it
	live      uint64 // when it was last collected
	free      uint64 // and not given back: what was collected since
}

func readMemory() memory {
	samples := []runtimemetrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/free:bytes"}}
	runtimemetrics.Read(samples)
	return memory{samples[0].Value.Uint64(), samples[1].Value.Uint64(), samples[2].Value.Uint64(), samples[3].Value.Uint64()}
}

// resting reports whether there is garbage that nobody would collect soon, or nobody give
// back. before is what had been allocated an interval ago.
func (m memory) resting(before uint64) bool {
	return m.allocated-before < restingAt && m.used+m.free > m.live+max(leastGarbage, m.live/8)
}
