package smtplb

import (
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

// Stats are a pool's figures since New, as of the moment of the call. They hold neither credentials nor recipients.
type Stats struct {
	Relays    []RelayStats // in the order of Config.Relays
	Waiting   int          // sends that wait for a free connection
	InFlight  int          // sends in progress, the waiting ones included
	Sends     uint64       // Deliver, Send and SendMail calls whose envelope was in order, and that ended
	Failovers uint64       // attempts after the first of a send
}

// RelayStats are one relay's figures.
type RelayStats struct {
	Name   string
	Weight int
	Tier   int

	// State is what is known of the relay's health: "starting" (it was not used yet), "up", "down" (checks failed), "open" (its circuit breaker lets nothing through), "half-open" (one message
	// at a time), "slow start" (it was away, and gets its share back little by little); or what SetAdmin wants: "drain", "maintenance".
	State   string
	Breaker string    // of the circuit breaker: "closed" (well), "open", "half-open", "probing"
	Reason  string    // why it is in State
	Since   time.Time // of State
	RetryAt time.Time // when an open breaker lets a probe through, or a relay that is down is checked again
	Trips   uint64    // how often it opened
	Cooling bool      // the relay asked for less mail a moment ago

	InFlight int // connections in use by sends
	Idle     int // connections kept open
	Waiting  int // sends that wait and may use this relay

	Attempts uint64 // messages that the relay was tried for
	Accepted uint64 // recipients that the relay took a message over for
	Failed   uint64 // recipients that it refused for good
	Unknown  uint64 // recipients whose outcome it left unknown
	Away     uint64 // attempts after which recipients were left for another relay, or for later
	Faults   uint64 // attempts that counted against the relay
	Redials  uint64 // stale connections replaced on the fly
	Rides    uint64 // attempts whose envelope went out behind the body of another message

	Opened uint64            // connections made
	Reused uint64            // times an idle connection was used again
	Closed map[string]uint64 // connections that ended, by reason: "broken", "dead", "idle", "age", "uses", "trimmed", "down", "closed", "left" (the one who rode on it went elsewhere)
}

// relayCounts are the counters behind RelayStats.
type relayCounts struct {
	attempts, accepted, failed, unknown, away, faults, redials, rides atomic.Uint64
}

// Stats returns the pool's figures.
func (p *Pool) Stats() Stats {
	if p == nil || p.conns == nil {
		return Stats{}
	}
	f := p.fleet.Load()
	s := Stats{
		Relays: make([]RelayStats, len(f.relays)), Waiting: p.conns.Waiting(), InFlight: p.gate.count(),
		Sends: p.sends.Load(), Failovers: p.failovers.Load(),
	}
	for _, t := range f.tiers {
		for _, r := range t.relays {
			b, c := r.breaker.Stats(), p.conns.Stats(r.lane)
			rs := RelayStats{
				Name: r.name, Weight: r.weight, Tier: t.number,
				Breaker: b.State.String(), RetryAt: r.retryAt(), Trips: uint64(b.Trips), Cooling: r.cooling(),
				InFlight: c.Held, Idle: c.Idle, Waiting: c.Waiting,
				Attempts: r.counts.attempts.Load(), Accepted: r.counts.accepted.Load(), Failed: r.counts.failed.Load(),
				Unknown: r.counts.unknown.Load(), Away: r.counts.away.Load(), Faults: r.counts.faults.Load(), Redials: r.counts.redials.Load(), Rides: r.counts.rides.Load(),
				Opened: c.Opened, Reused: c.Reused, Closed: map[string]uint64{},
			}
			rs.State, rs.Reason, rs.Since = r.condition()
			for reason, n := range c.Closed {
				if n > 0 {
					rs.Closed[connpool.Reason(reason).String()] = n
				}
			}
			s.Relays[r.configured] = rs
		}
	}
	return s
}
