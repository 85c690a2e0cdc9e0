package smtplb_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// Of relays that can't take the message anyway no limit is named, and none makes it the pool's that it waits for.
func TestLimitOfADrainedRelay(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) {
			c.Balancer = smtplb.FirstAvailable()
			c.Limits.Messages = smtplb.Rate{N: 2, Per: time.Hour, Burst: 1}
			c.Relays[0].Limits.Messages = smtplb.Rate{N: 1, Per: time.Hour, Burst: 1}
		})
		defer h.close()
		h.sends(envelope("x@example.com"), "accepted")
		h.set("r1", smtplb.AdminDrain)
		_, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		var te *smtplb.ThrottledError
		if !errors.As(err, &te) || te.Key != "r0" || te.RetryAfter < 59*time.Minute {
			t.Errorf("%v: %+v", err, te)
		}
	})
}

// How many may be handed over at a time is named as the limit that it is, and nobody knows when it lets go.
func TestConcurrencyIsNamed(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Limits.Concurrency, c.MaxThrottleWait = 1, 10*time.Second
		})
		defer h.close()
		var wg sync.WaitGroup
		h.hold(&wg, 0, time.Minute)
		synctest.Wait()
		p, err := h.pool.Explain(t.Context(), envelope("x@example.com"))
		if err != nil || !strings.HasPrefix(p.Limit, "pool: 1 messages are being handed over") || !p.NextToken.IsZero() {
			t.Errorf("%v, until %v: %q", err, p.NextToken, p.Limit)
		}
		begun := time.Now()
		_, err = h.pool.Deliver(t.Context(), envelope("x@example.com"))
		var te *smtplb.ThrottledError
		if !errors.As(err, &te) || te.Scope != "pool" || te.Reason != p.Limit || te.RetryAfter > time.Minute || time.Since(begun) != 10*time.Second {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
		wg.Wait()
	})
}

// A sender's quota is told at once, also where so many messages are being handed over as may be.
func TestConcurrencyHidesNoSendersQuota(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Limits.Concurrency, c.PerSender.Messages = 1, smtplb.Rate{N: 1, Per: time.Hour, Burst: 1}
		})
		defer h.close()
		var wg sync.WaitGroup
		h.hold(&wg, 0, time.Minute)
		synctest.Wait()
		begun := time.Now()
		_, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		var te *smtplb.ThrottledError
		if !errors.As(err, &te) || te.Scope != "sender" || te.RetryAfter < 59*time.Minute || time.Since(begun) != 0 {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
		wg.Wait()
	})
}

// Who comes behind one that waits for much is told the longer of the two waits.
func TestExplainBehindAClaim(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Limits.Recipients = smtplb.Rate{N: 1, Burst: 20} })
		defer h.close()
		to := func(n int) *smtplb.Envelope {
			e := envelope()
			for i := range n {
				e.To = append(e.To, string(rune('a'+i))+"@example.com")
			}
			return e
		}
		h.sends(to(20), strings.TrimSpace(strings.Repeat("accepted ", 20)))
		first := h.async(t.Context(), to(10))
		time.Sleep(time.Second)
		for n, want := range map[int]time.Duration{1: 9 * time.Second, 10: 9 * time.Second, 15: 14 * time.Second} {
			p, err := h.pool.Explain(t.Context(), to(n))
			if wait := p.NextToken.Sub(p.Time); err != nil || (wait-want).Abs() > time.Millisecond || !strings.HasPrefix(p.Limit, "pool: over its limit of 1/s") {
				t.Errorf("%d recipients wait for %v, not %v: %q, %v", n, wait, want, p.Limit, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			_, err = h.pool.Deliver(ctx, to(n))
			cancel()
			var te *smtplb.ThrottledError
			if !errors.As(err, &te) || (te.RetryAfter-want).Abs() > time.Millisecond {
				t.Errorf("%d recipients are to come again in %v: %v", n, want, err)
			}
		}
		if x := <-first; x.Err != nil {
			t.Error(x.Err)
		}
	})
}

// Of one that can't be divided, each provider's limit counts its own recipients, and no others.
func TestLimitOfSomeRecipients(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		unit string
		set  func(l *smtplb.Limits, r smtplb.Rate)
	}{
		{"messages", func(l *smtplb.Limits, r smtplb.Rate) { l.Messages = r }},
		{"recipients", func(l *smtplb.Limits, r smtplb.Rate) { l.Recipients = r }},
	} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, func(c *smtplb.Config) {
				p := smtplb.Provider{Name: "gmail"}
				x.set(&p.Limits, smtplb.Rate{N: 1, Per: time.Hour, Burst: 5})
				c.Providers = []smtplb.Provider{p}
			}, smtptest.WithMaxRecipients(1000))
			defer h.close()
			for range 5 {
				h.sends(envelope("x@gmail.com"), "accepted")
			}
			e := envelope("x@gmail.com")
			for i := range 149 {
				e.To = append(e.To, string(rune('a'+i%26))+string(rune('a'+i/26))+"@example.com")
			}
			e.RequireAll = true
			_, err := h.pool.Deliver(t.Context(), e)
			var te *smtplb.ThrottledError
			if !errors.As(err, &te) || te.Key != "gmail" || te.RetryAfter < 59*time.Minute || te.RetryAfter > 61*time.Minute {
				t.Errorf("%s: %v: %+v", x.unit, err, te)
			}
		})
	}
}

// A relay that is full is said to be full, and not over limits that aren't reached, or were a while ago.
func TestFullIsOverNoLimit(t *testing.T) {
	t.Parallel()
	for _, limiter := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			l := &limiter0{}
			h := newHouse(t, 2, func(c *smtplb.Config) {
				one(c)
				c.Balancer = inOrder{}
				many := smtplb.PerSecond(1000)
				c.Relays[0].Limits = smtplb.Limits{Messages: many, Recipients: many, Connections: many}
				if limiter {
					c.Limiter = l
				}
			})
			defer h.close()
			h.sends(envelope("x@example.com"), "accepted") // the Limiter sends it to r1
			time.Sleep(time.Second)
			var wg sync.WaitGroup
			h.hold(&wg, 0, 10*time.Second)
			synctest.Wait()
			p, err := h.pool.Explain(t.Context(), envelope("x@example.com"))
			if err != nil || len(p.Skipped) != 1 || p.Skipped[0].Name != "r0" || p.Skipped[0].Why != "full: 1 of 1 connections are in use" {
				t.Errorf("with a Limiter: %v: %v, %+v", limiter, err, p.Skipped)
			}
			wg.Wait()
		})
	}
}

// limiter0 is a Limiter that denies what it is asked first.
type limiter0 struct{ asked bool }

func (l *limiter0) Reserve(context.Context, []smtplb.Charge, time.Duration) (smtplb.Lease, error) {
	if !l.asked {
		l.asked = true
		return nil, &smtplb.ThrottledError{RetryAfter: time.Millisecond}
	}
	return granted{}, nil
}

type granted struct{}

func (granted) Commit() {}
func (granted) Return() {}

// Nobody is told to come again in less than a second.
func TestRetryAfterIsASecond(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Limits.Messages, c.MaxThrottleWait = smtplb.Rate{N: 10, Burst: 1}, time.Millisecond
		})
		defer h.close()
		h.sends(envelope("x@example.com"), "accepted")
		if err := h.sends(envelope("x@example.com"), "deferred"); retryAfter(err) != time.Second {
			t.Errorf("%v: %v", retryAfter(err), err)
		}
	})
}

// Nor by a Limiter that says so; one that says nothing of a relay isn't asked again and again.
func TestLimiterSaysAtOnce(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		l := new(limiter)
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Limiter, c.Limits.Messages, c.Relays[0].Limits.Messages = l, smtplb.PerDay(1), smtplb.PerDay(1)
		})
		defer h.close()
		l.reserve = func(int, []smtplb.Charge, time.Duration) error {
			return &smtplb.ThrottledError{RetryAfter: time.Millisecond}
		}
		if err := h.sends(envelope("x@example.com"), "deferred"); retryAfter(err) != time.Second {
			t.Errorf("%v: %v", retryAfter(err), err)
		}
		begun := time.Now()
		l.reserve = func(_ int, charges []smtplb.Charge, _ time.Duration) error {
			if charges[0].Scope == "relay" && time.Since(begun) < 10*time.Millisecond {
				return &smtplb.ThrottledError{}
			}
			return nil
		}
		l.take()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r, err := h.pool.Deliver(ctx, envelope("x@example.com"))
		if calls, _ := l.take(); err != nil || len(calls) > 25 {
			t.Errorf("%v: %v, after %d questions", r, err, len(calls))
		}
	})
}

// neither is a Limiter that returns neither a Lease nor an error.
type neither struct{}

func (neither) Reserve(context.Context, []smtplb.Charge, time.Duration) (smtplb.Lease, error) {
	return nil, nil
}

// A Limiter that returns nothing has failed.
func TestLimiterReturnsNothing(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Limiter, c.Limits.Messages = neither{}, smtplb.PerDay(1) })
		defer h.close()
		if err := h.sends(envelope("x@example.com"), "deferred"); !errors.Is(err, smtplb.ErrThrottled) || !strings.Contains(err.Error(), "neither a Lease nor an error") {
			t.Error(err)
		}
	})
}

// A relay that has had enough for now is told so with the time when it is asked again.
func TestRetryAfterOfABackOff(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		h.relays[0].On(smtptest.Mail).Times(1).Reply(454, "4.7.0 Throttling failure: Daily message quota exceeded.")
		h.sends(envelope("x@example.com"), "deferred")
		time.Sleep(time.Minute)
		_, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		var te *smtplb.ThrottledError
		if !errors.As(err, &te) || te.Key != "r0" || te.RetryAfter < 58*time.Minute || te.RetryAfter > time.Hour || !strings.Contains(te.Reason, "left alone until") {
			t.Errorf("%v: %+v", err, te)
		}
	})
}
