package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// journal writes down what the RelayState hook hears.
type journal struct {
	mu     sync.Mutex
	events []smtplb.RelayEvent
}

func (j *journal) listen(c *smtplb.Config) {
	c.Hooks.RelayState = func(e smtplb.RelayEvent) {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.events = append(j.events, e)
	}
}

// states are the states that a relay went through, without repetitions, and empties the journal.
func (j *journal) states(relay string) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var s []string
	for _, e := range j.events {
		if e.Relay == relay && (len(s) == 0 || s[len(s)-1] != e.State) {
			s = append(s, e.State)
		}
	}
	j.events = nil
	return strings.Join(s, ", ")
}

// use sends a message a second for that long.
func (h *house) use(d time.Duration) {
	h.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Second) {
		if r, err := h.pool.Deliver(context.Background(), envelope("x@example.com")); err != nil {
			h.Fatalf("%v: %v", r, err)
		}
	}
}

func (h *house) state(i int) string { return h.pool.Stats().Relays[i].State }

// spare makes the last relay one that no message goes to while the others are well.
func spare(c *smtplb.Config) { c.Relays[len(c.Relays)-1].Tier = 1 }

// A relay that no message goes to is checked. It falls by three failures and rises by two successes, and comes back slowly.
func TestChecksFallAndRise(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var j journal
		h := newHouse(t, 2, func(c *smtplb.Config) { spare(c); j.listen(c) })
		defer h.close()
		h.use(20 * time.Second)
		if s := h.state(1); s != "up" {
			t.Errorf("after the first check: %s", s)
		}
		synctest.Wait() // a check of this instant says QUIT first
		h.relays[1].Kill()
		h.use(30 * time.Second) // up to 18 until the first failure, then 3 and 3, each up to 3.6 and up to a second late
		s := h.pool.Stats().Relays[1]
		if s.State != "down" || s.Breaker != "closed" || !strings.Contains(s.Reason, "dial") || s.RetryAt.IsZero() || s.Faults != 0 || s.Attempts != 0 {
			t.Fatalf("%+v", s)
		}
		h.relays[1].Restart()
		h.use(43 * time.Second) // up to 36 and 3.6
		if s := h.pool.Stats().Relays[1]; s.State != "slow start" || s.Reason == "" {
			t.Errorf("%+v", s)
		}
		h.use(61 * time.Second)
		if got := j.states("r1"); h.state(1) != "up" || got != "down, slow start, up" {
			t.Errorf("it is %s, and was %s", h.state(1), got)
		}
		if got := j.states("r0"); got != "" {
			t.Errorf("the other relay was %s", got)
		}
		for _, tr := range h.relays[1].Transcripts() {
			if !strings.Contains(tr.String(), "C: QUIT\nS: 221") {
				t.Errorf("a check that ended without QUIT:\n%v", tr)
			}
		}
	})
}

// How many times in a row, to the number.
func TestRiseAndFallAreCounted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var j journal
		var mu sync.Mutex
		var sick bool
		var fails, passes int // since that changed
		h := newHouse(t, 2, func(c *smtplb.Config) {
			spare(c)
			c.Health.Rise, c.Health.Fall = 4, 5
			c.Health.Check = func(context.Context, smtplb.CheckRequest) error {
				mu.Lock()
				defer mu.Unlock()
				if sick {
					fails++
					return errors.New("sick")
				}
				passes++
				return nil
			}
			j.listen(c)
		})
		defer h.close()
		count := func(now bool, n *int, want int, state string) {
			t.Helper()
			mu.Lock()
			sick, fails, passes = now, 0, 0
			mu.Unlock()
			for range 120 {
				h.use(time.Second)
				synctest.Wait() // a check may be about to end
				mu.Lock()
				n := *n
				mu.Unlock()
				if is := h.state(1) == state; is != (n >= want) {
					t.Fatalf("after %d checks it is %s", n, h.state(1))
				} else if is {
					return
				}
			}
			t.Fatalf("it is %s for ever", h.state(1))
		}
		h.use(20 * time.Second)
		count(true, &fails, 5, "down")
		count(false, &passes, 4, "slow start")
	})
}

// While the checks of a relay are in doubt, one failure or two are forgotten with the next success.
func TestChecksForgive(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, spare)
		defer h.close()
		h.relays[1].On(smtptest.Banner).If(func(e *smtptest.Event) bool { return e.Conn%3 != 0 }).Reply(554, "5.3.2 not now")
		h.use(3 * time.Minute)
		if n := h.relays[1].Stats().Connections; h.state(1) == "down" || n < 15 {
			t.Errorf("%s after %d checks", h.state(1), n)
		}
	})
}

// Nothing is opened before the first send, while messages tell, five minutes after the last send, and after Close.
func TestChecksOnlyWhileInUse(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, spare)
		defer h.close()
		checks := func() int { return h.relays[1].Stats().Connections }
		time.Sleep(time.Hour)
		if checks() != 0 {
			t.Fatal("checked before it was used")
		}
		h.use(time.Minute)
		n := checks()
		if n < 3 || n > 6 {
			t.Errorf("%d checks in a minute", n)
		}
		if got := h.relays[0].Stats(); got.Connections != 1 || got.Commands["NOOP"] != 0 {
			t.Errorf("the relay with messages was checked: %+v", got)
		}
		time.Sleep(6 * time.Minute)
		if got := checks() - n; got < 15 || got > 26 {
			t.Errorf("%d checks in the next five minutes", got)
		}
		n = checks()
		time.Sleep(24 * time.Hour)
		if got := checks(); got != n {
			t.Errorf("%d checks of a pool that nobody uses", got-n)
		}
		h.use(time.Minute)
		if got := checks() - n; got < 3 || got > 6 {
			t.Errorf("%d checks in a minute", got)
		}
		h.pool.Close()
		synctest.Wait() // one that began in this instant
		n = checks()
		time.Sleep(time.Hour)
		if got := checks(); got != n {
			t.Errorf("%d checks after Close", got-n)
		}
	})
}

// An idle connection is asked, and lives no longer for that. Without one, the check opens its own.
func TestChecksAskIdleConnections(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) {
			spare(c)
			c.Relays[1].Conns.MaxIdleTime = time.Minute
			c.Relays[1].Conns.MaxAge = -1
		})
		defer h.close()
		e := envelope("x@example.com")
		e.Prefer = "r1"
		if _, err := h.pool.Deliver(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		h.use(58 * time.Second)
		s := h.relays[1].Stats()
		if s.Connections != 1 || s.Commands["NOOP"] < 2 || s.Commands["EHLO"] != 1 {
			t.Errorf("%+v", s)
		}
		h.use(3 * time.Second)
		if x := h.pool.Stats().Relays[1]; x.Idle != 0 || x.Closed["idle"] != 1 || x.Reused != 0 {
			t.Errorf("%+v", x)
		}
		h.use(20 * time.Second)
		if s := h.relays[1].Stats(); s.Connections < 2 {
			t.Errorf("%+v", s)
		}
	})
}

// What a check costs never comes on top of Conns.Max.
func TestChecksStayWithinMax(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) {
			for i := range c.Relays {
				c.Relays[i].Conns.Max = 1
				c.Relays[i].NoRiding = true // a connection that a rider has left is closed without a QUIT, and the relay hears of that a moment later
			}
			c.Health = smtplb.Health{Interval: time.Second, Fast: time.Second}
		})
		defer h.close()
		for _, r := range h.relays { // a message takes longer than an interval
			r.On(smtptest.EndOfData).Delay(7 * time.Second)
		}
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				for range 20 {
					if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
						t.Errorf("%v: %v", r, err)
					}
					time.Sleep(2 * time.Second)
				}
			})
		}
		wg.Wait()
		h.use(30 * time.Second)
		for i, r := range h.relays {
			if s := r.Stats(); s.MaxActive != 1 {
				t.Errorf("relay %d had %d connections at a time", i, s.MaxActive)
			}
		}
		if err := h.pool.Ping(t.Context()); err != nil { // with an idle connection in the way
			t.Error(err)
		}
		for i, r := range h.relays {
			if s := r.Stats(); s.MaxActive != 1 {
				t.Errorf("relay %d had %d connections at a time", i, s.MaxActive)
			}
		}
	})
}

// Never more than four at a time, and dead relays don't keep the others from their turn.
func TestChecksFourAtATime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var now, most atomic.Int64
		var asked sync.Map
		h := newHouse(t, 40, func(c *smtplb.Config) {
			for i := range c.Relays {
				c.Relays[i].Tier = min(i, 1)
			}
			c.Health.Check = func(ctx context.Context, r smtplb.CheckRequest) error {
				if n := now.Add(1); n > most.Load() {
					most.Store(n)
				}
				defer now.Add(-1)
				asked.Store(r.Relay, r.Addr)
				select {
				case <-time.After(700 * time.Millisecond):
				case <-ctx.Done():
				}
				return ctx.Err()
			}
		})
		defer h.close()
		h.use(40 * time.Second)
		n := 0
		asked.Range(func(k, v any) bool {
			if v != k.(string)+".test:25" {
				t.Errorf("%v is at %v", k, v)
			}
			n++
			return true
		})
		if most.Load() != 4 || n != 39 {
			t.Errorf("%d at a time, %d were asked", most.Load(), n)
		}
	})
}

// Health.Check decides in the place of the pool's own check, and may use it.
func TestOwnCheck(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var verdict atomic.Pointer[error]
		var j journal
		h := newHouse(t, 2, func(c *smtplb.Config) {
			spare(c)
			j.listen(c)
			c.Health.Check = func(ctx context.Context, r smtplb.CheckRequest) error {
				if err := r.Standard(ctx); err != nil {
					return fmt.Errorf("as ever: %w", err)
				}
				if e := verdict.Load(); e != nil {
					return *e
				}
				return nil
			}
		})
		defer h.close()
		h.use(20 * time.Second)
		sick := errors.New("its queue is too long")
		verdict.Store(&sick)
		h.use(30 * time.Second)
		if s := h.pool.Stats().Relays[1]; s.State != "down" || !strings.Contains(s.Reason, "its queue is too long") {
			t.Errorf("%+v", s)
		}
		verdict.Store(nil)
		h.use(2 * time.Minute)
		// What is no fault by the pool's own check stays that.
		h.relays[1].On(smtptest.Banner).Reply(421, "4.3.2 too many connections, try later")
		h.use(2 * time.Minute)
		if s := h.pool.Stats().Relays[1]; s.State != "up" {
			t.Errorf("%+v", s)
		}
		if got := j.states("r1"); got != "down, slow start, up" {
			t.Errorf("it was %s", got)
		}
	})
}

// A check that panics, or ends its goroutine, says nothing, and takes nothing along.
func TestChecksThatPanic(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var checks atomic.Int64
		h := newHouse(t, 2, func(c *smtplb.Config) {
			spare(c)
			c.Health.Check = func(ctx context.Context, r smtplb.CheckRequest) error {
				n := checks.Add(1)
				if r.Login && n > 4 || n%3 == 0 {
					runtime.Goexit()
				}
				if n%3 == 1 {
					panic("check")
				}
				return r.Standard(ctx)
			}
		})
		defer h.close()
		h.use(20 * time.Second)
		for h.pool.Ping(t.Context()) == nil {
		}
		h.use(2 * time.Minute)
		if s := h.pool.Stats().Relays[1]; checks.Load() < 8 || s.State == "down" || s.InFlight != 0 {
			t.Errorf("%d checks, %+v", checks.Load(), s)
		}
		if err := h.pool.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "did not return") {
			t.Errorf("%v", err)
		}
	})
}

// A check that hangs is a failed one, after Health.Timeout.
func TestChecksTimeOut(t *testing.T) {
	for _, timeout := range []time.Duration{2 * time.Second, time.Second} { // also where a message would not have called that long
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 2, func(c *smtplb.Config) { spare(c); c.Health.Timeout = timeout })
			defer h.close()
			h.relays[1].On(smtptest.Ehlo).Stall()
			h.use(36 * time.Second) // 15 and 2, 3.6 and 2, 3.6 and 2, rounded up
			if s := h.pool.Stats().Relays[1]; s.State != "down" || !strings.Contains(s.Reason, "ehlo") {
				t.Errorf("%+v", s)
			}
		})
	}
}

// A relay that wants less is well.
func TestThrottledChecksAreNoFault(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, spare)
		defer h.close()
		h.relays[1].On(smtptest.Banner).Reply(421, "4.7.0 Too many connections from your host, try again later")
		h.use(time.Minute)
		if s := h.pool.Stats().Relays[1]; s.State != "starting" || s.Faults != 0 || h.relays[1].Stats().Connections < 3 {
			t.Errorf("%+v", s)
		}
	})
}

// With Shallow the certificate is nobody's business, without it is.
func TestShallowChecks(t *testing.T) {
	for _, shallow := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, nil)
			defer h.close()
			bad := h.net.NewServer("bad.test:25", smtptest.WithTLS(), smtptest.WithExpiredCertificate())
			defer bad.Close()
			pool, err := smtplb.New(smtplb.Config{
				Dial: h.net.DialContext, Health: smtplb.Health{Shallow: shallow},
				Relays: []smtplb.Relay{{Name: "r0", Addr: "r0.test:25", TLS: smtplb.TLSNone}, {Name: "bad", Addr: "bad.test:25", TLSConfig: bad.ClientTLS(), Tier: 1}},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			own := h.pool
			h.pool = pool
			h.use(40 * time.Second)
			h.pool = own
			s := pool.Stats().Relays[1]
			if want := map[bool]string{false: "down", true: "starting"}[shallow]; s.State != want && !(shallow && s.State == "up") {
				t.Errorf("shallow %v: %+v", shallow, s)
			}
			if x := bad.Stats(); shallow && x.Commands["STARTTLS"] > 1 || !shallow && x.TLSHandshakes+x.TLSFailures == 0 {
				t.Errorf("shallow %v: %+v", shallow, x)
			}
		})
	}
}

// AUTH is checked once after each change of the configuration, and at most every five minutes. A refused one opens the breaker, for five minutes.
func TestChecksLogIn(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		var j journal
		var config smtplb.Config
		h := newHouse(t, 1, nil)
		defer h.close()
		safe := h.net.NewServer("safe.test:25", smtptest.WithTLS(), smtptest.WithAuth("user", "secret", "PLAIN"))
		defer safe.Close()
		config = smtplb.Config{Dial: h.net.DialContext, Relays: []smtplb.Relay{
			{Name: "r0", Addr: "r0.test:25", TLS: smtplb.TLSNone},
			{Name: "safe", Addr: "safe.test:25", TLSConfig: safe.ClientTLS(), Username: "user", Password: "secret", Tier: 1},
		}}
		j.listen(&config)
		pool, err := smtplb.New(config)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		own := h.pool
		h.pool = pool
		defer func() { h.pool = own }()
		h.use(10 * time.Minute)
		if s := safe.Stats(); s.Auths != 1 || s.Connections < 30 {
			t.Errorf("%d logins in %d checks", s.Auths, s.Connections)
		}
		config.Relays[1].Password = "wrong"
		if err := pool.Update(config); err != nil {
			t.Fatal(err)
		}
		h.use(4 * time.Minute)
		s := pool.Stats().Relays[1]
		if safe.Stats().AuthFailures != 1 || s.State != "open" || s.Breaker != "open" || !strings.Contains(s.Reason, "auth") || j.states("safe") != "open" {
			t.Errorf("%d refused logins, %+v", safe.Stats().AuthFailures, s)
		}
		// Changed again and again: not each time.
		for range 20 {
			config.Relays[1].Password += "!"
			if err := pool.Update(config); err != nil {
				t.Fatal(err)
			}
			h.use(20 * time.Second)
		}
		if n := safe.Stats().AuthFailures; n > 3 {
			t.Errorf("%d refused logins", n)
		}
		config.Relays[1].Password = "secret"
		if err := pool.Update(config); err != nil {
			t.Fatal(err)
		}
		h.use(6 * time.Minute)
		if n := safe.Stats().AuthFailures; safe.Stats().Auths-n != 2 && safe.Stats().Auths != 2 {
			t.Errorf("logins: %+v", safe.Stats())
		}
	})
}

// A check says nothing of how a relay takes messages: the breaker stays open until a message has gone through. While checks say down, no message is risked.
func TestChecksOnlyGate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) { c.Relays[0].Breaker.Consecutive = 1 })
		defer h.close()
		h.relays[0].On(smtptest.Data).Reply(421, "4.3.0 disk full")
		h.use(3 * time.Minute)
		s := h.pool.Stats().Relays[0]
		if s.Breaker == "closed" || s.Accepted != 0 || s.Attempts < 3 {
			t.Errorf("while checks go well and messages don't: %+v", s)
		}
		h.relays[0].Kill()
		h.use(2 * time.Minute)
		attempts := h.pool.Stats().Relays[0].Attempts
		if h.state(0) != "down" {
			t.Fatalf("it is %s", h.state(0))
		}
		h.use(10 * time.Minute)
		if s := h.pool.Stats().Relays[0]; s.Attempts != attempts || s.State != "down" {
			t.Errorf("%d messages were tried at a relay that is down: %+v", s.Attempts-attempts, s)
		}
		h.relays[0].ClearScript()
		h.relays[0].Restart()
		h.use(4 * time.Minute)
		if s := h.pool.Stats().Relays[0]; s.State != "up" || s.Breaker != "closed" || s.Accepted == 0 {
			t.Errorf("%+v", s)
		}
	})
}

// With all relays down, a send is told so at once, and when to come again. When the clock has stopped, what checks said is forgotten, and the next message finds out.
func TestAllDown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].Breaker.Off = true })
		defer h.close()
		h.use(20 * time.Second)
		h.net.Blackhole("r0.test:25", true)
		time.Sleep(2 * time.Minute) // the idle connection lives for 30 s, and then there are three checks of 10 s
		if h.state(0) != "down" {
			t.Fatalf("it is %s", h.state(0))
		}
		begun := time.Now()
		_, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		var se *smtplb.SendError
		if !errors.Is(err, smtplb.ErrNoRelay) || !errors.As(err, &se) || se.RetryAfter <= 0 || se.RetryAfter > time.Minute || time.Since(begun) > 0 || !strings.Contains(err.Error(), "r0 is down") {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
		time.Sleep(7 * time.Minute)
		h.net.Blackhole("r0.test:25", false)
		if h.state(0) == "down" {
			t.Error("it is down although nobody looks")
		}
		if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
			t.Error(err)
		}
	})
}

// Health{Interval: -1} switches checks off, also by Update, which then forgets what they said.
func TestChecksOff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var config smtplb.Config
		h := newHouse(t, 2, func(c *smtplb.Config) { spare(c); config = *c })
		defer h.close()
		h.relays[1].Kill()
		h.use(40 * time.Second)
		if h.state(1) != "down" {
			t.Fatalf("it is %s", h.state(1))
		}
		h.relays[1].Restart()
		config.Health.Interval = -1
		if err := h.pool.Update(config); err != nil {
			t.Fatal(err)
		}
		n := h.relays[1].Stats().Connections
		h.use(5 * time.Minute)
		if s := h.pool.Stats().Relays[1]; s.State == "down" || h.relays[1].Stats().Connections != n {
			t.Errorf("%+v, %d checks", s, h.relays[1].Stats().Connections-n)
		}
	})
}

// Close ends checks that are under way, wherever they hang, and waits for them.
func TestCloseEndsChecks(t *testing.T) {
	for _, own := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			var under atomic.Int64
			h := newHouse(t, 6, func(c *smtplb.Config) {
				for i := range c.Relays {
					c.Relays[i].Tier = min(i, 1)
				}
				if own {
					c.Health.Check = func(ctx context.Context, _ smtplb.CheckRequest) error {
						under.Add(1)
						defer under.Add(-1)
						<-ctx.Done()
						return ctx.Err()
					}
				}
			})
			defer h.close()
			for _, r := range h.relays[1:] {
				r.On(smtptest.Banner).Stall()
			}
			h.use(15 * time.Second)
			begun := time.Now()
			h.pool.Close()
			if d := time.Since(begun); d > 0 || under.Load() != 0 {
				t.Errorf("Close took %v, %d checks are under way", d, under.Load())
			}
			synctest.Wait()
			if s := h.state(1); s == "down" {
				t.Errorf("a check that Close ended was held against the relay: %s", s)
			}
		})
	}
}
