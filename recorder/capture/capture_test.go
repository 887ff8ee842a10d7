package capture

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"example.com/broker/codec"
	"example.com/broker/recorder"
	"example.com/broker/recorder/export"
)

var start = time.Date(2026, 3, 4, 5, 6, 7, 123456789, time.UTC)

func open(t testing.TB) *recorder.Log {
	t.Helper()
	l, err := recorder.Open(recorder.Options{Dir: filepath.Join(t.TempDir(), "log")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func imported(t testing.TB, l *recorder.Log, file []byte) *Report {
	t.Helper()
	r, err := Import(t.Context(), bytes.NewReader(file), To(l), recorder.Imported{File: "test.pcap", SHA256: "00"})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func replay(t testing.TB, src recorder.Source, session string, d codec.Direction) string {
	t.Helper()
	var out bytes.Buffer
	err := recorder.Replay(t.Context(), &out, src, session, recorder.View{Want: func(f recorder.Frame) bool { return f.Direction == d && f.Verdict != recorder.Blocked }})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// frames reads a session as lines: time since start, direction, verdict, bytes.
func frames(t testing.TB, src recorder.Source, session string) (all []string) {
	t.Helper()
	for f, err := range src.Frames(t.Context(), session) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%v %v %v %s", f.Time.Sub(start), f.Direction, f.Verdict, f.Bytes))
	}
	return all
}

// TestExportImport takes what is on record out as pcapng and in again: the frames
// are the same, to the byte and the nanosecond.
func TestExportImport(t *testing.T) {
	for _, client := range []string{"203.0.113.9:51234", "[2001:db8::9]:51234", "pipe"} {
		from, to := open(t), open(t)
		rec, err := from.Start(recorder.Session{Subject: "ada", Server: "s", Transport: "tls", Client: client, Start: start})
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		add := func(d codec.Direction, more bool, text string) {
			f := recorder.Frame{Direction: d, Bytes: []byte(text), More: more, Time: start.Add(time.Duration(len(want)+1) * 1_000_001_001)}
			if err := rec.Append(f); err != nil {
				t.Fatal(err)
			}
			want = append(want, fmt.Sprintf("%v %v %v %s", f.Time.Sub(start), d, f.Verdict, text))
		}
		add(codec.C2S, false, `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}`)
		add(codec.S2C, false, `{ "jsonrpc" : "2.0", "id":1, "result":{"\u0061":1.0e1} }`+"\r")
		for n := 1300; n < 1480; n++ {
			add(codec.C2S, false, `{"jsonrpc":"2.0","method":"notifications/progress","params":{"x":"`+strings.Repeat("x", n)+`"}}`)
		}
		add(codec.S2C, false, `{"jsonrpc":"2.0","id":2,"result":{"text":"`+strings.Repeat("ü", 1<<17)+`"}}`)
		frames1 := len(want)
		add(codec.S2C, true, `{"jsonrpc":"2.0","id":3,"result":{"text":"`)
		for range 6 {
			add(codec.S2C, true, strings.Repeat("0123456789abcdef", 1<<16))
			add(codec.C2S, false, `{"jsonrpc":"2.0","method":"notifications/progress"}`)
		}
		add(codec.S2C, false, `"}}`)
		rec.EndAt(start.Add(time.Hour), recorder.Ended, "closed")
		var file bytes.Buffer
		if err := export.Write(t.Context(), &file, from, rec.ID(), "pcapng"); err != nil {
			t.Fatal(err)
		}

		r := imported(t, to, file.Bytes())
		if len(r.Sessions) != 1 || r.Fault != "" || len(r.Streams)+len(r.Skipped) > 0 {
			t.Fatalf("%s: the report is %+v, want one session and nothing else", client, r)
		}
		id := r.Sessions[0].ID
		for _, d := range []codec.Direction{codec.C2S, codec.S2C} {
			if got, want := replay(t, to, id, d), replay(t, from, rec.ID(), d); got != want {
				t.Errorf("%s: %v replays %d bytes, want %d; or they differ", client, d, len(got), len(want))
			}
		}
		if got := frames(t, to, id); !slices.Equal(got[:frames1], want[:frames1]) {
			t.Errorf("%s: frames differ: got %.300q, want %.300q", client, got, want)
		}
		s, err := to.Session(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if s.State != recorder.Ended || s.Imported == nil || s.Imported.File != "test.pcap" || !s.Start.Equal(start) || !s.End.Equal(start.Add(time.Hour)) || s.Transport != "tcp" {
			t.Errorf("%s: the session is %+v", client, s)
		}
		if client != "pipe" && s.Client != client {
			t.Errorf("the client is %s, want %s", s.Client, client)
		}
		if r.Sessions[0].Unchecked != 1 {
			t.Errorf("the report is %+v, want one frame too long to be checked", r.Sessions[0])
		}
	}
}

// A wire is one TCP conversation as packets.
type wire struct {
	t       testing.TB
	ends    [2]netip.AddrPort
	seq     [2]uint32
	link    func(v6 bool) []gopacket.SerializableLayer
	packets [][]byte
}

func newWire(t testing.TB, client, server string) *wire {
	return &wire{t: t, ends: [2]netip.AddrPort{netip.MustParseAddrPort(client), netip.MustParseAddrPort(server)}, seq: [2]uint32{1<<32 - 20, 77}, link: ethernet}
}

var mac = net.HardwareAddr{2, 0, 0, 0, 0, 1}

func etherType(v6 bool) layers.EthernetType {
	if v6 {
		return layers.EthernetTypeIPv6
	}
	return layers.EthernetTypeIPv4
}

func ethernet(v6 bool) []gopacket.SerializableLayer {
	return []gopacket.SerializableLayer{&layers.Ethernet{SrcMAC: mac, DstMAC: mac, EthernetType: etherType(v6)}}
}

func vlans(v6 bool) []gopacket.SerializableLayer {
	return []gopacket.SerializableLayer{
		&layers.Ethernet{SrcMAC: mac, DstMAC: mac, EthernetType: layers.EthernetTypeQinQ},
		&layers.Dot1Q{VLANIdentifier: 7, Type: layers.EthernetTypeDot1Q},
		&layers.Dot1Q{VLANIdentifier: 8, Type: etherType(v6)},
	}
}

func (w *wire) packet(from int, tcp layers.TCP, payload string) {
	w.t.Helper()
	src, dst := w.ends[from], w.ends[1-from]
	tcp.SrcPort, tcp.DstPort, tcp.Seq, tcp.Window = layers.TCPPort(src.Port()), layers.TCPPort(dst.Port()), w.seq[from], 65535
	if tcp.ACK {
		tcp.Ack = w.seq[1-from]
	}
	v6 := src.Addr().Is6()
	all := w.link(v6)
	if v6 {
		ip := &layers.IPv6{Version: 6, NextHeader: layers.IPProtocolTCP, HopLimit: 9, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
		tcp.SetNetworkLayerForChecksum(ip)
		all = append(all, ip)
	} else {
		ip := &layers.IPv4{Version: 4, Protocol: layers.IPProtocolTCP, TTL: 9, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
		tcp.SetNetworkLayerForChecksum(ip)
		all = append(all, ip)
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, append(all, &tcp, gopacket.Payload(payload))...); err != nil {
		w.t.Fatal(err)
	}
	w.packets = append(w.packets, bytes.Clone(b.Bytes()))
	w.seq[from] += uint32(len(payload))
	if tcp.SYN || tcp.FIN {
		w.seq[from]++
	}
}

func (w *wire) hello() {
	w.packet(0, layers.TCP{SYN: true}, "")
	w.packet(1, layers.TCP{SYN: true, ACK: true}, "")
	w.packet(0, layers.TCP{ACK: true}, "")
}

func (w *wire) say(from int, text string) {
	for len(text) > 0 {
		n := min(len(text), 40)
		w.packet(from, layers.TCP{ACK: true, PSH: true}, text[:n])
		text = text[n:]
	}
}

func (w *wire) bye() {
	w.packet(0, layers.TCP{FIN: true, ACK: true}, "")
	w.packet(1, layers.TCP{FIN: true, ACK: true}, "")
	w.packet(0, layers.TCP{ACK: true}, "")
}

// pcap writes packets, 1 ms apart.
func pcap(t testing.TB, link layers.LinkType, packets ...[]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := pcapgo.NewWriterNanos(&out)
	if err := w.WriteFileHeader(65535, link); err != nil {
		t.Fatal(err)
	}
	for i, p := range packets {
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: start.Add(time.Duration(i) * time.Millisecond), CaptureLength: len(p), Length: len(p)}, p); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

const (
	hello   = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18"}}` + "\n"
	welcome = `{"jsonrpc":"2.0","id":1,"result":{"serverInfo":{"name":"s","version":"1"}}}` + "\n"
	call    = `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"read","arguments":{"n":12345678901234567890}}}` + "\n"
	answer  = `{"jsonrpc":"2.0","id":2,"result":{"content":[{"type":"text","text":"a long enough answer for several segments"}]}}` + "\n"
)

func talk(w *wire) *wire {
	w.hello()
	w.say(0, hello)
	w.say(1, welcome)
	w.say(0, call)
	w.say(1, answer)
	w.bye()
	return w
}

// TestImport takes in the same conversation as it may be captured.
func TestImport(t *testing.T) {
	v4 := func() *wire { return newWire(t, "10.0.0.1:50000", "10.0.0.2:8080") }
	plain := talk(v4()).packets
	swap := func(a, b int) [][]byte {
		p := slices.Clone(plain)
		p[a], p[b] = p[b], p[a]
		return p
	}
	vlan := v4()
	vlan.link = vlans
	raw := v4()
	raw.link = func(bool) []gopacket.SerializableLayer { return nil }
	loop := v4()
	loop.link = func(bool) []gopacket.SerializableLayer {
		return []gopacket.SerializableLayer{&layers.Loopback{Family: layers.ProtocolFamilyIPv4}}
	}
	sll2 := [][]byte{}
	for _, p := range talk(raw).packets {
		sll2 = append(sll2, append(append(binary.BigEndian.AppendUint16(nil, 0x0800), make([]byte, 18)...), p...))
	}
	shuffled := slices.Clone(plain)
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(shuffled)-6, func(i, j int) { shuffled[3+i], shuffled[3+j] = shuffled[3+j], shuffled[3+i] })
	var twice [][]byte
	for _, p := range plain {
		twice = append(twice, p, p)
	}
	for _, c := range []struct {
		name   string
		link   layers.LinkType
		in     [][]byte
		client string
	}{
		{name: "as it was", in: plain},
		{name: "VLAN in VLAN", in: talk(vlan).packets},
		{name: "raw IP", link: layers.LinkTypeRaw, in: raw.packets},
		{name: "loopback", link: layers.LinkTypeNull, in: talk(loop).packets},
		{name: "any interface", link: linkSLL2, in: sll2},
		{name: "IPv6", in: talk(newWire(t, "[2001:db8::1]:50000", "[2001:db8::2]:8080")).packets, client: "[2001:db8::1]:50000"},
		{name: "segments in another order", in: swap(3, 5)},
		{name: "an answer's segments in another order", in: swap(7, 6)},
		{name: "shuffled", in: shuffled},
		{name: "each twice", in: twice},
		{name: "all once more", in: append(slices.Clone(plain), plain[3:]...)},
		{name: "without SYN", in: plain[3:]},
		{name: "without the client's SYN", in: plain[1:]},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := open(t)
			link := c.link
			if link == 0 && c.name != "loopback" {
				link = layers.LinkTypeEthernet
			}
			r := imported(t, l, pcap(t, link, c.in...))
			if len(r.Sessions) != 1 {
				t.Fatalf("the report is %+v, want one session", r)
			}
			s := r.Sessions[0]
			if got, want := replay(t, l, s.ID, codec.C2S), hello+call; got != want {
				t.Errorf("c2s: got %q, want %q", got, want)
			}
			if got, want := replay(t, l, s.ID, codec.S2C), welcome+answer; got != want {
				t.Errorf("s2c: got %q, want %q", got, want)
			}
			want := c.client
			if want == "" {
				want = "10.0.0.1:50000"
			}
			if s.Client != want || s.C2S != 2 || s.S2C != 2 || s.Blocked+s.Incomplete+s.Unchecked != 0 {
				t.Errorf("got %+v, want client %s and 2 frames each way", s, want)
			}
		})
	}
}

// TestImportLost loses a segment: its frame is not on record, those around it are.
func TestImportLost(t *testing.T) {
	all := talk(newWire(t, "10.0.0.1:50000", "10.0.0.2:8080")).packets
	r0 := map[int][]string{} // by what is lost
	for lost := 3; lost < len(all)-3; lost++ {
		l := open(t)
		r := imported(t, l, pcap(t, layers.LinkTypeEthernet, slices.Delete(slices.Clone(all), lost, lost+1)...))
		if len(r.Sessions) != 1 || r.Sessions[0].Incomplete == 0 {
			t.Fatalf("without packet %d: the report is %+v, want a session with an incomplete frame", lost, r)
		}
		got := replay(t, l, r.Sessions[0].ID, codec.C2S) + replay(t, l, r.Sessions[0].ID, codec.S2C)
		for line := range strings.Lines(got) {
			if !strings.Contains(hello+welcome+call+answer, line) {
				t.Errorf("without packet %d: %q is on record, which nobody sent", lost, line)
			}
			r0[lost] = append(r0[lost], line)
		}
		if len(r0[lost]) != 3 {
			t.Errorf("without packet %d: %d frames are on record, want 3", lost, len(r0[lost]))
		}
		s, _ := l.Session(t.Context(), r.Sessions[0].ID)
		if !strings.Contains(s.Reason, "segments are missing") {
			t.Errorf("the session's reason is %q", s.Reason)
		}
	}
}

// TestImportSame takes in two conversations between the same addresses, the first
// of which was reset.
func TestImportSame(t *testing.T) {
	a := newWire(t, "10.0.0.1:50000", "10.0.0.2:8080")
	a.hello()
	a.say(0, hello)
	a.say(1, welcome)
	a.packet(0, layers.TCP{RST: true}, "")
	a.seq = [2]uint32{5000, 6000}
	talk(a)
	l := open(t)
	r := imported(t, l, pcap(t, layers.LinkTypeEthernet, a.packets...))
	if len(r.Sessions) != 2 || replay(t, l, r.Sessions[0].ID, codec.C2S) != hello || replay(t, l, r.Sessions[1].ID, codec.C2S) != hello+call {
		t.Errorf("the report is %+v, want two sessions", r)
	}
}

// TestImportOthers has what is no MCP, and frames that are refused.
func TestImportOthers(t *testing.T) {
	port := 50000
	var packets [][]byte
	conversation := func(lines ...string) {
		port++
		w := newWire(t, fmt.Sprintf("10.0.0.1:%d", port), "10.0.0.2:8080")
		w.hello()
		for i, line := range lines {
			w.say(i%2, line)
		}
		w.bye()
		packets = append(packets, w.packets...)
	}
	conversation("\x16\x03\x01\x02\x00\x01\x00", "\x16\x03\x03")
	conversation("POST /mcp HTTP/1.1\r\n\r\n"+hello, "HTTP/1.1 200 OK\r\n\r\n"+welcome)
	conversation(strings.Repeat("hello\n", 10), "x")
	conversation("no newline")
	conversation()
	conversation("a banner\n"+hello, welcome, `{"jsonrpc":"2.0","id":2,"id":3,"method":"tools/list"}`+"\n\n", answer)
	udp := gopacket.NewSerializeBuffer()
	gopacket.SerializeLayers(udp, gopacket.SerializeOptions{FixLengths: true}, append(ethernet(false),
		&layers.IPv4{Version: 4, Protocol: layers.IPProtocolUDP, SrcIP: net.IP{1, 1, 1, 1}, DstIP: net.IP{1, 1, 1, 1}}, &layers.UDP{})...)
	packets = append(packets, udp.Bytes(), []byte{1, 2, 3}, packets[0][:20])
	l := open(t)
	r := imported(t, l, pcap(t, layers.LinkTypeEthernet, packets...))
	if want := map[string]int64{"TLS": 1, "HTTP": 1, "no JSON-RPC": 2, "no data": 1}; !maps.Equal(r.Streams, want) {
		t.Errorf("skipped streams are %v, want %v", r.Streams, want)
	}
	if want := map[string]int64{"no TCP": 1, "cut off or malformed": 2}; !maps.Equal(r.Skipped, want) {
		t.Errorf("skipped packets are %v, want %v", r.Skipped, want)
	}
	if len(r.Sessions) != 1 || r.Sessions[0].Blocked != 2 {
		t.Fatalf("the report is %+v, want one session with two blocked frames", r)
	}
	got := frames(t, l, r.Sessions[0].ID)
	for i, want := range []string{"c2s blocked a banner", "c2s delivered " + hello, "s2c delivered " + welcome, `c2s blocked {"jsonrpc":"2.0","id":2,"id":3`} {
		if _, frame, _ := strings.Cut(got[i], " "); !strings.HasPrefix(frame, strings.TrimSpace(want)) {
			t.Errorf("frame %d is %q, want %q", i+1, frame, want)
		}
	}
}

// TestImportFiles takes in every kind of file, and what is none.
func TestImportFiles(t *testing.T) {
	w := talk(newWire(t, "10.0.0.1:50000", "10.0.0.2:8080"))
	classic := pcap(t, layers.LinkTypeEthernet, w.packets...)
	var ng bytes.Buffer
	n, err := pcapgo.NewNgWriter(&ng, layers.LinkTypeEthernet)
	if err != nil {
		t.Fatal(err)
	}
	second, _ := n.AddInterface(pcapgo.NgInterface{LinkType: layers.LinkTypeRaw})
	for i, p := range w.packets {
		ci := gopacket.CaptureInfo{Timestamp: start, CaptureLength: len(p), Length: len(p)}
		if i%2 == 1 { // as another interface has it
			p, ci.InterfaceIndex = p[14:], second
			ci.CaptureLength, ci.Length = len(p), len(p)
		}
		if err := n.WritePacket(ci, p); err != nil {
			t.Fatal(err)
		}
	}
	n.Flush()
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(ng.Bytes())
	z.Close()
	for name, file := range map[string][]byte{"pcap": classic, "pcapng": ng.Bytes(), "pcapng.gz": zipped.Bytes()} {
		l := open(t)
		if r := imported(t, l, file); len(r.Sessions) != 1 || r.Sessions[0].C2S != 2 || r.Fault != "" {
			t.Errorf("%s: the report is %+v", name, r)
		}
	}
	for _, file := range [][]byte{classic[:len(classic)-5], ng.Bytes()[:ng.Len()-5]} {
		l := open(t)
		if r := imported(t, l, file); len(r.Sessions) != 1 || r.Fault != "the file ends inside a packet" {
			t.Errorf("cut off: the report is %+v", r)
		}
	}
	for _, file := range []string{"", "x", "no capture, but text", `{"jsonrpc":"2.0"}`} {
		_, err := Import(t.Context(), strings.NewReader(file), nil, recorder.Imported{})
		if !errors.Is(err, ErrNotCapture) || file != "" && strings.Contains(err.Error(), file) {
			t.Errorf("%q: got %v, want %v", file, err, ErrNotCapture)
		}
	}
	// A packet that says that it is 4 GiB long is not waited for.
	big := bytes.Clone(ng.Bytes())
	at := bytes.Index(big, w.packets[0]) - 8
	binary.LittleEndian.PutUint32(big[at:], 1<<32-1)
	if r := imported(t, open(t), big); r.Fault != "a packet is longer than its block" {
		t.Errorf("a packet of 4 GiB: the report is %+v", r)
	}
}

// discard is a Log that keeps nothing but counts.
type discard struct{ frames, bytes int }

func (d *discard) Start(recorder.Session) (Recording, error) { return d, nil }
func (d *discard) ID() string                                { return "0" }
func (d *discard) EndAt(time.Time, string, string) error     { return nil }
func (d *discard) Append(frames ...recorder.Frame) error {
	for _, f := range frames {
		d.frames, d.bytes = d.frames+1, d.bytes+len(f.Bytes)
	}
	return nil
}

func TestImportCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := talk(newWire(t, "10.0.0.1:50000", "10.0.0.2:8080"))
	_, err := Import(ctx, bytes.NewReader(pcap(t, layers.LinkTypeEthernet, w.packets...)), To(open(t)), recorder.Imported{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// FuzzImport checks that no file makes Import panic, or put a frame on record as
// delivered that a Parser refuses.
func FuzzImport(f *testing.F) {
	for _, w := range []*wire{talk(newWire(f, "10.0.0.1:50000", "10.0.0.2:8080")), talk(newWire(f, "[2001:db8::1]:50000", "[2001:db8::2]:8080"))} {
		f.Add(pcap(f, layers.LinkTypeEthernet, w.packets...))
		var ng bytes.Buffer
		n, _ := pcapgo.NewNgWriter(&ng, layers.LinkTypeEthernet)
		for _, p := range w.packets {
			n.WritePacket(gopacket.CaptureInfo{Timestamp: start, CaptureLength: len(p), Length: len(p)}, p)
		}
		n.Flush()
		f.Add(ng.Bytes())
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		r, err := Import(t.Context(), bytes.NewReader(file), checked{t}, recorder.Imported{})
		if err != nil && !errors.Is(err, ErrNotCapture) {
			t.Fatal(err)
		}
		if _, err := json.Marshal(r); err != nil {
			t.Fatal(err)
		}
	})
}

type checked struct{ *testing.T }

func (c checked) Start(s recorder.Session) (Recording, error) {
	_, err := json.Marshal(s)
	return checkedRecording(c), err
}

type checkedRecording struct{ *testing.T }

func (checkedRecording) ID() string                            { return "0" }
func (checkedRecording) EndAt(time.Time, string, string) error { return nil }
func (c checkedRecording) Append(frames ...recorder.Frame) error {
	var p codec.Parser
	for _, f := range frames {
		if _, err := p.Parse(f.Bytes, f.Direction); err != nil && f.Verdict == recorder.Delivered && len(f.Bytes) < heldLine && !f.More {
			c.Errorf("delivered, but refused: %v", err)
		}
	}
	return nil
}

// TestImportSegments cuts a conversation into segments of any length that overlap,
// come twice and in any order, some not at all: what is on record as delivered was
// sent, in its order, and without loss all of it is.
func TestImportSegments(t *testing.T) {
	for seed := range uint64(150) {
		random := rand.New(rand.NewPCG(seed, 1))
		var lines []string
		text := ""
		for n := range 20 {
			lines = append(lines, fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":%q}}`+"\n", n, strings.Repeat(string(rune('a'+n)), random.IntN(60))))
			text += lines[n]
		}
		w := newWire(t, "10.0.0.1:50000", "10.0.0.2:8080")
		w.seq[0] = random.Uint32()
		w.hello()
		first := w.seq[0]
		for at := 0; at < len(text); {
			n := min(1+random.IntN(50), len(text)-at)
			back := min(random.IntN(30), at)
			w.seq[0] = first + uint32(at-back)
			w.packet(0, layers.TCP{ACK: true}, text[at-back:at+n])
			at += n
		}
		last := w.seq[0]
		in := slices.Clone(w.packets[3:])
		loss := seed%2 == 1
		if loss {
			lost := random.IntN(len(in) - 1)
			in = slices.Delete(in, lost, lost+1)
		}
		for range random.IntN(10) {
			in = append(in, in[random.IntN(len(in))])
		}
		if reach := random.IntN(12); reach > 0 { // each moves by some places
			for i := range in {
				j := min(i+random.IntN(reach), len(in)-1)
				in[i], in[j] = in[j], in[i]
			}
		}
		w.packets, w.seq[0] = append(w.packets[:3:3], in...), last
		w.bye()
		l := &kept{}
		r, err := Import(t.Context(), bytes.NewReader(pcap(t, layers.LinkTypeEthernet, w.packets...)), l, recorder.Imported{})
		if err != nil || r.Fault != "" || len(r.Sessions) != 1 {
			t.Fatalf("seed %d: %v, %+v", seed, err, r)
		}
		if !loss && strings.Join(l.lines, "") != text {
			t.Errorf("seed %d: got %d lines, want %d; or they differ", seed, len(l.lines), len(lines))
		}
		next := 0
		for _, line := range l.lines {
			i := slices.Index(lines[next:], line)
			if i < 0 {
				t.Errorf("seed %d: %q is on record, which was not sent, or before", seed, line)
				continue
			}
			next += i + 1
		}
		if loss && len(l.lines) < len(lines)-8 {
			t.Errorf("seed %d: without a segment, %d of %d lines are on record", seed, len(l.lines), len(lines))
		}
	}
}

// kept is a Log that keeps the lines that were delivered.
type kept struct {
	discard
	lines []string
}

func (k *kept) Start(recorder.Session) (Recording, error) { return k, nil }

func (k *kept) Append(frames ...recorder.Frame) error {
	for _, f := range frames {
		if f.Verdict == recorder.Delivered {
			k.lines = append(k.lines, string(f.Bytes)+"\n")
		}
	}
	return nil
}
