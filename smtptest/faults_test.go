package smtptest_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/smtplb/smtplb/smtptest"
)

// overTCP runs f with a server on TCP and a way to connect to it.
func overTCP(t *testing.T, f func(t *testing.T, s *smtptest.Server, dial func() *client), opts ...smtptest.Option) {
	t.Helper()
	s := smtptest.NewServer(append([]smtptest.Option{smtptest.WithLogf(t.Logf)}, opts...)...)
	defer s.Close()
	defer func() {
		if t.Failed() {
			t.Log("\n" + s.Transcript())
		}
	}()
	f(t, s, func() *client {
		nc, err := net.Dial("tcp", s.Addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		nc.SetDeadline(time.Now().Add(20 * time.Second))
		return newClient(t, nc)
	})
}

// both runs f in a bubble, over memory, and over TCP.
func both(t *testing.T, f func(t *testing.T, s *smtptest.Server, dial func() *client), opts ...smtptest.Option) {
	t.Helper()
	t.Run("memory", func(t *testing.T) {
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			f(t, s, func() *client { return dial(t, n) })
		}, opts...)
	})
	t.Run("TCP", func(t *testing.T) { overTCP(t, f, opts...) })
}

// reads returns what each Read gives until total bytes have come.
func (c *client) reads(total int) []string {
	c.t.Helper()
	var got []string
	b := make([]byte, 4096)
	for total > 0 {
		n, err := c.Read(b)
		if err != nil {
			c.t.Fatalf("after %q: %v", got, err)
		}
		got = append(got, string(b[:n]))
		total -= n
	}
	return got
}

func TestReplyInSegments(t *testing.T) {
	const reply = "250-first\r\n250 second\r\n"
	want := []string{"25", "0-first\r", "\n250 second\r\n"}
	for _, secure := range []bool{false, true} {
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			s.On(smtptest.Noop).Reply(250, "first\nsecond").Segments(10, 2, 2, 0, -1, len(reply), 1000).Pause(time.Minute)
			c := greeted(t, n)
			if secure {
				c.startTLS(s)
				c.cmd("250 ", "EHLO client.test")
			}
			start := time.Now()
			c.send("NOOP\r\n")
			if diff := cmp.Diff(want, c.reads(len(reply))); diff != "" {
				t.Errorf("TLS %v, segments (-want +got):\n%s", secure, diff)
			}
			if d := time.Since(start); d != 2*time.Minute {
				t.Errorf("took %v", d)
			}
			start = time.Now()
			c.cmd("252 ", "VRFY x") // in one piece
			if d := time.Since(start); d != 0 {
				t.Errorf("the next reply took %v", d)
			}
		}, smtptest.WithTLS())
	}
	// On TCP the pause is what keeps the segments apart.
	overTCP(t, func(t *testing.T, s *smtptest.Server, dial func() *client) {
		s.On(smtptest.Ehlo).Segments(4).Pause(300 * time.Millisecond)
		c := dial()
		c.expect("220 ")
		c.send("EHLO client.test\r\n")
		if got := c.reads(5); got[0] != "250-" {
			t.Errorf("segments %q", got)
		}
	})
	// The normal reply, a reply behind others in a pipelined group, and the default pause.
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.On(smtptest.Rcpt).Segments(3)
		c := greeted(t, n)
		start := time.Now()
		c.send("MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nRSET\r\n")
		synctest.Wait() // what is not held back by the pause is there
		want := []string{"250 2.1.0 Ok\r\n250", " 2.1.5 Ok\r\n250 2.0.0 Ok\r\n"}
		if diff := cmp.Diff(want, c.reads(len(strings.Join(want, "")))); diff != "" {
			t.Errorf("segments (-want +got):\n%s", diff)
		}
		if d := time.Since(start); d != 10*time.Millisecond {
			t.Errorf("took %v", d)
		}
	})
	// A pause is cut short by Close.
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.On(smtptest.Banner).Segments(3).Pause(time.Hour)
		dial(t, n)
		synctest.Wait()
		start := time.Now()
		s.Close()
		if d := time.Since(start); d > time.Second {
			t.Errorf("Close took %v", d)
		}
	})
}

// TestThenBehindReply: the bytes come with the reply in one read, under TLS in one
// record, and the server goes on or hangs up as it is told.
func TestThenBehindReply(t *testing.T) {
	for _, secure := range []bool{false, true} {
		both(t, func(t *testing.T, s *smtptest.Server, dial func() *client) {
			s.On(smtptest.Noop).Times(1).Then("250 what for?\r\n")
			s.On(smtptest.EndOfData).Reply(250, "OK id={queueid}").Then("421 4.3.2 Going down\r\n").ThenClose()
			c := dial()
			c.expect("220 ")
			c.cmd("250 ", "EHLO client.test")
			if secure {
				c.cmd("220 ", "STARTTLS")
				cfg := s.ClientTLS()
				cfg.ServerName = "localhost"
				tc := tls.Client(c.Conn, cfg)
				c.Conn = tc
				c.r.Reset(tc)
				c.cmd("250 ", "EHLO client.test")
			}
			c.send("NOOP\r\n")
			c.expect("250 2.0.0")
			if got := c.r.Buffered(); got != len("250 what for?\r\n") {
				t.Errorf("%d bytes came with the reply", got)
			}
			c.expect("250 what for?")
			c.ready()
			c.send("x\r\n.\r\n")
			if got := c.reads(len("250 OK id=0000000001\r\n421 4.3.2 Going down\r\n")); len(got) != 1 {
				t.Errorf("segments %q", got)
			}
			c.eof()
			if got := len(s.Messages()); got != 1 {
				t.Errorf("%d messages", got)
			}
		}, smtptest.WithTLS())
	}
}

// TestDrips: each kind of reply drips, and nothing but that one.
func TestDrips(t *testing.T) {
	for _, stage := range []smtptest.Stage{smtptest.Banner, smtptest.Ehlo, smtptest.Mail, smtptest.Rcpt, smtptest.Data, smtptest.EndOfData, smtptest.Noop, smtptest.Quit} {
		t.Run(stage.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
				const text = "one\ntwo\nthree"
				code := map[smtptest.Stage]int{smtptest.Banner: 220, smtptest.Data: 354, smtptest.Quit: 221}[stage]
				if code == 0 {
					code = 250
				}
				s.On(stage).Reply(code, text).Drip(time.Second)
				start := time.Now()
				c := greeted(t, n)
				c.mail("a@x.test", "x\r\n", "b@y.test")
				c.cmd("250 ", "NOOP")
				c.cmd("221 ", "QUIT")
				want := time.Duration(len("250-one\r\n250-two\r\n250 three\r\n")) * time.Second
				if d := time.Since(start); d != want {
					t.Errorf("took %v, want %v", d, want)
				}
			})
		})
	}
	t.Run("Then drips too", func(t *testing.T) {
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			s.On(smtptest.Noop).Raw("250 a\r\n").Then("421 b\r\n").Drip(time.Second)
			c := greeted(t, n)
			start := time.Now()
			c.cmd("250 a", "NOOP")
			c.expect("421 b")
			if d := time.Since(start); d != 14*time.Second {
				t.Errorf("took %v", d)
			}
		})
	})
}

// malformed are replies that no server should send, and those that are legal and rare.
var malformed = []struct{ name, raw string }{
	{"bare code", "250\r\n"},
	{"code and blank", "250 \r\n"},
	{"mixed codes", "250-ok\r\n550 no\r\n"},
	{"no code", "ok\r\n"},
	{"four digits", "2500 ok\r\n"},
	{"letters in the code", "2x0 ok\r\n"},
	{"empty line", "\r\n"},
	{"LF only", "250 ok\n"},
	{"CR only", "250 ok\r"},
	{"NUL", "250 \x00ok\r\n"},
	{"8 bits", "250 gr\xfc\xdf dich\r\n"},
	{"escape sequences", "250 \x1b[2J\r\n"},
	{"line too long", "250 " + strings.Repeat("x", 100_000) + "\r\n"},
	{"line without an end", "250 " + strings.Repeat("x", 100_000)},
	{"too many lines", strings.Repeat("250-x\r\n", 5000) + "250 x\r\n"},
	{"no last line", strings.Repeat("250-x\r\n", 5000)},
	{"nothing", ""},
}

// TestMalformedReplies: Raw sends every byte as it is, and nothing else.
func TestMalformedReplies(t *testing.T) {
	for _, tt := range malformed {
		t.Run(tt.name, func(t *testing.T) {
			both(t, func(t *testing.T, s *smtptest.Server, dial func() *client) {
				s.On(smtptest.EndOfData).Raw(tt.raw).ThenClose()
				c := dial()
				c.expect("220 ")
				c.cmd("250 ", "EHLO client.test")
				c.ready()
				c.send("x\r\n.\r\n")
				if b, err := io.ReadAll(c.r); err != nil || string(b) != tt.raw {
					t.Errorf("read %.100q…, %v", b, err)
				}
				if got, want := len(s.Messages()), b2i(strings.HasPrefix(tt.raw, "250")); got != want {
					t.Errorf("%d messages, want %d", got, want)
				}
			})
		})
	}
}

// TestCutReceived: the connection ends behind exactly that byte, whatever the writes
// are, and what is complete by then is carried out.
func TestCutReceived(t *testing.T) {
	const commands = "RCPT TO:<b@y.test>\r\nDATA\r\n"
	const body = "line\r\n..\r\n.\r\n"
	for _, secure := range []bool{false, true} {
		for n := range len(commands) + len(body) + 1 {
			for _, size := range []int{1, 1000} {
				bubble(t, func(t *testing.T, nw *smtptest.Network, s *smtptest.Server) {
					s.On(smtptest.Mail).CutReceived(int64(n))
					c := greeted(t, nw)
					if secure {
						c.startTLS(s)
						c.cmd("250 ", "EHLO client.test")
					}
					// The transaction in one write, or byte by byte.
					for b := range strings.SplitSeq("MAIL FROM:<a@x.test>\r\n"+commands+body, "") {
						if size == 1 {
							c.Write([]byte(b))
						}
					}
					if size > 1 {
						c.Write([]byte("MAIL FROM:<a@x.test>\r\n" + commands + body))
					}
					_, err := io.ReadAll(c.r)
					if !isReset(err) {
						t.Errorf("cut after %d: %v", n, err)
					}
					synctest.Wait()
					if got, want := len(s.Messages()), b2i(n >= len(commands)+len(body)); got != want {
						t.Errorf("cut after %d, writes of %d: %d messages, want %d", n, size, got, want)
					}
				}, smtptest.WithTLS())
			}
		}
	}
	// One byte more than there is: nothing is cut.
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.On(smtptest.Mail).CutReceived(int64(len(commands) + len(body) + 1))
		c := greeted(t, n)
		c.send("MAIL FROM:<a@x.test>\r\n" + commands + body)
		c.expect("250 ", "250 ", "354 ", "250 ")
	})
	// Within the body, from the byte at which the rule takes effect.
	for after := int64(1); after < 6; after++ {
		for n := range int64(7) {
			bubble(t, func(t *testing.T, nw *smtptest.Network, s *smtptest.Server) {
				s.On(smtptest.Body).After(after).CutReceived(n)
				c := greeted(t, nw)
				c.ready()
				c.send("a\r\n.\r\n")
				_, err := c.reply()
				if cut := after+n <= 6; cut != isReset(err) {
					t.Errorf("cut at %d and %d: %v", after, n, err)
				}
				synctest.Wait()
				if got, want := len(s.Messages()), b2i(after+n >= 6); got != want {
					t.Errorf("cut at %d and %d: %d messages", after, n, got)
				}
				c.Close()
			})
		}
	}
}

func TestCutSent(t *testing.T) {
	const reply = "250 2.0.0 Ok: queued as 0000000001\r\n"
	for _, fin := range []bool{false, true} {
		both(t, func(t *testing.T, s *smtptest.Server, dial func() *client) {
			rule := s.On(smtptest.EndOfData)
			want := isReset
			if fin {
				rule.AndFIN()
				want = isEOF
			}
			for n := range len(reply) + 1 {
				s.Reset()
				rule.CutSent(int64(n))
				c := dial()
				c.expect("220 ")
				c.cmd("250 ", "EHLO client.test")
				c.ready()
				c.send("x\r\n.\r\n")
				b := make([]byte, n)
				if _, err := io.ReadFull(c.r, b); err != nil || !strings.HasPrefix(reply[:n], string(b[:min(n, 20)])) {
					t.Fatalf("cut after %d: read %q, %v", n, b, err)
				}
				c.fails(want)
				if got := len(s.Messages()); got != 1 {
					t.Errorf("cut after %d: %d messages", n, got)
				}
			}
		})
	}
	// Replies that follow count, too.
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.On(smtptest.Mail).CutSent(int64(len("250 2.1.0 Ok\r\n") + 3))
		c := greeted(t, n)
		c.cmd("250 2.1.0 Ok", "MAIL FROM:<a@x.test>")
		c.send("RCPT TO:<b@y.test>\r\n")
		if got := c.reads(3); got[0] != "250" {
			t.Errorf("read %q", got)
		}
		c.fails(isReset)
	})
}

// TestNetworkCutAfter: on the wire, TLS included, each way.
func TestNetworkCutAfter(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		n.CutAfter(relay, 7, -1)
		c := dial(t, n)
		c.expect("220 ")
		if k, err := c.Write([]byte("NOOP\r\nQUIT\r\n")); k != 7 || !isReset(err) {
			t.Errorf("wrote %d, %v", k, err)
		}
		synctest.Wait()
		if st := s.Stats(); st.Commands["NOOP"] != 1 || st.Active != 0 {
			t.Errorf("%+v", st)
		}
		n.CutAfter(relay, -1, 4)
		c = dial(t, n)
		if got := c.reads(4); got[0] != "220 " {
			t.Errorf("read %q", got)
		}
		c.fails(isReset)
		n.CutAfter(relay, -1, -1)
		c = greeted(t, n)
		c.startTLS(s)
		n.CutAfter(relay, 300, -1)
		c = greeted(t, n)
		c.cmd("220 ", "STARTTLS")
		cfg := s.ClientTLS()
		cfg.ServerName = "relay-a.test"
		if err := tls.Client(c.Conn, cfg).Handshake(); !isReset(err) {
			t.Errorf("handshake: %v", err)
		}
		var refused *net.OpError
		if _, err := n.DialContext(context.Background(), "tcp", "nobody.test:25"); !errors.As(err, &refused) {
			t.Error(err)
		}
	}, smtptest.WithTLS())
}

// TestTLSFaults: what a client finds when TLS goes wrong, within the handshake and
// behind it.
func TestTLSFaults(t *testing.T) {
	var record tls.RecordHeaderError
	var alert tls.AlertError
	opError := func(text string) func(error) bool {
		return func(err error) bool { return err != nil && strings.Contains(err.Error(), text) }
	}
	for _, tt := range []struct {
		name string
		set  func(*smtptest.Rule)
		want func(error) bool
	}{
		{"cut before ServerHello", func(r *smtptest.Rule) { r.CutSent(0) }, isReset},
		{"cut in ServerHello", func(r *smtptest.Rule) { r.CutSent(40) }, isReset},
		{"FIN in ServerHello", func(r *smtptest.Rule) { r.CutSent(40).AndFIN() }, func(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }},
		{"cut in ClientHello", func(r *smtptest.Rule) { r.CutReceived(40) }, isReset},
		{"garbage", func(r *smtptest.Rule) { r.ServerHello("220 hello there\r\n") }, func(err error) bool { return errors.As(err, &record) }},
		{"alert", func(r *smtptest.Rule) { r.Alert(40) }, opError("handshake failure")},
		{"hang-up", func(r *smtptest.Rule) { r.HangUp() }, func(err error) bool { return err != nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			both(t, func(t *testing.T, s *smtptest.Server, dial func() *client) {
				tt.set(s.On(smtptest.TLSHandshake).Times(1))
				for i := range 2 {
					c := dial()
					c.expect("220 ")
					c.cmd("250 ", "EHLO client.test")
					c.cmd("220 ", "STARTTLS")
					if n := c.r.Buffered(); n > 0 {
						t.Errorf("%d bytes behind the 220", n)
					}
					cfg := s.ClientTLS()
					cfg.ServerName = "localhost"
					err := tls.Client(c.Conn, cfg).Handshake()
					if i == 0 && !tt.want(err) || i == 1 && err != nil {
						t.Errorf("handshake %d: %v (%T)", i, err, err)
					}
				}
			}, smtptest.WithTLS())
		})
	}
	for _, tt := range []struct {
		name string
		set  func(*smtptest.Rule)
		want func(error) bool
	}{
		{"bad MAC", func(r *smtptest.Rule) { r.CorruptRecord() }, func(err error) bool { return errors.As(err, &alert) || opError("bad record MAC")(err) }},
		{"bad MAC in the first segment", func(r *smtptest.Rule) { r.Segments(3).CorruptRecord() }, opError("bad record MAC")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
				rule := s.On(smtptest.Noop)
				tt.set(rule)
				c := greeted(t, n)
				c.cmd("250 ", "NOOP") // without TLS there is no record
				c.startTLS(s)
				c.cmd("250 ", "EHLO client.test")
				c.ready()
				c.send("x\r\n.\r\n")
				c.expect("250 ")
				c.send("NOOP\r\n")
				_, err := c.reply()
				if !tt.want(err) {
					t.Errorf("%v (%T)", err, err)
				}
				time.Sleep(time.Second) // the pause between segments
				if got := s.Stats().Active; got != 0 {
					t.Errorf("%d active", got)
				}
			}, smtptest.WithTLS())
		})
	}
}

// TestHangUp: with close_notify, unlike DropFIN, and without a reply.
func TestHangUp(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.On(smtptest.EndOfData).HangUp()
		c := greeted(t, n)
		rec := &recordingConn{Conn: c.Conn}
		c.Conn = rec
		c.startTLS(s)
		c.cmd("250 ", "EHLO client.test")
		c.ready()
		c.send("x\r\n.\r\n")
		c.eof()
		if !rec.alert() {
			t.Error("no close_notify")
		}
		if got := len(s.Messages()); got != 1 {
			t.Errorf("%d messages", got)
		}
	}, smtptest.WithTLS())
}

// TestInputBehindBody: the next envelope in the same segment as the end of a body is
// understood under every option that has a say in how a body ends.
func TestInputBehindBody(t *testing.T) {
	const chunking = "CHUNKING"
	all := []string{"PIPELINING", "8BITMIME", chunking, "ENHANCEDSTATUSCODES"}
	next := "MAIL FROM:<b@x.test>\r\nRCPT TO:<c@y.test>\r\nDATA\r\n"
	forms := []struct{ command, wire, reply string }{
		{"DATA", "x\r\n.\r\n", ""},
		{"", "BDAT 3 LAST\r\nx\r\n", ""},
		{"", "BDAT 1\r\nxBDAT 2 LAST\r\n\r\n", "250 "},
	}
	for _, tt := range []struct {
		name  string
		opts  []smtptest.Option
		rule  func(*smtptest.Server)
		final string
	}{
		{"plain", nil, nil, "250 "},
		{"strict", []smtptest.Option{smtptest.WithStrictPipelining()}, nil, "250 "},
		{"discard", []smtptest.Option{smtptest.WithDiscard()}, nil, "250 "},
		{"too big", []smtptest.Option{smtptest.WithMaxSize(2)}, nil, "552 "},
		{"line too long", []smtptest.Option{smtptest.WithMaxLineLength(0), smtptest.WithMaxSize(100)}, nil, "250 "},
		{"limits", []smtptest.Option{smtptest.WithLimits(2, 1)}, nil, "250 "},
		{"idle limit", []smtptest.Option{smtptest.WithIdleTimeout(time.Hour)}, nil, "250 "},
		{"scripted reply", nil, func(s *smtptest.Server) { s.On(smtptest.EndOfData).Times(1).Reply(451, "no") }, "451 no"},
		{"scripted delay", nil, func(s *smtptest.Server) { s.On(smtptest.EndOfData).Times(1).Delay(time.Second) }, "250 "},
		{"segments", nil, func(s *smtptest.Server) { s.On(smtptest.EndOfData).Times(1).Segments(1, 2) }, "250 "},
		{"drip", nil, func(s *smtptest.Server) { s.On(smtptest.EndOfData).Times(1).Drip(time.Second) }, "250 "},
		{"answered within the body", nil, func(s *smtptest.Server) { s.On(smtptest.Body).Times(1).After(2).Reply(552, "5.3.4 enough") }, "552 5.3.4 enough"},
		{"idle rule", nil, func(s *smtptest.Server) { s.On(smtptest.Idle).Drop() }, "250 "},
	} {
		for _, form := range forms {
			for _, size := range []int{1, 5, 1000} {
				if tt.name == "idle rule" && size < 1000 {
					continue // the server does wait then
				}
				t.Logf("%s, %q, writes of %d", tt.name, form.wire, size)
				bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
					if tt.rule != nil {
						tt.rule(s)
					}
					c := greeted(t, n)
					c.play(conversation{{"MAIL FROM:<a@x.test>", "250 "}, {"RCPT TO:<b@y.test>", "250 "}})
					if form.command != "" { // nothing may lie behind DATA itself
						c.cmd("354 ", form.command)
					}
					wire := form.wire + next
					for len(wire) > 0 {
						k := min(size, len(wire))
						c.send("%s", wire[:k])
						wire = wire[k:]
					}
					if form.reply != "" {
						c.expect(form.reply)
					}
					c.expect(tt.final)
					c.expect("250 ", "250 ", "354 ")
					c.send(".\r\n")
					c.expect("250 ")
				}, append([]smtptest.Option{smtptest.WithExtensions(all...)}, tt.opts...)...)
			}
		}
	}
}

// TestLossyInput: what has come with the end of the body is gone, what comes later is
// not.
func TestLossyInput(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		c.ready()
		c.send("x\r\n.\r\nMAIL FROM:<lost@x.test>\r\n")
		c.expect("250 ")
		c.SetReadDeadline(time.Now().Add(time.Minute))
		c.fails(isTimeout)
		c.SetReadDeadline(time.Time{})
		c.ready()
		c.send("y\r\n.\r\n")
		c.expect("250 ")
		c.play(conversation{{"MAIL FROM:<c@x.test>", "250 "}, {"RCPT TO:<b@y.test>", "250 "}})
		c.send("BDAT 1 LAST\r\nzNOOP\r\n")
		c.expect("250 ")
		c.SetReadDeadline(time.Now().Add(time.Minute))
		c.fails(isTimeout)
		if got := len(s.Messages()); got != 3 {
			t.Errorf("%d messages", got)
		}
		if st := s.Stats(); st.EarlyBytes != 2 || st.Commands["NOOP"] != 0 {
			t.Errorf("%+v", st)
		}
	}, smtptest.WithExtensions("8BITMIME", "CHUNKING"), smtptest.WithLossyInput())
}

func ExampleRule_Segments() {
	relay := smtptest.NewServer(smtptest.WithExtensions())
	defer relay.Close()
	// The greeting arrives in three pieces: "2", "20 loc", "alhost ESMTP smtptest\r\n".
	relay.On(smtptest.Banner).Segments(1, 7)

	fmt.Println(SendWelcome(relay.Addr, "bob@example.com"))
	// Output: <nil>
}

// A relay that takes the message over, and goes down in the same breath.
func ExampleRule_Then() {
	relay := smtptest.NewServer()
	defer relay.Close()
	relay.On(smtptest.EndOfData).Then("421 4.3.2 Going down\r\n").ThenClose()

	fmt.Println("failed:", SendWelcome(relay.Addr, "bob@example.com") != nil) // QUIT finds a 421
	fmt.Println(len(relay.Messages()), "message")
	// Output:
	// failed: true
	// 1 message
}

// A relay whose reply to the message breaks off behind its code.
func ExampleRule_CutSent() {
	relay := smtptest.NewServer()
	defer relay.Close()
	relay.On(smtptest.EndOfData).CutSent(3)

	fmt.Println("failed:", SendWelcome(relay.Addr, "bob@example.com") != nil)
	fmt.Println(len(relay.Messages()), "message")
	// Output:
	// failed: true
	// 1 message
}
