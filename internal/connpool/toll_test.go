package connpool_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

// tollWorld is a world with gates.
type tollWorld struct {
	*world
	*ledger
}

type fakeGate = gate[connpool.Place]

// tolls runs a test in a bubble of its own, with so many lanes of that many slots. At the end nothing may be left.
func tolls(t *testing.T, name string, lanes, most int, f func(t *testing.T, w *tollWorld)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := &tollWorld{newPatientWorld(t, 0), newLedger(t)}
			for range lanes {
				w.AddLane(limits{Max: most}, up)
			}
			f(t, w)
			w.Close()
			synctest.Wait()
			for i := range lanes {
				if s := w.Stats(i); s.Waiting != 0 || w.Waiting() != 0 {
					t.Errorf("lane %d, at the end: %+v", i, s)
				}
			}
			w.ledger.mu.Lock()
			defer w.ledger.mu.Unlock()
			if len(w.queued) > 0 {
				t.Errorf("%d are thought to be in the queue", len(w.queued))
			}
		})
	})
}

// rate adds a gate that lets one pass each time, and burst at once; it is full.
func (w *tollWorld) rate(every time.Duration, burst int) *fakeGate {
	return w.add(&fakeGate{every: every, burst: burst})
}

// most adds a gate for so many turns at a time.
func (w *tollWorld) most(n int) *fakeGate { return w.add(&fakeGate{most: n}) }

func (w *tollWorld) add(g *fakeGate) *fakeGate {
	w.shared = append(w.shared, g)
	return g
}

// pays is a wait with a fare, after whatever lag.
func (w *tollWorld) pays(f *fakeFare, lag time.Duration, lanes ...int) *wait {
	return w.waitFor(&connpool.Request{Lanes: set(lanes...), Fare: f, Lag: lag})
}

func (w *tollWorld) paysToRide(f *fakeFare, lanes ...int) *wait {
	return w.waitFor(&connpool.Request{Lanes: set(lanes...), Fare: f, Rider: &connpool.Rider{}})
}

func (w *tollWorld) tryFare(lane int, f *fakeFare) *fakeTurn {
	w.world.t.Helper()
	t, ok := w.TryFare(lane, false, f, 0)
	if !ok || t.Lane() != lane {
		w.world.t.Fatalf("TryFare(%d) = %v, %v", lane, t, ok)
	}
	return t
}

func (w *tollWorld) noTryFare(lane int, f *fakeFare, lag time.Duration) {
	w.world.t.Helper()
	if t, ok := w.TryFare(lane, false, f, lag); ok || t != nil {
		w.world.t.Fatalf("TryFare(%d) = %v, %v; want none", lane, t, ok)
	}
}

func (w *tollWorld) wantTokens(g *fakeGate, want int) {
	w.world.t.Helper()
	if got := w.tokens(g); got != want {
		w.world.t.Errorf("%d tokens, want %d", got, want)
	}
}

func (w *tollWorld) wantPaid(want int) {
	w.world.t.Helper()
	if got := w.paid(); got != want {
		w.world.t.Errorf("%d fares are paid, want %d", got, want)
	}
}

// spends ends a turn that has used what it costs.
func spends(t *fakeTurn) {
	t.Spend()
	t.Put(0)
}

// getsAt checks that a wait is served when so much time has passed, and not a
// microsecond before.
func (q *wait) getsAt(d time.Duration, lane int) *fakeTurn {
	q.w.t.Helper()
	time.Sleep(d - time.Microsecond)
	q.waits()
	pass(time.Microsecond)
	return q.gets(lane)
}

func TestFareIsPaidWhenTheTokenComes(t *testing.T) {
	const every = 333_333_333 * time.Nanosecond
	tolls(t, "one after the other", 1, 5, func(t *testing.T, w *tollWorld) {
		g := w.rate(every, 2)
		f := w.fare(1, 0)
		w.pays(f, 0, 0).gets(0)
		w.pays(f, 0, 0).gets(0)
		a, b, c := w.pays(f, 0, 0), w.pays(f, 0, 0), w.pays(f, 0, 0)
		a.getsAt(every, 0)
		b.getsAt(every, 0)
		c.getsAt(every, 0)
		w.wantTokens(g, 0)
		w.wantPaid(5)
	})
	tolls(t, "several at once", 1, 5, func(t *testing.T, w *tollWorld) {
		w.rate(every, 3)
		spends(w.tryFare(0, w.fare(3, 0)))
		a, b := w.pays(w.fare(3, 0), 0, 0), w.pays(w.fare(2, 0), 0, 0)
		a.getsAt(3*every, 0)
		b.getsAt(2*every, 0)
	})
	tolls(t, "more than the bucket holds", 1, 5, func(t *testing.T, w *tollWorld) {
		g := w.rate(every, 3)
		spends(w.tryFare(0, w.fare(1, 0)))
		spends(w.pays(w.fare(5, 0), 0, 0).getsAt(every, 0))
		w.pays(w.fare(1, 0), 0, 0).getsAt(3*every, 0)
		w.wantTokens(g, 0)
	})
	tolls(t, "first a slot, then the token, and the other way round", 1, 1, func(t *testing.T, w *tollWorld) {
		g := w.rate(every, 1)
		f := w.fare(1, 0)
		busy := w.tryFare(0, f)
		a := w.pays(f, 0, 0)
		pass(5 * every)
		a.waits()
		w.wantTokens(g, 1) // it isn't paid before there is a slot
		spends(busy)
		busy = a.gets(0)
		b := w.pays(f, 0, 0)
		spends(busy)
		b.getsAt(every, 0)
	})
	tolls(t, "less than leastWait", 1, 2, func(t *testing.T, w *tollWorld) {
		w.rate(every, 1)
		f := w.fare(1, 0)
		spends(w.tryFare(0, f))
		pass(every - 1)
		a := w.pays(f, 0, 0)
		a.waits()
		pass(time.Microsecond)
		a.gets(0)
	})
}

// What a turn costs is given back, unless it was used.
func TestFareIsGivenBack(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(w *tollWorld, x *fakeTurn)
		left int
	}{
		{"put", func(w *tollWorld, x *fakeTurn) { x.Put(1) }, 3},
		{"drop", func(w *tollWorld, x *fakeTurn) { w.drop(x) }, 3},
		{"twice", func(w *tollWorld, x *fakeTurn) { x.Put(1); x.Put(1); x.Drop() }, 3},
		{"spent", func(w *tollWorld, x *fakeTurn) { x.Spend(); x.Put(1) }, 1},
		{"spent, dropped", func(w *tollWorld, x *fakeTurn) { x.Spend(); w.drop(x) }, 1},
		{"closed", func(w *tollWorld, x *fakeTurn) { w.Close(); w.wantPaid(1); x.Put(1) }, 3},
		{"removed", func(w *tollWorld, x *fakeTurn) { w.RemoveLane(0); w.wantPaid(1); x.Put(1) }, 3},
		{"down", func(w *tollWorld, x *fakeTurn) { w.SetState(0, down); w.wantPaid(1); x.Put(1) }, 3},
		{"flushed", func(w *tollWorld, x *fakeTurn) { w.Flush(0); x.Put(1) }, 3},
	} {
		tolls(t, tt.name, 1, 1, func(t *testing.T, w *tollWorld) {
			g := w.rate(time.Hour, 3)
			x := w.tryFare(0, w.fare(2, 0))
			x.Adopt(w.open())
			w.wantTokens(g, 1)
			w.wantPaid(1)
			tt.end(w, x)
			w.wantTokens(g, tt.left)
			w.wantEven()
		})
	}
}

// Whoever waits leaves nothing behind, however the wait ends.
func TestFareOfWaitThatFails(t *testing.T) {
	for _, tt := range []struct {
		name string
		f    func(w *tollWorld, q *wait)
		want error
	}{
		{"cancelled", func(w *tollWorld, q *wait) { q.cancel(nil) }, context.Canceled},
		{"closed", func(w *tollWorld, q *wait) { w.Close() }, connpool.ErrClosed},
		{"removed", func(w *tollWorld, q *wait) { w.RemoveLane(0) }, connpool.ErrNoLane},
		{"down", func(w *tollWorld, q *wait) { w.SetState(0, down) }, connpool.ErrNoLane},
		{"roused", func(w *tollWorld, q *wait) { w.Rouse() }, connpool.ErrChanged},
	} {
		tolls(t, tt.name, 1, 4, func(t *testing.T, w *tollWorld) {
			g := w.rate(time.Second, 2)
			spends(w.tryFare(0, w.fare(2, 0)))
			q := w.pays(w.fare(2, 0), 0, 0) // claims both
			behind := w.pays(w.fare(1), 0, 0)
			behind.gets(0).Put(0)
			q.waits()
			tt.f(w, q)
			q.fails(tt.want)
			w.wantEven()
			pass(time.Hour)
			w.wantTokens(g, 2)
		})
	}
}

// A waiter that is granted a turn in the moment in which it goes.
func TestFareOfGrantThatNobodySees(t *testing.T) {
	tolls(t, "given back", 1, 1, func(t *testing.T, w *tollWorld) {
		g := w.rate(time.Hour, 2)
		w.gates.fresh = []*fakeGate{{every: time.Hour, burst: 1}}
		busy := w.try(0)
		f := w.fare(2, 0)
		ctx := &raceContext{t.Context(), make(chan struct{}), func() {
			busy.Put(0)
			w.wantPaid(1) // it was granted
			w.wantTokens(g, 0)
		}}
		q := &wait{w: w.world, cancel: func(error) { close(ctx.done) }}
		go func() {
			turn, err := w.Wait(ctx, &connpool.Request{Lanes: set(0), Fare: f})
			w.world.mu.Lock()
			defer w.world.mu.Unlock()
			q.turn, q.err, q.done = turn, err, true
		}()
		synctest.Wait()
		b := w.pays(f, 0, 0)
		b.waits()
		q.cancel(nil)
		q.fails(context.Canceled)
		x := b.gets(0) // with what was given back, the connection too
		if !x.Fresh() {
			t.Error("the turn has no connection, and hasn't paid for one")
		}
		x.Put(0)
		w.wantTokens(g, 2)
		w.wantTokens(w.gates.fresh[0], 1)
		w.wantEven()
	})
}

func TestFareOrder(t *testing.T) {
	// Three come, and are due in another order. What they pay, and which lanes they wait for, says nothing.
	for _, tt := range []struct {
		name  string
		fares [3][]int
		lanes [3]int
	}{
		{"in a line", [3][]int{{0}, {0}, {0}}, [3]int{0, 0, 0}},
		{"across lines", [3][]int{{0}, {0, 1}, {0, 2}}, [3]int{0, 0, 0}},
		{"across lanes", [3][]int{{0}, {0}, {0}}, [3]int{0, 1, 2}},
		{"across lanes, the other way round", [3][]int{{0}, {0}, {0}}, [3]int{2, 1, 0}},
		{"across lanes and lines", [3][]int{{0}, {0, 1}, {0, 2}}, [3]int{1, 0, 2}},
	} {
		for _, event := range []string{"time", "ease", "end", "end in another lane"} {
			tolls(t, tt.name+"/"+event, 4, 9, func(t *testing.T, w *tollWorld) {
				g := w.rate(time.Minute, 1)
				g.most = 1
				w.most(9)
				w.most(9)
				busy := w.tryFare(0, w.fare(1, 0))
				if event == "end in another lane" {
					busy.Put(0)
					busy = w.tryFare(3, w.fare(1, 0))
				}
				var qs [3]*wait
				lags := []time.Duration{2 * time.Second, -time.Second, 0}
				for i, lag := range lags {
					qs[i] = w.pays(w.fare(1, tt.fares[i]...), lag, tt.lanes[i])
				}
				for _, i := range []int{1, 2, 0} {
					for _, q := range qs {
						if !q.done {
							q.waits()
						}
					}
					switch event {
					case "time":
						spends(busy)
						busy = qs[i].getsAt(time.Minute, tt.lanes[i])
					case "ease":
						busy.Spend()
						busy.Put(0)
						w.ledger.mu.Lock()
						g.full = time.Now()
						w.ledger.mu.Unlock()
						qs[i].waits()
						w.Ease()
						busy = qs[i].gets(tt.lanes[i])
					default:
						busy.Put(0)
						busy = qs[i].gets(tt.lanes[i])
					}
					w.wantPaid(1)
				}
			})
		}
	}
}

// Somebody is served in one lane, and so the next of the same line in another can pay, who is due before the next in the first.
func TestFareOrderBehindWhoIsServedElsewhere(t *testing.T) {
	for _, event := range []string{"slots", "ease"} {
		tolls(t, event, 2, 9, func(t *testing.T, w *tollWorld) {
			w.gates.lanes = []*fakeGate{{every: time.Hour, burst: 2}}
			g := w.rate(time.Hour, 3)
			w.rate(time.Hour, 3)
			spends(w.tryFare(0, w.fare(1))) // it has one left
			if event == "slots" {
				w.SetLimits(1, limits{Max: 1})
				w.try(1)
			} else {
				spends(w.tryFare(1, w.fare(3, 0)))
			}
			modest := w.fare(2, 0)
			modest.modest = true
			first, next := w.pays(modest, 0, 0, 1), w.pays(w.fare(1, 0), 0, 0)
			last := w.pays(w.fare(1, 0, 1), time.Second, 1)
			first.waits()
			next.waits()
			last.waits()
			if event == "slots" {
				w.SetLimits(1, limits{Max: 9})
			} else {
				w.ledger.mu.Lock()
				g.full = time.Now()
				w.ledger.mu.Unlock()
				w.Ease()
			}
			first.gets(1)
			next.gets(0)
			last.waits()
			w.wantTokens(g, 0)
		})
	}
}

// A turn ends of which one waits for the lane, and another for what it has paid, and is due before.
func TestFareEndsForOtherLanes(t *testing.T) {
	for _, lane := range []int{0, 1} {
		tolls(t, "", 2, 1, func(t *testing.T, w *tollWorld) {
			w.most(1)
			f := w.fare(1, 0)
			busy := w.tryFare(lane, f)
			a := w.pays(f, 0, 1-lane)
			b := w.pays(f, 0, lane)
			busy.Put(0)
			x := a.gets(1 - lane)
			b.waits()
			x.Put(0)
			b.gets(lane)
		})
	}
}

// Who can't pay keeps nobody else waiting.
func TestFareKeepsNobodyWaiting(t *testing.T) {
	tolls(t, "who waits later", 1, 9, func(t *testing.T, w *tollWorld) {
		w.rate(time.Hour, 1)
		w.rate(time.Minute, 1)
		w.tryFare(0, w.fare(1, 0)).Spend()
		poor := w.pays(w.fare(1, 0), 0, 0)
		w.pays(w.fare(1, 1), 0, 0).gets(0)
		next := w.pays(w.fare(1, 1), 0, 0)
		w.wait(0).gets(0)
		w.try(0)
		w.tryFare(0, w.fare(1))
		next.getsAt(time.Minute, 0)
		poor.waits()
	})
	tolls(t, "who waits for the same slot", 1, 1, func(t *testing.T, w *tollWorld) {
		w.rate(time.Hour, 1)
		w.rate(time.Minute, 1)
		spends(w.tryFare(0, w.fare(1, 0)))
		busy := w.try(0)
		poor, rich, free, last := w.pays(w.fare(1, 0), 0, 0), w.pays(w.fare(1, 1), 0, 0), w.wait(0), w.pays(w.fare(1, 1), 0, 0)
		busy.Put(0)
		x := rich.gets(0)
		free.waits()
		spends(x)
		x = free.gets(0)
		x.Put(0)
		last.getsAt(time.Minute, 0)
		poor.waits()
	})
	// The first of a line needs more than the next of it: that one isn't kept waiting when it goes, or is served elsewhere.
	tolls(t, "of whom the first in line is gone", 2, 9, func(t *testing.T, w *tollWorld) {
		g := w.rate(time.Minute, 4)
		spends(w.tryFare(0, w.fare(2, 0)))
		first := w.pays(w.fare(4, 0), 0, 0)
		more := w.pays(w.fare(3, 0), 0, 1) // has no claim, as it is not the first
		next := w.pays(w.fare(2, 0), 0, 1)
		next.waits()
		more.cancel(nil)
		more.fails(context.Canceled)
		next.waits() // first's claim
		first.cancel(nil)
		next.gets(1)
		w.wantTokens(g, 0)
	})
	tolls(t, "of whom the first in line goes, who claims nothing", 1, 9, func(t *testing.T, w *tollWorld) {
		g := w.rate(time.Minute, 4)
		w.rate(time.Hour, 4)
		spends(w.tryFare(0, w.fare(4, 0, 1)))
		w.pays(w.fare(2, 0, 1), 0, 0) // has a claim to both, and waits for the second
		first := w.pays(w.fare(3, 0), 0, 0)
		next := w.pays(w.fare(1, 0), 0, 0)
		pass(2*time.Minute + time.Second)
		next.waits()
		first.cancel(nil)
		next.gets(0)
		w.wantTokens(g, 1)
	})
}

// Who needs much is not starved by those who need little and come later, whether they wait or try; and doesn't keep those waiting who are due before.
func TestFareOfManyIsNotStarved(t *testing.T) {
	for _, lane := range []int{0, 1} {
		tolls(t, "", 2, 1000, func(t *testing.T, w *tollWorld) {
			w.rate(time.Second, 10)
			little := w.fare(1, 0)
			much := w.pays(w.fare(10, 0), 0, 0)
			much.gets(0).Spend()
			pass(time.Second)
			much = w.pays(w.fare(10, 0), 0, 0)
			w.noTryFare(lane, little, 0) // at the same moment, but it came later
			var later []*wait
			for range 4 {
				later = append(later, w.pays(little, 0, lane))
				w.noTryFare(lane, little, 0)
				pass(time.Second)
			}
			w.pays(little, -time.Minute, lane).gets(lane).Spend() // is due before
			for range 5 {
				w.noTryFare(lane, little, 0)
				much.waits()
				pass(time.Second)
			}
			much.waits()
			much.getsAt(time.Second, 0).Spend()
			for _, q := range later {
				q.waits()
				q.getsAt(time.Second, lane).Spend()
			}
		})
	}
}

// Who is served in one lane lets go of what it claims in another, in the same moment; and so does who is served because of that.
func TestFareOfManyLetsGo(t *testing.T) {
	tolls(t, "", 3, 9, func(t *testing.T, w *tollWorld) {
		w.gates.lanes = []*fakeGate{{every: time.Second, burst: 3}, {every: time.Hour, burst: 3}, {every: time.Hour, burst: 3}}
		w.rate(time.Second, 3)
		spends(w.tryFare(0, w.fare(3)))
		spends(w.tryFare(1, w.fare(1)))
		spends(w.tryFare(2, w.fare(2)))
		much := w.pays(w.fare(3), 0, 0, 1)
		other := w.pays(w.fare(2, 0), 0, 1, 2)
		last := w.pays(w.fare(1, 0), 0, 2)
		last.waits()
		other.waits()
		much.getsAt(3*time.Second, 0)
		other.gets(1)
		last.gets(2)
	})
}

func TestTryFareOvertakesNobody(t *testing.T) {
	tolls(t, "in its line", 1, 9, func(t *testing.T, w *tollWorld) {
		g := w.rate(time.Second, 2)
		w.rate(time.Second, 2)
		f, other := w.fare(1, 0), w.fare(1, 0, 1)
		spends(w.tryFare(0, w.fare(2, 0)))
		q := w.pays(w.fare(2, 0), 0, 0)
		pass(time.Second)
		w.noTryFare(0, f, 0) // there is a token, but q is due before
		w.noTryFare(0, other, 0)
		w.wantTokens(g, 1)
		if x, ok := w.TryFare(0, false, f, -2*time.Second); ok {
			x.Put(0) // it is due before q
		} else {
			t.Error("one that is due before has to wait")
		}
		q.getsAt(time.Second, 0)
		w.noTryFare(0, f, 0)
	})
	tolls(t, "in its line, by waiting", 1, 9, func(t *testing.T, w *tollWorld) {
		w.rate(time.Second, 2)
		spends(w.tryFare(0, w.fare(1, 0)))
		much := w.fare(2, 0)
		much.modest = true
		q := w.pays(much, time.Second, 0)
		later := w.pays(w.fare(1, 0), 2*time.Second, 0) // for which there is a token
		later.waits()
		spends(q.getsAt(time.Second, 0))
		later.getsAt(time.Second, 0)
	})
	tolls(t, "in its line, without a claim", 1, 9, func(t *testing.T, w *tollWorld) {
		w.rate(time.Second, 2)
		w.rate(time.Hour, 1)
		spends(w.tryFare(0, w.fare(1, 1)))
		q := w.pays(w.fare(1, 0, 1), 0, 0)
		w.noTryFare(0, w.fare(1, 0, 1), 0)
		w.tryFare(0, w.fare(1, 0)) // q can't have it
		q.waits()
	})
	// q is due before, and could pay, but its lane is full.
	tolls(t, "who has no slot", 2, 1, func(t *testing.T, w *tollWorld) {
		g := w.rate(time.Second, 1)
		f := w.fare(1, 0)
		busy := w.try(0)
		q := w.pays(f, 0, 0)
		w.noTryFare(0, f, -time.Hour)
		spends(w.tryFare(1, f))
		busy.Put(0)
		q.getsAt(time.Second, 0)
		w.wantTokens(g, 0)
	})
	tolls(t, "no fare", 1, 1, func(t *testing.T, w *tollWorld) {
		x, ok := w.TryFare(0, false, nil, 0)
		if !ok || x.Fresh() || x.Dials() {
			t.Errorf("TryFare = %v, %v", x, ok)
		}
		if _, ok := w.TryFare(0, false, nil, 0); ok {
			t.Error("a turn too many")
		}
	})
}

// Somebody comes in the moment in which another can pay, before or after the timer: the other is due first.
func TestFareWhenTheTimerIsLate(t *testing.T) {
	waits := func(w *tollWorld, r *connpool.Request) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		w.Wait(ctx, r)
	}
	come := map[string]func(w *tollWorld, f *fakeFare){
		"try":         func(w *tollWorld, f *fakeFare) { w.Try(0, false) },
		"try idle":    func(w *tollWorld, f *fakeFare) { w.TryIdle(0) },
		"try fare":    func(w *tollWorld, f *fakeFare) { w.TryFare(0, false, f, 0) },
		"other line":  func(w *tollWorld, f *fakeFare) { w.TryFare(0, false, w.fare(1, 0, 1), 0) },
		"other gate":  func(w *tollWorld, f *fakeFare) { w.TryFare(0, false, w.fare(1, 1), 0) },
		"other lane":  func(w *tollWorld, f *fakeFare) { w.TryFare(1, false, f, 0) },
		"wait":        func(w *tollWorld, f *fakeFare) { waits(w, &connpool.Request{Lanes: set(0), Fare: f}) },
		"wait free":   func(w *tollWorld, f *fakeFare) { waits(w, &connpool.Request{Lanes: set(0)}) },
		"wait lane 1": func(w *tollWorld, f *fakeFare) { waits(w, &connpool.Request{Lanes: set(1), Fare: f}) },
	}
	for name, come := range come {
		for range 8 { // the timer may be first all the same
			tolls(t, name, 2, 1, func(t *testing.T, w *tollWorld) {
				w.rate(time.Second, 1)
				w.most(9)
				f := w.fare(1, 0)
				x := w.tryFare(0, f)
				x.Adopt(w.open())
				spends(x)
				var q *wait
				time.AfterFunc(time.Second, func() { come(w, f) }) // set before the pool's timer
				q = w.pays(f, 0, 0)
				q.waits()
				time.Sleep(time.Second) // and after it
				come(w, f)
				q.gets(0)
				if n := w.Held(0); n != 1 {
					t.Errorf("%d turns of one slot", n)
				}
			})
		}
	}
	// A turn of another lane ends in that moment, whose waiter is due later.
	for i := range 16 {
		first := i % 2
		tolls(t, "end", 2, 1, func(t *testing.T, w *tollWorld) {
			w.rate(time.Second, 1)
			f := w.fare(1, 0)
			spends(w.tryFare(0, f))
			busy := w.try(1 - first)
			time.AfterFunc(time.Second, func() { busy.Put(0) })
			q := w.pays(f, 0, first)
			later := w.pays(f, 0, 1-first)
			pass(time.Second)
			q.gets(first)
			later.waits()
		})
	}
}

// Two lanes wait for one token, and one of them learns it when it is less than leastWait away.
func TestFareOrderWithinLeastWait(t *testing.T) {
	tolls(t, "", 2, 1, func(t *testing.T, w *tollWorld) {
		w.rate(time.Second, 1)
		f := w.fare(1, 0)
		spends(w.tryFare(0, f))
		later := w.pays(f, time.Second, 0)
		pass(time.Second - 500)
		q := w.pays(f, 0, 1)
		pass(time.Microsecond)
		q.gets(1)
		later.waits()
	})
}
