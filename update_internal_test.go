package smtplb

import (
	"context"
	"fmt"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/smtptest"
)

// What is known of a relay outlives an Update, and what depends on how it is reached doesn't outlive a change of that: it was another server's, or other credentials'.
func TestUpdateForgets(t *testing.T) {
	config := Config{Relays: []Relay{{Name: "r", Addr: "r.test"}}}
	p, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	r, now := p.fleet.Load().relays[0].standing, time.Now()
	later := now.Add(time.Hour).UnixNano()
	r.offers.Store(&offer{at: now})
	r.refusesChunks.Store(true)
	r.noRide.Store(true)
	r.rideTrial.Store(ridesWell)
	r.noRideUntil.Store(later)
	r.cooledUntil.Store(later)
	r.finalTimeouts.Store(maxFinalTimeouts - 1)
	r.latency.Observe(now.UnixNano(), time.Second)
	r.envelope.Observe(now.UnixNano(), time.Second)
	r.connects.add(time.Minute)
	r.apart.add("example.com", now)
	r.answers(now)
	r.mu.Lock()
	r.checks.fails, r.checks.passes, r.checks.due, r.checks.login = 2, 1, now, false
	r.mu.Unlock()
	r.down.Store(true)
	known := func() map[string]bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		c := &r.checks
		return map[string]bool{
			"EHLO": r.offers.Load() != nil, "BDAT": r.refusesChunks.Load(), "rides": r.noRide.Load(), "trial": r.rideTrial.Load() != 0, "lost ride": r.noRideUntil.Load() != 0,
			"cooling": r.cooledUntil.Load() != 0, "unanswered": r.finalTimeouts.Load() != 0, "latency": r.latency.Value() != 0, "envelope": r.envelope.Value() != 0,
			"connects": r.connects.patience() != hedgeAfter, "apart": r.apart.until["example.com"] != time.Time{}, "answered": r.answered.Load() != 0, "proven": r.proven.Load(),
			"fails": c.fails != 0, "passes": c.passes != 0, "due": !c.due.IsZero(), "login": !c.login, "down": r.down.Load(),
		}
	}
	for _, kept := range []bool{true, false} {
		if config.Relays[0].Weight = 7; !kept {
			config.LocalName = "client.example"
		}
		r.mu.Lock()
		era := r.checks.era
		r.mu.Unlock()
		if err := p.Update(config); err != nil {
			t.Fatal(err)
		}
		if is := p.fleet.Load().relays[0]; is.standing != r || is.weight != 7 {
			t.Fatalf("it is another relay: %+v", is)
		}
		for what, is := range known() {
			if is != kept {
				t.Errorf("%s is known: %v, want %v", what, is, kept)
			}
		}
		r.mu.Lock()
		if (r.checks.era == era) != kept {
			t.Errorf("a check that is under way is of use: %v, want %v", r.checks.era == era, kept)
		}
		r.mu.Unlock()
	}
	config.LocalName = "other.example"
	r.proven.Store(true)
	if err := p.Update(config); err != nil || r.proven.Load() {
		t.Errorf("%v; it is reached in another way, and known to work: %v", err, r.proven.Load())
	}
	config.Health.Interval = -1
	r.down.Store(true)
	r.proven.Store(true)
	if err := p.Update(config); err != nil || r.down.Load() || r.proven.Load() {
		t.Errorf("%v; nobody asks any more, and the relay is down: %v, and known to work: %v", err, r.down.Load(), r.proven.Load())
	}
}

// An Update that fails leaves no lanes behind.
func TestFailedUpdateLeavesNoLanes(t *testing.T) {
	p, err := New(Config{Relays: []Relay{{Addr: "r.test"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for i := range 10 {
		failing := Config{Balancer: noBalancer{}, Relays: []Relay{{Addr: "r.test"}, {Addr: "a.test"}, {Addr: "b.test"}}}
		if err := p.Update(failing); err == nil {
			t.Fatal("no error")
		}
		if err := p.Update(Config{Relays: []Relay{{Addr: "r.test"}, {Name: fmt.Sprint("n", i), Addr: "c.test"}}}); err != nil {
			t.Fatal(err)
		}
		if r := p.fleet.Load().relays; r[1].member > 4 { // those that were given up a moment ago, and its predecessor's
			t.Errorf("after %d failed Updates the next lane is the %dth", i+1, r[1].member)
		}
	}
}

// noBalancer makes no pickers.
type noBalancer struct{}

func (noBalancer) NewPicker([]RelayView) Picker { return nil }

// What an Update changes of the weights counts soon, not with the next beat.
func TestUpdateHasWeightsLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := Config{Relays: []Relay{{Name: "r", Addr: "r.test"}}}
		p, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		p.wake()
		config.Health.SlowStart = -1
		if err := p.Update(config); err != nil {
			t.Fatal(err)
		}
		p.keeper.mu.Lock()
		defer p.keeper.mu.Unlock()
		if d := time.Until(p.keeper.due); d > soon {
			t.Errorf("in %v", d)
		}
	})
}

// An attempt that goes on by the old ways of a relay teaches nothing about the new ones.
func TestOutdatedAttemptTeachesNothing(t *testing.T) {
	for _, outdated := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n := smtptest.NewNetwork()
			s := n.NewServer("old.test:25")
			defer s.Close()
			s.On(smtptest.Ehlo).Delay(time.Second)
			s.On(smtptest.EndOfData).Delay(time.Second)
			config := Config{Dial: n.DialContext, Health: Health{Interval: -1}, Relays: []Relay{{Name: "r", Addr: "old.test:25", TLS: TLSNone}}}
			p, err := New(config)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			done := make(chan error, 1)
			go func() {
				_, err := p.Deliver(context.Background(), &Envelope{From: "a@example.com", To: []string{"x@example.com"}, Body: Bytes([]byte("Subject: hello\r\n\r\nHello.\r\n"))})
				done <- err
			}()
			time.Sleep(time.Second / 2)
			if outdated {
				config.Relays[0].Addr = "new.test:25"
				if err := p.Update(config); err != nil {
					t.Fatal(err)
				}
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			r := p.fleet.Load().relays[0].standing
			for what, known := range map[string]bool{
				"EHLO": r.offers.Load() != nil, "connect times": r.connects.patience() != hedgeAfter, "rides": r.noRide.Load(), "latency": r.latency.Value() != 0,
				"that it answers": r.answered.Load() != 0, "that it works": r.proven.Load(),
			} {
				if known == outdated {
					t.Errorf("outdated is %v, and %s is known: %v", outdated, what, known)
				}
			}
		})
	}
}

// The number of a lane is one relay's, also when its place is given to another: neither fleet takes the lane of the other's relay for one of its own.
func TestPlacesAreGivenAwayByNumber(t *testing.T) {
	var fleets []*fleet
	config := func(name string) Config { return Config{Relays: []Relay{{Name: name, Addr: "r.test"}}} }
	p, err := New(config("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, name := range []string{"b", "c"} { // b comes before a's place is free
		fleets = append(fleets, p.fleet.Load())
		if err := p.Update(config(name)); err != nil {
			t.Fatal(err)
		}
	}
	a, c := fleets[0], p.fleet.Load()
	first, last := a.relays[0], c.relays[0]
	if first.member != last.member || first.lane == last.lane {
		t.Fatalf("a has the lane %d, c the lane %d", first.lane, last.lane)
	}
	got := []*relay{a.ofLane(first.lane), a.ofLane(last.lane), c.ofLane(first.lane), c.ofLane(last.lane)}
	if want := []*relay{first, nil, nil, last}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if p.conns.Free(first.lane, false) {
		t.Error("the lane that was removed has free connections")
	}
}
