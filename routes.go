package smtplb

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/smtplb/smtplb/internal/backoff"
	"github.com/smtplb/smtplb/internal/discover"
	"github.com/smtplb/smtplb/internal/domain"
	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/session"
)

// This file is where a message parts into what leaves by one route each: Route is in policy.go.

// checked is a configuration that was found to be valid, and what came of it.
type checked struct {
	*Config
	sessions  []*session.Config         // of Relays
	table     *domain.Table             // of Routes, whose values are their numbers; nil where there are none
	providers []Provider                // see Config.Providers
	domains   *domain.Table             // theirs, whose values are their numbers
	suffixes  discover.Suffixes         // theirs, to their names
	rules     map[*Relay]*backoff.Rules // of Relays
}

// route is a Route at work. It does not change.
type route struct {
	name   string // "": of what no Route is for
	group  *group
	meter  *meter // nil: no limits
	action RouteAction
	text   string
}

// ways are the routes of a fleet.
type ways struct {
	table    *domain.Table // nil: everything goes by standard
	routes   []*route      // of Config.Routes
	standard *route        // of what no Route is for
}

// direct makes f's groups and routes.
func (f *fleet) direct(b Balancer, c *checked) error {
	if err := f.group.arrange(b); err != nil {
		return err
	}
	f.members = make(Bitset, words(len(f.relays)))
	for _, r := range f.relays {
		f.members.add(r.index)
	}
	groups := map[string]*group{}
	some := func(in roll, order []string) (*group, error) {
		g := &group{relays: in.relays, order: order}
		if n := len(g.relays); n > 0 {
			g.members = make(Bitset, words(g.relays[n-1].index+1))
		}
		var key []byte
		for _, r := range g.relays {
			g.members.add(r.index)
			key = binary.NativeEndian.AppendUint64(key, uint64(r.index))
		}
		key = append(key, ' ')
		for _, n := range in.sources {
			g.sources = append(g.sources, f.sources[n])
			key = binary.NativeEndian.AppendUint64(key, uint64(n))
		}
		if order != nil {
			g.line(order)
			f.groups = append(f.groups, g)
			return g, g.arrange(b)
		}
		if len(g.relays) == len(f.relays) && len(in.sources) == len(f.sources) {
			return &f.group, nil
		}
		if same := groups[string(key)]; same != nil {
			return same, nil
		}
		groups[string(key)] = g
		f.groups = append(f.groups, g)
		return g, g.arrange(b)
	}
	f.groups = append(f.groups, &f.group)
	everybody, byName, byTag := f.rolls(c.Config)
	g, err := some(everybody, nil)
	if err != nil {
		return err
	}
	f.table, f.standard = c.table, &route{group: g}
	named := map[string]*group{} // many routes have the same
	f.routes = make([]*route, len(c.Routes))
	for i := range c.Routes {
		x := &c.Routes[i]
		w := &route{name: c.routeName(i), action: x.Action, text: x.Text}
		f.routes[i] = w
		if x.Action == RouteDefault {
			w.action, w.group = RouteDeliver, g
		}
		if x.Action != RouteDeliver {
			continue
		}
		key := strings.Join(x.Relays, "\x00") + "\x00\x00" + strings.Join(x.Tags, "\x00")
		var order []string
		if x.Ordered && len(x.Relays) > 1 {
			key, order = key+"\x00\x00ordered", x.Relays
		}
		if w.group = named[key]; w.group != nil {
			continue
		}
		if w.group, err = some(x.of(byName, byTag), order); err != nil {
			return err
		}
		named[key] = w.group
	}
	return nil
}

// roll is relays and sources that belong together, in the order of the fleet's.
type roll struct {
	relays  []*relay
	sources []int // their places among the fleet's
}

// rolls calls the fleet's relays together, once: those that are not RoutedOnly, and those that a Route may mean by a name or a tag. So what a route costs goes by the relays that it names, not by all there are: a transport
// map may have thousands of both.
func (f *fleet) rolls(c *Config) (everybody roll, byName, byTag map[string]roll) {
	byName, byTag = make(map[string]roll), make(map[string]roll)
	enrol := func(r *Relay, to func(*roll)) {
		if !r.RoutedOnly {
			to(&everybody)
		}
		x := byName[r.name()]
		to(&x)
		byName[r.name()] = x
		for i, tag := range r.Tags {
			if !slices.Contains(r.Tags[:i], tag) {
				x := byTag[tag]
				to(&x)
				byTag[tag] = x
			}
		}
	}
	for _, r := range f.relays {
		enrol(r.origin, func(x *roll) { x.relays = append(x.relays, r) })
	}
	if len(f.sources) == 0 {
		return everybody, byName, byTag
	}
	places := make(map[string]int, len(f.sources))
	for i, s := range f.sources {
		places[s.name] = i
	}
	for i := range c.Relays {
		if n, ok := places[c.Relays[i].name()]; ok {
			enrol(&c.Relays[i], func(x *roll) { x.sources = append(x.sources, n) })
		}
	}
	return everybody, byName, byTag
}

// of returns the relays and sources that the route names, each once. They are the caller's.
func (x *Route) of(byName, byTag map[string]roll) (all roll) {
	add := func(y roll) {
		all.relays, all.sources = append(all.relays, y.relays...), append(all.sources, y.sources...)
	}
	for _, name := range x.Relays {
		add(byName[name])
	}
	for _, tag := range x.Tags {
		add(byTag[tag])
	}
	if len(x.Relays)+len(x.Tags) > 1 { // of one name or tag alone they are in order, and each is there once
		slices.SortFunc(all.relays, func(a, b *relay) int { return cmp.Compare(a.index, b.index) })
		all.relays = slices.Compact(all.relays)
		slices.Sort(all.sources)
		all.sources = slices.Compact(all.sources)
	}
	return all
}

// routeOf returns the route of a recipient.
func (d *delivery) routeOf(x *recipient) *route {
	if f := d.fleet; x.routed != f {
		x.routed, x.route = f, f.standard
		if i := d.routeNumber(x); i >= 0 {
			x.route = f.routes[i]
		}
	}
	return x.route
}

// routeNumber returns the place of a recipient's route among the fleet's, -1 where no Route is for it.
func (d *delivery) routeNumber(x *recipient) int {
	if d.fleet.table == nil {
		return -1
	}
	sender := d.msg.fromDomain
	if d.msg.from == "" {
		sender = domain.NullSender
	}
	if i, ok := d.fleet.table.Lookup(x.addr, sender, d.env.Stream); ok {
		return int(i)
	}
	return -1
}

// dispatch sends d by its route, or each of its parts by the part's own.
func (p *Pool) dispatch(ctx context.Context, d *delivery) error {
	for {
		d.obey()
		d.spare()
		if d.torn = !d.follow(); d.torn {
			return p.runParts(ctx, d)
		}
		if err := p.run(ctx, d); err != errRerouted {
			return err
		}
		d.move()
	}
}

// errRerouted ends the run of a delivery whose recipients have no route in common any more: an Update has changed the routes.
var errRerouted = errors.New("the routes were changed")

// obey settles the recipients whose routes lead to no relay. Where such a route fails or defers one recipient of RequireAll, it does so to all that are to be sent to; whose own route says the same has that one's word.
func (d *delivery) obey() {
	if d.fleet.table == nil {
		return
	}
	all, whose := d.ruler()
	for i := range d.rcpts {
		x := &d.rcpts[i]
		if x.outcome != 0 {
			continue
		}
		switch r := d.routeOf(x); {
		case all != nil && r.action != all.action && r.action != RouteDiscard:
			d.rule(x, all, whose)
		case r.action != RouteDeliver:
			d.rule(x, r, "")
		}
	}
}

// ruler is the route that decides for all recipients of RequireAll, as not all of them may be sent to, and whose it is; nil where there is none. Whoever is named first, one that fails comes before one that defers: the message can't go, however often
// it is tried, and who is told that it may would be told so for ever. Who is discarded is none of them, here as where a relay refuses one: it is certain what becomes of him, and a retry that has to wait for the others isn't for him.
func (d *delivery) ruler() (all *route, whose string) {
	if !d.env.RequireAll {
		return nil, ""
	}
	for i := range d.rcpts {
		if x := &d.rcpts[i]; x.outcome == 0 {
			switch r := d.routeOf(x); {
			case r.action == RouteFail:
				return r, d.written(i)
			case r.action == RouteDefer && all == nil:
				all, whose = r, d.written(i)
			}
		}
	}
	return all, whose
}

// rule settles x as r says, without a relay; r is the route of the recipient that because names, where that isn't x. What was said before of one whom a relay may have accepted stands.
func (d *delivery) rule(x *recipient, r *route, because string) {
	if x.ambiguous {
		d.decide(x, Unknown)
		return
	}
	x.relay, x.stage, x.reply, x.because = "", "", reply.Reply{}, because
	x.err = &RouteError{Route: r.name, Reason: r.text}
	switch r.action {
	case RouteFail:
		d.decide(x, Failed)
	case RouteDiscard:
		d.decide(x, Discarded)
		d.discarded++
	default:
		d.decide(x, Deferred)
		x.wait = retryTemporary
	}
}

// spare leaves the relays alone that were to get the message once more, where nobody is pending whom they may have accepted.
func (d *delivery) spare() {
	if d.made == 0 || slices.ContainsFunc(d.rcpts, func(x recipient) bool { return x.outcome == 0 && x.ambiguous }) {
		return
	}
	for w, again := range d.again {
		d.tried[w] |= again
	}
	clear(d.again)
}

// follow makes the route of d's pending recipients d's own. It reports whether there is one that they have in common, and whether it leads to relays. RequireAll makes one of several: only relays that
// all of them lead to may be used.
func (d *delivery) follow() bool {
	d.route, d.group = d.fleet.standard, d.fleet.standard.group
	d.lot, d.mixed = lot{group: d.group}, false
	if d.fleet.table == nil && !d.fleet.splits && !d.sticks {
		return true
	}
	var first *route
	wait := ""
	for i := range d.rcpts {
		x := &d.rcpts[i]
		if x.outcome != 0 {
			continue
		}
		r := d.routeOf(x)
		by := d.waitsAt(x, r)
		if wait == "" {
			wait = by
		}
		switch {
		case r.action != RouteDeliver:
			return false
		case by != "" && by != wait && !d.env.RequireAll:
			return false
		case first == nil:
			first, d.lot = r, d.lotOf(x, r)
		case d.lotOf(x, r) == d.lot:
		case !d.env.RequireAll:
			return false
		case first.group == r.group:
			d.mixed = true
		default:
			d.mixed = true
			for _, y := range first.group.relays {
				if !r.group.members.Has(y.index) {
					d.outside.add(y.index)
				}
			}
		}
	}
	if first != nil {
		d.route, d.group = first, first.group
	}
	if wait != "" {
		d.prefer = wait
	}
	return true
}

// lot is what recipients must have in common to be sent in one piece: their relays, and whose limits they count against.
type lot struct {
	group    *group
	route    *meter
	provider *meter
}

func (d *delivery) lotOf(x *recipient, r *route) lot {
	l := lot{group: r.group, route: r.meter}
	if d.fleet.splits {
		l.provider = d.fleet.providerOf(x).limited()
	}
	return l
}

// waitsAt is the relay at which x, of route r, waits for the end of its greylisting: one that didn't see it again would only begin to count anew. "" where there is none, or none any more, and
// after the first attempt: then the relay has had its chance.
func (d *delivery) waitsAt(x *recipient, r *route) string {
	if x.greylister == "" || d.made > 0 || r.group == nil {
		return ""
	}
	if at := d.fleet.byName[x.greylister]; at == nil || !r.group.members.Has(at.index) {
		return ""
	}
	return x.greylister
}

// checkTogether makes sure that the recipients of RequireAll can go in one piece.
func (d *delivery) checkTogether() error {
	if d.fleet.table == nil || !d.env.RequireAll {
		return nil
	}
	var groups []*group
	for i := range d.rcpts {
		switch r := d.routeOf(&d.rcpts[i]); {
		case r.action == RouteDiscard: // and the others are sent
		case r.action != RouteDeliver: // which goes for all
			return nil
		case !slices.Contains(groups, r.group):
			groups = append(groups, r.group)
		}
	}
	if len(groups) < 2 {
		return nil
	}
	for _, r := range groups[0].relays {
		if !slices.ContainsFunc(groups, func(g *group) bool { return !g.members.Has(r.index) }) {
			return nil
		}
	}
	for _, s := range groups[0].sources { // DNS may not have been asked yet
		if !slices.ContainsFunc(groups, func(g *group) bool { return !slices.Contains(g.sources, s) }) {
			return nil
		}
	}
	return &EnvelopeError{Field: "RequireAll", Reason: "the recipients leave by routes that have no relay in common"}
}

// part is those of a message's recipients that leave by one route.
type part struct {
	*delivery
	of       []int  // for each of its recipients the number in the whole
	wait     string // the relay at which some of them wait for the end of their greylisting
	ended    bool
	panicked any
}

// parts divides what is pending of d by lot, and by the relays at which recipients wait for the end of their greylisting.
func (d *delivery) parts() []*part {
	var parts []*part
	for i := range d.rcpts {
		x := d.rcpts[i]
		if x.outcome != 0 {
			continue
		}
		r := d.routeOf(&x)
		with, by := d.lotOf(&x, r), d.waitsAt(&x, r)
		n := slices.IndexFunc(parts, func(y *part) bool { return y.lot == with && (by == "" || y.wait == "" || y.wait == by) })
		if n < 0 {
			n = len(parts)
			parts = append(parts, &part{delivery: d.branch(r)})
			parts[n].lot = with
		}
		if by != "" {
			parts[n].wait, parts[n].prefer = by, by
		}
		parts[n].of = append(parts[n].of, i)
		parts[n].rcpts = append(parts[n].rcpts, x)
		parts[n].pending++
	}
	return parts
}

// branch makes a delivery of the same message for recipients of one route. Where d has made attempts, it goes on from these.
func (d *delivery) branch(r *route) *delivery {
	b := newDelivery(d.pool, d.env)
	b.man(d.fleet)
	b.route, b.group = r, r.group
	b.msg = d.msg
	b.total, b.deadline, b.commitBy = d.total, d.deadline, d.commitBy
	copy(b.tried, d.tried)
	copy(b.again, d.again)
	b.prefer, b.made, b.try.relay, b.moved = d.prefer, d.made, d.try.relay, d.moved
	b.larger, b.tooLargeFor = d.larger, d.tooLargeFor
	b.sticks, b.fellows = d.sticks, d.fellows
	return b
}

// runParts sends d's parts, all at once: none waits for another's relays, also where an Update parts one again. It returns why one of them stopped early.
func (p *Pool) runParts(ctx context.Context, d *delivery) error {
	parts := d.parts()
	var running sync.WaitGroup
	defer running.Wait()
	for _, x := range parts[1:] {
		running.Go(func() { p.runPart(ctx, x) })
	}
	p.runPart(ctx, parts[0])
	running.Wait()
	for _, x := range parts { // the caller's own functions: what they did comes out here, as it would have without parts
		switch {
		case x.panicked != nil:
			panic(x.panicked)
		case !x.ended:
			runtime.Goexit()
		}
	}
	return d.join(parts)
}

func (p *Pool) runPart(ctx context.Context, x *part) {
	defer func() {
		if !x.ended {
			x.panicked = recover() // nil after a runtime.Goexit, which goes on
		}
	}()
	x.cause = p.dispatch(ctx, x.delivery)
	x.conclude(x.cause)
	x.ended = true
}

// join takes what became of the parts into d, and frees them. It returns what the first that had a cause to stop early says of it.
func (d *delivery) join(parts []*part) (cause error) {
	for _, x := range parts {
		for n, i := range x.of {
			d.rcpts[i] = x.rcpts[n]
			d.throttled = d.throttled || x.throttled && x.rcpts[n].outcome == Deferred
		}
		d.pending -= len(x.of)
		d.receipt.Attempts = append(d.receipt.Attempts, x.receipt.Attempts...)
		if cause == nil {
			cause = x.cause
		}
		x.free()
	}
	slices.SortStableFunc(d.receipt.Attempts, func(a, b Attempt) int { return a.Start.Compare(b.Start) })
	return cause
}
