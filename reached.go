package smtplb

import (
	"fmt"
	"strings"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

// This file tells which limit a message waits for, where several are reached: the one that it waits for longest. Any other would be a lie about what to do, and about when it is over.

// reached is a limit that keeps a message waiting.
type reached struct {
	wait       time.Duration // until it doesn't any more
	vague      bool          // which nobody knows: wait is a guess
	scope, key string        // whose it is
	text       string        // in words; "": there is none
}

// or makes x y, where that is waited for longer.
func (x *reached) or(y reached) {
	if y.text != "" && (x.text == "" || y.wait > x.wait) {
		*x = y
	}
}

// over tells which limit keeps so much from being used for longest.
func (m *meter) over(a *connpool.Ask, messages, recipients int) (x reached) {
	l, what := m.limits.Load(), m.what()
	if l.Concurrency > 0 && m.inUse.Load() >= int64(l.Concurrency) {
		x = reached{retrySoon, true, m.scope, m.key, fmt.Sprintf("%s: %d messages are being handed over, the most at a time", what, l.Concurrency)}
	}
	if c := m.claim.Load(); c != nil && c.at.Before(a.At) { // who is first needs more, and so it is more that is waited for
		messages, recipients = max(messages, c.messages), max(recipients, c.recipients)
	}
	if l.Messages.N > 0 {
		if wait := m.messages.Wait(a.Now, messages); wait > 0 {
			x.or(reached{wait, false, m.scope, m.key, fmt.Sprintf("%s: over its limit of %v messages", what, l.Messages)})
		}
	}
	if l.Recipients.N > 0 {
		if wait := m.recipients.Wait(a.Now, recipients); wait > 0 {
			x.or(reached{wait, false, m.scope, m.key, fmt.Sprintf("%s: over its limit of %v recipients", what, l.Recipients)})
		}
	}
	return x
}

// rates is how long it is until all rates allow f, but for those of relays: common without what is bounded at a time.
func (f *fare) rates(now time.Time) (d time.Duration) {
	for i := range f.tolls {
		t := &f.tolls[i]
		d = max(d, t.until(now, f.messagesOf(t.recipients), t.recipients))
	}
	if f.sender != "" {
		d = max(d, f.fleet.perSender.wait(now, f.sender, f.messages, f.recipients))
	}
	return d
}

// commonLimit is the one that d waits for longest, of those that no other relay helps with.
func (d *delivery) commonLimit(a *connpool.Ask) (x reached) {
	f := d.fare
	for i := range f.tolls {
		t := &f.tolls[i]
		x.or(t.over(a, f.messagesOf(t.recipients), t.recipients))
	}
	if f.sender != "" {
		if wait := d.fleet.perSender.wait(a.Now, f.sender, f.messages, f.recipients); wait > 0 {
			x.or(reached{wait, false, scopeSender, f.sender, "the sender is over its limit"})
		}
	}
	return x
}

// limitOf is the one of r's own limits that d waits for longest. fresh: it needs a new connection, whatever may come back.
func (d *delivery) limitOf(r *relay, fresh bool) reached {
	if d.fare == nil {
		return reached{}
	}
	a := d.ask()
	a.Fresh = fresh || r.mustDial()
	x := r.meter.over(&a, r.transactions(d.fare), d.fare.recipients)
	if rate := r.meter.limits.Load().Connections; a.Fresh && rate.N > 0 {
		if wait := r.meter.connections.Wait(a.Now, 1); wait > 0 {
			x.or(reached{wait, false, scopeRelay, r.name, fmt.Sprintf("%s: over its limit of %v connections", r.meter.what(), rate)})
		}
	}
	if wait := r.warmWait(d.fare); wait > 0 {
		text := "relay " + r.name + ": " + r.warmDues(d.fare, time.Now(), wait)
		x.or(reached{wait, false, scopeRelay, r.name, text})
	}
	if text := r.holds(&a, d.fare); text != "" {
		x.or(reached{r.strainWait(&a, d.fare), false, scopeRelay, r.name, "relay " + r.name + ": " + text})
	}
	if until := r.refusedUntil.Load(); until != nil && until.After(a.Now) {
		x.or(reached{until.Sub(a.Now), false, scopeRelay, r.name, "relay " + r.name + ": the Limiter has no room for it before " + until.Format(time.TimeOnly)})
	}
	return x
}

// limitReached is the one that d waits for: of the relays in d.lanes that of the one that is free first, or one that no other relay helps with, if that takes longer.
func (d *delivery) limitReached() reached {
	x := d.limitFound(false)
	if x.text == "" { // then it was for a connection that it waited, and none came back: it is new ones that are limited
		x = d.limitFound(true)
	}
	return x
}

func (d *delivery) limitFound(fresh bool) reached {
	var first reached
	limited, all := 0, 0
	for _, r := range d.group.relays {
		if !d.lanes.Has(r.member) {
			continue
		}
		all++
		if x := d.limitOf(r, fresh); x.text != "" {
			if limited++; limited == 1 || x.wait < first.wait {
				first = x
			}
		}
	}
	if limited > 1 {
		first.text += fmt.Sprintf("; of %d relays it is the first that may have it", limited)
	}
	a := d.ask()
	x := d.commonLimit(&a)
	if limited == all || x.text == "" { // else it isn't a relay's that it waits for
		x.or(first)
	}
	return x
}

// overLimit ends a turn that would have to wait for a limit for so long.
func (d *delivery) overLimit(wait time.Duration) *ThrottledError {
	x := d.limitReached()
	switch {
	case x.text != "":
		wait = x.wait
	case wait == connpool.Never: // until others have handed over what they are at
		wait = retrySoon
	}
	d.throttled = true
	d.retryAfter = worth(wait)
	return &ThrottledError{Scope: x.scope, Key: x.key, RetryAfter: d.retryAfter, Reason: x.text}
}

// notToday is the RetryAfter of what a relay won't take today, whatever else happens.
const notToday = 24 * time.Hour

// dues tells which of r's own limits keeps d from it for longest, without r's name; "" where none does.
func (d *delivery) dues(r *relay) string {
	return strings.TrimPrefix(d.limitOf(r, false).text, "relay "+r.name+": ")
}

// worth is the RetryAfter of a wait.
func worth(wait time.Duration) time.Duration {
	if wait == connpool.Never {
		return notToday
	}
	return max(wait, time.Second)
}
