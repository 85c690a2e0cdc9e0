package smtplb

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/internal/balance"
)

// This file finds relays that are well but far slower than their neighbours, which Adaptive then gives less.

// slowness is what the last beat found.
type slowness struct {
	times atomic.Uint64 // bits of a float64: slower than the median, 0: not by enough to count
	keeps atomic.Uint64 // bits of a float64: the part of its weight that it keeps; 0 bits: all
}

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

// compare looks how long the tier's relays take, and makes old news less certain. What counts is the time for an envelope over a connection that is there: a relay with less mail dials more often, and would for that get less still.
func (t *tier) compare(now time.Time, demotes bool) {
	n := len(t.relays)
	weights, took, dialled, samples := make([]float64, n), make([]float64, n), make([]float64, n), make([]uint64, n)
	for i, r := range t.relays {
		if r.whole() {
			weights[i] = float64(r.weight)
		}
		took[i], dialled[i], samples[i] = float64(r.envelope.Value()), float64(r.latency.Value()), r.envelope.Samples()
	}
	kept, median := balance.Demote(weights, took, samples)
	_, usual := balance.Demote(weights, dialled, samples)
	for i, r := range t.relays {
		if demotes && kept[i] < weights[i] {
			r.slowness.set(took[i]/median, math.Ceil(slowSteps*kept[i]/weights[i])/slowSteps)
		} else {
			r.slowness.set(0, 0)
		}
		r.envelope.Relax(time.Duration(median), now.UnixNano())
		r.latency.Relax(time.Duration(usual), now.UnixNano())
	}
}
