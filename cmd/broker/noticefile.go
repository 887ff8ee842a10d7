package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"

	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
	"example.com/broker/broker/notice"
)

// auditFile is the section audit of broker.yaml: where events go.
type auditFile struct {
	File    string       `yaml:"file"`
	Stdout  bool         `yaml:"stdout"`
	Webhook *webhookFile `yaml:"webhook"`
}

// channelsFile is the section channels: where people hear of requests.
type channelsFile struct {
	Slack    *slackFile    `yaml:"slack"`
	Webhooks []webhookFile `yaml:"webhooks"`
}

type webhookFile struct {
	Name   string `yaml:"name"`
	URL    string `yaml:"url"`
	Secret string `yaml:"secret"`
	Format string `yaml:"format"`
}

type slackFile struct {
	Token         string                   `yaml:"token"`
	Channel       string                   `yaml:"channel"`
	SigningSecret string                   `yaml:"signing_secret"`
	Users         map[string]slackUserFile `yaml:"users"`
	API           string                   `yaml:"api"`
}

type slackUserFile struct {
	Subject string   `yaml:"subject"`
	Groups  []string `yaml:"groups"`
}

// A follower gets events.
type follower struct {
	name string
	all  bool // from the first one on
	sink func(*installation) notice.Sink
}

// notices is what the sections say, in the terms of package notice.
type notices struct {
	followers []follower
	slack     *notice.SlackOptions
}

func (c *brokerConfig) webhook(at string, f webhookFile) (*notice.Webhook, error) {
	u, err := url.Parse(f.URL)
	if err != nil || u.Host == "" {
		return nil, c.errorAt(at+".url", errors.New("must be like https://hooks.example.com/x"))
	}
	if ip := net.ParseIP(u.Hostname()); u.Scheme != "https" && !(u.Scheme == "http" && ip != nil && ip.IsLoopback()) {
		return nil, c.errorAt(at+".url", errors.New("must begin with https://"))
	}
	secret, err := c.secret(f.Secret)
	if err != nil {
		return nil, c.errorAt(at+".secret", err)
	}
	w, err := notice.NewWebhook(notice.WebhookOptions{URL: f.URL, Secret: secret, Format: f.Format})
	if err != nil {
		return nil, c.errorAt(at, err)
	}
	return w, nil
}

func (c *brokerConfig) readNotices() error {
	fixed := func(s notice.Sink) func(*installation) notice.Sink {
		return func(*installation) notice.Sink { return s }
	}
	if c.Audit.File != "" {
		c.followers = append(c.followers, follower{"audit/file", true, fixed(notice.File(c.resolve(c.Audit.File)))})
	}
	if c.Audit.Stdout {
		c.followers = append(c.followers, follower{"audit/stdout", true, fixed(notice.Lines(os.Stdout))})
	}
	if c.Audit.Webhook != nil {
		if c.Audit.Webhook.Format != "" {
			return c.errorAt("audit.webhook.format", errors.New("is for channels; events are always JSON"))
		}
		w, err := c.webhook("audit.webhook", *c.Audit.Webhook)
		if err != nil {
			return err
		}
		c.followers = append(c.followers, follower{"audit/webhook", true, fixed(notice.Post(w))})
	}
	names := map[string]bool{"slack": true}
	for i, f := range c.Channels.Webhooks {
		at := fmt.Sprintf("channels.webhooks[%d]", i)
		if !label.MatchString(f.Name) || names[f.Name] {
			return c.errorAt(at, fmt.Errorf("name %q: must be lower-case letters, digits and dashes, and no other channel's", f.Name))
		}
		names[f.Name] = true
		w, err := c.webhook(at, f)
		if err != nil {
			return err
		}
		c.followers = append(c.followers, c.channel(f.Name, func(*installation) notice.Channel { return w }))
	}
	if s := c.Channels.Slack; s != nil {
		return c.readSlack(s)
	}
	return nil
}

// channel is the follower that tells a channel.
func (c *brokerConfig) channel(name string, of func(*installation) notice.Channel) follower {
	return follower{"channel/" + name, false, func(in *installation) notice.Sink {
		return notice.To(in.desk, in.url(), name, of(in), in.log)
	}}
}

func (c *brokerConfig) readSlack(s *slackFile) error {
	token, err := c.secret(s.Token)
	if err != nil {
		return c.errorAt("channels.slack.token", err)
	}
	secret, err := c.secret(s.SigningSecret)
	if err != nil {
		return c.errorAt("channels.slack.signing_secret", err)
	}
	if token == "" || s.Channel == "" {
		return c.errorAt("channels.slack", errors.New("needs token and channel"))
	}
	if len(s.Users) > 0 && secret == "" {
		return c.errorAt("channels.slack", errors.New("has users, and no signing_secret to know their presses by"))
	}
	o := &notice.SlackOptions{Token: token, Channel: s.Channel, Secret: secret, API: s.API, Users: map[string]identity.Identity{}}
	subjects := map[string]bool{}
	for id, u := range s.Users {
		if u.Subject == "" || subjects[u.Subject] {
			return c.errorAt("channels.slack.users."+id, errors.New("needs a subject, and one of its own"))
		}
		subjects[u.Subject] = true
		o.Users[id] = identity.Identity{Subject: u.Subject, Groups: u.Groups, Method: "slack"}
	}
	c.slack = o
	c.followers = append(c.followers, c.channel("slack", func(in *installation) notice.Channel { return in.slack }))
	return nil
}

// newSlack makes the Slack channel that the configuration asks for, if it does.
func (c *brokerConfig) newSlack(in *installation, desk *grant.Desk) *notice.Slack {
	if c.notices.slack == nil {
		return nil
	}
	o := *c.notices.slack
	o.Log = in.log
	return notice.NewSlack(o, desk)
}
