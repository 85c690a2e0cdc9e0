package discover_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/discover"
	"github.com/smtplb/smtplb/smtptest"
)

// names is a resolver of the test's own.
type names struct {
	mu    sync.Mutex
	hosts map[string][]string
	srv   map[string][]*net.SRV
	errs  map[string]error // by host, or by SRV name
	asked []string
	wait  time.Duration
}

func (n *names) note(ctx context.Context, question, name string) error {
	n.mu.Lock()
	n.asked = append(n.asked, question+" "+name)
	err, wait := n.errs[name], n.wait
	n.mu.Unlock()
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (n *names) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if err := n.note(ctx, network, host); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	texts, ok := n.hosts[host]
	if !ok {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	var ips []netip.Addr
	for _, s := range texts {
		if s == "" {
			ips = append(ips, netip.Addr{})
			continue
		}
		ips = append(ips, netip.MustParseAddr(s))
	}
	return ips, nil
}

func (n *names) LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error) {
	full := "_" + service + "._" + proto + "." + name
	err := n.note(ctx, "srv", full)
	n.mu.Lock()
	defer n.mu.Unlock()
	records, ok := n.srv[full]
	if err == nil && !ok {
		err = &net.DNSError{Err: "no such host", Name: full, IsNotFound: true}
	}
	return full, records, err
}

// watched counts the connections of a Dial function and when they were asked for.
type watched struct {
	dial  func(ctx context.Context, network, addr string) (net.Conn, error)
	begun time.Time

	mu    sync.Mutex
	open  int
	tried []string // "address @ time since begun"
}

func (w *watched) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	w.mu.Lock()
	w.tried = append(w.tried, fmt.Sprintf("%s @%v", addr, time.Since(w.begun)))
	w.mu.Unlock()
	c, err := w.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.open++
	w.mu.Unlock()
	return &watchedConn{Conn: c, w: w}, nil
}

func (w *watched) state() (open int, tried []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.open, slices.Clone(w.tried)
}

type watchedConn struct {
	net.Conn
	w    *watched
	once sync.Once
}

func (c *watchedConn) Close() error {
	c.once.Do(func() {
		c.w.mu.Lock()
		c.w.open--
		c.w.mu.Unlock()
	})
	return c.Conn.Close()
}

// bubble runs f in fake time with a network, and looks for leaks behind it: no goroutine of the dial's may be left, and no connection.
func bubble(t *testing.T, f func(t *testing.T, n *smtptest.Network, w *watched)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := smtptest.NewNetwork()
		w := &watched{dial: n.DialContext, begun: time.Now()}
		f(t, n, w)
		synctest.Wait()
		if open, _ := w.state(); open != 0 {
			t.Errorf("%d connections are left open", open)
		}
		buf := make([]byte, 1<<20)
		for n := 0; ; n++ { // one that has ended may still be on its way out
			s := string(buf[:runtime.Stack(buf, true)])
			if !strings.Contains(s, "discover.(*race)") {
				break
			}
			if n == 1000 {
				t.Errorf("an attempt is left behind:\n%s", s)
				break
			}
			runtime.Gosched()
		}
	})
}

// listen accepts connections at the addresses.
func listen(t *testing.T, n *smtptest.Network, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		ln, err := n.Listen(a)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
	}
}

func dialOnce(t *testing.T, d *discover.Dialer, addr string) string {
	t.Helper()
	c, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.RemoteAddr().String()
}

// What isn't a name with several addresses goes straight to Dial.
func TestDirect(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, w *watched) {
		listen(t, n, "192.0.2.1:25", "[2001:db8::1]:25", "/run/relay")
		r := &names{hosts: map[string][]string{"one.test": {"192.0.2.1"}, "mapped.test": {"::ffff:192.0.2.1"}, "twice.test": {"192.0.2.1", "", "::ffff:192.0.2.1"}}}
		var seen []string
		d := &discover.Dialer{Resolver: r, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			seen = append(seen, network+" "+addr)
			buf := make([]byte, 64<<10)
			if s := string(buf[:runtime.Stack(buf, false)]); !strings.Contains(s, "discover_test.TestDirect") || strings.Contains(s, "discover.(*race)") {
				t.Errorf("%s is dialled in a goroutine of its own:\n%s", addr, s)
			}
			return w.DialContext(ctx, network, addr)
		}}
		for _, a := range []string{"192.0.2.1:25", "[2001:db8::1]:25", "one.test:25", "mapped.test:25", "twice.test:25"} {
			dialOnce(t, d, a)
		}
		c, err := d.DialContext(t.Context(), "unix", "/run/relay")
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		want := []string{"tcp 192.0.2.1:25", "tcp [2001:db8::1]:25", "tcp 192.0.2.1:25", "tcp 192.0.2.1:25", "tcp 192.0.2.1:25", "unix /run/relay"}
		if !slices.Equal(seen, want) {
			t.Errorf("dialled %q, want %q", seen, want)
		}
		if want := []string{"ip one.test", "ip mapped.test", "ip twice.test"}; !slices.Equal(r.asked, want) {
			t.Errorf("asked %q, want %q", r.asked, want)
		}
	})
}

// The families take turns, that of the resolver's first address first, and what fails at once costs no time.
func TestFamiliesInterleave(t *testing.T) {
	for _, first := range []string{"4", "6"} {
		bubble(t, func(t *testing.T, n *smtptest.Network, w *watched) {
			answer := []string{"2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1", "192.0.2.2"}
			if first == "4" {
				slices.Reverse(answer)
			}
			d := &discover.Dialer{Resolver: &names{hosts: map[string][]string{"relay.test": answer}}, Dial: w.DialContext}
			_, err := d.DialContext(t.Context(), "tcp", "relay.test:25")
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Fatalf("everything is refused, and the error is %v", err)
			}
			if took := time.Since(w.begun); took != 0 {
				t.Errorf("five refusals took %v", took)
			}
			_, tried := w.state()
			families := ""
			for _, a := range tried {
				if strings.HasPrefix(a, "[") {
					families += "6"
				} else {
					families += "4"
				}
			}
			want := "64646"
			if first == "4" {
				want = "46466"
			}
			if families != want {
				t.Errorf("the resolver begins with %s: tried %v", first, tried)
			}
			slices.Sort(tried)
			if len(slices.Compact(tried)) != len(answer) {
				t.Errorf("tried %v", tried)
			}
		})
	}
}

// Several hosts behind one name share the load, whatever the resolver does with the order of its answer.
func TestHostsShareTheLoad(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, w *watched) {
		hosts := []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}
		for _, h := range hosts {
			listen(t, n, h+":25")
		}
		for _, rotate := range []int{0, 1, 2} {
			r := &names{hosts: map[string][]string{"relay.test": slices.Clone(hosts)}}
			d := &discover.Dialer{Resolver: r, Dial: w.DialContext}
			count := map[string]int{}
			for range 30 {
				count[dialOnce(t, d, "relay.test:25")]++
				h := r.hosts["relay.test"]
				r.hosts["relay.test"] = slices.Concat(h[rotate:], h[:rotate])
			}
			for _, h := range hosts {
				if count[h+":25"] != 10 {
					t.Errorf("the resolver rotates by %d: %v", rotate, count)
				}
			}
			if len(r.asked) != 30 {
				t.Errorf("30 dials asked %d times", len(r.asked))
			}
		}
		begins := map[string]bool{} // one dial each of many dialers
		for range 100 {
			begins[dialOnce(t, &discover.Dialer{Resolver: &names{hosts: map[string][]string{"relay.test": hosts}}, Dial: w.DialContext}, "relay.test:25")] = true
		}
		if len(begins) != len(hosts) {
			t.Errorf("a hundred dialers all began with %v", begins)
		}
	})
}

// A host that swallows packets costs the delay, not a timeout; the attempt goes on meanwhile.
func TestHappyEyeballs(t *testing.T) {
	for _, delay := range []time.Duration{0, 40 * time.Millisecond} {
		bubble(t, func(t *testing.T, n *smtptest.Network, w *watched) {
			step := delay
			if step == 0 {
				step = 250 * time.Millisecond
			}
			n.Blackhole("[2001:db8::1]:25", true)
			listen(t, n, "192.0.2.1:25")
			d := &discover.Dialer{Resolver: &names{hosts: map[string][]string{"relay.test": {"2001:db8::1", "192.0.2.1"}}}, Dial: w.DialContext, Delay: delay}
			if got := dialOnce(t, d, "relay.test:25"); got != "192.0.2.1:25" {
				t.Errorf("connected to %s", got)
			}
			if took := time.Since(w.begun); took != step {
				t.Errorf("it took %v, want %v", took, step)
			}
		})
	}
	// The first that is asked is slow, but wins over later ones; who connects after that is closed.
	bubble(t, func(t *testing.T, n *smtptest.Network, w *watched) {
		latency := map[string]time.Duration{"[2001:db8::1]:25": 400 * time.Millisecond, "192.0.2.1:25": 300 * time.Millisecond}
		listen(t, n, "[2001:db8::1]:25", "192.0.2.1:25")
		d := &discover.Dialer{Resolver: &names{hosts: map[string][]string{"relay.test": {"2001:db8::1", "192.0.2.1"}}}, Dial: func(_ context.Context, network, addr string) (net.Conn, error) {
			time.Sleep(latency[addr]) // deaf to its context
			return w.DialContext(context.WithoutCancel(t.Context()), network, addr)
		}}
		if got := dialOnce(t, d, "relay.test:25"); got != "[2001:db8::1]:25" {
			t.Errorf("connected to %s", got)
		}
		if took := time.Since(w.begun); took != 400*time.Millisecond {
			t.Errorf("it took %v: somebody waited for the loser", took)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if open, tried := w.state(); open != 0 || len(tried) != 2 {
			t.Errorf("%d connections are open of %v", open, tried)
		}
	})
	// The losers are told to stop, and a failure makes room for the next at once.
	bubble(t, func(t *testing.T, n *smtptest.Network, w *watched) {
		n.Blackhole("[2001:db8::1]:25", true)
		listen(t, n, "[2001:db8::2]:25")
		d := &discover.Dialer{Resolver: &names{hosts: map[string][]string{"relay.test": {"2001:db8::1", "192.0.2.1", "2001:db8::2"}}}, Dial: w.DialContext}
		dials, most := 0, time.Duration(0)
		for dials < 8 {
			begun := time.Now()
			if got := dialOnce(t, d, "relay.test:25"); got != "[2001:db8::2]:25" {
				t.Errorf("connected to %s", got)
			}
			dials, most = dials+1, max(most, time.Since(begun))
			synctest.Wait()
		}
		if most != 250*time.Millisecond { // the refusal of 192.0.2.1 costs nothing
			t.Errorf("the slowest of %d took %v", dials, most)
		}
	})
}

type timeouter interface{ Timeout() bool }

// Every end of the context ends the dial, and is told as what it was.
func TestContextEnds(t *testing.T) {
	answer := map[string][]string{"relay.test": {"2001:db8::1", "192.0.2.1", "192.0.2.2"}}
	for name, wait := range map[string]time.Duration{"in the lookup": time.Hour, "in the race": 0} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network, w *watched) {
				for _, a := range []string{"[2001:db8::1]:25", "192.0.2.1:25"} {
					n.Blackhole(a, true)
				}
				d := &discover.Dialer{Resolver: &names{hosts: answer, wait: wait}, Dial: w.DialContext}
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				_, err := d.DialContext(ctx, "tcp", "relay.test:25")
				var to timeouter
				if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &to) || !to.Timeout() {
					t.Errorf("the deadline gave %v", err)
				}
				if took := time.Since(w.begun); took != 2*time.Second {
					t.Errorf("it took %v", took)
				}
				if wait == 0 {
					for _, a := range []string{"[2001:db8::1]:25", "192.0.2.1:25", "192.0.2.2:25"} {
						if !strings.Contains(err.Error(), a) {
							t.Errorf("%q does not name %s", err, a)
						}
					}
				}
				ctx, cancel = context.WithCancel(t.Context())
				time.AfterFunc(100*time.Millisecond, cancel)
				_, err = d.DialContext(ctx, "tcp", "relay.test:25")
				if !errors.Is(err, context.Canceled) || errors.As(err, &to) && to.Timeout() {
					t.Errorf("cancelling gave %v", err)
				}
				if took := time.Since(w.begun); took != 2100*time.Millisecond {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
	// A dial whose context has ended begins nothing more, also where a failure is seen before the end is.
	bubble(t, func(t *testing.T, _ *smtptest.Network, w *watched) {
		ctx := &lateContext{Context: t.Context()}
		w.dial = func(context.Context, string, string) (net.Conn, error) {
			ctx.over.Store(true)
			return nil, syscall.ECONNREFUSED
		}
		d := &discover.Dialer{Resolver: &names{hosts: answer}, Dial: w.DialContext}
		if _, err := d.DialContext(ctx, "tcp", "relay.test:25"); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		if _, tried := w.state(); len(tried) != 1 {
			t.Errorf("tried %v", tried)
		}
	})
}

// lateContext is over before its channel tells.
type lateContext struct {
	context.Context
	over atomic.Bool
}

func (c *lateContext) Err() error {
	if c.over.Load() {
		return context.Canceled
	}
	return c.Context.Err()
}

// The error says what became of each address, within bounds, and keeps what lies behind it.
func TestErrors(t *testing.T) {
	refused := func(a string) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(a)), Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}
	timedOut := func(a string) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ETIMEDOUT)}
	}
	noFiles := func(string) error { return os.NewSyscallError("socket", syscall.EMFILE) }
	for _, test := range []struct {
		name     string
		fail     []func(string) error
		is       []error
		timeout  bool
		contains []string
	}{
		{"refused", []func(string) error{refused, refused}, []error{syscall.ECONNREFUSED}, false, []string{"192.0.2.1:25", "192.0.2.2:25", "connection refused"}},
		{"timed out", []func(string) error{timedOut, timedOut}, []error{syscall.ETIMEDOUT}, true, []string{"192.0.2.1:25", "192.0.2.2:25"}},
		{"both", []func(string) error{refused, timedOut}, []error{syscall.ECONNREFUSED, syscall.ETIMEDOUT}, false, nil},
		{"both, the other way", []func(string) error{timedOut, refused}, []error{syscall.ECONNREFUSED, syscall.ETIMEDOUT}, false, nil},
		{"no files", []func(string) error{noFiles, refused}, []error{syscall.EMFILE, syscall.ECONNREFUSED}, false, []string{"too many open files"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, _ *smtptest.Network, w *watched) {
				w.dial = func(_ context.Context, _, addr string) (net.Conn, error) {
					if addr == "192.0.2.1:25" {
						return nil, test.fail[0](addr)
					}
					return nil, test.fail[1](addr)
				}
				d := &discover.Dialer{Resolver: &names{hosts: map[string][]string{"relay.test": {"192.0.2.1", "192.0.2.2"}}}, Dial: w.DialContext}
				for range 4 { // either comes first
					_, err := d.DialContext(t.Context(), "tcp", "relay.test:25")
					for _, e := range test.is {
						if !errors.Is(err, e) {
							t.Errorf("%v is not %v", err, e)
						}
					}
					var op *net.OpError
					if !errors.As(err, &op) || op.Op != "dial" || op.Timeout() != test.timeout {
						t.Errorf("%#v: its timeout is not %v", err, test.timeout)
					}
					for _, s := range test.contains {
						if strings.Count(err.Error(), s) == 0 || strings.HasPrefix(s, "192") && strings.Count(err.Error(), s) != 1 {
							t.Errorf("%q, want %q in it", err, s)
						}
					}
				}
			})
		})
	}
	bubble(t, func(t *testing.T, _ *smtptest.Network, w *watched) { // many addresses
		var many []string
		for i := range 200 {
			many = append(many, fmt.Sprintf("192.0.2.%d", i))
		}
		w.dial = func(_ context.Context, _, a string) (net.Conn, error) { return nil, refused(a) }
		d := &discover.Dialer{Resolver: &names{hosts: map[string][]string{"relay.test": many}}, Dial: w.DialContext}
		_, err := d.DialContext(t.Context(), "tcp", "relay.test:25")
		if _, tried := w.state(); len(tried) != 16 || err == nil || strings.Count(err.Error(), "192.0.2.") != 8 || !strings.Contains(err.Error(), "and 8 more") {
			t.Errorf("tried %d addresses: %v", len(tried), err)
		}
		for range 50 {
			_, _ = d.DialContext(t.Context(), "tcp", "relay.test:25")
		}
		_, tried := w.state()
		for i := range tried {
			tried[i], _, _ = strings.Cut(tried[i], " ")
		}
		slices.Sort(tried)
		if n := len(slices.Compact(tried)); n < 60 {
			t.Errorf("51 dials came to %d of 200 addresses", n)
		}
	})
}

// Failures of the resolver are name resolution's, whatever the Resolver returns.
func TestLookupFails(t *testing.T) {
	for name, test := range map[string]struct {
		err     error
		timeout bool
	}{
		"no such host":  {nil, false},
		"server failed": {&net.DNSError{Err: "server misbehaving", IsTemporary: true}, false},
		"timeout":       {&net.DNSError{Err: "i/o timeout", IsTimeout: true}, true},
		"other error":   {errors.New("the registry is on fire"), false},
		"other timeout": {os.ErrDeadlineExceeded, true},
		"no files":      {os.NewSyscallError("socket", syscall.EMFILE), false},
		"empty answer":  {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := &names{errs: map[string]error{"relay.test": test.err}}
			if name == "empty answer" {
				r.hosts = map[string][]string{"relay.test": {}}
			}
			d := &discover.Dialer{Resolver: r, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("dialled") }}
			_, err := d.DialContext(t.Context(), "tcp", "relay.test:25")
			var dns *net.DNSError
			if !errors.As(err, &dns) || dns.IsTimeout != test.timeout || test.err != nil && !errors.Is(err, test.err) {
				t.Errorf("%v (%T)", err, err)
			}
		})
	}
	if _, err := new(discover.Dialer).DialContext(t.Context(), "tcp", "no port"); err == nil {
		t.Error("an address without a port was dialled")
	}
}

// A LocalAddr and a network of one family leave out the other's addresses, and ask for no others.
func TestOneFamily(t *testing.T) {
	for _, test := range []struct{ local, network, asks, want string }{
		{"192.0.2.9", "tcp", "ip4 relay.test", "192.0.2.1:25"},
		{"::ffff:192.0.2.9", "tcp", "ip4 relay.test", "192.0.2.1:25"},
		{"2001:db8::9", "tcp", "ip6 relay.test", "[2001:db8::1]:25"},
		{"", "tcp4", "ip4 relay.test", "192.0.2.1:25"},
		{"", "tcp6", "ip6 relay.test", "[2001:db8::1]:25"},
		{"2001:db8::9", "tcp4", "", ""},
	} {
		bubble(t, func(t *testing.T, n *smtptest.Network, w *watched) {
			listen(t, n, "192.0.2.1:25", "[2001:db8::1]:25")
			r := &names{hosts: map[string][]string{"relay.test": {"2001:db8::1", "192.0.2.1"}}} // doesn't listen to what it is asked for
			d := &discover.Dialer{Resolver: r, Dial: w.DialContext}
			if test.local != "" {
				d.LocalAddr = netip.MustParseAddr(test.local)
			}
			for range 3 {
				c, err := d.DialContext(t.Context(), test.network, "relay.test:25")
				if test.want == "" {
					if err == nil || len(r.asked) != 0 {
						t.Errorf("%+v: %v, asked %v", test, err, r.asked)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if got := c.RemoteAddr().String(); got != test.want || r.asked[0] != test.asks {
					t.Errorf("%+v: connected to %s, asked %v", test, got, r.asked)
				}
				c.Close()
			}
		})
	}
}

// A Dial function that returns nothing at all, or ends its goroutine, is a failed attempt.
func TestOddDialFunctions(t *testing.T) {
	for name, odd := range map[string]func(context.Context, string, string) (net.Conn, error){
		"nothing": func(context.Context, string, string) (net.Conn, error) { return nil, nil },
		"Goexit":  func(context.Context, string, string) (net.Conn, error) { runtime.Goexit(); return nil, nil },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, _ *smtptest.Network, _ *watched) {
				hosts := map[string][]string{"relay.test": {"192.0.2.1", "192.0.2.2"}, "one.test": {"192.0.2.1"}}
				if name == "Goexit" { // it would end the test's own
					delete(hosts, "one.test")
				}
				d := &discover.Dialer{Resolver: &names{hosts: hosts}, Dial: odd}
				for host := range hosts {
					if c, err := d.DialContext(t.Context(), "tcp", host+":25"); c != nil || err == nil || !strings.Contains(err.Error(), "neither") {
						t.Errorf("%s: %v, %v", host, c, err)
					}
				}
			})
		})
	}
}

// With nothing set it is the system's resolver and the system's sockets, from the local address.
func TestSystem(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	for _, d := range []*discover.Dialer{{}, {LocalAddr: netip.MustParseAddr("127.0.0.1")}, {Resolver: &names{hosts: map[string][]string{"localhost": {"::1", "127.0.0.1"}}}}} {
		for _, host := range []string{"127.0.0.1", "localhost"} {
			c, err := d.DialContext(t.Context(), "tcp", net.JoinHostPort(host, port))
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := c.(*net.TCPConn); !ok {
				t.Errorf("a %T", c)
			}
			c.Close()
		}
	}
	if _, err := (&discover.Dialer{LocalAddr: netip.MustParseAddr("192.0.2.77")}).DialContext(t.Context(), "tcp", ln.Addr().String()); err == nil {
		t.Error("connected from an address that this machine doesn't have")
	}
}

// Many dials at a time share one Dialer.
func TestConcurrentDials(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, w *watched) {
		listen(t, n, "192.0.2.1:25", "192.0.2.2:25")
		n.Blackhole("[2001:db8::1]:25", true)
		d := &discover.Dialer{Resolver: &names{hosts: map[string][]string{"relay.test": {"2001:db8::1", "192.0.2.1", "192.0.2.2"}}}, Dial: w.DialContext}
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				c, err := d.DialContext(t.Context(), "tcp", "relay.test:25")
				if err != nil {
					t.Error(err)
					return
				}
				c.Close()
			})
		}
		wg.Wait()
	})
}
