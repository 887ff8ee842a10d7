package codec

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// JSON-RPC's own codes, and the broker's for what a Reader refuses.
const (
	CodeParse    = -32700 // not JSON
	CodeInvalid  = -32600 // JSON, but not a frame that everybody reads alike
	CodeTooLarge = 413
)

// An Error says why a frame is refused. Its text says where in the frame and
// never what stands there.
type Error struct {
	Code   int    // one of the codes above
	ID     []byte // the raw id of the request, where it could be read; else nil
	Offset int64  // of the byte at fault in the frame; -1 if there is none
	Reason string
}

func (e *Error) Error() string {
	if e.Offset < 0 {
		return "codec: " + e.Reason
	}
	return fmt.Sprintf("codec: %s at offset %d", e.Reason, e.Offset)
}

// marshal is json.Marshal without its escapes for HTML: people read what it writes.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}
