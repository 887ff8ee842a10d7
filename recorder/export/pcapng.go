package export

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// A session becomes one TCP stream:
//
//	client ──SYN──► server, ◄──SYN,ACK──, ──ACK──►   at the session's start
//	data of both sides, at the time of each frame; the receiver acknowledges
//	what nothing else does every ackEvery bytes
//	FIN of both sides at the session's end; RST if it was interrupted; nothing
//	if it still runs
//
// The packets are IP without a link below (LINKTYPE_RAW), with right checksums.

// Where an address is not on record, it is one for documentation (RFC 5737,
// RFC 3849). No dissector of Wireshark claims the port.
var (
	unknownClient = netip.MustParseAddrPort("192.0.2.1:49152")
	server4       = netip.MustParseAddrPort("192.0.2.2:6277")
	server6       = netip.MustParseAddrPort("[2001:db8::2]:6277")
)

const (
	segment4 = 1500 - 20 - 20 // Ethernet's MTU, less the headers
	segment6 = 1500 - 40 - 20
	window   = 65535
	scale    = 7         // window << scale bytes may be under way
	ackEvery = 256 << 10 // bytes

	maxComment  = 1 << 10 // bytes
	maxComments = 100     // of one packet
)

// A side is one end of the stream.
type side struct {
	addr    netip.AddrPort
	seq     uint32 // of the byte that it sends next
	unacked int    // bytes that the other side has not acknowledged
	id      uint16 // of its next IPv4 packet
}

type pcapng struct {
	w  *bufio.Writer
	ng *pcapgo.NgWriter

	sides    [2]side // by the direction of what they send
	segment  int     // most bytes of a segment
	part     []byte  // the segment's
	buffer   gopacket.SerializeBuffer
	block    []byte
	comments []string // of the packet that is written next
	left     int      // comments that it has no room for
	last     time.Time

	frames int64
	under  [2]bool // by direction: a frame is under way
	found  [2][]codec.Finding
	notes  [2][]recorder.Note
}

func newPcapng(w *bufio.Writer) writer {
	return &pcapng{w: w, buffer: gopacket.NewSerializeBuffer()}
}

// endpoints returns the client's and the server's address of a session.
func endpoints(s recorder.Session) (client, server netip.AddrPort) {
	parse := func(text string) (a netip.AddrPort, ok bool) {
		a, err := netip.ParseAddrPort(text)
		if err != nil {
			return a, false
		}
		return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port()), true
	}
	client, ok := parse(s.Client)
	if !ok {
		client = unknownClient
		if host, err := netip.ParseAddr(s.Client); err == nil {
			client = netip.AddrPortFrom(host.Unmap().WithZone(""), client.Port())
		}
	}
	if s.Imported != nil {
		if server, ok = parse(s.Server); ok && server.Addr().Is4() == client.Addr().Is4() && server != client {
			return client, server
		}
	}
	if client.Addr().Is4() {
		return client, server4
	}
	return client, server6
}

func (x *pcapng) begin(s recorder.Session) (err error) {
	x.sides[codec.C2S].addr, x.sides[codec.S2C].addr = endpoints(s)
	x.segment = segment4
	if x.sides[codec.C2S].addr.Addr().Is6() {
		x.segment = segment6
	}
	// The writer's own buffer is flushed before each packet with a comment. Hiding
	// the type of x.w keeps it from taking that as its own.
	x.ng, err = pcapgo.NewNgWriterInterface(struct{ io.Writer }{x.w}, pcapgo.NgInterface{
		Name: "session " + s.ID, Comment: comment(about(s)), LinkType: layers.LinkTypeRaw, TimestampResolution: 9,
	}, pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{
		Application: "broker export", Comment: comment(about(s)),
	}})
	if err != nil {
		return err
	}
	x.last = s.Start
	hello := func(d codec.Direction, ack bool) error {
		return x.packet(d, s.Start, &layers.TCP{SYN: true, ACK: ack, Options: []layers.TCPOption{
			{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: binary.BigEndian.AppendUint16(nil, uint16(x.segment))},
			{OptionType: layers.TCPOptionKindWindowScale, OptionLength: 3, OptionData: []byte{scale}},
		}}, nil)
	}
	x.comments = append(x.comments, about(s))
	if err := hello(codec.C2S, false); err != nil {
		return err
	}
	if err := hello(codec.S2C, true); err != nil {
		return err
	}
	return x.packet(codec.C2S, s.Start, &layers.TCP{ACK: true}, nil)
}

// about says what a session is.
func about(s recorder.Session) string {
	text := fmt.Sprintf("session %s; subject %s; server %s; rule %s; transport %s; state %s",
		s.ID, cmp.Or(s.Subject, "unknown"), s.Server, cmp.Or(s.Rule, "none"), s.Transport, s.State)
	if s.Imported != nil {
		text += "; imported from " + s.Imported.File
	}
	return text
}

func (x *pcapng) record(f recorder.Frame) error {
	d := f.Direction
	if f.Verdict == recorder.Found {
		x.found[d], _ = appendFindings(x.found[d], f.Bytes)
		return nil
	}
	if f.Verdict == recorder.Noted {
		x.notes[d] = recorder.AppendNote(x.notes[d], f.Bytes)
		return nil
	}
	if !f.Verdict.IsFrame() {
		return nil
	}
	if f.Verdict == recorder.Blocked || !x.under[d] {
		x.frames++
		x.comments = append(x.comments, fmt.Sprintf("frame %d %s %s", x.frames, d, f.Verdict))
	} else if f.Verdict != recorder.Delivered {
		x.comments = append(x.comments, fmt.Sprintf("%s frame goes on: %s", d, f.Verdict))
	}
	if len(x.found[d]) > 0 {
		x.comments = append(x.comments, d.String()+" findings: "+detectors(x.found[d]))
		x.found[d] = x.found[d][:0]
	}
	for _, n := range x.notes[d] {
		x.comments = append(x.comments, d.String()+" "+noteText(n))
	}
	x.notes[d] = x.notes[d][:0]
	if over := len(x.comments) - maxComments; over > 0 {
		x.comments, x.left = x.comments[:maxComments], x.left+over
	}
	if f.Verdict == recorder.Blocked {
		x.comments[len(x.comments)-1] += fmt.Sprintf(", %d bytes, not in the stream", len(f.Bytes))
		return nil
	}
	x.under[d] = f.More
	return x.data(d, f.Time, f.Bytes, !f.More)
}

// data writes the segments of a frame, or of a part of it.
func (x *pcapng) data(d codec.Direction, t time.Time, b []byte, newline bool) error {
	x.last = t
	from, to := &x.sides[d], &x.sides[1-d]
	for len(b) > 0 || newline {
		n := min(len(b), x.segment)
		x.part = append(x.part[:0], b[:n]...)
		if b = b[n:]; len(b) == 0 && newline && len(x.part) < x.segment {
			x.part, newline = append(x.part, '\n'), false
		}
		if err := x.packet(d, t, &layers.TCP{ACK: true, PSH: len(b) == 0 && !newline}, x.part); err != nil {
			return err
		}
		to.unacked = 0
		if from.unacked += len(x.part); from.unacked >= ackEvery {
			if err := x.packet(1-d, t, &layers.TCP{ACK: true}, nil); err != nil {
				return err
			}
			from.unacked = 0
		}
	}
	return nil
}

func (x *pcapng) end(s recorder.Session) error {
	t := s.End
	if t.IsZero() || t.Before(x.last) {
		t = x.last
	}
	switch s.State {
	case recorder.Running:
		if len(x.comments) == 0 {
			return x.ng.Flush()
		}
		// Comments need a packet: an acknowledgement of what came last.
		err := x.packet(codec.C2S, t, &layers.TCP{ACK: true}, nil)
		return cmp.Or(err, x.ng.Flush())
	case recorder.Interrupted:
		err := x.packet(codec.S2C, t, &layers.TCP{RST: true, ACK: true}, nil)
		return cmp.Or(err, x.ng.Flush())
	}
	for _, d := range []codec.Direction{codec.C2S, codec.S2C} {
		if err := x.packet(d, t, &layers.TCP{FIN: true, ACK: true}, nil); err != nil {
			return err
		}
	}
	err := x.packet(codec.C2S, t, &layers.TCP{ACK: true}, nil)
	return cmp.Or(err, x.ng.Flush())
}

// packet writes what one side sends. It fills in everything but flags and options.
func (x *pcapng) packet(d codec.Direction, t time.Time, tcp *layers.TCP, payload []byte) error {
	from, to := &x.sides[d], &x.sides[1-d]
	tcp.SrcPort, tcp.DstPort = layers.TCPPort(from.addr.Port()), layers.TCPPort(to.addr.Port())
	tcp.Seq, tcp.Window = from.seq, window
	if tcp.ACK {
		tcp.Ack = to.seq
	}
	src, dst := net.IP(from.addr.Addr().AsSlice()), net.IP(to.addr.Addr().AsSlice())
	var ip gopacket.SerializableLayer
	if from.addr.Addr().Is4() {
		v4 := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, Flags: layers.IPv4DontFragment, Id: from.id, SrcIP: src, DstIP: dst}
		tcp.SetNetworkLayerForChecksum(v4)
		ip = v4
	} else {
		v6 := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: src, DstIP: dst}
		tcp.SetNetworkLayerForChecksum(v6)
		ip = v6
	}
	err := gopacket.SerializeLayers(x.buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, tcp, gopacket.Payload(payload))
	if err != nil {
		return err
	}
	from.id++
	from.seq += uint32(len(payload))
	if tcp.SYN || tcp.FIN {
		from.seq++
	}
	data := x.buffer.Bytes()
	if len(x.comments) == 0 {
		return x.ng.WritePacket(gopacket.CaptureInfo{Timestamp: t, CaptureLength: len(data), Length: len(data)}, data)
	}
	if x.left > 0 {
		x.comments = append(x.comments, fmt.Sprintf("and %d more", x.left))
	}
	x.block = appendPacket(x.block[:0], t, data, x.comments)
	x.comments, x.left = x.comments[:0], 0
	if err := x.ng.Flush(); err != nil {
		return err
	}
	_, err = x.w.Write(x.block)
	return err
}

// appendPacket appends an Enhanced Packet Block with comments, which pcapgo does
// not write, to dst (draft-ietf-opsawg-pcapng, section 4.3):
//
//	4 bytes  block type, 6
//	4 bytes  length of the block
//	4 bytes  interface
//	8 bytes  time in ns since 1970, the upper half first
//	4 bytes  bytes captured, and 4 bytes how many there were
//	…        the packet, to a multiple of 4 bytes
//	         for each option: 2 bytes code (1 comment, 0 no more), 2 bytes length,
//	         its bytes, to a multiple of 4
//	4 bytes  length of the block, again
func appendPacket(dst []byte, t time.Time, data []byte, comments []string) []byte {
	le := binary.LittleEndian
	pad := func() {
		for len(dst)%4 != 0 {
			dst = append(dst, 0)
		}
	}
	dst = le.AppendUint32(dst, 6)
	dst = le.AppendUint32(dst, 0) // filled in below
	dst = le.AppendUint32(dst, 0)
	ns := uint64(t.UnixNano())
	dst = le.AppendUint32(dst, uint32(ns>>32))
	dst = le.AppendUint32(dst, uint32(ns))
	dst = le.AppendUint32(dst, uint32(len(data)))
	dst = le.AppendUint32(dst, uint32(len(data)))
	dst = append(dst, data...)
	pad()
	for _, c := range comments {
		c = comment(c)
		dst = le.AppendUint16(dst, 1)
		dst = le.AppendUint16(dst, uint16(len(c)))
		dst = append(dst, c...)
		pad()
	}
	dst = le.AppendUint32(dst, 0)
	size := uint32(len(dst) + 4)
	le.PutUint32(dst[4:], size)
	return le.AppendUint32(dst, size)
}

// comment returns text as a pcapng comment: UTF-8 of a bounded length.
func comment(text string) string {
	if len(text) > maxComment {
		text = text[:maxComment]
	}
	return strings.ToValidUTF8(text, "")
}
