// Package warmup says how much a relay may send while it is new: so much a UTC day, more from stage to stage, spread over the day.
//
// A day's cap is never exceeded, over restarts either, and nobody waits for a disk. Both at once are possible because what may be used is stored before it may be: a Schedule is granted chunks of the day's cap, leases, by a
// Record that is stored elsewhere; it takes from its lease without asking, and asks for the next one when half of it is used. A process that ends without a word takes the rest of its lease with it: the day has so much less. With a
// store that fails, the lease is all there is.
//
// The Schedule does no I/O. Somebody else carries its Record, one step at a time:
//
//	if s.NeedsLoad() {
//		s.Adopt(what the store holds)
//	}
//	draft, ok := s.Draft(now)
//	// store draft.Record, if the store still holds what was adopted or stored last
//	s.Stored(draft) // it is stored
//	s.Refused(draft) // the store holds something else: load it
//	s.Failed(now, draft) // nobody knows
//
// All methods may be called at any time by anybody, but those of the list above: they are one caller's at a time.
package warmup

import (
	"maps"
	"math"
	"math/bits"
	"slices"
	"sort"
	"sync"
	"time"
)

const (
	// Never is what Wait returns for more than a day's whole cap.
	Never = time.Duration(math.MaxInt64)

	slices24   = 24                    // the share of a day's cap that may go out at once
	refill     = 15 * time.Minute      // in which the next such share comes, where the day is behind
	headStart  = time.Hour             // by which a day's share is ahead: it begins with one twenty-fourth, and is whole at 23:00
	leaseWait  = 50 * time.Millisecond // for a lease that was asked for
	firstRetry = time.Second           // after a store has failed
	lastRetry  = time.Minute
	setBack    = time.Second // a clock that goes back by less was read before another's reading
)

// A Schedule is the warm-up of one relay. Make one with New.
type Schedule struct {
	// mu guards the following fields. It is held for arithmetic only.
	mu        sync.Mutex
	cfg       Config
	known     bool // rec was read
	stale     bool // whether a draft has been stored is not known
	rec       Record
	seq       uint64  // of the last draft
	sent      []Draft // that were to follow rec, and may yet come
	news      map[Date]news
	date      Date // of the leases
	fresh     bool // stage and the books' caps and granted are today's
	stage     int
	lost      bool // nobody remembers the day: that is to be stored, or the next would be lost too
	relay     book
	providers map[string]*book
	failures  int
	retry     int64 // Unix nanoseconds before which the store is left alone
	released  bool
	seen      int64 // Unix nanoseconds: now, as it was told last
}

// book is the account of a cap.
type book struct {
	limit   int // today's; 0: none
	next    int // tomorrow's, as it looks now
	granted int // of it, to everybody
	leased  int // of that, to this Schedule
	left    int // of that, not used
	back    int // was left when the Schedule was released
	want    int // somebody needs so much at once
	full    int64
	// full is the time, in Unix nanoseconds, at which a twenty-fourth of the cap may go out at once again.
}

// news is what of a day isn't stored yet.
type news struct {
	delivered  int64
	held, used bool
}

// Draft is a Record to be stored, and what is granted by it.
type Draft struct {
	Record *Record

	day       Date
	relay     int
	providers map[string]int
	back      bool
	news      map[Date]news
	refused   bool
}

// Taken is what Take gave. The zero value is nothing.
type Taken struct {
	day   Date
	n     int
	books [2]*book // that it was taken from: what is given back to another one, which there may be since, would be more than its cap
}

// N is how much it is, without what was given back.
func (x *Taken) N() int { return x.n }

// Today is how far a day is.
type Today struct {
	Used   int // with what other processes have, or have taken with them
	Cap    int // 0: there is none
	Stage  int // from 0
	Stages int // Stage is this when the warm-up is over
	ByNow  int // of Cap: what may have been used by now, at the most
	Known  bool
	Begins Date // the first day, where that is yet to come: the others are 0, but Stages; 0 otherwise
}

// New returns a Schedule that is told nothing yet: before the first Adopt nothing may be taken.
func New(cfg Config) *Schedule {
	s := &Schedule{cfg: cfg.clone(), news: make(map[Date]news), providers: make(map[string]*book), date: math.MinInt32}
	s.booksLocked()
	return s
}

// booksLocked opens the books of providers that are new, and closes those that have no curve any more.
func (s *Schedule) booksLocked() {
	for name := range s.cfg.PerProvider {
		if s.providers[name] == nil {
			s.providers[name] = new(book)
		}
	}
	maps.DeleteFunc(s.providers, func(name string, _ *book) bool { return s.cfg.PerProvider[name] == nil })
	s.fresh = false
}

// Reconfigure replaces the curves, and what else the configuration says but the Writer, from now on. What was used today was used; with another Start the warm-up begins anew.
func (s *Schedule) Reconfigure(cfg Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	writer := s.cfg.Writer
	s.cfg = cfg.clone()
	s.cfg.Writer = writer
	s.booksLocked()
}

// Wait returns how long n can't be taken yet, for a provider or for none (""): 0 where they can be now, Never where n is more than the cap of the whole day. Where the day has not enough left, it is the time until the next one has. It also asks for
// a lease where one is lacking: see Dirty.
func (s *Schedule) Wait(now time.Time, provider string, n int) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waitLocked(s.enterLocked(now), provider, n)
}

// Take takes n, where Wait is 0. What isn't used is given back by Return.
func (s *Schedule) Take(now time.Time, provider string, n int) (Taken, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.enterLocked(now)
	if s.waitLocked(t, provider, n) != 0 {
		return Taken{}, false
	}
	return s.takeLocked(t, Share{Provider: provider, N: n}), true
}

// takeLocked takes what waitLocked has allowed.
func (s *Schedule) takeLocked(t int64, share Share) Taken {
	n := share.N
	if n <= 0 {
		return Taken{}
	}
	if s.rec.Used != s.date {
		x := s.news[s.date]
		x.used = true
		s.news[s.date] = x
	}
	x := Taken{day: s.date, n: n}
	relay := &s.relay
	if share.Within {
		relay = nil
	}
	for i, b := range [...]*book{relay, s.providers[share.Provider]} {
		if b != nil && b.limit > 0 {
			b.take(t, n)
			x.books[i] = b
		}
	}
	if x.books == [2]*book{} {
		return Taken{}
	}
	return x
}

// Share is what is for one provider, or for none (""), of something that is taken as a whole.
type Share struct {
	Provider string
	N        int
	Within   bool // for the relay it is in another share already
}

// total is what shares are for the relay.
func total(shares []Share) (n int) {
	for _, x := range shares {
		if !x.Within {
			n += x.N
		}
	}
	return n
}

// WaitAll is Wait for several shares together.
func (s *Schedule) WaitAll(now time.Time, shares []Share) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waitAllLocked(s.enterLocked(now), shares)
}

// TakeAll takes all the shares, where WaitAll is 0, or none.
func (s *Schedule) TakeAll(now time.Time, shares []Share) ([]Taken, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.enterLocked(now)
	if s.waitAllLocked(t, shares) != 0 {
		return nil, false
	}
	list := make([]Taken, len(shares))
	for i, x := range shares {
		list[i] = s.takeLocked(t, x)
	}
	return list, true
}

// Return gives back n of what was taken, at most all that wasn't given back before: the relay can't have it. After the day has ended it is of no use to anybody.
func (s *Schedule) Return(x *Taken, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n = min(n, x.n)
	if n <= 0 {
		return
	}
	x.n -= n
	if x.day != s.date || s.released {
		return
	}
	for _, b := range x.books {
		if b != nil {
			b.giveBack(n)
		}
	}
}

// Delivered counts n that the relay has accepted: a Schedule that goes by that advances by them.
func (s *Schedule) Delivered(now time.Time, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enterLocked(now)
	if n <= 0 || !s.cfg.OnDelivery || s.known && s.refreshLocked() && s.stage >= s.cfg.stages() {
		return
	}
	x := s.news[s.date]
	x.delivered += int64(n)
	s.news[s.date] = x
}

// Held says that the relay is asked to slow down today: the day holds its stage.
func (s *Schedule) Held(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enterLocked(now)
	if day := s.rec.find(s.date); day != nil && day.Held {
		return
	}
	x := s.news[s.date]
	x.held = true
	s.news[s.date] = x
}

// Today tells how far the day is. Before the first Adopt only Stages is known.
func (s *Schedule) Today(now time.Time) Today {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enterLocked(now)
	x := Today{Stages: s.cfg.stages()}
	if first := s.cfg.Start; s.known && first != 0 && s.date < first {
		x.Known, x.Begins = true, first
		return x
	}
	if s.known && s.refreshLocked() {
		x.Known, x.Stage, x.Cap = true, s.stage, s.relay.limit
		if x.Cap > 0 {
			x.Used, x.ByNow = min(s.relay.used(), x.Cap), s.relay.byNow(s.seen, s.date)
		}
	}
	return x
}

// Bound is what keeps something from being taken: a cap, and what of it does.
type Bound struct {
	Provider         string // whose cap; "": the relay's
	Why              Why
	N                int // so much of it is wanted
	Used, ByNow, Cap int
}

// Why is what of a cap keeps something from being taken.
type Why uint8

const (
	Nothing Why = iota // no cap: it may go, or a lease is lacking
	TooMany            // it is more than the day's whole cap
	UsedUp             // the day has not so much left
	NotYet             // it comes later in the day
	AtOnce             // the day is behind, and catches up a burst at a time
)

// Bound tells what keeps the shares from being taken for longest.
func (s *Schedule) Bound(now time.Time, shares []Share) (x Bound) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.enterLocked(now)
	if !s.known || s.cfg.Start != 0 && s.date < s.cfg.Start || !s.refreshLocked() {
		return Bound{}
	}
	longest := time.Duration(0)
	look := func(b *book, provider string, n int) {
		if wait := b.wait(t, s.date, n); n > 0 && wait > longest {
			longest, x = wait, Bound{provider, b.why(t, s.date, n), n, min(b.used(), b.limit), b.byNow(t, s.date), b.limit}
		}
	}
	look(&s.relay, "", total(shares))
	for _, y := range shares {
		if p := s.providers[y.Provider]; p != nil {
			look(p, y.Provider, y.N)
		}
	}
	return x
}

// enterLocked brings the Schedule to now, which it returns in Unix nanoseconds.
func (s *Schedule) enterLocked(now time.Time) int64 {
	t := now.UnixNano()
	switch back := s.seen - t; {
	case back > 0 && back < int64(setBack):
		t = s.seen
	case back > 0 && s.seen != 0: // the clock was set back: nobody waits longer for that
		s.relay.full -= back
		for _, p := range s.providers {
			p.full -= back
		}
	}
	s.seen = t
	if d := dateOf(t); d != s.date {
		s.date, s.fresh = d, false
		s.relay = book{full: s.relay.full}
		for _, p := range s.providers {
			*p = book{full: p.full}
		}
	}
	return t
}

// refreshLocked brings stage and caps up to date.
func (s *Schedule) refreshLocked() bool {
	if s.fresh {
		return true
	}
	r := s.mergedLocked()
	day := s.cfg.open(r, s.date)
	s.stage = day.Stage
	next := day.Stage
	if !s.cfg.OnDelivery && !day.Held {
		next++
	}
	s.relay.refresh(s.cfg.Curve, day.Stage, next, day.Granted)
	for name, p := range s.providers {
		p.refresh(s.cfg.PerProvider[name], day.Stage, next, day.Providers[name])
	}
	s.lost = day.Granted == MaxCap && s.rec.find(s.date) == nil
	s.fresh = true
	return true
}

// mergedLocked is a copy of the record with the news.
func (s *Schedule) mergedLocked() *Record {
	r := s.rec.clone()
	for _, d := range slices.Sorted(maps.Keys(s.news)) {
		n := s.news[d]
		if n.used {
			r.Used = d
		}
		day := r.find(d)
		if day == nil {
			if d < s.cfg.Start || d != s.date && (s.cfg.restarts(r) || len(r.Days) >= keepDays && d < r.Days[0].Day) {
				continue // it belongs to no warm-up, or to one that is over, or nobody remembers the day
			}
			day = s.cfg.open(r, d)
		}
		day.Delivered += n.delivered
		day.Held = day.Held || n.held
	}
	return r
}

// waitAllLocked is waitLocked for several shares together: the relay's books are asked for their sum.
func (s *Schedule) waitAllLocked(t int64, shares []Share) time.Duration {
	wait := s.waitLocked(t, "", total(shares))
	for _, x := range shares {
		p := s.providers[x.Provider]
		switch {
		case p == nil || x.N <= 0:
		case !s.known:
			p.want = max(p.want, x.N)
		case s.cfg.Start != 0 && s.date < s.cfg.Start:
			wait = max(wait, s.beforeLocked(t, x.Provider, x.N))
		default:
			w := p.wait(t, s.date, x.N)
			if w == 0 && p.lacks(x.N) {
				w = s.leaseInLocked(t)
			}
			wait = max(wait, w)
		}
	}
	return wait
}

func (s *Schedule) waitLocked(t int64, provider string, n int) time.Duration {
	if n <= 0 {
		return 0
	}
	if !s.known {
		s.relay.want = max(s.relay.want, n)
		if p := s.providers[provider]; p != nil {
			p.want = max(p.want, n)
		}
		return s.leaseInLocked(t)
	}
	if first := s.cfg.Start; first != 0 && s.date < first {
		return s.beforeLocked(t, provider, n)
	}
	s.refreshLocked()
	p := s.providers[provider]
	wait := s.relay.wait(t, s.date, n)
	if p != nil {
		wait = max(wait, p.wait(t, s.date, n))
	}
	if wait > 0 {
		return wait
	}
	lacks := s.relay.lacks(n)
	if p != nil && p.lacks(n) {
		lacks = true
	}
	if lacks {
		return s.leaseInLocked(t)
	}
	return 0
}

// beforeLocked is waitLocked before the warm-up's first day.
func (s *Schedule) beforeLocked(t int64, provider string, n int) time.Duration {
	wait := s.cfg.Start.nanos() - t
	for _, curve := range [][]int{s.cfg.Curve, s.cfg.PerProvider[provider]} {
		limit := capOf(curve, 0)
		if limit == 0 {
			continue
		}
		if n > limit {
			return Never
		}
		wait = max(wait, s.cfg.Start.nanos()+due(n, limit)-t)
	}
	return time.Duration(wait)
}

// leaseInLocked is when a lease may have come.
func (s *Schedule) leaseInLocked(t int64) time.Duration {
	return max(time.Duration(s.retry-t), leaseWait)
}

// due is how long after midnight u of a day's cap may have been used, at the earliest.
func due(u, limit int) int64 {
	return max(mulDiv(dayNanos, u, limit, true)-int64(headStart), 0)
}

// mulDiv returns a·b/c without overflowing on the way.
func mulDiv(a int64, b, c int, up bool) int64 {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	q, rem := bits.Div64(hi, lo, uint64(c))
	if up && rem > 0 {
		q++
	}
	return int64(q)
}

func (b *book) refresh(curve []int, stage, next, granted int) {
	b.limit, b.next = capOf(curve, stage), capOf(curve, next)
	b.granted = max(granted, b.leased) // less is in a record only that somebody has put back
	if b.want > b.limit-b.used() {
		b.want = 0
	}
}

// used is what of the day's cap is gone, as far as is known here.
func (b *book) used() int { return b.granted - b.left }

// burst is what may go out at once.
func (b *book) burst() int { return (b.limit + slices24 - 1) / slices24 }

// cost is how long after u have gone out at once the next u can.
func (b *book) cost(u int) int64 { return mulDiv(int64(refill), u, b.burst(), false) }

func (b *book) wait(t int64, d Date, n int) time.Duration {
	switch {
	case b.limit == 0:
		return 0
	case n > b.limit && b.next > 0 && n > b.next:
		return Never
	case b.used()+n > b.limit:
		tomorrow := d.nanos() + dayNanos - t
		if b.next > 0 {
			tomorrow += due(n, b.next)
		}
		return time.Duration(tomorrow)
	}
	share := d.nanos() + due(b.used()+n, b.limit) - t
	// More than a burst takes a whole one, and what follows waits for the rest.
	burst := b.full - t - int64(refill) + b.cost(min(n, b.burst()))
	return time.Duration(max(share, burst, 0))
}

// why tells which part of wait it is.
func (b *book) why(t int64, d Date, n int) Why {
	switch {
	case n > b.limit:
		return TooMany
	case b.used()+n > b.limit:
		return UsedUp
	case b.used()+n > b.byNow(t, d):
		return NotYet
	}
	return AtOnce
}

// byNow is how much of the day's cap may have been used by now: it is due.
func (b *book) byNow(t int64, d Date) int {
	return sort.Search(b.limit, func(u int) bool { return due(u+1, b.limit) > t-d.nanos() })
}

// lacks reports whether the lease is too small for n, and asks for more.
func (b *book) lacks(n int) bool {
	if b.limit == 0 || n <= b.left {
		return false
	}
	b.want = max(b.want, n)
	return true
}

func (b *book) take(t int64, n int) {
	b.left -= n
	b.full = max(b.full, t) + b.cost(n)
}

func (b *book) giveBack(n int) {
	if b.limit > 0 {
		b.left += n
		b.full -= b.cost(n)
	}
}

// lease is how much is kept at hand, and lost with the process.
func (b *book) lease() int { return max(b.limit/slices24, 1) }

// low reports whether the next lease is to be asked for: half of the last is used, or somebody needs more.
func (b *book) low() bool {
	return b.limit > b.granted && (b.want > b.left || b.leased > 0 && b.left*2 < b.lease())
}
