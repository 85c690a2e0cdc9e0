package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// noon puts a bubble's clock on a UTC day's beginning. (Fake time begins at midnight, 1 January 2000.)
func warmCurve(c *smtplb.Config, curve ...int) { c.Relays[0].Warmup.Curve = curve }

// A relay that warms up never gets more than its day's cap; what is more goes to the others. The cap is used up where there is enough mail.
func TestWarmup(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		curve := []int{48, 96, 240}
		h := newHouse(t, 2, func(c *smtplb.Config) { warmCurve(c, curve...) })
		defer h.close()
		every, bout := 5*time.Minute, 1
		if !smtplb.Thorough() { // a pool that is idle for 5 minutes stops its clock, of which each second of four days is most of the work
			every, bout = time.Hour, 12
		}
		day := func() (first, second int) {
			for i := range int(24*time.Hour/every) * bout {
				r, err := h.pool.Deliver(context.Background(), envelope("x@example.com", "y@example.com"))
				if err != nil {
					t.Fatal(err)
				}
				switch relaysTried(r) {
				case "r0":
					first += 2
				case "r1":
					second += 2
				default:
					t.Errorf("%v", r)
				}
				if (i+1)%bout == 0 {
					time.Sleep(every)
				}
			}
			return first, second
		}
		for i, most := range curve {
			first, second := day()
			want := min(most, 288) // half of the 576 recipients of a day are its share
			if first > most || first < want*9/10 || first+second != 576 {
				t.Errorf("day %d: %d and %d, of at most %d", i, first, second, most)
			}
			t.Logf("day %d: %d of %d", i, first, most)
		}
		if first, _ := day(); first < 280 { // it is over
			t.Errorf("afterwards: %d", first)
		}
	})
}

// The day's cap is spread: catching up goes little by little.
func TestWarmupIsSpread(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { warmCurve(c, 240) })
		defer h.close()
		burst := func() int {
			n := 0
			for {
				_, err := h.pool.Deliver(context.Background(), envelope("x@example.com"))
				if err != nil {
					if !errors.Is(err, smtplb.ErrThrottled) || !strings.Contains(err.Error(), "of 240 today, stage 1 of 1") {
						t.Error(err)
					}
					return n
				}
				n++
			}
		}
		time.Sleep(12 * time.Hour) // half of the day is behind
		if n := burst(); n < 9 || n > 11 {
			t.Errorf("%d at once, not a twenty-fourth", n)
		}
		p, err := h.pool.Explain(context.Background(), envelope("x@example.com"))
		if err != nil || !strings.Contains(p.String(), "warm-up: 10 of 240 today") {
			t.Errorf("%v: %v", p, err)
		}
		time.Sleep(time.Hour)
		if n := burst(); n < 9 || n > 11 {
			t.Errorf("%d an hour later", n)
		}
	})
}

// A refused recipient doesn't count, an unknown one does.
func TestWarmupCounts(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { warmCurve(c, 24*24) })
		defer h.close()
		used := func() int { return h.pool.Stats().Relays[0].Warmup.Used }
		h.sends(envelope("x@example.com"), "accepted")
		h.relays[0].On(smtptest.Rcpt).Times(1).Reply(550, "5.1.1 no such user")
		h.sends(envelope("x@example.com"), "failed")
		if used() != 1 {
			t.Errorf("used: %d, not 1", used())
		}
		h.relays[0].On(smtptest.EndOfData).Times(1).Drop()
		h.sends(envelope("x@example.com", "y@example.com"), "unknown unknown")
		if used() != 3 {
			t.Errorf("used: %d, not 3", used())
		}
	})
}

// A restart, with Shutdown, goes on where it was; without it at most a twenty-fourth of the cap is lost. The cap is kept over both, and by two pools with one Store.
func TestWarmupRestarts(t *testing.T) {
	t.Parallel()
	for _, crash := range []bool{false, true} {
		file := filepath.Join(t.TempDir(), "warm")
		bubble(t, func(t *testing.T) {
			got := 0
			for i := range 12 {
				h := newHouse(t, 1, func(c *smtplb.Config) {
					warmCurve(c, 240)
					c.Store = smtplb.NewFileStore(file)
				})
				n := 0
				for {
					if _, err := h.pool.Deliver(context.Background(), envelope("x@example.com")); err != nil {
						if !errors.Is(err, smtplb.ErrThrottled) {
							t.Fatal(err)
						}
						break
					}
					n++
				}
				got += n
				if i == 0 && n == 0 {
					t.Error("nothing")
				}
				if !crash {
					if err := h.pool.Shutdown(context.Background()); err != nil {
						t.Error(err)
					}
				}
				h.close()
				time.Sleep(110 * time.Minute)
			}
			if got > 240 || got < 100 {
				t.Errorf("crash %v: %d of 240", crash, got)
			}
		})
	}
}

// A Store that hangs or fails keeps nobody waiting but that relay's mail.
func TestWarmupStoreFails(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) {
			warmCurve(c, 240)
			c.Store = badStore{}
		})
		defer h.close()
		var wg sync.WaitGroup
		begun := time.Now()
		for range 20 {
			wg.Go(func() {
				r, err := h.pool.Deliver(context.Background(), envelope("x@example.com"))
				if err != nil || relaysTried(r) != "r1" {
					t.Errorf("%v: %v", r, err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(begun); took > time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// A Store that can be read and not written (a directory that is somebody else's, a full disk) is named where mail waits for it.
func TestWarmupStoreReadOnly(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { warmCurve(c, 200); c.Store = &readOnlyStore{} })
		defer h.close()
		e := envelope("x@example.com", "y@example.com")
		const want = "warm-up: 0 of 200 today, stage 1 of 1; the warm-up's state: no room"
		if _, err := h.pool.Deliver(context.Background(), e); !errors.Is(err, smtplb.ErrThrottled) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v", err)
		}
		if plan, err := h.pool.Explain(context.Background(), e); err != nil || !strings.Contains(plan.String(), want) {
			t.Errorf("%v\n%v", err, plan)
		}
		if n := h.relays[0].Stats().Messages; n != 0 {
			t.Errorf("%d sent", n)
		}
	})
}

type readOnlyStore struct{ smtplb.MemoryStore }

func (*readOnlyStore) Swap(context.Context, string, []byte, []byte) (bool, error) {
	return false, errors.New("no room")
}

type badStore struct{}

func (badStore) Load(ctx context.Context, key string) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
func (badStore) Swap(context.Context, string, []byte, []byte) (bool, error) { panic("never") }

// Where a relay's warm-up keeps to its tier, what is more waits rather than to use the next.
func TestWarmupOverflow(t *testing.T) {
	t.Parallel()
	for _, o := range []smtplb.WarmupOverflow{smtplb.OverflowGroup, smtplb.OverflowTier} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 2, func(c *smtplb.Config) {
				warmCurve(c, 24)
				c.Relays[0].Warmup.Overflow = o
				c.Relays[1].Tier = 1
			})
			defer h.close()
			h.sends(envelope("x@example.com"), "accepted")
			r, err := h.pool.Deliver(context.Background(), envelope("x@example.com"))
			if o == smtplb.OverflowGroup && (err != nil || relaysTried(r) != "r1") || o == smtplb.OverflowTier && (!errors.Is(err, smtplb.ErrThrottled) || len(r.Attempts) > 0) {
				t.Errorf("%v: %v: %v", o, r, err)
			}
			plan, err := h.pool.Explain(context.Background(), envelope("x@example.com"))
			if err != nil || o == smtplb.OverflowTier && (len(plan.Skipped) != 2 || plan.Skipped[1].Failover || plan.Skipped[1].Why != "a warm-up keeps what is more than its cap in tier 0 (OverflowTier)") ||
				o == smtplb.OverflowGroup && (len(plan.Candidates) != 1 || plan.Candidates[0].Name != "r1") {
				t.Errorf("%v: %v\n%v", o, err, plan)
			}
			// More than the whole day's is never for it.
			big := envelope()
			for i := range 30 {
				big.To = append(big.To, string(rune('a'+i%26))+string(rune('a'+i/26))+"@example.com")
			}
			r, err = h.pool.Deliver(context.Background(), big)
			if o == smtplb.OverflowGroup && (err != nil || relaysTried(r) != "r1") || o == smtplb.OverflowTier && (!errors.Is(err, smtplb.ErrThrottled) || !strings.Contains(err.Error(), "warm-up: 1 of 24 today") || retryAfter(err) < 23*time.Hour) {
				t.Errorf("%v: %v: %v", o, r, err)
			}
		})
	}
}

// A message to several providers takes all of its shares at once, however little there is at a time, and doesn't go round in circles where it can't.
func TestWarmupOfSeveralProviders(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			warmCurve(c, 240)
			c.Relays[0].Warmup.PerProvider = map[string][]int{"gmail": {240}}
		})
		defer h.close()
		to := func(n int) *smtplb.Envelope {
			e := envelope()
			for i := range n {
				e.To = append(e.To, string(rune('a'+i))+"@gmail.com", string(rune('a'+i))+"@example.com")
			}
			return e
		}
		h.sends(to(1), "accepted accepted")
		time.Sleep(13 * time.Hour)
		h.sends(to(6), strings.TrimSpace(strings.Repeat("accepted ", 12)))
		r, err := h.pool.Deliver(context.Background(), to(6))
		if !errors.Is(err, smtplb.ErrThrottled) || len(r.Attempts) > 0 {
			t.Errorf("%v: %v", r, err)
		}
		if w := h.pool.Stats().Relays[0].Warmup; w.Used != 14 {
			t.Errorf("used: %d", w.Used)
		}
	})
}

// A message that is more than today's cap waits for the day that allows it; one that is more than tomorrow's too is told a day.
func TestWarmupTooManyToday(t *testing.T) {
	t.Parallel()
	for _, x := range []struct{ n, hours int }{{7, 24}, {150, 24}} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, func(c *smtplb.Config) { warmCurve(c, 5, 100, 1000) })
			defer h.close()
			time.Sleep(10 * time.Hour)
			h.sends(envelope("first@example.com"), "accepted") // the warm-up begins with the first mail
			e := envelope()
			for i := range x.n {
				e.To = append(e.To, string(rune('a'+i%26))+string(rune('a'+i/26))+"@example.com")
			}
			_, err := h.pool.Deliver(context.Background(), e)
			var se *smtplb.SendError
			if !errors.As(err, &se) || !errors.Is(err, smtplb.ErrThrottled) || se.RetryAfter > 26*time.Hour || se.RetryAfter < 13*time.Hour {
				t.Fatal(err)
			}
			if x.n > 100 {
				return
			}
			time.Sleep(se.RetryAfter)
			if r, err := h.pool.Deliver(context.Background(), e); err != nil {
				t.Errorf("%v: %v", r, err)
			}
		})
	}
}

// retryAfter is what a send's error says.
func retryAfter(err error) time.Duration {
	var se *smtplb.SendError
	if !errors.As(err, &se) {
		return 0
	}
	return se.RetryAfter
}

// What a warm-up has against a message is told, and that it isn't the day's cap where it isn't: what the day allows by now, a day that is yet to come, a message that is too large, a provider's cap.
func TestWarmupSaysWhy(t *testing.T) {
	t.Parallel()
	to := func(n int, domain string) *smtplb.Envelope {
		e := envelope()
		for i := range n {
			e.To = append(e.To, string(rune('a'+i%26))+string(rune('a'+i/26))+"@"+domain)
		}
		return e
	}
	begin := time.Date(2000, 1, 3, 15, 0, 0, 0, time.UTC) // fake time begins on the first of that month
	for name, x := range map[string]struct {
		warmup smtplb.Warmup
		after  time.Duration
		first  int // recipients that are sent to before
		e      *smtplb.Envelope
		why    string
		plan   string
	}{
		"by now":       {smtplb.Warmup{Curve: []int{200, 500}}, 5 * time.Minute, 9, to(1, "a.test"), "warm-up: 9 of 200 today, stage 1 of 2; 9 by now", "until 00:"},
		"a burst":      {smtplb.Warmup{Curve: []int{240}}, 12 * time.Hour, 10, to(1, "a.test"), "warm-up: 10 of 240 today, stage 1 of 1; 130 by now, a twenty-fourth at once", "until 12:"},
		"too many":     {smtplb.Warmup{Curve: []int{5, 100}}, 10 * time.Hour, 1, to(7, "a.test"), "warm-up: 1 of 5 today, stage 1 of 2: a message to 7 is more than today's whole cap", "until 2000-01-02 00:"},
		"not so many":  {smtplb.Warmup{Curve: []int{48, 100}}, 23 * time.Hour, 2, to(47, "a.test"), "warm-up: 2 of 48 today, stage 1 of 2: a message to 47 is more than what is left", "until 2000-01-02 10:"},
		"never":        {smtplb.Warmup{Curve: []int{5, 10, 100}}, 10 * time.Hour, 1, to(70, "a.test"), "warm-up: 1 of 5 today, stage 1 of 3: the message is more than a whole day's", ""},
		"tomorrow":     {smtplb.Warmup{Start: begin}, time.Hour, 0, to(1, "a.test"), "warm-up: begins on 2000-01-03 (UTC)", "until 2000-01-03 00:"},
		"the provider": {smtplb.Warmup{Curve: []int{2400}, PerProvider: map[string][]int{"gmail": {24}}}, time.Minute, 1, to(1, "gmail.com"), "warm-up: 1 of 24 for gmail today; 1 by now", "until 01:"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 1, func(c *smtplb.Config) {
					c.Relays[0].Name, c.Relays[0].Warmup = "new", x.warmup
					c.Providers = []smtplb.Provider{{Name: "gmail", Domains: []string{"gmail.com"}, Limits: smtplb.Limits{Messages: smtplb.PerSecond(1e6)}}}
				})
				defer h.close()
				time.Sleep(x.after)
				for range x.first {
					if _, err := h.pool.Deliver(t.Context(), to(1, x.e.To[0][strings.Index(x.e.To[0], "@")+1:])); err != nil {
						t.Fatal(err)
					}
				}
				_, err := h.pool.Deliver(t.Context(), x.e)
				var te *smtplb.ThrottledError
				if !errors.As(err, &te) || te.Reason != "relay new: "+x.why {
					t.Fatalf("%v", err)
				}
				p, err := h.pool.Explain(t.Context(), x.e)
				if err != nil || p.Limit != te.Reason || len(p.Skipped) != 1 || p.Skipped[0].Why != x.why || !strings.Contains(p.String(), "\n  new: "+x.why) || !strings.Contains(p.String(), x.plan) {
					t.Errorf("%v\n%+v\n%v", err, p, p)
				}
				w := h.pool.Stats().Relays[0].Warmup
				if x.warmup.Start.IsZero() != w.Begins.IsZero() || !w.Begins.IsZero() && (!w.Begins.Equal(begin.Truncate(24*time.Hour)) || w.Cap != 0) || w.ByNow > w.Cap || w.Used > w.ByNow {
					t.Errorf("%+v", w)
				}
			})
		})
	}
}

// A cap that an Update brings isn't given what was taken before there was one: neither more mail than it allows, nor a pool that stands still, may come of that.
func TestWarmupUpdateMeanwhile(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { warmCurve(c, 2400) })
		defer h.close()
		time.Sleep(12 * time.Hour)
		h.sends(envelope("x@example.com"), "accepted") // there is a lease now, and a connection
		var to []string
		for i := range 50 {
			to = append(to, fmt.Sprintf("x%d@gmail.com", i))
		}
		h.relays[0].On(smtptest.Rcpt).Times(len(to)).Delay(time.Second).Reply(550, "5.1.1 no such user")
		done := h.async(context.Background(), envelope(to...))
		time.Sleep(500 * time.Millisecond)
		h.update(h.config(func(c *smtplb.Config) {
			warmCurve(c, 2400)
			c.Relays[0].Warmup.PerProvider = map[string][]int{"gmail": {24}}
		}))
		if r := <-done; r.Receipt.Count(smtplb.Failed) != len(to) {
			t.Error(r.Err)
		}
		h.sends(envelope("x@gmail.com"), "accepted")
		h.sends(envelope("x@gmail.com"), "deferred") // the next in a quarter of an hour
		h.sends(envelope("x@example.com"), "accepted")
	})
}

// A message that is for a provider among others counts for its cap, whatever is counted.
func TestWarmupMixed(t *testing.T) {
	t.Parallel()
	for _, unit := range []smtplb.WarmupUnit{smtplb.WarmupRecipients, smtplb.WarmupMessages} {
		t.Run(unit.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 2, func(c *smtplb.Config) {
					c.Relays[1].Tier = 1
					c.Relays[0].Warmup = smtplb.Warmup{Curve: []int{2400}, PerProvider: map[string][]int{"gmail": {24}, "yahoo": {24}}, Unit: unit}
				})
				defer h.close()
				var first []int
				for range 3 {
					r, err := h.pool.Deliver(context.Background(), envelope("x@gmail.com", "y@example.com", "z@yahoo.com"))
					if err != nil {
						t.Fatal(err)
					}
					first = append(first, len(h.relays[0].Messages()))
					if len(r.Attempts) != 1 {
						t.Error(r)
					}
				}
				if want := []int{1, 1, 1}; !slices.Equal(first, want) {
					t.Errorf("the relay that warms up had %v messages, not %v: one an hour is gmail's", first, want)
				}
				want := 3
				if unit == smtplb.WarmupMessages {
					want = 1
				}
				if used := h.pool.Stats().Relays[0].Warmup.Used; used != want {
					t.Errorf("%d %s are used, not %d", used, unit, want)
				}
			})
		})
	}
}

// The first message of a day, or one that needs more than is at hand, waits for the Store and not for the pool's clock.
func TestWarmupAsksAtOnce(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { warmCurve(c, 2400, 4800, 9600) })
		defer h.close()
		takes := func(to ...string) {
			t.Helper()
			begun := time.Now()
			h.sends(envelope(to...), strings.TrimSuffix(strings.Repeat("accepted ", len(to)), " "))
			if took := time.Since(begun); took > 100*time.Millisecond {
				t.Errorf("%d recipients after %v", len(to), took)
			}
		}
		var many []string
		for i := range 150 {
			many = append(many, fmt.Sprintf("x%d@example.com", i))
		}
		for range 3 {
			time.Sleep(300 * time.Millisecond)
			takes("x@example.com")
			time.Sleep(12 * time.Hour)
			takes(many...)
			time.Sleep(12*time.Hour - time.Second)
		}
	})
}
