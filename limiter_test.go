package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// limiter is a Limiter that writes down what it is asked, and does what it is told.
type limiter struct {
	mu       sync.Mutex
	calls    []string
	charges  [][]smtplb.Charge
	ended    []string
	reserve  func(n int, charges []smtplb.Charge, maxWait time.Duration) error
	reserved int
}

func (l *limiter) Reserve(ctx context.Context, charges []smtplb.Charge, maxWait time.Duration) (smtplb.Lease, error) {
	l.mu.Lock()
	l.reserved++
	n := l.reserved
	var s []string
	for _, c := range charges {
		s = append(s, fmt.Sprintf("%s %q %d %v", c.Scope, c.Key, c.N, c.Unit))
	}
	l.calls = append(l.calls, strings.Join(s, ", "))
	l.charges = append(l.charges, charges)
	f := l.reserve
	l.mu.Unlock()
	if f != nil {
		if err := f(n, charges, maxWait); err != nil {
			return nil, err
		}
	}
	return &lease{l, n}, nil
}

type lease struct {
	l *limiter
	n int
}

func (x *lease) Commit() { x.end("commit") }
func (x *lease) Return() { x.end("return") }
func (x *lease) end(how string) {
	x.l.mu.Lock()
	defer x.l.mu.Unlock()
	x.l.ended = append(x.l.ended, fmt.Sprintf("%s %d", how, x.n))
}

// take returns what was written down since the last call.
func (l *limiter) take() (calls, ended []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	calls, ended = l.calls, l.ended
	slices.Sort(ended)
	l.calls, l.ended, l.reserved = nil, nil, 0
	return calls, ended
}

func (h *house) expect(l *limiter, calls, ended []string) {
	h.Helper()
	c, e := l.take()
	if !slices.Equal(c, calls) || !slices.Equal(e, ended) {
		h.Errorf("asked\n  %s\nand %v; wanted\n  %s\nand %v", strings.Join(c, "\n  "), e, strings.Join(calls, "\n  "), ended)
	}
}

// A Limiter is asked for everything but the relay before a send waits, the smallest scope first, and for the relay when it has a connection; and hears what became of it.
func TestLimiterIsAsked(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		l := new(limiter)
		day := smtplb.Limits{Messages: smtplb.PerDay(5), Recipients: smtplb.PerDay(7)}
		h := newHouse(t, 2, func(c *smtplb.Config) {
			c.Limiter = l
			c.Balancer = smtplb.FirstAvailable()
			c.Limits, c.PerSender = day, smtplb.Limits{Recipients: smtplb.PerDay(3)}
			c.Providers = []smtplb.Provider{{Name: "gmail", Limits: smtplb.Limits{Recipients: smtplb.PerDay(1)}}}
			c.Streams = []smtplb.Stream{{Name: "news", Limits: smtplb.Limits{Messages: smtplb.PerDay(1)}}}
			c.Routes = []smtplb.Route{{Name: "g", Recipients: []string{"gmail.com"}, Relays: []string{"r0", "r1"}, Limits: smtplb.Limits{Messages: smtplb.PerDay(1)}}}
			c.Relays[0].Limits = smtplb.Limits{Messages: smtplb.PerDay(1), Connections: smtplb.PerDay(1)}
		})
		defer h.close()
		e := envelope("x@gmail.com", "y@gmail.com")
		e.Stream = "news"
		shared := `sender "example.com" 2 recipients, provider "gmail" 2 recipients, route "g" 1 messages, stream "news" 1 messages, pool "" 1 messages, pool "" 2 recipients`
		h.sends(e, "accepted accepted")
		h.expect(l, []string{shared, `relay "r0" 1 messages, relay "r0" 1 connections`}, []string{"commit 1", "commit 2"})
		for _, c := range l.charges[0] {
			if c.Scope == "pool" && c.Unit == smtplb.Recipients && c.Rate != (smtplb.Rate{N: 7, Per: 24 * time.Hour, Burst: 1}) || c.Rate.N <= 0 || c.Rate.Per <= 0 || c.Rate.Burst < 1 {
				t.Errorf("%+v", c)
			}
		}
		h.sends(e, "accepted accepted") // over the same connection, however often beyond what the rates are: that is the Limiter's
		h.expect(l, []string{shared, `relay "r0" 1 messages`}, []string{"commit 1", "commit 2"})

		h.relays[0].On(smtptest.Mail).Times(1).Reply(451, "4.3.0 try later")
		h.sends(e, "accepted accepted") // by the other relay, which has no limits
		h.expect(l, []string{shared, `relay "r0" 1 messages`, shared}, []string{"commit 3", "return 1", "return 2"})

		h.relays[1].On(smtptest.EndOfData).Times(1).Drop()
		h.relays[0].On(smtptest.Mail).Times(1).Reply(451, "4.3.0 try later")
		h.sends(e, "unknown unknown")
		h.expect(l, []string{shared, `relay "r0" 1 messages`, shared}, []string{"commit 3", "return 1", "return 2"})
	})
}

// Denials, failures and panics of a Limiter.
func TestLimiterSaysNo(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		l := new(limiter)
		h := newHouse(t, 2, func(c *smtplb.Config) {
			c.Limiter = l
			c.Balancer = smtplb.FirstAvailable()
			c.Limits.Messages = smtplb.PerDay(5)
			c.Relays[0].Limits.Messages = smtplb.PerDay(1)
			c.Relays[1].Limits.Messages = smtplb.PerDay(1)
			c.MaxThrottleWait = 7 * time.Second
		})
		defer h.close()
		e := envelope("x@example.com")

		l.reserve = func(_ int, charges []smtplb.Charge, maxWait time.Duration) error {
			if want := map[string]time.Duration{"pool": 7 * time.Second, "relay": 0}[charges[0].Scope]; maxWait != want {
				t.Errorf("maxWait of %v is %v", charges, maxWait)
			}
			if charges[0].Scope == "pool" {
				return &smtplb.ThrottledError{Scope: "pool", RetryAfter: 42 * time.Minute, Reason: "all used up"}
			}
			return nil
		}
		err := h.sends(e, "deferred")
		var se *smtplb.SendError
		if !errors.As(err, &se) || se.RetryAfter != 42*time.Minute || !errors.Is(err, smtplb.ErrThrottled) || !errors.Is(err, smtplb.ErrTemporary) || !strings.Contains(err.Error(), "all used up") {
			t.Error(err)
		}
		l.take()

		// A relay that is denied is left alone for so long; the other one is taken.
		l.reserve = func(_ int, charges []smtplb.Charge, _ time.Duration) error {
			if charges[0].Key == "r0" {
				return &smtplb.ThrottledError{RetryAfter: 10 * time.Second}
			}
			return nil
		}
		for range 3 {
			h.sends(e, "accepted")
		}
		calls, ended := l.take()
		if n := strings.Count(strings.Join(calls, "\n"), `"r0"`); n != 1 || len(ended) != 6 || h.stored("x@example.com") != 3 || len(h.relays[1].Messages()) != 3 {
			t.Errorf("r0 was asked about %d times: %v", n, ended)
		}

		// Both are: it waits, and takes the first.
		l.reserve = func(_ int, charges []smtplb.Charge, _ time.Duration) error {
			if charges[0].Key == "r1" {
				return &smtplb.ThrottledError{RetryAfter: 5 * time.Second}
			}
			return nil
		}
		time.Sleep(7 * time.Second) // r0 has 3 left
		begun := time.Now()
		h.sends(e, "accepted")
		if took := time.Since(begun); took < 2900*time.Millisecond || took > 3100*time.Millisecond || len(h.relays[0].Messages()) != 1 {
			t.Errorf("after %v", took)
		}
		l.take()

		// An error of its own: nothing is sent, and what it is like doesn't show.
		for _, scope := range []string{"pool", "relay"} {
			l.reserve = func(_ int, charges []smtplb.Charge, _ time.Duration) error {
				if charges[0].Scope == scope {
					return fmt.Errorf("store is away: %w", smtplb.ErrPermanent)
				}
				return nil
			}
			err = h.sends(e, "deferred")
			if !errors.Is(err, smtplb.ErrTemporary) || !errors.Is(err, smtplb.ErrThrottled) || errors.Is(err, smtplb.ErrPermanent) || !strings.Contains(err.Error(), "store is away") {
				t.Error(err)
			}
			if _, ended := l.take(); scope == "relay" && !slices.Equal(ended, []string{"return 1"}) {
				t.Errorf("%v", ended)
			}

			// A denial that is nil is no leave to send.
			l.reserve = func(_ int, charges []smtplb.Charge, _ time.Duration) error {
				var denied *smtplb.ThrottledError
				if charges[0].Scope == scope {
					return denied
				}
				return nil
			}
			if err := h.sends(e, "deferred"); !errors.Is(err, smtplb.ErrThrottled) || !strings.Contains(err.Error(), "*ThrottledError that is nil") {
				t.Error(err)
			}
			if _, ended := l.take(); scope == "relay" && !slices.Equal(ended, []string{"return 1"}) {
				t.Errorf("%v", ended)
			}

			// A panic is the caller's, and leaves nothing behind.
			l.reserve = func(_ int, charges []smtplb.Charge, _ time.Duration) error {
				if charges[0].Scope == scope {
					panic("limiter")
				}
				return nil
			}
			func() {
				defer func() {
					if recover() != "limiter" {
						t.Error("no panic")
					}
				}()
				_, _ = h.pool.Deliver(context.Background(), e)
			}()
			if _, ended := l.take(); scope == "relay" && !slices.Equal(ended, []string{"return 1"}) {
				t.Errorf("%v", ended)
			}
		}
		l.reserve = nil
		h.sends(e, "accepted")
	})
}

// hanging is a Limiter whose store doesn't answer.
type hanging struct{}

func (hanging) Reserve(ctx context.Context, _ []smtplb.Charge, _ time.Duration) (smtplb.Lease, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// Whose time a Limiter uses up is told so.
func TestLimiterHangs(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Limiter, c.Limits.Messages = hanging{}, smtplb.PerDay(5) })
		defer h.close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		r, err := h.pool.Deliver(ctx, envelope("x@example.com"))
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "waiting for the Limiter: ") || outcomes(r) != "deferred" {
			t.Errorf("%v: %v", r, err)
		}
	})
}

// Who leaves while it waits for a connection has its lease returned.
func TestLimiterOfWhoLeaves(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		l := new(limiter)
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Limiter = l
			c.Limits.Messages = smtplb.PerDay(5)
			c.Relays[0].Conns.Max = 1
		})
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Delay(10 * time.Second)
		var wg sync.WaitGroup
		wg.Go(func() { h.sends(envelope("x@example.com"), "accepted") })
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		r, err := h.pool.Deliver(ctx, envelope("y@example.com"))
		if !errors.Is(err, context.DeadlineExceeded) || outcomes(r) != "deferred" {
			t.Error(err)
		}
		wg.Wait()
		if _, ended := l.take(); !slices.Equal(ended, []string{"commit 1", "return 2"}) {
			t.Error(ended)
		}
	})
}

// Two pools with one LocalLimiter are one sender.
func TestLocalLimiterOfTwoPools(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		shared := smtplb.LocalLimiter()
		with := func(c *smtplb.Config) {
			c.Limiter = shared
			c.Relays[0].Limits.Messages = smtplb.Rate{N: 10, Burst: 1}
			c.Relays[0].Limits.Connections = smtplb.PerSecond(5)
			c.Limits.Recipients = smtplb.PerSecond(1000)
			c.MaxThrottleWait = -1
		}
		h, other := newHouse(t, 1, with), newHouse(t, 1, with)
		defer h.close()
		defer other.close()
		begun := time.Now()
		var wg sync.WaitGroup
		for _, x := range []*house{h, other} {
			for range 10 {
				wg.Go(func() {
					for range 5 {
						x.sends(envelope("x@example.com"), "accepted")
					}
				})
			}
		}
		wg.Wait()
		if took := time.Since(begun); took < 9900*time.Millisecond || took > 12*time.Second {
			t.Errorf("100 at 10 a second took %v", took)
		}
	})
}

// A LocalLimiter takes a rate that is named without its defaults, by who asks it directly, for the one that a pool names with them.
func TestLocalLimiterFillsDefaults(t *testing.T) {
	t.Parallel()
	l := smtplb.LocalLimiter()
	for i, r := range []smtplb.Rate{{N: 1, Per: time.Second, Burst: 1}, {N: 1}, smtplb.PerSecond(1)} {
		_, err := l.Reserve(context.Background(), []smtplb.Charge{{Scope: "relay", Key: "a", Rate: r, N: 1}}, 0)
		if errors.Is(err, smtplb.ErrThrottled) != (i > 0) {
			t.Errorf("%v: %v", r, err)
		}
	}
}

// Close ends the waits of sends for a Limiter, as all others, and what they would have had is others'.
func TestLimiterEndsWithThePool(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 5} {
		bubble(t, func(t *testing.T) {
			shared := smtplb.LocalLimiter()
			limited := func(c *smtplb.Config) {
				c.Limits.Messages, c.Limiter = smtplb.Rate{N: 1, Per: 20 * time.Second, Burst: 1}, shared
			}
			h := newHouse(t, 1, limited)
			defer h.close()
			h.sends(envelope("x@example.com"), "accepted")
			begun := time.Now()
			time.AfterFunc(time.Second, func() { h.pool.Close() })
			for r := range h.pool.DeliverAll(t.Context(), slices.Values(slices.Repeat([]*smtplb.Envelope{envelope("x@example.com")}, n)), smtplb.Bulk{}) {
				if took := time.Since(begun); !errors.Is(r.Err, smtplb.ErrClosed) || errors.Is(r.Err, context.Canceled) || errors.Is(r.Err, smtplb.ErrThrottled) || took > time.Second {
					t.Errorf("of %d, after %v: %v", n, took, r.Err)
				}
			}
			other := newHouse(t, 1, limited)
			defer other.close()
			other.sends(envelope("x@example.com"), "accepted")
			if took := time.Since(begun); took < 19*time.Second || took > 20*time.Second+time.Millisecond {
				t.Errorf("another pool's turn was after %v", took)
			}
		})
	}
}
