package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpguts"

	"example.com/broker/broker/agent"
	"example.com/broker/broker/agent/credential"
)

// httpUpstream is a server that is reached by URL.
func (c *configFile) httpUpstream(name string, s serverFile) (agent.Upstream, error) {
	u, err := url.Parse(s.HTTP)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return nil, errors.New("http: must be like https://mcp.example.com/mcp")
	}
	up := &agent.HTTP{URL: s.HTTP}
	var shown sources
	if len(s.Headers) > 0 {
		values := map[string]string{}
		for key, value := range s.Headers {
			if err := checkHeader(key); err != nil {
				return nil, fmt.Errorf("headers.%s: %w", key, err)
			}
			if strings.HasPrefix(value, "gcp-secret:") {
				secret, err := c.headerCredential("servers."+name+".headers."+key, &headerCredentialFile{Name: key, Value: value}, c.tellUse, slog.Default())
				if err != nil {
					return nil, err
				}
				shown = append(shown, secret)
				continue
			}
			if _, err := c.secret(value); err != nil {
				return nil, fmt.Errorf("headers.%s: %w", key, err)
			}
			values[key] = value
		}
		up.Header = func() (http.Header, error) { // a file's content may change
			h := http.Header{}
			for key, value := range values {
				value, err := c.secret(value)
				if err != nil {
					return nil, fmt.Errorf("header %s: %w", key, err)
				}
				h.Set(key, value)
			}
			return h, nil
		}
	}
	if s.Credential != nil {
		source, err := c.credential("servers."+name+".credential", s.Credential, c.tellUse, slog.Default())
		if err != nil {
			return nil, err
		}
		shown = append(shown, source)
	}
	if len(shown) > 0 {
		if inClear(u) {
			return nil, errors.New("http: would carry the credential in clear; use https, or a server on loopback")
		}
		up.Credential = shown
	}
	timeout, err := c.duration("servers."+name+".timeout", s.Timeout)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: s.TLS.Name}
	if s.TLS.CA != "" {
		certs, err := readCertificates(c.resolve(s.TLS.CA))
		if err != nil {
			return nil, fmt.Errorf("tls.ca: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		for _, cert := range certs {
			config.RootCAs.AddCert(cert)
		}
	}
	if (s.TLS.Cert == "") != (s.TLS.Key == "") {
		return nil, errors.New("tls: cert and key come together")
	}
	if s.TLS.Cert != "" {
		cert, err := tls.LoadX509KeyPair(c.resolve(s.TLS.Cert), c.resolve(s.TLS.Key))
		if err != nil {
			return nil, fmt.Errorf("tls.cert: %w", err)
		}
		config.Certificates = []tls.Certificate{cert}
	}
	up.Transport = agent.NewTransport(config, timeout)
	return up, nil
}

// sources are several credentials, on one request.
type sources []credential.Source

// Authorize implements credential.Source.
func (all sources) Authorize(r *http.Request, s credential.Session) error {
	for _, one := range all {
		if err := one.Authorize(r, s); err != nil {
			return err
		}
	}
	return nil
}

// ours are the headers that the agent itself sets.
var ours = map[string]bool{
	"Host": true, "Accept": true, "Content-Type": true, "Content-Length": true, "Connection": true, "Transfer-Encoding": true,
	"Te": true, "Trailer": true, "Upgrade": true, "Mcp-Session-Id": true, "Mcp-Protocol-Version": true, "Mcp-Method": true, "Mcp-Name": true,
	"Last-Event-Id": true, "Origin": true,
}

func checkHeader(name string) error {
	switch {
	case !httpguts.ValidHeaderFieldName(name):
		return errors.New("is no name of a header")
	case ours[http.CanonicalHeaderKey(name)]:
		return errors.New("is set by the agent itself")
	}
	return nil
}

// inClear reports whether what is sent to a URL can be read on the way.
func inClear(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "http" && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback())
}
