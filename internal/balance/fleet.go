package balance

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// Load tells how many sends a relay has in flight. It is asked in a pick, so it should be an atomic load.
type Load interface{ InFlight() int }

// Gauge is a Load that a pick reads without calling anything, which is most of what looking at many relays costs: the number is what Word holds from bit Shift on.
type Gauge struct {
	Word  *atomic.Uint64
	Shift uint
}

// InFlight reads the number.
func (g Gauge) InFlight() int { return int(g.Word.Load() >> (g.Shift & 63)) }

// gauges are the loads of all relays.
type gauges struct {
	loads []Load
	words []*atomic.Uint64 // where all of them are Gauges of one Shift; else nil
	shift uint
}

func newGauges(loads []Load) gauges {
	g := gauges{loads: loads}
	words := make([]*atomic.Uint64, 0, len(loads))
	for _, l := range loads {
		x, ok := l.(Gauge)
		if !ok || len(words) > 0 && x.Shift != g.shift {
			return g
		}
		g.shift = x.Shift
		words = append(words, x.Word)
	}
	g.words = words
	return g
}

// at returns how many sends i has in flight.
func (g *gauges) at(i int) int {
	if i < len(g.words) {
		return int(g.words[i].Load() >> (g.shift & 63))
	}
	return g.loads[i].InFlight()
}

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

// fewest returns the one with the least (load+plus)/weight of those that may be chosen, one drawn by weight where several have no more than it, and that least. -1: there is none, or
// none with less than limit.
func (f *fleet) fewest(g *gauges, plus, limit float64, skip []uint64) int {
	if len(f.live) == 1 {
		_, equal := f.least64(g, plus, limit, 0, skip)
		return f.drawBits(equal)
	}
	least := limit
	for w := range f.live {
		least, _ = f.least64(g, plus, least, w, skip)
	}
	if least == limit {
		return -1
	}
	// In a second look each that has no more is kept with the probability that it should have of those that were seen.
	chosen, sum := -1, 0.0
	for w := range f.live {
		for m := f.among(w, skip); m != 0; m &= m - 1 {
			i := w<<6 | bits.TrailingZeros64(m)
			if (float64(g.at(i))+plus)*f.costs[i] > least {
				continue
			}
			if sum += f.weights[i]; rand.Float64()*sum < f.weights[i] || chosen < 0 {
				chosen = i
			}
		}
	}
	return chosen
}

// least64 returns the least (load+plus)/weight below limit of the indices 64·w to 64·w+63 that may be chosen, and which of them have it: limit and none, where all have more, or as much.
func (f *fleet) least64(g *gauges, plus, limit float64, w int, skip []uint64) (least float64, equal uint64) {
	m, costs := f.among(w, skip), f.costs[w<<6:]
	if g.words != nil {
		return leastOf(g.words[w<<6:], costs[:len(g.words)-w<<6], g.shift&63, plus, limit, m)
	}
	for least = limit; m != 0; m &= m - 1 {
		i := bits.TrailingZeros64(m)
		switch s := (float64(g.loads[w<<6|i].InFlight()) + plus) * costs[i]; {
		case s < least:
			least, equal = s, m&-m
		case s == least && equal != 0:
			equal |= m & -m
		}
	}
	return least, equal
}

// leastOf is least64 for words. No number is negative: so they are in the order of their bits, which are compared without a branch that nobody could predict.
func leastOf(words []*atomic.Uint64, costs []float64, shift uint, plus, limit float64, m uint64) (least float64, equal uint64) {
	top := math.Float64bits(limit)
	for m != 0 {
		i := bits.TrailingZeros64(m) & 63
		bit := m & -m
		m ^= bit
		s := math.Float64bits((float64(int64(words[i].Load()>>shift)) + plus) * costs[i])
		if s == top && equal != 0 {
			equal |= bit
		}
		if s < top {
			equal = bit
		}
		top = min(top, s)
	}
	return math.Float64frombits(top), equal
}

// drawBits draws by weight among the indices whose bits are set. -1: there is none.
func (f *fleet) drawBits(m uint64) int {
	if m&(m-1) == 0 {
		if m == 0 {
			return -1
		}
		return bits.TrailingZeros64(m)
	}
	var sum float64
	for rest := m; rest != 0; rest &= rest - 1 {
		sum += f.weights[bits.TrailingZeros64(rest)]
	}
	r := rand.Float64() * sum
	for {
		i := bits.TrailingZeros64(m)
		if m &= m - 1; m == 0 || r < f.weights[i] {
			return i
		}
		r -= f.weights[i]
	}
}

// few is a fleet of so few that a pick looks at all of them, where each has a weight and a word. With nobody skipped, as nearly always, a pick need not find out more. What they have in flight is not shifted, but
// counted in units of the lowest bit that counts.
type few struct {
	words []*atomic.Uint64
	costs []float64
	every uint64  // bit set: there is one of that number; 0: it isn't such a fleet
	mask  uint64  // the bits of a word that count
	one   float64 // a send in flight
}

// newFew returns what f and g are, with most of them at the most.
func newFew(f *fleet, g *gauges, most int) few {
	n := len(g.words)
	if n == 0 || n > most || f.live[0] != math.MaxUint64>>(64-n) {
		return few{}
	}
	return few{g.words, f.costs, f.live[0], math.MaxUint64 << (g.shift & 63), float64(uint64(1) << (g.shift & 63))}
}

// all reports whether it is such a fleet, and nobody is skipped.
func (f *few) all(skip []uint64) bool {
	return f.every != 0 && (len(skip) == 0 || skip[0]&f.every == 0)
}

// in returns what i has in flight.
func (f *few) in(i int) int64 { return int64(f.words[i].Load() & f.mask) }

// less returns which have the least (load+one)/weight of those that have less than limit. This loop is most of what a pick costs, so there is no branch in it that nobody could predict: no number is negative, and
// such numbers are in the order of their bits.
func (f *few) less(limit float64) (equal uint64) {
	words, mask, one := f.words, f.mask, f.one
	costs := f.costs[:len(words)]
	top := math.Float64bits(limit) - 1 // that of the number before it
	for i := len(words) - 1; i >= 0; i-- {
		s := math.Float64bits((float64(int64(words[i].Load()&mask)) + one) * costs[i])
		equal <<= 1
		more := equal + 1
		if s == top {
			equal = more
		}
		if s < top {
			equal = 1
		}
		top = min(top, s)
	}
	return equal
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
		if i := p.turn(skip); i >= 0 {
			return i
		}
	}
	return p.alias.DrawAmong(skip)
}

// turn takes a turn, and returns whose it is: -1 where that one is in skip.
func (p *RoundRobin) turn(skip []uint64) int {
	i := p.table.Next()
	if i < 0 || has(skip, i) {
		return -1
	}
	return i
}

// LeastInFlight picks the one with the fewest sends in flight for its weight. Among equals it is the one whose turn it is in a Table: an idle fleet is used as its weights say.
type LeastInFlight struct {
	few few
	fleet
	gauges
}

// NewLeastInFlight returns the picker for weights, with one load for each.
func NewLeastInFlight(weights []float64, loads []Load) *LeastInFlight {
	p := &LeastInFlight{fleet: newFleet(weights), gauges: newGauges(loads)}
	p.few = newFew(&p.fleet, &p.gauges, 64)
	return p
}

// Pick returns an index that is not in skip, or -1. first says that it is the first attempt of a message.
func (p *LeastInFlight) Pick(first bool, skip []uint64) int {
	if !first || !p.few.all(skip) {
		return p.any(first, skip)
	}
	// Nobody has less than who is idle. Only where there are several with the least a turn decides, and only then one is taken.
	if p.few.in(p.table.Peek()) == 0 {
		if i := p.table.Next(); p.few.in(i) == 0 {
			return i
		}
	}
	// As few.less, without a limit and one send more. Between two, the call alone would be a tenth of the whole.
	words, mask := p.few.words, p.few.mask
	costs := p.few.costs[:len(words)]
	top, equal := uint64(math.MaxUint64), uint64(0)
	for i := len(words) - 1; i >= 0; i-- {
		s := math.Float64bits(float64(int64(words[i].Load()&mask)) * costs[i])
		equal <<= 1
		more := equal + 1
		if s == top {
			equal = more
		}
		if s < top {
			equal = 1
		}
		top = min(top, s)
	}
	if equal&(equal-1) == 0 {
		return bits.TrailingZeros64(equal)
	}
	if i := p.table.Next(); equal>>(i&63)&1 != 0 {
		return i
	}
	return p.drawBits(equal)
}

// any is Pick from any fleet.
func (p *LeastInFlight) any(first bool, skip []uint64) int {
	a := p.RoundRobin.Pick(first, skip)
	if a < 0 {
		return -1
	}
	q := p.at(a)
	if q <= 0 {
		return a // nobody has less than nothing
	}
	if b := p.fewest(&p.gauges, 0, float64(q)*p.costs[a], skip); b >= 0 {
		return b
	}
	return a
}

// Adaptive picks the one whose turn it is in a Table, unless another would, with this send, still have less in flight for its weight than that one has
// without it. So an idle fleet is used exactly as its weights say, and a busy one as it keeps up.
type Adaptive struct {
	few  few
	salt uint64 // lest pickers with the same turns draw the same
	fleet
	gauges
}

// NewAdaptive returns the picker for weights, with one load for each.
func NewAdaptive(weights []float64, loads []Load) *Adaptive {
	p := &Adaptive{salt: rand.Uint64(), fleet: newFleet(weights), gauges: newGauges(loads)}
	p.few = newFew(&p.fleet, &p.gauges, scanMost)
	return p
}

// Pick returns an index that is not in skip, or -1. first says that it is the first attempt of a message.
func (p *Adaptive) Pick(first bool, skip []uint64) int {
	if !first || !p.few.all(skip) {
		return p.any(first, skip)
	}
	a := p.table.Next()
	load := float64(p.few.in(a)) * p.few.costs[a]
	if load <= p.few.one {
		return a // the least that another can come to is one send on the heaviest
	}
	equal := p.few.less(load)
	if equal&(equal-1) != 0 {
		return p.drawBits(equal)
	}
	if equal == 0 {
		return a
	}
	return bits.TrailingZeros64(equal)
}

// any is Pick from any fleet.
func (p *Adaptive) any(first bool, skip []uint64) int {
	a, turn := -1, uint64(0)
	if first {
		a, turn = p.table.Turn()
	}
	if a < 0 || has(skip, a) {
		if a = p.alias.DrawAmong(skip); a < 0 {
			return -1
		}
	}
	load := float64(p.at(a)) * p.costs[a]
	if load <= p.least {
		return a
	}
	if len(p.costs) <= scanMost {
		if b := p.fewest(&p.gauges, 1, load, skip); b >= 0 {
			return b
		}
		return a
	}
	b := -1
	if first {
		b = p.second(turn)
	}
	if b < 0 || has(skip, b) {
		b = p.alias.DrawAmong(skip)
	}
	// Nobody could predict which it is, so it is compared without a branch: such numbers are in the order of their bits.
	if math.Float64bits(float64(p.at(b)+1)*p.costs[b]) < math.Float64bits(load) {
		a = b
	}
	return a
}

// second draws by weight. The dice are those of the turn, SplitMix64 by its number: to roll those that everybody shares costs as much as all else in a pick.
func (p *Adaptive) second(turn uint64) int { return p.alias.at(mix(turn*odd1 + p.salt)) }

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
	return p.drawBits(equal)
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
