package connpool_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

// A lane that is armed once grants one turn, and none is lost, though those who
// wait for it are cancelled, and others try it, at the same moment.
func TestOnceRaces(t *testing.T) {
	seeds(t, 100, func(t *testing.T, r *rand.Rand) {
		w := newWorld(t)
		w.AddLane(limits{Max: 3}, down)
		w.AddLane(limits{Max: 1}, up)
		busy := w.try(1) // keeps those who wait from failing
		for range 10 {
			var wg sync.WaitGroup
			var granted atomic.Int32
			turns := make(chan *fakeTurn, 20)
			for range 1 + r.IntN(8) {
				d := time.Duration(1+r.IntN(3)) * time.Millisecond
				wg.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), d)
					defer cancel()
					if turn, err := w.Wait(ctx, &connpool.Request{Lanes: set(0, 1)}); err == nil {
						granted.Add(1)
						turns <- turn
					}
				})
			}
			for range r.IntN(3) {
				wg.Go(func() {
					time.Sleep(time.Millisecond)
					if turn, ok := w.Try(0, false); ok {
						granted.Add(1)
						turns <- turn
					}
				})
			}
			time.Sleep(time.Millisecond)
			w.SetState(0, once)
			synctest.Wait()
			s := w.Stats(0)
			switch n := granted.Load(); {
			case n > 1:
				t.Errorf("%d turns of one", n)
			case n == 1 && (s.State != down || s.Held != 1):
				t.Errorf("after the one turn: %+v", s)
			case n == 0 && (s.State != once || s.Held != 0 || s.Waiting != 0):
				t.Errorf("the one turn was lost: %+v", s)
			}
			wg.Wait()
			close(turns)
			for turn := range turns {
				turn.Put(0)
			}
			w.SetState(0, down)
		}
		busy.Drop()
		w.wantStats(0, 0, 0, 0)
		w.wantStats(1, 0, 0, 0)
	})
}

// churn is lanes that come and go for good, under callers that pick them from a
// list that may be out of date, as the relays of a name do.
type churn struct {
	*world
	t      *testing.T
	lanes  atomic.Pointer[[]int] // that there are, as callers are told
	of     sync.Map              // *fakeConn to its lane
	counts struct{ grants, changed, noLane, foreign, checks atomic.Int64 }
}

// Nobody gets a connection of a lane that another had the place of, a lane that
// was removed grants nothing, all that was opened is closed, and nothing piles up.
func TestChurn(t *testing.T) {
	var foreign, changed int64
	seeds(t, 100, func(t *testing.T, r *rand.Rand) {
		c := &churn{world: newWorld(t), t: t}
		if r.IntN(2) == 0 {
			c.world = newRetiringWorld(t, crowdPatience)
		}
		c.lanes.Store(&[]int{c.AddLane(limits{Max: 2}, up)})
		var wg sync.WaitGroup
		end := time.Now().Add(100 * time.Millisecond)
		for range 4 + r.IntN(12) {
			r := rand.New(rand.NewPCG(r.Uint64(), 0))
			wg.Go(func() {
				for time.Now().Before(end) {
					c.use(r)
					pause(r, 3)
				}
			})
		}
		places := 0
		for time.Now().Before(end) {
			c.update(r)
			for _, lane := range *c.lanes.Load() {
				places = max(places, connpool.Member(lane)+1)
			}
			c.gone()
			pause(r, 4)
		}
		wg.Wait()
		c.gone()
		if n := c.Waiting(); n != 0 {
			t.Errorf("%d wait still", n)
		}
		for _, lane := range *c.lanes.Load() {
			c.wantStats(lane, 0, c.Stats(lane).Idle, 0)
			c.RemoveLane(lane)
			c.wantStats(lane, 0, 0, 0)
		}
		for _, conn := range c.conns {
			if conn.closes == 0 && !conn.dropped {
				t.Errorf("%v was never closed", conn)
			}
		}
		c.gone()
		c.Rouse()
		for range places { // each place can be had again
			if n := c.AddLane(limits{}, up); connpool.Member(n) >= places {
				t.Errorf("a new place for lane %d, and there were %d", n, places)
			}
		}
		foreign += c.counts.foreign.Load()
		changed += c.counts.changed.Load()
	})
	if *seedFlag == 0 && min(foreign, changed) == 0 {
		t.Errorf("%d turns of others, %d changes seen: something never happens", foreign, changed)
	}
	t.Logf("%d turns of others, %d changes seen", foreign, changed)
}

// update changes the lanes, and tells the callers later, as an update does.
func (c *churn) update(r *rand.Rand) {
	lanes := append([]int(nil), *c.lanes.Load()...)
	for range 1 + r.IntN(2) {
		if n := len(lanes); n > 1 && r.IntN(2) == 0 {
			i := r.IntN(n)
			c.RemoveLane(lanes[i])
			if _, ok := c.Try(lanes[i], false); ok {
				c.t.Error("a turn of a lane that was removed")
			}
			lanes = append(lanes[:i], lanes[i+1:]...)
		} else if n < 4 {
			lanes = append(lanes, c.AddLane(limits{Max: 1 + r.IntN(3), Reserved: r.IntN(2)}, up))
		}
		pause(r, 2)
	}
	c.lanes.Store(&lanes)
	pause(r, 2)
	if r.IntN(3) > 0 {
		c.Rouse()
	}
}

func (c *churn) use(r *rand.Rand) {
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Duration(1+r.IntN(8))*time.Millisecond)
	defer cancel()
	req := &connpool.Request{Bulk: r.IntN(3) == 0, Lag: time.Duration(r.IntN(3)) * time.Millisecond}
	checked := r.IntN(3) > 0
	for {
		seen := c.Changes()
		lanes := *c.lanes.Load()
		if lane := lanes[r.IntN(len(lanes))]; r.IntN(8) == 0 {
			pause(r, 2)
			if turn, ok := c.TryIdle(lane); ok {
				c.counts.checks.Add(1)
				c.talk(r, turn, lane, false)
			}
		} else if turn, ok := c.Try(lane, req.Bulk); ok {
			c.talk(r, turn, lane, true)
			return
		}
		members := make([]int, len(lanes))
		for i, lane := range lanes {
			members[i] = connpool.Member(lane)
		}
		req.Lanes, req.Seen = set(members...), 0
		if checked {
			req.Seen = seen
		}
		if r.IntN(2) == 0 {
			req.Rider = &connpool.Rider{Load: r}
		}
		pause(r, 2)
		turn, err := c.Wait(ctx, req)
		switch {
		case err == connpool.ErrChanged:
			c.counts.changed.Add(1)
			continue
		case err == connpool.ErrNoLane:
			return
		case err != nil:
			if err != context.DeadlineExceeded {
				c.t.Errorf("Wait: %v", err)
			}
			return
		}
		mine := false
		for _, lane := range lanes {
			mine = mine || lane == turn.Lane()
		}
		if !mine {
			if checked {
				c.t.Errorf("a turn of lane %d for one of %v, though it had seen all changes", turn.Lane(), lanes)
			}
			c.counts.foreign.Add(1)
			turn.Put(0)
			continue
		}
		c.talk(r, turn, turn.Lane(), true)
		return
	}
}

// talk uses a turn of a lane.
func (c *churn) talk(r *rand.Rand, turn *fakeTurn, lane int, opens bool) {
	if turn.Lane() != lane {
		c.t.Errorf("a turn of lane %d instead of %d", turn.Lane(), lane)
	}
	conn, ok := turn.Conn()
	switch {
	case ok:
		if of, _ := c.of.Load(conn); of != lane {
			c.t.Errorf("%v of lane %v for a turn of lane %d", conn, of, lane)
		}
	case opens:
		conn = c.open()
		c.of.Store(conn, lane)
		turn.Adopt(conn)
	default:
		turn.Put(0)
		return
	}
	pause(r, 4)
	if load, ok := turn.Board(1); ok && load == nil {
		c.t.Error("a rider without a load")
	}
	pause(r, 3)
	if r.IntN(5) == 0 {
		c.mu.Lock()
		conn.dropped = true
		c.mu.Unlock()
		turn.Drop()
		return
	}
	turn.Put(r.IntN(2))
}
