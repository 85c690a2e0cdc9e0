package smtplb_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
)

var (
	enduranceRuns, enduranceEach = enduranceDefaults()

	enduranceSeeds = flag.Int("endurance.seeds", enduranceRuns, "how many seeds TestEndurance runs")
	enduranceFirst = flag.Uint64("endurance.first", 1, "the first of them")
	enduranceFor   = flag.Duration("endurance.for", enduranceEach, "how long each takes, of fake time")
)

// enduranceDefaults are fewer and shorter under the race detector, which takes ten times as long: .ci/run has 200 seeds of five minutes with it.
func enduranceDefaults() (seeds int, each time.Duration) {
	if raceEnabled {
		return 1, 2 * time.Minute
	}
	return 5, 5 * time.Minute
}

// enduranceCallers is how many send at a time.
const enduranceCallers = 50

// TestEndurance is five minutes in the life of a pool: relays flap, slow down, throttle and come back, 50 callers send about 10,000 messages, some of them
// leave early, and an operator changes the configuration meanwhile. What each caller was told has to agree with what the relays hold, nobody may have waited past the end of
// his context, and nothing may be left behind.
//
// A seed fixes configuration, weather, operator and what each caller sends. The order of what happens at one instant is the scheduler's, so a failure may need the seed a few times: the
// message says how, and comes with the weather, and with what was said on the connections that were concerned.
func TestEndurance(t *testing.T) {
	t.Parallel()
	for i := range *enduranceSeeds {
		seed := *enduranceFirst + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			defer func() {
				if p := recover(); p != nil { // a goroutine that is left, say: synctest panics
					fmt.Printf("TestEndurance: seed %d: %v\n", seed, p)
					panic(p)
				}
				if t.Failed() {
					t.Logf("again: go test -race -run 'TestEndurance$' -endurance.first=%d -endurance.seeds=1 -endurance.for=%v -count=20 .", seed, *enduranceFor)
				}
			}()
			synctest.Test(t, func(t *testing.T) { newEndurance(t, seed).run() })
		})
	}
}

// endurance is one run. The house, its books of what was sent, and what is compared in the end, are those of a chaos, without its faults.
type endurance struct {
	*chaos
	zone     *zone         // nil: the relays are configured one by one
	config   smtplb.Config // as it is now; guarded by operator
	whole    []smtplb.Relay
	operator sync.Mutex
	until    time.Time
	steady   bool // relays keep their names
	routes   []smtplb.Route
	routed   atomic.Bool // the configuration has them now
	attempts int         // that are allowed
	limited  bool        // there are limits
	limiter  *countingLimiter
	policy   *policy // nil: there is none

	updates      atomic.Int64 // begun and ended: odd while one is under way
	begun, ended atomic.Int64 // calls of AttemptStart, and of what it returned
	done         atomic.Int64 // calls of Done
	attempted    atomic.Int64 // attempts that receipts tell of
	deliveries   atomic.Int64 // receipts
	logMu        sync.Mutex   // guards log
	log          []string     // what happened to relays and configuration
}

// happened keeps what happened, for the transcript.
func (c *endurance) happened(format string, args ...any) {
	c.logMu.Lock()
	defer c.logMu.Unlock()
	c.log = append(c.log, fmt.Sprintf("%8v ", time.Since(c.start).Round(time.Millisecond))+fmt.Sprintf(format, args...))
}

// over reports whether the time is up.
func (c *endurance) over() bool { return !time.Now().Before(c.until) }

// pause sleeps for up to d.
func pause(r *rand.Rand, d time.Duration) { time.Sleep(time.Duration(r.Int64N(int64(d)))) }

func (c *endurance) run() {
	r := c.dice()
	var senders, others sync.WaitGroup
	for i := range enduranceCallers {
		r := c.dice()
		senders.Go(func() {
			for !c.over() {
				if i < 2 {
					c.stream(r)
					continue
				}
				pause(r, 2500*time.Millisecond)
				c.single(r)
			}
		})
	}
	for _, s := range c.relays {
		r := c.dice()
		others.Go(func() { c.weather(r, s) })
	}
	for _, job := range []func(*rand.Rand){c.update, c.admin, c.look, c.dns} {
		r := c.dice()
		others.Go(func() {
			for !c.over() {
				job(r)
			}
		})
	}
	others.Wait() // from here on the relays are well
	c.calm.Store(true)
	all := make(chan struct{})
	go func() {
		defer close(all)
		senders.Wait()
	}()
	select {
	case <-all:
	case <-time.After(10 * time.Minute):
		c.Errorf("10 minutes after all relays are well somebody still waits: %+v", c.pool.Stats())
		c.pool.Close()
		<-all
	}
	for _, s := range c.relays { // what hangs there for ever takes up room otherwise
		_ = s.Restart() // which can't fail: it runs
	}
	time.Sleep(time.Minute) // races, checks and farewells end
	synctest.Wait()
	c.settle()
	c.recovered()
	c.end(r)
	if c.policy != nil {
		c.reopen()
		c.kept()
	}
	for _, s := range c.relays {
		s.Close()
	}
	c.check()
	c.books()
	if c.Failed() {
		c.tell()
	}
}

// recovered checks that each relay takes mail again.
func (c *endurance) recovered() {
	c.operator.Lock()
	defer c.operator.Unlock()
	for i := range c.config.Relays {
		_ = c.pool.SetAdmin(c.config.Relays[i].Name, smtplb.AdminReady) // a domain's name is no relay's
	}
	for _, r := range c.pool.Stats().Relays {
		_ = c.pool.SetAdmin(r.Name, smtplb.AdminReady)
	}
	time.Sleep(5 * time.Hour) // the longest that a breaker stays open
	if c.policy != nil {      // no day has room for everything
		cfg := c.config
		cfg.Relays = slices.Clone(cfg.Relays)
		for i := range cfg.Relays {
			cfg.Relays[i].Warmup = smtplb.Warmup{}
		}
		c.policy.note(cfg.Relays, time.Now())
		if err := c.pool.Update(cfg); err != nil {
			c.Error(err)
		}
	}
	for range 3 * len(c.relays) {
		time.Sleep(2 * time.Second)
		s, before := &chaosSend{env: envelope("x@example.org")}, c.turnedAway()
		// Some relays serve fewer connections than the pool may open: a check may have been there first.
		if s.receipt, s.err = c.pool.Deliver(c.Context(), s.env); s.err != nil && c.turnedAway() == before {
			c.Errorf("long after the trouble: %v: %v", s.receipt, s.err)
		}
		c.delivered(s)
	}
}

// turnedAway says how many connections were too many for their relays.
func (c *endurance) turnedAway() (n int) {
	for _, s := range c.relays {
		n += s.Stats().Refused
	}
	return n
}

// end ends the pool, while some mail is on its way.
func (c *endurance) end(r *rand.Rand) {
	var last sync.WaitGroup
	for range r.IntN(10) {
		r := c.dice()
		last.Go(func() { c.single(r) })
	}
	pause(r, 3*time.Second)
	if r.IntN(2) == 0 {
		c.pool.Close()
	} else {
		ctx, cancel := context.WithTimeout(c.Context(), time.Duration(1+r.IntN(60))*time.Second)
		defer cancel()
		if err := c.pool.Shutdown(ctx); err != nil && ctx.Err() == nil {
			c.Errorf("Shutdown: %v", err)
		}
	}
	last.Wait()
	late := &chaosSend{env: envelope("x@example.org")}
	if late.receipt, late.err = c.pool.Deliver(c.Context(), late.env); !errors.Is(late.err, smtplb.ErrClosed) {
		c.Errorf("after the end: %v", late.err)
	}
	c.delivered(late)
	if n := c.pool.Background(); n != 0 {
		c.Errorf("%d goroutines of the pool are left", n)
	}
	c.paid()
	st := c.pool.Stats()
	for _, x := range st.Relays {
		if x.InFlight != 0 || x.Waiting != 0 || x.Idle != 0 {
			c.Errorf("left behind in %s: %d in flight, %d waiting, %d idle", x.Name, x.InFlight, x.Waiting, x.Idle)
		}
	}
	if st.InFlight != 0 || st.Waiting != 0 {
		c.Errorf("at the end: %d in flight, %d waiting", st.InFlight, st.Waiting)
	}
}

// newSend makes a message.
func (c *endurance) newSend(r *rand.Rand) *chaosSend {
	s := &chaosSend{}
	c.mu.Lock()
	id := len(c.sends)
	c.sends = append(c.sends, s)
	c.mu.Unlock()
	s.text = fmt.Sprintf("From: a@example.com\r\nSubject: %d\r\n\r\n%s", id, strings.Repeat("Text of the message, and so on, and so forth.\r\n", oneOf(r, 1, 1, 1, 1, 20, 200)))
	s.env = &smtplb.Envelope{
		ID: fmt.Sprint(id), From: fmt.Sprintf("a@d%d.example.com", r.IntN(20)), Body: smtplb.Bytes([]byte(s.text)), Key: fmt.Sprint(r.IntN(100)),
		Stream: oneOf(r, "", "", "", "bulk", "fast"), RequireAll: r.IntN(20) == 0, AtLeastOnce: r.IntN(20) == 0, Prefer: oneOf(r, "", "", "", "", "", "r0", "r1"),
	}
	if r.IntN(10) == 0 {
		s.env.Body = smtplb.Reader(strings.NewReader(s.text))
	}
	for n := oneOf(r, 1, 1, 1, 1, 1, 1, 1, 1, 2, 3, 12); len(s.env.To) < n; {
		kind := oneOf(r, "u", "u", "u", "u", "u", "u", "u", "gone", "later", "grey")
		if n == 1 && r.IntN(8) > 0 {
			kind = "u"
		}
		s.env.To = append(s.env.To, fmt.Sprintf("%s-%d-%d@%s", kind, id, len(s.env.To), c.host(id, len(s.env.To))))
	}
	return s
}

// single sends one message, and the whole of it again where that is safe.
func (c *endurance) single(r *rand.Rand) {
	s := c.newSend(r)
	for n := oneOf(r, 1, 1, 2, 3); n > 0; n-- {
		c.once(r, s)
		if !errors.Is(s.err, smtplb.ErrTemporary) || s.receipt.Count(smtplb.Deferred) < len(s.env.To) {
			return
		}
		s.env = s.receipt.Retry(s.env)
		if n > 1 && !c.over() {
			pause(r, 5*time.Second)
		}
	}
}

func (c *endurance) once(r *rand.Rand, s *chaosSend) {
	ctx, cancel := context.WithCancel(c.Context())
	defer cancel()
	s.limit = time.Time{}
	short := time.Duration(r.IntN(10_000)) * time.Millisecond
	switch r.IntN(5) {
	case 0:
		s.limit = time.Now().Add(short)
		ctx, cancel = context.WithDeadline(ctx, s.limit)
		defer cancel()
	case 1:
		s.limit = time.Now().Add(short)
		defer time.AfterFunc(short, cancel).Stop()
	}
	s.updates = c.updates.Load()
	s.receipt, s.err = c.pool.Deliver(ctx, s.env)
	s.at, s.ended = time.Now(), true
	c.delivered(s)
}

// delivered looks at the receipt of one delivery.
func (c *endurance) delivered(s *chaosSend) {
	number := c.deliveries.Add(1)
	c.throttledInTime(s)
	if s.receipt == nil {
		c.Errorf("message %s: %v", s.env.ID, s.err)
		return
	}
	if c.policy != nil {
		c.policy.spend(s, int(number))
	}
	alike := c.updates.Load() == s.updates && s.updates%2 == 0 && c.zone == nil // after an Update a relay that is reached in another way (any, with a Dial function) is tried again
	made, times, parts := 0, map[string]int{}, c.parts(s.env)
	for _, a := range s.receipt.Attempts {
		c.attempted.Add(1)
		if a.Hedged && a.Err == nil { // another took it over: that is no attempt
			continue
		}
		made++
		times[a.Relay]++
		if again := times[a.Relay]; alike && (again > 2*parts || again > parts && !s.env.AtLeastOnce) {
			c.Errorf("message %s was offered to %s %d times: %+v", s.env.ID, a.Relay, again, s.receipt.Attempts)
		}
	}
	if alike && c.routed.Load() {
		c.wentByRoutes(s)
	}
	if made > c.attempts*parts && (alike || parts == 1) { // the count begins anew where an Update parts a message
		c.Errorf("message %s: %d attempts, %d are allowed: %+v", s.env.ID, made, c.attempts, s.receipt.Attempts)
	}
}

// stream sends many messages by a DeliverAll.
func (c *endurance) stream(r *rand.Rand) {
	ctx, cancel := context.WithCancel(c.Context())
	defer cancel()
	var limit time.Time
	if r.IntN(3) == 0 {
		short := time.Duration(r.IntN(20_000)) * time.Millisecond
		limit = time.Now().Add(short)
		defer time.AfterFunc(short, cancel).Stop()
	}
	const idle = 300 * time.Millisecond // at the most, between two messages
	count, results := 10+r.IntN(60), 0
	out := map[string]*chaosSend{}
	book := func(x smtplb.Result) {
		s := out[x.Envelope.ID]
		delete(out, x.Envelope.ID)
		if s == nil {
			c.Errorf("message %s has two results", x.Envelope.ID)
			return
		}
		s.receipt, s.err, s.at, s.ended = x.Receipt, x.Err, time.Now(), true
		results++
		c.delivered(s)
	}
	pulled, leave := 0, 1<<30
	if r.IntN(4) == 0 {
		leave = r.IntN(count)
	}
	seq := func(yield func(*smtplb.Envelope) bool) {
		for pulled < count && !c.over() {
			pause(r, idle)
			s := c.newSend(r)
			s.updates = c.updates.Load()
			out[s.env.ID] = s
			if pulled++; !yield(s.env) {
				return
			}
		}
	}
	for x := range c.pool.DeliverAll(ctx, seq, smtplb.Bulk{InFlight: oneOf(r, 0, 1, 3, 20), Ordered: r.IntN(3) == 0, Abandoned: book}) {
		book(x)
		if results >= leave {
			break
		}
	}
	if late := time.Since(limit); !limit.IsZero() && late > grace+idle {
		c.Errorf("DeliverAll ended %v after its context", late)
	}
	if results != pulled || len(out) != 0 {
		c.Errorf("%d results for %d messages", results, pulled)
	}
}

// grace is how much later than its context a send may end: 5 s for the reply to a message that is committed, and what a network of 50 ms takes to say goodbye.
const grace = 5*time.Second + 200*time.Millisecond
