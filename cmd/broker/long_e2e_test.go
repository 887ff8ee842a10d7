//go:build e2e

package main

import (
	"strings"
	"testing"
)

// TestLongAnswerMemory has 1 GiB pass in one frame. The collector runs whenever
// there are a few MiB more than it has left.
func TestLongAnswerMemory(t *testing.T) {
	t.Setenv("GODEBUG", "gctrace=1")
	t.Setenv("GOGC", "1")
	for _, way := range [][2]string{{"tls", "tcp"}, {"h2", "tcp"}, {"tls", "sse"}} {
		t.Run(strings.Join(way[:], " to "), func(t *testing.T) {
			grown := longAnswer(t, way[0], way[1], 1<<30, 3000)
			t.Logf("broker or agent had %d MiB more in use than before", grown)
			if grown < 0 || grown > 8 {
				t.Errorf("broker or agent had %d MiB more in use than before, over 8", grown)
			}
		})
	}
}
