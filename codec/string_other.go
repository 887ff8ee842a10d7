//go:build !amd64

package codec

const inBlocks = false

func stringBlocks([]byte, int) int { panic("codec: no string in blocks") }

func membersBlocks([]byte, int, *template, int, bool) (at, n int, s stop) {
	panic("codec: no members in blocks")
}
