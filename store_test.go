package smtplb_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
)

// What every Store does, and the two that there are do.
func TestStores(t *testing.T) {
	for _, tt := range []struct {
		name string
		open func(t *testing.T) (a, b smtplb.Store) // two on one state
	}{
		{"MemoryStore", func(*testing.T) (a, b smtplb.Store) { m := new(smtplb.MemoryStore); return m, m }},
		{"FileStore", func(t *testing.T) (a, b smtplb.Store) { s := smtplb.NewFileStore(storePath(t)); return s, s }},
		{"two FileStores", func(t *testing.T) (a, b smtplb.Store) {
			path := storePath(t)
			return smtplb.NewFileStore(path), smtplb.NewFileStore(path)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := t.Context()
			a, b := tt.open(t)
			if v, err := a.Load(ctx, "k"); v != nil || err != nil {
				t.Fatalf("it begins with %s, %v", v, err)
			}
			swap := func(s smtplb.Store, key, was, now string, want bool) {
				t.Helper()
				w := []byte(was)
				if was == "" {
					w = nil
				}
				if ok, err := s.Swap(ctx, key, w, []byte(now)); ok != want || err != nil {
					t.Errorf("Swap(%s, %s, %s) = %v, %v", key, was, now, ok, err)
				}
			}
			load := func(s smtplb.Store, key, want string) {
				t.Helper()
				if v, err := s.Load(ctx, key); string(v) != want || err != nil {
					t.Errorf("%s is %s, %v; want %s", key, v, err, want)
				}
			}
			swap(a, "k", `{"a":1}`, `{"a":2}`, false)
			swap(a, "k", "", `{"a":"<&>\u2028"}`, true)
			load(b, "k", `{"a":"<&>\u2028"}`)
			swap(b, "k", "", `{"a":3}`, false)
			swap(b, "other", "", `"x"`, true)
			swap(b, "k", `{"a":"<&>\u2028"}`, `{"a":3}`, true)
			swap(a, "k", `{"a":"<&>\u2028"}`, `{"a":4}`, false)
			load(a, "k", `{"a":3}`)
			load(a, "other", `"x"`)

			const each = 25
			counter := func(s smtplb.Store) {
				for n := 0; n < each; {
					was, err := s.Load(ctx, "n")
					if err != nil {
						t.Error(err)
						return
					}
					x, _ := strconv.Atoi(string(was))
					ok, err := s.Swap(ctx, "n", was, []byte(strconv.Itoa(x+1)))
					if err != nil {
						t.Error(err)
						return
					}
					if ok {
						n++
					}
				}
			}
			var g sync.WaitGroup
			for _, s := range []smtplb.Store{a, a, b, b} {
				g.Go(func() { counter(s) })
			}
			g.Wait()
			if runtime.GOOS != "windows" || tt.name != "two FileStores" {
				load(a, "n", strconv.Itoa(4*each))
			}
			load(b, "other", `"x"`)
		})
	}
}

func storePath(t testing.TB) string { return filepath.Join(t.TempDir(), "store.json") }

func TestFileStoreFile(t *testing.T) {
	path := storePath(t)
	s := smtplb.NewFileStore(path)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a file before there is something in it: %v", err)
	}
	if ok, err := s.Swap(t.Context(), "warmup/a", nil, []byte(`{"n":1}`)); !ok || err != nil {
		t.Fatal(ok, err)
	}
	b, err := os.ReadFile(path)
	want := "{\n  \"format\": \"smtplb store\",\n  \"version\": 1,\n  \"values\": {\n    \"warmup/a\": {\n      \"n\": 1\n    }\n  }\n}\n"
	if string(b) != want || err != nil {
		t.Errorf("%s, %v", b, err)
	}
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	// One whose permissions were wider has narrow ones after the next write, and a link stays a link.
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err == nil {
		s = smtplb.NewFileStore(link)
	}
	if ok, err := s.Swap(t.Context(), "warmup/a", []byte(`{"n":1}`), []byte(`{"n":2}`)); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if v, err := smtplb.NewFileStore(path).Load(t.Context(), "warmup/a"); string(v) != `{"n":2}` || err != nil {
		t.Errorf("%s, %v", v, err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*.tmp"))
	if len(left) != 0 || err != nil {
		t.Errorf("%v are left, %v", left, err)
	}
}

// A file that isn't whole, or another's, is an error, and stays as it is.
func TestFileStoreTorn(t *testing.T) {
	path := storePath(t)
	s := smtplb.NewFileStore(path)
	if ok, err := s.Swap(t.Context(), "k", nil, []byte(`{"n":1}`)); !ok || err != nil {
		t.Fatal(ok, err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	files := []string{"", "\x00\x00\x00\x00", "{}", "null", "hello", `{"format":"smtplb store","version":1}`, string(whole) + string(whole), string(whole) + "x"}
	for i := range len(whole) - 1 { // but for the line's end
		files = append(files, string(whole[:i]))
	}
	for _, change := range [][2]string{{`"version": 1`, `"version": 2`}, {"smtplb store", "other"}, {`"values"`, `"entries"`}, {`"version"`, `"more": 1, "version"`}, {`{
      "n": 1
    }`, "null"}} {
		x := strings.Replace(string(whole), change[0], change[1], 1)
		if x == string(whole) {
			t.Fatalf("%s isn't in it", change[0])
		}
		files = append(files, x)
	}
	for _, x := range files {
		if err := os.WriteFile(path, []byte(x), 0o600); err != nil {
			t.Fatal(err)
		}
		if v, err := s.Load(t.Context(), "k"); err == nil || v != nil || !strings.Contains(err.Error(), path) {
			t.Errorf("Load of %q: %s, %v", x, v, err)
		}
		if ok, err := s.Swap(t.Context(), "k", nil, []byte(`{"n":2}`)); ok || err == nil {
			t.Errorf("Swap in %q: %v, %v", x, ok, err)
		}
		if b, err := os.ReadFile(path); string(b) != x || err != nil {
			t.Errorf("%q has become %q, %v", x, b, err)
		}
	}
}

func TestFileStoreErrors(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	for name, path := range map[string]string{
		"no directory": filepath.Join(dir, "none", "store"),
		"a directory":  dir,
	} {
		s := smtplb.NewFileStore(path)
		if _, err := s.Load(ctx, "k"); err == nil {
			t.Errorf("%s: no error of Load", name)
		}
		if ok, err := s.Swap(ctx, "k", nil, []byte("1")); ok || err == nil {
			t.Errorf("%s: Swap says %v, %v", name, ok, err)
		}
	}
	path := filepath.Join(dir, "store")
	s := smtplb.NewFileStore(path)
	for _, x := range []struct{ key, value string }{{"k", "{"}, {"k", ""}, {"k", "null"}, {"k\xff", "1"}} {
		if ok, err := s.Swap(ctx, x.key, nil, []byte(x.value)); ok || err == nil {
			t.Errorf("%q = %q: %v, %v", x.key, x.value, ok, err)
		}
	}
	over, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Load(over, "k"); !errors.Is(err, context.Canceled) {
		t.Errorf("Load with a context that has ended: %v", err)
	}
	if ok, err := s.Swap(over, "k", nil, []byte("1")); ok || !errors.Is(err, context.Canceled) {
		t.Errorf("Swap with a context that has ended: %v, %v", ok, err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was written: %v", err)
	}
}

// Whatever a FileStore accepts it keeps, and what it doesn't it leaves alone.
func FuzzFileStore(f *testing.F) {
	path := storePath(f)
	s := smtplb.NewFileStore(path)
	f.Add([]byte(`{"format":"smtplb store","version":1,"values":{}}`), "k")
	f.Add([]byte(`{"format":"smtplb store","version":1,"values":{"k":{"a":[1,2,"<"]},"l":" \ud800"}}`), "k")
	f.Add([]byte(`{"format":"smtplb store","version":1,"values":null}`), "")
	f.Add([]byte{}, "k")
	f.Fuzz(func(t *testing.T, b []byte, key string) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		held, err := s.Load(ctx, key)
		if err != nil {
			if ok, err := s.Swap(ctx, key, nil, []byte("1")); ok || err == nil {
				t.Errorf("read with an error, and written: %v", ok)
			}
			if after, _ := os.ReadFile(path); string(after) != string(b) {
				t.Errorf("%q has become %q", b, after)
			}
			return
		}
		if held != nil && !json.Valid(held) {
			t.Errorf("%q isn't JSON", held)
		}
		if ok, err := s.Swap(ctx, key+"\u2603", nil, []byte("1")); err == nil && ok {
			again, err := s.Load(ctx, key)
			if string(again) != string(held) || err != nil {
				t.Errorf("%q has become %q, %v", held, again, err)
			}
			if ok, err := s.Swap(ctx, key, held, []byte("2")); !ok || err != nil {
				t.Errorf("what was read isn't what is there: %v, %v", ok, err)
			}
		}
	})
}

// A FileStore without a file, as of a variable of the environment that isn't set, is an error at once, not a relay that never gets mail.
func TestFileStoreWithoutFile(t *testing.T) {
	t.Parallel()
	var none *smtplb.FileStore
	for name, s := range map[string]*smtplb.FileStore{"no name": smtplb.NewFileStore(""), "zero": new(smtplb.FileStore), "nil": none} {
		c := smtplb.Config{Relays: []smtplb.Relay{{Addr: "mx.example.com:587"}}, Store: s}
		var fault *smtplb.ConfigError
		if _, err := smtplb.New(c); !errors.As(err, &fault) || fault.Path != "Store" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
