package smtptest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/smtptest"
)

func TestWaitFor(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		go func() {
			for i := range 3 {
				time.Sleep(time.Second)
				c.mail(fmt.Sprintf("%d@x.test", i), "x\r\n", "b@y.test")
			}
		}()
		start := time.Now()
		msgs, err := s.WaitFor(t.Context(), 2)
		if err != nil || len(msgs) != 2 || msgs[1].From != "1@x.test" || time.Since(start) != 2*time.Second {
			t.Errorf("WaitFor = %v, %v after %v", msgs, err, time.Since(start))
		}
		if msgs, err := s.WaitFor(t.Context(), 1); err != nil || len(msgs) != 2 {
			t.Errorf("WaitFor(1) = %v, %v", msgs, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		msgs, err = s.WaitFor(ctx, 5)
		if len(msgs) != 3 || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "waiting for 5 messages, 3 came") {
			t.Errorf("WaitFor(5) = %v, %v", msgs, err)
		}
		go func() {
			time.Sleep(time.Second)
			s.Close()
		}()
		_, err = s.WaitFor(t.Context(), 5)
		if err == nil || !strings.Contains(err.Error(), "3 came before the server was closed") {
			t.Error(err)
		}
		if _, err = s.WaitFor(t.Context(), 5); err == nil {
			t.Error("WaitFor on a closed server returned nil")
		}
	})
}

// TestStoredBeforeReply: whoever has read the 250 finds the message.
func TestStoredBeforeReply(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		for i := range 100 {
			reply := c.mail("a@x.test", "x\r\n", "b@y.test")
			msgs := s.Messages()
			if len(msgs) != i+1 || !strings.HasSuffix(reply, " queued as "+msgs[i].QueueID) {
				t.Fatalf("%d messages after %q", len(msgs), reply)
			}
		}
	})
}

func TestReset(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		first := greeted(t, n)
		id := first.mail("a@x.test", "x\r\n", "b@y.test")
		first.cmd("221 ", "QUIT")
		c := greeted(t, n)
		c.mail("a@x.test", "x\r\n", "b@y.test")
		synctest.Wait()
		s.Reset()
		if st := s.Stats(); st.Messages != 0 || st.Connections != 0 || st.Active != 1 || st.MaxActive != 1 || st.Bytes != 0 || len(st.Commands) != 0 || st.Transactions != 0 {
			t.Errorf("%+v", st)
		}
		if len(s.Messages()) != 0 {
			t.Error("messages are left")
		}
		if ts := s.Transcripts(); len(ts) != 1 || ts[0].Conn != 2 {
			t.Errorf("transcripts %v", ts)
		}
		if again := c.mail("a@x.test", "x\r\n", "b@y.test"); again == id {
			t.Errorf("queue ID used twice: %s", again)
		}
		if _, err := s.WaitFor(t.Context(), 1); err != nil {
			t.Error(err)
		}
	})
}

func TestStats(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		a, b := greeted(t, n), greeted(t, n)
		a.mail("a@x.test", "12345\r\n", "b@y.test", "c@y.test")
		a.mail("a@x.test", "..\r\n", "b@y.test")
		b.cmd("500 ", "FOO")
		b.cmd("250 ", "noop")
		b.cmd("250 ", "MAIL FROM:<x@y.test>")
		b.cmd("250 ", "RSET")
		b.Close()
		synctest.Wait()
		got := s.Stats()
		commands := got.Commands
		got.Commands = nil
		want := smtptest.Stats{Connections: 2, Active: 1, MaxActive: 2, Messages: 2, Recipients: 3, Bytes: 10, Transactions: 3, Reused: 1}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		if got, want := fmt.Sprint(commands), "map[?:1 DATA:2 EHLO:2 MAIL:3 NOOP:1 RCPT:3 RSET:1]"; got != want {
			t.Errorf("commands %s, want %s", got, want)
		}
	})
}

func TestTranscript(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		c.cmd("334 ", "AUTH LOGIN")
		c.cmd("334 ", "c2VjcmV0LXVzZXI=")
		c.cmd("535 ", "c2VjcmV0LXBhc3M=")
		c.cmd("500 ", "c2VjcmV0LWxhdGU=") // by mistake
		c.cmd("535 ", "AUTH PLAIN AHNlY3JldABzZWNyZXQ=")
		c.cmd("235 ", "auth plain AHUAcA==")
		c.mail("a@x.test", "secret body\r\n", "b@y.test")
		c.cmd("221 ", "QUIT")
		synctest.Wait()
		want := `-- connection 1 from client:40001
S: 220 relay-a.test ESMTP smtptest
C: EHLO client.test
S: 250-relay-a.test
S: 250-PIPELINING
S: 250 AUTH PLAIN LOGIN
C: AUTH LOGIN
S: 334 <redacted>
C: <redacted>
S: 334 <redacted>
C: <redacted>
S: 535 Authentication credentials invalid
C: <redacted>
S: 500 Command not recognized
C: AUTH PLAIN <redacted>
S: 535 Authentication credentials invalid
C: auth plain <redacted>
S: 235 Authentication successful
C: MAIL FROM:<a@x.test>
S: 250 Ok
C: RCPT TO:<b@y.test>
S: 250 Ok
C: DATA
S: 354 End data with <CR><LF>.<CR><LF>
-- body of 16 bytes
S: 250 Ok: queued as 0000000001
C: QUIT
S: 221 Bye
-- closed in good order
`
		if got := s.Transcript(); got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
		tr := s.Transcripts()
		if len(tr) != 1 || tr[0].Conn != 1 || tr[0].Remote != "client:40001" || tr[0].Start.IsZero() || tr[0].Truncated || len(tr[0].Lines) != strings.Count(want, "\n")-1 {
			t.Errorf("%+v", tr)
		}
	}, smtptest.WithAuth("u", "p"), smtptest.WithExtensions("PIPELINING"))
}

func TestTranscriptIsBounded(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		for range 5000 {
			c.send("NOOP\r\n")
		}
		for range 5000 {
			c.expect("250 ")
		}
		tr := s.Transcripts()[0]
		if !tr.Truncated || len(tr.String()) > 70<<10 || !strings.HasSuffix(tr.String(), "\n-- (truncated)\n") {
			t.Errorf("truncated %v, %d bytes", tr.Truncated, len(tr.String()))
		}
		for range 1000 {
			dial(t, n).Close()
		}
		synctest.Wait()
		if ts := s.Transcripts(); len(ts) != 1000 || ts[999].Conn != 1001 {
			t.Errorf("%d transcripts", len(ts))
		}
	})
}

func TestMaxConns(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		a, _ := greeted(t, n), greeted(t, n)
		c := dial(t, n)
		c.expect("421 4.7.0 Too many connections")
		c.eof()
		a.cmd("221 ", "QUIT")
		synctest.Wait()
		greeted(t, n)
		if st := s.Stats(); st.Connections != 4 || st.Refused != 1 || st.Active != 2 || st.MaxActive != 2 {
			t.Errorf("%+v", st)
		}
	}, smtptest.WithMaxConns(2))
}

func TestMaxMessages(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		for range 2 {
			c := greeted(t, n)
			c.mail("a@x.test", "x\r\n", "b@y.test")
			c.mail("a@x.test", "x\r\n", "b@y.test")
			c.send("MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\n")
			c.expect("421 4.7.0 Too many messages")
			c.eof()
		}
	}, smtptest.WithMaxMessages(2))
}

func TestIdleTimeout(t *testing.T) {
	for _, silent := range []bool{false, true} {
		opt := smtptest.WithIdleTimeout(time.Minute)
		if silent {
			opt = smtptest.WithSilentIdleTimeout(time.Minute)
		}
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			c := greeted(t, n)
			time.Sleep(59 * time.Second)
			c.mail("a@x.test", "x\r\n", "b@y.test")
			time.Sleep(59 * time.Second)
			c.ready()
			time.Sleep(time.Hour) // the body may take its time
			c.send("x\r\n.\r\n")
			c.expect("250 ")
			start := time.Now()
			if !silent {
				c.expect("421 4.4.2")
			}
			c.eof()
			if d := time.Since(start); d != time.Minute {
				t.Errorf("closed after %v", d)
			}
		}, opt)
	}
}

func TestKillAndRestart(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		idle := greeted(t, n)
		busy := greeted(t, n)
		busy.ready()
		busy.send("half a bo")
		stalled := greeted(t, n)
		s.On(smtptest.Noop).Stall()
		stalled.send("NOOP\r\n")
		synctest.Wait()
		s.Kill()
		for _, c := range []*client{idle, busy, stalled} {
			c.fails(isReset)
		}
		if _, err := n.DialContext(t.Context(), "tcp", relay); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dialling a dead server: %v", err)
		}
		s.Kill()
		synctest.Wait()
		if got := s.Stats().Active; got != 0 {
			t.Errorf("%d active", got)
		}
		if err := s.Restart(); err != nil {
			t.Fatal(err)
		}
		c := greeted(t, n)
		c.mail("a@x.test", "x\r\n", "b@y.test")
		if err := s.Restart(); err != nil { // of a running one
			t.Fatal(err)
		}
		c.fails(isReset)
		greeted(t, n).mail("a@x.test", "x\r\n", "b@y.test")
		msgs := s.Messages()
		if len(msgs) != 2 || msgs[0].QueueID == msgs[1].QueueID || msgs[0].Conn == msgs[1].Conn {
			t.Errorf("messages %v", msgs)
		}
		s.Close()
		if err := s.Restart(); err == nil {
			t.Error("a closed server was restarted")
		}
	})
}

// TestRestartTakenAddress: the error of the listener comes out.
func TestRestartTakenAddress(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.Kill()
		l, err := n.Listen(relay)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := s.Restart(); !errors.Is(err, syscall.EADDRINUSE) {
			t.Error(err)
		}
	})
}

func TestScriptedKill(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.On(smtptest.EndOfData).Nth(2).Kill()
		other := greeted(t, n)
		c := greeted(t, n)
		c.mail("a@x.test", "x\r\n", "b@y.test")
		c.ready()
		c.send("x\r\n.\r\n")
		c.fails(isReset)
		other.fails(isReset)
		if got := len(s.Messages()); got != 2 {
			t.Errorf("%d messages", got)
		}
	})
}

// TestKillUnderLoad: over TCP, nothing is stored after Kill has returned, and every
// message that was answered with 250 is stored.
func TestKillUnderLoad(t *testing.T) {
	s := smtptest.NewServer()
	defer s.Close()
	var accepted [8]int
	var wg sync.WaitGroup
	for i := range accepted {
		wg.Go(func() {
			nc, err := net.Dial("tcp", s.Addr)
			if err != nil {
				return
			}
			defer nc.Close()
			c := newClient(t, nc)
			c.reply()
			io.WriteString(nc, "EHLO c\r\n")
			c.reply()
			for {
				io.WriteString(nc, "MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n")
				for range 3 {
					c.reply()
				}
				io.WriteString(nc, "x\r\n.\r\n")
				if _, err := c.reply(); err != nil {
					return
				}
				accepted[i]++
			}
		})
	}
	if _, err := s.WaitFor(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	after := s.Stats().Messages
	wg.Wait()
	sum := 0
	for _, n := range accepted {
		sum += n
	}
	if got := s.Stats().Messages; got != after || sum > got || sum < got-len(accepted) {
		t.Errorf("%d messages at Kill, %d later, %d accepted", after, got, sum)
	}
	if _, err := net.Dial("tcp", s.Addr); err == nil {
		t.Error("a dead server accepts")
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("tcp", s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	s.Kill()
	if _, err := io.ReadAll(nc); !isReset(err) {
		t.Errorf("after Kill: %v", err)
	}
}

func TestPause(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		old := greeted(t, n)
		busy := greeted(t, n)
		busy.ready()
		s.Pause()
		s.Pause()
		fresh := dial(t, n)
		old.send("NOOP\r\n")
		busy.send("x\r\n.\r\n")
		deadline := time.Now().Add(time.Hour)
		for _, c := range []*client{fresh, old, busy} {
			c.SetReadDeadline(deadline)
			c.fails(isTimeout)
			c.SetReadDeadline(time.Time{})
		}
		if got := s.Stats().Messages; got != 0 {
			t.Errorf("%d messages stored in the pause", got)
		}
		s.Resume()
		s.Resume()
		fresh.expect("220 ")
		old.expect("250 ")
		busy.expect("250 ")
		// Killed, and closed below, in a pause.
		s.Pause()
		old.send("NOOP\r\n")
		s.Kill()
		old.fails(isReset)
		if err := s.Restart(); err != nil {
			t.Fatal(err)
		}
		c := greeted(t, n) // a restart is a new process: it runs
		s.Pause()
		c.send("NOOP\r\n")
		synctest.Wait()
		s.Close()
		c.fails(isReset)
	})
}

// TestPauseTLS: a paused server does not go on with a handshake.
func TestPauseTLS(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		c.cmd("220 ", "STARTTLS")
		s.Pause()
		go func() {
			time.Sleep(time.Hour)
			s.Resume()
		}()
		start := time.Now()
		c.handshake(s)
		if d := time.Since(start); d != time.Hour {
			t.Errorf("the handshake took %v", d)
		}
	}, smtptest.WithTLS())
}

// TestPausePutsDeadlinesOff: a stopped process does not close idle connections, nor
// does it carry out a script.
func TestPausePutsDeadlinesOff(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.On(smtptest.Noop).Delay(time.Second).Drop()
		idle, dropped := greeted(t, n), greeted(t, n)
		dropped.send("NOOP\r\n")
		synctest.Wait()
		s.Pause()
		time.Sleep(time.Hour)
		if got := s.Stats().Active; got != 2 {
			t.Errorf("%d connections active in the pause", got)
		}
		s.Resume()
		idle.eof()
		dropped.fails(isReset)
	}, smtptest.WithSilentIdleTimeout(time.Minute))
}

// TestPauseWithUnreadReplies: a client that does not read can't hold Pause up for
// more than a second.
func TestPauseWithUnreadReplies(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.On(smtptest.Banner).Endless("220-x")
		dial(t, n)
		synctest.Wait()
		start := time.Now()
		s.Pause()
		if d := time.Since(start); d != time.Second {
			t.Errorf("Pause took %v", d)
		}
	})
}

func TestClose(t *testing.T) {
	t.Run("idle and scripted", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := smtptest.NewNetwork()
			s := n.NewServer(relay, smtptest.WithLogf(t.Errorf), smtptest.WithTLS())
			s.On(smtptest.Noop).Stall()
			s.On(smtptest.Rset).Delay(time.Hour)
			s.On(smtptest.Quit).Endless("250-x")
			s.On(smtptest.Mail).Drip(time.Hour)
			s.On(smtptest.Helo).Reply(250, "x").Delay(time.Hour)
			idle := greeted(t, n)
			half := greeted(t, n)
			half.send("MAIL FR") // half a line
			handshake := greeted(t, n)
			handshake.cmd("220 ", "STARTTLS")
			challenged := greeted(t, n)
			for _, cmd := range []string{"NOOP", "RSET", "QUIT", "MAIL FROM:<a@x.test>", "HELO x"} {
				greeted(t, n).send("%s\r\n", cmd)
			}
			synctest.Wait()
			start := time.Now()
			s.Close()
			s.Close()
			if d := time.Since(start); d != 0 {
				t.Errorf("Close took %v", d)
			}
			for _, c := range []*client{idle, half, challenged} {
				c.expect("421 4.3.2")
				c.eof()
			}
			handshake.eof()
		})
	})
	t.Run("a message may finish", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := smtptest.NewNetwork()
			s := n.NewServer(relay, smtptest.WithLogf(t.Errorf))
			c := greeted(t, n)
			c.ready()
			go func() {
				time.Sleep(4 * time.Second)
				c.send("x\r\n.\r\n")
			}()
			start := time.Now()
			s.Close()
			if d := time.Since(start); d != 4*time.Second || len(s.Messages()) != 1 {
				t.Errorf("Close took %v, %d messages", d, len(s.Messages()))
			}
			c.expect("250 ", "421 4.3.2")
			c.eof()
		})
	})
	t.Run("reports what hangs", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := smtptest.NewNetwork()
			var log strings.Builder
			s := n.NewServer(relay, smtptest.WithLogf(func(format string, args ...any) { fmt.Fprintf(&log, format, args...) }))
			greeted(t, n)
			c := greeted(t, n)
			c.ready()
			c.send("x")
			synctest.Wait()
			start := time.Now()
			s.Close()
			if d := time.Since(start); d != 5*time.Second {
				t.Errorf("Close took %v", d)
			}
			if want := "smtptest: Close of relay-a.test:587: blocked for 5s, resetting\n\tconnection 2 from client:40002: stage Body, waiting for the body, last command \"DATA\"\n"; log.String() != want {
				t.Errorf("log %q\nwant %q", &log, want)
			}
			c.fails(isReset)
		})
	})
	t.Run("panics over a callback that blocks", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := smtptest.NewNetwork()
			s := n.NewServer(relay, smtptest.WithLogf(t.Logf))
			release := make(chan struct{})
			s.On(smtptest.Rcpt).If(func(*smtptest.Event) bool { <-release; return false }).Drop()
			c := greeted(t, n)
			c.send("MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\n")
			synctest.Wait()
			defer close(release)
			defer func() {
				if r := fmt.Sprint(recover()); !strings.Contains(r, "connection 1 from client:40001: stage Rcpt, at work") {
					t.Errorf("panic %q", r)
				}
			}()
			s.Close()
		})
	})
	t.Run("TCP", func(t *testing.T) {
		s := smtptest.NewServer(smtptest.WithLogf(t.Errorf))
		nc, err := net.Dial("tcp", s.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		io.ReadFull(nc, make([]byte, 10))
		start := time.Now()
		s.Close()
		if d := time.Since(start); d > 3*time.Second {
			t.Errorf("Close took %v", d)
		}
		if b, err := io.ReadAll(nc); err != nil || !strings.HasSuffix(string(b), "421 4.3.2 Service shutting down\r\n") {
			t.Errorf("read %q, %v", b, err)
		}
	})
}

// TestEndingsTCP: on real sockets too a drop is a reset, and a FIN an end of the
// stream though the client's bytes are unread; what was said before comes through.
func TestEndingsTCP(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  func(*smtptest.Rule)
		want func(error) bool
	}{
		{"Drop", func(r *smtptest.Rule) { r.Drop() }, isReset},
		{"DropFIN", func(r *smtptest.Rule) { r.DropFIN() }, isEOF},
		{"ThenDrop", func(r *smtptest.Rule) { r.Reply(250, "x").ThenDrop() }, isReset},
		{"ThenClose", func(r *smtptest.Rule) { r.Reply(250, "x").ThenClose() }, isEOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := smtptest.NewServer()
			defer s.Close()
			tt.set(s.On(smtptest.Rset))
			nc, err := net.Dial("tcp", s.Addr)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			c := newClient(t, nc)
			c.expect("220 ")
			c.send("NOOP\r\nRSET\r\n%s", strings.Repeat("NOOP\r\n", 10000))
			c.expect("250 ")
			if strings.HasPrefix(tt.name, "Then") {
				c.expect("250 x")
			}
			c.fails(tt.want)
		})
	}
}

// TestDiscard: nothing is kept, everything is counted, and a body of any size costs
// no memory.
func TestDiscard(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		body := strings.Repeat(strings.Repeat("x", 998)+"\r\n", 1000)
		send := func() { c.mail("a@x.test", body, "b@y.test") }
		send()
		big := testing.AllocsPerRun(20, send)
		body = "x\r\n"
		small := testing.AllocsPerRun(20, send)
		if big > small+5 {
			t.Errorf("%v allocations for a message of 1 MB, %v for one of 3 bytes", big, small)
		}
		msgs, err := s.WaitFor(t.Context(), 40)
		if st := s.Stats(); err != nil || len(msgs) != 0 || len(s.Messages()) != 0 || st.Messages != 43 || s.Transcript() != "" {
			t.Errorf("%v, %d messages kept, %+v, transcript %q", err, len(msgs), st, s.Transcript())
		}
	}, smtptest.WithDiscard())
}

func TestNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := smtptest.NewNetwork()
		n.SetLatency(10*time.Millisecond, 20*time.Millisecond)
		n.SetBuffer(1000)
		s := n.NewServer(relay)
		defer s.Close()
		func() {
			defer func() {
				if r := recover(); r == nil {
					t.Error("a second server on the address")
				}
			}()
			n.NewServer(relay)
		}()
		start := time.Now()
		c := greeted(t, n)
		// Dial 30 ms, the banner 20, EHLO 30.
		if d := time.Since(start); d != 80*time.Millisecond {
			t.Errorf("dial and EHLO took %v", d)
		}
		c.mail("a@x.test", strings.Repeat("x", 9000)+"\r\n", "b@y.test")
		n.Blackhole(relay, true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := n.DialContext(ctx, "tcp", relay); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		n.Blackhole(relay, false)
		greeted(t, n)
		if got := s.URL(); got != "smtp://relay-a.test:587?tls=none" || s.Addr != relay || !slices.Equal(s.Transcripts()[0].Lines[:1], []string{"S: 220 relay-a.test ESMTP smtptest"}) {
			t.Errorf("URL %s, Addr %s", got, s.Addr)
		}
	})
}
