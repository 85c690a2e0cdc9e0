package discover

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultDelay is how long an attempt to connect is left alone before the next one starts (RFC 8305 §5).
const DefaultDelay = 250 * time.Millisecond

// The bounds of one dial. Of a name with more addresses each dial tries others.
const (
	maxAttempts = 16  // addresses
	maxAnswer   = 256 // addresses of an answer that are looked at
	maxNamed    = 8   // addresses in the text of an error
)

// Dialer connects to any host behind a name. Each dial asks the Resolver anew, so what DNS says counts from the next connection on. The zero
// Dialer is ready for use; use one for each relay, and don't copy it. Its methods may be called at any time by anybody.
type Dialer struct {
	Resolver Resolver // nil: net.DefaultResolver

	// Dial connects to one IP address. It must end with its context; it may be called by several goroutines at a time, and by one that is not
	// the caller's. nil: a net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// LocalAddr is where connections come from: addresses of the other family are left out. It binds the connections only where Dial is nil; a
	// Dial function sees to that itself.
	LocalAddr netip.Addr

	Delay time.Duration // between attempts; 0: DefaultDelay

	once sync.Once
	turn atomic.Uint32 // moves on by one with each dial of a name
}

// DialContext connects to addr, "host:port", and has the type of net.Dialer's method of that name. Of several addresses the families take turns, and
// within a family the dials do, so that all the hosts share the load. They are tried one after the other, the next when the last has failed, or has not
// succeeded within the delay, while the others go on (Happy Eyeballs, RFC 8305 §5). The first that connects is the one; the others are told to stop, and closed
// should they connect all the same.
//
// An error names the addresses that were tried. errors.Is finds what lies behind each of them, and Timeout is true of it where it is of all, or where ctx ended so.
// A name that doesn't resolve is a *net.DNSError.
func (d *Dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	family := ""
	switch network {
	case "tcp", "tcp4", "tcp6":
		family = network[len("tcp"):]
	default: // unix
		return d.dial(ctx, network, addr)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, dialError(network, err)
	}
	if _, err := netip.ParseAddr(host); err == nil || host == "" { // net takes the latter for this machine
		return d.dial(ctx, network, addr)
	}
	if local := d.LocalAddr.Unmap(); local.IsValid() {
		own := "6"
		if local.Is4() {
			own = "4"
		}
		if family != "" && family != own {
			return nil, dialError(network, &net.AddrError{Err: "the local address is of the other family", Addr: addr})
		}
		family = own
	}
	// Both families are waited for: RFC 8305 §3 would begin with the first to answer, but net.Resolver gives them together.
	ips, err := orDefault(d.Resolver).LookupNetIP(ctx, "ip"+family, host)
	if err != nil {
		return nil, dialError(network, asDNS(err, host))
	}
	d.once.Do(func() { d.turn.Store(rand.Uint32()) }) // many processes that dial once must not all begin with the same host
	ips = order(ips, family, d.turn.Add(1))
	switch len(ips) {
	case 0:
		return nil, dialError(network, &net.DNSError{Err: "no address that can be used", Name: host, IsNotFound: true})
	case 1:
		return d.dial(ctx, network, join(ips[0], port))
	}
	r := race{d: d, network: network, port: port, ips: ips, done: make(chan struct{}), results: make(chan result)}
	return r.run(ctx)
}

func dialError(network string, err error) error {
	return &net.OpError{Op: "dial", Net: network, Err: err}
}

func join(ip netip.Addr, port string) string { return net.JoinHostPort(ip.String(), port) }

var errNothing = errors.New("the Dial function returned neither a connection nor an error")

func (d *Dialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	dial := d.Dial
	if dial == nil {
		var nd net.Dialer
		if d.LocalAddr.IsValid() && strings.HasPrefix(network, "tcp") {
			nd.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(d.LocalAddr.Unmap(), 0))
		}
		dial = nd.DialContext
	}
	conn, err := dial(ctx, network, addr)
	if err == nil && conn == nil {
		err = dialError(network, errNothing)
	}
	return conn, err
}

// order puts the addresses of an answer into the order in which they are tried (RFC 8305 §4): the families in turns, that of the first address first, and within
// a family from where the turn points to. There they are sorted before: servers and resolvers often rotate their answers, and two rotations can stand still.
func order(answer []netip.Addr, family string, turn uint32) []netip.Addr {
	var v4, v6 []netip.Addr
	var first bool // v6
	for _, ip := range answer[:min(len(answer), maxAnswer)] {
		ip = ip.Unmap()
		if !ip.IsValid() || ip.Is4() && family == "6" || ip.Is6() && family == "4" {
			continue
		}
		if len(v4)+len(v6) == 0 {
			first = ip.Is6()
		}
		if ip.Is4() {
			v4 = append(v4, ip)
		} else {
			v6 = append(v6, ip)
		}
	}
	one, other := rotated(v4, turn), rotated(v6, turn)
	if first {
		one, other = other, one
	}
	ips := make([]netip.Addr, 0, len(one)+len(other))
	for len(one)+len(other) > 0 {
		if len(one) > 0 {
			ips, one = append(ips, one[0]), one[1:]
		}
		if len(other) > 0 {
			ips, other = append(ips, other[0]), other[1:]
		}
	}
	return ips[:min(len(ips), maxAttempts)]
}

func rotated(ips []netip.Addr, turn uint32) []netip.Addr {
	slices.SortFunc(ips, netip.Addr.Compare)
	ips = slices.Compact(ips)
	if len(ips) < 2 {
		return ips
	}
	n := int(turn % uint32(len(ips)))
	return slices.Concat(ips[n:], ips[:n])
}

// race is one dial of a name with several addresses.
type race struct {
	d             *Dialer
	network, port string
	ips           []netip.Addr

	done    chan struct{} // closed when nobody waits for results any more
	results chan result   // not buffered: a connection is either taken over by run, or closed by its attempt
	failed  []attempt
}

type result struct {
	ip   netip.Addr
	conn net.Conn
	err  error
}

type attempt struct {
	addr string
	err  error
}

func (r *race) run(ctx context.Context) (net.Conn, error) {
	actx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer close(r.done)
	delay := r.d.Delay
	if delay <= 0 {
		delay = DefaultDelay
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	next := 0
	start := func() {
		go r.attempt(actx, r.ips[next])
		next++
		timer.Reset(delay)
	}
	start()
	for {
		var tick <-chan time.Time
		if next < len(r.ips) {
			tick = timer.C
		}
		select {
		case <-tick:
			start()
		case res := <-r.results:
			if res.err == nil {
				return res.conn, nil
			}
			r.failed = append(r.failed, attempt{join(res.ip, r.port), res.err})
			switch {
			case ctx.Err() != nil:
				return nil, r.fail(ctx, next)
			case next < len(r.ips):
				start()
			case len(r.failed) == len(r.ips):
				return nil, r.fail(ctx, next)
			}
		case <-ctx.Done():
			return nil, r.fail(ctx, next)
		}
	}
}

// attempt connects to one address, and closes what nobody waits for any more.
func (r *race) attempt(ctx context.Context, ip netip.Addr) {
	res := result{ip: ip, err: errNothing} // should the Dial function end the goroutine
	defer func() {
		select {
		case r.results <- res:
		case <-r.done:
			if res.conn != nil {
				_ = res.conn.Close()
			}
		}
	}()
	res.conn, res.err = r.d.dial(ctx, r.network, join(ip, r.port))
}

// fail is the error of a race that nobody won; started is how many ran. Those that are still running end with ctx.
func (r *race) fail(ctx context.Context, started int) error {
	e := &raceError{attempts: r.failed, untried: len(r.ips) - started, cause: ctx.Err()}
	for _, ip := range r.ips[:started] {
		addr := join(ip, r.port)
		if !slices.ContainsFunc(r.failed, func(a attempt) bool { return a.addr == addr }) {
			e.attempts = append(e.attempts, attempt{addr, e.cause})
		}
	}
	return dialError(r.network, e)
}

// raceError is what became of each address.
type raceError struct {
	attempts []attempt
	untried  int
	cause    error // why the context ended, if it did
}

func (e *raceError) Error() string {
	var b strings.Builder
	for i, a := range e.attempts {
		if i == maxNamed {
			fmt.Fprintf(&b, "; and %d more", len(e.attempts)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		text := a.err.Error()
		if !strings.Contains(text, a.addr) { // net's errors name it
			b.WriteString(a.addr + ": ")
		}
		b.WriteString(text)
	}
	if e.untried > 0 {
		fmt.Fprintf(&b, "; %d not tried", e.untried)
	}
	return b.String()
}

// Unwrap gives the errors of all addresses. The context's comes first, so that its end explains the rest.
func (e *raceError) Unwrap() []error {
	var errs []error
	if e.cause != nil {
		errs = append(errs, e.cause)
	}
	for _, a := range e.attempts {
		errs = append(errs, a.err)
	}
	return errs
}

// Timeout makes one address's refusal count for more than another's silence, unless the context's time was up.
func (e *raceError) Timeout() bool {
	if e.cause != nil {
		return errors.Is(e.cause, context.DeadlineExceeded)
	}
	for _, a := range e.attempts {
		var t interface{ Timeout() bool }
		if !errors.As(a.err, &t) || !t.Timeout() {
			return false
		}
	}
	return true
}

// Temporary completes net.Error.
func (e *raceError) Temporary() bool { return e.Timeout() }
