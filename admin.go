package smtplb

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// This file is for operators.

// AdminState is what an operator wants of a relay, whatever its health.
type AdminState uint8

const (
	// AdminReady: the relay is used while it is well. It is each relay's at first.
	AdminReady AdminState = iota
	// AdminDrain: it gets no new mail. Messages under way end as they would have, and its other connections get their QUIT. It is still checked.
	AdminDrain
	// AdminMaintenance is AdminDrain without checks.
	AdminMaintenance
)

var adminStateNames = [...]string{"ready", "drain", "maintenance"}

// String returns "ready", "drain" or "maintenance".
func (s AdminState) String() string {
	if int(s) < len(adminStateNames) {
		return adminStateNames[s]
	}
	return "AdminState(" + strconv.Itoa(int(s)) + ")"
}

// MarshalText encodes String. An invalid state is an error.
func (s AdminState) MarshalText() ([]byte, error) {
	if int(s) >= len(adminStateNames) {
		return nil, fmt.Errorf("smtplb: %v is no state", s)
	}
	return []byte(s.String()), nil
}

// UnmarshalText decodes what MarshalText encodes.
func (s *AdminState) UnmarshalText(text []byte) error {
	for i, name := range adminStateNames {
		if string(text) == name {
			*s = AdminState(i)
			return nil
		}
	}
	return fmt.Errorf("smtplb: %q is none of ready, drain, maintenance", text)
}

// SetAdmin takes a relay, by its name, out of service, or puts it back: before its restart, say. From AdminReady on it is used as one that was sick and has recovered, through slow start. The
// state outlives Update for as long as the relay stands in the configuration; one that DNS names has it for as long as DNS does. It is an error if there is no such relay.
//
// Messages for which there is no other relay are deferred meanwhile, with ErrNoRelay. A message that was about to go out may still do so.
func (p *Pool) SetAdmin(relay string, s AdminState) error {
	if p == nil || p.conns == nil {
		return errNotMade
	}
	if int(s) >= len(adminStateNames) {
		return fmt.Errorf("smtplb: %v is no state", s)
	}
	r := p.fleet.Load().named(relay)
	switch {
	case p.ctx.Err() != nil:
		return ErrClosed
	case r == nil:
		return fmt.Errorf("smtplb: there is no relay named %q", relay)
	}
	r.setAdmin(s)
	return nil
}

func (r *standing) setAdmin(s AdminState) {
	r.mu.Lock()
	was := AdminState(r.admin.Swap(uint32(s)))
	if s == AdminMaintenance || was == AdminMaintenance { // what was found out before is of no use after it
		c := &r.checks
		c.era++
		c.fails, c.passes, c.due = 0, 0, time.Time{}
		r.down.Store(false)
	}
	r.mu.Unlock()
	if s != was {
		r.changed()
	}
}

// Ping checks all relays but those in AdminMaintenance, as Health says, and logs in to each, once: it is for an operator who wants to know, not for many times
// a minute, as relays lock accounts. It returns nil if all are well, else their errors joined, each with the relay's name (most are a *RelayError). What it finds
// out counts as the pool's own checks do. Where all connections of a relay are in use, it waits for one. A relay that Update takes away meanwhile is passed over.
//
// Ping ends with ctx, and then returns the context's cause for those that it could not check.
func (p *Pool) Ping(ctx context.Context) error {
	if p == nil || p.conns == nil {
		return errNotMade
	}
	ctx, end := p.untilClosed(ctx)
	defer end()
	f := p.fleet.Load()
	errs := make([]error, len(f.relays)) // in the order of Config.Relays
	next := make(chan *relay, len(f.relays))
	for _, r := range f.relays {
		if !r.is(AdminMaintenance) {
			errs[r.configured] = errPingEnded // unless we get to know better
			next <- r
		}
	}
	close(next)
	var working sync.WaitGroup
	for range min(maxChecks, len(next)) {
		working.Add(1)
		if !p.gate.spawn(p.ctx, func() {
			defer working.Done()
			for r := range next {
				errs[r.configured] = p.ping(ctx, r)
			}
		}) {
			working.Done()
			return ErrClosed
		}
	}
	working.Wait()
	return errors.Join(errs...)
}

var errPingEnded = errors.New("smtplb: Health.Check did not return")

// patience is how long Ping waits before it looks again for a free connection.
const patience = 100 * time.Millisecond

func (p *Pool) ping(ctx context.Context, r *relay) error {
	for ctx.Err() == nil {
		r.mu.Lock()
		era := r.checks.era
		r.mu.Unlock()
		f := p.fleet.Load() // after the era: where an Update comes between, the finding is void
		is := f.named(r.name)
		if is == nil || is.standing != r.standing {
			return nil // an Update has taken it away, and all its slots
		}
		found := p.check(ctx, is, &f.health, true)
		if found.busy {
			select {
			case <-time.After(patience):
			case <-ctx.Done():
			}
			continue
		}
		r.conclude(era, &found, &f.health)
		if ctx.Err() == nil || found.err == nil {
			return found.err
		}
	}
	return fmt.Errorf("%s: %w", r.name, contextError(ctx))
}
