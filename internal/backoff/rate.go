package backoff

import "time"

// How the rate is found
//
// The relay has a limit that it doesn't tell. What is known of it are two numbers: proven, a rate that was used for a while and nobody complained, and wall, one that was too much. Where nothing is proven, a throttle
// halves the rate. Then the middle between the two is tried, for a step (a minute): where that goes well it is the new proven, where not the new wall, and the old proven rate is kept for a while before the next trial. When the
// two are near each other, the rate stays, and the wall itself is tried every tenth step, as it may have gone. Past the wall the steps are a tenth of the cap, as at the beginning of all.
//
// Where no rate is configured, and there was only a moment to measure one in, what was measured may be a tenth of the limit or ten times as much: then the wall is tried at once, and the steps past it are half of what is proven, until
// one is too much.
//
// Where something that was proven is too much all the same, a seventh less is tried first, and then half. One second after a throttle is enough to see whether the lower rate does, so the rate is lowered for each message that was begun
// since and is refused; W is halved once a minute only.
//
// That departs from the plain "+10 % of the cap each minute", which is throttled every few minutes for ever, and uses three quarters of the capacity while it is at it: with this, a throttle that a trial brought about costs a
// second, comes every tenth minute, and doesn't count for back-off mode, as it says nothing new about the relay. What is not our own trial does count, and what was proven isn't any more then.
//
// After a throttle the relay's own bucket is full. So nothing is sent for a second (State.hold), and a tenth less for half a minute.
const (
	buckets    = 12
	bucketSpan = 5 * time.Second

	slowest    = 1.0 / 60 // messages a second
	drainFor   = 30 * time.Second
	drainShare = 0.9
	enough     = 0.05 // of the wall, between it and what is proven: no more trials
	used       = 0.7  // of a rate, for its step to prove anything
	unproven   = 0.85 // of a rate that was proven, and is too much all the same; half of it where that isn't enough
	waitSteps  = 2.5  // after a trial that failed
	probeSteps = 10   // of rest before the wall is tried
	cubeSteps  = 0.1  // of the cap, past the wall
	rememberIt = time.Hour
	roughFor   = 10 * time.Second // what was measured for less is a burst, no rate
	roughStep  = 0.5              // of what is proven, where the base is one
)

// rates is the part of State that is about messages a second.
type rates struct {
	limited   bool    // the rest means something
	target    float64 // what is allowed, but for draining and back-off mode
	proven    float64 // 0: nothing
	wall      float64 // 0: none
	base      float64 // what was allowed, or used, before the first throttle; the cap where none is configured
	confirmed bool    // a trial has found the wall
	rough     bool    // base says little: it was measured in a moment, and no trial has found a wall
	trial     bool    // target is above proven: a throttle is no surprise
	since     time.Time
	sent      int       // since then
	calm      time.Time // no trial before then
	drain     time.Time // until then a tenth less
	hit       time.Time // the last throttle
	mark      float64   // of back-off mode

	from   time.Time // the first message of those that follow each other within a minute
	last   time.Time
	counts [buckets]int
	slot   int64 // of the newest of counts, since from
}

// count counts a message for the measured rate.
func (s *State) count(now time.Time) {
	if s.last.IsZero() || now.Sub(s.last) > buckets*bucketSpan {
		s.from, s.slot = now, 0
		s.counts = [buckets]int{}
	}
	if now.After(s.last) {
		s.last = now
	}
	for slot := int64(now.Sub(s.from) / bucketSpan); s.slot < slot; {
		s.slot++
		s.counts[s.slot%buckets] = 0
	}
	s.counts[s.slot%buckets]++
	s.sent++
}

// measured is the rate of the last minute, or since messages began to come.
func (s *State) measured(now time.Time) float64 {
	n := 0
	for _, c := range s.counts {
		n += c
	}
	from := s.from.Add(time.Duration(max(s.slot-buckets+1, 0)) * bucketSpan)
	d := now.Sub(from).Seconds()
	if n < 2 || d <= 0 {
		return 1
	}
	return float64(n-1) / max(d, 0.1)
}

// cap is the rate that is strived for, 0: any.
func (s *State) cap() float64 {
	if s.cfg.Rate > 0 {
		return s.cfg.Rate
	}
	return s.base
}

// throttled lowers the rate, and reports whether that came as a surprise.
func (s *State) throttled(now time.Time) (surprise bool) {
	s.hit, s.drain = now, now.Add(drainFor)
	if !s.limited {
		s.limited = true
		s.base = s.cfg.Rate
		if s.base == 0 {
			s.base = s.measured(now)
			s.rough = now.Sub(s.from) < roughFor
		}
		s.target = s.base
	}
	if s.mode {
		s.mark = max(s.mark/2, slowest)
		s.wall = min(s.wall, s.mark*2)
		return true
	}
	if s.wall == 0 || s.wall > s.target {
		s.wall, s.confirmed = s.target, false
	}
	if s.trial && s.proven > 0 && s.proven < s.target {
		s.confirmed, s.rough = true, false
		s.try(now, s.proven, false)
		s.calm = now.Add(s.steps(waitSteps))
		if s.wall-s.proven <= enough*s.wall {
			s.calm = now.Add(s.steps(probeSteps))
		}
		return false
	}
	share := 0.5
	if s.proven > 0 {
		share = unproven
	}
	s.proven = 0
	s.try(now, max(s.target*share, slowest), false)
	s.calm = now.Add(s.cfg.Step)
	return true
}

func (s *State) try(now time.Time, rate float64, trial bool) {
	s.target, s.trial, s.since, s.sent = rate, trial, now, 0
}

func (s *State) steps(n float64) time.Duration { return time.Duration(n * float64(s.cfg.Step)) }

// crawl is the rate of back-off mode.
func (s *State) crawl(now time.Time) {
	s.mark = max(s.cap()*modeShare, slowest)
	s.mark = min(s.mark, max(s.target, slowest))
	s.proven = 0
}

// settle goes on from the rate of back-off mode.
func (s *State) settle(now time.Time) {
	s.try(now, s.mark, false)
	s.calm = now.Add(s.cfg.Step)
	s.drain = time.Time{}
}

func (s *State) forget() {
	s.limited, s.trial, s.rough = false, false, false
	s.target, s.proven, s.wall, s.base = 0, 0, 0, 0
}

// climb takes the next step where it is due.
func (s *State) climb(now time.Time) {
	if !s.limited {
		return
	}
	if now.Sub(s.hit) >= max(rememberIt, s.steps(60)) {
		s.forget()
		return
	}
	if now.Before(s.calm) {
		return
	}
	d := now.Sub(s.since)
	if d < s.cfg.Step {
		return
	}
	if float64(s.sent) < used*s.target*d.Seconds() { // nobody wants more
		s.since, s.sent = now, 0
		return
	}
	s.proven = s.target
	switch gap := s.wall - s.proven; {
	case s.wall == 0 || gap <= 0: // past it
		s.wall, s.confirmed = 0, false
		step := cubeSteps * s.cap()
		if s.rough {
			step = max(step, roughStep*s.proven)
		}
		next := s.proven + step
		if s.cfg.Rate > 0 && next >= s.cfg.Rate {
			if s.proven >= s.cfg.Rate {
				s.forget()
				return
			}
			next = s.cfg.Rate
		}
		s.try(now, next, true)
	case gap > enough*s.wall && !s.rough:
		s.try(now, s.proven+gap/2, true)
	case s.trial && s.confirmed: // near enough: rest
		s.try(now, s.proven, false)
		s.calm = now.Add(s.steps(probeSteps))
	default: // rested, or the wall is no more than where a burst was too much
		s.try(now, s.wall, true)
	}
}

// Rate is how many messages a second may be sent now; 0: any number. Where it is less than what is configured, they should leave one by one: a bucket for more than a twentieth of a second's worth makes bursts that the relay refuses,
// from which nothing is learnt about its rate.
func (s *State) Rate(now time.Time) float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance(now)
	return s.rateNow(now)
}

func (s *State) rateNow(now time.Time) float64 {
	switch {
	case s.mode && s.cfg.Rate > 0:
		return min(s.mark, s.cfg.Rate)
	case s.mode:
		return s.mark
	case !s.limited:
		return s.cfg.Rate
	}
	r := s.target
	if now.Before(s.drain) {
		r *= drainShare
	}
	if s.cfg.Rate > 0 {
		r = min(r, s.cfg.Rate)
	}
	return max(r, slowest)
}
