// Package e2e_test runs the library against Postfix, and beside HAProxy.
// `make e2e` in the root of the repository installs what it needs, and runs it.
package e2e_test

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/e2e/lab"
)

var messages = flag.Int("messages", 5000, "number of messages in each run of TestRelays")

const senders = 32

// TestRelays sends through three relays from many goroutines, and does harm to
// one of them on the way. Then it holds what the library reported against what
// the relays stored.
func TestRelays(t *testing.T) {
	t.Run("killed", func(t *testing.T) {
		// A relay dies at a third, and is back at two thirds.
		run(t, scenario{
			timeout: time.Minute,
			harm:    func(r *lab.Relay) error { return r.Kill9() },
			heal:    func(r *lab.Relay) error { return r.Restart(t.Context()) },
		})
	})
	t.Run("killed, riding", func(t *testing.T) {
		// The same over two connections to each relay: nearly every envelope goes out
		// behind another message's body.
		run(t, scenario{
			timeout: time.Minute,
			conns:   2,
			harm:    func(r *lab.Relay) error { return r.Kill9() },
			heal:    func(r *lab.Relay) error { return r.Restart(t.Context()) },
		})
	})
	t.Run("suspended", func(t *testing.T) {
		// A relay falls silent at a third: the kernel accepts connections and data,
		// and nobody answers. It wakes up when all who wait for it have given up.
		run(t, scenario{
			timeout: 20 * time.Second,
			harm:    func(r *lab.Relay) error { return r.Suspend() },
			heal:    func(r *lab.Relay) error { return r.Resume() },
			hold:    30 * time.Second, // the timeout, and the grace for the last reply
		})
	})
}

type scenario struct {
	timeout    time.Duration          // of each send's context
	conns      int                    // to each relay; 0: the default
	harm, heal func(*lab.Relay) error // at a third, at two thirds of the messages
	hold       time.Duration          // at least, between the two; the last third waits
}

func run(t *testing.T, s scenario) {
	l := lab.New(t, 3)
	parcels := corpus(t, *messages)
	var cfg smtplb.Config
	for _, r := range l.Relays {
		cfg.Relays = append(cfg.Relays, smtplb.Relay{
			Name: r.Name, Addr: r.Addr,
			Username: lab.Username, Password: lab.Password,
			TLSConfig: &tls.Config{RootCAs: l.Roots},
			Conns:     smtplb.Conns{Max: s.conns},
		})
	}
	pool, err := smtplb.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()

	var (
		finished  atomic.Int64
		third     = make(chan struct{})
		twoThirds = make(chan struct{})
		healed    = make(chan struct{})
		jobs      = make(chan *parcel)
		wg        sync.WaitGroup
	)
	began := time.Now()
	for range senders {
		wg.Go(func() {
			for p := range jobs {
				p.send(t.Context(), pool, s.timeout)
				switch finished.Add(1) {
				case int64(len(parcels) / 3):
					close(third)
				case int64(2 * len(parcels) / 3):
					close(twoThirds)
				}
			}
		})
	}

	var harmed [2]time.Time
	var harmErr error
	wg.Go(func() {
		defer close(healed)
		<-third
		victim := l.Relays[1]
		harmed[0] = time.Now()
		harmErr = s.harm(victim)
		harmed[1] = time.Now()
		<-twoThirds
		time.Sleep(time.Until(harmed[0].Add(s.hold)))
		harmErr = errors.Join(harmErr, s.heal(victim))
	})

	for i, p := range parcels {
		// A slack of what the senders hold: those that wait for a silent relay must
		// not keep twoThirds from coming.
		if s.hold > 0 && i == 2*len(parcels)/3+senders {
			<-healed
		}
		jobs <- p
	}
	close(jobs)
	wg.Wait()
	took := time.Since(began)
	if harmErr != nil {
		t.Fatal(harmErr)
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := pool.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := l.WaitDrained(ctx); err != nil {
		t.Fatal(err)
	}
	stored, err := l.Stored()
	if err != nil {
		t.Fatal(err)
	}
	audit(t, parcels, stored, harmed, took)
	var rides, attempts uint64
	for _, r := range pool.Stats().Relays {
		rides, attempts = rides+r.Rides, attempts+r.Attempts
	}
	t.Logf("%d of %d attempts rode", rides, attempts)
	if s.conns > 0 && rides < attempts/2 {
		t.Errorf("%d of %d attempts rode; with %d connections most should", rides, attempts, s.conns)
	}
}

func (p *parcel) send(ctx context.Context, pool *smtplb.Pool, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	p.start = time.Now()
	p.receipt, p.err = pool.Deliver(ctx, p.env)
	p.end = time.Now()
}

// audit demands that
//   - the library refused the messages that SMTP can't carry, and no others;
//   - whoever was reported accepted has the message, unchanged and once: in two
//     files only with the same queue ID, where the relay itself, killed in the
//     middle of a delivery, delivered again;
//   - whoever was reported failed or deferred has nothing;
//   - unknown were only sends that were in flight when the harm was done, one for
//     each sender at most, and who is unknown has the message at most once;
//   - nobody else has anything;
//   - with two relays in good health, nine messages in ten were accepted.
func audit(t *testing.T, parcels []*parcel, stored []lab.Message, harmed [2]time.Time, took time.Duration) {
	files := map[string][]lab.Message{}
	perRelay := map[string]int{}
	for _, m := range stored {
		files[m.To] = append(files[m.To], m)
		perRelay[m.Relay]++
	}

	var recipients, given, refused, inFlight, unknownSends, unknownStored, again int
	var slowest time.Duration
	count := map[smtplb.Outcome]int{}
	for _, p := range parcels {
		recipients += len(p.env.To)
		slowest = max(slowest, p.end.Sub(p.start))
		if p.source != "" {
			given++
		}
		hit := p.start.Before(harmed[1]) && p.end.After(harmed[0])
		if hit {
			inFlight++
		}

		var bad *smtplb.EnvelopeError
		if errors.As(p.err, &bad) != (p.refuse != "") {
			t.Errorf("%s (%s): it should be refused for %q, and the library says: %v", p.env.ID, p.source, p.refuse, p.err)
		}
		if p.refuse != "" {
			refused++
			t.Logf("%s (%s) refused: %v", p.env.ID, p.source, p.err)
		}
		results, err := p.results()
		if err != nil {
			t.Errorf("%s: %v", p.env.ID, err)
		}
		accepted := 0
		for i, r := range results {
			count[r.Outcome]++
			got := files[p.env.To[i]]
			delete(files, p.env.To[i])
			copies := map[string]lab.Message{} // by relay and queue ID
			for _, m := range got {
				copies[m.Relay+" "+m.QueueID] = m
				if m.Digest != p.digest {
					t.Errorf("%s (%s): stored differently in %s", m.To, p.source, m.Path)
				}
			}
			again += len(got) - len(copies)

			switch r.Outcome {
			case smtplb.Accepted:
				accepted++
				if len(copies) == 0 {
					t.Errorf("LOST: %s was accepted by %s as %s, and isn't stored", r.Addr, r.Relay, r.QueueID)
				}
				for _, m := range copies {
					if m.Relay != r.Relay || r.QueueID != "" && m.QueueID != r.QueueID {
						t.Errorf("%s: reported as %s %s, stored as %s %s", r.Addr, r.Relay, r.QueueID, m.Relay, m.QueueID)
					}
				}
			case smtplb.Unknown:
				unknownStored += min(1, len(copies))
				if !hit {
					t.Errorf("%s is unknown, and wasn't in flight when the harm was done: %v", r.Addr, p.err)
				}
			case smtplb.Failed, smtplb.Deferred:
				if len(copies) > 0 {
					t.Errorf("%s is stored, and was reported %v: %v", r.Addr, r.Outcome, p.err)
				}
			default:
				t.Errorf("%s: outcome %v", r.Addr, r.Outcome)
			}
			if len(copies) > 1 {
				t.Errorf("TWICE: %s (%v) is stored as %v", r.Addr, r.Outcome, slices.Sorted(maps.Keys(copies)))
			}
			if r.Outcome != smtplb.Accepted && p.refuse == "" {
				t.Logf("%s %v after %v: %v", r.Addr, r.Outcome, p.end.Sub(p.start).Round(time.Millisecond), p.err)
			}
		}
		if errors.Is(p.err, smtplb.ErrUnknown) {
			unknownSends++
		}
		if (p.err == nil) != (accepted == len(p.env.To)) {
			t.Errorf("%s: %d of %d accepted, and the error is: %v", p.env.ID, accepted, len(p.env.To), p.err)
		}
	}
	for to := range files {
		t.Errorf("%s has something, and nothing was sent", to)
	}
	if unknownSends > senders {
		t.Errorf("%d sends are unknown, with %d senders", unknownSends, senders)
	}
	if floor := recipients * 9 / 10; count[smtplb.Accepted] < floor {
		t.Errorf("%d of %d recipients accepted; at least %d should be", count[smtplb.Accepted], recipients, floor)
	}
	t.Logf("%d messages (%d given, %d refused) for %d recipients in %.1f s (%.0f/s, the slowest %v): "+
		"%d accepted, %d failed, %d deferred, %d unknown (in %d sends of %d in flight at the harm; %d stored); "+
		"%d files, %d of them delivered again by the relay; by relay %v",
		len(parcels), given, refused, recipients, took.Seconds(), float64(len(parcels))/took.Seconds(), slowest.Round(time.Millisecond),
		count[smtplb.Accepted], count[smtplb.Failed], count[smtplb.Deferred], count[smtplb.Unknown], unknownSends, inFlight, unknownStored,
		len(stored), again, perRelay)
}

// results returns what was reported for each recipient of the envelope. Where
// nothing was attempted there may be no receipt, and the error speaks for all.
func (p *parcel) results() ([]smtplb.RecipientResult, error) {
	if p.receipt == nil {
		var o smtplb.Outcome
		switch {
		case errors.Is(p.err, smtplb.ErrPermanent):
			o = smtplb.Failed
		case errors.Is(p.err, smtplb.ErrTemporary):
			o = smtplb.Deferred
		}
		var all []smtplb.RecipientResult
		for _, to := range p.env.To {
			all = append(all, smtplb.RecipientResult{Addr: to, Outcome: o})
		}
		return all, nil
	}
	if p.receipt.ID != p.env.ID || len(p.receipt.Recipients) != len(p.env.To) {
		return nil, fmt.Errorf("the receipt is of %q with %d recipients, want %d", p.receipt.ID, len(p.receipt.Recipients), len(p.env.To))
	}
	for i, r := range p.receipt.Recipients {
		if r.Addr != p.env.To[i] {
			return nil, fmt.Errorf("result %d is of %s, want %s", i, r.Addr, p.env.To[i])
		}
	}
	return p.receipt.Recipients, nil
}
