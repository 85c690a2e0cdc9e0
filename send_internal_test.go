package smtplb

import (
	"context"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/breaker"
)

// choosing is a pool of n relays of the weights 1, 2, 3, …, to which nobody connects (checks would look their names up), and a delivery that looks for its first one.
func choosing(tb testing.TB, ctx context.Context, n int, change func(*Config)) (*Pool, *delivery) {
	c := Config{LocalName: "localhost", Health: Health{Interval: -1}}
	for i := range n {
		c.Relays = append(c.Relays, Relay{Addr: fmt.Sprintf("relay-%d.example.com:25", i), TLS: TLSNone, Weight: i + 1})
	}
	if change != nil {
		change(&c)
	}
	p, err := New(c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { p.Close() })
	d, err := p.prepare(ctx, &Envelope{From: "a@example.com", To: []string{"x@example.com"}, Body: Bytes([]byte("Subject: s\r\n\r\nx\r\n"))})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(d.free)
	d.limit(ctx)
	return p, d
}

// Where all is well a first attempt asks the picker once, and looks at no relay but the one that it names. What a relay that is full, or seems well and isn't, would have got goes to the others by their weights: the
// neighbours in the sequence inherit nothing.
func TestFirstAttemptAsksOnce(t *testing.T) {
	t.Parallel()
	for _, b := range []Balancer{RoundRobin(), Adaptive(), LeastInFlight()} {
		p, d := choosing(t, t.Context(), 4, func(c *Config) {
			c.Balancer = b
			c.Relays[3].Conns.Max = 1
		})
		shares := func() (n [4]float64) {
			const turns = 10000
			for range turns {
				permit, ok, err := p.turn(t.Context(), d)
				if !ok {
					t.Fatal(err)
				}
				n[d.fleet.ofLane(d.turn.Lane()).index] += 1. / turns
				permit.Done(breaker.NotCounted)
				d.turn.Put(0)
			}
			return n
		}
		compare := func(got, want [4]float64, tolerance float64) {
			t.Helper()
			for i := range want {
				if math.Abs(got[i]-want[i]) > tolerance {
					t.Errorf("%v: shares of %.3f, want %.3f", b, got, want)
					break
				}
			}
		}
		compare(shares(), [4]float64{.1, .2, .3, .4}, .0005)
		if n := d.lanes.Count(); n != 0 {
			t.Errorf("%v: %d relays were looked at", b, n)
		}
		last := d.fleet.relays[3]
		turn, ok := p.conns.Try(last.lane, false)
		if !ok {
			t.Fatal("no turn")
		}
		compare(shares(), [4]float64{1. / 6, 2. / 6, 3. / 6}, .02)
		turn.Put(0)
		last.cooledUntil.Store(time.Now().Add(time.Hour).UnixNano())
		compare(shares(), [4]float64{1. / 6, 2. / 6, 3. / 6}, .02)
		last.cooledUntil.Store(0)
		d.denied.add(0)
		compare(shares(), [4]float64{.1, .2, .3, .4}, .0005) // denied holds for a turn
	}
}

// Among how many relays the caller's time is shared out is known however the first one was found, and no more of them are counted than the message has attempts.
func TestCandidates(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	for _, tt := range []struct {
		relays, attempts, down, want int
	}{{1, 3, 0, 1}, {2, 3, 0, 2}, {3, 3, 1, 2}, {5, 3, 0, 3}, {5, 3, 1, 3}, {5, 2, 0, 2}, {5, -1, 0, 5}, {5, -1, 2, 3}} {
		for _, own := range []bool{true, false} {
			p, d := choosing(t, ctx, tt.relays, func(c *Config) {
				c.Retry.Attempts = tt.attempts
				if c.Relays[len(c.Relays)-1].Tier = 1; len(c.Relays) == 1 {
					c.Relays[0].Tier = 0
				}
			})
			d.fleet.own = own
			for i := range tt.down {
				d.fleet.relays[tt.relays-1-i].down.Store(true)
			}
			permit, ok, err := p.turn(ctx, d)
			if !ok {
				t.Fatal(err)
			}
			if d.candidates != tt.want {
				t.Errorf("%+v, the package's own balancer %v: %d candidates", tt, own, d.candidates)
			}
			permit.Done(breaker.NotCounted)
			d.turn.Put(0)
		}
	}
}

// recorder is a picker that names what it is told to, and keeps what it was asked.
type recorder struct {
	names []int
	asked []PickInfo
}

func (r *recorder) Pick(info PickInfo) int {
	info.Skip = append(Bitset{}, info.Skip...)
	r.asked = append(r.asked, info)
	i := r.names[0]
	r.names = r.names[1:]
	return i
}

// A message uses up one turn of a picker's sequence at the most. A balancer of somebody else is told what to skip whenever it is asked.
func TestPickerIsAsked(t *testing.T) {
	r := &recorder{}
	for _, b := range []Balancer{&ownBalancer{picker: func([]RelayView) Picker { return r }}, anothers{r}} {
		p, d := choosing(t, t.Context(), 3, func(c *Config) {
			c.Balancer = b
			c.Relays[1].Conns.Max = 1
		})
		turn, ok := p.conns.Try(d.fleet.relays[1].lane, false)
		if !ok {
			t.Fatal("no turn")
		}
		defer turn.Put(0)
		r.names, r.asked = []int{1, 2}, nil
		_, own := b.(*ownBalancer)
		if !own {
			r.names = r.names[1:]
		}
		permit, ok, err := p.turn(t.Context(), d)
		if !ok {
			t.Fatal(err)
		}
		permit.Done(breaker.NotCounted)
		d.turn.Put(0)
		for n, info := range r.asked {
			quick := own && n == 0
			if want := n + 1; info.Attempt != want || quick != (info.Skip.Count() == 0) || !quick && (info.Skip.Has(0) || !info.Skip.Has(1) || info.Skip.Has(2)) {
				t.Errorf("own balancer %v, asked for the %dth time: %+v", own, n+1, info)
			}
		}
		if len(r.names) != 0 {
			t.Errorf("own balancer %v: asked %d times", own, len(r.asked))
		}
	}
}

type anothers struct{ p Picker }

func (a anothers) NewPicker([]RelayView) Picker { return a.p }
