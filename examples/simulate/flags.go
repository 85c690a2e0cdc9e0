package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/smtplb/smtplb"
)

// balancers are what -balancer knows.
var balancers = map[string]func() smtplb.Balancer{
	"adaptive":       smtplb.Adaptive,
	"roundrobin":     smtplb.RoundRobin,
	"leastinflight":  smtplb.LeastInFlight,
	"latency":        smtplb.Latency,
	"random":         smtplb.Random,
	"firstavailable": smtplb.FirstAvailable,
}

const defaultBalancer = "adaptive"

// options are the command line.
type options struct {
	relays   int
	weights  []int // of the relays in turn, repeated
	conns    int
	service  time.Duration // median
	sigma    float64
	answer   float64 // the share of the service time that RCPT takes
	rtt      time.Duration
	rate     float64 // messages per second; 0: see callers
	callers  int     // 0: rate
	messages int
	size     int
	timeout  time.Duration
	balancer string
	attempts int
	tick     time.Duration
	seed     uint64
	troubles []trouble
}

// trouble is what befalls some relays for a while.
type trouble struct {
	kind        string // slow, fail, down, flap
	first, last int    // relays
	median      time.Duration
	up, off     time.Duration // flap
	from, till  time.Duration // since the start; till 0: to the end
}

// hits reports whether the trouble is on for a relay at a moment since the start.
func (t *trouble) hits(relay int, at time.Duration) bool {
	return relay >= t.first && relay <= t.last && at >= t.from && (t.till == 0 || at < t.till)
}

func parse(args []string, help io.Writer) (*options, error) {
	o := &options{weights: []int{1}}
	fs := flag.NewFlagSet("simulate", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.IntVar(&o.relays, "relays", 10, "how `many` relays there are; they are numbered from 0")
	fs.Func("weights", "the relays' `weights`, \"3,1\" say, repeated where there are more relays; default 1", func(s string) error {
		o.weights = nil
		for w := range strings.SplitSeq(s, ",") {
			n, err := strconv.Atoi(w)
			if err != nil || n < 1 {
				return fmt.Errorf("%q is no weight: 1 or more", w)
			}
			o.weights = append(o.weights, n)
		}
		return nil
	})
	fs.IntVar(&o.conns, "conns", 10, "how `many` connections a relay allows")
	fs.DurationVar(&o.service, "service", 100*time.Millisecond, "how long a relay takes for a message: the `median` of a lognormal distribution")
	fs.Float64Var(&o.sigma, "sigma", 0.5, "the distribution's `σ`; 0: always the median")
	fs.Float64Var(&o.answer, "answer", 0.5, "the `share` of that time that goes by before the recipient is answered; the rest is after the message has come")
	fs.DurationVar(&o.rtt, "rtt", 0, "the network's `round trip` time, on top of the service time; it costs the simulator a lot")
	fs.Float64Var(&o.rate, "rate", 0, "how many messages are sent a `second`, at random moments; default: 60 % of what the fleet can take")
	fs.IntVar(&o.callers, "callers", 0, "in the place of -rate: how `many` callers send, each its next message when the last has been sent")
	fs.IntVar(&o.messages, "messages", 50_000, "how `many` messages are sent, each to one recipient")
	fs.IntVar(&o.size, "size", 2000, "`bytes` of a message")
	fs.DurationVar(&o.timeout, "timeout", time.Minute, "how `long` a caller waits for a send")
	fs.IntVar(&o.attempts, "attempts", 0, "how `many` relays are tried for a message; default: the pool's")
	fs.StringVar(&o.balancer, "balancer", defaultBalancer, "`name` of a balancer: "+strings.Join(slices.Sorted(maps.Keys(balancers)), ", "))
	fs.DurationVar(&o.tick, "tick", time.Millisecond, "the `grain` of fake time; a coarser one is faster")
	fs.Uint64Var(&o.seed, "seed", 1, "`seed` of arrivals and service times")
	for kind, usage := range map[string]string{
		"slow": "`RELAYS=MEDIAN@FROM-TILL`: relays that take longer, \"3=10s@30s-90s\", \"0-4=2s@1m-\"; repeatable",
		"fail": "`RELAYS@FROM-TILL`: relays that say 421 to everything, at once; repeatable",
		"down": "`RELAYS@FROM-TILL`: relays that are killed, and started again; repeatable",
		"flap": "`RELAYS=UP/DOWN@FROM-TILL`: relays that are up and down in turn, \"5=20s/10s@1m-\"; repeatable",
	} {
		fs.Func(kind, usage, func(s string) error {
			t, err := parseTrouble(kind, s)
			o.troubles = append(o.troubles, t)
			return err
		})
	}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(help, "usage: simulate [flags]")
			fs.SetOutput(help)
			fs.PrintDefaults()
		}
		return nil, err
	}
	return o, o.check(fs.Args())
}

func (o *options) check(rest []string) error {
	switch {
	case len(rest) > 0:
		return fmt.Errorf("%q belongs to no flag", rest[0])
	case o.relays < 1 || o.relays > 10_000:
		return errors.New("-relays must be 1 to 10,000")
	case o.conns < 1:
		return errors.New("-conns must be 1 or more")
	case o.messages < 1 || o.messages > math.MaxInt32:
		return errors.New("-messages must be 1 or more")
	case o.size < 0 || o.size > 1<<20:
		return errors.New("-size must be at most 1 MiB")
	case o.service < 0 || o.rtt < 0:
		return errors.New("-service and -rtt must not be negative")
	case !(o.sigma >= 0 && o.sigma <= 3):
		return errors.New("-sigma must be 0 to 3")
	case !(o.answer >= 0 && o.answer <= 1):
		return errors.New("-answer must be 0 to 1")
	case !(o.rate >= 0 && o.rate <= 1e6):
		return errors.New("-rate must be 0 to 1,000,000")
	case o.rate > 0 && o.callers > 0:
		return errors.New("-rate and -callers exclude each other")
	case o.callers < 0:
		return errors.New("-callers must not be negative")
	case o.timeout <= 0 || o.tick <= 0:
		return errors.New("-timeout and -tick must be above 0")
	case balancers[o.balancer] == nil:
		return fmt.Errorf("-balancer %q is not known; known are %s", o.balancer, strings.Join(slices.Sorted(maps.Keys(balancers)), ", "))
	}
	for _, t := range o.troubles {
		if t.last >= o.relays {
			return fmt.Errorf("-%s: there is no relay %d; they are 0 to %d", t.kind, t.last, o.relays-1)
		}
	}
	if o.rate == 0 && o.callers == 0 {
		o.rate = min(0.6*o.capacity(), 1e6)
	}
	return nil
}

// capacity is how many messages a second the fleet can take, if nothing is wrong with it.
func (o *options) capacity() float64 {
	mean := o.service.Seconds()*math.Exp(o.sigma*o.sigma/2) + 2*o.rtt.Seconds()
	return float64(o.relays*o.conns) / max(mean, o.tick.Seconds())
}

func (o *options) weight(relay int) int { return o.weights[relay%len(o.weights)] }

// parseTrouble reads RELAYS[=WHAT]@FROM-TILL.
func parseTrouble(kind, s string) (t trouble, err error) {
	t.kind = kind
	relays, when, ok := strings.Cut(s, "@")
	if !ok {
		return t, fmt.Errorf("%q has no @FROM-TILL", s)
	}
	relays, what, _ := strings.Cut(relays, "=")
	low, high, isRange := strings.Cut(relays, "-")
	if !isRange {
		high = low
	}
	if t.first, err = strconv.Atoi(low); err == nil {
		t.last, err = strconv.Atoi(high)
	}
	if err != nil || t.first < 0 || t.last < t.first {
		return t, fmt.Errorf("%q does not begin with a relay, or some (3, 0-4)", s)
	}
	from, till, _ := strings.Cut(when, "-")
	if t.from, err = time.ParseDuration(from); err == nil && till != "" {
		if t.till, err = time.ParseDuration(till); err == nil && t.till <= t.from {
			err = errors.New("it ends before it begins")
		}
	}
	if err != nil || t.from < 0 {
		return t, fmt.Errorf("%q has no @FROM-TILL (30s-90s, or 1m- to the end): %v", s, err)
	}
	switch kind {
	case "slow":
		if t.median, err = time.ParseDuration(what); err != nil || t.median < 0 {
			return t, fmt.Errorf("%q has no =MEDIAN (=10s)", s)
		}
	case "flap":
		up, off, _ := strings.Cut(what, "/")
		if t.up, err = time.ParseDuration(up); err == nil {
			t.off, err = time.ParseDuration(off)
		}
		if err != nil || t.up <= 0 || t.off <= 0 {
			return t, fmt.Errorf("%q has no =UP/DOWN (=20s/10s)", s)
		}
	default:
		if what != "" {
			return t, fmt.Errorf("%q: -%s takes RELAYS@FROM-TILL", s, kind)
		}
	}
	return t, nil
}
