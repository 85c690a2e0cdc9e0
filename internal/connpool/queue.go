package connpool

import "time"

// queue is those who wait for one lane, in a heap: who is due first is at the
// top. To come, to go and to come back from wherever in the queue costs O(log n)
// steps, to come behind all others a single one.
type queue[C any] []place[C]

// place is a place in a queue. It has a copy of what orders the waiters, so that
// no waiter has to be looked at to find it.
type place[C any] struct {
	due    time.Duration
	number uint64
	link   *link[C]
}

// link is what a waiter has of the queue of one lane that it names.
type link[C any] struct {
	w    *waiter[C]
	lane *lane[C]
	line *line[C] // of a fare, while the waiter is queued
	at   int      // where its place is, while the waiter is queued
}

// before reports whether a place is in front of another.
func (p *place[C]) before(other *place[C]) bool {
	return p.due < other.due || p.due == other.due && p.number < other.number
}

func (q *queue[C]) push(k *link[C]) {
	*q = append(*q, place[C]{due: k.w.due, number: k.w.ticket.number, link: k})
	q.up(len(*q) - 1)
}

func (q *queue[C]) remove(k *link[C]) {
	s := *q
	n := len(s) - 1
	i, last := k.at, s[n]
	s[n] = place[C]{}
	*q = s[:n]
	switch {
	case i < n:
		s[i] = last
		last.link.at = i
		q.down(i)
		q.up(last.link.at)
	case n == 0 && cap(s) > 1024: // the crowd of one bad hour is not paid for ever after
		*q = nil
	}
}

// up moves a place to the front for as long as those there are due later.
func (q queue[C]) up(i int) {
	p := q[i]
	for i > 0 {
		parent := (i - 1) / 2
		if !p.before(&q[parent]) {
			break
		}
		q.put(i, q[parent])
		i = parent
	}
	q.put(i, p)
}

// down moves a place to the end for as long as those there are due before it.
func (q queue[C]) down(i int) {
	p := q[i]
	for {
		child := 2*i + 1
		if child >= len(q) {
			break
		}
		if child+1 < len(q) && q[child+1].before(&q[child]) {
			child++
		}
		if !q[child].before(&p) {
			break
		}
		q.put(i, q[child])
		i = child
	}
	q.put(i, p)
}

func (q queue[C]) put(i int, p place[C]) {
	q[i] = p
	p.link.at = i
}
