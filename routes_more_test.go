package smtplb_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// groups are two of two relays, for a.test and b.test, and one relay for the rest.
func groups(c *smtplb.Config) {
	tagged([]string{"a", "a", "b", "b"},
		smtplb.Route{Recipients: []string{"a.test"}, Tags: []string{"a"}},
		smtplb.Route{Recipients: []string{"b.test"}, Tags: []string{"b"}})(c)
	for i := range 4 {
		c.Relays[i].RoutedOnly = true
	}
}

// What a part meets is told of the whole: its attempts in their order, a relay that wants less mail, one that greylists.
func TestRoutesTellOfParts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 5, groups)
		defer h.close()
		h.relays[0].On(smtptest.Mail).Delay(time.Second).Reply(451, "4.3.0 Not now")
		h.relays[1].On(smtptest.Mail).Delay(time.Second).Reply(451, "4.3.0 Not now")
		h.relays[2].On(smtptest.Rcpt).Reply(451, "4.7.1 Greylisted, please come back")
		h.relays[3].On(smtptest.Rcpt).Reply(451, "4.7.1 Greylisted, please come back")
		e := envelope("x@a.test", "x@b.test", "x@c.test")
		r, err := h.pool.Deliver(t.Context(), e)
		if !errors.Is(err, smtplb.ErrPartial) || outcomes(r) != "deferred deferred accepted" {
			t.Fatalf("%s, %v", outcomes(r), err)
		}
		for i := range r.Attempts[1:] {
			if r.Attempts[i+1].Start.Before(r.Attempts[i].Start) {
				t.Errorf("attempt %d began before the one before it", i+1)
			}
		}
		if n := len(r.Attempts); n != 4 {
			t.Errorf("%d attempts", n)
		}
		again := r.Retry(e)
		if by := r.Recipients[1].Relay; !r.Recipients[1].Greylisted || again.Prefer != by {
			t.Errorf("the retry prefers %q, %q greylisted", again.Prefer, by)
		}
		if r.Recipients[0].RetryAfter < time.Minute {
			t.Errorf("%+v", r.Recipients[0])
		}
	})
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 5, groups)
		defer h.close()
		for i := range 2 {
			h.relays[i].On(smtptest.Mail).Reply(451, "4.7.0 Too many messages, slow down")
		}
		_, err := h.pool.Deliver(t.Context(), envelope("x@c.test", "x@a.test"))
		if !errors.Is(err, smtplb.ErrThrottled) {
			t.Error(err)
		}
	})
}

// What an envelope prefers is used only where its route leads there.
func TestRoutesPrefer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 5, groups)
		defer h.close()
		for range 6 {
			e := envelope("x@a.test", "x@b.test", "x@c.test")
			e.Prefer = "r3"
			r, err := h.pool.Deliver(t.Context(), e)
			if err != nil || whose(r) != "r0 r3 r4" && whose(r) != "r1 r3 r4" {
				t.Errorf("%s, %v", whose(r), err)
			}
		}
	})
}

// A message that waits for its group gets no other relay, also where one comes back that was down.
func TestRoutesWaitForTheirGroup(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 5, func(c *smtplb.Config) {
			groups(c)
			c.Relays[0].Conns.Max, c.Relays[1].Conns.Max = 1, 1
			c.Relays[4].Breaker = smtplb.Breaker{Consecutive: 1, OpenFor: 5 * time.Second}
			c.Relays[1].Tier = 1
		})
		defer h.close()
		h.relays[4].On(smtptest.Mail).Times(1).Drop()
		if _, err := h.pool.Deliver(t.Context(), envelope("x@c.test")); err == nil {
			t.Fatal("accepted")
		}
		h.relays[0].On(smtptest.EndOfData).Times(1).Delay(time.Minute)
		first := make(chan struct{})
		go func() { // its answer comes first
			defer close(first)
			_, _ = h.pool.Deliver(t.Context(), envelope("first@a.test"))
		}()
		synctest.Wait()
		start := time.Now()
		r, err := h.pool.Deliver(t.Context(), envelope("x@a.test"))
		if took := time.Since(start); err != nil || whose(r) != "r0" || took < 50*time.Second {
			t.Errorf("%s after %v: %v", whose(r), took, err)
		}
		<-first
	})
}

// A group whose relays are all sick is neither told as failed, nor by when another group's can be used; one whose relays all refuse is failed, whatever others there are.
func TestRoutesEndByTheirGroup(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 5, func(c *smtplb.Config) {
			groups(c)
			for i := range c.Relays {
				c.Relays[i].Breaker = smtplb.Breaker{Consecutive: 1, OpenFor: 100 * time.Second}
			}
			c.Health.Interval = -1
		})
		defer h.close()
		h.relays[0].Kill()
		h.relays[1].Kill()
		if r, err := h.pool.Deliver(t.Context(), envelope("x@a.test")); len(r.Attempts) != 2 || r.Recipients[0].RetryAfter < 50*time.Second {
			t.Errorf("%v, %v, %v", r, err, r.Recipients[0].RetryAfter)
		}
		r, err := h.pool.Deliver(t.Context(), envelope("x@a.test", "x@c.test"))
		if !errors.Is(err, smtplb.ErrNoRelay) || outcomes(r) != "deferred accepted" || r.Recipients[0].RetryAfter < 50*time.Second || len(r.Attempts) != 1 {
			t.Errorf("%v, %v, %v", r, err, r.Recipients[0].RetryAfter)
		}
		h.relays[2].On(smtptest.Rcpt).Reply(550, "5.7.1 Relaying denied")
		h.relays[3].On(smtptest.Rcpt).Reply(550, "5.7.1 Relaying denied")
		r, err = h.pool.Deliver(t.Context(), envelope("x@b.test"))
		if !errors.Is(err, smtplb.ErrPermanent) || outcomes(r) != "failed" {
			t.Errorf("%v, %v", r, err)
		}
	})
}

// An Update that parts a message which has been tried already: nobody is offered twice to one relay's refusal, and nobody is forgotten.
func TestRoutesUpdateAfterAnAttempt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var c smtplb.Config
		h := newHouse(t, 4, func(cfg *smtplb.Config) {
			cfg.Relays[1].Conns.Max, cfg.Relays[0].Weight = 1, 1000
			cfg.Balancer = smtplb.FirstAvailable()
			cfg.Relays[2].RoutedOnly, cfg.Relays[3].RoutedOnly = true, true
			c = *cfg
		})
		defer h.close()
		h.relays[0].On(smtptest.Mail).Reply(451, "4.3.0 Not now")
		h.relays[1].On(smtptest.EndOfData).Times(1).Delay(time.Minute)
		first := make(chan error, 1)
		go func() {
			_, err := h.pool.Deliver(t.Context(), envelope("first@c.test"))
			first <- err
		}()
		synctest.Wait()
		got := make(chan *smtplb.Receipt, 1)
		go func() {
			r, err := h.pool.Deliver(t.Context(), envelope("x@a.test", "x@b.test"))
			if err != nil {
				t.Error(err)
			}
			got <- r
		}()
		time.Sleep(time.Second)
		c.Routes = []smtplb.Route{{Recipients: []string{"a.test"}, Relays: []string{"r2"}}, {Recipients: []string{"b.test"}, Relays: []string{"r3"}}}
		if err := h.pool.Update(c); err != nil {
			t.Fatal(err)
		}
		if r := <-got; whose(r) != "r2 r3" || len(r.Attempts) != 3 {
			t.Errorf("%s, %v", whose(r), r)
		}
		if err := <-first; err != nil {
			t.Error(err)
		}
	})
}

// A group's weights follow its relays': one that comes back slowly gets its share slowly in each group that it is in.
func TestRoutesSlowStart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 5, func(c *smtplb.Config) {
			groups(c)
			c.Balancer = smtplb.RoundRobin()
		})
		defer h.close()
		send := func(seconds int) (by map[string]int) {
			by = map[string]int{}
			for range seconds * 10 {
				time.Sleep(100 * time.Millisecond)
				r, err := h.pool.Deliver(context.Background(), envelope("x@a.test"))
				if err != nil {
					t.Fatal(err)
				}
				by[r.Recipients[0].Relay]++
			}
			return by
		}
		send(5)
		if err := h.pool.SetAdmin("r0", smtplb.AdminDrain); err != nil {
			t.Fatal(err)
		}
		send(5)
		if err := h.pool.SetAdmin("r0", smtplb.AdminReady); err != nil {
			t.Fatal(err)
		}
		if by := send(6); by["r0"] == 0 || by["r0"] > 15 { // 60 s to its whole share; a tenth at first
			t.Errorf("in the first 6 s of its slow start: %v", by)
		}
		send(60)
		if by := send(6); by["r0"] != 30 {
			t.Errorf("afterwards: %v", by)
		}
	})
}
