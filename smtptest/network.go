package smtptest

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/smtplb/smtplb/internal/memnet"
)

// Network is a network in memory: relays on it have any address you like, no
// sockets are used, and it works in a testing/synctest bubble, where hours pass
// in no time. Make it, its servers and its connections inside the bubble. Make
// one with NewNetwork. All methods are safe for concurrent use.
//
// Connections behave as TCP ones do: each direction buffers 1 MiB, a killed relay
// resets its connections, dialling an address where nobody listens is refused.
type Network struct {
	net *memnet.Network

	mu   sync.Mutex // protects the following fields
	cuts map[string]wireCut
}

// wireCut is what CutAfter has ordered for an address.
type wireCut struct{ up, down int64 }

// NewNetwork returns a network without servers.
func NewNetwork() *Network {
	return &Network{net: memnet.New(), cuts: make(map[string]wireCut)}
}

// NewServer starts a relay at addr, "relay-a.test:587" say. It panics if the
// address is taken. Close it when done.
func (n *Network) NewServer(addr string, opts ...Option) *Server {
	return newServer(opts, addr, func(a string) (net.Listener, error) { return n.net.Listen(a) })
}

// DialContext connects to a server by its address; network is not looked at. Where
// nobody listens the error wraps syscall.ECONNREFUSED. It has the type of
// net.Dialer's method of the same name.
func (n *Network) DialContext(ctx context.Context, _, addr string) (net.Conn, error) {
	return n.net.Dial(ctx, addr, func(c *memnet.Conn) { // the server may have written before Dial returns
		n.mu.Lock()
		cut, ok := n.cuts[addr]
		n.mu.Unlock()
		if ok && cut.up >= 0 {
			c.CutWriteAfter(cut.up)
		}
		if ok && cut.down >= 0 {
			c.CutReadAfter(cut.down)
		}
	})
}

// CutAfter cuts each connection that is dialled to addr from now on, for both ends, as
// soon as exactly up bytes have gone from the client to the server, or down bytes
// back, counted on the wire: TLS handshakes and records as they are. What went before
// can be read; then both ends find a reset. A negative number is no bound, two of
// them take the order back. Rule.CutReceived and Rule.CutSent count the bytes of SMTP
// instead.
//
//	for n := range int64(2000) {
//		network.CutAfter(relay.Addr, n, -1)
//		… // send, and see that nothing is lost or sent twice
//	}
func (n *Network) CutAfter(addr string, up, down int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if up < 0 && down < 0 {
		delete(n.cuts, addr)
		return
	}
	n.cuts[addr] = wireCut{up, down}
}

// Blackhole makes dials to addr hang until their context ends, or lets them
// through again. Connections that exist are not touched; Server.Pause is for those.
func (n *Network) Blackhole(addr string, on bool) { n.net.Blackhole(addr, on) }

// SetLatency sets how long bytes travel from client to server (up) and back
// (down) on connections that are dialled from now on; a dial takes both together.
// Zero, the default, is no delay.
func (n *Network) SetLatency(up, down time.Duration) { n.net.SetLatency(up, down) }

// SetBuffer sets how many bytes each direction holds before a Write waits, on
// connections that are dialled from now on. 0 is the default of 1 MiB, a negative
// number no bound.
func (n *Network) SetBuffer(bytes int) { n.net.SetBuffer(bytes) }

// Listen announces on addr for a server of the test's own.
func (n *Network) Listen(addr string) (net.Listener, error) { return n.net.Listen(addr) }
