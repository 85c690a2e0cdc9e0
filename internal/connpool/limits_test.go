package connpool_test

import (
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

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
		w.AddLane(limits{math.MaxInt, math.MaxInt, math.MaxInt, math.MaxInt, math.MaxInt64, math.MaxInt64}, up)
		w.AddLane(limits{math.MinInt, math.MinInt, 0, math.MinInt, math.MinInt64, math.MinInt64}, up)
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
		w.wantClosed("conn 1 drained")
		wantConn(t, q.gets(0), nil)
		q.turn.Adopt(w.open())
		q.turn.Put(1)
		w.wantStats(0, 2, 1, 0)
		w.Flush(0)
		w.wantClosed("conn 4 drained")
		also.Put(1)
		after.Put(1)
		w.wantClosed("conn 2 drained", "conn 3 drained")
		if w.Stats(0).Closed[connpool.ReasonDrained] != 4 {
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
			if !w.Free(0, false) {
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
