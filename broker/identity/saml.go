package identity

import (
	"bytes"
	"context"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	saml2 "github.com/russellhaering/gosaml2"
	"github.com/russellhaering/gosaml2/types"
	dsig "github.com/russellhaering/goxmldsig"
)

// SAMLOptions is a SAML 2.0 identity provider, and the broker as it knows it.
type SAMLOptions struct {
	Metadata string // of the provider: an https URL, or a file
	EntityID string // of the broker; if empty, the address of its metadata
	Mapping  *Mapping
	Client   *http.Client // for metadata; if nil, one with a time limit
}

// NameID is the claim that a SAML subject's NameID becomes. An attribute becomes
// two claims, by its Name and by its FriendlyName.
const NameID = "name_id"

// A SAML signs people in at a SAML 2.0 identity provider. What is believed is
// what a valid signature of the provider covers, once, in answer to a request
// of ours that the same browser began.
type SAML struct {
	o      SAMLOptions
	client *http.Client

	mu    sync.Mutex
	idp   *samlProvider
	until time.Time // idp is fresh
	used  map[string]time.Time
}

// A samlProvider is what its metadata says.
type samlProvider struct {
	issuer, sso string
	keys        dsig.MemoryX509CertificateStore
}

// service is the broker as a service provider whose assertion consumer service
// is callback.
func (s *SAML) service(idp *samlProvider, callback string) *saml2.SAMLServiceProvider {
	entity := s.o.EntityID
	if entity == "" {
		entity = strings.TrimSuffix(callback, "/callback") + "/metadata"
	}
	return &saml2.SAMLServiceProvider{
		IdentityProviderSSOURL: idp.sso, IdentityProviderSSOBinding: saml2.BindingHttpRedirect, IdentityProviderIssuer: idp.issuer,
		ServiceProviderIssuer: entity, AssertionConsumerServiceURL: callback, AudienceURI: entity,
		IDPCertificateStore: &idp.keys, MaximumDecompressedBodySize: maxDocument,
	}
}

const (
	metadataLife = time.Hour
	// transient is a NameID that is another one each time: it names nobody.
	transient = "urn:oasis:names:tc:SAML:2.0:nameid-format:transient"
)

// NewSAML returns the provider.
func NewSAML(o SAMLOptions) *SAML {
	s := &SAML{o: o, client: o.Client, used: map[string]time.Time{}}
	if s.client == nil {
		s.client = &http.Client{Timeout: discoveryTime}
	}
	return s
}

// ServiceMetadata is what the broker tells a provider of itself, in XML.
func (s *SAML) ServiceMetadata(callback string) ([]byte, error) {
	sp := s.service(&samlProvider{}, callback)
	return xml.MarshalIndent(types.EntityDescriptor{ // gosaml2's own wants a key for encryption
		EntityID: sp.ServiceProviderIssuer, ValidUntil: time.Now().UTC().AddDate(1, 0, 0).Truncate(time.Second),
		SPSSODescriptor: &types.SPSSODescriptor{
			WantAssertionsSigned: true, ProtocolSupportEnumeration: saml2.SAMLProtocolNamespace,
			AssertionConsumerServices: []types.IndexedEndpoint{{Binding: saml2.BindingHttpPost, Location: callback, Index: 1}},
		},
	}, "", "  ")
}

// Begin implements [Provider].
func (s *SAML) Begin(ctx context.Context, f Flow) (string, error) {
	idp, err := s.provider(ctx)
	if err != nil {
		return "", err
	}
	sp := s.service(idp, f.Callback)
	doc, err := sp.BuildAuthRequestDocumentNoSig()
	if err != nil {
		return "", err
	}
	doc.Root().CreateAttr("ID", requestID(f))
	return sp.BuildAuthURLRedirect(f.State, doc)
}

// requestID is that of the request which begins f. An XML id starts with no digit.
func requestID(f Flow) string { return "_" + f.Nonce }

// Complete implements [Provider].
func (s *SAML) Complete(ctx context.Context, f Flow, r *http.Request) (Identity, error) {
	idp, err := s.provider(ctx)
	if err != nil {
		return Identity{}, err
	}
	claims, err := s.verify(s.service(idp, f.Callback), f, r.PostFormValue("SAMLResponse"), time.Now())
	if err != nil {
		return Identity{}, &SignInError{"the identity provider's answer is not valid; sign in again", err}
	}
	return readIdentity(ctx, "saml", claims, s.o.Mapping, nil)
}

// verify checks a response. gosaml2 checks signatures, the issuer, the recipient
// and that there are times; the rest is here.
func (s *SAML) verify(sp *saml2.SAMLServiceProvider, f Flow, encoded string, now time.Time) (map[string]any, error) {
	if err := strong(encoded); err != nil {
		return nil, err
	}
	response, err := sp.ValidateEncodedResponse(encoded)
	if err != nil {
		return nil, err
	}
	if len(response.Assertions) != 1 {
		return nil, fmt.Errorf("%d assertions, want one", len(response.Assertions))
	}
	a := &response.Assertions[0]
	if !response.SignatureValidated && !a.SignatureValidated {
		return nil, errors.New("nothing is signed")
	}
	confirmed := a.Subject.SubjectConfirmation.SubjectConfirmationData
	if subtle.ConstantTimeCompare([]byte(confirmed.InResponseTo), []byte(requestID(f))) != 1 {
		return nil, errors.New("the assertion answers another request")
	}
	warning, err := sp.VerifyAssertionConditions(a)
	if err != nil {
		return nil, err
	}
	if warning.NotInAudience || len(a.Conditions.AudienceRestrictions) == 0 {
		return nil, errors.New("the assertion is for another audience")
	}
	from, err1 := time.Parse(time.RFC3339, a.Conditions.NotBefore)
	until, err2 := time.Parse(time.RFC3339, a.Conditions.NotOnOrAfter)
	bearer, err3 := time.Parse(time.RFC3339, confirmed.NotOnOrAfter)
	switch {
	case errors.Join(err1, err2, err3) != nil:
		return nil, errors.New("a time cannot be read")
	case now.Add(clockSkew).Before(from):
		return nil, errors.New("the assertion is not valid yet")
	case !now.Add(-clockSkew).Before(until), !now.Add(-clockSkew).Before(bearer):
		return nil, errors.New("the assertion has expired")
	case a.Subject.NameID == nil || a.Subject.NameID.Value == "":
		return nil, errors.New("the assertion names nobody")
	}
	if !s.once(a.ID, until, now) {
		return nil, errors.New("the assertion was used before")
	}
	return attributes(a), nil
}

// strong refuses signatures by SHA-1, for which collisions can be bought, and
// which gosaml2 takes.
func strong(encoded string) error {
	text, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return errors.New("the response is not in base64")
	}
	d := xml.NewDecoder(bytes.NewReader(text))
	for {
		token, err := d.Token()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return errors.New("the response is not XML")
		}
		e, ok := token.(xml.StartElement)
		if !ok || e.Name.Local != "SignatureMethod" && e.Name.Local != "DigestMethod" {
			continue
		}
		for _, a := range e.Attr {
			if strings.HasSuffix(a.Value, "sha1") {
				return errors.New("the signature uses SHA-1: set the identity provider to SHA-256")
			}
		}
	}
}

// once remembers an assertion as long as it could be shown again.
func (s *SAML) once(id string, until, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for old, t := range s.used {
		if now.After(t) {
			delete(s.used, old)
		}
	}
	if _, used := s.used[id]; used || id == "" {
		return false
	}
	s.used[id] = until.Add(2 * clockSkew)
	return true
}

// attributes makes claims of what an assertion states.
func attributes(a *types.Assertion) map[string]any {
	values := map[string][]string{}
	if a.AttributeStatement != nil {
		for _, at := range a.AttributeStatement.Attributes {
			for _, v := range at.Values {
				text := strings.TrimSpace(v.Value)
				values[at.Name] = append(values[at.Name], text)
				if at.FriendlyName != "" && at.FriendlyName != at.Name {
					values[at.FriendlyName] = append(values[at.FriendlyName], text)
				}
			}
		}
	}
	claims := map[string]any{}
	for name, list := range values {
		if len(list) == 1 {
			claims[name] = list[0]
			continue
		}
		all := make([]any, len(list))
		for i, v := range list {
			all[i] = v
		}
		claims[name] = all
	}
	delete(claims, NameID) // which no attribute may pass for
	if a.Subject.NameID.Format != transient {
		claims[NameID] = strings.TrimSpace(a.Subject.NameID.Value)
	}
	return claims
}

// provider returns the provider by its metadata, which is fetched again now and
// then: its keys change. What was fetched before stands while it cannot be.
func (s *SAML) provider(ctx context.Context) (*samlProvider, error) {
	s.mu.Lock()
	idp, fresh := s.idp, time.Now().Before(s.until)
	s.mu.Unlock()
	if idp != nil && fresh {
		return idp, nil
	}
	text, err := s.fetch(ctx)
	if err == nil {
		var next *samlProvider
		if next, err = readMetadata(text); err == nil {
			idp = next
		}
	}
	if idp == nil {
		return nil, &SignInError{"the identity provider cannot be reached; try again later", fmt.Errorf("SAML metadata %s: %w", s.o.Metadata, err)}
	}
	s.mu.Lock()
	s.idp, s.until = idp, time.Now().Add(metadataLife)
	if err != nil {
		s.until = time.Now().Add(discoveryRetry)
	}
	s.mu.Unlock()
	return idp, nil
}

func (s *SAML) fetch(ctx context.Context) ([]byte, error) {
	if !strings.HasPrefix(s.o.Metadata, "https://") {
		return os.ReadFile(s.o.Metadata)
	}
	r, err := http.NewRequestWithContext(ctx, "GET", s.o.Metadata, nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(resp.Status)
	}
	return io.ReadAll(http.MaxBytesReader(nil, resp.Body, maxDocument))
}

func readMetadata(text []byte) (*samlProvider, error) {
	var d types.EntityDescriptor
	if err := xml.Unmarshal(text, &d); err != nil {
		return nil, err
	}
	if d.IDPSSODescriptor == nil || d.EntityID == "" {
		return nil, errors.New("is not that of an identity provider")
	}
	if !d.ValidUntil.IsZero() && time.Now().After(d.ValidUntil) {
		return nil, fmt.Errorf("was valid until %s", d.ValidUntil.Format(time.RFC3339))
	}
	store := dsig.MemoryX509CertificateStore{}
	for _, k := range d.IDPSSODescriptor.KeyDescriptors {
		if k.Use != "" && k.Use != "signing" {
			continue
		}
		for _, c := range k.KeyInfo.X509Data.X509Certificates {
			der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(c.Data), ""))
			if err != nil {
				return nil, fmt.Errorf("a certificate: %w", err)
			}
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				return nil, fmt.Errorf("a certificate: %w", err)
			}
			store.Roots = append(store.Roots, cert)
		}
	}
	if len(store.Roots) == 0 {
		return nil, errors.New("has no key to verify signatures by")
	}
	sso := ""
	for _, e := range d.IDPSSODescriptor.SingleSignOnServices {
		if e.Binding == saml2.BindingHttpRedirect {
			sso = e.Location
		}
	}
	if !strings.HasPrefix(sso, "https://") && !strings.HasPrefix(sso, "http://127.0.0.1:") {
		return nil, errors.New("has no HTTP-Redirect endpoint by https")
	}
	return &samlProvider{d.EntityID, sso, store}, nil
}
