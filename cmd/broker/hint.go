package main

import (
	"errors"
	"syscall"

	"example.com/broker/broker/agent"
	"example.com/broker/recorder"
)

// A hinted error says what to do about it.
type hinted struct {
	error
	hint string
}

func (h hinted) Unwrap() error { return h.error }

// hint says what to do about err, or nothing.
func hint(err error) string {
	var h hinted
	switch {
	case errors.As(err, &h):
		return h.hint
	case errors.Is(err, syscall.EADDRINUSE):
		return `another process holds the port (ss -ltnp); or set "listen" in the configuration`
	case errors.Is(err, recorder.ErrHeld):
		return "broker hold says by whom and why; broker hold --release SESSION ends it"
	case errors.Is(err, recorder.ErrNoSession):
		return "broker sessions lists what is on record"
	case errors.Is(err, recorder.ErrEncryption):
		return "bring back what wraps it; if recording.encryption.key has changed: broker log rotate-key --old OLD --key NEW"
	case errors.Is(err, recorder.ErrNotEncrypted):
		return "broker log encrypt writes it anew, encrypted"
	case errors.Is(err, recorder.ErrNotRecipient):
		return "name the key of one of recording.originals.recipients with --identity"
	case errors.Is(err, recorder.ErrNoOriginal):
		return "what has an original has been written; recording.originals in broker.yaml keeps them for sessions that begin later"
	case errors.Is(err, recorder.ErrArchive):
		return "the log has what is not archived, and knows the rest; broker archive says what fails"
	case errors.Is(err, errNotAll):
		return "those that could not are named above; broker archive says whether an archive fails, broker verify what is damaged"
	case errors.Is(err, errUnverified):
		return "keep the data folder as it is, and compare it with a copy; what is good can still be replayed"
	case errors.Is(err, errWouldRefuse):
		return "broker replay SESSION shows what was used; --exit-zero only reports"
	case errors.Is(err, recorder.ErrBroken):
		return "keep the data folder as it is; put a copy of its log in the place of log, or start with another data folder (broker verify --since CHECKPOINT says whether a copy lacks something)"
	case errors.Is(err, recorder.ErrDamaged):
		return "broker verify lists what is damaged; what is good can still be replayed"
	case errors.Is(err, recorder.ErrInUse):
		return "another broker runs on this data folder; give each its own"
	case errors.Is(err, agent.ErrNotJoined):
		return `on the broker's machine run: broker token create --agent NAME, and put what it prints into the agent's configuration`
	}
	return ""
}
