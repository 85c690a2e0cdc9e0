package smtplb

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
)

// defaultSpillSize is Config.SpillSize's default.
const defaultSpillSize = 1 << 20

// maxRenders is how many sends of a Pool may have go-mail hold whole attachments in memory at a time, 2.5 times their size each.
const maxRenders = 2

// noSpill tells the log, once, that messages are held in memory.
func (p *Pool) noSpill(err error) {
	if !p.spillFailed.Swap(true) {
		p.log(context.Background(), slog.LevelWarn, "no temporary file, large messages are held in memory", slog.String("error", err.Error()))
	}
}

// content is a message that was read, in memory or in a temporary file, and what is known of it.
type content struct {
	body     []byte     // in canonical form, see scanner
	file     *spillFile // the same in a file; nil: body
	size     int64      // its length
	dots     bool       // it has lines that begin with a dot
	eightBit bool
	header8  bool // the header has UTF-8 in it

	head   []byte // header fields that go in front of it, and count in size and read
	signed bool   // Config.Signer had its say

	read int64 // how long it was when it was read, which is what MaxMessageSize is about
	raw  bool  // it is as it was read, and not in canonical form yet
}

// spillFile is a message in a temporary file. It is safe for concurrent use. The file is gone after close, or else when nobody can reach the spillFile any more: the
// receipt of a send, and the envelopes that Receipt.Retry makes, need not be closed.
type spillFile struct {
	spilled
	cleanup runtime.Cleanup
}

// newSpillFile makes a temporary file that only we can read (os.CreateTemp makes it with mode 0600), and takes its name away at once where the system lets us, so that nothing is left
// of it even where the process is killed. Elsewhere (Windows) it is removed when it was closed.
func newSpillFile(dir string) (*spillFile, error) {
	f, err := os.CreateTemp(dir, "smtplb-*")
	if err != nil {
		return nil, err
	}
	name := f.Name()
	if os.Remove(name) == nil {
		name = ""
	}
	return ownSpillFile(f, name), nil
}

// ownSpillFile takes over a temporary file. name is "" where it has none any more.
func ownSpillFile(f *os.File, name string) *spillFile {
	s := &spillFile{spilled: spilled{f, name}}
	s.cleanup = runtime.AddCleanup(s, spilled.remove, s.spilled)
	return s
}

// spilled is a temporary file, and its name where it still has one.
type spilled struct {
	f    *os.File
	name string
}

func (s spilled) remove() {
	_ = s.f.Close()
	if s.name != "" {
		_ = os.Remove(s.name)
	}
}

// ReadAt reads what was spilled.
func (s *spillFile) ReadAt(b []byte, at int64) (int, error) {
	n, err := s.f.ReadAt(b, at)
	runtime.KeepAlive(s)
	return n, err
}

// close closes the file and removes it. Nobody may be using it.
func (s *spillFile) close() {
	s.cleanup.Stop()
	s.remove()
}

// spillWrite is how much is written to a file at once, at least.
const spillWrite = 32 << 10

// spool takes in a message in pieces: into memory, and when that grows too large into a temporary file. Where there can be no file, or no more of it (the disk is full), it goes on in memory
// and loses nothing.
type spool struct {
	most int64  // memory at the most; negative: no limit
	dir  string // where files are made; "": os.TempDir
	pool *Pool  // hears why there is no file; may be nil

	buf    []byte // in memory; with a file, what was not written to it yet
	file   *spillFile
	n      int64 // bytes in file
	failed bool  // there can be no file
}

func (s *spool) write(b []byte) error {
	if s.file == nil && !s.failed && s.most >= 0 && int64(len(s.buf)+len(b)) > s.most {
		s.spill()
	}
	if s.file != nil && len(s.buf) > 0 && len(s.buf)+len(b) > spillWrite {
		if err := s.flush(); err != nil {
			return err
		}
	}
	if s.file != nil && len(b) >= spillWrite { // then buf is empty
		return s.put(b)
	}
	if n := len(s.buf) + len(b); n > cap(s.buf) && len(s.buf) > 0 { // append would grow a large one in smaller steps, and allocate more in all
		s.buf = append(make([]byte, 0, max(n, 2*cap(s.buf))), s.buf...)
	}
	s.buf = append(s.buf, b...)
	return nil
}

func (s *spool) spill() {
	f, err := newSpillFile(s.dir)
	if err != nil {
		s.fail(err)
		return
	}
	s.file = f
}

// expect says how large the message will be: one that will not stay in memory goes to its file from the start.
func (s *spool) expect(size int64) {
	if s.most >= 0 && size > s.most {
		s.spill()
	}
}

// flush writes what waits for it to the file.
func (s *spool) flush() error {
	b := s.buf
	s.buf = nil
	if cap(b) <= 2*spillWrite { // what was kept in memory before there was a file is let go
		s.buf = b[:0]
	}
	return s.put(b)
}

// put writes b to the file. Where that fails the message goes back into memory.
func (s *spool) put(b []byte) error {
	n, err := s.file.f.Write(b)
	s.n += int64(n)
	if err == nil {
		return nil
	}
	s.fail(err)
	all := make([]byte, s.n, s.n+int64(len(b)-n)+spillWrite)
	if _, err := s.file.ReadAt(all, 0); err != nil {
		return fmt.Errorf("reading the temporary file back: %w", err)
	}
	s.file.close()
	s.file, s.buf = nil, append(all, b[n:]...)
	return nil
}

func (s *spool) fail(err error) {
	s.failed = true
	if s.pool != nil {
		s.pool.noSpill(err)
	}
}

// finish hands over what was taken in: in memory, or in a file.
func (s *spool) finish() (body []byte, file *spillFile, err error) {
	if s.file != nil && len(s.buf) > 0 {
		if err := s.flush(); err != nil {
			return nil, nil, err
		}
	}
	body, file = s.buf, s.file
	if file != nil {
		body = nil
	}
	s.buf, s.file = nil, nil
	return body, file, nil
}

// drop lets go of what was taken in and not handed over.
func (s *spool) drop() {
	if s.file != nil {
		s.file.close()
	}
	s.file, s.buf = nil, nil
}

// reader reads c from its start.
func (c *content) reader() io.Reader { return io.NewSectionReader(c.at(c.head), 0, c.size) }
