package discover

import (
	"errors"
	"math/rand/v2"
	"slices"
	"time"
)

// How long an answer is good for, and how soon it is asked for again after a failure: doubling from retryFirst. All that ±20 %, so that processes which started
// together don't ask together.
const (
	refreshEvery = time.Minute
	retryFirst   = 5 * time.Second
	jitter       = 0.2
)

// believeAfter is how often in a row DNS must say that the records are gone before that is believed: a zone that is being reloaded says so too.
const believeAfter = 3

// Refresher remembers what a domain's SRV records said last, and when to ask again. It starts nothing and reads no clock. That DNS is asked from time to time and not at each
// connection is what RFC 8314 §5.1 wants. The zero Refresher has no answer and is due at once. It is for one goroutine at a time.
type Refresher struct {
	Rand func() float64 // in [0, 1); nil: math/rand/v2

	targets []Target
	err     error // of the last lookup
	next    time.Time
	failed  int // lookups in a row
	gone    int // ErrNoRecords in a row
}

// Next is when to ask again.
func (r *Refresher) Next() time.Time { return r.next }

// Due reports whether it is time to ask.
func (r *Refresher) Due(now time.Time) bool { return !now.Before(r.next) }

// Targets are those of the last good answer, which are not to be modified. err is why there is none, or why the last lookup brought no newer one; nil where the last one succeeded.
func (r *Refresher) Targets() (targets []Target, err error) { return r.targets, r.err }

// Note takes what LookupSubmission returned at now, and reports whether the targets changed by it. A failure of DNS leaves them as they are, however long it lasts. ErrNotOffered
// empties them, and so does ErrNoRecords the third time in a row.
func (r *Refresher) Note(now time.Time, targets []Target, err error) (changed bool) {
	r.err = err
	if errors.Is(err, ErrNoRecords) {
		r.gone++
	} else {
		r.gone = 0
	}
	keep := false
	switch {
	case err == nil, errors.Is(err, ErrNotOffered):
		r.failed = 0
	default:
		keep = r.gone < believeAfter
		r.failed++
	}
	r.next = now.Add(r.wait())
	if err != nil {
		targets = nil
	}
	if keep || slices.Equal(r.targets, targets) {
		return false
	}
	r.targets = slices.Clone(targets)
	return true
}

func (r *Refresher) wait() time.Duration {
	d := refreshEvery
	if r.failed > 0 {
		d = min(retryFirst<<min(r.failed-1, 8), refreshEvery)
	}
	random := r.Rand
	if random == nil {
		random = rand.Float64
	}
	return time.Duration(float64(d) * (1 - jitter + 2*jitter*random()))
}
