package throttle

import (
	"hash/maphash"
	"math"
	"strings"
	"time"
)

// Keyed is a bucket of one Rate for each key. Those that are full are forgotten little by little: a new one is as good. It is safe for concurrent use.
//
// Where max keys are known, none of which is full, the others share one bucket, the crowd's: each is allowed too little then rather than too much. As long as that one isn't full, a new bucket begins with what is in it:
// its key may have been one of the crowd.
type Keyed struct {
	home  home
	seed  maphash.Seed
	max   int
	crowd *Bucket // nil until there is one

	// A hash table of chains that grows by one chain at a time (linear hashing), so that nobody ever waits for all of it to be moved. It doesn't shrink: a chain is 8 bytes.
	segments [][]*Bucket
	chains   uint32 // how many there are
	mask     uint32 // 2^k−1, of the smallest 2^k that is not below chains
	known    int
	hand     uint32 // the chain that is looked at next for full buckets
}

const (
	segment = 256 // chains
	looks   = 1   // chains that each Get looks at for full ones
	sweeps  = 4   // chains that it looks at for each new one, so that full ones go faster than new ones come
	search  = 32  // chains at most that it looks at where there are max
)

// NewKeyed returns buckets for up to most keys.
func NewKeyed(r Rate, most int) *Keyed {
	k := &Keyed{seed: maphash.MakeSeed(), max: most, segments: [][]*Bucket{make([]*Bucket, segment)}, chains: 1}
	k.home.keyed = k
	k.home.set(time.Time{}, r)
	return k
}

// Get returns the bucket of a key. Who keeps it longer than it is known takes from the one that the key has then; only the crowd's is not to be kept, as its keys may get one of their own.
func (k *Keyed) Get(now time.Time, key string) *Bucket {
	k.home.mu.Lock()
	defer k.home.mu.Unlock()
	now = k.home.advance(now)
	return k.look(now, key)
}

// Wait is Wait of the bucket of a key.
func (k *Keyed) Wait(now time.Time, key string, n int) time.Duration {
	k.home.mu.Lock()
	defer k.home.mu.Unlock()
	return k.look(k.home.advance(now), key).wait(now, n)
}

// Take is Take of the bucket of a key.
func (k *Keyed) Take(now time.Time, key string, n int) {
	k.home.mu.Lock()
	defer k.home.mu.Unlock()
	k.look(k.home.advance(now), key).take(now, n)
}

// Return is Return of the bucket of a key.
func (k *Keyed) Return(now time.Time, key string, n int) {
	k.home.mu.Lock()
	defer k.home.mu.Unlock()
	k.look(k.home.advance(now), key).give(now, n)
}

// Set gives all of them another rate, see Bucket.Set. It looks at all of them.
func (k *Keyed) Set(now time.Time, r Rate) {
	k.home.mu.Lock()
	defer k.home.mu.Unlock()
	if k.home.rate == r {
		return
	}
	now = k.home.advance(now)
	k.home.set(now, r)
	for i := range k.chains {
		for b := *k.chain(i); b != nil; b = b.next {
			b.set(now)
		}
	}
	if k.crowd != nil {
		k.crowd.set(now)
	}
}

// Len returns how many keys are known.
func (k *Keyed) Len() int {
	k.home.mu.Lock()
	defer k.home.mu.Unlock()
	return k.known
}

// The methods that follow need the lock.

func (k *Keyed) look(now time.Time, key string) *Bucket {
	b := k.get(now, key)
	k.sweep(now, looks, b)
	return b
}

func (k *Keyed) get(now time.Time, key string) *Bucket {
	hash := uint32(maphash.String(k.seed, key))
	for b := *k.chain(k.index(hash)); b != nil; b = b.next {
		if b.hash == hash && b.key == key {
			return b
		}
	}
	k.sweep(now, sweeps, nil)
	for n := 0; k.known >= k.max && n < search; n++ {
		k.sweep(now, 1, nil)
	}
	if k.known >= k.max {
		if k.crowd == nil {
			k.crowd = k.newBucket(now)
		}
		return k.crowd
	}
	b := k.newBucket(now)
	b.key, b.hash = strings.Clone(key), hash // a copy: key may be a small part of something large
	if k.crowd != nil && !k.crowd.full(now) {
		b.credit = k.crowd.level(now)
		if debt := math.Ceil(max(-b.credit, 0)); debt > 0 { // the Limiter owes, a credit can't
			b.spend(now, int(debt))
			b.credit += debt
		}
	}
	k.known++
	head := k.chain(k.index(hash))
	b.next, *head = *head, b
	if k.known > int(k.chains) {
		k.grow()
	}
	return b
}

func (k *Keyed) newBucket(now time.Time) *Bucket {
	b := &Bucket{home: &k.home}
	b.set(now)
	return b
}

func (k *Keyed) chain(i uint32) **Bucket { return &k.segments[i/segment][i%segment] }

// index is the number of the chain that a hash belongs to.
func (k *Keyed) index(hash uint32) uint32 {
	i := hash & k.mask
	if i >= k.chains { // not there yet: it is still one with that of half its bits
		i &= k.mask >> 1
	}
	return i
}

// grow adds a chain, and moves to it what belongs there: from one other.
func (k *Keyed) grow() {
	i := k.chains
	if i > k.mask {
		k.mask = k.mask<<1 | 1
	}
	if int(i/segment) == len(k.segments) {
		k.segments = append(k.segments, make([]*Bucket, segment))
	}
	k.chains++
	to := k.chain(i)
	for p := k.chain(i & (k.mask >> 1)); *p != nil; {
		b := *p
		if k.index(b.hash) != i {
			p = &b.next
			continue
		}
		*p, b.next, *to = b.next, *to, b
	}
}

// sweep forgets the full buckets of the next chains, but for keep.
func (k *Keyed) sweep(now time.Time, chains int, keep *Bucket) {
	for range chains {
		if k.hand++; k.hand >= k.chains {
			k.hand = 0
		}
		for p := k.chain(k.hand); *p != nil; {
			b := *p
			if b == keep || !b.full(now) {
				p = &b.next
				continue
			}
			*p, b.next = b.next, nil
			b.sure.Store(forgotten)
			k.known--
		}
	}
}
