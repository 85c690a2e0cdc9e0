package balance_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/balance"
)

// chiSquared fails the test where counts are not what drawing by weights gives. The limit is at p = 10⁻⁹ (Wilson–Hilferty).
func chiSquared(t *testing.T, counts, weights []float64) {
	t.Helper()
	var n, sum, chi float64
	df := -1.0
	for i, w := range weights {
		n += counts[i]
		sum += w
	}
	for i, w := range weights {
		if w == 0 {
			if counts[i] > 0 {
				t.Errorf("%d has no weight, and was chosen %v times", i, counts[i])
			}
			continue
		}
		e := n * w / sum
		chi += (counts[i] - e) * (counts[i] - e) / e
		df++
	}
	h := 2 / (9 * df)
	if limit := df * math.Pow(1-h+6*math.Sqrt(h), 3); chi > limit {
		t.Errorf("χ² = %.1f with %v degrees of freedom, limit %.1f", chi, df, limit)
	}
}

func ramp(n int) []float64 {
	return benchWeights(n, func(i int) float64 { return float64(1 + i%7) })
}

func TestAlias(t *testing.T) {
	for _, tt := range []struct {
		name    string
		weights []float64
		skip    []uint64
	}{
		{"plain", []float64{10, 5, 1, 1}, nil},
		{"zeros", []float64{0, 3, 0, 1}, nil},
		{"uneven", []float64{1000, 1, 1, 1, 0.5}, nil},
		{"one skipped", []float64{10, 5, 1, 1}, bits(4, 0)},
		{"most skipped", []float64{1000, 5, 3}, bits(3, 0)},
		{"many", ramp(300), nil},
		{"many, some skipped", ramp(300), bits(300, 0, 63, 64, 65, 299)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := balance.NewAlias(tt.weights)
			want := slices.Clone(tt.weights)
			for i := range want {
				if tt.skip != nil && tt.skip[i/64]>>(i%64)&1 == 1 {
					want[i] = 0
				}
			}
			counts := make([]float64, len(want))
			for range 200000 {
				counts[a.DrawAmong(tt.skip)]++
			}
			chiSquared(t, counts, want)
			if tt.skip == nil {
				clear(counts)
				for range 200000 {
					counts[a.Draw()]++
				}
				chiSquared(t, counts, want)
			}
		})
	}
	for _, w := range [][]float64{nil, {0}, {math.NaN(), math.Inf(1), -1}} {
		if a := balance.NewAlias(w); a.Draw() != -1 || a.DrawAmong(nil) != -1 {
			t.Errorf("%v: something was drawn", w)
		}
	}
	if a := balance.NewAlias([]float64{math.MaxFloat64, math.MaxFloat64, 5e-324}); a.Draw() > 1 {
		t.Error("the sum of weights has overflowed")
	}
}

// eachKind runs f with loads that are asked for, and with words, as the pool has them.
func eachKind(t *testing.T, f func(t *testing.T, words bool)) {
	t.Run("asked", func(t *testing.T) { f(t, false) })
	t.Run("words", func(t *testing.T) { f(t, true) })
}

// byLoad are the pickers that look at what is in flight.
func byLoad(words bool, weights []float64, n int, load func(int) int) (gs []*gauge, pickers map[string]func(first bool, skip []uint64) int) {
	gs, loads, latents := gauges(n, load)
	for i := range loads {
		if words {
			loads[i] = balance.Gauge{Word: &gs[i].inFlight.word, Shift: 2}
		}
	}
	return gs, map[string]func(bool, []uint64) int{
		"adaptive": balance.NewAdaptive(weights, loads).Pick,
		"least":    balance.NewLeastInFlight(weights, loads).Pick,
		"latency":  balance.NewLatency(weights, latents).Pick,
	}
}

func names(n int) []string {
	s := make([]string, n)
	for i := range s {
		s[i] = fmt.Sprintf("relay-%d.example.com", i)
	}
	return s
}

// An idle fleet is used as a Table would: the very same sequence, whatever the weights.
func TestIdleIsRoundRobin(t *testing.T) {
	t.Parallel()
	eachKind(t, testIdleIsRoundRobin)
}

func testIdleIsRoundRobin(t *testing.T, words bool) {
	r := rand.New(rand.NewPCG(21, 22))
	for range 300 {
		weights := randomWeights(r)
		_, pickers := byLoad(words, weights, len(weights), func(int) int { return 0 })
		table := balance.NewTable(weights, 0)
		p := table.Len()
		for _, name := range []string{"adaptive", "least"} {
			got := make([]int, p)
			for i := range got {
				got[i] = pickers[name](true, nil)
			}
			period := sequence(table, p)
			twice := append(period, period...) // any part of it as long as a period is the sequence from some phase
			found := false
			for s := range p {
				found = found || slices.Equal(got, twice[s:s+p])
			}
			if !found {
				t.Fatalf("%s, idle, with %v: not the table's sequence", name, weights)
			}
		}
	}
}

// Each send stays in flight for a moment that is the same for all: shares stay those of the weights, with light relays not starved.
func TestAdaptiveUnderEvenLoad(t *testing.T) { eachKind(t, testAdaptiveUnderEvenLoad) }

func testAdaptiveUnderEvenLoad(t *testing.T, words bool) {
	weights := []float64{10, 5, 1, 1}
	gs, pickers := byLoad(words, weights, 4, func(int) int { return 0 })
	for _, inFlight := range []int{1, 3, 17, 68} {
		var flying []int
		counts := make([]float64, 4)
		for range 17 * 400 {
			i := pickers["adaptive"](true, nil)
			gs[i].inFlight.Add(1)
			counts[i]++
			if flying = append(flying, i); len(flying) > inFlight {
				gs[flying[0]].inFlight.Add(-1)
				flying = flying[1:]
			}
		}
		for _, i := range flying {
			gs[i].inFlight.Add(-1)
		}
		for i, w := range weights {
			if got, want := 100*counts[i]/(17*400), 100*w/17; math.Abs(got-want) > 1.5 {
				t.Errorf("%d in flight: relay %d has %.1f %%, want %.1f", inFlight, i, got, want)
			}
		}
	}
}

func TestPicksByLoad(t *testing.T) { eachKind(t, testPicksByLoad) }

func testPicksByLoad(t *testing.T, words bool) {
	for _, tt := range []struct {
		picker  string
		weights []float64
		loads   []int
		skip    []uint64
		want    []int // any of them
	}{
		{"least", []float64{1, 1, 1}, []int{3, 1, 2}, nil, []int{1}},
		{"least", []float64{6, 1, 2}, []int{3, 1, 2}, nil, []int{0}},
		{"least", []float64{1, 1, 1}, []int{3, 1, 2}, bits(3, 1), []int{2}},
		{"least", []float64{1, 0, 1}, []int{3, 0, 2}, nil, []int{2}},
		{"least", []float64{1, 1, 1}, []int{3, 1, 1}, nil, []int{1, 2}},
		{"least", []float64{1, 1, 1}, []int{1, 1, 1}, bits(3, 0), []int{1, 2}},
		{"adaptive", []float64{1, 1}, []int{1, 0}, nil, []int{0, 1}}, // no strict improvement: 1 > 1 it isn't
		{"adaptive", []float64{1, 1}, []int{2, 1}, nil, []int{0, 1}}, // nor 2 > 2
		{"adaptive", []float64{1, 1}, []int{2, 0}, nil, []int{1}},
		{"adaptive", []float64{1, 1}, []int{2, 0}, bits(2, 1), []int{0}},
		{"adaptive", []float64{1, 1, 1}, []int{5, 1, 5}, nil, []int{1}},
		{"adaptive", []float64{1, 0, 1}, []int{5, 0, 2}, nil, []int{2}},
		{"adaptive", []float64{10, 1}, []int{9, 0}, nil, []int{0, 1}}, // 0.9 > 1/1 it isn't: whose turn it is
		{"adaptive", []float64{10, 1}, []int{0, 1}, nil, []int{0}},    // 1 > 1/10
		{"latency", []float64{1, 1}, []int{1, 0}, nil, []int{1}},
		{"latency", []float64{1, 1}, []int{0, 0}, bits(2, 0), []int{1}},
		{"latency", []float64{0, 1}, []int{0, 50}, nil, []int{1}},
	} {
		_, pickers := byLoad(words, tt.weights, len(tt.weights), func(i int) int { return tt.loads[i] })
		seen := map[int]bool{}
		for range 300 {
			i := pickers[tt.picker](true, tt.skip)
			if !slices.Contains(tt.want, i) {
				t.Errorf("%s of %v with %v in flight, without %b: %d, want one of %v", tt.picker, tt.weights, tt.loads, tt.skip, i, tt.want)
				break
			}
			seen[i] = true
		}
		if len(seen) < len(tt.want) {
			t.Errorf("%s of %v with %v in flight, without %b: never all of %v", tt.picker, tt.weights, tt.loads, tt.skip, tt.want)
		}
	}
}

// Equals are drawn by weight, not by the order in which they are configured.
func TestEqualsByWeight(t *testing.T) { eachKind(t, testEqualsByWeight) }

func testEqualsByWeight(t *testing.T, words bool) {
	weights := []float64{1, 1, 2, 4}
	_, pickers := byLoad(words, weights, 4, func(i int) int { return []int{1000, 10, 20, 40}[i] }) // 10 for each unit of weight, but for the first
	counts := make([]float64, 4)
	for range 50000 {
		if i := pickers["least"](false, bits(4, 0)); i >= 0 {
			counts[i]++
		}
	}
	chiSquared(t, counts, []float64{0, 1, 2, 4})
	// When it is the first's turn the others have equally less, and the draw decides.
	even := []float64{1, 1, 1, 1}
	_, pickers = byLoad(words, even, 4, func(i int) int { return []int{1000, 1, 1, 1}[i] })
	for _, name := range []string{"least", "adaptive"} {
		clear(counts)
		for range 40000 {
			counts[pickers[name](true, nil)]++
		}
		for i := 1; i < 4; i++ {
			if counts[i] < 12500 || counts[i] > 14200 {
				t.Errorf("%s: %v", name, counts)
			}
		}
	}
	gs, _, relays := gauges(3, func(int) int { return 0 })
	for _, g := range gs {
		g.latency.Store(0)
	}
	p := balance.NewLatency(even[:3], relays)
	clear(counts)
	for range 40000 {
		counts[p.Pick(true, nil)]++
	}
	chiSquared(t, counts[:3], even[:3])
}

func TestLatencyPick(t *testing.T) {
	for _, tt := range []struct {
		weights, latency []float64
		loads            []int
		want             int
	}{
		{[]float64{1, 1, 1}, []float64{30, 10, 20}, []int{0, 0, 0}, 1},
		{[]float64{1, 1, 1}, []float64{30, 10, 20}, []int{0, 3, 0}, 2},
		{[]float64{4, 1, 1}, []float64{30, 10, 20}, []int{0, 0, 0}, 0},
		{[]float64{1, 1, 1}, []float64{30, 10, 0}, []int{0, 1, 0}, 2}, // not known: as the fastest
		{[]float64{1, 1, 1}, []float64{30, 10, 0}, []int{0, 0, 1}, 1},
		{[]float64{1, 1, 1}, []float64{0, 0, 0}, []int{2, 1, 2}, 1},
	} {
		gs, _, relays := gauges(3, func(i int) int { return tt.loads[i] })
		for i, g := range gs {
			g.latency.Store(int64(tt.latency[i]) * int64(time.Millisecond))
		}
		if got := balance.NewLatency(tt.weights, relays).Pick(true, nil); got != tt.want {
			t.Errorf("weights %v, latency %v, %v in flight: %d, want %d", tt.weights, tt.latency, tt.loads, got, tt.want)
		}
	}
}

// Two choices with replacement would give a slow one a turn each time that it comes up against itself.
func TestTwoChoicesWithoutReplacement(t *testing.T) {
	const n = 40
	weights := slices.Repeat([]float64{1}, n)
	gs, _, relays := gauges(n, func(int) int { return 0 })
	gs[7].latency.Store(int64(time.Minute))
	p := balance.NewLatency(weights, relays)
	for range 50000 {
		if p.Pick(true, nil) == 7 {
			t.Fatal("the slow one was chosen")
		}
	}
	all := make([]int, 0, n)
	for i := range n {
		if i != 7 && i != 8 {
			all = append(all, i)
		}
	}
	for range 100 {
		if got := p.Pick(true, bits(n, all...)); got != 8 {
			t.Fatalf("of the slow one and another: %d", got)
		}
	}
	if got := p.Pick(true, bits(n, append(all, 8)...)); got != 7 {
		t.Errorf("of the slow one alone: %d", got)
	}
}

// A failover is no turn: it must not use up another message's place in the sequence.
func TestSecondAttemptsTakeNoTurn(t *testing.T) { eachKind(t, testSecondAttemptsTakeNoTurn) }

func testSecondAttemptsTakeNoTurn(t *testing.T, words bool) {
	weights := []float64{3, 2, 1}
	_, pickers := byLoad(words, weights, 3, func(int) int { return 0 })
	for _, name := range []string{"adaptive", "least"} {
		counts := make([]float64, 3)
		for range 600 {
			counts[pickers[name](true, nil)]++
			pickers[name](false, bits(3, 0))
		}
		if !slices.Equal(counts, []float64{300, 200, 100}) {
			t.Errorf("%s: %v", name, counts)
		}
	}
}

// Nobody chooses what is skipped, or has no weight; where that is everybody the answer is -1.
func TestNeverSkipped(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(31, 32))
	for range 400 {
		n := 1 + r.IntN(8)
		if r.IntN(4) == 0 {
			n = 30 + r.IntN(150)
		}
		weights, skip := make([]float64, n), make([]uint64, (n+63)/64)
		any := false
		often := []int{0, 3, 3, 20}[r.IntN(4)]
		for i := range weights {
			weights[i] = float64(r.IntN(4))
			if often > 0 && r.IntN(often) == 0 {
				skip[i/64] |= 1 << (i % 64)
			} else if weights[i] > 0 {
				any = true
			}
		}
		gs, loads, latents := gauges(n, func(int) int { return r.IntN(6) })
		if r.IntN(2) == 0 {
			for i := range loads {
				loads[i] = balance.Gauge{Word: &gs[i].inFlight.word, Shift: 2}
			}
		}
		hash, bounded := balance.NewHash(weights, names(n), loads, 0), balance.NewHash(weights, names(n), loads, 1.25)
		alias := balance.NewAlias(weights)
		for name, pick := range map[string]func() int{
			"alias":    func() int { return alias.DrawAmong(skip) },
			"adaptive": func() int { return balance.NewAdaptive(weights, loads).Pick(true, skip) },
			"least":    func() int { return balance.NewLeastInFlight(weights, loads).Pick(r.IntN(2) == 0, skip) },
			"latency":  func() int { return balance.NewLatency(weights, latents).Pick(true, skip) },
			"hash":     func() int { return hash.Pick(fmt.Sprint(r.Uint32()), skip) },
			"bounded":  func() int { return bounded.Pick(fmt.Sprint(r.Uint32()), skip) },
		} {
			for range 5 {
				i := pick()
				if i == -1 && !any {
					continue
				}
				if i < 0 || i >= n || weights[i] == 0 || skip[i/64]>>(i%64)&1 == 1 {
					t.Fatalf("%s of %v without %b: %d", name, weights, skip, i)
				}
			}
		}
	}
}

func TestHashKeepsSurvivors(t *testing.T) {
	for _, n := range []int{2, 5, 64, 65, 200} {
		weights, all := ramp(n), names(n)
		_, loads, _ := gauges(n, func(int) int { return 0 })
		before := balance.NewHash(weights, all, loads, 0)
		gone := n / 2
		without := func(s []string) []string { return slices.Delete(slices.Clone(s), gone, gone+1) }
		small := without(all)
		after := balance.NewHash(slices.Delete(slices.Clone(weights), gone, gone+1), small, loads[:n-1], 0)
		if (n > 64) != (n-1 > 64) { // keys stand for slots on one side only
			after = before
		}
		moved := 0
		for k := range 3000 {
			key := fmt.Sprintf("customer-%d", k)
			was := before.Pick(key, nil)
			now := ""
			if after == before {
				now = all[before.Pick(key, bits(n, gone))]
			} else {
				now = small[after.Pick(key, nil)]
				if masked := all[before.Pick(key, bits(n, gone))]; masked != now {
					t.Fatalf("%d relays: without %s, %s is for %s; skipped, for %s", n, all[gone], key, now, masked)
				}
			}
			if was == gone {
				moved++
				if now == all[gone] {
					t.Fatalf("%d relays: %s is for one that is gone", n, key)
				}
			} else if now != all[was] {
				t.Fatalf("%d relays: %s moved from %s to %s", n, key, all[was], now)
			}
		}
		if moved == 0 && n < 65 {
			t.Errorf("%d relays: no key was the lost one's", n)
		}
	}
}

// A relay that is given more weight gains keys, and nobody else does.
func TestHashMoreWeight(t *testing.T) {
	n := 10
	weights, all := ramp(n), names(n)
	_, loads, _ := gauges(n, func(int) int { return 0 })
	before := balance.NewHash(weights, all, loads, 0)
	weights[3] *= 2
	after := balance.NewHash(weights, all, loads, 0)
	gained := 0
	for k := range 5000 {
		key := fmt.Sprint("k", k)
		if a, b := before.Pick(key, nil), after.Pick(key, nil); a != b {
			if b != 3 {
				t.Fatalf("%s went from %d to %d", key, a, b)
			}
			gained++
		}
	}
	if gained == 0 {
		t.Error("the heavier one gained nothing")
	}
}

func TestHashShares(t *testing.T) {
	t.Parallel()
	most := 300_000
	if !thorough() {
		most = 60_000
	}
	keys := make([]string, most*2/3)
	for k := range keys {
		keys[k] = fmt.Sprintf("tenant-%d@example.com", k)
	}
	for _, weights := range [][]float64{{1, 1}, {10, 5, 1, 1}, ramp(16), ramp(64), slices.Repeat([]float64{1}, 7)} {
		_, loads, _ := gauges(len(weights), func(int) int { return 0 })
		h := balance.NewHash(weights, names(len(weights)), loads, 0)
		counts := make([]float64, len(weights))
		for _, key := range keys {
			counts[h.Pick(key, nil)]++
		}
		chiSquared(t, counts, weights)
	}
	// Through slots, a relay's share is that of the slots which are its own: so many as it should have, give or take the root of that.
	weights := ramp(500)
	_, loads, _ := gauges(500, func(int) int { return 0 })
	h := balance.NewHash(weights, names(500), loads, 0)
	counts, sum := make([]float64, 500), 0.0
	for k := range most {
		i := h.Pick(fmt.Sprint("k", k), nil)
		counts[i]++
	}
	for _, w := range weights {
		sum += w
	}
	for i, w := range weights {
		slots := w / sum * (1 << 16)
		if got, want := counts[i]/float64(most)*(1<<16), slots; math.Abs(got-want) > 6.5*math.Sqrt(want*(1+(1<<16)/float64(most)))+1 {
			t.Errorf("relay %d of weight %v has %.1f slots' worth of keys, want %.1f", i, w, got, want)
		}
	}
}

// The answers of this version are those of all: a process that is updated must not move anybody.
func TestHashIsForEver(t *testing.T) {
	_, loads, _ := gauges(100, func(int) int { return 0 })
	for _, tt := range []struct {
		n    int
		want []int
	}{{4, goldenHash4}, {100, goldenHash100}} {
		h := balance.NewHash(ramp(tt.n), names(tt.n), loads[:tt.n], 0)
		var got []int
		for k := range 12 {
			got = append(got, h.Pick(fmt.Sprintf("tenant-%d", k), nil))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%d relays: %v, want %v", tt.n, got, tt.want)
		}
	}
	for s, want := range goldenSums {
		if got := balance.Sum(s); got != want {
			t.Errorf("Sum(%q) = %#x, want %#x", s, got, want)
		}
	}
}

// Bits of the hash are even, for keys that differ little.
func TestSumSpreads(t *testing.T) {
	const n = 1 << 16
	var ones [64]int
	seen := make(map[uint64]bool, n)
	for i := range n {
		h := balance.Sum(fmt.Sprintf("%d@example.com", i))
		if seen[h] {
			t.Fatalf("%d collides", i)
		}
		seen[h] = true
		for b := range ones {
			ones[b] += int(h >> b & 1)
		}
	}
	for b, c := range ones {
		if math.Abs(float64(c)-n/2) > 6.5*math.Sqrt(n)/2 {
			t.Errorf("bit %d is set in %d of %d", b, c, n)
		}
	}
	if balance.Sum("a") == balance.Sum("a\x00") || balance.Sum("") == balance.Sum("\x00") || balance.Sum("12345678") == balance.Sum("12345678\x00") {
		t.Error("a NUL at the end makes no difference")
	}
}

// With a bound nobody has more in flight than that many times its share, rounded up, and keys stay where they can.
func TestBoundedLoad(t *testing.T) {
	for _, bound := range []float64{1.25, 2} {
		weights := []float64{4, 2, 1, 1}
		gs, loads, _ := gauges(4, func(int) int { return 0 })
		h, free := balance.NewHash(weights, names(4), loads, bound), balance.NewHash(weights, names(4), loads, 0)
		stayed := 0
		for sends := 1; sends <= 400; sends++ {
			key := "the one and only"
			if sends%4 == 0 {
				key = fmt.Sprint("k", sends)
			}
			i := h.Pick(key, nil)
			if i == free.Pick(key, nil) {
				stayed++
			}
			if q, most := gs[i].inFlight.Add(1), int64(math.Ceil(bound*float64(sends)*weights[i]/8-1e-9)); q > most {
				t.Fatalf("bound %v: relay %d has %d of %d in flight, at most %d", bound, i, q, sends, most)
			}
		}
		if stayed < 40 {
			t.Errorf("bound %v: only %d of 400 stayed at home", bound, stayed)
		}
		// Where only those that are over it are left, it is the key's own that takes it.
		if i := h.Pick("x", bits(4, 1, 2, 3)); i != 0 {
			t.Errorf("the only one that is left: %d", i)
		}
	}
}

// The message that is to be sent counts towards the load that is shared out: of two relays, with a bound of 2, one may take all of two messages.
func TestBoundIsNotTooLow(t *testing.T) {
	gs, loads, _ := gauges(2, func(int) int { return 0 })
	h := balance.NewHash([]float64{1, 1}, names(2), loads, 2)
	home := h.Pick("x", nil)
	gs[home].inFlight.Store(1)
	if got := h.Pick("x", nil); got != home {
		t.Errorf("with one in flight, of two that it may have: %d, want %d", got, home)
	}
	gs[home].inFlight.Store(3) // of four that would be in flight the bound allows four
	if got := h.Pick("x", nil); got != home {
		t.Errorf("with three in flight, of four: %d, want %d", got, home)
	}
	tight := balance.NewHash([]float64{1, 1}, names(2), loads, 1.25) // three
	if got := tight.Pick("x", nil); got == home {
		t.Errorf("with three in flight, of three: %d", got)
	}
}

func TestPickAllocations(t *testing.T) {
	for _, n := range []int{2, 16, 65, 1000} {
		weights, skip := ramp(n), bits(n, 0)
		load := func(i int) int { return 40 + i*5%13 }
		_, loads, latents := gauges(n, load)
		hash, bounded := balance.NewHash(weights, names(n), loads, 0), balance.NewHash(weights, names(n), loads, 1.25)
		alias, adaptive := balance.NewAlias(weights), balance.NewAdaptive(weights, loads)
		least, latency := balance.NewLeastInFlight(weights, loads), balance.NewLatency(weights, latents)
		adaptiveOfWords, leastOfWords := balance.NewAdaptive(weights, words(n, load)), balance.NewLeastInFlight(weights, words(n, load))
		if a := testing.AllocsPerRun(100, func() {
			alias.DrawAmong(skip)
			adaptive.Pick(true, skip)
			least.Pick(true, skip)
			adaptiveOfWords.Pick(true, nil)
			leastOfWords.Pick(true, nil)
			latency.Pick(true, skip)
			hash.Pick("a key of some length", skip)
			bounded.Pick("a key of some length", skip)
		}); a != 0 {
			t.Errorf("%d relays: %v allocations", n, a)
		}
	}
}

var (
	goldenHash4   = []int{2, 1, 2, 2, 3, 2, 3, 3, 2, 1, 3, 1}
	goldenHash100 = []int{40, 20, 49, 48, 4, 94, 19, 80, 27, 75, 29, 5}
	goldenSums    = map[string]uint64{
		"": 0xffc4465b6d658d32, "a": 0x34751e0657a6fc91, "12345678": 0xe8c3f7c9458d4c4f, "tenant-7@example.com": 0x5375842792ccdae8,
	}
)

// Loads are the same whether they are read from a word or asked for, and however many words of skip there are.
func TestGauges(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	for _, n := range []int{1, 3, 32, 64, 65, 200} {
		weights, in := make([]float64, n), make([]int, n)
		for i := range n {
			weights[i], in[i] = float64(r.IntN(4)), 5+r.IntN(40)
		}
		weights[0] = 1
		skip := bits(n)
		for range n / 2 {
			i := 1 + r.IntN(n)
			skip[i%n>>6] |= 1 << (i % n & 63)
		}
		skip[0] &^= 1
		load := func(i int) int { return in[i] }
		_, asked, _ := gauges(n, load)
		mixed := slices.Clone(asked)
		mixed[0] = words(n, load)[0]
		for kind, loads := range [][]balance.Load{words(n, load), asked, mixed} {
			for i, l := range loads {
				if l.InFlight() != in[i] {
					t.Fatalf("%d in flight, want %d", l.InFlight(), in[i])
				}
			}
			p := balance.NewLeastInFlight(weights, loads)
			least := math.Inf(1)
			for i, w := range weights {
				if w > 0 && skip[i>>6]>>(i&63)&1 == 0 {
					least = min(least, float64(in[i])/w)
				}
			}
			for range 50 {
				if i := p.Pick(true, skip); i < 0 || skip[i>>6]>>(i&63)&1 != 0 || math.Abs(float64(in[i])/weights[i]-least) > 1e-9 {
					t.Fatalf("kind %d of %d relays: %d, with a load of %v for its weight of %v; the least is %v", kind, n, i, in[i], weights[i], least)
				}
			}
		}
	}
}
