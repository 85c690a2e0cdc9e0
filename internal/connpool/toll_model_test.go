package connpool_test

import (
	"cmp"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// modelTolls is what the model knows of fares: gates of its own, which must be at
// any time as those are that the pool pays at.
type modelTolls struct {
	on     bool
	ledger *ledger
	gates  gates[modelPlace]
	counts tollCounts
}

// modelToll is what a turn of the model has paid for.
type modelToll struct {
	fare                *fakeFare
	fresh, dials, spent bool
}

// modelPlace is a waiter's place among all.
type modelPlace struct {
	due    time.Duration
	number int
}

func (p modelPlace) Before(o modelPlace) bool {
	return cmp.Or(cmp.Compare(p.due, o.due), cmp.Compare(p.number, o.number)) < 0
}

func (q *modelWaiter) place(m *model) modelPlace { return modelPlace{q.due.Sub(m.start), q.number} }

// tollCounts says how often what can happen to those who pay has happened.
type tollCounts struct{ paid, spent, returned, unused, tried, refused, behind, waited, slot, both, eased, boarded, carried, broken int }

func (n *tollCounts) add(m tollCounts) {
	n.paid += m.paid
	n.spent += m.spent
	n.returned += m.returned
	n.unused += m.unused
	n.tried += m.tried
	n.refused += m.refused
	n.behind += m.behind
	n.waited += m.waited
	n.slot += m.slot
	n.both += m.both
	n.eased += m.eased
	n.boarded += m.boarded
	n.carried += m.carried
	n.broken += m.broken
}

// check checks that the schedules were worth something.
func (n *tollCounts) check(t *testing.T) {
	t.Logf("%+v", *n)
	if *seedFlag == 0 && min(n.paid, n.spent, n.returned, n.unused, n.tried, n.refused, n.behind, n.waited, n.slot, n.both, n.eased, n.boarded, n.carried, n.broken) == 0 {
		t.Error("something never happens")
	}
}

// setUpTolls makes the gates, in half of the schedules.
func (m *model) setUpTolls() {
	m.tolls.on = m.r.IntN(2) == 0
	l := newLedger(m.t)
	m.tolls.ledger = l
	add := func(all *[]*fakeGate, mirror *[]*gate[modelPlace], every time.Duration, burst, most int) {
		if every == 0 && most == 0 {
			*all, *mirror = append(*all, nil), append(*mirror, nil)
			return
		}
		*all = append(*all, &fakeGate{every: every, burst: burst, most: most})
		*mirror = append(*mirror, &gate[modelPlace]{every: every, burst: burst, most: most})
	}
	every := func(d ...time.Duration) time.Duration { return d[m.r.IntN(len(d))] }
	add(&l.shared, &m.tolls.gates.shared, every(time.Second/4, time.Second*7/10, 3*time.Second), 1+m.r.IntN(4), 0)
	add(&l.shared, &m.tolls.gates.shared, 0, 0, 1+m.r.IntN(4))
	add(&l.shared, &m.tolls.gates.shared, every(time.Second/2, 2*time.Second), 1+m.r.IntN(4), 1+m.r.IntN(4))
	for range 8 {
		add(&l.lanes, &m.tolls.gates.lanes, every(0, 0, time.Second*3/10, 2*time.Second), 1+m.r.IntN(3), 0)
		add(&l.gates.fresh, &m.tolls.gates.fresh, every(0, 0, time.Second, 3*time.Second), 1+m.r.IntN(2), 0)
	}
}

// randomFare returns one, or nil.
func (m *model) randomFare() *fakeFare {
	if !m.tolls.on || m.r.IntN(4) == 0 {
		return nil
	}
	f := m.tolls.ledger.fare([]int{1, 1, 1, 2, 3}[m.r.IntN(5)])
	for i := range m.tolls.ledger.shared {
		if m.r.IntN(5) < 2 {
			f.shared = append(f.shared, i)
		}
	}
	f.modest = true
	return f
}

// randomAge returns a MaxAge. With fares there is none: a connection may go at any time, and then
// within leastWait of that of a token.
func (m *model) randomAge() time.Duration {
	if age := 20 * time.Second; m.r.IntN(3) == 0 && !m.tolls.on {
		return age
	}
	return 0
}

// owes is how long it is until a fare can be paid.
func (m *model) owes(lane int, f *fakeFare, fresh bool) time.Duration {
	return m.tolls.gates.wait(lane, f.price, time.Now(), fresh, modelPlace{}, false)
}

// passes reports whether one at that place can pay, and is behind nobody in its line.
func (m *model) passes(lane int, bulk bool, f *fakeFare, at modelPlace) bool {
	for _, q := range m.waiters {
		if slices.Contains(q.lanes, lane) && q.fare != nil && q.bulk == bulk && q.fare.Like(f) && q.place(m).Before(at) {
			m.tolls.counts.behind++
			return false
		}
	}
	return m.owes(lane, f, len(m.lanes[lane].idle) == 0) <= 0
}

func (m *model) tryFare(lane int, bulk bool, f *fakeFare) {
	lag := []time.Duration{0, 0, 0, 2, -2}[m.r.IntN(5)] * time.Second
	turn, ok := m.TryFare(m.lanes[lane].number, bulk, f, lag)
	m.logf("try lane %d, bulk %v, %+v: %v", lane, bulk, f.price, ok)
	at := modelPlace{time.Now().Add(lag).Sub(m.start), m.rides.came + 1}
	want := m.grantable(m.lanes[lane], bulk)
	if want && !m.passes(lane, bulk, f, at) {
		m.tolls.counts.refused++
		want = false
	}
	if ok != want {
		m.t.Fatalf("TryFare(%d, %v, %+v) = %v, want %v", lane, bulk, f.price, ok, want)
	}
	if ok {
		m.tolls.counts.tried++
		m.grant(turn, lane, f).bulk = bulk
	}
}

// pay has a turn pay.
func (m *model) pay(t *modelTurn, f *fakeFare) {
	if f != nil {
		t.toll = modelToll{fare: f, fresh: t.conn == nil}
		m.tolls.counts.paid++
		m.tolls.gates.pay(t.lane, f.price, time.Now(), t.toll.fresh)
	}
}

// payOff ends what a turn has paid.
func (m *model) payOff(t *modelTurn) {
	x := &t.toll
	if x.fare == nil {
		return
	}
	unused := x.fresh && !x.dials
	switch {
	case unused:
		m.tolls.counts.unused++
	case !x.spent:
		m.tolls.counts.returned++
	}
	m.tolls.gates.end(t.lane, x.fare.price, x.spent, unused)
	x.fare = nil
}

func (m *model) spend(t *modelTurn) {
	if m.r.IntN(2) == 0 {
		m.tolls.counts.spent++
		t.toll.spent = true
		t.turn.Spend()
	}
}

func (m *model) dial(t *modelTurn) {
	if m.r.IntN(4) > 0 {
		want := t.toll.fresh && !t.toll.dials
		if got := t.turn.Dials(); got != want {
			m.t.Errorf("Dials() = %v, want %v", got, want)
		}
		t.toll.dials = true
	}
}

func (m *model) payToRide(q *modelWaiter, t *modelTurn) {
	if q.fare != nil {
		m.tolls.counts.boarded++
		q.paid = true
		m.tolls.gates.pay(t.lane, q.fare.price, time.Now(), false)
	}
}

// breakRide gives back what a rider has paid.
func (m *model) breakRide(q *modelWaiter) {
	if q.paid {
		m.tolls.counts.broken++
		q.paid = false
		m.tolls.gates.end(q.on.lane, q.fare.price, false, false)
	}
}

// carryOver is what the turn of a rider has paid: as a rider.
func (m *model) carryOver(q *modelWaiter) modelToll {
	if !q.paid {
		return modelToll{}
	}
	m.tolls.counts.carried++
	q.paid = false
	return modelToll{fare: q.fare}
}

// ease fills a bucket.
func (m *model) ease() {
	i := []int{0, 2}[m.r.IntN(2)]
	m.logf("ease gate %d", i)
	l := m.tolls.ledger
	l.mu.Lock()
	l.shared[i].full = time.Now()
	l.mu.Unlock()
	m.tolls.gates.shared[i].full = time.Now()
	m.Ease()
	m.tolls.counts.eased++
}

// settle serves all who can be: who is due first comes first, and of the lanes that would do it is the lowest.
func (m *model) settle() {
	for {
		var first *modelWaiter
		lane := 0
		for i, l := range m.lanes {
			if !m.grantable(l, false) {
				continue
			}
			if q := m.firstFor(i, l.held, len(l.idle) == 0); q != nil && (first == nil || q.place(m).Before(first.place(m))) {
				first, lane = q, i
			}
		}
		if first == nil {
			return
		}
		if first.fare != nil {
			m.tolls.counts.both++
		}
		m.serveTo(first, lane)
	}
}

// tokenComes returns when the next token comes that somebody may wait for, if that is not after the given time.
func (m *model) tokenComes(end time.Time) (next time.Time) {
	for _, q := range m.waiters {
		if q.fare == nil {
			continue
		}
		for _, lane := range q.lanes {
			for _, fresh := range []bool{false, true} {
				d := m.owes(lane, q.fare, fresh)
				if at := time.Now().Add(d); d > 0 && d < time.Hour && !at.After(end) && (next.IsZero() || at.Before(next)) {
					next = at
				}
			}
			if !m.grantable(m.lanes[lane], q.bulk) {
				m.tolls.counts.slot++
			}
		}
	}
	return next
}

// pass lets time pass, and happen what is due then.
func (m *model) pass(d time.Duration) {
	m.logf("%v pass", d)
	end := time.Now().Add(d)
	for {
		next, token := m.patienceEnds(end), m.tokenComes(end)
		if next.IsZero() || !token.IsZero() && token.Before(next) {
			next = token
		}
		if next.IsZero() {
			break
		}
		m.sleep(time.Until(next) - 1)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		m.endPatience()
		m.sleep(0)
		n := len(m.waiters)
		m.settle()
		if next.Equal(token) && len(m.waiters) < n {
			m.tolls.counts.waited++
		}
	}
	m.sleep(time.Until(end))
}

func (m *model) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
	for _, l := range m.lanes {
		l.idle = slices.DeleteFunc(l.idle, m.shutIfExpired)
	}
}

// checkTolls checks that all gates are as the model says.
func (m *model) checkTolls() {
	l := m.tolls.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	if m.t.Failed() {
		return
	}
	compare := func(what string, all []*fakeGate, want []*gate[modelPlace]) {
		for i, g := range all {
			if g == nil {
				continue
			}
			left := func(full time.Time) time.Duration { return max(0, time.Until(full)) }
			if w := want[i]; g.inUse != w.inUse || left(g.full) != left(w.full) {
				m.t.Errorf("%s %d: %d at a time, full in %v; want %d, %v", what, i, g.inUse, left(g.full), w.inUse, left(w.full))
			}
		}
	}
	compare("shared gate", l.shared, m.tolls.gates.shared)
	compare("gate of lane", l.lanes, m.tolls.gates.lanes)
	compare("connections of lane", l.gates.fresh, m.tolls.gates.fresh)
	paid := 0
	for _, t := range m.turns {
		if t.toll.fare != nil {
			paid++
		}
	}
	for _, q := range m.allWaiters() {
		if q.paid {
			paid++
		}
	}
	for _, n := range l.owed {
		paid -= n
	}
	if paid != 0 {
		m.t.Errorf("%d fares more are paid by the model", paid)
	}
}
