package balance_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/balance"
)

// flying is a number of sends in a word of which the lowest two bits are something else.
type flying struct{ word atomic.Uint64 }

func (f *flying) Load() int64       { return int64(f.word.Load() >> 2) }
func (f *flying) Store(n int64)     { f.word.Store(uint64(n)<<2 | 1) }
func (f *flying) Add(n int64) int64 { return int64(f.word.Add(uint64(n)<<2) >> 2) }

// gauge is a relay whose load is an atomic behind an interface.
type gauge struct {
	inFlight flying
	latency  atomic.Int64
}

func (g *gauge) InFlight() int          { return int(g.inFlight.Load()) }
func (g *gauge) Latency() time.Duration { return time.Duration(g.latency.Load()) }

func gauges(n int, load func(i int) int) (gs []*gauge, loads []balance.Load, relays []balance.Latent) {
	for i := range n {
		g := new(gauge)
		g.inFlight.Store(int64(load(i)))
		g.latency.Store(int64(time.Duration(80+i%7) * time.Millisecond))
		gs, loads, relays = append(gs, g), append(loads, g), append(relays, g)
	}
	return gs, loads, relays
}

// words are loads as the pool has them.
func words(n int, load func(i int) int) (loads []balance.Load) {
	for i := range n {
		g := balance.Gauge{Word: new(atomic.Uint64), Shift: 2}
		g.Word.Store(uint64(load(i))<<2 | 1)
		loads = append(loads, g)
	}
	return loads
}

// BenchmarkPick is every algorithm's pick, at 2, 16 and 1,000 relays: idle, and with so much in flight that an
// algorithm that looks at it has to look at everybody.
func BenchmarkPick(b *testing.B) {
	idle := func(int) int { return 0 }
	busy := func(i int) int { return 40 + i*5%13 }
	for _, n := range []int{2, 16, 1000} {
		weights := benchWeights(n, func(i int) float64 { return float64(1 + i%7) })
		even := benchWeights(n, func(int) float64 { return 1 })
		names := make([]string, n)
		for i := range names {
			names[i] = fmt.Sprintf("relay-%d.example.com", i)
		}
		none := bits(n)
		_, _, latents := gauges(n, idle)
		_, _, busyLatents := gauges(n, busy)
		quiet, loads := words(n, idle), words(n, busy)
		pick := func(name string, f func() int) {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					f()
				}
			})
		}
		table, alias := balance.NewTable(weights, 0), balance.NewAlias(weights)
		pick("table", table.Next)
		pick("alias", func() int { return alias.DrawAmong(none) })
		adaptiveIdle, adaptive := balance.NewAdaptive(weights, quiet), balance.NewAdaptive(weights, loads)
		pick("adaptive/idle", func() int { return adaptiveIdle.Pick(true, none) })
		pick("adaptive/busy", func() int { return adaptive.Pick(true, none) })
		leastIdle, least := balance.NewLeastInFlight(weights, quiet), balance.NewLeastInFlight(weights, loads)
		pick("least/idle", func() int { return leastIdle.Pick(true, none) })
		pick("least/busy", func() int { return least.Pick(true, none) })
		latencyIdle, latency := balance.NewLatency(weights, latents), balance.NewLatency(weights, busyLatents)
		pick("latency/idle", func() int { return latencyIdle.Pick(true, none) })
		pick("latency/busy", func() int { return latency.Pick(true, none) })
		hash, hashEven := balance.NewHash(weights, names, loads, 0), balance.NewHash(even, names, loads, 0)
		bounded := balance.NewHash(weights, names, loads, 1.25)
		const key = "newsletter@customer.example"
		pick("hash/weighted", func() int { return hash.Pick(key, none) })
		pick("hash/even", func() int { return hashEven.Pick(key, none) })
		pick("hash/bounded", func() int { return bounded.Pick(key, none) })
	}
}

func BenchmarkEWMA(b *testing.B) {
	var e balance.EWMA
	b.ReportAllocs()
	for now := int64(1); b.Loop(); now += 1e6 {
		e.Observe(now, time.Duration(now%1e8))
	}
}
