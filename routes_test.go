package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/textproto"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// whose is each recipient's relay, in the envelope's order.
func whose(r *smtplb.Receipt) string {
	var s []string
	for _, x := range r.Recipients {
		s = append(s, x.Relay)
	}
	return strings.Join(s, " ")
}

// tagged gives the relays tags, a word of each string, and the pool routes.
func tagged(tags []string, routes ...smtplb.Route) func(*smtplb.Config) {
	return func(c *smtplb.Config) {
		for i, s := range tags {
			c.Relays[i].Tags = strings.Fields(s)
		}
		c.Routes = routes
	}
}

// The most specific route counts: by recipient, then by sender, then by stream; and what no route is for goes to the others.
func TestRoutesBySpecificity(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 8, func(c *smtplb.Config) {
			c.Relays[7].RoutedOnly = true
			for i := 1; i < 7; i++ {
				c.Relays[i].RoutedOnly = true
			}
			c.Routes = []smtplb.Route{
				{Recipients: []string{"*.example.net"}, Relays: []string{"r1"}},
				{Recipients: []string{"example.net", "bücher.example"}, Relays: []string{"r2"}},
				{Recipients: []string{"vip@example.net"}, Relays: []string{"r3"}},
				{Recipients: []string{"example.net"}, Senders: []string{"*.sender.test"}, Relays: []string{"r4"}},
				{Recipients: []string{"example.net"}, Senders: []string{"<>"}, Relays: []string{"r5"}},
				{Streams: []string{"bulk"}, Relays: []string{"r6"}},
				{Recipients: []string{"*.deep.example.net"}, Relays: []string{"r7"}},
			}
		})
		defer h.close()
		for _, x := range []struct{ from, to, stream, want string }{
			{"a@example.com", "x@elsewhere.test", "", "r0"},
			{"a@example.com", "x@sub.example.net", "", "r1"},
			{"a@example.com", "x@a.b.sub.Example.NET", "", "r1"},
			{"a@example.com", "x@deep.example.net", "", "r1"},
			{"a@example.com", "x@very.deep.example.net", "bulk", "r7"},
			{"a@example.com", "x@EXAMPLE.net", "", "r2"},
			{"a@example.com", "x@Bücher.example", "", "r2"},
			{"a@example.com", "x@xn--bcher-kva.example", "", "r2"},
			{"a@example.com", "vip@example.net", "bulk", "r3"},
			{"a@mail.sender.test", "vip@example.net", "", "r3"},
			{"a@mail.sender.test", "x@example.net", "bulk", "r4"},
			{"a@sender.test", "x@example.net", "", "r2"},
			{"<>", "x@example.net", "", "r5"},
			{"<>", "x@elsewhere.test", "", "r0"},
			{"a@example.com", "x@elsewhere.test", "bulk", "r6"},
			{"a@example.com", "x@example.net", "bulk", "r2"},
			{"a@example.com", "x@notexample.net", "", "r0"},
			{"a@example.com", "x@[192.0.2.1]", "", "r0"},
		} {
			e := envelope(x.to)
			e.From, e.Stream = x.from, x.stream
			r, err := h.pool.Deliver(t.Context(), e)
			if err != nil || whose(r) != x.want {
				t.Errorf("from %s to %s, stream %q: by %s, want %s (%v)", x.from, x.to, x.stream, whose(r), x.want, err)
			}
		}
	})
}

// One message whose recipients leave by several groups: each group gets its own once, and the receipt is in the envelope's order.
func TestRoutesSplit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 4, tagged([]string{"gmail", "gmail", "outlook"},
			smtplb.Route{Name: "google", Recipients: []string{"gmail.com", "googlemail.com"}, Tags: []string{"gmail"}},
			smtplb.Route{Name: "microsoft", Recipients: []string{"outlook.com"}, Tags: []string{"outlook"}},
			smtplb.Route{Name: "hotmail", Recipients: []string{"hotmail.com"}, Relays: []string{"r2"}},
			smtplb.Route{Name: "others", Relays: []string{"r3"}},
		))
		defer h.close()
		h.relays[2].On(smtptest.Rcpt).If(func(e *smtptest.Event) bool { return strings.HasPrefix(e.Rcpt, "gone@") }).Reply(550, "5.1.1 No such user")
		for range 4 {
			e := envelope("a@outlook.com", "a@gmail.com", "x@example.org", "b@hotmail.com", "gone@outlook.com", "b@GoogleMail.com", "a@gmail.com")
			r, err := h.pool.Deliver(t.Context(), e)
			if !errors.Is(err, smtplb.ErrPartial) {
				t.Fatal(err)
			}
			if got := outcomes(r); got != "accepted accepted accepted accepted failed accepted accepted" {
				t.Errorf("%s: %v", got, r)
			}
			var to []string
			for i, x := range r.Recipients {
				to = append(to, x.Addr)
				if x.Outcome == smtplb.Accepted && x.QueueID == "" {
					t.Errorf("no queue ID for %d", i)
				}
			}
			if diff := cmp.Diff(e.To, to); diff != "" {
				t.Error(diff)
			}
			by := strings.Fields(whose(r))
			if by[0] != "r2" || by[3] != "r2" || by[4] != "r2" || by[2] != "r3" || by[1] != by[5] || by[1] != by[6] || by[1] != "r0" && by[1] != "r1" {
				t.Error(by)
			}
			if len(r.Attempts) != 3 {
				t.Errorf("%d attempts", len(r.Attempts))
			}
			for _, a := range r.Attempts {
				if want := map[string]int{"r0": 2, "r1": 2, "r2": 3, "r3": 1}[a.Relay]; a.Offered != want {
					t.Errorf("%s was offered %d recipients, want %d", a.Relay, a.Offered, want)
				}
			}
		}
		if a, b := len(h.relays[0].Messages()), len(h.relays[1].Messages()); a != 2 || b != 2 {
			t.Errorf("the group of two had %d and %d messages", a, b)
		}
		if n := len(h.relays[2].Messages()); n != 4 {
			t.Errorf("two routes to one group made %d transactions of 4 messages", n)
		}
		for _, to := range []string{"a@outlook.com", "a@gmail.com", "x@example.org", "b@hotmail.com", "b@googlemail.com"} {
			if n := h.stored(to); n != 4 {
				t.Errorf("%s: %d of 4", to, n)
			}
		}
	})
}

// A group that is down, or full, delays no other part of the message.
func TestRoutesDontDelayEachOther(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 3, tagged([]string{"a", "a", "b"},
			smtplb.Route{Recipients: []string{"a.test"}, Tags: []string{"a"}},
			smtplb.Route{Recipients: []string{"b.test"}, Tags: []string{"b"}}))
		defer h.close()
		h.net.Blackhole("r0.test:25", true)
		h.net.Blackhole("r1.test:25", true)
		start := time.Now()
		var at time.Duration
		h.relays[2].On(smtptest.EndOfData).If(func(*smtptest.Event) bool { at = time.Since(start); return false }).Reply(250, "2.0.0 never")
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		r, err := h.pool.Deliver(ctx, envelope("x@a.test", "x@b.test"))
		if !errors.Is(err, smtplb.ErrPartial) || outcomes(r) != "deferred accepted" {
			t.Errorf("%s: %v", outcomes(r), err)
		}
		if at > time.Second {
			t.Errorf("the well part was delivered after %v", at)
		}
		if se := (*smtplb.SendError)(nil); !errors.As(err, &se) || se.RetryAfter <= 0 || r.Recipients[0].RetryAfter != se.RetryAfter {
			t.Errorf("%+v", se)
		}
		if again := r.Retry(envelope("x@a.test", "x@b.test")); !slices.Equal(again.To, []string{"x@a.test"}) {
			t.Errorf("retry for %v", again.To)
		}
		for _, a := range r.Attempts {
			if a.Relay == "r2" && a.Err != nil || a.Relay != "r2" && a.Offered != 1 {
				t.Errorf("%+v", a)
			}
		}
		// And no other relay was asked for what the route doesn't send there.
		if n := h.relays[2].Stats().Connections; n != 1 {
			t.Errorf("%d connections to the other group", n)
		}
	})
}

// RequireAll sends in one piece, to a relay that all the routes lead to.
func TestRoutesRequireAll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 3, tagged([]string{"a", "a b", "b"},
			smtplb.Route{Recipients: []string{"a.test"}, Tags: []string{"a"}},
			smtplb.Route{Recipients: []string{"b.test"}, Tags: []string{"b"}},
			smtplb.Route{Recipients: []string{"c.test"}, Relays: []string{"r2"}},
			smtplb.Route{Recipients: []string{"gone.test"}, Action: smtplb.RouteFail, Text: "5.7.1 gone"},
			smtplb.Route{Recipients: []string{"void.test"}, Action: smtplb.RouteDiscard}))
		defer h.close()
		for range 3 {
			e := envelope("x@a.test", "x@b.test")
			e.RequireAll = true
			r, err := h.pool.Deliver(t.Context(), e)
			if err != nil || whose(r) != "r1 r1" || len(r.Attempts) != 1 {
				t.Errorf("%v, %v", r, err)
			}
		}
		e := envelope("x@a.test", "x@b.test", "x@c.test")
		e.RequireAll = true
		r, err := h.pool.Deliver(t.Context(), e)
		if ee := (*smtplb.EnvelopeError)(nil); r != nil || !errors.As(err, &ee) || ee.Field != "RequireAll" || !errors.Is(err, smtplb.ErrPermanent) {
			t.Errorf("%v, %v", r, err)
		}
		if err := h.pool.SendMail("", nil, "a@example.com", []string{"x@a.test", "x@gone.test"}, []byte(text)); !errors.Is(err, smtplb.ErrPermanent) || !strings.Contains(err.Error(), "5.7.1 gone") {
			t.Error(err)
		}
		if te := (*textproto.Error)(nil); !errors.As(h.pool.SendMail("", nil, "a@example.com", []string{"x@gone.test"}, []byte(text)), &te) || te.Code != 550 {
			t.Error(te)
		}
		if err := h.pool.SendMail("", nil, "a@example.com", []string{"x@c.test", "x@void.test"}, []byte(text)); err != nil { // net/smtp's callers would send again, and x@c.test has it
			t.Error(err)
		}
		h.relays[1].Kill()
		e = envelope("x@a.test", "x@b.test")
		e.RequireAll = true
		r, err = h.pool.Deliver(t.Context(), e)
		if !errors.Is(err, smtplb.ErrTemporary) || outcomes(r) != "deferred deferred" {
			t.Errorf("%v, %v", r, err)
		}
		if n := len(h.relays[0].Messages()); n != 0 {
			t.Errorf("%d messages at a relay that only one route leads to", n)
		}
		if n := h.stored("x@a.test"); n != 3 {
			t.Errorf("%d stored, want 3", n)
		}
		if n := h.stored("x@c.test"); n != 1 {
			t.Errorf("%d stored beside a discarded one, want 1", n)
		}
	})
}

// Routes that lead to no relay.
func TestRouteActions(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, tagged(nil,
			smtplb.Route{Name: "closed", Recipients: []string{"closed.test"}, Action: smtplb.RouteFail, Text: "5.7.1 no mail: here"},
			smtplb.Route{Name: "later", Recipients: []string{"later.test"}, Action: smtplb.RouteDefer, Text: "4.0.0 moving house"},
			smtplb.Route{Name: "void", Recipients: []string{"void.test", "*.void.test"}, Action: smtplb.RouteDiscard}))
		defer h.close()
		for _, x := range []struct {
			to, want string
			is, not  []error
		}{
			{"x@closed.test", "failed", []error{smtplb.ErrPermanent}, []error{smtplb.ErrTemporary, smtplb.ErrPartial, smtplb.ErrDiscarded, smtplb.ErrUnknown}},
			{"x@later.test", "deferred", []error{smtplb.ErrTemporary}, []error{smtplb.ErrPermanent, smtplb.ErrDiscarded}},
			{"x@void.test", "discarded", []error{smtplb.ErrDiscarded}, []error{smtplb.ErrPermanent, smtplb.ErrTemporary, smtplb.ErrPartial}},
			{"x@closed.test x@a.void.test", "failed discarded", []error{smtplb.ErrPermanent}, []error{smtplb.ErrDiscarded, smtplb.ErrTemporary}},
			{"x@void.test x@well.test", "discarded accepted", []error{smtplb.ErrDiscarded, smtplb.ErrPartial}, []error{smtplb.ErrPermanent, smtplb.ErrTemporary}},
			{"x@closed.test x@later.test x@well.test x@void.test", "failed deferred accepted discarded", []error{smtplb.ErrPartial}, []error{smtplb.ErrDiscarded, smtplb.ErrTemporary, smtplb.ErrPermanent}},
		} {
			r, err := h.pool.Deliver(t.Context(), envelope(strings.Fields(x.to)...))
			if outcomes(r) != x.want {
				t.Errorf("%s: %s, want %s", x.to, outcomes(r), x.want)
			}
			for _, target := range x.is {
				if !errors.Is(err, target) {
					t.Errorf("%s: %v is not %v", x.to, err, target)
				}
			}
			for _, target := range x.not {
				if errors.Is(err, target) {
					t.Errorf("%s: %v is %v", x.to, err, target)
				}
			}
		}
		r, err := h.pool.Deliver(t.Context(), envelope("x@closed.test"))
		re := (*smtplb.RouteError)(nil)
		if x := r.Recipients[0]; !errors.As(x.Err(), &re) || re.Route != "closed" || re.Reason != "5.7.1 no mail: here" || x.Relay != "" || x.Stage != "" || len(r.Attempts) != 0 {
			t.Errorf("%+v", x)
		}
		if !errors.As(err, &re) || !strings.Contains(err.Error(), "route closed: 5.7.1 no mail: here") {
			t.Error(err)
		}
		if r, _ := h.pool.Deliver(t.Context(), envelope("x@later.test")); r.Recipients[0].RetryAfter <= 0 {
			t.Errorf("%+v", r.Recipients[0])
		}
		if n := h.relays[0].Stats().Messages; n != 2 {
			t.Errorf("the relay has %d messages, want 2", n)
		}
	})
}

// A message that waits while the routes change leaves by the new ones, also where it parts into two by that.
func TestRoutesUpdate(t *testing.T) {
	for _, x := range []struct {
		name   string
		routes []smtplb.Route
		want   string
	}{
		{"all by another", []smtplb.Route{{Relays: []string{"r1"}}}, "r1 r1 r1"},
		{"parted", []smtplb.Route{{Recipients: []string{"a.test"}, Relays: []string{"r1"}}, {Recipients: []string{"b.test"}, Relays: []string{"r2"}}, {Recipients: []string{"c.test"}, Relays: []string{"r2"}}}, "r1 r2 r2"},
		{"one is refused", []smtplb.Route{{Recipients: []string{"a.test"}, Action: smtplb.RouteFail}, {Relays: []string{"r2"}}}, " r2 r2"},
		{"none any more", nil, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var c smtplb.Config
				h := newHouse(t, 3, func(cfg *smtplb.Config) {
					cfg.Relays[0].Conns.Max = 1
					cfg.Routes = []smtplb.Route{{Relays: []string{"r0"}}}
					c = *cfg
				})
				defer h.close()
				h.relays[0].On(smtptest.EndOfData).If(func(e *smtptest.Event) bool { return e.Transaction == 1 }).Delay(time.Minute)
				first := make(chan error, 1)
				go func() {
					_, err := h.pool.Deliver(t.Context(), envelope("first@example.com"))
					first <- err
				}()
				synctest.Wait()
				type result struct {
					*smtplb.Receipt
					error
				}
				got := make(chan result, 1)
				go func() {
					r, err := h.pool.Deliver(t.Context(), envelope("x@a.test", "x@b.test", "x@c.test"))
					got <- result{r, err}
				}()
				time.Sleep(time.Second)
				c.Routes = x.routes
				if err := h.pool.Update(c); err != nil {
					t.Fatal(err)
				}
				r := <-got
				if x.want == "" {
					if r.error != nil || strings.Contains(whose(r.Receipt), "r0") {
						t.Errorf("%s, %v", whose(r.Receipt), r.error)
					}
				} else if whose(r.Receipt) != x.want || (r.error != nil) != strings.HasPrefix(x.want, " ") {
					t.Errorf("%q, want %q: %v", whose(r.Receipt), x.want, r.error)
				}
				if err := <-first; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// What the caller's own functions do in a part comes out of Deliver, as it would without parts, and the other part is finished first.
func TestRoutesPanic(t *testing.T) {
	for _, who := range []string{"r0", "r1"} {
		for _, exits := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, exits %t", who, exits), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					h := newHouse(t, 2, func(c *smtplb.Config) {
						c.Routes = []smtplb.Route{{Recipients: []string{"a.test"}, Relays: []string{"r0"}}, {Recipients: []string{"b.test"}, Relays: []string{"r1"}}}
						dial := c.Dial
						c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
							if !strings.HasPrefix(addr, who) {
								time.Sleep(time.Second)
								return dial(ctx, network, addr)
							}
							if exits {
								runtime.Goexit()
							}
							panic("dial: " + who)
						}
					})
					defer h.close()
					done := make(chan any, 1)
					go func() {
						defer func() { done <- recover() }()
						_, err := h.pool.Deliver(t.Context(), envelope("x@a.test", "x@b.test"))
						t.Errorf("it returned: %v", err)
					}()
					switch x := <-done; {
					case exits && x != nil, !exits && x != "dial: "+who:
						t.Errorf("what came out: %v", x)
					}
					other := map[string]string{"r0": "x@b.test", "r1": "x@a.test"}[who]
					if n := h.stored(other); n != 1 {
						t.Errorf("the other part was stored %d times", n)
					}
				})
			})
		}
	}
}

// Close and the caller's context end all parts.
func TestRoutesEnd(t *testing.T) {
	for _, end := range []string{"close", "context"} {
		t.Run(end, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 2, tagged([]string{"a", "b"}, smtplb.Route{Recipients: []string{"a.test"}, Tags: []string{"a"}}, smtplb.Route{Tags: []string{"b"}}))
				defer h.close()
				h.relays[0].On(smtptest.Mail).Stall()
				h.relays[1].On(smtptest.EndOfData).Stall()
				ctx, cancel := context.WithCancel(t.Context())
				go func() {
					time.Sleep(time.Second)
					if end == "close" {
						h.pool.Close()
					}
					cancel()
				}()
				start := time.Now()
				r, err := h.pool.Deliver(ctx, envelope("x@a.test", "x@b.test"))
				if !errors.Is(err, smtplb.ErrUnknown) || outcomes(r) != "deferred unknown" || time.Since(start) > 7*time.Second {
					t.Errorf("%s after %v: %v", outcomes(r), time.Since(start), err)
				}
			})
		})
	}
}

// Random routes and recipients: each recipient is stored once, by a relay of the group that a look at all routes says, and nowhere else.
func TestRoutesRandomly(t *testing.T) {
	for seed := range uint64(30) {
		bubble(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 5))
			labels := []string{"a", "b", "c.a", "x.c.a", "d"}
			type rule struct {
				rank  int
				match func(to, stream string) bool
				tag   string
			}
			var rules []rule
			var routes []smtplb.Route
			used := map[string]bool{}
			for range r.IntN(12) {
				d, wild, stream := labels[r.IntN(len(labels))]+".test", r.IntN(2) == 0, []string{"", "s"}[r.IntN(2)]
				pattern := d
				if wild {
					pattern = "*." + d
				}
				if used[pattern+stream] {
					continue
				}
				used[pattern+stream] = true
				x := rule{tag: fmt.Sprintf("t%d", r.IntN(4)), rank: 1000}
				if wild {
					x.rank = 10 * strings.Count(pattern, ".")
				}
				route := smtplb.Route{Recipients: []string{pattern}, Tags: []string{x.tag}}
				if stream != "" {
					x.rank++
					route.Streams = []string{stream}
				}
				x.match = func(to, s string) bool {
					host := to[strings.IndexByte(to, '@')+1:]
					return (stream == "" || s == stream) && (host == d && !wild || wild && strings.HasSuffix(host, "."+d))
				}
				rules, routes = append(rules, x), append(routes, route)
			}
			rules = append(rules, rule{rank: -1, match: func(string, string) bool { return true }, tag: "all"})
			tags := make([][]string, 6)
			h := newHouse(t, len(tags), func(c *smtplb.Config) {
				for i := range c.Relays {
					tags[i] = []string{"all", fmt.Sprintf("t%d", i%4), fmt.Sprintf("t%d", r.IntN(4))}
					c.Relays[i].Tags = tags[i]
				}
				c.Routes = routes
			})
			defer h.close()
			for n := range 20 {
				var to []string
				for i := range 1 + r.IntN(6) {
					to = append(to, fmt.Sprintf("m%d-%d@%s.test", n, i, append(labels, "z.x.c.a", "e")[r.IntN(len(labels)+2)]))
				}
				e := envelope(to...)
				e.Stream = []string{"", "s"}[r.IntN(2)]
				receipt, err := h.pool.Deliver(t.Context(), e)
				if err != nil {
					t.Fatal(err)
				}
				for i, x := range receipt.Recipients {
					best := rule{rank: -2}
					for _, y := range rules {
						if y.rank > best.rank && y.match(to[i], e.Stream) {
							best = y
						}
					}
					if n := int(x.Relay[1] - '0'); !slices.Contains(tags[n], best.tag) {
						t.Errorf("seed %d: %s, stream %q, went to %s; its route's tag is %q; routes %+v", seed, to[i], e.Stream, x.Relay, best.tag, routes)
					}
					if h.stored(to[i]) != 1 {
						t.Errorf("seed %d: %s was stored %d times", seed, to[i], h.stored(to[i]))
					}
				}
			}
		})
	}
}

// What is wrong with routes is told with its place.
func TestRouteFaults(t *testing.T) {
	relay := func(name string, routed bool, tags ...string) smtplb.Relay {
		return smtplb.Relay{Name: name, Addr: name + ".test:25", TLS: smtplb.TLSNone, RoutedOnly: routed, Tags: tags}
	}
	for _, x := range []struct {
		relays []smtplb.Relay
		routes []smtplb.Route
		want   string
	}{
		{nil, []smtplb.Route{{Relays: []string{"b"}}}, `Routes[0].Relays[0]: no relay is called "b"`},
		{nil, []smtplb.Route{{Tags: []string{"x", "y"}}}, `Routes[0].Tags[1]: no relay has the tag "y"`},
		{nil, []smtplb.Route{{Recipients: []string{"a.test"}}}, "Routes[0].Relays: names no relay, nor does Tags"},
		{nil, []smtplb.Route{{Relays: []string{"a"}, Action: smtplb.RouteFail}}, "Routes[0].Action: goes without"},
		{nil, []smtplb.Route{{Action: 9}}, "Routes[0].Action: 9 is none"},
		{nil, []smtplb.Route{{Relays: []string{"a"}, Text: "why"}}, "Routes[0].Text: is for an Action"},
		{nil, []smtplb.Route{{Action: smtplb.RouteFail, Text: "a\r\nb"}}, "Routes[0].Text: control characters"},
		{nil, []smtplb.Route{{Recipients: []string{}, Relays: []string{"a"}}}, "Routes[0].Recipients: is empty; nil stands for all"},
		{nil, []smtplb.Route{{Recipients: []string{"a.test", ""}, Relays: []string{"a"}}}, "Routes[0].Recipients[1]: is empty"},
		{nil, []smtplb.Route{{Streams: []string{strings.Repeat("s", 65)}, Relays: []string{"a"}}}, "Routes[0].Streams[0]: control characters, or more than 64 bytes"},
		{nil, []smtplb.Route{{Streams: []string{"*"}, Relays: []string{"a"}}}, "Routes[0].Streams[0]: is no pattern; nil stands for all"},
		{nil, []smtplb.Route{{Recipients: make([]string, 4000), Senders: make([]string, 4000), Action: smtplb.RouteFail}}, "Routes[0]: makes 16000000 combinations"},
		{nil, []smtplb.Route{{Name: "r", Recipients: []string{"a.test"}, Relays: []string{"a"}}, {Name: "r", Relays: []string{"a"}}}, `Routes[1].Name: "r" is the name of Routes[0] too`},
		{nil, []smtplb.Route{{Recipients: []string{"a.test"}, Relays: []string{"a"}}, {Recipients: []string{"b.test", "A.test"}, Relays: []string{"a"}}}, "Routes[1].Recipients[1]: is for the same mail as Routes[0]"},
		{nil, []smtplb.Route{{Relays: []string{"a"}}, {Relays: []string{"a"}}}, "Routes[1]: is for the same mail as Routes[0]"},
		{nil, []smtplb.Route{{Recipients: []string{"a.*.test"}, Relays: []string{"a"}}}, "Routes[0].Recipients[0]: "},
		{nil, []smtplb.Route{{Recipients: []string{"*.a..test"}, Relays: []string{"a"}}}, "Routes[0].Recipients[0]: "},
		{nil, []smtplb.Route{{Recipients: []string{".a.test"}, Relays: []string{"a"}}}, "Routes[0].Recipients[0]: a domain doesn't begin with a dot; all its subdomains are \"*.example.com\""},
		{nil, []smtplb.Route{{Senders: []string{"me@a.test"}, Relays: []string{"a"}}}, "Routes[0].Senders[0]: "},
		{[]smtplb.Relay{relay("a", true)}, nil, "Relays: all are RoutedOnly"},
		{[]smtplb.Relay{relay("a", true)}, []smtplb.Route{{Streams: []string{"s"}, Relays: []string{"a"}}}, "Relays: all are RoutedOnly"},
		{[]smtplb.Relay{relay("a", true)}, []smtplb.Route{{Recipients: []string{"*"}, Relays: []string{"a"}}}, ""},
		{[]smtplb.Relay{relay("a", true)}, []smtplb.Route{{Recipients: []string{"a.test"}, Relays: []string{"a"}}, {Action: smtplb.RouteFail}}, ""},
	} {
		if x.relays == nil {
			x.relays = []smtplb.Relay{relay("a", false, "x")}
		}
		pool, err := smtplb.New(smtplb.Config{Relays: x.relays, Routes: x.routes})
		switch {
		case x.want == "" && err != nil:
			t.Errorf("%+v: %v", x.routes, err)
		case x.want == "":
			pool.Close()
		case err == nil || !strings.Contains(err.Error(), "smtplb: "+x.want) || strings.Contains(err.Error(), "\n") && len(x.routes[0].Senders) < 4000:
			t.Errorf("%+v:\n got %v\nwant %s", x.routes, err, x.want)
		}
	}
}

// Explain tells the route of each part, and what a route decides by itself.
func TestExplainRoutes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 4, tagged([]string{"a", "a", "b"},
			smtplb.Route{Name: "first", Recipients: []string{"a.test"}, Tags: []string{"a"}},
			smtplb.Route{Name: "second", Recipients: []string{"b.test"}, Tags: []string{"b"}},
			smtplb.Route{Name: "never", Recipients: []string{"never.test"}, Action: smtplb.RouteFail, Text: "5.7.1 no mail here"}))
		defer h.close()
		names := func(p smtplb.Plan) string {
			var s []string
			for _, x := range p.Candidates {
				s = append(s, x.Name)
			}
			slices.Sort(s)
			return fmt.Sprintf("%s %d %v %v", p.Route, p.Recipients, s, p.Decided)
		}
		p, err := h.pool.Explain(t.Context(), envelope("x@a.test"))
		if err != nil || names(p) != "first 1 [r0 r1] invalid" || p.Others != nil || len(p.Skipped) != 0 {
			t.Errorf("%s, %v", p, err)
		}
		p, err = h.pool.Explain(t.Context(), envelope("x@a.test", "x@never.test", "y@b.test", "z@a.test", "q@else.test"))
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, x := range append([]smtplb.Plan{p}, p.Others...) {
			all = append(all, names(x))
		}
		want := []string{"never 1 [] failed", "first 2 [r0 r1] invalid", "second 1 [r2] invalid", " 1 [r0 r1 r2 r3] invalid"}
		if diff := cmp.Diff(want, all); diff != "" {
			t.Error(diff)
		}
		text := p.String()
		for _, s := range []string{"route never, 1 recipient: failed, without a relay: 5.7.1 no mail here\n", "route first, 2 recipients: goes out now, tier 0", "route of all that no Route is for, 1 recipient: "} {
			if !strings.Contains(text, s) {
				t.Errorf("%q is not in\n%s", s, text)
			}
		}
		for _, r := range h.relays {
			if n := r.Stats().Connections; n != 0 {
				t.Errorf("%d connections", n)
			}
		}
	})
}
