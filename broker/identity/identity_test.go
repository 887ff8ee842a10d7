package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func openCA(t *testing.T) *CA {
	t.Helper()
	ca, err := OpenCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// issue returns the chain of a user's certificate.
func issue(t *testing.T, ca *CA, id Identity, life time.Duration) []*x509.Certificate {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.IssueUser(id, key.Public(), life)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, der)
}

func parse(t *testing.T, der []byte) []*x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return []*x509.Certificate{c}
}

func TestVerify(t *testing.T) {
	ca, other := openCA(t), openCA(t)
	ada := Identity{Subject: "ada", Groups: []string{"admins", "analysts"}}
	server, err := ca.IssueServer([]string{"localhost", "127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	key, _ := NewKey()
	agentDER, err := ca.IssueAgent("gke-prod", key.Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	v := NewVerifier(ca.Certificates()...)
	tests := []struct {
		name    string
		chain   []*x509.Certificate
		now     time.Time
		subject string
		err     string
	}{
		{name: "good", chain: issue(t, ca, ada, time.Hour), now: now, subject: "ada"},
		{name: "SPIFFE", chain: issue(t, ca, Identity{Subject: "spiffe://example.org/ns/ci"}, time.Hour), now: now, subject: "spiffe://example.org/ns/ci"},
		{name: "none", now: now, err: "no client certificate"},
		{name: "expired", chain: issue(t, ca, ada, time.Hour), now: now.Add(2 * time.Hour), err: "expired at"},
		{name: "not yet", chain: issue(t, ca, ada, time.Hour), now: now.Add(-time.Hour), err: "not valid before"},
		{name: "another CA", chain: issue(t, other, ada, time.Hour), now: now, err: "unknown authority"},
		{name: "a server's", chain: []*x509.Certificate{server.Leaf}, now: now, err: "not for clients"},
		{name: "an agent's", chain: parse(t, agentDER), now: now, err: "is an agent's"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id, err := v.Verify(tt.chain, tt.now)
			if id.Subject != tt.subject || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got %q, %v; want %q, %q", id.Subject, err, tt.subject, tt.err)
			}
			if tt.name == "good" && !slices.Equal(id.Groups, ada.Groups) {
				t.Errorf("groups %q, want %q", id.Groups, ada.Groups)
			}
		})
	}

	if name, err := v.VerifyAgent(parse(t, agentDER), now); name != "gke-prod" || err != nil {
		t.Errorf("agent %q, %v", name, err)
	}
	if name, err := v.VerifyAgent(issue(t, ca, Identity{Subject: "gke-prod"}, time.Hour), now); err == nil {
		t.Errorf("a user's certificate makes agent %q", name)
	}
}

// TestVerifyAgain checks that a chain that was good counts no longer than its certificates,
// and for no other chain.
func TestVerifyAgain(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	make := func(name string, parent *x509.Certificate, signer *ecdsa.PrivateKey, until time.Duration, ca bool) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := NewKey()
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{
			SerialNumber: big.NewInt(int64(until)), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(until),
			IsCA: ca, BasicConstraintsValid: true, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		if parent == nil {
			parent, signer = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		return parse(t, der)[0], key
	}
	root, rootKey := make("root", nil, nil, 10*time.Hour, true)
	between, betweenKey := make("between", root, rootKey, 2*time.Hour, true)
	leaf, _ := make("ada", between, betweenKey, 3*time.Hour, false)
	forged := *leaf
	forged.Raw = bytes.Clone(leaf.Raw)
	forged.Raw[len(forged.Raw)-1] ^= 1
	forged.Signature = bytes.Clone(leaf.Signature)
	forged.Signature[len(forged.Signature)-1] ^= 1

	v := NewVerifier(root)
	chain := []*x509.Certificate{leaf, between}
	for _, tt := range []struct {
		name  string
		chain []*x509.Certificate
		at    time.Duration
		err   string
	}{
		{"first", chain, 0, ""},
		{"again", chain, 0, ""},
		{"later", chain, 2 * time.Hour, ""},
		{"an authority has expired", chain, 2*time.Hour + time.Second, "authority of the client certificate has expired"},
		{"expired", chain, 4 * time.Hour, "expired at"},
		{"not yet", chain, -2 * time.Hour, "not valid before"},
		{"good again", chain, 0, ""},
		{"without what is between", chain[:1], 0, "unknown authority"},
		{"forged", []*x509.Certificate{&forged, between}, 0, "client certificate"},
	} {
		if err := v.verify(tt.chain, now.Add(tt.at)); (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
		}
	}
	if len(v.good) != 1 {
		t.Errorf("%d chains are remembered, want 1", len(v.good))
	}
	for i := range goodChains {
		v.remember([32]byte{byte(i), byte(i >> 8), 1}, chain)
	}
	if len(v.good) > goodChains {
		t.Errorf("%d chains are remembered, want at most %d", len(v.good), goodChains)
	}
}

func TestIssueRefuses(t *testing.T) {
	ca := openCA(t)
	key, _ := NewKey()
	for _, id := range []Identity{
		{}, {Subject: "a\nb"}, {Subject: " a"}, {Subject: "a", Groups: []string{""}}, {Subject: "a\u202eb"},
		{Subject: "spiffe://broker/agent/x"}, {Subject: "spiffe:x"}, {Subject: strings.Repeat("a", maxName+1)},
	} {
		if _, err := ca.IssueUser(id, key.Public(), time.Hour); err == nil {
			t.Errorf("a certificate for %q is issued", id)
		}
	}
	for _, name := range []string{"", "A", "a/b", "a.b", strings.Repeat("a", 64)} {
		if _, err := ca.IssueAgent(name, key.Public(), time.Hour); err == nil {
			t.Errorf("a certificate for agent %q is issued", name)
		}
	}
}

func TestCAFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadCA(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("LoadCA of an empty folder: %v", err)
	}
	var wg sync.WaitGroup
	pins := make([]string, 8)
	for i := range pins {
		wg.Go(func() {
			ca, err := OpenCA(dir)
			if err != nil {
				t.Error(err)
				return
			}
			pins[i] = ca.Pin()
		})
	}
	wg.Wait()
	if len(slices.Compact(pins)) != 1 {
		t.Errorf("several processes make several CAs: %q", pins)
	}
	path := filepath.Join(dir, caFile)
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCA(dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others may read: %v", err)
	}
	os.Chmod(path, 0o600)
	other := t.TempDir()
	OpenCA(other)
	mine, _ := os.ReadFile(path)
	theirs, _ := os.ReadFile(filepath.Join(other, caFile))
	i := strings.Index(string(mine), "-----BEGIN CERTIFICATE")
	j := strings.Index(string(theirs), "-----BEGIN CERTIFICATE")
	os.WriteFile(path, append(mine[:i:i], theirs[j:]...), 0o600)
	if _, err := OpenCA(dir); err == nil {
		t.Error("a key and another's certificate make a CA")
	}
}

func TestBundle(t *testing.T) {
	ca := openCA(t)
	key, _ := NewKey()
	der, _ := ca.IssueUser(Identity{Subject: "ada"}, key.Public(), time.Hour)
	text, err := Bundle(key, der, ca.Roots())
	if err != nil {
		t.Fatal(err)
	}
	cert, roots, err := ReadBundle(text)
	if err != nil || cert.Leaf.Subject.CommonName != "ada" || len(cert.Certificate) != 1 || len(roots) != 1 || !roots[0].Equal(ca.Certificates()[0]) {
		t.Errorf("%v, %d roots, %v", cert.Leaf, len(roots), err)
	}
	for _, bad := range []string{"", "x", string(ca.Roots())} {
		if _, _, err := ReadBundle([]byte(bad)); err == nil {
			t.Errorf("%.20q is a bundle", bad)
		}
	}
}

func TestTokens(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tokens")
	tokens := OpenTokens(dir)
	token, err := tokens.Create("gke-prod", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := tokens.Redeem(token, "other"); !errors.Is(err, ErrToken) {
		t.Errorf("another agent: %v", err)
	}
	if err := tokens.Redeem(token+"x", "gke-prod"); !errors.Is(err, ErrToken) {
		t.Errorf("another token: %v", err)
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if b, _ := os.ReadFile(filepath.Join(dir, e.Name())); strings.Contains(e.Name()+string(b), token) {
			t.Error("the token itself is kept")
		}
	}
	var wg sync.WaitGroup
	won := make(chan bool, 32)
	for range 32 {
		wg.Go(func() { won <- tokens.Redeem(token, "gke-prod") == nil })
	}
	wg.Wait()
	close(won)
	wins := 0
	for w := range won {
		if w {
			wins++
		}
	}
	if wins != 1 {
		t.Errorf("a token is good %d times", wins)
	}
	late, _ := tokens.Create("gke-prod", -time.Second)
	if err := tokens.Redeem(late, "gke-prod"); !errors.Is(err, ErrToken) {
		t.Errorf("an expired token: %v", err)
	}
	tokens.Create("gke-prod", time.Hour) // sweeps
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("%d files are left, want 1", len(entries))
	}
}
