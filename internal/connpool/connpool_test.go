package connpool_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

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
func newRetiringWorld(t testing.TB) *world {
	w := &world{t: t}
	cfg := w.config()
	cfg.Retire = func(c *fakeConn, why connpool.Reason, gone func()) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
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
	t, ok := w.Try(lane)
	if !ok || t.Lane() != lane {
		w.t.Fatalf("Try(%d) = %v, %v", lane, t, ok)
	}
	return t
}

func (w *world) noTry(lane int) {
	w.t.Helper()
	free := w.Free(lane)
	if t, ok := w.Try(lane); ok || t != nil {
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
	done   bool // under w.mu
	turn   *fakeTurn
	err    error
}

// wait must run in a bubble; it returns when the call has returned or waits.
func (w *world) wait(lanes ...int) *wait {
	w.t.Helper()
	ctx, cancel := context.WithCancelCause(w.t.Context())
	q := &wait{w: w, cancel: cancel}
	go func() {
		t, err := w.Wait(ctx, set(lanes...))
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
		turn, _ := p.Try(0)
		if _, ok := turn.Conn(); ok != reused {
			t.Errorf("%d: Conn() = %v", i, ok)
		} else if !ok {
			turn.Adopt(1)
		}
		turn.Put(1)
		p.Recheck(0)
	}
	turn, _ := p.Try(0)
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
		{"flushed", func(w *world) { w.Flush(0) }, []string{"conn 0 down", "conn 1 down"}, 0},
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

func TestMaxIdle(t *testing.T) {
	w := newWorld(t)
	w.AddLane(limits{Max: 5, MaxIdle: 2}, up)
	cs := w.fill(0, 4)
	w.wantClosed("conn 0 trimmed", "conn 1 trimmed")
	w.wantStats(0, 0, 2, 0)
	w.SetLimits(0, limits{Max: 5, MaxIdle: 1})
	w.wantClosed("conn 2 trimmed")
	w.SetLimits(0, limits{Max: 5, MaxIdle: -1})
	w.wantClosed(fmt.Sprint(cs[3], " trimmed"))
	w.fill(0, 1)
	w.wantClosed("conn 4 trimmed")
	w.wantStats(0, 0, 0, 0)
}

// What is too much to keep is not too much to hand on.
func TestMaxIdleHandsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.AddLane(limits{Max: 1, MaxIdle: -1}, up)
		a := w.fresh(0, 1)[0]
		q := w.wait(0)
		a.Put(1)
		wantConn(t, q.gets(0), w.conns[0])
		w.wantClosed()
		q.turn.Put(1)
		w.wantClosed("conn 0 trimmed")
	})
}

func TestMaxUses(t *testing.T) {
	w := newWorld(t)
	w.AddLane(limits{MaxUses: 3}, up)
	a := w.fresh(0, 1)[0]
	a.Put(1)
	a = w.try(0)
	wantConn(t, a, w.conns[0])
	a.Put(1)
	w.try(0).Put(5) // did not use it
	w.wantClosed()
	a = w.try(0)
	wantConn(t, a, w.conns[0])
	a.Put(-1)
	a = w.try(0)
	wantConn(t, a, w.conns[0])
	a.Put(1)
	w.wantClosed("conn 0 uses")
	w.fill(0, 2)
	a = w.fresh(0, 1)[0]
	w.SetLimits(0, limits{MaxUses: 1})
	w.wantClosed("conn 1 uses", "conn 2 uses")
	a.Put(1)
	w.wantClosed("conn 3 uses")
}

func TestMaxIdleTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.AddLane(limits{MaxIdleTime: 10 * time.Second}, up)
		w.AddLane(limits{MaxIdleTime: 4 * time.Second}, up)
		w.AddLane(limits{}, up)
		w.fill(0, 1)
		w.fill(2, 1)
		sleep := func(d time.Duration, want ...string) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			w.wantClosed(want...)
		}
		sleep(1 * time.Second)
		w.fill(1, 1) // due before what was there
		w.fill(0, 1)
		sleep(4*time.Second - 1)
		sleep(1, "conn 2 idle")
		a, b := w.try(0), w.try(0)
		wantConn(t, a, w.conns[3])
		wantConn(t, b, w.conns[0])
		sleep(time.Hour) // in use is not idle
		a.Put(1)
		b.Put(1)
		sleep(10*time.Second - 1)
		wantConn(t, w.try(0), w.conns[0])
		sleep(1, "conn 3 idle")
		w.fill(0, 1)
		sleep(5 * time.Second)
		w.SetLimits(0, limits{MaxIdleTime: 6 * time.Second})
		sleep(time.Second - 1)
		sleep(1, "conn 4 idle")
		w.fill(0, 1)
		sleep(5 * time.Second)
		w.SetLimits(0, limits{MaxIdleTime: 5 * time.Second})
		w.wantClosed("conn 5 idle")
		w.wantStats(2, 0, 1, 0)
		if s := w.Stats(0); s.Closed[connpool.ReasonIdle] != 3 {
			t.Errorf("stats %+v", s)
		}
	})
}

// A turn can have been granted with a connection that is out of date when the
// turn asks for it.
func TestOutOfDateBeforeConn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.AddLane(limits{Max: 4, MaxIdleTime: 10 * time.Second}, up)
		w.fill(0, 1)
		w.fill(0, 1)
		a, b, c := w.try(0), w.try(0), w.try(0)
		time.Sleep(10 * time.Second)
		wantConn(t, a, nil)
		w.wantClosed("conn 1 idle")
		b.Put(1)
		w.wantClosed("conn 0 idle")
		c.Put(1)
		w.wantStats(0, 1, 0, 0)
	})
}

func TestMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		const n = 200
		w.AddLane(limits{MaxAge: 100 * time.Second, MaxIdleTime: time.Hour}, up)
		w.fill(0, n)
		busy := w.fresh(0, 1)[0]
		time.Sleep(90*time.Second - 1)
		synctest.Wait()
		w.wantClosed()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if idle := w.Stats(0).Idle; idle < n/4 || idle > n*3/4 {
			t.Errorf("%d of %d left in the middle of the jitter", idle, n)
		}
		time.Sleep(10*time.Second + 1)
		synctest.Wait()
		w.wantStats(0, 1, 0, 0)
		busy.Put(1)
		w.wantStats(0, 0, 0, 0)
		if s := w.Stats(0); s.Closed[connpool.ReasonAge] != n+1 {
			t.Errorf("stats %+v", s)
		}
		// The same connection by other limits.
		w.SetLimits(0, limits{MaxAge: 3 * time.Hour})
		w.fill(0, 1)
		time.Sleep(time.Hour)
		w.SetLimits(0, limits{MaxAge: 30 * time.Minute})
		w.wantStats(0, 0, 0, 0)
	})
}

func TestHugeLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.AddLane(limits{math.MaxInt, math.MaxInt, math.MaxInt, math.MaxInt64, math.MaxInt64}, up)
		w.AddLane(limits{math.MinInt, 0, math.MinInt, math.MinInt64, math.MinInt64}, up)
		time.Sleep(time.Hour)
		w.fill(0, 2)
		w.fill(1, 2)
		time.Sleep(10 * 365 * 24 * time.Hour)
		w.wantStats(0, 0, 2, 0)
		w.wantStats(1, 0, 2, 0)
		w.wantClosed()
	})
}

func TestSetLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.AddLane(limits{Max: 4}, up)
		ts := w.fresh(0, 4)
		ts[0].Put(1)
		ts[1].Put(1)
		w.SetLimits(0, limits{Max: 3})
		w.wantClosed("conn 0 trimmed")
		w.SetLimits(0, limits{Max: 1}) // below what is in use
		w.wantClosed("conn 1 trimmed")
		w.noTry(0)
		a, b, c := w.wait(0), w.wait(0), w.wait(0)
		ts[2].Put(1)
		w.wantClosed("conn 2 trimmed")
		a.waits()
		w.SetLimits(0, limits{Max: 3})
		a.gets(0)
		b.gets(0)
		c.waits()
		w.wantStats(0, 3, 0, 1)
		ts[3].Put(1)
		wantConn(t, c.gets(0), w.conns[3])
	})
}

func TestDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.AddLane(limits{Max: 2}, up)
		w.AddLane(limits{Max: 1}, up)
		w.AddLane(limits{}, down)
		w.noTry(2)
		w.fill(0, 1)
		w.try(1)
		busy := w.fresh(0, 1)[0]
		w.fill(0, 1)
		w.wantClosed("conn 0 trimmed")
		idle := w.try(0)
		only, both := w.wait(0), w.wait(0, 1, 2)
		w.SetState(0, down)
		only.fails(connpool.ErrNoLane)
		both.waits()
		idle.Put(1)
		w.wantClosed("conn 2 down")
		w.noTry(0)
		w.wantStats(0, 1, 0, 1)
		w.SetState(0, up)
		both.gets(0)
		busy.Put(1) // what was opened before is as good as new
		w.wantClosed()
		w.SetState(0, down)
		w.wantClosed("conn 1 down")
	})
}

func TestFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.AddLane(limits{Max: 3}, up)
		w.fill(0, 2)
		before := w.try(0)
		also := w.fresh(0, 1)[0]
		w.fill(0, 1)
		w.wantClosed("conn 0 trimmed")
		after := w.wait(0).gets(0)
		q := w.wait(0)
		w.Flush(0)
		w.wantClosed()
		q.waits()
		before.Put(0)
		w.wantClosed("conn 1 down")
		wantConn(t, q.gets(0), nil)
		q.turn.Adopt(w.open())
		q.turn.Put(1)
		w.wantStats(0, 2, 1, 0)
		w.Flush(0)
		w.wantClosed("conn 4 down")
		also.Put(1)
		after.Put(1)
		w.wantClosed("conn 2 down", "conn 3 down")
		if w.Stats(0).Closed[connpool.ReasonDown] != 4 {
			t.Errorf("stats %+v", w.Stats(0))
		}
	})
}

func TestOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.AddLane(limits{Max: 3}, down)
		for _, end := range []func(*fakeTurn) bool{
			func(t *fakeTurn) bool { return t.Put(1) },
			(*fakeTurn).Drop,
		} {
			w.SetState(0, once)
			if !w.Free(0) {
				t.Error("not free")
			}
			a := w.try(0)
			w.noTry(0)
			if s := w.Stats(0).State; s != down {
				t.Errorf("state %v while the one turn runs", s)
			}
			end(a)
			w.noTry(0)
		}
		// The probe succeeded: what it opened is kept.
		w.SetState(0, once)
		a := w.fresh(0, 1)[0]
		w.SetState(0, up)
		a.Put(1)
		w.wantStats(0, 0, 1, 0)
		// A lane that is not Up keeps nothing.
		b := w.fresh(0, 2)
		w.SetState(0, once)
		w.wantClosed("conn 0 down")
		b[0].Put(1)
		w.wantClosed("conn 1 down")
		// Armed again, it grants again, as long as there is room.
		w.SetState(0, once)
		w.try(0)
		w.SetState(0, once)
		c := w.try(0)
		w.SetState(0, once)
		w.noTry(0)
		c.Put(1)
		w.try(0)
		w.noTry(0)
	})
}

func TestOnceAndWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.AddLane(limits{}, down)
		w.AddLane(limits{Max: 1}, up)
		w.AddLane(limits{Max: 1}, up)
		w.try(1)
		w.try(2)
		a, b, c := w.wait(0, 1), w.wait(0, 1), w.wait(2)
		w.SetState(0, once)
		a.gets(0)
		b.waits()
		w.noTry(0)
		w.SetState(1, down) // nobody can serve b
		b.fails(connpool.ErrNoLane)
		c.waits()
		// One waits for a lane that is to probe but full; then it is not.
		w.SetLimits(0, limits{Max: 1})
		w.SetState(0, once)
		d, e, f := w.wait(0), w.wait(0), w.wait(0, 2)
		d.waits()
		a.turn.Put(0)
		d.gets(0)
		e.fails(connpool.ErrNoLane) // the one turn was d's
		f.waits()
		w.wait(0).fails(connpool.ErrNoLane)
		// Wait itself may take the one turn.
		d.turn.Put(0)
		w.SetState(0, down)
		w.SetLimits(0, limits{})
		w.SetState(2, down)
		f.fails(connpool.ErrNoLane)
		w.SetState(0, once)
		w.wait(0, 1, 2).gets(0)
		w.wait(0, 1, 2).fails(connpool.ErrNoLane)
	})
}

func TestWaitOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for range 3 {
			w.AddLane(limits{Max: 1}, up)
		}
		b0, b1, b2 := w.try(0), w.try(1), w.try(2)
		q01, q1, q0, q01b, q2 := w.wait(0, 1), w.wait(1), w.wait(0), w.wait(0, 1), w.wait(2)
		if n := w.Waiting(); n != 5 {
			t.Errorf("Waiting() = %d, want 5", n)
		}
		w.wantStats(0, 1, 0, 3)
		w.wantStats(1, 1, 0, 3)
		w.wantStats(2, 1, 0, 1)
		b1.Put(1)
		q01.gets(1)
		w.noTry(1)
		w.wantStats(0, 1, 0, 2)
		w.wantStats(1, 1, 0, 2)
		q01.turn.Put(1)
		q1.gets(1)
		q1.turn.Drop()
		q01b.gets(1) // it came after q0, which cannot use lane 1
		q0.waits()
		b0.Drop()
		q0.gets(0)
		q2.waits()
		b2.Drop()
		q2.gets(2)
		if n := w.Waiting(); n != 0 {
			t.Errorf("Waiting() = %d, want 0", n)
		}
	})
}

func TestWaitTakesWhatIsFree(t *testing.T) {
	w := newWorld(t)
	w.AddLane(limits{}, down)
	for range 200 {
		w.AddLane(limits{Max: 1}, up)
	}
	for _, tt := range []struct {
		lanes []int
		want  int
	}{{[]int{0, 7, 3, 199}, 3}, {[]int{0, 3, 7, 199}, 7}, {[]int{3, 7, 199}, 199}, {[]int{63, 64}, 63}, {[]int{63, 64}, 64}, {[]int{128, 500}, 128}} {
		turn, err := w.Wait(t.Context(), set(tt.lanes...))
		if err != nil || turn.Lane() != tt.want {
			t.Errorf("Wait(%v) = %v, %v; want %d", tt.lanes, turn, err, tt.want)
		}
	}
	for _, lanes := range [][]uint64{nil, {}, {0}, set(0), set(201), set(1000)} {
		if turn, err := w.Wait(t.Context(), lanes); turn != nil || err != connpool.ErrNoLane {
			t.Errorf("Wait(%b) = %v, %v", lanes, turn, err)
		}
	}
}

// A waiter with many lanes, some of which are down, gets any of them.
func TestWaitForMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var all []int
		for i := range 150 {
			w.AddLane(limits{Max: 1}, up)
			all = append(all, i)
			w.try(i)
		}
		for _, i := range []int{0, 63, 64, 127, 128, 149} {
			w.SetState(i, down)
		}
		for _, i := range []int{149, 64, 0, 127, 63, 128} {
			q := w.wait(all...)
			q.waits()
			w.SetLimits(i, limits{Max: 2})
			q.waits()
			w.SetState(i, up)
			q.gets(i)
		}
		for _, i := range all {
			w.wantStats(i, w.Held(i), 0, 0)
		}
	})
}

func TestWaitContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.AddLane(limits{Max: 1}, up)
		cause := errors.New("cause")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		if turn, err := w.Wait(ctx, set(0)); turn != nil || err != cause {
			t.Errorf("Wait = %v, %v", turn, err)
		}
		busy := w.try(0)
		a, b, c := w.wait(0), w.wait(0), w.wait(0)
		b.cancel(cause)
		b.fails(cause)
		w.wantStats(0, 1, 0, 2)
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		if turn, err := w.Wait(ctx, set(0)); turn != nil || err != context.DeadlineExceeded {
			t.Errorf("Wait = %v, %v", turn, err)
		}
		busy.Drop()
		a.gets(0)
		c.cancel(cause)
		c.fails(cause)
		w.wantStats(0, 1, 0, 0)
		a.turn.Drop()
		w.wantStats(0, 0, 0, 0)
	})
}

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
func TestCancelRaces(t *testing.T) {
	wait := func(w *world, race func(), lanes ...int) *wait {
		ctx := &raceContext{t.Context(), make(chan struct{}), race}
		q := &wait{w: w, cancel: func(error) { close(ctx.done) }}
		go func() {
			turn, err := w.Wait(ctx, set(lanes...))
			w.mu.Lock()
			defer w.mu.Unlock()
			q.turn, q.err, q.done = turn, err, true
		}()
		synctest.Wait()
		return q
	}
	run := func(name string, f func(t *testing.T, w *world)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.AddLane(limits{Max: 1}, up)
				f(t, w)
				w.Close()
			})
		})
	}
	run("grant", func(t *testing.T, w *world) {
		busy := w.fresh(0, 1)[0]
		a := wait(w, func() {
			busy.Put(1)
			w.wantStats(0, 1, 0, 1) // it was granted
		}, 0)
		b := w.wait(0)
		a.cancel(nil)
		a.fails(context.Canceled)
		wantConn(t, b.gets(0), w.conns[0]) // with the connection
		w.wantStats(0, 1, 0, 0)
	})
	run("grant and down", func(t *testing.T, w *world) {
		busy := w.fresh(0, 1)[0]
		a := wait(w, func() {
			busy.Put(1)
			w.SetState(0, down)
		}, 0)
		a.cancel(nil)
		a.fails(context.Canceled)
		w.wantClosed("conn 0 down")
		w.wantStats(0, 0, 0, 0)
	})
	run("grant and close", func(t *testing.T, w *world) {
		busy := w.fresh(0, 1)[0]
		a := wait(w, func() {
			busy.Put(1)
			w.Close()
		}, 0)
		a.cancel(nil)
		a.fails(context.Canceled)
		w.wantClosed("conn 0 closed")
		w.wantStats(0, 0, 0, 0)
		if w.conns[0].aborts != 1 {
			t.Error("not aborted")
		}
	})
	run("failure", func(t *testing.T, w *world) {
		w.try(0)
		a := wait(w, func() { w.SetState(0, down) }, 0)
		a.cancel(nil)
		a.fails(context.Canceled)
		w.wantStats(0, 1, 0, 0)
	})
	run("once", func(t *testing.T, w *world) {
		w.try(0)
		w.AddLane(limits{}, down)
		a := wait(w, func() {
			w.SetState(1, once)
			w.wantStats(1, 1, 0, 2) // it was granted
		}, 0, 1)
		b, c := w.wait(0, 1), w.wait(0, 1)
		a.cancel(nil)
		a.fails(context.Canceled)
		b.gets(1) // the one turn was given back
		c.waits()
		w.wantStats(1, 1, 0, 1)
	})
	run("once and nobody else", func(t *testing.T, w *world) {
		w.try(0)
		w.AddLane(limits{}, down)
		a := wait(w, func() { w.SetState(1, once) }, 0, 1)
		a.cancel(nil)
		a.fails(context.Canceled)
		if s := w.Stats(1).State; s != once {
			t.Errorf("state %v, want once", s)
		}
		w.try(1)
		w.noTry(1)
	})
	for _, s := range []connpool.State{down, once, up} {
		run("once and then "+s.String(), func(t *testing.T, w *world) {
			w.try(0)
			w.AddLane(limits{}, down)
			a := wait(w, func() {
				w.SetState(1, once)
				w.SetState(1, s) // the last word
			}, 0, 1)
			a.cancel(nil)
			a.fails(context.Canceled)
			if got := w.Stats(1).State; got != s {
				t.Errorf("state %v, want %v", got, s)
			}
		})
	}
	run("once, granted by another arming", func(t *testing.T, w *world) {
		w.try(0)
		w.AddLane(limits{}, down)
		a := wait(w, func() {
			w.SetState(1, once)
			w.SetState(1, once)
			w.try(1)
		}, 0, 1)
		a.cancel(nil)
		a.fails(context.Canceled)
		if got := w.Stats(1).State; got != down {
			t.Errorf("state %v, want down", got)
		}
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.AddLane(limits{Max: 3, MaxIdleTime: time.Minute}, up)
		w.AddLane(limits{Max: 1}, up)
		w.fill(0, 3)
		a, reserved := w.try(0), w.try(0)
		wantConn(t, a, w.conns[2])
		b := w.try(1)
		q, r := w.wait(1), w.wait(1)
		w.on(&w.onClose, func() { w.noTry(0) })
		for range 2 {
			w.Close()
		}
		w.on(&w.onClose, nil)
		q.fails(connpool.ErrClosed)
		r.fails(connpool.ErrClosed)
		w.wantClosed("conn 0 closed")
		for i, want := range []int{0, 1, 1} { // conn 1 is reserved for a turn
			if c := w.conns[i]; c.aborts != want {
				t.Errorf("%v aborted %d times, want %d", c, c.aborts, want)
			}
		}
		w.noTry(0)
		w.noTry(1)
		w.wait(0).fails(connpool.ErrClosed)
		w.wait().fails(connpool.ErrClosed)
		// Turns go on, and have to end.
		w.wantStats(0, 2, 0, 0)
		a.Put(1)
		reserved.Drop()
		w.wantClosed("conn 1 closed", "conn 2 closed")
		b.Adopt(w.open())
		if w.conns[3].aborts != 1 {
			t.Error("adopted after the end and not aborted")
		}
		wantConn(t, b, w.conns[3])
		b.Put(1)
		w.wantClosed("conn 3 closed")
		w.wantStats(0, 0, 0, 0)
		w.wantStats(1, 0, 0, 0)
		// Nothing brings it back.
		w.SetState(0, down)
		w.SetState(0, up)
		w.SetLimits(0, limits{})
		w.Recheck(0)
		w.Flush(0)
		w.noTry(0)
		w.noTry(w.AddLane(limits{}, up))
		time.Sleep(time.Hour)
		w.wantClosed()
	})
}

// When Close returns, the timer's goroutine is gone.
func TestCloseWaitsForTheTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.AddLane(limits{MaxIdleTime: time.Second}, up)
		w.fill(0, 1)
		var running atomic.Bool
		w.on(&w.onClose, func() {
			running.Store(true)
			time.Sleep(time.Second) // a connection may need a while to close
			running.Store(false)
		})
		time.Sleep(time.Second)
		synctest.Wait()
		if !running.Load() {
			t.Fatal("not expired")
		}
		turn := w.fresh(0, 1)[0]
		turn.Put(1) // the timer is set again meanwhile
		time.Sleep(time.Second / 2)
		w.on(&w.onClose, nil)
		w.Close()
		if running.Load() {
			t.Error("Close returned before the timer's goroutine")
		}
		w.wantClosed("conn 0 idle", "conn 1 closed")
	})
}

// 10,000 waiters come and are cancelled, at once with slots that come free.
func TestCancellationStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for range 3 {
			w.AddLane(limits{Max: 2}, up)
		}
		var busy []*fakeTurn
		for i := range 6 {
			busy = append(busy, w.fresh(i/2, 1)...)
		}
		const n = 10000
		var wg sync.WaitGroup
		var got, cancelled int
		for i := range n {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second+time.Duration(i%7)*time.Millisecond)
				defer cancel()
				turn, err := w.Wait(ctx, []uint64{uint64(i%7 + 1)})
				if err == nil {
					turn.Put(1)
				}
				w.mu.Lock()
				defer w.mu.Unlock()
				if err == nil {
					got++
				} else if err == context.DeadlineExceeded {
					cancelled++
				}
			})
		}
		synctest.Wait()
		if q := w.Waiting(); q != n {
			t.Fatalf("%d wait, want %d", q, n)
		}
		time.Sleep(time.Second + 3*time.Millisecond)
		for _, turn := range busy {
			turn.Put(1)
		}
		wg.Wait()
		if got+cancelled != n || cancelled < n/4 {
			t.Errorf("%d got a turn and %d were cancelled, of %d", got, cancelled, n)
		}
		if q := w.Waiting(); q != 0 {
			t.Errorf("%d wait still", q)
		}
		for i := range 3 {
			w.wantStats(i, 0, 2, 0)
		}
		w.Close()
	})
}

// Nothing keeps a connection from the garbage collector that has left the
// pool: no list, no turn that has ended, and no waiter that is to be used again.
func TestNoReferenceIsKept(t *testing.T) {
	type conn struct{ _ [64]byte }
	type pool = connpool.Pool[*conn]
	type turn = connpool.Turn[*conn]
	var conns []weak.Pointer[conn]
	take := func(p *pool, n int) []*turn {
		ts := make([]*turn, n)
		for i := range ts {
			c := new(conn)
			conns = append(conns, weak.Make(c))
			ts[i], _ = p.Try(0)
			ts[i].Adopt(c)
		}
		return ts
	}
	fill := func(p *pool, n int) []*turn {
		ts := take(p, n)
		for _, t := range ts {
			t.Put(1)
		}
		return ts
	}
	for _, tt := range []struct {
		name string
		f    func(p *pool) []*turn // ends with all connections gone
	}{
		{"drop", func(p *pool) []*turn {
			ts := take(p, 3)
			for _, t := range ts {
				t.Drop()
			}
			return ts
		}},
		{"discard", func(p *pool) []*turn {
			ts := take(p, 3)
			for _, t := range ts {
				t.Discard()
			}
			return ts
		}},
		{"reuse and drop", func(p *pool) []*turn {
			fill(p, 3)
			var ts []*turn
			for range 3 {
				t, _ := p.Try(0)
				t.Conn()
				ts = append(ts, t)
			}
			for _, t := range ts {
				t.Drop()
			}
			return ts
		}},
		{"down", func(p *pool) []*turn {
			ts := fill(p, 3)
			p.SetState(0, down)
			return ts
		}},
		{"used up", func(p *pool) []*turn {
			ts := fill(p, 3)
			p.SetLimits(0, limits{MaxUses: 1})
			return ts
		}},
		{"trimmed", func(p *pool) []*turn {
			ts := fill(p, 3)
			p.SetLimits(0, limits{MaxIdle: -1})
			return ts
		}},
		{"closed", func(p *pool) []*turn {
			ts := append(fill(p, 3), take(p, 2)...)
			p.Close()
			ts[3].Put(0)
			ts[4].Drop()
			return ts
		}},
		{"handed to a waiter", func(p *pool) []*turn {
			ts := take(p, 3)
			p.SetLimits(0, limits{Max: 3})
			got := make(chan *turn)
			for range 3 {
				go func() {
					t, _ := p.Wait(context.Background(), set(0))
					got <- t
				}()
			}
			for p.Waiting() < 3 {
				runtime.Gosched()
			}
			for _, t := range ts {
				t.Put(1)
			}
			for range 3 {
				t := <-got
				t.Conn()
				t.Drop()
				ts = append(ts, t)
			}
			return ts
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conns = nil
			p := connpool.New(connpool.Config[*conn]{})
			p.AddLane(limits{}, up)
			ts := tt.f(p)
			runtime.GC() // once: twice would empty a sync.Pool
			for i, c := range conns {
				if c.Value() != nil {
					t.Errorf("connection %d of %d is still referred to", i, len(conns))
				}
			}
			runtime.KeepAlive(ts)
			runtime.KeepAlive(p)
		})
	}
}

func TestStrings(t *testing.T) {
	for want, got := range map[string]fmt.Stringer{
		"down": down, "once": once, "up": up, "invalid state": up + 1,
		"broken": connpool.ReasonBroken, "dead": connpool.ReasonDead, "idle": connpool.ReasonIdle,
		"age": connpool.ReasonAge, "uses": connpool.ReasonUses, "trimmed": connpool.ReasonTrimmed,
		"closed": connpool.ReasonClosed, "invalid reason": connpool.ReasonClosed + 1,
	} {
		if got.String() != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if s := connpool.ReasonDown.String(); s != "down" {
		t.Errorf("%q", s)
	}
}
