package balance

import (
	"math"
	"math/bits"
	"math/rand/v2"
)

// An Alias draws an index at random with the probability that its weight has, in constant time: M. D. Vose, "A linear algorithm for generating random
// numbers with a given distribution", IEEE Transactions on Software Engineering 17 (1991) 972–975. It is not changed once made.
type Alias struct {
	cells   []cell
	weights []float64 // of which the greatest is 1
}

// cell is one of n equal parts of the whole: own's up to limit (of 2^64), other's above it.
type cell struct {
	limit      uint64
	own, other int32
}

// NewAlias makes the table for weights, of which only the ratios count. A weight that is not a positive, finite number is never drawn.
func NewAlias(weights []float64) *Alias {
	a := &Alias{weights: normal(weights)}
	var sum float64
	n := 0
	for _, w := range a.weights {
		if w > 0 {
			sum += w
			n++
		}
	}
	a.cells = make([]cell, 0, n)
	rest := make([]float64, 0, n) // in cells
	for i, w := range a.weights {
		if w > 0 {
			a.cells = append(a.cells, cell{own: int32(i), other: int32(i)})
			rest = append(rest, w/sum*float64(n))
		}
	}
	// Each cell that its own index doesn't fill is filled up by one that has more than a cell.
	small, large := make([]int, 0, n), make([]int, 0, n)
	for c, r := range rest {
		if r < 1 {
			small = append(small, c)
		} else {
			large = append(large, c)
		}
	}
	for len(small) > 0 && len(large) > 0 {
		s, l := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		a.cells[s].limit, a.cells[s].other = uint64(math.Ldexp(rest[s], 64)), a.cells[l].own
		if rest[l] -= 1 - rest[s]; rest[l] < 1 {
			large = large[:len(large)-1]
			small = append(small, l)
		}
	}
	return a // what is left in small or large is a full cell but for rounding: own and other are the same
}

// Draw draws an index, -1 if there is none. It takes no lock and does not allocate.
func (a *Alias) Draw() int {
	if len(a.cells) == 0 {
		return -1
	}
	return a.at(rand.Uint64())
}

// at returns the index that a random number stands for. There must be one.
func (a *Alias) at(random uint64) int {
	// One random number says which cell, by the high word of the product, and where in it, by the low word: that leaves 64 − log₂ n bits for the latter.
	at, within := bits.Mul64(random, uint64(len(a.cells)))
	c := &a.cells[at]
	i, own := c.other, c.own
	if within < c.limit { // without a branch: nobody could predict it
		i = own
	}
	return int(i)
}

// redraws is how often a draw that was skipped is repeated before the others are counted. Both have the same distribution.
const redraws = 4

// DrawAmong draws an index as the function of that name does.
func (a *Alias) DrawAmong(skip []uint64) int {
	for range redraws {
		if i := a.Draw(); i < 0 || !has(skip, i) {
			return i
		}
	}
	return DrawAmong(a.weights, skip)
}

// has reports whether skip has bit i.
func has(skip []uint64, i int) bool {
	return i>>6 < len(skip) && skip[i>>6]>>(i&63)&1 != 0
}

// normal returns weights with the greatest as 1, and 0 for what is not a positive, finite number.
func normal(weights []float64) []float64 {
	var top float64
	for _, w := range weights {
		if w <= math.MaxFloat64 {
			top = max(top, w)
		}
	}
	n := make([]float64, len(weights))
	for i, w := range weights {
		if w > 0 && w <= math.MaxFloat64 {
			n[i] = w / top
		}
	}
	return n
}
