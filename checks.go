package smtplb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/smtplb/smtplb/internal/breaker"
	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/session"
	"github.com/smtplb/smtplb/internal/verdict"
)

// This file asks relays how they are when no message has told for a while.

// Health says how relays are checked, and how one that was away is used again. Zero fields mean the default.
//
// A check goes as far as a message would, but for the login and the message: connect, greeting, EHLO, STARTTLS and the certificate, then QUIT. Where the pool keeps an idle connection to the
// relay, that is asked by NOOP instead. With several failures in a row a relay is down: it gets no mail, and whoever waits for it goes elsewhere. A check that
// says that a relay is well proves nothing of the way it takes messages, so checks never close a circuit breaker; while they say that a relay is down, an open
// breaker doesn't try it with a message.
//
// Checks are made only while the pool is in use: within 5 minutes of a send. After that what they said is forgotten, and the next message finds out. Nor are they made while messages
// tell: not within Interval of one that the relay answered. At most four are made at a time, and none that would bring a relay above its Conns.Max.
//
// A check logs in (AUTH) only once after the configuration of a relay was made or changed, and at most every 5 minutes: many relays lock an account that
// fails more often. A refused login opens the relay's circuit breaker, as that of a message does.
type Health struct {
	// Interval is the time between two checks of a relay that is well, ±20 % as the other two. They are rounded up to whole seconds, more or less: the pool looks once a second. Default: 15 s.
	// Negative: no checks are made, and only messages tell.
	Interval time.Duration
	// Fast is that time while there is doubt: after a first failure, or a first success. Default: 3 s. Negative is an error.
	Fast time.Duration
	// Down is that time while the relay is down. Default: 30 s. Negative is an error.
	Down time.Duration
	// Timeout bounds a check. The relay's own Timeouts hold too. Default: 10 s. Negative: the relay's Timeouts alone.
	Timeout time.Duration
	// Rise is how many checks in a row must say that a relay is well before it is used again. Default: 2. Negative is an error.
	Rise int
	// Fall is how many must fail before it is down. Default: 3. Negative is an error.
	Fall int
	// SlowStart is how long a relay that was away (down, open, drained, in maintenance) takes to get back its weight and its connections: both grow from a tenth, evenly with time. A relay
	// begins whole when it is new. Default: 60 s. Negative: it is whole at once.
	SlowStart time.Duration
	// Panic is the share of a tier's weight below which its circuit breakers are ignored, above 0, at most 1: the few relays that are left would only be the
	// next to break. It needs a tier of eight relays or more. One whose login was refused isn't tried even then, nor one that checks say is down. Default: 0.5. Negative: never.
	Panic float64
	// Shallow checks end with the answer to EHLO, and don't try STARTTLS.
	Shallow bool
	// Check takes the place of the pool's own check, whose result it may use: r.Standard. nil is well. It must end with its context, and needs no
	// timeout of its own. Where it panics, or a Dial or Auth function does in a check, the Logger is told, and the check says nothing.
	Check func(ctx context.Context, r CheckRequest) error

	_ struct{}
}

// CheckRequest is what Health.Check is asked.
type CheckRequest struct {
	Relay string // its name
	// Addr is where it is: "host:port", or the path of a unix socket.
	Addr string
	// Login says that it is time to check the login too.
	Login bool
	// Standard makes the pool's own check.
	Standard func(context.Context) error
}

const (
	maxChecks  = 4               // at a time, in a pool
	loginEvery = 5 * time.Minute // a check logs in no more often
	panicSize  = 8               // relays that a tier must have
	slowest    = 0.1             // of a relay's weight and connections, at the beginning of a slow start
)

func (h *Health) validate(f *faults) {
	for _, d := range []struct {
		field string
		value time.Duration
		off   bool // negative means something
	}{
		{"Interval", h.Interval, true}, {"Fast", h.Fast, false}, {"Down", h.Down, false}, {"Timeout", h.Timeout, true}, {"SlowStart", h.SlowStart, true},
	} {
		switch {
		case d.value < 0 && !d.off:
			f.add("Health."+d.field, "is %v; it must not be negative (checks are switched off by a negative Interval)", d.value)
		case d.value > 0 && d.value < time.Millisecond:
			f.add("Health."+d.field, "is %v; a millisecond is the least (30 is 30ns: write 30*time.Second)", d.value)
		}
	}
	if h.Rise < 0 {
		f.add("Health.Rise", "is %d; it must be 1 or more (0: 2)", h.Rise)
	}
	if h.Fall < 0 {
		f.add("Health.Fall", "is %d; it must be 1 or more (0: 3)", h.Fall)
	}
	if h.Panic > 1 || h.Panic != h.Panic {
		f.add("Health.Panic", "is %v; it must be above 0 and at most 1 (0: 0.5; negative: never)", h.Panic)
	}
}

// withDefaults returns h with no field zero, but for Shallow and Check. Negative ones stay.
func (h Health) withDefaults() Health {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&h.Interval, 15 * time.Second}, {&h.Fast, 3 * time.Second}, {&h.Down, 30 * time.Second}, {&h.Timeout, 10 * time.Second}, {&h.SlowStart, time.Minute},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if h.Rise == 0 {
		h.Rise = 2
	}
	if h.Fall == 0 {
		h.Fall = 3
	}
	if h.Panic == 0 {
		h.Panic = 0.5
	}
	return h
}

// scattered is d ±20 %.
func scattered(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

// checks is what is known of a relay by asking it. It is guarded by standing.mu.
type checks struct {
	due       time.Time // of the next one; zero: not known
	under     bool      // one is under way, or about to be
	era       uint64    // what a check finds out is of no use in another one
	fails     int       // in a row, while it is not down
	passes    int       // in a row, while it is down
	login     bool      // the configuration was changed since a login worked
	lastLogin time.Time
	last      lastCheck
}

// lastCheck is how a check ended.
type lastCheck struct {
	at   time.Time // of its end; zero: there was none
	took time.Duration
	code int   // of the relay's last reply, 0: none, or it was not the pool's own check
	noop bool  // it was a NOOP on an idle connection
	err  error // nil: the relay is well
}

// finding is what a check found out.
type finding struct {
	lastCheck
	login    bool // it was to log in
	void     bool // it says nothing about the relay
	busy     bool // void, as all the relay's connections are in use
	throttle bool // the relay wants less, which is no fault
	locked   bool // the login was refused
}

// checker makes the checks that are due.
type checker struct {
	mu      sync.Mutex // guards the following fields; held to move them only
	queue   []string   // names of the relays whose turn it is
	workers int
}

// checkDue begins the checks whose time has come.
func (p *Pool) checkDue(f *fleet, now time.Time) {
	h := &f.health
	if h.Interval < 0 {
		return
	}
	c := &p.checker
	for _, r := range f.relays {
		if r.checkIsDue(h, now) {
			c.mu.Lock()
			c.queue = append(c.queue, r.name)
			c.mu.Unlock()
		}
	}
	for c.hire() {
		if !p.gate.spawn(p.ctx, p.workOff) {
			c.leave()
			return
		}
	}
}

// hire reports whether another worker is wanted, who is then counted.
func (c *checker) hire() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	ok := c.workers < maxChecks && len(c.queue) > 0
	if ok {
		c.workers++
	}
	return ok
}

func (c *checker) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.workers--
}

// next takes the next relay out of the queue. Without one the worker is counted no more.
func (c *checker) next() (name string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		c.workers--
		return "", false
	}
	name = c.queue[0]
	c.queue = c.queue[1:]
	return name, true
}

// workOff makes checks until there are no more to make.
func (p *Pool) workOff() {
	done := false
	defer func() {
		if !done { // Health.Check ended the goroutine
			p.checker.leave()
		}
	}()
	for {
		name, ok := p.checker.next()
		if !ok {
			done = true
			return
		}
		if r := p.fleet.Load().named(name); r != nil {
			p.checkNow(r)
		}
	}
}

// checkNow makes a check that was due.
func (p *Pool) checkNow(r *relay) {
	era, login, ok := r.beginCheck()
	if !ok {
		return
	}
	f := p.fleet.Load() // after the era: where an Update comes between, the finding is void
	found := finding{void: true}
	defer func() { r.endCheck(era, &found, &f.health) }()
	is := f.named(r.name)
	if is == nil || is.standing != r.standing {
		return
	}
	r = is
	if p.ctx.Err() == nil {
		found = p.check(p.ctx, r, &f.health, login)
	}
}

// checkIsDue reports whether it is time to check the relay, which is then as good as under way.
func (r *standing) checkIsDue(h *Health, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &r.checks
	if c.under || r.is(AdminMaintenance) {
		return false
	}
	if c.due.IsZero() || now.Sub(c.due) > max(h.Interval, 10*time.Second) { // new, or the clock had stopped
		c.due = now.Add(time.Duration(rand.Float64() * float64(h.Interval)))
	}
	if now.Before(c.due) {
		return false
	}
	if nano := r.answered.Load(); nano != 0 {
		c.login = false // a message has shown that it works
		if said := time.Unix(0, nano); !r.down.Load() && now.Sub(said) < h.Interval {
			c.fails = 0
			c.due = said.Add(scattered(h.Interval))
			return false
		}
	}
	c.under = true
	return true
}

// beginCheck returns what endCheck has to know. Not ok: it is not wanted any more.
func (r *standing) beginCheck() (era uint64, login, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &r.checks
	if r.is(AdminMaintenance) {
		c.under = false
		return 0, false, false
	}
	return c.era, c.login && time.Since(c.lastLogin) >= loginEvery, true
}

// endCheck draws the conclusions from a check that was due.
func (r *standing) endCheck(era uint64, found *finding, h *Health) {
	r.mu.Lock()
	r.checks.under = false
	r.mu.Unlock()
	r.conclude(era, found, h)
}

// conclude counts what a check has found.
func (r *standing) conclude(era uint64, found *finding, h *Health) {
	now := time.Now()
	var permit breaker.Permit // of before the era is looked at: where an Update comes between, the breaker forgets it
	if found.locked {
		permit, _ = r.breaker.Allow()
		defer permit.Done(breaker.NotCounted)
	}
	r.mu.Lock()
	c := &r.checks
	if c.era != era {
		r.mu.Unlock()
		return
	}
	down := r.down.Load()
	switch {
	case found.void || found.throttle:
	case found.err == nil:
		c.fails = 0
		if down {
			c.passes++
			down = c.passes < h.Rise
		}
	default:
		c.passes = 0
		if !down {
			c.fails++
			down = c.fails >= h.Fall
		}
	}
	if !found.void {
		c.last = found.lastCheck
	}
	if found.login && !found.void {
		c.lastLogin = now
		c.login = found.err != nil && !found.locked // that one is the breaker's business now
	}
	wait := h.Interval
	switch {
	case down && c.passes == 0:
		wait = h.Down
	case down || c.fails > 0:
		wait = h.Fast
	}
	c.due = now.Add(scattered(max(wait, 0)))
	r.down.Store(down)
	r.mu.Unlock()

	if found.void {
		return
	}
	if found.throttle {
		r.cooledUntil.Store(now.Add(coolDown).UnixNano())
	}
	if found.err == nil {
		r.proven.Store(true)
	}
	r.changed()
	if found.locked {
		text := oneLine(strings.TrimPrefix(found.err.Error(), r.name+": "))
		r.lastFault.Store(&text)
		permit.Done(breaker.Long)
	}
}

// forgetChecks makes void what checks have said and are about to say: nobody goes on asking, or it is another relay now. fresh: it was configured anew, and its login is to be checked.
func (r *standing) forgetChecks(fresh bool) {
	r.mu.Lock()
	c := &r.checks
	c.era++
	c.fails, c.passes = 0, 0
	c.due = time.Time{}
	if fresh {
		c.login = true
		r.answered.Store(0)
		r.proven.Store(false)
	}
	if r.down.Load() {
		r.down.Store(false)
		r.proven.Store(false)
	}
	r.mu.Unlock()
	r.changed()
}

// lastChecked returns how the last check ended.
func (r *standing) lastChecked() lastCheck {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.checks.last
}

// rest is for when the clock stops: nobody asks any more, so nothing that was said by then may keep mail from a relay.
func (p *Pool) rest() {
	for _, r := range p.fleet.Load().relays {
		if r.down.Load() {
			r.forgetChecks(false)
		}
	}
}

// check asks r how it is. A panic of the caller's functions, which in a send would be the sender's, ends here: nobody else could catch it.
func (p *Pool) check(ctx context.Context, r *relay, h *Health, login bool) (found finding) {
	defer func() {
		if x := recover(); x != nil {
			found = finding{void: true}
			found.err = fmt.Errorf("%s: check: panic: %v", r.name, x)
			p.log(ctx, slog.LevelError, "a check panicked", slog.String("relay", r.name), slog.String("panic", fmt.Sprint(x)))
		}
	}()
	return p.checkWith(ctx, r, h, login)
}

// checkWith is check. It holds a slot of the relay's connections meanwhile; without a free one there is nothing to find out: messages tell.
func (p *Pool) checkWith(ctx context.Context, r *relay, h *Health, login bool) (found finding) {
	begun := time.Now()
	limit := time.Time{}
	limited := ctx
	if h.Timeout > 0 {
		limit = begun.Add(h.Timeout)
		var cancel context.CancelFunc
		limited, cancel = context.WithDeadline(ctx, limit)
		defer cancel()
	}
	defer func() {
		found.at = time.Now()
		found.took = found.at.Sub(begun)
		found.login = login
		if ctx.Err() != nil && found.err != nil {
			found.void = true
		}
	}()
	if h.Check != nil {
		release, ok := p.slot(r)
		if !ok {
			found.void, found.busy = true, true
			return found
		}
		defer release()
		var standard finding
		err := h.Check(limited, CheckRequest{Relay: r.name, Addr: r.session.Addr, Login: login, Standard: func(ctx context.Context) error {
			standard = finding{}
			r.ladder(ctx, limit, h.Shallow, login, &standard)
			return standard.err
		}})
		if err != nil {
			if standard.err == nil || !errors.Is(err, standard.err) {
				standard = finding{}
			}
			standard.err = fmt.Errorf("%s: check: %w", r.name, err)
		} else {
			standard = finding{}
		}
		return standard
	}
	if !login && p.askIdle(limited, r) {
		found.noop = true
		return found
	}
	release, ok := p.slot(r)
	if !ok {
		found.void, found.busy = true, true
		return found
	}
	defer release()
	r.ladder(limited, limit, h.Shallow, login, &found)
	return found
}

// noopTimeout is how long an idle connection may take to answer before a new one is tried.
const noopTimeout = 5 * time.Second

// askIdle reports whether the relay answers a NOOP on an idle connection. If it doesn't, or there is none, that says nothing: relays and firewalls give up idle connections.
func (p *Pool) askIdle(ctx context.Context, r *relay) bool {
	t, ok := p.conns.TryIdle(r.lane)
	if !ok {
		return false
	}
	conn, ok := t.Conn()
	if !ok {
		t.Put(0)
		return false
	}
	well := false
	defer func() {
		if well {
			t.Put(0)
			return
		}
		_ = conn.Close()
		t.Drop()
	}()
	well = conn.Noop(ctx, min(noopTimeout, r.session.Timeouts.Mail)) == nil
	return well
}

// slot takes one of the relay's slots for a check, an idle connection's if need be.
func (p *Pool) slot(r *relay) (release func(), ok bool) {
	if release, ok = p.conns.Reserve(r.lane); ok {
		return release, true
	}
	t, ok := p.conns.TryIdle(r.lane)
	if !ok {
		return nil, false
	}
	if conn, ok := t.Conn(); ok {
		conn.Quit(p.ctx)
		t.Discard()
	}
	return func() { t.Put(0) }, true
}

// ladder opens a conversation with the relay, as far as a message would need it.
func (r *relay) ladder(ctx context.Context, limit time.Time, shallow, login bool, found *finding) {
	cfg := r.session
	if shallow && (cfg.TLS == session.TLSStart || cfg.TLS == session.TLSOpportunistic) && !login {
		plain := *cfg
		plain.TLS = session.TLSNone
		plain.Auth, plain.Username, plain.Password = nil, "", "" // what is offered for them under TLS is not seen
		cfg = &plain
	}
	end, _, info := session.Check(ctx, cfg, limit, login)
	found.code = info.Code
	if end == nil {
		found.err = nil
		if cfg == r.session { // else it was asked in clear, where it may offer less
			r.learn(&info.Extensions)
		}
		return
	}
	found.err = r.error(end)
	switch verdict.Judge(dialFact(end)).Blame {
	case verdict.Fault, verdict.ConfigFault:
	case verdict.AuthFault:
		found.locked = login
	case verdict.Throttle, verdict.CoolDown:
		found.throttle = true
	default: // our own trouble, unless it is the time that the check had
		found.void = end.Failure != reply.FailTimeout && end.Failure != reply.FailDeadline
	}
}
