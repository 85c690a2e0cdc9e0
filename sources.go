package smtplb

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/internal/discover"
	"github.com/smtplb/smtplb/internal/session"
)

// This file finds the relays behind a domain: a Relay whose Addr is "srv:example.com" stands for the hosts that the domain's SRV records name at
// the moment. What DNS says comes into the pool by the same way as an Update does.

// Resolver is what DNS is asked by. *net.Resolver is one. Both methods must end with their context.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupSRV(ctx context.Context, service, proto, name string) (cname string, addrs []*net.SRV, err error)
}

const (
	lookupTimeout  = 10 * time.Second
	lookupPatience = 2 * time.Second // of a pool's first sends for a domain's first answer, where there are other relays
)

// source is a Relay whose Addr begins with "srv:", at work. It outlives an Update that leaves name, domain, TLS and resolver.
type source struct {
	pool         *Pool
	name, domain string
	implicit     bool // only those that take implicit TLS
	resolver     Resolver

	answers discover.Refresher // guarded by Pool.updates
	latest  atomic.Pointer[answer]
	busy    atomic.Bool   // a lookup is under way
	asked   chan struct{} // closed when the first lookup has ended
}

// answer is what a source knows.
type answer struct {
	targets []discover.Target
	at      time.Time // of the last good one
	err     error     // of the last lookup
	next    time.Time // when to ask again
}

// spec is a relay to be: one that is configured, or that DNS names.
type spec struct {
	relay   *Relay
	origin  *Relay
	source  *source // nil: it is configured
	within  int     // its tier among those of one Relay.Tier
	place   int
	session *session.Config
}

// expand returns the relays of f's configuration, with those that DNS names for the domains in it, and sets f.sources. Who calls it has p.updates, or p is not in use yet.
func (p *Pool) expand(f, old *fleet) []spec {
	c := f.config
	specs := make([]spec, 0, len(c.Relays))
	names := make(map[string]bool, len(c.Relays))
	for i := range c.Relays {
		names[c.Relays[i].name()] = true
	}
	for i := range c.Relays {
		r := &c.Relays[i]
		if c.sessions[i].Network != networkSRV {
			specs = append(specs, spec{relay: r, origin: r, session: c.sessions[i]})
			continue
		}
		s := p.source(r, c.sessions[i].Host, c.Resolver, old)
		f.sources = append(f.sources, s)
		targets := s.latest.Load().targets
		tiers, weights := discover.Tiers(targets), discover.Weights(targets)
		for n, t := range targets {
			found := r.found(t, weights[n])
			if names[found.name()] {
				continue
			}
			names[found.name()] = true
			specs = append(specs, spec{relay: found, origin: r, source: s, within: tiers[n], session: c.sessionOf(found, s.domain, c.sessions[i].LocalName)})
		}
	}
	return specs
}

// source returns the source of r: that of the old fleet if it is the same, one that goes on from its answers if it is the same but for its resolver.
func (p *Pool) source(r *Relay, domain string, resolver Resolver, old *fleet) *source {
	s := &source{pool: p, name: r.name(), domain: domain, implicit: r.TLS == TLSImplicit, resolver: resolver, asked: make(chan struct{})}
	s.latest.Store(new(answer))
	if old == nil {
		return s
	}
	for _, was := range old.sources {
		if was.name != s.name || was.domain != domain || was.implicit != s.implicit {
			continue
		}
		if sameResolver(was.resolver, resolver) {
			return was
		}
		a := was.latest.Load() // another resolver is asked by the next send; until it has answered, what the last one said holds
		s.answers = was.answers
		s.latest.Store(&answer{targets: a.targets, at: a.at})
	}
	return s
}

// found returns the relay for a target of r's domain.
func (r *Relay) found(t discover.Target, weight int) *Relay {
	found := *r
	found.Addr = net.JoinHostPort(t.Host, strconv.Itoa(t.Port))
	found.Name = r.name() + "/" + found.Addr
	found.Weight = int(min(int64(max(r.Weight, 1))*int64(weight), math.MaxInt32))
	found.TLS = TLSStartTLS // never less, see discover.LookupSubmission
	if t.Implicit {
		found.TLS = TLSImplicit
	}
	return &found
}

// sessionOf returns the session's view of a relay that was found by domain. The certificate and SASL's name are the domain's: the host's name comes from DNS, which is not to be trusted (RFC 6186 §6).
func (c *Config) sessionOf(found *Relay, domain, localName string) *session.Config {
	var f faults // the configured relay had none, and the target's name and port are in order
	s := found.validate("", &f)
	s.LocalName, s.Host = localName, domain
	if s.TLSConfig != nil && (found.TLSConfig == nil || found.TLSConfig.ServerName == "") {
		s.TLSConfig.ServerName = domain
	}
	c.dialWith(found, s)
	return s
}

// dialWith sets how s is dialled where r doesn't say.
func (c *Config) dialWith(r *Relay, s *session.Config) {
	switch {
	case r.Dial != nil || s.Network == "unix":
	case c.Dial != nil:
		s.Dial = c.Dial
	default:
		local, _ := netip.ParseAddr(r.LocalAddr)
		s.Dial = (&discover.Dialer{Resolver: c.Resolver, LocalAddr: local}).DialContext
	}
}

// sameResolver compares what may not be comparable.
func sameResolver(a, b Resolver) (same bool) {
	defer func() {
		if recover() != nil {
			same = false
		}
	}()
	return a == b
}

// unnamed reports whether there is a domain for which DNS names no relay now.
func (g *group) unnamed() bool {
	for _, s := range g.sources {
		if len(s.latest.Load().targets) == 0 {
			return true
		}
	}
	return false
}

// trouble tells why DNS names no relay for the domain, and when it is asked again; "" where it does.
func (s *source) trouble() (text string, next time.Time) {
	a := s.latest.Load()
	switch {
	case len(a.targets) > 0:
		return "", time.Time{}
	case a.err != nil:
		return s.name + ": " + oneLine(a.err.Error()), a.next
	}
	return s.name + ": DNS was not asked yet", time.Now()
}

// resolve brings d to the pool's present fleet, and has DNS asked for those of its domains that it was never asked for: d waits for the answers as long as its caller does, but where there are
// other relays only for a moment, once.
func (p *Pool) resolve(ctx context.Context, d *delivery) {
	for {
		d.place.Seen = p.conns.Changes() // before the fleet is read
		d.move()
		if d.torn || len(d.group.sources) == 0 || d.hasty && len(d.group.relays) > 0 || !p.await(ctx, d.group) {
			return
		}
		d.hasty = true
	}
}

// await waits for the first answers for the group's domains. It reports whether there was one to wait for, and time left.
func (p *Pool) await(ctx context.Context, g *group) bool {
	var unasked []*source
	for _, s := range g.sources {
		select {
		case <-s.asked:
		default:
			s.look()
			unasked = append(unasked, s)
		}
	}
	short := ctx
	if len(g.relays) > 0 {
		var cancel context.CancelFunc
		short, cancel = context.WithTimeout(ctx, lookupPatience)
		defer cancel()
	}
	for _, s := range unasked {
		select {
		case <-s.asked:
		case <-short.Done():
		case <-p.ctx.Done():
		}
	}
	return len(unasked) > 0 && ctx.Err() == nil && p.ctx.Err() == nil
}

// look asks DNS, in the background, unless that is under way.
func (s *source) look() {
	if !s.busy.CompareAndSwap(false, true) {
		return
	}
	if !s.pool.gate.spawn(s.pool.ctx, s.lookup) {
		s.busy.Store(false)
	}
}

func (s *source) lookup() {
	defer s.busy.Store(false)
	ctx, cancel := context.WithTimeout(s.pool.ctx, lookupTimeout)
	defer cancel()
	var targets []discover.Target
	err := fmt.Errorf("%w: the Resolver did not return", discover.ErrUnavailable)
	defer func() { // it is the caller's code, and may panic or end the goroutine
		if x := recover(); x != nil {
			err = fmt.Errorf("%w: the Resolver panicked: %v", discover.ErrUnavailable, x)
		}
		s.pool.amend(func() []news {
			defer s.answered()
			return s.note(targets, err)
		})
	}()
	targets, err = discover.LookupSubmission(ctx, s.resolver, s.domain)
	if err == nil && s.implicit && !targets[0].Implicit { // all are of one service
		err = fmt.Errorf("%w but by STARTTLS, and TLSImplicit is configured", discover.ErrNotOffered)
	}
}

// answered lets those go on who wait for the first answer. Who calls it has Pool.updates.
func (s *source) answered() {
	select {
	case <-s.asked:
	default:
		close(s.asked)
	}
}

// note takes what DNS said, and puts another fleet in the place of the present one where that makes a difference. Who calls it has p.updates. It returns what is to be told afterwards.
func (s *source) note(targets []discover.Target, err error) []news {
	p, now, was := s.pool, time.Now(), s.latest.Load()
	if p.ctx.Err() != nil {
		return nil
	}
	changed := s.answers.Note(now, targets, err)
	a := &answer{at: was.at, err: err, next: s.answers.Next()}
	if err == nil {
		a.at = now
	}
	a.targets, _ = s.answers.Targets()
	s.latest.Store(a)
	f := p.fleet.Load()
	if !f.has(s) { // an Update took it away meanwhile
		return nil
	}
	var list []news
	if was.at.IsZero() && was.err == nil || (was.err == nil) != (err == nil) || err != nil && was.err.Error() != err.Error() {
		e := news{RelayEvent{Relay: s.name, State: "resolved", Reason: fmt.Sprintf("DNS names %d relays for %s", len(a.targets), s.domain), Time: now}, slog.LevelInfo}
		if err != nil {
			e.State, e.Reason, e.RetryAt, e.level = "unresolved", oneLine(err.Error()), a.next, slog.LevelWarn
			if len(a.targets) > 0 {
				e.Reason += fmt.Sprintf("; the last answer is kept: %d relays", len(a.targets))
			}
		}
		list = append(list, e)
	}
	if changed {
		more, err := p.replace(f.config, "SRV records of "+s.domain)
		list = append(list, more...)
		if err != nil && p.ctx.Err() == nil { // a Balancer that made a picker for these relays before, and makes none now
			list = append(list, news{RelayEvent{Relay: s.name, State: "unresolved", Reason: oneLine(err.Error()), Time: now}, slog.LevelWarn})
		}
	}
	return list
}

func (f *fleet) has(s *source) bool {
	for _, x := range f.sources {
		if x == s {
			return true
		}
	}
	return false
}

// refresh asks DNS again where it is time to. Domains that no message has asked for yet wait for the first.
func (f *fleet) refresh(now time.Time) {
	for _, s := range f.sources {
		if a := s.latest.Load(); !a.next.IsZero() && !now.Before(a.next) {
			s.look()
		}
	}
}

// DomainStats is what DNS says of a domain that stands for relays ("srv:example.com").
type DomainStats struct {
	Name     string    // of the entry in Config.Relays
	Domain   string    // in A-labels
	Relays   int       // that DNS names, by the last good answer
	Answered time.Time // when the last good answer came; zero: none yet
	Error    string    // of the last lookup, "" where it succeeded
	Next     time.Time // when DNS is asked again, if the pool is in use then; zero: with the next message
}

func (f *fleet) domainStats() []DomainStats {
	var list []DomainStats
	for _, s := range f.sources {
		a := s.latest.Load()
		x := DomainStats{Name: s.name, Domain: s.domain, Relays: len(a.targets), Answered: a.at, Next: a.next}
		if a.err != nil {
			x.Error = oneLine(a.err.Error())
		}
		list = append(list, x)
	}
	return list
}
