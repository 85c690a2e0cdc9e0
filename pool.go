package smtplb

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
	"github.com/smtplb/smtplb/internal/session"
)

// Pool sends mail through several relays. It is made by New and safe for concurrent use. An application has one, and closes it at its end.
type Pool struct {
	fleet   atomic.Pointer[fleet]
	updates chan struct{} // of one slot, taken while the fleet is replaced
	conns   *connpool.Pool[*session.Conn]

	maxSize     int64
	spillSize   int64
	spillDir    string
	spillFailed atomic.Bool   // and the log was told
	renders     chan struct{} // one for each message of which whole attachments may be in memory, see intake.hold
	signer      Signer
	logger      *slog.Logger
	hooks       Hooks

	gate      gate
	keeper    keeper
	checker   checker
	ctx       context.Context // ends with Close
	cancel    context.CancelCauseFunc
	sends     atomic.Uint64
	failovers atomic.Uint64
	born      time.Time
	events    events
	teller    teller
	budget    budget
	hedges    hedges
	mailhosts mailhosts
	strained  atomic.Int32    // tethers that are tight, of all relays
	memory    MemoryStore     // of warm-ups, where there is no other
	races     context.Context // of dials in the background; ends with Shutdown too, when no send is left
	endRaces  context.CancelCauseFunc
}

var errNotMade = errors.New("smtplb: the Pool was not made by New")

// New makes a pool. It checks c whole, and returns all its faults joined, each a *ConfigError with its path. It connects to nothing and
// starts no goroutine.
func New(c Config) (*Pool, error) {
	valid, err := c.validate()
	if err != nil {
		return nil, err
	}
	p := &Pool{signer: c.Signer, logger: c.Logger, hooks: c.Hooks, maxSize: c.MaxMessageSize, born: time.Now()}
	p.updates = make(chan struct{}, 1)
	p.spillSize, p.spillDir, p.renders = c.SpillSize, c.SpillDir, make(chan struct{}, maxRenders)
	if p.spillSize == 0 {
		p.spillSize = defaultSpillSize
	}
	if p.maxSize == 0 {
		p.maxSize = defaultMaxMessageSize
	}
	p.ctx, p.cancel = context.WithCancelCause(context.Background())
	p.races, p.endRaces = context.WithCancelCause(p.ctx)
	p.conns = connpool.New(connpool.Config[*session.Conn]{
		Alive:  (*session.Conn).Alive,
		Close:  func(c *session.Conn, _ connpool.Reason) { _ = c.Close() },
		Retire: p.retire,
		Abort:  func(c *session.Conn) { c.Abort(ErrClosed) },
	})
	f, err := p.assemble(valid, nil)
	if err != nil {
		return nil, err
	}
	p.budget.configure(c.Retry.Budget, f.reserve())
	f.settle(p.born)
	p.mailhosts.adopt(valid)
	p.fleet.Store(f)
	return p, nil
}

// Shutdown refuses new sends with ErrClosed, lets the admitted ones finish, those that wait for a connection included, says QUIT on idle connections and
// closes the pool. When ctx ends first it becomes Close and returns the context's cause.
func (p *Pool) Shutdown(ctx context.Context) error {
	if p == nil || p.conns == nil {
		return errNotMade
	}
	select {
	case <-p.gate.shut():
	case <-ctx.Done():
		_ = p.Close()
		return context.Cause(ctx)
	}
	p.quench(ctx)
	p.stop()
	select { // what is left are QUITs, a second at most each
	case <-p.gate.background():
	case <-ctx.Done():
	}
	return p.Close()
}

// untilClosed is ctx, and ends with the pool, too: its cause is ErrClosed then. end is to be called when it isn't needed any more.
func (p *Pool) untilClosed(ctx context.Context) (open context.Context, end func()) {
	open, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(p.ctx, func() { cancel(ErrClosed) })
	return open, func() {
		stop()
		cancel(nil)
	}
}

// Close closes the pool now. Sends in progress end at once: before the commit point their recipients are deferred with ErrClosed, after it their
// outcome is unknown. It waits for the pool's own goroutines, not for those sends to return, nor for a Hooks.RelayState that is under way. It may be called again, and returns nil.
func (p *Pool) Close() error {
	if p == nil || p.conns == nil {
		return errNotMade
	}
	p.cancel(ErrClosed)
	p.gate.shut()
	p.stop()
	<-p.gate.background()
	return nil
}

// stop ends waiting, connections and timers.
func (p *Pool) stop() {
	p.keeper.stop()
	p.endRaces(ErrClosed)
	p.conns.Close()
	for _, r := range p.fleet.Load().relays {
		r.breaker.Stop()
	}
}

// retire closes an idle connection with a QUIT, in the background. A relay that is down is not asked, and after Close nobody is.
func (p *Pool) retire(c *session.Conn, why connpool.Reason, gone func()) bool {
	return why != connpool.ReasonDown && p.gate.spawn(p.ctx, func() {
		defer gone()
		c.Quit(p.ctx)
	})
}

// retireTurn ends a turn whose connection is well, but not to be used again for that reason: with a QUIT in the background, and the slot is free when the relay knows.
func (p *Pool) retireTurn(t connpool.Turn[*session.Conn], c *session.Conn, why connpool.Reason) {
	if !p.retire(c, why, func() { t.DropFor(why) }) {
		_ = c.Close()
		t.DropFor(why)
	}
}

func (p *Pool) log(ctx context.Context, level slog.Level, msg string, attrs ...slog.Attr) {
	if p.logger != nil {
		p.logger.LogAttrs(ctx, level, msg, attrs...)
	}
}

// gate counts sends, and the pool's own goroutines.
type gate struct {
	mu     sync.Mutex // guards the following fields; held for arithmetic only
	closed bool
	active int           // sends
	total  atomic.Uint64 // sends admitted; written under mu
	ended  chan struct{} // made by shut; closed when closed and active is 0
	bg     int           // goroutines
	bgDone chan struct{} // closed when bg falls to 0; nil while nobody waits
}

// enter admits a send.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.active++
	g.total.Add(1)
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.active--
	if g.closed && g.active == 0 {
		close(g.ended)
	}
}

func (g *gate) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.active
}

// shut admits no more sends, and returns a channel that is closed when the last one has left.
func (g *gate) shut() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.closed = true
		g.ended = make(chan struct{})
		if g.active == 0 {
			close(g.ended)
		}
	}
	return g.ended
}

// spawn runs f in a goroutine that background waits for, unless ctx has ended.
func (g *gate) spawn(ctx context.Context, f func()) bool {
	if !g.begin(ctx) {
		return false
	}
	go func() {
		defer g.done()
		f()
	}()
	return true
}

// run runs f in this goroutine, of a timer, which background then waits for, unless ctx has ended.
func (g *gate) run(ctx context.Context, f func()) bool {
	if !g.begin(ctx) {
		return false
	}
	defer g.done()
	f()
	return true
}

func (g *gate) begin(ctx context.Context) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if ctx.Err() != nil {
		return false
	}
	g.bg++
	return true
}

func (g *gate) done() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.bg--; g.bg == 0 && g.bgDone != nil {
		close(g.bgDone)
		g.bgDone = nil
	}
}

// background returns a channel that is closed when no goroutine of the pool is left.
func (g *gate) background() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.bg == 0 {
		done := make(chan struct{})
		close(done)
		return done
	}
	if g.bgDone == nil {
		g.bgDone = make(chan struct{})
	}
	return g.bgDone
}
