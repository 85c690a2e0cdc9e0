package smtplb_test

import (
	"context"
	"errors"
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

// What happens while a send is between two steps of its way: a Picker is the caller's code, and stands between the look at the relays and the wait for one.

// meddler is a Balancer that takes the first relay that it may, after it has done something.
type meddler struct {
	inOrder
	first *func()
}

func (m meddler) NewPicker(relays []smtplb.RelayView) smtplb.Picker {
	return meddler{inOrder{len(relays)}, m.first}
}

func (m meddler) Pick(info smtplb.PickInfo) int {
	if f := *m.first; f != nil {
		*m.first = nil
		f()
	}
	return m.inOrder.Pick(info)
}

// Who is about to wait when an Update comes has not missed it: it sees the relays that are there now.
func TestUpdateBeforeTheWait(t *testing.T) {
	for _, gone := range []bool{false, true} { // the relay that it was about to wait for
		bubble(t, func(t *testing.T) {
			var config smtplb.Config
			var first func()
			h := newHouse(t, 2, func(c *smtplb.Config) {
				one(c)
				c.Balancer, c.Health.Interval = meddler{first: &first}, -1
				config = *c
				c.Relays = c.Relays[:1]
			})
			defer h.close()
			var wg sync.WaitGroup
			h.hold(&wg, 0, time.Minute)
			synctest.Wait()
			first = func() {
				if gone {
					config.Relays = config.Relays[1:]
				}
				if err := h.pool.Update(config); err != nil {
					t.Error(err)
				}
			}
			begun := time.Now()
			if r := h.takes("x@example.com"); relaysTried(r) != "r1" || time.Since(begun) != 0 {
				t.Errorf("%v after %v", r, time.Since(begun))
			}
			wg.Wait()
		})
	}
}

// Who has chosen a relay when an Update changes how it is reached opens a connection by the old ways, which carries this message and no other.
func TestUpdateBeforeTheTurn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var config smtplb.Config
		var first func()
		h := newHouse(t, 2, func(c *smtplb.Config) {
			c.Relays = c.Relays[:1]
			c.Balancer, c.Health.Interval = meddler{first: &first}, -1
			config = *c
		})
		defer h.close()
		config.Relays = slices.Clone(config.Relays)
		config.Relays[0].Addr = h.relays[1].Addr // r0 is another host now
		first = func() {
			if err := h.pool.Update(config); err != nil {
				t.Error(err)
			}
		}
		h.takes("a@example.com")
		h.takes("b@example.com")
		time.Sleep(time.Second)
		if n, quits := len(h.relays[0].Messages()), h.relays[0].Stats().Commands["QUIT"]; n != 1 || quits != 1 || len(h.relays[1].Messages()) != 1 {
			t.Errorf("the old host has %d messages and %d QUITs, the new one %d messages", n, quits, len(h.relays[1].Messages()))
		}
		if s := h.pool.Stats().Relays[0]; s.Opened != 2 || s.Idle != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// What a send still does by the old ways says nothing of the new ones: nobody is kept apart from a relay because another host refused the sender, and a refusal for good
// is still the word of all relays where an Update came before the first attempt.
func TestUpdateWhileItRefuses(t *testing.T) {
	for _, ways := range []bool{true, false} { // the Update changes how r0 is reached, or nothing
		bubble(t, func(t *testing.T) {
			var config smtplb.Config
			h := newHouse(t, 2, func(c *smtplb.Config) {
				c.Relays = c.Relays[:1]
				one(c)
				c.Relays[0].NoRiding = true
				c.Balancer, c.Health.Interval = inOrder{}, -1
				config = *c
			})
			defer h.close()
			config.Relays = slices.Clone(config.Relays)
			update := func() {
				t.Helper()
				if err := h.pool.Update(config); err != nil {
					t.Fatal(err)
				}
			}
			if ways {
				h.relays[0].On(smtptest.Mail).Delay(time.Second).Reply(550, "5.7.1 Relaying denied")
				sent := h.async(t.Context(), envelope("x@example.com"))
				time.Sleep(time.Second / 2)
				config.Relays[0].Addr = h.relays[1].Addr
				update()
				if x := <-sent; x.Err != nil || relaysTried(x.Receipt) != "r0 r0" {
					t.Errorf("%v: %v", x.Receipt, x.Err)
				}
				h.wantPlan(envelope("x@example.com"), "r0 100%")
				return
			}
			var wg sync.WaitGroup
			h.hold(&wg, 0, time.Minute)
			synctest.Wait()
			sent := h.async(t.Context(), envelope("x@example.com"))
			synctest.Wait()
			update()
			h.relays[0].On(smtptest.Mail).Reply(550, "5.7.1 Relaying denied")
			if x := <-sent; outcomes(x.Receipt) != "failed" {
				t.Errorf("%v: %v", x.Receipt, x.Err)
			}
			wg.Wait()
		})
	}
}

// closer is a Balancer whose NewPicker closes the pool, once it has one.
type closer struct {
	smtplb.Balancer
	pool **smtplb.Pool
}

func (c closer) NewPicker(relays []smtplb.RelayView) smtplb.Picker {
	if *c.pool != nil {
		(*c.pool).Close()
	}
	return c.Balancer.NewPicker(relays)
}

// An Update that Close has overtaken says so.
func TestCloseDuringUpdate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var pool *smtplb.Pool
		var config smtplb.Config
		h := newHouse(t, 2, func(c *smtplb.Config) {
			c.Balancer = closer{smtplb.RoundRobin(), &pool}
			config = *c
			c.Relays = c.Relays[:1]
		})
		defer h.close()
		pool = h.pool
		if err := pool.Update(config); !errors.Is(err, smtplb.ErrClosed) {
			t.Error(err)
		}
	})
}

// Close waits for a lookup, and that not for an Update which waits for Close.
func TestCloseDuringUpdateAndLookup(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var pool *smtplb.Pool
		var config smtplb.Config
		h := newDomain(t, 1, &zone{hang: true}, func(c *smtplb.Config) {
			own := c.Relays[0]
			own.Name, own.Addr = "own", "r0.test:587"
			c.Relays, c.Balancer = append(c.Relays, own), closer{smtplb.RoundRobin(), &pool}
			config = *c
		})
		defer h.close()
		sent := h.async(t.Context(), envelope("x@example.com"))
		synctest.Wait() // DNS is asked
		pool = h.pool
		if err := pool.Update(config); !errors.Is(err, smtplb.ErrClosed) {
			t.Error(err)
		}
		if x := <-sent; !errors.Is(x.Err, smtplb.ErrClosed) {
			t.Errorf("%v: %v", x.Receipt, x.Err)
		}
	})
}

// Where the pool was closed meanwhile, that is why there is no relay, and not what else is wrong with them.
func TestClosedIsNoLackOfRelays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var h *house
		h = newHouse(t, 2, func(c *smtplb.Config) {
			c.Balancer = inOrder{}
			c.Hooks.AttemptStart = func(context.Context, smtplb.AttemptInfo) func(smtplb.Attempt) {
				return func(smtplb.Attempt) { h.pool.Close() }
			}
		})
		defer h.close()
		h.relays[0].On(smtptest.Mail).Reply(451, "4.3.0 not now")
		if err := h.pool.SetAdmin("r1", smtplb.AdminDrain); err != nil {
			t.Fatal(err)
		}
		r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		if !errors.Is(err, smtplb.ErrClosed) || errors.Is(err, smtplb.ErrNoRelay) || strings.Contains(err.Error(), "drain") || outcomes(r) != "deferred" || relaysTried(r) != "r0" {
			t.Errorf("%v: %v", r, err)
		}
	})
}

// Without checks nothing that they have said keeps mail from a relay.
func TestUpdateOfHealth(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var config smtplb.Config
		h := newHouse(t, 2, func(c *smtplb.Config) {
			spare(c)
			c.Health.SlowStart = -1
			config = *c
		})
		defer h.close()
		h.relays[1].Kill()
		h.use(time.Minute)
		if s := h.state(1); s != "down" {
			t.Fatalf("it is %s", s)
		}
		config.Health.Interval = -1
		if err := h.pool.Update(config); err != nil {
			t.Fatal(err)
		}
		if s := h.state(1); s != "starting" { // nobody asks any more
			t.Errorf("it is %s", s)
		}
	})
}

// A domain for which DNS names nobody may have relays that take what the others refuse for good: also where they are all that was tried, as there were no more attempts.
func TestDomainUnnamedIsNoRefusal(t *testing.T) {
	for _, attempts := range []int{0, 1} {
		for _, named := range []bool{false, true} {
			t.Run(fmt.Sprint(attempts, named), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					z := &zone{}
					if named {
						z.set("submission", record(1, 0, 0))
					}
					h := newDomain(t, 2, z, func(c *smtplb.Config) {
						own := c.Relays[0]
						own.Name, own.Addr, own.TLSConfig = "own", "r0.test:587", own.TLSConfig.Clone()
						own.TLSConfig.ServerName = "example.com"
						c.Relays, c.Retry.Attempts = append(c.Relays, own), attempts
					})
					defer h.close()
					for _, r := range h.relays {
						r.On(smtptest.Mail).Reply(550, "5.7.1 Relaying denied")
					}
					want := "deferred"
					if named && attempts == 0 {
						want = "failed" // by all that there are
					}
					if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); outcomes(r) != want || errors.Is(err, smtplb.ErrPermanent) != (want == "failed") {
						t.Errorf("%v: %v", r, err)
					}
				})
			})
		}
	}
}

// Relays that come and go while a message is under way may not all have had their say: then what some refuse for good is not failed.
func TestRefusedByThoseThatAreLeft(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var config smtplb.Config
		var h *house
		h = newHouse(t, 2, func(c *smtplb.Config) {
			c.Balancer = inOrder{}
			c.Hooks.AttemptStart = func(context.Context, smtplb.AttemptInfo) func(smtplb.Attempt) {
				return func(smtplb.Attempt) { h.update(config) }
			}
			config = *c
			config.Relays = c.Relays[:1]
		})
		defer h.close()
		h.relays[0].On(smtptest.Mail).Reply(550, "5.7.1 Relaying denied")
		if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); outcomes(r) != "deferred" || h.relays[1].Stats().Connections != 0 {
			t.Errorf("%v: %v", r, err)
		}
	})
}

// A reply that can't be one to a message, in its place, leaves the message unknown, and no other relay gets it.
func TestMessageAnsweredOutOfStep(t *testing.T) {
	for _, again := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 2, func(c *smtplb.Config) { c.Balancer = inOrder{} })
			defer h.close()
			h.relays[0].On(smtptest.EndOfData).Times(1).Reply(354, "Go ahead")
			e := envelope("x@example.com")
			e.AtLeastOnce = again
			r, err := h.pool.Deliver(t.Context(), e)
			want, tried := "unknown", "r0"
			if again {
				want, tried = "accepted", "r0 r0" // it can recognise the message
			}
			if outcomes(r) != want || relaysTried(r) != tried || (err == nil) != again || h.relays[1].Stats().Connections != 0 {
				t.Errorf("%v: %v", r, err)
			}
			if s := h.pool.Stats().Relays[0]; s.Faults != 1 || s.Unknown != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// A relay that has had its second try of a message has had it, also when an Update came between the two.
func TestUpdateBeforeASecondTry(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var config smtplb.Config
		var h *house
		h = newHouse(t, 2, func(c *smtplb.Config) {
			c.Balancer, c.Retry.Attempts = inOrder{}, 5
			c.Hooks.AttemptStart = func(_ context.Context, a smtplb.AttemptInfo) func(smtplb.Attempt) {
				return func(smtplb.Attempt) {
					if a.Number == 1 {
						h.update(config)
					}
				}
			}
			config = *c
		})
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).DropUnstored()
		e := envelope("x@example.com")
		e.AtLeastOnce = true
		if r, err := h.pool.Deliver(t.Context(), e); err != nil || relaysTried(r) != "r0 r0 r1" {
			t.Errorf("%v: %v", r, err)
		}
	})
}

// Close ends those who wait for a relay, and says why.
func TestCloseEndsTheWait(t *testing.T) {
	for _, wait := range []time.Duration{0, time.Minute} { // Config.MaxWait
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, func(c *smtplb.Config) { one(c); c.MaxWait = wait })
			defer h.close()
			h.relays[0].On(smtptest.Mail).Delay(10 * time.Second)
			first := h.async(t.Context(), envelope("x@example.com"))
			time.Sleep(time.Second)
			second := h.async(t.Context(), envelope("x@example.com"))
			time.Sleep(time.Second)
			h.pool.Close()
			for _, sent := range []<-chan smtplb.Result{first, second} {
				if x := <-sent; !errors.Is(x.Err, smtplb.ErrClosed) || outcomes(x.Receipt) != "deferred" {
					t.Errorf("%v: %v", x.Receipt, x.Err)
				}
			}
		})
	}
}
