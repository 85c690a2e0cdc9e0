package connpool

import "context"

// waiter is somebody who waits for one of several lanes. It is queued, then
// either granted a turn or failed, and whoever did that sends the one wake; or
// it takes itself out of the queue, and there is no wake.
type waiter[C any] struct {
	links  []link[C] // one for each lane named; fixed while queued, as others point into it
	queued bool
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
func (p *Pool[C]) Wait(ctx context.Context, lanes []uint64) (*Turn[C], error) {
	t, err := p.wait(ctx, lanes)
	if err != nil {
		return nil, err
	}
	return &Turn[C]{t}, nil
}

func (p *Pool[C]) wait(ctx context.Context, lanes []uint64) (t turn[C], err error) {
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
	p.enqueue(w)
	p.unlock(nil)

	select {
	case <-w.wake:
		t, err = w.turn, w.err
	case <-ctx.Done():
		err = context.Cause(ctx)
		p.mu.Lock()
		queued := w.queued
		if queued {
			p.dequeue(w)
		}
		p.unlock(nil)
		if !queued { // a grant or a failure was quicker, and its wake is on the way
			<-w.wake
			if w.err == nil {
				w.turn.giveBack()
			}
		}
	}
	clear(w.links)
	w.links, w.turn, w.err = w.links[:0], turn[C]{}, nil
	p.waiters.Put(w)
	return t, err
}

// The methods that follow need the lock.

// enqueue puts a waiter at the end of the queue of each lane it names.
func (p *Pool[C]) enqueue(w *waiter[C]) {
	for i := range w.links {
		k := &w.links[i]
		root := &k.lane.queue
		k.prev, k.next = root.prev, root
		k.prev.next, root.prev = k, k
		k.lane.waiting++
	}
	w.queued = true
	p.waiting++
}

// dequeue takes a waiter out of all queues.
func (p *Pool[C]) dequeue(w *waiter[C]) {
	for i := range w.links {
		k := &w.links[i]
		k.prev.next, k.next.prev = k.next, k.prev
		k.prev, k.next = nil, nil
		k.lane.waiting--
	}
	w.queued = false
	p.waiting--
}

// fail ends the wait of a queued waiter with an error.
func (p *Pool[C]) fail(w *waiter[C], err error) {
	p.dequeue(w)
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

// wakeLater has unlock wake a waiter that is no longer queued.
func (p *Pool[C]) wakeLater(w *waiter[C]) {
	if p.wake.tail == nil {
		p.wake.head = w
	} else {
		p.wake.tail.next = w
	}
	p.wake.tail = w
}
