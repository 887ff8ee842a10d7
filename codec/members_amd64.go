package codec

// membersBlocks is [template.members] with AVX2. It may be called if inBlocks is
// true.
//
//go:noescape
func membersBlocks(b []byte, i int, t *template, k int, rows bool) (at, n int, s stop)
