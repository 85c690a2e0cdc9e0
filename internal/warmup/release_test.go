package warmup_test

import (
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/warmup"
)

// A lease that comes after the Release is nobody's.
func TestReleaseBeforeLease(t *testing.T) {
	p := start(thousand, "a")
	p.Adopt(nil)
	p.Wait(monday, "", 1)
	draft, ok := p.Draft(monday)
	if !ok {
		t.Fatal("nothing to store")
	}
	p.Release(monday)
	p.Stored(draft)
	if _, ok := p.Take(monday, "", 1); ok {
		t.Error("something to take")
	}
	back, ok := p.Draft(monday) // it is given back: the day would have so much less
	if !ok || dayOf(back.Record, warmup.On(monday)).Granted != 0 || dayOf(draft.Record, warmup.On(monday)).Granted == 0 {
		t.Fatalf("%v: %+v", ok, back.Record)
	}
	p.Stored(back)
	if again, ok := p.Draft(monday); ok {
		t.Errorf("and again: %+v", again.Record)
	}
}

// So is what of a lease was used before.
func TestReleaseBeforeSecondLease(t *testing.T) {
	cfg := thousand
	cfg.PerProvider = map[string][]int{"gmail": {240}}
	noon := monday.Add(12 * time.Hour)
	p := start(cfg, "a")
	p.Adopt(nil)
	p.Wait(noon, "gmail", 3)
	first, _ := p.Draft(noon)
	p.Stored(first)
	if _, ok := p.Take(noon, "gmail", 3); !ok {
		t.Fatal("nothing to take")
	}
	if _, ok := p.Take(noon, "", 4); !ok {
		t.Fatal("nothing more to take")
	}
	second, ok := p.Draft(noon) // half of it is used
	if !ok {
		t.Fatal("no second lease")
	}
	p.Release(noon)
	p.Stored(second)
	back, ok := p.Draft(noon)
	if day := dayOf(back.Record, warmup.On(noon)); !ok || day.Granted != 7 || day.Providers["gmail"] != 3 {
		t.Errorf("%v: %+v", ok, back.Record)
	}
}

// Of two writes of which nobody knows whether they were carried out, the one counts that was.
func TestTwoUnknownWrites(t *testing.T) {
	evening := monday.Add(23 * time.Hour)
	p := start(thousand, "a")
	p.Adopt(nil)
	p.Wait(evening, "", 1)
	first, _ := p.Draft(evening)
	p.Failed(evening, first)
	later := evening.Add(time.Minute)
	p.Adopt(nil)
	p.Wait(later, "", 100)
	second, ok := p.Draft(later)
	if !ok {
		t.Fatal("nothing to store")
	}
	p.Failed(later, second)
	later = later.Add(time.Minute)
	p.Adopt(second.Record)
	if wait := p.Wait(later, "", 100); wait != 0 {
		t.Errorf("100 wait %v", wait)
	}
}

// What was delivered is told again where another's write came first.
func TestRefused(t *testing.T) {
	var d disk
	cfg := thousand
	cfg.OnDelivery = true
	a, b := start(cfg, "a"), start(cfg, "b")
	a.sync(t, &d, monday)
	b.sync(t, &d, monday)
	for range 2 {
		a.Delivered(monday, 5)
		b.Delivered(monday, 7)
		a.sync(t, &d, monday)
		b.sync(t, &d, monday)
	}
	if got := d.record.Days[0].Delivered; got != 24 {
		t.Errorf("%d delivered of 24", got)
	}
}

// A record that somebody has put back doesn't give a process again what it has used.
func TestPutBack(t *testing.T) {
	var d disk
	p := start(warmup.Config{Curve: []int{24}}, "a")
	evening := monday.Add(23 * time.Hour)
	p.wait(t, &d, evening, "", 1)
	old := d.record
	n := 0
	for at := evening; at.Before(monday.Add(day)); at = at.Add(time.Minute) {
		for range 4 {
			if _, ok := p.Take(at, "", 1); ok {
				n++
			}
			p.wait(t, &d, at, "", 1)
		}
		if at.Minute() == 59 {
			break
		}
	}
	d.record = old
	p.Adopt(old)
	p.seen = old
	if got := p.Today(evening.Add(59 * time.Minute)); got.Used != n || n == 0 {
		t.Errorf("%+v after %d", got, n)
	}
}
