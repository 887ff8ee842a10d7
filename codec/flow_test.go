package codec_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"example.com/broker/codec"
	"example.com/broker/codec/detect"
)

// A choppy reader gives pieces of these sizes, over and over.
type choppy struct {
	in    []byte
	sizes []byte
	n     int
}

func (c *choppy) Read(p []byte) (int, error) {
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	size := len(c.in)
	if len(c.sizes) > 0 {
		size = 1 + int(c.sizes[c.n%len(c.sizes)])
		c.n++
	}
	n := copy(p, c.in[:min(size, len(c.in))])
	c.in = c.in[n:]
	return n, nil
}

// slowly reads as from a connection.
type slowly struct{ io.Reader }

func (s slowly) Read(p []byte) (int, error) { return s.Reader.Read(p[:min(len(p), 32<<10)]) }

// flow takes the line as it arrives from in. ok is false if it is not long.
func flow(m *codec.Masker, in io.Reader, held int) (out []byte, findings []codec.Finding, ok bool, err error) {
	out, _, findings, ok, err = flowCame(m, in, held)
	return out, findings, ok, err
}

// flowCame is flow that returns what has arrived, too, as far as it is said.
func flowCame(m *codec.Masker, in io.Reader, held int) (out, came []byte, findings []codec.Finding, ok bool, err error) {
	r := codec.NewReader(in, codec.Limits{Held: held})
	if _, err := r.Next(); err != codec.ErrLong {
		return nil, nil, nil, false, nil
	}
	if _, ok := r.Long(); !ok {
		return nil, nil, nil, false, nil
	}
	var p codec.Parser
	_, _, err = p.Flow(r, m, "", func(part codec.Part) error {
		out = append(out, part.Bytes...)
		if part.Came != nil {
			came = append(came, part.Came...)
		} else {
			came = append(came, part.Bytes...)
		}
		findings = append(findings, part.Findings...)
		return nil
	})
	return out, came, findings, true, err
}

func byOffset(a, b codec.Finding) int {
	return cmp.Or(a.Offset-b.Offset, strings.Compare(a.Detector, b.Detector))
}

// FuzzFlow checks that how a frame arrives does not matter: masked in pieces, it
// is what it is when it is masked at once; and a Masker that leaves everything
// changes nothing, refuses nothing more than none, and finds the same.
func FuzzFlow(f *testing.F) {
	for i := range 24 { // a few to begin with
		var seed []byte
		for j := range 60 {
			seed = append(seed, byte((i+3)*(j+7)*(j+11)>>1))
		}
		f.Add(seed, []byte{byte(i * 7)}, uint8(i))
	}
	f.Fuzz(func(t *testing.T, program, pieces []byte, order uint8) {
		raw := made(program)
		if strings.Contains(raw, "\n") {
			return
		}
		line := []byte(`{"jsonrpc":"2.0","id":7,"result":` + raw + `}`)
		if order%2 == 1 {
			line = []byte(`{"result":` + raw + `,"jsonrpc":"2.0","id":7}`)
		}
		m := newFieldMasker([]string{"api_key", "$.rows[*].n", "$..c[1]"}, detect.Names()...)
		m.SetSizes(128+int(order), 96+int(order), 40)
		got, findings, ok, err := flow(m, &choppy{append(bytes.Clone(line), '\n'), pieces, 0}, 48)
		if !ok {
			return
		}
		m.Came = true
		again, came, _, _, _ := flowCame(m, &choppy{append(bytes.Clone(line), '\n'), pieces, 0}, 48)
		m.Came = false
		if err == nil && (!bytes.Equal(again, got) || !bytes.Equal(came, line)) {
			t.Fatalf("%s\nbecame\n%s\nand is said to have been\n%s", line, again, came)
		}
		unmasked, _, _, plainErr := flow(nil, &choppy{append(bytes.Clone(line), '\n'), pieces, 0}, 48)
		if plainErr == nil && !bytes.Equal(unmasked, line) {
			t.Fatalf("%s\nunmasked, became\n%s", line, unmasked)
		}
		m.Leave = true
		left, leftFindings, _, leftErr := flow(m, &choppy{append(bytes.Clone(line), '\n'), pieces, 0}, 48)
		m.Leave = false
		if plainErr == nil && (leftErr != nil || !bytes.Equal(left, line)) {
			t.Fatalf("%s\nleft as it is, became\n%s\n%v", line, left, leftErr)
		}
		if err == nil && !slices.Equal(leftFindings, findings) {
			t.Fatalf("%s\nfindings %v, and left as it is %v", line, findings, leftFindings)
		}
		var p codec.Parser
		frame, wantErr := p.Parse(append(make([]byte, 0, len(line)+1), line...), codec.S2C)
		if wantErr != nil {
			if err == nil || plainErr == nil {
				t.Fatalf("%s\nis accepted in pieces (%v, %v), but %v", line, err, plainErr, wantErr)
			}
			return
		}
		want, wanted := m.Mask(nil, frame)
		if err != nil {
			if e := (*codec.Error)(nil); errors.As(err, &e) && refusedInPieces[e.Reason] {
				return
			}
			t.Fatalf("%s\nis refused in pieces: %v", line, err)
		}
		if plainErr != nil && !refusedInPieces[plainErr.(*codec.Error).Reason] {
			t.Fatalf("%s\nis refused in pieces, unmasked: %v", line, plainErr)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%s\nin pieces became\n%s\nand at once\n%s", line, got, want)
		}
		// Cut anywhere, nothing passes that would have been another thing.
		some, _, _, err := flow(m, &choppy{line[:len(line)*int(order)/256], pieces, 0}, 48)
		if err == nil && some != nil || !bytes.HasPrefix(want, some) {
			t.Fatalf("%s\ncut at %d became\n%s\nand whole\n%s\n%v", line, len(line)*int(order)/256, some, want, err)
		}
		slices.SortFunc(findings, byOffset)
		wanted = slices.Clone(wanted)
		slices.SortFunc(wanted, byOffset)
		if !slices.Equal(findings, wanted) {
			t.Fatalf("%s\nfindings in pieces %v, and at once %v", line, findings, wanted)
		}
	})
}

// refusedInPieces are what a frame may have when it is held, and not when it is not.
var refusedInPieces = map[string]bool{
	"a number is too long":                             true,
	"a name is too long":                               true,
	"too much behind the result":                       true,
	"a name is what another became when it was masked": true,
	"too many escapes within escapes":                  true,
}

// TestFlowNames checks that a value of a long object is looked at with its name, though
// nothing was found in the same one before.
func TestFlowNames(t *testing.T) {
	for _, tt := range []struct{ name, value, mark string }{
		{"ssn", "123456789", "us_ssn"},
		{"twitter_key", "a8Xk2Pq9Lm4Zs7Vt1Wy6", "secrets"},
	} {
		in := `{"a":"` + tt.value + `","b":["` + tt.value + `","` + tt.value + `"],"c":"` + strings.Repeat("lorem ipsum ", 60) + `","` + tt.name + `":"%s"}`
		m := newMasker(detect.Names()...)
		m.SetSizes(512, 96, 40)
		line, want := result(fmt.Sprintf(in, tt.value)), result(fmt.Sprintf(in, "[masked:"+tt.mark+"]"))
		got, _, ok, err := flow(m, &choppy{append(line, '\n'), []byte{50}, 0}, 48)
		if !ok || err != nil {
			t.Fatalf("long %v, error %v", ok, err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got %s", tt.name, got)
		}
	}
}

// TestFlow sends long frames through, as they are and with something to be found.
func TestFlow(t *testing.T) {
	text := strings.Repeat("The quick brown fox, \u00e9t\u00e9.\n", 40<<10)
	found := text[:len(text)/2] + " ada@example.com " + text[len(text)/2:]
	rows := strings.Repeat(`{"id":17,"name":"Widget","note":"upper\nfloor"},`, 30<<10)
	rows = `[` + rows + `{"card":4111111111111111,"name":"x"}]`
	lines := strings.ReplaceAll(rows[1:len(rows)-1], "},{", "}\n{")
	quote := func(s string) string { return string(must(json.Marshal(s))) }
	for _, tt := range []struct{ name, in, want string }{
		{"text", quote(text), quote(text)},
		{"text with an address", `{"content":[{"type":"text","text":` + quote(found) + `}]}`, `{"content":[{"type":"text","text":` + strings.Replace(quote(found), "ada@example.com", "[masked:email]", 1) + `}]}`},
		{"rows", `{"structuredContent":` + rows + `}`, `{"structuredContent":` + strings.Replace(rows, "4111111111111111", "0", 1) + `}`},
		{"rows in a text", `{"content":[{"text":` + quote(rows) + `}]}`, `{"content":[{"text":` + strings.Replace(quote(rows), "4111111111111111", "0", 1) + `}]}`},
		{"lines in a text", quote(lines), strings.Replace(quote(lines), "4111111111111111", "0", 1)},
		{"rows in a text in a text", quote(quote(rows)), strings.Replace(quote(quote(rows)), "4111111111111111", "0", 1)},
		{"text in rows in a text", quote(`{"a":` + quote(found) + `}`), strings.Replace(quote(`{"a":`+quote(found)+`}`), "ada@example.com", "[masked:email]", 1)},
		{"almost JSON", quote(`{"a":[` + rows + `], ada@example.com`), strings.NewReplacer("ada@example.com", "[masked:email]", "4111111111111111", "0").Replace(quote(`{"a":[` + rows + `], ada@example.com`))},
		{"image", `{"type":"image","mimeType":"image/png","data":` + quote(found) + `}`, ""},
		{"blob of text", `{"uri":"x","blob":"` + base64Of(found) + `"}`, `{"uri":"x","blob":"` + base64Of(strings.Replace(found, "ada@example.com", "[masked:email]", 1)) + `"}`},
		{"a member that is named", `{"password":` + quote(text) + `,"x":1}`, `{"password":"[masked:field]","x":1}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.want == "" {
				tt.want = tt.in
			}
			m := newFieldMasker([]string{"password"}, detect.Names()...)
			line, want := result(tt.in), result(tt.want)
			got, findings, ok, err := flow(m, io.MultiReader(bytes.NewReader(line), strings.NewReader("\n")), 512<<10)
			if err != nil || !ok {
				t.Fatalf("long %v, error %v", ok, err)
			}
			if !bytes.Equal(got, want) {
				at := 0
				for at < min(len(got), len(want)) && got[at] == want[at] {
					at++
				}
				t.Fatalf("at %d of %d: got %.80q, want %.80q", at, len(want), got[max(at-20, 0):], want[max(at-20, 0):])
			}
			if (len(findings) > 0) != (tt.in != tt.want) {
				t.Errorf("findings %v", findings)
			}
			var p codec.Parser
			f, err := p.Parse(line, codec.S2C)
			if err != nil {
				t.Fatal(err)
			}
			if once, _ := m.Mask(nil, f); !bytes.Equal(once, want) {
				t.Errorf("at once it is something else")
			}
		})
	}
}

// TestFlowFaults cuts and breaks long frames: what is delivered is never a frame.
func TestFlowFaults(t *testing.T) {
	pad := `["` + strings.Repeat("x ", 2<<20) + `"`
	for name, tt := range map[string]struct{ in, want string }{
		"cut":              {`{"jsonrpc":"2.0","id":1,"result":` + pad, "unexpected EOF"},
		"control":          {`{"jsonrpc":"2.0","id":1,"result":` + pad + ",\"\x01\"]}\n", "codec: control character in a string"},
		"control, long":    {`{"jsonrpc":"2.0","id":1,"result":` + pad[:len(pad)-1] + "\x01" + pad[2:] + "]}\n", "codec: control character in a string"},
		"duplicate":        {`{"jsonrpc":"2.0","id":1,"result":{"a":` + pad + "],\"\\u0061\":1}}\n", "codec: duplicate name"},
		"no id":            {`{"jsonrpc":"2.0","result":` + pad + "]}\n", "codec: response without an id"},
		"method":           {`{"jsonrpc":"2.0","id":1,"result":` + pad + `],"method":"x"}` + "\n", "codec: method beside result or error"},
		"twice":            {`{"jsonrpc":"2.0","id":1,"result":` + pad + `],"result":1}` + "\n", "codec: duplicate name"},
		"two frames":       {`{"jsonrpc":"2.0","id":1,"result":` + pad + `]}{}` + "\n", "codec: bytes behind the frame"},
		"comma":            {`{"jsonrpc":"2.0","id":1,"result":` + pad + `,]}` + "\n", "codec: expected a value"},
		"brace":            {`{"jsonrpc":"2.0","id":1,"result":` + pad + `}}` + "\n", "codec: expected , or ] in an array"},
		"tail":             {`{"jsonrpc":"2.0","id":1,"result":` + pad + `],"x":` + pad + `]}` + "\n", "codec: too much behind the result"},
		"deep":             {`{"jsonrpc":"2.0","id":1,"result":` + pad + `,` + strings.Repeat("[", 130) + strings.Repeat("]", 130) + "]}\n", "codec: nested too deep"},
		"carriage return":  {`{"jsonrpc":"2.0","id":1,"result":` + pad + ",\r1]}\n", "codec: "},
		"half a surrogate": {`{"jsonrpc":"2.0","id":1,"result":{"a":` + pad + "],\"\\ud800\":1}}\n", "codec: half a surrogate pair in a name"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, m := range []*codec.Masker{nil, newMasker(detect.Names()...)} {
				out, _, ok, err := flow(m, iotest.HalfReader(strings.NewReader(tt.in)), 512<<10)
				if !ok || err == nil || !strings.HasPrefix(err.Error(), tt.want) {
					t.Errorf("long %v, error %v, want %s", ok, err, tt.want)
				}
				if json.Valid(out) {
					t.Error("what was delivered is JSON")
				}
			}
		})
	}
}

// TestFlowContext checks that a long text that is no JSON, or not to its end, is
// masked as a short one is: what looks like a part of JSON is none.
func TestFlowContext(t *testing.T) {
	m := newMasker(detect.Names()...)
	masked := func(text string, flows bool) string {
		t.Helper()
		line := result(string(must(json.Marshal(text))))
		var p codec.Parser
		f, err := p.Parse(line, codec.S2C)
		if err != nil {
			t.Fatal(err)
		}
		once, _ := m.Mask(nil, f)
		if flows {
			got, _, ok, err := flow(m, slowly{bytes.NewReader(append(line, '\n'))}, 512<<10)
			if !ok || err != nil || !bytes.Equal(got, once) {
				t.Fatalf("in pieces it is something else: long %v, error %v", ok, err)
			}
		}
		return string(once)
	}
	filler := strings.Repeat("\nThe quick brown fox jumps over it.", 600<<10/35)
	for _, head := range []string{
		`[4111 1111 1111 1111] was charged`, `[4111-1111-1111-1111] was charged`, `[123-45-6789, Ada]`, `"password": "hunter2-Xyz9", `, `"password" : 'hunter2-Xyz9', `,
		`"api_key","x"`, `{"password": 'hunter2-Xyz9'}`, `{"password": hunter2-Xyz9}`, `{"a": 1, "password" = "hunter2-Xyz9"}`, `["password": "hunter2-Xyz9"]`,
		`{"a":1}password=hunter2-Xyz9 `, `"postgres://a:s3cr3tPw\@db"`, `"it's \password=hunter2-Xyz9 here`, `"password=\hunter2-Xyz9 here`,
		`"4111 1111 \1111 1111`, `"AKIAQ3EGRIO\L7PZ5TXWM `, `["user","password"]: hunter2-Xyz9`, `{"k":"AKIAQ3EGRIOL7PZ5TXWM",}`,
	} {
		const n = 110
		short, long := masked(head+filler[:3000], false), masked(head+filler, true)
		if short[:n] != long[:n] {
			t.Errorf("%s\n short %s\n long  %s", head, short[:n], long[:n])
		}
	}
	rows := `[` + strings.Repeat(`{"id":17,"name":"Widget"},`, 600<<10/26)
	for _, tail := range []string{
		`{"password": hunter2-Xyz9}]`, `{"password": 'hunter2-Xyz9'}]`, `{"password" = "hunter2-Xyz9"}]`, `4111 1111 1111 1111]`,
		`4111-1111-1111-1111]`, `123-45-6789]`, `"password": "hunter2-Xyz9"]`, `"postgres://admin:s3cr3tPw\@db"]`,
	} {
		end := func(s string) string { return s[strings.LastIndex(s, "Widget")+8:] }
		if short, long := end(masked(rows[:1+26*200]+tail, false)), end(masked(rows+tail, true)); short != long {
			t.Errorf("%s\n short %s\n long  %s", tail, short, long)
		}
	}
}

// TestFlowCut cuts and breaks a long text in what is known for a secret only by
// what comes behind: none of it is delivered.
func TestFlowCut(t *testing.T) {
	filler := strings.Repeat("The quick brown fox jumps over it. ", 1200<<10/35)
	for _, end := range []string{`postgres://admin:s3cr3tPw`, `4111 1111 1111 111`, `ada@example`, `AKIAQ3EGRIOL7PZ5TXW`} {
		for _, fault := range []string{"", "\x01", `\q`} {
			for _, open := range []string{`["`, `["[\"x\",\"`, `["{\"x\":{\"y\":1,\"z\":\"`} {
				line := `{"jsonrpc":"2.0","id":1,"result":` + open + filler + end + fault
				out, _, ok, err := flow(newMasker(detect.Names()...), strings.NewReader(line), 512<<10)
				if !ok || err == nil || bytes.HasSuffix(out, []byte(end)) || len(out) < 600<<10 {
					t.Errorf("fault %q: long %v, error %v, delivered %q", fault, ok, err, out[max(0, len(out)-40):])
				}
			}
		}
	}
}

// A counter counts what is delivered, and how much memory is in use at most.
type counter struct {
	delivered int
	heap      uint64
}

func flowed(in io.Reader, m *codec.Masker) (c counter, err error) {
	r := codec.NewReader(in, codec.Limits{Held: 512 << 10})
	if _, err := r.Next(); err != codec.ErrLong {
		return c, err
	}
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var p codec.Parser
	at := 0
	_, _, err = p.Flow(r, m, "", func(part codec.Part) error {
		if c.delivered += len(part.Bytes); c.delivered-at > 4<<20 {
			at = c.delivered
			runtime.GC()
			runtime.ReadMemStats(&now)
			if now.HeapAlloc > before.HeapAlloc {
				c.heap = max(c.heap, now.HeapAlloc-before.HeapAlloc)
			}
		}
		return nil
	})
	return c, err
}

// TestFlowHostile sends what is made to take memory or time.
func TestFlowHostile(t *testing.T) {
	unicode := func(s string) string {
		var b strings.Builder
		for i := range len(s) {
			fmt.Fprintf(&b, `\u%04x`, s[i])
		}
		return b.String()
	}
	// Each layer a string in which every byte is an escape: in the fourth, a byte
	// stands for 216 of the frame.
	unit, open := "lorem ips", `"`
	for layer := range 4 {
		frame := `{"jsonrpc":"2.0","id":1,"result":` + open + strings.Repeat(unit, 24<<20/len(unit)) + "x"
		c, err := flowed(strings.NewReader(frame), newMasker("email"))
		if c.heap > 64<<20 {
			t.Errorf("%d layers: %d MiB are in use after %d (%v)", layer+1, c.heap>>20, c.delivered>>20, err)
		}
		open, unit = `"`+unicode(open), unicode(unit)
	}
	// Names that are marks already, and long ones.
	var names strings.Builder
	for i := range 200 {
		fmt.Fprintf(&names, `"[masked:%d %s":1,`, i, strings.Repeat("x", 200<<10))
	}
	if c, err := flowed(strings.NewReader(`{"jsonrpc":"2.0","id":1,"result":{`+names.String()), newMasker("email")); c.heap > 16<<20 {
		t.Errorf("names: %d MiB are in use (%v)", c.heap>>20, err)
	}
	// An object by e-mail addresses is no attack.
	var mails strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&mails, `"user%d@example.com":{"n":1},`, i)
	}
	if _, _, ok, err := flow(newMasker("email"), strings.NewReader(string(result(`{`+mails.String()+`"x":1}`))+"\n"), 512<<10); !ok || err != nil {
		t.Errorf("addresses: long %v, error %v", ok, err)
	}
}

// BenchmarkFlow is of long frames that pass while they arrive, as they come and as
// they are made to be slow: nested so deep that each level is long.
func BenchmarkFlow(b *testing.B) {
	object := `{"a1":1,"b2":2,"c3":3,"d4":4,"e5":5,"f6":6,"g7":7,"h8":8,"i9":9,"jj":10}`
	rows := strings.TrimSuffix(strings.Repeat(object+",", 700<<10/len(object)), ",")
	nested := func(depth int) string { return strings.Repeat("[", depth) + rows + strings.Repeat("]", depth) }
	layers := nested(100)
	for range 3 {
		layers = strings.Repeat("[", 100) + string(must(json.Marshal(layers))) + strings.Repeat("]", 100)
	}
	quoted := string(must(json.Marshal(strings.Repeat(clean, 2<<20/len(clean)))))
	lines := string(must(json.Marshal(strings.Repeat(`{"id":17,"name":"amber basin","city":"cedar","plan":"delta","orders":412,"total":9912.40}`+"\n", 2<<20/90))))
	for _, tt := range []struct {
		name, result string
		masked       bool
	}{
		{"rows", "[" + rows + "," + rows + "]", false}, {"rows-masked", "[" + rows + "," + rows + "]", true}, {"text-masked", quoted, true}, {"lines-masked", lines, true},
		{"depth-20", nested(20), false}, {"depth-120", nested(120), false}, {"layers-4", layers, true},
		{"escapes-120", strings.Repeat(`[{"\n":1},`, 120) + rows + strings.Repeat("]", 120), false},
	} {
		b.Run(tt.name, func(b *testing.B) {
			line := append(result(tt.result), '\n')
			var m *codec.Masker
			if tt.masked {
				m = newMasker(detect.Names()...)
			}
			work := func() {
				r := codec.NewReader(bytes.NewReader(line), codec.Limits{Held: 256 << 10})
				if _, err := r.Next(); err != codec.ErrLong {
					b.Fatal(err)
				}
				var p codec.Parser
				if _, _, err := p.Flow(r, m, "", func(codec.Part) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(int64(len(line)))
			for b.Loop() {
				work()
			}
			b.StopTimer()
			ratio(b, "×json.Valid", work, len(line), func() { json.Valid(line) }, len(line))
		})
	}
}

// TestFlowLeaves checks that a Masker that leaves everything refuses nothing of
// what it would have to refuse if it masked.
func TestFlowLeaves(t *testing.T) {
	blob := strings.Repeat("QUFB", 9<<20)
	line := `{"jsonrpc":"2.0","id":1,"result":{"mimeType":"text/plain","blob":"` + blob + `","to":"eve@example.com"}}`
	m := newFieldMasker(nil, "email")
	if _, _, ok, err := flow(m, strings.NewReader(line+"\n"), 48); !ok || err == nil {
		t.Fatalf("it is masked: %v, %v", ok, err)
	}
	m.Leave = true
	got, findings, _, err := flow(m, strings.NewReader(line+"\n"), 48)
	if err != nil || string(got) != line {
		t.Errorf("%d bytes became %d, %v", len(line), len(got), err)
	}
	if len(findings) != 1 { // the blob is not looked at
		t.Errorf("findings %v", findings)
	}
}

// TestFlowCame checks that what has arrived in the place of a long masked value is
// said in parts, and none where nothing is masked.
func TestFlowCame(t *testing.T) {
	m := newFieldMasker([]string{"secret"})
	m.Came = true
	line := []byte(`{"jsonrpc":"2.0","id":1,"result":{"a":"` + strings.Repeat("plain ", 200<<10) + `","secret":"` + strings.Repeat("abc ", 1<<20) + `"}}`)
	r := codec.NewReader(slowly{bytes.NewReader(append(bytes.Clone(line), '\n'))}, codec.Limits{Held: 512 << 10})
	if _, err := r.Next(); err != codec.ErrLong {
		t.Fatal(err)
	}
	var p codec.Parser
	var came []byte
	as := 0
	_, _, err := p.Flow(r, m, "", func(part codec.Part) error {
		if part.Came == nil {
			as++
			came = append(came, part.Bytes...)
			return nil
		}
		if len(part.Came) > 512<<10 {
			t.Fatalf("a part came with %d bytes", len(part.Came))
		}
		came = append(came, part.Came...)
		return nil
	})
	if err != nil || !bytes.Equal(came, line) {
		t.Fatalf("got %d bytes that are not the %d that came: %v", len(came), len(line), err)
	}
	if as == 0 {
		t.Error("every part is said to be another one than what came")
	}
}
