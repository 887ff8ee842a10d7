package grant

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/broker/broker/identity"
	"example.com/broker/broker/policy"
)

var (
	ada   = identity.Identity{Subject: "ada", Groups: []string{"analysts"}}
	grace = identity.Identity{Subject: "grace", Groups: []string{"leads"}}
	kate  = identity.Identity{Subject: "kate", Groups: []string{"leads", "analysts"}}
	eve   = identity.Identity{Subject: "eve", Groups: []string{"analysts"}}
	root  = identity.Identity{Subject: "root", Groups: []string{"security"}}
)

// terms are those of a rule by which by may ask for bigquery; change may alter it.
func terms(t testing.TB, by identity.Identity, change func(*policy.Rule)) *policy.Terms {
	t.Helper()
	r := policy.Rule{
		Name: "ask", Users: []string{"*"}, Servers: []string{"*"}, Access: policy.Approval, Duration: time.Hour,
		Asking: policy.Asking{Approvers: policy.Approvers{Groups: []string{"leads"}}, MaxDuration: 4 * time.Hour, BreakGlass: []string{"oncall"}},
	}
	if change != nil {
		change(&r)
	}
	p, err := policy.Compile([]policy.Rule{r})
	if err != nil {
		t.Fatal(err)
	}
	return p.Decide(by, "bigquery")
}

type desk struct {
	*Desk
	t     testing.TB
	store *memoryStore
}

// newDesk returns a desk of which root is an admin, over store or a new one.
func newDesk(t testing.TB, ctx context.Context, store *memoryStore) *desk {
	if store == nil {
		store = newMemoryStore()
	}
	d, err := Open(ctx, Options{Store: store, Admins: policy.Approvers{Groups: []string{"security"}}})
	if err != nil {
		t.Fatal(err)
	}
	return &desk{d, t, store}
}

// ask makes a request of ada's.
func (d *desk) ask(change func(*policy.Rule), alter ...func(*Ask)) Request {
	d.t.Helper()
	a := Ask{By: ada, Server: "bigquery", Terms: terms(d.t, ada, change), Reason: "OPS-1"}
	for _, f := range alter {
		f(&a)
	}
	r, err := d.Ask(d.t.Context(), a)
	if err != nil {
		d.t.Fatal(err)
	}
	return r
}

// bubble runs a test in which time is not real. The context of its desks is
// done at the end, with which their timers go.
func bubble(t *testing.T, test func(t *testing.T, ctx context.Context)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		defer synctest.Wait()
		defer cancel()
		test(t, ctx)
	})
}

func TestApprovedUsedExpired(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context) {
		d := newDesk(t, ctx, nil)
		r := d.ask(nil, func(a *Ask) { a.Duration = 2 * time.Hour; a.Source = netip.MustParseAddr("10.1.2.3") })
		if r.State != Pending || d.Find("ada", "bigquery", "ask", "") != nil {
			t.Fatalf("a request gives access: %+v", r)
		}
		awaited := make(chan *Use, 1)
		go func() {
			u, _ := d.Await(ctx, "ada", "bigquery", "ask")
			awaited <- u
		}()
		synctest.Wait()
		r, err := d.Decide(ctx, r.ID, grace, Vote{Yes: true, Comment: "ok", Via: "cli"})
		if err != nil || r.State != Granted || r.Grant == "" {
			t.Fatalf("Decide: %+v, %v", r, err)
		}
		u := <-awaited
		for _, other := range [][4]string{{"eve", "bigquery", "ask", ""}, {"ada", "sheets", "ask", ""}, {"ada", "bigquery", "other", ""}, {"ada", "bigquery", "ask", "digest"}} {
			if d.Find(other[0], other[1], other[2], other[3]) != nil {
				t.Errorf("the grant is good for %q", other)
			}
		}
		time.Sleep(2*time.Hour - time.Second)
		if u.Cause() != nil || d.Find("ada", "bigquery", "ask", "") != u {
			t.Fatal("the grant ends early")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if !errors.Is(u.Cause(), ErrExpired) || d.Find("ada", "bigquery", "ask", "") != nil {
			t.Fatalf("the grant goes on, cause %v", u.Cause())
		}
		want := []string{RequestCreated, RequestApproved, GrantStarted, GrantExpired}
		if got := d.store.types(); !slices.Equal(got, want) {
			t.Errorf("events are %q, want %q", got, want)
		}
		if g, _ := d.Grants(ctx, ada, true, 10); len(g) != 1 || g[0].State != Expired {
			t.Errorf("grants are %+v", g)
		}
	})
}

func TestDecide(t *testing.T) {
	two := func(r *policy.Rule) { r.Asking.Approvers.Count = 2 }
	vote := func(by identity.Identity, yes bool) func(*desk, Request) error {
		return func(d *desk, r Request) error {
			_, err := d.Decide(context.Background(), r.ID, by, Vote{Yes: yes})
			return err
		}
	}
	adaLead := identity.Identity{Subject: "ADA", Groups: []string{"leads"}}
	tests := []struct {
		name  string
		rule  func(*policy.Rule)
		steps []func(*desk, Request) error
		errs  []error
		want  State
	}{
		{"yes", nil, []func(*desk, Request) error{vote(grace, true)}, []error{nil}, Granted},
		{"no", nil, []func(*desk, Request) error{vote(grace, false)}, []error{nil}, Denied},
		{"one no of two is enough", two, []func(*desk, Request) error{vote(grace, true), vote(kate, false)}, []error{nil, nil}, Denied},
		{"two of two", two, []func(*desk, Request) error{vote(grace, true), vote(kate, true)}, []error{nil, nil}, Granted},
		{"one of two", two, []func(*desk, Request) error{vote(grace, true)}, []error{nil}, Pending},
		{"twice the same", two, []func(*desk, Request) error{vote(grace, true), vote(grace, true)}, []error{nil, ErrVoted}, Pending},
		{"twice the same in other case", two, []func(*desk, Request) error{vote(grace, true), vote(identity.Identity{Subject: "Grace", Groups: grace.Groups}, true)}, []error{nil, ErrVoted}, Pending},
		{"oneself as an approver", nil, []func(*desk, Request) error{vote(adaLead, true)}, []error{ErrOneself}, Pending},
		{"no approver learns nothing", nil, []func(*desk, Request) error{vote(eve, true)}, []error{ErrNotFound}, Pending},
		{"an admin is no approver", nil, []func(*desk, Request) error{vote(root, true)}, []error{ErrNotApprover}, Pending},
		{"after the decision", nil, []func(*desk, Request) error{vote(grace, false), vote(kate, true)}, []error{nil, &StateError{}}, Denied},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t, t.Context(), nil)
			defer d.Close()
			r := d.ask(tt.rule)
			for i, step := range tt.steps {
				err := step(d, r)
				var state *StateError
				if _, ok := tt.errs[i].(*StateError); ok && errors.As(err, &state) {
					continue
				}
				if !errors.Is(err, tt.errs[i]) {
					t.Errorf("step %d: %v, want %v", i, err, tt.errs[i])
				}
			}
			if r, err := d.Request(t.Context(), r.ID, ada); err != nil || r.State != tt.want {
				t.Errorf("request is %s (%v), want %s", r.State, err, tt.want)
			}
			if got := d.Find("ada", "bigquery", "ask", "") != nil; got != (tt.want == Granted) {
				t.Errorf("there is a grant: %v", got)
			}
		})
	}
}

// Two approvals at the same time count once each.
func TestDecideConcurrently(t *testing.T) {
	store, err := OpenBadger(t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	var started atomic.Int32
	d, err := Open(t.Context(), Options{Store: store, Told: func(e Event, _ *Request) {
		if e.Type == GrantStarted {
			started.Add(1)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r, err := d.Ask(t.Context(), Ask{By: ada, Server: "bigquery", Terms: terms(t, ada, func(r *policy.Rule) { r.Asking.Approvers.Count = 3 })})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var counted atomic.Int32
	for i := range 30 {
		wg.Go(func() {
			by := identity.Identity{Subject: fmt.Sprint("lead", i/10), Groups: []string{"leads"}}
			if _, err := d.Decide(t.Context(), r.ID, by, Vote{Yes: true}); err == nil {
				counted.Add(1)
			}
		})
	}
	wg.Wait()
	if counted.Load() != 3 || started.Load() != 1 {
		t.Errorf("%d votes counted and %d grants began, want 3 and 1", counted.Load(), started.Load())
	}
}

func TestLapse(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context) {
		d := newDesk(t, ctx, nil)
		r := d.ask(func(r *policy.Rule) { r.Asking.TTL = time.Hour })
		time.Sleep(time.Hour)
		synctest.Wait()
		var state *StateError
		if _, err := d.Decide(ctx, r.ID, grace, Vote{Yes: true}); !errors.As(err, &state) || state.State != Lapsed {
			t.Errorf("Decide after the request has lapsed: %v", err)
		}
		if got := d.store.types(); !slices.Equal(got, []string{RequestCreated, RequestLapsed}) {
			t.Errorf("events are %q", got)
		}
	})
}

func TestRevoke(t *testing.T) {
	tests := []struct {
		name string
		by   identity.Identity
		want error
	}{
		{"oneself", ada, nil},
		{"an approver", kate, nil},
		{"an admin", root, nil},
		{"anybody", eve, ErrNotFound},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t, t.Context(), nil)
			defer d.Close()
			r := d.ask(nil)
			r, err := d.Decide(t.Context(), r.ID, grace, Vote{Yes: true})
			if err != nil {
				t.Fatal(err)
			}
			u := d.Find("ada", "bigquery", "ask", "")
			if _, err := d.Revoke(t.Context(), r.Grant, tt.by, "enough", "cli"); !errors.Is(err, tt.want) {
				t.Fatalf("Revoke: %v, want %v", err, tt.want)
			}
			if tt.want != nil {
				if u.Cause() != nil {
					t.Error("the grant has ended")
				}
				return
			}
			<-u.Done()
			if !errors.Is(u.Cause(), ErrRevoked) || d.Find("ada", "bigquery", "ask", "") != nil {
				t.Errorf("after Revoke: cause %v", u.Cause())
			}
			var state *StateError
			if _, err := d.Revoke(t.Context(), r.Grant, tt.by, "", ""); !errors.As(err, &state) || state.State != Revoked {
				t.Errorf("Revoke again: %v", err)
			}
		})
	}
}

// The grant of a call is good for that call, once, for some minutes.
func TestSpend(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context) {
		d := newDesk(t, ctx, nil)
		grantCall := func(digest string) {
			r := d.ask(nil, func(a *Ask) { a.Call = &Call{Method: "tools/call", Name: "drop", Digest: digest}; a.Reason = "" })
			if _, err := d.Decide(ctx, r.ID, grace, Vote{Yes: true}); err != nil {
				t.Fatal(err)
			}
		}
		grantCall("abc")
		spend := func(subject, digest string) bool {
			ok, err := d.Spend(ctx, subject, "bigquery", "ask", digest, "s")
			if err != nil {
				t.Fatal(err)
			}
			return ok
		}
		if d.Find("ada", "bigquery", "ask", "") != nil {
			t.Error("the grant of a call gives access to the server")
		}
		if spend("ada", "abd") || spend("eve", "abc") || spend("ada", "") {
			t.Error("the grant is good for another call or subject")
		}
		var wg sync.WaitGroup
		var spent atomic.Int32
		for range 8 {
			wg.Go(func() {
				if spend("ada", "abc") {
					spent.Add(1)
				}
			})
		}
		wg.Wait()
		if spent.Load() != 1 {
			t.Errorf("the grant was used %d times, want once", spent.Load())
		}
		grantCall("abc")
		time.Sleep(callLife)
		synctest.Wait()
		if spend("ada", "abc") {
			t.Error("the grant of a call is good for ever")
		}
	})
}

func TestAsk(t *testing.T) {
	inGroup := func(a *Ask) { a.By = identity.Identity{Subject: "ada", Groups: []string{"oncall"}} }
	tests := []struct {
		name  string
		rule  func(*policy.Rule)
		alter func(*Ask)
		want  State  // if empty, an error
		how   string // or a part of the error
	}{
		{"plain", nil, nil, Pending, ""},
		{"auto", func(r *policy.Rule) { r.Asking.Auto = `reason.startsWith("OPS-")` }, nil, Granted, ByAuto},
		{"auto does not hold", func(r *policy.Rule) { r.Asking.Auto = `reason == "x"` }, nil, Pending, ""},
		{"nobody could approve", func(r *policy.Rule) {
			r.Asking.Auto = `reason == "x"`
			r.Asking.Approvers = policy.Approvers{}
		}, nil, "", "does not hold"},
		{"break glass", nil, func(a *Ask) { inGroup(a); a.BreakGlass = true }, Granted, ByBreakGlass},
		{"break glass without a reason", nil, func(a *Ask) { inGroup(a); a.BreakGlass = true; a.Reason = " " }, "", "reason is required"},
		{"break glass by anybody", nil, func(a *Ask) { a.BreakGlass = true }, "", "does not let you"},
		{"no reason", func(r *policy.Rule) { r.Asking.Reason = "required" }, func(a *Ask) { a.Reason = "" }, "", "reason is required"},
		{"too long", nil, func(a *Ask) { a.Duration = 5 * time.Hour }, "", "longer than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t, t.Context(), nil)
			defer d.Close()
			a := Ask{By: ada, Server: "bigquery", Reason: "OPS-1"}
			if tt.alter != nil {
				tt.alter(&a)
			}
			a.Terms = terms(t, a.By, tt.rule)
			r, err := d.Ask(t.Context(), a)
			if tt.want == "" {
				var mine *AskError
				if !errors.As(err, &mine) || !strings.Contains(err.Error(), tt.how) {
					t.Errorf("Ask: %+v, %v, want an error with %q", r, err, tt.how)
				}
				return
			}
			if err != nil || r.State != tt.want || r.How != tt.how {
				t.Errorf("Ask: %s %q (%v), want %s %q", r.State, r.How, err, tt.want, tt.how)
			}
		})
	}
	t.Run("twice is once", func(t *testing.T) {
		d := newDesk(t, t.Context(), nil)
		defer d.Close()
		if a, b := d.ask(nil), d.ask(nil); a.ID != b.ID {
			t.Errorf("asking again makes another request")
		}
		call := func(digest string) func(*Ask) { return func(a *Ask) { a.Call = &Call{Digest: digest} } }
		if a, b := d.ask(nil, call("1")), d.ask(nil, call("2")); a.ID == b.ID {
			t.Errorf("two calls are one request")
		}
	})
	t.Run("too many", func(t *testing.T) {
		d := newDesk(t, t.Context(), nil)
		defer d.Close()
		for i := range maxPending {
			d.ask(nil, func(a *Ask) { a.Call = &Call{Digest: fmt.Sprint(i)} })
		}
		if _, err := d.Ask(t.Context(), Ask{By: ada, Server: "bigquery", Terms: terms(t, ada, nil)}); !errors.Is(err, ErrTooMany) {
			t.Errorf("Ask: %v", err)
		}
	})
}

func TestDisable(t *testing.T) {
	d := newDesk(t, t.Context(), nil)
	defer d.Close()
	r := d.ask(nil)
	if _, err := d.Decide(t.Context(), r.ID, grace, Vote{Yes: true}); err != nil {
		t.Fatal(err)
	}
	u := d.Find("ada", "bigquery", "ask", "")
	waiting := d.ask(nil, func(a *Ask) { a.Call = &Call{Digest: "x"} })
	if err := d.Disable(t.Context(), User, "Ada", grace, ""); !errors.Is(err, ErrRight) {
		t.Fatalf("Disable by no admin: %v", err)
	}
	if err := d.Disable(t.Context(), User, "Ada", root, "left"); err != nil {
		t.Fatal(err)
	}
	if !d.IsDisabled("ada", "") || d.IsDisabled("eve", "12") {
		t.Error("not the right one is disabled")
	}
	if !errors.Is(u.Cause(), ErrRevoked) {
		t.Errorf("the grant goes on: %v", u.Cause())
	}
	if r, _ := d.Request(t.Context(), waiting.ID, root); r.State != Denied {
		t.Errorf("the request is %s", r.State)
	}
	if _, err := d.Ask(t.Context(), Ask{By: ada, Server: "bigquery", Terms: terms(t, ada, nil)}); !errors.Is(err, ErrDisabled) {
		t.Errorf("Ask: %v", err)
	}
	if err := d.Enable(t.Context(), User, "ada", root); err != nil || d.IsDisabled("ada", "") {
		t.Errorf("Enable: %v", err)
	}
	if err := d.Disable(t.Context(), Serial, "AB12", root, ""); err != nil || !d.IsDisabled("eve", "ab12") || !d.IsAgentDisabled("far", "ab12") {
		t.Errorf("Disable of a serial: %v", err)
	}
	if err := d.Disable(t.Context(), Agent, "far", root, ""); err != nil || !d.IsAgentDisabled("far", "") || d.IsDisabled("far", "") {
		t.Errorf("Disable of an agent: %v", err)
	}
}

// What is in the store is in force in the next process, and what has ended
// meanwhile is over.
func TestOpenAgain(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context) {
		store := newMemoryStore()
		first, end := context.WithCancel(ctx)
		d := newDesk(t, first, store)
		short := d.ask(nil, func(a *Ask) { a.Duration = time.Minute; a.Server = "sheets" })
		long := d.ask(nil, func(a *Ask) { a.Duration = 2 * time.Hour })
		open := d.ask(nil, func(a *Ask) { a.Call = &Call{Digest: "x"} })
		for _, r := range []Request{short, long} {
			if _, err := d.Decide(ctx, r.ID, grace, Vote{Yes: true}); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Disable(ctx, User, "mallory", root, ""); err != nil {
			t.Fatal(err)
		}
		end() // as a crash: nothing is written
		d.Close()
		time.Sleep(time.Hour)
		d = newDesk(t, ctx, store)
		synctest.Wait()
		if d.Find("ada", "bigquery", "ask", "") == nil || d.Find("ada", "sheets", "ask", "") != nil {
			t.Error("not the right grants are in force")
		}
		if !d.IsDisabled("mallory", "") {
			t.Error("who was disabled is no more")
		}
		if p := d.Pending(grace); len(p) != 1 || p[0].ID != open.ID {
			t.Errorf("pending are %+v", p)
		}
		if _, err := d.Decide(ctx, open.ID, grace, Vote{}); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := store.types(); got[len(got)-1] != GrantExpired || d.Find("ada", "bigquery", "ask", "") != nil {
			t.Errorf("events are %q", got)
		}
	})
}

// What cannot be written has not happened.
func TestStoreFails(t *testing.T) {
	d := newDesk(t, t.Context(), nil)
	defer d.Close()
	r := d.ask(nil)
	broken := errors.New("broken")
	d.store.fail = broken
	if _, err := d.Decide(t.Context(), r.ID, grace, Vote{Yes: true}); !errors.Is(err, broken) {
		t.Errorf("Decide: %v", err)
	}
	if d.Find("ada", "bigquery", "ask", "") != nil || len(d.Pending(grace)) != 1 {
		t.Error("a vote that is not on record counts")
	}
	if _, err := d.Ask(t.Context(), Ask{By: eve, Server: "bigquery", Terms: terms(t, eve, nil)}); !errors.Is(err, broken) || len(d.Pending(grace)) != 1 {
		t.Errorf("Ask: %v", err)
	}
	d.store.fail = nil
	if _, err := d.Decide(t.Context(), r.ID, grace, Vote{Yes: true}); err != nil {
		t.Errorf("Decide again: %v", err)
	}
}

func TestWhoSees(t *testing.T) {
	d := newDesk(t, t.Context(), nil)
	defer d.Close()
	r := d.ask(nil)
	for by, want := range map[*identity.Identity]bool{&ada: true, &grace: true, &root: true, &eve: false} {
		_, err := d.Request(t.Context(), r.ID, *by)
		if got := err == nil; got != want {
			t.Errorf("%s sees the request: %v, want %v", by.Subject, got, want)
		}
		if all, _ := d.Requests(t.Context(), *by, 10); (len(all) == 1) != want || (len(d.Pending(*by)) == 1) != want {
			t.Errorf("%s sees the list: %v, want %v", by.Subject, !want, want)
		}
	}
}
