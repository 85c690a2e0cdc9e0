package smtplb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/session"
	"github.com/smtplb/smtplb/internal/verdict"
)

// delivery is one Deliver under way. It belongs to one goroutine at a time, and is used again afterwards.
type delivery struct {
	pool    *Pool
	fleet   *fleet // from whose relays it chooses; see move
	route   *route // of its recipients, in fleet
	group   *group // the route's
	torn    bool   // its recipients have no route in common any more
	lot     lot    // of its recipients
	mixed   bool   // not of all of them, as RequireAll keeps them together
	moved   bool   // it was another fleet when an attempt was made
	hasty   bool   // it has waited for DNS, see resolve
	env     *Envelope
	msg     message
	whole   bool // Envelope.Body was read to its end
	begun   bool // reading it from a Reader had begun
	owned   bool // msg.file is nobody else's
	spool   spool
	receipt *Receipt

	admitted bool  // the gate counts it
	cause    error // why no more is tried; nil where the relays' words decide

	rcpts     []recipient
	entry     []int          // for each entry of Envelope.To its number in rcpts
	index     map[string]int // of many recipients, by key
	pending   int            // recipients whose outcome is not settled
	discarded int            // those that a route has discarded
	made      int            // attempts, without those that were over before anything was offered (Attempt.Hedged)

	total    time.Duration // the length of the caller's context; 0: no deadline
	deadline time.Time
	commitBy time.Time // nothing is begun after it that can't be undone; zero: no deadline

	// Which relays may still be tried, by their number in fleet.
	tried, denied, again Bitset
	outside              Bitset // relays of group to which not all of the recipients' routes lead
	lanes                Bitset // the lanes of those that may take it now, by their member
	skip, skipBuf        Bitset // of the tier that lanes is about
	candidates           int    // relays that could be tried now, in any tier; see count
	asked                bool   // this turn: a picker was, see quick
	prefer               string
	sticks               bool          // some of the recipients have a greylister
	unpaid               bool          // this turn is one that the budget knows nothing of
	frugal               bool          // the budget is used up: this turn is for relays that are well
	spilled              int           // tiers that this turn may use beyond the first
	waitUntil            time.Time     // fleet.maxWait ends for this turn; zero before it waits
	larger               bool          // a relay said that the message is too large for it,
	tooLargeFor          int64         // and this is the SIZE that it advertised
	throttled            bool          // a relay wanted less mail, or a limit was reached
	throttleUntil        time.Time     // until then this turn waits for limits; zero before it waits
	fellows              int           // messages of the same DeliverAll that limits may be waited for with; 0: it is of none
	fare                 *fare         // of the next attempt; nil: it costs nothing
	leases               []Lease       // of the Limiter, for it
	retryAfter           time.Duration // when it is worth asking for a relay again

	tx    *session.Transaction
	res   session.Result
	to    []string // the recipients of tx
	who   []int    // for each of to its number in rcpts
	rider connpool.Rider
	place connpool.Request // in the queue; Seen, Lag and Bulk count before there is any
	turn  connpool.Turn[*session.Conn]
	try   attempt
	next  *leg   // where the next attempt is under way already
	bits  Bitset // what the sets above are parts of
}

// recipient is one distinct recipient. While its outcome is the zero one it is pending; relay, stage, reply and err are then of the last relay that was tried for it.
type recipient struct {
	addr     string
	key      string // what makes it distinct
	operator string // the provider that its domain's MX records tell of, see identify
	route    *route // see routeOf
	routed   *fleet // of which that is one
	outcome  Outcome
	relay    string
	stage    Stage
	reply    reply.Reply
	err      error
	because  string // the recipient of whom that was said, as it stands in the envelope, where RequireAll has it count for this one; "" for itself

	attempt    int // the last attempt that offered it
	hops       int // relays that answered its RCPT with a 4xx
	spread     int // relays that a mailbox provider has told to send less to it
	refusals   int // relays whose policy refuses it, or the message, for good
	ambiguous  bool
	greylisted bool
	greylister string        // the relay that did so in an earlier send
	wait       time.Duration // of a deferred one: until it is worth another try
	hint       time.Duration // that the relay gave; 0: none
}

var deliveries = sync.Pool{New: func() any { return new(delivery) }}

func newDelivery(p *Pool, e *Envelope) *delivery {
	d := deliveries.Get().(*delivery)
	d.pool, d.env, d.prefer = p, e, e.Prefer
	if d.tx == nil {
		d.tx = new(session.Transaction)
	}
	d.receipt = &Receipt{ID: e.ID}
	d.receipt.Attempts = d.receipt.attempt1[:0]
	d.man(p.fleet.Load())
	return d
}

// man makes the bitsets for a fleet.
func (d *delivery) man(f *fleet) {
	d.fleet, d.route, d.group = f, f.standard, f.standard.group
	n, lanes := words(len(f.relays)), words(len(f.byLane))
	if all := 5*n + lanes; all > cap(d.bits) {
		d.bits = make(Bitset, all)
	} else {
		d.bits = d.bits[:all]
		clear(d.bits)
	}
	d.tried, d.denied, d.again, d.skipBuf, d.outside, d.lanes = d.bits[:n], d.bits[n:2*n], d.bits[2*n:3*n], d.bits[3*n:4*n], d.bits[4*n:5*n], d.bits[5*n:]
}

// move lets d choose from the pool's present fleet, if that was changed since. What it tried, it doesn't try again, but for relays that are reached in another way now: it may have tried the old
// password of a relay, or the old address.
func (d *delivery) move() {
	f := d.pool.fleet.Load()
	if f == d.fleet {
		return
	}
	type ways struct {
		*standing
		*session.Config
	}
	var tried []ways
	var again []*standing
	for _, r := range d.fleet.relays {
		if d.tried.Has(r.index) {
			tried = append(tried, ways{r.standing, r.session})
		}
		if d.again.Has(r.index) {
			again = append(again, r.standing)
		}
	}
	d.man(f)
	d.moved = d.moved || d.made > 0 // or it was in the whole of which d is a part
	for _, r := range f.relays {
		if slices.Contains(tried, ways{r.standing, r.session}) {
			d.tried.add(r.index)
		}
		if slices.Contains(again, r.standing) {
			d.again.add(r.index)
		}
	}
	d.torn = !d.follow()
}

// free forgets everything that belongs to the caller, and gives d back.
func (d *delivery) free() {
	if d.admitted {
		defer d.pool.gate.leave()
	}
	if d.owned {
		d.msg.file.close()
	}
	clear(d.rcpts)
	clear(d.to[:cap(d.to)]) // an earlier transaction may have had more
	clear(d.res.Rcpts[:cap(d.res.Rcpts)])
	tx := d.tx
	*tx = session.Transaction{}
	*d = delivery{rcpts: d.rcpts[:0], entry: d.entry[:0], to: d.to[:0], who: d.who[:0], tx: tx, bits: d.bits[:0], res: session.Result{Rcpts: d.res.Rcpts[:0]}}
	if cap(d.rcpts) <= 1024 { // a huge envelope's memory is not kept
		deliveries.Put(d)
	}
}

// addRecipient adds an entry of the envelope. The same recipient twice is one recipient.
func (d *delivery) addRecipient(addr, key string) {
	n := len(d.rcpts)
	var same int
	var ok bool
	if n < 16 { // few are found faster by looking
		same = slices.IndexFunc(d.rcpts, func(x recipient) bool { return x.key == key })
		ok = same >= 0
	} else {
		if len(d.index) == 0 {
			d.index = make(map[string]int)
			for i := range d.rcpts {
				d.index[d.rcpts[i].key] = i
			}
		}
		same, ok = d.index[key]
	}
	if ok {
		d.entry = append(d.entry, same)
		return
	}
	if d.index != nil {
		d.index[key] = n
	}
	d.rcpts = append(d.rcpts, recipient{addr: addr, key: key})
	d.entry = append(d.entry, n)
	d.pending++
}

// limit reads the caller's deadline.
func (d *delivery) limit(ctx context.Context) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return
	}
	d.deadline, d.total = deadline, time.Until(deadline)
	d.commitBy = deadline.Add(-min(5*time.Second, d.total/5))
}

// late reports whether too little of the caller's time is left to begin anything.
func (d *delivery) late(now time.Time) bool { return !d.commitBy.IsZero() && !now.Before(d.commitBy) }

// cut is when the stages before the commit point of the attempt that begins must be over for the other relays to have their share of the caller's time.
func (d *delivery) cut(now time.Time) time.Time {
	return d.share(now, min(d.candidates, d.fleet.attempts-d.made+1))
}

// share is when the first of so many relays must be done that begin now.
func (d *delivery) share(now time.Time, left int) time.Time {
	if d.deadline.IsZero() || left <= 1 {
		return time.Time{}
	}
	return now.Add(d.deadline.Sub(now) / time.Duration(left))
}

// written is a recipient's address as it stands in the envelope. d is no part of a message: RequireAll has none.
func (d *delivery) written(i int) string { return d.env.To[slices.Index(d.entry, i)] }

func (d *delivery) firstDomain() string {
	addr := d.rcpts[0].addr
	return addr[strings.LastIndexByte(addr, '@')+1:]
}

// settle applies what a relay said, or failed to say, to one recipient.
func (d *delivery) settle(i int, r *relay, f *verdict.Fact, v verdict.Verdict, err error) {
	x := &d.rcpts[i]
	x.relay, x.stage, x.reply, x.err, x.because = r.name, stageName(f.Stage), f.Reply, err, ""
	switch v.Move {
	case verdict.Accepted:
		d.decide(x, Accepted)
		x.err = nil
		return
	case verdict.Failed:
		d.decide(x, Failed)
	case verdict.Deferred:
		d.decide(x, Deferred)
		x.greylisted = v.Greylist && x.outcome == Deferred
	case verdict.Unknown:
		x.ambiguous = true
		if !d.env.AtLeastOnce {
			d.decide(x, Unknown)
		}
	default: // another relay may try
		if v.Refused || v.Need == verdict.NeedCapability {
			x.refusals++
		}
		if f.Stage == reply.StageRcpt && f.Reply.Temporary() && !v.Discard {
			if x.hops++; x.hops > 1 { // a recipient's own 4xx gets one hop: the recipient, not the relay, is the reason
				d.decide(x, Deferred)
			}
		}
	}
}

// decide settles a recipient. Once unknown, only an acceptance changes it.
func (d *delivery) decide(x *recipient, o Outcome) {
	if x.ambiguous && o != Accepted {
		o = Unknown
	}
	x.outcome = o
	d.pending--
}

// conclude settles what is pending. cause is why no more was tried; nil where all relays that may take the message had their say.
func (d *delivery) conclude(cause error) {
	against := -1
	if cause == nil {
		d.retryAfter = d.soonest()
	}
	for i := range d.rcpts {
		x := &d.rcpts[i]
		if x.outcome == 0 {
			if against < 0 {
				against = d.against()
			}
			switch {
			case cause == nil && !d.moved && x.refusals+against >= len(d.group.relays) && !d.group.unnamed(): // of relays that came and went nobody knows
				d.decide(x, Failed)
			default:
				d.decide(x, Deferred)
			}
		}
		if x.err == nil && x.outcome != Accepted {
			x.err = cause
			if cause == nil {
				x.err = d.incapable()
			}
		}
		if x.outcome == Deferred && x.wait == 0 {
			x.wait = d.waitFor(x)
		}
	}
}

// finish makes the receipt of a delivery that is over, because of cause, or because the relays' words decided.
func (d *delivery) finish(cause error) (*Receipt, error) {
	r := d.receipt
	var wait time.Duration
	all := true
	r.Recipients = r.rcpt1[:0]
	if len(d.entry) > 1 {
		r.Recipients = make([]RecipientResult, 0, len(d.entry))
	}
	for i, n := range d.entry {
		x := &d.rcpts[n]
		result := RecipientResult{
			Addr: d.env.To[i], Outcome: x.outcome, Relay: x.relay, Stage: x.stage, Reply: publicReply(x.reply),
			Because: x.because, Greylisted: x.greylisted, err: x.err,
		}
		switch x.outcome {
		case Accepted:
			result.QueueID = reply.QueueID(x.reply.Text)
		case Deferred:
			all = false
			result.RetryAfter = x.wait
			wait = max(wait, result.RetryAfter)
		default:
			all = false
		}
		r.Recipients = append(r.Recipients, result)
	}
	if all {
		return r, nil
	}
	if d.env.Body.kind == bodyReader && d.begun && !d.whole && errors.As(cause, new(*SourceError)) {
		r.body = Body{kind: bodySpent}
	}
	k, c := d.env.Body.kind, d.env.Body.kept
	if d.whole && wait > 0 && (k == bodyReader || k == bodyMessage || k == bodyKept && d.msg.signed && !c.signed) {
		kept := d.msg.content
		r.body, d.owned = Body{kind: bodyKept, kept: &kept}, false // a file lives as long as the receipt, or what Retry makes of it
	}
	return r, &SendError{RetryAfter: wait, Receipt: r, cause: cause, throttled: d.throttled}
}

// against counts the relays that weren't tried because they can't take such a message, or not for all of its recipients.
func (d *delivery) against() int {
	n := 0
	for _, r := range d.group.relays {
		if !d.tried.Has(r.index) && (d.outside.Has(r.index) || r.lacks(d) != nil) {
			n++
		}
	}
	return n
}

// soonest is when the first relay can be used again, 0 where one can now.
func (d *delivery) soonest() time.Duration {
	var first time.Duration
	now := time.Now()
	for _, r := range d.group.relays {
		if d.outside.Has(r.index) {
			continue
		}
		at := r.retryAt()
		if until := r.strain.account.suspended(now); until.After(at) {
			at = until
		}
		if at.IsZero() {
			return 0
		}
		if wait := max(time.Until(at), time.Second); first == 0 || wait < first {
			first = wait
		}
	}
	return first
}

// incapable tells what no relay can do.
func (d *delivery) incapable() error {
	var why []string
	for _, r := range d.group.relays {
		if err := r.lacks(d); err != nil && !d.outside.Has(r.index) && len(why) < 3 {
			why = append(why, r.name+": "+err.Error())
		}
	}
	return fmt.Errorf("no relay is capable of what the message needs: %s", strings.Join(why, ", "))
}

// waitFor is how long a deferred recipient should wait.
func (d *delivery) waitFor(x *recipient) time.Duration {
	switch {
	case x.greylisted:
		return max(retryGreylisted, x.hint)
	case x.hint > 0:
		return max(x.hint, d.retryAfter)
	case x.reply.Temporary() && x.reply.Code != 421: // a 421 is about the connection
		return max(retryTemporary, d.retryAfter)
	case d.retryAfter > 0:
		return d.retryAfter
	}
	return retrySoon
}
