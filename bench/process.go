package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// A process is a part of a target. Its output is in a file named after it.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	over chan struct{} // closed when it has ended
	hold io.Closer     // what it reads; it ends when that does. May be nil
}

// startProcess runs a program in dir until stop.
func startProcess(dir, name, program string, args ...string) (*process, error) {
	return startProcessWith(dir, name, nil, program, args...)
}

// startProcessWith gives it an input.
func startProcessWith(dir, name string, in *os.File, program string, args ...string) (*process, error) {
	log := filepath.Join(dir, name+".log")
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p := &process{name: name, cmd: exec.Command(program, args...), log: log, over: make(chan struct{})}
	p.cmd.Dir = dir
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if in != nil {
		p.cmd.Stdin = in
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.cmd.Wait(); close(p.over) }()
	return p, nil
}

// stop ends the process: asked to, and after a while made to.
func (p *process) stop() {
	if p.hold != nil {
		p.hold.Close()
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.over:
	case <-time.After(10 * time.Second):
		p.cmd.Process.Kill()
		<-p.over
	}
}

// answers waits until something listens at an address.
func (p *process) answers(ctx context.Context, addr string) error {
	return p.until(ctx, func() bool {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
}

// logs waits until the process has logged a text so many times.
func (p *process) logs(ctx context.Context, text string, times int) error {
	return p.until(ctx, func() bool {
		log, _ := os.ReadFile(p.log)
		return strings.Count(string(log), text) >= times
	})
}

// until waits until something is so, and fails if the process ends before.
func (p *process) until(ctx context.Context, so func() bool) error {
	for !so() {
		select {
		case <-p.over:
			log, _ := os.ReadFile(p.log)
			return fmt.Errorf("%s has ended: %s", p.name, bytes.TrimSpace(log[max(0, len(log)-500):]))
		case <-ctx.Done():
			return fmt.Errorf("%s is not up: %w", p.name, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// readLog reads what the process has printed, which is JSON.
func (p *process) readLog(v any) error {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err
	}
	return json.NewDecoder(bytes.NewReader(text)).Decode(v)
}

// ticks is how many clock ticks /proc counts a second, on every Linux that Go knows.
const ticks = 100

// cpu returns the processor time that the process has taken.
func (p *process) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The name of the program stands in parentheses and may have spaces in it. proc(5):
	// utime and stime are the 14th and 15th field; the 3rd is the first behind it.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 13 {
		return 0, errors.New("/proc/PID/stat is short")
	}
	var sum int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return time.Duration(sum) * time.Second / ticks, nil
}

// memory returns what the process has of the machine's memory, in bytes.
func (p *process) memory() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		return 0, err
	}
	return resident * int64(os.Getpagesize()), nil
}

// allocated is what a Go process has allocated since its start.
type allocated struct{ bytes, objects float64 }

// readAllocated asks a process's metrics.
func readAllocated(ctx context.Context, addr string) (a allocated, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		return a, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return a, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	all, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return a, err
	}
	for name, to := range map[string]*float64{
		"go_memstats_alloc_bytes_total": &a.bytes,
		"go_memstats_mallocs_total":     &a.objects,
	} {
		family := all[name]
		if family == nil || len(family.Metric) != 1 {
			return a, fmt.Errorf("%s says nothing of %s", addr, name)
		}
		*to = family.Metric[0].GetCounter().GetValue()
	}
	return a, nil
}

// freeAddr returns an address of loopback that nobody uses.
func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}
