package e2e_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/e2e/lab"
)

// traffic is a steady load: at a fixed rate, messages are sent whether or not
// those before them are done.
type traffic struct {
	pool *smtplb.Pool
	stop chan struct{}
	wg   sync.WaitGroup
	lag  lag

	parcels []*parcel // in the order of their start; for use after end
	began   time.Time
}

// begin sends rate messages a second to pool, each under a context of timeout.
func begin(t *testing.T, pool *smtplb.Pool, rate int, timeout time.Duration) *traffic {
	tr := &traffic{pool: pool, stop: make(chan struct{}), began: time.Now()}
	tr.wg.Go(func() { tr.lag.measure(tr.stop) })
	tr.wg.Go(func() {
		rng := rand.New(rand.NewPCG(2, 3))
		// A turn that was missed is made up for, so that the rate holds on a machine that
		// is busy elsewhere.
		for i := 0; ; i++ {
			select {
			case <-tr.stop:
				return
			case <-time.After(time.Until(tr.began.Add(time.Duration(i) * time.Second / time.Duration(rate)))):
			}
			p := newParcel(i, 1, "", generated(rng, i, 2000))
			tr.parcels = append(tr.parcels, p)
			tr.wg.Go(func() { p.send(t.Context(), pool, timeout) })
		}
	})
	return tr
}

// end waits for the sends under way, and for the relays to store what they have
// taken over; then it holds the stores against what was reported.
func (tr *traffic) end(t *testing.T, l *lab.Lab, harmed [2]time.Time) {
	t.Helper()
	close(tr.stop)
	tr.wg.Wait()
	took := time.Since(tr.began)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := tr.pool.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := l.WaitDrained(ctx); err != nil {
		t.Fatal(err)
	}
	stored, err := l.Stored()
	if err != nil {
		t.Fatal(err)
	}
	audit(t, tr.parcels, stored, harmed, took)
}

// between returns the parcels whose sends began within a span.
func (tr *traffic) between(from, to time.Time) (list []*parcel) {
	for _, p := range tr.parcels {
		if !p.start.Before(from) && p.start.Before(to) {
			list = append(list, p)
		}
	}
	return list
}

// nobodyFailed demands that every send was accepted.
func (tr *traffic) nobodyFailed(t *testing.T) {
	t.Helper()
	for _, p := range tr.parcels {
		if p.err != nil {
			t.Errorf("%s, %v after the start: %v", p.env.ID, p.start.Sub(tr.began).Round(time.Millisecond), p.err)
		}
	}
}

func (p *parcel) took() time.Duration { return p.end.Sub(p.start) }

// touched reports whether the relay was tried for it, if only for a connection.
func (p *parcel) touched(relay string) bool {
	return p.receipt != nil && slices.ContainsFunc(p.receipt.Attempts, func(a smtplb.Attempt) bool { return a.Relay == relay })
}

// share is the percentage of the parcels that the relay took over.
func share(parcels []*parcel, relay string) float64 {
	n := 0
	for _, p := range parcels {
		if p.receipt != nil && p.receipt.Recipients[0].Outcome == smtplb.Accepted && p.receipt.Recipients[0].Relay == relay {
			n++
		}
	}
	return 100 * float64(n) / float64(max(1, len(parcels)))
}

func took(parcels []*parcel) (d []time.Duration) {
	for _, p := range parcels {
		d = append(d, p.took())
	}
	return d
}

// percentile returns the smallest duration that p percent of d don't exceed.
func percentile(d []time.Duration, p float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return d[min(int(float64(len(d))*p/100), len(d)-1)]
}

// lag tells how starved this process was: how much too late a timer came, each
// few milliseconds.
type lag struct {
	mu      sync.Mutex // guards samples
	samples []lateness
}

type lateness struct {
	at time.Time
	by time.Duration
}

func (l *lag) measure(stop <-chan struct{}) {
	const every = 5 * time.Millisecond
	for {
		due := time.Now().Add(every)
		select {
		case <-stop:
			return
		case <-time.After(every):
		}
		now := time.Now()
		l.mu.Lock()
		l.samples = append(l.samples, lateness{now, now.Sub(due)})
		l.mu.Unlock()
	}
}

// p99 is that of the lateness within a span.
func (l *lag) p99(from, to time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var d []time.Duration
	for _, s := range l.samples {
		if s.at.After(from) && s.at.Before(to) {
			d = append(d, s.by)
		}
	}
	return percentile(d, 99)
}

// starved is the lag from which on latencies say more about the machine than
// about the library. On an idle one it is less than 2 ms.
const starved = 5 * time.Millisecond

// shown compares latencies in up to three runs, until one shows the promise on a
// machine that had time for it. Where it had in none, all must show it. A run
// returns what speaks against the promise, if anything, and the lag.
func shown(t *testing.T, promise string, run func(*testing.T) (against string, late time.Duration)) {
	t.Helper()
	const runs = 3
	var why []string
	held := 0
	for range runs {
		against, late := run(t)
		if t.Failed() || against == "" && late < starved {
			return
		}
		if against == "" {
			held++
		}
		if late >= starved {
			against += fmt.Sprintf("The machine was too busy: timers were up to %v late in 99 of 100 cases. ", ms(late))
		}
		t.Log(against)
		why = append(why, against)
	}
	if held == runs {
		t.Logf("THE MACHINE WAS TOO BUSY in all %d runs. In each of them %s.", runs, promise)
		return
	}
	t.Errorf("none of %d runs has shown that %s:\n%s", runs, promise, strings.Join(why, "\n"))
}

// relays are the lab's relays as they stand in a Config.
func relays(l *lab.Lab) (list []smtplb.Relay) {
	for _, r := range l.Relays {
		list = append(list, smtplb.Relay{
			Name: r.Name, Addr: r.Addr, Username: lab.Username, Password: lab.Password,
			TLSConfig: &tls.Config{RootCAs: l.Roots},
		})
	}
	return list
}

// logged returns the lines of the relay's log beyond the first skip bytes that
// hold what.
func logged(t *testing.T, r *lab.Relay, skip int, what string) (lines []string) {
	t.Helper()
	log, err := r.Log()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(log[skip:]) {
		if strings.Contains(line, what) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// logSize returns how long the relay's log is, as soon as it has the ends of all
// connections: that of the lab, which has waited for the greeting, comes late.
func logSize(t *testing.T, r *lab.Relay) (n int) {
	t.Helper()
	eventually(t, r.Name+"'s log has the end of the lab's connection", func() bool {
		log, err := r.Log()
		if err != nil {
			t.Fatal(err)
		}
		n = len(log)
		begun := strings.Count(log, ": connect from")
		return begun > 0 && begun == strings.Count(log, ": disconnect from")
	})
	return n
}

// eventually waits for something that takes others a moment.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("not within 20 s: %s", what)
			return
		}
	}
}
