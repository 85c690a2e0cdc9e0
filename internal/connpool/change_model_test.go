package connpool_test

import (
	"slices"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

// modelChanges is what the model knows of lanes that come and go, and of those
// who were told to look again.
type modelChanges struct {
	seen, before uint64         // Changes, now and before the last of them
	numbers      map[int]bool   // all that there ever were
	stale        []int          // those whose place was given away
	closed       int            // connections of their lanes that were closed
	rouses       int            // calls of Rouse
	away         []*modelWaiter // those who can come again
	counts       changeCounts
}

// changeCounts says how often what can happen by changes has happened.
type changeCounts struct{ removed, replaced, roused, toldLate, again, passed, kept, checked, seenOld int }

func (n *changeCounts) add(m changeCounts) {
	n.removed += m.removed
	n.replaced += m.replaced
	n.roused += m.roused
	n.toldLate += m.toldLate
	n.again += m.again
	n.passed += m.passed
	n.kept += m.kept
	n.checked += m.checked
	n.seenOld += m.seenOld
}

// check checks that the schedules were worth something.
func (n *changeCounts) check(t *testing.T) {
	t.Logf("%+v", *n)
	if *seedFlag == 0 && min(n.removed, n.replaced, n.roused, n.toldLate, n.again, n.passed, n.kept, n.checked, n.seenOld) == 0 {
		t.Error("something never happens")
	}
}

// changed says that there must be another value of Changes now.
func (m *model) changed() {
	m.changes.before = m.changes.seen
	if m.changes.seen = m.Changes(); m.changes.seen == m.changes.before {
		m.t.Errorf("Changes() = %d as before", m.changes.seen)
	}
}

func (m *model) changeLanes(lane int) {
	switch n := m.r.IntN(10); {
	case len(m.rides.patient) > 0 && n < 5:
		m.rouse()
	case n < 3:
		m.removeLane(lane)
	case n < 7:
		if len(m.lanes) < 5 || slices.ContainsFunc(m.lanes, func(l *modelLane) bool { return l.removed }) {
			m.addLane()
		}
	case n < 8:
		m.useStale()
	default:
		m.rouse()
	}
}

func (m *model) addLane() {
	place := slices.IndexFunc(m.lanes, m.isGone)
	if place < 0 && len(m.lanes) == 8 {
		return
	}
	lim, state := m.randomLimits(), []connpool.State{down, once, up, up, up}[m.r.IntN(5)]
	l := &modelLane{state: state, limits: lim, closed: map[connpool.Reason]uint64{}}
	l.number = m.AddLane(lim, state)
	m.logf("add lane %d at %d: %v, %+v", l.number, place, state, lim)
	if place < 0 {
		place = len(m.lanes)
		m.lanes = append(m.lanes, l)
		if l.number != place {
			m.t.Fatalf("AddLane = %d, want %d", l.number, place)
		}
	} else {
		for _, n := range m.lanes[place].closed {
			m.changes.closed += int(n)
		}
		m.changes.stale = append(m.changes.stale, m.lanes[place].number)
		m.changes.counts.replaced++
		m.lanes[place] = l
	}
	if connpool.Member(l.number) != place || m.changes.numbers[l.number] {
		m.t.Fatalf("AddLane = %d, member %d; want another at %d", l.number, connpool.Member(l.number), place)
	}
	if m.changes.numbers == nil {
		m.changes.numbers = map[int]bool{}
	}
	m.changes.numbers[l.number] = true
}

// isGone reports whether nothing is left of a lane that was removed.
func (m *model) isGone(l *modelLane) bool {
	return l.removed && l.known && l.held == 0 && !slices.ContainsFunc(m.allWaiters(), func(q *modelWaiter) bool {
		return slices.ContainsFunc(q.lanes, func(i int) bool { return m.lanes[i] == l })
	})
}

func (m *model) removeLane(lane int) {
	m.logf("remove lane %d", lane)
	l := m.lanes[lane]
	m.RemoveLane(l.number)
	if l.removed {
		return
	}
	m.changes.counts.removed++
	l.removed, l.state = true, down
	m.shutIdle(l, connpool.ReasonRemoved)
	m.failStranded()
}

// useStale does what can be done with a number whose place was given away, and
// changes nothing by it.
func (m *model) useStale() {
	if len(m.changes.stale) == 0 {
		return
	}
	number := m.changes.stale[m.r.IntN(len(m.changes.stale))]
	m.logf("use stale number %d", number)
	if t, ok := m.Try(number, false); ok || t != nil || m.Free(number, false) || m.Held(number) != 0 {
		m.t.Errorf("a turn of a lane that is gone: %v", ok)
	}
	if _, ok := m.TryIdle(number); ok {
		m.t.Error("an idle turn of a lane that is gone")
	}
	m.SetState(number, connpool.State(m.r.IntN(3)))
	m.SetLimits(number, limits{Max: 1})
	m.Flush(number)
	m.Recheck(number)
	m.RemoveLane(number)
	if s := m.Stats(number); s != (connpool.LaneStats{}) {
		m.t.Errorf("a lane that is gone: %+v", s)
	}
}

func (m *model) rouse() {
	m.logf("rouse")
	m.Rouse()
	m.changed()
	m.changes.rouses++
	for _, l := range m.lanes {
		l.known = l.removed
	}
	for _, q := range slices.Clone(m.waiters) {
		m.changes.counts.roused++
		m.fail(q, connpool.ErrChanged)
	}
}

func (m *model) tryIdle(lane int) {
	if i := slices.IndexFunc(m.lanes, func(l *modelLane) bool { return len(l.idle) > 0 && m.grantable(l, true) }); i >= 0 && m.r.IntN(4) > 0 {
		lane = i
	}
	l := m.lanes[lane]
	turn, ok := m.TryIdle(l.number)
	m.logf("try lane %d idle: %v", lane, ok)
	if want := len(l.idle) > 0 && m.grantable(l, true); ok != want {
		m.t.Fatalf("TryIdle(%d) = %v, want %v", lane, ok, want)
	}
	if ok {
		m.changes.counts.checked++
		m.grant(turn, lane, nil).checks = true
	}
}

func (m *model) join() {
	m.rides.came++
	m.joinAs(&modelWaiter{number: m.rides.came, came: time.Now()}, connpool.Ticket{})
}

// joinAgain lets one whose wait has failed wait again, with its ticket.
func (m *model) joinAgain() {
	if n := len(m.changes.away); n > 0 {
		i := m.r.IntN(n)
		old := m.changes.away[i]
		m.changes.away = slices.Delete(m.changes.away, i, i+1)
		m.changes.counts.again++
		m.joinAs(&modelWaiter{number: old.number, came: old.came}, old.req.Ticket)
	}
}

func (m *model) joinAs(q *modelWaiter, ticket connpool.Ticket) {
	req := &connpool.Request{Ticket: ticket, Bulk: m.r.IntN(3) == 0, Lag: []time.Duration{0, 0, 1, 5, -2}[m.r.IntN(5)] * time.Second}
	var named []int
	for i, l := range m.lanes {
		if m.r.IntN(4) < 2 || m.rides.busy && m.r.IntN(2) == 0 {
			if named = append(named, i); !l.removed {
				q.lanes = append(q.lanes, i)
			}
		}
	}
	if m.r.IntN(4) > 0 {
		req.Rider = &connpool.Rider{}
	}
	switch m.r.IntN(8) {
	case 0:
		req.Seen = m.changes.before
	case 1, 2, 3:
		req.Seen = m.changes.seen
	}
	req.Lanes = set(named...)
	q.due, q.bulk, q.rouses = q.came.Add(req.Lag), req.Bulk, m.changes.rouses
	if q.fare = m.randomFare(); q.fare != nil {
		req.Fare = q.fare
	}
	q.wait = m.waitFor(req)
	m.logf("wait for %v, %d, due %v, bulk %v", named, q.number, q.due.Sub(m.start), q.bulk)
	m.enqueue(q)
	switch {
	case m.closed:
		m.fail(q, connpool.ErrClosed)
		return
	case req.Seen != 0 && req.Seen != m.changes.seen:
		m.changes.counts.seenOld++
		m.fail(q, connpool.ErrChanged)
		return
	}
	for _, i := range q.lanes {
		if m.grantable(m.lanes[i], q.bulk) && (q.fare == nil || m.passes(i, q.bulk, q.fare, q.place(m))) {
			m.serveTo(q, i)
			return
		}
	}
	m.failStranded()
}

// enqueue puts a waiter where it is due.
func (m *model) enqueue(q *modelWaiter) {
	i := 0
	for i < len(m.waiters) && (m.waiters[i].due.Before(q.due) || m.waiters[i].due.Equal(q.due) && m.waiters[i].number < q.number) {
		i++
	}
	if i < len(m.waiters) {
		m.changes.counts.passed++
	}
	m.waiters = slices.Insert(m.waiters, i, q)
}

// firstFor returns the first waiter who may have one more turn of a lane beside
// so many, and can pay for it. fresh: the turn comes without a connection.
func (m *model) firstFor(lane, held int, fresh bool) *modelWaiter {
	var heads []*modelWaiter // of lines, who can't pay
	for _, q := range m.waiters {
		switch {
		case !slices.Contains(q.lanes, lane):
		case q.bulk && !m.lanes[lane].hasRoom(held, true):
			m.changes.counts.kept++
		case q.fare == nil:
			return q
		case slices.ContainsFunc(heads, func(x *modelWaiter) bool { return x.bulk == q.bulk && x.fare.Like(q.fare) }):
		case m.owes(lane, q.fare, fresh) <= 0:
			return q
		default:
			heads = append(heads, q)
		}
	}
	return nil
}

func (m *model) checkChanges() {
	if got := m.Changes(); got != m.changes.seen {
		m.t.Errorf("Changes() = %d, want %d", got, m.changes.seen)
	}
	for i, l := range m.lanes {
		bulk := 0
		for _, t := range m.turns {
			if t.lane == i && t.bulk {
				bulk++
			}
		}
		if bulk > 0 && !l.relimit && !l.hasRoom(bulk-1, true) {
			m.t.Errorf("lane %d: %d turns are bulk, %+v", i, bulk, l.limits)
		}
	}
}
