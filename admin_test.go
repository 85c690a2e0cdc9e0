package smtplb_test

import (
	"context"
	"encoding/json"
	"errors"
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
	"github.com/smtplb/smtplb/smtptest"
)

func TestAdminStateAsText(t *testing.T) {
	all := []smtplb.AdminState{smtplb.AdminReady, smtplb.AdminDrain, smtplb.AdminMaintenance}
	text, err := json.Marshal(all)
	var back []smtplb.AdminState
	if err != nil || string(text) != `["ready","drain","maintenance"]` || json.Unmarshal(text, &back) != nil || fmt.Sprint(back) != fmt.Sprint(all) {
		t.Errorf("%s, %v, %v", text, back, err)
	}
	if _, err := json.Marshal(smtplb.AdminState(3)); err == nil || smtplb.AdminState(3).String() != "AdminState(3)" {
		t.Errorf("%v: %v", smtplb.AdminState(3), err)
	}
	if err := json.Unmarshal([]byte(`"Ready"`), &all[0]); err == nil {
		t.Error("Ready was taken for ready")
	}
}

// A relay that is drained gets no new mail; what is under way ends, who waits goes elsewhere, its connections get their QUIT, and checks go on.
func TestDrain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var j journal
		var config smtplb.Config
		h := newHouse(t, 2, func(c *smtplb.Config) {
			c.Relays[1].Tier = 1
			c.Relays[0].Conns.Max = 4 // a check takes no slot that is kept back from bulk
			c.Relays[0].NoRiding = true
			j.listen(c)
			config = *c
		})
		defer h.close()
		var warm sync.WaitGroup
		h.relays[0].On(smtptest.EndOfData).Times(2).Delay(time.Second)
		for range 2 { // two connections, of which one will be idle
			warm.Go(func() { _, _ = h.pool.Deliver(t.Context(), envelope("warm@example.com")) })
		}
		warm.Wait()
		hold := h.relays[0].On(smtptest.EndOfData).Times(1).Delay(time.Minute)
		var under sync.WaitGroup
		under.Go(func() {
			if r, err := h.pool.Deliver(t.Context(), envelope("under@example.com")); err != nil || relaysTried(r) != "r0" {
				t.Errorf("what was under way: %v: %v", r, err)
			}
		})
		synctest.Wait()
		if err := h.pool.SetAdmin("r0", smtplb.AdminDrain); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s := h.pool.Stats().Relays[0]; s.State != "drain" || s.InFlight != 1 || s.Idle != 0 || s.Closed["drained"] != 1 || hold.Fired() != 1 {
			t.Errorf("%+v", s)
		}
		h.use(30 * time.Second)
		if err := h.pool.Update(config); err != nil { // which it outlives
			t.Error(err)
		}
		h.use(time.Minute)
		under.Wait()
		if s := h.pool.Stats().Relays[0]; s.State != "drain" || s.Attempts != 3 || s.Idle != 0 {
			t.Errorf("%+v", s)
		}
		quits := 0
		for _, tr := range h.relays[0].Transcripts() {
			if strings.Contains(tr.String(), "C: QUIT\nS: 221") {
				quits++
			}
		}
		if n := h.relays[0].Stats().Connections; quits != n || n < 4 { // two with messages, the rest checks
			t.Errorf("%d QUITs on %d connections", quits, n)
		}
		// Without another relay there is a clear word.
		if err := h.pool.SetAdmin("r1", smtplb.AdminMaintenance); err != nil {
			t.Fatal(err)
		}
		_, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		if !errors.Is(err, smtplb.ErrNoRelay) || !strings.Contains(err.Error(), "r0 is in drain, r1 is in maintenance") {
			t.Errorf("%v", err)
		}
		for _, name := range []string{"r0", "r1"} {
			if err := h.pool.SetAdmin(name, smtplb.AdminReady); err != nil {
				t.Fatal(err)
			}
		}
		if s := h.state(0); s != "slow start" {
			t.Errorf("it is %s", s)
		}
		h.use(70 * time.Second)
		if got := j.states("r0"); got != "drain, slow start, up" {
			t.Errorf("it was %s", got)
		}
	})
}

// Whoever waits for a relay that is drained goes on to the next one.
func TestDrainMovesWaiters(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) { spare(c); c.Relays[0].Conns.Max = 1; c.Relays[0].NoRiding = true })
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Delay(time.Minute)
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				begun := time.Now()
				r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
				if d := time.Since(begun); err != nil || relaysTried(r) == "r1" && d > time.Second {
					t.Errorf("%d after %v: %v: %v", i, d, r, err)
				}
			})
		}
		time.Sleep(time.Second)
		if err := h.pool.SetAdmin("r0", smtplb.AdminDrain); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if s := h.pool.Stats(); s.Relays[0].Attempts != 1 || s.Relays[1].Attempts != 4 {
			t.Errorf("%d and %d attempts", s.Relays[0].Attempts, s.Relays[1].Attempts)
		}
	})
}

func TestMaintenance(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, spare)
		defer h.close()
		h.use(30 * time.Second)
		h.relays[1].Kill()
		h.use(30 * time.Second)
		if s := h.state(1); s != "down" {
			t.Errorf("it is %s", s)
		}
		if err := h.pool.SetAdmin("r1", smtplb.AdminMaintenance); err != nil {
			t.Fatal(err)
		}
		h.relays[1].Restart()
		n := h.relays[1].Stats().Connections
		h.use(4 * time.Minute)
		if got := h.relays[1].Stats().Connections; got != n || h.state(1) != "maintenance" {
			t.Errorf("%d checks; it is %s", got-n, h.state(1))
		}
		if err := h.pool.SetAdmin("r1", smtplb.AdminReady); err != nil {
			t.Fatal(err)
		}
		h.use(30 * time.Second)
		if got := h.relays[1].Stats().Connections; got == n || h.state(1) != "slow start" {
			t.Errorf("%d checks; it is %s", got-n, h.state(1))
		}
	})
}

func TestSetAdminRefuses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		if err := h.pool.SetAdmin("r7", smtplb.AdminDrain); err == nil || !strings.Contains(err.Error(), `"r7"`) {
			t.Errorf("%v", err)
		}
		if err := h.pool.SetAdmin("r0", 3); err == nil || h.state(0) != "starting" {
			t.Errorf("%v", err)
		}
		if err := (*smtplb.Pool)(nil).SetAdmin("r0", 0); err == nil {
			t.Error("a nil Pool took it")
		}
		h.pool.Close()
		if err := h.pool.SetAdmin("r0", smtplb.AdminDrain); !errors.Is(err, smtplb.ErrClosed) {
			t.Errorf("%v", err)
		}
	})
}

func TestPing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 4, func(c *smtplb.Config) { c.Health.Interval = -1 })
		defer h.close()
		if err := h.pool.Ping(t.Context()); err != nil {
			t.Error(err)
		}
		for i, r := range h.relays {
			if s := r.Stats(); s.Connections != 1 || s.Commands["QUIT"] != 1 || s.Commands["MAIL"] != 0 || h.state(i) != "up" {
				t.Errorf("%+v", s)
			}
		}
		h.relays[1].On(smtptest.Banner).Reply(554, "5.3.2 not today")
		h.relays[2].Kill()
		h.relays[3].Kill()
		if err := h.pool.SetAdmin("r3", smtplb.AdminMaintenance); err != nil {
			t.Fatal(err)
		}
		err := h.pool.Ping(t.Context())
		var re *smtplb.RelayError
		if !errors.As(err, &re) || re.Relay != "r1" || re.Reply.Code != 554 {
			t.Errorf("%v", err)
		}
		if lines := strings.Split(err.Error(), "\n"); len(lines) != 2 || !strings.HasPrefix(lines[0], "r1: banner: 554") || !strings.HasPrefix(lines[1], "r2: dial: ") {
			t.Errorf("%q", lines)
		}
		for range 2 { // what it finds out counts
			_ = h.pool.Ping(t.Context())
		}
		if s := h.state(2); s != "down" {
			t.Errorf("after three failures it is %s", s)
		}
		// It ends with its context, and with Close.
		h.relays[0].On(smtptest.Banner).Stall()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		if err := h.pool.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Second {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := h.pool.Ping(t.Context()); !errors.Is(err, smtplb.ErrClosed) {
				t.Errorf("%v", err)
			}
		})
		time.Sleep(time.Second)
		h.pool.Close()
		wg.Wait()
		if err := h.pool.Ping(t.Context()); !errors.Is(err, smtplb.ErrClosed) {
			t.Errorf("%v", err)
		}
		if err := (*smtplb.Pool)(nil).Ping(t.Context()); err == nil {
			t.Error("a nil Pool is well")
		}
	})
}

// Ping logs in, once, and says which login was refused.
func TestPingLogsIn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := smtptest.NewNetwork()
		s := n.NewServer("safe.test:25", smtptest.WithTLS(), smtptest.WithAuth("user", "secret", "PLAIN"))
		defer s.Close()
		relay := smtplb.Relay{Name: "safe", Addr: "safe.test:25", TLSConfig: s.ClientTLS(), Username: "user", Password: "secret"}
		config := smtplb.Config{Dial: n.DialContext, Relays: []smtplb.Relay{relay}}
		pool, err := smtplb.New(config)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		if err := pool.Ping(t.Context()); err != nil || s.Stats().Auths != 1 {
			t.Errorf("%v after %d logins", err, s.Stats().Auths)
		}
		config.Relays[0].Password = "wrong"
		if err := pool.Update(config); err != nil {
			t.Fatal(err)
		}
		err = pool.Ping(t.Context())
		var re *smtplb.RelayError
		if !errors.As(err, &re) || re.Stage != smtplb.StageAuth || s.Stats().AuthFailures != 1 || pool.Stats().Relays[0].State != "open" {
			t.Errorf("%v after %d refused logins: %+v", err, s.Stats().AuthFailures, pool.Stats().Relays[0])
		}
	})
}

// Where all connections of a relay are in use, Ping waits for one.
func TestPingWaitsItsTurn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].Conns.Max = 1; c.Health.Interval = -1 })
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Delay(10 * time.Second)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = h.pool.Deliver(t.Context(), envelope("x@example.com")) })
		time.Sleep(time.Second)
		begun := time.Now()
		if err := h.pool.Ping(t.Context()); err != nil || time.Since(begun) < 9*time.Second {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
		wg.Wait()
		if s := h.relays[0].Stats(); s.MaxActive != 1 {
			t.Errorf("%d connections at a time", s.MaxActive)
		}
	})
}

// A relay that Update takes away while Ping waits for one of its connections is none of Ping's any more.
func TestPingLetsGo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var config smtplb.Config
		h := newHouse(t, 2, func(c *smtplb.Config) { spare(c); c.Relays[0].Conns.Max = 1; c.Health.Interval = -1; config = *c })
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Delay(time.Minute)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = h.pool.Deliver(t.Context(), envelope("x@example.com")) })
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		begun := time.Now()
		wg.Go(func() {
			if err := h.pool.Ping(ctx); err != nil || time.Since(begun) > 2*time.Second {
				t.Errorf("after %v: %v", time.Since(begun), err)
			}
		})
		time.Sleep(time.Second)
		config.Relays = config.Relays[1:]
		if err := h.pool.Update(config); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
}

// One of the same name that has come instead is another, and none of Ping's either.
func TestPingLeavesTheSuccessorAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var config smtplb.Config
		h := newHouse(t, 2, func(c *smtplb.Config) { one(c); c.Health.Interval = -1; config = *c })
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Delay(time.Minute)
		sent := h.async(t.Context(), envelope("x@example.com"))
		pinged := make(chan error, 1)
		time.Sleep(time.Second)
		go func() { pinged <- h.pool.Ping(t.Context()) }()
		time.Sleep(time.Second)
		config.Relays = slices.Clone(config.Relays)
		all := config.Relays
		config.Relays = all[1:]
		h.update(config)
		all[0].Addr = "nobody.test:25"
		config.Relays = all
		h.update(config)
		if err := <-pinged; err != nil {
			t.Error(err)
		}
		<-sent
	})
}

// Operators, configurations, checks, flapping relays and messages all at once, and then Close in the middle of it or after it: nobody is left behind, every message
// has its outcome, and the relays agree with it.
func TestHealthUnderLoad(t *testing.T) {
	t.Parallel()
	trouble := 20 * time.Second
	if !smtplb.Thorough() {
		trouble = 7 * time.Second
	}
	for _, closes := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			const relays, senders = 9, 30
			var config smtplb.Config
			var hung atomic.Int64
			h := newHouse(t, relays, func(c *smtplb.Config) {
				c.Health = smtplb.Health{Interval: time.Second, Fast: time.Second, Down: time.Second, SlowStart: 5 * time.Second, Timeout: time.Second}
				c.Hooks.RelayState = func(smtplb.RelayEvent) {}
				for i := range c.Relays {
					c.Relays[i].Conns.Max = 2
					c.Relays[i].Tier = i / 8
					c.Relays[i].Breaker = smtplb.Breaker{Consecutive: 2, OpenFor: 2 * time.Second, MaxOpen: 4 * time.Second}
				}
				config = *c
			})
			defer h.close()
			h.net.SetLatency(2*time.Millisecond, 2*time.Millisecond)
			stop := make(chan struct{})
			var wg, pests sync.WaitGroup
			for s := range senders {
				wg.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-stop:
							return
						default:
						}
						to := fmt.Sprintf("u%d-%d@example.com", s, i)
						ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
						begun := time.Now()
						r, err := h.pool.Deliver(ctx, envelope(to))
						cancel()
						if time.Since(begun) > 66*time.Second {
							hung.Add(1)
						}
						if n := h.stored(to); r == nil || (outcomes(r) == "accepted") != (err == nil) || err == nil && n != 1 || outcomes(r) == "deferred" && n != 0 {
							t.Errorf("%s: stored %d times, %v: %v", to, n, r, err)
						}
						time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
					}
				})
			}
			pest := func(every time.Duration, f func(i int)) {
				pests.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-stop:
							return
						case <-time.After(every):
							f(i)
						}
					}
				})
			}
			pest(130*time.Millisecond, func(int) {
				err := h.pool.SetAdmin(fmt.Sprintf("r%d", rand.IntN(relays)), smtplb.AdminState(rand.IntN(3)))
				if err != nil && !errors.Is(err, smtplb.ErrClosed) && !strings.Contains(err.Error(), "no relay named") {
					t.Error(err)
				}
			})
			pest(370*time.Millisecond, func(i int) {
				c := config
				c.Relays = append([]smtplb.Relay(nil), config.Relays[:relays-i%2]...)
				for j := range c.Relays {
					c.Relays[j].Weight = 1 + rand.IntN(3)
					c.Relays[j].Conns.Max = 1 + rand.IntN(3)
				}
				if err := h.pool.Update(c); err != nil && !errors.Is(err, smtplb.ErrClosed) {
					t.Error(err)
				}
			})
			pest(500*time.Millisecond, func(int) { h.relays[rand.IntN(relays)].Kill() })
			pest(400*time.Millisecond, func(int) { h.relays[rand.IntN(relays)].Restart() })
			pest(700*time.Millisecond, func(int) { _ = h.pool.Ping(t.Context()) })
			time.Sleep(trouble)
			if closes {
				h.pool.Close()
			}
			close(stop)
			wg.Wait()
			pests.Wait()
			if hung.Load() > 0 {
				t.Errorf("%d sends outlasted their context", hung.Load())
			}
			if closes {
				return
			}
			for i, r := range h.relays {
				r.Restart()
				_ = h.pool.SetAdmin(fmt.Sprintf("r%d", i), smtplb.AdminReady)
			}
			if err := h.pool.Update(config); err != nil {
				t.Error(err)
			}
			for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				_, _ = h.pool.Deliver(t.Context(), envelope("x@example.com"))
			}
			for i, r := range h.pool.Stats().Relays {
				if r.State != "up" && !(i == relays-1 && r.State == "starting") {
					t.Errorf("long after the trouble %s is %s (%s), breaker %s", r.Name, r.State, r.Reason, r.Breaker)
				}
			}
		})
	}
}
