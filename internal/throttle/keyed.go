package throttle

import (
	"sync"
	"time"
)

// Keyed is a bucket of one Rate for each key. Those that are full are forgotten little by little: a new one is as good. It is safe for concurrent use.
type Keyed struct {
	mu      sync.Mutex // guards what follows
	rate    Rate
	max     int
	buckets map[string]*Bucket
	crowd   *Bucket // of the keys that there is no room for
}

// NewKeyed returns buckets for up to max keys. Where so many are known, none of which is full, the others share one bucket: too little is allowed then rather than too much.
func NewKeyed(r Rate, max int) *Keyed {
	return &Keyed{rate: r, max: max, buckets: make(map[string]*Bucket)}
}

// sweeps is how many buckets are looked at for each new one: so those that are full go faster than new ones come, and nobody waits for it.
const sweeps = 4

// Get returns the bucket of a key. It is not to be kept: when it is full, it may be forgotten.
func (k *Keyed) Get(now time.Time, key string) *Bucket {
	k.mu.Lock()
	defer k.mu.Unlock()
	if b := k.buckets[key]; b != nil {
		return b
	}
	n := 0
	for other, b := range k.buckets { // Go begins anywhere
		if b.Full(now) {
			delete(k.buckets, other)
		}
		if n++; n == sweeps {
			break
		}
	}
	if len(k.buckets) >= k.max {
		if k.crowd == nil {
			k.crowd = NewBucket(k.rate, now)
		}
		return k.crowd
	}
	b := NewBucket(k.rate, now)
	k.buckets[key] = b
	return b
}

// Set gives all of them another rate, see Bucket.Set.
func (k *Keyed) Set(now time.Time, r Rate) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.rate == r {
		return
	}
	k.rate = r
	for _, b := range k.buckets {
		b.Set(now, r)
	}
	if k.crowd != nil {
		k.crowd.Set(now, r)
	}
}

// Len returns how many keys are known.
func (k *Keyed) Len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.buckets)
}
