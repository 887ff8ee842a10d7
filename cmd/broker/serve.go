package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"example.com/broker/broker"
	"example.com/broker/broker/agent"
	"example.com/broker/broker/agent/credential"
	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
	"example.com/broker/broker/notice"
	"example.com/broker/broker/oauth"
	"example.com/broker/broker/signin"
	"example.com/broker/recorder"
	"example.com/broker/recorder/archive"
	"example.com/broker/stream"
	"github.com/spf13/cobra"
)

func serve() *cobra.Command {
	var (
		config string
		drain  time.Duration
		log    logFlags
	)
	cmd := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "run the broker",
		Long: `Run the broker: one port, TCP (TLS 1.3) and UDP (QUIC), for clients and agents.

The policy and the certificates are read again when their files change and on
SIGHUP; a file that does not load leaves what is in force and says so. SIGTERM
and interrupt refuse new sessions and give running ones time to end.`,
		Example: "  broker serve --config broker.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger, err := log.logger()
			if err != nil {
				return err
			}
			slog.SetDefault(logger) // of credentials
			in, err := openInstallation(config, logger)
			if err != nil {
				return err
			}
			return in.run(cmd.Context(), drain)
		},
	}
	cmd.Flags().StringVarP(&config, "config", "c", "broker.yaml", "the configuration `FILE`")
	cmd.Flags().DurationVar(&drain, "drain", 30*time.Second, "what running sessions are given on SIGTERM")
	log.add(cmd)
	return cmd
}

// An installation is a broker with all that it needs, ready to run.
type installation struct {
	config   *brokerConfig
	ca       *identity.CA
	keyring  *broker.Keyring
	recorder *recorder.Log
	metrics  net.Listener // nil: nobody asks for any
	desk     *grant.Desk
	store    grant.Store   // of desk
	oauth    *oauth.Server // may be nil
	slack    *notice.Slack // may be nil
	broker   *broker.Broker
	listener *stream.Listener
	log      *slog.Logger
	seen     [sha256.Size]byte // of the files that are in force, see digest

	endAccess func() error // closes desk and its store
}

// openInstallation reads the configuration, opens the data folder and binds the port.
func openInstallation(path string, log *slog.Logger) (_ *installation, err error) {
	config, err := readBrokerConfig(path)
	if err != nil {
		return nil, err
	}
	if err := openData(config.Data); err != nil {
		return nil, err
	}
	in := &installation{config: config, log: log}
	if in.ca, err = identity.OpenCA(config.Data); err != nil {
		return nil, err
	}
	in.seen = in.digest()
	if in.config, err = readBrokerConfig(path); err != nil { // not before what was seen
		return nil, err
	}
	config = in.config
	if err := in.ca.Reload(); err != nil {
		return nil, err
	}
	in.keyring = &broker.Keyring{CA: in.ca, Names: in.names()}
	if err := in.setCertificate(config); err != nil {
		return nil, err
	}
	users, err := in.users(config)
	if err != nil {
		return nil, err
	}
	limits := config.limits
	if in.listener, err = stream.Listen(config.Listen, stream.Options{
		TLS: in.keyring.Config(), Handshake: limits.Handshake, MaxConns: 2 * limits.Sessions, Log: log,
	}); err != nil {
		return nil, err
	}
	key, err := recorder.OpenKey(config.Data)
	if err == nil {
		err = config.checkEncryption()
	}
	if err == nil {
		in.recorder, err = recorder.Open(recorder.Options{
			Dir: filepath.Join(config.Data, "log"), Free: config.free, Log: log, Key: key, Sync: config.sync,
			Encryption: config.Recording.Encryption.Key, Originals: config.sealTo,
			Read: in.recordReading, Custody: in.recordCustody, Retain: true, Keep: config.keep,
			Archive: config.Recording.Archive.To, ArchiveAfter: config.archive, OpenArchive: archive.Open,
		})
	}
	if err != nil {
		in.listener.Close()
		return nil, err
	}
	if err := in.openAccess(); err != nil {
		in.listener.Close()
		in.recorder.Close()
		return nil, err
	}
	sealer, err := identity.OpenSealer(config.Data)
	if err != nil {
		in.close()
		return nil, err
	}
	var sign *signin.Service
	if len(config.providers) > 0 || config.workloads != nil {
		sign = signin.New(signin.Options{
			Providers: config.providers, Workloads: config.workloads, CA: in.ca, Desk: in.desk, URL: in.url(),
			Lifetime: func(id identity.Identity) time.Duration { return in.broker.Lifetime(id) }, Log: log,
		})
	}
	if in.oauth, err = in.newOAuth(sign, sealer); err != nil {
		in.close()
		return nil, err
	}
	var google *identity.Attestor
	if len(config.instances) > 0 {
		google = identity.NewAttestor(identity.GoogleIssuer, nil)
	}
	used := func(u credential.Use) {
		if err := in.desk.Record(context.Background(), broker.UsedEvent("", agent.Used(u))); err != nil {
			log.Error("the use of a credential is not on record", "session", u.Session, "error", err)
		}
	}
	config.used.Store(&used)
	in.slack = config.newSlack(in, in.desk)
	var presses http.Handler // not a nil *notice.Slack
	if in.slack != nil {
		presses = in.slack
	}
	in.broker = broker.New(broker.Options{
		Slack: presses, OAuth: in.oauth,
		Desk: in.desk, Sealer: sealer, URL: in.url(), SignIn: sign, Google: google, Instances: config.instances,
		CA: in.ca, Tokens: openTokens(config.Data), Users: users,
		Policy:  config.policy,
		Servers: config.servers, Local: &agent.Agent{Servers: config.local, Log: log},
		HTTP: stream.HTTPOptions{Origins: config.HTTP.Origins, Host: in.isHost},
		Log:  in.recorder, Limits: limits, Tunnel: stream.TunnelOptions{Log: log}, Logger: log,
	})
	in.broker.SetAuditors(config.auditors())
	if config.Metrics != "" {
		if in.metrics, err = net.Listen("tcp", config.Metrics); err != nil {
			in.close()
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	return in, nil
}

// checkEncryption refuses a log that is encrypted where the configuration says
// nothing of it: who has taken it out means something by it.
func (c *brokerConfig) checkEncryption() error {
	by, err := recorder.EncryptedBy(filepath.Join(c.Data, "log"))
	if err == nil && by != "" && c.Recording.Encryption.Key == "" {
		err = hinted{
			fmt.Errorf("the log in %s is encrypted, and %s says nothing of it", c.Data, c.path),
			fmt.Sprintf("set recording.encryption.key to %s; or write the log anew: broker log decrypt", by),
		}
	}
	return err
}

// recordReading puts on record that recordings are read through the socket.
func (in *installation) recordReading(ctx context.Context, r recorder.Reading) error {
	return in.desk.Record(ctx, broker.ReadEvent(r, "socket"))
}

// recordCustody puts on record that a session is held, released or deleted.
func (in *installation) recordCustody(ctx context.Context, c recorder.Custody) error {
	via := "socket"
	if c.By == recorder.Retention {
		via = "broker"
	}
	return in.desk.Record(ctx, broker.CustodyEvent(c, via))
}

// newOAuth makes what gives MCP clients by URL their tokens, if there is anybody
// who can be known by one.
func (in *installation) newOAuth(sign *signin.Service, sealer *identity.Sealer) (*oauth.Server, error) {
	c := in.config
	if len(c.providers) == 0 && c.workloads == nil && c.foreign == nil {
		return nil, nil
	}
	o := oauth.Options{
		URL: in.url(), Dir: c.Data, Desk: in.desk, Store: in.store, Sealer: sealer,
		Foreign: c.foreign, Issuers: c.issuers, Workloads: c.workloads, Log: in.log,
	}
	if len(c.providers) > 0 {
		o.Visits = sign
	}
	return oauth.New(o)
}

// sweepInterval is how often the store is freed of what is over.
const sweepInterval = time.Hour

// sweep frees the store of clients' sign-ins that are over, until ctx is done.
func (in *installation) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		if err := in.oauth.Sweep(ctx); err != nil && ctx.Err() == nil {
			in.log.Error("sign-ins of clients that are over are not removed", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// run serves until ctx is done, then drains.
func (in *installation) run(ctx context.Context, drain time.Duration) error {
	in.log.Info("broker is up", "listen", in.listener.Addr().String(), "data", in.config.Data, "ca", in.ca.Pin())
	serving, stop := context.WithCancel(context.WithoutCancel(ctx)) // outlives ctx by the drain
	defer stop()
	var running sync.WaitGroup
	ends := make(chan error, 3)
	running.Go(func() { ends <- in.listener.Serve(serving, in.broker.Handlers()) })
	running.Go(func() { ends <- recorder.ServeSocket(serving, in.config.Data, in.recorder) })
	if in.metrics != nil {
		running.Go(func() { ends <- in.serveMetrics(serving, in.metrics) })
	}
	running.Go(func() { in.watch(serving) })
	running.Go(func() { giveBack(serving) })
	if in.oauth != nil {
		running.Go(func() { in.sweep(serving) })
	}
	for _, f := range in.config.followers {
		running.Go(func() {
			if err := in.desk.Follow(serving, f.name, f.all, f.sink(in)); err != nil {
				in.log.Error("events are not exported", "to", f.name, "error", err)
			}
		})
	}

	var err error
	select {
	case <-ctx.Done():
		in.log.Info("shutting down", "sessions", in.broker.Sessions(), "drain", drain)
		draining, cancel := context.WithTimeout(serving, drain)
		in.broker.Drain(draining)
		cancel()
	case err = <-ends:
		in.log.Error("shutting down", "error", err)
	}
	stop()
	running.Wait()
	if cerr := in.close(); err == nil {
		err = cerr
	}
	in.log.Info("broker is down")
	return err
}

// openAccess opens the requests and grants.
func (in *installation) openAccess() error {
	store, err := grant.OpenBadger(filepath.Join(in.config.Data, accessDir), accessFree)
	if err != nil {
		return err
	}
	in.store = store
	life, end := context.WithCancel(context.Background())
	in.desk, err = grant.Open(life, grant.Options{
		Store: store, Admins: in.config.admins(), Log: in.log,
		Told: func(e grant.Event, _ *grant.Request) {
			if e.Type == grant.IdentityDisabled {
				in.broker.EndDisabled()
			}
			in.log.Info("access", "event", e.Type, "actor", e.Actor, "subject", e.Subject, "server", e.Server, "request", e.Request, "grant", e.Grant)
		},
	})
	if err != nil {
		end()
		return errors.Join(err, store.Close())
	}
	in.endAccess = func() error {
		end()
		in.desk.Close()
		return store.Close()
	}
	return nil
}

// accessDir is where requests, grants and events are, in the data folder.
const accessDir = "access"

// accessFree is what must stay free on the disk of requests and grants, in bytes.
const accessFree = 64 << 20

// close closes what the installation has on disk.
func (in *installation) close() error { return errors.Join(in.endAccess(), in.recorder.Close()) }

// url is where people reach the pages; a port of 0 has become one that was free.
func (in *installation) url() string {
	if _, port, _ := net.SplitHostPort(in.config.Listen); port != "0" {
		return in.config.URL
	}
	_, port, _ := net.SplitHostPort(in.listener.Addr().String())
	return strings.TrimSuffix(in.config.URL, ":0") + ":" + port
}

// names are the host names and addresses of the broker's own certificate.
func (in *installation) names() []string {
	hosts := []string{"localhost"}
	if name, err := os.Hostname(); err == nil && name != "" {
		hosts = append(hosts, name)
	}
	if in.config.Name != "" {
		hosts = append(hosts, in.config.Name)
	}
	names := []string{"127.0.0.1", "::1"}
	if host, _, err := net.SplitHostPort(in.config.Listen); err == nil && net.ParseIP(host) != nil && !net.ParseIP(host).IsUnspecified() {
		names = append(names, host)
	}
	for _, host := range hosts {
		names = append(names, host, "*."+host)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// isHost reports whether a Host header without its port is a name of this broker's.
func (in *installation) isHost(host string) bool {
	u, _ := url.Parse(in.config.URL)
	if host == strings.ToLower(u.Hostname()) || slices.Contains(in.config.HTTP.Hosts, host) || slices.Contains(in.keyring.Names, host) {
		return true
	}
	_, domain, _ := strings.Cut(host, ".")
	return domain != "" && slices.Contains(in.keyring.Names, domain) || in.keyring.Shows(host)
}

// setCertificate shows clients the certificate of tls.cert, if there is one.
func (in *installation) setCertificate(config *brokerConfig) error {
	if config.TLS.Cert == "" {
		in.keyring.Set(nil)
		return nil
	}
	cert, err := tls.LoadX509KeyPair(config.TLS.Cert, config.TLS.Key)
	if err != nil {
		return config.errorAt("tls.cert", err)
	}
	in.keyring.Set(&cert)
	return nil
}

// users verifies clients by the broker's own CA and those of tls.client_ca.
func (in *installation) users(config *brokerConfig) (*identity.Verifier, error) {
	roots := in.ca.Certificates()
	for i, file := range config.TLS.ClientCA {
		certs, err := readCertificates(file)
		if err != nil {
			return nil, config.errorAt(fmt.Sprintf("tls.client_ca[%d]", i), err)
		}
		roots = append(roots, certs...)
	}
	return identity.NewVerifier(roots...), nil
}

// watchInterval is how often files are looked at. Kubernetes swaps links, which
// no notification tells.
const watchInterval = 2 * time.Second

// watch puts changed files into force until ctx is done.
func (in *installation) watch(ctx context.Context) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		case <-tick.C:
			if err := in.recordNoted(ctx); err != nil {
				in.log.Error("what was noted in the data folder is not on record", "error", err)
			}
			if in.digest() == in.seen {
				continue
			}
		}
		in.reload()
	}
}

// digest is a hash of all the files that are read again.
func (in *installation) digest() (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, file := range slices.Concat([]string{in.config.path, in.config.TLS.Cert, in.config.TLS.Key}, in.config.TLS.ClientCA, in.ca.Files()) {
		b, err := os.ReadFile(file)
		fmt.Fprintln(h, len(b), err != nil)
		h.Write(b)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// reload puts policy and certificates into force. All of it loads, or nothing changes.
func (in *installation) reload() {
	in.seen = in.digest()
	config, err := readBrokerConfig(in.config.path)
	var users *identity.Verifier
	if err == nil {
		err = in.ca.Reload()
	}
	if err == nil {
		users, err = in.users(config)
	}
	if err == nil {
		err = in.setCertificate(config)
	}
	if err != nil {
		in.log.Error("configuration does not load; what was in force stays", "error", err)
		return
	}
	in.keyring.Renew()
	in.broker.SetUsers(users)
	in.broker.SetPolicy(config.policy)
	in.broker.SetAuditors(config.auditors())
	in.desk.SetAdmins(config.admins())
	if needs := in.config.needRestart(config); len(needs) > 0 {
		in.log.Warn("not all that has changed is in force: restart the broker", "changed", needs)
	}
	in.config.TLS = config.TLS
	in.log.Info("policy and certificates loaded")
}

// openData makes the data folder where missing, and refuses one that is not ours alone.
func openData(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	return checkData(dir)
}

// checkData refuses a data folder of another user: what root writes into it,
// its owner can no longer open.
func checkData(dir string) error {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return hinted{fmt.Errorf("data folder %s: no such folder", dir), "name the broker's data folder with --data DIR"}
	}
	if err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("data folder %s: is no folder", dir)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return hinted{
			fmt.Errorf("data folder %s: belongs to another user (uid %d)", dir, st.Uid),
			fmt.Sprintf("run this as that user: sudo -u '#%d' broker …", st.Uid),
		}
	}
	if info.Mode().Perm()&0o077 != 0 {
		return hinted{
			fmt.Errorf("data folder %s: is open to other users (mode %04o)", dir, info.Mode().Perm()),
			"it holds keys and recordings: chmod 700 " + dir,
		}
	}
	return nil
}

func openTokens(data string) *identity.Tokens {
	return identity.OpenTokens(filepath.Join(data, "tokens"))
}
