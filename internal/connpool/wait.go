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
	ticket uint64        // its number among all that came, which is its place in each queue
	rider  *Rider        // nil: it does not ride
	conn   *conn[C]      // what it rides on
	until  time.Duration // when its patience is over, in pool time
	seat   link[C]       // its place in the pool's riders, while its patience lasts
	lent   bool          // it left a connection that it rode on
	turn   turn[C]       // what was granted, if err is nil
	err    error         // why it failed
	next   *waiter[C]    // in the pool's wake list
	wake   chan struct{} // of one slot; empty whenever the waiter is not in use
}

// link is a waiter's place in the queue of one lane.
type link[C any] struct {
	prev, next *link[C]
	w          *waiter[C]
	lane       *lane[C]
}

// Wait grants a turn of one of the lanes in the bitset: at once if one of them
// has a free slot (the one with the lowest number), else as soon as one has a
// slot for this waiter, first come first served. Lanes that were not added are
// ignored. It fails with ErrNoLane when all the lanes are Down, now or later,
// with ErrClosed, and with the cause of its context.
//
// If r is not nil, the waiter may become the rider of a turn when it is the
// first in the queue of that turn's lane (see [Turn.Board]). Then it can be
// granted that turn's connection, with what was begun for it ([Turn.Rides]). For
// as long as its patience (Config.Patience) lasts it takes nothing else, and
// lanes that go Down don't make it fail.
func (p *Pool[C]) Wait(ctx context.Context, lanes []uint64, r *Rider) (*Turn[C], error) {
	t, err := p.wait(ctx, lanes, r)
	if err != nil {
		return nil, err
	}
	return &Turn[C]{t}, nil
}

func (p *Pool[C]) wait(ctx context.Context, lanes []uint64, r *Rider) (t turn[C], err error) {
	if r != nil {
		r.Lent = false
	}
	if ctx.Err() != nil {
		return t, context.Cause(ctx)
	}
	p.mu.Lock()
	all := *p.lanes.Load()
	end := min(len(all), 64*len(lanes))
	named, up := 0, 0
	for i := nextBit(lanes, 0); i < end; i = nextBit(lanes, i+1) {
		l := all[i]
		if p.grantable(l) {
			t = p.grant(l)
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
	case up == 0:
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
		w.links = append(w.links, link[C]{w: w, lane: all[i]})
	}
	w.rider = r
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
	if r != nil {
		r.Lent = w.lent
	}
	clear(w.links)
	w.links, w.rider, w.lent, w.turn, w.err = w.links[:0], nil, false, turn[C]{}, nil
	p.waiters.Put(w)
	return t, err
}

// The methods that follow need the lock.

// enqueue lets a waiter that comes join the queue of each lane it names.
func (p *Pool[C]) enqueue(w *waiter[C]) {
	p.tickets++
	w.ticket = p.tickets
	for i := range w.links {
		k := &w.links[i]
		k.insert(&k.lane.queue)
		k.lane.waiting++
	}
	w.queued = true
	p.waiting++
}

// unqueue takes a waiter out of all queues; it keeps its ticket.
func (w *waiter[C]) unqueue() {
	for i := range w.links {
		w.links[i].remove()
	}
	w.queued = false
}

// leave ends a wait: the waiter is nowhere any more.
func (p *Pool[C]) leave(w *waiter[C]) {
	if w.queued {
		w.unqueue()
	}
	if w.conn != nil {
		w.lent = true // to a turn that has not ended
		w.disembark()
	}
	for i := range w.links {
		w.links[i].lane.waiting--
	}
	p.waiting--
}

// serve grants a waiter a turn of a lane.
func (p *Pool[C]) serve(w *waiter[C], l *lane[C]) {
	p.leave(w)
	w.turn = p.grant(l)
	p.wakeLater(w)
}

// fail ends a wait with an error.
func (p *Pool[C]) fail(w *waiter[C], err error) {
	p.leave(w)
	w.err = err
	p.wakeLater(w)
}

// failStranded fails the waiters of a lane that has gone Down which name no
// other lane that could serve them.
func (p *Pool[C]) failStranded(l *lane[C]) {
	for k := l.queue.next; k != &l.queue; {
		w := k.w
		k = k.next
		if !w.hasLane() {
			p.fail(w, ErrNoLane)
		}
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

// insert puts a link into a ring, in front of another; in front of the root is
// the end.
func (k *link[C]) insert(at *link[C]) {
	k.prev, k.next = at.prev, at
	k.prev.next, at.prev = k, k
}

// remove takes a link out of its ring.
func (k *link[C]) remove() {
	k.prev.next, k.next.prev = k.next, k.prev
	k.prev, k.next = nil, nil
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
