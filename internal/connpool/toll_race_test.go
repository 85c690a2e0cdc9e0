package connpool_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

// payers are many goroutines that use a pool at will and pay for it, in fake time but truly at once. Between two
// ticks, when all is settled, what is paid must be what turns and riders have paid, and nobody waits
// who could be served.
type payers struct {
	*tollWorld
	t      *testing.T
	modest bool // nobody claims anything, and all in a line need as much

	// All guarded by world.mu.
	turns   map[*fakeTurn]bool // true: it has paid
	waiters map[*payer]bool
	served  int
	rides   int
	over    bool
}

type payer struct {
	fare  *fakeFare
	bulk  bool
	lanes []int
	on    bool // it rides, or did a moment ago
}

func TestTollCrowd(t *testing.T) {
	served, rides := 0, 0
	seeds(t, 150, func(t *testing.T, r *rand.Rand) {
		w := &tollWorld{newPatientWorld(t, crowdPatience), newLedger(t)}
		c := &payers{tollWorld: w, t: t, modest: r.IntN(2) == 0, turns: map[*fakeTurn]bool{}, waiters: map[*payer]bool{}}
		lanes := 1 + r.IntN(4)
		maybe := func(g *fakeGate) *fakeGate {
			if r.IntN(2) == 0 {
				return nil
			}
			return g
		}
		ms := func(n int) time.Duration { return time.Duration(1+r.IntN(n)) * time.Millisecond }
		for range lanes {
			c.AddLane(c.limits(r), up)
			w.gates.lanes = append(w.gates.lanes, maybe(&fakeGate{every: ms(4), burst: 1 + r.IntN(4)}))
			w.gates.fresh = append(w.gates.fresh, maybe(&fakeGate{every: ms(8), burst: 1 + r.IntN(2)}))
		}
		w.rate(ms(5), 1+r.IntN(4))
		w.most(1 + r.IntN(4))
		w.rate(ms(3), 1+r.IntN(4)).most = 1 + r.IntN(4)
		const ticks = 80
		var wg sync.WaitGroup
		for range 3 + r.IntN(20) {
			r := rand.New(rand.NewPCG(r.Uint64(), 0))
			wg.Go(func() {
				for !c.isOver() {
					c.use(r)
				}
			})
		}
		wg.Go(func() {
			for !c.isOver() {
				c.change(r)
				time.Sleep(time.Millisecond)
			}
			for i := range lanes {
				c.SetState(i, up)
			}
			c.Ease()
		})
		for range ticks {
			c.check()
			time.Sleep(time.Millisecond)
		}
		c.world.mu.Lock()
		c.over = true
		c.world.mu.Unlock()
		for range 3000 { // nobody is forgotten: they all wait without an end now
			c.check()
			if c.Waiting() == 0 && c.count() == 0 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if n := c.Waiting(); n > 0 {
			t.Errorf("%d wait still", n)
		}
		c.Close()
		wg.Wait()
		w.wantEven()
		served += c.served
		rides += c.rides
	})
	t.Logf("%d served, %d of them rode", served, rides)
	if *seedFlag == 0 && (served == 0 || rides == 0) {
		t.Error("nobody is ever served, or rides")
	}
}

func (c *payers) limits(r *rand.Rand) limits {
	return limits{Max: 1 + r.IntN(4), Reserved: r.IntN(3), MaxIdle: r.IntN(4) - 1, MaxIdleTime: []time.Duration{0, 3 * time.Millisecond}[r.IntN(2)]}
}

func (c *payers) isOver() bool {
	c.world.mu.Lock()
	defer c.world.mu.Unlock()
	return c.over
}

// count returns the turns that run.
func (c *payers) count() int {
	c.world.mu.Lock()
	defer c.world.mu.Unlock()
	return len(c.turns)
}

func (c *payers) change(r *rand.Rand) {
	i := r.IntN(len(c.gates.lanes))
	switch r.IntN(12) {
	case 0:
		c.SetState(i, connpool.State(r.IntN(3)))
	case 1, 2, 3:
		c.SetState(i, up)
	case 4:
		c.SetLimits(i, c.limits(r))
	case 5:
		c.Flush(i)
	case 6:
		c.Rouse()
	case 7:
		c.ledger.mu.Lock()
		c.shared[0].full = time.Now()
		c.ledger.mu.Unlock()
		c.Ease()
	}
}

// use is what one message does.
func (c *payers) use(r *rand.Rand) {
	pause(r, 3)
	q := &payer{bulk: r.IntN(3) == 0}
	if r.IntN(5) > 0 {
		q.fare = c.fare(1)
		sum := 0
		for i := range c.shared {
			if r.IntN(2) == 0 {
				q.fare.shared = append(q.fare.shared, i)
				sum += i
			}
		}
		q.fare.need = 1 + sum%3
		if q.fare.modest = c.modest; !c.modest {
			q.fare.need = 1 + r.IntN(3)
		}
	}
	turn := c.take(r, q)
	if turn == nil {
		return
	}
	c.world.mu.Lock()
	c.turns[turn] = q.fare != nil
	c.served++
	c.world.mu.Unlock()
	if _, ok := turn.Conn(); !ok {
		if paid := turn.Dials(); q.fare != nil && !turn.Rides() && paid != turn.Fresh() {
			c.t.Errorf("a turn that has paid for a connection (%v) dials, paid %v", turn.Fresh(), paid)
		}
		turn.Adopt(c.open())
	}
	pause(r, 4)
	if r.IntN(3) > 0 {
		if load, ok := turn.Board(1); ok {
			c.world.mu.Lock()
			load.(*payer).on = true
			c.rides++
			c.world.mu.Unlock()
			pause(r, 6)
			if r.IntN(4) == 0 {
				turn.Alight()
			}
		}
	}
	if r.IntN(2) == 0 {
		turn.Spend()
	}
	c.world.mu.Lock()
	delete(c.turns, turn)
	c.world.mu.Unlock()
	if r.IntN(4) == 0 {
		c.drop(turn)
	} else {
		turn.Put(1)
	}
}

func (c *payers) take(r *rand.Rand, q *payer) *fakeTurn {
	n := len(c.gates.lanes)
	lag := time.Duration([]int{0, 0, 2, 4, -1}[r.IntN(5)]) * time.Millisecond
	if r.IntN(4) == 0 {
		if q.fare == nil {
			turn, _ := c.Try(r.IntN(n), q.bulk)
			return turn
		}
		turn, _ := c.TryFare(r.IntN(n), q.bulk, q.fare, lag)
		return turn
	}
	for i := range n {
		if r.IntN(2) == 0 {
			q.lanes = append(q.lanes, i)
		}
	}
	ctx, cancel := context.WithCancel(c.t.Context())
	defer cancel()
	if r.IntN(3) > 0 && !c.isOver() {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(r.IntN(12))*time.Millisecond)
		defer cancel()
	}
	req := &connpool.Request{Lanes: set(q.lanes...), Bulk: q.bulk, Lag: lag}
	if q.fare != nil {
		req.Fare = q.fare
	}
	for {
		if req.Rider = nil; r.IntN(3) > 0 {
			req.Rider = &connpool.Rider{Load: q}
		}
		c.world.mu.Lock()
		c.waiters[q] = true
		c.world.mu.Unlock()
		turn, err := c.Wait(ctx, req)
		c.world.mu.Lock()
		delete(c.waiters, q)
		c.world.mu.Unlock()
		switch err {
		case nil:
			return turn
		case connpool.ErrChanged:
			q = &payer{fare: q.fare, bulk: q.bulk, lanes: q.lanes} // with the same ticket
		case connpool.ErrNoLane, connpool.ErrClosed, context.Canceled, context.DeadlineExceeded:
			time.Sleep(time.Millisecond)
			return nil
		default:
			c.t.Errorf("Wait: %v", err)
			return nil
		}
	}
}

func (c *payers) check() {
	synctest.Wait()
	c.world.mu.Lock()
	defer c.world.mu.Unlock()
	for q := range c.waiters {
		for _, i := range q.lanes {
			if !c.Free(i, q.bulk) || q.on {
				continue
			}
			if q.fare == nil {
				c.t.Errorf("lane %d is free, and one waits for it who pays nothing", i)
				continue
			}
			if !c.modest {
				continue
			}
			c.ledger.mu.Lock()
			d := c.gates.wait(i, q.fare.price, time.Now(), c.Stats(i).Idle == 0, connpool.Last, false)
			c.ledger.mu.Unlock()
			if d <= 0 {
				c.t.Errorf("lane %d is free, and one waits for it who could pay %+v", i, q.fare.price)
			}
		}
	}
	paid, most := 0, 0
	for _, p := range c.turns {
		if p {
			paid++
		}
	}
	for q := range c.waiters {
		if q.on && q.fare != nil {
			most++
		}
	}
	if got := c.paid(); got < paid || got > paid+most {
		c.t.Errorf("%d fares are paid; %d turns have paid, and at most %d riders", got, paid, most)
	}
	c.ledger.mu.Lock()
	defer c.ledger.mu.Unlock()
	for _, g := range c.shared {
		if g.most > 0 && g.inUse > g.most {
			c.t.Errorf("more at a time than may be: %+v", *g)
		}
	}
}
