package report

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// A Change is a metric that differs between two runs by more than noise.
type Change struct {
	Work, Target string
	Metric       Metric
	Old, New     float64 // medians
	ToBaseline   bool    // they are ratios to the baseline's of the same round
	Worse        bool
}

// least is what a change must be at least, as a part of what was: less is not worth a look.
const least = 0.05

// Compare says what has changed. Where the baseline was measured at the same work in both
// runs, ratios to it are compared: how fast the machine was drops out of them. A change is
// beyond noise if no value of one run lies among those of the other; with three rounds
// each that happens by chance once in ten times, with five once in a hundred.
func Compare(old, new *Results, baseline string) (all []Change) {
	for _, m := range new.Measured {
		before := old.find(m.Work, m.Target)
		if before == nil {
			continue
		}
		for _, metric := range metrics {
			c := Change{Work: m.Work, Target: m.Target, Metric: metric}
			was, is := before.Values[metric], m.Values[metric]
			if m.Target != baseline {
				a, b := ratios(was, old.values(m.Work, baseline, metric)), ratios(is, new.values(m.Work, baseline, metric))
				if c.ToBaseline = len(a) > 0 && len(b) > 0; c.ToBaseline {
					was, is = a, b
				}
			}
			if len(was) == 0 || len(is) == 0 {
				continue
			}
			c.Old, c.New = median(was), median(is)
			apart := slices.Min(is) > slices.Max(was) || slices.Max(is) < slices.Min(was)
			if d := c.New - c.Old; !apart || max(d, -d) < least*c.Old {
				continue
			}
			c.Worse = (c.New < c.Old) == metric.more()
			all = append(all, c)
		}
	}
	return all
}

// WriteChanges writes what has changed, what is worse first.
func WriteChanges(w io.Writer, all []Change) error {
	if len(all) == 0 {
		fmt.Fprintln(w, "nothing has changed beyond noise")
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, worse := range []bool{true, false} {
		for _, c := range all {
			if c.Worse != worse {
				continue
			}
			word, of := "better", ""
			if worse {
				word = "worse"
			}
			if c.ToBaseline {
				of = "of the baseline's"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s → %s\t%+.0f%%\t%s\n", word, c.Work, c.Target, c.Metric, number(c.Old), number(c.New), 100*(c.New/c.Old-1), of)
		}
	}
	return t.Flush()
}
