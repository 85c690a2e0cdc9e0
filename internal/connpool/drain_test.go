package connpool_test

import (
	"testing"
	"testing/synctest"
)

// A lane that is drained lets its connections go in peace, then and later, until its state is set again.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newRetiringWorld(t, 0)
		w.AddLane(limits{Max: 3}, up)
		w.fill(0, 2)
		busy := w.fresh(0, 1)[0]
		w.Drain(0)
		w.wantClosed("conn 0 drained", "conn 1 drained")
		w.noTry(0)
		busy.Put(1)
		w.wantClosed("conn 2 drained")
		if n := w.gone(); n != 3 {
			t.Errorf("%d were retired", n)
		}
		w.SetState(0, up)
		w.fill(0, 1)
		w.SetState(0, down)
		w.wantClosed("conn 3 down")
		w.gone()
	})
}

func TestReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.AddLane(limits{Max: 2}, down)
		a, ok := w.Reserve(0) // a lane that is down has slots too
		if !ok {
			t.Fatal("no slot of a lane that has two")
		}
		w.SetState(0, up)
		turn := w.fresh(0, 1)[0]
		w.noTry(0)
		if _, ok := w.Reserve(0); ok {
			t.Error("a third of two")
		}
		q := w.wait(0)
		q.waits()
		a()
		a()
		other := q.gets(0)
		w.noTry(0)
		turn.Put(1)
		if _, ok := w.Reserve(0); ok {
			t.Error("beside an idle connection and a turn")
		}
		other.Put(0)
		b, ok := w.Reserve(0)
		if !ok {
			t.Error("no slot beside an idle connection")
		} else {
			b()
		}
		w.SetLimits(0, limits{Max: 2, Reserved: 1})
		if _, ok := w.Reserve(0); ok {
			t.Error("a slot that is kept back")
		}
		w.Close()
		if _, ok := w.Reserve(0); ok {
			t.Error("after Close")
		}
	})
}
