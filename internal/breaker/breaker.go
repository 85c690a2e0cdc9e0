// Package breaker is the passive health of one relay: a circuit breaker that is fed with what became of real messages.
//
// Underneath lies gobreaker's TwoStepCircuitBreaker, which owns the moves between closed, open and half-open, and is told of all that may move it: faults, and
// what becomes of probes. All that it does in a way that hurts a mail sender is done here instead:
//
//   - Outcomes are counted by the time of their completion, in a window of our own (gobreaker drops those that took longer than
//     its interval: a relay on which every session hangs would look idle).
//   - The way from open to half-open is taken by a timer, with back-off and jitter. gobreaker only goes there when it is asked,
//     and a picker that skips open relays never asks.
//   - Half-open, one message at a time is let through, and one that never reports is given up.
//   - What is read (State, Ready, Stats) is a mirror. Reading never moves anything.
//
// The steps of a send, so that neither an error nor a panic nor runtime.Goexit can lose the permit:
//
//	permit, ok := b.Allow()
//	if !ok {
//		return errNotNow
//	}
//	outcome := breaker.NotCounted
//	defer func() { permit.Done(outcome) }()
//	…
//	outcome = breaker.Success
package breaker

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

// Outcome is what a message says about the relay.
type Outcome uint8

// The outcomes.
const (
	NotCounted Outcome = iota // it says nothing: cancelled by the caller, a local error
	Success                   // the relay answered, be it with a refusal of the recipient or of the message
	Fault                     // the relay is at fault
	Long                      // the relay is at fault in a way that does not pass by itself: a refused login, a bad certificate
)

// State is what a breaker lets through.
type State uint8

// The states.
const (
	Closed   State = iota // everything
	Open                  // nothing
	HalfOpen              // one message, as a probe
	Probing               // nothing: a probe is under way
)

func (s State) String() string {
	switch s {
	case Closed:
		return "closed"
	case Open:
		return "open"
	case HalfOpen:
		return "half-open"
	case Probing:
		return "probing"
	}
	return "State(" + strconv.Itoa(int(s)) + ")"
}

// Settings configure a Breaker. The zero value means the defaults.
type Settings struct {
	// Consecutive is the number of faults in a row that open the breaker, however far they lie apart. Default 5; negative: off.
	Consecutive int

	// MinOutcomes within Window, of which the share Ratio or more are faults, open it too. This is looked at after each fault.
	// Defaults 20, 60 s and 0.5; a negative one turns this rule off. The window moves on in twelfths.
	Window      time.Duration
	MinOutcomes int
	Ratio       float64

	// OpenFor is how long the breaker stays open before the first probe: OpenFor·2^k ±20 %, at most MaxOpen, where k is 0 at
	// first, grows by one each time the breaker opens, and falls by one for each full minute that it is closed again.
	// Defaults 15 s and 5 min.
	OpenFor, MaxOpen time.Duration

	// LongOpenFor and MaxLongOpen are the same for an opening by a Long outcome, with a k of its own. Defaults 5 min and 1 h:
	// rare enough for a login that locks itself, and a repaired one is found again within the hour.
	LongOpenFor, MaxLongOpen time.Duration

	// ProbeTimeout is how long a probe may go without a report before its place is given to another. What it reports later is
	// not counted. Default 15 min, which is longer than a session's own timeouts: it is for permits that were lost.
	ProbeTimeout time.Duration

	// Disabled makes a breaker that is always closed and counts nothing.
	Disabled bool

	// OnChange, if not nil, is called after every change of the State. It is called without any lock, in the goroutine that
	// caused the change or in a timer's, possibly several times at once, so it has to read the State itself.
	OnChange func()
}

const (
	causeLong     = "long"           // the Cause after a Long outcome
	probesToClose = 2                // successes in half-open that close the breaker
	cleanMinute   = time.Minute      // closed for this long, k falls by one
	jitter        = 0.2              // of an open time
	minOpen       = time.Millisecond // gobreaker must be past its own timeout of 1 ns when our timer fires
)

func (s Settings) withDefaults() Settings {
	if s.Consecutive == 0 {
		s.Consecutive = 5
	}
	if s.Window == 0 {
		s.Window = time.Minute
	}
	if s.MinOutcomes == 0 {
		s.MinOutcomes = 20
	}
	if s.Ratio == 0 {
		s.Ratio = 0.5
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&s.OpenFor, 15 * time.Second}, {&s.MaxOpen, 5 * time.Minute},
		{&s.LongOpenFor, 5 * time.Minute}, {&s.MaxLongOpen, time.Hour},
		{&s.ProbeTimeout, 15 * time.Minute},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	return s
}

// A Breaker says whether a relay may be tried. Make one with New; its methods may be called at any time by anybody.
type Breaker struct {
	onChange func() // not changed

	state atomic.Uint32 // the mirror of State; written under mu
	off   atomic.Bool   // Settings.Disabled; written under mu

	// What gobreaker's callbacks touch. They run under its mutex, where any call of gobreaker would deadlock.
	trip  atomic.Bool  // the answer to ReadyToTrip
	inner atomic.Int32 // gobreaker's state, as OnStateChange told it

	// mu guards the following fields and orders all calls of gobreaker: with its tiny timeout it would take an Allow that comes
	// right after a trip for a probe. Lock order: mu, then gobreaker's own. OnChange is never called under it.
	mu          sync.Mutex
	set         Settings
	cb          *gobreaker.TwoStepCircuitBreaker[struct{}]
	stopped     bool
	gen         uint64 // a permit of another generation is late. Changes when the breaker opens, when a probe ends, and with Retry
	retries     uint64 // calls of Retry, before which a forced permit is of no use
	window      window
	consecutive int
	cause       string
	trips       int
	since       time.Time
	retryAt     time.Time // zero unless open
	short, long backOff
	timer       *time.Timer // open: to half-open; probing: gives the probe up
	due         time.Time   // when timer has something to do; earlier calls are of a timer that was reset too late
	probe       func(error) // gobreaker's done of the probe under way
	longer      bool        // a Long outcome has come that changes no state: OnChange is to be called all the same
}

var (
	errFault      = errors.New("fault")
	errNotCounted = errors.New("not counted")
)

// New returns a closed Breaker.
func New(s Settings) *Breaker {
	s = s.withDefaults()
	b := &Breaker{set: s, onChange: s.OnChange}
	now := time.Now()
	b.since = now
	b.window.init(s.Window, now)
	b.short = backOff{first: s.OpenFor, most: s.MaxOpen, closed: now}
	b.long = backOff{first: s.LongOpenFor, most: s.MaxLongOpen, closed: now}
	b.off.Store(s.Disabled)
	b.newInner()
	return b
}

// newInner makes a closed gobreaker.
func (b *Breaker) newInner() {
	b.inner.Store(int32(gobreaker.StateClosed))
	b.cb = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		MaxRequests:   probesToClose,
		Interval:      0, // no buckets: they forget what took longer
		Timeout:       1, // always over when our timer asks
		ReadyToTrip:   func(gobreaker.Counts) bool { return b.trip.Load() },
		OnStateChange: func(_ string, _, to gobreaker.State) { b.inner.Store(int32(to)) },
		IsSuccessful:  func(err error) bool { return err == nil },
		IsExcluded:    func(err error) bool { return err == errNotCounted },
	})
}

// Configure changes the settings, but for OnChange. State, counts and back-off stay; an opening that is under way ends when it would have ended. Only Disabled
// closes the breaker, at once.
func (b *Breaker) Configure(s Settings) {
	s = s.withDefaults()
	b.mu.Lock()
	before, now := b.State(), time.Now()
	if s.Window != b.set.Window {
		b.window.init(s.Window, now)
	}
	b.short.first, b.short.most = s.OpenFor, s.MaxOpen
	b.long.first, b.long.most = s.LongOpenFor, s.MaxLongOpen
	b.set = s
	b.off.Store(s.Disabled)
	if s.Disabled && before != Closed && !b.stopped {
		b.gen++
		b.probe = nil
		b.retryAt = time.Time{}
		b.disarmLocked()
		b.newInner()
		b.closeLocked(now)
	}
	b.unlock(before)
}

// Retry ends an opening (a millisecond from now) and a probe, and forgets the back-off of Long outcomes and all permits: what they are about, a login, was changed.
func (b *Breaker) Retry() {
	b.mu.Lock()
	before, now := b.State(), time.Now()
	b.long.k = 0
	b.retries++
	switch {
	case b.stopped:
	case before == Closed:
		b.gen++
	case before == Open:
		b.retryAt = now.Add(minOpen)
		b.armLocked(now, minOpen)
	case before == Probing:
		b.endProbeLocked(b.probe, NotCounted)
	}
	b.unlock(before)
}

// State returns the present state. It takes no lock and never moves the state.
func (b *Breaker) State() State { return State(b.state.Load()) }

// Ready reports whether Allow is likely to say yes: the state is Closed or HalfOpen. It takes no lock.
func (b *Breaker) Ready() bool {
	s := b.State()
	return s == Closed || s == HalfOpen
}

// A Permit is the leave to try the relay once. Its Done must be called at the end, best deferred. Don't copy a permit and then
// call Done on both.
type Permit struct {
	b     *Breaker
	probe func(error) // gobreaker's done, of a probe
	gen   uint64      // of a forced one, retries
	used  bool        // guarded by b.mu

	forced bool // it is Force's
}

// Allow asks for leave to try the relay: always given when Closed, to one at a time when HalfOpen, else refused.
func (b *Breaker) Allow() (Permit, bool) {
	if !b.Ready() {
		return Permit{}, false
	}
	if b.off.Load() {
		return Permit{}, true
	}
	return b.admit()
}

// admit is Allow without the first look.
func (b *Breaker) admit() (Permit, bool) {
	b.mu.Lock()
	before := b.State()
	if b.stopped || before == Open || before == Probing {
		b.mu.Unlock()
		return Permit{}, before == Closed
	}
	if before == Closed { // gobreaker says yes then, and is asked when there is something to tell it, see countLocked
		p := Permit{b: b, gen: b.gen}
		b.mu.Unlock()
		return p, true
	}
	done, err := b.cb.Allow()
	if err != nil { // gobreaker and the mirror disagree, which the tests have never seen
		b.mu.Unlock()
		return Permit{}, false
	}
	now := time.Now()
	b.probe = done
	b.setStateLocked(Probing, now)
	b.armLocked(now, b.set.ProbeTimeout)
	return b.handOver(Permit{b: b, probe: done, gen: b.gen})
}

// handOver gives the permit for a probe to the caller. Should OnChange panic, or end the goroutine, nobody has it: the place for a
// probe must be free again.
func (b *Breaker) handOver(p Permit) (Permit, bool) {
	given := false
	defer func() {
		if !given {
			p.Done(NotCounted)
		}
	}()
	b.unlock(HalfOpen)
	given = true
	return p, true
}

// Done reports what became of it. Only the first call counts; on the zero Permit it does nothing. A report that comes after the
// breaker has opened, closed again or given the probe up neither moves nor counts anything.
func (p *Permit) Done(o Outcome) {
	b := p.b
	if b == nil {
		return
	}
	b.mu.Lock()
	before := b.State()
	if p.forced && !p.used && p.gen == b.retries && !b.stopped && !b.off.Load() {
		b.forcedLocked(o)
	} else if !p.forced && !p.used && p.gen == b.gen && !b.stopped && !b.off.Load() {
		if before == Closed {
			b.countLocked(o)
		} else {
			b.endProbeLocked(p.probe, o)
		}
	}
	p.used = true
	b.unlock(before)
}

// RetryAt returns when the next probe may start, and the zero time unless the breaker is open.
func (b *Breaker) RetryAt() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.retryAt
}

// Stats are a snapshot of a Breaker.
type Stats struct {
	State       State
	Cause       string    // why it opened: "5 consecutive faults", "12 of 20 failed in 60 s", "long", "probe failed"; empty when closed
	Trips       int       // how often it opened, reopening after a failed probe included
	Since       time.Time // when the state was entered
	RetryAt     time.Time // when the next probe may start; zero unless open
	Consecutive int       // faults in a row; since it opened, those that it opened with
}

// Stats returns a snapshot. It never moves the state.
func (b *Breaker) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	return Stats{State: b.State(), Cause: b.cause, Trips: b.trips, Since: b.since, RetryAt: b.retryAt, Consecutive: b.consecutive}
}

// Stop ends the breaker: its timer is stopped, reports are ignored, the state stays as it is (a closed one goes on saying yes, any
// other says no), OnChange is not called any more but for a call that is under way. It may be called more than once.
func (b *Breaker) Stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped = true
	b.disarmLocked()
}

// unlock is the one exit of a critical section that may have changed the state.
func (b *Breaker) unlock(before State) {
	changed := b.State() != before || b.longer
	b.longer = false
	b.mu.Unlock()
	if changed && b.onChange != nil {
		b.onChange()
	}
}

func (b *Breaker) setStateLocked(s State, now time.Time) {
	b.state.Store(uint32(s))
	b.since = now
}

// countLocked counts an outcome of the closed state, which may trip. The window is ours, and what moves gobreaker is a fault: so only faults are
// reported to it, with a leave that is asked for and used in one. The faultless, which are nearly all, need not wait for two more locks.
func (b *Breaker) countLocked(o Outcome) {
	switch o {
	case Success:
		b.consecutive = 0
		b.window.add(time.Now(), false)
	case Fault, Long:
		now := time.Now()
		b.consecutive++
		b.window.add(now, true)
		cause := b.verdictLocked(o)
		b.trip.Store(cause != "")
		if done, err := b.cb.Allow(); err == nil { // it is closed, as the mirror is
			done(errFault)
		}
		if gobreaker.State(b.inner.Load()) == gobreaker.StateOpen {
			b.short.fade(now)
			b.long.fade(now)
			b.openLocked(o, cause, now)
		}
	}
}

// verdictLocked returns why the breaker has to open after a fault, or "".
func (b *Breaker) verdictLocked(o Outcome) string {
	w := &b.window
	switch {
	case o == Long:
		return causeLong
	case b.set.Consecutive > 0 && b.consecutive >= b.set.Consecutive:
		return fmt.Sprintf("%d consecutive faults", b.consecutive)
	case b.set.Window > 0 && b.set.MinOutcomes > 0 && b.set.Ratio > 0 &&
		w.total >= b.set.MinOutcomes && float64(w.faults) >= b.set.Ratio*float64(w.total):
		return fmt.Sprintf("%d of %d failed in %g s", w.faults, w.total, b.set.Window.Seconds())
	}
	return ""
}

// endProbeLocked takes the report of the probe under way.
func (b *Breaker) endProbeLocked(done func(error), o Outcome) {
	now := time.Now()
	b.gen++
	b.probe = nil
	b.disarmLocked()
	cause := "probe failed"
	switch o {
	case Success:
		done(nil)
	case Long:
		cause = causeLong
		done(errFault)
	case Fault:
		done(errFault)
	default:
		done(errNotCounted)
	}
	switch gobreaker.State(b.inner.Load()) {
	case gobreaker.StateClosed:
		b.closeLocked(now)
	case gobreaker.StateOpen:
		b.openLocked(o, cause, now)
	default:
		b.setStateLocked(HalfOpen, now)
	}
}

func (b *Breaker) openLocked(o Outcome, cause string, now time.Time) {
	b.gen++
	b.trips++
	b.cause = cause
	k := &b.short
	if o == Long {
		k = &b.long
	}
	d := k.next()
	b.retryAt = now.Add(d)
	b.setStateLocked(Open, now)
	b.armLocked(now, d)
}

func (b *Breaker) closeLocked(now time.Time) {
	b.window.init(b.set.Window, now)
	b.consecutive = 0
	b.cause = ""
	b.short.closed, b.long.closed = now, now
	b.setStateLocked(Closed, now)
}

func (b *Breaker) armLocked(now time.Time, d time.Duration) {
	b.due = now.Add(d)
	if b.timer == nil {
		b.timer = time.AfterFunc(d, b.expire)
	} else {
		b.timer.Reset(d)
	}
}

func (b *Breaker) disarmLocked() {
	if b.timer != nil {
		b.timer.Stop()
	}
}

// expire is the timer's. It may come late, when the state has moved on or the timer was set anew.
func (b *Breaker) expire() {
	b.mu.Lock()
	before := b.State()
	now := time.Now()
	if !b.stopped && !now.Before(b.due) {
		switch before {
		case Open: // gobreaker follows when Allow asks it
			b.retryAt = time.Time{}
			b.setStateLocked(HalfOpen, now)
		case Probing:
			b.endProbeLocked(b.probe, NotCounted)
		}
	}
	b.unlock(before)
}

// A backOff is how long to stay open: first·2^k ±20 %, at most most.
type backOff struct {
	first, most time.Duration
	k           int
	closed      time.Time // since when k falls
}

func (o *backOff) next() time.Duration {
	d := min(o.first, o.most)
	for range o.k {
		if d >= o.most/2 {
			d = o.most
			break
		}
		d *= 2
	}
	if d < o.most {
		o.k++ // else it would take minutes of fading that change nothing
	}
	d = time.Duration(float64(d) * (1 - jitter + 2*jitter*rand.Float64()))
	if d > o.most {
		d = 2*o.most - d // folded back, so that many breakers at the limit still spread
	}
	return max(d, minOpen)
}

// fade lets k fall for the time spent closed.
func (o *backOff) fade(now time.Time) {
	o.k = max(0, o.k-int(now.Sub(o.closed)/cleanMinute))
}

const buckets = 12

// A window counts the outcomes of the last 11 to 12 twelfths of its length.
type window struct {
	width         time.Duration // of a bucket
	start         time.Time
	at            int64 // number of the current bucket since start
	total, faults int
	ring          [buckets]struct{ total, faults int }
}

func (w *window) init(length time.Duration, now time.Time) {
	*w = window{width: max(length/buckets, 1), start: now}
}

func (w *window) add(now time.Time, fault bool) {
	at := int64(now.Sub(w.start) / w.width)
	if at-w.at >= buckets {
		*w = window{width: w.width, start: w.start, at: at}
	}
	for w.at < at {
		w.at++
		r := &w.ring[w.at%buckets]
		w.total -= r.total
		w.faults -= r.faults
		r.total, r.faults = 0, 0
	}
	r := &w.ring[w.at%buckets]
	r.total++
	w.total++
	if fault {
		r.faults++
		w.faults++
	}
}
