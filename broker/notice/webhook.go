package notice

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"text/template"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// A Webhook is somebody else's URL that gets signed POSTs, as the Standard
// Webhooks specification says: webhook-id, webhook-timestamp, webhook-signature.
type Webhook struct {
	url      string
	sign     *standardwebhooks.Webhook // nil: not signed
	client   *http.Client
	template *template.Template // of the body; nil: the specification's
}

// WebhookOptions is what a Webhook is made of.
type WebhookOptions struct {
	URL    string
	Secret string // whsec_ and base64; if empty, nothing is signed
	Format string // the name of one of Formats; empty: JSON as the specification says
	Client *http.Client
}

// Formats are the bodies that chats expect. {{json .}} writes a value as JSON.
var Formats = map[string]string{
	"google_chat": `{"text":{{json (print .Text " — " .URL)}}}`,
	"teams": `{"type":"message","attachments":[{"contentType":"application/vnd.microsoft.card.adaptive","content":{
"$schema":"http://adaptivecards.io/schemas/adaptive-card.json","type":"AdaptiveCard","version":"1.4",
"body":[{"type":"TextBlock","wrap":true,"text":{{json .Text}}}],
"actions":[{"type":"Action.OpenUrl","title":"Open the request","url":{{json .URL}}}]}}]}`,
}

// NewWebhook returns a Webhook.
func NewWebhook(o WebhookOptions) (*Webhook, error) {
	w := &Webhook{url: o.URL, client: o.Client}
	if w.client == nil {
		// A redirect could lead where the URL was not meant to.
		w.client = &http.Client{Timeout: attemptTime, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	var err error
	if o.Secret != "" {
		if w.sign, err = standardwebhooks.NewWebhook(o.Secret); err != nil {
			return nil, errors.New("secret: must be whsec_ and base64")
		}
	}
	if o.Format != "" {
		text, ok := Formats[o.Format]
		if !ok {
			return nil, fmt.Errorf("format: there is no %q", o.Format)
		}
		w.template, err = template.New(o.Format).Funcs(template.FuncMap{"json": func(v any) (string, error) {
			b, err := json.Marshal(v)
			return string(b), err
		}}).Parse(text)
	}
	return w, err
}

// Tell implements [Channel].
func (w *Webhook) Tell(ctx context.Context, n Notice) error {
	var body []byte
	var err error
	if w.template != nil {
		var out bytes.Buffer
		err = w.template.Execute(&out, n)
		body = out.Bytes()
	} else {
		body, err = json.Marshal(envelope{n.Event.Type, n.Event.Time, n})
	}
	if err != nil {
		return err
	}
	return w.send(ctx, fmt.Sprintf("notice-%d", n.Event.Seq), body)
}

// send posts a body. The id is the same for every attempt, so that the other
// side can drop what it has had.
func (w *Webhook) send(ctx context.Context, id string, body []byte) error {
	r, err := http.NewRequestWithContext(ctx, "POST", w.url, bytes.NewReader(body))
	if err != nil {
		return errors.New("the webhook's URL cannot be used")
	}
	r.Header.Set("Content-Type", "application/json")
	now := time.Now()
	r.Header.Set(standardwebhooks.HeaderWebhookID, id)
	r.Header.Set(standardwebhooks.HeaderWebhookTimestamp, fmt.Sprint(now.Unix()))
	if w.sign != nil {
		signature, err := w.sign.Sign(id, now, body)
		if err != nil {
			return err
		}
		r.Header.Set(standardwebhooks.HeaderWebhookSignature, signature)
	}
	resp, err := w.client.Do(r)
	if err != nil {
		return withoutURL(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("the webhook answers %s", resp.Status)
	}
	return nil
}
