package recorder

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/armor"
	"golang.org/x/crypto/ssh"

	"example.com/broker/codec"
)

// auditor makes an identity, and what is sealed to it.
func auditor(t testing.TB) (*age.X25519Identity, []age.Recipient) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	to, err := ParseRecipients(id.Recipient().String())
	if err != nil {
		t.Fatal(err)
	}
	return id, to
}

// grepFolder fails if a file of a folder holds the text.
func grepFolder(t testing.TB, dir, text string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(text)) {
			t.Errorf("%s holds %q", path, text)
		}
		files++
		return err
	})
	if err != nil || files == 0 {
		t.Fatalf("%d files of %s, %v", files, dir, err)
	}
}

// masked are frames as a broker records them, and what was sent.
func masked() (on []Frame, sent string) {
	long := strings.Repeat("long ", blockSize/5)
	return []Frame{
		{Direction: codec.C2S, Bytes: []byte(`{"id":1}`)},
		{Direction: codec.C2S, Verdict: Blocked, Bytes: []byte(`{"id":2,"a":"[masked:x]"}`), Original: []byte(`{"id":2,"a":"hunter2"}`)},
		{Direction: codec.S2C, Verdict: Found, Bytes: []byte(`[{"detector":"x","offset":10}]`)},
		{Direction: codec.S2C, Verdict: Masked, Bytes: []byte(`{"id":1,"r":"[masked:x]"}`), Original: []byte(`{"id":1,"r":"hunter2"}`)},
		{Direction: codec.S2C, Bytes: []byte(`{"id":3,"r":["a",`), More: true},
		{Direction: codec.S2C, Verdict: Masked, Bytes: []byte(`"[masked:x]`), Original: []byte(`"hunter2` + long), More: true},
		{Direction: codec.C2S, Bytes: []byte(`{"id":4}`)},
		{Direction: codec.S2C, Verdict: Masked, Original: []byte(long), More: true},
		{Direction: codec.S2C, Bytes: []byte(`"]}`)},
	}, `{"id":1}` + "\n" + `{"id":2,"a":"hunter2"}` + "\n" + `{"id":1,"r":"hunter2"}` + "\n" + `{"id":3,"r":["a","hunter2` + long + long + `"]}` + "\n" + `{"id":4}` + "\n"
}

func everything(Frame) bool { return true }

func replayed(t *testing.T, src Source, session string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := Replay(t.Context(), &out, src, session, View{Want: everything})
	return out.String(), err
}

func TestOriginals(t *testing.T) {
	id, to := auditor(t)
	other, _ := auditor(t)
	data := t.TempDir()
	key, err := OpenKey(data)
	if err != nil {
		t.Fatal(err)
	}
	l := open(t, Options{Dir: filepath.Join(data, "log"), Key: key, Originals: to})
	r := start(t, l)
	on, sent := masked()
	for _, f := range on {
		if err := r.Append(f); err != nil {
			t.Fatal(err)
		}
	}
	check := func(src Source) {
		t.Helper()
		if got, err := replayed(t, src, r.ID()); err != nil || strings.Contains(got, "hunter2") || !strings.Contains(got, "[masked:x]") {
			t.Errorf("without an identity: %.200q, %v", got, err)
		}
		if got, err := replayed(t, OpenOriginals(src, other, id), r.ID()); err != nil || got != sent {
			t.Errorf("with the identity: %d bytes, want the %d that were sent; %v\n%.200q", len(got), len(sent), err, got)
		}
		if got, err := replayed(t, OpenOriginals(src, other), r.ID()); !errors.Is(err, ErrNotRecipient) || strings.Contains(got, "hunter2") {
			t.Errorf("with another's identity: %.200q, %v", got, err)
		}
	}
	check(l) // while it runs
	if err := r.End(Ended, "closed"); err != nil {
		t.Fatal(err)
	}
	if r.sealer != nil {
		t.Error("the broker has the key when the session has ended")
	}
	check(l)
	if s, err := l.session(r.ID()); err != nil || s.Originals != 4 || s.Masked != 2 || s.Blocked != 1 || s.S2C.Frames != 2 || s.C2S.Frames != 2 {
		t.Errorf("%+v, %v", s, err)
	}
	verifier, err := ReadVerifier(data)
	if err != nil {
		t.Fatal(err)
	}
	if report, err := VerifyLog(t.Context(), l, verifier, nil, nil); err != nil || len(report.Faults) > 0 || report.Frames != 5 {
		t.Errorf("%+v, %v", report, err)
	}
	tape, err := ReadTape(t.Context(), l, r.ID())
	if err != nil || tape.Len() != 5 {
		t.Errorf("%d frames on tape, %v", tape.Len(), err)
	}
	tape.Close()
	l.Close()
	grepFolder(t, data, "hunter2")
}

// TestOriginalsRuns checks that a damaged key takes only its own run with it.
func TestOriginalsRuns(t *testing.T) {
	id, to := auditor(t)
	l := open(t, Options{Dir: t.TempDir(), Originals: to, still: true})
	r := start(t, l)
	const frames = 2*sealedRun + 10
	for i := range frames {
		if err := r.Append(Frame{Verdict: Masked, Bytes: fmt.Appendf(nil, "%d [masked:x]", i), Original: fmt.Appendf(nil, "%d secret", i)}); err != nil {
			t.Fatal(err)
		}
	}
	tm := &tampering{t: t, l: l}
	second := blockKey(r.ID(), 2*sealedRun+1, 0) // with a key, and two records for each frame before it
	b := tm.get(second)
	b[len(b)-1] ^= 1
	tm.set(second, b)
	got, err := replayed(t, OpenOriginals(l, id), r.ID())
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("no damage is reported: %v", err)
	}
	lines := strings.Split(strings.TrimSuffix(got, "\n"), "\n")
	for i := range sealedRun {
		if want := fmt.Sprintf("%d secret", i); lines[i] != want {
			t.Fatalf("got %q, want %q", lines[i], want)
		}
	}
	for i := 2 * sealedRun; i < frames; i++ {
		if want := fmt.Sprintf("%d secret", i); !slices.Contains(lines, want) {
			t.Fatalf("%q is lost", want)
		}
	}
	if !slices.Contains(lines, fmt.Sprintf("%d [masked:x]", sealedRun+1)) {
		t.Error("a frame whose key is lost does not come as it is on record")
	}
}

// TestOriginalsTampered moves and changes what is sealed, with block hashes that fit.
func TestOriginalsTampered(t *testing.T) {
	id, to := auditor(t)
	l := open(t, Options{Dir: t.TempDir(), Originals: to})
	seal := func(session string) []Frame {
		s := sealer{session: session, to: to}
		all, err := s.add([]Frame{
			{Verdict: Masked, Bytes: []byte("0 [masked:x]"), Original: []byte("0 one")},
			{Verdict: Masked, Bytes: []byte("1 [masked:x]"), Original: []byte("1 two")},
			{Direction: codec.S2C, Verdict: Blocked, Bytes: []byte("2 [masked:x]"), Original: []byte("2 three")},
		})
		if err != nil {
			t.Fatal(err)
		}
		return all // key, sealed, frame, sealed, frame, sealed, frame
	}
	const good = "0 one\n1 two\n2 three\n"
	tests := []struct {
		name   string
		tamper func(f []Frame) []Frame
		want   string // what is replayed
		err    string // "" is none
	}{
		{"nothing", func(f []Frame) []Frame { return f }, good, ""},
		{"two swapped", func(f []Frame) []Frame { f[1].Bytes, f[3].Bytes = f[3].Bytes, f[1].Bytes; return f },
			"0 [masked:x]\n1 [masked:x]\n2 three\n", "the original of frame 1 is not what was sealed, or the frame is not"},
		{"a bit", func(f []Frame) []Frame { f[3].Bytes[len(f[3].Bytes)-1] ^= 1; return f },
			"0 one\n1 [masked:x]\n2 three\n", "the original of frame 2 is not what was sealed"},
		{"the frame", func(f []Frame) []Frame { f[4].Bytes = []byte("1 [masked:y]"); return f },
			"0 one\n1 [masked:y]\n2 three\n", "the original of frame 2 is not what was sealed"},
		{"the direction", func(f []Frame) []Frame { f[6].Direction = codec.C2S; return f },
			"0 one\n1 two\n2 [masked:x]\n", "the original of frame 3 is not what was sealed"},
		{"the key", func(f []Frame) []Frame { f[0].Bytes[len(f[0].Bytes)-1] ^= 1; return f },
			"0 [masked:x]\n1 [masked:x]\n2 [masked:x]\n", "the key of the originals behind frame 0 cannot be opened"},
		{"no key", func(f []Frame) []Frame { return f[1:] },
			"0 [masked:x]\n1 [masked:x]\n2 [masked:x]\n", "the original of frame 1 has no key on record that can be read"},
		{"none", func(f []Frame) []Frame { return []Frame{f[2], f[4], f[6]} },
			"0 [masked:x]\n1 [masked:x]\n2 [masked:x]\n", "no original is on record of 2 frames"},
		{"what cannot be read", func(f []Frame) []Frame { f[1].Bytes = []byte{7}; return f },
			"0 [masked:x]\n1 two\n2 three\n", "what is sealed behind frame 0 cannot be read"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := start(t, l)
			if err := r.Append(tt.tamper(seal(r.ID()))...); err != nil {
				t.Fatal(err)
			}
			got, err := replayed(t, OpenOriginals(l, id), r.ID())
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got error %v, want %q", err, tt.err)
			}
		})
	}
	t.Run("of another session", func(t *testing.T) {
		r := start(t, l)
		if err := r.Append(seal("another")...); err != nil {
			t.Fatal(err)
		}
		if got, err := replayed(t, OpenOriginals(l, id), r.ID()); strings.Contains(got, "one") || !errors.Is(err, ErrDamaged) {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

// TestOriginalsKinds seals to each kind of recipient, and opens with each kind of
// identity.
func TestOriginalsKinds(t *testing.T) {
	noPassphrase := func() ([]byte, error) { return nil, errors.New("no passphrase is needed") }
	passphrase := func() ([]byte, error) { return []byte("open sesame"), nil }
	native, _ := auditor(t)
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sshPublic, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	recipient := string(ssh.MarshalAuthorizedKey(sshPublic))
	plain, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	locked, err := ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte("open sesame"))
	if err != nil {
		t.Fatal(err)
	}
	scrypt, err := age.NewScryptRecipient("open sesame")
	if err != nil {
		t.Fatal(err)
	}
	scrypt.SetWorkFactor(10)
	var encrypted bytes.Buffer
	a := armor.NewWriter(&encrypted)
	w, err := age.Encrypt(a, scrypt)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(w, "# an auditor's\n%s\n", native)
	if err := errors.Join(w.Close(), a.Close()); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, recipient string
		identity        []byte
		passphrase      func() ([]byte, error)
	}{
		{"age", "# auditors\n" + native.Recipient().String() + "\n", []byte(native.String()), noPassphrase},
		{"age, with a passphrase", native.Recipient().String(), encrypted.Bytes(), passphrase},
		{"post-quantum", hybrid.Recipient().String(), []byte(hybrid.String()), noPassphrase},
		{"ssh", recipient, pem.EncodeToMemory(plain), noPassphrase},
		{"ssh, with a passphrase", recipient, pem.EncodeToMemory(locked), passphrase},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			to, err := ParseRecipients(tt.recipient)
			if err != nil {
				t.Fatal(err)
			}
			l := open(t, Options{Dir: t.TempDir(), Originals: to})
			r := start(t, l)
			on, sent := masked()
			if err := r.Append(on...); err != nil {
				t.Fatal(err)
			}
			ids, err := ParseIdentities(tt.identity, tt.passphrase)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := replayed(t, OpenOriginals(l, ids...), r.ID()); err != nil || got != sent {
				t.Errorf("got %.200q, %v", got, err)
			}
		})
	}
	for name, texts := range map[string][]string{
		"an identity":                          {native.String()},
		"nothing":                              {""},
		"what is no recipient":                 {"age1abc"},
		"post-quantum and not":                 {native.Recipient().String(), hybrid.Recipient().String()},
		"an SSH key of a kind that age has no": {"ssh-dss AAAA"},
	} {
		if _, err := ParseRecipients(texts...); err == nil || strings.Contains(err.Error(), "AGE-SECRET") || strings.Contains(err.Error(), "age1abc") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{"nothing": "", "a recipient": native.Recipient().String(), "a certificate": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if _, err := ParseIdentities([]byte(text), noPassphrase); err == nil {
			t.Errorf("%s is an identity", name)
		}
	}
}

func BenchmarkAppendOriginals(b *testing.B) {
	_, to := auditor(b)
	frame := bytes.Repeat([]byte(`{"email":"[masked:email]","n":1},`), 128) // 4 KiB
	for _, bb := range []struct {
		name string
		to   []age.Recipient
	}{{"none", nil}, {"sealed", to}} {
		b.Run(bb.name, func(b *testing.B) {
			l := open(b, Options{Dir: b.TempDir(), Originals: bb.to})
			r := start(b, l)
			for b.Loop() {
				if err := r.Append(Frame{Direction: codec.S2C, Verdict: Masked, Bytes: frame, Original: frame}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
