package smtplb_test

import (
	"context"
	"errors"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// Where a relay's limit counts recipients, what is held back is so many messages of those that went before, and Stats says so: "12/s" alone would be taken for the configured limit's unit.
func TestBackoffBesideALimitOfRecipients(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].Limits.Recipients = smtplb.Rate{N: 1000, Burst: 1000} })
		defer h.close()
		for range 80 { // 8 a second, of 3 recipients each
			h.sends(envelope("x@example.com", "y@example.com", "z@example.com"), "accepted accepted accepted")
			time.Sleep(125 * time.Millisecond)
		}
		h.relays[0].On(smtptest.Mail).Times(1).Reply(451, "4.7.0 Too many messages, slow down")
		if _, err := h.pool.Deliver(context.Background(), envelope("x@example.com")); err == nil {
			t.Error("not refused")
		}
		time.Sleep(time.Minute)
		text := h.pool.Stats().Relays[0].BackOff
		if !regexp.MustCompile(`^halved at \d\d:\d\d \(451 4\.7\.0 Too many messages, slow down\), 4\S*/s of messages, where 8\S*/s went before, window \d+ of 10$`).MatchString(text) {
			t.Error(text)
		}
	})
}

// A message that parts for its providers' limits alone is explained without routes that nobody has configured.
func TestExplainPartsWithoutRoutes(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		limits := smtplb.Limits{Messages: smtplb.PerHour(1)}
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Providers = []smtplb.Provider{{Name: "gmail", Limits: limits}} })
		defer h.close()
		e := envelope("x@gmail.com", "y@example.com", "z@googlemail.com")
		explain := func() string {
			p, err := h.pool.Explain(context.Background(), e)
			if err != nil {
				t.Fatal(err)
			}
			return p.String()
		}
		text := explain()
		if strings.Contains(text, "oute") || !strings.HasPrefix(text, "2 recipients of gmail: goes out now") || !strings.Contains(text, "\n1 other recipient: goes out now") {
			t.Error(text)
		}
		if err := h.pool.Update(h.config(func(c *smtplb.Config) {
			c.Providers = []smtplb.Provider{{Name: "gmail", Limits: limits}}
			c.Routes = []smtplb.Route{{Name: "mine", Recipients: []string{"example.com"}, Relays: []string{"r0"}}}
		})); err != nil {
			t.Fatal(err)
		}
		if text := explain(); !strings.HasPrefix(text, "route of all that no Route is for, 2 recipients of gmail: ") || !strings.Contains(text, "\nroute mine, 1 recipient: ") {
			t.Error(text)
		}
	})
}

// A domain that two providers of the configuration claim is an error, in whatever form they write it; one that a built-in provider has is theirs, and Explain says so.
func TestProvidersClaim(t *testing.T) {
	t.Parallel()
	claim := func(domains ...string) smtplb.Config {
		c := smtplb.Config{Relays: []smtplb.Relay{{Addr: "r.test:25"}}}
		for i, d := range domains {
			c.Providers = append(c.Providers, smtplb.Provider{Name: string(rune('a' + i)), Domains: []string{"own" + string(rune('a'+i)) + ".test", d}})
		}
		return c
	}
	for _, x := range [][2]string{
		{"same.test", "same.test"}, {"same.test", "SAME.Test"}, {"*.same.test", "*.Same.test"}, {"bücher.test", "xn--bcher-kva.test"}, {"*.BÜCHER.test", "*.xn--bcher-kva.test"},
	} {
		_, err := smtplb.New(claim(x[0], x[1]))
		if ce := (*smtplb.ConfigError)(nil); !errors.As(err, &ce) || ce.Path != "Providers[1].Domains[1]" || !strings.Contains(ce.Reason, "is one of Providers[0] too") {
			t.Errorf("%q: %v", x, err)
		}
	}
	pool, err := smtplb.New(claim("gmail.com", "*.gmail.com"))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for to, want := range map[string]string{"x@gmail.com": "a", "x@eu.GMAIL.com": "b", "x@googlemail.com": "gmail"} {
		if p, err := pool.Explain(context.Background(), envelope(to)); err != nil || p.Provider != want {
			t.Errorf("%s is of %q: %v", to, p.Provider, err)
		}
	}
}

// A message that is more than the whole stage, where only other mail brings about another, is told so: tomorrow is as today.
func TestWarmupLargerThanTheStage(t *testing.T) {
	t.Parallel()
	for _, advance := range []smtplb.WarmupAdvance{smtplb.AdvanceDaily, smtplb.AdvanceDelivered} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, func(c *smtplb.Config) {
				warmCurve(c, 2, 2, 100)
				c.Relays[0].Warmup.Advance = advance
			})
			defer h.close()
			time.Sleep(23*time.Hour + 30*time.Minute) // by then all of a day's may have gone out
			h.sends(envelope("first@example.com"), "accepted")
			e := envelope("x@example.com", "y@example.com", "z@example.com")
			for range 3 {
				_, err := h.pool.Deliver(context.Background(), e)
				if !errors.Is(err, smtplb.ErrThrottled) || strings.Contains(err.Error(), "only other mail") != (advance == smtplb.AdvanceDelivered) || retryAfter(err) != 24*time.Hour {
					t.Fatalf("%v: %v", retryAfter(err), err)
				}
				if advance == smtplb.AdvanceDaily {
					return
				}
				time.Sleep(24 * time.Hour)
			}
			for range 2 { // other mail does
				h.sends(envelope("o@example.com", "p@example.com"), "accepted accepted")
				time.Sleep(24 * time.Hour)
			}
			h.sends(e, "accepted accepted accepted")
		})
	}
}

// A connection that ends for a reason of ours is no broken one: Stats says which.
func TestClosedForOurReasons(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) { // the relay wants a connection for each message
		h := newHouse(t, 1, nil, smtptest.WithExtensions("PIPELINING", "LIMITS MAILMAX=1"))
		defer h.close()
		for range 3 {
			h.sends(envelope("x@example.com"), "accepted")
		}
		time.Sleep(time.Second)
		if s := h.pool.Stats().Relays[0]; s.Closed["uses"] != 3 || s.Closed["broken"] != 0 || s.Opened != 3 || s.Idle != 0 {
			t.Errorf("%v of %d", s.Closed, s.Opened)
		}
	})
	bubble(t, func(t *testing.T) { // and for each part of one
		h := newHouse(t, 1, nil, smtptest.WithExtensions("PIPELINING", "LIMITS MAILMAX=1 RCPTMAX=2"))
		defer h.close()
		h.sends(envelope("a@example.com", "b@example.com", "c@example.com", "d@example.com", "e@example.com"), "accepted accepted accepted accepted accepted")
		time.Sleep(time.Second)
		if s := h.pool.Stats().Relays[0]; s.Closed["uses"] != 3 || s.Closed["broken"] != 0 {
			t.Errorf("%v of %d", s.Closed, s.Opened)
		}
	})
	bubble(t, func(t *testing.T) { // the relay is another while a message is on its way
		h := newHouse(t, 1, nil)
		defer h.close()
		h.relays[0].On(smtptest.Data).Times(1).Delay(10 * time.Second)
		done := make(chan error)
		go func() {
			_, err := h.pool.Deliver(context.Background(), envelope("x@example.com"))
			done <- err
		}()
		time.Sleep(time.Second)
		if err := h.pool.Update(h.config(func(c *smtplb.Config) { c.LocalName = "other.example" })); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if s := h.pool.Stats().Relays[0]; s.Closed["drained"] != 1 || s.Closed["broken"] != 0 {
			t.Errorf("%v", s.Closed)
		}
	})
}

// A relay with which no session comes about for what it said hears QUIT (RFC 5321 §4.1.1.10), and nobody waits for what it answers.
func TestQuitAfterRefusal(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		name string
		set  func(s *smtptest.Server)
		quit bool
	}{
		{"greeting", func(s *smtptest.Server) { s.On(smtptest.Banner).Reply(554, "5.3.2 no service") }, true},
		{"closing", func(s *smtptest.Server) { s.On(smtptest.Banner).Reply(421, "4.3.2 later") }, false},
		{"login", func(s *smtptest.Server) { s.On(smtptest.Auth).Reply(535, "5.7.8 wrong") }, true},
		{"out of step", func(s *smtptest.Server) { s.On(smtptest.Banner).Raw("hello\r\n") }, false},
	} {
		bubble(t, func(t *testing.T) {
			var h *house
			h = newHouse(t, 1, func(c *smtplb.Config) {
				r := &c.Relays[0]
				r.Addr, r.Username, r.Password = "127.0.0.1:25", "u", "p" // without TLS to this host only
				c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
					return h.net.DialContext(ctx, network, "r0.test:25")
				}
			}, smtptest.WithAuth("u", "p"))
			defer h.close()
			quit := h.relays[0].On(smtptest.Quit).Delay(20 * time.Second)
			x.set(h.relays[0])
			begun := time.Now()
			if _, err := h.pool.Deliver(context.Background(), envelope("x@example.com")); err == nil {
				t.Errorf("%s: accepted", x.name)
			}
			if took := time.Since(begun); took > 10*time.Millisecond {
				t.Errorf("%s: it took %v", x.name, took)
			}
			time.Sleep(time.Second)
			if said := quit.Fired() == 1; said != x.quit {
				t.Errorf("%s: QUIT %v", x.name, said)
			}
		})
	}
}
