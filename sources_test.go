package smtplb_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// zone is a Resolver that says what a test wants.
type zone struct {
	mu    sync.Mutex
	srv   map[string][]*net.SRV // by service
	err   error
	hang  bool
	asked int
}

func (z *zone) set(service string, records ...*net.SRV) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.srv, z.err = map[string][]*net.SRV{service: records}, nil
}

func (z *zone) fail(err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.err = err
}

func (z *zone) count() int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.asked
}

func (z *zone) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return nil, errors.New("not asked for here")
}

func (z *zone) LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error) {
	z.mu.Lock()
	z.asked++
	hang, records, err := z.hang, z.srv[service], z.err
	z.mu.Unlock()
	if hang {
		<-ctx.Done()
		return "", nil, ctx.Err()
	}
	if err == nil && len(records) == 0 {
		err = &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return "", records, err
}

func record(i, priority, weight int) *net.SRV {
	return &net.SRV{Target: fmt.Sprintf("r%d.test.", i), Port: 587, Priority: uint16(priority), Weight: uint16(weight)}
}

// newDomain is a pool over the domain example.com and n relays, r0.test:587 and so on, that all have its certificate.
func newDomain(t *testing.T, n int, z *zone, change func(*smtplb.Config), opts ...smtptest.Option) *house {
	h := &house{T: t, net: smtptest.NewNetwork()}
	roots := x509.NewCertPool()
	for i := range n {
		s := h.net.NewServer(fmt.Sprintf("r%d.test:587", i), append([]smtptest.Option{smtptest.WithTLS(), smtptest.WithCertificateFor("example.com")}, opts...)...)
		roots.AddCert(s.Certificate())
		h.relays = append(h.relays, s)
	}
	c := smtplb.Config{Dial: h.net.DialContext, Resolver: z, Relays: []smtplb.Relay{{Addr: "srv:example.com", TLSConfig: &tls.Config{RootCAs: roots}}}}
	if change != nil {
		change(&c)
	}
	pool, err := smtplb.New(c)
	if err != nil {
		t.Fatal(err)
	}
	h.pool = pool
	return h
}

// shown is the pool's relays with tier, weight and messages.
func (h *house) shown() string {
	var s []string
	for _, r := range h.pool.Stats().Relays {
		s = append(s, fmt.Sprintf("%s %d w%d", strings.TrimPrefix(r.Name, "srv:example.com/"), r.Tier, r.Weight))
	}
	return strings.Join(s, ", ")
}

func (h *house) wantShown(want string) {
	h.Helper()
	if got := h.shown(); got != want {
		h.Errorf("the relays are %s, want %s", got, want)
	}
}

func (h *house) takes(to string) *smtplb.Receipt {
	h.Helper()
	r, err := h.pool.Deliver(context.Background(), envelope(to))
	if err != nil || outcomes(r) != "accepted" {
		h.Errorf("%v: %v", r, err)
	}
	return r
}

func TestDomain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{}
		z.set("submission", record(0, 10, 3), record(1, 10, 1), record(2, 20, 1))
		h := newDomain(t, 3, z, func(c *smtplb.Config) { c.Relays[0].Weight, c.Relays[0].Tier, c.Balancer = 2, 5, smtplb.RoundRobin() })
		defer h.close()
		if z.count() != 0 || len(h.pool.Stats().Relays) != 0 {
			t.Error("New asked DNS")
		}
		if p, err := h.pool.Explain(t.Context(), envelope("a@example.com")); err != nil || len(p.Candidates) != 0 || p.Hopeless || !strings.Contains(p.String(), "srv:example.com: DNS was not asked yet") {
			t.Errorf("%v: %v", p, err)
		}
		for range 8 {
			h.takes("a@example.com")
		}
		h.wantShown("r0.test:587 5 w6, r1.test:587 5 w2, r2.test:587 5 w2")
		if a, b, c := len(h.relays[0].Messages()), len(h.relays[1].Messages()), len(h.relays[2].Messages()); a != 6 || b != 2 || c != 0 {
			t.Errorf("stored %d %d %d", a, b, c)
		}
		h.wantPlan(envelope("a@example.com"), "srv:example.com/r0.test:587 75% | srv:example.com/r1.test:587 25% | -srv:example.com/r2.test:587 a server to which DNS gives priority can take it")
		h.relays[0].Kill()
		h.relays[1].Kill()
		if r := h.takes("a@example.com"); r.Recipients[0].Relay != "srv:example.com/r2.test:587" {
			t.Errorf("the second priority: %v", r)
		}
		s := h.pool.Stats()
		if d := s.Domains; len(d) != 1 || d[0].Name != "srv:example.com" || d[0].Domain != "example.com" || d[0].Relays != 3 || d[0].Error != "" || d[0].Answered.IsZero() || !d[0].Next.After(time.Now()) {
			t.Errorf("%+v", d)
		}
		if len(s.Events) < 4 || s.Events[0].State != "resolved" || s.Events[1].State != "added" || s.Events[1].Reason != "SRV records of example.com" {
			t.Errorf("%+v", s.Events)
		}
		if n := z.count(); n != 2 { // _submissions, _submission
			t.Errorf("asked %d times", n)
		}
	})
}

// What DNS changes comes in while mail is sent; who stays keeps connections and figures, also where there is an Auth function.
func TestDomainChanges(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{}
		z.set("submission", record(0, 1, 1), record(1, 1, 1))
		var mu sync.Mutex
		var states []string
		h := newDomain(t, 3, z, func(c *smtplb.Config) {
			c.Relays[0].Name, c.Relays[0].Auth = "mail", smtplb.TokenAuth("user", func(context.Context, smtplb.AuthRequest) (string, error) { return "token", nil })
			c.Hooks.RelayState = func(e smtplb.RelayEvent) {
				mu.Lock()
				defer mu.Unlock()
				states = append(states, e.Relay+" "+e.State)
			}
		}, smtptest.WithAuth("user", "token", "XOAUTH2"))
		defer h.close()
		h.use(10 * time.Second)
		before := h.pool.Stats().Relays[1]
		if before.Name != "mail/r1.test:587" || before.Opened != 1 || before.Messages == 0 {
			t.Errorf("%+v", before)
		}
		z.set("submission", record(1, 1, 1), record(2, 1, 1))
		h.use(75 * time.Second)
		s := h.pool.Stats()
		if len(s.Relays) != 2 || s.Relays[0].Name != before.Name || s.Relays[0].Opened != 1 || s.Relays[0].Messages <= before.Messages || s.Relays[1].Messages == 0 {
			t.Errorf("%+v", s.Relays)
		}
		if last := h.relays[0].Transcript(); !strings.Contains(last, "QUIT") {
			t.Errorf("the relay that went saw\n%s", last)
		}
		mu.Lock()
		defer mu.Unlock()
		want := []string{"mail resolved", "mail/r0.test:587 added", "mail/r1.test:587 added", "mail/r0.test:587 removed", "mail/r2.test:587 added"}
		if !slices.Equal(states, want) {
			t.Errorf("told %q", states)
		}
	})
}

// Where DNS fails the last good answer is kept.
func TestDomainFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{}
		z.fail(errors.New("server misbehaving"))
		h := newDomain(t, 2, z, nil)
		defer h.close()
		r, err := h.pool.Deliver(t.Context(), envelope("a@example.com"))
		var se *smtplb.SendError
		if !errors.Is(err, smtplb.ErrNoRelay) || !errors.Is(err, smtplb.ErrTemporary) || !strings.Contains(err.Error(), "srv:example.com: ") || !strings.Contains(err.Error(), "server misbehaving") ||
			!errors.As(err, &se) || se.RetryAfter <= 0 || se.RetryAfter > 6*time.Second || outcomes(r) != "deferred" {
			t.Errorf("%v: %v", r, err)
		}
		z.set("submission", record(0, 1, 1))
		time.Sleep(se.RetryAfter + time.Second)
		synctest.Wait()
		h.takes("a@example.com")
		z.fail(errors.New("server misbehaving"))
		h.use(3 * time.Minute)
		h.wantShown("r0.test:587 0 w1")
		s := h.pool.Stats()
		if d := s.Domains[0]; d.Relays != 1 || !strings.Contains(d.Error, "server misbehaving") || time.Since(d.Answered) < 2*time.Minute {
			t.Errorf("%+v", d)
		}
		last := s.Events[len(s.Events)-1]
		if last.State != "unresolved" || !strings.HasSuffix(last.Reason, "the last answer is kept: 1 relays") {
			t.Errorf("%+v", last)
		}
		if p, _ := h.pool.Explain(t.Context(), envelope("a@example.com")); len(p.Candidates) != 1 || len(p.Skipped) != 0 {
			t.Errorf("%v", p)
		}
	})
}

// A domain that offers nothing says so, in words, and is no reason to call recipients failed.
func TestDomainOffersNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{}
		z.set("submission", &net.SRV{Target: ".", Port: 0})
		h := newDomain(t, 1, z, nil)
		defer h.close()
		r, err := h.pool.Deliver(t.Context(), envelope("a@example.com"))
		if outcomes(r) != "deferred" || !errors.Is(err, smtplb.ErrNoRelay) || !strings.Contains(err.Error(), "offers no submission") {
			t.Errorf("%v: %v", r, err)
		}
		p, err := h.pool.Explain(t.Context(), envelope("a@example.com"))
		if err != nil || p.NextChance.IsZero() || !strings.Contains(p.String(), "srv:example.com: the domain offers no submission") {
			t.Errorf("%v: %v", p, err)
		}

		// It is there, and goes: who waits for it is told.
		z.set("submission", record(0, 1, 1))
		time.Sleep(75 * time.Second)
		h.takes("a@example.com")
		z.set("submission", &net.SRV{Target: "."})
		time.Sleep(75 * time.Second)
		if _, err := h.pool.Deliver(t.Context(), envelope("a@example.com")); !errors.Is(err, smtplb.ErrNoRelay) {
			t.Error(err)
		}
		if n := h.relays[0].Stats(); len(h.pool.Stats().Relays) != 0 || !strings.Contains(h.relays[0].Transcript(), "QUIT") {
			t.Errorf("%+v", n)
		}
	})
}

// Implicit TLS comes first; the certificate must be the domain's.
func TestDomainTLS(t *testing.T) {
	for _, test := range []struct {
		name, certificate string
		want              string
	}{
		{"the domain's", "example.com", "accepted"},
		{"the host's", "r0.test", "deferred"},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				z := &zone{}
				z.set("submissions", &net.SRV{Target: "r0.test.", Port: 465})
				n := smtptest.NewNetwork()
				s := n.NewServer("r0.test:465", smtptest.WithImplicitTLS(), smtptest.WithCertificateFor(test.certificate))
				defer s.Close()
				roots := x509.NewCertPool()
				roots.AddCert(s.Certificate())
				pool, err := smtplb.New(smtplb.Config{Dial: n.DialContext, Resolver: z, Relays: []smtplb.Relay{{
					Addr: "srv:example.com", TLS: smtplb.TLSImplicit, TLSConfig: &tls.Config{RootCAs: roots},
				}}})
				if err != nil {
					t.Fatal(err)
				}
				defer pool.Close()
				if r, err := pool.Deliver(t.Context(), envelope("a@example.com")); outcomes(r) != test.want {
					t.Errorf("%v: %v", r, err)
				}
			})
		})
	}
	t.Run("STARTTLS where implicit TLS is wanted", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			z := &zone{}
			z.set("submission", record(0, 1, 1))
			h := newDomain(t, 1, z, func(c *smtplb.Config) { c.Relays[0].TLS = smtplb.TLSImplicit })
			defer h.close()
			r, err := h.pool.Deliver(t.Context(), envelope("a@example.com"))
			if outcomes(r) != "deferred" || !errors.Is(err, smtplb.ErrNoRelay) || !strings.Contains(err.Error(), "but by STARTTLS") {
				t.Errorf("%v: %v", r, err)
			}
		})
	})
	for _, mode := range []smtplb.TLSMode{smtplb.TLSNone, smtplb.TLSOpportunistic, smtplb.TLSStartTLS} {
		_, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{{Addr: "srv:example.com", TLS: mode}}})
		if paths, _ := faults(t, err); !slices.Contains(paths, "Relays[0].TLS") {
			t.Errorf("%v: %v", mode, err)
		}
	}
}

// The first sends wait for the first answer, together, each no longer than its context; with other relays only for a moment.
func TestDomainFirstAnswer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{hang: true}
		h := newDomain(t, 1, z, nil)
		defer h.close()
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+i)*time.Second/2)
				defer cancel()
				start := time.Now()
				r, err := h.pool.Deliver(ctx, envelope("a@example.com"))
				if outcomes(r) != "deferred" || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Duration(1+i)*time.Second/2 {
					t.Errorf("after %v: %v", time.Since(start), err)
				}
			})
		}
		wg.Wait()
		if n := z.count(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		start := time.Now()
		if _, err := h.pool.Deliver(t.Context(), envelope("a@example.com")); !errors.Is(err, smtplb.ErrNoRelay) || time.Since(start) != 5*time.Second { // of the 10 s of a lookup
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
	t.Run("with another relay", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			z := &zone{hang: true}
			h := newDomain(t, 1, z, func(c *smtplb.Config) {
				r := c.Relays[0]
				r.Addr, r.TLSConfig = "r0.test:587", &tls.Config{RootCAs: r.TLSConfig.RootCAs, ServerName: "example.com"}
				c.Relays = append(c.Relays, r)
			})
			defer h.close()
			start := time.Now()
			if h.takes("a@example.com"); time.Since(start) != 2*time.Second {
				t.Errorf("after %v", time.Since(start))
			}
		})
	})
	t.Run("closed meanwhile", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			z := &zone{hang: true}
			h := newDomain(t, 1, z, nil)
			defer h.close()
			done := make(chan error, 1)
			go func() {
				_, err := h.pool.Deliver(t.Context(), envelope("a@example.com"))
				done <- err
			}()
			synctest.Wait()
			h.pool.Close()
			if err := <-done; !errors.Is(err, smtplb.ErrClosed) {
				t.Error(err)
			}
		})
	})
}

// Nobody asks DNS for a pool that nobody uses, and the first message after that does.
func TestDomainRests(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{}
		z.set("submissions", &net.SRV{Target: "r0.test.", Port: 465})
		h := newDomain(t, 1, z, nil)
		defer h.close()
		h.pool.Deliver(t.Context(), envelope("a@example.com"))
		time.Sleep(10 * time.Minute)
		n := z.count()
		if n < 5 || n > 9 {
			t.Errorf("asked %d times in 10 minutes, of which 5 are in use", n)
		}
		time.Sleep(24 * time.Hour)
		if z.count() != n {
			t.Errorf("asked %d times by an idle pool", z.count()-n)
		}
		h.pool.Deliver(t.Context(), envelope("a@example.com"))
		time.Sleep(2 * time.Second)
		if z.count() != n+1 {
			t.Errorf("asked %d times after the next message", z.count()-n)
		}
	})
}

// Updates and lookups at the same time.
func TestDomainUpdate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		z := &zone{}
		z.set("submission", record(0, 1, 1))
		var config smtplb.Config
		h := newDomain(t, 2, z, func(c *smtplb.Config) { config = *c })
		defer h.close()
		h.takes("a@example.com")
		before := h.pool.Stats().Relays[0]

		c := config // the same, weighed anew: it needs no new answer. (There is a Dial function: connections are drained.)
		c.Relays = slices.Clone(config.Relays)
		c.Relays[0].Weight = 7
		if err := h.pool.Update(c); err != nil {
			t.Fatal(err)
		}
		h.takes("a@example.com")
		h.wantShown("r0.test:587 0 w7")
		if s := h.pool.Stats().Relays[0]; s.Messages != before.Messages+1 || s.Closed["drained"] != 1 || z.count() != 2 {
			t.Errorf("asked %d times, %+v", z.count(), s)
		}

		z.set("submission", record(1, 1, 1))
		z.mu.Lock()
		z.hang = true
		z.mu.Unlock()
		h.use(75 * time.Second) // a lookup is under way
		c.Relays[0].Name = "other"
		if err := h.pool.Update(c); err != nil {
			t.Fatal(err)
		}
		z.mu.Lock()
		z.hang = false
		z.mu.Unlock()
		if r := h.takes("a@example.com"); r.Recipients[0].Relay != "other/r1.test:587" {
			t.Errorf("%v", r)
		}
		h.use(15 * time.Second) // the old lookup ends, and is nobody's
		h.wantShown("other/r1.test:587 0 w7")
		if h.pool.Close(); !errors.Is(h.pool.Update(config), smtplb.ErrClosed) {
			t.Error("Update after Close")
		}
	})
}
