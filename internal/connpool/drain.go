package connpool

// Drain makes a lane Down in peace: its other end is well, and gets no more turns for now. Its
// idle connections, and those of its turns when they are put back, are closed with
// ReasonDrained, so that Config.Retire can say goodbye on them. SetState ends that.
func (p *Pool[C]) Drain(lane int) { p.setState(lane, Down, ReasonDrained) }

// setState is SetState, for connections that are closed because of it for that reason.
func (p *Pool[C]) setState(lane int, s State, why Reason) {
	l := p.lane(lane)
	p.mu.Lock()
	if l.removed {
		p.unlock(nil)
		return
	}
	l.state, l.peace = s, why == ReasonDrained
	l.epoch++
	if s != Up {
		p.closeIdle(l, why)
	}
	if s == Down {
		p.failStranded(l)
	}
	p.unlock(l)
}

// downReason is why the connections of a lane that is not Up are closed.
func (l *lane[C]) downReason() Reason {
	if l.peace {
		return ReasonDrained
	}
	return ReasonDown
}

// Reserve takes a slot of the lane for a connection that is not the pool's, whatever the lane's
// state: a check that opens one of its own must not bring the other end over Max. It takes none
// that somebody waits for, or that bulk could not have, and of a lane with idle connections none
// that would be one too many together with them. The slot is the caller's until release is
// called; to call it again does nothing.
func (p *Pool[C]) Reserve(lane int) (release func(), ok bool) {
	l := p.lane(lane)
	p.mu.Lock()
	ok = !p.closed && !l.removed && l.held+l.checking+l.leaving+len(l.idle) < l.slots(true)
	if ok {
		l.leaving++
	}
	p.unlock(l)
	if !ok {
		return nil, false
	}
	return func() {
		p.mu.Lock()
		if ok {
			ok = false
			l.leaving--
		}
		p.unlock(l)
	}, true
}
