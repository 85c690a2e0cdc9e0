package breaker_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/smtplb/smtplb/internal/breaker"
)

// What goes past an open breaker counts: a success makes the next one a probe, faults change nothing, a refused login prolongs the opening.
func TestForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		changes := 0
		b := breaker.New(breaker.Settings{Consecutive: 1, OpenFor: time.Minute, OnChange: func() { changes++ }})
		defer b.Stop()
		force := func(o breaker.Outcome) {
			p := b.Force()
			p.Done(o)
			p.Done(breaker.Success) // the first alone counts
		}
		force(breaker.Success)
		if s := b.Stats(); s.State != breaker.Closed || changes != 0 {
			t.Fatalf("%+v", s)
		}
		force(breaker.Fault) // closed: as any other
		if s := b.Stats(); s.State != breaker.Open || s.Trips != 1 || b.Long() {
			t.Fatalf("%+v", s)
		}
		until := b.RetryAt()
		force(breaker.Fault)
		force(breaker.NotCounted)
		if s := b.Stats(); s.State != breaker.Open || s.Trips != 1 || !s.RetryAt.Equal(until) {
			t.Fatalf("%+v", s)
		}
		late := b.Force()
		force(breaker.Success)
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if s := b.Stats(); s.State != breaker.HalfOpen || !s.RetryAt.IsZero() || changes != 2 {
			t.Fatalf("%+v after %d changes", s, changes)
		}
		late.Done(breaker.Fault) // the probes decide now
		for range 2 {
			p, ok := b.Allow()
			if !ok {
				t.Fatal("no probe")
			}
			p.Done(breaker.Success)
		}
		if s := b.Stats(); s.State != breaker.Closed {
			t.Fatalf("%+v", s)
		}
		time.Sleep(2 * time.Minute) // no timer of the opening is left
		force(breaker.Fault)
		force(breaker.Long)
		if s := b.Stats(); s.State != breaker.Open || !b.Long() || time.Until(s.RetryAt) < 4*time.Minute {
			t.Fatalf("%+v", s)
		}
		b.Stop()
		force(breaker.Success)
		if s := b.Stats(); s.State != breaker.Open {
			t.Fatalf("after Stop: %+v", s)
		}
	})
}

// A probe that finds the login refused says so, as a message does.
func TestLongProbe(t *testing.T) {
	bubble(t, breaker.Settings{}, func(t *testing.T, b *breaker.Breaker) {
		trip(t, b)
		untilHalfOpen(t, b)
		report(t, b, long)
		if s := b.Stats(); !b.Long() || s.Cause != "long" || time.Until(s.RetryAt) < 4*time.Minute {
			t.Errorf("%+v", s)
		}
		untilHalfOpen(t, b)
		report(t, b, fault) // the login is no longer what is wrong
		if s := b.Stats(); b.Long() || s.Cause != "probe failed" {
			t.Errorf("%+v", s)
		}
	})
}

// What goes past a breaker that was switched off, or stopped, since then moves nothing.
func TestForceIsTooLate(t *testing.T) {
	for name, end := range map[string]func(b *breaker.Breaker){
		"off":     func(b *breaker.Breaker) { b.Configure(breaker.Settings{Disabled: true}) },
		"stopped": func(b *breaker.Breaker) { b.Stop() },
	} {
		for _, o := range []breaker.Outcome{ok, fault, long} {
			bubble(t, breaker.Settings{Consecutive: 1}, func(t *testing.T, b *breaker.Breaker) {
				trip(t, b)
				late := b.Force()
				end(b)
				before := b.Stats()
				late.Done(o)
				time.Sleep(time.Second)
				if diff := cmp.Diff(before, b.Stats()); diff != "" {
					t.Errorf("%s, %v: %s", name, o, diff)
				}
			})
		}
	}
}
