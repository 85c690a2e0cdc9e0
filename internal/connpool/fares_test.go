package connpool_test

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

// placed is a place in the order of those who wait: the pool's, or the model's.
type placed[P any] interface {
	comparable
	Before(P) bool
}

// gate is where fares are paid: a bucket of whole tokens, and a number of turns at a time. Its arithmetic is exact.
type gate[P placed[P]] struct {
	every time.Duration // until the next token; 0: no bound
	burst int           // tokens, where nobody has paid for long
	most  int           // turns at a time; 0: no bound
	full  time.Time     // when there are burst tokens again
	inUse int
	claim claim[P]
}

// claim is the first who is kept waiting though others could pay: they need less.
type claim[P placed[P]] struct {
	at   P
	need int // 0: there is none
}

// until is how long it is until there are so many tokens; if the bucket can't hold them, until it is full.
func (g *gate[P]) until(now time.Time, need int) time.Duration {
	if g.every == 0 {
		return 0
	}
	return max(0, max(0, g.full.Sub(now))-time.Duration(g.burst-min(need, g.burst))*g.every)
}

func (g *gate[P]) wait(now time.Time, need int, at P, queued bool) time.Duration {
	if g.most > 0 && g.inUse >= g.most {
		return connpool.Never
	}
	d, c := g.until(now, need), g.claim
	if c.need > 0 && c.at.Before(at) {
		d = max(d, g.until(now, c.need))
	}
	if d > 0 && queued && need > 1 && (c.need == 0 || at.Before(c.at)) {
		g.claim = claim[P]{at, need}
	}
	return d
}

func (g *gate[P]) pay(now time.Time, need int) {
	g.inUse++
	if g.full.Before(now) {
		g.full = now
	}
	g.full = g.full.Add(time.Duration(need) * g.every)
}

// end reports whether there is more to be had than before.
func (g *gate[P]) end(need int, spent bool) bool {
	g.inUse--
	if !spent {
		g.full = g.full.Add(-time.Duration(need) * g.every)
	}
	return g.most > 0 || g.every > 0 && !spent
}

func (g *gate[P]) leave(at P) bool {
	if g.claim.need == 0 || g.claim.at != at {
		return false
	}
	g.claim = claim[P]{}
	return true
}

// gates are all that there are. Those of a lane may be nil.
type gates[P placed[P]] struct {
	shared []*gate[P]
	lanes  []*gate[P] // of each member
	fresh  []*gate[P] // for connections, one token each
}

// price is what a turn costs: so many tokens of each of these shared gates, and of the lane's.
type price struct {
	shared []int
	need   int
}

// of are the gates that a price is paid at for a turn of a lane, but for the one for connections.
func (g *gates[P]) of(lane int, x price) (all []*gate[P]) {
	for _, i := range x.shared {
		all = append(all, g.shared[i])
	}
	if lane < len(g.lanes) && g.lanes[lane] != nil {
		all = append(all, g.lanes[lane])
	}
	return all
}

// conns is the gate for connections of a lane, nil if there is none.
func (g *gates[P]) conns(lane int) *gate[P] {
	if lane < len(g.fresh) {
		return g.fresh[lane]
	}
	return nil
}

func (g *gates[P]) wait(lane int, x price, now time.Time, fresh bool, at P, queued bool) (d time.Duration) {
	for _, y := range g.of(lane, x) {
		d = max(d, y.wait(now, x.need, at, queued))
	}
	if y := g.conns(lane); y != nil && fresh {
		d = max(d, y.wait(now, 1, at, queued))
	}
	return d
}

func (g *gates[P]) pay(lane int, x price, now time.Time, fresh bool) {
	for _, y := range g.of(lane, x) {
		y.pay(now, x.need)
	}
	if y := g.conns(lane); y != nil && fresh {
		y.pay(now, 1)
		y.inUse--
	}
}

func (g *gates[P]) end(lane int, x price, spent, unused bool) (others bool) {
	for _, y := range g.of(lane, price{need: x.need}) {
		y.end(x.need, spent)
	}
	for _, i := range x.shared {
		others = g.shared[i].end(x.need, spent) || others
	}
	if y := g.conns(lane); y != nil && unused {
		y.inUse++
		y.end(1, false)
	}
	return others
}

func (g *gates[P]) leave(at P) (others bool) {
	for _, all := range [][]*gate[P]{g.shared, g.lanes} {
		for _, y := range all {
			if y != nil {
				others = y.leave(at) || others
			}
		}
	}
	return others
}

// ledger is the gates of a pool, and checks that what is paid at them can be, is
// ended once, and that who is asked for in the queue leaves it once.
type ledger struct {
	t testing.TB
	gates[connpool.Place]

	mu     sync.Mutex      // guards what follows, and the gates
	asks   int             // calls of Wait
	owed   map[payment]int // paid, and not ended
	fresh  int             // connections that were paid for and not given back, of turns that run
	queued map[connpool.Place]bool
}

type payment struct {
	f    *fakeFare
	lane int
}

func newLedger(t testing.TB) *ledger {
	return &ledger{t: t, owed: map[payment]int{}, queued: map[connpool.Place]bool{}}
}

// fakeFare is a fare that is paid at gates.
type fakeFare struct {
	*ledger
	price
	modest bool // claims nothing
}

// fare costs so much of each of these shared gates, and of the lane's.
func (l *ledger) fare(need int, shared ...int) *fakeFare {
	return &fakeFare{ledger: l, price: price{shared, need}}
}

func (f *fakeFare) Like(other connpool.Fare) bool {
	return slices.Equal(f.shared, other.(*fakeFare).shared)
}

func (f *fakeFare) Wait(a connpool.Ask) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asks++
	if a.Queued {
		f.queued[a.At] = true
	}
	return f.wait(connpool.Member(a.Lane), f.price, a.Now, a.Fresh, a.At, a.Queued && !f.modest)
}

func (f *fakeFare) Pay(lane int, now time.Time, fresh bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := connpool.Member(lane)
	for _, g := range f.of(m, f.price) {
		if g.until(now, f.need) > 0 || g.most > 0 && g.inUse >= g.most {
			f.t.Errorf("lane %d: paid what could not be: %+v, %d needed", lane, *g, f.need)
		}
	}
	if g := f.conns(m); fresh {
		f.ledger.fresh++
		if g != nil && g.until(now, 1) > 0 {
			f.t.Errorf("lane %d: paid for a connection that could not be: %+v", lane, *g)
		}
	}
	f.pay(m, f.price, now, fresh)
	f.owed[payment{f, lane}]++
}

func (f *fakeFare) End(lane int, now time.Time, spent, unused bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := (payment{f, lane}); f.owed[p] > 1 {
		f.owed[p]--
	} else {
		if f.owed[p] == 0 {
			f.t.Errorf("lane %d: a fare was ended that nobody has paid", lane)
		}
		delete(f.owed, p)
	}
	if unused {
		if f.ledger.fresh--; f.ledger.fresh < 0 {
			f.t.Errorf("lane %d: a connection was given back that nobody has paid for", lane)
		}
	}
	return f.end(connpool.Member(lane), f.price, spent, unused)
}

func (f *fakeFare) Leave(at connpool.Place) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.queued, at)
	return f.leave(at)
}

// paid returns how many fares are paid and not ended.
func (l *ledger) paid() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.owed {
		n += k
	}
	return n
}

// tokens returns how many tokens a gate has.
func (l *ledger) tokens(g *gate[connpool.Place]) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n < g.burst && g.until(time.Now(), n+1) <= 0 {
		n++
	}
	return n
}

func (l *ledger) asked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asks
}

// wantEven checks that nothing is paid, nobody claims anything, and nobody is thought to be in the queue.
func (l *ledger) wantEven() {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.owed) > 0 || len(l.queued) > 0 {
		l.t.Errorf("%d fares are paid still, %d are thought to be in the queue", len(l.owed), len(l.queued))
	}
	for _, all := range [][]*gate[connpool.Place]{l.shared, l.lanes, l.gates.fresh} {
		for i, g := range all {
			if g != nil && (g.inUse != 0 || g.claim.need != 0) {
				l.t.Errorf("gate %d: %+v", i, *g)
			}
		}
	}
}
