package smtplb

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/backoff"
	"github.com/smtplb/smtplb/internal/connpool"
)

// Where new connections are held back only what needs one waits; an Update tells of their limit, and ends it all where the relay goes.
func TestDialsHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := plainConfig()
		p, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		r, now := p.fleet.Load().relays[0], time.Now()
		r.holdBack(&r.strain.dials, now, backoff.Signal{Kind: backoff.Throttle})
		if n := p.strained.Load(); n != 1 {
			t.Errorf("%d tethers hold something back", n)
		}
		for _, fresh := range []bool{false, true} {
			if wait := r.strainWait(&connpool.Ask{Now: now, Fresh: fresh}, &fare{}); (wait > 0) != fresh {
				t.Errorf("fresh %v: %v", fresh, wait)
			}
		}
		if !r.mustDial() {
			t.Error("a message needs no new connection, where there is none")
		}
		c.Relays[0].Limits.Connections = PerMinute(6)
		if err := p.Update(c); err != nil {
			t.Fatal(err)
		}
		if x := r.strain.dials.state.Snapshot(now); x.Configured != 0.1 {
			t.Errorf("%v a second are configured", x.Configured)
		}
		c.Relays = c.Relays[1:]
		if err := p.Update(c); err != nil {
			t.Fatal(err)
		}
		if n := p.strained.Load(); n != 0 || r.strain.dials.tight.Load() {
			t.Errorf("%d tethers hold something back of no relay", n)
		}
	})
}

// A relay that a Route means by its name and by a tag, or by two tags, is one of its relays once.
func TestRouteNamesARelayTwice(t *testing.T) {
	c := plainConfig()
	c.Relays[0].Tags, c.Relays[1].Tags = []string{"x", "y"}, []string{"y"}
	c.Routes = []Route{
		{Recipients: []string{"a.example"}, Relays: []string{"a.test:25"}, Tags: []string{"y"}},
		{Recipients: []string{"b.example"}, Tags: []string{"x", "y"}},
	}
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	f := p.fleet.Load()
	for _, r := range f.routes {
		if len(r.group.relays) != 2 || r.group != f.routes[0].group {
			t.Errorf("%s: %d relays", r.name, len(r.group.relays))
		}
	}
}
