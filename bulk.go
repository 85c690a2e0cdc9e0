package smtplb

import (
	"context"
	"iter"
	"slices"
	"sync"
	"time"
)

// Bulk says how DeliverAll goes about it. The zero value is a good choice.
type Bulk struct {
	// InFlight is how many envelopes are under way at a time, the finished ones that were not handed out yet included. Default: four times as many as the relays may
	// have connections (an unlimited relay counts 10), so that on each a message waits to be next while others come and go; 1,000 at the most. More than 10,000
	// count as 10,000, negative ones as the default.
	InFlight int
	// Ordered hands out the results in the order of the envelopes. One slow message then holds up the others' results, and once InFlight of
	// them are waiting, the sending. Default: as they come.
	Ordered bool
	// Abandoned is given the results of what was in flight when the loop over the results was left early, and the one that Progress panicked at: they are
	// real, and nothing else tells of them (but Hooks.Done). It is called in the goroutine of the loop, before that goes on. nil: they are dropped, which is
	// all right only for callers who end anyway.
	Abandoned func(Result)
	// Progress is called in the goroutine of the loop before each result is handed out, or abandoned. nil: nobody is told.
	Progress func(Progress)

	_ struct{}
}

// Result is what became of one envelope: what Deliver returned.
type Result struct {
	Envelope *Envelope // as it came from the sequence
	Receipt  *Receipt  // nil where Err is an *EnvelopeError: the envelope can't be sent, and nothing was
	Err      error     // nil if, and only if, a relay accepted the message for every recipient
}

// Progress is how far a DeliverAll has come.
type Progress struct {
	Pulled   int // envelopes taken from the sequence
	Finished int // of them, with a result that was handed out or is about to be
	Invalid  int // envelopes that can't be sent (*EnvelopeError)

	Accepted, Failed, Deferred, Unknown, Discarded int // recipients of the finished ones
}

// maxBulk is the most that DeliverAll has in flight by itself, maxInFlight what it can be told to.
const maxBulk, maxInFlight = 1000, 10_000

// DeliverAll delivers a sequence of envelopes, many at a time, and hands out what became of each: exactly one Result for each envelope that it took from seq, with what Deliver
// would have returned.
//
//	for result := range pool.DeliverAll(ctx, envelopes, smtplb.Bulk{}) {
//		if result.Err != nil { … }
//	}
//
// Both seq and the body of the loop run in the caller's goroutine, in turn: seq needs no lock, and should not wait long for its next envelope, as neither are results handed
// out nor is the end of ctx noticed meanwhile. No more is taken from seq than is in flight, and none is asked for once ctx has ended, or too little of its time is left to send anything (see Deliver): whoever breaks off knows
// that what has no Result was not sent. A closed pool goes on, and defers whatever comes.
//
// What waits for a limit waits for as long as it takes until it is its turn, and the sequence with it: the loop goes at the pace that the limits allow. Deferred with ErrThrottled is only what a limit has nothing for within
// Config.MaxThrottleWait, whoever else waits: a day's quota that is used up, a rate of some an hour. So with 1 a minute
// and the default of 30 s the first message goes out and all others are deferred at once: set MaxThrottleWait to more than the interval, or to -1. What no relay is there for (ErrNoRelay) is deferred at once as well. So the results are to be looked at: what
// Receipt.Retry returns goes into another DeliverAll, after RetryAfter, as in examples/bulk. (A Limiter isn't asked who waits: there it is InFlight times MaxThrottleWait.)
//
// A Reader is read to its end, and a go-mail message rendered, before seq is asked for the next envelope; a File is read in another goroutine, later.
//
// Yield a new Envelope each time, and let its message alone until its Result is handed out: bytes that are filled with the next recipient's text while they are being
// sent make one recipient get another's mail. (The Envelope itself, and its To, are copied.)
//
// When the loop is left early, by break, return or a panic, what is in flight is finished (to hurry that, end ctx first) and handed to Bulk.Abandoned. No goroutine is left behind.
//
// Where a Hook or a Dial function of the caller's panics, the panic comes out of the loop, as it would come out of Deliver.
func (p *Pool) DeliverAll(ctx context.Context, seq iter.Seq[*Envelope], opts Bulk) iter.Seq[Result] {
	return func(yield func(Result) bool) {
		if ctx.Err() != nil {
			return
		}
		b := bulk{pool: p, ctx: ctx, opts: opts, limit: p.bulkLimit(opts.InFlight)}
		b.jobs, b.done = make(chan bulkJob, b.limit), make(chan bulkJob, b.limit)
		var loop delivery // for its time
		loop.limit(ctx)
		defer b.abandon()
		for e := range seq {
			b.start(e)
			for b.finished(b.pulled-b.out >= b.limit) {
				if !yield(b.hand()) {
					return
				}
			}
			if ctx.Err() != nil || loop.late(time.Now()) {
				break
			}
		}
		for b.out < b.pulled {
			if b.finished(true) && !yield(b.hand()) {
				return
			}
		}
	}
}

func (p *Pool) bulkLimit(n int) int {
	if n > 0 {
		return min(n, maxInFlight)
	}
	n = 0
	if p == nil || p.conns == nil {
		return 1
	}
	for _, r := range p.fleet.Load().relays {
		if r.limits.Max <= 0 {
			n += 10
		}
		n += r.Limit()
	}
	return min(max(4*n, 4), maxBulk)
}

// bulk is a DeliverAll under way. All its fields are for the caller's goroutine.
type bulk struct {
	pool  *Pool
	ctx   context.Context
	opts  Bulk
	limit int

	jobs, done  chan bulkJob // both hold limit: nobody waits to put something in
	workers     int
	running     sync.WaitGroup // workers
	pulled, out int            // envelopes taken, results handed out
	back        int            // jobs that came back
	ready       []bulkJob
	early       map[int]bulkJob // Ordered: came back before their turn
	progress    Progress
	inHand      *Result // taken from ready, and not handed out yet
}

// bulkJob is an envelope on its way through a worker and back.
type bulkJob struct {
	number   int
	envelope *Envelope // a copy: the caller may use the one that was yielded again
	delivery *delivery // prepared already
	result   Result
	panicked any
	ended    bool // the worker returned from Deliver, rather than panicked or ended its goroutine
}

// start hands e to a worker. A message that comes from the caller's Reader, or is go-mail's to render, is read here, in the caller's goroutine: the sequence may come from the same
// source.
func (b *bulk) start(e *Envelope) {
	job := bulkJob{number: b.pulled, result: Result{Envelope: e}}
	if e != nil {
		c := *e
		c.To = slices.Clone(e.To)
		job.envelope = &c
		if k := c.Body.kind; k == bodyReader || k == bodyMessage {
			job.delivery, job.result.Err = b.prepare(&c)
		}
	}
	inFlight := b.pulled - b.back
	b.pulled++
	if job.result.Err != nil { // the envelope is at fault
		job.ended = true
		b.done <- job
		return
	}
	if b.workers <= inFlight {
		b.workers++
		b.running.Go(b.work)
	}
	b.jobs <- job
}

// work is the goroutine of a worker. It ends when jobs is closed.
func (b *bulk) work() {
	for job := range b.jobs {
		b.deliver(job)
	}
}

func (b *bulk) deliver(job bulkJob) {
	defer func() {
		if !job.ended {
			if job.panicked = recover(); job.panicked == nil { // runtime.Goexit, which nothing stops: another worker in its place
				job.panicked = "smtplb: a callback called runtime.Goexit in a DeliverAll"
				b.running.Go(b.work)
			}
		}
		b.done <- job
	}()
	if job.delivery == nil {
		job.delivery, job.result.Err = b.prepare(job.envelope)
	}
	if job.result.Err == nil {
		job.result.Receipt, job.result.Err = b.pool.complete(b.ctx, job.delivery)
	}
	job.delivery = nil
	job.ended = true
}

// prepare is Pool.prepare, for a message that has others of the same sequence before it.
func (b *bulk) prepare(e *Envelope) (*delivery, error) {
	d, err := b.pool.prepare(b.ctx, e)
	if err == nil {
		d.fellows = b.limit
	}
	return d, err
}

// finished reports whether a result can be handed out, and waits for one if it is told to.
func (b *bulk) finished(wait bool) bool {
	for {
		if b.opts.Ordered {
			if job, ok := b.early[b.out]; ok {
				delete(b.early, b.out)
				b.ready = append(b.ready, job)
			}
		}
		if len(b.ready) > 0 {
			return true
		}
		var job bulkJob
		if wait {
			job = <-b.done
		} else {
			select {
			case job = <-b.done:
			default:
				return false
			}
		}
		b.back++
		if !b.opts.Ordered {
			b.ready = append(b.ready, job)
			continue
		}
		if b.early == nil {
			b.early = make(map[int]bulkJob)
		}
		b.early[job.number] = job
	}
}

// hand takes the next result, and shows the progress.
func (b *bulk) hand() Result {
	job := b.ready[0]
	b.ready = b.ready[:0]
	b.out++
	if !job.ended {
		panic(job.panicked)
	}
	b.inHand = &job.result
	b.note(&job.result)
	b.inHand = nil
	return job.result
}

func (b *bulk) note(r *Result) {
	p := &b.progress
	p.Pulled, p.Finished = b.pulled, b.out
	if r.Receipt == nil && r.Err != nil {
		p.Invalid++
	}
	if r.Receipt != nil {
		for i := range r.Receipt.Recipients {
			switch r.Receipt.Recipients[i].Outcome {
			case Accepted:
				p.Accepted++
			case Failed:
				p.Failed++
			case Deferred:
				p.Deferred++
			case Unknown:
				p.Unknown++
			case Discarded:
				p.Discarded++
			}
		}
	}
	if b.opts.Progress != nil {
		b.opts.Progress(*p)
	}
}

// abandon finishes what is in flight when the loop is over, early or not, and tells of all of it: a callback that panics for one result is called for the others.
func (b *bulk) abandon() {
	close(b.jobs)
	defer b.running.Wait()
	var panicked any
	tell := func(f func()) {
		defer func() {
			if v := recover(); v != nil && panicked == nil {
				panicked = v
			}
		}()
		f()
	}
	abandoned := func(r *Result) {
		if b.opts.Abandoned != nil {
			tell(func() { b.opts.Abandoned(*r) })
		}
	}
	if b.inHand != nil {
		abandoned(b.inHand)
	}
	for b.out < b.pulled && b.finished(true) {
		job := b.ready[0]
		b.ready = b.ready[:0]
		b.out++
		if !job.ended {
			panicked = job.panicked
			continue
		}
		tell(func() { b.note(&job.result) })
		abandoned(&job.result)
	}
	if panicked != nil {
		panic(panicked)
	}
}
