package smtplb

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// The percentiles are as exact as they promise, whatever the durations are.
func TestHistogram(t *testing.T) {
	for _, most := range []time.Duration{time.Millisecond, time.Second, time.Hour} {
		var h histogram
		var all []time.Duration
		for range 10_000 {
			d := time.Duration(rand.Int64N(int64(most))) + 1
			all = append(all, d)
			h.add(d)
		}
		h.add(0) // did not happen
		slices.Sort(all)
		l := h.read()
		if l.Count != 10_000 || l.Max != all[9999] {
			t.Errorf("up to %v: %+v", most, l)
		}
		for got, want := range map[time.Duration]time.Duration{l.P50: all[4999], l.P99: all[9899]} {
			if off := (got - want).Abs(); off > want/8+latencyUnit {
				t.Errorf("up to %v: %v, want %v", most, got, want)
			}
		}
	}
	var h histogram
	h.add(1000 * time.Hour)
	if l := h.read(); l.Max != 1000*time.Hour || l.P50 < time.Hour || l.Count != 1 {
		t.Errorf("%+v", l)
	}
	for d := time.Duration(1); d < 70*time.Minute; d += d/16 + 1 {
		if m := middleOf(bucketOf(d)); (m - d).Abs() > d/8+latencyUnit/2 {
			t.Fatalf("%v is counted as %v", d, m)
		}
	}
}

// Stats of a thousand relays with figures in all their histograms stays within 5 ms, and holds the figures.
func TestStatsOfUsedRelays(t *testing.T) {
	var c Config
	for i := range 1000 {
		c.Relays = append(c.Relays, Relay{Addr: fmt.Sprintf("mx%d.example.com", i)})
	}
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, r := range p.fleet.Load().relays {
		for d := time.Microsecond; d < 2*time.Minute; d *= 2 { // over the whole range that real relays are in
			r.observe(&Timings{d, d, d, d, d, d, d, d})
		}
	}
	const promised, patience = 5 * time.Millisecond, 10 * time.Second
	least, begun := time.Hour, time.Now()
	for least > promised && time.Since(begun) < patience { // on a busy machine the code is only sometimes left alone
		start := time.Now()
		s := p.Stats()
		least = min(least, time.Since(start))
		if s.Relays[999].Latency.Final.Count != 27 {
			t.Fatalf("%+v", s.Relays[999].Latency)
		}
		if underRace { // it is ten times slower, so how long it took is not looked at
			return
		}
	}
	if t.Logf("Stats took %v", least); least > promised {
		t.Errorf("Stats took %v", least)
	}
}

func BenchmarkObserve(b *testing.B) {
	r := new(standing)
	t := Timings{Wait: 1000, Envelope: 20 * time.Millisecond, Body: time.Millisecond, Final: 30 * time.Millisecond}
	for b.Loop() {
		r.observe(&t)
	}
}
