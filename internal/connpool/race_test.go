package connpool_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

// crowd is many goroutines that use a pool at will, in fake time but truly at
// once, while limits and states change under them. Their clocks tick in
// milliseconds, so that much happens at the same instant; between two ticks,
// when all is settled, the rules are checked that hold whatever happened.
type crowd struct {
	*world
	t     *testing.T
	lanes int

	// All guarded by world.mu, as what is known of a connection is.
	tick    int
	limits  []limits // in force
	highest []int    // Max since the last check
	before  []int    // turns at the last check
	turns   map[*fakeTurn]*crowdTurn
	waiters map[*crowdWaiter]bool
	grants  []crowdGrant // since the last check
	owner   map[*fakeConn]*fakeTurn
	lane    map[*fakeConn]int
	closed  bool
	checks  []int // calls of Recheck that run
	rides   int   // turns granted to riders
}

type crowdTurn struct {
	asked bool // for a connection
	q     *crowdWaiter
	rider *crowdWaiter
}

type crowdWaiter struct {
	tick  int // of arrival, the last time
	due   int // in ticks
	bulk  bool
	lanes []int

	on    *fakeConn // that it rides on
	since time.Time // when it boarded
	rode  bool      // since the last check
}

type crowdGrant struct {
	q     *crowdWaiter
	tried bool // without waiting
	lane  int
	rides bool
}

func TestCrowd(t *testing.T) {
	rides := 0
	seeds(t, 200, func(t *testing.T, r *rand.Rand) {
		c := &crowd{
			world: newPatientWorld(t, crowdPatience), t: t, lanes: 1 + r.IntN(4),
			turns: map[*fakeTurn]*crowdTurn{}, waiters: map[*crowdWaiter]bool{},
			owner: map[*fakeConn]*fakeTurn{}, lane: map[*fakeConn]int{},
		}
		if r.IntN(2) == 0 {
			c.world = newRetiringWorld(t, crowdPatience)
		}
		defer func() { rides += c.rides }()
		for range c.lanes {
			lim := c.randomLimits(r)
			c.AddLane(lim, up)
			c.limits = append(c.limits, lim)
			c.highest = append(c.highest, lim.Max)
			c.before = append(c.before, 0)
			c.checks = append(c.checks, 0)
		}
		if r.IntN(2) == 0 { // Alive takes its time
			c.on(&c.onAlive, func() { time.Sleep(rand.N(2 * time.Millisecond).Truncate(time.Millisecond)) })
		}
		const ticks = 60
		var wg sync.WaitGroup
		for range 3 + r.IntN(20) {
			r := rand.New(rand.NewPCG(r.Uint64(), 0))
			wg.Go(func() {
				for c.now() < ticks {
					c.use(r)
				}
			})
		}
		chaos := r.IntN(4) > 0
		closeAt := r.IntN(2 * ticks)
		wg.Go(func() {
			r := rand.New(rand.NewPCG(r.Uint64(), 0))
			for now := c.now(); now < ticks; now = c.now() {
				if chaos {
					c.change(r, &wg)
				}
				if r.IntN(2) == 0 {
					c.gone()
				}
				if now == closeAt {
					c.close()
				}
				time.Sleep(time.Millisecond)
			}
			for i := range c.lanes { // so that no waiter is left
				c.SetState(i, up)
			}
		})
		for range ticks + 20 {
			c.check()
			time.Sleep(time.Millisecond)
		}
		wg.Wait()
		c.gone()
		c.check()
		open := 0
		for i := range c.lanes {
			c.wantStats(i, 0, c.Stats(i).Idle, 0)
			open += c.Stats(i).Idle
		}
		for _, conn := range c.conns {
			if conn.closes == 0 && !conn.dropped {
				open--
			}
		}
		if open != 0 {
			t.Errorf("%d connections more are idle than open", open)
		}
		c.Close()
		for _, conn := range c.conns {
			if conn.closes == 0 && !conn.dropped {
				t.Errorf("%v was never closed", conn)
			}
		}
	})
	if *seedFlag == 0 && rides == 0 {
		t.Error("nobody ever rode")
	}
	t.Logf("%d rides", rides)
}

func (c *crowd) now() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tick
}

func (c *crowd) randomLimits(r *rand.Rand) limits {
	return limits{
		Max:         1 + r.IntN(4),
		Reserved:    r.IntN(3),
		MaxIdle:     r.IntN(4) - 1,
		MaxUses:     []int{0, 3}[r.IntN(2)],
		MaxAge:      []time.Duration{0, 20 * time.Millisecond}[r.IntN(2)],
		MaxIdleTime: []time.Duration{0, 2 * time.Millisecond, 5 * time.Millisecond}[r.IntN(3)],
	}
}

// pause lets some ticks pass, or none.
func pause(r *rand.Rand, ticks int) { time.Sleep(time.Duration(r.IntN(ticks)) * time.Millisecond) }

// use is what one message does, or what goes wrong with it.
func (c *crowd) use(r *rand.Rand) {
	pause(r, 3)
	turn := c.take(r)
	if turn == nil {
		if c.isClosed() {
			time.Sleep(time.Millisecond)
		}
		return
	}
	if r.IntN(4) == 0 {
		pause(r, 3)
	}
	if r.IntN(10) > 0 {
		c.connect(r, turn)
	}
	pause(r, 4)
	if r.IntN(3) > 0 {
		c.board(r, turn)
	}
	if r.IntN(6) == 0 {
		c.drop(turn)
		turn.Discard()
		c.connect(r, turn)
		pause(r, 2)
	}
	c.end(r, turn)
}

func (c *crowd) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

func (c *crowd) take(r *rand.Rand) *fakeTurn {
	q := &crowdWaiter{bulk: r.IntN(3) == 0}
	if lane := r.IntN(c.lanes); r.IntN(3) == 0 {
		c.mu.Lock()
		q.tick, q.due = c.tick, c.tick
		c.mu.Unlock()
		turn, ok := (*fakeTurn)(nil), false
		if r.IntN(4) == 0 {
			q.bulk = true
			turn, ok = c.TryIdle(lane)
		} else {
			turn, ok = c.Try(lane, q.bulk)
		}
		if ok {
			c.granted(q, turn, true)
			return turn
		}
		return nil
	}
	for i := range c.lanes {
		if r.IntN(2) == 0 {
			q.lanes = append(q.lanes, i)
		}
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Duration(r.IntN(6))*time.Millisecond)
	defer cancel()
	req := &connpool.Request{Lanes: set(q.lanes...), Bulk: q.bulk}
	lag := []int{0, 0, 2, 4, -1}[r.IntN(5)]
	req.Lag = time.Duration(lag) * time.Millisecond
	if r.IntN(4) > 0 {
		req.Rider = &connpool.Rider{Load: q}
	}
	q.due = c.now() + lag
	turn, err := c.waitAs(ctx, q, req)
	for err == connpool.ErrChanged { // with the same ticket
		if rider := req.Rider; rider != nil && rider.Lent {
			q = &crowdWaiter{due: q.due, bulk: q.bulk, lanes: q.lanes}
			req.Rider = &connpool.Rider{Load: q}
		}
		turn, err = c.waitAs(ctx, q, req)
	}
	switch c.mu.Lock(); {
	case err == connpool.ErrClosed && !c.closed, err != nil && err != connpool.ErrNoLane && err != connpool.ErrClosed && err != context.DeadlineExceeded:
		c.t.Errorf("Wait: %v", err)
	}
	c.mu.Unlock()
	if err == nil {
		c.granted(q, turn, false)
	} else if err == connpool.ErrNoLane {
		time.Sleep(time.Millisecond)
	}
	return turn
}

// waitAs is one call of Wait.
func (c *crowd) waitAs(ctx context.Context, q *crowdWaiter, req *connpool.Request) (*fakeTurn, error) {
	c.mu.Lock()
	q.tick = c.tick
	c.waiters[q] = true
	c.mu.Unlock()
	turn, err := c.Wait(ctx, req)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiters, q)
	if q.on != nil && !req.Rider.Lent {
		c.t.Errorf("rides on %v still, and was not lent", q.on)
	}
	return turn, err
}

func (c *crowd) granted(q *crowdWaiter, turn *fakeTurn, tried bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turns[turn] = &crowdTurn{q: q}
	c.grants = append(c.grants, crowdGrant{q, tried, turn.Lane(), turn.Rides()})
}

func (c *crowd) connect(r *rand.Rand, turn *fakeTurn) {
	var conn *fakeConn
	ok := false
	if r.IntN(10) > 0 {
		conn, ok = turn.Conn()
	}
	if !ok {
		conn = c.open()
		c.mu.Lock()
		c.lane[conn] = turn.Lane()
		c.owner[conn] = turn
		c.turns[turn].asked = true
		c.mu.Unlock()
		turn.Adopt(conn)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if other := c.owner[conn]; other != nil || conn.closes > 0 || conn.dropped || c.lane[conn] != turn.Lane() {
		c.t.Errorf("%v handed out by lane %d: in use %v, closed %d times, dropped %v, of lane %d",
			conn, turn.Lane(), other != nil, conn.closes, conn.dropped, c.lane[conn])
	}
	c.takes(turn, conn)
	c.owner[conn] = turn
	c.turns[turn].asked = true
}

// drop says that the holder closes what the turn holds.
func (c *crowd) drop(turn *fakeTurn) {
	if conn, ok := turn.Held(); ok {
		c.mu.Lock()
		defer c.mu.Unlock()
		if conn.closes > 0 {
			c.t.Errorf("%v closed while in use", conn)
		}
		conn.dropped = true
		delete(c.owner, conn)
		c.turns[turn].asked = false
		c.rideEnds(turn)
	}
}

func (c *crowd) end(r *rand.Rand, turn *fakeTurn) {
	put := r.IntN(4) > 0
	if !put {
		c.drop(turn)
	}
	conn, ok := turn.Held()
	c.mu.Lock()
	c.rideEnds(turn)
	delete(c.turns, turn)
	if ok {
		delete(c.owner, conn)
	}
	c.mu.Unlock()
	if put && !turn.Put(r.IntN(2)) || !put && !turn.Drop() {
		c.t.Error("a turn said that it had ended before")
	}
	if r.IntN(4) == 0 && (turn.Put(1) || turn.Drop()) {
		c.t.Error("a turn ended twice")
	}
}

func (c *crowd) change(r *rand.Rand, wg *sync.WaitGroup) {
	i := r.IntN(c.lanes)
	switch r.IntN(9) {
	case 8:
		c.Rouse()
	case 0:
		c.SetState(i, connpool.State(r.IntN(3)))
	case 1, 2:
		c.SetState(i, up)
	case 3:
		lim := c.randomLimits(r)
		c.mu.Lock()
		c.limits[i] = lim
		c.highest[i] = max(c.highest[i], lim.Max)
		c.mu.Unlock()
		c.SetLimits(i, lim)
	case 4:
		wg.Go(func() {
			c.mu.Lock()
			c.checks[i]++
			c.mu.Unlock()
			c.Recheck(i)
			c.mu.Lock()
			c.checks[i]--
			c.mu.Unlock()
		})
	case 5:
		c.Flush(i)
	case 6:
		c.mu.Lock()
		if n := len(c.conns); n > 0 {
			c.conns[r.IntN(n)].dead = true
		}
		c.mu.Unlock()
	}
}

func (c *crowd) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.Close()
}

// check checks what holds whenever all is settled.
func (c *crowd) check() {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.t
	held, unasked, waiting, patient, bulk := make([]int, c.lanes), make([]int, c.lanes), make([]int, c.lanes), make([]int, c.lanes), make([]int, c.lanes)
	for turn, ct := range c.turns {
		held[turn.Lane()]++
		if !ct.asked {
			unasked[turn.Lane()]++
		}
	}
	for q := range c.waiters {
		lives := c.isPatient(q)
		for _, i := range q.lanes {
			waiting[i]++
			switch {
			case c.isPatient(q):
				patient[i]++
			case q.bulk:
				bulk[i]++
			}
			lives = lives || c.Stats(i).State != down
			for _, g := range c.grants {
				// q waits since before this tick, unlike who tried.
				if g.lane == i && q.tick < c.tick && (g.tried || g.q.due > q.due) && (!q.bulk || g.q.bulk) && !g.rides && !q.rode {
					t.Errorf("lane %d granted to one due at %d (tried: %v); one due at %d, come at %d, waits still", i, g.q.due, g.tried, q.due, q.tick)
				}
			}
		}
		if !lives {
			t.Errorf("one waits for lanes %v, none of which is up", q.lanes)
		}
		q.rode = c.isPatient(q)
	}
	if n := c.Waiting(); n != len(c.waiters) {
		t.Errorf("Waiting() = %d, want %d", n, len(c.waiters))
	}
	unowned := make([]int, c.lanes)
	for _, conn := range c.conns {
		switch owner := c.owner[conn]; {
		case conn.closes > 1 || conn.closes > 0 && conn.dropped:
			t.Errorf("%v closed twice", conn)
		case owner != nil && conn.closes > 0:
			t.Errorf("%v closed while in use", conn)
		case owner == nil && conn.closes == 0 && !conn.dropped:
			unowned[c.lane[conn]]++
		}
	}
	leaving := make([]int, c.lanes)
	for _, r := range c.leaving {
		leaving[c.lane[r.c]]++
	}
	for i := range c.lanes {
		s, lim := c.Stats(i), c.limits[i]
		if s.Held != held[i] || c.Held(i) != held[i] {
			t.Errorf("lane %d has %d turns (mirror %d), but %d run", i, s.Held, c.Held(i), held[i])
		}
		if s.Waiting != waiting[i] {
			t.Errorf("lane %d has %d waiters, but %d wait", i, s.Waiting, waiting[i])
		}
		if s.Held > max(c.highest[i], c.before[i]) {
			t.Errorf("lane %d has %d turns; %d were allowed, %d ran before", i, s.Held, c.highest[i], c.before[i])
		}
		checking := c.checks[i] > 0 // some that count as idle are not, and occupy slots
		if s.Idle > 0 && !checking && (s.Held+s.Idle > lim.Max || lim.MaxIdle < 0 || lim.MaxIdle > 0 && s.Idle > lim.MaxIdle || s.State != up || c.closed) {
			t.Errorf("lane %d has idle connections too many: %+v, %+v, closed %v", i, s, lim, c.closed)
		}
		free := !c.closed && s.State != down && s.Held+leaving[i] < lim.Max
		freeBulk := free && s.Held+leaving[i] < lim.Max-min(lim.Reserved, lim.Max-1)
		if got := c.Free(i, false); got != free && (got || !checking) {
			t.Errorf("Free(%d, false) = %v, want %v", i, got, free)
		}
		if got := c.Free(i, true); got != freeBulk && (got || !checking) {
			t.Errorf("Free(%d, true) = %v, want %v", i, got, freeBulk)
		}
		if n := s.Waiting - patient[i] - bulk[i]; free && !checking && n > 0 {
			t.Errorf("lane %d is free, and %d wait for it", i, n)
		}
		if n := bulk[i]; freeBulk && !checking && n > 0 {
			t.Errorf("lane %d is free for bulk, and %d wait for it", i, n)
		}
		if s.Idle > unowned[i] || s.Idle+unasked[i] < unowned[i] {
			t.Errorf("lane %d: %d open connections nobody uses, %d are idle and %d may be reserved", i, unowned[i], s.Idle, unasked[i])
		}
		c.before[i], c.highest[i] = held[i], lim.Max
	}
	c.grants = nil
	c.tick++
}

// Goroutines that use a pool in real time: what they see of it, without a lock
// of the test's own, never breaks the rules.
func TestStress(t *testing.T) {
	type conn struct {
		users, closes atomic.Int32
		lane          int
	}
	const (
		lanes   = 3
		most    = 2
		workers = 12
		rounds  = 1000
	)
	var opened, closed atomic.Int64
	var p *connpool.Pool[*conn]
	p = connpool.New(connpool.Config[*conn]{
		Alive: func(c *conn) bool {
			p.Waiting() // hangs if the lock is held
			if c.closes.Load() > 0 {
				t.Error("Alive asked of a closed connection")
			}
			return rand.IntN(20) > 0
		},
		Close: func(c *conn, why connpool.Reason) {
			p.Waiting()
			closed.Add(1)
			if c.closes.Add(1) > 1 || c.users.Load() > 0 {
				t.Error("closed twice or in use:", why)
			}
		},
		Abort: func(*conn) { p.Waiting() },
	})
	for range lanes {
		p.AddLane(limits{Max: most, MaxUses: 50}, up)
	}
	var inUse [lanes]atomic.Int32
	var errNone, errDone, done atomic.Int64
	var wg, others sync.WaitGroup
	work := func() {
		var turn *connpool.Turn[*conn]
		if lane := rand.IntN(lanes); rand.IntN(3) == 0 {
			turn, _ = p.Try(lane, false)
		} else {
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(300))*time.Microsecond)
			var err error
			turn, err = p.Wait(ctx, &connpool.Request{Lanes: []uint64{rand.Uint64N(1 << lanes)}})
			cancel()
			switch {
			case errors.Is(err, connpool.ErrNoLane):
				errNone.Add(1)
			case errors.Is(err, context.DeadlineExceeded):
				errDone.Add(1)
			case errors.Is(err, connpool.ErrClosed) || err == nil:
			default:
				t.Error(err)
			}
		}
		if turn == nil {
			return
		}
		done.Add(1)
		if n := inUse[turn.Lane()].Add(1); n > most {
			t.Errorf("%d turns at a time, want at most %d", n, most)
		}
		c, ok := turn.Conn()
		if !ok {
			c = &conn{lane: turn.Lane()}
			opened.Add(1)
			turn.Adopt(c)
		}
		if n := c.users.Add(1); n > 1 || c.closes.Load() > 0 || c.lane != turn.Lane() {
			t.Errorf("handed out: %d users, %d closes, lane %d for %d", n, c.closes.Load(), c.lane, turn.Lane())
		}
		if rand.IntN(4) == 0 {
			runtime.Gosched()
		}
		inUse[turn.Lane()].Add(-1)
		c.users.Add(-1)
		switch rand.IntN(8) {
		case 0:
			closed.Add(1)
			c.closes.Add(1)
			turn.Drop()
		case 1:
			closed.Add(1)
			c.closes.Add(1)
			turn.Discard()
			turn.Put(1)
		default:
			turn.Put(1)
		}
		if turn.Put(1) || turn.Drop() {
			t.Error("ended twice")
		}
	}
	for range workers {
		wg.Go(func() {
			for range rounds {
				if t.Failed() {
					return
				}
				work()
			}
		})
	}
	stop := make(chan struct{})
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			switch i := rand.IntN(lanes); rand.IntN(40) {
			case 0:
				p.SetState(i, connpool.State(rand.IntN(3)))
			case 1:
				p.Recheck(i)
			case 2:
				p.Flush(i)
			case 3:
				p.SetLimits(i, limits{Max: most, MaxIdle: rand.IntN(3), MaxUses: 50, MaxIdleTime: time.Duration(rand.IntN(100)) * time.Microsecond})
			default:
				p.SetState(i, up)
			}
			for range 10 {
				_ = p.Free(0, false) && p.Held(1) > 0 && p.Waiting() > 0
				runtime.Gosched()
			}
		}
	})
	wg.Wait()
	close(stop)
	others.Wait()
	for i := range lanes {
		s := p.Stats(i)
		if s.Held != 0 || p.Held(i) != 0 || s.Waiting != 0 || s.Idle > most {
			t.Errorf("lane %d, all quiet: %+v", i, s)
		}
		var n uint64
		for _, c := range s.Closed {
			n += c
		}
		if s.Opened != n+uint64(s.Idle) {
			t.Errorf("lane %d: %d opened, %d closed, %d idle", i, s.Opened, n, s.Idle)
		}
	}

	// The end, in the middle of it.
	half := make(chan struct{}, workers)
	for range workers {
		wg.Go(func() {
			for i := range rounds / 10 {
				if i == rounds/20 {
					half <- struct{}{}
				}
				work()
			}
		})
	}
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
	t.Logf("%d turns, %d connections, %d without a lane, %d timed out", done.Load(), opened.Load(), errNone.Load(), errDone.Load())
}
