package connpool_test

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

// in runs a test in a bubble, with a pool whose riders are patient for ever.
func in(t *testing.T, name string, f func(t *testing.T, w *world)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { f(t, newPatientWorld(t, -1)) })
	})
}

// again waits with the request of a wait that has failed.
func (q *wait) again(lanes ...int) *wait {
	q.w.t.Helper()
	q.req.Lanes = set(lanes...)
	return q.w.waitFor(q.req)
}

func TestRemoveLane(t *testing.T) {
	in(t, "connections", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 3}, up)
		turns := w.fresh(0, 3)
		turns[0].Put(1)
		reserved := w.try(0)
		turns[2].Put(1)
		w.RemoveLane(0)
		w.wantClosed("conn 2 removed")
		w.noTry(0)
		turns[1].Put(1)
		reserved.Put(0)
		w.wantClosed("conn 0 removed", "conn 1 removed")
		w.RemoveLane(0)
		w.SetState(0, up)
		w.noTry(0)
		w.wantStats(0, 0, 0, 0)
	})
	in(t, "waiters", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 1}, up)
		w.AddLane(limits{Max: 1}, up)
		w.AddLane(limits{Max: 1}, down)
		a, b := w.try(0), w.try(1)
		only, both, bad := w.wait(0), w.wait(0, 1), w.wait(0, 2)
		w.RemoveLane(0)
		only.fails(connpool.ErrNoLane)
		bad.fails(connpool.ErrNoLane)
		both.waits()
		w.wait(0).fails(connpool.ErrNoLane)
		a.Put(0)
		both.waits()
		b.Put(0)
		both.gets(1)
	})
	in(t, "a rider loses its ride, and nobody else boards", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 2}, up)
		w.AddLane(limits{Max: 1}, up)
		a, b := w.fresh(0, 2), w.try(1)
		q, other := w.waitToRide(0, 1), w.waitToRide(0, 1)
		boards(t, a[0], q)
		w.RemoveLane(0)
		noBoard(t, a[1], 1)
		a[0].Put(1)
		a[1].Put(1)
		w.wantClosed("conn 0 removed", "conn 1 removed")
		q.waits()
		b.Put(0)
		q.gets(1).Put(0)
		other.gets(1)
	})
	in(t, "a probe that nobody took is not armed again", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 1}, down)
		w.AddLane(limits{Max: 1}, up)
		w.try(1)
		q := w.wait(0, 1)
		w.SetState(0, once)
		w.RemoveLane(0)
		q.gets(0).Put(0)
		w.noTry(0)
	})
	in(t, "nor one that is given back", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 1}, up)
		w.try(0)
		for range 50 { // the grant and the end of the context race
			n := w.AddLane(limits{Max: 1}, down)
			q := w.wait(0, connpool.Member(n))
			q.cancel(nil)
			w.SetState(n, once)
			w.RemoveLane(n)
			synctest.Wait()
			if q.err == nil {
				q.turn.Put(0)
			}
			w.noTry(n)
			if s := w.Stats(n); s.State != down || s.Held != 0 {
				t.Fatalf("a lane that was removed: %+v", s)
			}
		}
	})
	synctest.Test(t, func(t *testing.T) { // the owner can say goodbye
		w := newRetiringWorld(t, -1)
		w.AddLane(limits{Max: 2}, up)
		w.fill(0, 1)
		w.RemoveLane(0)
		w.wantClosed("conn 0 removed")
		if w.gone() != 1 {
			t.Error("not retired")
		}
	})
}

// A place is given away when nothing is left of its lane, and not before.
func TestLaneIsReplaced(t *testing.T) {
	const fresh, replaced = 2, 1 << 16
	for name, hold := range map[string]func(w *world) (release func()){
		"a turn": func(w *world) func() {
			turn := w.try(0)
			return func() { turn.Put(0) }
		},
		"a rider that names it": func(w *world) func() {
			a := w.fresh(1, 1)
			turn := w.try(0)
			q := w.waitToRide(0, 1)
			boards(w.t, a[0], q)
			turn.Put(0)
			return func() { a[0].Put(1); q.rides(1, a0(w)).Put(0) }
		},
		"a connection that leaves": func(w *world) func() {
			w.fill(0, 1)
			return func() { w.gone() }
		},
		"a connection that is being checked": func(w *world) func() {
			w.fill(0, 1)
			w.on(&w.onAlive, func() { time.Sleep(time.Second) })
			go w.Recheck(0)
			synctest.Wait()
			return func() { time.Sleep(time.Second); synctest.Wait(); w.gone() }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newRetiringWorld(t, -1)
				w.AddLane(limits{Max: 1}, up)
				w.AddLane(limits{Max: 1}, up)
				release := hold(w)
				w.RemoveLane(0)
				w.Rouse()
				if n := w.AddLane(limits{}, up); n != fresh {
					t.Fatalf("AddLane = %d, want %d", n, fresh)
				}
				release()
				w.Rouse()
				if n := w.AddLane(limits{Max: 1}, up); n != replaced || connpool.Member(n) != 0 {
					t.Fatalf("AddLane = %d, want %d", n, replaced)
				}
				w.wantStats(replaced, 0, 0, 0)
				turn := w.try(replaced)
				if s := w.Stats(0); s != (connpool.LaneStats{}) || w.Held(0) != 0 || w.Free(0, false) {
					t.Errorf("the old number: %+v", s)
				}
				w.SetState(0, down)
				w.RemoveLane(0)
				turn.Put(0)
				w.try(replaced)
			})
		})
	}
	in(t, "not before Rouse", func(t *testing.T, w *world) {
		w.AddLane(limits{}, up)
		w.RemoveLane(0)
		if n := w.AddLane(limits{}, up); n != 1 {
			t.Errorf("AddLane = %d, want 1", n)
		}
	})
	in(t, "for ever", func(t *testing.T, w *world) {
		n := w.AddLane(limits{Max: 1}, up)
		for range 10_000 {
			w.RemoveLane(n)
			w.Rouse()
			if n = w.AddLane(limits{Max: 1}, up); connpool.Member(n) != 0 {
				t.Fatalf("lane %d has a new place", n)
			}
		}
		w.try(n).Put(0)
	})
}

func a0(w *world) *fakeConn { return w.conns[0] }

func TestRouse(t *testing.T) {
	in(t, "all have their places back", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 1}, up)
		a := w.try(0)
		q := []*wait{w.wait(0), w.wait(0), w.wait(0)}
		time.Sleep(time.Second)
		w.AddLane(limits{Max: 1}, up)
		w.Rouse()
		for i := range q {
			q[i].fails(connpool.ErrChanged)
		}
		w.wantStats(0, 1, 0, 0)
		b := w.try(1)
		late := w.wait(0, 1)
		q[2], q[0], q[1] = q[2].again(0, 1), q[0].again(0), q[1].again(0, 1)
		b.Put(0)
		q[1].gets(1)
		a.Put(0)
		q[0].gets(0).Put(0)
		q[2].gets(0).Put(0)
		late.gets(0)
	})
	in(t, "a ticket is good after ErrNoLane too", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 1}, up)
		w.AddLane(limits{Max: 1}, up)
		a, b := w.try(0), w.try(1)
		q, late := w.wait(0), w.wait(1)
		w.SetState(0, down)
		q.fails(connpool.ErrNoLane)
		q = q.again(1)
		b.Put(0)
		q.gets(1)
		late.waits()
		a.Put(0)
	})
	in(t, "who has not seen it", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 1}, up)
		seen := w.Changes()
		w.Rouse()
		w.waitFor(&connpool.Request{Lanes: set(0), Seen: seen}).fails(connpool.ErrChanged)
		w.waitFor(&connpool.Request{Lanes: set(0), Seen: w.Changes()}).gets(0).Put(0)
		w.wait(0).gets(0)
		if seen == 0 {
			t.Error("Changes() = 0")
		}
	})
	in(t, "a rider rides on", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 1}, up)
		a := w.fresh(0, 1)[0]
		q := w.waitToRide(0)
		boards(t, a, q)
		w.Rouse()
		a.Put(1)
		q.rides(0, a0(w))
	})
	in(t, "a rider is told when it comes back", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 1}, up)
		a := w.fresh(0, 1)[0]
		q := w.waitToRide(0)
		boards(t, a, q)
		w.Rouse()
		q.waits()
		a.Alight()
		q.fails(connpool.ErrChanged)
		q.lent(false)
	})
	synctest.Test(t, func(t *testing.T) { // a rider whose patience is over is in the queue, and told at once
		w := newPatientWorld(t, time.Second)
		w.AddLane(limits{Max: 1}, up)
		a := w.fresh(0, 1)[0]
		q := w.waitToRide(0)
		boards(t, a, q)
		time.Sleep(time.Second)
		q.waits()
		w.Rouse()
		q.fails(connpool.ErrChanged)
		q.lent(true)
		a.Put(1)
		w.wantClosed("conn 0 left")
	})
}

// A lane that is Down may be named next to others: who names it is served by it
// when it can.
func TestDownLaneIsNamed(t *testing.T) {
	in(t, "up", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 1}, up)
		w.AddLane(limits{Max: 2}, down)
		w.try(0)
		q := []*wait{w.wait(0), w.wait(0, 1), w.wait(0, 1), w.wait(0, 1)}
		w.wantStats(1, 0, 0, 3)
		w.SetState(1, up)
		q[1].gets(1)
		q[2].gets(1).Put(0)
		q[0].waits()
		q[3].gets(1)
	})
	in(t, "once", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 1}, up)
		w.AddLane(limits{Max: 2}, down)
		w.try(0)
		q := []*wait{w.wait(0), w.wait(0, 1), w.wait(0, 1)}
		w.SetState(1, once)
		turn := q[1].gets(1)
		q[0].waits()
		q[2].waits()
		turn.Put(0)
		q[2].waits()
		w.wantStats(1, 0, 0, 1)
		w.SetState(1, once)
		q[2].gets(1)
		if s := w.Stats(1).State; s != down {
			t.Errorf("%v after the one turn", s)
		}
	})
	in(t, "once, for an urgent one only", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 1}, up)
		w.AddLane(limits{Max: 2, Reserved: 1}, up)
		w.try(0)
		w.try(1)
		w.SetState(1, down)
		bulk := w.waitFor(&connpool.Request{Lanes: set(0, 1), Bulk: true})
		w.SetState(1, once)
		bulk.waits()
		w.wait(0, 1).gets(1)
	})
}

func TestLag(t *testing.T) {
	late := func(w *world, lag time.Duration) *wait {
		return w.waitFor(&connpool.Request{Lanes: set(0), Lag: lag})
	}
	in(t, "who is due first", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 1}, up)
		turn := w.try(0)
		var q []*wait
		for _, lag := range []time.Duration{3 * time.Second, 0, 3 * time.Second, -time.Second, 0} {
			q = append(q, late(w, lag))
		}
		time.Sleep(3*time.Second - 1)
		q = append(q, late(w, 0))
		time.Sleep(time.Nanosecond)
		q = append(q, late(w, 0)) // due with the first, and came later
		for _, i := range []int{3, 1, 4, 5, 0, 2, 6} {
			turn.Put(0)
			turn = q[i].gets(0)
		}
	})
	in(t, "a lag of any size", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 1}, up)
		turn := w.try(0)
		last, first := late(w, 1<<63-1), late(w, -1<<63)
		q := late(w, 0)
		for _, q := range []*wait{first, q, last} {
			turn.Put(0)
			turn = q.gets(0)
		}
	})
	in(t, "bulk does not starve", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 1}, up)
		turn := w.try(0)
		bulk := late(w, 10*time.Second)
		for i := range 20 {
			urgent := late(w, 0)
			time.Sleep(time.Second)
			turn.Put(0)
			if i == 10 {
				bulk.gets(0)
				urgent.waits()
				return
			}
			turn = urgent.gets(0)
		}
	})
}

// Many come and go, in front, behind and in the middle, and are served as they
// are due.
func TestQueueOrder(t *testing.T) {
	seeds(t, 20, func(t *testing.T, r *rand.Rand) {
		type waiter struct {
			*wait
			came int
		}
		w := newWorld(t)
		w.AddLane(limits{Max: 1}, up)
		turn := w.try(0)
		var q []waiter
		for i := range 200 {
			q = append(q, waiter{w.waitFor(&connpool.Request{Lanes: set(0), Lag: time.Duration(r.IntN(50)), Bulk: r.IntN(2) == 0}), i})
			if i := r.IntN(len(q)); r.IntN(3) == 0 {
				q[i].cancel(nil)
				synctest.Wait()
				if r.IntN(2) == 0 {
					q = append(q, waiter{q[i].again(0), q[i].came})
				}
				q = slices.Delete(q, i, i+1)
			}
		}
		slices.SortFunc(q, func(a, b waiter) int { // all came at the same time
			return cmp.Or(cmp.Compare(a.req.Lag, b.req.Lag), cmp.Compare(a.came, b.came))
		})
		for _, q := range q {
			turn.Put(0)
			turn = q.gets(0)
		}
		turn.Put(0)
		w.wantStats(0, 0, 0, 0)
	})
}

func TestReserved(t *testing.T) {
	bulk := func(w *world, lanes ...int) *wait {
		return w.waitFor(&connpool.Request{Lanes: set(lanes...), Bulk: true, Rider: &connpool.Rider{}})
	}
	noBulk := func(w *world, lane int) {
		w.t.Helper()
		if _, ok := w.Try(lane, true); ok || w.Free(lane, true) {
			w.t.Errorf("bulk has a slot of lane %d: %v", lane, ok)
		}
	}
	in(t, "kept back", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 3, Reserved: 1}, up)
		a, _ := w.Try(0, true)
		b, ok := w.Try(0, true)
		if !ok {
			t.Fatal("bulk has one slot only")
		}
		noBulk(w, 0)
		q, r := bulk(w, 0), bulk(w, 0)
		urgent := w.wait(0)
		c := urgent.gets(0) // past those who wait
		last := w.wait(0)
		a.Put(0)
		last.gets(0)
		q.waits()
		b.Put(0)
		c.Put(0)
		q.gets(0)
		r.waits()
	})
	in(t, "limits", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 2, Reserved: 5}, up) // bulk gets one even so
		a, ok := w.Try(0, true)
		if !ok {
			t.Fatal("bulk has none")
		}
		noBulk(w, 0)
		q := bulk(w, 0)
		w.SetLimits(0, limits{Max: 2})
		q.gets(0).Put(0)
		w.SetLimits(0, limits{Max: 2, Reserved: 1})
		noBulk(w, 0)
		w.SetLimits(0, limits{Reserved: 3}) // of no limit
		for range 100 {
			if _, ok := w.Try(0, true); !ok {
				t.Fatal("no turn")
			}
		}
		a.Put(0)
	})
	in(t, "riders", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 2, Reserved: 1}, up)
		a := w.fresh(0, 2) // one of them in the reserve
		q := bulk(w, 0)
		noBoard(t, a[0], 1)
		urgent := w.waitToRide(0)
		boards(t, a[0], urgent)
		a[0].Put(1)
		urgent.rides(0, a0(w)).Put(1)
		q.waits()
		boards(t, a[1], q) // the reserve is free again
		noBulk(w, 0)
		turn := w.try(0) // and taken again, but it rides
		a[1].Put(1)
		q.rides(0, w.conns[1])
		turn.Put(0)
		noBulk(w, 0)
	})
}

func TestTryIdle(t *testing.T) {
	none := func(w *world) {
		w.t.Helper()
		if turn, ok := w.TryIdle(0); ok || turn != nil {
			w.t.Fatal("a turn to check")
		}
	}
	idle := func(w *world) *fakeTurn {
		w.t.Helper()
		turn, ok := w.TryIdle(0)
		if !ok {
			w.t.Fatal("no turn to check")
		}
		return turn
	}
	in(t, "in nobody's way", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 3, Reserved: 1}, up)
		none(w)
		w.fill(0, 3)
		a := idle(w)
		wantConn(t, a, w.conns[2])
		b := w.try(0)
		none(w) // the last slot is not for checks
		a.Put(0)
		b.Put(0)
		if s := w.Stats(0); s.Reused != 0 {
			t.Errorf("%d reused", s.Reused)
		}
		w.SetState(0, once)
		none(w)
	})
	in(t, "it takes nobody along", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 1}, up)
		w.fill(0, 1)
		a := idle(w)
		wantConn(t, a, w.conns[0])
		q := w.waitToRide(0)
		noBoard(t, a, 0)
		a.Put(0)
		wantConn(t, q.gets(0), w.conns[0])
	})
	in(t, "a check is no use", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 2, MaxIdleTime: 10 * time.Second, MaxUses: 2}, up)
		w.fill(0, 1)
		for range 3 {
			time.Sleep(3 * time.Second)
			a := idle(w)
			wantConn(t, a, w.conns[0])
			a.Put(0)
		}
		w.wantClosed()
		time.Sleep(time.Second)
		synctest.Wait()
		w.wantClosed("conn 0 idle")
	})
	in(t, "unless it was one", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 2, MaxIdleTime: 10 * time.Second}, up)
		w.fill(0, 1)
		time.Sleep(9 * time.Second)
		a := idle(w)
		wantConn(t, a, w.conns[0])
		a.Put(1)
		time.Sleep(9 * time.Second)
		a = idle(w)
		a.Adopt(w.open()) // and what it opened itself is new
		a.Put(0)
		w.wantStats(0, 0, 2, 0)
		time.Sleep(9 * time.Second)
		synctest.Wait()
		w.wantClosed("conn 0 idle")
	})
}

// Limits that grow while many wait let them in as slots appear, and limits that
// shrink take nothing away.
func TestLimitsGrowAndShrink(t *testing.T) {
	in(t, "", func(t *testing.T, w *world) {
		w.AddLane(limits{Max: 1, Reserved: 0}, up)
		turns := []*fakeTurn{w.try(0)}
		var q []*wait
		for range 12 {
			q = append(q, w.wait(0))
		}
		for n := 2; n <= 11; n++ {
			time.Sleep(6 * time.Second)
			w.SetLimits(0, limits{Max: n})
			turns = append(turns, q[n-2].gets(0))
			q[n-1].waits()
		}
		for n := 10; n > 0; n-- {
			w.SetLimits(0, limits{Max: n})
		}
		w.wantStats(0, 11, 0, 2)
		for _, turn := range turns[:10] {
			turn.Adopt(w.open())
			turn.Put(1)
			q[10].waits()
		}
		turns[10].Put(0)
		q[10].gets(0)
		q[11].waits()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := w.Wait(ctx, &connpool.Request{Lanes: set(0)}); err != context.Canceled {
			t.Error(err)
		}
	})
}
