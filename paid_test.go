package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// What further attempts cost, to the token, and how long they are waited for.

// Each further attempt draws one token, whatever it is for: but for the hop of a recipient that was refused for a reason of its own.
func TestFurtherAttemptsArePaidFor(t *testing.T) {
	for _, test := range []struct {
		name   string
		a      way
		script func(h *house)
		want   string
		cost   float64
	}{
		{"no fault", way{}, nil, "r0", 0},
		{"a recipient's own 4xx", way{}, func(h *house) { busy(h.relays[0], "x") }, "r0 r1", 0},
		{"both recipients' own 4xx", way{}, func(h *house) { busy(h.relays[0], "x"); busy(h.relays[0], "y") }, "r0 r1", 0},
		{"an own 4xx, and a message that is refused", way{}, func(h *house) {
			busy(h.relays[0], "x")
			h.relays[0].On(smtptest.EndOfData).Reply(451, "4.3.0 not now")
		}, "r0 r1", 1},
		{"a 421 to a recipient", way{}, func(h *house) { h.relays[0].On(smtptest.Rcpt).Reply(421, "4.3.0 Going down") }, "r0 r1", 1},
		{"an own 4xx, and then a refusal of the sender", way{}, func(h *house) {
			busy(h.relays[0], "x")
			busy(h.relays[0], "y")
			h.relays[1].On(smtptest.Mail).Reply(451, "4.3.0 not now")
		}, "r0 r1 r2", 1},
		{"an own 4xx, and then no answer", way{}, func(h *house) {
			busy(h.relays[0], "x")
			busy(h.relays[0], "y")
			h.relays[1].On(smtptest.Rcpt).Drop()
		}, "r0 r1 r2", 1},
		{"no connection", way{err: errRefused}, nil, "r0 r1", 1},
		{"the connection that a failed race has left", way{after: 2 * time.Second, err: errRefused}, nil, "r0 r1", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h, d := newRaces(t, 3, func(c *smtplb.Config) { c.Retry.Budget = 1e-9 }) // a first attempt brings in a thousandth
				defer h.close()
				d.set(0, test.a)
				d.set(1, way{after: test.a.after})
				if test.script != nil {
					test.script(h)
				}
				before := h.pool.Tokens()
				r, err := h.pool.Deliver(t.Context(), envelope("x@example.com", "y@example.com"))
				if err != nil || relaysTried(r) != test.want {
					t.Errorf("%s, want %s: %v", attempts(r), test.want, err)
				}
				if cost := before + 0.001 - h.pool.Tokens(); math.Abs(cost-test.cost) > 1e-6 {
					t.Errorf("it cost %v, want %v", cost, test.cost)
				}
			})
		})
	}
}

// busy makes a relay refuse a recipient for a reason of the recipient's.
func busy(s *smtptest.Server, user string) {
	s.On(smtptest.Rcpt).For(user+"@example.com").Reply(450, "4.2.1 Mailbox busy")
}

// What first attempts bring in lapses a minute after it came in, and not sooner: the account is kept up to date while nobody draws on it.
func TestIncomeLapsesAfterAMinute(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { one(c); c.Retry.Budget = 1 }) // ten in reserve
		defer h.close()
		h.use(95 * time.Second) // a message in a second
		if n := h.pool.Tokens(); n < 10+54 || n > 10+61 {
			t.Errorf("%v tokens", n)
		}
	})
}

// Update changes the budget.
func TestUpdateOfTheBudget(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var config smtplb.Config
		h := newHouse(t, 2, func(c *smtplb.Config) { config = *c })
		defer h.close()
		for _, test := range []struct {
			conns int
			share float64
			want  float64
		}{{10, 0, 20}, {30, 0, 60}, {5, 0.5, 10}, {5, -1, math.Inf(1)}} {
			for i := range config.Relays {
				config.Relays[i].Conns.Max = test.conns
			}
			config.Retry.Budget = test.share
			if err := h.pool.Update(config); err != nil {
				t.Fatal(err)
			}
			if n := h.pool.Tokens(); n != test.want {
				t.Errorf("with %+v there are %v tokens", test, n)
			}
		}
	})
}

// MaxWait is the time of one turn: a further attempt has all of it again.
func TestMaxWaitOfEachTurn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) {
			one(c)
			c.Relays[0].NoRiding, c.Relays[1].NoRiding = true, true
			c.Relays[1].Tier = 1
			c.MaxWait = 2 * time.Second
		})
		defer h.close()
		h.relays[0].On(smtptest.Mail).Nth(2).Reply(451, "4.3.0 not now")
		var wg sync.WaitGroup
		h.hold(&wg, 0, 1500*time.Millisecond)
		h.hold(&wg, 1, 3*time.Second)
		synctest.Wait()
		begun := time.Now()
		if r := h.takes("x@example.com"); relaysTried(r) != "r0 r1" || time.Since(begun) != 3*time.Second {
			t.Errorf("%v after %v", r, time.Since(begun))
		}
		wg.Wait()
	})
}

// Who spills over isn't in need: a relay of the next tier that asked for less mail is left alone.
func TestSpillOverSparesTheCooling(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) {
			one(c)
			c.Relays[1].Tier = 1
			c.MaxWait, c.SpillOver = 2*time.Second, true
		})
		defer h.close()
		h.relays[1].On(smtptest.Mail).Times(1).Reply(421, "4.7.0 Slow down")
		e := envelope("y@example.com")
		e.Prefer = "r1"
		if r, err := h.pool.Deliver(t.Context(), e); err != nil || relaysTried(r) != "r1 r0" {
			t.Fatalf("%v: %v", r, err)
		}
		var wg sync.WaitGroup
		h.hold(&wg, 0, 5*time.Second)
		synctest.Wait()
		begun := time.Now()
		if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); !errors.Is(err, smtplb.ErrNoRelay) || time.Since(begun) != 2*time.Second {
			t.Errorf("after %v: %v: %v", time.Since(begun), r, err)
		}
		wg.Wait()
	})
}

// With too little time left to commit anything, nobody waits for another relay either.
func TestNoWaitWhenLate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) {
			one(c)
			c.Relays[1].Tier = 1
		})
		defer h.close()
		var wg sync.WaitGroup
		h.hold(&wg, 1, 19*time.Second)
		synctest.Wait()
		h.relays[0].On(smtptest.EndOfData).Delay(17*time.Second).Reply(451, "4.3.0 not now")
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		begun := time.Now()
		r, err := h.pool.Deliver(ctx, envelope("x@example.com"))
		if took := time.Since(begun); !errors.Is(err, context.DeadlineExceeded) || took != 17*time.Second || outcomes(r) != "deferred" || relaysTried(r) != "r0" {
			t.Errorf("after %v: %v: %v", took, r, err)
		}
		wg.Wait()
	})
}

// A relay that an operator puts back takes the first who waits for the others.
func TestWaitersSeeARelayPutBack(t *testing.T) {
	for _, state := range []smtplb.AdminState{smtplb.AdminDrain, smtplb.AdminMaintenance} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 2, func(c *smtplb.Config) { one(c); c.Balancer = inOrder{} })
			defer h.close()
			var wg sync.WaitGroup
			h.hold(&wg, 1, time.Minute)
			synctest.Wait()
			set := func(s smtplb.AdminState) {
				t.Helper()
				if err := h.pool.SetAdmin("r0", s); err != nil {
					t.Fatal(err)
				}
			}
			set(state)
			begun := time.Now()
			sent := h.async(t.Context(), envelope("x@example.com"))
			time.Sleep(5 * time.Second)
			set(smtplb.AdminReady)
			if x := <-sent; x.Err != nil || relaysTried(x.Receipt) != "r0" || time.Since(begun) != 5*time.Second {
				t.Errorf("%v after %v: %v", x.Receipt, time.Since(begun), x.Err)
			}
			wg.Wait()
		})
	}
}

// A login that is refused while most of its tier is sick is not tried again, not even before the next look at the clock.
func TestPanicTriesALoginOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const relays = 8
		n := smtptest.NewNetwork()
		c := smtplb.Config{Dial: n.DialContext, Health: smtplb.Health{Interval: -1}, Retry: smtplb.Retry{Attempts: -1, Budget: -1}, Balancer: inOrder{}}
		var all []*smtptest.Server
		for i := range relays {
			addr := fmt.Sprintf("r%d.test:25", i)
			s := n.NewServer(addr, smtptest.WithTLS(), smtptest.WithAuth("user", "secret"))
			defer s.Close()
			all = append(all, s)
			c.Relays = append(c.Relays, smtplb.Relay{Name: fmt.Sprint("r", i), Addr: addr, TLSConfig: s.ClientTLS(), Username: "user", Password: "secret", Breaker: smtplb.Breaker{Consecutive: 1}})
		}
		c.Relays[relays-1].Password = "wrong"
		pool, err := smtplb.New(c)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		if err := pool.SetAdmin(c.Relays[relays-1].Name, smtplb.AdminDrain); err != nil {
			t.Fatal(err)
		}
		for _, s := range all[:relays-1] {
			s.On(smtptest.Mail).Drop()
		}
		_, _ = pool.Deliver(t.Context(), envelope("x@example.com")) // opens them all
		if err := pool.SetAdmin(c.Relays[relays-1].Name, smtplb.AdminReady); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1500 * time.Millisecond) // the tier panics
		for range 5 {
			_, _ = pool.Deliver(t.Context(), envelope("x@example.com"))
		}
		if n := all[relays-1].Stats().AuthFailures; n != 1 {
			t.Errorf("%d logins were refused", n)
		}
		if s := pool.Stats(); s.Relays[relays-1].State != "open" || s.Relays[0].Attempts < 6 {
			t.Errorf("%s, and r0 was tried %d times", s.Relays[relays-1].State, s.Relays[0].Attempts)
		}
	})
}
