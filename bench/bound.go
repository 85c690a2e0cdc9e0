package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"
)

// This file is what the protocol allows on this machine: loops that write bytes which were prepared before, and look at no more of a reply than its first digit.

// A boundConn is one connection of such a loop.
type boundConn struct {
	net.Conn
	in []byte
}

func dialBound(s *setup) (*boundConn, error) {
	conn, err := net.Dial("tcp", s.to.addr)
	if err != nil {
		return nil, err
	}
	c := &boundConn{conn, make([]byte, 4096)}
	if err := c.open(s); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *boundConn) open(s *setup) error {
	if err := c.replies(1); err != nil {
		return err
	}
	if s.to.tls == nil {
		return c.hello()
	}
	if err := c.hello(); err != nil {
		return err
	}
	if err := c.exchange([]byte("STARTTLS\r\n"), 1); err != nil {
		return err
	}
	c.Conn = tls.Client(c.Conn, s.to.tls)
	return c.hello()
}

// hello reads to the last line of the reply.
func (c *boundConn) hello() error {
	if _, err := c.Write([]byte("EHLO localhost\r\n")); err != nil {
		return err
	}
	for got := []byte(nil); ; {
		n, err := c.Read(c.in)
		if err != nil {
			return err
		}
		got = append(got, c.in[:n]...)
		last := bytes.LastIndex(bytes.TrimSuffix(got, []byte("\r\n")), []byte("\n")) + 1
		if bytes.HasSuffix(got, []byte("\r\n")) && bytes.HasPrefix(got[last:], []byte("250 ")) {
			return nil
		}
	}
}

func (c *boundConn) exchange(b []byte, replies int) error {
	if _, err := c.Write(b); err != nil {
		return err
	}
	return c.replies(replies)
}

var errRefused = errors.New("the sink refused something")

// replies reads so many replies of one line each, all of them positive.
func (c *boundConn) replies(n int) error {
	begins := true // a line begins here
	for n > 0 {
		k, err := c.Read(c.in)
		if err != nil {
			return err
		}
		for b := c.in[:k]; len(b) > 0; {
			if begins && b[0] != '2' && b[0] != '3' {
				return errRefused
			}
			i := bytes.IndexByte(b, '\n')
			if begins = i >= 0; !begins {
				break
			}
			b = b[i+1:]
			n--
		}
	}
	if n < 0 || !begins {
		return errors.New("more replies than commands")
	}
	return nil
}

// prepared is what goes out for a message.
type prepared struct {
	envelope []byte
	commands [][]byte // of the envelope
	body     []byte   // with the terminator
	both     []byte   // the body and the next envelope
}

func prepare(l *letter) *prepared {
	p := &prepared{}
	p.commands = append(p.commands, fmt.Appendf(nil, "MAIL FROM:<%s>\r\n", l.from))
	for _, to := range l.to {
		p.commands = append(p.commands, fmt.Appendf(nil, "RCPT TO:<%s>\r\n", to))
	}
	p.commands = append(p.commands, []byte("DATA\r\n"))
	p.envelope = bytes.Join(p.commands, nil)
	p.body = append(bytes.Clone(l.raw), ".\r\n"...) // no line of it begins with a dot
	p.both = append(bytes.Clone(p.body), p.envelope...)
	return p
}

// A bound is the client made of them.
type bound struct {
	conns []*boundConn
	timed bool
	loop  func(c *boundConn, q *quota, mine *tallyOf) error
}

func openBound(s *setup, timed bool, loop func(c *boundConn, q *quota, mine *tallyOf) error) (client, error) {
	b := &bound{timed: timed, loop: loop}
	for range s.work.conns {
		c, err := dialBound(s)
		if err != nil {
			b.close()
			return nil, err
		}
		b.conns = append(b.conns, c)
	}
	return b, nil
}

func (b *bound) close() {
	for _, c := range b.conns {
		_ = c.exchange([]byte("QUIT\r\n"), 1)
		c.Close()
	}
}

func (b *bound) turn(_ context.Context, q *quota) (turn, error) {
	return measure(len(b.conns), q, b.timed, func(i int, mine *tallyOf) { mine.err = b.loop(b.conns[i], q, mine) })
}

// openBoundB: MAIL, RCPT and DATA in one write, the body in another. A command at a time where the sink offers no PIPELINING.
func openBoundB(s *setup) (client, error) {
	p := prepare(s.letter)
	envelope := func(c *boundConn) error { return c.exchange(p.envelope, len(p.commands)) }
	if s.work.noPipelining {
		envelope = func(c *boundConn) error {
			for _, cmd := range p.commands {
				if err := c.exchange(cmd, 1); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return openBound(s, true, func(c *boundConn, q *quota, mine *tallyOf) error {
		for q.more() {
			begun := time.Now()
			if err := envelope(c); err != nil {
				return err
			}
			if err := c.exchange(p.body, 1); err != nil {
				return err
			}
			mine.sent++
			mine.times = append(mine.times, time.Since(begun))
		}
		return nil
	})
}

// openBoundC: the body and the next envelope in one write (RFC 2920 §3.1). How long a send takes has no meaning there.
func openBoundC(s *setup) (client, error) {
	p := prepare(s.letter)
	return openBound(s, false, func(c *boundConn, q *quota, mine *tallyOf) error {
		if !q.more() {
			return nil
		}
		if err := c.exchange(p.envelope, len(p.commands)); err != nil {
			return err
		}
		for q.more() {
			if err := c.exchange(p.both, 1+len(p.commands)); err != nil {
				return err
			}
			mine.sent++
		}
		if err := c.exchange(p.body, 1); err != nil {
			return err
		}
		mine.sent++
		return nil
	})
}
