package console_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"example.com/broker/broker/console"
	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
	"example.com/broker/broker/policy"
)

// A house is a console whose callers say who they are.
type house struct {
	t     *testing.T
	desk  *grant.Desk
	store grant.Store
	http.Handler
}

var people = map[string]identity.Identity{
	"ada":    {Subject: "ada", Groups: []string{"analysts", "leads"}}, // who may approve others'
	"ADA":    {Subject: "ADA", Groups: []string{"leads"}},
	"grace":  {Subject: "grace", Groups: []string{"leads"}},
	"eve":    {Subject: "eve"},
	"root":   {Subject: "root"},
	"script": {Subject: "<script>alert(1)</script>", Groups: []string{"analysts"}},
}

func newHouse(t *testing.T) *house {
	store, err := grant.OpenBadger(t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	desk, err := grant.Open(t.Context(), grant.Options{Store: store, Admins: policy.Approvers{Users: []string{"root"}}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := policy.Compile([]policy.Rule{{
		Name: "prod", Groups: []string{"analysts"}, Servers: []string{"prod"}, Access: policy.Approval,
		Asking: policy.Asking{Approvers: policy.Approvers{Groups: []string{"leads"}}, Reason: "required"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return &house{t, desk, store, console.New(console.Options{
		Desk: desk, Servers: []string{"prod"}, Login: "/login",
		Terms: func(id identity.Identity, server string) *policy.Terms { return p.Decide(id, server) },
		Who: func(r *http.Request) (identity.Identity, error) {
			id, ok := people[r.Header.Get("X-Test")]
			if !ok {
				return id, errors.New("you are not signed in")
			}
			return id, nil
		},
		Recorded: func(context.Context) (console.Recorded, error) {
			return console.Recorded{
				Sessions: 1234, Pending: 5, Free: 3 << 30, Kept: 256 << 20,
				Bytes:     console.LogBytes{Values: 1536 << 20, Tables: 512 << 20},
				Collected: &console.Collected{Time: time.Date(2026, 11, 1, 2, 3, 4, 0, time.UTC), Files: 7},
				Archive:   console.Archive{To: "gs://bucket/p", Sessions: 1000, Undeleted: 2, Failing: time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC), Error: "out of <reach>"},
			}, nil
		},
	})}
}

// TestLog checks that admins, and nobody else, are shown how the log stands.
func TestLog(t *testing.T) {
	h := newHouse(t)
	page := h.do("root", "GET", "/log", "")
	for _, want := range []string{
		"1234 sessions", "5 sessions", "2.0 GiB: large blocks 1.5 GiB, tables 512.0 MiB", "3.0 GiB, of which 256.0 MiB must stay free",
		"2026-11-01 02:03:04 UTC</time>: 7 files were freed", "gs://bucket/p", "1000 sessions", "2 objects", "2026-11-02 00:00:00 UTC</time>: out of &lt;reach&gt;",
	} {
		if !strings.Contains(page.Body.String(), want) {
			t.Errorf("not on the page: %s\n%s", want, page.Body)
		}
	}
	var r console.Recorded
	if w := h.do("root", "GET", "/api/v1/log", ""); json.Unmarshal(w.Body.Bytes(), &r) != nil || r.Free != 3<<30 || r.Archive.Sessions != 1000 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if list := h.do("root", "GET", "/requests", "").Body.String(); !strings.Contains(list, `href="/log"`) {
		t.Errorf("an admin does not find the page: %s", list)
	}
	for _, path := range []string{"/log", "/api/v1/log"} {
		if w := h.do("grace", "GET", path, ""); w.Code != http.StatusForbidden || strings.Contains(w.Body.String(), "bucket") {
			t.Errorf("%s, to who is no admin: %d %s", path, w.Code, w.Body)
		}
	}
	if list := h.do("grace", "GET", "/requests", "").Body.String(); strings.Contains(list, `href="/log"`) {
		t.Errorf("who is no admin is led to it: %s", list)
	}
}

// do makes a request as somebody; header has pairs.
func (h *house) do(as, method, path, body string, header ...string) *httptest.ResponseRecorder {
	h.t.Helper()
	r := httptest.NewRequest(method, "https://broker.example.com"+path, strings.NewReader(body))
	r.TLS = &tls.ConnectionState{}
	r.Header.Set("X-Test", as)
	if strings.HasPrefix(body, "{") {
		r.Header.Set("Content-Type", "application/json")
	} else {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// ask makes a request of somebody's and returns its id.
func (h *house) ask(as, reason string) string {
	h.t.Helper()
	b, _ := json.Marshal(console.Ask{Server: "prod", Reason: reason})
	w := h.do(as, "POST", "/api/v1/requests", string(b))
	var r grant.Request
	if w.Code != http.StatusOK || json.Unmarshal(w.Body.Bytes(), &r) != nil {
		h.t.Fatalf("%d %s", w.Code, w.Body)
	}
	return r.ID
}

func (h *house) state(id string) grant.State {
	h.t.Helper()
	r, err := h.desk.Request(h.t.Context(), id, people["root"])
	if err != nil {
		h.t.Fatal(err)
	}
	return r.State
}

const approve = "decision=approve"

// TestCrossSite checks that nobody's browser can be made to decide by another
// site.
func TestCrossSite(t *testing.T) {
	h := newHouse(t)
	id := h.ask("ada", "x")
	for name, header := range map[string][]string{
		"a form of another site":      {"Sec-Fetch-Site", "cross-site", "Origin", "https://evil.example.com"},
		"a sibling host":              {"Sec-Fetch-Site", "same-site", "Origin", "https://evil.broker.example.com"},
		"an old browser, by Origin":   {"Origin", "https://evil.example.com"},
		"a sandboxed frame":           {"Sec-Fetch-Site", "cross-site", "Origin", "null"},
		"an old browser, null Origin": {"Origin", "null"},
	} {
		for _, path := range []string{"/requests/" + id, "/access/prod", "/grants/gr-x/revoke"} {
			if w := h.do("grace", "POST", path, approve, header...); w.Code != http.StatusForbidden {
				t.Errorf("%s: POST %s: %d", name, path, w.Code)
			}
		}
		if w := h.do("grace", "POST", "/api/v1/requests/"+id+"/decision", `{"approve":true}`, header...); w.Code != http.StatusForbidden {
			t.Errorf("%s: the API: %d", name, w.Code)
		}
	}
	if w := h.do("grace", "GET", "/requests/"+id+"?decision=approve", ""); w.Code != http.StatusOK || h.state(id) != grant.Pending {
		t.Errorf("a GET decides: %d, %s", w.Code, h.state(id))
	}
	if w := h.do("grace", "POST", "/requests/"+id, approve, "Sec-Fetch-Site", "same-origin", "Origin", "https://broker.example.com"); w.Code != http.StatusSeeOther || h.state(id) != grant.Granted {
		t.Errorf("the page's own form: %d, %s", w.Code, h.state(id))
	}
}

// TestOneself checks that nobody approves what is their own, by any way.
func TestOneself(t *testing.T) {
	h := newHouse(t)
	id := h.ask("ada", "x")
	for _, as := range []string{"ada", "ADA"} {
		if w := h.do(as, "POST", "/requests/"+id, approve); w.Code != http.StatusForbidden {
			t.Errorf("%s on the page: %d", as, w.Code)
		}
		if w := h.do(as, "POST", "/api/v1/requests/"+id+"/decision", `{"approve":true}`); w.Code != http.StatusForbidden {
			t.Errorf("%s by the API: %d", as, w.Code)
		}
		if w := h.do(as, "GET", "/requests/"+id, ""); strings.Contains(w.Body.String(), "Approve") {
			t.Errorf("%s is offered to approve", as)
		}
	}
	if h.state(id) != grant.Pending {
		t.Errorf("the request is %s", h.state(id))
	}
}

// TestViewed checks that who looks is on record, once.
func TestViewed(t *testing.T) {
	h := newHouse(t)
	id := h.ask("ada", "x")
	for _, as := range []string{"ada", "grace", "grace", "root"} {
		h.do(as, "GET", "/requests/"+id, "")
	}
	var viewed []string
	for e, err := range h.store.Events(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Type == grant.RequestViewed {
			viewed = append(viewed, e.Actor)
		}
	}
	if len(viewed) != 1 || viewed[0] != "grace" {
		t.Errorf("on record is that %v looked", viewed)
	}
}

// TestStrangers checks what others learn: nothing.
func TestStrangers(t *testing.T) {
	h := newHouse(t)
	id := h.ask("ada", "secret plans")
	for _, path := range []string{"/requests/" + id, "/api/v1/requests/" + id, "/requests/req-0000000000", "/access/prod"} {
		if w := h.do("eve", "GET", path, ""); w.Code != http.StatusNotFound || strings.Contains(w.Body.String(), "plans") {
			t.Errorf("GET %s: %d %s", path, w.Code, w.Body)
		}
	}
	for _, path := range []string{"/requests", "/api/v1/requests?all=1", "/api/v1/grants?all=1"} {
		if w := h.do("eve", "GET", path, ""); w.Code != http.StatusOK || strings.Contains(w.Body.String(), "plans") {
			t.Errorf("GET %s: %d %s", path, w.Code, w.Body)
		}
	}
	if w := h.do("eve", "POST", "/requests/"+id, approve); w.Code != http.StatusNotFound {
		t.Errorf("eve decides: %d", w.Code)
	}
	if w := h.do("eve", "GET", "/api/v1/disabled", ""); w.Code != http.StatusForbidden {
		t.Errorf("eve lists who is disabled: %d", w.Code)
	}
	// Who is nobody is sent to sign in, or told so.
	w := h.do("", "GET", "/requests/"+id+"?x=1", "")
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/login?"+(url.Values{"next": {"/requests/" + id + "?x=1"}}).Encode() {
		t.Errorf("nobody: %d to %s", w.Code, w.Header().Get("Location"))
	}
	if w := h.do("", "POST", "/requests/"+id, approve); w.Code != http.StatusUnauthorized {
		t.Errorf("nobody decides: %d", w.Code)
	}
	if w := h.do("", "GET", "/api/v1/me", ""); w.Code != http.StatusUnauthorized || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("nobody at the API: %d", w.Code)
	}
}

// TestEscaping checks that what people write stays text, and that no script runs.
func TestEscaping(t *testing.T) {
	h := newHouse(t)
	id := h.ask("script", `"><img src=x onerror=alert(1)>`)
	for _, path := range []string{"/requests/" + id, "/requests"} {
		w := h.do("grace", "GET", path, "")
		if text := w.Body.String(); w.Code != http.StatusOK || strings.Contains(text, "<img") || strings.Contains(text, "<script") || !strings.Contains(text, "&lt;script&gt;") {
			t.Errorf("GET %s: %d %s", path, w.Code, text)
		}
		if got := w.Header().Get("Content-Security-Policy"); !strings.Contains(got, "default-src 'none'") || strings.Contains(got, "script-src") || !strings.Contains(got, "frame-ancestors 'none'") {
			t.Errorf("GET %s: policy %q", path, got)
		}
	}
}

// TestForms is the way of somebody without JavaScript: ask, be approved, revoke.
func TestForms(t *testing.T) {
	h := newHouse(t)
	if w := h.do("ada", "GET", "/access/prod", ""); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `action="/access/prod"`) {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	for form, want := range map[string]string{"reason=": "a reason is required", "reason=x&duration=soon": "a duration is written like", "reason=x&duration=9h": "longer than the rule allows", "reason=x&break_glass=yes": "does not let you break"} {
		if w := h.do("ada", "POST", "/access/prod", form); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s", form, w.Code, w.Body)
		}
	}
	w := h.do("ada", "POST", "/access/prod", "reason=OPS-1&duration=30m")
	page := w.Header().Get("Location")
	if w.Code != http.StatusSeeOther || !strings.HasPrefix(page, "/requests/req-") {
		t.Fatalf("%d to %s: %s", w.Code, page, w.Body)
	}
	if w := h.do("ada", "GET", page, ""); !strings.Contains(w.Body.String(), "Waits for a decision") {
		t.Errorf("%s", w.Body)
	}
	if w := h.do("grace", "POST", page, "decision=perhaps"); w.Code != http.StatusBadRequest {
		t.Errorf("perhaps: %d", w.Code)
	}
	if w := h.do("grace", "POST", page, "decision=approve&comment=go+on"); w.Code != http.StatusSeeOther {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if w := h.do("ada", "GET", page, ""); !strings.Contains(w.Body.String(), "grace approved") || !strings.Contains(w.Body.String(), "via web: go on") {
		t.Errorf("%s", w.Body)
	}
	if w := h.do("grace", "POST", page, approve); w.Code != http.StatusConflict {
		t.Errorf("twice: %d", w.Code)
	}
	use := h.desk.Find("ada", "prod", "prod", "")
	if use == nil || time.Until(use.Until).Round(time.Minute) != 30*time.Minute {
		t.Fatalf("the grant is %+v", use)
	}
	if w := h.do("eve", "POST", "/grants/"+use.ID+"/revoke", ""); w.Code != http.StatusNotFound {
		t.Errorf("eve revokes: %d", w.Code)
	}
	if w := h.do("grace", "POST", "/grants/"+use.ID+"/revoke", ""); w.Code != http.StatusSeeOther || use.Cause() != grant.ErrRevoked {
		t.Errorf("%d, %v", w.Code, use.Cause())
	}
}

// TestBodies checks what is no request at all.
func TestBodies(t *testing.T) {
	h := newHouse(t)
	for _, body := range []string{"", "{", `{"server":"prod","raeson":"x"}`, `{"server":"prod","reason":"` + strings.Repeat("x", 100<<10) + `"}`, `{"server":"prod","reason":"x","duration":-1}`} {
		if w := h.do("ada", "POST", "/api/v1/requests", body); w.Code != http.StatusBadRequest {
			t.Errorf("%.40s: %d %s", body, w.Code, w.Body)
		}
	}
	if w := h.do("eve", "POST", "/api/v1/requests", `{"server":"prod","reason":"x"}`); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "no rule lets you") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
