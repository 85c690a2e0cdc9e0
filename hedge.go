package smtplb

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/internal/breaker"
	"github.com/smtplb/smtplb/internal/connpool"
	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/session"
	"github.com/smtplb/smtplb/internal/verdict"
)

// This file races connections: where a relay takes its time to connect, another one is asked too, and the message goes to the one that is ready first. Only
// ever connections race, from dial to AUTH; the message is offered to the winner alone, so nothing can be sent twice by it. The loser's connection goes on being made in the
// background, and is kept for the next message.
//
// A relay's slot and permit belong to its leg of the race for as long as that dials, and are given back by exactly one: the attempt that takes the leg over when its dial has ended, or,
// when the attempt has left it, the leg itself.

const (
	hedgeAfter  = 250 * time.Millisecond // the least that a relay has for its connection before another is asked too
	hedgeShare  = 5                      // extra dials for 100 of the others,
	hedgeBurst  = 10                     // and so many at once
	dialHasLeft = 100 * time.Millisecond // for a Dial that was told to end, before its caller goes without its words
)

// hedges is a pool's account of extra dials: at most hedgeShare in 100.
type hedges struct {
	income atomic.Int64  // hundredths of a dial, less hedgeBurst whole ones
	dials  atomic.Uint64 // extra ones
	joined atomic.Uint64 // races that another relay entered, by a dial or with an idle connection
	won    atomic.Uint64 // by that one
}

// dialled brings in what an ordinary dial is worth.
func (h *hedges) dialled() {
	if n := h.income.Add(hedgeShare); n > 0 {
		h.income.CompareAndSwap(n, 0) // the account is full
	}
}

// take asks for an extra dial.
func (h *hedges) take() bool {
	for {
		n := h.income.Load()
		if n-100 < -100*hedgeBurst {
			return false
		}
		if h.income.CompareAndSwap(n, n-100) {
			h.dials.Add(1)
			return true
		}
	}
}

// connects are the last connect times of a relay, of connections that were used when they were ready: those of a loser say only that it was slow, and would be
// what is waited for the next time.
type connects struct {
	next atomic.Uint32
	took [64]atomic.Uint32 // in microseconds
}

func (c *connects) add(d time.Duration) {
	us := uint32(min(max(d.Microseconds(), 1), 1<<32-1))
	c.took[(c.next.Add(1)-1)%uint32(len(c.took))].Store(us)
}

// reset forgets them: they are about another way to the relay.
func (c *connects) reset() {
	for i := range c.took {
		c.took[i].Store(0)
	}
}

// patience is how long a connection is waited for before another relay is asked: what 19 of 20 took.
func (c *connects) patience() time.Duration {
	var all [len(c.took)]uint32
	n := 0
	for i := range c.took {
		if us := c.took[i].Load(); us > 0 {
			all[n] = us
			n++
		}
	}
	if n == 0 {
		return hedgeAfter
	}
	slices.Sort(all[:n])
	return max(hedgeAfter, time.Duration(all[(n*19+19)/20-1])*time.Microsecond)
}

// leg is one relay's part in a race: a connection that is made in a goroutine of its own.
type leg struct {
	pool   *Pool
	relay  *relay
	turn   connpool.Turn[*session.Conn]
	permit breaker.Permit
	begun  time.Time
	ctx    context.Context // of the dial
	cancel context.CancelCauseFunc
	idle   bool // conn is one that was there already

	done chan struct{} // closed when the dial has ended and the leg wasn't left; then the following fields don't change
	conn *session.Conn
	end  *session.End
	time session.Timings
	bad  any  // a panic's value
	gone bool // by runtime.Goexit

	state   atomic.Uint32
	counted bool // by the gate, once it was left
	hushed  bool // it was left because the caller's context had ended: how long it goes on says nothing
}

// The states of a leg: whoever moves it from legDials decides who gives slot and permit back.
const (
	legDials = iota
	legEnded // the attempt does
	legLeft  // the leg does
)

// start begins a leg. Its context has the values and the deadline of the attempt's, and ends with the pool; the attempt cancels it where its own ends before the race does.
func (p *Pool) start(ctx context.Context, r *relay, t *connpool.Turn[*session.Conn], permit breaker.Permit, cut time.Time, total time.Duration) *leg {
	r.dials(t)
	l := &leg{pool: p, relay: r, turn: *t, permit: permit, begun: time.Now(), done: make(chan struct{})}
	free := context.WithoutCancel(ctx)
	stop := func() {}
	if deadline, ok := ctx.Deadline(); ok {
		free, stop = context.WithDeadline(free, deadline)
	}
	l.ctx, l.cancel = context.WithCancelCause(free)
	unwatch := context.AfterFunc(p.races, func() { l.cancel(ErrClosed) })
	go func() {
		returned := false
		defer func() { // Dial and Auth are the caller's code, and may panic or end the goroutine
			if !returned {
				l.bad = recover()
				l.gone = l.bad == nil
			}
			unwatch()
			l.cancel(nil)
			stop()
			l.finish()
		}()
		l.conn, l.end, l.time = r.dial(l.ctx, cut, total)
		returned = true
	}()
	return l
}

// finish ends a leg's goroutine.
func (l *leg) finish() {
	if l.state.CompareAndSwap(legDials, legEnded) {
		close(l.done)
		return
	}
	if l.counted {
		if l.end != nil && l.pool.hooks.RelayState != nil {
			l.pool.gate.done() // the hook may close the pool, which must not wait for the hook
		} else {
			defer l.pool.gate.done()
		}
	}
	l.settle()
}

// abandon leaves a leg to itself. Close waits for it then, as for all that the pool does in the background.
func (l *leg) abandon() {
	if l.counted = l.pool.gate.begin(l.pool.ctx); !l.counted { // the pool is closed, and the dial about to end
		l.within(dialHasLeft)
	}
	if l.state.CompareAndSwap(legDials, legLeft) {
		return
	}
	if l.counted {
		l.pool.gate.done()
	}
	l.settle()
}

// within waits for the end of the dial, for so long.
func (l *leg) within(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-l.done:
		return true
	case <-timer.C:
		return false
	}
}

// settle gives slot and permit back. A connection is kept, which is no success of the relay's: that is a message. A fault is one.
func (l *leg) settle() {
	r := l.relay
	if l.conn != nil && !l.idle && r.outdated() { // opened by what was configured before, maybe after the lane was flushed
		l.permit.Done(breaker.NotCounted)
		l.turn.Adopt(l.conn)
		l.pool.retireTurn(l.turn, l.conn, connpool.ReasonDrained)
		return
	}
	defer l.turn.Put(0)
	switch {
	case l.conn != nil:
		if !l.idle {
			l.conn.Keep()
			l.turn.Adopt(l.conn)
			r.learn(l.conn.Extensions())
		}
		l.permit.Done(breaker.NotCounted)
	case l.end != nil && (l.hushed || r.outdated()):
		l.permit.Done(breaker.NotCounted)
	case l.end != nil:
		fact := dialFact(l.end)
		outcome := r.outcome(verdict.Judge(fact).Blame, fact)
		r.faulted(outcome, r.error(l.end))
		if outcome == breaker.Fault || outcome == breaker.Long {
			r.counts.faults.Add(1)
		}
		l.permit.Done(outcome)
	default:
		l.permit.Done(breaker.NotCounted)
		l.pool.log(context.Background(), slog.LevelError, "a Dial or Auth function panicked, or ended its goroutine", slog.String("relay", r.name), slog.Any("panic", l.bad))
	}
}

// rethrow lets the attempt's goroutine end as the leg's did.
func (l *leg) rethrow() {
	switch {
	case l.bad != nil:
		panic(l.bad)
	case l.gone:
		runtime.Goexit()
	}
}

// connect opens a connection for what the attempt offers: to its relay, or, where that takes too long, to another of its tier, which is the attempt's then.
func (a *attempt) connect(ctx context.Context) *session.End {
	d := a.d
	if !d.fleet.hedging || a.repeat || a.number >= d.fleet.attempts || a.relay.name == d.prefer || a.relay.breaker.State() != breaker.Closed ||
		len(d.group.tierOf(a.relay).relays) < 2 || a.pool.ctx.Err() != nil {
		return a.dial(ctx)
	}
	a.pool.hedges.dialled()
	l := a.pool.start(ctx, a.relay, a.turn, a.permit, a.cut, d.total)
	a.permit, a.leg = breaker.Permit{}, l
	timer := time.NewTimer(a.relay.connects.patience())
	defer timer.Stop()
	select {
	case <-l.done:
	case <-ctx.Done():
	case <-timer.C:
		if other := a.hedge(ctx); other != nil {
			return a.raceWith(ctx, other)
		}
	}
	return a.race(ctx)
}

// race waits for the attempt's leg alone.
func (a *attempt) race(ctx context.Context) *session.End {
	select {
	case <-a.leg.done:
		return a.arrive(ctx)
	case <-ctx.Done():
		return a.leave(ctx)
	}
}

// raceWith waits for the first of two legs that is connected, and leaves the other. Where the attempt's own fails first, the other is the next attempt's.
func (a *attempt) raceWith(ctx context.Context, other *leg) *session.End {
	a.pool.hedges.joined.Add(1)
	defer func() {
		if other != nil {
			other.abandon()
		}
	}()
	l := a.leg
	select {
	case <-l.done:
	case <-other.done:
		select {
		case <-l.done: // both
		default:
			o := other
			other = nil
			if o.conn != nil {
				a.swap(ctx, o)
				return nil
			}
			a.lost(ctx, o)
			return a.race(ctx)
		}
	case <-ctx.Done():
		other.hushed = true
		other.cancel(contextError(ctx))
		return a.leave(ctx)
	}
	end := a.arrive(ctx)
	if other.hushed = ctx.Err() != nil; end != nil && !other.hushed {
		a.d.next, other = other, nil
	}
	return end
}

// arrive takes over the attempt's leg, whose dial has ended.
func (a *attempt) arrive(ctx context.Context) *session.End {
	l := a.leg
	a.leg = nil
	*a.turn, a.permit = l.turn, l.permit
	l.rethrow()
	if l.end != nil && errors.Is(l.ctx.Err(), context.DeadlineExceeded) {
		<-ctx.Done() // the leg's timer was a moment before the caller's
		l.end.Err = contextError(ctx)
	}
	return a.dialled(l.conn, l.end, l.time)
}

// leave ends the attempt's dial because the caller's context has ended. It does not wait for a Dial that doesn't end with its context.
func (a *attempt) leave(ctx context.Context) *session.End {
	l, why := a.leg, contextError(ctx)
	l.cancel(why)
	if l.within(dialHasLeft) {
		return a.arrive(ctx)
	}
	a.leg, a.turn, l.hushed = nil, nil, true
	l.abandon()
	end := &session.End{Stage: reply.StageDial, Failure: reply.FailCanceled, Err: why}
	if errors.Is(why, context.DeadlineExceeded) {
		end.Failure = reply.FailDeadline
	}
	return end
}

// hedge asks another relay of the tier too: one that is well, wasn't tried, and has a free connection; if it can be one that has an idle connection, which wins then.
func (a *attempt) hedge(ctx context.Context) *leg {
	d, p := a.d, a.pool
	t := d.group.tierOf(a.relay)
	skip := d.skipBuf[:words(len(t.relays))]
	for _, wantIdle := range [...]bool{true, false} {
		found := false
		for w := range skip {
			skip[w] = ^uint64(0)
		}
		for i, r := range t.relays {
			if d.may(r) && !d.again.Has(r.index) && r.breaker.State() == breaker.Closed && !d.shuns(r) && p.conns.Free(r.lane, d.place.Bulk) && d.owed(r) <= 0 && (!wantIdle || p.conns.Stats(r.lane).Idle > 0) {
				skip.remove(i)
				found = true
			}
		}
		if !found {
			continue
		}
		r := t.pick(d.info(skip, a.number+1))
		if r == nil || !d.may(r) { // the attempt's own was tried
			continue
		}
		turn, ok := d.second(r)
		if !ok {
			continue
		}
		permit, ok := r.admit(turn)
		if !ok {
			continue
		}
		given := false
		defer func() {
			if !given { // what was done since may panic
				r.giveBack(turn, &permit)
			}
		}()
		if r.breaker.State() != breaker.Closed { // a probe is for messages
			return nil
		}
		if conn, ok := turn.Conn(); ok {
			given = true
			l := &leg{pool: p, relay: r, turn: *turn, permit: permit, begun: time.Now(), conn: conn, idle: true, cancel: func(error) {}, done: make(chan struct{})}
			l.state.Store(legEnded)
			close(l.done)
			return l
		}
		if !p.hedges.take() {
			return nil
		}
		given = true
		return p.start(ctx, r, turn, permit, d.share(a.cut, min(d.candidates, d.fleet.attempts-d.made+1)-1), d.total)
	}
	return nil
}

// swap makes the attempt one of the relay that was quicker. Its own was never offered anything: that is what the receipt says, and nothing else counts it.
func (a *attempt) swap(ctx context.Context, o *leg) {
	d, slow, was := a.d, a.leg, a.relay
	record, ended := a.record, a.ended
	*a.turn, a.permit, a.leg = o.turn, o.permit, nil
	a.relay = o.relay
	defer slow.abandon()
	if o.idle {
		a.conn = o.conn
	} else {
		a.dialled(o.conn, nil, o.time)
	}
	timings := a.record.Timings
	was.counts.attempts.Add(^uint64(0))
	was.outrun.Add(1)
	d.tried.remove(was.index)
	a.pool.hedges.won.Add(1)

	record.Hedged, record.Offered, record.Stage, record.Duration = true, 0, StageDial, time.Since(record.Start)
	d.receipt.Attempts = append(d.receipt.Attempts, record)
	if ended != nil {
		ended(record)
	}
	a.open(ctx, o.begun, record.Timings.Wait)
	a.record.Reused = o.idle
	if !o.idle {
		a.record.Timings = timings
	}
}

// lost keeps the books of another relay that failed while the attempt's own dials on: an attempt of its own.
func (a *attempt) lost(ctx context.Context, o *leg) {
	d := a.d
	d.made++
	b := &attempt{pool: a.pool, d: d, relay: o.relay, turn: &o.turn, permit: o.permit, number: d.made}
	defer b.release()
	defer func() { b.permit.Done(b.outcome) }()
	o.rethrow()
	b.open(ctx, o.begun, 0)
	b.record.Hedged = true
	_ = b.dialled(nil, o.end, o.time)
	b.failed(o.end)
	b.end(ctx)
}

// untouched reports whether the attempt has nothing to show yet: it is as if it had not begun.
func (a *attempt) untouched() bool {
	for i := range a.d.rcpts {
		if a.d.rcpts[i].attempt == a.number {
			return false
		}
	}
	return a.record.Accepted == 0 && !a.record.Rode
}

// leaveNext leaves the connection that the next attempt would have had: there is none.
func (d *delivery) leaveNext() {
	if l := d.next; l != nil {
		d.next = nil
		l.abandon()
	}
}
