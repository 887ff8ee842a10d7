package archive

import (
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"example.com/broker/recorder"
)

// BenchmarkReplay reads a session of 8 MiB that does not compress: from the log, and from
// archives on this machine.
func BenchmarkReplay(b *testing.B) {
	for _, kind := range []string{"log", "file", "gs"} {
		b.Run(kind, func(b *testing.B) {
			o := recorder.Options{Dir: filepath.Join(b.TempDir(), "log"), OpenArchive: Open}
			switch kind {
			case "file":
				o.Archive = "file://" + b.TempDir()
			case "gs":
				o.Archive = gcs(b)
			}
			l, err := recorder.Open(o)
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			r, err := l.Start(recorder.Session{Server: "s"})
			if err != nil {
				b.Fatal(err)
			}
			frame, noise := make([]byte, 64<<10), rand.NewChaCha8([32]byte{})
			for range 128 {
				noise.Read(frame)
				if err := r.Append(recorder.Frame{Bytes: frame}); err != nil {
					b.Fatal(err)
				}
			}
			if err := r.End(recorder.Ended, ""); err != nil {
				b.Fatal(err)
			}
			if err := l.Settle(b.Context()); err != nil {
				b.Fatal(err)
			}
			for s := (recorder.Session{}); kind != "log" && s.Archived == ""; time.Sleep(10 * time.Millisecond) {
				if s, err = l.Session(b.Context(), r.ID()); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(8 << 20)
			for b.Loop() {
				if err := recorder.Replay(b.Context(), io.Discard, l, r.ID(), recorder.View{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkArchive moves sessions with a few small frames, one after the other.
func BenchmarkArchive(b *testing.B) {
	for _, kind := range []string{"file", "gs"} {
		b.Run(kind, func(b *testing.B) {
			dir := filepath.Join(b.TempDir(), "log")
			to := "file://" + b.TempDir()
			if kind == "gs" {
				to = gcs(b)
			}
			l, err := recorder.Open(recorder.Options{Dir: dir})
			if err != nil {
				b.Fatal(err)
			}
			var last string
			for range b.N {
				r, err := l.Start(recorder.Session{Server: "s"})
				if err == nil {
					err = r.Append(recorder.Frame{Bytes: []byte("a frame")})
				}
				if err == nil {
					err = r.End(recorder.Ended, "")
				}
				if err != nil {
					b.Fatal(err)
				}
				last = r.ID()
			}
			if err := l.Close(); err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			if l, err = recorder.Open(recorder.Options{Dir: dir, Archive: to, OpenArchive: Open}); err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			for s := (recorder.Session{}); s.Archived == ""; time.Sleep(time.Millisecond) {
				if s, err = l.Session(b.Context(), last); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
