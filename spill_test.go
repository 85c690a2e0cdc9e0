package smtplb_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
	"github.com/wneessen/go-mail"
)

// spillSizes are what Config.SpillSize is in tests: everything in memory, and nearly everything, something, and large messages only in files.
var spillSizes = []int64{-1, 1, 7, 64 << 10}

// spillers are pools that differ in their SpillSize, each with a relay of its own.
type spillers struct {
	pools  []*smtplb.Pool
	relays []*smtptest.Server
}

func newSpillers(tb testing.TB) *spillers {
	s, n := &spillers{}, smtptest.NewNetwork()
	for i, size := range spillSizes {
		addr := fmt.Sprintf("r%d.test:25", i)
		relay := n.NewServer(addr)
		tb.Cleanup(relay.Close)
		p, err := smtplb.New(smtplb.Config{
			Dial: n.DialContext, SpillSize: size, SpillDir: tb.TempDir(), MaxMessageSize: 300 << 10,
			Relays: []smtplb.Relay{{Name: "r", Addr: addr, TLS: smtplb.TLSNone, Breaker: smtplb.Breaker{Off: true}}},
		})
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { p.Close() })
		s.pools, s.relays = append(s.pools, p), append(s.relays, relay)
	}
	return s
}

// spilled is what became of a message.
type spilled struct {
	Data    string
	Params  []string
	Outcome string
	Err     string
}

// send sends e, of which body makes the Body anew, through each pool: what becomes of it must be the same.
func (s *spillers) send(tb testing.TB, e smtplb.Envelope, body func() smtplb.Body) spilled {
	tb.Helper()
	var first spilled
	for i, p := range s.pools {
		e.Body = body()
		r, err := p.Deliver(tb.Context(), &e)
		got := spilled{}
		if r != nil {
			got.Outcome = outcomes(r)
		}
		if err != nil {
			got.Err = err.Error()
		}
		m := s.relays[i].Messages()
		s.relays[i].Reset()
		if len(m) == 1 {
			got.Data, got.Params = string(m[0].Data), m[0].MailParams
		}
		if len(m) > 1 || (len(m) == 1) != (err == nil) {
			tb.Fatalf("SpillSize %d: %d messages are stored: %v", spillSizes[i], len(m), err)
		}
		if i == 0 {
			first = got
		} else if d := cmp.Diff(first, got); d != "" {
			tb.Fatalf("in memory, and with SpillSize %d:\n%.2000s", spillSizes[i], d)
		}
	}
	return first
}

// shortReads reads in pieces of random length, and fails with err where r ends; io.EOF is no failure.
type shortReads struct {
	r    io.Reader
	rand *rand.Rand
	err  error
}

func (s *shortReads) Read(p []byte) (int, error) {
	if s.rand.IntN(10) == 0 {
		return 0, nil
	}
	most := []int{1, 10, 1000, 100000}[s.rand.IntN(4)]
	n, err := s.r.Read(p[:min(len(p), 1+s.rand.IntN(most))])
	if err == io.EOF {
		err = s.err
	}
	return n, err
}

// checkSpilled sends raw from all sources.
func (s *spillers) checkSpilled(tb testing.TB, raw []byte, seed uint64) {
	name := filepath.Join(tb.TempDir(), "m.eml")
	if err := os.WriteFile(name, raw, 0o600); err != nil {
		tb.Fatal(err)
	}
	reader := func(err error) func() smtplb.Body {
		return func() smtplb.Body {
			return smtplb.Reader(&shortReads{bytes.NewReader(raw), rand.New(rand.NewPCG(seed, 1)), err})
		}
	}
	for ends := range smtplb.LineEndingsLenient + 1 {
		e := *envelope("x@example.com")
		e.LineEndings = ends
		ofBytes := s.send(tb, e, func() smtplb.Body { return smtplb.Bytes(raw) })
		for source, body := range map[string]func() smtplb.Body{"Reader": reader(io.EOF), "File": func() smtplb.Body { return smtplb.File(name) }} {
			if d := cmp.Diff(ofBytes, s.send(tb, e, body)); d != "" {
				tb.Fatalf("%d: Bytes, and %s:\n%.2000s", ends, source, d)
			}
		}
		want, ok := canonical(raw, ends)
		if ok = ok && len(raw) <= 300<<10; ok != (ofBytes.Err == "") || ok && ofBytes.Data != want {
			tb.Fatalf("%d: %.200q became %.200q: %v", ends, raw, ofBytes.Data, ofBytes.Err)
		}
		failed := s.send(tb, e, reader(errors.New("the source is gone")))
		if len(raw) <= 300<<10 && !strings.Contains(failed.Err, "the source is gone") {
			tb.Fatalf("%d: the source failed at its end: %v", ends, failed)
		}
	}
}

// What the relay gets does not depend on where a message lay, and neither do the errors.
func TestSpilledIsTheSame(t *testing.T) {
	s := newSpillers(t)
	r := rand.New(rand.NewPCG(5, 6))
	const buffer = 64 << 10
	odd := []string{"\r", "\n", "\r\n", "\n\r", "\x00", ".", "\r\n.", "\r\n.\r\n", "\n.\n", "\xc3\xbc", "\xff", strings.Repeat("y", 998), strings.Repeat("y", 999), "\r\n" + strings.Repeat("z", 998) + "\r\n"}
	messages := 16
	if !smtplb.Thorough() {
		messages = 6
	}
	for i := range messages {
		end := []string{"\r\n", "\r\n", "\n", "\r"}[r.IntN(4)]
		var b []byte
		for n := []int{100, 1000, buffer, buffer, 2 * buffer, 5 * buffer}[r.IntN(6)]; len(b) < n-40 || r.IntN(3) > 0; {
			b = append(b, []string{"", ".", "..", "a: b", "a line of text", strings.Repeat("a longer line of text ", 20)}[r.IntN(6)]...)
			b = append(b, end...)
		}
		for range r.IntN(3) { // over the end of a buffer, of what fits into memory, or anywhere
			at := max(min(buffer*r.IntN(3)-r.IntN(5), len(b)), 0)
			if r.IntN(3) == 0 {
				at = r.IntN(len(b))
			}
			what := odd[r.IntN(len(odd))]
			b = append(b[:at:at], append([]byte(what), b[min(at+len(what)*r.IntN(2), len(b)):]...)...)
		}
		if len(b) > 0 {
			s.checkSpilled(t, b[:len(b)-r.IntN(min(3, len(b)))], uint64(i))
		}
	}
}

// FuzzSpill is TestSpilledIsTheSame for any message, with something repeated before it.
func FuzzSpill(f *testing.F) {
	f.Add([]byte("a\r\nb"), []byte("line\r\n"), uint32(65534), uint64(1))
	f.Add([]byte(".\r\n"), []byte("\n"), uint32(65536), uint64(2))
	f.Add([]byte("\r\n\x00"), []byte("x"), uint32(998), uint64(3))
	f.Add([]byte("\xc3\xbc: a\n"), []byte("a: b\n"), uint32(70000), uint64(4))
	f.Add([]byte("\r"), []byte(".\r"), uint32(131071), uint64(5))
	s := newSpillers(f)
	f.Fuzz(func(t *testing.T, raw, before []byte, n uint32, seed uint64) {
		if len(before) > 0 {
			n %= 310 << 10
			raw = append(bytes.Repeat(before, int(n)/len(before)+1)[:n], raw...)
		}
		s.checkSpilled(t, raw, seed)
	})
}

// largeText is a message of n bytes and a little, with lines that begin with a dot.
func largeText(n int) []byte {
	return append([]byte(text), bytes.Repeat([]byte("A line of a message that is as SMTP wants it.\r\n.one with a dot\r\n"), n/64+1)...)
}

// countWarnings is a logger that counts what is said of temporary files.
type countWarnings struct {
	slog.Handler
	mu sync.Mutex
	n  int
}

func (c *countWarnings) Enabled(context.Context, slog.Level) bool { return true }

func (c *countWarnings) Handle(_ context.Context, r slog.Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.Level == slog.LevelWarn && strings.Contains(r.Message, "temporary file") {
		c.n++
	}
	return nil
}

// Where no file can be made messages are held in memory, and the log is told once.
func TestNoSpillDir(t *testing.T) {
	var log countWarnings
	h := newHouse(t, 1, func(c *smtplb.Config) {
		c.SpillSize, c.SpillDir, c.Logger = 10, filepath.Join(t.TempDir(), "missing"), slog.New(&log)
	})
	defer h.close()
	raw := largeText(200 << 10)
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			for _, b := range []smtplb.Body{smtplb.Reader(bytes.NewReader(raw)), smtplb.Bytes(bytes.ReplaceAll(raw, []byte("\r\n"), []byte("\n")))} {
				e := envelope("x@example.com")
				e.Body = b
				if _, err := h.pool.Deliver(t.Context(), e); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	m := h.relays[0].Messages()
	for _, m := range m {
		if !bytes.Equal(m.Data, raw) {
			t.Errorf("stored %d bytes of %d: %.100q", len(m.Data), len(raw), m.Data)
		}
	}
	if len(m) != 10 || log.n != 1 {
		t.Errorf("%d messages are stored, the log has %d warnings", len(m), log.n)
	}
}

// largeMail is a go-mail message with an attachment of n bytes.
func largeMail(tb testing.TB, n int, opts ...mail.FileOption) *mail.Msg {
	m := mail.NewMsg()
	if err := errors.Join(m.From("a@example.com"), m.To("x@example.com")); err != nil {
		tb.Fatal(err)
	}
	m.Subject("large")
	m.SetBodyString(mail.TypeTextPlain, "see attachment")
	m.AttachReadSeeker("a.bin", bytes.NewReader(bytes.Repeat([]byte("0123456789\n\r"), n/12)), opts...)
	return m
}

// What was deferred is sent again as it was read, from the file, as often as is wanted and by many at a time.
func TestRetryOfSpilled(t *testing.T) {
	lf := bytes.ReplaceAll(largeText(200<<10), []byte("\r\n"), []byte("\n"))
	for _, size := range spillSizes {
		for name, send := range map[string]func(p *smtplb.Pool) (*smtplb.Envelope, *smtplb.Receipt, error){
			"Reader": func(p *smtplb.Pool) (*smtplb.Envelope, *smtplb.Receipt, error) {
				e := envelope("x@example.com")
				e.Body = smtplb.Reader(bytes.NewReader(lf))
				r, err := p.Deliver(t.Context(), e)
				return e, r, err
			},
			"Send": func(p *smtplb.Pool) (*smtplb.Envelope, *smtplb.Receipt, error) {
				r, err := p.Send(t.Context(), largeMail(t, 200<<10))
				return &smtplb.Envelope{From: "a@example.com", To: []string{"x@example.com"}}, r, err
			},
			"NewEnvelope": func(p *smtplb.Pool) (*smtplb.Envelope, *smtplb.Receipt, error) {
				e, err := smtplb.NewEnvelope(largeMail(t, 2<<20))
				if err != nil {
					t.Fatal(err)
				}
				r, err := p.Deliver(t.Context(), e)
				return e, r, err
			},
		} {
			t.Run(fmt.Sprint(name, " ", size), func(t *testing.T) {
				limit := int64(len(lf)) // with CRLF it is larger, but so it was not read
				if name != "Reader" {
					limit = 10 << 20
				}
				h := newHouse(t, 1, func(c *smtplb.Config) { c.SpillSize, c.SpillDir, c.MaxMessageSize = size, t.TempDir(), limit })
				defer h.close()
				h.relays[0].On(smtptest.EndOfData).Times(2).Reply(451, "4.3.0 later")
				e, r, err := send(h.pool)
				if !errors.Is(err, smtplb.ErrTemporary) {
					t.Fatal(err)
				}
				again := r.Retry(e)
				if r, err = h.pool.Deliver(t.Context(), again); !errors.Is(err, smtplb.ErrTemporary) { // a retry can be retried
					t.Fatal(err)
				}
				again = r.Retry(again)
				runtime.GC() // the file is the retry's now
				var wg sync.WaitGroup
				for range 4 {
					wg.Go(func() {
						for range 2 {
							if _, err := h.pool.Deliver(t.Context(), again); err != nil {
								t.Error(err)
							}
						}
					})
				}
				wg.Wait()
				m := h.relays[0].Messages()
				for _, m := range m {
					if !bytes.Equal(m.Data, m0(h).Data) || name == "Reader" && !bytes.Equal(m.Data, largeText(200<<10)) || len(m.Data) < 200<<10 {
						t.Errorf("stored %d bytes: %.100q", len(m.Data), m.Data)
					}
				}
				if len(m) != 8 {
					t.Errorf("%d are stored", len(m))
				}
				small, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{{Addr: "unused.test:25"}}, MaxMessageSize: 100 << 10})
				if err != nil {
					t.Fatal(err)
				}
				defer small.Close()
				var ee *smtplb.EnvelopeError
				if _, err := small.Deliver(t.Context(), again); !errors.As(err, &ee) || !strings.Contains(ee.Reason, "MaxMessageSize") {
					t.Errorf("a pool for small messages: %v", err)
				}
			})
		}
	}
}

func m0(h *house) *smtptest.Message { return h.relays[0].Messages()[0] }

// A large envelope of NewEnvelope lies in a file, as it was rendered: what becomes of line ends is for Deliver to say.
func TestNewEnvelopeLineEndings(t *testing.T) {
	h := newHouse(t, 1, nil)
	defer h.close()
	var before, after runtime.MemStats
	msg := largeMail(t, 6<<20)
	runtime.ReadMemStats(&before)
	e, err := smtplb.NewEnvelope(msg)
	if err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 3<<20 && !raceEnabled { // while it grew to a megabyte it lay in memory
		t.Errorf("%d bytes were allocated", n)
	}
	for ends := range smtplb.LineEndingsLenient + 1 { // base64 is in order
		e.LineEndings = ends
		if _, err := h.pool.Deliver(t.Context(), e); err != nil {
			t.Errorf("%d: %v", ends, err)
		}
	}
	odd, err := smtplb.NewEnvelope(largeMail(t, 2<<20, mail.WithFileEncoding(mail.NoEncoding)))
	if err != nil {
		t.Fatal(err)
	}
	for ends, want := range []string{"CR without LF", "LF without CR", ""} {
		for range 2 {
			odd.LineEndings = smtplb.LineEndings(ends)
			if _, err := h.pool.Deliver(t.Context(), odd); want == "" && err != nil || want != "" && !strings.Contains(fmt.Sprint(err), want) {
				t.Errorf("%d: %v", ends, err)
			}
		}
	}
	m := h.relays[0].Messages()
	if len(m) != 5 {
		t.Fatalf("%d are stored", len(m))
	}
	if !bytes.Equal(m[0].Data, m[2].Data) || !bytes.Equal(m[3].Data, m[4].Data) || bytes.Count(m[3].Data, []byte("0123456789\r\n\r\n")) != 2<<20/12 {
		t.Errorf("%.2000q", m[3].Data)
	}
}

// A header in UTF-8 needs an SMTPUTF8 relay, wherever the message lies.
func TestSpilledNeeds(t *testing.T) {
	h := mixed(t, []smtptest.Option{smtptest.WithoutExtensions("SMTPUTF8")}, nil)
	defer h.close()
	e := envelope("x@example.com")
	e.Body = smtplb.Reader(io.MultiReader(strings.NewReader("Subject: Gr\u00fc\u00dfe\r\n"), bytes.NewReader(largeText(2<<20))))
	r, err := h.pool.Deliver(t.Context(), e)
	if err != nil || r.Recipients[0].Relay != "r1" {
		t.Errorf("%v: %v", r, err)
	}
	msg := largeMail(t, 2<<20)
	msg.SetGenHeaderPreformatted("X-Note", "Gr\u00fc\u00dfe")
	if e, err = smtplb.NewEnvelope(msg); err != nil {
		t.Fatal(err)
	}
	if r, err = h.pool.Deliver(t.Context(), e); err != nil || r.Recipients[0].Relay != "r1" {
		t.Errorf("%v: %v", r, err)
	}
}

// MaxMessageSize is held while reading: neither memory nor the file gets more.
func TestSpilledMaxMessageSize(t *testing.T) {
	const limit = 1 << 20
	dir := t.TempDir()
	h := newHouse(t, 1, func(c *smtplb.Config) { c.MaxMessageSize, c.SpillSize, c.SpillDir = limit, 1000, dir })
	defer h.close()
	src := new(endless)
	e := envelope("x@example.com")
	e.Body = smtplb.Reader(src)
	h.refused(e, "Body", fmt.Sprint(limit))
	if src.read != limit+1 {
		t.Errorf("%d bytes were read", src.read)
	}
	e.Body = smtplb.Reader(io.LimitReader(new(endless), limit))
	if _, err := h.pool.Deliver(t.Context(), e); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v is left: %v", left, err)
	}
}

// TestLargeMessageMemory: what a message of 10 MB takes beside the caller's own bytes are buffers.
func TestLargeMessageMemory(t *testing.T) {
	s := smtptest.NewServer(smtptest.WithDiscard(), smtptest.WithMaxSize(0))
	defer s.Close()
	pool, err := smtplb.New(smtplb.Config{SpillDir: t.TempDir(), Relays: []smtplb.Relay{{Addr: s.Addr, TLS: smtplb.TLSNone}}})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	size := 10 << 20
	if raceEnabled { // sync.Pool forgets on purpose then: nothing is bounded
		size = 2 << 20
	}
	raw := largeText(size)
	name := filepath.Join(t.TempDir(), "m.eml")
	if err := os.WriteFile(name, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	for source, test := range map[string]struct {
		body func() smtplb.Body
		most uint64
	}{
		"Bytes":         {func() smtplb.Body { return smtplb.Bytes(raw) }, 1 << 20},
		"Bytes with LF": {func() smtplb.Body { return smtplb.Bytes(raw[:len(raw)-2]) }, 1 << 20}, // its last line has no end: a file is written
		"File":          {func() smtplb.Body { return smtplb.File(name) }, 1 << 20},
		"Reader":        {func() smtplb.Body { return smtplb.Reader(io.LimitReader(bytes.NewReader(raw), 1<<30)) }, 4 << 20}, // it may have been a small one
	} {
		measure := func() uint64 {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			e := envelope("x@example.com")
			e.Body = test.body()
			if _, err := pool.Deliver(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			runtime.ReadMemStats(&after)
			return after.TotalAlloc - before.TotalAlloc
		}
		measure()
		n := min(measure(), measure(), measure()) // the relay allocates too
		t.Logf("%s: %d KB", source, n>>10)
		if n > test.most && !raceEnabled {
			t.Errorf("%s: %d bytes were allocated for a message of %d", source, n, len(raw))
		}
	}
}
