package smtplb

import (
	"fmt"
	"math"
	"time"
)

// Tokens is what the retry budget holds.
func (p *Pool) Tokens() float64 { return p.budget.tokens() }

// LastPlace is the highest place among the lanes of the relays that there are. Those of removed relays are to be given away again.
func (p *Pool) LastPlace() int {
	last := -1
	for _, r := range p.fleet.Load().relays {
		last = max(last, r.member)
	}
	return last
}

// Background is how many goroutines of its own the pool has.
func (p *Pool) Background() int {
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	return p.gate.bg
}

// Strained is how many tethers the pool counts as tight, and how many of its relays' are.
func (p *Pool) Strained() (counted, tight int) {
	for _, r := range p.fleet.Load().relays {
		for _, t := range r.strain.all() {
			if t.tight.Load() {
				tight++
			}
		}
	}
	return int(p.strained.Load()), tight
}

// Metered are the scopes and keys of the meters by which messages are being handed over, or which somebody has a claim on.
func (p *Pool) Metered() (list []string) {
	f := p.fleet.Load()
	look := func(m *meter) {
		if m.inUse.Load() != 0 || m.claim.Load() != nil {
			list = append(list, m.what())
		}
	}
	for _, a := range f.amounts {
		look(a.meter)
	}
	for _, r := range f.relays {
		look(r.meter)
	}
	return list
}

// Used is what was used of the limits and hasn't come back yet: "relay r0 1/2" is one message of two recipients. Of senders, it is those that are named.
func (p *Pool) Used(senders ...string) (list []string) {
	f, now := p.fleet.Load(), time.Now()
	look := func(what string, l Limits, messages, recipients float64) {
		left := func(r Rate, level float64) int {
			if r.N == 0 {
				return 0
			}
			return int(math.Round(r.whole().Burst - level))
		}
		if m, r := left(l.Messages, messages), left(l.Recipients, recipients); m != 0 || r != 0 {
			list = append(list, fmt.Sprintf("%s %d/%d", what, m, r))
		}
	}
	for _, a := range f.amounts {
		look(a.what(), a.to, a.messages.Level(now), a.recipients.Level(now))
	}
	for _, r := range f.relays {
		look(r.meter.what(), r.caps, r.meter.messages.Level(now), r.meter.recipients.Level(now))
	}
	for _, s := range senders {
		if k := f.perSender; k != nil {
			look(scopeSender+" "+s, f.config.PerSender, k.messages.Get(now, s).Level(now), k.recipients.Get(now, s).Level(now))
		}
	}
	return list
}
