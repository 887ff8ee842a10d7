//go:build torture

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/broker/broker"
	"example.com/broker/broker/identity"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// TestTorture holds the promise of the record against what machines do, in so many
// rounds of a seed (TORTURE_ROUNDS, TORTURE_SEED; TORTURE_KIND: one kind alone).
// Broker, agent and servers are processes of their own; what is on record is asked
// of the command line. The first violation ends it, and the data folder stays.
func TestTorture(t *testing.T) {
	rounds, _ := strconv.Atoi(os.Getenv("TORTURE_ROUNDS"))
	seed, err := strconv.ParseUint(os.Getenv("TORTURE_SEED"), 10, 64)
	if err != nil {
		seed = rand.Uint64N(1e9)
	}
	dir, err := os.MkdirTemp("", "torture-")
	if err != nil {
		t.Fatal(err)
	}
	say("torture: %d rounds, SEED=%d, in %s", max(rounds, 1), seed, dir)
	w := &torture{T: t, seed: seed, base: dir, kinds: map[string]int{}}
	t.Cleanup(func() {
		if t.Failed() {
			say("torture: violated in round %d; again with SEED=%d; what is left is in %s", w.round, seed, w.dir)
			return
		}
		w.unmount()
		os.RemoveAll(dir)
	})
	begin := time.Now()
	for w.round = 1; w.round <= max(rounds, 1); w.round++ {
		w.Rand = rand.New(rand.NewPCG(seed, uint64(w.round)))
		w.run()
	}
	w.end()
	say("torture: %d rounds in %s: %v; %d processes killed, %d sessions, %d frames on record, %d MiB received by clients and %d by servers",
		w.round-1, time.Since(begin).Round(time.Second), w.kinds, w.kills, w.sessions, w.frames, w.clientBytes>>20, w.serverBytes>>20)
}

// say tells whoever waits; a test's own log comes at its end.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// A torture is an installation and what becomes of it.
type torture struct {
	*testing.T
	*rand.Rand
	seed      uint64
	base, dir string
	round     int
	kinds     map[string]int
	mounted   []string

	broker *testBroker // nil: it does not run
	agent  *process
	port   int

	calls                    int
	kills, sessions          int
	frames                   int64
	clientBytes, serverBytes int64
}

var tortures = []struct {
	kind   string
	weight int
	run    func(*torture) string
}{
	{"kill broker", 7, func(w *torture) string { return w.kill(true, false) }},
	{"kill agent", 3, func(w *torture) string { return w.kill(false, true) }},
	{"kill both", 4, func(w *torture) string { return w.kill(true, true) }},
	{"full disk", 1, (*torture).fullDisk},
	{"write errors", 1, (*torture).writeErrors},
	{"clock", 2, (*torture).clock},
	{"damage", 3, (*torture).damage},
}

// perFolder is how many rounds a data folder lives.
const perFolder = 10

func (w *torture) run() {
	var kinds []int
	for i, k := range tortures {
		if only := os.Getenv("TORTURE_KIND"); only == "" || only == k.kind {
			kinds = append(kinds, slices.Repeat([]int{i}, k.weight)...)
		}
	}
	k := tortures[kinds[w.IntN(len(kinds))]]
	if w.round%perFolder == 1 || k.kind == "full disk" || w.dir == "" {
		size := ""
		if k.kind == "full disk" {
			size = "240m"
		}
		w.install(size)
	}
	begin := time.Now()
	what := k.run(w)
	if k.kind == "full disk" {
		w.end()
		w.dir = ""
	}
	w.kinds[k.kind]++
	say("torture: round %d: %s: %s (%.1fs)", w.round, k.kind, what, time.Since(begin).Seconds())
}

// install makes a new installation; on a disk of that size, if one is given.
func (w *torture) install(size string) {
	w.end()
	if w.dir != "" {
		w.unmount()
		os.RemoveAll(w.dir)
	}
	w.dir = filepath.Join(w.base, fmt.Sprint(w.round))
	w.must(os.MkdirAll(filepath.Join(w.dir, "received"), 0o700))
	w.must(os.MkdirAll(filepath.Join(w.dir, "data"), 0o700))
	if size != "" {
		data := filepath.Join(w.dir, "data")
		if err := syscall.Mount("tmpfs", data, "tmpfs", 0, "mode=0700,size="+size); err == nil {
			w.mounted = append(w.mounted, data)
		}
	}
	w.must(os.WriteFile(filepath.Join(w.dir, "clock"), make([]byte, 8), 0o600))
	w.port = freePort(w.T)
	w.serve()
	w.startAgentProcess(true)
	w.served()
}

func (w *torture) unmount() {
	for _, m := range w.mounted {
		syscall.Unmount(m, syscall.MNT_DETACH)
	}
	w.mounted = nil
}

func (w *torture) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

const tortureConfig = `listen: 127.0.0.1:%d
data: data
limits: {disk_free: 64MiB}
servers:
  near: {stdio: [torture-server, %[2]s/received]}
  far: {agent: far}
policy:
  - {name: all, groups: [analysts], servers: ["*"], access: allow, mask: [email]}
`

func (w *torture) start(args ...string) *process {
	p := &process{exec.Command("broker", args...), &logBuffer{}}
	p.cmd.Dir = w.dir
	p.cmd.Env = append(os.Environ(), "CLOCK="+filepath.Join(w.dir, "clock"))
	p.cmd.Stderr = p.log
	w.must(p.cmd.Start())
	w.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			p.cmd.Process.Kill()
			p.cmd.Wait()
		}
		if w.Failed() && (p == w.agent || w.broker != nil && p == w.broker.process) {
			say("broker %s:\n%s", strings.Join(args, " "), p.log)
		}
	})
	return p
}

// serve starts the broker and waits until it is up.
func (w *torture) serve() {
	w.must(os.WriteFile(filepath.Join(w.dir, "broker.yaml"), fmt.Appendf(nil, tortureConfig, w.port, w.dir), 0o600))
	w.broker = &testBroker{process: w.start("serve", "--drain", "1s"), dir: w.dir, addr: fmt.Sprintf("127.0.0.1:%d", w.port)}
	w.broker.waitFor(w.T, `msg="broker is up"`, 1)
}

func (w *torture) startAgentProcess(join bool) {
	if join {
		token, err := openTokens(filepath.Join(w.dir, "data")).Create("far", time.Hour)
		w.must(err)
		ca, err := identity.LoadCA(filepath.Join(w.dir, "data"))
		w.must(err)
		w.must(os.WriteFile(filepath.Join(w.dir, "agent.yaml"), fmt.Appendf(nil, "broker: %s\nname: far\ntoken: %s\nca: %s\nservers:\n  far: {stdio: [torture-server, %s/received]}\n",
			w.broker.addr, token, ca.Pin(), w.dir), 0o600))
	}
	w.agent = w.start("agent", "--config", filepath.Join(w.dir, "agent.yaml"))
}

// end ends what runs, in order.
func (w *torture) end() {
	for _, p := range []*process{w.agent, w.brokerProcess()} {
		if p != nil && p.cmd.ProcessState == nil {
			p.cmd.Process.Signal(syscall.SIGTERM)
			p.cmd.Wait()
		}
	}
	w.broker, w.agent = nil, nil
}

func (w *torture) brokerProcess() *process {
	if w.broker == nil {
		return nil
	}
	return w.broker.process
}

// loads opens some sessions.
func (w *torture) loads(ctx context.Context, heavy bool) []*load {
	all := make([]*load, 3+w.IntN(4))
	for i := range all {
		subject := fmt.Sprintf("client-%d-%d", w.round, i)
		server, transport := "near", "tls"
		if w.IntN(2) == 0 {
			server = "far"
		}
		if w.IntN(4) == 0 {
			transport = "quic"
		}
		all[i] = begin(ctx, w.broker, w.broker.issue(w.T, subject, "analysts"), subject, server, transport, w.Uint64(), heavy)
	}
	return all
}

func (w *torture) sleep(upTo time.Duration) { time.Sleep(time.Duration(w.Int64N(int64(upTo)))) }

// kill kills, at a random moment under load, and sometimes again while what was
// killed starts.
func (w *torture) kill(broker, agent bool) string {
	ctx, cancel := context.WithCancel(w.Context())
	defer cancel()
	loads := w.loads(ctx, false)
	w.sleep(900 * time.Millisecond)
	again := 0
	if broker && agent && w.IntN(2) == 0 {
		w.killProcess(w.agent)
		w.sleep(20 * time.Millisecond)
		w.killProcess(w.broker.process)
	} else {
		if broker {
			w.killProcess(w.broker.process)
			w.sleep(20 * time.Millisecond)
		}
		if agent {
			w.killProcess(w.agent)
		}
	}
	if broker {
		time.Sleep(50 * time.Millisecond) // what is under way arrives
		cancel()                          // QUIC does not tell of the other side's death
		for w.IntN(3) == 0 && again < 3 {
			p := w.start("serve")
			w.sleep(300 * time.Millisecond)
			w.killProcess(p)
			again++
		}
	}
	if agent {
		w.startAgentProcess(false)
	}
	for _, l := range loads {
		if !broker && l.server == "near" {
			l.bye()
		}
	}
	w.wait(loads)
	if broker {
		if w.IntN(2) == 0 {
			w.verify(0)
		}
		w.serve()
	}
	n := w.check(loads, broker)
	w.verify(-1)
	w.served()
	return fmt.Sprintf("%s; killed again %d times while it started; verified, serves again", n, again)
}

func (w *torture) killProcess(p *process) {
	w.must(p.cmd.Process.Kill())
	p.cmd.Wait()
	w.kills++
}

// wait waits until no client and no server receives anything more.
func (w *torture) wait(loads []*load) {
	w.Helper()
	for _, l := range loads {
		select {
		case <-l.done:
		case <-time.After(60 * time.Second):
			w.Fatalf("the session of %s with %s does not end", l.subject, l.server)
		}
	}
	for _, name := range w.files() {
		f, err := os.Open(name)
		w.must(err)
		for deadline := time.Now().Add(60 * time.Second); syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				w.Fatalf("the server that writes %s does not end", name)
			}
		}
		f.Close()
	}
}

func (w *torture) files() []string {
	names, err := filepath.Glob(filepath.Join(w.dir, "received", "*"))
	w.must(err)
	return names
}

// command runs a command of the command line in this process, and returns what it
// writes to stdout.
func (w *torture) command(cmd *cobra.Command, args ...string) ([]byte, error) {
	var out bytes.Buffer
	cmd.SetArgs(append(args, "--data", filepath.Join(w.dir, "data")))
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.ExecuteContext(w.Context())
	return out.Bytes(), err
}

type sessionOnRecord struct {
	ID, Subject, State, Server string
	Start, End                 time.Time
	C2S, S2C                   struct{ Frames int64 }
}

// listed returns what is on record of the clients.
func (w *torture) listed() map[string]sessionOnRecord {
	w.Helper()
	out, err := w.command(sessions(), "--json", "-n", "0")
	w.must(err)
	all := map[string]sessionOnRecord{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var s sessionOnRecord
		if err := d.Decode(&s); err == io.EOF {
			return all
		} else if err != nil {
			w.Fatal(err)
		}
		if other, ok := all[s.Subject]; ok {
			w.Fatalf("%s has two sessions on record: %s and %s", s.Subject, other.ID, s.ID)
		}
		all[s.Subject] = s
	}
}

func (w *torture) replay(id, direction string) []byte {
	w.Helper()
	out, err := w.command(replay(), "--raw", "--direction", direction, id)
	if err != nil {
		w.Fatalf("replay of session %s: %v", id, err)
	}
	return out
}

// check holds what was received against what is on record.
func (w *torture) check(loads []*load, died bool) string {
	w.Helper()
	servers := map[string][]byte{} // by the client's subject
	for _, name := range w.files() {
		b, err := os.ReadFile(name)
		w.must(err)
		if _, rest, ok := bytes.Cut(b, []byte(`"name":"`)); ok {
			subject, _, _ := bytes.Cut(rest, []byte(`"`))
			servers[string(subject)] = b
		} else if bytes.IndexByte(b, '\n') >= 0 {
			w.Fatalf("%s begins with what no client has sent", name)
		}
		os.Remove(name)
	}
	all := w.listed()
	frames, n := int64(0), 0
	for _, l := range loads {
		got, server := l.got(), servers[l.subject]
		s, ok := all[l.subject]
		if !ok {
			if len(server) > 0 || !unrecorded(got) {
				w.Fatalf("%s and its server have received %d and %d bytes, and nothing is on record: %.500q", l.subject, len(got), len(server), got)
			}
			continue
		}
		n++
		frames += s.C2S.Frames + s.S2C.Frames
		w.clientBytes += int64(len(got))
		w.serverBytes += int64(len(server))
		got, refused := withoutRefusals(got)
		for direction, received := range map[string][]byte{"s2c": got, "c2s": server} {
			record := w.replay(s.ID, direction)
			if direction == "s2c" && refused && len(received) == len(record)+1 {
				received = bytes.TrimSuffix(received, []byte("\n")) // that ends a frame which is cut
			}
			os.WriteFile(filepath.Join(w.dir, "received."+direction), received, 0o600)
			os.WriteFile(filepath.Join(w.dir, "replayed."+direction), record, 0o600)
			if !bytes.HasPrefix(record, received) {
				w.Fatalf("session %s of %s: %d bytes of %s were received, and they are no prefix of the %d on record (received.%[4]s, replayed.%[4]s)", s.ID, l.subject, len(received), direction, len(record))
			}
			if !died && direction == "s2c" && l.err == nil && len(record) != len(received) {
				w.Fatalf("session %s of %s: %d bytes of %s are on record, and only %d were received until its end in order", s.ID, l.subject, len(record), direction, len(received))
			}
		}
		switch {
		case s.State == "open":
			// A client that closes is noticed by the broker in its own time.
			if died {
				w.Fatalf("session %s is open, and the broker that carried it is dead", s.ID)
			}
		case s.End.Before(s.Start):
			w.Fatalf("session %s ends before it starts", s.ID)
		}
	}
	w.sessions += n
	w.frames += frames
	return fmt.Sprintf("%d sessions with %d frames: what was received is a prefix of what is on record", n, frames)
}

// unrecorded reports whether a client was told nothing but what is told without a record:
// that it is not signed in, as one is whose certificate does not hold at the time of a
// clock that was set; or that no session can begin, because the broker shuts down or its
// recorder is not available. Such an answer names no session.
func unrecorded(got []byte) bool {
	for line := range bytes.Lines(got) {
		var answer struct {
			Result json.RawMessage
			Error  struct {
				Code    int
				Message string
				Data    struct{ Session string }
			}
		}
		if json.Unmarshal(line, &answer) != nil || answer.Result != nil || answer.Error.Data.Session != "" {
			return false
		}
		switch e := answer.Error; {
		case e.Code == broker.CodeNotSignedIn:
		case e.Code == broker.CodeUnavailable && (e.Message == broker.ErrDraining.Reason || strings.HasPrefix(e.Message, noRecorder)):
		default:
			return false
		}
	}
	return true
}

// noRecorder begins what is told where nothing can be recorded.
const noRecorder = "the recorder is not available"

// TestUnrecorded holds the law of what may leave no recording against what must.
func TestUnrecorded(t *testing.T) {
	for _, tt := range []struct {
		name, got string
		want      bool
	}{
		{"nothing", "", true},
		{"not signed in", `{"jsonrpc":"2.0","id":0,"error":{"code":401,"message":"not signed in: x"}}` + "\n", true},
		{"shutting down, twice", strings.Repeat(`{"jsonrpc":"2.0","id":0,"error":{"code":503,"message":"the broker is shutting down; try again"}}`+"\n", 2), true},
		{"no recorder", `{"jsonrpc":"2.0","id":0,"error":{"code":503,"message":"the recorder is not available, so nothing may pass; try again later"}}`, true},
		{"of a session", `{"jsonrpc":"2.0","id":0,"error":{"code":503,"message":"the broker is shutting down; try again","data":{"session":"06h1e89qqaxmyh2r"}}}`, false},
		{"no agent", `{"jsonrpc":"2.0","id":0,"error":{"code":503,"message":"no agent"}}`, false},
		{"denied", `{"jsonrpc":"2.0","id":0,"error":{"code":403,"message":"x"}}`, false},
		{"an answer", `{"jsonrpc":"2.0","id":0,"result":{}}`, false},
		{"half a frame", `{"jsonrpc":"2.0","id":0,"error":{"code":401`, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := unrecorded([]byte(tt.got)); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// withoutRefusals leaves out how the broker says at the end that it cannot record: that,
// and the end of the line before it, is alone not on record.
func withoutRefusals(got []byte) ([]byte, bool) {
	i := bytes.Index(got, []byte(`"error":{"code":503,"message":"`+noRecorder))
	if i < 0 {
		return got, false
	}
	return got[:bytes.LastIndexByte(got[:i], '\n')+1], true
}

// verify runs broker verify, which must find nothing; running is how many
// sessions may run, -1 for any number.
func (w *torture) verify(running int) {
	w.Helper()
	out, err := w.output("verify", "--json", "--data", "data")
	var r struct {
		Running int
		Faults  []json.RawMessage
	}
	if err != nil || json.Unmarshal(out, &r) != nil || len(r.Faults) > 0 || running >= 0 && r.Running != running {
		w.Fatalf("broker verify: %v\n%s", err, out)
	}
}

// output runs a command in a process of its own. Its error has what was written to
// stderr.
func (w *torture) output(args ...string) ([]byte, error) {
	cmd := exec.Command("broker", args...)
	cmd.Dir = w.dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if s := stderr.String(); strings.Contains(s, "panic:") || strings.Contains(s, "goroutine ") || err != nil && cmd.ProcessState.ExitCode() != 1 {
		w.Fatalf("broker %s: %v\n%s", strings.Join(args, " "), err, s)
	}
	if err != nil {
		err = fmt.Errorf("%w: %s", err, &stderr)
	}
	return out, err
}

// served waits until both servers answer a call.
func (w *torture) served() {
	w.Helper()
	for i, server := range []string{"near", "far"} {
		subject := fmt.Sprintf("caller-%d-%d", w.round, i)
		why := ""
		for deadline := time.Now().Add(60 * time.Second); ; {
			w.calls++
			if why = w.call(fmt.Sprintf("%s-%d", subject, w.calls), server); why == "" {
				break
			}
			if time.Now().After(deadline) {
				w.Fatalf("%s does not answer any more: %s", server, why)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// call makes one call, and returns why it has no answer, or "".
func (w *torture) call(subject, server string) string {
	ctx, cancel := context.WithTimeout(w.Context(), 10*time.Second)
	defer cancel()
	l := &load{subject: subject, server: server}
	cert, roots, err := identity.ReadBundle(w.broker.issue(w.T, subject, "analysts"))
	w.must(err)
	if l.conn, err = dials["tls"](ctx, w.broker.addr, clientTLS(server, "127.0.0.1", cert, roots)); err != nil {
		return err.Error()
	}
	defer l.conn.Close()
	stop := context.AfterFunc(ctx, func() { l.conn.Close() })
	defer stop()
	l.write(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"` + subject + `"}}` + "\n")
	l.conn.CloseWrite()
	got, _ := io.ReadAll(l.conn)
	if !bytes.Contains(got, []byte(`"id":1,"result"`)) {
		return fmt.Sprintf("%.300q", got)
	}
	return ""
}

// fullDisk fills the disk under load: until the broker refuses, or wholly and at
// once, which may end it.
func (w *torture) fullDisk() string {
	if len(w.mounted) == 0 {
		return "skipped: a small disk cannot be mounted here"
	}
	ctx, cancel := context.WithCancel(w.Context())
	defer cancel()
	loads := w.loads(ctx, false)
	w.sleep(600 * time.Millisecond)
	ballast := filepath.Join(w.dir, "data", "ballast")
	f, err := os.Create(ballast)
	w.must(err)
	var st unix.Statfs_t
	w.must(unix.Statfs(ballast, &st))
	free := int64(st.Bavail) * st.Bsize
	brutal := w.IntN(2) == 0
	left := int64(32 << 20) // half of what must stay free
	if brutal {
		left = 0
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, free-left); err != nil && !brutal {
		w.Fatal(err)
	}
	f.Close()
	how, told := "", 0
	if !brutal {
		for _, l := range loads {
			select {
			case <-l.done:
			case <-time.After(30 * time.Second):
				w.Fatalf("the disk is full, and the session of %s goes on", l.subject)
			}
			if _, refused := withoutRefusals(l.got()); refused {
				told++
			}
		}
		if why := w.call(fmt.Sprintf("full-%d", w.round), "near"); !strings.Contains(why, `\"code\":503`) {
			w.Fatalf("a new session on a full disk: %q", why)
		}
		if err := syscall.Kill(w.broker.cmd.Process.Pid, 0); err != nil {
			w.Fatalf("the broker has died of a full disk: %v", err)
		}
		how = fmt.Sprintf("all ended, %d that waited for an answer were told 503, and new ones; the broker lived", told)
	} else {
		w.sleep(time.Second)
		how = "no byte was left"
	}
	w.must(os.Remove(ballast))
	died := false
	if brutal {
		w.killProcess(w.broker.process)
		died = true
		cancel()
	}
	w.wait(loads)
	if died {
		w.verify(-1) // what runs, it cannot mark on so small a disk
		w.serve()
	}
	w.served()
	n := w.check(loads, died)
	w.verify(-1)
	return n + "; " + how + ", and serves again with room"
}

// writeErrors makes the kernel refuse the broker's writes to files beyond a size: no
// new file of the log can be made, and no table written.
func (w *torture) writeErrors() string {
	ctx, cancel := context.WithCancel(w.Context())
	defer cancel()
	pid := w.broker.cmd.Process.Pid
	limit := unix.Rlimit{Cur: 64 << 10, Max: unix.RLIM_INFINITY}
	w.must(unix.Prlimit(pid, unix.RLIMIT_FSIZE, &limit, nil))
	loads := w.loads(ctx, true)
	for _, l := range loads {
		select {
		case <-l.done:
		case <-time.After(120 * time.Second):
			w.Fatalf("files cannot be written, and the session of %s goes on", l.subject)
		}
	}
	ended := 0
	for _, l := range loads {
		if bytes.Contains(l.got(), []byte(`"code":503`)) {
			ended++
		}
	}
	named := strings.Contains(w.broker.log.String(), "sessions cannot be recorded; they end, and new ones are refused")
	if !named {
		w.Fatal("files cannot be written, and the broker does not say so")
	}
	if err := syscall.Kill(pid, 0); err != nil || w.call(fmt.Sprintf("broken-%d", w.round), "near") == "" {
		w.Fatalf("files cannot be written: the broker has died (%v), or serves", err)
	}
	limit.Cur = unix.RLIM_INFINITY
	w.must(unix.Prlimit(pid, unix.RLIMIT_FSIZE, &limit, nil))
	again := "served again by itself"
	if w.call(fmt.Sprintf("again-%d", w.round), "near") != "" {
		again = "served again after a restart"
	}
	w.killProcess(w.broker.process)
	cancel()
	w.wait(loads)
	w.verify(0)
	w.serve()
	n := w.check(loads, true)
	w.served()
	return fmt.Sprintf("%s; %d of %d ended with 503, named, %s", n, ended, len(loads), again)
}

// setClock sets the clock of all processes off by so much.
func (w *torture) setClock(by time.Duration) {
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], uint64(int64(by/time.Second)))
	f, err := os.OpenFile(filepath.Join(w.dir, "clock"), os.O_WRONLY, 0)
	w.must(err)
	_, err = f.WriteAt(b[:], 0) // truncated, it would be gone for a moment
	w.must(errors.Join(err, f.Close()))
}

// clock sets the wall clock of broker, agent and servers forth by hours and back by
// days, under load.
func (w *torture) clock() string {
	if os.Getenv("TORTURE_CLOCK") == "" {
		return "skipped: the binary's clock cannot be set"
	}
	ctx, cancel := context.WithCancel(w.Context())
	defer cancel()
	loads := w.loads(ctx, false)
	jumps := 2 + w.IntN(6)
	for range jumps {
		w.sleep(200 * time.Millisecond)
		by := w.Int64N(int64(5 * time.Hour))
		if w.IntN(2) == 0 {
			by = -w.Int64N(int64(6 * 24 * time.Hour))
		}
		w.setClock(time.Duration(by))
	}
	w.sleep(200 * time.Millisecond)
	died := w.IntN(2) == 0
	if died {
		w.killProcess(w.broker.process)
		time.Sleep(50 * time.Millisecond)
		cancel()
		if w.IntN(2) == 0 {
			w.setClock(0)
		}
		w.wait(loads)
		w.verify(0)
		w.serve()
	} else {
		for _, l := range loads {
			l.bye()
		}
		w.wait(loads)
	}
	n := w.check(loads, died)
	all := w.listed()
	for _, l := range loads {
		s, ok := all[l.subject]
		if !ok {
			continue
		}
		out, err := w.command(exportCommand(), s.ID, "--format", "ndjson")
		w.must(err)
		times := map[int64]time.Time{} // by the number, for a long frame comes where it ends
		for d := json.NewDecoder(bytes.NewReader(out)); ; {
			var f struct {
				N    int64
				Time time.Time
			}
			if err := d.Decode(&f); err == io.EOF {
				break
			} else if err != nil {
				w.Fatal(err)
			}
			if _, ok := times[f.N]; !ok {
				times[f.N] = f.Time
			}
		}
		last := s.Start
		for _, n := range slices.Sorted(maps.Keys(times)) {
			if since := times[n].Sub(last); since < 0 || since > time.Minute {
				w.Fatalf("session %s: frame %d is of %s, %s behind the one before", s.ID, n, times[n], since)
			}
			last = times[n]
		}
		if s.State != "open" && (s.End.Before(last) || s.End.Sub(last) > 5*time.Minute) {
			w.Fatalf("session %s ends at %s, its last frame is of %s", s.ID, s.End, last)
		}
	}
	w.setClock(0)
	w.served()
	w.verify(-1)
	return fmt.Sprintf("%s; %d jumps of the clock: times go on, End is behind Start", n, jumps)
}
