package notice_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
	"example.com/broker/broker/notice"
	"example.com/broker/broker/policy"
)

var (
	ada   = identity.Identity{Subject: "ada", Groups: []string{"analysts"}}
	grace = identity.Identity{Subject: "grace", Groups: []string{"leads"}}
	quiet = slog.New(slog.DiscardHandler)
)

// A house is a desk with its store, and policies to ask by.
type house struct {
	t     *testing.T
	store *grant.BadgerStore
	desk  *grant.Desk
}

func newHouse(t *testing.T) *house {
	store, err := grant.OpenBadger(t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	desk, err := grant.Open(t.Context(), grant.Options{Store: store})
	if err != nil {
		t.Fatal(err)
	}
	return &house{t, store, desk}
}

// ask makes a request of ada's; native says whether buttons count.
func (h *house) ask(reason string, native, breakGlass bool) grant.Request {
	h.t.Helper()
	p, err := policy.Compile([]policy.Rule{{
		Name: "prod", Groups: []string{"analysts"}, Servers: []string{"*"}, Access: policy.Approval,
		Asking: policy.Asking{Approvers: policy.Approvers{Groups: []string{"leads", "analysts"}}, Native: native, BreakGlass: []string{"analysts"}},
	}})
	if err != nil {
		h.t.Fatal(err)
	}
	r, err := h.desk.Ask(h.t.Context(), grant.Ask{By: ada, Server: "prod", Terms: p.Decide(ada, "prod"), Reason: reason, BreakGlass: breakGlass})
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// follow runs a follower until the test ends or stop is called.
func (h *house) follow(name string, all bool, s notice.Sink) (stop func()) {
	ctx, cancel := context.WithCancel(h.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := h.desk.Follow(ctx, name, all, s); err != nil {
			h.t.Error(err)
		}
	}()
	stop = func() { cancel(); <-done }
	h.t.Cleanup(stop)
	if !all {
		until(h.t, "it knows where to start", func() bool {
			_, err := h.store.Record(context.Background(), grant.Cursors, name)
			return err == nil
		})
	}
	return stop
}

func (h *house) events(kind string) (list []grant.Event) {
	for e, err := range h.store.Events(context.Background(), 0) {
		if err != nil {
			h.t.Fatal(err)
		}
		if e.Type == kind {
			list = append(list, e)
		}
	}
	return list
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never happens that %s", what)
		}
	}
}

// TestFollow checks that a follower gets every event in order, whatever fails,
// and goes on where it was.
func TestFollow(t *testing.T) {
	h := newHouse(t)
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	var mu sync.Mutex
	failures := 2
	sink := func(ctx context.Context, events []grant.Event) error {
		mu.Lock()
		defer mu.Unlock()
		if failures > 0 {
			failures--
			return errors.New("not now")
		}
		return notice.File(file)(ctx, events)
	}
	read := func() (seqs []uint64) {
		text, _ := os.ReadFile(file)
		for line := range strings.Lines(string(text)) {
			var e grant.Event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatal(err)
			}
			if e.Schema != 1 || e.Type == "" || e.Time.IsZero() {
				t.Errorf("an event is %+v", e)
			}
			seqs = append(seqs, e.Seq)
		}
		return seqs
	}
	for range 150 {
		if err := h.desk.Record(t.Context(), grant.Event{Type: grant.SignedIn, Subject: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	stop := h.follow("audit/file", true, sink)
	until(t, "all are there", func() bool { return len(read()) == 150 })
	stop()
	h.ask("while nobody looks", false, false)
	h.follow("audit/file", true, sink)
	until(t, "the rest is there", func() bool { return len(read()) == 151 })
	want := make([]uint64, 151)
	for i := range want {
		want[i] = uint64(i + 1)
	}
	if got := read(); !slices.Equal(got, want) {
		t.Errorf("the events are %v", got)
	}
	if info, _ := os.Stat(file); info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v", info.Mode())
	}
	// One that is new and does not want all starts with the next.
	var got []string
	h.follow("channel/x", false, func(_ context.Context, events []grant.Event) error {
		mu.Lock()
		defer mu.Unlock()
		for _, e := range events {
			got = append(got, e.Type)
		}
		return nil
	})
	h.desk.Record(t.Context(), grant.Event{Type: grant.SignedIn})
	until(t, "it sees the next", func() bool { mu.Lock(); defer mu.Unlock(); return len(got) > 0 })
	if got[0] != grant.SignedIn || len(got) != 1 {
		t.Errorf("it sees %v", got)
	}
}

// A receiver is somebody's webhook.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	bodies []string
	ids    []string
	fail   int
	bad    error
}

const secret = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

func newReceiver(t *testing.T) *receiver {
	w, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		r.mu.Lock()
		defer r.mu.Unlock()
		if err := w.Verify(body, req.Header); err != nil {
			r.bad = err
		}
		r.ids = append(r.ids, req.Header.Get("webhook-id"))
		if r.fail > 0 {
			r.fail--
			rw.WriteHeader(http.StatusBadGateway)
			return
		}
		r.bodies = append(r.bodies, string(body))
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) got() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.bodies)
}

func webhook(t *testing.T, o notice.WebhookOptions) *notice.Webhook {
	t.Helper()
	w, err := notice.NewWebhook(o)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestWebhook checks what a webhook gets of a request, signed, and again when it
// has failed.
func TestWebhook(t *testing.T) {
	h, r := newHouse(t), newReceiver(t)
	r.fail = 1
	h.follow("channel/hook", false, notice.To(h.desk, "https://broker.example.com", "hook", webhook(t, notice.WebhookOptions{URL: r.URL, Secret: secret}), quiet))
	req := h.ask(`OPS-1 "quoted" <b>`, false, false)
	until(t, "it is told", func() bool { return len(r.got()) == 1 })
	if _, err := h.desk.Decide(t.Context(), req.ID, grace, grant.Vote{Yes: true}); err != nil {
		t.Fatal(err)
	}
	until(t, "it is told the outcome", func() bool { return len(r.got()) == 2 })
	var first, second struct {
		Type string
		Data notice.Notice
	}
	json.Unmarshal([]byte(r.got()[0]), &first)
	json.Unmarshal([]byte(r.got()[1]), &second)
	if first.Type != grant.RequestCreated || first.Data.URL != "https://broker.example.com/requests/"+req.ID || !strings.Contains(first.Data.Text, `ada asks for access to prod for 1h0m0s. Reason: OPS-1 "quoted" <b>`) {
		t.Errorf("first %+v", first)
	}
	if second.Type != grant.GrantStarted || !strings.Contains(second.Data.Text, "granted for ada by grace") {
		t.Errorf("second %+v", second)
	}
	r.mu.Lock()
	if r.bad != nil || r.ids[0] != r.ids[1] || r.ids[1] == r.ids[2] {
		t.Errorf("%v, ids %v", r.bad, r.ids)
	}
	r.mu.Unlock()
	until(t, "the deliveries are on record", func() bool { return len(h.events(grant.NoticeDelivered)) == 2 })
	h.ask("fire", false, true)
	until(t, "everybody is told", func() bool { return len(r.got()) == 3 })
	if got := r.got()[2]; !strings.Contains(got, "BREAK-GLASS: ada has taken") {
		t.Errorf("%s", got)
	}
}

// TestFormats checks that a chat's body is JSON, whatever somebody writes.
func TestFormats(t *testing.T) {
	n := notice.Notice{URL: `https://x/"`, Text: "a \"quote\", a \\ and a\nline </script> é \u2028"}
	for name := range notice.Formats {
		var got string
		server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			got = string(b)
		}))
		if err := webhook(t, notice.WebhookOptions{URL: server.URL, Format: name}).Tell(t.Context(), n); err != nil {
			t.Error(err)
		}
		server.Close()
		var v any
		if err := json.Unmarshal([]byte(got), &v); err != nil {
			t.Errorf("%s: %v in %s", name, err, got)
		}
		back, _ := json.Marshal(v)
		text, _ := json.Marshal(n.Text)
		if !bytes.Contains(back, text[1:len(text)-1]) {
			t.Errorf("%s: %s does not hold the text", name, back)
		}
	}
	for _, bad := range []notice.WebhookOptions{{Format: "x"}, {Secret: "not base64!"}} {
		if _, err := notice.NewWebhook(bad); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}

// TestDeadChannel checks that a channel that hangs delays neither another one nor
// a decision, and that its error shows no URL.
func TestDeadChannel(t *testing.T) {
	h, r := newHouse(t), newReceiver(t)
	hang := make(chan struct{})
	dead := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	defer dead.Close()
	defer close(hang)
	h.follow("channel/dead", false, notice.To(h.desk, "https://b", "dead", webhook(t, notice.WebhookOptions{URL: dead.URL}), quiet))
	h.follow("channel/hook", false, notice.To(h.desk, "https://b", "hook", webhook(t, notice.WebhookOptions{URL: r.URL, Secret: secret}), quiet))
	req := h.ask("x", false, false)
	until(t, "the other is told", func() bool { return len(r.got()) == 1 })
	if got, err := h.desk.Decide(t.Context(), req.ID, grace, grant.Vote{Yes: true}); err != nil || got.State != grant.Granted {
		t.Errorf("%+v, %v", got, err)
	}
	gone := httptest.NewServer(nil)
	gone.Close()
	if err := webhook(t, notice.WebhookOptions{URL: gone.URL + "/secret-path"}).Tell(t.Context(), notice.Notice{}); err == nil || strings.Contains(err.Error(), "secret-path") {
		t.Errorf("the error is %v", err)
	}
}

// TestGivenUp checks that a channel that never delivers is left, on record.
func TestGivenUp(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 15 s")
	}
	h := newHouse(t)
	h.follow("channel/x", false, notice.To(h.desk, "https://b", "x", failing{}, quiet))
	h.ask("x", false, false)
	until(t, "it is given up", func() bool { return len(h.events(grant.NoticeFailed)) == 1 })
}

type failing struct{}

func (failing) Tell(context.Context, notice.Notice) error { return errors.New("never") }

// A slackAPI plays Slack's.
type slackAPI struct {
	*httptest.Server
	mu    sync.Mutex
	calls []url.Values // with the method as "method"
}

func newSlackAPI(t *testing.T) *slackAPI {
	s := &slackAPI{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		s.mu.Lock()
		defer s.mu.Unlock()
		form := r.Form
		form.Set("method", strings.TrimPrefix(r.URL.Path, "/"))
		s.calls = append(s.calls, form)
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"ok":true,"channel":"C1","ts":"17.%d"}`, len(s.calls))
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *slackAPI) got() []url.Values {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// press is what Slack sends when somebody presses a button.
func press(user, action, request string, key string, at time.Time) *http.Request {
	payload, _ := json.Marshal(map[string]any{
		"type": "block_actions", "user": map[string]string{"id": user}, "channel": map[string]string{"id": "C1"},
		"actions": []map[string]string{{"type": "button", "action_id": action, "value": request, "block_id": "b"}},
	})
	body := url.Values{"payload": {string(payload)}}.Encode()
	r := httptest.NewRequest("POST", "/slack/actions", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("X-Slack-Request-Timestamp", fmt.Sprint(at.Unix()))
	mac := hmac.New(sha256.New, []byte(key))
	fmt.Fprintf(mac, "v0:%d:%s", at.Unix(), body)
	r.Header.Set("X-Slack-Signature", "v0="+hex.EncodeToString(mac.Sum(nil)))
	return r
}

func TestSlack(t *testing.T) {
	h, api := newHouse(t), newSlackAPI(t)
	s := notice.NewSlack(notice.SlackOptions{
		Token: "xoxb-1", Channel: "C1", Secret: "signing", API: api.URL + "/", Log: quiet,
		Users: map[string]identity.Identity{"U1": grace, "U2": ada},
	}, h.desk)
	h.follow("channel/slack", false, notice.To(h.desk, "https://broker.example.com", "slack", s, quiet))

	// By default the message links, and has no button that decides.
	linked := h.ask("<!channel> OPS-1", false, false)
	until(t, "a message is posted", func() bool { return len(api.got()) == 1 })
	first := api.got()[0]
	if first.Get("method") != "chat.postMessage" || !strings.Contains(first.Get("blocks"), "https://broker.example.com/requests/"+linked.ID) || strings.Contains(first.Get("blocks"), `"approve"`) {
		t.Errorf("the message is %v", first)
	}
	if strings.Contains(first.Get("text"), "<!channel>") || !strings.Contains(first.Get("blocks"), `"plain_text"`) {
		t.Errorf("a reason can mention everybody: %v", first)
	}
	do := func(r *http.Request) int {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		return w.Code
	}
	state := func(id string) grant.State {
		r, err := h.desk.Lookup(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return r.State
	}
	now := time.Now()
	do(press("U1", "approve", linked.ID, "signing", now))
	if state(linked.ID) != grant.Pending {
		t.Error("a press counts for a rule that does not allow it")
	}
	if _, err := h.desk.Decide(t.Context(), linked.ID, grace, grant.Vote{Yes: true, Via: "web"}); err != nil {
		t.Fatal(err)
	}
	until(t, "the message is updated", func() bool {
		calls := api.got()
		last := calls[len(calls)-1]
		return last.Get("method") == "chat.update" && last.Get("ts") == "17.1" && strings.Contains(last.Get("blocks"), "granted for ada by grace")
	})

	native := h.ask("OPS-2", true, false)
	until(t, "there are buttons", func() bool {
		calls := api.got()
		return strings.Contains(calls[len(calls)-1].Get("blocks"), `"approve"`)
	})
	for name, tt := range map[string]struct {
		r    *http.Request
		want int
	}{
		"another key":  {press("U1", "approve", native.ID, "x", now), http.StatusUnauthorized},
		"old":          {press("U1", "approve", native.ID, "signing", now.Add(-10*time.Minute)), http.StatusUnauthorized},
		"nobody":       {press("U9", "approve", native.ID, "signing", now), http.StatusOK},
		"oneself":      {press("U2", "approve", native.ID, "signing", now), http.StatusOK},
		"another word": {press("U1", "approved", native.ID, "signing", now), http.StatusOK},
		"no signature": {httptest.NewRequest("POST", "/slack/actions", strings.NewReader("payload={}")), http.StatusUnauthorized},
	} {
		if got := do(tt.r); got != tt.want || state(native.ID) != grant.Pending {
			t.Errorf("%s: %d, the request is %s", name, got, state(native.ID))
		}
	}
	if got := do(press("U1", "approve", native.ID, "signing", now)); got != http.StatusOK || state(native.ID) != grant.Granted {
		t.Errorf("%d, the request is %s", got, state(native.ID))
	}
	r, _ := h.desk.Lookup(t.Context(), native.ID)
	if d := r.Decisions[0]; d.By != "grace" || d.Via != "slack" {
		t.Errorf("the decision is %+v", d)
	}
	if e := h.events(grant.RequestApproved); e[len(e)-1].Via != "slack" {
		t.Errorf("on record is %+v", e)
	}
}
