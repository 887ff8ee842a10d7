package identity

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// A Sealer makes statements of the broker's that others carry and can neither
// read nor change: AES-256-GCM, with a key that lives in a file of its folder.
type Sealer struct {
	aead cipher.AEAD
}

const (
	sealFile = "seal-key"
	sealSize = 32
)

// ErrSeal is returned for what is no statement of ours, of that purpose, in force.
var ErrSeal = errors.New("the sealed statement is not valid, or has expired")

// OpenSealer loads the key in dir, or makes one (mode 0600).
func OpenSealer(dir string) (*Sealer, error) {
	path := filepath.Join(dir, sealFile)
	key, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key = make([]byte, sealSize)
		rand.Read(key)
		err = WritePrivate(path, key)
	}
	if err != nil {
		return nil, err
	}
	if len(key) != sealSize {
		return nil, fmt.Errorf("%s: is no key of %d bytes; remove it to make a new one", path, sealSize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return &Sealer{aead}, nil
}

type sealed struct {
	Until int64           `json:"until"` // s since 1970
	Value json.RawMessage `json:"value"`
}

// Seal makes a statement for one purpose, in letters that a URL or a cookie
// may hold. v is marshalled as JSON.
func (s *Sealer) Seal(purpose string, v any, until time.Time) (string, error) {
	value, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(sealed{until.Unix(), value})
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(s.aead.Seal(nil, nil, text, []byte(purpose))), nil
}

// Open reads a statement that was made for that purpose into v.
func (s *Sealer) Open(purpose, text string, v any) error {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return ErrSeal
	}
	plain, err := s.aead.Open(nil, nil, raw, []byte(purpose))
	if err != nil {
		return ErrSeal
	}
	var have sealed
	if json.Unmarshal(plain, &have) != nil || time.Now().Unix() >= have.Until || json.Unmarshal(have.Value, v) != nil {
		return ErrSeal
	}
	return nil
}
