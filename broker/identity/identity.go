// Package identity tells who is at the other end of a connection: certificates
// in, an [Identity] out. It also holds the broker's own certificate authority
// and the tokens that agents join with.
//
//	ca, err := identity.OpenCA(dir)
//	v := identity.NewVerifier(append(ca.Certificates(), corporate...)...)
//	id, err := v.Verify(state.PeerCertificates, time.Now())
package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// An Identity is a subject, its groups, and how they were proven.
type Identity struct {
	Subject string
	Groups  []string
	Method  string // how it was proven: "certificate", "oidc", "saml" or "workload"
}

// Bounds of what a certificate may say, in bytes and names.
const (
	maxName   = 512
	maxGroups = 1000
)

// FromCertificate reads the identity that a certificate states: CN is the
// subject and each O a group; where there is a SPIFFE ID, it is the subject.
// That the certificate may be trusted is for a [Verifier] to say.
func FromCertificate(c *x509.Certificate) (Identity, error) {
	id := Identity{Subject: c.Subject.CommonName, Groups: c.Subject.Organization, Method: "certificate"}
	spiffe := 0
	for _, u := range c.URIs {
		if u.Scheme == "spiffe" {
			if strings.EqualFold(u.Host, agentDomain) { // or an agent could be a client
				return Identity{}, errors.New("client certificate is an agent's")
			}
			id.Subject = u.String()
			spiffe++
		}
	}
	if spiffe > 1 {
		return Identity{}, errors.New("client certificate has more than one SPIFFE ID")
	}
	if id.Subject == "" {
		return Identity{}, errors.New("client certificate names no subject")
	}
	if len(id.Groups) > maxGroups {
		return Identity{}, fmt.Errorf("client certificate has over %d groups", maxGroups)
	}
	for _, name := range append([]string{id.Subject}, id.Groups...) {
		if err := checkName(name); err != nil {
			return Identity{}, fmt.Errorf("client certificate: %w", err)
		}
	}
	return id, nil
}

// checkName refuses what could deceive in a log or a rule.
func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("a name is empty")
	case len(name) > maxName:
		return fmt.Errorf("a name is over %d bytes long", maxName)
	case !utf8.ValidString(name):
		return errors.New("a name is not UTF-8")
	case strings.ContainsFunc(name, func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }):
		return errors.New("a name has control characters")
	case strings.TrimSpace(name) != name:
		return errors.New("a name starts or ends with white space")
	}
	return nil
}

// A Verifier tells who a client certificate stands for.
//
// It remembers the chains that it has found good, and when they are: a client over HTTP
// shows its certificate with each request, and signatures are most of what that costs.
type Verifier struct {
	roots *x509.CertPool

	mu   sync.Mutex
	good map[[sha256.Size]byte]term // by chain
}

// A term is from when until when a chain is good.
type term struct{ from, until time.Time }

// goodChains is how many chains a Verifier remembers.
const goodChains = 4096

// ErrNotYetValid is wrapped by errors of certificates of a later time: that of this
// machine is wrong, or has been.
var ErrNotYetValid = errors.New("not valid before")

// NewVerifier returns a Verifier that trusts these authorities.
func NewVerifier(roots ...*x509.Certificate) *Verifier {
	v := &Verifier{roots: x509.NewCertPool(), good: map[[sha256.Size]byte]term{}}
	for _, c := range roots {
		v.roots.AddCert(c)
	}
	return v
}

// Verify checks a chain as the peer sent it, its leaf first, and returns the
// identity. The text of its errors is for the peer.
func (v *Verifier) Verify(chain []*x509.Certificate, now time.Time) (Identity, error) {
	if err := v.verify(chain, now); err != nil {
		return Identity{}, err
	}
	return FromCertificate(chain[0])
}

// VerifyAgent checks the chain of an agent and returns its name.
func (v *Verifier) VerifyAgent(chain []*x509.Certificate, now time.Time) (string, error) {
	if err := v.verify(chain, now); err != nil {
		return "", err
	}
	return AgentName(chain[0])
}

func (v *Verifier) verify(chain []*x509.Certificate, now time.Time) error {
	if len(chain) == 0 {
		return errors.New("no client certificate")
	}
	key := keyOf(chain)
	v.mu.Lock()
	known, ok := v.good[key]
	v.mu.Unlock()
	if ok && !now.Before(known.from) && !now.After(known.until) {
		return nil
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	paths, err := chain[0].Verify(x509.VerifyOptions{
		Roots: v.roots, Intermediates: between, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	var (
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
	)
	switch {
	case err == nil:
		v.remember(key, paths[0])
		return nil
	case errors.As(err, &unknown):
		return errors.New("client certificate was issued by an unknown authority")
	case !errors.As(err, &invalid):
		return errors.New("client certificate cannot be verified")
	case invalid.Reason == x509.Expired && now.Before(chain[0].NotBefore):
		return fmt.Errorf("client certificate is %w %s", ErrNotYetValid, chain[0].NotBefore.UTC().Format(time.RFC3339))
	case invalid.Reason == x509.Expired && now.After(chain[0].NotAfter):
		return fmt.Errorf("client certificate expired at %s", chain[0].NotAfter.UTC().Format(time.RFC3339))
	case invalid.Reason == x509.Expired:
		return errors.New("an authority of the client certificate has expired")
	case invalid.Reason == x509.IncompatibleUsage:
		return errors.New("certificate is not for clients")
	}
	return errors.New("client certificate is not valid")
}

// keyOf tells chains apart.
func keyOf(chain []*x509.Certificate) (key [sha256.Size]byte) {
	h := sha256.New()
	for _, c := range chain { // DER says how long it is
		h.Write(c.Raw)
	}
	h.Sum(key[:0])
	return key
}

// remember notes that a chain is good as long as all certificates of a path are.
func (v *Verifier) remember(key [sha256.Size]byte, path []*x509.Certificate) {
	t := term{path[0].NotBefore, path[0].NotAfter}
	for _, c := range path[1:] {
		if c.NotBefore.After(t.from) {
			t.from = c.NotBefore
		}
		if c.NotAfter.Before(t.until) {
			t.until = c.NotAfter
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.good) >= goodChains {
		clear(v.good)
	}
	v.good[key] = t
}

// The URI SAN that makes a certificate an agent's.
const (
	agentDomain = "broker"
	agentPrefix = "/agent/"
)

func agentURI(name string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: agentDomain, Path: agentPrefix + name}
}

// AgentName returns the name of the agent whose certificate c is.
func AgentName(c *x509.Certificate) (string, error) {
	if len(c.URIs) == 1 {
		name, ok := strings.CutPrefix(c.URIs[0].Path, agentPrefix)
		if ok && checkAgent(name) == nil && c.URIs[0].String() == agentURI(name).String() {
			return name, nil
		}
	}
	return "", errors.New("certificate is not an agent's")
}

func checkAgent(name string) error {
	if len(name) == 0 || len(name) > 63 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return fmt.Errorf("agent %q: a name is 1 to 63 lower-case letters, digits and dashes", name)
	}
	return nil
}
