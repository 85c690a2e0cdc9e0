package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// Where several limits are reached, the one is named that is waited for longest, and RetryAfter is its: it is what keeps the message. Explain says the same.
func TestLongestLimitIsNamed(t *testing.T) {
	t.Parallel()
	hourly := func(n float64) smtplb.Rate { return smtplb.Rate{N: n, Per: time.Hour, Burst: 1} }
	for _, x := range []struct {
		name       string
		change     func(c *smtplb.Config)
		scope, key string
		text       string
		wait       time.Duration
	}{
		{"a day's recipients behind a minute's messages, of one relay", func(c *smtplb.Config) {
			c.Relays = c.Relays[:1]
			c.Relays[0].Limits = smtplb.Limits{Messages: smtplb.Rate{N: 1, Per: time.Minute, Burst: 1}, Recipients: smtplb.Rate{N: 1, Per: 24 * time.Hour, Burst: 1}}
		}, "relay", "r0", "relay r0: over its limit of 1/day, burst 1 recipients", 24 * time.Hour},
		{"the same of the pool", func(c *smtplb.Config) {
			c.Limits = smtplb.Limits{Messages: smtplb.Rate{N: 1, Per: time.Minute, Burst: 1}, Recipients: smtplb.Rate{N: 1, Per: 24 * time.Hour, Burst: 1}}
		}, "pool", "", "pool: over its limit of 1/day, burst 1 recipients", 24 * time.Hour},
		{"a day's messages before a minute's recipients", func(c *smtplb.Config) {
			c.Relays = c.Relays[:1]
			c.Relays[0].Limits = smtplb.Limits{Recipients: smtplb.Rate{N: 1, Per: time.Minute, Burst: 1}, Messages: smtplb.Rate{N: 1, Per: 24 * time.Hour, Burst: 1}}
		}, "relay", "r0", "relay r0: over its limit of 1/day, burst 1 messages", 24 * time.Hour},
		{"a stream before the pool", func(c *smtplb.Config) {
			c.Streams = []smtplb.Stream{{Name: "s", Limits: smtplb.Limits{Messages: hourly(2)}}}
			c.Limits.Messages = hourly(60)
		}, "stream", "s", "stream s: over its limit of 2/h", 30 * time.Minute},
		{"the pool before the sender", func(c *smtplb.Config) {
			c.Limits.Messages, c.PerSender.Messages = hourly(2), hourly(60)
		}, "pool", "", "pool: over its limit of 2/h", 30 * time.Minute},
		{"the pool before a relay", func(c *smtplb.Config) {
			c.Relays = c.Relays[:1]
			c.Limits.Messages, c.Relays[0].Limits.Messages = hourly(2), hourly(60)
		}, "pool", "", "pool: over its limit of 2/h", 30 * time.Minute},
		{"messages before new connections", func(c *smtplb.Config) {
			c.Relays = c.Relays[:1]
			c.Relays[0].Limits = smtplb.Limits{Messages: hourly(2), Connections: hourly(60)}
			c.Relays[0].Conns.MaxMessages = 1
		}, "relay", "r0", "relay r0: over its limit of 2/h, burst 1 messages", 30 * time.Minute},
		{"new connections that aren't needed", func(c *smtplb.Config) {
			c.Relays = c.Relays[:1]
			c.Relays[0].Limits = smtplb.Limits{Messages: hourly(60), Connections: hourly(2)}
			c.Relays[0].Conns.MaxIdleTime = time.Hour
		}, "relay", "r0", "relay r0: over its limit of 60/h, burst 1 messages", time.Minute},
		{"a sender's messages, and not the recipients", func(c *smtplb.Config) {
			c.PerSender = smtplb.Limits{Messages: hourly(2), Recipients: smtplb.PerSecond(1000)}
		}, "sender", "example.com", "the sender is over its limit", 30 * time.Minute},
		{"a pool whose other relay has no limit", func(c *smtplb.Config) {
			c.Balancer = smtplb.FirstAvailable()
			c.Limits.Messages, c.Relays[0].Limits.Messages = hourly(2), hourly(1)
		}, "pool", "", "pool: over its limit of 2/h", 30 * time.Minute},
		{"the pool behind a stream", func(c *smtplb.Config) {
			c.Streams = []smtplb.Stream{{Name: "s", Limits: smtplb.Limits{Messages: hourly(60)}}}
			c.Limits.Messages = hourly(2)
		}, "pool", "", "pool: over its limit of 2/h", 30 * time.Minute},
		{"the sender behind the pool", func(c *smtplb.Config) {
			c.Limits.Messages, c.PerSender.Messages = hourly(60), hourly(2)
		}, "sender", "example.com", "the sender is over its limit", 30 * time.Minute},
		{"a warm-up behind a rate", func(c *smtplb.Config) {
			c.Relays = c.Relays[:1]
			c.Relays[0].Limits.Messages = hourly(60)
			warmCurve(c, 24)
		}, "relay", "r0", "relay r0: warm-up: 1 of 24 today, stage 1 of 1", time.Hour},
		{"new connections behind messages", func(c *smtplb.Config) {
			c.Relays = c.Relays[:1]
			c.Relays[0].Limits = smtplb.Limits{Messages: hourly(60), Connections: hourly(2)}
			c.Relays[0].Conns.MaxMessages = 1
		}, "relay", "r0", "relay r0: over its limit of 2/h, burst 1 connections", 30 * time.Minute},
		{"a relay behind the pool", func(c *smtplb.Config) {
			c.Relays = c.Relays[:1]
			c.Limits.Messages, c.Relays[0].Limits.Messages = hourly(60), hourly(2)
		}, "relay", "r0", "relay r0: over its limit of 2/h", 30 * time.Minute},
	} {
		t.Run(x.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 2, x.change)
				defer h.close()
				e := envelope("x@example.com")
				e.Stream = "s"
				h.sends(e, "accepted")
				now := time.Now()
				_, err := h.pool.Deliver(context.Background(), e)
				var te *smtplb.ThrottledError
				if !errors.As(err, &te) || te.Scope != x.scope || te.Key != x.key || !strings.Contains(te.Reason, x.text) {
					t.Fatalf("%v: %+v", err, te)
				}
				if d := te.RetryAfter - x.wait; d < -time.Second || d > time.Second || retryAfter(err) != te.RetryAfter || time.Since(now) > time.Second {
					t.Errorf("RetryAfter %v and %v after %v", te.RetryAfter, retryAfter(err), time.Since(now))
				}
				p, err := h.pool.Explain(context.Background(), e)
				if err != nil || p.Limit != te.Reason || p.RetryAfter != te.RetryAfter || p.NextChance.Sub(time.Now().Add(te.RetryAfter)).Abs() > time.Second || !strings.Contains(p.String(), "is deferred for ") {
					t.Errorf("%v\n%+v\n%v", err, p, p)
				}
			})
		})
	}
}

// Of relays whose limits are reached the one is named that is free first: its limit is what the message waits for.
func TestFirstFreeRelayIsNamed(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		every    time.Duration // of r0, r1 and r2 the first, second, third part, or the other way round
		deferred bool
		first    int
	}{{30 * time.Minute, true, 2}, {30 * time.Second, false, 2}, {30 * time.Minute, true, 0}, {30 * time.Second, false, 0}} {
		key := fmt.Sprint("r", x.first)
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 3, func(c *smtplb.Config) {
				c.Balancer = smtplb.FirstAvailable()
				for i := range c.Relays {
					c.Relays[i].Limits.Messages = smtplb.Rate{N: float64(3 - max(i-x.first, x.first-i)), Per: x.every, Burst: 1}
				}
			})
			defer h.close()
			for range 3 {
				h.sends(envelope("x@example.com"), "accepted")
			}
			p, err := h.pool.Explain(context.Background(), envelope("x@example.com"))
			if err != nil || !strings.HasPrefix(p.Limit, "relay "+key+": over its limit of ") {
				t.Errorf("%v, %q", err, p.Limit)
			}
			if !x.deferred {
				if !p.Waits || !strings.HasSuffix(p.Limit, "of 3 relays it is the first that may have it") || p.NextToken.Sub(p.Time) > x.every/3 {
					t.Errorf("%q until %v\n%v", p.Limit, p.NextToken, p)
				}
				return
			}
			_, err = h.pool.Deliver(context.Background(), envelope("x@example.com"))
			var te *smtplb.ThrottledError
			if !errors.As(err, &te) || te.Key != key || te.Reason != p.Limit || (te.RetryAfter-x.every/3).Abs() > time.Second {
				t.Errorf("%v: %+v", err, te)
			}
		})
	}
}

// How many may be handed over at a time is no reason to keep a message in the queue that a day's quota lets go tomorrow only.
func TestConcurrencyHidesNoQuota(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Limits = smtplb.Limits{Concurrency: 1, Messages: smtplb.Rate{N: 1, Per: time.Hour, Burst: 1}}
		})
		defer h.close()
		h.relays[0].On(smtptest.Data).Delay(50 * time.Second)
		done := make(chan error)
		go func() {
			_, err := h.pool.Deliver(context.Background(), envelope("x@example.com"))
			done <- err
		}()
		time.Sleep(time.Second)
		begun := time.Now()
		_, err := h.pool.Deliver(context.Background(), envelope("x@example.com"))
		var te *smtplb.ThrottledError
		if !errors.As(err, &te) || !strings.Contains(te.Reason, "1/h") || te.RetryAfter < 59*time.Minute || time.Since(begun) > time.Second {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A relay whose connections are all in use, and none of which comes back, is waited for because of new ones: their limit is named, and tells when it is worth coming back.
func TestLimitOfNewConnectionsIsNamed(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Limits.Connections = smtplb.Rate{N: 3, Per: time.Minute, Burst: 1}
			c.PerSender.Messages = smtplb.PerSecond(1000) // which isn't reached
			c.Relays[0].Conns.MaxMessages = 1
		})
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Delay(19 * time.Second)
		var wg sync.WaitGroup
		var throttled atomic.Int32
		for range 4 { // two get connections of their own
			wg.Go(func() {
				_, err := h.pool.Deliver(context.Background(), envelope("x@example.com"))
				if err == nil {
					return
				}
				throttled.Add(1)
				var te *smtplb.ThrottledError
				if !errors.As(err, &te) || te.Scope != "relay" || te.Key != "r0" || te.Reason != "relay r0: over its limit of 3/min, burst 1 connections" || te.RetryAfter < 9*time.Second || te.RetryAfter > 11*time.Second {
					t.Errorf("%v: %+v", err, te)
				}
			})
		}
		wg.Wait()
		if n := throttled.Load(); n != 2 {
			t.Errorf("%d were throttled", n)
		}
	})
}
