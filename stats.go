package smtplb

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/verdict"
)

// Stats are a pool's figures since New, as of the moment of the call. They hold neither credentials nor recipients. A relay keeps its figures through an Update, as
// long as it has its name.
type Stats struct {
	Time     time.Time // of the call
	Uptime   time.Duration
	Balancer string // the configured one: its String method if it has one, else its type

	Relays  []RelayStats  // in the order of Config.Relays; those that DNS names in the place of the entry that stands for them
	Domains []DomainStats // of the entries whose relays are found in DNS
	Events  []RelayEvent  // the last 50 changes of state, the oldest first
	Weight  float64       // of all relays, as configured

	EligibleWeight float64 // of the relays that are used as ever
	Open           int     // relays that are not: their breaker is not closed, they are down, drained or in maintenance

	Waiting   int    // sends that wait for a free connection
	InFlight  int    // sends in progress, the waiting ones included
	Sends     uint64 // Deliver, Send and SendMail calls whose envelope was in order, and that ended
	Failovers uint64 // attempts after the first of a send

	Panics  []int // the tiers, by number, of which so much is sick that circuit breakers are ignored, see Health.Panic
	Budget  BudgetStats
	Hedging HedgingStats
	MX      MXStats
}

// BudgetStats is the account of further attempts, see Retry.Budget.
type BudgetStats struct {
	Off      bool    // there is no budget
	Tokens   float64 // left: further attempts that could be made now; 0 where Off
	Refusals uint64  // sends that ended early because there was none
}

// HedgingStats tells how often a second relay was asked for a connection because the first took long, see Retry.NoHedging.
type HedgingStats struct {
	Dials  uint64 // extra ones
	Joined uint64 // attempts in which another relay was asked, by such a dial or with an idle connection
	Won    uint64 // of them, those in which that one was connected first
}

// WarmupStats is how far a relay's warm-up is today (UTC).
type WarmupStats struct {
	Used, Cap     int       // in the Warmup's Unit; Cap 0: there is none, or none any more, or it Begins later
	ByNow         int       // of Cap: what of it may have been used by now, as it is spread over the day
	Stage, Stages int       // from 1; Stages 0: the relay doesn't warm up
	Begins        time.Time // the first day, where that is yet to come: before it the relay gets no mail
}

// CheckStats is how a relay's last check ended, see Health. Checks that said nothing of the relay are not counted in.
type CheckStats struct {
	Time     time.Time // of its end; zero: there was none yet
	Duration time.Duration
	OK       bool
	Noop     bool   // it was a NOOP on an idle connection
	Code     int    // of the relay's last reply, 0: none, or it was not the pool's own check
	Error    string // "" where OK
}

// RelayStats are one relay's figures.
type RelayStats struct {
	Name            string
	Weight          int
	EffectiveWeight float64 // what the balancer goes by now: 0 where the relay isn't used, less than Weight in a slow start, or where it is Slow
	Slow            float64 // how many times longer than its tier's median it takes for an envelope, from 3 times on, where Adaptive gives it less for that; 0 otherwise
	Tier            int

	// State is what is known of the relay's health: "starting" (it was not used yet), "up", "down" (checks failed), "open" (its circuit breaker lets nothing through), "half-open" (one message
	// at a time), "slow start" (it was away, and gets its share back little by little); or what SetAdmin wants: "drain", "maintenance".
	State    string
	Breaker  string        // of the circuit breaker: "closed" (well), "open", "half-open", "probing"
	Reason   string        // why it is in State
	Since    time.Time     // of State
	Downtime time.Duration // for which mail could not be given to it, or only as a probe, all together
	RetryAt  time.Time     // when an open breaker lets a probe (a message) through, or a relay that is down is checked again
	Trips    uint64        // how often it opened
	Cooling  bool          // the relay asked for less mail a moment ago
	BackOff  string        // what the relay is spared because it refused mail for its amount, in words; "": nothing
	Warmup   WarmupStats   // how far its warm-up is

	Check     CheckStats // the last one
	NextCheck time.Time  // when the next one is due, if the pool is in use then and no message tells; zero: not known, or there are none

	InFlight    int // connections in use by sends
	MaxInFlight int // InFlight at its highest
	Limit       int // of connections, idle ones included; 0: none
	Idle        int // connections kept open
	Waiting     int // sends that wait and may use this relay
	MaxWaiting  int // Waiting at its highest

	Attempts uint64 // messages that the relay was tried for
	Messages uint64 // of them, those that it took over for at least one recipient
	Bytes    uint64 // of these messages, before dot-stuffing
	Accepted uint64 // recipients that the relay took a message over for
	Failed   uint64 // recipients that it refused for good
	Unknown  uint64 // recipients whose outcome it left unknown
	Away     uint64 // attempts after which recipients were left for another relay, or for later
	Faults   uint64 // attempts that counted against the relay
	Redials  uint64 // stale connections replaced on the fly
	Hops     uint64 // attempts elsewhere that one here led to: failovers away from it
	Outrun   uint64 // attempts that another relay took over because it was connected first
	Rides    uint64 // attempts whose envelope went out behind the body of another message

	Replies2xx, Replies4xx, Replies5xx uint64 // recipients by the reply that decided the attempt for them
	Greylisted                         uint64 // recipients that it greylisted
	Throttled                          uint64 // attempts in which it asked for less mail

	Errors  StageErrors
	Latency StageLatency

	Opened     uint64            // connections made
	Reused     uint64            // times an idle connection was used again
	ReuseRatio float64           // Reused as a share of both
	Closed     map[string]uint64 // connections that ended, by reason: "broken", "dead", "idle", "age", "uses", "trimmed", "down", "closed", "removed", "left" (the one who rode on it went elsewhere)
}

// StageErrors are the attempts that ended in an error without anybody being accepted, by the stage at which they did.
type StageErrors struct {
	Dial   uint64 // name resolution and connecting
	TLS    uint64 // STARTTLS and the handshake, certificates included
	Banner uint64 // the greeting and EHLO
	Auth   uint64
	Reply  uint64 // MAIL, RCPT, DATA, the message and the reply to it: refusals of recipients or of the message are here too
}

// relayCounts are the counters behind RelayStats.
type relayCounts struct {
	attempts, accepted, failed, unknown, away, faults, redials, rides atomic.Uint64
	messages, bytes, throttled, greylisted                            atomic.Uint64
	replies                                                           [6]atomic.Uint64 // by first digit
	errors                                                            [numErrorStages]atomic.Uint64
}

const (
	errorDial = iota
	errorTLS
	errorBanner
	errorAuth
	errorReply
	numErrorStages
)

// errorStages is the count for the stage at which an attempt failed.
var errorStages = map[Stage]int{
	StageDial: errorDial, StageTLS: errorTLS, StageStartTLS: errorTLS, StageBanner: errorBanner, StageHello: errorBanner, StageAuth: errorAuth,
}

// attempted counts what became of an attempt, beyond what count does.
func (c *relayCounts) attempted(a *attempt) {
	if a.record.Accepted > 0 {
		c.messages.Add(1)
		c.bytes.Add(uint64(a.d.msg.size))
	}
	if a.blame == verdict.Throttle || a.blame == verdict.CoolDown {
		c.throttled.Add(1)
	}
	var replies [6]uint64
	var greylisted uint64
	for i := range a.d.rcpts {
		x := &a.d.rcpts[i]
		if x.attempt != a.number || x.relay != a.relay.name {
			continue
		}
		if n := x.reply.Code / 100; n < len(replies) {
			replies[n]++
		}
		if x.greylisted {
			greylisted++
		}
	}
	for n := range replies {
		if n > 0 && replies[n] > 0 {
			c.replies[n].Add(replies[n])
		}
	}
	if greylisted > 0 {
		c.greylisted.Add(greylisted)
	}
	if a.record.Err != nil && a.last.Failure != reply.FailCanceled && a.last.Failure != reply.FailDeadline {
		stage, ok := errorStages[a.record.Stage]
		if !ok {
			stage = errorReply
		}
		c.errors[stage].Add(1)
	}
}

// downtime adds up for how long a relay could not be used.
type downtime struct {
	mu    sync.Mutex // guards the following fields; held for arithmetic only
	since time.Time  // zero while it can be used
	total time.Duration
}

// note is called after each change of the relay's state. Of several at once, whichever comes last sees the last state.
func (d *downtime) note(r *standing) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch well := r.well(); {
	case well && !d.since.IsZero():
		d.total += time.Since(d.since)
		d.since = time.Time{}
	case !well && d.since.IsZero():
		d.since = time.Now()
	}
}

func (d *downtime) sum(now time.Time) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.since.IsZero() {
		return d.total
	}
	return d.total + now.Sub(d.since)
}

// balancerName is what Stats calls a balancer.
func balancerName(b Balancer) string {
	if s, ok := b.(fmt.Stringer); ok {
		return s.String()
	}
	return strings.TrimPrefix(fmt.Sprintf("%T", b), "smtplb.")
}

// Stats returns the pool's figures.
func (p *Pool) Stats() Stats {
	if p == nil || p.conns == nil {
		return Stats{}
	}
	f, now := p.fleet.Load(), time.Now()
	s := Stats{
		Time: now, Uptime: now.Sub(p.born), Balancer: balancerName(f.balancer), Events: p.events.list(), Domains: f.domainStats(),
		Relays: make([]RelayStats, len(f.relays)), Waiting: p.conns.Waiting(), InFlight: p.gate.count(),
		Sends: p.sends.Load(), Failovers: p.failovers.Load(), Budget: p.budget.stats(),
		Hedging: HedgingStats{Dials: p.hedges.dials.Load(), Joined: p.hedges.joined.Load(), Won: p.hedges.won.Load()},
		MX:      p.mailhosts.stats(),
	}
	for _, t := range f.tiers {
		if t.panics.Load() && !slices.Contains(s.Panics, t.number) {
			s.Panics = append(s.Panics, t.number)
		}
		for _, r := range t.relays {
			rs := &s.Relays[r.configured]
			r.stats(rs, now, &f.health)
			rs.Tier = t.number
			s.Weight += float64(rs.Weight)
			if r.well() {
				s.EligibleWeight += rs.EffectiveWeight
			} else {
				s.Open++
			}
		}
	}
	return s
}

func (b *budget) stats() BudgetStats {
	tokens := b.tokens()
	if math.IsInf(tokens, 1) { // which JSON has no word for
		return BudgetStats{Off: true, Refusals: b.refusals.Load()}
	}
	return BudgetStats{Tokens: tokens, Refusals: b.refusals.Load()}
}

// checkStats tells how the last check ended, and when the next one is due.
func (r *standing) checkStats(h *Health) (s CheckStats, next time.Time) {
	r.mu.Lock()
	last := r.checks.last
	if h.Interval > 0 && !r.is(AdminMaintenance) {
		next = r.checks.due
	}
	r.mu.Unlock()
	if last.at.IsZero() {
		return s, next
	}
	s = CheckStats{Time: last.at, Duration: last.took, OK: last.err == nil, Noop: last.noop, Code: last.code}
	if last.err != nil {
		s.Error = oneLine(strings.TrimPrefix(last.err.Error(), r.name+": "))
	}
	return s, next
}

// stats fills in the relay's figures.
func (r *relay) stats(s *RelayStats, now time.Time, h *Health) {
	b, c, n := r.breaker.Stats(), r.pool.conns.Stats(r.lane), &r.counts
	*s = RelayStats{
		Name: r.name, Weight: r.weight, EffectiveWeight: r.weighs(), Slow: r.slow(),
		Breaker: b.State.String(), Downtime: r.away.sum(now), RetryAt: r.retryAt(), Trips: uint64(b.Trips), Cooling: r.cooling(),
		InFlight: c.Held, MaxInFlight: c.MostHeld, Limit: r.Limit(), Idle: c.Idle, Waiting: c.Waiting, MaxWaiting: c.MostWaiting,
		Attempts: n.attempts.Load(), Messages: n.messages.Load(), Bytes: n.bytes.Load(), Accepted: n.accepted.Load(), Failed: n.failed.Load(),
		Unknown: n.unknown.Load(), Away: n.away.Load(), Faults: n.faults.Load(), Redials: n.redials.Load(), Rides: n.rides.Load(), Hops: r.hops.Load(), Outrun: r.outrun.Load(),
		Replies2xx: n.replies[2].Load(), Replies4xx: n.replies[4].Load(), Replies5xx: n.replies[5].Load(),
		Greylisted: n.greylisted.Load(), Throttled: n.throttled.Load(),
		Errors: StageErrors{
			Dial: n.errors[errorDial].Load(), TLS: n.errors[errorTLS].Load(), Banner: n.errors[errorBanner].Load(), Auth: n.errors[errorAuth].Load(), Reply: n.errors[errorReply].Load(),
		},
		Latency: r.stageLatency(),
		Opened:  c.Opened, Reused: c.Reused, Closed: map[string]uint64{},
	}
	if c.Opened+c.Reused > 0 {
		s.ReuseRatio = float64(c.Reused) / float64(c.Opened+c.Reused)
	}
	s.BackOff = r.spared(now)
	if w := r.warming.Load(); w != nil {
		x := w.schedule.Today(now)
		s.Warmup = WarmupStats{Used: x.Used, Cap: x.Cap, ByNow: x.ByNow, Stage: min(x.Stage+1, x.Stages), Stages: x.Stages}
		if x.Begins != 0 {
			s.Warmup.Begins = x.Begins.Time()
		}
	}
	s.State, s.Reason, s.Since = r.condition()
	s.Check, s.NextCheck = r.checkStats(h)
	for reason, count := range c.Closed {
		if count > 0 {
			s.Closed[connpool.Reason(reason).String()] = count
		}
	}
}
