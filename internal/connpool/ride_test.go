package connpool_test

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/smtplb/smtplb/internal/connpool"
)

// newPatientWorld has a pool with a Config.Patience.
func newPatientWorld(t testing.TB, patience time.Duration) *world {
	w := &world{t: t}
	cfg := w.config()
	cfg.Patience = patience
	w.fakePool = connpool.New(cfg)
	return w
}

// boards has the turn take a rider along, which must be the one wanted.
func boards(t testing.TB, turn *fakeTurn, want *wait) {
	t.Helper()
	if load, ok := turn.Board(1); !ok || load != want {
		t.Fatalf("Board = %v, %v; want the load of the first waiter", load, ok)
	}
}

func noBoard(t testing.TB, turn *fakeTurn, uses int) {
	t.Helper()
	if load, ok := turn.Board(uses); ok || load != nil {
		t.Fatalf("Board(%d) = %v, %v; want nobody", uses, load, ok)
	}
}

// rides checks that the wait ended with a turn of the lane that has the
// connection it rode on.
func (q *wait) rides(lane int, c *fakeConn) *fakeTurn {
	q.w.t.Helper()
	turn := q.gets(lane)
	if !turn.Rides() {
		q.w.t.Fatal("the turn of a rider does not ride")
	}
	if c, ok := turn.Held(); ok {
		q.w.t.Fatalf("holds %v before it asked", c)
	}
	wantConn(q.w.t, turn, c)
	if !turn.Rides() {
		q.w.t.Fatal("rides no longer when it has asked for its connection")
	}
	return turn
}

// getsOther is gets for a turn that does not ride.
func (q *wait) getsOther(lane int) *fakeTurn {
	q.w.t.Helper()
	turn := q.gets(lane)
	if turn.Rides() {
		q.w.t.Fatal("a turn rides that was granted as others are")
	}
	return turn
}

func (q *wait) lent(want bool) {
	q.w.t.Helper()
	if q.rider.Lent != want {
		q.w.t.Errorf("Lent = %v, want %v", q.rider.Lent, want)
	}
}

// pass lets time pass, and what is due then happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// drop is what a holder does whose connection broke.
func (w *world) drop(turn *fakeTurn) {
	if c, ok := turn.Held(); ok {
		c.dropped = true
	}
	turn.Drop()
}

// riding runs a test in a bubble of its own, with a world of one full lane, of
// which it gets the turn, with conn 0, and a waiter that rides on it.
func riding(t *testing.T, name string, f func(t *testing.T, w *world, a *fakeTurn, q *wait), lanes ...int) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.AddLane(limits{Max: 1}, up)
			for range lanes { // the others are full, too
				w.try(w.AddLane(limits{Max: 1}, up))
			}
			a := w.fresh(0, 1)[0]
			q := w.waitToRide(append([]int{0}, lanes...)...)
			boards(t, a, q)
			q.waits()
			f(t, w, a, q)
			w.Close()
			synctest.Wait()
			if n := w.Waiting(); n != 0 {
				t.Errorf("%d wait at the end", n)
			}
			for i := range 1 + len(lanes) {
				if s := w.Stats(i); s.Waiting != 0 {
					t.Errorf("lane %d, at the end: %+v", i, s)
				}
			}
		})
	})
}

func TestBoardAndHandOver(t *testing.T) {
	riding(t, "put", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		behind := w.wait(0)
		w.wantStats(0, 1, 0, 2) // who rides counts as waiting
		if n := w.Waiting(); n != 2 {
			t.Errorf("Waiting() = %d, want 2", n)
		}
		a.Put(1)
		b := q.rides(0, w.conns[0])
		q.lent(false)
		w.wantStats(0, 1, 0, 1)
		w.wantClosed()
		if a.Put(1) || a.Drop() {
			t.Error("the turn that took a rider along ended twice")
		}
		b.Put(1)
		wantConn(t, behind.getsOther(0), w.conns[0])
		if s := w.Stats(0); s.Reused != 2 || s.Opened != 1 {
			t.Errorf("stats %+v", s)
		}
	})
	riding(t, "waits for other lanes too", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		w.wantStats(1, 1, 0, 1)
		a.Put(1)
		q.rides(0, w.conns[0])
		w.wantStats(1, 1, 0, 0)
		if n := w.Waiting(); n != 0 {
			t.Errorf("Waiting() = %d, want 0", n)
		}
	}, 1)
}

func TestRideChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.AddLane(limits{Max: 1, MaxUses: 5}, up)
		turn := w.fresh(0, 1)[0]
		var qs []*wait
		for range 6 {
			qs = append(qs, w.waitToRide(0))
		}
		for _, q := range qs[:4] {
			boards(t, turn, q)
			turn.Put(1)
			turn = q.rides(0, w.conns[0])
		}
		noBoard(t, turn, 1) // the fifth use
		turn.Put(1)
		w.wantClosed("conn 0 uses")
		turn = qs[4].getsOther(0)
		noBoard(t, turn, 0) // holds nothing
		turn.Adopt(w.open())
		boards(t, turn, qs[5])
		turn.Put(1)
		qs[5].rides(0, w.conns[1])
	})
}

// boardWorld has a lane that is full, and a waiter that would ride.
type boardWorld struct {
	*world
	first *wait
	last  *fakeTurn
}

func TestBoardRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		lim  limits
		f    func(w *boardWorld, turn **fakeTurn)
		uses int
	}{
		{"ended", limits{Max: 1}, func(w *boardWorld, turn **fakeTurn) { w.wait(0); w.drop(*turn) }, 1},
		{"no connection", limits{Max: 1}, func(w *boardWorld, turn **fakeTurn) { (*turn).Discard(); w.conns[0].dropped = true }, 1},
		{"once", limits{Max: 1}, func(w *boardWorld, turn **fakeTurn) {
			w.SetState(0, once)
			w.drop(*turn) // to the waiter that is first
			*turn = w.first.gets(0)
			(*turn).Adopt(w.open())
			w.SetState(0, up)
			w.waitToRide(0).waits()
		}, 1},
		{"lane down", limits{Max: 1}, func(w *boardWorld, turn **fakeTurn) {
			w.first.cancel(nil)
			w.try(w.AddLane(limits{Max: 1}, up))
			w.waitToRide(0, 1)
			w.SetState(0, down)
		}, 1},
		{"lane once", limits{Max: 1}, func(w *boardWorld, turn **fakeTurn) { w.SetState(0, once) }, 1},
		{"closed", limits{Max: 1}, func(w *boardWorld, turn **fakeTurn) { w.Close() }, 1},
		{"flushed", limits{Max: 1}, func(w *boardWorld, turn **fakeTurn) { w.Flush(0) }, 1},
		{"last use", limits{Max: 1, MaxUses: 2}, func(w *boardWorld, turn **fakeTurn) {}, 2},
		{"last use by lower limit", limits{Max: 1}, func(w *boardWorld, turn **fakeTurn) { w.SetLimits(0, limits{Max: 1, MaxUses: 1}) }, 1},
		{"too old", limits{Max: 1, MaxAge: 10 * time.Second}, func(w *boardWorld, turn **fakeTurn) { pass(11 * time.Second) }, 1},
		{"too many turns", limits{Max: 2}, func(w *boardWorld, turn **fakeTurn) { w.SetLimits(0, limits{Max: 1}) }, 1},
		{"nobody waits", limits{Max: 1}, func(w *boardWorld, turn **fakeTurn) { w.first.cancel(nil); synctest.Wait() }, 1},
		{"has a rider", limits{Max: 1}, func(w *boardWorld, turn **fakeTurn) { w.waitToRide(0); boards(w.t, *turn, w.first) }, 1},
		{"a rider has left", limits{Max: 1}, func(w *boardWorld, turn **fakeTurn) {
			w.waitToRide(0)
			boards(w.t, *turn, w.first)
			w.first.cancel(nil)
			synctest.Wait()
		}, 1},
		{"the first does not ride", limits{Max: 1}, func(w *boardWorld, turn **fakeTurn) {
			w.first.cancel(nil)
			w.wait(0)
			w.waitToRide(0)
		}, 1},
		{"the first rides already", limits{Max: 2}, func(w *boardWorld, turn **fakeTurn) {
			w.waitToRide(0)
			boards(w.t, *turn, w.first)
			pass(time.Second) // it is impatient
			*turn = w.last
		}, 1},
		{"the slot is free", limits{Max: 1}, func(w *boardWorld, turn **fakeTurn) {
			w.SetLimits(0, limits{Max: 3})
			w.first.gets(0)
		}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &boardWorld{world: newWorld(t)}
				w.AddLane(tt.lim, up)
				ts := w.fresh(0, tt.lim.Max)
				w.first, w.last = w.waitToRide(0), ts[len(ts)-1]
				turn := ts[0]
				tt.f(w, &turn)
				waiting := w.Stats(0).Waiting
				noBoard(t, turn, tt.uses)
				w.wantStats(0, w.Stats(0).Held, 0, waiting)
				w.Close()
			})
		})
	}
	// What is just not refused.
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.AddLane(limits{Max: 1, MaxUses: 2, MaxAge: 10 * time.Second}, up)
		a := w.fresh(0, 1)[0]
		pass(9*time.Second - 1)
		q := w.waitToRide(0)
		noBoard(t, a, 2)
		boards(t, a, q)
		a.Put(1)
		q.rides(0, w.conns[0])
	})
}

// A rider that gets its place back is where it would be if it had never left,
// in the queue of each lane it named.
func TestPlaceInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.AddLane(limits{Max: 1}, up)
		w.AddLane(limits{Max: 1}, up)
		a, b := w.fresh(0, 1)[0], w.fresh(1, 1)[0]
		early := w.wait(1)
		q := w.waitToRide(0, 1)
		late0, late1 := w.waitToRide(0), w.wait(1)
		boards(t, a, q)
		a.Alight()
		boards(t, a, q) // it is the first again, and its connection is clean
		a.Alight()
		a.Alight()
		w.wantStats(0, 1, 0, 2)
		w.wantStats(1, 1, 0, 3)
		b.Put(1)
		early.gets(1).Put(1)
		q.getsOther(1) // before late1
		q.lent(false)
		late1.waits()
		boards(t, a, late0)
		a.Put(1)
		late0.rides(0, w.conns[0]).Put(1)
		q.turn.Put(1)
		late1.gets(1)
		w.wantClosed()
	})
}

// The place of a rider that comes back is the slot that is free for it.
func TestComesBackToAFreeSlot(t *testing.T) {
	riding(t, "other lane", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		w.SetLimits(2, limits{Max: 2})
		q.waits() // patiently
		if !w.Free(2, false) {
			t.Error("a rider keeps a slot from others")
		}
		a.Alight()
		q.getsOther(2)
		q.lent(false)
		w.wantStats(0, 1, 0, 0)
		w.noTry(2)
		wantConn(t, a, w.conns[0])
		a.Put(1)
		wantConn(t, w.try(0), w.conns[0]) // nothing was begun
	}, 1, 2)
	riding(t, "same lane", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		w.SetLimits(0, limits{Max: 2})
		q.waits()
		w.conns[0].dropped = true
		a.Discard()
		q.getsOther(0)
		w.noTry(0)
		w.wantStats(0, 2, 0, 0)
	})
	riding(t, "once", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		w.SetState(1, down)
		w.SetLimits(1, limits{Max: 2})
		w.SetState(1, once)
		w.drop(a)
		q.getsOther(1) // it came back before the slot was free
		if s := w.Stats(1).State; s != down {
			t.Errorf("after the one turn the lane is %v", s)
		}
		w.noTry(1)
		w.try(0)
	}, 1)
}

// Whatever becomes of the connection, its rider is untouched.
func TestRiderComesBack(t *testing.T) {
	for _, tt := range []struct {
		name   string
		f      func(w *world, a *fakeTurn)
		closed []string
	}{
		{"drop", func(w *world, a *fakeTurn) { w.drop(a) }, nil},
		{"discard", func(w *world, a *fakeTurn) { w.conns[0].dropped = true; a.Discard(); a.Put(0) }, nil},
		{"adopt", func(w *world, a *fakeTurn) { a.Adopt(w.open()); a.Put(0) }, []string{"conn 0 trimmed"}},
		{"used up", func(w *world, a *fakeTurn) { a.Put(3) }, []string{"conn 0 uses"}},
		{"too old", func(w *world, a *fakeTurn) {
			w.SetLimits(0, limits{Max: 1, MaxAge: time.Second / 2})
			pass(time.Second * 6 / 10)
			a.Put(1)
		}, []string{"conn 0 age"}},
		{"flushed", func(w *world, a *fakeTurn) { w.Flush(0); a.Put(1) }, []string{"conn 0 drained"}},
		{"too many", func(w *world, a *fakeTurn) {
			b := w.fresh(0, 1)[0]
			w.SetLimits(0, limits{Max: 1})
			a.Put(1)
			w.drop(b)
		}, []string{"conn 0 left"}},
		{"once", func(w *world, a *fakeTurn) {
			w.SetState(0, once)
			a.Put(1)
		}, []string{"conn 0 down"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newRetiringWorld(t, 0) // and none is retired
				w.AddLane(limits{Max: 1, MaxUses: 3}, up)
				a := w.fresh(0, 1)[0]
				q := w.waitToRide(0)
				behind := w.wait(0)
				boards(t, a, q)
				q.waits()
				if tt.name == "too many" {
					w.SetLimits(0, limits{Max: 3})
					behind.gets(0).Drop()
					behind = nil
				}
				tt.f(w, a)
				if n := w.gone(); n != 0 {
					t.Errorf("%d connections retired with something begun on them", n)
				}
				w.wantClosed(tt.closed...)
				b := q.getsOther(0)
				q.lent(false)
				switch {
				case tt.name == "once":
					behind.fails(connpool.ErrNoLane) // that was the one turn
				case behind != nil:
					behind.waits()
				}
				if c, ok := b.Conn(); ok && c == w.conns[0] {
					t.Error("the connection was used again")
				}
				w.wantStats(0, 1, 0, w.Waiting())
				w.Close()
			})
		})
	}
}

// What was begun for a rider that does not even ask for the connection must not
// be answered to the next.
func TestRideNotTaken(t *testing.T) {
	for _, tt := range []struct {
		name string
		f    func(w *world, turn *fakeTurn)
		held int
	}{
		{"put", func(w *world, turn *fakeTurn) { turn.Put(0) }, 0},
		{"drop", func(w *world, turn *fakeTurn) { turn.Drop() }, 0},
		{"discard does nothing", func(w *world, turn *fakeTurn) { turn.Discard(); turn.Put(0) }, 0},
		{"adopt", func(w *world, turn *fakeTurn) {
			turn.Adopt(w.open())
			if turn.Rides() {
				w.t.Error("rides with a connection of its own")
			}
		}, 1},
	} {
		riding(t, tt.name, func(t *testing.T, w *world, a *fakeTurn, q *wait) {
			a.Put(1)
			tt.f(w, q.gets(0))
			w.wantClosed("conn 0 left")
			w.wantStats(0, tt.held, 0, 0)
		})
	}
	riding(t, "taken and discarded", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		a.Put(1)
		b := q.rides(0, w.conns[0])
		w.conns[0].dropped = true
		b.Discard()
		if b.Rides() {
			t.Error("rides without a connection")
		}
		wantConn(t, b, nil)
		b.Adopt(w.open())
		next := w.waitToRide(0)
		boards(t, b, next)
		b.Put(1)
		next.rides(0, w.conns[1])
	})
}

// The connection of a ride is in use, however old and silent it seems.
func TestRideIsNotChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.AddLane(limits{Max: 1, MaxIdleTime: time.Second, MaxAge: 10 * time.Second}, up)
		a := w.fresh(0, 1)[0]
		q := w.waitToRide(0)
		boards(t, a, q)
		a.Put(1)
		pass(time.Minute)
		w.conns[0].dead = true
		w.Recheck(0)
		w.on(&w.onAlive, func() { t.Error("Alive asked of a connection that answers are on their way to") })
		q.rides(0, w.conns[0])
		w.wantClosed()
	})
}

// A Rider can be offered again, and says of the last call of Wait whether it was
// lent.
func TestLentIsOfOneWait(t *testing.T) {
	riding(t, "", func(t *testing.T, w *world, a *fakeTurn, q *wait) {
		q.cancel(nil)
		q.fails(context.Canceled)
		q.lent(true)
		a.Put(1)
		if turn, err := w.Wait(t.Context(), &connpool.Request{Lanes: set(0), Rider: q.rider}); err != nil || turn.Rides() {
			t.Fatalf("Wait = %v, %v", turn, err)
		}
		q.lent(false)
	})
}

// To ride allocates nothing: one turn for each Wait, as without.
func TestRideDoesNotAllocate(t *testing.T) {
	p := benchPool(1)
	defer p.Close()
	a, _ := p.Try(0, false)
	a.Adopt(&benchConn{})
	next := make(chan *connpool.Turn[*benchConn])
	start := make(chan struct{})
	defer close(start)
	req := &connpool.Request{Lanes: []uint64{1}, Rider: &connpool.Rider{Load: p}}
	go func() {
		for range start {
			req.Ticket = connpool.Ticket{}
			turn, err := p.Wait(context.Background(), req)
			if err != nil {
				t.Error(err)
			}
			next <- turn
		}
	}()
	lap := func() {
		start <- struct{}{}
		for p.Waiting() == 0 {
			runtime.Gosched()
		}
		if load, ok := a.Board(1); !ok || load != p {
			t.Fatalf("Board = %v, %v", load, ok)
		}
		a.Put(1)
		a = <-next
		if _, ok := a.Conn(); !ok || !a.Rides() {
			t.Fatal("did not ride")
		}
	}
	lap()
	if got := testing.AllocsPerRun(500, lap); got > 1 {
		t.Errorf("%v allocations for a ride, want 1: the turn", got)
	}
}

// Neither a turn that took a rider along, nor a waiter that rode, keeps the
// connection or the load.
func TestRideKeepsNoReference(t *testing.T) {
	type thing struct{ _ [64]byte }
	p := connpool.New(connpool.Config[*thing]{Patience: -1})
	p.AddLane(limits{Max: 1}, up)
	a, _ := p.Try(0, false)
	ts := []*connpool.Turn[*thing]{a}
	var things []weak.Pointer[thing]
	add := func() *thing {
		c := new(thing)
		things = append(things, weak.Make(c))
		return c
	}
	wait := func(ctx context.Context) <-chan *connpool.Turn[*thing] {
		got := make(chan *connpool.Turn[*thing], 1)
		load := add()
		go func() {
			turn, _ := p.Wait(ctx, &connpool.Request{Lanes: set(0), Rider: &connpool.Rider{Load: load}})
			got <- turn
		}()
		for p.Waiting() == 0 {
			runtime.Gosched()
		}
		return got
	}
	a.Adopt(add())
	got := wait(context.Background())
	a.Board(1)
	a.Put(1)
	b := <-got
	b.Conn()
	ctx, cancel := context.WithCancel(context.Background())
	got = wait(ctx)
	b.Board(1)
	cancel()
	<-got
	b.Put(1)
	ts = append(ts, b)
	runtime.GC() // once: twice would empty a sync.Pool
	for i, c := range things {
		if c.Value() != nil {
			t.Errorf("%d of %d is still referred to", i, len(things))
		}
	}
	runtime.KeepAlive(ts)
	runtime.KeepAlive(p)
}
