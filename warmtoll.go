package smtplb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
	"github.com/smtplb/smtplb/internal/warmup"
)

// This file binds a relay's warm-up (warming.go) to what a message costs (fare.go).

// warmth is what a relay has of its warm-up.
type warmth struct {
	warming atomic.Pointer[warming] // nil: there is none
	unit    atomic.Pointer[Warmup]
	cold    atomic.Bool            // the log was told that the Store fails
	chill   atomic.Pointer[string] // why; nil where it doesn't
}

// warmed is what a fare has taken of one relay's warm-up. It is guarded by the lock of Pool.conns.
type warmed struct {
	*warming
	taken []warmup.Taken
}

// shares are what a fare is for the relay's and the providers' caps, as a warm-up counts it.
func (f *fare) shares(w *Warmup) []warmup.Share {
	switch {
	case len(w.PerProvider) == 0:
		return []warmup.Share{{N: w.count(f.recipients)}}
	case w.Unit == WarmupMessages: // one, and one for each provider that it is for
		list := append(make([]warmup.Share, 0, len(f.mailboxes)+1), warmup.Share{N: w.count(f.recipients)})
		for _, p := range f.mailboxes {
			list = append(list, warmup.Share{Provider: p.Name, N: 1, Within: true})
		}
		return list
	}
	list, rest := make([]warmup.Share, 0, len(f.mailboxes)+1), f.recipients
	for i, p := range f.mailboxes {
		list = append(list, warmup.Share{Provider: p.Name, N: f.each[i]})
		rest -= f.each[i]
	}
	if rest > 0 {
		list = append(list, warmup.Share{N: rest})
	}
	return list
}

// warmWait is how long it is until the relay's warm-up allows f. It goes by days, and so by the clock on the wall, as all do that tell a Schedule what time it is; that of connpool, which other limits go by, doesn't know when it is set,
// or the machine was asleep.
func (r *standing) warmWait(f *fare) (d time.Duration) {
	w := r.warming.Load()
	if w == nil {
		return 0
	}
	d = w.schedule.WaitAll(time.Now(), f.shares(r.unit.Load()))
	if d == warmup.Never {
		return connpool.Never
	}
	return d
}

// warmPay takes it. Where it can't, as the day has ended since, say, the fare is short: who has paid it must not send.
func (r *standing) warmPay(f *fare) {
	w := r.warming.Load()
	if w == nil {
		return
	}
	taken, ok := w.schedule.TakeAll(time.Now(), f.shares(r.unit.Load()))
	if !ok {
		f.short.Store(true)
	}
	x := warmed{warming: w, taken: taken}
	f.warm = append(f.warm, x)
}

// warmEnd gives it back, unless it was spent.
func (r *standing) warmEnd(f *fare, spent bool) {
	i := slices.IndexFunc(f.warm, func(x warmed) bool { return x.warming.relay == r.name })
	if i < 0 {
		return
	}
	if x := f.warm[i]; !spent {
		for n := range x.taken {
			x.schedule.Return(&x.taken[n], x.taken[n].N())
		}
	}
	f.warm = slices.Delete(f.warm, i, i+1)
}

// warmSays tells how far the relay's day is, "" where it doesn't warm up.
func (r *standing) warmSays(now time.Time) string {
	w := r.warming.Load()
	if w == nil {
		return ""
	}
	why := r.chill.Load()
	switch x := w.schedule.Today(now); {
	case !x.Known && why != nil:
		return "warm-up: " + *why
	case !x.Known:
		return "warm-up: the Store has not answered yet"
	case x.Begins != 0:
		return fmt.Sprintf("warm-up: begins on %v (UTC)", x.Begins)
	case x.Cap == 0 && x.Stage >= x.Stages:
		return ""
	case x.Cap == 0:
		return "warm-up: not begun"
	default:
		return fmt.Sprintf("warm-up: %d of %d today, stage %d of %d", x.Used, x.Cap, x.Stage+1, x.Stages)
	}
}

// warmDues tells why the relay's warm-up keeps f from it for so long.
func (r *relay) warmDues(f *fare, now time.Time, wait time.Duration) string {
	text := r.warmSays(now)
	w := r.warming.Load()
	if w == nil {
		return text
	}
	own := r.unit.Load()
	x := w.schedule.Bound(now, f.shares(own))
	if x.Provider != "" {
		text = fmt.Sprintf("warm-up: %d of %d for %s today", x.Used, x.Cap, x.Provider)
	}
	switch {
	case wait == connpool.Never:
		text += ": the message is more than a whole day's"
		if own.Advance == AdvanceDelivered {
			text += ", and only other mail brings about another stage"
		}
	case x.Why == warmup.TooMany:
		text += fmt.Sprintf(": a message to %d is more than today's whole cap", x.N)
	case x.Why == warmup.UsedUp && x.Used < x.Cap:
		text += fmt.Sprintf(": a message to %d is more than what is left", x.N)
	case x.Why == warmup.NotYet:
		text += fmt.Sprintf("; %d by now", x.ByNow)
	case x.Why == warmup.AtOnce:
		text += fmt.Sprintf("; %d by now, a twenty-fourth at once", x.ByNow)
	case x.Why == warmup.Nothing: // the day has enough, and nothing of it was granted
		if why := r.chill.Load(); why != nil && w.schedule.Today(now).Known {
			text += "; " + *why
		}
	}
	return text
}

// delivered counts what the relay has accepted for its warm-up.
func (a *attempt) delivered(now time.Time) {
	if w := a.relay.warming.Load(); w != nil {
		w.schedule.Delivered(now, a.relay.unit.Load().count(a.record.Accepted))
	}
}

// stoke has the warm-ups of the fleet's relays talk to their Store, as far as there is something to say, in the background.
func (p *Pool) stoke(f *fleet, now time.Time) {
	for _, r := range f.warming {
		if w := r.warming.Load(); w != nil && w.schedule.Dirty(now) && w.busy.CompareAndSwap(false, true) {
			if !p.gate.spawn(p.ctx, func() { p.fire(r, w) }) {
				w.busy.Store(false)
			}
		}
	}
}

// fire brings a warm-up and its Store together.
func (p *Pool) fire(r *relay, w *warming) {
	var err error
	defer func() {
		if x := recover(); x != nil { // the Store is the caller's, and this goroutine ours
			err = fmt.Errorf("the Store panicked: %v", x)
		}
		w.busy.Store(false)
		if err == nil {
			r.chill.Store(nil)
		} else {
			text := oneLine(err.Error())
			r.chill.Store(&text)
		}
		switch {
		case err != nil && !errors.Is(err, context.Canceled) && !r.cold.Swap(true):
			p.log(context.Background(), slog.LevelWarn, "a warm-up can't go on", slog.String("relay", r.name), slog.String("error", err.Error()))
		case err == nil:
			r.cold.Store(false)
		}
		p.conns.Ease()
	}()
	err = w.sync(p.ctx)
}

// quench gives back to the Stores what the relays were granted and have not used.
func (p *Pool) quench(ctx context.Context) {
	for _, r := range p.fleet.Load().warming {
		if w := r.warming.Load(); w != nil {
			func() {
				defer func() { _ = recover() }() // the Store's; there is nobody to tell any more
				_ = w.release(ctx)
			}()
		}
	}
}

// kindle begins the relay's warm-up, or goes on with it.
func (r *relay) kindle(p *Pool, w *Warmup, store Store) {
	if !w.on() {
		r.warming.Store(nil)
		return
	}
	own := *w
	r.unit.Store(&own)
	if store == nil {
		store = &p.memory
	}
	if was := r.warming.Load(); was != nil && sameStore(was.store, store) {
		was.schedule.Reconfigure(w.config(""))
		return
	}
	r.warming.Store(newWarming(r.name, w, store))
}

// sameStore compares what may not be comparable.
func sameStore(a, b Store) (same bool) {
	defer func() {
		if recover() != nil {
			same = false
		}
	}()
	return a == b
}

// tiers are those of d's group that it may use: a relay that warms up can keep to itself and its tier what is more than it may send.
func (d *delivery) tiers() []*tier {
	if len(d.fleet.warming) > 0 {
		for i, t := range d.group.tiers {
			for _, r := range t.relays {
				if r.origin.Warmup.Overflow == OverflowTier && d.could(r) && r.ready() && d.closed(r) {
					return d.group.tiers[:i+1]
				}
			}
		}
	}
	return d.group.tiers
}

// douse gives back to its Store what a relay that goes was granted and has not used.
func (p *Pool) douse(r *relay) {
	w := r.warming.Load()
	if w == nil {
		return
	}
	p.gate.spawn(p.ctx, func() {
		defer func() { _ = recover() }() // the Store's; there is nobody to tell
		_ = w.release(p.ctx)
	})
}
