package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// way is what becomes of a dial.
type way struct {
	after  time.Duration
	err    error
	deaf   bool // it doesn't end with its context
	panics bool
	exits  bool
}

// dialler dials a house's relays, each in its way.
type dialler struct {
	net *smtptest.Network

	mu    sync.Mutex
	ways  map[string]way // by address; others at once
	dials map[string]int
}

func (d *dialler) set(relay int, w way) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ways[fmt.Sprintf("r%d.test:25", relay)] = w
}

func (d *dialler) total() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range d.dials {
		n += k
	}
	return n
}

func (d *dialler) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d.mu.Lock()
	w := d.ways[addr]
	d.dials[addr]++
	d.mu.Unlock()
	if w.after > 0 {
		done := ctx.Done()
		if w.deaf {
			done = nil
		}
		timer := time.NewTimer(w.after)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-done:
			return nil, ctx.Err()
		}
	}
	switch {
	case w.panics:
		panic("dial")
	case w.exits:
		runtime.Goexit()
	case w.err != nil:
		return nil, w.err
	}
	return d.net.DialContext(ctx, network, addr)
}

// inOrder is a Balancer that takes the first relay that it may.
type inOrder struct{ n int }

func (inOrder) NewPicker(relays []smtplb.RelayView) smtplb.Picker { return inOrder{len(relays)} }

func (o inOrder) Pick(info smtplb.PickInfo) int {
	for i := range o.n {
		if !info.Skip.Has(i) {
			return i
		}
	}
	return -1
}

// newRaces is a house whose relays are taken in their order, and dialled in ways that can be set.
func newRaces(t *testing.T, n int, change func(c *smtplb.Config)) (*house, *dialler) {
	d := &dialler{ways: map[string]way{}, dials: map[string]int{}}
	h := newHouse(t, n, func(c *smtplb.Config) {
		c.Health.Interval = -1 // what is dialled is counted
		c.Balancer = inOrder{}
		c.Dial = d.dial
		if change != nil {
			change(c)
		}
	})
	d.net = h.net
	return h, d
}

// quiet waits until every race is over, and checks that every slot was given back, once.
func (h *house) quiet() {
	h.Helper()
	time.Sleep(2 * time.Minute)
	synctest.Wait()
	for _, r := range h.pool.Stats().Relays {
		if r.InFlight != 0 || r.Waiting != 0 {
			h.Errorf("%s: %d in flight, %d waiting", r.Name, r.InFlight, r.Waiting)
		}
	}
}

// attempts is a receipt's attempts: the relay, "~" where the race was lost, "!" where it failed.
func attempts(r *smtplb.Receipt) string {
	var s []string
	for _, a := range r.Attempts {
		x := a.Relay
		if a.Hedged {
			x += "~"
		}
		if a.Err != nil {
			x += "!"
		}
		s = append(s, x)
	}
	return strings.Join(s, " ")
}

var errRefused = errors.New("connection refused")

func TestHedge(t *testing.T) {
	const slow = 2 * time.Second
	for _, test := range []struct {
		name     string
		a, b     way
		attempts string
		took     time.Duration
		faults   string // of r0, r1, r2
		idle     string
	}{
		{"in time", way{after: 200 * time.Millisecond}, way{}, "r0", 200 * time.Millisecond, "0 0 0", "1 0 0"},
		{"other at once", way{after: slow}, way{}, "r0~ r1", 250 * time.Millisecond, "0 0 0", "1 1 0"},
		{"other first", way{after: slow}, way{after: time.Second}, "r0~ r1", 1250 * time.Millisecond, "0 0 0", "1 1 0"},
		{"own first", way{after: slow}, way{after: 5 * time.Second}, "r0", slow, "0 0 0", "1 1 0"},
		{"other fails", way{after: slow}, way{err: errRefused}, "r1~! r0", slow, "0 1 0", "1 0 0"},
		{"own fails first", way{after: slow, err: errRefused}, way{after: slow}, "r0! r1", slow + 250*time.Millisecond, "1 0 0", "0 1 0"},
		{"both fail, own first", way{after: slow, err: errRefused}, way{after: slow, err: errRefused}, "r0! r1! r2", slow + 250*time.Millisecond, "1 1 0", "0 0 1"},
		{"both fail, other first", way{after: slow, err: errRefused}, way{err: errRefused}, "r1~! r0! r2", slow, "1 1 0", "0 0 1"},
		{"loser fails", way{after: slow, err: errRefused}, way{}, "r0~ r1", 250 * time.Millisecond, "1 0 0", "0 1 0"},
		{"losing other fails", way{after: slow}, way{after: slow, err: errRefused}, "r0", slow, "0 1 0", "1 0 0"},
		{"loser hangs", way{after: time.Hour}, way{}, "r0~ r1", 250 * time.Millisecond, "1 0 0", "0 1 0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var began, ended []string
				h, d := newRaces(t, 3, func(c *smtplb.Config) {
					for i := range c.Relays {
						c.Relays[i].Conns.MaxIdleTime = -1
						c.Relays[i].Breaker.Consecutive = 2
					}
					c.Hooks.AttemptStart = func(_ context.Context, a smtplb.AttemptInfo) func(smtplb.Attempt) {
						began = append(began, a.Relay)
						return func(a smtplb.Attempt) { ended = append(ended, a.Relay) }
					}
				})
				defer h.close()
				d.set(0, test.a)
				d.set(1, test.b)
				begun := time.Now()
				r, err := h.pool.Deliver(context.WithValue(t.Context(), way{}, 1), envelope("x@example.com"))
				if took := time.Since(begun); err != nil || attempts(r) != test.attempts || took != test.took {
					t.Errorf("%s after %v, want %s after %v: %v", attempts(r), took, test.attempts, test.took, err)
				}
				h.quiet()
				if strings.Join(ended, " ") != relaysTried(r) || len(began) != len(ended) {
					t.Errorf("hooks saw %v begin and %v end, the receipt has %s", began, ended, relaysTried(r))
				}
				var faults, idle []string
				tried := uint64(0)
				for _, s := range h.pool.Stats().Relays {
					faults = append(faults, fmt.Sprint(s.Faults))
					idle = append(idle, fmt.Sprint(s.Idle))
					tried += s.Attempts
				}
				if got := strings.Join(faults, " "); got != test.faults {
					t.Errorf("faults %s, want %s", got, test.faults)
				}
				if got := strings.Join(idle, " "); got != test.idle {
					t.Errorf("idle connections %s, want %s", got, test.idle)
				}
				counted := uint64(0)
				for _, a := range r.Attempts {
					if !a.Hedged || a.Err != nil {
						counted++
					}
					if a.Hedged && a.Err == nil && a.Offered != 0 {
						t.Errorf("%+v", a)
					}
				}
				if tried != counted {
					t.Errorf("the relays count %d attempts, the receipt %d", tried, counted)
				}
				if h.stored("x@example.com") != 1 {
					t.Errorf("stored %d times", h.stored("x@example.com"))
				}
				// One more fault opens a breaker that has counted one; a loser's success has not reset it.
				for i, s := range h.pool.Stats().Relays {
					if s.Breaker != "closed" {
						t.Errorf("r%d is %s", i, s.State)
					}
				}
				// The loser's connection is the next message's.
				if strings.HasPrefix(test.idle, "1") {
					before := d.total()
					r, err := h.pool.Deliver(t.Context(), envelope("y@example.com"))
					if err != nil || attempts(r) != "r0" || !r.Attempts[0].Reused || d.total() != before {
						t.Errorf("the next message: %+v: %v", r.Attempts, err)
					}
				}
			})
		})
	}
}

// A loser's fault is one of those in a row that open its breaker; its success is none.
func TestLosersAreCounted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h, d := newRaces(t, 2, func(c *smtplb.Config) {
			c.Relays[0].Breaker.Consecutive = 3
			c.Relays[1].Conns.MaxMessages = 1
		})
		defer h.close()
		for i, w := range []way{{after: time.Second, err: errRefused}, {after: time.Second, err: errRefused}, {after: time.Second}, {after: time.Second, err: errRefused}} {
			d.set(0, w)
			if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil || attempts(r) != "r0~ r1" {
				t.Fatalf("message %d: %s: %v", i, attempts(r), err)
			}
			h.quiet()
			want := "closed"
			if i == 3 {
				want = "open"
			}
			if s := h.pool.Stats().Relays[0]; s.Breaker != want && i < 3 || i == 3 && s.Trips != 1 {
				t.Errorf("after message %d: %+v", i, s)
			}
		}
	})
}

// Wherever a connection is slow to come about, the messages are not.
func TestHedgeGreyRelay(t *testing.T) {
	t.Parallel()
	for name, grey := range map[string]func(h *house, d *dialler){
		"tcp":    func(h *house, d *dialler) { d.set(0, way{after: 2 * time.Second}) },
		"banner": func(h *house, d *dialler) { h.relays[0].On(smtptest.Banner).Delay(2 * time.Second) },
		"ehlo":   func(h *house, d *dialler) { h.relays[0].On(smtptest.Ehlo).Delay(2 * time.Second) },
		"tls":    func(h *house, d *dialler) { h.relays[0].On(smtptest.StartTLS).Delay(2 * time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				d := &dialler{ways: map[string]way{}, dials: map[string]int{}}
				h := newHouse(t, 3, nil, smtptest.WithTLS())
				defer h.close()
				h.pool.Close()
				d.net = h.net
				c := smtplb.Config{Dial: d.dial, Health: smtplb.Health{Interval: -1}}
				for i, s := range h.relays {
					trust := s.ClientTLS()
					trust.CurvePreferences = cheap
					c.Relays = append(c.Relays, smtplb.Relay{Name: fmt.Sprint("r", i), Addr: fmt.Sprintf("r%d.test:25", i), TLSConfig: trust})
				}
				h.pool, _ = smtplb.New(c)
				h.net.SetLatency(5*time.Millisecond, 5*time.Millisecond)
				grey(h, d)
				var wg sync.WaitGroup
				var mu sync.Mutex
				worst, lost := time.Duration(0), 0
				for s := range 9 {
					wg.Go(func() {
						for i := range 100 {
							time.Sleep(30 * time.Millisecond)
							begun := time.Now()
							r, err := h.pool.Deliver(context.Background(), envelope(fmt.Sprintf("u%d-%d@example.com", s, i)))
							mu.Lock()
							worst = max(worst, time.Since(begun))
							lost += strings.Count(attempts(r), "~")
							mu.Unlock()
							if err != nil {
								t.Error(err)
							}
						}
					})
				}
				wg.Wait()
				h.quiet()
				s := h.pool.Stats().Relays[0]
				t.Logf("900 messages, one relay of three 2 s slow to connect at %s: the slowest took %v, %d races were lost, %d connections to it of which %d were closed unused", name, worst, lost, s.Opened, s.Opened-min(s.Opened, s.Accepted))
				if worst > 250*time.Millisecond+150*time.Millisecond {
					t.Errorf("a message took %v", worst)
				}
				if lost == 0 || s.Accepted == 0 || s.Faults != 0 {
					t.Errorf("%d races were lost; %+v", lost, s)
				}
			})
		})
	}
}

// Extra dials are at most one in twenty, and ten.
func TestHedgesAreFew(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		senders, each := 25, 400
		if !smtplb.Thorough() {
			each = 100
		}
		h, d := newRaces(t, 3, func(c *smtplb.Config) {
			c.Balancer = nil
			for i := range c.Relays {
				c.Relays[i].Conns = smtplb.Conns{MaxMessages: 1, MaxIdle: -1} // a dial for each message
			}
		})
		defer h.close()
		d.set(0, way{after: 2 * time.Second})
		var wg sync.WaitGroup
		for s := range senders {
			wg.Go(func() {
				for i := range each {
					if r, err := h.pool.Deliver(context.Background(), envelope(fmt.Sprintf("u%d-%d@example.com", s, i))); err != nil {
						t.Errorf("%s: %v", attempts(r), err)
					}
				}
			})
		}
		wg.Wait()
		h.quiet()
		t.Logf("%d messages, a connection each, a third of them slow: %d dials", senders*each, d.total())
		if n := d.total(); n <= senders*each || n > senders*each*105/100+10 {
			t.Errorf("%d dials for %d messages", n, senders*each)
		}
	})
}

// What is worth more than a message's time isn't raced.
func TestNotHedged(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h, d := newRaces(t, 3, func(c *smtplb.Config) {
			for i := range c.Relays {
				c.Relays[i].Conns.MaxIdle = -1
			}
			c.Relays[0].Breaker = smtplb.Breaker{Consecutive: 1}
			c.Relays[2].Tier = 1
		})
		defer h.close()
		d.set(0, way{after: time.Second})
		send := func(what string, e *smtplb.Envelope, want string) {
			t.Helper()
			if r, err := h.pool.Deliver(t.Context(), e); err != nil || attempts(r) != want {
				t.Errorf("%s: %s, want %s: %v", what, attempts(r), want, err)
			}
			h.quiet()
		}
		send("raced", envelope("x@example.com"), "r0~ r1")
		e := envelope("x@example.com")
		e.Prefer = "r0"
		send("Prefer", e, "r0")
		h.relays[0].On(smtptest.EndOfData).Times(1).DropUnstored()
		d.set(0, way{})
		e = envelope("x@example.com")
		e.AtLeastOnce = true
		stop := time.AfterFunc(time.Millisecond, func() { d.set(0, way{after: time.Second}) })
		h.net.SetLatency(2*time.Millisecond, 2*time.Millisecond)
		defer stop.Stop()
		// Its breaker is open by now, so it goes elsewhere; the next is the probe.
		h.pool.Deliver(t.Context(), e)
		h.net.SetLatency(0, 0)
		h.quiet()
		if s := h.pool.Stats().Relays[0]; s.Breaker != "half-open" {
			t.Fatalf("%+v", s)
		}
		send("probe", envelope("x@example.com"), "r0")
		d.set(1, way{err: errRefused})
		if c := h.pool.Stats().Relays[2].Attempts; c != 0 {
			t.Errorf("another tier was asked %d times", c)
		}
	})
}

// A Retry.Attempts of 1 leaves nothing for a race.
func TestNotHedgedWithoutAnAttemptToSpare(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h, d := newRaces(t, 2, func(c *smtplb.Config) { c.Retry.Attempts = 1 })
		defer h.close()
		d.set(0, way{after: time.Second})
		if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil || attempts(r) != "r0" || d.total() != 1 {
			t.Errorf("%s: %v", attempts(r), err)
		}
	})
}

// The caller leaves in the middle of a race, at once, whatever Dial does.
func TestCancelledRace(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		for name, leave := range map[string]func(ctx context.Context) (context.Context, context.CancelFunc){
			"cancel": func(ctx context.Context) (context.Context, context.CancelFunc) {
				ctx, cancel := context.WithCancel(ctx)
				time.AfterFunc(time.Second, cancel)
				return ctx, cancel
			},
			"deadline": func(ctx context.Context) (context.Context, context.CancelFunc) {
				return context.WithTimeout(ctx, time.Second)
			},
		} {
			t.Run(fmt.Sprint(name, deaf), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					h, d := newRaces(t, 2, func(c *smtplb.Config) { c.Retry.Attempts = -1 })
					defer h.close()
					d.set(0, way{after: 40 * time.Second, deaf: deaf})
					d.set(1, way{after: 40 * time.Second, deaf: deaf})
					ctx, cancel := leave(t.Context())
					defer cancel()
					begun := time.Now()
					r, err := h.pool.Deliver(ctx, envelope("x@example.com"))
					took := time.Since(begun)
					want := context.Canceled
					if name == "deadline" {
						want = context.DeadlineExceeded
					}
					if !errors.Is(err, want) || !errors.Is(err, smtplb.ErrTemporary) || took > 1300*time.Millisecond {
						t.Errorf("%s after %v: %v", attempts(r), took, err)
					}
					h.quiet()
					for _, s := range h.pool.Stats().Relays {
						if s.Faults != 0 {
							t.Errorf("%+v", s)
						}
					}
				})
			})
		}
	}
}

// The caller leaves when the race is over: the loser's connection is made all the same.
func TestCallerLeavesTheLoser(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h, d := newRaces(t, 2, func(c *smtplb.Config) { c.Relays[0].Conns.MaxIdleTime = -1 })
		defer h.close()
		d.set(0, way{after: 2 * time.Second})
		ctx, cancel := context.WithCancel(t.Context())
		if r, err := h.pool.Deliver(ctx, envelope("x@example.com")); err != nil || attempts(r) != "r0~ r1" {
			t.Errorf("%s: %v", attempts(r), err)
		}
		cancel()
		h.quiet()
		if s := h.pool.Stats().Relays[0]; s.Idle != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// The pool ends in the middle of a race, or while a loser dials.
func TestPoolEndsDuringARace(t *testing.T) {
	for name, b := range map[string]way{"race": {after: time.Hour}, "loser": {}} {
		for _, shutdown := range []bool{false, true} {
			t.Run(fmt.Sprint(name, shutdown), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					h, d := newRaces(t, 2, nil)
					defer h.close()
					d.set(0, way{after: 9 * time.Second})
					d.set(1, b)
					var wg sync.WaitGroup
					wg.Go(func() {
						r, err := h.pool.Deliver(context.Background(), envelope("x@example.com"))
						switch {
						case name == "race" && !shutdown:
							if !errors.Is(err, smtplb.ErrClosed) || outcomes(r) != "deferred" {
								t.Errorf("%s: %v", attempts(r), err)
							}
						case err != nil:
							t.Errorf("%s: %v", attempts(r), err)
						}
					})
					time.Sleep(time.Second)
					begun := time.Now()
					if shutdown {
						h.pool.Shutdown(context.Background())
					} else {
						h.pool.Close()
					}
					took := time.Since(begun)
					if want := 8 * time.Second; name == "race" && shutdown && took != want || (name == "loser" || !shutdown) && took > 0 {
						t.Errorf("took %v", took)
					}
					wg.Wait()
					for _, s := range h.pool.Stats().Relays {
						if s.InFlight != 0 || s.Idle != 0 || s.Faults != 0 {
							t.Errorf("%+v", s)
						}
					}
				})
			})
		}
	}
}

// Dial is the caller's code.
func TestDialPanicsInARace(t *testing.T) {
	for _, test := range []struct {
		name   string
		a, b   way
		throws bool // into the sender's goroutine
	}{
		{"own", way{panics: true}, way{}, true},
		{"own, raced", way{after: time.Second, panics: true}, way{after: time.Hour}, true},
		{"other", way{after: time.Second}, way{panics: true}, true},
		{"loser", way{after: time.Second, panics: true}, way{}, false},
	} {
		for _, exits := range []bool{false, true} {
			t.Run(fmt.Sprint(test.name, exits), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					h, d := newRaces(t, 2, nil)
					defer h.close()
					for i, w := range []way{test.a, test.b} {
						w.exits, w.panics = w.panics && exits, w.panics && !exits
						d.set(i, w)
					}
					returned := false
					var thrown any
					var wg sync.WaitGroup
					wg.Go(func() {
						thrown = panics(func() {
							h.pool.Deliver(context.Background(), envelope("x@example.com"))
							returned = true
						})
					})
					wg.Wait()
					if returned == test.throws || (thrown != nil) != (test.throws && !exits) {
						t.Errorf("returned: %v, panicked with %v", returned, thrown)
					}
					h.quiet()
					d.set(0, way{})
					d.set(1, way{})
					if n := h.pool.Stats().InFlight; n != 0 {
						t.Errorf("%d sends in flight", n)
					}
					if r, err := h.pool.Deliver(t.Context(), envelope("y@example.com")); err != nil || attempts(r) != "r0" {
						t.Errorf("%s: %v", attempts(r), err)
					}
				})
			})
		}
	}
}

// A relay that went away takes its idle connections along, and doesn't answer: the message doesn't wait for it.
func TestStaleConnectionIsHedged(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h, d := newRaces(t, 2, nil)
		defer h.close()
		if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
			t.Fatal(err)
		}
		h.relays[0].On(smtptest.Mail).Drop()
		d.set(0, way{after: time.Hour})
		begun := time.Now()
		r, err := h.pool.Deliver(t.Context(), envelope("y@example.com"))
		if took := time.Since(begun); err != nil || attempts(r) != "r0~ r1" || took > 300*time.Millisecond || !r.Attempts[0].Redialed {
			t.Errorf("%s after %v: %v", attempts(r), took, err)
		}
		h.quiet()
	})
}

// A connection that was kept before its first use, and that the relay has closed since, is a stale one.
func TestLoserGoesStale(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h, d := newRaces(t, 2, func(c *smtplb.Config) { c.Relays[0].Conns.MaxIdleTime = -1 })
		defer h.close()
		d.set(0, way{after: time.Second})
		if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
			t.Fatal(err)
		}
		h.quiet()
		d.set(0, way{})
		h.relays[0].On(smtptest.Mail).Times(1).Reply(421, "4.4.2 idle for too long")
		r, err := h.pool.Deliver(t.Context(), envelope("y@example.com"))
		if s := h.pool.Stats().Relays[0]; err != nil || attempts(r) != "r0" || !r.Attempts[0].Redialed || s.Faults != 0 {
			t.Errorf("%s: %v: %+v", attempts(r), err, s)
		}
	})
}

// Dial sees the caller's values and deadline.
func TestRacingDialHasTheCallersContext(t *testing.T) {
	type key struct{}
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) {
			dial := c.Dial
			c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if d, ok := ctx.Deadline(); ctx.Value(key{}) != "v" || !ok || time.Until(d) > 3*time.Second {
					t.Errorf("value %v, deadline %v %v", ctx.Value(key{}), d, ok)
				}
				return dial(ctx, network, addr)
			}
		})
		defer h.close()
		ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), key{}, "v"), 3*time.Second)
		defer cancel()
		if _, err := h.pool.Deliver(ctx, envelope("x@example.com")); err != nil {
			t.Error(err)
		}
	})
}

// Whatever happens to races, every slot comes back, every message has a true outcome, and no fault is counted twice.
func TestRandomRaces(t *testing.T) {
	t.Parallel()
	seeds := uint64(100)
	if !smtplb.Thorough() {
		seeds = 30
	}
	for seed := range seeds {
		bubble(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 4))
			h, d := newRaces(t, 4, func(c *smtplb.Config) {
				if seed%2 == 0 {
					c.Balancer = nil
				}
				for i := range c.Relays {
					c.Relays[i].Conns = smtplb.Conns{Max: 2, MaxMessages: 1 + rnd.IntN(3)}
					c.Relays[i].Breaker = smtplb.Breaker{OpenFor: time.Second, MaxOpen: 2 * time.Second}
				}
			})
			defer h.close()
			var wg sync.WaitGroup
			for s := range 8 {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(seed, uint64(100+s)))
					for i := range 8 {
						ctx, cancel := context.WithCancel(context.Background())
						if rnd.IntN(3) == 0 {
							time.AfterFunc(time.Duration(rnd.IntN(3000))*time.Millisecond, cancel)
						} else if rnd.IntN(3) == 0 {
							ctx, cancel = context.WithTimeout(context.Background(), time.Duration(rnd.IntN(8000))*time.Millisecond)
						}
						to := fmt.Sprintf("u%d-%d@example.com", s, i)
						r, err := h.pool.Deliver(ctx, envelope(to))
						cancel()
						if n := h.stored(to); outcomes(r) == "accepted" && n != 1 || outcomes(r) == "deferred" && n != 0 || n > 1 || (err == nil) != (outcomes(r) == "accepted") {
							t.Errorf("seed %d, %s: stored %d times, %s, %s: %v", seed, to, n, outcomes(r), attempts(r), err)
						}
						seen := map[string]bool{}
						for _, a := range r.Attempts {
							if lost := a.Hedged && a.Err == nil; !lost {
								if seen[a.Relay] {
									t.Errorf("seed %d, %s: %s", seed, to, attempts(r))
								}
								seen[a.Relay] = true
							}
						}
						if len(seen) > 3 {
							t.Errorf("seed %d, %s: %s", seed, to, attempts(r))
						}
					}
				})
			}
			ends := rnd.IntN(4) == 0
			for range 30 {
				w := way{deaf: rnd.IntN(8) == 0, after: time.Duration(rnd.IntN(4)*rnd.IntN(1000)) * time.Millisecond}
				if rnd.IntN(4) == 0 {
					w.err = errRefused
				}
				d.set(rnd.IntN(4), w)
				time.Sleep(time.Duration(rnd.IntN(500)) * time.Millisecond)
			}
			if ends {
				h.pool.Close()
			}
			wg.Wait()
			h.quiet()
		})
	}
}
