package throttle

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Bucket is what is left of a Rate. It is safe for concurrent use; who needs that nobody takes what Wait has just said is there holds a lock of its own.
//
// Most buckets are full most of the time, so that must cost little: what is certainly there is not looked for (sure), and what was last taken of a full bucket, and has come back when somebody takes from it again, the Limiter never
// hears of (home.late).
//
// All times are to be of one clock, time.Now's best. One that lies before another that something was taken or returned at counts as that one: so no stretch of time is counted twice.
type Bucket struct {
	home   *home
	tokens rate.Limiter // may owe something
	credit float64      // what was returned, or was there from the beginning; never more than there is room for
	sure   atomic.Int32 // whole tokens that are there for certain, from home.seen on, until somebody takes them; or forgotten. Written under the lock
	// Of a Keyed's:
	hash uint32
	key  string
	next *Bucket // in its chain
}

// forgotten is the sure of a bucket that was full, and that its Keyed knows no more.
const forgotten = -1

// home is what a Bucket has in common with the others of its Keyed, or its own: a million of them are to be small.
type home struct {
	mu    sync.Mutex // guards what follows, and all of the buckets
	rate  Rate
	burst float64
	each  float64   // nanoseconds in which one comes
	seen  time.Time // the latest time that something was changed at
	began time.Time // since when there has been a rate
	keyed *Keyed    // nil: there is one bucket alone
	late  int       // what was taken at seen, of a bucket that was full, and the Limiter was not told of; of one alone
}

// tolerance is what the arithmetic may be wrong by, in tokens. What is taken too early for it is owed, so it doesn't add up.
const tolerance = 1e-9

// NewBucket returns a full bucket.
func NewBucket(r Rate, now time.Time) *Bucket {
	b := &Bucket{home: &home{}}
	b.Set(now, r)
	return b
}

// Set gives the bucket another rate. What is owed stays owed, and what is in it stays, as far as the new burst allows. While it has no limit it goes on being filled by the rate that it had, so that to take a limit away and to put it
// back brings nothing. The buckets of a Keyed all have its rate, and this sets it.
func (b *Bucket) Set(now time.Time, r Rate) {
	h := b.home
	if h.keyed != nil {
		h.keyed.Set(now, r)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	b.tell()
	now = h.advance(now)
	h.set(now, r)
	b.set(now)
}

// Rate returns the bucket's rate.
func (b *Bucket) Rate() Rate {
	b.home.mu.Lock()
	defer b.home.mu.Unlock()
	return b.home.rate
}

// Wait returns how long it is until n may be taken, if nobody else takes any: 0: now. More than the burst may be taken when the bucket is full. It changes nothing.
func (b *Bucket) Wait(now time.Time, n int) time.Duration {
	if n <= int(b.sure.Load()) {
		return 0
	}
	b.home.mu.Lock()
	defer b.home.mu.Unlock()
	return b.present(now).wait(now, n)
}

// Take takes n, whatever is there: the bucket may owe something afterwards.
func (b *Bucket) Take(now time.Time, n int) {
	b.home.mu.Lock()
	defer b.home.mu.Unlock()
	b.present(now).take(now, n)
}

// Return gives back what was taken and not used. The bucket never holds more than its burst. What is returned to the one that a Keyed's keys share where there are too many is lost: it may have been taken from another.
func (b *Bucket) Return(now time.Time, n int) {
	b.home.mu.Lock()
	defer b.home.mu.Unlock()
	b.present(now).give(now, n)
}

// Undo is Return for what Take was called for at a time, where the rate may be another now: it gives back nothing where there was none then, as nothing was taken.
func (b *Bucket) Undo(now, taken time.Time, n int) {
	b.home.mu.Lock()
	defer b.home.mu.Unlock()
	if !taken.Before(b.home.began) {
		b.present(now).give(now, n)
	}
}

// Level returns what is in the bucket; it is negative where the bucket owes something, and +Inf where there is no limit.
func (b *Bucket) Level(now time.Time) float64 {
	h := b.home
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.rate.N == 0 {
		return math.Inf(1)
	}
	return b.present(now).level(h.at(now))
}

// Full reports whether nothing is missing: the bucket is as good as a new one.
func (b *Bucket) Full(now time.Time) bool {
	h := b.home
	h.mu.Lock()
	defer h.mu.Unlock()
	return b.present(now).full(h.at(now))
}

// The methods that follow need the lock.

// at is now, or the latest time there was. Times are compared as they are, and not as Unix times: the clock on the wall may be set back.
func (h *home) at(now time.Time) time.Time {
	if now.Before(h.seen) {
		return h.seen
	}
	return now
}

// advance is at, for who changes something.
func (h *home) advance(now time.Time) time.Time {
	h.seen = h.at(now)
	return h.seen
}

func (h *home) set(now time.Time, r Rate) {
	if h.rate.N == 0 {
		h.began = now
	}
	h.rate, h.burst = r, float64(r.burst())
	h.each = float64(time.Second) / r.perSecond()
}

// set makes the bucket go by the rate of its home.
func (b *Bucket) set(now time.Time) {
	b.sure.Store(0)
	if b.home.rate.N == 0 {
		return
	}
	fresh := b.tokens.Limit() == 0
	b.credit = min(b.credit, float64(b.tokens.Burst())-b.tokens.TokensAt(now))
	b.tokens.SetBurstAt(now, int(b.home.burst))
	b.tokens.SetLimitAt(now, rate.Limit(b.home.rate.perSecond()))
	if fresh {
		b.credit = b.home.burst
	}
	b.trim(now)
}

// present is the bucket itself, and where it was forgotten the one that its key has now: whoever kept it takes from the same one as all the others.
func (b *Bucket) present(now time.Time) *Bucket {
	if b.sure.Load() == forgotten {
		return b.home.keyed.get(b.home.at(now), b.key)
	}
	return b
}

func (b *Bucket) wait(now time.Time, n int) time.Duration {
	h := b.home
	if h.rate.N == 0 || n <= 0 {
		return 0
	}
	at := h.at(now)
	want := min(float64(n), h.burst) - tolerance
	missing := want - b.level(at)
	if missing <= 0 {
		return 0
	}
	wait := (missing + tolerance) / h.rate.perSecond() * float64(time.Second)
	wait = math.Ceil(wait - wait*1e-15 - 1e-3) // what is a whole number but for the last bits is one
	if wait >= math.MaxInt64/2 {               // more than 146 years
		return math.MaxInt64
	}
	d := time.Duration(max(wait, 1))
	for step := time.Duration(1); b.level(at.Add(d)) < want; step *= 2 { // of a large sum, the last bits are missing
		d += step
	}
	return d + max(at.Sub(now), 0)
}

func (b *Bucket) take(now time.Time, n int) {
	h := b.home
	if h.rate.N == 0 || n <= 0 {
		return
	}
	now = h.at(now)
	sure, burst := int(b.sure.Load()), int(h.burst)
	if n > sure && n < burst || n <= burst && h.keyed == nil && (h.late > 0 || n > sure) { // where there is much, a look does for many
		level := b.level(now)
		if h.keyed == nil && level >= h.burst {
			h.seen, h.late = now, n
			b.sure.Store(int32(burst - n)) // 1e9 at the most, as a burst is
			return
		}
		sure = int(level)
	}
	b.tell()
	h.seen = now
	b.sure.Store(int32(max(sure-n, 0)))
	b.trim(now)
	b.spend(now, n)
}

// give is Return.
func (b *Bucket) give(now time.Time, n int) {
	h := b.home
	if h.rate.N == 0 || n <= 0 || h.keyed != nil && b == h.keyed.crowd {
		return
	}
	b.tell()
	now = h.advance(now)
	b.credit += float64(n)
	b.trim(now)
}

// level is what is there. As time goes by the Limiter's part of it only grows, so what trim will cut the credit to in the end is known at any time.
func (b *Bucket) level(now time.Time) float64 {
	if h := b.home; h.late > 0 {
		if float64(now.Sub(h.seen)) >= float64(h.late)*h.each {
			return h.burst
		}
		b.tell()
	}
	return min(b.tokens.TokensAt(now)+b.credit, b.home.burst)
}

func (b *Bucket) full(now time.Time) bool {
	return b.home.rate.N == 0 || b.level(now) >= b.home.burst-tolerance
}

// tell has the Limiter hear of what it was not told.
func (b *Bucket) tell() {
	h := b.home
	if n := h.late; n > 0 {
		h.late = 0
		b.trim(h.seen)
		b.spend(h.seen, n)
	}
}

// spend takes n out of the Limiter.
func (b *Bucket) spend(now time.Time, n int) {
	burst := int(b.home.burst)
	if n <= burst {
		b.tokens.ReserveN(now, n)
		return
	}
	b.tokens.SetBurstAt(now, n) // ReserveN refuses more than the burst; a piece at a time, 1e9 under "1/s" would take for ever
	b.tokens.ReserveN(now, n)
	b.tokens.SetBurstAt(now, burst)
}

// trim cuts the credit to what there is room for.
func (b *Bucket) trim(now time.Time) {
	if b.credit > 0 {
		b.credit = max(min(b.credit, b.home.burst-b.tokens.TokensAt(now)), 0)
	}
}
