package balance

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"time"
)

// Load tells how many sends a relay has in flight. It is asked in a pick, so it should be an atomic load.
type Load interface{ InFlight() int }

// Latent is a Load that knows how long its relay takes, too; 0: not known yet.
type Latent interface {
	Load
	Latency() time.Duration
}

// scanMost is up to how many relays a pick by load looks at all of them. Beyond that it looks at two.
const scanMost = 32

// fleet is what the algorithms that look at the load have in common.
type fleet struct {
	weights []float64
	costs   []float64 // 1/weight
	live    []uint64  // bit set: the weight is more than 0
	least   float64   // of costs
	RoundRobin
}

func newFleet(weights []float64) fleet {
	f := fleet{
		weights: normal(weights), costs: make([]float64, len(weights)), live: make([]uint64, (len(weights)+63)/64),
		least: math.Inf(1), RoundRobin: *NewRoundRobin(weights),
	}
	for i, w := range f.weights {
		if w > 0 {
			f.costs[i] = min(1/w, 1e300) // times 0 it is still 0
			f.live[i>>6] |= 1 << (i & 63)
			f.least = min(f.least, f.costs[i])
		}
	}
	return f
}

// among returns which of the indices 64·w to 64·w+63 may be chosen.
func (f *fleet) among(w int, skip []uint64) uint64 {
	if w < len(skip) {
		return f.live[w] &^ skip[w]
	}
	return f.live[w]
}

// min returns, of those that may be chosen, the one with the least (load+plus)/weight, and whether others have no more than it. -1: there is none.
func (f *fleet) min(loads []Load, plus float64, skip []uint64) (best int, least float64, ties bool) {
	best, least = -1, math.Inf(1)
	for w := range f.live {
		for m := f.among(w, skip); m != 0; m &= m - 1 {
			i := w<<6 | bits.TrailingZeros64(m)
			if s := (float64(loads[i].InFlight()) + plus) * f.costs[i]; s <= least {
				ties = s == least
				best, least = i, s
			}
		}
	}
	return best, least, ties
}

// drawEqual draws by weight among those that may be chosen and have no more than least of (load+plus)/weight; i where meanwhile there is none any more.
func (f *fleet) drawEqual(loads []Load, plus, least float64, skip []uint64, i int) int {
	var sum float64
	for w := range f.live {
		for m := f.among(w, skip); m != 0; m &= m - 1 {
			j := w<<6 | bits.TrailingZeros64(m)
			if (float64(loads[j].InFlight())+plus)*f.costs[j] > least {
				continue
			}
			// Of those that were seen, each is kept with the probability that it should have: so one pass is enough.
			if sum += f.weights[j]; rand.Float64()*sum < f.weights[j] {
				i = j
			}
		}
	}
	return i
}

// RoundRobin picks the one whose turn it is in a Table, or draws by weight where that one can't be used.
type RoundRobin struct {
	table *Table
	alias *Alias
}

// NewRoundRobin returns the picker for weights.
func NewRoundRobin(weights []float64) *RoundRobin {
	return &RoundRobin{NewTable(weights, 0), NewAlias(weights)}
}

// Pick returns an index that is not in skip, or -1. first says that it is the first attempt of a message: who tries again must not use up a place in the
// sequence.
func (p *RoundRobin) Pick(first bool, skip []uint64) int {
	if first {
		if i := p.table.Next(); i < 0 || !has(skip, i) {
			return i
		}
	}
	return p.alias.DrawAmong(skip)
}

// LeastInFlight picks the one with the fewest sends in flight for its weight. Among equals it is the one whose turn it is in a Table: an idle fleet is used as its weights say.
type LeastInFlight struct {
	fleet
	loads []Load
}

// NewLeastInFlight returns the picker for weights, with one load for each.
func NewLeastInFlight(weights []float64, loads []Load) *LeastInFlight {
	return &LeastInFlight{newFleet(weights), loads}
}

// Pick returns an index that is not in skip, or -1. first says that it is the first attempt of a message.
func (p *LeastInFlight) Pick(first bool, skip []uint64) int {
	a := p.RoundRobin.Pick(first, skip)
	if a < 0 {
		return -1
	}
	q := p.loads[a].InFlight()
	if q <= 0 {
		return a // nobody has less than nothing
	}
	b, least, ties := p.min(p.loads, 0, skip)
	switch {
	case b < 0 || float64(q)*p.costs[a] <= least:
		return a
	case ties:
		return p.drawEqual(p.loads, 0, least, skip, b)
	}
	return b
}

// Adaptive picks the one whose turn it is in a Table, unless another would, with this send, still have less in flight for its weight than that one has
// without it. So an idle fleet is used exactly as its weights say, and a busy one as it keeps up.
type Adaptive struct {
	fleet
	loads []Load
}

// NewAdaptive returns the picker for weights, with one load for each.
func NewAdaptive(weights []float64, loads []Load) *Adaptive {
	return &Adaptive{newFleet(weights), loads}
}

// Pick returns an index that is not in skip, or -1. first says that it is the first attempt of a message.
func (p *Adaptive) Pick(first bool, skip []uint64) int {
	a := p.RoundRobin.Pick(first, skip)
	if a < 0 {
		return -1
	}
	has := float64(p.loads[a].InFlight()) * p.costs[a]
	if has <= p.least {
		return a // the least that another can come to is one send on the heaviest
	}
	if len(p.loads) > scanMost {
		b := p.alias.DrawAmong(skip)
		if b >= 0 && has > float64(p.loads[b].InFlight()+1)*p.costs[b] {
			return b
		}
		return a
	}
	b, least, ties := p.min(p.loads, 1, skip)
	switch {
	case b < 0 || has <= least:
		return a
	case ties:
		return p.drawEqual(p.loads, 1, least, skip, b)
	}
	return b
}

// Latency picks the one with the least latency·(in flight + 1)/weight: of all, or, of more than 32, of two different ones that are drawn by weight. One whose latency is
// not known counts as the fastest that is.
type Latency struct {
	fleet
	relays []Latent
}

// NewLatency returns the picker for weights, with one relay for each.
func NewLatency(weights []float64, relays []Latent) *Latency {
	return &Latency{newFleet(weights), relays}
}

// Pick returns an index that is not in skip, or -1.
func (p *Latency) Pick(_ bool, skip []uint64) int {
	if len(p.relays) > scanMost {
		return p.two(skip)
	}
	if len(p.live) == 0 {
		return -1
	}
	m := p.among(0, skip)
	if m == 0 {
		return -1
	}
	var scores, known [scanMost]float64 // (in flight + 1)/weight, and latency
	fastest := math.Inf(1)
	for rest := m; rest != 0; rest &= rest - 1 {
		i := bits.TrailingZeros64(rest) & (scanMost - 1)
		r := p.relays[i]
		scores[i], known[i] = float64(r.InFlight()+1)*p.costs[i], float64(r.Latency())
		if known[i] > 0 {
			fastest = min(fastest, known[i])
		}
	}
	if math.IsInf(fastest, 1) {
		fastest = 1
	}
	var equal uint64
	least := math.Inf(1)
	for rest := m; rest != 0; rest &= rest - 1 {
		i := bits.TrailingZeros64(rest) & (scanMost - 1)
		latency := known[i]
		if latency <= 0 {
			latency = fastest
		}
		switch s := scores[i] * latency; {
		case s < least:
			least, equal = s, 1<<i
		case s == least:
			equal |= 1 << i
		}
	}
	if equal&(equal-1) == 0 {
		return bits.TrailingZeros64(equal)
	}
	return p.drawBits(equal)
}

// drawBits draws by weight among the indices whose bits are set.
func (p *Latency) drawBits(m uint64) int {
	chosen, sum := -1, 0.0
	for ; m != 0; m &= m - 1 {
		i := bits.TrailingZeros64(m)
		if sum += p.weights[i]; rand.Float64()*sum < p.weights[i] || chosen < 0 {
			chosen = i
		}
	}
	return chosen
}

// two draws two, without putting the first back: with it back, a slow relay would come up against itself once in every n draws, and win.
func (p *Latency) two(skip []uint64) int {
	a := p.alias.DrawAmong(skip)
	if a < 0 {
		return -1
	}
	b := p.other(a, skip)
	if b < 0 {
		return a
	}
	x, y := p.relays[a].Latency(), p.relays[b].Latency()
	if x <= 0 || y <= 0 { // what isn't known counts as the faster of the two
		x, y = 1, 1
	}
	if float64(p.relays[b].InFlight()+1)*p.costs[b]*float64(y) < float64(p.relays[a].InFlight()+1)*p.costs[a]*float64(x) {
		return b
	}
	return a
}

// other draws by weight among those that may be chosen, but for a. -1: there is none.
func (f *fleet) other(a int, skip []uint64) int {
	for range redraws {
		if i := f.alias.Draw(); i != a && !has(skip, i) {
			return i
		}
	}
	chosen, sum := -1, 0.0
	for w := range f.live {
		m := f.among(w, skip)
		if w == a>>6 {
			m &^= 1 << (a & 63)
		}
		for ; m != 0; m &= m - 1 {
			i := w<<6 | bits.TrailingZeros64(m)
			if sum += f.weights[i]; rand.Float64()*sum < f.weights[i] || chosen < 0 {
				chosen = i
			}
		}
	}
	return chosen
}
