package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"example.com/broker/broker/agent/credential"
	"github.com/dustin/go-humanize"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// A configFile is a parsed file that can say on which line something stands.
type configFile struct {
	path string
	file *ast.File
	used atomic.Pointer[func(credential.Use)] // is told of uses of credentials, once it is known who
}

// tellUse tells of the use of a credential.
func (c *configFile) tellUse(u credential.Use) {
	if used := c.used.Load(); used != nil {
		(*used)(u)
	}
}

// readConfig reads a strict YAML file into v, a pointer to a struct. ${VAR} in
// values is taken from the environment: everywhere, or, if sections are named, in
// those only.
func readConfig(path string, v any, sections ...string) (*configFile, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hinted{fmt.Errorf("%s: no such file", path), "name the configuration with --config FILE"}
	}
	if err != nil {
		return nil, err
	}
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return nil, yamlError(path, v, err)
	}
	c := &configFile{path: path, file: file}
	if len(file.Docs) == 0 || file.Docs[0].Body == nil {
		return nil, fmt.Errorf("%s: is empty", path)
	}
	if len(file.Docs) > 1 {
		return nil, fmt.Errorf("%s: holds more than one document", path)
	}
	// Values are expanded, never the text: a variable with a newline in it must
	// not become keys.
	expand := &expander{path: path}
	if m, ok := file.Docs[0].Body.(*ast.MappingNode); ok && len(sections) > 0 {
		for _, section := range m.Values {
			if slices.Contains(sections, section.Key.String()) {
				ast.Walk(expand, section)
			}
		}
	} else {
		ast.Walk(expand, file.Docs[0].Body)
	}
	if expand.err != nil {
		return nil, expand.err
	}
	err = yaml.NewDecoder(bytes.NewReader(nil), yaml.Strict()).DecodeFromNode(file.Docs[0].Body, v)
	if err != nil {
		return nil, yamlError(path, v, err)
	}
	return c, nil
}

var variable = regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)\}`)

// An expander replaces ${VAR} in the scalars of a document.
type expander struct {
	path string
	err  error
}

func (e *expander) Visit(n ast.Node) ast.Visitor {
	if s, ok := n.(*ast.StringNode); ok {
		s.Value = variable.ReplaceAllStringFunc(s.Value, func(m string) string {
			name := m[2 : len(m)-1]
			value, ok := os.LookupEnv(name)
			if !ok && e.err == nil {
				e.err = hinted{
					fmt.Errorf("%s:%d: ${%s} is not set in the environment", e.path, s.GetToken().Position.Line, name),
					"set it, or take it out of the file",
				}
			}
			return value
		})
	}
	return e
}

// A placedError says where in its file it is.
type placedError struct{ error }

func (e placedError) Unwrap() error { return e.error }

// errorAt is an error in the value at a path like policy[2].calls[0].deny. One
// that says where it is stays as it is.
func (c *configFile) errorAt(path string, err error) error {
	if errors.As(err, &placedError{}) {
		return err
	}
	// A key that is missing is reported where its parent stands.
	for p := path; p != ""; p = p[:max(strings.LastIndexAny(p, ".["), 0)] {
		yp, perr := yaml.PathString("$." + p)
		if perr != nil {
			continue
		}
		if n, ferr := yp.FilterFile(c.file); ferr == nil && n != nil {
			return placedError{fmt.Errorf("%s:%d: %s: %w", c.path, n.GetToken().Position.Line, path, err)}
		}
	}
	return placedError{fmt.Errorf("%s: %s: %w", c.path, path, err)}
}

// yamlError is one line of what the YAML package says.
func yamlError(path string, v any, err error) error {
	var e yaml.Error
	if !errors.As(err, &e) {
		return fmt.Errorf("%s: %w", path, err)
	}
	line := 0
	if t := e.GetToken(); t != nil {
		line = t.Position.Line
	}
	message := e.GetMessage()
	if key, ok := strings.CutPrefix(message, "unknown field "); ok {
		key = strings.Trim(key, `"`)
		out := fmt.Errorf("%s:%d: unknown key %q", path, line, key)
		if near := nearest(key, keysOf(reflect.TypeOf(v), nil)); near != "" {
			return hinted{out, fmt.Sprintf("did you mean %q?", near)}
		}
		return hinted{out, "docs/configuration.md lists the keys"}
	}
	return fmt.Errorf("%s:%d: %s", path, line, message)
}

// keysOf lists the keys that a configuration struct knows.
func keysOf(t reflect.Type, keys []string) []string {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		return keysOf(t.Elem(), keys)
	case reflect.Struct:
		for f := range t.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			if name != "" {
				keys = append(keys, name)
			}
			keys = keysOf(f.Type, keys)
		}
	}
	return keys
}

// nearest returns the word that a typing slip makes of word, or "".
func nearest(word string, words []string) string {
	best, distance := "", 3 // at most two slips
	for _, w := range words {
		if d := slips(word, w); d < distance && d < len(w) {
			best, distance = w, d
		}
	}
	return best
}

// slips is the Levenshtein distance of two words.
func slips(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}

// duration reads the value at a path, like 30s or 8h; empty is zero.
func (c *configFile) duration(path, text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		return 0, c.errorAt(path, fmt.Errorf("%q is no duration; write 30s or 8h", text))
	case d <= 0:
		return 0, c.errorAt(path, errors.New("must be above 0; leave it out for the default"))
	}
	return d, nil
}

// size reads the value at a path, like 32MiB, in bytes; empty is zero.
func (c *configFile) size(path, text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := humanize.ParseBytes(text)
	if err != nil || n == 0 || n > 1<<50 {
		return 0, c.errorAt(path, fmt.Errorf("%q is no size; write 32MiB", text))
	}
	return int64(n), nil
}

// secret is a value that may stand in a file of its own: file:/run/secrets/token.
func (c *configFile) secret(value string) (string, error) {
	name, ok := strings.CutPrefix(value, "file:")
	if !ok {
		return value, nil
	}
	b, err := os.ReadFile(c.resolve(name))
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

// resolve makes a path of the file absolute; a relative one starts at the
// file's own folder.
func (c *configFile) resolve(path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	abs, err := filepath.Abs(filepath.Join(filepath.Dir(c.path), path))
	if err != nil {
		return path
	}
	return abs
}
