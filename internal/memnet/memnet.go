// Package memnet is a network inside one process: listeners and buffered
// connections with the manners of TCP, for tests that run in fake time
// (testing/synctest) or that want to break a connection at an exact byte.
//
// Every wait is on a sync.Cond or a channel, never on a mutex that somebody
// holds while waiting, so that a goroutine which waits here is durably blocked
// in the sense of testing/synctest. A Network whose connections have a deadline
// or a latency belongs to the bubble in which they are used: the timers are made
// there.
package memnet

import (
	"context"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// DefaultBuffer is the capacity of each direction of a connection in bytes,
// unless SetBuffer says otherwise.
const DefaultBuffer = 1 << 20

// Network is a set of listeners that can be dialled by their address. Make one
// with New. All methods are safe for concurrent use.
type Network struct {
	mu        sync.Mutex // protects the following fields
	listeners map[string]*listener
	holes     map[string]bool
	up, down  time.Duration
	buffer    int
	lastPort  int
}

// New returns an empty network: no latency, DefaultBuffer bytes per direction.
func New() *Network {
	return &Network{
		listeners: make(map[string]*listener),
		holes:     make(map[string]bool),
		buffer:    DefaultBuffer,
		lastPort:  40000,
	}
}

// SetBuffer sets how many bytes each direction of a connection dialled from now
// on holds before a Write waits. Zero means DefaultBuffer, a negative n no bound.
func (n *Network) SetBuffer(bytes int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if bytes == 0 {
		bytes = DefaultBuffer
	}
	n.buffer = bytes
}

// SetLatency sets how long bytes (and the end of a stream, and a reset) travel
// from the dialler to the listener (up) and back (down), for connections dialled
// from now on. A dial takes up + down. Zero or less means no delay.
func (n *Network) SetLatency(up, down time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.up, n.down = max(up, 0), max(down, 0)
}

// Blackhole makes dials to addr hang until their context ends (on), as if a
// firewall swallowed every packet, or lets them through again (off). It does not
// touch connections that exist.
func (n *Network) Blackhole(addr string, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if on {
		n.holes[addr] = true
	} else {
		delete(n.holes, addr)
	}
}

// Listen announces on addr, which is any string; in "host:0" the port is chosen.
// An address in use gives a *net.OpError that wraps syscall.EADDRINUSE.
func (n *Network) Listen(addr string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if host, port, err := net.SplitHostPort(addr); err == nil && port == "0" {
		addr = net.JoinHostPort(host, n.nextPortLocked())
	}
	if n.listeners[addr] != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: Addr(addr), Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
	}
	l := &listener{network: n, addr: Addr(addr)}
	l.changed.L = &l.mu
	n.listeners[addr] = l
	return l, nil
}

func (n *Network) nextPortLocked() string {
	n.lastPort++
	return strconv.Itoa(n.lastPort)
}

// DialContext connects to the listener at addr; network is not looked at. The
// result is a *Conn. Where nobody listens the error is a *net.OpError that wraps
// syscall.ECONNREFUSED; where the context ends first, it wraps the context's
// error.
func (n *Network) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return n.Dial(ctx, addr, nil)
}

// Dial is DialContext. Unless prepare is nil it is called with the client's end before the listener has the other one, so what it sets holds from the first byte on.
func (n *Network) Dial(ctx context.Context, addr string, prepare func(*Conn)) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: Addr(addr), Err: err}
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	n.mu.Lock()
	hole, up, down, buffer := n.holes[addr], n.up, n.down, n.buffer
	local := Addr(net.JoinHostPort("client", n.nextPortLocked()))
	n.mu.Unlock()
	if hole {
		<-ctx.Done()
		return fail(ctx.Err())
	}
	if up+down > 0 {
		t := time.NewTimer(up + down)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return fail(ctx.Err())
		}
	}
	n.mu.Lock()
	l := n.listeners[addr]
	n.mu.Unlock()
	if l == nil {
		return fail(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	}
	client, server := newPair(local, Addr(addr), up, down, buffer)
	if prepare != nil {
		prepare(client)
	}
	if !l.offer(server) {
		return fail(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	}
	return client, nil
}

// Addr is an address on a Network. Its network is "tcp".
type Addr string

// Network returns "tcp".
func (Addr) Network() string { return "tcp" }

// String returns the address as it was given to Listen or DialContext.
func (a Addr) String() string { return string(a) }

type listener struct {
	network *Network
	addr    Addr

	mu      sync.Mutex // protects the following fields; never held while waiting
	changed sync.Cond  // backlog or closed changed
	backlog []*Conn
	closed  bool
}

// offer hands c to the next Accept; false when the listener is closed. Like a
// kernel's, the backlog takes connections whether or not anybody accepts.
func (l *listener) offer(c *Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.backlog = append(l.backlog, c)
	l.changed.Signal()
	return true
}

func (l *listener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.backlog) == 0 {
		if l.closed {
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.addr, Err: net.ErrClosed}
		}
		l.changed.Wait()
	}
	c := l.backlog[0]
	l.backlog = l.backlog[1:]
	return c, nil
}

// Close frees the address and resets the connections nobody has accepted, as a
// kernel does.
func (l *listener) Close() error {
	l.network.mu.Lock()
	if l.network.listeners[string(l.addr)] == l {
		delete(l.network.listeners, string(l.addr))
	}
	l.network.mu.Unlock()

	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return &net.OpError{Op: "close", Net: "tcp", Addr: l.addr, Err: net.ErrClosed}
	}
	l.closed = true
	left := l.backlog
	l.backlog = nil
	l.changed.Broadcast()
	l.mu.Unlock()
	for _, c := range left {
		c.Reset()
	}
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }
