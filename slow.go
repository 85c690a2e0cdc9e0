package smtplb

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/internal/balance"
)

// This file finds relays that are well but far slower than their neighbours, which Adaptive then gives less.

// slowness is what the last beat found, and when the relay was used last in spite of it.
type slowness struct {
	times atomic.Uint64 // bits of a float64: slower than the median, 0: not by enough to count
	keeps atomic.Uint64 // bits of a float64: the part of its weight that it keeps; 0 bits: all
	rest  atomic.Int64  // Unix nanoseconds until which it is left alone where another is free; 0: it isn't
	limit atomic.Int64  // nanoseconds: an envelope that takes longer is slow; for use with rest
	quick atomic.Int32  // envelopes in a row that were not slow, since it is left alone
	fails atomic.Bool   // the last attempt was a fault: then its breaker is to find out soon, and it doesn't rest
}

// slowRest is for how long a slow relay is left alone after each message. A part of its weight alone would be a part of all messages: of 4 relays one with a twentieth has 1.6 %, and p99 of them all is its time.
// By the clock it is less than 1 % of whatever is more than ten messages a second, and half a minute still shows that the relay is well again.
const slowRest = 10 * time.Second

// slowTrials is how many quick envelopes in a row end that. The mean alone would remember a relay that was 200 times slower for more than two minutes.
const slowTrials = 3

// slowSteps is into how many steps a weight is divided, lest each beat makes new pickers.
const slowSteps = 20

func (s *slowness) set(times, keeps float64) {
	s.times.Store(math.Float64bits(times))
	s.keeps.Store(math.Float64bits(keeps))
}

// slow returns how many times slower than the others the relay is, 0 where it isn't.
func (s *slowness) slow() float64 { return math.Float64frombits(s.times.Load()) }

func (s *slowness) kept() float64 {
	if bits := s.keeps.Load(); bits != 0 {
		return math.Float64frombits(bits)
	}
	return 1
}

// rests reports whether the relay is left alone for its slowness, where another is free.
func (s *slowness) rests() bool {
	until := s.rest.Load()
	return until != 0 && until > time.Now().UnixNano() && !s.fails.Load()
}

// rests reports whether one of the tier's relays is left alone for its slowness, where another of them is free.
func (t *tier) rests(r *relay) bool { return r.rests() && !t.strain.Load() }

// used begins the next rest of a slow relay.
func (s *slowness) used() {
	if until := s.rest.Load(); until != 0 {
		s.rest.CompareAndSwap(until, time.Now().Add(slowRest).UnixNano()) // else it is well again, or another message was a moment earlier
	}
}

// leave has a slow relay left alone between messages, or no longer. limit is what is slow.
func (s *slowness) leave(alone bool, limit time.Duration, now time.Time) {
	if !alone {
		s.rest.Store(0)
		return
	}
	s.limit.Store(int64(limit))
	if s.rest.Load() == 0 {
		s.quick.Store(0)
		s.rest.Store(now.Add(slowRest).UnixNano()) // the messages that found it out have just been there
	}
}

// tried takes note of how long an envelope took, and reports whether a relay that is left alone has shown that it is well.
func (s *slowness) tried(took time.Duration) bool {
	if s.rest.Load() == 0 {
		return false
	}
	if took > time.Duration(s.limit.Load()) {
		s.quick.Store(0)
		return false
	}
	return s.quick.Add(1) == slowTrials
}

// compare looks how long the tier's relays take, and makes old news less certain. What counts is the time for an envelope over a connection that is there: a relay with less mail dials more often, and would for that get less still.
func (t *tier) compare(now time.Time, demotes bool) {
	n := len(t.relays)
	weights, took, dialled, samples := make([]float64, n), make([]float64, n), make([]float64, n), make([]uint64, n)
	for i, r := range t.relays {
		if r.well() {
			weights[i] = float64(r.weight)
		}
		took[i], dialled[i], samples[i] = float64(r.envelope.Value()), float64(r.latency.Value()), r.envelope.Samples()
	}
	kept, median := balance.Demote(weights, took, samples)
	_, usual := balance.Demote(weights, dialled, samples)
	all, quick := 0.0, 0.0
	for i, w := range weights {
		if all += w; kept[i] == w {
			quick += w
		}
	}
	enough := 2*quick >= all // to do all of the work: a small part of the weight, which says what its relays can do, is not to get many times its own
	for i, r := range t.relays {
		slow := demotes && kept[i] < weights[i]
		if slow {
			r.slowness.set(took[i]/median, math.Ceil(slowSteps*kept[i]/weights[i])/slowSteps)
		} else {
			r.slowness.set(0, 0)
		}
		r.slowness.leave(slow && enough, time.Duration(balance.SlowFactor*median), now)
		r.envelope.Relax(time.Duration(median), now.UnixNano())
		r.latency.Relax(time.Duration(usual), now.UnixNano())
	}
}

// strains looks whether most of a route's tier is slow, though most of the relays of that tier are not: a small part of the weight is not to get many times its own there either.
func (t *tier) strains() {
	all, quick := 0, 0
	for _, r := range t.relays {
		if r.well() {
			all += r.weight
			if r.slow() == 0 {
				quick += r.weight
			}
		}
	}
	t.strain.Store(2*quick < all)
}
