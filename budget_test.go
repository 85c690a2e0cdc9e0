package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// Everything is down for minutes, and the breakers let a probe through all the time: what retries add stays within the budget.
func TestBudgetInATotalOutage(t *testing.T) {
	t.Parallel()
	const relays, senders, each, reserve = 4, 20, 100, 4 * 5
	run := func(t *testing.T, share float64) (first, all, refused int) {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, relays, func(c *smtplb.Config) {
				c.Retry.Budget = share
				c.Health.Interval = -1 // a check would see the outage before the budget is asked
				for i := range c.Relays {
					c.Relays[i].Conns.Max = 5
					c.Relays[i].Breaker = smtplb.Breaker{OpenFor: 5 * time.Millisecond, MaxOpen: 5 * time.Millisecond}
				}
			})
			defer h.close()
			for _, r := range h.relays {
				r.Kill()
			}
			open := func() bool {
				return !slices.ContainsFunc(h.pool.Stats().Relays, func(r smtplb.RelayStats) bool { return r.Breaker == "closed" })
			}
			for range 100 { // an attempt at a relay whose breaker is closed is never refused
				if open() {
					break
				}
				_, _ = h.pool.Deliver(context.Background(), envelope("x@example.com"))
			}
			if !open() {
				t.Fatal("there is a breaker that doesn't open")
			}
			time.Sleep(61 * time.Second) // what these brought in lapses
			before := int(h.pool.Stats().Budget.Refusals)
			var mu sync.Mutex
			var wg sync.WaitGroup
			for s := range senders {
				wg.Go(func() {
					for range each {
						time.Sleep(time.Duration(900+7*s) * time.Millisecond)
						r, err := h.pool.Deliver(context.Background(), envelope("x@example.com"))
						var se *smtplb.SendError
						if outcomes(r) != "deferred" || !errors.As(err, &se) || se.RetryAfter <= 0 {
							t.Errorf("%s: %v", outcomes(r), err)
						}
						mu.Lock()
						all += len(r.Attempts)
						first += min(1, len(r.Attempts))
						if strings.Contains(err.Error(), "the retry budget is used up") {
							refused++
							if !errors.Is(err, smtplb.ErrNoRelay) || !errors.Is(err, smtplb.ErrTemporary) {
								t.Errorf("classes of %v", err)
							}
						}
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			if s := h.pool.Stats().Budget; int(s.Refusals)-before != refused || s.Off != (share < 0) || !s.Off && s.Tokens != h.pool.Tokens() {
				t.Errorf("%+v, and %d were refused", s, refused)
			}
		})
		return first, all, refused
	}
	first, all, refused := run(t, 0)
	t.Logf("a total outage, %d messages: %d first attempts, %d further ones, %d refused: %.2f times", senders*each, first, all-first, refused, float64(all)/float64(first))
	if float64(all) > 1.2*float64(first)+reserve || refused == 0 || first < 1000 {
		t.Errorf("%d attempts, %d of them the first, %d refused", all, first, refused)
	}
	first, all, refused = run(t, -1)
	t.Logf("without a budget: %d first attempts, %d further ones: %.2f times", first, all-first, float64(all)/float64(first))
	if float64(all) < 1.5*float64(first) || refused != 0 {
		t.Errorf("without a budget %d attempts, %d of them the first, %d refused", all, first, refused)
	}
}

// A budget that is used up keeps nobody from a relay that is well, and a recipient's own 4xx from nobody at all.
func TestBudgetSparesTheWell(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) {
			c.Balancer = inOrder{}
			for i := range c.Relays {
				c.Relays[i].Conns.Max = 1 // ten in reserve
				c.Relays[i].Breaker.Off = i == 0
			}
			c.Retry.Budget = 1e-9
		})
		defer h.close()
		h.relays[0].On(smtptest.Mail).Drop()
		for i := range 100 {
			if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil || relaysTried(r) != "r0 r1" {
				t.Fatalf("message %d: %v: %v", i, r, err)
			}
		}
		// Empty: a second try of the same relay is refused, and with it what only that could settle.
		h.relays[0].ClearScript()
		h.relays[0].On(smtptest.EndOfData).Times(1).DropUnstored()
		e := envelope("y@example.com")
		e.AtLeastOnce = true
		r, err := h.pool.Deliver(t.Context(), e)
		if err != nil || relaysTried(r) != "r0 r1" {
			t.Errorf("%v: %v", r, err)
		}
		h.relays[1].Kill()
		h.relays[0].On(smtptest.EndOfData).Times(1).DropUnstored()
		r, err = h.pool.Deliver(t.Context(), e)
		if !errors.Is(err, smtplb.ErrUnknown) || !errors.Is(err, smtplb.ErrNoRelay) || !strings.Contains(err.Error(), "budget") || strings.Count(relaysTried(r), "r0") != 1 {
			t.Errorf("%v: %v", r, err)
		}
	})
}

// An own 4xx of a recipient costs nothing: any number of them leaves the account as it was.
func TestOwnHopIsFree(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) {
			c.Balancer, c.Retry.Budget = inOrder{}, 1e-9
			for i := range c.Relays {
				c.Relays[i].Conns.Max = 1
			}
		})
		defer h.close()
		h.relays[0].On(smtptest.Rcpt).For("busy@example.com").Reply(450, "4.2.1 Mailbox busy")
		for i := range 50 {
			if r, err := h.pool.Deliver(t.Context(), envelope("busy@example.com")); err != nil || relaysTried(r) != "r0 r1" {
				t.Fatalf("message %d: %v: %v", i, r, err)
			}
		}
		h.relays[0].On(smtptest.EndOfData).Times(1).DropUnstored()
		e := envelope("y@example.com")
		e.AtLeastOnce = true
		if r, err := h.pool.Deliver(t.Context(), e); err != nil || relaysTried(r) != "r0 r0" {
			t.Errorf("the account is empty: %v: %v", r, err)
		}
	})
}

// Where every breaker is open nobody dials the dead, and the caller hears at once when it is worth asking again; then one message is the probe.
func TestAllOpen(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 3, func(c *smtplb.Config) { c.Retry.Attempts = -1 })
		defer h.close()
		for _, r := range h.relays {
			r.Kill()
		}
		for range 5 {
			h.pool.Deliver(t.Context(), envelope("x@example.com"))
		}
		soonest := time.Hour
		for _, r := range h.pool.Stats().Relays {
			if r.State != "open" {
				t.Fatalf("%+v", r)
			}
			soonest = min(soonest, time.Until(r.RetryAt))
		}
		begun := time.Now()
		r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		var se *smtplb.SendError
		if !errors.Is(err, smtplb.ErrNoRelay) || len(r.Attempts) != 0 || !errors.As(err, &se) || se.RetryAfter != soonest || time.Since(begun) != 0 {
			t.Fatalf("%v after %v, soonest %v: %v: %v", r, time.Since(begun), soonest, err, se)
		}
		for _, r := range h.relays {
			r.Restart()
			r.On(smtptest.EndOfData).Delay(time.Second)
		}
		time.Sleep(soonest + time.Millisecond)
		ready := 0 // the others are open for longer; by chance not much longer
		for _, r := range h.pool.Stats().Relays {
			if r.State != "open" {
				ready++
			}
		}
		if ready == 0 {
			t.Fatal("no relay is to be probed")
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		tried := 0
		for range 20 {
			wg.Go(func() {
				r, _ := h.pool.Deliver(context.Background(), envelope("x@example.com"))
				mu.Lock()
				defer mu.Unlock()
				tried += len(r.Attempts)
			})
		}
		synctest.Wait()
		if n := h.pool.Stats().InFlight; n != ready {
			t.Errorf("%d sends go on, %d relays may be probed", n, ready)
		}
		wg.Wait()
		if tried != ready {
			t.Errorf("%d probes of %d relays", tried, ready)
		}
	})
}

// hold sends a message that occupies a connection of the relay for so long.
func (h *house) hold(wg *sync.WaitGroup, n int, d time.Duration) {
	h.relays[n].On(smtptest.EndOfData).For("hold@example.com").Delay(d)
	wg.Go(func() {
		e := envelope("hold@example.com")
		e.Prefer = fmt.Sprint("r", n)
		if r, err := h.pool.Deliver(context.Background(), e); err != nil {
			h.Errorf("%v: %v", r, err)
		}
	})
}

func one(c *smtplb.Config) {
	for i := range c.Relays {
		c.Relays[i].Conns.Max = 1
	}
}

func TestMaxWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) {
			one(c)
			c.Relays[1].Tier = 1
			c.MaxWait = 2 * time.Second
		})
		defer h.close()
		var wg sync.WaitGroup
		h.hold(&wg, 0, 10*time.Second)
		time.Sleep(time.Second)
		begun := time.Now()
		r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		var se *smtplb.SendError
		if took := time.Since(begun); took != 2*time.Second || !errors.Is(err, smtplb.ErrNoRelay) || !errors.Is(err, smtplb.ErrTemporary) || !strings.Contains(err.Error(), "all relays are busy") ||
			errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &se) || se.RetryAfter <= 0 || len(r.Attempts) != 0 || outcomes(r) != "deferred" {
			t.Errorf("after %v: %v: %v", took, r, err)
		}
		// A preferred relay has no longer.
		e := envelope("x@example.com")
		e.Prefer = "r0"
		begun = time.Now()
		if _, err := h.pool.Deliver(t.Context(), e); time.Since(begun) != 2*time.Second || !errors.Is(err, smtplb.ErrNoRelay) {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
		wg.Wait()
	})
}

func TestSpillOver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 3, func(c *smtplb.Config) {
			one(c)
			c.Relays[1].Tier, c.Relays[2].Tier = 1, 2
			c.MaxWait, c.SpillOver = 2*time.Second, true
		})
		defer h.close()
		var wg sync.WaitGroup
		send := func(want string, after time.Duration) {
			t.Helper()
			begun := time.Now()
			r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
			if took := time.Since(begun); err != nil || relaysTried(r) != want || took != after {
				t.Errorf("%s after %v, want %s after %v: %v", relaysTried(r), took, want, after, err)
			}
		}
		h.hold(&wg, 0, 20*time.Second)
		time.Sleep(time.Second)
		send("r1", 2*time.Second)
		h.hold(&wg, 1, 10*time.Second)
		time.Sleep(time.Second)
		send("r2", 4*time.Second)
		h.hold(&wg, 2, 10*time.Second)
		time.Sleep(time.Second)
		send("r1", 4*time.Second) // the first to be free, of all
		h.hold(&wg, 1, 10*time.Second)
		time.Sleep(time.Millisecond)
		send("r2", 5*time.Second-time.Millisecond)
		wg.Wait()
		send("r0", 0)
		for i := range 3 {
			h.hold(&wg, i, 20*time.Second)
		}
		time.Sleep(time.Millisecond)
		begun := time.Now()
		if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); time.Since(begun) != 6*time.Second || !errors.Is(err, smtplb.ErrNoRelay) {
			t.Errorf("all are busy, after %v: %v", time.Since(begun), err)
		}
		wg.Wait()
	})
}

// Who spills over keeps the place: it came before the others.
func TestSpillOverKeepsThePlace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) {
			one(c)
			c.Relays[1].Tier = 1
			c.MaxWait, c.SpillOver = 2*time.Second, true
			c.Relays[0].NoRiding = true
		})
		defer h.close()
		var wg sync.WaitGroup
		h.hold(&wg, 0, 3500*time.Millisecond)
		h.hold(&wg, 1, 20*time.Second)
		var order []string
		for i := range 3 {
			time.Sleep(time.Second) // the first has spilled over when r0 becomes free
			wg.Go(func() {
				to := fmt.Sprintf("u%d@example.com", i)
				r, err := h.pool.Deliver(context.Background(), envelope(to))
				if err != nil {
					t.Errorf("%s: %v: %v", to, r, err)
				}
			})
		}
		wg.Wait()
		for _, m := range h.relays[0].Messages() {
			order = append(order, m.To[0])
		}
		if got := strings.Join(order, " "); got != "hold@example.com u0@example.com u1@example.com u2@example.com" {
			t.Error(got)
		}
	})
}

// A relay that comes back takes the first who waits for the others.
func TestWaitersSeeARelayComeBack(t *testing.T) {
	for tier := range 2 { // of the one that is waited for, while one of tier 0 is down
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 2, func(c *smtplb.Config) {
				one(c)
				c.Relays[1].Tier = tier
				c.Balancer = inOrder{}
				c.Relays[0].Breaker = smtplb.Breaker{Consecutive: 1, OpenFor: 5 * time.Second}
			})
			defer h.close()
			h.relays[0].On(smtptest.Mail).Times(1).Drop()
			if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil || relaysTried(r) != "r0 r1" {
				t.Fatalf("%v: %v", r, err)
			}
			retry := time.Until(h.pool.Stats().Relays[0].RetryAt)
			var wg sync.WaitGroup
			h.hold(&wg, 1, time.Minute)
			time.Sleep(time.Second)
			begun := time.Now()
			r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
			if took := time.Since(begun); err != nil || relaysTried(r) != "r0" || took != retry-time.Second {
				t.Errorf("%v after %v, the relay came back after %v: %v", r, took, retry-time.Second, err)
			}
			wg.Wait()
		})
	}
}

// A message that waited so long that it could no longer be committed fails over to nobody.
func TestNoFailoverWhenLate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) {
			one(c)
			c.Relays[1].Tier = 1
		})
		defer h.close()
		var wg sync.WaitGroup
		h.hold(&wg, 1, 17*time.Second)
		h.relays[0].On(smtptest.Mail).Drop()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		time.Sleep(time.Millisecond)
		r, err := h.pool.Deliver(ctx, envelope("x@example.com"))
		if !errors.Is(err, context.DeadlineExceeded) || relaysTried(r) != "r0" || outcomes(r) != "deferred" || h.relays[1].Stats().Messages != 1 {
			t.Errorf("%v: %v", r, err)
		}
		wg.Wait()
	})
}

func TestWaitAndBudgetAreChecked(t *testing.T) {
	for path, change := range map[string]func(c *smtplb.Config){
		"MaxWait":      func(c *smtplb.Config) { c.MaxWait = -1 },
		"MaxWait: is ": func(c *smtplb.Config) { c.MaxWait = 30 },
		"SpillOver":    func(c *smtplb.Config) { c.SpillOver = true },
		"Retry.Budget": func(c *smtplb.Config) { c.Retry.Budget = 2000 },
	} {
		c := smtplb.Config{Relays: []smtplb.Relay{{Addr: "r.test:25", TLS: smtplb.TLSNone}}}
		change(&c)
		if _, err := smtplb.New(c); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
