//go:build !amd64

package codec

const inBlocks = false

func stringBlocks([]byte, int) int { panic("codec: no string in blocks") }
