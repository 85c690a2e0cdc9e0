package smtplb

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/smtplb/smtplb/internal/backoff"
	"github.com/smtplb/smtplb/internal/connpool"
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

// taker returns a pool, and how a message to x@gmail.com gets a slot in it, and ends: spent or not.
func taker(t *testing.T, c Config) (p *Pool, take func() (end func(spent bool))) {
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	ctx := context.Background()
	return p, func() func(spent bool) {
		d, err := p.prepare(ctx, &Envelope{From: "a@example.com", To: []string{"x@gmail.com"}, Body: Bytes([]byte("a: b\r\n\r\n"))})
		if err != nil {
			t.Fatal(err)
		}
		d.obey()
		d.follow()
		permit, ok, err := p.turn(ctx, d)
		if !ok || err != nil {
			t.Fatal(ok, err)
		}
		return func(spent bool) {
			if spent {
				d.turn.Spend()
			}
			d.fleet.ofLane(d.turn.Lane()).giveBack(&d.turn, &permit)
			d.free()
		}
	}
}

// What is given back after an Update is what was paid before it: nothing of a limit that there wasn't.
func TestGivenBackAfterUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		with := func(messages Rate) Config {
			l := Limits{Recipients: Rate{N: 9, Per: time.Hour, Burst: 9}, Messages: messages}
			c := plainConfig()
			c.Limits, c.Relays = l, c.Relays[:1]
			c.Relays[0].Limits = l
			c.PerSender = l
			return c
		}
		p, take := taker(t, with(Rate{}))
		before := take()
		time.Sleep(time.Nanosecond)
		limited := with(Rate{N: 1, Per: time.Hour, Burst: 9})
		if err := p.Update(limited); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Nanosecond)
		f, now := p.fleet.Load(), time.Now()
		level := func(want string) {
			t.Helper()
			s := f.perSender
			got := fmt.Sprintf("%.3f %.3f, %.3f %.3f, %.3f %.3f", f.whole.messages.Level(now), f.whole.recipients.Level(now), f.relays[0].meter.messages.Level(now), f.relays[0].meter.recipients.Level(now),
				s.messages.Get(now, "example.com").Level(now), s.recipients.Get(now, "example.com").Level(now))
			if got != want {
				t.Errorf("%s are there, want %s", got, want)
			}
		}
		level("9.000 8.000, 9.000 8.000, 9.000 8.000")
		take()(true)
		take()(false)
		level("8.000 7.000, 8.000 7.000, 8.000 7.000")
		before(false)
		level("8.000 8.000, 8.000 8.000, 8.000 8.000")
	})
}

// Limits that are taken away and put back find what was used before, also what is under way.
func TestLimitsPutBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := Limits{Messages: Rate{N: 1, Per: time.Minute, Burst: 3}, Concurrency: 2}
		c := plainConfig()
		c.Limits, c.Providers, c.MaxThrottleWait = limits, []Provider{{Name: "gmail", Limits: Limits{Recipients: limits.Messages, Concurrency: 2}}}, -1
		p, take := taker(t, c)
		end := take()
		take()(true)
		update := func(c Config) {
			t.Helper()
			if err := p.Update(c); err != nil {
				t.Fatal(err)
			}
		}
		update(plainConfig())
		update(plainConfig())
		if n := len(p.fleet.Load().former); n != 2 {
			t.Errorf("%d are known of limits that there were", n)
		}
		update(c)
		f, now := p.fleet.Load(), time.Now()
		for _, m := range []*meter{f.whole, f.providers[0].meter} {
			if level := min(m.messages.Level(now), m.recipients.Level(now)); level != 1 || m.inUse.Load() != 1 {
				t.Errorf("%s: %v are there, %d under way", m.what(), level, m.inUse.Load())
			}
		}
		if n := len(f.former); n != 0 {
			t.Errorf("%d are known of limits that there are again", n)
		}
		update(plainConfig())
		time.Sleep(2 * time.Minute)
		update(plainConfig())
		if n := len(p.fleet.Load().former); n != 2 {
			t.Errorf("%d are known while a message is under way", n)
		}
		end(true)
		update(plainConfig())
		if n := len(p.fleet.Load().former); n != 0 {
			t.Errorf("%d are known when nothing is used any more", n)
		}
		update(c)
		take()(true)
		update(plainConfig())
		if n := len(p.fleet.Load().former); n != 2 {
			t.Errorf("%d are known while something is used", n)
		}
	})
}

// stepped is the same moment, told by somebody whose clock on the wall was set forward meanwhile.
func stepped(t *testing.T, at time.Time, seconds int) time.Time {
	x := at
	*(*uint64)(unsafe.Pointer(&x)) += uint64(seconds) << 30 // in time.Time's wall, the seconds are above the nanoseconds
	if x.Sub(at) != 0 || x.Unix()-at.Unix() != int64(seconds) {
		t.Fatal("time.Time is made otherwise than this test knows")
	}
	return x
}

// A Limiter's denial lasts as long as it said, whatever becomes of the clock on the wall.
func TestDenialOutlivesClock(t *testing.T) {
	p, err := New(plainConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	r, now := p.fleet.Load().relays[0], time.Now()
	until := stepped(t, now.Add(time.Minute), 3600)
	r.refusedUntil.Store(&until)
	f := &fare{fleet: p.fleet.Load(), messages: 1, recipients: 1}
	for at, want := range map[time.Duration]time.Duration{0: time.Minute, time.Minute - time.Second: time.Second, time.Minute: 0, time.Hour: 0} {
		if got := r.tollWait(&connpool.Ask{Now: now.Add(at)}, f); max(got, 0) != want {
			t.Errorf("a wait of %v after %v, want %v", got, at, want)
		}
	}
}

// Limits and routes cost a turn no more than some times what it costs without any: nothing in them depends on how many there are. Whoever else uses the machine doesn't count: what the least of many short rounds took does, they take
// turns, and there are more of them where the first ones don't do.
func TestTollIsSmall(t *testing.T) {
	const each, most = 30, 5000
	least := [3]time.Duration{time.Hour, time.Hour, time.Hour}
	of := []func(){turns(t, plainConfig()), turns(t, usualConfig(1000)), turns(t, limitedConfig(1000))}
	var usual, all float64
	for n := 0; n < 200 || n < most && (usual > 6 || all > 10); n++ {
		for i, f := range of {
			begun := time.Now()
			for range each {
				f()
			}
			least[i] = min(least[i], time.Since(begun))
		}
		usual, all = float64(least[1])/float64(least[0]), float64(least[2])/float64(least[0])
	}
	t.Logf("%v; %.1f times as much with the usual limits, %.1f with all", least[0]/each, usual, all)
	if usual > 6 || all > 10 {
		t.Errorf("a turn takes %v, with the usual limits %v, with all %v", least[0]/each, least[1]/each, least[2]/each)
	}
}

// A new connection that was granted before these were limited, and isn't opened, brings none back.
func TestUnusedDialGivesBackWhatItPaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := plainConfig()
		c.Relays, c.Limits.Messages = c.Relays[:1], PerSecond(1000)
		p, take := taker(t, c)
		dials := &p.fleet.Load().relays[0].strain.dials
		before := take()
		p.fleet.Load().relays[0].holdBack(dials, time.Now(), backoff.Signal{Kind: backoff.Throttle})
		time.Sleep(time.Minute)
		paid := take()
		wait := dials.wait(time.Now())
		if wait == 0 {
			t.Fatal("a new connection costs nothing")
		}
		before(false)
		if w := dials.wait(time.Now()); w != wait {
			t.Errorf("the next may come in %v, and when one that was never paid is given back in %v", wait, w)
		}
		paid(false)
		if w := dials.wait(time.Now()); w != 0 {
			t.Errorf("what was paid isn't given back: %v", w)
		}
	})
}
