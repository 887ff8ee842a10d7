//go:build race

package codec

// poison makes Next overwrite the line it returned before, so that under -race
// whoever keeps a frame without copying it reads garbage, not yesterday's luck.
const poison = true
