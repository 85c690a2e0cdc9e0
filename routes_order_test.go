package smtplb_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/smtplb/smtplb"
)

// Ordered relays are tried in their order, whatever their tiers and weights, and each route has its own order.
func TestRouteOrdered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 4, func(c *smtplb.Config) {
			c.Relays[0].Tier, c.Relays[1].Tier, c.Relays[2].Tier = 2, 1, 1
			c.Relays[1].Weight = 1000
			c.Routes = []smtplb.Route{
				{Recipients: []string{"a.test"}, Relays: []string{"r0", "r1", "r2"}, Ordered: true},
				{Recipients: []string{"b.test"}, Relays: []string{"r2", "r1", "r0"}, Ordered: true},
				{Recipients: []string{"c.test"}, Relays: []string{"r2", "r1", "r0"}},
				{Recipients: []string{"d.test"}, Relays: []string{"r2", "r1", "r0"}, Ordered: true},
				{Recipients: []string{"f.test"}, Relays: []string{"r1", "r3"}, Ordered: true},
				{Recipients: []string{"e.test"}, Relays: []string{"r3", "r2", "r1", "r0"}, Ordered: true},
			}
		})
		defer h.close()
		for range 20 {
			for to, want := range map[string]string{"x@a.test": "r0", "x@b.test": "r2", "x@e.test": "r3"} {
				if got := h.fate(to); got != want {
					t.Fatalf("%s: %s, want %s", to, got, want)
				}
			}
		}
		var took []string
		for range 3 {
			took = append(took, h.fate("x@c.test"))
		}
		if !slices.Contains(took, "r1") || slices.Contains(took, "r0") { // r1 has 1,000 times r2's weight: that r2 gets all three doesn't happen
			t.Errorf("the same relays without Ordered: %s", took)
		}
		p := h.plan(envelope("x@b.test"))
		var skipped []string
		for _, x := range p.Skipped {
			skipped = append(skipped, fmt.Sprintf("%s %d %s", x.Name, x.Tier, x.Why))
		}
		if diff := cmp.Diff([]string{"r1 1 tier 0 can take it", "r0 2 tier 0 can take it"}, skipped); diff != "" || p.Tier != 0 || len(p.Candidates) != 1 || p.Candidates[0].Name != "r2" || p.Candidates[0].Tier != 0 {
			t.Errorf("%s\n%s", p, diff)
		}
		if p := h.plan(envelope("x@f.test")); len(p.Skipped) != 1 || p.Skipped[0].Why != "tier 0 can take it" { // although that is r3's own
			t.Errorf("%s", p)
		}
		r, err := h.pool.Deliver(t.Context(), envelope("x@b.test", "y@d.test"))
		if err != nil || len(r.Attempts) != 1 {
			t.Errorf("two routes with one order parted a message: %v, %v", r, err)
		}
		r, err = h.pool.Deliver(t.Context(), envelope("x@a.test", "y@b.test"))
		if err != nil || len(r.Attempts) != 2 || whose(r) != "r0 r2" {
			t.Errorf("%v, %v", r, err)
		}
		for place, prefer := range []string{"r0", "r1", "r2"} { // whose places in the order are others than their tiers
			e := envelope("x@a.test")
			e.Prefer = prefer
			if r, err := h.pool.Deliver(t.Context(), e); err != nil || whose(r) != prefer {
				t.Errorf("%s is preferred: %v, %v", prefer, r, err)
			}
			if p := h.plan(e); p.Tier != place || len(p.Candidates) != 1 || p.Candidates[0].Name != prefer {
				t.Errorf("%s is preferred: %s", prefer, p)
			}
		}
		h.relays[2].Kill()
		if got := h.fate("z@b.test"); got != "r1" {
			t.Errorf("after the first: %s", got)
		}
		h.relays[1].Kill()
		if got := h.fate("z@b.test"); got != "r0" {
			t.Errorf("after the second: %s", got)
		}
		r, err = h.pool.Deliver(t.Context(), envelope("x@e.test"))
		if err != nil || whose(r) != "r3" {
			t.Errorf("%v, %v", r, err)
		}
	})
}

// What DNS finds has the place of the entry that it was found by.
func TestRouteOrderedSRV(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{}
		z.set("submission", record(0, 20, 1), record(1, 10, 1))
		h := newDomain(t, 3, z, func(c *smtplb.Config) {
			first := c.Relays[0]
			first.Addr, first.Name, first.TLSConfig = "r2.test:587", "own", first.TLSConfig.Clone()
			first.TLSConfig.ServerName = "example.com"
			c.Relays = append(c.Relays, first)
			c.Routes = []smtplb.Route{
				{Recipients: []string{"a.test"}, Relays: []string{"own", "srv:example.com"}, Ordered: true},
				{Recipients: []string{"b.test"}, Relays: []string{"srv:example.com", "own"}, Ordered: true},
			}
		})
		defer h.close()
		order := func(to string) (names []string) {
			p := h.plan(envelope(to))
			for _, x := range p.Candidates {
				names = append(names, fmt.Sprintf("%s %d", strings.TrimPrefix(x.Name, "srv:example.com/"), x.Tier))
			}
			for _, x := range p.Skipped {
				names = append(names, fmt.Sprintf("%s %d", strings.TrimPrefix(x.Name, "srv:example.com/"), x.Tier))
			}
			return names
		}
		if diff := cmp.Diff([]string{"own 1", "srv:example.com 0"}, order("x@b.test")); diff != "" {
			t.Errorf("before DNS was asked: %s", diff)
		}
		if diff := cmp.Diff([]string{"own 0", "srv:example.com 1"}, order("x@a.test")); diff != "" {
			t.Errorf("before DNS was asked: %s", diff)
		}
		if got := h.fate("x@b.test"); got != "srv:example.com/r1.test:587" {
			t.Error(got)
		}
		if got := h.fate("x@a.test"); got != "own" {
			t.Error(got)
		}
		if diff := cmp.Diff([]string{"own 0", "r1.test:587 1", "r0.test:587 1"}, order("x@a.test")); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]string{"r1.test:587 0", "r0.test:587 0", "own 1"}, order("x@b.test")); diff != "" {
			t.Error(diff)
		}
	})
}

// RouteDefault makes an exception to a wider route; AnyCase and Delimiter are for whom they say.
func TestRouteDefault(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 3, func(c *smtplb.Config) {
			c.Relays[1].RoutedOnly, c.Relays[2].RoutedOnly = true, true
			c.Routes = []smtplb.Route{
				{Recipients: []string{"*.a.test", "a.test"}, Relays: []string{"r1"}},
				{Name: "but", Recipients: []string{"b.a.test"}, Action: smtplb.RouteDefault},
				{Recipients: []string{"vip@a.test"}, AnyCase: true, Delimiter: "+", Relays: []string{"r2"}},
				{Recipients: []string{"exact@a.test"}, Relays: []string{"r2"}},
			}
		})
		defer h.close()
		for _, x := range []struct{ to, want string }{
			{"x@a.test", "r1"}, {"x@c.a.test", "r1"}, {"x@b.a.test", "r0"}, {"x@c.b.a.test", "r1"}, {"x@else.test", "r0"},
			{"VIP@a.test", "r2"}, {"Vip+x@a.test", "r2"}, {"vip-x@a.test", "r1"}, {"exact@a.test", "r2"}, {"Exact@a.test", "r1"}, {"exact+x@a.test", "r1"},
		} {
			if got := h.fate(x.to); got != x.want {
				t.Errorf("%s: %s, want %s", x.to, got, x.want)
			}
		}
		if p := h.plan(envelope("x@b.a.test")); p.Route != "but" || p.Decided != 0 {
			t.Errorf("%+v", p)
		}
		r, err := h.pool.Deliver(t.Context(), envelope("x@b.a.test", "x@else.test"))
		if err != nil || len(r.Attempts) != 1 {
			t.Errorf("what goes by default parted from what has no route: %v, %v", r, err)
		}
	})
}

func TestRouteFaultsOfOrderAndCase(t *testing.T) {
	relays := []smtplb.Relay{{Name: "a", Addr: "a.test:25", Tags: []string{"x"}}, {Name: "b", Addr: "b.test:25", RoutedOnly: true}}
	closed := []smtplb.Relay{{Name: "a", Addr: "a.test:25", RoutedOnly: true}}
	every := smtplb.Route{Relays: []string{"a"}}
	for _, x := range []struct {
		relays []smtplb.Relay
		routes []smtplb.Route
		want   []string
	}{
		{relays, []smtplb.Route{{Relays: []string{"a", "b"}, Ordered: true}}, nil},
		{relays, []smtplb.Route{{Relays: []string{"b"}, Tags: []string{"x"}, Ordered: true}}, []string{"Routes[0].Ordered: goes without Tags"}},
		{relays, []smtplb.Route{{Action: smtplb.RouteFail, Ordered: true}}, []string{"Routes[0].Ordered: is for relays"}},
		{relays, []smtplb.Route{{Action: smtplb.RouteDefault}}, nil},
		{relays, []smtplb.Route{{Action: smtplb.RouteDefault, Relays: []string{"a"}}}, []string{"Routes[0].Action: goes without Relays"}},
		{relays, []smtplb.Route{{Action: smtplb.RouteDefault, Text: "why"}}, []string{"Routes[0].Text: is for an Action"}},
		{closed, []smtplb.Route{every, {Recipients: []string{"a.test"}, Action: smtplb.RouteDefault}}, []string{"Routes[1].Action: leads to the relays that are not RoutedOnly, and all are"}},
		{closed, []smtplb.Route{{Action: smtplb.RouteDefault}}, []string{"Routes[0].Action: leads to", "Relays: all are RoutedOnly"}},
		{relays, []smtplb.Route{{Relays: []string{"a"}, Delimiter: "+"}}, []string{"Routes[0].Delimiter: goes with AnyCase"}},
		{relays, []smtplb.Route{{Relays: []string{"a"}, AnyCase: true, Delimiter: "++"}}, []string{`Routes[0].Delimiter: "++" is not one of`}},
		{relays, []smtplb.Route{{Relays: []string{"a"}, AnyCase: true, Delimiter: "\xff"}}, []string{`Routes[0].Delimiter: "\xff" is not one of`}},
		{relays, []smtplb.Route{{Recipients: []string{"u@a.test"}, Relays: []string{"a"}, AnyCase: true, Delimiter: "+"}, {Recipients: []string{"v@a.test"}, Relays: []string{"a"}}, {Recipients: []string{"w@a.test"}, Relays: []string{"a"}, AnyCase: true}}, []string{`Routes[2].Delimiter: is "", and that of Routes[0] "+"`}},
		{relays, []smtplb.Route{{Recipients: []string{"u@a.test"}, Relays: []string{"a"}, AnyCase: true}, {Recipients: []string{"U@a.test"}, Relays: []string{"b"}, AnyCase: true}, {Recipients: []string{"u@a.test"}, Relays: []string{"b"}}}, []string{"Routes[1].Recipients[0]: is for the same mail as Routes[0]"}},
	} {
		pool, err := smtplb.New(smtplb.Config{Relays: x.relays, Routes: x.routes})
		if err == nil {
			pool.Close()
		}
		var got []string
		if err != nil {
			got = strings.Split(err.Error(), "\n")
		}
		if !slices.EqualFunc(got, x.want, func(g, w string) bool { return strings.HasPrefix(g, "smtplb: "+w) }) {
			t.Errorf("%+v:\n got %q\nwant %q", x.routes, got, x.want)
		}
	}
}
