package credential

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A mint makes tokens that live for an hour, or fails.
type mint struct {
	made int
	err  error
	life time.Duration
	took time.Duration
}

func (m *mint) fetch(context.Context) (token, error) {
	time.Sleep(m.took)
	m.made++
	if m.err != nil {
		return token{}, m.err
	}
	return token{value: fmt.Sprint("token ", m.made), until: time.Now().Add(m.life)}, nil
}

func newCache(m *mint) *cache { return &cache{fetch: m.fetch, log: slog.New(slog.DiscardHandler)} }

func TestCacheRenewsAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{life: time.Hour, took: 2 * time.Second}
		c := newCache(m)
		want := func(value string, made int) {
			t.Helper()
			got, err := c.get(t.Context())
			if got.value != value || err != nil {
				t.Errorf("got %q, %v; want %q", got.value, err, value)
			}
			synctest.Wait()
			time.Sleep(m.took)
			synctest.Wait()
			if m.made != made {
				t.Errorf("%d requests, want %d", m.made, made)
			}
		}
		want("token 1", 1)
		time.Sleep(56 * time.Minute)
		want("token 1", 1)
		time.Sleep(time.Minute)
		want("token 1", 2) // nobody waits for the renewal
		want("token 2", 2)
		time.Sleep(2 * time.Hour)
		want("token 3", 3) // nobody has asked in time
	})
}

func TestCacheFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{life: time.Hour}
		c := newCache(m)
		log := &bytes.Buffer{}
		c.log = slog.New(slog.NewTextHandler(log, nil))
		get := func() (string, error) {
			got, err := c.get(t.Context())
			synctest.Wait()
			return got.value, err
		}
		get()
		time.Sleep(57 * time.Minute)
		m.err = errors.New("no\nway")
		for range 180 { // three minutes of requests, one a second
			if got, err := get(); got != "token 1" || err != nil {
				t.Fatalf("got %q, %v", got, err)
			}
			time.Sleep(time.Second)
		}
		if n := m.made - 1; n < 5 || n > 12 {
			t.Errorf("%d requests in three minutes, want about 9", n)
		}
		if n := strings.Count(log.String(), "cannot be renewed"); n != m.made-1 {
			t.Errorf("%d warnings of %d failures:\n%s", n, m.made-1, log)
		}
		made := m.made
		if _, err := get(); err == nil || err.Error() != "no way" {
			t.Errorf("after its end: %v", err)
		}
		for range 1000 {
			get()
		}
		if n := m.made - made; n > 1 {
			t.Errorf("%d requests at once", n)
		}
		m.err = nil
		time.Sleep(lastWait)
		if got, err := get(); err != nil {
			t.Errorf("when all is well again: %q, %v", got, err)
		}
		if c.wait != 0 {
			t.Error("the next failure waits as if it were one of many")
		}
	})
}

func TestCacheOneFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{life: time.Hour, took: time.Second}
		c := newCache(m)
		var all sync.WaitGroup
		for range 64 {
			all.Go(func() {
				if got, err := c.get(t.Context()); got.value != "token 1" || err != nil {
					t.Errorf("got %q, %v", got.value, err)
				}
			})
		}
		// Who asked first and has no time does not take the token from the others.
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := c.get(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without time: %v", err)
		}
		all.Wait()
		if m.made != 1 {
			t.Errorf("%d requests, want 1", m.made)
		}
	})
}

// An issuer may give out the same token until shortly before its end, and
// tokens that live for less than the wait between two requests.
func TestCacheOddTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, end := 0, time.Now().Add(time.Minute)
		c := &cache{log: slog.New(slog.DiscardHandler), fetch: func(context.Context) (token, error) {
			n++
			return token{value: "same", until: end}, nil
		}}
		for range 59 {
			c.get(t.Context())
			synctest.Wait()
			time.Sleep(time.Second)
		}
		if n > 5 {
			t.Errorf("%d requests, want 5 at most", n)
		}
		time.Sleep(time.Second)
		if _, err := c.get(t.Context()); err == nil || err.Error() != errExpired.Error() {
			t.Errorf("a token that has expired: %v", err)
		}

		m := &mint{life: 5 * time.Second}
		c = newCache(m)
		for range 10 {
			if _, err := c.get(t.Context()); err != nil {
				t.Errorf("a short life: %v", err)
			}
			time.Sleep(6 * time.Second)
		}
	})
}

func TestLedger(t *testing.T) {
	var told []Use
	l := &ledger{used: func(u Use) { told = append(told, u) }}
	for _, s := range []string{"s1", "s1", "s2", "s1", "s2"} {
		l.tell(Session{ID: s}, token{value: "a"})
	}
	l.tell(Session{ID: "s1"}, token{value: "b"})
	l.tell(Session{ID: "s1"}, token{value: "a"})
	if len(told) != 3 || told[2].Session != "s1" {
		t.Errorf("told %+v", told)
	}
	for i := range 2 * maxTold {
		l.tell(Session{ID: fmt.Sprint(i)}, token{value: "a"})
	}
	if len(l.told) > maxTold {
		t.Errorf("%d are remembered", len(l.told))
	}
}
