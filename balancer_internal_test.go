package smtplb

import (
	"context"
	"fmt"
	"testing"

	"github.com/smtplb/smtplb/internal/breaker"
)

// BenchmarkTurn is what a pool does for an attempt besides talking to the relay: which relays may take it, the pick, the slot, the breaker's leave, its
// word on the outcome, and the slot's release.
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
	}
}
