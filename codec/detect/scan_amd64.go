package detect

import "golang.org/x/sys/cpu"

// vector says whether texts are scanned many bytes at a time. Only tests change it.
var vector = cpu.X86.HasAVX2

// classify writes the rows of classes of that many blocks of text. dst is where
// the first row has the first block's bits.
//
//go:noescape
func classify(dst, text *byte, blocks int)

// mark writes, of that many blocks of text and the two bytes behind them, a bit
// for every other byte, if the hash of the four bytes there is in table, letters'
// case apart; and a bit for every byte where a pair of like is.
//
//go:noescape
func mark(grams, pairs, text *byte, blocks int, table *uint64, like *likes)
