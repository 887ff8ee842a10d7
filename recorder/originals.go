package recorder

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
	"golang.org/x/crypto/ssh"
)

// Originals are what peers have sent where something else is on record: the
// unmasked frames. Only whom they are sealed to can open them, and the broker is
// not among those: it makes a key for a run of originals, puts it on record sealed
// to the recipients with age, and forgets it with the run or the session.
//
//	Sealed  0, an age file with the key             before the first original of a run
//	Sealed  1, number (8 bytes, big-endian), AES-256-GCM of the original
//	Masked  the frame as it was delivered           or what else takes its place
//
// The nonce is the number, from 0 on in a run, in 12 bytes. The additional data
// are the session, the direction and the hash of the frame behind it, so that an
// original opens where it was sealed and nowhere else.

const (
	sealedKey      = 0
	sealedOriginal = 1

	// sealedRun is how many originals have one key. A block with a key that is
	// damaged takes no more with it.
	sealedRun = 1024
	// sealedSize is how long an original is on record, beside its own bytes.
	sealedSize = 1 + 8 + 16
)

var (
	// ErrNoOriginal is returned where frames were masked or edited, and what came in
	// their place is not on record.
	ErrNoOriginal = errors.New("no original is on record")
	// ErrNotRecipient is returned where originals are sealed to others.
	ErrNotRecipient = errors.New("the originals are sealed to others")
)

// ParseRecipients returns whom originals are sealed to: native recipients of age
// (age1…, age1pq1…) and public keys of SSH (ssh-ed25519 or ssh-rsa). Each text
// may have several lines. Errors do not repeat what is there: it may be a secret
// key that has strayed.
func ParseRecipients(texts ...string) ([]age.Recipient, error) {
	var all []age.Recipient
	for _, text := range texts {
		found := false
		for line := range strings.Lines(text) {
			line = strings.TrimSpace(line)
			if line == "" || line[0] == '#' {
				continue
			}
			found = true
			if strings.HasPrefix(line, "ssh-") {
				r, err := agessh.ParseRecipient(line)
				if err != nil {
					return nil, errors.New("is no public key of SSH")
				}
				all = append(all, r)
				continue
			}
			r, err := age.ParseRecipients(strings.NewReader(line))
			if err != nil {
				return nil, errors.New("is no recipient of age's: age1…, age1pq1…, ssh-ed25519 … or ssh-rsa …")
			}
			all = append(all, r...)
		}
		if !found {
			return nil, errors.New("is empty")
		}
	}
	if len(all) > 0 { // some do not go with others
		if _, err := seal(nil, all); err != nil {
			return nil, fmt.Errorf("cannot seal to them: %w", err)
		}
	}
	return all, nil
}

// ParseIdentities returns what opens originals: identities of age, or a private
// key of SSH. One that a passphrase protects asks for it.
func ParseIdentities(text []byte, passphrase func() ([]byte, error)) ([]age.Identity, error) {
	switch {
	case bytes.HasPrefix(text, []byte("age-encryption.org/")), bytes.HasPrefix(bytes.TrimSpace(text), []byte(armor.Header)):
		var in io.Reader = bytes.NewReader(text)
		if text[0] != 'a' {
			in = armor.NewReader(in)
		}
		secret, err := passphrase()
		if err != nil {
			return nil, err
		}
		id, err := age.NewScryptIdentity(string(secret))
		if err != nil {
			return nil, errors.New("the passphrase is empty")
		}
		if in, err = age.Decrypt(in, id); err != nil {
			return nil, errors.New("the passphrase does not open it")
		}
		if text, err = io.ReadAll(in); err != nil {
			return nil, errors.New("cannot be decrypted")
		}
	case bytes.HasPrefix(text, []byte("-----BEGIN ")):
		id, err := agessh.ParseIdentity(text)
		var missing *ssh.PassphraseMissingError
		if errors.As(err, &missing) && missing.PublicKey != nil {
			id, err = agessh.NewEncryptedSSHIdentity(missing.PublicKey, text, passphrase)
		}
		if err != nil {
			return nil, errors.New("is no private key of SSH that can be used (ed25519 or RSA)")
		}
		return []age.Identity{id}, nil
	}
	ids, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil {
		return nil, errors.New("holds no identity of age (AGE-SECRET-KEY-…), and is no private key of SSH")
	}
	return ids, nil
}

// seal returns an age file of secret.
func seal(secret []byte, to []age.Recipient) ([]byte, error) {
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to...)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(secret); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// KeepsOriginals reports whether Append seals the originals of frames.
func (l *Log) KeepsOriginals() bool { return len(l.o.Originals) > 0 }

// A sealer seals the originals of a session.
type sealer struct {
	session string
	to      []age.Recipient
	aead    cipher.AEAD // nil: a run begins
	number  uint64      // of the next original in the run
}

// begin returns the record of a new run's key.
func (s *sealer) begin() ([]byte, error) {
	var key [32]byte
	rand.Read(key[:])
	defer clear(key[:])
	sealed, err := seal(key[:], s.to)
	if err != nil {
		return nil, err
	}
	s.aead, s.number = newAEAD(key[:]), 0
	return append([]byte{sealedKey}, sealed...), nil
}

func newAEAD(key []byte) cipher.AEAD {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // only a length that cannot be
	}
	a, err := cipher.NewGCM(b)
	if err != nil {
		panic(err)
	}
	return a
}

func nonceOf(number uint64) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, 4, 12), number)
}

// additional is what an original is bound to: f is the frame in its place.
func additional(session string, f *Frame) []byte {
	place := sha256.Sum256(f.Bytes)
	b := append([]byte("mcp-broker original 1\x00"), session...)
	return append(append(b, 0, byte(f.Direction)), place[:]...)
}

// add returns frames with their originals, each in front of its own.
func (s *sealer) add(frames []Frame) ([]Frame, error) {
	if !slices.ContainsFunc(frames, func(f Frame) bool { return f.Original != nil }) {
		return frames, nil
	}
	out := make([]Frame, 0, 2*len(frames)+1)
	for i := range frames {
		f := &frames[i]
		if f.Original == nil {
			out = append(out, *f)
			continue
		}
		if s.aead == nil {
			key, err := s.begin()
			if err != nil {
				return nil, fmt.Errorf("%w: seal the originals' key: %w", ErrUnavailable, err)
			}
			out = append(out, Frame{Direction: f.Direction, Verdict: Sealed, Bytes: key})
		}
		b := append(make([]byte, 0, len(f.Original)+sealedSize), sealedOriginal)
		b = binary.BigEndian.AppendUint64(b, s.number)
		b = s.aead.Seal(b, nonceOf(s.number), f.Original, additional(s.session, f))
		out = append(out, Frame{Direction: f.Direction, Verdict: Sealed, Bytes: b, Time: f.Time}, *f)
		out[len(out)-1].Original = nil
		if s.number++; s.number == sealedRun {
			s.aead = nil
		}
	}
	return out, nil
}

// OpenOriginals returns src with each frame as its sender has sent it, as far as
// identities open what was sealed. An original that is not what was sealed is
// named by an error that wraps [ErrDamaged], and the frame comes as it is on
// record. At the end, [ErrNoOriginal] says that some frames had none.
func OpenOriginals(src Source, identities ...age.Identity) Source {
	return originals{src, identities}
}

type originals struct {
	Source
	identities []age.Identity
}

// Frames implements [Source].
func (o originals) Frames(ctx context.Context, session string) iter.Seq2[Frame, error] {
	return o.open(session, o.Source.Frames(ctx, session))
}

// Follow implements [Source].
func (o originals) Follow(ctx context.Context, session string) iter.Seq2[Frame, error] {
	return o.open(session, o.Source.Follow(ctx, session))
}

func (o originals) open(session string, frames iter.Seq2[Frame, error]) iter.Seq2[Frame, error] {
	return func(yield func(Frame, error) bool) {
		r := opener{session: session, identities: o.identities}
		for f, err := range frames {
			if err == nil && f.Verdict == Sealed {
				if err = r.sealed(f.Bytes); err == nil {
					continue
				}
				f = Frame{}
			} else if err == nil {
				if changed := r.frame(&f); changed != nil && !yield(Frame{}, changed) {
					return
				}
			} else if errors.Is(err, ErrDamaged) {
				r.waiting = false
			}
			if !yield(f, err) || errors.Is(err, ErrNotRecipient) {
				return
			}
		}
		if r.without > 0 {
			yield(Frame{}, fmt.Errorf("%w of %d frames, or parts of some, that were masked or edited", ErrNoOriginal, r.without))
		}
	}
}

// An opener opens the originals of a session in order.
type opener struct {
	session    string
	identities []age.Identity
	aead       cipher.AEAD // of the run under way; nil: its key is lost
	original   []byte      // that waits for its frame, sealed
	waiting    bool
	begun      int // frames
	open       [2]bool
	without    int // frames that were masked or edited, without an original
}

// sealed takes a Sealed record.
func (r *opener) sealed(b []byte) error {
	switch {
	case len(b) > 0 && b[0] == sealedKey:
		r.aead = nil
		in, err := age.Decrypt(bytes.NewReader(b[1:]), r.identities...)
		var no *age.NoIdentityMatchError
		if errors.As(err, &no) {
			return ErrNotRecipient
		}
		var key []byte
		if err == nil {
			key, err = io.ReadAll(io.LimitReader(in, 64))
		}
		if err != nil || len(key) != 32 {
			return fmt.Errorf("%w: the key of the originals behind frame %d cannot be opened", ErrDamaged, r.begun)
		}
		r.aead = newAEAD(key)
		clear(key)
	case len(b) >= sealedSize && b[0] == sealedOriginal:
		r.original, r.waiting = append(r.original[:0], b[1:]...), true
	default:
		return fmt.Errorf("%w: what is sealed behind frame %d cannot be read", ErrDamaged, r.begun)
	}
	return nil
}

// frame puts the original in the place of f, if there is one.
func (r *opener) frame(f *Frame) error {
	if !f.Verdict.IsFrame() {
		return nil
	}
	if f.Verdict == Blocked || !r.open[f.Direction&1] {
		r.begun++
	}
	if f.Verdict != Blocked {
		r.open[f.Direction&1] = f.More
	}
	if !r.waiting {
		if f.Verdict == Masked || f.Verdict == Edited {
			r.without++
		}
		return nil
	}
	r.waiting = false
	if r.aead == nil {
		return fmt.Errorf("%w: the original of frame %d has no key on record that can be read", ErrDamaged, r.begun)
	}
	number := binary.BigEndian.Uint64(r.original)
	b, err := r.aead.Open(nil, nonceOf(number), r.original[8:], additional(r.session, f))
	if err != nil {
		return fmt.Errorf("%w: the original of frame %d is not what was sealed, or the frame is not", ErrDamaged, r.begun)
	}
	f.Bytes = b
	return nil
}
