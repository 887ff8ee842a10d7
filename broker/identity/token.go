package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Tokens are the one-time tokens that agents join with: one file each in a
// folder, named by the token's hash. The tokens themselves are not kept.
// Several processes may use a folder at a time.
type Tokens struct {
	dir string
}

// ErrToken is the one error for a token that is unknown, used, expired or
// another agent's: whoever guesses learns nothing.
var ErrToken = errors.New("the join token is not valid: it may be used, expired, or another agent's")

type tokenFile struct {
	Agent   string    `json:"agent"`
	Expires time.Time `json:"expires"`
}

// OpenTokens returns the tokens in dir, which is made when the first is created.
func OpenTokens(dir string) *Tokens { return &Tokens{dir} }

func (t *Tokens) file(token string) string {
	sum := sha256.Sum256([]byte(token))
	return filepath.Join(t.dir, hex.EncodeToString(sum[:]))
}

// Create makes a token for the agent of that name.
func (t *Tokens) Create(agent string, life time.Duration) (token string, err error) {
	if err := checkAgent(agent); err != nil {
		return "", err
	}
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return "", fmt.Errorf("create token: %w", err)
	}
	t.sweep()
	token = "bjt_" + rand.Text()
	b, err := json.Marshal(tokenFile{agent, time.Now().Add(life)})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(t.file(token), b, 0o600); err != nil {
		return "", fmt.Errorf("create token: %w", err)
	}
	return token, nil
}

// Redeem uses the token up. Of several callers at a time one succeeds.
func (t *Tokens) Redeem(token, agent string) error {
	path := t.file(token)
	b, err := os.ReadFile(path)
	if err != nil {
		return ErrToken
	}
	var f tokenFile
	if json.Unmarshal(b, &f) != nil || f.Agent != agent || time.Now().After(f.Expires) {
		return ErrToken
	}
	if os.Remove(path) != nil { // somebody else was faster
		return ErrToken
	}
	return nil
}

// sweep removes tokens that have expired.
func (t *Tokens) sweep() {
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		path := filepath.Join(t.dir, e.Name())
		var f tokenFile
		if b, err := os.ReadFile(path); err == nil && json.Unmarshal(b, &f) == nil && time.Now().After(f.Expires) {
			os.Remove(path)
		}
	}
}
