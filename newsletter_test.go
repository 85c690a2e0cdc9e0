package smtplb_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// newsletter is a run of TestNewsletter: how much, and when what befalls the relays.
type newsletter struct {
	messages        int
	trouble         time.Duration // from then on one relay takes 2 s for a message, and another less than it said
	killed, revived time.Duration // a third
}

// posted are the messages of one stream by their number, as the relays and the receipts tell.
type posted struct {
	copies   []atomic.Int32 // that the relays stored
	outcomes []smtplb.Outcome
	chosen   []time.Time // when, and which relay, of those that were accepted
	relay    []string
}

func newPosted(n int) *posted {
	return &posted{make([]atomic.Int32, n), make([]smtplb.Outcome, n), make([]time.Time, n), make([]string, n)}
}

// note keeps what the receipt of message i says.
func (l *posted) note(i int, r *smtplb.Receipt) {
	l.outcomes[i] = r.Recipients[0].Outcome
	for _, a := range r.Attempts {
		if a.Accepted > 0 {
			l.chosen[i], l.relay[i] = a.Start, a.Relay
		}
	}
}

// at returns when the relay was chosen for what it accepted.
func (l *posted) at(relay string) (times []time.Time) {
	for i, name := range l.relay {
		if name == relay {
			times = append(times, l.chosen[i])
		}
	}
	return times
}

// check counts what is lost and what is there twice, and returns how many are accepted and unknown.
func (l *posted) check(t *testing.T, name string) (accepted, unknown int) {
	lost, twice, others := 0, 0, 0
	for i, o := range l.outcomes {
		switch n := l.copies[i].Load(); {
		case n > 1:
			twice++
		case o == smtplb.Accepted && n == 0:
			lost++
		}
		switch o {
		case smtplb.Accepted:
			accepted++
		case smtplb.Unknown:
			unknown++
		default:
			others++
		}
	}
	if lost > 0 || twice > 0 || others > 0 {
		t.Errorf("%s: %d lost, %d there twice, %d neither accepted nor unknown", name, lost, twice, others)
	}
	return accepted, unknown
}

// TestNewsletter is a newsletter beside password resets, over four relays, each with a quota of 25 a second, that all are unwell in their ways: one is on the third day of its warm-up, one is slow, one takes half of what it said, and
// one is killed for five minutes. Gmail takes 15 messages a second from all of them together. It begins half an hour before midnight (UTC), so that the warm-up has a day's end in it.
//
// Each relay has a leaky bucket for its quota, which holds a second's worth; a message that is too many costs 20 more. The one that takes half has a bucket for that alone, without the extra cost: of what it refuses a bound is held, of what the others
// refuse that it is nothing. A bucket that holds two messages would refuse some at the slow relay: what was allowed evenly doesn't arrive evenly. The slow relay has 30 connections, so that what is left while others are away is more than the resets need.
func TestNewsletter(t *testing.T) {
	t.Parallel()
	n := newsletter{messages: 100_000, trouble: 2 * time.Minute, killed: 5 * time.Minute, revived: 10 * time.Minute}
	switch {
	case raceEnabled && !*fullScenarios:
		n = newsletter{messages: 1500, trouble: 5 * time.Second, killed: 10 * time.Second, revived: 25 * time.Second}
	case !*fullScenarios:
		n = newsletter{messages: 6000, trouble: 15 * time.Second, killed: 30 * time.Second, revived: time.Minute}
	}
	synctest.Test(t, n.run)
}

func (n newsletter) run(t *testing.T) {
	const (
		quota, gmail, resets       = 25, 15, 5 // a second
		fresh, slow, tight, mortal = 0, 1, 2, 3
	)
	midnight := time.Now().Truncate(24 * time.Hour).Add(4 * 24 * time.Hour) // a bubble begins with the year 2000
	time.Sleep(time.Until(midnight) - min(30*time.Minute, n.revived*3/2))
	began := time.Now()
	since := func(d time.Duration) func(*smtptest.Event) bool {
		return func(*smtptest.Event) bool { return time.Since(began) >= d }
	}

	network := smtptest.NewNetwork()
	network.SetLatency(2*time.Millisecond, 2*time.Millisecond)
	news, mails := newPosted(n.messages), newPosted(n.messages) // more resets than messages there aren't
	var refused [4]atomic.Int32
	var early atomic.Int32 // of the tight one: in the first minute of its trouble
	atGmail := punish(gmail, gmail)
	var gmailed atomic.Int32 // too many for Gmail
	config := smtplb.Config{
		Dial:      network.DialContext,
		Providers: []smtplb.Provider{{Name: "gmail", Limits: smtplb.Limits{Recipients: smtplb.Rate{N: gmail, Burst: 1}}}},
	}
	var relays []*smtptest.Server
	for i := range 4 {
		relay := network.NewServer(fmt.Sprintf("r%d.test:25", i), smtptest.WithDiscard(), smtptest.WithStored(func(m *smtptest.Message) {
			kind, number := letter(m.To[0])
			if kind == 'n' {
				news.copies[number].Add(1)
			} else {
				mails.copies[number].Add(1)
			}
		}))
		relays = append(relays, relay)
		over := punish(quota, quota)
		if i == tight {
			hidden := smtptest.Over(quota/2.0, time.Second, quota/2.0)
			over = func() bool {
				if time.Since(began) < n.trouble || !hidden(nil) {
					return false
				}
				if time.Since(began) < n.trouble+time.Minute {
					early.Add(1)
				}
				return true
			}
		}
		relay.On(smtptest.Mail).If(func(*smtptest.Event) bool {
			if over() {
				refused[i].Add(1)
				return true
			}
			return false
		}).Reply(454, "4.7.0 Throttling failure: Maximum sending rate exceeded.")
		relay.On(smtptest.Rcpt).If(func(e *smtptest.Event) bool {
			if strings.HasSuffix(e.Rcpt, "@gmail.com") && atGmail() {
				gmailed.Add(1)
				return true
			}
			return false
		}).Reply(450, "4.2.1 The user you are trying to contact is receiving mail too quickly.")
		if i == slow {
			relay.On(smtptest.Rcpt).If(since(n.trouble)).Delay(2 * time.Second)
		}
		relay.On(smtptest.EndOfData).DelayBy(func(e *smtptest.Event) time.Duration {
			_, number := letter(e.To[0])
			dice := rand.New(rand.NewPCG(uint64(number), uint64(i)))
			return time.Duration(100e6 * math.Exp(0.5*dice.NormFloat64()))
		})
		config.Relays = append(config.Relays, smtplb.Relay{
			Name: strconv.Itoa(i), Addr: relay.Addr, TLS: smtplb.TLSNone, Limits: smtplb.Limits{Messages: smtplb.Rate{N: quota, Burst: 1}},
		})
	}
	config.Relays[slow].Conns.Max = 30
	config.Relays[fresh].Warmup = smtplb.Warmup{Start: began.Add(-2 * 24 * time.Hour)}
	pool, err := smtplb.New(config)
	if err != nil {
		t.Fatal(err)
	}

	over := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // one relay's death
		time.Sleep(n.killed)
		relays[mortal].Kill()
		time.Sleep(n.revived - n.killed)
		if err := relays[mortal].Restart(); err != nil {
			t.Error(err)
		}
	})
	var mu sync.Mutex // guards waits and took
	var waits, took []time.Duration
	sent := 0
	wg.Go(func() { // password resets, one after the other, whatever became of those before
		for ; ; sent++ {
			select {
			case <-over:
				return
			case <-time.After(time.Second / resets):
			}
			number := sent
			wg.Go(func() {
				start := time.Now()
				r, _ := pool.Deliver(context.Background(), n.envelope('t', number, ""))
				d := time.Since(start)
				mails.note(number, r)
				wait := time.Duration(0)
				for i := range r.Attempts {
					wait += r.Attempts[i].Timings.Wait
				}
				mu.Lock()
				defer mu.Unlock()
				waits, took = append(waits, wait), append(took, d)
				if wait > time.Second || r.Recipients[0].Outcome != smtplb.Accepted {
					t.Logf("reset %d at %v: waited %v, took %v: %v %v", number, start.Sub(began), wait, d, r, r.Recipients[0].Err())
				}
			})
		}
	})

	rounds, again, paused := n.send(pool, news)
	ended := time.Since(began)
	close(over)
	wg.Wait()
	stats := pool.Stats()
	pool.Close()
	for _, r := range relays {
		r.Close()
	}

	mails.outcomes = mails.outcomes[:sent]
	accepted, unknown := news.check(t, "newsletter")
	acceptedMails, unknownMails := mails.check(t, "resets")
	// What the new relay was chosen for, before midnight and after: by that a message belongs to a day. Of a day's 1,000, or 2,000, a twenty-fourth is free at its beginning, and the rest bit by bit.
	var days [2]int
	ahead := 0
	for _, at := range slices.SortedFunc(slices.Values(append(news.at("0"), mails.at("0")...)), time.Time.Compare) {
		day := 0
		if !at.Before(midnight) {
			day = 1
		}
		days[day]++
		if free := 1000 * time.Duration(day+1) * (at.Sub(at.Truncate(24*time.Hour)) + time.Hour); time.Duration(days[day])*24*time.Hour > free {
			ahead++
			t.Logf("the %d. message is ahead of the warm-up at %v", days[day], at)
		}
	}
	t.Logf("newsletter: %d accepted, %d unknown, in %v and %d rounds, %d sent again; resets: %d accepted, %d unknown, waited %v at most, took %v at most (p99 %v); warm-up: %d before midnight, %d after",
		accepted, unknown, ended, rounds, again, acceptedMails, unknownMails, slices.Max(waits), slices.Max(took), percentileOf(took, 99), days[0], days[1])
	for i, r := range stats.Relays {
		t.Logf("relay %d: %d accepted, %d refused for their amount", i, r.Accepted, refused[i].Load())
	}
	if wait := slices.Max(waits); wait > time.Second {
		t.Errorf("a reset waited %v for the pool", wait)
	}
	// A second for the pool, an attempt at the relay that is killed meanwhile, 2 s at the slow one, and a message's time: their median is 0.1 s, the longest of so many 0.8 s.
	if d := slices.Max(took); d > 4*time.Second {
		t.Errorf("a reset took %v", d)
	}
	if unknown+unknownMails > 10 { // its connections
		t.Errorf("%d unknown: more than were on their way to the relay that was killed", unknown+unknownMails)
	}
	for _, i := range []int{fresh, slow, mortal} {
		if refused[i].Load() > 0 {
			t.Errorf("relay %d was sent %d messages too many", i, refused[i].Load())
		}
	}
	if all := refused[tight].Load(); early.Load() > 3 || float64(all) > 3+(ended-n.trouble).Minutes() {
		t.Errorf("the relay that takes half of what it said refused %d messages in its first minute, %d in all", early.Load(), all)
	}
	if gmailed.Load() > 0 {
		t.Errorf("Gmail was sent %d too many", gmailed.Load())
	}
	if ahead > 0 || days[0] < 41 || days[1] == 0 {
		t.Errorf("the warm-up: %d messages before they were allowed; %d of 1000 before midnight, %d of 2000 after", ahead, days[0], days[1])
	}
	// All could go out as quickly as Gmail takes its share of it. The relay that was killed is found out to be back when it is tried again, and has its share back a minute later. The pauses between rounds are
	// what receipts ask for, and one message decides for its round.
	ideal := time.Duration(0.3 * float64(n.messages) / (gmail - 0.3*resets) * float64(time.Second))
	if most := ideal*3/2 + n.revived - n.killed + time.Minute; ended-paused > most {
		t.Errorf("it took %v and %v of pauses, more than %v", ended-paused, paused, most)
	}
}

// send sends the newsletter in rounds, 20 at the most: what is deferred goes out again in the next.
func (n newsletter) send(pool *smtplb.Pool, news *posted) (rounds, again int, paused time.Duration) {
	envelopes := func(yield func(*smtplb.Envelope) bool) {
		for i := range n.messages {
			if !yield(n.envelope('n', i, "bulk")) {
				return
			}
		}
	}
	for {
		rounds++
		var rest []*smtplb.Envelope
		var pause time.Duration
		for r := range pool.DeliverAll(context.Background(), envelopes, smtplb.Bulk{}) {
			_, number := letter(r.Envelope.To[0])
			news.note(number, r.Receipt)
			if e := r.Receipt.Retry(r.Envelope); e != nil {
				rest = append(rest, e)
				var failed *smtplb.SendError
				if errors.As(r.Err, &failed) {
					pause = max(pause, failed.RetryAfter)
				}
			}
		}
		if len(rest) == 0 || rounds == 20 {
			return rounds, again, paused
		}
		again += len(rest)
		time.Sleep(pause)
		paused += pause
		envelopes = slices.Values(rest)
	}
}

// envelope is message number i of a kind. Three in ten are for Gmail.
func (n newsletter) envelope(kind byte, i int, stream string) *smtplb.Envelope {
	domain := "example.org"
	if i%10 < 3 {
		domain = "gmail.com"
	}
	e := envelope(fmt.Sprintf("%c%d@%s", kind, i, domain))
	e.Stream = stream
	return e
}

// letter reads the kind and the number of a recipient.
func letter(addr string) (kind byte, number int) {
	digits, _, _ := strings.Cut(addr[1:], "@")
	number, err := strconv.Atoi(digits)
	if err != nil {
		panic(err)
	}
	return addr[0], number
}

// punish makes a leaky bucket of n a second, which holds so many. It reports what is too much, and each such costs 20 more.
func punish(n, holds float64) func() bool {
	var mu sync.Mutex
	level, last := 0.0, time.Now()
	return func() bool {
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		level, last = max(0, level-n*now.Sub(last).Seconds()), now
		if level+1 > holds+1e-6 {
			level += 20
			return true
		}
		level++
		return false
	}
}

func percentileOf(list []time.Duration, p float64) time.Duration {
	sorted := slices.Sorted(slices.Values(list))
	return sorted[min(int(float64(len(sorted))*p/100), len(sorted)-1)]
}
