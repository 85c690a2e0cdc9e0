package warmup_test

import (
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/warmup"
)

// A restart is no reason for another twenty-fourth of the day's cap to go out at once, whether the process has ended with a Release or without; nor is it one to wait for longer.
func TestRestartIsNoBurst(t *testing.T) {
	noon := monday.Add(12 * time.Hour)
	for _, x := range []struct {
		name     string
		take     int
		release  bool
		meantime time.Duration
		want     int
	}{
		{"released", 10, true, 0, 0},
		{"half used, and released", 5, true, 0, 5},
		{"half used, and released, and half of it has come again", 5, true, 3*time.Minute + 45*time.Second, 7},
		{"ended", 10, false, 0, 0},
		{"ended with half unused", 5, false, 0, 0}, // nobody can know that
		{"ended, and a third has come again", 10, false, 5 * time.Minute, 3},
		{"ended, and all has come again", 10, false, 15 * time.Minute, 10},
	} {
		for _, provider := range []string{"", "gmail"} {
			t.Run(x.name+" "+provider, func(t *testing.T) {
				cfg := warmup.Config{Curve: []int{240}}
				if provider != "" {
					cfg = warmup.Config{Curve: []int{24_000}, PerProvider: map[string][]int{provider: {240}}}
				}
				send := func(p *process, d *disk, now time.Time, most int) (n int) {
					for n < most && p.wait(t, d, now, provider, 1) == 0 {
						if _, ok := p.Take(now, provider, 1); !ok {
							t.Fatal("nothing to take after no wait")
						}
						n++
					}
					return n
				}
				var d disk
				p := start(cfg, "a")
				if n := send(p, &d, noon, x.take); n != x.take {
					t.Fatalf("%d at once", n)
				}
				if x.release {
					p.Release(noon)
					p.sync(t, &d, noon)
				}
				later := noon.Add(x.meantime)
				next := start(cfg, "b")
				if n := send(next, &d, later, 1000); n != x.want {
					t.Errorf("%d more at once, not %d: %+v", n, x.want, d.record)
				}
			})
		}
	}
}

// A record of which nobody wrote that down, and one of a clock that is far ahead, hold nobody up for long.
func TestRestartFromOldRecord(t *testing.T) {
	noon := monday.Add(12 * time.Hour)
	for _, x := range []struct {
		full string
		wait time.Duration
	}{{"", 0}, {`,"full":9000000000000000000`, 90 * time.Second}} {
		r, err := warmup.Decode([]byte(`{"version":1,"writer":"a","seq":1,"used":"2026-03-02","days":[{"day":"2026-03-02","stage":0,"granted":10}]` + x.full + `}`))
		if err != nil {
			t.Fatal(err)
		}
		d := disk{r}
		p := start(warmup.Config{Curve: []int{240}}, "b")
		if wait := p.wait(t, &d, noon, "", 1); wait != x.wait {
			t.Errorf("%q: %v, not %v", x.full, wait, x.wait)
		}
	}
}

// Processes that share a day are not held up by each other's bursts once they run.
func TestSharedDayIsNoRestart(t *testing.T) {
	var d disk
	noon := monday.Add(12 * time.Hour)
	a, b := start(warmup.Config{Curve: []int{240}}, "a"), start(warmup.Config{Curve: []int{240}}, "b")
	a.sync(t, &d, noon)
	b.sync(t, &d, noon)
	if n := b.send(t, &d, noon); n != 10 {
		t.Errorf("%d at once", n)
	}
	if n := a.send(t, &d, noon); n != 10 {
		t.Errorf("%d at once beside another process", n)
	}
}

// What a process of several has sent at once is not forgotten when another one writes, as it ends.
func TestRestartBesideAnother(t *testing.T) {
	var d disk
	noon := monday.Add(12 * time.Hour)
	cfg := warmup.Config{Curve: []int{240}}
	a, b := start(cfg, "a"), start(cfg, "b")
	a.sync(t, &d, noon)
	b.sync(t, &d, noon)
	a.wait(t, &d, noon, "", 1)
	if n := b.send(t, &d, noon); n != 10 {
		t.Fatalf("%d at once", n)
	}
	a.Release(noon)
	a.sync(t, &d, noon)
	if d.record.Writer != "a" {
		t.Fatalf("the last to write is %s", d.record.Writer)
	}
	if n := start(cfg, "c").send(t, &d, noon); n != 0 { // in the place of b
		t.Errorf("%d more at once: %+v", n, d.record)
	}
}

// What was granted a while ago may go out at once, and the process end, after it has written something else.
func TestRestartAfterAnIdleLease(t *testing.T) {
	var d disk
	noon := monday.Add(12 * time.Hour)
	cfg := warmup.Config{Curve: []int{240}}
	a := start(cfg, "a")
	a.wait(t, &d, noon.Add(-time.Hour), "", 1)
	a.Held(noon)
	a.sync(t, &d, noon)
	if _, ok := a.Take(noon, "", 10); !ok {
		t.Fatal("nothing to take")
	}
	if n := start(cfg, "b").send(t, &d, noon); n != 0 {
		t.Errorf("%d more at once: %+v", n, d.record)
	}
}
