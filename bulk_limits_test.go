package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// A DeliverAll goes at the pace of its limits, however slow they are and however many are in flight: none of its messages is deferred because of those before it.
func TestBulkKeepsThePace(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		change func(c *smtplb.Config)
		opts   smtplb.Bulk
	}{
		"pool":       {func(c *smtplb.Config) { c.Limits.Messages = smtplb.Rate{N: 1, Burst: 1} }, smtplb.Bulk{}},
		"recipients": {func(c *smtplb.Config) { c.Limits.Recipients = smtplb.Rate{N: 1, Burst: 1} }, smtplb.Bulk{InFlight: 80}},
		"each relay": {func(c *smtplb.Config) { c.Relays[0].Limits.Messages, c.Relays[1].Limits.Messages = half, half }, smtplb.Bulk{Ordered: true}},
		"one of two": {func(c *smtplb.Config) {
			c.Relays[0].Limits.Messages = half
			c.Limits.Messages = smtplb.Rate{N: 1, Burst: 1}
		}, smtplb.Bulk{}},
		"sender": {func(c *smtplb.Config) { c.PerSender.Messages = smtplb.Rate{N: 1, Burst: 1} }, smtplb.Bulk{InFlight: 80}},
		"one connection": {func(c *smtplb.Config) {
			c.Limits.Messages = smtplb.Rate{N: 1, Burst: 1}
			c.Relays[0].Conns.Max, c.Relays[1].Conns.Max = 1, 1
		}, smtplb.Bulk{InFlight: 80}},
		"a short patience": {func(c *smtplb.Config) {
			c.Limits.Messages = smtplb.Rate{N: 1, Burst: 1}
			c.MaxThrottleWait = time.Second
		}, smtplb.Bulk{InFlight: 80}},
		"two routes": {func(c *smtplb.Config) {
			c.Routes = []smtplb.Route{{Recipients: []string{"example.org"}, Relays: []string{"r1"}}}
			c.Limits.Recipients = smtplb.Rate{N: 2, Burst: 2}
		}, smtplb.Bulk{InFlight: 80}},
		"a short MaxWait": {func(c *smtplb.Config) {
			c.Limits.Messages = smtplb.Rate{N: 1, Burst: 1}
			c.MaxWait = 10 * time.Second
		}, smtplb.Bulk{InFlight: 80}},
		"a short MaxWait, and another tier": {func(c *smtplb.Config) {
			c.Limits.Messages = smtplb.Rate{N: 1, Burst: 1}
			c.MaxWait, c.SpillOver, c.Relays[1].Tier = 10*time.Second, true, 1
		}, smtplb.Bulk{InFlight: 80}},
		"one at a time": {func(c *smtplb.Config) { c.Limits.Concurrency = 1 }, smtplb.Bulk{InFlight: 80}},
		"one of a provider at a time": {func(c *smtplb.Config) {
			c.Providers = []smtplb.Provider{{Name: "p", Domains: []string{"example.com"}, Limits: smtplb.Limits{Concurrency: 1, Messages: smtplb.Rate{N: 2, Burst: 1}}}}
		}, smtplb.Bulk{InFlight: 80}},
		"a Limiter": {func(c *smtplb.Config) {
			c.Limits.Messages, c.Limiter = smtplb.Rate{N: 1, Burst: 1}, smtplb.LocalLimiter()
		}, smtplb.Bulk{InFlight: 80}},
		"a Limiter for relays": {func(c *smtplb.Config) {
			c.Relays[0].Limits.Messages, c.Relays[1].Limits.Messages, c.Limiter = half, half, smtplb.LocalLimiter()
		}, smtplb.Bulk{InFlight: 80}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 2, x.change)
				defer h.close()
				if strings.HasSuffix(name, " at a time") {
					for _, r := range h.relays {
						r.On(smtptest.EndOfData).Delay(time.Second)
					}
				}
				list := make([]*smtplb.Envelope, 90)
				for i := range list {
					list[i] = envelope(fmt.Sprintf("x%d@example.com", i))
					if name == "two routes" {
						list[i].To = append(list[i].To, fmt.Sprintf("x%d@example.org", i))
					}
				}
				begun, n := time.Now(), 0
				for r := range h.pool.DeliverAll(context.Background(), slices.Values(list), x.opts) {
					if r.Err != nil {
						t.Errorf("message %d after %v: %v", n, time.Since(begun), r.Err)
					}
					n++
				}
				if took := time.Since(begun); n != 90 || took < 87*time.Second || took > 93*time.Second {
					t.Errorf("%d results in %v", n, took)
				}
			})
		})
	}
}

var half = smtplb.Rate{N: 0.5, Burst: 1}

// Who isn't of the loop waits no longer than MaxThrottleWait, and the loop ends with its context.
func TestBulkBesideOthers(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Limits.Messages = smtplb.Rate{N: 0.25, Burst: 1}
			c.MaxThrottleWait = 10 * time.Second
		})
		defer h.close()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			time.Sleep(time.Minute)
			begun := time.Now()
			_, err := h.pool.Deliver(context.Background(), envelope("reset@example.com"))
			if took := time.Since(begun); !errors.Is(err, smtplb.ErrThrottled) || took < 10*time.Second || took > 11*time.Second {
				t.Errorf("after %v: %v", took, err)
			}
		})
		sent, ended, begun := 0, 0, time.Now()
		for r := range h.pool.DeliverAll(ctx, slices.Values(slices.Repeat([]*smtplb.Envelope{envelope("x@example.com")}, 100)), smtplb.Bulk{InFlight: 40}) {
			switch {
			case r.Err == nil:
				sent++
			case errors.Is(r.Err, context.DeadlineExceeded):
				ended++
			default:
				t.Error(r.Err)
			}
		}
		wg.Wait()
		if took := time.Since(begun); sent < 29 || sent > 31 || ended < 30 || ended > 45 || took < 115*time.Second || took > 2*time.Minute+time.Second {
			t.Errorf("%d sent, %d ended after %v", sent, ended, took)
		}
	})
}

// What a limit has nothing for within MaxThrottleWait is deferred in a DeliverAll too.
func TestBulkDefersAQuota(t *testing.T) {
	t.Parallel()
	for _, limiter := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, func(c *smtplb.Config) {
				c.Limits.Messages = smtplb.Rate{N: 24, Per: 24 * time.Hour, Burst: 5}
				if limiter {
					c.Limiter = smtplb.LocalLimiter()
				}
			})
			defer h.close()
			sent, throttled, begun := 0, 0, time.Now()
			for r := range h.pool.DeliverAll(t.Context(), slices.Values(slices.Repeat([]*smtplb.Envelope{envelope("x@example.com")}, 20)), smtplb.Bulk{InFlight: 10}) {
				var failed *smtplb.SendError
				switch {
				case r.Err == nil:
					sent++
				case errors.Is(r.Err, smtplb.ErrThrottled) && errors.As(r.Err, &failed) && failed.RetryAfter > 50*time.Minute:
					throttled++
				default:
					t.Error(r.Err)
				}
			}
			if took := time.Since(begun); sent != 5 || throttled != 15 || took > time.Second {
				t.Errorf("Limiter %v: %d sent, %d throttled, in %v", limiter, sent, throttled, took)
			}
		})
	}
}

// For a connection a message of a DeliverAll waits no longer than MaxWait, limits or not.
func TestBulkKeepsMaxWait(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Limits.Messages = smtplb.PerSecond(100)
			c.MaxWait, c.MaxThrottleWait, c.Relays[0].Conns.Max = 45*time.Second, 10*time.Second, 1
		})
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Delay(time.Minute)
		sent, busy, begun := 0, 0, time.Now()
		for r := range h.pool.DeliverAll(t.Context(), slices.Values(slices.Repeat([]*smtplb.Envelope{envelope("x@example.com")}, 5)), smtplb.Bulk{InFlight: 5}) {
			switch took := time.Since(begun); {
			case r.Err == nil:
				sent++
			case errors.Is(r.Err, smtplb.ErrNoRelay) && took > 44*time.Second && took < 46*time.Second:
				busy++
			default:
				t.Errorf("after %v: %v", took, r.Err)
			}
		}
		if sent != 1 || busy != 4 {
			t.Errorf("%d sent, %d too late", sent, busy)
		}
	})
}

// Where little of the caller's time is left, nothing is offered that couldn't be committed: what is limited isn't used up for it, and no connection is broken off. No envelope is taken any more.
func TestBulkEndsQuietly(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].Limits.Messages = smtplb.Rate{N: 5, Burst: 1} }, smtptest.WithDiscard())
		defer h.close()
		begun := time.Now()
		var mails [61]atomic.Int32
		h.relays[0].On(smtptest.Mail).If(func(*smtptest.Event) bool {
			mails[int(time.Since(begun)/time.Second)].Add(1)
			return false
		}).Reply(451, "4.7.0 never")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		sent, ended := 0, 0
		var pulled time.Duration
		news := func(yield func(*smtplb.Envelope) bool) {
			for yield(envelope("x@example.com")) {
				pulled = time.Since(begun)
			}
		}
		for r := range h.pool.DeliverAll(ctx, news, smtplb.Bulk{InFlight: 40}) {
			if r.Err == nil {
				sent++
			} else {
				ended++
			}
		}
		for s := range mails {
			if n := mails[s].Load(); n > 6 {
				t.Errorf("%d messages were offered in second %d, of 5 that are allowed", n, s)
			}
		}
		if s := h.relays[0].Stats(); sent < 270 || ended > 40 || s.Connections > 4 || pulled > 55*time.Second {
			t.Errorf("%d sent, %d not, over %d connections; the last was taken after %v", sent, ended, s.Connections, pulled)
		}
	})
}

// A limit that the caller's time is too short for is told at once, as a limit.
func TestLimitBeyondDeadline(t *testing.T) {
	t.Parallel()
	for _, ofRelay := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, func(c *smtplb.Config) {
				l := smtplb.Limits{Messages: smtplb.PerMinute(5)}
				if ofRelay {
					c.Relays[0].Limits = l
				} else {
					c.Limits = l
				}
			})
			defer h.close()
			h.sends(envelope("x@example.com"), "accepted")
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			begun := time.Now()
			_, err := h.pool.Deliver(ctx, envelope("x@example.com"))
			var te *smtplb.ThrottledError
			if !errors.As(err, &te) || te.RetryAfter < 11*time.Second || te.RetryAfter > 12*time.Second+time.Millisecond || time.Since(begun) > time.Millisecond {
				t.Errorf("after %v: %v", time.Since(begun), err)
			}
		})
	}
}

// A newsletter doesn't delay a password reset where a limit is what both wait for: what is bulk never counts as older than what isn't, however long it has waited.
func TestBulkBehindResets(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		rate  smtplb.Rate
		every time.Duration
		most  time.Duration // that a reset waits: for the next token, and for what was handed over just before
		limit time.Duration // Config.MaxThrottleWait
	}{
		"5 a minute":        {smtplb.Rate{N: 5, Per: time.Minute, Burst: 1}, 20 * time.Second, 12*time.Second + time.Millisecond, 0},
		"1 a second":        {smtplb.Rate{N: 1, Burst: 1}, 3 * time.Second, time.Second + time.Millisecond, 0},
		"no longest wait":   {smtplb.Rate{N: 1, Burst: 1}, 3 * time.Second, time.Second + time.Millisecond, -1},
		"a long one":        {smtplb.Rate{N: 1, Burst: 1}, 3 * time.Second, time.Second + time.Millisecond, 10 * time.Minute},
		"nearly all resets": {smtplb.Rate{N: 1, Burst: 1}, 1100 * time.Millisecond, time.Second + time.Millisecond, 0},
	} {
		for _, scope := range []string{"relay", "pool"} {
			t.Run(name+", "+scope, func(t *testing.T) {
				t.Parallel()
				bubble(t, func(t *testing.T) {
					h := newHouse(t, 1, func(c *smtplb.Config) {
						c.MaxThrottleWait = x.limit
						if l := (smtplb.Limits{Messages: x.rate}); scope == "relay" {
							c.Relays[0].Limits = l
						} else {
							c.Limits = l
						}
					}, smtptest.WithDiscard())
					defer h.close()
					length := 10 * time.Minute
					if !smtplb.Thorough() {
						length = 3 * time.Minute
					}
					ctx, cancel := context.WithTimeout(t.Context(), length)
					defer cancel()
					news := func(yield func(*smtplb.Envelope) bool) {
						for {
							e := envelope("x@example.com")
							e.Stream = "bulk"
							if !yield(e) {
								return
							}
						}
					}
					var wg sync.WaitGroup
					wg.Go(func() {
						for ctx.Err() == nil {
							time.Sleep(x.every)
							wg.Go(func() {
								begun := time.Now()
								_, err := h.pool.Deliver(context.Background(), envelope("reset@example.com"))
								if took := time.Since(begun); err != nil || took > x.most {
									t.Errorf("a reset took %v: %v", took, err)
								}
							})
						}
					})
					sent := 0
					for r := range h.pool.DeliverAll(ctx, news, smtplb.Bulk{}) {
						if r.Err == nil {
							sent++
						}
					}
					wg.Wait()
					// What the resets leave, but for the last fifth, or 5 s.
					if want := int(0.9 * (length.Seconds() - 20) * (x.rate.N/max(x.rate.Per, time.Second).Seconds() - 1/x.every.Seconds())); sent < want {
						t.Errorf("%d of the newsletter, want %d", sent, want)
					}
				})
			})
		}
	}
}

// counting is a balancer of one relay that counts how often it is asked.
type counting struct{ n *atomic.Int64 }

func (b counting) NewPicker([]smtplb.RelayView) smtplb.Picker { return b }

func (b counting) Pick(smtplb.PickInfo) int {
	b.n.Add(1)
	return 0
}

// Who goes on waiting when a short MaxThrottleWait or MaxWait is over doesn't look all the time: a thousand that did would be a load of a million looks a second.
func TestShortWaitsRest(t *testing.T) {
	t.Parallel()
	far := smtplb.Limits{Messages: smtplb.PerSecond(1000)}
	for name, x := range map[string]struct {
		change  func(*smtplb.Config)
		answers time.Duration
		loop    bool
	}{
		"a connection":            {func(c *smtplb.Config) { c.Limits, c.MaxThrottleWait = far, time.Millisecond }, 5 * time.Second, false},
		"a connection, in a loop": {func(c *smtplb.Config) { c.Limits, c.MaxThrottleWait = far, time.Millisecond }, 5 * time.Second, true},
		"what goes at a time, a loop": {func(c *smtplb.Config) {
			c.Limits.Concurrency, c.MaxThrottleWait, c.Relays[0].Conns.Max = 1, time.Millisecond, 3
		}, 5 * time.Second, true},
		"MaxWait under a limit": {func(c *smtplb.Config) {
			c.Limits.Messages, c.MaxWait, c.Relays[0].Conns.Max = smtplb.Rate{N: 1, Per: 5 * time.Second}, time.Millisecond, 3
		}, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var n atomic.Int64
				h := newHouse(t, 1, func(c *smtplb.Config) {
					c.Balancer, c.Relays[0].Conns.Max = counting{&n}, 1
					x.change(c)
				})
				defer h.close()
				h.relays[0].On(smtptest.EndOfData).Delay(x.answers)
				begun := time.Now()
				if x.loop {
					for r := range h.pool.DeliverAll(context.Background(), slices.Values([]*smtplb.Envelope{envelope("a@example.com"), envelope("b@example.com"), envelope("c@example.com")}), smtplb.Bulk{InFlight: 3}) {
						if r.Err != nil {
							t.Error(r.Err)
						}
					}
				} else {
					var wg sync.WaitGroup
					for range 3 {
						wg.Go(func() {
							if r, err := h.pool.Deliver(context.Background(), envelope("a@example.com")); err != nil {
								t.Errorf("%v: %v", r, err)
							}
						})
					}
					wg.Wait()
				}
				if took := time.Since(begun); took > 15*time.Second {
					t.Errorf("took %v", took)
				}
				if looks := n.Load(); looks > 450 { // each of two that wait, ten times a second, and some
					t.Errorf("%d looks in 15 s", looks)
				}
			})
		})
	}
}
