package credential

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// A token is what is sent, and what may be told of it.
type token struct {
	value string
	until time.Time // zero: not known
	use   Use       // without the session
}

func (t token) good(now time.Time) bool {
	return t.value != "" && (t.until.IsZero() || now.Before(t.until))
}

const (
	fetchTime = 30 * time.Second // bounds one request for a token

	// A token is renewed in the last quarter of its life, but not earlier than
	// that before its end: the metadata server gives out the same token until
	// about then.
	earliest = 225 * time.Second

	// The wait after a request that failed, doubled from the first to the last.
	firstWait = time.Second
	lastWait  = 30 * time.Second
)

// A cache keeps one token and renews it.
type cache struct {
	fetch func(context.Context) (token, error)
	log   *slog.Logger

	mu       sync.Mutex
	token    token
	due      time.Time // when the token is to be renewed; zero: never
	err      error     // why the last fetch failed; nil if it did not
	wait     time.Duration
	next     time.Time     // there is no fetch before
	fetching chan struct{} // closed when the fetch under way is over; nil: there is none
	used     time.Time     // last
}

var errExpired = errors.New("the token that came had already expired: compare this machine's clock")

// get returns a token that has not expired. Only who finds none waits.
func (c *cache) get(ctx context.Context) (token, error) {
	now := time.Now()
	c.mu.Lock()
	c.used = now
	good := c.token.good(now)
	renew := !good || !c.due.IsZero() && !now.Before(c.due)
	if renew && c.fetching == nil && !now.Before(c.next) {
		c.fetching = make(chan struct{})
		go c.renew(context.WithoutCancel(ctx)) // others wait for it, too
	}
	t, err, fetching := c.token, c.err, c.fetching
	c.mu.Unlock()
	if good {
		return t, nil
	}
	if fetching == nil {
		return token{}, err
	}
	select {
	case <-ctx.Done():
		return token{}, context.Cause(ctx)
	case <-fetching:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.token.good(time.Now()) {
		return token{}, c.err
	}
	return c.token, nil
}

// renew fetches once. It ends within fetchTime, whoever waits.
func (c *cache) renew(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	t, err := c.fetch(ctx)
	now := time.Now()
	if err == nil && !t.good(now) {
		err = errExpired
	}
	if err != nil {
		err = redacted(err)
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err = err; err != nil {
		c.wait = min(max(2*c.wait, firstWait), lastWait)
		c.next = now.Add(c.wait)
		if c.token.good(now) {
			c.log.Warn("credential cannot be renewed; the present one is used until its end",
				"principal", c.token.use.Principal, "until", c.token.until, "error", err)
		}
	} else {
		c.wait, c.next = 0, time.Time{}
		c.token, c.due = t, time.Time{}
		if !t.until.IsZero() {
			c.due = t.until.Add(-min(t.until.Sub(now)/4, earliest)) // of what is left, should it be the same token
		}
	}
	close(c.fetching)
	c.fetching = nil
}

// A ledger tells each use of a token by a session once.
type ledger struct {
	used func(Use) // may be nil

	mu   sync.Mutex
	told map[[sha256.Size]byte]struct{}
}

// maxTold bounds a ledger. Nobody says that a session is over; so when it is
// full all is forgotten, and some uses are told twice rather than one never.
const maxTold = 1 << 14

func (l *ledger) tell(s Session, t token) {
	if l.used == nil {
		return
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%q %q", s.ID, t.value)) // a set of tokens is not kept
	l.mu.Lock()
	_, told := l.told[key]
	if !told {
		if l.told == nil || len(l.told) >= maxTold {
			l.told = map[[sha256.Size]byte]struct{}{}
		}
		l.told[key] = struct{}{}
	}
	l.mu.Unlock()
	if !told {
		u := t.use
		u.Session, u.Server, u.Until = s.ID, s.Server, t.until
		l.used(u)
	}
}

func logOr(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
