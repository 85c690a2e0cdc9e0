package smtptest_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/smtptest"
)

func TestStartTLS(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		c.cmd("538 5.7.11", "AUTH PLAIN AHUAcA==")
		// What is sent behind STARTTLS in the clear is not taken for secured.
		c.send("STARTTLS\r\nMAIL FROM:<evil@x.test>\r\n")
		c.expect("220 ")
		c.handshake(s)
		c.cmd("503 ", "MAIL FROM:<a@x.test>") // EHLO is forgotten
		if got := c.cmd("250 ", "EHLO client.test"); strings.Contains(got, "STARTTLS") || !strings.Contains(got, "AUTH PLAIN LOGIN") {
			t.Errorf("EHLO after TLS: %s", got)
		}
		c.cmd("503 ", "STARTTLS")
		c.cmd("235 ", "AUTH PLAIN AHUAcA==")
		c.mail("a@x.test", "x\r\n", "b@y.test")
		if m := s.Messages()[0]; !m.TLS || m.Auth != "u" {
			t.Errorf("%+v", m)
		}
		c.cmd("221 ", "QUIT")
		c.eof()
		if st := s.Stats(); st.TLSHandshakes != 1 || st.EarlyBytes != 1 {
			t.Errorf("%+v", st)
		}
		if tr := s.Transcript(); !strings.Contains(tr, `-- TLS handshake: TLS 1.3, server name "relay-a.test"`) || strings.Contains(tr, "evil") {
			t.Error(tr)
		}
	}, smtptest.WithTLS(), smtptest.WithAuth("u", "p"))
}

func TestImplicitTLS(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		if got := s.URL(); got != "smtps://u:p%40@relay-a.test:587" {
			t.Error(got)
		}
		s.On(smtptest.Connect).Conn(2).Reply(554, "no TLS for you")
		s.On(smtptest.TLSHandshake).Conn(3).Raw("220 plain\r\n")
		s.On(smtptest.TLSHandshake).Conn(4).Drop()
		c := dial(t, n)
		c.handshake(s)
		c.expect("220 ")
		if got := c.cmd("250 ", "EHLO client.test"); strings.Contains(got, "STARTTLS") {
			t.Error(got)
		}
		c.cmd("502 ", "STARTTLS")
		for _, want := range []string{"554 no TLS for you", "220 plain"} {
			c = dial(t, n)
			c.expect(want)
			c.eof()
		}
		c = dial(t, n)
		c.fails(isReset)
		if st := s.Stats(); st.TLSHandshakes != 1 || st.TLSFailures != 0 {
			t.Errorf("%+v", st)
		}
	}, smtptest.WithAuth("u", "p@"), smtptest.WithTLS(), smtptest.WithImplicitTLS())
}

// TestMaxConnsImplicitTLS: the refusal comes through TLS.
func TestMaxConnsImplicitTLS(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		dial(t, n)
		synctest.Wait()
		c := dial(t, n)
		c.handshake(s)
		c.expect("421 4.7.0 Too many connections")
		c.eof()
	}, smtptest.WithImplicitTLS(), smtptest.WithMaxConns(1))
}

// handshakeError connects with TLS and returns the handshake's error.
func handshakeError(t *testing.T, n *smtptest.Network, s *smtptest.Server, name string) error {
	t.Helper()
	c := greeted(t, n)
	c.cmd("220 ", "STARTTLS")
	cfg := s.ClientTLS()
	cfg.ServerName = name
	err := tls.Client(c.Conn, cfg).Handshake()
	c.Close()
	return err
}

func TestCertificates(t *testing.T) {
	t.Run("default", func(t *testing.T) {
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			for _, name := range []string{"relay-a.test", "localhost", "127.0.0.1", "::1"} {
				if err := handshakeError(t, n, s, name); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			cert := s.Certificate()
			if now := time.Now(); now.Year() != 2000 || !cert.NotBefore.Before(now) || !cert.NotAfter.After(now.AddDate(9, 0, 0)) {
				t.Errorf("valid from %v to %v, now is %v", cert.NotBefore, cert.NotAfter, now)
			}
			var unknown x509.UnknownAuthorityError
			other := n.NewServer("relay-b.test:25", smtptest.WithTLS())
			defer other.Close()
			if err := handshakeError(t, n, other, "relay-a.test"); !errors.As(err, &unknown) {
				t.Errorf("with another server's trust: %v", err)
			}
			synctest.Wait()
			if st := s.Stats(); st.TLSHandshakes != 4 || st.TLSFailures != 1 {
				t.Errorf("%+v", st)
			}
		}, smtptest.WithTLS())
	})
	t.Run("other name", func(t *testing.T) {
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			var mismatch x509.HostnameError
			if err := handshakeError(t, n, s, "relay-a.test"); !errors.As(err, &mismatch) {
				t.Errorf("error %v", err)
			}
			for _, name := range []string{"other.test", "10.0.0.1"} {
				if err := handshakeError(t, n, s, name); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}, smtptest.WithCertificateFor("other.test", "10.0.0.1"))
	})
	t.Run("expired", func(t *testing.T) {
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			var invalid x509.CertificateInvalidError
			if err := handshakeError(t, n, s, "relay-a.test"); !errors.As(err, &invalid) || invalid.Reason != x509.Expired {
				t.Errorf("error %v", err)
			}
		}, smtptest.WithExpiredCertificate())
	})
	t.Run("own", func(t *testing.T) {
		bubble(t, func(t *testing.T, n *smtptest.Network, a *smtptest.Server) {
			var got *tls.Config
			a.On(smtptest.TLSHandshake).Conn(1).Delay(time.Second)
			if err := handshakeError(t, n, a, "relay-a.test"); err != nil {
				t.Error(err)
			}
			// Borrow its certificate, without the parsed leaf.
			c := greeted(t, n)
			c.startTLS(a)
			raw := c.Conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Raw
			b := n.NewServer("relay-b.test:25", smtptest.WithCertificate(tls.Certificate{Certificate: [][]byte{raw}}))
			defer b.Close()
			if got = b.ClientTLS(); !got.RootCAs.Equal(a.ClientTLS().RootCAs) || got.ServerName != "" {
				t.Errorf("%+v", got)
			}
		}, smtptest.WithTLS())
	})
	t.Run("none", func(t *testing.T) {
		bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
			if s.ClientTLS() != nil || s.Certificate() != nil {
				t.Error("a certificate without TLS")
			}
		})
	})
}

// recordingConn keeps what is read.
type recordingConn struct {
	net.Conn
	got []byte
}

func (c *recordingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.got = append(c.got, b[:n]...)
	return n, err
}

// alert reports whether the last record has the size of a TLS 1.3 alert.
func (c *recordingConn) alert() bool {
	return len(c.got) > 24 && bytes.HasPrefix(c.got[len(c.got)-24:], []byte{0x17, 3, 3, 0, 19})
}

// TestEndingsUnderTLS: a drop is a reset, or a FIN without close_notify; an orderly
// end has one. crypto/tls makes no difference between the last two.
func TestEndingsUnderTLS(t *testing.T) {
	for _, tt := range []struct {
		name   string
		set    func(*smtptest.Rule)
		want   func(error) bool
		notify bool
	}{
		{"Drop", func(r *smtptest.Rule) { r.Drop() }, isReset, false},
		{"DropFIN", func(r *smtptest.Rule) { r.DropFIN() }, isEOF, false},
		{"ThenClose", func(r *smtptest.Rule) { r.ThenClose() }, isEOF, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
				tt.set(s.On(smtptest.Noop))
				c := greeted(t, n)
				rec := &recordingConn{Conn: c.Conn}
				c.Conn = rec
				c.startTLS(s)
				c.cmd("250 ", "EHLO client.test")
				if tt.notify {
					c.cmd("250 ", "NOOP")
				} else {
					c.send("NOOP\r\n")
				}
				c.fails(tt.want)
				if got := rec.alert(); got != tt.notify {
					t.Errorf("close_notify: %v", got)
				}
			}, smtptest.WithTLS())
		})
	}
}

// TestCloseUnderTLS: Close says 421 and close_notify.
func TestCloseUnderTLS(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		c.startTLS(s)
		c.cmd("250 ", "EHLO client.test")
		s.Close()
		c.expect("421 4.3.2")
		c.eof()
	}, smtptest.WithTLS())
}

// TestScriptedSTARTTLS: a scripted 220 is followed by the handshake, under a server
// that has a certificate.
func TestScriptedSTARTTLS(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.On(smtptest.StartTLS).Reply(220, "come on")
		c := greeted(t, n)
		c.cmd("220 come on", "STARTTLS")
		c.handshake(s)
		c.cmd("250 ", "EHLO client.test")
	}, smtptest.WithTLS())
	// Bytes behind the 220 in the same segment.
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.On(smtptest.StartTLS).Raw("220 ready\r\n250 injected\r\n").ThenClose()
		c := greeted(t, n)
		c.send("STARTTLS\r\n")
		c.expect("220 ", "250 injected")
		c.eof()
	}, smtptest.WithTLS())
}

func TestRequireTLSLetsTLSIn(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		c.startTLS(s)
		c.cmd("250 ", "EHLO client.test")
		c.mail("a@x.test", "x\r\n", "b@y.test")
	}, smtptest.WithRequireTLS())
}

// TestPipeliningUnderTLS: records are no obstacle to a pipelined group.
func TestPipeliningUnderTLS(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		c.startTLS(s)
		c.cmd("250 ", "EHLO client.test")
		w := bufio.NewWriterSize(c, 100_000)
		for range 100 {
			w.WriteString("MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nRSET\r\n")
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		c.expect(slices.Repeat([]string{"250 "}, 300)...)
	}, smtptest.WithTLS())
}
