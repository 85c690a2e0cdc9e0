package smtptest_test

import (
	"fmt"
	"log"
	"net/smtp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/smtplb/smtplb/smtptest"
)

// ehlo returns the extensions that an EHLO offers.
func (c *client) ehlo() []string {
	c.t.Helper()
	lines := strings.Split(c.cmd("250 ", "EHLO client.test"), "\n")[1:]
	for i := range lines {
		lines[i] = lines[i][4:]
	}
	return lines
}

// TestExtensionsPerPhase: what is offered under TLS may differ from what was offered
// before, and what was offered last is what is held.
func TestExtensionsPerPhase(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		if diff := cmp.Diff([]string{"PIPELINING", "SIZE 10", "STARTTLS"}, c.ehlo()); diff != "" {
			t.Errorf("without TLS (-want +got):\n%s", diff)
		}
		c.cmd("555 ", "MAIL FROM:<a@x.test> BODY=8BITMIME")
		c.cmd("250 Ok", "NOOP") // no enhanced codes
		c.startTLS(s)
		c.cmd("503 5.5.1", "MAIL FROM:<a@x.test>")
		if diff := cmp.Diff([]string{"8BITMIME", "ENHANCEDSTATUSCODES", "SIZE 10"}, c.ehlo()); diff != "" {
			t.Errorf("with TLS (-want +got):\n%s", diff)
		}
		c.cmd("250 2.1.0", "MAIL FROM:<a@x.test> BODY=8BITMIME")
		c.send("RSET\r\nRSET\r\n")
		c.expect("250 ", "250 ")
		if st := s.Stats(); st.EarlyBytes != 1 { // PIPELINING was not offered again
			t.Errorf("%+v", st)
		}
	}, smtptest.WithTLS(), smtptest.WithExtensions("PIPELINING"), smtptest.WithTLSExtensions("8BITMIME", "ENHANCEDSTATUSCODES", "DSN"),
		smtptest.WithMaxSize(10), smtptest.WithoutExtensions("DSN"))
}

func TestSetExtensions(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		old := greeted(t, n)
		s.SetExtensions("CHUNKING", "DSN")
		old.cmd("250 2.1.0", "MAIL FROM:<a@x.test> BODY=8BITMIME") // it goes by what it was told
		old.cmd("502 5.5.1", "BDAT 1 LAST")
		old.cmd("250 ", "RSET")
		for _, c := range []*client{old, dial(t, n)} {
			if c != old {
				c.expect("220 ")
			}
			if diff := cmp.Diff([]string{"CHUNKING"}, c.ehlo()); diff != "" {
				t.Errorf("extensions (-want +got):\n%s", diff)
			}
			c.cmd("555 Unsupported", "MAIL FROM:<a@x.test> BODY=8BITMIME")
			c.play(conversation{{"MAIL FROM:<a@x.test>", "250 Ok"}, {"RCPT TO:<b@y.test>", "250 Ok"}})
			c.send("BDAT 1 LAST\r\nx")
			c.expect("250 Ok")
		}
		s.Kill()
		s.SetExtensions()
		if err := s.Restart(); err != nil {
			t.Fatal(err)
		}
		c := dial(t, n)
		c.expect("220 ")
		if got := c.ehlo(); len(got) != 0 {
			t.Errorf("after the restart: %q", got)
		}
	}, smtptest.WithoutExtensions("DSN"))
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.SetExtensions("CHUNKING")
		c := greeted(t, n)
		c.startTLS(s)
		if diff := cmp.Diff([]string{"CHUNKING"}, c.ehlo()); diff != "" {
			t.Errorf("under TLS (-want +got):\n%s", diff)
		}
	}, smtptest.WithTLS())
	// Without EHLO there is none.
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.SetExtensions("PIPELINING")
		c := dial(t, n)
		c.expect("220 ")
		c.cmd("502 ", "EHLO client.test")
	}, smtptest.WithoutEHLO())
}

func TestLimits(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := dial(t, n)
		c.expect("220 ")
		if diff := cmp.Diff([]string{"ENHANCEDSTATUSCODES", "LIMITS MAILMAX=2 RCPTMAX=1"}, c.ehlo()); diff != "" {
			t.Errorf("extensions (-want +got):\n%s", diff)
		}
		for range 2 {
			c.play(conversation{{"MAIL FROM:<a@x.test>", "250 "}, {"RCPT TO:<b@y.test>", "250 "}, {"RCPT TO:<c@y.test>", "452 4.5.3"}, {"DATA", "354 "}, {".", "250 "}})
		}
		c.cmd("421 4.7.0 Too many messages", "MAIL FROM:<a@x.test>")
		c.eof()
	}, smtptest.WithExtensions("ENHANCEDSTATUSCODES", "LIMITS RCPTMAX=100"), smtptest.WithLimits(2, 1))
	for want, opt := range map[string]smtptest.Option{"LIMITS MAILMAX=3": smtptest.WithLimits(3, 0), "LIMITS RCPTMAX=4": smtptest.WithLimits(0, 4)} {
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			c := dial(t, n)
			c.expect("220 ")
			if diff := cmp.Diff([]string{want}, c.ehlo()); diff != "" {
				t.Errorf("extensions (-want +got):\n%s", diff)
			}
		}, smtptest.WithExtensions(), opt)
	}
}

// TestRequireTLSExtension: REQUIRETLS (RFC 8689) is for TLS sessions only; its
// parameter, and those of DSN, are kept with the message.
func TestRequireTLSExtension(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		if got := c.ehlo(); strings.Contains(strings.Join(got, "|"), "REQUIRETLS") {
			t.Errorf("offered in the clear: %q", got)
		}
		c.cmd("530 5.7.0", "MAIL FROM:<a@x.test> REQUIRETLS")
		c.startTLS(s)
		if got := c.ehlo(); !strings.Contains(strings.Join(got, "|"), "REQUIRETLS") {
			t.Errorf("not offered under TLS: %q", got)
		}
		c.play(conversation{
			{"MAIL FROM:<a@x.test> REQUIRETLS RET=HDRS ENVID=QQ314159", "250 "},
			{"RCPT TO:<b@y.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;b+2Bc@y.test", "250 "}, {"RCPT TO:<c@y.test>", "250 "}, {"DATA", "354 "}, {".", "250 "},
		})
		m := s.Messages()[0]
		if diff := cmp.Diff([]string{"REQUIRETLS", "RET=HDRS", "ENVID=QQ314159"}, m.MailParams); diff != "" {
			t.Errorf("MAIL (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([][]string{{"NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;b+2Bc@y.test"}, nil}, m.RcptParams); diff != "" {
			if len(m.RcptParams) != 2 || len(m.RcptParams[1]) != 0 {
				t.Errorf("RCPT (-want +got):\n%s", diff)
			}
		}
	}, smtptest.WithTLS(), smtptest.WithExtensions("DSN", "REQUIRETLS", "ENHANCEDSTATUSCODES"))
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) { // off: an unknown parameter
		c := greeted(t, n)
		c.startTLS(s)
		c.ehlo()
		c.cmd("555 5.5.4", "MAIL FROM:<a@x.test> REQUIRETLS")
	}, smtptest.WithTLS())
}

// A relay that comes back with another configuration.
func ExampleServer_SetExtensions() {
	relay := smtptest.NewServer(smtptest.WithExtensions("PIPELINING", "SIZE 50000000"))
	defer relay.Close()
	ask := func() {
		c, err := smtp.Dial(relay.Addr)
		if err != nil {
			log.Fatal(err)
		}
		defer c.Close()
		_, size := c.Extension("SIZE")
		pipelining, _ := c.Extension("PIPELINING")
		fmt.Println("SIZE", size, "PIPELINING", pipelining)
	}
	ask()
	relay.SetExtensions("SIZE 1000")
	if err := relay.Restart(); err != nil {
		log.Fatal(err)
	}
	ask()
	// Output:
	// SIZE 50000000 PIPELINING true
	// SIZE 1000 PIPELINING false
}
