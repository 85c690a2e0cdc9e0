package smtplb_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// Who waits for a connection when the relay says that it has had enough for today is not sent there, though nothing was limited when he came.
func TestQuotaFindsWhoWaits(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { one(c); c.Relays[0].NoRiding = true })
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Times(1).Delay(5*time.Second).Reply(454, "4.7.0 Throttling failure: Daily message quota exceeded.")
		first := h.async(t.Context(), envelope("x@example.com"))
		synctest.Wait()
		second := h.async(t.Context(), envelope("y@example.com"))
		if x := <-first; outcomes(x.Receipt) != "deferred" {
			t.Errorf("%v: %v", x.Receipt, x.Err)
		}
		if x := <-second; !errors.Is(x.Err, smtplb.ErrThrottled) || len(x.Receipt.Attempts) != 0 || h.stored("y@example.com") != 0 || retryAfter(x.Err) < 59*time.Minute {
			t.Errorf("%v: %v", x.Receipt, x.Err)
		}
	})
}

// What is held back of a provider ends when mail for it has been taken.
func TestBackOffOfAProviderEnds(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Rules = []smtplb.Rule{{Match: "hot", Action: smtplb.RuleBackOff, Provider: true}}
			c.Relays[0].Limits.Messages, c.MaxThrottleWait = smtplb.PerSecond(10), -1
		})
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Times(1).Reply(451, "4.7.1 too hot")
		h.sends(envelope("x@gmail.com"), "deferred")
		time.Sleep(2 * time.Second)
		in := func() bool { return strings.Contains(h.pool.Stats().Relays[0].BackOff, "window 1 of ") }
		if !in() {
			t.Fatalf("%q", h.pool.Stats().Relays[0].BackOff)
		}
		begun := time.Now()
		for range 12 {
			h.sends(envelope("x@gmail.com"), "accepted")
			time.Sleep(6 * time.Second)
		}
		if in() || time.Since(begun) > 5*time.Minute {
			t.Errorf("after %v: %q", time.Since(begun), h.pool.Stats().Relays[0].BackOff)
		}
	})
}

// A provider's quota is over when a message for it has been taken again, an hour later: others follow at once.
func TestQuotaOfAProviderEnds(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Rules = []smtplb.Rule{{Match: "enough", Action: smtplb.RuleQuota, Provider: true}}
		})
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Times(1).Reply(451, "4.7.1 enough for today")
		h.sends(envelope("x@gmail.com", "y@example.com"), "deferred deferred")
		time.Sleep(time.Hour + time.Minute)
		begun := time.Now()
		for range 3 {
			h.sends(envelope("x@gmail.com"), "accepted")
		}
		if took := time.Since(begun); took > time.Minute {
			t.Errorf("it took %v", took)
		}
		time.Sleep(time.Minute)
		if said := h.pool.Stats().Relays[0].BackOff; said != "" {
			t.Errorf("%q", said)
		}
	})
}
