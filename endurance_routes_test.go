package smtplb_test

import (
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/smtplb/smtplb"
)

// In some seeds' endurance there are routes: mail for two of three domains leaves by groups of its own, which have a relay in common. Now and then an Update takes the routes away, and puts them back.

// routeTags are those of the i-th relay.
func routeTags(i int) (tags []string) {
	if i%2 == 0 {
		tags = append(tags, "t0")
	}
	if i%3 == 0 || i%3 == 2 {
		tags = append(tags, "t1")
	}
	return tags
}

// routeHosts are the domains of recipients, and the tags that their relays must have.
var routeHosts = []struct{ host, tag string }{{"example.com", ""}, {"zero.example.com", "t0"}, {"deep.one.example.com", "t1"}}

// makeRoutes gives the configuration routes, or none.
func (c *endurance) makeRoutes(r *rand.Rand, cfg *smtplb.Config) {
	if c.zone != nil || r.IntN(3) > 0 {
		return
	}
	c.steady = true // a route's relays keep their names, and stay
	for i := range cfg.Relays {
		cfg.Relays[i].Tags = routeTags(i)
	}
	c.routes = []smtplb.Route{
		{Name: "zero", Recipients: []string{"zero.example.com"}, Tags: []string{"t0"}},
		{Name: "one", Recipients: []string{"*.one.example.com"}, Tags: []string{"t1"}},
	}
	cfg.Routes = c.routes
	c.routed.Store(true)
}

// reroute takes the routes of cfg away, or puts them back.
func (c *endurance) reroute(cfg *smtplb.Config) (what string) {
	if cfg.Routes != nil {
		cfg.Routes = nil
		return ", no routes"
	}
	cfg.Routes = c.routes
	return ", routes"
}

// host returns the domain of the n-th recipient of a message.
func (c *endurance) host(id, n int) string {
	if c.policy != nil && id%3 == 0 {
		return policyHosts[(id/3+n)%len(policyHosts)]
	}
	if c.routes == nil {
		return routeHosts[0].host
	}
	return routeHosts[(id+n*(1+id%3))%len(routeHosts)].host
}

// parts is into how many a message parts, at the most.
func (c *endurance) parts(e *smtplb.Envelope) int {
	var hosts []string
	for _, to := range e.To {
		if host := to[strings.IndexByte(to, '@')+1:]; !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	return max(len(hosts), 1)
}

// wentByRoutes checks that whoever spoke on a recipient is a relay of its route.
func (c *endurance) wentByRoutes(s *chaosSend) {
	for _, x := range s.receipt.Recipients {
		for _, h := range routeHosts {
			if !strings.HasSuffix(x.Addr, "@"+h.host) || h.tag == "" || x.Relay == "" {
				continue
			}
			i := slices.IndexFunc(c.whole, func(r smtplb.Relay) bool { return r.Name == x.Relay })
			if !slices.Contains(routeTags(i), h.tag) {
				c.Errorf("message %s: %s was %v by %s, which is not on its route", s.env.ID, x.Addr, x.Outcome, x.Relay)
			}
		}
	}
}
