package backoff

import (
	"math"
	"sync"
	"time"
)

// Config is what is allowed where nobody complains.
type Config struct {
	MaxConns int           // 0 or less: any number
	Rate     float64       // messages a second; 0: any number
	Step     time.Duration // between two trials of a higher rate: a minute (0) for an account's limits, an hour for a reputation
}

const (
	startWindow   = 5               // connections at first
	headroom      = 5               // W doesn't grow where so much of it is free
	decreaseEvery = time.Minute     // W is halved once in this time
	ceilingFor    = time.Hour       // that a refused connection is remembered
	quotaFor      = time.Hour       // between two probes of a used-up quota
	longestHint   = time.Hour       // of a reply
	longestFor    = 24 * time.Hour  // of a rule
	strikeWindow  = 5 * time.Minute // so many strikes in it are back-off mode
	strikes       = 3
	modeShare     = 0.1              // of the rate in back-off mode
	modeLeast     = time.Minute      // in back-off mode
	modeSuccesses = 10               // in a row, which end it
	modeMost      = 30 * time.Minute // in back-off mode, doubled by each re-entry
	modeLongest   = 4 * time.Hour
	defaultStep   = time.Minute
)

const effectBackOff = "back-off mode"

// State is what is kept of one key. Its methods may be called at the same time; they never block, and call nobody.
type State struct {
	mu  sync.Mutex // guards all below; held for arithmetic only
	cfg Config

	window    float64 // W
	ceiling   int     // that a refused connection left; 0: none
	ceilingTo time.Time
	halvedAt  time.Time // of W
	cutAt     time.Time // the last refused connection that had an effect: what began before says nothing new

	rates // rate.go

	suspended time.Time // until then nothing is sent
	whySusp   string
	quota     bool // it is a quota that suspends; until a success one connection is all
	held      int  // pauses since the last success

	strikesAt [strikes]time.Time // the last ones, the oldest first
	reacted   time.Time          // the last decrease of the rate: what began before says nothing new

	mode       bool // back-off mode
	modeFrom   time.Time
	modeUntil  time.Time
	modeEnded  time.Time
	modeFor    time.Duration // the longest of the current, or the last
	inARow     int           // successes
	matches    map[*Rule][]time.Time
	lastText   string // the reply that had an effect last, and when
	lastAt     time.Time
	lastEffect string
}

// New makes a State that allows what cfg does.
func New(cfg Config, now time.Time) *State {
	s := &State{}
	s.cfg = cfg.sane()
	s.window = s.limit(startWindow, now)
	s.from = now
	return s
}

func (c Config) sane() Config {
	if !(c.Rate > 0) || math.IsInf(c.Rate, 0) {
		c.Rate = 0
	}
	if c.Step <= 0 {
		c.Step = defaultStep
	}
	return c
}

// Reconfigure changes what is allowed. What was learnt stays, as far as it is less.
func (s *State) Reconfigure(cfg Config, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cfg = cfg.sane()
	s.window = s.limit(s.window, now)
	if c := s.cfg.Rate; c > 0 && s.limited && !s.mode && s.target >= c {
		s.forget()
	}
}

// limit is w, in the bounds that hold now.
func (s *State) limit(w float64, now time.Time) float64 {
	if s.cfg.MaxConns > 0 {
		w = min(w, float64(s.cfg.MaxConns))
	}
	if s.ceiling > 0 {
		if now.Before(s.ceilingTo) {
			w = min(w, float64(s.ceiling))
		} else {
			s.ceiling = 0
		}
	}
	return max(w, 1)
}

// Success is a message that the relay answered and didn't refuse for its amount, whatever else became of it; inUse are the relay's connections that were in use.
func (s *State) Success(now time.Time, inUse int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count(now)
	s.held = 0
	if s.window < float64(inUse+headroom) {
		s.window = s.limit(s.window+1/s.window, now)
	}
	if s.quota && !now.Before(s.suspended) { // the probe
		s.quota = false
	}
	if s.mode {
		s.inARow++
	}
	s.advance(now)
}

// ConnectFailure is a connection that didn't come about, or ended before it could be used.
func (s *State) ConnectFailure(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.window = s.limit(s.window-1/s.window, now)
	s.inARow = 0
}

// Signal takes a refusal in, and reports whether it had an effect: a rule's threshold may not be reached, or the reply may be one of many to what was begun before the first of them.
func (s *State) Signal(now time.Time, g Signal) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	acted, often := s.take(now, g)
	if often {
		s.hold(now, g.Reply)
		s.note(now, "fewer connections", &g)
	}
	return acted || often
}

// SignalDial is Signal for a connection that was refused before there was a message on it. often: fewer at a time haven't helped. They are opened too often, which Postfix refuses in the same words, or others use up what
// the relay allows: nothing follows from it here. It is for another State, of new connections alone, as a Throttle.
func (s *State) SignalDial(now time.Time, g Signal) (acted, often bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.take(now, g)
}

func (s *State) take(now time.Time, g Signal) (acted, often bool) {
	if g.Kind != Throttle && g.Kind != Connections && g.Kind != Quota {
		return false, false
	}
	s.advance(now)
	if g.Kind == Throttle {
		s.count(now)
	}
	if !s.reached(now, g.Rule) {
		return false, false
	}
	s.inARow = 0
	g.For = min(g.For, longestFor)
	switch g.Kind {
	case Connections:
		return s.tooManyConnections(now, &g)
	case Quota:
		s.quota = true
		s.suspend(now, orElse(g.For, quotaFor), g.Reply)
		s.note(now, "quota used up", &g)
		return true, false
	}
	if g.For > 0 && !g.BackOff {
		s.suspend(now, g.For, g.Reply)
	}
	if g.BackOff && !s.mode {
		s.halveWindow(now)
		s.throttled(now)
		s.enter(now, g.For)
		s.hold(now, g.Reply)
		s.note(now, effectBackOff, &g)
		return true, false
	}
	if !s.reacted.IsZero() && !s.begun(now, g.Began).After(s.reacted) {
		return false, false
	}
	s.reacted = now
	s.halveWindow(now)
	if s.throttled(now) {
		s.strike(now)
	}
	s.hold(now, g.Reply)
	if s.mode {
		s.note(now, effectBackOff, &g)
	} else {
		s.note(now, "halved", &g)
	}
	return true, false
}

// begun is when what is answered now was begun, as far as it is known.
func (s *State) begun(now, began time.Time) time.Time {
	if began.IsZero() {
		return now.Add(-assumedDelay)
	}
	return began
}

// assumedDelay is between a message's beginning and its refusal, where nobody says.
const assumedDelay = 5 * time.Second

// reached counts a match of r, and reports whether its threshold is reached.
func (s *State) reached(now time.Time, r *Rule) bool {
	if r == nil || r.Threshold <= 1 {
		return true
	}
	if s.matches == nil {
		s.matches = make(map[*Rule][]time.Time)
	}
	if _, ok := s.matches[r]; !ok && len(s.matches) >= maxRules { // rules of another configuration
		clear(s.matches)
	}
	at := append(s.matches[r], now)
	for len(at) > 0 && (len(at) > r.Threshold || now.Sub(at[0]) >= r.Per) {
		at = at[1:]
	}
	s.matches[r] = at
	return len(at) >= r.Threshold
}

func (s *State) tooManyConnections(now time.Time, g *Signal) (acted, often bool) {
	most := g.InUse - 1
	if g.InUse <= 0 {
		most = int(s.window) - 1
	}
	most = max(most, 1)
	acted = s.halveWindow(now)
	if acted || g.InUse > 0 && most < s.ceiling {
		s.ceiling, s.ceilingTo = most, now.Add(ceilingFor)
		s.window = s.limit(s.window, now)
		acted = true
	}
	often = !acted && s.begun(now, g.Began).After(s.cutAt)
	if g.For > 0 {
		s.suspend(now, g.For, g.Reply)
		acted = true
	}
	if acted || often {
		s.cutAt = now
	}
	if acted {
		s.note(now, "fewer connections", g)
	}
	return acted, often
}

// halveWindow halves W, once a minute.
func (s *State) halveWindow(now time.Time) bool {
	if !s.halvedAt.IsZero() && now.Sub(s.halvedAt) < decreaseEvery {
		return false
	}
	s.halvedAt = now
	s.window = s.limit(math.Ceil(math.Floor(s.window)/2), now)
	return true
}

func (s *State) suspend(now time.Time, d time.Duration, why string) {
	if until := now.Add(d); until.After(s.suspended) {
		s.suspended, s.whySusp = until, why
	}
}

// hold sends nothing for a moment after a throttle, so that the relay's own bucket isn't brimful when the next message comes: a second, or what one message takes at the rate that is left, and twice as long with each
// message that was answered like this, up to a minute.
func (s *State) hold(now time.Time, why string) {
	d := time.Second
	if rate := s.rateNow(now); rate > 0 {
		d = max(d, time.Duration(float64(time.Second)/rate))
	}
	s.suspend(now, min(d<<min(s.held, 6), time.Minute), why)
	s.held++
}

// strike counts a throttle that we hadn't asked for by trying a higher rate.
func (s *State) strike(now time.Time) {
	copy(s.strikesAt[:], s.strikesAt[1:])
	s.strikesAt[strikes-1] = now
	if first := s.strikesAt[0]; !s.mode && !first.IsZero() && now.Sub(first) < strikeWindow {
		s.enter(now, 0)
	}
}

// enter begins back-off mode, for at most d; 0: as long as it is the turn of.
func (s *State) enter(now time.Time, d time.Duration) {
	if d == 0 {
		d = modeMost
		if s.modeFor > 0 && now.Sub(s.modeEnded) < modeLongest {
			d = min(2*s.modeFor, modeLongest)
		}
		s.modeFor = d
	}
	s.mode, s.modeFrom, s.modeUntil = true, now, now.Add(d)
	s.inARow = 0
	s.window = 1
	s.crawl(now)
	s.reacted = now
}

// advance does what is due by now.
func (s *State) advance(now time.Time) {
	if s.mode && (!now.Before(s.modeUntil) || s.inARow >= modeSuccesses && now.Sub(s.modeFrom) >= modeLeast) {
		s.mode, s.modeEnded = false, now
		s.strikesAt = [strikes]time.Time{}
		s.settle(now)
	}
	if !s.mode {
		s.climb(now)
	}
}

func (s *State) note(now time.Time, effect string, g *Signal) {
	s.lastAt, s.lastEffect, s.lastText = now, effect, g.Reply
}

func orElse(d, other time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return other
}

// Window is how many connections may be in use now.
func (s *State) Window(now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance(now)
	return s.windowNow(now)
}

func (s *State) windowNow(now time.Time) int {
	if s.mode || s.quota {
		return 1
	}
	return int(s.limit(s.window, now))
}

// Mode reports whether this is back-off mode.
func (s *State) Mode(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance(now)
	return s.mode
}

// Suspended is until when nothing is to be sent, and the reply that said so; the zero time where there is nothing of the kind.
func (s *State) Suspended(now time.Time) (until time.Time, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Before(s.suspended) {
		return s.suspended, s.whySusp
	}
	return time.Time{}, ""
}
