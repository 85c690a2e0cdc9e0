package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// In some seeds' endurance there are limits of all scopes, which Updates change, and relays that refuse what is over a limit of theirs, in the words of services.

// countingLimiter counts what became of its leases.
type countingLimiter struct {
	smtplb.Limiter
	given, ended, twice atomic.Int64
}

func (l *countingLimiter) Reserve(ctx context.Context, charges []smtplb.Charge, maxWait time.Duration) (smtplb.Lease, error) {
	x, err := l.Limiter.Reserve(ctx, charges, maxWait)
	if err != nil {
		return nil, err
	}
	l.given.Add(1)
	return &countedLease{Lease: x, l: l}, nil
}

type countedLease struct {
	smtplb.Lease
	l    *countingLimiter
	once sync.Once
}

func (x *countedLease) end() {
	first := false
	x.once.Do(func() {
		first = true
		x.l.ended.Add(1)
	})
	if !first {
		x.l.twice.Add(1)
	}
}

func (x *countedLease) Commit() { x.end(); x.Lease.Commit() }
func (x *countedLease) Return() { x.end(); x.Lease.Return() }

// throttles are what services say of too much mail.
var throttles = []struct {
	at   smtptest.Stage
	code int
	text string
}{
	{smtptest.Mail, 454, "4.7.0 Throttling failure: Maximum sending rate exceeded."}, {smtptest.Mail, 451, "4.7.0 Too many messages, slow down"},
	{smtptest.Mail, 452, "4.4.5 Messages per second"}, {smtptest.Banner, 421, "4.3.2 Too many concurrent SMTP connections"},
	{smtptest.Rcpt, 421, "4.7.28 Our system has detected an unusual rate of unsolicited mail"}, {smtptest.Rcpt, 451, "4.7.650 The mail server has been temporarily rate limited"},
	{smtptest.Mail, 450, "4.2.1 Peak SMTP relay limit exceeded"}, {smtptest.Mail, 450, "4.7.1 Too many messages. Try again in 9 seconds."},
}

// makeLimits gives the configuration limits, or none.
func (c *endurance) makeLimits(r *rand.Rand, cfg *smtplb.Config) {
	if r.IntN(3) > 0 {
		return
	}
	c.limited = true
	if r.IntN(4) == 0 {
		c.limiter = &countingLimiter{Limiter: smtplb.LocalLimiter()}
		cfg.Limiter = c.limiter
	}
	cfg.MaxThrottleWait = oneOf(r, 0, 2*time.Second, 10*time.Second)
	c.relimit(r, cfg)
	for _, s := range c.chaos.relays {
		if r.IntN(2) == 0 {
			x, n := throttles[r.IntN(len(throttles))], float64(1+r.IntN(8))
			over := smtptest.Over(n, time.Second, 1+n/2)
			s.On(x.at).If(func(e *smtptest.Event) bool { return !c.calm.Load() && over(e) }).Reply(x.code, x.text)
		}
	}
}

// relimit changes limits and back-off.
func (c *endurance) relimit(r *rand.Rand, cfg *smtplb.Config) (what string) {
	rate := func() smtplb.Limits {
		l := smtplb.Limits{}
		switch r.IntN(4) {
		case 0:
			l.Messages = oneOf(r, smtplb.PerSecond(float64(2+r.IntN(20))), smtplb.PerMinute(float64(60+r.IntN(600))))
		case 1:
			l.Recipients = smtplb.Rate{N: float64(2 + r.IntN(30)), Burst: float64(1 + r.IntN(5))}
		}
		return l
	}
	narrow := func() smtplb.Limits {
		l := rate()
		l.Concurrency = oneOf(r, 0, 0, 1+r.IntN(8))
		return l
	}
	cfg.Limits, cfg.PerSender = oneOf(r, smtplb.Limits{}, narrow()), oneOf(r, smtplb.Limits{}, rate())
	cfg.Providers = oneOf(r, nil, []smtplb.Provider{{Name: "examples", Domains: []string{"example.com"}, Limits: narrow()}, {Name: "zero", Domains: []string{"zero.example.com"}, Limits: narrow()}})
	for i := range cfg.Relays {
		l := rate()
		l.Connections = oneOf(r, smtplb.Rate{}, smtplb.PerSecond(float64(1+r.IntN(5))))
		cfg.Relays[i].Limits, cfg.Relays[i].NoBackOff = l, r.IntN(6) == 0
	}
	if len(cfg.Streams) > 0 {
		cfg.Streams = append([]smtplb.Stream(nil), cfg.Streams...)
		cfg.Streams[0].Limits = narrow()
	}
	if len(cfg.Routes) > 0 {
		cfg.Routes = append([]smtplb.Route(nil), cfg.Routes...)
		cfg.Routes[0].Limits = narrow()
	}
	return fmt.Sprintf(", limits %+v, senders %+v, providers %+v", cfg.Limits, cfg.PerSender, cfg.Providers)
}

// paid checks that nothing is left of what was paid, and held back.
func (c *endurance) paid() {
	if list := c.pool.Metered(); len(list) > 0 {
		c.Errorf("at the end messages are in use, or claimed, of %v", list)
	}
	if counted, tight := c.pool.Strained(); counted != tight {
		c.Errorf("%d relays and providers are held back, and the pool counts %d", tight, counted)
	}
	if l := c.limiter; l != nil && (l.given.Load() != l.ended.Load() || l.twice.Load() != 0) {
		c.Errorf("%d leases, of which %d were ended, and %d more often than once", l.given.Load(), l.ended.Load(), l.twice.Load())
	}
}

// throttledInTime checks what a send was told that limits have kept.
func (c *endurance) throttledInTime(s *chaosSend) {
	var e *smtplb.SendError
	if errors.Is(s.err, smtplb.ErrThrottled) && errors.As(s.err, &e) && e.RetryAfter <= 0 && e.Receipt.Count(smtplb.Deferred) > 0 {
		c.Errorf("message %s: throttled, and no RetryAfter: %v", s.env.ID, s.err)
	}
}
