package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"

	"example.com/broker/broker"
	"example.com/broker/broker/agent"
	"example.com/broker/broker/agent/credential"
	"example.com/broker/broker/policy"
	"example.com/broker/recorder"
	"example.com/broker/recorder/archive"
)

// brokerFile is broker.yaml.
type brokerFile struct {
	Listen    string                `yaml:"listen"`
	Name      string                `yaml:"name"`
	URL       string                `yaml:"url"`
	Data      string                `yaml:"data"`
	Admins    namesFile             `yaml:"admins"`
	Auditors  namesFile             `yaml:"auditors"`
	TLS       tlsFile               `yaml:"tls"`
	Identity  identityFile          `yaml:"identity"`
	Agents    agentsFile            `yaml:"agents"`
	Audit     auditFile             `yaml:"audit"`
	Channels  channelsFile          `yaml:"channels"`
	Servers   map[string]serverFile `yaml:"servers"`
	Policy    []ruleFile            `yaml:"policy"`
	Detectors []detectorFile        `yaml:"detectors"`
	HTTP      httpFile              `yaml:"http"`
	Limits    limitsFile            `yaml:"limits"`
	Recording recordingFile         `yaml:"recording"`
	Metrics   string                `yaml:"metrics"`
}

// httpFile is how clients by URL are served.
type httpFile struct {
	Origins []string `yaml:"origins"` // of pages that may use MCP from a browser
	Hosts   []string `yaml:"hosts"`   // names beside name, url and those of tls.cert
}

type tlsFile struct {
	Cert     string   `yaml:"cert"`
	Key      string   `yaml:"key"`
	ClientCA []string `yaml:"client_ca"`
}

// serverFile is one server, in broker.yaml and in agent.yaml.
type serverFile struct {
	Agent string            `yaml:"agent"` // in broker.yaml only
	Stdio []string          `yaml:"stdio"`
	Env   map[string]string `yaml:"env"`
	Dir   string            `yaml:"dir"`
	TCP   string            `yaml:"tcp"`
	Unix  string            `yaml:"unix"`

	HTTP    string            `yaml:"http"`
	Headers map[string]string `yaml:"headers"`
	TLS     upstreamTLSFile   `yaml:"tls"`
	Timeout string            `yaml:"timeout"`

	Credential *credentialFile `yaml:"credential"`
}

// upstreamTLSFile is how an agent and a server by HTTP know each other.
type upstreamTLSFile struct {
	CA   string `yaml:"ca"`   // PEM; beside it no other authority counts
	Cert string `yaml:"cert"` // the agent's own
	Key  string `yaml:"key"`
	Name string `yaml:"name"` // of the server's certificate, where it is not the URL's
}

type ruleFile struct {
	Name        string        `yaml:"name"`
	Users       []string      `yaml:"users"`
	Groups      []string      `yaml:"groups"`
	Servers     []string      `yaml:"servers"`
	Access      string        `yaml:"access"`
	Mode        string        `yaml:"mode"`
	Duration    string        `yaml:"duration"`
	Keep        string        `yaml:"keep"`
	MaxDuration string        `yaml:"max_duration"`
	Approvers   approversFile `yaml:"approvers"`
	Reason      string        `yaml:"reason"`
	Auto        string        `yaml:"auto"`
	BreakGlass  []string      `yaml:"break_glass"`
	RequestTTL  string        `yaml:"request_ttl"`
	Hold        string        `yaml:"hold"`
	Certificate string        `yaml:"certificate"`
	InSlack     bool          `yaml:"approve_in_slack"`
	WaitingRoom *bool         `yaml:"waiting_room"`
	Calls       []callFile    `yaml:"calls"`
	Mask        []string      `yaml:"mask"`
	MaskFields  []string      `yaml:"mask_fields"`
	MaskRequest any           `yaml:"mask_requests"`
}

// namesFile is users and groups.
type namesFile struct {
	Users  []string `yaml:"users"`
	Groups []string `yaml:"groups"`
}

type approversFile struct {
	Users  []string `yaml:"users"`
	Groups []string `yaml:"groups"`
	Count  int      `yaml:"count"`
}

type callFile struct {
	Deny     string `yaml:"deny"`
	Approval string `yaml:"approval"`
	Allow    string `yaml:"allow"`
	Reason   string `yaml:"reason"`
}

type recordingFile struct {
	Sync       string         `yaml:"sync"`
	Originals  originalsFile  `yaml:"originals"`
	Encryption encryptionFile `yaml:"encryption"`
	Keep       string         `yaml:"keep"`
	Archive    archiveFile    `yaml:"archive"`
}

// archiveFile is where sessions move to, and when.
type archiveFile struct {
	To    string `yaml:"to"`
	After string `yaml:"after"` // their end
}

// encryptionFile is what wraps the key of the log.
type encryptionFile struct {
	Key string `yaml:"key"`
}

// originalsFile is whom unmasked frames are sealed to.
type originalsFile struct {
	Recipients []string `yaml:"recipients"`
}

type limitsFile struct {
	Frame       string `yaml:"frame"`
	Requests    int    `yaml:"requests"`
	Sessions    int    `yaml:"sessions"`
	PerIdentity int    `yaml:"per_identity"`
	Handshake   string `yaml:"handshake"`
	Idle        string `yaml:"idle"`
	DiskFree    string `yaml:"disk_free"`
}

// brokerConfig is a broker.yaml that has been read, and what it says in the
// terms of the packages below.
type brokerConfig struct {
	*configFile
	brokerFile
	policy  *policy.Policy
	servers map[string]broker.Server
	local   map[string]agent.Upstream
	limits  broker.Limits
	free    int64 // of the disk, in bytes
	sync    recorder.Sync
	sealTo  []age.Recipient // whom originals are sealed to
	keep    time.Duration
	archive time.Duration // after which sessions move to Recording.Archive.To
	identities
	notices
}

func readBrokerConfig(path string) (*brokerConfig, error) {
	c := &brokerConfig{brokerFile: brokerFile{Listen: "127.0.0.1:8443", Data: "data"}}
	var err error
	if c.configFile, err = readConfig(path, &c.brokerFile); err != nil {
		return nil, err
	}
	c.Data = c.resolve(c.Data)
	c.TLS.Cert, c.TLS.Key = c.resolve(c.TLS.Cert), c.resolve(c.TLS.Key)
	if (c.TLS.Cert == "") != (c.TLS.Key == "") {
		return nil, c.errorAt("tls", errors.New("cert and key come together"))
	}
	for i, file := range c.TLS.ClientCA {
		c.TLS.ClientCA[i] = c.resolve(file)
	}
	if err := c.readURL(); err != nil {
		return nil, err
	}
	if err := c.readHTTP(); err != nil {
		return nil, err
	}
	if err := c.readLimits(); err != nil {
		return nil, err
	}
	if err := c.readRecording(); err != nil {
		return nil, err
	}
	if err := c.readServers(); err != nil {
		return nil, err
	}
	if err := c.readIdentity(); err != nil {
		return nil, err
	}
	if err := c.readNotices(); err != nil {
		return nil, err
	}
	return c, c.readPolicy()
}

// readPolicyFile reads the policy of a broker.yaml, or of a file that has policy
// and detectors only. What else is in it is not looked at, and needs nothing.
func readPolicyFile(path string) (*brokerConfig, error) {
	c := &brokerConfig{}
	var err error
	if c.configFile, err = readConfig(path, &c.brokerFile, "policy", "detectors"); err != nil {
		return nil, err
	}
	return c, c.readPolicy()
}

// readURL fills in where people reach the broker's pages.
func (c *brokerConfig) readURL() error {
	if c.URL == "" {
		host, port, err := net.SplitHostPort(c.Listen)
		if err != nil {
			return c.errorAt("listen", fmt.Errorf("%q is not host:port", c.Listen))
		}
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			host = "localhost"
		}
		if c.Name != "" {
			host = c.Name
		}
		c.URL = "https://" + net.JoinHostPort(host, port)
		return nil
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return c.errorAt("url", errors.New("must be like https://broker.example.com:8443"))
	}
	c.URL = "https://" + u.Host
	return nil
}

// readHTTP checks the section http.
func (c *brokerConfig) readHTTP() error {
	for i, origin := range c.HTTP.Origins {
		u, err := url.Parse(origin)
		if origin != "*" && (err != nil || u.Scheme == "" || u.Host == "" || u.Scheme+"://"+u.Host != origin) {
			return c.errorAt(fmt.Sprintf("http.origins[%d]", i), errors.New("must be like https://app.example.com, or *"))
		}
	}
	for i, host := range c.HTTP.Hosts {
		if host == "" || strings.ContainsAny(host, ":/ ") {
			return c.errorAt(fmt.Sprintf("http.hosts[%d]", i), errors.New("must be a host name without a port"))
		}
	}
	return nil
}

func (c *brokerConfig) readLimits() error {
	l := c.Limits
	for name, n := range map[string]int{"requests": l.Requests, "sessions": l.Sessions, "per_identity": l.PerIdentity} {
		if n < 0 {
			return c.errorAt("limits."+name, errors.New("must be above 0; leave it out for the default"))
		}
	}
	frame, err := c.size("limits.frame", l.Frame)
	if err != nil {
		return err
	}
	if frame > maxFrame {
		return c.errorAt("limits.frame", fmt.Errorf("must be at most %d MiB", maxFrame>>20))
	}
	handshake, err := c.duration("limits.handshake", l.Handshake)
	if err != nil {
		return err
	}
	idle, err := c.duration("limits.idle", l.Idle)
	if err != nil {
		return err
	}
	if c.free, err = c.size("limits.disk_free", l.DiskFree); err != nil {
		return err
	}
	c.limits = broker.Limits{
		Frame: int(frame), Requests: l.Requests, Sessions: l.Sessions,
		PerIdentity: l.PerIdentity, Handshake: handshake, Idle: idle,
	}.WithDefaults()
	return nil
}

// readRecording reads how sessions are kept.
func (c *brokerConfig) readRecording() error {
	sync, ok := syncs[c.Recording.Sync]
	if !ok {
		return c.errorAt("recording.sync", errors.New("must be always, interval or none"))
	}
	c.sync = sync
	var err error
	if c.keep, err = c.keepTime("recording.keep", c.Recording.Keep); err != nil {
		return err
	}
	if err := c.readArchive(); err != nil {
		return err
	}
	if key := &c.Recording.Encryption.Key; *key != "" {
		if path, ok := strings.CutPrefix(*key, "file:"); ok {
			*key = "file:" + c.resolve(path)
		}
		if err := recorder.CheckWrapper(*key); err != nil {
			return c.errorAt("recording.encryption.key", err)
		}
	}
	texts := make([]string, len(c.Recording.Originals.Recipients))
	for i, text := range c.Recording.Originals.Recipients {
		at := fmt.Sprintf("recording.originals.recipients[%d]", i)
		var err error
		if texts[i], err = c.secret(text); err != nil {
			return c.errorAt(at, err)
		}
		if _, err = recorder.ParseRecipients(texts[i]); err != nil {
			return c.errorAt(at, err)
		}
	}
	if c.sealTo, err = recorder.ParseRecipients(texts...); err != nil {
		return c.errorAt("recording.originals.recipients", err)
	}
	return nil
}

// keepTime reads how long sessions are kept, like 90d or 12h; forever is below 0,
// empty zero.
func (c *brokerConfig) keepTime(path, text string) (time.Duration, error) {
	if text == "forever" {
		return -time.Second, nil
	}
	if text == "" {
		return 0, nil
	}
	d, err := parseDays(text)
	if err != nil || d < time.Minute {
		return 0, c.errorAt(path, fmt.Errorf("%q is no time to keep; write 90d, 12h or forever", text))
	}
	return d, nil
}

// parseDays reads a duration, like 12h, or days, like 90d.
func parseDays(text string) (time.Duration, error) {
	if m := ago.FindStringSubmatch(text); m != nil {
		days, err := strconv.Atoi(m[1])
		return time.Duration(days) * 24 * time.Hour, err
	}
	return time.ParseDuration(text)
}

// archiveAfter is when sessions are archived where nothing is said of it.
const archiveAfter = 24 * time.Hour

// readArchive reads where sessions are archived.
func (c *brokerConfig) readArchive() error {
	a := c.Recording.Archive
	if a.To == "" {
		if a.After != "" {
			return c.errorAt("recording.archive", errors.New("says after, and not where to"))
		}
		return nil
	}
	if err := archive.Check(a.To); err != nil {
		return c.errorAt("recording.archive.to", err)
	}
	if c.archive = archiveAfter; a.After != "" {
		var err error
		if c.archive, err = parseDays(a.After); err != nil || c.archive < 0 {
			return c.errorAt("recording.archive.after", fmt.Errorf("%q is no time; write 24h or 7d", a.After))
		}
	}
	return nil
}

var syncs = map[string]recorder.Sync{"": recorder.SyncInterval, "interval": recorder.SyncInterval, "always": recorder.SyncAlways, "none": recorder.SyncNone}

// maxFrame bounds limits.frame, in bytes: a frame that is held is in memory as a whole.
const maxFrame = 1 << 30

// A server's name is the first label of a host name.
var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (c *brokerConfig) readServers() error {
	c.servers = map[string]broker.Server{}
	c.local = map[string]agent.Upstream{}
	for name, s := range c.Servers {
		at := "servers." + name
		if s.Agent != "" {
			if len(s.Stdio) > 0 || s.TCP != "" || s.Unix != "" || s.HTTP != "" || s.Credential != nil {
				return c.errorAt(at, errors.New("has both an agent and an upstream; the upstream belongs into the agent's configuration"))
			}
			if !label.MatchString(name) {
				return c.errorAt(at, errServerName)
			}
			c.servers[name] = broker.Server{Agent: s.Agent}
			continue
		}
		up, err := c.upstream(name, s)
		if err != nil {
			return c.errorAt(at, err)
		}
		c.servers[name] = broker.Server{}
		c.local[name] = up
	}
	return nil
}

var errServerName = errors.New("a server's name is lower-case letters, digits and dashes: it is a label of a host name")

// upstream is how an agent reaches the server s.
func (c *configFile) upstream(name string, s serverFile) (agent.Upstream, error) {
	if !label.MatchString(name) {
		return nil, errServerName
	}
	kinds := 0
	for _, given := range []bool{len(s.Stdio) > 0, s.TCP != "", s.Unix != "", s.HTTP != ""} {
		if given {
			kinds++
		}
	}
	switch {
	case kinds == 0:
		return nil, errors.New("has no upstream: say stdio, http, tcp or unix, or the agent that reaches it")
	case kinds > 1:
		return nil, errors.New("has more than one upstream")
	case len(s.Stdio) == 0 && (len(s.Env) > 0 || s.Dir != ""):
		return nil, errors.New("env and dir are for stdio")
	case s.HTTP == "" && (len(s.Headers) > 0 || s.TLS != (upstreamTLSFile{}) || s.Timeout != ""):
		return nil, errors.New("headers, tls and timeout are for http")
	case s.HTTP != "":
		return c.httpUpstream(name, s)
	case (s.TCP != "" || s.Unix != "") && s.Credential != nil:
		return nil, errors.New("credential is for http and stdio")
	case s.TCP != "":
		return &agent.Socket{Network: "tcp", Address: s.TCP}, nil
	case s.Unix != "":
		return &agent.Socket{Network: "unix", Address: c.resolve(s.Unix)}, nil
	}
	env := childEnviron()
	for key, value := range s.Env {
		value, err := c.secret(value)
		if err != nil {
			return nil, fmt.Errorf("env.%s: %w", key, err)
		}
		env = append(env, key+"="+value)
	}
	child := &agent.Stdio{Command: s.Stdio, Env: env, Dir: c.resolve(s.Dir)}
	if s.Credential != nil {
		source, err := c.credential("servers."+name+".credential", s.Credential, c.tellUse, slog.Default())
		if err != nil {
			return nil, err
		}
		google, ok := source.(*credential.Google)
		if !ok {
			return nil, errors.New("credential: a server on stdio finds tokens of Google's only; say gcp, or give it what it needs by env")
		}
		child.Google = google
	}
	return child, nil
}

// childEnviron is this process's environment without what is the broker's own,
// such as an agent's join token.
func childEnviron() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "BROKER_") })
}

func (c *brokerConfig) readPolicy() error {
	own, err := c.ownDetectors()
	if err != nil {
		return err
	}
	rules := make([]policy.Rule, len(c.Policy))
	for i, r := range c.Policy {
		access, err := policy.ParseAccess(r.Access)
		if err != nil {
			return c.errorAt(fmt.Sprintf("policy[%d].access", i), err)
		}
		mode, err := policy.ParseMode(r.Mode)
		if err != nil {
			return c.errorAt(fmt.Sprintf("policy[%d].mode", i), err)
		}
		var duration, most, ttl, hold, certificate time.Duration
		for _, d := range []struct {
			key, text string
			to        *time.Duration
		}{{"duration", r.Duration, &duration}, {"max_duration", r.MaxDuration, &most}, {"request_ttl", r.RequestTTL, &ttl}, {"hold", r.Hold, &hold}, {"certificate", r.Certificate, &certificate}} {
			if *d.to, err = c.duration(fmt.Sprintf("policy[%d].%s", i, d.key), d.text); err != nil {
				return err
			}
		}
		keep, err := c.keepTime(fmt.Sprintf("policy[%d].keep", i), r.Keep)
		if err != nil {
			return err
		}
		masking, err := c.masking(i, r, own)
		if err != nil {
			return err
		}
		rules[i] = policy.Rule{
			Name: r.Name, Users: r.Users, Groups: r.Groups, Servers: r.Servers,
			Access: access, Mode: mode, Duration: duration, Masking: masking, Certificate: certificate, Keep: keep,
			Asking: policy.Asking{
				Approvers:   policy.Approvers{Users: r.Approvers.Users, Groups: r.Approvers.Groups, Count: r.Approvers.Count},
				MaxDuration: most, Reason: r.Reason, Auto: r.Auto, BreakGlass: r.BreakGlass, TTL: ttl, Hold: hold,
				NoRoom: r.WaitingRoom != nil && !*r.WaitingRoom, Native: r.InSlack,
			},
		}
		for _, call := range r.Calls {
			rules[i].Calls = append(rules[i].Calls, policy.CallRule{Deny: call.Deny, Approval: call.Approval, Allow: call.Allow, Reason: call.Reason})
		}
	}
	p, err := policy.Compile(rules)
	if err == nil {
		c.policy = p
		return nil
	}
	return c.policyError(err)
}

// policyError puts lines to the errors of policy.Compile.
func (c *configFile) policyError(err error) error {
	var all []error
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all = joined.Unwrap()
	} else {
		all = []error{err}
	}
	for i, err := range all {
		var e *policy.Error
		if !errors.As(err, &e) {
			continue
		}
		at := fmt.Sprintf("policy[%d]", e.Rule)
		if e.Call >= 0 {
			at += fmt.Sprintf(".calls[%d]", e.Call)
		}
		if e.Field != "" {
			at += "." + e.Field
		}
		all[i] = c.errorAt(at, e.Err)
	}
	return errors.Join(all...)
}

// admins are those who may see, revoke and disable everything.
func (c *brokerConfig) admins() policy.Approvers {
	return policy.Approvers{Users: c.Admins.Users, Groups: c.Admins.Groups}
}

// auditors are those who may read recordings over HTTP.
func (c *brokerConfig) auditors() policy.Approvers {
	return policy.Approvers{Users: c.Auditors.Users, Groups: c.Auditors.Groups}
}

// needRestart lists the keys that next has changed and that are read at the
// start only.
func (c *brokerConfig) needRestart(next *brokerConfig) (keys []string) {
	for _, k := range []struct {
		name     string
		old, new any
	}{
		{"listen", c.Listen, next.Listen}, {"metrics", c.Metrics, next.Metrics}, {"name", c.brokerFile.Name, next.brokerFile.Name}, {"url", c.URL, next.URL},
		{"data", c.Data, next.Data}, {"identity", c.Identity, next.Identity}, {"agents", c.Agents, next.Agents}, {"audit", c.Audit, next.Audit}, {"channels", c.Channels, next.Channels}, {"servers", c.Servers, next.Servers}, {"http", c.HTTP, next.HTTP}, {"limits", c.Limits, next.Limits}, {"recording", c.Recording, next.Recording},
	} {
		if !reflect.DeepEqual(k.old, k.new) {
			keys = append(keys, k.name)
		}
	}
	return keys
}

// readCertificates reads a PEM file of certificates.
func readCertificates(path string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%s: holds no certificate in PEM", path)
	}
	return certs, nil
}
