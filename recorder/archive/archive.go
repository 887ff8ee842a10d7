// Package archive keeps recordings in a bucket: of Google Cloud Storage, of S3 or what
// speaks like it, or in a folder.
//
//	a, err := archive.Open(ctx, "gs://recordings/production")
//	log, err := recorder.Open(recorder.Options{…, OpenArchive: archive.Open, Archive: "gs://recordings/production"})
//
// It is a package of its own so that only who archives has the clouds' libraries in it.
package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"
	"gocloud.dev/blob/gcsblob"
	"gocloud.dev/blob/s3blob"
	"gocloud.dev/gcerrors"
	"gocloud.dev/gcp"
	"golang.org/x/oauth2/google"

	"example.com/broker/recorder"
)

const (
	// readTime and writeTime are how long is waited for the next bytes, or until so many
	// are taken: clients of GCS try again until they are told to stop.
	readTime  = 20 * time.Second
	writeTime = time.Minute
	// partSize is how much is sent at a time; S3 takes no less than 5 MiB.
	partSize = 5 << 20

	gcsScope = "https://www.googleapis.com/auth/devstorage.read_write"
)

// Check returns what is wrong with the URL of an archive. It is not looked whether it is
// there.
func Check(text string) error {
	_, err := parse(text)
	return err
}

func parse(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("is no URL")
	}
	switch {
	case u.User != nil || u.Fragment != "":
		return nil, errors.New("must have no user and no fragment")
	case (u.Scheme == gcsblob.Scheme || u.Scheme == s3blob.Scheme) && u.Host != "" && u.Opaque == "":
		return u, nil
	case u.Scheme == fileblob.Scheme && u.Host == "" && filepath.IsAbs(u.Path):
		return u, nil
	}
	return nil, errors.New("must be gs://BUCKET, s3://BUCKET?region=REGION, each with a path if you like, or file:///FOLDER")
}

// Open opens the archive at a URL. Credentials are those of the machine: Google's application
// default credentials; what AWS's own tools find. Of options, gs:// and s3:// have those of
// gocloud.dev. With STORAGE_EMULATOR_HOST, gs:// is that host, without TLS and credentials.
func Open(ctx context.Context, text string) (recorder.Archive, error) {
	u, err := parse(text)
	if err != nil {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx) // clients get their tokens with it, later
	b := &bucket{readTime: readTime, writeTime: writeTime}
	switch u.Scheme {
	case gcsblob.Scheme:
		b.Bucket, err = openGCS(ctx, u)
	case s3blob.Scheme:
		b.Bucket, err = new(s3blob.URLOpener).OpenBucketURL(ctx, u)
	case fileblob.Scheme:
		if u.RawQuery != "" {
			return nil, errors.New("file:// has no options")
		}
		// The folder is not made: where a disk is not mounted, it is missing.
		b.folder = u.Path
		b.Bucket, err = fileblob.OpenBucket(u.Path, &fileblob.Options{NoTempDir: true, Metadata: fileblob.MetadataDontWrite})
	}
	if err != nil {
		return nil, err
	}
	if prefix := strings.Trim(u.Path, "/"); prefix != "" && b.folder == "" {
		b.Bucket = blob.PrefixedBucket(b.Bucket, prefix+"/")
	}
	return b, nil
}

// openGCS is what gocloud.dev does with the URL, but for a warning that it prints to stdout
// where there are no credentials.
func openGCS(ctx context.Context, u *url.URL) (*blob.Bucket, error) {
	o := gcsblob.URLOpener{Client: gcp.NewAnonymousHTTPClient(gcp.DefaultTransport())}
	if os.Getenv("STORAGE_EMULATOR_HOST") == "" {
		c, err := google.FindDefaultCredentials(ctx, gcsScope)
		if err != nil {
			return nil, fmt.Errorf("credentials of Google's: %w", err)
		}
		if o.Client, err = gcp.NewHTTPClient(gcp.DefaultTransport(), c.TokenSource); err != nil {
			return nil, err
		}
		o.TokenSource = c.TokenSource
	}
	return o.OpenBucketURL(ctx, u)
}

type bucket struct {
	*blob.Bucket
	folder string // of file://

	readTime, writeTime time.Duration
}

// isThere returns an error if the folder is missing: a disk that is not mounted has not
// lost its files, and what is written there would not be on it.
func (b *bucket) isThere() error {
	if b.folder == "" {
		return nil
	}
	if _, err := os.Stat(b.folder); err != nil {
		return fmt.Errorf("its folder: %v", err) // not as an error: it may say that nothing is there
	}
	return nil
}

// Create implements [recorder.Archive].
func (b *bucket) Create(ctx context.Context, name string) (io.WriteCloser, error) {
	if err := b.isThere(); err != nil {
		return nil, err
	}
	p := newPatience(ctx, b.writeTime)
	w, err := b.NewWriter(p.ctx, name, &blob.WriterOptions{ContentType: "application/octet-stream", BufferSize: partSize})
	if err != nil {
		return nil, p.done(err)
	}
	return &writer{w, p, b.folder, name}, nil
}

type writer struct {
	to *blob.Writer
	*patience
	folder, name string
}

func (w *writer) Write(p []byte) (n int, err error) {
	err = w.during(func() error { n, err = w.to.Write(p); return err })
	return n, err
}

func (w *writer) Close() error {
	err := w.during(w.to.Close)
	if err == nil && w.folder != "" {
		err = errors.Join(syncFile(filepath.Join(w.folder, w.name)), syncFile(w.folder))
	}
	return w.done(err)
}

// syncFile flushes a file, or a folder: what was written there is erased here.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Open implements [recorder.Archive].
func (b *bucket) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	p := newPatience(ctx, b.readTime)
	var r *blob.Reader
	err := p.during(func() (err error) { r, err = b.NewReader(p.ctx, name, nil); return err })
	if gcerrors.Code(err) == gcerrors.NotFound {
		err = cmp.Or(b.isThere(), fs.ErrNotExist)
	}
	if err != nil {
		return nil, p.done(err)
	}
	return &reader{r, p}, nil
}

type reader struct {
	from *blob.Reader
	*patience
}

func (r *reader) Read(p []byte) (n int, err error) {
	err = r.during(func() error { n, err = r.from.Read(p); return err })
	return n, err
}

func (r *reader) Close() error { return r.done(r.from.Close()) }

// Delete implements [recorder.Archive].
func (b *bucket) Delete(ctx context.Context, name string) error {
	p := newPatience(ctx, b.readTime)
	err := p.during(func() error { return b.Bucket.Delete(p.ctx, name) })
	if gcerrors.Code(err) == gcerrors.NotFound {
		err = b.isThere()
	}
	return p.done(err)
}

// A patience ends a ctx when one thing takes longer than it lasts.
type patience struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	lasts  time.Duration
	timer  *time.Timer
}

func newPatience(ctx context.Context, lasts time.Duration) *patience {
	p := &patience{lasts: lasts}
	p.ctx, p.cancel = context.WithCancelCause(ctx)
	p.timer = time.AfterFunc(lasts, func() { p.cancel(fmt.Errorf("no answer in %v", lasts)) })
	p.timer.Stop()
	return p
}

func (p *patience) during(f func() error) error {
	p.timer.Reset(p.lasts)
	defer p.timer.Stop()
	err := f()
	if err != nil && err != io.EOF && p.ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", context.Cause(p.ctx), err)
	}
	return err
}

func (p *patience) done(err error) error {
	p.cancel(nil)
	return err
}
