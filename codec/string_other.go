//go:build !amd64

package codec

const inBlocks, packs = false, false

func stringBlocks([]byte, int) int { panic("codec: no string in blocks") }

func endBlocks([]byte, int) (at int, done bool) { panic("codec: no string in blocks") }

func commaBlocks([]byte) (n int) { panic("codec: no commas in blocks") }

func membersBlocks([]byte, int, *template, int, int, bool) (at, n int, s stop) {
	panic("codec: no members in blocks")
}

func unquoteBlocks(dst, src []byte) (i, n int) { panic("codec: no escapes in blocks") }
