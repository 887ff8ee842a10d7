//go:build unrecorded

package broker

import "example.com/broker/recorder"

// recorded forgets the frames of a session. A broker of this kind is built to measure
// what recording costs, and for nothing else: see bench.
func recorded(r Recording) Recording { return forgetful{r} }

type forgetful struct{ Recording }

func (forgetful) Append(...recorder.Frame) error { return nil }
