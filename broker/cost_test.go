package broker

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.com/broker/broker/agent"
	"example.com/broker/broker/identity"
	"example.com/broker/broker/policy"
	"example.com/broker/codec"
	"example.com/broker/codec/detect"
	"example.com/broker/recorder"
	"example.com/broker/stream"
)

// costPeer is set in the process that is the clients and the server of
// BenchmarkRecording: an address, a comma, and the path of a socket.
const costPeer = "BROKER_TEST_COST_PEER"

// costCalls is how many calls each of its sessions has: their frames are not enough for a
// block.
const costCalls = 400

// BenchmarkRecording measures what recording adds to the processor time of a broker
// that carries calls whose answers have 4 KB: TLS to 16 clients, policy, all detectors,
// a socket to the server. Clients and server are in another process, and so not in the
// figures. Sessions with recording and without take turns. Until they have all their answers,
// what is added is their appends, for none has enough for a block; blocks and index are made
// when they have ended.
func BenchmarkRecording(b *testing.B) {
	for name, parallel := range map[string]int{"one session": 1, "16 sessions": 16} {
		b.Run(name, func(b *testing.B) { benchmarkRecording(b, parallel) })
	}
}

func benchmarkRecording(b *testing.B, parallel int) {
	dir := b.TempDir()
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	ca, err := identity.OpenCA(dir)
	must(err)
	log, err := recorder.Open(recorder.Options{Dir: filepath.Join(dir, "log")})
	must(err)
	defer log.Close()
	rule := allowAll
	rule.Calls = []policy.CallRule{{Deny: `tool == "execute_sql" && args.sql.matches("(?i)\\b(drop|truncate)\\b")`, Reason: "no"}}
	rule.Masking.New = func() *codec.Masker {
		var all []detect.Detector
		for _, name := range detect.Names() {
			d, _ := detect.ByName(name)
			all = append(all, d)
		}
		return codec.NewMasker(detect.New(all...), nil)
	}
	p, err := policy.Compile([]policy.Rule{rule})
	must(err)
	socket := filepath.Join(dir, "server.sock")
	server := &agent.Socket{Network: "unix", Address: socket}
	broker := New(Options{
		CA: ca, Users: identity.NewVerifier(ca.Certificates()...), Policy: p, Log: log,
		Servers: map[string]Server{"on": {}, "off": {}}, Local: &agent.Agent{Servers: map[string]agent.Upstream{"on": server, "off": server}},
	})
	listener, err := stream.Listen("127.0.0.1:0", stream.Options{TLS: (&Keyring{CA: ca, Names: []string{"localhost"}}).Config()})
	must(err)
	var sessions sync.WaitGroup
	serve := func(ctx context.Context, c stream.Conn, p stream.Peer) {
		defer c.Close()
		a := &admission{identity: identity.Identity{Subject: "ada"}}
		a.server, _, _ = strings.Cut(p.ServerName, ".")
		a.terms = broker.policy.Load().Decide(a.identity, a.server)
		var rec Recording = unrecorded{}
		if a.server == "on" {
			var err error
			if rec, err = log.Start(recorder.Session{Subject: "ada", Server: a.server}); err != nil {
				b.Error(err)
				return
			}
		}
		in := &lineReader{Reader: codec.NewReader(c, codec.Limits{Frame: 1 << 20})}
		s := broker.newSession(recorder.NewID(), a, &client{Conn: c, peer: p}, in, rec, slog.New(slog.DiscardHandler))
		if err := s.reach(ctx, nil); err != nil {
			b.Error(err)
			return
		}
		if err := s.run(context.WithCancelCause(ctx)); err != nil {
			b.Error(err)
		}
		if err := rec.End(recorder.Ended, ""); err != nil {
			b.Error(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		listener.Serve(ctx, stream.Handlers{Session: func(ctx context.Context, c stream.Conn, p stream.Peer) {
			sessions.Add(1)
			defer sessions.Done()
			serve(ctx, c, p)
		}})
	})
	defer func() { cancel(); running.Wait() }()

	peer := exec.Command(os.Args[0], "-test.run=^TestCostPeer$")
	peer.Env = append(os.Environ(), costPeer+"="+listener.Addr().String()+","+socket)
	peer.Stderr = os.Stderr
	in, err := peer.StdinPipe()
	must(err)
	out, err := peer.StdoutPipe()
	must(err)
	must(peer.Start())
	defer peer.Wait()
	defer in.Close()
	answers := bufio.NewReader(out)
	if _, err := answers.ReadString('\n'); err != nil {
		b.Fatal(err)
	}
	// step has the clients do something, and returns the processor time of it.
	step := func(what string, done func()) time.Duration {
		before := processorTime()
		fmt.Fprintln(in, what)
		if _, err := answers.ReadString('\n'); err != nil {
			b.Fatal(err)
		}
		done()
		return processorTime() - before
	}
	calls := func(server string) time.Duration {
		return step(fmt.Sprint(server, " ", parallel), func() {})
	}
	end := func() time.Duration {
		return step("end", func() { sessions.Wait(); must(log.Settle(ctx)) })
	}
	for range 60_000 / (costCalls * parallel) { // then the journal's files have been others before, as they are for good
		calls("on")
		end()
	}
	var off, offEnd, on, onEnd time.Duration
	n := 0
	for b.Loop() {
		off += calls("off")
		offEnd += end()
		on += calls("on")
		onEnd += end()
		n += costCalls * parallel
	}
	b.ReportMetric(float64(off.Microseconds())/float64(n), "µs/call")
	b.ReportMetric(float64(on.Microseconds())/float64(n), "µs/recorded-call")
	b.ReportMetric(100*float64(on-off)/float64(off), "%appends")
	b.ReportMetric(100*float64(onEnd-offEnd)/float64(off), "%blocks-and-index")
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestCostPeer is no test: see costPeer.
func TestCostPeer(t *testing.T) {
	addr, socket, ok := strings.Cut(os.Getenv(costPeer), ",")
	if !ok {
		t.Skip("is for BenchmarkRecording")
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go beCostServer(c)
		}
	}()
	fmt.Println("ready")
	for {
		var server string
		var parallel int
		if n, _ := fmt.Fscanln(os.Stdin, &server, &parallel); n != 2 {
			return
		}
		var clients, ended sync.WaitGroup
		end := make(chan struct{})
		for range parallel {
			clients.Go(func() {
				c, err := stream.Dial(context.Background(), addr, &tls.Config{ServerName: server + ".localhost", InsecureSkipVerify: true})
				if err != nil {
					t.Error(err)
					return
				}
				r := bufio.NewReaderSize(c, 64<<10)
				for i := range costCalls {
					fmt.Fprintf(c, `{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"execute_sql","arguments":{"sql":"SELECT id, name FROM customers WHERE id > %d ORDER BY name LIMIT 20"}}}`+"\n", i, i)
					if line, err := r.ReadSlice('\n'); err != nil || len(line) < 3900 {
						t.Errorf("%.100q, %v", line, err)
						return
					}
				}
				ended.Go(func() {
					<-end
					defer c.Close()
					c.CloseWrite()
					io.Copy(io.Discard, r)
				})
			})
		}
		clients.Wait()
		fmt.Println("done")
		fmt.Fscanln(os.Stdin, &server)
		close(end)
		ended.Wait()
		fmt.Println("ended")
	}
}

// beCostServer answers each request with 4 KB of rows.
func beCostServer(c net.Conn) {
	defer c.Close()
	lines := bufio.NewScanner(c)
	var line []byte
	for n := 1; lines.Scan(); n++ {
		_, rest, _ := strings.Cut(lines.Text(), `"id":`)
		id, _, _ := strings.Cut(rest, ",")
		line = fmt.Appendf(line[:0], `{"jsonrpc":"2.0","id":%s,"result":{"content":[{"type":"text","text":"`, id)
		for row := 0; len(line) < 4000; row++ {
			line = fmt.Appendf(line, `{\"id\":%d,\"name\":\"Customer %x\",\"city\":\"Springfield\",\"since\":\"2019-0%d-1%d\",\"orders\":%d}\n`, n*100+row, n*7919*row, row%9+1, n%9, n*row%977)
		}
		line = append(line, `"}]}}`+"\n"...)
		if _, err := c.Write(line); err != nil {
			return
		}
	}
}
