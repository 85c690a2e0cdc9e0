// Perdomain sends as much to each mailbox provider as that takes, whichever relay it leaves through: Limits of a Provider count all the domains of one operator together.
//
//	go run ./examples/perdomain
//
// It starts two relays inside its process, and has them refuse what the providers behind them would refuse, in their words. It sends the same mail twice, first without limits, then with them, in
// fake time (package testing/synctest), so that it takes a second, and prints what was refused for being too much:
//
//	without limits: …
//	with limits: …
//
// Without limits the pool finds out by itself, from the refusals, and gives each provider less (Relay.NoBackOff switches that off). But each refusal costs reputation, and who is told the limits doesn't need them.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// limits is the part to copy. Domains of gmail, microsoft, yahoo and apple are known; others are named.
func limits() []smtplb.Provider {
	return []smtplb.Provider{
		{Name: "gmail", Limits: smtplb.Limits{Recipients: smtplb.Rate{N: 20, Burst: 1}}},
		{Name: "microsoft", Limits: smtplb.Limits{Recipients: smtplb.Rate{N: 10, Burst: 1}, Concurrency: 5}},
		{Name: "yahoo", Limits: smtplb.Limits{Recipients: smtplb.Rate{N: 5, Burst: 1}}},
		{Name: "partner", Domains: []string{"partner.example", "*.partner.example"}, Limits: smtplb.Limits{Recipients: smtplb.PerMinute(120)}},
	}
}

// mailboxes are what the providers take in a second, and what they say to more.
var mailboxes = []struct {
	name    string
	domains []string
	rate    float64
	code    int
	text    string
}{
	{"gmail", []string{"gmail.com", "googlemail.com"}, 20, 450, "4.2.1 The user you are trying to contact is receiving mail too quickly."},
	{"microsoft", []string{"outlook.com", "hotmail.com", "live.de"}, 10, 451, "4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation."},
	{"yahoo", []string{"yahoo.com", "yahoo.de", "aol.com"}, 5, 421, "4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints"},
}

const each = 200 // messages to each provider

// result is what became of one run.
type result struct {
	accepted, deferred int
	refused            map[string]int // by provider
	stored             map[string]int // by recipient
	took               time.Duration
}

func main() {
	// Fake time is testing/synctest's, and wants a *testing.T. Package testing parses the command line for itself: it gets an empty one.
	os.Args = os.Args[:1]
	everything := func(string, string) (bool, error) { return true, nil }
	testing.Main(everything, []testing.InternalTest{{Name: "perdomain", F: func(t *testing.T) {
		demo(t, os.Stdout)
		os.Exit(0) // before package testing says PASS
	}}}, nil, nil)
}

func demo(t *testing.T, w io.Writer) (without, with result) {
	synctest.Test(t, func(t *testing.T) { without = send(t, nil) })
	synctest.Test(t, func(t *testing.T) { with = send(t, limits()) })
	for _, x := range []struct {
		title string
		result
	}{{"without limits", without}, {"with limits", with}} {
		fmt.Fprintf(w, "%s: %d accepted, %d deferred, in %v", x.title, x.accepted, x.deferred, x.took.Round(time.Second))
		for _, m := range mailboxes {
			fmt.Fprintf(w, "; %s refused %d", m.name, x.refused[m.name])
		}
		fmt.Fprintln(w)
	}
	return without, with
}

// send sends the mail through two relays.
func send(t *testing.T, providers []smtplb.Provider) result {
	r := result{refused: make(map[string]int), stored: make(map[string]int)}
	network := smtptest.NewNetwork()
	network.SetLatency(5*time.Millisecond, 5*time.Millisecond)
	config := smtplb.Config{Dial: network.DialContext, Providers: providers, MaxThrottleWait: -1}
	var relays []*smtptest.Server
	var over []func(*smtptest.Event) bool
	for _, m := range mailboxes {
		over = append(over, smtptest.Over(m.rate, time.Second, m.rate))
	}
	rules := make(map[string][]*smtptest.Rule)
	for _, addr := range []string{"a.test:25", "b.test:25"} {
		relay := network.NewServer(addr)
		defer relay.Close()
		relays = append(relays, relay)
		for i, m := range mailboxes {
			ours := func(e *smtptest.Event) bool {
				_, domain, _ := strings.Cut(e.Rcpt, "@")
				return slices.Contains(m.domains, domain) && over[i](e)
			}
			rules[m.name] = append(rules[m.name], relay.On(smtptest.Rcpt).If(ours).Reply(m.code, m.text))
		}
		config.Relays = append(config.Relays, smtplb.Relay{Addr: addr, TLS: smtplb.TLSNone})
	}
	pool, err := smtplb.New(config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()

	began := time.Now()
	envelopes := func(yield func(*smtplb.Envelope) bool) {
		for i := range each {
			for _, m := range mailboxes {
				e := &smtplb.Envelope{
					From: "news@example.com", To: []string{fmt.Sprintf("reader-%d@%s", i, m.domains[i%len(m.domains)])},
					Body: smtplb.Bytes([]byte("From: news@example.com\r\nSubject: News\r\n\r\nNews.\r\n")),
				}
				if !yield(e) {
					return
				}
			}
		}
	}
	for x := range pool.DeliverAll(t.Context(), envelopes, smtplb.Bulk{InFlight: 3 * each}) {
		r.accepted += x.Receipt.Count(smtplb.Accepted)
		r.deferred += x.Receipt.Count(smtplb.Deferred) // a queue would send x.Receipt.Retry(x.Envelope) later: see examples/bulk
	}
	r.took = time.Since(began)
	if err := pool.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	for name, list := range rules {
		for _, rule := range list {
			r.refused[name] += rule.Fired()
		}
	}
	for _, relay := range relays {
		for _, m := range relay.Messages() {
			r.stored[m.To[0]]++
		}
	}
	return r
}
