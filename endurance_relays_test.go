package smtplb_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// cheap is the quickest handshake, of which many a test has a great many: P-256 is in assembly, which the race detector doesn't slow down.
var cheap = []tls.CurveID{tls.CurveP256}

// newEndurance makes the house of a seed.
func newEndurance(t *testing.T, seed uint64) *endurance {
	r := rand.New(rand.NewPCG(seed, 3))
	if night := rand.New(rand.NewPCG(seed, 9)); night.IntN(2) == 0 { // a bubble begins at midnight, UTC: in some runs a day ends
		time.Sleep(3*24*time.Hour - time.Duration(night.Int64N(int64(*enduranceFor))))
	}
	c := &endurance{chaos: &chaos{T: t, net: smtptest.NewNetwork(), rand: rand.New(rand.NewPCG(seed, 4)), start: time.Now()}, steady: r.IntN(2) == 0}
	c.until = c.start.Add(*enduranceFor)
	cfg := smtplb.Config{
		Dial:     c.dial,
		Retry:    smtplb.Retry{Attempts: oneOf(r, 0, 0, 1, 2, 5, -1), Budget: oneOf(r, 0.0, 0, 0.05, -1), NoHedging: r.IntN(3) == 0},
		MaxWait:  oneOf(r, 0, 0, 500*time.Millisecond, 5*time.Second),
		Streams:  oneOf(r, nil, []smtplb.Stream{{Name: "bulk", Lag: 10 * time.Second, Bulk: true}, {Name: "fast", Lag: -time.Second}}),
		Balancer: c.balancer(r),
		Health: smtplb.Health{
			Interval: oneOf(r, 0, time.Second, 3*time.Second, -1), Fast: oneOf(r, 0, time.Second), Down: oneOf(r, 0, 2*time.Second), Timeout: oneOf(r, 0, 2*time.Second),
			Rise: r.IntN(3), Fall: r.IntN(3), SlowStart: oneOf(r, 0, 5*time.Second, -1), Panic: oneOf(r, 0, 0.9, -1), Shallow: r.IntN(4) == 0,
		},
	}
	cfg.SpillOver = cfg.MaxWait > 0 && r.IntN(2) == 0
	cfg.Hooks.AttemptStart = func(context.Context, smtplb.AttemptInfo) func(smtplb.Attempt) {
		c.begun.Add(1)
		return func(smtplb.Attempt) {
			c.ended.Add(1)
		}
	}
	cfg.Hooks.Done = func(context.Context, *smtplb.Receipt, error) { c.done.Add(1) }
	c.net.SetLatency(time.Duration(r.IntN(30))*time.Millisecond, time.Duration(r.IntN(30))*time.Millisecond)
	tiers, domain := 1+r.IntN(3), r.IntN(7) == 0
	for i := range 2 + r.IntN(11) {
		c.whole = append(c.whole, c.relay(r, i, tiers, domain))
	}
	cfg.Relays = slices.Clone(c.whole)
	if !c.steady && !domain { // an old name's connections end beside those of the new one
		for _, s := range c.chaos.relays {
			s.max = 1 << 30
		}
	}
	if domain {
		c.zone = &zone{}
		roots := x509.NewCertPool()
		for _, s := range c.relays {
			roots.AddCert(s.Certificate())
		}
		x := c.whole[0]
		x.Name, x.Addr, x.TLS, x.TLSConfig = "d", "srv:example.com", smtplb.TLSAuto, &tls.Config{RootCAs: roots, CurvePreferences: cheap}
		x.Username, x.Password = "", ""
		cfg.Relays, cfg.Resolver = []smtplb.Relay{x}, c.zone
		for _, s := range c.relays {
			s.max = 1 << 30 // they come and go, and so do names
		}
		c.publish(r)
	}
	switch c.attempts = cfg.Retry.Attempts; {
	case c.attempts == 0:
		c.attempts = 3
	case c.attempts < 0:
		c.attempts = len(c.chaos.relays)
	}
	c.makeRoutes(rand.New(rand.NewPCG(seed, 6)), &cfg)
	c.makeLimits(rand.New(rand.NewPCG(seed, 7)), &cfg)
	c.makePolicy(rand.New(rand.NewPCG(seed, 8)), &cfg)
	c.config = cfg
	var err error
	if c.pool, err = smtplb.New(cfg); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *endurance) balancer(r *rand.Rand) smtplb.Balancer {
	return oneOf(r, nil, smtplb.Adaptive(), smtplb.RoundRobin(), smtplb.LeastInFlight(), smtplb.Latency(), smtplb.Random(), smtplb.FirstAvailable(),
		smtplb.Hash(smtplb.HashOptions{}), smtplb.Hash(smtplb.HashOptions{By: smtplb.HashSenderDomain, Load: 1.5}))
}

// relay makes the i-th relay.
func (c *endurance) relay(r *rand.Rand, i, tiers int, domain bool) smtplb.Relay {
	name := fmt.Sprintf("r%d", i)
	addr := name + ".test:587"
	var opts []smtptest.Option
	for _, o := range []struct {
		share int
		opt   smtptest.Option
	}{
		{5, smtptest.WithoutExtensions("PIPELINING")}, {6, smtptest.WithMaxMessages(2 + r.IntN(20))}, {8, smtptest.WithMaxRecipients(1 + r.IntN(10))}, {8, smtptest.WithMaxConns(1 + r.IntN(5))},
		{6, smtptest.WithIdleTimeout(time.Duration(500+r.IntN(5000)) * time.Millisecond)}, {6, smtptest.WithSilentIdleTimeout(2 * time.Second)}, {5, smtptest.WithStrictPipelining()},
	} {
		if r.IntN(o.share) == 0 {
			opts = append(opts, o.opt)
		}
	}
	cfg := smtplb.Relay{
		Name: name, Addr: addr, TLS: smtplb.TLSNone, Tier: r.IntN(tiers), Weight: 1 + r.IntN(5), NoRiding: r.IntN(5) == 0, Chunking: r.IntN(5) == 0,
		Conns:    smtplb.Conns{Max: 1 + r.IntN(6), MaxIdle: oneOf(r, 0, 0, 1, -1), MaxMessages: oneOf(r, 0, 0, 3, 20), MaxIdleTime: oneOf(r, 0, time.Second), MaxAge: oneOf(r, 0, 20*time.Second)},
		Timeouts: smtplb.Timeouts{Dial: 3 * time.Second, TLS: 3 * time.Second, Greeting: 3 * time.Second, Command: 4 * time.Second, Body: 3 * time.Second, Final: 12 * time.Second},
		Breaker:  smtplb.Breaker{Off: r.IntN(8) == 0, Consecutive: 1 + r.IntN(4), OpenFor: time.Duration(1+r.IntN(10)) * time.Second, MaxOpen: 20 * time.Second},
	}
	secure := r.IntN(10)
	switch {
	case domain:
		opts = append(opts, smtptest.WithTLS(), smtptest.WithCertificateFor("example.com"))
	case secure == 0:
		cfg.TLS, opts = smtplb.TLSImplicit, append(opts, smtptest.WithImplicitTLS())
	case secure == 1:
		cfg.TLS, opts = smtplb.TLSStartTLS, append(opts, smtptest.WithTLS())
	}
	if !domain && secure < 2 {
		opts = append(opts, smtptest.WithAuth("user", "secret"))
		cfg.Username, cfg.Password = "user", "secret"
	}
	s := c.net.NewServer(addr, opts...)
	if !domain && secure < 2 {
		cfg.TLSConfig = s.ClientTLS()
		cfg.TLSConfig.CurvePreferences = cheap
	}
	c.chaos.relays = append(c.chaos.relays, &chaosRelay{Server: s, name: name, max: cfg.Conns.Max})
	s.On(smtptest.Rcpt).If(func(e *smtptest.Event) bool { return strings.HasPrefix(e.Rcpt, "gone") }).Reply(550, "5.1.1 No such user")
	s.On(smtptest.Rcpt).If(func(e *smtptest.Event) bool { return strings.HasPrefix(e.Rcpt, "later") }).Reply(451, "4.2.0 Try again")
	s.On(smtptest.Rcpt).If(func(e *smtptest.Event) bool { return strings.HasPrefix(e.Rcpt, "grey") }).Reply(451, "4.7.1 Greylisted")
	return cfg
}

// dial is the Config.Dial. It cuts a connection at some byte, now and then.
func (c *endurance) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	nc, gone, err := c.connect(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	cuts := nc.(interface {
		CutWriteAfter(int64)
		CutReadAfter(int64)
	})
	switch c.pick(100) {
	case 0:
		cuts.CutWriteAfter(int64(c.pick(3000)))
	case 1:
		cuts.CutReadAfter(int64(c.pick(1500)))
	case 2, 3, 4:
		return &chaosConn{nc, gone}, nil
	}
	return &chaosExactConn{chaosConn{nc, gone}, nc.(looks)}, nil
}

// weather is what befalls a relay, one thing after the other. In the end it is well.
func (c *endurance) weather(r *rand.Rand, s *chaosRelay) {
	for !c.over() {
		pause(r, 30*time.Second)
		if c.over() {
			return
		}
		what, end := c.trouble(r, s)
		c.happened("%s: %s", s.name, what)
		pause(r, 15*time.Second)
		end()
		c.happened("%s is well", s.name)
	}
}

// trouble begins one of the things that can befall a relay.
func (c *endurance) trouble(r *rand.Rand, s *chaosRelay) (what string, end func()) {
	stage := oneOf(r, smtptest.Connect, smtptest.Banner, smtptest.Ehlo, smtptest.Mail, smtptest.Rcpt, smtptest.Data, smtptest.EndOfData)
	share := 1 + r.IntN(3) // it happens once in so many times
	rule := func(at smtptest.Stage) *smtptest.Rule {
		return s.On(at).If(func(*smtptest.Event) bool { return share == 1 || c.chance(share) })
	}
	var x *smtptest.Rule
	switch r.IntN(18) {
	case 0:
		s.Kill()
		return "dead", func() { _ = s.Restart() } // an error says that it runs
	case 1:
		s.Pause()
		return "stopped", s.Resume
	case 2:
		c.net.Blackhole(s.Addr, true)
		return "unreachable", func() { c.net.Blackhole(s.Addr, false) }
	case 3:
		s.Kill()
		_ = s.Restart()
		return "restarted", func() {}
	case 4:
		s.SetExtensions("8BITMIME", "ENHANCEDSTATUSCODES")
		return "another EHLO", func() {
			s.SetExtensions("PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "CHUNKING", "SIZE 10485760")
		}
	case 5:
		after := 1 + r.IntN(4)
		what, x = fmt.Sprintf("421 after %d messages", after), s.On(smtptest.Mail).If(func(e *smtptest.Event) bool { return e.Transaction > after }).Reply(421, "4.3.2 Enough")
	case 6:
		what, x = "throttles", rule(smtptest.Mail).Reply(451, "4.7.0 Too much mail")
	case 7:
		what, x = "drops behind the dot, stored", rule(smtptest.EndOfData).Drop()
	case 8:
		what, x = "drops behind the dot, unstored", rule(smtptest.EndOfData).DropUnstored()
	case 9:
		what, x = "closes what is idle", rule(smtptest.Idle).Drop()
	case 10:
		what, x = "turns away", rule(smtptest.Banner).Reply(554, "5.3.2 Not now")
	case 11:
		what, x = fmt.Sprintf("hangs at %v", stage), rule(stage).Stall()
	case 12:
		what, x = "hangs behind the dot, unstored", rule(smtptest.EndOfData).Unstored().Stall()
	case 13, 14:
		d := time.Duration(100+r.IntN(6000)) * time.Millisecond
		what, x = fmt.Sprintf("%v slow at %v", d, stage), rule(stage).Delay(d)
	case 15:
		what, x = fmt.Sprintf("421 at %v", stage), rule(stage).Reply(421, "4.3.2 Going down")
	case 16:
		what, x = fmt.Sprintf("451 at %v", stage), rule(stage).Reply(451, "4.3.0 Not now")
	}
	if x == nil {
		what, x = "out of step behind the dot", rule(smtptest.EndOfData).Raw("354 go\r\n").Stored()
	}
	return fmt.Sprintf("%s, once in %d times", what, share), x.Remove
}

// update changes the configuration.
func (c *endurance) update(r *rand.Rand) {
	pause(r, 10*time.Second)
	c.operator.Lock()
	defer c.operator.Unlock()
	cfg := c.config
	cfg.Relays = slices.Clone(cfg.Relays)
	i := r.IntN(len(cfg.Relays))
	x := &cfg.Relays[i]
	what := fmt.Sprintf("update of %s: ", x.Name)
	switch n := r.IntN(8); {
	case n == 0:
		x.Weight = 1 + r.IntN(9)
		what += fmt.Sprint("weight ", x.Weight)
	case n == 1:
		x.Tier = r.IntN(3)
		what += fmt.Sprint("tier ", x.Tier)
	case n == 2:
		cfg.Balancer = c.balancer(r)
		what = fmt.Sprintf("update: %v", cfg.Balancer)
	case n == 3 && x.Username != "":
		x.Password += "+"
		c.server(x.Addr).SetPassword(x.Username, x.Password)
		what += "password"
	case n == 4:
		cfg.Health.Interval, cfg.Health.SlowStart = oneOf(r, 0, time.Second, -1), oneOf(r, 0, 5*time.Second, -1)
		what = "update: health"
	case n == 5 && !c.steady && c.zone == nil && len(cfg.Relays) > 1:
		cfg.Relays = slices.Delete(cfg.Relays, i, i+1)
		what += "removed"
	case n == 6 && !c.steady && c.zone == nil:
		x.Name += "'"
		what += "renamed"
	case n == 7 && !c.steady && c.zone == nil:
		for _, w := range c.whole {
			if !slices.ContainsFunc(cfg.Relays, func(x smtplb.Relay) bool { return x.Addr == w.Addr }) {
				if w.Username != "" {
					w.Password += "new"
					c.server(w.Addr).SetPassword(w.Username, w.Password)
				}
				cfg.Relays = append(cfg.Relays, w)
				what = "update: added " + w.Name
				break
			}
		}
	}
	if c.routes != nil && x.Weight%2 == 0 {
		what += c.reroute(&cfg)
	}
	if c.limited && r.IntN(3) == 0 {
		what += c.relimit(r, &cfg)
	}
	if c.policy != nil && r.IntN(3) == 0 {
		what += c.repolicy(r, &cfg)
	}
	c.happened("%s", what)
	c.updates.Add(1)
	c.routed.Store(cfg.Routes != nil)
	if err := c.pool.Update(cfg); err != nil {
		c.Errorf("%s: %v", what, err)
	}
	c.updates.Add(1)
	c.config = cfg
	if c.policy != nil {
		c.policy.note(cfg.Relays, time.Now())
	}
}

func (c *endurance) server(addr string) *chaosRelay {
	return c.chaos.relays[slices.IndexFunc(c.chaos.relays, func(s *chaosRelay) bool { return s.Addr == addr })]
}

// admin takes a relay out of service, and puts it back.
func (c *endurance) admin(r *rand.Rand) {
	pause(r, 40*time.Second)
	list := c.pool.Stats().Relays
	if len(list) == 0 {
		return
	}
	name, state := list[r.IntN(len(list))].Name, oneOf(r, smtplb.AdminDrain, smtplb.AdminMaintenance)
	c.happened("%s: %v", name, state)
	if err := c.pool.SetAdmin(name, state); err != nil && c.steady && c.zone == nil {
		c.Errorf("SetAdmin: %v", err)
	}
	pause(r, 10*time.Second)
	_ = c.pool.SetAdmin(name, smtplb.AdminReady) // it may be gone
	c.happened("%s: ready", name)
}

// look asks the pool how it is.
func (c *endurance) look(r *rand.Rand) {
	pause(r, 4*time.Second)
	if n := c.pool.Tokens(); n < 0 {
		c.Errorf("the budget is %v", n)
	}
	st := c.pool.Stats()
	if last := c.pool.LastPlace(); last > len(c.chaos.relays)+8 {
		c.Errorf("%d relays, and place %d", len(st.Relays), last)
	}
	for _, x := range st.Relays {
		if x.InFlight < 0 || x.Idle < 0 || x.Waiting < 0 || x.Limit > 0 && x.InFlight+x.Idle > 2*6 || x.EffectiveWeight > float64(x.Weight) {
			c.Errorf("%+v", x)
		}
	}
	p, err := c.pool.Explain(c.Context(), envelope("a@example.com"))
	share := 0.0
	for _, x := range p.Candidates {
		share += x.Share
	}
	if err != nil || share != 0 && (share < 0.99 || share > 1.01) { // 0: by load
		c.Errorf("Explain: shares of %v, %v: %v", share, err, p)
	}
	if r.IntN(8) == 0 {
		ctx, cancel := context.WithTimeout(c.Context(), time.Duration(r.IntN(8000))*time.Millisecond)
		defer cancel()
		begun := time.Now()
		_ = c.pool.Ping(ctx) // relays are sick
		if late := time.Since(begun); late > 8*time.Second+grace {
			c.Errorf("Ping took %v", late)
		}
	}
}

// publish writes another set of records. The first relay stays.
func (c *endurance) publish(r *rand.Rand) {
	var records []*net.SRV
	for i := range c.chaos.relays {
		if i == 0 || r.IntN(3) > 0 {
			records = append(records, record(i, 10*r.IntN(2), 1+r.IntN(5)))
		}
	}
	c.zone.set("submission", records...)
}

// dns changes what the domain's records say, where there is a domain.
func (c *endurance) dns(r *rand.Rand) {
	pause(r, time.Minute)
	switch {
	case c.zone == nil:
	case r.IntN(4) == 0:
		c.happened("DNS fails")
		c.zone.fail(errors.New("server misbehaving"))
	default:
		c.happened("other records")
		c.publish(r)
	}
}

// books compares what the hooks heard with what the receipts say, and the pool's own figures.
func (c *endurance) books() {
	begun, ended, attempted := c.begun.Load(), c.ended.Load(), c.attempted.Load()
	if begun != ended || begun != attempted {
		c.Errorf("%d attempts have begun, %d have ended, and the receipts tell of %d", begun, ended, attempted)
	}
	if done, all, sends := c.done.Load(), c.deliveries.Load(), int64(c.pool.Stats().Sends); done != all || sends > all {
		c.Errorf("%d receipts, %d of them by Done, and Stats has %d sends", all, done, sends)
	}
	if n := c.pool.Stats().Failovers; n > uint64(begun) {
		c.Errorf("%d failovers of %d attempts", n, begun)
	}
}

// tell prints what reproduces a failure: the configuration, what happened, and what was said of the messages that are concerned.
func (c *endurance) tell() {
	c.Logf("%d messages; retry %+v, max wait %v, spill over %v, balancer %v, health %+v", len(c.sends), c.config.Retry, c.config.MaxWait, c.config.SpillOver, c.config.Balancer, c.config.Health)
	for _, w := range c.whole {
		c.Logf("%v %+v %+v", w, w.Conns, w.Breaker)
	}
	c.Logf("what happened:\n%s", strings.Join(c.log, "\n"))
	for _, id := range c.wrong[:min(len(c.wrong), 5)] {
		x := c.sends[id]
		c.Logf("message %d ended at %v: %v", id, x.at.Sub(c.start), x.err)
		for _, s := range c.chaos.relays {
			for _, t := range s.Transcripts() {
				if text := t.String(); strings.Contains(text, fmt.Sprintf("-%d-0@", id)) {
					c.Logf("%s: %s", s.name, text)
				}
			}
		}
	}
}
