package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"net"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// letters makes n envelopes, and counts in pulled how many were asked for. It has no lock: DeliverAll takes from it in the goroutine of the loop.
func letters(n int, pulled *int) iter.Seq[*smtplb.Envelope] {
	return func(yield func(*smtplb.Envelope) bool) {
		for i := range n {
			*pulled++
			if !yield(envelope(fmt.Sprintf("u%d@example.com", i))) {
				return
			}
		}
	}
}

func TestDeliverAll(t *testing.T) {
	for _, ordered := range []bool{false, true} {
		for _, limit := range []int{0, 1, 2, 7, 500} {
			t.Run(fmt.Sprintf("ordered=%v/%d", ordered, limit), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					h := newHouse(t, 2, nil)
					defer h.close()
					h.relays[0].On(smtptest.EndOfData).Every(3).Delay(time.Second)
					h.relays[1].On(smtptest.Rcpt).For("u50@example.com").Reply(550, "5.1.1 No such user")
					h.relays[0].On(smtptest.Rcpt).For("u50@example.com").Reply(550, "5.1.1 No such user")
					pulled, got := 0, map[string]int{}
					var order []string
					var last smtplb.Progress
					results := h.pool.DeliverAll(t.Context(), letters(200, &pulled), smtplb.Bulk{
						InFlight: limit, Ordered: ordered,
						Progress: func(p smtplb.Progress) {
							if p.Finished != last.Finished+1 || p.Pulled != pulled {
								t.Errorf("%+v after %+v", p, last)
							}
							last = p
						},
						Abandoned: func(r smtplb.Result) { t.Errorf("abandoned: %v", r) },
					})
					for r := range results {
						to := r.Envelope.To[0]
						got[to]++
						order = append(order, to)
						if want := to == "u50@example.com"; (r.Err != nil) != want || want && !errors.Is(r.Err, smtplb.ErrPermanent) {
							t.Errorf("%s: %v", to, r.Err)
						}
						if r.Receipt == nil || len(r.Receipt.Recipients) != 1 {
							t.Fatalf("%s: %v", to, r.Receipt)
						}
						if most := max(limit, 1); limit > 0 && pulled-len(order) > most {
							t.Errorf("%d were pulled, and %d handed out", pulled, len(order))
						}
					}
					if len(order) != 200 || len(got) != 200 {
						t.Errorf("%d results, for %d envelopes", len(order), len(got))
					}
					if ordered {
						for i, to := range order {
							if to != fmt.Sprintf("u%d@example.com", i) {
								t.Fatalf("number %d is %s", i, to)
							}
						}
					}
					for to := range got {
						if n := h.stored(to); n != 1 && to != "u50@example.com" {
							t.Errorf("%s: stored %d times", to, n)
						}
					}
					if want := (smtplb.Progress{Pulled: 200, Finished: 200, Accepted: 199, Failed: 1}); last != want {
						t.Errorf("at the end: %+v", last)
					}
				})
			})
		}
	}
}

// TestDeliverAllRides: over one connection a message takes one round trip, as its envelope goes out behind the body before.
func TestDeliverAllRides(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Conns = smtplb.Conns{Max: 1, MaxMessages: -1}
		})
		defer h.close()
		const n, trip = 100, 20 * time.Millisecond
		h.net.SetLatency(trip/2, trip/2)
		pulled, rode := 0, 0
		begun := time.Now()
		for r := range h.pool.DeliverAll(t.Context(), letters(n, &pulled), smtplb.Bulk{}) {
			if r.Err != nil {
				t.Error(r.Err)
			}
			if r.Receipt.Attempts[0].Rode {
				rode++
			}
		}
		took := time.Since(begun)
		// Connecting, the banner, EHLO and the first envelope; then a round trip for each message.
		if took > (n+5)*trip || rode < n-2 {
			t.Errorf("%d messages took %v, and %d rode", n, took, rode)
		}
		s := h.pool.Stats().Relays[0]
		if int(s.Rides) != rode || s.Opened != 1 || s.Accepted != n || s.Attempts != n {
			t.Errorf("%+v", s)
		}
	})
}

// TestDeliverAllLeftEarly: what is in flight when the loop is left is finished, and told.
func TestDeliverAllLeftEarly(t *testing.T) {
	for _, how := range []string{"break", "panic", "return"} {
		for _, ordered := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/ordered=%v", how, ordered), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					h := newHouse(t, 1, nil)
					defer h.close()
					h.relays[0].On(smtptest.EndOfData).Delay(time.Second)
					pulled, told := 0, map[string]int{}
					results := h.pool.DeliverAll(t.Context(), letters(1000, &pulled), smtplb.Bulk{
						InFlight: 20, Ordered: ordered, Abandoned: func(r smtplb.Result) {
							if r.Err != nil {
								t.Error(r.Err)
							}
							told[r.Envelope.To[0]]++
						},
					})
					func() {
						defer func() {
							if v := recover(); (v != nil) != (how == "panic") {
								t.Errorf("panic: %v", v)
							}
						}()
						for r := range results {
							if told[r.Envelope.To[0]]++; len(told) == 5 {
								switch how {
								case "panic":
									panic("enough")
								case "return":
									return
								}
								break
							}
						}
					}()
					if len(told) != pulled || pulled > 25 {
						t.Errorf("%d were pulled, and %d are told of", pulled, len(told))
					}
					for to, n := range told {
						if n != 1 || h.stored(to) != 1 {
							t.Errorf("%s: told %d times, stored %d times", to, n, h.stored(to))
						}
					}
					if n := len(h.relays[0].Messages()); n != pulled {
						t.Errorf("%d are stored", n)
					}
				})
			})
		}
	}
}

// TestDeliverAllTellsOfAll: whichever callback panics, each envelope has its result handed out or abandoned, once, and the panic comes out.
func TestDeliverAllTellsOfAll(t *testing.T) {
	for _, which := range []string{"Progress once", "Progress always", "Abandoned once", "Abandoned always"} {
		for _, ordered := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%v", which, ordered), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					h := newHouse(t, 1, nil)
					defer h.close()
					h.relays[0].On(smtptest.EndOfData).Delay(time.Second)
					pulled, told, calls := 0, map[string]int{}, 0
					callback := func(name string) {
						if calls++; which == name+" always" || which == name+" once" && calls == 12 {
							panic("callback")
						}
					}
					opts := smtplb.Bulk{InFlight: 30, Ordered: ordered}
					if which[0] == 'P' {
						opts.Progress = func(smtplb.Progress) { callback("Progress") }
					}
					opts.Abandoned = func(r smtplb.Result) {
						told[r.Envelope.To[0]]++
						if which[0] == 'A' {
							callback("Abandoned")
						}
					}
					func() {
						defer func() {
							if v := recover(); v != "callback" {
								t.Errorf("panic: %v", v)
							}
						}()
						for r := range h.pool.DeliverAll(t.Context(), letters(1000, &pulled), opts) {
							if told[r.Envelope.To[0]]++; which[0] == 'A' && len(told) == 40 {
								break
							}
						}
					}()
					if len(told) != pulled || len(h.relays[0].Messages()) != pulled {
						t.Errorf("%d were pulled, %d are told of, %d are stored", pulled, len(told), len(h.relays[0].Messages()))
					}
					for to, n := range told {
						if n != 1 {
							t.Errorf("%s: told %d times", to, n)
						}
					}
				})
			})
		}
	}
}

// TestDeliverAllReusedEnvelope: an envelope that is filled anew for each recipient sends to each of them.
func TestDeliverAllReusedEnvelope(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Delay(time.Second)
		e := envelope("")
		seq := func(yield func(*smtplb.Envelope) bool) {
			for i := range 100 {
				e.To[0] = fmt.Sprintf("u%d@example.com", i)
				e.ID = e.To[0]
				e.Body = smtplb.Bytes([]byte("Subject: " + e.ID + "\n\nhello\n"))
				if !yield(e) {
					return
				}
			}
		}
		ids := map[string]bool{}
		for r := range h.pool.DeliverAll(t.Context(), seq, smtplb.Bulk{}) {
			ids[r.Receipt.ID] = true
			if r.Err != nil || r.Receipt.ID != r.Receipt.Recipients[0].Addr {
				t.Error(r.Receipt, r.Err)
			}
		}
		if len(ids) != 100 {
			t.Errorf("%d receipts", len(ids))
		}
		for _, m := range h.relays[0].Messages() {
			if m.Header.Get("Subject") != m.To[0] {
				t.Errorf("%s got the message of %s", m.To[0], m.Header.Get("Subject"))
			}
		}
	})
}

// TestDeliverAllLimits: whatever number InFlight is, something sensible comes of it.
func TestDeliverAllLimits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Delay(time.Second)
		for n, want := range map[int]int{0: 40, -1: 40, math.MinInt: 40, 1: 1, 7: 7, math.MaxInt: 100, 1 << 30: 100} {
			pulled := 0
			for range h.pool.DeliverAll(t.Context(), letters(100, &pulled), smtplb.Bulk{InFlight: n}) {
				break
			}
			if pulled != want {
				t.Errorf("InFlight %d: %d were pulled", n, pulled)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		pulled := 0
		for range h.pool.DeliverAll(ctx, letters(100, &pulled), smtplb.Bulk{}) {
			t.Error("a result")
		}
		if pulled != 0 {
			t.Errorf("%d were pulled under a context that had ended", pulled)
		}
	})
}

// TestDeliverAllContext: nothing is taken from the sequence once the context has ended, and what was taken has its result.
func TestDeliverAllContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Nth(30).Stall()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		pulled, got := 0, map[smtplb.Outcome]int{}
		for r := range h.pool.DeliverAll(ctx, letters(1000, &pulled), smtplb.Bulk{InFlight: 5}) {
			if got[r.Receipt.Recipients[0].Outcome]++; got[smtplb.Accepted] == 50 {
				cancel()
			}
			if r.Err != nil && !errors.Is(r.Err, context.Canceled) {
				t.Error(r.Err)
			}
		}
		sum := 0
		for n := range maps.Values(got) {
			sum += n
		}
		if sum != pulled || pulled > 60 || got[smtplb.Unknown] != 1 {
			t.Errorf("%d were pulled: %v", pulled, got)
		}
	})
}

// TestDeliverAllFaultyEnvelopes have results too.
func TestDeliverAllFaultyEnvelopes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		bad := envelope("no address")
		seq := slices.Values([]*smtplb.Envelope{nil, bad, envelope("x@example.com")})
		var got []string
		var last smtplb.Progress
		for r := range h.pool.DeliverAll(t.Context(), seq, smtplb.Bulk{Ordered: true, Progress: func(p smtplb.Progress) { last = p }}) {
			var ee *smtplb.EnvelopeError
			got = append(got, fmt.Sprint(errors.As(r.Err, &ee), r.Receipt != nil))
		}
		if diff := cmp.Diff([]string{"true false", "true false", "false true"}, got); diff != "" || last.Invalid != 2 || last.Accepted != 1 {
			t.Error(diff, last)
		}
		h.pool.Close()
		for r := range h.pool.DeliverAll(t.Context(), seq, smtplb.Bulk{Ordered: true}) {
			if r.Err == nil {
				t.Error("accepted by a closed pool")
			}
		}
		var none *smtplb.Pool
		n := 0
		for r := range none.DeliverAll(t.Context(), seq, smtplb.Bulk{}) {
			if n++; r.Err == nil {
				t.Error("accepted by no pool")
			}
		}
		if n != 3 {
			t.Errorf("%d results", n)
		}
	})
}

// TestDeliverAllCallbackPanics: a panic in the caller's Dial comes out of the loop, once all else is finished and told.
func TestDeliverAllCallbackPanics(t *testing.T) {
	for _, how := range []string{"panic", "goexit"} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var h *house
				h = newHouse(t, 1, func(c *smtplb.Config) {
					calls := make(chan int, 1)
					calls <- 0
					c.Relays[0].Conns.Max = 3
					c.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
						n := <-calls
						calls <- n + 1
						if n == 2 {
							if how == "panic" {
								panic("dial")
							}
							runtime.Goexit()
						}
						return h.net.DialContext(ctx, network, addr)
					}
				})
				defer h.close()
				h.relays[0].On(smtptest.EndOfData).Delay(time.Second)
				pulled, told := 0, 0
				func() {
					defer func() {
						if recover() == nil {
							t.Error("no panic came out")
						}
					}()
					for range h.pool.DeliverAll(t.Context(), letters(1000, &pulled), smtplb.Bulk{InFlight: 10, Abandoned: func(smtplb.Result) { told++ }}) {
						told++
					}
				}()
				synctest.Wait()
				if told != pulled-1 || len(h.relays[0].Messages()) != told {
					t.Errorf("%d were pulled, %d told, %d stored", pulled, told, len(h.relays[0].Messages()))
				}
			})
		})
	}
}
