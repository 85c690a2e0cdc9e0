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
