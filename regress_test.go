package smtplb_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// deliver is Deliver that must succeed.
func (h *house) deliver(to string) *smtplb.Receipt {
	h.Helper()
	r, err := h.pool.Deliver(h.Context(), envelope(to))
	if err != nil {
		h.Fatalf("%v: %v", r, err)
	}
	return r
}

// authHouse has relays with TLS that want XOAUTH2 with the token "tok"; the first gets its token from f, the others have it.
func authHouse(t *testing.T, n int, f func(ctx context.Context, r smtplb.AuthRequest) (string, error)) *house {
	h := newHouse(t, n, nil, smtptest.WithTLS(), smtptest.WithAuth("u", "tok", "XOAUTH2"))
	h.pool.Close()
	c := smtplb.Config{Dial: h.net.DialContext}
	for i := range n {
		r := smtplb.Relay{Name: fmt.Sprint("r", i), Addr: fmt.Sprintf("r%d.test:25", i), Tier: i, TLSConfig: h.relays[i].ClientTLS()}
		r.Auth = smtplb.TokenAuth("u", func(context.Context, smtplb.AuthRequest) (string, error) { return "tok", nil })
		if i == 0 {
			r.Auth = smtplb.TokenAuth("u", f)
		}
		c.Relays = append(c.Relays, r)
	}
	pool, err := smtplb.New(c)
	if err != nil {
		t.Fatal(err)
	}
	h.pool = pool
	return h
}

func (h *house) wantWell(i int) {
	h.Helper()
	if s := h.pool.Stats().Relays[i]; s.Breaker != "closed" || s.Faults != 0 {
		h.Errorf("%s is %s (%s) with %d faults", s.Name, s.State, s.Reason, s.Faults)
	}
}

// The caller's deadline while a token is fetched is nobody's fault.
func TestDeadlineWhileFetchingAToken(t *testing.T) {
	for name, f := range map[string]func(ctx context.Context) error{
		"its error":     func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		"another error": func(ctx context.Context) error { <-ctx.Done(); return errors.New("token endpoint: gone") },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := authHouse(t, 1, func(ctx context.Context, _ smtplb.AuthRequest) (string, error) { return "", f(ctx) })
				defer h.close()
				for _, timeout := range []time.Duration{50 * time.Millisecond, 20 * time.Second} {
					ctx, cancel := context.WithTimeout(t.Context(), timeout)
					r, err := h.pool.Deliver(ctx, envelope("x@example.com"))
					cancel()
					if outcomes(r) != "deferred" || !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("%v: %v", outcomes(r), err)
					}
					if s := h.pool.Stats().Relays[0]; s.Breaker != "closed" {
						t.Errorf("after %v the relay is %s (%s)", timeout, s.State, s.Reason)
					}
				}
				if s := h.pool.Stats().Relays[0]; s.Faults != 0 {
					t.Errorf("%d faults", s.Faults)
				}
			})
		})
	}
}

// A token endpoint's hiccup costs the relay nothing, and the message goes elsewhere.
func TestTokenFunctionFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		calls := 0
		hiccup := errors.New("token endpoint: 503")
		h := authHouse(t, 2, func(context.Context, smtplb.AuthRequest) (string, error) {
			if calls++; calls <= 10 {
				return "", hiccup
			}
			return "tok", nil
		})
		defer h.close()
		for range 10 {
			r := h.deliver("x@example.com")
			var re *smtplb.RelayError
			if relaysTried(r) != "r0 r1" || !errors.As(r.Attempts[0].Err, &re) || re.Failure != "token" || re.Stage != smtplb.StageAuth || !errors.Is(re, hiccup) {
				t.Fatalf("%v: %v", r, r.Attempts[0].Err)
			}
		}
		h.wantWell(0)
		if r := h.deliver("x@example.com"); relaysTried(r) != "r0" {
			t.Errorf("with a token: %v", r)
		}
	})
}

// A challenge that isn't base64 is a relay out of its mind for a moment, not wrong credentials.
func TestChallengeOfGarbage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil, smtptest.WithTLS(), smtptest.WithAuth("u", "secret-pw", "LOGIN"))
		h.pool.Close()
		pool, err := smtplb.New(smtplb.Config{Dial: h.net.DialContext, Relays: []smtplb.Relay{{
			Name: "r0", Addr: "r0.test:25", TLSConfig: h.relays[0].ClientTLS(), Username: "u", Password: "secret-pw",
		}}})
		if err != nil {
			t.Fatal(err)
		}
		h.pool = pool
		defer h.close()
		h.relays[0].On(smtptest.Auth).Times(1).Reply(334, "Username:")
		r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		var re *smtplb.RelayError
		if outcomes(r) != "deferred" || !errors.As(err, &re) || re.Failure != "malformed" || re.Stage != smtplb.StageAuth {
			t.Errorf("%v: %v", outcomes(r), err)
		}
		if s := h.pool.Stats().Relays[0]; s.Breaker != "closed" || s.Faults != 1 {
			t.Errorf("%s (%s), %d faults", s.State, s.Reason, s.Faults)
		}
		h.deliver("x@example.com")
	})
}

func TestLocalAddrGoesWithoutDial(t *testing.T) {
	dial := (&net.Dialer{}).DialContext
	for name, c := range map[string]smtplb.Config{
		"Config.Dial": {Dial: dial, Relays: []smtplb.Relay{{Addr: "a.example:25", LocalAddr: "127.0.0.1"}}},
		"Relay.Dial":  {Relays: []smtplb.Relay{{Addr: "a.example:25", LocalAddr: "127.0.0.1", Dial: dial}}},
		"both":        {Dial: dial, Relays: []smtplb.Relay{{Addr: "a.example:25", LocalAddr: "127.0.0.1", Dial: dial}}},
	} {
		var ce *smtplb.ConfigError
		if _, err := smtplb.New(c); !errors.As(err, &ce) || ce.Path != "Relays[0].LocalAddr" {
			t.Errorf("%s: %v", name, err)
		}
	}
	p, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{{Addr: "a.example:25", LocalAddr: "127.0.0.1"}}})
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
}

// Two relays of one name are a fault, whatever else is wrong with them.
func TestDuplicateNamesWithoutAddr(t *testing.T) {
	_, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{{Name: "x"}, {Name: "x"}}})
	for _, path := range []string{"Relays[0].Addr", "Relays[1].Addr", "Relays[1].Name"} {
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("nothing about %s in %v", path, err)
		}
	}
}

func TestParseRelayParameters(t *testing.T) {
	r, err := smtplb.ParseRelay("smtp://mx.example.com?tls=implicit")
	if err == nil || !strings.Contains(err.Error(), "smtps") {
		t.Errorf("%v: %v", r, err)
	}
	r, err = smtplb.ParseRelay("smtp://mx.example.com?name=a+b&tag=x+y%20z")
	if err != nil || r.Name != "a+b" || len(r.Tags) != 1 || r.Tags[0] != "x+y z" {
		t.Errorf("%q %q: %v", r.Name, r.Tags, err)
	}
	if again, err := smtplb.ParseRelay(r.String()); err != nil || again.Name != r.Name || again.Tags[0] != r.Tags[0] {
		t.Errorf("%s again: %q %q: %v", r, again.Name, again.Tags, err)
	}
}

// late is a context whose timer comes after its deadline, as a dialler's own timer may see it.
type late struct {
	context.Context
	deadline time.Time
}

func (l late) Deadline() (time.Time, bool) { return l.deadline, true }

// A caller in a hurry tells nothing about the relay, whoever sees the deadline first.
func TestHurriedDialsAreNotCounted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			dial := c.Dial
			c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) { // as package net does it
				d, ok := ctx.Deadline()
				if !ok {
					return dial(ctx, network, addr)
				}
				short, cancel := context.WithDeadline(context.Background(), d)
				defer cancel()
				c, err := dial(short, network, addr)
				if err != nil {
					err = &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
				}
				return c, err
			}
		})
		defer h.close()
		h.net.Blackhole("r0.test:25", true)
		for i := range 60 {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond+time.Duration(i%3)*time.Millisecond)
			r, err := h.pool.Deliver(late{ctx, time.Now().Add(20 * time.Millisecond)}, envelope("x@example.com"))
			cancel()
			if outcomes(r) != "deferred" || !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("%v: %v", outcomes(r), err)
			}
		}
		h.wantWell(0)
	})
}

// The wait for a slot is not the relay's time: a dial is judged by the whole of the caller's.
func TestDialIsJudgedByTheCallersWholeTime(t *testing.T) {
	for _, test := range []struct {
		wait   time.Duration // for the slot
		faults uint64
	}{{17500 * time.Millisecond, 0}, {9 * time.Second, 1}} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].Conns.Max, c.Relays[0].Conns.MaxMessages = 1, 1 })
			defer h.close()
			h.relays[0].On(smtptest.EndOfData).Times(1).Delay(test.wait)
			go h.pool.Deliver(t.Context(), envelope("first@example.com"))
			synctest.Wait()
			h.relays[0].On(smtptest.Banner).Delay(15 * time.Second)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			r, err := h.pool.Deliver(ctx, envelope("x@example.com"))
			if outcomes(r) != "deferred" || len(r.Attempts) != 1 || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v: %v", r, err)
			}
			if f := h.pool.Stats().Relays[0].Faults; f != test.faults {
				t.Errorf("%d faults after %v of 20 s", f, test.wait)
			}
			time.Sleep(time.Minute)
		})
	}
}

// Some replies end a connection though they keep it open.
func TestRepliesThatEndAConnection(t *testing.T) {
	for _, stage := range []smtptest.Stage{smtptest.Mail, smtptest.Rcpt, smtptest.Data, smtptest.EndOfData} {
		for code, said := range map[int]string{
			500: "5.5.2 Error: bad syntax", 501: "5.5.4 what?", 502: "5.5.1 not here", 503: "5.5.1 Bad sequence of commands", 504: "5.5.4 no such parameter",
			451: "4.7.0 too many messages in this connection",
		} {
			t.Run(fmt.Sprint(stage, code), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					h := newHouse(t, 1, nil)
					defer h.close()
					h.relays[0].On(stage).Times(1).Reply(code, said)
					if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err == nil {
						t.Fatal(r)
					}
					if r := h.deliver("x@example.com"); r.Attempts[0].Reused || h.relays[0].Stats().Connections != 2 {
						t.Errorf("the next message: reused %v, %d connections", r.Attempts[0].Reused, h.relays[0].Stats().Connections)
					}
					h.wantWell(0)
				})
			})
		}
	}
}

// Failovers don't use up places in the round: two equal relays stay equal though one always refuses.
func TestFailoversDoNotSkewTheRound(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, nil)
		defer h.close()
		h.relays[0].On(smtptest.Mail).Reply(451, "4.5.0 later")
		first := 0
		for range 1000 {
			if r := h.deliver("x@example.com"); r.Attempts[0].Relay == "r0" {
				first++
			}
		}
		if first < 499 || first > 501 {
			t.Errorf("%d of 1000 went to r0 first", first)
		}
		if n := h.pool.Stats().Failovers; n != uint64(first) {
			t.Errorf("%d failovers, and %d second attempts", n, first)
		}
	})
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		h.relays[0].On(smtptest.Mail).Reply(451, "4.5.0 later")
		for range 10 {
			if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err == nil {
				t.Error(r)
			}
		}
		if n := h.pool.Stats().Failovers; n != 0 {
			t.Errorf("one relay, and %d failovers", n)
		}
	})
}

// A preferred relay that is full is waited for, 30 s at most.
func TestPreferWaits(t *testing.T) {
	for _, test := range []struct {
		busy, wait time.Duration
		want       string
	}{{20 * time.Second, 20 * time.Second, "r0"}, {4 * time.Minute, 30 * time.Second, "r1"}} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 2, func(c *smtplb.Config) { c.Relays[0].Conns.Max = 1 })
			defer h.close()
			h.relays[0].On(smtptest.EndOfData).For("slow@example.com").Delay(test.busy)
			e := envelope("slow@example.com")
			e.Prefer = "r0"
			go h.pool.Deliver(t.Context(), e)
			synctest.Wait()
			begun := time.Now()
			e2 := envelope("x@example.com")
			e2.Prefer = "r0"
			r, err := h.pool.Deliver(t.Context(), e2)
			if err != nil || relaysTried(r) != test.want || time.Since(begun) != test.wait {
				t.Errorf("%v after %v: %v", r, time.Since(begun), err)
			}
			time.Sleep(5 * time.Minute)
		})
	}
}

// When one connection proves stale the other idle ones are looked at too.
func TestStaleConnectionLetsTheOthersBeChecked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Times(3).Delay(time.Second)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { h.deliver("x@example.com") })
		}
		wg.Wait()
		time.Sleep(time.Second)
		h.deliver("x@example.com") // its connection counts as fresh for 10 ms
		h.relays[0].Kill()
		if err := h.relays[0].Restart(); err != nil {
			t.Fatal(err)
		}
		if r := h.deliver("x@example.com"); !r.Attempts[0].Redialed || len(r.Attempts) != 1 {
			t.Errorf("%+v", r.Attempts)
		}
		if s := h.pool.Stats().Relays[0]; s.Idle != 1 || s.Closed["dead"] != 2 || s.Redials != 1 || s.Faults != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// A good-bye behind the last reply is seen before the next message is tried there.
func TestFarewellIsSeenBeforeReuse(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		h.relays[0].On(smtptest.Idle).Delay(time.Second).Reply(421, "4.4.2 Idle timeout")
		h.deliver("x@example.com")
		time.Sleep(2 * time.Second)
		if r := h.deliver("x@example.com"); r.Attempts[0].Redialed || r.Attempts[0].Reused {
			t.Errorf("%+v", r.Attempts[0])
		}
		if s := h.pool.Stats().Relays[0]; s.Closed["dead"] != 1 || s.Redials != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// A relay that refuses RSET is dialled anew, which counts nowhere.
func TestRefusedResetIsRedialled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		h.relays[0].On(smtptest.Mail).Times(1).Reply(451, "4.5.0 later")
		h.relays[0].On(smtptest.Rset).Reply(550, "5.7.1 no")
		if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err == nil {
			t.Fatal(r)
		}
		if r := h.deliver("x@example.com"); len(r.Attempts) != 1 || !r.Attempts[0].Redialed || h.stored("x@example.com") != 1 {
			t.Errorf("%+v", r.Attempts)
		}
		h.wantWell(0)
	})
}

// Messages whose fate nobody knows are dear: three in a row close the relay for long.
func TestFinalTimeoutsInARow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].Timeouts.Final = 20 * time.Second })
		defer h.close()
		stalls := func(n int) {
			h.relays[0].On(smtptest.EndOfData).Times(n).Stall()
			for range n {
				if r, _ := h.pool.Deliver(t.Context(), envelope("x@example.com")); outcomes(r) != "unknown" {
					t.Errorf("%v", r)
				}
			}
		}
		stalls(2)
		h.deliver("x@example.com")
		stalls(2)
		if s := h.pool.Stats().Relays[0]; s.Breaker != "closed" {
			t.Errorf("two in a row: %s (%s)", s.State, s.Reason)
		}
		stalls(1)
		if s := h.pool.Stats().Relays[0]; s.Breaker != "open" || !strings.Contains(s.Reason, "final: timeout") || time.Until(s.RetryAt) < 4*time.Minute {
			t.Errorf("three in a row: %s (%s) until %v", s.State, s.Reason, time.Until(s.RetryAt))
		}
	})
}

// A relay that wants less mail is left alone for 10 s, where there is another.
func TestCooling(t *testing.T) {
	for _, said := range []string{"4.7.0 rate limit exceeded, slow down", "4.7.0 daily sending quota exceeded"} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 2, func(c *smtplb.Config) { c.Relays[0].NoBackOff = true })
			defer h.close()
			h.relays[0].On(smtptest.Mail).Times(1).Reply(451, said)
			e := envelope("x@example.com")
			e.Prefer = "r0"
			if r, err := h.pool.Deliver(t.Context(), e); err != nil || relaysTried(r) != "r0 r1" {
				t.Fatalf("%v: %v", r, err)
			}
			time.Sleep(9900 * time.Millisecond)
			if !h.pool.Stats().Relays[0].Cooling {
				t.Error("it is not cooling")
			}
			for range 10 {
				if r := h.deliver("x@example.com"); relaysTried(r) != "r1" {
					t.Errorf("%v", r)
				}
			}
			time.Sleep(200 * time.Millisecond)
			seen := 0
			for range 10 {
				if r := h.deliver("x@example.com"); relaysTried(r) == "r0" {
					seen++
				}
			}
			if seen != 5 {
				t.Errorf("after 10 s it took %d of 10", seen)
			}
			h.wantWell(0)
		})
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].NoBackOff = true })
			defer h.close()
			h.relays[0].On(smtptest.Mail).Times(1).Reply(451, said)
			if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); !errors.Is(err, smtplb.ErrThrottled) {
				t.Error(err)
			}
			h.deliver("x@example.com") // there is nobody else
		})
	}
}

// A probe that is asked for less is no success: the breaker opens again.
func TestThrottledProbe(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		h.relays[0].Kill()
		for range 5 {
			if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err == nil {
				t.Fatal(r)
			}
		}
		if err := h.relays[0].Restart(); err != nil {
			t.Fatal(err)
		}
		h.relays[0].On(smtptest.Mail).Reply(451, "4.7.0 rate limit exceeded, slow down")
		time.Sleep(time.Until(h.pool.Stats().Relays[0].RetryAt) + time.Millisecond)
		if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); relaysTried(r) != "r0" {
			t.Errorf("%v: %v", r, err)
		}
		if s := h.pool.Stats().Relays[0]; s.Breaker != "open" || s.Trips != 2 {
			t.Errorf("%s, opened %d times", s.State, s.Trips)
		}
	})
}

// Close doesn't wait for a dial, nor does the send that dials.
func TestCloseEndsADial(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, tiered)
		defer h.close()
		h.net.Blackhole("r0.test:25", true)
		begun := time.Now()
		time.AfterFunc(time.Second, func() { h.pool.Close() })
		r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		if time.Since(begun) != time.Second || outcomes(r) != "deferred" || !errors.Is(err, smtplb.ErrClosed) || errors.Is(err, context.Canceled) || relaysTried(r) != "r0" {
			t.Errorf("%v after %v: %v", r, time.Since(begun), err)
		}
		h.wantWell(0)
	})
}

func TestThreeRelaysAreTried(t *testing.T) {
	for attempts, want := range map[int]int{0: 3, 1: 1, 2: 2, 10: 4, -1: 4} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 4, func(c *smtplb.Config) { c.Retry.Attempts = attempts })
			defer h.close()
			for _, s := range h.relays {
				s.On(smtptest.Mail).Reply(451, "4.5.0 later")
			}
			r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
			if len(r.Attempts) != want || outcomes(r) != "deferred" || !errors.Is(err, smtplb.ErrTemporary) {
				t.Errorf("Attempts %d: %v: %v", attempts, r, err)
			}
		})
	}
}

// On real sockets: what happens around the commit point when the relay is gone.
func TestCommitPointOnSockets(t *testing.T) {
	const early, last = 64 << 10, 62 << 10 // of the body: what goes before its last write, and in it
	body := []byte(text + strings.Repeat("A line that makes it long.....\r\n", (early+last)/32))[:early+last]
	copy(body[early+last-2:], "\r\n")
	for _, secure := range []bool{false, true} {
		for _, test := range []struct {
			name  string
			reads int // of the body with its terminator
			want  string
		}{
			{"read all, answered nothing", early + last + 3, "unknown"},
			{"stopped in the last write", early + 1<<10, "deferred"},
			{"stopped before the last write", 1 << 10, "deferred"},
		} {
			t.Run(fmt.Sprintf("%s, TLS %v", test.name, secure), func(t *testing.T) {
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer ln.Close()
				relay := smtplb.Relay{Addr: ln.Addr().String(), TLS: smtplb.TLSNone}
				var cert tls.Certificate
				if secure {
					relay.TLS = smtplb.TLSImplicit
					cert, relay.TLSConfig = localCertificate(t)
				}
				relay.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
					c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
					if err == nil && test.want == "deferred" {
						err = c.(*net.TCPConn).SetWriteBuffer(4 << 10)
					}
					return c, err
				}
				done := make(chan struct{})
				go func() {
					defer close(done)
					raw, err := ln.Accept()
					if err != nil {
						return
					}
					if test.want == "deferred" { // the last write must not fit into what the sockets hold
						_ = raw.(*net.TCPConn).SetReadBuffer(8 << 10)
					}
					c := raw
					if secure {
						c = tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
					}
					takes(c, test.reads)
					_ = raw.(*net.TCPConn).SetLinger(0) // a reset
					_ = raw.Close()
				}()
				p, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{relay}})
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				e := envelope("x@example.com")
				e.Body = smtplb.Bytes(body)
				r, err := p.Deliver(t.Context(), e)
				if outcomes(r) != test.want {
					t.Errorf("%v, want %v: %v", outcomes(r), test.want, err)
				}
				ln.Close()
				<-done
			})
		}
	}
}

// takes is a relay that takes n bytes of a body and says nothing more.
func takes(c net.Conn, n int) {
	br := bufio.NewReaderSize(c, 512)
	_, _ = io.WriteString(c, "220 hi\r\n")
	for {
		l, err := br.ReadString('\n')
		switch {
		case err != nil:
			return
		case strings.HasPrefix(l, "EHLO"):
			_, _ = io.WriteString(c, "250-hi\r\n250 PIPELINING\r\n")
		case strings.HasPrefix(l, "DATA"):
			_, _ = io.WriteString(c, "354 go\r\n")
			_, _ = io.CopyN(io.Discard, br, int64(n))
			return
		default:
			_, _ = io.WriteString(c, "250 fine\r\n")
		}
	}
}

// localCertificate is one for 127.0.0.1, and what trusts it.
func localCertificate(t *testing.T) (tls.Certificate, *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
}
