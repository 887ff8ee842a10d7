//go:build torture

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"example.com/broker/broker/identity"
	"example.com/broker/stream"
)

func init() { commands["torture-server"] = tortureServer }

// tortureServer is an MCP server that keeps what it receives in a file of its own in
// the folder of its argument, before it answers. The file is locked while it runs.
// It answers requests, with as much as they ask for, sends notifications back, and
// asks its client something now and then.
func tortureServer() {
	file, err := os.CreateTemp(os.Args[1], "received-")
	if err == nil {
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		panic(err)
	}
	in := bufio.NewReaderSize(io.TeeReader(os.Stdin, file), 64<<10)
	out := bufio.NewWriterSize(os.Stdout, 64<<10)
	for n := 0; ; n++ {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		id, size := wanted(line)
		switch {
		case strings.Contains(line, `"result"`):
		case id == "":
			out.WriteString(line)
		default:
			fmt.Fprintf(out, `{"jsonrpc":"2.0","id":%s,"result":{"content":[{"type":"text","text":"of ada@example.com: `, id)
			for ; size > 0; size -= 1 << 10 {
				out.WriteString(noise(1 << 10))
			}
			out.WriteString("\"}]}}\n")
		}
		if n%7 == 6 {
			fmt.Fprintf(out, `{"jsonrpc":"2.0","id":"s%d","method":"roots/list"}`+"\n", n)
		}
		if out.Flush() != nil {
			io.Copy(io.Discard, in) // what is received is on file all the same
			return
		}
	}
}

var wantedText = regexp.MustCompile(`"id":(\d+|"s\d+")(?:.*"size":(\d+))?`)

// wanted returns the id of a frame as it is written, and how long an answer it wants.
func wanted(line string) (id string, size int) {
	m := wantedText.FindStringSubmatch(line)
	if m == nil {
		return "", 0
	}
	fmt.Sscan(m[2], &size)
	return m[1], size
}

// noise is text of n bytes that hardly compresses.
func noise(n int) string {
	b := make([]byte, n*3/4)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return base64.StdEncoding.EncodeToString(b)
}

// A load is a client under way, in a session of its own.
type load struct {
	subject, server string
	heavy           bool // frames of 16 KiB

	conn    stream.Conn
	writing sync.Mutex
	done    chan struct{} // closed when nothing more is received

	mu       sync.Mutex
	received bytes.Buffer
	err      error // of the end; nil: in order
}

// begin opens a session and sends and receives until the connection ends.
func begin(ctx context.Context, b *testBroker, issued []byte, subject, server, transport string, seed uint64, heavy bool) *load {
	l := &load{subject: subject, server: server, heavy: heavy, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		cert, roots, err := identity.ReadBundle(issued)
		if err == nil {
			l.conn, err = dials[transport](ctx, b.addr, clientTLS(server, "127.0.0.1", cert, roots))
		}
		if err != nil {
			l.err = err
			return
		}
		defer l.conn.Close()
		stop := context.AfterFunc(ctx, func() { l.conn.Close() })
		defer stop()
		go l.send(rand.New(rand.NewPCG(seed, 1)))
		l.receive()
	}()
	return l
}

func (l *load) write(frame string) bool {
	l.writing.Lock()
	defer l.writing.Unlock()
	_, err := io.WriteString(l.conn, frame)
	return err == nil
}

// manySent is after how many frames a client slows down: all that it sends is kept.
const manySent = 3000

func (l *load) send(r *rand.Rand) {
	for n := 0; ; n++ {
		var frame string
		switch k := r.IntN(200); {
		case n == 0:
			frame = fmt.Sprintf(`{"jsonrpc":"2.0","id":0,"method":"tools/call","params":{"name":"%s","arguments":{}}}`, l.subject)
		case l.heavy:
			frame = fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"x","arguments":{"pad":"%s"}}}`, n, noise(16<<10))
		case k == 0: // in parts
			frame = fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"x","arguments":{"size":%d}}}`, n, 1<<20+r.IntN(2<<20))
		case k < 4: // two parsers could read it in two ways
			frame = fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"a","method":"b"}`, n)
		case k < 80:
			frame = fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/x","params":{"n":%d,"pad":"%s"}}`, n, strings.Repeat("y", r.IntN(3000)))
		default:
			frame = fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"x","arguments":{"size":%d}}}`, n, r.IntN(4)<<10)
		}
		if !l.write(frame + "\n") {
			return
		}
		if n > manySent {
			time.Sleep(20 * time.Millisecond)
		} else if r.IntN(3) == 0 {
			time.Sleep(time.Duration(r.IntN(3000)) * time.Microsecond)
		}
	}
}

// receive keeps what arrives, and answers what the server asks.
func (l *load) receive() {
	in := bufio.NewReaderSize(io.TeeReader(l.conn, locked{l}), 64<<10)
	for {
		line, err := in.ReadSlice('\n')
		switch {
		case err == bufio.ErrBufferFull: // a long answer
		case err != nil:
			if err != io.EOF {
				l.err = err
			}
			return
		case bytes.Contains(line, []byte(`"method":"roots/list"`)):
			id, _ := wanted(string(line))
			go l.write(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"result":{"roots":[]}}`+"\n", id))
		}
	}
}

type locked struct{ l *load }

func (w locked) Write(p []byte) (int, error) {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	return w.l.received.Write(p)
}

// got returns what the client has received so far.
func (l *load) got() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.received.Bytes())
}

// bye is the client's goodbye.
func (l *load) bye() {
	if l.conn != nil {
		l.conn.CloseWrite()
	}
}
