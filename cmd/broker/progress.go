package main

import (
	"fmt"
	"io"
	"time"
)

// progress returns what shows on a terminal how far long work is, now and then. On
// anything else it shows nothing.
func progress(w io.Writer) func(format string, done ...any) {
	if !isTerminal(w) {
		return func(string, ...any) {}
	}
	last := time.Now()
	return func(format string, done ...any) {
		if time.Since(last) > 200*time.Millisecond {
			last = time.Now()
			fmt.Fprintf(w, "\r"+format+"…\x1b[K\r", done...)
		}
	}
}
