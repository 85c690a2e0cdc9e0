package smtplb

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/backoff"
)

// What is held back is let go, and counted no more, when the relay goes, when nothing is to be held back, and when little mail has gone well for long; a refusal that comes late changes nothing.
func TestTethersAreLetGo(t *testing.T) {
	for _, how := range []string{"removed", "NoBackOff", "calm"} {
		synctest.Test(t, func(t *testing.T) {
			a, b := Relay{Addr: "a.test:25", TLS: TLSNone}, Relay{Addr: "b.test:25", TLS: TLSNone}
			p, err := New(Config{Relays: []Relay{a, b}})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			r := p.fleet.Load().byName["a.test:25"]
			now := time.Now()
			r.holdBack(&r.strain.account, now, backoff.Signal{Kind: backoff.Connections, InUse: 8})
			r.holdBack(r.mailboxOf("gmail", now), now, backoff.Signal{Kind: backoff.Connections, InUse: 8})
			if counted, tight := p.Strained(); counted != 2 || tight != 2 {
				t.Fatalf("%d are counted, %d are tight", counted, tight)
			}
			switch how {
			case "removed":
				err = p.Update(Config{Relays: []Relay{b}})
				now = now.Add(time.Hour)
				r.holdBack(&r.strain.account, now, backoff.Signal{Kind: backoff.Connections, InUse: 4})
			case "NoBackOff":
				a.NoBackOff = true
				err = p.Update(Config{Relays: []Relay{a, b}})
			case "calm":
				for range 90 {
					time.Sleep(time.Minute)
					for _, x := range r.strain.all() {
						r.relax(x, time.Now(), 0)
					}
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			if n := p.strained.Load(); n != 0 || r.strain.strained.Load() || r.windowed(10) != 10 {
				t.Errorf("%s: %d are still counted, %v, window %d", how, n, r.strain.strained.Load(), r.windowed(10))
			}
		})
	}
}
