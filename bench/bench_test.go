package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/broker/bench/report"
	"example.com/broker/recorder"
	"golang.org/x/sys/unix"
)

// TestMain lets the test be the program, where it starts itself as the MCP server, the
// proxy on the Go SDK and the ends of the tunnel.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "backend" || os.Args[1] == "sdk-proxy" || os.Args[1] == "tunnel") {
		main()
		return
	}
	os.Exit(m.Run())
}

// testOptions are those of a run that takes no time, of a broker that is built for it.
func testOptions(t *testing.T) options {
	t.Helper()
	dir := t.TempDir()
	o := options{
		out: filepath.Join(dir, "out"), rounds: 2, rate: 400, idle: 20,
		duration: 250 * time.Millisecond, warmup: 20 * time.Millisecond, calm: 400 * time.Millisecond,
		work:   regexp.MustCompile("^(tls-(1|64|64k|open|pipelined|corpus)|quic-1|http[123]-64|beside-bulk|new-sessions|idle)$"),
		target: regexp.MustCompile("^(direct|broker.*|go-sdk|tunnel|haproxy-2|stunnel-2)$"),
		corpus: filepath.Join(dir, "absent"), broker: filepath.Join(dir, "broker"), bare: filepath.Join(dir, "unrecorded"),
	}
	for program, tags := range map[string]string{o.broker: "", o.bare: "unrecorded"} {
		if out, err := exec.Command("go", "build", "-tags", tags, "-o", program, "../cmd/broker").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	return o
}

// TestRun does works of all kinds with what is at hand, and reads what is written of it.
func TestRun(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs whole installations")
	}
	o := testOptions(t)
	if err := runWorks(t.Context(), o, "bench -test"); err != nil {
		t.Fatal(err)
	}
	r, err := report.Read(filepath.Join(o.out, "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	if r.Corpus != "made up" || r.Machine.Cores < 1 || r.Machine.Memory == 0 || r.Machine.Kernel == "" {
		t.Errorf("the run is said to be %+v, %q", r.Machine, r.Corpus)
	}
	find := func(work, target string) report.Measured {
		t.Helper()
		i := slices.IndexFunc(r.Measured, func(m report.Measured) bool { return m.Work == work && m.Target == target })
		if i < 0 {
			t.Fatalf("%s of %s is not there", work, target)
		}
		return r.Measured[i]
	}
	for _, w := range works(o) {
		if !o.work.MatchString(w.name) {
			continue
		}
		m := find(w.name, targetBroker)
		for metric, values := range m.Values {
			if len(values) != o.rounds {
				t.Errorf("%s: %s has %d values, want %d", w.name, metric, len(values), o.rounds)
			}
		}
		switch {
		case w.kind == idle:
			if m.Values[report.Wake][0] <= 0 {
				t.Errorf("%s: nothing woke", w.name)
			}
		case m.Values[report.Calls][0] <= 0 || m.Values[report.P50][0] <= 0 || m.Values[report.P99][0] < m.Values[report.P50][0] || len(m.Latency) == 0:
			t.Errorf("%s: %+v", w.name, m)
		}
		if w.tool == toolMedium && m.Values[report.Bytes][0] <= 0 {
			t.Errorf("%s: no bytes", w.name)
		}
	}
	find("http1-64", targetSDK)
	html, err := os.ReadFile(filepath.Join(o.out, "report.html"))
	if err != nil || !strings.Contains(string(html), "</html>") {
		t.Errorf("report.html: %v", err)
	}
	path := filepath.Join(o.out, "results.json")
	if err := run(t.Context(), []string{"-compare", path, path}); err != nil {
		t.Errorf("a run compared with itself: %v", err)
	}
}

// TestRecorded checks that the broker that is measured puts calls on record, and that the
// one without recording does not.
func TestRecorded(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs whole installations")
	}
	o := testOptions(t)
	const calls = 10
	if err := inBed(t.Context(), o, func(b *bed, x *exchanges) error {
		wants := map[string]int64{targetBroker: 2 + calls, targetUnrecorded: 0} // behind an initialization of two
		for _, m := range makers {
			want, ok := wants[m.name]
			if !ok {
				continue
			}
			broker, err := b.startTarget(t.Context(), m)
			if err != nil {
				return err
			}
			err = callTimes(t.Context(), broker, x, calls)
			broker.stop()
			if err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			out, err := exec.CommandContext(t.Context(), b.broker, "sessions", "--data", b.file(m.name), "--json").CombinedOutput()
			if err != nil {
				return fmt.Errorf("%s: %w: %s", m.name, err, out)
			}
			var got recorder.Session
			if err := json.Unmarshal(out, &got); err != nil || got.C2S.Frames != want {
				t.Errorf("%s: want one session with %d frames of its client on record: %s, %v", m.name, want, out, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// callTimes makes calls in a session of its own.
func callTimes(ctx context.Context, t *target, x *exchanges, n int) error {
	s, err := t.endpoints[overTLS].dial(ctx, overTLS, buffer)
	if err != nil {
		return err
	}
	defer s.Close()
	for range n {
		if _, err := s.call(ctx, x.request(toolEcho), 1); err != nil {
			return err
		}
	}
	return nil
}

// TestCounts checks that counts are written, are the same again, and that more of them
// are found.
func TestCounts(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs whole installations")
	}
	o := testOptions(t)
	path := filepath.Join(t.TempDir(), "counts.json")
	if err := runCounts(t.Context(), o, path, true); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var counts map[string]count
	if err := json.Unmarshal(text, &counts); err != nil {
		t.Fatal(err)
	}
	for _, w := range countWorks {
		if c := counts[w.name]; c.Objects <= 0 || c.Bytes <= 0 {
			t.Errorf("%s: %+v", w.name, c)
		}
	}
	if err := compareCounts(counts, counts, path); err != nil {
		t.Error(err)
	}
	for _, worse := range []func(*count){
		func(c *count) { c.Objects = c.Objects*1.2 + 1 },
		func(c *count) { c.Bytes = c.Bytes*1.6 + 1 },
		func(c *count) { c.Instructions = c.Instructions*1.2 + 1000 },
	} {
		on, now := map[string]count{}, map[string]count{}
		for name, c := range counts {
			c.Instructions = 1000
			on[name], now[name] = c, c
		}
		c := now["http1"]
		worse(&c)
		now["http1"] = c
		if err := compareCounts(on, now, path); err == nil {
			t.Errorf("%+v after %+v is not found worse", c, on["http1"])
		}
	}
}

// TestCounter counts an event that every machine has, of a process with threads.
func TestCounter(t *testing.T) {
	c, err := countEvents(os.Getpid(), unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_PAGE_FAULTS)
	if errors.Is(err, errNotCounted) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	before := c.read()
	pages := make([]byte, 64<<20)
	for i := 0; i < len(pages); i += 4096 {
		pages[i] = 1
	}
	if n := c.read() - before; n < 100 {
		t.Errorf("%d page faults", n)
	}
}

// TestCheckAnswer checks that what is no answer does not count as one.
func TestCheckAnswer(t *testing.T) {
	for _, test := range []struct {
		answer string
		ok     bool
	}{
		{`{"jsonrpc":"2.0","id":7,"result":{}}`, true},
		{`{"result":{},"jsonrpc":"2.0","id":7}`, true},
		{`{"jsonrpc":"2.0","id":8,"result":{}}`, false},
		{`{"jsonrpc":"2.0","id":7,"error":{"code":403,"message":"no"}}`, false},
		{``, false},
	} {
		if err := checkAnswer([]byte(test.answer), 7); (err == nil) != test.ok {
			t.Errorf("%s: %v", test.answer, err)
		}
	}
	events := "event: message\nid: 1\ndata:\n\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\"}\n\ndata: {\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{}}\n\n"
	if err := checkBody([]byte(events), 7); err != nil {
		t.Error(err)
	}
	if err := checkBody([]byte(events), 8); err == nil {
		t.Error("another id is taken")
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"-rounds", "0"}, {"-work", "["}, {"x"}, {"-compare", "one.json"}, {"-rate", "0"}, {"-nonsense"}} {
		if err := run(t.Context(), args); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// TestExchanges checks that each tool is answered by its own result, and frames of about
// the size that works speak of.
func TestExchanges(t *testing.T) {
	x, err := readExchanges("")
	if err != nil {
		t.Fatal(err)
	}
	for _, tool := range x.tools() {
		r := x.request(tool)
		answer := x.answer(nil, []byte(r.head+"7"+r.tail))
		if err := checkAnswer(answer, 7); err != nil {
			t.Fatalf("%s: %v", tool, err)
		}
		if !json.Valid(answer) || !json.Valid([]byte(r.head+"7"+r.tail)) {
			t.Errorf("%s: no JSON", tool)
		}
		if tool == toolEcho && (len(answer) < smallCall*3/4 || len(answer) > smallCall*5/4 || len(r.head+r.tail) < smallCall*3/4) {
			t.Errorf("a small call has %d bytes, its answer %d", len(r.head+r.tail), len(answer))
		}
		if tool == toolSome && (len(answer) < someTexts || len(answer) > someTexts*5/4) {
			t.Errorf("%s has %d bytes", tool, len(answer))
		}
		if tool == toolMedium && (len(answer) < mediumTexts || len(answer) > mediumTexts*5/4) || tool == toolLarge && (len(answer) < largeTexts || len(answer) > largeTexts*5/4) {
			t.Errorf("%s has %d bytes", tool, len(answer))
		}
	}
	if got := x.answer(nil, initialized); len(got) > 0 {
		t.Errorf("a notification is answered: %s", got)
	}
}
