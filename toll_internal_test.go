package smtplb

import (
	"context"
	"fmt"
	"testing"
)

// limitedConfig bounds everything that can be bounded, by far more than a test uses up.
func limitedConfig(routes int) Config {
	many := Limits{Messages: PerSecond(1e8), Recipients: PerSecond(1e8)}
	relay := many
	relay.Connections = PerSecond(1e8)
	c := Config{
		Health:    Health{Interval: -1},
		Relays:    []Relay{{Addr: "a.test:25", TLS: TLSNone, Limits: relay}, {Addr: "b.test:25", TLS: TLSNone, Limits: relay}, {Addr: "c.test:25", TLS: TLSNone, Limits: relay}},
		Limits:    many,
		PerSender: many,
		Streams:   []Stream{{Name: "news", Limits: many}},
		Providers: []Provider{{Name: "gmail", Limits: many}},
	}
	for i := range routes {
		c.Routes = append(c.Routes, Route{Recipients: []string{fmt.Sprintf("d%d.example", i)}, Relays: []string{"a.test:25"}})
	}
	c.Routes = append(c.Routes, Route{Recipients: []string{"gmail.com"}, Relays: []string{"a.test:25", "b.test:25"}, Limits: many})
	return c
}

// usualConfig bounds what is usually bounded: each relay, and one provider.
func usualConfig(routes int) Config {
	c := limitedConfig(routes)
	c.Limits, c.PerSender, c.Streams = Limits{}, Limits{}, nil
	c.Routes[routes].Limits = Limits{}
	c.Providers[0].Limits.Messages = Rate{}
	for i := range c.Relays {
		c.Relays[i].Limits.Recipients = Rate{}
	}
	return c
}

func plainConfig() Config {
	return Config{Health: Health{Interval: -1}, Relays: []Relay{{Addr: "a.test:25", TLS: TLSNone}, {Addr: "b.test:25", TLS: TLSNone}, {Addr: "c.test:25", TLS: TLSNone}}}
}

// turns returns what a send does until it has a relay's slot, and how it gives that back: routes, limits, choice, queue.
func turns(tb testing.TB, c Config) func() {
	p, err := New(c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { p.Close() })
	e := &Envelope{From: "a@example.com", To: []string{"x@gmail.com"}, Stream: "news", Body: Bytes([]byte("a: b\r\n\r\n"))}
	ctx := context.Background()
	d, err := p.prepare(ctx, e)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(d.free)
	return func() {
		d.obey()
		d.spare()
		if !d.follow() {
			tb.Fatal("it parts")
		}
		permit, ok, err := p.turn(ctx, d)
		if !ok || err != nil {
			tb.Fatal(ok, err)
		}
		d.turn.Spend()
		d.fleet.ofLane(d.turn.Lane()).giveBack(&d.turn, &permit)
	}
}

// BenchmarkToll is what limits and routing cost: with all that can be bounded bounded, and 100,000 routes, or nothing.
func BenchmarkToll(b *testing.B) {
	for _, x := range []struct {
		name   string
		config Config
	}{{"plain", plainConfig()}, {"usual", usualConfig(100_000)}, {"all", limitedConfig(100_000)}} {
		b.Run(x.name, func(b *testing.B) {
			f := turns(b, x.config)
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
	}
}

// Limits and routes cost a message one allocation at the most.
func TestLimitsAllocate(t *testing.T) {
	if underRace {
		return
	}
	plain, limited := testing.AllocsPerRun(1000, turns(t, plainConfig())), testing.AllocsPerRun(1000, turns(t, limitedConfig(1000)))
	if limited > plain+1 {
		t.Errorf("%v allocations, without limits %v", limited, plain)
	}
}
