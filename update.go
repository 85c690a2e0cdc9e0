package smtplb

import (
	"log/slog"
	"slices"
	"time"
)

// Update puts another configuration in the place of the present one while mail is being sent. No send fails because of it: an attempt that is under way ends as it would
// have, and what is still to be tried is tried by the new configuration. Update checks c whole, as New does; where it returns an error, nothing has changed.
//
// A relay is the same if its Name is (which defaults to Addr: to move a relay to another address, it needs a name). It keeps its circuit breaker, its figures and, where what they depend
// on is the same, its connections. Where address, TLS, credentials, LocalName or timeouts differ, idle connections are closed with a QUIT, and those in use after
// their message; so they are where there is an Auth or a Dial function, as functions can't be compared. Its breaker, if open, then lets the next message try.
// A relay that is no longer there gets no new mail; its connections end likewise, and its figures go.
//
// Relays that DNS names (see Relay.Addr) come and go in the same way. Hooks.RelayState hears of relays that are added or removed.
//
// MaxMessageSize, SpillSize, SpillDir, Signer, Logger and Hooks stay as they were in New, whatever c says. Calls are carried out one after the other; the Balancer's NewPicker must not
// call Update.
func (p *Pool) Update(c Config) error {
	if p == nil || p.conns == nil {
		return errNotMade
	}
	valid, err := c.validate()
	if err != nil {
		return err
	}
	err = ErrClosed
	p.amend(func() (list []news) {
		if p.ctx.Err() == nil {
			list, err = p.replace(valid, "Update")
		}
		return list
	})
	return err
}

// amend runs f while nobody else replaces the fleet, and then tells what f returns, after what came up meanwhile. When the pool is closed f need not run.
func (p *Pool) amend(f func() []news) {
	var kept, list []news
	defer func() { p.tellAll(kept, list) }()
	select {
	case p.updates <- struct{}{}:
	case <-p.ctx.Done(): // a Balancer that is asked for a picker may be what closes the pool, and that waits for lookups
		return
	}
	p.teller.hold()
	defer func() {
		kept = p.teller.release()
		<-p.updates
	}()
	list = f()
}

// replace puts the fleet of c in the place of the present one, because of why. Who calls it has p.updates, and tells what is returned when it has not any more.
func (p *Pool) replace(c *checked, why string) ([]news, error) {
	old := p.fleet.Load()
	f, err := p.assemble(c, old)
	if err != nil {
		return nil, err
	}
	p.budget.configure(c.Retry.Budget, f.reserve())
	for _, r := range f.relays { // whoever goes by the old fleet is outdated already,
		r.current.Store(r.session)
	}
	p.mailhosts.adopt(c)
	for _, r := range f.warming { // before anybody can send by f what the warm-up doesn't allow
		r.kindle(p, &r.origin.Warmup, c.Store)
	}
	p.fleet.Store(f) // and from here on no turn begins by it
	f.settle(time.Now())
	for _, r := range f.relays {
		if was := old.named(r.name); was != nil {
			r.succeed(was, &f.health)
		}
	}
	p.forget(old, f)
	if p.ctx.Err() != nil { // Close may not have seen the new ones
		p.forget(f, nil)
		return nil, ErrClosed
	}
	p.conns.Rouse() // who waits may wait for the new ones too
	p.attend()
	return f.since(old, why), nil
}

// since tells which relays are in f that were not in old, and the other way round.
func (f *fleet) since(old *fleet, why string) (list []news) {
	now := time.Now()
	add := func(r *relay, state string) {
		list = append(list, news{RelayEvent{Relay: r.name, State: state, Reason: why, Time: now}, slog.LevelInfo})
	}
	for _, r := range old.relays {
		if f.named(r.name) == nil {
			add(r, "removed")
		}
	}
	for _, r := range f.relays {
		if old.named(r.name) == nil {
			add(r, "added")
		}
	}
	return list
}

// succeed brings what outlives was into line with r.
func (r *relay) succeed(was *relay, h *Health) {
	if slow := int64(h.SlowStart); r.limits != was.limits || r.slowStart.Swap(slow) != slow {
		r.full.Store(&r.limits)
		r.slowStart.Store(slow)
		r.resize()
	}
	r.retether()
	if r.breaking != was.breaking {
		r.breaker.Configure(r.breaking.settings())
	}
	if r.session == was.session {
		if h.Interval < 0 && r.down.Load() {
			r.forgetChecks(false)
		}
		return
	}
	r.pool.conns.Flush(r.lane)
	r.offers.Store(nil)
	r.refusesChunks.Store(false)
	r.noRide.Store(false)
	r.rideTrial.Store(0)
	r.noRideUntil.Store(0)
	r.cooledUntil.Store(0)
	r.finalTimeouts.Store(0)
	r.latency.Reset()
	r.envelope.Reset()
	r.connects.reset()
	r.apart.forget()
	r.forgetChecks(true)
	r.breaker.Retry()
}

// sameConnection reports whether a connection that was made for was may be used for r.
func (r *relay) sameConnection(was *relay) bool {
	a, b := r.session, was.session
	sameFunctions := r.origin == was.origin || // DNS has changed, not the configuration
		!r.ownDial && !was.ownDial && a.Auth == nil && b.Auth == nil && sameResolver(r.resolver, was.resolver)
	return sameFunctions &&
		a.Network == b.Network && a.Addr == b.Addr && a.Host == b.Host && a.LocalName == b.LocalName && r.localAddr == was.localAddr &&
		a.TLS == b.TLS && a.PlainAuth == b.PlainAuth && r.tlsConfig == was.tlsConfig &&
		a.Username == b.Username && a.Password == b.Password && slices.Equal(a.Mechanisms, b.Mechanisms) &&
		slices.Equal(a.Ignore, b.Ignore) && a.Timeouts == b.Timeouts
}
