package balance_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/smtplb/smtplb/internal/balance"
)

func sequence(t *balance.Table, n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = t.At(uint64(i))
	}
	return s
}

func TestSmallTables(t *testing.T) {
	for _, tt := range []struct {
		weights []float64
		max     int
		want    []int // one period
	}{
		{nil, 0, nil},
		{[]float64{0, -1, math.NaN(), math.Inf(1)}, 0, nil},
		{[]float64{0.3}, 0, []int{0}},
		{[]float64{1, 1, 1, 1}, 0, []int{0, 1, 2, 3}},
		{[]float64{7e300, 7e300}, 0, []int{0, 1}},
		{[]float64{5e-324, 5e-324, 5e-324}, 0, []int{0, 1, 2}},
		{[]float64{math.MaxFloat64, math.MaxFloat64, math.MaxFloat64 / 2}, 0, []int{0, 1, 2, 0, 1}},
		{[]float64{2, 1}, 0, []int{0, 1, 0}},
		{[]float64{20, 10}, 0, []int{0, 1, 0}},
		{[]float64{0.2, 0.1}, 0, []int{0, 1, 0}},
		{[]float64{0, 2, math.NaN(), 1, -3}, 0, []int{1, 3, 1}},
		{[]float64{10, 5, 1, 1}, 0, []int{0, 1, 0, 0, 1, 0, 2, 0, 1, 0, 0, 1, 0, 3, 0, 1, 0}},
		{[]float64{1, 1, 1}, 2, []int{0, 1, 2}}, // a slot for each, whatever the bound
		{[]float64{5, 3, 1}, 3, []int{0, 1, 2}},
		{[]float64{7, 7, 6}, 4, []int{0, 1, 2, 0}}, // rounding each leaves a slot over
		{[]float64{6, 7, 7}, 4, []int{1, 0, 2, 1}},
		{[]float64{1000, 1}, 8, []int{0, 0, 0, 0, 1, 0, 0, 0}},
	} {
		table := balance.NewTable(tt.weights, tt.max)
		if diff := cmp.Diff(tt.want, sequence(table, table.Len()), cmp.Transformer("nil", func(s []int) []int { return append([]int{}, s...) })); diff != "" {
			t.Errorf("%v: %s", tt.weights, diff)
		}
		if len(tt.want) == 0 && (table.Next() != -1 || table.At(5) != -1 || table.Share(0) != 0) {
			t.Errorf("%v: an empty table chooses something", tt.weights)
		}
	}
}

// randomWeights returns whole numbers with a sum of at most 8192, of one of several shapes.
func randomWeights(r *rand.Rand) []float64 {
	n := 2 + r.IntN(7)
	if r.IntN(8) == 0 {
		n = 2 + r.IntN(200)
	}
	w := make([]float64, n)
	shape := r.IntN(4)
	most := []int{8192, 1000, 1000, 300, 300, 300}[r.IntN(6)]/n + 1
	if n*most > 8192 {
		most--
	}
	for i := range w {
		switch shape {
		case 0:
			w[i] = float64(1 + r.IntN(min(most, 20)))
		case 1:
			w[i] = float64(1 + r.IntN(most))
		case 2:
			w[i] = math.Floor(math.Pow(float64(most), r.Float64()))
		default:
			w[i] = 1
			if i == 0 {
				w[i] = float64(1 + r.IntN(most))
			}
		}
	}
	return w
}

// The promise of the table: no prefix is further from the ideal than 1 − 1/(2n−2). In whole numbers, so without any tolerance.
func TestPrefixAndWindowBounds(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	var worst float64
	tables := 5000
	if !thorough() {
		tables = 1000
	}
	for range tables {
		weights := randomWeights(r)
		n := len(weights)
		sum := 0
		for _, w := range weights {
			sum += int(w)
		}
		table := balance.NewTable(weights, 0)
		p := table.Len()
		if sum%p != 0 {
			t.Fatalf("%v: period %d of %d", weights, p, sum)
		}
		count := make([]int, n)
		high, low := make([]int, n), make([]int, n) // of sum·(count − ideal)
		check := func(j, at int) {
			off := count[j]*sum - at*int(weights[j])
			if (2*n-2)*max(off, -off) > (2*n-3)*sum {
				t.Fatalf("%v: %d chosen %d times out of %d", weights, j, count[j], at)
			}
			worst = max(worst, math.Abs(float64(off))/float64(sum)/(1-1/float64(2*n-2)))
			high[j], low[j] = max(high[j], off), min(low[j], off)
		}
		for at := range 2 * p { // an index is furthest below its share just before it is chosen, furthest above just after
			j := table.At(uint64(at))
			check(j, at)
			count[j]++
			check(j, at+1)
		}
		for j := range count {
			if count[j]*sum != 2*p*int(weights[j]) {
				t.Fatalf("%v: %d has %d of %d slots", weights, j, count[j], 2*p)
			}
			if got, want := table.Share(j), weights[j]/float64(sum); math.Abs(got-want) > 1e-12 {
				t.Fatalf("%v: share %v, want %v", weights, got, want)
			}
			// Any window is the difference of two prefixes.
			if high[j]-low[j] > 2*sum {
				t.Fatalf("%v: a window is off by %v", weights, float64(high[j]-low[j])/float64(sum))
			}
		}
	}
	if worst < 0.99 {
		t.Errorf("the worst prefix was at %.3f of the bound: too tame a test", worst)
	}
}

// Windows of every length, counted one by one, over several periods and from any phase.
func TestWindows(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		weights := make([]float64, 2+r.IntN(4))
		var sum float64
		for i := range weights {
			weights[i] = float64(1 + r.IntN(8))
			sum += weights[i]
		}
		table := balance.NewTable(weights, 0)
		n := float64(len(weights))
		for start := range table.Len() {
			count := make([]float64, len(weights))
			for length := 1; length <= 2*table.Len(); length++ {
				count[table.At(uint64(start+length-1))]++
				for i, w := range weights {
					if off := math.Abs(count[i] - float64(length)*w/sum); off > 2*(1-1/(2*n-2))+1e-9 {
						t.Fatalf("%v: %d turns from %d on: %v for %d", weights, length, start, count[i], i)
					}
				}
			}
		}
	}
}

// The sequence is that of the definition, computed in the plainest way.
func TestAgainstTheDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 300 {
		weights := make([]float64, 2+r.IntN(12))
		sum := 0
		for i := range weights {
			weights[i] = float64(1 + r.IntN(30))
			sum += int(weights[i])
		}
		table := balance.NewTable(weights, 0)
		x := make([]int, len(weights))
		d := 2*len(weights) - 2
		for step := 1; step <= sum; step++ {
			best, bestRest := -1, 0 // rest: (1 − 1/d − t·p + x)/p, times d·k/sum
			for i, w := range weights {
				k := int(w)
				if d*(step*k-x[i]*sum) < sum {
					continue
				}
				rest := d*sum - sum - d*step*k + d*x[i]*sum
				if best < 0 || rest*int(weights[best]) < bestRest*k {
					best, bestRest = i, rest
				}
			}
			x[best]++
			if got := table.At(uint64(step - 1)); got != best {
				t.Fatalf("%v: %d at step %d, want %d", weights, got, step, best)
			}
		}
	}
}

func TestInexactWeights(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(7, 8))
	for _, n := range []int{2, 3, 4, 8, 32, 100, 1000} {
		for range 1 + 50/n {
			weights := make([]float64, n)
			var sum float64
			for i := range weights {
				weights[i] = 0.5 + r.Float64()
				sum += weights[i]
			}
			checkInexact(t, weights, sum, 0, 1)
		}
	}
	// For few relays a good period is found: much better than the worst case of a slot.
	var worst float64
	for range 200 {
		weights := []float64{r.Float64(), r.Float64(), r.Float64()}
		table := balance.NewTable(weights, 0)
		for i, w := range weights {
			worst = max(worst, math.Abs(table.Share(i)-w/(weights[0]+weights[1]+weights[2])))
		}
	}
	if worst > 0.25/8192 {
		t.Errorf("three weights are off by %v", worst)
	}

	checkInexact(t, []float64{8191, 1}, 8192, 0, 1e-9) // just exact
	checkInexact(t, []float64{8192, 1}, 8193, 0, 1)
	checkInexact(t, []float64{10000, 1}, 10001, 0, 1)
	checkInexact(t, []float64{1e300, 1, 1e-300}, 1e300, 0, 2+1e-9)
	checkInexact(t, []float64{math.Pi, math.E}, math.Pi+math.E, 10, 1)
	checkInexact(t, []float64{math.Pi, math.E, 1, math.Sqrt2}, math.Pi+math.E+1+math.Sqrt2, 6, 1)
	big := make([]float64, 1000) // a slot each for 999 relays that deserve none
	for i := range big {
		big[i] = 1
	}
	big[7] = 1e9
	checkInexact(t, big, 1e9, 0, 1000)
	table := balance.NewTable(big, 0)
	if got := table.Share(7) * float64(table.Len()); got != float64(table.Len()-999) {
		t.Errorf("%v slots of %d", got, table.Len())
	}
	// Those that pay for the small ones pay in proportion.
	table = balance.NewTable([]float64{6e9, 3e9, 1, 1, 1, 1, 1, 1}, 96)
	if a, b := table.Share(0), table.Share(1); math.Abs(a/b-2) > 1e-9 || table.Len() != 96 {
		t.Errorf("shares %v and %v in %d slots", a, b, table.Len())
	}
}

// No other period is better.
func TestBestPeriod(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	for range 500 {
		shares := make([]float64, 2+r.IntN(4))
		var sum float64
		for i := range shares {
			shares[i] = 0.01 + r.Float64()*r.Float64()
			sum += shares[i]
		}
		least := 1.0
		for i := range shares {
			shares[i] /= sum
			least = min(least, shares[i])
		}
		most := int(1/least) + 1 + r.IntN(60)
		table := balance.NewTable(shares, most)
		var got float64
		for i, s := range shares {
			if table.Share(i) == 0 {
				t.Fatalf("%v in %d slots: none for %d", shares, table.Len(), i)
			}
			got = max(got, math.Abs(table.Share(i)-s))
		}
		best, bestPeriod := math.Inf(1), 0
		for p := len(shares) + 1; p <= most; p++ {
			left, e := p, 0.0
			for _, s := range shares {
				k := max(1, int(math.Round(s*float64(p))))
				left -= k
				e = max(e, math.Abs(float64(k)/float64(p)-s))
			}
			if left == 0 && e < best {
				best, bestPeriod = e, p
			}
		}
		if got > best+1e-9 {
			t.Fatalf("%v: off by %v in %d slots, %v in %d would do", shares, got, table.Len(), best, bestPeriod)
		}
	}
}

// checkInexact checks shares to within so many slots, and the bound of the prefixes for the table's own shares.
func checkInexact(t *testing.T, weights []float64, sum float64, most int, slots float64) {
	t.Helper()
	table := balance.NewTable(weights, most)
	p := table.Len()
	if limit := max(most, len(weights)); most > 0 && p > limit || p > balance.MaxSlots {
		t.Fatalf("%d slots for %d weights", p, len(weights))
	}
	n := len(weights)
	k := make([]int, n)
	for i := range p {
		k[table.At(uint64(i))]++
	}
	for i, w := range weights {
		if k[i] < 1 {
			t.Fatalf("%d of %d has no slot", i, n)
		}
		if off := math.Abs(float64(k[i]) - w/sum*float64(p)); off >= slots {
			t.Fatalf("%d of %d weights has %d of %d slots, off by %v", i, n, k[i], p, off)
		}
	}
	if n < 2 {
		return
	}
	x := make([]int, n)
	for i := range p {
		j := table.At(uint64(i))
		x[j]++
		for _, j := range []int{j, (i * 7) % n} { // a change, and a sample
			if off := x[j]*p - (i+1)*k[j]; (2*n-2)*max(off, -off) > (2*n-3)*p {
				t.Fatalf("%d weights: %d chosen %d times out of %d", n, j, x[j], i+1)
			}
		}
	}
}

func TestNext(t *testing.T) {
	weights := []float64{10, 5, 1, 1}
	starts := map[int]int{}
	for range 500 {
		table := balance.NewTable(weights, 0)
		p := table.Len()
		var got []int
		for range 3 * p {
			got = append(got, table.Next())
		}
		phase := -1
		for s := range p {
			if slices.Equal(got, sequenceFrom(table, s, 3*p)) {
				phase = s
			}
		}
		if phase < 0 {
			t.Fatalf("%v is no part of the sequence", got)
		}
		starts[phase]++
	}
	if len(starts) != 17 {
		t.Errorf("500 tables started in only %d of 17 places", len(starts))
	}
}

func sequenceFrom(table *balance.Table, start, n int) []int {
	return sequence(table, start+n)[start:]
}

// Whoever calls, each turn is given once.
func TestNextConcurrently(t *testing.T) {
	table := balance.NewTable([]float64{3, 2, 1}, 0)
	var mu sync.Mutex
	count := make([]int, 3)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			mine := make([]int, 3)
			for range 10000 {
				mine[table.Next()]++
			}
			mu.Lock()
			defer mu.Unlock()
			for i, n := range mine {
				count[i] += n
			}
		})
	}
	wg.Wait()
	if !slices.Equal(count, []int{30000, 20000, 10000}) {
		t.Error(count)
	}
}

func bits(n int, set ...int) []uint64 {
	b := make([]uint64, (n+63)/64)
	for _, i := range set {
		b[i/64] |= 1 << (i % 64)
	}
	return b
}

func TestDrawAmongNobody(t *testing.T) {
	for _, tt := range []struct {
		weights []float64
		skip    []uint64
		want    int
	}{
		{nil, nil, -1},
		{[]float64{1, 2}, bits(2, 0, 1), -1},
		{[]float64{1, 2}, bits(2, 0), 1},
		{[]float64{1, 2}, bits(2, 1), 0},
		{[]float64{0, 0}, nil, -1},
		{[]float64{math.NaN(), math.Inf(1), 0, -1, 3}, nil, 4},
		{[]float64{math.NaN(), math.Inf(1), 0, -1}, nil, -1},
		{make([]float64, 100), bits(100), -1},
	} {
		for range 100 {
			if got := balance.DrawAmong(tt.weights, tt.skip); got != tt.want {
				t.Fatalf("%v without %v: %d, want %d", tt.weights, tt.skip, got, tt.want)
			}
		}
	}
}

// χ² against the weights. The limits are at p = 10⁻⁹ (Wilson–Hilferty), so that a sound draw fails about once in 10⁸ runs.
func TestDrawAmongChiSquared(t *testing.T) {
	t.Parallel()
	draws := 200000
	if !thorough() {
		draws = 40000
	}
	many := make([]float64, 200)
	for i := range many {
		many[i] = float64(1 + i%7)
	}
	for _, tt := range []struct {
		name    string
		weights []float64
		skip    []uint64
		words   int
	}{
		{"plain", []float64{10, 5, 1, 1}, nil, 0},
		{"one skipped", []float64{10, 5, 1, 1}, bits(4, 0), 1},
		{"two skipped", []float64{10, 5, 1, 1}, bits(4, 1, 3), 1},
		{"tiny", []float64{1e-9, 3e-9, 2e-9}, nil, 0},
		{"several words", many, bits(200, 0, 1, 2, 63, 64, 65, 127, 128, 199), 4},
		{"a short bit set", many, bits(64, 3, 63), 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			count := make([]float64, len(tt.weights))
			for range draws {
				count[balance.DrawAmong(tt.weights, tt.skip)]++
			}
			var sum float64
			skipped := func(i int) bool { return i/64 < len(tt.skip) && tt.skip[i/64]>>(i%64)&1 == 1 }
			for i, w := range tt.weights {
				if !skipped(i) {
					sum += w
				}
			}
			var chi float64
			df := -1.0
			for i, w := range tt.weights {
				if skipped(i) {
					if count[i] > 0 {
						t.Errorf("%d was drawn although skipped", i)
					}
					continue
				}
				e := float64(draws) * w / sum
				chi += (count[i] - e) * (count[i] - e) / e
				df++
			}
			h := 2 / (9 * df)
			if limit := df * math.Pow(1-h+6*math.Sqrt(h), 3); chi > limit {
				t.Errorf("χ² = %.1f with %v degrees of freedom, limit %.1f", chi, df, limit)
			}
		})
	}
}

func TestAllocations(t *testing.T) {
	table := balance.NewTable([]float64{10, 5, 1, 1}, 0)
	if n := testing.AllocsPerRun(1000, func() { table.Next(); table.At(12345) }); n != 0 {
		t.Errorf("Next and At: %v allocations", n)
	}
	weights, skip := make([]float64, 1000), make([]uint64, 16)
	for i := range weights {
		weights[i] = 1
	}
	if n := testing.AllocsPerRun(1000, func() { balance.DrawAmong(weights, skip) }); n != 0 {
		t.Errorf("DrawAmong: %v allocations", n)
	}
}

func ExampleTable() {
	table := balance.NewTable([]float64{5, 3, 1}, 0)
	for i := range uint64(table.Len()) {
		fmt.Print(table.At(i), " ")
	}
	// Output: 0 1 0 1 0 0 2 1 0
}

func benchWeights(n int, f func(i int) float64) []float64 {
	w := make([]float64, n)
	for i := range w {
		w[i] = f(i)
	}
	return w
}

func BenchmarkNext(b *testing.B) {
	for _, n := range []int{2, 16, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			table := balance.NewTable(benchWeights(n, func(i int) float64 { return float64(1 + i%7) }), 0)
			b.ReportAllocs()
			for b.Loop() {
				table.Next()
			}
		})
	}
}

func BenchmarkDrawAmong(b *testing.B) {
	for _, n := range []int{2, 16, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			weights, skip := benchWeights(n, func(i int) float64 { return float64(1 + i%7) }), bits(n, 1)
			b.ReportAllocs()
			for b.Loop() {
				balance.DrawAmong(weights, skip)
			}
		})
	}
}

func BenchmarkNewTable(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{4, 1000} {
		b.Run(fmt.Sprintf("exact/%d", n), func(b *testing.B) {
			w := benchWeights(n, func(i int) float64 { return float64(1 + i%7) })
			for b.Loop() {
				balance.NewTable(w, 0)
			}
		})
		b.Run(fmt.Sprintf("inexact/%d", n), func(b *testing.B) {
			w := benchWeights(n, func(int) float64 { return r.Float64() })
			for b.Loop() {
				balance.NewTable(w, 0)
			}
		})
	}
}
