package smtplb

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/breaker"
	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/verdict"
)

// BenchmarkPath is a whole message but for its session: checks and copies of the envelope, the choice of a relay, its slot, the breaker, the books of the attempt, and the receipt.
func BenchmarkPath(b *testing.B) {
	for _, n := range []int{2, 16, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
			defer cancel()
			p, used := choosing(b, ctx, n, nil)
			for _, r := range used.fleet.relays {
				r.observe(new(Timings)) // the histograms are made with a relay's first attempt
			}
			e := &Envelope{From: "a@example.com", To: []string{"x@example.com"}, Body: Bytes([]byte("Subject: s\r\n\r\nx\r\n"))}
			b.ReportAllocs()
			for b.Loop() {
				d, err := p.prepare(ctx, e)
				if err != nil {
					b.Fatal(err)
				}
				d.limit(ctx)
				waiting := time.Now()
				permit, ok, err := p.turn(ctx, d)
				if !ok {
					b.Fatal(err)
				}
				a := &d.try
				*a = attempt{pool: p, d: d, turn: &d.turn, permit: permit, relay: d.fleet.ofLane(d.turn.Lane()), number: 1, blame: verdict.Answered}
				p.budget.first()
				d.made++
				now := time.Now()
				a.cut = d.cut(now)
				a.open(ctx, now, now.Sub(waiting))
				a.record.Timings = Timings{Wait: 1, Envelope: 2 * time.Millisecond, Body: time.Millisecond, Final: 3 * time.Millisecond}
				a.last = verdict.Fact{Stage: reply.StageFinal, Reply: reply.Reply{Code: 250}}
				d.decide(&d.rcpts[0], Accepted)
				a.record.Accepted++
				a.end(ctx)
				receipt, err := d.finish(nil)
				p.report(ctx, receipt, err)
				d.free()
			}
		})
	}
}

// BenchmarkBooks is the histograms' and the means' part of a message.
func BenchmarkBooks(b *testing.B) {
	_, d := choosing(b, context.Background(), 1, nil)
	a := &Attempt{Accepted: 1, Timings: Timings{Wait: 1000, Envelope: 2 * time.Millisecond, Body: time.Millisecond, Final: 3 * time.Millisecond}}
	f := &verdict.Fact{Stage: reply.StageFinal}
	r := d.fleet.relays[0]
	b.Run("histograms", func(b *testing.B) {
		for b.Loop() {
			r.observe(&a.Timings)
		}
	})
	b.Run("means", func(b *testing.B) {
		now := time.Now().UnixNano()
		for b.Loop() {
			now += 1e6
			r.learnLatency(a, f, false, now)
		}
	})
}

// BenchmarkTurn is what a pool does for an attempt besides talking to the relay: the pick, the slot, the breaker's leave, its word on the outcome, and the slot's
// release; with choose before it, which asks which relays may take the message.
func BenchmarkTurn(b *testing.B) {
	for _, n := range []int{2, 16, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := Config{LocalName: "localhost", Health: Health{Interval: -1}}
			for i := range n {
				c.Relays = append(c.Relays, Relay{Addr: fmt.Sprintf("relay-%d.example.com:25", i), TLS: TLSNone, Weight: 1 + i%7})
			}
			p, err := New(c)
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close()
			d, err := p.prepare(context.Background(), &Envelope{From: "a@example.com", To: []string{"x@example.com"}, Body: Bytes([]byte("Subject: s\r\n\r\nx\r\n"))})
			if err != nil {
				b.Fatal(err)
			}
			defer d.free()
			ctx := context.Background()
			b.Run("pick", func(b *testing.B) {
				tier := d.choose()
				info := PickInfo{From: d.msg.from, Domain: d.firstDomain(), Skip: d.skip, Attempt: 1}
				b.ReportAllocs()
				for b.Loop() {
					r := tier.pick(info)
					t, ok := p.conns.Try(r.lane, false)
					if !ok {
						b.Fatal("no turn")
					}
					permit, ok := r.admit(t)
					if !ok {
						b.Fatal("no permit")
					}
					permit.Done(breaker.Success)
					t.Put(0)
				}
			})
			b.Run("choose and pick", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					permit, ok, err := p.turn(ctx, d)
					if !ok {
						b.Fatal(err)
					}
					permit.Done(breaker.Success)
					d.turn.Put(0)
				}
			})
		})
	}
}
