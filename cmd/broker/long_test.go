package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"example.com/broker/recorder"
	"example.com/broker/stream"
)

// A longServer answers each request with a response of about size bytes, in
// which there is an address now and then. It waits in the middle until the
// client has something of it.
type longServer struct {
	net.Listener
	kind  string // "tcp"; or by HTTP, "json" or "sse"
	size  int
	first chan struct{}
	wrote chan []byte // the digest of what the client should get
}

const longHead, longTail = `{"jsonrpc":"2.0","result":{"content":[{"type":"text","text":"`, `"}]},"id":1}`

func startLong(t testing.TB, kind string, size int) *longServer {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &longServer{Listener: ln, kind: kind, size: size, first: make(chan struct{}), wrote: make(chan []byte, 1)}
	go s.serve()
	t.Cleanup(func() { ln.Close() })
	return s
}

// start runs a broker in front of it and, if it is an HTTP server, an agent beside it.
func (s *longServer) start(t *testing.T) (b *testBroker, both []*process) {
	policy := `policy:
  - {name: all, groups: [analysts], servers: [long], access: allow, mask: [secrets, email, credit_card, us_ssn, iban, phone], calls: [{deny: tool == "x"}]}
`
	if s.kind == "tcp" {
		b = startBroker(t, t.TempDir(), "servers:\n  long: {tcp: "+s.Addr().String()+"}\n"+policy)
		return b, []*process{b.process}
	}
	b = startBroker(t, t.TempDir(), "servers:\n  long: {agent: far}\n"+policy)
	return b, []*process{b.process, b.startAgent(t, "  long: {http: http://"+s.Addr().String()+"}\n")}
}

// ServeHTTP answers like serve.
func (s *longServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	request, _ := io.ReadAll(r.Body)
	if s.kind == "sse" {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "event: message\ndata: ")
		defer io.WriteString(w, "\n")
	} else {
		w.Header().Set("Content-Type", "application/json")
	}
	s.reply(w, string(request))
}

// reply writes the line that answers a request.
func (s *longServer) reply(w io.Writer, request string) {
	if strings.Contains(request, `"id":1,`) {
		s.answer(w)
		return
	}
	id := regexp.MustCompile(`"id":(\d+)`).FindStringSubmatch(request)
	if id == nil {
		return
	}
	noise := make([]byte, 8<<10)
	rand.Read(noise)
	fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":{"noise":"%x"}}`+"\n", id[1], noise)
}

func (s *longServer) serve() {
	if s.kind != "tcp" {
		http.Serve(s.Listener, s)
		return
	}
	for {
		c, err := s.Accept()
		if err != nil {
			return
		}
		in := bufio.NewReader(c)
		for {
			request, err := in.ReadString('\n')
			if err != nil {
				break
			}
			s.reply(c, request)
		}
		c.Close()
	}
}

func (s *longServer) answer(w io.Writer) {
	wrote := sha256.New()
	both := func(real, masked string) bool {
		io.WriteString(wrote, masked)
		_, err := io.WriteString(w, real)
		return err == nil
	}
	both(longHead, longHead)
	line := strings.Repeat(`The quick brown fox \"jumps\" over it.\n`, 1<<20/40)
	for n, waited := 0, false; n < s.size; n += len(line) {
		if !both(line, line) || !both(" ada@example.com ", " [masked:email] ") {
			return
		}
		if n > 4<<20 && !waited {
			waited = true
			<-s.first
		}
	}
	if both(longTail+"\n", longTail+"\n") {
		s.wrote <- wrote.Sum(nil)
	}
}

// heaps returns what the collector of a process has found in use each time, in
// MiB, if GODEBUG has gctrace=1.
func (p *process) heaps() (live []int) {
	for _, m := range regexp.MustCompile(`(?m)^gc \d+ .* \d+->\d+->(\d+) MB`).FindAllStringSubmatch(p.log.String(), -1) {
		n, _ := strconv.Atoi(m[1])
		live = append(live, n)
	}
	return live
}

// A longClient makes calls, one after the other.
type longClient interface {
	// call returns the answer. It may have others in front of its end.
	call(t *testing.T, id int, name string) *bufio.Reader
	io.Closer
}

type longStream struct {
	*tapped
	in *bufio.Reader
}

func (c *longStream) call(_ *testing.T, id int, name string) *bufio.Reader {
	fmt.Fprintf(c.Conn, `{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":%q}}`+"\n", id, name)
	return c.in
}

func (c *longStream) Close() error { return c.Conn.Close() }

// A longURL is a session of the older era.
type longURL struct {
	http.RoundTripper
	url, session string
	body         io.Closer // of the last answer
}

func (c *longURL) do(method, body string) (*http.Response, error) {
	if c.body != nil {
		c.body.Close()
	}
	r, err := http.NewRequest(method, c.url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json, text/event-stream")
	if c.session != "" {
		r.Header.Set(stream.HeaderSession, c.session)
	}
	resp, err := c.RoundTrip(r)
	if err == nil {
		c.body = resp.Body
	}
	return resp, err
}

func (c *longURL) call(t *testing.T, id int, name string) *bufio.Reader {
	resp, err := c.do("POST", fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":%q}}`, id, name))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	}
	in := bufio.NewReaderSize(resp.Body, 1<<20)
	if resp.Header.Get("Content-Type") == "application/json" {
		return in
	}
	for { // to the event's data
		if name, err := in.ReadString(' '); err != nil || strings.HasSuffix(name, "\ndata: ") {
			return in
		}
	}
}

// Close ends the session.
func (c *longURL) Close() error {
	_, err := c.do("DELETE", "")
	c.body.Close()
	return err
}

// longClient returns a client of that protocol, and how many answers it has had.
func (b *testBroker) longClient(t *testing.T, protocol string) (longClient, int) {
	if dial, ok := dials[protocol]; ok {
		c := b.dial(t, "long", dial)
		return &longStream{c, bufio.NewReaderSize(c.Conn, 1<<20)}, 0
	}
	c := &longURL{RoundTripper: b.client(t, protocol).RoundTripper, url: fmt.Sprintf("https://%s/long/mcp", b.addr)}
	resp, err := c.do("POST", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}`)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	}
	c.session = resp.Header.Get(stream.HeaderSession)
	return c, 1
}

// longAnswer has so many small responses and one of that size pass, checks it and its recording, and
// returns how much more memory broker and agent, whichever is more, had in use during the long
// one than usually before, in MiB; -1 if it is not known. A collection may find more, since
// what is allocated while it runs counts: two of a hundred do not count.
func longAnswer(t *testing.T, protocol, kind string, size, small int) (grown int) {
	server := startLong(t, kind, size)
	b, both := server.start(t)
	c, before := b.longClient(t, protocol)
	answer := func(id int, name, want string) {
		t.Helper()
		if line, err := c.call(t, id, name).ReadString('\n'); err != nil && err != io.EOF || !strings.Contains(line, want) {
			t.Fatal(line, err)
		}
	}
	answer(2, "x", `"code":403`)
	for i := range small {
		answer(1000+i, "y", `"noise"`)
	}
	var idle [2]int
	for i, p := range both {
		idle[i] = len(p.heaps())
	}
	got := sha256.New()
	in := c.call(t, 1, "y")
	for first := true; ; first = false {
		line, err := in.ReadSlice('\n')
		got.Write(line)
		if first && len(line) > 0 {
			close(server.first)
		}
		if err == io.EOF && before > 0 { // the end of a body in JSON
			got.Write([]byte("\n"))
			break
		}
		if err == nil {
			break
		}
		if err != bufio.ErrBufferFull {
			t.Fatal(err)
		}
	}
	grown = -1
	for i, p := range both { // before what comes behind the session's end: its index, and its large blocks
		heaps := p.heaps()
		usual, during := slices.Sorted(slices.Values(heaps[max(0, idle[i]-20):idle[i]])), slices.Sorted(slices.Values(heaps[idle[i]:]))
		if len(usual) > 0 && len(during) > 0 {
			most := during[(len(during)-1)*98/100]
			t.Logf("in use were %d MiB %d times before, and then usually %d, at most %d, %d times", usual[len(usual)/2], len(usual), during[len(during)/2], most, len(during))
			grown = max(grown, most-usual[len(usual)/2])
		}
	}
	wrote := <-server.wrote
	if !bytes.Equal(got.Sum(nil), wrote) {
		t.Error("the client got something else than what the server wrote, masked")
	}
	c.Close()
	b.waitFor(t, `msg="session ended"`, 1)

	src, err := recorder.OpenSource(b.dir + "/data")
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	for s, err := range src.Sessions(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		replayed := sha256.New()
		view, _ := viewOf("s2c", false)
		tail := &behind{w: replayed, lines: before + small + 1}
		if err := recorder.Replay(t.Context(), tail, src, s.ID, view); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(replayed.Sum(nil), wrote) {
			t.Error("what is on record is something else than what the client got")
		}
		if want := int64((size + 1<<20 - 1) / (1 << 20 / 40 * 39)); s.S2C.Frames != int64(before+small)+2 || s.Masked != 1 || s.Findings["email"] < want/2 {
			t.Errorf("on record are %+v", s)
		}
	}
	return grown
}

// behind passes on what comes behind so many lines.
type behind struct {
	w     io.Writer
	lines int
}

func (b *behind) Write(p []byte) (int, error) {
	n := len(p)
	for ; b.lines > 0; b.lines-- {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			return n, nil
		}
		p = p[i+1:]
	}
	b.w.Write(p)
	return n, nil
}

// TestLongAnswer checks that an answer passes while it arrives, masked, and is on
// record. What it costs in memory is for TestLongAnswerMemory, without the race
// detector's own.
func TestLongAnswer(t *testing.T) {
	for _, way := range [][2]string{{"tls", "tcp"}, {"http/1.1", "tcp"}, {"h2", "tcp"}, {"h3", "tcp"}, {"tls", "json"}, {"h2", "sse"}} {
		t.Run(strings.Join(way[:], " to "), func(t *testing.T) { longAnswer(t, way[0], way[1], 24<<20, 3) })
	}
}

// TestKillLong kills the broker in the middle of a long answer: what the client
// has of it can be replayed.
func TestKillLong(t *testing.T) {
	server := startLong(t, "tcp", 1<<30)
	close(server.first)
	for round, size := range []int{0, 3 << 20, 10<<20 + 17} {
		b, _ := server.start(t)
		c := b.dial(t, "long", dials["tls"])
		io.WriteString(c, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"y"}}`+"\n")
		if _, err := io.CopyN(io.Discard, c, int64(size)+1); err != nil {
			t.Fatal(err)
		}
		b.cmd.Process.Kill()
		b.cmd.Wait()
		io.Copy(io.Discard, c) // what was under way
		c.Conn.Close()
		got, _ := c.carried()
		if replay := b.replayed(t, "s2c", false); len(got) <= size || !bytes.HasPrefix(replay, got) || bytes.IndexByte(replay, '\n') >= 0 {
			t.Errorf("round %d: %d bytes were received, and they are no prefix of the %d on record, or those end in a newline", round, len(got), len(replay))
		}
		b.verify(t)
	}
}
