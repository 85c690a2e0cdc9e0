package session

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/smtplb/smtplb/internal/reply"
)

// Transaction is one message for some recipients. All its addresses were checked: they hold nothing that could end a command.
type Transaction struct {
	From string   // without angle brackets; "" is the null sender
	To   []string // at least one
	Body []byte   // canonical: CRLF line ends, dot-stuffed, ends with CRLF; not changed
	Size int64    // for SIZE: the message's length before dot-stuffing

	EightBit bool // the message has bytes above 127
	UTF8     bool // an address or a header needs SMTPUTF8
	All      bool // nothing is sent unless every recipient was taken

	Cut      time.Time     // the stages before the commit point must end by then; zero: no limit but their timeouts
	CommitBy time.Time     // do not begin to commit later than this; zero: no limit
	Total    time.Duration // the length of the caller's context, 0 without a deadline
}

// Result is what happened in a transaction.
type Result struct {
	Rcpts     []reply.Reply // for each recipient; the zero Reply where none was read
	End       End           // what ended the transaction; StageRcpt with neither reply nor failure: no recipient was taken (or, with All, one was refused)
	Committed bool          // the terminator's dot may have reached the relay
	Reused    bool          // the connection had been used, or idle, before
	First     bool          // no byte of an answer had been received before End
	Timings   Timings
}

// What may be unanswered at a time: a peer that writes without reading while we do the same is a deadlock.
const maxGroupBytes, maxGroupCommands = 8 << 10, 64

// writeSize is the size of the writes of a body. A body that fits goes out in one write, terminator included.
const writeSize = 64 << 10

var writeBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// Transact sends one message. It ends within its context before the commit point, and within the grace after it.
// res is overwritten; its Rcpts are reused where they are large enough.
func (c *Conn) Transact(ctx context.Context, tx *Transaction, res *Result) {
	*res = Result{Rcpts: resize(res.Rcpts, len(tx.To)), Reused: c.uses > 0}
	need := Need{UTF8: tx.UTF8, EightBit: tx.EightBit, Size: tx.Size}
	if tx.All {
		need.Together = len(tx.To)
	}
	if missing := c.ext.Lacks(need); missing != nil { // the connection is untouched
		res.End = End{Stage: reply.StageMail, Failure: reply.FailCapability, Err: missing}
		return
	}
	c.uses++
	c.heard = false
	c.spend(tx.Cut, tx.Total)
	stop := c.watch(ctx)
	rbuf := borrowReadBuffer()
	c.rd.Reset(c, rbuf[:])
	wbuf := writeBuffers.Get().(*[]byte)

	t := transaction{c: c, tx: tx, res: res, buf: (*wbuf)[:0]}
	if end := t.run(); end != nil {
		res.End = *end
	}
	if c.rd.Buffered() > 0 { // the result stays, the connection is out of step
		c.broken = true
	}
	c.rd.Reset(nil, nil)
	returnReadBuffer(rbuf)
	*wbuf = t.buf[:0]
	writeBuffers.Put(wbuf)
	if !stop() {
		c.broken = true
	}
	res.First = !c.heard
	if res.End.Reply.Code != 0 { // the reply to MAIL is always the first
		res.First = res.End.Stage == reply.StageMail
	}
	c.mu.Lock()
	res.Committed, c.committed = c.committed, false
	c.mu.Unlock()
}

func resize(s []reply.Reply, n int) []reply.Reply {
	if cap(s) < n {
		return make([]reply.Reply, n)
	}
	s = s[:n]
	clear(s)
	return s
}

// transaction is a Transact under way.
type transaction struct {
	c     *Conn
	tx    *Transaction
	res   *Result
	buf   []byte
	taken int       // recipients that got a 2xx
	begun bool      // writing the body has begun
	clock time.Time // when the part that is measured began
}

func (t *transaction) run() *End {
	t.clock = time.Now()
	var end *End
	if t.c.ext.Pipelining {
		end = t.pipelined()
	} else {
		end = t.stepwise()
	}
	if end == nil {
		end = t.body()
	}
	if d := time.Since(t.clock); t.res.Timings.Envelope == 0 {
		t.res.Timings.Envelope = d
	} else if t.res.Timings.Body == 0 {
		t.res.Timings.Body = d
	} else {
		t.res.Timings.Final = d
	}
	return end
}

// lap notes, in one of the Timings, how long the part took that is over now. The clock was read when the next part's stage began.
func (t *transaction) lap(part *time.Duration) {
	*part = max(t.c.start.Sub(t.clock), 1)
	t.clock = t.c.start
}

// Mode b: [RSET] MAIL RCPT… DATA in one write, as far as the bounds go, then all the replies (RFC 2920).
func (t *transaction) pipelined() *End {
	c := t.c
	last := len(t.tx.To) + 1 // the number of DATA; MAIL is 0, recipients count from 1
	if t.tx.All {
		last-- // DATA must wait for the replies
	}
	for next := 0; next <= last; {
		first := next
		if c.rd.Buffered() > 0 {
			return c.unasked(t.stageOf(first))
		}
		reset, most := c.needReset && first == 0, maxGroupCommands
		t.buf = t.buf[:0]
		if reset {
			t.buf = append(t.buf, "RSET\r\n"...)
			most--
		}
		for ; next <= last && next-first < most; next++ {
			mark := len(t.buf)
			t.appendCommand(next)
			if len(t.buf) > maxGroupBytes && next > first {
				t.buf = t.buf[:mark]
				break
			}
		}
		stage := t.stageOf(first)
		c.begin(stage, t.timeoutOf(stage))
		if end := t.send(stage); end != nil {
			return end
		}
		if reset {
			if end := t.readReset(); end != nil {
				return end
			}
		}
		for i := first; i < next; i++ {
			end, done := t.readReply(i, next)
			if done {
				return end
			}
		}
	}
	if t.tx.All {
		if t.taken < len(t.tx.To) {
			c.needReset = true
			return &End{Stage: reply.StageRcpt}
		}
		return t.data()
	}
	return nil
}

// stepwise is mode a: one command, one reply. It is always legal.
func (t *transaction) stepwise() *End {
	c := t.c
	if c.needReset {
		t.buf = append(t.buf[:0], "RSET\r\n"...)
		c.begin(reply.StageMail, c.cfg.Timeouts.Reset)
		if end := t.send(reply.StageMail); end != nil {
			return end
		}
		if end := t.readReset(); end != nil {
			return end
		}
	}
	for i := 0; i <= len(t.tx.To); i++ {
		if c.rd.Buffered() > 0 {
			return c.unasked(t.stageOf(i))
		}
		t.buf = t.buf[:0]
		t.appendCommand(i)
		stage := t.stageOf(i)
		c.begin(stage, t.timeoutOf(stage))
		if end := t.send(stage); end != nil {
			return end
		}
		if end, done := t.readReply(i, i+1); done {
			return end
		}
	}
	if t.taken == 0 || t.tx.All && t.taken < len(t.tx.To) {
		c.needReset = true
		return &End{Stage: reply.StageRcpt}
	}
	return t.data()
}

// data sends DATA alone and reads its reply.
func (t *transaction) data() *End {
	if t.c.rd.Buffered() > 0 {
		return t.c.unasked(reply.StageData)
	}
	t.buf = append(t.buf[:0], "DATA\r\n"...)
	t.c.begin(reply.StageData, t.c.cfg.Timeouts.Data)
	if end := t.send(reply.StageData); end != nil {
		return end
	}
	end, _ := t.readReply(len(t.tx.To)+1, len(t.tx.To)+2)
	return end
}

func (t *transaction) stageOf(command int) reply.Stage {
	switch {
	case command == 0:
		return reply.StageMail
	case command <= len(t.tx.To):
		return reply.StageRcpt
	}
	return reply.StageData
}

func (t *transaction) timeoutOf(stage reply.Stage) time.Duration {
	switch stage {
	case reply.StageMail:
		return t.c.cfg.Timeouts.Mail
	case reply.StageRcpt:
		return t.c.cfg.Timeouts.Rcpt
	}
	return t.c.cfg.Timeouts.Data
}

func (t *transaction) appendCommand(i int) {
	b, x := t.buf, &t.c.ext
	switch t.stageOf(i) {
	case reply.StageMail:
		b = append(b, "MAIL FROM:<"...)
		b = append(b, t.tx.From...)
		b = append(b, '>')
		if x.HasSize {
			b = append(b, " SIZE="...)
			b = strconv.AppendInt(b, t.tx.Size, 10)
		}
		if t.tx.EightBit {
			b = append(b, " BODY=8BITMIME"...)
		}
		if t.tx.UTF8 {
			b = append(b, " SMTPUTF8"...)
		}
		b = append(b, '\r', '\n')
	case reply.StageRcpt:
		b = append(b, "RCPT TO:<"...)
		b = append(b, t.tx.To[i-1]...)
		b = append(b, ">\r\n"...)
	default:
		b = append(b, "DATA\r\n"...)
	}
	t.buf = b
}

// send writes a group of commands. Where that fails the relay may have said why: its reply then is the answer to the group's
// first command.
func (t *transaction) send(stage reply.Stage) *End {
	if _, err := t.c.nc.Write(t.buf); err != nil {
		r, end := t.c.salvage(err)
		if end != nil {
			return end
		}
		t.c.broken = true
		if !r.Temporary() && !r.Permanent() {
			return t.c.give(reply.FailReset, err)
		}
		return &End{Stage: stage, Reply: r}
	}
	return nil
}

// readReset reads the reply to an RSET that prefixes the transaction. Where it is not a 2xx the relay might mix two messages up,
// so the connection ends, as if it had broken before MAIL.
func (t *transaction) readReset() *End {
	c := t.c
	r, end := c.expect(reply.StageMail, c.cfg.Timeouts.Reset)
	if end != nil {
		return end
	}
	if r.Code == 421 {
		c.broken = true
		return &End{Stage: reply.StageMail, Reply: r}
	}
	if !r.Positive() {
		c.heard = false // nothing was said about this transaction
		return c.give(reply.FailReset, fmt.Errorf("RSET refused: %v", r))
	}
	c.heard = c.rd.Buffered() > 0
	c.needReset = false
	return nil
}

// readReply reads the answer to command i; the commands before next were sent. done means that the transaction ends here,
// or, with a nil End at DATA, that the body is wanted.
func (t *transaction) readReply(i, next int) (end *End, done bool) {
	c, stage := t.c, t.stageOf(i)
	r, end := c.expect(stage, t.timeoutOf(stage))
	if end != nil {
		return end, true
	}
	if stage == reply.StageData {
		return t.dataReply(r), true
	}
	if r.Code == 421 { // RFC 5321 §3.8: the relay closes now
		c.broken = true
		if stage == reply.StageRcpt {
			t.res.Rcpts[i-1] = r
		}
		return &End{Stage: stage, Reply: r}, true
	}
	if r.Intermediate() {
		return c.give(reply.FailOutOfStep, fmt.Errorf("%v answered with %v", stage, r)), true
	}
	if stage == reply.StageMail {
		if r.Positive() {
			return nil, false
		}
		c.needReset = true
		t.skip(i+1, next)
		return &End{Stage: reply.StageMail, Reply: r}, true
	}
	t.res.Rcpts[i-1] = r
	if r.Positive() {
		t.taken++
	}
	return nil, false
}

// skip reads the answers to commands that were sent behind a refused MAIL. They can't change the result, only cost the connection.
func (t *transaction) skip(from, next int) {
	c := t.c
	for i := from; i < next; i++ {
		stage := t.stageOf(i)
		r, end := c.expect(stage, t.timeoutOf(stage))
		if end != nil {
			return
		}
		if r.Code == 421 || r.Intermediate() || stage == reply.StageData && r.Positive() {
			c.broken = true // a 354 here waits for a body: hard close, and never a lone dot
			return
		}
	}
}

func (t *transaction) dataReply(r reply.Reply) *End {
	c := t.c
	switch {
	case t.taken == 0: // the replies to RCPT count, not DATA's 503 or 554 (RFC 2920 §3.1)
		if r.Code == 421 || r.Intermediate() || r.Positive() {
			c.broken = true
		}
		c.needReset = true
		return &End{Stage: reply.StageRcpt}
	case r.Code == 354:
		return nil
	case r.Positive() || r.Intermediate():
		return c.give(reply.FailOutOfStep, fmt.Errorf("DATA answered with %v", r))
	case r.Code == 421:
		c.broken = true
	}
	c.needReset = true
	return &End{Stage: reply.StageData, Reply: r}
}

// body writes the message and its terminator, and reads the reply to it.
func (t *transaction) body() *End {
	c := t.c
	rest := t.tx.Body
	c.stage = reply.StageBody
	for len(rest)+len(terminator) > writeSize {
		n := min(len(rest), writeSize)
		if len(rest) == n {
			n-- // something must be left to ride with the terminator
		}
		if end := t.early(); end != nil {
			return end
		}
		c.begin(reply.StageBody, c.cfg.Timeouts.Body)
		if len(rest) == len(t.tx.Body) {
			t.lap(&t.res.Timings.Envelope)
		}
		if _, err := c.nc.Write(rest[:n]); err != nil {
			return t.writeFailed(err)
		}
		rest = rest[n:]
	}
	if end := t.early(); end != nil {
		return end
	}
	c.begin(reply.StageBody, c.cfg.Timeouts.Body)
	if len(rest) == len(t.tx.Body) {
		t.lap(&t.res.Timings.Envelope)
	}
	if !t.tx.CommitBy.IsZero() && !c.start.Before(t.tx.CommitBy) {
		return c.give(reply.FailDeadline, fmt.Errorf("too little of the caller's time is left to commit: %w", context.DeadlineExceeded))
	}
	t.buf = append(append(t.buf[:0], rest...), terminator...)
	if err := t.writeLast(t.buf, len(rest)); err != nil {
		return t.writeFailed(err)
	}
	return t.final()
}

// terminator follows a body that ends with CRLF (RFC 5321 §4.1.1.4).
const terminator = ".\r\n"

// writeLast writes the bytes that hold the terminator, whose dot stands at index dot.
func (t *transaction) writeLast(b []byte, dot int) error {
	c := t.c
	if !c.exact {
		c.commit()
	}
	n, err := c.nc.Write(b)
	if n > dot {
		c.commit()
	}
	return err
}

// early looks for a reply that came before the terminator was written. Taking it for the final one would report an answer to a
// message that the relay doesn't have. So it is looked for in our buffer, in crypto/tls's and in the kernel's.
func (t *transaction) early() *End {
	c := t.c
	patience := time.Duration(0)
	if t.begun {
		patience = time.Millisecond
	}
	t.begun = true
	if c.rd.Buffered() == 0 && c.npre == 0 && c.probe(patience) {
		return nil
	}
	c.begin(reply.StageBody, salvageTime)
	r, err := c.read()
	if err != nil {
		return c.fail(err)
	}
	return t.earlyReply(r)
}

func (t *transaction) earlyReply(r reply.Reply) *End {
	t.c.broken = true
	if r.Temporary() || r.Permanent() {
		return &End{Stage: reply.StageBody, Reply: r}
	}
	return t.c.give(reply.FailOutOfStep, fmt.Errorf("%v came before the message was sent", r))
}

// writeFailed reads what the relay said before it hung up: a 552 followed by a reset is the truth.
func (t *transaction) writeFailed(err error) *End {
	c := t.c
	committed := c.isCommitted()
	if committed {
		c.stage = reply.StageFinal
	}
	r, end := c.salvage(err)
	if end != nil {
		return end
	}
	if !committed {
		return t.earlyReply(r)
	}
	c.broken = true
	return t.finalReply(r)
}

func (t *transaction) final() *End {
	c := t.c
	c.begin(reply.StageFinal, c.cfg.Timeouts.Final)
	t.lap(&t.res.Timings.Body)
	r, end := c.expect(reply.StageFinal, c.cfg.Timeouts.Final)
	if end != nil {
		return end
	}
	return t.finalReply(r)
}

func (t *transaction) finalReply(r reply.Reply) *End {
	c := t.c
	switch {
	case r.Positive():
		return &End{Stage: reply.StageFinal, Reply: r}
	case r.Intermediate():
		return c.give(reply.FailOutOfStep, fmt.Errorf("the message was answered with %v", r))
	case r.Code == 421:
		// Some relays say 421 for the connection while the answer to the message is still on its way: a 2xx that follows is the truth.
		c.broken = true
		c.setDeadline(time.Now().Add(salvageTime))
		if after, err := c.read(); err == nil && after.Positive() {
			r = after
		}
	}
	c.needReset = true
	return &End{Stage: reply.StageFinal, Reply: r}
}
