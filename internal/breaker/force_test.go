package breaker_test

import (
	"testing"
	"testing/synctest"
	"time"

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
