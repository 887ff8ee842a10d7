// Bench measures the broker side by side with doing without it, with plain TLS proxies and
// with MCP gateways, in one run and on the same work.
//
// It starts each target that is installed as processes of their own, on loopback, with one
// MCP server behind all of them; targets take turns at each work, round after round. What
// comes out is a table, results.json and a page with plots. Run bench -help for its flags;
// docs/performance.md says what the works and the goals are, and what was measured.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"example.com/broker/bench/report"
	"example.com/broker/stream"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := run(ctx, os.Args[1:])
	stop()
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "bench: error:", err)
	if errors.Is(err, errUsage) {
		os.Exit(2)
	}
	os.Exit(1)
}

var errUsage = errors.New("see bench -help")

// options are the flags.
type options struct {
	out              string
	rounds           int
	duration, warmup time.Duration
	calm             time.Duration
	rate             float64
	idle             int
	work, target     *regexp.Regexp
	corpus           string
	broker, bare     string
	keep             bool
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "backend":
			return runBackend(ctx, args[1:])
		case "sdk-proxy":
			return runSDKProxy(ctx, args[1:])
		case "tunnel":
			return runTunnel(ctx, args[1:])
		}
	}
	var o options
	var works, targets, counts, markdown, table string
	var compare, update bool
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&o.out, "out", "bench-results", "`folder` for results.json and report.html")
	flags.IntVar(&o.rounds, "rounds", 3, "how often targets take turns at each work")
	flags.DurationVar(&o.duration, "duration", 3*time.Second, "what is counted of each work")
	flags.DurationVar(&o.warmup, "warmup", time.Second, "what goes before, and is not counted")
	flags.DurationVar(&o.calm, "calm", time.Second, "how long targets must have had nothing to do before each work")
	flags.Float64Var(&o.rate, "rate", 2000, "`calls` a second in open loops over TLS; over HTTP a quarter of it")
	flags.IntVar(&o.idle, "idle", 10000, "how many sessions are idle")
	flags.StringVar(&works, "work", "", "only works whose name matches this `expression`")
	flags.StringVar(&targets, "target", "", "only targets whose name matches this `expression`")
	flags.StringVar(&o.corpus, "corpus", "../shared/testdata/mcp-corpus", "`folder` of captured sessions; what is like them is made up where it is absent")
	flags.StringVar(&o.broker, "broker", "bin/broker", "the `program` that is measured")
	flags.StringVar(&o.bare, "unrecorded", "bin/broker-unrecorded", "the same `program` built with -tags unrecorded")
	flags.BoolVar(&o.keep, "keep", false, "leave the folder with the logs of all processes, and say where it is")
	flags.BoolVar(&compare, "compare", false, "say what has changed beyond noise between the files OLD and NEW; exit status 1 if anything is worse")
	flags.StringVar(&markdown, "markdown", "", "write the results in this `file` as Markdown, and measure nothing")
	flags.StringVar(&table, "table", "", "write the results in this `file` as a table, and measure nothing")
	flags.StringVar(&counts, "counts", "", "count what calls take of the broker (allocations, instructions), compare with this `file`, and fail on more")
	flags.BoolVar(&update, "update", false, "with -counts: write the file")
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), `Bench measures the broker beside other ways to an MCP server.

  bench                               all works, all targets that are installed
  bench -work tls -target 'direct|broker|haproxy-2' -rounds 5
  bench -compare old.json new.json    what has changed
  bench -counts bench/counts.json     what CI runs

`)
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return errUsage // flag has said why
	}
	var err error
	if o.work, err = regexp.Compile(works); err == nil {
		o.target, err = regexp.Compile(targets)
	}
	if err != nil {
		return fmt.Errorf("%w; %w", err, errUsage)
	}
	if o.rounds < 1 || o.duration <= 0 || o.warmup < 0 || o.rate <= 0 || o.idle < 1 {
		return fmt.Errorf("rounds, duration, rate and idle must be above 0: %w", errUsage)
	}
	switch {
	case compare:
		if flags.NArg() != 2 {
			return fmt.Errorf("-compare needs two files: %w", errUsage)
		}
		return compareFiles(flags.Arg(0), flags.Arg(1))
	case flags.NArg() > 0:
		return fmt.Errorf("argument %q: %w", flags.Arg(0), errUsage)
	case markdown != "":
		r, err := report.Read(markdown)
		if err != nil {
			return err
		}
		return r.WriteMarkdown(os.Stdout, goals)
	case table != "":
		r, err := report.Read(table)
		if err != nil {
			return err
		}
		return r.WriteTable(os.Stdout, goals)
	case counts != "":
		return runCounts(ctx, o, counts, update)
	default:
		return runWorks(ctx, o, "bench "+strings.Join(args, " "))
	}
}

func runBackend(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench backend", flag.ContinueOnError)
	dir := flags.String("dir", "", "folder of the certificates")
	corpus := flags.String("corpus", "", "folder of captured sessions")
	if err := flags.Parse(args); err != nil {
		return errUsage
	}
	x, err := readExchanges(*corpus)
	if err != nil {
		return err
	}
	c, err := serverTLS(*dir)
	if err != nil {
		return err
	}
	return serveBackend(ctx, x, c)
}

func runSDKProxy(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench sdk-proxy", flag.ContinueOnError)
	listen := flags.String("listen", "", "address")
	to := flags.String("to", "", "URL of the MCP server")
	if err := flags.Parse(args); err != nil {
		return errUsage
	}
	return serveSDKProxy(ctx, *listen, *to)
}

func runTunnel(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench tunnel", flag.ContinueOnError)
	dir := flags.String("dir", "", "folder of the certificates")
	tunnel := flags.String("tunnel", "", "address at which the ends meet")
	listen := flags.String("listen", "", "address for clients, of the end that has them")
	to := flags.String("to", "", "address of the server, for the other end")
	if err := flags.Parse(args); err != nil {
		return errUsage
	}
	if *to == "" {
		c, err := serverTLS(*dir)
		if err != nil {
			return err
		}
		return serveTunnel(ctx, c, *listen, *tunnel)
	}
	c, err := clientTLS(*dir, serverName, stream.ALPNSession)
	if err != nil {
		return err
	}
	return joinTunnel(ctx, c, *tunnel, *to)
}

func compareFiles(old, new string) error {
	was, err := report.Read(old)
	if err != nil {
		return err
	}
	is, err := report.Read(new)
	if err != nil {
		return err
	}
	changes := report.Compare(was, is, targetDirect)
	if err := report.WriteChanges(os.Stdout, changes); err != nil {
		return err
	}
	worse := 0
	for _, c := range changes {
		if c.Worse {
			worse++
		}
	}
	if worse > 0 {
		return fmt.Errorf("%d figures are worse", worse)
	}
	return nil
}

// inBed makes a folder with certificates and the MCP server for what f does.
func inBed(ctx context.Context, o options, f func(*bed, *exchanges) error) error {
	dir, err := os.MkdirTemp("", "broker-bench-")
	if err != nil {
		return err
	}
	if o.keep {
		fmt.Fprintln(os.Stderr, "bench: processes log in", dir)
	} else {
		defer os.RemoveAll(dir)
	}
	b, err := newBed(dir)
	if err != nil {
		return err
	}
	for from, to := range map[string]*string{o.broker: &b.broker, o.bare: &b.bare, o.corpus: &b.corpus} {
		if *to, err = filepath.Abs(from); err != nil {
			return err
		}
	}
	if !isExecutable(b.broker) {
		return fmt.Errorf("%s is not a program: make bench builds it", o.broker)
	}
	x, err := readExchanges(b.corpus)
	if err != nil {
		return err
	}
	backend, err := b.startBackend(ctx)
	if backend != nil {
		defer backend.stop()
	}
	if err != nil {
		return err
	}
	return f(b, x)
}

// runWorks is the measurement.
func runWorks(ctx context.Context, o options, command string) error {
	return inBed(ctx, o, func(b *bed, x *exchanges) error {
		r := newResults(x, command)
		var targets []*target
		defer func() {
			for _, t := range targets {
				t.stop()
			}
		}()
		for _, m := range makers {
			if !o.target.MatchString(m.name) {
				continue
			}
			t, err := b.startTarget(ctx, m)
			if errors.Is(err, errAbsent) {
				r.Skipped = append(r.Skipped, report.About{Name: m.name, About: strings.TrimPrefix(err.Error(), m.name+": ")})
				fmt.Fprintln(os.Stderr, "bench: skipped", err)
				continue
			}
			if err != nil {
				return err
			}
			targets = append(targets, t)
			r.Targets = append(r.Targets, report.About{Name: t.name, About: t.about})
		}
		var all []work
		for _, w := range works(o) {
			if o.work.MatchString(w.name) {
				all = append(all, w)
				r.Works = append(r.Works, report.About{Name: w.name, About: w.about})
			}
		}
		if len(all) == 0 || len(targets) == 0 {
			return fmt.Errorf("no work or no target has such a name: %w", errUsage)
		}
		if err := takeTurns(ctx, o, x, r, all, targets); err != nil {
			return err
		}
		if err := writeResults(o, r); err != nil {
			return err
		}
		return r.WriteTable(os.Stdout, goals)
	})
}

// takeTurns lets the targets do each work in turn, in each round another first.
func takeTurns(ctx context.Context, o options, x *exchanges, r *report.Results, works []work, targets []*target) error {
	for round := range o.rounds {
		for n, w := range works {
			fmt.Fprintf(os.Stderr, "bench: round %d of %d, work %d of %d: %s\n", round+1, o.rounds, n+1, len(works), w.name)
			for i := range targets {
				t := targets[(i+round)%len(targets)]
				if _, ok := t.endpoints[w.protocol]; !ok || w.only != nil && !w.only(t.name) {
					continue
				}
				if err := settle(ctx, o.calm, targets...); err != nil {
					return err
				}
				got, err := w.do(ctx, x, t, o)
				if err != nil {
					return fmt.Errorf("%s at %s: %w", t.name, w.name, err)
				}
				r.Add(w.name, t.name, got.values).Latency = got.latency
			}
		}
	}
	return nil
}

func writeResults(o options, r *report.Results) error {
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	path := filepath.Join(o.out, "results.json")
	if err := r.Write(path); err != nil {
		return err
	}
	html, err := os.Create(filepath.Join(o.out, "report.html"))
	if err != nil {
		return err
	}
	if err := errors.Join(r.WriteHTML(html, goals, sweeps), html.Close()); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "bench: results are in", path, "and", html.Name())
	return nil
}
