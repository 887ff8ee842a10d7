package recorder

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/auth/credentials"
	"cloud.google.com/go/auth/httptransport"
)

// A key of Google Cloud KMS wraps the log's key:
//
//	gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K[?endpoint=https://…]
//
// Two methods of its REST API are all that is needed, encrypt and decrypt, with
// application default credentials. Which version of the key has wrapped what, KMS
// knows by itself. An endpoint is for Private Service Connect; without TLS it is on
// this machine.

const kmsScheme = "gcpkms://"

// kmsTime bounds a call.
const kmsTime = 30 * time.Second

type kms struct {
	url    string // of the key
	client func() (*http.Client, error)
}

var kmsKey = regexp.MustCompile(`^projects/[^/?#]+/locations/[^/?#]+/keyRings/[^/?#]+/cryptoKeys/[^/?#]+$`)

func newKMS(by string) (*kms, error) {
	name, query, _ := strings.Cut(strings.TrimPrefix(by, kmsScheme), "?")
	if !kmsKey.MatchString(name) {
		return nil, fmt.Errorf("%s%s is no key of KMS: gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K", kmsScheme, name)
	}
	endpoint := "https://cloudkms.googleapis.com"
	if query != "" {
		values, err := url.ParseQuery(query)
		if err != nil || len(values) != 1 || len(values["endpoint"]) != 1 {
			return nil, errors.New("behind the name of a key of KMS there may be ?endpoint=https://… only")
		}
		u, err := url.Parse(values.Get("endpoint"))
		if err != nil || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" {
			return nil, errors.New("the endpoint of KMS must be like https://cloudkms.googleapis.com")
		}
		if ip, _ := netip.ParseAddr(u.Hostname()); u.Scheme != "https" && !(u.Scheme == "http" && ip.IsLoopback()) {
			return nil, errors.New("the endpoint of KMS must begin with https://")
		}
		endpoint = u.Scheme + "://" + u.Host
	}
	return &kms{endpoint + "/v1/" + name, kmsClient}, nil
}

// kmsClient presents this machine's credentials.
func kmsClient() (*http.Client, error) {
	c, err := credentials.DetectDefault(&credentials.DetectOptions{Scopes: []string{"https://www.googleapis.com/auth/cloudkms"}})
	if err != nil {
		return nil, fmt.Errorf("credentials of Google's: %w", err)
	}
	return httptransport.NewClient(&httptransport.Options{Credentials: c, DisableTelemetry: true})
}

// A checksum32 is a CRC-32C. Numbers of 64 bits are strings in the JSON of Google's
// APIs.
type checksum32 uint32

func (c checksum32) MarshalJSON() ([]byte, error) {
	return strconv.AppendQuote(nil, strconv.FormatUint(uint64(c), 10)), nil
}

func (c *checksum32) UnmarshalJSON(b []byte) error {
	n, err := strconv.ParseUint(strings.Trim(string(b), `"`), 10, 32)
	*c = checksum32(n)
	return err
}

func crcOf(b []byte) checksum32 { return checksum32(crc32.Checksum(b, castagnoli)) }

func (k *kms) wrap(key []byte) ([]byte, error) {
	var a struct {
		Ciphertext     []byte     `json:"ciphertext"`
		CiphertextCRC  checksum32 `json:"ciphertextCrc32c"`
		PlaintextGood  bool       `json:"verifiedPlaintextCrc32c"`
		AdditionalGood bool       `json:"verifiedAdditionalAuthenticatedDataCrc32c"`
	}
	err := k.call("encrypt", map[string]any{
		"plaintext": key, "plaintextCrc32c": crcOf(key),
		"additionalAuthenticatedData": []byte(wrapLabel), "additionalAuthenticatedDataCrc32c": crcOf([]byte(wrapLabel)),
	}, &a)
	if err == nil && (!a.PlaintextGood || !a.AdditionalGood || crcOf(a.Ciphertext) != a.CiphertextCRC) {
		err = errors.New("KMS: a checksum is wrong: the key or its wrapping was changed on the way")
	}
	return a.Ciphertext, err
}

func (k *kms) unwrap(wrapped []byte) ([]byte, error) {
	var a struct {
		Plaintext    []byte     `json:"plaintext"`
		PlaintextCRC checksum32 `json:"plaintextCrc32c"`
	}
	err := k.call("decrypt", map[string]any{
		"ciphertext": wrapped, "ciphertextCrc32c": crcOf(wrapped),
		"additionalAuthenticatedData": []byte(wrapLabel), "additionalAuthenticatedDataCrc32c": crcOf([]byte(wrapLabel)),
	}, &a)
	if err == nil && crcOf(a.Plaintext) != a.PlaintextCRC {
		err = errors.New("KMS: a checksum is wrong: the key was changed on the way")
	}
	return a.Plaintext, err
}

func (k *kms) call(method string, body, answer any) error {
	client, err := k.client()
	if err != nil {
		return err
	}
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	// Whoever opens a log waits for it, and has no ctx.
	ctx, cancel := context.WithTimeout(context.Background(), kmsTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, k.url+":"+method, bytes.NewReader(b))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(r)
	if err != nil {
		return fmt.Errorf("KMS: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("KMS: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var failure struct {
			Error struct{ Status, Message string }
		}
		json.Unmarshal(text, &failure)
		return fmt.Errorf("KMS answers %d %s: %.300q", resp.StatusCode, failure.Error.Status, failure.Error.Message)
	}
	if json.Unmarshal(text, answer) != nil {
		return errors.New("KMS answers what is not expected")
	}
	return nil
}
