package codec

import "golang.org/x/sys/cpu"

// What follows is in assembly, for processors of the last ten years, and looks at
// 64 bytes at a time. It does no more than the Go code that calls it does by itself
// elsewhere.

// inBlocks tells whether these functions may be called.
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

// membersBlocks is [template.members]. No member that it reads ends behind limit.
//
//go:noescape
func membersBlocks(b []byte, i int, t *template, k, limit int, rows bool) (at, n int, s stop)

// unquoteBlocks puts into dst what src, the inside of a valid string, stands for,
// as far as the first block that has an escape \u or is not whole. dst has room for
// src. It returns how much of src it has read and of dst it has written.
//
//go:noescape
func unquoteBlocks(dst, src []byte) (i, n int)

// packing is, for each set of 8 bytes, where they are.
//
//lint:ignore U1000 unquoteBlocks reads it
var packing = func() (table [256][8]byte) {
	for set := range table {
		n := 0
		for i := range 8 {
			if set>>i&1 != 0 {
				table[set][n] = byte(i)
				n++
			}
		}
	}
	return table
}()
