package smtplb

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Hooks are called as things happen. Each may be nil; they run concurrently, in the goroutine in which the thing happens, never
// under a lock, and should return soon. The context of a send's hooks is the caller's, values included.
type Hooks struct {
	// AttemptStart is called before a relay is tried, when a connection slot of it is held (of a message that rode behind another's body the envelope has been sent
	// by then, see Attempt.Rode). The function that it returns may be nil;
	// it is called at the attempt's end. Each Attempt of the Receipt has had one call of both: where another relay was quicker to connect, the attempt ends for the slow one (see
	// Attempt.Hedged), and begins for the other when that is connected. A message that leaves by several groups of relays (see Route) is tried at all of them at once, in a goroutine for each but the first.
	AttemptStart func(ctx context.Context, a AttemptInfo) func(Attempt)
	// Done is called at the end of every Deliver, Send and SendMail whose envelope was in order, with what is returned.
	Done func(ctx context.Context, r *Receipt, err error)
	// RelayState may be called in a timer's goroutine. None is begun after Close, but one that is under way then may go on. It is called after a relay's state, or that of its circuit breaker, has changed, and after relays were
	// added or removed by Update or by DNS. An authentication failure or a certificate that isn't accepted shows here at once. Stats.Events has the last of these events. What changes
	// during an Update is told when that is done, perhaps by its goroutine: so this hook may call Update.
	RelayState func(RelayEvent)

	_ struct{}
}

// AttemptInfo is what is known before an attempt.
type AttemptInfo struct {
	EnvelopeID string
	Relay      string
	Number     int           // from 1; of those that the recipients have had, where a message leaves by several groups of relays (see Route)
	Recipients int           // that the attempt is for
	Wait       time.Duration // for a free connection
}

// RelayEvent is a change of a relay's state.
type RelayEvent struct {
	Relay   string
	State   string    // see RelayStats.State; or "added", "removed"; of a domain that stands for relays: "resolved", "unresolved"
	Breaker string    // of the circuit breaker: "closed", "open" (nothing goes through), "half-open" (the next message is a probe), "probing"; "" of a domain, and where a relay was added or removed
	Reason  string    // why: the faults that opened the breaker, the check that failed, the Update or the domain that brought or took the relay
	RetryAt time.Time // when an open breaker lets a probe through, or a relay that is down is checked again; zero otherwise
	Time    time.Time
}

// maxEvents is how many events Stats remembers.
const maxEvents = 50

// events are the last changes of state.
type events struct {
	mu   sync.Mutex // guards the following fields; held to copy events only
	ring [maxEvents]RelayEvent
	n    int // events so far
}

func (v *events) add(e RelayEvent) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ring[v.n%maxEvents] = e
	v.n++
}

// list returns the events, the oldest first.
func (v *events) list() []RelayEvent {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := make([]RelayEvent, 0, min(v.n, maxEvents))
	for i := max(0, v.n-maxEvents); i < v.n; i++ {
		all = append(all, v.ring[i%maxEvents])
	}
	return all
}

// news is an event that is to be told.
type news struct {
	RelayEvent
	level slog.Level
}

// teller keeps what is to be told while the fleet is replaced: a hook may call Update, which waits for that.
type teller struct {
	mu    sync.Mutex // guards the following fields; held to move news only
	held  bool
	later []news
}

// hold has everything kept from now on. Who calls it has Pool.updates.
func (t *teller) hold() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.held = true
}

// release ends that, and returns what was kept.
func (t *teller) release() []news {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := t.later
	t.held, t.later = false, nil
	return list
}

// keeps reports whether e is kept.
func (t *teller) keeps(e RelayEvent, level slog.Level) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held {
		t.later = append(t.later, news{e, level})
	}
	return t.held
}

// tell remembers an event, and tells log and hook of it; after Close nobody is told any more. No lock may be held.
func (p *Pool) tell(e RelayEvent, level slog.Level) {
	if p.ctx.Err() != nil {
		return
	}
	p.events.add(e)
	if !p.teller.keeps(e, level) {
		p.announce(e, level)
	}
}

// tellAll announces what was kept during an update, and then tells what that brought. Who calls it does not have Pool.updates any more.
func (p *Pool) tellAll(kept, list []news) {
	for _, e := range kept {
		p.announce(e.RelayEvent, e.level)
	}
	for _, e := range list {
		p.tell(e.RelayEvent, e.level)
	}
}

// announce tells log and hook of what is remembered.
func (p *Pool) announce(e RelayEvent, level slog.Level) {
	if p.ctx.Err() != nil {
		return
	}
	if p.logger != nil {
		attrs := []slog.Attr{slog.String("relay", e.Relay), slog.String("state", e.State), slog.String("breaker", e.Breaker), slog.String("reason", e.Reason)}
		if !e.RetryAt.IsZero() {
			attrs = append(attrs, slog.Time("retry_at", e.RetryAt))
		}
		p.log(context.Background(), level, "relay state changed", attrs...)
	}
	if p.hooks.RelayState != nil {
		p.hooks.RelayState(e)
	}
}
