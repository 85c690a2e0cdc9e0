// Package limitertest checks whether a [smtplb.Limiter] keeps its contract: one over a store that several processes share, say.
//
//	func TestLimiter(t *testing.T) {
//		limitertest.Run(t, func(t *testing.T) smtplb.Limiter { return mylimiter.New(store) })
//	}
package limitertest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
)

// Run checks the limiters that newLimiter returns, one for each case. They may share a store: each case uses keys of its own. It takes
// two seconds, of real time unless it runs in a bubble of testing/synctest.
func Run(t *testing.T, newLimiter func(t *testing.T) smtplb.Limiter) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			c.run(&check{T: t, limiter: newLimiter(t), name: fmt.Sprintf("%s %d", c.name, serial.Add(1))})
		})
	}
}

var serial atomic.Int64

// check is one case.
type check struct {
	*testing.T
	limiter smtplb.Limiter
	name    string
}

// slow comes to one token in an hour: within a test, what was taken stays taken. quick comes to one in 50 ms.
var (
	slow  = smtplb.Rate{N: 1, Per: time.Hour, Burst: 5}
	quick = smtplb.Rate{N: 20, Per: time.Second, Burst: 5}
)

func (c *check) charge(scope, key string, u smtplb.Unit, r smtplb.Rate, n int) smtplb.Charge {
	return smtplb.Charge{Scope: scope, Key: c.name + key, Unit: u, Rate: r, N: n}
}

// takes reserves, and expects that it works at once.
func (c *check) takes(charges ...smtplb.Charge) smtplb.Lease {
	c.Helper()
	begun := time.Now()
	lease, err := c.limiter.Reserve(context.Background(), charges, 0)
	if err != nil {
		c.Fatalf("what is there is denied: %v", err)
	}
	if lease == nil {
		c.Fatal("neither a Lease nor an error")
	}
	if took := time.Since(begun); took > time.Second {
		c.Errorf("with a maxWait of 0 it took %v", took)
	}
	return lease
}

// denied reserves, and expects a *ThrottledError that says to come again within most.
func (c *check) denied(most time.Duration, maxWait time.Duration, charges ...smtplb.Charge) {
	c.Helper()
	lease, err := c.limiter.Reserve(context.Background(), charges, maxWait)
	var te *smtplb.ThrottledError
	switch {
	case err == nil:
		c.Errorf("what isn't there is granted")
		lease.Return()
	case !errors.As(err, &te) || !errors.Is(err, smtplb.ErrThrottled):
		c.Errorf("the denial is a %T, not a *ThrottledError: %v", err, err)
	case te.RetryAfter <= 0 || te.RetryAfter > most:
		c.Errorf("RetryAfter is %v; it is above 0, and at most %v", te.RetryAfter, most)
	}
}

var cases = []struct {
	name string
	run  func(c *check)
}{
	{"a burst, and then a denial that says when", func(c *check) {
		one := c.charge("relay", "a", smtplb.Messages, slow, 1)
		for range 5 {
			c.takes(one).Commit()
		}
		c.denied(time.Hour, 0, one)
		c.denied(time.Hour, time.Minute, one) // no use in waiting
	}},
	{"it waits for what comes within maxWait", func(c *check) {
		c.takes(c.charge("relay", "a", smtplb.Messages, quick, 5)).Commit()
		begun := time.Now()
		lease, err := c.limiter.Reserve(context.Background(), []smtplb.Charge{c.charge("relay", "a", smtplb.Messages, quick, 2)}, 5*time.Second)
		if err != nil {
			c.Fatalf("it doesn't wait: %v", err)
		}
		lease.Commit()
		if took := time.Since(begun); took < 90*time.Millisecond {
			c.Errorf("2 at %v after the burst came in %v", quick, took)
		}
	}},
	{"a negative maxWait is no bound", func(c *check) {
		c.takes(c.charge("relay", "a", smtplb.Messages, quick, 5)).Commit()
		lease, err := c.limiter.Reserve(context.Background(), []smtplb.Charge{c.charge("relay", "a", smtplb.Messages, quick, 1)}, -1)
		if err != nil {
			c.Fatal(err)
		}
		lease.Commit()
	}},
	{"what is returned is there again, once", func(c *check) {
		all, one := c.charge("relay", "a", smtplb.Recipients, slow, 5), c.charge("relay", "a", smtplb.Recipients, slow, 1)
		lease := c.takes(all)
		lease.Return()
		lease.Return()
		lease.Commit()
		c.takes(all).Commit()
		c.denied(time.Hour, 0, one)
	}},
	{"after Commit, Return does nothing", func(c *check) {
		all, one := c.charge("relay", "a", smtplb.Recipients, slow, 5), c.charge("relay", "a", smtplb.Recipients, slow, 1)
		lease := c.takes(all)
		lease.Commit()
		lease.Return()
		c.denied(time.Hour, 0, one)
	}},
	{"all of the charges or none", func(c *check) {
		first, second := c.charge("provider", "p", smtplb.Messages, slow, 5), c.charge("relay", "r", smtplb.Messages, slow, 5)
		c.takes(second).Commit()
		c.denied(time.Hour, 0, first, c.charge("relay", "r", smtplb.Messages, slow, 1))
		c.takes(first).Commit()
	}},
	{"scopes, keys and units are apart", func(c *check) {
		c.takes(c.charge("relay", "a", smtplb.Messages, slow, 5)).Commit()
		c.takes(c.charge("relay", "b", smtplb.Messages, slow, 5)).Commit()
		c.takes(c.charge("relay", "a", smtplb.Recipients, slow, 5)).Commit()
		c.takes(c.charge("relay", "a", smtplb.Connections, slow, 5)).Commit()
		c.takes(c.charge("route", "a", smtplb.Messages, slow, 5)).Commit()
		c.denied(time.Hour, 0, c.charge("relay", "a", smtplb.Messages, slow, 1))
	}},
	{"more than the burst waits for all of it, and uses up what comes after", func(c *check) {
		c.takes(c.charge("relay", "a", smtplb.Recipients, quick, 15)).Commit()
		// 10 are owed: 500 ms until the next one is there, and 50 ms more
		c.denied(600*time.Millisecond, 0, c.charge("relay", "a", smtplb.Recipients, quick, 1))
		begun := time.Now()
		lease, err := c.limiter.Reserve(context.Background(), []smtplb.Charge{c.charge("relay", "a", smtplb.Recipients, quick, 1)}, 5*time.Second)
		if err != nil {
			c.Fatal(err)
		}
		lease.Commit()
		if took := time.Since(begun); took < 450*time.Millisecond {
			c.Errorf("what was owed was waited for only %v", took)
		}
	}},
	{"rates as they are configured usually", func(c *check) {
		for i, r := range []smtplb.Rate{
			{N: 14, Per: time.Second, Burst: 14}, // PerSecond(14)
			{N: 0.5, Per: time.Second, Burst: 1},
			{N: 600, Per: time.Minute, Burst: 10},               // PerMinute(600)
			{N: 10_000, Per: 24 * time.Hour, Burst: 1},          // PerDay(10_000)
			{N: 5_000, Per: 24 * time.Hour, Burst: 5_000},       // half of a day's quota at once, the other over the day
			{N: 1e6, Per: 30 * 24 * time.Hour, Burst: 1},        // a month's
			{N: 25.5, Per: 1500 * time.Millisecond, Burst: 100}, // what isn't usual, but allowed
		} {
			n := int(r.Burst) + max(int(r.N/r.Per.Seconds()), 1) // and of what comes later a second's at the least
			key := fmt.Sprint(i)
			c.takes(c.charge("relay", key, smtplb.Recipients, r, n)).Commit()
			one := c.charge("relay", key, smtplb.Recipients, r, 1)
			most := time.Duration(float64(n-int(r.Burst)+1) / r.N * float64(r.Per))
			c.denied(most+time.Millisecond, 0, one)
		}
	}},
	{"it ends with its context", func(c *check) {
		c.takes(c.charge("relay", "a", smtplb.Messages, slow, 5)).Commit()
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		begun := time.Now()
		lease, err := c.limiter.Reserve(ctx, []smtplb.Charge{c.charge("relay", "a", smtplb.Messages, slow, 1)}, -1)
		if err == nil {
			lease.Return()
			c.Error("what isn't there is granted")
		}
		if took := time.Since(begun); took > time.Second {
			c.Errorf("it went on for %v", took)
		}
		full := c.charge("relay", "b", smtplb.Messages, slow, 5)
		if lease, err := c.limiter.Reserve(ctx, []smtplb.Charge{full}, 0); err == nil {
			lease.Return()
			c.Error("it works with a context that has ended")
		}
		c.takes(full).Commit() // that took nothing
	}},
	{"who leaves while it waits has taken nothing", func(c *check) {
		c.takes(c.charge("relay", "a", smtplb.Messages, quick, 5)).Commit()
		for range 5 {
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			if lease, err := c.limiter.Reserve(ctx, []smtplb.Charge{c.charge("relay", "a", smtplb.Messages, quick, 4)}, -1); err == nil {
				lease.Return()
			}
			cancel()
		}
		begun := time.Now()
		lease, err := c.limiter.Reserve(context.Background(), []smtplb.Charge{c.charge("relay", "a", smtplb.Messages, quick, 1)}, 5*time.Second)
		if err != nil {
			c.Fatal(err)
		}
		lease.Commit()
		if took := time.Since(begun); took > 500*time.Millisecond {
			c.Errorf("one at %v came after %v only", quick, took)
		}
	}},
	{"many at once get what is there, and no more", func(c *check) {
		var wg sync.WaitGroup
		var granted atomic.Int32
		for range 50 {
			wg.Go(func() {
				if lease, err := c.limiter.Reserve(context.Background(), []smtplb.Charge{c.charge("relay", "a", smtplb.Messages, smtplb.Rate{N: 1, Per: time.Hour, Burst: 20}, 1)}, 0); err == nil {
					lease.Commit()
					granted.Add(1)
				}
			})
		}
		wg.Wait()
		if n := granted.Load(); n != 20 {
			c.Errorf("50 at once got %d of 20", n)
		}
	}},
}
