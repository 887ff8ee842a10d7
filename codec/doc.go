// Package codec reads and rewrites JSON-RPC frames as they pass.
//
// A frame is one JSON-RPC message as bytes, without its newline. A [Reader]
// splits a stream into lines, and a [Parser] accepts only what every JSON
// parser reads alike (RFC 8259 and 7493, and no name of the envelope that
// differs from a standard one only in case):
//
//	r := codec.NewReader(conn, codec.Limits{})
//	var p codec.Parser
//	for {
//		line, err := r.Next() // valid until the next call of Next
//		f, err := p.Parse(line, codec.C2S) // a view of line, valid as long
//	}
//
// What nobody has to change is never re-encoded: a [Masker] and [Filter]
// replace the bytes of a value in place and leave every other byte of the
// frame alone. Nothing is allocated for a frame that is held. A Reader keeps at
// most Limits.Frame bytes, whatever the peer sends; a response that is longer than
// Limits.Held can pass while it arrives ([Parser.Flow]).
//
// Functions that take raw JSON ([Member], [Elements], [Unquote]) take what a
// Parser has accepted, and nothing else.
package codec
