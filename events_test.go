package smtplb_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// history is the pool's events of a relay, in short, each with the start of its reason.
func (h *house) history(relay string) (list []string) {
	for _, e := range h.pool.Stats().Events {
		if e.Relay == relay {
			list = append(list, fmt.Sprintf("%s/%s: %s", e.State, e.Breaker, e.Reason))
		}
	}
	return list
}

// wantHistory compares events with what they begin with.
func (h *house) wantHistory(relay string, want ...string) {
	h.Helper()
	got := h.history(relay)
	same := slices.EqualFunc(got, want, strings.HasPrefix)
	if !same {
		h.Errorf("%s:\n  %s\nwant\n  %s", relay, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// The ring of the last events has every change of state, with its reason, and the hook hears the same in the same order.
func TestEventsOfEveryTransition(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var j journal
		var config smtplb.Config
		h := newHouse(t, 3, func(c *smtplb.Config) {
			c.Relays[1].Tier, c.Relays[2].Tier = 1, 2
			c.Relays[0].Breaker = smtplb.Breaker{Consecutive: 1, OpenFor: 10 * time.Second, MaxOpen: 10 * time.Second}
			c.Health.SlowStart = 20 * time.Second
			j.listen(c)
			config = *c
		})
		defer h.close()
		h.use(5 * time.Second)
		h.wantHistory("r0") // starting, and up: no news

		// The breaker: open, half-open, open again, half-open, slow start, up.
		h.relays[0].On(smtptest.Mail).Times(2).Reply(451, "4.3.0 disk trouble")
		h.use(70 * time.Second)
		h.wantHistory("r0",
			"open/open: 1 consecutive faults; the last: mail: 451 4.3.0 disk trouble",
			"half-open/half-open: 1 consecutive faults; the last: mail: 451 4.3.0 disk trouble",
			"half-open/probing: 1 consecutive faults",
			"open/open: probe failed; the last: mail: 451 4.3.0 disk trouble",
			"half-open/half-open: probe failed",
			"half-open/probing: probe failed",
			"half-open/half-open: probe failed",
			"half-open/probing: probe failed",
			"slow start/closed: 10 % of its weight and connections",
			"up/closed: ")

		// Checks: down, slow start, up.
		h.relays[1].Kill()
		h.use(30 * time.Second)
		h.relays[1].Restart()
		h.use(70 * time.Second)
		h.wantHistory("r1", "down/closed: dial: ", "slow start/closed: 10 %", "up/closed: ")

		// An operator: drain, maintenance, ready.
		for _, s := range []smtplb.AdminState{smtplb.AdminDrain, smtplb.AdminMaintenance, smtplb.AdminMaintenance, smtplb.AdminReady, smtplb.AdminDrain} {
			if err := h.pool.SetAdmin("r2", s); err != nil {
				t.Fatal(err)
			}
		}
		h.wantHistory("r2", "drain/closed: ", "maintenance/closed: ", "slow start/closed: 10 %", "drain/closed: ")

		// Gone, and back: as if it were new.
		less := config
		less.Relays = config.Relays[:2]
		for _, c := range []smtplb.Config{less, config} {
			if err := h.pool.Update(c); err != nil {
				t.Fatal(err)
			}
		}
		h.wantHistory("r2", "drain/closed: ", "maintenance/closed: ", "slow start/closed: 10 %", "drain/closed: ", "removed/: Update", "added/: Update")
		if s := h.state(2); s != "starting" {
			t.Errorf("it is %s", s)
		}
		if got := h.pool.Stats().Events; !slices.Equal(got, j.events) {
			t.Errorf("the hook heard %+v\nthe ring has %+v", j.events, got)
		}
		for _, e := range j.events {
			away := e.State == "open" || e.State == "down"
			if e.Time.IsZero() || away && !e.RetryAt.After(e.Time) || !away && !e.RetryAt.IsZero() {
				t.Errorf("%+v", e)
			}
		}
	})
}

// The hook may call Update whatever changes by that: a breaker that is switched off, a relay that is down and is another one from now on.
func TestRelayStateMayUpdate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var config smtplb.Config
		var pool *smtplb.Pool
		var told []string
		h := newHouse(t, 2, func(c *smtplb.Config) {
			spare(c)
			c.Relays[0].Breaker.Consecutive = 1
			c.Hooks.RelayState = func(e smtplb.RelayEvent) {
				told = append(told, e.Relay+" "+e.State)
				if e.State == "open" || e.State == "down" {
					return // the test's turn
				}
				c := config
				c.Relays = slices.Clone(config.Relays)
				c.Relays[0].Breaker.Off = len(told)%2 == 0
				c.Relays[0].Timeouts.Final = time.Duration(len(told)) * time.Minute
				if err := pool.Update(c); err != nil {
					t.Error(err)
				}
			}
			config = *c
		})
		defer h.close()
		pool = h.pool
		h.use(time.Second)
		h.relays[0].On(smtptest.Mail).Times(1).Reply(451, "4.3.0 trouble")
		h.use(time.Second)
		c := config
		c.Relays = slices.Clone(config.Relays)
		c.Relays[0].Breaker.Off = true
		if err := pool.Update(c); err != nil { // its breaker closes, and the hook hears of it, and calls Update
			t.Fatal(err)
		}
		if s := h.state(0); s != "slow start" || !slices.Equal(told, []string{"r0 open", "r0 slow start"}) {
			t.Errorf("it is %s after %q", s, told)
		}

		h.use(time.Second)
		h.relays[1].Kill()
		h.use(30 * time.Second)
		told = nil
		c = config
		c.Relays = slices.Clone(config.Relays)
		c.Relays[1].Timeouts.Final = time.Minute
		if err := pool.Update(c); err != nil { // what checks said of r1 is void
			t.Fatal(err)
		}
		if len(told) == 0 || told[0] != "r1 slow start" {
			t.Errorf("told %q", told)
		}
	})
}
