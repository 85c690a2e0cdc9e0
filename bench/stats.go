package main

import (
	"slices"
	"time"
)

// quantile returns the q-th quantile of sorted values by linear interpolation between the two nearest; 0 of none.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// spread is the middle and the ends of some figures.
type spread struct{ median, min, max float64 }

// spreadOf needs one value at least.
func spreadOf(values []float64) spread {
	s := slices.Sorted(slices.Values(values))
	return spread{quantile(s, 0.5), s[0], s[len(s)-1]}
}

// latencies returns the median and the 99th percentile, in milliseconds.
func latencies(all []time.Duration) (p50, p99 float64) {
	ms := make([]float64, len(all))
	for i, d := range all {
		ms[i] = float64(d) / float64(time.Millisecond)
	}
	slices.Sort(ms)
	return quantile(ms, 0.5), quantile(ms, 0.99)
}

// A turn is what one client did in one round.
type turn struct {
	sent     int
	elapsed  time.Duration
	cpu      time.Duration // 0: not known
	allocs   float64       // a send; negative: not known
	bytes    float64       // a send; negative: not known
	p50, p99 float64       // in ms; negative: meaningless
}

func (t turn) rate() float64 { return float64(t.sent) / t.elapsed.Seconds() }

func (t turn) cpuEach() float64 { return t.cpu.Seconds() / float64(t.sent) }

// ratios compares the turns of a client with the base's of the same rounds: rate, and CPU time of a message. The second is empty where it isn't known.
func ratios(client, base []turn) (rate, cpu []float64) {
	for i, t := range client {
		b := base[i]
		rate = append(rate, t.rate()/b.rate())
		if t.cpu > 0 && b.cpu > 0 {
			cpu = append(cpu, t.cpuEach()/b.cpuEach())
		}
	}
	return rate, cpu
}

// summarise makes the report's row of one client.
func summarise(w *work, id identity, turns, base []turn) result {
	r := result{Work: w.name, Client: id.client, Mode: id.mode, Rounds: len(turns)}
	rate, cpu := ratios(turns, base)
	s := spreadOf(rate)
	r.RateX, r.RateMin, r.RateMax = &s.median, &s.min, &s.max
	if len(cpu) > 0 {
		c := spreadOf(cpu)
		r.CPUX, r.CPUMin, r.CPUMax = &c.median, &c.min, &c.max
	}
	r.Rate = median(turns, turn.rate)
	if each := median(turns, turn.cpuEach); each != nil && *each > 0 {
		us := *each * 1e6
		r.CPU = &us
	}
	r.Allocs = median(turns, func(t turn) float64 { return t.allocs })
	r.Bytes = median(turns, func(t turn) float64 { return t.bytes })
	r.P50 = median(turns, func(t turn) float64 { return t.p50 })
	r.P99 = median(turns, func(t turn) float64 { return t.p99 })
	return r
}

// median over the turns; nil where one of them doesn't know (is negative).
func median(turns []turn, f func(turn) float64) *float64 {
	var all []float64
	for _, t := range turns {
		v := f(t)
		if v < 0 {
			return nil
		}
		all = append(all, v)
	}
	m := spreadOf(all).median
	return &m
}
