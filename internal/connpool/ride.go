package connpool

import "time"

// A Rider is what a waiter may be taken along with, see [Turn.Board].
type Rider struct {
	// Load is what the turn that takes the waiter along is given. It means nothing
	// to the pool.
	Load any
	// Lent is set by each call of Wait when it returns: a turn has taken Load, and
	// may read it still, because the waiter did not wait for the end of the ride.
	// The owner of Load must then neither change it nor use it again. If Lent is
	// false, whoever was given Load is done with it.
	Lent bool
}

// Board makes the first waiter of the lane that may have the turn's slot the rider
// of the connection that the turn holds, and returns its Load. The holder is expected to begin the rider's
// work on the connection behind its own now, and then to end the turn as ever:
// Put hands the connection to the rider if it may still be used, and the slot
// with it, so a chain of riders can go on over one connection until a limit
// ends it. If the holder finds that it has nothing to begin, it says so by
// Alight. The rider can leave at any time; the turn is not told, and the
// connection is closed when the turn ends.
//
// uses is how often the turn has used the connection, including the use that is
// about to end, as Put will be told.
//
// Bulk may have the slot only while the turns of the lane, this one included, leave
// alone what is reserved (Limits.Reserved); whether this turn itself is bulk makes no
// difference. So a chain of bulk riders can't hold on to a slot that would be kept
// back, or be an urgent waiter's, if it were put back. What counts is the moment of
// boarding: a rider keeps its ride when the reserve is taken into use meanwhile.
//
// A rider that pays a fare (Request.Fare) pays when it boards. It has that back when the
// ride breaks, and else it is what its turn has paid. The first waiter is here the first
// who can pay for a turn with a connection.
//
// Nobody boards, and ok is false, when that waiter offers no Rider or rides
// already (to let others pass would starve it); when Put could not hand the
// connection on, as things are: by the state, Max, MaxUses and MaxAge of the
// lane, by Flush and by Close; when a Once lane granted the turn, as its
// connection is the proof that is awaited, or TryIdle; when somebody has boarded
// before; and when the turn holds no connection.
func (t *Turn[C]) Board(uses int) (load any, ok bool) {
	p, l := t.pool, t.lane
	if l.mirror.Load()&mirrorBulk != 0 && p.paying.Load() == 0 { // without the lock: nobody waits where even bulk could have a turn, unless he can't pay for it, or for a connection
		return nil, false
	}
	now := p.now()
	p.mu.Lock()
	opens := l.opens
	w := p.first(l, l.held <= l.slots(true), false)
	l.opens = opens // that was of this connection: who doesn't board waits for what it waited for
	if w != nil && w.rider != nil && w.conn == nil && t.takesRider(uses, now) {
		c := t.conn
		c.rider, c.taken = w, true
		p.unqueue(w)
		if w.fare != nil {
			w.fare.Pay(l.number, p.clock(now), false)
			w.paid = true
		}
		w.conn = c
		w.seat.w = w
		w.seat.insert(&p.riders)
		w.until = never
		if p.patient != never {
			w.until = now + p.patient
		}
		p.setAlarm(w.until, now)
		load, ok = w.rider.Load, true
	}
	p.unlock(nil)
	return load, ok
}

// Alight says that nothing was begun for the rider, if there is or was one: it
// gets its place in the queue back, as if it had never left, and the connection
// is as before Board.
func (t *Turn[C]) Alight() {
	p := t.pool
	p.mu.Lock()
	if t.holds {
		t.conn.taken = false
		p.alight(t.conn)
	}
	p.unlock(nil)
}

// Rides reports whether the turn was granted to a rider, with the connection it
// rode on. Conn returns that connection, on which the turn's work has been begun;
// if the turn ends without having asked for it, it is closed. When the connection
// is discarded or another adopted, the turn rides no longer.
func (t *Turn[C]) Rides() bool { return t.rides }

// patience returns Patience as a pool has it.
func (cfg *Config[C]) patience() time.Duration {
	switch {
	case cfg.Patience == 0:
		return time.Second
	case cfg.Patience < 0 || cfg.Patience > century:
		return never
	}
	return cfg.Patience
}

// The methods that follow need the lock.

// takesRider reports whether the connection of a turn that has been used that
// often by it could be handed on at the end of the turn, as things are.
func (t *turn[C]) takesRider(uses int, now time.Duration) bool {
	p, l, c := t.pool, t.lane, t.conn
	return t.holds && !c.taken && !t.once && !t.checks &&
		!p.closed && l.state == Up && t.flushes == l.flushes && l.held <= l.limits.Max &&
		(l.limits.MaxUses <= 0 || c.uses+max(uses, 0) < l.limits.MaxUses) &&
		now < c.oldAt()
}

// handOver ends a turn by granting the slot and the connection to the rider. It
// does nothing, and reports false, if there is none or the connection must not
// be used again.
func (t *turn[C]) handOver(now time.Duration) bool {
	p, l, c := t.pool, t.lane, t.conn
	if !t.holds || c.rider == nil || t.flushes != l.flushes || l.held > l.limits.Max || !p.fit(c, now) {
		return false
	}
	w := c.rider
	paid := w.paid
	w.paid = false // but the turn has
	p.disembark(w)
	p.leave(w)
	w.turn = turn[C]{pool: p, lane: l, conn: c, rides: true, flushes: t.flushes}
	if paid {
		w.turn.fare = w.fare
	}
	if t.fare != nil {
		t.payOff(now)
	}
	p.wakeLater(w)
	t.conn, t.holds, t.ended = nil, false, true
	return true
}

// alight gives the rider of a connection, if there is one, its place in the
// queue back. What comeBack asks for must hold.
func (p *Pool[C]) alight(c *conn[C]) {
	if w := c.rider; w != nil {
		p.disembark(w)
		if !w.queued {
			p.comeBack(w)
		}
	}
}

// disembark parts a rider from its connection, which does not become usable by
// that.
func (p *Pool[C]) disembark(w *waiter[C]) {
	if w.paid {
		w.paid = false
		w.conn.lane.opens, p.eased = 0, true // it may be what others of that lane wait for, whatever else changes in it
		p.ended(w.fare, w.conn.lane, p.instant(), false, false)
	}
	w.conn.rider = nil
	w.conn = nil
	if w.seat.next != nil {
		w.seat.remove()
	}
}

// comeBack gives a waiter that is out of the queue what it would have if it had
// stayed: a turn, a failure, or its place. It is to be called before anything
// else is changed, when a lane that could grant a turn has nobody in its queue who
// could take it (see unlock), so that the waiter overtakes nobody. The lane that it takes a slot
// of is not unlock's concern any more.
func (p *Pool[C]) comeBack(w *waiter[C]) {
	if p.closed {
		p.fail(w, ErrClosed)
		return
	}
	for i := range w.links {
		if l := w.links[i].lane; w.fare == nil && p.grantable(l, w.bulk) {
			p.serve(w, l)
			p.publish(l)
			return
		}
	}
	switch {
	case w.seen != p.changes.Load():
		p.fail(w, ErrChanged)
	case !w.hasLane():
		p.fail(w, ErrNoLane)
	default:
		p.enqueue(w) // where unlock finds it, if it is to pay: there may be somebody in front who can pay now
	}
}

// endPatience lets the riders whose patience is over come back, while they ride
// on, and sets the alarm for the next.
func (p *Pool[C]) endPatience(now time.Duration) {
	for w := p.riders.next.w; w != nil; w = p.riders.next.w {
		if w.until > now {
			p.setAlarm(w.until, now)
			return
		}
		w.seat.remove()
		p.comeBack(w)
	}
}
