package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/e2e/lab"
)

// anvilPeriod is Postfix's anvil_rate_time_unit here. anvil counts in whole seconds
// and forgets in the first event after more than it: a period of its own is one
// second longer.
const (
	anvilUnit   = 10
	anvilPeriod = (anvilUnit + 1) * time.Second
)

// anvil are the lines of main.cf that set a limit of Postfix's for each client,
// loopback included. It replies to too many connections at a time and to too many in a
// period in the same words; only its log tells them apart.
func anvil(limit string, n int) string {
	return fmt.Sprintf("smtpd_client_event_limit_exceptions =\nanvil_rate_time_unit = %ds\n%s = %d\n", anvilUnit, limit, n)
}

// anvilCase is a pool before a Postfix that limits something.
type anvilCase struct {
	name       string
	setting    string // of Postfix
	limit      int    // its value, in each period; of connections, at a time
	relay      smtplb.Relay
	recipients int           // of each message
	every      time.Duration // between the messages of each sender
	refused    string        // what Postfix logs of a refusal

	mostFirst, mostLater int     // attempts with a refusal until settled, and in each period after that
	least                float64 // of what Postfix allows after that, a share; of connections, it is of messages a second
	perSecond            float64 // messages that are allowed, or wanted
	workers              int
	overflow             bool // there is another relay, without a limit
}

// TestAnvil holds that a pool settles under the limits of a real Postfix, for messages,
// recipients, connections at a time and new connections. With Limits below them nothing
// is refused. With back-off alone few are, and the breaker stays closed, though whoever is
// deferred comes back at once. Where there is another relay, it gets what is too much.
//
// Nobody tells the pool that Postfix counts in periods: it refuses all that comes in the
// rest of one. That leads to back-off mode, a tenth of the rate of the first moment, from
// where it is found again, slowly. How much that is within the test depends on how fast
// the first moment was; so its bound is low.
func TestAnvil(t *testing.T) {
	const (
		length  = 6 * anvilPeriod
		settled = 3 * anvilPeriod
	)
	perPeriod := func(n int) float64 { return float64(n) / anvilPeriod.Seconds() }
	messages := anvilCase{
		setting: "smtpd_client_message_rate_limit", limit: 50, recipients: 1, workers: 4, perSecond: perPeriod(50), refused: "Message delivery request rate limit exceeded",
	}
	recipients := anvilCase{
		setting: "smtpd_client_recipient_rate_limit", limit: 100, recipients: 2, workers: 4, perSecond: perPeriod(50), refused: "Recipient address rate limit exceeded",
	}
	count := anvilCase{
		setting: "smtpd_client_connection_count_limit", limit: 3, recipients: 1, workers: 8, every: time.Second / 2, perSecond: 16, refused: "Connection concurrency limit exceeded",
	}
	rate := anvilCase{
		setting: "smtpd_client_connection_rate_limit", limit: 6, recipients: 1, workers: 8, every: time.Second / 2, perSecond: 16, refused: "Connection rate limit exceeded",
	}
	with := func(name string, c anvilCase, r smtplb.Relay, mostFirst, mostLater int, least float64) anvilCase {
		c.name, c.relay, c.mostFirst, c.mostLater, c.least = name, r, mostFirst, mostLater, least
		return c
	}
	over := messages
	over.workers, over.every, over.perSecond, over.overflow = 8, time.Second/2, 16, true
	cases := []anvilCase{
		with("messages, by Limits", messages, smtplb.Relay{Limits: smtplb.Limits{Messages: smtplb.Rate{N: 42, Per: anvilUnit * time.Second, Burst: 1}}}, 0, 0, 0.7),
		with("recipients, by Limits", recipients, smtplb.Relay{Limits: smtplb.Limits{Recipients: smtplb.Rate{N: 84, Per: anvilUnit * time.Second, Burst: 2}}}, 0, 0, 0.7),
		with("connections, by Conns.Max", count, smtplb.Relay{Conns: smtplb.Conns{Max: 2, MaxMessages: 10}}, 0, 0, 0.8),
		with("new connections, by Limits", rate, smtplb.Relay{Conns: smtplb.Conns{MaxMessages: 20}, Limits: smtplb.Limits{Connections: smtplb.Rate{N: 4, Per: anvilUnit * time.Second, Burst: 1}}}, 0, 0, 0.25),
		with("messages, by back-off", messages, smtplb.Relay{}, 15, 3, 0.1),
		with("recipients, by back-off", recipients, smtplb.Relay{}, 15, 3, 0.1),
		with("connections, by back-off", count, smtplb.Relay{Conns: smtplb.Conns{MaxMessages: 10}}, 10, 3, 0.9),
		with("new connections, by back-off", rate, smtplb.Relay{Conns: smtplb.Conns{MaxMessages: 20}}, 20, 4, 0.2),
		with("overflow, by back-off", over, smtplb.Relay{}, 10, 3, 0.9),
	}
	var settings []string
	for _, c := range cases {
		settings = append(settings, anvil(c.setting, c.limit))
	}
	l := lab.NewWith(t, append(settings, "")...)
	// A new period for the lab's own connection, too.
	time.Sleep(anvilPeriod)
	runs := make([]*anvilRun, len(cases))
	var wg sync.WaitGroup
	for i, c := range cases {
		r := relays(l)[i]
		r.Conns, r.Limits = c.relay.Conns, c.relay.Limits
		list, postfix := []smtplb.Relay{r}, []*lab.Relay{l.Relays[i]}
		if c.overflow {
			list, postfix = append(list, relays(l)[len(cases)]), append(postfix, l.Relays[len(cases)])
		}
		runs[i] = beginAnvil(t, c, postfix, list)
		wg.Go(func() { runs[i].send(t.Context(), length) })
	}
	wg.Wait()
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) { runs[i].check(t, settled, length) })
	}
}

type anvilRun struct {
	anvilCase
	postfix []*lab.Relay // the first is the one with the limit
	skip    int          // of its log
	pool    *smtplb.Pool
	opened  atomic.Int64 // how often the breaker was anything but closed
	began   time.Time

	mu       sync.Mutex // guards the rest
	parcels  []*parcel
	refusals []time.Duration // the attempts in which there was one
	deferred int             // sends that didn't end as they should have
	lastWord error
}

func beginAnvil(t *testing.T, c anvilCase, postfix []*lab.Relay, list []smtplb.Relay) *anvilRun {
	t.Helper()
	a := &anvilRun{anvilCase: c, postfix: postfix, skip: logSize(t, postfix[0])}
	pool, err := smtplb.New(smtplb.Config{
		Relays: list,
		Hooks: smtplb.Hooks{RelayState: func(e smtplb.RelayEvent) {
			if e.Breaker != "closed" {
				a.opened.Add(1)
			}
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pool.Close() })
	a.pool = pool
	return a
}

// send has workers send one message after the other until length is over. What is
// deferred is offered again at once: to hold it back is the pool's business.
func (a *anvilRun) send(ctx context.Context, length time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	a.began = time.Now()
	var wg sync.WaitGroup
	for range a.workers {
		wg.Go(func() {
			for next := time.Now(); ctx.Err() == nil; next = next.Add(a.every) {
				select {
				case <-ctx.Done():
					return
				case <-time.After(time.Until(next)):
				}
				if ctx.Err() == nil {
					a.deliver(ctx, a.newParcel())
				}
			}
		})
	}
	wg.Wait()
}

func (a *anvilRun) newParcel() *parcel {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := len(a.parcels)
	p := newParcel(i, a.recipients, "", generated(rand.New(rand.NewPCG(4, uint64(i))), i, 1000))
	a.parcels = append(a.parcels, p)
	return p
}

// deliver sends a parcel until it is accepted, or ctx ends. Its receipt tells the
// last result of each recipient.
func (a *anvilRun) deliver(ctx context.Context, p *parcel) {
	p.start = time.Now()
	p.receipt = &smtplb.Receipt{ID: p.env.ID}
	at := map[string]int{}
	for i, to := range p.env.To {
		at[to] = i
		p.receipt.Recipients = append(p.receipt.Recipients, smtplb.RecipientResult{Addr: to, Outcome: smtplb.Deferred})
	}
	for e := p.env; ; {
		r, err := a.pool.Deliver(ctx, e)
		p.end, p.err = time.Now(), err
		a.learn(ctx, r, err)
		if r == nil {
			if ctx.Err() != nil {
				return
			}
			time.Sleep(100 * time.Millisecond) // nothing was tried
			continue
		}
		for _, x := range r.Recipients {
			p.receipt.Recipients[at[x.Addr]] = x
		}
		p.receipt.Attempts = append(p.receipt.Attempts, r.Attempts...)
		if e = r.Retry(e); e == nil || ctx.Err() != nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// learn counts the refusals of a Deliver.
func (a *anvilRun) learn(ctx context.Context, r *smtplb.Receipt, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	// Those that the test's end cuts off are not the relay's: in its last 5 s, who would
	// have to wait for a limit is told of the limit.
	end, _ := ctx.Deadline()
	if err != nil && ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) && (!errors.Is(err, smtplb.ErrThrottled) || time.Until(end) > 5*time.Second) {
		a.deferred++
		a.lastWord = err
	}
	if r == nil {
		return
	}
	for _, x := range r.Attempts {
		if x.Err != nil && strings.Contains(x.Err.Error(), "Error: too m") {
			a.refusals = append(a.refusals, x.Start.Sub(a.began))
		}
	}
}

func (a *anvilRun) check(t *testing.T, settled, length time.Duration) {
	stats := a.pool.Stats().Relays[0]
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := a.pool.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	var stored []lab.Message
	for _, r := range a.postfix {
		if err := r.WaitDrained(ctx); err != nil {
			t.Fatal(err)
		}
		list, err := r.Stored()
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, list...)
	}
	audit(t, a.parcels, stored, [2]time.Time{}, length)

	logLines := 0
	eventually(t, "Postfix's log has each refusal", func() bool { // it is a little behind
		logLines = len(logged(t, a.postfix[0], a.skip, a.refused))
		return logLines >= len(a.refusals)
	})
	periods := int((length + anvilPeriod - 1) / anvilPeriod)
	refused, accepted := make([]int, periods), make([]int, periods)
	first := 0
	for _, at := range a.refusals {
		refused[at/anvilPeriod]++
		if at < settled {
			first++
		}
	}
	later := 0
	for _, p := range a.parcels {
		if p.err != nil || p.end.IsZero() {
			continue
		}
		at := p.end.Sub(a.began)
		accepted[min(int(at/anvilPeriod), periods-1)]++
		if at >= settled {
			later++
		}
	}
	share := float64(later) / (a.perSecond * (length - settled).Seconds())
	t.Logf("%s = %d: refusals by period %v (Postfix logged %d), messages accepted %v; after %v %.2f of what is allowed; opened %d connections, breaker %s, %d times not closed; %d sends deferred; %s; %v",
		a.setting, a.limit, refused, logLines, accepted, settled, share, stats.Opened, stats.Breaker, a.opened.Load(), a.deferred, stats.BackOff, a.lastWord)

	if a.opened.Load() > 0 || stats.Breaker != "closed" {
		t.Errorf("a limit has opened the breaker %d times; it is %s", a.opened.Load(), stats.Breaker)
	}
	if first > a.mostFirst {
		t.Errorf("%d attempts were refused in the first %v; at most %d should be", first, settled, a.mostFirst)
	}
	for i, n := range refused {
		if n > a.mostLater && time.Duration(i)*anvilPeriod >= settled {
			t.Errorf("%d attempts were refused in period %d; at most %d should be", n, i, a.mostLater)
		}
	}
	if share < a.least {
		t.Errorf("%.2f of what is allowed was accepted after %v; at least %.2f should be", share, settled, a.least)
	}
	switch {
	case a.mostFirst > 0 && (logLines == 0 || len(a.refusals) == 0):
		t.Errorf("the relay never refused anything, so nothing was shown: %d attempts, %d lines of its log", len(a.refusals), logLines)
	case a.mostFirst == 0 && logLines > 0:
		t.Errorf("Postfix refused %d, with Limits below its own", logLines)
	}
	if (a.mostFirst == 0 || a.overflow) && a.deferred > 0 {
		t.Errorf("%d sends were deferred; none should be: %v", a.deferred, a.lastWord)
	}
}
