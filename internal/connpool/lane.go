package connpool

import "sync/atomic"

// memberBits are the low bits of a lane's number, which are its place.
const memberBits = 16

// Member returns what stands for a lane in the bitset of a [Request]: the place
// of the lane among the pool's lanes. It is the number itself of a lane whose place
// no other lane had before.
func Member(lane int) int { return lane & (1<<memberBits - 1) }

// AddLane adds a lane and returns its number; the first is 0, the next 1. A lane
// that was removed and is quite gone, and known to be since the last Rouse, leaves
// its place to the next that is added, so that the pool does not grow with every lane
// there ever was; the number is a new one all the same. There is room for 65,536
// lanes at a time.
func (p *Pool[C]) AddLane(limits Limits, s State) int {
	p.mu.Lock()
	old := *p.lanes.Load()
	l := &lane[C]{number: len(old), state: s, limits: limits.counts(), opens: never}
	all := append(old, l) // in the same memory, if there is room: who reads old doesn't look so far
	for i, gone := range old {
		if p.gone == 0 { // the usual case: there may be thousands of lanes
			break
		}
		if gone.removed && gone.until != p.changes.Load() && gone.held+gone.checking+gone.leaving+gone.waiting == 0 {
			l.number = gone.number + 1<<memberBits
			if l.number < 0 { // an int of 32 bits, and the place had 32,768 lanes
				l.number = i
			}
			p.gone--
			all = append(old[:0:0], old...)
			all[i] = l
			break
		}
	}
	if len(all) > 1<<memberBits {
		p.unlock(nil)
		panic("connpool: too many lanes")
	}
	p.lanes.Store(&all)
	p.unlock(l)
	return l.number
}

// RemoveLane ends a lane. Its idle connections are closed, with ReasonRemoved.
// Turns that run are not touched; their connections are closed for that reason
// when they are put back, and nobody rides on them any more. The waiters that no
// lane can serve any more fail with ErrNoLane.
//
// From then on the number is good for Stats and Held, until another lane gets
// the place, and everything else that is done with it does nothing.
func (p *Pool[C]) RemoveLane(lane int) {
	l := p.lane(lane)
	p.mu.Lock()
	if l.removed {
		p.unlock(nil)
		return
	}
	l.removed, l.until = true, p.changes.Load()
	p.gone++
	l.state = Down
	l.epoch++
	p.closeIdle(l, ReasonRemoved)
	p.failStranded(l)
	p.unlock(l)
}

// SetState sets the state of a lane. Unless it is Up, its idle connections are
// closed; when it is Down, the waiters that no lane can serve any more fail
// with ErrNoLane. Turns that run are not touched.
func (p *Pool[C]) SetState(lane int, s State) { p.setState(lane, s, ReasonDown) }

// SetLimits sets the limits of a lane. Idle connections that are too many, too
// old or used up by the new limits are closed; turns that run are not touched.
func (p *Pool[C]) SetLimits(lane int, limits Limits) {
	now := p.now()
	l := p.lane(lane)
	p.mu.Lock()
	l.limits = limits.counts()
	p.sweep(l, now)
	p.unlock(l)
}

// Flush closes the connections of a lane without failing anybody: the idle
// ones now, with ReasonDrained, and those of turns that were granted before when
// they are put back.
func (p *Pool[C]) Flush(lane int) {
	l := p.lane(lane)
	p.mu.Lock()
	l.flushes++
	p.closeIdle(l, ReasonDrained)
	p.unlock(l)
}

// Recheck closes those idle connections of a lane that are no longer alive.
// While they are being checked they are not handed out and occupy their slots.
func (p *Pool[C]) Recheck(lane int) {
	if p.cfg.Alive == nil {
		return
	}
	l := p.lane(lane)
	p.mu.Lock()
	taken, flushes := l.idle, l.flushes
	l.idle = nil
	l.checking += len(taken)
	p.unlock(l)

	alive := make([]bool, len(taken))
	for i, c := range taken {
		alive[i] = p.cfg.Alive(c.c)
	}

	now := p.now()
	p.mu.Lock()
	l.checking -= len(taken)
	for i, c := range taken {
		if alive[i] {
			p.park(c, flushes, now)
		} else {
			p.shutConn(c, ReasonDead)
		}
	}
	p.unlock(l)
}

// Changes returns a number that is another one after each Rouse; it is never 0. A
// caller that chooses lanes to wait for reads it before it looks at what there is
// to choose from, see [Request].
func (p *Pool[C]) Changes() uint64 { return p.changes.Load() }

// Rouse has everybody who is in the queue look again: their calls of Wait fail
// with ErrChanged. Whoever waits again with the same [Request], for other lanes
// maybe, has their place back. It is to be called when there are lanes that they
// would have named, had they known them, or when some were removed, and after callers
// can see that it is so: those who look now must not find a removed one. Riders whose patience lasts are not in the
// queue; they ride on, and are told when they come back to it, if they do.
//
// It costs O(n) steps under the lock, and all of them come back, so it is for
// changes that somebody made, not for each message.
func (p *Pool[C]) Rouse() {
	p.mu.Lock()
	p.changes.Add(1)
	for _, l := range *p.lanes.Load() {
		p.failQueue(l, ErrChanged)
	}
	p.unlock(nil)
}

// Free reports, without the lock, whether Try would grant a turn, or would grant
// it to bulk: the lane is Up (or Once) and has a free slot that nobody waits for
// who could have it.
func (p *Pool[C]) Free(lane int, bulk bool) bool {
	return p.lane(lane).mirror.Load()&mirrorBit(bulk) != 0
}

func mirrorBit(bulk bool) uint64 {
	if bulk {
		return mirrorBulk
	}
	return mirrorFree
}

// Held returns, without the lock, the number of turns of a lane.
func (p *Pool[C]) Held(lane int) int { return int(p.lane(lane).mirror.Load() >> mirrorHeld) }

// Gauge returns where what Held reads stands: the bits of the word from shift on. It is
// for those who read it so often that they don't want to look for the lane each
// time. The word belongs to the lane, and says 0 for ever once that was removed and its
// turns have ended, whoever has its place then.
func (p *Pool[C]) Gauge(lane int) (word *atomic.Uint64, shift uint) {
	return &p.lane(lane).mirror, mirrorHeld
}

// Try grants a turn of the lane if it can be had now, without overtaking a
// waiter who could have it. Bulk doesn't get the slots that the lane keeps back.
func (p *Pool[C]) Try(lane int, bulk bool) (t *Turn[C], ok bool) {
	// Just small enough to be inlined, so that a turn that does not escape from
	// the caller is not allocated. (Turns are not recycled, so that ending one
	// twice is always found out.)
	g, ok := p.try(lane, bulk)
	if ok {
		t = &Turn[C]{g}
	}
	return
}

func (p *Pool[C]) try(lane int, bulk bool) (t turn[C], ok bool) {
	l := p.lane(lane)
	if l.mirror.Load()&mirrorBit(bulk) == 0 {
		return t, false
	}
	p.mu.Lock()
	if p.paying.Load() > 0 {
		p.catchUp()
	}
	if ok = p.grantable(l, bulk); ok {
		t = p.grant(l, nil)
	}
	p.unlock(l)
	return t, ok
}

// TryIdle grants a turn of the lane if there is an idle connection and if bulk
// could have one, so that it is in nobody's way: a turn to check on the other end
// without opening anything. (Conn hands out no connection all the same when
// those that are idle turn out to be dead. Then there is nothing to check, and the
// turn is to be put back as it is.)
//
// To check a connection is not to use it. Nothing is counted in Reused, nobody
// boards, and after Put(0) it has been idle for as long as if it had not been
// touched: a connection is closed after MaxIdleTime without a message, however
// often it is checked. If it was used after all, Put(1) says so.
func (p *Pool[C]) TryIdle(lane int) (t *Turn[C], ok bool) {
	g, ok := p.tryIdle(lane)
	if ok {
		t = &Turn[C]{g}
	}
	return t, ok
}

func (p *Pool[C]) tryIdle(lane int) (t turn[C], ok bool) {
	l := p.lane(lane)
	p.mu.Lock()
	if p.paying.Load() > 0 {
		p.catchUp()
	}
	if ok = len(l.idle) > 0 && p.grantable(l, true); ok {
		t = p.grant(l, nil)
		t.checks = true
	}
	p.unlock(l)
	return t, ok
}

// LaneStats describes a lane at one moment, and what happened in it so far.
type LaneStats struct {
	State                 State
	Held                  int                // turns
	Idle                  int                // idle connections; one reserved for a turn is not idle
	Waiting               int                // waiters that name the lane, also while they ride on a connection of any lane
	MostHeld, MostWaiting int                // Held and Waiting at their highest so far
	Opened                uint64             // connections adopted
	Reused                uint64             // connections handed out by Turn.Conn
	Closed                [numReasons]uint64 // connections that left, by Reason
}

// Stats returns the state and the counts of a lane.
func (p *Pool[C]) Stats(lane int) LaneStats {
	l := p.lane(lane)
	p.mu.Lock()
	defer p.mu.Unlock() // nothing was changed
	return LaneStats{
		State:       l.state,
		Held:        l.held,
		Idle:        len(l.idle) + l.checking,
		Waiting:     l.waiting,
		MostHeld:    max(l.mostHeld, l.held),
		MostWaiting: l.mostWait,
		Opened:      l.opened,
		Reused:      l.reused.Load(),
		Closed:      l.closed,
	}
}

// Waiting returns the number of waiters, those that ride included.
func (p *Pool[C]) Waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock() // nothing was changed
	return p.waiting
}

// lane returns a lane by its number; if it was removed and its place given away,
// one that is removed and has nothing. It needs no lock.
func (p *Pool[C]) lane(number int) *lane[C] {
	if l := (*p.lanes.Load())[Member(number)]; l.number == number {
		return l
	}
	return &p.nowhere
}
