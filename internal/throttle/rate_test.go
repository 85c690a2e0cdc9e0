package throttle_test

import (
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/throttle"
)

func TestParseRate(t *testing.T) {
	rate := func(n float64, per time.Duration, burst float64) throttle.Rate {
		return throttle.Rate{N: n, Per: per, Burst: burst}
	}
	for s, want := range map[string]throttle.Rate{
		"14/s":                      rate(14, time.Second, 0),
		"14/s, burst 1":             rate(14, time.Second, 1),
		"14/s burst 5":              rate(14, time.Second, 5),
		"14/s,burst 5":              rate(14, time.Second, 5),
		" 14 / S ,  Burst  5 ":      rate(14, time.Second, 5),
		"30/min":                    rate(30, time.Minute, 0),
		"1000/h":                    rate(1000, time.Hour, 0),
		"10000/day":                 rate(10000, day, 0),
		"2.5/s":                     rate(2.5, time.Second, 0),
		".5/s":                      rate(.5, time.Second, 0),
		"1/sec":                     rate(1, time.Second, 0),
		"1/second":                  rate(1, time.Second, 0),
		"1/m":                       rate(1, time.Minute, 0),
		"1/minute":                  rate(1, time.Minute, 0),
		"1/hour":                    rate(1, time.Hour, 0),
		"1/d":                       rate(1, day, 0),
		"5/10s":                     rate(5, 10*time.Second, 0),
		"1/1h30m, burst 1000000000": rate(1, 90*time.Minute, 1e9),
		"1000000000/s":              rate(1e9, time.Second, 0),
	} {
		got, err := throttle.ParseRate(s)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", s, got, err, want)
		}
		if again, err := throttle.ParseRate(got.String()); err != nil || again != got {
			t.Errorf("%q: %q is %+v, %v", s, got, again, err)
		}
	}
}

func TestParseRateFaults(t *testing.T) {
	for s, why := range map[string]string{
		"":                      "there is no /",
		"14":                    "there is no /",
		"burst 5":               "there is no /",
		"burst 5, 14/s":         "there is no /",
		"/s":                    `"" is no number`,
		"x/s":                   `"x" is no number`,
		"1e3/s":                 `"1e3" is no number`,
		"0x10/s":                `"0x10" is no number`,
		"1_000/s":               `"1_000" is no number`,
		"1,000/s":               `"1,000" is no number`,
		"inf/s":                 `"inf" is no number`,
		"nan/s":                 `"nan" is no number`,
		"-1/s":                  `"-1" is no number`,
		"1.2.3/s":               `"1.2.3" is no number`,
		"./s":                   `"." is no number`,
		"0/s":                   "it allows nothing",
		"1/":                    `"" is no time`,
		"1/fortnight":           `"fortnight" is no time`,
		"1/s/s":                 `"s/s" is no time`,
		"1/s,":                  `"s," is no time`,
		"1/s,, burst 1":         `"s," is no time`,
		"1/0s":                  "it is for each 0s",
		"1/-1s":                 "it is for each -1s",
		"1/s, burst":            `"" is no number`,
		"1/s, burst x":          `"x" is no number`,
		"1/s, burst 0":          "the burst is 1 at least",
		"1/s, burst 0.5":        "the burst is 1 at least",
		"1/s, burst 1.5":        "it has a burst of 1.5",
		"1/s, burst 2000000000": "it has a burst of 2e+09",
		"1/s, burst 1 burst 2":  `"1 burst 2" is no number`,
		"2000000000/s":          "at most 1e+09 a second",
		"1/9000h":               "less than one in a year",
	} {
		got, err := throttle.ParseRate(s)
		if err == nil {
			t.Errorf("%q: %+v", s, got)
			continue
		}
		if !strings.HasPrefix(err.Error(), strconv.Quote(s)+" is no rate") || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v, want %q", s, err, why)
		}
	}
	if _, err := throttle.ParseRate(strings.Repeat("1", 1e6)); err == nil || len(err.Error()) > 200 {
		t.Error("a long text: ", err)
	}
}

func TestCheck(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	for _, r := range []throttle.Rate{{}, {N: 1, Per: 1}, {N: 1, Per: 366 * day}, {N: 1e-9, Per: 1, Burst: 1}, {N: 5, Per: time.Second, Burst: 1e9}} {
		if err := r.Check(); err != nil {
			t.Errorf("%+v: %v", r, err)
		}
	}
	for _, r := range []throttle.Rate{
		{N: nan, Per: 1}, {N: inf, Per: 1}, {N: -inf, Per: 1}, {N: -1, Per: 1}, {N: 1}, {N: 1, Per: -1}, {N: 2, Per: 1}, {N: 1, Per: 367 * day}, {N: math.MaxFloat64, Per: 1},
		{N: 1, Per: 1, Burst: nan}, {N: 1, Per: 1, Burst: inf}, {N: 1, Per: 1, Burst: -inf}, {N: 1, Per: 1, Burst: -1}, {N: 1, Per: 1, Burst: .5}, {N: 1, Per: 1, Burst: 1e10}, {Burst: nan},
	} {
		if r.Check() == nil {
			t.Errorf("%+v is taken", r)
		}
	}
}

// Default bursts: a second's worth.
func TestBurst(t *testing.T) {
	for s, want := range map[string]float64{
		"14/s": 14, "14/s, burst 1": 1, "2.5/s": 2, "0.1/s": 1, "30/min": 1, "600/min": 10, "10000/day": 1, "864000/day": 10, "1/day": 1, "1000000000/s": 1e9,
	} {
		if got := throttle.NewBucket(mustParse(t, s), t0).Level(t0); got != want {
			t.Errorf("%s: %v, want %v", s, got, want)
		}
	}
}

func FuzzParseRate(f *testing.F) {
	for _, s := range []string{"14/s", "14/s, burst 1", "30/min", "1000/h", "10000/day", "2.5/s", "5/10s burst 7", "1/1h30m", "0.000001/ns", "1/s,", "burst/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := throttle.ParseRate(s)
		if err != nil {
			if r != (throttle.Rate{}) || len(s) <= 100 && !strings.Contains(err.Error(), strconv.Quote(s)) {
				t.Fatalf("%+v, %v", r, err)
			}
			return
		}
		if again, err := throttle.ParseRate(r.String()); err != nil || again != r {
			t.Fatalf("%+v is %q, and that %+v, %v", r, r, again, err)
		}
		if err := r.Check(); err != nil {
			t.Fatal(err)
		}
		b := throttle.NewBucket(r, t0)
		b.Take(t0, int(b.Level(t0)))
		if d := b.Wait(t0, 1); d <= 0 || d > 366*day+1 || b.Wait(t0.Add(d), 1) != 0 {
			t.Fatalf("%v: a wait of %v, then %v", r, d, b.Wait(t0.Add(d), 1))
		}
	})
}
