package smtplb_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// A relay that throttles from the first moment on, whose rate nobody has said or could measure: it is found within ten minutes, from far below.
func TestBackoffFromTheFirstMoment(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		const rate, minutes = 10, 20
		h := newHouse(t, 1, func(c *smtplb.Config) { c.MaxThrottleWait = -1 }, smtptest.WithDiscard())
		defer h.close()
		h.relays[0].On(smtptest.Mail).If(smtptest.Over(rate, time.Second, 5)).Reply(450, "4.7.1 Error: too much mail from 192.0.2.1")
		begun := time.Now()
		accepted, refused := make([]int, minutes+1), make([]int, minutes+1)
		ctx, cancel := context.WithTimeout(t.Context(), minutes*time.Minute)
		defer cancel()
		news := func(yield func(*smtplb.Envelope) bool) {
			for yield(envelope("x@example.com")) {
			}
		}
		for r := range h.pool.DeliverAll(ctx, news, smtplb.Bulk{InFlight: 10}) {
			minute := int(time.Since(begun) / time.Minute)
			if r.Err == nil {
				accepted[minute]++
			} else if !errors.Is(r.Err, smtplb.ErrTemporary) {
				t.Fatal(r.Err)
			}
			for i := range r.Receipt.Attempts {
				if r.Receipt.Attempts[i].Err != nil {
					refused[minute]++
				}
			}
		}
		t.Logf("accepted %v, refused %v; %s", accepted, refused, h.pool.Stats().Relays[0].BackOff)
		found, late := 0, 0
		for m := 10; m < minutes; m++ {
			found += accepted[m]
			late += refused[m]
		}
		if share := float64(found) / (rate * 60 * (minutes - 10)); share < 0.8 || late > 10 {
			t.Errorf("%.2f of the capacity from the tenth minute on, %d refused", share, late)
		}
	})
}
