package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"example.com/broker/broker/console"
	"example.com/broker/broker/identity"
	"example.com/broker/broker/oauth"
	"example.com/broker/broker/policy"
	"example.com/broker/broker/signin"
	"example.com/broker/stream"
)

// http serves MCP clients by URL, and what browsers and health checks ask.
func (b *Broker) http() http.Handler {
	pages := b.pages()
	mcp := b.edge.Guard(http.HandlerFunc(b.serveMCP))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if endpoint(r) != "" {
			mcp.ServeHTTP(w, r)
			return
		}
		pages.ServeHTTP(w, r)
	})
}

func (b *Broker) pages() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "This is an access broker for MCP servers; connect with: broker connect SERVER")
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		err := b.Health()
		if err == nil {
			fmt.Fprintln(w, "ok")
			return
		}
		// Anybody may ask, so the reason is a word; the log has the rest.
		reason := "recorder not available"
		if errors.Is(err, ErrDraining) {
			reason = "draining"
		}
		http.Error(w, reason, http.StatusServiceUnavailable)
	})
	login := ""
	if b.o.SignIn != nil {
		login = "/login"
		for _, path := range signin.Paths {
			mux.Handle(path, b.o.SignIn)
		}
	}
	if b.o.OAuth != nil {
		for _, path := range oauth.Paths {
			mux.Handle(path, b.o.OAuth)
		}
	}
	if b.o.Slack != nil {
		mux.Handle("POST /slack/actions", b.o.Slack)
	}
	if b.o.Desk != nil {
		mux.Handle(recordingsPath+"/", b.recordings())
		mux.Handle("/", console.New(console.Options{
			Desk: b.o.Desk, Who: b.who, Login: login, Servers: slices.Sorted(maps.Keys(b.o.Servers)), Log: b.log, Recorded: b.recorded,
			Terms: func(id identity.Identity, server string) *policy.Terms {
				if _, ok := b.o.Servers[server]; !ok {
					return &policy.Terms{}
				}
				return b.policy.Load().Decide(id, server)
			},
		}))
	}
	return mux
}

// recorded says how the log stands.
func (b *Broker) recorded(ctx context.Context) (console.Recorded, error) {
	d, err := b.o.Log.Disk()
	if err != nil {
		return console.Recorded{}, err
	}
	a, err := b.o.Log.Archiving(ctx)
	if err != nil {
		return console.Recorded{}, err
	}
	r := console.Recorded{
		Sessions: d.Sessions, Pending: d.Pending, Free: d.Free, Kept: b.o.Log.Reserved(),
		Bytes:   console.LogBytes{Values: d.Values, Tables: d.Tables, Recent: d.Recent, Other: d.Other},
		Archive: console.Archive{To: a.To, Sessions: a.Sessions, Undeleted: a.Undeleted},
	}
	if err := b.Health(); err != nil {
		r.Unavailable = err.Error()
	}
	if a.Failing != nil {
		r.Archive.Failing, r.Archive.Error = a.Failing.Since, a.Failing.Error
	}
	if c := d.Collected; !c.Time.IsZero() {
		r.Collected = &console.Collected{Time: c.Time, Files: c.Files}
		if c.Err != nil {
			r.Collected.Error = c.Err.Error()
		}
	}
	return r, nil
}

// who is the caller of a page or of the API, by its client certificate or else
// by the browser's visit.
func (b *Broker) who(r *http.Request) (identity.Identity, error) {
	if len(r.TLS.PeerCertificates) == 0 && b.o.SignIn != nil {
		id, err := b.o.SignIn.Who(r)
		if err == nil && b.o.Desk.IsDisabled(id.Subject, "") {
			err = errors.New(errDisabled.Reason)
		}
		return id, err
	}
	var a admission
	if err := b.identify(&a, stream.Peer{Certificates: r.TLS.PeerCertificates}); err != nil {
		return identity.Identity{}, errors.New(refusalOf(err).Reason)
	}
	return a.identity, nil
}
