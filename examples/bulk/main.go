// Bulk sends a newsletter, with progress, within the limits of the mailbox providers, and beside it password resets that mustn't wait for it.
//
//	go run ./examples/bulk
//	go run ./examples/bulk -messages 100000
//
// It starts four relays inside its process, which refuse what is more than their quotas and those of Gmail, in the words of a service and of Gmail. One of them dies on the way and comes back. The pool is the real one, time isn't: an hour of it
// (package testing/synctest) takes seconds. It ends with what became of it, counted in what the relays stored:
//
//	newsletter: 19999 of 20000 accepted, 1 unknown, …
//	resets: …
//	lost 0, there twice 0, refused for too much 0
//
// (A message that was on its way to the relay in the moment in which that died may be unknown: nobody can tell whether the relay took it, and it isn't sent again.)
//
// main.go has the sending, which is the part to copy; relays.go the relays.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
)

// config says what is allowed: 25 messages a second through each relay, and 15 recipients a second at Gmail, over all of them.
func config() smtplb.Config {
	c := smtplb.Config{
		Providers: []smtplb.Provider{{Name: "gmail", Limits: smtplb.Limits{Recipients: smtplb.Rate{N: 15, Burst: 1}}}},
		// The class "bulk", which is there by default, waits behind all other mail, and leaves some connections free.
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		c.Relays = append(c.Relays, smtplb.Relay{
			Name: name, Addr: name + ".test:25", TLS: smtplb.TLSNone,
			Limits: smtplb.Limits{Messages: smtplb.Rate{N: 25, Burst: 1}},
		})
	}
	return c
}

// newsletter sends the envelopes. Those that are deferred are sent again, in further rounds; tell is told what became of each in the end.
func newsletter(ctx context.Context, pool *smtplb.Pool, envelopes []*smtplb.Envelope, progress func(smtplb.Progress), tell func(smtplb.Result)) {
	for len(envelopes) > 0 && ctx.Err() == nil {
		var again []*smtplb.Envelope
		var pause time.Duration
		for result := range pool.DeliverAll(ctx, slices.Values(envelopes), smtplb.Bulk{Progress: progress}) {
			tell(result)
			var failed *smtplb.SendError
			if e := result.Receipt.Retry(result.Envelope); e != nil && errors.As(result.Err, &failed) {
				again, pause = append(again, e), max(pause, failed.RetryAfter)
			}
		}
		envelopes = again
		if len(again) > 0 {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
		}
	}
}

func main() {
	messages := flag.Int("messages", 20_000, "how `many` messages the newsletter is")
	flag.Parse()
	if *messages < 1 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	// Fake time is testing/synctest's, and wants a *testing.T. Package testing parses the command line for itself: it gets an empty one.
	os.Args = os.Args[:1]
	everything := func(string, string) (bool, error) { return true, nil }
	testing.Main(everything, []testing.InternalTest{{Name: "bulk", F: func(t *testing.T) {
		if r := demo(t, *messages, os.Stdout); r.lost > 0 || r.twice > 0 {
			os.Exit(1)
		}
		os.Exit(0) // before package testing says PASS
	}}}, nil, nil)
}

// report is what became of it all.
type report struct {
	accepted, unknown, others             int // of the newsletter
	resets, resetsAccepted, resetsUnknown int
	longest                               time.Duration // that a reset waited for the pool
	lost, twice, refused                  int
	took                                  time.Duration
}

func demo(t *testing.T, messages int, w io.Writer) (r report) {
	synctest.Test(t, func(t *testing.T) { r = run(t, messages, w) })
	fmt.Fprintf(w, "newsletter: %d of %d accepted, %d unknown, in %v\n", r.accepted, messages, r.unknown, r.took.Round(time.Second))
	fmt.Fprintf(w, "resets: %d of %d accepted, %d unknown, none waited longer than %v\n", r.resetsAccepted, r.resets, r.resetsUnknown, r.longest.Round(time.Millisecond))
	fmt.Fprintf(w, "lost %d, there twice %d, refused for too much %d\n", r.lost, r.twice, r.refused)
	return r
}

func run(t *testing.T, messages int, w io.Writer) (r report) {
	world := start()
	defer world.close()
	c := config()
	c.Dial = world.network.DialContext
	pool, err := smtplb.New(c)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	began := time.Now()
	outcomes := make(map[string]smtplb.Outcome, messages)
	envelopes := make([]*smtplb.Envelope, messages)
	for i := range envelopes {
		envelopes[i] = envelope("reader", i)
		envelopes[i].Stream = "bulk"
	}

	over := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex // guards outcomes and r, beside the newsletter
	wg.Go(func() {    // five password resets a second
		for i := 0; ; i++ {
			select {
			case <-over:
				return
			case <-time.After(time.Second / 5):
			}
			wg.Go(func() {
				e := envelope("reset", i)
				receipt, _ := pool.Deliver(t.Context(), e)
				wait := time.Duration(0)
				for _, a := range receipt.Attempts {
					wait += a.Timings.Wait
				}
				mu.Lock()
				defer mu.Unlock()
				r.resets++
				r.resetsAccepted += receipt.Count(smtplb.Accepted)
				r.resetsUnknown += receipt.Count(smtplb.Unknown)
				r.longest = max(r.longest, wait)
				outcomes[e.To[0]] = receipt.Recipients[0].Outcome
			})
		}
	})
	shown := time.Now()
	newsletter(t.Context(), pool, envelopes, func(p smtplb.Progress) {
		if time.Since(shown) >= time.Minute {
			shown = time.Now()
			fmt.Fprintf(w, "%v: %d accepted, %d deferred of this round's %d\n", time.Since(began).Round(time.Second), p.Accepted, p.Deferred, p.Finished)
		}
	}, func(result smtplb.Result) {
		mu.Lock()
		defer mu.Unlock()
		outcomes[result.Envelope.To[0]] = result.Receipt.Recipients[0].Outcome
	})
	r.took = time.Since(began)
	close(over)
	wg.Wait()
	for _, e := range envelopes {
		switch outcomes[e.To[0]] {
		case smtplb.Accepted:
			r.accepted++
		case smtplb.Unknown:
			r.unknown++
		default:
			r.others++
		}
	}
	r.lost, r.twice, r.refused = world.count(outcomes)
	return r
}

// envelope is message number i. Three in ten are for Gmail.
func envelope(name string, i int) *smtplb.Envelope {
	domain := "example.org"
	if i%10 < 3 {
		domain = "gmail.com"
	}
	return &smtplb.Envelope{
		From: "app@example.com", To: []string{fmt.Sprintf("%s-%d@%s", name, i, domain)},
		Body: smtplb.Bytes([]byte("From: app@example.com\r\nSubject: Hello\r\n\r\nHello.\r\n")),
	}
}
