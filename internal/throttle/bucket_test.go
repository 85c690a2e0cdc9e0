package throttle_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/throttle"
)

const day = 24 * time.Hour

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func mustParse(t testing.TB, s string) throttle.Rate {
	t.Helper()
	r, err := throttle.ParseRate(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// model is a bucket in whole numbers: num/den tokens in each per. A token is den·per units, and each nanosecond brings num.
type model struct {
	num, den, per, burst int64
	level                int64 // units
	at                   time.Time
}

func newModel(num, den int64, per time.Duration, burst int64, now time.Time) *model {
	m := &model{num: num, den: den, per: int64(per), burst: burst, at: now}
	m.level = m.full()
	return m
}

func (m *model) token() int64 { return m.den * m.per }
func (m *model) full() int64  { return m.burst * m.token() }

func (m *model) tokens(now time.Time) float64 {
	if d := now.Sub(m.at); d > 0 {
		m.at = now
		if missing := m.full() - m.level; int64(d) >= missing/m.num+1 {
			m.level = m.full()
		} else {
			m.level += int64(d) * m.num
		}
	}
	return float64(m.level) / float64(m.token())
}

func (m *model) add(now time.Time, n int) {
	m.tokens(now)
	m.level = min(m.level+int64(n)*m.token(), m.full())
}

// Whoever takes all that Wait lets him for ten days gets what the rate allows, and not a token more.
func TestTenDays(t *testing.T) {
	days := time.Duration(10)
	switch {
	case !thorough():
		days = 1
	case raceEnabled:
		days = 2
	}
	for _, tt := range []struct {
		rate     string
		num, den int64
		per      time.Duration
		burst    int64
		most     int // taken at a time
		returns  bool
	}{
		{rate: "1/day", num: 1, den: 1, per: day, burst: 1, most: 1},
		{rate: "7/day", num: 7, den: 1, per: day, burst: 1, most: 2},
		{rate: "10000/day", num: 10000, den: 1, per: day, burst: 1, most: 1},
		{rate: "10000/day, burst 100", num: 10000, den: 1, per: day, burst: 100, most: 7, returns: true},
		{rate: "1000/h", num: 1000, den: 1, per: time.Hour, burst: 1, most: 3},
		{rate: "30/min", num: 30, den: 1, per: time.Minute, burst: 1, most: 5},
		{rate: "2.5/s", num: 5, den: 2, per: time.Second, burst: 2, most: 40, returns: true},
		{rate: "14/s, burst 1", num: 14, den: 1, per: time.Second, burst: 1, most: 200},
		{rate: "1000/s", num: 1000, den: 1, per: time.Second, burst: 1000, most: 8000, returns: true},
	} {
		t.Run(tt.rate, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(1, 2))
			b := throttle.NewBucket(mustParse(t, tt.rate), t0)
			m := newModel(tt.num, tt.den, tt.per, tt.burst, t0)
			now, taken := t0, 0
			for now.Sub(t0) < days*day {
				n := 1 + rnd.IntN(tt.most)
				if d := b.Wait(now, n); d > 0 {
					before := b.Wait(now.Add(d-2), n) // 1e-9 of a token is allowed to be missing
					if m.tokens(now); d > time.Millisecond && tt.per < time.Hour && before == 0 {
						t.Fatalf("%v after %v, and less would have done", d, now.Sub(t0))
					}
					if now = now.Add(d); b.Wait(now, n) != 0 {
						t.Fatalf("after a wait of %v there is another of %v", d, b.Wait(now, n))
					}
				}
				b.Take(now, n)
				m.add(now, -n)
				taken += n
				if owed := min(0, tt.burst-int64(n)) * m.token(); m.level < owed-m.token()/5e8-1 {
					t.Fatalf("%d were taken after %v, where %v were there", n, now.Sub(t0), float64(m.level)/float64(m.token())+float64(n))
				}
				if tt.returns && rnd.IntN(3) == 0 {
					n = 1 + rnd.IntN(n)
					now = now.Add(time.Duration(rnd.Int64N(int64(tt.per))) / time.Duration(tt.num))
					b.Return(now, n)
					m.add(now, n)
					taken -= n
				}
				if got, want := b.Level(now), m.tokens(now); math.Abs(got-want) > 1e-6 {
					t.Fatalf("%v are there after %v, want %v", got, now.Sub(t0), want)
				}
			}
			allowed := float64(tt.num) / float64(tt.den) / tt.per.Seconds() * now.Sub(t0).Seconds()
			if float64(taken) < 0.999*allowed {
				t.Errorf("%d of %.0f were used", taken, allowed)
			}
		})
	}
}

// Anything, in any order.
func TestAgainstModel(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		num, per := 1+rnd.Int64N(50), []time.Duration{time.Second, time.Minute, time.Hour}[rnd.IntN(3)]
		burst := 1 + rnd.Int64N(20)
		rate := func() throttle.Rate { return throttle.Rate{N: float64(num), Per: per, Burst: float64(burst)} }
		b, m, now := throttle.NewBucket(rate(), t0), newModel(num, 1, per, burst, t0), t0
		var log []string
		for range 2000 {
			n := 1 + rnd.IntN(30)
			switch rnd.IntN(7) {
			case 0, 1:
				now = now.Add(time.Duration(rnd.Int64N(int64(per))))
				log = append(log, fmt.Sprintf("at %v", now.Sub(t0)))
			case 2, 3:
				b.Take(now, n)
				m.add(now, -n)
				log = append(log, fmt.Sprintf("take %d", n))
			case 4:
				b.Return(now, n)
				m.add(now, n)
				log = append(log, fmt.Sprintf("return %d", n))
			case 5: // a clock that is behind
				b.Take(now, 1)
				b.Wait(now.Add(-per), n)
				b.Take(now.Add(-per), n)
				m.add(now, -n-1)
				log = append(log, fmt.Sprintf("take %d, late", n))
			case 6:
				if rnd.IntN(10) > 0 {
					continue
				}
				m.tokens(now)
				num, burst = 1+rnd.Int64N(50), 1+rnd.Int64N(20)
				b.Set(now, rate())
				m.num, m.burst = num, burst
				m.add(now, 0)
				log = append(log, fmt.Sprintf("set %v", rate()))
			}
			got, want := b.Level(now), m.tokens(now)
			if math.Abs(got-want) > 1e-6 || b.Full(now) != (m.level == m.full()) {
				t.Fatalf("seed %d: %v, full %v, want %v, after %v", seed, got, b.Full(now), want, log[max(0, len(log)-20):])
			}
		}
	}
}

// The same, but nobody looks at what is there: that may tidy up. There is only what was allowed to be taken, and what was not.
func TestUnseen(t *testing.T) {
	for seed := range uint64(100) {
		rnd := rand.New(rand.NewPCG(seed, 8))
		num, per, burst := 1+rnd.Int64N(50), []time.Duration{time.Second, time.Minute, time.Hour}[rnd.IntN(3)], 1+rnd.Int64N(20)
		b, m, now := throttle.NewBucket(throttle.Rate{N: float64(num), Per: per, Burst: float64(burst)}, t0), newModel(num, 1, per, burst, t0), t0
		most := []int64{2, 30}[seed%2] // of a token's time, between two steps: in the second case the bucket is full most of the time
		allowed, denied := 0, 0
		for i := range 2000 {
			now = now.Add(time.Duration(rnd.Int64N(most*int64(per)) / num))
			n := 1 + rnd.IntN(2)
			want, there := float64(min(int64(n), burst)), m.tokens(now)
			d := b.Wait(now, n)
			switch {
			case math.Abs(there-want) < 1e-6: // what has just come, or is about to
			case (d == 0) != (there > want):
				t.Fatalf("seed %d, step %d: a wait of %v for %d, where %v are there", seed, i, d, n, there)
			case d > 0 && math.Abs((want-there)*per.Seconds()/float64(num)-d.Seconds()) > 1e-6*per.Seconds():
				t.Fatalf("seed %d, step %d: a wait of %v for %d, where %v are there", seed, i, d, n, there)
			}
			if d > 0 {
				denied++
				continue
			}
			allowed++
			b.Take(now, n)
			m.add(now, -n)
			switch rnd.IntN(40) {
			case 0, 1:
				b.Return(now, n)
				m.add(now, n)
			case 2:
				burst = 1 + rnd.Int64N(20)
				b.Set(now, throttle.Rate{N: float64(num), Per: per, Burst: float64(burst)})
				m.burst = burst
				m.add(now, 0)
			}
		}
		if got, want := b.Level(now), m.tokens(now); math.Abs(got-want) > 1e-6 {
			t.Fatalf("seed %d: %v are there in the end, want %v", seed, got, want)
		}
		if allowed < 200 || seed%2 == 0 && denied < 100 {
			t.Errorf("seed %d: %d were allowed and %d denied", seed, allowed, denied)
		}
	}
}

func TestWait(t *testing.T) {
	for _, tt := range []struct {
		rate     string
		take     int
		after    time.Duration
		n        int
		want     time.Duration
		wantFull time.Duration
	}{
		{"14/s, burst 1", 0, 0, 1, 0, 0},
		{"14/s, burst 1", 1, 0, 1, 71428572, 71428572},
		{"14/s", 14, 0, 1, 71428572, time.Second},
		{"14/s", 0, 0, 100, 0, 0}, // more than the burst: a full bucket
		{"14/s", 1, 0, 100, 71428572, 71428572},
		{"14/s", 100, 0, 1, 6214285715, 7142857143},
		{"14/s", 100, 8 * time.Second, 100, 0, 0},
		{"60/min", 1, 999 * time.Millisecond, 1, time.Millisecond, time.Millisecond},
		{"60/min", 1, time.Second, 1, 0, 0},
		{"10000/day", 1, 0, 1, 8640 * time.Millisecond, 8640 * time.Millisecond}, // a daily rate doesn't empty at once
		{"1/day", 1, time.Hour, 1, 23 * time.Hour, 23 * time.Hour},
		{"1/day", 3, time.Hour, 1, 71 * time.Hour, 71 * time.Hour},
		{"2.5/s", 2, 0, 1, 400 * time.Millisecond, 800 * time.Millisecond},
		{"1/day", math.MaxInt, 0, 1, math.MaxInt64, math.MaxInt64},
		{"14/s", 14, 0, 0, 0, time.Second},
		{"14/s", 14, 0, -1, 0, time.Second},
		{"14/s", -14, 0, 14, 0, 0},
	} {
		b := throttle.NewBucket(mustParse(t, tt.rate), t0)
		b.Take(t0, tt.take)
		now := t0.Add(tt.after)
		full := b.Full(now)
		for range 2 { // asking changes nothing
			if got := b.Wait(now, tt.n); got != tt.want {
				t.Errorf("%s: %d taken, %v later a wait of %v for %d, want %v", tt.rate, tt.take, tt.after, got, tt.n, tt.want)
			}
			b.Wait(now.Add(1000*day), 1)
			b.Level(now.Add(1000 * day))
		}
		if got := b.Wait(now, math.MaxInt); got != tt.wantFull || full != (got == 0) {
			t.Errorf("%s: %d taken, %v later full %v, in %v, want %v", tt.rate, tt.take, tt.after, full, got, tt.wantFull)
		}
	}
}

// What is returned never makes more than the burst, not even by a part of a token.
func TestReturn(t *testing.T) {
	b := throttle.NewBucket(throttle.Rate{N: 14, Per: time.Second, Burst: 1}, t0)
	b.Take(t0, 1)
	now := t0.Add(time.Second / 28)
	b.Return(now, 1)
	if got := b.Level(now); math.Abs(got-1) > 1e-12 {
		t.Errorf("%v are there of one", got)
	}
	b.Take(now, 1)
	if got := b.Wait(now, 1); got != 71428572 {
		t.Errorf("a wait of %v", got)
	}
	b = throttle.NewBucket(throttle.Rate{N: 14, Per: time.Second}, t0)
	b.Take(t0, 30)
	b.Return(t0, 20)
	if got := b.Level(t0); math.Abs(got-4) > 1e-12 {
		t.Errorf("%v are there, want 4", got)
	}
	b.Return(t0, 0)
	b.Return(t0, -4)
	b.Return(t0, math.MaxInt)
	if got := b.Level(t0); got != 14 || !b.Full(t0) {
		t.Errorf("%v are there, want 14", got)
	}
	// A credit is gone once time has filled the bucket.
	b.Take(t0, 14)
	b.Return(t0, 7)
	b.Take(t0.Add(time.Hour), 14)
	if got := b.Level(t0.Add(time.Hour)); got != 0 {
		t.Errorf("%v are there, want 0", got)
	}
}

func TestSet(t *testing.T) {
	rate := func(n, burst float64) throttle.Rate { return throttle.Rate{N: n, Per: time.Second, Burst: burst} }
	b := throttle.NewBucket(rate(10, 20), t0)
	step := func(what string, want float64) {
		t.Helper()
		if got := b.Level(t0); math.Abs(got-want) > 1e-9 {
			t.Errorf("%s: %v are there, want %v", what, got, want)
		}
	}
	b.Set(t0, rate(1, 5))
	step("cut to the burst", 5)
	b.Set(t0, rate(1, 50))
	step("not filled up", 5)
	b.Take(t0, 12)
	b.Set(t0, rate(100, 50))
	step("what is owed stays", -7)
	if got := b.Wait(t0, 1); got != 80*time.Millisecond {
		t.Errorf("a wait of %v", got)
	}
	b.Set(t0, throttle.Rate{})
	step("no limit", math.Inf(1))
	b.Take(t0, 1000)
	b.Return(t0, 1)
	if b.Wait(t0, 1e9) != 0 || !b.Full(t0) || b.Rate() != (throttle.Rate{}) {
		t.Error("no limit is one")
	}
	b.Set(t0, rate(3, 4))
	step("a limit after none: what was owed still is", -7)
	b.Set(t0, throttle.Rate{})
	now := t0.Add(2 * time.Second)
	b.Set(now, rate(1, 9))
	if got := b.Level(now); got != -1 {
		t.Errorf("%v are there: while there is no limit, what is owed comes in by the one there was", got)
	}
	b.Set(now.Add(time.Hour), throttle.Rate{})
	b.Set(now.Add(time.Hour), rate(3, 4))
	t0 := now.Add(time.Hour)
	if got := b.Level(t0); got != 4 {
		t.Errorf("%v are there, after an hour", got)
	}
	fresh := throttle.NewBucket(throttle.Rate{}, t0)
	fresh.Set(t0, rate(3, 4))
	if got := fresh.Level(t0); got != 4 {
		t.Errorf("%v are there at the first limit", got)
	}
	if b.Rate() != rate(3, 4) {
		t.Error(b.Rate())
	}
}

// What was taken where there was no limit is not given back to one that came afterwards.
func TestUndo(t *testing.T) {
	rate := throttle.Rate{N: 1, Per: time.Hour, Burst: 9}
	b := throttle.NewBucket(rate, t0)
	step := func(what string, now time.Time, want float64) {
		t.Helper()
		if got := b.Level(now); math.Abs(got-want) > 1e-9 {
			t.Errorf("%s: %v are there, want %v", what, got, want)
		}
	}
	at := func(n int) time.Time { return t0.Add(time.Duration(n)) }
	b.Take(t0, 5)
	b.Undo(t0, t0, 2)
	step("taken by the first limit", t0, 6)
	b.Set(at(1), throttle.Rate{})
	b.Take(at(2), 3)
	b.Set(at(3), rate)
	b.Undo(at(4), at(2), 3)
	step("taken without a limit", at(4), 6)
	b.Take(at(5), 3)
	b.Undo(at(6), at(5), 1)
	step("taken by the second limit", at(6), 4)
	rate.N = 2 // another limit, and not none in between
	b.Set(at(7), rate)
	b.Undo(at(8), at(5), 1)
	step("taken by the rate before", at(8), 5)
}

// A clock that goes back counts no stretch of time twice, and a wait is one by that clock.
func TestClockGoesBack(t *testing.T) {
	b := throttle.NewBucket(throttle.Rate{N: 1, Per: time.Second, Burst: 10}, t0)
	b.Take(t0, 10)
	for range 100 {
		b.Take(t0.Add(-time.Hour), 1)
		b.Return(t0.Add(-time.Minute), 1)
		if got := b.Level(t0); got != 0 {
			t.Fatalf("%v are there", got)
		}
	}
	if got := b.Wait(t0.Add(-time.Minute), 1); got != time.Minute+time.Second {
		t.Errorf("a wait of %v", got)
	}
	// The clock on the wall is no clock where there is a better one.
	now := time.Now()
	b = throttle.NewBucket(throttle.Rate{N: 1, Per: time.Second, Burst: 10}, now)
	b.Take(now, 10)
	if got := b.Level(now.Add(3 * time.Second)); got != 3 {
		t.Errorf("%v are there", got)
	}
}

// All at once: no token is lost, none is made.
func TestConcurrent(t *testing.T) {
	b := throttle.NewBucket(throttle.Rate{N: 1, Per: time.Second, Burst: 1e9}, t0)
	b.Take(t0, 5e8)
	k := throttle.NewKeyed(throttle.Rate{N: 1, Per: time.Second, Burst: 1e9}, 10)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 2000 {
				b.Take(t0, 3+i)
				b.Return(t0, 2+i)
				k.Get(t0, fmt.Sprint(j%4)).Take(t0, 2)
				k.Get(t0, fmt.Sprint(j%4)).Return(t0, 1)
				b.Wait(t0, j)
				b.Level(t0)
				b.Full(t0)
				b.Rate()
				k.Len()
			}
		})
	}
	wg.Wait()
	if got := b.Level(t0); got != 5e8-16000 {
		t.Errorf("%.3f are there", got)
	}
	for i := range 4 {
		if got := k.Get(t0, fmt.Sprint(i)).Level(t0); got > 1e9-4000 || got < 1e9-8000 {
			t.Errorf("%.3f are there for %d", got, i)
		}
	}
}
