package smtplb

import (
	"fmt"

	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
	"github.com/smtplb/smtplb/internal/throttle"
)

// This file holds what a message may cost, beside a connection: Limits, and how they are kept. What is configured is a Limits, what was used of it a meter, and what one message costs a fare, which connpool asks for
// when it hands out connections: so waiting for a connection and waiting for a limit is one, and nobody holds the one while it waits for the other.

// Rate is how often something may happen: N times in Per, 14 times a second, say. The zero Rate is no limit.
//
// It is a token bucket: Burst may happen at once where nothing has for long, and then N in each Per, evenly. So in any time T it is N/Per·T + Burst at the most, unless one message has more recipients than Burst (see [Limits]).
//
// A quota of n in a day is kept by Rate{N: n / 2, Per: 24 * time.Hour, Burst: n / 2}, in any 24 hours: half of it may go at once, the other half comes little by little. The default Burst keeps it nearly, but as PerDay(n) evenly over the day: of 10,000 one each
// 8.64 s, and nothing at once. Where there is a rate a second beside it, Limits.Messages is for the one and Limits.Recipients for the other.
//
// ParseRate reads "14/s" and "10000/day, burst 100"; a Rate can be (un)marshalled as such a text.
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

// PerDay is a Rate of n in 24 hours, evenly: one each 24h/n, with a Burst of 1 where n is below 172,800. For a daily quota that may be used up faster see Rate.
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

// whole is the rate with all its defaults, the burst's too.
func (r Rate) whole() Rate { return Rate(r.bucket().Whole()) }

// bucket is the rate as package throttle wants it.
func (r Rate) bucket() throttle.Rate {
	if r.Per == 0 {
		r.Per = time.Second
	}
	return throttle.Rate(r)
}

// Limits bound what leaves in a time, and at a time. The zero value bounds nothing.
//
// They are taken when a message gets a connection, all at once, and given back unless the relay may have got the message, refused it after it was sent, or refused it for its amount. A message that one relay's Limits don't allow now goes to another relay of its tier. Where all
// that may take it are over their limits, or those of the whole pool, of its route, its provider, its stream or its sender are reached, it waits in the queue for connections, in its place, for Config.MaxThrottleWait at the most, and is deferred with ErrThrottled and RetryAfter
// then. Where the wait would be longer than that it doesn't begin: a relay whose limit is reached for so long counts as one that can't take mail, so that another tier can.
//
// What is allowed evenly doesn't arrive quite evenly: from then to MAIL a connection may have to be opened, or, for a message that rides (Relay.NoRiding), the message before to be answered. Who counts strictly sees Burst at once and, on top of it, the
// rate times the longest of that, but no more than one message for each connection: 25 a second with a Burst of 1 came 4 at once where messages ride behind answers of some 0.1 to 0.5 s, and 1 at once without. Where a quota has less room than that, set Burst to 1, and NoRiding or a
// smaller Conns.Max. A message that ends between MAIL and its text, as all its recipients are refused or its context has no time left, is given back here, and may be counted there.
//
// A message to more recipients than Recipients.Burst waits until the whole burst is there, and uses up in advance what it needs beyond. Limits are those of one Pool, unless Config.Limiter shares them with others.
type Limits struct {
	Messages    Rate // transactions, of up to 100 recipients each; a Relay that takes fewer in one (Profile.MaxRecipients) counts what it gets, the others don't know of that
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

// end takes back what was paid for that long, and has ended; unless it was spent, the tokens too. There may have been an Update since, so each bucket says itself whether it was taken from then.
func (m *meter) end(now, paid time.Time, messages, recipients int, spent bool) (others bool) {
	m.inUse.Add(-1)
	if !spent {
		m.messages.Undo(now, paid, messages)
		m.recipients.Undo(now, paid, recipients)
	}
	return !spent || m.limits.Load().Concurrency > 0
}

// unused reports whether the meter is as good as a new one.
func (m *meter) unused(now time.Time) bool {
	return m.inUse.Load() == 0 && m.messages.Full(now) && m.recipients.Full(now)
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

// more counts a transaction that nobody reckoned with: it is owed.
func (m *meter) more(now time.Time) {
	if m.limits.Load().Messages.N > 0 {
		m.messages.Take(now, 1)
	}
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
		d = s.messages.Wait(now, key, messages)
	}
	if s.recipients != nil {
		d = max(d, s.recipients.Wait(now, key, recipients))
	}
	return d
}

func (s *senders) pay(now time.Time, key string, messages, recipients int) {
	if s.messages != nil {
		s.messages.Take(now, key, messages)
	}
	if s.recipients != nil {
		s.recipients.Take(now, key, recipients)
	}
}

func (s *senders) end(now time.Time, key string, messages, recipients int) {
	if s.messages != nil {
		s.messages.Return(now, key, messages)
	}
	if s.recipients != nil {
		s.recipients.Return(now, key, recipients)
	}
}

// metering is the meters of a fleet.
type metering struct {
	metered     bool // anything is limited
	whole       *meter
	perStream   map[string]*meter
	perSender   *senders
	providers   []*provider          // of checked.providers
	operators   map[string]*provider // by name; nil without an MXResolver
	splits      bool                 // a provider has limits
	warming     []*relay             // those that warm up
	amounts     []amount             // of everything but relays and senders
	former      []*meter             // of limits that were taken away, as long as something is used of them: they may be put back
	maxThrottle time.Duration        // Config.MaxThrottleWait with its default; negative: no bound
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
		for _, m := range old.former {
			known[[2]string{m.scope, m.key}] = m
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
	if c.MXResolver != nil {
		f.operators = make(map[string]*provider, len(c.providers))
	}
	for i := range c.providers {
		p := &provider{Provider: &c.providers[i]}
		p.meter = meterOf(scopeProvider, p.Name, p.Limits)
		f.splits = f.splits || p.meter != nil
		f.providers = append(f.providers, p)
		if c.MXResolver != nil {
			f.operators[p.Name] = p
		}
	}
	for _, a := range f.amounts {
		delete(known, [2]string{a.scope, a.key})
	}
	for _, m := range known {
		if !m.unused(now) {
			f.former = append(f.former, m)
		}
	}
	var were *senders
	if old != nil {
		were = old.perSender
	}
	f.perSender = newSenders(c.own(c.PerSender), were)
	f.metered = len(f.amounts) > 0 || f.perSender != nil || c.Limiter != nil
	for _, r := range f.relays {
		f.metered = f.metered || r.caps.any()
		if r.origin.Warmup.on() {
			f.warming = append(f.warming, r)
		}
	}
	f.metered = f.metered || len(f.warming) > 0
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
		r.refusedUntil.Store(nil) // there may be another Limiter, or none; this one is asked again
		r.kindle(r.pool, &r.origin.Warmup, f.config.Store)
	}
	f.perSender.set(f.config.PerSender, now)
}
