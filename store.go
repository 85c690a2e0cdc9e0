package smtplb

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"
	"unicode/utf8"
)

// Store keeps what a pool must not forget when its process ends: how much a relay that warms up has sent today, and on which stage it is. It holds one small value, JSON of a few kilobytes at most, for each such relay, and is asked a few hundred times a day.
//
// A database that several processes share is a Store where it can replace a value only if it is what the caller has seen: "UPDATE … SET value = $now WHERE key = $key AND value = $was". Then the processes share the cap.
//
// The methods are called in goroutines of the pool, never in that of a send, and at the same time for different keys. They should end with their context. An error of Swap means that it may have been carried out or not; what
// is so is found out by Load. A value that Load returns and that isn't one that was stored is an error for the relay, and it sends nothing: the pool never begins again by itself.
type Store interface {
	// Load returns what is stored under key, nil if nothing is.
	Load(ctx context.Context, key string) ([]byte, error)
	// Swap stores now under key, if what is stored there is was (nil: nothing). If it isn't, nothing is changed, and it returns false. Once it has returned true, now must not be lost.
	Swap(ctx context.Context, key string, was, now []byte) (bool, error)
}

// MemoryStore is a Store for as long as the process lives. Pools that share one share the caps of relays of the same name. The zero value is empty.
type MemoryStore struct {
	mu     sync.Mutex // guards values; held for map operations only
	values map[string][]byte
}

// Load returns what is stored under key.
func (m *MemoryStore) Load(_ context.Context, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.values[key]), nil
}

// Swap stores now in the place of was.
func (m *MemoryStore) Swap(_ context.Context, key string, was, now []byte) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if held := m.values[key]; (held == nil) != (was == nil) || !bytes.Equal(held, was) {
		return false, nil
	}
	if m.values == nil {
		m.values = make(map[string][]byte)
	}
	m.values[key] = bytes.Clone(now)
	return true, nil
}

// FileStore is a Store in one file, in a directory that must exist. Its values must be JSON. The file is replaced as a whole (written beside, fsync, rename), with permission 0600; so it is always whole, but a crash may leave a file NAME.*.tmp.
//
// Where the system has flock(2) (Linux, macOS, the BSDs), several processes may use one file, on a local file system: they exclude each other by NAME.lock, which stays, while they write. Elsewhere the file must be one process's; two would not damage it, but each might
// overwrite what the other has counted.
//
// A file that is no such store, or isn't whole, is an error of both methods. It is never overwritten: delete it to begin again. A file that doesn't exist is an empty store, a directory that doesn't exist is an error.
type FileStore struct {
	path string
	slot chan struct{} // held by who reads or writes
}

// NewFileStore returns the store in the file with this name. It does no I/O.
func NewFileStore(path string) *FileStore {
	return &FileStore{path: path, slot: make(chan struct{}, 1)}
}

const (
	storeFormat   = "smtplb store"
	storeVersion  = 1
	maxStoreFile  = 64 << 20
	storeLockPoll = 5 * time.Millisecond
)

type storeFile struct {
	Format  string                     `json:"format"`
	Version int                        `json:"version"`
	Values  map[string]json.RawMessage `json:"values"`
}

// Load returns what the file holds under key.
func (s *FileStore) Load(ctx context.Context, key string) ([]byte, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.leave()
	values, err := readStore(s.path)
	return values[key], err
}

// Swap stores now in the place of was.
func (s *FileStore) Swap(ctx context.Context, key string, was, now []byte) (bool, error) {
	if !utf8.ValidString(key) {
		return false, fmt.Errorf("the key %q isn't UTF-8", key)
	}
	value, err := compactJSON(now)
	if err != nil {
		return false, fmt.Errorf("the value of %q: %w", key, err)
	}
	if err := s.enter(ctx); err != nil {
		return false, err
	}
	defer s.leave()
	path := s.path
	if target, err := filepath.EvalSymlinks(path); err == nil { // a link stays one
		path = target
	}
	unlock, err := lockStore(ctx, path)
	if err != nil {
		return false, err
	}
	defer unlock()
	values, err := readStore(path)
	if err != nil {
		return false, err
	}
	if held := values[key]; (held == nil) != (was == nil) || !sameJSON(held, was) {
		return false, nil
	}
	next := maps.Clone(values)
	if next == nil {
		next = make(map[string]json.RawMessage)
	}
	next[key] = value
	return true, writeStore(path, next)
}

func (s *FileStore) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case s.slot <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *FileStore) leave() { <-s.slot }

// lockStore keeps other processes from writing the file until unlock is called.
func lockStore(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		ok, err := tryLock(f)
		if err != nil {
			f.Close()
			return nil, &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
		if ok {
			return func() { f.Close() }, nil // which unlocks it
		}
		poll := time.NewTimer(storeLockPoll)
		select {
		case <-poll.C:
		case <-ctx.Done():
			poll.Stop()
			f.Close()
			return nil, &fs.PathError{Op: "lock", Path: f.Name(), Err: ctx.Err()}
		}
	}
}

func readStore(path string) (map[string]json.RawMessage, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		_, err := os.Stat(filepath.Dir(path)) // that of a volume which isn't mounted is no empty store
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxStoreFile {
		return nil, fmt.Errorf("%s is no file of a FileStore: %v, %d bytes", path, info.Mode(), info.Size())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxStoreFile))
	if err != nil {
		return nil, err
	}
	values, err := parseStore(b)
	if err != nil {
		return nil, fmt.Errorf("%s is no whole file of a FileStore: %w (to begin again, move it away)", path, err)
	}
	return values, nil
}

// parseStore reads what formatStore wrote, and takes nothing else.
func parseStore(b []byte) (map[string]json.RawMessage, error) {
	if len(b) == 0 {
		return nil, errors.New("it is empty")
	}
	var x storeFile
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&x); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("something follows the store")
	}
	if x.Format != storeFormat {
		return nil, fmt.Errorf("its format is %q, not %q", x.Format, storeFormat)
	}
	if x.Version != storeVersion {
		return nil, fmt.Errorf("it is in version %d; this is version %d", x.Version, storeVersion)
	}
	if x.Values == nil {
		return nil, errors.New("it has no values")
	}
	for key, value := range x.Values {
		b, err := compactJSON(value)
		if err != nil {
			return nil, fmt.Errorf("the value of %q: %w", key, err)
		}
		x.Values[key] = b
	}
	return x.Values, nil
}

func formatStore(values map[string]json.RawMessage) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // it would change what Swap compares
	e.SetIndent("", "  ")  // an operator may look into it
	err := e.Encode(storeFile{storeFormat, storeVersion, values})
	return b.Bytes(), err
}

func writeStore(path string, values map[string]json.RawMessage) (err error) {
	b, err := formatStore(values)
	if err != nil {
		return err
	}
	if len(b) > maxStoreFile {
		return fmt.Errorf("%s would have %d bytes; at most %d", path, len(b), maxStoreFile)
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*.tmp") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	return syncDir(dir)
}

func compactJSON(b []byte) (json.RawMessage, error) {
	var c bytes.Buffer
	if err := json.Compact(&c, b); err != nil {
		return nil, err
	}
	if bytes.Equal(c.Bytes(), []byte("null")) {
		return nil, errors.New("it is null")
	}
	return c.Bytes(), nil
}

// sameJSON reports whether a, which is compact, is b.
func sameJSON(a json.RawMessage, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	c, err := compactJSON(b)
	return err == nil && bytes.Equal(a, c)
}
