package connpool_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

func TestRiderWithoutALane(t *testing.T) {
	riding(t, "decided at the end", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		w.SetState(0, down)
		q.waits()
		a.Put(1)
		q.fails(connpool.ErrNoLane)
		q.lent(false)
		w.wantClosed("conn 0 down")
		w.wantStats(0, 0, 0, 0)
	})
	riding(t, "up again before", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		w.SetState(0, down)
		w.SetState(0, up)
		a.Put(1)
		q.rides(0, w.conns[0])
	})
	riding(t, "another lane", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		w.SetState(0, down)
		a.Put(1)
		q.waits()
		w.SetState(1, down)
		q.fails(connpool.ErrNoLane)
	}, 1)
	riding(t, "patience over", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		w.SetState(0, down)
		pass(time.Second - 1)
		q.waits()
		pass(1)
		q.fails(connpool.ErrNoLane)
		q.lent(true)
		w.SetState(0, up)
		a.Put(1)
		w.wantClosed("conn 0 left")
	})
	riding(t, "down when its patience is over", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		pass(time.Second)
		q.waits()
		w.SetState(0, down)
		q.fails(connpool.ErrNoLane)
		q.lent(true)
		w.wantStats(0, 1, 0, 0)
	})
}

func TestPatience(t *testing.T) {
	for _, tt := range []struct{ set, want time.Duration }{{0, time.Second}, {time.Minute, time.Minute}, {1, 1}, {-1, 0}, {1<<63 - 1, 0}} {
		t.Run(fmt.Sprint(tt.set), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newPatientWorld(t, tt.set)
				w.AddLane(limits{Max: 1, MaxIdleTime: time.Hour}, up)
				w.AddLane(limits{Max: 1, MaxIdleTime: time.Hour}, up)
				a, b := w.fresh(0, 1)[0], w.fresh(1, 1)[0]
				q := w.waitToRide(0, 1)
				boards(t, a, q)
				b.Put(1) // sets the alarm, later
				if tt.want == 0 {
					pass(24 * time.Hour)
					q.waits()
					a.Put(1)
					q.rides(0, w.conns[0])
					w.Close()
					return
				}
				pass(tt.want - 1)
				q.waits()
				w.wantStats(1, 0, 1, 1)
				pass(1)
				wantConn(t, q.getsOther(1), w.conns[1])
				q.lent(true)
				w.wantStats(0, 1, 0, 0)
				w.noTry(1)
				a.Put(1)
				w.wantClosed("conn 0 left")
				wantConn(t, w.try(0), nil)
				w.Close()
			})
		})
	}
	riding(t, "then the ride ends first", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		pass(time.Second)
		q.waits()
		w.wantStats(0, 1, 0, 1)
		w.wantStats(1, 1, 0, 1)
		a.Put(1)
		q.rides(0, w.conns[0])
		q.lent(false)
		w.SetLimits(1, limits{Max: 2})
		w.try(1) // it is in no queue any more
		w.wantStats(1, 2, 0, 0)
	}, 1)
	riding(t, "then the ride breaks", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		pass(time.Second)
		behind := w.wait(1)
		w.SetState(0, down)
		w.drop(a)
		q.waits()
		w.SetLimits(1, limits{Max: 2})
		q.getsOther(1) // from the place it had
		behind.waits()
		q.lent(false)
	}, 1)
	riding(t, "then alights", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		pass(time.Second)
		a.Alight()
		boards(t, a, q) // and may ride again, with new patience
		pass(time.Second - 1)
		w.SetLimits(1, limits{Max: 2})
		q.waits()
		pass(1)
		q.getsOther(1)
		q.lent(true)
	}, 1)
	riding(t, "then its own lane has a slot", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		pass(time.Second)
		w.SetLimits(0, limits{Max: 2})
		wantConn(t, q.getsOther(0), nil)
		q.lent(true)
		noBoard(t, a, 1)
		a.Put(1)
		w.wantClosed("conn 0 left")
	})
	riding(t, "left, and nothing was begun", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		q.cancel(nil)
		q.fails(context.Canceled)
		a.Alight()
		next := w.waitToRide(0)
		boards(t, a, next)
		a.Put(1)
		next.rides(0, w.conns[0])
	})
}

// Each rider has its own patience, and those that have none left come back in
// their order.
func TestPatienceOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var turns []*fakeTurn
		var qs []*wait
		for i := range 5 {
			w.AddLane(limits{Max: 1}, up)
			turns = append(turns, w.fresh(i, 1)...)
		}
		w.AddLane(limits{Max: 1}, up)
		last := w.try(5)
		for i, turn := range turns {
			qs = append(qs, w.waitToRide(i, 5))
			boards(t, turn, qs[i])
			pass(time.Second / 5)
		}
		last.Drop() // all but the first are patient, just
		qs[0].getsOther(5)
		for i, q := range qs[1:] {
			if i != 2 {
				q.waits()
			}
		}
		qs[3].cancel(nil)
		qs[3].fails(context.Canceled)
		for _, i := range []int{1, 2, 4} {
			pass(time.Second/5 - 1)
			w.SetLimits(5, limits{Max: 1 + i})
			qs[i].waits()
			pass(1)
			qs[i].getsOther(5)
			w.SetLimits(5, limits{Max: 1})
			if i == 2 {
				pass(time.Second / 5)
			}
		}
		for _, turn := range turns {
			turn.Put(1)
		}
		w.wantClosed("conn 0 left", "conn 1 left", "conn 2 left", "conn 3 left", "conn 4 left")
	})
}

func TestCancelRider(t *testing.T) {
	riding(t, "riding", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		cause := errors.New("cause")
		q.cancel(cause)
		q.fails(cause)
		q.lent(true)
		w.wantStats(0, 1, 0, 0)
		next := w.waitToRide(0)
		noBoard(t, a, 1)
		a.Put(1)
		w.wantClosed("conn 0 left")
		wantConn(t, next.getsOther(0), nil)
		next.lent(false)
	})
	riding(t, "riding, and the turn drops", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		q.cancel(nil)
		q.fails(context.Canceled)
		w.drop(a)
		w.wantClosed()
		w.wantStats(0, 0, 0, 0)
	})
	riding(t, "impatient", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		pass(time.Second)
		q.cancel(nil)
		q.fails(context.Canceled)
		q.lent(true)
		w.wantStats(0, 1, 0, 0)
		w.wantStats(1, 1, 0, 0)
		a.Put(1)
		w.wantClosed("conn 0 left")
	}, 1)
	riding(t, "back in the queue", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		a.Alight()
		q.cancel(nil)
		q.fails(context.Canceled)
		q.lent(false)
		a.Put(1)
		wantConn(t, w.try(0), w.conns[0])
	})
	race := func(name string, after time.Duration, race func(w *world, a *fakeTurn), then func(t *testing.T, w *world, q, behind *wait)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.AddLane(limits{Max: 1}, up)
				a := w.fresh(0, 1)[0]
				ctx := &raceContext{t.Context(), make(chan struct{}), func() { race(w, a) }}
				q := &wait{w: w, cancel: func(error) { close(ctx.done) }, rider: &connpool.Rider{}}
				q.rider.Load = q
				go func() {
					turn, err := w.Wait(ctx, &connpool.Request{Lanes: set(0), Rider: q.rider})
					w.mu.Lock()
					defer w.mu.Unlock()
					q.turn, q.err, q.done = turn, err, true
				}()
				synctest.Wait()
				behind := w.wait(0)
				boards(t, a, q)
				pass(after)
				q.cancel(nil)
				q.fails(context.Canceled)
				then(t, w, q, behind)
				w.Close()
			})
		})
	}
	race("handed over", 0, func(w *world, a *fakeTurn) { a.Put(1) }, func(t *testing.T, w *world, q, behind *wait) {
		q.lent(false)
		w.wantClosed("conn 0 left") // with what was begun
		wantConn(t, behind.getsOther(0), nil)
		w.wantStats(0, 1, 0, 0)
	})
	race("handed over and flushed", 0, func(w *world, a *fakeTurn) { a.Put(1); w.Flush(0) }, func(t *testing.T, w *world, q, behind *wait) {
		w.wantClosed("conn 0 drained")
		wantConn(t, behind.getsOther(0), nil)
	})
	race("dropped and granted", 0, func(w *world, a *fakeTurn) { w.drop(a) }, func(t *testing.T, w *world, q, behind *wait) {
		q.lent(false)
		w.wantClosed()
		wantConn(t, behind.getsOther(0), nil)
	})
	race("left and granted", time.Second, func(w *world, a *fakeTurn) {
		w.SetLimits(0, limits{Max: 2})
	}, func(t *testing.T, w *world, q, behind *wait) {
		q.lent(true)
		behind.getsOther(0)
		w.wantStats(0, 2, 0, 0)
	})
	race("failed", 0, func(w *world, a *fakeTurn) { w.SetState(0, down); a.Put(1) }, func(t *testing.T, w *world, q, behind *wait) {
		q.lent(false)
		behind.fails(connpool.ErrNoLane)
	})
}

func TestCloseWithRiders(t *testing.T) {
	for _, impatient := range []bool{false, true} {
		riding(t, fmt.Sprintf("impatient %v", impatient), func(t *testing.T, w *world, a *fakeTurn, q *wait) {
			if impatient {
				pass(time.Second)
			}
			w.Close()
			q.fails(connpool.ErrClosed)
			q.lent(true)
			if n := w.conns[0].aborts; n != 1 {
				t.Errorf("aborted %d times", n)
			}
			noBoard(t, a, 1)
			a.Put(1)
			w.wantClosed("conn 0 closed")
			w.wantStats(0, 0, 0, 0)
		})
	}
	riding(t, "just handed over", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		a.Put(1)
		w.Close()
		if n := w.conns[0].aborts; n != 1 {
			t.Errorf("aborted %d times", n)
		}
		q.rides(0, w.conns[0]).Put(1)
		w.wantClosed("conn 0 closed")
	})
}
