package detect

import (
	_ "embed"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	gitleaks "github.com/zricethezav/gitleaks/v8/detect"
)

//go:embed testdata/corpus.txt
var corpus string

// A labelled line is text, and what is to be found in it.
type labelled struct {
	text string
	want map[string][]string // values by detector
}

var (
	label = regexp.MustCompile(`⟦(\w+):(.*?)⟧`)
	made  = regexp.MustCompile(`\{([a-z0-9]*[a-z])(?:(\d+)\.)?(\d+)\}`)
)

// readCorpus reads testdata/corpus.txt and makes its tokens.
func readCorpus() (lines []labelled) {
	r := rand.New(rand.NewPCG(1, 2))
	const digits, small, large = "0123456789", "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	alphabets := map[string]string{
		"a": digits + small + large, "h": "0123456789abcdef", "u": digits + large, "l": small + large, "w": digits + small + large + "_-",
		"b": digits + small + large + "+/", "n": digits + small, "b32": large + "234567", "bech": "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L",
	}
	for line := range strings.Lines(corpus) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		line = made.ReplaceAllStringFunc(line, func(s string) string {
			kind, count, _ := strings.Cut(strings.Trim(s, "{}"), ".")
			if count == "" {
				kind = strings.TrimRight(kind, digits)
				count = strings.TrimPrefix(strings.Trim(s, "{}"), kind)
			}
			n, err := strconv.Atoi(count)
			if err != nil || alphabets[kind] == "" {
				return s
			}
			b := make([]byte, n)
			for i := range b {
				b[i] = alphabets[kind][r.IntN(len(alphabets[kind]))]
			}
			return string(b)
		})
		l := labelled{want: map[string][]string{}}
		for _, m := range label.FindAllStringSubmatch(line, -1) {
			l.want[m[1]] = append(l.want[m[1]], m[2])
		}
		l.text = label.ReplaceAllString(line, "$2")
		lines = append(lines, l)
	}
	return lines
}

// TestCorpus measures recall and precision: of what is to be found, the share
// that is found, and of what is found, the share that is to be.
func TestCorpus(t *testing.T) {
	lines := readCorpus()
	type score struct{ right, missed, wrong int }
	scores := map[string]*score{}
	for _, name := range Names() {
		s := &score{}
		scores[name] = s
		for _, l := range lines {
			got := find(t, name, l.text)
			for _, v := range l.want[name] {
				// A rule may take less than the label, such as what is behind the prefix, or
				// more, such as the URL around it: it is found if it is covered.
				if slices.ContainsFunc(got, func(g string) bool { return strings.Contains(g, v) || strings.Contains(v, g) && len(g)*10 >= len(v)*8 }) {
					s.right++
				} else {
					s.missed++
					t.Errorf("%s misses %q in %q: %q", name, v, l.text, got)
				}
			}
			for _, g := range got {
				if !slices.ContainsFunc(l.want[name], func(v string) bool { return strings.Contains(g, v) || strings.Contains(v, g) }) {
					s.wrong++
					t.Errorf("%s finds %q in %q", name, g, l.text)
				}
			}
		}
	}
	for _, name := range Names() {
		s := scores[name]
		t.Logf("%-12s %3d to be found: recall %5.1f %%, precision %5.1f %%", name, s.right+s.missed,
			100*float64(s.right)/float64(s.right+s.missed), 100*float64(s.right)/float64(max(1, s.right+s.wrong)))
	}
	right, missed, wrong := theirs(t, lines)
	t.Logf("%-12s %3d to be found: recall %5.1f %%, precision %5.1f %%", "gitleaks", right+missed, 100*float64(right)/float64(right+missed), 100*float64(right)/float64(right+wrong))
}

// theirs is what gitleaks itself finds of the secrets, line by line.
func theirs(t *testing.T, lines []labelled) (right, missed, wrong int) {
	zerolog.SetGlobalLevel(zerolog.Disabled)
	d, err := gitleaks.NewDetectorDefaultConfig()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lines {
		found := d.DetectString(l.text)
		for _, v := range l.want["secrets"] {
			hit := false
			for _, f := range found {
				hit = hit || strings.Contains(f.Secret, v) || strings.Contains(v, f.Secret)
			}
			if hit {
				right++
			} else {
				missed++
				if os.Getenv("VERBOSE") != "" {
					t.Log("gitleaks misses", l.text)
				}
			}
		}
		for _, f := range found {
			if !slices.ContainsFunc(l.want["secrets"], func(v string) bool { return strings.Contains(f.Secret, v) || strings.Contains(v, f.Secret) }) {
				wrong++
				if os.Getenv("VERBOSE") != "" {
					t.Log("gitleaks finds", f.Secret, l.text)
				}
			}
		}
	}
	return right, missed, wrong
}

// TestTheirs checks that what gitleaks finds is found here, but for what
// rules.toml says it leaves out.
func TestTheirs(t *testing.T) {
	zerolog.SetGlobalLevel(zerolog.Disabled)
	d, err := gitleaks.NewDetectorDefaultConfig()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, l := range readCorpus() {
		for _, f := range d.DetectString(l.text) {
			got := find(t, "secrets", l.text)
			if isIdentifier([]byte(f.Secret)) || placeholder([]byte(f.Secret)) {
				continue
			}
			n++
			if !slices.ContainsFunc(got, func(g string) bool { return strings.Contains(g, f.Secret) || strings.Contains(f.Secret, g) }) {
				t.Errorf("gitleaks' %s finds %q in %q; here: %q", f.RuleID, f.Secret, l.text, got)
			}
		}
	}
	if n == 0 {
		t.Error("gitleaks finds nothing")
	}
	t.Log(fmt.Sprint(n, " findings of gitleaks"))
}
