package archive

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fsouza/fake-gcs-server/fakestorage"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"example.com/broker/codec"
	"example.com/broker/recorder"
)

// gcs returns the URL of a bucket in a Google Cloud Storage that is played.
func gcs(t testing.TB) string {
	t.Helper()
	s, err := fakestorage.NewServerWithOptions(fakestorage.Options{Scheme: "http", PublicHost: "127.0.0.1", Writer: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	s.CreateBucketWithOpts(fakestorage.CreateBucketOpts{Name: "recordings"})
	t.Setenv("STORAGE_EMULATOR_HOST", strings.TrimPrefix(s.URL(), "http://"))
	return "gs://recordings/production"
}

// s3 returns the URL of a bucket in an S3 that is played, and what requests it got.
func s3(t *testing.T) (string, func() []*http.Request) {
	t.Helper()
	for name, value := range map[string]string{"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": filepath.Join(t.TempDir(), "none"), "AWS_SHARED_CREDENTIALS_FILE": filepath.Join(t.TempDir(), "none"), "AWS_REGION": "", "AWS_PROFILE": ""} {
		t.Setenv(name, value)
	}
	backend := s3mem.New()
	if err := backend.CreateBucket("recordings"); err != nil {
		t.Fatal(err)
	}
	var (
		mu  sync.Mutex
		got []*http.Request
	)
	fake := gofakes3.New(backend).Server()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		got = append(got, r)
		mu.Unlock()
		fake.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return "s3://recordings/production?region=eu-west-9&use_path_style=true&endpoint=" + s.URL, func() []*http.Request {
		mu.Lock()
		defer mu.Unlock()
		return got
	}
}

// all calls f with an archive of each kind.
func all(t *testing.T, f func(t *testing.T, url string)) {
	t.Run("file", func(t *testing.T) { f(t, "file://"+t.TempDir()) })
	t.Run("gs", func(t *testing.T) { f(t, gcs(t)) })
	t.Run("s3", func(t *testing.T) { url, _ := s3(t); f(t, url) })
}

func open(t *testing.T, url string) recorder.Archive {
	t.Helper()
	a, err := Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func put(ctx context.Context, a recorder.Archive, name string, b []byte) error {
	w, err := a.Create(ctx, name)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return errors.Join(err, w.Close())
}

func get(ctx context.Context, a recorder.Archive, name string) ([]byte, error) {
	r, err := a.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

// TestObjects checks what recorder.Archive says.
func TestObjects(t *testing.T) {
	all(t, func(t *testing.T, url string) {
		ctx, a := t.Context(), open(t, url)
		if _, err := get(ctx, a, "x.age"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("one that is not there: %v", err)
		}
		if err := a.Delete(ctx, "x.age"); err != nil {
			t.Errorf("delete one that is not there: %v", err)
		}
		big := bytes.Repeat([]byte("0123456789abcdef"), 800<<10) // in several parts
		for _, b := range [][]byte{[]byte("first"), big, {}, []byte("second")} {
			if err := put(ctx, a, "x.age", b); err != nil {
				t.Fatal(err)
			}
			if got, err := get(ctx, open(t, url), "x.age"); err != nil || !bytes.Equal(got, b) {
				t.Fatalf("%d of %d bytes, %v", len(got), len(b), err)
			}
		}
		stopped, cancel := context.WithCancel(ctx)
		for _, name := range []string{"x.age", "y.age"} {
			w, err := a.Create(stopped, name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(big); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := w.Close(); err == nil {
					t.Error("one that is not wanted any more is closed")
				}
				if got, err := get(ctx, a, name); name == "x.age" && string(got) != "second" || name == "y.age" && !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s that is not wanted any more is there: %d bytes, %v", name, len(got), err)
				}
			}()
		}
		cancel()
	})
}

// TestSessions archives sessions and reads them, and finds what somebody has done to them.
func TestSessions(t *testing.T) {
	all(t, func(t *testing.T, url string) {
		data := t.TempDir()
		key, err := recorder.OpenKey(data)
		if err != nil {
			t.Fatal(err)
		}
		verifier, _ := recorder.ReadVerifier(data)
		o := recorder.Options{Dir: filepath.Join(data, "log"), Key: key, Archive: url, OpenArchive: Open}
		l, err := recorder.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { l.Close() }()
		r, err := l.Start(recorder.Session{Subject: "ada", Server: "s"})
		for i := range 20 {
			if err == nil {
				err = r.Append(recorder.Frame{Direction: codec.Direction(i % 2), Bytes: bytes.Repeat([]byte{'a' + byte(i)}, 1000*i+1)})
			}
		}
		if err = errors.Join(err, r.End(recorder.Ended, "closed")); err != nil {
			t.Fatal(err)
		}
		var want bytes.Buffer
		if err := recorder.Replay(t.Context(), &want, l, r.ID(), recorder.View{}); err != nil {
			t.Fatal(err)
		}
		place, _, _ := strings.Cut(url, "?")
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			if s, err := l.Session(t.Context(), r.ID()); err != nil || s.Archived == place {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the session is not archived")
			}
		}
		// By a log that does not archive, and does not know of it but by itself.
		l.Close()
		o.Archive = ""
		if l, err = recorder.Open(o); err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := recorder.Replay(t.Context(), &got, l, r.ID(), recorder.View{}); err != nil || !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Fatalf("%d of %d bytes, %v", got.Len(), want.Len(), err)
		}
		a := open(t, url)
		object, err := a.(*bucket).List(nil).Next(t.Context())
		if err != nil || !strings.HasPrefix(object.Key, r.ID()) {
			t.Fatalf("the object is %v, %v", object, err)
		}
		name := object.Key
		good, err := get(t.Context(), a, name)
		if err != nil {
			t.Fatal(err)
		}
		changed := bytes.Clone(good)
		changed[len(changed)/2] ^= 1
		for what, b := range map[string][]byte{"": good, "is not what was written": changed, " is not what was written": good[:len(good)-20], "is not there": nil} {
			if b != nil {
				err = put(t.Context(), a, name, b)
			} else {
				err = a.Delete(t.Context(), name)
			}
			if err != nil {
				t.Fatal(err)
			}
			report, err := recorder.VerifyLog(t.Context(), l, verifier, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if what == "" && len(report.Faults) > 0 || what != "" && (len(report.Faults) != 1 || !strings.Contains(report.Faults[0].What, place+"/"+name+" "+strings.TrimSpace(what))) {
				t.Errorf("%q: faults are %v", what, report.Faults)
			}
		}
		if err := put(t.Context(), a, name, good); err != nil {
			t.Fatal(err)
		}
		if err := l.Delete(t.Context(), r.ID(), "ada", "asked for"); err != nil {
			t.Fatal(err)
		}
		if _, err := get(t.Context(), a, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the object of a deleted session: %v", err)
		}
	})
}

// TestS3Options checks that the options of a URL are what requests are made with.
func TestS3Options(t *testing.T) {
	url, requests := s3(t)
	if err := put(t.Context(), open(t, url), "x.age", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for _, r := range requests() {
		if auth := r.Header.Get("Authorization"); r.URL.Path != "/recordings/production/x.age" || !strings.Contains(auth, "Credential=id/") || !strings.Contains(auth, "/eu-west-9/s3/") {
			t.Errorf("request for %s with %s", r.URL.Path, auth)
		}
	}
	if len(requests()) == 0 {
		t.Error("no requests")
	}
	if _, err := Open(t.Context(), "s3://recordings?regoin=x"); err == nil || !strings.Contains(err.Error(), "regoin") {
		t.Errorf("an unknown option: %v", err)
	}
}

// TestUnreachable checks that nobody waits for ever for an archive that is not there.
func TestUnreachable(t *testing.T) {
	deaf, err := net.Listen("tcp", "127.0.0.1:0") // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for _, host := range []string{deaf.Addr().String(), closed.Addr().String()} {
		t.Setenv("STORAGE_EMULATOR_HOST", host)
		a := open(t, "gs://recordings")
		a.(*bucket).readTime, a.(*bucket).writeTime = 300*time.Millisecond, 300*time.Millisecond
		_, err := get(t.Context(), a, "x.age")
		for what, err := range map[string]error{"read": err, "write": put(t.Context(), a, "x.age", []byte("x")), "delete": a.Delete(t.Context(), "x.age")} {
			if err == nil || errors.Is(err, fs.ErrNotExist) || host == deaf.Addr().String() && !strings.Contains(err.Error(), "no answer in 300ms") {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	folder := filepath.Join(t.TempDir(), "archive")
	if _, err := Open(t.Context(), "file://"+folder); err == nil {
		t.Error("a folder that is missing is opened")
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	a := open(t, "file://"+folder)
	if err := os.Remove(folder); err != nil {
		t.Fatal(err)
	}
	_, err = get(t.Context(), a, "x.age")
	for what, err := range map[string]error{"read": err, "write": put(t.Context(), a, "x.age", []byte("x")), "delete": a.Delete(t.Context(), "x.age")} {
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s in a folder that is gone: %v", what, err)
		}
	}
	if _, err := os.Stat(folder); err == nil {
		t.Error("the folder was made")
	}
}

// TestNoCredentials checks that they are named, and that nothing is printed where bytes go.
func TestNoCredentials(t *testing.T) {
	t.Setenv("STORAGE_EMULATOR_HOST", "")
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", filepath.Join(t.TempDir(), "none.json"))
	out, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = out
	_, err = Open(t.Context(), "gs://recordings")
	os.Stdout = stdout
	if err == nil || !strings.Contains(err.Error(), "none.json") {
		t.Errorf("error %v", err)
	}
	if b, err := os.ReadFile(out.Name()); err != nil || len(b) > 0 {
		t.Errorf("printed is %q, %v", b, err)
	}
}

func TestCheck(t *testing.T) {
	for url, good := range map[string]bool{
		"gs://bucket": true, "gs://bucket/a/b/": true, "s3://bucket/a?region=eu-west-1": true, "file:///srv/archive": true,
		"": false, "bucket": false, "/srv/archive": false, "gs://": false, "gs:bucket": false, "file://srv/archive": false, "file:srv": false,
		"https://bucket.s3.amazonaws.com": false, "mem://": false, "s3://key:secret@bucket": false, "gs://bucket#a": false, "gs://bu cket": false,
	} {
		if err := Check(url); (err == nil) != good {
			t.Errorf("%q: %v", url, err)
		} else if err != nil && url != "" && strings.Contains(err.Error(), "secret") {
			t.Errorf("%q is in %v", url, err)
		}
	}
}
