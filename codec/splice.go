package codec

import (
	"bytes"
	"encoding/json"
	"errors"
)

// Splice appends line to dst with text in the place of view, which is a view
// within line.
func Splice(dst, line, view, text []byte) []byte {
	start := cap(line) - cap(view) // both end where their array ends
	dst = append(append(dst, line[:start]...), text...)
	return append(dst, line[start+len(view):]...)
}

// ErrLine is returned by OneLine for text that cannot be one line.
var ErrLine = errors.New("a newline inside a string")

// OneLine makes a JSON text that came by other means than a line, such as the
// body of an HTTP request, fit for one: a newline outside of strings is white
// space and becomes a space, in place; white space around the text goes. What it
// returns is a part of text. It does not check more than that.
func OneLine(text []byte) ([]byte, error) {
	text = bytes.Trim(text, " \t\r\n")
	if bytes.IndexByte(text, '\n') < 0 {
		return text, nil
	}
	for i := 0; i < len(text); {
		switch text[i] {
		case '\n':
			text[i] = ' '
			i++
		case '"':
			end := skipString(text, i)
			if bytes.IndexByte(text[i:end], '\n') >= 0 {
				return nil, ErrLine
			}
			i = end
		default:
			i++
		}
	}
	return text, nil
}

// An Alias is another name for a request in flight: where several clients, which
// each count their requests for themselves, share one session, the server sees
// an id of the broker's in the place of one that is taken. Its members are raw
// JSON.
type Alias struct {
	ID    json.RawMessage `json:"id"`              // that the client gave its request
	As    json.RawMessage `json:"as"`              // that the server sees
	Token json.RawMessage `json:"token,omitempty"` // the client's progressToken, which the server sees as As
}

// Conceal appends a request of the client's to dst as the server sees it.
func (a *Alias) Conceal(dst, line []byte) []byte {
	line = Splice(nil, line, Member(line, "id"), a.As)
	if a.Token != nil {
		if token := Member(Member(Member(line, "params"), "_meta"), "progressToken"); token != nil {
			line = Splice(nil, line, token, a.As)
		}
	}
	return append(dst, line...)
}

// Reveal appends a frame that speaks of the request to dst as the client sees
// it: its response, or a notification of its progress or of what it listens to.
// The request itself it turns back into what the client sent.
func (a *Alias) Reveal(dst, line []byte) []byte {
	put := func(view, text []byte) {
		if view != nil && text != nil && bytes.Equal(view, a.As) {
			line = Splice(nil, line, view, text)
		}
	}
	put(Member(line, "id"), a.ID)
	params := func() []byte { return Member(line, "params") }
	put(Member(params(), "progressToken"), a.Token)
	put(Member(params(), "requestId"), a.ID)
	put(Member(Member(params(), "_meta"), "progressToken"), a.Token)
	put(Member(Member(params(), "_meta"), "io.modelcontextprotocol/subscriptionId"), a.ID)
	put(Member(Member(Member(line, "result"), "_meta"), "io.modelcontextprotocol/subscriptionId"), a.ID)
	return append(dst, line...)
}
