package smtplb_test

import (
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// A relay that starts to throttle at half its rate without saying so: few refusals, and most of what it takes is found.
func TestBackoffFindsTheRate(t *testing.T) {
	t.Parallel()
	const rate = 20
	before, minutes, ways := 5*time.Minute, 20, []bool{true, false}
	if !smtplb.Thorough() {
		before, minutes, ways = 2*time.Minute, 12, ways[1:]
	}
	for _, configured := range ways {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, func(c *smtplb.Config) {
				if configured {
					c.Relays[0].Limits.Messages = smtplb.Rate{N: rate, Burst: 1}
				}
				c.MaxThrottleWait = -1
			}, smtptest.WithDiscard())
			defer h.close()
			h.net.SetLatency(5*time.Millisecond, 5*time.Millisecond)
			h.relays[0].On(smtptest.EndOfData).Delay(450 * time.Millisecond) // about 20 a second over 10 connections, limit or not
			h.flood(20, before, func(int) *smtplb.Envelope { return envelope("x@example.com") })
			begun := time.Now()
			refused := make([]int, minutes+1)
			accepted := make([]int, minutes+1)
			over := smtptest.Over(rate/2, time.Second, rate/2)
			var mu sync.Mutex // guards refused and accepted
			h.relays[0].On(smtptest.Mail).If(func(e *smtptest.Event) bool {
				mu.Lock()
				defer mu.Unlock()
				minute := min(int(time.Since(begun)/time.Minute), minutes)
				if over(e) {
					refused[minute]++
					return true
				}
				accepted[minute]++
				return false
			}).Reply(451, "4.7.0 Too many messages, slow down")
			h.flood(20, time.Duration(minutes)*time.Minute, func(int) *smtplb.Envelope { return envelope("x@example.com") })
			t.Logf("configured %v: refused %v, accepted %v", configured, refused[:minutes], accepted[:minutes])
			if refused[0] > 3 && (configured || refused[0] > 10) { // without a rate, those that were on their way over 10 connections
				t.Errorf("%d refusals in the first minute", refused[0])
			}
			for m := 10; m < minutes; m++ {
				if refused[m] > 1 {
					t.Errorf("%d refusals in minute %d", refused[m], m)
				}
			}
			sum := 0
			for m := 10; m < minutes; m++ {
				sum += accepted[m]
			}
			if share := float64(sum) / float64(rate/2*60*(minutes-10)); share < 0.9 {
				t.Errorf("%.3f of the capacity", share)
			}
		})
	}
}
