package breaker

import (
	"testing"
	"testing/synctest"
	"time"
)

// An Allow that has seen a state which lets it through, and gets the lock after the state has changed.
func TestAdmitLooksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(Settings{Consecutive: 1})
		defer b.Stop()
		p, _ := b.admit()
		p.Done(Fault)
		time.Sleep(time.Second) // gobreaker itself would let one through now
		if _, ok := b.admit(); ok {
			t.Error("an open breaker let something through")
		}
		time.Sleep(time.Hour)
		if _, ok := b.admit(); !ok || b.State() != Probing {
			t.Fatalf("no probe while %v", b.State())
		}
		if _, ok := b.admit(); ok {
			t.Error("a second probe was let through")
		}
	})
}

// A timer that fired just before it was stopped or set anew.
func TestExpireComesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(Settings{Consecutive: 1})
		defer b.Stop()
		check := func(want State) {
			t.Helper()
			b.expire()
			if got := b.State(); got != want {
				t.Errorf("%v, want %v", got, want)
			}
		}
		check(Closed)
		p, _ := b.Allow()
		p.Done(Fault)
		check(Open)
		time.Sleep(time.Hour)
		check(HalfOpen)
		p, _ = b.Allow()
		check(Probing)
		p.Done(Fault)
		check(Open)
		b.Stop()
		time.Sleep(time.Hour)
		check(Open)
	})
}
