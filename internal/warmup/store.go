package warmup

import (
	"maps"
	"slices"
	"time"
)

// NeedsLoad reports whether Adopt has to be called before the next Draft. It is false while a store that has failed is left alone.
func (s *Schedule) NeedsLoad(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.enterLocked(now) >= s.retry && (!s.known || s.stale)
}

// Dirty reports whether something should be stored now. (Draft also has what can wait: what was delivered today. It is for those who come by anyway.) It is false while a store that has failed is left alone.
func (s *Schedule) Dirty(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.enterLocked(now)
	if t < s.retry {
		return false
	}
	if !s.known || s.stale {
		return true
	}
	s.refreshLocked()
	for d, n := range s.news {
		if d != s.date || n.held || n.used || n.delivered > int64(s.relay.lease()) {
			return true
		}
	}
	if s.released {
		return s.anyLocked(func(b *book) bool { return b.back > 0 })
	}
	return s.lost || s.anyLocked((*book).low)
}

func (s *Schedule) anyLocked(f func(*book) bool) bool {
	if f(&s.relay) {
		return true
	}
	for _, p := range s.providers {
		if f(p) {
			return true
		}
	}
	return false
}

// Adopt tells what the store holds; nil: nothing.
func (s *Schedule) Adopt(r *Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r == nil {
		r = &Record{Version: version}
	}
	if !s.known || r.Writer != s.rec.Writer || r.Seq != s.rec.Seq {
		s.resolveLocked(r)
	}
	if !s.known { // what went out before this process began
		s.relay.resume(r.Full, s.seen)
		for name, p := range s.providers {
			p.resume(r.Providers[name], s.seen)
		}
	}
	s.rec = *r.clone()
	s.known, s.stale, s.fresh = true, false, false
	s.retry = 0
}

// resume takes over from a process that has ended. Clocks differ: nobody waits for longer than after a whole burst.
func (b *book) resume(full, t int64) { b.full = max(b.full, min(full, t+int64(refill))) }

// resolveLocked finds out what became of drafts that may have been stored, now that the store holds r, which isn't what they were to follow: none of them can be stored any more.
func (s *Schedule) resolveLocked(r *Record) {
	sent := s.sent
	s.sent = nil
	for _, d := range sent {
		if r.Writer == s.cfg.Writer && r.Seq == d.Record.Seq {
			s.applyLocked(d)
			return
		}
	}
	// Somebody wrote after the draft, or in its place. What it granted isn't used; what it reported or gave back isn't told again, as that might count twice. A later draft reports all that an earlier one did.
	for _, d := range slices.Backward(sent) {
		if !d.refused {
			s.forgetLocked(d)
			return
		}
	}
}

// Draft returns what is to be stored next, if anything is.
func (s *Schedule) Draft(now time.Time) (Draft, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.enterLocked(now)
	if !s.known || s.stale || t < s.retry {
		return Draft{}, false
	}
	begun := s.cfg.Start == 0 || s.date >= s.cfg.Start
	if begun {
		s.refreshLocked()
	}
	r := s.mergedLocked()
	d := Draft{Record: r, day: s.date, news: maps.Clone(s.news)}
	some := len(s.news) > 0
	if begun {
		some = some || s.lost
		s.cfg.open(r, s.date)
		some = s.grantLocked(&d) || some
	}
	if !some {
		return Draft{}, false
	}
	s.fillLocked(&d, t)
	s.seq = max(s.seq, s.rec.Seq) + 1
	r.Version, r.Writer, r.Seq = version, s.cfg.Writer, s.seq
	return d, true
}

// fillLocked adds to d when everything may go out at once again: what is granted may be used before anybody hears of this process again.
func (s *Schedule) fillLocked(d *Draft, t int64) {
	r := d.Record
	mine := r.Writer == s.cfg.Writer // or it is another's too, who may still be sending
	fill := func(b *book, more int, was int64) int64 {
		full := b.full
		if n := b.left + more; n > 0 && b.limit > 0 {
			full = max(full, min(max(full, t)+b.cost(n), t+int64(refill))) // more than a burst can't go out at once
		}
		if !mine {
			full = max(full, was)
		}
		if full <= t { // it is over: nobody needs to know
			return 0
		}
		return full
	}
	r.Full = fill(&s.relay, d.relay, r.Full)
	was := r.Providers
	r.Providers = nil
	for name, p := range s.providers {
		if full := fill(p, d.providers[name], was[name]); full > 0 {
			if r.Providers == nil {
				r.Providers = make(map[string]int64)
			}
			r.Providers[name] = full
		}
	}
}

// grantLocked adds to d what the books need, or have to give back.
func (s *Schedule) grantLocked(d *Draft) bool {
	if !s.anyLocked(func(b *book) bool { return b.back > 0 || !s.released && b.low() }) {
		return false
	}
	day := s.cfg.open(d.Record, s.date)
	d.back = s.released
	day.Granted, d.relay = s.relay.grant(s.released)
	for name, p := range s.providers {
		granted, more := p.grant(s.released)
		if granted == 0 && day.Providers[name] == 0 {
			continue
		}
		if day.Providers == nil {
			day.Providers = make(map[string]int)
		}
		day.Providers[name] = granted
		if more > 0 {
			if d.providers == nil {
				d.providers = make(map[string]int)
			}
			d.providers[name] = more
		}
	}
	return true
}

// grant returns what is granted to everybody if this one is given more.
func (b *book) grant(released bool) (granted, more int) {
	if released {
		return b.granted - b.back, 0
	}
	if b.low() {
		more = max(min(max(b.lease(), b.want)-b.left, b.limit-b.granted), 0)
	}
	return b.granted + more, more
}

// Stored says that d is in the store.
func (s *Schedule) Stored(d Draft) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = nil
	s.applyLocked(d)
	s.rec = *d.Record.clone()
	s.failures, s.retry, s.fresh = 0, 0, false
}

// applyLocked makes what d grants usable, or something to give back where nothing is taken any more. For another day than today it is of no use.
func (s *Schedule) applyLocked(d Draft) {
	s.forgetLocked(d)
	if d.day != s.date {
		return
	}
	s.relay.apply(d.relay, s.released)
	for name, more := range d.providers {
		if p := s.providers[name]; p != nil {
			p.apply(more, s.released)
		}
	}
}

func (b *book) apply(more int, released bool) {
	if released { // it was on its way, and is in the record
		b.back += more
		return
	}
	b.leased += more
	b.left += more
	b.granted += more
	if b.left >= b.want {
		b.want = 0
	}
}

// forgetLocked drops the news that d has told.
func (s *Schedule) forgetLocked(d Draft) {
	for day, told := range d.news {
		n := s.news[day]
		n.delivered -= told.delivered
		n.held = n.held && !told.held
		n.used = n.used && !told.used
		if n == (news{}) {
			delete(s.news, day)
		} else {
			s.news[day] = n
		}
	}
	if d.back && d.day == s.date {
		s.relay.back = 0
		for _, p := range s.providers {
			p.back = 0
		}
	}
}

// Refused says that d isn't stored, because the store holds something else than what was adopted or stored last.
func (s *Schedule) Refused(d Draft) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.refused = true
	s.sent = append(s.sent, d)
	s.stale = true
}

// Failed says that the store couldn't be read (with the zero Draft), or that d may be stored or not, or may yet be. The store is left alone for a second, and for twice as long after each failure that follows, up to a minute.
func (s *Schedule) Failed(now time.Time, d Draft) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.enterLocked(now)
	if d.Record != nil {
		s.sent = append(s.sent, d)
		s.stale = true
	}
	pause := min(firstRetry<<min(s.failures, 10), lastRetry)
	s.failures++
	s.retry = t + int64(pause)
}

// Release ends the taking of this Schedule: what is left of its leases can be given back by one more Draft.
func (s *Schedule) Release(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enterLocked(now)
	if s.released {
		return
	}
	s.released = true
	s.relay.release()
	for _, p := range s.providers {
		p.release()
	}
}

func (b *book) release() {
	b.back, b.left = b.left, 0
	b.leased -= b.back
}
