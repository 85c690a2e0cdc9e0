package throttle

import (
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Bucket is what is left of a Rate. It is safe for concurrent use; who needs that nobody takes what Wait has just said is there holds a lock of its own.
type Bucket struct {
	mu     sync.Mutex // guards what follows
	rate   Rate
	tokens rate.Limiter
	credit int   // what was returned; never more than there is room for
	last   int64 // the latest time that was asked about, in Unix nanoseconds: a clock that goes back doesn't count a time twice
}

// NewBucket returns a full bucket.
func NewBucket(r Rate, now time.Time) *Bucket {
	b := new(Bucket)
	b.Set(now, r)
	return b
}

// Set gives the bucket another rate. What is owed stays owed, and what is in it stays, as far as the new burst allows; a bucket without a limit was full.
func (b *Bucket) Set(now time.Time, r Rate) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now = b.at(now)
	was := b.rate
	b.rate = r
	if r.N == 0 {
		return
	}
	b.tokens.SetBurstAt(now, r.burst())
	b.tokens.SetLimitAt(now, rate.Limit(r.perSecond()))
	if was.N == 0 { // it was full, whatever the Limiter has from the rate before
		b.credit = int(math.Ceil(float64(r.burst()) - b.tokens.TokensAt(now)))
	}
	b.trim(now)
}

// Rate returns the bucket's rate.
func (b *Bucket) Rate() Rate {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rate
}

// Wait returns how long it is until n may be taken, if nobody else takes any: 0: now. More than the burst may be taken when the bucket is full.
func (b *Bucket) Wait(now time.Time, n int) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rate.N == 0 {
		return 0
	}
	now = b.at(now)
	b.trim(now)
	missing := float64(min(n, b.rate.burst())) - b.level(now)
	if missing <= tolerance {
		return 0
	}
	d := math.Ceil(missing / b.rate.perSecond() * float64(time.Second))
	if d >= math.MaxInt64 {
		return math.MaxInt64
	}
	return time.Duration(d)
}

// tolerance is what the arithmetic may be wrong by: a wait is a whole number of nanoseconds.
const tolerance = 1e-6

// Take takes n, whatever is there: the bucket may owe something afterwards.
func (b *Bucket) Take(now time.Time, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rate.N == 0 || n <= 0 {
		return
	}
	now = b.at(now)
	b.trim(now)
	c := min(b.credit, n)
	b.credit -= c
	for n -= c; n > 0; {
		piece := min(n, b.rate.burst())
		b.tokens.ReserveN(now, piece)
		n -= piece
	}
}

// Return gives back what was taken and not used. The bucket never holds more than its burst.
func (b *Bucket) Return(now time.Time, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rate.N == 0 || n <= 0 {
		return
	}
	now = b.at(now)
	b.credit += n
	b.trim(now)
}

// Level returns what is in the bucket; it is negative where the bucket owes something, and +Inf where there is no limit.
func (b *Bucket) Level(now time.Time) float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rate.N == 0 {
		return math.Inf(1)
	}
	now = b.at(now)
	b.trim(now)
	return b.level(now)
}

// Full reports whether nothing is missing: the bucket is as good as a new one.
func (b *Bucket) Full(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rate.N == 0 {
		return true
	}
	now = b.at(now)
	b.trim(now)
	return b.level(now) >= float64(b.rate.burst())-tolerance
}

// The methods that follow need the lock.

// at is now, or the latest time there was.
func (b *Bucket) at(now time.Time) time.Time {
	t := now.UnixNano()
	if t < b.last {
		return time.Unix(0, b.last)
	}
	b.last = t
	return now
}

func (b *Bucket) level(now time.Time) float64 { return b.tokens.TokensAt(now) + float64(b.credit) }

// trim cuts the credit to what there is room for.
func (b *Bucket) trim(now time.Time) {
	if b.credit > 0 {
		room := float64(b.rate.burst()) - b.tokens.TokensAt(now)
		b.credit = min(b.credit, int(math.Ceil(max(room, 0)-tolerance)))
	}
}
