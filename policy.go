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
