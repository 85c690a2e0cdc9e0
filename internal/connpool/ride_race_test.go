package connpool_test

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

// crowdPatience is Config.Patience in a crowd.
const crowdPatience = 3 * time.Millisecond

// board takes a rider along, if somebody can ride, and reads the last answer of
// its own.
func (c *crowd) board(r *rand.Rand, turn *fakeTurn) {
	load, ok := turn.Board(1)
	if !ok {
		return
	}
	q := load.(*crowdWaiter)
	conn, _ := turn.Held()
	c.mu.Lock()
	if conn.begun != nil {
		c.t.Errorf("%v boarded twice", conn)
	}
	conn.begun = q
	c.turns[turn].rider = q
	q.on, q.since, q.rode = conn, time.Now(), true
	c.mu.Unlock()
	pause(r, 6)
	if r.IntN(6) > 0 {
		return
	}
	c.mu.Lock()
	conn.begun = nil
	c.rideEnds(turn)
	c.mu.Unlock()
	turn.Alight()
}

// rideEnds says that a turn is about to be done with its rider. It needs mu.
func (c *crowd) rideEnds(turn *fakeTurn) {
	if ct := c.turns[turn]; ct.rider != nil {
		ct.rider.on, ct.rider = nil, nil
	}
}

// takes checks what a turn gets from Conn. It needs mu.
func (c *crowd) takes(turn *fakeTurn, conn *fakeConn) {
	switch q := c.turns[turn].q; {
	case turn.Rides() && conn.begun != q:
		c.t.Errorf("%v was handed to another than its rider", conn)
	case turn.Rides():
		c.rides++
	case conn.begun != nil:
		c.t.Errorf("%v was used again with somebody's work begun on it", conn)
	}
	conn.begun = nil
}

// isPatient reports whether a waiter rides and its patience lasts, as all is
// settled. It needs mu.
func (c *crowd) isPatient(q *crowdWaiter) bool {
	return q.on != nil && time.Since(q.since) < crowdPatience
}

// Riders in real time: each ridden connection goes to its rider and nobody else,
// and what is not lent is its owner's again, which the race detector checks.
func TestRideStress(t *testing.T) {
	type load struct {
		data int // written by its owner, read by a turn that has taken it along
	}
	type conn struct {
		users, closes atomic.Int32
		begun         *load
	}
	const (
		lanes   = 2
		most    = 2
		workers = 16
		rounds  = 1500
	)
	var opened, closed, boarded, rode, lent, alighted atomic.Int64
	var p *connpool.Pool[*conn]
	p = connpool.New(connpool.Config[*conn]{
		Alive: func(c *conn) bool {
			p.Waiting() // hangs if the lock is held
			if c.begun != nil {
				t.Error("Alive asked of a connection with somebody's work begun on it")
			}
			return true
		},
		Close: func(c *conn, why connpool.Reason) {
			p.Waiting()
			closed.Add(1)
			if c.closes.Add(1) > 1 || c.users.Load() > 0 {
				t.Error("closed twice or in use:", why)
			}
		},
		Patience: 50 * time.Microsecond,
	})
	for range lanes {
		p.AddLane(limits{Max: most, MaxUses: 50}, up)
	}
	var inUse [lanes]atomic.Int32
	work := func(own *load) *load {
		ctx, cancel := context.Background(), func() {}
		if rand.IntN(4) == 0 {
			ctx, cancel = context.WithTimeout(ctx, time.Duration(rand.IntN(300))*time.Microsecond)
		}
		own.data++
		r := &connpool.Rider{Load: own}
		turn, err := p.Wait(ctx, &connpool.Request{Lanes: []uint64{1 + rand.Uint64N(1<<lanes-1)}, Rider: r})
		cancel()
		mine := own
		if r.Lent {
			lent.Add(1)
			own = new(load)
		} else {
			own.data++
		}
		if err != nil {
			return own
		}
		if n := inUse[turn.Lane()].Add(1); n > most {
			t.Errorf("%d turns at a time, want at most %d", n, most)
		}
		c, ok := turn.Conn()
		if !ok {
			c = &conn{}
			opened.Add(1)
			turn.Adopt(c)
		}
		switch n := c.users.Add(1); {
		case n > 1 || c.closes.Load() > 0:
			t.Errorf("handed out: %d users, %d closes", n, c.closes.Load())
		case turn.Rides() && (c.begun != mine || r.Lent):
			t.Errorf("a ridden connection with another's work begun, or lent (%v)", r.Lent)
		case turn.Rides():
			rode.Add(1)
		case c.begun != nil:
			t.Error("used again with somebody's work begun on it")
		}
		c.begun = nil
		if rand.IntN(4) == 0 {
			runtime.Gosched()
		}
		if l, ok := turn.Board(1); ok {
			boarded.Add(1)
			c.begun = l.(*load)
			if c.begun.data == 0 {
				t.Error("not yet the load of a waiter")
			}
			for range rand.IntN(4) {
				runtime.Gosched()
			}
			_ = c.begun.data + rand.IntN(2)
			if rand.IntN(8) == 0 {
				alighted.Add(1)
				c.begun = nil
				turn.Alight()
			}
		}
		inUse[turn.Lane()].Add(-1)
		c.users.Add(-1)
		if rand.IntN(8) == 0 {
			closed.Add(1)
			c.closes.Add(1)
			turn.Drop()
		} else {
			turn.Put(1)
		}
		if turn.Put(1) || turn.Drop() {
			t.Error("ended twice")
		}
		return own
	}
	run := func(rounds int, then func(i int)) *sync.WaitGroup {
		wg := new(sync.WaitGroup)
		for range workers {
			wg.Go(func() {
				own := new(load)
				for i := range rounds {
					if t.Failed() {
						return
					}
					then(i)
					own = work(own)
				}
			})
		}
		return wg
	}
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			switch i := rand.IntN(lanes); rand.IntN(100) {
			case 0:
				p.SetState(i, connpool.State(rand.IntN(3)))
			case 1:
				p.Flush(i)
			case 2:
				p.SetLimits(i, limits{Max: 1 + rand.IntN(most), MaxIdle: rand.IntN(3), MaxUses: 50})
			default:
				p.SetState(i, up)
			}
			for range 10 {
				runtime.Gosched()
			}
		}
	})
	run(rounds, func(int) {}).Wait()
	close(stop)
	others.Wait()
	for i := range lanes {
		s := p.Stats(i)
		if s.Held != 0 || p.Held(i) != 0 || s.Waiting != 0 || s.Idle > most || p.Waiting() != 0 {
			t.Errorf("lane %d, all quiet: %+v", i, s)
		}
	}
	half := make(chan struct{}, workers)
	wg := run(rounds/10, func(i int) {
		if i == rounds/20 {
			half <- struct{}{}
		}
	})
	<-half
	p.Close()
	wg.Wait()
	if o, c := opened.Load(), closed.Load(); o != c {
		t.Errorf("%d connections opened, %d closed", o, c)
	}
	for i := range lanes {
		if s := p.Stats(i); s.Held != 0 || s.Waiting != 0 || s.Idle != 0 {
			t.Errorf("lane %d, closed: %+v", i, s)
		}
	}
	if rode.Load() == 0 {
		t.Error("nobody ever rode")
	}
	t.Logf("%d boarded, %d rode, %d alighted, %d lent", boarded.Load(), rode.Load(), alighted.Load(), lent.Load())
}
