//go:build !linux

package recorder

import "errors"

// exchange: this system cannot exchange two folders at once.
func exchange(a, b string) error {
	return errors.New("this system cannot exchange two folders at once; do it on Linux")
}
