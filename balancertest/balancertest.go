// Package balancertest puts a smtplb.Balancer to the test, as testing/slogtest does a slog.Handler:
//
//	func TestMine(t *testing.T) {
//		balancertest.Run(t, func() smtplb.Balancer { return Mine() })
//	}
//
// It tests what the pool relies on, not how well a Balancer spreads mail, which is for its author to say. Run it with -race: that a Picker is safe for
// concurrent use is what the race detector sees here.
package balancertest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
)

// Run runs each case as a subtest of t, with Balancers that it gets from newBalancer. It must not be called from a parallel test: it counts allocations.
func Run(t *testing.T, newBalancer func() smtplb.Balancer) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(newBalancer); err != nil {
				t.Error(err)
			}
		})
	}
}

// Check runs all cases and returns what is wrong: nil, or an error that holds one for each case that failed.
func Check(newBalancer func() smtplb.Balancer) error {
	var all []error
	for _, c := range cases {
		if err := c.run(newBalancer); err != nil {
			all = append(all, fmt.Errorf("%s: %w", c.name, err))
		}
	}
	return errors.Join(all...)
}

// testCase is one thing that a Balancer must do, and why.
type testCase struct {
	name, why string
	check     func(f *fleet) error
}

// sizes are how many relays the cases are run with: a bit of Skip for each, in one word, in two with one bit in the second, in many.
var sizes = []int{1, 2, 65, 1000}

// patience is how long a case may take. All of them are over in a fraction of it.
const patience = 10 * time.Second

var errBlocked = fmt.Errorf("it is still not done after %v", patience)

func (c *testCase) run(newBalancer func() smtplb.Balancer) error {
	for _, n := range sizes {
		done := make(chan error, 1)
		go func() {
			var err error
			defer func() {
				if p := recover(); p != nil {
					err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
				}
				done <- err
			}()
			err = c.check(&fleet{balancer: newBalancer(), relays: newRelays(n)})
		}()
		limit := time.NewTimer(patience)
		var err error
		select {
		case err = <-done:
		case <-limit.C:
			err = errBlocked
		}
		limit.Stop()
		if err != nil {
			return fmt.Errorf("with %d relays: %w\n(%s)", n, err, c.why)
		}
	}
	return nil
}

// relay is a RelayView whose numbers the cases change.
type relay struct {
	name     string
	weight   atomic.Int64 // in hundredths
	inFlight atomic.Int64
	latency  atomic.Int64
	limit    int
	hook     *atomic.Pointer[func()] // called by InFlight and Latency
}

func (r *relay) Name() string    { return r.name }
func (r *relay) Weight() float64 { return float64(r.weight.Load()) / 100 }
func (r *relay) Limit() int      { return r.limit }

func (r *relay) InFlight() int {
	if h := r.hook.Load(); h != nil {
		(*h)()
	}
	return int(r.inFlight.Load())
}

func (r *relay) Latency() time.Duration {
	if h := r.hook.Load(); h != nil {
		(*h)()
	}
	return time.Duration(r.latency.Load())
}

// newRelays returns n relays of different weights, idle, of which some have a limit and some a latency.
func newRelays(n int) []*relay {
	relays := make([]*relay, n)
	hook := new(atomic.Pointer[func()])
	for i := range relays {
		r := &relay{name: fmt.Sprintf("relay-%d.example.com", i), limit: i % 3 * 10, hook: hook}
		r.weight.Store(int64(100 + i%7*150))
		r.latency.Store(int64(time.Duration(i%4*25) * time.Millisecond))
		relays[i] = r
	}
	return relays
}

// fleet is what a case has: a Balancer and relays.
type fleet struct {
	balancer smtplb.Balancer
	relays   []*relay
}

func (f *fleet) picker() (smtplb.Picker, error) {
	views := make([]smtplb.RelayView, len(f.relays))
	for i, r := range f.relays {
		views[i] = r
	}
	if f.balancer == nil {
		return nil, errors.New("the Balancer is nil")
	}
	p := f.balancer.NewPicker(views)
	if p == nil {
		return nil, errors.New("NewPicker returned nil")
	}
	return p, nil
}

// rush changes what is in flight, and how long relays take.
func (f *fleet) rush() {
	for _, r := range f.relays {
		r.inFlight.Store(rand.Int64N(50))
		r.latency.Store(rand.Int64N(int64(time.Second)))
	}
}

// message returns what is known of the i-th message: all sorts of them.
func message(i int, skip smtplb.Bitset) smtplb.PickInfo {
	info := smtplb.PickInfo{
		Key: fmt.Sprintf("tenant-%d", i), Stream: "bulk", From: fmt.Sprintf("u%d@example.com", i), Domain: fmt.Sprintf("d%d.example", i),
		Attempt: 1 + i%4, Skip: skip,
	}
	switch i % 5 {
	case 1:
		info.Key, info.Stream = "", ""
	case 2:
		info.Key, info.From = "", ""
	case 3:
		info = smtplb.PickInfo{Attempt: 1, Skip: skip}
	}
	return info
}

// none is a Skip for n relays.
func none(n int) smtplb.Bitset { return make(smtplb.Bitset, (n+63)/64) }

// random skips each of n relays with the given probability, to a part in 256: eight dice are thrown at a time, as this is most of what a case does.
func random(n int, p float64) smtplb.Bitset {
	skip, below := none(n), uint64(p*256)
	for w := range skip {
		var word, dice uint64
		for i := range min(64, n-64*w) {
			if i%8 == 0 {
				dice = rand.Uint64()
			}
			if dice&255 < below {
				word |= 1 << i
			}
			dice >>= 8
		}
		skip[w] = word
	}
	return skip
}

// pick makes a pick, and looks at what comes of it.
func (f *fleet) pick(p smtplb.Picker, info smtplb.PickInfo) error {
	switch i := p.Pick(info); {
	case i == -1 && !f.available(info.Skip): // which no case changes during a pick
	case i == -1:
		return fmt.Errorf("a pick returned -1, and there are relays to choose (%+v)", info)
	case i < 0 || i >= len(f.relays):
		return fmt.Errorf("a pick returned %d, which no relay has (%+v)", i, info)
	case info.Skip.Has(i):
		return fmt.Errorf("a pick returned %d, which is in Skip (%+v)", i, info)
	case f.relays[i].Weight() == 0:
		return fmt.Errorf("a pick returned %d, whose Weight is 0 (%+v)", i, info)
	}
	return nil
}

// available reports whether there is anybody to choose.
func (f *fleet) available(skip smtplb.Bitset) bool {
	for i, r := range f.relays {
		if !skip.Has(i) && r.Weight() > 0 {
			return true
		}
	}
	return false
}

// picks makes many picks with skips of all densities.
func (f *fleet) picks(p smtplb.Picker) error {
	for i := range 200 {
		if i%10 == 0 {
			f.rush()
		}
		if err := f.pick(p, message(i, random(len(f.relays), float64(i%4)*0.3))); err != nil {
			return err
		}
	}
	return nil
}

var cases = []testCase{
	{"idle", "with nothing skipped every message has a relay: -1 makes it wait in a queue", func(f *fleet) error {
		p, err := f.picker()
		if err != nil {
			return err
		}
		for i := range 200 {
			if err := f.pick(p, message(i, none(len(f.relays)))); err != nil {
				return err
			}
		}
		return nil
	}},
	{"skipped", "what is in Skip is sick, full or has failed with this message already: the pick would be thrown away", func(f *fleet) error {
		p, err := f.picker()
		if err != nil {
			return err
		}
		return f.picks(p)
	}},
	{"all but one skipped", "the last relay that is left must be found, or mail waits though it needn't", func(f *fleet) error {
		p, err := f.picker()
		if err != nil {
			return err
		}
		n := len(f.relays)
		for i := range min(n, 200) {
			only := n - 1 - i
			skip := random(n, 1)
			skip[only/64] &^= 1 << (only % 64)
			if err := f.pick(p, message(i, skip)); err != nil {
				return err
			}
		}
		return nil
	}},
	{"all skipped", "-1 says that nobody can be chosen; any other answer is thrown away, and hides a mistake", func(f *fleet) error {
		p, err := f.picker()
		if err != nil {
			return err
		}
		for i := range 20 {
			if err := f.pick(p, message(i, random(len(f.relays), 1))); err != nil {
				return err
			}
		}
		return nil
	}},
	{"weight 0", "a relay without weight is not to be chosen: it was taken out for now", func(f *fleet) error {
		for i, r := range f.relays {
			if i%3 != 1 {
				r.weight.Store(0)
			}
		}
		p, err := f.picker()
		if err != nil {
			return err
		}
		return f.picks(p)
	}},
	{"no weight at all", "where nobody is to be chosen the answer is -1, not the first, and no division by zero", func(f *fleet) error {
		for _, r := range f.relays {
			r.weight.Store(0)
		}
		p, err := f.picker()
		if err != nil {
			return err
		}
		return f.picks(p)
	}},
	{"extreme numbers", "a weight may be a fraction, or 100,000,000 times another's, a load or a latency anything", func(f *fleet) error {
		for i, r := range f.relays {
			r.weight.Store([]int64{1, 5, 100, 100_000_000}[i%4])
			r.inFlight.Store([]int64{0, 1 << 40, 3}[i%3])
			r.latency.Store([]int64{0, 1, int64(1000 * time.Hour)}[i%3])
		}
		p, err := f.picker()
		if err != nil {
			return err
		}
		for i := range 200 {
			if err := f.pick(p, message(i, random(len(f.relays), 0.3))); err != nil {
				return err
			}
		}
		return nil
	}},
	{"skip is left alone", "Skip is the pool's: it goes by it after the pick, too", func(f *fleet) error {
		p, err := f.picker()
		if err != nil {
			return err
		}
		for i := range 50 {
			skip := random(len(f.relays), 0.5)
			was := slices.Clone(skip)
			p.Pick(message(i, skip))
			if !slices.Equal(skip, was) {
				return fmt.Errorf("a pick made %[2]b of Skip, which was %[1]b", was, skip)
			}
		}
		return nil
	}},
	{"one picker for each tier", "NewPicker is called for each tier, and again when a weight changes, while picks of the old Picker are under way: they must not get in each other's way", func(f *fleet) error {
		p, err := f.picker()
		if err != nil {
			return err
		}
		for _, n := range []int{1, 3, 100} {
			other := &fleet{balancer: f.balancer, relays: newRelays(n)}
			q, err := other.picker()
			if err != nil {
				return err
			}
			for range 3 {
				if err := f.picks(p); err != nil {
					return fmt.Errorf("the picker of %d, after one of %d was made: %w", len(f.relays), n, err)
				}
				if err := other.picks(q); err != nil {
					return fmt.Errorf("the picker of %d, made after one of %d: %w", n, len(f.relays), err)
				}
			}
		}
		return nil
	}},
	{"changing numbers", "weights, loads and latencies change while a pick looks at them: what comes of it is a relay all the same", func(f *fleet) error {
		p, err := f.picker()
		if err != nil {
			return err
		}
		n := 0
		change := func() {
			n++
			r := f.relays[n%len(f.relays)]
			r.inFlight.Store(int64(n * 7 % 50))
			r.latency.Store(int64(n * 13 % 100_000_000))
			r.weight.Store(int64(100 + n%900))
		}
		f.relays[0].hook.Store(&change)
		defer f.relays[0].hook.Store(nil)
		for i := range 200 {
			if err := f.pick(p, message(i, random(len(f.relays), 0.3))); err != nil {
				return err
			}
		}
		return nil
	}},
	{"concurrent", "a Picker is used by all sends at once", func(f *fleet) error {
		p, err := f.picker()
		if err != nil {
			return err
		}
		errs := make(chan error, 8)
		var wg sync.WaitGroup
		for range cap(errs) {
			wg.Go(func() {
				defer func() {
					if p := recover(); p != nil {
						errs <- fmt.Errorf("panic: %v\n%s", p, debug.Stack())
					}
				}()
				if err := f.picks(p); err != nil {
					errs <- err
				}
			})
		}
		wg.Wait()
		select {
		case err := <-errs:
			return err
		default:
			return nil
		}
	}},
	{"waits for nobody", "a pick that is held up, because its goroutine was, must not hold up other sends: so no lock while it looks at the relays", func(f *fleet) error {
		p, err := f.picker()
		if err != nil {
			return err
		}
		var calls atomic.Int64
		inside, release := make(chan struct{}), make(chan struct{})
		stall := func() {
			if calls.Add(1) == 1 {
				close(inside)
				<-release
			}
		}
		for _, r := range f.relays {
			r.inFlight.Store(10)
		}
		f.relays[0].hook.Store(&stall)
		stalled, others := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stalled)
			p.Pick(message(0, none(len(f.relays))))
		}()
		select {
		case <-inside:
		case <-stalled: // it doesn't look at the relays
		}
		go func() {
			defer close(others)
			for i := range 20 {
				p.Pick(message(i, none(len(f.relays))))
			}
		}()
		limit := time.NewTimer(patience / 2)
		defer limit.Stop()
		select {
		case <-others:
		case <-limit.C:
			err = errors.New("while one pick was held up, others waited for it")
		}
		close(release)
		<-stalled
		<-others
		return err
	}},
	{"allocations", "a pick is made for every message, and allocates nothing", func(f *fleet) error {
		p, err := f.picker()
		if err != nil {
			return err
		}
		n := len(f.relays)
		for i, skip := range []smtplb.Bitset{none(n), random(n, 0.5), random(n, 1)} {
			f.rush()
			infos := []smtplb.PickInfo{message(0, skip), message(1, skip), message(2, skip), message(3, skip)}
			if a := testing.AllocsPerRun(100, func() {
				for _, info := range infos {
					p.Pick(info)
				}
			}); a > 0 {
				return fmt.Errorf("%v allocations in %d picks with %d relays skipped", a, len(infos), infos[i].Skip.Count())
			}
		}
		return nil
	}},
}
