package smtplb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

// This file tells what would become of a message, without sending it. It asks what a send asks, in the same way: choose.

// Plan is what Explain found. It holds neither recipients nor credentials.
type Plan struct {
	Time       time.Time
	Route      string         // the name of the Route that counts, of one of them where several lead to the same relays; "" where none does
	Decided    Outcome        // what that Route settles without a relay: Failed, Deferred or Discarded; the zero Outcome where it is for relays to say
	Tier       int            // of the candidates
	Candidates []PlanRelay    // one of them is tried first; the likeliest comes first
	Skipped    []SkippedRelay // the others
	By         string         // what decides among the candidates: "weight", "weight, load where a relay is behind" (Adaptive), "load", "latency and load", "key" (Hash), "order" (FirstAvailable), or what Stats calls the Balancer
	Panics     bool           // so much of the tier is sick that its circuit breakers are ignored, see Health.Panic
	Waits      bool           // all candidates are full: the send waits for the first free connection of any of them
	MaxWait    time.Duration  // where it Waits: how long, at the most; 0: as long as its context lasts
	Then       string         // what it does after MaxWait, in words
	Limit      string         // where it Waits for a limit rather than a connection: which, in words (of several as in ThrottledError); also where it would not wait for so long, and is deferred with ErrThrottled at once
	NextToken  time.Time      // when that limit allows it, if nothing else uses it up; zero where that is not known
	Hopeless   bool           // there is no candidate because no relay offers what the message needs: it would fail
	NextChance time.Time      // where there is no candidate: when a relay may be tried again; zero where that is not known
	RetryAfter time.Duration  // what Deliver's error would say then
	Recipients int            // that the plan is for
	Others     []Plan         // of the recipients who leave by other routes
	Provider   string         // whose all of the plan's recipients are, see Config.Providers; "" where they have none in common, or one is not known. MX records are not asked for, but remembered
}

// PlanRelay is a relay that a message may be handed to now.
type PlanRelay struct {
	Name            string
	Tier            int
	Weight          int
	EffectiveWeight float64 // what the balancer goes by now
	Slow            float64 // see RelayStats.Slow
	Share           float64 // of such messages that this relay is tried first for: 0 to 1. Where the choice is settled, as with Hash or FirstAvailable, one has all, as has the only candidate. 0 for all where only load tells, where a Balancer of your own does, or where it Waits for one of several
	InFlight        int     // connections in use by sends
	Limit           int     // of connections; 0: none
	Idle            int     // connections that are open and can be used at once
	Note            string  // why it is a candidate although something speaks against it, or before others
}

// SkippedRelay is a relay that a message would not be handed to now.
type SkippedRelay struct {
	Name     string // of a relay, or of a Config.Relays entry by which DNS names none
	Tier     int
	Why      string
	Until    time.Time // when that may end, or is looked at again; zero where that is not known
	Failover bool      // it may be tried after the candidates
}

// Explain is a dry run of Deliver: which relays may take e now, who would be tried first, who is skipped and why, and when the next chance comes. It connects to nothing, reads no body, counts
// nothing and uses up nobody's turn; what a message's text needs of a relay (8BITMIME, SMTPUTF8 for its header, SIZE) is therefore not in it, but what the addresses need is. As things
// move on, a Plan is true at its Time only.
//
// The error is an *EnvelopeError where e's addresses are at fault, ErrClosed after Close or Shutdown, or that of ctx.
func (p *Pool) Explain(ctx context.Context, e *Envelope) (Plan, error) {
	if p == nil || p.conns == nil {
		return Plan{}, errNotMade
	}
	if e == nil {
		return Plan{}, &EnvelopeError{Reason: "the envelope is nil"}
	}
	if ctx.Err() != nil {
		return Plan{}, contextError(ctx)
	}
	if p.gate.isShut() {
		return Plan{}, ErrClosed
	}
	d := newDelivery(p, e)
	defer d.free()
	if err := d.checkAddresses(); err != nil {
		return Plan{}, err
	}
	if err := d.checkTogether(); err != nil {
		return Plan{}, err
	}
	if d.fleet.operators != nil {
		d.recallProviders()
	}
	plans := d.plans(time.Now())
	if len(plans) > 1 {
		plans[0].Others = plans[1:]
	}
	return plans[0], nil
}

// plans tells how each part of d would be sent. Its body was not read.
func (d *delivery) plans(now time.Time) (list []Plan) {
	ruled := make(map[RouteError]int) // by a route's words, what its plan is in list, and one more
	d.obey()
	for i := range d.rcpts {
		x := &d.rcpts[i]
		var said *RouteError
		if !errors.As(x.err, &said) {
			continue
		}
		if ruled[*said] == 0 {
			list = append(list, Plan{Time: now, Route: said.Route, Decided: x.outcome, Then: said.Reason})
			ruled[*said] = len(list)
		}
		list[ruled[*said]-1].Recipients++
	}
	switch {
	case d.pending == 0:
		return list
	case d.follow():
		return append(list, d.plan(now))
	}
	for _, x := range d.parts() {
		list = append(list, x.plan(now))
		x.free()
	}
	return list
}

// plan tells how d would be sent. Its body was not read.
func (d *delivery) plan(now time.Time) Plan {
	plan := Plan{Time: now, Route: d.route.name, Recipients: d.pending, Provider: d.provider()}
	d.place.Bulk = d.fleet.streams[d.env.Stream].Bulk
	d.fare = d.price()
	if wait := d.tooDear(); wait > 0 {
		plan.deny(d, wait)
		return plan
	}
	chosen := d.choose()
	full := func(r *relay) bool { return d.skip.Has(chosen.at(r)) }
	named := func(r *relay) bool { return chosen != nil && d.lanes.Has(r.member) }
	if chosen != nil {
		plan.Tier = chosen.number
		plan.Waits = true
		for _, r := range chosen.relays {
			plan.Waits = plan.Waits && (!named(r) || full(r))
		}
		plan.Panics = chosen.panics.Load()
		if plan.Waits {
			plan.MaxWait, plan.Then = d.patience(chosen)
			plan.limited(d)
		}
	}
	for _, r := range d.group.relays {
		if !named(r) || full(r) && !plan.Waits {
			continue
		}
		c := d.pool.conns.Stats(r.lane)
		x := PlanRelay{
			Name: r.name, Tier: chosen.number, Weight: r.weight, Slow: r.slow(), EffectiveWeight: chosen.picks.Load().weights[chosen.at(r)],
			InFlight: c.Held, Limit: r.Limit(), Idle: c.Idle,
		}
		x.Note = d.note(r)
		plan.Candidates = append(plan.Candidates, x)
	}
	if chosen != nil {
		plan.shares(d, chosen)
	}
	for _, t := range d.group.tiers {
		for _, r := range t.relays {
			switch {
			case !named(r):
				x := d.skipped(r, chosen)
				x.Tier = t.number
				plan.Skipped = append(plan.Skipped, x)
			case full(r) && !plan.Waits:
				x := SkippedRelay{Name: r.name, Tier: t.number, Failover: true}
				x.Why, x.Until = d.fullness(r)
				plan.Skipped = append(plan.Skipped, x)
			}
		}
	}
	for _, s := range d.group.sources {
		if text, next := s.trouble(); text != "" {
			tier := d.fleet.config.tierOf(s.name)
			if d.group.order != nil {
				tier = slices.Index(d.group.order, s.name)
			}
			plan.Skipped = append(plan.Skipped, SkippedRelay{Name: s.name, Tier: tier, Why: strings.TrimPrefix(text, s.name+": "), Until: next})
		}
	}
	if chosen != nil {
		return plan
	}
	err := d.nobody()
	if err == nil {
		plan.Hopeless = true
		return plan
	}
	if throttled := (*ThrottledError)(nil); errors.As(err, &throttled) {
		plan.Limit = throttled.Reason
	}
	plan.RetryAfter = d.retryAfter
	for _, x := range plan.Skipped {
		if !x.Until.IsZero() && (plan.NextChance.IsZero() || x.Until.Before(plan.NextChance)) {
			plan.NextChance = x.Until
		}
	}
	return plan
}

// limited tells of the limit that d waits for.
func (p *Plan) limited(d *delivery) {
	wait := d.throttledFor()
	if wait == 0 {
		return
	}
	x := d.limitReached()
	p.Limit = x.text
	switch {
	case x.vague:
		return
	case wait == connpool.Never:
		wait = x.wait
	}
	p.NextToken = p.Time.Add(wait)
	switch most := d.fleet.maxThrottle; {
	case most < 0:
	case p.MaxWait == 0 || most < p.MaxWait:
		p.MaxWait, p.Then = most, "is deferred"
	}
}

// deny tells of the limit that d doesn't wait for, as that takes so long.
func (p *Plan) deny(d *delivery, wait time.Duration) {
	denied := d.overLimit(wait)
	p.Limit, p.RetryAfter, p.NextToken = denied.Reason, denied.RetryAfter, p.Time.Add(denied.RetryAfter)
	p.NextChance = p.NextToken
}

// shares tells how the first is chosen among the candidates, which are of the chosen tier.
func (p *Plan) shares(d *delivery, chosen *tier) {
	own, _ := d.fleet.balancer.(*ownBalancer)
	if own != nil {
		p.By = own.by
	} else {
		p.By = balancerName(d.fleet.balancer)
	}
	n := len(p.Candidates)
	switch {
	case n == 1:
		p.Candidates[0].Share = 1
	case p.Waits || own == nil: // nobody can tell
	case own.keeps:
		picked := chosen.pick(d.info(d.skip, 1))
		for i := range p.Candidates {
			if x := &p.Candidates[i]; picked != nil && x.Name == picked.name {
				x.Share = 1
			}
		}
	case own.by == byWeight || own.by == byBoth:
		sum := 0.0
		for _, x := range p.Candidates {
			sum += x.EffectiveWeight
		}
		for i := range p.Candidates {
			if x := &p.Candidates[i]; sum > 0 {
				x.Share = x.EffectiveWeight / sum
			} else {
				x.Share = 1 / float64(n)
			}
		}
	}
	slices.SortStableFunc(p.Candidates, func(a, b PlanRelay) int {
		return cmp.Or(cmp.Compare(b.Share, a.Share), cmp.Compare(b.EffectiveWeight, a.EffectiveWeight))
	})
}

// patience is for how long d waits for the relays in d.lanes, of the chosen tier, and what it does then.
func (d *delivery) patience(chosen *tier) (most time.Duration, then string) {
	most = d.fleet.maxWait
	if r := d.fleet.byName[d.prefer]; r != nil && d.lanes.Has(r.member) {
		if most == 0 || most > maxPreferWait {
			most = maxPreferWait
		}
		return most, "takes any relay"
	}
	switch {
	case most == 0:
		return 0, ""
	case d.fleet.spill && d.spills(chosen):
		return most, "takes a relay of the next tier too"
	}
	return most, "is deferred"
}

// spills reports whether there is a tier after the chosen one for d.
func (d *delivery) spills(chosen *tier) bool {
	lanes := slices.Clone(d.lanes)
	defer func() { copy(d.lanes, lanes) }()
	return d.after(chosen) != nil
}

// note tells why r is a candidate although something speaks against it, or before others.
func (d *delivery) note(r *relay) string {
	var notes []string
	if r.name == d.prefer {
		notes = append(notes, "the envelope prefers it")
	}
	if why, _ := d.speaksAgainst(r); why != "" {
		notes = append(notes, why)
	}
	if text := r.warmSays(time.Now()); text != "" {
		notes = append(notes, text)
	}
	switch state := r.state(); state {
	case stateOpen, stateSlow:
		notes = append(notes, state+": "+r.why(state))
	case stateHalfOpen:
		if !r.ignored.Load() {
			state += ", this message would be its probe"
		}
		notes = append(notes, state+": "+r.why(stateHalfOpen))
	}
	return strings.Join(notes, "; ")
}

// fullness tells why r has no free connection for d, or is left alone with those that it has.
func (d *delivery) fullness(r *relay) (why string, until time.Time) {
	if at := r.rest.Load(); at != 0 && d.pool.conns.Free(r.lane, d.place.Bulk) {
		until = time.Unix(0, at)
		return fmt.Sprintf("slow %.0f×: while others are free it gets a message now and then, the next one from %s on", r.slow(), until.Format(time.TimeOnly)), until
	}
	if text := d.dues(r); text != "" {
		if wait := d.owed(r); wait != connpool.Never {
			until = time.Now().Add(wait)
		}
		return text, until
	}
	text := fmt.Sprintf("full: %d of %d connections are in use", r.InFlight(), r.Limit())
	if n := r.limits.Reserved; d.place.Bulk && n > 0 {
		text += fmt.Sprintf(", and %d are not for bulk", n)
	}
	return text, time.Time{}
}

// skipped tells why r is not among the candidates, which are of the chosen tier; nil where there are none.
func (d *delivery) skipped(r *relay, chosen *tier) SkippedRelay {
	x := SkippedRelay{Name: r.name}
	if d.outside.Has(r.index) {
		x.Why = "not all of the recipients may leave by it"
		return x
	}
	if lacks := r.lacks(d); lacks != nil {
		x.Why = "what it last offered isn't enough: " + lacks.Error()
		if o := r.offers.Load(); o != nil {
			x.Until = o.at.Add(offerAge) // then it is asked again
		}
		return x
	}
	if x.Why = r.trouble(); x.Why != "" {
		x.Why = strings.TrimPrefix(x.Why, r.name+" is ")
		x.Until = r.retryAt()
		return x
	}
	if d.closed(r) {
		x.Why = d.dues(r)
		if wait := d.owed(r); wait != connpool.Never {
			x.Until = time.Now().Add(wait)
		}
		return x
	}
	if tiers := d.tiers(); !slices.ContainsFunc(tiers, func(t *tier) bool { return slices.Contains(t.relays, r) }) {
		x.Why = fmt.Sprintf("a warm-up keeps what is more than its cap in tier %d (OverflowTier)", tiers[len(tiers)-1].number)
		return x
	}
	x.Failover = true
	if x.Why, x.Until = d.speaksAgainst(r); x.Why != "" {
		x.Why += ": it is used only where nothing else is left"
		return x
	}
	if p := d.fleet.byName[d.prefer]; chosen != nil && p != nil && d.lanes.Has(p.member) {
		x.Why = "the envelope prefers " + p.name
		return x
	}
	if chosen == nil { // its breaker let mail through a moment after choose had asked
		x.Why = "was not ready"
		return x
	}
	x.Why = fmt.Sprintf("tier %d can take it", chosen.number)
	if d.group.place(r) == chosen.number {
		x.Why = "a server to which DNS gives priority can take it"
	}
	return x
}

// speaksAgainst tells what makes r the last resort for d.
func (d *delivery) speaksAgainst(r *relay) (why string, until time.Time) {
	if r.cooling() {
		until = time.Unix(0, r.cooledUntil.Load())
		return "asked for less mail, left alone until " + until.Format(time.TimeOnly), until
	}
	if until, ok := r.apart.endOf(d.msg.fromDomain); ok {
		return "refused this sender's domain, left alone for it until " + until.Format(time.TimeOnly), until
	}
	return "", time.Time{}
}

// tierOf returns the tier of the entry of that name.
func (c *Config) tierOf(name string) int {
	for i := range c.Relays {
		if r := &c.Relays[i]; r.name() == name {
			return r.Tier
		}
	}
	return 0
}

// isShut reports whether no more sends are admitted.
func (g *gate) isShut() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed
}

// clock is t as the plan's lines tell it: with its date where that is another than the plan's.
func (p *Plan) clock(t time.Time) string {
	if p.Time.In(t.Location()).Format(time.DateOnly) != t.Format(time.DateOnly) {
		return t.Format(time.DateTime)
	}
	return t.Format(time.TimeOnly)
}

// String tells the plan in lines for people.
func (p Plan) String() string {
	var b strings.Builder
	p.write(&b, p.Route != "" || slices.ContainsFunc(p.Others, func(x Plan) bool { return x.Route != "" }), len(p.Others) > 0)
	return b.String()
}

// write writes the plan's lines, and those of the others. routed: they tell of their routes; parted: it is one of several, which may be for no other reason than whose mailboxes they are for.
func (p *Plan) write(b *strings.Builder, routed, parted bool) {
	if routed {
		fmt.Fprintf(b, "route %s, ", cmp.Or(p.Route, "of all that no Route is for"))
	}
	if routed || parted {
		text := recipientsOf(p.Recipients)
		switch {
		case p.Provider != "":
			text += " of " + p.Provider
		case !routed:
			text = strings.Replace(text, " ", " other ", 1)
		}
		b.WriteString(text + ": ")
	}
	switch {
	case p.Decided != 0:
		fmt.Fprintf(b, "%v, without a relay", p.Decided)
		if p.Then != "" {
			b.WriteString(": " + p.Then)
		}
		b.WriteString("\n")
	case p.Limit != "" && !p.Waits:
		fmt.Fprintf(b, "is deferred for %v (%s)\n", p.RetryAfter, p.Limit)
	case p.Hopeless:
		b.WriteString("no relay can take it:\n")
	case len(p.Candidates) == 0 && p.NextChance.IsZero():
		b.WriteString("no relay can take it now:\n")
	case len(p.Candidates) == 0:
		fmt.Fprintf(b, "no relay can take it before %s:\n", p.clock(p.NextChance))
	case p.Limit != "" && p.NextToken.IsZero():
		fmt.Fprintf(b, "waits for a limit, tier %d (%s):\n", p.Tier, p.Limit)
	case p.Limit != "":
		fmt.Fprintf(b, "waits for a limit until %s, tier %d (%s):\n", p.NextToken.Format("15:04:05.000"), p.Tier, p.Limit)
	case p.MaxWait > 0:
		fmt.Fprintf(b, "waits for the first free connection, tier %d; after %v it %s:\n", p.Tier, p.MaxWait, p.Then)
	case p.Waits:
		fmt.Fprintf(b, "waits for the first free connection, tier %d:\n", p.Tier)
	case len(p.Candidates) > 1 && p.By != byWeight && p.By != byBoth:
		fmt.Fprintf(b, "goes out now, tier %d, by %s:\n", p.Tier, p.By)
	default:
		fmt.Fprintf(b, "goes out now, tier %d:\n", p.Tier)
	}
	if p.Panics {
		b.WriteString("so much of the tier is sick that circuit breakers are ignored\n")
	}
	told := slices.ContainsFunc(p.Candidates, func(x PlanRelay) bool { return x.Share > 0 })
	for _, x := range p.Candidates {
		fmt.Fprintf(b, "  %s: ", x.Name)
		if told {
			fmt.Fprintf(b, "%.3g %%, ", 100*x.Share)
		}
		fmt.Fprintf(b, "weight %.3g", x.EffectiveWeight)
		if x.EffectiveWeight != float64(x.Weight) {
			fmt.Fprintf(b, " (configured: %d", x.Weight)
			if x.Slow > 0 {
				fmt.Fprintf(b, "; slow %.0f×", x.Slow)
			}
			b.WriteByte(')')
		}
		fmt.Fprintf(b, ", %d", x.InFlight)
		if x.Limit > 0 {
			fmt.Fprintf(b, " of %d", x.Limit)
		}
		fmt.Fprintf(b, " connections in use, %d idle", x.Idle)
		if x.Note != "" {
			b.WriteString("; " + x.Note)
		}
		b.WriteString("\n")
	}
	if len(p.Candidates) > 0 && len(p.Skipped) > 0 {
		b.WriteString("not now:\n")
	}
	for _, x := range p.Skipped {
		fmt.Fprintf(b, "  %s: %s", x.Name, x.Why)
		if !x.Until.IsZero() && !strings.Contains(x.Why, x.Until.Format(time.TimeOnly)) {
			b.WriteString(", until " + p.clock(x.Until))
		}
		if x.Failover {
			b.WriteString(" (can be tried afterwards)")
		}
		b.WriteString("\n")
	}
	for i := range p.Others {
		p.Others[i].write(b, routed, true)
	}
}
