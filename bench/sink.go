package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strconv"
	"sync/atomic"
)

// sinkOptions say what the sink offers.
type sinkOptions struct {
	TLS          bool // STARTTLS
	NoPipelining bool
}

// tally is what a sink took over since it began.
type tally struct {
	Messages, Recipients int64
}

// A sink is a relay that accepts everything, counts it and forgets it, as cheaply as can be: what is measured is the client.
type sink struct {
	offers sinkOptions
	tls    *tls.Config
	ehlo   string

	messages, recipients atomic.Int64
}

func newSink(o sinkOptions, cert *tls.Config) *sink {
	ehlo := "250-sink\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250-CHUNKING\r\n"
	if !o.NoPipelining {
		ehlo += "250-PIPELINING\r\n"
	}
	return &sink{offers: o, tls: cert, ehlo: ehlo}
}

func (s *sink) tally() tally { return tally{s.messages.Load(), s.recipients.Load()} }

// serve accepts connections until l is closed.
func (s *sink) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_ = s.converse(c) // the client counts what it was answered; a broken connection shows there
		}()
	}
}

const (
	smallBuffer = 64 << 10
	largeBuffer = 1 << 20 // for messages that fill the small one
)

// A conversation is one connection's state.
type conversation struct {
	sink *sink
	conn net.Conn
	out  []byte // replies that are not sent yet

	inBody     bool
	end        terminator
	chunk      int64 // bytes of a BDAT chunk that are still to come
	last       bool  // the chunk is the last one
	recipients int64 // of the transaction
	secure     bool
	quit       bool
}

var errLongLine = errors.New("a command line that fills the buffer")

func (s *sink) converse(conn net.Conn) error {
	c := &conversation{sink: s, conn: conn, out: []byte("220 sink ESMTP\r\n")}
	buf, have := make([]byte, smallBuffer), 0
	for {
		// Replies go out together, when all that came was looked at.
		if len(c.out) > 0 {
			if _, err := c.conn.Write(c.out); err != nil {
				return err
			}
			c.out = c.out[:0]
		}
		if c.quit {
			return nil
		}
		n, err := c.conn.Read(buf[have:])
		if n == 0 && err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		have += n
		used, err := c.eat(buf[:have])
		if err != nil {
			return err
		}
		full := have == len(buf)
		have = copy(buf, buf[used:have])
		switch {
		case have == len(buf):
			return errLongLine
		case full && len(buf) < largeBuffer && (c.inBody || c.chunk > 0):
			larger := make([]byte, largeBuffer)
			copy(larger, buf[:have])
			buf = larger
		}
	}
}

// eat takes as much of b as it understands, and returns how much that is.
func (c *conversation) eat(b []byte) (used int, err error) {
	for used < len(b) {
		rest := b[used:]
		switch {
		case c.chunk > 0:
			n := min(int64(len(rest)), c.chunk)
			c.chunk -= n
			used += int(n)
			if c.chunk == 0 {
				c.endChunk()
			}
		case c.inBody:
			n, done := c.end.scan(rest)
			used += n
			if done {
				c.inBody = false
				c.accept()
			}
		default:
			i := bytes.IndexByte(rest, '\n')
			if i < 0 {
				return used, nil
			}
			used += i + 1
			if err := c.command(rest[:i+1], len(rest) == i+1); err != nil || c.quit {
				return used, err
			}
		}
	}
	return used, nil
}

// accept takes the message over. The count comes before the reply, so that who has read the reply finds it counted.
func (c *conversation) accept() {
	c.sink.messages.Add(1)
	c.sink.recipients.Add(c.recipients)
	c.recipients = 0
	c.say("250 2.0.0 Ok: queued as 4Zk3vB0Xyz\r\n")
}

func (c *conversation) endChunk() {
	if c.last {
		c.accept()
		return
	}
	c.say("250 2.0.0 Ok\r\n")
}

func (c *conversation) say(s string) { c.out = append(c.out, s...) }

// command answers one command line. alone: nothing came behind it.
func (c *conversation) command(line []byte, alone bool) error {
	verb := line[:min(4, len(line))]
	switch {
	case is(verb, "MAIL"):
		c.recipients = 0
		c.say("250 2.1.0 Ok\r\n")
	case is(verb, "RCPT"):
		c.recipients++
		c.say("250 2.1.5 Ok\r\n")
	case is(verb, "DATA"):
		if c.recipients == 0 { // also where a client lost count of where its message ends
			c.say("503 5.5.1 No recipients\r\n")
			return nil
		}
		c.inBody = true
		c.end.begin()
		c.say("354 End data with <CR><LF>.<CR><LF>\r\n")
	case is(verb, "BDAT"):
		return c.bdat(line)
	case is(verb, "RSET"), is(verb, "NOOP"):
		c.say("250 2.0.0 Ok\r\n")
	case is(verb, "EHLO"):
		c.say(c.sink.ehlo)
		if c.sink.offers.TLS && !c.secure {
			c.say("250-STARTTLS\r\n")
		}
		c.say("250 SIZE 0\r\n")
	case is(verb, "HELO"):
		c.say("250 sink\r\n")
	case is(verb, "STAR") && c.sink.offers.TLS && !c.secure:
		if !alone { // RFC 3207 §4.2: nothing that came in the clear counts
			return errors.New("bytes behind STARTTLS")
		}
		return c.startTLS()
	case is(verb, "QUIT"):
		c.quit = true
		c.say("221 2.0.0 Bye\r\n")
	default:
		c.say("500 5.5.2 Command not recognised\r\n")
	}
	return nil
}

// bdat begins a chunk (RFC 3030 §2).
func (c *conversation) bdat(line []byte) error {
	f := bytes.Fields(line)
	if len(f) < 2 || len(f) > 3 {
		return errors.New("BDAT without a size")
	}
	n, err := strconv.ParseInt(string(f[1]), 10, 63)
	if err != nil || n < 0 {
		return errors.New("BDAT without a size")
	}
	c.chunk, c.last = n, len(f) == 3 && bytes.EqualFold(f[2], []byte("LAST"))
	if n == 0 {
		c.endChunk()
	}
	return nil
}

func (c *conversation) startTLS() error {
	c.say("220 2.0.0 Go ahead\r\n")
	if _, err := c.conn.Write(c.out); err != nil {
		return err
	}
	c.out = c.out[:0]
	t := tls.Server(c.conn, c.sink.tls)
	if err := t.Handshake(); err != nil {
		return err
	}
	c.conn, c.secure = t, true
	return nil
}

func is(verb []byte, want string) bool { return bytes.EqualFold(verb, []byte(want)) }
