package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// Marketing that waits for the pool's limit in a crowd never delays a password reset by more than one token, also where it leaves by other relays.
func TestLimitsByUrgency(t *testing.T) {
	t.Parallel()
	for _, routed := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 2, func(c *smtplb.Config) {
				c.Limits.Messages = smtplb.Rate{N: 5, Burst: 1}
				c.MaxThrottleWait = -1
				if routed {
					c.Routes = []smtplb.Route{
						{Streams: []string{"marketing"}, Relays: []string{"r0"}},
						{Recipients: []string{"*"}, Relays: []string{"r1"}},
					}
				}
			}, smtptest.WithDiscard())
			defer h.close()
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			for range 200 {
				wg.Go(func() {
					for ctx.Err() == nil {
						e := envelope("x@example.com")
						e.Stream = "marketing"
						_, err := h.pool.Deliver(ctx, e)
						if err != nil && ctx.Err() == nil {
							t.Error(err)
						}
					}
				})
			}
			time.Sleep(time.Second)
			for range 20 {
				begun := time.Now()
				h.sends(envelope("x@example.com"), "accepted")
				if took := time.Since(begun); took > 210*time.Millisecond {
					t.Errorf("routed %v: it took %v", routed, took)
				}
				time.Sleep(700 * time.Millisecond)
			}
			cancel()
			wg.Wait()
		})
	}
}

// A message to several providers parts: the one that has to wait keeps nobody else waiting. In one piece it waits.
func TestProvidersPart(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Providers = []smtplb.Provider{
				{Name: "gmail", Limits: smtplb.Limits{Recipients: smtplb.Rate{N: 1, Burst: 2}}},
				{Name: "corp", Domains: []string{"corp.example", "*.corp.example"}, Limits: smtplb.Limits{Concurrency: 50}},
			}
		})
		defer h.close()
		to := []string{"a@gmail.com", "b@corp.example", "c@yahoo.com", "d@googlemail.com", "e@eu.corp.example", "f@other.example"}
		h.sends(envelope(to...), strings.TrimSpace(strings.Repeat("accepted ", 6)))
		if n := len(h.relays[0].Messages()); n != 3 {
			t.Errorf("%d transactions, not 3: gmail, corp, the rest", n)
		}
		begun := time.Now()
		r, err := h.pool.Deliver(context.Background(), envelope(to...))
		if err != nil || time.Since(begun) < 1900*time.Millisecond {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
		for _, m := range h.relays[0].Messages()[3:] {
			if gmail := strings.Contains(m.To[0], "g"); gmail != (m.Time.Sub(begun) > time.Second) {
				t.Errorf("%v came after %v", m.To, m.Time.Sub(begun))
			}
		}
		for i, x := range r.Recipients {
			if x.Addr != to[i] {
				t.Errorf("recipient %d is %s", i, x.Addr)
			}
		}
		e := envelope(to...)
		e.RequireAll = true
		begun = time.Now()
		h.sends(e, strings.TrimSpace(strings.Repeat("accepted ", 6)))
		all := h.relays[0].Messages()
		if m := all[len(all)-1]; len(m.To) != 6 || time.Since(begun) < 1900*time.Millisecond {
			t.Errorf("%v after %v", m.To, time.Since(begun))
		}
	})
}

// What was used stays used through an Update, whatever the rate is then; what waits goes by the new one.
func TestUpdateKeepsLimits(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		with := func(rate float64) func(c *smtplb.Config) {
			return func(c *smtplb.Config) {
				limits := smtplb.Limits{Messages: smtplb.Rate{N: rate, Per: time.Minute, Burst: 1}}
				c.Limits, c.PerSender, c.Relays[0].Limits, c.MaxThrottleWait = limits, limits, limits, -1
			}
		}
		h := newHouse(t, 1, with(1))
		defer h.close()
		h.sends(envelope("x@example.com"), "accepted")
		begun := time.Now()
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.sends(envelope("x@example.com"), "accepted")
		}()
		time.Sleep(30 * time.Second) // half of the next one is there
		if err := h.pool.Update(h.config(with(6))); err != nil {
			t.Fatal(err)
		}
		<-done
		if took := time.Since(begun); took < 35*time.Second || took > 35*time.Second+10*time.Millisecond {
			t.Errorf("it went after %v", took)
		}
		if err := h.pool.Update(h.config(func(*smtplb.Config) {})); err != nil {
			t.Fatal(err)
		}
		begun = time.Now()
		for range 10 {
			h.sends(envelope("x@example.com"), "accepted")
		}
		if took := time.Since(begun); took > time.Second {
			t.Errorf("without limits it took %v", took)
		}
	})
}

func TestExplainLimits(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) {
			c.Relays[0].Limits.Messages = smtplb.Rate{N: 1, Burst: 1}
			c.Relays[1].Limits.Recipients = smtplb.Rate{N: 6, Per: time.Hour, Burst: 1}
			c.Balancer = smtplb.FirstAvailable()
		})
		defer h.close()
		explain := func(want ...string) smtplb.Plan {
			t.Helper()
			p, err := h.pool.Explain(context.Background(), envelope("x@example.com"))
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range want {
				if !strings.Contains(p.String(), w) {
					t.Errorf("%q is not in:\n%s", w, p)
				}
			}
			return p
		}
		explain("goes out now", "r0: ", "r1: ")
		h.sends(envelope("x@example.com"), "accepted")
		if p := explain("goes out now", "r0: over its limit of 1/s"); len(p.Candidates) != 1 || p.Candidates[0].Name != "r1" || p.Skipped[0].Until.Sub(p.Time) > time.Second || p.Skipped[0].Until.Sub(p.Time) < 900*time.Millisecond {
			t.Errorf("%+v", p)
		}
		h.sends(envelope("x@example.com"), "accepted")
		if p := explain("waits for a limit until ", "(relay r0: over its limit of 1/s", "r1: over its limit of 6/h"); !p.Waits || p.NextToken.Sub(p.Time) > time.Second || p.MaxWait != 30*time.Second {
			t.Errorf("%+v", p)
		}
		if err := h.pool.Update(h.config(func(c *smtplb.Config) {
			c.Relays[0].Limits.Messages = smtplb.Rate{N: 1, Per: time.Hour}
			c.Relays[1].Limits.Messages = smtplb.Rate{N: 1, Per: time.Hour}
			c.Limits.Messages = smtplb.Rate{N: 1, Per: time.Hour}
		})); err != nil {
			t.Fatal(err)
		}
		h.sends(envelope("x@example.com"), "accepted")
		p := explain("is deferred for 1h", "(pool: over its limit of 1/h")
		_, err := h.pool.Deliver(context.Background(), envelope("x@example.com"))
		var te *smtplb.ThrottledError
		if !errors.As(err, &te) || p.RetryAfter != te.RetryAfter || p.Limit != te.Reason {
			t.Errorf("%+v\n%v", p, err)
		}
	})
}

func TestLimitFaults(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(c *smtplb.Config){
		"Limits.Messages":              func(c *smtplb.Config) { c.Limits.Messages.N = -1 },
		"Limits.Recipients":            func(c *smtplb.Config) { c.Limits.Recipients = smtplb.Rate{Burst: 5} },
		"Limits.Connections":           func(c *smtplb.Config) { c.Limits.Connections = smtplb.PerSecond(1) },
		"Limits.Concurrency":           func(c *smtplb.Config) { c.Limits.Concurrency = -1 },
		"PerSender.Concurrency":        func(c *smtplb.Config) { c.PerSender.Concurrency = 1 },
		"Relays[0].Limits.Concurrency": func(c *smtplb.Config) { c.Relays[0].Limits.Concurrency = 1 },
		"Relays[0].Limits.Connections": func(c *smtplb.Config) { c.Relays[0].Limits.Connections = smtplb.Rate{N: 1, Per: -1} },
		"Streams[0].Limits.Messages": func(c *smtplb.Config) {
			c.Streams = []smtplb.Stream{{Limits: smtplb.Limits{Messages: smtplb.PerSecond(-2)}}}
		},
		"Routes[0].Limits.Messages": func(c *smtplb.Config) {
			c.Routes = []smtplb.Route{{Relays: []string{"r"}, Limits: smtplb.Limits{Messages: smtplb.PerSecond(-2)}}}
		},
		"Routes[0].Limits": func(c *smtplb.Config) {
			c.Routes = []smtplb.Route{{Recipients: []string{"x.example"}, Action: smtplb.RouteFail, Limits: smtplb.Limits{Concurrency: 2}}}
		},
		"Providers[0].Name":    func(c *smtplb.Config) { c.Providers = []smtplb.Provider{{Domains: []string{"x.example"}}} },
		"Providers[0].Domains": func(c *smtplb.Config) { c.Providers = []smtplb.Provider{{Name: "nobody"}} },
		"Providers[0].Domains[1]": func(c *smtplb.Config) {
			c.Providers = []smtplb.Provider{{Name: "n", Domains: []string{"x.example", "a@x.example"}}}
		},
		"Providers[1].Domains[0]": func(c *smtplb.Config) {
			c.Providers = []smtplb.Provider{{Name: "n", Domains: []string{"x.example"}}, {Name: "m", Domains: []string{"X.example"}}}
		},
		"Providers[1].Name": func(c *smtplb.Config) { c.Providers = []smtplb.Provider{{Name: "gmail"}, {Name: "gmail"}} },
		"Providers[0].Limits.Recipients": func(c *smtplb.Config) {
			c.Providers = []smtplb.Provider{{Name: "gmail", Limits: smtplb.Limits{Recipients: smtplb.PerDay(-1)}}}
		},
		"MaxThrottleWait": func(c *smtplb.Config) { c.MaxThrottleWait = 30 },
	} {
		c := smtplb.Config{Relays: []smtplb.Relay{{Name: "r", Addr: "r.test:25", TLS: smtplb.TLSNone}}}
		change(&c)
		_, err := smtplb.New(c)
		var ce *smtplb.ConfigError
		if !errors.As(err, &ce) || ce.Path != want || strings.Count(err.Error(), "\n") > 0 {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestProviderDomains(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, p := range smtplb.Providers() {
		if len(p.Domains) == 0 {
			t.Errorf("%s has no domains", p.Name)
		}
		for _, d := range p.Domains {
			if seen[d] != "" {
				t.Errorf("%s is of %s and of %s", d, seen[d], p.Name)
			}
			seen[d] = p.Name
		}
	}
	bubble(t, func(t *testing.T) { // a domain that an entry claims is that entry's
		one := smtplb.Limits{Messages: smtplb.Rate{N: 1, Per: time.Hour}}
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Providers = []smtplb.Provider{{Name: "gmail", Limits: one}, {Name: "mine", Domains: []string{"googlemail.com"}}, {Name: "yahoo", Domains: []string{"yahoo.test"}, Limits: one}}
		})
		defer h.close()
		for i, to := range []string{"a@gmail.com", "a@googlemail.com", "b@googlemail.com", "a@yahoo.com", "b@yahoo.com", "a@yahoo.test"} {
			h.sends(envelope(to), "accepted")
			_ = i
		}
		h.sends(envelope("b@gmail.com"), "deferred")
		h.sends(envelope("b@yahoo.test"), "deferred")
	})
}

func ExampleRate() {
	for _, s := range []string{"14/s, burst 1", "10000/day", "1000/h", "0.5/s"} {
		r, err := smtplb.ParseRate(s)
		fmt.Println(r, err)
	}
	// Output:
	// 14/s, burst 1 <nil>
	// 10000/day <nil>
	// 1000/h <nil>
	// 0.5/s <nil>
}
