package e2e_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/e2e/lab"
	"github.com/smtplb/smtplb/smtptest"
)

var haproxyRate = flag.Int("haproxy.rate", 100, "messages a second of each client in TestHAProxy")

// TestHAProxy is the fleet of "Beyond Round Robin: Load Balancing for Latency"
// (linkerd, 2016), 11 relays that take N(167, 5) ms for a message, on TCP, for a
// minute. From the 15th second to the 45th one relay takes 2 s; from the 48th to
// the 58th another says 421 within 5 ms. In front of the same relays, at the same
// time and with messages in turn, are the pool with three balancers, and HAProxy's
// leastconn in TCP mode.
//
// HAProxy balances connections. So the client behind it makes a new connection
// for each message, which is the best that HAProxy can be given: then its count of
// connections is that of messages in flight, and no message is bound to the relay
// that an earlier one was given. The other way, connections that are kept, runs
// beside it, and what is compared is the better of both, figure by figure. The
// client is the library too, with HAProxy as its only relay, one attempt and no
// breaker of its own: so all clients cost the same, and what differs is who
// chooses.
//
// Least connections, whoever's, give the slow relay about one message in a
// hundred while it is slow: each time as many as another has in flight, and they
// stay twelve times as long. So on which side of it p99 of this half minute falls
// is luck. Of LeastInFlight, which is the same, it is printed, and what is compared
// is p99 of the time before and after too, and how many messages the slow relay
// got. Adaptive, the default, and Latency find out who is slow: their p99 is not
// above HAProxy's, neither in this half minute nor around it.
//
// No send of ours fails in any run, and some of HAProxy's fail in each. Latencies
// are compared in up to three runs, of which one must show what is promised on a
// machine that had time for it. Where it had in none, all three must show it,
// and that the slow relay got at most half as many of our messages as of those
// over connections of their own: p99 alone would say as much of the machine as of
// who chooses.
func TestHAProxy(t *testing.T) {
	shown(t, "p99 is at most HAProxy's, and the slow relay gets at most half as many messages", besideHAProxy)
}

const (
	ownRivals     = 3 // the first ones; two behind HAProxy follow
	leastInFlight = 1 // of them
	haproxyRelays = 11
	slowRelay     = 4
	sickRelay     = 7

	slowFrom, slowTo = 15 * time.Second, 45 * time.Second
	sickFrom, sickTo = 48 * time.Second, 58 * time.Second
	haproxyEnd       = time.Minute
)

// rival is one of the clients, and what became of its messages.
type rival struct {
	name string
	pool *smtplb.Pool

	mu    sync.Mutex // guards sends
	sends []rivalSend
}

type rivalSend struct {
	id       string
	at, took time.Duration // at: since the begin
	err      error
}

// within returns how long the sends took that began in a span, and how many failed.
func (r *rival) within(from, to time.Duration) (took []time.Duration, failed int) {
	for _, s := range r.sends {
		if s.at < from || s.at >= to {
			continue
		}
		took = append(took, s.took)
		if s.err != nil {
			failed++
		}
	}
	return took, failed
}

// besideHAProxy returns in what the pool was worse than HAProxy, if in anything,
// and how starved the process was meanwhile.
func besideHAProxy(t *testing.T) (worse string, late time.Duration) {
	began := time.Now().Add(time.Second) // there is something to be started before
	in := func(from, to time.Duration) bool { d := time.Since(began); return d >= from && d < to }
	var stored sync.Map // relay by recipient
	var relays []smtplb.Relay
	var addrs []string
	conns := smtplb.Conns{Max: 250, MaxMessages: -1, MaxAge: -1, MaxIdleTime: -1}
	for i := range haproxyRelays {
		s := smtptest.NewServer(smtptest.WithDiscard(), smtptest.WithLogf(t.Logf), smtptest.WithStored(func(m *smtptest.Message) {
			if _, twice := stored.LoadOrStore(m.To[0], i); twice {
				t.Errorf("TWICE: %s", m.To[0])
			}
		}))
		t.Cleanup(s.Close)
		s.On(smtptest.Rcpt).DelayBy(func(*smtptest.Event) time.Duration {
			if i == slowRelay && in(slowFrom, slowTo) {
				return 2 * time.Second
			}
			return time.Duration((167 + 5*rand.NormFloat64()) * 1e6)
		})
		if i == sickRelay {
			for _, stage := range []smtptest.Stage{smtptest.Banner, smtptest.Mail} {
				s.On(stage).If(func(*smtptest.Event) bool { return in(sickFrom, sickTo) }).
					Delay(5*time.Millisecond).Reply(421, "4.3.0 System trouble")
			}
		}
		addrs = append(addrs, s.Addr)
		relays = append(relays, smtplb.Relay{Name: strconv.Itoa(i), Addr: s.Addr, TLS: smtplb.TLSNone, Conns: conns})
	}

	proxied := func(conns smtplb.Conns) smtplb.Config {
		return smtplb.Config{
			Relays: []smtplb.Relay{{
				Name: "haproxy", Addr: lab.HAProxy(t, "leastconn", addrs), TLS: smtplb.TLSNone,
				Conns: conns, Breaker: smtplb.Breaker{Off: true},
			}},
			Retry:  smtplb.Retry{Attempts: 1},
			Health: smtplb.Health{Interval: -1},
		}
	}
	anew := conns
	anew.MaxMessages = 1
	for _, c := range []*smtplb.Conns{&conns, &anew} { // all that 11 relays have together
		c.Max *= haproxyRelays
	}
	var rivals []*rival
	for _, c := range []struct {
		name   string
		config smtplb.Config
	}{
		{"smtplb, Adaptive", smtplb.Config{Relays: relays}},
		{"smtplb, LeastInFlight", smtplb.Config{Relays: relays, Balancer: smtplb.LeastInFlight()}},
		{"smtplb, Latency", smtplb.Config{Relays: relays, Balancer: smtplb.Latency()}},
		{"leastconn, a connection each", proxied(anew)},
		{"leastconn, connections kept", proxied(conns)},
	} {
		pool, err := smtplb.New(c.config)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		rivals = append(rivals, &rival{name: c.name, pool: pool})
	}

	var lag lag
	stop, measured := make(chan struct{}), make(chan struct{})
	go func() { defer close(measured); lag.measure(stop) }()
	var wg sync.WaitGroup
	dice := rand.New(rand.NewPCG(1, 2))
	body := smtplb.Bytes(generated(dice, 0, 2000))
	for n, at := 0, time.Duration(0); at < haproxyEnd; n++ {
		time.Sleep(time.Until(began.Add(at)))
		r := rivals[n%len(rivals)]
		wg.Go(func() { r.send(t.Context(), fmt.Sprintf("m%06d", n), body, began) })
		at += time.Duration(dice.ExpFloat64() / float64(*haproxyRate*len(rivals)) * 1e9)
	}
	wg.Wait()
	close(stop)
	<-measured
	late = lag.p99(began, time.Now())

	for _, r := range rivals {
		for _, s := range r.sends {
			if _, ok := stored.LoadAndDelete(s.id + "@in.test"); ok != (s.err == nil) {
				t.Errorf("%s: %s is stored: %v, and it was told: %v", r.name, s.id, ok, s.err)
			}
		}
	}
	stored.Range(func(to, _ any) bool { t.Errorf("%v is stored, and nothing was sent", to); return true })
	return compare(t, rivals, late), late
}

func (r *rival) send(ctx context.Context, id string, body smtplb.Body, began time.Time) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	start := time.Now()
	_, err := r.pool.Deliver(ctx, &smtplb.Envelope{ID: id, From: "app@app.test", To: []string{id + "@in.test"}, Body: body})
	s := rivalSend{id: id, at: start.Sub(began), took: time.Since(start), err: err}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sends = append(r.sends, s)
}

// compare prints the figures, and returns in what the pool is worse.
func compare(t *testing.T, rivals []*rival, late time.Duration) (worse string) {
	type figures struct {
		p99, beside  time.Duration // of the time around the slow half minute, and of that alone
		slow, failed int
	}
	var all []figures
	for i, r := range rivals {
		well, _ := r.within(0, slowFrom)
		around, _ := r.within(0, sickFrom)
		slow, _ := r.within(slowFrom, slowTo)
		sick, failed := r.within(sickFrom, sickTo)
		f := figures{p99: percentile(around, 99), beside: percentile(slow, 99), failed: failed}
		for _, d := range slow {
			if d > time.Second {
				f.slow++
			}
		}
		all = append(all, f)
		t.Logf("%s: p50 and p99 while all are well %v, %v; around the slow relay %v, %v, beside it %v, %v, %d of %d take more than 1 s (%.2f %%); beside the failing one %v, %v, %d of %d fail (%.2f %%)",
			r.name, ms(percentile(well, 50)), ms(percentile(well, 99)), ms(percentile(around, 50)), ms(f.p99), ms(percentile(slow, 50)), ms(f.beside),
			f.slow, len(slow), 100*float64(f.slow)/float64(max(1, len(slow))), ms(percentile(sick, 50)), ms(percentile(sick, 99)),
			failed, len(sick), 100*float64(failed)/float64(max(1, len(sick))))
		if _, failed := r.within(0, haproxyEnd); i < ownRivals && failed > 0 {
			t.Errorf("%s: %d sends failed", r.name, failed)
		}
	}
	t.Logf("%d relays, %d messages a second by each client; timers were up to %v late in 99 of 100 cases", haproxyRelays, *haproxyRate, ms(late))
	own, anew, kept := all[:ownRivals], all[ownRivals], all[ownRivals+1]
	if anew.failed == 0 { // over kept connections there may be next to none
		t.Error("no send failed through HAProxy: the failing relay wasn't met")
	}
	p99, beside, slow := min(anew.p99, kept.p99), min(anew.beside, kept.beside), min(anew.slow, kept.slow)
	for i, f := range own {
		most := p99
		if i == leastInFlight {
			most += p99 / 10
		} else if f.beside > beside {
			worse += fmt.Sprintf("p99 of %s beside the slow relay was %v, HAProxy's %v. ", rivals[i].name, ms(f.beside), ms(beside))
		} else if late >= starved && 2*f.slow > anew.slow {
			worse += fmt.Sprintf("%d messages of %s met the slow relay, %d of HAProxy's, on a machine that was busy. ", f.slow, rivals[i].name, anew.slow)
		}
		if f.p99 > most {
			worse += fmt.Sprintf("p99 of %s around the slow relay was %v, HAProxy's %v. ", rivals[i].name, ms(f.p99), ms(p99))
		}
		least, slack := slow, slow/4+5
		if i == leastInFlight { // kept connections meet it as often as they happen to be there: this is the same choice
			least, slack = anew.slow, anew.slow/4
		}
		if f.slow > least+slack {
			worse += fmt.Sprintf("%d messages of %s met the slow relay, %d of HAProxy's. ", f.slow, rivals[i].name, least)
		}
	}
	return worse
}
