package balance

import (
	"math"
	"math/bits"
	"sync/atomic"
)

// Hash gives each key its relay: the one with the greatest ln(u)/weight, where u is a number in (0, 1) that is computed from the key and the relay's name
// (weighted rendezvous hashing: D. Thaler and C. Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM Transactions on Networking 6
// (1998); the logarithm makes each relay's share of the keys that of its weight). Who takes a relay away moves that relay's keys only, and every process that knows the same names comes to the
// same answer.
//
// Beyond 64 relays a key stands for one of 65,536 slots, and which relay a slot has is remembered.
type Hash struct {
	fleet
	gauges
	bound float64 // 0: no bound
	names []uint64
	equal bool           // all weights are the same, so that u decides
	slots []atomic.Int32 // 1 more than the index, 0: not computed yet; nil: no slots
}

const (
	slotsFrom = 64 // relays; with more there are slots
	slotBits  = 16 // as many slots whatever the number of relays: else keys would move where it changes
)

// NewHash returns the picker for the relays of these names. bound, if it is more than 0, is how many times its weight's share of all sends in flight a relay may have: above it,
// keys go to their next relay (V. Mirrokni, M. Thorup, M. Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2018).
func NewHash(weights []float64, names []string, loads []Load, bound float64) *Hash {
	h := &Hash{gauges: newGauges(loads), bound: bound, names: make([]uint64, len(names)), equal: true}
	f := &h.fleet
	f.weights, f.costs, f.live = normal(weights), make([]float64, len(weights)), make([]uint64, (len(weights)+63)/64)
	for i, w := range f.weights {
		h.names[i] = Sum(names[i])
		if w > 0 {
			f.costs[i] = min(1/w, 1e300)
			f.live[i>>6] |= 1 << (i & 63)
			h.equal = h.equal && w == 1
		}
	}
	if len(names) > slotsFrom {
		h.slots = make([]atomic.Int32, 1<<slotBits)
	}
	return h
}

// Pick returns the index that is key's among those not in skip, or -1.
func (h *Hash) Pick(key string, skip []uint64) int {
	k := Sum(key)
	first := -1
	if h.slots != nil {
		slot := k >> (64 - slotBits)
		k = mix(slot + 1)
		if first = int(h.slots[slot].Load()) - 1; first < 0 {
			if first = h.scan(k, nil, math.Inf(1)); first < 0 {
				return -1
			}
			h.slots[slot].Store(int32(first) + 1) // whoever computes it, it is the same
		}
		if has(skip, first) {
			first = -1
		}
	}
	if first < 0 {
		if first = h.scan(k, skip, math.Inf(1)); first < 0 {
			return -1
		}
	}
	if h.bound <= 0 || h.at(first) <= 0 {
		return first
	}
	most := h.most(skip) // in flight, for each unit of weight
	if h.within(first, most) {
		return first
	}
	if i := h.scan(k, skip, most); i >= 0 {
		return i
	}
	return first
}

// most returns how many sends in flight each unit of weight may have, the one that is to be sent counted in.
func (h *Hash) most(skip []uint64) float64 {
	sends, weight := 1, 0.0
	for w := range h.live {
		for m := h.among(w, skip); m != 0; m &= m - 1 {
			i := w<<6 | bits.TrailingZeros64(m)
			sends += h.at(i)
			weight += h.weights[i]
		}
	}
	return h.bound * float64(sends) / weight
}

// within reports whether i may have one more: fewer than its bound, rounded up.
func (h *Hash) within(i int, most float64) bool {
	return float64(h.at(i)) < math.Ceil(most*h.weights[i])
}

// scan returns the one with the greatest ln(u)/weight, of those not in skip with fewer than most in flight for each unit of weight.
func (h *Hash) scan(key uint64, skip []uint64, most float64) int {
	best, least := -1, uint64(math.MaxUint64) // bits of a float64 that is not negative: they are in the same order
	bounded := !math.IsInf(most, 1)
	for w := range h.live {
		for m := h.among(w, skip); m != 0; m &= m - 1 {
			i := w<<6 | bits.TrailingZeros64(m)
			if bounded && !h.within(i, most) {
				continue
			}
			x := mix(key ^ h.names[i])
			s := ^x
			if !h.equal {
				s = math.Float64bits(minusLog(x) * h.costs[i])
			}
			if s < least {
				best = i
			}
			least = min(least, s)
		}
	}
	return best
}

const (
	logBits  = 8       // of a mantissa choose a cell of the table
	logUnits = 1 << 40 // in the table the logarithms are rounded to a part of this, lest two platforms' math.Log differ
)

// logs has for each part of [1, 2) the reciprocal of its middle, to 11 bits, and ln of what it is the reciprocal of, less what keeps minusLog above 0.
var logs = func() (t [1 << logBits]struct{ inverse, ln float64 }) {
	for i := range t {
		c := 1 + (float64(i)+0.5)/(1<<logBits)
		t[i].inverse = math.Round(1/c*(1<<11)) / (1 << 11)
		t[i].ln = math.Round((-math.Log(t[i].inverse)-1e-8)*logUnits) / logUnits
	}
	return t
}()

// minusLog returns −ln(u) + 1e-8 for u = x/2⁶⁴, off by a fraction of that: a logarithm that is the same everywhere and takes little of math.Log's time is all that Hash
// needs. It is more than 0. (The conversions keep compilers from fusing a multiplication with an addition, which some platforms would round in another way.)
func minusLog(x uint64) float64 {
	zeros := bits.LeadingZeros64(x | 1)
	x <<= zeros
	return float64(float64(zeros+1)*math.Ln2) - lnMantissa(x<<1)
}

// lnMantissa returns ln(1 + m/2⁶⁴) − 1e-8.
func lnMantissa(m uint64) float64 {
	cell := &logs[m>>(64-logBits)]
	r := float64(math.Float64frombits(m>>12|1023<<52)*cell.inverse) - 1 // so small that ln(1+r) is r − r²/2
	return cell.ln + (r - float64(r*float64(r*0.5)))
}

// Sum is a 64-bit hash of s, the same in every process and on every platform: eight bytes at a time are multiplied to 128 bits, of which the halves are folded, as in wyhash. Whoever
// knows it can find keys that collide; that gains them a relay, which they could as well have had by another key.
func Sum(s string) uint64 {
	h := uint64(len(s)) * odd1
	if len(s) < 8 {
		var last uint64
		for i := range len(s) {
			last |= uint64(s[i]) << (8 * i)
		}
		return mix(fold(h ^ last))
	}
	for rest := s; len(rest) > 8; rest = rest[8:] {
		h = fold(h ^ eight(rest))
	}
	return mix(fold(h ^ eight(s[len(s)-8:]))) // some of them for the second time
}

// eight returns the first eight bytes of s.
func eight(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 | uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

const (
	odd1 = 0x9e3779b97f4a7c15 // 2^64 divided by the golden ratio
	odd2 = 0xd6e8feb86659fd93
)

func fold(x uint64) uint64 {
	hi, lo := bits.Mul64(x^odd2, odd1)
	return hi ^ lo
}

// mix is the finalizer of SplitMix64 (S. Vigna): one-to-one, and each bit of x changes half of the result's.
func mix(x uint64) uint64 {
	x += odd1
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
