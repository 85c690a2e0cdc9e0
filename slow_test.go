package smtplb_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// TestSlowRelayGetsLess: one of four takes 20 times as long for an envelope, and is well again afterwards.
func TestSlowRelayGetsLess(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		balancer smtplb.Balancer
		less     bool
	}{{smtplb.Adaptive(), true}, {nil, true}, {smtplb.RoundRobin(), false}, {smtplb.LeastInFlight(), false}} {
		t.Run(fmt.Sprint(test.balancer), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 4, func(c *smtplb.Config) {
					c.Balancer, c.Health.Interval = test.balancer, -1
					c.Relays[0].Weight = 2
				})
				defer h.close()
				h.net.SetLatency(5*time.Millisecond, 5*time.Millisecond)
				slow := h.relays[1].On(smtptest.Mail).Delay(200 * time.Millisecond)
				n := 0
				use := func(d time.Duration) (shares [4]float64) { // 20 a second
					var before [4]int
					for i, r := range h.relays {
						before[i] = len(r.Messages())
					}
					var wg sync.WaitGroup
					total := 0
					for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
						n++
						total++
						to := fmt.Sprintf("u%d@example.com", n)
						wg.Go(func() {
							if r, err := h.pool.Deliver(t.Context(), envelope(to)); err != nil {
								t.Errorf("%v: %v", r, err)
							}
						})
					}
					wg.Wait()
					for i, r := range h.relays {
						shares[i] = float64(len(r.Messages())-before[i]) / float64(total)
					}
					return shares
				}
				use(10 * time.Second)
				s := h.pool.Stats().Relays
				shares := use(20 * time.Second)
				if test.less {
					if s[1].Slow < 15 || s[1].Slow > 25 || s[1].EffectiveWeight != 0.05 && s[1].EffectiveWeight != 0.1 || s[0].EffectiveWeight != 2 || s[0].Slow != 0 {
						t.Errorf("it is %.1f times slower, and weighs %v; the first weighs %v", s[1].Slow, s[1].EffectiveWeight, s[0].EffectiveWeight)
					}
					if shares[1] == 0 || shares[1] > 0.05 || shares[0] < 0.42 || shares[0] > 0.55 {
						t.Errorf("shares while it is slow: %.3f", shares)
					}
					if p, err := h.pool.Explain(t.Context(), envelope("x@example.com")); err != nil || p.Candidates[1].Slow < 15 && p.Candidates[3].Slow < 15 {
						t.Errorf("the plan doesn't tell: %v: %v", p, err)
					}
				} else if s[1].Slow != 0 || s[1].EffectiveWeight != 1 {
					t.Errorf("weighs %v for being %v times slower", s[1].EffectiveWeight, s[1].Slow)
				}
				slow.Remove()
				use(2 * time.Minute) // the mean forgets
				s = h.pool.Stats().Relays
				if s[1].Slow != 0 || s[1].EffectiveWeight != 1 {
					t.Errorf("well again, but weighs %v, %v times slower", s[1].EffectiveWeight, s[1].Slow)
				}
				if shares := use(30 * time.Second); shares[1] < 0.17 || shares[1] > 0.23 {
					t.Errorf("shares when it is well again: %.3f", shares)
				}
			})
		})
	}
}
