package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// results makes those of targets at one work, by metric.
func results(values map[string]map[Metric][]float64) *Results {
	r := &Results{Version: Version, Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Command: "bench -rounds 3", Works: []About{{"w", "calls <of> 200 B"}}}
	for _, target := range []string{"direct", "broker", "proxy"} {
		if v := values[target]; v != nil {
			r.Targets = append(r.Targets, About{target, "is " + target})
			r.Measured = append(r.Measured, Measured{Work: "w", Target: target, Values: v, Latency: []Point{{0, 0.1}, {50, 0.2}, {99, 3}}})
		}
	}
	return r
}

func TestCompare(t *testing.T) {
	old := results(map[string]map[Metric][]float64{
		"direct": {Calls: {100, 110, 105}},
		"broker": {Calls: {50, 55, 52.5}, Objects: {10, 10, 10}, P99: {1, 2, 3}},
	})
	for _, test := range []struct {
		name string
		new  map[string]map[Metric][]float64
		want []string // work target metric worse
	}{
		{"the same", map[string]map[Metric][]float64{"direct": {Calls: {100, 110, 105}}, "broker": {Calls: {50, 55, 52.5}, Objects: {10, 10, 10}}}, nil},
		{"a slower machine", map[string]map[Metric][]float64{"direct": {Calls: {50, 55, 52.5}}, "broker": {Calls: {25, 27.5, 26.25}}},
			[]string{"direct calls/s worse"}},
		{"a slower broker", map[string]map[Metric][]float64{"direct": {Calls: {100, 110, 105}}, "broker": {Calls: {40, 44, 42}}},
			[]string{"broker calls/s worse"}},
		{"a faster broker", map[string]map[Metric][]float64{"direct": {Calls: {100, 110, 105}}, "broker": {Calls: {60, 66, 63}}},
			[]string{"broker calls/s better"}},
		{"more allocations", map[string]map[Metric][]float64{"broker": {Objects: {12, 12, 12}}}, []string{"broker broker allocs/frame worse"}},
		{"within noise", map[string]map[Metric][]float64{"broker": {P99: {2, 3, 4}}}, nil},
		{"beyond noise, but little", map[string]map[Metric][]float64{"broker": {Objects: {10.2, 10.2, 10.2}}}, nil},
		{"another target", map[string]map[Metric][]float64{"proxy": {P99: {9, 9, 9}}}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			for _, c := range Compare(old, results(test.new), "direct") {
				word := "better"
				if c.Worse {
					word = "worse"
				}
				got = append(got, c.Target+" "+string(c.Metric)+" "+word)
			}
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestOutcome(t *testing.T) {
	r := results(map[string]map[Metric][]float64{
		"broker": {Calls: {130, 260, 150}, P99: {2, 1, 4}, Memory: {39}},
		"proxy":  {Calls: {100, 200, 300}, P99: {4, 1, 4}},
	})
	for _, test := range []struct {
		goal           Goal
		measured       float64
		known, met     bool
		wanted, result string
	}{
		// 130/100, 260/200, 150/300: rounds are compared with themselves.
		{Goal{Work: "w", Target: "broker", Metric: Calls, Than: Target{Name: "proxy"}, Factor: 1.3}, 1.3, true, true, "≥ 1.3× proxy", "1.30×"},
		{Goal{Work: "w", Target: "broker", Metric: Calls, Than: Target{Name: "proxy"}, Factor: 1.31}, 1.3, true, false, "≥ 1.31× proxy", "1.30×"},
		{Goal{Work: "w", Target: "broker", Metric: P99, Than: Target{Name: "proxy"}, Factor: 1}, 1, true, true, "≤ 1× proxy", "1.00×"},
		{Goal{Work: "w", Target: "broker", Metric: P99, Than: Target{Name: "proxy"}, Factor: 0.9}, 1, true, false, "≤ 0.9× proxy", "1.00×"},
		{Goal{Work: "w", Target: "broker", Metric: Memory, Factor: 40}, 39, true, true, "≤ 40 KB/session", "39.0"},
		{Goal{Work: "w", Target: "broker", Metric: Memory, Than: Target{Name: "proxy"}, Factor: 1}, 0, false, false, "≤ 1× proxy", "not measured"},
		{Goal{Work: "v", Target: "broker", Metric: Memory, Factor: 40}, 0, false, false, "≤ 40 KB/session", "not measured"},
	} {
		o := r.Outcome(test.goal)
		if o.Measured != test.measured || o.Known != test.known || o.Met != test.met || test.goal.wanted() != test.wanted || o.seen() != test.result {
			t.Errorf("%s: %+v, %q; want %v, %v, %v, %q", test.goal.wanted(), o, o.seen(), test.measured, test.known, test.met, test.result)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		values         []float64
		median, spread float64
		shown          string
	}{
		{nil, 0, 0, ""},
		{[]float64{7}, 7, 0, "7.00"},
		{[]float64{3, 1, 2}, 2, 0.5, "2.00 ±50%"},
		{[]float64{4000, 1000, 3000, 2000}, 2500, 0.6, "2500 ±60%"},
		{[]float64{123456, 123456}, 123456, 0, "123.5k ±0%"},
		{[]float64{1234567}, 1234567, 0, "1.23M"},
	} {
		if m := median(test.values); m != test.median {
			t.Errorf("median of %v is %v, want %v", test.values, m, test.median)
		}
		if len(test.values) > 0 && spread(test.values) != test.spread {
			t.Errorf("spread of %v is %v, want %v", test.values, spread(test.values), test.spread)
		}
		if s := shown(test.values); s != test.shown {
			t.Errorf("%v is shown as %q, want %q", test.values, s, test.shown)
		}
	}
}

// TestFile checks that results come back from a file, and that those of another version do not.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results.json")
	want := results(map[string]map[Metric][]float64{"broker": {Calls: {1, 2}}})
	if err := want.Write(path); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	want.Version++
	if err := want.Write(path); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("results of another version: %v", err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil {
		t.Error("half a file is read")
	}
}

// TestReports checks that all forms of a report have all of it.
func TestReports(t *testing.T) {
	r := results(map[string]map[Metric][]float64{"direct": {Calls: {1000, 1100}, P50: {1, 1}}, "broker": {Calls: {500, 505}, P50: {2, 2}, CPU: {17, 18}}})
	r.Skipped = []About{{"ghost", "is not installed"}}
	goals := []Goal{{Name: "calls", Work: "w", Target: "broker", Metric: Calls, Than: Target{Name: "direct"}, Factor: 0.9}}
	sweeps := []Sweep{{Name: "sweep", Metric: Calls, Axis: "connections", Works: []string{"w", "w"}, At: []float64{1, 64}}}
	want := []string{"direct", "broker", "1050 ±5%", "17.5 ±3%", "≥ 0.9× direct", "0.48×", "missed", "ghost", "is not installed"}
	var table, markdown, html bytes.Buffer
	if err := errors.Join(r.WriteTable(&table, goals), r.WriteMarkdown(&markdown, goals), r.WriteHTML(&html, goals, sweeps)); err != nil {
		t.Fatal(err)
	}
	for form, text := range map[string]string{"table": table.String(), "markdown": markdown.String(), "html": html.String()} {
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%s: no %q in\n%s", form, w, text)
			}
		}
	}
	page := html.String()
	if strings.Contains(page, "<of>") || !strings.Contains(page, "&lt;of&gt;") {
		t.Error("text is not escaped")
	}
	for _, outside := range []string{"http://", "https://", "<script", "<link", "<img"} {
		if strings.Contains(page, outside) {
			t.Errorf("the page is not by itself: it has %s", outside)
		}
	}
	plots := 0
	for rest := page; ; plots++ {
		i := strings.Index(rest, "<svg")
		if i < 0 {
			break
		}
		j := strings.Index(rest, "</svg>") + len("</svg>")
		for d := xml.NewDecoder(strings.NewReader(rest[i:j])); ; {
			_, err := d.Token()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("a plot is no XML: %v", err)
			}
		}
		if strings.Contains(rest[i:j], "NaN") || strings.Contains(rest[i:j], "Inf") {
			t.Error("a plot has points that are nowhere")
		}
		rest = rest[j:]
	}
	if plots != 2 { // the sweep, and latency
		t.Errorf("%d plots, want 2", plots)
	}
}
