// Package capture takes MCP out of captures of a network and puts it on record.
//
//	log, err := recorder.Open(recorder.Options{Dir: "data/log", Key: key})
//	report, err := capture.Import(ctx, file, capture.To(log), recorder.Imported{File: "office.pcapng"})
//
// A capture is a file of pcap or pcapng, gzipped or not. Of each TCP stream in it
// the segments are brought in order; a stream whose lines are JSON-RPC becomes a
// recording, and others are counted by what they are. A line that a codec.Parser
// refuses is recorded as blocked. Memory is bounded, whatever is in the file.
package capture

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime/debug"
	"slices"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"github.com/google/gopacket/reassembly"

	"example.com/broker/recorder"
)

// Bounds.
const (
	maxPacket  = 1 << 20 // bytes of a packet, or of any block of a pcapng
	maxStreams = 8192    // that are followed at a time

	// Segments that wait for one before them, in the assembler's pages of 1.9 KB.
	waitingStream = 4096
	waitingAll    = 32768

	// gapTime is how long a segment is waited for, in the capture's time.
	gapTime = 5 * time.Second
)

// A Report says what was found.
type Report struct {
	Packets  int64            `json:"packets"`
	Sessions []Session        `json:"sessions"`
	Streams  map[string]int64 `json:"skipped_streams"` // by why they are no recordings
	Skipped  map[string]int64 `json:"skipped_packets"` // by why they are of no stream
	Fault    string           `json:"fault,omitempty"` // why the file was not read to its end
}

// A Session is one stream that has been recorded.
type Session struct {
	ID     string    `json:"session"`
	Client string    `json:"client"`
	Server string    `json:"server"`
	Start  time.Time `json:"start"`
	End    time.Time `json:"end"`
	C2S    int64     `json:"c2s"` // frames
	S2C    int64     `json:"s2c"`
	// Blocked are frames that a Parser refuses; Incomplete are those that segments
	// are missing of, which are not on record; Unchecked are longer than 4 MiB.
	Blocked    int64 `json:"blocked"`
	Incomplete int64 `json:"incomplete"`
	Unchecked  int64 `json:"unchecked"`
}

// A Log starts recordings.
type Log interface {
	Start(s recorder.Session) (Recording, error)
}

// A Recording takes the frames of a session, and does not keep their bytes.
type Recording interface {
	ID() string
	Append(frames ...recorder.Frame) error
	EndAt(end time.Time, state, reason string) error
}

// To returns l as a Log.
func To(l *recorder.Log) Log { return toLog{l} }

type toLog struct{ *recorder.Log }

func (l toLog) Start(s recorder.Session) (Recording, error) { return l.Log.Start(s) }

// ErrNotCapture is wrapped by errors of files that are no captures.
var ErrNotCapture = errors.New("neither pcap nor pcapng")

// Import records what is MCP in a capture. A capture that is damaged, or cut off,
// is read as far as it goes, and the Report says why no further. An error means
// that it is none, that the log cannot be written, or that ctx is done; what is
// on record until then stays.
func Import(ctx context.Context, file io.Reader, log Log, as recorder.Imported) (r *Report, err error) {
	r = &Report{Sessions: []Session{}, Streams: map[string]int64{}, Skipped: map[string]int64{}}
	x := &importer{log: log, as: as, report: r, streams: map[ends]*stream{}}
	x.pool = reassembly.NewStreamPool(x)
	x.assembler = reassembly.NewAssembler(x.pool)
	x.assembler.MaxBufferedPagesPerConnection = waitingStream
	x.assembler.MaxBufferedPagesTotal = waitingAll

	packets, err := newSource(file)
	if err != nil {
		return r, err
	}
	for x.err == nil && ctx.Err() == nil {
		data, ci, link, err := packets.next()
		if err != nil {
			if err != io.EOF {
				r.Fault = faultOf(err)
			}
			break
		}
		r.Packets++
		if err := guard(func() { x.packet(data, ci, link) }); err != nil {
			r.Fault = "packet " + fmt.Sprint(r.Packets) + " cannot be put in its place"
			break
		}
	}
	if guard(func() { x.assembler.FlushAll() }) != nil && r.Fault == "" {
		r.Fault = "some segments cannot be put in their places"
	}
	for _, s := range x.streams {
		s.finish()
	}
	slices.SortFunc(r.Sessions, func(a, b Session) int { return a.Start.Compare(b.Start) })
	return r, errors.Join(x.err, ctx.Err())
}

// guard calls f. gopacket reads what strangers have sent, and is not proof
// against all of it: a panic in it becomes an error, without the packet's bytes.
func guard(f func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in gopacket: %.200v\n%s", p, debug.Stack())
		}
	}()
	f()
	return nil
}

func faultOf(err error) string {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return "the file ends inside a packet"
	}
	return err.Error()
}

// A source reads packets.
type source struct {
	pcap *pcapgo.Reader
	ng   *pcapgo.NgReader
}

func newSource(file io.Reader) (*source, error) {
	in := bufio.NewReaderSize(file, 64<<10)
	magic, _ := in.Peek(4)
	if len(magic) == 4 && magic[0] == 0x1f && magic[1] == 0x8b {
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, ErrNotCapture
		}
		in = bufio.NewReaderSize(z, 64<<10)
		magic, _ = in.Peek(4)
	}
	if len(magic) < 4 {
		return nil, ErrNotCapture
	}
	s := &source{}
	var err error
	if binary.BigEndian.Uint32(magic) == blockSection {
		if e := guard(func() {
			s.ng, err = pcapgo.NewNgReader(&blocks{in: in}, pcapgo.NgReaderOptions{WantMixedLinkType: true, SkipUnknownVersion: true})
		}); e != nil {
			err = errors.New("its header cannot be read")
		}
	} else if s.pcap, err = pcapgo.NewReader(in); err == nil {
		s.pcap.SetSnaplen(maxPacket) // what the file says is often wrong
	}
	if err != nil {
		return nil, ErrNotCapture
	}
	return s, nil
}

func (s *source) next() (data []byte, ci gopacket.CaptureInfo, link layers.LinkType, err error) {
	if s.pcap != nil {
		data, ci, err = s.pcap.ReadPacketData()
		return data, ci, s.pcap.LinkType(), err
	}
	if e := guard(func() { data, ci, err = s.ng.ReadPacketData() }); e != nil {
		err = errors.New("a block cannot be read")
	}
	if err == nil {
		link, _ = ci.AncillaryData[0].(layers.LinkType)
	}
	return data, ci, link, err
}

// The types of the blocks of a pcapng that hold a packet, or begin a section.
const (
	blockSection  = 0x0a0d0d0a
	blockPacket   = 2 // obsolete
	blockSimple   = 3
	blockEnhanced = 6
)

// blocks passes on the blocks of a pcapng, and looks at their lengths before:
// pcapgo makes room for a packet of any length that a file claims.
type blocks struct {
	in   *bufio.Reader
	big  bool // the section's integers are big-endian
	left int  // bytes of the block under way
}

func (b *blocks) Read(p []byte) (int, error) {
	if b.left == 0 {
		if err := b.begin(); err != nil {
			return 0, err
		}
	}
	n, err := b.in.Read(p[:min(len(p), b.left)])
	b.left -= n
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (b *blocks) begin() error {
	head, err := b.in.Peek(28)
	if len(head) == 0 {
		return err
	}
	if len(head) < 12 {
		return io.ErrUnexpectedEOF
	}
	if binary.BigEndian.Uint32(head) == blockSection {
		b.big = binary.BigEndian.Uint32(head[8:]) == 0x1a2b3c4d
	}
	u32 := func(at int) uint32 {
		if at+4 > len(head) {
			return 0
		}
		if b.big {
			return binary.BigEndian.Uint32(head[at:])
		}
		return binary.LittleEndian.Uint32(head[at:])
	}
	size := u32(4)
	if size < 12 || size > maxPacket+1024 || size%4 != 0 {
		return errors.New("a block's length cannot be")
	}
	packet := uint32(0)
	switch u32(0) {
	case blockEnhanced, blockPacket:
		if packet = u32(20); size < 32 {
			return errors.New("a block's length cannot be")
		}
		size -= 32
	case blockSimple:
		packet = min(u32(8), size-12) // of a longer one, the rest was not captured
		size -= 12
	}
	if packet > size {
		return errors.New("a packet is longer than its block")
	}
	b.left = int(u32(4))
	return nil
}

// Ends are the addresses of a stream, the lower first.
type ends struct{ a, b netip.AddrPort }

type importer struct {
	log    Log
	as     recorder.Imported
	report *Report

	pool      *reassembly.StreamPool
	assembler *reassembly.Assembler
	streams   map[ends]*stream // the last between two addresses
	current   *stream          // of the packet under way
	made      uint64           // streams
	followed  int              // streams that the assembler has not let go of
	held      int              // bytes of lines that are not on record yet, of all streams
	flushed   time.Time        // when segments were last given up
	since     int              // packets since
	err       error            // of the log
}

// packetInfo is a packet's context, for the assembler.
type packetInfo struct{ gopacket.CaptureInfo }

func (c *packetInfo) GetCaptureInfo() gopacket.CaptureInfo { return c.CaptureInfo }

// New implements [reassembly.StreamFactory].
func (x *importer) New(_, _ gopacket.Flow, _ *layers.TCP, _ reassembly.AssemblerContext) reassembly.Stream {
	x.followed++
	return x.current
}

// packet takes in a packet.
func (x *importer) packet(data []byte, ci gopacket.CaptureInfo, link layers.LinkType) {
	// Times that time.Time's JSON or a count of ns cannot hold are none.
	if y := ci.Timestamp.Year(); y < 1970 || y > 2261 {
		ci.Timestamp = time.Unix(0, 0).UTC()
	}
	var p packet
	if why := p.decode(data, link); why != "" {
		x.report.Skipped[why]++
		return
	}
	key, forward := ends{p.src, p.dst}, true
	if p.dst.Compare(p.src) < 0 {
		key, forward = ends{p.dst, p.src}, false
	}
	s := x.streams[key]
	begins := p.tcp.SYN && !p.tcp.ACK
	switch {
	case s != nil && begins && (s.finished || s.started && p.tcp.Seq != s.isn):
		s.finish() // the same addresses once more
		s = nil
	case s != nil && s.finished:
		return // what comes late
	}
	if s == nil {
		x.makeRoom(ci.Timestamp)
		x.made++
		s = &stream{x: x, number: x.made, ends: [2]netip.AddrPort{p.src, p.dst}, started: begins, isn: p.tcp.Seq, first: ci.Timestamp, client: unknown}
		if p.tcp.SYN {
			s.client = 0
			if p.tcp.ACK { // the answer to what was not captured
				s.client = 1
			}
		}
		x.streams[key] = s
	}
	s.last = ci.Timestamp
	x.current = s
	p.tcp.Seq = s.rebase(p.src, p.tcp.Seq)
	// The assembler knows a stream by our number of it, so that one between the same
	// addresses is another.
	x.assembler.AssembleWithContext(s.flow(forward), &p.tcp, &packetInfo{ci})
	x.flush(ci.Timestamp)
}

// flush gives up segments that are late, which takes a look at every stream.
func (x *importer) flush(now time.Time) {
	x.since++
	if now.Sub(x.flushed) < time.Second || x.since < len(x.streams)/8 {
		return
	}
	x.flushed, x.since = now, 0
	x.assembler.FlushWithOptions(reassembly.FlushOptions{T: now.Add(-gapTime)})
}

// makeRoom forgets streams, those that have ended or are silent first, when there
// are too many.
func (x *importer) makeRoom(now time.Time) {
	if len(x.streams) < maxStreams && x.followed < maxStreams {
		return
	}
	forget := func() bool {
		for key, s := range x.streams {
			if s.finished {
				delete(x.streams, key)
			}
		}
		return len(x.streams) < maxStreams/2 && x.followed < maxStreams/2
	}
	for _, silent := range []time.Duration{time.Hour, time.Minute, time.Second} {
		x.assembler.FlushCloseOlderThan(now.Add(-silent))
		if forget() {
			return
		}
	}
	x.assembler.FlushAll()
	for _, s := range x.streams {
		s.finish()
	}
	forget()
}

// A packet is a TCP segment and whose it is.
type packet struct {
	src, dst netip.AddrPort
	tcp      layers.TCP
}

// linkSLL2 is LINKTYPE_LINUX_SLL2, 276, of which gopacket keeps 8 bits.
const linkSLL2 layers.LinkType = 276 & 0xff

// decode takes data apart, or says why it is of no stream.
func (p *packet) decode(data []byte, link layers.LinkType) (why string) {
	const cut = "cut off or malformed"
	var kind layers.EthernetType
	switch none := gopacket.NilDecodeFeedback; link {
	case layers.LinkTypeEthernet:
		var l layers.Ethernet
		if l.DecodeFromBytes(data, none) != nil {
			return cut
		}
		kind, data = l.EthernetType, l.Payload
	case layers.LinkTypeLinuxSLL:
		var l layers.LinuxSLL
		if l.DecodeFromBytes(data, none) != nil {
			return cut
		}
		kind, data = l.EthernetType, l.Payload
	case linkSLL2:
		if len(data) < 20 {
			return cut
		}
		kind, data = layers.EthernetType(binary.BigEndian.Uint16(data)), data[20:]
	case layers.LinkTypeNull, layers.LinkTypeLoop:
		var l layers.Loopback
		if l.DecodeFromBytes(data, none) != nil {
			return cut
		}
		data = l.Payload
	case layers.LinkTypeRaw, layers.LinkTypeIPv4, layers.LinkTypeIPv6, 12, 14: // the last two: raw, as some systems write it
	default:
		return "of another link type"
	}
	for kind == layers.EthernetTypeDot1Q || kind == layers.EthernetTypeQinQ || kind == 0x9100 {
		var l layers.Dot1Q
		if l.DecodeFromBytes(data, gopacket.NilDecodeFeedback) != nil {
			return cut
		}
		kind, data = l.Type, l.Payload
	}
	if len(data) == 0 {
		return cut
	}
	if kind != 0 && kind != layers.EthernetTypeIPv4 && kind != layers.EthernetTypeIPv6 {
		return "no IP"
	}
	var src, dst netip.Addr
	var protocol layers.IPProtocol
	switch data[0] >> 4 {
	case 4:
		var ip layers.IPv4
		if ip.DecodeFromBytes(data, gopacket.NilDecodeFeedback) != nil {
			return cut
		}
		if ip.Flags&layers.IPv4MoreFragments != 0 || ip.FragOffset != 0 {
			return "fragments of IP"
		}
		src, _ = netip.AddrFromSlice(ip.SrcIP)
		dst, _ = netip.AddrFromSlice(ip.DstIP)
		protocol, data = ip.Protocol, ip.Payload
	case 6:
		var ip layers.IPv6
		if ip.DecodeFromBytes(data, gopacket.NilDecodeFeedback) != nil {
			return cut
		}
		src, _ = netip.AddrFromSlice(ip.SrcIP)
		dst, _ = netip.AddrFromSlice(ip.DstIP)
		protocol, data = ip.NextHeader, ip.Payload
		for protocol == layers.IPProtocolIPv6HopByHop || protocol == layers.IPProtocolIPv6Destination || protocol == layers.IPProtocolIPv6Routing {
			// RFC 8200, section 4: the next header, and the length less one in 8 bytes.
			if len(data) < 8 || len(data) < 8*(int(data[1])+1) {
				return cut
			}
			protocol, data = layers.IPProtocol(data[0]), data[8*(int(data[1])+1):]
		}
		if protocol == layers.IPProtocolIPv6Fragment {
			return "fragments of IP"
		}
	default:
		return "no IP"
	}
	if protocol != layers.IPProtocolTCP {
		return "no TCP"
	}
	if p.tcp.DecodeFromBytes(data, gopacket.NilDecodeFeedback) != nil {
		return cut
	}
	p.src, p.dst = netip.AddrPortFrom(src, uint16(p.tcp.SrcPort)), netip.AddrPortFrom(dst, uint16(p.tcp.DstPort))
	return ""
}
