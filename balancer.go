package smtplb

import (
	"math/bits"
	"time"
)

// Balancer chooses among the relays of a tier. NewPicker is called when the set of relays or a weight changes; the Picker that it
// returns is used by many goroutines at once. The smtplb package has RoundRobin, LeastInFlight, Latency, Random, Hash, FirstAvailable and Adaptive, the default.
//
// Where NewPicker returns nil, or panics, New and Update return an error; afterwards, when only a weight has changed, the old Picker stays.
//
// Relays that are sick, full or were tried already are skipped by the pool: a Balancer has only to choose among the rest. The package balancertest
// puts a Balancer to the test.
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
	Key     string // Envelope.Key
	Stream  string // Envelope.Stream
	From    string // the envelope's sender, canonical; "" for the null sender
	Domain  string // the first recipient's domain, lower case, A-labels
	Attempt int    // from 1: a failover must not use up a relay's place in a sequence
	Skip    Bitset // relays that can't be taken now: tried already, sick, without a free connection. Valid during the call only
}

// Bitset is a set of small numbers: bit i%64 of word i/64.
type Bitset []uint64

// Has reports whether i, which must not be negative, is in the set. A number beyond its last word is not.
func (b Bitset) Has(i int) bool {
	w := i >> 6
	return w < len(b) && b[w]&(1<<(i&63)) != 0
}

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

// RelayView is what a Balancer sees of a relay. Its methods may be called at any time, in a pick too: they take no lock. The numbers are of the moment; when a
// weight changes there is a new Picker.
type RelayView interface {
	Name() string
	Weight() float64        // what counts now, in proportion to the others'; 0: not to be chosen
	InFlight() int          // connections in use by sends
	Limit() int             // of connections; 0: none
	Latency() time.Duration // mean time until the relay has taken an envelope, dialling included where that was needed, without the message itself; 0: not known yet
}
