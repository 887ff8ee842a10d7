package recorder

import (
	"bufio"
	"bytes"
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
	"unicode/utf8"
)

// The socket of a broker speaks HTTP, and so does its API for auditors:
//
//	GET /sessions              a Session in JSON a line, newest first; those that fit
//	                           the query (values of Query) if there is one
//	GET /sessions/{id}         the Session in JSON
//	GET /sessions/{id}/blocks  the Session in JSON and a newline, then for each
//	                           block: its length (uvarint, never 0), its number
//	                           (4 bytes, big-endian) and its bytes; at the end a
//	                           length of 0, so that nothing is cut unnoticed, and
//	                           behind it, if an archive has failed, what it says;
//	                           with ?follow, that is the end of the session, and
//	                           blocks come as they are recorded
//	GET /sessions/{id}/proof   a tlog-proof
//	GET /leaves                a Leaf in JSON a line, oldest first
//	GET /checkpoint            the signed note
//
// and the socket alone, see [Custodian] and [Archivist]:
//
//	GET /archive               the Archiving in JSON
//	GET /holds                 a Hold in JSON a line
//	PUT /sessions/{id}/hold    with ?reason
//	DELETE /sessions/{id}/hold
//	DELETE /sessions/{id}      with ?reason
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
	server := &http.Server{
		Handler: l.custodyHandler(l.Handler(l.readThrough)), ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx }, ConnContext: withPeer,
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("socket: %w", err)
	}
	return nil
}

// Handler returns what answers [DialSource] and [NewRemote]. Before frames are read,
// read is called with their session, and before sessions are listed with nil; what
// it returns an error for is not answered.
func (l *Log) Handler(read func(*http.Request, *Session) error) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /sessions", func(w http.ResponseWriter, r *http.Request) {
		if l.mayRead(w, r, nil, read) {
			l.serveSessions(w, r)
		}
	})
	mux.HandleFunc("GET /sessions/{id}/blocks", func(w http.ResponseWriter, r *http.Request) {
		s, err := l.session(r.PathValue("id"))
		if err != nil {
			serveError(w, err)
		} else if l.mayRead(w, r, &s, read) {
			l.serveBlocks(w, r, s)
		}
	})
	mux.HandleFunc("GET /sessions/{id}", l.serveSession)
	mux.HandleFunc("GET /sessions/{id}/proof", l.serveProof)
	mux.HandleFunc("GET /leaves", l.serveLeaves)
	mux.HandleFunc("GET /checkpoint", l.serveCheckpoint)
	return mux
}

func (l *Log) mayRead(w http.ResponseWriter, r *http.Request, s *Session, read func(*http.Request, *Session) error) bool {
	if err := read(r, s); err != nil {
		l.o.Log.Error("recordings are not read: that they are cannot be put on record", "error", err)
		http.Error(w, "that it is read cannot be put on record", http.StatusServiceUnavailable)
		return false
	}
	return true
}

func (l *Log) serveSession(w http.ResponseWriter, r *http.Request) {
	s, err := l.session(r.PathValue("id"))
	if err != nil {
		serveError(w, err)
		return
	}
	json.NewEncoder(w).Encode(s)
}

func (l *Log) serveSessions(w http.ResponseWriter, r *http.Request) {
	q, err := queryOf(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	serveLines(l, w, r, linesOf(l.Find(r.Context(), q)), !q.isAll())
}

// A sessionLine is what the socket says of a session.
type sessionLine struct {
	Session
	Damaged bool `json:"damaged,omitempty"` // the record cannot be read
}

func linesOf(sessions iter.Seq2[Session, error]) iter.Seq2[sessionLine, error] {
	return func(yield func(sessionLine, error) bool) {
		for s, err := range sessions {
			damaged := errors.Is(err, ErrDamaged)
			if damaged {
				err = nil
			}
			if !yield(sessionLine{s, damaged}, err) {
				return
			}
		}
	}
}

// sessionsOf is linesOf, backwards.
func sessionsOf(lines iter.Seq2[sessionLine, error]) iter.Seq2[Session, error] {
	return func(yield func(Session, error) bool) {
		for s, err := range lines {
			if err == nil && s.Damaged {
				err = fmt.Errorf("record of session %s: %w", s.ID, ErrDamaged)
			}
			if !yield(s.Session, err) {
				return
			}
		}
	}
}

// serveLines writes values in JSON, each on a line; at once, if they come slowly.
func serveLines[T any](l *Log, w http.ResponseWriter, r *http.Request, values iter.Seq2[T, error], slowly bool) {
	e := json.NewEncoder(w)
	for v, err := range values {
		if err != nil {
			if r.Context().Err() == nil { // else nobody reads it any more
				l.o.Log.Error("the log cannot be read", "error", err)
			}
			panic(http.ErrAbortHandler) // net/http's way to cut the answer
		}
		if e.Encode(v) != nil {
			return
		}
		if slowly && http.NewResponseController(w).Flush() != nil {
			return
		}
	}
}

func (l *Log) serveBlocks(w http.ResponseWriter, r *http.Request, s Session) {
	var err error
	if json.NewEncoder(w).Encode(s) != nil {
		return
	}
	put := blockWriter(w)
	if r.URL.Query().Has("follow") {
		flush := http.NewResponseController(w).Flush
		err = l.follow(r.Context(), s.ID, put, func() (bool, error) { return true, flush() })
	} else {
		err = l.blocks(r.Context(), s.ID, 0, put)
	}
	switch {
	case err == nil:
		w.Write([]byte{0})
	case errors.Is(err, ErrArchive):
		l.o.Log.Error("a session cannot be read", "session", s.ID, "error", err)
		io.WriteString(w, "\x00"+err.Error())
	}
}

// blockWriter returns what writes blocks as readBlocks reads them.
func blockWriter(w io.Writer) func(n uint32, b []byte) (bool, error) {
	var head []byte
	return func(n uint32, b []byte) (bool, error) {
		head = binary.BigEndian.AppendUint32(binary.AppendUvarint(head[:0], uint64(len(b))), n)
		_, err := w.Write(head)
		if err == nil {
			_, err = w.Write(b)
		}
		return true, err
	}
}

func (l *Log) serveLeaves(w http.ResponseWriter, r *http.Request) {
	serveLines(l, w, r, l.Leaves(r.Context()), false)
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
var socketErrors = map[int]error{http.StatusNotFound: ErrNoSession, http.StatusConflict: ErrNotEnded, http.StatusGone: ErrUnsigned, http.StatusLocked: ErrHeld, http.StatusPreconditionFailed: ErrNotHeld}

func serveError(w http.ResponseWriter, err error) {
	for status, known := range socketErrors {
		if errors.Is(err, known) {
			http.Error(w, err.Error(), status)
			return
		}
	}
	if errors.Is(err, ErrArchive) {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
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
	key, err := existingKey(data)
	if err != nil {
		return nil, err
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

// existingKey is OpenKey that makes none: of a log that has no key yet, nothing is
// signed here.
func existingKey(data string) (string, error) {
	if _, err := os.Stat(filepath.Join(data, keyFile)); err != nil {
		return "", nil
	}
	return OpenKey(data)
}

// A remote is the Source of a broker that runs.
type remote struct {
	client *http.Client
	base   string
	dir    io.Closer
}

// NewRemote returns the Source that a [Log.Handler] at the URL base is.
func NewRemote(base string, client *http.Client) Source {
	return &remote{client: client, base: base, dir: io.NopCloser(nil)}
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
	return &remote{dir: dir, base: "http://broker", client: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) },
	}}}, nil
}

func (r *remote) Close() error {
	r.client.CloseIdleConnections()
	return r.dir.Close()
}

func (r *remote) get(ctx context.Context, path string) (io.ReadCloser, error) {
	return r.ask(ctx, http.MethodGet, path)
}

func (r *remote) ask(ctx context.Context, method, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, r.base+path, nil)
	if err != nil {
		return nil, err
	}
	sayPurpose(req)
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the broker: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	if err := socketErrors[resp.StatusCode]; err != nil {
		return nil, err
	}
	why, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	var failure struct{ Error string } // of the API
	if json.Unmarshal(why, &failure) == nil {
		why = []byte(failure.Error)
	}
	if !utf8.Valid(why) || len(why) == 0 {
		return nil, fmt.Errorf("ask the broker: %s", resp.Status)
	}
	return nil, fmt.Errorf("the broker answers %d: %s", resp.StatusCode, bytes.TrimSpace(why))
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
	return sessionsOf(jsonLines[sessionLine](ctx, r, "/sessions"))
}

// Find implements [Source].
func (r *remote) Find(ctx context.Context, q Query) iter.Seq2[Session, error] {
	if err := q.Check(); err != nil {
		return func(yield func(Session, error) bool) { yield(Session{}, err) }
	}
	return sessionsOf(jsonLines[sessionLine](ctx, r, "/sessions?"+q.values().Encode()))
}

// Session implements [Source].
func (r *remote) Session(ctx context.Context, session string) (s Session, err error) {
	b, err := r.getAll(ctx, "/sessions/"+url.PathEscape(session))
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
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
		var of Session
		goOn := true
		err := r.blocks(ctx, session, "", func(s Session) { of, frames.start = s, s.Start }, func(b Block) bool {
			goOn = frames.read(b.Number, b.Bytes, yield)
			return goOn
		}, nil)
		switch {
		case err != nil:
			yield(Frame{}, err)
		case goOn:
			frames.end(of, yield)
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
		if errors.Is(err, ErrArchive) {
			return err
		}
		return fmt.Errorf("ask the broker: %w", err)
	}
	return nil
}

// readBlocks reads what serveBlocks has written, or what is in an archived object.
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
		if err != nil {
			return err
		}
		if size == 0 {
			why, err := io.ReadAll(io.LimitReader(in, 4<<10))
			if err == nil && len(why) > 0 {
				err = fmt.Errorf("%w%s", ErrArchive, bytes.TrimPrefix(why, []byte(ErrArchive.Error())))
			}
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
