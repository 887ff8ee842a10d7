package signin

import (
	"sync"
	"time"
)

// A table is a map of bounded size whose entries end. Where it is full, an entry
// goes for a new one, whichever: who floods it does not choose.
type table[T any] struct {
	mu  *sync.Mutex
	max int
	m   map[string]entry[T]
}

type entry[T any] struct {
	value T
	until time.Time
}

func newTable[T any](size int) table[T] {
	return table[T]{&sync.Mutex{}, size, map[string]entry[T]{}}
}

func (t table[T]) put(key string, v T, until time.Time) {
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

func (t table[T]) get(key string) (v T, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.m[key]
	if !ok || !time.Now().Before(e.until) {
		return v, false
	}
	return e.value, true
}

// take returns an entry and removes it: of several callers one gets it.
func (t table[T]) take(key string) (v T, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.m[key]
	delete(t.m, key)
	if !ok || !time.Now().Before(e.until) {
		return v, false
	}
	return e.value, true
}

// change lets f change an entry; ok is false if there is none.
func (t table[T]) change(key string, f func(*T)) (ok bool) {
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
