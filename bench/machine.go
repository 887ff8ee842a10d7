package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"example.com/broker/bench/report"
	"golang.org/x/sys/unix"
)

// newResults describes the run.
func newResults(x *exchanges, command string) *report.Results {
	r := &report.Results{
		Version: report.Version, Time: time.Now().UTC().Truncate(time.Second), Command: strings.TrimSpace(command), Revision: revision(),
		Machine: report.Machine{CPU: processor(), Cores: runtime.NumCPU(), Memory: memory(), Kernel: kernel(), Go: runtime.Version()},
		Corpus:  "made up",
	}
	if x.real {
		r.Corpus = "captured sessions"
	}
	return r
}

// revision is the commit that this program was built from, which the broker beside it is of.
func revision() string {
	info, _ := debug.ReadBuildInfo()
	var commit, changed string
	if info != nil {
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				commit = s.Value[:min(12, len(s.Value))]
			case s.Key == "vcs.modified" && s.Value == "true":
				changed = " with changes"
			}
		}
	}
	if commit == "" {
		return "of no known revision"
	}
	return commit + changed
}

func processor() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func memory() int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	return int64(info.Totalram) * int64(info.Unit)
}

func kernel() string {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return ""
	}
	return unix.ByteSliceToString(name.Release[:])
}
