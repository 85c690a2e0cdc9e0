package balance

import (
	"math"
	"math/rand/v2"
	"testing"
)

// A turn's slot is that of its number, for as many turns as are promised.
func TestSlots(t *testing.T) {
	r := rand.New(rand.NewPCG(51, 52))
	for n := 1; n <= MaxSlots; n += 1 + r.IntN(1+n/4) {
		table := &Table{slots: make([]int32, n), step: math.MaxUint64/uint64(n) + 1}
		for i := range table.slots {
			table.slots[i] = int32(i)
		}
		check := func(i uint64) {
			if got := table.slot(i); got != int(i%uint64(n)) {
				t.Fatalf("turn %d of a period of %d: slot %d, want %d", i, n, got, i%uint64(n))
			}
		}
		last := math.MaxUint64 / uint64(n)
		for i := range uint64(2*n + 2) {
			check(i)
			check(last - i)
		}
		for range 1000 {
			check(r.Uint64N(last))
		}
	}
}

// To look whose turn it is takes none.
func TestPeek(t *testing.T) {
	table := NewTable([]float64{3, 2, 1, 1.5}, 0)
	for range 100 {
		want := table.Peek()
		if again := table.Peek(); again != want {
			t.Fatalf("a second look: %d, after %d", again, want)
		}
		if got := table.Next(); got != want {
			t.Fatalf("%d, and %d was to come", got, want)
		}
	}
	if i := new(Table).Peek(); i != -1 {
		t.Errorf("an empty table: %d", i)
	}
}

// What a turn's number draws goes by the weights, and has nothing to do with whose turn it is, nor with what another picker draws.
func TestSecondChoice(t *testing.T) {
	const n, turns = 40, 800_000
	weights := make([]float64, n)
	var sum float64
	for i := range weights {
		weights[i] = float64(1 + i%3)
		sum += weights[i]
	}
	loads := make([]Load, n)
	p, q := NewAdaptive(weights, loads), NewAdaptive(weights, loads)
	var pairs [n][n]float64 // whose turn, and who was drawn
	same := 0
	for range turns {
		i, turn := p.table.Turn()
		pairs[i][p.second(turn)]++
		if p.second(turn) == q.second(turn) {
			same++
		}
	}
	var chi, meet float64
	for i, row := range pairs {
		for j, got := range row {
			want := turns * weights[i] / sum * weights[j] / sum
			chi += (got - want) * (got - want) / want
		}
		meet += weights[i] / sum * weights[i] / sum
	}
	// Whose turn it is isn't drawn, so there are n−1 degrees of freedom for each. The limit is at p = 10⁻⁹ (Wilson–Hilferty).
	df := float64(n * (n - 1))
	h := 2 / (9 * df)
	if limit := df * math.Pow(1-h+6*math.Sqrt(h), 3); chi > limit {
		t.Errorf("χ² = %.1f with %v degrees of freedom, limit %.1f", chi, df, limit)
	}
	if want := turns * meet; math.Abs(float64(same)-want) > 6.5*math.Sqrt(want) {
		t.Errorf("two pickers draw the same %d times, want %.0f", same, want)
	}
}
