package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// tiered makes each relay a tier of its own.
func tiered(c *smtplb.Config) {
	for i := range c.Relays {
		c.Relays[i].Tier = i
	}
}

func numbered(n int) (to []string) {
	for i := range n {
		to = append(to, fmt.Sprintf("u%d@example.com", i))
	}
	return to
}

// failsHalfWay gives half of a message, fails once, and then goes on.
type failsHalfWay struct {
	r      io.Reader
	n      int
	failed bool
}

func (f *failsHalfWay) Read(p []byte) (int, error) {
	if f.n >= 70 && !f.failed {
		f.failed = true
		return 0, errors.New("the connection to the object store is lost")
	}
	n, err := f.r.Read(p[:min(len(p), 35)])
	f.n += n
	return n, err
}

// What is left of a Reader that failed half-way is not the message, and is not sent for it.
func TestRetryOfAReaderThatFailed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		e := envelope("x@example.com")
		e.Body = smtplb.Reader(&failsHalfWay{r: strings.NewReader(text + strings.Repeat("a line of the body of the message\r\n", 5))})
		r, err := h.pool.Deliver(t.Context(), e)
		if !errors.Is(err, smtplb.ErrTemporary) {
			t.Fatal(err)
		}
		var ee *smtplb.EnvelopeError
		if r, err := h.pool.Deliver(t.Context(), r.Retry(e)); !errors.As(err, &ee) || ee.Field != "Body" || r != nil {
			t.Errorf("the retry: %v: %v", r, err)
		}
		if m := h.relays[0].Messages(); len(m) != 0 {
			t.Errorf("stored %q", m[0].Data)
		}
	})
}

// All or none: a refusal stands, however the conversation went on.
func TestRequireAllAfterARefusal(t *testing.T) {
	for name, act := range map[string]func(r *smtptest.Rule){
		"421":   func(r *smtptest.Rule) { r.Reply(421, "4.3.0 shutting down") },
		"EOF":   func(r *smtptest.Rule) { r.DropFIN() },
		"reset": func(r *smtptest.Rule) { r.Drop() },
	} {
		for _, opts := range [][]smtptest.Option{nil, {smtptest.WithoutExtensions("PIPELINING")}} {
			t.Run(fmt.Sprint(name, len(opts)), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					h := newHouse(t, 2, tiered, opts...)
					defer h.close()
					h.relays[0].On(smtptest.Rcpt).For("gone@example.com").Reply(550, "5.1.1 No such user")
					act(h.relays[0].On(smtptest.Rcpt).For("ok@example.com"))
					e := envelope("gone@example.com", "ok@example.com", "fine@example.com")
					e.RequireAll = true
					r, err := h.pool.Deliver(t.Context(), e)
					if outcomes(r) != "failed failed failed" || !errors.Is(err, smtplb.ErrPermanent) {
						t.Errorf("%v: %v", outcomes(r), err)
					}
					err = h.pool.SendMail("", nil, "a@example.com", []string{"gone@example.com", "ok@example.com"}, []byte(text))
					var tp *textproto.Error
					if !errors.As(err, &tp) || tp.Code != 550 {
						t.Errorf("SendMail: %v", err)
					}
					for _, s := range h.relays {
						if n := len(s.Messages()); n != 0 {
							t.Errorf("%d messages were sent to some of the recipients", n)
						}
					}
				})
			})
		}
	}
}

// A recipient's 4xx counts for all of them, also where the relay broke off.
func TestRequireAllHopsTogether(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 3, tiered)
		defer h.close()
		h.relays[0].On(smtptest.Rcpt).For("busy@example.com").Reply(450, "4.2.1 Mailbox busy")
		h.relays[0].On(smtptest.Rcpt).For("ok@example.com").DropFIN()
		h.relays[1].On(smtptest.Rcpt).For("busy@example.com").Reply(450, "4.2.1 Mailbox busy")
		e := envelope("busy@example.com", "ok@example.com")
		e.RequireAll = true
		r, err := h.pool.Deliver(t.Context(), e)
		if outcomes(r) != "deferred deferred" || relaysTried(r) != "r0 r1" || !errors.Is(err, smtplb.ErrTemporary) {
			t.Errorf("%v: %v", r, err)
		}
		if n := h.stored("ok@example.com"); n != 0 {
			t.Error("sent to one of two")
		}
	})
}

// One transaction, however many there are.
func TestRequireAllIsNotSplit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		e := envelope(numbered(250)...)
		e.RequireAll = true
		if r, err := h.pool.Deliver(t.Context(), e); err != nil {
			t.Fatalf("%v: %v", r, err)
		}
		if m := h.relays[0].Messages(); len(m) != 1 || len(m[0].To) != 250 {
			t.Errorf("%d messages", len(m))
		}
	})
}

// A relay that takes fewer at once is none for it, known or not.
func TestRequireAllBeyondRcptMax(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := mixed(t, []smtptest.Option{smtptest.WithExtensions("PIPELINING", "LIMITS RCPTMAX=2")}, nil)
		defer h.close()
		for _, want := range []string{"r0 r1", "r1"} { // once known it isn't even dialled
			e := envelope(numbered(3)...)
			e.RequireAll = true
			if r, err := h.pool.Deliver(t.Context(), e); err != nil || relaysTried(r) != want {
				t.Errorf("%v: %v", r, err)
			}
		}
		if n := h.relays[0].Stats().Commands["MAIL"]; n != 0 {
			t.Errorf("%d MAILs to a relay that can't take all", n)
		}
		if f := h.pool.Stats().Relays[0].Faults; f != 0 {
			t.Errorf("%d faults for being small", f)
		}
	})
}

// LIMITS MAILMAX and Conns.MaxMessages hold within one attempt as between messages.
func TestBatchesObeyTheConnectionsLimit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil, smtptest.WithExtensions("PIPELINING", "LIMITS MAILMAX=1 RCPTMAX=2"))
		defer h.close()
		r, err := h.pool.Deliver(t.Context(), envelope(numbered(5)...))
		if err != nil || len(r.Attempts) != 1 || r.Attempts[0].Accepted != 5 {
			t.Fatalf("%v: %v", r, err)
		}
		if s := h.relays[0].Stats(); s.Connections != 3 || s.Transactions != 3 || s.Reused != 0 {
			t.Errorf("%d transactions on %d connections", s.Transactions, s.Connections)
		}
	})
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].Conns.MaxMessages = 2 })
		defer h.close()
		r, err := h.pool.Deliver(t.Context(), envelope(numbered(250)...))
		if err != nil || len(r.Attempts) != 1 {
			t.Fatalf("%v: %v", r, err)
		}
		if s := h.relays[0].Stats(); s.Connections != 2 || s.Transactions != 3 {
			t.Errorf("%d transactions on %d connections", s.Transactions, s.Connections)
		}
	})
}

// A relay that took a batch and then closed is dialled again for the next, in the same attempt.
func TestReconnectsBetweenBatches(t *testing.T) {
	for _, last := range []string{"250 2.0.0 Ok\r\n421 4.3.2 and good-bye\r\n", "250 2.0.0 Ok\r\n250 2.0.0 again\r\n"} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, nil)
			defer h.close()
			h.relays[0].On(smtptest.EndOfData).Nth(1).Raw(last)
			r, err := h.pool.Deliver(t.Context(), envelope(numbered(250)...))
			if err != nil || len(r.Attempts) != 1 || h.stored("u0@example.com") != 1 || h.stored("u249@example.com") != 1 {
				t.Fatalf("%v: %v", r, err)
			}
			if s := h.relays[0].Stats(); s.Connections != 2 {
				t.Errorf("%d connections", s.Connections)
			}
		})
	}
}

// Of three batches the second's fate is unknown: the third was never named to the relay, and goes on.
func TestUnknownBatch(t *testing.T) {
	for _, relays := range []int{1, 2} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, relays, tiered)
			defer h.close()
			h.relays[0].On(smtptest.EndOfData).Nth(2).DropUnstored()
			r, err := h.pool.Deliver(t.Context(), envelope(numbered(250)...))
			if !errors.Is(err, smtplb.ErrUnknown) {
				t.Error(err)
			}
			rest := map[int]smtplb.Outcome{1: smtplb.Deferred, 2: smtplb.Accepted}[relays]
			for i, x := range r.Recipients {
				want := smtplb.Accepted
				switch i / 100 {
				case 1:
					want = smtplb.Unknown
				case 2:
					want = rest
				}
				if x.Outcome != want {
					t.Fatalf("recipient %d of 250 is %v, want %v", i, x.Outcome, want)
				}
			}
		})
	}
}

// A recipient's own 4xx gets one hop: the recipient is the reason, not the relay.
func TestOneHopForARecipient(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 3, tiered)
		defer h.close()
		for _, s := range h.relays[:2] {
			s.On(smtptest.Rcpt).For("busy@example.com").Reply(450, "4.2.1 Mailbox busy")
		}
		r, err := h.pool.Deliver(t.Context(), envelope("busy@example.com", "ok@example.com"))
		if outcomes(r) != "deferred accepted" || relaysTried(r) != "r0 r1" || h.stored("busy@example.com") != 0 {
			t.Errorf("%v: %v: %v", outcomes(r), relaysTried(r), err)
		}
	})
}

// Failed means that every relay would refuse. One whose breaker is open, or whose credentials are wrong, has not said so.
func TestFailedNeedsEveryRelaysWord(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, tiered)
		defer h.close()
		h.relays[1].Kill()
		for range 5 {
			e := envelope("x@example.com")
			e.Prefer = "r1"
			if _, err := h.pool.Deliver(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
		h.relays[0].On(smtptest.Mail).Reply(550, "5.7.1 we don't like you")
		r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		if outcomes(r) != "deferred" || relaysTried(r) != "r0" || !errors.Is(err, smtplb.ErrNoRelay) || !errors.Is(err, smtplb.ErrTemporary) {
			t.Errorf("with an open breaker: %v: %v", r, err)
		}
	})
	bubble(t, func(t *testing.T) {
		h := mixed(t, nil, []smtptest.Option{smtptest.WithTLS(), smtptest.WithAuth("user", "secret")})
		h.pool.Close()
		pool, err := smtplb.New(smtplb.Config{Dial: h.net.DialContext, Relays: []smtplb.Relay{
			{Name: "r0", Addr: "r0.test:25", TLS: smtplb.TLSNone},
			{Name: "r1", Addr: "r1.test:25", Tier: 1, TLSConfig: h.relays[1].ClientTLS(), Username: "user", Password: "wrong"},
		}})
		if err != nil {
			t.Fatal(err)
		}
		h.pool = pool
		defer h.close()
		h.relays[0].On(smtptest.Mail).Reply(550, "5.7.1 we don't like you")
		for i := range 2 { // the second time its breaker is open
			r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
			if outcomes(r) != "deferred" || !errors.Is(err, smtplb.ErrTemporary) {
				t.Errorf("message %d, with a wrong password: %v: %v", i, r, err)
			}
		}
	})
}

// "Too large" sends a message to a relay that takes larger ones, and fails it where there is none.
func TestTooLargeForOne(t *testing.T) {
	for _, test := range []struct {
		size int64 // of the other relay
		want string
	}{{200000, "accepted"}, {50000, "failed"}, {100000, "failed"}, {0, "accepted"}} {
		bubble(t, func(t *testing.T) {
			h := mixed(t, []smtptest.Option{smtptest.WithMaxSize(100000)}, []smtptest.Option{smtptest.WithMaxSize(test.size)})
			defer h.close()
			e := envelope("first@example.com")
			e.Prefer = "r1" // so that its SIZE is known
			if _, err := h.pool.Deliver(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			h.relays[0].On(smtptest.Mail).Reply(552, "5.3.4 Message size exceeds fixed limit")
			r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
			if outcomes(r) != test.want || test.want == "accepted" && relaysTried(r) != "r0 r1" {
				t.Errorf("the other has SIZE %d: %v: %v", test.size, r, err)
			}
		})
	}
}

// The last fifth of the caller's time begins no failover, but what a relay said last is what counts.
func TestLastFifth(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		h.relays[0].On(smtptest.Mail).Delay(1700*time.Millisecond).Reply(550, "5.7.1 not from you")
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		r, err := h.pool.Deliver(ctx, envelope("x@example.com"))
		if outcomes(r) != "failed" || !errors.Is(err, smtplb.ErrPermanent) {
			t.Errorf("the only relay refused: %v: %v", outcomes(r), err)
		}
	})
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) { c.Relays[1].Tier, c.Relays[0].Conns.Max = 1, 1 })
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).For("first@example.com").Delay(16500 * time.Millisecond)
		h.relays[0].On(smtptest.Mail).From("b@example.com").Reply(451, "4.5.0 later")
		var first sync.WaitGroup
		defer first.Wait()
		first.Go(func() { _, _ = h.pool.Deliver(t.Context(), envelope("first@example.com")) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		e := envelope("x@example.com")
		e.From = "b@example.com"
		begun := time.Now()
		r, err := h.pool.Deliver(ctx, e)
		if outcomes(r) != "deferred" || relaysTried(r) != "r0" || !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) > 17*time.Second {
			t.Errorf("%v after %v: %v", r, time.Since(begun), err)
		}
	})
}

// "Relay access denied" keeps relay and sender apart for 10 minutes, said to MAIL or to RCPT, but where there is no other relay.
func TestApart(t *testing.T) {
	for _, stage := range []smtptest.Stage{smtptest.Mail, smtptest.Rcpt} {
		t.Run(stage.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 2, nil)
				defer h.close()
				h.relays[0].On(stage).From("a@example.com").Reply(554, "5.7.1 <x@example.com>: Relay access denied")
				attempts := func(from string, n int) uint64 {
					before := h.pool.Stats().Relays[0].Attempts
					for range n {
						e := envelope("x@example.com")
						e.From = from
						if r, err := h.pool.Deliver(t.Context(), e); err != nil && stage == smtptest.Mail {
							t.Errorf("%v: %v", r, err)
						}
					}
					return h.pool.Stats().Relays[0].Attempts - before
				}
				if n := attempts("a@example.com", 10); n != 1 {
					t.Errorf("it was tried %d times", n)
				}
				if n := attempts("a@example.net", 10); n != 5 {
					t.Errorf("with another sender it was tried %d times of 10", n)
				}
				time.Sleep(9 * time.Minute)
				if n := attempts("a@example.com", 10); n != 0 {
					t.Errorf("after 9 minutes it was tried %d times", n)
				}
				time.Sleep(time.Minute + time.Second)
				if n := attempts("a@example.com", 10); n != 1 {
					t.Errorf("after 10 minutes it was tried %d times", n)
				}
			})
		})
	}
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		h.relays[0].On(smtptest.Rcpt).Times(1).Reply(554, "5.7.1 <x@example.com>: Relay access denied")
		if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err == nil {
			t.Error(r)
		}
		if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil || relaysTried(r) != "r0" {
			t.Errorf("the only relay isn't asked again: %v: %v", r, err)
		}
	})
}

// Code written for net/smtp drops mail on a 5xx: it finds one only where the send failed for good.
func TestTextprotoErrorGoesWithTheOutcome(t *testing.T) {
	for _, test := range []struct {
		name   string
		script func(a, b *smtptest.Server)
		class  int // 0: none
	}{
		{"refused by one, later at the other", func(a, b *smtptest.Server) {
			a.On(smtptest.Mail).Reply(550, "5.7.1 not from you")
			b.On(smtptest.Mail).Reply(451, "4.5.0 later")
		}, 4},
		{"later at one, refused by the other", func(a, b *smtptest.Server) {
			a.On(smtptest.Mail).Reply(451, "4.5.0 later")
			b.On(smtptest.Mail).Reply(550, "5.7.1 not from you")
		}, 4},
		{"refused by one, the other is down", func(a, b *smtptest.Server) {
			a.On(smtptest.Mail).Reply(550, "5.7.1 not from you")
			b.Kill()
		}, 4},
		{"both are down", func(a, b *smtptest.Server) { a.Kill(); b.Kill() }, 4},
		{"refused by both", func(a, b *smtptest.Server) {
			a.On(smtptest.Mail).Reply(550, "5.7.1 not from you")
			b.On(smtptest.Mail).Reply(553, "5.7.1 nor here")
		}, 5},
		{"no such user", func(a, _ *smtptest.Server) { a.On(smtptest.Rcpt).Reply(550, "5.1.1 no such user") }, 5},
		{"refused by one, unknown at the other", func(a, b *smtptest.Server) {
			a.On(smtptest.Mail).Reply(550, "5.7.1 not from you")
			b.On(smtptest.EndOfData).DropUnstored()
		}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 2, tiered)
				defer h.close()
				test.script(h.relays[0], h.relays[1])
				err := h.pool.SendMail("", nil, "a@example.com", []string{"x@example.com"}, []byte(text))
				var tp *textproto.Error
				class := 0
				if errors.As(err, &tp) {
					class = tp.Code / 100
				}
				if class != test.class || (class == 5) != errors.Is(err, smtplb.ErrPermanent) {
					t.Errorf("found %v in %v", tp, err)
				}
				var re *smtplb.RelayError
				if !errors.As(err, &re) || re.Relay != "r0" {
					t.Errorf("no *RelayError of r0 in %v", err)
				}
			})
		})
	}
}

// One unknown recipient among deferred ones is enough for there to be none: sending again may send twice.
func TestNoTextprotoErrorBesideAnUnknown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		h.relays[0].On(smtptest.Rcpt).For("grey@example.com").Reply(451, "4.7.1 Greylisted")
		h.relays[0].On(smtptest.EndOfData).DropUnstored()
		r, err := h.pool.Deliver(t.Context(), envelope("x@example.com", "grey@example.com"))
		var tp *textproto.Error
		if outcomes(r) != "unknown deferred" || errors.As(err, &tp) {
			t.Errorf("%v: found %v in %v", outcomes(r), tp, err)
		}
	})
}

// All or none takes the gravest refusal, wherever it stands.
func TestRequireAllByTheGravestRefusal(t *testing.T) {
	for _, to := range [][]string{{"busy@example.com", "gone@example.com"}, {"gone@example.com", "busy@example.com"}} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 2, tiered)
			defer h.close()
			h.relays[0].On(smtptest.Rcpt).For("busy@example.com").Reply(450, "4.2.1 Mailbox busy")
			h.relays[0].On(smtptest.Rcpt).For("gone@example.com").Reply(550, "5.1.1 No such user")
			e := envelope(to...)
			e.RequireAll = true
			if r, err := h.pool.Deliver(t.Context(), e); outcomes(r) != "failed failed" || relaysTried(r) != "r0" {
				t.Errorf("%v: %v", r, err)
			}
		})
	}
}

// One reply too many between two groups of commands: the answers behind it must not be taken for other recipients'.
func TestStrayReplyBetweenGroups(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, tiered)
		defer h.close()
		h.relays[0].On(smtptest.Rcpt).For("u62@example.com").Raw("550 5.1.1 no\r\n250 2.1.5 stray\r\n")
		for _, s := range h.relays {
			s.On(smtptest.Rcpt).For("u65@example.com").Reply(550, "5.1.1 no such user")
		}
		r, err := h.pool.Deliver(t.Context(), envelope(numbered(70)...))
		if !errors.Is(err, smtplb.ErrPartial) || h.relays[0].Stats().Messages != 0 {
			t.Errorf("%v: %v", r, err)
		}
		for i, x := range r.Recipients {
			if failed := i == 65; failed != (x.Outcome == smtplb.Failed) || !failed && (x.Outcome != smtplb.Accepted || h.stored(x.Addr) != 1) {
				t.Errorf("%s is %v, stored %d times", x.Addr, x.Outcome, h.stored(x.Addr))
			}
		}
	})
}

// What goes into logs and hooks holds nothing that could forge a line there.
func TestControlBytesInEnvelope(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		for _, bad := range []string{"a\r\nb", "a\x00", "\x1b[31m", "\x7f"} {
			for _, field := range []string{"ID", "Key", "Stream", "Prefer"} {
				e := envelope("x@example.com")
				*map[string]*string{"ID": &e.ID, "Key": &e.Key, "Stream": &e.Stream, "Prefer": &e.Prefer}[field] = bad
				var ee *smtplb.EnvelopeError
				if r, err := h.pool.Deliver(t.Context(), e); !errors.As(err, &ee) || ee.Field != field || r != nil {
					t.Errorf("%s %q: %v: %v", field, bad, r, err)
				}
			}
		}
	})
}
