// Package notice carries what happens at the broker to others: every event to
// auditors, as JSON lines, and requests to the people who decide on them, through
// channels.
//
//	go desk.Follow(ctx, "audit/file", true, notice.File("audit.jsonl"))
//	go desk.Follow(ctx, "channel/slack", false, notice.To(desk, url, "slack", slack, log))
//
// Each follows the events at its own pace: one that is down holds up no other,
// and no decision.
package notice

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"example.com/broker/broker/grant"
)

// A Sink takes events in order. It gets those again for which it returns an error.
type Sink = func(context.Context, []grant.Event) error

// Lines writes each event as a line of JSON.
func Lines(w io.Writer) Sink {
	return func(_ context.Context, events []grant.Event) error {
		text, err := lines(events)
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	}
}

// File appends the same to a file, durably. The file is opened each time, so that
// it may be moved away.
func File(path string) Sink {
	return func(_ context.Context, events []grant.Event) (err error) {
		text, err := lines(events)
		if err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		defer func() {
			if cerr := f.Close(); err == nil {
				err = cerr
			}
		}()
		if _, err := f.Write(text); err != nil {
			return err
		}
		return f.Sync()
	}
}

func lines(events []grant.Event) (text []byte, err error) {
	for _, e := range events {
		b, err := json.Marshal(e)
		if err != nil {
			return nil, err
		}
		text = append(append(text, b...), '\n')
	}
	return text, nil
}

// Post sends events to a webhook, some at a time, as {"type": "audit",
// "timestamp": …, "data": [event, …]}.
func Post(w *Webhook) Sink {
	return func(ctx context.Context, events []grant.Event) error {
		body, err := json.Marshal(envelope{"audit", events[0].Time, events})
		if err != nil {
			return err
		}
		return w.send(ctx, fmt.Sprintf("audit-%d-%d", events[0].Seq, events[len(events)-1].Seq), body)
	}
}

// envelope is the body that the Standard Webhooks specification recommends.
type envelope struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Data      any       `json:"data"`
}

// A Notice is what a channel tells people of a request.
type Notice struct {
	Event   grant.Event   `json:"event"`
	Request grant.Request `json:"request"`
	URL     string        `json:"url"`  // of the request's page
	Text    string        `json:"text"` // all that somebody has to know, in a line
}

// A Channel tells people. It is called again for a while when it returns an error.
type Channel interface {
	Tell(ctx context.Context, n Notice) error
}

// attempts is how often a channel is called for a notice.
const attempts = 5

// attemptTime bounds one call.
const attemptTime = 15 * time.Second

// To returns the follower that tells a channel what people want to know of
// requests. What cannot be delivered is put on record, and left.
func To(desk *grant.Desk, url, name string, c Channel, log *slog.Logger) Sink {
	return func(ctx context.Context, events []grant.Event) error {
		for _, e := range events {
			n, ok, err := noticeOf(ctx, desk, url, e)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			wait := time.Second
			for i := range attempts {
				actx, cancel := context.WithTimeout(ctx, attemptTime)
				err = c.Tell(actx, n)
				cancel()
				if err == nil || i == attempts-1 {
					break
				}
				select {
				case <-time.After(wait):
				case <-ctx.Done():
					return ctx.Err()
				}
				wait *= 2
			}
			result := grant.Event{
				Type: grant.NoticeDelivered, Subject: e.Subject, Server: e.Server, Request: e.Request, Via: name,
				Detail: map[string]string{"of": e.Type, "seq": fmt.Sprint(e.Seq)},
			}
			if err != nil {
				log.Warn("a channel does not deliver", "channel", name, "request", e.Request, "error", err)
				result.Type = grant.NoticeFailed
			}
			if err := desk.Record(ctx, result); err != nil {
				return err
			}
		}
		return nil
	}
}

// noticeOf makes a notice of an event that people want to hear of.
func noticeOf(ctx context.Context, desk *grant.Desk, url string, e grant.Event) (n Notice, ok bool, err error) {
	switch e.Type {
	case grant.RequestCreated, grant.RequestDenied, grant.RequestLapsed, grant.GrantStarted:
	default:
		return n, false, nil
	}
	if e.Request == "" {
		return n, false, nil
	}
	r, err := desk.Lookup(ctx, e.Request)
	if err != nil {
		return n, false, err
	}
	// What was granted at once is told once, and only in an emergency to everybody.
	if r.How == grant.ByAuto || r.How == grant.ByBreakGlass && e.Type == grant.RequestCreated {
		return n, false, nil
	}
	n = Notice{e, r, url + "/requests/" + r.ID, ""}
	n.Text = n.text()
	return n, true, nil
}

func (n *Notice) text() string {
	r := &n.Request
	what := fmt.Sprintf("access to %s for %s", r.Server, time.Duration(r.Duration))
	if r.Call != nil {
		what = fmt.Sprintf("one call of %s at %s", r.Call.Name, r.Server)
	}
	switch {
	case n.Event.Type == grant.GrantStarted && r.How == grant.ByBreakGlass:
		return fmt.Sprintf("BREAK-GLASS: %s has taken %s. Reason: %s. Review it afterwards.", r.Subject, what, r.Reason)
	case n.Event.Type == grant.RequestCreated:
		text := fmt.Sprintf("%s asks for %s", r.Subject, what)
		if r.Reason != "" {
			text += ". Reason: " + r.Reason
		}
		return text
	}
	var by []string
	for _, d := range r.Decisions {
		by = append(by, d.By)
	}
	text := fmt.Sprintf("%s: %s for %s", what, r.State, r.Subject)
	if len(by) > 0 {
		text += " by " + strings.Join(by, ", ")
	}
	return text
}
