package report

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// WriteTable writes all that was measured, for a terminal.
func (r *Results) WriteTable(w io.Writer, goals []Goal) error {
	fmt.Fprintf(w, "%s\n", r.machine())
	for _, s := range r.sections() {
		fmt.Fprintf(w, "\n%s: %s\n", s.About.Name, s.About.About)
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprint(t, "  target")
		for _, metric := range s.Metrics {
			fmt.Fprintf(t, "\t%s", metric)
		}
		fmt.Fprintln(t)
		for _, row := range s.Rows {
			fmt.Fprintf(t, "  %s\t%s\n", row.Target, strings.Join(row.Shown, "\t"))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, g := range goals {
		if o := r.Outcome(g); o.Known {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", g.Name, g.wanted(), o.seen(), o.verdict())
		}
	}
	for _, s := range r.Skipped {
		fmt.Fprintf(t, "skipped\t%s\t%s\t\n", s.Name, s.About)
	}
	return t.Flush()
}

// WriteMarkdown writes goals and what was measured, for a document.
func (r *Results) WriteMarkdown(w io.Writer, goals []Goal) error {
	fmt.Fprintf(w, "%s\n\nRepeat it: `%s`\n\n", r.machine(), r.Command)
	fmt.Fprintln(w, "| work | goal | measured | |\n|---|---|---|---|")
	for _, g := range goals {
		o := r.Outcome(g)
		fmt.Fprintf(w, "| %s | %s | %s | %s |\n", g.Name, g.wanted(), o.seen(), o.verdict())
	}
	for _, s := range r.sections() {
		fmt.Fprintf(w, "\n**%s**: %s\n\n| |", s.About.Name, s.About.About)
		for _, metric := range s.Metrics {
			fmt.Fprintf(w, " %s |", metric)
		}
		fmt.Fprintf(w, "\n|---%s|\n", strings.Repeat("|---:", len(s.Metrics)))
		for _, row := range s.Rows {
			fmt.Fprintf(w, "| %s | %s |\n", row.Target, strings.Join(row.Shown, " | "))
		}
	}
	fmt.Fprintln(w)
	for _, t := range r.Targets {
		fmt.Fprintf(w, "- `%s`: %s\n", t.Name, t.About)
	}
	for _, s := range r.Skipped {
		fmt.Fprintf(w, "- `%s`: skipped: %s\n", s.Name, s.About)
	}
	return nil
}

func (r *Results) machine() string {
	m := r.Machine
	return fmt.Sprintf("%s, %d cores, %d GiB, Linux %s, %s; %s, broker %s; corpus: %s",
		m.CPU, m.Cores, (m.Memory+1<<29)>>30, m.Kernel, m.Go, r.Time.Format("2006-01-02"), r.Revision, r.Corpus)
}
