package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"
)

//go:embed report.html
var page string

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"wanted": Goal.wanted, "seen": Outcome.seen, "verdict": Outcome.verdict,
}).Parse(page))

// A Sweep is works that differ in one number only, which a plot has along its axis.
type Sweep struct {
	Name   string
	Metric Metric
	Axis   string // what the number is
	Works  []string
	At     []float64 // the number, by work
}

// WriteHTML writes all that was measured as one page that needs nothing else: tables, and
// plots of latencies, of sweeps and of processor time.
func (r *Results) WriteHTML(w io.Writer, goals []Goal, sweeps []Sweep) error {
	type plotted struct {
		section
		Plot template.HTML
	}
	data := struct {
		Results  *Results
		Machine  string
		Outcomes []Outcome
		Sections []plotted
		Plots    []template.HTML
	}{Results: r, Machine: r.machine()}
	for _, g := range goals {
		data.Outcomes = append(data.Outcomes, r.Outcome(g))
	}
	for _, s := range sweeps {
		data.Plots = append(data.Plots, r.sweep(s).svg())
	}
	for _, s := range r.sections() {
		data.Sections = append(data.Sections, plotted{s, s.latency().svg()})
	}
	return pageTemplate.Execute(w, data)
}

// latency is the plot of how long calls took.
func (s *section) latency() plot {
	p := plot{title: "latency, ms, by percentile", x: tails, y: log10, xLabel: percentile, yLabel: decimal}
	for _, row := range s.Rows {
		l := line{name: row.Target, color: color(row.n)}
		for _, point := range row.Latency {
			l.points = append(l.points, [2]float64{point.Percent, point.Millis})
		}
		if len(l.points) > 1 {
			p.lines = append(p.lines, l)
		}
	}
	return p
}

// sweep is the plot of a sweep.
func (r *Results) sweep(s Sweep) plot {
	p := plot{title: fmt.Sprintf("%s: %s by %s", s.Name, s.Metric, s.Axis), x: log10, y: identity, xLabel: decimal, yLabel: decimal}
	for i, target := range r.Targets {
		l := line{name: target.Name, color: color(i)}
		for j, work := range s.Works {
			if values := r.values(work, target.Name, s.Metric); len(values) > 0 {
				l.points = append(l.points, [2]float64{s.At[j], median(values)})
			}
		}
		if len(l.points) > 1 {
			p.lines = append(p.lines, l)
		}
	}
	return p
}

// A plot is lines between axes.
type plot struct {
	title          string
	x, y           func(float64) float64 // scales
	xLabel, yLabel func(float64) string
	lines          []line
}

type line struct {
	name, color string
	points      [][2]float64
}

func identity(v float64) float64 { return v }
func log10(v float64) float64    { return math.Log10(max(v, 1e-6)) }

// tails gives each further nine of a percentile as much room.
func tails(percent float64) float64 { return -math.Log10(max(1-percent/100, 1e-5)) }

func percentile(v float64) string { return "p" + fmt.Sprintf("%.6g", v) }
func decimal(v float64) string    { return number(v) }

// color is one of a few that can be told apart, also by who does not see red and green
// (Okabe and Ito, "Color Universal Design").
func color(i int) string {
	all := []string{"#000000", "#d55e00", "#e69f00", "#0072b2", "#56b4e9", "#009e73", "#7fc97f", "#cc79a7", "#999999", "#8c510a", "#5e3c99", "#b2abd2"}
	return all[i%len(all)]
}

// Sizes of a plot, in pixels.
const (
	plotWidth, plotHeight = 680, 320
	left, right           = 70, 140
	top, bottom           = 30, 40
)

// svg draws the plot; nothing if it has no lines.
func (p plot) svg() template.HTML {
	if len(p.lines) == 0 {
		return ""
	}
	x0, x1, y0, y1 := math.Inf(1), math.Inf(-1), math.Inf(1), math.Inf(-1)
	marks := map[string][2]float64{} // of the axis along the bottom, by label
	for _, l := range p.lines {
		for _, point := range l.points {
			x, y := p.x(point[0]), p.y(point[1])
			x0, x1, y0, y1 = min(x0, x), max(x1, x), min(y0, y), max(y1, y)
			marks[p.xLabel(point[0])] = point
		}
	}
	if y := p.y(0); y == 0 { // a scale with a zero shows it
		y0 = 0
	}
	if x1 == x0 {
		x1++
	}
	if y1 == y0 {
		y1++
	}
	at := func(x, y float64) (float64, float64) {
		return left + (x-x0)/(x1-x0)*(plotWidth-left-right), plotHeight - bottom - (y-y0)/(y1-y0)*(plotHeight-top-bottom)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" width="%d" height="%d" role="img"><title>%s</title><text x="%d" y="18" class="t">%[5]s</text>`,
		plotWidth, plotHeight, plotWidth, plotHeight, template.HTMLEscapeString(p.title), left)
	for i := range 5 {
		y := y0 + (y1-y0)*float64(i)/4
		_, py := at(x0, y)
		v := y
		if p.y(10) == 1 { // logarithmic
			v = math.Pow(10, y)
		}
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" class="g"/><text x="%d" y="%.1f" class="y">%s</text>`, left, py, plotWidth-right, left-6, py+4, p.yLabel(v))
	}
	for label, point := range marks {
		px, _ := at(p.x(point[0]), y0)
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" class="x">%s</text>`, px, plotHeight-bottom+18, template.HTMLEscapeString(label))
	}
	for i, l := range p.lines {
		var d strings.Builder
		for j, point := range l.points {
			px, py := at(p.x(point[0]), p.y(point[1]))
			fmt.Fprintf(&d, "%c%.1f %.1f", "ML"[min(j, 1)], px, py)
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="2.5" fill="%s"/>`, px, py, l.color)
		}
		fmt.Fprintf(&b, `<path d="%s" stroke="%s" class="l"/><text x="%d" y="%d" fill="%[2]s">%[5]s</text>`,
			d.String(), l.color, plotWidth-right+10, top+10+16*i, template.HTMLEscapeString(l.name))
	}
	b.WriteString("</svg>")
	return template.HTML(b.String()) // numbers, and names that are escaped
}
