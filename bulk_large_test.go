package smtplb_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// newsStreams are the default's, and one that isn't put back.
var newsStreams = []smtplb.Stream{{Name: "news", Bulk: true}, {Name: "bulk", Bulk: true, Lag: 30 * time.Second}}

// In a newsletter that doesn't end, a message to many has its turn when those before it have had theirs, though all others need less, and though resets go before all of it.
func TestBulkLargeAmongSmall(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		stream string
		need   int
		resets time.Duration // one each; 0: none
		within time.Duration // the large one is accepted
	}{
		"no lag":                     {"news", 5, 0, time.Minute},
		"a lag":                      {"bulk", 5, 0, time.Minute},
		"a lag, and resets":          {"bulk", 5, 2 * time.Second, 2 * time.Minute},
		"no lag, and resets":         {"news", 5, 2 * time.Second, 2 * time.Minute},
		"a lag, resets, a whole lot": {"bulk", 20, 2 * time.Second, 4 * time.Minute},
	} {
		for _, scope := range []string{"relay", "pool"} {
			t.Run(name+", "+scope, func(t *testing.T) {
				t.Parallel()
				bubble(t, func(t *testing.T) {
					h := newHouse(t, 1, func(c *smtplb.Config) {
						c.Streams = newsStreams
						if l := (smtplb.Limits{Recipients: smtplb.Rate{N: 1, Burst: 20}}); scope == "relay" {
							c.Relays[0].Limits = l
						} else {
							c.Limits = l
						}
					}, smtptest.WithDiscard())
					defer h.close()
					begun, took := time.Now(), time.Hour
					var wg sync.WaitGroup
					for at := x.resets; x.resets > 0 && at < x.within; at += x.resets {
						wg.Go(func() {
							time.Sleep(at)
							_, err := h.pool.Deliver(context.Background(), envelope("reset@example.com"))
							if took := time.Since(begun) - at; err != nil || took > time.Second+time.Millisecond {
								t.Errorf("a reset took %v: %v", took, err)
							}
						})
					}
					pulled := 0
					news := func(yield func(*smtplb.Envelope) bool) {
						for time.Since(begun) < x.within {
							e := envelope("x@example.com")
							e.Stream = x.stream
							if pulled++; pulled == 45 {
								e.ID = "large"
								for n := range x.need - 1 {
									e.To = append(e.To, fmt.Sprintf("y%d@example.com", n))
								}
							}
							if !yield(e) {
								return
							}
						}
					}
					for r := range h.pool.DeliverAll(t.Context(), news, smtplb.Bulk{InFlight: 40}) {
						if r.Err != nil {
							t.Error(r.Err)
						}
						if r.Envelope.ID == "large" {
							took = time.Since(begun)
						}
					}
					wg.Wait()
					if took > x.within {
						t.Errorf("a message to %d took %v, of %d", x.need, took, pulled)
					}
				})
			})
		}
	}
}

// What is bulk keeps its place, and its ride, where it waits for a connection: none is closed for it.
func TestBulkRidesOn(t *testing.T) {
	t.Parallel()
	for _, stream := range []string{"news", "bulk"} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, func(c *smtplb.Config) {
				c.Streams, c.Limits.Messages = newsStreams, smtplb.PerSecond(1000)
				c.Relays[0].Conns.Max, c.Relays[0].Conns.Reserved = 2, -1
			}, smtptest.WithDiscard())
			defer h.close()
			h.net.SetLatency(5*time.Millisecond, 5*time.Millisecond)
			h.relays[0].On(smtptest.EndOfData).Delay(200 * time.Millisecond)
			e := envelope("x@example.com")
			e.Stream = stream
			for r := range h.pool.DeliverAll(t.Context(), slices.Values(slices.Repeat([]*smtplb.Envelope{e}, 300)), smtplb.Bulk{InFlight: 40}) {
				if r.Err != nil {
					t.Error(r.Err)
				}
			}
			if s := h.pool.Stats().Relays[0]; s.Opened > 10 || s.Rides < 280 {
				t.Errorf("%s: %d connections, %d rides", stream, s.Opened, s.Rides)
			}
		})
	}
}

// However negative it is, MaxThrottleWait is no bound: with a Limiter it is multiplied.
func TestBulkLimiterWithoutBound(t *testing.T) {
	t.Parallel()
	for _, most := range []time.Duration{-1, math.MinInt64} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, func(c *smtplb.Config) {
				c.Limits.Messages, c.Limiter, c.MaxThrottleWait = smtplb.Rate{N: 1, Burst: 1}, smtplb.LocalLimiter(), most
			}, smtptest.WithDiscard())
			defer h.close()
			for r := range h.pool.DeliverAll(t.Context(), slices.Values(slices.Repeat([]*smtplb.Envelope{envelope("x@example.com")}, 60)), smtplb.Bulk{InFlight: 60}) {
				if r.Err != nil {
					t.Errorf("MaxThrottleWait %v: %v", most, r.Err)
				}
			}
		})
	}
}

// It stands behind all others for as long as there are limits: where an Update takes them away in the middle of a wait it is bulk like any other, which isn't starved.
func TestBulkWithoutLimitsAnyMore(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		change := func(l smtplb.Limits) func(c *smtplb.Config) {
			return func(c *smtplb.Config) {
				c.Streams, c.Limits = newsStreams, l
				c.Relays[0].Conns.Max, c.Relays[0].Conns.Reserved = 1, -1
			}
		}
		h := newHouse(t, 1, change(smtplb.Limits{Messages: smtplb.PerSecond(1000)}))
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Delay(time.Second)
		begun, updated := time.Now(), 10*time.Second
		var wg sync.WaitGroup
		for range 3 { // the one connection is always wanted
			wg.Go(func() {
				for time.Since(begun) < 30*time.Second {
					h.sends(envelope("x@example.com"), "accepted")
				}
			})
		}
		wg.Go(func() {
			time.Sleep(updated)
			if err := h.pool.Update(h.config(change(smtplb.Limits{}))); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(time.Second / 2)
		e := envelope("y@example.com")
		e.Stream = "news"
		for r := range h.pool.DeliverAll(context.Background(), slices.Values([]*smtplb.Envelope{e}), smtplb.Bulk{}) {
			if took := time.Since(begun); r.Err != nil || took < updated || took > updated+5*time.Second {
				t.Errorf("after %v: %v", took, r.Err)
			}
		}
		wg.Wait()
	})
}
