package smtptest_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb/smtptest"
)

// TestStress: clients, rules that come and go, pauses, kills and restarts at once.
// What was answered with 250 is stored exactly once, and nothing is stored while
// the server is dead or paused.
func TestStress(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		n.SetLatency(time.Millisecond, time.Millisecond)
		end := time.Now().Add(3 * time.Second)
		var mu sync.Mutex // protects accepted
		accepted := make(map[string]bool)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for j := 0; time.Now().Before(end); j++ {
					from := fmt.Sprintf("%d.%d@x.test", i, j)
					if sendOnce(t, n, from) {
						mu.Lock()
						accepted[from] = true
						mu.Unlock()
					}
					time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
				}
			})
		}
		wg.Go(func() {
			for time.Now().Before(end) {
				rule := s.On(smtptest.EndOfData).Every(3).Delay(time.Duration(rand.IntN(5)) * time.Millisecond).Drop()
				time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond)
				rule.Remove()
				s.Stats()
				s.Transcripts()
			}
		})
		quiet := func() {
			before := s.Stats().Messages
			time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
			if got := s.Stats().Messages; got != before {
				t.Errorf("%d messages were stored while the server was dead or paused", got-before)
			}
		}
		for time.Now().Before(end) {
			time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
			s.Pause()
			quiet()
			s.Resume()
			time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
			s.Kill()
			quiet()
			if err := s.Restart(); err != nil {
				t.Fatal(err)
			}
		}
		wg.Wait()
		stored := make(map[string]int)
		for _, m := range s.Messages() {
			stored[m.From]++
			if stored[m.From] > 1 {
				t.Errorf("%s was stored %d times", m.From, stored[m.From])
			}
		}
		for from := range accepted {
			if stored[from] != 1 {
				t.Errorf("%s was accepted and is stored %d times", from, stored[from])
			}
		}
		if len(accepted) < 100 || len(stored) == len(accepted) {
			t.Errorf("%d accepted, %d stored: that is no stress", len(accepted), len(stored))
		}
	})
}

// sendOnce sends one message on a connection of its own and reports whether it was
// answered with 250.
func sendOnce(t *testing.T, n *smtptest.Network, from string) bool {
	nc, err := n.DialContext(t.Context(), "tcp", relay)
	if err != nil {
		return false
	}
	defer nc.Close()
	c := newClient(t, nc)
	for _, send := range []string{"", "EHLO c\r\n", "MAIL FROM:<" + from + ">\r\n", "RCPT TO:<b@y.test>\r\n", "DATA\r\n", "x\r\n.\r\n"} {
		if send != "" {
			if _, err := nc.Write([]byte(send)); err != nil {
				return false
			}
		}
		if reply, err := c.reply(); err != nil || reply[0] > '3' {
			return false
		}
	}
	return true
}
