package breaker_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/breaker"
)

func TestConfigureKeepsState(t *testing.T) {
	bubble(t, breaker.Settings{}, func(t *testing.T, b *breaker.Breaker) {
		report(t, b, fault, fault)
		b.Configure(breaker.Settings{Consecutive: 3, OpenFor: time.Hour, MaxOpen: 2 * time.Hour})
		want(t, b, breaker.Closed)
		report(t, b, fault)
		want(t, b, breaker.Open)
		at := b.RetryAt()
		if wait := time.Until(at); wait < 48*time.Minute || wait > 72*time.Minute {
			t.Errorf("opened for %v, configured for 1 h", wait)
		}
		b.Configure(breaker.Settings{OpenFor: time.Second})
		want(t, b, breaker.Open)
		if b.RetryAt() != at {
			t.Errorf("the end of the opening moved from %v to %v", at, b.RetryAt())
		}
		untilHalfOpen(t, b)
		report(t, b, fault)
		if wait := time.Until(b.RetryAt()); wait > 3*time.Second { // k is 1 now
			t.Errorf("opened for %v, configured for 1 s", wait)
		}
	})
}

func TestConfigureOffAndOn(t *testing.T) {
	for _, state := range []breaker.State{breaker.Closed, breaker.Open, breaker.HalfOpen, breaker.Probing} {
		t.Run(state.String(), func(t *testing.T) {
			bubble(t, breaker.Settings{Consecutive: 2}, func(t *testing.T, b *breaker.Breaker) {
				early, _ := b.Allow()
				if state != breaker.Closed {
					trip(t, b)
				}
				if state > breaker.Open {
					untilHalfOpen(t, b)
				}
				var probe breaker.Permit
				if state == breaker.Probing {
					probe, _ = b.Allow()
				}
				want(t, b, state)
				b.Configure(breaker.Settings{Disabled: true})
				want(t, b, breaker.Closed)
				if !b.RetryAt().IsZero() {
					t.Errorf("closed, but RetryAt is %v", b.RetryAt())
				}
				probe.Done(fault)
				early.Done(long)
				report(t, b, fault, fault, fault, long)
				time.Sleep(24 * time.Hour) // no timer is left that would move it
				want(t, b, breaker.Closed)

				b.Configure(breaker.Settings{Consecutive: 2})
				report(t, b, fault)
				want(t, b, breaker.Closed)
				report(t, b, fault)
				want(t, b, breaker.Open)
				untilHalfOpen(t, b)
				report(t, b, ok, ok)
				want(t, b, breaker.Closed)
			})
		})
	}
}

func TestRetryEndsTheOpening(t *testing.T) {
	var changes atomic.Int32 // in the bubble's timers too
	bubble(t, breaker.Settings{OnChange: func() { changes.Add(1) }}, func(t *testing.T, b *breaker.Breaker) {
		b.Retry()
		want(t, b, breaker.Closed)
		report(t, b, long)
		untilHalfOpen(t, b)
		report(t, b, long) // now it would be 10 minutes
		before := changes.Load()
		b.Retry()
		if wait := time.Until(b.RetryAt()); wait > time.Millisecond {
			t.Errorf("half-open in %v", wait)
		}
		untilHalfOpen(t, b)
		if now := changes.Load(); now != before+1 {
			t.Errorf("%d changes told", now-before)
		}
		report(t, b, long)
		if wait := time.Until(b.RetryAt()); wait > 6*time.Minute {
			t.Errorf("the back-off of before was kept: %v", wait)
		}
		b.Retry()
		untilHalfOpen(t, b)
		report(t, b, ok, ok)
		want(t, b, breaker.Closed)
		b.Stop()
		b.Retry()
		want(t, b, breaker.Closed)
	})
}

// What permits of before Retry report is about the old login.
func TestRetryForgetsPermits(t *testing.T) {
	bubble(t, breaker.Settings{}, func(t *testing.T, b *breaker.Breaker) {
		closed, _ := b.Allow()
		b.Retry()
		closed.Done(long)
		want(t, b, breaker.Closed)

		trip(t, b)
		untilHalfOpen(t, b)
		probe, _ := b.Allow()
		want(t, b, breaker.Probing)
		b.Retry()
		want(t, b, breaker.HalfOpen)
		probe.Done(long)
		want(t, b, breaker.HalfOpen)
		report(t, b, ok, ok)
		want(t, b, breaker.Closed)
	})
}

// A breaker that was stopped stays as it is.
func TestRetryAfterStop(t *testing.T) {
	bubble(t, breaker.Settings{}, func(t *testing.T, b *breaker.Breaker) {
		trip(t, b)
		b.Stop()
		before := b.Stats()
		b.Retry()
		time.Sleep(time.Second)
		if after := b.Stats(); after != before {
			t.Errorf("%+v, and it was %+v", after, before)
		}
	})
}

// What a forced permit of before Retry reports is about the old login too.
func TestRetryForgetsForcedPermits(t *testing.T) {
	for _, o := range []breaker.Outcome{ok, fault, long} {
		bubble(t, breaker.Settings{Consecutive: 1}, func(t *testing.T, b *breaker.Breaker) {
			closed := b.Force()
			b.Retry()
			closed.Done(o)
			want(t, b, breaker.Closed)

			trip(t, b)
			early, open := b.Force(), b.Force()
			early.Done(long)
			want(t, b, breaker.Open)
			b.Retry()
			retry := b.RetryAt()
			open.Done(o)
			if !b.RetryAt().Equal(retry) {
				t.Errorf("%v prolongs the opening by %v", o, b.RetryAt().Sub(retry))
			}
			untilHalfOpen(t, b)
			now := b.Force()
			now.Done(none)
			report(t, b, ok, ok)
			want(t, b, breaker.Closed)
		})
	}
}

// A refused login is known as one whatever state the breaker is in when a message that went past it says so, and somebody is told.
func TestForcedLong(t *testing.T) {
	for _, state := range []breaker.State{breaker.Open, breaker.HalfOpen, breaker.Probing} {
		t.Run(state.String(), func(t *testing.T) {
			var changes atomic.Int32
			bubble(t, breaker.Settings{OnChange: func() { changes.Add(1) }}, func(t *testing.T, b *breaker.Breaker) {
				trip(t, b)
				if state != breaker.Open {
					untilHalfOpen(t, b)
				}
				if state == breaker.Probing {
					b.Allow()
				}
				before, forced := changes.Load(), b.Force()
				forced.Done(long)
				want(t, b, state)
				if !b.Long() || changes.Load() != before+1 {
					t.Errorf("Long is %v, %d changes were told", b.Long(), changes.Load()-before)
				}
				fine := b.Force()
				fine.Done(none)
				if changes.Load() != before+1 {
					t.Error("told again")
				}
			})
		})
	}
}
