package smtplb_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
	"github.com/wneessen/go-mail"
)

var spillFull = flag.Bool("spill.full", false, "TestSpillMemory sends 64 messages at once, not 16: 2 GB of temporary files")

// spilledInto are the open files of this process that were made in dir.
func spilledInto(t *testing.T, dir string) (fds []string) {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range all {
		name := "/proc/self/fd/" + fd.Name()
		if to, err := os.Readlink(name); err == nil && strings.HasPrefix(to, dir+"/smtplb-") {
			fds = append(fds, name)
		}
	}
	return fds
}

// noneLeft waits for the garbage collector to close what nobody can reach.
func noneLeft(t *testing.T, dir string) {
	t.Helper()
	for range 1000 {
		if len(spilledInto(t, dir)) == 0 {
			return
		}
		runtime.GC()
		runtime.Gosched()
	}
	t.Errorf("%d files are left open", len(spilledInto(t, dir)))
}

// A temporary file has no name, can be read by nobody else, and is closed when the send has returned, but for one that a receipt keeps.
func TestSpillFile(t *testing.T) {
	dir := t.TempDir()
	inside := 0
	h := newHouse(t, 1, func(c *smtplb.Config) {
		c.SpillSize, c.SpillDir = 1000, dir
		c.Hooks.AttemptStart = func(context.Context, smtplb.AttemptInfo) func(smtplb.Attempt) {
			fds := spilledInto(t, dir)
			inside += len(fds)
			for _, fd := range fds {
				if info, err := os.Stat(fd); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%v: %v", info.Mode(), err)
				}
			}
			if names, err := os.ReadDir(dir); len(names) > 0 {
				t.Errorf("%v: %v", names, err)
			}
			return nil
		}
	})
	defer h.close()
	raw := largeText(100 << 10)
	ways := map[string]func() (*smtplb.Envelope, *smtplb.Receipt, error){}
	deliver := func(body func() smtplb.Body) func() (*smtplb.Envelope, *smtplb.Receipt, error) {
		return func() (*smtplb.Envelope, *smtplb.Receipt, error) {
			e := envelope("x@example.com")
			e.Body = body()
			r, err := h.pool.Deliver(t.Context(), e)
			return e, r, err
		}
	}
	name := filepath.Join(t.TempDir(), "m.eml")
	if err := os.WriteFile(name, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	ways["File"] = deliver(func() smtplb.Body { return smtplb.File(name) })
	ways["Bytes"] = deliver(func() smtplb.Body { return smtplb.Bytes(bytes.ReplaceAll(raw, []byte("\r\n"), []byte("\n"))) })
	ways["Reader"] = deliver(func() smtplb.Body { return smtplb.Reader(bytes.NewReader(raw)) })
	ways["Send"] = func() (*smtplb.Envelope, *smtplb.Receipt, error) {
		r, err := h.pool.Send(t.Context(), largeMail(t, 100<<10))
		return envelope("x@example.com"), r, err
	}
	for way, send := range ways {
		inside = 0
		if _, _, err := send(); err != nil {
			t.Errorf("%s: %v", way, err)
		}
		if n := len(spilledInto(t, dir)); inside != 1 || n != 0 {
			t.Errorf("%s: %d files during the send, %d after it", way, inside, n)
		}
		h.relays[0].On(smtptest.EndOfData).Times(1).Reply(451, "4.3.0 later")
		e, r, err := send()
		if !errors.Is(err, smtplb.ErrTemporary) {
			t.Fatalf("%s: %v", way, err)
		}
		kept := 0
		if way == "Reader" || way == "Send" {
			kept = 1
		}
		for range 5 {
			runtime.GC()
		}
		if n := len(spilledInto(t, dir)); n != kept {
			t.Errorf("%s: %d files are kept by the receipt", way, n)
		}
		again := r.Retry(e) // the last use of e and r
		for range 5 {
			runtime.GC()
		}
		if _, err := h.pool.Deliver(t.Context(), again); err != nil {
			t.Errorf("%s: the retry: %v", way, err)
		}
		if n := len(spilledInto(t, dir)); n != kept {
			t.Errorf("%s: %d files are kept by the retry", way, n)
		}
		h.relays[0].On(smtptest.EndOfData).Times(1).Reply(554, "5.6.0 no") // failed for good: no retry
		if _, _, err := send(); !errors.Is(err, smtplb.ErrPermanent) {
			t.Errorf("%s: %v", way, err)
		}
		noneLeft(t, dir)
		h.relays[0].Reset()
	}
	// Faults, and sources that fail or panic, leave nothing.
	large := bytes.Repeat([]byte("line\r\n"), 50000)
	for _, body := range []smtplb.Body{
		smtplb.Reader(bytes.NewReader(append(large, "a\rb"...))), smtplb.Reader(bytes.NewReader(append(large, 0))),
		smtplb.Reader(io.MultiReader(bytes.NewReader(large), readerFunc(func([]byte) (int, error) { return 0, errors.New("gone") }))),
		smtplb.Reader(io.MultiReader(bytes.NewReader(large), readerFunc(func([]byte) (int, error) { panic("a panic") }))),
	} {
		func() {
			defer func() { _ = recover() }()
			e := envelope("x@example.com")
			e.Body = body
			if _, err := h.pool.Deliver(t.Context(), e); err == nil {
				t.Error("it was sent")
			}
		}()
		if n := len(spilledInto(t, dir)); n != 0 {
			t.Errorf("%d files are left", n)
		}
	}
}

// A file that can't be read any more is nobody's fault: deferred, and the relay has not got the message, nor the blame.
func TestSpillFileFails(t *testing.T) {
	dir := t.TempDir()
	h := newHouse(t, 2, func(c *smtplb.Config) {
		c.SpillSize, c.SpillDir = 1000, dir
		c.Hooks.AttemptStart = func(context.Context, smtplb.AttemptInfo) func(smtplb.Attempt) {
			for _, fd := range spilledInto(t, dir) {
				if err := os.Truncate(fd, 150<<10); err != nil {
					t.Error(err)
				}
			}
			return nil
		}
	})
	defer h.close()
	e := envelope("x@example.com")
	e.Body = smtplb.Reader(bytes.NewReader(largeText(300 << 10)))
	r, err := h.pool.Deliver(t.Context(), e)
	if outcomes(r) != "deferred" || !errors.Is(err, smtplb.ErrTemporary) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v: %v", r, err)
	}
	for i, s := range h.pool.Stats().Relays {
		if n := len(h.relays[i].Messages()); n != 0 || s.Faults != 0 {
			t.Errorf("%d are stored, %d faults", n, s.Faults)
		}
	}
}

// TestSpillMemory: many Sends of an attachment of 25 MB at once, in a process of their own.
func TestSpillMemory(t *testing.T) {
	sends, size, most := 16, 25<<20, 100
	switch {
	case *spillFull:
		sends, most = 64, 400
	case !smtplb.Thorough():
		sends, size = 4, 3<<20
	case raceEnabled:
		sends, size = 8, 5<<20
	}
	name := filepath.Join(t.TempDir(), "a.bin")
	if err := os.WriteFile(name, bytes.Repeat([]byte("0123456789abcdef"), size/16), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := sink(t)
	peak := func(spillSize int) int {
		t.Helper()
		out := spillProcess(t, "memory", addr, strconv.Itoa(sends), name, strconv.Itoa(spillSize))
		kb, err := strconv.Atoi(strings.TrimSpace(out))
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return kb >> 10
	}
	n := peak(0)
	t.Logf("%d MB for %d messages of %d MB", n, sends, size>>20)
	if n > most && !raceEnabled {
		t.Errorf("%d sends of %d MB took %d MB, want %d at the most", sends, size>>20, n, most)
	}
}

// TestSpillDiskFull: in a process whose files may have 300 KB each, larger messages go on in memory, and nothing of them is lost.
func TestSpillDiskFull(t *testing.T) {
	if out := spillProcess(t, "full", t.TempDir()); strings.TrimSpace(out) != "ok" {
		t.Error(out)
	}
}

// spillProcess runs this test binary as TestSpillProcess, and returns what it prints.
func spillProcess(t *testing.T, args ...string) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestSpillProcess$")
	cmd.Env = append(os.Environ(), "SMTPLB_TEST_SPILL="+strings.Join(args, "\n"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, _, _ = bytes.Cut(out, []byte("PASS"))
	return string(out)
}

// TestSpillProcess is the other process of spillProcess; run by itself it proves that a message goes through it.
func TestSpillProcess(t *testing.T) {
	args := strings.Split(os.Getenv("SMTPLB_TEST_SPILL"), "\n")
	switch args[0] {
	case "full":
		fullDisk(t, args[1])
	case "memory":
		sends, _ := strconv.Atoi(args[2])
		spillSize, _ := strconv.Atoi(args[4])
		sendAttachments(t, args[1], sends, args[3], int64(spillSize))
		fmt.Println(peakRSS(t))
	default:
		name := filepath.Join(t.TempDir(), "a")
		if err := os.WriteFile(name, make([]byte, 3<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		sendAttachments(t, sink(t), 2, name, 0)
		if peakRSS(t) == 0 {
			t.Error("no peak")
		}
	}
}

// peakRSS is the most memory, in KB, that this process has had resident.
func peakRSS(t *testing.T) int {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	return 0
}

func sendAttachments(t *testing.T, addr string, sends int, name string, spillSize int64) {
	p, err := smtplb.New(smtplb.Config{LocalName: "localhost", SpillSize: spillSize, Relays: []smtplb.Relay{{Addr: addr, TLS: smtplb.TLSNone}}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var wg, begun sync.WaitGroup
	begun.Add(sends)
	for range sends {
		wg.Go(func() {
			m := mail.NewMsg()
			if err := errors.Join(m.From("a@example.com"), m.To("x@example.com")); err != nil {
				t.Error(err)
			}
			m.SetBodyString(mail.TypeTextPlain, "see attachment")
			m.AttachFile(name)
			begun.Done()
			begun.Wait()
			if _, err := p.Send(t.Context(), m); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func fullDisk(t *testing.T, dir string) {
	limit := syscall.Rlimit{Cur: 300 << 10, Max: 300 << 10}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	var log countWarnings
	h := newHouse(t, 1, func(c *smtplb.Config) { c.SpillSize, c.SpillDir, c.Logger = 50<<10, dir, slog.New(&log) })
	defer h.close()
	for _, size := range []int{40 << 10, 200 << 10, 300<<10 - 200, 400 << 10, 3 << 20} {
		raw := largeText(size)
		lf := bytes.ReplaceAll(raw, []byte("\r\n"), []byte("\n"))
		for _, b := range []smtplb.Body{smtplb.Reader(bytes.NewReader(raw)), smtplb.Bytes(lf), smtplb.Reader(bytes.NewReader(lf))} {
			e := envelope("x@example.com")
			e.Body = b
			if _, err := h.pool.Deliver(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			if m := h.relays[0].Messages(); len(m) != 1 || !bytes.Equal(m[0].Data, raw) {
				t.Fatalf("%d messages are stored", len(m))
			}
			h.relays[0].Reset()
			if want := min(max(size-(300<<10-200), 0), 1); log.n != want {
				t.Fatalf("%d warnings for %d bytes, want %d", log.n, size, want)
			}
			if n := len(spilledInto(t, dir)); n != 0 {
				t.Fatalf("%d files are left", n)
			}
		}
	}
	fmt.Println("ok")
}
