package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// A CA is the broker's own certificate authority. It lives in its folder:
// ca-key.pem holds the key and the certificate (mode 0600).
//
// While it is rotated there are two: the new one issues to clients and agents,
// and hands out both certificates; the one before, in ca-old-key.pem, still
// counts, and still issues what the broker shows, because that is what everybody
// knows it by. When all have heard of the new one, the old one is retired.
type CA struct {
	dir string

	mu            sync.RWMutex
	current, past *authority // past is nil but while they overlap
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

const (
	caFile    = "ca-key.pem"
	caOldFile = "ca-old-key.pem"
	caLife    = 10 * 365 * 24 * time.Hour
	// skew is how far in the past a certificate starts: clocks differ.
	skew = 5 * time.Minute
)

// OpenCA loads the CA in dir, or makes one. Two processes that make one at a
// time end with the same.
func OpenCA(dir string) (*CA, error) {
	ca, err := LoadCA(dir)
	if !errors.Is(err, fs.ErrNotExist) {
		return ca, err
	}
	name, err := makeCA(dir)
	if err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	defer os.Remove(name)
	// A link, unlike a rename, does not replace what another process made meanwhile.
	if err := os.Link(name, filepath.Join(dir, caFile)); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	if err := syncFolder(dir); err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	return LoadCA(dir)
}

// makeCA makes an authority in a temporary file of dir.
func makeCA(dir string) (name string, err error) {
	key, err := NewKey()
	if err != nil {
		return "", err
	}
	der, err := selfSign(key)
	if err != nil {
		return "", err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return "", err
	}
	text, err := encodeKey(key)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(dir, ".ca-*") // mode 0600
	if err != nil {
		return "", err
	}
	_, err = f.Write(append(text, encodeCertificates(cert)...))
	return f.Name(), errors.Join(err, f.Sync(), f.Close())
}

// ErrRotating is returned by Rotate where a rotation has begun, and by Retire
// where none has.
var ErrRotating = errors.New("CA rotation")

// Rotate begins to rotate the CA in dir: it makes a new one beside the old.
func Rotate(dir string) error {
	ca, err := LoadCA(dir)
	if err != nil {
		return err
	}
	if ca.past != nil {
		return fmt.Errorf("%w: the last one has not been finished", ErrRotating)
	}
	name, err := makeCA(dir)
	if err != nil {
		return fmt.Errorf("make CA: %w", err)
	}
	defer os.Remove(name)
	current, old := filepath.Join(dir, caFile), filepath.Join(dir, caOldFile)
	if err := os.Link(current, old); err != nil && !errors.Is(err, fs.ErrExist) { // it may be there, the same: we were killed here
		return err
	}
	if err := os.Rename(name, current); err != nil {
		return err
	}
	return syncFolder(dir)
}

// Retire ends the rotation: the old CA no longer counts. Unless force is set,
// that is refused before overlap has passed since it began.
func Retire(dir string, overlap time.Duration, force bool) error {
	ca, err := LoadCA(dir)
	if err != nil {
		return err
	}
	if ca.past == nil {
		return fmt.Errorf("%w: none is under way", ErrRotating)
	}
	if since := ca.current.cert.NotBefore.Add(skew); !force && time.Since(since) < overlap {
		return fmt.Errorf("%w: it began at %s; agents that were away since then know the old CA only, until %s", ErrRotating, since.UTC().Format(time.RFC3339), since.Add(overlap).UTC().Format(time.RFC3339))
	}
	return os.Remove(filepath.Join(dir, caOldFile))
}

func selfSign(key *ecdsa.PrivateKey) ([]byte, error) {
	t, err := template(pkix.Name{CommonName: "MCP broker CA"}, caLife)
	if err != nil {
		return nil, err
	}
	t.IsCA, t.BasicConstraintsValid, t.MaxPathLenZero = true, true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	return x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
}

// LoadCA loads the CA in dir. The error of a folder without one wraps fs.ErrNotExist.
func LoadCA(dir string) (*CA, error) {
	ca := &CA{dir: dir}
	return ca, ca.Reload()
}

// Reload reads the CA's files again. If it fails, nothing has changed.
func (ca *CA) Reload() error {
	current, err := loadAuthority(filepath.Join(ca.dir, caFile))
	if err != nil {
		return err
	}
	past, err := loadAuthority(filepath.Join(ca.dir, caOldFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if past != nil && past.cert.Equal(current.cert) {
		past = nil
	}
	ca.mu.Lock()
	ca.current, ca.past = current, past
	ca.mu.Unlock()
	return nil
}

// Files are what Reload reads.
func (ca *CA) Files() []string {
	return []string{filepath.Join(ca.dir, caFile), filepath.Join(ca.dir, caOldFile)}
}

func loadAuthority(path string) (*authority, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: holds the CA's key and is open to other users (mode %04o): chmod 600 it", path, info.Mode().Perm())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(text, text) // checks that they belong together
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	switch {
	case !ok || !pair.Leaf.IsCA:
		return nil, fmt.Errorf("%s: is not the broker's CA", path)
	case time.Now().After(pair.Leaf.NotAfter):
		return nil, fmt.Errorf("%s: the CA expired at %s; move it away and start the broker to make a new one (agents and users join again)", path, pair.Leaf.NotAfter.Format(time.RFC3339))
	}
	return &authority{pair.Leaf, key}, nil
}

// Certificates returns the CA's own certificates, that of the issuer first: one,
// or two while it is rotated.
func (ca *CA) Certificates() []*x509.Certificate {
	ca.mu.RLock()
	defer ca.mu.RUnlock()
	if ca.past == nil {
		return []*x509.Certificate{ca.current.cert}
	}
	return []*x509.Certificate{ca.current.cert, ca.past.cert}
}

// Roots returns the same in PEM.
func (ca *CA) Roots() []byte { return encodeCertificates(ca.Certificates()...) }

// Rotating reports whether there are two.
func (ca *CA) Rotating() bool { return len(ca.Certificates()) > 1 }

// shows is the authority of what the broker shows.
func (ca *CA) shows() *authority {
	ca.mu.RLock()
	defer ca.mu.RUnlock()
	if ca.past != nil {
		return ca.past
	}
	return ca.current
}

func (ca *CA) issuer() *authority {
	ca.mu.RLock()
	defer ca.mu.RUnlock()
	return ca.current
}

// Pin returns what an agent knows the CA by: "sha256:" and the hash in hex of
// the certificate behind what the broker shows.
func (ca *CA) Pin() string {
	sum := sha256.Sum256(ca.shows().cert.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Pins returns the pins of all certificates.
func (ca *CA) Pins() (pins []string) {
	for _, c := range ca.Certificates() {
		sum := sha256.Sum256(c.Raw)
		pins = append(pins, "sha256:"+hex.EncodeToString(sum[:]))
	}
	return pins
}

// template is a certificate of that subject with a random serial, valid from now on.
func template(subject pkix.Name, life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), Subject: subject,
		NotBefore: now.Add(-skew), NotAfter: now.Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}, nil
}

func (a *authority) issue(t *x509.Certificate, pub crypto.PublicKey) ([]byte, error) {
	if t.NotAfter.After(a.cert.NotAfter) {
		t.NotAfter = a.cert.NotAfter
	}
	return x509.CreateCertificate(rand.Reader, t, a.cert, pub, a.key)
}

// IssueServer issues a certificate for these DNS names and addresses, with a
// key of its own. The CA's certificate is in its chain, so that a peer can
// compare it with a pin.
func (ca *CA) IssueServer(names []string, life time.Duration) (*tls.Certificate, error) {
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	t, err := template(pkix.Name{CommonName: "MCP broker"}, life)
	if err != nil {
		return nil, err
	}
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	shows := ca.shows()
	der, err := shows.issue(t, key.Public())
	if err != nil {
		return nil, fmt.Errorf("issue server certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("issue server certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, shows.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// IssueUser issues a client certificate, in DER. A subject that is a SPIFFE ID
// becomes a URI SAN.
func (ca *CA) IssueUser(id Identity, pub crypto.PublicKey, life time.Duration) ([]byte, error) {
	for _, name := range append([]string{id.Subject}, id.Groups...) {
		if err := checkName(name); err != nil {
			return nil, fmt.Errorf("issue client certificate: %w", err)
		}
	}
	subject := pkix.Name{Organization: id.Groups}
	var uris []*url.URL
	if strings.HasPrefix(id.Subject, "spiffe:") {
		u, err := url.Parse(id.Subject)
		if err != nil || u.Host == "" || u.String() != id.Subject {
			return nil, fmt.Errorf("issue client certificate: %q is no SPIFFE ID", id.Subject)
		}
		if strings.EqualFold(u.Host, agentDomain) {
			return nil, errors.New("issue client certificate: the trust domain broker is for agents")
		}
		uris = []*url.URL{u}
	} else {
		subject.CommonName = id.Subject
	}
	der, err := ca.issueClient(subject, uris, pub, life)
	if err != nil {
		return nil, fmt.Errorf("issue client certificate: %w", err)
	}
	return der, nil
}

// IssueAgent issues the certificate of an agent, in DER.
func (ca *CA) IssueAgent(name string, pub crypto.PublicKey, life time.Duration) ([]byte, error) {
	if err := checkAgent(name); err != nil {
		return nil, err
	}
	der, err := ca.issueClient(pkix.Name{CommonName: name}, []*url.URL{agentURI(name)}, pub, life)
	if err != nil {
		return nil, fmt.Errorf("issue agent certificate: %w", err)
	}
	return der, nil
}

func (ca *CA) issueClient(subject pkix.Name, uris []*url.URL, pub crypto.PublicKey, life time.Duration) ([]byte, error) {
	t, err := template(subject, life)
	if err != nil {
		return nil, err
	}
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	t.URIs = uris
	return ca.issuer().issue(t, pub)
}

// NewKey makes a key: ECDSA on P-256.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func encodeCertificates(certs ...*x509.Certificate) (text []byte) {
	for _, c := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}

// Bundle is an identity file in PEM: certificate, key, and the certificates that
// prove the broker (see [CA.Roots]).
func Bundle(key *ecdsa.PrivateKey, der, roots []byte) ([]byte, error) {
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	text, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return append(append(encodeCertificates(leaf), text...), roots...), nil
}

// ReadBundle reads an identity file. Self-signed certificates in it are
// authorities to trust; others beside the leaf belong to its chain.
func ReadBundle(text []byte) (cert tls.Certificate, roots []*x509.Certificate, err error) {
	var chain, keys []byte
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		switch {
		case block.Type == "CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return tls.Certificate{}, nil, err
			}
			if bytes.Equal(c.RawIssuer, c.RawSubject) && c.IsCA {
				roots = append(roots, c)
				continue
			}
			chain = append(chain, pem.EncodeToMemory(block)...)
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			keys = append(keys, pem.EncodeToMemory(block)...)
		}
	}
	switch {
	case chain == nil:
		return tls.Certificate{}, nil, errors.New("holds no certificate in PEM")
	case keys == nil:
		return tls.Certificate{}, nil, errors.New("holds no private key in PEM")
	}
	cert, err = tls.X509KeyPair(chain, keys)
	return cert, roots, err
}
