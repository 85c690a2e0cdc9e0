package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// view is a RelayView of a test.
type view float64

func (view) Name() string           { return "v" }
func (v view) Weight() float64      { return float64(v) }
func (view) InFlight() int          { return 0 }
func (view) Limit() int             { return 0 }
func (view) Latency() time.Duration { return 0 }

func views(weights ...float64) []smtplb.RelayView {
	var v []smtplb.RelayView
	for _, w := range weights {
		v = append(v, view(w))
	}
	return v
}

func TestRoundRobin(t *testing.T) {
	for _, test := range []struct {
		weights []float64
		skip    smtplb.Bitset
		n       int
		want    []int
		within  int
	}{
		{[]float64{1}, smtplb.Bitset{0}, 10, []int{10}, 0},
		{[]float64{1, 1}, smtplb.Bitset{0}, 1000, []int{500, 500}, 1},
		{[]float64{5, 3, 2}, smtplb.Bitset{0}, 1000, []int{500, 300, 200}, 1},
		{[]float64{1, 1, 1}, smtplb.Bitset{0}, 3000, []int{1000, 1000, 1000}, 1},
		{[]float64{1000000, 1}, smtplb.Bitset{0}, 100000, []int{100000, 0}, 20},
		// The share of one that is skipped goes to the others by their weights, not to its neighbour.
		{[]float64{2, 1, 1}, smtplb.Bitset{0b001}, 4000, []int{0, 2000, 2000}, 300},
		{[]float64{5, 3, 2}, smtplb.Bitset{0b010}, 7000, []int{5000, 0, 2000}, 400},
		{[]float64{5, 3, 2}, smtplb.Bitset{0b011}, 100, []int{0, 0, 100}, 0},
	} {
		p := smtplb.RoundRobin().NewPicker(views(test.weights...))
		got := make([]int, len(test.weights))
		for range test.n {
			i := p.Pick(smtplb.PickInfo{Skip: test.skip})
			if i < 0 || i >= len(got) || test.skip.Has(i) {
				t.Fatalf("%v without %b: picked %d", test.weights, test.skip, i)
			}
			got[i]++
		}
		for i, n := range got {
			if n < test.want[i]-test.within || n > test.want[i]+test.within {
				t.Errorf("%v without %b: %v, want %v", test.weights, test.skip, got, test.want)
				break
			}
		}
		if i := p.Pick(smtplb.PickInfo{Skip: smtplb.Bitset{1<<len(got) - 1}}); i != -1 {
			t.Errorf("all are skipped, and %d was picked", i)
		}
		skip := test.skip
		if n := testing.AllocsPerRun(100, func() { p.Pick(smtplb.PickInfo{Skip: skip}) }); n != 0 {
			t.Errorf("a pick allocates %v times", n)
		}
	}
}

// At no point of the sequence is a relay a whole message away from its share. It begins anywhere, so that from where it began it may be two.
func TestRoundRobinIsSmooth(t *testing.T) {
	weights := []float64{7, 5, 3, 1}
	p := smtplb.RoundRobin().NewPicker(views(weights...))
	got := make([]float64, len(weights))
	for n := 1.0; n <= 1600; n++ {
		got[p.Pick(smtplb.PickInfo{Skip: smtplb.Bitset{0}})]++
		for i, w := range weights {
			if d := got[i] - n*w/16; d <= -2 || d >= 2 {
				t.Fatalf("after %v picks relay %d has %v, and its share is %v", n, i, got[i], n*w/16)
			}
		}
	}
}

func TestRoundRobinOfMany(t *testing.T) {
	const n = 130 // three words of a Bitset
	weights := make([]float64, n)
	for i := range weights {
		weights[i] = 1
	}
	p := smtplb.RoundRobin().NewPicker(views(weights...))
	skip := smtplb.Bitset{^uint64(0), 1 << 5, 0}
	seen := make([]atomic.Int64, n)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 2000 {
				i := p.Pick(smtplb.PickInfo{Skip: skip})
				if i < 64 || i == 69 || i >= n {
					t.Errorf("picked %d", i)
					return
				}
				seen[i].Add(1)
			}
		})
	}
	wg.Wait()
	for i := range seen {
		if got := seen[i].Load(); (got == 0) != (i < 64 || i == 69) {
			t.Errorf("relay %d: %d picks", i, got)
		}
	}
	if skip.Count() != 65 || !skip.Has(69) || skip.Has(129) {
		t.Errorf("Bitset: %d", skip.Count())
	}
}

// A dead relay's share is spread over the others.
func TestDeadRelaysShare(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 4, func(c *smtplb.Config) { c.Relays[0].Weight, c.Relays[1].Weight = 4, 2 })
		defer h.close()
		h.relays[0].Kill()
		for range 2000 {
			if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
				t.Fatal(err)
			}
		}
		for i, want := range []int{0, 1000, 500, 500} {
			if got := len(h.relays[i].Messages()); got < want-150 || got > want+150 {
				t.Errorf("relay %d got %d, want about %d", i, got, want)
			}
		}
		if a := h.pool.Stats().Relays[0].Attempts; a > 10 {
			t.Errorf("the dead one was tried %d times", a)
		}
	})
}

// picker is a Balancer, and its Picker, of a test.
type picker struct {
	pick func(smtplb.PickInfo) int

	mu    sync.Mutex           // guards views: the pool's own goroutine weighs relays again
	views [][]smtplb.RelayView // one for each NewPicker
}

func (p *picker) seen() [][]smtplb.RelayView {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.views
}

func (p *picker) NewPicker(v []smtplb.RelayView) smtplb.Picker {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.views = append(p.views, v)
	return p
}

func (p *picker) Pick(i smtplb.PickInfo) int { return p.pick(i) }

// Nonsense from a Balancer never breaks sending: what may be sent is sent, by a relay that may be used.
func TestNonsenseBalancer(t *testing.T) {
	for name, pick := range map[string]func(smtplb.PickInfo) int{
		"-5":        func(smtplb.PickInfo) int { return -5 },
		"-1":        func(smtplb.PickInfo) int { return -1 },
		"99":        func(smtplb.PickInfo) int { return 99 },
		"1<<40":     func(smtplb.PickInfo) int { return 1 << 40 },
		"just over": func(smtplb.PickInfo) int { return 3 },
		"skipped": func(i smtplb.PickInfo) int {
			for n := range 3 {
				if i.Skip.Has(n) {
					return n
				}
			}
			return 0
		},
		"always 0":    func(smtplb.PickInfo) int { return 0 },
		"random":      func(smtplb.PickInfo) int { return rand.IntN(7) - 3 },
		"clears Skip": func(i smtplb.PickInfo) int { clear(i.Skip); return 0 },
		"fills Skip": func(i smtplb.PickInfo) int {
			for w := range i.Skip {
				i.Skip[w] = ^uint64(0)
			}
			return 1
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var open, most [4]atomic.Int32
				h := newHouse(t, 4, func(c *smtplb.Config) {
					c.Balancer = &picker{pick: pick}
					c.Relays[3].Tier = 1
					for i := range c.Relays {
						c.Relays[i].Conns.Max = 2
						c.Relays[i].Dial = count(c.Dial, &open[i], &most[i])
					}
				})
				defer h.close()
				h.relays[0].Kill()
				h.relays[1].On(smtptest.Mail).Every(2).Reply(451, "4.3.0 later")
				h.relays[2].On(smtptest.EndOfData).Delay(time.Second)
				var wg sync.WaitGroup
				for i := range 100 {
					wg.Go(func() {
						to := fmt.Sprintf("u%d@example.com", i)
						r, err := h.pool.Deliver(t.Context(), envelope(to))
						if n := h.stored(to); err != nil || n != 1 {
							t.Errorf("%s: stored %d times: %v: %v", to, n, r, err)
						}
						tried := map[string]bool{}
						for _, a := range r.Attempts {
							if tried[a.Relay] {
								t.Errorf("%s was tried twice: %v", a.Relay, r)
							}
							tried[a.Relay] = true
						}
					})
				}
				wg.Wait()
				for i := range most {
					if m := most[i].Load(); m > 2 {
						t.Errorf("relay %d had %d connections at a time", i, m)
					}
				}
			})
		})
	}
}

// A Balancer without a Picker is a fault of the configuration, or does no harm. It is no panic.
func TestNilPicker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		defer func() {
			if p := recover(); p != nil {
				t.Errorf("panic: %v", p)
			}
		}()
		n := smtptest.NewNetwork()
		s := n.NewServer("r.test:25")
		defer s.Close()
		pool, err := smtplb.New(smtplb.Config{Dial: n.DialContext, Balancer: nilBalancer{}, Relays: []smtplb.Relay{{Addr: "r.test:25", TLS: smtplb.TLSNone}}})
		if err != nil {
			var ce *smtplb.ConfigError
			if !errors.As(err, &ce) || ce.Path != "Balancer" {
				t.Error(err)
			}
			return
		}
		defer pool.Close()
		if _, err := pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
			t.Error(err)
		}
	})
}

type nilBalancer struct{}

func (nilBalancer) NewPicker([]smtplb.RelayView) smtplb.Picker { return nil }

// What a Balancer is told.
func TestBalancerSees(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var mu sync.Mutex
		var infos []string
		p := &picker{}
		p.pick = func(i smtplb.PickInfo) int {
			mu.Lock()
			defer mu.Unlock()
			s := fmt.Sprintf("%s %s", i.From, i.Domain)
			first := -1
			for n := range 2 {
				if i.Skip.Has(n) {
					s += fmt.Sprint(" -", n)
				} else if first < 0 {
					first = n
				}
			}
			infos = append(infos, s)
			return first
		}
		h := newHouse(t, 3, func(c *smtplb.Config) {
			c.Balancer = p
			c.Relays[0].Tier, c.Relays[1].Weight, c.Relays[1].Conns.Max, c.Relays[2].Conns.Max = 1, 7, 1, -1
		})
		defer h.close()
		views := p.seen()
		if len(views) != 2 || len(views[0]) != 2 || len(views[1]) != 1 {
			t.Fatalf("NewPicker was called with %v", views)
		}
		r1, r2, r0 := views[0][0], views[0][1], views[1][0]
		if r1.Name() != "r1" || r1.Weight() != 7 || r1.Limit() != 1 || r2.Name() != "r2" || r2.Weight() != 1 || r2.Limit() != 0 || r0.Name() != "r0" || r0.Limit() != 10 || r1.InFlight() != 0 {
			t.Errorf("%v", views)
		}
		h.relays[1].On(smtptest.EndOfData).Delay(time.Minute)
		var wg sync.WaitGroup
		wg.Go(func() { h.pool.Deliver(t.Context(), envelope("x@BÜCHER.example", "y@example.com")) })
		time.Sleep(time.Second)
		if r1.InFlight() != 1 || r2.InFlight() != 0 {
			t.Errorf("in flight: %d, %d", r1.InFlight(), r2.InFlight())
		}
		h.relays[2].On(smtptest.Mail).Times(1).Reply(451, "4.3.0 later")
		e := envelope("z@example.com")
		e.From = "<>"
		if _, err := h.pool.Deliver(context.Background(), e); err != nil { // r1 is full, r2 says no: the next tier
			t.Error(err)
		}
		wg.Wait()
		mu.Lock()
		defer mu.Unlock()
		// r1 is full at the second pick; after r2's word it is the only one of its tier, and waited for.
		want := []string{"a@example.com xn--bcher-kva.example", " example.com -0"}
		if d := cmp.Diff(want, infos[:min(2, len(infos))]); d != "" {
			t.Errorf("%q (-want +got)\n%s", infos, d)
		}
	})
}
