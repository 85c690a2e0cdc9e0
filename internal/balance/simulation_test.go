package balance_test

import (
	"container/heap"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/balance"
)

// This is a simulation, event by event and without a clock, of relays that take time: it shows what the algorithms are for, and which
// simpler ones don't do.

// simulation is a fleet under load.
type simulation struct {
	rate    float64                                                                         // messages a second
	length  time.Duration                                                                   // for so long
	slots   int                                                                             // connections a relay has
	service func(r *rand.Rand, relay int, now time.Duration) (d time.Duration, failed bool) // how long a message takes
}

// event is the end of a message on a relay.
type event struct {
	at    time.Duration
	relay int
}

type events []event

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return e[i].at < e[j].at }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)        { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// outcome is what came of it.
type outcome struct {
	shares []float64 // of the messages, in percent
	p50    time.Duration
	p99    time.Duration
	failed float64 // percent
}

// run sends messages, each to the relay that pick says, where it waits for a slot behind those that came before. relays are told what is in flight, and how long things took.
func (s *simulation) run(seed uint64, relays []*gauge, pick func() int) outcome {
	r := rand.New(rand.NewPCG(seed, 77))
	var running events
	free := make([][]time.Duration, len(relays)) // when each slot is free
	means := make([]balance.EWMA, len(relays))
	for i := range free {
		free[i] = make([]time.Duration, s.slots)
	}
	counts := make([]float64, len(relays))
	var latencies []time.Duration
	failures := 0
	for now := time.Duration(0); now < s.length; now += time.Duration(r.ExpFloat64() / s.rate * float64(time.Second)) {
		for len(running) > 0 && running[0].at <= now {
			e := heap.Pop(&running).(event)
			relays[e.relay].inFlight.Add(-1)
		}
		i := pick()
		counts[i]++
		slot := 0
		for k, at := range free[i] {
			if at < free[i][slot] {
				slot = k
			}
		}
		begin := max(now, free[i][slot])
		took, failed := s.service(r, i, begin)
		end := begin + took
		free[i][slot] = end
		relays[i].inFlight.Add(1)
		heap.Push(&running, event{end, i})
		latencies = append(latencies, end-now)
		if failed {
			failures++
		}
		means[i].Observe(int64(now)+1, took)
		relays[i].latency.Store(int64(means[i].Value()))
	}
	slices.Sort(latencies)
	n := len(latencies)
	for i := range counts {
		counts[i] *= 100 / float64(n)
	}
	return outcome{counts, latencies[n/2], latencies[n*99/100], 100 * float64(failures) / float64(n)}
}

// pickers of a simulation, by name. "random ties" and "one more" are those that are not taken.
func simulated(name string, weights []float64, relays []*gauge, loads []balance.Load, latents []balance.Latent) func() int {
	r := rand.New(rand.NewPCG(9, 9))
	switch name {
	case "adaptive":
		p := balance.NewAdaptive(weights, loads)
		return func() int { return p.Pick(true, nil) }
	case "least":
		p := balance.NewLeastInFlight(weights, loads)
		return func() int { return p.Pick(true, nil) }
	case "latency":
		p := balance.NewLatency(weights, latents)
		return func() int { return p.Pick(true, nil) }
	case "round robin":
		p := balance.NewRoundRobin(weights)
		return func() int { return p.Pick(true, nil) }
	case "random ties":
		return func() int {
			return scan(r, relays, func(i int) float64 { return float64(relays[i].InFlight()) / weights[i] })
		}
	case "one more":
		return func() int {
			return scan(r, relays, func(i int) float64 { return float64(relays[i].InFlight()+1) / weights[i] })
		}
	case "two with replacement":
		return func() int {
			a, b := r.IntN(len(relays)), r.IntN(len(relays))
			if relays[b].InFlight() < relays[a].InFlight() {
				return b
			}
			return a
		}
	}
	panic(name)
}

// scan is the one with the least score, by lot among several.
func scan(r *rand.Rand, relays []*gauge, score func(i int) float64) int {
	best, least, n := 0, math.Inf(1), 0
	for i := range relays {
		switch s := score(i); {
		case s < least:
			best, least, n = i, s, 1
		case s == least:
			if n++; r.IntN(n) == 0 {
				best = i
			}
		}
	}
	return best
}

func (s *simulation) of(name string, weights []float64) outcome {
	gs, loads, latents := gauges(len(weights), func(int) int { return 0 })
	for _, g := range gs {
		g.latency.Store(0)
	}
	return s.run(1, gs, simulated(name, weights, gs, loads, latents))
}

// lognormal is a duration of which the median is as given.
func lognormal(r *rand.Rand, median time.Duration, sigma float64) time.Duration {
	return time.Duration(float64(median) * math.Exp(sigma*r.NormFloat64()))
}

// One of four relays gets slow for a minute.
func TestSimulatedGreyRelay(t *testing.T) {
	s := simulation{100, 2 * time.Minute, 20, func(r *rand.Rand, relay int, now time.Duration) (time.Duration, bool) {
		if relay == 0 && now > 30*time.Second && now < 90*time.Second {
			return 10 * time.Second, false
		}
		return lognormal(r, 250*time.Millisecond, 0.6), false
	}}
	even := []float64{1, 1, 1, 1}
	got := map[string]outcome{}
	for _, name := range []string{"round robin", "two with replacement", "least", "adaptive", "latency"} {
		got[name] = s.of(name, even)
		t.Logf("%-20s p50 %v, p99 %v, shares %.1f", name, got[name].p50.Round(time.Millisecond), got[name].p99.Round(time.Millisecond), got[name].shares)
	}
	least := got["least"].p99
	if least > got["round robin"].p99/5 || least > 2*time.Second {
		t.Errorf("least in flight: p99 %v, round robin %v", least, got["round robin"].p99)
	}
	if a := got["adaptive"].p99; a > got["round robin"].p99/5 || a > 2*time.Second {
		t.Errorf("adaptive: p99 %v, round robin %v", a, got["round robin"].p99)
	}
	if l := got["latency"].p99; l > 2*time.Second {
		t.Errorf("latency: p99 %v", l)
	}
	if w := got["two with replacement"].p99; w < 4*least {
		t.Errorf("two choices with replacement aren't worse: p99 %v", w)
	}
}

// With little traffic Adaptive keeps to the weights, and with much, too.
func TestSimulatedShares(t *testing.T) {
	weights := []float64{10, 5, 1, 1}
	for _, rate := range []float64{1, 10, 50, 150} {
		messages := 10000.0
		if rate > 100 { // where the shares are off by most of what they may be, less is left to chance
			messages = 60000
		}
		s := simulation{rate, time.Duration(messages / rate * float64(time.Second)), 20, func(r *rand.Rand, _ int, _ time.Duration) (time.Duration, bool) {
			return lognormal(r, 100*time.Millisecond, 0.6), false
		}}
		got := s.of("adaptive", weights)
		t.Logf("%3.0f/s: %.1f", rate, got.shares)
		for i, w := range weights {
			if math.Abs(got.shares[i]-100*w/17) > 1.5 {
				t.Errorf("at %v/s: shares %.1f", rate, got.shares)
				break
			}
		}
	}
	s := simulation{2, 2000 * time.Second, 20, func(r *rand.Rand, _ int, _ time.Duration) (time.Duration, bool) {
		return lognormal(r, 100*time.Millisecond, 0.6), false
	}}
	if x := s.of("one more", weights); x.shares[2]+x.shares[3] > 1 {
		t.Errorf("(q+1)/w doesn't starve the light ones: %.1f", x.shares)
	}
	if x := s.of("random ties", weights); x.shares[0] > 40 {
		t.Errorf("q/w with ties by lot keeps to the weights: %.1f", x.shares)
	}
}

// A relay that fails fast attracts traffic, whatever looks at the load: that is the breaker's to cure, not the balancer's.
func TestSimulatedFastFailures(t *testing.T) {
	s := simulation{100, 2 * time.Minute, 20, func(r *rand.Rand, relay int, now time.Duration) (time.Duration, bool) {
		if relay == 0 && now > 30*time.Second && now < 90*time.Second {
			return 5 * time.Millisecond, true
		}
		return lognormal(r, 250*time.Millisecond, 0.6), false
	}}
	even := []float64{1, 1, 1, 1}
	got := map[string]float64{}
	for _, name := range []string{"round robin", "least", "adaptive", "latency"} {
		got[name] = s.of(name, even).failed
		t.Logf("%-12s failures %.1f %%", name, got[name])
	}
	if got["least"] < 2*got["round robin"] || got["latency"] < 2*got["round robin"] {
		t.Errorf("%v: who fails fast attracts nothing?", got)
	}
}
