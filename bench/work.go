package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"example.com/broker/bench/load"
	"example.com/broker/bench/report"
)

// A work is what clients do.
type work struct {
	name     string
	about    string
	protocol string
	sessions int
	depth    int     // calls at once of each session; one if zero
	tool     string  // that is called; if empty, those of the corpus in turn
	rate     float64 // calls a second of all; if zero, each session calls as soon as it has its answer
	bulk     bool    // another session takes 10 MB results beside
	kind     kind
	only     func(target string) bool // which targets; nil: all that have the protocol
}

// A kind is how a work is done.
type kind int

const (
	steady kind = iota // sessions are there, and call
	churn              // each call is a session of its own: a handshake, an initialization
	idle               // sessions are there, and do nothing; then all call
)

// works are all. Idle sessions come first: what a process has kept of works before would
// be room for them, and not be counted.
func works(o options) []work {
	all := []work{
		{name: "idle", about: fmt.Sprintf("%d sessions that do nothing, and then all call at once", o.idle), protocol: overTLS, sessions: o.idle, kind: idle, tool: toolEcho,
			only: func(t string) bool { return t == targetDirect || t == targetBroker }},
		{name: "tls-1", about: "one connection, calls of 200 B", protocol: overTLS, sessions: 1, tool: toolEcho},
		{name: "tls-8", about: "8 connections, calls of 200 B", protocol: overTLS, sessions: 8, tool: toolEcho},
		{name: "tls-64", about: "64 connections, calls of 200 B", protocol: overTLS, sessions: 64, tool: toolEcho},
		{name: "tls-256", about: "256 connections, calls of 200 B", protocol: overTLS, sessions: 256, tool: toolEcho},
		{name: "tls-open", about: fmt.Sprintf("64 connections, %.0f calls of 200 B a second, in an open loop", o.rate), protocol: overTLS, sessions: 64, tool: toolEcho, rate: o.rate},
		{name: "tls-pipelined", about: "16 connections, 32 calls of 200 B at once", protocol: overTLS, sessions: 16, depth: 32, tool: toolEcho},
		{name: "tls-corpus", about: "16 connections, tool calls of the corpus", protocol: overTLS, sessions: 16},
		{name: "tls-4k", about: "16 connections, results of 4 KB", protocol: overTLS, sessions: 16, tool: toolSome},
		{name: "tls-64k", about: "16 connections, results of 64 KB", protocol: overTLS, sessions: 16, tool: toolMedium},
		{name: "tls-10m", about: "one connection, results of 10 MB", protocol: overTLS, sessions: 1, tool: toolLarge},
		{name: "quic-1", about: "one connection, calls of 200 B", protocol: overQUIC, sessions: 1, tool: toolEcho},
		{name: "quic-64", about: "64 connections, calls of 200 B", protocol: overQUIC, sessions: 64, tool: toolEcho},
		{name: "quic-64k", about: "16 connections, results of 64 KB", protocol: overQUIC, sessions: 16, tool: toolMedium},
		{name: "http1-1", about: "Streamable HTTP, one connection, calls of 200 B", protocol: overHTTP1, sessions: 1, tool: toolEcho},
		{name: "http1-64", about: "Streamable HTTP, 64 connections, calls of 200 B", protocol: overHTTP1, sessions: 64, tool: toolEcho},
		{name: "http1-open", about: fmt.Sprintf("Streamable HTTP, 64 connections, %.0f calls of 200 B a second, in an open loop", o.rate/4), protocol: overHTTP1, sessions: 64, tool: toolEcho, rate: o.rate / 4},
		{name: "http1-corpus", about: "Streamable HTTP, 16 connections, tool calls of the corpus", protocol: overHTTP1, sessions: 16},
		{name: "http1-64k", about: "Streamable HTTP, 16 connections, results of 64 KB", protocol: overHTTP1, sessions: 16, tool: toolMedium},
		{name: "http2-64", about: "Streamable HTTP over HTTP/2, 64 connections, calls of 200 B", protocol: overHTTP2, sessions: 64, tool: toolEcho},
		{name: "http3-64", about: "Streamable HTTP over HTTP/3, 64 connections, calls of 200 B", protocol: overHTTP3, sessions: 64, tool: toolEcho},
		{name: "alone", about: fmt.Sprintf("63 connections, %.0f calls of 200 B a second: what the next is compared with", interactiveRate), protocol: overTLS, sessions: 63, tool: toolEcho, rate: interactiveRate},
		{name: "beside-bulk", about: "the same, beside one that takes results of 10 MB without a pause", protocol: overTLS, sessions: 63, tool: toolEcho, rate: interactiveRate, bulk: true},
		{name: "new-sessions", about: "8 clients that connect (a whole handshake, with certificates on both sides), initialize, and close", protocol: overTLS, sessions: 8, kind: churn},
	}
	return all
}

// interactiveRate is that of 63 people's clients: 10 calls a second each.
const interactiveRate = 630.0

// A result is what was measured in one round.
type result struct {
	values  map[report.Metric]float64
	latency []report.Point
}

// do does a work with a target.
func (w work) do(ctx context.Context, x *exchanges, t *target, o options) (result, error) {
	e := t.endpoints[w.protocol]
	switch w.kind {
	case churn:
		return w.doChurn(ctx, e, t, o)
	case idle:
		return w.doIdle(ctx, x, e, t, o)
	default:
		return w.doSteady(ctx, x, e, t, o)
	}
}

// buffer of a client's connection, in bytes.
const buffer = 64 << 10

func (w work) doSteady(ctx context.Context, x *exchanges, e endpoint, t *target, o options) (result, error) {
	sessions, err := dialAll(ctx, e, w.protocol, w.sessions, buffer)
	if err != nil {
		return result{}, err
	}
	defer closeAll(sessions)
	callers := make([]load.Caller, len(sessions))
	for i, s := range sessions {
		callers[i] = &caller{session: s, requests: w.requests(x), next: i * 7, depth: max(w.depth, 1)}
	}
	var taking sync.WaitGroup
	var taken error // what ended the bulk session, unless it was told to
	bulk := context.CancelFunc(func() {})
	if w.bulk {
		s, err := e.dial(ctx, w.protocol, buffer)
		if err != nil {
			return result{}, err
		}
		defer s.Close()
		var wanted context.Context
		wanted, bulk = context.WithCancel(ctx)
		r := x.request(toolLarge)
		taking.Go(func() {
			for wanted.Err() == nil && taken == nil {
				_, taken = s.call(ctx, r, 1)
			}
		})
		defer func() { bulk(); taking.Wait() }()
	}
	r, err := measure(ctx, callers, t, o, w.rate)
	bulk()
	taking.Wait()
	if err := errors.Join(err, taken); err != nil {
		return result{}, err
	}
	if w.tool == toolLarge {
		delete(r.values, report.P999) // of so few there is none
	}
	return r, nil
}

// requests are what a session sends in turn.
func (w work) requests(x *exchanges) (all []request) {
	if w.tool != "" {
		return []request{x.request(w.tool)}
	}
	for _, e := range x.corpus {
		all = append(all, x.request(e.tool))
	}
	return all
}

// A caller makes calls by a session.
type caller struct {
	session  session
	requests []request
	next     int
	depth    int
}

func (c *caller) Call(ctx context.Context) (load.Answer, error) {
	r := c.requests[c.next%len(c.requests)]
	c.next++
	return c.session.call(ctx, r, c.depth)
}

// doChurn makes sessions. Each is a call.
func (w work) doChurn(ctx context.Context, e endpoint, t *target, o options) (result, error) {
	callers := make([]load.Caller, w.sessions)
	for i := range callers {
		callers[i] = opener{e, w.protocol}
	}
	return measure(ctx, callers, t, o, 0)
}

type opener struct {
	endpoint
	protocol string
}

func (o opener) Call(ctx context.Context) (load.Answer, error) {
	s, err := o.dial(ctx, o.protocol, 4<<10)
	if err != nil {
		return load.Answer{}, err
	}
	return load.Answer{}, s.Close()
}

// measure runs a plan and reads what it took.
func measure(ctx context.Context, callers []load.Caller, t *target, o options, rate float64) (result, error) {
	var before, after usage
	var failed [2]error
	r, err := load.Run(ctx, callers, load.Plan{
		Warmup: o.warmup, Duration: o.duration, Rate: rate,
		Started: func() { before, failed[0] = t.usage(ctx) },
		Ended:   func() { after, failed[1] = t.usage(ctx) },
	})
	if err := errors.Join(err, failed[0], failed[1]); err != nil {
		return result{}, err
	}
	if r.Calls == 0 {
		return result{}, fmt.Errorf("no call was answered within %v", o.duration)
	}
	millis := func(ns int64) float64 { return float64(ns) / 1e6 }
	out := result{values: map[report.Metric]float64{
		report.Calls: float64(r.Calls) / o.duration.Seconds(),
		report.P50:   millis(r.Latency.ValueAtQuantile(50)),
		report.P99:   millis(r.Latency.ValueAtQuantile(99)),
		report.P999:  millis(r.Latency.ValueAtQuantile(99.9)),
	}}
	if mb := float64(r.Bytes) / 1e6 / o.duration.Seconds(); mb > 1 && r.Bytes/r.Calls > 1000 {
		out.values[report.Bytes] = mb
		out.values[report.First] = millis(r.First.ValueAtQuantile(50))
	}
	calls := float64(r.Calls)
	if len(t.processes) > 0 {
		out.values[report.CPU] = float64((after.all - before.all).Microseconds()) / calls
	}
	if t.metrics != "" {
		out.values[report.OwnCPU] = float64((after.own - before.own).Microseconds()) / calls
		out.values[report.Allocated] = (after.allocated.bytes - before.allocated.bytes) / calls
		out.values[report.Objects] = (after.allocated.objects - before.allocated.objects) / calls / 2 // a call is two frames
	}
	for _, percent := range []float64{0, 50, 75, 90, 95, 99, 99.5, 99.9, 99.99} {
		out.latency = append(out.latency, report.Point{Percent: percent, Millis: millis(r.Latency.ValueAtQuantile(percent))})
	}
	return out, nil
}

// A usage is what a target has taken so far.
type usage struct {
	all, own  time.Duration // of all processes, and of the first
	allocated allocated
}

func (t *target) usage(ctx context.Context) (u usage, err error) {
	for i, p := range t.processes {
		d, err := p.cpu()
		if err != nil {
			return u, fmt.Errorf("%s: %w", p.name, err)
		}
		if u.all += d; i == 0 {
			u.own = d
		}
	}
	if t.metrics != "" {
		u.allocated, err = readAllocated(ctx, t.metrics)
	}
	return u, err
}

// doIdle opens sessions, sees what they take of the target's memory, and wakes them.
func (w work) doIdle(ctx context.Context, x *exchanges, e endpoint, t *target, o options) (result, error) {
	before, err := t.memory()
	if err != nil {
		return result{}, err
	}
	sessions, err := dialAll(ctx, e, w.protocol, w.sessions, 4<<10)
	if err != nil {
		return result{}, err
	}
	defer closeAll(sessions)
	if err := settle(ctx, o.calm, t); err != nil {
		return result{}, err
	}
	after, err := t.memory()
	if err != nil {
		return result{}, err
	}
	r := x.request(w.tool)
	failed := make(chan error, len(sessions))
	start := time.Now()
	for _, s := range sessions {
		go func() {
			_, err := s.call(ctx, r, 1)
			failed <- err
		}()
	}
	for range sessions {
		if err := <-failed; err != nil {
			return result{}, err
		}
	}
	out := result{values: map[report.Metric]float64{report.Wake: time.Since(start).Seconds()}}
	if len(t.processes) > 0 {
		out.values[report.Memory] = float64(after-before) / 1000 / float64(len(sessions))
	}
	return out, nil
}

// memory is that of the target's first process, which clients connect to.
func (t *target) memory() (int64, error) {
	if len(t.processes) == 0 {
		return 0, nil
	}
	return t.processes[0].memory()
}

// settleTime bounds how long targets may go on working after a work.
const settleTime = 2 * time.Minute

// settle waits until targets have been calm for that long: what is left of one work shall not
// be counted in the next. A short while is not enough: who waits for the disk seems calm.
func settle(ctx context.Context, calm time.Duration, targets ...*target) error {
	const look = 200 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	for rested := time.Duration(0); rested < calm; {
		before, err := cpuOf(targets)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("targets are busy without a session: %w", ctx.Err())
		case <-time.After(look):
		}
		after, err := cpuOf(targets)
		if err != nil {
			return err
		}
		if after-before > look/8 {
			rested = 0
		} else {
			rested += look
		}
	}
	return nil
}

func cpuOf(targets []*target) (sum time.Duration, err error) {
	for _, t := range targets {
		for _, p := range t.processes {
			d, err := p.cpu()
			if err != nil {
				return 0, fmt.Errorf("%s: %w", p.name, err)
			}
			sum += d
		}
	}
	return sum, nil
}

// dialAll opens sessions, a few at a time.
func dialAll(ctx context.Context, e endpoint, protocol string, n, buffer int) ([]session, error) {
	all := make([]session, n)
	errs := make([]error, n)
	var dialing sync.WaitGroup
	places := make(chan struct{}, 16)
	for i := range n {
		places <- struct{}{}
		dialing.Go(func() {
			defer func() { <-places }()
			all[i], errs[i] = e.dial(ctx, protocol, buffer)
		})
	}
	dialing.Wait()
	if err := errors.Join(errs...); err != nil {
		closeAll(all)
		return nil, err
	}
	return all, nil
}

func closeAll(all []session) {
	for _, s := range all {
		if s != nil {
			s.Close()
		}
	}
}
