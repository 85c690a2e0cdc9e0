package smtplb_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/smtp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

var (
	chaosSeeds = flag.Int("chaos.seeds", 12, "how many seeds TestChaos runs")
	chaosTame  = flag.Bool("chaos.tame", false, "no panics in callbacks")
	chaosFirst = flag.Uint64("chaos.first", 1, "the first of them")
)

// TestChaos sends through relays to which everything happens that can: every fault at every stage, connections cut at any byte, killed and paused
// relays, callers that leave, panics in callbacks, Close at any moment. The mail that the relays hold then has to agree with
// what the callers were told, nobody may have waited too long, and nothing may be left behind.
//
// A seed fixes the relays, their faults and what is sent; the order of what happens at one instant is the scheduler's, so a failure may need the seed
// a few times: the message says how.
func TestChaos(t *testing.T) {
	t.Parallel()
	for i := range *chaosSeeds {
		seed := *chaosFirst + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			defer func() {
				if p := recover(); p != nil { // a goroutine that is left, say: synctest panics
					fmt.Printf("TestChaos: seed %d: %v\n", seed, p)
					panic(p)
				}
				if t.Failed() {
					t.Logf("again: go test -race -run 'TestChaos$' -chaos.first=%d -chaos.seeds=1 -count=50 .", seed)
				}
			}()
			synctest.Test(t, func(t *testing.T) { newChaos(t, seed).run() })
		})
	}
}

// chaos is one run. Its fields don't change once run has begun, but for the atomics and what mu guards.
type chaos struct {
	*testing.T
	net    *smtptest.Network
	relays []*chaosRelay
	pool   *smtplb.Pool
	calm   atomic.Bool // no faults from here on
	closes bool        // the pool is closed under way
	slow   bool        // callbacks take their time
	panics bool        // callbacks panic, or end their goroutine
	start  time.Time

	mu    sync.Mutex // guards rand, open and most of the relays, and sends
	rand  *rand.Rand // what happens to whom
	sends []*chaosSend
	wrong []int // those of which check found that the truth is another
}

type chaosRelay struct {
	*smtptest.Server
	name       string
	max        int // connections
	open, most int // connections, as the client sees them
}

// chaosSend is one message and what became of it.
type chaosSend struct {
	env     *smtplb.Envelope
	text    string
	limit   time.Time // when it must have ended; zero: nobody said
	ended   bool      // false: a callback ended the goroutine, or panicked
	at      time.Time
	receipt *smtplb.Receipt
	err     error
	broken  bool  // its source fails
	updates int64 // see endurance
}

// dice returns a generator of its own for one goroutine.
func (c *chaos) dice() *rand.Rand {
	c.mu.Lock()
	defer c.mu.Unlock()
	return rand.New(rand.NewPCG(c.rand.Uint64(), 0))
}

// chance is true once in n times, and never once calm has come.
func (c *chaos) chance(n int) bool { return c.pick(n) == 0 }

// pick returns a number below n; n itself once calm has come.
func (c *chaos) pick(n int) int {
	if c.calm.Load() {
		return n
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rand.IntN(n)
}

func oneOf[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func newChaos(t *testing.T, seed uint64) *chaos {
	r := rand.New(rand.NewPCG(seed, 1))
	c := &chaos{T: t, net: smtptest.NewNetwork(), rand: rand.New(rand.NewPCG(seed, 2)), start: time.Now(), closes: r.IntN(3) == 0, slow: r.IntN(4) == 0, panics: r.IntN(2) == 0 && !*chaosTame}
	cfg := smtplb.Config{Dial: c.dial, Retry: smtplb.Retry{Attempts: oneOf(r, 0, 1, -1)}}
	cfg.Balancer = oneOf(r, nil, smtplb.RoundRobin())
	for i := range 1 + r.IntN(4) {
		cfg.Relays = append(cfg.Relays, c.addRelay(r, i))
	}
	cfg.Hooks.AttemptStart = func(context.Context, smtplb.AttemptInfo) func(smtplb.Attempt) {
		c.mayPanic("AttemptStart")
		return func(smtplb.Attempt) { c.mayPanic("AttemptStart's function") }
	}
	cfg.Hooks.Done = func(context.Context, *smtplb.Receipt, error) { c.mayPanic("Done") }
	cfg.Hooks.RelayState = func(smtplb.RelayEvent) {
		if inSend() { // a timer's goroutine is nobody's to catch
			c.mayPanic("RelayState")
		}
	}
	if r.IntN(3) == 0 {
		c.net.SetBuffer(oneOf(r, 64, 500, 5000))
	}
	if r.IntN(3) == 0 {
		c.net.SetLatency(rand.N(50*time.Millisecond), rand.N(50*time.Millisecond))
	}
	var err error
	if c.pool, err = smtplb.New(cfg); err != nil {
		t.Fatal(err)
	}
	return c
}

// inSend reports whether a Deliver is among the callers.
func inSend() bool {
	pc := make([]uintptr, 64)
	frames := runtime.CallersFrames(pc[:runtime.Callers(1, pc)])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, ".Deliver") {
			return true
		}
		if !more {
			return false
		}
	}
}

// mayPanic panics, or ends the goroutine, in a caller's callback.
func (c *chaos) mayPanic(where string) {
	if c.slow && c.chance(5) {
		time.Sleep(time.Duration(c.pick(2000)) * time.Millisecond)
	}
	if !c.panics {
		return
	}
	switch c.pick(60) {
	case 0:
		panic("chaos: " + where)
	case 1:
		runtime.Goexit()
	}
}

func (c *chaos) addRelay(r *rand.Rand, i int) smtplb.Relay {
	name := fmt.Sprintf("r%d", i)
	addr := name + ".test:25"
	// The relay's own rules stay within what is honest: it says 2xx where it has the message, and only there.
	var opts []smtptest.Option
	for _, o := range []struct {
		share int
		opt   smtptest.Option
	}{
		{2, smtptest.WithoutExtensions("PIPELINING")}, {4, smtptest.WithMaxMessages(1 + r.IntN(3))}, {4, smtptest.WithMaxRecipients(1 + r.IntN(40))},
		{6, smtptest.WithIdleTimeout(time.Duration(500+r.IntN(5000)) * time.Millisecond)}, {6, smtptest.WithSilentIdleTimeout(2 * time.Second)},
		{5, smtptest.WithMaxSize(20_000)}, {4, smtptest.WithStrictPipelining()},
	} {
		if r.IntN(o.share) == 0 {
			opts = append(opts, o.opt)
		}
	}
	cfg := smtplb.Relay{
		Name: name, Addr: addr, TLS: smtplb.TLSNone, Tier: r.IntN(3) / 2, Weight: r.IntN(4),
		Conns: smtplb.Conns{
			Max: 1 + r.IntN(3), MaxIdle: oneOf(r, 0, 1, -1), MaxMessages: oneOf(r, 0, 1, 2, 3), MaxIdleTime: oneOf(r, 0, time.Second),
			MaxAge: oneOf(r, 0, 2*time.Second),
		},
		Timeouts: smtplb.Timeouts{Dial: 3 * time.Second, TLS: 3 * time.Second, Greeting: 3 * time.Second, Command: 4 * time.Second, Body: 3 * time.Second, Final: 12 * time.Second},
		Breaker:  smtplb.Breaker{Off: r.IntN(6) == 0, Consecutive: 1 + r.IntN(4), OpenFor: time.Duration(1+r.IntN(10)) * time.Second, MaxOpen: 20 * time.Second},
	}
	if r.IntN(5) == 0 {
		opts = append(opts, smtptest.WithExtensions("PIPELINING", "8BITMIME", fmt.Sprintf("LIMITS RCPTMAX=%d MAILMAX=%d", 1+r.IntN(30), 1+r.IntN(3))))
	}
	secure := r.IntN(5)
	switch secure {
	case 0:
		cfg.TLS, opts = smtplb.TLSStartTLS, append(opts, smtptest.WithTLS())
	case 1:
		cfg.TLS, opts = smtplb.TLSImplicit, append(opts, smtptest.WithImplicitTLS())
	}
	if secure < 2 && r.IntN(2) == 0 {
		opts = append(opts, smtptest.WithAuth("user", "secret"))
		cfg.Auth = c.auth
	}
	s := c.net.NewServer(addr, opts...)
	if secure < 2 {
		cfg.TLSConfig = s.ClientTLS()
		cfg.TLSConfig.CurvePreferences = cheap
	}
	relay := &chaosRelay{Server: s, name: name, max: cfg.Conns.Max}
	c.relays = append(c.relays, relay)
	c.script(r, relay)
	return cfg
}

// script gives a relay its faults.
func (c *chaos) script(r *rand.Rand, s *chaosRelay) {
	s.On(smtptest.Rcpt).If(func(e *smtptest.Event) bool { return strings.Contains(e.Rcpt, "gone") }).Reply(550, "5.1.1 No such user")
	s.On(smtptest.Rcpt).If(func(e *smtptest.Event) bool { return strings.Contains(e.Rcpt, "later") }).Reply(451, "4.2.0 Try again")
	s.On(smtptest.Rcpt).If(func(e *smtptest.Event) bool { return strings.Contains(e.Rcpt, "grey") }).Reply(451, "4.7.1 Greylisted")
	wild := 3 << r.IntN(6) // how rarely something happens
	for range r.IntN(9) {
		stage := smtptest.Stage(1 + r.IntN(int(smtptest.Idle)))
		rule := s.On(stage).If(func(*smtptest.Event) bool { return c.chance(wild) })
		if stage == smtptest.Body {
			rule.After(int64(r.IntN(500)))
		}
		switch r.IntN(14) {
		case 0:
			rule.Reply(421, "4.3.2 Going down")
		case 1:
			rule.Reply(421, "4.3.2 Going down").ThenDrop()
		case 2:
			rule.Reply(451, "4.3.0 Not now")
		case 3:
			rule.Reply(554, "5.7.1 Refused")
		case 4:
			rule.Drop()
		case 5:
			rule.DropFIN()
		case 6:
			rule.DropUnstored()
		case 7:
			rule.Stall()
		case 8:
			rule.Unstored().Stall()
		case 9:
			rule.Delay(time.Duration(r.IntN(20_000)) * time.Millisecond)
		case 10:
			rule.Drip(time.Duration(r.IntN(2000)) * time.Millisecond)
		case 11:
			rule.Kill()
		case 12:
			rule.Raw(oneOf(r, "what?\r\n", "250", "250-half\r\n", "2", "354 go\r\n", "\r\n")).Unstored()
		case 13:
			if stage != smtptest.Body { // a message that is answered before it is there may be stored or not
				rule.ThenClose()
			}
		}
	}
}

// auth is a Relay.Auth with faults.
func (c *chaos) auth(ctx context.Context, _ smtplb.AuthRequest) (smtp.Auth, error) {
	c.mayPanic("Auth")
	switch c.pick(40) {
	case 0:
		<-ctx.Done()
		return nil, ctx.Err()
	case 1:
		return nil, errors.New("no token")
	case 2:
		return smtp.PlainAuth("", "user", "wrong", "unused"), nil
	}
	return chaosAuth{}, nil
}

type chaosAuth struct{}

func (chaosAuth) Start(*smtp.ServerInfo) (string, []byte, error) {
	return "PLAIN", []byte("\x00user\x00secret"), nil
}
func (chaosAuth) Next([]byte, bool) ([]byte, error) { return nil, nil }

// dial is the Config.Dial: it counts, and cuts connections at some byte.
func (c *chaos) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c.mayPanic("Dial")
	switch c.pick(60) {
	case 0:
		<-ctx.Done()
		return nil, ctx.Err()
	case 1:
		return nil, io.ErrClosedPipe
	}
	nc, gone, err := c.connect(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	cuts := nc.(interface {
		CutWriteAfter(int64)
		CutReadAfter(int64)
	})
	switch c.pick(25) {
	case 0, 1:
		cuts.CutWriteAfter(int64(c.pick(3000)))
	case 2, 3:
		cuts.CutReadAfter(int64(c.pick(1500)))
	case 4:
		return &chaosConn{nc, gone}, nil
	}
	return &chaosExactConn{chaosConn{nc, gone}, nc.(looks)}, nil
}

// connect opens a connection and counts it, until gone is called.
func (c *chaos) connect(ctx context.Context, network, addr string) (nc net.Conn, gone func(), err error) {
	i := slices.IndexFunc(c.relays, func(r *chaosRelay) bool { return r.Addr == addr })
	r := c.relays[i]
	c.mu.Lock()
	r.open++
	r.most = max(r.most, r.open)
	c.mu.Unlock()
	gone = sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		r.open--
	})
	nc, err = c.net.DialContext(ctx, network, addr)
	if err != nil {
		gone()
		return nil, nil, err
	}
	return nc, gone, nil
}

type looks interface {
	Alive() bool
	ExactWrite() bool
}

// chaosConn can't be looked into, and is not known to count what it writes.
type chaosConn struct {
	net.Conn
	gone func()
}

func (c *chaosConn) Close() error {
	c.gone()
	return c.Conn.Close()
}

// chaosExactConn tells as much as an in-memory connection does.
type chaosExactConn struct {
	chaosConn
	looks
}

func (c *chaos) run() {
	r := c.dice()
	var senders, others sync.WaitGroup
	for range 2 + r.IntN(12) {
		r := c.dice()
		senders.Go(func() {
			for n := 2 + r.IntN(6); n > 0; n-- {
				time.Sleep(time.Duration(r.IntN(4000)) * time.Millisecond)
				c.send(r)
			}
		})
	}
	over := make(chan struct{})
	for _, s := range c.relays {
		if r := c.dice(); r.IntN(2) == 0 {
			others.Go(func() { c.trouble(r, s, over) })
		}
	}
	if c.closes {
		for range 1 + r.IntN(3) {
			r := c.dice()
			others.Go(func() {
				time.Sleep(time.Duration(r.IntN(25_000)) * time.Millisecond)
				c.shut(r)
			})
		}
	}
	senders.Wait()
	close(over)
	others.Wait()
	c.settle()

	c.calm.Store(true)
	for _, s := range c.relays {
		_ = s.Restart() // an error says that it runs
		s.Resume()
		c.net.Blackhole(s.Addr, false)
	}
	if !c.closes {
		c.recover()
	}
	c.pool.Close()
	for _, s := range c.relays {
		s.Close()
	}
	c.check()
}

// trouble is what befalls a relay as a whole.
func (c *chaos) trouble(r *rand.Rand, s *chaosRelay, over <-chan struct{}) {
	for time.Since(c.start) < time.Hour { // longer than any send: then it is stuck, and the bubble says where
		select {
		case <-over:
			return
		case <-time.After(time.Duration(r.IntN(8000)) * time.Millisecond):
		}
		switch r.IntN(4) {
		case 0:
			s.Kill()
			time.Sleep(time.Duration(r.IntN(3000)) * time.Millisecond)
			_ = s.Restart()
		case 1:
			s.Pause()
			time.Sleep(time.Duration(r.IntN(8000)) * time.Millisecond)
			s.Resume()
		case 2:
			c.net.Blackhole(s.Addr, true)
			time.Sleep(time.Duration(r.IntN(5000)) * time.Millisecond)
			c.net.Blackhole(s.Addr, false)
		case 3:
			s.Kill()
			_ = s.Restart()
		}
	}
}

// shut ends the pool one way or the other.
func (c *chaos) shut(r *rand.Rand) {
	if r.IntN(2) == 0 {
		c.pool.Close()
		return
	}
	ctx, cancel := context.WithTimeout(c.Context(), time.Duration(r.IntN(20_000))*time.Millisecond)
	defer cancel()
	begun := time.Now()
	err := c.pool.Shutdown(ctx)
	if late := time.Since(begun); late > 21*time.Second || err == nil && c.pool.Stats().InFlight > 0 {
		c.Errorf("Shutdown returned %v after %v; %d sends are in flight", err, late, c.pool.Stats().InFlight)
	}
}

// send sends one message and waits for its end, however that comes.
func (c *chaos) send(r *rand.Rand) {
	c.mu.Lock()
	id := len(c.sends)
	s := &chaosSend{}
	c.sends = append(c.sends, s)
	c.mu.Unlock()
	s.text = fmt.Sprintf("From: a@example.com\r\nSubject: %d\r\n\r\n%s", id, strings.Repeat("Text of the message, and so on, and so forth.\r\n", oneOf(r, 1, 1, 1, 20, 600, 3000)))
	s.env = &smtplb.Envelope{
		ID: fmt.Sprint(id), From: "a@example.com", Body: smtplb.Bytes([]byte(s.text)),
		RequireAll: r.IntN(6) == 0, AtLeastOnce: r.IntN(6) == 0, Prefer: oneOf(r, "", "", "r0", "r1"),
	}
	switch r.IntN(8) {
	case 0:
		s.env.Body = smtplb.Reader(iotest.OneByteReader(strings.NewReader(s.text)))
	case 1:
		s.env.Body = smtplb.Reader(io.MultiReader(strings.NewReader(s.text), iotest.ErrReader(errors.New("disk on fire"))))
		s.broken = true
	}
	for n := oneOf(r, 1, 1, 1, 2, 5, 30, 130); len(s.env.To) < n; {
		kind := oneOf(r, "u", "u", "u", "u", "u", "u", "u", "gone", "later", "grey")
		if n == 1 {
			kind = "u"
		}
		s.env.To = append(s.env.To, fmt.Sprintf("%s-%d-%d@example.com", kind, id, r.IntN(2*n)))
	}
	ctx, cancel := context.WithCancel(c.Context())
	defer cancel()
	short := time.Duration(r.IntN(30_000)) * time.Millisecond
	switch r.IntN(4) {
	case 0:
		s.limit = time.Now().Add(short)
		ctx, cancel = context.WithDeadline(ctx, s.limit)
		defer cancel()
	case 1:
		s.limit = time.Now().Add(short)
		time.AfterFunc(short, cancel)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { s.at = time.Now() }()
		defer func() {
			if p := recover(); p != nil && !strings.HasPrefix(fmt.Sprint(p), "chaos: ") {
				panic(p)
			}
		}()
		receipt, err := c.pool.Deliver(ctx, s.env)
		s.receipt, s.err, s.ended = receipt, err, true
	}()
	<-done
}

// settle checks that the pool is at rest.
func (c *chaos) settle() {
	time.Sleep(2 * time.Second) // the longest farewell
	st := c.pool.Stats()
	for range 30 { // a check has a slot, and may be under way
		if !slices.ContainsFunc(st.Relays, func(r smtplb.RelayStats) bool { return r.InFlight > 0 }) {
			break
		}
		time.Sleep(time.Second)
		st = c.pool.Stats()
	}
	if st.InFlight != 0 || st.Waiting != 0 {
		c.Errorf("with nobody sending: %d in flight, %d waiting", st.InFlight, st.Waiting)
	}
	for _, r := range st.Relays {
		if r.InFlight != 0 || r.Waiting != 0 || r.Breaker == "probing" && !c.closes {
			c.Errorf("with nobody sending: %s %s has %d in flight, %d waiting", r.Name, r.State, r.InFlight, r.Waiting)
		}
	}
}

// recover checks that well relays are used again.
func (c *chaos) recover() {
	time.Sleep(5 * time.Hour) // the longest that a breaker stays open
	lowest := 9
	for _, r := range c.pool.Stats().Relays {
		lowest = min(lowest, r.Tier)
	}
	for range 8 * len(c.relays) {
		time.Sleep(2 * time.Second) // for farewells, which occupy a slot
		s := &chaosSend{text: text, env: envelope("x@example.org")}
		if _, err := c.pool.Deliver(c.Context(), s.env); err != nil {
			c.Errorf("long after the trouble: %v", err)
		}
	}
	for _, r := range c.pool.Stats().Relays {
		if r.Tier == lowest {
			if r.Breaker != "closed" {
				c.Errorf("long after the trouble %s is %s: %s", r.Name, r.State, r.Reason)
				c.Logf("%+v", r)
			}
		}
	}
}

// check compares what callers were told with what the relays hold.
func (c *chaos) check() {
	stored := map[string]int{}
	for _, s := range c.relays {
		if s.open != 0 || s.most > s.max {
			c.Errorf("%s: %d connections are open at the end, %d were at once, %d may be", s.name, s.open, s.most, s.max)
		}
		for _, m := range s.Messages() {
			if m.To[0] == "x@example.org" {
				continue
			}
			id, err := strconv.Atoi(m.Header.Get("Subject"))
			if err != nil || id < 0 || id >= len(c.sends) {
				c.Errorf("%s holds a message that nobody sent: %v", s.name, m)
				continue
			}
			x := c.sends[id]
			if string(c.plain(id, m.Data)) != x.text {
				c.Errorf("message %d: %s holds %d bytes of %d, or others", id, s.name, len(m.Data), len(x.text))
			}
			all := map[string]bool{}
			for _, to := range x.env.To {
				all[to] = true
			}
			if x.env.RequireAll && len(m.To) != len(all) {
				c.Errorf("message %d, for all of %d recipients, is stored for %d", id, len(all), len(m.To))
				c.Logf("%v %v\n%s", x.receipt, x.err, c.transcript(s, m.Conn))
			}
			for _, to := range m.To {
				stored[to]++
				if !all[to] {
					c.Errorf("message %d is stored for %s, whom it was not for", id, to)
				}
			}
		}
	}
	for id, s := range c.sends {
		if !s.limit.IsZero() && s.at.After(s.limit.Add(5*time.Second)) && !c.slow {
			c.Errorf("message %d ended %v after its context: %v", id, s.at.Sub(s.limit), s.err)
		}
		c.checkSend(id, s, stored)
	}
}

func (c *chaos) checkSend(id int, s *chaosSend, stored map[string]int) {
	if !s.ended {
		for _, to := range s.env.To {
			if stored[to] > 1 && !s.env.AtLeastOnce {
				c.Errorf("message %d, which panicked: %s holds it %d times", id, to, stored[to])
			}
		}
		return
	}
	if s.receipt == nil || len(s.receipt.Recipients) != len(s.env.To) {
		c.Errorf("message %d: receipt %v, error %v", id, s.receipt, s.err)
		return
	}
	accepted, wrong := 0, false
	for i, r := range s.receipt.Recipients {
		n, good := stored[r.Addr], false
		switch r.Outcome {
		case smtplb.Accepted:
			good = (n == 1 || n > 1 && s.env.AtLeastOnce) && !s.broken
			accepted++
		case smtplb.Failed, smtplb.Deferred:
			good = n == 0
		case smtplb.Unknown:
			good = n <= 1 || s.env.AtLeastOnce
		}
		if !good || r.Addr != s.env.To[i] || (r.Err() == nil) != (r.Outcome == smtplb.Accepted) {
			c.Errorf("message %d: %s is %v by %s at %s (%v), and stored %d times", id, s.env.To[i], r.Outcome, r.Relay, r.Stage, r.Err(), n)
			wrong = true
		}
		if why := misattributed(s.env, s.receipt, i); why != "" {
			c.Errorf("message %d: %s: %+v", id, why, r)
			wrong = true
		}
		if n > 0 && errors.Is(s.err, smtplb.ErrTemporary) {
			c.Errorf("message %d: ErrTemporary, but %s has it", id, r.Addr)
		}
	}
	if (s.err == nil) != (accepted == len(s.env.To)) {
		c.Errorf("message %d: %d of %d accepted, and the error is %v", id, accepted, len(s.env.To), s.err)
	}
	if wrong {
		c.wrong = append(c.wrong, id)
		for _, a := range s.receipt.Attempts {
			c.Logf("message %d: %+v", id, a)
		}
	}
}

// misattributed tells what is wrong with the recipient because of whom another fared as it did; "" where nothing is.
func misattributed(e *smtplb.Envelope, r *smtplb.Receipt, i int) string {
	x := r.Recipients[i]
	if x.Because == "" {
		return ""
	}
	n := slices.Index(e.To, x.Because)
	switch {
	case !e.RequireAll || n < 0 || x.Because == x.Addr:
		return "because of nobody else"
	case r.Recipients[n].Because != "" || r.Recipients[n].Outcome != x.Outcome || r.Recipients[n].Reply != x.Reply || r.Recipients[n].Relay != x.Relay:
		return "because of one who fares otherwise"
	}
	return ""
}

func (c *chaos) transcript(s *chaosRelay, conn int) string {
	for _, t := range s.Transcripts() {
		if t.Conn == conn {
			return t.String()
		}
	}
	return ""
}
