package balance_test

import (
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/balance"
)

const start = int64(1_700_000_000_000_000_000) // as Unix nanoseconds are

func near(got time.Duration, want, within float64) bool {
	return math.Abs(float64(got)-want) <= within*math.Abs(want)
}

func TestEWMA(t *testing.T) {
	var e balance.EWMA
	if e.Value() != 0 || e.Samples() != 0 {
		t.Error("the zero value knows something")
	}
	e.Relax(time.Second, start)
	if e.Value() != 0 {
		t.Error("relaxed without a sample")
	}
	e.Observe(start, 100*time.Millisecond)
	if e.Value() != 100*time.Millisecond || e.Samples() != 1 {
		t.Errorf("%v after the first sample", e.Value())
	}
	// The first ten are worth the same, even when all come at once.
	for i := 2; i <= 10; i++ {
		e.Observe(start, time.Duration(i)*100*time.Millisecond)
	}
	if !near(e.Value(), 550e6, 1e-6) {
		t.Errorf("%v, want the mean of the first ten", e.Value())
	}
	// Then it is time that counts: samples that come at once weigh nothing, however many.
	for range 1000 {
		e.Observe(start-5, time.Hour)
	}
	if !near(e.Value(), 550e6, 1e-6) {
		t.Errorf("%v: the past has changed", e.Value())
	}
	// A step is followed with τ, at any rate of samples, the highest included.
	for _, step := range []time.Duration{time.Microsecond, time.Millisecond, 100 * time.Millisecond, 5 * time.Second} {
		var e balance.EWMA
		now := start
		for range 20 {
			e.Observe(now, time.Second)
		}
		end := now + int64(balance.Tau)
		if step == time.Microsecond {
			end = now + int64(balance.Tau)/100
		}
		for now < end {
			now += int64(step)
			e.Observe(now, 3*time.Second)
		}
		want := 3e9 - 2e9*math.Exp(-float64(now-start)/float64(balance.Tau))
		if !near(e.Value(), want, 1e-3) {
			t.Errorf("a sample each %v: %v after %v, want %v", step, e.Value(), time.Duration(now-start), time.Duration(want))
		}
	}
}

// It is no peak EWMA: up and down alike.
func TestEWMAFollowsNoPeaks(t *testing.T) {
	var e balance.EWMA
	now := start
	for i := range 6000 {
		now += int64(20 * time.Millisecond)
		x := 20 * time.Millisecond
		if i%10 == 0 { // one large message in ten
			x = 200 * time.Millisecond
		}
		e.Observe(now, x)
	}
	if !near(e.Value(), 38e6, 0.05) {
		t.Errorf("%v, and the mean is 38ms", e.Value())
	}
}

func TestRelax(t *testing.T) {
	slow := func() *balance.EWMA {
		e := new(balance.EWMA)
		for i := range 20 {
			e.Observe(start-int64(20-i), 10*time.Second)
		}
		return e
	}
	e := slow()
	at := func(d time.Duration) int64 { return start + int64(d) }
	e.Relax(100*time.Millisecond, at(balance.Tau/2))
	if !near(e.Value(), 10e9, 1e-9) {
		t.Errorf("%v: relaxed although a sample was taken a moment ago", e.Value())
	}
	// Once a second or in one go, it comes to the same.
	for now := time.Second; now <= 3*balance.Tau; now += time.Second {
		e.Relax(100*time.Millisecond, at(now))
	}
	once := slow()
	once.Relax(100*time.Millisecond, at(3*balance.Tau))
	want := 0.1e9 + 9.9e9*math.Exp(-2)
	if !near(e.Value(), want, 1e-3) || !near(once.Value(), want, 1e-3) {
		t.Errorf("%v in steps, %v in one go, want %v", e.Value(), once.Value(), time.Duration(want))
	}
	if e.Samples() != 20 {
		t.Error("relaxing is no sample")
	}
	// The next sample counts with all the time since the last one.
	e.Observe(at(4*balance.Tau), 20*time.Second)
	if e.Value() < 19*time.Second {
		t.Errorf("%v after a sample of 20s", e.Value())
	}
	// A relay that is used keeps its value, however often Relax is called.
	busy := slow()
	for now := time.Second; now <= 10*balance.Tau; now += time.Second {
		busy.Relax(100*time.Millisecond, at(now))
		if now%(10*time.Second) == 0 {
			busy.Observe(at(now), 10*time.Second)
		}
	}
	if !near(busy.Value(), 10e9, 1e-6) {
		t.Errorf("a busy one relaxed to %v", busy.Value())
	}
	// Up as well as down, and nowhere without a target.
	e = slow()
	e.Relax(0, at(5*balance.Tau))
	if !near(e.Value(), 10e9, 1e-9) {
		t.Error("relaxed towards nothing")
	}
	e.Relax(20*time.Second, at(20*balance.Tau))
	if !near(e.Value(), 20e9, 1e-3) {
		t.Errorf("%v, want 20s", e.Value())
	}
}

func TestEWMAConcurrently(t *testing.T) {
	var e balance.EWMA
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 5000 {
				now := start + int64(i)*int64(time.Millisecond) + int64(g)
				e.Observe(now, time.Duration(1+(i+g)%3)*time.Second)
				e.Relax(2*time.Second, now)
				if v := e.Value(); v < time.Second-1 || v > 3*time.Second+1 {
					t.Errorf("%v: outside of all samples", v)
					return
				}
			}
		})
	}
	wg.Wait()
	if e.Samples() != 40000 {
		t.Errorf("%d samples", e.Samples())
	}
	if !near(e.Value(), 2e9, 0.4) { // which samples are the first ten, that count most, is chance
		t.Errorf("%v, want about 2s", e.Value())
	}
}

func TestDemote(t *testing.T) {
	many := []uint64{10, 10, 10, 10}
	for _, tt := range []struct {
		name             string
		weights, latency []float64
		samples          []uint64
		want             []float64
		m                float64
	}{
		{"alike", []float64{4, 3, 2, 1}, []float64{10, 12, 14, 29}, many, []float64{4, 3, 2, 1}, 12},
		{"three times is not slow yet", []float64{1, 1, 1}, []float64{10, 10, 30}, many[:3], []float64{1, 1, 1}, 10},
		{"slow", []float64{1, 1, 8}, []float64{10, 10, 40}, many[:3], []float64{1, 1, 2}, 10},
		{"the floor", []float64{1, 1, 8}, []float64{10, 10, 4000}, many[:3], []float64{1, 1, 0.4}, 10},
		{"one of two", []float64{1, 1}, []float64{100, 10}, many[:2], []float64{0.1, 1}, 10},
		{"half of four", []float64{1, 1, 1, 1}, []float64{100, 10, 100, 10}, many, []float64{0.1, 1, 0.1, 1}, 10},
		{"most are slow: so it is", []float64{1, 1, 1}, []float64{100, 10, 100}, many[:3], []float64{1, 1, 1}, 100},
		{"alone", []float64{1}, []float64{1e9}, many[:1], []float64{1}, 1e9},
		{"few samples", []float64{1, 1, 1}, []float64{10, 10, 4000}, []uint64{10, 10, 9}, []float64{1, 1, 1}, 10},
		{"few samples are no measure", []float64{1, 1, 1}, []float64{1, 10, 10}, []uint64{9, 10, 10}, []float64{1, 1, 1}, 10},
		{"no weight is no measure", []float64{0, 0, 1, 1}, []float64{1, 1, 10, 10}, many, []float64{0, 0, 1, 1}, 10},
		{"not known", []float64{1, 1}, []float64{0, math.Inf(1)}, many[:2], []float64{1, 1}, 0},
		{"nobody", nil, nil, nil, nil, 0},
	} {
		given := slices.Clone(tt.weights)
		got, m := balance.Demote(given, tt.latency, tt.samples)
		if m != tt.m || !slices.EqualFunc(got, tt.want, func(a, b float64) bool { return math.Abs(a-b) < 1e-12 }) {
			t.Errorf("%s: %v, median %v; want %v, %v", tt.name, got, m, tt.want, tt.m)
		}
		if !slices.Equal(given, tt.weights) {
			t.Errorf("%s: the given weights were changed", tt.name)
		}
	}
}
