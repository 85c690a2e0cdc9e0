package smtplb_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// What checks found out, and when the next is due.
func TestStatsOfChecks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, spare)
		defer h.close()
		if s := h.pool.Stats().Relays[1]; s.Check != (smtplb.CheckStats{}) || !s.NextCheck.IsZero() {
			t.Errorf("before there was one: %+v, next %v", s.Check, s.NextCheck)
		}
		h.relays[1].On(smtptest.Banner).Delay(30 * time.Millisecond)
		h.use(20 * time.Second)
		s := h.pool.Stats().Relays[1]
		if c := s.Check; !c.OK || c.Error != "" || c.Code != 250 || c.Noop || c.Duration < 30*time.Millisecond || c.Duration > time.Second || time.Since(c.Time) > 20*time.Second || !s.NextCheck.After(c.Time) {
			t.Errorf("%+v, next %v", c, s.NextCheck)
		}
		h.relays[1].On(smtptest.Ehlo).Reply(554, "5.3.0 broken")
		h.use(30 * time.Second)
		s = h.pool.Stats().Relays[1]
		if c := s.Check; s.State != "down" || c.OK || c.Code != 554 || !strings.HasPrefix(c.Error, "ehlo: 554 5.3.0 broken") || c.Error != s.Reason || !s.NextCheck.Equal(s.RetryAt) {
			t.Errorf("%s: %+v, next %v, retry at %v", s.State, c, s.NextCheck, s.RetryAt)
		}
		if err := h.pool.SetAdmin("r1", smtplb.AdminMaintenance); err != nil {
			t.Fatal(err)
		}
		if s := h.pool.Stats().Relays[1]; !s.NextCheck.IsZero() {
			t.Errorf("in maintenance the next is at %v", s.NextCheck)
		}
		if s := h.pool.Stats().Relays[0]; !s.Check.Time.IsZero() {
			t.Errorf("the other one, of which messages tell: %+v", s.Check)
		}
	})
}

// An idle connection is asked by NOOP.
func TestStatsOfChecksByNoop(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) { spare(c); c.Relays[1].Conns.MaxIdleTime = time.Minute })
		defer h.close()
		e := envelope("x@example.com")
		e.Prefer = "r1"
		if _, err := h.pool.Deliver(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		h.use(50 * time.Second) // the first check of all logs in, on a connection of its own
		if c := h.pool.Stats().Relays[1].Check; !c.OK || !c.Noop || c.Code != 0 {
			t.Errorf("%+v", c)
		}
	})
}

// The most that there was of what Stats shows for the moment only; failovers away.
func TestStatsOfTheMost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) { spare(c); c.Relays[0].Conns.Max, c.Relays[0].NoRiding = 3, true })
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Times(8).Delay(time.Second)
		for range 8 {
			go func() { _, _ = h.pool.Deliver(context.Background(), envelope("x@example.com")) }()
		}
		synctest.Wait()
		if s := h.pool.Stats().Relays[0]; s.InFlight != 3 || s.Waiting != 5 || s.MaxInFlight != 3 || s.MaxWaiting != 5 {
			t.Errorf("%d and %d, at most %d and %d", s.InFlight, s.Waiting, s.MaxInFlight, s.MaxWaiting)
		}
		time.Sleep(time.Minute)
		if s := h.pool.Stats().Relays[0]; s.InFlight != 0 || s.Waiting != 0 || s.MaxInFlight != 3 || s.MaxWaiting != 5 {
			t.Errorf("later %d and %d, at most %d and %d", s.InFlight, s.Waiting, s.MaxInFlight, s.MaxWaiting)
		}
		h.relays[0].On(smtptest.Mail).Times(1).Reply(451, "4.3.0 trouble")
		if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
			t.Fatal(err)
		}
		if s := h.pool.Stats(); s.Relays[0].Hops != 1 || s.Relays[1].Hops != 0 || s.Failovers != 1 {
			t.Errorf("%d and %d failovers away of %d", s.Relays[0].Hops, s.Relays[1].Hops, s.Failovers)
		}
	})
}

func TestStatsOfHedging(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h, d := newRaces(t, 2, nil)
		defer h.close()
		d.set(0, way{after: 3 * time.Second})
		if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil || r.Recipients[0].Relay != "r1" {
			t.Fatalf("%v: %v", r, err)
		}
		s := h.pool.Stats()
		if s.Hedging != (smtplb.HedgingStats{Dials: 1, Joined: 1, Won: 1}) || s.Relays[0].Outrun != 1 || s.Relays[1].Outrun != 0 {
			t.Errorf("%+v, outrun %d and %d", s.Hedging, s.Relays[0].Outrun, s.Relays[1].Outrun)
		}
		d.set(1, way{after: 3 * time.Second}) // both are slow to connect, and r1 has an idle connection
		time.Sleep(3 * time.Second)
		h.relays[0].Kill()
		h.relays[0].Restart()
		if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
			t.Fatal(err)
		}
		if s := h.pool.Stats().Hedging; s != (smtplb.HedgingStats{Dials: 1, Joined: 2, Won: 2}) {
			t.Errorf("with an idle connection: %+v", s)
		}
	})
}

// A tier that panics is named, and its sick relays' place in Explain's candidates has a reason.
func TestStatsOfPanic(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 9, func(c *smtplb.Config) {
			c.Health.Interval = -1
			for i := range c.Relays {
				c.Relays[i].Tier = 7
				c.Relays[i].Breaker = smtplb.Breaker{Consecutive: 1, OpenFor: 5 * time.Minute}
			}
			c.Relays[8].Tier = 8
		})
		defer h.close()
		if p := h.pool.Stats().Panics; len(p) != 0 {
			t.Errorf("at first: %v", p)
		}
		for i, r := range h.relays[:5] {
			r.Kill()
			e := envelope("x@example.com")
			e.Prefer = fmt.Sprint("r", i)
			if _, err := h.pool.Deliver(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Second)
		if p := h.pool.Stats().Panics; !slices.Equal(p, []int{7}) {
			t.Errorf("with five of eight dead: %v", p)
		}
		p, err := h.pool.Explain(t.Context(), envelope("x@example.com"))
		if err != nil || len(p.Candidates) != 8 || !p.Panics {
			t.Fatalf("%v: %v", p, err)
		}
		for _, c := range p.Candidates {
			if sick := c.Name < "r5"; sick != strings.HasPrefix(c.Note, "open: 1 consecutive faults") {
				t.Errorf("%s: %s", c.Name, c.Note)
			}
		}
		if !strings.Contains(p.String(), "so much of the tier is sick that circuit breakers are ignored") {
			t.Errorf("in words:\n%v", p)
		}
	})
}
