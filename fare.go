package smtplb

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
	"github.com/smtplb/smtplb/internal/domain"
	"github.com/smtplb/smtplb/internal/session"
)

// This file is what one message costs of all that is limited, and how a send goes by it.

// toll is what a fare costs of one meter.
type toll struct {
	*meter
	recipients int
}

// fare is what one attempt of a message costs. What it is for doesn't change. It outlives the delivery: a connection that has lost its race may have paid it.
type fare struct {
	fleet                *fleet
	messages, recipients int
	tolls                []toll      // of whatever is not the relay
	sender               string      // of PerSender; "": there is none
	mailboxes            []*provider // of the recipients, where somebody asks for them
	each                 []int       // recipients of each of these
	short                atomic.Bool // it could not be paid whole
	warm                 []warmed    // what is taken of warm-ups now; guarded by the lock of Pool.conns
	strained             []strained  // what is paid of relays that are held back; likewise
	dials                []*standing // those of them that a new connection is paid of; likewise
	paying               int         // for how many turns it is paid now: a race has two; likewise
	paid                 time.Time   // when it was, and it wasn't before; likewise
	buf                  [4]toll
}

// price makes the fare of what is pending of d, nil where nothing is limited.
func (d *delivery) price() *fare {
	f := d.fleet
	strained := d.pool.strained.Load() > 0
	if len(f.warming) > 0 {
		d.pool.stoke(f, time.Now())
	}
	if !f.metered && !strained {
		return nil
	}
	x := &fare{fleet: f, recipients: d.pending, messages: (d.pending + maxRecipients - 1) / maxRecipients}
	x.tolls = x.buf[:0]
	if f.perSender != nil {
		x.sender = d.sender()
	}
	x.add(d.lot.provider, d.pending)
	x.add(d.lot.route, d.pending)
	if d.mixed {
		x.tolls = x.tolls[:0]
	}
	if byMailbox := strained || len(f.warming) > 0; byMailbox || d.mixed {
		for i := range d.rcpts {
			y := &d.rcpts[i]
			if y.outcome != 0 {
				continue
			}
			p := f.providerOf(y)
			if byMailbox && p != nil {
				x.mailbox(p)
			}
			if d.mixed {
				x.add(p.limited(), 1)
				x.add(d.routeOf(y).meter, 1)
			}
		}
	}
	x.add(f.perStream[d.env.Stream], d.pending)
	x.add(f.whole, d.pending)
	return x
}

// sender is whose limits Config.PerSender bounds.
func (d *delivery) sender() string { return cmp.Or(d.env.Key, d.msg.fromDomain, domain.NullSender) }

// mailbox counts a recipient of a provider.
func (f *fare) mailbox(p *provider) {
	i := slices.Index(f.mailboxes, p)
	if i < 0 {
		i = len(f.mailboxes)
		f.mailboxes, f.each = append(f.mailboxes, p), append(f.each, 0)
	}
	f.each[i]++
}

func (f *fare) add(m *meter, recipients int) {
	if m == nil {
		return
	}
	for i := range f.tolls {
		if f.tolls[i].meter == m {
			f.tolls[i].recipients += recipients
			return
		}
	}
	f.tolls = append(f.tolls, toll{m, recipients})
}

// messagesOf is how many messages count for so many recipients of the fare's.
func (f *fare) messagesOf(recipients int) int { return min(f.messages, recipients) }

// Like, Wait, Pay, End and Leave make fare a connpool.Fare.
func (f *fare) Like(other connpool.Fare) bool {
	o := other.(*fare)
	if len(f.tolls) != len(o.tolls) || f.sender != o.sender || f.fleet != o.fleet {
		return false
	}
	for i := range f.tolls {
		if f.tolls[i].meter != o.tolls[i].meter {
			return false
		}
	}
	return slices.Equal(f.mailboxes, o.mailboxes)
}

func (f *fare) Wait(a connpool.Ask) time.Duration {
	d := f.common(&a)
	if r := f.fleet.ofLane(a.Lane); r != nil {
		d = max(d, r.tollWait(&a, f))
	}
	return d
}

// common is Wait but for the relay's own.
func (f *fare) common(a *connpool.Ask) (d time.Duration) {
	for i := range f.tolls {
		t := &f.tolls[i]
		d = max(d, t.wait(a, f.messagesOf(t.recipients), t.recipients))
	}
	if f.sender != "" {
		d = max(d, f.fleet.perSender.wait(a.Now, f.sender, f.messages, f.recipients))
	}
	return d
}

func (f *fare) Pay(lane int, now time.Time, fresh bool) {
	if f.paying++; f.paying == 1 { // of two at a time the first counts: where there is an Update between them, too little is given back rather than too much
		f.paid = now
	}
	for i := range f.tolls {
		t := &f.tolls[i]
		t.pay(now, f.messagesOf(t.recipients), t.recipients)
	}
	if f.sender != "" {
		f.fleet.perSender.pay(now, f.sender, f.messages, f.recipients)
	}
	if r := f.fleet.ofLane(lane); r != nil {
		r.meter.pay(now, r.transactions(f), f.recipients)
		r.strainPay(now, f)
		r.warmPay(f)
		if fresh {
			r.meter.connected(now)
			if r.strain.dialled(now) {
				f.dials = append(f.dials, r.standing)
			}
		}
	}
}

func (f *fare) End(lane int, now time.Time, spent, unused bool) (others bool) {
	f.paying--
	for i := range f.tolls {
		t := &f.tolls[i]
		if t.end(now, f.paid, f.messagesOf(t.recipients), t.recipients, spent) {
			others = true
		}
	}
	if f.sender != "" && !spent {
		f.fleet.perSender.end(now, f.sender, f.messages, f.recipients)
		others = true
	}
	if r := f.fleet.ofLane(lane); r != nil {
		r.meter.end(now, f.paid, r.transactions(f), f.recipients, spent)
		if r.strainEnd(now, f, spent) {
			others = true
		}
		r.warmEnd(f, spent)
		if unused {
			r.meter.connections.Undo(now, f.paid, 1)
		}
		if i := slices.Index(f.dials, r.standing); i >= 0 {
			f.dials = slices.Delete(f.dials, i, i+1)
			if unused {
				r.strain.dials.pace.Return(now, 1)
			}
		}
	}
	return others
}

func (f *fare) Leave(at connpool.Place) (others bool) {
	for i := range f.tolls {
		if f.tolls[i].leave(at) {
			others = true
		}
	}
	if f.messages > 1 || f.recipients > 1 {
		for _, r := range f.fleet.relays {
			if r.meter.leave(at) {
				others = true
			}
		}
	}
	return others
}

// transactions are how many of them f takes with r.
func (r *relay) transactions(f *fare) int { return (f.recipients + r.rcptMost - 1) / r.rcptMost }

// tollWait is how long it is until the relay's own limits allow f.
func (r *relay) tollWait(a *connpool.Ask, f *fare) time.Duration {
	d := r.meter.wait(a, r.transactions(f), f.recipients)
	if a.Fresh && r.meter.limits.Load().Connections.N > 0 {
		d = max(d, r.meter.connections.Wait(a.Now, 1))
	}
	d = max(d, r.strainWait(a, f), r.warmWait(f))
	if until := r.refusedUntil.Load(); until != nil {
		d = max(d, until.Sub(a.Now))
	}
	return d
}

// afford is how long d has to wait for limits that no other relay helps with.
func (d *delivery) afford() time.Duration {
	if d.fare == nil {
		return 0
	}
	a := d.ask()
	return d.fare.common(&a)
}

// tooDear is how long d would have to wait for limits that no other relay helps with, where it doesn't wait for so long; else 0.
func (d *delivery) tooDear() time.Duration {
	wait := d.afford()
	if wait == connpool.Never { // what is bounded at a time is free again soon, but that need not be all
		wait = d.fare.rates(time.Now())
	}
	if most := d.longest(); most < 0 || wait <= most {
		return 0
	}
	clear(d.lanes) // it is the limits of these that wait with it
	for _, r := range d.group.relays {
		if d.well(r) {
			d.lanes.add(r.member)
		}
	}
	return wait
}

// longest is how long d waits for a limit at the most, negative: as long as it takes. A wait that is longer than what is left of the caller's time doesn't begin.
func (d *delivery) longest() time.Duration {
	most := d.fleet.maxThrottle
	if d.commitBy.IsZero() || d.fellows > 0 { // a loop would run through all the rest of its sequence, to be told so for each
		return most
	}
	if left := max(time.Until(d.commitBy), 0); most < 0 || left < most {
		return left
	}
	return most
}

// patient reports whether d goes on waiting for a limit that has something for it after wait: in a DeliverAll it is others of the same sequence that it waits for.
func (d *delivery) patient(wait time.Duration) bool {
	if wait == connpool.Never { // what is bounded at a time is free again when one of them has been handed over
		wait = d.fare.rates(time.Now())
	}
	return d.fellows > 0 && (d.fleet.maxThrottle < 0 || wait <= d.fleet.maxThrottle)
}

// ask is what d asks a meter, outside the queue: an estimate, as others pay meanwhile.
func (d *delivery) ask() connpool.Ask { return connpool.Ask{Now: time.Now(), At: connpool.Last} }

// owed is how long it is until r's own limits allow d.
func (d *delivery) owed(r *relay) time.Duration {
	if d.fare == nil {
		return 0
	}
	a := d.ask()
	a.Fresh = r.mustDial()
	return r.tollWait(&a, d.fare)
}

// mustDial reports whether a message for the relay needs a new connection, where there may be none now: none comes back that another has.
func (r *relay) mustDial() bool {
	if !r.strain.dials.tight.Load() && (r.meter.limits.Load().Connections.N <= 0 || r.meter.connections.Wait(time.Now(), 1) == 0) {
		return false
	}
	x := r.pool.conns.Stats(r.lane)
	return x.Idle+x.Held == 0
}

// closed reports whether r's own limits keep d from it for longer than d waits for them: it counts as a relay that can't take mail.
func (d *delivery) closed(r *relay) bool {
	if d.fare == nil {
		return false
	}
	wait, most := d.owed(r), d.longest()
	return wait == connpool.Never || most >= 0 && wait > most
}

// throttledFor is how long d has to wait for a limit, of those of the relays in d.lanes that has the least; 0 where it waits for something else.
func (d *delivery) throttledFor() time.Duration {
	if d.fare == nil {
		return 0
	}
	least := connpool.Never
	for _, r := range d.group.relays {
		if d.lanes.Has(r.member) {
			least = min(least, d.owed(r))
		}
	}
	if least == connpool.Never {
		least = 0
	}
	return max(least, d.afford())
}

// crowded reports whether none of the relays in d.lanes has a free connection.
func (d *delivery) crowded() bool {
	for _, r := range d.group.relays {
		if d.lanes.Has(r.member) && d.pool.conns.Free(r.lane, d.place.Bulk) {
			return false
		}
	}
	return true
}

// dials counts a connection that is about to be opened, where the turn hasn't paid for it: in the place of one that proved stale, say.
func (r *standing) dials(t *connpool.Turn[*session.Conn]) {
	if !t.Dials() {
		r.meter.connected(time.Now())
		r.strain.dialled(time.Now())
	}
}

// spend says that the relay may have got the message: what it costs is not given back.
func (a *attempt) spend() {
	if a.turn != nil { // else a dial has it that the attempt has left
		a.turn.Spend()
	}
	a.d.commitLeases()
}

// second takes a free connection slot of another relay for d, for a race.
func (d *delivery) second(r *relay) (*connpool.Turn[*session.Conn], bool) {
	if d.fare != nil {
		t, ok := d.pool.conns.TryFare(r.lane, d.place.Bulk, d.fare, d.place.Lag)
		if ok && d.fare.short.Load() {
			t.Put(0)
			return nil, false
		}
		return t, ok
	}
	return d.pool.conns.Try(r.lane, d.place.Bulk)
}
