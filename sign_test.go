package smtplb_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
	"github.com/wneessen/go-mail"
)

// sums is a Signer whose signature is the hash of the message and the number of the call: two that sign the same aren't the same.
func sums(calls *atomic.Int32) smtplb.Signer {
	return func(_ context.Context, r smtplb.SignRequest) ([]byte, error) {
		h := sha256.New()
		for range 2 { // it may be read as often as is wanted
			h.Reset()
			if n, err := io.Copy(h, io.NewSectionReader(r.Message, 0, r.Message.Size())); err != nil || n != r.Message.Size() {
				return nil, fmt.Errorf("%d of %d bytes: %w", n, r.Message.Size(), err)
			}
		}
		return fmt.Appendf(nil, "X-Sum: %d;\r\n\t%x\r\n", calls.Add(1), h.Sum(nil)), nil
	}
}

// signedRight reports whether data begins with what sums made of the rest, and in which call.
func signedRight(t *testing.T, data []byte) (call int) {
	t.Helper()
	var sum string
	i := bytes.Index(data, []byte("\r\n\t"))
	j := i + 3 + 64 + 2
	if i < 0 || len(data) < j {
		t.Errorf("not signed: %.200q", data)
		return 0
	}
	_, _ = fmt.Sscanf(string(data[:j]), "X-Sum: %d;\r\n%s", &call, &sum)
	sum = string(data[i+3 : j-2])
	if want := fmt.Sprintf("%x", sha256.Sum256(data[j:])); sum != want {
		t.Errorf("signed is %s, sent was %s: %.200q", sum, want, data)
	}
	return call
}

// signedBodies are a message in each of the forms in which it can come, in memory or large. What it becomes is canonical.
func signedBodies(t *testing.T) map[string]func() smtplb.Body {
	all := map[string]func() smtplb.Body{}
	for size, n := range map[string]int{"small": 3, "large": 3000} {
		tidy := []byte("From: a@example.com\r\nSubject: x\r\n\r\n" + strings.Repeat("A line of text, and a dot:\r\n.\r\n..\r\n", n))
		untidy := bytes.ReplaceAll(tidy, []byte("\r\n"), []byte("\n"))
		file := filepath.Join(t.TempDir(), "m.eml")
		if err := os.WriteFile(file, untidy, 0o600); err != nil {
			t.Fatal(err)
		}
		all[size+" tidy bytes"] = func() smtplb.Body { return smtplb.Bytes(tidy) }
		all[size+" untidy bytes"] = func() smtplb.Body { return smtplb.Bytes(untidy) }
		all[size+" file"] = func() smtplb.Body { return smtplb.File(file) }
		all[size+" reader"] = func() smtplb.Body { return smtplb.Reader(bytes.NewReader(untidy)) }
		all[size+" go-mail"] = func() smtplb.Body {
			m := mail.NewMsg()
			if err := errors.Join(m.From("a@example.com"), m.To("x@example.com")); err != nil {
				t.Fatal(err)
			}
			m.SetBodyString(mail.TypeTextPlain, strings.Repeat(string(untidy), 1+n/200)) // a large one is larger than 1 MiB, from which on NewEnvelope uses a file
			e, err := smtplb.NewEnvelope(m)
			if err != nil {
				t.Fatal(err)
			}
			return e.Body
		}
	}
	return all
}

// What is signed is what is sent, whatever it comes from, and in one Deliver it is signed once: all attempts and all parts send the same. A Retry sends it again where it is kept; what is read anew is signed anew.
func TestSignedOnce(t *testing.T) {
	for name, body := range signedBodies(t) {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var calls atomic.Int32
				h := newHouse(t, 5, func(c *smtplb.Config) {
					groups(c)
					c.Signer, c.SpillSize, c.SpillDir = sums(&calls), 1<<10, t.TempDir()
				})
				defer h.close()
				for i, s := range h.relays { // each part needs both of its relays, or is deferred
					if i < 2 {
						s.On(smtptest.Rcpt).Times(1).Reply(451, "4.7.1 Greylisted")
					} else if i == 2 || i == 3 {
						s.On(smtptest.EndOfData).Times(1).Reply(451, "4.3.0 Not now")
					}
				}
				e := envelope("x@a.test", "x@b.test", "x@c.test")
				e.Body = body()
				r, err := h.pool.Deliver(t.Context(), e)
				if !errors.Is(err, smtplb.ErrPartial) || calls.Load() != 1 {
					t.Fatalf("signed %d times: %v: %v", calls.Load(), r, err)
				}
				again := r.Retry(e)
				h.relays[0].ClearScript()
				h.relays[1].ClearScript()
				for i := 2; i < 4; i++ {
					h.relays[i].ClearScript()
				}
				runtime.GC() // a file that belongs to nobody would be gone
				if r, err = h.pool.Deliver(t.Context(), again); err != nil || r.Retry(again) != nil {
					t.Fatalf("%v: %v", r, err)
				}
				var all [][]byte
				for _, s := range h.relays {
					for _, m := range s.Messages() {
						all = append(all, m.Data)
					}
				}
				kept := strings.HasSuffix(name, "reader") || name == "large go-mail"
				if want := 2; calls.Load() != int32(want) != kept {
					t.Errorf("signed %d times", calls.Load())
				}
				if len(all) != 3 {
					t.Errorf("%d messages are stored", len(all))
				}
				for _, m := range all {
					if call := signedRight(t, m); kept && call != 1 || kept && !bytes.Equal(m, all[0]) {
						t.Errorf("not the same: %.300q and %.300q", m, all[0])
					}
				}
			})
		})
	}
}

// renders counts how often a go-mail message is rendered, and makes it another each time.
type renders struct{ n *int }

func (renders) Type() mail.MiddlewareType { return "renders" }

func (r renders) Handle(m *mail.Msg) *mail.Msg {
	*r.n++
	m.SetGenHeader("X-Render", fmt.Sprint(*r.n))
	return m
}

// A go-mail message is rendered, passed through its middlewares and signed by go-mail once: attempts, failovers, parts and the retry send the same bytes, with the pool's signature, if there is one, in front.
func TestGoMailSignsOnce(t *testing.T) {
	for _, signer := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			var calls atomic.Int32
			h := newHouse(t, 5, func(c *smtplb.Config) {
				groups(c)
				if signer {
					c.Signer = sums(&calls)
				}
			})
			defer h.close()
			var tried atomic.Int32
			for i, s := range h.relays[:4] {
				s.On(smtptest.EndOfData).Times(1+i/2).If(func(*smtptest.Event) bool { tried.Add(1); return true }).Reply(451, "4.3.0 Not now")
			}
			n := 0
			_, key, err := ed25519.GenerateKey(nil)
			if err != nil {
				t.Fatal(err)
			}
			m := mail.NewMsg(mail.WithMiddleware(renders{&n}), mail.WithDKIM(mail.NewDKIMSigner("example.com", "s", key)))
			if err := errors.Join(m.From("a@example.com"), m.To("x@a.test", "x@b.test", "x@c.test")); err != nil {
				t.Fatal(err)
			}
			m.SetBodyString(mail.TypeTextPlain, "Hello")
			r, err := h.pool.Send(t.Context(), m)
			if outcomes(r) != "deferred deferred accepted" || len(r.Attempts) != 5 || tried.Load() < 4 {
				t.Fatalf("%v: %v", r, err)
			}
			again := r.Retry(&smtplb.Envelope{From: "a@example.com"})
			for range 3 {
				if r, err = h.pool.Deliver(t.Context(), again); err == nil {
					break
				}
				again = r.Retry(again)
			}
			var all []string
			for _, s := range h.relays {
				for _, m := range s.Messages() {
					all = append(all, string(m.Data))
				}
			}
			if len(all) != 3 || len(slices.Compact(all)) != 1 || n != 1 || strings.Count(all[0], "DKIM-Signature:") != 1 || !strings.Contains(all[0], "X-Render: 1\r\n") {
				t.Errorf("rendered %d times, %d stored: %.600q: %v", n, len(all), all, err)
			}
			if signer && (calls.Load() != 1 || signedRight(t, []byte(all[0])) != 1) {
				t.Errorf("signed %d times", calls.Load())
			}
		})
	}
}

// A Signer that fails, panics, or returns what is no header costs no more than the message, which can be retried; one that says for good that it won't sign is the envelope's fault.
func TestSignerFails(t *testing.T) {
	header := func(s string) smtplb.Signer {
		return func(context.Context, smtplb.SignRequest) ([]byte, error) { return []byte(s), nil }
	}
	for name, test := range map[string]struct {
		sign smtplb.Signer
		says string
	}{
		"down": {func(context.Context, smtplb.SignRequest) ([]byte, error) {
			return []byte("A: b\r\n"), errors.New("is down")
		}, "is down"},
		"panic":          {func(context.Context, smtplb.SignRequest) ([]byte, error) { panic("no key") }, "panicked: no key"},
		"no CRLF":        {header("A: b"), "line 1 of the header that Config.Signer returned doesn't end with CRLF"},
		"LF":             {header("A: b\nB: c\r\n"), "line 1 of the header that Config.Signer returned has control characters"},
		"CR":             {header("A: b\rB: c\r\n"), "has control characters"},
		"NUL":            {header("A: b\x00\r\n"), "has control characters"},
		"a body":         {header("A: b\r\n\r\nhello\r\n"), "line 2 of the header that Config.Signer returned is blank"},
		"a blank fold":   {header("A: b\r\n \t\r\n c\r\n"), "line 2 of the header that Config.Signer returned is blank"},
		"only CRLF":      {header("\r\n"), "line 1 of the header that Config.Signer returned is blank"},
		"no name":        {header("A: b\r\nhello\r\n"), "line 2 of the header that Config.Signer returned begins with no field name"},
		"an empty name":  {header(": b\r\n"), "begins with no field name"},
		"a spaced name":  {header("A : b\r\n"), "begins with no field name"},
		"a fold first":   {header(" b\r\nA: c\r\n"), "goes on with a field"},
		"a long line":    {header("A: " + strings.Repeat("b", 996) + "\r\n"), "has 999 bytes"},
		"much":           {header(strings.Repeat("A: b\r\n", 11000)), "66000 bytes"},
		"not UTF-8":      {header("A: \xff\r\n"), "is not UTF-8"},
		"its own ending": {func(ctx context.Context, _ smtplb.SignRequest) ([]byte, error) { return nil, context.DeadlineExceeded }, "deadline"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				broken := true
				var calls atomic.Int32
				good := sums(&calls)
				h := newHouse(t, 1, func(c *smtplb.Config) {
					c.Signer = func(ctx context.Context, r smtplb.SignRequest) ([]byte, error) {
						if broken {
							return test.sign(ctx, r)
						}
						return good(ctx, r)
					}
				})
				defer h.close()
				e := envelope("x@example.com", "y@example.com")
				e.Body = smtplb.Reader(strings.NewReader(text))
				r, err := h.pool.Deliver(t.Context(), e)
				var sign *smtplb.SignError
				if outcomes(r) != "deferred deferred" || !errors.Is(err, smtplb.ErrTemporary) || errors.Is(err, smtplb.ErrPermanent) || !errors.As(err, &sign) || !strings.Contains(err.Error(), test.says) ||
					len(r.Attempts) != 0 || r.Recipients[0].RetryAfter <= 0 || !errors.As(r.Recipients[1].Err(), &sign) {
					t.Fatalf("%v: %v", r, err)
				}
				if n := len(h.relays[0].Transcripts()); n != 0 {
					t.Errorf("%d connections", n)
				}
				broken = false
				if r, err = h.pool.Deliver(t.Context(), r.Retry(e)); err != nil {
					t.Fatalf("the retry: %v: %v", r, err)
				}
				signedRight(t, h.relays[0].Messages()[0].Data)
			})
		})
	}
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Signer = func(_ context.Context, r smtplb.SignRequest) ([]byte, error) {
				return nil, fmt.Errorf("no key for %s, %s, %s, %s: %w", r.From, r.ID, r.Stream, r.Key, smtplb.ErrPermanent)
			}
		})
		defer h.close()
		e := envelope("x@example.com")
		e.ID, e.Stream, e.Key = "id", "bulk", "tenant"
		r, err := h.pool.Deliver(t.Context(), e)
		var fault *smtplb.EnvelopeError
		if r != nil || !errors.As(err, &fault) || !errors.Is(err, smtplb.ErrPermanent) || errors.Is(err, smtplb.ErrTemporary) || !errors.As(err, new(*smtplb.SignError)) || !strings.Contains(err.Error(), "a@example.com, id, bulk, tenant") {
			t.Errorf("%v: %v", r, err)
		}
		for result := range h.pool.DeliverAll(t.Context(), slices.Values([]*smtplb.Envelope{e}), smtplb.Bulk{}) {
			if result.Receipt != nil || !errors.As(result.Err, &fault) {
				t.Errorf("DeliverAll: %+v", result)
			}
		}
	})
}

// What a Signer may do beyond a plain signature: nothing, UTF-8, a field that begins with a dot, several fields. What it adds counts for sizes. The message in front of which nothing can be put isn't sent.
func TestSignerEdges(t *testing.T) {
	for _, test := range []struct {
		head, body, params string
		err                string
		ehlo               []string
	}{
		{head: "", body: text},
		{head: "A: b\r\n\tc\r\nDKIM-Signature: x\r\n", body: text},
		{head: ".a: b\r\n.c: d\r\n", body: text},
		{head: "A: " + strings.Repeat("b", 995) + "\r\n", body: text},
		{head: "A: \u00e4\r\n", body: text, params: "SMTPUTF8"},
		{head: "A: b\r\n", body: "\r\nno header\r\n"},
		{head: "A: b\r\n", body: " folded\r\n\r\nx\r\n", err: "begins with white space"},
		{head: "A: b\r\n", body: "B: " + strings.Repeat("c", 500) + "\r\n\r\n" + strings.Repeat("d", 490) + "\r\n", err: "larger than Config.MaxMessageSize"},
	} {
		bubble(t, func(t *testing.T) {
			head := []byte(test.head)
			h := newHouse(t, 1, func(c *smtplb.Config) {
				c.MaxMessageSize = 1000
				if len(head) > 900 {
					c.MaxMessageSize = 2000
				}
				c.Signer = func(context.Context, smtplb.SignRequest) ([]byte, error) { return head, nil }
			})
			defer h.close()
			e := envelope("x@example.com")
			e.Body = smtplb.Bytes([]byte(test.body))
			r, err := h.pool.Deliver(t.Context(), e)
			if test.err != "" {
				if r != nil || !errors.As(err, new(*smtplb.EnvelopeError)) || !strings.Contains(err.Error(), test.err) {
					t.Errorf("%q: %v: %v", test.head, r, err)
				}
				return
			}
			if err != nil {
				t.Fatalf("%q: %v", test.head, err)
			}
			m := h.relays[0].Messages()[0]
			size := fmt.Sprintf("SIZE=%d", len(test.head)+len(test.body))
			if string(m.Data) != test.head+test.body || !slices.Contains(m.MailParams, size) || slices.Contains(m.MailParams, "SMTPUTF8") != (test.params != "") {
				t.Errorf("%q: sent %q, %v", test.head, m.Data, m.MailParams)
			}
		})
	}
}

// A signer that hangs ends with the send's context, and whoever comes with one that has ended isn't signed for.
func TestSignerEndsWithTheSend(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var calls atomic.Int32
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Signer = func(ctx context.Context, _ smtplb.SignRequest) ([]byte, error) {
				calls.Add(1)
				<-ctx.Done()
				return nil, context.Cause(ctx)
			}
		})
		defer h.close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begun := time.Now()
		r, err := h.pool.Deliver(ctx, envelope("x@example.com"))
		if outcomes(r) != "deferred" || !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Minute {
			t.Errorf("%v after %v: %v", r, time.Since(begun), err)
		}
		r, err = h.pool.Deliver(ctx, envelope("x@example.com"))
		if outcomes(r) != "deferred" || !errors.Is(err, context.DeadlineExceeded) || calls.Load() != 1 {
			t.Errorf("%d calls, %v: %v", calls.Load(), r, err)
		}
	})
}

// Close ends a signer's work, as all that a send waits for.
func TestSignerEndsWithThePool(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Signer = func(ctx context.Context, _ smtplb.SignRequest) ([]byte, error) {
				select {
				case <-ctx.Done():
				case <-time.After(time.Minute):
				}
				return nil, ctx.Err()
			}
		})
		defer h.close()
		begun := time.Now()
		time.AfterFunc(time.Second, func() { h.pool.Close() })
		r, err := h.pool.Deliver(context.Background(), envelope("x@example.com"))
		if took := time.Since(begun); !errors.Is(err, smtplb.ErrClosed) || took != time.Second || r.Recipients[0].Outcome != smtplb.Deferred {
			t.Errorf("after %v: %v", took, err)
		}
	})
}
