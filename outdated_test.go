package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// What somebody does by an old configuration while an Update changes it.

// newLogins is a house whose relays want the password "new", and whose configuration has "old" for one of them. renew mends that.
func newLogins(t *testing.T, n, wrong int, change func(*smtplb.Config)) (h *house, d *dialler, renew func()) {
	d = &dialler{ways: map[string]way{}, dials: map[string]int{}}
	h = &house{T: t, net: smtptest.NewNetwork()}
	d.net = h.net
	c := smtplb.Config{Dial: d.dial, Balancer: inOrder{}, Health: smtplb.Health{Interval: -1}}
	for i := range n {
		addr := fmt.Sprintf("r%d.test:25", i)
		s := h.net.NewServer(addr, smtptest.WithTLS(), smtptest.WithAuth("user", "new"))
		h.relays = append(h.relays, s)
		c.Relays = append(c.Relays, smtplb.Relay{Name: fmt.Sprintf("r%d", i), Addr: addr, TLSConfig: s.ClientTLS(), Username: "user", Password: "new"})
	}
	c.Relays[wrong].Password = "old"
	if change != nil {
		change(&c)
	}
	pool, err := smtplb.New(c)
	if err != nil {
		t.Fatal(err)
	}
	h.pool = pool
	return h, d, func() {
		c.Relays = slices.Clone(c.Relays)
		c.Relays[wrong].Password = "new"
		if err := pool.Update(c); err != nil {
			t.Error(err)
		}
	}
}

// A dial that lost its race goes on by the old password, which is not held against the new one; nor is a connection that it makes by an old configuration kept.
func TestOutdatedLoser(t *testing.T) {
	for _, wrong := range []int{0, 1} { // r0 loses: it is refused, or gets its connection
		t.Run(fmt.Sprint(wrong), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h, d, renew := newLogins(t, 3, wrong, func(c *smtplb.Config) { c.Relays[2].Tier, c.Retry.Attempts = 0, -1 })
				defer h.close()
				d.set(0, way{after: 5 * time.Second})
				if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil || !r.Attempts[0].Hedged {
					t.Fatalf("%v: %v", r, err)
				}
				renew()
				time.Sleep(10 * time.Second)
				h.quiet()
				if s := h.pool.Stats().Relays[0]; s.State == "open" || s.Trips != 0 || s.Faults != 0 || s.Idle != 0 {
					t.Errorf("%+v", s)
				}
				commands := h.relays[0].Stats().Commands
				if wrong == 1 && commands["QUIT"] != 1 {
					t.Errorf("the connection had no QUIT: %v", commands)
				}
			})
		})
	}
}

// A Ping, and a check, that was under way when a password was changed.
func TestOutdatedChecks(t *testing.T) {
	const relays = 6 // more than are checked at a time
	bubble(t, func(t *testing.T) {
		h, _, renew := newLogins(t, relays, relays-1, nil)
		defer h.close()
		for _, r := range h.relays[:relays-1] {
			r.On(smtptest.Ehlo).Delay(2 * time.Second)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := h.pool.Ping(context.Background()); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(time.Second)
		renew()
		wg.Wait()
		if s := h.pool.Stats().Relays[relays-1]; s.State == "open" || s.Trips != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// Who waits when an Update leaves nothing but a domain waits for DNS, as a new send does.
func TestUpdateToADomain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{}
		z.set("submission", record(0, 0, 0))
		var config smtplb.Config
		h := newDomain(t, 1, z, func(c *smtplb.Config) {
			config = *c
			config.Relays = slices.Clone(c.Relays)
			r := &c.Relays[0]
			r.Addr, r.Conns.Max, r.TLSConfig = "r0.test:587", 1, r.TLSConfig.Clone()
			r.TLSConfig.ServerName = "example.com"
		})
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Times(1).Delay(5 * time.Second)
		var wg sync.WaitGroup
		for i := range 2 {
			wg.Go(func() { h.takes(fmt.Sprintf("u%d@example.com", i)) })
			time.Sleep(time.Second)
		}
		if err := h.pool.Update(config); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
	})
}

// fickle is a Resolver that can't be compared with another.
type fickle struct {
	*zone
	_ func()
}

// Another Resolver makes no other relays: connections, figures and what an operator wants of them stay, also where the new one doesn't answer.
func TestUpdateResolver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{}
		z.set("submission", record(0, 0, 0), record(1, 0, 0))
		var config smtplb.Config
		h := newDomain(t, 2, z, func(c *smtplb.Config) { config = *c; config.Relays = slices.Clone(c.Relays) })
		defer h.close()
		h.takes("a@example.com")
		const drained = "srv:example.com/r0.test:587"
		if err := h.pool.SetAdmin(drained, smtplb.AdminDrain); err != nil {
			t.Fatal(err)
		}
		broken := &zone{}
		broken.fail(errors.New("SERVFAIL"))
		for _, resolver := range []smtplb.Resolver{fickle{zone: z}, fickle{zone: z}, broken, broken} {
			config.Resolver = resolver
			if err := h.pool.Update(config); err != nil {
				t.Fatal(err)
			}
			h.takes("b@example.com")
			for _, r := range h.pool.Stats().Relays {
				if (r.Name == drained) != (r.State == "drain") {
					t.Errorf("%T: %s is %s", resolver, r.Name, r.State)
				}
			}
		}
	})
}

// madResolver panics, ends its goroutine, and then answers.
type madResolver struct {
	*zone
	calls *int
}

func (r madResolver) LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error) {
	*r.calls++
	switch *r.calls {
	case 1:
		panic("resolver")
	case 2:
		runtime.Goexit()
	}
	return r.zone.LookupSRV(ctx, service, proto, name)
}

// A Resolver is the caller's code.
func TestMadResolver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{}
		z.set("submission", record(0, 0, 0))
		h := newDomain(t, 1, z, func(c *smtplb.Config) { c.Resolver = madResolver{z, new(int)} })
		defer h.close()
		begun := time.Now()
		_, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		if !errors.Is(err, smtplb.ErrNoRelay) || !strings.Contains(fmt.Sprint(err), "panicked: resolver") || time.Since(begun) > 0 {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		time.Sleep(7 * time.Second) // it is asked again after 5 s or so
		if d := h.pool.Stats().Domains[0]; !strings.Contains(d.Error, "did not return") || d.Next.IsZero() {
			t.Errorf("%+v", d)
		}
		time.Sleep(30 * time.Second)
		h.takes("x@example.com")
		if err := h.pool.Update(smtplb.Config{}); err == nil || !strings.Contains(err.Error(), "Relays") { // it is not held up
			t.Error(err)
		}
	})
}

// madBalancer makes a picker for whole relays, and panics otherwise.
type madBalancer struct {
	smtplb.Balancer
	asked *atomic.Int64
}

func (b madBalancer) NewPicker(relays []smtplb.RelayView) smtplb.Picker {
	b.asked.Add(1)
	for _, r := range relays {
		if r.Weight() != 1 {
			panic("balancer")
		}
	}
	return b.Balancer.NewPicker(relays)
}

// A Balancer that panics is an error of New and Update; when the clock asks it, the old picker stays.
func TestMadBalancer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var asked atomic.Int64
		h := newHouse(t, 2, func(c *smtplb.Config) { c.Balancer, c.Health.Interval = madBalancer{smtplb.RoundRobin(), &asked}, -1 })
		defer h.close()
		_, err := smtplb.New(smtplb.Config{Balancer: madBalancer{nil, &asked}, Relays: []smtplb.Relay{{Addr: "r.test", Weight: 2}}})
		var ce *smtplb.ConfigError
		if !errors.As(err, &ce) || ce.Path != "Balancer" || !strings.Contains(ce.Reason, "panicked: balancer") {
			t.Error(err)
		}
		h.use(5 * time.Second)
		asked.Store(0)
		if err := h.pool.SetAdmin("r0", smtplb.AdminDrain); err != nil {
			t.Fatal(err)
		}
		h.use(5 * time.Second)
		if n := asked.Load(); n != 1 {
			t.Errorf("for the same weights it was asked %d times", n)
		}
		if s := h.pool.Stats().Relays; s[1].Accepted < 5 || s[0].Accepted == 0 {
			t.Errorf("%+v", s)
		}
	})
}
