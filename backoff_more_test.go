package smtplb_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// What is held back is let go by time alone where the relay gets no mail, or its state says why not.
func TestBackoffEndsWithoutMail(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) {
			c.Relays[0].Limits.Messages = smtplb.PerSecond(10)
			c.Relays[1].RoutedOnly = true
			c.Routes = toSecond()
		})
		defer h.close()
		h.relays[0].On(smtptest.Mail).Times(1).Reply(451, "4.7.0 Too many messages, slow down")
		h.sends(envelope("x@example.com"), "deferred")
		if s := h.pool.Stats().Relays[0]; s.BackOff == "" {
			t.Error("nothing is held back")
		}
		for range 4 * 60 { // the clock goes on
			h.sends(envelope("x@second.example"), "accepted")
			time.Sleep(time.Minute)
		}
		if s := h.pool.Stats().Relays[0]; s.BackOff != "" || held(h.pool) != 0 {
			t.Errorf("four hours later: %s", s.BackOff)
		}
	})
}

// A used-up quota is a relay that can't take mail: others take it, and after an hour one message tries.
func TestQuotaIsSuspended(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) { c.Relays[1].Tier = 1; c.Health.Interval = -1 })
		defer h.close()
		quota := h.relays[0].On(smtptest.Mail).Reply(454, "Throttling failure: Daily message quota exceeded")
		tried := func() string {
			t.Helper()
			r, err := h.pool.Deliver(context.Background(), envelope("x@example.com"))
			if err != nil {
				t.Fatal(err)
			}
			return relaysTried(r)
		}
		if got := tried(); got != "r0 r1" {
			t.Error(got)
		}
		for range 10 {
			if got := tried(); got != "r1" {
				t.Error(got)
			}
			time.Sleep(time.Minute)
		}
		if b := h.pool.Stats().Relays[0]; b.Breaker != "closed" || b.BackOff == "" {
			t.Errorf("%s, %s", b.Breaker, b.BackOff)
		}
		time.Sleep(51 * time.Minute)
		if got := tried(); got != "r0 r1" { // the probe
			t.Error(got)
		}
		if got := tried(); got != "r1" {
			t.Error(got)
		}
		quota.Remove()
		time.Sleep(61 * time.Minute)
		for range 3 {
			if got := tried(); got != "r0" {
				t.Error(got)
			}
		}
	})
}

// Whose message meets the used-up quota hears at once when it is worth sending it again: when the relay is asked again, where there is no other.
func TestQuotaRetryAfter(t *testing.T) {
	for _, stage := range []smtptest.Stage{smtptest.Mail, smtptest.EndOfData} {
		for _, other := range []bool{false, true} {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, map[bool]int{false: 1, true: 2}[other], func(c *smtplb.Config) { c.Balancer, c.Health.Interval = inOrder{}, -1 })
				defer h.close()
				h.relays[0].On(stage).Times(1).Reply(454, "Throttling failure: Daily message quota exceeded")
				if other {
					h.relays[1].On(smtptest.Rcpt).Times(1).Reply(450, "4.2.0 Mailbox busy")
				}
				r, err := h.pool.Deliver(context.Background(), envelope("x@example.com"))
				wait := r.Recipients[0].RetryAfter
				var se *smtplb.SendError
				if !errors.As(err, &se) || se.RetryAfter != wait || r.Recipients[0].Outcome != smtplb.Deferred {
					t.Fatalf("%v: %v", r, err)
				}
				if other && wait != 5*time.Minute || !other && (wait < 59*time.Minute || wait > 61*time.Minute) {
					t.Errorf("%v, another relay %t: worth trying after %v", stage, other, wait)
				}
				time.Sleep(wait)
				if r, err := h.pool.Deliver(context.Background(), envelope("x@example.com")); err != nil {
					t.Errorf("%v: %v", r, err)
				}
			})
		}
	}
}

// A refusal that is about a mailbox provider holds back what is for that provider only, at that relay only.
func TestBackoffOfAProvider(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) { c.Balancer = smtplb.FirstAvailable(); c.Health.Interval = -1 })
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).For("@gmail.com").Times(1).Reply(421, "4.7.28 Gmail has detected an unusual rate of unsolicited mail")
		tried := func(to string) string {
			t.Helper()
			r, err := h.pool.Deliver(context.Background(), envelope(to))
			if err != nil {
				t.Fatal(err)
			}
			return relaysTried(r)
		}
		if got := tried("x@gmail.com"); got != "r0 r1" {
			t.Error(got)
		}
		time.Sleep(11 * time.Second) // it is cooling for so long
		if got := tried("x@example.com"); got != "r0" {
			t.Error(got)
		}
		slow := 0
		for range 10 {
			if got := tried("x@gmail.com"); got == "r1" {
				slow++
			}
			if got := tried("x@example.com"); got != "r0" {
				t.Error(got)
			}
		}
		if slow < 8 {
			t.Errorf("only %d of 10 messages to the provider left by the other relay", slow)
		}
	})
}

// held is how many tethers the pool counts.
func held(p *smtplb.Pool) int {
	n, _ := p.Strained()
	return n
}

// Mail that a provider refuses for reputation goes to one other relay at the most: each one that is told the same is worse thought of.
func TestReputationIsContained(t *testing.T) {
	t.Parallel()
	for _, at := range []smtptest.Stage{smtptest.Mail, smtptest.Rcpt, smtptest.EndOfData} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 4, func(c *smtplb.Config) { c.Balancer = smtplb.FirstAvailable(); c.Retry.Attempts = -1 })
			defer h.close()
			for _, r := range h.relays {
				r.On(at).Reply(421, "4.7.28 Our system has detected an unusual rate of unsolicited mail")
			}
			r, err := h.pool.Deliver(context.Background(), envelope("x@gmail.com"))
			if err == nil || outcomes(r) != "deferred" || relaysTried(r) != "r0 r1" {
				t.Errorf("%v: %v: %v", at, r, err)
			}
		})
	}
}

// A rule that says greylisting is obeyed where all recipients go together, too.
func TestGreylistRuleOfAll(t *testing.T) {
	t.Parallel()
	for _, all := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 2, func(c *smtplb.Config) {
				c.Balancer = smtplb.FirstAvailable()
				c.Relays[0].Rules = []smtplb.Rule{{Match: "come again", Action: smtplb.RuleGreylist}}
			})
			defer h.close()
			h.relays[0].On(smtptest.Rcpt).Times(1).Reply(450, "4.2.0 come again")
			e := envelope("x@example.com")
			e.RequireAll = all
			r, err := h.pool.Deliver(context.Background(), e)
			if err == nil || relaysTried(r) != "r0" || !r.Recipients[0].Greylisted {
				t.Errorf("all %v: %v: %v", all, r, err)
			}
		})
	}
}

// A provider's window bounds what goes to it over that relay.
func TestWindowOfAProvider(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Rules = []smtplb.Rule{{Match: "one at a time", Action: smtplb.RuleBackOff, Provider: true}}
			c.MaxThrottleWait = -1
		})
		defer h.close()
		h.relays[0].On(smtptest.Rcpt).For("@gmail.com").Times(1).Reply(451, "4.7.0 one at a time, please")
		_, _ = h.pool.Deliver(context.Background(), envelope("x@gmail.com"))
		time.Sleep(2 * time.Second)
		h.relays[0].On(smtptest.EndOfData).Delay(20 * time.Second)
		begun := time.Now()
		done := make(chan time.Duration, 8)
		for range 3 {
			go func() {
				h.sends(envelope("x@gmail.com"), "accepted")
				done <- time.Since(begun)
			}()
		}
		for range 3 {
			go func() {
				h.sends(envelope("x@example.com"), "accepted")
				done <- time.Since(begun)
			}()
		}
		last := time.Duration(0)
		for i := range 6 {
			if last = <-done; i == 3 && last > 35*time.Second {
				t.Errorf("the others took %v", last)
			}
		}
		if last < 60*time.Second {
			t.Errorf("three to the provider, 20 s each, took %v", last)
		}
	})
}
