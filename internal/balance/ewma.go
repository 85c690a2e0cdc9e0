package balance

import (
	"math"
	"slices"
	"sync/atomic"
	"time"
)

// Tau is the time constant of an EWMA: of what it held, 1/e is left after it.
const Tau = 30 * time.Second

// early is how many samples an EWMA counts equally, whatever the time between them: else the first would stand for the next half minute.
const early = 10

// EWMA is a mean of durations in which later ones count more, by the time that has passed between them. It follows peaks no faster than it follows anything else: with mail, a long duration is as often
// the message's doing as the relay's. The zero value is ready. It may be used concurrently; nobody waits for anybody.
type EWMA struct {
	value   atomic.Uint64 // of a float64, in nanoseconds; 0: no sample yet
	seen    atomic.Int64  // when the last sample was taken
	relaxed atomic.Int64  // when Relax changed the value last
	samples atomic.Uint64
}

// Observe counts x, which was measured at now: nanoseconds since some moment that is the same for all calls, more than 0. A now before that of an earlier call counts as the same moment.
func (e *EWMA) Observe(now int64, x time.Duration) {
	sample := max(float64(x), 1)
	n := e.samples.Add(1)
	share := 0.0
	for {
		last := e.seen.Load()
		if now <= last {
			break
		}
		if e.seen.CompareAndSwap(last, now) { // so each stretch of time is counted once
			if last > 0 {
				share = -math.Expm1(-float64(now-last) / float64(Tau))
			}
			break
		}
	}
	if n <= early {
		share = max(share, 1/float64(n))
	}
	e.move(sample, share)
}

// move brings the value nearer to x by share of the distance.
func (e *EWMA) move(x, share float64) {
	for {
		old := e.value.Load()
		v := math.Float64frombits(old)
		if old == 0 {
			v = x
		}
		if e.value.CompareAndSwap(old, math.Float64bits(v+(x-v)*share)) {
			return
		}
	}
}

// Reset forgets all samples: they are about something else now.
func (e *EWMA) Reset() {
	e.samples.Store(0)
	e.relaxed.Store(0)
	e.seen.Store(0)
	e.value.Store(0)
}

// Value returns the mean, 0 before the first sample.
func (e *EWMA) Value() time.Duration { return time.Duration(math.Float64frombits(e.value.Load())) }

// Samples returns how often Observe was called.
func (e *EWMA) Samples() uint64 { return e.samples.Load() }

// Relax makes an old value less certain: once there was no sample for Tau it moves towards another value (that of the fleet, say), by 1 − 1/e of the distance in each further Tau. So a relay
// that nobody picks any more for its slowness is looked at again. It may be called as often as is liked; how far the value goes depends on now alone. Without a sample it does nothing.
func (e *EWMA) Relax(toward time.Duration, now int64) {
	if toward <= 0 || e.value.Load() == 0 {
		return
	}
	last := e.relaxed.Load()
	from := max(last, e.seen.Load()+int64(Tau))
	if now > from && e.relaxed.CompareAndSwap(last, now) {
		e.move(float64(toward), -math.Expm1(-float64(now-from)/float64(Tau)))
	}
}

// SlowFactor is how many times the median is slow.
const SlowFactor = 3

const (
	slowFloor   = 0.05 // of its weight keeps the slowest of all
	slowSamples = 10   // before that nobody is slow
)

// Demote returns weights in which those that are far slower than the others have less: w·m/latency where the latency is more than three times the lower median m, but not less than a twentieth of w. So a slow one has no more work in
// flight than a fast one. Only those with at least 10 samples and a weight count, for m and as slow. It returns m, too: 0 where nobody counts.
//
// There is no limit to how many are slow: the lower median sees to it that at least half of them, rounded up, are not.
func Demote(weights, latency []float64, samples []uint64) (effective []float64, m float64) {
	effective = slices.Clone(weights)
	counts := func(i int) bool {
		return samples[i] >= slowSamples && latency[i] > 0 && latency[i] <= math.MaxFloat64 && weights[i] > 0
	}
	known := make([]float64, 0, len(latency))
	for i, l := range latency {
		if counts(i) {
			known = append(known, l)
		}
	}
	if len(known) == 0 {
		return effective, 0
	}
	slices.Sort(known)
	m = known[(len(known)-1)/2]
	for i, l := range latency {
		if counts(i) && l > SlowFactor*m {
			effective[i] *= max(m/l, slowFloor)
		}
	}
	return effective, m
}
