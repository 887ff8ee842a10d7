package rerun

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"

	"example.com/broker/codec"
)

// A Report is what a server answers now, beside what is on record.
type Report struct {
	Session    string     `json:"session"`
	Server     string     `json:"server"`
	Exchanges  []Exchange `json:"-"`
	Missing    []Message  `json:"missing,omitempty"`    // what the server sent without being asked to, and does not now
	Additional []Message  `json:"additional,omitempty"` // and the other way round
}

// An Exchange is a request and how it is answered now.
type Exchange struct {
	Frame       int          `json:"frame"` // of the request among those on record, from 1 on
	Method      string       `json:"method"`
	Name        string       `json:"name,omitempty"`  // of the tool or prompt, or the resource's URI
	Asked       bool         `json:"asked,omitempty"` // it is a request of the server's, which is another now
	Outcome     Outcome      `json:"outcome"`
	Reason      string       `json:"reason,omitempty"`
	Seconds     float64      `json:"seconds,omitempty"` // to the answer
	Differences []Difference `json:"differences,omitempty"`
	More        int          `json:"more,omitempty"`   // differences that are not listed
	Masked      []string     `json:"masked,omitempty"` // paths of values that were masked, and cannot be compared
}

// A Message is a notification or a request of the server's.
type Message struct {
	Frame  int             `json:"frame,omitempty"` // on record, from 1 on
	Method string          `json:"method"`
	Params json.RawMessage `json:"params,omitempty"`
}

// An Outcome is a word for how an exchange went.
type Outcome string

const (
	Equal     Outcome = "same"
	Different Outcome = "different"
	Skipped   Outcome = "skipped" // not sent, or not to be compared
)

func (e *Exchange) take(d *comparison) {
	e.Differences, e.More, e.Masked = d.differences, d.more, d.masked
	if e.Outcome = Equal; len(d.differences) > 0 {
		e.Outcome = Different
	}
}

// Count returns how many exchanges had that outcome.
func (r *Report) Count(o Outcome) (n int) {
	for _, e := range r.Exchanges {
		if e.Outcome == o {
			n++
		}
	}
	return n
}

// Same reports whether there is no difference.
func (r *Report) Same() bool {
	return r.Count(Different) == 0 && len(r.Missing) == 0 && len(r.Additional) == 0
}

// WriteJSON writes an exchange in JSON a line, and at the end the rest.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	for _, one := range r.Exchanges {
		if err := e.Encode(one); err != nil {
			return err
		}
	}
	return e.Encode(struct {
		Report
		Same      int `json:"same"`
		Different int `json:"different"`
		Skipped   int `json:"skipped"`
	}{*r, r.Count(Equal), r.Count(Different), r.Count(Skipped)})
}

// WriteText writes the report for a person, without control characters.
func (r *Report) WriteText(w io.Writer) error {
	var b bytes.Buffer
	for _, e := range r.Exchanges {
		e.text(&b)
	}
	for _, m := range r.Missing {
		fmt.Fprintf(&b, "missing    %s %s (frame %d)\n", printable(m.Method), line(m.Params), m.Frame)
	}
	for _, m := range r.Additional {
		fmt.Fprintf(&b, "additional %s %s\n", printable(m.Method), line(m.Params))
	}
	fmt.Fprintf(&b, "%d the same, %d different, %d skipped; %d messages missing, %d additional\n",
		r.Count(Equal), r.Count(Different), r.Count(Skipped), len(r.Missing), len(r.Additional))
	_, err := w.Write(b.Bytes())
	return err
}

func (e *Exchange) text(b *bytes.Buffer) {
	fmt.Fprintf(b, "%-10s %s (frame %d)", e.Outcome, printable(label(e.Method, e.Name)), e.Frame)
	if e.Asked {
		b.WriteString(", asked by the server")
	}
	if e.Reason != "" {
		b.WriteString(": " + e.Reason)
	}
	b.WriteByte('\n')
	e.details(b)
}

func (e *Exchange) details(b *bytes.Buffer) {
	for _, d := range e.Differences {
		fmt.Fprintf(b, "  %s\n    recorded %s\n    live     %s\n", printable(d.Path), line(d.Recorded), line(d.Live))
	}
	if e.More > 0 {
		fmt.Fprintf(b, "  and %d more\n", e.More)
	}
	for _, path := range e.Masked {
		fmt.Fprintf(b, "  %s is masked: not compared\n", printable(path))
	}
}

func printable(s string) string { return string(codec.AppendPrintable(nil, []byte(s))) }

// maxLine is how long a value in a text is, in bytes.
const maxLine = 300

// line is a value on one line.
func line(v json.RawMessage) string {
	if v == nil {
		return "nothing"
	}
	if len(v) > maxLine {
		return printable(string(bytes.ToValidUTF8(v[:maxLine], nil))) + "…"
	}
	return printable(string(v))
}

// WriteJUnit writes the report as JUnit's XML, with a test case an exchange.
func (r *Report) WriteJUnit(w io.Writer) error {
	type note struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
	type testCase struct {
		Class   string  `xml:"classname,attr"`
		Name    string  `xml:"name,attr"`
		Time    float64 `xml:"time,attr"`
		Failure *note   `xml:"failure"`
		Skipped *note   `xml:"skipped"`
		Out     string  `xml:"system-out,omitempty"`
	}
	type suite struct {
		XMLName  xml.Name   `xml:"testsuite"`
		Name     string     `xml:"name,attr"`
		Tests    int        `xml:"tests,attr"`
		Failures int        `xml:"failures,attr"`
		Skipped  int        `xml:"skipped,attr"`
		Cases    []testCase `xml:"testcase"`
	}
	s := suite{Name: "session " + r.Session}
	for _, e := range r.Exchanges {
		c := testCase{Class: r.Server, Name: fmt.Sprintf("%s (frame %d)", printable(label(e.Method, e.Name)), e.Frame), Time: e.Seconds}
		var b bytes.Buffer
		e.details(&b)
		switch e.Outcome {
		case Different:
			why := e.Reason
			if why == "" {
				why = fmt.Sprintf("answered differently in %d places", len(e.Differences)+e.More)
			}
			c.Failure = &note{why, b.String()}
		case Skipped:
			c.Skipped = &note{Message: e.Reason}
		default:
			c.Out = b.String()
		}
		s.Cases = append(s.Cases, c)
	}
	add := func(what string, all []Message) {
		for _, m := range all {
			s.Cases = append(s.Cases, testCase{Class: r.Server, Name: printable(m.Method), Failure: &note{what, line(m.Params)}})
		}
	}
	add("missing: it is on record, and does not come now", r.Missing)
	add("additional: it comes now, and is not on record", r.Additional)
	s.Tests, s.Skipped = len(s.Cases), r.Count(Skipped)
	s.Failures = r.Count(Different) + len(r.Missing) + len(r.Additional)
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	if err := e.Encode(s); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}
