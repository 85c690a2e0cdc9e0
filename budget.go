package smtplb

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// This file bounds what a pool does for its messages beyond their first attempts. Where everything is down, retries that nobody bounds multiply the load on what is
// just coming back; so further attempts are paid for by the first ones.

const (
	defaultBudget = 0.2              // tokens for each first attempt
	budgetWindow  = 60 * time.Second // after which what wasn't spent lapses
	budgetSlots   = 12               // in which the window moves on
	leastReserve  = 10               // tokens
	oneToken      = 1000             // in the unit of the account
)

// budget is the account of a pool's further attempts, see Retry.Budget. A send whose first attempt does pays one atomic addition.
//
// What is spent is never more than the reserve and what all first attempts brought in together: the reserve is there once, at New, and comes back out of later first
// attempts only.
type budget struct {
	share    atomic.Int64 // what a first attempt brings in; negative: there is no budget
	income   atomic.Int64 // since New
	refusals atomic.Uint64

	mu      sync.Mutex // guards the following fields; held for arithmetic only
	reserve int64
	left    int64 // as of income being seen
	seen    int64
	slot    int64              // the number of the present one
	past    [budgetSlots]int64 // income at the start of the present slot, of the one before, …
}

// configure sets the share of first attempts and the tokens in reserve.
func (b *budget) configure(share float64, reserve int) {
	if share == 0 {
		share = defaultBudget
	}
	each := int64(math.Ceil(min(share, 1000) * oneToken))
	if share < 0 {
		each = -1
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.settleLocked(time.Now())
	b.left += int64(reserve)*oneToken - b.reserve // below zero too: a fleet that shrinks and grows again must not earn by it
	b.reserve = int64(reserve) * oneToken
	b.share.Store(each)
}

// first brings in what a first attempt is worth.
func (b *budget) first() {
	if each := b.share.Load(); each > 0 {
		b.income.Add(each)
	}
}

// spend takes a token, and reports whether there was one.
func (b *budget) spend() bool {
	if b.share.Load() < 0 {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.settleLocked(time.Now())
	if b.left < oneToken {
		return false
	}
	b.left -= oneToken
	return true
}

// tokens returns how many are left; +Inf without a budget.
func (b *budget) tokens() float64 {
	if b.share.Load() < 0 {
		return math.Inf(1)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.settleLocked(time.Now())
	return float64(max(b.left, 0)) / oneToken
}

// turnOver lets the window move on. It is called now and then, at best once in each slot.
func (b *budget) turnOver(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.settleLocked(now)
}

// settleLocked brings the account up to date: what came in, and what has lapsed.
func (b *budget) settleLocked(now time.Time) {
	income := b.income.Load()
	b.left += income - b.seen
	b.seen = income
	slot := now.UnixNano() / int64(budgetWindow/budgetSlots)
	if n := slot - b.slot; n > 0 {
		n = min(n, budgetSlots)
		copy(b.past[n:], b.past[:])
		for i := range n {
			b.past[i] = income
		}
		b.slot = slot
	}
	b.left = min(b.left, b.reserve+income-b.past[budgetSlots-1])
}

// reserve is the fleet's: what may be spent at once, when every connection that there is breaks at the same time.
func (f *fleet) reserve() int {
	sum := 0
	for _, r := range f.relays {
		if r.limits.Max > 0 {
			sum = min(sum+r.limits.Max, 1_000_000)
		}
	}
	return max(sum, leastReserve)
}
