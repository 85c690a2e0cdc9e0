package connpool_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/smtplb/smtplb/internal/connpool"
)

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
		turn, err := w.Wait(t.Context(), &connpool.Request{Lanes: set(tt.lanes...)})
		if err != nil || turn.Lane() != tt.want {
			t.Errorf("Wait(%v) = %v, %v; want %d", tt.lanes, turn, err, tt.want)
		}
	}
	for _, lanes := range [][]uint64{nil, {}, {0}, set(0), set(201), set(1000)} {
		if turn, err := w.Wait(t.Context(), &connpool.Request{Lanes: lanes}); turn != nil || err != connpool.ErrNoLane {
			t.Errorf("Wait(%b) = %v, %v", lanes, turn, err)
		}
	}
}

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
		if turn, err := w.Wait(ctx, &connpool.Request{Lanes: set(0)}); turn != nil || err != cause {
			t.Errorf("Wait = %v, %v", turn, err)
		}
		busy := w.try(0)
		a, b, c := w.wait(0), w.wait(0), w.wait(0)
		b.cancel(cause)
		b.fails(cause)
		w.wantStats(0, 1, 0, 2)
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		if turn, err := w.Wait(ctx, &connpool.Request{Lanes: set(0)}); turn != nil || err != context.DeadlineExceeded {
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

func TestCancelRaces(t *testing.T) {
	wait := func(w *world, race func(), lanes ...int) *wait {
		ctx := &raceContext{t.Context(), make(chan struct{}), race}
		q := &wait{w: w, cancel: func(error) { close(ctx.done) }}
		go func() {
			turn, err := w.Wait(ctx, &connpool.Request{Lanes: set(lanes...)})
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
				turn, err := w.Wait(ctx, &connpool.Request{Lanes: []uint64{uint64(i%7 + 1)}})
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
			ts[i], _ = p.Try(0, false)
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
				t, _ := p.Try(0, false)
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
					t, _ := p.Wait(context.Background(), &connpool.Request{Lanes: set(0)})
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
