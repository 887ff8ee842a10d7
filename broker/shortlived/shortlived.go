// Package shortlived keeps what is needed for a while only, such as the state of
// a sign-in under way, in bounded memory: anybody may begin one.
package shortlived

import (
	"sync"
	"time"
)

// A Table is a map of bounded size whose entries end. Where it is full, an entry
// goes for a new one, whichever: who floods it does not choose.
type Table[T any] struct {
	mu  *sync.Mutex
	max int
	m   map[string]entry[T]
}

type entry[T any] struct {
	value T
	until time.Time
}

// New returns a Table of at most size entries.
func New[T any](size int) Table[T] {
	return Table[T]{&sync.Mutex{}, size, map[string]entry[T]{}}
}

// Put adds or replaces an entry.
func (t Table[T]) Put(key string, v T, until time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, have := t.m[key]; !have && len(t.m) >= t.max {
		now := time.Now()
		for k, e := range t.m {
			if now.After(e.until) {
				delete(t.m, k)
			}
		}
		for k := range t.m {
			if len(t.m) < t.max {
				break
			}
			delete(t.m, k)
		}
	}
	t.m[key] = entry[T]{v, until}
}

// Get returns an entry.
func (t Table[T]) Get(key string) (v T, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.m[key]
	if !ok || !time.Now().Before(e.until) {
		return v, false
	}
	return e.value, true
}

// Take returns an entry and removes it: of several callers one gets it.
func (t Table[T]) Take(key string) (v T, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.m[key]
	delete(t.m, key)
	if !ok || !time.Now().Before(e.until) {
		return v, false
	}
	return e.value, true
}

// Change lets f change an entry; ok is false if there is none.
func (t Table[T]) Change(key string, f func(*T)) (ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.m[key]
	if !ok || !time.Now().Before(e.until) {
		return false
	}
	f(&e.value)
	t.m[key] = e
	return true
}
