package recorder

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// secretFile makes a key in a file.
func secretFile(t testing.TB) string {
	t.Helper()
	var key [keySize]byte
	rand.Read(key[:])
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(base64.StdEncoding.EncodeToString(key[:])+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return "file:" + path
}

// A text that no block has compressed.
const marker = "jNx7Qz1plaintextKw0Vt3"

// writeMarked records sessions in a data folder, and returns the last.
func writeMarked(t testing.TB, data, by string) (session string) {
	t.Helper()
	key, err := OpenKey(data)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Open(Options{Dir: filepath.Join(data, "log"), Key: key, Encryption: by})
	if err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 64<<10) // so that a block is long, and goes to the value log
	rand.Read(noise)
	for _, frame := range []string{marker, marker + base64.StdEncoding.EncodeToString(noise)} {
		r := start(t, l)
		if err := errors.Join(r.Append(Frame{Bytes: []byte(frame)}), r.End(Ended, "")); err != nil {
			t.Fatal(err)
		}
		session = r.ID()
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return session
}

func holds(t testing.TB, dir, text string) bool {
	t.Helper()
	found, files := false, 0
	err := filepath.WalkDir(filepath.Join(dir, "log"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		files, found = files+1, found || bytes.Contains(b, []byte(text))
		return err
	})
	if err != nil || files == 0 {
		t.Fatalf("%d files, %v", files, err)
	}
	return found
}

// reads fails if a data folder does not replay and verify a session.
func reads(t testing.TB, data, session string) {
	t.Helper()
	src, err := OpenSource(data)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	var out bytes.Buffer
	if err := Replay(t.Context(), &out, src, session, View{}); err != nil || !strings.HasPrefix(out.String(), marker) {
		t.Errorf("replayed %.40q, %v", out.String(), err)
	}
	verifier, err := ReadVerifier(data)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := VerifyLog(t.Context(), src, verifier, nil, nil); err != nil || len(r.Faults) > 0 || r.Sessions < 2 {
		t.Errorf("verified %+v, %v", r, err)
	}
}

func TestEncryption(t *testing.T) {
	plain := t.TempDir()
	writeMarked(t, plain, "")
	if !holds(t, plain, marker) || !holds(t, plain, "s/0") {
		t.Fatal("the marker is not what is on the disk without encryption")
	}
	data, by := t.TempDir(), secretFile(t)
	session := writeMarked(t, data, by)
	for _, text := range []string{marker, session, "ada"} {
		if holds(t, data, text) {
			t.Errorf("the disk holds %q", text)
		}
	}
	reads(t, data, session) // the log says itself where its key is
	dir := filepath.Join(data, "log")
	if got, err := EncryptedBy(dir); got != by || err != nil {
		t.Errorf("encrypted by %q, %v", got, err)
	}

	// The key in another place, then a wrong one, and none.
	path := strings.TrimPrefix(by, "file:")
	moved := path + ".moved"
	if err := os.Rename(path, moved); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSource(data); !errors.Is(err, ErrEncryption) || !strings.Contains(err.Error(), path) {
		t.Errorf("without its key: %v", err)
	}
	if l, err := Open(Options{Dir: dir, Encryption: "file:" + moved}); err != nil {
		t.Error(err)
	} else {
		l.Close()
	}
	reads(t, data, session)
	if _, err := Open(Options{Dir: dir, Encryption: secretFile(t)}); !errors.Is(err, ErrEncryption) {
		t.Errorf("with a wrong key: %v", err)
	}
	if err := os.Rename(filepath.Join(dir, encryptionFile), filepath.Join(data, "x")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: dir}); !errors.Is(err, ErrEncryption) {
		t.Errorf("without the file that has it: %v", err)
	}
	if _, err := Open(Options{Dir: dir, Encryption: by}); !errors.Is(err, ErrNotEncrypted) {
		t.Errorf("with another file in its place: %v", err)
	}
	if _, err := Open(Options{Dir: filepath.Join(plain, "log"), Encryption: secretFile(t)}); !errors.Is(err, ErrNotEncrypted) {
		t.Errorf("a log without encryption: %v", err)
	}
	for _, bad := range []string{"hunter2", "file:relative", "gcpkms://x", "gcpkms://projects/p/locations/l/keyRings/r/cryptoKeys/k?endpoint=http://example.com"} {
		if err := CheckWrapper(bad); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestRotateEncryption(t *testing.T) {
	data, by := t.TempDir(), secretFile(t)
	session := writeMarked(t, data, by)
	next := secretFile(t)
	if err := RotateEncryption(filepath.Join(data, "log"), secretFile(t), next); !errors.Is(err, ErrEncryption) {
		t.Errorf("with a wrong old key: %v", err)
	}
	if err := RotateEncryption(filepath.Join(data, "log"), "", "file:/nowhere"); err == nil {
		t.Error("rotated to a key that is not there")
	}
	reads(t, data, session)
	if err := RotateEncryption(filepath.Join(data, "log"), "", next); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(strings.TrimPrefix(by, "file:")); err != nil { // the old one is not needed
		t.Fatal(err)
	}
	reads(t, data, session)
}

// TestReencrypt writes a log anew with encryption, with another key, and without.
func TestReencrypt(t *testing.T) {
	data := t.TempDir()
	session := writeMarked(t, data, "")
	last := ""
	for n, by := range []string{secretFile(t), secretFile(t), ""} {
		// What a killed one leaves is in nobody's way.
		if err := os.MkdirAll(filepath.Join(rewriting(filepath.Join(data, "log")), "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := Reencrypt(data, by, nil); err != nil {
			t.Fatal(err)
		}
		if got, err := EncryptedBy(filepath.Join(data, "log")); got != by || err != nil {
			t.Errorf("%d: encrypted by %q, %v", n, got, err)
		}
		if holds(t, data, marker) != (by == "") {
			t.Errorf("%d: whether the marker is on the disk is wrong", n)
		}
		reads(t, data, session)
		if last != "" {
			os.Remove(strings.TrimPrefix(last, "file:"))
			reads(t, data, session)
		}
		last = by
	}
	if _, err := os.Stat(rewriting(filepath.Join(data, "log"))); err == nil {
		t.Error("the log that was is still there")
	}
	l := open(t, Options{Dir: filepath.Join(data, "log")})
	defer l.Close()
	if err := Reencrypt(data, secretFile(t), nil); !errors.Is(err, ErrInUse) {
		t.Errorf("of a log in use: %v", err)
	}
}

// With this variable set, the test binary writes a log anew, and kills itself in its midst.
const reencryptVictim = "RECORDER_REENCRYPT_VICTIM"

func beReencryptVictim(arg string) {
	parts := strings.Split(arg, ",") // data folder, wrapper, step
	die := func(here bool) {
		if here {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	copied := 0
	err := reencrypt(parts[0], parts[1], func(int64, int64) {
		copied++
		die(parts[2] == fmt.Sprint("copy ", copied))
	}, func(step int) { die(parts[2] == fmt.Sprint(step)) })
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// TestReencryptKilled kills a process that writes a log anew: the log is as it was, or as
// it shall be, and what is recorded, held and signed is there.
func TestReencryptKilled(t *testing.T) {
	for _, step := range []string{"1", "2", "copy 1", "copy 10", "copy 15", "3", "4", "5"} {
		t.Run(step, func(t *testing.T) {
			data, was, by := t.TempDir(), secretFile(t), secretFile(t)
			if step == "copy 10" {
				was = "" // which was not encrypted
			}
			session := writeMarked(t, data, was)
			dir := filepath.Join(data, "log")
			key, err := OpenKey(data)
			if err != nil {
				t.Fatal(err)
			}
			verifier, err := ReadVerifier(data)
			if err != nil {
				t.Fatal(err)
			}
			l := open(t, Options{Dir: dir, Key: key})
			if err := l.Hold(t.Context(), Hold{Session: session, By: "grace"}); err != nil {
				t.Fatal(err)
			}
			before := verified(t, l, verifier, nil)
			want := allOf(t, l, session)
			l.Close()

			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), reencryptVictim+"="+strings.Join([]string{data, by, step}, ","))
			cmd.Stderr = os.Stderr
			if err, e := cmd.Run(), (*exec.ExitError)(nil); !errors.As(err, &e) || e.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("it is not killed: %v", err)
			}
			shall := was
			if step == "4" || step == "5" {
				shall = by
			}
			if got, err := EncryptedBy(dir); got != shall || err != nil {
				t.Errorf("it is encrypted by %q, %v; want %q", got, err, shall)
			}
			for range 2 { // as it was left, and when it was gone on with
				l = open(t, Options{Dir: dir, Key: key})
				if _, err := os.Stat(rewriting(dir)); err == nil {
					t.Error("what is left of it is still there")
				}
				if r := verified(t, l, verifier, before.Seen); len(r.Faults) > 0 || r.Sessions != before.Sessions {
					t.Errorf("%+v", r)
				}
				if got := allOf(t, l, session); !slices.Equal(got, want) {
					t.Errorf("%d frames are others than the %d before", len(got), len(want))
				}
				if err := l.Delete(t.Context(), session, "root", "x"); !errors.Is(err, ErrHeld) {
					t.Errorf("deletion of what is held: %v", err)
				}
				l.Close()
				if err := Reencrypt(data, by, nil); err != nil {
					t.Fatal(err)
				}
			}
			if holds(t, data, marker) {
				t.Error("what was there before is on the disk")
			}
		})
	}
}

// TestReencryptDamaged checks that a log which cannot be read whole is not written anew.
func TestReencryptDamaged(t *testing.T) {
	data := t.TempDir()
	dir := filepath.Join(data, "log")
	l := open(t, Options{Dir: dir, still: true})
	for i := range 50 {
		r := start(t, l)
		noise := make([]byte, 900) // which lies in the tables
		makeNoise(noise, byte(i))
		if err := errors.Join(r.Append(Frame{Bytes: noise}), r.End(Ended, "")); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	tables, _ := filepath.Glob(filepath.Join(dir, "*.sst"))
	if len(tables) == 0 {
		t.Fatal("there are no tables")
	}
	b, err := os.ReadFile(tables[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(tables[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Reencrypt(data, secretFile(t), nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("a damaged log: %v", err)
	}
	if by, err := EncryptedBy(dir); by != "" || err != nil {
		t.Errorf("it is another one: %q, %v", by, err)
	}
}

// TestKMS plays Google's KMS.
func TestKMS(t *testing.T) {
	const name = "projects/p/locations/l/keyRings/r/cryptoKeys/k"
	denied, corrupt := false, false
	key := []byte(strings.Repeat("k", keySize))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Plaintext, Ciphertext, AdditionalAuthenticatedData []byte
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || denied {
			w.WriteHeader(403)
			fmt.Fprint(w, `{"error":{"code":403,"status":"PERMISSION_DENIED","message":"no"}}`)
			return
		}
		aead := newAEAD(key)
		switch r.URL.Path {
		case "/v1/" + name + ":encrypt":
			out := aead.Seal(nil, make([]byte, 12), in.Plaintext, in.AdditionalAuthenticatedData)
			sum := crcOf(out)
			if corrupt {
				sum++
			}
			json.NewEncoder(w).Encode(map[string]any{"ciphertext": out, "ciphertextCrc32c": sum, "verifiedPlaintextCrc32c": true, "verifiedAdditionalAuthenticatedDataCrc32c": true})
		case "/v1/" + name + ":decrypt":
			out, err := aead.Open(nil, make([]byte, 12), in.Ciphertext, in.AdditionalAuthenticatedData)
			if err != nil {
				w.WriteHeader(400)
				return
			}
			json.NewEncoder(w).Encode(map[string]any{"plaintext": out, "plaintextCrc32c": crcOf(out)})
		default:
			w.WriteHeader(404)
		}
	}))
	defer server.Close()
	k, err := newKMS(kmsScheme + name + "?endpoint=" + server.URL)
	if err != nil {
		t.Fatal(err)
	}
	k.client = func() (*http.Client, error) { return server.Client(), nil }
	secret := []byte(strings.Repeat("s", keySize))
	wrapped, err := k.wrap(secret)
	if err != nil || bytes.Contains(wrapped, secret) {
		t.Fatalf("%q, %v", wrapped, err)
	}
	if got, err := k.unwrap(wrapped); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("%q, %v", got, err)
	}
	wrapped[0] ^= 1
	if _, err := k.unwrap(wrapped); err == nil {
		t.Error("what was changed opens")
	}
	corrupt = true
	if _, err := k.wrap(secret); err == nil {
		t.Error("a wrong checksum is good")
	}
	denied = true
	if _, err := k.unwrap(wrapped); err == nil || !strings.Contains(err.Error(), "403 PERMISSION_DENIED") {
		t.Errorf("denied: %v", err)
	}
}

// BenchmarkEncryption measures what it costs that a log is encrypted: processor time of a
// frame of 4 KiB until it is in its large block, and of a MiB that is read back.
func BenchmarkEncryption(b *testing.B) {
	answers := make([][]byte, 1<<10) // half of each hardly compresses
	for n := range answers {
		noise := make([]byte, 1536)
		rand.Read(noise)
		text := fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"result":{"token":"%s","rows":[`, n, base64.StdEncoding.EncodeToString(noise))
		for row := n; len(text) < 4<<10; row++ {
			text += fmt.Sprintf(`{"id":%d,"name":"customer %d","city":"Zürich"},`, row, row*7919%100_003)
		}
		answers[n] = []byte(text + `{}]}}`)
	}
	frame := func(n int) []byte { return answers[n%len(answers)] }
	used := func() time.Duration {
		var u syscall.Rusage
		syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	for _, by := range []string{"", secretFile(b)} {
		name := "plain"
		if by != "" {
			name = "encrypted"
		}
		b.Run("append/"+name, func(b *testing.B) {
			l := open(b, Options{Dir: b.TempDir(), Encryption: by})
			r, n := start(b, l), 0
			before := used()
			for b.Loop() {
				n++
				if err := r.Append(Frame{Bytes: frame(n)}); err != nil {
					b.Fatal(err)
				}
			}
			if err := errors.Join(r.End(Ended, ""), l.Settle(b.Context())); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64((used()-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
		b.Run("read/"+name, func(b *testing.B) {
			l := open(b, Options{Dir: b.TempDir(), Encryption: by})
			r, size := start(b, l), int64(0)
			for n := range 4 << 10 {
				f := frame(n)
				size += int64(len(f))
				if err := r.Append(Frame{Bytes: f}); err != nil {
					b.Fatal(err)
				}
			}
			if err := errors.Join(r.End(Ended, ""), l.Settle(b.Context())); err != nil {
				b.Fatal(err)
			}
			before := used()
			for b.Loop() {
				for _, err := range l.Frames(b.Context(), r.ID()) {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
			b.SetBytes(size)
			b.ReportMetric(float64((used()-before).Nanoseconds())/float64(b.N)/float64(size>>20), "cpu-ns/MiB")
		})
	}
}
