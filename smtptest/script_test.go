package smtptest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/smtptest"
)

func isReset(err error) bool   { return errors.Is(err, syscall.ECONNRESET) }
func isEOF(err error) bool     { return err == io.EOF }
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// ready brings a connection to where the body is to be sent.
func (c *client) ready() {
	c.t.Helper()
	c.play(conversation{{"MAIL FROM:<a@x.test>", "250 "}, {"RCPT TO:<b@y.test>", "250 "}, {"DATA", "354 "}})
}

// TestReplyAtEachStage: a reply of the script replaces the server's own, and the
// server takes it at its word.
func TestReplyAtEachStage(t *testing.T) {
	tests := []struct {
		name  string
		rule  func(*smtptest.Server)
		conv  conversation // after EHLO
		count int          // messages
	}{
		{"MAIL", func(s *smtptest.Server) { s.On(smtptest.Mail).Nth(1).Reply(451, "4.3.0 later") }, conversation{
			{"MAIL FROM:<a@x.test>", "451 4.3.0 later"}, {"RCPT TO:<b@y.test>", "503 "}, {"MAIL FROM:<a@x.test>", "250 "}}, 0},
		{"MAIL accepted", func(s *smtptest.Server) { s.On(smtptest.Mail).Reply(250, "any time") }, conversation{
			{"MAIL FROM:<a@x.test> FOO", "250 any time"}, {"RCPT TO:<b@y.test>", "250 "}, {"MAIL FROM:<a@x.test>", "250 any time"}, {"DATA", "554 "}}, 0},
		{"RCPT", func(s *smtptest.Server) {
			s.On(smtptest.Rcpt).For("bob@y.test", "eve@y.test").Reply(550, "5.1.1 No such user")
			s.On(smtptest.Rcpt).For("@GREY.test").Times(1).Reply(450, "4.7.1 Greylisted")
		}, conversation{
			{"MAIL FROM:<a@x.test>", "250 "}, {"RCPT TO:<Bob@y.test>", "550 5.1.1"}, {"RCPT TO:<eve@y.test>", "550 5.1.1"}, {"DATA", "554 "},
			{"RCPT TO:<b@grey.test>", "450 "}, {"RCPT TO:<b@grey.test>", "250 "}, {"DATA", "354 "}, {".", "250 "}}, 1},
		{"RCPT accepted", func(s *smtptest.Server) { s.On(smtptest.Rcpt).Reply(251, "2.1.5 will forward") }, conversation{
			{"MAIL FROM:<a@x.test>", "250 "}, {"RCPT TO:<b@y.test>", "251 "}, {"DATA", "354 "}, {".", "250 "}}, 1},
		{"DATA", func(s *smtptest.Server) { s.On(smtptest.Data).Reply(451, "no") }, conversation{
			{"MAIL FROM:<a@x.test>", "250 "}, {"RCPT TO:<b@y.test>", "250 "}, {"DATA", "451 no"}, {"NOOP", "250 "}}, 0},
		{"354 to nobody", func(s *smtptest.Server) { s.On(smtptest.Data).Reply(354, "go") }, conversation{
			{"DATA", "354 go"}, {"x\r\n.", "554 5.5.1"}}, 0},
		{"final 4xx", func(s *smtptest.Server) { s.On(smtptest.EndOfData).Reply(451, "4.3.0 later") }, conversation{
			{"MAIL FROM:<a@x.test>", "250 "}, {"RCPT TO:<b@y.test>", "250 "}, {"DATA", "354 "}, {".", "451 4.3.0 later"}, {"DATA", "503 "}}, 0},
		{"final 2xx", func(s *smtptest.Server) { s.On(smtptest.EndOfData).Reply(250, "OK id={queueid}") }, conversation{
			{"MAIL FROM:<a@x.test>", "250 "}, {"RCPT TO:<b@y.test>", "250 "}, {"DATA", "354 "}, {".", "250 OK id=0000000001"}}, 1},
		{"stored with 451", func(s *smtptest.Server) { s.On(smtptest.EndOfData).Reply(451, "x").Stored() }, conversation{
			{"MAIL FROM:<a@x.test>", "250 "}, {"RCPT TO:<b@y.test>", "250 "}, {"DATA", "354 "}, {".", "451 x"}}, 1},
		{"lost with 250", func(s *smtptest.Server) { s.On(smtptest.EndOfData).Unstored() }, conversation{
			{"MAIL FROM:<a@x.test>", "250 "}, {"RCPT TO:<b@y.test>", "250 "}, {"DATA", "354 "}, {".", "250 2.0.0 Ok: queued as 0000000001"}}, 0},
		{"not stored where the server itself refuses", func(s *smtptest.Server) { s.On(smtptest.EndOfData).Delay(time.Second) }, conversation{
			{"MAIL FROM:<a@x.test>", "250 "}, {"RCPT TO:<b@y.test>", "250 "}, {"DATA", "354 "}, {strings.Repeat("x", 2000) + "\r\n.", "552 "}}, 0},
		{"RSET", func(s *smtptest.Server) { s.On(smtptest.Rset).Reply(454, "no") }, conversation{
			{"MAIL FROM:<a@x.test>", "250 "}, {"RSET", "454 no"}, {"MAIL FROM:<a@x.test>", "503 "}}, 0},
		{"NOOP", func(s *smtptest.Server) { s.On(smtptest.Noop).Reply(250, "yes\nstill here") }, conversation{{"NOOP", "250 still here"}}, 0},
		{"EHLO and HELO", func(s *smtptest.Server) {
			s.On(smtptest.Ehlo).Nth(1).Reply(250, "mx.test\nSIZE 1")
			s.On(smtptest.Ehlo).Nth(2).Reply(550, "who are you")
			s.On(smtptest.Helo).Reply(550, "go away")
		}, conversation{{"EHLO again.test", "250 SIZE 1"}, {"EHLO again.test", "550 who"}, {"HELO again.test", "550 go away"}, {"MAIL FROM:<a@x.test>", "250 "}}, 0},
		{"STARTTLS", func(s *smtptest.Server) { s.On(smtptest.StartTLS).Reply(454, "4.7.0 TLS not available") }, conversation{
			{"STARTTLS", "454 4.7.0"}, {"NOOP", "250 "}}, 0},
		{"AUTH refused", func(s *smtptest.Server) { s.On(smtptest.Auth).Reply(454, "4.7.0 Temporary failure") }, conversation{
			{"AUTH PLAIN AHUAcA==", "454 "}, {"MAIL FROM:<a@x.test>", "250 "}}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
				c := greeted(t, n)
				tt.rule(s)
				c.play(tt.conv)
				if got := len(s.Messages()); got != tt.count {
					t.Errorf("%d messages, want %d", got, tt.count)
				}
			}, smtptest.WithMaxSize(1000))
		})
	}
}

func TestQuitReply(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.On(smtptest.Quit).Reply(500, "what?")
		c := greeted(t, n)
		c.cmd("500 what?", "QUIT")
		c.eof()
	})
}

func TestBanner(t *testing.T) {
	t.Run("reply", func(t *testing.T) {
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			s.On(smtptest.Banner).Conn(1).Reply(554, "5.3.2 go away")
			s.On(smtptest.Banner).Conn(2).Reply(421, "4.3.2 not now")
			c := dial(t, n)
			c.expect("554 5.3.2 go away")
			c.cmd("503 ", "EHLO client.test")
			c.cmd("221 ", "QUIT")
			c.eof()
			c = dial(t, n)
			c.expect("421 4.3.2")
			c.eof()
			c = dial(t, n)
			c.expect("220 ")
		})
	})
	t.Run("raw", func(t *testing.T) {
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			s.On(smtptest.Banner).Raw("garbage\x00")
			c := dial(t, n)
			synctest.Wait()
			b := make([]byte, 100)
			if k, err := c.Read(b); string(b[:k]) != "garbage\x00" || err != nil {
				t.Errorf("read %q, %v", b[:k], err)
			}
			c.cmd("250 ", "EHLO client.test") // it goes on
		})
	})
	t.Run("options", func(t *testing.T) {
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			c := dial(t, n)
			if got := c.expect("220 "); got != "220-first\n220 second" {
				t.Errorf("banner %q", got)
			}
		}, smtptest.WithBanner("first\nsecond"))
	})
	t.Run("drip", func(t *testing.T) {
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			s.On(smtptest.Banner).Drip(time.Second)
			c := dial(t, n)
			start := time.Now()
			want := time.Duration(len(c.expect("220 "))+2) * time.Second
			if d := time.Since(start); d != want {
				t.Errorf("the banner took %v, want %v", d, want)
			}
			c.cmd("250 ", "EHLO client.test")
			if d := time.Since(start); d != want {
				t.Errorf("the reply to EHLO dripped too: %v", d-want)
			}
		})
	})
	t.Run("endless", func(t *testing.T) {
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			s.On(smtptest.Banner).Endless("220-wait")
			c := dial(t, n)
			b := make([]byte, 5<<20) // more than the buffer holds
			if _, err := io.ReadFull(c, b); err != nil || !bytes.HasPrefix(b[5000:], []byte("220-wait\r\n")) {
				t.Errorf("read %q…, %v", b[5000:5020], err)
			}
			c.Close()
			synctest.Wait()
			if got := s.Stats().Active; got != 0 {
				t.Errorf("%d connections active", got)
			}
			dial(t, n) // a second one, for Close to end
			synctest.Wait()
		})
	})
}

// TestEndings: Drop, DropFIN and Stall at each stage of a conversation. What was
// said before comes through.
func TestEndings(t *testing.T) {
	walk := []struct {
		stage  smtptest.Stage
		send   string
		before int // replies before the end
	}{
		{smtptest.Connect, "", 0},
		{smtptest.Banner, "", 0},
		{smtptest.Ehlo, "EHLO c\r\n", 1},
		{smtptest.Helo, "EHLO c\r\nHELO c\r\n", 2},
		{smtptest.StartTLS, "EHLO c\r\nSTARTTLS\r\n", 2},
		{smtptest.TLSHandshake, "EHLO c\r\nSTARTTLS\r\n", 3},
		{smtptest.Auth, "EHLO c\r\nAUTH LOGIN\r\n", 2},
		{smtptest.AuthChallenge, "EHLO c\r\nAUTH LOGIN\r\n", 2},
		{smtptest.Mail, "EHLO c\r\nMAIL FROM:<a@x.test>\r\n", 2},
		{smtptest.Rcpt, "EHLO c\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\n", 3},
		{smtptest.Data, "EHLO c\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n", 4},
		{smtptest.Body, "EHLO c\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\nx", 5},
		{smtptest.EndOfData, "EHLO c\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n.\r\n", 5},
		{smtptest.Idle, "EHLO c\r\nMAIL FROM:<a@x.test>\r\nRSET\r\n", 4},
		{smtptest.Rset, "RSET\r\n", 1},
		{smtptest.Noop, "NOOP\r\n", 1},
		{smtptest.Quit, "QUIT\r\n", 1},
	}
	endings := []struct {
		name string
		set  func(*smtptest.Rule) *smtptest.Rule
		want func(error) bool
	}{
		{"Drop", (*smtptest.Rule).Drop, isReset},
		{"DropFIN", (*smtptest.Rule).DropFIN, isEOF},
		{"Stall", (*smtptest.Rule).Stall, isTimeout},
	}
	for _, w := range walk {
		for _, e := range endings {
			t.Run(w.stage.String()+" "+e.name, func(t *testing.T) {
				opts := []smtptest.Option{smtptest.WithTLS()}
				if w.stage == smtptest.Auth || w.stage == smtptest.AuthChallenge {
					opts = []smtptest.Option{smtptest.WithAuth("u", "p")}
				}
				bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
					rule := e.set(s.On(w.stage))
					c := dial(t, n)
					c.SetReadDeadline(time.Now().Add(time.Hour))
					if w.send != "" {
						c.send("%s", w.send)
					}
					for range w.before {
						c.expect("")
					}
					c.fails(e.want)
					if rule.Fired() != 1 {
						t.Errorf("fired %d times", rule.Fired())
					}
					synctest.Wait()
					active, stored := 0, 0
					if e.name == "Stall" {
						active = 1
					}
					if w.stage == smtptest.EndOfData {
						stored = 1
					}
					if st := s.Stats(); st.Active != active || st.Messages != stored {
						t.Errorf("%d active, %d messages, want %d and %d", st.Active, st.Messages, active, stored)
					}
				}, opts...)
			})
		}
	}
}

func TestUnstoredEndings(t *testing.T) {
	for name, set := range map[string]func(*smtptest.Rule) *smtptest.Rule{
		"DropUnstored": (*smtptest.Rule).DropUnstored,
		"Stall":        func(r *smtptest.Rule) *smtptest.Rule { return r.Stall().Unstored() },
		"Kill":         func(r *smtptest.Rule) *smtptest.Rule { return r.Unstored().Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
				set(s.On(smtptest.EndOfData))
				c := greeted(t, n)
				c.ready()
				c.send("x\r\n.\r\n")
				synctest.Wait()
				if got := s.Stats().Messages; got != 0 {
					t.Errorf("%d messages", got)
				}
			})
		})
	}
}

// TestBodyCut: a rule of Body takes effect at exactly its byte, however the body is
// cut into writes.
func TestBodyCut(t *testing.T) {
	const body = "line\r\n..\r\nmore\r\n.\r\n"
	for after := int64(0); after <= int64(len(body))+1; after++ {
		for _, size := range []int{1, 3, 1000} {
			bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
				var seen int64
				s.On(smtptest.Body).After(after).If(func(ev *smtptest.Event) bool { seen = ev.Bytes; return true }).Drop()
				c := greeted(t, n)
				c.ready()
				for b := range slices.Chunk([]byte(body), size) {
					if _, err := c.Write(b); err != nil && !isReset(err) {
						t.Fatal(err)
					}
					synctest.Wait()
				}
				// The terminator is seen with its last byte, which is too late for a rule.
				if after >= int64(len(body)) {
					c.expect("250 ")
				} else if c.fails(isReset); seen != max(after, 1) {
					t.Errorf("After(%d), segments of %d: Bytes = %d", after, size, seen)
				}
				if got, want := len(s.Messages()), b2i(after >= int64(len(body))); got != want {
					t.Errorf("After(%d), segments of %d: %d messages", after, size, got)
				}
			})
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestBodyReply(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.On(smtptest.Body).Conn(1).After(3).Reply(552, "5.3.4 too big")
		s.On(smtptest.Body).Conn(2).After(3).Reply(552, "5.3.4 too big").ThenDrop()
		s.On(smtptest.Body).Conn(3).After(3).Raw("250 early\r\n")
		s.On(smtptest.Body).Conn(4).After(5).Delay(time.Second)
		s.On(smtptest.Body).Conn(4).After(3).Delay(time.Second)

		c := greeted(t, n)
		c.ready()
		c.send("abc")
		c.expect("552 5.3.4")
		c.send("def\r\n.\r\n")
		c.cmd("250 2.0.0 Ok", "NOOP") // there is no second reply
		c.cmd("503 ", "DATA")

		c = greeted(t, n)
		c.ready()
		c.send("abcdef")
		c.expect("552 5.3.4")
		c.fails(isReset)

		c = greeted(t, n)
		c.ready()
		c.send("abcdef\r\n.\r\n")
		c.expect("250 early")
		c.cmd("250 2.0.0 Ok", "NOOP")

		c = greeted(t, n)
		start := time.Now()
		c.mail("a@x.test", "abcdef\r\n", "b@y.test")
		if d := time.Since(start); d != 2*time.Second {
			t.Errorf("the body took %v", d)
		}
		if got := len(s.Messages()); got != 1 {
			t.Errorf("%d messages", got)
		}
	})
}

func TestBodyRuleInChunk(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.On(smtptest.Body).After(6).Reply(552, "5.3.4 too big").ThenDrop()
		c := greeted(t, n)
		c.play(conversation{{"MAIL FROM:<a@x.test>", "250 "}, {"RCPT TO:<b@y.test>", "250 "}})
		c.send("BDAT 4\r\nabcdBDAT 4 LAST\r\nefgh")
		c.expect("250 ", "552 5.3.4")
		c.fails(isReset)
	}, smtptest.WithExtensions("PIPELINING", "CHUNKING"))
}

func TestDelay(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.On(smtptest.Data).Times(2).Delay(5 * time.Second)
		s.On(smtptest.EndOfData).Delay(time.Minute).Reply(250, "slow")
		s.On(smtptest.Quit).Delay(time.Hour).Drop()
		c := greeted(t, n)
		for i, want := range []time.Duration{65 * time.Second, 65 * time.Second, 60 * time.Second} {
			start := time.Now()
			c.mail("a@x.test", "x\r\n", "b@y.test")
			if d := time.Since(start); d != want {
				t.Errorf("message %d took %v, want %v", i, d, want)
			}
			if m := s.Messages()[i]; time.Since(m.Time) != 0 {
				t.Errorf("message %d was stored before the delay", i)
			}
		}
		// The replies before a delay are not delayed.
		c.send("NOOP\r\nQUIT\r\n")
		start := time.Now()
		c.expect("250 ")
		if d := time.Since(start); d != 0 {
			t.Errorf("NOOP took %v", d)
		}
		c.fails(isReset)
		if d := time.Since(start); d != time.Hour {
			t.Errorf("the reset came after %v", d)
		}
	})
}

func TestDelayBy(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		asked := 0
		second := func(*smtptest.Event) time.Duration { asked++; return time.Duration(asked) * time.Second }
		s.On(smtptest.Rcpt).For("slow@y.test").DelayBy(second)
		s.On(smtptest.EndOfData).DelayBy(func(ev *smtptest.Event) time.Duration { return time.Duration(len(ev.To)) * time.Minute })
		loser := s.On(smtptest.Rcpt).DelayBy(func(*smtptest.Event) time.Duration { return time.Hour }).Delay(0)
		c := greeted(t, n)
		for i, test := range []struct {
			to   []string
			want time.Duration
		}{
			{[]string{"slow@y.test"}, 61 * time.Second},
			{[]string{"slow@y.test", "b@y.test"}, 122 * time.Second},
			{[]string{"b@y.test"}, time.Minute},
		} {
			start := time.Now()
			c.mail("a@x.test", "x\r\n", test.to...)
			if d := time.Since(start); d != test.want {
				t.Errorf("message %d took %v, want %v", i, d, test.want)
			}
			if m := s.Messages()[i]; time.Since(m.Time) != 0 {
				t.Errorf("message %d was stored before the delay", i)
			}
		}
		if asked != 2 || loser.Fired() != 2 {
			t.Errorf("asked %d times for 2 occurrences; %d others", asked, loser.Fired())
		}
	})
}

func TestThen(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  func(*smtptest.Rule)
		want func(error) bool
	}{
		{"ThenClose", func(r *smtptest.Rule) { r.ThenClose() }, isEOF},
		{"ThenDrop", func(r *smtptest.Rule) { r.ThenDrop() }, isReset},
		{"Raw ThenDrop", func(r *smtptest.Rule) { r.Raw("250 ok\r\n").ThenDrop() }, isReset},
		{"Drip ThenDrop", func(r *smtptest.Rule) { r.Drip(time.Second).ThenDrop() }, isReset},
		{"421 closes", func(r *smtptest.Rule) { r.Reply(421, "4.7.0 enough") }, isEOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
				tt.set(s.On(smtptest.EndOfData))
				c := greeted(t, n)
				c.ready()
				c.send(".\r\n")
				c.expect("")
				c.fails(tt.want)
			})
		})
	}
}

func TestNumbers(t *testing.T) {
	tests := []struct {
		name string
		rule func(*smtptest.Rule) *smtptest.Rule
		want string // y where it takes effect
	}{
		{"always", func(r *smtptest.Rule) *smtptest.Rule { return r }, "yyyyyyyyy"},
		{"Nth", func(r *smtptest.Rule) *smtptest.Rule { return r.Nth(3) }, "nnynnnnnn"},
		{"Times", func(r *smtptest.Rule) *smtptest.Rule { return r.Times(2) }, "yynnnnnnn"},
		{"Nth and Times", func(r *smtptest.Rule) *smtptest.Rule { return r.Nth(3).Times(2) }, "nnyynnnnn"},
		{"Every", func(r *smtptest.Rule) *smtptest.Rule { return r.Every(3) }, "nnynnynny"},
		{"Every and Times", func(r *smtptest.Rule) *smtptest.Rule { return r.Every(2).Times(3) }, "nynynynnn"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
				rule := tt.rule(s.On(smtptest.Noop)).Reply(450, "n-th")
				c := greeted(t, n)
				var got strings.Builder
				for range tt.want {
					if strings.HasPrefix(c.cmd("", "NOOP"), "450") {
						got.WriteByte('y')
					} else {
						got.WriteByte('n')
					}
				}
				if got.String() != tt.want || rule.Fired() != strings.Count(tt.want, "y") {
					t.Errorf("got %s (%d), want %s", &got, rule.Fired(), tt.want)
				}
			})
		})
	}
}

// TestFirstMatchWins: also, a rule without an action has no effect, and rules can
// be removed.
func TestFirstMatchWins(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.On(smtptest.Noop)
		one := s.On(smtptest.Noop).Times(1).Reply(451, "one")
		two := s.On(smtptest.Noop).Times(2).Reply(452, "two")
		three := s.On(smtptest.Noop).Reply(453, "three")
		c := greeted(t, n)
		c.play(conversation{{"NOOP", "451 "}, {"NOOP", "452 "}, {"NOOP", "452 "}, {"NOOP", "453 "}})
		if one.Fired() != 1 || two.Fired() != 2 || three.Fired() != 1 {
			t.Errorf("fired %d, %d, %d", one.Fired(), two.Fired(), three.Fired())
		}
		three.Remove()
		c.cmd("250 ", "NOOP")
		s.On(smtptest.Noop).Reply(454, "four")
		c.cmd("454 ", "NOOP")
		s.ClearScript()
		c.cmd("250 ", "NOOP")
	})
}

// TestNthCountsForEachRule: an earlier rule that wins takes nothing from the count
// of a later one.
func TestNthCountsForEachRule(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.On(smtptest.Noop).Nth(1).Reply(451, "one")
		s.On(smtptest.Noop).Nth(2).Reply(452, "two")
		s.On(smtptest.Noop).Every(2).Reply(453, "even")
		c := greeted(t, n)
		c.play(conversation{{"NOOP", "451 "}, {"NOOP", "452 "}, {"NOOP", "250 "}, {"NOOP", "453 "}})
	})
}

func TestFilters(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.On(smtptest.Mail).From("x@y.test").Reply(551, "mail")
		s.On(smtptest.Mail).From("<>").Reply(552, "null")
		s.On(smtptest.Rcpt).From("@d.test").For("b@y.test").Reply(553, "rcpt")
		s.On(smtptest.EndOfData).For("c@y.test").Reply(554, "data")
		s.On(smtptest.Noop).From("").Reply(555, "never")
		c := greeted(t, n)
		c.play(conversation{
			{"NOOP", "250 "},
			{"MAIL FROM:<X@Y.test>", "551 "}, {"MAIL FROM:<>", "552 "}, {"MAIL FROM:<a@d.test>", "250 "},
			{"RCPT TO:<b@y.test>", "553 "}, {"RCPT TO:<c@y.test>", "250 "}, {"RCPT TO:<d@y.test>", "250 "}, {"DATA", "354 "}, {".", "554 "},
			{"MAIL FROM:<a@e.test>", "250 "}, {"RCPT TO:<b@y.test>", "250 "}, {"DATA", "354 "}, {".", "250 "},
		})
	})
}

func TestEvent(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		var got []smtptest.Event
		for stage := smtptest.Connect; stage <= smtptest.Idle; stage++ {
			s.On(stage).If(func(ev *smtptest.Event) bool { got = append(got, *ev); return false }).Drop()
		}
		c := greeted(t, n)
		c.mail("a@x.test", "..\r\n", "b@y.test", "c@y.test")
		c.cmd("250 ", "MAIL FROM:<d@x.test>")
		var stages []string
		for _, ev := range got {
			stages = append(stages, ev.Stage.String())
		}
		if want := "Connect Banner Ehlo Mail Rcpt Rcpt Data Body EndOfData Idle Mail"; strings.Join(stages, " ") != want {
			t.Fatalf("stages %v, want %s", stages, want)
		}
		ev := got[5]
		if ev.Rcpt != "c@y.test" || !slices.Equal(ev.To, []string{"b@y.test"}) || ev.From != "a@x.test" || ev.Transaction != 1 || ev.Conn != 1 || ev.HELO != "client.test" {
			t.Errorf("Rcpt: %+v", ev)
		}
		ev = got[8]
		if ev.Bytes != 7 || len(ev.To) != 2 || ev.Message == nil || string(ev.Message.Data) != ".\r\n" || ev.Message.QueueID == "" {
			t.Errorf("EndOfData: %+v", ev)
		}
		ev = got[10]
		if ev.From != "d@x.test" || ev.Transaction != 2 || ev.To != nil {
			t.Errorf("Mail: %+v", ev)
		}
		if got := smtptest.Stage(99).String(); got != "Stage(99)" {
			t.Error(got)
		}
	})
}

func TestIdleRule(t *testing.T) {
	t.Run("at once", func(t *testing.T) {
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			s.On(smtptest.Idle).Reply(421, "4.3.2 bye")
			c := greeted(t, n)
			c.mail("a@x.test", "x\r\n", "b@y.test")
			c.expect("421 4.3.2")
			c.eof()
		})
	})
	t.Run("delayed", func(t *testing.T) {
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			s.On(smtptest.Idle).Delay(10 * time.Second).DropFIN()
			c := greeted(t, n)
			time.Sleep(time.Minute) // there was no transaction yet
			for range 3 {
				c.mail("a@x.test", "x\r\n", "b@y.test")
				time.Sleep(9 * time.Second)
			}
			start := time.Now()
			c.eof()
			if d := time.Since(start); d != time.Second {
				t.Errorf("closed after %v", d)
			}
		})
	})
	t.Run("not between pipelined messages", func(t *testing.T) {
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			rule := s.On(smtptest.Idle).Drop()
			c := greeted(t, n)
			c.ready()
			c.send("x\r\n.\r\nMAIL FROM:<a@x.test>\r\nRSET\r\n")
			c.expect("250 ", "250 ", "250 ")
			c.fails(isReset)
			if rule.Fired() != 1 {
				t.Errorf("fired %d times", rule.Fired())
			}
		})
	})
}

// TestRulesFromCallbacks: an If may use the server, even kill it.
func TestRulesFromCallbacks(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.On(smtptest.EndOfData).If(func(*smtptest.Event) bool {
			s.On(smtptest.Noop).Reply(450, "new")
			s.Stats()
			s.Kill()
			return false
		}).Drop()
		c := greeted(t, n)
		c.ready()
		c.send(".\r\n")
		c.fails(isReset)
		if len(s.Messages()) != 0 {
			t.Error("stored after Kill")
		}
		if err := s.Restart(); err != nil {
			t.Fatal(err)
		}
		s.ClearScript()
		c = greeted(t, n)
		c.mail("a@x.test", "x\r\n", "b@y.test")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := s.WaitFor(ctx, 1); err != nil {
			t.Error(err)
		}
	})
}
