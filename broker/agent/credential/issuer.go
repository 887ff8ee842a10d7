package credential

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
)

// issuerClient is for whoever issues credentials, by way of base; if that is
// nil, as Go's default transport does.
func issuerClient(base http.RoundTripper) *http.Client {
	if base == nil {
		base = http.DefaultTransport
	}
	return &http.Client{Transport: issuerTransport{base}, Timeout: fetchTime}
}

// An issuerTransport takes from an answer that is no success all but the
// reason. The libraries above it make errors of the whole body, which may
// repeat what was sent. Nor is there a Location left to follow: what is sent to
// an issuer is for nobody else.
type issuerTransport struct{ base http.RoundTripper }

// maxReason bounds what is read of such an answer, in bytes.
const maxReason = 64 << 10

func (t issuerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	secrets := secretsIn(r) // the request is no longer ours once it has been sent
	res, err := t.base.RoundTrip(r)
	if err != nil || res.StatusCode < 300 {
		return res, err
	}
	body, _ := io.ReadAll(io.LimitReader(res.Body, maxReason))
	res.Body.Close()
	body = reason(body, secrets)
	res.Body = io.NopCloser(strings.NewReader(string(body)))
	res.ContentLength = int64(len(body))
	res.Header = http.Header{"Content-Type": {"application/json"}}
	return res, nil
}

// secretsIn returns what of a request must be in no error.
func secretsIn(r *http.Request) (secrets []string) {
	if _, password, ok := r.BasicAuth(); ok {
		if plain, err := url.QueryUnescape(password); err == nil {
			secrets = append(secrets, plain)
		}
		secrets = append(secrets, password)
	}
	if _, value, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok {
		secrets = append(secrets, value)
	}
	if r.GetBody == nil {
		return secrets
	}
	body, err := r.GetBody()
	if err != nil {
		return secrets
	}
	defer body.Close()
	text, _ := io.ReadAll(io.LimitReader(body, maxReason))
	form, _ := url.ParseQuery(string(text))
	for _, name := range []string{"client_secret", "assertion", "subject_token", "refresh_token"} {
		secrets = append(secrets, form[name]...)
	}
	return secrets
}

// reason is what an answer says in the fields that OAuth (RFC 6749, 5.2) and
// Google's APIs have for it, in the same shape; of anything else, nothing.
func reason(body []byte, secrets []string) []byte {
	var answer struct {
		Error       json.RawMessage `json:"error"`
		Description string          `json:"error_description"`
	}
	if json.Unmarshal(body, &answer) != nil || answer.Error == nil {
		return nil
	}
	hide := func(text string) string {
		for _, s := range secrets {
			if s != "" {
				text = strings.ReplaceAll(text, s, "[redacted]")
			}
		}
		return redact(text)
	}
	out := map[string]any{}
	var google struct {
		Status  string `json:"status"`
		Message string `json:"message"`
	}
	var code string
	switch {
	case json.Unmarshal(answer.Error, &code) == nil:
		out["error"] = hide(code)
		if answer.Description != "" {
			out["error_description"] = hide(answer.Description)
		}
	case json.Unmarshal(answer.Error, &google) == nil:
		out["error"] = map[string]string{"status": hide(google.Status), "message": hide(google.Message)}
	default:
		return nil
	}
	body, _ = json.Marshal(out)
	return body
}

// What looks like a token: a JWT, one of Google's, and a long word of base64
// with digits in it. Names of accounts, permissions and resources have dots and
// slashes in shorter steps, or no digits.
var (
	tokenLike = regexp.MustCompile(`eyJ[\w-]+\.[\w.-]*|ya29\.[\w.-]+|[\w+=-]{32,}`)
	notWord   = regexp.MustCompile(`[.\d]`)
)

// redact takes out of a text what looks like a token.
func redact(text string) string {
	const most = 1000
	text = tokenLike.ReplaceAllStringFunc(text, func(word string) string {
		if notWord.MatchString(word) {
			return "[redacted]"
		}
		return word
	})
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + " …"
	}
	return text
}

// redacted is an error whose text has been redacted. Nothing can be unwrapped
// from it: what is inside has the whole text.
func redacted(err error) error {
	return errors.New(redact(strings.Join(strings.Fields(err.Error()), " "))) // some are of several lines
}
