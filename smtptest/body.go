package smtptest

import (
	"bytes"
	"net/mail"
	"strconv"
	"strings"
)

// body is the state of the message that is being received.
type body struct {
	data      []byte
	size      int64 // of data, kept or not
	bodyBytes int64 // as on the wire
	lineLen   int
	tooBig    bool
	tooLong   bool
	answered  bool // a script has answered within the body
	chunks    bool // BDAT is used
	failed    bool // a BDAT was refused
}

var (
	crlfDot = []byte("\r\n.")
	lf      = []byte{'\n'}
)

func (c *conn) dataCommand(args []byte) error {
	code, answered, err := c.at(Data)
	switch {
	case err != nil:
		return err
	case answered:
		if code != 354 {
			return nil
		}
	case len(args) > 0:
		c.reply(501, "5.5.4", "DATA takes no parameters")
		return nil
	case !c.inMail:
		c.reply(503, "5.5.1", "Send MAIL first")
		return nil
	case c.chunks:
		c.reply(503, "5.5.1", "DATA after BDAT")
		return nil
	case len(c.to) == 0:
		c.reply(554, "5.5.1", "No valid recipients")
		return nil
	default:
		c.replyText(354, "End data with <CR><LF>.<CR><LF>")
	}
	if err := c.settle(); err != nil {
		return err
	}
	if err := c.readData(); err != nil {
		return err
	}
	return c.endOfData()
}

// readData reads the body up to and with its terminator.
func (c *conn) readData() error {
	c.enter(Body)
	c.body = body{}
	lineStart := true
	var pos, seen int64 // bytes consumed, bytes up to which the script was asked
	for {
		w := c.in[c.r:c.w]
		at := c.bodyStop(max(pos, seen), pos+int64(len(w)))
		if at > 0 {
			w = w[:at-pos]
		}
		used, end := c.scan(w, &lineStart)
		c.r += used
		pos += int64(used)
		c.bodyBytes = pos
		switch {
		case end:
			c.transcript.note("body of " + strconv.FormatInt(pos, 10) + " bytes")
			return nil
		case at > 0:
			seen, c.bodyBytes, c.ahead = at, at, int(at-pos)
			err := c.inBody()
			c.ahead = 0
			if err != nil {
				return err
			}
			continue
		}
		// What is left may be the start of a terminator.
		if err := c.fill(forBody, 0); err != nil {
			return err
		}
	}
}

// scan takes over the part of w that is certain to be the body's, without the dots
// that were stuffed. The terminator is CRLF.CRLF and nothing else: bare CRs and
// LFs are data (CVE-2023-51764).
func (c *conn) scan(w []byte, lineStart *bool) (used int, end bool) {
	for used < len(w) {
		rest := w[used:]
		if *lineStart && rest[0] == '.' {
			switch {
			case len(rest) == 1, len(rest) == 2 && rest[1] == '\r':
				return used, false
			case rest[1] == '\r' && rest[2] == '\n':
				return used + 3, true
			}
			*lineStart = false
			used++
			continue
		}
		*lineStart = false
		if i := bytes.Index(rest, crlfDot); i >= 0 {
			c.keep(rest[:i+2])
			used += i + 2
			*lineStart = true
			continue
		}
		n := len(rest)
		if bytes.HasSuffix(rest, crlf) {
			*lineStart = true
		} else if rest[n-1] == '\r' {
			n--
		}
		c.keep(rest[:n])
		return used + n, false
	}
	return used, false
}

// keep appends to the message.
func (c *conn) keep(b []byte) {
	cfg := c.s.cfg
	c.size += int64(len(b))
	if cfg.maxLine > 0 {
		c.measure(b)
	}
	switch {
	case cfg.maxSize > 0 && c.size > cfg.maxSize:
		c.tooBig, c.data = true, nil
	case cfg.discard || c.tooBig:
	default:
		if c.data == nil && c.declared > 0 {
			c.data = make([]byte, 0, min(c.declared, 16<<20))
		}
		c.data = append(c.data, b...)
	}
}

// measure looks for lines that are too long.
func (c *conn) measure(b []byte) {
	for len(b) > 0 {
		line, rest, found := bytes.Cut(b, lf)
		c.lineLen += len(line)
		if found {
			c.lineLen -= len(line) - len(bytes.TrimSuffix(line, []byte{'\r'}))
		}
		if c.lineLen > c.s.cfg.maxLine {
			c.tooLong = true
		}
		if found {
			c.lineLen = 0
		}
		b = rest
	}
}

// bodyStop returns the number of bytes in (low, high] at which the script is to be
// asked, 0 if there is none.
func (c *conn) bodyStop(low, high int64) int64 {
	if c.s.scripted.Load()&(1<<Body) == 0 || low == high {
		return 0
	}
	return c.s.nextBodyByte(low, high)
}

// inBody asks the script within the body.
func (c *conn) inBody() error {
	code, answered, err := c.at(Body)
	if err != nil {
		return err
	}
	if answered && code != 0 {
		c.answered = true
	}
	return c.settle()
}

// endOfData gives the final reply.
func (c *conn) endOfData() error {
	defer c.endTransaction()
	if c.buffered() > 0 && !c.pipelining() && !c.answered {
		if err := c.early(); err != nil {
			return err
		}
	}
	if c.buffered() > 0 && c.s.cfg.lossy {
		c.transcript.note("input behind the body is lost: " + strconv.Itoa(c.buffered()) + " bytes")
		c.r = c.w
	}
	if c.answered {
		return nil
	}
	m := c.message()
	code, enhanced, text := c.judge()
	var e *effect
	if ev := c.event(EndOfData); ev != nil {
		ev.Message = m
		if e = c.s.decide(ev); e != nil {
			if err := c.sleep(e.delay); err != nil {
				return err
			}
			e.delay = 0
		}
	}
	if e.stores(code == 250) {
		if !c.s.store(c, m, c.size) {
			return errGone
		}
		if c.s.cfg.stored != nil {
			c.s.cfg.stored(m)
		}
	} else {
		m.QueueID = c.s.nextQueueID()
	}
	if e != nil {
		e.text = strings.ReplaceAll(e.text, "{queueid}", m.QueueID)
	}
	_, answered, err := c.carryOut(e)
	if err != nil || answered {
		return err
	}
	if code == 250 {
		text += m.QueueID
	}
	c.reply(code, enhanced, text)
	return nil
}

// stores reports whether the message is stored, where normally is what the server
// would do without a script.
func (e *effect) stores(normally bool) bool {
	switch {
	case e == nil:
		return normally
	case e.stored != 0:
		return e.stored > 0
	case e.act == actReply || e.act == actRaw:
		return e.code/100 == 2
	}
	return normally
}

// judge returns the server's own verdict on the message.
func (c *conn) judge() (code int, enhanced, text string) {
	switch {
	case len(c.to) == 0:
		return 554, "5.5.1", "No valid recipients"
	case c.tooBig:
		return 552, "5.3.4", "Message size exceeds fixed limit"
	case c.tooLong:
		return 554, "5.6.0", "Line too long"
	}
	return 250, "2.0.0", "Ok: queued as "
}

func (c *conn) message() *Message {
	m := &Message{
		From: c.from, To: c.to, MailParams: c.mailParams, RcptParams: c.rcptParams,
		Data: c.data, Auth: c.user, TLS: c.nc != c.raw, HELO: c.helo, Conn: c.id,
	}
	if !c.s.cfg.discard {
		if parsed, err := mail.ReadMessage(bytes.NewReader(c.data)); err == nil {
			m.Header = parsed.Header
		}
	}
	return m
}

// bdat takes a chunk (RFC 3030 §2). Its bytes follow the command in any case, so
// they are read whatever the reply.
func (c *conn) bdat(args string) error {
	f := strings.Fields(args)
	if !c.esmtp || !c.ext.offers("CHUNKING") {
		c.reply(502, "5.5.1", "BDAT is not offered")
		return nil
	}
	last := len(f) == 2 && strings.EqualFold(f[1], "LAST")
	if len(f) == 0 || len(f) > 2 || len(f) == 2 && !last {
		c.reply(501, "5.5.4", "Syntax: BDAT size [LAST]")
		return nil
	}
	n, err := strconv.ParseInt(f[0], 10, 62)
	if err != nil || n < 0 {
		c.reply(501, "5.5.4", "Bad chunk size")
		return nil
	}
	_, answered, err := c.at(Data)
	if err != nil {
		return err
	}
	if answered {
		if err := c.settle(); err != nil {
			return err
		}
		c.failed = true
		return c.skip(n)
	}
	if !c.inMail || len(c.to) == 0 || c.failed {
		if err := c.skip(n); err != nil {
			return err
		}
		switch {
		case !c.inMail:
			c.reply(503, "5.5.1", "Send MAIL first")
		case c.failed:
			c.reply(503, "5.5.1", "An earlier chunk was refused, please RSET")
		default:
			c.reply(554, "5.5.1", "No valid recipients")
		}
		c.failed = c.inMail
		return nil
	}
	c.chunks = true
	if err := c.readChunk(n); err != nil {
		return err
	}
	switch {
	case last:
		return c.endOfData()
	case c.answered: // by the script, which leaves nothing to be said
	default:
		c.reply(250, "2.0.0", f[0]+" octets received")
	}
	return nil
}

func (c *conn) readChunk(n int64) error {
	c.enter(Body)
	for n > 0 {
		if c.buffered() == 0 {
			if err := c.fill(forBody, 0); err != nil {
				return err
			}
		}
		w := c.in[c.r:c.w]
		w = w[:min(int64(len(w)), n)]
		at := c.bodyStop(c.bodyBytes, c.bodyBytes+int64(len(w)))
		if at > 0 {
			w = w[:at-c.bodyBytes]
		}
		c.keep(w)
		c.r += len(w)
		c.bodyBytes += int64(len(w))
		n -= int64(len(w))
		if at > 0 {
			if err := c.inBody(); err != nil {
				return err
			}
		}
	}
	return nil
}

// skip reads n bytes and forgets them.
func (c *conn) skip(n int64) error {
	for n > 0 {
		if c.buffered() == 0 {
			if err := c.fill(forBody, 0); err != nil {
				return err
			}
		}
		k := min(int64(c.buffered()), n)
		c.r += int(k)
		n -= k
	}
	return nil
}
