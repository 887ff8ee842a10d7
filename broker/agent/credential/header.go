package credential

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// HeaderOptions say which header is set to what: the value of one of Value,
// File and Secret.
type HeaderOptions struct {
	Name   string
	Prefix string // before the value, such as "Bearer "
	Value  string
	File   string  // read at each use, so that it can be replaced
	Secret string  // projects/P/secrets/S/versions/V in Secret Manager, kept for 5 min
	Google *Google // reads Secret; with scope cloud-platform

	Used func(Use)    // may be nil
	Log  *slog.Logger // if nil, nothing is logged
}

// Header sets one header to a value that is the same for all.
type Header struct {
	o      HeaderOptions
	secret *cache
	ledger ledger
}

// A header that says how the request is to be read, or who it is for, is none
// for a credential.
var notForCredentials = regexp.MustCompile(`(?i)^(host|content-.*|transfer-encoding|connection|keep-alive|proxy-.*|te|trailer|upgrade|expect|accept|accept-.*|last-event-id|mcp-.*)$`)

var (
	headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
	secretName = regexp.MustCompile(`^projects/[^/\s]+/secrets/[\w-]+/versions/[\w-]+$`)
)

// NewHeader checks o.
func NewHeader(o HeaderOptions) (*Header, error) {
	given := 0
	for _, v := range []string{o.Value, o.File, o.Secret} {
		if v != "" {
			given++
		}
	}
	switch {
	case !headerName.MatchString(o.Name):
		return nil, fmt.Errorf("name %q is no name of a header", o.Name)
	case notForCredentials.MatchString(o.Name):
		return nil, fmt.Errorf("name %s: that header is not for credentials", o.Name)
	case given == 0:
		return nil, errors.New("value is missing or empty")
	case given > 1:
		return nil, errors.New("there is more than one value")
	case o.Value != "" && !sendable(o.Value):
		return nil, errNotSendable
	case !sendable("x" + o.Prefix):
		return nil, errors.New("prefix has characters that no header may have")
	case o.Secret != "" && !secretName.MatchString(o.Secret):
		return nil, fmt.Errorf("%q is no secret; it is like projects/P/secrets/S/versions/latest", o.Secret)
	}
	h := &Header{o: o}
	h.ledger.used = o.Used
	if o.Secret != "" {
		if o.Google == nil {
			return nil, errors.New("a value in Secret Manager is read with a Google credential; there is none")
		}
		h.secret = &cache{log: logOr(o.Log), fetch: h.fetch}
	}
	return h, nil
}

var errNotSendable = errors.New("the value is empty, or has characters that no header may have")

func sendable(value string) bool {
	return value != "" && !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f })
}

// Authorize implements [Source].
func (h *Header) Authorize(r *http.Request, s Session) error {
	t, err := h.token(r.Context())
	if err == nil && !sendable(t.value) {
		err = errNotSendable
	}
	if err != nil {
		return fmt.Errorf("header credential %s: %w", h.o.Name, err)
	}
	h.ledger.tell(s, t)
	r.Header.Set(h.o.Name, h.o.Prefix+t.value)
	return nil
}

func (h *Header) token(ctx context.Context) (token, error) {
	use := Use{Kind: "header"}
	switch {
	case h.secret != nil:
		return h.secret.get(ctx)
	case h.o.File != "":
		b, err := os.ReadFile(h.o.File)
		if err != nil {
			return token{}, err
		}
		return token{strings.TrimRight(string(b), "\r\n"), time.Time{}, use}, nil
	}
	return token{h.o.Value, time.Time{}, use}, nil
}

// secretLife is how long a value of Secret Manager is used without asking
// again; a version that is disabled is over then.
const secretLife = 5 * time.Minute

// fetch reads the secret by Secret Manager's REST interface: one request is no
// reason for its client library, which is gRPC.
func (h *Header) fetch(ctx context.Context) (token, error) {
	g := h.o.Google
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://secretmanager.googleapis.com/v1/"+h.o.Secret+":access", nil)
	if err != nil {
		return token{}, err
	}
	t, err := g.token(ctx, g.o.Account)
	if err != nil {
		return token{}, err
	}
	r.Header.Set("Authorization", "Bearer "+t.value)
	res, err := g.client.Do(r)
	if err != nil {
		return token{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 256<<10)) // a secret is at most 64 KiB
	if err != nil {
		return token{}, err
	}
	if res.StatusCode != http.StatusOK {
		return token{}, fmt.Errorf("%s: Secret Manager answers %s %s", h.o.Secret, res.Status, body)
	}
	var answer struct {
		Payload struct {
			Data string `json:"data"`
			Sum  string `json:"dataCrc32c"`
		} `json:"payload"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return token{}, fmt.Errorf("%s: Secret Manager's answer is not as expected", h.o.Secret)
	}
	data, err := base64.StdEncoding.DecodeString(answer.Payload.Data)
	if err != nil {
		return token{}, fmt.Errorf("%s: Secret Manager's answer is not as expected", h.o.Secret)
	}
	sum := strconv.FormatUint(uint64(crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))), 10)
	if answer.Payload.Sum != "" && answer.Payload.Sum != sum {
		return token{}, fmt.Errorf("%s: the value was damaged on the way: checksum mismatch", h.o.Secret)
	}
	return token{strings.TrimRight(string(data), "\r\n"), time.Now().Add(secretLife), Use{Kind: "header"}}, nil
}
