package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/smtplb/smtplb/internal/reply"
)

// The sizes of the writes of a message that lies in memory and goes out as it is, on a plain connection; of any other message; and what is left
// for the last write, in which the terminator rides. A message that fits into that goes out in one write.
const plainWrite, otherWrite, lastWrite = 256 << 10, 64 << 10, 64 << 10

// terminator follows a body that ends with CRLF (RFC 5321 §4.1.1.4).
const terminator = ".\r\n"

// fileBuffers hold what was read of a file whose lines must be looked at before they are sent.
var fileBuffers = sync.Pool{New: func() any { return new([otherWrite]byte) }}

// body sends the message and its terminator (RFC 5321 §4.1.1.4), and reads the reply to it. In mode c the next envelope follows in the last write.
func (t *transaction) body() *End {
	c := t.c
	c.stage = reply.StageBody
	source := source{tx: t.tx, stuff: t.tx.Dots, start: true}
	if end := t.allButLast(&source, lastWrite); end != nil {
		return end
	}
	var err error
	if t.buf, err = source.appendTo(t.buf[:0], lastWrite); err != nil { // before the last look: a disk may be slow
		return c.give(reply.FailSource, err)
	}
	if end := t.beforeLast(); end != nil {
		return end
	}
	dot := len(t.buf)
	if dot < 2 || t.buf[dot-2] != '\r' || t.buf[dot-1] != '\n' { // its dot would be text, and the relay's answer never come
		return c.give(reply.FailSource, errors.New("the message was changed while it was being sent: it has lost its last line end"))
	}
	t.buf = append(t.buf, terminator...)
	c.rider = t.board() // also where the write fails: part of the envelope may be there, and be answered
	if end := t.writeLast(t.buf, dot, dot+len(terminator)); end != nil {
		return end
	}
	return t.final()
}

// chunk sends the message in one BDAT chunk (RFC 3030 §2), and reads the reply to it. It is not stuffed, and its last byte is the commit point.
func (t *transaction) chunk() *End {
	c := t.c
	c.stage, t.res.Chunked = reply.StageBody, true
	source := source{tx: t.tx}
	head := func() {
		t.buf = append(t.buf[:0], "BDAT "...)
		t.buf = strconv.AppendInt(t.buf, t.tx.length(), 10)
		t.buf = append(t.buf, " LAST\r\n"...)
	}
	if t.tx.length() > lastWrite {
		if end := t.early(false); end != nil {
			return end
		}
		c.begin(reply.StageBody, c.cfg.Timeouts.Body)
		t.lap(&t.res.Timings.Envelope)
		head()
		if _, err := t.write(t.buf, 0, len(t.buf)); err != nil {
			return t.writeFailed(err)
		}
		if end := t.allButLast(&source, lastWrite); end != nil {
			return end
		}
	}
	t.buf = t.buf[:0]
	if source.at == 0 {
		head()
	}
	var err error
	if t.buf, err = source.appendTo(t.buf, lastWrite); err != nil {
		return c.give(reply.FailSource, err)
	}
	if end := t.beforeLast(); end != nil {
		return end
	}
	if end := t.writeLast(t.buf, len(t.buf)-1, len(t.buf)); end != nil {
		return end
	}
	return t.final()
}

// allButLast sends the message but for its last most bytes.
func (t *transaction) allButLast(s *source, most int64) *End {
	c := t.c
	for s.left() > most {
		size := min(int64(otherWrite), s.left()-2) // the last line end goes with the terminator
		direct := t.tx.File == nil && !s.stuff
		if direct && !c.secured {
			size = min(int64(plainWrite), s.left()-2)
		}
		if end := t.early(false); end != nil {
			return end
		}
		part := t.buf[:0]
		if direct {
			part = s.slice(size)
		} else {
			var err error
			if part, err = s.appendTo(part, size); err != nil {
				return c.give(reply.FailSource, err)
			}
			t.buf = part
		}
		c.begin(reply.StageBody, c.cfg.Timeouts.Body)
		if t.res.Timings.Envelope == 0 {
			t.lap(&t.res.Timings.Envelope)
		}
		if _, err := t.write(part, 0, len(part)); err != nil {
			return t.writeFailed(err)
		}
	}
	return nil
}

// beforeLast sees to what must be true before the write is begun that carries the commit point.
func (t *transaction) beforeLast() *End {
	c := t.c
	talks := c.talks()
	if end := t.early(talks); end != nil {
		return end
	}
	c.enter(reply.StageBody, c.cfg.Timeouts.Body)
	if !talks || !c.start.Before(c.end()) { // else there may be nothing to wait for
		c.arm()
	}
	if t.res.Timings.Envelope == 0 {
		t.lap(&t.res.Timings.Envelope)
	}
	if !t.tx.CommitBy.IsZero() && !c.start.Before(t.tx.CommitBy) {
		return c.give(reply.FailDeadline, fmt.Errorf("too little of the caller's time is left to commit: %w", context.DeadlineExceeded))
	}
	return nil
}

// board appends the envelope of the one who rides to what is about to be written. Nobody rides behind a message of which a recipient was refused: it may
// need the connection once more, for the others. (And nobody rides over HELO or behind BDAT, or where the envelope doesn't go out in one group.)
func (t *transaction) board() *Transaction {
	c := t.c
	if t.tx.Next == nil || !c.ext.Pipelining || t.taken < len(t.tx.To) {
		return nil
	}
	next := t.tx.Next.Board()
	if next == nil {
		return nil
	}
	mark := len(t.buf)
	commands := len(next.To) + 2
	if commands <= maxGroupCommands && !next.All && !next.Chunks && c.ext.Lacks(next.need()) == nil && (c.ext.RcptMax == 0 || len(next.To) <= c.ext.RcptMax) {
		for i := range commands {
			t.buf = c.appendCommand(t.buf, next, i)
		}
		if len(t.buf)-mark <= maxGroupBytes {
			return next
		}
	}
	t.buf = t.buf[:mark]
	t.tx.Next.Alight()
	return nil
}

// writeLast writes the bytes that hold the commit point, which is passed when the one at that index was written. The message is there whole when the first whole bytes were.
func (t *transaction) writeLast(b []byte, point, whole int) *End {
	c, n := t.c, 0
	if !c.exact {
		c.commit()
	}
	if c.talks() {
		var end *End
		if n, end = t.talk(b, point); end != nil || n == len(b) {
			return end
		}
	}
	n, err := t.write(b, n, point)
	switch {
	case err == nil:
	case !isTimeout(err) || n < whole:
		return t.writeFailed(err)
	default:
		c.broken = true // only the envelope behind the message is not there
	}
	return nil
}

// talk writes the end of a message, where the socket can be spoken to, in three steps that belong together: a look whether something came too early,
// the write, and waiting for the answer, whose stage has begun then. The look is the last thing before the write, and costs nothing: it takes the place of the
// attempt to read that comes to nothing, with which waiting else begins. It returns how much was written, which may be a part, or nothing.
func (t *transaction) talk(b []byte, point int) (int, *End) {
	c := t.c
	n, state := c.talk(b, point)
	switch {
	case n == len(b):
		return n, nil
	case state == socketData || state == socketDead:
		return 0, t.tooEarly()
	case state == socketUnknown: // an old deadline or the caller's end was in the way, and the look was not taken
		if end := t.early(false); end != nil {
			return 0, end
		}
	}
	return n, nil
}

// talks reports whether the last write goes by talk: on bare sockets only, as what Write does elsewhere is not known.
func (c *Conn) talks() bool { return c.bare && !c.secured && c.prober.peek.ready() }

// sent is called by talk, when n bytes of as many as length were written, before it waits. It reports whether there is something to wait for.
func (c *Conn) sent(n, point, length int) bool {
	if n > point {
		c.commit()
	}
	if n < length {
		return false
	}
	c.begin(reply.StageFinal, c.cfg.Timeouts.Final)
	return true
}

// write writes b from its byte n on; the one at index point is the commit point. The body's timeout is one without progress: where a write can be taken up again in the
// middle it goes on as long as some of it moves.
func (t *transaction) write(b []byte, from, point int) (n int, err error) {
	c := t.c
	for n = from; ; {
		var m int
		c.arm()
		m, err = c.nc.Write(b[n:])
		n += m
		if n > point {
			c.commit()
		}
		if err == nil || m == 0 || c.secured || !c.exact || !isTimeout(err) || c.stopCause() != nil {
			return n, err
		}
		c.begin(reply.StageBody, c.cfg.Timeouts.Body)
	}
}

// early looks for a reply that came before the terminator was written. Taking it for the final one would report an answer to a
// message that the relay doesn't have. So it is looked for in our buffer, in crypto/tls's and in the kernel's, but for the last where it was emptied a moment ago, when
// the answer to DATA was read: there is no more in it than would be in the next moment, after a look. And not in the kernel's where talk will look there.
func (t *transaction) early(talks bool) *End {
	c := t.c
	patience, look := time.Duration(0), !c.drained
	if t.begun {
		patience, look = time.Millisecond, true
	}
	t.begun = true
	look = look && !talks
	if c.rd.Buffered() == 0 && c.npre == 0 && (!look || c.probe(patience)) {
		return nil
	}
	return t.tooEarly()
}

// tooEarly reads what came before the terminator was written.
func (t *transaction) tooEarly() *End {
	c := t.c
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
	if c.stage != reply.StageFinal { // talk has begun it
		c.begin(reply.StageFinal, c.cfg.Timeouts.Final)
	}
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
		t.end = End{Stage: reply.StageFinal, Reply: r}
		return &t.end
	case r.Intermediate():
		return c.give(reply.FailOutOfStep, fmt.Errorf("the message was answered with %v", r))
	case r.Code == 421:
		// Some relays say 421 for the connection while the answer to the message is still on its way: a 2xx that follows is the truth.
		c.broken = true
		c.setDeadline(time.Now().Add(salvageTime))
		after, err := c.read()
		switch {
		case err != nil || !after.Positive():
		case c.rider == nil:
			r = after
		default:
			switch t.answered(after) {
			case messageAnswered:
				r = after
			case nobodyKnows:
				return c.give(reply.FailOutOfStep, fmt.Errorf("%v, and then %v, which may be about this message or about the next one", r, after))
			}
		}
	}
	if c.rider != nil {
		c.broken = true // its envelope was sent behind a message that was refused: nobody reads the answer
	}
	c.needReset = true
	return &End{Stage: reply.StageFinal, Reply: r}
}

type answers uint8

const (
	riderAnswered   answers = iota // to the envelope behind the message, and not to that
	messageAnswered                // to both
	nobodyKnows
)

// answered tells, with a 421 read in the place of the message's answer and a first 2xx behind it, what the replies are that follow. A rider's envelope has as many as
// it has commands, the last to DATA.
func (t *transaction) answered(r reply.Reply) answers {
	commands := len(t.c.rider.To) + 2
	n := 1
	for ; n <= commands && r.Code != 354; n++ {
		next, err := t.c.read()
		if err != nil {
			break
		}
		r = next
	}
	switch {
	case n > commands:
		return messageAnswered
	case n == commands && r.Code == 354:
		return riderAnswered
	}
	return nobodyKnows
}

// source is what is left of a message.
type source struct {
	tx    *Transaction
	at    int64
	stuff bool // a dot is put before those that begin a line
	start bool // a line begins here
}

func (s *source) left() int64 { return s.tx.length() - s.at }

// slice is the next n bytes, of a message in memory that goes out as it is.
func (s *source) slice(n int64) []byte {
	b := s.tx.Body[s.at : s.at+n]
	s.at += n
	return b
}

// appendTo appends the next n bytes to b, or what is left where that is less.
func (s *source) appendTo(b []byte, n int64) ([]byte, error) {
	n = min(n, s.left())
	switch {
	case s.tx.File == nil && !s.stuff:
		return append(b, s.slice(n)...), nil
	case s.tx.File == nil:
		return s.appendStuffed(b, s.slice(n)), nil
	case !s.stuff:
		mark := len(b)
		b = append(b, make([]byte, n)...)
		return b, s.read(b[mark:])
	}
	part := fileBuffers.Get().(*[otherWrite]byte)
	defer fileBuffers.Put(part)
	if err := s.read(part[:n]); err != nil {
		return b, err
	}
	return s.appendStuffed(b, part[:n]), nil
}

// read fills b from the file.
func (s *source) read(b []byte) error {
	n, err := s.tx.File.ReadAt(b, s.at)
	s.at += int64(n)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("reading the message again: %w", err)
}

// appendStuffed appends part to b, with a dot before each that begins a line (RFC 5321 §4.5.2).
func (s *source) appendStuffed(b, part []byte) []byte {
	for len(part) > 0 {
		if s.start && part[0] == '.' {
			b = append(b, '.')
		}
		i := bytes.Index(part, lineDot)
		if i < 0 {
			s.start = part[len(part)-1] == '\n'
			return append(b, part...)
		}
		b = append(b, part[:i+1]...)
		part, s.start = part[i+1:], true
	}
	return b
}

var lineDot = []byte("\n.")
