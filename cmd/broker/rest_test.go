package main

import (
	"runtime"
	"testing"
)

func TestResting(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before uint64
		now    memory
		want   bool
	}{
		{"garbage", 300 << 20, memory{300<<20 + 1000, 90 << 20, 50 << 20, 0}, true},
		{"garbage, and busy", 299 << 20, memory{300 << 20, 90 << 20, 50 << 20, 0}, false},
		{"little garbage", 300 << 20, memory{300 << 20, 55 << 20, 50 << 20, 0}, false},
		{"garbage, collected and kept", 300 << 20, memory{300 << 20, 52 << 20, 50 << 20, 40 << 20}, true},
		{"little of much", 300 << 20, memory{300 << 20, 210 << 20, 200 << 20, 8 << 20}, false},
	} {
		if got := tt.now.resting(tt.before); got != tt.want {
			t.Errorf("%s: got %t", tt.name, got)
		}
	}
}

func TestReadMemory(t *testing.T) {
	before := readMemory()
	garbage := make([]byte, 32<<20)
	after := readMemory()
	runtime.KeepAlive(garbage)
	if after.allocated < before.allocated+32<<20 || after.used < 32<<20 {
		t.Errorf("%+v, and with 32 MiB more %+v", before, after)
	}
}
