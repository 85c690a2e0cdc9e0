//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package smtplb

import (
	"os"
	"syscall"
)

// tryLock locks f against other processes, until it is closed. It returns false where another has locked it.
func tryLock(f *os.File) (bool, error) {
	for {
		switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err {
		case nil:
			return true, nil
		case syscall.EWOULDBLOCK:
			return false, nil
		case syscall.EINTR:
		default:
			return false, err
		}
	}
}

// syncDir makes sure that a new name in dir outlives a power failure.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
