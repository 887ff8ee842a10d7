package recorder

import (
	"context"
	"net"
	"net/http"
	"os/user"
	"strconv"
	"strings"
	"sync"
)

// A Reading is a use of recordings. It is put on record before anything of them is
// read.
type Reading struct {
	By      string   // who: "local:ada"
	Command string   // what for, as the reader says: "replay"
	Session *Session // whose frames are read; nil: those of all sessions
}

// A reader says of itself what it reads for, in headers.
const (
	commandHeader = "Broker-Command"
	allHeader     = "Broker-Reads" // "all": many sessions, under one Reading
)

type purposeKey struct{}

type purpose struct {
	command string
	all     bool
}

// WithCommand returns a ctx with which a [Source] says what it reads for.
func WithCommand(ctx context.Context, command string) context.Context {
	return context.WithValue(ctx, purposeKey{}, purpose{command: command})
}

// ReadsAll returns a ctx with which a [Source] says that frames of all sessions are
// read: that is one Reading, not one for each.
func ReadsAll(ctx context.Context) context.Context {
	p, _ := ctx.Value(purposeKey{}).(purpose)
	p.all = true
	return context.WithValue(ctx, purposeKey{}, p)
}

// PurposeIn returns what WithCommand and ReadsAll have said.
func PurposeIn(ctx context.Context) (command string, all bool) {
	p, _ := ctx.Value(purposeKey{}).(purpose)
	return p.command, p.all
}

// sayPurpose says in a request what it is for.
func sayPurpose(r *http.Request) {
	command, all := PurposeIn(r.Context())
	if command != "" {
		r.Header.Set(commandHeader, command)
	}
	if all {
		r.Header.Set(allHeader, "all")
	}
}

// PurposeOf returns what a request says that it is for.
func PurposeOf(r *http.Request) (command string, all bool) {
	command = r.Header.Get(commandHeader)
	if len(command) > 64 || strings.ContainsFunc(command, func(c rune) bool { return c < ' ' || c > '~' }) {
		command = ""
	}
	return command, r.Header.Get(allHeader) == "all"
}

// SearchesText reports a list of the sessions in whose frames there is a text: who asks
// for one reads frames of all.
func SearchesText(r *http.Request) bool { return r.URL.Query().Has("text") }

// LocalUser names a user of this machine as events do.
func LocalUser(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return "local:" + u.Username
	}
	return "local:" + strconv.Itoa(uid)
}

// A peer is who is on the other end of a connection to the socket.
type peer struct {
	by string

	mu  sync.Mutex
	all map[string]bool // commands that read all sessions, and whose Reading is on record
}

type peerKey struct{}

func withPeer(ctx context.Context, c net.Conn) context.Context {
	p := &peer{by: "local", all: map[string]bool{}}
	if uid, ok := peerUser(c); ok {
		p.by = LocalUser(uid)
	}
	return context.WithValue(ctx, peerKey{}, p)
}

// readThrough puts on record that frames of s, or, if it is nil, of all sessions, are read
// through the socket.
func (l *Log) readThrough(r *http.Request, s *Session) error {
	if l.o.Read == nil || s == nil && !SearchesText(r) {
		return nil
	}
	p, _ := r.Context().Value(peerKey{}).(*peer)
	command, all := PurposeOf(r)
	reading := Reading{By: p.by, Command: command, Session: s}
	if all {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.all[command] {
			return nil
		}
		reading.Session = nil
	}
	if err := l.o.Read(r.Context(), reading); err != nil {
		return err
	}
	if all {
		p.all[command] = true
	}
	return nil
}
