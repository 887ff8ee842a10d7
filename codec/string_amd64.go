package codec

import "golang.org/x/sys/cpu"

// inBlocks tells whether stringBlocks may be called.
var inBlocks = cpu.X86.HasAVX2 && cpu.X86.HasBMI1

// stringBlocks reads a string from i on, which is not within an escape or a
// character, and at least 3 behind the start of b; b is of at least aBlock bytes.
// It returns the offset of what it leaves to its caller: the closing quote, a
// control character, an escape that is not of two bytes, the end of b, or anything
// that is not plain in its last aBlock bytes; or -1 if the string is not UTF-8.
//
//go:noescape
func stringBlocks(b []byte, i int) int
