package smtplb_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// plan is Explain's for a plain message.
func (h *house) plan(e *smtplb.Envelope) smtplb.Plan {
	h.Helper()
	p, err := h.pool.Explain(context.Background(), e)
	if err != nil {
		h.Fatal(err)
	}
	return p
}

// Explain tells of every state of health.
func TestExplainHealth(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 4, func(c *smtplb.Config) { c.Relays[3].Tier = 1 })
		defer h.close()
		h.use(time.Second)
		admin := func(name string, s smtplb.AdminState) {
			if err := h.pool.SetAdmin(name, s); err != nil {
				t.Fatal(err)
			}
		}
		admin("r0", smtplb.AdminDrain)
		admin("r1", smtplb.AdminMaintenance)
		h.relays[3].Kill()
		h.use(time.Minute)
		next := h.pool.Stats().Relays[3].NextCheck
		e := envelope("a@example.com")
		down := "-r3 down, next checked at " + next.Format(time.TimeOnly) + " (" + h.pool.Stats().Relays[3].Check.Error + ")"
		h.wantPlan(e, "r2 100% | -r0 in drain | -r1 in maintenance | "+down)
		if x := h.plan(e).Skipped[2]; !x.Until.Equal(next) || x.Failover || time.Since(next) > time.Second { // it may be due, as the clock beats once a second
			t.Errorf("%+v, the next check is at %v", x, next)
		}
		admin("r2", smtplb.AdminDrain)
		if p := h.plan(e); len(p.Candidates) != 0 || p.Hopeless || !p.NextChance.Equal(next) {
			t.Errorf("%v", p)
		}
		admin("r0", smtplb.AdminReady)
		admin("r2", smtplb.AdminReady)
		time.Sleep(15 * time.Second)
		time.Sleep(time.Second / 2) // the weights are brought up to date
		p := h.plan(e)
		if len(p.Candidates) != 2 || p.Candidates[0].Share != 0.5 || p.Candidates[0].EffectiveWeight < 0.2 || p.Candidates[0].EffectiveWeight > 0.26 ||
			!strings.HasPrefix(p.Candidates[0].Note, "slow start: 2") || !strings.HasSuffix(p.Candidates[0].Note, " % of its weight and connections") {
			t.Errorf("%+v", p.Candidates)
		}
	})
}

// One with an open breaker, half-open: the next message is its probe.
func TestExplainProbe(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) {
			spare(c)
			c.Health.Interval = -1
			c.Relays[0].Breaker.Consecutive = 1
		})
		defer h.close()
		h.relays[0].Kill()
		h.takes("a@example.com")
		h.relays[0].Restart()
		time.Sleep(20 * time.Second)
		if p := h.plan(envelope("a@example.com")); len(p.Candidates) != 1 || !strings.HasPrefix(p.Candidates[0].Note, "half-open, this message would be its probe: 1 consecutive faults") {
			t.Errorf("%v", p)
		}
	})
}

// What is said of the share is what the balancer goes by; the choice of Hash and FirstAvailable is the real one.
func TestExplainShares(t *testing.T) {
	for _, test := range []struct {
		balancer smtplb.Balancer
		by       string
	}{
		{smtplb.Hash(smtplb.HashOptions{}), "key"},
		{smtplb.Hash(smtplb.HashOptions{Load: 1.25}), "key"},
		{smtplb.FirstAvailable(), "order"},
		{smtplb.RoundRobin(), "weight"},
		{smtplb.Random(), "weight"},
		{smtplb.Adaptive(), "weight, load where a relay is behind"},
		{smtplb.LeastInFlight(), "load"},
		{smtplb.Latency(), "latency and load"},
		{inOrder{}, "smtplb_test.inOrder"},
	} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 5, func(c *smtplb.Config) { c.Balancer, c.Relays[2].Weight, c.Relays[0].Conns.Max = test.balancer, 4, 1 })
			defer h.close()
			ctx, cancel := context.WithCancel(t.Context())
			h.relays[0].On(smtptest.EndOfData).Times(1).Delay(time.Hour)
			e := envelope("busy@example.com")
			e.Prefer = "r0" // which is full then
			done := make(chan struct{})
			go func() { defer close(done); _, _ = h.pool.Deliver(ctx, e) }()
			synctest.Wait()
			for i := range 50 {
				e := envelope("a@example.com")
				e.Key = fmt.Sprint("tenant ", i)
				p := h.plan(e)
				sum, first := 0.0, p.Candidates[0]
				for _, c := range p.Candidates {
					sum += c.Share
				}
				header, _, _ := strings.Cut(p.String(), "\n")
				if p.By != test.by || len(p.Candidates) != 4 {
					t.Fatalf("%v", p)
				}
				switch {
				case test.by == "key" || test.by == "order":
					r := h.takes("a@example.com")
					if test.by == "key" {
						var err error
						if r, err = h.pool.Deliver(t.Context(), e); err != nil {
							t.Fatal(err)
						}
					}
					if first.Share != 1 || sum != 1 || r.Recipients[0].Relay != first.Name || header != "goes out now, tier 0, by "+test.by+":" {
						t.Fatalf("went to %s, but\n%v", r.Recipients[0].Relay, p)
					}
				case strings.HasPrefix(test.by, "weight"):
					if first.Name != "r2" || first.Share != 4./7 || sum < 0.999 || sum > 1.001 || header != "goes out now, tier 0:" {
						t.Fatalf("%v", p)
					}
				case sum != 0 || first.Name != "r2" || header != "goes out now, tier 0, by "+test.by+":" || strings.Contains(p.String(), "%"):
					t.Fatalf("%v", p)
				}
			}
			cancel()
			<-done
		})
	}
}

// For how long a send would wait, and what then; and what is kept from bulk.
func TestExplainWaiting(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(c *smtplb.Config, e *smtplb.Envelope)
		want   string
	}{
		{"no limit", func(*smtplb.Config, *smtplb.Envelope) {}, "waits for the first free connection, tier 0:"},
		{"MaxWait", func(c *smtplb.Config, _ *smtplb.Envelope) { c.MaxWait = 5 * time.Second }, "waits for the first free connection, tier 0; after 5s it is deferred:"},
		{"SpillOver", func(c *smtplb.Config, _ *smtplb.Envelope) { c.MaxWait, c.SpillOver = 5*time.Second, true },
			"waits for the first free connection, tier 0; after 5s it takes a relay of the next tier too:"},
		{"SpillOver from the last tier", func(c *smtplb.Config, _ *smtplb.Envelope) {
			c.MaxWait, c.SpillOver, c.Relays[1].Tier = 5*time.Second, true, 0
			c.Relays[1].Conns.Max = 1
			c.Relays[1].Name = "r1"
		}, "goes out now, tier 0:"},
		{"Prefer", func(_ *smtplb.Config, e *smtplb.Envelope) { e.Prefer = "r0" }, "waits for the first free connection, tier 0; after 30s it takes any relay:"},
		{"bulk", func(c *smtplb.Config, e *smtplb.Envelope) {
			c.Relays[0].Conns.Max, c.Relays[0].Conns.Reserved, e.Stream = 2, 1, "bulk"
		},
			"waits for the first free connection, tier 0:"},
		{"not bulk", func(c *smtplb.Config, _ *smtplb.Envelope) { c.Relays[0].Conns.Max, c.Relays[0].Conns.Reserved = 2, 1 }, "goes out now, tier 0:"},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				e := envelope("a@example.com")
				h := newHouse(t, 2, func(c *smtplb.Config) {
					spare(c)
					c.Relays[0].Conns.Max = 1
					test.change(c, e)
				})
				defer h.close()
				h.relays[0].On(smtptest.EndOfData).Times(1).Delay(time.Hour)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				busy := envelope("busy@example.com")
				busy.Prefer = "r0"
				go func() { defer close(done); _, _ = h.pool.Deliver(ctx, busy) }()
				synctest.Wait()
				if got, _, _ := strings.Cut(h.plan(e).String(), "\n"); got != test.want {
					t.Errorf("got %q\nwant %q", got, test.want)
				}
				cancel()
				<-done
			})
		})
	}
	t.Run("kept from bulk", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 2, func(c *smtplb.Config) { c.Relays[0].Conns.Max, c.Relays[0].Conns.Reserved = 2, 1 })
			defer h.close()
			h.relays[0].On(smtptest.EndOfData).Times(1).Delay(time.Hour)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			e := envelope("busy@example.com")
			e.Prefer = "r0"
			go func() { defer close(done); _, _ = h.pool.Deliver(ctx, e) }()
			synctest.Wait()
			e = envelope("a@example.com")
			e.Stream = "bulk"
			h.wantPlan(e, "r1 100% | -r0 full: 1 of 2 connections are in use, and 1 are not for bulk")
			cancel()
			<-done
		})
	})
}
