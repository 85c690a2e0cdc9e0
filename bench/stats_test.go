package main

import (
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		values  []float64
		q, want float64
	}{
		{nil, 0.5, 0},
		{[]float64{7}, 0.5, 7},
		{[]float64{7}, 0.99, 7},
		{[]float64{1, 2}, 0.5, 1.5},
		{[]float64{1, 2, 9}, 0.5, 2},
		{[]float64{1, 2, 3, 4, 5}, 0.25, 2},
		{[]float64{1, 2, 3, 4, 5}, 1, 5},
		{[]float64{0, 100}, 0.99, 99},
	} {
		if got := quantile(c.values, c.q); got != c.want {
			t.Errorf("quantile(%v, %v) is %v, want %v", c.values, c.q, got, c.want)
		}
	}
}

func TestSpread(t *testing.T) {
	values := []float64{3, 1, 2, 9}
	if s := spreadOf(values); s != (spread{2.5, 1, 9}) {
		t.Errorf("%+v", s)
	}
	if values[0] != 3 {
		t.Error("the values were sorted in place")
	}
}

func TestLatencies(t *testing.T) {
	var all []time.Duration
	for i := 100; i >= 0; i-- {
		all = append(all, time.Duration(i)*time.Millisecond)
	}
	if p50, p99 := latencies(all); p50 != 50 || p99 != 99 {
		t.Errorf("%v, %v", p50, p99)
	}
}

// TestRatiosAreWithinRounds: the machine was ten times slower in the second round, for all; the client is twice as fast in each.
func TestRatiosAreWithinRounds(t *testing.T) {
	w := &work{name: "w"}
	nets := []turn{
		{sent: 100, elapsed: time.Second, cpu: time.Second, allocs: 4, bytes: 10, p50: 1, p99: 2},
		{sent: 10, elapsed: time.Second, cpu: time.Second, allocs: 4, bytes: 10, p50: 1, p99: 2},
		{sent: 100, elapsed: time.Second, cpu: time.Second, allocs: 4, bytes: 10, p50: 1, p99: 2},
	}
	ours := []turn{
		{sent: 200, elapsed: time.Second, cpu: 500 * time.Millisecond, allocs: 1, bytes: 5, p50: 3, p99: -1},
		{sent: 20, elapsed: time.Second, cpu: 500 * time.Millisecond, allocs: 3, bytes: 5, p50: 1, p99: 5},
		{sent: 800, elapsed: 2 * time.Second, cpu: 800 * time.Millisecond, allocs: 2, bytes: 5, p50: 2, p99: 5},
	}
	r := summarise(w, identity{"c", "m"}, ours, nets)
	if *r.RateX != 2 || *r.RateMin != 2 || *r.RateMax != 4 {
		t.Errorf("rate: %v (%v, %v)", *r.RateX, *r.RateMin, *r.RateMax)
	}
	if *r.CPUX != 0.25 || *r.CPUMin != 0.1 || *r.CPUMax != 0.25 {
		t.Errorf("CPU: %v (%v, %v)", *r.CPUX, *r.CPUMin, *r.CPUMax)
	}
	if *r.Rate != 200 || *r.Allocs != 2 || *r.Bytes != 5 || *r.P50 != 2 || r.P99 != nil || r.Rounds != 3 {
		t.Errorf("%+v", r)
	}
}

// TestUnknownCPU: where the system doesn't tell, the report doesn't either.
func TestUnknownCPU(t *testing.T) {
	turns := []turn{{sent: 1, elapsed: time.Second, allocs: -1, bytes: -1}}
	if r := summarise(&work{}, base, turns, turns); r.CPUX != nil || r.CPU != nil || r.Allocs != nil || *r.RateX != 1 {
		t.Errorf("%+v", r)
	}
}
