package smtplb

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

// fleet is the relays of one configuration, ready for use. It does not change, but for its tiers' pickers and panics; Update puts another one in its place. A send looks
// at the pool's fleet anew for each turn.
type fleet struct {
	config *checked

	group    // all relays
	ways     // the routes to them
	metering // their limits
	groups   []*group
	byName   map[string]*relay
	byLane   []*relay // by the member of their lane; nil where that is not one of the fleet's
	balancer Balancer
	attempts int // for one message at the most
	streams  streams
	own      bool // the balancer is one of the package's
	slows    bool // see ownBalancer
	hedging  bool
	maxWait  time.Duration // 0: no limit
	spill    bool
	health   Health // without zeros
}

// group is relays among which a message's are chosen.
type group struct {
	relays  []*relay // by tier
	members Bitset   // the same, by their number in the fleet
	tiers   []*tier
	order   []string       // of Route.Ordered: the names of its entries; nil: their tiers count
	places  map[*relay]int // the same, of its relays
	sources []*source      // of those that are found in DNS, in the order of Config.Relays
}

// tier is the relays of one Relay.Tier, or of one priority that DNS gave them within it: a range of its group's.
type tier struct {
	first  int // in the group's relays
	relays []*relay
	number int         // Relay.Tier, or the place in a group that is Ordered
	within int         // 0: the first priority, with which the relays are whose Addr says where they are
	panics atomic.Bool // see alarm
	strain atomic.Bool // most of its weight is slow: nobody rests
	picks  atomic.Pointer[picks]
}

// picks is a picker, and the weights that it was made for.
type picks struct {
	picker  Picker
	weights []float64
}

// pick asks the tier's picker, nil where it has nobody.
func (t *tier) pick(info PickInfo) *relay {
	if i := t.picks.Load().picker.Pick(info); i >= 0 && i < len(t.relays) {
		return t.relays[i]
	}
	return nil
}

// view is a relay as a Balancer sees it: with the weight that it has at the moment of NewPicker.
type view struct {
	*relay
	weight float64
}

func (v view) Weight() float64 { return v.weight }

// weigh returns what the tier's relays weigh now.
func (t *tier) weigh() []float64 {
	weights := make([]float64, len(t.relays))
	for i, r := range t.relays {
		weights[i] = r.weighs()
	}
	return weights
}

// build makes the tier's picker for the weights. It is an error if the balancer makes none, or panics: the clock calls it too, where nobody could catch that.
func (t *tier) build(b Balancer, weights []float64) (err error) {
	views := make([]RelayView, len(t.relays))
	for i, r := range t.relays {
		views[i] = view{r, weights[i]}
	}
	defer func() {
		if x := recover(); x != nil {
			err = &ConfigError{Path: "Balancer", Reason: fmt.Sprintf("NewPicker panicked: %v", x)}
		}
	}()
	picker := b.NewPicker(views)
	if picker == nil {
		return &ConfigError{Path: "Balancer", Reason: "NewPicker returned nil"}
	}
	t.picks.Store(&picks{picker, weights})
	return nil
}

// reweigh makes new pickers where a relay's weight is not what it was; where the balancer makes none, the old one stays. One goroutine at a time runs it (see keeper).
func (p *Pool) reweigh(f *fleet) {
	for _, g := range f.groups {
		for _, t := range g.tiers {
			weights, is := t.weigh(), t.picks.Load()
			if slices.Equal(weights, is.weights) {
				continue
			}
			if err := t.build(f.balancer, weights); err != nil {
				t.picks.Store(&picks{is.picker, weights}) // for these it isn't asked again
				p.log(context.Background(), slog.LevelError, "no new picker", slog.Int("tier", t.number), slog.String("error", err.Error()))
			}
		}
	}
}

// assemble makes a fleet of a valid configuration. A relay that stands in old too, by its name, keeps its standing; for the others lanes are added, which are removed again where
// there is an error.
func (p *Pool) assemble(c *checked, old *fleet) (f *fleet, err error) {
	f = &fleet{
		config: c, byName: make(map[string]*relay, len(c.Relays)), balancer: c.Balancer, attempts: c.Retry.Attempts, streams: c.streams(),
		hedging: !c.Retry.NoHedging && c.Limiter == nil, maxWait: c.MaxWait, spill: c.SpillOver, health: c.Health.withDefaults(),
	}
	now := time.Now()
	specs := p.expand(f, old)
	switch {
	case f.attempts == 0:
		f.attempts = defaultAttempts
	case f.attempts < 0:
		f.attempts = max(len(specs), 1)
	}
	if f.balancer == nil {
		f.balancer = Adaptive()
	}
	if b, ok := f.balancer.(*ownBalancer); ok {
		f.own, f.slows = true, b.slows
	}
	for i := range specs {
		specs[i].place = i
	}
	slices.SortStableFunc(specs, func(a, b spec) int {
		return cmp.Or(cmp.Compare(a.relay.Tier, b.relay.Tier), cmp.Compare(a.within, b.within))
	})
	for _, s := range specs {
		cfg := s.relay
		r := &relay{
			index: len(f.relays), tier: cfg.Tier, within: s.within, configured: s.place, origin: s.origin, foundBy: s.source, weight: max(cfg.Weight, 1), limits: cfg.conns().limits(), breaking: cfg.Breaker,
			noRiding: cfg.NoRiding, caps: c.own(cfg.limits()), noBackOff: cfg.NoBackOff, rules: c.rules[s.origin], rcptMost: cfg.maxRecipients(), chunking: cfg.Chunking, resolver: c.Resolver,
			ownDial: cfg.Dial != nil || c.Dial != nil, localAddr: cfg.LocalAddr, tlsConfig: cfg.TLSConfig, session: s.session,
		}
		if was := old.named(cfg.name()); was != nil {
			r.standing = was.standing
			if r.sameConnection(was) {
				r.session = was.session // with its TLS sessions
			}
		} else {
			r.standing = newStanding(p, cfg, r.limits, &f.health)
			r.meter = newMeter(scopeRelay, r.name, r.caps, now)
			r.strain.account.init(r.backoffConfig(), now)
			r.strain.dials.init(r.dialConfig(), now)
			r.strain.dials.dials = true
			r.current.Store(r.session)
		}
		f.relays = append(f.relays, r)
		f.byName[r.name] = r
		if r.member >= len(f.byLane) {
			f.byLane = append(f.byLane, make([]*relay, r.member+1-len(f.byLane))...)
		}
		f.byLane[r.member] = r
	}
	if err := f.direct(f.balancer, c); err != nil {
		p.forget(f, old)
		return nil, err
	}
	f.measure(old, now)
	return f, nil
}

// arrange makes the tiers of the group's relays, and their pickers.
func (g *group) arrange(b Balancer) error {
	for i, r := range g.relays {
		if n := len(g.tiers); n == 0 || g.tiers[n-1].number != g.place(r) || g.tiers[n-1].within != r.within {
			g.tiers = append(g.tiers, &tier{first: i, number: g.place(r), within: r.within})
		}
	}
	for i, t := range g.tiers {
		end := len(g.relays)
		if i+1 < len(g.tiers) {
			end = g.tiers[i+1].first
		}
		t.relays = g.relays[t.first:end:end]
		if err := t.build(b, t.weigh()); err != nil {
			return err
		}
	}
	return nil
}

// line makes the order of names that of the group's relays, before it is arranged. Relays that DNS found have the place of the entry that they were found by.
func (g *group) line(names []string) {
	g.order, g.places = names, make(map[*relay]int, len(g.relays))
	for _, r := range g.relays {
		g.places[r] = slices.Index(names, r.origin.name())
	}
	slices.SortStableFunc(g.relays, func(a, b *relay) int { return cmp.Compare(g.places[a], g.places[b]) }) // those of one entry are in DNS's order
}

// place is the number of the tier in which the group has one of its relays.
func (g *group) place(r *relay) int {
	if g.places == nil {
		return r.tier
	}
	return g.places[r]
}

// named returns the relay of that name, nil where there is none.
func (f *fleet) named(name string) *relay {
	if f == nil {
		return nil
	}
	return f.byName[name]
}

// ofLane returns the relay of a lane, nil where that is not one of the fleet's: also where another has its place by now.
func (f *fleet) ofLane(number int) *relay {
	if m := connpool.Member(number); m < len(f.byLane) {
		if r := f.byLane[m]; r != nil && r.lane == number {
			return r
		}
	}
	return nil
}

// tierOf returns the tier of one of the group's relays.
func (g *group) tierOf(r *relay) *tier {
	for _, t := range g.tiers {
		if t.number == g.place(r) && t.within == r.within {
			return t
		}
	}
	return nil
}

// at is where in the tier's relays one of them stands.
func (t *tier) at(r *relay) int { return slices.Index(t.relays, r) }

// forget lets go of the relays of f that are not in kept.
func (p *Pool) forget(f, kept *fleet) {
	if f == nil {
		return
	}
	for _, r := range f.relays {
		if kept.named(r.name) == nil { // of one name there is one standing
			r.breaker.Stop()
			p.douse(r)
			r.untether()
			p.conns.RemoveLane(r.lane)
		}
	}
}
