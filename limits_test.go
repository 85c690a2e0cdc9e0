package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// flood has so many goroutines send as fast as the pool lets them, for that long, and returns how many messages were accepted; each outcome but that and ErrThrottled is an error.
func (h *house) flood(n int, d time.Duration, of func(i int) *smtplb.Envelope) (accepted, throttled int) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	end := time.Now().Add(d)
	for i := range n {
		wg.Go(func() {
			for time.Now().Before(end) {
				_, err := h.pool.Deliver(context.Background(), of(i))
				mu.Lock()
				switch {
				case err == nil:
					accepted++
				case errors.Is(err, smtplb.ErrThrottled) && errors.Is(err, smtplb.ErrTemporary):
					throttled++
				default:
					h.Error(err)
				}
				mu.Unlock()
				if err != nil {
					time.Sleep(time.Second)
				}
			}
		})
	}
	wg.Wait()
	return accepted, throttled
}

// Two relays that take 25 messages a second each, and punish every one more, get 50 a second: the whole allowance, and nothing beyond it.
func TestLimitsUseTheAllowance(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		const rate = 25
		minutes := time.Duration(10)
		if !smtplb.Thorough() {
			minutes = 2
		}
		h := newHouse(t, 2, func(c *smtplb.Config) {
			for i := range c.Relays {
				c.Relays[i].Limits.Messages = smtplb.Rate{N: rate, Burst: 1}
			}
		}, smtptest.WithDiscard())
		defer h.close()
		var punished []*smtptest.Rule
		for _, r := range h.relays {
			punished = append(punished, r.On(smtptest.Mail).If(smtptest.Over(rate, time.Second, 2)).Reply(451, "4.7.1 too fast"))
		}
		h.net.SetLatency(2*time.Millisecond, 2*time.Millisecond)
		begun := time.Now()
		accepted, throttled := h.flood(40, minutes*time.Minute, func(int) *smtplb.Envelope { return envelope("x@example.com") })
		took := time.Since(begun).Seconds()
		for i, r := range punished {
			if r.Fired() > 0 {
				t.Errorf("r%d was sent %d messages too many", i, r.Fired())
			}
		}
		if used := float64(accepted) / (2 * rate * took); used < 0.99 || used > 1.01 || throttled > 0 {
			t.Errorf("%d messages in %.1f s: %.4f of the allowance; %d throttled", accepted, took, used, throttled)
		} else {
			t.Logf("%d messages in %.1f s: %.4f of the allowance", accepted, took, used)
		}
	})
}

// Each scope bounds what is of it, and nothing else.
func TestLimitScopes(t *testing.T) {
	t.Parallel()
	limits := smtplb.Limits{Messages: smtplb.Rate{N: 2, Burst: 1}}
	other := 0
	for _, x := range []struct {
		scope         string
		set           func(c *smtplb.Config)
		inside, aside func(e *smtplb.Envelope)
	}{
		{"pool", func(c *smtplb.Config) { c.Limits = limits }, func(*smtplb.Envelope) {}, nil},
		{"stream", func(c *smtplb.Config) { c.Streams = []smtplb.Stream{{Name: "news", Limits: limits}} },
			func(e *smtplb.Envelope) { e.Stream = "news" }, func(e *smtplb.Envelope) { e.Stream = "alerts" }},
		{"route", func(c *smtplb.Config) {
			c.Routes = []smtplb.Route{{Recipients: []string{"slow.example"}, Relays: []string{"r0"}, Limits: limits}}
		}, func(e *smtplb.Envelope) { e.To = []string{"x@slow.example"} }, func(e *smtplb.Envelope) { e.To = []string{"x@quick.example"} }},
		{"provider", func(c *smtplb.Config) { c.Providers = []smtplb.Provider{{Name: "gmail", Limits: limits}} },
			func(e *smtplb.Envelope) { e.To = []string{"x@GoogleMail.com"} }, func(e *smtplb.Envelope) { e.To = []string{"x@yahoo.com"} }},
		{"sender", func(c *smtplb.Config) { c.PerSender = limits },
			func(e *smtplb.Envelope) { e.From = "a@Tenant.example" }, func(e *smtplb.Envelope) { other++; e.From = fmt.Sprintf("a@t%d.example", other) }},
		{"sender by key", func(c *smtplb.Config) { c.PerSender = limits },
			func(e *smtplb.Envelope) { e.Key = "tenant 1" }, func(e *smtplb.Envelope) { other++; e.Key = fmt.Sprint(other) }},
		{"relay", func(c *smtplb.Config) {
			c.Relays[0].Limits = limits
			c.Relays[1].RoutedOnly = true
			c.Routes = toSecond()
		},
			func(*smtplb.Envelope) {}, func(e *smtplb.Envelope) { e.To = []string{"x@second.example"} }},
	} {
		t.Run(x.scope, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 2, x.set)
				defer h.close()
				// Half of them are of the scope: 11 at 2 a second take 5 s. The others take no time.
				send := func(change func(*smtplb.Envelope)) time.Duration {
					begun := time.Now()
					for range 11 {
						e := envelope("x@example.com")
						change(e)
						h.sends(e, "accepted")
					}
					return time.Since(begun)
				}
				if took := send(x.inside); took < 5*time.Second || took > 5*time.Second+time.Millisecond {
					t.Errorf("those of the %s took %v, not 5s", x.scope, took)
				}
				if x.aside == nil {
					return
				}
				if took := send(x.aside); took > time.Second {
					t.Errorf("the others took %v", took)
				}
			})
		})
	}
}

func toSecond() []smtplb.Route {
	return []smtplb.Route{{Recipients: []string{"second.example"}, Relays: []string{"r1"}}}
}

// sends delivers e, and expects these outcomes.
func (h *house) sends(e *smtplb.Envelope, want string) error {
	h.Helper()
	r, err := h.pool.Deliver(context.Background(), e)
	if r == nil || outcomes(r) != want {
		h.Errorf("to %v: %v", e.To, err)
	}
	return err
}

// Recipients are counted as such. More than the burst wait until it is there, and use up what comes after.
func TestLimitRecipients(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Limits.Recipients = smtplb.Rate{N: 10, Burst: 20}; c.MaxThrottleWait = -1 })
		defer h.close()
		to := func(n int) *smtplb.Envelope {
			e := envelope()
			for i := range n {
				e.To = append(e.To, "u"+string(rune('a'+i%26))+string(rune('a'+i/26))+"@example.com")
			}
			return e
		}
		begun := time.Now()
		for _, x := range []struct {
			n  int
			at time.Duration // since the start
		}{
			{20, 0},                     // the burst
			{10, time.Second},           // waits for 10
			{100, 3 * time.Second},      // for all of the burst, and 80 beyond it are owed
			{1, 11*time.Second + 1e8},   // until that was paid, and one more
			{150, 13*time.Second + 1e8}, // two transactions
			{20, 28*time.Second + 1e8},  // 130 owed and 20
			{20, 30*time.Second + 1e8},  //
		} {
			e := to(x.n)
			r, err := h.pool.Deliver(context.Background(), e)
			if err != nil || r.Count(smtplb.Accepted) != x.n {
				t.Errorf("%d recipients: %v", x.n, err)
			}
			if at := time.Since(begun); at < x.at || at > x.at+2*time.Millisecond {
				t.Errorf("%d recipients went at %v, not at %v", x.n, at, x.at)
			}
		}
	})
}

// Concurrency bounds how many are under way, of each scope.
func TestLimitConcurrency(t *testing.T) {
	t.Parallel()
	limits := smtplb.Limits{Concurrency: 2}
	for scope, set := range map[string]func(c *smtplb.Config){
		"pool":     func(c *smtplb.Config) { c.Limits = limits },
		"stream":   func(c *smtplb.Config) { c.Streams = []smtplb.Stream{{Name: "news", Limits: limits}} },
		"provider": func(c *smtplb.Config) { c.Providers = []smtplb.Provider{{Name: "gmail", Limits: limits}} },
		"route": func(c *smtplb.Config) {
			c.Routes = []smtplb.Route{{Recipients: []string{"gmail.com"}, Relays: []string{"r0", "r1"}, Limits: limits}}
		},
	} {
		t.Run(scope, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 2, set)
				defer h.close()
				for _, r := range h.relays {
					r.On(smtptest.EndOfData).Delay(100 * time.Millisecond)
				}
				begun := time.Now()
				var wg sync.WaitGroup
				for range 20 {
					wg.Go(func() {
						e := envelope("x@gmail.com")
						e.Stream = "news"
						_ = h.sends(e, "accepted")
					})
				}
				wg.Wait()
				if took := time.Since(begun); took < time.Second || took > time.Second+20*time.Millisecond { // two at a time
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// Connections are opened at a rate of their own; messages over those that are there are not bound by it.
func TestLimitConnections(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Limits.Connections = smtplb.Rate{N: 1, Burst: 2}
			c.Relays[0].Conns.Max = 5
		})
		defer h.close()
		over := h.relays[0].On(smtptest.Connect).If(smtptest.Over(1, time.Second, 2)).Reply(421, "4.7.0 too many connections")
		h.relays[0].On(smtptest.EndOfData).Delay(400 * time.Millisecond)
		begun := time.Now()
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { _ = h.sends(envelope("x@example.com"), "accepted") })
		}
		wg.Wait()
		// Two connections at once, a third after 1 s, the fourth after 2: 2 at 0.4, 0.8, 3 from 1.0 on…
		if took := time.Since(begun); over.Fired() > 0 || took < 2*time.Second || took > 3*time.Second {
			t.Errorf("%d connections too many; %v", over.Fired(), took)
		}
		if s := h.relays[0].Stats(); s.Connections > 5 || s.Connections < 4 {
			t.Errorf("%d connections", s.Connections)
		}
	})
}

// What waits for longer than MaxThrottleWait doesn't begin to: it is deferred at once, and told how long.
func TestMaxThrottleWait(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].Limits.Messages = smtplb.Rate{N: 1, Per: time.Hour, Burst: 2} })
		defer h.close()
		h.sends(envelope("x@example.com"), "accepted")
		h.sends(envelope("x@example.com"), "accepted")
		begun := time.Now()
		err := h.sends(envelope("x@example.com"), "deferred")
		var se *smtplb.SendError
		var te *smtplb.ThrottledError
		if !errors.Is(err, smtplb.ErrThrottled) || !errors.Is(err, smtplb.ErrTemporary) || errors.Is(err, smtplb.ErrNoRelay) || !errors.As(err, &se) || !errors.As(err, &te) || time.Since(begun) > 0 {
			t.Fatalf("after %v: %v", time.Since(begun), err)
		}
		if se.RetryAfter < 59*time.Minute || se.RetryAfter > time.Hour+time.Microsecond || te.Scope != "relay" || te.Key != "r0" || te.RetryAfter != se.RetryAfter {
			t.Errorf("%v: %+v", se.RetryAfter, te)
		}
		time.Sleep(se.RetryAfter)
		h.sends(envelope("x@example.com"), "accepted")
		time.Sleep(time.Hour - 29*time.Second) // it waits for the rest
		begun = time.Now()
		h.sends(envelope("x@example.com"), "accepted")
		if took := time.Since(begun); took < 28*time.Second || took > 29*time.Second+time.Millisecond {
			t.Errorf("waited for %v", took)
		}
	})
}

// Who is in the queue for a limit leaves it after MaxThrottleWait, or with its context; with less than no bound it stays.
func TestThrottledInTheQueue(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		most     time.Duration
		accepted int
		took     time.Duration
	}{
		{0, 30, 30 * time.Second}, // 1 at once, and one each second; the one of the 30th may be a moment late
		{5500 * time.Millisecond, 6, 5500 * time.Millisecond},
		{-1, 100, 99 * time.Second},
	} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, func(c *smtplb.Config) { c.Limits.Messages = smtplb.Rate{N: 1, Burst: 1}; c.MaxThrottleWait = x.most })
			defer h.close()
			var mu sync.Mutex
			var wg sync.WaitGroup
			accepted, denied := 0, 0
			begun := time.Now()
			for range 100 {
				wg.Go(func() {
					_, err := h.pool.Deliver(context.Background(), envelope("x@example.com"))
					mu.Lock()
					defer mu.Unlock()
					var te *smtplb.ThrottledError
					switch {
					case err == nil:
						accepted++
					case errors.As(err, &te) && te.Scope == "pool" && te.RetryAfter > 0 && te.RetryAfter <= time.Second:
						denied++
					default:
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if took := time.Since(begun); accepted != x.accepted && accepted != x.accepted+1 || accepted+denied != 100 || took < x.took || took > x.took+50*time.Millisecond {
				t.Errorf("MaxThrottleWait %v: %d accepted, %d denied, in %v", x.most, accepted, denied, took)
			}
		})
	}
}

// Another relay of the tier before waiting; another tier where the wait would be too long.
func TestThrottledGoesElsewhere(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 3, func(c *smtplb.Config) {
			c.Balancer = smtplb.FirstAvailable()
			c.Relays[0].Limits.Messages = smtplb.Rate{N: 1, Burst: 2}
			c.Relays[1].Limits.Messages = smtplb.Rate{N: 1, Per: time.Minute, Burst: 2}
			c.Relays[2].Tier = 1
		})
		defer h.close()
		tried := ""
		begun := time.Now()
		for range 4 {
			r, err := h.pool.Deliver(context.Background(), envelope("x@example.com"))
			if err != nil {
				t.Fatal(err)
			}
			tried += relaysTried(r)
		}
		if tried != "r0r0r1r1" || time.Since(begun) > 0 {
			t.Errorf("%s after %v", tried, time.Since(begun))
		}
		r, err := h.pool.Deliver(context.Background(), envelope("x@example.com")) // the first has room soon
		if err != nil || relaysTried(r) != "r0" || time.Since(begun) < time.Second {
			t.Errorf("%v after %v: %v", r, time.Since(begun), err)
		}
		h.pool.Update(h.config(func(c *smtplb.Config) {
			c.Balancer = smtplb.FirstAvailable()
			c.Relays[0].Limits.Messages = smtplb.Rate{N: 1, Per: time.Hour}
			c.Relays[1].Limits.Messages = smtplb.Rate{N: 1, Per: time.Hour}
			c.Relays[2].Tier = 1
		}))
		begun = time.Now()
		r, err = h.pool.Deliver(context.Background(), envelope("x@example.com"))
		if err != nil || relaysTried(r) != "r2" || time.Since(begun) > 0 {
			t.Errorf("%v after %v: %v", r, time.Since(begun), err)
		}
	})
}

// config is what newHouse has made, changed.
func (h *house) config(change func(c *smtplb.Config)) smtplb.Config {
	c := smtplb.Config{Dial: h.net.DialContext}
	for i := range h.relays {
		c.Relays = append(c.Relays, smtplb.Relay{Name: "r" + string(rune('0'+i)), Addr: "r" + string(rune('0'+i)) + ".test:25", TLS: smtplb.TLSNone})
	}
	change(&c)
	return c
}

// What the relay can't have got is given back; what it got, or may have, isn't.
func TestLimitsGivenBack(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		name  string
		rule  func(r *smtptest.Server)
		want  string
		spent bool
	}{
		{"accepted", func(*smtptest.Server) {}, "accepted", true},
		{"recipient refused", func(r *smtptest.Server) { r.On(smtptest.Rcpt).Times(1).Reply(550, "5.1.1 no such user") }, "failed", false},
		{"sender refused", func(r *smtptest.Server) { r.On(smtptest.Mail).Times(1).Reply(550, "5.1.8 bad sender") }, "failed", false},
		{"throttled", func(r *smtptest.Server) { r.On(smtptest.Mail).Times(1).Reply(454, "4.7.0 Throttling failure") }, "deferred", true},
		{"refused after the message", func(r *smtptest.Server) { r.On(smtptest.EndOfData).Times(1).Reply(554, "5.6.0 no") }, "failed", true},
		{"unknown", func(r *smtptest.Server) { r.On(smtptest.EndOfData).Times(1).Drop() }, "unknown", true},
		{"broken before", func(r *smtptest.Server) { r.On(smtptest.Data).Times(1).Drop() }, "deferred", false},
	} {
		t.Run(x.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 1, func(c *smtplb.Config) {
					c.Limits.Messages, c.Relays[0].Limits.Recipients = smtplb.Rate{N: 1, Burst: 1}, smtplb.Rate{N: 1, Burst: 1}
					c.Relays[0].Breaker.Consecutive, c.Relays[0].NoBackOff = -1, true
				})
				defer h.close()
				x.rule(h.relays[0])
				h.sends(envelope("x@example.com"), x.want)
				begun := time.Now()
				h.sends(envelope("x@example.com"), "accepted")
				if took := time.Since(begun); x.spent != (took >= time.Second-time.Millisecond) || took > 1100*time.Millisecond {
					t.Errorf("the next one went after %v", took)
				}
			})
		})
	}
}
