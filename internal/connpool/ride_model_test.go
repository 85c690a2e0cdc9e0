package connpool_test

import (
	"slices"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

// modelRides is what the model knows of riders. One whose patience lasts is in
// patient, and not in the queue; one whose patience is over is in the queue, and
// rides on.
type modelRides struct {
	patience time.Duration  // as configured
	busy     bool           // lanes are small, and turns have connections, so that many can ride
	patient  []*modelWaiter // first boarded first
	came     int            // waiters
	counts   rideCounts
}

// rideCounts says how often what can happen to riders has happened.
type rideCounts struct{ boarded, handedOver, alighted, cameBack, servedAtOnce, impatient, left, untaken, bulk int }

func (n *rideCounts) add(m rideCounts) {
	n.boarded += m.boarded
	n.handedOver += m.handedOver
	n.alighted += m.alighted
	n.cameBack += m.cameBack
	n.servedAtOnce += m.servedAtOnce
	n.impatient += m.impatient
	n.left += m.left
	n.untaken += m.untaken
	n.bulk += m.bulk
}

// check checks that the schedules were worth something.
func (n *rideCounts) check(t *testing.T) {
	t.Logf("%+v", *n)
	if *seedFlag == 0 && min(n.boarded, n.handedOver, n.alighted, n.cameBack, n.servedAtOnce, n.impatient, n.left, n.untaken, n.bulk) == 0 {
		t.Error("something never happens")
	}
}

// allWaiters returns the waiters, whether they ride or not.
func (m *model) allWaiters() []*modelWaiter {
	return slices.Concat(m.waiters, m.rides.patient)
}

// worthBoarding returns a turn that could have a rider, or else the one given.
func (m *model) worthBoarding(t *modelTurn) *modelTurn {
	for _, i := range m.r.Perm(len(m.turns)) {
		x := m.turns[i]
		if x.holds && x.rider == nil && m.r.IntN(8) > 0 && slices.ContainsFunc(m.waiters, func(q *modelWaiter) bool { return slices.Contains(q.lanes, x.lane) }) {
			return x
		}
	}
	return t
}

func (m *model) board(t *modelTurn) {
	uses := m.r.IntN(3)
	load, ok := t.turn.Board(uses)
	m.logf("lane %d, %v: board, used %d times: %v", t.lane, t.conn, uses, ok)
	l := m.lanes[t.lane]
	var q *modelWaiter
	if t.holds {
		q = m.firstFor(t.lane, l.held-1, false)
	}
	want := q != nil && q.rider != nil && q.on == nil &&
		!t.conn.taken && !t.once && !t.checks && !m.closed && l.state == up && t.flushes == l.flushes &&
		(l.limits.Max <= 0 || l.held <= l.limits.Max) &&
		(l.limits.MaxUses <= 0 || t.conn.uses+uses < l.limits.MaxUses)
	if want {
		t.conn.limits = l.limits
		mayBeOld, mustBeOld := t.conn.old()
		want = !mustBeOld && (!mayBeOld || ok)
	}
	switch {
	case ok != want || !ok && load != nil:
		m.t.Fatalf("Board(%d) = %v, %v; want %v", uses, load, ok, want)
	case ok && load != q.wait:
		m.t.Fatalf("Board(%d): not the load of the first waiter", uses)
	case ok:
		m.logf("  %d rides", q.number)
		m.rides.counts.boarded++
		if q.bulk && !m.grantable(l, true) {
			m.rides.counts.bulk++
		}
		t.rider, q.on, t.conn.taken = q, t, true
		m.payToRide(q, t)
		m.waiters = slices.DeleteFunc(m.waiters, func(x *modelWaiter) bool { return x == q })
		m.rides.patient = append(m.rides.patient, q)
		patience := m.rides.patience
		if patience == 0 {
			patience = time.Second
		}
		if patience > 0 {
			q.until = time.Now().Add(patience)
		}
	}
}

func (m *model) alight(t *modelTurn) {
	m.logf("lane %d, %v: alight", t.lane, t.conn)
	t.turn.Alight()
	if t.holds {
		t.conn.taken = false
		if t.rider != nil {
			m.rides.counts.alighted++
		}
		m.getOff(t)
	}
}

// getOff gives the rider of a turn its place back.
func (m *model) getOff(t *modelTurn) {
	q := t.rider
	if q == nil {
		return
	}
	m.breakRide(q)
	t.rider, q.on = nil, nil
	if i := slices.Index(m.rides.patient, q); i >= 0 {
		m.rides.patient = slices.Delete(m.rides.patient, i, i+1)
		m.comeBack(q)
	}
}

// comeBack gives a waiter that is out of the queue its due.
func (m *model) comeBack(q *modelWaiter) {
	m.logf("  %d comes back", q.number)
	m.rides.counts.cameBack++
	m.enqueue(q)
	if m.closed {
		m.fail(q, connpool.ErrClosed)
		return
	}
	for _, lane := range q.lanes {
		if q.fare == nil && m.grantable(m.lanes[lane], q.bulk) {
			m.rides.counts.servedAtOnce++
			m.serveTo(q, lane)
			return
		}
	}
	if q.rouses != m.changes.rouses {
		m.changes.counts.toldLate++
		m.fail(q, connpool.ErrChanged)
		return
	}
	m.failStranded()
}

// serveTo grants a waiter a turn of a lane.
func (m *model) serveTo(q *modelWaiter, lane int) {
	m.logf("  lane %d goes to %d, who waits for %v", lane, q.number, q.lanes)
	turn := q.gets(m.lanes[lane].number)
	m.leave(q)
	m.grant(turn, lane, q.fare).bulk = q.bulk
}

// leave ends a wait.
func (m *model) leave(q *modelWaiter) {
	if q.rider != nil {
		q.lent(q.on != nil)
	}
	if q.on != nil {
		m.rides.counts.left++
		m.breakRide(q)
		q.on.rider, q.on = nil, nil
	}
	is := func(x *modelWaiter) bool { return x == q }
	m.waiters, m.rides.patient = slices.DeleteFunc(m.waiters, is), slices.DeleteFunc(m.rides.patient, is)
}

// handOver lets the rider of a turn that was put back have its slot and its
// connection, if the connection may be used again.
func (m *model) handOver(t *modelTurn) bool {
	l, c, q := m.lanes[t.lane], t.conn, t.rider
	if q == nil {
		if c != nil && c.taken && !t.holds {
			m.rides.counts.untaken++
		}
		return false
	}
	c.limits = l.limits
	if _, over := m.expired(c); over || m.closed || l.state != up || t.flushes != l.flushes ||
		l.limits.Max > 0 && l.held > l.limits.Max || l.limits.MaxUses > 0 && c.uses >= l.limits.MaxUses {
		return false
	}
	m.logf("  lane %d and %v go to %d, who rode", t.lane, c, q.number)
	m.rides.counts.handedOver++
	turn := q.gets(l.number)
	t.rider, q.on = nil, nil
	m.leave(q)
	m.turns = append(m.turns, &modelTurn{turn: turn, lane: t.lane, conn: c, flushes: t.flushes, rides: true, bulk: q.bulk, toll: m.carryOver(q)})
	m.payOff(t)
	return true
}

// patienceEnds returns when the next rider's patience ends, if that is not after
// the given time.
func (m *model) patienceEnds(end time.Time) time.Time {
	if len(m.rides.patient) > 0 {
		if next := m.rides.patient[0].until; !next.After(end) {
			return next
		}
	}
	return time.Time{}
}

// endPatience lets those come back whose patience ends now.
func (m *model) endPatience() {
	for len(m.rides.patient) > 0 {
		q := m.rides.patient[0]
		if q.until.IsZero() || q.until.After(time.Now()) {
			break
		}
		m.logf("  the patience of %d is over", q.number)
		m.rides.counts.impatient++
		m.rides.patient = m.rides.patient[1:]
		m.comeBack(q)
	}
}

func (m *model) checkRides() {
	for _, t := range m.turns {
		if got := t.turn.Rides(); got != t.rides {
			m.t.Errorf("Rides() = %v, want %v", got, t.rides)
		}
	}
	for _, q := range m.waiters {
		for _, lane := range q.lanes {
			if q.fare == nil && m.grantable(m.lanes[lane], q.bulk) {
				m.t.Errorf("lane %d is free, and %d waits for it", lane, q.number)
			}
		}
	}
}
