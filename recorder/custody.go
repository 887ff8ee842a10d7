package recorder

import (
	"context"
	"encoding/json"
	"io"
	"iter"
	"net/http"
	"net/url"
)

// custodyHandler answers what a remote asks as a [Custodian] or an [Archivist], and has the
// rest answered by others. Who asks is known by the socket.
func (l *Log) custodyHandler(others http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", others)
	mux.HandleFunc("GET /holds", func(w http.ResponseWriter, r *http.Request) {
		serveLines(l, w, r, l.Holds(r.Context()), false)
	})
	mux.HandleFunc("GET /archive", func(w http.ResponseWriter, r *http.Request) {
		a, err := l.Archiving(r.Context())
		if err != nil {
			serveError(w, err)
			return
		}
		json.NewEncoder(w).Encode(a)
	})
	do := func(pattern string, f func(r *http.Request, session, by, reason string) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			by := "local"
			if p, ok := r.Context().Value(peerKey{}).(*peer); ok {
				by = p.by
			}
			if err := f(r, r.PathValue("id"), by, r.URL.Query().Get("reason")); err != nil {
				l.o.Log.Warn("a session is not held, released or deleted as was asked", "by", by, "error", err)
				serveError(w, err)
			}
		})
	}
	do("PUT /sessions/{id}/hold", func(r *http.Request, session, by, reason string) error {
		return l.Hold(r.Context(), Hold{Session: session, By: by, Reason: reason})
	})
	do("DELETE /sessions/{id}/hold", func(r *http.Request, session, by, _ string) error { return l.Release(r.Context(), session, by) })
	do("DELETE /sessions/{id}", func(r *http.Request, session, by, reason string) error {
		return l.Delete(r.Context(), session, by, reason)
	})
	return mux
}

// Holds implements [Custodian].
func (r *remote) Holds(ctx context.Context) iter.Seq2[Hold, error] {
	return jsonLines[Hold](ctx, r, "/holds")
}

// Archiving implements [Archivist].
func (r *remote) Archiving(ctx context.Context) (a Archiving, err error) {
	b, err := r.getAll(ctx, "/archive")
	if err == nil {
		err = json.Unmarshal(b, &a)
	}
	return a, err
}

// Hold implements [Custodian].
func (r *remote) Hold(ctx context.Context, h Hold) error {
	return r.do(ctx, http.MethodPut, h.Session, "/hold", h.Reason)
}

// Release implements [Custodian].
func (r *remote) Release(ctx context.Context, session, _ string) error {
	return r.do(ctx, http.MethodDelete, session, "/hold", "")
}

// Delete implements [Custodian].
func (r *remote) Delete(ctx context.Context, session, _, reason string) error {
	return r.do(ctx, http.MethodDelete, session, "", reason)
}

func (r *remote) do(ctx context.Context, method, session, what, reason string) error {
	path := "/sessions/" + url.PathEscape(session) + what
	if reason != "" {
		path += "?" + url.Values{"reason": {reason}}.Encode()
	}
	body, err := r.ask(ctx, method, path)
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.Copy(io.Discard, body)
	return err
}
