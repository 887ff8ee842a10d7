package codec

import "strconv"

// AppendResult appends a JSON-RPC response to dst. A result that encoding/json
// cannot marshal becomes null.
func AppendResult(dst, id []byte, result any) []byte {
	dst = append(append(dst, `{"jsonrpc":"2.0","id":`...), id...)
	return append(appendValue(append(dst, `,"result":`...), result), '}')
}

// AppendRequest appends a JSON-RPC request to dst, or a notification if id is nil.
func AppendRequest(dst, id []byte, method string, params any) []byte {
	dst = append(dst, `{"jsonrpc":"2.0"`...)
	if id != nil {
		dst = append(append(dst, `,"id":`...), id...)
	}
	dst = appendValue(append(dst, `,"method":`...), method)
	if params != nil {
		dst = appendValue(append(dst, `,"params":`...), params)
	}
	return append(dst, '}')
}

// AppendError appends a JSON-RPC error response to dst. A nil id is null. data
// is left out if it is nil, or nothing that encoding/json can marshal.
func AppendError(dst, id []byte, code int, message string, data any) []byte {
	if id == nil {
		id = null
	}
	dst = append(append(dst, `{"jsonrpc":"2.0","id":`...), id...)
	dst = strconv.AppendInt(append(dst, `,"error":{"code":`...), int64(code), 10)
	dst = appendValue(append(dst, `,"message":`...), message)
	if data != nil {
		if d, err := marshal(data); err == nil {
			dst = append(append(dst, `,"data":`...), d...)
		}
	}
	return append(dst, "}}"...)
}

func appendValue(dst []byte, v any) []byte {
	b, err := marshal(v)
	if err != nil {
		return append(dst, null...)
	}
	return append(dst, b...)
}
