package smtplb

import (
	"math/bits"

	"github.com/smtplb/smtplb/internal/balance"
)

// Balancer chooses among the relays of a tier. NewPicker is called when the set of relays or a weight changes; the Picker that it
// returns is used by many goroutines at once.
//
// Relays that are sick, full or were tried already are skipped by the pool: a Balancer has only to choose among the rest.
type Balancer interface {
	NewPicker(relays []RelayView) Picker
}

// Picker is an immutable snapshot. Pick returns the index of a relay that is not in info.Skip, or -1 if there is none. It must not block, should
// neither take a lock nor allocate, and must be safe for concurrent use. An index that is out of range or in Skip counts as -1.
type Picker interface {
	Pick(info PickInfo) int
}

// PickInfo is what a Picker may go by.
type PickInfo struct {
	From    string // the envelope's sender, canonical; "" for the null sender
	Domain  string // the first recipient's domain, lower case, A-labels
	Attempt int    // from 1: a failover must not use up a relay's place in a sequence
	Skip    Bitset // relays that can't be taken now: tried already, sick, without a free connection. Valid during the call only
}

// Bitset is a set of small numbers: bit i%64 of word i/64.
type Bitset []uint64

// Has reports whether i is in the set.
func (b Bitset) Has(i int) bool { return b[i/64]&(1<<(i%64)) != 0 }

// Count returns how many numbers are in the set.
func (b Bitset) Count() int {
	n := 0
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

func (b Bitset) add(i int)    { b[i/64] |= 1 << (i % 64) }
func (b Bitset) remove(i int) { b[i/64] &^= 1 << (i % 64) }

func words(n int) int { return (n + 63) / 64 }

// RelayView is what a Balancer sees of a relay. Its methods may be called at any time; the numbers are of the moment.
type RelayView interface {
	Name() string
	Weight() float64 // 0: it is not used now
	InFlight() int   // connections in use by sends
	Limit() int      // of connections; 0: none
}

// RoundRobin gives each relay its weight's share, as evenly as can be: counted from the start of a period, no relay is ever a whole message away from
// its ideal share (R. Tijdeman, "The chairman assignment problem", 1980). It starts at a random point of the period, so that many processes don't
// begin with the same relay. A pick costs one atomic addition. Where the relay whose turn it is can't be taken, a weighted draw among the others
// decides, so that nobody inherits a dead relay's whole share.
func RoundRobin() Balancer { return roundRobin{} }

type roundRobin struct{}

func (roundRobin) NewPicker(relays []RelayView) Picker {
	weights := make([]float64, len(relays))
	for i, r := range relays {
		weights[i] = r.Weight()
	}
	return &tablePicker{balance.NewTable(weights, 0), weights}
}

type tablePicker struct {
	table   *balance.Table
	weights []float64
}

func (p *tablePicker) Pick(info PickInfo) int {
	if info.Attempt <= 1 {
		if i := p.table.Next(); i >= 0 && !info.Skip.Has(i) {
			return i
		}
	}
	return balance.DrawAmong(p.weights, info.Skip)
}
