// Package throttle keeps rates: token buckets on golang.org/x/time/rate, which nothing else imports. It knows neither relays nor messages, never waits, and has
// no clock: who asks says what time it is.
//
// Of x/time/rate it uses ReserveN alone. Wait's errors can't be told apart, and Cancel gives nothing back once the time to act has passed (of 10 tokens that were granted and cancelled 20 ms later,
// 0.2 are there again), so a Bucket keeps what is returned as a credit of its own. ReserveN refuses more than the burst: who needs more waits until the bucket is full, and takes the rest in advance.
package throttle

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Rate is N in each Per. The zero Rate, as any whose N is 0, is no limit.
type Rate struct {
	N     float64
	Per   time.Duration
	Burst float64 // at once; 0: what N and Per come to in a second, and at least 1
}

// Check returns what is wrong with a rate.
func (r Rate) Check() error {
	switch {
	case r.N != r.N || r.Burst != r.Burst:
		return errors.New("is not a number")
	case r.N < 0:
		return fmt.Errorf("is %v; a rate is not negative", r.N)
	case r.N == 0:
		return nil
	case r.Per <= 0:
		return fmt.Errorf("is for each %v; a time above 0 is wanted", r.Per)
	case r.perSecond() < 1.0/(366*24*3600):
		return fmt.Errorf("is %v in %v; less than one in a year", r.N, r.Per)
	case r.perSecond() > most:
		return fmt.Errorf("is %v in %v; at most %.0e a second", r.N, r.Per, most)
	case r.Burst < 0:
		return fmt.Errorf("has a burst of %v; it is 1 at least", r.Burst)
	case r.Burst != 0 && (r.Burst != math.Trunc(r.Burst) || r.Burst > most):
		return fmt.Errorf("has a burst of %v; a whole number up to %.0e is wanted", r.Burst, most)
	}
	return nil
}

// most bounds what comes in a second, and the burst.
const most = 1e9

func (r Rate) perSecond() float64 { return r.N / r.Per.Seconds() }

// burst is Burst with its default.
func (r Rate) burst() int {
	if r.Burst > 0 {
		return int(min(r.Burst, most))
	}
	return int(min(max(r.perSecond(), 1), most))
}

// Whole is the rate with its Burst, whose default it may have been.
func (r Rate) Whole() Rate {
	r.Burst = float64(r.burst())
	return r
}

// units are the words for times, the first of each its name in String.
var units = []struct {
	per   time.Duration
	words []string
}{
	{time.Second, []string{"s", "sec", "second"}},
	{time.Minute, []string{"min", "m", "minute"}},
	{time.Hour, []string{"h", "hour"}},
	{24 * time.Hour, []string{"day", "d"}},
}

// String returns the rate as ParseRate takes it.
func (r Rate) String() string {
	per := r.Per.String()
	for _, u := range units {
		if r.Per == u.per {
			per = u.words[0]
		}
	}
	s := strconv.FormatFloat(r.N, 'f', -1, 64) + "/" + per
	if r.Burst != 0 {
		s += ", burst " + strconv.FormatFloat(r.Burst, 'f', -1, 64)
	}
	return s
}

// ParseRate reads a rate: "14/s", "30/min", "1000/h", "10000/day", "5/10s", each with ", burst 5" behind it if need be.
func ParseRate(s string) (Rate, error) {
	bad := func(why string) (Rate, error) {
		return Rate{}, fmt.Errorf("%q is no rate such as \"14/s\" or \"10000/day, burst 100\": %s", s, why)
	}
	if len(s) > 100 {
		return Rate{}, errors.New("a rate such as \"14/s\" is wanted, not a text of more than 100 bytes")
	}
	text, burst, hasBurst := strings.Cut(strings.ToLower(s), "burst")
	n, per, ok := strings.Cut(text, "/")
	if !ok {
		return bad("there is no /")
	}
	var r Rate
	var err error
	if r.N, err = number(n); err != nil {
		return bad(err.Error())
	}
	if per = strings.TrimSpace(per); hasBurst {
		per = strings.TrimSpace(strings.TrimSuffix(per, ","))
	}
	for _, u := range units {
		for _, w := range u.words {
			if per == w || len(w) > 2 && per == w+"s" {
				r.Per = u.per
			}
		}
	}
	if r.Per == 0 {
		if r.Per, err = time.ParseDuration(per); err != nil {
			return bad(fmt.Sprintf("%q is no time", per))
		}
	}
	if hasBurst {
		if r.Burst, err = number(burst); err != nil {
			return bad(err.Error())
		}
		if r.Burst < 1 {
			return bad("the burst is 1 at least")
		}
	}
	if r.N == 0 {
		return bad("it allows nothing")
	}
	if err := r.Check(); err != nil {
		return bad("it " + err.Error())
	}
	return r, nil
}

func number(s string) (float64, error) {
	s = strings.TrimSpace(s)
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && c != '.' {
			return 0, fmt.Errorf("%q is no number", s)
		}
	}
	x, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no number", s)
	}
	return x, nil
}
