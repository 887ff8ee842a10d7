package broker

import (
	"errors"
	"fmt"
	"net/http"
)

// http serves what browsers and health checks ask.
func (b *Broker) http() http.Handler {
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
	return mux
}
