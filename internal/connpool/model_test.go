package connpool_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

var seedFlag = flag.Uint64("seed", 0, "run only the schedule of this seed")

// seeds calls f for n random seeds, each in a bubble of its own, until one
// fails.
func seeds(t *testing.T, n int, f func(t *testing.T, r *rand.Rand)) {
	run := func(seed uint64) bool {
		return t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, rand.New(rand.NewPCG(seed, 0))) })
		})
	}
	if *seedFlag != 0 {
		run(*seedFlag)
		return
	}
	if !thorough() {
		n = max(n/3, 20)
	}
	for range n {
		if seed := rand.Uint64(); !run(seed) {
			t.Fatalf("to repeat: go test -run '%s' -seed=%d", t.Name(), seed)
		}
	}
}

// model says what a pool does, in the plainest way: one queue that is scanned
// from the front. The schedule is sequential: after each operation everything
// settles, and all that can be seen of the pool must be as the model says.
// The one thing that it cannot know is what part of MaxAge a connection has
// drawn; within ±10 % it believes the pool.
type model struct {
	*world
	t       *testing.T
	r       *rand.Rand
	start   time.Time
	log     []string
	closed  bool
	lanes   []*modelLane
	waiters []*modelWaiter // in the queue, first come first
	rides   modelRides
	changes modelChanges
	tolls   modelTolls
	turns   []*modelTurn
	ended   []*fakeTurn
}

type modelLane struct {
	number  int
	removed bool
	known   bool // to be removed, since a Rouse
	relimit bool // limits were set
	state   connpool.State
	limits  limits
	held    int
	most    [2]int       // held and waiting at their highest
	idle    []*modelConn // the oldest first
	flushes int
	opened  uint64
	reused  uint64
	closed  map[connpool.Reason]uint64
}

type modelConn struct {
	c      *fakeConn
	lane   *modelLane
	uses   int
	born   time.Time
	taken  bool // somebody's work was begun on it, and nobody has it who finishes it
	since  time.Time
	limits limits // when it went idle, or when they were set
}

type modelTurn struct {
	turn    *fakeTurn
	lane    int
	conn    *modelConn
	holds   bool
	flushes int
	once    bool
	checks  bool
	bulk    bool
	rides   bool
	rider   *modelWaiter // on conn
	toll    modelToll
}

func (c *modelConn) String() string {
	if c == nil {
		return "none"
	}
	return c.c.String()
}

type modelWaiter struct {
	*wait
	lanes  []int
	number int       // of arrival
	came   time.Time // arrival
	due    time.Time
	bulk   bool
	rouses int        // when it came, or came again
	fare   *fakeFare  // nil: it pays none
	paid   bool       // for its ride
	on     *modelTurn // whose connection it rides on
	until  time.Time  // when its patience is over
}

func TestModel(t *testing.T) {
	t.Parallel()
	var counts rideCounts
	var changes changeCounts
	var tolls tollCounts
	seeds(t, 400, func(t *testing.T, r *rand.Rand) {
		patience := []time.Duration{0, time.Second / 4, 3 * time.Second, -1}[r.IntN(4)]
		m := &model{world: newPatientWorld(t, patience), t: t, r: r, start: time.Now()}
		m.rides.patience, m.rides.busy = patience, r.IntN(3) > 0
		m.changes.seen = m.Changes()
		m.setUpTolls()
		defer func() { counts.add(m.rides.counts); changes.add(m.changes.counts); tolls.add(m.tolls.counts) }()
		defer func() {
			if t.Failed() {
				t.Logf("schedule:\n%s", strings.Join(m.log, "\n"))
			}
		}()
		for range 1 + r.IntN(3) {
			m.addLane()
		}
		steps := 100
		if m.rides.busy {
			steps = 200
		}
		closeAt := r.IntN(2 * steps)
		for i := range steps {
			if i == closeAt {
				m.close()
			} else {
				m.step()
			}
			m.check()
			if t.Failed() {
				return
			}
		}
		m.finish()
	})
	counts.check(t)
	changes.check(t)
	tolls.check(t)
}

func (m *model) logf(format string, args ...any) {
	m.log = append(m.log, fmt.Sprintf("%v: ", time.Since(m.start))+fmt.Sprintf(format, args...))
}

func (m *model) step() {
	lane := m.r.IntN(len(m.lanes))
	var turn *modelTurn
	if len(m.turns) > 0 {
		turn = m.turns[m.r.IntN(len(m.turns))]
	}
	if m.rides.busy && turn != nil && m.r.IntN(3) == 0 {
		switch {
		case turn.rider == nil && len(m.rides.patient) > 0 && m.r.IntN(2) == 0:
			m.end(turn, true) // may leave a slot free that a rider could have had
		case len(m.waiters) < 2:
			m.join()
		default:
			m.board(m.worthBoarding(turn))
		}
		return
	}
	switch n := m.r.IntN(100); {
	case n < 2 && m.tolls.on:
		m.ease()
	case n < 8:
		m.tryTurn(lane)
	case n < 11:
		m.tryIdle(lane)
	case n < 13:
		m.changeLanes(lane)
	case n < 16:
		m.joinAgain()
	case n < 28:
		m.join()
	case n < 32:
		m.cancel()
	case n < 34:
		m.setState(lane, connpool.State(m.r.IntN(3)))
	case n < 39:
		m.setState(lane, up)
	case n < 42:
		m.setLimits(lane)
	case n < 43:
		m.flush(lane)
	case n < 45:
		m.recheck(lane)
	case n < 48:
		m.kill(lane)
	case n < 54:
		m.pass(time.Duration(1+m.r.IntN(m.r.IntN(40)+1)) * time.Second / 4)
	case n < 56 && len(m.ended) > 0:
		m.endAgain()
	case turn == nil:
		m.tryTurn(lane)
	case n < 66:
		if m.conn(turn); m.rides.busy && !turn.holds {
			m.adopt(turn)
		}
	case n < 73:
		if turn.holds && m.r.IntN(10) > 0 {
			m.board(m.worthBoarding(turn))
		} else {
			m.adopt(turn)
		}
	case n < 83:
		m.board(m.worthBoarding(turn))
	case n < 85:
		m.alight(turn)
	case n < 88:
		m.discard(turn)
	default:
		m.end(turn, m.r.IntN(6) > 0)
	}
}

func (m *model) finish() {
	for len(m.turns) > 0 && !m.t.Failed() {
		m.end(m.turns[0], true)
		m.check()
	}
	m.close()
	m.check()
	for _, l := range m.lanes {
		m.wantStats(l.number, 0, 0, 0)
	}
	for _, c := range m.conns {
		if c.closes == 0 && !c.dropped {
			m.t.Errorf("%v was never closed", c)
		}
	}
}

// The operations: each does it to the pool, and then to the model.

func (m *model) tryTurn(lane int) {
	l, bulk := m.lanes[lane], m.r.IntN(3) == 0
	if f := m.randomFare(); f != nil {
		m.tryFare(lane, bulk, f)
		return
	}
	turn, ok := m.Try(l.number, bulk)
	m.logf("try lane %d, bulk %v: %v", lane, bulk, ok)
	if want := m.grantable(l, bulk); ok != want {
		m.t.Fatalf("Try(%d, %v) = %v, want %v", lane, bulk, ok, want)
	}
	if ok {
		m.grant(turn, lane, nil).bulk = bulk
	}
}

func (m *model) cancel() {
	all := m.allWaiters()
	if len(all) == 0 {
		return
	}
	q := all[m.r.IntN(len(all))]
	m.logf("cancel %v, %d", q.lanes, q.number)
	q.cancel(nil)
	m.fail(q, context.Canceled)
}

func (m *model) setState(lane int, s connpool.State) {
	m.logf("lane %d is %v", lane, s)
	l := m.lanes[lane]
	m.SetState(l.number, s)
	if l.removed {
		return
	}
	l.state = s
	if s != up {
		m.shutIdle(l, connpool.ReasonDown)
	}
	m.failStranded()
	m.serve(lane)
}

func (m *model) setLimits(lane int) {
	lim := m.randomLimits()
	m.logf("lane %d: limits %+v", lane, lim)
	l := m.lanes[lane]
	m.SetLimits(l.number, lim)
	l.limits, l.relimit = lim, true
	idle := l.idle
	l.idle = nil
	for _, c := range idle {
		m.park(c, l.flushes)
	}
	m.serve(lane)
}

func (m *model) flush(lane int) {
	m.logf("flush lane %d", lane)
	m.Flush(m.lanes[lane].number)
	m.lanes[lane].flushes++
	m.shutIdle(m.lanes[lane], connpool.ReasonDrained)
}

func (m *model) recheck(lane int) {
	m.logf("recheck lane %d", lane)
	l := m.lanes[lane]
	m.Recheck(l.number)
	l.idle = slices.DeleteFunc(l.idle, func(c *modelConn) bool {
		if c.c.dead {
			m.shut(c, connpool.ReasonDead)
		}
		return c.c.dead
	})
}

func (m *model) kill(lane int) {
	if len(m.turns) > 0 && m.r.IntN(2) == 0 {
		if c := m.turns[m.r.IntN(len(m.turns))].conn; c != nil {
			m.logf("%v dies in use", c)
			c.c.dead = true
		}
	} else if idle := m.lanes[lane].idle; len(idle) > 0 {
		c := idle[m.r.IntN(len(idle))].c
		m.logf("%v dies", c)
		c.dead = true
	}
}

func (m *model) conn(t *modelTurn) {
	got, ok := t.turn.Conn()
	m.logf("conn of lane %d: %v", t.lane, got)
	l := m.lanes[t.lane]
	for !t.holds {
		if c := t.conn; c != nil {
			switch {
			case c.taken:
				c.taken, t.holds = false, true
				l.reused++
				continue
			case m.shutIfExpired(c):
			case c.c.dead:
				m.shut(c, connpool.ReasonDead)
			default:
				if t.holds = true; !t.checks {
					l.reused++
				}
				continue
			}
		}
		if t.conn = l.pop(); t.conn == nil {
			break
		}
	}
	if want := t.conn; ok != (want != nil) || ok && got != want.c {
		m.t.Fatalf("Conn() = %v, %v; want %v", got, ok, want)
	}
}

func (m *model) adopt(t *modelTurn) {
	c := m.open()
	m.logf("lane %d adopts %v", t.lane, c)
	m.dial(t)
	t.turn.Adopt(c)
	l := m.lanes[t.lane]
	t.rides, t.checks = false, false
	if t.holds {
		m.getOff(t)
		m.shut(t.conn, connpool.ReasonTrimmed)
	} else if t.conn != nil {
		m.park(t.conn, t.flushes)
	}
	t.conn, t.holds = &modelConn{c: c, lane: l, born: time.Now()}, true
	l.opened++
	m.serve(t.lane)
	if m.closed != (c.aborts > 0) {
		m.t.Errorf("%v adopted by a pool that is closed (%v): aborts %d", c, m.closed, c.aborts)
	}
}

func (m *model) discard(t *modelTurn) {
	m.logf("lane %d discards %v", t.lane, t.conn)
	t.turn.Discard()
	m.drop(t)
}

func (m *model) drop(t *modelTurn) {
	if t.holds {
		m.getOff(t)
		t.conn.c.dropped = true
		t.conn.lane.closed[connpool.ReasonBroken]++
		t.conn, t.holds, t.rides = nil, false, false
	}
}

func (m *model) end(t *modelTurn, put bool) {
	m.logf("lane %d ends with %v, put %v", t.lane, t.conn, put)
	uses := m.r.IntN(3)
	m.spend(t)
	if put && !t.turn.Put(uses) || !put && !t.turn.Drop() {
		m.t.Error("a turn said that it had ended before")
	}
	if !put {
		m.drop(t)
	}
	if t.holds {
		t.conn.uses += uses
		if !t.checks || uses > 0 {
			t.conn.since = time.Now()
		}
	}
	m.turns = slices.DeleteFunc(m.turns, func(x *modelTurn) bool { return x == t })
	m.ended = append(m.ended, t.turn)
	if m.handOver(t) {
		return
	}
	m.getOff(t)
	m.lanes[t.lane].held--
	if t.conn != nil {
		m.park(t.conn, t.flushes)
	}
	m.payOff(t)
	m.serve(t.lane)
}

func (m *model) endAgain() {
	t := m.ended[m.r.IntN(len(m.ended))]
	m.logf("lane %d ends again", t.Lane())
	if t.Put(1) || t.Drop() {
		m.t.Error("a turn ended twice")
	}
	if c, ok := t.Conn(); ok {
		m.t.Errorf("%v for a turn that has ended", c)
	}
}

func (m *model) close() {
	m.logf("close")
	m.Close()
	for _, l := range m.lanes {
		m.shutIdle(l, connpool.ReasonClosed)
	}
	if !m.closed {
		for _, t := range m.turns {
			if t.conn != nil && t.conn.c.aborts != 1 {
				m.t.Errorf("%v aborted %d times", t.conn.c, t.conn.c.aborts)
			}
		}
	}
	m.closed = true
	for _, q := range m.allWaiters() {
		m.fail(q, connpool.ErrClosed)
	}
}

// The rules.

func (m *model) randomLimits() limits {
	most := []int{1, 1, 2, 3, 5, 0}
	if m.rides.busy {
		most = most[:3]
	}
	return limits{
		Max:         most[m.r.IntN(len(most))],
		Reserved:    []int{0, 0, 1, 2, -1}[m.r.IntN(5)],
		MaxIdle:     []int{0, 0, 0, 1, 2, -1}[m.r.IntN(6)],
		MaxUses:     []int{0, 0, 4}[m.r.IntN(3)],
		MaxAge:      m.randomAge(),
		MaxIdleTime: []time.Duration{0, 5 * time.Second, 7 * time.Second}[m.r.IntN(3)],
	}
}

func (m *model) grantable(l *modelLane, bulk bool) bool {
	return !m.closed && l.state != down && l.hasRoom(l.held, bulk)
}

// hasRoom reports whether there is a slot for one more beside so many turns.
func (l *modelLane) hasRoom(held int, bulk bool) bool {
	if bulk {
		held += max(0, min(l.limits.Reserved, l.limits.Max-1))
	}
	return l.limits.Max <= 0 || held < l.limits.Max
}

func (m *model) grant(turn *fakeTurn, lane int, f *fakeFare) *modelTurn {
	l := m.lanes[lane]
	if turn.Lane() != l.number {
		m.t.Fatalf("a turn of lane %d instead of %d", turn.Lane(), lane)
	}
	t := &modelTurn{turn: turn, lane: lane, conn: l.pop(), flushes: l.flushes, once: l.state == once}
	m.turns = append(m.turns, t)
	l.held++
	m.pay(t, f) // before riders that are stranded give back what they paid: a bucket that was full holds no more
	if l.state == once {
		l.state = down
		m.failStranded()
	}
	return t
}

// serve lets those who may use a lane have it, as long as there is room, and
// others what they can pay for now; and then keeps no more idle connections than allowed.
func (m *model) serve(lane int) {
	m.settle()
	m.trim(m.lanes[lane])
}

func (m *model) trim(l *modelLane) {
	for len(l.idle) > 0 {
		max, maxIdle := l.limits.Max, l.limits.MaxIdle
		if !(max > 0 && l.held+len(l.idle) > max || maxIdle < 0 || maxIdle > 0 && len(l.idle) > maxIdle) {
			break
		}
		m.shut(l.idle[0], connpool.ReasonTrimmed)
		l.idle = l.idle[1:]
	}
}

func (m *model) failStranded() {
	for _, q := range slices.Clone(m.waiters) {
		if !slices.ContainsFunc(q.lanes, func(i int) bool { return m.lanes[i].state != down }) {
			m.fail(q, connpool.ErrNoLane)
		}
	}
}

func (m *model) fail(q *modelWaiter, err error) {
	m.logf("  the waiter for %v, %d, fails: %v", q.lanes, q.number, err)
	q.fails(err)
	m.leave(q)
	if q.req.Ticket != (connpool.Ticket{}) {
		m.changes.away = append(m.changes.away, q)
	}
}

func (m *model) park(c *modelConn, flushes int) {
	l := c.lane
	c.limits = l.limits
	switch {
	case flushes != l.flushes:
		m.shut(c, connpool.ReasonDrained)
	case m.closed:
		m.shut(c, connpool.ReasonClosed)
	case l.removed:
		m.shut(c, connpool.ReasonRemoved)
	case l.state != up:
		m.shut(c, connpool.ReasonDown)
	case c.limits.MaxUses > 0 && c.uses >= c.limits.MaxUses:
		m.shut(c, connpool.ReasonUses)
	case m.shutIfExpired(c):
	case c.taken:
		m.shut(c, connpool.ReasonLeft)
	default:
		i := len(l.idle)
		for i > 0 && l.idle[i-1].since.After(c.since) {
			i--
		}
		l.idle = slices.Insert(l.idle, i, c)
	}
}

func (l *modelLane) pop() *modelConn {
	n := len(l.idle)
	if n == 0 {
		return nil
	}
	c := l.idle[n-1]
	l.idle = l.idle[:n-1]
	return c
}

// shutIfExpired reports whether the time of a connection is over.
func (m *model) shutIfExpired(c *modelConn) bool {
	why, over := m.expired(c)
	if over {
		m.shut(c, why)
	}
	return over
}

func (m *model) expired(c *modelConn) (why connpool.Reason, over bool) {
	mayBeOld, mustBeOld := c.old()
	idle := time.Since(c.since)
	switch {
	case mayBeOld && c.c.closes > 0 && c.c.why == connpool.ReasonAge:
		return connpool.ReasonAge, true
	case c.limits.MaxIdleTime > 0 && idle >= c.limits.MaxIdleTime:
		return connpool.ReasonIdle, true
	}
	return connpool.ReasonAge, mustBeOld
}

func (c *modelConn) old() (mayBe, mustBe bool) {
	age, max := time.Since(c.born), c.limits.MaxAge
	return max > 0 && age >= max*9/10, max > 0 && age >= max*11/10
}

func (m *model) shutIdle(l *modelLane, why connpool.Reason) {
	for _, c := range l.idle {
		m.shut(c, why)
	}
	l.idle = nil
}

func (m *model) shut(c *modelConn, why connpool.Reason) {
	m.logf("  %v: %v", c.c, why)
	c.lane.closed[why]++
	if c.c.closes != 1 || c.c.why != why {
		m.t.Errorf("%v closed %d times, %v; want once, %v", c.c, c.c.closes, c.c.why, why)
	}
}

// check compares all that can be seen.
func (m *model) check() {
	m.t.Helper()
	synctest.Wait()
	m.settle()
	m.checkTolls()
	waiters := m.allWaiters()
	if n := m.Waiting(); n != len(waiters) {
		m.t.Errorf("Waiting() = %d, want %d", n, len(waiters))
	}
	for _, q := range waiters {
		q.waits()
	}
	m.checkRides()
	m.checkChanges()
	closed := m.changes.closed
	for i, l := range m.lanes {
		want := connpool.LaneStats{State: l.state, Held: l.held, Idle: len(l.idle), Opened: l.opened, Reused: l.reused}
		for _, q := range waiters {
			if slices.Contains(q.lanes, i) {
				want.Waiting++
			}
		}
		l.most = [2]int{max(l.most[0], want.Held), max(l.most[1], want.Waiting)}
		want.MostHeld, want.MostWaiting = l.most[0], l.most[1]
		for r, n := range l.closed {
			want.Closed[r] = n
			closed += int(n)
		}
		if got := m.Stats(l.number); got != want {
			m.t.Errorf("lane %d: %+v, want %+v", i, got, want)
		}
		if got := m.Held(l.number); got != l.held {
			m.t.Errorf("Held(%d) = %d, want %d", i, got, l.held)
		}
		if word, shift := m.Gauge(l.number); int(word.Load()>>shift) != l.held {
			m.t.Errorf("Gauge(%d) says %d, want %d", i, word.Load()>>shift, l.held)
		}
		for _, bulk := range []bool{false, true} {
			if got, want := m.Free(l.number, bulk), m.grantable(l, bulk); got != want {
				m.t.Errorf("Free(%d, %v) = %v, want %v", i, bulk, got, want)
			}
		}
	}
	for _, t := range m.turns {
		if c, ok := t.turn.Held(); ok != t.holds || ok && c != t.conn.c {
			m.t.Errorf("Held() = %v, %v; want %v, %v", c, ok, t.conn, t.holds)
		}
	}
	m.mu.Lock() // the timer's goroutine comes after this
	defer m.mu.Unlock()
	for _, c := range m.conns {
		if c.closes > 0 || c.dropped {
			closed--
		}
	}
	if closed != 0 {
		m.t.Errorf("%d connections closed more or less than the model says", closed)
	}
}
