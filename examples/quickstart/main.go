// Quickstart shows what smtplb does, and sends your own mail.
//
//	go run ./examples/quickstart
//
// starts three relays inside its process, sends 3,000 messages through them, kills one relay at a third and brings it back at two
// thirds, and counts what the relays stored. It sends nothing anywhere else.
//
//	go run ./examples/quickstart -relay smtp://user:pass@mx1.example.com -relay smtps://user:pass@mx2.example.com -eml ./messages -to you@example.com
//
// sends every *.eml file of a folder through your own relays, and nowhere else.
//
// This file is the part to copy. The others: relays.go the fake relays, messages.go the messages, audit.go the counting, progress.go
// the bar, flags.go the command line, ownmail.go your own mail.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, func() {
		stop() // so that a second Ctrl-C ends the program
		fmt.Fprintln(os.Stderr, "\nStopping: what is under way has 5 s to finish. Ctrl-C again ends the program at once.")
	})
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// demo sends total messages through the three relays, one of which dies and comes back on the way.
func demo(ctx context.Context, relays []*smtptest.Server, total int, stdout io.Writer, bar *progress) (*report, error) {
	var config smtplb.Config
	for i, r := range relays {
		config.Relays = append(config.Relays, smtplb.Relay{
			Name: relayNames[i], Addr: r.Addr, Username: r.Username, Password: r.Password, TLSConfig: r.ClientTLS(),
			// A relay that fails is left alone for 15 s, and longer if it fails again. This demo is over in two, so here it is asked again sooner.
			Breaker: smtplb.Breaker{OpenFor: 100 * time.Millisecond, MaxOpen: 100 * time.Millisecond},
		})
	}
	pool, err := smtplb.New(config)
	if err != nil {
		return nil, err
	}
	defer shutdown(pool)

	began, outage := time.Now(), outage{relay: relays[1], name: relayNames[1]}
	var results []result
	for r := range send(ctx, pool, 32, total, 30*time.Second, newEnvelope) {
		results = append(results, r)
		bar.step()
		switch len(results) {
		case total / 3:
			bar.say(outage.begin())
		case total * 2 / 3:
			bar.say(outage.end())
		}
	}
	bar.finish()

	report := audit(results, stored(relays))
	report.elapsed = time.Since(began)
	printTable(stdout, pool.Stats(), relays)
	fmt.Fprint(stdout, outage.story(), report.notes(total))
	fmt.Fprintln(stdout, report)
	return report, nil
}

// result is what became of one message.
type result struct {
	number   int
	envelope *smtplb.Envelope // nil if there was none to send, err tells why
	receipt  *smtplb.Receipt  // nil if nothing was tried
	err      error            // nil if a relay accepted the message for every recipient
}

// send delivers the messages 0 to total-1 from several goroutines; envelope makes each when its turn has come. When ctx ends, what is
// under way may finish and the rest is not begun. The results come in the order in which the sends end; all must be taken.
func send(ctx context.Context, pool *smtplb.Pool, goroutines, total int, timeout time.Duration,
	envelope func(number int) (*smtplb.Envelope, error)) <-chan result {
	numbers, results := make(chan int), make(chan result, goroutines)
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for n := range numbers {
				e, err := envelope(n)
				if err != nil {
					results <- result{number: n, err: err}
					continue
				}
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
				receipt, err := pool.Deliver(ctx, e) // waits for a free connection, sends, tries other relays where that is safe
				cancel()
				results <- result{n, e, receipt, err}
			}
		})
	}
	stop := context.AfterFunc(ctx, func() { shutdown(pool) })
	go func() {
		for n := 0; n < total && ctx.Err() == nil; n++ {
			select {
			case numbers <- n:
			case <-ctx.Done():
			}
		}
		close(numbers)
		wg.Wait()
		stop()
		close(results)
	}()
	return results
}

// shutdown lets the pool finish what is under way, within 5 s.
func shutdown(pool *smtplb.Pool) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = pool.Shutdown(ctx) // its error says that time was up; what that meant for a message is in its receipt
}
