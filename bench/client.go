package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"example.com/broker/bench/load"
	"example.com/broker/stream"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/tidwall/gjson"
)

// What is spoken to a target.
const (
	overTLS   = "tls"  // frames
	overQUIC  = "quic" // frames
	overHTTP1 = "http/1.1"
	overHTTP2 = "http/2"
	overHTTP3 = "http/3"
)

// An endpoint is where a target takes sessions.
type endpoint struct {
	addr string
	path string      // of the URL
	tls  *tls.Config // nil: without TLS
}

// A session is a client's connection to a target, initialized.
type session interface {
	// call makes n calls at once and waits for all answers. Over HTTP n is 1.
	call(ctx context.Context, r request, n int) (load.Answer, error)
	notify(ctx context.Context) error // that the client is initialized
	io.Closer
}

const initializeParams = `"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}`

var (
	initialize  = request{`{"jsonrpc":"2.0","id":`, "," + initializeParams}
	initialized = []byte(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
)

const (
	dialTime = 30 * time.Second // for a handshake and an initialization
	callTime = time.Minute      // for an answer
)

// dial opens a session. Its buffer is that large, in bytes.
func (e endpoint) dial(ctx context.Context, protocol string, buffer int) (session, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	var s session
	var err error
	switch protocol {
	case overTLS:
		s, err = e.dialTLS(ctx, buffer)
	case overQUIC:
		s, err = e.dialQUIC(ctx, buffer)
	case overHTTP1:
		s, err = e.dialHTTP1(ctx, buffer)
	case overHTTP2:
		s = e.newHTTP(&http.Transport{TLSClientConfig: e.tls.Clone(), ForceAttemptHTTP2: true})
	case overHTTP3:
		c := e.tls.Clone()
		c.NextProtos = nil // http3 sets it
		s = e.newHTTP(&http3.Transport{TLSClientConfig: c, QUICConfig: quicConfig})
	default:
		err = fmt.Errorf("protocol %q", protocol)
	}
	if err != nil {
		return nil, err
	}
	if _, err = s.call(ctx, initialize, 1); err == nil {
		err = s.notify(ctx)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("initialize over %s at %s: %w", protocol, e.addr, err)
	}
	return s, nil
}

// dialConn opens a connection, with TLS if the endpoint has it.
func (e endpoint) dialConn(ctx context.Context) (net.Conn, error) {
	if e.tls == nil {
		return new(net.Dialer).DialContext(ctx, "tcp", e.addr)
	}
	d := tls.Dialer{Config: e.tls}
	return d.DialContext(ctx, "tcp", e.addr)
}

func (e endpoint) dialTLS(ctx context.Context, buffer int) (session, error) {
	c, err := e.dialConn(ctx)
	if err != nil {
		return nil, err
	}
	return &lines{c: c, r: bufio.NewReaderSize(c, buffer), end: c.Close}, nil
}

func (e endpoint) dialQUIC(ctx context.Context, buffer int) (session, error) {
	c, err := quic.DialAddr(ctx, e.addr, e.tls, quicConfig)
	if err != nil {
		return nil, err
	}
	end := func() error { return c.CloseWithError(0, "") }
	s, err := c.OpenStreamSync(ctx)
	if err != nil {
		end()
		return nil, err
	}
	return &lines{c: s, r: bufio.NewReaderSize(s, buffer), end: end}, nil
}

// lines is a session of frames, one a line.
type lines struct {
	c interface {
		io.Writer
		SetDeadline(time.Time) error
	}
	r    *bufio.Reader
	end  func() error
	next int // id
	out  []byte
}

func (l *lines) Close() error { return l.end() }

func (l *lines) notify(context.Context) error {
	_, err := l.c.Write(append(initialized, '\n'))
	return err
}

func (l *lines) call(ctx context.Context, r request, n int) (load.Answer, error) {
	l.out = l.out[:0]
	first := l.next
	for range n {
		l.out = append(l.out, r.head...)
		l.out = strconv.AppendInt(l.out, int64(l.next), 10)
		l.out = append(append(l.out, r.tail...), '\n')
		l.next++
	}
	a := load.Answer{Calls: n}
	start := time.Now()
	l.c.SetDeadline(start.Add(callTime))
	if _, err := l.c.Write(l.out); err != nil {
		return a, err
	}
	for i := range n {
		size, at, err := l.answer(first + i)
		if err != nil {
			return a, err
		}
		if a.Bytes += size; i == 0 {
			a.First = at.Sub(start)
		}
	}
	return a, nil
}

// answer reads the answer to a call, and returns its size and when its first byte was here.
func (l *lines) answer(id int) (size int64, at time.Time, err error) {
	if _, err := l.r.Peek(1); err != nil {
		return 0, at, err
	}
	at = time.Now()
	part, err := l.r.ReadSlice('\n')
	if wrong := checkAnswer(part, id); wrong != nil {
		return 0, at, errors.Join(wrong, err)
	}
	for size = int64(len(part)); errors.Is(err, bufio.ErrBufferFull); size += int64(len(part)) {
		part, err = l.r.ReadSlice('\n')
	}
	return size, at, err
}

// checkAnswer looks at the beginning of an answer, or all of it.
func checkAnswer(text []byte, id int) error {
	var want [64]byte
	if bytes.HasPrefix(text, fmt.Appendf(want[:0], `{"jsonrpc":"2.0","id":%d,"result":`, id)) {
		return nil
	}
	// Others write the members in another order.
	fields := gjson.GetManyBytes(text, "id", "result")
	if fields[0].Raw == strconv.Itoa(id) && fields[1].Exists() {
		return nil
	}
	return fmt.Errorf("the answer to call %d is %.300q", id, text)
}

// http1 is a session over HTTP/1.1 on one connection. It is written by hand: net/http's
// client costs more than some servers, and what is measured is those.
type http1 struct {
	c       net.Conn
	r       *bufio.Reader
	head    string
	session string // header, once there is one
	next    int
	out     []byte
	body    bytes.Buffer
}

func (e endpoint) dialHTTP1(ctx context.Context, buffer int) (session, error) {
	if e.tls != nil {
		e.tls = e.tls.Clone()
		e.tls.NextProtos = []string{"http/1.1"}
	}
	c, err := e.dialConn(ctx)
	if err != nil {
		return nil, err
	}
	return &http1{c: c, r: bufio.NewReaderSize(c, buffer), head: "POST " + e.path + " HTTP/1.1\r\nHost: " + e.host() +
		"\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\n"}, nil
}

func (e endpoint) host() string {
	if e.tls == nil {
		return e.addr
	}
	_, port, _ := net.SplitHostPort(e.addr)
	return e.tls.ServerName + ":" + port
}

func (h *http1) Close() error { return h.c.Close() }

func (h *http1) notify(context.Context) error {
	_, err := h.post(initialized)
	return err
}

func (h *http1) call(ctx context.Context, r request, _ int) (load.Answer, error) {
	id := h.next
	h.next++
	start := time.Now()
	at, err := h.post([]byte(r.head + strconv.Itoa(id) + r.tail))
	if err != nil {
		return load.Answer{}, err
	}
	return load.Answer{Bytes: int64(h.body.Len()), First: at.Sub(start)}, checkBody(h.body.Bytes(), id)
}

// post sends a frame, and reads what is answered into the body.
func (h *http1) post(frame []byte) (first time.Time, err error) {
	h.c.SetDeadline(time.Now().Add(callTime))
	h.out = append(append(h.out[:0], h.head...), h.session...)
	h.out = fmt.Appendf(h.out, "Content-Length: %d\r\n\r\n", len(frame))
	h.out = append(h.out, frame...)
	if _, err := h.c.Write(h.out); err != nil {
		return first, err
	}
	resp, err := http.ReadResponse(h.r, nil)
	if err != nil {
		return first, err
	}
	defer resp.Body.Close()
	first, err = readBody(&h.body, resp)
	if id := resp.Header.Get(stream.HeaderSession); id != "" && h.session == "" {
		h.session = stream.HeaderSession + ": " + id + "\r\nMCP-Protocol-Version: 2025-11-25\r\n"
	}
	return first, err
}

// readBody reads an answer, and returns when its first byte was here.
func readBody(to *bytes.Buffer, resp *http.Response) (first time.Time, err error) {
	to.Reset()
	if _, err := io.CopyN(to, resp.Body, 1); err != nil && !errors.Is(err, io.EOF) {
		return first, err
	}
	first = time.Now()
	if _, err := to.ReadFrom(resp.Body); err != nil {
		return first, err
	}
	if resp.StatusCode >= 300 {
		return first, fmt.Errorf("%s: %.300q", resp.Status, to.Bytes())
	}
	return first, nil
}

// checkBody checks the answer to a call in a body, which is JSON or a stream of events.
func checkBody(body []byte, id int) error {
	if bytes.HasPrefix(body, []byte("{")) {
		return checkAnswer(body, id)
	}
	for line := range bytes.Lines(body) {
		if data, ok := bytes.CutPrefix(line, []byte("data:")); ok {
			data = bytes.TrimSpace(data)
			if len(data) > 0 && !gjson.GetBytes(data, "method").Exists() {
				return checkAnswer(data, id)
			}
		}
	}
	return fmt.Errorf("no answer to call %d in %.300q", id, body)
}

// web is a session over HTTP/2 or HTTP/3, by those who know them.
type web struct {
	client  *http.Client
	url     string
	host    string
	session string
	next    int
	body    bytes.Buffer
}

func (e endpoint) newHTTP(t http.RoundTripper) session {
	if t, ok := t.(*http.Transport); ok {
		t.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, e.addr)
		}
		t.MaxConnsPerHost = 1
	}
	return &web{client: &http.Client{Transport: t}, url: "https://" + e.addr + e.path, host: e.host()}
}

func (w *web) Close() error {
	if c, ok := w.client.Transport.(io.Closer); ok {
		return c.Close()
	}
	w.client.CloseIdleConnections()
	return nil
}

func (w *web) notify(ctx context.Context) error {
	_, err := w.post(ctx, string(initialized))
	return err
}

func (w *web) call(ctx context.Context, r request, _ int) (load.Answer, error) {
	id := w.next
	w.next++
	start := time.Now()
	at, err := w.post(ctx, r.head+strconv.Itoa(id)+r.tail)
	if err != nil {
		return load.Answer{}, err
	}
	return load.Answer{Bytes: int64(w.body.Len()), First: at.Sub(start)}, checkBody(w.body.Bytes(), id)
}

func (w *web) post(ctx context.Context, frame string) (first time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, strings.NewReader(frame))
	if err != nil {
		return first, err
	}
	req.Host = w.host
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	if w.session != "" {
		req.Header.Set(stream.HeaderSession, w.session)
		req.Header.Set("MCP-Protocol-Version", "2025-11-25")
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return first, err
	}
	defer resp.Body.Close()
	if id := resp.Header.Get(stream.HeaderSession); id != "" {
		w.session = id
	}
	return readBody(&w.body, resp)
}
