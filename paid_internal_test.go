package smtplb

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/backoff"
)

// twoRelays is a configuration of two relays with these limits of all recipients, and of all messages.
func twoRelays(recipients, messages Rate) Config {
	c := plainConfig()
	c.Relays = c.Relays[:2]
	c.Limits = Limits{Recipients: recipients, Messages: messages}
	return c
}

// priced is the fare of a message of one recipient.
func priced(t *testing.T, p *Pool) *fare {
	d, err := p.prepare(t.Context(), &Envelope{From: "a@example.com", To: []string{"x@gmail.com"}, Body: Bytes([]byte("a: b\r\n\r\n"))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.free)
	d.obey()
	d.follow()
	return d.price()
}

// An Update between what the two relays of a race are paid for brings no tokens: what was paid before it of a limit that there wasn't isn't given back. Whichever unit is new.
func TestRaceOverAnUpdateBringsNothing(t *testing.T) {
	for _, swapped := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			rate := Rate{N: 1, Per: time.Hour, Burst: 9}
			before, after := twoRelays(rate, Rate{}), twoRelays(rate, rate)
			if swapped {
				before = twoRelays(Rate{}, rate)
			}
			p, err := New(before)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			f := priced(t, p)
			old := p.fleet.Load()
			f.Pay(old.relays[0].lane, time.Now(), false)
			time.Sleep(time.Nanosecond)
			if err := p.Update(after); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Nanosecond)
			whole := p.fleet.Load().whole
			whole.messages.Take(time.Now(), 5) // so that there is room for what is given back
			whole.recipients.Take(time.Now(), 5)
			f.Pay(old.relays[1].lane, time.Now(), false)
			f.End(old.relays[1].lane, time.Now(), false, false)
			f.End(old.relays[0].lane, time.Now(), false, false)
			if m, r := whole.messages.Level(time.Now()), whole.recipients.Level(time.Now()); m > 4.001 || r > 4.001 {
				t.Errorf("%v messages and %v recipients are there, of 4", m, r)
			}
			if n := whole.inUse.Load(); n != 0 {
				t.Errorf("%d are under way", n)
			}

			// The race is over: who pays again pays by what there is now.
			f.Pay(old.relays[0].lane, time.Now(), false)
			m, r := whole.messages.Level(time.Now()), whole.recipients.Level(time.Now())
			f.End(old.relays[0].lane, time.Now(), false, false)
			if m, r = whole.messages.Level(time.Now())-m, whole.recipients.Level(time.Now())-r; m < 0.999 || r < 0.999 {
				t.Errorf("%v messages and %v recipients are given back, of one", m, r)
			}
		})
	}
}

// Of the two relays of a race each is given back its own: the dial that the one was paid for, whichever ends first, and what the one was held back by.
func TestRaceGivesEachItsOwn(t *testing.T) {
	for _, first := range []int{0, 1} { // to end
		synctest.Test(t, func(t *testing.T) {
			p, err := New(twoRelays(PerSecond(1000), Rate{}))
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			relays, now := p.fleet.Load().relays, time.Now()
			for _, r := range relays {
				r.holdBack(&r.strain.dials, now, backoff.Signal{Kind: backoff.Throttle})
				r.holdBack(&r.strain.account, now, backoff.Signal{Kind: backoff.Throttle})
			}
			time.Sleep(time.Minute)
			now = time.Now()
			for _, r := range relays { // both have something by now
				if r.strain.dials.wait(now) > 0 || r.strain.account.wait(now) > 0 {
					t.Fatal("they are still to be left alone")
				}
			}
			f := priced(t, p)
			f.Pay(relays[0].lane, now, true)
			f.Pay(relays[1].lane, now, false)
			for _, i := range []int{first, 1 - first} {
				f.End(relays[i].lane, now, i == 1, i == 0) // r1 has sent it over an idle connection, and r0 has not even dialled
				for _, r := range relays {
					if n := r.strain.account.inUse.Load(); n != 0 && (i != first || r == relays[first]) {
						t.Errorf("%s: %d under way", r.name, n)
					}
				}
			}
			if w := relays[0].strain.dials.wait(now); w != 0 {
				t.Errorf("the dial that there wasn't isn't given back: %v", w)
			}
			if a, b := relays[0].strain.account.wait(now), relays[1].strain.account.wait(now); a != 0 || b == 0 {
				t.Errorf("the first waits for %v, and the second, which has sent it, for %v", a, b)
			}
			if len(f.dials) != 0 || len(f.strained) != 0 {
				t.Errorf("%d dials and %d tethers are still paid for", len(f.dials), len(f.strained))
			}
		})
	}
}

// A new connection that was granted and isn't opened is given back, by its limit too, unless it wasn't limited when it was granted.
func TestUnusedConnectionIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := plainConfig()
		c.Relays, c.Limits.Messages = c.Relays[:1], PerSecond(1000)
		p, take := taker(t, c)
		level := func(want float64) {
			t.Helper()
			if n := p.fleet.Load().relays[0].meter.connections.Level(time.Now()); n < want-0.001 || n > want+0.001 {
				t.Errorf("%v new connections are left, want %v", n, want)
			}
		}
		before := take()
		time.Sleep(time.Nanosecond)
		c.Relays[0].Limits.Connections = Rate{N: 1, Per: time.Hour, Burst: 9}
		if err := p.Update(c); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Nanosecond)
		one, two := take(), take()
		level(7)
		before(false)
		level(7)
		one(false)
		level(8)
		two(true) // the message is spent; the connection was never opened
		level(9)
	})
}

// A connection in the place of one that proved stale is one of those that are held back, and so is every other that no turn has paid for.
func TestReplacedConnectionIsHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := New(twoRelays(PerSecond(1000), Rate{}))
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		r := p.fleet.Load().relays[0]
		r.holdBack(&r.strain.dials, time.Now(), backoff.Signal{Kind: backoff.Throttle})
		time.Sleep(time.Minute)
		turn, ok := p.conns.TryFare(r.lane, false, priced(t, p), 0)
		if !ok {
			t.Fatal("no turn")
		}
		wait := r.strain.dials.wait(time.Now())
		if wait == 0 {
			t.Fatal("the turn has paid nothing for its connection")
		}
		r.dials(turn) // that one
		if w := r.strain.dials.wait(time.Now()); w != wait {
			t.Errorf("the next waits for %v, and when the connection is opened for %v", wait, w)
		}
		r.dials(turn) // and another in its place
		if w := r.strain.dials.wait(time.Now()); w <= wait {
			t.Errorf("the next waits for %v, and with another connection in its place for %v", wait, w)
		}
		turn.Put(0)
	})
}

// What of a warm-up was there when a race began, and isn't when the second relay is to pay, is no reason to send by that one.
func TestShortFareIsNoSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := New(twoRelays(PerSecond(1000), Rate{}))
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		f := priced(t, p)
		d := &delivery{pool: p, fleet: p.fleet.Load(), fare: f}
		f.short.Store(true)
		if _, ok := d.second(d.fleet.relays[1]); ok {
			t.Error("it can be sent")
		}
		if n := p.fleet.Load().whole.inUse.Load(); n != 0 || f.paying != 0 {
			t.Errorf("%d are under way, %d paid for", n, f.paying)
		}
	})
}

// Of the warm-ups of both relays of a race each is given back its own.
func TestRaceOfWarmups(t *testing.T) {
	for _, first := range []int{0, 1} { // to end
		synctest.Test(t, func(t *testing.T) {
			c := twoRelays(PerSecond(1000), Rate{})
			for i := range c.Relays {
				c.Relays[i].Warmup.Curve = []int{2400}
			}
			p, err := New(c)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			relays := p.fleet.Load().relays
			f := priced(t, p) // has the warm-ups ask their store
			synctest.Wait()
			for _, r := range relays { // and that they are asked has them take some of it
				r.warmWait(f)
			}
			f = priced(t, p)
			synctest.Wait()
			f.Pay(relays[0].lane, time.Now(), false)
			f.Pay(relays[1].lane, time.Now(), false)
			for _, i := range []int{first, 1 - first} {
				f.End(relays[i].lane, time.Now(), i == 1, false) // r1 has sent it
			}
			for i, r := range relays {
				if x := r.warming.Load().schedule.Today(time.Now()); x.Used != i || len(f.warm) != 0 || f.short.Load() {
					t.Errorf("%s: %d are used; %d are still paid for", r.name, x.Used, len(f.warm))
				}
			}
		})
	}
}
