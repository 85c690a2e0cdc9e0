package smtplb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/smtp"
	"slices"
	"strings"
	"time"

	"github.com/smtplb/smtplb/internal/breaker"
	"github.com/smtplb/smtplb/internal/connpool"
	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/session"
	"github.com/wneessen/go-mail"
)

// This file is the way of a message, from top to bottom: Deliver makes it ready, dispatch (in routes.go) finds its route, run takes it from relay to relay, turn finds
// a relay with a free connection, and attempt (in attempt.go) hands it over.

// Send renders a go-mail message once, and delivers it to its To, Cc and Bcc recipients. See Deliver for what is returned. Where a retry of
// what was deferred is wanted, use NewEnvelope and Deliver. msg is not touched after Send has returned.
//
// Attachments are encoded piece by piece. Only where go-mail needs them whole (it signs the message, or they are not in base64) are they held in memory, about 2.5 times their size: two such
// messages of a Pool are rendered at a time, and others wait for them.
func (p *Pool) Send(ctx context.Context, msg *mail.Msg) (*Receipt, error) {
	e, err := addressed(msg)
	if err != nil {
		return nil, err
	}
	return p.Deliver(ctx, e)
}

// SendMail has the signature of net/smtp.SendMail and can take its place. It does not look at addr and a: where mail goes, and how to
// authenticate there, is the pool's configuration.
//
// As with net/smtp, from may be "" (the null sender), a refused recipient refuses the message for all of them, lone LFs become CRLF, and
// errors.As finds the relay's refusal as a *textproto.Error. Unlike there, addresses are checked against RFC 5321's grammar before anything is sent, TLS and the
// name in EHLO are as configured, a message is sent over another relay where one fails, and nothing is sent twice: a recipient who is named twice gets
// it once. A lone CR becomes CRLF too; an empty message, a NUL, a line of more than 998 bytes, and 8-bit text where no relay offers 8BITMIME are
// refused. A 5xx that is not about the message (a greeting, say) is found as a 451, and what a Route fails as a 550. A recipient that a Route has discarded counts as one that got it: an error would have the others sent to
// again. It waits as long as it must: for a limit use Deliver.
func (p *Pool) SendMail(addr string, a smtp.Auth, from string, to []string, msg []byte) error {
	if from == "" {
		from = "<>"
	}
	_, err := p.Deliver(context.Background(), &Envelope{From: from, To: to, Body: Bytes(msg), RequireAll: true, LineEndings: LineEndingsLenient})
	if errors.Is(err, ErrDiscarded) {
		return nil
	}
	return err
}

// Deliver hands one message to a relay for each recipient, trying others where that is safe, and tells what became of every recipient. It
// neither changes nor keeps e.
//
// The error is nil if, and only if, a relay accepted the message for every recipient. It is an *EnvelopeError, with a nil Receipt, where e itself is at fault,
// and a *SendError with the Receipt otherwise.
//
// Deliver ends with ctx before the commit point (the moment from which a relay may have accepted the message), and at most 5 s later after it. With less than a fifth
// of the context's time left, or 5 s if that is less, it doesn't begin to commit and tries no other relay; under Limits it begins nothing, as others can use what it would take.
func (p *Pool) Deliver(ctx context.Context, e *Envelope) (*Receipt, error) {
	d, err := p.prepare(ctx, e)
	if err != nil {
		return nil, err
	}
	return p.complete(ctx, d)
}

// prepare checks e and reads its message, in the caller's goroutine. What it returns must be completed; its error is one of the envelope's.
func (p *Pool) prepare(ctx context.Context, e *Envelope) (*delivery, error) {
	if p == nil || p.conns == nil {
		return nil, errNotMade
	}
	if e == nil {
		return nil, &EnvelopeError{Reason: "the envelope is nil"}
	}
	admitted := p.gate.enter()
	p.wake()
	d := newDelivery(p, e)
	d.admitted = admitted
	ready := false
	defer func() {
		if !ready {
			d.free()
		}
	}()
	if err := d.checkAddresses(); err != nil {
		return nil, err
	}
	if err := d.checkTogether(); err != nil {
		return nil, err
	}
	if !admitted {
		d.cause = ErrClosed
	} else if err := d.readBody(ctx, p.maxSize); errors.Is(err, ErrTemporary) {
		d.cause = err
	} else if err != nil {
		return nil, err
	}
	ready = true
	return d, nil
}

// complete signs and sends what was prepared. Where there is no receipt, the error is one of the envelope's.
func (p *Pool) complete(ctx context.Context, d *delivery) (*Receipt, error) {
	defer d.free()
	if d.cause == nil {
		if d.cause = d.sign(ctx); d.cause != nil && errors.As(d.cause, new(*EnvelopeError)) {
			return nil, d.cause
		}
	}
	if d.cause == nil {
		d.limit(ctx)
		if d.fleet.operators != nil {
			p.identify(ctx, d)
		}
		d.cause = p.dispatch(ctx, d)
	}
	d.conclude(d.cause)
	receipt, err := d.finish(d.cause)
	p.report(ctx, receipt, err)
	return receipt, err
}

// run takes d from relay to relay until nothing is pending. It returns why it stopped early, nil where the relays' words decided.
func (p *Pool) run(ctx context.Context, d *delivery) error {
	defer d.leaveNext()
	defer d.returnLeases()
	for d.pending > 0 && d.made < d.fleet.attempts {
		if d.made > 0 && d.late(time.Now()) { // no failover in the last fifth of the caller's time
			return d.tooLate()
		}
		waiting := time.Now()
		if d.next != nil { // a failed race has left the other relay's connection to be made
			p.budget.spend() // which is never refused: the relay is well
			p.failedOver(d.try.relay.standing)
			p.attempt(ctx, d, breaker.Permit{}, waiting)
			continue
		}
		permit, ok, err := p.turn(ctx, d)
		if !ok {
			return err
		}
		if (d.made > 0 || d.fare != nil) && d.late(time.Now()) { // it waited for so long that it couldn't be committed any more: others can use what it would pay
			d.fleet.ofLane(d.turn.Lane()).giveBack(&d.turn, &permit)
			return d.tooLate()
		}
		if d.made > 0 {
			p.failedOver(d.try.relay.standing)
		}
		p.attempt(ctx, d, permit, waiting)
	}
	return nil
}

// failedOver counts an attempt after the first of a message, which was at r before.
func (p *Pool) failedOver(r *standing) {
	p.failovers.Add(1)
	r.hops.Add(1)
}

// tooLate is why there is no attempt any more: there was somebody, and no time.
func (d *delivery) tooLate() error {
	clear(d.denied)
	d.frugal = false
	if d.choose() == nil {
		return d.nobody()
	}
	return context.DeadlineExceeded
}

// turn finds a relay that may take d, and waits for a free connection slot on it: d.turn. Where every relay that may has been tried there is
// neither a turn nor an error.
func (p *Pool) turn(ctx context.Context, d *delivery) (permit breaker.Permit, ok bool, err error) {
	clear(d.denied)
	class := d.fleet.streams[d.env.Stream]
	d.place = connpool.Request{Lag: class.Lag, Bulk: class.Bulk}
	d.spilled, d.frugal, d.waitUntil, d.throttleUntil = 0, false, time.Time{}, time.Time{}
	d.unpaid = d.made == 0 || d.ownHop()
	chanced := false // to take what a limit allowed at the last moment
	for d.asked = false; ; {
		p.resolve(ctx, d)
		switch {
		case ctx.Err() != nil:
			return permit, false, contextError(ctx)
		case d.torn:
			return permit, false, errRerouted
		}
		d.place.Lag = class.Lag
		if d.fare = d.price(); d.fare != nil && d.fellows > 0 && class.Bulk { // it has what others leave, and keeps its place among its like
			d.place.Lag = class.Lag + behindAll
		}
		if err := d.reserve(ctx); err != nil {
			return permit, false, err
		}
		var tier *tier
		taken := d.quick()
		if !taken {
			if wait := d.tooDear(); wait > 0 {
				return permit, false, d.overLimit(wait)
			}
			if tier = d.choose(); tier == nil {
				return permit, false, d.nobody()
			}
			taken = d.take(tier)
		}
		for n := 0; !taken && n < d.spilled; n++ {
			next := d.after(tier)
			if next == nil {
				break
			}
			tier = next
			taken = d.take(d.mask(tier))
		}
		if !taken { // all full, or a race was lost: into the queue, where the first free connection of any of them is ours, or a ride behind another's body
			switch err := p.wait(ctx, d, tier); {
			case err == errWaitedEnough:
				d.prefer, d.sticks = "", false
				continue
			case err == errThrottled || err == errAllBusy && !(d.fleet.spill && d.spills(tier)):
				if err := d.outwaited(err, &chanced); err != nil {
					return permit, false, err
				}
				continue
			case err == errAllBusy:
				d.spilled++
				d.waitUntil = time.Time{}
				continue
			case errors.Is(err, connpool.ErrChanged): // there are others now: again, in the same place
				continue
			case errors.Is(err, connpool.ErrNoLane): // they went down while we waited
				d.deny()
				continue
			case errors.Is(err, connpool.ErrClosed):
				return permit, false, ErrClosed
			case err != nil:
				return permit, false, contextError(ctx)
			}
		}
		r := d.fleet.ofLane(d.turn.Lane())
		permit, ok = r.admit(&d.turn)
		switch {
		case ok && d.fare != nil && d.fare.short.Load(): // what it has to pay is there no more
			r.giveBack(&d.turn, &permit)
			d.denied.add(r.index)
		case !ok:
			d.denied.add(r.index) // its breaker opened, or let another probe through, between the choice and now
		case d.unpaid || p.budget.spend() || !d.dear(r):
			if taken, err := d.charged(ctx, r, &permit); taken || err != nil {
				return permit, taken, err
			}
			d.unpaid = true // the budget has paid for the one that will be taken
		default:
			r.giveBack(&d.turn, &permit)
			d.frugal = true
		}
	}
}

// behindAll is the lag of what is bulk in a DeliverAll and waits for limits: longer than anything else waits, so that it never counts as older than what isn't bulk. Among each other these are served in the order in which they came, as ever:
// one that needs much of what comes little by little isn't overtaken, for ever, by others that need less.
const behindAll = 50 * 365 * 24 * time.Hour

// nextWait is how long d waits at the least where it goes on after it has waited for as long as it may: a MaxThrottleWait or MaxWait of a millisecond isn't a reason to look a thousand times a second.
const nextWait = 100 * time.Millisecond

// outwaited is what becomes of d when it has waited for a limit (errThrottled), or for anything (errAllBusy), for as long as it may: nil where it goes on. chanced: it did so already to take what a limit allowed at the last moment.
func (d *delivery) outwaited(cause error, chanced *bool) error {
	wait, now := d.throttledFor(), time.Now()
	switch {
	case cause == errThrottled && d.patient(wait): // those before it had what there was
		d.throttleUntil = now.Add(max(d.fleet.maxThrottle, nextWait))
	case cause == errAllBusy && d.patient(wait) && (wait > 0 || !d.crowded()): // it wasn't a connection that it waited for
		d.waitUntil = now.Add(max(d.fleet.maxWait, nextWait))
	case wait > 0 || *chanced:
		return d.overLimit(wait)
	case cause == errAllBusy:
		return cause
	case d.crowded(): // it is connections that it waits for
		d.throttleUntil = now.Add(max(d.fleet.maxThrottle, nextWait))
	default: // just now there is something
		*chanced = true
	}
	return nil
}

// quick is choose and take at once, for a first attempt where nothing is wrong: the first tier's picker names a relay, and where that one may take d now, it is what choose would have
// led to, without a look at all the others. It asks once in a turn, and only a picker that keeps to its relays' weights whatever Skip says: the package's own.
func (d *delivery) quick() bool {
	f := d.fleet
	if d.asked || d.made > 0 || d.prefer != "" || !f.own || len(d.group.tiers) == 0 {
		return false
	}
	d.asked = true
	t := d.group.tiers[0]
	r := t.pick(d.info(nil, 1))
	if r == nil || !d.well(r) || d.shuns(r) || t.rests(r) || !d.tryLane(r) {
		return false
	}
	d.count(false)
	return true
}

// take lets a tier's picker choose among the relays with a free connection, for d.turn.
func (d *delivery) take(t *tier) bool {
	attempt := d.made + 1
	if d.asked { // this message has used up a turn of the picker's sequence, and gets no other: a draw decides
		attempt = max(attempt, 2)
	}
	r := t.pick(d.info(d.skip, attempt))
	if r == nil || !d.lanes.Has(r.member) { // whatever it did to Skip
		return false
	}
	return d.tryLane(r)
}

// tryLane takes a free connection slot of r, if there is one, for d.turn.
func (d *delivery) tryLane(r *relay) bool {
	if d.fare != nil {
		ok := d.pool.conns.TryFareInto(&d.turn, r.lane, d.place.Bulk, d.fare, d.place.Lag)
		if ok {
			r.slowness.used()
		}
		return ok
	}
	turn, ok := d.pool.conns.Try(r.lane, d.place.Bulk)
	if ok {
		d.turn = *turn
		r.slowness.used()
	}
	return ok
}

// info is d for a picker.
func (d *delivery) info(skip Bitset, attempt int) PickInfo {
	return PickInfo{Key: d.env.Key, Stream: d.env.Stream, From: d.msg.from, Domain: d.firstDomain(), Skip: skip, Attempt: attempt}
}

// admit asks r's breaker for leave to use t, and gives t back where that is refused, or where a hook that hears of it panics.
func (r *standing) admit(t *connpool.Turn[*session.Conn]) (permit breaker.Permit, ok bool) {
	defer func() {
		if !ok {
			t.Put(0)
			r.sync()
		}
	}()
	return r.permit()
}

// giveBack ends a turn and its permit of which no use was made.
func (r *standing) giveBack(t *connpool.Turn[*session.Conn], permit *breaker.Permit) {
	defer t.Put(0)
	permit.Done(breaker.NotCounted)
}

// wait waits in the queue for d.turn: for a preferred relay alone for maxPreferWait only, and in one turn for Config.MaxWait altogether. last is the last tier in d.lanes.
func (p *Pool) wait(ctx context.Context, d *delivery, last *tier) error {
	if len(d.fleet.warming) > 0 {
		p.stoke(d.fleet, time.Now()) // only now the warm-ups know what is wanted of them
	}
	r := d.fleet.byName[d.prefer]
	preferred := r != nil && d.lanes.Has(r.member) && d.lanes.Count() == 1
	if !preferred {
		d.hope(last)
	}
	throttles := d.fare != nil && d.fleet.maxThrottle >= 0
	if !preferred && d.fleet.maxWait == 0 && !throttles {
		return d.queue(ctx)
	}
	now := time.Now()
	if d.fleet.maxWait > 0 && d.waitUntil.IsZero() {
		d.waitUntil = now.Add(d.fleet.maxWait)
	}
	if throttles && d.throttleUntil.IsZero() {
		d.throttleUntil = now.Add(d.fleet.maxThrottle)
	}
	until, cause := d.waitUntil, errAllBusy
	if throttles && (until.IsZero() || d.throttleUntil.Before(until)) {
		until, cause = d.throttleUntil, errThrottled
	}
	if preferred {
		if enough := now.Add(maxPreferWait); until.IsZero() || enough.Before(until) {
			until = enough
		}
		cause = errWaitedEnough
	}
	return d.queueFor(ctx, until, cause)
}

// queueFor is queue until then, when its error is cause.
func (d *delivery) queueFor(ctx context.Context, until time.Time, cause error) error {
	short, cancel := context.WithDeadlineCause(ctx, until, cause)
	defer cancel()
	return d.queue(short)
}

var (
	errWaitedEnough = errors.New("waited long enough for the preferred relay")
	errThrottled    = errors.New("waited long enough for a limit")
	errAllBusy      = fmt.Errorf("%w: all relays are busy", ErrNoRelay)
	errBudget       = fmt.Errorf("%w: the retry budget is used up", ErrNoRelay)
	errApart        = fmt.Errorf("%w: the recipients leave by routes that have no relay in common", ErrNoRelay)
)

// choose fills in d.lanes, the relays that may take d now, and d.skip, the same as the picker of their tier wants it. Relays that are cooling down, or that
// refused this sender a moment ago, come in only where no tier has another. nil: nobody may.
func (d *delivery) choose() *tier {
	f := d.fleet
	clear(d.lanes)
	if d.prefer != "" {
		if r := f.byName[d.prefer]; r != nil && d.group.members.Has(r.index) && d.may(r) {
			d.lanes.add(r.member)
			d.count(true)
			return d.mask(d.group.tierOf(r))
		}
	}
	tiers := d.tiers()
	for _, soft := range [...]bool{false, true} {
		for _, t := range tiers {
			found := false
			for _, r := range t.relays {
				if d.may(r) && (soft || !d.shuns(r)) {
					d.lanes.add(r.member)
					found = true
				}
			}
			if found {
				d.count(soft)
				return d.mask(t)
			}
		}
	}
	return nil
}

// count sets d.candidates, which is for sharing out the caller's time: without a deadline nobody asks for it, and beyond the attempts that a message has it makes no difference. soft: the relays
// that d shuns are among them.
func (d *delivery) count(soft bool) {
	d.candidates = 0
	if d.deadline.IsZero() {
		return
	}
	for _, r := range d.group.relays {
		if d.may(r) && (soft || !d.shuns(r)) {
			if d.candidates++; d.candidates >= d.fleet.attempts {
				return
			}
		}
	}
}

// after adds to d.lanes the relays of the next tier that has some for d. It looks for no soft reason to use a relay: who spills over isn't in need.
func (d *delivery) after(t *tier) *tier {
	for _, next := range d.group.tiers {
		if next.first <= t.first {
			continue
		}
		found := false
		for _, r := range next.relays {
			if d.may(r) && !d.shuns(r) {
				d.lanes.add(r.member)
				found = true
			}
		}
		if found {
			return next
		}
	}
	return nil
}

// hope adds to d.lanes the relays that are not used now, but would do otherwise, up to the tier that is waited for: should one come back first, or be put back, it is welcome.
func (d *delivery) hope(last *tier) {
	if d.frugal {
		return
	}
	for _, r := range d.group.relays[:last.first+len(last.relays)] {
		if !r.ready() && d.could(r) && !d.shuns(r) {
			d.lanes.add(r.member)
		}
	}
}

// may reports whether r could take d now.
func (d *delivery) may(r *relay) bool {
	return d.well(r) && !d.closed(r)
}

// well is may, but for the relay's limits.
func (d *delivery) well(r *relay) bool {
	return d.could(r) && r.ready() && !(d.frugal && d.dear(r))
}

// could reports whether r could take d if it were well.
func (d *delivery) could(r *relay) bool {
	return !d.tried.Has(r.index) && !d.denied.Has(r.index) && !d.outside.Has(r.index) && r.lacks(d) == nil
}

// shuns reports whether r is used for d only where there is no other.
func (d *delivery) shuns(r *relay) bool { return r.cooling() || r.apart.has(d.msg.fromDomain) }

// dear reports whether a further attempt at r is one that the retry budget must pay for: r has failed before.
func (d *delivery) dear(r *relay) bool {
	return r.breaker.State() != breaker.Closed || d.again.Has(r.index)
}

// ownHop reports whether another relay is to be tried for no other reason than recipients' own 4xx.
func (d *delivery) ownHop() bool {
	for i := range d.rcpts {
		if x := &d.rcpts[i]; x.outcome == 0 && (x.hops == 0 || x.stage != StageRcpt || !x.reply.Temporary()) {
			return false
		}
	}
	return true
}

// mask fills in d.skip for a tier whose chosen relays stand in d.lanes: with those that have no free connection, and those that rest for their slowness, unless only such are free.
func (d *delivery) mask(t *tier) *tier {
	d.skip = d.skipBuf[:words(len(t.relays))]
	for w := range d.skip {
		d.skip[w] = ^uint64(0)
	}
	resting, quick, broke := 0, false, d.afford() > 0
	for i, r := range t.relays {
		switch {
		case broke || !d.lanes.Has(r.member) || !d.pool.conns.Free(r.lane, d.place.Bulk) || d.owed(r) > 0:
			continue
		case t.rests(r):
			resting++
		default:
			quick = true
		}
		d.skip.remove(i)
	}
	if !quick || resting == 0 {
		return t
	}
	for i, r := range t.relays {
		if t.rests(r) {
			d.skip.add(i)
		}
	}
	return t
}

// deny leaves out, for this turn, the relays in d.lanes whose lanes are down though they seem ready.
func (d *delivery) deny() {
	for _, r := range d.group.relays {
		if d.lanes.Has(r.member) && r.ready() {
			d.denied.add(r.index)
		}
	}
}

// nobody tells why choose found no relay: nil where all were tried or can't take such a message, so that their words decide.
func (d *delivery) nobody() error {
	untried, refused, outside := false, false, len(d.group.relays) > 0
	var over *reached // of the relays whose limits are reached, that of the one that is free first
	now := time.Now()
	var why []reached
	hear := func(text string, wait time.Duration) {
		if text != "" {
			why = append(why, reached{wait: wait, text: text})
		}
		if d.retryAfter == 0 || wait < d.retryAfter {
			d.retryAfter = wait
		}
	}
	relays := d.group.relays
	if tiers := d.tiers(); len(tiers) > 0 && len(tiers) < len(d.group.tiers) { // the others are none of its business
		last := tiers[len(tiers)-1]
		relays = relays[:last.first+len(last.relays)]
	}
	for _, r := range relays {
		outside = outside && d.outside.Has(r.index)
		if d.tried.Has(r.index) || d.outside.Has(r.index) || r.lacks(d) != nil {
			continue
		}
		untried = true
		refused = refused || d.frugal && d.could(r) && r.ready()
		wait, text := retrySoon, r.trouble()
		if at := r.retryAt(); !at.IsZero() {
			wait = max(at.Sub(now), time.Second)
		}
		if x := d.limitOf(r, false); d.closed(r) && (text == "" || x.wait > wait) {
			text, wait = x.text, worth(x.wait)
			if over == nil || x.wait < over.wait {
				over = &x
			}
		} else if text == "" {
			text = x.text
		}
		hear(text, wait)
	}
	for _, s := range d.group.sources {
		if text, next := s.trouble(); text != "" {
			untried = true
			hear(text, max(next.Sub(now), time.Second))
		}
	}
	slices.SortStableFunc(why, func(a, b reached) int { return cmp.Compare(a.wait, b.wait) }) // who is there first is why RetryAfter is what it is
	said := make([]string, min(len(why), 3))
	for i := range said {
		said[i] = why[i].text
	}
	switch {
	case !untried && outside: // an Update has changed the routes, or they have a domain in common of which DNS names no relay: else Deliver would have refused it
		return errApart
	case !untried:
		return nil
	case d.pool.ctx.Err() != nil: // an Update that came too late has taken its relays away again
		return ErrClosed
	case refused:
		d.pool.budget.refusals.Add(1)
		return errBudget
	case over != nil:
		d.throttled = true
		return &ThrottledError{Scope: over.scope, Key: over.key, RetryAfter: d.retryAfter, Reason: strings.Join(said, ", ")}
	case why == nil:
		return ErrNoRelay
	}
	return fmt.Errorf("%w: %s", ErrNoRelay, strings.Join(said, ", "))
}

// contextError is why ctx ended: its error, and its cause where that says more.
func contextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if err == cause {
		return err
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// report tells hooks and log how a send ended.
func (p *Pool) report(ctx context.Context, r *Receipt, err error) {
	p.sends.Add(1)
	if p.logger != nil {
		if err == nil {
			p.log(ctx, slog.LevelDebug, "sent", slog.Any("receipt", r))
		} else {
			p.log(ctx, slog.LevelWarn, "not sent to everybody", slog.Any("receipt", r), slog.String("error", err.Error()))
		}
	}
	if p.hooks.Done != nil {
		p.hooks.Done(ctx, r, err)
	}
}

// stageName is a session's stage for callers.
func stageName(s reply.Stage) Stage { return Stage(s.String()) }
