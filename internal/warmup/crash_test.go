package warmup_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/smtplb/smtplb/internal/warmup"
)

// fault is what becomes of one operation of a store.
type fault uint8

const (
	well          fault = iota
	crashesBefore       // the process ends before the operation
	crashesAfter        // it ends when the store has done it
	failsBefore         // an error, and nothing was done
	failsAfter          // an error, and it was done
	lands               // an error; a write is done later
	faults
)

// world is some processes on one store, and what they have sent by the days of the clock.
type world struct {
	t       testing.TB
	cfg     warmup.Config
	d       disk
	late    []pending // writes that are still on their way
	all     []*process
	started int
	ops     int
	fault   func(op int) fault
	sent    map[warmup.Date]map[string]int // "": the relay
}

type pending struct{ after, record *warmup.Record }

func newWorld(t testing.TB, cfg warmup.Config, processes int, fault func(op int) fault) *world {
	w := &world{t: t, cfg: cfg, fault: fault, sent: make(map[warmup.Date]map[string]int), all: make([]*process, processes)}
	for i := range w.all {
		w.restart(i)
	}
	return w
}

func (w *world) restart(i int) {
	w.all[i] = start(w.cfg, fmt.Sprint("p", w.started))
	w.started++
}

func (w *world) land() {
	for _, x := range w.late {
		if w.d.holds(x.after) {
			w.d.put(w.t, x.record)
		}
	}
	w.late = nil
}

// sync is what the root does, with faults.
func (w *world) sync(i int, now time.Time) {
	p := w.all[i]
	for range 10 {
		if p.NeedsLoad(now) {
			switch w.next() {
			case crashesBefore, crashesAfter:
				w.restart(i)
				return
			case failsBefore, failsAfter, lands:
				p.Failed(now, warmup.Draft{})
				return
			}
			p.seen = w.d.record
			p.Adopt(p.seen)
		}
		draft, ok := p.Draft(now)
		if !ok {
			return
		}
		fault := w.next()
		stored := fault != crashesBefore && fault != failsBefore && fault != lands && w.d.holds(p.seen)
		if stored {
			w.d.put(w.t, draft.Record)
		}
		switch fault {
		case crashesBefore, crashesAfter:
			w.restart(i)
			return
		case lands:
			w.late = append(w.late, pending{p.seen, draft.Record})
			fallthrough
		case failsBefore, failsAfter:
			p.Failed(now, draft)
			return
		}
		if stored {
			p.seen = w.d.record
			p.Stored(draft)
		} else {
			p.Refused(draft)
		}
	}
}

func (w *world) next() fault {
	w.ops++
	return w.fault(w.ops)
}

// take takes n, and checks that no cap is exceeded.
func (w *world) take(i int, now time.Time, provider string, n int) (warmup.Taken, bool) {
	x, ok := w.all[i].Take(now, provider, n)
	if !ok {
		return x, false
	}
	today := w.all[i].Today(now)
	if today.Stage == today.Stages {
		return x, true
	}
	on := w.sent[warmup.On(now)]
	if on == nil {
		on = make(map[string]int)
		w.sent[warmup.On(now)] = on
	}
	limits := make(map[string]int)
	if today.Cap > 0 {
		on[""] += n
		limits[""] = w.cfg.Curve[today.Stage]
	}
	if curve := w.cfg.PerProvider[provider]; today.Stage < len(curve) {
		on[provider] += n
		limits[provider] = curve[today.Stage]
	}
	for name, limit := range limits {
		if on[name] > limit {
			w.t.Fatalf("%d sent on %v, for %q; the cap is %d\n%+v", on[name], now, name, limit, w.d.record)
		}
	}
	return x, true
}

func (w *world) giveBack(i int, x *warmup.Taken, on time.Time, provider string, n int) {
	w.all[i].Return(x, n)
	day := w.sent[warmup.On(on)]
	if day == nil {
		return
	}
	for _, name := range slices.Compact([]string{"", provider}) {
		if _, ok := day[name]; ok {
			day[name] -= n
		}
	}
}

// A process may end at any operation of the store, for each that there is, and the store may fail in any way at any: the cap isn't exceeded, and what the day loses is a lease, of each cap.
func TestCrashAnywhere(t *testing.T) {
	cfg := warmup.Config{Curve: []int{240, 480}, PerProvider: map[string][]int{"g": {120, 120}}}
	run := func(at int, f fault) (w *world) {
		w = newWorld(t, cfg, 1, func(op int) fault {
			if op == at {
				return f
			}
			return well
		})
		for now := monday; now.Before(monday.Add(2 * day)); now = now.Add(5 * time.Minute) {
			for _, provider := range []string{"", "g"} {
				for range 30 {
					w.sync(0, now)
					if _, ok := w.take(0, now, provider, 1); !ok && w.all[0].Wait(now, provider, 1) > time.Second {
						break
					}
				}
			}
			w.land()
		}
		return w
	}
	ops := run(0, well).ops
	if ops < 40 {
		t.Fatalf("%d operations", ops)
	}
	step := 1
	if !thorough() {
		step = 5
	}
	for at := 0; at <= ops; at += step {
		for f := range faults {
			w := run(at, f)
			lost := []int{10, 20}
			if f == well || f == failsBefore {
				lost = []int{0, 0}
			}
			for i, limit := range cfg.Curve {
				if got := w.sent[warmup.On(monday)+warmup.Date(i)][""]; got < limit-lost[i] {
					t.Fatalf("fault %d at operation %d of %d: %d of %d sent", f, at, ops, got, limit)
				}
			}
		}
	}
}

// Random days: several processes on one store that come and go, with clocks that are set back and forth, of which one is a little late; a store that fails in all ways; mail that comes in all sizes, part of which
// is given back, in time or too late; days in back-off; a warm-up that is begun again.
func TestRandomDays(t *testing.T) {
	seeds := uint64(400)
	if raceEnabled {
		seeds = 60
	}
	for seed := range seeds {
		rnd := rand.New(rand.NewPCG(seed, 1))
		curve := []int{1 + rnd.IntN(300)}
		for range rnd.IntN(12) {
			curve = append(curve, curve[len(curve)-1]+rnd.IntN(300))
		}
		cfg := warmup.Config{Curve: curve, OnDelivery: rnd.IntN(2) == 0, PerProvider: map[string][]int{"g": curve[:1+rnd.IntN(len(curve))], "m": {5, 50}}}
		if rnd.IntN(2) == 0 {
			cfg.Start = warmup.On(monday) + warmup.Date(rnd.IntN(5)) - 2
		}
		bad := rnd.IntN(4) // in ten
		w := newWorld(t, cfg, 1+rnd.IntN(3), func(int) fault {
			if rnd.IntN(10) < bad {
				return fault(rnd.IntN(int(faults)))
			}
			return well
		})
		type loan struct {
			process  int
			of       *process
			x        *warmup.Taken
			on       time.Time
			provider string
			n        int
		}
		var loans []loan
		now := monday
		taken := 0
		for range 1500 {
			i := rnd.IntN(len(w.all))
			at := now.Add(-3 * time.Second * time.Duration(i))
			switch k := rnd.IntN(100); {
			case k < 40:
				provider, n := []string{"", "g", "m", "x"}[rnd.IntN(4)], 1
				if rnd.IntN(4) == 0 {
					n = 1 + rnd.IntN(curve[len(curve)-1])
				}
				wait := w.all[i].Wait(at, provider, n)
				x, ok := w.take(i, at, provider, n)
				if ok != (wait == 0) || wait < 0 {
					t.Fatalf("seed %d: Wait %v, Take %v", seed, wait, ok)
				}
				if ok {
					taken += n
					loans = append(loans, loan{i, w.all[i], &x, at, provider, n})
				}
			case k < 50:
				if len(loans) == 0 {
					continue
				}
				l := &loans[rnd.IntN(len(loans))]
				at = now.Add(-3 * time.Second * time.Duration(l.process))
				l.of.Today(at) // it knows what day it is
				if n := 1 + rnd.IntN(l.n+1); n <= l.n && w.all[l.process] == l.of && warmup.On(at) == warmup.On(l.on) {
					w.giveBack(l.process, l.x, l.on, l.provider, n)
					l.n -= n
				} else if warmup.On(at) != warmup.On(l.on) {
					l.of.Return(l.x, n) // too late
					l.n -= min(n, l.n)
				}
			case k < 75:
				w.sync(i, at)
			case k < 85:
				now = now.Add(time.Duration(rnd.Int64N(int64(2 * time.Hour))))
			case k < 87:
				now = now.Add(time.Duration(rnd.Int64N(int64(3 * day))))
			case k < 88:
				now = now.Add(-time.Duration(rnd.Int64N(int64(3 * day))))
			case k < 90:
				w.land()
			case k < 95:
				w.all[i].Delivered(at, rnd.IntN(100))
			case k < 96:
				w.all[i].Held(at)
			case k < 97:
				w.all[i].Release(at)
				w.sync(i, at)
				w.restart(i)
			case k < 98:
				w.restart(i)
			case k < 99:
				w.all[i].Reconfigure(cfg)
			default:
				now = now.Add(time.Duration(rnd.IntN(40)) * day)
			}
		}
		if taken == 0 {
			t.Errorf("seed %d: nothing was ever sent", seed)
		}
	}
}

// Whatever Decode accepts is written as it was read, and can be gone on from.
func FuzzRecord(f *testing.F) {
	var d disk
	p := start(warmup.Config{Curve: []int{240, 480}, PerProvider: map[string][]int{"g": {10}}, Start: warmup.On(monday)}, "a")
	p.wait(f, &d, monday.Add(12*time.Hour), "g", 3)
	p.Held(monday)
	p.sync(f, &d, monday)
	b, _ := d.record.Encode()
	f.Add(b)
	f.Add([]byte(`{"version":1,"writer":"","seq":0}`))
	f.Add([]byte(`{"version":2,"writer":"","seq":0}`))
	f.Add([]byte(`{"version":1,"writer":"a","seq":1,"days":[{"day":"2026-03-02","stage":0,"granted":240},{"day":"2026-03-01","stage":0,"granted":0}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := warmup.Decode(b)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		r2, err := warmup.Decode(again)
		if err != nil {
			t.Fatalf("%v\n%s", err, again)
		}
		third, _ := r2.Encode()
		if !bytes.Equal(again, third) {
			t.Errorf("%s\n%s", again, third)
		}
		d := disk{record: r2}
		p := start(warmup.Config{Curve: []int{240, 480}, PerProvider: map[string][]int{"g": {10, 20}}}, "b")
		granted := 0
		if day := dayOf(r2, warmup.On(monday)); day != nil {
			granted = day.Granted
		}
		n := 0
		for at := monday; at.Before(monday.Add(day)); at = at.Add(time.Hour) {
			for range 60 {
				if p.wait(t, &d, at, "", 1) != 0 {
					break
				}
				p.Take(at, "", 1)
				n++
			}
		}
		if today := p.Today(monday.Add(day - 1)); today.Cap > 0 && n > max(today.Cap-granted, 0) {
			t.Errorf("%d taken of %d, of which %d were granted\n%s", n, today.Cap, granted, again)
		}
	})
}

func dayOf(r *warmup.Record, d warmup.Date) *warmup.Day {
	for i := range r.Days {
		if r.Days[i].Day == d {
			return &r.Days[i]
		}
	}
	return nil
}

// What isn't the state of a warm-up, or isn't all of it, is an error.
func TestDecode(t *testing.T) {
	var d disk
	p := start(warmup.Config{Curve: []int{240}, PerProvider: map[string][]int{"g": {10}}}, "a")
	p.wait(t, &d, monday.Add(12*time.Hour), "g", 3)
	whole, _ := d.record.Encode()
	const want = `{"version":1,"writer":"a","seq":1,"used":"2026-03-02","days":[{"day":"2026-03-02","stage":0,"granted":10,"providers":{"g":3}}],"full":1772453700000000000,"providers":{"g":1772453700000000000}}`
	if diff := cmp.Diff(want, string(whole)); diff != "" {
		t.Error(diff)
	}
	for i := range whole {
		if r, err := warmup.Decode(whole[:i]); err == nil {
			t.Errorf("%s: %+v", whole[:i], r)
		}
	}
	for _, change := range [][2]string{
		{`"version":1`, `"version":2`}, {`"version":1,`, ``}, {`"seq":1`, `"seq":-1`}, {`"seq":1`, `"seq":18446744073709551615`}, {`"seq"`, `"sequence"`},
		{`"granted":10`, `"granted":-1`}, {`"granted":10`, `"granted":1000000001`}, {`"stage":0`, `"stage":-1`}, {`"stage":0`, `"stage":1e9`}, {`"g":3`, `"g":-3`},
		{`"day":"2026-03-02"`, `"day":"2026-02-30"`}, {`"day":"2026-03-02"`, `"day":20514`}, {`"granted":10`, `"granted":10,"delivered":-1`},
		{`{"version"`, `[{"version"`}, {`00}}`, `00}}{}`}, {`"full":1`, `"full":-1`}, {`{"g":17`, `{"g":-17`}, {`"writer":"a"`, `"writer":"` + strings.Repeat("a", 256) + `"`},
	} {
		b := strings.Replace(string(whole), change[0], change[1], 1)
		if b == string(whole) {
			t.Fatalf("%s isn't in it", change[0])
		}
		if r, err := warmup.Decode([]byte(b)); err == nil {
			t.Errorf("%s: %+v", b, r)
		}
	}
}
