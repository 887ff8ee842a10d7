package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"testing"
	"time"
)

// TestClockIsWrong checks that an agent whose clock is wrong waits until it is right, and
// that it gives up on a broker that is not the one that is pinned.
func TestClockIsWrong(t *testing.T) {
	for _, tt := range []struct {
		name      string
		begins    time.Duration // from now
		pinned    bool
		permanent bool
		ok        bool
	}{
		{"now", -time.Hour, true, false, true},
		{"not yet", time.Hour, true, false, false},
		{"over", -3 * time.Hour, true, false, false},
		{"another CA", -time.Hour, false, true, false},
	} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(tt.begins), NotAfter: time.Now().Add(tt.begins + 2*time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IsCA: true, BasicConstraintsValid: true,
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		l := &Link{Pin: "sha256:0"}
		if tt.pinned {
			l.Pin = pin(cert)
		}
		err = l.verifyBroker(tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}})
		if (err == nil) != tt.ok || permanent(err) != tt.permanent || errors.Is(err, errPin) != tt.permanent {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
