package connpool_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// A connection that is being retired occupies its slot until it is gone.
func TestRetire(t *testing.T) {
	run := func(name string, lim limits, f func(t *testing.T, w *world, gone func())) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newRetiringWorld(t, 0)
				w.AddLane(lim, up)
				f(t, w, func() {
					t.Helper()
					if w.gone() == 0 {
						t.Error("nothing is being retired")
					}
				})
				w.gone()
				w.wantStats(0, w.Stats(0).Held, 0, 0)
				if free := w.Stats(0).Held == 0 && w.Stats(0).State == up; w.Free(0, false) != free {
					t.Errorf("Free = %v when all is done, want %v", !free, free)
				}
			})
		})
	}
	run("used up", limits{Max: 1, MaxUses: 1}, func(t *testing.T, w *world, gone func()) {
		w.fill(0, 1)
		w.wantClosed("conn 0 uses")
		w.noTry(0)
		w.wantStats(0, 0, 0, 0)
		q := w.wait(0)
		q.waits()
		gone()
		wantConn(t, q.gets(0), nil)
		q.turn.Put(0)
	})
	run("gone twice", limits{Max: 2, MaxUses: 1}, func(t *testing.T, w *world, gone func()) {
		w.fill(0, 1)
		w.try(0)
		f := w.leaving[0].gone
		gone()
		f()
		w.try(0).Put(0)
		w.try(0)
		w.noTry(0)
	})
	run("room beside it", limits{Max: 2, MaxUses: 1}, func(t *testing.T, w *world, gone func()) {
		w.fill(0, 1)
		a := w.try(0)
		w.noTry(0)
		gone()
		w.try(0).Put(0)
		a.Put(0)
	})
	run("idle", limits{Max: 1, MaxIdleTime: time.Second}, func(t *testing.T, w *world, gone func()) {
		w.AddLane(limits{Max: 1, MaxIdleTime: time.Second}, up)
		w.fill(0, 1)
		w.fill(1, 1)
		time.Sleep(time.Second)
		synctest.Wait()
		w.wantClosed("conn 0 idle", "conn 1 idle")
		w.noTry(0)
		w.noTry(1)
		q := w.wait(0, 1)
		q.waits()
		gone()
		q.gets(0).Put(0)
	})
	run("out of date when asked for", limits{Max: 2, MaxIdleTime: time.Second}, func(t *testing.T, w *world, gone func()) {
		w.fill(0, 1)
		a := w.try(0)
		time.Sleep(time.Second)
		wantConn(t, a, nil)
		w.wantClosed("conn 0 idle")
		w.try(0).Put(0) // closed at once: the turn opens another in its place
		a.Put(0)
	})
	run("lowered", limits{Max: 3}, func(t *testing.T, w *world, gone func()) {
		cs := w.fill(0, 3)
		w.SetLimits(0, limits{Max: 1})
		w.wantClosed("conn 0 trimmed", "conn 1 trimmed")
		w.noTry(0)
		gone()
		// That there was no room for them was no reason to close one more.
		w.wantClosed()
		a := w.try(0)
		wantConn(t, a, cs[2])
		a.Drop()
		cs[2].dropped = true
	})
	run("down and up again", limits{Max: 2}, func(t *testing.T, w *world, gone func()) {
		w.fill(0, 2)
		w.SetState(0, down)
		w.SetState(0, once)
		w.noTry(0)
		q := w.wait(0)
		q.waits()
		gone()
		q.gets(0)
		w.SetState(0, up)
		q.turn.Drop()
	})
	run("instead of the one held", limits{Max: 1}, func(t *testing.T, w *world, gone func()) {
		a := w.fresh(0, 1)[0]
		a.Adopt(w.open())
		w.wantClosed("conn 0 trimmed")
		q := w.wait(0)
		a.Drop()
		w.conns[1].dropped = true
		q.waits()
		gone()
		q.gets(0).Drop()
	})
	run("dead ones are not", limits{Max: 2}, func(t *testing.T, w *world, gone func()) {
		for _, c := range w.fill(0, 2) {
			c.dead = true
		}
		a := w.try(0)
		wantConn(t, a, nil)
		w.wantClosed("conn 0 dead", "conn 1 dead")
		w.try(0).Drop()
		a.Drop()
	})
	run("declined", limits{Max: 1, MaxUses: 1}, func(t *testing.T, w *world, gone func()) {
		w.declines = true
		q := w.fresh(0, 1)[0]
		next := w.wait(0)
		q.Put(1)
		w.wantClosed("conn 0 uses")
		next.gets(0).Put(0)
	})
	run("cancelled meanwhile", limits{Max: 1, MaxUses: 1}, func(t *testing.T, w *world, gone func()) {
		w.fill(0, 1)
		q := w.wait(0)
		q.cancel(nil)
		q.fails(context.Canceled)
		gone()
	})
	t.Run("closed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newRetiringWorld(t, 0)
			w.AddLane(limits{Max: 2}, up)
			w.fill(0, 2)
			w.Close()
			w.wantClosed("conn 0 closed", "conn 1 closed")
			w.gone()
			w.noTry(0)
		})
	})
}
