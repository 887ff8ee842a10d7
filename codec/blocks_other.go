//go:build !amd64

package codec

const inBlocks = false

func stringBlocks([]byte, int) int              { panic("codec: no blocks") }
func endBlocks([]byte, int) (at int, done bool) { panic("codec: no blocks") }
func unquoteBlocks(dst, src []byte) (i, n int)  { panic("codec: no blocks") }
func membersBlocks([]byte, int, *template, int, int, bool) (at, n int, s stop) {
	panic("codec: no blocks")
}
