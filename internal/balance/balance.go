// Package balance holds the algorithms that choose among relays, on plain numbers: it knows no relay, takes no lock, reads no
// clock.
package balance

import (
	"cmp"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"sync/atomic"
)

// MaxSlots is the longest period of a Table, unless there are more weights than that.
const MaxSlots = 8192

// A Table is a weighted round robin: one period of a sequence of indices in which each turns up as often as its weight says,
// spread as evenly as can be.
//
// The sequence is Tijdeman's solution of the chairman assignment problem ("The chairman assignment problem", Discrete
// Mathematics 32 (1980) 323–330). With n weights, of which i has the share p, i was chosen t·p times among the first t ± at most
// 1 − 1/(2n−2), for every t and every i, which is the best bound there is; among any L in a row, whatever the phase, L·p ± at
// most twice that.
//
// A Table is not changed once made, but for the place of Next. Skipping is not for the table: an index that can't be used must
// not hand its turn to the neighbour that happens to follow, so take DrawAmong then.
type Table struct {
	next  atomic.Uint64 // the number of the next turn
	step  uint64        // 2^64 divided by the length of the period, rounded up
	slots []int32
}

// NewTable makes the table for weights, of which only the ratios count. A weight that is not a positive, finite number is never
// chosen. maxSlots bounds the period; 0 means MaxSlots. There is at least one slot for each weight, though.
//
// If the ratios have an exact period within maxSlots, as small whole numbers have, the table holds the shortest one. Else it holds
// the whole numbers of slots, at least one each, which come nearest to the shares: of all periods that one at which the share that
// is most off is the least off. It is off by less than one slot, so with 8,192 slots by less than 0.0123 % of all turns, unless
// weights that deserve less than a slot get a whole one; the others pay for that in proportion. The bound above then holds for the
// shares that the table has: Share.
//
// The first Next starts at random, lest many processes that start together all begin with the same relay.
func NewTable(weights []float64, maxSlots int) *Table {
	if maxSlots <= 0 {
		maxSlots = MaxSlots
	}
	index := make([]int32, 0, len(weights)) // of the weights that count
	shares := make([]float64, 0, len(weights))
	var top, sum float64
	for i, w := range weights {
		if w > 0 && !math.IsInf(w, 1) {
			index = append(index, int32(i))
			shares = append(shares, w)
			top = max(top, w)
		}
	}
	if len(index) == 0 {
		return new(Table)
	}
	for i := range shares {
		shares[i] /= top // now the sum can't overflow
		sum += shares[i]
	}
	for i := range shares {
		shares[i] /= sum
	}
	t := &Table{slots: chairmen(apportion(shares, max(maxSlots, len(shares))))}
	for i, c := range t.slots {
		t.slots[i] = index[c]
	}
	t.step = math.MaxUint64/uint64(len(t.slots)) + 1 // of a period of 1 that is 0, and right
	t.next.Store(rand.Uint64N(uint64(len(t.slots))))
	return t
}

// slot returns whose turn number i is. It needs two multiplications, and no division: what i/n leaves, as a part of 2^64, tells the place in the period. What the step was rounded up by adds up to a slot
// after 2^64/n turns at the least: with 8,192 slots, one turn comes early after 70,000 years of a thousand a second.
func (t *Table) slot(i uint64) int {
	at, _ := bits.Mul64(i*t.step, uint64(len(t.slots)))
	return int(t.slots[at])
}

// Next returns the index whose turn it is, or -1 if the table is empty.
func (t *Table) Next() int {
	if len(t.slots) == 0 {
		return -1
	}
	return t.slot(t.next.Add(1) - 1)
}

// Turn is Next, and returns the turn's number, too.
func (t *Table) Turn() (index int, number uint64) {
	if len(t.slots) == 0 {
		return -1, 0
	}
	number = t.next.Add(1) - 1
	return t.slot(number), number
}

// Peek returns what Next would, without taking the turn.
func (t *Table) Peek() int {
	if len(t.slots) == 0 {
		return -1
	}
	return t.slot(t.next.Load())
}

// At returns the i-th index of the endless sequence, counted from 0 at the start of a period, or -1 if the table is empty.
func (t *Table) At(i uint64) int {
	n := uint64(len(t.slots))
	if n == 0 {
		return -1
	}
	return int(t.slots[i%n])
}

// Len returns the length of the period.
func (t *Table) Len() int { return len(t.slots) }

// Share returns the share of the turns that index i has.
func (t *Table) Share(i int) float64 {
	var n int
	for _, s := range t.slots {
		if int(s) == i {
			n++
		}
	}
	return float64(n) / float64(max(1, len(t.slots)))
}

// exact is the error up to which a multiple of a share counts as whole: far above what dividing float64s leaves, and so small that
// it takes 10^9 periods to add up to one turn.
const exact = 1e-9

// apportion returns whole numbers of slots, each at least 1, in the ratio of shares, which sum up to 1. The sum of the slots is at
// most most, which must not be less than len(shares).
func apportion(shares []float64, most int) []int {
	n := len(shares)

	// The shortest exact period. The smallest share needs one slot, too.
	if least := 1 / slices.Min(shares); least <= float64(most)+exact {
		for p := max(n, int(least)); p <= most; p++ {
			if farthest(shares, p, exact) < exact {
				return rounded(shares, p)
			}
		}
	}

	// The best of all periods in which each share is rounded to at least one slot. The rounding must come out even.
	raise(shares, 1/float64(most))
	half := int(0.5 / slices.Min(shares))
	best, bestError := 0, math.Inf(1)
	for p := most; p > max(n, half); p-- {
		if e := farthest(shares, p, bestError*float64(p)) / float64(p); e < bestError && total(rounded(shares, p)) == p {
			best, bestError = p, e
		}
	}
	if best > 0 {
		return rounded(shares, best)
	}
	return largestRemainders(shares, most)
}

// raise gives each share at least least, which the others pay for in proportion. The sum stays 1.
func raise(shares []float64, least float64) {
	raised := make([]bool, len(shares))
	for {
		more := false
		rest, restSum := 1.0, 0.0
		for i, s := range shares {
			if s < least && !raised[i] {
				shares[i], raised[i], more = least, true, true
			}
			if raised[i] {
				rest -= least
			} else {
				restSum += s
			}
		}
		if !more {
			return
		}
		for i := range shares {
			if !raised[i] {
				shares[i] *= rest / restSum
			}
		}
	}
}

// farthest returns how far the share that is farthest from whole slots is off in a period of p, or anything above limit.
func farthest(shares []float64, p int, limit float64) float64 {
	var worst float64
	for _, s := range shares {
		x := s * float64(p)
		if e := math.Abs(x - math.Round(x)); e > worst {
			if worst = e; worst > limit {
				break
			}
		}
	}
	return worst
}

func rounded(shares []float64, p int) []int {
	k := make([]int, len(shares))
	for i, s := range shares {
		k[i] = int(math.Round(s * float64(p)))
	}
	return k
}

func total(k []int) (sum int) {
	for _, v := range k {
		sum += v
	}
	return sum
}

// largestRemainders rounds all shares of p slots down (Hamilton's method), and those up that lose most by it until the sum is p.
func largestRemainders(shares []float64, p int) []int {
	k := make([]int, len(shares))
	order := make([]int, len(shares))
	for i, s := range shares {
		k[i] = int(s * float64(p))
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int {
		return cmp.Compare(shares[j]*float64(p)-float64(k[j]), shares[i]*float64(p)-float64(k[i]))
	})
	for i, missing := 0, p-total(k); i < missing; i++ {
		k[order[i]]++
	}
	return k
}

// chairmen returns the sequence for k slots each, one period of p = Σk. At step t = 1, 2, …, where xᵢ is how often i was chosen
// before, Tijdeman takes among those with
//
//	t·kᵢ/p − xᵢ ≥ 1/(2n−2)
//
// the one with the least (1 − 1/(2n−2) − t·kᵢ/p + xᵢ)·p/kᵢ. The first says when the next turn of i may come, the second how long
// it can still wait. So it is a schedule of jobs, each with a release and a deadline, of which the most urgent is done first:
// i's turn xᵢ is released at t = ⌈(xᵢ + 1/(2n−2))·p/kᵢ⌉ and can wait until (xᵢ + 1 − 1/(2n−2))·p/kᵢ. All in whole numbers, times
// 2n−2.
func chairmen(k []int) []int32 {
	n, p := len(k), total(k)
	slots := make([]int32, 0, p)
	if n == 1 {
		return append(slots, make([]int32, p)...)
	}
	d := int64(2*n - 2)
	due := make([]int64, n)     // times d·kᵢ/p
	first := make([]int32, p+1) // of those that are released at t, 1 more than the index; 0: none
	follow := make([]int32, n)  // the next one that is released with it, likewise
	release := func(i int32, x int64, after int) {
		due[i] = d*(x+1) - 1
		if t := max(ceil((d*x+1)*int64(p), d*int64(k[i])), int64(after)+1); t <= int64(p) {
			follow[i], first[t] = first[t], i+1
		}
	}
	ready := urgent{k: k, due: due}
	for i := n - 1; i >= 0; i-- {
		release(int32(i), 0, 0)
	}
	for t := 1; t <= p; t++ {
		for i := first[t]; i != 0; i = follow[i-1] {
			ready.push(i - 1)
		}
		i := ready.pop()
		slots = append(slots, i)
		release(i, (due[i]+1)/d, t)
	}
	return slots
}

func ceil(a, b int64) int64 { return (a + b - 1) / b }

// urgent is a binary heap of indices, that with the least due/k on top, among equals the least index.
type urgent struct {
	k    []int
	due  []int64
	heap []int32
}

func (u *urgent) less(i, j int32) bool {
	a, b := u.due[i]*int64(u.k[j]), u.due[j]*int64(u.k[i])
	return a < b || a == b && i < j
}

func (u *urgent) push(i int32) {
	u.heap = append(u.heap, i)
	at := len(u.heap) - 1
	for at > 0 {
		up := (at - 1) / 2
		if !u.less(i, u.heap[up]) {
			break
		}
		u.heap[at] = u.heap[up]
		at = up
	}
	u.heap[at] = i
}

func (u *urgent) pop() int32 {
	top := u.heap[0]
	last := len(u.heap) - 1
	i := u.heap[last]
	u.heap = u.heap[:last]
	at := 0
	for {
		down := 2*at + 1
		if down >= last {
			break
		}
		if down+1 < last && u.less(u.heap[down+1], u.heap[down]) {
			down++
		}
		if !u.less(u.heap[down], i) {
			break
		}
		u.heap[at] = u.heap[down]
		at = down
	}
	if last > 0 {
		u.heap[at] = i
	}
	return top
}

// DrawAmong draws an index at random, with the probability that its weight has among those whose bit in skip is not set (bit i%64
// of skip[i/64]; where skip ends, nothing is skipped). It returns -1 if there is none. A weight that is not a positive, finite
// number is never drawn; the sum of the others must be finite. It takes no lock and does not allocate.
//
// It is what a pick from a Table falls to when it can't be used: each of the others then gets its share of the turns of those that
// are skipped.
func DrawAmong(weights []float64, skip []uint64) int {
	var sum float64
	for i, w := range weights {
		if eligible(i, w, skip) {
			sum += w
		}
	}
	r := rand.Float64() * sum
	last := -1
	for i, w := range weights {
		if eligible(i, w, skip) {
			if last = i; r < w {
				break
			}
			r -= w
		}
	}
	return last // the last eligible one if rounding left a rest
}

func eligible(i int, w float64, skip []uint64) bool {
	return w > 0 && w <= math.MaxFloat64 && (i>>6 >= len(skip) || skip[i>>6]>>(i&63)&1 == 0)
}
