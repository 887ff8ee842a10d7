package report

import "fmt"

// A Goal is what is wanted of a target: a metric that is at least, or at most, so many
// times another one's of the same run.
type Goal struct {
	Name   string // of the work and the metric, for people
	Work   string
	Target string
	Metric Metric
	Than   Target // what it is compared with; if its Name is empty, with 1
	Factor float64
}

// A Target is what a goal is compared with: by the same metric, at the same work if none is given.
type Target struct {
	Name string
	Work string
}

// An Outcome is how a goal stands.
type Outcome struct {
	Goal     Goal
	Measured float64 // the ratio, or the value
	Known    bool    // false: not measured in this run
	Met      bool
}

// Outcome looks at a goal in results. Ratios are of the same round, and their median counts:
// what else the machine did then, both had.
func (r *Results) Outcome(g Goal) Outcome {
	o := Outcome{Goal: g}
	values := r.values(g.Work, g.Target, g.Metric)
	if len(values) == 0 {
		return o
	}
	if g.Than.Name != "" {
		work := g.Than.Work
		if work == "" {
			work = g.Work
		}
		if values = ratios(values, r.values(work, g.Than.Name, g.Metric)); len(values) == 0 {
			return o
		}
	}
	o.Known, o.Measured = true, median(values)
	if g.Metric.more() {
		o.Met = o.Measured >= g.Factor
	} else {
		o.Met = o.Measured <= g.Factor
	}
	return o
}

// ratios are those of values of the same rounds.
func ratios(values, than []float64) (all []float64) {
	for i := range min(len(values), len(than)) {
		if than[i] > 0 {
			all = append(all, values[i]/than[i])
		}
	}
	return all
}

// wanted says the goal in words.
func (g Goal) wanted() string {
	sign := "≤"
	if g.Metric.more() {
		sign = "≥"
	}
	if g.Than.Name == "" {
		return fmt.Sprintf("%s %s %s", sign, trimmed(g.Factor), g.Metric)
	}
	than := g.Than.Name
	if g.Than.Work != "" {
		than += " at " + g.Than.Work
	}
	return fmt.Sprintf("%s %s× %s", sign, trimmed(g.Factor), than)
}

func trimmed(f float64) string { return fmt.Sprintf("%.3g", f) }

// seen says the outcome in words.
func (o Outcome) seen() string {
	switch {
	case !o.Known:
		return "not measured"
	case o.Goal.Than.Name == "":
		return number(o.Measured)
	default:
		return number(o.Measured) + "×"
	}
}

// verdict is met, missed, or nothing.
func (o Outcome) verdict() string {
	switch {
	case !o.Known:
		return ""
	case o.Met:
		return "met"
	default:
		return "missed"
	}
}
