//go:build e2e

package main

import "testing"

// TestLongAnswerMemory has 1 GiB pass in one frame. The collector runs whenever
// there are a few MiB more than it has left.
func TestLongAnswerMemory(t *testing.T) {
	t.Setenv("GODEBUG", "gctrace=1")
	t.Setenv("GOGC", "3")
	for _, protocol := range []string{"tls", "h2"} {
		t.Run(protocol, func(t *testing.T) {
			grown := longAnswer(t, protocol, 1<<30, 1000)
			t.Logf("the broker had %d MiB more in use than before", grown)
			if grown < 0 || grown > 8 {
				t.Errorf("the broker had %d MiB more in use than before, over 8", grown)
			}
		})
	}
}
