package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb"
)

// record is what became of the messages, by their number.
type record struct {
	began   time.Time
	ended   time.Time
	start   []time.Duration // since began
	latency []time.Duration // of the whole send, waiting and failover included
	outcome []smtplb.Outcome
	hops    []uint8         // attempts
	relay   []atomic.Int32  // that stored it last
	copies  []atomic.Uint32 // how often it was stored
}

func newRecord(o *options) *record {
	return &record{
		began: time.Now(), start: make([]time.Duration, o.messages), latency: make([]time.Duration, o.messages),
		outcome: make([]smtplb.Outcome, o.messages), hops: make([]uint8, o.messages),
		relay: make([]atomic.Int32, o.messages), copies: make([]atomic.Uint32, o.messages),
	}
}

// stored is told by the relays.
func (r *record) stored(message, relay int) {
	r.relay[message].Store(int32(relay))
	r.copies[message].Add(1)
}

// send sends all messages, by a number of callers or at random moments, and returns when the last has been sent.
func send(ctx context.Context, pool *smtplb.Pool, o *options, record *record, progress io.Writer) {
	body := smtplb.Bytes(message(o.size))
	var done atomic.Int64
	one := func(n int) {
		ctx, cancel := context.WithTimeout(ctx, o.timeout)
		defer cancel()
		began := time.Now()
		receipt, err := pool.Deliver(ctx, &smtplb.Envelope{From: "app@example.com", To: []string{address(n)}, Body: body})
		if receipt == nil {
			panic(err) // such an envelope is never wrong
		}
		record.start[n] = began.Sub(record.began)
		record.latency[n] = time.Since(began)
		record.outcome[n] = receipt.Recipients[0].Outcome
		record.hops[n] = uint8(len(receipt.Attempts))
		if d, all := done.Add(1), int64(o.messages); d*10/all > (d-1)*10/all {
			fmt.Fprintf(progress, "%3d %%  %d of %d messages, %v of fake time\n", d*100/all, d, all, time.Since(record.began).Round(time.Second))
		}
	}
	var wg sync.WaitGroup
	if o.callers > 0 {
		var next atomic.Int64
		for range o.callers {
			wg.Go(func() {
				for n := next.Add(1) - 1; n < int64(o.messages); n = next.Add(1) - 1 {
					one(int(n))
				}
			})
		}
	} else {
		dice := rand.New(rand.NewPCG(o.seed, 0))
		var at float64              // seconds
		hand := make(chan int)      // to a goroutine that has sent its message: a new one for each would have to grow its stack
		sender := func(first int) { // which takes a tenth of the time
			one(first)
			for n := range hand {
				one(n)
			}
		}
		for n := range o.messages {
			at += dice.ExpFloat64() / o.rate
			moment := time.Duration(at * float64(time.Second)).Truncate(o.tick)
			if wait := moment - time.Since(record.began); wait > 0 {
				time.Sleep(wait) // fake time
			}
			select {
			case hand <- n:
			default: // all are at work
				wg.Go(func() { sender(n) })
			}
		}
		close(hand)
	}
	wg.Wait()
	record.ended = time.Now()
}

// message is one of about that many bytes.
func message(size int) []byte {
	const head = "From: app@example.com\r\nSubject: simulated\r\n\r\n"
	const line = "All work and no play makes a dull message, so here is a little more of it.\r\n"
	return []byte(head + strings.Repeat(line, max(size-len(head), 0)/len(line)))
}
