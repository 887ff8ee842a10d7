package broker

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"example.com/broker/broker/console"
	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
	"example.com/broker/broker/policy"
	"example.com/broker/recorder"
	"example.com/broker/stream"
)

// browser is an HTTP client with a certificate of a subject, or with none.
func (h *harness) browser(t *testing.T, subject string, groups ...string) *http.Client {
	t.Helper()
	c := &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", NextProtos: []string{"http/1.1"}}
	if subject != "" {
		key, err := identity.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		der, err := h.ca.IssueUser(identity.Identity{Subject: subject, Groups: groups}, key.Public(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		c.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: c}}
	t.Cleanup(client.CloseIdleConnections)
	return client
}

func (h *harness) base() string { return "https://" + h.listener.Addr().String() + recordingsPath }

// TestLogPage checks that an admin sees how the log of this broker stands.
func TestLogPage(t *testing.T) {
	h, stop := newHarness(t, Limits{}, allowAll)
	defer stop()
	for subject, want := range map[string]int{"root": http.StatusOK, "ada": http.StatusForbidden} {
		r, err := h.browser(t, subject).Get("https://" + h.listener.Addr().String() + "/api/v1/log")
		if err != nil {
			t.Fatal(err)
		}
		var got console.Recorded
		err = json.NewDecoder(r.Body).Decode(&got)
		r.Body.Close()
		if r.StatusCode != want || err != nil || (want == http.StatusOK) != (got.Free > 0 && got.Bytes.All() > 0 && got.Unavailable == "") {
			t.Errorf("%s gets %s, %+v, %v", subject, r.Status, got, err)
		}
	}
}

// TestAuditors checks who may read recordings over HTTP, and that what they get is
// no page.
func TestAuditors(t *testing.T) {
	h, stop := newHarness(t, Limits{}, allowAll)
	defer stop()
	c := h.dial(t, "ada", "cat", stream.Dial)
	defer c.Close()
	io.WriteString(c, `{"jsonrpc":"2.0","method":"notifications/x","params":{"html":"<script>alert(1)</script>"}}`+"\n")
	io.ReadFull(c, make([]byte, 10))
	get := func(client *http.Client, path string) *http.Response {
		t.Helper()
		r, err := client.Get(h.base() + path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Body.Close() })
		return r
	}
	olga := h.browser(t, "olga", "audit")
	if r := get(olga, "/sessions"); r.StatusCode != 403 {
		t.Errorf("without auditors, somebody gets %d", r.StatusCode)
	}
	h.SetAuditors(policy.Approvers{Groups: []string{"audit"}})
	session := ""
	for s, err := range recorder.NewRemote(h.base(), olga).Sessions(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		session = s.ID
	}
	for _, path := range []string{"/sessions", "/sessions/" + session, "/sessions/" + session + "/blocks", "/sessions/" + session + "/proof", "/leaves", "/checkpoint"} {
		if r := get(h.browser(t, ""), path); r.StatusCode != 401 {
			t.Errorf("%s: without a certificate, %d", path, r.StatusCode)
		}
		for _, who := range []string{"ada", "root"} { // whose session it is, and an admin
			if r := get(h.browser(t, who), path); r.StatusCode != 403 {
				t.Errorf("%s: %s gets %d", path, who, r.StatusCode)
			}
		}
		r := get(olga, path)
		if r.StatusCode == 401 || r.StatusCode == 403 {
			t.Errorf("%s: an auditor gets %d", path, r.StatusCode)
		}
		if r.StatusCode == 200 && (r.Header.Get("Content-Type") != "application/octet-stream" || r.Header.Get("X-Content-Type-Options") != "nosniff") {
			t.Errorf("%s: a browser may take it for %q", path, r.Header.Get("Content-Type"))
		}
	}
	if err := h.desk.Disable(t.Context(), grant.User, "olga", identity.Identity{Subject: "root"}, ""); err != nil {
		t.Fatal(err)
	}
	if r := get(olga, "/sessions"); r.StatusCode != 401 {
		t.Errorf("who is disabled gets %d", r.StatusCode)
	}
}

// TestAuditorEnds checks that who is no auditor any more gets no frame more of a
// session that is followed.
func TestAuditorEnds(t *testing.T) {
	h, stop := newHarness(t, Limits{}, allowAll)
	defer stop()
	h.SetAuditors(policy.Approvers{Users: []string{"olga"}})
	rec, err := h.log.Start(recorder.Session{Subject: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	if err := rec.Append(recorder.Frame{Bytes: []byte("before")}); err != nil {
		t.Fatal(err)
	}
	got := ""
	for f, err := range recorder.NewRemote(h.base(), h.browser(t, "olga")).Follow(t.Context(), rec.ID()) {
		if errors.Is(err, recorder.ErrMore) {
			h.SetAuditors(policy.Approvers{})
			if err := rec.Append(recorder.Frame{Bytes: []byte("after")}); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err != nil {
			break
		}
		got += string(f.Bytes)
	}
	if got != "before" {
		t.Errorf("got %q", got)
	}
	rec.End(recorder.Ended, "")
	// Each reading is an event.
	events := ""
	for e, err := range h.store.Events(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		events += e.Type + " " + e.Actor + " " + e.Subject + " " + e.Via + "\n"
	}
	if n := strings.Count(events, "session.replayed olga ada api\n"); n != 1 {
		t.Errorf("events are\n%s", events)
	}
}
