package smtplb

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A route's group is what one look at each relay would find, in the order of the fleet: whatever names and tags overlap, and whether DNS or the configuration names the relay.
func TestRolls(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	serves := func(x *Route, r *Relay) bool {
		return slices.Contains(x.Relays, r.name()) || slices.ContainsFunc(x.Tags, func(tag string) bool { return slices.Contains(r.Tags, tag) })
	}
	some := func(most int, prefix string) (list []string) {
		for range rnd.IntN(most + 1) {
			list = append(list, fmt.Sprint(prefix, rnd.IntN(6)))
		}
		return list
	}
	for range 2000 {
		c := &Config{}
		f := &fleet{}
		for i := range 1 + rnd.IntN(6) {
			c.Relays = append(c.Relays, Relay{Name: fmt.Sprint("r", i), Tags: some(3, "t"), RoutedOnly: rnd.IntN(2) == 0})
		}
		for i := range c.Relays {
			r := &c.Relays[i]
			if rnd.IntN(3) > 0 {
				f.relays = append(f.relays, &relay{origin: r})
				continue
			}
			f.sources = append(f.sources, &source{name: r.Name})
			for range rnd.IntN(3) { // that DNS names for it
				f.relays = append(f.relays, &relay{origin: r})
			}
		}
		rnd.Shuffle(len(f.relays), func(i, j int) { f.relays[i], f.relays[j] = f.relays[j], f.relays[i] }) // by tier, say
		for i, r := range f.relays {
			r.index = i
		}
		look := func(in func(*Relay) bool) (relays, sources []int) {
			for i, r := range f.relays {
				if in(r.origin) {
					relays = append(relays, i)
				}
			}
			for i, s := range f.sources {
				if in(&c.Relays[slices.IndexFunc(c.Relays, func(r Relay) bool { return r.Name == s.name })]) {
					sources = append(sources, i)
				}
			}
			return relays, sources
		}
		check := func(what string, got roll, in func(*Relay) bool) {
			t.Helper()
			relays, sources := look(in)
			var is []int
			for _, r := range got.relays {
				is = append(is, r.index)
			}
			if d := cmp.Diff([][]int{relays, sources}, [][]int{is, got.sources}); d != "" {
				t.Fatalf("%s of %+v: (-looked for +got)\n%s", what, c.Relays, d)
			}
		}
		everybody, byName, byTag := f.rolls(c)
		check("everybody", everybody, func(r *Relay) bool { return !r.RoutedOnly })
		for range 5 {
			x := &Route{Relays: some(3, "r"), Tags: some(3, "t")}
			check(fmt.Sprint(x.Relays, x.Tags), x.of(byName, byTag), func(r *Relay) bool { return serves(x, r) })
		}
		check("everybody afterwards", everybody, func(r *Relay) bool { return !r.RoutedOnly })
	}
}
