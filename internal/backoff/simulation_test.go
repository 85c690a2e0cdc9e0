package backoff_test

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/backoff"
)

// scene is a sender and a relay that takes less than it says. There is no real time in it.
type scene struct {
	configured float64 // 0: none
	demand     float64 // messages a second; what isn't sent waits. 0: there are always more
	conns      int
	delay      time.Duration // of a reply
	depth      time.Duration // of the relay's bucket, at its rate; a message at least
	limit      func(at time.Duration) float64
	length     time.Duration
	unknown    bool // nobody tells when a message was begun
}

// outcome is what became of it.
type outcome struct {
	throttled []time.Duration
	accepted  []int // by minute
	modes     int
}

// run plays it. The sender sends evenly, and starts a message where it has a token and a connection.
func (c scene) run() (o outcome) {
	type reply struct {
		at, began time.Duration
		refused   bool
	}
	var (
		start   = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
		s       = backoff.New(backoff.Config{MaxConns: c.conns, Rate: c.configured}, start)
		now     time.Duration
		replies []reply // in order: all take the same time
		tokens  = 1.0
		last    time.Duration
		level   float64 // of the relay's bucket
		drained time.Duration
		inUse   int
		sent    int
		mode    bool
	)
	o.accepted = make([]int, int(c.length/time.Minute))
	for now < c.length {
		for len(replies) > 0 && replies[0].at <= now {
			r := replies[0]
			replies = replies[1:]
			if r.refused {
				g := backoff.Signal{Kind: backoff.Throttle, Reply: "451 slow down", Began: start.Add(r.began)}
				if c.unknown {
					g.Began = time.Time{}
				}
				s.Signal(start.Add(now), g)
				o.throttled = append(o.throttled, now)
				sent--
			} else {
				s.Success(start.Add(now), inUse)
				o.accepted[now/time.Minute]++
			}
			inUse--
		}
		t := start.Add(now)
		rate := s.Rate(t)
		burst := rate * 0.05 // evenly, but for what timers can't do
		if m := s.Mode(t); m != mode {
			if mode = m; m {
				o.modes++
			}
		}
		tokens, last = math.Min(tokens+rate*(now-last).Seconds(), math.Max(1, burst)), now
		next := now + 200*time.Millisecond
		until, _ := s.Suspended(t)
		waits := c.demand == 0 || float64(sent) < c.demand*now.Seconds()+1e-6
		switch {
		case !until.IsZero() || inUse >= min(s.Window(t), c.conns):
			if d := until.Sub(start); !until.IsZero() {
				next = min(next, d)
			}
		case !waits:
			next = min(next, time.Duration(float64(sent)/c.demand*1e9)+1)
		case rate > 0 && tokens < 1-1e-9:
			next = min(next, now+time.Duration((1-tokens)/rate*1e9)+1)
		default:
			if rate > 0 {
				tokens--
			}
			sent++
			inUse++
			limit := c.limit(now)
			level = math.Max(0, level-limit*(now-drained).Seconds())
			drained = now
			full := level+1 > math.Max(1, c.depth.Seconds()*limit)+1e-9
			if !full {
				level++
			}
			replies = append(replies, reply{now + c.delay, now, full})
			next = now
		}
		if len(replies) > 0 {
			next = min(next, max(replies[0].at, now))
		}
		now = next
	}
	return o
}

func (o outcome) refusals(from, to time.Duration) (n int) {
	for _, at := range o.throttled {
		if at >= from && at < to {
			n++
		}
	}
	return n
}

// share is what was accepted between two minutes, of what the relay would have.
func (o outcome) share(from, to int, perSecond float64) float64 {
	n := 0
	for _, x := range o.accepted[from:to] {
		n += x
	}
	return float64(n) / (perSecond * 60 * float64(to-from))
}

func steady(r float64) func(time.Duration) float64 { return func(time.Duration) float64 { return r } }

// TestFindsTheLimit is the figure that the way of finding the rate was made for: a relay begins to take half of what it took, and says so only by refusing what is too much. In the first minute it refuses three
// messages at the most; after ten minutes nine tenths of what it takes, or what so many connections can carry, are used, and no minute has more than one refusal.
func TestFindsTheLimit(t *testing.T) {
	n := 0
	for _, rate := range []float64{0.5, 14, 200} {
		after := 40 // minutes
		if rate > 100 {
			after = 20 // it is as much work
		}
		for _, conns := range []int{1, 10} {
			for _, delay := range []time.Duration{5 * time.Millisecond, 2 * time.Second} {
				for _, depth := range []time.Duration{time.Second, 10 * time.Second} {
					for _, known := range []bool{true, false} {
						for _, onset := range []int{0, 5} {
							if n++; raceEnabled && n%7 > 0 || !thorough() && n%21 > 0 {
								continue
							}
							name := fmt.Sprintf("%v a second/configured %v/%d connections/%v/bucket of %v/from minute %d", rate, known, conns, delay, depth, onset)
							t.Run(name, func(t *testing.T) {
								c := scene{configured: rate, conns: conns, delay: delay, depth: depth, length: time.Duration(onset+after) * time.Minute}
								if !known {
									c.configured, c.demand = 0, rate
								}
								c.limit = func(at time.Duration) float64 {
									if at < time.Duration(onset)*time.Minute {
										return 1.5 * rate
									}
									return rate / 2
								}
								o := c.run()
								o.check(t, onset, after, min(rate/2, float64(conns)/delay.Seconds()))
								if depth == time.Second { // a deeper one makes what is too much look well for some time
									o.checkTrials(t, onset, after)
								}
							})
						}
					}
				}
			}
		}
	}
}

// TestFindsAnyLimit is the same for other shares than a half.
func TestFindsAnyLimit(t *testing.T) {
	n := 0
	for _, share := range []float64{0.25, 0.3, 0.4, 0.45, 0.55, 0.6, 0.7, 0.8, 0.9} {
		for _, known := range []bool{true, false} {
			if n++; !thorough() && n%5 > 0 {
				continue
			}
			t.Run(fmt.Sprintf("%v/configured %v", share, known), func(t *testing.T) {
				c := scene{configured: 14, conns: 10, delay: 5 * time.Millisecond, depth: time.Second, length: time.Hour, limit: steady(14 * share)}
				if !known {
					c.configured, c.demand = 0, 14
				}
				c.run().check(t, 0, 60, 14*share)
			})
		}
	}
}

// check holds o against the figures: m0 is the minute in which the limit began, minutes how many there are.
func (o outcome) check(t *testing.T, m0, minutes int, capacity float64) {
	t.Helper()
	at := func(m int) time.Duration { return time.Duration(m0+m) * time.Minute }
	if n := o.refusals(at(0), at(1)); n > 3 {
		t.Errorf("%d refusals in the first minute", n)
	}
	for m := 10; m < minutes; m++ {
		if n := o.refusals(at(m), at(m+1)); n > 1 {
			t.Errorf("%d refusals in minute %d", n, m)
		}
	}
	for m := 9; m+5 <= minutes; m += 5 {
		if x := o.share(m0+m, m0+m+5, capacity); x < 0.9 {
			t.Errorf("from minute %d to %d, %.3f of the capacity were used", m, m+5, x)
		}
	}
	if o.modes > 0 {
		t.Errorf("%d times in back-off mode", o.modes)
	}
}

// checkTrials holds that the relay isn't tried more than need be: later than in the first minute, two refusals are two minutes apart, and once the limit is found there is one in four minutes at the most.
func (o outcome) checkTrials(t *testing.T, m0, minutes int) {
	t.Helper()
	at := func(m int) time.Duration { return time.Duration(m0+m) * time.Minute }
	for i := 1; i < len(o.throttled); i++ {
		if a, b := o.throttled[i-1], o.throttled[i]; a > at(1) && b-a < 2*time.Minute {
			t.Errorf("refusals at %v and at %v", a, b)
		}
	}
	if n := o.refusals(at(10), at(minutes)); n > (minutes-10)/4 {
		t.Errorf("%d refusals from minute 10 on", n)
	}
}

// TestUsesMoreAgain has the relay get well again: what was learnt is no bound for ever.
func TestUsesMoreAgain(t *testing.T) {
	c := scene{configured: 14, conns: 10, delay: 5 * time.Millisecond, depth: time.Second, length: time.Hour}
	c.limit = func(at time.Duration) float64 {
		if at < 20*time.Minute {
			return 7
		}
		return 28
	}
	if x := c.run().share(50, 60, 14); x < 0.99 {
		t.Errorf("half an hour after the relay takes everything again, %.3f of the configured rate are used", x)
	}
}

// TestDeepLimit has a relay take a tenth of what is configured.
func TestDeepLimit(t *testing.T) {
	c := scene{configured: 14, conns: 10, delay: 5 * time.Millisecond, depth: time.Second, length: time.Hour, limit: steady(1.3)}
	o := c.run()
	if n := o.refusals(0, time.Minute); n > 4 {
		t.Errorf("%d refusals in the first minute", n)
	}
	if x := o.share(15, 60, 1.3); x < 0.9 {
		t.Errorf("%.3f of the capacity were used", x)
	}
	if o.modes != 1 {
		t.Errorf("%d times in back-off mode, want 1", o.modes)
	}
}
