package smtplb_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

var (
	staleCycles = flag.Int("stale.cycles", 0, "how many times TestStaleCycles lets a plain connection idle and uses it again; over TLS it is a fiftieth of that; 0: 10,000, and 2,000 under the race detector")
	staleFirst  = flag.Uint64("stale.first", 1, "the first seed of TestStaleCycles")
)

// How many cycles are run with one relay and pool.
const staleRun, staleRunTLS = 250, 10

// TestStaleCycles sends over connections that idled before, to relays that give idle connections up in every way there is, at moments
// around the limits of both sides. That is nobody's fault: no error reaches the caller, each message is stored once, nothing counts
// against the relay and no attempt is used up.
func TestStaleCycles(t *testing.T) {
	t.Parallel()
	seed, plain := *staleFirst, *staleCycles
	if plain == 0 {
		plain = 10_000
		if !smtplb.Thorough() {
			plain = 2_000
		}
	}
	for _, secure := range []bool{false, true} {
		name, cycles, each, again := "plain", plain, staleRun, staleRun
		if secure {
			name, cycles, each, again = "TLS", plain/50, staleRunTLS, staleRunTLS*50
		}
		t.Run(name, func(t *testing.T) {
			var sum staleSum
			for n := 0; n < cycles; n += each {
				synctest.Test(t, func(t *testing.T) { newStale(t, seed, secure, min(each, cycles-n)).run(&sum) })
				if t.Failed() {
					t.Fatalf("seed %d; again: go test -run 'TestStaleCycles/%s' -stale.first=%d -stale.cycles=%d .", seed, name, seed, again)
				}
				seed++
			}
			t.Logf("%d messages, %d connections, of which %d were found dead, %d replaced on the fly", sum.sent, sum.opened, sum.dead, sum.redials)
			if sum.sent >= 1000 && (sum.dead == 0 || sum.redials == 0 || sum.opened < sum.sent/20) {
				t.Error("too little went stale for that to show anything")
			}
		})
	}
}

type staleSum struct{ sent, opened, dead, redials uint64 }

// stale is one run against one relay.
type stale struct {
	*house
	what   string
	cycles int
	limit  time.Duration // after which the relay gives a connection up
	own    time.Duration // after which the pool does; negative: never

	mu       sync.Mutex // guards the following fields
	rand     *rand.Rand
	refusals uint64 // messages for nobody
}

// nobody is a recipient whom the relay refuses: the next transaction on the connection then begins with RSET.
const nobody = "nobody@example.com"

// A goodbye is a way in which a relay gives connections up: after a time, or a number of messages.
type goodbye struct {
	name   string
	opts   func(after time.Duration, n int) []smtptest.Option
	script func(s *smtptest.Server, after time.Duration, n int)
}

const bye = "421 4.3.2 See you later\r\n"

var goodbyes = []goodbye{
	{"FIN", nil, func(s *smtptest.Server, after time.Duration, _ int) { s.On(smtptest.Idle).Delay(after).DropFIN() }},
	{"reset", nil, func(s *smtptest.Server, after time.Duration, _ int) { s.On(smtptest.Idle).Delay(after).Drop() }},
	{"end of the stream", func(after time.Duration, _ int) []smtptest.Option {
		return []smtptest.Option{smtptest.WithSilentIdleTimeout(after)}
	}, nil},
	{"421, close", func(after time.Duration, _ int) []smtptest.Option {
		return []smtptest.Option{smtptest.WithIdleTimeout(after)}
	}, nil},
	{"421, reset", nil, func(s *smtptest.Server, after time.Duration, _ int) {
		s.On(smtptest.Idle).Delay(after).Reply(421, "4.4.2 Idle timeout").ThenDrop()
	}},
	{"421, and nothing more", nil, func(s *smtptest.Server, after time.Duration, _ int) { s.On(smtptest.Idle).Delay(after).Raw(bye) }},
	{"421 behind the 250", nil, func(s *smtptest.Server, _ time.Duration, n int) {
		s.On(smtptest.Idle).Every(n).Reply(421, "4.3.2 See you later")
	}},
	{"421 in the segment of the 250, close", nil, func(s *smtptest.Server, _ time.Duration, n int) {
		s.On(smtptest.EndOfData).Every(n).Raw("250 2.0.0 Ok\r\n" + bye).ThenClose()
	}},
	{"421 in the segment of the 250", nil, func(s *smtptest.Server, _ time.Duration, n int) {
		s.On(smtptest.EndOfData).Every(n).Raw("250 2.0.0 Ok\r\n" + bye)
	}},
	{"421 after so many messages", func(_ time.Duration, n int) []smtptest.Option {
		return []smtptest.Option{smtptest.WithMaxMessages(n)}
	}, nil},
	{"close after so many messages", nil, func(s *smtptest.Server, _ time.Duration, n int) { s.On(smtptest.EndOfData).Every(n).ThenClose() }},
	{"reset after so many messages", nil, func(s *smtptest.Server, _ time.Duration, n int) { s.On(smtptest.EndOfData).Every(n).ThenDrop() }},
	{"421 to RSET", nil, func(s *smtptest.Server, _ time.Duration, n int) {
		s.On(smtptest.Rset).Every(n).Reply(421, "4.3.2 See you later")
	}},
	{"reset at RSET", nil, func(s *smtptest.Server, _ time.Duration, n int) { s.On(smtptest.Rset).Every(n).Drop() }},
	{"reset behind the answer to RSET", nil, func(s *smtptest.Server, _ time.Duration, n int) { s.On(smtptest.Rset).Every(n).ThenDrop() }},
	{"421 so long after the greeting", nil, func(s *smtptest.Server, after time.Duration, _ int) {
		var mu sync.Mutex
		begun := map[int]time.Time{}
		s.On(smtptest.Banner).If(func(e *smtptest.Event) bool {
			mu.Lock()
			defer mu.Unlock()
			begun[e.Conn] = time.Now()
			return false
		}).ThenClose()
		s.On(smtptest.Mail).If(func(e *smtptest.Event) bool {
			mu.Lock()
			defer mu.Unlock()
			return e.Transaction > 1 && time.Since(begun[e.Conn]) >= after
		}).Reply(421, "4.4.2 Connection timeout")
	}},
}

func newStale(t *testing.T, seed uint64, secure bool, cycles int) *stale {
	r := rand.New(rand.NewPCG(seed, 3))
	way := goodbyes[seed%uint64(len(goodbyes))]
	n := 1 + r.IntN(5)
	s := &stale{house: &house{T: t, net: smtptest.NewNetwork()}, cycles: cycles, rand: rand.New(rand.NewPCG(seed, 4)), limit: time.Duration(20+r.IntN(40_000)) * time.Millisecond}
	s.own = oneOf(r, 30*time.Second, s.limit, s.limit-time.Millisecond, s.limit+time.Millisecond, s.limit/2+time.Millisecond, -1)

	var opts []smtptest.Option
	if way.opts != nil {
		opts = way.opts(s.limit, n)
	}
	if r.IntN(3) == 0 {
		opts = append(opts, smtptest.WithoutExtensions("PIPELINING"))
	}
	relay := smtplb.Relay{
		Name: "r0", Addr: "r0.test:25", TLS: smtplb.TLSNone, Breaker: smtplb.Breaker{Consecutive: 1}, // one fault would show
		Conns: smtplb.Conns{Max: oneOf(r, 0, 1, 3), MaxIdle: oneOf(r, 0, 0, 1), MaxMessages: oneOf(r, 0, -1, n, n+1), MaxAge: oneOf(r, 0, -1, s.limit, time.Minute), MaxIdleTime: s.own},
	}
	if secure {
		relay.TLS = oneOf(r, smtplb.TLSImplicit, smtplb.TLSStartTLS)
		opts = append(opts, smtptest.WithTLS())
		if relay.TLS == smtplb.TLSImplicit {
			opts = append(opts, smtptest.WithImplicitTLS())
		}
	}
	server := s.net.NewServer(relay.Addr, opts...)
	s.relays = []*smtptest.Server{server}
	if relay.TLSConfig = server.ClientTLS(); secure {
		relay.TLSConfig.CurvePreferences = cheap
	}
	if way.script != nil {
		way.script(server, s.limit, n)
	}
	server.On(smtptest.Rcpt).For(nobody).Reply(550, "5.1.1 No such user")
	var up, down time.Duration
	if r.IntN(2) == 0 {
		up, down = time.Duration(r.IntN(30))*time.Millisecond, time.Duration(r.IntN(30))*time.Millisecond
		s.net.SetLatency(up, down)
	}
	kind := oneOf(r, "exact", "exact", "tardy", "opaque")
	s.what = fmt.Sprintf("seed %d: %s, after %v or %d messages; %+v, %v; %s connections, %v and %v of latency", seed, way.name, s.limit, n, relay.Conns, relay.TLS, kind, up, down)
	pool, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{relay}, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := s.net.DialContext(ctx, network, addr)
		switch {
		case err != nil:
			return nil, err
		case kind == "tardy":
			return &tardyConn{nc, nc.(tardyLooks)}, nil
		case kind == "opaque":
			return struct{ net.Conn }{nc}, nil
		}
		return nc, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.pool = pool
	return s
}

// tardyConn reads late, so that what came in two segments is read as one: what stood in the second is then in crypto/tls, where nobody
// who looks at the socket sees it.
type tardyConn struct {
	net.Conn
	tardyLooks
}

type tardyLooks interface {
	looks
	Buffered() int
}

func (c *tardyConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		return n, err
	}
	time.Sleep(time.Millisecond)
	for n < len(p) && c.Buffered() > 0 {
		m, err := c.Conn.Read(p[n:])
		if err != nil {
			break
		}
		n += m
	}
	return n, nil
}

// pause is a time around those at which something happens.
func (s *stale) pause() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	around := oneOf(s.rand, s.limit, s.limit, s.limit, s.own, s.limit/2, s.limit-s.own, 10*time.Millisecond, 20*time.Millisecond, 0, 2*s.limit)
	d := around + oneOf(s.rand, 0, -time.Nanosecond, time.Nanosecond, time.Millisecond, -time.Millisecond, time.Duration(s.rand.IntN(40)-20)*time.Millisecond)
	if s.rand.IntN(8) == 0 {
		d = time.Duration(s.rand.Int64N(int64(2 * s.limit)))
	}
	return max(d, 0)
}

// chance is true once in n times; a message to nobody follows.
func (s *stale) chance(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rand.IntN(n) != 0 {
		return false
	}
	s.refusals++
	return true
}

func (s *stale) run(sum *staleSum) {
	var senders sync.WaitGroup
	crowd := 1
	if s.rand.IntN(3) == 0 {
		crowd = 4
	}
	for first := range crowd {
		senders.Go(func() {
			for id := first; id < s.cycles && !s.Failed(); id += crowd {
				r, err := s.pool.Deliver(s.Context(), envelope(fmt.Sprintf("u%d@example.com", id)))
				if err != nil || len(r.Attempts) != 1 || r.Attempts[0].Err != nil || r.Recipients[0].Outcome != smtplb.Accepted {
					s.Errorf("%s: message %d: %v, %+v: %v", s.what, id, r, r.Attempts, err)
				}
				time.Sleep(s.pause())
				if !s.chance(5) {
					continue
				}
				if r, err := s.pool.Deliver(s.Context(), envelope(nobody)); !errors.Is(err, smtplb.ErrPermanent) || len(r.Attempts) != 1 {
					s.Errorf("%s: message %d, to nobody: %v, %+v: %v", s.what, id, r, r.Attempts, err)
				}
				time.Sleep(s.pause())
			}
		})
	}
	senders.Wait()
	stored := map[string]int{}
	for _, m := range s.relays[0].Messages() {
		stored[m.To[0]]++
	}
	for id := range s.cycles {
		if n := stored[fmt.Sprintf("u%d@example.com", id)]; n != 1 && !s.Failed() {
			s.Errorf("%s: message %d is stored %d times", s.what, id, n)
		}
	}
	st := s.pool.Stats().Relays[0]
	if st.Faults != 0 || st.Trips != 0 || st.Breaker != "closed" || st.Cooling || st.Away != 0 || st.Attempts != uint64(s.cycles)+s.refusals {
		s.Errorf("%s: held against the relay: %+v", s.what, st)
	}
	s.close()
	sum.sent += st.Attempts
	sum.opened += st.Opened
	sum.dead += st.Closed["dead"]
	sum.redials += st.Redials
}
