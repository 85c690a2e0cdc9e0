package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

func TestHealthIsValidated(t *testing.T) {
	relay := []smtplb.Relay{{Addr: "r.test:25", TLS: smtplb.TLSNone}}
	_, err := smtplb.New(smtplb.Config{Relays: relay, Health: smtplb.Health{Interval: 15, Fast: -1, Down: -1, Timeout: 10, Rise: -1, Fall: -1, SlowStart: 60, Panic: 1.5}})
	for _, field := range []string{"Interval", "Fast", "Down", "Timeout", "Rise", "Fall", "SlowStart", "Panic"} {
		if err == nil || !strings.Contains(err.Error(), "Health."+field+":") {
			t.Errorf("%s is not named in %v", field, err)
		}
	}
	if _, err := smtplb.New(smtplb.Config{Relays: relay, Health: smtplb.Health{Panic: math.NaN()}}); err == nil {
		t.Error("Panic may be NaN")
	}
	p, err := smtplb.New(smtplb.Config{Relays: relay, Health: smtplb.Health{Interval: -1, Timeout: -1, SlowStart: -1, Panic: -1}})
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
}

// comeBack takes a relay out and puts it back a minute later, after which its slow start begins.
func (h *house) comeBack(relay string) {
	h.Helper()
	for _, s := range []smtplb.AdminState{smtplb.AdminDrain, smtplb.AdminReady} {
		if err := h.pool.SetAdmin(relay, s); err != nil {
			h.Fatal(err)
		}
		if s == smtplb.AdminDrain {
			h.use(time.Minute)
		}
	}
}

// The share of messages of a relay that came back, against one that was there all the time, follows the curve within two points. At New there is none.
func TestSlowStartOfWeight(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) { c.Balancer = smtplb.RoundRobin() }, smtptest.WithDiscard())
		defer h.close()
		share := func() float64 { // of r0's weight, over two seconds
			was := h.pool.Stats()
			for range 2000 {
				if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Millisecond)
			}
			is := h.pool.Stats()
			return float64(is.Relays[0].Accepted-was.Relays[0].Accepted) / float64(is.Relays[1].Accepted-was.Relays[1].Accepted)
		}
		if got := share(); math.Abs(got-1) > 0.02 {
			t.Errorf("at first it has %.1f %%", 100*got)
		}
		h.comeBack("r0")
		begun := time.Now()
		var figures []string
		for _, want := range []float64{0.10, 0.25, 0.50, 0.75, 1} {
			at := time.Duration(want * float64(time.Minute))
			if want == 1 {
				at += 2 * time.Second
			}
			time.Sleep(time.Until(begun.Add(at - time.Second)))
			got := share()
			figures = append(figures, fmt.Sprintf("%.1f", 100*got))
			if math.Abs(got-want) > 0.02 {
				t.Errorf("after %v it has %.1f %% of its weight, want %.0f", at, 100*got, 100*want)
			}
		}
		t.Logf("at 10, 25, 50, 75, 100 %% of the time: %s %% of the weight", strings.Join(figures, ", "))
		if s := h.state(0); s != "up" {
			t.Errorf("in the end it is %s", s)
		}
	})
}

// The same of its connections, and of those that Update gives it in the middle.
func TestSlowStartOfConnections(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		var config smtplb.Config
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Conns.Max = 100
			c.Relays[0].NoRiding = true
			config = *c
		}, smtptest.WithDiscard())
		defer h.close()
		h.use(time.Second)
		if err := h.pool.SetAdmin("r0", smtplb.AdminDrain); err != nil {
			t.Fatal(err)
		}
		if err := h.pool.SetAdmin("r0", smtplb.AdminReady); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		h.relays[0].On(smtptest.EndOfData).Delay(200 * time.Millisecond)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 120 {
			wg.Go(func() {
				for ctx.Err() == nil {
					if r, err := h.pool.Deliver(context.Background(), envelope("x@example.com")); err != nil {
						t.Errorf("%v: %v", r, err)
					}
				}
			})
		}
		at := func(d time.Duration, want int) {
			t.Helper()
			time.Sleep(time.Until(begun.Add(d)))
			if got := h.pool.Stats().Relays[0].InFlight; got < want-2 || got > want+2 {
				t.Errorf("after %v it has %d connections, want %d", d, got, want)
			}
		}
		at(5500*time.Millisecond, 10)
		at(15*time.Second, 25)
		at(30*time.Second, 50)
		config.Relays[0].Conns.Max = 40
		if err := h.pool.Update(config); err != nil {
			t.Error(err)
		}
		at(31*time.Second, 20)
		config.Relays[0].Conns.Max = 80
		if err := h.pool.Update(config); err != nil {
			t.Error(err)
		}
		at(45*time.Second, 60)
		config.Health.SlowStart = -1
		if err := h.pool.Update(config); err != nil {
			t.Error(err)
		}
		at(46*time.Second, 80)
		cancel()
		wg.Wait()
	})
}

// A breaker that closes begins a slow start too, and each way of being away ends one.
func TestSlowStartAfterABreaker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var j journal
		h := newHouse(t, 2, func(c *smtplb.Config) {
			c.Relays[0].Breaker.Consecutive = 2
			c.Health.Interval = -1
			j.listen(c)
		})
		defer h.close()
		h.relays[0].Kill()
		h.use(10 * time.Second)
		h.relays[0].Restart()
		h.use(40 * time.Second)
		if s := h.state(0); s != "slow start" {
			t.Fatalf("it is %s", s)
		}
		h.relays[0].Kill()
		h.use(40 * time.Second)
		h.relays[0].Restart()
		h.use(4 * time.Minute)
		got := j.states("r0")
		if !strings.HasPrefix(got, "open, half-open, slow start, open, half-open") || !strings.HasSuffix(got, "half-open, slow start, up") {
			t.Errorf("it was %s", got)
		}
	})
}

// With most of a tier of eight sick, breakers are ignored: relays that are well again take mail although their breakers are open, and close them by that. One that
// refuses the login is left alone all the same. Seven relays don't panic.
func TestPanic(t *testing.T) {
	for _, n := range []int{7, 8} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, n, func(c *smtplb.Config) {
				c.Health.Interval = -1
				c.Retry.Attempts = -1
				for i := range c.Relays {
					c.Relays[i].Breaker = smtplb.Breaker{Consecutive: 1, OpenFor: 5 * time.Minute}
				}
			})
			defer h.close()
			h.relays[0].On(smtptest.Mail).Reply(535, "5.7.8 Who are you?")
			for _, r := range h.relays[1:5] {
				r.Kill()
			}
			for h.pool.Stats().Relays[0].Attempts == 0 || h.pool.Stats().Relays[4].Attempts == 0 || h.pool.Stats().Relays[3].Attempts == 0 ||
				h.pool.Stats().Relays[2].Attempts == 0 || h.pool.Stats().Relays[1].Attempts == 0 {
				h.use(time.Second)
			}
			h.use(10 * time.Second)
			for _, r := range h.relays[1:5] {
				r.Restart()
			}
			h.use(time.Minute)
			for i, r := range h.pool.Stats().Relays[:5] {
				switch {
				case i == 0 && r.Attempts != 1:
					t.Errorf("of %d: the one with the refused login was tried %d times", n, r.Attempts)
				case i > 0 && n < 8 && (r.Breaker != "open" || r.Attempts != 1):
					t.Errorf("of %d: %s is %s after %d attempts", n, r.Name, r.Breaker, r.Attempts)
				case i > 0 && n == 8 && (r.Breaker != "closed" || r.Accepted == 0):
					t.Errorf("of %d: %s is %s after %d attempts, %d accepted", n, r.Name, r.Breaker, r.Attempts, r.Accepted)
				}
			}
		})
	}
}

// Of eight relays all are dead, and panic: an attempt goes to several of them, but failing over is bounded, and drained relays are no sickness.
func TestPanicLeavesOperatorsAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 9, func(c *smtplb.Config) {
			c.Health.Interval = -1
			for i := range c.Relays {
				c.Relays[i].Breaker = smtplb.Breaker{Consecutive: 1, OpenFor: 5 * time.Minute}
			}
		})
		defer h.close()
		for i := range 7 {
			if err := h.pool.SetAdmin(fmt.Sprintf("r%d", i), smtplb.AdminDrain); err != nil {
				t.Fatal(err)
			}
		}
		h.relays[7].Kill()
		for h.pool.Stats().Relays[7].Attempts == 0 {
			h.use(time.Second)
		}
		h.use(20 * time.Second)
		for i, r := range h.pool.Stats().Relays[:8] {
			if i < 7 && r.Attempts != 0 || i == 7 && r.Attempts != 1 {
				t.Errorf("%s was tried %d times", r.Name, r.Attempts)
			}
		}
	})
}

// All relays are dead for ten minutes, and a hundred senders go on. But for the first ones, nobody dials the dead except one probe for each relay at a time; everyone
// else is told at once, and when to come again.
func TestTotalOutage(t *testing.T) {
	t.Parallel()
	outage := 10 * time.Minute
	if !smtplb.Thorough() {
		outage = 3 * time.Minute
	}
	for _, checks := range []time.Duration{-1, 0} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 3, func(c *smtplb.Config) { c.Health.Interval = checks })
			defer h.close()
			h.use(20 * time.Second)
			attempts := func() (n uint64) {
				for _, r := range h.pool.Stats().Relays {
					n += r.Attempts
				}
				return n
			}
			before := attempts()
			for i := range h.relays {
				h.net.Blackhole(fmt.Sprintf("r%d.test:25", i), true)
				h.relays[i].Kill() // its connections; a dial hangs from now on
			}
			begun := time.Now()
			var wg sync.WaitGroup
			var mu sync.Mutex
			var slow, sends int
			for range 100 {
				wg.Go(func() {
					for time.Since(begun) < outage {
						at := time.Now()
						_, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
						var se *smtplb.SendError
						if !errors.As(err, &se) || se.RetryAfter <= 0 {
							t.Errorf("%v", err)
						}
						mu.Lock()
						sends++
						if d := time.Since(at); d > 0 {
							slow++
							if d > 21*time.Second { // the last of the first: a turn of 10 s, behind another
								t.Errorf("a send took %v, %v into the outage: %v", d, at.Sub(begun), err)
							}
						} else if !errors.Is(err, smtplb.ErrNoRelay) {
							t.Errorf("%v", err)
						}
						mu.Unlock()
						time.Sleep(2 * time.Second)
					}
				})
			}
			wg.Wait()
			n := attempts() - before
			t.Logf("checks every %v: %d sends, of which %d waited, %d attempts", checks, sends, slow, n)
			if n > 40+3*10 || slow > 100+3*10 || sends < int(2000*outage/time.Minute) {
				t.Errorf("%d attempts, %d of %d sends waited", n, slow, sends)
			}
			for i := range h.relays {
				h.net.Blackhole(fmt.Sprintf("r%d.test:25", i), false)
				h.relays[i].Restart()
			}
			for end := time.Now().Add(6 * time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
				_, _ = h.pool.Deliver(t.Context(), envelope("x@example.com"))
			}
			h.use(2 * time.Minute)
			for _, r := range h.pool.Stats().Relays {
				if r.State != "up" {
					t.Errorf("long after it %s is %s (%s)", r.Name, r.State, r.Reason)
				}
			}
		})
	}
}

// What counts against a relay, by the rows of the table: what the breaker makes of six messages in a row.
func TestPassiveOutcomes(t *testing.T) {
	mail := func(code int, text string) func(*smtptest.Server) {
		return func(s *smtptest.Server) { s.On(smtptest.Mail).From("a@example.com").Reply(code, text) }
	}
	for _, row := range []struct {
		name   string
		script func(*smtptest.Server)
		faults uint64 // of the first message
		state  string // after six
		cools  bool
	}{
		{"dial", func(s *smtptest.Server) { s.Kill() }, 1, "open", false},
		{"banner", func(s *smtptest.Server) { s.On(smtptest.Banner).Reply(554, "no") }, 1, "open", false},
		{"ehlo", func(s *smtptest.Server) { s.On(smtptest.Ehlo).Drop() }, 1, "open", false},
		{"421 in the middle", mail(421, "4.3.0 closing"), 1, "open", false},
		{"end of file in the middle", func(s *smtptest.Server) { s.On(smtptest.Data).DropFIN() }, 1, "open", false},
		{"our timeout", func(s *smtptest.Server) { s.On(smtptest.Mail).Stall() }, 1, "open", false},
		{"451 4.3.0", mail(451, "4.3.0 system trouble"), 1, "open", false},
		{"452 4.3.1", mail(452, "4.3.1 disk full"), 1, "open", false},
		{"550 5.3.0", mail(550, "5.3.0 system trouble"), 1, "open", false},
		{"535", mail(535, "5.7.8 bad credentials"), 1, "open", false},
		{"432", mail(432, "4.3.2 concurrency"), 0, "up", true},
		{"421 4.3.2", mail(421, "4.3.2 not now"), 0, "up", true},
		{"451 4.3.2", mail(451, "4.3.2 not now"), 0, "up", true},
		{"450 4.7.0 rate", mail(450, "4.7.0 too many messages, slow down"), 0, "up", true},
		{"recipient", func(s *smtptest.Server) { s.On(smtptest.Rcpt).For("x@example.com").Reply(550, "5.1.1 no such user") }, 0, "up", false},
		{"content", func(s *smtptest.Server) { s.On(smtptest.EndOfData).Reply(554, "5.7.1 spam") }, 0, "up", false},
		{"552", mail(552, "5.3.4 too large"), 0, "up", false},
		{"greylisting", func(s *smtptest.Server) {
			s.On(smtptest.Rcpt).For("x@example.com").Reply(451, "4.7.1 Greylisted, try again later")
		}, 0, "up", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var j journal
				h := newHouse(t, 1, func(c *smtplb.Config) { c.Health.Interval = -1; c.Relays[0].Conns.MaxIdle = -1; j.listen(c) })
				defer h.close()
				well := envelope("well@example.com")
				well.From = "well@example.com"
				if _, err := h.pool.Deliver(t.Context(), well); err != nil {
					t.Fatal(err)
				}
				row.script(h.relays[0])
				for i := range 6 {
					_, _ = h.pool.Deliver(t.Context(), envelope("x@example.com"))
					if s := h.pool.Stats().Relays[0]; i == 0 && (s.Faults != row.faults || s.Cooling != row.cools) {
						t.Errorf("%d faults, cooling %v", s.Faults, s.Cooling)
					}
				}
				s := h.pool.Stats().Relays[0]
				if s.State != row.state {
					t.Errorf("it is %s (%s)", s.State, s.Reason)
				}
				if got := j.states("r0"); row.state == "open" && got != "open" || row.state == "up" && got != "" {
					t.Errorf("the hook was told: %s", got)
				}
				if row.name == "535" && (s.Attempts != 2 || time.Until(s.RetryAt) < 4*time.Minute) {
					t.Errorf("%d attempts, until %v", s.Attempts, time.Until(s.RetryAt))
				}
			})
		})
	}
}
