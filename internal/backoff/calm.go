package backoff

import "time"

// Calm reports whether nothing is held back any more: what cfg allows is allowed.
func (s *State) Calm(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance(now)
	if now.Sub(s.halvedAt) >= rememberIt { // with little mail the window never grows as far: see Success
		s.window = max(s.window, s.limit(s.most(), now))
	}
	return !s.limited && !s.mode && !s.quota && !now.Before(s.suspended) && s.limit(s.window, now) >= s.most()
}

// most is the window that needn't grow.
func (s *State) most() float64 {
	if s.cfg.MaxConns > 0 {
		return float64(s.cfg.MaxConns)
	}
	return startWindow
}

// CountLike takes over what another has counted: mail of which this one is a part.
func (s *State) CountLike(o *State) {
	o.mu.Lock()
	counts, from, slot, last, sent := o.counts, o.from, o.slot, o.last, o.sent
	o.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts, s.from, s.slot, s.last, s.sent = counts, from, slot, last, sent
}
