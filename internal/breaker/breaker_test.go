package breaker_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/smtplb/smtplb/internal/breaker"
)

// bubble runs f in fake time and makes sure that a breaker's timer doesn't outlive it.
func bubble(t *testing.T, s breaker.Settings, f func(t *testing.T, b *breaker.Breaker)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := breaker.New(s)
		defer b.Stop()
		f(t, b)
	})
}

func allow(t *testing.T, b *breaker.Breaker) breaker.Permit {
	t.Helper()
	p, ok := b.Allow()
	if !ok {
		t.Fatalf("refused while %v", b.State())
	}
	return p
}

func report(t *testing.T, b *breaker.Breaker, outcomes ...breaker.Outcome) {
	t.Helper()
	for _, o := range outcomes {
		p := allow(t, b)
		p.Done(o)
	}
}

func want(t *testing.T, b *breaker.Breaker, s breaker.State) {
	t.Helper()
	if got := b.State(); got != s {
		t.Fatalf("state is %v, want %v", got, s)
	}
	if got, want := b.Ready(), s == breaker.Closed || s == breaker.HalfOpen; got != want {
		t.Fatalf("Ready() = %v while %v", got, s)
	}
}

const (
	ok    = breaker.Success
	fault = breaker.Fault
	none  = breaker.NotCounted
	long  = breaker.Long
)

func trip(t *testing.T, b *breaker.Breaker) {
	t.Helper()
	for b.State() == breaker.Closed {
		report(t, b, fault)
	}
	want(t, b, breaker.Open)
}

// untilHalfOpen sleeps to the moment at which the timer fires.
func untilHalfOpen(t *testing.T, b *breaker.Breaker) {
	t.Helper()
	want(t, b, breaker.Open)
	time.Sleep(time.Until(b.RetryAt()))
	synctest.Wait()
	want(t, b, breaker.HalfOpen)
}

func TestTripsOnConsecutiveFaults(t *testing.T) {
	bubble(t, breaker.Settings{}, func(t *testing.T, b *breaker.Breaker) {
		start := time.Now()
		report(t, b, fault, fault, fault, fault, ok, fault, none, fault, none, fault, fault, none)
		want(t, b, breaker.Closed)
		time.Sleep(time.Hour) // consecutive is consecutive, however slow (gobreaker's buckets would have let it decay)
		if got := b.Stats(); !cmp.Equal(got, breaker.Stats{Since: start, Consecutive: 4}) {
			t.Errorf("stats before the trip: %+v", got)
		}
		report(t, b, fault)
		want(t, b, breaker.Open)
		got := b.Stats()
		if got.RetryAt != b.RetryAt() || !got.RetryAt.After(time.Now()) {
			t.Errorf("RetryAt %v, %v", got.RetryAt, b.RetryAt())
		}
		got.RetryAt = time.Time{}
		if diff := cmp.Diff(breaker.Stats{State: breaker.Open, Cause: "5 consecutive faults", Trips: 1, Since: time.Now(), Consecutive: 5}, got); diff != "" {
			t.Error(diff)
		}
		if _, ok := b.Allow(); ok {
			t.Error("an open breaker let something through")
		}
	})
}

func TestTripsOnRatio(t *testing.T) {
	type step struct {
		n     int
		o     breaker.Outcome
		sleep time.Duration // after each
	}
	for _, tt := range []struct {
		name  string
		set   breaker.Settings
		steps []step
		cause string // "": stays closed
	}{
		{"half of 20", breaker.Settings{Consecutive: -1}, []step{{10, ok, time.Second}, {10, fault, time.Second}}, "10 of 20 failed in 60 s"},
		{"19 are too few", breaker.Settings{Consecutive: -1}, []step{{19, fault, time.Second}}, ""},
		{"less than half", breaker.Settings{Consecutive: -1}, []step{{100, ok, 0}, {99, fault, 0}}, ""},
		{"just half", breaker.Settings{Consecutive: -1}, []step{{100, ok, 0}, {100, fault, 0}}, "100 of 200 failed in 60 s"},
		{"not counted ones don't dilute", breaker.Settings{Consecutive: -1}, []step{{100, none, 0}, {20, fault, 0}}, "20 of 20 failed in 60 s"},
		{"successes leave the window", breaker.Settings{Consecutive: -1}, []step{{100, ok, 0}, {1, none, time.Minute}, {20, fault, 0}}, "20 of 20 failed in 60 s"},
		{"faults leave the window", breaker.Settings{Consecutive: -1}, []step{{19, fault, 0}, {1, none, time.Minute}, {10, ok, 0}, {9, fault, 0}}, ""},
		{"55 s are within the window", breaker.Settings{Consecutive: -1}, []step{{19, fault, 0}, {1, none, 55 * time.Second}, {1, fault, 0}}, "20 of 20 failed in 60 s"},
		{"too slow for the window", breaker.Settings{Consecutive: -1}, []step{{200, fault, 4 * time.Second}}, ""},
		{"fast enough for the window", breaker.Settings{Consecutive: -1}, []step{{200, fault, 2500 * time.Millisecond}}, "20 of 20 failed in 60 s"},
		{"after a long silence", breaker.Settings{Consecutive: -1}, []step{{19, fault, 0}, {1, none, 100 * time.Hour}, {19, fault, 0}}, ""},
		{"faults leave the window one by one", breaker.Settings{Consecutive: -1}, []step{{19, fault, 0}, {30, ok, 3 * time.Second}, {10, fault, 0}}, ""},
		{"the ring turned five times", breaker.Settings{Consecutive: -1}, []step{{300, ok, time.Second}, {60, fault, time.Second}}, "30 of 60 failed in 60 s"},
		{"after millions of buckets", breaker.Settings{Consecutive: -1, Window: time.Microsecond}, []step{{19, fault, 0}, {1, none, 100 * time.Hour}, {20, fault, 0}}, "20 of 20 failed in 1e-06 s"},
		{"own settings", breaker.Settings{Window: 90 * time.Second, MinOutcomes: 4, Ratio: 0.25}, []step{{3, ok, 25 * time.Second}, {1, fault, 0}}, "1 of 4 failed in 90 s"},
		{"rule off by MinOutcomes", breaker.Settings{Consecutive: -1, MinOutcomes: -1}, []step{{1000, fault, 0}}, ""},
		{"rule off by Ratio", breaker.Settings{Consecutive: -1, Ratio: -1}, []step{{1000, fault, 0}}, ""},
		{"rule off by Window", breaker.Settings{Consecutive: -1, Window: -1}, []step{{1000, fault, 0}}, ""},
		{"both rules off, long remains", breaker.Settings{Consecutive: -1, Window: -1}, []step{{100, fault, 0}, {1, long, 0}}, "long"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, tt.set, func(t *testing.T, b *breaker.Breaker) {
				for i, s := range tt.steps {
					for j := range s.n {
						if b.State() != breaker.Closed {
							if i == len(tt.steps)-1 && tt.cause != "" {
								break
							}
							t.Fatalf("opened in step %d, round %d: %q", i, j, b.Stats().Cause)
						}
						report(t, b, s.o)
						time.Sleep(s.sleep)
					}
				}
				if got := b.Stats(); got.Cause != tt.cause || (got.Trips == 0) != (tt.cause == "") {
					t.Errorf("cause %q, %d trips; want %q", got.Cause, got.Trips, tt.cause)
				}
			})
		})
	}
}

// gobreaker books an outcome under the time of its start: sessions that last longer than its interval are never seen.
func TestSlowOutcomesCount(t *testing.T) {
	bubble(t, breaker.Settings{Consecutive: -1}, func(t *testing.T, b *breaker.Breaker) {
		for range 100 { // one starts each second and fails three windows later
			if p, ok := b.Allow(); ok {
				time.AfterFunc(3*time.Minute, func() { p.Done(breaker.Fault) })
			}
			time.Sleep(time.Second)
		}
		want(t, b, breaker.Closed)
		time.Sleep(3*time.Minute - 100*time.Second + 19500*time.Millisecond)
		synctest.Wait()
		want(t, b, breaker.Open) // as soon as the 20th has failed
		if got := b.Stats().Cause; got != "20 of 20 failed in 60 s" {
			t.Error(got)
		}
		time.Sleep(3 * time.Minute) // let the other reports come in: late ones
	})
}

func TestTimerOpensTheWayForAProbe(t *testing.T) {
	bubble(t, breaker.Settings{}, func(t *testing.T, b *breaker.Breaker) {
		trip(t, b)
		d := time.Until(b.RetryAt())
		time.Sleep(d - 1)
		synctest.Wait()
		for range 10 { // reading moves nothing
			b.State()
			b.Ready()
			b.Stats()
			if _, ok := b.Allow(); ok {
				t.Fatal("let through too early")
			}
		}
		want(t, b, breaker.Open)
		time.Sleep(time.Nanosecond) // nobody asks, it moves all the same
		synctest.Wait()
		want(t, b, breaker.HalfOpen)
		if got := b.RetryAt(); !got.IsZero() {
			t.Errorf("half-open with RetryAt %v", got)
		}
		time.Sleep(time.Hour)
		want(t, b, breaker.HalfOpen)
		if got := b.Stats(); got.Cause != "5 consecutive faults" || !got.Since.Equal(time.Now().Add(-time.Hour)) {
			t.Errorf("%+v", got)
		}
	})
}

func TestProbesOneAtATimeAndTwoClose(t *testing.T) {
	bubble(t, breaker.Settings{}, func(t *testing.T, b *breaker.Breaker) {
		trip(t, b)
		untilHalfOpen(t, b)
		for i := range 2 {
			p := allow(t, b)
			want(t, b, breaker.Probing)
			if _, ok := b.Allow(); ok {
				t.Fatal("a second probe was let through")
			}
			time.Sleep(10 * time.Minute)
			want(t, b, breaker.Probing)
			p.Done(ok)
			want(t, b, []breaker.State{breaker.HalfOpen, breaker.Closed}[i])
		}
		if diff := cmp.Diff(breaker.Stats{Trips: 1, Since: time.Now()}, b.Stats()); diff != "" {
			t.Error(diff)
		}
		// The old faults are forgotten: it takes the full number to trip again.
		report(t, b, fault, fault, fault, fault)
		want(t, b, breaker.Closed)
		time.Sleep(time.Hour) // the timer of the probe is gone
		want(t, b, breaker.Closed)
		if _, ok := b.Allow(); !ok {
			t.Error("closed, and refuses")
		}
	})
}

func TestWindowForgetsWhenClosing(t *testing.T) {
	bubble(t, breaker.Settings{Consecutive: -1, OpenFor: time.Second}, func(t *testing.T, b *breaker.Breaker) {
		trip(t, b) // 20 faults
		untilHalfOpen(t, b)
		report(t, b, ok, ok, fault)
		want(t, b, breaker.Closed)
		report(t, b, ok, ok, ok, ok, ok, ok, ok, ok, ok)
		report(t, b, fault, fault, fault, fault, fault, fault, fault, fault, fault)
		want(t, b, breaker.Closed) // 10 of 19
		report(t, b, fault)
		want(t, b, breaker.Open)
	})
}

func TestNotCountedFreesTheProbeButNeverCloses(t *testing.T) {
	bubble(t, breaker.Settings{}, func(t *testing.T, b *breaker.Breaker) {
		trip(t, b)
		untilHalfOpen(t, b)
		for range 10 {
			report(t, b, none)
			want(t, b, breaker.HalfOpen)
		}
		report(t, b, ok)
		want(t, b, breaker.HalfOpen)
		for range 10 {
			report(t, b, none, breaker.Outcome(99))
			want(t, b, breaker.HalfOpen)
		}
		report(t, b, ok)
		want(t, b, breaker.Closed)
	})
}

func TestFaultOfAProbeReopens(t *testing.T) {
	for _, first := range [][]breaker.Outcome{nil, {ok}, {none}, {ok, none}} {
		bubble(t, breaker.Settings{}, func(t *testing.T, b *breaker.Breaker) {
			trip(t, b)
			untilHalfOpen(t, b)
			report(t, b, first...)
			report(t, b, fault)
			want(t, b, breaker.Open)
			if got := b.Stats(); got.Cause != "probe failed" || got.Trips != 2 || got.Consecutive != 5 {
				t.Errorf("%+v", got)
			}
			between(t, time.Until(b.RetryAt()), 24*time.Second, 36*time.Second)
			untilHalfOpen(t, b)
			report(t, b, ok) // what succeeded before the fault does not count any more
			want(t, b, breaker.HalfOpen)
			report(t, b, ok)
			want(t, b, breaker.Closed)
		})
	}
}

func TestAProbeThatNeverReportsIsGivenUp(t *testing.T) {
	bubble(t, breaker.Settings{}, func(t *testing.T, b *breaker.Breaker) {
		trip(t, b)
		untilHalfOpen(t, b)
		report(t, b, ok)
		lost := allow(t, b)
		time.Sleep(15*time.Minute - 1)
		synctest.Wait()
		want(t, b, breaker.Probing)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		want(t, b, breaker.HalfOpen)
		lost.Done(fault) // too late to do harm
		want(t, b, breaker.HalfOpen)
		p := allow(t, b)
		lost.Done(fault)
		want(t, b, breaker.Probing)
		p.Done(ok)
		want(t, b, breaker.Closed)
	})
	bubble(t, breaker.Settings{ProbeTimeout: time.Second}, func(t *testing.T, b *breaker.Breaker) {
		trip(t, b)
		untilHalfOpen(t, b)
		for range 5 { // each probe has its own time
			allow(t, b)
			time.Sleep(600 * time.Millisecond)
			want(t, b, breaker.Probing)
			time.Sleep(600 * time.Millisecond)
			want(t, b, breaker.HalfOpen)
		}
		p := allow(t, b)
		time.Sleep(600 * time.Millisecond)
		p.Done(none)
		p = allow(t, b)
		time.Sleep(600 * time.Millisecond) // the first one's time would be over
		synctest.Wait()
		want(t, b, breaker.Probing)
		p.Done(none)
	})
}

func TestDoneCountsOnce(t *testing.T) {
	bubble(t, breaker.Settings{Consecutive: 2}, func(t *testing.T, b *breaker.Breaker) {
		p := allow(t, b)
		for range 10 {
			p.Done(fault)
		}
		want(t, b, breaker.Closed)
		if got := b.Stats().Consecutive; got != 1 {
			t.Errorf("%d faults counted", got)
		}
		p.Done(ok)
		if got := b.Stats().Consecutive; got != 1 {
			t.Errorf("a second report was heard")
		}
		q := allow(t, b)
		var wg sync.WaitGroup
		for range 10 { // a deferred Done against one in another goroutine
			wg.Go(func() { q.Done(fault) })
		}
		wg.Wait()
		if got := b.Stats(); got.Trips != 1 || got.Consecutive != 2 {
			t.Errorf("%+v", got)
		}
		untilHalfOpen(t, b)
		r := allow(t, b)
		r.Done(ok)
		r.Done(ok)
		want(t, b, breaker.HalfOpen)
		r = allow(t, b)
		s := r // a copy of a probe's permit
		r.Done(none)
		s.Done(ok)
		want(t, b, breaker.HalfOpen)

		var zero breaker.Permit
		zero.Done(fault)
	})
}

func TestLateOutcomesAreIgnored(t *testing.T) {
	for _, late := range []breaker.Outcome{none, ok, fault, long} {
		bubble(t, breaker.Settings{}, func(t *testing.T, b *breaker.Breaker) {
			var old []breaker.Permit
			for range 40 {
				old = append(old, allow(t, b))
			}
			reportOld := func(n int) {
				t.Helper()
				before := b.Stats()
				for range n {
					old[0].Done(late)
					old = old[1:]
				}
				if diff := cmp.Diff(before, b.Stats()); diff != "" {
					t.Errorf("outcome %d of a permit from before the trip changed something: %s", late, diff)
				}
			}
			trip(t, b)
			reportOld(8)
			untilHalfOpen(t, b)
			reportOld(8)
			p := allow(t, b)
			reportOld(8)
			p.Done(ok)
			reportOld(8)
			report(t, b, ok)
			want(t, b, breaker.Closed)
			reportOld(8)
			want(t, b, breaker.Closed)
		})
	}
}

func between(t *testing.T, got, low, high time.Duration) {
	t.Helper()
	if got < low || got > high {
		t.Errorf("open for %v, want %v to %v", got, low, high)
	}
}

// What reads the breaker never moves it, and what is called by it may call it.
// Many goroutines, an unreliable relay, lost permits: never two probes at once, no state without a way out.
// An Allow that races with a trip must not be taken for a probe, nor slip through.
func TestStateString(t *testing.T) {
	var got []string
	for s := range breaker.State(5) {
		got = append(got, s.String())
	}
	if diff := cmp.Diff([]string{"closed", "open", "half-open", "probing", "State(4)"}, got); diff != "" {
		t.Error(diff)
	}
}

func Example() {
	b := breaker.New(breaker.Settings{Consecutive: 2})
	defer b.Stop()

	errNotNow := errors.New("not now")
	send := func(try func() error) error {
		permit, ok := b.Allow()
		if !ok {
			return errNotNow
		}
		outcome := breaker.NotCounted           // what a panic, runtime.Goexit or a cancelled context leaves
		defer func() { permit.Done(outcome) }() // always, and only once
		err := try()
		outcome = breaker.Success
		if err != nil {
			outcome = breaker.Fault
		}
		return err
	}

	down := func() error { return errors.New("connection refused") }
	for range 3 {
		fmt.Println(b.State(), send(down))
	}
	fmt.Println(b.Stats().Cause)
	// Output:
	// closed connection refused
	// closed connection refused
	// open not now
	// 2 consecutive faults
}

func BenchmarkAllowDone(b *testing.B) {
	br := breaker.New(breaker.Settings{})
	defer br.Stop()
	b.ReportAllocs()
	for b.Loop() {
		p, _ := br.Allow()
		p.Done(breaker.Success)
	}
}

func BenchmarkAllowDoneParallel(b *testing.B) {
	br := breaker.New(breaker.Settings{})
	defer br.Stop()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			p, _ := br.Allow()
			p.Done(breaker.Success)
		}
	})
}

func BenchmarkReady(b *testing.B) {
	br := breaker.New(breaker.Settings{})
	b.ReportAllocs()
	for b.Loop() {
		br.Ready()
	}
}
