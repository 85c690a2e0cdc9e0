package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// RequireAll of recipients whose routes have no relay in common is the envelope's fault, also beside one who is discarded.
func TestRoutesRequireAllBesideDiscarded(t *testing.T) {
	for _, to := range []string{"x@void.test x@a.test x@b.test", "x@a.test x@b.test x@void.test"} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 2, tagged([]string{"a", "b"},
				smtplb.Route{Recipients: []string{"a.test"}, Tags: []string{"a"}},
				smtplb.Route{Recipients: []string{"b.test"}, Tags: []string{"b"}},
				smtplb.Route{Recipients: []string{"void.test"}, Action: smtplb.RouteDiscard}))
			defer h.close()
			e := envelope(strings.Fields(to)...)
			e.RequireAll = true
			r, err := h.pool.Deliver(t.Context(), e)
			if ee := (*smtplb.EnvelopeError)(nil); r != nil || !errors.As(err, &ee) || ee.Field != "RequireAll" {
				t.Errorf("%s: %v, %v", to, r, err)
			}
		})
	}
}

// Relays that not all of RequireAll's recipients may use have no say in what becomes of them.
func TestRoutesRequireAllRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 3, tagged([]string{"a", "a b", "b"},
			smtplb.Route{Recipients: []string{"a.test"}, Tags: []string{"a"}},
			smtplb.Route{Recipients: []string{"b.test"}, Tags: []string{"b"}}))
		defer h.close()
		h.relays[1].On(smtptest.Mail).Reply(550, "5.7.1 Sender not allowed here")
		e := envelope("x@a.test", "x@b.test")
		e.RequireAll = true
		r, err := h.pool.Deliver(t.Context(), e)
		if !errors.Is(err, smtplb.ErrPermanent) || outcomes(r) != "failed failed" {
			t.Errorf("%v, %v", r, err)
		}
		p, err := h.pool.Explain(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range p.Skipped {
			if x.Name == "r0" && (x.Failover || !strings.Contains(x.Why, "not all")) {
				t.Errorf("%+v", x)
			}
		}
	})
}

// What all routes have in common may be a domain that DNS was not asked for yet.
func TestRoutesRequireAllBeforeDNS(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{}
		z.set("submission", record(0, 1, 1))
		h := newDomain(t, 1, z, func(c *smtplb.Config) {
			c.Relays = append(c.Relays, smtplb.Relay{Name: "own", Addr: "r9.test:25", TLS: smtplb.TLSNone})
			c.Routes = []smtplb.Route{
				{Recipients: []string{"a.test"}, Relays: []string{"own", "srv:example.com"}},
				{Recipients: []string{"b.test"}, Relays: []string{"srv:example.com"}},
				{Recipients: []string{"c.test"}, Relays: []string{"own"}},
			}
		})
		defer h.close()
		e := envelope("x@a.test", "x@b.test")
		e.RequireAll = true
		if r, err := h.pool.Deliver(t.Context(), e); err != nil {
			t.Errorf("%v, %v", r, err)
		}
		e = envelope("x@a.test", "x@b.test", "x@c.test")
		e.RequireAll = true
		if r, err := h.pool.Deliver(t.Context(), e); r != nil || !errors.Is(err, smtplb.ErrPermanent) {
			t.Errorf("%v, %v", r, err)
		}
	})
}

// Where an Update leaves RequireAll no relay, that is what is said; it might be another the next time.
func TestRoutesUpdateTakesWhatIsInCommon(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var c smtplb.Config
		h := newHouse(t, 2, func(cfg *smtplb.Config) {
			cfg.Relays[0].Conns.Max, cfg.Relays[1].RoutedOnly = 1, true
			c = *cfg
		})
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Times(1).Delay(time.Minute)
		go func() { _, _ = h.pool.Deliver(t.Context(), envelope("first@c.test")) }()
		synctest.Wait()
		got := make(chan error, 1)
		go func() {
			e := envelope("x@a.test", "x@b.test")
			e.RequireAll = true
			_, err := h.pool.Deliver(t.Context(), e)
			got <- err
		}()
		time.Sleep(time.Second)
		c.Routes = []smtplb.Route{{Recipients: []string{"a.test"}, Relays: []string{"r0"}}, {Recipients: []string{"b.test"}, Relays: []string{"r1"}}}
		if err := h.pool.Update(c); err != nil {
			t.Fatal(err)
		}
		if err := <-got; !errors.Is(err, smtplb.ErrTemporary) || !errors.Is(err, smtplb.ErrNoRelay) || !strings.Contains(err.Error(), "in common") {
			t.Error(err)
		}
		time.Sleep(2 * time.Minute)
	})
}

// A part that an Update parts again doesn't wait for the others.
func TestRoutesUpdatePartsAPart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var c smtplb.Config
		h := newHouse(t, 4, func(cfg *smtplb.Config) {
			cfg.Relays[1].Conns.Max = 1
			cfg.Routes = []smtplb.Route{{Recipients: []string{"slow.test"}, Relays: []string{"r0"}}, {Recipients: []string{"*"}, Relays: []string{"r1"}}}
			c = *cfg
		})
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Delay(4 * time.Minute)
		h.relays[1].On(smtptest.EndOfData).Times(1).Delay(4 * time.Minute)
		go func() { _, _ = h.pool.Deliver(t.Context(), envelope("first@c.test")) }()
		synctest.Wait()
		got := make(chan error, 1)
		go func() {
			_, err := h.pool.Deliver(t.Context(), envelope("x@slow.test", "x@a.test", "x@b.test"))
			got <- err
		}()
		time.Sleep(time.Second)
		c.Routes = []smtplb.Route{
			{Recipients: []string{"slow.test"}, Relays: []string{"r0"}},
			{Recipients: []string{"a.test"}, Relays: []string{"r2"}}, {Recipients: []string{"b.test"}, Relays: []string{"r3"}},
		}
		if err := h.pool.Update(c); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if a, b := h.stored("x@a.test"), h.stored("x@b.test"); a != 1 || b != 1 {
			t.Errorf("a minute later %d and %d are stored", a, b)
		}
		if err := <-got; err != nil {
			t.Error(err)
		}
		if n := h.stored("x@slow.test"); n != 1 {
			t.Errorf("%d stored", n)
		}
		time.Sleep(time.Minute) // the first has ended too
	})
}

// updatedAfter is a house of n relays, tried in their order, whose pool gets other routes when the first attempt has ended.
func updatedAfter(t *testing.T, n int, change func(*smtplb.Config), routes ...smtplb.Route) *house {
	var h *house
	var c smtplb.Config
	h = newHouse(t, n, func(cfg *smtplb.Config) {
		cfg.Balancer = smtplb.FirstAvailable()
		if change != nil {
			change(cfg)
		}
		var once sync.Once
		cfg.Hooks.AttemptStart = func(context.Context, smtplb.AttemptInfo) func(smtplb.Attempt) {
			return func(smtplb.Attempt) {
				once.Do(func() {
					c.Routes = routes
					if err := h.pool.Update(c); err != nil {
						t.Error(err)
					}
				})
			}
		}
		c = *cfg
	})
	return h
}

// A part whose relay hasn't said anything is not failed because one of before the Update refused it.
func TestRoutesUpdateForgetsNoRefusal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := updatedAfter(t, 3, func(c *smtplb.Config) {
			c.Retry.Attempts = 2
			c.Routes = []smtplb.Route{{Relays: []string{"r0"}}}
		},
			smtplb.Route{Recipients: []string{"a.test"}, Relays: []string{"r1"}},
			smtplb.Route{Recipients: []string{"b.test"}, Relays: []string{"r2"}})
		defer h.close()
		h.relays[0].On(smtptest.Mail).Reply(550, "5.7.1 Sender not allowed here")
		h.relays[1].Kill()
		h.relays[2].Kill()
		r, err := h.pool.Deliver(t.Context(), envelope("x@a.test", "x@b.test"))
		if !errors.Is(err, smtplb.ErrTemporary) || outcomes(r) != "deferred deferred" || len(r.Attempts) != 3 {
			t.Errorf("%v: %v", r, err)
		}
	})
}

// That a message is too large for a relay with a certain SIZE is known of it also when an Update has parted it.
func TestRoutesUpdateKeepsTheSize(t *testing.T) {
	var relays []*smtptest.Server
	var c smtplb.Config
	var h *house
	h = newHouse(t, 3, func(cfg *smtplb.Config) {
		cfg.Dial, cfg.Balancer = nil, smtplb.FirstAvailable()
		for i := range cfg.Relays {
			s := smtptest.NewServer()
			t.Cleanup(s.Close)
			relays, cfg.Relays[i].Addr = append(relays, s), s.Addr
		}
		cfg.Hooks.AttemptStart = func(_ context.Context, a smtplb.AttemptInfo) func(smtplb.Attempt) {
			if a.EnvelopeID != "large" || a.Number > 1 {
				return nil
			}
			return func(smtplb.Attempt) {
				c.Routes = []smtplb.Route{{Recipients: []string{"a.test"}, Relays: []string{"r1"}}, {Recipients: []string{"b.test"}, Relays: []string{"r2"}}}
				if err := h.pool.Update(c); err != nil {
					t.Error(err)
				}
			}
		}
		c = *cfg
	})
	defer h.close()
	for i := range relays { // so that what they offer is known
		e := envelope("x@c.test")
		e.Prefer = fmt.Sprintf("r%d", i)
		if _, err := h.pool.Deliver(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	relays[0].On(smtptest.EndOfData).Reply(552, "5.3.4 Message too big for system")
	e := envelope("x@a.test", "x@b.test")
	e.ID = "large"
	if r, err := h.pool.Deliver(t.Context(), e); !errors.Is(err, smtplb.ErrTemporary) || len(r.Attempts) != 1 {
		t.Errorf("%v: %v", r, err)
	}
}

// What was tried before an Update parted the message is not forgotten: relays that refused it aren't asked again, attempts are counted on, and one that may have it gets it first.
func TestRoutesUpdateKeepsWhatWasTried(t *testing.T) {
	t.Run("over TCP", func(t *testing.T) { // with a Dial function each Update may have moved the relays
		var relays []*smtptest.Server
		h := updatedAfter(t, 3, func(c *smtplb.Config) {
			c.Dial = nil
			for i := range c.Relays {
				s := smtptest.NewServer()
				t.Cleanup(s.Close)
				relays, c.Relays[i].Addr = append(relays, s), s.Addr
			}
		},
			smtplb.Route{Recipients: []string{"a.test"}, Relays: []string{"r0", "r1"}},
			smtplb.Route{Recipients: []string{"b.test"}, Relays: []string{"r0", "r2"}})
		defer h.close()
		relays[0].On(smtptest.Mail).Times(1).Reply(451, "4.3.0 Not now")
		r, err := h.pool.Deliver(t.Context(), envelope("x@a.test", "x@b.test"))
		if err != nil || whose(r) != "r1 r2" || len(r.Attempts) != 3 {
			t.Errorf("%v: %v", r, err)
		}
	})
	bubble(t, func(t *testing.T) {
		h := updatedAfter(t, 5, func(c *smtplb.Config) { c.Retry.Attempts = 2 },
			smtplb.Route{Recipients: []string{"a.test"}, Relays: []string{"r0", "r1", "r2"}},
			smtplb.Route{Recipients: []string{"b.test"}, Relays: []string{"r0", "r3", "r4"}})
		defer h.close()
		for _, s := range h.relays {
			s.On(smtptest.Mail).Reply(451, "4.3.0 Not now")
		}
		r, err := h.pool.Deliver(t.Context(), envelope("x@a.test", "x@b.test"))
		if !errors.Is(err, smtplb.ErrTemporary) || len(r.Attempts) != 3 {
			t.Errorf("%v: %v", r, err)
		}
	})
	for times, want := range map[int]string{1: "r1 r1", 5: "r0 r0"} { // once more, and not twice
		bubble(t, func(t *testing.T) {
			h := updatedAfter(t, 3, func(c *smtplb.Config) { c.Routes = []smtplb.Route{{Relays: []string{"r1"}}} },
				smtplb.Route{Recipients: []string{"a.test"}, Relays: []string{"r0", "r1"}},
				smtplb.Route{Recipients: []string{"b.test"}, Relays: []string{"r0", "r1", "r2"}})
			defer h.close()
			h.relays[1].On(smtptest.EndOfData).Times(times).Drop()
			e := envelope("x@a.test", "x@b.test")
			e.AtLeastOnce = true
			r, err := h.pool.Deliver(t.Context(), e)
			if err != nil || whose(r) != want {
				t.Errorf("%v: %v", r, err)
			}
		})
	}
}

// A relay that may have the message for some isn't asked again when a route has settled these.
func TestRoutesUpdateEndsASecondTry(t *testing.T) {
	for _, parts := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			routes := []smtplb.Route{{Recipients: []string{"a.test"}, Action: smtplb.RouteFail}, {Relays: []string{"r0", "r1"}}}
			if parts {
				routes = append(routes, smtplb.Route{Recipients: []string{"c.test"}, Relays: []string{"r1"}})
			}
			h := updatedAfter(t, 2, nil, routes...)
			defer h.close()
			h.relays[0].On(smtptest.Rcpt).For("x@b.test", "x@c.test").Reply(451, "4.2.1 Mailbox busy")
			h.relays[0].On(smtptest.EndOfData).Drop()
			e := envelope("x@a.test", "x@b.test", "x@c.test")
			e.AtLeastOnce = true
			r, err := h.pool.Deliver(t.Context(), e)
			if !errors.Is(err, smtplb.ErrUnknown) || outcomes(r) != "unknown accepted accepted" || len(r.Attempts) > 3 || strings.Contains(relaysTried(r)[1:], "r0") {
				t.Errorf("%v: %v", r, err)
			}
		})
	}
}

// Where a route settles recipients who were tried before, it is the route's word, and not the relay's; but for those whom the relay may have accepted.
func TestRoutesUpdateSettlesWhatWasTried(t *testing.T) {
	for _, unknown := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			h := updatedAfter(t, 2, nil, smtplb.Route{Name: "closed", Action: smtplb.RouteFail, Text: "5.7.1 closed"})
			defer h.close()
			if unknown {
				h.relays[0].On(smtptest.EndOfData).Drop()
			} else {
				h.relays[0].On(smtptest.Mail).Reply(451, "4.3.0 Not now")
			}
			e := envelope("x@a.test")
			e.AtLeastOnce = true
			r, _ := h.pool.Deliver(t.Context(), e)
			x := r.Recipients[0]
			relay, route := (*smtplb.RelayError)(nil), (*smtplb.RouteError)(nil)
			if unknown && (x.Outcome != smtplb.Unknown || x.Relay != "r0" || !errors.As(x.Err(), &relay)) ||
				!unknown && (x.Outcome != smtplb.Failed || x.Relay != "" || x.Stage != "" || x.Reply != smtplb.Reply{} || !errors.As(x.Err(), &route)) {
				t.Errorf("%+v", x)
			}
		})
	}
}

// Explain names the route that decides for all recipients of RequireAll.
func TestExplainRoutesRequireAll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, tagged([]string{"a"},
			smtplb.Route{Name: "first", Recipients: []string{"a.test"}, Tags: []string{"a"}},
			smtplb.Route{Name: "never", Recipients: []string{"never.test"}, Action: smtplb.RouteFail, Text: "5.7.1 no mail here"}))
		defer h.close()
		e := envelope("x@a.test", "x@never.test")
		e.RequireAll = true
		p, err := h.pool.Explain(t.Context(), e)
		if err != nil || p.Route != "never" || p.Recipients != 2 || p.Others != nil || p.Then != "5.7.1 no mail here" {
			t.Errorf("%+v, %v", p, err)
		}
	})
}

// A sender pattern "*" is for everybody as no pattern is.
func TestRouteForEverybody(t *testing.T) {
	pool, err := smtplb.New(smtplb.Config{
		Relays: []smtplb.Relay{{Name: "a", Addr: "a.test:25", TLS: smtplb.TLSNone, RoutedOnly: true}},
		Routes: []smtplb.Route{{Senders: []string{"*"}, Relays: []string{"a"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	pool.Close()
}

// What a caller does with the lists of a configuration afterwards changes nothing.
func TestRoutesAreCopied(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{}
		z.set("submission", record(0, 1, 1))
		tags, names := []string{"a"}, []string{"own"}
		h := newDomain(t, 1, z, func(c *smtplb.Config) {
			c.Relays[0].Tags = tags
			c.Relays = append(c.Relays, smtplb.Relay{Name: "own", Addr: "r9.test:25", TLS: smtplb.TLSNone})
			c.Routes = []smtplb.Route{{Recipients: []string{"a.test"}, Tags: []string{"a"}}, {Recipients: []string{"b.test"}, Relays: names}}
		})
		defer h.close()
		tags[0], names[0] = "other", "none"
		if r := h.takes("x@a.test"); !strings.HasPrefix(whose(r), "srv:") { // DNS makes the fleet anew
			t.Error(r)
		}
		if p, err := h.pool.Explain(t.Context(), envelope("x@b.test")); err != nil || len(p.Candidates) != 1 {
			t.Errorf("%v, %v", p, err)
		}
	})
}

// A message that an Update parts doesn't wait for DNS to name relays that are none of its own.
func TestRoutesUpdateWaitsForNoDNS(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var c smtplb.Config
		h := newHouse(t, 3, func(cfg *smtplb.Config) {
			cfg.Relays[0].Conns.Max, cfg.Relays[1].RoutedOnly, cfg.Relays[2].RoutedOnly = 1, true, true
			cfg.Resolver = &zone{hang: true}
			c = *cfg
		})
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Times(1).Delay(time.Minute)
		go func() { _, _ = h.pool.Deliver(t.Context(), envelope("first@c.test")) }()
		synctest.Wait()
		got := make(chan time.Time, 1)
		go func() {
			if r, err := h.pool.Deliver(t.Context(), envelope("x@a.test", "x@b.test")); err != nil || whose(r) != "r1 r2" {
				t.Errorf("%v, %v", r, err)
			}
			got <- time.Now()
		}()
		time.Sleep(time.Second)
		c.Relays = append(slices.Clone(c.Relays[1:]), smtplb.Relay{Addr: "srv:example.com"})
		c.Routes = []smtplb.Route{{Recipients: []string{"a.test"}, Relays: []string{"r1"}}, {Recipients: []string{"b.test"}, Relays: []string{"r2"}}}
		start := time.Now()
		if err := h.pool.Update(c); err != nil {
			t.Fatal(err)
		}
		if took := (<-got).Sub(start); took > time.Second {
			t.Errorf("it took %v", took)
		}
		time.Sleep(2 * time.Minute)
	})
}

// The last fifth of the caller's time stays that of the whole: an Update that parts the message doesn't begin it anew.
func TestRoutesUpdateKeepsTheDeadline(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var c smtplb.Config
		h := newHouse(t, 3, func(cfg *smtplb.Config) {
			cfg.Relays[0].Conns.Max, cfg.Relays[1].RoutedOnly, cfg.Relays[2].RoutedOnly = 1, true, true
			c = *cfg
		})
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Times(1).Delay(time.Minute)
		go func() { _, _ = h.pool.Deliver(t.Context(), envelope("first@c.test")) }()
		synctest.Wait()
		go func() {
			time.Sleep(9 * time.Second)
			c.Routes = []smtplb.Route{{Recipients: []string{"a.test"}, Relays: []string{"r1"}}, {Recipients: []string{"b.test"}, Relays: []string{"r2"}}}
			if err := h.pool.Update(c); err != nil {
				t.Error(err)
			}
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		r, err := h.pool.Deliver(ctx, envelope("x@a.test", "x@b.test"))
		if !errors.Is(err, context.DeadlineExceeded) || outcomes(r) != "deferred deferred" || h.stored("x@a.test")+h.stored("x@b.test") > 0 {
			t.Errorf("%v: %v", r, err)
		}
		time.Sleep(2 * time.Minute)
	})
}

// A relay that wants less mail is no reason for those whom another accepted in the end, and others are deferred for.
func TestRoutesThrottledElsewhere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 5, func(c *smtplb.Config) {
			groups(c)
			c.Balancer = smtplb.FirstAvailable()
		})
		defer h.close()
		h.relays[0].On(smtptest.Mail).Reply(451, "4.7.0 Too many messages, slow down")
		h.relays[2].Kill()
		h.relays[3].Kill()
		r, err := h.pool.Deliver(t.Context(), envelope("x@a.test", "x@b.test"))
		if outcomes(r) != "accepted deferred" || errors.Is(err, smtplb.ErrThrottled) {
			t.Errorf("%v: %v", r, err)
		}
	})
}

// Where most of a group is slow nobody in it rests, though most of the tier is quick.
func TestRoutesSlowGroup(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 12, func(c *smtplb.Config) {
			c.Health.Interval = -1
			for i := range 5 {
				c.Relays[i].Tags = []string{"g"}
			}
			c.Routes = []smtplb.Route{{Recipients: []string{"g.test"}, Tags: []string{"g"}}}
		})
		defer h.close()
		h.net.SetLatency(5*time.Millisecond, 5*time.Millisecond)
		for i := 1; i < 5; i++ {
			h.relays[i].On(smtptest.Mail).Delay(200 * time.Millisecond)
		}
		use := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				for _, to := range []string{"x@example.com", "x@g.test"} {
					go func() {
						if _, err := h.pool.Deliver(t.Context(), envelope(to)); err != nil {
							t.Error(err)
						}
					}()
				}
			}
		}
		slow := func() (n int) {
			for _, r := range h.relays[1:5] {
				for _, m := range r.Messages() {
					if m.To[0] == "x@g.test" {
						n++
					}
				}
			}
			return n
		}
		use(10 * time.Second)
		if s := h.pool.Stats().Relays; s[0].Slow != 0 || s[1].Slow == 0 || s[4].Slow == 0 {
			t.Fatalf("%+v", s)
		}
		before := slow()
		use(time.Minute)
		if n := slow() - before; n < 100 { // of 1,200: their weights are a sixth; 24 with rests
			t.Errorf("the slow ones of the group had %d of 1,200 messages", n)
		}
		time.Sleep(time.Second)
	})
}

// All parts send the same bytes, out of one temporary file, and so does the retry of one.
func TestRoutesShareAFile(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 5, func(c *smtplb.Config) {
			groups(c)
			c.SpillSize, c.SpillDir = 1, t.TempDir()
			for i := range c.Relays {
				c.Relays[i].Breaker.Off = true
			}
		})
		defer h.close()
		for i := range 2 {
			h.relays[i].On(smtptest.EndOfData).Times(1).Reply(451, "4.3.0 Not now")
		}
		body := "Subject: s\r\n\r\n" + strings.Repeat("A line of a message that is long enough.\r\n", 20_000)
		e := envelope("x@a.test", "x@b.test", "x@c.test")
		e.Body = smtplb.Reader(strings.NewReader(body))
		r, err := h.pool.Deliver(t.Context(), e)
		if !errors.Is(err, smtplb.ErrPartial) || outcomes(r) != "deferred accepted accepted" {
			t.Fatalf("%v: %v", r, err)
		}
		again := r.Retry(e)
		if r, err := h.pool.Deliver(t.Context(), again); err != nil || len(r.Recipients) != 1 {
			t.Errorf("%v: %v", r, err)
		}
		n := 0
		for _, s := range h.relays {
			for _, m := range s.Messages() {
				if n++; string(m.Data) != body {
					t.Errorf("%v got %d bytes", m.To, len(m.Data))
				}
			}
		}
		if n != 3 {
			t.Errorf("%d are stored", n)
		}
	})
}

// A panic, or a Goexit, in a part of a part comes out of Deliver, and the others are finished first.
func TestRoutesUpdatePanics(t *testing.T) {
	for _, exits := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			var c smtplb.Config
			h := newHouse(t, 4, func(cfg *smtplb.Config) {
				cfg.Relays[1].Conns.Max = 1
				cfg.Routes = []smtplb.Route{{Recipients: []string{"slow.test"}, Relays: []string{"r0"}}, {Relays: []string{"r1"}}}
				dial := cfg.Dial
				cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
					switch {
					case !strings.HasPrefix(addr, "r3"):
						return dial(ctx, network, addr)
					case exits:
						runtime.Goexit()
					}
					panic("dial")
				}
				c = *cfg
			})
			defer h.close()
			h.relays[0].On(smtptest.EndOfData).Delay(2 * time.Minute)
			h.relays[1].On(smtptest.EndOfData).Times(1).Delay(time.Minute)
			go func() { _, _ = h.pool.Deliver(t.Context(), envelope("first@c.test")) }()
			synctest.Wait()
			done := make(chan any, 1)
			go func() {
				defer func() { done <- recover() }()
				_, err := h.pool.Deliver(t.Context(), envelope("x@slow.test", "x@a.test", "x@b.test"))
				t.Errorf("it returned: %v", err)
			}()
			time.Sleep(time.Second)
			c.Routes = []smtplb.Route{{Recipients: []string{"slow.test"}, Relays: []string{"r0"}}, {Recipients: []string{"a.test"}, Relays: []string{"r2"}}, {Relays: []string{"r3"}}}
			if err := h.pool.Update(c); err != nil {
				t.Fatal(err)
			}
			if x := <-done; exits && x != nil || !exits && x != "dial" {
				t.Errorf("what came out: %v", x)
			}
			if a, b := h.stored("x@slow.test"), h.stored("x@a.test"); a != 1 || b != 1 {
				t.Errorf("%d and %d are stored", a, b)
			}
		})
	}
}
