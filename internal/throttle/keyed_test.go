package throttle_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/throttle"
)

// Each key has its own rate, however many others come and go: what is forgotten was full.
func TestKeyedAgainstModel(t *testing.T) {
	rate := throttle.Rate{N: 1, Per: time.Second, Burst: 3}
	rnd := rand.New(rand.NewPCG(3, 4))
	k := throttle.NewKeyed(rate, 1<<20)
	models, kept := map[string]*model{}, map[string]*throttle.Bucket{}
	now, most := t0, 0
	times := 200_000
	if !thorough() {
		times = 60_000
	}
	for i := range times {
		key := fmt.Sprint(i/20000, "-", rnd.IntN(1000))
		m := models[key]
		if m == nil {
			m = newModel(1, 1, time.Second, 3, now)
			models[key] = m
		}
		b := k.Get(now, key)
		if kept[key] == nil {
			kept[key] = b
		}
		if rnd.IntN(2) == 0 { // one that was kept, and may have been forgotten
			b = kept[key]
		}
		n := 1 + rnd.IntN(3)
		wait, take := b.Wait(now, n), func() { b.Take(now, n) }
		if rnd.IntN(2) == 0 { // by the key
			wait, take = k.Wait(now, key, n), func() { k.Take(now, key, n+1); k.Return(now, key, 1) }
		}
		if got, want := wait == 0, m.tokens(now) >= float64(n); got != want {
			t.Fatalf("%s may take %d: %v, want %v", key, n, got, want)
		} else if got {
			take()
			m.add(now, -n)
			if got := k.Get(now, key).Level(now); got < m.tokens(now)-1e-6 || got > m.tokens(now)+1e-6 {
				t.Fatalf("%s has %v, want %v", key, got, m.tokens(now))
			}
		}
		now = now.Add(time.Duration(rnd.IntN(2_000_000)))
		most = max(most, k.Len())
	}
	if most > 2500 || most < 500 { // of 10,000 keys, 1,000 at a time
		t.Errorf("%d keys were known at a time", most)
	}
	for range 2500 {
		k.Get(now.Add(time.Hour), "one")
	}
	if got := k.Len(); got != 1 {
		t.Errorf("%d keys are known in the end", got)
	}
}

// Where there are too many, the others share a bucket, and none of them gets more than its rate when there is room again.
func TestKeyedCrowd(t *testing.T) {
	k := throttle.NewKeyed(throttle.Rate{N: 1, Per: time.Second, Burst: 4}, 2)
	k.Get(t0, "a").Take(t0, 100)
	k.Get(t0, "b").Take(t0, 2) // full again in 2 s
	k.Get(t0, "c").Take(t0, 3)
	if got := k.Get(t0, "d").Level(t0); got != 1 {
		t.Errorf("d has %v of what it shares with c", got)
	}
	k.Get(t0, "d").Take(t0, 6)
	k.Get(t0, "d").Return(t0, 4)
	if got := k.Get(t0, "c").Level(t0); got != -5 {
		t.Errorf("c has %v of what it shares with d", got)
	}
	if got := k.Len(); got != 2 {
		t.Errorf("%d keys are known", got)
	}
	if got := k.Get(t0, "b").Level(t0); got != 2 {
		t.Errorf("b has %v", got)
	}
	now := t0.Add(2500 * time.Millisecond)
	d := k.Get(now, "d") // in the place of b
	if got := d.Level(now); got != -2.5 || k.Len() != 2 {
		t.Errorf("d has %v in its own bucket, where it had -2.5 in the one that it shared; %d keys are known", got, k.Len())
	}
	if d.Full(now.Add(6400*time.Millisecond)) || !d.Full(now.Add(6500*time.Millisecond)) {
		t.Error("d is not full when it has had the time for that")
	}
	k = throttle.NewKeyed(throttle.Rate{N: 1, Per: time.Second, Burst: 4}, 1)
	k.Get(t0, "a").Take(t0, 1)
	k.Get(t0, "b").Take(t0, 2)
	now = t0.Add(time.Second)
	if got := k.Get(now, "b").Level(now); got != 3 {
		t.Errorf("b has %v", got)
	}
	now = now.Add(time.Minute)
	if got := k.Get(now, "e").Level(now); got != 4 {
		t.Errorf("e has %v, and the crowd nothing to do any more", got)
	}
}

func TestKeyedSet(t *testing.T) {
	k := throttle.NewKeyed(throttle.Rate{N: 1, Per: time.Second, Burst: 4}, 2)
	for _, key := range []string{"a", "b", "c"} {
		k.Get(t0, key).Take(t0, 6)
	}
	k.Set(t0, throttle.Rate{N: 2, Per: time.Second, Burst: 5})
	now := t0.Add(2 * time.Second)
	for _, key := range []string{"a", "b", "c"} {
		if got := k.Get(now, key).Level(now); got != 2 {
			t.Errorf("%s has %v", key, got)
		}
	}
	k.Get(now, "a").Set(now, throttle.Rate{})
	if k.Get(now, "b").Wait(now, 100) != 0 {
		t.Error("no limit is one")
	}
}

// A million keys are small, and none of them is a part of what it was cut out of.
func TestKeyedMemory(t *testing.T) {
	keys := 1_000_000
	switch {
	case !thorough():
		keys = 30_000
	case raceEnabled:
		keys = 100_000
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	k := throttle.NewKeyed(throttle.Rate{N: 1, Per: time.Minute}, keys)
	for i := range keys {
		large := fmt.Sprintf("sender-%08d@example.com%s", i, strings.Repeat(" ", 40))
		k.Get(t0, large[:27]).Take(t0, 1)
	}
	if got := k.Len(); got != keys {
		t.Fatalf("%d keys are known", got)
	}
	used := float64(heap()-before) / 1e6
	t.Logf("%.0f MB", used)
	if used > 200 {
		t.Errorf("%d keys take %.0f MB", keys, used)
	}
	// They go again, a few with each Get.
	now := t0.Add(time.Hour)
	for i := range keys / 10 {
		before := k.Len()
		k.Get(now, "one")
		if gone := before - k.Len(); gone > 40 {
			t.Fatalf("%d are forgotten by Get number %d", gone, i)
		}
	}
	if got := k.Len(); got < keys/5*4 || got > keys/20*19 {
		t.Errorf("%d keys are known after %d times", got, keys/10)
	}
	runtime.KeepAlive(k)
}
