package smtplb_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
)

// TestUpdateUnderLoad adds, removes and re-weights relays while mail is sent.
func TestUpdateUnderLoad(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const relays, senders, each = 4, 20, 50
		var config smtplb.Config
		h := newHouse(t, relays, func(c *smtplb.Config) {
			for i := range c.Relays {
				c.Relays[i].Conns.Max = 2
			}
			config = *c
		})
		defer h.close()
		h.net.SetLatency(3*time.Millisecond, 3*time.Millisecond)
		var wg sync.WaitGroup
		for s := range senders {
			wg.Go(func() {
				for i := range each {
					to := fmt.Sprintf("u%d-%d@example.com", s, i)
					r, err := h.pool.Deliver(context.Background(), envelope(to))
					if err != nil || outcomes(r) != "accepted" || h.stored(to) != 1 {
						t.Errorf("%s: stored %d times, %v: %v", to, h.stored(to), r, err)
					}
				}
			})
		}
		for i := range 40 {
			time.Sleep(5 * time.Millisecond)
			c := config
			c.Relays = nil
			for j, r := range config.Relays {
				if j == i%relays || j == (i/3)%relays { // the others are gone for this round
					r.Weight = 1 + i%5
					c.Relays = append(c.Relays, r)
				}
			}
			if err := h.pool.Update(c); err != nil {
				t.Error(err)
			}
			s := h.pool.Stats()
			if len(s.Relays) != len(c.Relays) || s.Relays[0].Weight != 1+i%5 {
				t.Errorf("after Update %d: %+v", i, s)
			}
		}
		wg.Wait()
		if s := h.pool.Stats(); s.InFlight != 0 || s.Waiting != 0 {
			t.Errorf("in flight %d, waiting %d", s.InFlight, s.Waiting)
		}
	})
}

func TestUpdateRefusesWhole(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, nil)
		defer h.close()
		before := h.pool.Stats()
		err := h.pool.Update(smtplb.Config{Relays: []smtplb.Relay{{Name: "new", Addr: "new.test:25", TLS: smtplb.TLSNone}, {Weight: -1}}})
		if err == nil || !strings.Contains(err.Error(), "Relays[1].Addr") || !strings.Contains(err.Error(), "Relays[1].Weight") {
			t.Errorf("got %v", err)
		}
		if s := h.pool.Stats(); len(s.Relays) != 2 || s.Relays[0].Name != before.Relays[0].Name {
			t.Errorf("the relays are now %+v", s.Relays)
		}
		if r, err := h.pool.Deliver(t.Context(), envelope("a@example.com")); err != nil {
			t.Errorf("%v: %v", r, err)
		}
	})
}
