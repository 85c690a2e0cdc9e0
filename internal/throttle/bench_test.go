package throttle_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/throttle"
)

func TestAllocations(t *testing.T) {
	b := throttle.NewBucket(throttle.Rate{N: 1000, Per: time.Second}, t0)
	k := throttle.NewKeyed(throttle.Rate{N: 1, Per: time.Second}, 1000)
	k.Get(t0, "a").Take(t0, 1e6)
	now := t0
	if got := testing.AllocsPerRun(1000, func() {
		now = now.Add(time.Millisecond)
		b.Wait(now, 1)
		b.Take(now, 1)
		b.Take(now, 5000)
		b.Return(now, 5000)
		k.Get(now, "a").Wait(now, 1)
	}); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

func BenchmarkWaitTake(b *testing.B) {
	bucket, now := throttle.NewBucket(throttle.Rate{N: 1000, Per: time.Second}, t0), t0
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Millisecond)
		if bucket.Wait(now, 1) == 0 {
			bucket.Take(now, 1)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	for _, n := range []int{1, 1000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			k := throttle.NewKeyed(throttle.Rate{N: 1, Per: time.Hour}, n)
			keys := make([]string, n)
			for i := range keys {
				keys[i] = fmt.Sprintf("sender-%08d@example.com", i)
				k.Get(t0, keys[i]).Take(t0, 10)
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				k.Get(t0, keys[i])
				if i++; i == n {
					i = 0
				}
			}
		})
	}
}
