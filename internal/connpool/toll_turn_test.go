package connpool_test

import (
	"context"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

func TestFareOfConnections(t *testing.T) {
	conns := func(w *tollWorld, every time.Duration, burst int) *fakeGate {
		g := &fakeGate{every: every, burst: burst}
		w.gates.fresh = []*fakeGate{g}
		return g
	}
	tolls(t, "the token is first", 1, 3, func(t *testing.T, w *tollWorld) {
		conns(w, time.Second, 1)
		f := w.fare(1)
		a := w.tryFare(0, f)
		if !a.Fresh() || !a.Dials() || a.Dials() {
			t.Error("the first dial is paid for, and no other")
		}
		q := w.pays(f, 0, 0)
		x := q.getsAt(time.Second, 0)
		if !x.Fresh() {
			t.Error("without a connection, and hasn't paid for one")
		}
	})
	tolls(t, "the connection is first", 1, 3, func(t *testing.T, w *tollWorld) {
		g := conns(w, time.Second, 1)
		f := w.fare(1)
		a := w.tryFare(0, f)
		a.Dials()
		a.Adopt(w.open())
		b, c := w.pays(f, 0, 0), w.pays(f, 0, 0)
		pass(time.Second / 2)
		b.waits()
		a.Put(1)
		x := b.gets(0)
		if x.Fresh() || x.Dials() {
			t.Error("has a connection, and has paid for one")
		}
		wantConn(t, x, w.conns[0])
		c.getsAt(time.Second/2, 0)
		w.wantTokens(g, 0)
		x.Discard() // it dials anew, which isn't paid for
		w.conns[0].dropped = true
		if x.Dials() {
			t.Error("another dial is paid for")
		}
	})
	tolls(t, "not used", 1, 3, func(t *testing.T, w *tollWorld) {
		g := conns(w, time.Hour, 3)
		f := w.fare(1)
		a, b, c := w.tryFare(0, f), w.tryFare(0, f), w.tryFare(0, f)
		a.Dials()
		a.Adopt(w.open())
		a.Spend()
		a.Put(1)
		w.wantTokens(g, 0)
		wantConn(t, b, w.conns[0]) // b has a connection after all
		q := w.pays(f, 0, 0)
		q.waits()
		b.Spend() // that is another thing
		b.Put(1)
		w.wantTokens(g, 1)
		x := q.gets(0)
		if x.Fresh() {
			t.Error("has a connection, and has paid for one")
		}
		w.drop(c)
		w.wantTokens(g, 2)
		wantConn(t, x, w.conns[0])
		w.drop(x)
		w.wantTokens(g, 2)
		w.wantEven()
	})
	// A connection goes while one waits for the rate, and then for a connection too.
	tolls(t, "idle no more", 1, 3, func(t *testing.T, w *tollWorld) {
		conns(w, time.Minute, 1)
		w.rate(time.Second, 1)
		f := w.fare(1, 0)
		a := w.tryFare(0, f)
		a.Dials()
		a.Adopt(w.open())
		spends(a)
		q := w.pays(f, 0, 0)
		w.Flush(0)
		pass(time.Second)
		q.getsAt(59*time.Second, 0)
	})
}

func TestFareOfBulk(t *testing.T) {
	tolls(t, "", 0, 0, func(t *testing.T, w *tollWorld) {
		w.AddLane(limits{Max: 3, Reserved: 1}, up)
		w.rate(time.Second, 2)
		f := w.fare(1, 0)
		bulk := func(lag time.Duration) *wait {
			return w.waitFor(&connpool.Request{Lanes: set(0), Fare: f, Bulk: true, Lag: lag})
		}
		a, b := bulk(0).gets(0), bulk(0).gets(0)
		pass(2 * time.Second)
		c := bulk(0)
		c.waits() // there are tokens, but the slot is kept back
		if _, ok := w.TryFare(0, true, f, 0); ok {
			t.Error("bulk has the slot that is kept back")
		}
		x := w.tryFare(0, f)
		x.Put(0)
		x = w.pays(f, 0, 0).gets(0)
		x.Put(0)
		spends(a)
		c.gets(0)
		// Now both wait for tokens, and a slot is free for either: who is due first.
		spends(c.turn)
		spends(w.tryFare(0, f))
		w.noTryFare(0, f, 0)
		d, e := bulk(0), w.pays(f, 0, 0)
		w.noTryFare(0, f, 0)
		d.getsAt(time.Second, 0)
		e.getsAt(time.Second, 0)
		// Bulk slots are used up: who is not bulk is first to pay.
		g, h := bulk(0), w.pays(f, time.Second, 0)
		g.waits()
		spends(e.turn)
		x = h.getsAt(time.Second, 0)
		b.Put(0)
		g.waits()
		spends(x)
		g.gets(0)
	})
}

// Tickets keep their places, and so do claims.
func TestFareComesAgain(t *testing.T) {
	tolls(t, "", 2, 3, func(t *testing.T, w *tollWorld) {
		w.rate(time.Second, 1)
		f := w.fare(1, 0)
		spends(w.tryFare(0, f))
		a, b := w.pays(f, 0, 0), w.pays(f, 0, 0)
		w.Rouse()
		a.fails(connpool.ErrChanged)
		b.fails(connpool.ErrChanged)
		pass(time.Second / 2)
		b = w.waitFor(b.req)
		a.req.Lanes = set(1)
		a = w.waitFor(a.req)
		c := w.pays(f, 0, 0, 1)
		spends(a.getsAt(time.Second/2, 1))
		spends(b.getsAt(time.Second, 0))
		// Where there is a token nobody need wait, unless he comes again from behind somebody.
		w.SetState(0, down)
		c.getsAt(time.Second, 1)
		d, e := w.pays(f, 0, 1), w.pays(f, 0, 1)
		e.cancel(nil)
		e.fails(context.Canceled)
		w.SetState(1, down)
		d.fails(connpool.ErrNoLane)
		w.SetState(1, connpool.Once)
		pass(time.Second)
		e = w.waitFor(e.req)
		e.gets(1)
		w.waitFor(d.req).fails(connpool.ErrNoLane)
	})
}

// A lane that goes, or is full, is nothing to those who wait for others.
func TestFareAndLanesThatCome(t *testing.T) {
	tolls(t, "", 2, 1, func(t *testing.T, w *tollWorld) {
		w.rate(time.Second, 1)
		f := w.fare(1, 0)
		spends(w.tryFare(0, f))
		a, b := w.pays(f, 0, 0, 1), w.pays(f, 0, 0)
		w.SetState(0, down)
		b.fails(connpool.ErrNoLane)
		spends(a.getsAt(time.Second, 1))
		// Once: one of two who can pay gets it, and the other hears that there is none.
		w.SetState(1, down)
		w.SetState(0, connpool.Once)
		c, d := w.pays(f, time.Second, 0), w.pays(f, 0, 0)
		x := d.getsAt(time.Second, 0)
		c.fails(connpool.ErrNoLane)
		w.wantPaid(1)
		spends(x)
		// Up again, and more slots.
		w.SetState(0, up)
		e, g := w.pays(f, 0, 0), w.pays(f, 0, 0)
		pass(time.Second)
		g.waits()
		pass(time.Second)
		g.waits() // for a slot
		w.SetLimits(0, limits{Max: 2})
		g.gets(0)
		e.gets(0)
		w.RemoveLane(0)
		e.turn.Put(0)
		w.Rouse()
		w.wantPaid(1)
		g.turn.Put(0)
		w.wantEven()
		if n := w.AddLane(limits{Max: 1}, up); connpool.Member(n) != 0 {
			t.Fatalf("AddLane = %d", n)
		} else if x, ok := w.TryFare(n, false, f, 0); !ok || x.Lane() != n {
			t.Errorf("TryFare(%d) = %v, %v", n, x, ok)
		}
		w.noTryFare(0, f, 0)
	})
}

// Waiting costs nothing while nothing can happen.
func TestFareTimerDoesNotSpin(t *testing.T) {
	tolls(t, "", 2, 3, func(t *testing.T, w *tollWorld) {
		w.rate(time.Minute, 1)
		w.most(1)
		f := w.fare(1, 0)
		spends(w.tryFare(0, f))
		w.tryFare(0, w.fare(1, 1))
		w.pays(w.fare(1, 1), 0, 0, 1) // waits for the end of that
		var qs []*wait
		for range 60 {
			qs = append(qs, w.pays(f, 0, 0, 1))
		}
		before := w.asked()
		for _, q := range qs {
			spends(q.getsAt(time.Minute, 0))
		}
		// For each token, of each lane: the timer asks both lines, and again before and after somebody is served; the end of the turn asks those of its lane once more.
		if n := w.asked() - before; n > 60*2*2*4 {
			t.Errorf("asked %d times in an hour of 60 tokens", n)
		}
		before = w.asked()
		pass(100 * time.Hour)
		if n := w.asked() - before; n > 0 {
			t.Errorf("asked %d times while nothing could happen", n)
		}
	})
}

// rides pays for a waiter on lane 0 that rides on the connection of a turn that has paid, too: each one token of gate 0, which had 3.
func (w *tollWorld) rides(t testing.TB, lanes ...int) (a *fakeTurn, q *wait, g *fakeGate) {
	g = w.rate(time.Hour, 3)
	f := w.fare(1, 0)
	a = w.tryFare(0, f)
	a.Adopt(w.open())
	q = w.paysToRide(f, append([]int{0}, lanes...)...)
	boards(t, a, q)
	w.wantTokens(g, 1)
	w.wantPaid(2)
	return a, q, g
}

func TestFareOfRides(t *testing.T) {
	tolls(t, "handed over", 1, 1, func(t *testing.T, w *tollWorld) {
		w.gates.fresh = []*fakeGate{{every: time.Hour, burst: 1}}
		a, q, g := w.rides(t)
		spends(a)
		x := q.rides(0, w.conns[0])
		if x.Fresh() || x.Dials() {
			t.Error("a rider has paid for a connection")
		}
		w.wantPaid(1)
		w.wantTokens(g, 1)
		x.Put(1)
		w.wantTokens(g, 2)
		w.wantTokens(w.gates.fresh[0], 1) // a never dialled, it says
		w.wantEven()
	})
	tolls(t, "handed over, and spent", 1, 1, func(t *testing.T, w *tollWorld) {
		a, q, g := w.rides(t)
		a.Put(1)
		w.wantTokens(g, 2)
		spends(q.rides(0, w.conns[0]))
		w.wantTokens(g, 2)
		w.wantEven()
	})
	tolls(t, "broken", 1, 1, func(t *testing.T, w *tollWorld) {
		a, q, g := w.rides(t)
		a.Spend()
		w.drop(a)
		x := q.getsOther(0)
		w.wantPaid(1)
		w.wantTokens(g, 1)
		spends(x)
		w.wantTokens(g, 1)
		w.wantEven()
	})
	tolls(t, "alighted", 1, 1, func(t *testing.T, w *tollWorld) {
		a, q, g := w.rides(t)
		a.Alight()
		q.waits()
		w.wantPaid(1)
		w.wantTokens(g, 2)
		boards(t, a, q) // again
		w.wantTokens(g, 1)
		a.Discard()
		w.conns[0].dropped = true
		w.wantTokens(g, 2)
		spends(a)
		q.getsOther(0)
		w.wantPaid(1)
	})
	tolls(t, "left", 1, 1, func(t *testing.T, w *tollWorld) {
		a, q, g := w.rides(t)
		q.cancel(nil)
		q.fails(context.Canceled)
		w.wantPaid(1)
		w.wantTokens(g, 2)
		a.Put(1)
		w.wantTokens(g, 3)
		w.wantEven()
	})
	tolls(t, "closed", 1, 1, func(t *testing.T, w *tollWorld) {
		a, q, g := w.rides(t)
		w.Close()
		q.fails(connpool.ErrClosed)
		w.wantPaid(1)
		w.wantTokens(g, 2)
		a.Put(1)
		w.wantEven()
	})
	tolls(t, "removed", 2, 1, func(t *testing.T, w *tollWorld) {
		w.try(1)
		a, q, g := w.rides(t, 1)
		w.RemoveLane(0)
		q.waits()
		w.Rouse()
		q.waits()
		w.wantPaid(2)
		a.Put(1)
		q.fails(connpool.ErrChanged)
		w.wantTokens(g, 3)
		w.wantEven()
	})
	tolls(t, "impatient", 2, 1, func(t *testing.T, w *tollWorld) {
		busy := w.try(1)
		a, q, g := w.rides(t, 1)
		pass(time.Second)
		w.wantPaid(2) // it is in the queue, and rides on
		w.wantTokens(g, 1)
		busy.Put(0)
		q.getsOther(1)
		q.lent(true)
		w.wantPaid(2)
		w.wantTokens(g, 1)
		a.Put(1)
		w.wantTokens(g, 2)
		spends(q.turn)
		w.wantTokens(g, 2)
		w.wantEven()
	})
	tolls(t, "impatient, handed over", 2, 1, func(t *testing.T, w *tollWorld) {
		w.try(1)
		a, q, g := w.rides(t, 1)
		pass(time.Second)
		a.Put(1)
		spends(q.rides(0, w.conns[0]))
		w.wantTokens(g, 2)
		w.wantEven()
	})
	tolls(t, "impatient, alighted", 2, 1, func(t *testing.T, w *tollWorld) {
		w.try(1)
		a, q, g := w.rides(t, 1)
		pass(time.Second)
		a.Alight()
		w.wantPaid(1)
		w.wantTokens(g, 2)
		spends(a)
		q.getsOther(0)
		w.wantPaid(1)
	})
	tolls(t, "impatient, with what it has paid", 2, 1, func(t *testing.T, w *tollWorld) {
		busy := w.try(1)
		a, q, g := w.rides(t, 1)
		busy.Put(0)
		w.tryFare(1, w.fare(1, 0)).Spend() // the last
		pass(time.Second)
		a.Alight() // q has it back, and waits for a slot with it
		w.wantTokens(g, 1)
		q.waits()
		spends(a)
		q.getsOther(0)
		w.wantTokens(g, 0)
	})
	tolls(t, "can't pay", 1, 1, func(t *testing.T, w *tollWorld) {
		g := w.rate(time.Hour, 1)
		w.rate(time.Hour, 1)
		f := w.fare(1, 0)
		a := w.tryFare(0, f)
		a.Spend()
		a.Adopt(w.open())
		poor := w.paysToRide(f, 0)
		noBoard(t, a, 1)
		rich := w.paysToRide(w.fare(1, 1), 0)
		boards(t, a, rich)
		a.Put(1)
		b := rich.rides(0, w.conns[0])
		noBoard(t, b, 1)
		pass(time.Hour)
		boards(t, b, poor)
		w.wantTokens(g, 0)
	})
	// Who needs a connection, and has no token for it, may ride.
	tolls(t, "in the place of a new connection", 0, 0, func(t *testing.T, w *tollWorld) {
		w.AddLane(limits{Max: 3, Reserved: 2}, up)
		g := &fakeGate{every: time.Hour, burst: 1}
		w.gates.fresh = []*fakeGate{g}
		f := w.fare(1)
		a := w.tryFare(0, f)
		a.Dials()
		a.Adopt(w.open())
		q := w.paysToRide(f, 0)
		q.waits()
		boards(t, a, q)
		a.Put(1)
		q.rides(0, w.conns[0])
		w.wantTokens(g, 0)
	})
}

// Nobody is forgotten because of a ride.
func TestFareBesideRides(t *testing.T) {
	// world has a lane with a free slot, which is kept back, and a turn with a connection.
	world := func(w *tollWorld) *fakeTurn {
		w.AddLane(limits{Max: 2, Reserved: 1}, up)
		w.rate(time.Minute, 1)
		w.rate(time.Minute, 1)
		w.gates.fresh = []*fakeGate{{every: time.Second / 2, burst: 1}} // sooner than patience ends
		a := w.tryFare(0, w.fare(1))
		a.Dials()
		a.Adopt(w.open())
		return a
	}
	tolls(t, "who doesn't ride", 0, 0, func(t *testing.T, w *tollWorld) {
		a := world(w)
		q := w.pays(w.fare(1), 0, 0)
		noBoard(t, a, 1)
		q.getsAt(time.Second/2, 0)
	})
	tolls(t, "who is behind", 0, 0, func(t *testing.T, w *tollWorld) {
		a := world(w)
		q, behind := w.paysToRide(w.fare(1), 0), w.pays(w.fare(1, 0), 0, 0)
		boards(t, a, q)
		behind.getsAt(time.Second/2, 0)
	})
	// A lane's own tokens come back, though no slot of it changes.
	for _, tt := range []struct {
		name string
		f    func(w *tollWorld, a *fakeTurn, q *wait)
	}{
		{"cancel", func(w *tollWorld, a *fakeTurn, q *wait) { q.cancel(nil) }},
		{"alight, impatient", func(w *tollWorld, a *fakeTurn, q *wait) { pass(time.Second); a.Alight() }},
		{"discard", func(w *tollWorld, a *fakeTurn, q *wait) { w.conns[0].dropped = true; a.Discard() }},
		{"other lane", func(w *tollWorld, a *fakeTurn, q *wait) { pass(time.Second); w.SetLimits(1, limits{Max: 2}) }},
	} {
		tolls(t, tt.name, 0, 0, func(t *testing.T, w *tollWorld) {
			w.AddLane(limits{Max: 2}, up)
			w.AddLane(limits{Max: 1}, up)
			w.gates.lanes = []*fakeGate{{every: time.Hour, burst: 1}}
			w.rate(time.Hour, 1)
			a, b := w.try(0), w.try(0)
			w.try(1)
			a.Adopt(w.open())
			q := w.paysToRide(w.fare(1), 0, 1)
			boards(t, a, q) // with the last token
			b.Put(0)
			other := w.waitFor(&connpool.Request{Lanes: set(0), Fare: w.fare(1, 0), Lag: -time.Minute})
			other.waits()
			tt.f(w, a, q)
			other.gets(0)
		})
	}
}

// A chain of riders pays one after the other, as the tokens come.
func TestFareOfRideChain(t *testing.T) {
	tolls(t, "", 1, 1, func(t *testing.T, w *tollWorld) {
		g := w.rate(time.Second, 1)
		g.most = 2
		f := w.fare(1, 0)
		a := w.tryFare(0, f)
		a.Adopt(w.open())
		var qs []*wait
		for range 9 {
			qs = append(qs, w.paysToRide(f, 0))
		}
		for i, q := range qs {
			noBoard(t, a, 1)
			pass(time.Second)
			boards(t, a, q)
			noBoard(t, a, 1)
			w.wantPaid(2)
			spends(a)
			a = q.rides(0, w.conns[0])
			w.wantPaid(1)
			w.wantStats(0, 1, 0, len(qs)-1-i)
		}
	})
}
