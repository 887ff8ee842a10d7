package identity_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/beevik/etree"
	dsig "github.com/russellhaering/goxmldsig"
	"github.com/russellhaering/goxmldsig/etreeutils"

	"example.com/broker/broker/identity"
	"example.com/broker/broker/identity/identitytest"
)

const samlCallback = "https://broker.example.com/login/saml/callback"

// A samlHouse is a provider and the broker as its service.
type samlHouse struct {
	*identity.SAML
	idp *identitytest.SAMLProvider
}

func newSAML(t *testing.T) *samlHouse {
	idp := identitytest.NewSAMLProvider(t)
	idp.AddUser("ada", "ada@example.com", "analysts", "oncall")
	file := filepath.Join(t.TempDir(), "idp.xml")
	if err := os.WriteFile(file, idp.Metadata(), 0o600); err != nil {
		t.Fatal(err)
	}
	s := identity.NewSAML(identity.SAMLOptions{
		Metadata: file, Mapping: mapping(t, identity.MappingOptions{Subject: "mail", Groups: "eduPersonAffiliation"}),
	})
	metadata, err := s.ServiceMetadata(samlCallback)
	if err != nil {
		t.Fatal(err)
	}
	idp.AddService(metadata)
	return &samlHouse{s, idp}
}

// begin signs ada in at the provider and returns the response in XML.
func (h *samlHouse) begin(t *testing.T) (identity.Flow, *etree.Document) {
	t.Helper()
	f := identity.Flow{State: rand.Text(), Nonce: rand.Text(), Callback: samlCallback}
	to, err := h.Begin(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	answer := h.idp.SignIn(to, "ada")
	if answer.Get("RelayState") != f.State {
		t.Fatalf("RelayState is %q", answer.Get("RelayState"))
	}
	text, err := base64.StdEncoding.DecodeString(answer.Get("SAMLResponse"))
	if err != nil {
		t.Fatal(err)
	}
	doc := etree.NewDocument()
	if err := doc.ReadFromBytes(text); err != nil {
		t.Fatal(err)
	}
	return f, doc
}

func (h *samlHouse) complete(t *testing.T, f identity.Flow, doc *etree.Document) (identity.Identity, error) {
	t.Helper()
	text, err := doc.WriteToBytes()
	if err != nil {
		t.Fatal(err)
	}
	return h.post(t, f, base64.StdEncoding.EncodeToString(text))
}

func (h *samlHouse) post(t *testing.T, f identity.Flow, response string) (identity.Identity, error) {
	r := httptest.NewRequest("POST", samlCallback, strings.NewReader(url.Values{"SAMLResponse": {response}}.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return h.Complete(t.Context(), f, r)
}

func assertion(doc *etree.Document) *etree.Element { return doc.FindElement("//Assertion") }

// unsign takes all signatures away.
func unsign(doc *etree.Document) {
	for _, s := range doc.FindElements("//Signature") {
		s.Parent().RemoveChild(s)
	}
}

// sign signs the assertion as the provider would.
func (h *samlHouse) sign(t *testing.T, doc *etree.Document, key *rsa.PrivateKey, method string) {
	t.Helper()
	unsign(doc)
	ctx := dsig.NewDefaultSigningContext(dsig.TLSCertKeyStore(tls.Certificate{Certificate: [][]byte{h.idp.Cert.Raw}, PrivateKey: key}))
	ctx.Canonicalizer = dsig.MakeC14N10ExclusiveCanonicalizerWithPrefixList("")
	a := assertion(doc)
	parent, at := a.Parent(), a.Index()
	if err := ctx.SetSignatureMethod(method); err != nil {
		t.Fatal(err)
	}
	around, err := etreeutils.NSBuildParentContext(a)
	if err != nil {
		t.Fatal(err)
	}
	detached, err := etreeutils.NSDetatch(around, a)
	if err != nil {
		t.Fatal(err)
	}
	signature, err := ctx.ConstructSignature(detached, true)
	if err != nil {
		t.Fatal(err)
	}
	detached.InsertChildAt(1, signature) // the schema wants it behind the issuer
	parent.RemoveChild(a)
	parent.InsertChildAt(at, detached)
}

func TestSAML(t *testing.T) {
	h := newSAML(t)
	f, doc := h.begin(t)
	id, err := h.complete(t, f, doc)
	if err != nil || id.Subject != "ada@example.com" || !slices.Equal(id.Groups, []string{"analysts", "oncall"}) || id.Method != "saml" {
		var e *identity.SignInError
		errors.As(err, &e)
		t.Fatalf("%+v, %v (%v)", id, err, errors.Unwrap(err))
	}
	if id, err := h.complete(t, f, doc); err == nil {
		t.Errorf("replayed: %+v", id)
	}
	other := f
	other.Nonce = rand.Text()
	if id, err := h.complete(t, other, doc); err == nil {
		t.Errorf("in another sign-in: %+v", id)
	}
	// What the tests below sign themselves is believed, so that it is what they
	// change that is refused.
	f, doc = h.begin(t)
	h.sign(t, doc, h.idp.Key, dsig.RSASHA256SignatureMethod)
	if _, err := h.complete(t, f, doc); err != nil {
		t.Errorf("signed by the test: %v", errors.Unwrap(err))
	}
}

// TestSAMLForged checks that nothing but what the provider has signed, for this
// broker and this sign-in, signs anybody in.
func TestSAMLForged(t *testing.T) {
	h := newSAML(t)
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	const form = "2006-01-02T15:04:05Z"
	ago := time.Now().Add(-10 * time.Minute).UTC().Format(form)
	ahead := time.Now().Add(10 * time.Minute).UTC().Format(form)
	set := func(path, attr, value string) func(*etree.Document) {
		return func(doc *etree.Document) {
			e := doc.FindElement("//Assertion//" + path)
			if attr == "" {
				e.SetText(value)
			} else {
				e.CreateAttr(attr, value)
			}
		}
	}
	evil := func(doc *etree.Document) *etree.Element { // an assertion of somebody else, unsigned
		e := assertion(doc).Copy()
		e.CreateAttr("ID", "evil")
		for _, s := range e.SelectElements("Signature") {
			e.RemoveChild(s)
		}
		for _, v := range e.FindElements(".//AttributeValue") {
			if v.Text() == "ada@example.com" {
				v.SetText("root@example.com")
			}
		}
		return e
	}
	for name, tt := range map[string]struct {
		signed func(*etree.Document) // changed, then signed by the provider
		after  func(*etree.Document) // changed without a new signature
		key    *rsa.PrivateKey
		sha1   bool
	}{
		"another audience":  {signed: set("Audience", "", "https://else.example.com")},
		"no audience":       {signed: func(doc *etree.Document) { e := doc.FindElement("//AudienceRestriction"); e.Parent().RemoveChild(e) }},
		"another recipient": {signed: set("SubjectConfirmationData", "Recipient", "https://else.example.com")},
		"another request":   {signed: set("SubjectConfirmationData", "InResponseTo", "_other")},
		"unsolicited":       {signed: func(doc *etree.Document) { doc.FindElement("//SubjectConfirmationData").RemoveAttr("InResponseTo") }},
		"expired":           {signed: set("Conditions", "NotOnOrAfter", ago)},
		"bearer expired":    {signed: set("SubjectConfirmationData", "NotOnOrAfter", ago)},
		"not yet":           {signed: set("Conditions", "NotBefore", ahead)},
		"another issuer":    {signed: set("Issuer", "", "https://evil.example.com")},
		"no mail":           {signed: func(doc *etree.Document) { e := doc.FindElement("//AttributeStatement"); e.Parent().RemoveChild(e) }},
		"holder of key":     {signed: set("SubjectConfirmation", "Method", "urn:oasis:names:tc:SAML:2.0:cm:holder-of-key")},
		"a failure": {after: func(doc *etree.Document) {
			doc.FindElement("//StatusCode").CreateAttr("Value", "urn:oasis:names:tc:SAML:2.0:status:Requester")
		}},
		"another key": {signed: func(*etree.Document) {}, key: stranger},
		"unsigned":    {after: unsign},
		"altered": {after: func(doc *etree.Document) {
			for _, v := range doc.FindElements("//AttributeValue") {
				v.SetText("root@example.com")
			}
		}},
		"wrapped: before it": {after: func(doc *etree.Document) { doc.Root().InsertChildAt(assertion(doc).Index(), evil(doc)) }},
		"wrapped: behind it": {after: func(doc *etree.Document) { doc.Root().AddChild(evil(doc)) }},
		"wrapped: of the same id": {after: func(doc *etree.Document) {
			e := evil(doc)
			e.CreateAttr("ID", assertion(doc).SelectAttrValue("ID", ""))
			doc.Root().InsertChildAt(0, e)
		}},
		"wrapped: in an extension": {after: func(doc *etree.Document) {
			a, e := assertion(doc), evil(doc)
			a.Parent().RemoveChild(a)
			doc.Root().CreateElement("samlp:Extensions").AddChild(a)
			doc.Root().AddChild(e)
		}},
		"wrapped: in its signature": {after: func(doc *etree.Document) {
			a, e := assertion(doc), evil(doc)
			s := a.FindElement("./Signature").Copy()
			parent := a.Parent()
			parent.RemoveChild(a)
			s.CreateElement("ds:Object").AddChild(a)
			e.InsertChildAt(1, s)
			parent.AddChild(e)
		}},
		"wrapped: around it": {after: func(doc *etree.Document) {
			a, e := assertion(doc), evil(doc)
			a.Parent().RemoveChild(a)
			e.AddChild(a)
			doc.Root().AddChild(e)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f, doc := h.begin(t)
			unsign(doc)
			if tt.signed != nil {
				tt.signed(doc)
			}
			key := tt.key
			if key == nil {
				key = h.idp.Key
			}
			method := dsig.RSASHA256SignatureMethod
			if tt.sha1 {
				method = dsig.RSASHA1SignatureMethod
			}
			h.sign(t, doc, key, method)
			if tt.after != nil {
				tt.after(doc)
			}
			id, err := h.complete(t, f, doc)
			var refused *identity.SignInError
			if !errors.As(err, &refused) {
				t.Errorf("signed in as %+v, %v", id, err)
			}
		})
	}
	for _, text := range []string{"", "!", "PHg+", base64.StdEncoding.EncodeToString([]byte("<samlp:Response>"))} {
		f, _ := h.begin(t)
		if id, err := h.post(t, f, text); err == nil {
			t.Errorf("%q: %+v", text, id)
		}
	}
}

// TestSAMLComment checks that a comment, which no signature covers, does not cut
// a value short.
func TestSAMLComment(t *testing.T) {
	h := newSAML(t)
	f, doc := h.begin(t)
	unsign(doc)
	for _, v := range doc.FindElements("//AttributeValue") {
		if v.Text() == "ada@example.com" {
			v.SetText("ada@example.com.evil.com")
		}
	}
	h.sign(t, doc, h.idp.Key, dsig.RSASHA256SignatureMethod)
	for _, v := range doc.FindElements("//AttributeValue") {
		if v.Text() == "ada@example.com.evil.com" {
			v.SetText("ada@example.com")
			v.CreateComment("x")
			v.CreateText(".evil.com")
		}
	}
	if id, err := h.complete(t, f, doc); err == nil && id.Subject != "ada@example.com.evil.com" {
		t.Errorf("signed in as %s", id.Subject)
	}
}

// TestSAMLMetadata checks what is refused of a provider's.
func TestSAMLMetadata(t *testing.T) {
	h := newSAML(t)
	good := string(h.idp.Metadata())
	for name, text := range map[string]string{
		"nothing":       "",
		"no provider":   `<EntityDescriptor xmlns="urn:oasis:names:tc:SAML:2.0:metadata" entityID="x"></EntityDescriptor>`,
		"expired":       strings.Replace(good, "validUntil=\"20", "validUntil=\"19", 1),
		"without https": strings.ReplaceAll(good, "http://127.0.0.1", "http://idp.example.com"),
	} {
		file := filepath.Join(t.TempDir(), "idp.xml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s := identity.NewSAML(identity.SAMLOptions{Metadata: file, Mapping: mapping(t, identity.MappingOptions{Subject: "mail"})})
		if to, err := s.Begin(t.Context(), identity.Flow{State: "s", Nonce: "n", Callback: samlCallback}); err == nil {
			t.Errorf("%s: goes to %s", name, to)
		}
	}
}

// TestSAMLMetadataURL checks that metadata may come from a URL, and that what was
// fetched stands while the URL is away.
func TestSAMLMetadataURL(t *testing.T) {
	h := newSAML(t)
	fetched := 0
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fetched++
		w.Write(h.idp.Metadata())
	}))
	s := identity.NewSAML(identity.SAMLOptions{
		Metadata: server.URL, Mapping: mapping(t, identity.MappingOptions{Subject: "mail"}), Client: server.Client(),
	})
	flow := identity.Flow{State: "s", Nonce: "n", Callback: samlCallback}
	for range 3 {
		if to, err := s.Begin(t.Context(), flow); err != nil || !strings.HasPrefix(to, h.idp.URL+"/sso?") {
			t.Fatalf("%s, %v", to, err)
		}
	}
	if fetched != 1 {
		t.Errorf("it was fetched %d times", fetched)
	}
	server.Close()
	if _, err := s.Begin(t.Context(), flow); err != nil {
		t.Errorf("while the URL is away: %v", err)
	}
	gone := identity.NewSAML(identity.SAMLOptions{Metadata: server.URL, Mapping: mapping(t, identity.MappingOptions{Subject: "mail"}), Client: server.Client()})
	if _, err := gone.Begin(t.Context(), flow); err == nil || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("a provider that never was there: %v", err)
	}
}
