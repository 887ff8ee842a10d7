package credential

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Metadata plays the metadata server of Google Cloud for one child process, so
// that Google's libraries in it find a credential where there is no key: the
// tokens that the session's rule allows, as long as the session lasts.
//
// It listens on loopback, where anybody on the machine could ask. On Linux it
// answers only to processes of the child's group and to what they started. Other
// systems do not say whose a connection is; there it wants a secret that is
// part of the address, which the libraries for Go and Python keep and the one
// for Node drops.
type Metadata struct {
	google  *Google
	session Session
	account Account
	log     *slog.Logger
	secret  string // first segment of paths; if empty, the peer's process is looked at

	address string
	server  *http.Server
	done    chan struct{} // closed when nothing is served any more

	admitted chan struct{} // closed when group is set
	admit    sync.Once
	group    int
}

// How long a request waits for [Metadata.Admit].
const admitTime = 5 * time.Second

// StartMetadata listens. The child is started with [Metadata.Environ], and then
// told of to Admit.
func StartMetadata(g *Google, s Session, log *slog.Logger) (*Metadata, error) {
	secret := ""
	if !peersAreKnown {
		secret = rand.Text()
	}
	return startMetadata(g, s, log, secret)
}

func startMetadata(g *Google, s Session, logger *slog.Logger, secret string) (*Metadata, error) {
	a, err := g.account(s)
	if err != nil {
		return nil, err
	}
	if a.Impersonate == "" {
		return nil, errors.New("a child gets tokens of an account that the agent impersonates, never the agent's own, which can do that too: say impersonate")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	m := &Metadata{
		google: g, session: s, account: a, log: logOr(logger), secret: secret,
		address: l.Addr().String(), done: make(chan struct{}), admitted: make(chan struct{}),
	}
	m.server = &http.Server{
		Handler:           http.HandlerFunc(m.handle),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          log.New(io.Discard, "", 0),
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, &conn{})
		},
	}
	go m.serve(l)
	return m, nil
}

func (m *Metadata) serve(l net.Listener) {
	defer close(m.done)
	m.server.Serve(l)
}

// Close ends it: nothing is answered any more, not even what was asked before.
func (m *Metadata) Close() error {
	err := m.server.Close()
	<-m.done
	return err
}

// Admit says which process group is the child's. Requests wait for it, so that
// a child that is quick is not refused.
func (m *Metadata) Admit(group int) {
	m.admit.Do(func() {
		m.group = group
		close(m.admitted)
	})
}

// Variables that lead Google's libraries and tools to another credential, or to
// another metadata server.
var leadElsewhere = []string{
	"GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CREDENTIALS", "GOOGLE_OAUTH_ACCESS_TOKEN", "GOOGLE_API_KEY",
	"GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "GOOGLE_IMPERSONATE_SERVICE_ACCOUNT",
	"CLOUDSDK_*", "GCE_METADATA_*", "METADATA_SERVER_DETECTION", "NO_GCE_CHECK",
}

// Environ returns env for the child: without what would lead it to another
// credential, and with what leads it here. It is an error if the child would
// find credentials that gcloud has left in its home, which come first.
func (m *Metadata) Environ(env []string) ([]string, error) {
	var home, appData, noProxy string
	named := false // a project is named, by who configured the server
	out := slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		key, value, _ := strings.Cut(kv, "=")
		switch key {
		case "HOME":
			home = value
		case "APPDATA":
			appData = value
		case "GOOGLE_CLOUD_PROJECT":
			named = true
		case "NO_PROXY", "no_proxy":
			noProxy = value
			return true
		}
		return slices.ContainsFunc(leadElsewhere, func(name string) bool {
			prefix, ok := strings.CutSuffix(name, "*")
			return key == name || ok && strings.HasPrefix(key, prefix)
		})
	})
	if home == "" { // the libraries look further, too
		if u, err := user.Current(); err == nil {
			home = u.HomeDir
		}
	}
	for _, dir := range []string{home + "/.config", appData} {
		file := filepath.Join(dir, "gcloud", "application_default_credentials.json")
		if _, err := os.Stat(file); dir != "" && err == nil {
			return nil, fmt.Errorf("the server would find the credential in %s before its own; set HOME in its env to another folder", file)
		}
	}
	host := m.address
	if m.secret != "" {
		host += "/" + m.secret
	}
	out = append(out,
		"GCE_METADATA_HOST="+host,                  // Go, Java, Python
		"GCE_METADATA_IP="+host,                    // Node; Python's first look
		"GCE_METADATA_ROOT="+host,                  // gcloud
		"METADATA_SERVER_DETECTION=assume-present", // Node would look at the BIOS first
		"NO_GCE_CHECK=false",
	)
	if project := m.project(); project != "" && !named {
		out = append(out, "GOOGLE_CLOUD_PROJECT="+project)
	}
	if noProxy != "" {
		noProxy += ","
	}
	noProxy += "127.0.0.1"
	return append(out, "NO_PROXY="+noProxy, "no_proxy="+noProxy), nil
}

func (m *Metadata) project() string {
	if m.google.o.QuotaProject != "" {
		return m.google.o.QuotaProject
	}
	return m.account.project()
}

// A conn is one connection, of which the peer is looked at once.
type conn struct {
	mu    sync.Mutex
	known bool
}

type connKey struct{}

// handle answers as the metadata server does.
func (m *Metadata) handle(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Metadata-Flavor", "Google")
	w.Header().Set("Server", "Metadata Server for VM")
	path := r.URL.Path
	if m.secret != "" {
		rest, ok := strings.CutPrefix(path, "/"+m.secret)
		if !ok {
			http.Error(w, "not found", http.StatusNotFound)
			return
		}
		path = rest
	}
	if err := m.admits(r); err != nil {
		m.log.Warn("metadata server: a request is refused", "session", m.session.ID, "error", err)
		http.Error(w, "this metadata server is not yours", http.StatusForbidden)
		return
	}
	switch {
	case r.Method != http.MethodGet:
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
	// Neither a page in a browser nor a server that fetches what it is told to
	// can set the one; who passes requests on sets the other.
	case r.Header.Get("Metadata-Flavor") != "Google" && strings.Trim(path, "/") != "":
		http.Error(w, "the header Metadata-Flavor: Google is missing", http.StatusForbidden)
	case r.Header.Get("X-Forwarded-For") != "":
		http.Error(w, "a request that was passed on", http.StatusForbidden)
	default:
		m.answer(w, r, strings.Trim(path, "/"))
	}
}

// admits waits until the child is known, and checks that r is its.
func (m *Metadata) admits(r *http.Request) error {
	timer := time.NewTimer(admitTime)
	defer timer.Stop()
	select {
	case <-m.admitted:
	case <-timer.C:
		return errors.New("the child is not known yet")
	case <-r.Context().Done():
		return context.Cause(r.Context())
	}
	if m.secret != "" {
		return nil
	}
	c := r.Context().Value(connKey{}).(*conn)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known {
		return nil
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if local == nil {
		return errors.New("the connection has no address")
	}
	if err := peerIn(m.group, r.RemoteAddr, local.String()); err != nil {
		return err
	}
	c.known = true
	return nil
}

func (m *Metadata) answer(w http.ResponseWriter, r *http.Request, path string) {
	email := m.account.Impersonate
	text := func(s string) {
		w.Header().Set("Content-Type", "application/text")
		io.WriteString(w, s)
	}
	object := func(v any) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(v)
	}
	const accounts = "computeMetadata/v1/instance/service-accounts"
	switch path {
	case "":
		text("computeMetadata/\n")
		return
	case "computeMetadata/v1/project/project-id":
		if project := m.project(); project != "" {
			text(project)
			return
		}
	case "computeMetadata/v1/universe/universe-domain":
		text("googleapis.com")
		return
	case accounts:
		text("default/\n" + email + "/\n")
		return
	}
	rest, ok := strings.CutPrefix(path, accounts+"/")
	account, what, _ := strings.Cut(rest, "/")
	if !ok || account != "default" && account != email {
		http.NotFound(w, r)
		return
	}
	a := m.account.narrow(strings.FieldsFunc(strings.Join(r.URL.Query()["scopes"], ","), func(c rune) bool { return c == ',' || c == ' ' }))
	switch what {
	case "":
		if r.URL.Query().Get("recursive") == "true" {
			object(map[string]any{"aliases": []string{"default"}, "email": email, "scopes": append([]string{}, m.account.Scopes...)})
			return
		}
		text("aliases\nemail\nidentity\nscopes\ntoken\n")
	case "email":
		text(email)
	case "scopes":
		text(strings.Join(m.account.Scopes, "\n") + "\n")
	case "token":
		if len(a.Scopes) == 0 {
			http.Error(w, "this server gets no access tokens: its credential has no scopes", http.StatusNotFound)
			return
		}
		if t, ok := m.token(w, r, a); ok {
			object(map[string]any{"access_token": t.value, "expires_in": max(0, int(time.Until(t.until).Seconds())), "token_type": "Bearer"})
		}
	case "identity":
		asked := r.URL.Query().Get("audience")
		if asked == "" || asked != m.account.Audience {
			http.Error(w, "this server gets no ID tokens for that audience", http.StatusForbidden)
			return
		}
		if t, ok := m.token(w, r, m.account); ok {
			text(t.value)
		}
	default:
		http.NotFound(w, r)
	}
}

// token gets one, or answers that there is none; why is for the log.
func (m *Metadata) token(w http.ResponseWriter, r *http.Request, a Account) (token, bool) {
	t, err := m.google.token(r.Context(), a)
	if err != nil {
		m.log.Error("metadata server: there is no token", "session", m.session.ID, "error", err)
		// Not 5xx: the libraries would ask again and again, and wait in between.
		http.Error(w, "the agent has no token; its log says why", http.StatusForbidden)
		return token{}, false
	}
	m.google.ledger.tell(m.session, t)
	return t, true
}
