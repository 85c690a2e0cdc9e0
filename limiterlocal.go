package smtplb

import (
	"context"
	"sync"
	"time"

	"github.com/smtplb/smtplb/internal/throttle"
)

// LocalLimiter returns a Limiter for several Pools of one process: token buckets, as a Pool has them for itself. A rate that a charge of the same scope and key names for the first time begins with a full bucket. Who came first
// is served first.
func LocalLimiter() Limiter { return &localLimiter{buckets: map[bucketClass]*throttle.Keyed{}} }

type localLimiter struct {
	mu      sync.Mutex // guards buckets, and makes reserving one step; held for arithmetic only
	buckets map[bucketClass]*throttle.Keyed
}

// bucketClass is what buckets have in common but for their key.
type bucketClass struct {
	scope string
	unit  Unit
	rate  Rate
}

// maxClasses bounds the rates that are known for a scope: with each Update that changes one there is another.
const maxClasses = 10_000

// bucket returns the bucket of a charge. It needs the lock.
func (l *localLimiter) bucket(c *Charge, now time.Time) *throttle.Bucket {
	class := bucketClass{c.Scope, c.Unit, c.Rate.whole()} // whether it was named with its defaults or without
	k := l.buckets[class]
	if k == nil {
		if len(l.buckets) >= maxClasses {
			clear(l.buckets)
		}
		k = throttle.NewKeyed(c.Rate.bucket(), maxSenders)
		l.buckets[class] = k
	}
	return k.Get(now, c.Key)
}

func (l *localLimiter) Reserve(ctx context.Context, charges []Charge, maxWait time.Duration) (Lease, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	wait, err := l.take(charges, maxWait)
	if err != nil {
		return nil, err
	}
	lease := &localLease{limiter: l, charges: charges}
	if wait <= 0 {
		return lease, nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return lease, nil
	case <-ctx.Done():
		lease.Return()
		return nil, context.Cause(ctx)
	}
}

// take reserves all the charges, and returns how long it is until they are there.
func (l *localLimiter) take(charges []Charge, maxWait time.Duration) (wait time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	var last *Charge
	for i := range charges {
		if d := l.bucket(&charges[i], now).Wait(now, charges[i].N); d > wait || last == nil {
			wait, last = d, &charges[i]
		}
	}
	if wait > 0 && maxWait >= 0 && wait > maxWait {
		return 0, &ThrottledError{Scope: last.Scope, Key: last.Key, RetryAfter: wait, Reason: (&meter{scope: last.Scope, key: last.Key}).what() + ": over its limit of " + last.Rate.String() + " " + last.Unit.String()}
	}
	for i := range charges {
		l.bucket(&charges[i], now).Take(now, charges[i].N)
	}
	return wait, nil
}

// localLease is a Lease of a localLimiter.
type localLease struct {
	limiter *localLimiter
	charges []Charge
	once    sync.Once
}

func (l *localLease) Commit() { l.once.Do(func() {}) }

func (l *localLease) Return() {
	l.once.Do(func() {
		l.limiter.mu.Lock()
		defer l.limiter.mu.Unlock()
		now := time.Now()
		for i := range l.charges {
			l.limiter.bucket(&l.charges[i], now).Return(now, l.charges[i].N)
		}
	})
}
