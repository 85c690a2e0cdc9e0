package smtplb_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// TestBulkDelaysNobody: a hundred bulk messages wait for two connections when others come.
func TestBulkDelaysNobody(t *testing.T) {
	const busy = time.Second // of a relay with each message
	for _, test := range []struct {
		name     string
		reserved int
		streams  []smtplb.Stream
		longest  time.Duration // that one without a stream takes
		atLeast  time.Duration
	}{
		{"a slot is kept", 0, nil, busy + 100*time.Millisecond, 0},
		{"none is kept, but they go first", -1, nil, 2*busy + 100*time.Millisecond, busy + busy/4},
		{"all are equal", -1, []smtplb.Stream{}, 60 * busy, 20 * busy},
		{"a lag that is over", -1, []smtplb.Stream{{Name: "bulk", Lag: 2 * busy, Bulk: true}}, 60 * busy, 2 * busy},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 1, func(c *smtplb.Config) {
					c.Relays[0].Conns = smtplb.Conns{Max: 2, Reserved: test.reserved}
					c.Streams = test.streams
				})
				defer h.close()
				h.relays[0].On(smtptest.EndOfData).Delay(busy)
				var wg sync.WaitGroup
				send := func(stream, to string) time.Duration {
					e := envelope(to)
					e.Stream = stream
					begun := time.Now()
					if r, err := h.pool.Deliver(context.Background(), e); err != nil {
						t.Errorf("%s: %v: %v", to, r, err)
					}
					return time.Since(begun)
				}
				begun := time.Now()
				for i := range 100 {
					wg.Go(func() { send("bulk", fmt.Sprintf("bulk%d@example.com", i)) })
				}
				time.Sleep(10*busy + busy/2)
				for i := range 10 {
					took := send("", fmt.Sprintf("reset%d@example.com", i))
					if took > test.longest {
						t.Errorf("reset %d took %v, want %v at the most", i, took, test.longest)
					}
					if i == 0 && took < test.atLeast {
						t.Errorf("reset %d took %v: the test shows nothing", i, took)
					}
				}
				wg.Wait()
				if took := time.Since(begun); took > 125*busy {
					t.Errorf("the last bulk message took %v", took)
				}
			})
		})
	}
}

func TestBulkDoesNotStarve(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].Conns = smtplb.Conns{Max: 1} })
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Delay(time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 10 { // they keep ten waiting, always
			wg.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					_, _ = h.pool.Deliver(context.Background(), envelope(fmt.Sprintf("u%d-%d@example.com", i, n)))
				}
			})
		}
		time.Sleep(5 * time.Second)
		e := envelope("bulk@example.com")
		e.Stream = "bulk"
		begun := time.Now()
		if r, err := h.pool.Deliver(t.Context(), e); err != nil {
			t.Errorf("%v: %v", r, err)
		}
		if took := time.Since(begun); took < 25*time.Second || took > 45*time.Second {
			t.Errorf("took %v; the lag is 30 s, and ten are before it then", took)
		}
		cancel()
		wg.Wait()
	})
}

func TestStreamsValidate(t *testing.T) {
	_, err := smtplb.New(smtplb.Config{
		Relays:  []smtplb.Relay{{Addr: "a.test", Conns: smtplb.Conns{Max: 3, Reserved: 3}}},
		Streams: []smtplb.Stream{{Name: "a"}, {Name: "a"}, {Name: "b\n"}, {Name: strings.Repeat("x", 65)}, {Name: "late", Lag: 25 * time.Hour}},
	})
	for _, want := range []string{"Relays[0].Conns.Reserved", "Streams[1].Name", "Streams[2].Name", "Streams[3].Name", "Streams[4].Lag"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v doesn't name %s", err, want)
		}
	}
}
