package signin

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
)

// A pass is what a one-time code stands for.
type pass struct {
	identity  identity.Identity
	challenge string // of the verifier, PKCE's S256
}

// Trade is the body of a request for a certificate: a code and its verifier, or
// a workload's token; and a CSR, of which the public key is what counts.
type Trade struct {
	Code     string `json:"code,omitempty"`
	Verifier string `json:"verifier,omitempty"`
	Token    string `json:"token,omitempty"`
	CSR      string `json:"csr"` // PEM
}

// Traded is a client certificate, and what proves the broker.
type Traded struct {
	Certificate string    `json:"certificate"` // PEM
	CA          string    `json:"ca"`          // PEM, one or several
	Subject     string    `json:"subject"`
	Groups      []string  `json:"groups"`
	Until       time.Time `json:"until"`
}

// Device is the answer to a sign-in on a device without a browser, as in RFC 8628.
type Device struct {
	DeviceCode      string `json:"device_code"`
	UserCode        string `json:"user_code"`
	VerificationURI string `json:"verification_uri"`
	Complete        string `json:"verification_uri_complete"`
	ExpiresIn       int    `json:"expires_in"` // s
	Interval        int    `json:"interval"`   // s
}

// DeviceTrade is the body of a device's request for its certificate.
type DeviceTrade struct {
	DeviceCode string `json:"device_code"`
	CSR        string `json:"csr"`
}

// Failure is the body of an answer that is an error; Code is one of RFC 8628's
// where a device asks.
type Failure struct {
	Error string `json:"error"`
	Code  string `json:"code,omitempty"`
}

// Codes of RFC 8628, section 3.5.
const (
	Waiting  = "authorization_pending"
	SlowDown = "slow_down"
	Expired  = "expired_token"
	Denied   = "access_denied"
)

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

func decode(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if d.Decode(v) != nil {
		return errors.New("the body is not the JSON that is expected")
	}
	return nil
}

// trade gives a certificate for a code or a token.
func (s *Service) trade(w http.ResponseWriter, r *http.Request) {
	var t Trade
	if err := decode(r, &t); err != nil {
		answer(w, http.StatusBadRequest, Failure{Error: err.Error()})
		return
	}
	if t.Token != "" && t.Code == "" {
		s.tradeToken(w, r, t)
		return
	}
	// Whoever has a code without its verifier has stolen it: it is used up all the same.
	p, ok := s.passes.Take(t.Code)
	sum := sha256.Sum256([]byte(t.Verifier))
	if !ok || subtle.ConstantTimeCompare([]byte(base64.RawURLEncoding.EncodeToString(sum[:])), []byte(p.challenge)) != 1 {
		s.o.Log.Warn("sign-in refused: the code is not valid", "client", r.RemoteAddr)
		answer(w, http.StatusForbidden, Failure{Error: "the code is not valid: it may be used, or too old; sign in again"})
		return
	}
	s.certify(w, r, p.identity, t.CSR, time.Now().Add(s.o.Lifetime(p.identity)))
}

func (s *Service) tradeToken(w http.ResponseWriter, r *http.Request, t Trade) {
	if s.o.Workloads == nil {
		answer(w, http.StatusForbidden, Failure{Error: "the broker takes no workloads' tokens: none are configured under identity.workloads"})
		return
	}
	id, _, err := s.o.Workloads.Verify(r.Context(), t.Token)
	if err == nil {
		err = s.signedIn(r, id, "token")
	}
	if err != nil {
		s.refuse(r, id.Subject, "token", err)
		answer(w, http.StatusForbidden, Failure{Error: sentence(err)})
		return
	}
	s.certify(w, r, id, t.CSR, time.Now().Add(min(s.o.Lifetime(id), workloadLife)))
}

// workloadLife bounds a program's certificate: it gets another one by itself.
const workloadLife = time.Hour

// certify answers with a certificate, which is on record before.
func (s *Service) certify(w http.ResponseWriter, r *http.Request, id identity.Identity, csr string, until time.Time) {
	pub, err := publicKey(id, csr)
	if err != nil {
		s.refuse(r, id.Subject, "csr", &identity.SignInError{Reason: err.Error()})
		answer(w, http.StatusBadRequest, Failure{Error: err.Error()})
		return
	}
	if s.o.Desk.IsDisabled(id.Subject, "") { // meanwhile
		answer(w, http.StatusForbidden, Failure{Error: "this identity has been disabled"})
		return
	}
	der, err := s.o.CA.IssueUser(id, pub, time.Until(until))
	var leaf *x509.Certificate
	if err == nil {
		leaf, err = x509.ParseCertificate(der)
	}
	if err == nil {
		err = s.o.Desk.Record(r.Context(), grant.IssuedEvent(id, leaf, source(r)))
	}
	if err != nil {
		s.o.Log.Error("a certificate cannot be issued", "subject", id.Subject, "error", err)
		answer(w, http.StatusServiceUnavailable, Failure{Error: "the certificate cannot be issued now; try again later"})
		return
	}
	answer(w, http.StatusOK, Traded{
		Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), CA: string(s.o.CA.Roots()),
		Subject: id.Subject, Groups: id.Groups, Until: leaf.NotAfter.UTC(),
	})
}

// publicKey reads a CSR. It may ask for what its identity is, and for no more.
func publicKey(id identity.Identity, text string) (crypto.PublicKey, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("the CSR is not PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		return nil, errors.New("the CSR is not valid")
	}
	if cn := csr.Subject.CommonName; cn != "" && cn != id.Subject {
		return nil, errors.New("the CSR asks for another subject")
	}
	for _, g := range csr.Subject.Organization {
		if !slices.Contains(id.Groups, g) {
			return nil, errors.New("the CSR asks for a group that you are not in")
		}
	}
	if len(csr.Extensions) > 0 {
		return nil, errors.New("the CSR asks for extensions")
	}
	switch k := csr.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if k.Curve.Params().BitSize >= 256 {
			return k, nil
		}
	case ed25519.PublicKey:
		return k, nil
	case *rsa.PublicKey:
		if k.N.BitLen() >= 2048 {
			return k, nil
		}
	}
	return nil, errors.New("the CSR's key is too weak, or of a kind that is not used")
}

// A device waits until somebody confirms its code.
type device struct {
	user      string
	source    string
	polled    time.Time
	confirmed *identity.Identity
	until     time.Time // of the visit that confirmed it
	denied    bool
}

const pollInterval = 2 * time.Second

// letters of user codes: none that looks like another, and no vowels, so no words.
const letters = "BCDFGHJKLMNPQRSTVWXZ"

// newUserCode returns a code like BCDF-GHJK: 34 bits.
func newUserCode() string {
	var b strings.Builder
	for i := range 8 {
		if i == 4 {
			b.WriteByte('-')
		}
		n, _ := rand.Int(rand.Reader, big.NewInt(int64(len(letters)))) // never fails
		b.WriteByte(letters[n.Int64()])
	}
	return b.String()
}

func (s *Service) startDevice(w http.ResponseWriter, r *http.Request) {
	if len(s.o.Providers) == 0 {
		answer(w, http.StatusNotFound, Failure{Error: "no identity provider is configured"})
		return
	}
	if !s.starts.Allow() {
		answer(w, http.StatusTooManyRequests, Failure{Error: "too many sign-ins at a time; try again in a moment"})
		return
	}
	code, user, until := rand.Text(), newUserCode(), time.Now().Add(deviceLife)
	s.devices.Put(code, device{user: user, source: source(r)}, until)
	s.users.Put(user, code, until)
	answer(w, http.StatusOK, Device{
		DeviceCode: code, UserCode: user, VerificationURI: s.o.URL + "/device",
		Complete:  s.o.URL + "/device?" + url.Values{"user_code": {user}}.Encode(),
		ExpiresIn: int(deviceLife.Seconds()), Interval: int(pollInterval.Seconds()),
	})
}

func (s *Service) tradeDevice(w http.ResponseWriter, r *http.Request) {
	var t DeviceTrade
	if err := decode(r, &t); err != nil {
		answer(w, http.StatusBadRequest, Failure{Error: err.Error()})
		return
	}
	var d device
	fast := false
	ok := s.devices.Change(t.DeviceCode, func(e *device) {
		fast = time.Since(e.polled) < pollInterval/2
		e.polled = time.Now()
		d = *e
	})
	switch {
	case !ok:
		answer(w, http.StatusBadRequest, Failure{"the sign-in was not confirmed in time", Expired})
	case d.denied:
		answer(w, http.StatusBadRequest, Failure{"the sign-in was denied", Denied})
	case d.confirmed == nil && fast:
		answer(w, http.StatusBadRequest, Failure{"asked too often", SlowDown})
	case d.confirmed == nil:
		answer(w, http.StatusBadRequest, Failure{"nobody has confirmed the code yet", Waiting})
	default:
		if _, ok := s.devices.Take(t.DeviceCode); !ok { // somebody else was faster
			answer(w, http.StatusBadRequest, Failure{"the sign-in was used", Expired})
			return
		}
		// Not beyond the visit that confirmed it.
		until := time.Now().Add(s.o.Lifetime(*d.confirmed))
		if d.until.Before(until) {
			until = d.until
		}
		s.certify(w, r, *d.confirmed, t.CSR, until)
	}
}

// devicePage asks for a code, or whether the one in the address is one's own.
func (s *Service) devicePage(w http.ResponseWriter, r *http.Request) {
	if _, err := s.visit(r); err != nil {
		http.Redirect(w, r, "/login?"+url.Values{"next": {r.URL.RequestURI()}}.Encode(), http.StatusSeeOther)
		return
	}
	code := tidy(r.FormValue("user_code"))
	if code == "" {
		s.page(w, http.StatusOK, "device.html", deviceView{})
		return
	}
	s.showDevice(w, r, code)
}

type deviceView struct{ Code, Subject, Source, Failure string }

// maxGuesses is how many wrong codes a visit may show.
const maxGuesses = 10

func (s *Service) showDevice(w http.ResponseWriter, r *http.Request, code string) {
	v, _ := s.visit(r)
	_, d, err := s.deviceOf(r, code)
	if err != nil {
		s.page(w, http.StatusBadRequest, "device.html", deviceView{Failure: err.Error()})
		return
	}
	s.page(w, http.StatusOK, "device.html", deviceView{Code: code, Subject: v.identity.Subject, Source: d.source})
}

// deviceOf finds a device by its user code. Guessing gets nowhere.
func (s *Service) deviceOf(r *http.Request, code string) (key string, d device, err error) {
	c, err := r.Cookie(visitCookie)
	if err != nil {
		return "", device{}, ErrSignIn
	}
	if guesses, ok := s.guesses.Get(c.Value); ok && guesses >= maxGuesses {
		return "", device{}, errors.New("too many wrong codes; sign out and in again")
	}
	key, ok := s.users.Get(code)
	if ok {
		d, ok = s.devices.Get(key)
	}
	if !ok || d.confirmed != nil || d.denied {
		n, _ := s.guesses.Get(c.Value)
		s.guesses.Put(c.Value, n+1, time.Now().Add(deviceLife))
		return "", device{}, fmt.Errorf("%s is no code that waits; it may be too old, or used", code)
	}
	return key, d, nil
}

// tidy reads a code as people type it.
func tidy(code string) string {
	code = strings.Map(func(r rune) rune {
		if strings.ContainsRune(letters, r) {
			return r
		}
		return -1
	}, strings.ToUpper(code))
	if len(code) != 8 {
		return ""
	}
	return code[:4] + "-" + code[4:]
}

func (s *Service) deviceForm(w http.ResponseWriter, r *http.Request) {
	v, err := s.visit(r)
	if err != nil {
		s.fail(w, http.StatusUnauthorized, "You are not signed in.")
		return
	}
	code := tidy(r.PostFormValue("user_code"))
	key, _, err := s.deviceOf(r, code)
	if err != nil {
		s.page(w, http.StatusBadRequest, "device.html", deviceView{Failure: err.Error()})
		return
	}
	switch r.PostFormValue("decision") {
	case "":
		s.showDevice(w, r, code)
		return
	case "confirm":
		if err := s.signedIn(r, v.identity, "device"); err != nil {
			s.refuse(r, v.identity.Subject, "device", err)
			s.fail(w, http.StatusForbidden, sentence(err))
			return
		}
		s.devices.Change(key, func(d *device) { d.confirmed, d.until = &v.identity, v.until })
	default:
		s.devices.Change(key, func(d *device) { d.denied = true })
		s.users.Take(code)
		s.page(w, http.StatusOK, "said.html", "The sign-in was refused.")
		return
	}
	s.users.Take(code)
	s.page(w, http.StatusOK, "said.html", "Done. The other machine is signed in as "+v.identity.Subject+"; you can close this page.")
}
