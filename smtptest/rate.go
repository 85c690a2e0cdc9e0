package smtptest

import (
	"sync"
	"time"
)

// Over makes a condition for [Rule.If] that is true for what is over a limit of n in each per, in a leaky bucket that takes up burst at
// once: a relay that throttles. What is over it doesn't count against it.
//
//	srv.On(smtptest.Mail).If(smtptest.Over(14, time.Second, 1)).Reply(454, "4.7.0 Throttling failure: Maximum sending rate exceeded.")
//
// At Mail it counts messages, at Rcpt recipients, at Connect connections. Each Over is a bucket of its own; one that stands in the rules of several servers is shared by them. It goes by time.Now, so in fake time by that.
func Over(n float64, per time.Duration, burst float64) func(*Event) bool {
	var mu sync.Mutex
	level := 0.0 // what is in the bucket
	last := time.Now()
	return func(*Event) bool {
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		level = max(0, level-n*float64(now.Sub(last))/float64(per))
		last = now
		if level+1 > burst+1e-6 {
			return true
		}
		level++
		return false
	}
}
