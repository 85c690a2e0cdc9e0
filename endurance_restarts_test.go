package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// TestEnduranceRestarts is two days in the life of one to three processes that share the Store of a warm-up, and are ended and begun again all the time, with Close or with Shutdown. In some seeds the Store fails, hangs, panics, and does what it says it didn't. The mail
// of a day is several times its cap. No day gets more than its cap, nor more by any hour than is allowed by then; whoever is too many is told when to come again. Where all goes well a day's cap is used.
func TestEnduranceRestarts(t *testing.T) {
	t.Parallel()
	for i := range *enduranceSeeds {
		seed := *enduranceFirst + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { newRestarts(t, seed).run() })
		})
	}
}

// restarts is one run of it.
type restarts struct {
	*endurance
	well   bool // no Store fails, and nobody ends without Shutdown
	config smtplb.Config
	mu     sync.Mutex // guards number
	number int
}

func newRestarts(t *testing.T, seed uint64) *restarts {
	r := rand.New(rand.NewPCG(seed, 10))
	c := &restarts{endurance: &endurance{chaos: &chaos{T: t, net: smtptest.NewNetwork(), rand: rand.New(rand.NewPCG(seed, 11)), start: time.Now()}}, well: r.IntN(3) == 0}
	c.calm.Store(c.well)
	c.until = c.start.Add(2 * 24 * time.Hour)
	c.policy = &policy{day: midnight(c.start), warm: map[string][]warmSpan{}, spent: map[string][]warmRecipient{}}
	n := oneOf(r, 1, 5, 24, 100)
	w := smtplb.Warmup{Curve: []int{n, n + n/2, 2 * n}, Unit: oneOf(r, smtplb.WarmupRecipients, smtplb.WarmupMessages), Overflow: oneOf(r, smtplb.OverflowGroup, smtplb.OverflowTier), Advance: oneOf(r, smtplb.AdvanceDaily, smtplb.AdvanceDelivered)}
	if r.IntN(2) == 0 {
		w.PerProvider = map[string][]int{"gmail": {1 + n/10, 1 + n/5, 1 + n/4}}
	}
	c.config = smtplb.Config{Dial: c.net.DialContext, MaxThrottleWait: oneOf(r, 0, time.Second), Store: &wildStore{c: c.chaos}, Health: smtplb.Health{Interval: -1}}
	for i := range 1 + r.IntN(2) {
		s := c.net.NewServer(fmt.Sprintf("r%d.test:25", i))
		c.relays = append(c.relays, &chaosRelay{Server: s, name: fmt.Sprint("r", i)})
		x := smtplb.Relay{Name: fmt.Sprint("r", i), Addr: s.Addr, TLS: smtplb.TLSNone, Tier: i}
		if i == 0 {
			x.Warmup = w
		}
		c.config.Relays = append(c.config.Relays, x)
	}
	c.policy.note(c.config.Relays, c.start)
	return c
}

func (c *restarts) run() {
	var processes sync.WaitGroup
	for range 1 + c.dice().IntN(3) {
		r := c.dice()
		processes.Go(func() {
			for !c.over() {
				c.process(r)
			}
		})
	}
	processes.Wait()
	for _, s := range c.relays {
		s.Close()
	}
	c.kept()
	w := c.config.Relays[0].Warmup
	second := 0 // what the second day had
	seen := map[int]bool{}
	for _, x := range c.policy.spent["r0"] {
		if midnight(x.at).Equal(c.policy.day.AddDate(0, 0, 1)) && (w.Unit == smtplb.WarmupRecipients || !seen[x.message]) {
			second++
			seen[x.message] = true
		}
	}
	if most := w.Curve[0]; c.well && second < most*8/10 { // at the least: a day that delivered less than nine tenths has the same cap again
		c.Errorf("of the second day's %d at the least %d were used", most, second)
	}
	stored := map[string]int{}
	for _, s := range c.relays {
		for _, m := range s.Messages() {
			for _, to := range m.To {
				stored[to]++
			}
		}
	}
	for id, s := range c.sends {
		c.checkSend(id, s, stored)
	}
	if c.Failed() {
		c.Logf("%+v", w)
	}
}

// process is the life of one.
func (c *restarts) process(r *rand.Rand) {
	pool, err := smtplb.New(c.config)
	if err != nil {
		c.Fatal(err)
	}
	end := time.Now().Add(oneOf(r, time.Minute, 30*time.Minute, 5*time.Hour))
	for !c.over() && time.Now().Before(end) {
		pause(r, 40*time.Minute) // the pool's clock stops after five, which is what makes two days cheap
		for range 1 + r.IntN(10) {
			c.message(r, pool)
		}
	}
	var last sync.WaitGroup // some are under way still
	for range r.IntN(4) {
		r := c.dice()
		last.Go(func() { c.message(r, pool) })
	}
	pause(r, 100*time.Millisecond)
	if !c.well && r.IntN(2) == 0 {
		pool.Close()
	} else {
		ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
		defer cancel()
		if err := pool.Shutdown(ctx); err != nil && ctx.Err() == nil {
			c.Errorf("Shutdown: %v", err)
		}
	}
	last.Wait()
	if n := pool.Background(); n != 0 {
		c.Errorf("%d goroutines of the pool are left", n)
	}
}

// message sends one.
func (c *restarts) message(r *rand.Rand, pool *smtplb.Pool) {
	s := &chaosSend{text: text}
	c.chaos.mu.Lock()
	id := len(c.sends)
	c.sends = append(c.sends, s)
	c.chaos.mu.Unlock()
	var to []string
	for i := range oneOf(r, 1, 1, 1, 2, 5) {
		to = append(to, fmt.Sprintf("u-%d-%d@%s", id, i, oneOf(r, "example.com", "gmail.com")))
	}
	s.env = envelope(to...)
	begun := time.Now()
	s.receipt, s.err = pool.Deliver(c.Context(), s.env)
	s.ended = true
	if d := time.Since(begun); d > 31*time.Second { // what MaxThrottleWait is by default, and the way
		c.Errorf("message %d took %v: %v", id, d, s.err)
	}
	if s.err != nil && !errors.Is(s.err, smtplb.ErrThrottled) && !errors.Is(s.err, smtplb.ErrClosed) {
		c.Errorf("message %d: %v", id, s.err)
	}
	c.throttledInTime(s)
	c.mu.Lock()
	c.number++
	number := c.number
	c.mu.Unlock()
	c.policy.spend(s, number)
}
