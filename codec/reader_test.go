package codec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

var readerTests = []struct {
	name    string
	in      string
	want    []string // a line that is too large is "413 " and its id
	wantErr error
}{
	{name: "empty", wantErr: io.EOF},
	{name: "two lines in one write", in: "{}\n[]\n", want: []string{"{}", "[]"}, wantErr: io.EOF},
	{name: "cut in mid-line", in: "{}\n{\"id\":", want: []string{"{}", "{\"id\":"}, wantErr: io.ErrUnexpectedEOF},
	{name: "blank lines", in: "\n\n{}\n", want: []string{"", "", "{}"}, wantErr: io.EOF},
	{name: "at the limit", in: strings.Repeat("x", 64) + "\n", want: []string{strings.Repeat("x", 64)}, wantErr: io.EOF},
	{name: "over the limit", in: strings.Repeat("x", 65) + "\n{}\n", want: []string{"413 ", "{}"}, wantErr: io.EOF},
	{name: "over the limit, without an end", in: strings.Repeat("x", 165), want: []string{"413 "}, wantErr: io.EOF},
	{name: "id in front", in: `{"id": 12,"params":{"id":4,"x":"` + strings.Repeat("x", 200) + "\"}}\n{}\n", want: []string{"413 12", "{}"}, wantErr: io.EOF},
	{name: "id behind", in: `{"params":{"id":4,"x":"` + strings.Repeat(`"id":1,\"`, 50) + `"},"a":["id"],"id" : "a\"b"}` + "\n", want: []string{`413 "a\"b"`}, wantErr: io.EOF},
	{name: "two ids", in: `{"id":1,"params":"` + strings.Repeat("x", 200) + `","id":2}` + "\n", want: []string{"413 "}, wantErr: io.EOF},
	{name: "id with an escape", in: `{"\u0069\u0064":"x","a":"` + strings.Repeat("x", 200) + `"}` + "\n", want: []string{`413 "x"`}, wantErr: io.EOF},
	{name: "two values for an id", in: `{"id":1 2,"a":"` + strings.Repeat("x", 200) + `"}` + "\n", want: []string{"413 "}, wantErr: io.EOF},
	{name: "blank around the id", in: `{"a":"` + strings.Repeat("x", 200) + "\",\"id\" : 1\t}\n", want: []string{"413 1"}, wantErr: io.EOF},
	{name: "id of an inner object", in: `{"a":{"id":1},"b":[{"id":2}],"c":"` + strings.Repeat("x", 200) + "\"}\n", want: []string{"413 "}, wantErr: io.EOF},
	{name: "id as a value", in: `{"a":"id","b":"` + strings.Repeat("x", 200) + `"}` + "\n", want: []string{"413 "}, wantErr: io.EOF},
}

func TestReader(t *testing.T) {
	for _, tt := range readerTests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readAll(strings.NewReader(tt.in))
			if !slices.Equal(got, tt.want) || !errors.Is(err, tt.wantErr) {
				t.Errorf("lines %q, error %v; want %q, %v", got, err, tt.want, tt.wantErr)
			}
		})
	}
}

// FuzzReader checks that how the bytes arrive does not matter.
func FuzzReader(f *testing.F) {
	for _, tt := range readerTests {
		f.Add([]byte(tt.in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		want, wantErr := readAll(bytes.NewReader(in))
		got, err := readAll(iotest.OneByteReader(bytes.NewReader(in)))
		if !slices.Equal(got, want) || fmt.Sprint(err) != fmt.Sprint(wantErr) {
			t.Errorf("byte by byte: %q, %v; at once: %q, %v", got, err, want, wantErr)
		}
	})
}

func readAll(rd io.Reader) (lines []string, err error) {
	r := NewReader(rd, Limits{Frame: 64})
	for {
		line, err := r.Next()
		var e *Error
		switch {
		case errors.As(err, &e):
			lines = append(lines, fmt.Sprintf("%d %s", e.Code, e.ID))
			continue
		case err == io.ErrUnexpectedEOF:
			lines = append(lines, string(line))
		}
		if err != nil {
			return lines, err
		}
		lines = append(lines, string(line))
	}
}

func TestBuffered(t *testing.T) {
	r := NewReader(strings.NewReader("a\nb\nc"), Limits{})
	var got []bool
	for range 4 {
		r.Next()
		got = append(got, r.Buffered())
	}
	// Behind b, the c without an end needs another read; then the end is known.
	if want := []bool{true, false, true, true}; !slices.Equal(got, want) {
		t.Errorf("Buffered = %v, want %v", got, want)
	}
}

func TestRoomForNewline(t *testing.T) {
	for _, in := range []string{"abc\n", "abc", strings.Repeat("x", firstBuffer-1), strings.Repeat("x", bigBuffer)} {
		line, _ := NewReader(strings.NewReader(in), Limits{}).Next()
		if cap(line) == len(line) {
			t.Errorf("no room behind a line of %d bytes", len(line))
		}
	}
}

func TestPoison(t *testing.T) {
	r := NewReader(strings.NewReader("{\"a\":1}\n{\"b\":2}\n"), Limits{})
	a, _ := r.Next()
	r.Next()
	if poison == (string(a) == `{"a":1}`) {
		t.Errorf("kept frame reads %q with poison %v", a, poison)
	}
}

// A Reader's buffer stays near its limit, whatever the peer sends.
func TestReaderIsBounded(t *testing.T) {
	const limit = 1<<20 + 1
	for _, n := range []int{limit, limit + 1, 10 * limit} {
		r := NewReader(strings.NewReader(strings.Repeat("x", n)+"\n{}\n"), Limits{Frame: limit})
		line, err := r.Next()
		if n == limit && len(line) != n || n > limit && err == nil {
			t.Errorf("%d bytes: a line of %d, error %v", n, len(line), err)
		}
		if cap(r.buf) > limit+2*firstBuffer {
			t.Errorf("a buffer of %d bytes for lines up to %d", cap(r.buf), limit)
		}
		if line, err := r.Next(); string(line) != "{}" {
			t.Errorf("behind it: %q, %v", line, err)
		}
	}
}

func TestReaderGivesMemoryBack(t *testing.T) {
	r := NewReader(strings.NewReader(strings.Repeat("x", 4<<20)+"\n{}\n"), Limits{})
	r.Next()
	r.Next()
	r.Next()
	if cap(r.buf) > bigBuffer {
		t.Errorf("the buffer keeps %d bytes behind a big frame", cap(r.buf))
	}
}

// TestReaderWaits checks that who waits for a line holds no buffer, and gets all that has
// come with its beginning.
func TestReaderWaits(t *testing.T) {
	in, out := io.Pipe()
	waiting := make(chan int)
	r := NewReader(nil, Limits{})
	r.rd = readFunc(func(p []byte) (int, error) {
		waiting <- cap(r.buf)
		return in.Read(p)
	})
	lines := make(chan string)
	go func() {
		for {
			line, err := r.Next()
			if err != nil {
				close(lines)
				return
			}
			lines <- string(line)
		}
	}()
	for _, text := range []string{"{}", "", strings.Repeat("x", 100<<10)} {
		if held := <-waiting; held != 0 {
			t.Errorf("a buffer of %d bytes is held for the next line", held)
		}
		go io.WriteString(out, text+"\n")
		for got := ""; got == ""; {
			select {
			case <-waiting: // for the rest of it
			case line := <-lines:
				if got = line + "\n"; line != text {
					t.Fatalf("got a line of %d bytes, want %d", len(line), len(text))
				}
			}
		}
	}
	<-waiting
	out.Close()
	<-lines
}

type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }
