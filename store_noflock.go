//go:build !darwin && !dragonfly && !freebsd && !linux && !netbsd && !openbsd

package smtplb

import "os"

// tryLock can lock nothing here: see FileStore.
func tryLock(*os.File) (bool, error) { return true, nil }

// syncDir is for systems on which a directory is a file.
func syncDir(string) error { return nil }
