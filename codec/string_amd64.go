package codec

import "golang.org/x/sys/cpu"

// inBlocks tells whether the functions in assembly may be called.
var inBlocks = cpu.X86.HasAVX2 && cpu.X86.HasBMI1 && cpu.X86.HasPOPCNT

// stringBlocks reads a string from i on, which is not within an escape or a
// character, and at least 3 behind the start of b; b is of at least aBlock bytes.
// It returns the offset of what it leaves to its caller: the closing quote, a
// control character, an escape that is not of two bytes, the end of b, or anything
// that is not plain in its last aBlock bytes; or -1 if the string is not UTF-8.
//
//go:noescape
func stringBlocks(b []byte, i int) int

// endBlocks returns the offset behind the string of valid JSON that goes on at i,
// which is not within an escape, or, as not done, where to go on.
//
//go:noescape
func endBlocks(b []byte, i int) (at int, done bool)

// commaBlocks returns how many commas that a quote follows, perhaps behind a blank,
// are in b but for its last 34 bytes.
//
//go:noescape
func commaBlocks(b []byte) (n int)
