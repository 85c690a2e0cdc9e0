package connpool

import (
	"math"
	"slices"
	"time"
)

// A Fare is what a turn costs beside a slot: rates and quotas, of the lane or of
// whatever else. It is paid when the turn is granted, so waiting for a slot and
// waiting to be able to pay is one: nobody pays, and then waits for a slot, or the
// other way round.
//
// Its methods are called under the pool's lock: they do arithmetic and nothing
// else. So what two fares have in common can't change between Wait and Pay.
type Fare interface {
	// Like reports whether another fare is for the same things, so that who pays the
	// one can't go before who pays the other, and came first. What they cost of these may
	// differ.
	Like(Fare) bool
	// Wait returns how long it is until the fare can be paid for a turn of the lane, if
	// nobody else pays: 0: now; [Never]: not by waiting alone.
	Wait(Ask) time.Duration
	// Pay takes what the turn costs, which Wait has just said can be.
	Pay(lane int, now time.Time, fresh bool)
	// End is called when a turn has ended whose fare was paid. spent: it was used; else
	// what can be given back is. dialled: so was the connection. End reports whether waiters
	// of other lanes may be able to pay because of that.
	End(lane int, now time.Time, spent, unused bool) (others bool)
	// Leave says that at has left the queue. It reports whether others may be able to pay
	// because of that.
	Leave(at Place) (others bool)
}

// Never is what [Fare.Wait] returns where only the end of a turn can help.
const Never = time.Duration(math.MaxInt64)

// An Ask is what [Fare.Wait] is asked.
type Ask struct {
	Lane  int
	Now   time.Time
	Fresh bool  // the turn would open a connection
	At    Place // who asks
	// Queued: At is in the queue, and stays there where it has to wait, until Leave. Where it needs
	// much of what comes little by little, it can keep those from paying that are behind it.
	Queued bool
}

// Place is a place in the order of those who wait.
type Place struct {
	due    time.Duration
	number uint64
}

// Last is behind all.
var Last = Place{never, math.MaxUint64}

// Before reports whether a place is in front of another.
func (p Place) Before(other Place) bool {
	return p.due < other.due || p.due == other.due && p.number < other.number
}

// line is those who wait for one lane, and pay like fares.
type line[C any] struct {
	bulk  bool
	queue queue[C] // never empty, while it is one of its lane's
}

// first is who is due first in a line.
func (x *line[C]) first() *waiter[C] { return x.queue[0].link.w }

// TryFare is Try for a turn that costs something, with the lag that a Request would
// have: nobody is overtaken who waits for what the fare is for, and is due before.
func (p *Pool[C]) TryFare(lane int, bulk bool, f Fare, lag time.Duration) (t *Turn[C], ok bool) {
	g, ok := p.tryFare(lane, bulk, f, lag)
	if ok {
		t = &Turn[C]{g}
	}
	return
}

// TryFareInto is TryFare into a turn that the caller has, so that none is allocated.
func (p *Pool[C]) TryFareInto(t *Turn[C], lane int, bulk bool, f Fare, lag time.Duration) (ok bool) {
	g, ok := p.tryFare(lane, bulk, f, lag)
	if ok {
		*t = Turn[C]{g}
	}
	return ok
}

func (p *Pool[C]) tryFare(lane int, bulk bool, f Fare, lag time.Duration) (t turn[C], ok bool) {
	if f == nil {
		return p.try(lane, bulk)
	}
	l := p.lane(lane)
	if l.mirror.Load()&mirrorBit(bulk) == 0 {
		return t, false
	}
	p.mu.Lock()
	if p.paying.Load() > 0 {
		p.catchUp()
	}
	if ok = p.grantable(l, bulk) && p.passes(l, f, bulk, Ticket{}, lag); ok {
		t = p.grant(l, f)
	}
	p.unlock(l)
	return t, ok
}

// Spend says that what the turn costs was used: the end of the turn gives nothing back.
func (t *Turn[C]) Spend() { t.spent = true }

// Fresh reports whether the turn was granted without a connection, and has paid for one.
func (t *Turn[C]) Fresh() bool { return t.fresh }

// Dials says that the turn is about to open a connection, and reports whether one is
// paid for. It is once at the most.
func (t *Turn[C]) Dials() (paid bool) {
	paid = t.fresh && !t.dials
	t.dials = true
	return paid
}

// Ease has everybody look whether they can pay: what they wait for was made cheaper.
func (p *Pool[C]) Ease() {
	p.mu.Lock()
	p.easedAll = true
	p.unlock(nil)
}

// The methods that follow need the lock.

// clock returns a pool time as one of the clock's.
func (p *Pool[C]) clock(now time.Duration) time.Time { return p.start.Add(now) }

// place is the waiter's place among all.
func (w *waiter[C]) place() Place { return Place{w.due, w.ticket.number} }

// payOff ends what a turn has paid for.
func (t *turn[C]) payOff(now time.Duration) {
	t.pool.ended(t.fare, t.lane, now, t.spent, t.fresh && !t.dials)
	t.fare = nil
}

// ended says to a fare that what it was paid for has ended.
func (p *Pool[C]) ended(f Fare, l *lane[C], now time.Duration, spent, unused bool) {
	if f.End(l.number, p.clock(now), spent, unused) {
		p.easedAll = true
	}
}

// catchUp serves those who can pay by now, where the timer is late: who comes in this moment doesn't overtake them.
func (p *Pool[C]) catchUp() {
	if p.alarm <= p.instant() {
		p.eased = true
		p.ease()
	}
}

// change is catchUp, and serves those who can pay because of what has changed, in a lane (nil: in none) and
// otherwise: before that lane's free slots are handed out to its own, as what has come back may be
// for somebody of another lane who is due before them.
func (p *Pool[C]) change(l *lane[C]) {
	if p.eased || p.easedAll || l != nil && p.alarm <= p.instant() {
		if l != nil {
			l.opens = 0
		}
		p.eased = true
		p.ease()
	}
}

// passes reports whether somebody who isn't in the queue can pay for a turn of the
// lane, and is behind nobody in the line that would be its own.
func (p *Pool[C]) passes(l *lane[C], f Fare, bulk bool, ticket Ticket, lag time.Duration) bool {
	now := p.instant()
	if ticket.number == 0 { // it would come now
		ticket = Ticket{p.tickets + 1, now}
	}
	at := place[C]{due: ticket.due(lag), number: ticket.number}
	for _, x := range l.lines {
		if at.before(&x.queue[0]) {
			break
		}
		if x.bulk == bulk && x.first().fare.Like(f) {
			return false
		}
	}
	return f.Wait(Ask{Lane: l.number, Now: p.clock(now), Fresh: len(l.idle) == 0, At: Place{at.due, at.number}}) <= 0
}

// firstPaying returns the first in a lane's lines who can pay, if it is before top, and
// else top. It notes when the next of those that are passed over may be able to.
func (p *Pool[C]) firstPaying(l *lane[C], bulk, fresh bool, top *place[C]) *place[C] {
	now := p.instant()
	l.opens = never
	for _, x := range l.lines {
		first := &x.queue[0]
		if top != nil && top.before(first) {
			break
		}
		if x.bulk && !bulk {
			continue
		}
		w := x.first()
		d := w.fare.Wait(Ask{Lane: l.number, Now: p.clock(now), Fresh: fresh, At: w.place(), Queued: true})
		if d <= 0 {
			top = first
			break
		}
		if d != Never {
			l.opens = min(l.opens, now+max(d, leastWait))
		}
	}
	if l.opens != never {
		p.setAlarm(l.opens, now)
	}
	return top
}

// leastWait is the least that somebody waits to be able to pay: the timer isn't set for less. So what opens for two
// lanes at once may be noted for the one that much later than for the other.
const leastWait = time.Microsecond

// ease serves those who can pay now, of the lanes that are due, or of all: across the lanes, too, who is due first comes first.
func (p *Pool[C]) ease() {
	for p.eased || p.easedAll { // again where somebody who was served has left what others can pay with
		all := p.easedAll
		p.eased, p.easedAll = false, false
		if p.paying.Load() > 0 {
			p.easeOnce(all)
		}
	}
}

func (p *Pool[C]) easeOnce(all bool) {
	now := p.instant()
	type candidate struct {
		l *lane[C]
		w *waiter[C]
	}
	var list []candidate
	look := func(l *lane[C]) (c candidate) {
		if !p.grantable(l, false) {
			l.opens = never
		} else {
			c = candidate{l, p.first(l, p.grantable(l, true), len(l.idle) == 0)}
		}
		return c
	}
	for _, l := range *p.lanes.Load() {
		if len(l.lines) > 0 && (all || l.opens <= now+leastWait) {
			if c := look(l); c.w != nil {
				list = append(list, c)
			}
		}
	}
	for len(list) > 0 {
		first := 0
		for i := range list {
			if list[i].w.place().Before(list[first].w.place()) {
				first = i
			}
		}
		l, w := list[first].l, list[first].w
		list[first] = look(l) // what others took since may have been what it would pay with
		if list[first].w == w {
			p.serve(w, l)
			p.publish(l)
			if p.eased || p.easedAll { // somebody else can pay because of that, and may be due before the rest
				for _, c := range list {
					c.l.opens = 0
				}
				return
			}
			list[first] = look(l)
		}
		if list[first].w == nil {
			list = slices.Delete(list, first, first+1) // in order: of the lanes that would do it is the lowest that serves
		}
	}
}

// lineUp gives a link its place in the line of its waiter, a new one if there is none.
func (k *link[C]) lineUp() {
	l, w := k.lane, k.w
	i := slices.IndexFunc(l.lines, func(x *line[C]) bool { return x.bulk == w.bulk && x.first().fare.Like(w.fare) })
	if i >= 0 {
		k.line = l.lines[i]
		l.lines = slices.Delete(l.lines, i, i+1)
	} else if k.line = l.spare; k.line != nil {
		l.spare = nil
	} else {
		k.line = new(line[C])
	}
	k.line.bulk = w.bulk
	k.line.queue.push(k)
	l.arrange(k.line)
}

// stepOut takes a link out of its line, and reports whether another is the first now: it may cost less.
func (k *link[C]) stepOut() (other bool) {
	l, x := k.lane, k.line
	first := k.at == 0
	i := l.lineAt(&x.queue[0])
	l.lines = slices.Delete(l.lines, i, i+1)
	x.queue.remove(k)
	k.line = nil
	if len(x.queue) > 0 {
		l.arrange(x)
		return first
	}
	l.spare = x
	return false
}

// arrange puts a line among those of its lane: who has the first that is due first comes first.
func (l *lane[C]) arrange(x *line[C]) {
	l.lines = slices.Insert(l.lines, l.lineAt(&x.queue[0]), x)
}

// lineAt returns where the line is, or belongs, that has its first at a place.
func (l *lane[C]) lineAt(at *place[C]) int {
	i, _ := slices.BinarySearchFunc(l.lines, at, func(y *line[C], at *place[C]) int {
		if y.queue[0].before(at) {
			return -1
		}
		return 1
	})
	return i
}

// queues returns all the queues of a lane.
func (l *lane[C]) queues() []*queue[C] {
	all := []*queue[C]{&l.queue, &l.bulk}
	for _, x := range slices.Backward(l.lines) { // in which order they are cheap to take out
		all = append(all, &x.queue)
	}
	return all
}
