package stream

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"
)

// asked is a request whose answer the test makes.
type asked struct {
	resp chan *http.Response
	quit context.CancelFunc
}

// ask makes a request in the background.
func (w *web) ask(t *testing.T, body string, headers ...string) asked {
	ctx, quit := context.WithCancel(t.Context())
	a := asked{make(chan *http.Response, 1), quit}
	go func() {
		resp, err := w.do(t, ctx, "POST", body, headers...)
		if err != nil {
			t.Error(err)
		}
		a.resp <- resp
	}()
	return a
}

// reads checks what comes next of a body.
func reads(t *testing.T, body io.Reader, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(body, b); err != nil || string(b) != want {
		t.Fatalf("%q, %v, want %q", b, err, want)
	}
}

const (
	callOne   = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}`
	partOne   = `{"jsonrpc":"2.0","id":1,"result":{"text":"some`
	partTwo   = ` more"}`
	whyItEnds = `{"jsonrpc":"2.0","id":1,"error":{"code":502,"message":"why"}}`
)

// begin makes a call, and returns the response once the first part of its answer has come.
func (s *webSession) begin(t *testing.T, w *web, headers ...string) *http.Response {
	t.Helper()
	a := w.ask(t, callOne, headers...)
	s.next(t)
	s.sayPart("1", partOne)
	resp := <-a.resp
	t.Cleanup(func() { resp.Body.Close() })
	reads(t, resp.Body, partOne)
	return resp
}

// TestHTTPParts checks that an answer which is written in parts leaves part by part, as
// JSON or as an event, and that what was cut is no answer.
func TestHTTPParts(t *testing.T) {
	h3 := &http3.Transport{TLSClientConfig: clientConfig("localhost")}
	defer h3.Close()
	h1 := &http.Transport{TLSClientConfig: clientConfig("localhost")}
	defer h1.CloseIdleConnections()
	h2 := &http.Transport{TLSClientConfig: clientConfig("localhost"), ForceAttemptHTTP2: true}
	defer h2.CloseIdleConnections()
	for protocol, transport := range map[string]http.RoundTripper{"h1": h1, "h2": h2, "h3": h3} {
		t.Run(protocol, func(t *testing.T) {
			w := newWeb(t, HTTPOptions{KeepAlive: 5 * time.Millisecond})
			w.client = &http.Client{Transport: transport}
			s, id := w.hello(t)
			version := []string{HeaderSession, id, HeaderVersion, "2025-11-25"}

			openStream := func(t *testing.T) *bufio.Reader {
				a := w.ask(t, callOne, version...)
				s.next(t)
				s.say(`{"jsonrpc":"2.0","method":"notifications/message","params":{"data":1}}`)
				resp := <-a.resp
				t.Cleanup(func() { resp.Body.Close() })
				in := bufio.NewReader(resp.Body)
				events(t, in, 2)
				return in
			}

			t.Run("json", func(t *testing.T) {
				resp := s.begin(t, w, version...)
				time.Sleep(20 * time.Millisecond) // nothing shows that it is there
				s.sayPart("1", partTwo)
				reads(t, resp.Body, partTwo)
				s.sayPart("1", "}\n")
				if rest, err := io.ReadAll(resp.Body); string(rest) != "}" || err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json" {
					t.Errorf("%d %v: the rest is %q, %v", resp.StatusCode, resp.Header, rest, err)
				}
			})
			t.Run("json, cut", func(t *testing.T) {
				resp := s.begin(t, w, version...)
				s.Cut()
				s.sayPart("1", "\n")
				s.say(whyItEnds)
				// HTTP/2 and 3 may drop what has not been read when a stream is reset.
				if rest, err := io.ReadAll(resp.Body); err == nil || len(rest) > 0 && string(rest) != "\n"+whyItEnds {
					t.Errorf("the rest is %q, %v", rest, err)
				}
			})
			t.Run("event", func(t *testing.T) {
				in := openStream(t)
				s.sayPart("1", partOne)
				for line := ""; !strings.HasPrefix(line, "event: "); {
					line, _ = in.ReadString('\n')
					if line == "" {
						t.Fatal("the stream has ended")
					}
				}
				reads(t, in, "data: "+partOne)
				time.Sleep(20 * time.Millisecond)
				s.sayPart("1", partTwo)
				reads(t, in, partTwo)
				s.sayPart("1", "}\n")
				if rest, err := io.ReadAll(in); string(rest) != "}\n\n" || err != nil {
					t.Errorf("the rest is %q, %v", rest, err)
				}
			})
			t.Run("event, cut", func(t *testing.T) {
				in := openStream(t)
				s.sayPart("1", partOne)
				s.Cut()
				s.sayPart("1", "\n")
				s.say(whyItEnds)
				b, err := io.ReadAll(in)
				_, text, _ := strings.Cut(string(b), "data: ")
				cut, why, _ := strings.Cut(text, "\n\n")
				if cut != partOne+"\nevent: cut" || !strings.HasSuffix(why, "event: message\ndata: "+whyItEnds+"\n\n") || err != nil {
					t.Errorf("the stream ends with %q, %v", b, err)
				}
			})
			t.Run("the session ends in its middle", func(t *testing.T) {
				body, headers := modern("7", "tools/call", `"name":"x",`)
				a := w.ask(t, body, append(headers, HeaderName, "x", "X-Who", protocol)...)
				shared := w.session(t)
				shared.next(t)
				shared.sayPart("7", partOne)
				resp := <-a.resp
				defer resp.Body.Close()
				reads(t, resp.Body, partOne)
				shared.Close()
				if rest, err := io.ReadAll(resp.Body); err == nil || len(rest) > 0 {
					t.Errorf("the rest is %q, %v", rest, err)
				}
			})
		})
	}
}

// TestHTTPPartsNot checks which answers are not written in parts.
func TestHTTPPartsNot(t *testing.T) {
	w := newWeb(t, HTTPOptions{})
	body, headers := modern("1", "tools/call", `"name":"x",`)
	headers = append(headers, HeaderName, "x")
	first := w.ask(t, body, headers...)
	s := w.session(t)
	s.next(t)
	second := w.ask(t, body, headers...) // goes by another id
	s.next(t)
	as := s.noted()[0].As
	for id, want := range map[string]bool{"1": true, string(as): false, "2": false} {
		if got := s.TakesParts([]byte(id)); got != want {
			t.Errorf("%s: %v", id, got)
		}
	}
	s.say(`{"jsonrpc":"2.0","id":1,"result":{}}`)
	s.say(`{"jsonrpc":"2.0","id":%s,"result":{}}`, as)
	for _, a := range []asked{first, second} {
		resp := <-a.resp
		if b, err := io.ReadAll(resp.Body); string(b) != `{"jsonrpc":"2.0","id":1,"result":{}}` || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		resp.Body.Close()
	}
}

// TestHTTPPartsResume checks that a client which was cut off in the middle of an answer
// gets it whole when it comes back, before its end or after, and though the session ends then.
func TestHTTPPartsResume(t *testing.T) {
	resumeParts(t, false)
	for range 10 {
		resumeParts(t, true)
	}
}

func resumeParts(t *testing.T, ends bool) {
	w := newWeb(t, HTTPOptions{})
	s, id := w.hello(t)
	version := []string{HeaderSession, id, HeaderVersion, "2025-11-25"}
	a := w.ask(t, callOne, version...)
	s.next(t)
	s.say(`{"jsonrpc":"2.0","method":"notifications/message","params":{"data":1}}`)
	resp := <-a.resp
	in := bufio.NewReader(resp.Body)
	ids, _ := events(t, in, 2)
	s.sayPart("1", partOne)
	in.ReadString('m') // of "some"
	a.quit()
	resp.Body.Close()
	waitFor(t, func() bool {
		s.HTTPConn.mu.Lock()
		defer s.HTTPConn.mu.Unlock()
		return s.streams[2].by == nil
	})
	back := append(version, HeaderEvent, ids[1])
	early, err := w.do(t, t.Context(), "GET", "", back...)
	if err != nil {
		t.Fatal(err)
	}
	defer early.Body.Close()
	waitFor(t, func() bool {
		s.HTTPConn.mu.Lock()
		defer s.HTTPConn.mu.Unlock()
		return s.streams[2].by != nil && s.streams[2].by.live
	})
	s.sayPart("1", partTwo)
	s.sayPart("1", "}\n")
	if ends {
		s.Close()
	}
	want := "data: " + partOne + partTwo + "}\n\n"
	if b, err := io.ReadAll(early.Body); err != nil || !strings.HasSuffix(string(b), want) || strings.Count(string(b), "data: ") != 1 {
		t.Errorf("who comes back before its end gets %q, %v", b, err)
	}
	if ends {
		return
	}
	if status, _, body := w.answer(t, "GET", "", back...); status != 200 || !strings.HasSuffix(body, want) || strings.Count(body, "data: ") != 1 {
		t.Errorf("and afterwards %d %q", status, body)
	}
}

// TestHTTPPartsSlow checks that others that share a session do not wait for a client that
// takes nothing of an answer in parts, as long as what waits for it is bounded.
func TestHTTPPartsSlow(t *testing.T) {
	const bound = 2 << 20
	w := newWeb(t, HTTPOptions{Body: bound, Stall: 3 * time.Second})
	body, headers := modern("1", "tools/call", `"name":"x",`)
	a := w.ask(t, body, append(headers, HeaderName, "x")...)
	s := w.session(t)
	s.next(t)
	s.sayPart("1", partOne)
	resp := <-a.resp
	defer resp.Body.Close()
	text := strings.Repeat("x", 64<<10)
	s.HTTPConn.mu.Lock()
	by := s.replies["1"].by
	s.HTTPConn.mu.Unlock()
	is := func(gone bool) bool {
		by.mu.Lock()
		defer by.mu.Unlock()
		if n := len(by.out) + by.writing; n > bound+len(text) {
			t.Fatalf("%d bytes wait", n)
		}
		return by.gone == gone
	}
	for range 5 << 20 / len(text) { // of which its HTTP/2 takes 4
		s.sayPart("1", text)
		if !is(false) {
			t.Fatal("the client was cut off")
		}
	}
	for range 1000 {
		s.sayPart("1", text)
		if is(true) {
			break
		}
	}
	if !is(true) {
		t.Error("the client was not cut off")
	}
	if rest, err := io.ReadAll(resp.Body); err == nil || strings.HasSuffix(string(rest), "}}") {
		t.Errorf("%d bytes come, and then %v", len(rest), err)
	}
}

// TestHTTPPartsPause checks that an answer may pause for longer than a client may stall.
func TestHTTPPartsPause(t *testing.T) {
	w := newWeb(t, HTTPOptions{Stall: 200 * time.Millisecond})
	s, id := w.hello(t)
	resp := s.begin(t, w, HeaderSession, id)
	time.Sleep(400 * time.Millisecond)
	s.sayPart("1", partTwo+"}\n")
	if rest, err := io.ReadAll(resp.Body); string(rest) != partTwo+"}" || err != nil {
		t.Errorf("the rest is %q, %v", rest, err)
	}
}

// TestHTTPPartsCancelled checks that the response to a request that its client cancels in the
// middle of the answer ends, and not in order.
func TestHTTPPartsCancelled(t *testing.T) {
	for _, inEvents := range []bool{false, true} {
		w := newWeb(t, HTTPOptions{})
		s, id := w.hello(t)
		version := []string{HeaderSession, id, HeaderVersion, "2025-11-25"}
		a := w.ask(t, callOne, version...)
		s.next(t)
		if inEvents {
			s.say(`{"jsonrpc":"2.0","method":"notifications/message","params":{"data":1}}`)
		}
		s.sayPart("1", partOne)
		resp := <-a.resp
		text := strings.Repeat("x", 64<<10)
		for range 8 << 20 / len(text) { // more than HTTP/2 takes
			s.sayPart("1", text)
		}
		w.answer(t, "POST", `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`, version...)
		s.next(t)
		s.sayPart("1", partTwo+"}\n")
		if b, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("in events: %v: %d bytes come in order, the last ones %q", inEvents, len(b), b[max(0, len(b)-40):])
		}
		resp.Body.Close()
	}
}

// TestHTTPPartsDrip checks that a client that takes a little now and then holds up whoever
// shares its session neither at first nor for long.
func TestHTTPPartsDrip(t *testing.T) {
	const bound = 4 << 20
	w := newWeb(t, HTTPOptions{Body: bound})
	body, headers := modern("1", "tools/call", `"name":"x",`)
	a := w.ask(t, body, append(headers, HeaderName, "x")...)
	s := w.session(t)
	s.next(t)
	s.sayPart("1", partOne)
	resp := <-a.resp
	defer resp.Body.Close()
	s.HTTPConn.mu.Lock()
	by := s.replies["1"].by
	s.HTTPConn.mu.Unlock()
	go func() {
		for b := make([]byte, 128<<10); ; time.Sleep(50 * time.Millisecond) {
			if _, err := io.ReadFull(resp.Body, b); err != nil {
				return
			}
		}
	}()
	text := strings.Repeat("x", 64<<10)
	for range 16 << 20 / len(text) { // longer than it is waited for, though never long at a time
		s.sayPart("1", text)
	}
	by.mu.Lock()
	defer by.mu.Unlock()
	if by.gone || len(by.out)+by.writing < bound/2 {
		t.Errorf("gone: %v, %d bytes wait for it", by.gone, len(by.out)+by.writing)
	}
}

// TestHTTPLongLine checks that a client which takes something all the time gets a long line,
// and what is behind it, though that takes longer than it may stall.
func TestHTTPLongLine(t *testing.T) {
	w := newWeb(t, HTTPOptions{Stall: time.Second})
	s, id := w.hello(t)
	a := w.ask(t, callOne, HeaderSession, id)
	s.next(t)
	note := `{"jsonrpc":"2.0","method":"notifications/message","params":{"data":%q}}`
	s.say(note, "first")
	resp := <-a.resp
	defer resp.Body.Close()
	go func() {
		s.say(note, strings.Repeat("x", 24<<20)) // of which HTTP/2 takes 4 at once
		s.say(note, "second")
		s.say(`{"jsonrpc":"2.0","id":1,"result":{}}`)
	}()
	var last []byte
	for b := make([]byte, 512<<10); ; time.Sleep(40 * time.Millisecond) {
		n, err := io.ReadFull(resp.Body, b)
		last = append(last[max(0, len(last)-500):], b[:n]...)
		if err != nil {
			if !strings.HasSuffix(string(last), `"result":{}}`+"\n\n") {
				t.Errorf("it ends with %.100q, %v", last[max(0, len(last)-100):], err)
			}
			break
		}
	}
}
