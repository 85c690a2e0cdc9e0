package smtplb

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/smtplb/smtplb/internal/breaker"
	"github.com/smtplb/smtplb/internal/connpool"
	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/session"
	"github.com/smtplb/smtplb/internal/verdict"
)

// attempt hands what is pending of d, which has waited since then, to the relay of d.turn, or to that of d.next, whose connection is being made: connection, transactions, verdicts, books. It ends
// the turn and permit whatever happens, a panic in a hook or in the caller's Dial included.
func (p *Pool) attempt(ctx context.Context, d *delivery, permit breaker.Permit, since time.Time) {
	a := &d.try
	*a = attempt{pool: p, d: d, turn: &d.turn, permit: permit}
	rode := false
	if a.leg = d.next; a.leg != nil {
		a.relay, d.next = a.leg.relay, nil
		d.candidates-- // it was one when the attempt before began
	} else {
		a.relay, rode = d.fleet.ofLane(d.turn.Lane()), d.turn.Rides()
	}
	d.made++
	a.number, a.repeat = d.made, d.again.Has(a.relay.index)
	if a.number == 1 {
		p.budget.first()
	}
	if rode {
		a.relay.counts.rides.Add(1)
	}
	defer a.release()
	defer func() { a.permit.Done(a.outcome) }() // before the slot is free: who waits for it must not be let onto a relay that has just failed

	now := time.Now()
	a.cut = d.cut(now)
	if l := a.leg; l != nil {
		a.open(ctx, l.begun, 0)
	} else {
		a.open(ctx, now, now.Sub(since))
	}
	a.record.Rode = rode
	a.run(ctx)
	a.sound = true
	a.end(ctx)
}

// open begins the record of an attempt.
func (a *attempt) open(ctx context.Context, start time.Time, wait time.Duration) {
	d, r := a.d, a.relay
	a.record = Attempt{Relay: r.name, Start: start, Offered: d.pending, Timings: Timings{Wait: wait}}
	a.ended = nil
	d.tried.add(r.index)
	r.counts.attempts.Add(1)
	if h := a.pool.hooks.AttemptStart; h != nil {
		a.ended = h(ctx, AttemptInfo{EnvelopeID: d.env.ID, Relay: r.name, Number: a.number, Recipients: d.pending, Wait: wait})
	}
}

// end keeps the books of an attempt that has run, and ends its turn.
func (a *attempt) end(ctx context.Context) {
	p, d, r := a.pool, a.d, a.relay
	if !r.outdated() {
		a.outcome = r.outcome(a.blame, a.last)
	}
	if a.blame == verdict.Throttle || a.blame == verdict.CoolDown {
		d.throttled = true
		a.spend() // what was given back now would go to the next that is refused
	}
	d.returnLeases()
	a.count(a.outcome)
	if a.lastErr != nil {
		r.faulted(a.outcome, a.lastErr)
	}
	a.permit.Done(a.outcome)
	a.release()

	now := time.Now()
	a.record.Duration = now.Sub(a.record.Start)
	if a.outcome == breaker.Success {
		r.answers(now)
	}
	if a.record.Accepted > 0 && !r.outdated() {
		a.relaxes(now)
		a.delivered(now)
	}
	if !r.outdated() {
		r.learnLatency(&a.record, &a.last, a.rides(), now.UnixNano())
	}
	r.observe(&a.record.Timings)
	d.receipt.Attempts = append(d.receipt.Attempts, a.record)
	if a.record.Err != nil && p.logger != nil {
		p.log(ctx, slog.LevelInfo, "attempt failed", slog.String("id", d.env.ID), slog.String("relay", r.name),
			slog.String("stage", string(a.record.Stage)), slog.String("error", a.record.Err.Error()))
	}
	if a.ended != nil {
		a.ended(a.record)
	}
}

// faulted keeps what counted against the relay last.
func (r *standing) faulted(o breaker.Outcome, err error) {
	if o == breaker.Fault || o == breaker.Long {
		text := oneLine(strings.TrimPrefix(err.Error(), r.name+": "))
		r.lastFault.Store(&text)
	}
}

// attempt is one try of one relay.
type attempt struct {
	pool    *Pool
	d       *delivery
	relay   *relay
	turn    *connpool.Turn[*session.Conn]
	permit  breaker.Permit
	outcome breaker.Outcome // for permit
	leg     *leg            // a dial that goes on in a goroutine, and has turn and permit for so long
	conn    *session.Conn   // nil before it was opened, and after it was given back
	number  int
	repeat  bool      // the relay was tried for this message before
	cut     time.Time // see delivery.cut
	uses    int       // transactions on conn in this attempt
	sent    int       // transactions in this attempt, but those that were replaced
	blame   verdict.Blame
	last    verdict.Fact // how the last transaction ended
	lastErr error        // what was worst in it
	record  Attempt
	ended   func(Attempt) // from Hooks.AttemptStart; may be nil
	sound   bool          // run has returned: conn is in a known state
}

// run offers the pending recipients, in transactions of as many as the relay takes.
func (a *attempt) run(ctx context.Context) {
	if a.leg != nil {
		if end := a.race(ctx); end != nil {
			a.failed(end)
			return
		}
	} else if conn, ok := a.turn.Conn(); ok {
		a.conn, a.record.Reused = conn, true
	} else if end := a.connect(ctx); end != nil {
		a.failed(end)
		return
	}
	for a.batch() {
		a.transact(ctx)
		v := a.judgeEnd()
		stale := v.Move == verdict.Redial || a.lostRide()
		if stale || a.noChunks() { // the one never of a new connection, the other once: it ends
			if stale {
				a.relay.counts.redials.Add(1)
				a.record.Redialed = true
			}
			a.unoffer()
			a.sent--
			a.drop()
			dial := a.dial
			if stale {
				a.pool.conns.Recheck(a.relay.lane)
				if a.untouched() {
					dial = a.connect
				}
			}
			if end := dial(ctx); end != nil {
				a.failed(end)
				return
			}
			continue
		}
		a.settle(v)
		if !a.accepting() {
			a.rest(v)
			return
		}
		if (!a.conn.Reusable() || a.spent()) && a.more() { // it took these, and takes no more on this connection
			a.drop()
			if end := a.dial(ctx); end != nil {
				a.failed(end)
				return
			}
		}
	}
}

// owes reports whether this attempt has still to offer x. The second try of a relay, for at-least-once, is for those only whose outcome
// it left unknown: it has spoken on the others.
func (a *attempt) owes(x *recipient) bool {
	return x.outcome == 0 && x.attempt != a.number && (x.ambiguous || !a.repeat)
}

// spent reports whether the connection has carried as many messages as it may.
func (a *attempt) spent() bool {
	uses, most := a.conn.Uses(), a.conn.Extensions().MailMax
	return most > 0 && uses >= most || a.relay.limits.MaxUses > 0 && uses >= a.relay.limits.MaxUses
}

// more reports whether recipients are left that this attempt has not offered.
func (a *attempt) more() bool {
	for i := range a.d.rcpts {
		if x := &a.d.rcpts[i]; a.owes(x) {
			return true
		}
	}
	return false
}

// rest settles the recipients that were not offered because an earlier transaction of the message was refused or broke.
func (a *attempt) rest(v verdict.Verdict) {
	if v.Move == verdict.Unknown { // not for these: they were never named to the relay
		v = verdict.Verdict{Move: verdict.NextRelay}
	}
	for i := range a.d.rcpts {
		if x := &a.d.rcpts[i]; a.owes(x) {
			a.d.settle(i, a.relay, &a.last, v, a.error(&a.d.res.End))
		}
	}
}

// accepting reports whether the next transaction on the connection makes sense: only after one that the relay took.
func (a *attempt) accepting() bool {
	return a.last.Stage == reply.StageFinal && a.last.Reply.Positive() || a.last.Stage == reply.StageRcpt && a.last.Reply.Code == 0 && a.last.Failure == 0
}

// dial opens a connection to the attempt's relay.
func (a *attempt) dial(ctx context.Context) *session.End {
	ctx, end := a.pool.untilClosed(ctx)
	defer end()
	a.pool.hedges.dialled()
	a.relay.dials(a.turn)
	return a.dialled(a.relay.dial(ctx, a.cut, a.d.total))
}

// dialled takes what came of a dial.
func (a *attempt) dialled(conn *session.Conn, end *session.End, timings session.Timings) *session.End {
	t := &a.record.Timings
	t.Dial, t.TLS, t.Hello, t.Auth = timings.Dial, timings.TLS, timings.Hello, timings.Auth
	if end != nil {
		if a.pool.ctx.Err() != nil && errors.Is(end.Err, ErrClosed) {
			end.Err = ErrClosed // not the caller's context, which the pool's was joined to
		}
		return end
	}
	a.conn = conn
	a.turn.Adopt(conn)
	if !a.relay.outdated() {
		a.relay.learn(conn.Extensions())
		a.relay.connects.add(timings.Dial + timings.TLS + timings.Hello + timings.Auth)
	}
	return nil
}

// dial opens a connection, once more with a new token where the relay refused the one that Relay.Auth gave.
func (r *relay) dial(ctx context.Context, cut time.Time, total time.Duration) (*session.Conn, *session.End, session.Timings) {
	conn, end, timings := session.Dial(ctx, r.session, cut, total, nil)
	if end != nil && end.Stage == reply.StageAuth && end.Reply.Permanent() && r.session.Auth != nil {
		return session.Dial(ctx, r.session, cut, total, r.error(end))
	}
	return conn, end, timings
}

// learn keeps what a relay offers, so that messages it can't take are not tried there.
func (r *standing) learn(x *session.Extensions) {
	r.offers.Store(&offer{*x, time.Now()})
}

// batch takes the next pending recipients that this attempt has not offered yet.
func (a *attempt) batch() bool {
	d, limit := a.d, a.relay.rcptMost
	if x := a.conn.Extensions(); x.RcptMax > 0 {
		limit = min(limit, x.RcptMax)
	}
	d.to, d.who = d.to[:0], d.who[:0]
	for i := range d.rcpts {
		x := &d.rcpts[i]
		if !a.owes(x) {
			continue
		}
		if len(d.to) == limit && !d.env.RequireAll {
			break
		}
		x.attempt = a.number
		d.to, d.who = append(d.to, x.addr), append(d.who, i)
	}
	return len(d.to) > 0
}

// unoffer takes a batch back that never reached the relay.
func (a *attempt) unoffer() {
	for _, i := range a.d.who {
		a.d.rcpts[i].attempt = 0
	}
}

func (a *attempt) transact(ctx context.Context) {
	d := a.d
	d.fillTransaction()
	d.tx.Chunks = a.relay.chunking && !a.relay.refusesChunks.Load()
	d.tx.Cut, d.tx.CommitBy, d.tx.Total, d.tx.Next = a.cut, d.commitBy, d.total, a
	a.uses++
	if a.sent++; d.fare != nil && a.sent > a.relay.transactions(d.fare) && a.turn != nil { // the relay takes fewer recipients at a time than was reckoned with
		a.relay.meter.more(time.Now())
	}
	a.conn.Transact(ctx, d.tx, &d.res)
	if d.res.Committed {
		a.spend()
	}
	t, s := &a.record.Timings, &d.res.Timings
	t.Envelope, t.Body, t.Final = s.Envelope, s.Body, s.Final
	if !a.relay.outdated() {
		a.relay.learnRiding(&d.res, a.rides())
	}
}

// fillTransaction makes d.tx the message for the recipients in d.to.
func (d *delivery) fillTransaction() {
	m := &d.msg
	*d.tx = session.Transaction{
		From: m.from, To: d.to, Body: m.body, Size: m.size, Dots: m.dots, EightBit: m.eightBit, UTF8: m.utf8, DSN: m.dsn,
		RequireTLS: d.env.RequireTLS, All: d.env.RequireAll,
	}
	switch {
	case m.head != nil:
		d.tx.File = m.at(m.head)
	case m.file != nil:
		d.tx.File = m.file
	}
}

// noChunks reports whether the relay does not know the BDAT that it offers. It is then not used there again, and the message goes out with DATA: what was
// refused in this way was certainly not accepted.
func (a *attempt) noChunks() bool {
	end := &a.d.res.End
	if !a.d.res.Chunked || end.Reply.Code != 500 && end.Reply.Code != 502 && end.Reply.Code != 503 {
		return false
	}
	a.relay.refusesChunks.Store(true)
	return true
}

// judgeEnd asks what the end of the transaction means for the recipients that the relay had not refused by then.
func (a *attempt) judgeEnd() verdict.Verdict {
	res := &a.d.res
	a.last = verdict.Fact{
		Stage: res.End.Stage, Reply: res.End.Reply, Failure: res.End.Failure, Committed: res.Committed, Reused: res.Reused, First: res.First,
		LongWait: res.End.LongWait, Shortened: res.End.Shortened,
	}
	if refusedAll(&res.End) {
		return verdict.Verdict{}
	}
	return verdict.Judge(a.last)
}

// refusedAll tells the end of a transaction in which the replies to RCPT are all there is: nobody was taken, or not everybody of RequireAll.
func refusedAll(end *session.End) bool {
	return end.Stage == reply.StageRcpt && end.Reply.Code == 0 && end.Failure == reply.FailNone
}

// settle applies a transaction's result to its recipients: each refused one by its own reply, the others by how it ended.
func (a *attempt) settle(end verdict.Verdict) {
	d, res := a.d, &a.d.res
	a.need(end)
	var endErr error
	spread := false
	if end.Move != verdict.Accepted && end.Move != verdict.Invalid {
		endErr = a.error(&res.End)
		a.record.Err = endErr
		spread = ofReputation(a.hear(res.End.Stage, &res.End.Reply, d.who))
	}
	a.hold(end.Blame, endErr)
	a.record.Stage = stageName(res.End.Stage)
	// Out of step before the message was begun: which command a reply was for is not certain, so none stands.
	lost := res.End.Failure == reply.FailOutOfStep && res.End.Stage < reply.StageBody
	if d.env.RequireAll && end.Move != verdict.Accepted && !lost && a.anyRefused() {
		a.settleAll()
		return
	}
	refused := refusedAll(&res.End)
	for n, i := range d.who {
		said := res.Rcpts[n]
		if lost || !said.Temporary() && !said.Permanent() || said.Code == 421 && res.End.Reply.Code == 421 {
			if refused { // all were refused, so this can't be; were it so, nothing was sent to the relay for it
				continue
			}
			if end.Move == verdict.Accepted {
				a.record.Accepted++
			}
			d.settle(i, a.relay, &a.last, d.contained(i, end, spread), endErr)
			continue
		}
		fact := verdict.Fact{Stage: reply.StageRcpt, Reply: said, Reused: res.Reused}
		v := verdict.Judge(fact)
		a.need(v)
		g := a.hear(reply.StageRcpt, &said, d.who[n:n+1])
		v = greylisted(v, g, &said)
		err := a.error(&session.End{Stage: reply.StageRcpt, Reply: said})
		a.hold(v.Blame, err)
		if v.Move == verdict.Again {
			if end.Move == verdict.Accepted { // the relay took the others: the rest in another transaction
				d.rcpts[i].attempt = 0
				continue
			}
			v.Move = verdict.NextRelay
		}
		d.settle(i, a.relay, &fact, d.contained(i, v, ofReputation(g)), err)
		if refused && a.record.Err == nil {
			a.record.Err = err
		}
	}
	if a.record.Accepted > 0 {
		a.record.Err = nil
	}
}

// anyRefused reports whether the relay refused a recipient by name.
func (a *attempt) anyRefused() bool {
	res := &a.d.res
	return slices.ContainsFunc(res.Rcpts, func(said reply.Reply) bool { return refusedByName(&said, &res.End) })
}

// refusedByName reports whether what a relay said to a RCPT was about that recipient: a 421 that ends the connection isn't.
func refusedByName(said *reply.Reply, end *session.End) bool {
	return said.Permanent() || said.Temporary() && !(said.Code == 421 && end.Reply.Code == 421)
}

// hold notes what is to be held against the relay: an attempt counts once, by the worst that happened in it.
func (a *attempt) hold(b verdict.Blame, err error) {
	if gravity[b] > gravity[a.blame] {
		a.blame, a.lastErr = b, err
	}
}

// settleAll is settle for RequireAll when a recipient was refused: all take the class of the gravest refusal. Whom the relay refused in the same way keeps its own words; the others have those, and know whose they are.
func (a *attempt) settleAll() {
	d, res := a.d, &a.d.res
	worst, found := 0, false
	var v verdict.Verdict
	own := make([]verdict.Verdict, len(d.who)) // of those that were refused by name
	for n := range d.who {
		if said := res.Rcpts[n]; said.Temporary() || said.Permanent() {
			w := verdict.Judge(verdict.Fact{Stage: reply.StageRcpt, Reply: said, Reused: res.Reused})
			a.hold(w.Blame, a.error(&session.End{Stage: reply.StageRcpt, Reply: said}))
			a.need(w)
			w = greylisted(w, a.hear(reply.StageRcpt, &said, d.who[n:n+1]), &said)
			if w.Move == verdict.Again { // one transaction is all there may be
				w.Move = verdict.NextRelay
			}
			if !found || w.Move == verdict.Failed && v.Move != verdict.Failed {
				worst, v, found = n, w, true
			}
			if refusedByName(&said, &res.End) {
				own[n] = w
			}
		}
	}
	fact := verdict.Fact{Stage: reply.StageRcpt, Reply: res.Rcpts[worst], Reused: res.Reused}
	err := a.error(&session.End{Stage: reply.StageRcpt, Reply: fact.Reply})
	a.record.Err = err
	whose := d.written(d.who[worst])
	for n, i := range d.who {
		d.settle(i, a.relay, &fact, v, err)
		x, said := &d.rcpts[i], res.Rcpts[n]
		switch {
		case n == worst:
		case own[n] == v:
			x.reply, x.err = said, a.error(&session.End{Stage: reply.StageRcpt, Reply: said})
		default:
			x.because = whose
		}
	}
}

// need notes what the other relays must be able to do.
func (a *attempt) need(v verdict.Verdict) {
	if v.Need == verdict.NeedLarger {
		a.d.larger = true
		if x := a.relay.offers.Load(); x != nil {
			a.d.tooLargeFor = max(a.d.tooLargeFor, x.Size)
		}
	}
	if v.Discard && a.conn != nil {
		a.conn.Discard()
	}
	if v.Apart && !a.relay.outdated() {
		a.relay.apart.add(a.d.msg.fromDomain, time.Now())
	}
}

// failed settles everybody by the end of a dial.
func (a *attempt) failed(end *session.End) {
	a.last = dialFact(end)
	v := verdict.Judge(a.last)
	a.heed(end.Stage, &end.Reply, nil)
	a.unconnected(end)
	err := a.error(end)
	a.hold(v.Blame, err)
	a.record.Stage = stageName(end.Stage)
	if a.record.Accepted == 0 {
		a.record.Err = err
	}
	for i := range a.d.rcpts {
		if x := &a.d.rcpts[i]; a.owes(x) {
			x.attempt = a.number
			a.d.settle(i, a.relay, &a.last, v, err)
		}
	}
}

// dialFact is the end of a dial as verdict wants it.
func dialFact(end *session.End) verdict.Fact {
	return verdict.Fact{Stage: end.Stage, Reply: end.Reply, Failure: end.Failure, LongWait: end.LongWait, Shortened: end.Shortened}
}

func (a *attempt) error(end *session.End) error { return a.relay.error(end) }

func (r *standing) error(end *session.End) error {
	return &RelayError{Relay: r.name, Stage: stageName(end.Stage), Reply: publicReply(end.Reply), Failure: end.Failure.String(), Err: end.Err}
}

// drop gives up the connection, and keeps the turn for another one.
func (a *attempt) drop() {
	why := connpool.ReasonBroken
	if a.conn.Reusable() && a.spent() {
		why = connpool.ReasonUses
	}
	_ = a.conn.Close()
	a.turn.DiscardFor(why)
	a.conn, a.uses = nil, 0
}

// release ends the turn. After a panic the connection may be in any state, and is closed.
func (a *attempt) release() {
	if l := a.leg; l != nil { // it has the turn, and dials still
		a.leg, a.turn = nil, nil
		l.abandon()
	}
	conn, t := a.conn, a.turn
	if t == nil {
		return
	}
	a.turn, a.conn = nil, nil
	switch {
	case conn == nil:
		t.Put(0)
	case conn.Reusable() && a.sound:
		most := conn.Extensions().MailMax // RFC 9422
		switch {                          // what t points at is used for the next attempt
		case a.relay.outdated(): // opened by what was configured before, maybe after the lane was flushed
			a.pool.retireTurn(*t, conn, connpool.ReasonDrained)
		case most > 0 && conn.Uses() >= most:
			a.pool.retireTurn(*t, conn, connpool.ReasonUses)
		default:
			t.Put(a.uses)
		}
	default:
		defer t.Drop()
		_ = conn.Close()
	}
}

// count keeps the relay's books, and arranges for a second try of the same relay where the caller asked for at-least-once.
func (a *attempt) count(o breaker.Outcome) {
	d, c := a.d, &a.relay.counts
	var failed, unknown, left uint64
	for i := range d.rcpts {
		x := &d.rcpts[i]
		if x.attempt != a.number {
			continue
		}
		switch {
		case x.outcome == Failed:
			failed++
		case x.ambiguous && x.outcome != Accepted:
			unknown++
		case x.outcome != Accepted:
			left++
		}
		if x.outcome == 0 && x.ambiguous && !d.again.Has(a.relay.index) {
			d.again.add(a.relay.index)
			d.tried.remove(a.relay.index)
			d.prefer = a.relay.name
		}
	}
	c.accepted.Add(uint64(a.record.Accepted))
	c.failed.Add(failed)
	c.unknown.Add(unknown)
	if left > 0 {
		c.away.Add(1)
	}
	c.attempted(a)
	if o == breaker.Fault || o == breaker.Long {
		c.faults.Add(1)
	}
}
