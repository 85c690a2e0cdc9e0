package smtplb

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/internal/breaker"
	"github.com/smtplb/smtplb/internal/session"
)

// relay is a configured Relay at work. Its fields don't change after New but for the atomics and what has a lock of its own.
type relay struct {
	pool       *Pool
	index      int // in Pool.relays, and the number of its lane
	configured int // in Config.Relays
	name       string
	weight     int
	limit      int // connections; 0: none
	maxUses    int // messages on a connection; 0 or less: no limit
	session    *session.Config
	breaker    *breaker.Breaker

	apart         apart
	cooledUntil   atomic.Int64           // Unix nanoseconds
	finalTimeouts atomic.Int32           // in a row
	lastFault     atomic.Pointer[string] // what counted against the relay last
	offers        atomic.Pointer[offer]
	counts        relayCounts
}

// Name, Weight, InFlight and Limit make a relay a RelayView.
func (r *relay) Name() string    { return r.name }
func (r *relay) Weight() float64 { return float64(r.weight) }
func (r *relay) InFlight() int   { return r.pool.conns.Held(r.index) }
func (r *relay) Limit() int      { return r.limit }

// offer is what a relay offered in its last EHLO.
type offer struct {
	session.Extensions
	at time.Time
}

// offerAge is how long an offer is believed. Afterwards the relay is asked again: it may have been given more since.
const offerAge = 10 * time.Minute

// reason is why the relay's breaker opened last, with the words of the fault that did it.
func (r *relay) reason(cause string) string {
	fault := r.lastFault.Load()
	switch {
	case cause == "" || fault == nil:
		return cause
	case cause == "long": // one fault was enough
		return *fault
	}
	return cause + "; the last: " + *fault
}

// trouble tells why the relay is not used now, "" where its breaker lets mail through.
func (r *relay) trouble() string {
	if r.breaker.Ready() {
		return ""
	}
	s := r.breaker.Stats()
	text := r.name + " is " + s.State.String()
	if !s.RetryAt.IsZero() {
		text += " until " + s.RetryAt.Format(time.TimeOnly)
	}
	if why := r.reason(s.Cause); why != "" {
		text += " (" + why + ")"
	}
	return text
}

// needs says, for an error, what d needs and the relay does not offer.
func (r *relay) needs(d *delivery) string {
	x := r.offers.Load()
	switch {
	case x == nil:
		return ""
	case d.msg.utf8 && !x.SMTPUTF8:
		return r.name + " does not offer SMTPUTF8, which an address or a header needs"
	case d.msg.eightBit && !x.EightBitMIME:
		return r.name + " does not offer 8BITMIME, which the body needs"
	case x.Size > 0 && d.msg.size > x.Size:
		return fmt.Sprintf("%s takes %d bytes, and the message has %d", r.name, x.Size, d.msg.size)
	case d.larger && x.Size > 0 && x.Size <= d.tooLargeFor:
		return fmt.Sprintf("%s takes no more than the relay that refused the message for its size", r.name)
	case d.env.RequireAll && x.RcptMax > 0 && len(d.rcpts) > x.RcptMax:
		return fmt.Sprintf("%s takes %d recipients at a time, and all %d must go together", r.name, x.RcptMax, len(d.rcpts))
	}
	return ""
}

// incapable reports whether the relay is known, from its last EHLO, not to offer what d needs.
func (r *relay) incapable(d *delivery) bool {
	x := r.offers.Load()
	if x == nil {
		return false
	}
	lacks := d.msg.utf8 && !x.SMTPUTF8 ||
		d.msg.eightBit && !x.EightBitMIME ||
		x.Size > 0 && (d.msg.size > x.Size || d.larger && x.Size <= d.tooLargeFor) ||
		d.env.RequireAll && x.RcptMax > 0 && len(d.rcpts) > x.RcptMax
	return lacks && time.Since(x.at) < offerAge
}

// tier is the relays of one Relay.Tier: a range of Pool.relays.
type tier struct {
	first, n int
	number   int // Relay.Tier
	picker   Picker
}
