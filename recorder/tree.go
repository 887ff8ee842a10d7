package recorder

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// What makes the log evidence: each record is hashed with the hash of the one
// before, a session that has ended names that of its last, and the sessions are, in
// the order of their ends, the leaves of a Merkle tree (RFC 6962) whose head is
// signed. Whoever has kept an older head can tell that nothing under it has
// changed since.
//
//	record 0 ◄── record 1 ◄── … ◄── session ──► leaf ──► checkpoint
//
// A checkpoint is a signed note as of C2SP tlog-checkpoint, so that other tools
// and witnesses read it.

// keyFile and verifierFile are in a broker's data folder: the key that signs
// checkpoints, and what its signatures are verified by, as of C2SP signed-note.
const (
	keyFile      = "log.key"
	verifierFile = "log.pub"
)

// OpenKey returns the key in a broker's data folder by which checkpoints are
// signed, and makes one where there is none.
func OpenKey(data string) (key string, err error) {
	path := filepath.Join(data, keyFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeKey(data); err != nil {
			return "", fmt.Errorf("make the log's key: %w", err)
		}
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return "", fmt.Errorf("the log's key: %w", err)
	}
	key = strings.TrimSpace(string(text))
	if _, err := note.NewSigner(key); err != nil {
		return "", fmt.Errorf("the log's key in %s cannot be read", path)
	}
	return key, nil
}

func makeKey(data string) error {
	var id [8]byte
	rand.Read(id[:])
	// Its name is the log's in the world: no two logs have the same.
	private, public, err := note.GenerateKey(rand.Reader, fmt.Sprintf("mcp-broker-log-%x", id))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(data, verifierFile), []byte(public+"\n"), 0o644); err != nil {
		return err
	}
	return writeFile(filepath.Join(data, keyFile), []byte(private+"\n"), 0o600)
}

// ReadVerifier returns what the signatures of the log in a data folder are
// verified by.
func ReadVerifier(data string) (string, error) {
	text, err := os.ReadFile(filepath.Join(data, verifierFile))
	if err != nil {
		return "", fmt.Errorf("the key that checkpoints are verified by: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// In the database:
//
//	l/<n>     the session that is leaf n, 8 bytes big-endian
//	i/<session>  its n
//	t/<i>     hash i of the tree, as tlog counts them
//	c         the checkpoint

func leafKey(n int64) []byte { return binary.BigEndian.AppendUint64([]byte("l/"), uint64(n)) }
func hashKey(i int64) []byte { return binary.BigEndian.AppendUint64([]byte("t/"), uint64(i)) }
func indexKey(session string) []byte {
	return []byte("i/" + session)
}

var checkpointKey = []byte("c")

// A tree is the Merkle tree of the sessions that have ended.
type tree struct {
	view   func(func(*badger.Txn) error) error
	signer note.Signer // nil: heads are not signed

	mu   sync.Mutex
	size int64
	edge map[int64]tlog.Hash // hashes that the last leaf was added with: where heads are signed, the next needs no others
	next map[int64]tlog.Hash // edge, when what add has returned is committed
}

func openTree(view func(func(*badger.Txn) error) error, key string) (*tree, error) {
	t := &tree{view: view}
	if key != "" {
		var err error
		if t.signer, err = note.NewSigner(key); err != nil {
			return nil, errors.New("the log's key cannot be read")
		}
	}
	// The last leaf says how many there are.
	err := view(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte("l/"), Reverse: true})
		defer it.Close()
		it.Seek([]byte("l/\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
		if it.Valid() {
			t.size = int64(binary.BigEndian.Uint64(it.Item().Key()[2:])) + 1
		}
		return nil
	})
	return t, err
}

// whole returns an error if the leaves are not as many as the checkpoint says. Then a
// new leaf could take the place of one that cannot be read.
func (t *tree) whole() error {
	return t.view(func(txn *badger.Txn) error {
		item, err := txn.Get(checkpointKey)
		if errors.Is(err, badger.ErrKeyNotFound) && t.size == 0 || t.signer == nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the checkpoint of %d sessions cannot be read: %w", t.size, err)
		}
		return item.Value(func(text []byte) error {
			_, rest, _ := strings.Cut(string(text), "\n")
			size, _, _ := strings.Cut(rest, "\n")
			if size != strconv.FormatInt(t.size, 10) {
				return fmt.Errorf("the checkpoint is of %q sessions, and %d can be read", size, t.size)
			}
			return nil
		})
	})
}

// add returns what puts a session's record into the tree as its next leaf. t.mu
// is held until that is committed, and grown is called.
func (t *tree) add(session string, record []byte) ([]write, error) {
	t.next = map[int64]tlog.Hash{}
	read := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes, err := t.read(indexes, t.next, t.edge)
		for i, at := range indexes[:len(hashes)] {
			t.next[at] = hashes[i]
		}
		return hashes, err
	})
	hashes, err := tlog.StoredHashes(t.size, record, read)
	if err != nil {
		return nil, err
	}
	at := tlog.StoredHashCount(t.size)
	writes := make([]write, 0, len(hashes)+3)
	for i, h := range hashes {
		t.next[at+int64(i)] = h
		writes = append(writes, write{hashKey(at + int64(i)), h[:]})
	}
	writes = append(writes, write{leafKey(t.size), []byte(session)}, write{indexKey(session), binary.BigEndian.AppendUint64(nil, uint64(t.size))})
	if t.signer == nil {
		return writes, nil
	}
	head, err := tlog.TreeHash(t.size+1, read)
	if err != nil {
		return nil, err
	}
	signed, err := note.Sign(&note.Note{Text: checkpointText(t.signer.Name(), t.size+1, head)}, t.signer)
	if err != nil {
		return nil, err
	}
	return append(writes, write{checkpointKey, signed}), nil
}

func checkpointText(origin string, size int64, head tlog.Hash) string {
	return fmt.Sprintf("%s\n%d\n%s\n", origin, size, base64.StdEncoding.EncodeToString(head[:]))
}

// grown says that what add has returned is committed.
func (t *tree) grown() {
	t.size++
	t.edge, t.next = t.next, nil
}

// read reads hashes of the tree, some of which may be known, or not committed yet.
func (t *tree) read(indexes []int64, known ...map[int64]tlog.Hash) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	var left []int // in indexes
	for i, at := range indexes {
		is := func(hashes map[int64]tlog.Hash) bool { _, ok := hashes[at]; return ok }
		if k := slices.IndexFunc(known, is); k >= 0 {
			hashes[i] = known[k][at]
		} else {
			left = append(left, i)
		}
	}
	if len(left) == 0 {
		return hashes, nil
	}
	err := t.view(func(txn *badger.Txn) error {
		for _, i := range left {
			at := indexes[i]
			item, err := txn.Get(hashKey(at))
			if err != nil {
				return fmt.Errorf("hash %d of the tree: %w", at, err)
			}
			if err := item.Value(func(b []byte) error {
				if copy(hashes[i][:], b) != tlog.HashSize {
					return fmt.Errorf("hash %d of the tree is cut", at)
				}
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return hashes, nil
}

// A Checkpoint is the head of the tree: so many sessions, and the hash of them all.
type Checkpoint struct {
	Origin string
	Size   int64
	Head   tlog.Hash
	Note   []byte // signed
}

// OpenCheckpoint verifies the signature of a checkpoint, and reads it.
func OpenCheckpoint(text []byte, verifier string) (Checkpoint, error) {
	v, err := note.NewVerifier(verifier)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("the key that checkpoints are verified by: %w", err)
	}
	n, err := note.Open(text, note.VerifierList(v))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint: %w", err)
	}
	bad := errors.New("checkpoint: it is signed, but is none")
	lines := strings.SplitN(n.Text, "\n", 4)
	if len(lines) < 4 || lines[0] != v.Name() {
		return Checkpoint{}, bad
	}
	c := Checkpoint{Origin: lines[0], Note: text}
	head, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || copy(c.Head[:], head) != tlog.HashSize || len(head) != tlog.HashSize {
		return Checkpoint{}, bad
	}
	if c.Size, err = strconv.ParseInt(lines[1], 10, 64); err != nil || c.Size < 0 || lines[1] != strconv.FormatInt(c.Size, 10) {
		return Checkpoint{}, bad
	}
	return c, nil
}

// A Proof shows that a session is a leaf of the tree that a checkpoint is of. Its
// text is a C2SP tlog-proof; its extra data is the session's record, the leaf.
type Proof struct {
	Record     []byte // the Session in JSON, as it is in the log
	Index      int64
	Hashes     tlog.RecordProof
	Checkpoint []byte
}

const proofHead = "c2sp.org/tlog-proof@v1\n"

// MarshalText returns the proof as a tlog-proof.
func (p *Proof) MarshalText() ([]byte, error) {
	b := fmt.Appendf(nil, "%sextra %s\nindex %d\n", proofHead, base64.StdEncoding.EncodeToString(p.Record), p.Index)
	for _, h := range p.Hashes {
		b = append(base64.StdEncoding.AppendEncode(b, h[:]), '\n')
	}
	return append(append(b, '\n'), p.Checkpoint...), nil
}

// UnmarshalText reads a tlog-proof.
func (p *Proof) UnmarshalText(text []byte) error {
	bad := func(what string) error { return fmt.Errorf("proof: %s", what) }
	rest, ok := strings.CutPrefix(string(text), proofHead)
	if !ok {
		return bad("it does not begin as a tlog-proof")
	}
	head, checkpoint, ok := strings.Cut(rest, "\n\n")
	if !ok {
		return bad("it has no checkpoint")
	}
	lines := strings.Split(head, "\n")
	extra, ok := strings.CutPrefix(lines[0], "extra ")
	if !ok || len(lines) < 2 {
		return bad("it has no record")
	}
	var err error
	if p.Record, err = base64.StdEncoding.DecodeString(extra); err != nil {
		return bad("its record is no base64")
	}
	index, _ := strings.CutPrefix(lines[1], "index ")
	if p.Index, err = strconv.ParseInt(index, 10, 64); err != nil || p.Index < 0 {
		return bad("its index is no number")
	}
	p.Hashes = nil
	for _, line := range lines[2:] {
		b, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(b) != tlog.HashSize {
			return bad("one of its hashes is none")
		}
		p.Hashes = append(p.Hashes, tlog.Hash(b))
	}
	p.Checkpoint = []byte(checkpoint)
	return nil
}

// Check verifies the proof and returns the session that it is of. It needs no log.
func (p *Proof) Check(verifier string) (Session, Checkpoint, error) {
	var s Session
	c, err := OpenCheckpoint(p.Checkpoint, verifier)
	if err != nil {
		return s, c, err
	}
	if p.Index >= c.Size {
		return s, c, errors.New("proof: the session is not in the tree of its checkpoint")
	}
	if err := tlog.CheckRecord(p.Hashes, c.Size, c.Head, p.Index, tlog.RecordHash(p.Record)); err != nil {
		return s, c, errors.New("proof: the session is not in the tree of its checkpoint, or not as it is here")
	}
	if err := json.Unmarshal(p.Record, &s); err != nil {
		return s, c, fmt.Errorf("proof: its record cannot be read: %w", err)
	}
	return s, c, nil
}

// prove returns the proof of a session that has ended.
func (l *Log) prove(session string) (*Proof, error) {
	t := l.tree
	t.mu.Lock()
	defer t.mu.Unlock()
	p := &Proof{}
	index, err := l.value(indexKey(session))
	if err == nil {
		p.Record, err = l.value(sessionKey(session))
	}
	if err == nil {
		p.Checkpoint, err = l.value(checkpointKey)
	}
	switch {
	case err != nil:
		return nil, err
	case p.Record == nil:
		return nil, ErrNoSession
	case len(index) != 8:
		return nil, ErrNotEnded
	case p.Checkpoint == nil:
		return nil, ErrUnsigned
	}
	p.Index = int64(binary.BigEndian.Uint64(index))
	p.Hashes, err = tlog.ProveRecord(t.size, p.Index, tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) { return t.read(indexes) }))
	return p, err
}
