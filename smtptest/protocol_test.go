package smtptest_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/smtptest"
)

// conversation is a script for a raw client: pairs of a line to send and the
// prefix of its reply.
type conversation [][2]string

func (c *client) play(conv conversation) {
	c.t.Helper()
	for _, p := range conv {
		c.cmd(p[1], "%s", p[0])
	}
}

func TestConversations(t *testing.T) {
	long := strings.Repeat("x", 5000)
	tests := []struct {
		name string
		opts []smtptest.Option
		conv conversation
	}{
		{"order of commands", nil, conversation{
			{"MAIL FROM:<a@x.test>", "503 5.5.1"},
			{"EHLO", "501 "},
			{"MAIL FROM:<a@x.test>", "503 5.5.1"},
			{"HELO client.test", "250 relay-a.test"},
			{"RCPT TO:<b@y.test>", "503 5.5.1"},
			{"DATA", "503 5.5.1"},
			{"MAIL FROM:<a@x.test>", "250 2.1.0"},
			{"MAIL FROM:<a@x.test>", "503 5.5.1 Nested"},
			{"DATA", "554 5.5.1 No valid recipients"},
			{"DATA now", "501 5.5.4"},
			{"RCPT TO:<b@y.test>", "250 2.1.5"},
			{"RSET", "250 2.0.0"},
			{"RCPT TO:<b@y.test>", "503 5.5.1"},
			{"MAIL FROM:<a@x.test>", "250 2.1.0"},
			{"RCPT TO:<b@y.test>", "250 2.1.5"},
			{"EHLO client.test", "250 "}, // clears the transaction
			{"DATA", "503 5.5.1"},
			{"QUIT", "221 2.0.0"},
		}},
		{"other commands", nil, conversation{
			{"NOOP", "250 2.0.0"},
			{"noop with words", "250 2.0.0"},
			{"VRFY bob", "252 2.5.0"},
			{"EXPN list", "502 5.5.1"},
			{"HELP", "214 2.0.0"},
			{"RSET now", "500 5.5.2"},
			{"BOGUS", "500 5.5.2"},
			{"", "500 5.5.2"},
			{"STARTTLS", "502 5.5.1"},
			{"AUTH PLAIN AHUAcA==", "502 5.5.1"},
			{"BDAT 0 LAST", "502 5.5.1"},
			{long, "500 5.5.2 Line too long"},
			{"QUIT " + long, "500 5.5.2 Line too long"},
			{long + long + long + long, "500 5.5.2 Line too long"},
			{"NOOP", "250 "},
			{"Noop\n", "500 5.5.2 Lines end with CRLF"}, // and the rest, an empty line:
		}},
		{"syntax of paths", nil, conversation{
			{"EHLO client.test", "250 "},
			{"MAIL FROM:a@x.test", "501 5.5.4"},
			{"MAIL <a@x.test>", "501 5.5.4"},
			{"MAIL FROM:<a@x.test", "501 5.5.4"},
			{"MAIL FROM:<a @x.test>", "501 5.5.4"},
			{"MAIL FROM:<a@x.test>x", "501 5.5.4"},
			{"MAIL FROM:<<a@x.test>", "501 5.5.4"},
			{"MAIL FROM:<a\x00@x.test>", "501 5.5.4"},
			{"MAIL FROM:<nobody>", "501 5.1.7"},
			{"MAIL FROM:<@x.test>", "501 5.5.4"},
			{"MAIL FROM:<ä@x.test>", "553 5.6.7"},
			{"mail from: <\"a >\\\"b\"@x.test> body=8bitmime", "250 "},
			{"RCPT TO:<>", "501 5.5.4"},
			{"RCPT TO:<bob>", "501 5.1.3"},
			{"RCPT TO:<bob@>", "501 5.1.3"},
			{"RCPT TO:<ö@y.test>", "553 5.6.7"},
			{"RCPT TO:<Postmaster>", "250 "},
			{"RCPT TO:<@hop.test,@hop2.test:bob@y.test>", "250 "},
			{"RSET", "250 "},
			{"MAIL FROM:<ä@x.test> SMTPUTF8", "250 "},
			{"RCPT TO:<ö@y.test>", "250 "},
		}},
		{"parameters", []smtptest.Option{smtptest.WithMaxSize(1000)}, conversation{
			{"EHLO client.test", "250 "},
			{"MAIL FROM:<a@x.test> SIZE=1001", "552 5.3.4"},
			{"MAIL FROM:<a@x.test> SIZE=x", "501 5.5.4"},
			{"MAIL FROM:<a@x.test> SIZE=-1", "501 5.5.4"},
			{"MAIL FROM:<a@x.test> BODY=BINARYMIME", "555 5.5.4"},
			{"MAIL FROM:<a@x.test> AUTH=<>", "555 5.5.4"},
			{"MAIL FROM:<a@x.test> FOO", "555 5.5.4"},
			{"MAIL FROM:<> SIZE=1000 BODY=7BIT RET=HDRS ENVID=abc SMTPUTF8", "250 "},
			{"RCPT TO:<b@y.test> NOTIFY=NEVER ORCPT=rfc822;b@y.test", "250 "},
			{"RCPT TO:<b@y.test> FOO=1", "555 5.5.4"},
			{"HELO client.test", "250 "},
			{"MAIL FROM:<a@x.test> SIZE=10", "555 5.5.4"}, // no extensions after HELO
		}},
		{"no parameters where no extensions", []smtptest.Option{smtptest.WithExtensions()}, conversation{
			{"EHLO client.test", "250 relay-a.test"},
			{"MAIL FROM:<a@x.test> SIZE=1", "555 Unsupported"}, // and no enhanced codes
			{"MAIL FROM:<a@x.test> BODY=8BITMIME", "555 "},
			{"MAIL FROM:<a@x.test>", "250 Ok"},
		}},
		{"without EHLO", []smtptest.Option{smtptest.WithoutEHLO()}, conversation{
			{"EHLO client.test", "502 "},
			{"MAIL FROM:<a@x.test>", "503 "},
			{"HELO client.test", "250 relay-a.test"},
			{"MAIL FROM:<a@x.test>", "250 Ok"},
		}},
		{"too many recipients", []smtptest.Option{smtptest.WithMaxRecipients(2)}, conversation{
			{"EHLO client.test", "250 "},
			{"MAIL FROM:<a@x.test>", "250 "},
			{"RCPT TO:<1@y.test>", "250 "},
			{"RCPT TO:<2@y.test>", "250 "},
			{"RCPT TO:<3@y.test>", "452 4.5.3 Too many recipients"},
			{"RSET", "250 "},
			{"MAIL FROM:<a@x.test>", "250 "},
			{"RCPT TO:<3@y.test>", "250 "},
		}},
		{"TLS required", []smtptest.Option{smtptest.WithRequireTLS()}, conversation{
			{"EHLO client.test", "250 "},
			{"MAIL FROM:<a@x.test>", "530 5.7.0 Must issue"},
			{"RSET", "530 "},
			{"NOOP", "250 "},
			{"STARTTLS now", "501 "},
			{"QUIT", "221 "},
		}},
		{"AUTH required", []smtptest.Option{smtptest.WithAuth("u", "p")}, conversation{
			{"EHLO client.test", "250 "},
			{"MAIL FROM:<a@x.test>", "530 5.7.0 Authentication required"},
			{"AUTH PLAIN AHUAcA==", "235 2.7.0"},
			{"AUTH PLAIN AHUAcA==", "503 5.5.1"},
			{"MAIL FROM:<a@x.test> AUTH=<>", "250 "},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
				c := dial(t, n)
				c.expect("220 relay-a.test ESMTP")
				c.play(tt.conv)
			}, tt.opts...)
		})
	}
}

func TestExtensions(t *testing.T) {
	tests := []struct {
		name string
		opts []smtptest.Option
		want string
	}{
		{"default", nil, "250-relay-a.test|250-PIPELINING|250-SIZE 10485760|250-8BITMIME|250-SMTPUTF8|250-ENHANCEDSTATUSCODES|250 DSN"},
		{"exact", []smtptest.Option{smtptest.WithExtensions("PIPELINING", "LIMITS RCPTMAX=3"), smtptest.WithHostname("mx.test")}, "250-mx.test|250-PIPELINING|250 LIMITS RCPTMAX=3"},
		{"fewer", []smtptest.Option{smtptest.WithoutExtensions("pipelining", "SIZE", "SMTPUTF8", "DSN")}, "250-relay-a.test|250-8BITMIME|250 ENHANCEDSTATUSCODES"},
		{"size", []smtptest.Option{smtptest.WithMaxSize(7), smtptest.WithExtensions("SIZE 99")}, "250-relay-a.test|250 SIZE 7"},
		{"no size limit", []smtptest.Option{smtptest.WithMaxSize(0), smtptest.WithExtensions()}, "250-relay-a.test|250 SIZE"},
		{"TLS hides AUTH", []smtptest.Option{smtptest.WithExtensions(), smtptest.WithAuth("u", "p"), smtptest.WithTLS()}, "250-relay-a.test|250 STARTTLS"},
		{"AUTH", []smtptest.Option{smtptest.WithExtensions(), smtptest.WithAuth("u", "p"), smtptest.WithAuth("v", "p", "login", "CRAM-MD5")}, "250-relay-a.test|250 AUTH PLAIN LOGIN CRAM-MD5"},
		{"stripped", []smtptest.Option{smtptest.WithExtensions("8BITMIME"), smtptest.WithAuth("u", "p"), smtptest.WithTLS(), smtptest.WithoutExtensions("STARTTLS")}, "250-relay-a.test|250 8BITMIME"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
				c := dial(t, n)
				c.expect("220 ")
				if got := strings.ReplaceAll(c.cmd("250 ", "EHLO client.test"), "\n", "|"); got != tt.want {
					t.Errorf("EHLO:\n got %s\nwant %s", got, tt.want)
				}
			}, tt.opts...)
		})
	}
}

// bodies are bodies on the wire, without the terminator, and as they are stored.
var bodies = []struct{ name, wire, want string }{
	{"empty", "", ""},
	{"one line", "a\r\n", "a\r\n"},
	{"dots", "..\r\n...x\r\n.y\r\nz.\r\n", ".\r\n..x\r\ny\r\nz.\r\n"},
	{"empty lines", "\r\n\r\n\r\n", "\r\n\r\n\r\n"},
	{"bare LF", "a\n.\nb\n.\r\nc\r\n", "a\n.\nb\n.\r\nc\r\n"},
	{"bare CR", "a\r.\r\nb\r\r\n", "a\r.\r\nb\r\r\n"},
	{"dot and bare line ends", ".\na\r\n.\rb\r\n", "\na\r\n\rb\r\n"},
	{"CR CR LF dot", "a\r\r\n..\r\n", "a\r\r\n.\r\n"},
	{"NUL and 8 bits", "\x00\xff\r\n", "\x00\xff\r\n"},
	{"looks like commands", "RSET\r\nQUIT\r\n", "RSET\r\nQUIT\r\n"},
}

// TestSegments: the result does not depend on how the bytes are cut into writes,
// and several messages in one write are told apart.
func TestSegments(t *testing.T) {
	var wire strings.Builder
	replies := []string{"250 "}
	wire.WriteString("EHLO client.test\r\n")
	for i, b := range bodies {
		fmt.Fprintf(&wire, "MAIL FROM:<a%d@x.test>\r\nRCPT TO:<b@y.test>\r\nRCPT TO:<c@y.test>\r\nDATA\r\n%s.\r\n", i, b.wire)
		replies = append(replies, "250 ", "250 ", "250 ", "354 ", "250 ")
	}
	wire.WriteString("QUIT\r\n")
	replies = append(replies, "221 ")
	for _, size := range []int{1, 2, 3, 4, 5, 7, 11, 64, 1 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
				c := dial(t, n)
				c.expect("220 ")
				for b := range slices.Chunk([]byte(wire.String()), size) {
					c.send("%s", b)
					synctest.Wait() // the server has read it
				}
				c.expect(replies...)
				c.eof()
				msgs := s.Messages()
				if len(msgs) != len(bodies) {
					t.Fatalf("%d messages, want %d", len(msgs), len(bodies))
				}
				for i, b := range bodies {
					if got := string(msgs[i].Data); got != b.want || msgs[i].From != fmt.Sprintf("a%d@x.test", i) || len(msgs[i].To) != 2 {
						t.Errorf("%s: stored %q, want %q (%v)", b.name, got, b.want, msgs[i])
					}
				}
			})
		})
	}
}

// TestLargeBody crosses the input buffer at every alignment of a terminator.
func TestLargeBody(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		line := strings.Repeat("x", 76) + "\r\n..\r\n"
		for pad := range 12 {
			body := strings.Repeat("y", pad) + "\r\n" + strings.Repeat(line, 2000)
			c.mail("a@x.test", body, "b@y.test")
			msgs := s.Messages()
			if got, want := string(msgs[len(msgs)-1].Data), strings.ReplaceAll(body, "\r\n..", "\r\n."); got != want {
				t.Fatalf("pad %d: stored %d bytes, want %d", pad, len(got), len(want))
			}
		}
	})
}

// TestOneSegment: the replies to a pipelined group come in one write.
func TestOneSegment(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		c.send("MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nRCPT TO:<c@y.test>\r\nDATA\r\n")
		b := make([]byte, 1000)
		got, err := c.Read(b)
		if want := "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n250 2.1.5 Ok\r\n354 End data with <CR><LF>.<CR><LF>\r\n"; string(b[:got]) != want || err != nil {
			t.Errorf("one Read gave %q, %v", b[:got], err)
		}
	})
}

func TestSizeLimit(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		c.mail("a@x.test", strings.Repeat("x", 98)+"\r\n", "b@y.test")
		c.play(conversation{{"MAIL FROM:<a@x.test>", "250 "}, {"RCPT TO:<b@y.test>", "250 "}, {"DATA", "354 "}, {strings.Repeat("x", 99) + "\r\n.", "552 5.3.4"}})
		c.mail("a@x.test", "next\r\n", "b@y.test")
		if got := s.Stats(); got.Messages != 2 || got.Bytes != 106 {
			t.Errorf("%+v", got)
		}
	}, smtptest.WithMaxSize(100))
}

func TestSizeLimitByExtension(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		c.cmd("552 5.3.4", "MAIL FROM:<a@x.test> SIZE=51")
		c.cmd("250 ", "MAIL FROM:<a@x.test> SIZE=50")
	}, smtptest.WithExtensions("SIZE 50", "ENHANCEDSTATUSCODES"))
}

func TestLineLength(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		c.mail("a@x.test", "12345678\r\n87654321\r\n", "b@y.test")
		c.play(conversation{{"MAIL FROM:<a@x.test>", "250 "}, {"RCPT TO:<b@y.test>", "250 "}, {"DATA", "354 "}, {"1\r\n123456789\r\n.", "554 5.6.0"}})
	}, smtptest.WithMaxLineLength(8))
}

func TestChunking(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		envelope := func() {
			t.Helper()
			c.play(conversation{{"MAIL FROM:<a@x.test>", "250 "}, {"RCPT TO:<b@y.test>", "250 "}})
		}
		envelope()
		c.send("BDAT 7\r\none\r\n.\rBDAT 6\r\n\n\r\n.\r\nBDAT 5 LAST\r\n\r\nend")
		c.expect("250 2.0.0 7 octets", "250 2.0.0 6 octets", "250 2.0.0 Ok: queued as")
		if got := string(s.Messages()[0].Data); got != "one\r\n.\r\n\r\n.\r\n\r\nend" {
			t.Errorf("stored %q", got)
		}
		envelope()
		c.send("BDAT 3\r\nabc")
		c.expect("250 ")
		c.cmd("503 ", "DATA")
		c.cmd("250 ", "BDAT 0 LAST")
		c.cmd("501 ", "BDAT x")
		c.cmd("501 ", "BDAT 3 FIRST")
		c.cmd("501 ", "BDAT")
		// The bytes of a refused chunk are not taken for commands.
		c.send("BDAT 6 LAST\r\nQUIT\r\n")
		c.expect("503 5.5.1")
		c.cmd("250 ", "MAIL FROM:<a@x.test>")
		c.send("BDAT 6\r\nQUIT\r\nBDAT 2 LAST\r\nxy")
		c.expect("554 5.5.1 No valid", "503 5.5.1 An earlier")
		c.cmd("250 ", "RSET")

		s.On(smtptest.Data).Nth(5).Reply(452, "4.3.1 Disk full")
		envelope()
		for range 4 {
			c.send("BDAT 1\r\nx")
			c.expect("250 ")
		}
		c.send("BDAT 1\r\nxBDAT 1 LAST\r\nx")
		c.expect("452 4.3.1", "503 5.5.1")
		if got := s.Stats(); got.Messages != 2 || got.EarlyBytes != 0 {
			t.Errorf("%+v", got)
		}
	}, smtptest.WithExtensions("PIPELINING", "CHUNKING", "ENHANCEDSTATUSCODES"))
}

// TestChunkSegments: chunks whose bytes come one by one, refused ones too.
func TestChunkSegments(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		for _, b := range "BDAT 6\r\nQUIT\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nBDAT 4\r\n\r\n.\rBDAT 3 LAST\r\n\nxyDATA\r\n" {
			c.send("%c", b)
			synctest.Wait()
		}
		c.expect("503 ", "250 ", "250 ", "250 ", "250 ", "503 ")
		if got := string(s.Messages()[0].Data); got != "\r\n.\r\nxy" {
			t.Errorf("stored %q", got)
		}
		c.cmd("250 ", "MAIL FROM:<a@x.test>")
		c.cmd("250 ", "RCPT TO:<b@y.test>")
		c.send("BDAT 0\r\n")
		c.expect("250 ")
		c.cmd("503 5.5.1 DATA after BDAT", "DATA")
	}, smtptest.WithExtensions("PIPELINING", "CHUNKING", "ENHANCEDSTATUSCODES"))
}

// TestLongLineInSegments: a line that is too long is not kept until it ends.
func TestLongLineInSegments(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		for range 100 {
			c.send("%s", strings.Repeat("x", 10_000))
			synctest.Wait()
		}
		c.cmd("500 5.5.2 Line too long", "QUIT") // its end is no command
		c.cmd("250 ", "NOOP")
		if got := s.Stats().Commands["QUIT"]; got != 0 {
			t.Errorf("%d QUIT", got)
		}
	})
}

func TestBinaryMIME(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		c.cmd("250 ", "MAIL FROM:<a@x.test> BODY=BINARYMIME")
	}, smtptest.WithExtensions("CHUNKING", "BINARYMIME", "8BITMIME"))
}

// TestEarlyBytes: input behind the last command of a group is counted, or refused.
func TestEarlyBytes(t *testing.T) {
	tests := []struct {
		send string
		opts []smtptest.Option
		want int
	}{
		{"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n", nil, 0},
		{"RSET\r\nMAIL FROM:<a@x.test>\r\n", nil, 0},
		{"NOOP\r\nMAIL FROM:<a@x.test>\r\n", nil, 1},
		{"EHLO x\r\nMAIL FROM:<a@x.test>\r\n", nil, 1},
		{"VRFY x\r\nNOOP\r\n", nil, 1},
		{"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\nbody\r\n.\r\n", nil, 1},
		{"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\n", []smtptest.Option{smtptest.WithoutExtensions("PIPELINING")}, 1},
		{"MAIL FROM:<a@x.test>\r\n", []smtptest.Option{smtptest.WithoutExtensions("PIPELINING")}, 0},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%q", tt.send), func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
				c := greeted(t, n)
				c.send("%s", tt.send)
				synctest.Wait()
				if got := s.Stats().EarlyBytes; got != tt.want {
					t.Errorf("EarlyBytes = %d, want %d", got, tt.want)
				}
			}, tt.opts...)
			bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
				c := greeted(t, n)
				c.send("%s", tt.send)
				synctest.Wait()
				closed := s.Stats().Active == 0
				if closed != (tt.want > 0) {
					t.Errorf("closed: %v", closed)
				}
				if closed && !strings.Contains(s.Transcript(), "S: 554 5.5.0 Improper use") {
					t.Error("no 554")
				}
			}, append(tt.opts, smtptest.WithStrictPipelining())...)
		})
	}
	// A body with the next envelope behind it is allowed with PIPELINING alone.
	for _, opts := range [][]smtptest.Option{nil, {smtptest.WithoutExtensions("PIPELINING")}} {
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			c := greeted(t, n)
			c.play(conversation{{"MAIL FROM:<a@x.test>", "250 "}, {"RCPT TO:<b@y.test>", "250 "}, {"DATA", "354 "}})
			c.send("body\r\n.\r\nMAIL FROM:<a@x.test>\r\n")
			synctest.Wait()
			if got := s.Stats().EarlyBytes; got != len(opts) {
				t.Errorf("EarlyBytes = %d with %d options", got, len(opts))
			}
		}, opts...)
	}
}

func TestNullSenderAndParams(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		c.play(conversation{
			{"MAIL FROM:<> RET=HDRS", "250 "}, {"RCPT TO:<b@y.test> NOTIFY=NEVER", "250 "},
			{"RCPT TO:<c@y.test>", "250 "}, {"DATA", "354 "}, {"not a header\r\n.", "250 "},
		})
		m := s.Messages()[0]
		if m.From != "" || m.Header != nil || m.MessageID() != "" || m.Body() != nil || m.HELO != "client.test" || m.TLS || m.Auth != "" {
			t.Errorf("%+v", m)
		}
		if got := fmt.Sprint(m.MailParams, m.RcptParams); got != "[RET=HDRS] [[NOTIFY=NEVER] []]" {
			t.Error(got)
		}
		if want := "0000000001 from <> to <b@y.test>, <c@y.test>, 14 bytes"; m.String() != want {
			t.Errorf("String = %q, want %q", m, want)
		}
		if time.Since(m.Time) != 0 {
			t.Errorf("Time = %v", m.Time)
		}
		c.mail("a@x.test", "\r\nbody only\r\n", "b@y.test")
		if got := string(s.Messages()[1].Body()); got != "body only\r\n" {
			t.Errorf("Body = %q", got)
		}
	})
}

func TestWithStored(t *testing.T) {
	for _, discard := range []bool{false, true} {
		var got []string
		opts := []smtptest.Option{smtptest.WithStored(func(m *smtptest.Message) { got = append(got, m.QueueID+" "+strings.Join(m.To, ",")) })}
		if discard {
			opts = append(opts, smtptest.WithDiscard())
		}
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			s.On(smtptest.EndOfData).From("refused@x.test").Reply(451, "4.3.0 no")
			s.On(smtptest.EndOfData).From("lost@x.test").Unstored()
			c := greeted(t, n)
			c.mail("a@x.test", "x\r\n", "b@y.test", "c@y.test")
			if len(got) != 1 { // before the client is told
				t.Errorf("%d were told of", len(got))
			}
			c.mail("lost@x.test", "x\r\n", "b@y.test")
			c.send("MAIL FROM:<refused@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n")
			c.expect("250 ", "250 ", "354 ")
			c.cmd("451 ", ".")
			c.mail("a@x.test", "x\r\n", "d@y.test")
			if want := "0000000001 b@y.test,c@y.test|0000000004 d@y.test"; strings.Join(got, "|") != want {
				t.Errorf("discard %v: told of %q, want %s", discard, got, want)
			}
		}, opts...)
	}
}
