package smtplb

import (
	"sync"
	"sync/atomic"
	"time"
)

// This file is the pool's clockwork. New starts nothing, and a pool that nobody uses does nothing: the first send starts the clock, and it stops when there was
// no send for a while.

const (
	beat    = time.Second            // between two looks at the clock
	soon    = 100 * time.Millisecond // changes of weights are gathered for that long
	restful = 5 * time.Minute        // without a send, after which the clock stops
)

// keeper calls Pool.tick, in one goroutine at a time: every second while the pool is in use, and soon after it was asked to.
type keeper struct {
	awake atomic.Bool // the timer is set, or tick runs

	mu      sync.Mutex // guards the following fields; held to set the timer only
	stopped bool
	timer   *time.Timer
	due     time.Time // of the timer
	running bool
	again   bool      // somebody asked while it ran
	uses    uint64    // sends admitted by the last tick
	used    time.Time // of the last tick that saw more of them
}

// wake starts the clock, if it stands. It costs a send one load.
func (p *Pool) wake() {
	if !p.keeper.awake.Load() {
		p.keeper.within(p, beat)
	}
}

// attend has tick called soon: a weight or a state has changed.
func (p *Pool) attend() { p.keeper.within(p, soon) }

// within has tick called in d at the latest.
func (k *keeper) within(p *Pool, d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.awake.Store(true)
	switch at := time.Now().Add(d); {
	case k.stopped:
	case k.running:
		k.again = k.again || d < beat
	case k.timer == nil:
		k.due = at
		k.timer = time.AfterFunc(d, p.tick)
	case k.due.IsZero() || at.Before(k.due):
		k.due = at
		k.timer.Reset(d)
	}
}

// tick does what there is to do now. It is the timer's.
func (p *Pool) tick() {
	k := &p.keeper
	k.mu.Lock()
	if k.stopped || k.running {
		k.mu.Unlock()
		return
	}
	k.running, k.again, k.due = true, false, time.Time{}
	k.mu.Unlock()
	busy := false
	if !p.gate.run(p.ctx, func() { busy = p.tend(time.Now()) }) {
		return
	}

	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.running = false
	if k.stopped {
		return
	}
	uses := p.gate.total.Load()
	if uses != k.uses || busy || k.used.IsZero() {
		k.uses, k.used = uses, now
	}
	next := beat
	switch {
	case k.again:
		next = soon
	case now.Sub(k.used) >= restful:
		k.awake.Store(false)
		k.used = time.Time{}
		if p.gate.total.Load() == uses { // else one came that saw us awake
			return
		}
		k.awake.Store(true)
	}
	k.due = now.Add(next)
	k.timer.Reset(next)
}

// stop ends it: tick is not called any more, but one that runs may go on.
func (k *keeper) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stopped = true
	if k.timer != nil {
		k.timer.Stop()
	}
}

// tend is one beat of the pool: weights, checks, discovery. It reports whether there is something under way that wants the next beat whether there are sends or not.
func (p *Pool) tend(now time.Time) (busy bool) {
	f := p.fleet.Load()
	f.reweigh()
	f.refresh(now)
	p.budget.turnOver(now)
	return false
}
