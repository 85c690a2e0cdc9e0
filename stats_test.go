package smtplb_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// Every counter of Stats, by a day in the life of two relays.
func TestStats(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) {
			c.Relays[1].Tier = 1
			c.Relays[0].Weight = 3
		})
		defer h.close()
		r0 := h.relays[0]
		h.pool.Deliver(t.Context(), envelope("a@example.com", "b@example.com")) // 2 accepted
		r0.On(smtptest.Rcpt).For("gone@example.com").Reply(550, "5.1.1 No such user")
		h.pool.Deliver(t.Context(), envelope("gone@example.com")) // 1 failed, on the same connection
		r0.ClearScript()
		r0.On(smtptest.EndOfData).Times(1).Drop()
		h.pool.Deliver(t.Context(), envelope("lost@example.com")) // 1 unknown, the connection broken, a fault
		r0.Kill()
		h.pool.Deliver(t.Context(), envelope("c@example.com")) // a failed dial, a fault, a failover
		r0.Restart()
		h.pool.Deliver(t.Context(), envelope("d@example.com"))
		r0.Kill() // its connection resets
		r0.Restart()
		time.Sleep(time.Second)
		h.pool.Deliver(t.Context(), envelope("e@example.com")) // on a new connection: the old one was found dead
		s := h.pool.Stats()
		if s.Sends != 6 || s.Failovers != 1 || s.InFlight != 0 || s.Waiting != 0 {
			t.Errorf("sends %d, failovers %d, in flight %d, waiting %d", s.Sends, s.Failovers, s.InFlight, s.Waiting)
		}
		x := s.Relays[0]
		got := fmt.Sprint(x.Name, x.Weight, x.Tier, " attempts ", x.Attempts, " accepted ", x.Accepted, " failed ", x.Failed, " unknown ", x.Unknown,
			" away ", x.Away, " faults ", x.Faults, " opened ", x.Opened, " reused ", x.Reused, " idle ", x.Idle, " ", x.Closed)
		want := "r03 0 attempts 6 accepted 4 failed 1 unknown 1 away 1 faults 2 opened 3 reused 2 idle 1 map[broken:1 dead:1]"
		if got != want {
			t.Errorf("r0\n got %s\nwant %s", got, want)
		}
		if y := s.Relays[1]; y.Attempts != 1 || y.Accepted != 1 || y.Tier != 1 || y.Weight != 1 {
			t.Errorf("r1: %+v", y)
		}
	})
}

// A connection that breaks before anything was said of the message is replaced, and counted as that only.
func TestStatsOfARedial(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil, smtptest.WithMaxMessages(1))
		defer h.close()
		for range 3 {
			if _, err := h.pool.Deliver(t.Context(), envelope("a@example.com")); err != nil {
				t.Fatal(err)
			}
		}
		if x := h.pool.Stats().Relays[0]; x.Redials != 2 || x.Faults != 0 || x.Away != 0 || x.Attempts != 3 || x.Opened != 3 {
			t.Errorf("%+v", x)
		}
	})
}
