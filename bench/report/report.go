// Package report is what measurements come to: results as a file, tables, pages, and
// what has become worse between two of them.
//
//	r, err := report.Read("results.json")
//	r.WriteTable(os.Stdout)
//
// A measurement has a value for each round. What is shown is the median, and how far the
// values lie apart; what is compared are all of them.
package report

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"
)

// Version is of the format of results.
const Version = 1

// Results are those of one run.
type Results struct {
	Version  int        `json:"version"`
	Time     time.Time  `json:"time"`
	Command  string     `json:"command"`  // that repeats it
	Revision string     `json:"revision"` // of the broker
	Machine  Machine    `json:"machine"`
	Corpus   string     `json:"corpus"` // what the work corpus was
	Targets  []About    `json:"targets"`
	Skipped  []About    `json:"skipped"` // targets that are not there, and why
	Works    []About    `json:"works"`
	Measured []Measured `json:"measured"`
}

// About says what a name stands for.
type About struct {
	Name  string `json:"name"`
	About string `json:"about"`
}

// Machine is where it ran.
type Machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Memory int64  `json:"memory"` // bytes
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
}

// Measured is what was measured of a target at a work.
type Measured struct {
	Work   string `json:"work"`
	Target string `json:"target"`
	// Values has one for each round, by metric.
	Values map[Metric][]float64 `json:"values"`
	// Latency is how long calls took, of the last round.
	Latency []Point `json:"latency,omitempty"`
}

// A Point says that so many percent of calls took at most so many milliseconds.
type Point struct {
	Percent float64 `json:"percent"`
	Millis  float64 `json:"ms"`
}

// A Metric is what is measured, with its unit.
type Metric string

// Metrics. CPU is the processor time of all processes between client and server.
const (
	Calls     Metric = "calls/s"
	Bytes     Metric = "MB/s"
	P50       Metric = "p50 ms"
	P99       Metric = "p99 ms"
	P999      Metric = "p99.9 ms"
	First     Metric = "first byte ms"
	CPU       Metric = "CPU µs/call"
	OwnCPU    Metric = "broker CPU µs/call"
	Allocated Metric = "broker B/call"
	Objects   Metric = "broker allocs/frame"
	Memory    Metric = "KB/session"
	Wake      Metric = "all woken s"
)

// metrics are all, in the order of tables.
var metrics = []Metric{Calls, Bytes, P50, P99, P999, First, CPU, OwnCPU, Allocated, Objects, Memory, Wake}

// more reports whether more of it is better.
func (m Metric) more() bool { return m == Calls || m == Bytes }

// Read reads results from a file.
func Read(path string) (*Results, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r Results
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if r.Version != Version {
		return nil, fmt.Errorf("%s: results of version %d; this program reads version %d", path, r.Version, Version)
	}
	return &r, nil
}

// Write writes results into a file.
func (r *Results) Write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// Add adds the values of a round.
func (r *Results) Add(work, target string, values map[Metric]float64) *Measured {
	m := r.find(work, target)
	if m == nil {
		r.Measured = append(r.Measured, Measured{Work: work, Target: target, Values: map[Metric][]float64{}})
		m = &r.Measured[len(r.Measured)-1]
	}
	for metric, v := range values {
		m.Values[metric] = append(m.Values[metric], v)
	}
	return m
}

// find returns what was measured, or nil.
func (r *Results) find(work, target string) *Measured {
	for i := range r.Measured {
		if m := &r.Measured[i]; m.Work == work && m.Target == target {
			return m
		}
	}
	return nil
}

// values returns those of a metric, of which there may be none.
func (r *Results) values(work, target string, metric Metric) []float64 {
	if m := r.find(work, target); m != nil {
		return m.Values[metric]
	}
	return nil
}

// A section is what was measured at a work, as all forms of a report show it.
type section struct {
	About   About
	Metrics []Metric // that the work has
	Rows    []row
}

// A row is what was measured of a target.
type row struct {
	*Measured
	Shown []string // by metric; empty where there is none
	n     int      // of the target
}

// sections returns those of all works at which anything was measured.
func (r *Results) sections() (all []section) {
	for _, work := range r.Works {
		s := section{About: work}
		for n, target := range r.Targets {
			if m := r.find(work.Name, target.Name); m != nil {
				s.Rows = append(s.Rows, row{Measured: m, n: n})
			}
		}
		for _, metric := range metrics {
			if slices.ContainsFunc(s.Rows, func(r row) bool { return len(r.Values[metric]) > 0 }) {
				s.Metrics = append(s.Metrics, metric)
			}
		}
		for i := range s.Rows {
			for _, metric := range s.Metrics {
				s.Rows[i].Shown = append(s.Rows[i].Shown, shown(s.Rows[i].Values[metric]))
			}
		}
		if len(s.Metrics) > 0 {
			all = append(all, s)
		}
	}
	return all
}

// median is the middle one; of an even number, the mean of the two.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// spread is how far values lie from their median at most, as a part of it.
func spread(values []float64) float64 {
	m := median(values)
	if m == 0 {
		return 0
	}
	return max(slices.Max(values)-m, m-slices.Min(values)) / m
}

// number writes three digits of a number, or all before its point.
func number(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.2fM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.1fk", v/1e3)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// shown is a median and its spread.
func shown(values []float64) string {
	if len(values) == 0 {
		return ""
	}
	if len(values) == 1 {
		return number(values[0])
	}
	return fmt.Sprintf("%s ±%.0f%%", number(median(values)), 100*spread(values))
}
