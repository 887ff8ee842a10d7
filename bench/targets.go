package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"example.com/broker/broker/identity"
	"example.com/broker/codec/detect"
	"example.com/broker/stream"
)

// Names of targets that goals speak of.
const (
	targetDirect     = "direct"
	targetBroker     = "broker"
	targetUnrecorded = "broker-unrecorded"
	targetChain      = "haproxy-2"
	targetMCPProxy   = "mcpproxy"
	targetSDK        = "go-sdk"
)

// makers are all targets, in the order of the tables.
var makers = []maker{
	{targetDirect, "the MCP server without anything in front", startDirect},
	{targetBroker, "broker serve and broker agent: policy, all detectors, recording", func(ctx context.Context, b *bed, t *target) error { return startBroker(ctx, b, t, b.broker) }},
	{targetUnrecorded, "the same, built with -tags unrecorded: nothing goes on record", func(ctx context.Context, b *bed, t *target) error { return startBroker(ctx, b, t, b.bare) }},
	{"tunnel", "the broker's tunnel alone: TLS to a tunnel to TCP, nothing inspected", startTunnel},
	{"haproxy-1", "HAProxy: TLS to TCP", func(ctx context.Context, b *bed, t *target) error { return startHAProxy(ctx, b, t, 1) }},
	{targetChain, "two HAProxies: TLS to TLS to TCP", func(ctx context.Context, b *bed, t *target) error { return startHAProxy(ctx, b, t, 2) }},
	{"stunnel-1", "stunnel: TLS to TCP", func(ctx context.Context, b *bed, t *target) error { return startStunnel(ctx, b, t, 1) }},
	{"stunnel-2", "two stunnels: TLS to TLS to TCP", func(ctx context.Context, b *bed, t *target) error { return startStunnel(ctx, b, t, 2) }},
	{"ghostunnel-1", "ghostunnel: TLS to TCP", func(ctx context.Context, b *bed, t *target) error { return startGhostunnel(ctx, b, t, 1) }},
	{"ghostunnel-2", "ghostunnels: TLS to TLS to TCP", func(ctx context.Context, b *bed, t *target) error { return startGhostunnel(ctx, b, t, 2) }},
	{targetMCPProxy, "hoop's mcpproxyd: Streamable HTTP without TLS, JSONL of each session, no masking", startMCPProxy},
	{targetSDK, "a reverse proxy on the official Go SDK: Streamable HTTP without TLS, nothing inspected", startSDK},
	{"agentgateway", "agentgateway: Streamable HTTP without TLS", startAgentgateway},
}

// lookPath finds a program, also where go install puts it.
func lookPath(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", filepath.Join(os.Getenv("HOME"), "go", "bin")} {
		if path := filepath.Join(dir, program); isExecutable(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s %w", program, errAbsent)
}

func isExecutable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

func startDirect(_ context.Context, b *bed, t *target) error {
	frames, err := b.clientTLS(serverName, stream.ALPNSession)
	if err != nil {
		return err
	}
	web, err := b.clientTLS(webName)
	if err != nil {
		return err
	}
	t.endpoints = map[string]endpoint{
		overTLS:   {addr: b.backend.TLS, tls: frames},
		overQUIC:  {addr: b.backend.QUIC, tls: frames},
		overHTTP1: {addr: b.backend.HTTPS, tls: web, path: "/mcp"},
		overHTTP2: {addr: b.backend.HTTPS, tls: web, path: "/mcp"},
		overHTTP3: {addr: b.backend.HTTP3, tls: web, path: "/mcp"},
	}
	return nil
}

// startBroker starts a broker, and an agent that has the server.
func startBroker(ctx context.Context, b *bed, t *target, program string) error {
	data := b.file(t.name)
	if err := b.caFor(data); err != nil {
		return err
	}
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	if t.metrics, err = freeAddr(); err != nil {
		return err
	}
	config := fmt.Sprintf(`listen: %s
name: localhost
data: %s
metrics: %s
servers:
  bench: {agent: beside}
  web: {agent: beside}
limits: {sessions: 20000, per_identity: 20000}
policy:
  - name: bench
    groups: [bench]
    servers: [bench, web]
    access: allow
    calls:
      - deny: tool == "rows_64k" && args.sql.matches("(?i)\\b(drop|truncate|delete)\\b")
        reason: destructive SQL
      - deny: tool.startsWith("delete_")
    mask: [%s]
`, addr, data, t.metrics, strings.Join(detect.Names(), ", "))
	if err := os.WriteFile(b.file(t.name+".yaml"), []byte(config), 0o600); err != nil {
		return err
	}
	if err := t.run(ctx, b, "serve", addr, program, "serve", "--config", b.file(t.name+".yaml"), "--drain", "1s", "--log-level", "warn"); err != nil {
		return err
	}
	token, err := identity.OpenTokens(filepath.Join(data, "tokens")).Create("beside", time.Hour)
	if err != nil {
		return err
	}
	config = fmt.Sprintf(`broker: %s
name: beside
ca: %s
token: %s
data: %s
servers:
  bench: {tcp: %s}
  web: {http: "http://%s/mcp"}
`, addr, b.ca.Pin(), token, b.file(t.name+"-agent"), b.backend.TCP, b.backend.HTTP)
	if err := os.WriteFile(b.file(t.name+"-agent.yaml"), []byte(config), 0o600); err != nil {
		return err
	}
	agent, err := startProcess(b.dir, t.name+"-agent", program, "agent", "--config", b.file(t.name+"-agent.yaml"))
	if err != nil {
		return err
	}
	t.processes = append(t.processes, agent)
	if err := agent.logs(ctx, "tunnel is up", 4); err != nil {
		return err
	}
	if err := startDirect(ctx, b, t); err != nil { // the same names and certificates
		return err
	}
	for protocol, e := range t.endpoints {
		e.addr = addr
		t.endpoints[protocol] = e
	}
	return nil
}

// chainEndpoints are those of a proxy of TLS that knows no protocol.
func (b *bed) chainEndpoints(t *target, frames, web string) error {
	if err := startDirect(context.Background(), b, t); err != nil {
		return err
	}
	for protocol, e := range t.endpoints {
		switch protocol {
		case overTLS:
			e.addr = frames
		case overHTTP1:
			e.addr = web
		default:
			delete(t.endpoints, protocol)
			continue
		}
		t.endpoints[protocol] = e
	}
	return nil
}

// freeAddrs are those that a chain of hops listens at: for frames and for HTTP, each hop.
func freeAddrs(n int) (all []string, err error) {
	for range n {
		addr, err := freeAddr()
		if err != nil {
			return nil, err
		}
		all = append(all, addr)
	}
	return all, nil
}

// startHAProxy starts a chain of HAProxies, the last one first.
func startHAProxy(ctx context.Context, b *bed, t *target, hops int) error {
	program, err := lookPath("haproxy")
	if err != nil {
		return err
	}
	next, nextWeb, toTLS := b.backend.TCP, b.backend.HTTP, ""
	for hop := hops; hop > 0; hop-- {
		at, err := freeAddrs(2)
		if err != nil {
			return err
		}
		config := fmt.Sprintf(`defaults
  mode tcp
  timeout connect 10s
  timeout client 1h
  timeout server 1h
listen frames
  bind %[1]s ssl crt %[5]s/server.pem ca-file %[5]s/ca.pem verify required ssl-min-ver TLSv1.3 alpn %[7]s
  server next %[2]s %[6]s
listen web
  bind %[3]s ssl crt %[5]s/server.pem ca-file %[5]s/ca.pem verify required ssl-min-ver TLSv1.3 alpn http/1.1
  server next %[4]s %[6]s
`, at[0], next, at[1], nextWeb, b.dir, toTLS, stream.ALPNSession)
		path := b.file(fmt.Sprintf("%s-%d.cfg", t.name, hop))
		if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
			return err
		}
		if err := t.run(ctx, b, fmt.Sprint(hop), at[0], program, "-f", path); err != nil {
			return err
		}
		next, nextWeb = at[0], at[1]
		toTLS = fmt.Sprintf("ssl verify required ca-file %[1]s/ca.pem crt %[1]s/client.pem sni str(%[2]s) ssl-min-ver TLSv1.3", b.dir, serverName)
	}
	return b.chainEndpoints(t, next, nextWeb)
}

// startStunnel starts a chain of stunnels. One that goes from TLS to TLS has two services,
// with a plain connection between.
func startStunnel(ctx context.Context, b *bed, t *target, hops int) error {
	program, err := lookPath("stunnel")
	if err != nil {
		return err
	}
	next, nextWeb := b.backend.TCP, b.backend.HTTP
	for hop := hops; hop > 0; hop-- {
		at, err := freeAddrs(4)
		if err != nil {
			return err
		}
		config := "foreground = yes\npid =\ndebug = err\n"
		if hop < hops {
			for i, to := range []*string{&next, &nextWeb} {
				config += fmt.Sprintf("[out%d]\nclient = yes\naccept = %s\nconnect = %s\ncert = %s/client.pem\nCAfile = %[4]s/ca.pem\nverifyChain = yes\nsni = %s\nsslVersionMin = TLSv1.3\n",
					i, at[2+i], *to, b.dir, serverName)
				*to = at[2+i]
			}
		}
		for i, to := range []string{next, nextWeb} {
			config += fmt.Sprintf("[in%d]\naccept = %s\nconnect = %s\ncert = %s/server.pem\nCAfile = %[4]s/ca.pem\nverifyChain = yes\nrequireCert = yes\nsslVersionMin = TLSv1.3\n",
				i, at[i], to, b.dir)
		}
		path := b.file(fmt.Sprintf("%s-%d.conf", t.name, hop))
		if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
			return err
		}
		if err := t.run(ctx, b, fmt.Sprint(hop), at[0], program, path); err != nil {
			return err
		}
		next, nextWeb = at[0], at[1]
	}
	return b.chainEndpoints(t, next, nextWeb)
}

// startGhostunnel starts a chain of ghostunnels: a server a hop, and before each but the last
// a client.
func startGhostunnel(ctx context.Context, b *bed, t *target, hops int) error {
	program, err := lookPath("ghostunnel")
	if err != nil {
		return err
	}
	next := b.backend.TCP
	for hop := hops; hop > 0; hop-- {
		at, err := freeAddrs(2)
		if err != nil {
			return err
		}
		if hop < hops {
			if err := t.run(ctx, b, fmt.Sprint("client-", hop), at[1], program, "client", "--listen", at[1], "--target", next,
				"--keystore", b.file("client.pem"), "--cacert", b.file("ca.pem"), "--override-server-name", serverName); err != nil {
				return err
			}
			next = at[1]
		}
		if err := t.run(ctx, b, fmt.Sprint("server-", hop), at[0], program, "server", "--listen", at[0], "--target", next,
			"--keystore", b.file("server.pem"), "--cacert", b.file("ca.pem"), "--allow-all"); err != nil {
			return err
		}
		next = at[0]
	}
	if err := b.chainEndpoints(t, next, ""); err != nil {
		return err
	}
	delete(t.endpoints, overHTTP1)
	return nil
}

// plainHTTP is a target that speaks Streamable HTTP without TLS, to its advantage.
func (t *target) plainHTTP(addr string) {
	t.endpoints[overHTTP1] = endpoint{addr: addr, path: "/mcp"}
}

func startMCPProxy(ctx context.Context, b *bed, t *target) error {
	program, err := lookPath("mcpproxyd")
	if err != nil {
		return err
	}
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	config := fmt.Sprintf(`listen: %s
wal_dir: %s
inbound:
  mode: anonymous
backends:
  bench:
    transport: streamable-http
    url: http://%s/mcp
    auth: none
`, addr, b.file(t.name+"-wal"), b.backend.HTTP)
	path := b.file(t.name + ".yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return err
	}
	t.plainHTTP(addr)
	return t.run(ctx, b, "gateway", addr, program, "-config", path)
}

func startSDK(ctx context.Context, b *bed, t *target) error {
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	t.plainHTTP(addr)
	return t.run(ctx, b, "proxy", addr, b.self, "sdk-proxy", "--listen", addr, "--to", "http://"+b.backend.HTTP+"/mcp")
}

func startAgentgateway(ctx context.Context, b *bed, t *target) error {
	program, err := lookPath("agentgateway")
	if err != nil {
		return err
	}
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	port := addr[strings.LastIndexByte(addr, ':')+1:]
	config := fmt.Sprintf(`binds:
- port: %s
  listeners:
  - routes:
    - backends:
      - mcp:
          targets:
          - name: bench
            mcp: {host: "http://%s/mcp"}
`, port, b.backend.HTTP)
	path := b.file(t.name + ".yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return err
	}
	t.plainHTTP(addr)
	return t.run(ctx, b, "gateway", addr, program, "-f", path)
}
