package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// fleet is the relays.
type fleet struct {
	began  time.Time
	relays []*smtptest.Server
}

func relayName(i int) string { return fmt.Sprintf("relay-%d", i) }

// startFleet starts the relays in memory. They tell record of each message that they store, and keep none.
func startFleet(network *smtptest.Network, o *options, record *record) *fleet {
	f := &fleet{began: time.Now()}
	for i := range o.relays {
		s := network.NewServer(relayName(i)+".test:25", smtptest.WithDiscard(), smtptest.WithStored(func(m *smtptest.Message) {
			for _, to := range m.To {
				record.stored(number(to), i)
			}
		}))
		if o.answer > 0 {
			s.On(smtptest.Rcpt).DelayBy(func(ev *smtptest.Event) time.Duration { return f.takes(o, i, number(ev.Rcpt), o.answer) })
		}
		if o.answer < 1 {
			s.On(smtptest.EndOfData).DelayBy(func(ev *smtptest.Event) time.Duration { return f.takes(o, i, number(ev.To[0]), 1-o.answer) })
		}
		for _, t := range o.troubles {
			if t.kind == "fail" && i >= t.first && i <= t.last {
				on := func(*smtptest.Event) bool { return t.hits(i, time.Since(f.began)) }
				s.On(smtptest.Banner).If(on).Delay(5*time.Millisecond).Reply(421, "4.3.0 System trouble")
				s.On(smtptest.Mail).If(on).Delay(5*time.Millisecond).Reply(421, "4.3.0 System trouble")
			}
		}
		f.relays = append(f.relays, s)
	}
	return f
}

// takes is how long a relay takes for a share of its work on a message, up to the next tick of the clock. The same seed, message and relay
// take the same time, whatever else goes on: so balancers can be compared.
func (f *fleet) takes(o *options, relay, message int, share float64) time.Duration {
	now := time.Since(f.began)
	median := o.service
	for i := range o.troubles {
		if t := &o.troubles[i]; t.kind == "slow" && t.hits(relay, now) {
			median = t.median
		}
	}
	d := float64(median) * share
	if o.sigma > 0 {
		dice := rand.New(rand.NewPCG(o.seed, uint64(message)<<20|uint64(relay)))
		d *= math.Exp(o.sigma * dice.NormFloat64())
	}
	return (now + time.Duration(d) + o.tick - 1).Truncate(o.tick) - now
}

// config is the pool's configuration: this is the part to change where a configuration is to be tried.
func (f *fleet) config(network *smtptest.Network, o *options) smtplb.Config {
	c := smtplb.Config{
		Dial:     network.DialContext,
		Balancer: balancers[o.balancer](),
		Retry:    smtplb.Retry{Attempts: o.attempts},
	}
	for i, s := range f.relays {
		c.Relays = append(c.Relays, smtplb.Relay{
			Name: relayName(i), Addr: s.Addr, TLS: smtplb.TLSNone, Weight: o.weight(i), Conns: smtplb.Conns{Max: o.conns},
		})
	}
	return c
}

// befall lets relays die and come back when their time has come, until stop is called.
func (f *fleet) befall(o *options) (stop func()) {
	over := make(chan struct{})
	var wg sync.WaitGroup
	// pause waits for a moment since the start, and reports whether it has come: 0 never does.
	pause := func(until time.Duration) bool {
		var moment <-chan time.Time
		if until > 0 {
			moment = time.After(until - time.Since(f.began))
		}
		select {
		case <-moment:
			return true
		case <-over:
			return false
		}
	}
	for _, t := range o.troubles {
		if t.kind != "down" && t.kind != "flap" {
			continue
		}
		for i := t.first; i <= t.last; i++ {
			wg.Go(func() {
				s := f.relays[i]
				for at := t.from; at == 0 || pause(at); {
					s.Kill()
					back := t.till
					if t.kind == "flap" {
						back = at + t.off
					}
					if !pause(back) {
						return
					}
					if err := s.Restart(); err != nil {
						panic(err) // in memory nobody else takes the address
					}
					at = back + t.up
					if t.kind == "down" || t.till > 0 && at >= t.till {
						return
					}
				}
			})
		}
	}
	return func() { close(over); wg.Wait() }
}

func (f *fleet) close() {
	var wg sync.WaitGroup
	for _, s := range f.relays {
		wg.Go(s.Close)
	}
	wg.Wait()
}

// address and number turn a message's number into its recipient's address, and back.
func address(message int) string { return "m" + strconv.Itoa(message) + "@example.org" }

func number(address string) int {
	digits, _, _ := strings.Cut(address[1:], "@")
	n, err := strconv.Atoi(digits)
	if err != nil {
		panic(err) // nobody else sends here
	}
	return n
}
