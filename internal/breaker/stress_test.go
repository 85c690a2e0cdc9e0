package breaker_test

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/smtplb/smtplb/internal/breaker"
)

func TestBackOff(t *testing.T) {
	const s = time.Second
	bubble(t, breaker.Settings{}, func(t *testing.T, b *breaker.Breaker) {
		trip(t, b)
		for _, nominal := range []time.Duration{15 * s, 30 * s, 60 * s, 120 * s, 240 * s} {
			between(t, time.Until(b.RetryAt()), nominal*8/10, nominal*12/10)
			untilHalfOpen(t, b)
			report(t, b, fault)
		}
		for range 100 { // at the limit, where k stops growing
			between(t, time.Until(b.RetryAt()), 240*s, 300*s)
			untilHalfOpen(t, b)
			report(t, b, fault)
		}
		// k is 5. Not even a minute closed: it stays.
		again := func(closed, nominal time.Duration) {
			t.Helper()
			untilHalfOpen(t, b)
			report(t, b, ok, ok)
			want(t, b, breaker.Closed)
			time.Sleep(closed)
			trip(t, b)
			between(t, time.Until(b.RetryAt()), nominal*8/10, min(nominal*12/10, 300*s))
		}
		again(59*s, 300*s)          // k 5
		again(119*s, 240*s)         // 5-1 → 4, then 5
		again(180*s, 60*s)          // 5-3 → 2, then 3
		again(time.Minute, 60*s)    // 3-1 → 2, then 3
		again(30*s, 120*s)          // 3, then 4: what is open or half-open is not clean
		again(24*time.Hour, 15*s)   // 0
		again(2*time.Minute, 15*s)  // 0 again: never below
		again(30*time.Second, 30*s) // 1
	})
}

func TestJitter(t *testing.T) {
	for _, tt := range []struct {
		set           breaker.Settings
		o             breaker.Outcome
		low, high     time.Duration
		fold, uniform bool
	}{
		{breaker.Settings{}, fault, 12 * time.Second, 18 * time.Second, false, true},
		{breaker.Settings{}, long, 4 * time.Minute, 6 * time.Minute, false, true},
		{breaker.Settings{OpenFor: time.Minute, MaxOpen: time.Second}, fault, 800 * time.Millisecond, time.Second, true, true},
		{breaker.Settings{LongOpenFor: 100 * time.Second, MaxLongOpen: 110 * time.Second}, long, 80 * time.Second, 110 * time.Second, true, false},
		{breaker.Settings{OpenFor: 1}, fault, time.Millisecond, time.Millisecond, false, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			const n = 5000
			var sum float64
			least, most := time.Duration(1<<62), time.Duration(0)
			for range n {
				b := breaker.New(tt.set)
				for b.State() == breaker.Closed {
					report(t, b, tt.o)
				}
				d := time.Until(b.RetryAt())
				sum += d.Seconds()
				least, most = min(least, d), max(most, d)
				b.Stop()
			}
			if least < tt.low || most > tt.high {
				t.Errorf("%+v: open for %v to %v, want %v to %v", tt.set, least, most, tt.low, tt.high)
			}
			width := tt.high - tt.low
			if least > tt.low+width/50 || most < tt.high-width/50 {
				t.Errorf("%+v: open for only %v to %v of %v to %v", tt.set, least, most, tt.low, tt.high)
			}
			if mean, middle := sum/n, (tt.low + width/2).Seconds(); tt.uniform && (mean < middle-width.Seconds()/40 || mean > middle+width.Seconds()/40) {
				t.Errorf("%+v: mean %v s, want %v s", tt.set, mean, middle) // 0.025 of the width are 6.1 sigma
			}
		})
	}
}

func TestLong(t *testing.T) {
	const m = time.Minute
	bubble(t, breaker.Settings{}, func(t *testing.T, b *breaker.Breaker) {
		report(t, b, ok, long)
		want(t, b, breaker.Open)
		if got := b.Stats(); got.Cause != "long" || got.Trips != 1 {
			t.Errorf("%+v", got)
		}
		for _, nominal := range []time.Duration{5 * m, 10 * m, 20 * m, 40 * m} {
			between(t, time.Until(b.RetryAt()), nominal*8/10, nominal*12/10)
			untilHalfOpen(t, b)
			report(t, b, long)
			want(t, b, breaker.Open)
		}
		for range 50 {
			between(t, time.Until(b.RetryAt()), 48*m, 60*m)
			untilHalfOpen(t, b)
			report(t, b, long)
		}
		// A fault of a probe is another matter: the relay may be back soon. Neither k touches the other.
		untilHalfOpen(t, b)
		report(t, b, fault)
		between(t, time.Until(b.RetryAt()), 12*time.Second, 18*time.Second)
		untilHalfOpen(t, b)
		report(t, b, long)
		between(t, time.Until(b.RetryAt()), 48*m, 60*m)

		untilHalfOpen(t, b)
		report(t, b, ok, none, ok)
		want(t, b, breaker.Closed)
		time.Sleep(2 * m)
		report(t, b, long) // 4-2
		between(t, time.Until(b.RetryAt()), 16*m, 24*m)
	})
}

func TestOnChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b *breaker.Breaker
		var mu sync.Mutex
		var seen []breaker.State
		b = breaker.New(breaker.Settings{OpenFor: time.Second, ProbeTimeout: time.Second, OnChange: func() {
			s := b.State()
			if st := b.Stats(); st.State != s || (s == breaker.Open) != !b.RetryAt().IsZero() || b.Ready() != (s == breaker.Closed || s == breaker.HalfOpen) {
				t.Errorf("%v: %+v", s, st)
			}
			if s == breaker.Open || s == breaker.Probing {
				if _, ok := b.Allow(); ok {
					t.Error("let through")
				}
			}
			mu.Lock()
			seen = append(seen, s)
			mu.Unlock()
		}})
		defer b.Stop()
		report(t, b, ok, fault, none)
		trip(t, b)
		untilHalfOpen(t, b)
		allow(t, b)
		time.Sleep(time.Second) // given up
		synctest.Wait()
		report(t, b, fault)
		untilHalfOpen(t, b)
		report(t, b, ok, none, ok)
		report(t, b, long)
		const c, o, h, p = breaker.Closed, breaker.Open, breaker.HalfOpen, breaker.Probing
		mu.Lock()
		defer mu.Unlock()
		if diff := cmp.Diff([]breaker.State{o, h, p, h, p, o, h, p, h, p, h, p, c, o}, seen); diff != "" {
			t.Error(diff)
		}
	})
}

func TestStop(t *testing.T) {
	var calls atomic.Int32
	set := breaker.Settings{OnChange: func() { calls.Add(1) }}
	for _, s := range []breaker.State{breaker.Closed, breaker.Open, breaker.HalfOpen, breaker.Probing} {
		t.Run(s.String(), func(t *testing.T) {
			bubble(t, set, func(t *testing.T, b *breaker.Breaker) {
				p := allow(t, b)
				if s != breaker.Closed {
					trip(t, b)
				}
				if s == breaker.HalfOpen || s == breaker.Probing {
					untilHalfOpen(t, b)
				}
				if s == breaker.Probing {
					p = allow(t, b)
				}
				before, n := b.Stats(), calls.Load()
				b.Stop()
				b.Stop()
				p.Done(long)
				p.Done(fault)
				time.Sleep(24 * time.Hour)
				synctest.Wait()
				if diff := cmp.Diff(before, b.Stats()); diff != "" {
					t.Error(diff)
				}
				if calls.Load() != n {
					t.Error("OnChange after Stop")
				}
				q, ok := b.Allow()
				if ok != (s == breaker.Closed) {
					t.Errorf("Allow after Stop: %v", ok)
				}
				q.Done(long)
				want(t, b, s)
			})
		})
	}
}

func TestDisabled(t *testing.T) {
	bubble(t, breaker.Settings{Disabled: true, OnChange: func() { t.Error("OnChange") }}, func(t *testing.T, b *breaker.Breaker) {
		for range 100 {
			report(t, b, fault, long)
		}
		want(t, b, breaker.Closed)
		if got := b.Stats(); got != (breaker.Stats{Since: got.Since}) || !b.RetryAt().IsZero() {
			t.Errorf("%+v", got)
		}
	})
}

func TestPermitSurvivesPanicAndGoexit(t *testing.T) {
	bubble(t, breaker.Settings{}, func(t *testing.T, b *breaker.Breaker) {
		trip(t, b)
		untilHalfOpen(t, b)
		send := func(end func()) {
			permit, allowed := b.Allow()
			if !allowed {
				t.Error("refused: a permit was lost")
				return
			}
			outcome := breaker.NotCounted
			defer func() { permit.Done(outcome) }()
			end()
			outcome = breaker.Success
		}
		var wg sync.WaitGroup
		wg.Go(func() { send(runtime.Goexit) })
		wg.Wait()
		want(t, b, breaker.HalfOpen)
		wg.Go(func() {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			send(func() { panic("boom") })
		})
		wg.Wait()
		want(t, b, breaker.HalfOpen)
		send(func() {})
		send(func() {})
		want(t, b, breaker.Closed)
	})
}

func TestStress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b *breaker.Breaker
		var probing, worst, changes atomic.Int32
		b = breaker.New(breaker.Settings{OpenFor: 50 * time.Millisecond, MaxOpen: time.Second, LongOpenFor: 100 * time.Millisecond, MaxLongOpen: time.Second,
			ProbeTimeout: 5 * time.Second, OnChange: func() { changes.Add(1); b.Stats() }})
		var wg sync.WaitGroup
		for g := range 16 {
			wg.Go(func() {
				x := uint32(g + 1)
				for i := range 2000 {
					x ^= x << 13
					x ^= x >> 17
					x ^= x << 5
					before := b.State()
					p, allowed := b.Allow()
					probe := before != breaker.Closed && allowed && b.State() == breaker.Probing
					if allowed {
						if probe {
							if n := probing.Add(1); n > worst.Load() {
								worst.Store(n)
							}
						}
						time.Sleep(time.Duration(x%20) * time.Millisecond)
						o := breaker.Outcome(x % 3)
						if i/200%2 == 0 {
							o = ok
						} else if x%97 == 0 {
							o = long
						}
						if probe {
							probing.Add(-1)
						}
						if x%101 != 0 || o == ok { // else the permit is lost
							p.Done(o)
						}
						if x%7 == 0 {
							p.Done(fault)
						}
					} else {
						time.Sleep(10 * time.Millisecond)
					}
				}
			})
		}
		wg.Wait()
		if worst.Load() > 1 {
			t.Errorf("%d probes at once", worst.Load())
		}
		if n := b.Stats().Trips; n < 10 || int(changes.Load()) < 2*n {
			t.Errorf("only %d trips and %d changes: this tested nothing", n, changes.Load())
		}
		for range 100 { // whatever state it is in, a relay that is well again is found
			if p, allowed := b.Allow(); allowed {
				p.Done(ok)
			}
			time.Sleep(time.Second)
		}
		want(t, b, breaker.Closed)
		b.Stop()
	})
}

func TestAllowAgainstTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 300 {
			b := breaker.New(breaker.Settings{Consecutive: 1})
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for range 20 {
						if p, allowed := b.Allow(); allowed {
							p.Done(fault)
						}
					}
				})
			}
			wg.Wait()
			if got := b.Stats(); got.Trips != 1 || got.Consecutive != 1 || got.State != breaker.Open {
				t.Fatalf("%+v", got)
			}
			untilHalfOpen(t, b)
			report(t, b, ok)
			want(t, b, breaker.HalfOpen)
			report(t, b, ok)
			want(t, b, breaker.Closed)
			b.Stop()
		}
	})
}

func TestAllocations(t *testing.T) {
	b := breaker.New(breaker.Settings{})
	defer b.Stop()
	if n := testing.AllocsPerRun(1000, func() {
		p, _ := b.Allow()
		p.Done(ok)
	}); n > 1 {
		t.Errorf("%v allocations", n)
	}
	d := breaker.New(breaker.Settings{Disabled: true})
	if n := testing.AllocsPerRun(1000, func() {
		p, _ := d.Allow()
		p.Done(ok)
	}); n > 0 {
		t.Errorf("%v allocations when disabled", n)
	}
}
