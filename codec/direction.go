package codec

// A Direction is the way of a frame.
type Direction uint8

const (
	C2S Direction = iota // client to server
	S2C                  // server to client
)

// String returns "c2s" or "s2c".
func (d Direction) String() string {
	if d == S2C {
		return "s2c"
	}
	return "c2s"
}
