package smtplb

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/internal/breaker"
	"github.com/smtplb/smtplb/internal/connpool"
	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/verdict"
)

// This file knows which relays are well. A relay's circuit breaker learns from the messages that it was given; where there are none, it is asked (checks.go). An operator has
// the last word (admin.go). In the order of what counts more:
//
//	maintenance, drain   SetAdmin: no new mail
//	down                 checks failed
//	open, half-open      its circuit breaker
//	slow start           it was one of these a moment ago, and gets its weight and connections back little by little
//	starting             nothing is known yet; it is used
//	up

// Breaker configures a relay's circuit breaker. Only the relay's own faults count: no connection, a broken one, no answer, a 421, an answer that isn't SMTP, any refusal before MAIL
// (of the connection, EHLO or STARTTLS; a 4xx to AUTH), and later what says that the relay itself is in trouble (RFC 3463 §3.4): a 4xx with 4.3.0, 4.3.1 ("452 4.3.1 Insufficient system storage") or 4.3.5, a 5xx with 5.3.z other than 5.3.4, but for recipients. Replies about a
// recipient, a sender or a message never do, nor does a caller who leaves, nor do replies that speak of an amount or a rate ("454 Throttling failure", "421 4.7.0 Too many connections", "4.3.2"), whatever their code: the relay is given less mail for them, see
// Relay.NoBackOff, and only the probe of an open breaker fails by them. Relay.Rules change nothing of that.
//
// Refused credentials, certificates that aren't accepted, and three messages in a row
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
	s.OnChange = r.changed
	return breaker.New(s)
}

// wellness is what is known of a relay's health besides its breaker.
//
// What a send goes by are atomics: they are written by whoever learns something, who then calls changed. That one brings everything else into line with them.
type wellness struct {
	admin    atomic.Uint32 // AdminState; written under mu
	down     atomic.Bool   // checks say so; written under mu
	ignored  atomic.Bool   // its tier panics: the breaker is not looked at
	proven   atomic.Bool   // it has answered a message or a check
	answered atomic.Int64  // Unix nanoseconds of the last message's end that it answered
	rising   atomic.Int64  // Unix nanoseconds of the beginning of its slow start, 0: it is whole; written under mu

	slowStart atomic.Int64                    // of the configuration, in nanoseconds; not above 0: none
	full      atomic.Pointer[connpool.Limits] // of the configuration
	most      atomic.Int64                    // connections that it may have now, 0: no limit

	mu     sync.Mutex // guards the following fields; held for arithmetic only
	absent bool       // it was away since it was whole
	told   condition  // what hooks and log have been told
	checks checks
}

// The states of a relay.
const (
	stateStarting    = "starting"
	stateUp          = "up"
	stateSlow        = "slow start"
	stateDown        = "down"
	stateOpen        = "open"
	stateHalfOpen    = "half-open"
	stateDrain       = "drain"
	stateMaintenance = "maintenance"
)

func used(state string) bool { return state == stateUp || state == stateStarting }

// condition is a relay's state at some time.
type condition struct {
	state   string
	since   time.Time
	breaker breaker.State
}

// is reports whether that is what an operator wants of the relay.
func (r *standing) is(s AdminState) bool { return r.admin.Load() == uint32(s) }

// ready reports whether the relay may be given a message now, as likely as not: somebody else may be given the one that a half-open relay takes. It takes no lock.
func (r *standing) ready() bool {
	return r.is(AdminReady) && !r.down.Load() && (r.breaker.Ready() || r.ignored.Load())
}

// well reports whether nothing is held against the relay. It takes no lock.
func (r *standing) well() bool {
	return r.is(AdminReady) && !r.down.Load() && r.breaker.State() == breaker.Closed
}

// state names the relay's state.
func (r *standing) state() string {
	switch {
	case r.is(AdminMaintenance):
		return stateMaintenance
	case r.is(AdminDrain):
		return stateDrain
	case r.down.Load():
		return stateDown
	}
	switch r.breaker.State() {
	case breaker.Open:
		return stateOpen
	case breaker.HalfOpen, breaker.Probing:
		return stateHalfOpen
	}
	switch {
	case r.rising.Load() != 0:
		return stateSlow
	case !r.proven.Load():
		return stateStarting
	}
	return stateUp
}

// condition tells the relay's state, why it is not up, and since when it is what it is.
func (r *standing) condition() (state, why string, since time.Time) {
	r.mu.Lock()
	since = r.told.since
	r.mu.Unlock()
	state = r.state()
	return state, r.why(state), since
}

// why tells what has brought the relay into a state.
func (r *standing) why(state string) string {
	switch state {
	case stateDown:
		if err := r.lastChecked().err; err != nil {
			return oneLine(strings.TrimPrefix(err.Error(), r.name+": "))
		}
	case stateOpen, stateHalfOpen:
		why := r.reason(r.breaker.Stats().Cause)
		if r.ignored.Load() {
			why += "; it is used all the same, as most of its tier is sick"
		}
		return why
	case stateUp:
		if times := r.slow(); times > 0 {
			return fmt.Sprintf("slow %.0f×", times)
		}
	case stateSlow:
		return fmt.Sprintf("%.0f %% of its weight and connections", 100*r.share(time.Now()))
	}
	return ""
}

// answers notes that the relay has answered a message.
func (r *standing) answers(at time.Time) {
	r.answered.Store(at.UnixNano())
	if !r.proven.Load() && !r.proven.Swap(true) {
		r.changed()
	}
}

// changed brings the relay's lane, limits and weight into line with what is known of it, and tells hooks and log of a new state. It is called after each change, under
// no lock, perhaps by several at once: the last one finds it as it is.
func (r *standing) changed() {
	if r.breaker.Long() {
		r.ignored.Store(false) // whatever its tier does, a login isn't tried again and again
	}
	r.sync()
	now := time.Now()
	r.mu.Lock()
	was, slow := r.rising.Load(), r.slowStart.Load()
	switch {
	case !r.well():
		r.absent = true
		r.rising.Store(0)
	case r.absent:
		r.absent = false
		if slow > 0 {
			r.rising.Store(now.UnixNano())
		}
	case was != 0 && now.UnixNano()-was >= slow:
		r.rising.Store(0)
	}
	resized := r.rising.Load() != was
	is := condition{r.state(), r.told.since, r.breaker.State()}
	if is.state != r.told.state {
		is.since = now
	}
	same := is == r.told || is.breaker == r.told.breaker && used(is.state) && used(r.told.state) // that it works, or that it isn't known yet, is no news
	r.told = is
	r.mu.Unlock()
	if resized {
		r.resize()
	}
	if same || r.pool.ctx.Err() != nil { // after Close nobody is told any more
		return
	}
	r.away.note(r)
	r.pool.attend()
	event := RelayEvent{Relay: r.name, State: is.state, Breaker: is.breaker.String(), Reason: r.why(is.state), RetryAt: r.retryAt(), Time: now}
	level := slog.LevelInfo
	if is.state == stateOpen || is.state == stateDown {
		level = slog.LevelWarn
	}
	r.pool.tell(event, level)
}

// passage is what a relay's lane is to let through.
type passage uint8

const (
	nothing      passage = iota // and its connections are dropped
	nothingAsked                // by an operator: they are said goodbye on
	oneProbe
	everything
)

func (r *standing) passage() passage {
	switch {
	case !r.is(AdminReady):
		return nothingAsked
	case r.down.Load():
		return nothing
	case r.ignored.Load():
		return everything
	}
	switch r.breaker.State() {
	case breaker.Closed:
		return everything
	case breaker.HalfOpen:
		return oneProbe
	}
	return nothing
}

// sync brings the relay's lane into line with what is known of it. Several may run at once: whoever sets the lane last checks afterwards
// that nothing has moved on.
func (r *standing) sync() {
	for {
		want := r.passage()
		switch conns := r.pool.conns; want {
		case nothing:
			conns.SetState(r.lane, connpool.Down)
		case nothingAsked:
			conns.Drain(r.lane)
		case oneProbe:
			conns.SetState(r.lane, connpool.Once)
		case everything:
			conns.SetState(r.lane, connpool.Up)
		}
		if r.passage() == want {
			return
		}
	}
}

// share is the part of its weight and its connections that the relay has, at most 1. It is less in a slow start.
func (r *standing) share(now time.Time) float64 {
	begun, slow := r.rising.Load(), r.slowStart.Load()
	if begun == 0 || slow <= 0 {
		return 1
	}
	return min(1, max(slowest, float64(now.UnixNano()-begun)/float64(slow)))
}

// resize brings the limits of the relay's lane into line, as sync does its state.
func (r *standing) resize() {
	for {
		want := r.sized()
		r.most.Store(int64(max(want.Max, 0)))
		r.pool.conns.SetLimits(r.lane, want)
		if r.sized() == want {
			return
		}
	}
}

// sized is the limits of the configuration, as much of them as the relay is to have now.
func (r *standing) sized() connpool.Limits {
	l := *r.full.Load()
	if l.Max > 0 {
		l.Max = int(math.Ceil(float64(l.Max)*r.share(time.Now()) - 1e-9))
	}
	l.Max = r.windowed(l.Max)
	return l
}

// rises takes a slow start further, and reports whether there is one.
func (r *standing) rises(now time.Time) bool {
	begun := r.rising.Load()
	switch {
	case begun == 0:
		return false
	case now.UnixNano()-begun >= r.slowStart.Load():
		r.changed()
		return false
	}
	r.resize()
	return true
}

// alarm finds out whether so much of the tier is sick that its breakers are to be ignored.
func (t *tier) alarm(p *Pool, least float64) {
	n, all, well := 0, 0, 0
	for _, r := range t.relays {
		if !r.is(AdminReady) { // that is no sickness
			continue
		}
		n++
		all += r.weight
		if r.well() {
			well += r.weight
		}
	}
	panics := least > 0 && n >= panicSize && float64(well) < least*float64(all)
	if t.panics.Swap(panics) != panics {
		msg := "so many relays are sick that their circuit breakers are ignored"
		if !panics {
			msg = "circuit breakers are no longer ignored"
		}
		p.log(context.Background(), slog.LevelWarn, msg, slog.Int("tier", t.number), slog.Int("well", well), slog.Int("of", all))
	}
	for _, r := range t.relays {
		if ignored := panics && !r.breaker.Long(); r.ignored.Swap(ignored) != ignored {
			r.changed()
		}
	}
}

// permit asks the relay's breaker for leave to try it. Where nearly all relays are sick, it is asked for its opinion only.
func (r *standing) permit() (breaker.Permit, bool) {
	if !r.is(AdminReady) || r.down.Load() {
		return breaker.Permit{}, false
	}
	permit, ok := r.breaker.Allow()
	if !ok && r.ignored.Load() {
		return r.breaker.Force(), true
	}
	return permit, ok
}

// retryAt is when the relay may be used again, as far as that is known; zero where it is not, or where it is used now.
func (r *standing) retryAt() time.Time {
	if r.is(AdminReady) && r.down.Load() {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.checks.due
	}
	if r.breaker.State() == breaker.Closed {
		return time.Time{}
	}
	return r.breaker.RetryAt()
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
		if r.fails.Load() {
			r.fails.Store(false)
		}
		return breaker.Success
	case verdict.Fault:
		r.fails.Store(true)
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
