package smtplb

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/backoff"
	"github.com/smtplb/smtplb/internal/connpool"
)

// strainedRelay is the first of two relays of a pool, with a limit of messages; the first minute is over.
func strainedRelay(t *testing.T, f func(p *Pool, c Config, r *relay)) {
	synctest.Test(t, func(t *testing.T) {
		c := twoRelays(PerSecond(1000), Rate{})
		c.Relays[0].Limits.Messages, c.Relays[0].Conns.Max = PerSecond(50), 10
		p, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		time.Sleep(time.Minute)
		f(p, c, p.fleet.Load().relays[0])
	})
}

// What keeps a message from a relay that is held back is what is told, and nothing that is held back of others, or wouldn't keep it waiting now.
func TestHoldsTellsWhatIsWaitedFor(t *testing.T) {
	throttle, quota := backoff.Signal{Kind: backoff.Throttle, Reply: "454 slower"}, backoff.Signal{Kind: backoff.Quota, Reply: "454 enough"}
	for _, x := range []struct {
		name                  string
		account, gmail, dials backoff.Signal // a minute ago
		forGmail, fresh       bool
		want                  string
	}{
		{name: "a minute ago", account: throttle, gmail: throttle, dials: throttle, forGmail: true, fresh: true},
		{name: "all of it", account: quota, forGmail: true, fresh: true, want: "left alone"},
		{name: "a provider, behind the rest of it", account: throttle, gmail: quota, forGmail: true, want: "gmail: left alone"},
		{name: "another provider", account: throttle, gmail: quota},
		{name: "new connections, behind a provider", gmail: throttle, dials: quota, forGmail: true, fresh: true, want: "new connections: left alone"},
		{name: "no new connection", dials: quota},
	} {
		strainedRelay(t, func(p *Pool, _ Config, r *relay) {
			now := time.Now()
			for to, g := range map[*tether]backoff.Signal{&r.strain.account: x.account, r.mailboxOf("gmail", now): x.gmail, &r.strain.dials: x.dials} {
				if g.Kind != 0 {
					r.holdBack(to, now, g)
				}
			}
			time.Sleep(time.Minute)
			f := &fare{fleet: p.fleet.Load(), messages: 1, recipients: 1}
			if x.forGmail {
				f.mailboxes = []*provider{{Provider: &Provider{Name: "gmail"}}}
			}
			a := &connpool.Ask{Now: time.Now(), Fresh: x.fresh}
			if text := r.holds(a, f); !strings.HasPrefix(text, x.want) || (text == "") != (x.want == "") || (text == "") != (r.strainWait(a, f) == 0) {
				t.Errorf("%s: %q, want %q; it waits for %v", x.name, text, x.want, r.strainWait(a, f))
			}
		})
	}
}

// As many connections as a relay may have follow what is held back of it: fewer at once, more as it takes mail, all when that is over, and never more than there were.
func TestConnectionsFollowTheWindow(t *testing.T) {
	strainedRelay(t, func(p *Pool, _ Config, r *relay) {
		r.holdBack(&r.strain.account, time.Now(), backoff.Signal{Kind: backoff.Connections, InUse: 8})
		first := r.Limit()
		if first >= 8 || first != r.windowed(10) {
			t.Errorf("%d connections, of a window of %d", first, r.windowed(10))
		}
		if w := int(r.strain.account.window.Load()); r.windowed(0) != w || r.windowed(-1) != w || r.windowed(w-1) != w-1 {
			t.Errorf("of a window of %d: %d without a bound, %d of %d", w, r.windowed(0), r.windowed(w-1), w-1)
		}
		last := first
		for range 200 {
			time.Sleep(time.Minute)
			r.relax(&r.strain.account, time.Now(), 10)
			if n := r.Limit(); n < last || n != r.windowed(10) {
				t.Fatalf("%d connections after %d, of a window of %d", n, last, r.windowed(10))
			}
			if r.strain.account.tight.Load() {
				last = r.Limit()
			}
		}
		if r.strain.account.tight.Load() || last == first || r.Limit() != 10 {
			t.Errorf("still held back: %v; %d connections at first, %d at last, and then %d", r.strain.account.tight.Load(), first, last, r.Limit())
		}
	})
}

// Where one of two things that are held back is over, the other isn't.
func TestOneTetherOutlastsAnother(t *testing.T) {
	strainedRelay(t, func(p *Pool, _ Config, r *relay) {
		now := time.Now()
		r.holdBack(r.mailboxOf("gmail", now), now, backoff.Signal{Kind: backoff.Quota})
		r.holdBack(&r.strain.account, now, backoff.Signal{Kind: backoff.Throttle})
		r.loosen(&r.strain.account)
		f := &fare{mailboxes: []*provider{{Provider: &Provider{Name: "gmail"}}}}
		if wait := r.strainWait(&connpool.Ask{Now: now}, f); wait < 59*time.Minute || p.strained.Load() != 1 {
			t.Errorf("mail for gmail waits for %v, %d are counted", wait, p.strained.Load())
		}
		r.loosen(r.strain.mailbox("gmail"))
		if r.strain.strained.Load() || p.strained.Load() != 0 {
			t.Errorf("%d are counted", p.strained.Load())
		}
	})
}

// A message that a relay takes in several transactions uses up as many of what it is held back to, and gives as many back.
func TestTransactionsOfARelayHeldBack(t *testing.T) {
	strainedRelay(t, func(p *Pool, c Config, _ *relay) {
		c.Relays[0].Profile = Profile{Name: "small", MaxRecipients: 2}
		if err := p.Update(c); err != nil {
			t.Fatal(err)
		}
		r := p.fleet.Load().relays[0]
		r.holdBack(&r.strain.account, time.Now(), backoff.Signal{Kind: backoff.Throttle})
		time.Sleep(time.Minute)
		now, pace := time.Now(), r.strain.account.pace
		r.strain.account.wait(now)
		before := pace.Level(now)
		f := &fare{fleet: p.fleet.Load(), messages: 1, recipients: 5}
		f.Pay(r.lane, now, false)
		if n := before - pace.Level(now); n < 2.999 || n > 3.001 {
			t.Errorf("%v of it are used up", n)
		}
		f.End(r.lane, now, false, false)
		if n := before - pace.Level(now); n > 0.001 {
			t.Errorf("%v of it are not given back", n)
		}
	})
}

// An Update tells of the limit of messages, for all of it and for each provider.
func TestUpdateTellsTethersOfTheLimit(t *testing.T) {
	strainedRelay(t, func(p *Pool, c Config, r *relay) {
		now := time.Now()
		r.holdBack(r.mailboxOf("gmail", now), now, backoff.Signal{Kind: backoff.Throttle})
		for _, rate := range []float64{50, 20} {
			c.Relays[0].Limits.Messages = PerSecond(rate)
			if err := p.Update(c); err != nil {
				t.Fatal(err)
			}
			for _, x := range []*tether{&r.strain.account, r.strain.mailbox("gmail")} {
				if got := x.state.Snapshot(now).Configured; got != rate {
					t.Errorf("%v a second are configured, not %v", got, rate)
				}
			}
		}
	})
}
