package smtplb

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
)

// A warm-up goes by the clock on the wall, whoever asks it. That of the queue doesn't know when the other is set, or that the machine was asleep: were it asked by both in turns, each would take time from the other, and more than a burst
// would go out at once; and as a day begins, each would end the other's.
func TestWarmupHasOneClock(t *testing.T) {
	for _, off := range []time.Duration{-5 * time.Second, 0, 5 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			c := plainConfig()
			c.Relays = c.Relays[:1]
			c.Relays[0].Warmup = Warmup{Curve: []int{240, 240, 240}}
			p, err := New(c)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			d, err := p.prepare(context.Background(), &Envelope{From: "a@example.com", To: []string{"x@example.com"}, Body: Bytes([]byte("a: b\r\n\r\n"))})
			if err != nil {
				t.Fatal(err)
			}
			defer d.free()
			d.obey()
			d.follow()
			f, r := d.price(), d.fleet.relays[0]
			sendAll := func() (n int) {
				for range 100 {
					p.stoke(d.fleet, time.Now())
					synctest.Wait()
					if queue := time.Now().Add(off); f.Wait(connpool.Ask{Lane: r.lane, Now: queue, At: connpool.Last}) == 0 {
						f.Pay(r.lane, queue, false)
						f.End(r.lane, queue, true, false)
						n++
					}
					time.Sleep(10 * time.Millisecond)
				}
				return n
			}
			day := time.Now().Truncate(24 * time.Hour)
			time.Sleep(time.Until(day.Add(12 * time.Hour)))
			if n := sendAll(); n < 9 || n > 11 {
				t.Errorf("%v: %d of 240 at once, at noon", off, n)
			}
			time.Sleep(time.Until(day.Add(24*time.Hour + time.Second)))
			if n := sendAll(); n < 9 || n > 11 {
				t.Errorf("%v: %d of 240 as the day begins", off, n)
			}
		})
	}
}
