package notice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"github.com/slack-go/slack"

	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
)

// SlackOptions is a Slack channel.
type SlackOptions struct {
	Token   string // of the bot, xoxb-…, with the scope chat:write
	Channel string // its id, C…
	// Secret signs what Slack sends when somebody presses a button. Without it
	// there are no buttons but the link.
	Secret string
	// Users are the people whose press counts, by Slack user id (U…), for rules
	// that allow it. A Slack account is weaker than the sign-in.
	Users map[string]identity.Identity
	API   string // if empty, Slack's
	Log   *slog.Logger
}

// Slack tells a Slack channel of requests, with a link to the request's page, and
// writes the outcome into the same message.
type Slack struct {
	o    SlackOptions
	api  *slack.Client
	desk *grant.Desk
}

// NewSlack returns a Slack.
func NewSlack(o SlackOptions, desk *grant.Desk) *Slack {
	options := []slack.Option{slack.OptionHTTPClient(&http.Client{Timeout: attemptTime})}
	if o.API != "" {
		options = append(options, slack.OptionAPIURL(o.API))
	}
	return &Slack{o, slack.New(o.Token, options...), desk}
}

// The actions of buttons.
const (
	slackApprove = "approve"
	slackDeny    = "deny"
)

// Tell implements [Channel].
func (s *Slack) Tell(ctx context.Context, n Notice) error {
	plain := func(text string) *slack.TextBlockObject {
		return slack.NewTextBlockObject(slack.PlainTextType, text, false, false)
	}
	link := slack.NewButtonBlockElement("open", "", plain("Open the request"))
	link.URL = n.URL
	buttons := []slack.BlockElement{link}
	if n.Request.Native && s.o.Secret != "" && n.Request.State == grant.Pending {
		yes := slack.NewButtonBlockElement(slackApprove, n.Request.ID, plain("Approve"))
		yes.Style = slack.StylePrimary
		no := slack.NewButtonBlockElement(slackDeny, n.Request.ID, plain("Deny"))
		no.Style = slack.StyleDanger
		buttons = append(buttons, yes, no)
	}
	// Plain text: what people write as a reason shall mention nobody.
	content := []slack.MsgOption{
		slack.MsgOptionText(n.Text, true),
		slack.MsgOptionBlocks(slack.NewSectionBlock(plain(cut(n.Text, 2900)), nil, nil), slack.NewActionBlock("", buttons...)),
	}
	at, err := s.desk.Note(ctx, "slack/"+n.Request.ID)
	if err != nil {
		return err
	}
	if channel, timestamp, ok := strings.Cut(at, " "); ok {
		_, _, _, err := s.api.UpdateMessageContext(ctx, channel, timestamp, content...)
		return withoutURL(err)
	}
	channel, timestamp, err := s.api.PostMessageContext(ctx, s.o.Channel, content...)
	if err != nil {
		return withoutURL(err)
	}
	return s.desk.SetNote(ctx, "slack/"+n.Request.ID, channel+" "+timestamp)
}

func cut(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "…"
	}
	return s
}

// withoutURL takes out of an error the URL, in which a chat's secret may stand.
func withoutURL(err error) error {
	var e *url.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

// maxCallback bounds what Slack sends, in bytes.
const maxCallback = 256 << 10

// ServeHTTP takes what Slack sends when somebody presses a button: signed by
// Slack, minutes ago at the most, of somebody who is known, for a request of a
// rule that allows it.
func (s *Slack) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxCallback))
	if err != nil {
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
		return
	}
	if s.o.Secret == "" {
		http.NotFound(w, r)
		return
	}
	verifier, err := slack.NewSecretsVerifier(r.Header, s.o.Secret) // checks the age
	if err == nil {
		if _, err = verifier.Write(body); err == nil {
			err = verifier.Ensure()
		}
	}
	if err != nil {
		s.o.Log.Warn("what came as Slack's is not signed by it", "client", r.RemoteAddr)
		http.Error(w, "the signature is not valid", http.StatusUnauthorized)
		return
	}
	form, err := url.ParseQuery(string(body))
	var callback slack.InteractionCallback
	if err == nil {
		err = json.Unmarshal([]byte(form.Get("payload")), &callback)
	}
	if err != nil {
		http.Error(w, "this is no callback of Slack's", http.StatusBadRequest)
		return
	}
	w.WriteHeader(http.StatusOK)
	http.NewResponseController(w).Flush() // Slack gives 3 s
	for _, a := range callback.ActionCallback.BlockActions {
		if a.ActionID == slackApprove || a.ActionID == slackDeny {
			if text := s.decide(r.Context(), callback.User.ID, a.Value, a.ActionID == slackApprove); text != "" {
				s.tellPresser(r.Context(), callback, text)
			}
		}
	}
}

// decide counts a press; what it returns is for who has pressed.
func (s *Slack) decide(ctx context.Context, user, request string, yes bool) string {
	by, ok := s.o.Users[user]
	if !ok {
		s.o.Log.Warn("a press of nobody who is known", "slack_user", user, "request", request)
		return "Your Slack account stands for nobody at the broker. Open the request instead."
	}
	r, err := s.desk.Lookup(ctx, request)
	if err == nil && !r.Native {
		err = errors.New("this request is decided on its page only")
	}
	if err == nil {
		_, err = s.desk.Decide(ctx, request, by, grant.Vote{Yes: yes, Via: "slack"})
	}
	if err != nil {
		s.o.Log.Warn("a press does not count", "slack_user", user, "subject", by.Subject, "request", request, "error", err)
		return fmt.Sprintf("This did not count: %s.", err)
	}
	return ""
}

func (s *Slack) tellPresser(ctx context.Context, c slack.InteractionCallback, text string) {
	if _, err := s.api.PostEphemeralContext(ctx, c.Channel.ID, c.User.ID, slack.MsgOptionText(text, false)); err != nil {
		s.o.Log.Warn("Slack does not take an answer", "error", withoutURL(err))
	}
}
