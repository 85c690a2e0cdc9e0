package smtplb

import (
	"log/slog"
	"time"

	"github.com/smtplb/smtplb/internal/breaker"
	"github.com/smtplb/smtplb/internal/connpool"
	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/verdict"
)

// This file knows which relays are well. Nothing polls a relay: its circuit breaker learns from the messages that it was given.

// Breaker configures a relay's circuit breaker. Only the relay's own faults count: no connection, a broken one, no answer, a 421, an answer that isn't SMTP. Replies about a
// recipient, a sender or a message never do, nor does a caller who leaves. Refused credentials, certificates that aren't accepted, and three messages in a row
// that were sent whole and never answered open it at once, for 5 minutes, doubling with each repetition up to an hour.
//
// An open breaker lets one real message through when its time is over; after two such successes in a row the relay is used again.
// Zero fields mean the default.
type Breaker struct {
	Off         bool          // no breaker: the relay is always tried
	Consecutive int           // faults in a row that open it; default 5; negative: off
	MinOutcomes int           // outcomes within 60 s before Ratio counts; default 20
	Ratio       float64       // share of faults within 60 s that opens it, above 0, at most 1; default 0.5
	OpenFor     time.Duration // the first time, ±20 %, doubling with each repetition; default 15 s
	MaxOpen     time.Duration // the longest; default 5 min
}

func (b Breaker) validate(path string, f *faults) {
	if b.Ratio < 0 || b.Ratio > 1 || b.Ratio != b.Ratio {
		f.add(path+".Ratio", "is %v; it must be above 0 and at most 1 (0: 0.5)", b.Ratio)
	}
	if b.MinOutcomes < 0 {
		f.add(path+".MinOutcomes", "is negative; to switch the breaker off set Off")
	}
	if b.OpenFor < 0 {
		f.add(path+".OpenFor", "is negative; to switch the breaker off set Off")
	}
	if b.MaxOpen < 0 {
		f.add(path+".MaxOpen", "is negative; to switch the breaker off set Off")
	}
}

func (b Breaker) settings() breaker.Settings {
	return breaker.Settings{
		Consecutive: b.Consecutive, MinOutcomes: b.MinOutcomes, Ratio: b.Ratio, OpenFor: b.OpenFor, MaxOpen: b.MaxOpen, Disabled: b.Off,
	}
}

func (r *standing) newBreaker(b Breaker) *breaker.Breaker {
	s := b.settings()
	s.OnChange = r.stateChanged
	return breaker.New(s)
}

// stateChanged is called by the breaker, under no lock, perhaps concurrently.
func (r *standing) stateChanged() {
	r.sync()
	r.down.note(r)
	s := r.breaker.Stats()
	event := RelayEvent{Relay: r.name, State: s.State.String(), Reason: r.reason(s.Cause), RetryAt: s.RetryAt, Time: time.Now()}
	level := slog.LevelInfo
	if s.State == breaker.Open {
		level = slog.LevelWarn
	}
	r.pool.tell(event, level)
}

// sync brings the relay's lane into line with its breaker. Several may run at once: whoever sets the lane last checks afterwards
// that the breaker has not moved on.
func (r *standing) sync() {
	for {
		state := r.breaker.State()
		lane := connpool.Down
		switch state {
		case breaker.Closed:
			lane = connpool.Up
		case breaker.HalfOpen:
			lane = connpool.Once
		}
		r.pool.conns.SetState(r.lane, lane)
		if r.breaker.State() == state {
			return
		}
	}
}

// gravity orders what an attempt can mean for a relay.
var gravity = [...]int{verdict.NotCounted: 0, verdict.Answered: 1, verdict.CoolDown: 2, verdict.Throttle: 3, verdict.Fault: 4, verdict.ConfigFault: 5, verdict.AuthFault: 6}

// maxFinalTimeouts is how often in a row a relay may leave messages unanswered after their end: each is a message whose fate nobody knows.
const maxFinalTimeouts = 3

// outcome is what an attempt means for the relay's breaker.
func (r *standing) outcome(blame verdict.Blame, f verdict.Fact) breaker.Outcome {
	if f.Committed && f.Failure == reply.FailTimeout {
		if r.finalTimeouts.Add(1) >= maxFinalTimeouts {
			return breaker.Long
		}
	} else if blame == verdict.Answered {
		r.finalTimeouts.Store(0)
	}
	switch blame {
	case verdict.Answered:
		return breaker.Success
	case verdict.Fault:
		return breaker.Fault
	case verdict.AuthFault, verdict.ConfigFault:
		return breaker.Long
	case verdict.Throttle, verdict.CoolDown:
		r.cooledUntil.Store(time.Now().Add(coolDown).UnixNano())
		if blame == verdict.Throttle && r.breaker.State() != breaker.Closed {
			return breaker.Fault
		}
	}
	return breaker.NotCounted
}

// cooling reports whether the relay asked for less mail a moment ago. It is then used only where nothing else is left.
func (r *standing) cooling() bool {
	until := r.cooledUntil.Load()
	return until != 0 && until > time.Now().UnixNano()
}
