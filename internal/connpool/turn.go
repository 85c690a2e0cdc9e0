package connpool

import (
	"math/rand/v2"
	"time"
)

// Turn is the right to use one slot of a lane, and so at most one connection at
// a time. It belongs to one goroutine, and must be ended exactly once, with Put
// or Drop. To end it again does nothing, and is reported.
type Turn[C any] struct{ turn[C] }

// turn is a turn that may still be copied, by the one who grants it and the one
// who waits for it.
type turn[C any] struct {
	pool    *Pool[C]
	lane    *lane[C]
	conn    *conn[C] // reserved for the turn when it was granted, or held by it
	holds   bool     // conn was handed out or adopted
	ended   bool
	rides   bool   // conn came with what was begun for the turn while it was a rider
	checks  bool   // granted by TryIdle
	once    bool   // granted by a lane that was Once
	fresh   bool   // a connection was part of the fare
	dials   bool   // and is opened
	spent   bool   // the fare is not given back
	epoch   uint64 // the lane's, if once
	flushes uint64 // the lane's
	fare    Fare   // paid; nil: there was none
}

// Lane returns the number of the lane.
func (t *Turn[C]) Lane() int { return t.lane.number }

// Held returns the connection that the turn holds: handed out by Conn, or
// adopted.
func (t *Turn[C]) Held() (c C, ok bool) {
	if t.holds {
		return t.conn.c, true
	}
	return c, false
}

// Conn returns the connection that the turn holds or else hands out the newest
// idle connection of the lane that is alive, which the turn holds from then
// on. Those that are dead or out of date are closed on the way. A turn that
// Rides gets the connection it rode on as it is.
func (t *Turn[C]) Conn() (c C, ok bool) {
	p := t.pool
	for !t.holds {
		why := ReasonDead
		switch {
		case t.conn == nil:
		case t.conn.taken: // by this turn, when it was a rider: what was begun goes on
			t.conn.taken, t.holds = false, true
			t.lane.reused.Add(1)
			continue
		case p.now() >= t.conn.until:
			why = t.conn.why
		case p.cfg.Alive == nil || p.cfg.Alive(t.conn.c):
			t.holds = true
			if !t.checks {
				t.lane.reused.Add(1)
			}
			continue
		}
		p.mu.Lock()
		if t.conn != nil {
			t.conn.atOnce = true
			p.shutConn(t.conn, why)
			t.conn = nil
		}
		if !t.ended {
			t.conn = t.lane.pop()
		}
		p.unlock(t.lane)
		if t.conn == nil {
			return c, false
		}
	}
	return t.conn.c, true
}

// Adopt gives the turn a connection that the caller has just opened. If it
// holds one already, the pool closes that one, and its rider gets its place in
// the queue back; if an idle connection would now be one too many, the pool
// closes the oldest. If the pool was closed meanwhile, Config.Abort is called at
// once. An ended turn adopts nothing: the connection is closed.
func (t *Turn[C]) Adopt(c C) {
	p, l := t.pool, t.lane
	now := p.now()
	p.mu.Lock()
	if t.ended {
		p.unlock(nil)
		if p.cfg.Close != nil {
			p.cfg.Close(c, ReasonBroken)
		}
		return
	}
	t.rides, t.checks = false, false
	switch {
	case t.holds:
		p.alight(t.conn)
		p.shutConn(t.conn, ReasonTrimmed)
	case t.conn != nil:
		p.park(t.conn, t.flushes, now)
	}
	t.conn = &conn[C]{c: c, lane: l, born: now, jitter: 0.9 + 0.2*rand.Float64()}
	t.holds = true
	p.conns[t.conn] = struct{}{}
	l.opened++
	closed := p.closed
	p.unlock(l)
	if closed && p.cfg.Abort != nil {
		p.cfg.Abort(c)
	}
}

// Discard says that the held connection is broken; the caller closes it. The
// turn goes on without one, and the rider, if there is one, gets its place in
// the queue back. If the turn holds none, Discard does nothing.
func (t *Turn[C]) Discard() { t.DiscardFor(ReasonBroken) }

// DiscardFor is Discard for another reason than that the connection is broken.
func (t *Turn[C]) DiscardFor(why Reason) {
	t.pool.mu.Lock()
	t.discard(why)
	t.pool.unlock(nil)
}

// Put ends the turn. The connection it holds has been used that many times more
// and becomes idle, or is closed if a limit, the state of the lane or the end of
// the pool says so. If it has a rider it is not made idle but handed to the
// rider, or closed, and the rider gets its place in the queue back. Put reports
// false if the turn had ended already.
func (t *Turn[C]) Put(uses int) bool {
	p := t.pool
	now := p.now()
	p.mu.Lock()
	if t.ended {
		p.unlock(nil)
		return false
	}
	t.lane.crowded()
	if t.holds {
		t.conn.uses += max(uses, 0)
		if !t.checks || uses > 0 {
			t.conn.since = now
		}
	}
	if !t.handOver(now) {
		t.end(now)
	}
	p.unlock(t.lane)
	return true
}

// Drop ends the turn. The connection it holds, if any, is the caller's to close
// and not used again, and its rider gets its place in the queue back. Drop
// reports false if the turn had ended already.
func (t *Turn[C]) Drop() bool { return t.DropFor(ReasonBroken) }

// DropFor is Drop for another reason than that the connection is broken.
func (t *Turn[C]) DropFor(why Reason) bool {
	p := t.pool
	now := p.now()
	p.mu.Lock()
	if t.ended {
		p.unlock(nil)
		return false
	}
	t.lane.crowded()
	t.discard(why)
	t.end(now)
	p.unlock(t.lane)
	return true
}

// giveBack ends a turn that nobody has seen, as if it had not been granted.
func (t *turn[C]) giveBack() {
	p := t.pool
	now := p.now()
	p.mu.Lock()
	t.lane.crowded()
	if t.once && t.epoch == t.lane.epoch {
		t.lane.state = Once
	}
	t.end(now)
	p.unlock(t.lane)
}

// The methods that follow need the lock.

// discard forgets the held connection.
func (t *turn[C]) discard(why Reason) {
	if t.holds {
		t.pool.alight(t.conn)
		t.pool.forget(t.conn, why)
		t.conn, t.holds, t.rides = nil, false, false
	}
}

// crowded notes how many turns there are, before one ends: a rider that comes back then has its slot a moment earlier, and is not one more.
func (l *lane[C]) crowded() { l.mostHeld = max(l.mostHeld, l.held) }

// end gives the slot back, and the connection if there is one.
func (t *turn[C]) end(now time.Duration) {
	if t.conn != nil {
		t.pool.alight(t.conn) // before the slot is free, see comeBack
		t.pool.park(t.conn, t.flushes, now)
	}
	t.lane.held--
	t.conn, t.holds, t.ended = nil, false, true
	if t.fare != nil {
		t.payOff(now)
	}
}
