package smtplb_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// Of a relay that is in trouble, and over a limit too, that is told which lasts longer; a limit that a message would wait for is none.
func TestTroubleOrLimit(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		name      string
		every     time.Duration
		open      bool // else it is drained
		throttled bool
		least     time.Duration
		most      time.Duration
	}{
		{"drained, and an hour's limit", time.Hour, false, true, 59 * time.Minute, time.Hour},
		{"drained, and a limit that is waited for", 50 * time.Second, false, false, 30 * time.Second, 30 * time.Second},
		{"open, and a shorter limit", 100 * time.Second, true, false, 7 * time.Minute, 13 * time.Minute},
		{"open, and a longer limit", time.Hour, true, true, 59 * time.Minute, time.Hour},
	} {
		t.Run(x.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 1, func(c *smtplb.Config) {
					c.MaxThrottleWait = time.Minute
					c.Relays[0].Limits.Messages = smtplb.Rate{N: 1, Per: x.every, Burst: 1}
					c.Relays[0].Breaker = smtplb.Breaker{Consecutive: 1, OpenFor: 10 * time.Minute, MaxOpen: 10 * time.Minute}
				})
				defer h.close()
				if x.open {
					h.relays[0].On(smtptest.EndOfData).Drop()
					h.sends(envelope("x@example.com"), "unknown")
				} else {
					h.sends(envelope("x@example.com"), "accepted")
					h.set("r0", smtplb.AdminDrain)
				}
				err := h.sends(envelope("x@example.com"), "deferred")
				if after := retryAfter(err); errors.Is(err, smtplb.ErrThrottled) != x.throttled || errors.Is(err, smtplb.ErrNoRelay) == x.throttled || after < x.least || after > x.most {
					t.Errorf("for %v: %v", after, err)
				}
			})
		})
	}
}

// What is kept back from bulk is so under limits too.
func TestReservedUnderLimits(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Limits.Messages = smtplb.PerSecond(1000)
			c.Relays[0].Conns = smtplb.Conns{Max: 2, Reserved: 1}
			c.Relays[0].NoRiding = true
		})
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Delay(5 * time.Second)
		bulk := envelope("x@example.com")
		bulk.Stream = "bulk"
		begun := time.Now()
		first := h.async(t.Context(), bulk)
		synctest.Wait()
		second := h.async(t.Context(), bulk)
		synctest.Wait()
		h.sends(envelope("x@example.com"), "accepted") // over the connection that was kept back
		if took := time.Since(begun); took != 5*time.Second {
			t.Errorf("it took %v", took)
		}
		<-first
		if x := <-second; x.Err != nil || time.Since(begun) != 10*time.Second {
			t.Errorf("the second of bulk took %v: %v", time.Since(begun), x.Err)
		}
	})
}

// Bulk that isn't of a DeliverAll has its turn under limits, as late as its class comes, however much else there is.
func TestLimitedBulkDoesNotStarve(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Limits.Messages, c.MaxThrottleWait = smtplb.Rate{N: 1, Burst: 1}, -1
		})
		defer h.close()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 10 { // they keep ten waiting, always
			wg.Go(func() {
				for ctx.Err() == nil {
					_, _ = h.pool.Deliver(context.Background(), envelope("x@example.com"))
				}
			})
		}
		time.Sleep(5 * time.Second)
		e := envelope("bulk@example.com")
		e.Stream = "bulk"
		begun := time.Now()
		short, end := context.WithTimeout(t.Context(), 5*time.Minute)
		defer end()
		if r, err := h.pool.Deliver(short, e); err != nil {
			t.Errorf("%v: %v", r, err)
		}
		if took := time.Since(begun); took < 25*time.Second || took > 45*time.Second {
			t.Errorf("took %v; the lag is 30 s, and ten are before it then", took)
		}
		cancel()
		wg.Wait()
	})
}

// The retry budget pays for a further attempt once, also where a Limiter denies the first relay that would have got it.
func TestDenialIsPaidForOnce(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		l := new(limiter)
		h := newHouse(t, 3, func(c *smtplb.Config) {
			c.Balancer, c.Retry.Budget, c.Limiter = inOrder{}, 1e-9, l
			for i := range c.Relays {
				c.Relays[i].Limits.Messages = smtplb.PerDay(1)
			}
		})
		defer h.close()
		l.reserve = func(_ int, charges []smtplb.Charge, _ time.Duration) error {
			if charges[0].Key == "r1" {
				return &smtplb.ThrottledError{RetryAfter: time.Hour}
			}
			return nil
		}
		h.relays[0].On(smtptest.Mail).Reply(451, "4.3.0 not now")
		before := h.pool.Tokens()
		r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		if err != nil || relaysTried(r) != "r0 r2" {
			t.Errorf("%v: %v", r, err)
		}
		if cost := before + 0.001 - h.pool.Tokens(); math.Abs(cost-1) > 1e-6 {
			t.Errorf("it cost %v", cost)
		}
	})
}

// A relay that isn't to be given less mail is given none the less, whatever it refuses: connections, too.
func TestNoBackOffOfConnections(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].NoBackOff, c.Relays[0].Breaker.Off = true, true })
		defer h.close()
		h.relays[0].On(smtptest.Connect).Reply(421, "4.7.0 r0.test Error: too many connections from 192.0.2.1")
		for range 20 {
			h.sends(envelope("x@example.com"), "deferred")
			time.Sleep(10 * time.Second)
		}
		if counted, tight := h.pool.Strained(); counted != 0 || tight != 0 || h.pool.Stats().Relays[0].BackOff != "" {
			t.Errorf("%d are counted, %d are tight: %s", counted, tight, h.pool.Stats().Relays[0].BackOff)
		}
	})
}

// Too many connections, said to a message rather than to a new connection, says nothing about new ones.
func TestTooManyConnectionsInAMessage(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].Breaker.Off, c.MaxThrottleWait = true, -1 })
		defer h.close()
		h.relays[0].On(smtptest.Mail).Reply(421, "4.7.0 too many connections")
		for range 20 {
			h.sends(envelope("x@example.com"), "deferred")
			time.Sleep(15 * time.Second)
		}
		if said := h.pool.Stats().Relays[0].BackOff; said == "" || strings.Contains(said, "new connections") {
			t.Errorf("%q", said)
		}
	})
}

// A rule about providers is about those of all the recipients that were refused together.
func TestRuleOfSeveralProviders(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Rules = []smtplb.Rule{{Match: "hot", Action: smtplb.RuleQuota, Provider: true}}
		})
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Times(1).Reply(451, "4.7.1 too hot")
		h.sends(envelope("x@gmail.com", "y@yahoo.com", "z@example.com"), "deferred deferred deferred")
		said := h.pool.Stats().Relays[0].BackOff
		if !strings.Contains(said, "gmail: left alone") || !strings.Contains(said, "yahoo: left alone") {
			t.Errorf("%q", said)
		}
		h.sends(envelope("z@example.com"), "accepted")
		for _, to := range []string{"x@gmail.com", "y@yahoo.com"} {
			h.sends(envelope(to), "deferred")
		}
	})
}

// What a relay refuses of messages that it was offered before it was given less is no reason to give it still less.
func TestRefusedBeforeItWasGivenLess(t *testing.T) {
	t.Parallel()
	said := map[bool]string{}
	for _, late := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, func(c *smtplb.Config) {
				c.Relays[0].Limits.Messages = smtplb.Rate{N: 100, Burst: 100}
				c.Relays[0].Breaker.Off = true
			})
			defer h.close()
			throttled := "4.7.0 Throttling failure: Maximum sending rate exceeded"
			h.relays[0].On(smtptest.EndOfData).For("late@example.com").Delay(70*time.Second).Reply(454, throttled)
			h.relays[0].On(smtptest.EndOfData).For("soon@example.com").Delay(time.Second).Reply(454, throttled)
			var wg sync.WaitGroup
			if late {
				wg.Go(func() { h.sends(envelope("late@example.com"), "deferred") })
			}
			h.sends(envelope("soon@example.com"), "deferred")
			time.Sleep(80 * time.Second)
			wg.Wait()
			said[late] = h.pool.Stats().Relays[0].BackOff
		})
	}
	if said[true] != said[false] || said[true] == "" {
		t.Errorf("%q, and without a late refusal %q", said[true], said[false])
	}
}
