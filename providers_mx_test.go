package smtplb_test

import (
	"context"
	"errors"
	"fmt"
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

// operators is an MXResolver that says what a test wants.
type operators struct {
	mu    sync.Mutex
	hosts map[string]string // by domain, apart by spaces; none: no such domain
	err   error
	takes time.Duration
	does  func(ctx context.Context)
	asked map[string]int
	now   int // lookups under way
	most  int
}

func (o *operators) LookupMX(ctx context.Context, name string) ([]*net.MX, error) {
	o.mu.Lock()
	if o.asked == nil {
		o.asked = map[string]int{}
	}
	o.asked[strings.TrimSuffix(name, ".")]++
	o.now++
	o.most = max(o.most, o.now)
	takes, does := o.takes, o.does
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		o.now--
		o.mu.Unlock()
	}()
	if does != nil {
		does(ctx)
	}
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return nil, o.err
	}
	var list []*net.MX
	for _, h := range strings.Fields(o.hosts[strings.TrimSuffix(name, ".")]) {
		list = append(list, &net.MX{Host: h, Pref: 10})
	}
	if list == nil {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return list, nil
}

func (o *operators) set(change func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	change()
}

// lookups is how often a domain was asked for.
func (o *operators) lookups(name string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.asked[name]
}

// provider is the provider that the pool knows of an address now.
func (h *house) provider(to ...string) string {
	h.Helper()
	p, err := h.pool.Explain(context.Background(), envelope(to...))
	if err != nil {
		h.Error(err)
	}
	return p.Provider
}

// sendsIn sends, and is to take that long.
func (h *house) sendsIn(want time.Duration, to ...string) {
	h.Helper()
	begun := time.Now()
	h.sends(envelope(to...), strings.TrimSuffix(strings.Repeat("accepted ", len(to)), " "))
	if took := time.Since(begun); took != want {
		h.Errorf("a message to %s took %v, not %v", to[0], took, want)
	}
}

const google = "aspmx.l.google.com. ALT1.ASPMX.L.Google.com. aspmx2.googlemail.com."

// Each domain is the provider's whose hosts take its mail, all of them.
func TestMXProviders(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := &operators{takes: 10 * time.Millisecond, hosts: map[string]string{
			"workspace.example":     google,
			"new.example":           "smtp.google.com.",
			"m365.example":          "m365-example.mail.protection.outlook.com.",
			"dane.example":          "dane-example.o-v1.mx.microsoft.",
			"hotmail.example":       "hotmail-com.olc.protection.outlook.com.",
			"yahoo.example":         "mta5.am0.yahoodns.net. mta6.am0.yahoodns.net.",
			"icloud.example":        "mx01.mail.icloud.com. mx02.mail.icloud.com.",
			"half.example":          "aspmx.l.google.com. mx.half.example.",
			"two.example":           "aspmx.l.google.com. mx01.mail.icloud.com.",
			"like.example":          "aspmx.l.notgoogle.com.",
			"below.example":         "google.com.evil.test.",
			"null.example":          ".",
			"xn--bcher-kva.example": "mx.hosted.example.",
			"gmail.com":             "mx.hosted.example.",
		}}
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.MXResolver = o
			c.Providers = []smtplb.Provider{{Name: "hosted", MXSuffixes: []string{"Hosted.Example"}}}
		})
		defer h.close()
		if n := h.pool.Stats().MX; n != (smtplb.MXStats{}) || h.pool.Background() != 0 {
			t.Errorf("New asked: %v", n)
		}
		for _, x := range []struct{ domain, ascii, want string }{
			{"workspace.example", "", "gmail"}, {"new.example", "", "gmail"}, {"m365.example", "", "microsoft"}, {"dane.example", "", "microsoft"}, {"hotmail.example", "", "microsoft"},
			{"yahoo.example", "", "yahoo"}, {"icloud.example", "", "apple"}, {"half.example", "", ""}, {"two.example", "", ""}, {"like.example", "", ""}, {"below.example", "", ""}, {"null.example", "", ""},
			{"nothing.example", "", ""}, {"WorkSpace.EXAMPLE", "workspace.example", "gmail"}, {"bücher.example", "xn--bcher-kva.example", "hosted"},
		} {
			if x.ascii == "" {
				x.ascii = x.domain
			}
			begun, first := time.Now(), o.lookups(x.ascii) == 0
			h.sends(envelope("x@"+x.domain), "accepted")
			if took := time.Since(begun); first != (took == 10*time.Millisecond) {
				t.Errorf("the message to %s took %v", x.domain, took)
			}
			if got := h.provider("y@" + x.domain); got != x.want || o.lookups(x.ascii) != 1 {
				t.Errorf("%s is of %q, want %q; %d lookups", x.domain, got, x.want, o.lookups(x.ascii))
			}
		}
		// Nobody asks who takes the mail of domains that are named, of address literals and of hosts without a domain.
		for _, to := range []string{"x@gmail.com", "x@[192.0.2.1]", "x@localhost"} {
			h.sendsIn(0, to)
		}
		if n := h.pool.Stats().MX; n.Lookups != 14 || n.Domains != 14 || n.Failures != 0 || n.Missed != 0 || h.provider("x@gmail.com") != "gmail" {
			t.Errorf("%+v", n)
		}
		if got := h.provider("a@workspace.example", "b@gmail.com"); got != "gmail" {
			t.Errorf("both of gmail are of %q", got)
		}
		if got := h.provider("a@workspace.example", "b@m365.example"); got != "" {
			t.Errorf("those of two providers are of %q", got)
		}
	})
}

// Limits of a provider are shared by the domains whose mail it takes, from the first message on; others don't wait with them.
func TestMXProviderLimits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := &operators{hosts: map[string]string{"a.example": google, "b.example": "smtp.google.com."}}
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.MXResolver = o
			c.Providers = []smtplb.Provider{{Name: "gmail", Limits: smtplb.Limits{Messages: smtplb.Rate{N: 1, Per: time.Second, Burst: 1}}}}
		})
		defer h.close()
		begun := time.Now()
		for _, to := range []string{"x@a.example", "x@b.example", "x@gmail.com"} {
			h.sends(envelope(to), "accepted")
		}
		if took := time.Since(begun); took < 2*time.Second || took > 2*time.Second+time.Millisecond {
			t.Errorf("three messages at one a second took %v", took)
		}
		// One message parts: that of others doesn't wait for gmail's next second.
		time.AfterFunc(500*time.Millisecond, func() {
			if n := len(h.relays[0].Messages()); n != 4 {
				t.Errorf("%d messages after half a second, want the first three and the others'", n)
			}
		})
		begun = time.Now()
		h.sends(envelope("x@a.example", "x@other.example", "y@b.example", "y@gmail.com"), "accepted accepted accepted accepted")
		if n, took := len(h.relays[0].Messages()), time.Since(begun); n != 5 || took < 990*time.Millisecond || took > time.Second+time.Millisecond {
			t.Errorf("%d messages, the last after %v", n, took)
		}
	})
}

// An answer counts for an hour, one without hosts for ten minutes, a failure for one; meanwhile nobody asks, and afterwards nobody waits.
func TestMXAges(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := &operators{takes: 100 * time.Millisecond, hosts: map[string]string{"a.example": google}}
		h := newHouse(t, 1, func(c *smtplb.Config) { c.MXResolver = o })
		defer h.close()
		at := func(d time.Duration) {
			t.Helper()
			time.Sleep(d)
			h.sendsIn(0, "x@a.example")
			h.sendsIn(0, "x@none.example")
			time.Sleep(time.Second) // for lookups to end
		}
		want := func(a, none int, provider string) {
			t.Helper()
			if x, y, p := o.lookups("a.example"), o.lookups("none.example"), h.provider("x@a.example"); x != a || y != none || p != provider {
				t.Errorf("%d and %d lookups, %q, want %d and %d, %q", x, y, p, a, none, provider)
			}
		}
		h.sendsIn(100*time.Millisecond, "x@a.example")
		h.sendsIn(100*time.Millisecond, "x@none.example")
		at(9 * time.Minute)
		want(1, 1, "gmail")
		at(time.Minute)
		want(1, 2, "gmail")
		at(49 * time.Minute)
		want(1, 3, "gmail")
		o.set(func() { o.err = errors.New("server misbehaving") })
		at(time.Minute)
		want(2, 3, "gmail") // the last answer holds
		at(58 * time.Second)
		want(2, 3, "gmail")
		at(time.Second)
		want(3, 3, "gmail")
		o.set(func() { o.err, o.hosts = nil, map[string]string{"a.example": "mx01.mail.icloud.com."} })
		at(10 * time.Minute)
		want(4, 4, "apple")
		if n := h.pool.Stats().MX; n.Failures != 2 || n.Lookups != 8 || n.Missed != 0 {
			t.Errorf("%+v", n)
		}
	})
}

// Where DNS doesn't answer, one message waits a second, and no other; when it is quick again, first messages wait for it again.
func TestMXSlow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := &operators{takes: time.Hour, hosts: map[string]string{"d5.example": google}}
		h := newHouse(t, 1, func(c *smtplb.Config) { c.MXResolver = o })
		defer h.close()
		to := func(i int) string { return fmt.Sprintf("x@d%d.example", i) }
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		begun := time.Now()
		if _, err := h.pool.Deliver(ctx, envelope(to(0))); err != nil || time.Since(begun) != 200*time.Millisecond {
			t.Errorf("with 2 s it took %v: %v", time.Since(begun), err)
		}
		h.sendsIn(time.Second, to(1)) // that the other's time was short says nothing of DNS
		h.sendsIn(0, to(2))
		h.sendsIn(0, to(1))
		if n := h.pool.Stats().MX; n.Missed != 4 || n.Lookups != 0 {
			t.Errorf("%+v", n)
		}
		time.Sleep(11 * time.Second) // they end after ten
		synctest.Wait()
		if n := h.pool.Stats().MX; n.Failures != 3 || h.pool.Background() != 0 {
			t.Errorf("%+v, %d goroutines", n, h.pool.Background())
		}
		o.set(func() { o.takes = 50 * time.Millisecond })
		h.sendsIn(0, to(3))
		time.Sleep(time.Second)
		h.sendsIn(50*time.Millisecond, to(5))
		if p := h.provider(to(5)); p != "gmail" {
			t.Errorf("it is of %q", p)
		}
		// The caller's context ends the waiting, too.
		o.set(func() { o.takes = 700 * time.Millisecond })
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(30*time.Millisecond, cancel)
		begun = time.Now()
		if _, err := h.pool.Deliver(ctx, envelope(to(6))); !errors.Is(err, context.Canceled) || time.Since(begun) != 30*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
	})
}

// A message to 100 domains waits a second at the most, and no more than 16 of them are asked for at a time; those who send to one domain at once ask once.
func TestMXMany(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := &operators{takes: 100 * time.Millisecond, hosts: map[string]string{}}
		var to []string
		for i := range 100 {
			to = append(to, fmt.Sprintf("x@d%d.example", i))
			o.hosts[fmt.Sprintf("d%d.example", i)] = google
		}
		h := newHouse(t, 1, func(c *smtplb.Config) { c.MXResolver = o })
		defer h.close()
		h.sendsIn(700*time.Millisecond, to...)
		if n := h.pool.Stats().MX; o.most != 16 || n.Lookups != 100 || n.Missed != 0 || h.provider(to...) != "gmail" {
			t.Errorf("%d at a time; %+v", o.most, n)
		}
		o.set(func() { o.takes = 500 * time.Millisecond })
		for i := range to {
			to[i] = fmt.Sprintf("x@e%d.example", i)
		}
		h.sendsIn(time.Second, to...) // 32 answers came
		if n := h.pool.Stats().MX; n.Missed < 68 || n.Missed > 84 {
			t.Errorf("%+v", n)
		}
		time.Sleep(5 * time.Second)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() { h.sends(envelope("x@one.example"), "accepted") })
		}
		wg.Wait()
		synctest.Wait() // a lookup, and the clock's beat, end a moment after they have told
		if n := h.pool.Stats().MX; n.Lookups != 201 || o.lookups("one.example") != 1 || h.pool.Background() != 0 {
			t.Errorf("%+v; %d lookups of one domain", n, o.lookups("one.example"))
		}
	})
}

// Close and Shutdown end lookups, and what a resolver does is no message's problem.
func TestMXEnds(t *testing.T) {
	for _, how := range []string{"Close", "Shutdown"} {
		bubble(t, func(t *testing.T) {
			o := &operators{takes: time.Hour}
			h := newHouse(t, 1, func(c *smtplb.Config) { c.MXResolver = o })
			defer h.close()
			var to []string
			for i := range 40 {
				to = append(to, fmt.Sprintf("x@d%d.example", i))
			}
			h.sendsIn(time.Second, to...)
			synctest.Wait() // a lookup, and the clock's beat, end a moment after they have told
			if n := h.pool.Background(); n != 16 {
				t.Errorf("%d goroutines", n)
			}
			begun := time.Now()
			if how == "Close" {
				h.pool.Close()
			} else if err := h.pool.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			if n := h.pool.Stats().MX; time.Since(begun) > 2*time.Second || h.pool.Background() != 0 || n.Lookups != 40 {
				t.Errorf("%s took %v; %d goroutines, %+v", how, time.Since(begun), h.pool.Background(), n)
			}
		})
	}
	for name, does := range map[string]func(context.Context){
		"panics": func(context.Context) { panic("so it does") },
		"exits":  func(context.Context) { runtime.Goexit() },
	} {
		bubble(t, func(t *testing.T) {
			o := &operators{does: does}
			h := newHouse(t, 1, func(c *smtplb.Config) { c.MXResolver = o })
			defer h.close()
			for i := range 20 { // more than may be asked for at a time
				h.sendsIn(0, fmt.Sprintf("x@d%d.example", i))
			}
			synctest.Wait() // a lookup, and the clock's beat, end a moment after they have told
			if n := h.pool.Stats().MX; n.Failures != 20 || h.pool.Background() != 0 {
				t.Errorf("where it %s: %+v", name, n)
			}
		})
	}
}

// An Update that knows other suffixes has domains looked up again; one without a resolver asks nobody, and knows no providers by MX.
func TestMXUpdate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := &operators{takes: 10 * time.Millisecond, hosts: map[string]string{"a.example": "mx.hosted.example."}}
		var c smtplb.Config
		h := newHouse(t, 1, func(x *smtplb.Config) { x.MXResolver = o; c = *x })
		defer h.close()
		update := func() {
			t.Helper()
			if err := h.pool.Update(c); err != nil {
				t.Fatal(err)
			}
		}
		h.sendsIn(10*time.Millisecond, "x@a.example")
		update()
		h.sendsIn(0, "x@a.example")
		c.Providers = []smtplb.Provider{{Name: "hosted", MXSuffixes: []string{"hosted.example"}}}
		update()
		h.sendsIn(10*time.Millisecond, "x@a.example")
		if p := h.provider("x@a.example"); p != "hosted" || o.lookups("a.example") != 2 {
			t.Errorf("%q after %d lookups", p, o.lookups("a.example"))
		}
		c.MXResolver, c.Providers[0].Domains = nil, []string{"other.example"}
		update()
		h.sendsIn(0, "x@a.example")
		h.sendsIn(0, "x@b.example")
		if p := h.provider("x@a.example"); p != "" || o.lookups("b.example") != 0 {
			t.Errorf("%q without a resolver, %d lookups", p, o.lookups("b.example"))
		}
	})
}

// A provider's refusals hold back the domains whose mail it takes, and no others.
func TestMXBackOff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		o := &operators{hosts: map[string]string{"a.example": google}}
		h := newHouse(t, 1, func(c *smtplb.Config) { c.MXResolver = o })
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Times(1).Reply(421, "4.7.28 Gmail has detected an unusual rate of unsolicited mail")
		_, _ = h.pool.Deliver(t.Context(), envelope("x@a.example"))
		if text := h.pool.Stats().Relays[0].BackOff; !strings.HasPrefix(text, "gmail: ") {
			t.Errorf("held back: %q", text)
		}
	})
}

func TestMXConfig(t *testing.T) {
	relays := []smtplb.Relay{{Addr: "r0.test:25"}}
	for _, x := range []struct {
		providers []smtplb.Provider
		resolver  smtplb.MXResolver
		want      string
	}{
		{[]smtplb.Provider{{Name: "a", MXSuffixes: []string{"mx.a.example"}}}, &operators{}, ""},
		{[]smtplb.Provider{{Name: "a", MXSuffixes: []string{"mx.a.example"}}}, nil, "Providers[0].MXSuffixes: goes with an MXResolver"},
		{[]smtplb.Provider{{Name: "a", Domains: []string{"a.example"}, MXSuffixes: []string{"mx.a.example"}}}, nil, ""},
		{[]smtplb.Provider{{Name: "a", MXSuffixes: []string{"com"}}}, &operators{}, `Providers[0].MXSuffixes[0]: "com" would be all hosts`},
		{[]smtplb.Provider{{Name: "a", MXSuffixes: []string{"*.a.example"}}}, &operators{}, "Providers[0].MXSuffixes[0]: "},
		{[]smtplb.Provider{{Name: "a", MXSuffixes: []string{"a.example", "A.Example"}}}, &operators{}, `Providers[0].MXSuffixes[1]: "A.Example" is one of Providers[0] too`},
		{[]smtplb.Provider{{Name: "a"}}, &operators{}, "Providers[0].Domains: is empty"},
	} {
		_, err := smtplb.New(smtplb.Config{Relays: relays, Providers: x.providers, MXResolver: x.resolver})
		if (err == nil) != (x.want == "") || err != nil && !strings.Contains(err.Error(), x.want) {
			t.Errorf("%+v: %v, want %q", x.providers, err, x.want)
		}
	}
	bubble(t, func(t *testing.T) { // who claims a suffix has it, and the built-in provider keeps the rest
		o := &operators{hosts: map[string]string{"a.example": "smtp.google.com.", "b.example": "aspmx2.googlemail.com.", "c.example": "mx.own.example."}}
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.MXResolver = o
			c.Providers = []smtplb.Provider{{Name: "own", MXSuffixes: []string{"google.com"}}, {Name: "apple", MXSuffixes: []string{".own.example"}}}
		})
		defer h.close()
		for to, want := range map[string]string{"x@a.example": "own", "x@b.example": "gmail", "x@c.example": "apple", "x@me.com": "apple"} {
			h.sendsIn(0, to)
			if got := h.provider(to); got != want {
				t.Errorf("%s is of %q, want %q", to, got, want)
			}
		}
	})
}
