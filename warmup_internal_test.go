package smtplb

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/smtplb/smtplb/internal/warmup"
)

func TestWarmupValidate(t *testing.T) {
	march := time.Date(2026, 3, 2, 15, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		name string
		w    Warmup
		want []string // "path: reason", of which this is the beginning
	}{
		{name: "none"},
		{name: "a Start", w: Warmup{Start: march, Advance: AdvanceDelivered, Overflow: OverflowTier, Unit: WarmupMessages}},
		{name: "a Curve", w: Warmup{Curve: []int{1, 1, 2}, PerProvider: map[string][]int{"Gmail": {1}}}},
		{name: "the published ones", w: Warmup{Curve: SendGridCurve(), PerProvider: map[string][]int{"Gmail": SparkPostCurve()}}},
		{name: "nothing to do it with", w: Warmup{Advance: AdvanceDelivered}, want: []string{"W: needs a Start, a Curve or PerProvider"}},
		{name: "an empty curve", w: Warmup{Curve: []int{}}, want: []string{"W.Curve: has 0 stages"}},
		{name: "a long curve", w: Warmup{Curve: make([]int, 1001)}, want: []string{"W.Curve: has 1001 stages"}},
		{name: "caps", w: Warmup{Curve: []int{0, 10, 9, -1, 1_000_000_001}}, want: []string{
			"W.Curve[0]: is 0; it must be 1", "W.Curve[2]: is 9, and the stage before had 10", "W.Curve[3]: is -1", "W.Curve[4]: is 1000000001; at most",
		}},
		{name: "providers", w: Warmup{PerProvider: map[string][]int{"": {1}, "Gmail": {2, 1}, "a\n": {1}, "Yahoo": nil}}, want: []string{
			`W.PerProvider[""]: the provider's name`, `W.PerProvider["Gmail"][1]: is 1, and`, `W.PerProvider["Yahoo"]: has 0 stages`, `W.PerProvider["a\n"]: the provider's name`,
		}},
		{name: "out of range", w: Warmup{Start: march.AddDate(500, 0, 0), Unit: 2, Advance: 2, Overflow: 2}, want: []string{"W.Start: is in the year 2526", "W.Unit: is 2", "W.Advance: is 2", "W.Overflow: is 2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var f faults
			tt.w.validate("W", &f)
			for i := range max(len(f), len(tt.want)) {
				if i >= len(f) || i >= len(tt.want) || !strings.Contains(f[i].Error(), tt.want[i]) {
					t.Fatalf("faults %v, want %q", []error(f), tt.want)
				}
				var ce *ConfigError
				if !errors.As(f[i], &ce) || !strings.HasPrefix(tt.want[i], ce.Path+": ") {
					t.Errorf("%#v has another path than %q", f[i], tt.want[i])
				}
			}
		})
	}
}

// What the caller does to the configuration afterwards changes nothing: DNS has the relays put together from it again, at any time.
func TestConfigIsCopied(t *testing.T) {
	configure := func() *Config {
		c := plainConfig()
		c.Relays[0].Tags, c.Relays[0].Warmup = []string{"a"}, Warmup{Curve: []int{1, 2}, PerProvider: map[string][]int{"gmail": {3, 4}, "yahoo": {5}}}
		c.Streams = []Stream{{Name: "bulk", Lag: time.Second}}
		c.Routes = []Route{{Recipients: []string{"example.com"}, Tags: []string{"a"}}}
		return &c
	}
	theirs, want := configure(), configure()
	valid, err := theirs.validate()
	if err != nil {
		t.Fatal(err)
	}
	x := &theirs.Relays[0]
	x.Tags[0], x.Warmup.Curve[0], x.Warmup.PerProvider["gmail"][0] = "b", 7, 7
	delete(x.Warmup.PerProvider, "yahoo")
	theirs.Streams[0].Lag, theirs.Routes[0].Tags[0] = time.Hour, "b"
	theirs.Relays[1].Name = "other"
	same := cmp.Options{cmp.Comparer(func(a, b Warmup) bool { return cmp.Equal(a.Curve, b.Curve) && cmp.Equal(a.PerProvider, b.PerProvider) })}
	for i, r := range valid.Relays {
		w := want.Relays[i]
		if r.Name != w.Name || !cmp.Equal(r.Tags, w.Tags) || !cmp.Equal(r.Warmup, w.Warmup, same) {
			t.Errorf("relay %d: %+v, want %+v", i, r, w)
		}
	}
	if valid.Streams[0] != want.Streams[0] || !cmp.Equal(valid.Routes[0].Tags, want.Routes[0].Tags) {
		t.Errorf("%+v, %+v", valid.Streams, valid.Routes)
	}
}

func TestWarmupConfig(t *testing.T) {
	east := time.FixedZone("east", 10*60*60)
	w := Warmup{Start: time.Date(2026, 3, 3, 5, 0, 0, 0, east), Advance: AdvanceDelivered, PerProvider: map[string][]int{"Gmail": {1}}}
	want := warmup.Config{Start: warmup.On(time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)), Curve: SparkPostCurve(), OnDelivery: true, PerProvider: w.PerProvider, Writer: "me"}
	if diff := cmp.Diff(want, w.config("me")); diff != "" {
		t.Error(diff)
	}
	if w := (Warmup{Curve: []int{1}}); w.config("").Start != 0 || w.config("").OnDelivery || !w.on() || w.count(3) != 3 {
		t.Errorf("%+v", w.config(""))
	}
	if w := (Warmup{Unit: WarmupMessages}); w.on() || w.count(3) != 1 || w.count(0) != 0 {
		t.Error("messages are counted by recipients, or nothing is one")
	}
}

// The published curves are what their publishers say of them.
func TestCurves(t *testing.T) {
	spark := SparkPostCurve()
	if len(spark) != 29 || spark[0] != 200 || spark[28] != 10_000_000 {
		t.Errorf("SparkPost's: %v", spark)
	}
	if diff := cmp.Diff([]int{200, 500, 1000, 2000, 5000, 10000, 20000, 40000, 50000, 75000, 100000, 150000, 200000, 250000, 325000, 400000}, spark[:16]); diff != "" {
		t.Error(diff)
	}
	grid := SendGridCurve()
	if len(grid) != 42 || grid[0] != 480 || grid[41] != 24*19_601_056 {
		t.Errorf("SendGrid's: %v", grid)
	}
	for i, n := range grid[1:] {
		if ratio := float64(n) / float64(grid[i]); math.Abs(ratio-1.4) > 0.03 && i+1 != 12 && i+1 != 13 {
			t.Errorf("SendGrid's day %d has ×%.2f", i+1, ratio)
		}
	}
	spark[0] = 1
	if SparkPostCurve()[0] != 200 {
		t.Error("a caller has changed it for all")
	}
}

// failingStore is a MemoryStore with faults.
type failingStore struct {
	MemoryStore
	load, swap func(ctx context.Context) error // before the operation; nil: nothing
	after      func() error                    // after a Swap
}

func (s *failingStore) Load(ctx context.Context, key string) ([]byte, error) {
	if s.load != nil {
		if err := s.load(ctx); err != nil {
			return nil, err
		}
	}
	return s.MemoryStore.Load(ctx, key)
}

func (s *failingStore) Swap(ctx context.Context, key string, was, now []byte) (bool, error) {
	if s.swap != nil {
		if err := s.swap(ctx); err != nil {
			return false, err
		}
	}
	ok, err := s.MemoryStore.Swap(ctx, key, was, now)
	if s.after != nil {
		err = s.after()
	}
	return ok, err
}

// takeAll takes what there is, one by one, up to most.
func takeAll(t *testing.T, w *warming, most int) (n int) {
	t.Helper()
	for n < most {
		if w.schedule.Wait(time.Now(), "", 1) > time.Minute {
			break
		}
		if _, ok := w.schedule.Take(time.Now(), "", 1); ok {
			n++
			continue
		}
		if w.schedule.Dirty(time.Now()) {
			if err := w.sync(t.Context()); err != nil {
				break
			}
		} else {
			time.Sleep(w.schedule.Wait(time.Now(), "", 1))
		}
	}
	return n
}

var quickly = &Warmup{Curve: []int{240, 480}}

// Two processes on one store share a day's cap to the last; a third, after they have been closed, has the rest of it.
func TestWarmingShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which begins at midnight
		var store MemoryStore
		a, b := newWarming("r", quickly, &store), newWarming("r", quickly, &store)
		for _, w := range []*warming{a, b} { // both run: who begins later has no burst of its own
			if err := w.sync(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(23 * time.Hour)
		n := 0
		for range 10 {
			n += takeAll(t, a, 1)
			n += takeAll(t, b, 1)
		}
		for _, w := range []*warming{a, b} {
			if err := w.release(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, ok := w.schedule.Take(time.Now(), "", 1); ok {
				t.Error("something to take after it")
			}
		}
		c := newWarming("r", quickly, &store)
		if err := c.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := c.schedule.Today(time.Now()); got.Used != n || n != 20 || got.Cap != 240 {
			t.Errorf("%d were taken: %+v", n, got)
		}
		other := newWarming("other", quickly, &store)
		if takeAll(t, other, 1) != 1 || other.schedule.Today(time.Now()).Used != 1 {
			t.Error("another relay has it too")
		}
	})
}

// A lease that is on its way when the pool shuts down is waited for, and given back.
func TestWarmingReleaseWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &failingStore{}
		w := newWarming("r", quickly, store)
		time.Sleep(12 * time.Hour)
		if n := takeAll(t, w, 6); n != 6 {
			t.Fatalf("%d taken", n)
		}
		store.swap = func(context.Context) error { time.Sleep(3 * time.Second); return nil }
		done := make(chan error)
		go func() { done <- w.sync(t.Context()) }() // the next lease: half of the first is used
		synctest.Wait()
		if !w.schedule.Dirty(time.Now()) {
			t.Fatal("no lease is asked for")
		}
		if err := w.release(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		next := newWarming("r", quickly, store)
		if err := next.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if x := next.schedule.Today(time.Now()); x.Used != 6 {
			t.Errorf("%d are used, of 6", x.Used)
		}
	})
}

// Store faults: what is lost is a lease for each, and the error is told.
func TestWarmingFaults(t *testing.T) {
	disk := errors.New("no space left")
	for _, tt := range []struct {
		name   string
		fail   func(s *failingStore)
		err    error
		panics bool
		stored bool // all the same
	}{
		{name: "it can't be read", fail: func(s *failingStore) { s.load = func(context.Context) error { return disk } }, err: disk},
		{name: "it can't be written", fail: func(s *failingStore) { s.swap = func(context.Context) error { return disk } }, err: disk},
		{name: "it is written, and says it isn't", fail: func(s *failingStore) { s.after = func() error { return disk } }, err: disk, stored: true},
		{name: "it hangs", fail: func(s *failingStore) {
			s.swap = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		}, err: context.DeadlineExceeded},
		{name: "others are always quicker", fail: func(s *failingStore) {
			s.swap = func(ctx context.Context) error {
				b, _ := s.MemoryStore.Load(ctx, "warmup/r")
				next := `{"version":1,"writer":"x","seq":1}`
				if string(b) == next {
					next = `{"version":1,"writer":"x","seq":2}`
				}
				_, err := s.MemoryStore.Swap(ctx, "warmup/r", b, []byte(next))
				return err
			}
		}, err: errStoreConflict},
		{name: "it panics", fail: func(s *failingStore) { s.swap = func(context.Context) error { panic("store") } }, panics: true},
		{name: "it panics when it is read", fail: func(s *failingStore) { s.load = func(context.Context) error { panic("store") } }, panics: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(12 * time.Hour)
				var s failingStore
				tt.fail(&s)
				w := newWarming("r", quickly, &s)
				for i := range 3 {
					w.schedule.Wait(time.Now(), "", 1)
					func() {
						defer func() {
							if r := recover(); (r != nil) != tt.panics {
								t.Errorf("panic: %v", r)
							}
						}()
						if w.schedule.Dirty(time.Now()) {
							err := w.sync(t.Context())
							if !errors.Is(err, tt.err) && (!tt.stored || i == 0) {
								t.Errorf("the error is %v, want %v", err, tt.err)
							}
						}
					}()
					if _, ok := w.schedule.Take(time.Now(), "", 1); ok != (tt.stored && i > 0) {
						t.Errorf("%v: something to take that isn't stored, or nothing that is", ok)
					}
					wait := w.schedule.Wait(time.Now(), "", 1)
					if !tt.stored && (wait <= 0 || wait > time.Minute || w.schedule.Dirty(time.Now())) {
						t.Errorf("waits %v, or it isn't left alone", wait)
					}
					time.Sleep(2 * time.Minute)
				}
				s.load, s.swap, s.after = nil, nil, nil
				if n := takeAll(t, w, 10); n != 10 {
					t.Errorf("%d of 10 when it is well again", n)
				}
			})
		})
	}
}

// While the store hangs, whoever sends asks and takes at once.
func TestWarmingHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(12 * time.Hour)
		var s failingStore
		w := newWarming("r", quickly, &s)
		if n := takeAll(t, w, 7); n != 7 {
			t.Fatalf("%d of 7", n)
		}
		forever := make(chan struct{})
		s.swap = func(context.Context) error { <-forever; return nil } // not even its context ends it
		done := make(chan error, 1)
		go func() { done <- w.sync(t.Context()) }()
		synctest.Wait()
		start := time.Now()
		if err := w.sync(t.Context()); err != nil {
			t.Error(err)
		}
		n := 0
		for w.schedule.Wait(time.Now(), "", 1) == 0 {
			if _, ok := w.schedule.Take(time.Now(), "", 1); ok {
				n++
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if n != 3 || time.Since(start) != 0 {
			t.Errorf("%d of 3 left, in %v", n, time.Since(start))
		}
		if err := w.release(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("release: %v", err)
		}
		close(forever)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// What is stored and isn't a warm-up's state stays, and is no reason to begin again.
func TestWarmingForeign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, value := range []string{`"hello"`, `{"version":2}`, `{"version":1,"writer":"a","seq":1,"days":[{}`} {
			var store MemoryStore
			if ok, err := store.Swap(t.Context(), "warmup/r", nil, []byte(value)); !ok || err != nil {
				t.Fatal(err)
			}
			w := newWarming("r", quickly, &store)
			for range 3 {
				if err := w.sync(t.Context()); err == nil {
					t.Errorf("no error for %s", value)
				}
				if _, ok := w.schedule.Take(time.Now(), "", 1); ok {
					t.Errorf("something to take by %s", value)
				}
				time.Sleep(time.Hour)
			}
			if b, _ := store.Load(t.Context(), "warmup/r"); string(b) != value {
				t.Errorf("%s has become %s", value, b)
			}
		}
	})
}
