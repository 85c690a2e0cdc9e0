package connpool_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

const (
	down = connpool.Down
	once = connpool.Once
	up   = connpool.Up
)

// fakeConn is a connection that remembers what was done to it.
type fakeConn struct {
	id      int
	dead    bool // what Alive says
	aborts  int
	closes  int
	why     connpool.Reason
	dropped bool // by its holder
	begun   any  // whose work was begun on it, and is not finished
}

func (c *fakeConn) String() string { return fmt.Sprintf("conn %d", c.id) }

type (
	fakePool = connpool.Pool[*fakeConn]
	fakeTurn = connpool.Turn[*fakeConn]
	limits   = connpool.Limits
)

// world is a pool of fakeConns; mu guards the fields of all of them.
type world struct {
	*fakePool
	t                testing.TB
	mu               sync.Mutex
	conns            []*fakeConn
	closed           []string     // "conn 1 idle", in order
	onAlive, onClose func()       // called first by Alive and Close, not under mu
	declines         bool         // what a newRetiringWorld is asked to retire
	leaving          []retirement // what it retires, until it is gone
}

// on sets a function that Alive or Close is to call.
func (w *world) on(hook *func(), f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*hook = f
}

func (w *world) call(hook *func()) {
	w.mu.Lock()
	f := *hook
	w.mu.Unlock()
	if f != nil {
		f()
	}
}

func newWorld(t testing.TB) *world {
	w := &world{t: t}
	w.fakePool = connpool.New(w.config())
	return w
}

type retirement struct {
	c    *fakeConn
	gone func()
}

// newRetiringWorld has a pool that retires connections: they count as closed at
// once, and are gone when the method gone is called.
func newRetiringWorld(t testing.TB, patience time.Duration) *world {
	w := &world{t: t}
	cfg := w.config()
	cfg.Patience = patience
	cfg.Retire = func(c *fakeConn, why connpool.Reason, gone func()) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		if c.begun != nil {
			t.Errorf("%v is retired, though somebody's work was begun on it", c)
		}
		if w.declines {
			return false
		}
		w.close(c, why)
		w.leaving = append(w.leaving, retirement{c, gone})
		return true
	}
	w.fakePool = connpool.New(cfg)
	return w
}

// gone ends the retirements, the newest first, and returns how many there were.
func (w *world) gone() int {
	w.mu.Lock()
	leaving := w.leaving
	w.leaving = nil
	w.mu.Unlock()
	for _, r := range slices.Backward(leaving) {
		r.gone()
	}
	return len(leaving)
}

// close notes that the pool closed a connection. It needs mu.
func (w *world) close(c *fakeConn, why connpool.Reason) {
	c.closes++
	c.why = why
	w.closed = append(w.closed, fmt.Sprint(c, " ", why))
	if c.closes > 1 || c.dropped {
		w.t.Errorf("%v closed twice", c)
	}
}

func (w *world) config() connpool.Config[*fakeConn] {
	t := w.t
	return connpool.Config[*fakeConn]{
		Alive: func(c *fakeConn) bool {
			w.call(&w.onAlive)
			w.mu.Lock()
			defer w.mu.Unlock()
			if c.closes > 0 || c.dropped {
				t.Errorf("Alive asked of %v, which is closed", c)
			}
			return !c.dead
		},
		Close: func(c *fakeConn, why connpool.Reason) {
			w.call(&w.onClose)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.close(c, why)
		},
		Abort: func(c *fakeConn) {
			w.mu.Lock()
			defer w.mu.Unlock()
			c.aborts++
			if c.aborts > 1 {
				t.Errorf("%v aborted twice", c)
			}
		},
	}
}

func (w *world) open() *fakeConn {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := &fakeConn{id: len(w.conns)}
	w.conns = append(w.conns, c)
	return c
}

func (w *world) try(lane int) *fakeTurn {
	w.t.Helper()
	t, ok := w.Try(lane, false)
	if !ok || t.Lane() != lane {
		w.t.Fatalf("Try(%d) = %v, %v", lane, t, ok)
	}
	return t
}

func (w *world) noTry(lane int) {
	w.t.Helper()
	free := w.Free(lane, false)
	if t, ok := w.Try(lane, false); ok || t != nil {
		w.t.Fatalf("Try(%d) = %v, %v; want none", lane, t, ok)
	}
	if free {
		w.t.Errorf("Free(%d) though Try fails", lane)
	}
}

// fresh takes n turns of a lane, each with a new connection.
func (w *world) fresh(lane, n int) []*fakeTurn {
	w.t.Helper()
	var ts []*fakeTurn
	for range n {
		t := w.try(lane)
		t.Adopt(w.open())
		ts = append(ts, t)
	}
	return ts
}

// fill leaves n idle connections in a lane, the oldest first.
func (w *world) fill(lane, n int) []*fakeConn {
	w.t.Helper()
	var cs []*fakeConn
	ts := w.fresh(lane, n)
	for _, t := range ts {
		c, _ := t.Held()
		cs = append(cs, c)
		t.Put(1)
	}
	return cs
}

// wantClosed checks what the pool closed since the last call.
func (w *world) wantClosed(want ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.Sort(w.closed)
	if !slices.Equal(w.closed, want) {
		w.t.Errorf("closed %q, want %q", w.closed, want)
	}
	w.closed = nil
}

func (w *world) wantStats(lane, held, idle, waiting int) {
	w.t.Helper()
	s := w.Stats(lane)
	if s.Held != held || s.Idle != idle || s.Waiting != waiting {
		w.t.Errorf("lane %d: held %d, idle %d, waiting %d; want %d, %d, %d", lane, s.Held, s.Idle, s.Waiting, held, idle, waiting)
	}
	if h := w.Held(lane); h != held {
		w.t.Errorf("lane %d: Held() = %d, want %d", lane, h, held)
	}
}

// wait is a call of Wait in a goroutine of its own.
type wait struct {
	w      *world
	cancel context.CancelCauseFunc
	rider  *connpool.Rider // its load is the wait itself
	req    *connpool.Request
	done   bool // under w.mu
	turn   *fakeTurn
	err    error
}

// wait must run in a bubble; it returns when the call has returned or waits.
func (w *world) wait(lanes ...int) *wait { return w.waitAs(nil, lanes) }

// waitToRide is wait with the offer to ride.
func (w *world) waitToRide(lanes ...int) *wait { return w.waitAs(&connpool.Rider{}, lanes) }

func (w *world) waitAs(r *connpool.Rider, lanes []int) *wait {
	w.t.Helper()
	return w.waitFor(&connpool.Request{Lanes: set(lanes...), Rider: r})
}

func (w *world) waitFor(r *connpool.Request) *wait {
	w.t.Helper()
	ctx, cancel := context.WithCancelCause(w.t.Context())
	q := &wait{w: w, cancel: cancel, req: r, rider: r.Rider}
	if r.Rider != nil {
		r.Rider.Load = q
	}
	go func() {
		t, err := w.Wait(ctx, r)
		w.mu.Lock()
		defer w.mu.Unlock()
		q.turn, q.err, q.done = t, err, true
	}()
	synctest.Wait()
	return q
}

func (q *wait) waits() {
	q.w.t.Helper()
	synctest.Wait()
	q.w.mu.Lock() // what ends the wait later may not be the test's doing
	defer q.w.mu.Unlock()
	if q.done {
		q.w.t.Fatalf("Wait returned %v, %v; want it to wait", q.turn, q.err)
	}
}

func (q *wait) gets(lane int) *fakeTurn {
	q.w.t.Helper()
	synctest.Wait()
	if !q.done || q.err != nil || q.turn.Lane() != lane {
		q.w.t.Fatalf("done %v, turn %v, error %v; want lane %d", q.done, q.turn, q.err, lane)
	}
	return q.turn
}

func (q *wait) fails(want error) {
	q.w.t.Helper()
	synctest.Wait()
	if !q.done || q.turn != nil || q.err != want {
		q.w.t.Fatalf("done %v, turn %v, error %v; want %v", q.done, q.turn, q.err, want)
	}
}

func set(lanes ...int) []uint64 {
	var s []uint64
	for _, l := range lanes {
		for len(s) <= l/64 {
			s = append(s, 0)
		}
		s[l/64] |= 1 << (l % 64)
	}
	return s
}

// conn has the turn hand out a connection, which must be the one wanted; nil:
// none.
func wantConn(t testing.TB, turn *fakeTurn, want *fakeConn) {
	t.Helper()
	if c, ok := turn.Conn(); c != want || ok != (want != nil) {
		t.Fatalf("Conn() = %v, %v; want %v", c, ok, want)
	}
	if c, ok := turn.Held(); c != want || ok != (want != nil) {
		t.Fatalf("Held() = %v, %v; want %v", c, ok, want)
	}
}

func TestTryUpToMax(t *testing.T) {
	w := newWorld(t)
	w.AddLane(limits{Max: 2}, up)
	if n := w.AddLane(limits{}, up); n != 1 {
		t.Errorf("AddLane = %d, want 1", n)
	}
	a, b := w.try(0), w.try(0)
	w.noTry(0)
	w.wantStats(0, 2, 0, 0)
	if !a.Put(0) || !b.Drop() {
		t.Error("a turn said that it had ended before")
	}
	w.wantStats(0, 0, 0, 0)
	for range 100 {
		w.try(1)
	}
	w.wantStats(1, 100, 0, 0)
}

func TestReuseNewestFirst(t *testing.T) {
	w := newWorld(t)
	w.AddLane(limits{}, up)
	cs := w.fill(0, 3)
	w.wantStats(0, 0, 3, 0)
	a, b := w.try(0), w.try(0)
	wantConn(t, a, cs[2])
	wantConn(t, a, cs[2]) // again: the same
	wantConn(t, b, cs[1])
	b.Put(1)
	wantConn(t, w.try(0), cs[1])
	if s := w.Stats(0); s.Opened != 3 || s.Reused != 3 {
		t.Errorf("opened %d, reused %d; want 3, 3", s.Opened, s.Reused)
	}
	w.wantClosed()
}

func TestNilConfig(t *testing.T) {
	p := connpool.New(connpool.Config[int]{})
	p.AddLane(limits{MaxUses: 2}, up)
	for i, reused := range []bool{false, true, false} {
		turn, _ := p.Try(0, false)
		if _, ok := turn.Conn(); ok != reused {
			t.Errorf("%d: Conn() = %v", i, ok)
		} else if !ok {
			turn.Adopt(1)
		}
		turn.Put(1)
		p.Recheck(0)
	}
	turn, _ := p.Try(0, false)
	turn.Conn()
	p.Close()
	turn.Adopt(2)
	turn.Put(0)
	turn.Adopt(3)
}

func TestDeadConnectionsAreClosedOnTheWay(t *testing.T) {
	w := newWorld(t)
	w.AddLane(limits{}, up)
	cs := w.fill(0, 4)
	cs[3].dead, cs[2].dead = true, true
	a := w.try(0)
	wantConn(t, a, cs[1])
	w.wantClosed("conn 2 dead", "conn 3 dead")
	cs[0].dead = true
	wantConn(t, w.try(0), nil)
	w.wantClosed("conn 0 dead")
	if s := w.Stats(0); s.Closed[connpool.ReasonDead] != 3 || s.Reused != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestRecheck(t *testing.T) {
	w := newWorld(t)
	w.AddLane(limits{}, up)
	cs := w.fill(0, 4)
	cs[0].dead, cs[2].dead = true, true
	w.Recheck(0)
	w.wantClosed("conn 0 dead", "conn 2 dead")
	w.wantStats(0, 0, 2, 0)
	wantConn(t, w.try(0), cs[3])
	wantConn(t, w.try(0), cs[1])
}

// While Recheck looks at connections they occupy their slots, and what becomes
// of them is decided when they come back.
func TestRecheckMeanwhile(t *testing.T) {
	for _, tt := range []struct {
		name   string
		during func(w *world)
		closed []string
		idle   int
	}{
		{"nothing", func(w *world) {}, nil, 2},
		{"down", func(w *world) { w.SetState(0, down) }, []string{"conn 0 down", "conn 1 down"}, 0},
		{"once", func(w *world) { w.SetState(0, once) }, []string{"conn 0 down", "conn 1 down"}, 0},
		{"flushed", func(w *world) { w.Flush(0) }, []string{"conn 0 drained", "conn 1 drained"}, 0},
		{"lowered", func(w *world) { w.SetLimits(0, limits{Max: 1}) }, []string{"conn 0 trimmed"}, 1},
		{"idle too long", func(w *world) {
			w.SetLimits(0, limits{Max: 2, MaxIdleTime: time.Second})
			time.Sleep(time.Second)
		}, []string{"conn 0 idle", "conn 1 idle"}, 0},
		{"a newer one", func(w *world) {
			w.SetLimits(0, limits{Max: 3})
			turn := w.try(0)
			wantConn(w.t, turn, nil)
			turn.Adopt(w.open())
			w.noTry(0)
			time.Sleep(time.Nanosecond)
			turn.Put(1)
		}, nil, 3},
		{"a newer one, and lowered", func(w *world) {
			w.SetLimits(0, limits{Max: 3})
			time.Sleep(time.Nanosecond)
			w.fresh(0, 1)[0].Put(1)
			w.SetLimits(0, limits{Max: 2})
			w.wantClosed("conn 2 trimmed")
			w.noTry(0)
		}, nil, 2},
		{"closed", func(w *world) { w.Close() }, []string{"conn 0 closed", "conn 1 closed"}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.AddLane(limits{Max: 2}, up)
				w.fill(0, 2)
				w.on(&w.onAlive, func() {
					w.on(&w.onAlive, nil)
					w.noTry(0)
					w.wantStats(0, 0, 2, 0)
					q := w.wait(0)
					q.waits()
					q.cancel(nil)
					q.fails(context.Canceled)
					tt.during(w)
				})
				w.Recheck(0)
				w.wantClosed(tt.closed...)
				w.wantStats(0, 0, tt.idle, 0)
				for _, c := range slices.Backward(w.conns) {
					if c.closes == 0 {
						wantConn(t, w.try(0), c)
					}
				}
			})
		})
	}
}

// Recheck frees the slots for those who came to wait for them.
func TestRecheckServesWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.AddLane(limits{Max: 1}, up)
		cs := w.fill(0, 1)
		var q *wait
		w.on(&w.onAlive, func() {
			w.on(&w.onAlive, nil)
			q = w.wait(0)
			q.waits()
		})
		w.Recheck(0)
		wantConn(t, q.gets(0), cs[0])
	})
}

func TestEndTwice(t *testing.T) {
	w := newWorld(t)
	w.AddLane(limits{Max: 1}, up)
	a := w.fresh(0, 1)[0]
	a.Put(1)
	b := w.try(0)
	wantConn(t, b, w.conns[0])
	if a.Put(1) || a.Drop() || a.Put(1) {
		t.Error("an ended turn ended again")
	}
	a.Discard()
	wantConn(t, a, nil)
	if a.Lane() != 0 {
		t.Error("an ended turn forgot its lane")
	}
	w.wantStats(0, 1, 0, 0)
	b.Drop()
	w.conns[0].dropped = true
	if b.Drop() || b.Put(0) {
		t.Error("an ended turn ended again")
	}
	w.wantStats(0, 0, 0, 0)
	// What an ended turn is given, is closed.
	b.Adopt(w.open())
	w.wantClosed("conn 1 broken")
	w.wantStats(0, 0, 0, 0)
	if s := w.Stats(0); s.Opened != 1 || s.Closed[connpool.ReasonBroken] != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestDropAndDiscard(t *testing.T) {
	w := newWorld(t)
	w.AddLane(limits{Max: 2}, up)
	cs := w.fill(0, 2)
	a := w.try(0)
	a.Discard() // holds none: the connection reserved for it stays
	wantConn(t, a, cs[1])
	a.Discard()
	cs[1].dropped = true
	if _, ok := a.Held(); ok {
		t.Error("holds what was discarded")
	}
	wantConn(t, a, cs[0])
	a.Discard()
	cs[0].dropped = true
	wantConn(t, a, nil)
	a.Adopt(w.open())
	a.Drop()
	w.conns[2].dropped = true
	// Dropped before it asked for a connection: that one goes back.
	cs = w.fill(0, 1)
	w.try(0).Drop()
	w.wantStats(0, 0, 1, 0)
	wantConn(t, w.try(0), cs[0])
	if s := w.Stats(0); s.Closed[connpool.ReasonBroken] != 3 {
		t.Errorf("stats %+v", s)
	}
	w.wantClosed()
}

func TestAdopt(t *testing.T) {
	w := newWorld(t)
	w.AddLane(limits{Max: 3}, up)
	cs := w.fill(0, 3)
	a := w.try(0)
	a.Adopt(w.open()) // one too many: the oldest goes
	w.wantClosed("conn 0 trimmed")
	w.wantStats(0, 1, 2, 0)
	wantConn(t, a, w.conns[3])
	a.Adopt(w.open()) // instead of the one it holds
	w.wantClosed("conn 3 trimmed")
	wantConn(t, a, w.conns[4])
	w.SetLimits(0, limits{Max: 4})
	b := w.try(0)
	b.Adopt(w.open()) // there is room
	w.wantClosed()
	w.wantStats(0, 2, 2, 0)
	// The one that b did not want is where it was.
	wantConn(t, w.try(0), cs[2])
	wantConn(t, w.try(0), cs[1])
}

// What is too much to keep is not too much to hand on.
// A turn can have been granted with a connection that is out of date when the
// turn asks for it.
// A waiter with many lanes, some of which are down, gets any of them.
// raceContext is a context that, when Wait has seen that it is done, lets
// something else happen first.
type raceContext struct {
	context.Context
	done chan struct{}
	race func()
}

func (c *raceContext) Done() <-chan struct{} { return c.done }
func (c *raceContext) Value(any) any         { return nil }
func (c *raceContext) Err() error {
	select {
	case <-c.done:
		if f := c.race; f != nil {
			c.race = nil
			f()
		}
		return context.Canceled
	default:
		return nil
	}
}

// What races with the end of the context is undone, and goes to the next.
// When Close returns, the timer's goroutine is gone.
// 10,000 waiters come and are cancelled, at once with slots that come free.
// Nothing keeps a connection from the garbage collector that has left the
// pool: no list, no turn that has ended, and no waiter that is to be used again.
func TestStrings(t *testing.T) {
	for want, got := range map[string]fmt.Stringer{
		"down": down, "once": once, "up": up, "invalid state": up + 1,
		"broken": connpool.ReasonBroken, "dead": connpool.ReasonDead, "idle": connpool.ReasonIdle,
		"age": connpool.ReasonAge, "uses": connpool.ReasonUses, "trimmed": connpool.ReasonTrimmed,
		"closed": connpool.ReasonClosed, "left": connpool.ReasonLeft, "removed": connpool.ReasonRemoved, "drained": connpool.ReasonDrained, "invalid reason": connpool.ReasonDrained + 1,
	} {
		if got.String() != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if s := connpool.ReasonDown.String(); s != "down" {
		t.Errorf("%q", s)
	}
}
