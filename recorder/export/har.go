package export

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// HAR 1.2, http://www.softwareishard.com/blog/har-12-spec/. Its members are
// required but for comments.
type (
	harEntry struct {
		Started  string      `json:"startedDateTime"`
		Time     float64     `json:"time"` // ms
		Request  harRequest  `json:"request"`
		Response harResponse `json:"response"`
		Cache    struct{}    `json:"cache"`
		Timings  harTimings  `json:"timings"`
		Comment  string      `json:"comment"`
	}
	harRequest struct {
		Method      string   `json:"method"`
		URL         string   `json:"url"`
		HTTPVersion string   `json:"httpVersion"`
		Cookies     []string `json:"cookies"`
		Headers     []string `json:"headers"`
		QueryString []string `json:"queryString"`
		PostData    *harPost `json:"postData,omitempty"`
		HeadersSize int      `json:"headersSize"` // -1: not known
		BodySize    int64    `json:"bodySize"`
	}
	harPost struct {
		MimeType string   `json:"mimeType"`
		Params   []string `json:"params"`
		Text     string   `json:"text"`
		Comment  string   `json:"comment,omitempty"`
	}
	harResponse struct {
		Status      int        `json:"status"`
		StatusText  string     `json:"statusText"`
		HTTPVersion string     `json:"httpVersion"`
		Cookies     []string   `json:"cookies"`
		Headers     []string   `json:"headers"`
		Content     harContent `json:"content"`
		RedirectURL string     `json:"redirectURL"`
		HeadersSize int        `json:"headersSize"`
		BodySize    int64      `json:"bodySize"`
	}
	harContent struct {
		Size     int64  `json:"size"`
		MimeType string `json:"mimeType"`
		Text     string `json:"text,omitempty"`
		Comment  string `json:"comment,omitempty"`
	}
	harTimings struct {
		Send    float64 `json:"send"`
		Wait    float64 `json:"wait"`
		Receive float64 `json:"receive"`
	}
)

// Bounds, in bytes: of a frame's text, and of requests that wait for an answer.
const (
	harText = 1 << 20
	harHeld = 32 << 20
)

const harComment = "Made from frames: methods, addresses, statuses and types are what MCP over HTTP says they are, not what was on record. Headers are not on record."

type har struct {
	joiner
	w       *bufio.Writer
	url     string
	version string
	entries int
	parser  codec.Parser
	waiting []harWaiting // for their answers; the oldest first
	held    int
}

type harWaiting struct {
	id    string
	entry *harEntry
	from  time.Time
}

func newHAR(w *bufio.Writer) writer {
	x := &har{w: w}
	x.joiner = joiner{limit: harText, next: x.frame}
	return x
}

func (x *har) begin(s recorder.Session) error {
	version, ok := map[string]string{"http/1.1": "HTTP/1.1", "h2": "HTTP/2", "h3": "HTTP/3"}[s.Transport]
	if !ok {
		return fmt.Errorf("%w: har is for sessions by HTTP, and this one is by %s", ErrFormat, s.Transport)
	}
	x.version = version
	x.url = "https://broker.invalid/" + s.Server + "/mcp" // its name is not on record
	head, err := json.Marshal(map[string]any{
		"version": "1.2", "creator": map[string]string{"name": "broker export", "version": "1"},
		"comment": about(s) + ". " + harComment,
	})
	if err != nil {
		return err
	}
	x.w.WriteString(`{"log":`)
	x.w.Write(head[:len(head)-1])
	_, err = x.w.WriteString(`,"entries":[`)
	return err
}

func (x *har) frame(f *frame) error {
	kind, id := x.kind(f)
	text, note := harBody(f)
	switch {
	case f.direction == codec.C2S && (kind == codec.Request || f.verdict == recorder.Blocked):
		e := x.entry(f, "POST", text, note)
		x.waiting = append(x.waiting, harWaiting{id, e, f.last})
		x.held += len(text)
		for x.held > harHeld {
			if err := x.answer(0, nil); err != nil {
				return err
			}
		}
		return nil
	case f.direction == codec.C2S:
		e := x.entry(f, "POST", text, note)
		e.Response.Status, e.Response.StatusText = 202, "Accepted"
		return x.write(e)
	case kind == codec.Response && f.verdict != recorder.Blocked:
		for i := range x.waiting {
			if x.waiting[i].id == id {
				return x.answer(i, f)
			}
		}
	}
	// Nothing on record says in which response, or on which stream of events.
	e := x.entry(f, "GET", "", "")
	e.Request.PostData, e.Request.BodySize = nil, 0
	if f.verdict != recorder.Blocked {
		e.Response.Status, e.Response.StatusText = 200, "OK"
	}
	e.Response.BodySize = -1
	e.Response.Content = harContent{Size: f.size, MimeType: "text/event-stream", Text: text, Comment: note}
	e.Comment += "; in which response it came is not on record"
	return x.write(e)
}

// kind returns what a frame is, and its id. Of a refused frame it is the id that
// the refusal names.
func (x *har) kind(f *frame) (codec.Kind, string) {
	if int64(len(f.bytes)) < f.size || f.more { // its id may stand at its end
		return codec.Notification, ""
	}
	frame, err := x.parser.Parse(f.bytes, f.direction)
	if err == nil {
		return frame.Kind, string(frame.ID)
	}
	var e *codec.Error
	if errors.As(err, &e) && e.ID != nil {
		return codec.Request, string(e.ID)
	}
	return codec.Request, "null"
}

// harBody returns the text of a frame, and what there is to say of it.
func harBody(f *frame) (text, note string) {
	b := f.bytes[:min(len(f.bytes), harText)]
	if int64(len(b)) < f.size {
		note = fmt.Sprintf("the first %d of %d bytes", len(b), f.size)
	}
	return strings.ToValidUTF8(string(b), "\ufffd"), note
}

func (x *har) entry(f *frame, method, text, note string) *harEntry {
	none := []string{}
	e := &harEntry{
		Started: f.time.UTC().Format(isoTime),
		Request: harRequest{
			Method: method, URL: x.url, HTTPVersion: x.version, Cookies: none, Headers: none, QueryString: none, HeadersSize: -1,
			PostData: &harPost{MimeType: "application/json", Params: none, Text: text, Comment: note}, BodySize: f.size,
		},
		Response: harResponse{HTTPVersion: x.version, Cookies: none, Headers: none, HeadersSize: -1, Content: harContent{MimeType: "x-unknown"}},
		Comment:  becameOf(f),
	}
	return e
}

// becameOf says what became of a frame.
func becameOf(f *frame) string {
	text := fmt.Sprintf("frame %d %s %s", f.n, f.direction, f.verdict)
	if found := detectors(f.findings); found != "" {
		text += ", findings: " + found
	}
	for _, n := range f.notes {
		text += "; " + noteText(n)
	}
	return text
}

// answer writes request i of those that wait, with its answer or without one.
func (x *har) answer(i int, f *frame) error {
	w := x.waiting[i]
	x.waiting = slices.Delete(x.waiting, i, i+1)
	x.held -= len(w.entry.Request.PostData.Text)
	if f == nil {
		w.entry.Comment += "; its answer is not on record"
		w.entry.Response.BodySize = -1
		return x.write(w.entry)
	}
	text, note := harBody(f)
	r := &w.entry.Response
	r.Status, r.StatusText, r.BodySize = 200, "OK", -1
	r.Content = harContent{Size: f.size, MimeType: "application/json", Text: text, Comment: note}
	ms := func(d time.Duration) float64 { return max(float64(d.Microseconds())/1000, 0) }
	w.entry.Timings = harTimings{Wait: ms(f.time.Sub(w.from)), Receive: ms(f.last.Sub(f.time))}
	w.entry.Time = w.entry.Timings.Wait + w.entry.Timings.Receive
	w.entry.Comment += "; " + becameOf(f)
	return x.write(w.entry)
}

func (x *har) write(e *harEntry) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if x.entries++; x.entries > 1 {
		x.w.WriteByte(',')
	}
	x.w.WriteByte('\n')
	_, err = x.w.Write(b)
	return err
}

func (x *har) end(recorder.Session) error {
	if err := x.joiner.end(); err != nil {
		return err
	}
	for len(x.waiting) > 0 {
		if err := x.answer(0, nil); err != nil {
			return err
		}
	}
	_, err := x.w.WriteString("\n]}}\n")
	return err
}
