package session

import (
	"errors"
	"net"
	"os"
	"time"
)

// Alive reports whether an idle connection can be used again, as far as that can be known without asking the relay. On TCP and
// unix sockets it costs less than a microsecond and no allocation; elsewhere only the connection's own Alive method, if it has
// one, can tell.
func (c *Conn) Alive() bool {
	if c.broken || c.npre > 0 || c.rider != nil {
		return false
	}
	c.mu.Lock()
	closed := c.closed || c.stopped != nil
	c.mu.Unlock()
	if closed {
		return false
	}
	// What was in use a moment ago is not looked at: should the relay have hung up since, that shows before anything is lost, and costs a
	// free redial as any stale connection does.
	return time.Since(c.start) < freshFor || c.probe(0)
}

// freshFor is how long after the last command's start a connection counts as just used.
const freshFor = 10 * time.Millisecond

// probe reports whether the connection is open and silent. Whatever it has to read on the way is kept for the next Read. Where the socket can't be
// looked into it waits for as long as patience for something to come; 0: such a connection counts as silent.
func (c *Conn) probe(patience time.Duration) bool {
	state := c.prober.look()
	switch {
	case state == socketDead:
		return false
	case state == socketUnknown && patience > 0:
		return c.silent(time.Now().Add(patience))
	case !c.secured:
		return state != socketData
	case state == socketData:
		// Session tickets, or a reply: only crypto/tls can tell.
		return c.silent(time.Now().Add(2 * time.Millisecond))
	default:
		// A reply may sit inside crypto/tls, in one segment with the last one, while the socket looks empty.
		return c.silent(aLongTimeAgo)
	}
}

// silent reads until the deadline, and reports whether nothing came.
func (c *Conn) silent(deadline time.Time) bool {
	c.setDeadline(deadline)
	n, err := c.nc.Read(c.pre[:])
	c.npre = n
	if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	c.setDeadline(time.Time{})
	return true
}

type socketState uint8

const (
	socketUnknown socketState = iota // can't be looked into
	socketQuiet
	socketData
	socketDead
)

// prober looks into a socket without reading from it.
type prober struct {
	alive interface{ Alive() bool } // an in-memory connection knows by itself
	peek  peeker
}

func (p *prober) init(raw net.Conn) {
	if a, ok := raw.(interface{ Alive() bool }); ok {
		p.alive = a
		return
	}
	p.peek.init(raw)
}

func (p *prober) look() socketState {
	if p.alive != nil {
		if p.alive.Alive() {
			return socketQuiet
		}
		return socketData // or dead: reading tells
	}
	return p.peek.look()
}
