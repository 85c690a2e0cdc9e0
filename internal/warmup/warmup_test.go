package warmup_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/smtplb/smtplb/internal/warmup"
)

const day = 24 * time.Hour

var (
	monday   = time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)
	thousand = warmup.Config{Curve: []int{240, 480, 960}}
)

// disk is a store: one value, replaced if it is what the writer thinks.
type disk struct{ record *warmup.Record }

func (d *disk) holds(r *warmup.Record) bool {
	if d.record == nil || r == nil {
		return d.record == r
	}
	return d.record.Writer == r.Writer && d.record.Seq == r.Seq
}

// put goes through the encoding, as a store does.
func (d *disk) put(t testing.TB, r *warmup.Record) {
	t.Helper()
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if d.record, err = warmup.Decode(b); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
}

// process is a Schedule, and what it knows of the disk.
type process struct {
	*warmup.Schedule
	seen *warmup.Record
}

func start(cfg warmup.Config, writer string) *process {
	cfg.Writer = writer
	return &process{Schedule: warmup.New(cfg)}
}

// sync stores what there is to be stored.
func (p *process) sync(t testing.TB, d *disk, now time.Time) {
	t.Helper()
	for range 10 {
		if p.NeedsLoad(now) {
			p.seen = d.record
			p.Adopt(p.seen)
		}
		draft, ok := p.Draft(now)
		if !ok {
			return
		}
		if !d.holds(p.seen) {
			p.Refused(draft)
			continue
		}
		d.put(t, draft.Record)
		p.seen = d.record
		p.Stored(draft)
	}
	t.Fatal("there is always something to store")
}

// wait is Wait when the store has no part in it.
func (p *process) wait(t testing.TB, d *disk, now time.Time, provider string, n int) time.Duration {
	t.Helper()
	p.sync(t, d, now)
	p.Wait(now, provider, n)
	p.sync(t, d, now)
	return p.Wait(now, provider, n)
}

// send takes as many ones as can be taken now.
func (p *process) send(t testing.TB, d *disk, now time.Time) (n int) {
	t.Helper()
	for p.wait(t, d, now, "", 1) == 0 {
		if _, ok := p.Take(now, "", 1); !ok {
			t.Fatal("nothing to take after no wait")
		}
		n++
	}
	return n
}

func clock(h, m int) time.Duration {
	return time.Duration(h)*time.Hour + time.Duration(m)*time.Minute
}

// The share of a day grows with it, and what it is behind comes in bursts.
func TestShare(t *testing.T) {
	for _, tt := range []struct {
		name string
		used []time.Duration // when everything that can be taken is
		at   time.Duration
		n    int
		want time.Duration
	}{
		{name: "the first share is there at midnight", n: 10},
		{name: "one more than that waits for it", n: 11, want: clock(0, 6)},
		{name: "and so does one after it", used: []time.Duration{0}, n: 1, want: clock(0, 6)},
		{name: "at noon a burst", at: clock(12, 0), n: 10},
		{name: "and the rest of the share later", used: []time.Duration{clock(12, 0)}, at: clock(12, 0), n: 10, want: clock(0, 15)},
		{name: "one of it sooner", used: []time.Duration{clock(12, 0)}, at: clock(12, 0), n: 1, want: 90 * time.Second},
		{name: "more than a burst takes a whole one", at: clock(12, 0), n: 130},
		{name: "but not more than the share", at: clock(12, 0), n: 131, want: clock(0, 6)},
		{name: "all at 23:00", n: 240, want: clock(23, 0)},
		{name: "and at 23:00 it is", at: clock(23, 0), n: 240},
		{name: "more than the day's: tomorrow's is enough", used: []time.Duration{0}, n: 241, want: clock(35, 3)},
		{name: "more than tomorrow's, too", n: 481, want: warmup.Never},
		{name: "too late: tomorrow's first share is for 20", used: []time.Duration{0, clock(1, 0)}, at: clock(23, 0), n: 240, want: clock(1, 0) + clock(11, 0)},
		{name: "nothing", n: 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var d disk
			p := start(thousand, "a")
			for _, at := range tt.used {
				p.send(t, &d, monday.Add(at))
			}
			if got := p.wait(t, &d, monday.Add(tt.at), "", tt.n); got != tt.want {
				t.Errorf("waits %v, want %v", got, tt.want)
			}
			if tt.want > 0 && tt.want != warmup.Never {
				if got := p.wait(t, &d, monday.Add(tt.at+tt.want), "", tt.n); got != 0 {
					t.Errorf("and %v after that", got)
				}
			}
		})
	}
}

// A day's cap can be used up, and the wait is then for the next day.
func TestWholeDay(t *testing.T) {
	for _, n := range []int{1, 7, 10, 60, 240} {
		var d disk
		p := start(thousand, "a")
		now, used := monday, 0
		for now.Before(monday.Add(day)) {
			wait := p.wait(t, &d, now, "", n)
			if wait == 0 {
				if _, ok := p.Take(now, "", n); !ok {
					t.Fatal("nothing to take after no wait")
				}
				used += n
				continue
			}
			now = now.Add(wait)
		}
		if want := 240 / n * n; used != want {
			t.Errorf("by %d: %d used of %d", n, used, want)
		}
		if want := monday.Add(day + max(day*time.Duration(n)/480-time.Hour, 0)); !now.Equal(want) {
			t.Errorf("by %d: the next is at %v, want %v", n, now, want)
		}
		if got := p.Today(now); got.Cap != 480 || got.Used != 0 {
			t.Errorf("by %d: then %+v", n, got)
		}
	}
}

// More mail than the cap in the afternoon alone uses most of it.
func TestCatchUp(t *testing.T) {
	var d disk
	p := start(thousand, "a")
	used := 0
	for now := monday.Add(18 * time.Hour); now.Before(monday.Add(day)); now = now.Add(time.Minute) {
		n := p.send(t, &d, now)
		if n > 10 {
			t.Fatalf("%d at once", n)
		}
		used += n
	}
	if used != 240 {
		t.Errorf("%d of 240", used)
	}
}

func TestProviders(t *testing.T) {
	var d disk
	p := start(warmup.Config{Curve: []int{240}, PerProvider: map[string][]int{"g": {24}}}, "a")
	noon := monday.Add(12 * time.Hour)
	if got := p.wait(t, &d, noon, "g", 25); got != 12*time.Hour { // then it has no cap any more
		t.Errorf("more than the provider's cap waits %v", got)
	}
	if got := p.wait(t, &d, noon, "other", 25); got != 0 {
		t.Errorf("another's waits %v", got)
	}
	var taken []warmup.Taken
	for now := noon; now.Before(monday.Add(day)); now = now.Add(time.Minute) {
		for p.wait(t, &d, now, "g", 1) == 0 {
			x, _ := p.Take(now, "g", 1)
			taken = append(taken, x)
		}
	}
	if len(taken) != 24 {
		t.Errorf("%d of the provider's 24", len(taken))
	}
	late := monday.Add(day - time.Minute)
	if got := p.Today(late); got.Used != 24 || got.Cap != 240 {
		t.Errorf("the relay: %+v", got)
	}
	if got := p.wait(t, &d, late, "", 10); got != 0 {
		t.Errorf("the relay waits %v", got)
	}
	p.Return(&taken[0], 1)
	p.Return(&taken[0], 1) // which is no more than nothing
	if got := p.Today(late); got.Used != 23 {
		t.Errorf("after one was given back: %+v", got)
	}
	if p.wait(t, &d, late, "g", 1) != 0 || p.wait(t, &d, late, "g", 2) == 0 {
		t.Error("what is given back isn't there, or more than that")
	}
	if got := p.wait(t, &d, monday.Add(day), "g", 100); got != 0 {
		t.Errorf("after the last stage %v", got)
	}
}

// What was taken yesterday is no part of today.
func TestReturnNextDay(t *testing.T) {
	var d disk
	p := start(thousand, "a")
	p.wait(t, &d, monday.Add(23*time.Hour), "", 200)
	x, ok := p.Take(monday.Add(23*time.Hour), "", 200)
	if !ok {
		t.Fatal("not taken")
	}
	next := monday.Add(day)
	p.send(t, &d, next)
	before := p.Today(next)
	p.Return(&x, 200)
	if diff := cmp.Diff(before, p.Today(next)); diff != "" {
		t.Error(diff)
	}
}

func TestStages(t *testing.T) {
	type what struct {
		day       int // from Monday
		take      int
		delivered int
		held      bool
	}
	date := warmup.On(monday)
	for _, tt := range []struct {
		name  string
		cfg   warmup.Config
		days  []what
		on    int // the day that is looked at
		stage int
		cap   int
	}{
		{name: "the first", stage: 0, cap: 240},
		{name: "the next day", days: []what{{day: 0, take: 1}}, on: 1, stage: 1, cap: 480},
		{name: "days without mail pass", days: []what{{day: 0, take: 1}}, on: 2, stage: 2, cap: 960},
		{name: "the last", days: []what{{day: 0, take: 1}}, on: 3, stage: 3},
		{name: "it stays over", days: []what{{day: 0, take: 1}, {day: 5, take: 1}, {day: 30, take: 1}}, on: 60, stage: 3},
		{name: "a day in back-off holds", days: []what{{day: 0, take: 1, held: true}}, on: 1, stage: 0, cap: 240},
		{name: "each does", days: []what{{day: 0, take: 1, held: true}, {day: 1, held: true}}, on: 2, stage: 0, cap: 240},
		{name: "only that day", days: []what{{day: 0, take: 1, held: true}}, on: 2, stage: 1, cap: 480},
		{name: "30 idle days", days: []what{{day: 0, take: 1}, {day: 3, take: 1}}, on: 33, stage: 3},
		{name: "31 idle days", days: []what{{day: 0, take: 1}, {day: 3, take: 1}}, on: 34, stage: 0, cap: 240},
		{name: "31 idle days, of which it was held on some", days: []what{{day: 0, take: 1}, {day: 20, held: true}}, on: 31, stage: 0, cap: 240},
		{name: "delivered", cfg: warmup.Config{OnDelivery: true}, days: []what{{day: 0, take: 1, delivered: 216}}, on: 1, stage: 1, cap: 480},
		{name: "too little delivered", cfg: warmup.Config{OnDelivery: true}, days: []what{{day: 0, take: 1, delivered: 215}}, on: 1, stage: 0, cap: 240},
		{name: "on each day", cfg: warmup.Config{OnDelivery: true}, days: []what{{day: 0, take: 1, delivered: 200}, {day: 1, take: 1, delivered: 200}}, on: 2, stage: 0, cap: 240},
		{name: "days don't pass", cfg: warmup.Config{OnDelivery: true}, days: []what{{day: 0, take: 1, delivered: 240}}, on: 20, stage: 1, cap: 480},
		{name: "delivered, but held", cfg: warmup.Config{OnDelivery: true}, days: []what{{day: 0, take: 1, delivered: 240, held: true}}, on: 1, stage: 0, cap: 240},
		{name: "all delivered", cfg: warmup.Config{OnDelivery: true}, days: []what{{day: 0, take: 1, delivered: 240}, {day: 1, take: 1, delivered: 432}, {day: 2, take: 1, delivered: 864}}, on: 3, stage: 3},
		{name: "Start today", cfg: warmup.Config{Start: date}, stage: 0, cap: 240},
		{name: "Start the day before", cfg: warmup.Config{Start: date - 1}, stage: 1, cap: 480},
		{name: "Start long ago", cfg: warmup.Config{Start: date - 1000}, stage: 3},
		{name: "Start long ago, by delivery", cfg: warmup.Config{Start: date - 1000, OnDelivery: true}, stage: 0, cap: 240},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Curve = thousand.Curve
			var d disk
			for i, x := range tt.days { // each day a process of its own
				p := start(tt.cfg, string(rune('a'+i)))
				at := monday.Add(time.Duration(x.day)*day + 23*time.Hour)
				p.sync(t, &d, at)
				if x.take > 0 {
					if wait := p.wait(t, &d, at, "", x.take); wait != 0 {
						t.Fatalf("day %d: waits %v", x.day, wait)
					}
					if _, ok := p.Take(at, "", x.take); !ok {
						t.Fatalf("day %d: not taken", x.day)
					}
				}
				p.Delivered(at, x.delivered)
				if x.held {
					p.Held(at)
				}
				p.sync(t, &d, at)
			}
			p := start(tt.cfg, "z")
			at := monday.Add(time.Duration(tt.on)*day + time.Hour)
			p.sync(t, &d, at)
			got := p.Today(at)
			if got.Stage != tt.stage || got.Cap != tt.cap || !got.Known || got.Stages != 3 {
				t.Errorf("%+v, want stage %d with %d", got, tt.stage, tt.cap)
			}
			wait := p.wait(t, &d, at, "", 961)
			if over := tt.stage == 3; over != (wait == 0) || tt.stage < 2 && wait != warmup.Never || tt.stage == 2 && (wait < time.Hour || wait > 48*time.Hour) { // the day after the last stage allows any number
				t.Errorf("961 wait %v", wait)
			}
		})
	}
}

// What is delivered is stored now and then, and the last of it with the next day's first.
func TestStagesInOneProcess(t *testing.T) {
	var d disk
	cfg := thousand
	cfg.OnDelivery = true
	p := start(cfg, "a")
	now, days := monday, make(map[int]int)
	for now.Before(monday.Add(4 * day)) {
		if wait := p.wait(t, &d, now, "", 1); wait > 0 {
			now = now.Add(wait)
			continue
		}
		if p.Today(now).Cap == 0 {
			break
		}
		p.Take(now, "", 1)
		p.Delivered(now, 1)
		days[p.Today(now).Stage]++
	}
	if diff := cmp.Diff(map[int]int{0: 240, 1: 480, 2: 960}, days); diff != "" {
		t.Error(diff)
	}
}

func TestBeforeStart(t *testing.T) {
	var d disk
	cfg := thousand
	cfg.Start = warmup.On(monday.Add(2 * day))
	p := start(cfg, "a")
	p.Held(monday) // it may have other reasons for that
	for _, tt := range []struct {
		n    int
		want time.Duration
	}{{1, 2 * day}, {10, 2 * day}, {20, 2*day + time.Hour}, {241, warmup.Never}} {
		if got := p.wait(t, &d, monday, "", tt.n); got != tt.want {
			t.Errorf("%d wait %v, want %v", tt.n, got, tt.want)
		}
	}
	for _, x := range []int{0, 1} {
		if _, ok := p.Take(monday.Add(time.Duration(x)*day), "", 1); ok {
			t.Errorf("something to take on day %d", x)
		}
	}
	at := monday.Add(2 * day)
	if got := p.wait(t, &d, at, "", 1); got != 0 {
		t.Errorf("waits %v on the day", got)
	}
	if got := p.Today(at); got.Stage != 0 || got.Cap != 240 {
		t.Errorf("%+v", got)
	}
}

func TestReconfigure(t *testing.T) {
	var d disk
	noon := monday.Add(12 * time.Hour)
	p := start(thousand, "a")
	p.send(t, &d, noon)
	if got := p.Today(noon); got.Used != 10 || got.Cap != 240 {
		t.Fatalf("%+v", got)
	}
	p.Reconfigure(warmup.Config{Curve: []int{15}})
	if got := p.Today(noon); got.Used != 10 || got.Cap != 15 {
		t.Errorf("a smaller cap: %+v", got)
	}
	evening := monday.Add(23 * time.Hour)
	if p.wait(t, &d, evening, "", 5) != 0 || p.wait(t, &d, evening, "", 6) == 0 {
		t.Error("5 of 15 are left")
	}
	p.Reconfigure(warmup.Config{Curve: []int{5}})
	if got := p.Today(noon); got.Used != 5 || got.Cap != 5 || p.wait(t, &d, evening, "", 1) < time.Hour {
		t.Errorf("less than was used: %+v", got)
	}
	p.Reconfigure(thousand)
	tomorrow := monday.Add(day)
	p.send(t, &d, tomorrow)
	if got := p.Today(tomorrow); got.Stage != 1 || got.Used == 0 {
		t.Fatalf("%+v", got)
	}
	used := p.Today(tomorrow).Used
	again := thousand
	again.Start = warmup.On(tomorrow)
	p.Reconfigure(again)
	for range 2 {
		if got := p.Today(tomorrow); got.Stage != 0 || got.Cap != 240 || got.Used != used {
			t.Errorf("begun again: %+v, used before %d", got, used)
		}
		p.Held(tomorrow)
		p.sync(t, &d, tomorrow)
		p = start(again, "b") // and it isn't begun a third time
		p.sync(t, &d, tomorrow)
		used = p.Today(tomorrow).Used // with the rest of the lease
	}
	if got := p.Today(tomorrow.Add(2 * day)); got.Stage != 1 {
		t.Errorf("a day after it was held: %+v", got)
	}
}

// Nothing is taken before what is stored is known.
func TestUnknown(t *testing.T) {
	p := start(thousand, "a")
	if wait := p.Wait(monday, "", 1); wait <= 0 || wait > time.Second || !p.Dirty(monday) || !p.NeedsLoad(monday) {
		t.Errorf("waits %v", wait)
	}
	if _, ok := p.Take(monday, "", 1); ok || p.Today(monday).Known {
		t.Error("something to take")
	}
	if _, ok := p.Draft(monday); ok {
		t.Error("something to store")
	}
	for _, pause := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		p.Failed(monday, warmup.Draft{})
		if wait := p.Wait(monday, "", 1); wait != pause*time.Second {
			t.Errorf("waits %v for a store that has failed, want %v", wait, pause*time.Second)
		}
		if p.Dirty(monday) || p.NeedsLoad(monday) || !p.NeedsLoad(monday.Add(pause*time.Second)) {
			t.Error("it isn't left alone, or for too long")
		}
	}
}

// With a store that fails, the lease is all there is; then the wait is for the store, and there is one again when it is well.
func TestStoreFails(t *testing.T) {
	var d disk
	noon := monday.Add(12 * time.Hour)
	p := start(thousand, "a")
	p.wait(t, &d, noon, "", 1)
	now, used := noon, 0
	for range 1000 {
		if _, ok := p.Take(now, "", 1); ok {
			used++
		}
		if draft, ok := p.Draft(now); ok {
			p.Failed(now, draft)
		}
		now = now.Add(time.Second)
	}
	if used != 10 {
		t.Errorf("%d used of a lease of 10", used)
	}
	if wait := p.Wait(now, "", 1); wait <= 0 || wait > time.Minute {
		t.Errorf("waits %v", wait)
	}
	now = now.Add(time.Minute)
	if n := p.send(t, &d, now); n == 0 {
		t.Error("nothing when the store is well again")
	}
}

// A write of which nobody knows whether it was carried out may have been, may not have been, and may be later. What it grants is granted once.
func TestUnknownWrite(t *testing.T) {
	noon := monday.Add(12 * time.Hour)
	for _, tt := range []struct {
		name  string
		write func(p *process, d *disk, draft warmup.Draft)
		left  int // of the first lease of 10 and the second of 5
		used  int // with both
		gone  int64
	}{
		{name: "it was", left: 10, used: 5, gone: 7, write: func(_ *process, d *disk, draft warmup.Draft) { d.put(t, draft.Record) }},
		{name: "it wasn't", left: 10, used: 5, gone: 7, write: func(*process, *disk, warmup.Draft) {}},
		{name: "it is while the next is made", left: 10, used: 5, gone: 7, write: func(p *process, d *disk, draft warmup.Draft) {
			at := noon.Add(time.Hour)
			if !p.NeedsLoad(at) {
				t.Fatal("not asked for")
			}
			p.Adopt(d.record)
			next, ok := p.Draft(at)
			if !ok {
				t.Fatal("nothing to store")
			}
			d.put(t, draft.Record)
			p.Refused(next)
		}},
		{name: "somebody wrote after it", left: 5, used: 10, gone: 7, write: func(_ *process, d *disk, draft warmup.Draft) {
			d.put(t, draft.Record)
			(&process{Schedule: start(thousand, "b").Schedule}).note(t, d)
		}},
		{name: "somebody wrote in its place", left: 5, used: 5, gone: 0, write: func(_ *process, d *disk, _ warmup.Draft) {
			(&process{Schedule: start(thousand, "b").Schedule}).note(t, d)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var d disk
			cfg := thousand
			cfg.OnDelivery = true
			p := start(cfg, "a")
			p.wait(t, &d, noon, "", 1)
			for range 6 {
				if _, ok := p.Take(noon, "", 1); !ok {
					t.Fatal("not taken")
				}
			}
			p.Delivered(noon, 7)
			draft, ok := p.Draft(noon)
			if !ok {
				t.Fatal("nothing to store")
			}
			p.Failed(noon, draft)
			tt.write(p, &d, draft)
			at := noon.Add(time.Hour)
			if !p.NeedsLoad(at) {
				t.Fatal("what is stored isn't asked for")
			}
			p.sync(t, &d, at)
			p.Release(at)
			before := d.record.Days[0].Granted
			p.sync(t, &d, at)
			after := d.record.Days[0]
			if after.Granted != 6+lost(tt.name) || before-after.Granted < 4 {
				t.Errorf("%d were granted, and %d after what was left was given back", before, after.Granted)
			}
			if after.Delivered != tt.gone {
				t.Errorf("%d were delivered, of %d", after.Delivered, tt.gone)
			}
		})
	}
}

// lost is how much of the second lease went nowhere.
func lost(name string) int {
	if name == "somebody wrote after it" {
		return 6
	}
	return 0
}

// note writes something.
func (p *process) note(t testing.TB, d *disk) {
	p.Held(monday.Add(13 * time.Hour))
	p.sync(t, d, monday.Add(13*time.Hour))
}

func TestRelease(t *testing.T) {
	var d disk
	p := start(thousand, "a")
	p.send(t, &d, monday)
	noon := monday.Add(12 * time.Hour)
	p.wait(t, &d, noon, "", 60)
	x, _ := p.Take(noon, "", 1)
	p.Release(noon)
	if _, ok := p.Take(noon, "", 1); ok {
		t.Error("something to take")
	}
	p.Return(&x, 1)
	if _, ok := p.Take(noon, "", 1); ok {
		t.Error("something to take, of what was given back")
	}
	if !p.Dirty(noon) {
		t.Error("there is something to give back")
	}
	p.sync(t, &d, noon)
	if got := d.record.Days[0].Granted; got != 11 || p.Dirty(noon) || p.Today(noon).Used != 11 {
		t.Errorf("%d are used, of 11: %+v", got, p.Today(noon))
	}
	p.Release(noon)
	p.sync(t, &d, noon)
	if got := d.record.Days[0].Granted; got != 11 {
		t.Errorf("released twice: %d are used, of 11", got)
	}
}

// A clock that is set back finds what was used on the days it comes to again, and never waits longer than for the day's end.
func TestClockBack(t *testing.T) {
	var d disk
	p := start(thousand, "a")
	used := make(map[int]int)
	use := func(x int) (n int) { // all that there is in the day's last hour
		for at := monday.Add(time.Duration(x)*day + 23*time.Hour); at.Before(monday.Add(time.Duration(x+1) * day)); at = at.Add(time.Minute) {
			for p.wait(t, &d, at, "", 1) == 0 {
				if _, ok := p.Take(at, "", 1); !ok {
					t.Fatal("nothing to take after no wait")
				}
				n++
			}
		}
		used[x] += n
		return n
	}
	for range 20 {
		for _, x := range []int{0, 1, 0, 1, 2, 0} {
			use(x)
		}
	}
	for x, most := range []int{240, 480, 960} { // of which a lease is lost with each change of the day
		if used[x] > most || used[x] < most*3/4 {
			t.Errorf("day %d: %d used of %d", x, used[x], most)
		}
	}

	// Wrong by years for longer than is remembered, then right again: one day is lost, and no more.
	p.Reconfigure(warmup.Config{Curve: []int{10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120, 130, 140, 150}})
	for x := range 10 {
		if use(4000+x) == 0 {
			t.Fatal("nothing to take")
		}
	}
	if n := use(3); n != 0 {
		t.Errorf("%d on a day of which nobody knows what was sent", n)
	}
	for x := 4; x < 16; x++ {
		if n := use(x); n == 0 {
			t.Errorf("nothing on day %d", x)
		}
	}
	at := monday.Add(16*day + time.Hour)
	if got := p.wait(t, &d, at, "", 1); got > day {
		t.Errorf("the day after waits %v", got)
	}
}

// Times of a moment ago come late, and neither move the day back nor cost a lease.
func TestMidnight(t *testing.T) {
	var d disk
	p := start(thousand, "a")
	before, after := monday.Add(day-time.Millisecond), monday.Add(day+time.Millisecond)
	p.wait(t, &d, after, "", 1)
	for range 5 {
		if _, ok := p.Take(before, "", 1); !ok {
			t.Fatal("the day went back")
		}
		if _, ok := p.Take(after, "", 1); !ok {
			t.Fatal("the lease is lost")
		}
	}
	if got := p.Today(before); got.Used != 10 || got.Cap != 240 {
		t.Errorf("%+v", got)
	}
}
