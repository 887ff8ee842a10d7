package export

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"example.com/broker/codec"
	"example.com/broker/recorder"
)

var start = time.Date(2026, 3, 4, 5, 6, 7, 123456789, time.UTC)

// record puts a session on record, its frames 1.000001001 s apart.
func record(t testing.TB, s recorder.Session, frames ...recorder.Frame) (src recorder.Source, session string) {
	t.Helper()
	l, err := recorder.Open(recorder.Options{Dir: filepath.Join(t.TempDir(), "log")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s.Start = start
	rec, err := l.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	for i := range frames {
		frames[i].Time = start.Add(time.Duration(i+1) * 1_000_001_001)
	}
	for chunk := range slices.Chunk(frames, 50) {
		if err := rec.Append(chunk...); err != nil {
			t.Fatal(err)
		}
	}
	if err := rec.EndAt(start.Add(time.Hour), recorder.Ended, "closed"); err != nil {
		t.Fatal(err)
	}
	return l, rec.ID()
}

func c2s(v recorder.Verdict, text string) recorder.Frame {
	return recorder.Frame{Direction: codec.C2S, Verdict: v, Bytes: []byte(text)}
}

func s2c(v recorder.Verdict, text string) recorder.Frame {
	return recorder.Frame{Direction: codec.S2C, Verdict: v, Bytes: []byte(text)}
}

func more(f recorder.Frame) recorder.Frame {
	f.More = true
	return f
}

func write(t testing.TB, src recorder.Source, session, format string) string {
	t.Helper()
	var out bytes.Buffer
	if err := Write(t.Context(), &out, src, session, format); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// replayed is what broker replay --direction writes.
func replayed(t testing.TB, src recorder.Source, session string, d codec.Direction) []byte {
	t.Helper()
	var out bytes.Buffer
	err := recorder.Replay(t.Context(), &out, src, session, recorder.View{Server: d == codec.C2S, Want: func(f recorder.Frame) bool {
		return f.Direction == d && f.Verdict != recorder.Blocked
	}})
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// talk has every verdict, frames of all lengths, and one in parts that frames of
// the other side come into the midst of.
func talk() []recorder.Frame {
	frames := []recorder.Frame{
		c2s(recorder.Delivered, `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}`),
		s2c(recorder.Delivered, `{"jsonrpc":"2.0","id":1,"result":{}}`+"\r"),
		c2s(recorder.Blocked, `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"drop"}}`),
		s2c(recorder.Answered, `{"jsonrpc":"2.0","id":2,"error":{"code":403,"message":"destructive"}}`),
		c2s(recorder.Blocked, "\x00\xff no JSON"),
		c2s(recorder.Delivered, `{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"read"}}`),
		s2c(recorder.Found, `[{"detector":"email","offset":7},{"detector":"email","offset":70},{"detector":"secrets","offset":9}]`),
		s2c(recorder.Masked, `{"jsonrpc":"2.0","id":3,"result":{"text":"[masked:email] ü"}}`),
		c2s(recorder.Delivered, `{"jsonrpc":"2.0","id":4,"method":"tools/call","params":{"name":"long"}}`),
		more(s2c(recorder.Delivered, `{"jsonrpc":"2.0","id":4,"result":{"text":"`)),
		c2s(recorder.Delivered, `{"jsonrpc":"2.0","method":"notifications/progress"}`),
		more(s2c(recorder.Masked, strings.Repeat("0123456789", 100_000))),
		s2c(recorder.Blocked, `{"jsonrpc":"2.0","id":99,"result":{}}`),
		s2c(recorder.Delivered, `"}}`),
		s2c(recorder.Edited, ""),
	}
	for n := 1455; n < 1465; n++ {
		frames = append(frames, c2s(recorder.Delivered, strings.Repeat("x", n)))
	}
	return append(frames,
		more(s2c(recorder.Delivered, `{"jsonrpc":"2.0","id":5,"result":{"te`)),
		s2c(recorder.Cut, ""))
}

// tshark runs it, or skips the test where it is not installed.
func tshark(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("tshark is not installed")
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "TZ=UTC")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, stderr.Bytes())
	}
	return string(out)
}

// TestPcapngTshark reads exports with tshark: it follows the stream and gets what
// replay writes, at the recorded times, and has nothing to complain of.
func TestPcapngTshark(t *testing.T) {
	for _, c := range []struct{ name, client, wantClient string }{
		{"IPv4", "203.0.113.9:51234", "203.0.113.9:51234"},
		{"IPv6", "[fe80::1%eth0]:51234", "[fe80::1]:51234"},
		{"IPv4 in IPv6", "[::ffff:203.0.113.9]:51234", "203.0.113.9:51234"},
		{"no address", "pipe", "192.0.2.1:49152"},
	} {
		t.Run(c.name, func(t *testing.T) {
			frames := talk()
			src, session := record(t, recorder.Session{Subject: "ada", Server: "bigquery", Rule: "analysts", Transport: "tls", Client: c.client}, frames...)
			file := filepath.Join(t.TempDir(), "session.pcapng")
			if err := os.WriteFile(file, []byte(write(t, src, session, "pcapng")), 0o600); err != nil {
				t.Fatal(err)
			}

			sides := followed(t, tshark(t, "-r", file, "-q", "-z", "follow,tcp,raw,0"))
			for d, got := range sides {
				if want := replayed(t, src, session, codec.Direction(d)); !bytes.Equal(got, want) {
					t.Errorf("%v: tshark follows %d bytes, replay writes %d; or they differ: %.200q, want %.200q", codec.Direction(d), len(got), len(want), got, want)
				}
			}

			bad := tshark(t, "-r", file, "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE", "-Y",
				`_ws.malformed || ip.checksum.status == 0 || tcp.checksum.status == 0 || tcp.analysis.flags || _ws.expert.severity >= 0x600000`)
			if bad != "" {
				t.Errorf("tshark complains of\n%s", bad)
			}
			flags := strings.Fields(tshark(t, "-r", file, "-T", "fields", "-e", "tcp.flags.str"))
			if n := len(flags); !strings.Contains(flags[0], "S") || !strings.Contains(flags[n-3], "F") || !strings.Contains(flags[n-2], "F") {
				t.Errorf("flags begin with %s and end with %s, want a SYN and two FIN", flags[0], flags[n-3:])
			}
			if got := tshark(t, "-r", file, "-c", "1", "-T", "fields", "-e", "_ws.col.Source", "-e", "tcp.srcport", "-e", "frame.comment"); !strings.HasPrefix(got, strings.NewReplacer("[", "", "]:", "\t").Replace(strings.Replace(c.wantClient, ".9:", ".9\t", 1))) && c.name != "no address" {
				t.Errorf("the first packet is %q, want it from %s", got, c.wantClient)
			} else if !strings.Contains(got, "session "+session+"; subject ada; server bigquery; rule analysts") {
				t.Errorf("the first packet's comment is %q", got)
			}

			// A packet of each frame that is in the stream has its number, and its time.
			times := map[string]string{}
			comments := ""
			for line := range strings.Lines(tshark(t, "-r", file, "-T", "fields", "-e", "frame.time_epoch", "-e", "frame.comment")) {
				epoch, text, _ := strings.Cut(strings.TrimSpace(line), "\t")
				for _, m := range regexp.MustCompile(`frame (\d+) \w+ (\w+)`).FindAllStringSubmatch(text, -1) {
					if m[2] != "blocked" {
						times[m[1]] = epoch
					}
				}
				comments += text + "\n"
			}
			n, under := 0, [2]bool{}
			for _, f := range frames {
				if f.Verdict == recorder.Found || under[f.Direction] && f.Verdict != recorder.Blocked {
					under[f.Direction] = under[f.Direction] && (f.More || f.Verdict == recorder.Found)
					continue
				}
				n++
				under[f.Direction] = under[f.Direction] || f.More
				want := fmt.Sprintf("%d.%09d", f.Time.Unix(), f.Time.Nanosecond())
				if got := times[strconv.Itoa(n)]; f.Verdict != recorder.Blocked && got != want {
					t.Errorf("frame %d (%s) is at %s, want %s", n, f.Verdict, got, want)
				}
			}
			for _, want := range []string{"frame 3 c2s blocked, 71 bytes, not in the stream", "s2c findings: email 2, secrets", "frame 7 s2c masked", "s2c frame goes on: cut"} {
				if !strings.Contains(comments, want) {
					t.Errorf("no comment says %q in\n%s", want, comments)
				}
			}
		})
	}
}

// followed reads what tshark -z follow,tcp,raw prints, by direction.
func followed(t *testing.T, out string) (sides [2][]byte) {
	t.Helper()
	for line := range strings.Lines(out) {
		d := codec.C2S
		if strings.HasPrefix(line, "\t") {
			d = codec.S2C
		}
		b, err := hex.DecodeString(strings.TrimSpace(line))
		if err == nil {
			sides[d] = append(sides[d], b...)
		}
	}
	return sides
}

func TestPcapngComments(t *testing.T) {
	frames := []recorder.Frame{}
	for range 3 * maxComments {
		frames = append(frames, c2s(recorder.Blocked, "x"))
	}
	frames = append(frames, s2c(recorder.Delivered, "{}"))
	src, session := record(t, recorder.Session{Subject: strings.Repeat("ä\xff", maxComment), Server: "s", Transport: "tls", Client: "192.0.2.9:5"}, frames...)
	out := write(t, src, session, "pcapng")
	if !strings.Contains(out, "frame 99 c2s blocked") || !strings.Contains(out, "more") || !utf8.ValidString(comment(strings.Repeat("ä", maxComment)+"x"[:1])) {
		t.Error("comments are missing")
	}
	file := filepath.Join(t.TempDir(), "s.pcapng")
	os.WriteFile(file, []byte(out), 0o600)
	if got := tshark(t, "-r", file, "-Y", "tcp.len > 0", "-T", "fields", "-e", "frame.comment"); !strings.Contains(got, "and 201 more") {
		t.Errorf("tshark reads %.100q…, want it to say how many more", got)
	}
}

func TestNDJSON(t *testing.T) {
	frames := talk()
	src, session := record(t, recorder.Session{Subject: "ada", Server: "s", Transport: "tls"}, frames...)
	out := write(t, src, session, "ndjson")
	var got []string
	sides := [2][]byte{}
	for line := range strings.Lines(out) {
		var f struct {
			ndjsonFrame
			Frame *json.RawMessage
			Bytes *string
		}
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&f); err != nil {
			t.Fatalf("%v in %.200s", err, line)
		}
		if f.V != 1 || f.Session != session || (f.Frame == nil) == (f.Bytes == nil) {
			t.Errorf("version, session or frame are wrong in %.200s", line)
		}
		text := fmt.Sprintf("%d %s %s", f.N, f.Direction, f.Verdict)
		var b []byte
		if f.Frame != nil {
			text, b = text+" frame", *f.Frame
		} else {
			b, _ = base64.StdEncoding.DecodeString(*f.Bytes)
		}
		for _, found := range f.Findings {
			text += fmt.Sprintf(" %s@%d", found.Detector, found.Offset)
		}
		if got = append(got, text); f.Verdict == "blocked" {
			continue
		}
		d1 := map[string]int{"c2s": 0, "s2c": 1}[f.Direction]
		sides[d1] = append(append(sides[d1], b...), '\n')
	}
	want := []string{
		"1 c2s delivered frame", "2 s2c delivered frame", "3 c2s blocked frame", "4 s2c answered frame", "5 c2s blocked", "6 c2s delivered frame",
		"7 s2c masked frame email@7 email@70 secrets@9", "8 c2s delivered frame", "10 c2s delivered frame", "11 s2c blocked frame", "9 s2c masked frame", "12 s2c edited",
	}
	if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if last := got[len(got)-1]; last != "23 s2c cut" {
		t.Errorf("the last line is %q", last)
	}
	if !strings.Contains(out, `"time":"2026-03-04T05:06:08.123457790Z","direction":"c2s"`) {
		t.Errorf("no time with nine digits in %.300s", out)
	}
	for d, b := range sides {
		if want := bytes.ReplaceAll(replayed(t, src, session, codec.Direction(d)), []byte("\r"), nil); !bytes.Equal(b, want) {
			t.Errorf("%v: lines hold %d bytes, replay writes %d", codec.Direction(d), len(b), len(want))
		}
	}
}

// TestNDJSONParts checks that a frame over the bound comes in parts, which are
// together what was recorded, also when its end is not on record.
func TestNDJSONParts(t *testing.T) {
	part := strings.Repeat("0123456789abcdef", 1<<16)
	var frames []recorder.Frame
	for range 18 {
		frames = append(frames, s2c(recorder.Found, `[{"detector":"email","offset":1}]`), more(s2c(recorder.Delivered, part)))
	}
	src, session := record(t, recorder.Session{Server: "s", Transport: "tls"}, frames...)
	var all []byte
	n, found := 0, 0
	for line := range strings.Lines(write(t, src, session, "ndjson")) {
		var f struct {
			Part     *int
			More     bool
			Bytes    []byte
			Findings []codec.Finding
		}
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatal(err)
		}
		if f.Part == nil || *f.Part != n || !f.More || len(f.Bytes) > joinedFrame {
			t.Fatalf("line %d has part %v, more %v and %d bytes", n, f.Part, f.More, len(f.Bytes))
		}
		n++
		found += len(f.Findings)
		all = append(all, f.Bytes...)
	}
	if want := strings.Repeat(part, 18); string(all) != want || n != 2 || found != 18 {
		t.Errorf("%d parts with %d findings hold %d bytes, want 2 with 18 and %d", n, found, len(all), len(want))
	}
}

// TestHTMLHostile puts what would break out of a page into each place of a
// recording that others fill, and looks for it in the page.
func TestHTMLHostile(t *testing.T) {
	hostile := []string{
		`</script><img src=x onerror=alert(1)>`, `</pre></details><script>alert(1)</script>`, `" onmouseover="alert(1)`, `'><svg/onload=alert(1)>`,
		`<!--`, `]]>`, `{{.Policy}}`, `</style><style>@import "http://evil.example"</style>`, `</title><base href=//evil.example>`, `javascript:alert(1)`,
	}
	var frames []recorder.Frame
	for _, h := range hostile {
		text, _ := json.Marshal(h)
		raw := strings.NewReplacer(`\u003c`, "<", `\u003e`, ">").Replace(string(text))
		frames = append(frames,
			c2s(recorder.Delivered, `{"jsonrpc":"2.0","id":`+raw+`,"method":`+raw+`,"params":{"name":`+raw+`,`+raw+`:1}}`),
			c2s(recorder.Blocked, h),
			s2c(recorder.Found, `[{"detector":`+raw+`,"offset":1}]`),
			s2c(recorder.Answered, `{"jsonrpc":"2.0","id":1,"error":{"code":403,"message":`+raw+`}}`))
	}
	frames = append(frames, s2c(recorder.Delivered, "{\"a\":\"x\u202egnp.exe\u0000 \U000e0041\"}"), s2c(recorder.Delivered, "\xff\xfe"))
	all := strings.Join(hostile, "")
	src, session := record(t, recorder.Session{Subject: all, Groups: []string{all}, Server: all, Rule: all, Transport: all, Client: all, Imported: &recorder.Imported{File: all}}, frames...)
	out := write(t, src, session, "html")

	// No tag and no attribute but the template's.
	tags := map[string]bool{}
	for _, m := range regexp.MustCompile(`<[^>]*>`).FindAllString(out, -1) {
		name := regexp.MustCompile(`^</?[!a-zA-Z0-9]*`).FindString(m)
		tags[name] = true
		if strings.Contains(m, "onerror") || strings.Contains(m, "onmouseover") || strings.Contains(m, "onload") || strings.Contains(m, "evil") {
			t.Errorf("a frame became the tag %s", m)
		}
	}
	for name := range tags {
		if slices.Contains([]string{"img", "svg", "script", "base", "!--"}, strings.Trim(name, "</")) {
			t.Errorf("there is a tag %q", name)
		}
	}
	for _, h := range hostile {
		if !strings.Contains(html.UnescapeString(out), h) {
			t.Errorf("%q cannot be read in the page", h)
		}
	}
	for _, want := range []string{`x\u202egnp.exe`, `\udb40\udc41`, `\xff\xfe`, `default-src &#39;none&#39;`} {
		if !strings.Contains(out, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	if strings.Contains(out, "\u202e") || strings.Contains(out, "http://") && !strings.Contains(out, "&#34;http://evil") || strings.Contains(out, "ZgotmplZ") {
		t.Error("the page has what it must not have")
	}
}

func TestHTML(t *testing.T) {
	frames := append(talk(), s2c(recorder.Delivered, `{"jsonrpc":"2.0","method":"m","params":{"a":"`+strings.Repeat("b", 2*shownFrame)+`"}}`),
		s2c(recorder.Delivered, strings.Repeat("[", 9_000)+strings.Repeat("]", 9_000)))
	src, session := record(t, recorder.Session{Subject: "ada", Server: "bigquery", Rule: "analysts", Transport: "tls", Client: "192.0.2.9:5"}, frames...)
	out := write(t, src, session, "html")
	for _, want := range []string{
		`<td>ada</td>`, `<td>bigquery</td>`, `request 3 tools/call read`, `findings: email 2, secrets`, `class="c2s refused"`, `class="s2c masked"`,
		`refusal: 403 destructive`, `Only the first 65536 of 10000`, `Only the first 65536 of 131120 bytes are shown`, `The rest of this frame did not pass.`,
		`<a href="#f3">frame 3</a>`, `notification notifications/progress`, "{\n  &#34;jsonrpc&#34;: &#34;2.0&#34;", `Bytes that are not UTF-8`,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	if strings.Contains(out, "<script") || strings.Contains(out, "src=") || len(out) > 1<<20 {
		t.Errorf("the page has %d bytes, or takes something from elsewhere", len(out))
	}
	if !strings.Contains(out, "<style>"+pageStyle+"</style>") {
		t.Error("the style is not the one that the policy allows")
	}
}

func TestHAR(t *testing.T) {
	src, session := record(t, recorder.Session{Subject: "ada", Server: "s", Transport: "h2"}, talk()...)
	var doc struct {
		Log struct {
			Version string
			Creator struct{ Name, Version string }
			Entries []harEntry
		}
	}
	if err := json.Unmarshal([]byte(write(t, src, session, "har")), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Log.Version != "1.2" || doc.Log.Creator.Name == "" {
		t.Errorf("got version %q by %q", doc.Log.Version, doc.Log.Creator.Name)
	}
	var got []string
	for _, e := range doc.Log.Entries {
		text := ""
		if e.Request.PostData != nil {
			text = e.Request.PostData.Text
		}
		got = append(got, fmt.Sprintf("%s %s %.50q → %d %.50q", e.Request.Method, e.Request.HTTPVersion, text, e.Response.Status, e.Response.Content.Text))
	}
	for _, want := range []string{
		`POST HTTP/2 "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"initialize\",\"par" → 200 "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\r"`,
		`POST HTTP/2 "{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"tools/call\",\"par" → 200 "{\"jsonrpc\":\"2.0\",\"id\":2,\"error\":{\"code\":403,\"messa"`,
		`POST HTTP/2 "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\"" → 202 ""`,
		`POST HTTP/2 "\x00� no JSON" → 0 ""`,
		`GET HTTP/2 "" → 0 "{\"jsonrpc\":\"2.0\",\"id\":99,\"result\":{}}"`,
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no entry %s in\n%s", want, strings.Join(got, "\n"))
		}
	}
	if w := doc.Log.Entries[0].Timings.Wait; w != 1000.001 {
		t.Errorf("the first answer took %v ms, want 1000.001", w)
	}

	src, session = record(t, recorder.Session{Server: "s", Transport: "tls"})
	if err := Write(t.Context(), io.Discard, src, session, "har"); err == nil || !strings.Contains(err.Error(), "har is for sessions by HTTP") {
		t.Errorf("a session by TLS: %v", err)
	}
}

// TestEmpty writes a session without frames, as one that was refused may be.
func TestEmpty(t *testing.T) {
	src, session := record(t, recorder.Session{Server: "s", Transport: "http/1.1"})
	for _, format := range Formats() {
		if out := write(t, src, session, format); out == "" && format != "ndjson" {
			t.Errorf("%s: nothing is written", format)
		}
	}
}

// TestNotes checks that every format has what rules say of frames that passed.
func TestNotes(t *testing.T) {
	src, session := record(t, recorder.Session{Subject: "ada", Server: "s", Transport: "h2", Client: "192.0.2.9:5"},
		c2s(recorder.Noted, `{"mode":"observe","says":"deny","rule":"analysts","reason":"destructive <SQL>"}`),
		c2s(recorder.Delivered, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"drop"}}`),
		s2c(recorder.Noted, `{"mode":"observe","says":"mask","rule":"analysts","found":[{"detector":"email","offset":3}]}`),
		more(s2c(recorder.Delivered, `{"jsonrpc":"2.0","id":1,"result":{"a":"x@example.com`)),
		s2c(recorder.Noted, `{"mode":"observe","says":"mask","rule":"analysts","found":[{"detector":"email","offset":50}]}`),
		s2c(recorder.Delivered, ` y@example.com"}}`),
		c2s(recorder.Noted, `{"mode":"enforce","says":"approval","rule":"leads"}`),
		c2s(recorder.Delivered, `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"delete"}}`),
		c2s(recorder.Delivered, `{"jsonrpc":"2.0","method":"notifications/x"}`),
	)
	var got []string
	for line := range strings.Lines(write(t, src, session, "ndjson")) {
		var f struct{ Notes []recorder.Note }
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(f.Notes))
	}
	want := []string{
		"[rule analysts says deny, and is only observed: destructive <SQL>]", "[rule analysts says mask, and is only observed]",
		"[rule leads says approval, and there was one]", "[]",
	}
	if !slices.Equal(got, want) {
		t.Errorf("ndjson: got %q, want %q", got, want)
	}
	for format, texts := range map[string][]string{
		"html":   {"Rule analysts says deny, and is only observed: destructive &lt;SQL&gt;.", "Rule analysts says mask, and is only observed (email 2).", "Rule leads says approval, and there was one."},
		"har":    {`frame 1 c2s delivered; rule analysts says deny, and is only observed: destructive \u003cSQL\u003e; frame 2`, "rule analysts says mask, and is only observed (email 2)", "rule leads says approval"},
		"pcapng": {"c2s rule analysts says deny, and is only observed: destructive <SQL>", "s2c rule analysts says mask, and is only observed (email)", "c2s rule leads says approval"},
	} {
		out := write(t, src, session, format)
		for _, want := range texts {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q", format, want)
			}
		}
		if n := strings.Count(strings.ToLower(out), "rule leads says"); n != 1 {
			t.Errorf("%s: a note of one frame is there %d times", format, n)
		}
	}
}
