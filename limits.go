package smtplb

import (
	"cmp"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
	"github.com/smtplb/smtplb/internal/domain"
	"github.com/smtplb/smtplb/internal/session"
	"github.com/smtplb/smtplb/internal/throttle"
)

// This file holds what a message may cost, beside a connection: Limits, and how they are kept. What is configured is a Limits, what was used of it a meter, and what one message costs a fare, which connpool asks for
// when it hands out connections: so waiting for a connection and waiting for a limit is one, and nobody holds the one while it waits for the other.

// Rate is how often something may happen: N times in Per, 14 times a second, say. The zero Rate is no limit.
//
// It is a token bucket: Burst may happen at once where nothing has for long, and then N in each Per, evenly. So in any time T it is N/Per·T + Burst at the most: a quota of 10,000 a day is kept by a
// Burst that is small beside it, as the default is. ParseRate reads "14/s" and "10000/day, burst 100"; a Rate can be (un)marshalled as such a text.
type Rate struct {
	N     float64       // negative is an error
	Per   time.Duration // a second where it is 0
	Burst float64       // default: what N and Per allow in one second, and at least 1
}

// PerSecond is a Rate of n a second.
func PerSecond(n float64) Rate { return Rate{N: n, Per: time.Second} }

// PerMinute is a Rate of n a minute.
func PerMinute(n float64) Rate { return Rate{N: n, Per: time.Minute} }

// PerHour is a Rate of n an hour.
func PerHour(n float64) Rate { return Rate{N: n, Per: time.Hour} }

// PerDay is a Rate of n in 24 hours.
func PerDay(n float64) Rate { return Rate{N: n, Per: 24 * time.Hour} }

// ParseRate reads a Rate: "14/s", "30/min", "1000/h", "10000/day", with ", burst 5" behind it if need be.
func ParseRate(s string) (Rate, error) {
	r, err := throttle.ParseRate(s)
	if err != nil {
		return Rate{}, fmt.Errorf("smtplb: %w", err)
	}
	return Rate(r), nil
}

// String returns the rate as ParseRate takes it, "" for the zero Rate.
func (r Rate) String() string {
	if r == (Rate{}) {
		return ""
	}
	return r.bucket().String()
}

// MarshalText returns String.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is ParseRate; an empty text is the zero Rate.
func (r *Rate) UnmarshalText(text []byte) (err error) {
	*r = Rate{}
	if len(text) > 0 {
		*r, err = ParseRate(string(text))
	}
	return err
}

// bucket is the rate with its defaults.
func (r Rate) bucket() throttle.Rate {
	if r.Per == 0 {
		r.Per = time.Second
	}
	return throttle.Rate(r)
}

// Limits bound what leaves in a time, and at a time. The zero value bounds nothing.
//
// They are taken when a message gets a connection, all at once, and given back unless the relay may have got the message. A message that one relay's Limits don't allow now goes to another relay of its tier. Where all
// that may take it are over their limits, or those of the whole pool, of its route, its provider, its stream or its sender are reached, it waits in the queue for connections, in its place, for Config.MaxThrottleWait at the most, and is deferred with ErrThrottled and RetryAfter
// then. Where the wait would be longer than that it doesn't begin: a relay whose limit is reached for so long counts as one that can't take mail, so that another tier can.
//
// A message to more recipients than Recipients.Burst waits until the whole burst is there, and uses up in advance what it needs beyond. Limits are those of one Pool, unless Config.Limiter shares them with others.
type Limits struct {
	Messages    Rate // transactions; each takes up to 100 recipients
	Recipients  Rate // most quotas of services count these
	Connections Rate // that are opened; of a Relay only
	Concurrency int  // messages that are being handed over; not of a Relay, which has Conns.Max, and not of Config.PerSender. 0: no limit, negative is an error
}

func (l Limits) any() bool { return l != Limits{} }

// validate adds the faults of the limits at path to f. of tells what they are of.
func (l Limits) validate(path, of string, f *faults) {
	for _, x := range []struct {
		field string
		rate  Rate
	}{{"Messages", l.Messages}, {"Recipients", l.Recipients}, {"Connections", l.Connections}} {
		switch err := x.rate.bucket().Check(); {
		case x.rate == Rate{}:
		case x.rate.N == 0:
			f.add(path+"."+x.field, "allows nothing: N is 0; the zero Rate is no limit")
		case err != nil:
			f.add(path+"."+x.field, "%v", err)
		case x.field == "Connections" && of != scopeRelay:
			f.add(path+"."+x.field, "is for a Relay")
		}
	}
	switch {
	case l.Concurrency < 0:
		f.add(path+".Concurrency", "is negative; 0 is no limit")
	case l.Concurrency > 0 && of == scopeRelay:
		f.add(path+".Concurrency", "of a relay is Conns.Max")
	case l.Concurrency > 0 && of == scopeSender:
		f.add(path+".Concurrency", "is not for senders")
	}
}

// The scopes of limits, as a Charge names them.
const (
	scopePool     = "pool"
	scopeStream   = "stream"
	scopeRoute    = "route"
	scopeProvider = "provider"
	scopeSender   = "sender"
	scopeRelay    = "relay"
)

// meter is what was used of some Limits. It outlives an Update.
type meter struct {
	scope, key  string
	limits      atomic.Pointer[Limits]
	messages    *throttle.Bucket
	recipients  *throttle.Bucket
	connections *throttle.Bucket
	inUse       atomic.Int64          // messages; written under the lock of conns
	claim       atomic.Pointer[claim] // of who waits for more than one of something; written likewise
}

// claim is the first in the queue that a meter keeps waiting though others could pay: they need less.
type claim struct {
	at                   connpool.Place
	messages, recipients int
}

func newMeter(scope, key string, l Limits, now time.Time) *meter {
	m := &meter{
		scope: scope, key: key,
		messages:    throttle.NewBucket(l.Messages.bucket(), now),
		recipients:  throttle.NewBucket(l.Recipients.bucket(), now),
		connections: throttle.NewBucket(l.Connections.bucket(), now),
	}
	m.limits.Store(&l)
	return m
}

// set gives the meter other limits. What was used stays used.
func (m *meter) set(l Limits, now time.Time) {
	if *m.limits.Load() == l {
		return
	}
	m.messages.Set(now, l.Messages.bucket())
	m.recipients.Set(now, l.Recipients.bucket())
	m.connections.Set(now, l.Connections.bucket())
	m.limits.Store(&l)
}

// until is how long it is until the rates allow so much.
func (m *meter) until(now time.Time, messages, recipients int) time.Duration {
	l := m.limits.Load()
	var d time.Duration
	if l.Messages.N > 0 {
		d = m.messages.Wait(now, messages)
	}
	if l.Recipients.N > 0 {
		d = max(d, m.recipients.Wait(now, recipients))
	}
	return d
}

// wait is connpool.Fare's Wait for this meter.
func (m *meter) wait(a *connpool.Ask, messages, recipients int) time.Duration {
	if most := m.limits.Load().Concurrency; most > 0 && m.inUse.Load() >= int64(most) {
		return connpool.Never
	}
	d, c := m.until(a.Now, messages, recipients), m.claim.Load()
	if c != nil && c.at.Before(a.At) {
		if first := m.until(a.Now, c.messages, c.recipients); first > 0 {
			return max(d, first)
		}
	}
	if d > 0 && a.Queued && (messages > 1 || recipients > 1) && (c == nil || a.At.Before(c.at)) {
		m.claim.Store(&claim{a.At, messages, recipients})
	}
	return d
}

func (m *meter) pay(now time.Time, messages, recipients int) {
	l := m.limits.Load()
	if l.Messages.N > 0 {
		m.messages.Take(now, messages)
	}
	if l.Recipients.N > 0 {
		m.recipients.Take(now, recipients)
	}
	m.inUse.Add(1)
}

func (m *meter) end(now time.Time, messages, recipients int, spent bool) (others bool) {
	l := m.limits.Load()
	m.inUse.Add(-1)
	if !spent {
		if l.Messages.N > 0 {
			m.messages.Return(now, messages)
		}
		if l.Recipients.N > 0 {
			m.recipients.Return(now, recipients)
		}
	}
	return !spent || l.Concurrency > 0
}

// leave takes a claim back.
func (m *meter) leave(at connpool.Place) bool {
	if c := m.claim.Load(); c != nil && c.at == at {
		m.claim.Store(nil)
		return true
	}
	return false
}

// what names whose limits they are.
func (m *meter) what() string {
	if m.key == "" {
		return m.scope
	}
	return m.scope + " " + m.key
}

// over tells which limit keeps so much from being used now, "" where none does.
func (m *meter) over(now time.Time, messages, recipients int) string {
	l, what := m.limits.Load(), m.what()
	switch {
	case l.Concurrency > 0 && m.inUse.Load() >= int64(l.Concurrency):
		return fmt.Sprintf("%s: %d messages are being handed over, the most at a time", what, l.Concurrency)
	case l.Messages.N > 0 && m.messages.Wait(now, messages) > 0:
		return fmt.Sprintf("%s: over its limit of %v messages", what, l.Messages)
	case l.Recipients.N > 0 && m.recipients.Wait(now, recipients) > 0:
		return fmt.Sprintf("%s: over its limit of %v recipients", what, l.Recipients)
	}
	return ""
}

// toll is what a fare costs of one meter.
type toll struct {
	*meter
	recipients int
}

// fare is what one attempt of a message costs. It does not change, and outlives the delivery: a connection that has lost its race may have paid it.
type fare struct {
	fleet                *fleet
	messages, recipients int
	tolls                []toll // of whatever is not the relay
	sender               string // of PerSender; "": there is none
	buf                  [4]toll
}

// price makes the fare of what is pending of d, nil where nothing is limited.
func (d *delivery) price() *fare {
	f := d.fleet
	if !f.metered {
		return nil
	}
	if d.fare != nil && d.fare.fleet == f && d.fare.recipients == d.pending {
		return d.fare
	}
	x := &fare{fleet: f, recipients: d.pending, messages: (d.pending + maxRecipients - 1) / maxRecipients}
	x.tolls = x.buf[:0]
	if f.perSender != nil {
		x.sender = d.sender()
	}
	for i := range d.rcpts {
		if y := &d.rcpts[i]; y.outcome == 0 {
			x.add(f.providerOf(y.addr).limited(), 1)
			if f.table != nil {
				x.add(d.routeOf(y).meter, 1)
			}
		}
	}
	if f.table == nil {
		x.add(f.standard.meter, d.pending)
	}
	x.add(f.perStream[d.env.Stream], d.pending)
	x.add(f.whole, d.pending)
	return x
}

// sender is whose limits Config.PerSender bounds.
func (d *delivery) sender() string { return cmp.Or(d.env.Key, d.msg.fromDomain, domain.NullSender) }

func (f *fare) add(m *meter, recipients int) {
	if m == nil {
		return
	}
	for i := range f.tolls {
		if f.tolls[i].meter == m {
			f.tolls[i].recipients += recipients
			return
		}
	}
	f.tolls = append(f.tolls, toll{m, recipients})
}

// messagesOf is how many messages count for so many recipients of the fare's.
func (f *fare) messagesOf(recipients int) int { return min(f.messages, recipients) }

// Like, Wait, Pay, End and Leave make fare a connpool.Fare.
func (f *fare) Like(other connpool.Fare) bool {
	o := other.(*fare)
	if len(f.tolls) != len(o.tolls) || f.sender != o.sender || f.fleet != o.fleet {
		return false
	}
	for i := range f.tolls {
		if f.tolls[i].meter != o.tolls[i].meter {
			return false
		}
	}
	return true
}

func (f *fare) Wait(a connpool.Ask) time.Duration {
	d := f.common(&a)
	if r := f.fleet.ofLane(a.Lane); r != nil {
		d = max(d, r.tollWait(&a, f))
	}
	return d
}

// common is Wait but for the relay's own.
func (f *fare) common(a *connpool.Ask) (d time.Duration) {
	for i := range f.tolls {
		t := &f.tolls[i]
		d = max(d, t.wait(a, f.messagesOf(t.recipients), t.recipients))
	}
	if f.sender != "" {
		d = max(d, f.fleet.perSender.wait(a.Now, f.sender, f.messages, f.recipients))
	}
	return d
}

func (f *fare) Pay(lane int, now time.Time, fresh bool) {
	for i := range f.tolls {
		t := &f.tolls[i]
		t.pay(now, f.messagesOf(t.recipients), t.recipients)
	}
	if f.sender != "" {
		f.fleet.perSender.pay(now, f.sender, f.messages, f.recipients)
	}
	if r := f.fleet.ofLane(lane); r != nil {
		r.meter.pay(now, f.messages, f.recipients)
		if fresh {
			r.meter.connected(now)
		}
	}
}

func (f *fare) End(lane int, now time.Time, spent, unused bool) (others bool) {
	for i := range f.tolls {
		t := &f.tolls[i]
		if t.end(now, f.messagesOf(t.recipients), t.recipients, spent) {
			others = true
		}
	}
	if f.sender != "" && !spent {
		f.fleet.perSender.end(now, f.sender, f.messages, f.recipients)
		others = true
	}
	if r := f.fleet.ofLane(lane); r != nil {
		r.meter.end(now, f.messages, f.recipients, spent)
		if unused && r.meter.limits.Load().Connections.N > 0 {
			r.meter.connections.Return(now, 1)
		}
	}
	return others
}

func (f *fare) Leave(at connpool.Place) (others bool) {
	for i := range f.tolls {
		if f.tolls[i].leave(at) {
			others = true
		}
	}
	if f.messages > 1 || f.recipients > 1 {
		for _, r := range f.fleet.relays {
			if r.meter.leave(at) {
				others = true
			}
		}
	}
	return others
}

// tollWait is how long it is until the relay's own limits allow f.
func (r *standing) tollWait(a *connpool.Ask, f *fare) time.Duration {
	d := r.meter.wait(a, f.messages, f.recipients)
	if a.Fresh && r.meter.limits.Load().Connections.N > 0 {
		d = max(d, r.meter.connections.Wait(a.Now, 1))
	}
	if until := r.refusedUntil.Load(); until != 0 {
		d = max(d, time.Duration(until-a.Now.UnixNano()))
	}
	return d
}

// connected counts a connection.
func (m *meter) connected(now time.Time) {
	if m.limits.Load().Connections.N > 0 {
		m.connections.Take(now, 1)
	}
}

// senders are the limits of each sender.
type senders struct {
	messages, recipients *throttle.Keyed // nil: no limit
}

// maxSenders is how many senders' limits are known at a time: of those that have sent a moment ago.
const maxSenders = 1_000_000

// newSenders makes them, nil where there are none. What was used of old's stays used; their rates are set when the configuration counts.
func newSenders(l Limits, old *senders) *senders {
	if l.Messages.N == 0 && l.Recipients.N == 0 {
		return nil
	}
	s := &senders{}
	if old != nil {
		*s = *old
	}
	for _, x := range []struct {
		keyed **throttle.Keyed
		rate  Rate
	}{{&s.messages, l.Messages}, {&s.recipients, l.Recipients}} {
		switch {
		case x.rate.N == 0:
			*x.keyed = nil
		case *x.keyed == nil:
			*x.keyed = throttle.NewKeyed(x.rate.bucket(), maxSenders)
		}
	}
	return s
}

// set gives the senders the rates that they were made for.
func (s *senders) set(l Limits, now time.Time) {
	if s == nil {
		return
	}
	if s.messages != nil {
		s.messages.Set(now, l.Messages.bucket())
	}
	if s.recipients != nil {
		s.recipients.Set(now, l.Recipients.bucket())
	}
}

func (s *senders) wait(now time.Time, key string, messages, recipients int) (d time.Duration) {
	if s.messages != nil {
		d = s.messages.Get(now, key).Wait(now, messages)
	}
	if s.recipients != nil {
		d = max(d, s.recipients.Get(now, key).Wait(now, recipients))
	}
	return d
}

func (s *senders) pay(now time.Time, key string, messages, recipients int) {
	if s.messages != nil {
		s.messages.Get(now, key).Take(now, messages)
	}
	if s.recipients != nil {
		s.recipients.Get(now, key).Take(now, recipients)
	}
}

func (s *senders) end(now time.Time, key string, messages, recipients int) {
	if s.messages != nil {
		s.messages.Get(now, key).Return(now, messages)
	}
	if s.recipients != nil {
		s.recipients.Get(now, key).Return(now, recipients)
	}
}

// metering is the meters of a fleet.
type metering struct {
	metered     bool // anything is limited
	whole       *meter
	perStream   map[string]*meter
	perSender   *senders
	providers   []*provider   // of checked.providers
	splits      bool          // a provider has limits
	amounts     []amount      // of everything but relays and senders
	maxThrottle time.Duration // Config.MaxThrottleWait with its default; negative: no bound
}

// amount is what a meter is set to when its fleet is the pool's.
type amount struct {
	*meter
	to Limits
}

// defaultMaxThrottle is Config.MaxThrottleWait's default.
const defaultMaxThrottle = 30 * time.Second

// measure makes the meters of f's configuration, or takes old's. It is the last in assembling f.
func (f *fleet) measure(old *fleet, now time.Time) {
	c := f.config
	if f.maxThrottle = c.MaxThrottleWait; f.maxThrottle == 0 {
		f.maxThrottle = defaultMaxThrottle
	}
	known := map[[2]string]*meter{}
	if old != nil {
		for _, a := range old.amounts {
			known[[2]string{a.scope, a.key}] = a.meter
		}
	}
	meterOf := func(scope, key string, l Limits) *meter {
		if l = c.own(l); !l.any() {
			return nil
		}
		m := known[[2]string{scope, key}]
		if m == nil {
			m = newMeter(scope, key, l, now)
		}
		f.amounts = append(f.amounts, amount{m, l})
		return m
	}
	f.whole = meterOf(scopePool, "", c.Limits)
	f.perStream = make(map[string]*meter)
	for name, s := range f.streams {
		f.perStream[name] = meterOf(scopeStream, name, s.Limits)
	}
	for i, r := range f.routes {
		r.meter = meterOf(scopeRoute, r.name, c.Routes[i].Limits)
	}
	f.providers = make([]*provider, 0, len(c.providers))
	for i := range c.providers {
		p := &provider{Provider: &c.providers[i]}
		p.meter = meterOf(scopeProvider, p.Name, p.Limits)
		f.splits = f.splits || p.meter != nil
		f.providers = append(f.providers, p)
	}
	var were *senders
	if old != nil {
		were = old.perSender
	}
	f.perSender = newSenders(c.own(c.PerSender), were)
	f.metered = len(f.amounts) > 0 || f.perSender != nil || c.Limiter != nil
	for _, r := range f.relays {
		f.metered = f.metered || r.caps.any()
	}
}

// own is what of l the pool keeps itself: with a Limiter, that keeps the rates.
func (c *Config) own(l Limits) Limits {
	if c.Limiter != nil {
		return Limits{Concurrency: l.Concurrency}
	}
	return l
}

// settle has f's limits count: it is the pool's fleet now.
func (f *fleet) settle(now time.Time) {
	for _, a := range f.amounts {
		a.set(a.to, now)
	}
	for _, r := range f.relays {
		r.meter.set(r.caps, now)
	}
	f.perSender.set(f.config.PerSender, now)
}

// afford is how long d has to wait for limits that no other relay helps with.
func (d *delivery) afford() time.Duration {
	if d.fare == nil {
		return 0
	}
	a := d.ask()
	return d.fare.common(&a)
}

// tooDear is how long d would have to wait for limits that no other relay helps with, where it doesn't wait for so long; else 0.
func (d *delivery) tooDear() time.Duration {
	wait := d.afford()
	if most := d.fleet.maxThrottle; most < 0 || wait <= most || wait == connpool.Never {
		return 0
	}
	return wait
}

// ask is what d asks a meter, outside the queue: an estimate, as others pay meanwhile.
func (d *delivery) ask() connpool.Ask { return connpool.Ask{Now: time.Now(), At: connpool.Last} }

// owed is how long it is until r's own limits allow d.
func (d *delivery) owed(r *relay) time.Duration {
	if d.fare == nil {
		return 0
	}
	a := d.ask()
	return r.tollWait(&a, d.fare)
}

// closed reports whether r's own limits keep d from it for longer than d waits for them: it counts as a relay that can't take mail.
func (d *delivery) closed(r *relay) bool {
	return d.fare != nil && d.fleet.maxThrottle >= 0 && d.owed(r) > d.fleet.maxThrottle
}

// throttledFor is how long d has to wait for a limit, of those of the relays in d.lanes that has the least; 0 where it waits for something else.
func (d *delivery) throttledFor() time.Duration {
	if d.fare == nil {
		return 0
	}
	least := connpool.Never
	for _, r := range d.group.relays {
		if d.lanes.Has(r.member) {
			least = min(least, d.owed(r))
		}
	}
	if least == connpool.Never {
		least = 0
	}
	return max(least, d.afford())
}

// crowded reports whether none of the relays in d.lanes has a free connection.
func (d *delivery) crowded() bool {
	for _, r := range d.group.relays {
		if d.lanes.Has(r.member) && d.pool.conns.Free(r.lane, d.place.Bulk) {
			return false
		}
	}
	return true
}

// overLimit ends a turn that would have to wait for a limit for so long.
func (d *delivery) overLimit(wait time.Duration) *ThrottledError {
	if wait == connpool.Never { // until others have handed over what they are at
		wait = retrySoon
	}
	d.throttled = true
	d.retryAfter = max(wait, time.Second)
	e := &ThrottledError{RetryAfter: d.retryAfter}
	a := d.ask()
	for i := range d.fare.tolls {
		t := &d.fare.tolls[i]
		if text := t.over(a.Now, d.fare.messagesOf(t.recipients), t.recipients); text != "" {
			e.Scope, e.Key, e.Reason = t.scope, t.key, text
			return e
		}
	}
	if d.fare.sender != "" && d.fleet.perSender.wait(a.Now, d.fare.sender, d.fare.messages, d.fare.recipients) > 0 {
		e.Scope, e.Key, e.Reason = scopeSender, d.fare.sender, "the sender is over its limit"
		return e
	}
	for _, r := range d.group.relays {
		if text := d.dues(r); text != "" {
			e.Scope, e.Key, e.Reason = scopeRelay, r.name, text
			return e
		}
	}
	return e
}

// dues tells which of r's own limits keeps d from it now, "" where none does.
func (d *delivery) dues(r *relay) string {
	if d.fare == nil {
		return ""
	}
	now := time.Now()
	if text := r.meter.over(now, d.fare.messages, d.fare.recipients); text != "" {
		return text
	}
	if until := r.refusedUntil.Load(); until > now.UnixNano() {
		return "relay " + r.name + ": the Limiter has no room for it before " + time.Unix(0, until).Format(time.TimeOnly)
	}
	return ""
}

// dials counts a connection that is about to be opened, where the turn hasn't paid for it: in the place of one that proved stale, say.
func (r *standing) dials(t *connpool.Turn[*session.Conn]) {
	if !t.Dials() {
		r.meter.connected(time.Now())
	}
}

// spend says that the relay may have got the message: what it costs is not given back.
func (a *attempt) spend() {
	if a.turn != nil { // else a dial has it that the attempt has left
		a.turn.Spend()
	}
	a.d.commitLeases()
}

// second takes a free connection slot of another relay for d, for a race.
func (d *delivery) second(r *relay) (*connpool.Turn[*session.Conn], bool) {
	if d.fare != nil {
		return d.pool.conns.TryFare(r.lane, d.place.Bulk, d.fare, d.place.Lag)
	}
	return d.pool.conns.Try(r.lane, d.place.Bulk)
}
