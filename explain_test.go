package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// explained is Explain in short: the candidates with their shares, and the others with the reasons.
func (h *house) explained(e *smtplb.Envelope) string {
	h.Helper()
	p, err := h.pool.Explain(context.Background(), e)
	if err != nil {
		h.Fatal(err)
	}
	var s []string
	for _, c := range p.Candidates {
		s = append(s, strings.TrimRight(fmt.Sprintf("%s %.0f%% %s", c.Name, 100*c.Share, c.Note), " "))
	}
	if p.Waits {
		s = append(s, "waits")
	}
	if p.Hopeless {
		s = append(s, "hopeless")
	}
	for _, x := range p.Skipped {
		s = append(s, "-"+x.Name+" "+x.Why)
	}
	return strings.Join(s, " | ")
}

func (h *house) wantPlan(e *smtplb.Envelope, want string) {
	h.Helper()
	if got := h.explained(e); got != want {
		h.Errorf("explained\n got %s\nwant %s", got, want)
	}
}

func TestExplain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 4, func(c *smtplb.Config) {
			c.Relays[0].Weight = 3
			c.Relays[2].Tier, c.Relays[3].Tier = 1, 2
			for i := range c.Relays {
				c.Relays[i].Conns.Max = 1
			}
		})
		defer h.close()
		e := envelope("a@example.com")
		h.wantPlan(e, "r0 75% | r1 25% | -r2 tier 0 can take it | -r3 tier 0 can take it")
		prefers := envelope("a@example.com")
		prefers.Prefer = "r2"
		h.wantPlan(prefers, "r2 100% the envelope prefers it | -r0 the envelope prefers r2 | -r1 the envelope prefers r2 | -r3 the envelope prefers r2")
		for _, r := range h.relays {
			if n := len(r.Transcripts()); n != 0 {
				t.Errorf("%s saw %d connections", r.Addr, n)
			}
		}

		// One is busy, then both, and the third.
		var free []func()
		busy := func(name string) {
			i := slices.Index([]string{"r0", "r1", "r2", "r3"}, name)
			h.relays[i].On(smtptest.EndOfData).Times(1).Delay(time.Hour)
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() {
				defer close(done)
				e := envelope("busy@example.com")
				e.Prefer = name
				h.pool.Deliver(ctx, e)
			}()
			synctest.Wait()
			free = append(free, func() { cancel(); <-done })
		}
		busy("r0")
		h.wantPlan(e, "r1 100% | -r0 full: 1 of 1 connections are in use | -r2 tier 0 can take it | -r3 tier 0 can take it")
		busy("r1")
		h.wantPlan(e, "r0 0% | r1 0% | waits | -r2 tier 0 can take it | -r3 tier 0 can take it")
		for _, f := range free {
			f()
		}
	})
}

// What keeps a relay out, and until when.
func TestExplainSkipped(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 3, func(c *smtplb.Config) {
			c.Health.Interval = -1
			c.Relays[2].Tier = 1
			for i := range c.Relays {
				c.Relays[i].Breaker.Consecutive = 1
			}
		})
		defer h.close()
		e := envelope("a@example.com")
		to := func(name string) {
			e := envelope("a@example.com")
			e.Prefer = name
			h.pool.Deliver(t.Context(), e)
		}
		h.relays[0].Kill()
		to("r0")
		p, err := h.pool.Explain(t.Context(), e)
		if err != nil || len(p.Candidates) != 1 || p.Candidates[0].Name != "r1" || p.Candidates[0].Share != 1 || len(p.Skipped) != 2 {
			t.Fatalf("%+v: %v", p, err)
		}
		x := p.Skipped[0]
		if at := h.pool.Stats().Relays[0].RetryAt; x.Name != "r0" || !strings.HasPrefix(x.Why, "open until "+at.Format(time.TimeOnly)+" (1 consecutive faults") || !x.Until.Equal(at) || x.Failover {
			t.Errorf("%+v, RetryAt %v", x, at)
		}

		// The second wants less mail: the next tier comes before it.
		h.relays[1].On(smtptest.Mail).Times(1).Reply(451, "4.7.0 Too many messages, slow down")
		to("r1")
		h.wantPlan(e, "r2 100% | -r0 "+x.Why+" | -r1 asked for less mail, left alone until "+
			time.Now().Add(10*time.Second).Format(time.TimeOnly)+": it is used only where nothing else is left")

		// The third refuses this sender: now both last resorts are candidates, by tier.
		h.relays[2].On(smtptest.Mail).Times(1).Reply(550, "5.7.1 Sender address rejected: not owned by user")
		to("r2")
		got := h.explained(e)
		if !strings.HasPrefix(got, "r1 100% asked for less mail, left alone until ") || !strings.Contains(got, "-r2 refused this sender's domain, left alone for it until ") {
			t.Errorf("got %s", got)
		}
		other := envelope("a@example.com")
		other.From = "a@elsewhere.example"
		if got := h.explained(other); !strings.HasPrefix(got, "r2 100%") {
			t.Errorf("for another sender: %s", got)
		}

		// All dead.
		time.Sleep(11 * time.Second)
		for i := 1; i < 3; i++ {
			h.relays[i].Kill()
			to(fmt.Sprintf("r%d", i))
		}
		p, err = h.pool.Explain(t.Context(), e)
		if err != nil || len(p.Candidates) != 0 || len(p.Skipped) != 3 || p.NextChance.IsZero() || p.Hopeless {
			t.Fatalf("%+v: %v", p, err)
		}
		_, err = h.pool.Deliver(t.Context(), e)
		var se *smtplb.SendError
		if !errors.As(err, &se) || se.RetryAfter != p.RetryAfter || p.RetryAfter != max(time.Until(p.NextChance), time.Second) {
			t.Errorf("Deliver says %v, the plan %v and %v", err, p.RetryAfter, time.Until(p.NextChance))
		}
		if text := p.String(); !strings.HasPrefix(text, "no relay can take it before "+p.NextChance.Format(time.TimeOnly)+":\n  r0: open until ") {
			t.Errorf("in words:\n%s", text)
		}
	})
}

func TestExplainCapabilities(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := mixed(t, []smtptest.Option{smtptest.WithoutExtensions("SMTPUTF8")}, []smtptest.Option{smtptest.WithLimits(0, 1)})
		defer h.close()
		for _, name := range []string{"r0", "r1"} { // now they are known
			e := envelope("x@example.com")
			e.Prefer = name
			if _, err := h.pool.Deliver(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
		h.wantPlan(envelope("é@example.com"), "r1 100% | -r0 what it last offered isn't enough: it does not offer SMTPUTF8 (RFC 6531), which an address or a header needs")
		together := envelope("a@example.com", "b@example.com")
		h.wantPlan(together, "r0 100% | -r1 tier 0 can take it")
		together.RequireAll = true
		const atATime = "what it last offered isn't enough: it takes 1 recipients at a time (LIMITS, RFC 9422), and all 2 must go together"
		h.wantPlan(together, "r0 100% | -r1 "+atATime)
		together.To[0] = "é@example.com"
		h.wantPlan(together, "hopeless | -r0 what it last offered isn't enough: it does not offer SMTPUTF8 (RFC 6531), which an address or a header needs | -r1 "+atATime)
		if p, _ := h.pool.Explain(t.Context(), together); !strings.HasPrefix(p.String(), "no relay can take it:\n") {
			t.Errorf("%v", p)
		}
	})
}

// Explain takes nobody's turn: however often it is called, the next message goes where it would have gone.
func TestExplainTakesNoTurn(t *testing.T) {
	for _, balancer := range []smtplb.Balancer{smtplb.RoundRobin(), smtplb.Adaptive(), smtplb.LeastInFlight()} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 2, func(c *smtplb.Config) { c.Balancer = balancer })
			defer h.close()
			last := ""
			for i := range 20 {
				for range i {
					h.explained(envelope("a@example.com"))
				}
				r, err := h.pool.Deliver(t.Context(), envelope("a@example.com"))
				if err != nil || relaysTried(r) == last {
					t.Fatalf("%v: message %d went to %s after %s: %v", balancer, i, relaysTried(r), last, err)
				}
				last = relaysTried(r)
			}
			if s := h.pool.Stats(); s.Sends != 20 || s.InFlight != 0 || s.Budget.Refusals != 0 {
				t.Errorf("%d sends, %d in flight, %d refused", s.Sends, s.InFlight, s.Budget.Refusals)
			}
		})
	}
}

func TestExplainRefuses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		e := envelope("no address")
		var bad *smtplb.EnvelopeError
		if p, err := h.pool.Explain(t.Context(), e); !errors.As(err, &bad) || bad.Field != "To[0]" || len(p.Candidates) != 0 {
			t.Errorf("%v: %v", p, err)
		}
		if _, err := h.pool.Explain(t.Context(), nil); !errors.As(err, &bad) {
			t.Errorf("of nil: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := h.pool.Explain(ctx, envelope("a@example.com")); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		if _, err := new(smtplb.Pool).Explain(t.Context(), envelope("a@example.com")); err == nil {
			t.Error("of a Pool that New didn't make: nil")
		}
		read := false
		e = envelope("a@example.com")
		e.Body = smtplb.Reader(readerFunc(func([]byte) (int, error) { read = true; return 0, errors.New("read") }))
		if _, err := h.pool.Explain(t.Context(), e); err != nil || read {
			t.Errorf("read %v: %v", read, err)
		}
		h.pool.Close()
		if _, err := h.pool.Explain(t.Context(), envelope("a@example.com")); !errors.Is(err, smtplb.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// What Explain says is what Deliver does.
func TestExplainIsTrue(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 6, func(c *smtplb.Config) {
			for i := range c.Relays {
				c.Relays[i].Tier, c.Relays[i].Weight, c.Relays[i].Breaker.Consecutive, c.Relays[i].NoBackOff = i/2, 1+i%3, 2, true
			}
		})
		defer h.close()
		said := map[string]int{}
		for i := range 400 {
			switch r := h.relays[i*7%6]; i % 5 {
			case 0:
				r.Kill()
			case 2:
				r.Restart()
			case 3:
				r.On(smtptest.Mail).Times(1).Reply(451, "4.7.0 Too many messages")
			}
			e := envelope("a@example.com")
			if i%4 == 0 {
				e.Prefer = "r3"
			}
			p, err := h.pool.Explain(t.Context(), e)
			if err != nil {
				t.Fatal(err)
			}
			r, _ := h.pool.Deliver(t.Context(), e)
			first := ""
			if len(r.Attempts) > 0 {
				first = r.Attempts[0].Relay
			}
			if first == "" != (len(p.Candidates) == 0) || first != "" && !slices.ContainsFunc(p.Candidates, func(c smtplb.PlanRelay) bool { return c.Name == first }) {
				t.Fatalf("message %d went to %q, but\n%v", i, first, p)
			}
			if n := len(p.Candidates) + len(p.Skipped); n != 6 {
				t.Fatalf("of %d relays:\n%v", n, p)
			}
			said[first]++
			time.Sleep(time.Duration(i%9) * time.Second)
		}
		if len(said) < 5 {
			t.Errorf("too little happened: %v", said)
		}
	})
}
