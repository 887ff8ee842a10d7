package codec

import (
	"encoding/json"
	"fmt"
	"strconv"
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
	Offset int    // of the byte at fault in the frame; -1 if there is none
	Reason string
}

func (e *Error) Error() string {
	if e.Offset < 0 {
		return "codec: " + e.Reason
	}
	return fmt.Sprintf("codec: %s at offset %d", e.Reason, e.Offset)
}

// AppendError appends a JSON-RPC error response to dst. A nil id is null, nil
// data is left out.
func AppendError(dst, id []byte, code int, message string, data any) []byte {
	dst = append(dst, `{"jsonrpc":"2.0","id":`...)
	if id == nil {
		id = []byte("null")
	}
	dst = append(dst, id...)
	dst = append(dst, `,"error":{"code":`...)
	dst = strconv.AppendInt(dst, int64(code), 10)
	dst = append(dst, `,"message":`...)
	dst = appendJSON(dst, message)
	if data != nil {
		dst = append(dst, `,"data":`...)
		dst = appendJSON(dst, data)
	}
	return append(dst, "}}"...)
}

func appendJSON(dst []byte, v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return append(dst, "null"...)
	}
	return append(dst, b...)
}
