package smtplb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/smtplb/smtplb/internal/breaker"
)

// A Limiter keeps rates in the place of the pool's own token buckets: for several processes that share an account, over a store that they share. LocalLimiter is one for several Pools of a process. The package limitertest checks
// whether one keeps the contract.
//
// The pool asks it in the send's goroutine, with none of its locks held: before the send waits for a connection, for everything that no relay is part of; and when it has one, for the relay, with a maxWait of 0. What was
// reserved is returned where the wait, or the attempt, ends before the relay may have got the message, and committed otherwise. Concurrency is the pool's own. With a Limiter, connections
// are not raced: what the second relay would cost isn't reserved.
//
// A Limiter knows nothing of Streams: what a DeliverAll has in flight has asked it before whatever comes later, a password reset for instance, which then waits for all of that, or is denied. Where other mail goes by the same limits, set Bulk.InFlight to
// what they allow in a second or two.
type Limiter interface {
	// Reserve takes all the charges, or none of them. Where they are not there it waits, for maxWait at the most (negative: as long as ctx lasts), and ends with ctx: the send's, which ends with the pool, too, and is not to be used after Reserve has returned.
	//
	// A denial is a *ThrottledError, whose RetryAfter is when it is worth trying again. Any other error defers the message: a Limiter that would rather let mail pass while its store is away
	// returns a Lease that does nothing.
	Reserve(ctx context.Context, charges []Charge, maxWait time.Duration) (Lease, error)
}

// A Lease is what a Limiter has reserved. Exactly one of its methods counts, the first that is called; the others do nothing then. They must not block for long.
type Lease interface {
	Commit() // it was used
	Return() // it was not: others may have it
}

// A Charge is something of one Rate that a message needs.
type Charge struct {
	Scope string // "sender", "provider", "route", "stream", "pool" or "relay"; the smallest come first
	Key   string // which: a relay's name, say; "" for the pool
	Unit  Unit
	Rate  Rate // as configured, with the defaults of Per and Burst filled in: N, Per and Burst are all above 0
	N     int  // of Unit; may be more than Rate.Burst: then it is to wait for the whole burst, and use up what comes after it
}

// Unit is what a Rate counts.
type Unit uint8

// The units of rates.
const (
	Messages Unit = iota
	Recipients
	Connections
)

// String returns the unit's name.
func (u Unit) String() string {
	return nameOf([]string{"messages", "recipients", "connections"}, int(u), "Unit")
}

// nameOf is that of n, a value of the type kind; there are no others than those that names have.
func nameOf(names []string, n int, kind string) string {
	if n < len(names) {
		return names[n]
	}
	return fmt.Sprintf("%s(%d)", kind, n)
}

// ThrottledError says that a limit is reached; of several, the one that the message would wait for longest, and of relays that are all over their limits, that of the one that is free first. It matches ErrThrottled.
type ThrottledError struct {
	Scope, Key string // whose; as in Charge
	RetryAfter time.Duration
	Reason     string // in words
}

// Error tells whose limit it is.
func (e *ThrottledError) Error() string {
	text := e.Reason
	if text == "" {
		text = "a limit is reached"
	}
	return fmt.Sprintf("smtplb: throttled: %s, for %v", oneLine(text), e.RetryAfter.Round(time.Millisecond))
}

// Is makes errors.Is match ErrThrottled.
func (e *ThrottledError) Is(target error) bool { return target == ErrThrottled }

// reserve asks the Limiter for what no relay is part of.
func (d *delivery) reserve(ctx context.Context) error {
	if d.fleet.config.Limiter == nil || len(d.leases) > 0 {
		return nil
	}
	charges := d.charges()
	if len(charges) == 0 {
		return nil
	}
	most := d.fleet.maxThrottle
	if d.fellows > 1 && most > 0 { // each of those that may be before it waits for so long
		most *= min(time.Duration(d.fellows), math.MaxInt64/most)
	}
	denied, err := d.lease(ctx, charges, most)
	if denied == nil {
		return err
	}
	d.throttled = true
	d.retryAfter = max(denied.RetryAfter, time.Second)
	return denied
}

// lease asks the Limiter, whose denial is no error.
func (d *delivery) lease(ctx context.Context, charges []Charge, maxWait time.Duration) (denied *ThrottledError, err error) {
	open, end := d.pool.untilClosed(ctx)
	defer end()
	lease, err := d.fleet.config.Limiter.Reserve(open, charges, maxWait)
	switch {
	case err == nil && lease == nil:
		return nil, errLimiter(errNoLease)
	case err == nil:
		d.leases = append(d.leases, lease)
		return nil, nil
	case errors.As(err, &denied) && denied == nil: // a variable of that type that nothing was assigned to: as an error it isn't nil
		return nil, errLimiter(errNilDenial)
	case denied != nil:
		return denied, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("waiting for the Limiter: %w", contextError(ctx))
	case open.Err() != nil:
		return nil, ErrClosed
	}
	return nil, errLimiter(err)
}

// charged asks the Limiter for what r needs of it, for d.turn, and gives turn and permit back where it isn't there.
func (d *delivery) charged(ctx context.Context, r *relay, permit *breaker.Permit) (ok bool, err error) {
	if d.fleet.config.Limiter == nil {
		return true, nil
	}
	defer func() { // a Limiter may panic
		if !ok {
			r.giveBack(&d.turn, permit)
		}
	}()
	return d.charge(ctx, r)
}

// charge asks the Limiter for what r needs of it, for d.turn. Where it denies that, the relay is left alone for as long as it says.
func (d *delivery) charge(ctx context.Context, r *relay) (ok bool, err error) {
	var list []Charge
	list = addCharge(list, scopeRelay, r.name, r.origin.limits(), r.transactions(d.fare), d.fare.recipients)
	if rate := r.origin.limits().Connections; rate.N > 0 && d.turn.Fresh() {
		list = append(list, Charge{Scope: scopeRelay, Key: r.name, Unit: Connections, Rate: rate.whole(), N: 1})
	}
	if len(list) == 0 {
		return true, nil
	}
	denied, err := d.lease(ctx, list, 0)
	if denied != nil {
		until := time.Now().Add(max(denied.RetryAfter, time.Millisecond))
		r.refusedUntil.Store(&until)
	}
	return denied == nil && err == nil, err
}

// charges are those of d that no relay is part of: the smallest scope first.
func (d *delivery) charges() (list []Charge) {
	f := d.fleet
	c := f.config
	if s := d.sender(); c.PerSender.any() {
		list = addCharge(list, scopeSender, s, c.PerSender, d.fare.messages, d.fare.recipients)
	}
	providers, routes := make(map[*provider]int), make(map[int]int)
	for i := range d.rcpts {
		if x := &d.rcpts[i]; x.outcome == 0 {
			if p := f.providerOf(x); p != nil {
				providers[p]++
			}
			if n := d.routeNumber(x); n >= 0 {
				routes[n]++
			}
		}
	}
	for _, p := range f.providers {
		list = addCharge(list, scopeProvider, p.Name, p.Limits, d.fare.messagesOf(providers[p]), providers[p])
	}
	for _, n := range slices.Sorted(maps.Keys(routes)) { // there may be very many more
		list = addCharge(list, scopeRoute, f.routes[n].name, c.Routes[n].Limits, d.fare.messagesOf(routes[n]), routes[n])
	}
	list = addCharge(list, scopeStream, d.env.Stream, f.streams[d.env.Stream].Limits, d.fare.messages, d.fare.recipients)
	return addCharge(list, scopePool, "", c.Limits, d.fare.messages, d.fare.recipients)
}

func addCharge(list []Charge, scope, key string, l Limits, messages, recipients int) []Charge {
	if l.Messages.N > 0 && messages > 0 {
		list = append(list, Charge{Scope: scope, Key: key, Unit: Messages, Rate: l.Messages.whole(), N: messages})
	}
	if l.Recipients.N > 0 && recipients > 0 {
		list = append(list, Charge{Scope: scope, Key: key, Unit: Recipients, Rate: l.Recipients.whole(), N: recipients})
	}
	return list
}

// returnLeases gives back what the Limiter has reserved for an attempt that did not use it.
func (d *delivery) returnLeases() {
	for len(d.leases) > 0 {
		l := d.leases[len(d.leases)-1]
		d.leases = d.leases[:len(d.leases)-1]
		l.Return()
	}
}

// commitLeases says that it was used.
func (d *delivery) commitLeases() {
	for len(d.leases) > 0 {
		l := d.leases[len(d.leases)-1]
		d.leases = d.leases[:len(d.leases)-1]
		l.Commit()
	}
}

var (
	errNoLease   = errors.New("it returned neither a Lease nor an error")
	errNilDenial = errors.New("its error is a *ThrottledError that is nil")
)

// errLimiter hides what a Limiter's error matches: it must not look like what a relay said.
func errLimiter(err error) error {
	return fmt.Errorf("%w: the Limiter failed: %s", ErrThrottled, err.Error())
}
