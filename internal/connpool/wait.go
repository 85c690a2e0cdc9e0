package connpool

import (
	"context"
	"math/bits"
	"time"
)

// waiter is somebody who waits for one of several lanes. It is queued or rides,
// or both, then is either granted a turn or failed, and whoever did that sends
// the one wake; or it goes by itself, and there is no wake.
type waiter[C any] struct {
	links  []link[C] // one for each lane named; fixed while queued, as others point into it
	queued bool
	bulk   bool
	fare   Fare          // nil: it pays none
	paid   bool          // it has paid for its ride
	ticket Ticket        // its place among those that are due when it is
	due    time.Duration // its place in each queue, in pool time
	seen   uint64        // the pool's changes when it came
	rider  *Rider        // nil: it does not ride
	conn   *conn[C]      // what it rides on
	until  time.Duration // when its patience is over, in pool time
	seat   seat[C]       // its place in the pool's riders, while its patience lasts
	lent   bool          // it left a connection that it rode on
	turn   turn[C]       // what was granted, if err is nil
	err    error         // why it failed
	next   *waiter[C]    // in the pool's wake list
	wake   chan struct{} // of one slot; empty whenever the waiter is not in use
}

// seat is a place in the ring of those who ride.
type seat[C any] struct {
	prev, next *seat[C]
	w          *waiter[C]
}

// Request is what a caller of [Pool.Wait] wants.
type Request struct {
	// Lanes is the bitset of the lanes that would do, by their [Member]. Lanes that
	// were not added, or were removed, are ignored. A lane that is Down does no harm
	// next to others that are not: when it is Up again, it serves who waits for it.
	Lanes []uint64
	// Seen, if it is not 0, is what [Pool.Changes] said before Lanes was chosen. If it
	// says something else when Wait begins, Wait fails with ErrChanged: a member of
	// Lanes might be another lane by now, and who is not yet in the queue would miss a
	// Rouse. Who leaves it 0 has to compare Turn.Lane with the number that was meant.
	Seen uint64
	// Lag is added to the moment of arrival: who is due first is served first. A lag
	// may be negative, and is at most a century either way.
	Lag time.Duration
	// Bulk gets no slot that a lane keeps back (Limits.Reserved).
	Bulk bool
	// Fare is what a turn costs, nil: nothing. It must not change while it is waited with, and is kept for as long as the turn.
	Fare Fare
	// Rider is offered to be taken along, see [Turn.Board]. It may be nil.
	Rider *Rider
	// Ticket is the place in the queue. It is set when Wait joins the queue with the
	// zero Ticket. To come again with one, after whatever end of the last Wait, is to
	// have arrived when it was new. It is good for one call of Wait at a time.
	Ticket Ticket
}

// Ticket says when somebody came to wait.
type Ticket struct {
	number uint64        // among all that came to the pool, from 1
	came   time.Duration // in pool time
}

// Wait grants a turn of one of the lanes that the request names: at once if one of
// them has a free slot for it (the one with the lowest Member), else as soon as one
// has a slot for this waiter; who is due first is served first, and who came first
// among those due at the same time. It fails with ErrNoLane when all the lanes are
// Down or removed, now or later, with ErrChanged after Rouse, with ErrClosed, and
// with the cause of its context.
//
// With a Rider, the waiter may be taken along by a turn, when it is the first in
// the queue for that turn's slot (see [Turn.Board]). Then it can be
// granted that turn's connection, with what was begun for it ([Turn.Rides]). For
// as long as its patience (Config.Patience) lasts it takes nothing else, and
// lanes that go Down don't make it fail.
func (p *Pool[C]) Wait(ctx context.Context, r *Request) (*Turn[C], error) {
	t, err := p.wait(ctx, r)
	if err != nil {
		return nil, err
	}
	return &Turn[C]{t}, nil
}

func (p *Pool[C]) wait(ctx context.Context, r *Request) (t turn[C], err error) {
	if r.Rider != nil {
		r.Rider.Lent = false
	}
	if ctx.Err() != nil {
		return t, context.Cause(ctx)
	}
	p.mu.Lock()
	if p.paying.Load() > 0 {
		p.catchUp()
	}
	all, changes := *p.lanes.Load(), p.changes.Load()
	lanes, end := r.Lanes, min(len(all), 64*len(r.Lanes))
	if r.Seen != 0 && r.Seen != changes {
		end, err = 0, ErrChanged
	}
	named, up := 0, 0
	for i := nextBit(lanes, 0); i < end; i = nextBit(lanes, i+1) {
		l := all[i]
		if p.grantable(l, r.Bulk) && (r.Fare == nil || p.passes(l, r.Fare, r.Bulk, r.Ticket, r.Lag)) {
			t = p.grant(l, r.Fare)
			p.unlock(l)
			return t, nil
		}
		named++
		if l.state != Down {
			up++
		}
	}
	switch {
	case p.closed:
		err = ErrClosed
	case err == nil && up == 0:
		err = ErrNoLane
	}
	if err != nil {
		p.unlock(nil)
		return t, err
	}
	w := p.waiters.Get().(*waiter[C])
	if cap(w.links) < named {
		w.links = make([]link[C], 0, named)
	}
	for i := nextBit(lanes, 0); i < end; i = nextBit(lanes, i+1) {
		if !all[i].removed {
			w.links = append(w.links, link[C]{w: w, lane: all[i]})
		}
	}
	if r.Ticket.number == 0 {
		p.tickets++
		r.Ticket = Ticket{p.tickets, p.now()}
	}
	w.bulk, w.fare, w.ticket, w.seen, w.rider = r.Bulk, r.Fare, r.Ticket, changes, r.Rider
	w.due = r.Ticket.due(r.Lag)
	for i := range w.links {
		l := w.links[i].lane
		l.waiting++
		l.mostWait = max(l.mostWait, l.waiting)
	}
	p.waiting++
	p.enqueue(w)
	p.unlock(nil)

	select {
	case <-w.wake:
		t, err = w.turn, w.err
	case <-ctx.Done():
		err = context.Cause(ctx)
		p.mu.Lock()
		waits := w.queued || w.conn != nil
		if waits {
			p.leave(w)
		}
		p.unlock(nil)
		if !waits { // a grant or a failure was quicker, and its wake is on the way
			<-w.wake
			if w.err == nil {
				w.turn.giveBack()
			}
		}
	}
	if r.Rider != nil {
		r.Rider.Lent = w.lent
	}
	clear(w.links)
	w.links, w.fare, w.rider, w.lent, w.turn, w.err = w.links[:0], nil, nil, false, turn[C]{}, nil
	p.waiters.Put(w)
	return t, err
}

// The methods that follow need the lock.

// due returns when who came with the ticket, and with that lag, is due.
func (t Ticket) due(lag time.Duration) time.Duration {
	return t.came + min(max(lag, -century), century)
}

// enqueue gives a waiter its place in the queue of each lane it names.
func (p *Pool[C]) enqueue(w *waiter[C]) {
	for i := range w.links {
		k := &w.links[i]
		if w.fare != nil {
			k.lineUp()
			k.lane.opens = 0 // to find out when it can pay
		} else {
			k.queue().push(k)
		}
	}
	w.queued = true
	if w.fare != nil {
		p.paying.Add(1)
		p.eased = true
	}
}

// unqueue takes a waiter out of all queues; it keeps its ticket.
func (p *Pool[C]) unqueue(w *waiter[C]) {
	for i := range w.links {
		k := &w.links[i]
		if k.line != nil {
			if k.stepOut() {
				k.lane.opens, p.eased = 0, true
			}
		} else {
			k.queue().remove(k)
		}
	}
	w.queued = false
	if w.fare != nil {
		p.paying.Add(-1)
		if w.fare.Leave(w.place()) {
			p.easedAll = true
		}
	}
}

// queue is where the link of a waiter that pays no fare has its place.
func (k *link[C]) queue() *queue[C] {
	if k.w.bulk {
		return &k.lane.bulk
	}
	return &k.lane.queue
}

// leave ends a wait: the waiter is nowhere any more.
func (p *Pool[C]) leave(w *waiter[C]) {
	if w.queued {
		p.unqueue(w)
	}
	if w.conn != nil {
		w.lent = true // to a turn that has not ended
		p.disembark(w)
	}
	for i := range w.links {
		w.links[i].lane.waiting--
	}
	p.waiting--
}

// serve grants a waiter a turn of a lane.
func (p *Pool[C]) serve(w *waiter[C], l *lane[C]) {
	p.leave(w)
	w.turn = p.grant(l, w.fare)
	p.wakeLater(w)
}

// fail ends a wait with an error.
func (p *Pool[C]) fail(w *waiter[C], err error) {
	p.leave(w)
	w.err = err
	p.wakeLater(w)
}

// failQueue fails all who are in the queue of a lane.
func (p *Pool[C]) failQueue(l *lane[C], err error) {
	for _, q := range l.queues() {
		for n := len(*q); n > 0; n = len(*q) {
			p.fail((*q)[n-1].link.w, err)
		}
	}
}

// failStranded fails the waiters of a lane that has gone Down which name no
// other lane that could serve them.
func (p *Pool[C]) failStranded(l *lane[C]) {
	var list *waiter[C] // first collected, as the heap changes with each that goes
	for _, q := range l.queues() {
		for i := range *q {
			if w := (*q)[i].link.w; !w.hasLane() {
				w.next, list = list, w
			}
		}
	}
	for list != nil {
		w := list
		list, w.next = w.next, nil
		p.fail(w, ErrNoLane)
	}
}

// hasLane reports whether one of the lanes a waiter names is not Down.
func (w *waiter[C]) hasLane() bool {
	for i := range w.links {
		if w.links[i].lane.state != Down {
			return true
		}
	}
	return false
}

// wakeLater has unlock wake a waiter whose wait has ended.
func (p *Pool[C]) wakeLater(w *waiter[C]) {
	if p.wake.tail == nil {
		p.wake.head = w
	} else {
		p.wake.tail.next = w
	}
	p.wake.tail = w
}

// insert puts a seat into a ring, as its last.
func (s *seat[C]) insert(root *seat[C]) {
	s.prev, s.next = root.prev, root
	s.prev.next, root.prev = s, s
}

// remove takes a seat out of its ring.
func (s *seat[C]) remove() {
	s.prev.next, s.next.prev = s.next, s.prev
	s.prev, s.next = nil, nil
}

// nextBit returns the first member of a bitset that is not below i, or
// 64*len(set) if there is none.
func nextBit(set []uint64, i int) int {
	for w := i / 64; w < len(set); w++ {
		if rest := set[w] >> (i % 64); rest != 0 {
			return i + bits.TrailingZeros64(rest)
		}
		i = 64 * (w + 1)
	}
	return 64 * len(set)
}
