package agent

import (
	"bufio"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"example.com/broker/codec"
	"example.com/broker/stream"
)

// The protocol between agent and broker: JSON-RPC requests, one a line, each
// answered by one line, over TLS with ALPN mcp-agent/1.
//
// A connection starts with a request of the agent. Without a client certificate:
//
//	agent → broker   agent/join   {name, token or gcp, csr}     csr: PKCS #10, PEM
//	broker → agent   {certificate, ca}                          PEM; then both close
//
// With the certificate that came of it:
//
//	agent → broker   agent/hello  {servers: ["bigquery", …]}
//	broker → agent   {}                                         then yamux, the agent its client
//
// Every yamux stream starts with one request, too:
//
//	broker → agent   session/open  {session, server, subject, groups, rule}
//	agent → broker   {}                                         then MCP frames both ways
//	broker → agent   session/close {session}                    a yamux FIN is only half a close
//	agent → broker   {}
//	agent → broker   agent/renew   {csr}
//	broker → agent   {certificate, ca}
//	agent → broker   agent/used    {session, server, kind, principal, scopes, audience, until}
//	broker → agent   {}                                         it is on record
//
// Errors are JSON-RPC errors with the broker's codes (401, 403, 502, …).
const (
	MethodJoin         = "agent/join"
	MethodHello        = "agent/hello"
	MethodRenew        = "agent/renew"
	MethodUsed         = "agent/used"
	MethodSessionOpen  = "session/open"
	MethodSessionClose = "session/close"
)

// Join is the params of agent/join.
type Join struct {
	Name  string `json:"name"`
	Token string `json:"token,omitempty"`
	GCP   string `json:"gcp,omitempty"` // or the instance's identity token, for Audience
	CSR   string `json:"csr"`
}

// Audience is that of the identity token that an agent on GCP joins with: the
// broker by its pin, the agent's name and the key of its CSR. So a token that
// somebody gets hold of is good for no other broker, agent or key.
func Audience(pin, name string, key crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(der)
	return "mcp-broker:" + pin + "/" + name + "/" + hex.EncodeToString(sum[:]), nil
}

// Hello is the params of agent/hello.
type Hello struct {
	Servers []string `json:"servers"`
}

// Renew is the params of agent/renew.
type Renew struct {
	CSR string `json:"csr"`
}

// Used is the params of agent/used: that a session has used a credential.
type Used struct {
	Session   string    `json:"session"`
	Server    string    `json:"server"`
	Kind      string    `json:"kind"`
	Principal string    `json:"principal,omitempty"`
	Scopes    []string  `json:"scopes,omitempty"`
	Audience  string    `json:"audience,omitempty"`
	Until     time.Time `json:"until,omitzero"`
}

// Issued is the result of agent/join and agent/renew.
type Issued struct {
	Certificate string `json:"certificate"`
	CA          string `json:"ca"`
}

// Session is the params of session/open: whose session this is.
type Session struct {
	ID      string   `json:"session"`
	Server  string   `json:"server"`
	Subject string   `json:"subject"`
	Groups  []string `json:"groups,omitempty"`
	Rule    string   `json:"rule,omitempty"` // that let it in
}

type sessionClose struct {
	ID string `json:"session"`
}

// An Error is the other side's no.
type Error struct {
	Code    int    `json:"code"` // reads like HTTP: 401, 403, 502, …
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// maxLine bounds a line of the protocol, in bytes. An identity with as many
// groups as one may have fits.
const maxLine = 1 << 20

var errLineTooLong = fmt.Errorf("line over %d bytes", maxLine)

// A lineConn is a connection of which the first lines have been read; what was
// read beyond them comes first.
type lineConn struct {
	stream.Conn
	r *bufio.Reader
}

func newLineConn(c stream.Conn) *lineConn {
	return &lineConn{c, bufio.NewReaderSize(c, 512)}
}

func (c *lineConn) Read(p []byte) (int, error) {
	if c.r != nil && c.r.Buffered() > 0 {
		return c.r.Read(p)
	}
	c.r = nil // it is for the first lines only
	return c.Conn.Read(p)
}

// rest returns the connection at the byte after the lines.
func (c *lineConn) rest() stream.Conn {
	if c.r.Buffered() > 0 {
		return c
	}
	return c.Conn
}

// readLine returns the next line without its newline.
func (c *lineConn) readLine() ([]byte, error) {
	var line []byte
	for {
		part, err := c.r.ReadSlice('\n')
		if len(line)+len(part) > maxLine {
			return nil, errLineTooLong
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return line[:len(line)-1], nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}

// A Request is one that the other side of a connection made. Its Conn is at the
// byte after it.
type Request struct {
	Method string
	Conn   stream.Conn

	params []byte
	id     []byte
}

// ReadRequest reads the request that starts a connection or a stream.
func ReadRequest(c stream.Conn) (*Request, error) {
	lc := newLineConn(c)
	line, err := lc.readLine()
	if err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	p := codec.AcquireParser()
	defer p.Release()
	f, err := p.Parse(line, codec.C2S)
	if err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	if f.Kind != codec.Request {
		return nil, errors.New("read request: not a request")
	}
	return &Request{Method: string(f.Method), Conn: lc.rest(), params: f.Params, id: f.ID}, nil
}

// Decode reads the request's params into v, a pointer to one of the structs above.
func (r *Request) Decode(v any) error {
	if err := json.Unmarshal(r.params, v); err != nil {
		return &Error{400, r.Method + ": params are not as expected"}
	}
	return nil
}

// Answer writes the result, to be marshalled as JSON.
func (r *Request) Answer(result any) error {
	b, err := json.Marshal(struct {
		Version string          `json:"jsonrpc"`
		ID      json.RawMessage `json:"id"`
		Result  any             `json:"result"`
	}{"2.0", r.id, result})
	if err != nil {
		return err
	}
	_, err = r.Conn.Write(append(b, '\n'))
	return err
}

// Refuse writes err as a JSON-RPC error.
func (r *Request) Refuse(err error) error {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{502, err.Error()}
	}
	b := codec.AppendError(nil, r.id, e.Code, e.Message, nil)
	_, err = r.Conn.Write(append(b, '\n'))
	return err
}

// Call makes a request on a fresh connection or stream and reads the answer
// into result. It returns the connection at the byte after the answer; an error
// of the other side is an [*Error]. When ctx is done the call fails.
func Call(ctx context.Context, c stream.Conn, method string, params, result any) (stream.Conn, error) {
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	conn, err := call(c, method, params, result)
	if !stop() {
		return nil, fmt.Errorf("%s: %w", method, context.Cause(ctx))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	return conn, nil
}

func call(c stream.Conn, method string, params, result any) (stream.Conn, error) {
	b, err := json.Marshal(struct {
		Version string `json:"jsonrpc"`
		ID      int    `json:"id"`
		Method  string `json:"method"`
		Params  any    `json:"params"`
	}{"2.0", 1, method, params})
	if err != nil {
		return nil, err
	}
	if _, err := c.Write(append(b, '\n')); err != nil {
		return nil, err
	}
	lc := newLineConn(c)
	line, err := lc.readLine()
	if err != nil {
		return nil, err
	}
	p := codec.AcquireParser()
	defer p.Release()
	f, err := p.Parse(line, codec.S2C)
	if err != nil {
		return nil, err
	}
	switch {
	case f.Kind != codec.Response:
		return nil, errors.New("the answer is not a response")
	case f.Error != nil:
		e := &Error{}
		if err := json.Unmarshal(f.Error, e); err != nil {
			return nil, errors.New("the answer's error is not as expected")
		}
		return nil, e
	case result != nil:
		if err := json.Unmarshal(f.Result, result); err != nil {
			return nil, errors.New("the answer's result is not as expected")
		}
	}
	return lc.rest(), nil
}
