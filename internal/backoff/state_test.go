package backoff_test

import (
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/smtplb/smtplb/internal/backoff"
)

// clock is a State and a time that passes when told.
type clock struct {
	*backoff.State
	t   *testing.T
	now time.Time
}

func newClock(t *testing.T, cfg backoff.Config) *clock {
	now := time.Date(2026, 1, 1, 12, 3, 0, 0, time.UTC)
	return &clock{State: backoff.New(cfg, now), t: t, now: now}
}

func (c *clock) after(d time.Duration) { c.now = c.now.Add(d) }

// signal has a reply come to something that was begun a moment ago.
func (c *clock) signal(g backoff.Signal) bool {
	g.Began = c.now.Add(-time.Nanosecond)
	return c.Signal(c.now, g)
}

func (c *clock) throttle() bool {
	return c.signal(backoff.Signal{Kind: backoff.Throttle, Reply: "451 slow"})
}

func (c *clock) wants(what string, got, want any) {
	c.t.Helper()
	if a, ok := got.(float64); ok {
		if b, ok := want.(float64); ok && math.Abs(a-b) < 1e-9*math.Max(1, b) {
			return
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		c.t.Errorf("%s: %s (-want +got):\n%s", c.now.Format(time.TimeOnly), what, d)
	}
}

func (c *clock) suspendedFor(d time.Duration) {
	c.t.Helper()
	until, _ := c.Suspended(c.now)
	got := time.Duration(0)
	if !until.IsZero() {
		got = until.Sub(c.now)
	}
	c.wants("suspended for", got, d)
}

func TestWindow(t *testing.T) {
	for most, want := range map[int]int{1: 1, 3: 3, 10: 5, 0: 5, -1: 5} {
		newClock(t, backoff.Config{MaxConns: most}).wants("the first window", backoff.New(backoff.Config{MaxConns: most}, time.Time{}).Window(time.Time{}), want)
	}
	c := newClock(t, backoff.Config{MaxConns: 8})
	for range 6 { // 5 + 1/5 + 1/5.2 …
		c.Success(c.now, 5)
	}
	c.wants("after six successes", c.Window(c.now), 6)
	for range 100 {
		c.Success(c.now, 8)
	}
	c.wants("the limit", c.Window(c.now), 8)

	c = newClock(t, backoff.Config{MaxConns: 100})
	for range 1000 {
		c.Success(c.now, 3)
	}
	c.wants("with three in use", c.Window(c.now), 8) // up to 3 + 5, and the last step from below it

	for range 4 {
		c.ConnectFailure(c.now)
	}
	c.wants("after four failures", c.Window(c.now), 7)
	for range 100 {
		c.ConnectFailure(c.now)
	}
	c.wants("after many failures", c.Window(c.now), 1)
}

func TestWindowIsHalvedOnceAMinute(t *testing.T) {
	c := newClock(t, backoff.Config{MaxConns: 5, Rate: 10})
	c.wants("an effect", c.throttle(), true)
	c.wants("W", c.Window(c.now), 3)
	c.after(59 * time.Second)
	c.throttle()
	c.wants("W within the minute", c.Window(c.now), 3)
	c.after(time.Second)
	c = newClock(t, backoff.Config{MaxConns: 5, Rate: 10})
	c.throttle()
	c.after(time.Minute)
	c.throttle()
	c.wants("W after a minute", c.Window(c.now), 2)
}

func TestConnectionCount(t *testing.T) {
	c := newClock(t, backoff.Config{MaxConns: 10, Rate: 10})
	for range 100 {
		c.Success(c.now, 10)
	}
	c.wants("W", c.Window(c.now), 10)
	c.signal(backoff.Signal{Kind: backoff.Connections, InUse: 8})
	c.wants("W is halved", c.Window(c.now), 5)
	c.wants("the rate is not", c.Rate(c.now), 10.0)
	c.suspendedFor(0)
	for range 100 {
		c.Success(c.now, 7)
	}
	c.wants("seven went well", c.Window(c.now), 7)
	c.wants("a lower one counts at once", c.signal(backoff.Signal{Kind: backoff.Connections, InUse: 5}), true)
	c.wants("four went well", c.Window(c.now), 4)
	c.wants("what says nothing new has no effect", c.signal(backoff.Signal{Kind: backoff.Connections, InUse: 5}), false)
	c.after(time.Hour - time.Second)
	for range 100 {
		c.Success(c.now, 10)
	}
	c.wants("it is remembered", c.Window(c.now), 4)
	c.after(2 * time.Second)
	for range 200 {
		c.Success(c.now, 10)
	}
	c.wants("for an hour", c.Window(c.now), 10)
	c.signal(backoff.Signal{Kind: backoff.Connections})
	for range 200 {
		c.Success(c.now, 10)
	}
	c.wants("without a number it is one less", c.Window(c.now), 9)
}

// TestConnectionsTooOften has a relay refuse connections however few there are: nothing is sent for a while then, longer each time until a message is taken.
func TestConnectionsTooOften(t *testing.T) {
	c := newClock(t, backoff.Config{MaxConns: 10}) // no rate
	refused := func(began time.Time) bool {
		return c.Signal(c.now, backoff.Signal{Kind: backoff.Connections, InUse: 1, Began: began})
	}
	c.wants("the first", refused(c.now), true)
	c.suspendedFor(0)
	began := c.now
	c.wants("one is the least", c.Window(c.now), 1)
	c.after(time.Millisecond)
	for _, d := range []time.Duration{1, 2, 4, 8} {
		c.wants("one all the same", refused(c.now), true)
		c.suspendedFor(d * time.Second)
		c.wants("what was begun before says nothing", refused(began), false)
		c.suspendedFor(d * time.Second)
		began = c.now
		c.after(d * time.Second)
	}
	c.wants("rate", c.Rate(c.now), 0.0)
	c.Success(c.now, 1)
	c.wants("one again", refused(c.now), true)
	c.suspendedFor(time.Second)
}

// TestDialsTooOften: of connections that were refused before there was a message on them nothing follows but fewer at a time; that they are opened too often is told.
func TestDialsTooOften(t *testing.T) {
	c := newClock(t, backoff.Config{MaxConns: 10})
	refused := func(wantActed, wantOften bool, began time.Time) {
		t.Helper()
		acted, often := c.SignalDial(c.now, backoff.Signal{Kind: backoff.Connections, InUse: 1, Began: began})
		if acted != wantActed || often != wantOften {
			t.Errorf("acted %v, often %v", acted, often)
		}
		c.suspendedFor(0)
	}
	refused(true, false, c.now)
	c.after(time.Second)
	refused(false, false, c.now.Add(-2*time.Second)) // it was begun before
	refused(false, true, c.now)
	refused(false, false, c.now) // with the last
	c.after(time.Second)
	refused(false, true, c.now)
	c.after(time.Minute)
	refused(true, false, c.now) // W is halved once a minute
	c.wants("rate", c.Rate(c.now), 0.0)
	if acted, often := c.SignalDial(c.now, backoff.Signal{Kind: backoff.Throttle}); !acted || often {
		t.Errorf("a throttle: acted %v, often %v", acted, often)
	}
}

func TestThrottleHalvesTheRate(t *testing.T) {
	c := newClock(t, backoff.Config{MaxConns: 10, Rate: 10})
	c.wants("at first", c.Rate(c.now), 10.0)
	began := c.now
	c.after(time.Second)
	c.throttle()
	c.suspendedFor(time.Second)
	c.wants("a tenth less than half", c.Rate(c.now), 4.5)
	c.wants("what was begun before says nothing", c.Signal(c.now.Add(10*time.Millisecond), backoff.Signal{Kind: backoff.Throttle, Began: began}), false)
	c.wants("nor what can't have been begun since", c.Signal(c.now.Add(2*time.Second), backoff.Signal{Kind: backoff.Throttle}), false)
	c.suspendedFor(time.Second)
	c.after(31 * time.Second)
	c.wants("half", c.Rate(c.now), 5.0)
	c.throttle()
	c.wants("a quarter", c.Rate(c.now), 0.9*2.5)
	c.suspendedFor(2 * time.Second) // no message went well since
	c.wants("no back-off mode", c.Mode(c.now), false)
	c.after(31 * time.Second)
	c.Success(c.now, 1)
	c.after(time.Hour)
	c.wants("forgotten", c.Rate(c.now), 10.0)
	c.wants("what to say", c.Snapshot(c.now).String(), "")
}

func TestSlowest(t *testing.T) {
	c := newClock(t, backoff.Config{Rate: 0.03})
	c.throttle()
	c.wants("a message a minute is the least", c.Rate(c.now), 1.0/60)
	c.suspendedFor(time.Minute)
}

func TestMeasuredRate(t *testing.T) {
	c := newClock(t, backoff.Config{MaxConns: 10})
	c.wants("any", c.Rate(c.now), 0.0)
	for range 20 * 90 { // 20 a second for a minute and a half
		c.after(50 * time.Millisecond)
		c.Success(c.now, 1)
	}
	c.after(50 * time.Millisecond)
	c.throttle()
	if r := c.Rate(c.now); r < 0.9*9.8 || r > 0.9*10.2 {
		t.Errorf("half of the measured rate is %v, want 10", r/0.9)
	}
	c = newClock(t, backoff.Config{})
	c.throttle()
	c.wants("nothing is measured", c.Rate(c.now), 0.45)
}

func TestBackOffMode(t *testing.T) {
	enter := func(c *clock) {
		c.t.Helper()
		for range 3 {
			c.after(10 * time.Second)
			c.throttle()
		}
		c.wants("back-off mode", c.Mode(c.now), true)
	}
	c := newClock(t, backoff.Config{MaxConns: 10, Rate: 100})
	enter(c)
	c.wants("a tenth", c.Rate(c.now), 10.0)
	c.wants("one connection", c.Window(c.now), 1)
	for range 20 {
		c.Success(c.now, 1)
	}
	c.after(59 * time.Second)
	c.wants("a minute at the least", c.Mode(c.now), true)
	c.after(time.Second)
	c.wants("left", c.Mode(c.now), false)
	c.wants("from where it was", c.Rate(c.now), 10.0)

	// Nine are not enough, and what is refused begins them anew.
	enter(c)
	c.after(2 * time.Minute)
	for range 9 {
		c.Success(c.now, 1)
	}
	c.wants("after nine", c.Mode(c.now), true)
	c.throttle()
	r := c.Rate(c.now)
	c.wants("half of the tenth", r < 10, true)
	for range 9 {
		c.Success(c.now, 1)
	}
	c.wants("after nine more", c.Mode(c.now), true)
	c.Success(c.now, 1)
	c.wants("after ten", c.Mode(c.now), false)

	// The longest doubles with each re-entry.
	c = newClock(t, backoff.Config{MaxConns: 10, Rate: 100})
	for _, d := range []time.Duration{30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour, 4 * time.Hour} {
		enter(c)
		c.after(d - time.Second)
		c.wants(fmt.Sprintf("not before %v", d), c.Mode(c.now), true)
		c.after(time.Second)
		c.wants(fmt.Sprintf("after %v", d), c.Mode(c.now), false)
	}
	c.after(4 * time.Hour)
	enter(c)
	c.after(30 * time.Minute)
	c.wants("after four hours without it", c.Mode(c.now), false)

	// Three within five minutes are needed.
	c = newClock(t, backoff.Config{MaxConns: 10, Rate: 100})
	for range 5 {
		c.after(151 * time.Second)
		c.throttle()
	}
	c.wants("throttles far from each other", c.Mode(c.now), false)

	// A rule says so.
	c = newClock(t, backoff.Config{MaxConns: 10, Rate: 100})
	c.signal(backoff.Signal{Kind: backoff.Throttle, BackOff: true, For: 10 * time.Minute})
	c.wants("at once", c.Mode(c.now), true)
	c.wants("a tenth", c.Rate(c.now), 10.0)
	c.suspendedFor(time.Second)
	c.after(10 * time.Minute)
	c.wants("for as long as it says", c.Mode(c.now), false)
}

func TestQuota(t *testing.T) {
	c := newClock(t, backoff.Config{MaxConns: 10, Rate: 100})
	c.signal(backoff.Signal{Kind: backoff.Quota, Reply: "454 daily"})
	c.suspendedFor(time.Hour)
	_, why := c.Suspended(c.now)
	c.wants("why", why, "454 daily")
	c.Success(c.now, 3) // was under way
	c.suspendedFor(time.Hour)
	c.after(time.Hour)
	c.suspendedFor(0)
	c.wants("one probe", c.Window(c.now), 1)
	c.signal(backoff.Signal{Kind: backoff.Quota})
	c.suspendedFor(time.Hour)
	c.after(61 * time.Minute)
	c.wants("one probe again", c.Window(c.now), 1)
	c.Success(c.now, 1)
	c.wants("over", c.Window(c.now) > 1, true)
	c.wants("the rate was not touched", c.Rate(c.now), 100.0)
	c.signal(backoff.Signal{Kind: backoff.Quota, For: 70 * time.Second})
	c.suspendedFor(70 * time.Second)
}

func TestHintIsHonoured(t *testing.T) {
	c := newClock(t, backoff.Config{MaxConns: 10, Rate: 100})
	c.signal(backoff.Signal{Kind: backoff.Throttle, For: 102 * time.Second})
	c.suspendedFor(102 * time.Second)
	c.wants("halved too", c.Rate(c.now), 45.0)
	c.after(time.Second)
	c.throttle()
	c.suspendedFor(101 * time.Second) // a shorter one takes nothing away
	c.signal(backoff.Signal{Kind: backoff.Connections, For: 200 * time.Second})
	c.suspendedFor(200 * time.Second)
	c.signal(backoff.Signal{Kind: backoff.Quota, For: 240 * time.Hour})
	c.suspendedFor(24 * time.Hour)
}

func TestSignalsWithoutEffect(t *testing.T) {
	c := newClock(t, backoff.Config{MaxConns: 10, Rate: 100})
	before := c.Snapshot(c.now)
	for _, k := range []backoff.Kind{backoff.None, backoff.Greylist, backoff.Block} {
		c.wants(k.String(), c.signal(backoff.Signal{Kind: k, For: time.Minute}), false)
	}
	c.wants("state", c.Snapshot(c.now), before)
}

func TestThreshold(t *testing.T) {
	c := newClock(t, backoff.Config{MaxConns: 10, Rate: 100})
	r := &backoff.Rule{Threshold: 3, Per: time.Minute}
	quota := func() bool { return c.signal(backoff.Signal{Kind: backoff.Quota, Rule: r}) }
	c.wants("the first", quota(), false)
	c.after(30 * time.Second)
	c.wants("the second", quota(), false)
	c.after(30 * time.Second)
	c.wants("the third, when the first is too long ago", quota(), false)
	c.suspendedFor(0)
	c.after(29 * time.Second)
	c.wants("the third within a minute", quota(), true)
	c.suspendedFor(time.Hour)
	c.wants("another rule's don't count", c.signal(backoff.Signal{Kind: backoff.Quota, Rule: &backoff.Rule{Threshold: 2, Per: time.Minute}}), false)
}

func TestReconfigure(t *testing.T) {
	c := newClock(t, backoff.Config{MaxConns: 10, Rate: 100})
	c.throttle()
	c.after(31 * time.Second)
	c.Reconfigure(backoff.Config{MaxConns: 2, Rate: 60}, c.now)
	c.wants("what was learnt stays", c.Rate(c.now), 50.0)
	c.wants("window", c.Window(c.now), 2)
	c.Reconfigure(backoff.Config{MaxConns: 2, Rate: 40}, c.now)
	c.wants("as far as it is less", c.Rate(c.now), 40.0)
	c.Reconfigure(backoff.Config{MaxConns: 2, Rate: 80}, c.now)
	c.wants("else it is forgotten", c.Rate(c.now), 80.0)
	for _, r := range []float64{math.NaN(), math.Inf(1), -3} {
		c.Reconfigure(backoff.Config{Rate: r}, c.now)
		c.wants("no rate", c.Rate(c.now), 0.0)
	}
	c = newClock(t, backoff.Config{MaxConns: 10, Rate: 100})
	c.signal(backoff.Signal{Kind: backoff.Throttle, BackOff: true})
	c.Reconfigure(backoff.Config{MaxConns: 10, Rate: 5}, c.now)
	c.wants("in back-off mode", c.Rate(c.now), 5.0)
	c.wants("which stays", c.Mode(c.now), true)
}

// TestReputationTakesHours has the steps be hours.
func TestReputationTakesHours(t *testing.T) {
	c := newClock(t, backoff.Config{MaxConns: 10, Rate: 1, Step: time.Hour})
	c.throttle()
	c.after(time.Second)
	for range 59 * 60 {
		c.after(time.Second)
		c.Success(c.now, 1)
	}
	c.wants("within the hour", c.Rate(c.now), 0.5)
	for range 100 {
		c.after(time.Second)
		c.Success(c.now, 1)
	}
	c.wants("after the hour", c.Rate(c.now), 0.75)
}

func TestSnapshot(t *testing.T) {
	c := newClock(t, backoff.Config{MaxConns: 10, Rate: 25})
	c.wants("at first", c.Snapshot(c.now).String(), "")
	c.signal(backoff.Signal{Kind: backoff.Throttle, Reply: "421 4.7.28 unusual"})
	c.wants("at once", c.Snapshot(c.now).String(), "halved at 12:03 (421 4.7.28 unusual), 11.2/s of 25/s, window 3 of 10, nothing until 12:03:01")
	c.after(time.Minute)
	c.wants("a minute later", c.Snapshot(c.now).String(), "halved at 12:03 (421 4.7.28 unusual), 12.5/s of 25/s, window 3 of 10")
	c.signal(backoff.Signal{Kind: backoff.Quota, Reply: "454 daily"})
	c.wants("a quota", c.Snapshot(c.now).String(), "quota used up at 12:04 (454 daily), 12.5/s of 25/s, window 1 of 10, nothing until 13:04:00")
	c = newClock(t, backoff.Config{Rate: 0.5})
	c.signal(backoff.Signal{Kind: backoff.Throttle, BackOff: true, Reply: "451 x"})
	c.after(time.Minute)
	c.wants("back-off mode", c.Snapshot(c.now).String(), "back-off mode at 12:03 (451 x), 3/min of 30/min, window 1 until 12:33 at the latest")
	c = newClock(t, backoff.Config{MaxConns: 4})
	c.signal(backoff.Signal{Kind: backoff.Connections, Reply: "421 many"})
	c.wants("connections", c.Snapshot(c.now).String(), "fewer connections at 12:03 (421 many), window 2 of 4")
}

// TestConcurrentUse is for the race detector.
func TestConcurrentUse(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := backoff.New(backoff.Config{MaxConns: 10, Rate: 100}, start)
	rule := &backoff.Rule{Threshold: 2, Per: time.Hour}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 500 {
				now := start.Add(time.Duration(n) * time.Second)
				switch (n + i) % 8 {
				case 0:
					s.Signal(now, backoff.Signal{Kind: backoff.Kind(n % 6), Rule: rule})
				case 1:
					s.ConnectFailure(now)
				case 2:
					s.Reconfigure(backoff.Config{MaxConns: n % 20, Rate: float64(n % 3)}, now)
				case 3:
					s.Suspended(now)
				case 4:
					_ = s.Snapshot(now).String()
				default:
					s.Success(now, n%10)
				}
				if w := s.Window(now); w < 1 {
					t.Errorf("window %d", w)
				}
				if r := s.Rate(now); r < 0 || r != r {
					t.Errorf("rate %v", r)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkSuccess(b *testing.B) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := backoff.New(backoff.Config{MaxConns: 10, Rate: 100}, now)
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(10 * time.Millisecond)
		s.Success(now, 5)
	}
}

func BenchmarkRate(b *testing.B) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := backoff.New(backoff.Config{MaxConns: 10, Rate: 100}, now)
	b.ReportAllocs()
	for b.Loop() {
		s.Rate(now)
	}
}
