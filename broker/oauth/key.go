package oauth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/zitadel/oidc/v3/pkg/op"

	"example.com/broker/broker/identity"
)

const (
	keyFile   = "oauth-key.pem"
	algorithm = jose.ES256
)

// A signingKey signs access tokens. It implements op.SigningKey and op.Key.
type signingKey struct {
	key *ecdsa.PrivateKey
	id  string
}

// openKey loads the key in dir, or makes one (mode 0600).
func openKey(dir string) (*signingKey, error) {
	path := filepath.Join(dir, keyFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		var key *ecdsa.PrivateKey
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		text = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		if err := identity.WritePrivate(path, text); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s: holds no key in PEM; remove it to make a new one", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := parsed.(*ecdsa.PrivateKey)
	if err != nil || !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%s: is no P-256 key; remove it to make a new one", path)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return &signingKey{key, base64.RawURLEncoding.EncodeToString(sum[:12])}, nil
}

func (k *signingKey) SignatureAlgorithm() jose.SignatureAlgorithm { return algorithm }
func (k *signingKey) Key() any                                    { return k.key }
func (k *signingKey) ID() string                                  { return k.id }

// A publicKey is what others know of it.
type publicKey struct{ *signingKey }

func (k publicKey) Algorithm() jose.SignatureAlgorithm { return algorithm }
func (k publicKey) Use() string                        { return "sig" }
func (k publicKey) Key() any                           { return k.key.Public() }

var (
	_ op.SigningKey = (*signingKey)(nil)
	_ op.Key        = publicKey{}
)

// useAccess marks an access token: what else is signed with the key is none.
const useAccess = "access"

// accessClaims are those of an access token.
type accessClaims struct {
	jwt.Claims
	Use      string   `json:"use"`
	Groups   []string `json:"groups"`
	ClientID string   `json:"client_id"`
	Family   string   `json:"fam"`
}

func (c *accessClaims) expiry() time.Time {
	if c.Expiry == nil {
		return time.Time{}
	}
	return c.Expiry.Time()
}

// maxToken bounds a token, in bytes.
const maxToken = 64 << 10

// verify checks a token's signature and returns its claims.
func (k *signingKey) verify(token string) (*accessClaims, error) {
	if len(token) > maxToken {
		return nil, errors.New("too long")
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{algorithm})
	if err != nil {
		return nil, err
	}
	var claims accessClaims
	if err := parsed.Claims(k.key.Public(), &claims); err != nil {
		return nil, err
	}
	return &claims, nil
}
