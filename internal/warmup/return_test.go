package warmup_test

import (
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/warmup"
)

// What is given back goes to the caps that it was taken from. One that there is since then has no part in it: it would be exceeded.
func TestReturnToAnotherCap(t *testing.T) {
	noon := monday.Add(12 * time.Hour)
	gmail := func(curve ...int) map[string][]int { return map[string][]int{"gmail": curve} }
	for _, tt := range []struct {
		name     string
		before   warmup.Config
		after    warmup.Config
		now      time.Time
		n        int
		provider string
	}{
		{"the provider had no curve", warmup.Config{Curve: []int{2400}}, warmup.Config{Curve: []int{2400}, PerProvider: gmail(24)}, noon, 50, "gmail"},
		{"the provider's was over", warmup.Config{Curve: []int{2400, 2400}, PerProvider: gmail(24)}, warmup.Config{Curve: []int{2400, 2400}, PerProvider: gmail(24, 24)}, noon.Add(day), 50, "gmail"},
		{"the relay's was over", warmup.Config{Curve: []int{24}, PerProvider: gmail(2400, 2400)}, warmup.Config{Curve: []int{24, 24}, PerProvider: gmail(2400, 2400)}, noon.Add(day), 50, "gmail"},
		{"the provider's is another", warmup.Config{Curve: []int{2400}, PerProvider: gmail(2400)}, warmup.Config{Curve: []int{2400}, PerProvider: gmail(24)}, noon, 50, "gmail"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.before.Start, tt.after.Start = warmup.On(monday), warmup.On(monday)
			d, p := &disk{}, start(tt.before, "a")
			if wait := p.wait(t, d, tt.now, tt.provider, tt.n); wait != 0 {
				t.Fatal(wait)
			}
			taken, ok := p.Take(tt.now, tt.provider, tt.n)
			if !ok {
				t.Fatal("nothing was taken")
			}
			p.Reconfigure(tt.after)
			p.wait(t, d, tt.now, tt.provider, 1)
			p.Return(&taken, taken.N())
			n := 0
			for ; n < 100 && p.wait(t, d, tt.now, tt.provider, 1) == 0; n++ {
				if _, ok := p.Take(tt.now, tt.provider, 1); !ok {
					t.Fatal("nothing to take after no wait")
				}
			}
			if n > 1 {
				t.Errorf("%d at once of 24 a day, not 1", n)
			}
		})
	}
}

// A share within another counts for its provider's cap alone, and goes back there alone.
func TestShareWithin(t *testing.T) {
	d, p := &disk{}, start(warmup.Config{Curve: []int{240}, PerProvider: map[string][]int{"gmail": {24}}}, "a")
	shares := []warmup.Share{{N: 1}, {Provider: "gmail", N: 1, Within: true}}
	for range 3 {
		p.WaitAll(monday, shares)
		p.sync(t, d, monday)
		if wait := p.WaitAll(monday, shares); wait != 0 {
			t.Fatal(wait)
		}
		taken, ok := p.TakeAll(monday, shares)
		if !ok || p.Today(monday).Used != 1 {
			t.Fatalf("%v: %+v", ok, p.Today(monday))
		}
		if wait, bound := p.WaitAll(monday, shares), p.Bound(monday, shares); wait != time.Hour || bound.Provider != "gmail" {
			t.Errorf("the next after %v: %+v", wait, bound)
		}
		if wait := p.WaitAll(monday, shares[:1]); wait != 0 {
			t.Errorf("for others after %v", wait)
		}
		for i := range taken {
			p.Return(&taken[i], taken[i].N())
		}
		if used := p.Today(monday).Used; used != 0 {
			t.Errorf("%d are used", used)
		}
	}
}
