// Simulate sends mail through a fleet of relays that exists in fake time only: an hour of it takes seconds, and a hundred relays fit
// into a laptop. It is for planning a fleet, and for trying a configuration, before either is real.
//
//	go run ./examples/simulate
//	go run ./examples/simulate -relays 100 -messages 1000000
//	go run ./examples/simulate -relays 6 -weights 3,1 -rate 100 -messages 30000 -slow 2=5s@1m-3m
//	go run ./examples/simulate -relays 4 -fail 0@1m-2m -down 3@90s-3m -timeout 30s
//
// What is simulated is the relays and the time. The pool is the real one, and it talks SMTP, every byte of it, to relays of package
// smtptest over a network in memory; nothing is skipped but TLS. So what it shows is what the pool does: connections, queues, failover,
// circuit breakers.
//
// How to plan a fleet with it:
//
//  1. Measure your relays: how long one takes for a message, its median (-service), and how much that varies (-sigma: 0.5 is usual,
//     1 is wild), and how many connections it allows (-conns).
//  2. Give the load of your busiest minute (-rate), and look at p99. Where it is far above the service time, messages wait for connections: add
//     relays or connections until it isn't.
//  3. Take away what may fail: kill the largest relay (-down), make one slow (-slow), let one refuse mail (-fail) or come and go
//     (-flap). A fleet that is large enough keeps its p99 outside of the moments in which the pool finds out.
//  4. Compare balancers (-balancer) under the trouble that you expect, not in fair weather: there they are all alike.
//
// It prints which relay got which share, the shares and the latency of sends over time, and what became of the recipients. Each is
// looked up in what the relays stored: "lost" are those that were reported as accepted and that no relay has, "duplicated" those that were
// stored more than once. Both must be 0, and the exit status is 1 where they are not.
//
// The same -seed means the same arrivals, and the same service time of a relay for a message. The pool's own dice are not fixed: figures
// of two runs are alike, but not the same.
//
// main.go has the program, flags.go its command line, fleet.go the relays and what befalls them, load.go the sends, report.go and plot.go what
// is printed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

func main() {
	o, err := parse(os.Args[1:], os.Stdout)
	if errors.Is(err, flag.ErrHelp) {
		return
	} else if err != nil {
		fmt.Fprintf(os.Stderr, "simulate: %v\n", err)
		os.Exit(2)
	}
	// Fake time is testing/synctest's, and wants a *testing.T. Package testing parses the command line for itself: it gets an empty one.
	os.Args = os.Args[:1]
	debug.SetGCPercent(400) // a million messages leave much behind, and memory is not what is short here
	everything := func(string, string) (bool, error) { return true, nil }
	testing.Main(everything, []testing.InternalTest{{Name: "simulate", F: func(t *testing.T) {
		r := simulate(t, o, os.Stderr)
		r.print(os.Stdout)
		if !r.truthful() {
			os.Exit(1)
		}
		os.Exit(0) // before package testing says PASS
	}}}, nil, nil)
}

// simulate runs a fleet in a bubble of fake time. It tells progress how far it is.
func simulate(t *testing.T, o *options, progress io.Writer) *report {
	var r *report
	began := time.Now()
	synctest.Test(t, func(t *testing.T) {
		network := smtptest.NewNetwork()
		network.SetLatency(o.rtt/2, o.rtt/2)
		record := newRecord(o)
		fleet := startFleet(network, o, record)
		pool, err := smtplb.New(fleet.config(network, o))
		if err != nil {
			t.Fatal(err) // the flags were checked: a fault of this program
		}
		stop := fleet.befall(o)
		send(t.Context(), pool, o, record, progress)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := pool.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		stop()
		fleet.close() // in a bubble everything must end
		r = newReport(o, record, fleet, pool.Stats())
	})
	r.wall = time.Since(began)
	return r
}
