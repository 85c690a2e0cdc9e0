package smtplb

import (
	"crypto/tls"
	"errors"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/internal/backoff"
	"github.com/smtplb/smtplb/internal/balance"
	"github.com/smtplb/smtplb/internal/breaker"
	"github.com/smtplb/smtplb/internal/connpool"
	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/session"
	"github.com/smtplb/smtplb/internal/verdict"
)

// relay is a configured Relay at work: what does not change before the next Update, and its standing.
type relay struct {
	*standing
	index      int     // in fleet.relays
	tier       int     // Relay.Tier
	within     int     // see tier
	configured int     // its place in Stats.Relays
	origin     *Relay  // the entry of Config.Relays that it is, or was found by; not changed
	foundBy    *source // nil: it is that entry itself
	weight     int
	limits     connpool.Limits
	caps       Limits // what of Relay.Limits the pool keeps itself
	rules      *backoff.Rules
	rcptMost   int // see Profile.MaxRecipients
	noBackOff  bool
	breaking   Breaker
	noRiding   bool
	chunking   bool
	ownDial    bool // Relay.Dial or Config.Dial
	localAddr  string
	tlsConfig  *tls.Config // as configured
	resolver   Resolver
	session    *session.Config
}

// standing is what a pool knows of a relay, by its name: it outlives an Update. Its fields don't change but for the atomics and what has a lock of its own.
type standing struct {
	pool    *Pool
	name    string
	lane    int // in Pool.conns
	member  int // the lane in bitsets
	breaker *breaker.Breaker
	current atomic.Pointer[session.Config] // of the newest relay that has this standing: what is learnt by an older one is about another server, or other credentials

	wellness
	apart         apart
	cooledUntil   atomic.Int64           // Unix nanoseconds
	finalTimeouts atomic.Int32           // in a row
	lastFault     atomic.Pointer[string] // what counted against the relay last
	offers        atomic.Pointer[offer]
	refusesChunks atomic.Bool  // it offers CHUNKING, and does not know BDAT
	noRide        atomic.Bool  // its last reply to a message took so long that a ride would gain nothing, or refused it
	rideTrial     atomic.Int64 // Unix nanoseconds from which the next may try to ride; ridesWell: everybody may
	noRideUntil   atomic.Int64 // Unix nanoseconds: it lost an envelope behind a body
	latency       balance.EWMA // from the attempt's start until the relay had taken the envelope
	envelope      balance.EWMA // of this the envelope alone: what relays that dial more and less often can be compared by
	counts        relayCounts
	latencies     atomic.Pointer[latencies]
	away          downtime
	slowness
	meter  *meter
	strain strain
	warmth
	refusedUntil atomic.Pointer[time.Time] // until then the Limiter has no room for it; nil: it has. By the monotonic clock, as the clock on the wall may be set
	connects     connects
	hops         atomic.Uint64 // attempts elsewhere that one here led to
	outrun       atomic.Uint64 // attempts that another relay took over because it was connected first
}

func newStanding(p *Pool, c *Relay, limits connpool.Limits, h *Health) *standing {
	s := &standing{pool: p, name: c.name()}
	s.breaker = s.newBreaker(c.Breaker)
	s.told = condition{state: stateStarting, since: time.Now()}
	s.checks.login = true
	s.slowStart.Store(int64(h.SlowStart))
	s.full.Store(&limits)
	s.most.Store(int64(max(limits.Max, 0)))
	s.lane = p.conns.AddLane(limits, connpool.Up)
	s.member = connpool.Member(s.lane)
	return s
}

// Name, InFlight, Limit and Latency, with view's Weight, make a relay a RelayView.
func (r *relay) Name() string           { return r.name }
func (r *relay) InFlight() int          { return r.pool.conns.Held(r.lane) }
func (r *relay) Limit() int             { return int(r.most.Load()) }
func (r *relay) Latency() time.Duration { return r.latency.Value() }

// outdated reports whether an Update has changed how the relay is reached. What a send still does by the old ways says nothing about the relay.
func (r *relay) outdated() bool { return r.current.Load() != r.session }

// weighs returns the relay's weight at this moment: 0 where it is not used. (A half-open one is, for one message at a time.)
func (r *relay) weighs() float64 {
	if p := r.passage(); p == nothing && r.breaker.State() != breaker.Probing || p == nothingAsked || r.down.Load() {
		return 0
	}
	return float64(r.weight) * r.share(time.Now()) * r.kept()
}

// learnLatency keeps how long the relay took for an attempt that ended as f says at now. An attempt that failed says nothing, or relays that fail fast would seem the best of all; but one
// that ended by our timeout says that the relay takes longer than that. The envelope of one that rode was answered along with another's message.
func (r *standing) learnLatency(a *Attempt, f *verdict.Fact, rode bool, now int64) {
	t := &a.Timings
	dial := t.Dial + t.TLS + t.Hello + t.Auth
	switch {
	case rode:
	case f.Failure == reply.FailTimeout && f.Stage < reply.StageBody:
		longer(&r.latency, now, dial+t.Envelope)
		longer(&r.envelope, now, max(dial, t.Envelope)) // had it answered, it would have been no faster
	case a.Accepted > 0:
		r.latency.Observe(now, dial+t.Envelope)
		if r.slowness.tried(t.Envelope) {
			r.envelope.Reset()
		}
		r.envelope.Observe(now, t.Envelope)
	}
}

// longer counts x, of which the end wasn't seen: it is news only where it is longer than what was expected.
func longer(e *balance.EWMA, now int64, x time.Duration) {
	if x > e.Value() {
		e.Observe(now, x)
	}
}

// offer is what a relay offered in its last EHLO.
type offer struct {
	session.Extensions
	at time.Time
}

// offerAge is how long an offer is believed. Afterwards the relay is asked again: it may have been given more since.
const offerAge = 10 * time.Minute

// reason is why the relay's breaker opened last, with the words of the fault that did it.
func (r *standing) reason(cause string) string {
	fault := r.lastFault.Load()
	switch {
	case cause == "" || fault == nil:
		return cause
	case cause == "long": // one fault was enough
		return *fault
	}
	return cause + "; the last: " + *fault
}

// trouble tells why the relay is not used now, "" where it is.
func (r *standing) trouble() string {
	if r.ready() {
		return ""
	}
	state := r.state()
	text := r.name + " is " + state
	switch state {
	case stateDrain, stateMaintenance:
		text = r.name + " is in " + state
	case stateHalfOpen:
		if r.breaker.State() == breaker.Probing {
			text = r.name + " is being probed"
		}
	case stateDown:
		if at := r.retryAt(); !at.IsZero() {
			text += ", next checked at " + at.Format(time.TimeOnly)
		}
	default:
		if at := r.retryAt(); !at.IsZero() {
			text += " until " + at.Format(time.TimeOnly)
		}
	}
	if why := r.why(state); why != "" {
		text += " (" + why + ")"
	}
	return text
}

// lacks tells what d needs and the relay, by its last EHLO, does not offer; nil where it may take d, or is not known.
func (r *standing) lacks(d *delivery) error {
	x := r.offers.Load()
	if x == nil {
		return nil
	}
	need := session.Need{UTF8: d.msg.utf8, EightBit: d.msg.eightBit, Size: d.msg.size, DSN: d.msg.dsn != nil, RequireTLS: d.env.RequireTLS}
	if d.env.RequireAll {
		need.Together = len(d.rcpts) - d.discarded
	}
	err := x.Lacks(need)
	if err == nil && d.larger && x.Size > 0 && x.Size <= d.tooLargeFor {
		err = errNoLarger
	}
	if err != nil && time.Since(x.at) >= offerAge {
		return nil
	}
	return err
}

var errNoLarger = errors.New("it takes no larger messages than the relay that refused this one for its size")
