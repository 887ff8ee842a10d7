package broker

import (
	"crypto/tls"
	"slices"
	"sync"
	"time"

	"example.com/broker/broker/identity"
	"example.com/broker/stream"
)

// serverCertificate is the life of a certificate that the broker issues to
// itself. It lives in memory and is renewed when a third is over.
const serverCertificate = 30 * 24 * time.Hour

// A Keyring holds the certificates that the broker shows: to agents, which pin
// its CA, one of its own; to everybody else the one that was set, if one was.
type Keyring struct {
	CA    *identity.CA
	Names []string // DNS names and addresses in the broker's own certificate

	mu  sync.Mutex
	own *tls.Certificate
	set *tls.Certificate
}

// Set makes c the certificate for clients; nil means the broker's own.
func (k *Keyring) Set(c *tls.Certificate) {
	k.mu.Lock()
	k.set = c
	k.mu.Unlock()
}

// Config returns the TLS configuration of a listener.
func (k *Keyring) Config() *tls.Config {
	return &tls.Config{GetCertificate: k.certificate}
}

func (k *Keyring) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.set != nil && !slices.Contains(hello.SupportedProtos, stream.ALPNAgent) {
		return k.set, nil
	}
	if k.own == nil || time.Until(k.own.Leaf.NotAfter) < serverCertificate*2/3 {
		c, err := k.CA.IssueServer(k.Names, serverCertificate)
		if err != nil {
			return nil, err
		}
		k.own = c
	}
	return k.own, nil
}
