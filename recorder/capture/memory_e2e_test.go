//go:build e2e

package capture

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"example.com/broker/recorder"
)

// TestImportMemory takes in many streams with lines that do not end, and many that
// only begin, and one frame of 512 MiB. It runs in make e2e: the race
// detector makes minutes of its seconds.
func TestImportMemory(t *testing.T) {
	for _, c := range []struct {
		name  string
		write func(w io.Writer)
	}{
		{"lines without an end", func(w io.Writer) {
			for port := range 300 {
				a := newWire(t, fmt.Sprintf("10.0.0.1:%d", 10000+port), "10.0.0.2:8080")
				a.hello()
				a.say(0, hello)
				for range 16 {
					a.packet(0, layers.TCP{ACK: true}, strings.Repeat("x", 60_000))
				}
				write(w, a.packets)
			}
		}},
		{"a hundred thousand beginnings", func(w io.Writer) {
			a := newWire(t, "10.0.0.1:1", "10.0.0.2:8080")
			for n := range 100_000 {
				a.ends[0] = netip.AddrPortFrom(a.ends[0].Addr(), uint16(n))
				a.seq[0] = uint32(n)
				a.packets = a.packets[:0]
				a.packet(0, layers.TCP{SYN: true}, "")
				write(w, a.packets)
			}
		}},
		{"holes", func(w io.Writer) {
			for port := range 300 {
				a := newWire(t, fmt.Sprintf("10.0.0.1:%d", 10000+port), "10.0.0.2:8080")
				a.hello()
				a.say(0, hello)
				a.seq[0]++
				for range 10 {
					a.packet(0, layers.TCP{ACK: true}, strings.Repeat("x", 60_000))
				}
				write(w, a.packets)
			}
		}},
		{"a long frame", func(w io.Writer) {
			a := newWire(t, "10.0.0.1:50000", "10.0.0.2:8080")
			a.hello()
			a.say(0, hello)
			for range 512 << 20 / 60_000 {
				a.packet(1, layers.TCP{ACK: true}, strings.Repeat("x", 60_000))
				write(w, a.packets)
				a.packets = a.packets[:0]
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, w := io.Pipe()
			go func() {
				pw := pcapgo.NewWriterNanos(w)
				pw.WriteFileHeader(65535, layers.LinkTypeEthernet)
				c.write(w)
				w.Close()
			}()
			var peak uint64
			watched := readerFunc(func(p []byte) (int, error) {
				if rand.IntN(500) == 0 {
					var m runtime.MemStats
					runtime.GC()
					runtime.ReadMemStats(&m)
					peak = max(peak, m.HeapAlloc)
				}
				return r.Read(p)
			})
			d := &discard{}
			report, err := Import(t.Context(), watched, d, recorder.Imported{})
			if err != nil || report.Fault != "" {
				t.Fatalf("got %v, %s", err, report.Fault)
			}
			t.Logf("%d packets, %d frames of %d bytes, at most %d MiB", report.Packets, d.frames, d.bytes, peak>>20)
			if peak > 256<<20 {
				t.Errorf("%d MiB were in use", peak>>20)
			}
		})
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func write(w io.Writer, packets [][]byte) {
	for _, p := range packets {
		head := binary.LittleEndian.AppendUint32(nil, uint32(start.Unix()))
		head = binary.LittleEndian.AppendUint32(head, 0)
		head = binary.LittleEndian.AppendUint32(head, uint32(len(p)))
		head = binary.LittleEndian.AppendUint32(head, uint32(len(p)))
		w.Write(append(head, p...))
	}
}
