package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// sickly is a house whose relays are sick as soon as one check has said so, which each does after two seconds of thought.
func sickly(t *testing.T, n int, began chan<- string, change func(*smtplb.Config)) *house {
	return newHouse(t, n, func(c *smtplb.Config) {
		c.Health.Fall = 1
		c.Health.Check = func(ctx context.Context, r smtplb.CheckRequest) error {
			began <- r.Relay
			select {
			case <-time.After(2 * time.Second):
				return errors.New("sick")
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if change != nil {
			change(c)
		}
	})
}

// What a check finds out is of use only for what it began to check: not for a relay that is reached in another way since, and not across a maintenance.
func TestFindingsOfBefore(t *testing.T) {
	for _, ping := range []bool{true, false} {
		for _, test := range []struct {
			name string
			do   func(h *house, c smtplb.Config)
			down bool
		}{
			{"nothing", func(*house, smtplb.Config) {}, true},
			{"an Update", func(h *house, c smtplb.Config) { c.LocalName = "client.example"; h.update(c) }, false},
			{"a maintenance", func(h *house, _ smtplb.Config) { h.set("r0", smtplb.AdminMaintenance); h.set("r0", smtplb.AdminReady) }, false},
			{"a drain", func(h *house, _ smtplb.Config) { h.set("r0", smtplb.AdminDrain); h.set("r0", smtplb.AdminReady) }, true},
		} {
			t.Run(fmt.Sprint(test.name, ", by Ping: ", ping), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					began := make(chan string, 100)
					var config smtplb.Config
					h := sickly(t, 1, began, func(c *smtplb.Config) {
						if ping {
							c.Health.Interval = time.Hour
						}
						config = *c
					})
					defer h.close()
					h.takes("x@example.com") // the clock goes
					done := make(chan error, 1)
					if ping {
						go func() { done <- h.pool.Ping(context.Background()) }()
					} else {
						done <- errors.New("none")
					}
					<-began
					time.Sleep(time.Second)
					test.do(h, config)
					time.Sleep(1500 * time.Millisecond)
					if err := <-done; err == nil {
						t.Error("well")
					}
					if s := h.state(0); (s == "down") != test.down {
						t.Errorf("it is %s", s)
					}
				})
			})
		}
	}
}

func (h *house) update(c smtplb.Config) {
	h.Helper()
	if err := h.pool.Update(c); err != nil {
		h.Error(err)
	}
}

func (h *house) set(relay string, s smtplb.AdminState) {
	h.Helper()
	if err := h.pool.SetAdmin(relay, s); err != nil {
		h.Error(err)
	}
}

// A relay that comes out of its maintenance is as new: what checks said before, or while it was in it, is forgotten.
func TestMaintenanceForgets(t *testing.T) {
	bubble(t, func(t *testing.T) {
		began := make(chan string, 100)
		h := sickly(t, 6, began, func(c *smtplb.Config) { c.Health.Interval = time.Hour })
		defer h.close()
		h.takes("x@example.com") // in use
		var wg sync.WaitGroup
		wg.Go(func() { _ = h.pool.Ping(t.Context()) })
		time.Sleep(time.Second)
		h.set("r5", smtplb.AdminMaintenance) // it waits for its turn to be asked
		wg.Wait()
		for _, relay := range []int{0, 5} {
			name := fmt.Sprint("r", relay)
			if relay == 0 {
				h.set(name, smtplb.AdminMaintenance)
			}
			h.set(name, smtplb.AdminReady)
			if s := h.state(relay); s == "down" || h.state(1) != "down" {
				t.Errorf("%s is %s, r1 is %s", name, s, h.state(1))
			}
		}
	})
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Health.Interval = time.Hour }) // down after three
		defer h.close()
		h.takes("x@example.com") // in use
		h.relays[0].Kill()
		for i := range 4 {
			_ = h.pool.Ping(t.Context())
			if i == 1 {
				h.set("r0", smtplb.AdminMaintenance)
				h.set("r0", smtplb.AdminReady)
			}
		}
		if s := h.state(0); s == "down" {
			t.Error("down after two failures")
		}
	})
}

// A relay that is put into maintenance while its check is due isn't asked.
func TestNoCheckOfAMaintenance(t *testing.T) {
	bubble(t, func(t *testing.T) {
		began := make(chan string, 1000)
		h := sickly(t, 12, began, func(c *smtplb.Config) {
			c.Health.Interval, c.Health.Fall = time.Millisecond, 1000 // all at the first beat
		})
		defer h.close()
		h.takes("x@example.com")
		asked := map[string]bool{}
		for range 4 {
			asked[<-began] = true
		}
		var rest []string
		for i := range 12 {
			if name := fmt.Sprint("r", i); !asked[name] {
				rest = append(rest, name)
				h.set(name, smtplb.AdminMaintenance)
			}
		}
		time.Sleep(10 * time.Second)
		for len(began) > 0 {
			if name := <-began; !asked[name] {
				t.Errorf("%s was asked", name)
			}
		}
		for _, name := range rest { // and is, when that is over
			h.set(name, smtplb.AdminReady)
		}
		h.use(30 * time.Second)
		for len(began) > 0 {
			asked[<-began] = true
		}
		if len(asked) != 12 {
			t.Errorf("%v were asked", asked)
		}
	})
}

// A Ping that its caller ends has found out nothing.
func TestCancelledPingFindsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		began := make(chan string, 1)
		h := sickly(t, 1, began, func(c *smtplb.Config) { c.Health.Interval = time.Hour })
		defer h.close()
		h.takes("x@example.com") // in use
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := h.pool.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) || h.state(0) == "down" {
			t.Errorf("%v; it is %s", err, h.state(0))
		}
	})
}

// A message that was answered ends the doubt that checks have had.
func TestMessagesEndDoubt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Health.Interval = time.Hour }) // the pings are all there is
		defer h.close()
		h.use(2 * time.Second)
		pings := func(n int) {
			for range n {
				if h.pool.Ping(t.Context()) == nil {
					t.Error("well")
				}
			}
		}
		h.relays[0].On(smtptest.Ehlo).Reply(554, "5.3.2 not now")
		pings(2)
		h.takes("x@example.com") // by the connection that it has
		time.Sleep(2 * time.Hour)
		pings(2)
		if s := h.state(0); s == "down" {
			t.Error("down after two failures and a message, and two more")
		}
		pings(1)
		if s := h.state(0); s != "down" {
			t.Errorf("%s after three failures", s)
		}
	})
}

// A check that isn't one of the login is no reason to lock it, whatever the relay says.
func TestOnlyLoginsAreLocked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, spare)
		defer h.close()
		h.use(20 * time.Second)
		h.relays[1].On(smtptest.Ehlo).Reply(530, "5.7.0 Authentication required")
		h.use(2 * time.Minute)
		if s := h.pool.Stats().Relays[1]; s.State != "down" || s.Trips != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// A login that couldn't be checked, as there was no connection, is checked later.
func TestLoginIsCheckedLater(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h, _, _ := newLogins(t, 2, 0, func(c *smtplb.Config) { c.Relays[0].Password, c.Relays[1].Tier, c.Health.Interval = "new", 1, 0 })
		defer h.close()
		h.relays[1].Kill()
		h.use(30 * time.Second)
		h.relays[1].Restart()
		h.use(2 * time.Minute)
		if n := h.relays[1].Stats().Auths; n != 0 {
			t.Errorf("%d logins within 5 minutes", n)
		}
		h.use(5 * time.Minute)
		if n := h.relays[1].Stats().Auths; n != 1 {
			t.Errorf("%d logins", n)
		}
	})
}

// Shallow checks look at no credentials, which are offered only under TLS.
func TestShallowChecksOfALogin(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h, _, _ := newLogins(t, 2, 0, func(c *smtplb.Config) {
			c.Relays[0].Password, c.Relays[1].Tier, c.Health.Interval, c.Health.Shallow = "new", 1, 0, true
		})
		defer h.close()
		h.use(2 * time.Minute)
		if s, commands := h.pool.Stats().Relays[1], h.relays[1].Stats().Commands; s.State != "up" || commands["STARTTLS"] != 1 || commands["EHLO"] < 4 {
			t.Errorf("%+v, %v", s, commands)
		}
	})
}

// A check learns what the relay offers, and that it wants less mail.
func TestChecksLearn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) { c.Balancer, c.Health.Interval = inOrder{}, -1 }, smtptest.WithExtensions("SIZE 10"))
		defer h.close()
		if err := h.pool.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		n := h.relays[0].Stats().Connections
		if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); len(r.Attempts) != 0 || h.relays[0].Stats().Connections != n {
			t.Errorf("%v: %v", r, err)
		}
		h.relays[1].On(smtptest.Banner).Reply(421, "4.7.0 Too many connections from your host, try again later")
		_ = h.pool.Ping(t.Context())
		if s := h.pool.Stats().Relays; !s[1].Cooling || s[0].Cooling {
			t.Errorf("%+v", s)
		}
	})
}

// Where Health.Check has a reason of its own, that of the pool's own check is none.
func TestOwnCheckHasTheLastWord(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Health.Interval, c.Health.Fall = time.Hour, 1
			c.Health.Check = func(ctx context.Context, r smtplb.CheckRequest) error {
				_ = r.Standard(ctx) // it wants less mail, which is no fault
				return errors.New("sick")
			}
		})
		defer h.close()
		h.takes("x@example.com") // in use
		h.relays[0].On(smtptest.Banner).Reply(421, "4.7.0 Too many connections from your host, try again later")
		if err := h.pool.Ping(t.Context()); err == nil || h.state(0) != "down" {
			t.Errorf("%v; it is %s", err, h.state(0))
		}
	})
}

// Checks that end their goroutines are followed by others.
func TestChecksGoOnAfterGoexit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var checks atomic.Int64
		h := newHouse(t, 2, func(c *smtplb.Config) {
			spare(c)
			c.Health.Check = func(context.Context, smtplb.CheckRequest) error {
				if checks.Add(1); checks.Load() < 10 {
					runtime.Goexit()
				}
				return nil
			}
		})
		defer h.close()
		h.use(5 * time.Minute)
		if checks.Load() < 12 {
			t.Errorf("%d checks", checks.Load())
		}
	})
}

// When a pool is used again after a pause its relays aren't all checked at once.
func TestChecksAreSpreadAfterAPause(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var checks atomic.Int64
		h := newHouse(t, 40, func(c *smtplb.Config) {
			for i := range c.Relays {
				c.Relays[i].Tier = min(i, 1)
			}
			c.Health.Check = func(context.Context, smtplb.CheckRequest) error { checks.Add(1); return nil }
		})
		defer h.close()
		h.use(time.Minute)
		time.Sleep(time.Hour)
		n := checks.Load()
		h.use(3 * time.Second)
		if got := checks.Load() - n; got > 25 { // of 39, in 15 s
			t.Errorf("%d checks", got)
		}
		h.use(20 * time.Second)
		if got := checks.Load() - n; got < 39 {
			t.Errorf("%d checks", got)
		}
	})
}

// A Ping that takes the place of an idle connection leaves none that was said goodbye on.
func TestPingInThePlaceOfAnIdleConnection(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { one(c); c.Health.Interval = -1 })
		defer h.close()
		h.takes("x@example.com")
		if err := h.pool.Ping(t.Context()); err != nil {
			t.Error(err)
		}
		if s := h.pool.Stats().Relays[0]; s.Idle != 0 {
			t.Errorf("%+v", s)
		}
		if r := h.takes("y@example.com"); r.Attempts[0].Reused || r.Attempts[0].Redialed {
			t.Errorf("%+v", r.Attempts[0])
		}
	})
}

// The clock goes on while something wants it: a slow start, a send that is under way.
func TestWhatKeepsTheClock(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) { spare(c); c.Relays[0].Timeouts.Final = 20 * time.Minute })
		defer h.close()
		h.set("r0", smtplb.AdminDrain)
		h.set("r0", smtplb.AdminReady)
		time.Sleep(62 * time.Second)
		if s := h.state(0); s != "starting" {
			t.Errorf("a minute later it is %s", s)
		}
		var wg sync.WaitGroup
		h.hold(&wg, 0, 10*time.Minute)
		time.Sleep(9 * time.Minute)
		n := h.relays[1].Stats().Connections
		time.Sleep(time.Minute / 2)
		if h.relays[1].Stats().Connections == n {
			t.Error("a send is under way, and nobody asks")
		}
		wg.Wait()
	})
}

// A weight that changes counts within a tenth of a second, by SetAdmin and by Update, not with the next beat.
func TestWeightsCountSoon(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var config smtplb.Config
		h := newHouse(t, 2, func(c *smtplb.Config) { c.Balancer, c.Health.Interval, config = smtplb.RoundRobin(), -1, *c })
		defer h.close()
		share := func() (n uint64) {
			time.Sleep(150 * time.Millisecond)
			before := h.pool.Stats().Relays[0].Accepted
			for range 20 {
				h.takes("x@example.com")
			}
			return h.pool.Stats().Relays[0].Accepted - before
		}
		h.use(3 * time.Second)
		h.set("r0", smtplb.AdminDrain)
		h.use(3 * time.Second)
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		h.set("r0", smtplb.AdminReady)
		if n := share(); n == 0 || n > 6 {
			t.Errorf("%d of 20 messages at the beginning of a slow start", n)
		}
		time.Sleep(time.Second)
		config.Balancer, config.Health.Interval, config.Health.SlowStart = smtplb.RoundRobin(), -1, -1
		h.update(config)
		if n := share(); n < 9 {
			t.Errorf("%d of 20 messages without slow starts", n)
		}
	})
}

// A login that a check of before a maintenance finds refused is not locked, and leaves a probe to the next message.
func TestRefusedLoginOfBefore(t *testing.T) {
	for _, open := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			h, _, _ := newLogins(t, 1, 0, func(c *smtplb.Config) { c.Relays[0].Breaker.Consecutive, c.Retry.Budget = 1, -1 })
			defer h.close()
			trips, state := uint64(0), "closed"
			if open {
				h.relays[0].Kill()
				_, _ = h.pool.Deliver(t.Context(), envelope("x@example.com"))
				h.relays[0].Restart()
				time.Sleep(time.Minute)
				trips, state = 1, "half-open"
			}
			h.relays[0].On(smtptest.Ehlo).Delay(2 * time.Second)
			for _, over := range []bool{true, false} {
				done := make(chan error, 1)
				go func() { done <- h.pool.Ping(context.Background()) }()
				time.Sleep(time.Second)
				h.set("r0", smtplb.AdminMaintenance)
				if over {
					h.set("r0", smtplb.AdminReady)
				}
				if err := <-done; err == nil {
					t.Error("it took the old password")
				}
				if s := h.pool.Stats().Relays[0]; s.Trips != trips || s.Breaker != state {
					t.Errorf("%+v", s)
				}
			}
		})
	}
}
