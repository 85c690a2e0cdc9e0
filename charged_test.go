package smtplb_test

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// ledger is a Limiter that allows everything, and sums up what was taken and not given back.
type ledger struct {
	mu   sync.Mutex // guards sums
	sums map[string]*[2]int
}

func (l *ledger) add(charges []smtplb.Charge, sign int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range charges {
		if c.Rate.N <= 0 || c.Rate.Per <= 0 || c.Rate.Burst < 1 {
			panic(fmt.Sprintf("a charge without its defaults: %+v", c))
		}
		if c.Unit == smtplb.Connections {
			continue
		}
		name := strings.TrimSpace(c.Scope + " " + c.Key)
		if l.sums[name] == nil {
			l.sums[name] = new([2]int)
		}
		l.sums[name][c.Unit] += sign * c.N
	}
}

func (l *ledger) Reserve(_ context.Context, charges []smtplb.Charge, _ time.Duration) (smtplb.Lease, error) {
	l.add(charges, 1)
	return &entry{ledger: l, charges: charges}, nil
}

// used is as Pool.Used.
func (l *ledger) used() (list []string) {
	for name, n := range l.sums {
		if *n != [2]int{} {
			list = append(list, fmt.Sprintf("%s %d/%d", name, n[0], n[1]))
		}
	}
	return list
}

type entry struct {
	ledger  *ledger
	charges []smtplb.Charge
	once    sync.Once
}

func (x *entry) Commit() { x.once.Do(func() {}) }
func (x *entry) Return() { x.once.Do(func() { x.ledger.add(x.charges, -1) }) }

// boundEverywhere bounds messages and recipients of all that has limits. r1 takes 50 recipients at a time.
func boundEverywhere(c *smtplb.Config) {
	daily := smtplb.Rate{N: 1, Per: 24 * time.Hour, Burst: 1000}
	l := smtplb.Limits{Messages: daily, Recipients: daily}
	c.Balancer, c.Limits, c.PerSender = inOrder{}, l, l
	c.Streams = []smtplb.Stream{{Name: "news", Limits: l}}
	c.Providers = []smtplb.Provider{{Name: "gmail", Limits: l}, {Name: "corp", Domains: []string{"corp.example"}, Limits: l}}
	c.Routes = []smtplb.Route{
		{Name: "g", Recipients: []string{"gmail.com"}, Relays: []string{"r0", "r1"}, Limits: l},
		{Name: "c", Recipients: []string{"corp.example"}, Relays: []string{"r0", "r1"}, Limits: l},
		{Name: "none", Recipients: []string{"gone@corp.example"}, Action: smtplb.RouteDiscard},
	}
	for i := range c.Relays {
		c.Relays[i].Limits = l
		c.Relays[i].Limits.Connections = smtplb.PerSecond(1000)
	}
	c.Relays[1].Profile = smtplb.Profile{Name: "small", MaxRecipients: 50}
}

// Each attempt is charged for what it offers, and for nothing else: to whatever its recipients belong, for those of them that are still to be sent to. What no relay may have got costs nothing. A Limiter is asked for the same.
func TestWhatAMessageIsCharged(t *testing.T) {
	t.Parallel()
	many := func(n int, at string) (to []string) {
		for i := range n {
			to = append(to, fmt.Sprintf("u%d@%s", i, at))
		}
		return to
	}
	for _, x := range []struct {
		name     string
		to       []string
		together bool
		script   func(h *house)
		want     string
		limiter  string // where a Limiter is asked for something else: its limits don't divide a message
	}{
		{"one transaction", many(100, "gmail.com"), false, nil,
			"pool 1/100, provider gmail 1/100, relay r0 1/100, route g 1/100, sender example.com 1/100, stream news 1/100", ""},
		{"one and a half", many(150, "gmail.com"), false, nil,
			"pool 2/150, provider gmail 2/150, relay r0 2/150, route g 2/150, sender example.com 2/150, stream news 2/150", ""},
		{"two of a relay that takes fewer", many(100, "gmail.com"), false, func(h *house) { h.relays[0].On(smtptest.Mail).Reply(451, "4.3.0 not now") },
			"pool 1/100, provider gmail 1/100, relay r1 2/100, route g 1/100, sender example.com 1/100, stream news 1/100", ""},
		{"the rest elsewhere", []string{"a@gmail.com", "b@gmail.com"}, false, func(h *house) { h.relays[0].On(smtptest.Rcpt).For("b@gmail.com").Reply(450, "4.2.1 Mailbox busy") },
			"pool 2/3, provider gmail 2/3, relay r0 1/2, relay r1 1/1, route g 2/3, sender example.com 2/3, stream news 2/3", ""},
		{"in pieces", append(many(1, "gmail.com"), many(2, "corp.example")...), false, nil,
			"pool 2/3, provider corp 1/2, provider gmail 1/1, relay r0 2/3, route c 1/2, route g 1/1, sender example.com 2/3, stream news 2/3",
			"pool 1/3, provider corp 1/2, provider gmail 1/1, relay r0 1/3, route c 1/2, route g 1/1, sender example.com 1/3, stream news 1/3"},
		{"in one piece", slices.Concat(many(1, "gmail.com"), []string{"gone@corp.example"}, many(149, "corp.example")), true, nil,
			"pool 2/150, provider corp 2/149, provider gmail 1/1, relay r0 2/150, route c 2/149, route g 1/1, sender example.com 2/150, stream news 2/150", ""},
		{"nothing", many(100, "gmail.com"), false, func(h *house) {
			h.relays[0].On(smtptest.Mail).Reply(451, "4.3.0 not now")
			h.relays[1].On(smtptest.Data).Drop()
		}, "", ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			for _, by := range []*ledger{nil, {sums: map[string]*[2]int{}}} {
				bubble(t, func(t *testing.T) {
					h := newHouse(t, 2, func(c *smtplb.Config) {
						boundEverywhere(c)
						if by != nil {
							c.Limiter = by
						}
					}, smtptest.WithMaxRecipients(1000))
					defer h.close()
					if x.script != nil {
						x.script(h)
					}
					e := envelope(x.to...)
					e.Stream, e.RequireAll = "news", x.together
					_, _ = h.pool.Deliver(t.Context(), e)
					used, want := h.pool.Used("example.com"), x.want
					if by != nil {
						used, want = by.used(), cmp.Or(x.limiter, x.want)
					}
					slices.Sort(used)
					if got := strings.Join(used, ", "); got != want {
						t.Errorf("with a Limiter: %v\n%s, want\n%s", by != nil, got, want)
					}
				})
			}
		})
	}
}

// What was used of a Route's limits goes by its name, wherever in Config.Routes an Update puts it; what comes to its place begins with limits of its own.
func TestRouteKeepsWhatWasUsed(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		route := func(name string) smtplb.Route {
			return smtplb.Route{Name: name, Recipients: []string{name + ".example"}, Relays: []string{"r0"}, Limits: smtplb.Limits{Messages: smtplb.Rate{N: 1, Per: 24 * time.Hour, Burst: 1}}}
		}
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Routes = []smtplb.Route{route("a")} })
		defer h.close()
		h.sends(envelope("x@a.example"), "accepted")
		h.update(h.config(func(c *smtplb.Config) { c.Routes = []smtplb.Route{route("b"), route("a")} }))
		h.sends(envelope("x@a.example"), "deferred")
		h.sends(envelope("x@b.example"), "accepted")
		h.sends(envelope("x@b.example"), "deferred")
	})
}
