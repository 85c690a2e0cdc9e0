package memnet

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Conn is one end of a connection. It is a net.Conn with TCP's manners:
//
//   - A deadline gives os.ErrDeadlineExceeded, a net.Error whose Timeout is true.
//   - After Close the peer reads what was written, then io.EOF, and its writes
//     give syscall.EPIPE. Own calls give net.ErrClosed.
//   - After CloseWrite the peer reads io.EOF and may go on writing.
//   - After Reset the peer's calls give syscall.ECONNRESET.
//
// Errors other than io.EOF come as *net.OpError. Read and Write may be called
// concurrently; concurrent Writes are not interleaved.
type Conn struct {
	in, out       *pipe // from the peer, to the peer
	local, remote Addr
}

// pipe carries the bytes of one direction.
type pipe struct {
	mu       *sync.Mutex // the connection's, for both directions; never held while waiting
	readable sync.Cond   // there may be something new for a reader
	writable sync.Cond   // there may be something new for a writer
	latency  time.Duration
	max      int // bytes; negative: no bound

	// The following fields are protected by mu.
	buf        []byte // buf[off:] was written and not read
	off        int
	arrived    int   // bytes of buf[off:] that have travelled and can be read
	carry      int64 // bytes until the connection is cut; negative: never
	writing    bool  // a Write is at work; others wait for their turn
	wclosed    error // what Write says: the writer's end was closed
	fin        bool  // the end of the stream has arrived behind the last byte
	rclosed    bool  // the reader's end was closed: bytes go nowhere
	gone       bool  // news of rclosed has arrived at the writer
	rerr, werr error // the connection was reset: what each side is told
	drain      bool  // rerr only after buf is empty
	rdeadline  time.Time
	wdeadline  time.Time
	rtimer     *time.Timer
	wtimer     *time.Timer
	travelling []func() // what after has put off
}

// Pipe returns the two ends of a connection that belongs to no Network, with
// DefaultBuffer bytes per direction and no latency.
func Pipe() (*Conn, *Conn) {
	return newPair("a:1", "b:1", 0, 0, DefaultBuffer)
}

func newPair(a, b Addr, ab, ba time.Duration, buffer int) (*Conn, *Conn) {
	mu := new(sync.Mutex)
	newPipe := func(latency time.Duration) *pipe {
		p := &pipe{mu: mu, latency: latency, max: buffer, carry: -1}
		p.readable.L, p.writable.L = mu, mu
		return p
	}
	x, y := newPipe(ab), newPipe(ba)
	return &Conn{in: y, out: x, local: a, remote: b}, &Conn{in: x, out: y, local: b, remote: a}
}

// Read reads what has arrived, at most len(p) bytes.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.in.read(p)
	if err != nil && err != io.EOF {
		err = c.opError("read", err)
	}
	return n, err
}

// Write writes all of p, waiting for room where the buffer is full. The count it
// returns is exact, also with an error: these bytes are on their way to the peer,
// no others are.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.out.write(p, c.in)
	if err != nil {
		err = c.opError("write", err)
	}
	return n, err
}

// ExactWrite returns true: the count that Write reports is exactly what may
// reach the peer. That is not so on a connection with a layer between, such as
// *tls.Conn.
func (c *Conn) ExactWrite() bool { return true }

// Alive reports whether the connection looks usable for a client that expects
// silence: false when this end is closed, and when the peer's close, its reset or
// an unread byte has arrived. It is what a peek at a socket would say.
func (c *Conn) Alive() bool {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	p := c.in
	return !p.rclosed && p.rerr == nil && p.arrived == 0 && !p.fin && c.out.wclosed == nil && c.out.werr == nil && !c.out.gone
}

// Buffered returns how many bytes have arrived at this end and were not read.
func (c *Conn) Buffered() int {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	return c.in.arrived
}

// Close closes this end. The peer reads what was written, then io.EOF.
func (c *Conn) Close() error {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	if c.in.rclosed {
		return c.opError("close", net.ErrClosed)
	}
	c.closeReadLocked(nil)
	c.closeWriteLocked(net.ErrClosed)
	return nil
}

// CloseWrite ends the stream to the peer, which reads what was written and then
// io.EOF. This end can still read; its writes give syscall.EPIPE.
func (c *Conn) CloseWrite() error {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	if c.in.rclosed {
		return c.opError("close", net.ErrClosed)
	}
	c.closeWriteLocked(os.NewSyscallError("write", syscall.EPIPE))
	return nil
}

// Reset cuts the connection at once, as a close with SO_LINGER 0 does: what was
// written and not read is lost in both directions, and the peer's calls, waiting
// ones included, give syscall.ECONNRESET. Own calls give net.ErrClosed.
func (c *Conn) Reset() { c.reset(false) }

// ResetAfterDrain is Reset, except that the peer can still read what this end has
// written before it is told. A Linux peer behaves like that when a reset
// arrives behind the data; Windows and BSD ones behave as with Reset.
func (c *Conn) ResetAfterDrain() { c.reset(true) }

func (c *Conn) reset(drain bool) {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	if c.in.rclosed {
		return
	}
	c.closeReadLocked(os.NewSyscallError("write", syscall.ECONNRESET))
	out := c.out
	out.wclosed = net.ErrClosed
	if !drain { // what is in flight never arrives
		out.buf = out.buf[:out.off+out.arrived]
	}
	out.after(func() { out.resetLocked(drain) })
	out.wakeLocked()
}

// CutWriteAfter cuts the connection for both ends as soon as exactly bytes more
// bytes have been written by this end: the peer reads them, then both get
// syscall.ECONNRESET. Zero cuts now; a negative value takes the order back.
func (c *Conn) CutWriteAfter(bytes int64) { c.cutAfter(c.out, bytes) }

// CutReadAfter is CutWriteAfter for the other direction: it counts the bytes the
// peer writes from now on.
func (c *Conn) CutReadAfter(bytes int64) { c.cutAfter(c.in, bytes) }

func (c *Conn) cutAfter(p *pipe, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.carry = bytes
	if bytes == 0 {
		c.in.cutLocked()
		c.out.cutLocked()
	}
}

// LocalAddr returns the address of this end, an Addr.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the address of the peer, an Addr.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline sets both deadlines; the zero time means none.
func (c *Conn) SetDeadline(t time.Time) error { return c.setDeadlines(&t, &t) }

// SetReadDeadline sets the deadline of Read; the zero time means none.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadlines(&t, nil) }

// SetWriteDeadline sets the deadline of Write; the zero time means none.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(nil, &t) }

func (c *Conn) setDeadlines(r, w *time.Time) error {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	if c.in.rclosed {
		return c.opError("set", net.ErrClosed)
	}
	// Those who wait look at the new deadline and set their timer anew.
	if r != nil {
		c.in.rdeadline = *r
		c.in.readable.Broadcast()
	}
	if w != nil {
		c.out.wdeadline = *w
		c.out.writable.Broadcast()
	}
	return nil
}

func (c *Conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

// closeReadLocked closes the reading side; the peer's writes then give werr, or
// syscall.EPIPE where werr is nil.
func (c *Conn) closeReadLocked(werr error) {
	in, out := c.in, c.out
	in.rclosed = true
	in.buf, in.off, in.arrived = nil, 0, 0
	// The news travels with this end's own bytes.
	out.after(func() {
		in.gone = true
		if in.werr == nil {
			in.werr = werr
		}
		in.writable.Broadcast()
	})
	in.wakeLocked()
}

func (c *Conn) closeWriteLocked(why error) {
	out := c.out
	if out.wclosed != nil {
		if why == net.ErrClosed {
			out.wclosed = why
		}
		return
	}
	out.wclosed = why
	out.after(func() {
		out.fin = true
		out.readable.Broadcast()
	})
	out.writable.Broadcast()
}

// after runs f with mu held once the latency has passed: now where there is none.
// The order of the calls is kept.
func (p *pipe) after(f func()) {
	if p.latency == 0 {
		f()
		return
	}
	p.travelling = append(p.travelling, f)
	time.AfterFunc(p.latency, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		first := p.travelling[0] // not always f: timers of one instant run in any order
		p.travelling = p.travelling[1:]
		first()
	})
}

func (p *pipe) wakeLocked() {
	p.readable.Broadcast()
	p.writable.Broadcast()
}

func (p *pipe) resetLocked(drain bool) {
	if p.rerr == nil {
		p.rerr = os.NewSyscallError("read", syscall.ECONNRESET)
		p.drain = drain
	}
	if !drain {
		p.drain = false
		p.buf, p.off, p.arrived = nil, 0, 0
	}
	p.wakeLocked()
}

func (p *pipe) cutLocked() {
	p.resetLocked(true)
	if p.werr == nil {
		p.werr = os.NewSyscallError("write", syscall.ECONNRESET)
	}
}

func (p *pipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		unread := len(p.buf) - p.off
		switch {
		case p.rclosed:
			return 0, net.ErrClosed
		case expired(p.rdeadline):
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		case p.rerr != nil && (!p.drain || unread == 0):
			return 0, p.rerr
		case p.arrived > 0:
			n := copy(b, p.buf[p.off:p.off+p.arrived])
			p.off += n
			p.arrived -= n
			if p.off == len(p.buf) {
				p.buf, p.off = p.buf[:0], 0
			}
			p.writable.Broadcast()
			return n, nil
		case p.fin && unread == 0:
			return 0, io.EOF
		}
		arm(&p.rtimer, p.rdeadline, &p.readable)
		p.readable.Wait()
	}
}

// write appends b; back is the other direction, which a cut takes along.
func (p *pipe) write(b []byte, back *pipe) (n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	mine := false
	defer func() {
		if mine {
			p.writing = false
			p.writable.Broadcast()
		}
	}()
	for {
		switch {
		case p.wclosed != nil:
			return n, p.wclosed
		case expired(p.wdeadline):
			return n, os.ErrDeadlineExceeded
		case p.werr != nil && (n < len(b) || len(b) == 0):
			return n, p.werr
		case p.gone && (n < len(b) || len(b) == 0):
			return n, os.NewSyscallError("write", syscall.EPIPE)
		case n == len(b):
			return n, nil
		case p.rclosed:
			return len(b), nil // the writer can't know yet; the bytes are lost on the way
		case !mine && !p.writing:
			p.writing, mine = true, true
		}
		if mine {
			if k := p.appendLocked(b[n:]); k > 0 {
				n += k
				if p.carry == 0 {
					p.cutLocked()
					back.cutLocked()
				}
				if n == len(b) {
					return n, nil
				}
				continue
			}
		}
		arm(&p.wtimer, p.wdeadline, &p.writable)
		p.writable.Wait()
	}
}

// appendLocked takes as much of b as there is room for.
func (p *pipe) appendLocked(b []byte) int {
	unread := len(p.buf) - p.off
	if p.max >= 0 {
		b = b[:min(len(b), max(p.max-unread, 0))]
	}
	if p.carry >= 0 {
		b = b[:min(int64(len(b)), p.carry)]
		p.carry -= int64(len(b))
	}
	if len(b) == 0 {
		return 0
	}
	// Moving less than half of the buffer keeps the cost per byte constant.
	if p.off > 0 && p.off >= len(p.buf)/2 && len(p.buf)+len(b) > cap(p.buf) {
		p.buf = p.buf[:copy(p.buf, p.buf[p.off:])]
		p.off = 0
	}
	p.buf = append(p.buf, b...)
	if p.latency == 0 {
		p.arriveLocked(len(b))
		return len(b)
	}
	k := len(b)
	p.after(func() { p.arriveLocked(k) })
	return k
}

// arriveLocked lets k more bytes be read, unless a reset or a close took them.
func (p *pipe) arriveLocked(k int) {
	p.arrived = min(p.arrived+k, len(p.buf)-p.off)
	p.readable.Broadcast()
}

// expired reports whether the deadline t has passed.
func expired(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

// arm sees to it that cond is woken at the deadline. The caller holds cond.L and
// is about to wait.
func arm(t **time.Timer, deadline time.Time, cond *sync.Cond) {
	switch {
	case deadline.IsZero():
	case *t == nil:
		*t = time.AfterFunc(time.Until(deadline), func() {
			cond.L.Lock()
			defer cond.L.Unlock()
			cond.Broadcast()
		})
	default:
		(*t).Reset(time.Until(deadline))
	}
}
