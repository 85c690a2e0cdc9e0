package balance_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/smtplb/smtplb/internal/balance"
)

// Whatever the weights and loads: the least in flight is one that has the least, and adaptive's is the one whose turn it is unless another is strictly better, and then one of the best. Each of equals gets its
// turns.
func TestPicksAreTheBest(t *testing.T) { eachKind(t, testPicksAreTheBest) }

func testPicksAreTheBest(t *testing.T, words bool) {
	r := rand.New(rand.NewPCG(41, 42))
	for range 100 {
		n := []int{1, 2, 3, 8, 31, 32, 33, 63, 64, 65, 90}[r.IntN(11)]
		weights, in := make([]float64, n), make([]int, n)
		for i := range n {
			weights[i], in[i] = float64(int(1)<<r.IntN(3)), r.IntN(12) // so that there are equals, exactly
		}
		with := func(i int, plus float64) float64 { return (float64(in[i]) + plus) / weights[i] }
		best := func(plus float64) (least float64, equal []int) {
			least = math.Inf(1)
			for i := range n {
				switch s := with(i, plus); {
				case s < least:
					least, equal = s, []int{i}
				case s == least:
					equal = append(equal, i)
				}
			}
			return least, equal
		}
		_, pickers := byLoad(words, weights, n, func(i int) int { return in[i] })
		_, fewest := best(0)
		seen := map[int]bool{}
		for range 8 * n { // two periods of the table, at the least
			i := pickers["least"](true, nil)
			if !slices.Contains(fewest, i) {
				t.Fatalf("least of %v with %v in flight: %d, want one of %v", weights, in, i, fewest)
			}
			seen[i] = true
		}
		if len(seen) < len(fewest) && len(fewest) <= 8 {
			t.Fatalf("least of %v with %v in flight: %v, never all of %v", weights, in, seen, fewest)
		}
		least, bests := best(1)
		for range 4 * n {
			i := pickers["adaptive"](true, nil)
			behind := with(i, 0) > least && !slices.Contains(bests, i) // and yet taken
			if n <= 32 && behind {
				t.Fatalf("adaptive of %v with %v in flight: %d, where %v would have %v", weights, in, i, bests, least)
			}
		}
	}
}

// Where nobody is better than the one whose turn it is, that one is taken: the sequence is the table's, as when all are idle.
func TestBusyEquals(t *testing.T) { eachKind(t, testBusyEquals) }

func testBusyEquals(t *testing.T, words bool) {
	for _, tt := range []struct {
		picker  string
		weights []float64
		load    func(i int) int
	}{
		{"least", []float64{3, 2, 1}, func(i int) int { return []int{12, 8, 4}[i] }},
		{"least", slices.Repeat([]float64{2}, 64), func(int) int { return 7 }},
		{"least", slices.Repeat([]float64{2}, 70), func(int) int { return 7 }},
		{"adaptive", []float64{3, 2, 1}, func(i int) int { return []int{12, 8, 4}[i] }},
		{"adaptive", slices.Repeat([]float64{1}, 32), func(i int) int { return 9 + i%2 }},
		{"adaptive", slices.Repeat([]float64{1}, 40), func(i int) int { return 9 + i%2 }}, // one more would be no better
	} {
		_, pickers := byLoad(words, tt.weights, len(tt.weights), tt.load)
		table := balance.NewTable(tt.weights, 0)
		got := make([]int, 3*table.Len())
		for i := range got {
			got[i] = pickers[tt.picker](true, nil)
		}
		found := false
		for s := range table.Len() {
			found = found || slices.Equal(got, sequenceFrom(table, s, len(got)))
		}
		if !found {
			t.Errorf("%s of %v, all as busy as each other: %v isn't the table's sequence", tt.picker, tt.weights, got)
		}
	}
}

// Of many, adaptive compares two: who is behind has a turn only where it is drawn against itself.
func TestTheBetterOfTwo(t *testing.T) { eachKind(t, testTheBetterOfTwo) }

func testTheBetterOfTwo(t *testing.T, words bool) {
	const n, periods = 40, 3000
	weights := slices.Repeat([]float64{1}, n)
	_, pickers := byLoad(words, weights, n, func(i int) int {
		if i == 7 {
			return 1000
		}
		return 10
	})
	counts := make([]float64, n)
	for range n * periods {
		counts[pickers["adaptive"](true, nil)]++
	}
	if want := periods / float64(n); math.Abs(counts[7]-want) > 6.5*math.Sqrt(want) {
		t.Errorf("the one that is behind was taken %v times of %d turns, want %.0f", counts[7], periods, want)
	}
}
