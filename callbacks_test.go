package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/smtp"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// count counts the connections that dial opens, as long as they are open at this end. A relay may see one more for a moment: it hears of a hard close after
// that.
func count(dial func(ctx context.Context, network, addr string) (net.Conn, error), open, most *atomic.Int32) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		n := open.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		return &chaosExactConn{chaosConn{nc, sync.OnceFunc(func() { open.Add(-1) })}, nc.(looks)}, nil
	}
}

// The caller leaves while Auth fetches a token: nothing is the relay's fault.
func TestAuthThatWaitsForItsContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Addr = "127.0.0.1:25"
			c.Relays[0].Auth = func(ctx context.Context, _ smtplb.AuthRequest) (smtp.Auth, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		})
		s := h.net.NewServer("127.0.0.1:25", smtptest.WithAuth("u", "p"))
		defer s.Close()
		defer h.close()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err := h.pool.Deliver(ctx, envelope("x@example.com"))
		if st := h.pool.Stats().Relays[0]; st.Breaker != "closed" || st.Faults != 0 {
			t.Errorf("a caller who leaves opened the breaker: %s (%s), %d faults: %v", st.State, st.Reason, st.Faults, err)
		}
		// And without a deadline nobody waits for ever.
		begun := time.Now()
		defer time.AfterFunc(time.Hour, func() { h.pool.Close() }).Stop()
		_, err = h.pool.Deliver(context.Background(), envelope("x@example.com"))
		if d := time.Since(begun); d > time.Minute {
			t.Errorf("Auth that hangs held the send for %v: %v", d, err)
		}
	})
}

func panics(f func()) (p any) {
	defer func() { p = recover() }()
	f()
	return nil
}

// Auth panics: the connection is closed.
func TestAuthPanics(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var open, most atomic.Int32
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Addr = "127.0.0.1:25"
			c.Relays[0].Auth = func(ctx context.Context, _ smtplb.AuthRequest) (smtp.Auth, error) { panic("auth") }
		})
		h.pool.Close()
		s := h.net.NewServer("127.0.0.1:25", smtptest.WithAuth("u", "p"))
		defer s.Close()
		c := smtplb.Config{Dial: count(h.net.DialContext, &open, &most), Relays: []smtplb.Relay{{Addr: "127.0.0.1:25", TLS: smtplb.TLSNone, Conns: smtplb.Conns{Max: 1},
			Auth: func(ctx context.Context, _ smtplb.AuthRequest) (smtp.Auth, error) { panic("auth") }}}}
		h.pool, _ = smtplb.New(c)
		defer h.close()
		for range 3 {
			if panics(func() { h.pool.Deliver(t.Context(), envelope("x@example.com")) }) == nil {
				t.Fatal("no panic")
			}
		}
		if open.Load() != 0 || most.Load() > 1 {
			t.Errorf("%d connections open, %d at once with Max 1", open.Load(), most.Load())
		}
	})
}

// A RelayState hook panics when the probe begins.
func TestStateHookPanics(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var bad atomic.Bool
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Breaker = smtplb.Breaker{Consecutive: 1}
			c.Relays[0].Conns.Max = 1
			c.Hooks.RelayState = func(e smtplb.RelayEvent) {
				if e.Breaker == "probing" && bad.CompareAndSwap(true, false) {
					panic("hook")
				}
			}
		})
		defer h.close()
		h.relays[0].Kill()
		h.pool.Deliver(t.Context(), envelope("x@example.com"))
		h.relays[0].Restart()
		time.Sleep(time.Minute)
		bad.Store(true)
		if panics(func() { h.pool.Deliver(t.Context(), envelope("x@example.com")) }) == nil {
			t.Fatal("no panic")
		}
		if n := h.pool.Stats().Relays[0]; n.InFlight != 0 || n.Breaker == "probing" {
			t.Errorf("%d connections in use, %s", n.InFlight, n.State)
		}
		time.Sleep(24 * time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if r, err := h.pool.Deliver(ctx, envelope("x@example.com")); err != nil {
			t.Errorf("a day later: %v: %v", r, err)
		}
	})
}

// A connection that expires between the grant and its use is retired while the turn opens a new one.
func TestMaxWhileRetiring(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var open, most atomic.Int32
		h := newHouse(t, 1, nil)
		h.pool.Close()
		h.relays[0].On(smtptest.Quit).Delay(500 * time.Millisecond)
		c := smtplb.Config{Dial: count(h.net.DialContext, &open, &most), Relays: []smtplb.Relay{{Name: "r0", Addr: h.relays[0].Addr, TLS: smtplb.TLSNone, Conns: smtplb.Conns{Max: 1, MaxIdleTime: time.Second}}}}
		c.Hooks.AttemptStart = func(context.Context, smtplb.AttemptInfo) func(smtplb.Attempt) {
			time.Sleep(time.Second) // or the scheduler, or a clock that jumps
			return nil
		}
		h.pool, _ = smtplb.New(c)
		defer h.close()
		for range 3 {
			if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
				t.Fatal(err)
			}
		}
		if most.Load() > 1 {
			t.Errorf("%d connections at once with Max 1; the relay saw %d", most.Load(), h.relays[0].Stats().MaxActive)
		}
	})
}

// A hook may close the pool, and is not called any more afterwards.
func TestHookCloses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var h *house
		var events []string
		h = newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Breaker = smtplb.Breaker{Consecutive: 1}
			c.Hooks.RelayState = func(e smtplb.RelayEvent) {
				events = append(events, e.Breaker)
				if e.Breaker == "half-open" {
					h.pool.Close()
				}
			}
		})
		defer h.close()
		h.relays[0].Kill()
		h.pool.Deliver(t.Context(), envelope("x@example.com"))
		h.relays[0].Restart()
		time.Sleep(time.Hour)
		r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		if !errors.Is(err, smtplb.ErrClosed) || outcomes(r) != "deferred" {
			t.Errorf("%v: %v", r, err)
		}
		if fmt.Sprint(events) != "[open half-open]" {
			t.Errorf("%v", events)
		}
	})
}

// RequireAll: the connection breaks behind a refusal. Nobody may get the message.
func TestRequireAllBehindARefusal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) { c.Relays[1].Tier = 1 })
		defer h.close()
		h.relays[0].On(smtptest.Rcpt).For("gone@example.com").Reply(550, "5.1.1 No such user")
		h.relays[0].On(smtptest.Rcpt).For("y@example.com").Drop()
		e := envelope("gone@example.com", "x@example.com", "y@example.com")
		e.RequireAll = true
		r, err := h.pool.Deliver(t.Context(), e)
		if n := h.stored("x@example.com"); n != 0 || r.Count(smtplb.Accepted) != 0 {
			t.Errorf("one recipient is refused, and x is stored %d times: %v: %v", n, r, err)
		}
	})
}

// The breaker hears of an attempt before its slot is free: who waits for the slot must not be let onto a relay that has just failed.
func TestBreakerHearsBeforeTheSlotIsFree(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var h *house
		var held []int
		h = newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Breaker = smtplb.Breaker{Consecutive: 1}
			c.Relays[0].Conns.Max = 1
			c.Hooks.RelayState = func(e smtplb.RelayEvent) {
				if e.Breaker == "open" {
					held = append(held, h.pool.Stats().Relays[0].InFlight)
				}
			}
		})
		defer h.close()
		h.relays[0].On(smtptest.Mail).Drop()
		if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err == nil {
			t.Error(r)
		}
		if len(held) != 1 || held[0] != 1 {
			t.Errorf("slots in use when the breaker opened: %v", held)
		}
	})
}
