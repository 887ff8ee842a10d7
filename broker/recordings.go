package broker

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"example.com/broker/broker/console"
	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
	"example.com/broker/broker/policy"
	"example.com/broker/recorder"
)

// recordingsPath is where auditors read recordings, as recorder.NewRemote does.
const recordingsPath = "/api/v1/recordings"

// SetAuditors says who may read recordings over HTTP. Readings under way of others
// end with the next frame.
func (b *Broker) SetAuditors(a policy.Approvers) { b.auditors.Store(&a) }

var errNoAuditor = errors.New("you may not read recordings; those in auditors may")

// audits returns an error if id, by the certificate with that serial number, if by
// one, may not read recordings, or not any more.
func (b *Broker) audits(id identity.Identity, serial string) error {
	switch a := b.auditors.Load(); {
	case a == nil || !a.Include(id):
		return errNoAuditor
	case b.o.Desk.IsDisabled(id.Subject, serial):
		return errors.New(errDisabled.Reason)
	}
	return nil
}

// ReadEvent is what is put on record of a reading of frames.
func ReadEvent(r recorder.Reading, via string) grant.Event {
	e := grant.Event{Type: grant.SessionsReplayed, Actor: r.By, Via: via}
	if s := r.Session; s != nil {
		e.Type, e.Session, e.Subject, e.Server = grant.SessionReplayed, s.ID, s.Subject, s.Server
	}
	if r.Command != "" {
		e.Detail = map[string]string{"command": r.Command}
	}
	return e
}

// CustodyEvent is what is put on record of a session that is held, released or deleted.
func CustodyEvent(c recorder.Custody, via string) grant.Event {
	s := c.Session
	return grant.Event{
		Type: custodyEvents[c.What], Actor: c.By, Via: via, Reason: c.Reason,
		Session: s.ID, Subject: s.Subject, Server: s.Server, Rule: s.Rule,
	}
}

var custodyEvents = map[string]string{recorder.Held: grant.SessionHeld, recorder.Released: grant.SessionReleased, recorder.Deleted: grant.SessionDeleted}

type auditorKey struct{}

// recordings answers auditors. Each reading is an event before it begins.
func (b *Broker) recordings() http.Handler {
	log := b.o.Log.Handler(func(r *http.Request, s *recorder.Session) error {
		id := r.Context().Value(auditorKey{}).(identity.Identity)
		command, _ := recorder.PurposeOf(r)
		e := ReadEvent(recorder.Reading{By: id.Subject, Command: command, Session: s}, "api")
		if s == nil && !recorder.SearchesText(r) {
			e.Type = grant.SessionsListed
		}
		return b.o.Desk.Record(r.Context(), e)
	})
	return http.StripPrefix(recordingsPath, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// What is on record anybody may have written: a browser shall not show it as a page.
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		id, err := b.who(r)
		if err != nil {
			refuseReading(w, http.StatusUnauthorized, err)
			return
		}
		ctx, serial := r.Context(), ""
		if certs := r.TLS.PeerCertificates; len(certs) > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, certs[0].NotAfter)
			defer cancel()
			serial = certs[0].SerialNumber.Text(16)
		}
		if err := b.audits(id, serial); err != nil {
			b.log.Info("recordings refused", "subject", id.Subject, "client", r.RemoteAddr)
			refuseReading(w, http.StatusForbidden, err)
			return
		}
		rc := http.NewResponseController(w)
		rc.SetReadDeadline(time.Time{}) // it would end what is followed
		log.ServeHTTP(&reading{ResponseWriter: w, rc: rc, may: func() error { return errors.Join(ctx.Err(), b.audits(id, serial)) }},
			r.WithContext(context.WithValue(ctx, auditorKey{}, id)))
	}))
}

func refuseReading(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(console.Failure{Error: err.Error()})
}

// readingTime is how long an auditor may take for what is written at a time.
const readingTime = 30 * time.Second

// A reading is an answer that may take as long as it likes, but not longer than
// its reader is an auditor.
type reading struct {
	http.ResponseWriter
	rc  *http.ResponseController
	may func() error
}

// Write implements [http.ResponseWriter].
func (r *reading) Write(b []byte) (int, error) {
	if err := r.may(); err != nil {
		return 0, err
	}
	r.rc.SetWriteDeadline(time.Now().Add(readingTime))
	return r.ResponseWriter.Write(b)
}

// Unwrap is for [http.ResponseController].
func (r *reading) Unwrap() http.ResponseWriter { return r.ResponseWriter }
