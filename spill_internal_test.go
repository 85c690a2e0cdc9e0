package smtplb

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// TestSpillFileWithName: where a file keeps its name while it is open, as on Windows, it is removed when it was closed, or when nobody can reach it.
func TestSpillFileWithName(t *testing.T) {
	file := func() (*spillFile, string) {
		name := filepath.Join(t.TempDir(), "smtplb-1")
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		return ownSpillFile(f, name), name
	}
	gone := func(name string) bool {
		_, err := os.Stat(name)
		return os.IsNotExist(err)
	}
	s, name := file()
	if gone(name) {
		t.Error("it was removed early")
	}
	s.close()
	if !gone(name) {
		t.Error("it was closed, and is there")
	}
	if err := os.WriteFile(name, nil, 0o600); err != nil { // somebody else's
		t.Fatal(err)
	}
	s, forgotten := file()
	for range 5 {
		runtime.GC()
	}
	if gone(forgotten) {
		t.Error("it was removed while it was used")
	}
	runtime.KeepAlive(s)
	s = nil
	for range 1000 {
		if gone(forgotten) {
			break
		}
		runtime.GC()
		runtime.Gosched()
	}
	if !gone(forgotten) {
		t.Error("nobody can reach it, and it is there")
	}
	if gone(name) {
		t.Error("a file was removed twice")
	}
}
