// Package connpool is the one primitive that owns all the concurrency of a
// relay pool: the right to use a connection of a lane (a lane is a relay), the
// connections that wait to be used again, and those who wait for a lane. It is
// generic and knows no SMTP.
//
// # How it is used
//
//  1. A caller takes a [Turn]: [Pool.Try] for the lane it has picked or, when
//     all lanes that would do are full, [Pool.Wait] for the first of them that
//     has room. ([Pool.TryIdle] is for checks that must not be in anybody's way.)
//  2. The turn hands out an idle connection ([Turn.Conn]) or adopts the one
//     that the caller opened ([Turn.Adopt]).
//  3. The caller, in its own goroutine, does with the connection what it wants
//     and ends the turn, exactly once: with [Turn.Put], which keeps the
//     connection for the next turn, or with [Turn.Drop].
//
// A waiter can also be taken along. A holder that is about to finish with its
// connection, but for an answer, asks for the first waiter of its lane
// ([Turn.Board]), and begins that one's work on the connection behind its own:
// the waiter becomes its rider. When the holder has had its answer and puts the
// connection back in order, the rider is granted the slot and the connection as
// they are, and reads the answers to what was begun for it ([Turn.Rides]). If
// anything else becomes of the connection, nothing of the rider's is lost: it
// gets its place in the queue back.
//
// Who waits is served in the order of when they are due: the moment of arrival
// plus a lag that the waiter brings along ([Request]). The longer the lag the
// less urgent, but nobody is overtaken by those who come later than the
// difference of their lags, so nobody starves. A lane can keep slots back
// (Limits.Reserved) that those who are marked as bulk don't get.
//
// A turn can cost more than a slot: a [Fare], which is paid when it is granted. Who
// can't pay now waits in the same queue, in the same order, and keeps nobody else
// waiting but those that pay for the same things (Fare.Like): these are a line, of which
// the first is asked. [Pool.TryFare] is Try for those who pay.
//
// # Lanes that come and go
//
// [Pool.AddLane] returns the number of the lane, which is what all methods take
// and [Turn.Lane] returns. [Pool.RemoveLane] ends a lane, and once nothing of it
// is left and [Pool.Rouse] was called, a new lane can have its place, under a number
// that is another one but for its low bits ([Member]). A number whose lane was
// removed is harmless for ever: it grants nothing and changes nothing, whoever has
// its place now. Only the bitset of a Request can't tell the lanes apart that have a
// place one after the other; Request.Seen is for that.
//
// So the owner of the lanes adds and removes some, tells those who choose among
// them, and then calls Rouse; and who chooses reads [Pool.Changes] first, then what
// lanes there are, and hands both to Wait. Then nobody misses a new lane, and
// nobody gets a lane for one that was removed.
//
// # Why it is right
//
// There is one mutex, and there is one exit from every critical section,
// unlock, which hands the free slots of the lane that changed to those who wait
// for it, and what can be paid for now to those of all lanes, releases the mutex, and only then wakes them and closes what is to
// be closed. (A rider that gets its place back may be owed a slot of any lane it
// names. It comes back before the critical section changes anything else, so
// that a slot that is free for it then has nobody else waiting who may take it,
// and takes it at once; one that pays goes into the queue, where unlock finds it.) So no channel is touched and no callback runs under the
// lock, and whenever the lock is free:
//
//   - A lane's turns and idle connections, and the connections that are being
//     retired, together are at most its Max; if Max was lowered below the turns
//     that run, it has no idle connection. (Max can be exceeded for as long as
//     it takes to retire a connection: after Max was lowered, and by a turn that
//     adopts a connection although the lane has idle ones, or after it found
//     them out of date.)
//   - A lane that could grant a turn has no waiter in its queue that could take
//     it: none at all if it could grant it to bulk, none but bulk otherwise, and
//     beside these those that can't pay, or are behind one of their line that can't. (This
//     is why Try cannot overtake anybody who could have what it takes.)
//   - The first of each line of a lane that could grant it a turn was asked whether it can
//     pay, and could not, since it became the first, since the lane could grant, since it got an idle connection, and since
//     something was given back or Ease was called. The lane's opens is not after the moment at which it can by its
//     answer (but leastWait after it was asked, where that is less), and the timer is set for then, or before. Who comes in while the timer is late serves
//     those first who are due (catchUp).
//   - What can be paid at one time for several lanes goes to whoever is due first: all
//     the lanes that it may open for are looked at together (ease), before a free
//     slot is given away in one.
//   - A fare is paid once for each turn that runs and was granted for it, and for each rider
//     that pays, and for nothing else. At the hand-over the rider's is its turn's. A rider whose patience is over must
//     be able to pay for another turn beside its ride; that ends first.
//   - A lane's lines are in the order of their firsts, and none is empty.
//   - The turns of bulk, and those with a bulk rider, together are at most
//     Max-Reserved, unless the limits were changed under them. (All turns together
//     are when one is granted to bulk, or a bulk rider boards; and when a slot is
//     inherited nothing is added, as it was counted since the rider boarded.)
//   - Each waiter in a queue names at least one lane that is not Down.
//   - A waiter that has been neither served nor failed is in the queues of all lanes
//     it names, or rides on one connection and its patience (Config.Patience)
//     lasts, or both, when it rides and its patience is over. Out of the queue it
//     keeps its ticket, and so its place.
//   - A waiter in a queue came, or came back, after the last Rouse.
//   - A connection has at most one rider; the turn that holds it is not a probe,
//     and no reservation or idle list has it. Once somebody has boarded it and
//     neither alighted nor been handed it, it is never used again.
//   - Only a lane that is Up has idle connections.
//   - A connection is in exactly one place: idle in its lane, or with one turn
//     (or with one call of Recheck).
//   - The mirrors that Free, Held and Try read without the lock are exact.
//   - A removed lane is Down, has no idle connection and gets neither a turn nor
//     a new waiter. Its place is given away only when it has no turn, no
//     connection that is being checked or retired, and no waiter that names it, and
//     when a Request whose Seen is from before it was removed would be refused.
//
// The queue of waiters across the lanes is kept as two heaps for each lane, in the
// order in which they are due, one of them for bulk; a waiter has a link in a heap
// of each lane it names. The first waiter that may use a lane is thus at the
// top of one of its two heaps, no matter how many wait for other lanes or
// for the reserve; and each line of those that pay is a heap of its own, so that who can pay is found by asking
// one of each line, in their order, at the most. Joining, leaving and coming back to the queue, at whatever
// place, costs O(log n) steps for each lane named, and to find its line one for each of the lane's lines.
package connpool

import (
	"errors"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The errors of [Pool.Wait], next to the cause of its context.
var (
	ErrClosed  = errors.New("connpool: pool closed")
	ErrNoLane  = errors.New("connpool: no lane is up")
	ErrChanged = errors.New("connpool: the lanes have changed")
)

// State says whether a lane grants turns.
type State uint8

const (
	// Down grants no turn.
	Down State = iota
	// Once grants exactly one turn, by which the lane goes Down by itself: the
	// probe of a half-open circuit breaker.
	Once
	// Up grants turns as its limits allow.
	Up
)

func (s State) String() string {
	switch s {
	case Down:
		return "down"
	case Once:
		return "once"
	case Up:
		return "up"
	}
	return "invalid state"
}

// Reason says why a connection left the pool.
type Reason uint8

const (
	ReasonBroken  Reason = iota // its holder dropped or discarded it, and closes it
	ReasonDead                  // found dead when it was about to be used again
	ReasonIdle                  // idle for MaxIdleTime
	ReasonAge                   // open for MaxAge
	ReasonUses                  // used MaxUses times
	ReasonTrimmed               // more connections than Max or MaxIdle allow
	ReasonDown                  // its lane is not up
	ReasonLeft                  // what was begun on it for a rider has nobody who finishes it
	ReasonClosed                // the pool was closed
	ReasonRemoved               // its lane was removed
	ReasonDrained               // its lane was drained or flushed: the other end is well
	numReasons
)

func (r Reason) String() string {
	if r < numReasons {
		return [numReasons]string{"broken", "dead", "idle", "age", "uses", "trimmed", "down", "left", "closed", "removed", "drained"}[r]
	}
	return "invalid reason"
}

// Limits are the limits of one lane. The zero value limits nothing.
type Limits struct {
	Max         int           // connections at a time, in use and idle; <= 0: unlimited
	Reserved    int           // slots of Max that bulk doesn't get; at most Max-1, so that bulk gets something
	MaxIdle     int           // idle connections kept; 0: as many as Max, negative: none
	MaxUses     int           // uses of one connection; <= 0: unlimited
	MaxAge      time.Duration // of a connection, which draws its own limit at ±10 %; <= 0: unlimited
	MaxIdleTime time.Duration // of a connection between two uses; <= 0: unlimited
}

// Config is what a pool has to know of its connections. Each function may be
// nil. They are never called under the pool's lock, may run concurrently, and
// may call the pool, except that they must not call [Pool.Close].
type Config[C any] struct {
	// Alive reports whether an idle connection can be used. It may do a short
	// system call. nil: it always can.
	Alive func(C) bool
	// Close closes a connection that the pool owns. It is called exactly once
	// for a connection, in the goroutine that made it superfluous, so it must
	// not block for long.
	Close func(C, Reason)
	// Retire is asked, in the place of Close, to close a connection in its own
	// time, such as after a farewell: the connection occupies its slot until gone
	// is called, so that the other end never sees more than Max. It returns false
	// to decline, without having called gone; then Close is called. It is not
	// asked for connections that are dead, or on which somebody else's work was
	// begun (see Turn.Board), so that they cannot be spoken to. nil: all are closed
	// by Close. To call gone again does nothing.
	Retire func(c C, why Reason, gone func()) bool
	// Abort makes the holder's use of a connection fail soon; it is called by
	// Pool.Close for the connections that turns (or Recheck) have at that
	// moment, at most once for each. The turn still has to end itself, and may
	// do so at the same time: Abort can even come after Close.
	Abort func(C)
	// Patience is for how long a rider counts on its ride. After that it is in the
	// queue again, while it still rides, and takes what comes first: the end of its
	// ride or a free slot. 0: a second; negative: for ever.
	Patience time.Duration
}

// Pool grants turns and keeps idle connections. Its methods may be called
// concurrently; lanes that were not added panic.
type Pool[C any] struct {
	cfg     Config[C]
	start   time.Time                  // the zero of pool time, see now
	patient time.Duration              // Config.Patience; never: for ever
	lanes   atomic.Pointer[[]*lane[C]] // replaced, never changed but behind its end, and only under mu
	waiters sync.Pool                  // of *waiter[C], none of them queued and no wake in the channel
	reapers sync.WaitGroup             // calls of reap that are running or scheduled

	nowhere lane[C]       // what the numbers stand for whose lane's place was given away: removed, nothing else
	changes atomic.Uint64 // see Changes; written only under mu
	paying  atomic.Int64  // waiters in the queue that pay a fare; likewise

	mu       sync.Mutex // guards what follows, and what lanes, waiters and turns say of themselves
	closed   bool
	waiting  int                             // waiters, in the queue or riding
	tickets  uint64                          // waiters that have come
	riders   seat[C]                         // the ring of the waiters that ride and are not in the queue, first boarded first
	conns    map[*conn[C]]struct{}           // all connections, idle and in use
	timer    *time.Timer                     // calls reap; nil until there is something to expire
	alarm    time.Duration                   // when the timer fires, at the latest; never: it isn't set
	gone     int                             // lanes that were removed, and have their place yet
	eased    bool                            // some may be able to pay, of lanes that opens says so of,
	easedAll bool                            // or of any lane
	reading  time.Duration                   // of the clock, in this critical section; 0: there was none yet
	wake     struct{ head, tail *waiter[C] } // to be woken when the lock is released
	shut     *conn[C]                        // to be closed when the lock is released
}

// lane is one lane of a pool. Everything but number, mirror and reused is guarded
// by the pool's mutex.
type lane[C any] struct {
	number   int    // its place in the pool's lanes, and how many had it before: see Member
	removed  bool   // for ever
	until    uint64 // the pool's changes when it was removed
	state    State
	peace    bool          // it is Down by Drain
	epoch    uint64        // calls of SetState and RemoveLane
	flushes  uint64        // calls of Flush
	limits   Limits        // as given, but Max and MaxIdle as counts: unlimited is math.MaxInt
	held     int           // turns
	checking int           // idle connections that Recheck has taken out; each occupies a slot
	leaving  int           // connections that are being closed, where there is a Config.Retire; each occupies a slot
	idle     []*conn[C]    // ordered by since: the newest is last
	queue    queue[C]      // the waiters in the queue that name the lane, but those that are bulk, or pay a fare
	bulk     queue[C]      // those that are bulk, and pay none
	lines    []*line[C]    // those that pay, in lines of their own, in the order of the first of each; see toll.go
	spare    *line[C]      // one that nobody is in, for the next
	opens    time.Duration // when the first of those may be able to pay, in pool time; never: nobody waits for that
	waiting  int           // the waiters that name it, those that ride too
	mostHeld int           // held at its highest before a turn ended, so far
	mostWait int           // waiting likewise
	opened   uint64
	closed   [numReasons]uint64

	reused atomic.Uint64
	mirror atomic.Uint64 // held<<mirrorHeld, and the two bits below; published by unlock
}

// conn is a connection of the pool.
type conn[C any] struct {
	c      C
	lane   *lane[C]
	born   time.Duration // pool time
	jitter float64       // its part of MaxAge, 0.9 to 1.1
	uses   int
	since  time.Duration // when it last became idle
	until  time.Duration // when it may no longer be used, set while it goes idle or is idle
	why    Reason        // why not after until; why it is closed, once it is in the pool's shut list
	next   *conn[C]      // in the pool's shut list
	leaves bool          // it counts as leaving in its lane
	atOnce bool          // Config.Retire is not asked: a turn is about to open another in its place
	rider  *waiter[C]    // who rides on it
	taken  bool          // somebody boarded it, and has neither alighted nor got it from Turn.Conn
}

// The bits of a lane's mirror.
const (
	mirrorFree = 1 << iota // a turn can be granted
	mirrorBulk             // also to bulk
	mirrorHeld = iota      // the turns are from here on
)

const (
	never   = time.Duration(math.MaxInt64) // a pool time that does not come
	century = 100 * 365 * 24 * time.Hour   // as good as no limit, and cannot overflow
)

// New returns a pool without lanes. It starts no goroutine.
func New[C any](cfg Config[C]) *Pool[C] {
	p := &Pool[C]{cfg: cfg, start: time.Now(), conns: map[*conn[C]]struct{}{}, alarm: never, patient: cfg.patience()}
	p.riders.prev, p.riders.next = &p.riders, &p.riders
	p.lanes.Store(new([]*lane[C]))
	p.nowhere.removed = true
	p.changes.Store(1)
	p.waiters.New = func() any { return &waiter[C]{wake: make(chan struct{}, 1)} }
	return p
}

// Close fails all waiters and riders with ErrClosed, closes the idle connections and calls
// Config.Abort for those that turns have. No turn is granted afterwards; the
// turns that run have to end themselves, and the pool closes what they put
// back. When Close returns, no goroutine of the pool is left. It is idempotent.
func (p *Pool[C]) Close() {
	var inUse []C
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		for _, l := range *p.lanes.Load() {
			p.closeIdle(l, ReasonClosed)
			p.failQueue(l, ErrClosed)
			p.publish(l)
		}
		for p.riders.next != &p.riders {
			p.fail(p.riders.next.w, ErrClosed)
		}
		for c := range p.conns {
			inUse = append(inUse, c.c)
		}
		if p.timer != nil && p.timer.Stop() {
			p.reapers.Done()
		}
	}
	p.unlock(nil)
	if p.cfg.Abort != nil {
		for _, c := range inUse {
			p.cfg.Abort(c)
		}
	}
	p.reapers.Wait()
}

// instant is now, read once in a critical section. It needs the lock.
func (p *Pool[C]) instant() time.Duration {
	if p.reading == 0 {
		p.reading = p.now()
	}
	return p.reading
}

// now returns the pool time: what the monotonic clock says since New.
func (p *Pool[C]) now() time.Duration { return time.Since(p.start) }

// unlock is the one exit from every critical section that changed something.
// l is the lane whose slots may have changed, nil if none's did. (No critical
// section changes the slots of more than one, but for Close, after which
// nothing is served, and for what comeBack takes, which frees none.)
func (p *Pool[C]) unlock(l *lane[C]) {
	if p.paying.Load() > 0 {
		p.change(l)
	}
	if l != nil {
		p.handOut(l)
		p.trim(l)
	}
	if p.eased || p.easedAll {
		p.ease()
	}
	p.reading = 0
	w, c := p.wake.head, p.shut
	p.wake.head, p.wake.tail, p.shut = nil, nil, nil
	p.mu.Unlock()

	for w != nil {
		next := w.next // w is its owner's again once it is awake
		w.next = nil
		w.wake <- struct{}{} // never blocks: there is room for the one wake of a waiter
		w = next
	}
	for ; c != nil; c = c.next {
		p.closeConn(c)
	}
}

// handOut serves those who wait for the free slots of a lane.
func (p *Pool[C]) handOut(l *lane[C]) {
	for p.grantable(l, false) {
		w := p.first(l, p.grantable(l, true), len(l.idle) == 0)
		if w == nil {
			return
		}
		p.serve(w, l)
		if p.eased || p.easedAll { // others can pay because of that, and may be due before those of this lane
			p.change(l)
		}
	}
	l.opens = never // it is looked at when a slot is free
}

// trim has the idle connections of a lane closed that are too many for it. It comes after handOut, so that a waiter takes over what would be too much to keep. To trim because of those
// that are leaving would only make more leave.
func (p *Pool[C]) trim(l *lane[C]) {
	room := max(0, min(l.limits.Max-l.held-l.checking, l.limits.MaxIdle))
	if n := len(l.idle) - room; n > 0 {
		for _, c := range l.idle[:n] {
			p.shutConn(c, ReasonTrimmed)
		}
		l.idle = slices.Delete(l.idle, 0, n)
	}
	p.publish(l)
}

// closeConn closes a connection of the shut list, without the lock.
func (p *Pool[C]) closeConn(c *conn[C]) {
	if c.leaves {
		gone := func() {
			p.mu.Lock()
			if c.leaves {
				c.leaves = false
				c.lane.leaving--
			}
			p.unlock(c.lane)
		}
		if !c.atOnce && c.why != ReasonDead && p.cfg.Retire(c.c, c.why, gone) {
			return
		}
		defer gone()
	}
	if p.cfg.Close != nil {
		p.cfg.Close(c.c, c.why)
	}
}

// The methods that follow need the lock.

// grantable reports whether a lane can grant a turn, to bulk or not.
func (p *Pool[C]) grantable(l *lane[C], bulk bool) bool {
	return !p.closed && l.state != Down && l.held+l.checking+l.leaving < l.slots(bulk)
}

// slots returns how many slots a lane gives to bulk before it keeps the rest back,
// or else how many it has.
func (l *lane[C]) slots(bulk bool) int {
	if bulk {
		return l.limits.Max - l.limits.Reserved
	}
	return l.limits.Max
}

// first returns the first waiter in the queue of a lane who can have a slot of it
// now, nil if there is none. Unless bulk may have the slot, it is the first of
// those that are not bulk. fresh: the slot comes without a connection.
func (p *Pool[C]) first(l *lane[C], bulk, fresh bool) *waiter[C] {
	var top *place[C]
	if len(l.queue) > 0 {
		top = &l.queue[0]
	}
	if bulk && len(l.bulk) > 0 && (top == nil || l.bulk[0].before(top)) {
		top = &l.bulk[0]
	}
	if len(l.lines) > 0 {
		top = p.firstPaying(l, bulk, fresh, top)
	}
	if top == nil {
		return nil
	}
	return top.link.w
}

// grant takes a slot of a grantable lane, together with its newest idle
// connection, for a fare that can be paid.
func (p *Pool[C]) grant(l *lane[C], f Fare) turn[C] {
	t := turn[C]{pool: p, lane: l, flushes: l.flushes, conn: l.pop(), fare: f}
	l.held++
	if f != nil {
		t.fresh = t.conn == nil
		f.Pay(l.number, p.clock(p.instant()), t.fresh)
	}
	if l.state == Once {
		t.once, t.epoch = true, l.epoch
		l.state = Down
		p.failStranded(l)
	}
	return t
}

// publish brings the mirror of a lane up to date.
func (p *Pool[C]) publish(l *lane[C]) {
	m := uint64(l.held) << mirrorHeld
	if p.grantable(l, false) {
		m |= mirrorFree
	}
	if p.grantable(l, true) {
		m |= mirrorBulk
	}
	l.mirror.Store(m)
}

// pop takes the newest idle connection, nil if there is none.
func (l *lane[C]) pop() *conn[C] {
	n := len(l.idle) - 1
	if n < 0 {
		return nil
	}
	c := l.idle[n]
	l.idle[n] = nil
	l.idle = l.idle[:n]
	return c
}

// park makes a connection idle, at the place its time of last use gives it, or
// has it closed if it must not be used again. flushes is how often its lane had
// been flushed when it was taken.
func (p *Pool[C]) park(c *conn[C], flushes uint64, now time.Duration) {
	l := c.lane
	if flushes != l.flushes {
		p.shutConn(c, ReasonDrained)
		return
	}
	if !p.keep(c, now) {
		return
	}
	i := len(l.idle)
	l.idle = append(l.idle, c)
	for ; i > 0 && l.idle[i-1].since > c.since; i-- {
		l.idle[i], l.idle[i-1] = l.idle[i-1], c
	}
}

// keep sees to it that an idle connection is closed when it expires by the
// limits of its lane. If it must not be kept at all, keep has it closed now and
// reports false.
func (p *Pool[C]) keep(c *conn[C], now time.Duration) bool {
	switch {
	case !p.fit(c, now):
		p.shutConn(c, c.why)
	case c.taken:
		p.shutConn(c, ReasonLeft)
	default:
		p.setAlarm(c.until, now)
		return true
	}
	return false
}

// fit reports whether the limits and the state of its lane let a connection be
// used again, and sets until when, or else why not.
func (p *Pool[C]) fit(c *conn[C], now time.Duration) bool {
	lim := &c.lane.limits
	c.until = never
	if lim.MaxIdleTime > 0 {
		c.until, c.why = c.since+lim.MaxIdleTime, ReasonIdle
	}
	if end := c.oldAt(); end <= c.until {
		c.until, c.why = end, ReasonAge
	}
	switch {
	case p.closed:
		c.why = ReasonClosed
	case c.lane.removed:
		c.why = ReasonRemoved
	case c.lane.state != Up:
		c.why = c.lane.downReason()
	case lim.MaxUses > 0 && c.uses >= lim.MaxUses:
		c.why = ReasonUses
	default:
		return now < c.until
	}
	return false
}

// oldAt returns when a connection reaches the age limit of its lane, never if
// there is none.
func (c *conn[C]) oldAt() time.Duration {
	age := c.lane.limits.MaxAge
	if age <= 0 {
		return never
	}
	return c.born + time.Duration(float64(age)*c.jitter)
}

// sweep has the idle connections of a lane closed that must not be kept.
func (p *Pool[C]) sweep(l *lane[C], now time.Duration) {
	kept := l.idle[:0]
	for _, c := range l.idle {
		if p.keep(c, now) {
			kept = append(kept, c)
		}
	}
	clear(l.idle[len(kept):])
	l.idle = kept
}

// closeIdle has all idle connections of a lane closed.
func (p *Pool[C]) closeIdle(l *lane[C], why Reason) {
	for _, c := range l.idle {
		p.shutConn(c, why)
	}
	clear(l.idle)
	l.idle = l.idle[:0]
}

// forget removes a connection that nobody but the caller has any more.
func (p *Pool[C]) forget(c *conn[C], why Reason) {
	delete(p.conns, c)
	c.lane.closed[why]++
}

// shutConn removes a connection and has unlock close it.
func (p *Pool[C]) shutConn(c *conn[C], why Reason) {
	p.forget(c, why)
	c.why = why
	c.next, p.shut = p.shut, c
	c.atOnce = c.atOnce || c.taken
	if p.cfg.Retire != nil {
		c.leaves = true
		c.lane.leaving++
	}
}

// setAlarm sees to it that reap is called at the given time, or before. It is
// not put off or cleared when that connection is used again: to be called once
// too often per idle time is cheaper than to set a timer with every turn.
func (p *Pool[C]) setAlarm(at, now time.Duration) {
	if at >= p.alarm || p.closed { // Close waits for the timer
		return
	}
	p.alarm = at
	if p.timer == nil {
		p.timer = time.AfterFunc(at-now, p.reap)
		p.reapers.Add(1)
	} else if !p.timer.Reset(at - now) {
		p.reapers.Add(1)
	}
}

// reap closes the idle connections whose time is over, and gives riders whose
// patience is over their places in the queue back. It runs in the timer's
// goroutine and takes the lock itself.
func (p *Pool[C]) reap() {
	defer p.reapers.Done()
	now := p.now()
	p.mu.Lock()
	p.alarm = never
	p.endPatience(now)
	for _, l := range *p.lanes.Load() {
		p.sweep(l, now)
		p.publish(l) // what is being retired occupies its slot
		if l.opens <= now {
			p.eased = true
		} else if l.opens != never {
			p.setAlarm(l.opens, now)
		}
	}
	p.unlock(nil)
}

// counts returns the limits in the form in which a lane has them.
func (lim Limits) counts() Limits {
	if lim.Max <= 0 {
		lim.Max = math.MaxInt
	}
	lim.Reserved = min(max(lim.Reserved, 0), lim.Max-1)
	switch {
	case lim.MaxIdle == 0:
		lim.MaxIdle = math.MaxInt
	case lim.MaxIdle < 0:
		lim.MaxIdle = 0
	}
	if lim.MaxAge > century {
		lim.MaxAge = 0
	}
	if lim.MaxIdleTime > century {
		lim.MaxIdleTime = 0
	}
	return lim
}
