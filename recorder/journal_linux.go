package recorder

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// reserve has the file system keep room for a file. Writing there is cheaper, and does not
// fail for want of it.
func reserve(f *os.File, size int64) error {
	err := uninterrupted(func() error { return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size) })
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

// datasync brings what has been written to a file to the disk.
func datasync(f *os.File) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	closed := c.Control(func(fd uintptr) { err = uninterrupted(func() error { return unix.Fdatasync(int(fd)) }) })
	return errors.Join(closed, err)
}

// uninterrupted calls f until no signal interrupts it.
func uninterrupted(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
