package smtplb_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// Who lost a race has been offered nothing, and may be tried again, by the connection that it made in the meantime.
func TestLoserIsTriedAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h, d := newRaces(t, 2, nil)
		defer h.close()
		d.set(0, way{after: time.Second})
		h.relays[1].On(smtptest.EndOfData).Delay(2*time.Second).Reply(451, "4.3.0 not now")
		r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		if err != nil || attempts(r) != "r0~ r1! r0" || !r.Attempts[2].Reused {
			t.Errorf("%s: %v", attempts(r), err)
		}
	})
}

// Where the first fails while the second still dials, that dial is the beginning of the next attempt; and the last relay that there is has all the time that the caller has left.
func TestNextLegIsTheNextAttempt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h, d := newRaces(t, 2, func(c *smtplb.Config) { c.Retry.Attempts = 5 })
		defer h.close()
		d.set(0, way{after: 2 * time.Second, err: errRefused})
		d.set(1, way{after: 2 * time.Second})
		h.relays[1].On(smtptest.Mail).Delay(12 * time.Second) // more than half of what is left
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		begun := time.Now()
		r, err := h.pool.Deliver(ctx, envelope("x@example.com"))
		if err != nil || attempts(r) != "r0! r1" {
			t.Fatalf("%s: %v", attempts(r), err)
		}
		if a := r.Attempts[1]; a.Start.Sub(begun) != hedgeAfter || a.Timings.Dial != 2*time.Second || a.Timings.Wait != 0 || a.Hedged {
			t.Errorf("%+v, after %v", a, a.Start.Sub(begun))
		}
	})
}

// hedgeAfter is how long a connection is waited for, at the least.
const hedgeAfter = 250 * time.Millisecond

// The state of a relay that lost changes when nobody's send is under way: the hook that hears of it may close the pool, which waits for the dial but not for the hook.
func TestLosersHookCloses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var h *house
		closed := make(chan error, 1)
		h, d := newRaces(t, 2, func(c *smtplb.Config) {
			c.Relays[0].Breaker.Consecutive = 1
			c.Hooks.RelayState = func(e smtplb.RelayEvent) {
				if e.Relay == "r0" && e.State == "open" {
					closed <- h.pool.Close()
				}
			}
		})
		d.set(0, way{after: time.Second, err: errRefused})
		if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil || attempts(r) != "r0~ r1" {
			t.Errorf("%s: %v", attempts(r), err)
		}
		select {
		case err := <-closed:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Hour):
			t.Error("Close waits for the hook that called it")
		}
		synctest.Wait() // who called the hook holds its slot until it is back
		h.close()
	})
}

// What an attempt has to show stays its relay's: where it must dial again for the rest of its recipients, it races nobody.
func TestNoRaceWithSomethingToShow(t *testing.T) {
	for _, refused := range []bool{false, true} { // the first hundred
		bubble(t, func(t *testing.T) {
			h, d := newRaces(t, 2, nil)
			defer h.close()
			breaks := h.relays[0].On(smtptest.Mail).Nth(2)
			if refused {
				h.relays[0].On(smtptest.Rcpt).Times(100).Reply(550, "5.1.1 No such user")
				breaks = h.relays[0].On(smtptest.Rset)
			}
			breaks.Times(1).If(func(*smtptest.Event) bool {
				d.set(0, way{after: time.Second})
				return true
			}).Drop()
			r, err := h.pool.Deliver(t.Context(), envelope(numbered(150)...))
			s, want := h.pool.Stats().Relays, map[bool]int{true: 100}[refused]
			if attempts(r) != "r0" || r.Count(smtplb.Failed) != want || r.Count(smtplb.Accepted) != 150-want || s[0].Failed != uint64(want) || s[0].Redials != 1 || s[1].Opened != 0 {
				t.Errorf("%s: %v: %v: %+v", attempts(r), r, err, s[0])
			}
		})
	}
}

// The second relay of a race is one that is well, free and not held against anything; those before it in the picker's order that are not are passed over.
func TestWhoIsRaced(t *testing.T) {
	for name, spoil := range map[string]func(h *house, wg *sync.WaitGroup){
		"well": func(*house, *sync.WaitGroup) {},
		"busy": func(h *house, wg *sync.WaitGroup) { h.hold(wg, 1, time.Minute) },
		"half-open": func(h *house, _ *sync.WaitGroup) {
			h.relays[1].On(smtptest.Mail).Times(1).Reply(421, "4.3.0 Going down")
			h.prefers("r1")
			time.Sleep(time.Minute)
		},
		"cooling": func(h *house, _ *sync.WaitGroup) {
			h.relays[1].On(smtptest.Mail).Times(1).Reply(450, "4.7.0 Too much mail, slow down")
			h.prefers("r1")
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h, d := newRaces(t, 4, func(c *smtplb.Config) {
					c.Relays[1].Conns.Max = 1
					c.Relays[1].Breaker.Consecutive = 1
					c.Relays[3].Conns.MaxIdle = -1
				})
				defer h.close()
				if err := h.pool.SetAdmin("r0", smtplb.AdminDrain); err != nil {
					t.Fatal(err)
				}
				if err := h.pool.SetAdmin("r2", smtplb.AdminDrain); err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				spoil(h, &wg)
				synctest.Wait()
				h.set("r0", smtplb.AdminReady)
				h.set("r2", smtplb.AdminReady)
				if s := h.state(1); (s == "half-open") != (name == "half-open") || h.pool.Stats().Relays[1].Cooling != (name == "cooling") {
					t.Fatalf("it is %s", s)
				}
				d.set(0, way{after: time.Second})
				want := "r0~ r2"
				if name == "well" {
					want = "r0~ r1"
				}
				if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil || attempts(r) != want {
					t.Errorf("%s: %v", attempts(r), err)
				}
				wg.Wait()
			})
		})
	}
}

// prefers sends a message to a relay that is preferred, whatever becomes of it.
func (h *house) prefers(relay string) {
	e := envelope("y@example.com")
	e.Prefer = relay
	_, _ = h.pool.Deliver(context.Background(), e)
}

// A caller that leaves a race ends both dials, and both slots are free.
func TestCancelledRaceEndsBoth(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h, d := newRaces(t, 2, nil)
		defer h.close()
		d.set(0, way{after: time.Minute})
		d.set(1, way{after: time.Minute})
		ctx, cancel := context.WithCancel(t.Context())
		sent := h.async(ctx, envelope("x@example.com"))
		time.Sleep(time.Second)
		if s := h.pool.Stats(); s.Relays[0].InFlight != 1 || s.Relays[1].InFlight != 1 {
			t.Errorf("%d and %d dial", s.Relays[0].InFlight, s.Relays[1].InFlight)
		}
		cancel()
		<-sent
		synctest.Wait()
		if s := h.pool.Stats(); s.Relays[0].InFlight != 0 || s.Relays[1].InFlight != 0 || h.pool.Background() != 0 {
			t.Errorf("%d and %d dial", s.Relays[0].InFlight, s.Relays[1].InFlight)
		}
	})
}

// rash is a Balancer that panics when it is asked for the second relay of a race.
type rash struct{ inOrder }

func (rash) NewPicker(relays []smtplb.RelayView) smtplb.Picker { return rash{inOrder{len(relays)}} }

func (r rash) Pick(info smtplb.PickInfo) int {
	if info.Attempt > 1 {
		panic("pick")
	}
	return r.inOrder.Pick(info)
}

// A Picker that panics in the middle of a race is the caller's panic. The dial goes on, has its slot for so long, and its connection is kept.
func TestPickerPanicsInARace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h, d := newRaces(t, 2, func(c *smtplb.Config) { c.Balancer = rash{}; c.Relays[0].Conns.MaxIdleTime = -1 })
		defer h.close()
		d.set(0, way{after: time.Second})
		if panics(func() { _, _ = h.pool.Deliver(t.Context(), envelope("x@example.com")) }) == nil {
			t.Error("no panic")
		}
		if s := h.pool.Stats().Relays[0]; s.InFlight != 1 {
			t.Errorf("%d dial", s.InFlight)
		}
		h.quiet()
		if s := h.pool.Stats().Relays[0]; s.Idle != 1 {
			t.Errorf("%+v", s)
		}
		if r := h.takes("y@example.com"); !r.Attempts[0].Reused {
			t.Errorf("%+v", r.Attempts)
		}
	})
}
