package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// A relay that takes six new connections in 11 s, as Postfix counts them, with 5 messages for each, and refuses the others in the words in which it refuses too many at a time. The pool finds out that it is new
// connections that it wants fewer of: few are refused after a while, and mail goes on over those that are open.
func TestNewConnectionsTooOften(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Conns.MaxMessages = 5
			c.MaxThrottleWait = -1
		}, smtptest.WithDiscard())
		defer h.close()
		const length = 30 * time.Minute
		begun := time.Now()
		var mu sync.Mutex
		period, opened := begun, 0
		refused := make([]int, int(length/time.Minute)+1)
		h.relays[0].On(smtptest.Connect).If(func(*smtptest.Event) bool {
			mu.Lock()
			defer mu.Unlock()
			now := time.Now()
			if now.Sub(period) > 11*time.Second {
				period, opened = now, 0
			}
			if opened++; opened <= 6 {
				return false
			}
			refused[int(now.Sub(begun)/time.Minute)]++
			return true
		}).Reply(421, "4.7.0 r0.test Error: too many connections from 192.0.2.1")
		h.relays[0].On(smtptest.EndOfData).Delay(100 * time.Millisecond)

		sent := make([]atomic.Int32, int(length/time.Minute)+1)
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := 0; time.Since(begun) < length; i++ {
					e := envelope(fmt.Sprintf("x%d.%d@example.com", w, i))
					for e != nil {
						r, err := h.pool.Deliver(context.Background(), e)
						if err == nil {
							sent[int(time.Since(begun)/time.Minute)].Add(1)
						} else if errors.Is(err, smtplb.ErrPermanent) || r == nil {
							t.Error(err)
						}
						if e = r.Retry(e); e != nil {
							time.Sleep(100 * time.Millisecond)
						}
					}
					time.Sleep(500 * time.Millisecond)
				}
			})
		}
		wg.Wait()
		var text strings.Builder
		found, later := 0, 0
		for i := range sent {
			fmt.Fprintf(&text, " %d/%d", sent[i].Load(), refused[i])
			if i >= 5 && i < 30 {
				found += int(sent[i].Load())
			}
			if i > 0 {
				later += refused[i]
			}
			if i > 0 && refused[i] > 4 {
				t.Errorf("%d refused in minute %d", refused[i], i)
			}
		}
		said := h.pool.Stats().Relays[0].BackOff
		t.Logf("sent/refused by minute:%s; %s", text.String(), said)
		// Six connections in 11 s are 33 a minute. Of 600 runs most used 0.94 to 0.97 of it, and eight 0.73: where by chance the trials meet the end of a period each time.
		if share := float64(found) / (25 * 60.0 / 11 * 6 * 5); share < 0.7 || refused[0] > 15 || later > 29 {
			t.Errorf("%.2f of what is allowed from the fifth minute on; %d refused in the first, %d later", share, refused[0], later)
		}
		if !strings.Contains(said, "; new connections: ") || !strings.HasSuffix(said, "/min") {
			t.Errorf("Stats say %q", said)
		}
	})
}
