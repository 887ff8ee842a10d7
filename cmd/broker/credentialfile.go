package main

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"strings"

	"example.com/broker/broker/agent/credential"
)

// credentialFile is the section credential of a server: what the agent
// presents to it.
type credentialFile struct {
	GCP    *gcpCredentialFile    `yaml:"gcp"`
	OAuth  *oauthCredentialFile  `yaml:"oauth"`
	Header *headerCredentialFile `yaml:"header"`
}

// accountFile is a service account of Google's, and what its tokens are for.
type accountFile struct {
	Impersonate string   `yaml:"impersonate"`
	Delegates   []string `yaml:"delegates"`
	Lifetime    string   `yaml:"lifetime"`
	Scopes      []string `yaml:"scopes"`
	Audience    string   `yaml:"audience"`
}

type gcpCredentialFile struct {
	Credentials  string                 `yaml:"credentials"` // file:PATH or metadata; if left out, application default
	Account      accountFile            `yaml:",inline"`
	Header       string                 `yaml:"header"`
	QuotaProject string                 `yaml:"quota_project"`
	Rules        map[string]accountFile `yaml:"rules"` // by the name of a rule of the policy
}

type oauthCredentialFile struct {
	TokenURL     string        `yaml:"token_url"`
	ClientID     string        `yaml:"client_id"`
	ClientSecret string        `yaml:"client_secret"`
	ClientAuth   string        `yaml:"client_auth"` // basic or post
	Scopes       []string      `yaml:"scopes"`
	Audience     string        `yaml:"audience"`
	Resource     string        `yaml:"resource"`
	Exchange     *exchangeFile `yaml:"exchange"`
}

type exchangeFile struct {
	SigningKey string `yaml:"subject_signing_key"` // file:PATH, a private key in PEM
	Issuer     string `yaml:"issuer"`
	Audience   string `yaml:"audience"`
}

type headerCredentialFile struct {
	Name   string `yaml:"name"`
	Prefix string `yaml:"prefix"`
	Value  string `yaml:"value"` // itself, file:PATH, or gcp-secret:projects/P/secrets/S/versions/V
}

// credential is what the section f, which stands at a path of the file, says.
// used is told of each use and may be nil, as may log.
func (c *configFile) credential(at string, f *credentialFile, used func(credential.Use), log *slog.Logger) (credential.Source, error) {
	kinds := 0
	for _, given := range []bool{f.GCP != nil, f.OAuth != nil, f.Header != nil} {
		if given {
			kinds++
		}
	}
	switch {
	case kinds == 0:
		return nil, c.errorAt(at, errors.New("says no kind: gcp, oauth or header"))
	case kinds > 1:
		return nil, c.errorAt(at, errors.New("has more than one kind"))
	case f.GCP != nil:
		return c.gcpCredential(at+".gcp", f.GCP, used, log)
	case f.OAuth != nil:
		return c.oauthCredential(at+".oauth", f.OAuth, used, log)
	}
	return c.headerCredential(at+".header", f.Header, used, log)
}

func (c *configFile) account(at string, f accountFile) (credential.Account, error) {
	lifetime, err := c.duration(at+".lifetime", f.Lifetime)
	if err != nil {
		return credential.Account{}, err
	}
	return credential.Account{
		Impersonate: f.Impersonate, Delegates: f.Delegates, Lifetime: lifetime, Scopes: f.Scopes, Audience: f.Audience,
	}, nil
}

func (c *configFile) gcpCredential(at string, f *gcpCredentialFile, used func(credential.Use), log *slog.Logger) (credential.Source, error) {
	o := credential.GoogleOptions{
		Header: f.Header, QuotaProject: f.QuotaProject, Rules: map[string]credential.Account{}, Used: used, Log: log,
	}
	name, isFile := strings.CutPrefix(f.Credentials, "file:")
	switch {
	case isFile && name != "":
		o.File = c.resolve(name)
	case f.Credentials == "metadata":
		o.File = "metadata"
	case f.Credentials != "":
		return nil, c.errorAt(at+".credentials", errors.New("must be file: and a path, or metadata; leave it out for application default credentials"))
	}
	var err error
	if o.Account, err = c.account(at, f.Account); err != nil {
		return nil, err
	}
	for rule, a := range f.Rules {
		if o.Rules[rule], err = c.account(at+".rules."+rule, a); err != nil {
			return nil, err
		}
	}
	g, err := credential.NewGoogle(o)
	if err != nil {
		return nil, c.errorAt(at, err)
	}
	return g, nil
}

func (c *configFile) oauthCredential(at string, f *oauthCredentialFile, used func(credential.Use), log *slog.Logger) (credential.Source, error) {
	if f.TokenURL == "" {
		return nil, c.errorAt(at+".token_url", errors.New("is missing; it is where the authorization server gives out tokens"))
	}
	if err := checkIssuer(f.TokenURL); err != nil {
		return nil, c.errorAt(at+".token_url", err)
	}
	if f.ClientAuth != "" && f.ClientAuth != "basic" && f.ClientAuth != "post" {
		return nil, c.errorAt(at+".client_auth", errors.New("must be basic or post"))
	}
	secret, err := c.secret(f.ClientSecret)
	if err != nil {
		return nil, c.errorAt(at+".client_secret", err)
	}
	o := credential.OAuthOptions{
		TokenURL: f.TokenURL, ClientID: f.ClientID, ClientSecret: secret, Post: f.ClientAuth == "post",
		Scopes: f.Scopes, Audience: f.Audience, Resource: f.Resource, Used: used, Log: log,
	}
	if x := f.Exchange; x != nil {
		if !strings.HasPrefix(x.SigningKey, "file:") {
			return nil, c.errorAt(at+".exchange.subject_signing_key", errors.New("must be file: and the path of a private key in PEM"))
		}
		text, err := c.secret(x.SigningKey)
		if err != nil {
			return nil, c.errorAt(at+".exchange.subject_signing_key", err)
		}
		key, err := privateKey(text)
		if err != nil {
			return nil, c.errorAt(at+".exchange.subject_signing_key", err)
		}
		o.Exchange = &credential.Exchange{Key: key, Issuer: x.Issuer, Audience: x.Audience}
	}
	a, err := credential.NewOAuth(o)
	if err != nil {
		return nil, c.errorAt(at, err)
	}
	return a, nil
}

// privateKey reads a key as openssl genpkey writes it.
func privateKey(text string) (crypto.Signer, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("holds no PRIVATE KEY in PEM (PKCS #8, as openssl genpkey writes it)")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("the private key cannot be read") // err might say what of it
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the private key is not for signing")
	}
	return signer, nil
}

func (c *configFile) headerCredential(at string, f *headerCredentialFile, used func(credential.Use), log *slog.Logger) (credential.Source, error) {
	o := credential.HeaderOptions{Name: f.Name, Prefix: f.Prefix, Value: f.Value, Used: used, Log: log}
	if name, ok := strings.CutPrefix(f.Value, "file:"); ok {
		o.Value, o.File = "", c.resolve(name)
	}
	if name, ok := strings.CutPrefix(f.Value, "gcp-secret:"); ok {
		o.Value, o.Secret = "", name
		var err error
		o.Google, err = credential.NewGoogle(credential.GoogleOptions{
			Account: credential.Account{Scopes: []string{"https://www.googleapis.com/auth/cloud-platform"}}, Log: log,
		})
		if err != nil {
			return nil, c.errorAt(at, err)
		}
	}
	h, err := credential.NewHeader(o)
	if err != nil {
		return nil, c.errorAt(at, err)
	}
	return h, nil
}
