package smtplb_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// greylists has relays greylist those recipients for 5 minutes whose address begins with "grey", each relay by itself, as real ones do. In the local part "grey2" tells that r2 is to be the first that
// does so: the others say that the mailbox is busy, until that relay has.
func greylists(h *house) {
	var mu sync.Mutex
	seen := map[string]time.Time{}
	begun := map[string]bool{} // the relay of its name has greylisted it
	for i, s := range h.relays {
		name := fmt.Sprint(i)
		shy := func(e *smtptest.Event) bool {
			mu.Lock()
			defer mu.Unlock()
			digit := strings.TrimPrefix(e.Rcpt[:strings.IndexAny(e.Rcpt, "-@")], "grey")
			return strings.HasPrefix(e.Rcpt, "grey") && digit != "" && digit != name && !begun[e.Rcpt]
		}
		s.On(smtptest.Rcpt).If(shy).Reply(450, "4.2.1 Mailbox busy")
		s.On(smtptest.Rcpt).If(func(e *smtptest.Event) bool {
			if !strings.HasPrefix(e.Rcpt, "grey") || shy(e) { // both rules are asked about each recipient
				return false
			}
			mu.Lock()
			defer mu.Unlock()
			begun[e.Rcpt] = true
			key := name + e.Rcpt
			if seen[key].IsZero() {
				seen[key] = time.Now()
			}
			return time.Since(seen[key]) < 5*time.Minute
		}).Reply(451, "4.7.1 Greylisted, please come back")
	}
}

// retryWhenDue waits for as long as the receipt says, and makes the retry.
func retryWhenDue(h *house, r *smtplb.Receipt, e *smtplb.Envelope) *smtplb.Envelope {
	h.Helper()
	var wait time.Duration
	for _, x := range r.Recipients {
		if x.Greylisted != (x.Outcome == smtplb.Deferred && strings.HasPrefix(x.Addr, "grey")) || x.Greylisted && x.RetryAfter < 5*time.Minute {
			h.Errorf("%+v", x)
		}
		wait = max(wait, x.RetryAfter)
	}
	time.Sleep(wait)
	again := r.Retry(e)
	if again == nil {
		h.Fatalf("no retry of %v", r)
	}
	return again
}

// by tells who said what was to become of each recipient.
func by(r *smtplb.Receipt) string {
	var s []string
	for _, x := range r.Recipients {
		s = append(s, x.Relay)
	}
	return strings.Join(s, " ")
}

// Each part of a message that was greylisted goes to its own relay again, at the first attempt.
func TestGreylistedParts(t *testing.T) {
	for _, want := range []string{"r0 r2", "r0 r3", "r1 r2", "r1 r3"} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 5, groups)
			defer h.close()
			greylists(h)
			e := envelope(fmt.Sprintf("grey%c@a.test", want[1]), fmt.Sprintf("grey%c@b.test", want[4]))
			r, err := h.pool.Deliver(t.Context(), e)
			if outcomes(r) != "deferred deferred" || by(r) != want {
				t.Fatalf("%s by %s: %v", outcomes(r), by(r), err)
			}
			again := retryWhenDue(h, r, e)
			if again.Prefer != want[:2] {
				t.Errorf("the retry prefers %q, want %q", again.Prefer, want[:2])
			}
			r, err = h.pool.Deliver(t.Context(), again)
			if err != nil || by(r) != want || len(r.Attempts) != 2 {
				t.Errorf("the retry: %v by %s, want %s: %v", r, by(r), want, err)
			}
		})
	}
}

// Relays of one group that greylisted different recipients are asked again for those. Who is deferred for another reason goes along with the first.
func TestGreylistedByTwoOfAGroup(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) { c.Balancer = smtplb.FirstAvailable() })
		defer h.close()
		greylists(h)
		for _, s := range h.relays {
			s.On(smtptest.Rcpt).For("busy@example.com").Times(1).Reply(450, "4.2.1 Mailbox busy")
		}
		e := envelope("grey0@example.com", "busy@example.com", "grey1@example.com", "grey0-2@example.com", "ok@example.com", "grey1@example.com")
		r, err := h.pool.Deliver(t.Context(), e)
		if outcomes(r) != "deferred deferred deferred deferred accepted deferred" || by(r) != "r0 r1 r1 r0 r0 r1" {
			t.Fatalf("%s by %s: %v", outcomes(r), by(r), err)
		}
		again := retryWhenDue(h, r, e)
		plan, err := h.pool.Explain(t.Context(), again)
		if err != nil || len(plan.Others) != 1 || plan.Candidates[0].Name != "r0" || plan.Others[0].Candidates[0].Name != "r1" || plan.Recipients != 3 || plan.Others[0].Recipients != 1 {
			t.Errorf("the plan of the retry, %v:\n%v", err, plan)
		}
		r, err = h.pool.Deliver(t.Context(), again)
		if err != nil || by(r) != "r0 r0 r1 r0 r1" || len(r.Attempts) != 2 {
			t.Errorf("the retry: %v by %s: %v", r, by(r), err)
		}
		for _, to := range slices.Compact(again.To) {
			if n := h.stored(to); n != 1 {
				t.Errorf("%s is stored %d times", to, n)
			}
		}
	})
}

// A retry that is too early, or deferred for another reason, is itself retried at the same relays; so it is when only one of them has the mail to wait.
func TestGreylistedRetryOfARetry(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 5, groups)
		defer h.close()
		greylists(h)
		e := envelope("grey1@a.test", "grey3@b.test")
		r, _ := h.pool.Deliver(t.Context(), e)
		again := r.Retry(e)
		r, err := h.pool.Deliver(t.Context(), again) // at once
		if outcomes(r) != "deferred deferred" || by(r) != "r1 r3" {
			t.Fatalf("%s by %s: %v", outcomes(r), by(r), err)
		}
		time.Sleep(5 * time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		third := r.Retry(again)
		r, err = h.pool.Deliver(ctx, third) // the caller is in a hurry: no relay was asked
		if outcomes(r) != "deferred deferred" || len(r.Attempts) != 0 {
			t.Fatalf("%v: %v", r, err)
		}
		fourth := r.Retry(third)
		h.relays[1].On(smtptest.Mail).Times(1).Reply(451, "4.3.0 Not now")
		h.relays[0].On(smtptest.Mail).Times(1).Reply(451, "4.3.0 Not now")
		r, err = h.pool.Deliver(t.Context(), fourth)
		if outcomes(r) != "deferred accepted" || r.Attempts[0].Relay != "r1" && r.Attempts[1].Relay != "r1" || r.Recipients[1].Relay != "r3" {
			t.Fatalf("%v by %s, %s: %v", r, by(r), relaysTried(r), err)
		}
		time.Sleep(r.Recipients[0].RetryAfter)
		r, err = h.pool.Deliver(t.Context(), r.Retry(fourth))
		if err != nil || relaysTried(r) != "r1" {
			t.Errorf("%v: %v", r, err)
		}
	})
}

// Greylisted anew, one recipient doesn't make the retry forget where another waits.
func TestGreylistedAnewBesideABusyRelay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 5, groups)
		defer h.close()
		greylists(h)
		e := envelope("grey1@a.test", "grey3@b.test")
		r, _ := h.pool.Deliver(t.Context(), e)
		again := r.Retry(e)
		for _, s := range h.relays[:2] {
			s.On(smtptest.Mail).Times(1).Reply(451, "4.3.0 Not now")
		}
		r, err := h.pool.Deliver(t.Context(), again)
		if outcomes(r) != "deferred deferred" || r.Recipients[0].Greylisted || !r.Recipients[1].Greylisted {
			t.Fatalf("%v: %v", r, err)
		}
		time.Sleep(5 * time.Minute)
		if r, err = h.pool.Deliver(t.Context(), r.Retry(again)); err != nil || by(r) != "r1 r3" {
			t.Errorf("%v by %s: %v", r, by(r), err)
		}
	})
}

// Who may have the message already isn't called greylisted, and isn't in a retry.
func TestGreylistedAndUnknown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Times(1).DropUnstored()
		h.relays[0].On(smtptest.Rcpt).Nth(2).Reply(451, "4.7.1 Greylisted")
		e := envelope("x@example.com")
		e.AtLeastOnce = true
		r, err := h.pool.Deliver(t.Context(), e)
		if outcomes(r) != "unknown" || r.Recipients[0].Greylisted || len(r.Attempts) != 2 || r.Retry(e) != nil {
			t.Errorf("%+v: %v", r.Recipients, err)
		}
	})
}

// What changes between a send and its retry: an Update that keeps the relay, one that takes it away or out of the route, an operator, an open breaker. Where the relay is gone or sick, others are tried at once.
func TestGreylistedAndThen(t *testing.T) {
	for name, test := range map[string]struct {
		change func(h *house, c smtplb.Config) error
		want   string // who takes the recipient of a.test; "other": not r1, and at once
	}{
		"nothing": {func(*house, smtplb.Config) error { return nil }, "r1"},
		"an Update of weights": {func(h *house, c smtplb.Config) error {
			c.Relays[0].Weight = 100
			return h.pool.Update(c)
		}, "r1"},
		"an Update that has a route less": {func(h *house, c smtplb.Config) error {
			c.Routes = c.Routes[:1]
			c.Relays[3].RoutedOnly = false
			return h.pool.Update(c)
		}, "r1"},
		"an Update without routes": {func(h *house, c smtplb.Config) error {
			c.Routes = nil
			for i := range c.Relays {
				c.Relays[i].RoutedOnly = false
			}
			return h.pool.Update(c)
		}, "r1"},
		"an Update that takes the relay away": {func(h *house, c smtplb.Config) error {
			c.Relays = slices.Delete(slices.Clone(c.Relays), 1, 2)
			return h.pool.Update(c)
		}, "other"},
		"an Update that takes it out of the route": {func(h *house, c smtplb.Config) error {
			c.Relays[1].Tags = []string{"b"}
			return h.pool.Update(c)
		}, "other"},
		"drain":       {func(h *house, _ smtplb.Config) error { return h.pool.SetAdmin("r1", smtplb.AdminDrain) }, "other"},
		"maintenance": {func(h *house, _ smtplb.Config) error { return h.pool.SetAdmin("r1", smtplb.AdminMaintenance) }, "other"},
		"its breaker is open": {func(h *house, _ smtplb.Config) error {
			h.relays[1].On(smtptest.Mail).Drop()
			for range 5 {
				e := envelope("x@a.test")
				e.Prefer = "r1"
				if _, err := h.pool.Deliver(h.Context(), e); err != nil {
					return err
				}
			}
			if s := h.pool.Stats().Relays[1].Breaker; s != "open" {
				return fmt.Errorf("the breaker is %s", s)
			}
			return nil
		}, "other"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var config smtplb.Config
				h := newHouse(t, 5, func(c *smtplb.Config) {
					groups(c)
					config = *c
				})
				defer h.close()
				greylists(h)
				e := envelope("grey1@a.test", "grey3@b.test")
				r, err := h.pool.Deliver(t.Context(), e)
				if by(r) != "r1 r3" {
					t.Fatalf("%v by %s: %v", r, by(r), err)
				}
				again := retryWhenDue(h, r, e)
				config.Relays = slices.Clone(config.Relays)
				if err := test.change(h, config); err != nil {
					t.Fatal(err)
				}
				begun := time.Now()
				r, err = h.pool.Deliver(t.Context(), again)
				if d := time.Since(begun); d > 0 {
					t.Errorf("it waited for %v", d)
				}
				first := r.Recipients[0]
				switch {
				case r.Recipients[1].Outcome != smtplb.Accepted || r.Recipients[1].Relay != "r3":
					t.Errorf("the other part: %v by %s: %v", r, by(r), err)
				case test.want == "other" && (first.Relay == "r1" || first.Relay == "" || !first.Greylisted):
					t.Errorf("%+v: %v", first, err)
				case test.want != "other" && (err != nil || first.Relay != test.want):
					t.Errorf("by %s, want %s: %v", first.Relay, test.want, err)
				}
			})
		})
	}
}

// What the caller says counts: another Prefer takes the place of what Retry has set, and RequireAll keeps the recipients together.
func TestGreylistedAsTheCallerSays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 3, func(c *smtplb.Config) { c.Balancer = smtplb.FirstAvailable() })
		defer h.close()
		greylists(h)
		e := envelope("grey0@example.com", "grey1@example.com")
		r, _ := h.pool.Deliver(t.Context(), e)
		again := retryWhenDue(h, r, e)
		other := *again
		other.Prefer = "r2"
		if r, err := h.pool.Deliver(t.Context(), &other); by(r) != "r2 r2" {
			t.Errorf("%v by %s: %v", r, by(r), err)
		}
		all := *again
		all.RequireAll = true
		if r, _ := h.pool.Deliver(t.Context(), &all); r.Attempts[0].Relay != "r0" || r.Attempts[0].Offered != 2 || r.Count(smtplb.Accepted) != 0 {
			t.Errorf("RequireAll: %v by %s, %+v", r, by(r), r.Attempts)
		}
		again.To = again.To[1:] // and who takes recipients out, takes nothing away from the others
		if r, err := h.pool.Deliver(t.Context(), again); err != nil || by(r) != "r1" {
			t.Errorf("%v by %s: %v", r, by(r), err)
		}
	})
}

// A relay that is full is waited for, for 30 s at the most, and not once more because of an Update that comes afterwards.
func TestGreylistedByAFullRelay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var config smtplb.Config
		h := newHouse(t, 2, func(c *smtplb.Config) {
			for i := range c.Relays {
				c.Relays[i].Conns.Max = 1
			}
			config = *c
		})
		defer h.close()
		greylists(h)
		e := envelope("grey1@example.com")
		e.Prefer = "r1"
		r, err := h.pool.Deliver(t.Context(), e)
		if by(r) != "r1" {
			t.Fatalf("%v: %v", r, err)
		}
		again := retryWhenDue(h, r, e)
		var wg sync.WaitGroup
		for i, s := range h.relays {
			s.On(smtptest.EndOfData).Times(1).Delay(time.Duration(100-i) * time.Second)
			wg.Go(func() {
				e := envelope("x@example.com")
				e.Prefer = fmt.Sprintf("r%d", i)
				if _, err := h.pool.Deliver(t.Context(), e); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(time.Second)
		begun := time.Now()
		third := h.net.NewServer("r2.test:25")
		defer third.Close()
		time.AfterFunc(45*time.Second, func() {
			config.Relays = append(slices.Clone(config.Relays), smtplb.Relay{Name: "r2", Addr: third.Addr, TLS: smtplb.TLSNone})
			if err := h.pool.Update(config); err != nil {
				t.Error(err)
			}
		})
		r, err = h.pool.Deliver(t.Context(), again)
		if d := time.Since(begun); err != nil || by(r) != "r2" || d != 45*time.Second {
			t.Errorf("%v by %s after %v: %v", r, by(r), d, err)
		}
		wg.Wait()
	})
}
