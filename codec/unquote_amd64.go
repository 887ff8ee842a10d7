package codec

import "golang.org/x/sys/cpu"

// packs tells whether unquoteBlocks may be called.
var packs = inBlocks && cpu.X86.HasBMI2

// unquoteBlocks puts into dst what src, the inside of a valid string, stands for,
// as far as the first block of 64 bytes that has an escape \u or is not whole. dst
// has room for src. It returns how much of src it has read and of dst it has
// written.
//
//go:noescape
func unquoteBlocks(dst, src []byte) (i, n int)
