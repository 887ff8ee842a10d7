//go:build !amd64

package detect

var vector = false

func classify(_, _ *byte, _ int) { panic("no vectors") }

func mark(_, _, _ *byte, _ int, _ *uint64, _ *likes) { panic("no vectors") }
