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
	used    time.Time // of the last tick that saw more of them, or some under way; zero: there was none
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
	uses, under, now := p.gate.total.Load(), p.gate.count(), time.Now()
	k.mu.Lock()
	if k.stopped || k.running {
		k.mu.Unlock()
		return
	}
	k.running, k.again, k.due = true, false, time.Time{}
	if uses != k.uses || under > 0 {
		k.uses, k.used = uses, now
	}
	used := !k.used.IsZero() && now.Sub(k.used) < restful
	k.mu.Unlock()
	busy := false
	if !p.gate.run(p.ctx, func() { busy = p.tend(now, used) }) {
		return
	}
	if !k.goesOn(p, uses, used || busy) {
		p.gate.run(p.ctx, p.rest)
	}
}

// goesOn sets the timer for the next tick, unless the clock is to stop: then it reports false.
func (k *keeper) goesOn(p *Pool, uses uint64, wanted bool) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.running = false
	if k.stopped {
		return true
	}
	next := beat
	switch {
	case k.again:
		next = soon
	case !wanted:
		k.awake.Store(false)
		if p.gate.total.Load() == uses { // else one came that saw us awake
			return false
		}
		k.awake.Store(true)
	}
	k.due = time.Now().Add(next)
	k.timer.Reset(next)
	return true
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

// tend is one beat of the pool: slow starts, panics, checks, weights, names. It is told whether the pool is used, and reports whether there is something under way that wants the next
// beat all the same.
func (p *Pool) tend(now time.Time, used bool) (busy bool) {
	f := p.fleet.Load()
	for _, t := range f.tiers {
		t.alarm(p, f.health.Panic)
		t.compare(now, f.slows)
		for _, r := range t.relays {
			r.slacken(now)
			if r.rises(now) {
				busy = true
			}
		}
	}
	for _, g := range f.groups {
		for _, t := range g.tiers {
			t.strains()
		}
	}
	if used {
		p.checkDue(f, now)
	}
	p.reweigh(f)
	f.refresh(now)
	p.stoke(f, now)
	p.budget.turnOver(now)
	return busy
}
