package smtplb_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/smtp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// TestUpdateUnderLoad adds, removes and re-weights relays while mail is sent.
func TestUpdateUnderLoad(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const relays, senders, each = 4, 20, 50
		var config smtplb.Config
		h := newHouse(t, relays, func(c *smtplb.Config) {
			for i := range c.Relays {
				c.Relays[i].Conns.Max = 2
			}
			config = *c
		})
		defer h.close()
		h.net.SetLatency(3*time.Millisecond, 3*time.Millisecond)
		var wg sync.WaitGroup
		for s := range senders {
			wg.Go(func() {
				for i := range each {
					to := fmt.Sprintf("u%d-%d@example.com", s, i)
					r, err := h.pool.Deliver(context.Background(), envelope(to))
					if err != nil || outcomes(r) != "accepted" || h.stored(to) != 1 {
						t.Errorf("%s: stored %d times, %v: %v", to, h.stored(to), r, err)
					}
				}
			})
		}
		for i := range 40 {
			time.Sleep(5 * time.Millisecond)
			c := config
			c.Relays = nil
			for j, r := range config.Relays {
				if j == i%relays || j == (i/3)%relays { // the others are gone for this round
					r.Weight = 1 + i%5
					c.Relays = append(c.Relays, r)
				}
			}
			if err := h.pool.Update(c); err != nil {
				t.Error(err)
			}
			s := h.pool.Stats()
			if len(s.Relays) != len(c.Relays) || s.Relays[0].Weight != 1+i%5 {
				t.Errorf("after Update %d: %+v", i, s)
			}
		}
		wg.Wait()
		if s := h.pool.Stats(); s.InFlight != 0 || s.Waiting != 0 {
			t.Errorf("in flight %d, waiting %d", s.InFlight, s.Waiting)
		}
	})
}

func TestUpdateRefusesWhole(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, nil)
		defer h.close()
		before := h.pool.Stats()
		err := h.pool.Update(smtplb.Config{Relays: []smtplb.Relay{{Name: "new", Addr: "new.test:25", TLS: smtplb.TLSNone}, {Weight: -1}}})
		if err == nil || !strings.Contains(err.Error(), "Relays[1].Addr") || !strings.Contains(err.Error(), "Relays[1].Weight") {
			t.Errorf("got %v", err)
		}
		if s := h.pool.Stats(); len(s.Relays) != 2 || s.Relays[0].Name != before.Relays[0].Name {
			t.Errorf("the relays are now %+v", s.Relays)
		}
		if r, err := h.pool.Deliver(t.Context(), envelope("a@example.com")); err != nil {
			t.Errorf("%v: %v", r, err)
		}
	})
}

// tcp is a pool over relays on loopback, with no functions in its configuration.
type tcp struct {
	*testing.T
	relays []*smtptest.Server
	config smtplb.Config
	pool   *smtplb.Pool
}

func newTCP(t *testing.T, n int, user string, opts ...smtptest.Option) *tcp {
	h := &tcp{T: t}
	for i := range n {
		s := smtptest.NewServer(opts...)
		t.Cleanup(s.Close)
		h.relays = append(h.relays, s)
		h.config.Relays = append(h.config.Relays, smtplb.Relay{Name: fmt.Sprintf("r%d", i), Addr: s.Addr, TLS: smtplb.TLSNone})
		if user != "" {
			h.config.Relays[i].Username, h.config.Relays[i].Password = user, "secret"
		}
	}
	pool, err := smtplb.New(h.config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pool.Close() })
	h.pool = pool
	return h
}

// update changes the configuration.
func (h *tcp) update(change func(c *smtplb.Config)) {
	h.Helper()
	h.config.Relays = slices.Clone(h.config.Relays)
	change(&h.config)
	if err := h.pool.Update(h.config); err != nil {
		h.Fatal(err)
	}
}

func (h *tcp) takes(relay string) {
	h.Helper()
	e := envelope("a@example.com")
	e.Prefer = relay
	r, err := h.pool.Deliver(h.Context(), e)
	if err != nil || r.Recipients[0].Relay != relay {
		h.Errorf("%v: %v", r, err)
	}
}

// saw waits until the relay has seen the end of n connections, and returns how many of them ended with a QUIT.
func saw(t *testing.T, s *smtptest.Server, n int) (quits int) {
	t.Helper()
	ended := func() (all []*smtptest.Transcript) {
		for _, x := range s.Transcripts() {
			if text := x.String(); strings.Contains(text, "QUIT") {
				all = append(all, x)
			}
		}
		return all
	}
	for end := time.Now().Add(5 * time.Second); len(ended()) < n && time.Now().Before(end); {
		runtime.Gosched()
	}
	return len(ended())
}

// Connections outlive an Update that changes nothing which they depend on, and no other.
func TestUpdateConnections(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(c *smtplb.Config)
		kept   bool
	}{
		{"nothing", func(*smtplb.Config) {}, true},
		{"weight", func(c *smtplb.Config) { c.Relays[0].Weight = 5 }, true},
		{"tier", func(c *smtplb.Config) { c.Relays[0].Tier = 3 }, true},
		{"limits", func(c *smtplb.Config) { c.Relays[0].Conns.Max = 3 }, true},
		{"breaker", func(c *smtplb.Config) { c.Relays[0].Breaker.Off = true }, true},
		{"balancer, attempts", func(c *smtplb.Config) { c.Balancer, c.Retry.Attempts = smtplb.RoundRobin(), 1 }, true},
		{"riding, chunking", func(c *smtplb.Config) { c.Relays[0].NoRiding, c.Relays[0].Chunking = true, true }, true},
		{"timeouts", func(c *smtplb.Config) { c.Relays[0].Timeouts.Final = time.Minute }, false},
		{"LocalName", func(c *smtplb.Config) { c.LocalName = "client.example" }, false},
		{"LocalAddr", func(c *smtplb.Config) { c.Relays[0].LocalAddr = "127.0.0.1" }, false},
		{"TLSConfig", func(c *smtplb.Config) {
			c.Relays[0].TLSConfig = &tls.Config{}
		}, false},
		{"credentials", func(c *smtplb.Config) { c.Relays[0].Username = "other" }, false},
		{"IgnoreEHLO", func(c *smtplb.Config) { c.Relays[0].IgnoreEHLO = []string{"PIPELINING"} }, false},
		{"resolver", func(c *smtplb.Config) { c.Resolver = net.DefaultResolver }, false},
		{"a Dial function", func(c *smtplb.Config) { c.Dial = (&net.Dialer{}).DialContext }, false},
		{"an Auth function", func(c *smtplb.Config) {
			c.Relays[0].Username, c.Relays[0].Password = "", ""
			c.Relays[0].Auth = func(context.Context, smtplb.AuthRequest) (smtp.Auth, error) {
				return smtp.PlainAuth("", "user", "secret", "127.0.0.1"), nil
			}
		}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := newTCP(t, 1, "user", smtptest.WithAuth("user", "secret"), smtptest.WithAuth("other", "secret"))
			h.takes("r0")
			h.update(test.change)
			h.takes("r0")
			s := h.pool.Stats().Relays[0]
			if test.kept {
				if s.Opened != 1 || s.Reused != 1 {
					t.Errorf("%+v", s)
				}
				return
			}
			if s.Opened != 2 || s.Closed["drained"] != 1 || s.Messages != 2 {
				t.Errorf("%+v", s)
			}
			if n := saw(t, h.relays[0], 1); n != 1 {
				t.Errorf("%d QUITs, in\n%s", n, h.relays[0].Transcript())
			}
		})
	}
}

// A connection in use is drained after its message, and that message is accepted.
func TestUpdateWhileInUse(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(c *smtplb.Config)
		opened uint64
	}{
		{"LocalName", func(c *smtplb.Config) { c.LocalName = "client.example" }, 2},
		{"removed", func(c *smtplb.Config) { c.Relays = c.Relays[1:] }, 1},
		{"renamed", func(c *smtplb.Config) { c.Relays[0].Name = "other" }, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var config smtplb.Config
				h := newHouse(t, 2, func(c *smtplb.Config) { c.Relays[1].Tier, config = 1, *c })
				defer h.close()
				h.relays[0].On(smtptest.EndOfData).Times(1).Delay(time.Second)
				done := make(chan struct{})
				go func() { defer close(done); h.takes("a@example.com") }()
				time.Sleep(time.Second / 2)
				config.Relays = slices.Clone(config.Relays)
				test.change(&config)
				if err := h.pool.Update(config); err != nil {
					t.Fatal(err)
				}
				<-done
				synctest.Wait()
				if x := h.relays[0].Transcripts(); len(x) != 1 || !strings.Contains(x[0].String(), "QUIT") {
					t.Errorf("the relay saw\n%s", h.relays[0].Transcript())
				}
				h.takes("a@example.com")
				if s := h.pool.Stats().Relays[0]; s.Opened != test.opened || s.InFlight != 0 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// What is known of a relay outlives an Update, but what its new credentials may have mended.
func TestUpdateKeepsStanding(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var config smtplb.Config
		h := newHouse(t, 2, func(c *smtplb.Config) {
			c.Relays[0].Breaker.Consecutive, c.Relays[1].Tier = 1, 1
			config = *c
		})
		defer h.close()
		h.relays[0].Kill()
		h.pool.Deliver(t.Context(), envelope("a@example.com"))
		before := h.pool.Stats().Relays[0]
		if before.State != "open" {
			t.Fatalf("%+v", before)
		}
		config.Relays = slices.Clone(config.Relays)
		slices.Reverse(config.Relays) // the same relays in another order; the Dial function makes it try again
		config.Relays[1].Weight = 9
		config.Dial = h.net.DialContext
		time.Sleep(time.Second)
		if err := h.pool.Update(config); err != nil {
			t.Fatal(err)
		}
		after := h.pool.Stats().Relays[1]
		if after.Name != "r0" || after.Trips != 1 || after.Attempts != 1 || after.Weight != 9 || after.Downtime != time.Second {
			t.Errorf("%+v", after)
		}
		time.Sleep(10 * time.Millisecond) // reached in another way, maybe: the next message is its probe
		if s := h.pool.Stats().Relays[1]; s.Breaker != "half-open" {
			t.Errorf("%+v", s)
		}
	})
}

// Refused credentials keep a relay out for 5 minutes; new ones are tried at once. A send that still goes by the old ones is no argument against the new.
func TestUpdateCredentials(t *testing.T) {
	h := newTCP(t, 1, "", smtptest.WithAuth("user", "new"))
	h.update(func(c *smtplb.Config) { c.Relays[0].Username, c.Relays[0].Password = "user", "old" })
	if _, err := h.pool.Deliver(t.Context(), envelope("a@example.com")); !errors.Is(err, smtplb.ErrTemporary) {
		t.Fatal(err)
	}
	if s := h.pool.Stats().Relays[0]; s.State != "open" || time.Until(s.RetryAt) < 3*time.Minute || s.Errors.Auth != 1 {
		t.Fatalf("%+v", s)
	}
	h.update(func(c *smtplb.Config) { c.Relays[0].Password = "new" })
	for end := time.Now().Add(5 * time.Second); h.pool.Stats().Relays[0].Breaker != "half-open" && time.Now().Before(end); {
		runtime.Gosched()
	}
	h.takes("r0")
	h.takes("r0")
	if s := h.pool.Stats().Relays[0]; s.Breaker != "closed" || s.Trips != 1 {
		t.Errorf("%+v", s)
	}
}

// Old credentials that are refused after the Update are held against nobody, and the message is sent with the new ones.
func TestUpdateWhileDialling(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var config smtplb.Config
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Addr, c.Relays[0].TLS, c.Relays[0].Username, c.Relays[0].Password = "127.0.0.1:25", smtplb.TLSNone, "user", "old"
			c.Dial = nil
			c.Relays[0].Dial = func(context.Context, string, string) (net.Conn, error) { panic("not yet") }
			config = *c
		})
		config.Dial = h.net.DialContext
		config.Relays = slices.Clone(config.Relays)
		config.Relays[0].Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return h.net.DialContext(ctx, network, "auth.test:25")
		}
		s := h.net.NewServer("auth.test:25", smtptest.WithAuth("user", "new"))
		defer s.Close()
		defer h.close()
		if err := h.pool.Update(config); err != nil {
			t.Fatal(err)
		}
		s.On(smtptest.Ehlo).Times(1).Delay(time.Second)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if r := h.takes("a@example.com"); relaysTried(r) != "r0 r0" || r.Attempts[0].Stage != smtplb.StageAuth {
				t.Errorf("%v", r)
			}
		}()
		time.Sleep(time.Second / 2)
		config.Relays = slices.Clone(config.Relays)
		config.Relays[0].Password = "new"
		if err := h.pool.Update(config); err != nil {
			t.Fatal(err)
		}
		<-done
		if x := h.pool.Stats().Relays[0]; x.Breaker != "closed" || x.Trips != 0 || x.Attempts != 2 {
			t.Errorf("%+v", x)
		}
	})
}

// A connection that a send opened by the old configuration after the Update is not kept for others.
func TestUpdateLateConnection(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var config smtplb.Config
		h := newHouse(t, 2, func(c *smtplb.Config) { c.Relays, config = c.Relays[:1], *c })
		defer h.close()
		h.relays[0].On(smtptest.Ehlo).Times(1).Delay(time.Second)
		done := make(chan struct{})
		go func() { defer close(done); h.takes("a@example.com") }()
		time.Sleep(time.Second / 2)
		config.Relays = slices.Clone(config.Relays)
		config.Relays[0].Addr = h.relays[1].Addr // r0 is another host now
		if err := h.pool.Update(config); err != nil {
			t.Fatal(err)
		}
		<-done
		synctest.Wait()
		if !strings.Contains(h.relays[0].Transcript(), "QUIT") || len(h.relays[0].Messages()) != 1 {
			t.Errorf("the old host saw\n%s", h.relays[0].Transcript())
		}
		h.takes("a@example.com")
		if len(h.relays[1].Messages()) != 1 {
			t.Error("the message went to the old host")
		}
	})
}

// Who waits moves on when a relay goes, and takes one that comes.
func TestUpdateMovesWaiters(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var config smtplb.Config
		h := newHouse(t, 3, func(c *smtplb.Config) {
			for i := range c.Relays {
				c.Relays[i].Conns.Max, c.Relays[i].NoRiding = 1, true
			}
			config = *c
			c.Relays = c.Relays[:1]
		})
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Delay(5 * time.Minute)
		var wg sync.WaitGroup
		start := time.Now()
		var mu sync.Mutex
		var took []string
		for range 3 {
			wg.Go(func() {
				r := h.takes("a@example.com")
				mu.Lock()
				defer mu.Unlock()
				took = append(took, fmt.Sprint(r.Recipients[0].Relay, " ", time.Since(start)))
			})
			synctest.Wait()
		}
		if n := h.pool.Stats().Waiting; n != 2 {
			t.Fatalf("%d wait", n)
		}
		all := config.Relays
		config.Relays = all[:2] // one more
		h.relays[1].On(smtptest.EndOfData).Times(1).Delay(time.Minute)
		if err := h.pool.Update(config); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := h.pool.Stats().Waiting; n != 1 {
			t.Errorf("%d wait", n)
		}
		config.Relays = all[2:] // the others are gone, with their messages under way
		if err := h.pool.Update(config); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if got := fmt.Sprint(took); got != "[r2 0s r1 1m0s r0 5m0s]" {
			t.Errorf("took %s", got)
		}
	})
}

// Ten thousand Updates that add and remove relays leave nothing behind.
func TestUpdateLeavesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var config smtplb.Config
		h := newHouse(t, 4, func(c *smtplb.Config) { config = *c })
		defer h.close()
		all := config.Relays
		update := func(i int) {
			c := config
			c.Relays = slices.Clone(all[:1+i%len(all)])
			for j := range c.Relays {
				c.Relays[j].Name = fmt.Sprintf("r%d", (i+j)%7)
			}
			if err := h.pool.Update(c); err != nil {
				t.Fatal(err)
			}
		}
		rounds := 10_000
		if raceEnabled {
			rounds = 1_000
		}
		var before uint64
		left := func() uint64 {
			for _, r := range h.relays {
				r.Reset()
			}
			return heap()
		}
		for i := range rounds {
			if update(i); i%10 == 0 {
				h.takes("a@example.com")
			}
			if i == rounds/10 {
				before = left()
			}
		}
		if after := left(); after > before+1<<20 {
			t.Errorf("the heap grew from %d to %d", before, after)
		}
		if s := h.pool.Stats(); len(s.Events) != 50 || len(s.Relays) != 1+(rounds-1)%4 {
			t.Errorf("%d events, %d relays", len(s.Events), len(s.Relays))
		}
	})
}

// Everything at once, in real time, for the race detector; and after Close an Update is refused.
func TestUpdateRaces(t *testing.T) {
	for _, closes := range []bool{true, false} {
		h := newTCP(t, 3, "")
		over := make(chan struct{})
		var wg sync.WaitGroup
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		until := func(f func(i int)) {
			wg.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					f(i)
				}
			})
		}
		for n := range 2 {
			until(func(i int) {
				c := h.config
				c.Relays = slices.Clone(c.Relays[i%3:])
				c.Relays[0].Weight, c.Relays[0].Conns.MaxIdle = 1+i%7+n, 1+i%3
				c.Relays[0].Timeouts.Final = time.Duration(1+i%2) * time.Minute
				if err := h.pool.Update(c); err != nil && !errors.Is(err, smtplb.ErrClosed) {
					t.Error(err)
				}
			})
		}
		until(func(int) {
			if r, err := h.pool.Deliver(context.Background(), envelope("a@example.com")); err != nil && !errors.Is(err, smtplb.ErrClosed) && outcomes(r) != "unknown" {
				t.Errorf("%v: %v", r, err)
			}
		})
		until(func(int) {
			for x := range h.pool.DeliverAll(context.Background(), letters(20, new(int)), smtplb.Bulk{}) {
				if x.Err != nil && !errors.Is(x.Err, smtplb.ErrClosed) && outcomes(x.Receipt) != "unknown" {
					t.Errorf("%v: %v", x.Receipt, x.Err)
				}
			}
		})
		until(func(int) {
			for _, r := range h.pool.Stats().Relays {
				if r.InFlight < 0 || r.Name == "" {
					t.Errorf("%+v", r)
				}
			}
		})
		until(func(int) { h.pool.Explain(context.Background(), envelope("a@example.com")) })
		time.AfterFunc(200*time.Millisecond, func() {
			defer close(over)
			if closes {
				h.pool.Close()
			} else {
				h.pool.Shutdown(context.Background())
			}
		})
		wg.Wait()
		<-over
		if err := h.pool.Update(h.config); !errors.Is(err, smtplb.ErrClosed) {
			t.Errorf("after the end: %v", err)
		}
	}
}
