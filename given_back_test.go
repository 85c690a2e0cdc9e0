package smtplb_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// bothRelays leads mail for a.example to r0, and mail for b.example to r1.
func bothRelays(c *smtplb.Config) {
	c.Routes = []smtplb.Route{{Recipients: []string{"a.example"}, Relays: []string{"r0"}}, {Recipients: []string{"b.example"}, Relays: []string{"r1"}}}
}

// What a message gives back is the next one's at once, whoever's limit it is, also where that one waits for another relay.
func TestGivenBackIsTakenAtOnce(t *testing.T) {
	t.Parallel()
	slow := smtplb.Limits{Messages: smtplb.Rate{N: 1, Per: 20 * time.Second, Burst: 1}}
	for _, x := range []struct {
		name string
		set  func(c *smtplb.Config)
		said int // what the first is told
	}{
		{"pool", func(c *smtplb.Config) { c.Limits = slow }, 451},
		{"provider", func(c *smtplb.Config) {
			c.Providers = []smtplb.Provider{{Name: "corp", Domains: []string{"a.example", "b.example"}, Limits: slow}}
		}, 451},
		{"sender", func(c *smtplb.Config) { c.PerSender = slow }, 451},
		{"sender's recipients", func(c *smtplb.Config) { c.PerSender.Recipients = slow.Messages }, 451},
		{"at a time", func(c *smtplb.Config) { c.Limits.Concurrency = 1 }, 250},
		{"at a time, with a Limiter", func(c *smtplb.Config) { c.Limits.Concurrency, c.Limiter = 1, smtplb.LocalLimiter() }, 250},
	} {
		t.Run(x.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 2, func(c *smtplb.Config) { bothRelays(c); x.set(c) })
				defer h.close()
				h.relays[0].On(smtptest.Mail).Delay(5*time.Second).Reply(x.said, "2.0.0 so be it")
				begun := time.Now()
				first := h.async(t.Context(), envelope("x@a.example"))
				time.Sleep(time.Second)
				h.sends(envelope("x@b.example"), "accepted")
				if took := time.Since(begun); took < 5*time.Second || took > 5*time.Second+time.Millisecond {
					t.Errorf("the second went after %v", took)
				}
				if r := <-first; (r.Err == nil) != (x.said == 250) {
					t.Error(r.Err)
				}
			})
		})
	}
}

// Who waits for much of what comes little by little keeps others from taking it; when he leaves he doesn't any more, and they have it at once.
func TestWhoLeavesKeepsNobody(t *testing.T) {
	t.Parallel()
	rate := smtplb.Limits{Recipients: smtplb.Rate{N: 1, Burst: 10}}
	for name, set := range map[string]func(c *smtplb.Config){
		"pool": func(c *smtplb.Config) { bothRelays(c); c.Limits = rate },
		"relay": func(c *smtplb.Config) {
			c.Relays = c.Relays[:1]
			c.Relays[0].Limits = rate
			c.Streams = []smtplb.Stream{{Name: "news", Limits: smtplb.Limits{Concurrency: 50}}} // so that the two don't stand in one line
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 2, set)
				defer h.close()
				ten := envelope(strings.Fields(strings.Repeat("x@a.example ", 10))...)
				for i := range ten.To {
					ten.To[i] = string(rune('a'+i)) + ten.To[i]
				}
				ten.Stream = "news"
				if r, err := h.pool.Deliver(t.Context(), ten); err != nil {
					t.Fatal(r, err)
				}
				begun := time.Now()
				ctx, cancel := context.WithCancel(t.Context())
				first := h.async(ctx, ten)
				time.Sleep(time.Second)
				second := h.async(t.Context(), envelope("x@b.example"))
				gone, leave := context.WithCancel(t.Context())
				time.AfterFunc(time.Second, leave)
				if r, err := h.pool.Deliver(gone, envelope("y@b.example")); !errors.Is(err, context.Canceled) { // that changes nothing
					t.Errorf("%v: %v", r, err)
				}
				time.Sleep(3500 * time.Millisecond)
				synctest.Wait()
				select {
				case x := <-second:
					t.Errorf("the second overtook the first: %v", x.Err)
				default:
				}
				cancel()
				if x := <-second; x.Err != nil || time.Since(begun) != 5500*time.Millisecond {
					t.Errorf("the second went after %v: %v", time.Since(begun), x.Err)
				}
				if x := <-first; !errors.Is(x.Err, context.Canceled) {
					t.Error(x.Err)
				}
			})
		})
	}
}

// A message that a relay takes in several transactions waits until there is enough for all of them.
func TestAllTransactionsAreWaitedFor(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Profile = smtplb.Profile{Name: "small", MaxRecipients: 2}
			c.Relays[0].Limits.Messages = smtplb.Rate{N: 1, Per: time.Hour, Burst: 2}
		})
		defer h.close()
		h.sends(envelope("x@example.com"), "accepted")
		_, err := h.pool.Deliver(t.Context(), envelope("a@example.com", "b@example.com", "c@example.com"))
		var te *smtplb.ThrottledError
		if !errors.As(err, &te) || te.Key != "r0" || te.RetryAfter < 59*time.Minute {
			t.Errorf("%v", err)
		}
	})
}

// A message doesn't wait for a new connection where one is idle, or comes back: the limit of new ones is none of its business then.
func TestConnectionsThatThereAreAreUsed(t *testing.T) {
	t.Parallel()
	for _, own := range []bool{false, true} { // the picker
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, func(c *smtplb.Config) {
				if own {
					c.Balancer = inOrder{}
				}
				c.Relays[0].Limits.Connections = smtplb.Rate{N: 1, Per: time.Hour, Burst: 1}
				c.Relays[0].Conns.MaxIdleTime = time.Hour
			})
			defer h.close()
			h.sends(envelope("x@example.com"), "accepted")
			h.sends(envelope("x@example.com"), "accepted")
			var wg sync.WaitGroup
			h.hold(&wg, 0, 5*time.Second)
			synctest.Wait()
			begun := time.Now()
			h.sends(envelope("x@example.com"), "accepted")
			if took := time.Since(begun); took != 5*time.Second {
				t.Errorf("it took %v", took)
			}
			wg.Wait()
			if n := h.relays[0].Stats().Connections; n != 1 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

// A connection in the place of one that proved stale is a new one, and counts as such.
func TestReplacedConnectionsAreCounted(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Limits.Connections = smtplb.Rate{N: 1, Per: time.Hour, Burst: 2}
			c.Relays[0].Conns.MaxMessages = 2
		})
		defer h.close()
		h.relays[0].On(smtptest.Mail).Nth(2).Drop()
		h.sends(envelope("x@example.com"), "accepted")
		if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil || !r.Attempts[0].Redialed {
			t.Fatalf("%v: %v", r, err)
		}
		h.sends(envelope("x@example.com"), "accepted") // the last over the second connection
		_, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		var te *smtplb.ThrottledError
		if !errors.As(err, &te) || !strings.Contains(te.Reason, "connections") || h.relays[0].Stats().Connections != 2 {
			t.Errorf("%v, %d connections", err, h.relays[0].Stats().Connections)
		}
	})
}

// What a Limiter has refused is asked for again after an Update: there may be another Limiter, or other limits.
func TestDenialEndsWithAnUpdate(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		l := new(limiter)
		var config smtplb.Config
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Limiter, c.Relays[0].Limits.Messages = l, smtplb.PerDay(1)
			config = *c
		})
		defer h.close()
		l.reserve = func(int, []smtplb.Charge, time.Duration) error {
			return &smtplb.ThrottledError{RetryAfter: 10 * time.Minute}
		}
		h.sends(envelope("x@example.com"), "deferred")
		l.reserve = nil
		l.take()
		err := h.sends(envelope("x@example.com"), "deferred")
		var te *smtplb.ThrottledError
		if !errors.As(err, &te) || te.Key != "r0" || te.RetryAfter < 599*time.Second || !strings.Contains(te.Reason, "the Limiter has no room for it") {
			t.Errorf("%v: %+v", err, te)
		}
		if calls, _ := l.take(); len(calls) != 0 {
			t.Errorf("it was asked again: %v", calls)
		}
		h.update(config)
		h.sends(envelope("x@example.com"), "accepted")
		if calls, ended := l.take(); len(calls) != 1 || !slices.Equal(ended, []string{"commit 1"}) {
			t.Errorf("%v, %v", calls, ended)
		}
	})
}

// In a DeliverAll MaxWait doesn't end the wait for a limit that is waited for as long as it takes, also where all connections are in use just then.
func TestBulkWaitsForLimitsBeyondMaxWait(t *testing.T) {
	t.Parallel()
	for _, busy := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, func(c *smtplb.Config) {
				one(c)
				c.Limits.Messages = smtplb.Rate{N: 1, Burst: 1}
				c.MaxWait, c.MaxThrottleWait = 2500*time.Millisecond, -1
			})
			defer h.close()
			if busy {
				h.relays[0].On(smtptest.EndOfData).Delay(900 * time.Millisecond)
			}
			begun := time.Now()
			for r := range h.pool.DeliverAll(t.Context(), slices.Values(slices.Repeat([]*smtplb.Envelope{envelope("x@example.com")}, 10)), smtplb.Bulk{InFlight: 10}) {
				if r.Err != nil {
					t.Errorf("busy %v: after %v: %v", busy, time.Since(begun), r.Err)
				}
			}
			if took := time.Since(begun); took < 9*time.Second || took > 10*time.Second {
				t.Errorf("busy %v: it took %v", busy, took)
			}
		})
	}
}

// What a relay that warms up won't ever take isn't waited for, however long a limit may be.
func TestWarmupNeverIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			warmCurve(c, 3, 4)
			c.MaxThrottleWait = -1
		})
		defer h.close()
		h.sends(envelope("x@example.com"), "accepted")
		begun := time.Now()
		_, err := h.pool.Deliver(t.Context(), envelope("a@example.com", "b@example.com", "c@example.com", "d@example.com", "e@example.com"))
		if !errors.Is(err, smtplb.ErrThrottled) || retryAfter(err) != 24*time.Hour || time.Since(begun) > time.Second {
			t.Errorf("after %v, for %v: %v", time.Since(begun), retryAfter(err), err)
		}
	})
}

// The second relay of a race is charged as the first is: where its limit is reached there is no race, and of the two the one that the message left by has spent something in the end.
func TestBothOfARaceAreCharged(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h, d := newRaces(t, 2, func(c *smtplb.Config) {
			daily := smtplb.Rate{N: 1, Per: 24 * time.Hour, Burst: 2}
			c.Limits.Messages = smtplb.Rate{N: 1, Per: 24 * time.Hour, Burst: 100}
			for i := range c.Relays {
				c.Relays[i].Limits = smtplb.Limits{Messages: daily, Connections: daily}
			}
		})
		defer h.close()
		d.set(0, way{after: 2 * time.Second})
		d.set(1, way{after: time.Second})
		sent := h.async(t.Context(), envelope("x@example.com"))
		time.Sleep(500 * time.Millisecond) // both dial
		if got := strings.Join(h.pool.Used(), ", "); got != "pool 2/0, relay r0 1/0, relay r1 1/0" {
			t.Errorf("while they race: %s", got)
		}
		if x := <-sent; x.Err != nil || attempts(x.Receipt) != "r0~ r1" {
			t.Errorf("%v: %v", attempts(x.Receipt), x.Err)
		}
		h.quiet()
		if got := strings.Join(h.pool.Used(), ", "); got != "pool 1/0, relay r1 1/0" {
			t.Errorf("after it: %s", got)
		}
	})
}

// A relay that takes fewer recipients at a time than was reckoned with is charged for the transactions that there are.
func TestMoreTransactionsAreCharged(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Limits.Messages = smtplb.Rate{N: 1, Per: 24 * time.Hour, Burst: 100}
		}, smtptest.WithMaxRecipients(2))
		defer h.close()
		h.sends(envelope("a@example.com", "b@example.com", "c@example.com", "d@example.com", "e@example.com"), "accepted accepted accepted accepted accepted")
		if got := h.pool.Used(); !slices.Equal(got, []string{"relay r0 3/0"}) || len(h.relays[0].Messages()) != 3 {
			t.Errorf("%v, for %d transactions", got, len(h.relays[0].Messages()))
		}
	})
}

// An Update makes any limit wider that is reached.
func TestUpdateWidensEachLimit(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]func(c *smtplb.Config, r smtplb.Rate){
		"pool's messages":     func(c *smtplb.Config, r smtplb.Rate) { c.Limits.Messages = r },
		"pool's recipients":   func(c *smtplb.Config, r smtplb.Rate) { c.Limits.Recipients = r },
		"sender's messages":   func(c *smtplb.Config, r smtplb.Rate) { c.PerSender.Messages = r },
		"sender's recipients": func(c *smtplb.Config, r smtplb.Rate) { c.PerSender.Recipients = r },
		"relay's messages":    func(c *smtplb.Config, r smtplb.Rate) { c.Relays[0].Limits.Messages = r },
		"relay's recipients":  func(c *smtplb.Config, r smtplb.Rate) { c.Relays[0].Limits.Recipients = r },
		"relay's connections": func(c *smtplb.Config, r smtplb.Rate) { c.Relays[0].Limits.Connections = r },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var config smtplb.Config
				h := newHouse(t, 1, func(c *smtplb.Config) {
					c.Relays[0].Conns.MaxMessages = 1
					set(c, smtplb.Rate{N: 1, Per: time.Hour, Burst: 1})
					config = *c
				})
				defer h.close()
				h.sends(envelope("x@example.com"), "accepted")
				h.sends(envelope("x@example.com"), "deferred")
				config.Relays = slices.Clone(config.Relays)
				set(&config, smtplb.Rate{N: 1, Burst: 1})
				h.update(config)
				begun := time.Now()
				h.sends(envelope("x@example.com"), "accepted")
				h.sends(envelope("x@example.com"), "accepted")
				if took := time.Since(begun); took < 2*time.Second-time.Millisecond || took > 2*time.Second+time.Millisecond {
					t.Errorf("two more went after %v", took)
				}
			})
		})
	}
}

// Who is tried at a relay whose limits don't allow it, and leaves by another, keeps nobody waiting.
func TestWhoGoesElsewhereKeepsNobody(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) {
			c.Balancer = smtplb.FirstAvailable()
			c.Routes = []smtplb.Route{{Recipients: []string{"a.example"}, Relays: []string{"r0"}}}
			c.Relays[0].Limits.Recipients = smtplb.Rate{N: 1, Burst: 3}
		})
		defer h.close()
		three := envelope("a@example.com", "b@example.com", "c@example.com")
		for _, want := range []string{"r0", "r1"} {
			if r, err := h.pool.Deliver(t.Context(), three); err != nil || relaysTried(r) != want {
				t.Errorf("%v: %v", r, err)
			}
		}
		begun := time.Now()
		time.Sleep(100 * time.Millisecond) // whose place in the queue is another
		h.sends(envelope("x@a.example"), "accepted")
		if took := time.Since(begun); took < time.Second-time.Millisecond || took > time.Second+time.Millisecond {
			t.Errorf("one recipient went after %v", took)
		}
	})
}
