package smtplb

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/internal/backoff"
	"github.com/smtplb/smtplb/internal/connpool"
	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/session"
	"github.com/smtplb/smtplb/internal/throttle"
	"github.com/smtplb/smtplb/internal/verdict"
)

// This file is how a pool gives relays less mail that want less: what a refusal means is read by internal/backoff, which also knows how much may be sent then. Nothing of it opens a circuit breaker, and a relay that never refused anything
// for its amount pays nothing for it but a count.

// strain is what a relay's refusals have led to: of all that it gets, of the connections that are opened to it, and of what it gets for single mailbox providers.
type strain struct {
	account   tether
	dials     tether             // counts connections, not messages; it has no window
	mu        sync.RWMutex       // guards providers
	providers map[string]*tether // by name
	some      atomic.Bool        // there are any
	strained  atomic.Bool        // one of them holds something back
	gone      atomic.Bool        // the relay isn't one of the pool's any more
}

// tether is one of them.
type tether struct {
	state   *backoff.State
	tight   atomic.Bool // it holds something back
	mu      sync.Mutex  // guards rate
	rate    float64     // that pace has
	pace    *throttle.Bucket
	window  atomic.Int32 // connections, while it is tight
	inUse   atomic.Int64 // messages; written under the lock of Pool.conns
	mailbox bool         // of a provider: else the relay's lane keeps to window
	dials   bool         // of new connections, and no window's
}

func newTether(c backoff.Config, now time.Time) *tether {
	t := new(tether)
	t.init(c, now)
	return t
}

func (t *tether) init(c backoff.Config, now time.Time) {
	t.state = backoff.New(c, now)
	t.pace = throttle.NewBucket(throttle.Rate{}, now)
}

// suspended is until when nothing goes, zero where something may.
func (t *tether) suspended(now time.Time) time.Time {
	if !t.tight.Load() {
		return time.Time{}
	}
	until, _ := t.state.Suspended(now)
	return until
}

// wait is how long it is until one more message may go.
func (t *tether) wait(now time.Time) time.Duration {
	if !t.tight.Load() {
		return 0
	}
	var d time.Duration
	if until := t.suspended(now); !until.IsZero() {
		d = until.Sub(now)
	}
	t.tune(now)
	if w := t.window.Load(); t.mailbox && w > 0 && t.inUse.Load() >= int64(w) {
		d = max(d, time.Second) // or when one of them ends
	}
	return max(d, t.pace.Wait(now, 1))
}

// tune gives pace the rate that is allowed now.
func (t *tether) tune(now time.Time) {
	rate := t.state.Rate(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	if rate == t.rate {
		return
	}
	t.rate = rate
	if rate == 0 {
		t.pace.Set(now, throttle.Rate{})
		return
	}
	t.pace.Set(now, throttle.Rate{N: rate, Per: time.Second, Burst: 1})
}

// says tells what is held back, "" where nothing is.
func (t *tether) says(now time.Time) string {
	if !t.tight.Load() {
		return ""
	}
	if until, why := t.state.Suspended(now); !until.IsZero() {
		return fmt.Sprintf("left alone until %s (%s)", until.Format(time.TimeOnly), why)
	}
	x := t.state.Snapshot(now)
	if t.dials {
		x.Window, x.Measured = 0, 0
	}
	return x.String()
}

// backoffConfig is what r allows where it never refused anything. A limit of recipients is no rate of messages, of which each has as many as it has: what went before is measured then, or half of too much would be as much as ever.
func (r *relay) backoffConfig() backoff.Config {
	c := backoff.Config{MaxConns: max(r.limits.Max, 0)}
	if m := r.caps.Messages; m.N > 0 {
		c.Rate = m.N / m.bucket().Per.Seconds()
	}
	return c
}

// dialConfig is that for new connections.
func (r *relay) dialConfig() backoff.Config {
	c := backoff.Config{MaxConns: 1} // as many as it takes for there to be nothing to say of a window
	if m := r.caps.Connections; m.N > 0 {
		c.Rate = m.N / m.bucket().Per.Seconds()
	}
	return c
}

// mailbox returns what is known of the relay and a provider, nil where that isn't anything.
func (s *strain) mailbox(provider string) *tether {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.providers[provider]
}

// mailboxOf returns it, and begins it.
func (r *relay) mailboxOf(provider string, now time.Time) *tether {
	if t := r.strain.mailbox(provider); t != nil {
		return t
	}
	s := &r.strain
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.providers[provider]
	if t == nil {
		if s.providers == nil {
			s.providers = make(map[string]*tether)
		}
		c := r.backoffConfig()
		c.Step = time.Hour // a reputation
		t = newTether(c, now)
		t.state.CountLike(r.strain.account.state)
		t.mailbox = true
		s.providers[provider] = t
		s.some.Store(true)
	}
	return t
}

// all returns the relay's tethers. What is done with them is done without the lock: it may take that of Pool.conns, under which this one is taken.
func (s *strain) all() []*tether {
	list := []*tether{&s.account, &s.dials}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, t := range s.providers {
		list = append(list, t)
	}
	return list
}

// heed takes in what a reply at a stage says of the amount of mail, for those of the recipients in who that it is about. It returns what it says.
func (a *attempt) heed(stage reply.Stage, said *reply.Reply, who []int) backoff.Signal {
	if said.Code < 400 || a.relay.outdated() {
		return backoff.Signal{}
	}
	r := a.relay
	g := r.rules.Classify(stage, said)
	switch g.Kind {
	case backoff.Throttle, backoff.Connections, backoff.Quota:
	default:
		return g
	}
	now := time.Now()
	g.Began = a.record.Start
	if g.Kind == backoff.Connections {
		g.InUse = r.InFlight()
	}
	found := false
	if g.Scope == backoff.Provider {
		for _, p := range a.d.providersOf(who) {
			found = true
			r.holdBack(r.mailboxOf(p.Name, now), now, g)
		}
	}
	switch {
	case found:
	case stage < reply.StageMail && g.Kind == backoff.Connections:
		r.holdDials(now, g)
	default:
		r.holdBack(&r.strain.account, now, g)
	}
	return g
}

// holdBack gives the relay less mail.
func (r *relay) holdBack(t *tether, now time.Time, g backoff.Signal) {
	if !r.noBackOff && t.state.Signal(now, g) {
		r.held(t, now)
	}
}

// holdDials has fewer connections to the relay, and where that doesn't help fewer new ones: mail goes on over those that there are.
func (r *relay) holdDials(now time.Time, g backoff.Signal) {
	if r.noBackOff {
		return
	}
	acted, often := r.strain.account.state.SignalDial(now, g)
	if acted {
		r.held(&r.strain.account, now)
	}
	if often {
		r.holdBack(&r.strain.dials, now, backoff.Signal{Kind: backoff.Throttle, Began: g.Began, Reply: g.Reply})
	}
}

// held has a tether hold back what a refusal has led to.
func (r *relay) held(t *tether, now time.Time) {
	if w := r.warming.Load(); w != nil && t.state.Mode(now) {
		w.schedule.Held(now)
	}
	r.tighten(t, now)
	if r.strain.gone.Load() { // it went meanwhile, or before
		r.loosen(t)
	}
}

// tighten has a tether hold back what its state says.
func (r *relay) tighten(t *tether, now time.Time) {
	t.window.Store(int32(t.state.Window(now)))
	first := !t.tight.Swap(true)
	r.strain.strained.Store(true)
	r.resize()
	if first && r.pool.strained.Add(1) == 1 {
		r.pool.conns.Rouse() // who waits may be about to be sent there at once
	}
}

// relaxes takes in that the relay has taken a message, or at least not refused it for its amount.
func (a *attempt) relaxes(now time.Time) {
	r, inUse := a.relay, a.relay.InFlight()
	r.relax(&r.strain.account, now, inUse)
	if !a.record.Reused {
		r.relax(&r.strain.dials, now, inUse)
	}
	if !r.strain.some.Load() {
		return
	}
	var taken []int // d.who are those of the next batch by now, of which there is none
	for i := range a.d.rcpts {
		if x := &a.d.rcpts[i]; x.outcome == Accepted && x.attempt == a.number {
			taken = append(taken, i)
		}
	}
	for _, p := range a.d.providersOf(taken) {
		if t := r.strain.mailbox(p.Name); t != nil {
			r.relax(t, now, inUse)
		}
	}
}

func (r *relay) relax(t *tether, now time.Time, inUse int) {
	t.state.Success(now, inUse)
	if !t.tight.Load() {
		return
	}
	if r.eased(t, now) {
		return
	}
	if w := int32(t.state.Window(now)); t.window.Swap(w) != w {
		r.resize()
	}
}

// loosen ends what a tether holds back.
func (r *relay) loosen(t *tether) {
	if !t.tight.Swap(false) {
		return
	}
	r.resize()
	r.pool.strained.Add(-1)
	r.strain.strained.Store(false)
	for _, t := range r.strain.all() { // only now, so that one that was tightened meanwhile is seen
		if t.tight.Load() {
			r.strain.strained.Store(true)
		}
	}
}

// untether lets go of all that is held back of a relay that is no longer there.
func (r *relay) untether() {
	r.strain.gone.Store(true)
	for _, t := range r.strain.all() {
		r.loosen(t)
	}
}

// strainWait is how long the relay is to be left alone with what f is for.
func (r *standing) strainWait(a *connpool.Ask, f *fare) time.Duration {
	if !r.strain.strained.Load() {
		return 0
	}
	now := a.Now
	d := r.strain.account.wait(now)
	if a.Fresh {
		d = max(d, r.strain.dials.wait(now))
	}
	for _, p := range f.mailboxes {
		if t := r.strain.mailbox(p.Name); t != nil {
			d = max(d, t.wait(now))
		}
	}
	return d
}

// strained is what a fare has paid of one tether. It is guarded by the lock of Pool.conns.
type strained struct {
	relay *standing
	*tether
	n int
}

// strainPay counts a message.
func (r *relay) strainPay(now time.Time, f *fare) {
	if !r.strain.strained.Load() {
		return
	}
	pay := func(t *tether) {
		n := r.transactions(f)
		t.pace.Take(now, n)
		t.inUse.Add(1)
		f.strained = append(f.strained, strained{r.standing, t, n})
	}
	pay(&r.strain.account)
	for _, p := range f.mailboxes {
		if t := r.strain.mailbox(p.Name); t != nil {
			pay(t)
		}
	}
}

// strainEnd ends that, and gives it back unless it was spent. It reports whether others, of any relay's, may go because of that.
func (r *relay) strainEnd(now time.Time, f *fare, spent bool) (others bool) {
	f.strained = slices.DeleteFunc(f.strained, func(x strained) bool {
		if x.relay != r.standing {
			return false
		}
		if !spent {
			x.pace.Return(now, x.n)
		}
		x.inUse.Add(-1)
		others = true
		return true
	})
	return others
}

// holds tells what is held back of what f is for, "" where nothing is.
func (r *standing) holds(a *connpool.Ask, f *fare) string {
	if !r.strain.strained.Load() {
		return ""
	}
	now := a.Now
	if text := r.strain.account.says(now); text != "" && r.strain.account.wait(now) > 0 {
		return text
	}
	for _, p := range f.mailboxes {
		if t := r.strain.mailbox(p.Name); t != nil && t.wait(now) > 0 {
			return p.Name + ": " + t.says(now)
		}
	}
	if text := r.strain.dials.says(now); text != "" && a.Fresh && r.strain.dials.wait(now) > 0 {
		return "new connections: " + text
	}
	return ""
}

// dialled counts a new connection, and reports whether that was paid for: else there is nothing to be given back.
func (s *strain) dialled(now time.Time) bool {
	if !s.dials.tight.Load() {
		return false
	}
	s.dials.pace.Take(now, 1)
	return true
}

// windowed is most, as much of it as the relay is to have now.
func (r *standing) windowed(most int) int {
	if w := int(r.strain.account.window.Load()); w > 0 && r.strain.account.tight.Load() && (most <= 0 || w < most) {
		return w
	}
	return most
}

// providersOf returns the known providers of recipients, each once.
func (d *delivery) providersOf(who []int) (list []*provider) {
	for _, i := range who {
		p := d.fleet.providerOf(&d.rcpts[i])
		if p == nil {
			continue
		}
		seen := false
		for _, x := range list {
			seen = seen || x == p
		}
		if !seen {
			list = append(list, p)
		}
	}
	return list
}

// hear is heed, for recipients who are told when to come again.
func (a *attempt) hear(stage reply.Stage, said *reply.Reply, who []int) backoff.Signal {
	g := a.heed(stage, said, who)
	for _, i := range who {
		a.d.rcpts[i].hint = g.For
	}
	return g
}

// retether brings what was learnt into line with another configuration.
func (r *relay) retether() {
	now, c := time.Now(), r.backoffConfig()
	if r.noBackOff {
		for _, t := range r.strain.all() {
			r.loosen(t)
		}
		return
	}
	r.strain.account.state.Reconfigure(c, now)
	r.strain.dials.state.Reconfigure(r.dialConfig(), now)
	c.Step = time.Hour
	r.strain.mu.RLock()
	defer r.strain.mu.RUnlock()
	for _, t := range r.strain.providers {
		t.state.Reconfigure(c, now)
	}
}

// spared tells all that is held back, by provider.
func (r *standing) spared(now time.Time) string {
	if !r.strain.strained.Load() {
		return ""
	}
	var list []string
	if text := r.strain.account.says(now); text != "" {
		list = append(list, text)
	}
	if text := r.strain.dials.says(now); text != "" {
		list = append(list, "new connections: "+text)
	}
	r.strain.mu.RLock()
	defer r.strain.mu.RUnlock()
	for _, name := range slices.Sorted(maps.Keys(r.strain.providers)) {
		if text := r.strain.providers[name].says(now); text != "" {
			list = append(list, name+": "+text)
		}
	}
	return strings.Join(list, "; ")
}

// eased lets go of a tether where nothing is held back any more, and reports whether it did.
func (r *relay) eased(t *tether, now time.Time) bool {
	if !t.state.Calm(now) {
		return false
	}
	r.loosen(t)
	if !t.state.Calm(now) { // a refusal came in between, and found it tight
		r.tighten(t, now)
	}
	return true
}

// slacken lets go of what time alone has mended: a relay that gets no mail wouldn't be heard of again.
func (r *relay) slacken(now time.Time) {
	if !r.strain.strained.Load() {
		return
	}
	for _, t := range r.strain.all() {
		if t.tight.Load() && r.eased(t, now) {
			r.pool.conns.Ease()
		}
	}
}

// unconnected takes in that a connection didn't come about: a relay that is held back then gets fewer.
func (a *attempt) unconnected(end *session.End) {
	r := a.relay
	if r.outdated() || !r.strain.account.tight.Load() || end.Failure == reply.FailCanceled || end.Failure == reply.FailDeadline {
		return
	}
	t, now := &r.strain.account, time.Now()
	t.state.ConnectFailure(now)
	t.window.Store(int32(t.state.Window(now)))
	r.resize()
}

// greylisted is v, or what a rule makes of it that says that this is greylisting.
func greylisted(v verdict.Verdict, g backoff.Signal, said *reply.Reply) verdict.Verdict {
	if g.Kind == backoff.Greylist && said.Temporary() && v.Move == verdict.NextRelay {
		return verdict.Verdict{Move: verdict.Deferred, Greylist: true}
	}
	return v
}

// ofReputation reports whether a relay was told by a mailbox provider to send less: another relay of ours would be told the same, and be worse thought of for it.
func ofReputation(g backoff.Signal) bool {
	return g.Scope == backoff.Provider && (g.Kind == backoff.Throttle || g.Kind == backoff.Connections || g.Kind == backoff.Quota)
}

// contained is v for a recipient: where that is for reasons of reputation, one other relay is tried and no more.
func (d *delivery) contained(i int, v verdict.Verdict, reputation bool) verdict.Verdict {
	if !reputation || v.Move != verdict.NextRelay {
		return v
	}
	x := &d.rcpts[i]
	if x.spread++; x.spread > 1 {
		v.Move = verdict.Deferred
	}
	return v
}
