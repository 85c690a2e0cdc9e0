package smtplb

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

// This file holds what is allowed: attempts, connections, and which relay is left alone for which sender.

// Retry bounds the attempts for one message.
type Retry struct {
	// Attempts is how many relays are tried for a recipient at the most, each once (with AtLeastOnce, one that left the outcome unknown once more). Default: 3. Negative: as many as there are. The free redial of
	// a connection that proved stale is not an attempt.
	Attempts int
	// Budget bounds the attempts beyond the first of each message, so that an outage of everything isn't made worse by retries: it is the share of first attempts that may be
	// added to them. Default: 0.2. Negative: no bound.
	//
	// Each first attempt brings that share of a token into the pool's account, where it lapses after 60 s, and each further one takes a token out. At first the account holds as many as
	// the relays may have connections together (those without a limit not counted), and at least 10. An attempt at a relay that is well is made even where the account is empty; without a token
	// nobody probes a relay that has just failed, or tries the same one again (AtLeastOnce). Who finds no other is deferred with ErrNoRelay. A further attempt
	// because of a recipient's own 4xx costs nothing.
	Budget float64
	// NoHedging: a slow relay is waited for. By default, when no connection has come about after 250 ms (or what this relay takes in 19 of 20 cases, if that is
	// more), another relay of the same tier that is well and has a free connection is asked too, and the message goes to the one that is ready first; it is never offered to both. The other connection is
	// kept for the next message. At most 5 % more connections are opened for that. Dial and Auth functions are then called in a goroutine of their own.
	NoHedging bool
}

func (r Retry) validate(f *faults) {
	if r.Budget != r.Budget || r.Budget > 1000 {
		f.add("Retry.Budget", "is %v; it is a share, such as 0.2 (negative: no bound)", r.Budget)
	}
}

const defaultAttempts = 3

// Conns limits a relay's connections. Zero fields mean the default, negative ones no limit (MaxIdle: none is kept).
type Conns struct {
	Max         int           // at a time; default 10
	Reserved    int           // of Max, kept free of bulk (see Stream); default a tenth of Max, one at least, none of one; negative: none
	MaxIdle     int           // kept open while idle; default Max
	MaxMessages int           // on one connection; default 100
	MaxAge      time.Duration // of one connection, ±10 %; default 5 min
	MaxIdleTime time.Duration // default 30 s
}

func (c Conns) limits() connpool.Limits {
	l := connpool.Limits{Max: 10, MaxIdle: c.MaxIdle, MaxUses: 100, MaxAge: 5 * time.Minute, MaxIdleTime: 30 * time.Second}
	if c.Max != 0 {
		l.Max = c.Max
	}
	if l.Reserved = c.Reserved; c.Reserved == 0 && l.Max > 1 {
		l.Reserved = (l.Max + 9) / 10
	}
	if c.MaxMessages != 0 {
		l.MaxUses = c.MaxMessages
	}
	if c.MaxAge != 0 {
		l.MaxAge = c.MaxAge
	}
	if c.MaxIdleTime != 0 {
		l.MaxIdleTime = c.MaxIdleTime
	}
	return l
}

// defaultMaxMessageSize is Config.MaxMessageSize's default.
const defaultMaxMessageSize = 100 << 20

// maxRecipients is how many recipients go into one transaction; more are spread over several on the same connection. RFC 5321
// §4.5.3.1.8 makes relays take 100.
const maxRecipients = 100

// What a deferred recipient is told to wait, by reason, and how long relays are left alone or waited for.
const (
	retrySoon       = 30 * time.Second // nothing is known: another relay, or the same one, may do
	retryTemporary  = 5 * time.Minute  // a relay's 4xx
	retryGreylisted = 5 * time.Minute  // most greylists want 5 minutes at least
	coolDown        = 10 * time.Second // of a relay that wants less mail, or whose quota is used up
	maxPreferWait   = 30 * time.Second // for a slot on the relay that Envelope.Prefer names
	apartFor        = 10 * time.Minute // of a relay and a sender domain that it refuses
)

// apart remembers which sender domains a relay refuses ("relaying denied", "sender not verified"). It is bounded.
type apart struct {
	n     atomic.Int32 // len(until): a relay that refuses nobody costs one load
	mu    sync.Mutex   // guards until; held for map operations only
	until map[string]time.Time
}

const maxApart = 1024

func (a *apart) add(domain string, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.until == nil {
		a.until = make(map[string]time.Time)
	}
	if len(a.until) >= maxApart {
		for d, t := range a.until { // the expired ones, else any
			if now.After(t) || len(a.until) >= maxApart {
				delete(a.until, d)
			}
		}
	}
	a.until[domain] = now.Add(apartFor)
	a.n.Store(int32(len(a.until)))
}

func (a *apart) has(domain string) bool {
	if a.n.Load() == 0 {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	t, ok := a.until[domain]
	if ok && time.Now().After(t) {
		delete(a.until, domain)
		a.n.Store(int32(len(a.until)))
		ok = false
	}
	return ok
}

// endOf returns until when a domain is refused, if it is.
func (a *apart) endOf(domain string) (until time.Time, ok bool) {
	if !a.has(domain) {
		return until, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	until, ok = a.until[domain]
	return until, ok
}

func (a *apart) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.until = nil
	a.n.Store(0)
}
