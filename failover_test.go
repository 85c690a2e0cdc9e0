package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

func TestFailsOver(t *testing.T) {
	for _, test := range []struct {
		name   string
		script func(s *smtptest.Server)
		faults uint64
	}{
		{"banner 421", func(s *smtptest.Server) { s.On(smtptest.Banner).Reply(421, "4.3.0 out of order") }, 1},
		{"ehlo dropped", func(s *smtptest.Server) { s.On(smtptest.Ehlo).Drop() }, 1},
		{"mail 451", func(s *smtptest.Server) { s.On(smtptest.Mail).Reply(451, "4.7.1 try later") }, 0},
		{"mail 550", func(s *smtptest.Server) { s.On(smtptest.Mail).Reply(550, "5.7.1 not from you") }, 0},
		{"rcpt 450", func(s *smtptest.Server) { s.On(smtptest.Rcpt).Reply(450, "4.2.1 Mailbox busy") }, 0},
		{"data 451", func(s *smtptest.Server) { s.On(smtptest.Data).Reply(451, "4.5.0 later") }, 0},
		{"body dropped", func(s *smtptest.Server) { s.On(smtptest.Body).After(10).Drop() }, 1},
		{"final 451", func(s *smtptest.Server) { s.On(smtptest.EndOfData).Reply(451, "4.5.0 later") }, 0},
		{"stall at banner", func(s *smtptest.Server) { s.On(smtptest.Banner).Stall() }, 1},
		{"stall at mail", func(s *smtptest.Server) { s.On(smtptest.Mail).Stall() }, 1},
		{"garbage", func(s *smtptest.Server) { s.On(smtptest.Banner).Raw("\x00\xff\xfe garbage\r\n") }, 1},
		{"endless banner", func(s *smtptest.Server) { s.On(smtptest.Banner).Endless("220-more\r\n") }, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 2, func(c *smtplb.Config) { c.Relays[1].Tier = 1 })
				defer h.close()
				h.net.SetBuffer(64 << 10) // so that the body can't be written whole before the relay has read of it
				test.script(h.relays[0])
				e := envelope("x@example.com", "y@example.com")
				e.Body = smtplb.Bytes([]byte(text + strings.Repeat("A line that makes it long.\r\n", 10000)))
				r, err := h.pool.Deliver(t.Context(), e)
				if err != nil || relaysTried(r) != "r0 r1" || outcomes(r) != "accepted accepted" {
					t.Fatalf("%v: %v", r, err)
				}
				if r.Attempts[0].Err == nil {
					t.Error("the first attempt has no error")
				}
				if h.stored("x@example.com") != 1 || h.stored("y@example.com") != 1 {
					t.Errorf("stored %d and %d times", h.stored("x@example.com"), h.stored("y@example.com"))
				}
				if got := h.pool.Stats().Relays[0].Faults; got != test.faults {
					t.Errorf("%d faults are on the relay's account, want %d", got, test.faults)
				}
			})
		})
	}
}

func TestOneRefusedRecipientCostsTheOthersNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) { c.Relays[1].Tier = 1 })
		defer h.close()
		h.relays[0].On(smtptest.Rcpt).For("gone@example.com").Reply(550, "5.1.1 No such user")
		h.relays[0].On(smtptest.Rcpt).For("busy@example.com").Reply(450, "4.2.1 Mailbox busy")
		h.relays[0].On(smtptest.Rcpt).For("grey@example.com").Reply(451, "4.7.1 Greylisted, come back later")
		e := envelope("ok@example.com", "gone@example.com", "busy@example.com", "grey@example.com")
		r, err := h.pool.Deliver(t.Context(), e)
		if outcomes(r) != "accepted failed accepted deferred" {
			t.Fatalf("%s: %v", outcomes(r), err)
		}
		for _, class := range []error{smtplb.ErrPartial} {
			if !errors.Is(err, class) {
				t.Errorf("is not %v", class)
			}
		}
		for _, class := range []error{smtplb.ErrTemporary, smtplb.ErrPermanent, smtplb.ErrUnknown} {
			if errors.Is(err, class) {
				t.Errorf("is %v", class)
			}
		}
		if r.Recipients[2].Relay != "r1" || r.Recipients[3].Relay != "r0" || !r.Recipients[3].Greylisted || r.Recipients[3].RetryAfter < 5*time.Minute {
			t.Errorf("%+v", r.Recipients)
		}
		var tp *textproto.Error
		if !errors.As(r.Recipients[1].Err(), &tp) || tp.Code != 550 {
			t.Errorf("no textproto.Error in %v", r.Recipients[1].Err())
		}
		var se *smtplb.SendError
		if !errors.As(err, &se) || se.RetryAfter < 5*time.Minute || se.Receipt != r {
			t.Errorf("%+v", se)
		}
		// The retry is for the greylisted one, and goes to the relay that greylisted it.
		again := r.Retry(e)
		if fmt.Sprint(again.To) != "[grey@example.com]" || again.Prefer != "r0" || len(e.To) != 4 {
			t.Fatalf("%+v", again)
		}
		h.relays[0].ClearScript()
		r, err = h.pool.Deliver(t.Context(), again)
		if err != nil || relaysTried(r) != "r0" || r.Retry(again) != nil {
			t.Fatalf("%v: %v", r, err)
		}
	})
}

func TestUnknown(t *testing.T) {
	for _, stored := range []bool{true, false} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 2, func(c *smtplb.Config) { c.Relays[1].Tier = 1 })
			defer h.close()
			if stored {
				h.relays[0].On(smtptest.EndOfData).Drop()
			} else {
				h.relays[0].On(smtptest.EndOfData).DropUnstored()
			}
			h.relays[0].On(smtptest.Rcpt).For("late@example.com").Reply(450, "4.2.1 Mailbox busy")
			e := envelope("x@example.com", "late@example.com")
			r, err := h.pool.Deliver(t.Context(), e)
			if outcomes(r) != "unknown accepted" { // the refused one may go on
				t.Fatalf("%v: %v", outcomes(r), err)
			}
			if !errors.Is(err, smtplb.ErrUnknown) || errors.Is(err, smtplb.ErrTemporary) || errors.Is(err, smtplb.ErrPermanent) {
				t.Errorf("classes of %v", err)
			}
			if r.Retry(e) != nil {
				t.Error("Retry would send an unknown again")
			}
			if n := h.stored("x@example.com"); n > 1 {
				t.Errorf("stored %d times", n)
			}
		})
	}
}

func TestAtLeastOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) { c.Relays[1].Tier = 1 })
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Times(1).DropUnstored()
		e := envelope("x@example.com")
		e.AtLeastOnce = true
		r, err := h.pool.Deliver(t.Context(), e)
		if err != nil || relaysTried(r) != "r0 r0" {
			t.Fatalf("%v: %v", r, err)
		}
		// Twice the same: then another relay.
		h.relays[0].On(smtptest.EndOfData).DropUnstored()
		r, err = h.pool.Deliver(t.Context(), e)
		if err != nil || relaysTried(r) != "r0 r0 r1" {
			t.Fatalf("%v: %v", r, err)
		}
		// Unknown is sticky: a later refusal doesn't undo it.
		h.relays[1].On(smtptest.EndOfData).Reply(554, "5.6.0 no")
		r, err = h.pool.Deliver(t.Context(), e)
		if outcomes(r) != "unknown" || !errors.Is(err, smtplb.ErrUnknown) {
			t.Fatalf("%v: %v", r, err)
		}
	})
}

func TestPermanent(t *testing.T) {
	for _, test := range []struct {
		name   string
		script func(s *smtptest.Server)
		want   string
		tried  string
	}{
		{"recipient", func(s *smtptest.Server) { s.On(smtptest.Rcpt).Reply(550, "5.1.1 no such user") }, "failed", "r0"},
		{"content", func(s *smtptest.Server) { s.On(smtptest.EndOfData).Reply(554, "5.7.1 spam") }, "failed", "r0"},
		{"policy of every relay", func(s *smtptest.Server) { s.On(smtptest.Mail).Reply(550, "5.7.1 we don't like you") }, "failed", "r0 r1"},
		{"relaying denied everywhere", func(s *smtptest.Server) { s.On(smtptest.Rcpt).Reply(554, "5.7.1 Relay access denied: relaying denied") }, "failed", "r0 r1"},
		{"authentication", func(s *smtptest.Server) { s.On(smtptest.Mail).Reply(530, "5.7.0 Authentication required") }, "deferred", "r0 r1"},
		{"too large", func(s *smtptest.Server) { s.On(smtptest.Mail).Reply(552, "5.3.4 too large") }, "failed", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 2, func(c *smtplb.Config) { c.Relays[1].Tier = 1 })
				defer h.close()
				for _, s := range h.relays {
					test.script(s)
				}
				r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
				if outcomes(r) != test.want || test.tried != "" && relaysTried(r) != test.tried {
					t.Fatalf("%v: %v", r, err)
				}
				want := smtplb.ErrPermanent
				if test.want == "deferred" {
					want = smtplb.ErrTemporary
				}
				if !errors.Is(err, want) {
					t.Errorf("%v is not %v", err, want)
				}
			})
		})
	}
}

func TestRequireAll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) { c.Relays[1].Tier = 1 })
		defer h.close()
		h.relays[0].On(smtptest.Rcpt).For("busy@example.com").Reply(450, "4.2.1 Mailbox busy")
		e := envelope("ok@example.com", "busy@example.com")
		e.RequireAll = true
		r, err := h.pool.Deliver(t.Context(), e)
		if err != nil || relaysTried(r) != "r0 r1" || len(h.relays[0].Messages()) != 0 {
			t.Fatalf("%v: %v", r, err)
		}
		h.relays[1].On(smtptest.Rcpt).For("gone@example.com").Reply(550, "5.1.1 No such user")
		e = envelope("ok@example.com", "gone@example.com")
		e.RequireAll, e.Prefer = true, "r1"
		r, err = h.pool.Deliver(t.Context(), e)
		if outcomes(r) != "failed failed" || !errors.Is(err, smtplb.ErrPermanent) || h.stored("gone@example.com") != 0 {
			t.Fatalf("%v: %v", outcomes(r), err)
		}
	})
}

func TestStaleConnections(t *testing.T) {
	for name, opts := range map[string][]smtptest.Option{
		"idle":         {smtptest.WithIdleTimeout(5 * time.Second)},
		"max messages": {smtptest.WithMaxMessages(1)},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 1, nil, opts...)
				defer h.close()
				for i := range 50 {
					r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
					if err != nil || len(r.Attempts) != 1 {
						t.Fatalf("message %d: %v: %v", i, r, err)
					}
					time.Sleep(5*time.Second + time.Duration(i%3-1)*time.Millisecond)
				}
				if s := h.pool.Stats().Relays[0]; s.Faults != 0 || s.Attempts != 50 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

func TestBreaker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var events []string
		var mu sync.Mutex
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Hooks.RelayState = func(e smtplb.RelayEvent) {
				mu.Lock()
				defer mu.Unlock()
				events = append(events, e.Breaker)
			}
		})
		defer h.close()
		h.relays[0].Kill()
		for i := range 5 {
			r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
			if outcomes(r) != "deferred" || len(r.Attempts) != 1 || !errors.Is(err, smtplb.ErrTemporary) {
				t.Fatalf("message %d: %v: %v", i, r, err)
			}
		}
		r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		var se *smtplb.SendError
		if !errors.Is(err, smtplb.ErrNoRelay) || !errors.Is(err, smtplb.ErrTemporary) || len(r.Attempts) != 0 || !errors.As(err, &se) || se.RetryAfter <= 0 || se.RetryAfter > 18*time.Second {
			t.Fatalf("%v: %v", r, err)
		}
		h.relays[0].Restart()
		time.Sleep(se.RetryAfter + time.Millisecond)
		for range 3 {
			if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
				t.Fatal(err)
			}
		}
		if got := h.pool.Stats().Relays[0]; got.Breaker != "closed" || got.Trips != 1 {
			t.Errorf("%+v", got)
		}
		mu.Lock()
		defer mu.Unlock()
		if !slices.Contains(events, "open") || events[len(events)-1] != "closed" {
			t.Errorf("events %v", events)
		}
	})
}

func TestBadCredentialsStopAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, nil, smtptest.WithTLS(), smtptest.WithAuth("user", "secret"))
		h.pool.Close()
		c := smtplb.Config{Dial: h.net.DialContext}
		for i, pass := range []string{"wrong", "secret"} {
			c.Relays = append(c.Relays, smtplb.Relay{Name: fmt.Sprint("r", i), Addr: fmt.Sprintf("r%d.test:25", i), TLSConfig: h.relays[i].ClientTLS(), Username: "user", Password: pass, Tier: i})
		}
		pool, err := smtplb.New(c)
		if err != nil {
			t.Fatal(err)
		}
		h.pool = pool
		defer h.close()
		for i := range 20 {
			if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
				t.Fatalf("message %d: %v", i, err)
			}
		}
		if n := h.relays[0].Stats().AuthFailures; n != 1 {
			t.Errorf("the wrong password was tried %d times", n)
		}
		if s := h.pool.Stats().Relays[0]; s.Breaker != "open" || time.Until(s.RetryAt) < 4*time.Minute {
			t.Errorf("%+v", s)
		}
	})
}

func TestTokenRefresh(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil, smtptest.WithTLS(), smtptest.WithAuth("user", "fresh", "XOAUTH2"))
		h.pool.Close()
		calls := 0
		pool, err := smtplb.New(smtplb.Config{Dial: h.net.DialContext, Relays: []smtplb.Relay{{
			Name: "r0", Addr: "r0.test:25", TLSConfig: h.relays[0].ClientTLS(),
			Auth: smtplb.TokenAuth("user", func(_ context.Context, r smtplb.AuthRequest) (string, error) {
				calls++
				if r.Refused != nil {
					return "fresh", nil
				}
				return "stale", nil
			}),
		}}})
		if err != nil {
			t.Fatal(err)
		}
		h.pool = pool
		defer h.close()
		r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		if err != nil || calls != 2 || len(r.Attempts) != 1 {
			t.Fatalf("%v after %d calls: %v", r, calls, err)
		}
	})
}

func TestDeadlineIsShared(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 3, func(c *smtplb.Config) { c.Relays[1].Tier, c.Relays[2].Tier = 1, 2 })
		defer h.close()
		h.relays[0].Pause()
		h.relays[1].Pause()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		r, err := h.pool.Deliver(ctx, envelope("x@example.com"))
		if err != nil || relaysTried(r) != "r0 r1 r2" {
			t.Fatalf("%v: %v", r, err)
		}
		if s := h.pool.Stats(); s.Relays[0].Faults != 1 || s.Relays[1].Faults != 1 {
			t.Errorf("%+v", s)
		}
		h.relays[0].Resume()
		h.relays[1].Resume()
	})
}

func TestCancelledBeforeAndAfterCommit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, nil)
		defer h.close()
		for _, s := range h.relays {
			s.On(smtptest.Data).For("before@example.com").Stall()
			s.On(smtptest.EndOfData).For("after@example.com").Stall()
		}
		for to, want := range map[string]string{"before@example.com": "deferred", "after@example.com": "unknown"} {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			begun := time.Now()
			r, err := h.pool.Deliver(ctx, envelope(to))
			if outcomes(r) != want || !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v: %v", to, outcomes(r), err)
			}
			if d := time.Since(begun); want == "deferred" && d != time.Second || want == "unknown" && d != 6*time.Second {
				t.Errorf("%s: took %v", to, d)
			}
			cancel()
		}
		if s := h.pool.Stats(); s.Relays[0].Faults+s.Relays[1].Faults != 0 {
			t.Errorf("the caller's leaving was held against a relay: %+v", s)
		}
	})
}

// A relay that is owed a second try (at-least-once) is no second relay of a race: what it has spoken on must not be offered to it again.
func TestSecondTryIsNoHedge(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h, d := newRaces(t, 2, func(c *smtplb.Config) { c.Relays[0].Conns.Max = 1 })
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).For("x@example.com").Times(1).DropUnstored()
		h.relays[0].On(smtptest.EndOfData).For("long@example.com").Delay(30*time.Second + 100*time.Millisecond)
		e := envelope("x@example.com")
		e.AtLeastOnce = true
		h.relays[0].On(smtptest.Mail).Times(1).Delay(10 * time.Millisecond)
		result := h.async(t.Context(), e)
		synctest.Wait()
		long := envelope("long@example.com")
		long.Prefer = "r0"
		other := h.async(t.Context(), long) // has the slot when x wants it for the second time
		d.set(1, way{after: 2 * time.Second})
		if x := <-result; x.Err != nil || relaysTried(x.Receipt) != "r0 r1" {
			t.Errorf("%s: %v", attempts(x.Receipt), x.Err)
		}
		if x := <-other; x.Err != nil {
			t.Errorf("%s: %v", attempts(x.Receipt), x.Err)
		}
	})
}
