package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/tidwall/gjson"
)

// An exchange is a call of a tool and what the server answers.
type exchange struct {
	tool      string
	arguments string // JSON
	result    string // JSON
}

// Sizes of results, in bytes.
const (
	smallCall   = 200 // the whole frame, either way
	someTexts   = 4 << 10
	mediumTexts = 64 << 10
	largeTexts  = 10 << 20
)

const (
	toolEcho   = "echo"
	toolSome   = "rows_4k"
	toolMedium = "rows_64k"
	toolLarge  = "rows_10m"
)

// exchanges are what the server of all measurements can do. Clients and server make
// them alike, from the same corpus.
type exchanges struct {
	corpus []exchange // real ones, or such as are like them
	real   bool
	all    map[string]exchange // by tool
}

// readExchanges takes those of a corpus from a folder; if it is not there, they are made up.
func readExchanges(dir string) (*exchanges, error) {
	x := &exchanges{all: map[string]exchange{}}
	x.add(exchange{toolEcho, `{"text":"` + strings.Repeat("What is asked is told again. ", 3) + `"}`, textResult(strings.Repeat("What is asked is told again. ", 3))})
	x.add(exchange{toolSome, `{"sql":"SELECT * FROM customers LIMIT 30"}`, textResult(rows(3, someTexts))})
	x.add(exchange{toolMedium, `{"sql":"SELECT * FROM customers LIMIT 480"}`, textResult(rows(1, mediumTexts))})
	x.add(exchange{toolLarge, `{"sql":"SELECT * FROM customers"}`, textResult(rows(2, largeTexts))})
	var err error
	if x.corpus, err = readCorpus(dir); err != nil {
		return nil, fmt.Errorf("corpus: %w", err)
	}
	if x.real = len(x.corpus) > 0; !x.real {
		x.corpus = madeUp()
	}
	for i := range x.corpus {
		x.corpus[i].tool = fmt.Sprintf("corpus_%d", i)
		x.add(x.corpus[i])
	}
	return x, nil
}

func (x *exchanges) add(e exchange) { x.all[e.tool] = e }

// readCorpus reads the tool calls of captured sessions: folders with c2s.ndjson and
// s2c.ndjson. Answers above 256 KiB are left out: they would be most of what is
// carried, and are measured apart.
func readCorpus(dir string) (all []exchange, err error) {
	folders, err := os.ReadDir(dir)
	if err != nil {
		if os.IsNotExist(err) {
			err = nil
		}
		return nil, err
	}
	for _, f := range folders {
		if !f.IsDir() {
			continue
		}
		calls := map[string]gjson.Result{} // by id
		err := eachLine(filepath.Join(dir, f.Name(), "c2s.ndjson"), func(line gjson.Result) {
			if line.Get("method").Str == "tools/call" {
				calls[line.Get("id").Raw] = line.Get("params.arguments")
			}
		})
		if err != nil {
			return nil, err
		}
		err = eachLine(filepath.Join(dir, f.Name(), "s2c.ndjson"), func(line gjson.Result) {
			arguments, asked := calls[line.Get("id").Raw]
			result := line.Get("result")
			if !asked || !result.Get("content").Exists() || len(result.Raw) > 256<<10 {
				return
			}
			if !arguments.Exists() {
				arguments.Raw = "{}"
			}
			all = append(all, exchange{arguments: arguments.Raw, result: result.Raw})
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// eachLine calls f with the lines of a file, which may be compressed and then has another
// name. One that is not there has none.
func eachLine(path string, f func(gjson.Result)) error {
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		var packed []byte
		if packed, err = os.ReadFile(path + ".gz"); err == nil {
			var r io.Reader
			if r, err = gzip.NewReader(bytes.NewReader(packed)); err == nil {
				text, err = io.ReadAll(r)
			}
		}
		if os.IsNotExist(err) {
			return nil
		}
	}
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		f(gjson.Parse(lines.Text()))
	}
	return lines.Err()
}

// madeUp is like a corpus where there is none: results of 200 B to 40 KB, of the kinds
// that servers of databases, files and issues give; the same in each run.
func madeUp() (all []exchange) {
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 200 {
		size := 200 << random.IntN(8)
		var text string
		switch i % 3 {
		case 0:
			text = rows(uint64(i), size)
		case 1:
			text = code(random, size)
		default:
			text = prose(random, size)
		}
		all = append(all, exchange{arguments: fmt.Sprintf(`{"path":"/data/%d","limit":%d}`, i, size), result: textResult(text)})
	}
	return all
}

// textResult is a tool's result.
func textResult(text string) string {
	quoted, _ := json.Marshal(text) // a string can be marshalled
	return `{"content":[{"type":"text","text":` + string(quoted) + `}],"isError":false}`
}

// rows are what a database answers, of about that many bytes as JSON: nothing in them is
// secret.
func rows(seed uint64, size int) string {
	random := rand.New(rand.NewPCG(seed, 7))
	var b strings.Builder
	for n, i := 0, 0; n < size; i++ {
		before := b.Len()
		fmt.Fprintf(&b, `{"id":%d,"name":"%s %s","city":"%s","plan":"%s","orders":%d,"total":%d.%02d}`+"\n",
			i+1, pick(random), pick(random), pick(random), pick(random), random.IntN(1000), random.IntN(100000), random.IntN(100))
		n += b.Len() - before + 15 // escapes
	}
	return b.String()
}

var words = strings.Fields(`amber basin cedar delta ember fable grove harbor indigo juniper kernel lantern meadow nectar
	orchard prairie quartz river saddle timber umbra valley willow yarrow zephyr anchor bridge candle dune eagle`)

func pick(random *rand.Rand) string { return words[random.IntN(len(words))] }

func prose(random *rand.Rand, size int) string {
	var b strings.Builder
	for b.Len() < size {
		for range 4 + random.IntN(9) {
			b.WriteString(pick(random) + " ")
		}
		b.WriteString("and so on.\n")
	}
	return b.String()
}

func code(random *rand.Rand, size int) string {
	var b strings.Builder
	for b.Len() < size {
		fmt.Fprintf(&b, "func %s(%s string) (*%s, error) {\n\tif %s == \"%s\" {\n\t\treturn nil, fmt.Errorf(\"%s: %%w\", err%d)\n\t}\n}\n\n",
			pick(random), pick(random), pick(random), pick(random), pick(random), pick(random), random.IntN(100))
	}
	return b.String()
}

// A request is a call's frame but for its id, which stands between head and tail.
type request struct{ head, tail string }

func (x *exchanges) request(tool string) request {
	return request{`{"jsonrpc":"2.0","id":`, `,"method":"tools/call","params":{"name":"` + tool + `","arguments":` + x.all[tool].arguments + `}}`}
}

// answer appends the answer to a frame, without a newline; to a notification there is none.
func (x *exchanges) answer(b, frame []byte) []byte {
	fields := gjson.GetManyBytes(frame, "id", "method", "params.name")
	id, method := fields[0], fields[1].Str
	if !id.Exists() {
		return b
	}
	b = append(append(append(b, `{"jsonrpc":"2.0","id":`...), id.Raw...), `,"result":`...)
	switch method {
	case "tools/call":
		e, ok := x.all[fields[2].Str]
		if !ok {
			e.result = `{"content":[],"isError":true}`
		}
		b = append(b, e.result...)
	case "tools/list":
		b = append(b, `{"tools":[`...)
		for i, name := range x.tools() {
			if i > 0 {
				b = append(b, ',')
			}
			b = fmt.Appendf(b, `{"name":%q,"description":"one of the exchanges","inputSchema":{"type":"object"}}`, name)
		}
		b = append(b, "]}"...)
	case "initialize":
		b = append(b, `{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"bench","version":"1"}}`...)
	default:
		b = append(b, "{}"...)
	}
	return append(b, '}')
}

func (x *exchanges) tools() []string {
	all := []string{toolEcho, toolSome, toolMedium, toolLarge}
	for _, e := range x.corpus {
		all = append(all, e.tool)
	}
	return all
}
