package smtplb

import (
	"context"
	"fmt"
	"testing"

	"github.com/smtplb/smtplb/internal/breaker"
)

// BenchmarkTurn is what a pool does for an attempt besides talking to the relay: the pick, the slot, the breaker's leave, its word on the outcome, and the slot's
// release; with choose before it, which asks which relays may take the message.
func BenchmarkTurn(b *testing.B) {
	for _, n := range []int{2, 16, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := Config{LocalName: "localhost"}
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
