package broker

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"example.com/broker/broker/agent"
	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
	"example.com/broker/broker/identity/identitytest"
)

// A metadataServer plays that of an instance on Google Cloud.
type metadataServer struct {
	issuer *identitytest.Issuer
	engine atomic.Pointer[map[string]any]
	last   atomic.Pointer[string] // the token that was given last
}

func (m *metadataServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Metadata-Flavor", "Google")
	if r.Header.Get("Metadata-Flavor") != "Google" || r.URL.Path != "/computeMetadata/v1/instance/service-accounts/default/identity" || r.FormValue("format") != "full" {
		http.Error(w, "unexpected", http.StatusNotFound)
		return
	}
	token := m.issuer.Sign(m.issuer.Claims(r.FormValue("audience"), map[string]any{
		"sub": "1", "email": "agent@prod.iam.gserviceaccount.com", "email_verified": true,
		"google": map[string]any{"compute_engine": *m.engine.Load()},
	}))
	m.last.Store(&token)
	fmt.Fprint(w, token)
}

// TestJoinGCP checks that an instance joins by what Google says of it, and that
// neither another instance nor a stolen token does.
func TestJoinGCP(t *testing.T) {
	right := map[string]any{"project_id": "prod", "zone": "europe-west1-b", "instance_name": "mcp-1"}
	m := &metadataServer{issuer: identitytest.NewIssuer(t)}
	m.engine.Store(&right)
	server := httptest.NewServer(m)
	defer server.Close()
	t.Setenv("GCE_METADATA_HOST", strings.TrimPrefix(server.URL, "http://"))

	h, stop := newHarness(t, Limits{}, allowAll)
	defer stop()
	h.agents.google = identity.NewAttestor(m.issuer.URL, nil)
	h.agents.instances = []identity.GoogleAgents{{
		Agents: []string{"gce"}, Projects: []string{"prod"}, ServiceAccounts: []string{"agent@prod.iam.gserviceaccount.com"}, Zones: []string{"europe-west1-b"},
	}}
	join := func(name string, attest func(context.Context, string) (string, error)) error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		l := &agent.Link{
			Agent: &agent.Agent{}, Broker: h.listener.Addr().String(), Name: name, Pin: h.ca.Pin(),
			Attest: attest, Dir: t.TempDir(), Tunnels: 1,
		}
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		for {
			select {
			case err := <-done:
				return err
			case <-time.After(5 * time.Millisecond):
			}
			h.agents.mu.Lock()
			up := h.agents.linked[name] != nil
			h.agents.mu.Unlock()
			if up {
				cancel()
				<-done
				return nil
			}
		}
	}
	if err := join("gce", agent.InstanceToken); err != nil {
		t.Errorf("the right instance: %v", err)
	}
	stolen := *m.last.Load()
	if err := join("gce", func(context.Context, string) (string, error) { return stolen, nil }); err == nil || !strings.Contains(err.Error(), "not valid") {
		t.Errorf("with the token of another key: %v", err)
	}
	if err := join("other", agent.InstanceToken); err == nil || !strings.Contains(err.Error(), "may not join") {
		t.Errorf("as another agent: %v", err)
	}
	for name, value := range map[string]string{"project_id": "test", "zone": "us-east1-b"} {
		wrong := maps.Clone(right)
		wrong[name] = value
		m.engine.Store(&wrong)
		if err := join("gce", agent.InstanceToken); err == nil || !strings.Contains(err.Error(), "may not join") {
			t.Errorf("with another %s: %v", name, err)
		}
	}
	m.engine.Store(&right)
	if err := h.desk.Disable(t.Context(), grant.Agent, "gce", identity.Identity{Subject: "root"}, "stolen"); err != nil {
		t.Fatal(err)
	}
	if err := join("gce", agent.InstanceToken); err == nil || !strings.Contains(err.Error(), "disabled") {
		t.Errorf("disabled: %v", err)
	}
	h.agents.google = nil
	if err := join("gce", agent.InstanceToken); err == nil {
		t.Error("joins at a broker that takes no instances")
	}
	issued := 0
	for e, err := range h.store.Events(t.Context(), 0) {
		if err == nil && e.Type == grant.Issued && e.Subject == "gce" && e.Detail["kind"] == grant.Agent {
			issued++
		}
	}
	if issued != 1 {
		t.Errorf("%d certificates are on record", issued)
	}
}
