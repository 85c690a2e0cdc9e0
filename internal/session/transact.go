package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/smtplb/smtplb/internal/reply"
)

// Transaction is one message for some recipients. All its texts were checked: they hold nothing that could end a command.
type Transaction struct {
	From string   // without angle brackets; "" is the null sender
	To   []string // at least one

	// The message, in CRLF line ends and with one at its end: Body, or else the first Size bytes of File. Neither changes.
	Body []byte
	File io.ReaderAt // nil: Body
	Size int64       // what SIZE tells (RFC 1870): the length before dots were doubled
	Dots bool        // it may have lines that begin with a dot, which DATA doubles (RFC 5321 §4.5.2)

	EightBit   bool // the message has bytes above 127
	UTF8       bool // an address or a header needs SMTPUTF8
	RequireTLS bool // RFC 8689
	All        bool // nothing is sent unless every recipient was taken
	Chunks     bool // BDAT (RFC 3030) where the relay offers it together with PIPELINING
	DSN        *DSN // nil: nothing is asked for

	Cut      time.Time     // the stages before the commit point must end by then; zero: no limit but their timeouts
	CommitBy time.Time     // do not begin to commit later than this; zero: no limit
	Total    time.Duration // the length of the caller's context, 0 without a deadline

	Next Next // who may ride; nil: nobody
}

// DSN is what MAIL and RCPT ask about delivery status notifications (RFC 3461). Its texts are checked and encoded.
type DSN struct {
	Ret    string // "FULL", "HDRS" or ""
	EnvID  string // xtext, or ""
	Notify string // "NEVER", a list of "SUCCESS", "FAILURE" and "DELAY", or ""
}

// Next finds who rides: the transaction whose envelope goes out behind the terminator of the message in progress, in the same write (mode c). RFC 2920 §3.1
// lets the body be followed by the next envelope. The one who rides loses nothing by it: as long as its own DATA was not answered and its own
// body not begun, the relay can't have accepted anything of it.
type Next interface {
	// Board returns the transaction that is to ride, nil for none. Of it only what its commands are made of is looked at, until Transact returns.
	Board() *Transaction
	// Alight takes back the last Board: the transaction can't ride here, and nothing was sent for it.
	Alight()
}

// Result is what happened in a transaction.
type Result struct {
	Rcpts     []reply.Reply // for each recipient; the zero Reply where none was read
	End       End           // what ended the transaction; StageRcpt with neither reply nor failure: no recipient was taken (or, with All, one was refused)
	Committed bool          // the terminator's dot may have reached the relay
	Reused    bool          // the connection had been used, or idle, before
	First     bool          // no byte of an answer had been received before End
	Chunked   bool          // the message was sent, or begun to be, by BDAT
	Timings   Timings
}

// What may be unanswered at a time: a peer that writes without reading while we do the same is a deadlock.
const maxGroupBytes, maxGroupCommands = 8 << 10, 64

// rideTimeout bounds the wait for the first answer to an envelope that was sent behind a body. The relay has answered the message by then, and has nothing else to
// do: one that is silent has lost what followed the dot.
const rideTimeout = 10 * time.Second

var writeBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// Transact sends one message. It ends within its context before the commit point, and within the grace after it.
// res is overwritten; its Rcpts are reused where they are large enough.
//
// Where somebody rides when it returns (see Rider), the connection must be handed to a Transact of that very transaction, or closed.
func (c *Conn) Transact(ctx context.Context, tx *Transaction, res *Result) {
	*res = Result{Rcpts: resize(res.Rcpts, len(tx.To)), Reused: c.uses > 0 || c.kept}
	t := transaction{c: c, tx: tx, res: res, riding: c.rider != nil}
	if t.riding && c.rider != tx {
		c.broken = true
		res.End = End{Stage: reply.StageMail, Failure: reply.FailOutOfStep, Err: errors.New("somebody else's envelope was sent")}
		return
	}
	if missing := c.ext.Lacks(tx.need()); missing != nil && !t.riding { // the connection is untouched
		res.End = End{Stage: reply.StageMail, Failure: reply.FailCapability, Err: missing}
		return
	}
	c.uses++
	c.spend(tx.Cut, tx.Total)
	stop := c.watch(ctx)
	if t.riding { // the replies, and the buffer that some of them may lie in, are there
		c.rider = nil
	} else {
		c.rbuf = borrowReadBuffer()
		c.rd.Reset(c, c.rbuf[:])
	}
	c.heard, c.drained = c.rd.Buffered() > 0, false
	wbuf := writeBuffers.Get().(*[]byte)
	t.buf = (*wbuf)[:0]
	if end := t.run(); end != nil {
		res.End = *end
	}
	*wbuf = t.buf[:0]
	writeBuffers.Put(wbuf)

	if stop() {
		c.ctx = nil // an idle connection keeps nothing of its last user's
	} else {
		c.broken = true
	}
	res.First = !c.heard
	if res.End.Reply.Code != 0 { // the reply to MAIL is always the first
		res.First = res.End.Stage == reply.StageMail
	}
	if c.broken {
		c.rider = nil
	}
	if c.rider == nil {
		if c.rd.Buffered() > 0 { // the result stays, the connection is out of step
			c.broken = true
		}
		c.rd.Reset(nil, nil)
		returnReadBuffer(c.rbuf)
		c.rbuf = nil
	}
	c.mu.Lock()
	res.Committed, c.committed = c.committed, false
	c.mu.Unlock()
}

// Rider is the transaction whose envelope was sent behind the last one's body, nil if there is none.
func (c *Conn) Rider() *Transaction { return c.rider }

func (tx *Transaction) length() int64 {
	if tx.File == nil {
		return int64(len(tx.Body))
	}
	return tx.Size
}

func (tx *Transaction) need() Need {
	n := Need{UTF8: tx.UTF8, EightBit: tx.EightBit, Size: tx.Size, DSN: tx.DSN != nil, RequireTLS: tx.RequireTLS}
	if tx.All {
		n.Together = len(tx.To)
	}
	return n
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
	c      *Conn
	tx     *Transaction
	res    *Result
	riding bool // the envelope was sent behind the body before
	buf    []byte
	taken  int       // recipients that got a 2xx
	begun  bool      // writing the body has begun
	clock  time.Time // when the part that is measured began
	end    End       // of the most frequent kind, which needs no memory of its own
}

func (t *transaction) run() *End {
	var end *End
	x := &t.c.ext
	chunks := t.tx.Chunks && x.Chunking && x.Pipelining && !t.riding
	switch {
	case chunks:
		end = t.pipelined(len(t.tx.To))
	case !x.Pipelining:
		end = t.stepwise()
	case t.tx.All: // DATA must wait for the replies
		if end = t.pipelined(len(t.tx.To)); end == nil {
			end = t.data()
		}
	default:
		end = t.pipelined(len(t.tx.To) + 1)
	}
	switch {
	case end != nil:
	case chunks:
		end = t.chunk()
	default:
		end = t.body()
	}
	if t.clock.IsZero() { // not a command was sent
		return end
	}
	if d := max(time.Since(t.clock), 1); t.res.Timings.Envelope == 0 {
		t.res.Timings.Envelope = d
	} else if t.res.Timings.Body == 0 {
		t.res.Timings.Body = d
	} else {
		t.res.Timings.Final = d
	}
	return end
}

// begin begins a stage of the envelope.
func (t *transaction) begin(stage reply.Stage, timeout time.Duration) {
	t.c.begin(stage, timeout)
	if t.clock.IsZero() {
		t.clock = t.c.start
	}
}

// lap notes, in one of the Timings, how long the part took that is over now. The clock was read when the next part's stage began.
func (t *transaction) lap(part *time.Duration) {
	*part = max(t.c.start.Sub(t.clock), 1)
	t.clock = t.c.start
}

// pipelined is mode b: [RSET] MAIL RCPT… DATA in one write, as far as the bounds go, then all the replies (RFC 2920). last is the number of the last
// command: MAIL is 0, recipients count from 1, DATA comes behind them; without DATA it reports whether the message may be sent. In mode c the write was
// done behind the body before.
func (t *transaction) pipelined(last int) *End {
	c := t.c
	for next := 0; next <= last; {
		first := next
		reset := c.needReset && first == 0
		stage := t.stageOf(first)
		if t.riding {
			next = last + 1
			t.c.enter(stage, min(t.timeoutOf(stage), rideTimeout))
			t.clock = t.c.start
		} else {
			if c.rd.Buffered() > 0 {
				return c.unasked(stage)
			}
			most := maxGroupCommands
			t.buf = t.buf[:0]
			if reset {
				t.buf = append(t.buf, "RSET\r\n"...)
				most--
			}
			for ; next <= last && next-first < most; next++ {
				mark := len(t.buf)
				t.buf = c.appendCommand(t.buf, t.tx, next)
				if len(t.buf) > maxGroupBytes && next > first {
					t.buf = t.buf[:mark]
					break
				}
			}
			t.begin(stage, t.timeoutOf(stage))
			if end := t.send(stage, first); end != nil {
				return end
			}
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
	return t.enough()
}

// enough reports, once the recipients were answered, whether the message may be sent: to one of them at least, or to all where that was wanted.
func (t *transaction) enough() *End {
	if t.taken == 0 || t.tx.All && t.taken < len(t.tx.To) {
		t.c.needReset = true
		return &End{Stage: reply.StageRcpt}
	}
	return nil
}

// stepwise is mode a: one command, one reply. It is always legal.
func (t *transaction) stepwise() *End {
	c := t.c
	if c.needReset {
		t.buf = append(t.buf[:0], "RSET\r\n"...)
		t.begin(reply.StageMail, c.cfg.Timeouts.Reset)
		if end := t.send(reply.StageMail, 0); end != nil {
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
		t.buf = c.appendCommand(t.buf[:0], t.tx, i)
		stage := t.stageOf(i)
		t.begin(stage, t.timeoutOf(stage))
		if end := t.send(stage, i); end != nil {
			return end
		}
		if end, done := t.readReply(i, i+1); done {
			return end
		}
	}
	if end := t.enough(); end != nil {
		return end
	}
	return t.data()
}

// data sends DATA alone and reads its reply.
func (t *transaction) data() *End {
	if t.c.rd.Buffered() > 0 {
		return t.c.unasked(reply.StageData)
	}
	t.buf = append(t.buf[:0], "DATA\r\n"...)
	t.begin(reply.StageData, t.c.cfg.Timeouts.Data)
	if end := t.send(reply.StageData, 0); end != nil {
		return end
	}
	end, _ := t.readReply(len(t.tx.To)+1, len(t.tx.To)+2)
	return end
}

func (t *transaction) stageOf(command int) reply.Stage { return stageOf(command, len(t.tx.To)) }

// stageOf tells what the command of that number is, with that many recipients.
func stageOf(command, recipients int) reply.Stage {
	switch {
	case command == 0:
		return reply.StageMail
	case command <= recipients:
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

// appendCommand appends command number i of tx to b.
func (c *Conn) appendCommand(b []byte, tx *Transaction, i int) []byte {
	dsn := tx.DSN
	switch stageOf(i, len(tx.To)) {
	case reply.StageMail:
		b = append(b, "MAIL FROM:<"...)
		b = append(b, tx.From...)
		b = append(b, '>')
		if c.ext.HasSize {
			b = append(b, " SIZE="...)
			b = strconv.AppendInt(b, tx.Size, 10)
		}
		if tx.EightBit {
			b = append(b, " BODY=8BITMIME"...)
		}
		if tx.UTF8 {
			b = append(b, " SMTPUTF8"...)
		}
		if tx.RequireTLS {
			b = append(b, " REQUIRETLS"...)
		}
		if dsn != nil {
			b = appendParam(b, " RET=", dsn.Ret)
			b = appendParam(b, " ENVID=", dsn.EnvID)
		}
	case reply.StageRcpt:
		b = append(b, "RCPT TO:<"...)
		b = append(b, tx.To[i-1]...)
		b = append(b, '>')
		if dsn != nil {
			b = appendParam(b, " NOTIFY=", dsn.Notify)
		}
	default:
		b = append(b, "DATA"...)
	}
	return append(b, '\r', '\n')
}

func appendParam(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return append(append(b, name...), value...)
}

// send writes a group of commands. Where that fails the relay may have said why: its reply then is the answer to the group's
// first command.
func (t *transaction) send(stage reply.Stage, first int) *End {
	if _, err := t.c.nc.Write(t.buf); err != nil {
		r, end := t.c.salvage(err)
		if end != nil {
			return end
		}
		t.c.broken = true
		if !r.Temporary() && !r.Permanent() {
			return t.c.give(reply.FailReset, err)
		}
		if stage == reply.StageRcpt && r.Code != 421 { // it is about one of them
			t.res.Rcpts[first-1] = r
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

// skip reads the answers to commands that were sent behind a refused MAIL. They can't change the result, only cost the connection. Where the envelope was sent
// behind another message's body, so does a recipient that is taken all the same: it might be added to that message's.
func (t *transaction) skip(from, next int) {
	c := t.c
	for i := from; i < next; i++ {
		stage := t.stageOf(i)
		r, end := c.expect(stage, t.timeoutOf(stage))
		if end != nil {
			return
		}
		if r.Code == 421 || r.Intermediate() || r.Positive() && (stage == reply.StageData || t.riding) {
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
	case c.rd.Buffered() > 0: // a stray reply has shifted those behind it: this may be what was said of a recipient
		return c.give(reply.FailOutOfStep, fmt.Errorf("something came behind the answer to DATA, %v", r))
	}
	c.needReset = true
	return &End{Stage: reply.StageData, Reply: r}
}
