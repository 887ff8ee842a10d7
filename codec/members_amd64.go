package codec

// membersBlocks is [template.members] with AVX2. No member that it reads ends
// behind limit.
//
//go:noescape
func membersBlocks(b []byte, i int, t *template, k, limit int, rows bool) (at, n int, s stop)
