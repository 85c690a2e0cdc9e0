package smtplb_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// TestSlowRelayGetsLess: one of four takes 20 times as long for an envelope, and is well again afterwards.
func TestSlowRelayGetsLess(t *testing.T) {
	t.Parallel()
	tests := []struct {
		balancer smtplb.Balancer
		less     bool
	}{{smtplb.Adaptive(), true}, {smtplb.RoundRobin(), false}, {nil, true}, {smtplb.LeastInFlight(), false}}
	if !smtplb.Thorough() {
		tests = tests[:2]
	}
	for _, test := range tests {
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
					time.Sleep(11 * time.Second) // it has rested; what follows is its next turn
					if p, err := h.pool.Explain(t.Context(), envelope("x@example.com")); err != nil || len(p.Candidates) != 4 || p.Candidates[3].Slow < 15 {
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

// slowHouse is four relays of which r1, as soon as it is told to, takes 2 s for an envelope, or for one of so many. starts is when it began to take one.
func slowHouse(t *testing.T, change func(c *smtplb.Config)) (h *house, slow func(of int) *smtptest.Rule, starts func() []time.Time) {
	var mu sync.Mutex // guards at
	var at []time.Time
	h = newHouse(t, 4, func(c *smtplb.Config) {
		c.Health.Interval, c.Retry.NoHedging = -1, true
		if change != nil {
			change(c)
		}
	}, smtptest.WithDiscard())
	h.net.SetLatency(5*time.Millisecond, 5*time.Millisecond)
	slow = func(of int) *smtptest.Rule {
		return h.relays[1].On(smtptest.Mail).DelayBy(func(*smtptest.Event) time.Duration {
			mu.Lock()
			defer mu.Unlock()
			at = append(at, time.Now())
			if len(at)%of > 0 {
				return 0
			}
			return 2 * time.Second
		})
	}
	return h, slow, func() []time.Time {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(at)
	}
}

// send sends 50 messages a second.
func (h *house) send(d time.Duration) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		wg.Go(func() {
			if r, err := h.pool.Deliver(h.Context(), envelope("u@example.com")); err != nil {
				h.Errorf("%v: %v", r, err)
			}
		})
	}
}

// after is the times that are not before then.
func after(then time.Time, times []time.Time) []time.Time {
	return slices.DeleteFunc(times, func(at time.Time) bool { return at.Before(then) })
}

// TestSlowRelayRests: once it is found out, a slow relay gets a message now and then, however many there are; who asks is told so. When it is well, it is found out too.
func TestSlowRelayRests(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h, slow, starts := slowHouse(t, nil)
		defer h.close()
		h.send(10 * time.Second)
		rule := slow(1)
		h.send(20 * time.Second)
		found := time.Now()
		h.send(time.Minute)
		tried := after(found, starts())
		if n := len(tried); n < 5 || n > 6 {
			t.Errorf("the slow relay had %d messages in a minute", n)
		}
		for i := range tried[1:] {
			if rested := tried[i+1].Sub(tried[i]); rested < 10*time.Second {
				t.Errorf("it rested for %v", rested)
			}
		}
		// There is one every 20 ms, so it is at rest when the last one has been sent.
		last := tried[len(tried)-1]
		h.send(time.Until(last.Add(13 * time.Second)))
		p := h.plan(envelope("x@example.com"))
		if len(p.Skipped) != 1 || p.Skipped[0].Name != "r1" || !strings.HasPrefix(p.Skipped[0].Why, "slow ") || !p.Skipped[0].Failover ||
			!p.Skipped[0].Until.After(time.Now()) || p.Skipped[0].Until.After(time.Now().Add(10*time.Second)) {
			t.Errorf("the plan is %v", p)
		}
		rule.Remove()
		h.send(45 * time.Second)
		well := h.relays[1].Stats().Messages
		h.send(10 * time.Second)
		if n := h.relays[1].Stats().Messages - well; n < 115 || n > 135 {
			t.Errorf("well again, it had %d of 500 messages", n)
		}
	})
}

// TestSlowRelayOfTwoMinds: a relay that is slow every third time isn't well. Its mean says so, and it is not forgotten for two quick answers here and two there.
func TestSlowRelayOfTwoMinds(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h, slow, starts := slowHouse(t, nil)
		defer h.close()
		h.send(10 * time.Second)
		slow(3)
		h.send(30 * time.Second)
		found := time.Now()
		h.send(2 * time.Minute)
		if n := len(after(found, starts())); n < 10 || n > 12 {
			t.Errorf("it had %d messages in two minutes", n)
		}
	})
}

// TestStoppedRelayDoesNotRest: a relay that doesn't answer at all looks slow, and then its breaker is to open soon, whatever few messages it has.
func TestStoppedRelayDoesNotRest(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h, _, _ := slowHouse(t, nil)
		defer h.close()
		h.send(10 * time.Second)
		h.relays[1].On(smtptest.Mail).Delay(time.Hour)
		stopped := time.Now()
		var wg sync.WaitGroup
		for h.pool.Stats().Relays[1].Breaker == "closed" && time.Since(stopped) < time.Minute {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if r, err := h.pool.Deliver(ctx, envelope("u@example.com")); err != nil {
					t.Errorf("%v: %v", r, err)
				}
			})
			time.Sleep(20 * time.Millisecond)
		}
		if took := time.Since(stopped); took > 12*time.Second {
			t.Errorf("its breaker opened after %v", took)
		}
		wg.Wait()
	})
}

// TestSlowRelayInNeed: a slow relay that rests is used where no other has a free connection, and where a message was at all the others.
func TestSlowRelayInNeed(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h, slow, starts := slowHouse(t, func(c *smtplb.Config) {
			for i := range c.Relays {
				c.Relays[i].Conns.Max = 2
			}
			c.Retry.Attempts = 4
		})
		defer h.close()
		h.send(10 * time.Second)
		slow(1)
		h.send(30 * time.Second)
		h.send(time.Until(starts()[len(starts())-1].Add(13 * time.Second)))
		began := time.Now()
		if p := h.plan(envelope("x@example.com")); len(p.Skipped) != 1 {
			t.Fatalf("the slow relay doesn't rest: %v", p)
		}
		var wg sync.WaitGroup
		for i := range 8 { // as many as there are connections
			wg.Go(func() {
				if _, err := h.pool.Deliver(t.Context(), envelope("u@example.com")); err != nil {
					t.Error(err)
				}
			})
			if i == 5 {
				synctest.Wait()
				if p := h.plan(envelope("x@example.com")); p.Waits || len(p.Candidates) != 1 || p.Candidates[0].Name != "r1" {
					t.Errorf("with the others full the plan is %v", p)
				}
			}
		}
		wg.Wait()
		if n := len(after(began, starts())); n != 2 {
			t.Errorf("%d of 8 messages went to the slow relay; want the 2 that the others have no connections for", n)
		}
		time.Sleep(time.Second)
		began = time.Now()
		for _, i := range []int{0, 2, 3} {
			h.relays[i].On(smtptest.Mail).Reply(451, "4.3.0 Not now")
		}
		if p := h.plan(envelope("x@example.com")); len(p.Skipped) != 1 {
			t.Fatalf("the slow relay doesn't rest: %v", p)
		}
		r, err := h.pool.Deliver(t.Context(), envelope("u@example.com"))
		if err != nil || r.Recipients[0].Relay != "r1" || len(r.Attempts) != 4 || len(after(began, starts())) != 1 {
			t.Errorf("%v: %v", r, err)
		}
	})
}

// TestSlowRelayOfMostWeight: where more than half of the weight is slow, the rest isn't to do its work. It has less then, and no rest.
func TestSlowRelayOfMostWeight(t *testing.T) {
	t.Parallel()
	tests := []struct{ weight, least, most int }{{4, 20, 300}, {3, 5, 6}}
	if !smtplb.Thorough() {
		tests = tests[:1]
	}
	for _, test := range tests {
		bubble(t, func(t *testing.T) {
			h, slow, starts := slowHouse(t, func(c *smtplb.Config) { c.Relays[1].Weight = test.weight })
			defer h.close()
			h.send(10 * time.Second)
			slow(1)
			h.send(30 * time.Second)
			found := time.Now()
			h.send(time.Minute)
			if n := len(after(found, starts())); n < test.least || n > test.most {
				t.Errorf("with weight %d of %d it had %d of 3,000 messages; want %d to %d", test.weight, test.weight+3, n, test.least, test.most)
			}
		})
	}
}
