package main

import (
	"strings"
	"sync"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// world is the relays, and what they stored.
type world struct {
	network *smtptest.Network
	relays  []*smtptest.Server
	rules   []*smtptest.Rule // that refuse what is too much
	over    chan struct{}
	wg      sync.WaitGroup

	mu     sync.Mutex     // guards copies
	copies map[string]int // by recipient
}

// start starts the relays. From the first minute to the sixth one of them is dead.
func start() *world {
	w := &world{network: smtptest.NewNetwork(), copies: make(map[string]int), over: make(chan struct{})}
	w.network.SetLatency(2*time.Millisecond, 2*time.Millisecond)
	gmail := smtptest.Over(15, time.Second, 15)
	for _, name := range []string{"a", "b", "c", "d"} {
		relay := w.network.NewServer(name+".test:25", smtptest.WithDiscard(), smtptest.WithStored(func(m *smtptest.Message) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.copies[m.To[0]]++
		}))
		w.relays = append(w.relays, relay)
		w.rules = append(w.rules,
			relay.On(smtptest.Mail).If(smtptest.Over(25, time.Second, 25)).Reply(454, "4.7.0 Throttling failure: Maximum sending rate exceeded."),
			relay.On(smtptest.Rcpt).If(func(e *smtptest.Event) bool { return strings.HasSuffix(e.Rcpt, "@gmail.com") && gmail(e) }).
				Reply(450, "4.2.1 The user you are trying to contact is receiving mail too quickly."))
		relay.On(smtptest.EndOfData).Delay(100 * time.Millisecond)
	}
	w.wg.Go(func() {
		if w.pause(time.Minute) {
			w.relays[3].Kill()
			w.pause(5 * time.Minute)
			if err := w.relays[3].Restart(); err != nil {
				panic(err) // in memory nobody else takes the address
			}
		}
	})
	return w
}

// pause waits, and reports whether the end has not come.
func (w *world) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-w.over:
		return false
	}
}

func (w *world) close() {
	close(w.over)
	w.wg.Wait()
	for _, relay := range w.relays {
		relay.Close()
	}
}

// count compares what was told with what is stored.
func (w *world) count(outcomes map[string]smtplb.Outcome) (lost, twice, refused int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for to, outcome := range outcomes {
		if outcome == smtplb.Accepted && w.copies[to] == 0 {
			lost++
		}
		if w.copies[to] > 1 {
			twice++
		}
	}
	for _, rule := range w.rules {
		refused += rule.Fired()
	}
	return lost, twice, refused
}
