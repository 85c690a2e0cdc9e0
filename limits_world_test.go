package smtplb_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

var (
	worldSeeds = flag.Int("limits.seeds", 8, "how many seeds TestLimitsOfWorlds runs")
	worldFirst = flag.Uint64("limits.first", 1, "the first of them")
)

// TestLimitsOfWorlds makes worlds at random, of one to four relays, limits of all scopes with rates from 0.2 to 200 a second, callers and DeliverAlls that have more than is allowed, and Updates. Whoever enforces the same limits as
// leaky buckets, at the relays, has nothing to refuse.
//
// Such a bucket has a tenth more of rate and depth than is needed. What is needed is the rate of the limit, and a depth of
//
//	the burst, or the recipients of one message where they are more: it goes out as a whole, and what it is short of is owed, and
//	what was allowed at different times and arrives at one: the rate times the longest that is between the two, D, but no more than there can be on the way, which is one message for each connection.
//
// For if x arrive in any time T, they were allowed in T and in the D before it: that is burst + rate·(T + D) at the most.
func TestLimitsOfWorlds(t *testing.T) {
	t.Parallel()
	for i := range *worldSeeds {
		seed := *worldFirst + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			defer func() {
				if t.Failed() {
					t.Logf("again: go test -race -run 'TestLimitsOfWorlds$' -limits.first=%d -limits.seeds=1 -count=20 .", seed)
				}
			}()
			synctest.Test(t, func(t *testing.T) { newWorld(t, seed).run() })
		})
	}
}

// enforced is one limit as those who enforce it see it.
type enforced struct {
	scope, key string
	recipients bool // that is what it counts
	set        func(*smtplb.Config) *smtplb.Rate
	seen       map[string]bool // transactions, where a message is known by its first recipient; guarded by mu

	mu      sync.Mutex // guards the following fields
	rate    float64    // a second
	fastest float64    // that it ever was
	burst   float64
	depth   float64
	level   float64
	peak    float64
	last    time.Time
	count   int
	tooMany int
}

// arrive counts one.
func (x *enforced) arrive() {
	now := time.Now()
	x.level, x.last = max(0, x.level-1.1*x.rate*now.Sub(x.last).Seconds())+1, now
	x.peak = max(x.peak, x.level)
	x.count++
	if x.level > x.depth+1e-6 {
		x.tooMany++
	}
}

// world is one run.
type world struct {
	*testing.T
	seed     uint64
	rand     *rand.Rand
	relays   []*smtptest.Server
	config   smtplb.Config
	limits   []*enforced
	pool     *smtplb.Pool
	most     int // recipients of a message
	lasts    time.Duration
	accepted int
	mu       sync.Mutex // guards accepted
}

func newWorld(t *testing.T, seed uint64) *world {
	r := rand.New(rand.NewPCG(seed, 20))
	w := &world{T: t, seed: seed, rand: r, most: oneOf(r, 1, 1, 1, 3, 20)}
	network := smtptest.NewNetwork()
	latency := time.Duration(r.IntN(20)) * time.Millisecond
	network.SetLatency(latency, latency)
	banner, final := time.Duration(1+r.IntN(400))*time.Millisecond, time.Duration(1+r.IntN(300))*time.Millisecond
	w.config = smtplb.Config{
		Dial: network.DialContext, Balancer: oneOf(r, nil, smtplb.RoundRobin(), smtplb.LeastInFlight(), smtplb.Random()), MaxThrottleWait: oneOf(r, 0, 2*time.Second, -1),
		Streams:   []smtplb.Stream{{Name: "bulk", Lag: 5 * time.Second, Bulk: true}},
		Providers: []smtplb.Provider{{Name: "p", Domains: []string{"p.example"}}},
		Retry:     smtplb.Retry{NoHedging: r.IntN(2) == 0},
	}
	route, ways := smtplb.Route{Name: "r", Recipients: []string{"r.example"}}, 0
	for i := range 1 + r.IntN(4) {
		s := network.NewServer(fmt.Sprintf("r%d.test:25", i), smtptest.WithDiscard())
		s.On(smtptest.Banner).DelayBy(func(*smtptest.Event) time.Duration { return rand.N(banner) })
		s.On(smtptest.EndOfData).DelayBy(func(*smtptest.Event) time.Duration { return rand.N(final) })
		w.relays = append(w.relays, s)
		x := smtplb.Relay{Name: fmt.Sprint("r", i), Addr: s.Addr, TLS: smtplb.TLSNone, Tier: min(i, r.IntN(5)/4), Weight: 1 + r.IntN(3), NoRiding: r.IntN(3) == 0, Conns: smtplb.Conns{Max: 1 + r.IntN(12)}}
		ways += x.Conns.Max
		w.config.Relays = append(w.config.Relays, x)
		route.Relays = append(route.Relays, x.Name)
	}
	w.config.Routes = []smtplb.Route{route}
	// From the payment to MAIL: a connection is opened, or the message before is answered.
	d := (banner + final + 10*latency).Seconds()
	slowest := math.Inf(1)
	for n := oneOf(r, 1, 1, 2, 3, 4); len(w.limits) < n; {
		x := w.limit(r)
		if slices.ContainsFunc(w.limits, func(y *enforced) bool {
			return y.scope == x.scope && y.recipients == x.recipients && (y.key == x.key || x.scope == "sender")
		}) {
			continue
		}
		for _, x := range w.same(x) {
			one := 1
			if x.recipients {
				one = w.most
			}
			on := ways
			if x.scope == "relay" {
				on = w.config.Relays[int(x.key[1]-'0')].Conns.Max
			}
			x.depth = 1.1 * (max(x.burst, float64(one)) + min(x.fastest*d, float64(on*one)))
			x.last = time.Now()
			w.limits = append(w.limits, x)
		}
		*x.set(&w.config) = smtplb.Rate{N: x.rate, Burst: x.burst}
		slowest = min(slowest, x.rate)
	}
	w.lasts = min(max(time.Duration(400/slowest*float64(time.Second)), 10*time.Second), 5*time.Minute)
	for i, s := range w.relays {
		s.On(smtptest.Mail).If(func(e *smtptest.Event) bool { w.arrived(i, e); return false }).Reply(454, "4.7.0 never")
		s.On(smtptest.Rcpt).If(func(e *smtptest.Event) bool { w.arrived(i, e); return false }).Reply(454, "4.7.0 never")
	}
	var err error
	if w.pool, err = smtplb.New(w.config); err != nil {
		t.Fatal(err)
	}
	return w
}

// limit makes one at random.
func (w *world) limit(r *rand.Rand) *enforced {
	x := &enforced{scope: oneOf(r, "pool", "relay", "relay", "route", "provider", "stream", "sender"), recipients: r.IntN(2) == 0, seen: map[string]bool{}}
	fastest := 200.0
	if len(w.limits) == 0 { // one that counts: a connection takes a few messages a second
		fastest = float64(w.config.Relays[0].Conns.Max)
	}
	x.rate = math.Exp(math.Log(0.2) + r.Float64()*math.Log(fastest/0.2))
	x.burst = oneOf(r, 1, 1, math.Ceil(x.rate), float64(1+r.IntN(50)))
	x.fastest = 2 * x.rate // see update
	var limits func(*smtplb.Config) *smtplb.Limits
	switch x.scope {
	case "pool":
		limits = func(c *smtplb.Config) *smtplb.Limits { return &c.Limits }
	case "relay":
		i := 0
		if len(w.limits) > 0 {
			i = r.IntN(len(w.relays))
		}
		x.key = fmt.Sprint("r", i)
		limits = func(c *smtplb.Config) *smtplb.Limits { return &c.Relays[i].Limits }
	case "route":
		limits = func(c *smtplb.Config) *smtplb.Limits { return &c.Routes[0].Limits }
	case "provider":
		limits = func(c *smtplb.Config) *smtplb.Limits { return &c.Providers[0].Limits }
	case "stream":
		limits = func(c *smtplb.Config) *smtplb.Limits { return &c.Streams[0].Limits }
	case "sender":
		x.key = "s0.example"
		limits = func(c *smtplb.Config) *smtplb.Limits { return &c.PerSender }
	}
	x.set = func(c *smtplb.Config) *smtplb.Rate {
		if x.recipients {
			return &limits(c).Recipients
		}
		return &limits(c).Messages
	}
	return x
}

// same are x, and those of the other senders where it is a sender's.
func (w *world) same(x *enforced) []*enforced {
	if x.scope != "sender" {
		return []*enforced{x}
	}
	y := &enforced{scope: x.scope, key: "s1.example", recipients: x.recipients, set: x.set, rate: x.rate, burst: x.burst, fastest: x.fastest, seen: map[string]bool{}}
	return []*enforced{x, y}
}

// arrived tells those who enforce something of a command at a relay.
func (w *world) arrived(relay int, e *smtptest.Event) {
	for _, x := range w.limits {
		at, counts := smtptest.Mail, true
		switch x.scope {
		case "relay":
			counts = x.key == fmt.Sprint("r", relay)
		case "route":
			at, counts = smtptest.Rcpt, strings.HasSuffix(e.Rcpt, "@r.example")
		case "provider":
			at, counts = smtptest.Rcpt, strings.HasSuffix(e.Rcpt, "@p.example")
		case "stream":
			counts = strings.HasPrefix(e.From, "bulk@")
		case "sender":
			counts = strings.HasSuffix(e.From, "@"+x.key)
		}
		if x.recipients {
			at = smtptest.Rcpt
		}
		if e.Stage != at || !counts {
			continue
		}
		x.mu.Lock()
		transaction := fmt.Sprint(relay, " ", e.Conn, " ", e.Transaction)
		if x.recipients || at == smtptest.Mail || !x.seen[transaction] {
			x.arrive()
		}
		if at == smtptest.Rcpt {
			x.seen[transaction] = true
		}
		x.mu.Unlock()
	}
}

func (w *world) run() {
	until := time.Now().Add(w.lasts)
	over := func() bool { return !time.Now().Before(until) } // a context that ended would have messages given up behind MAIL, whose fare is given back
	var senders sync.WaitGroup
	for i := range 5 + w.rand.IntN(60) {
		r := rand.New(rand.NewPCG(w.rand.Uint64(), 0))
		eager := i < 5 || r.IntN(3) > 0
		senders.Go(func() {
			for !over() {
				if !eager {
					pause(r, 3*time.Second)
				}
				if !w.count(w.pool.Deliver(context.Background(), w.envelope(r))) {
					pause(r, time.Second)
				}
			}
		})
	}
	if w.rand.IntN(2) == 0 {
		r := rand.New(rand.NewPCG(w.rand.Uint64(), 0))
		senders.Go(func() {
			seq := func(yield func(*smtplb.Envelope) bool) {
				for !over() && yield(w.envelope(r)) {
					time.Sleep(10 * time.Millisecond)
				}
			}
			for x := range w.pool.DeliverAll(context.Background(), seq, smtplb.Bulk{InFlight: oneOf(r, 0, 5)}) {
				w.count(x.Receipt, x.Err)
			}
		})
	}
	if w.rand.IntN(2) == 0 {
		senders.Go(func() {
			for !over() {
				pause(w.rand, w.lasts/4)
				w.update()
			}
		})
	}
	senders.Wait()
	w.pool.Close()
	for _, s := range w.relays {
		s.Close()
	}
	bound := false
	for _, x := range w.limits {
		w.Logf("%s %s: %d came, recipients %v, limit %.3g/s burst %g: at most %.1f of %.1f at once", x.scope, x.key, x.count, x.recipients, x.rate, x.burst, x.peak, x.depth)
		if x.tooMany > 0 {
			w.Errorf("%s %s: %d of %d were too many: %.1f at once, of %.1f", x.scope, x.key, x.tooMany, x.count, x.peak, x.depth)
		}
		bound = bound || float64(x.count) > x.burst+x.rate*w.lasts.Seconds()/4
	}
	if w.accepted == 0 || !bound {
		w.Errorf("%d messages: no limit was used by a quarter", w.accepted)
	}
	if w.Failed() {
		w.Logf("for %v: %+v", w.lasts, w.config)
	}
}

// count counts what was accepted. What was not is over a limit: the relays take everything.
func (w *world) count(_ *smtplb.Receipt, err error) bool {
	if err != nil {
		if !errors.Is(err, smtplb.ErrThrottled) {
			w.Error(err)
		}
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.accepted++
	return true
}

// envelope is the next message of somebody.
func (w *world) envelope(r *rand.Rand) *smtplb.Envelope {
	var to []string
	for i := range 1 + r.IntN(w.most) {
		to = append(to, fmt.Sprintf("u%d@%s", i, oneOf(r, "p.example", "r.example", "example.com")))
	}
	e := envelope(to...)
	e.Stream = oneOf(r, "", "bulk")
	e.From = fmt.Sprintf("%s@s%d.example", oneOf(r, "some", "others"), r.IntN(2))
	if e.Stream == "bulk" {
		e.From = fmt.Sprintf("bulk@s%d.example", r.IntN(2))
	}
	return e
}

// update changes weights, and rates: half of, or twice, what they were at first.
func (w *world) update() {
	c := w.config
	c.Relays, c.Routes, c.Providers, c.Streams = slices.Clone(c.Relays), slices.Clone(c.Routes), slices.Clone(c.Providers), slices.Clone(c.Streams)
	c.Relays[w.rand.IntN(len(c.Relays))].Weight = 1 + w.rand.IntN(5)
	for _, x := range w.limits {
		x.mu.Lock()
		now := time.Now()
		x.level, x.last = max(0, x.level-1.1*x.rate*now.Sub(x.last).Seconds()), now
		if x.key != "s1.example" { // which has what s0 has
			x.rate = x.fastest * oneOf(w.rand, 0.25, 0.5, 1)
			x.set(&c).N = x.rate
		}
		x.rate = x.set(&c).N
		x.mu.Unlock()
	}
	if err := w.pool.Update(c); err != nil {
		w.Error(err)
	}
	w.config = c
}
