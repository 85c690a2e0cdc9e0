package smtptest_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/smtplb/smtplb/smtptest"
)

const relay = "relay-a.test:587"

// bubble runs f in a synctest bubble with a server at relay on a network in
// memory, which is closed afterwards.
func bubble(t *testing.T, f func(*testing.T, *smtptest.Network, *smtptest.Server), opts ...smtptest.Option) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := smtptest.NewNetwork()
		s := n.NewServer(relay, append([]smtptest.Option{smtptest.WithLogf(t.Logf)}, opts...)...)
		defer s.Close()
		defer func() {
			if t.Failed() {
				t.Log("\n" + s.Transcript())
			}
		}()
		f(t, n, s)
	})
}

// client is a raw SMTP client.
type client struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

// dial connects without waiting for the banner.
func dial(t *testing.T, n *smtptest.Network) *client {
	t.Helper()
	nc, err := n.DialContext(t.Context(), "tcp", relay)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return newClient(t, nc)
}

func newClient(t *testing.T, nc net.Conn) *client { return &client{t, nc, bufio.NewReader(nc)} }

// greeted connects and says EHLO.
func greeted(t *testing.T, n *smtptest.Network) *client {
	t.Helper()
	c := dial(t, n)
	c.expect("220 ")
	c.cmd("250 ", "EHLO client.test")
	return c
}

func (c *client) send(format string, args ...any) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c, format, args...); err != nil {
		c.t.Fatalf("send %q: %v", format, err)
	}
}

// reply reads one reply: its lines joined by newlines, as sent.
func (c *client) reply() (string, error) {
	var lines []string
	for {
		l, err := c.r.ReadString('\n')
		if err != nil {
			return strings.Join(append(lines, l), "\n"), err
		}
		lines = append(lines, strings.TrimSuffix(l, "\r\n"))
		if len(l) < 4 || l[3] != '-' {
			return strings.Join(lines, "\n"), nil
		}
	}
}

// expect reads replies, the last lines of which must begin with the prefixes.
func (c *client) expect(prefixes ...string) string {
	c.t.Helper()
	var last string
	for _, p := range prefixes {
		got, err := c.reply()
		if err != nil {
			c.t.Fatalf("reading a reply (want %q): %q, %v", p, got, err)
		}
		last = got[strings.LastIndexByte(got, '\n')+1:]
		if !strings.HasPrefix(last, p) {
			c.t.Fatalf("reply %q, want %q", got, p)
		}
		last = got
	}
	return last
}

// CloseWrite ends the stream to the server.
func (c *client) CloseWrite() { c.Conn.(interface{ CloseWrite() error }).CloseWrite() }

// cmd sends a line and expects one reply, which it returns.
func (c *client) cmd(prefix, format string, args ...any) string {
	c.t.Helper()
	c.send(format+"\r\n", args...)
	return c.expect(prefix)
}

// eof expects the end of the stream.
func (c *client) eof() {
	c.t.Helper()
	if b, err := io.ReadAll(c.r); len(b) > 0 || err != nil {
		c.t.Fatalf("read %q, %v, want the end of the stream", b, err)
	}
}

// fails expects that the next read gives want.
func (c *client) fails(want func(error) bool) {
	c.t.Helper()
	if b, err := c.r.ReadByte(); err == nil || !want(err) {
		c.t.Fatalf("read %q, %v", b, err)
	}
}

// mail sends one message with pipelining and expects it to be accepted; it
// returns the final reply.
func (c *client) mail(from string, body string, to ...string) string {
	c.t.Helper()
	c.send("MAIL FROM:<%s>\r\n", from)
	for _, rcpt := range to {
		c.send("RCPT TO:<%s>\r\n", rcpt)
	}
	c.send("DATA\r\n")
	c.expect("250 ")
	for range to {
		c.expect("250 ")
	}
	c.expect("354 ")
	c.send("%s.\r\n", body)
	return c.expect("250 ")
}

// startTLS says STARTTLS and does the handshake.
func (c *client) startTLS(s *smtptest.Server) {
	c.t.Helper()
	c.cmd("220 ", "STARTTLS")
	c.handshake(s)
}

func (c *client) handshake(s *smtptest.Server) {
	c.t.Helper()
	cfg := s.ClientTLS()
	cfg.ServerName = "relay-a.test"
	tc := tls.Client(c.Conn, cfg)
	if err := tc.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	c.Conn, c.r = tc, bufio.NewReader(tc)
}
