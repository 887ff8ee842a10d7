package recorder

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// The socket of a broker speaks HTTP:
//
//	GET /sessions              a Session in JSON a line, newest first
//	GET /sessions/{id}/blocks  the Session in JSON and a newline, then for each
//	                           block: its length (uvarint, never 0), its number
//	                           (4 bytes, big-endian) and its bytes; at the end a
//	                           length of 0, so that nothing is cut unnoticed; with
//	                           ?follow, that is the end of the session, and blocks
//	                           come as they are recorded
//	GET /sessions/{id}/proof   a tlog-proof
//	GET /leaves                a Leaf in JSON a line, oldest first
//	GET /checkpoint            the signed note
const socketFile = "broker.sock"

// maxSocketPath is how long the path of a Unix socket may be (sun_path).
const maxSocketPath = 100

// socketPath returns a path to the socket in data that is short enough, and
// what to close when it is not used any more.
func socketPath(data string) (string, io.Closer, error) {
	path := filepath.Join(data, socketFile)
	if len(path) <= maxSocketPath {
		return path, io.NopCloser(nil), nil
	}
	dir, err := os.Open(data)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketFile), dir, nil
}

// ServeSocket answers [OpenSource] of other processes on a socket in the data
// folder, which only its owner can open, until ctx is done.
func ServeSocket(ctx context.Context, data string, l *Log) error {
	path, dir, err := socketPath(data)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer dir.Close()
	// Whoever holds the log is alone: a socket that is there is a dead process's.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("socket: %w", err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer os.Remove(path)
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return fmt.Errorf("socket: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /sessions", l.serveSessions)
	mux.HandleFunc("GET /sessions/{id}/blocks", l.serveBlocks)
	mux.HandleFunc("GET /sessions/{id}/proof", l.serveProof)
	mux.HandleFunc("GET /leaves", l.serveLeaves)
	mux.HandleFunc("GET /checkpoint", l.serveCheckpoint)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("socket: %w", err)
	}
	return nil
}

func (l *Log) serveSessions(w http.ResponseWriter, r *http.Request) {
	e := json.NewEncoder(w)
	for s, err := range l.Sessions(r.Context()) {
		if err != nil {
			l.o.Log.Error("sessions cannot be listed", "error", err)
			panic(http.ErrAbortHandler) // net/http's way to cut the answer
		}
		if e.Encode(s) != nil {
			return
		}
	}
}

func (l *Log) serveBlocks(w http.ResponseWriter, r *http.Request) {
	s, err := l.session(r.PathValue("id"))
	if err != nil {
		serveError(w, err)
		return
	}
	if json.NewEncoder(w).Encode(s) != nil {
		return
	}
	var head []byte
	put := func(n uint32, b []byte) (bool, error) {
		head = binary.BigEndian.AppendUint32(binary.AppendUvarint(head[:0], uint64(len(b))), n)
		_, err := w.Write(head)
		if err == nil {
			_, err = w.Write(b)
		}
		return true, err
	}
	if r.URL.Query().Has("follow") {
		flush := http.NewResponseController(w).Flush
		err = l.follow(r.Context(), s.ID, put, func() (bool, error) { return true, flush() })
	} else {
		err = l.blocks(r.Context(), s.ID, 0, put)
	}
	if err == nil {
		w.Write([]byte{0})
	}
}

func (l *Log) serveLeaves(w http.ResponseWriter, r *http.Request) {
	e := json.NewEncoder(w)
	for leaf, err := range l.Leaves(r.Context()) {
		if err != nil {
			l.o.Log.Error("the tree cannot be read", "error", err)
			panic(http.ErrAbortHandler)
		}
		if e.Encode(leaf) != nil {
			return
		}
	}
}

func (l *Log) serveProof(w http.ResponseWriter, r *http.Request) {
	p, err := l.prove(r.PathValue("id"))
	if err != nil {
		serveError(w, err)
		return
	}
	text, _ := p.MarshalText()
	w.Write(text)
}

func (l *Log) serveCheckpoint(w http.ResponseWriter, r *http.Request) {
	c, err := l.Checkpoint(r.Context())
	if err != nil {
		serveError(w, err)
		return
	}
	w.Write(c)
}

// socketErrors are those that a remote tells apart, by their status.
var socketErrors = map[int]error{http.StatusNotFound: ErrNoSession, http.StatusConflict: ErrNotEnded, http.StatusGone: ErrUnsigned}

func serveError(w http.ResponseWriter, err error) {
	for status, known := range socketErrors {
		if errors.Is(err, known) {
			http.Error(w, err.Error(), status)
			return
		}
	}
	http.Error(w, "the log cannot be read", http.StatusInternalServerError)
}

// OpenSource opens the recordings in a broker's data folder: through the broker
// that runs on it, if one does, and else from the log itself.
func OpenSource(data string) (Source, error) {
	dir := filepath.Join(data, "log")
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("recordings in %s: %w", data, err)
	}
	key := "" // of a log that has none yet, nothing is signed here
	if _, err := os.Stat(filepath.Join(data, keyFile)); err == nil {
		if key, err = OpenKey(data); err != nil {
			return nil, err
		}
	}
	for deadline := time.Now().Add(3 * time.Second); ; {
		if src, err := DialSource(data); err == nil {
			return src, nil
		}
		l, err := Open(Options{Dir: dir, Key: key})
		if err == nil {
			return l, nil
		}
		// A broker that is starting holds the log before it has its socket.
		if !errors.Is(err, ErrInUse) || time.Now().After(deadline) {
			return nil, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// A remote is the Source of a broker that runs.
type remote struct {
	client http.Client
	dir    io.Closer
}

// DialSource opens the recordings in a broker's data folder through the broker
// that runs on it.
func DialSource(data string) (Source, error) {
	path, dir, err := socketPath(data)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	c, err := d.Dial("unix", path)
	if err != nil {
		dir.Close()
		return nil, err
	}
	c.Close()
	return &remote{dir: dir, client: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) },
	}}}, nil
}

func (r *remote) Close() error {
	r.client.CloseIdleConnections()
	return r.dir.Close()
}

func (r *remote) get(ctx context.Context, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://broker"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the broker: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	resp.Body.Close()
	if err := socketErrors[resp.StatusCode]; err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("ask the broker: %s", resp.Status)
}

// getAll is get of what is small.
func (r *remote) getAll(ctx context.Context, path string) ([]byte, error) {
	body, err := r.get(ctx, path)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	b, err := io.ReadAll(body)
	if err != nil {
		return nil, fmt.Errorf("ask the broker: %w", err)
	}
	return b, nil
}

// Proof implements [Source].
func (r *remote) Proof(ctx context.Context, session string) (*Proof, error) {
	text, err := r.getAll(ctx, "/sessions/"+url.PathEscape(session)+"/proof")
	if err != nil {
		return nil, err
	}
	p := new(Proof)
	return p, p.UnmarshalText(text)
}

// Checkpoint implements [Source].
func (r *remote) Checkpoint(ctx context.Context) ([]byte, error) {
	return r.getAll(ctx, "/checkpoint")
}

// Sessions implements [Source].
func (r *remote) Sessions(ctx context.Context) iter.Seq2[Session, error] {
	return jsonLines[Session](ctx, r, "/sessions")
}

// Session implements [Source]. It stands in front of the blocks, which are not read.
func (r *remote) Session(ctx context.Context, session string) (s Session, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err = r.blocks(ctx, session, "", func(first Session) { s = first }, func(Block) bool { return false }, nil)
	return s, err
}

// Leaves implements [Source].
func (r *remote) Leaves(ctx context.Context) iter.Seq2[Leaf, error] {
	return jsonLines[Leaf](ctx, r, "/leaves")
}

func jsonLines[T any](ctx context.Context, r *remote, path string) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		body, err := r.get(ctx, path)
		if err != nil {
			yield(none, err)
			return
		}
		defer body.Close()
		for d := json.NewDecoder(body); ; {
			v := none
			err := d.Decode(&v)
			if err == io.EOF {
				return
			}
			if !yield(v, err) || err != nil {
				return
			}
		}
	}
}

// Frames implements [Source].
func (r *remote) Frames(ctx context.Context, session string) iter.Seq2[Frame, error] {
	return func(yield func(Frame, error) bool) {
		var frames blockReader
		err := r.blocks(ctx, session, "", func(s Session) { frames.start = s.Start }, func(b Block) bool { return frames.read(b.Number, b.Bytes, yield) }, nil)
		if err != nil {
			yield(Frame{}, err)
		}
	}
}

// Follow implements [Source].
func (r *remote) Follow(ctx context.Context, session string) iter.Seq2[Frame, error] {
	return func(yield func(Frame, error) bool) {
		var frames blockReader
		err := r.blocks(ctx, session, "?follow", func(s Session) { frames.start = s.Start }, func(b Block) bool { return frames.read(b.Number, b.Bytes, yield) },
			func() bool { return yield(Frame{}, ErrMore) })
		if err != nil {
			yield(Frame{}, err)
		}
	}
}

// Blocks implements [Source].
func (r *remote) Blocks(ctx context.Context, session string) iter.Seq2[Block, error] {
	return func(yield func(Block, error) bool) {
		err := r.blocks(ctx, session, "", func(Session) {}, func(b Block) bool { return yield(b, nil) }, nil)
		if err != nil {
			yield(Block{}, err)
		}
	}
}

// blocks calls begin with a session and f with its blocks, until it returns false,
// and more, if it is not nil, before it waits for the next.
func (r *remote) blocks(ctx context.Context, session, query string, begin func(Session), f func(Block) bool, more func() bool) error {
	body, err := r.get(ctx, "/sessions/"+url.PathEscape(session)+"/blocks"+query)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := readBlocks(bufio.NewReader(body), begin, f, more); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("ask the broker: %w", err)
	}
	return nil
}

// readBlocks reads what serveBlocks has written.
func readBlocks(in *bufio.Reader, begin func(Session), f func(Block) bool, more func() bool) error {
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	var s Session
	if err := json.Unmarshal(line, &s); err != nil {
		return err
	}
	begin(s)
	var b []byte
	for {
		if more != nil && in.Buffered() == 0 && !more() {
			return nil
		}
		size, err := binary.ReadUvarint(in)
		if err == io.EOF {
			return io.ErrUnexpectedEOF
		}
		if err != nil || size == 0 {
			return err
		}
		if size > 2*rewriteSize {
			return errors.New("a block is too large")
		}
		var number [4]byte
		if _, err := io.ReadFull(in, number[:]); err != nil {
			return io.ErrUnexpectedEOF
		}
		b = append(b[:0], make([]byte, size)...)
		if _, err := io.ReadFull(in, b); err != nil {
			return io.ErrUnexpectedEOF
		}
		if !f(Block{binary.BigEndian.Uint32(number[:]), b}) {
			return nil
		}
	}
}
