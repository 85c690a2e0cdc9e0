package session_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/session"
	"github.com/smtplb/smtplb/smtptest"
)

const addr = "relay.test:587"

// body is a message in canonical form; what a relay stores of it is message.
const (
	body    = "Subject: hello\r\n\r\n..dotted\r\nbye\r\n"
	message = "Subject: hello\r\n\r\n.dotted\r\nbye\r\n"
)

// config is a plain-text conversation with the server at addr.
func config(n *smtptest.Network) *session.Config {
	return &session.Config{
		Network: "tcp", Addr: addr, Host: "relay.test", Dial: n.DialContext, LocalName: "client.test",
		TLS: session.TLSNone, Timeouts: session.DefaultTimeouts,
	}
}

// secure turns cfg to STARTTLS with the server's certificate.
func secure(cfg *session.Config, s *smtptest.Server, how session.TLS) {
	cfg.TLS = how
	cfg.TLSConfig = s.ClientTLS()
	cfg.TLSConfig.ServerName = "relay.test"
	if !thorough() { // P-256 is in assembly, which the race detector doesn't slow down
		cfg.TLSConfig.CurvePreferences = []tls.CurveID{tls.CurveP256}
	}
}

func dial(t *testing.T, cfg *session.Config) *session.Conn {
	t.Helper()
	c, end, _ := session.Dial(t.Context(), cfg, time.Time{}, 0, nil)
	if end != nil {
		t.Fatalf("Dial: %v %v %v %v", end.Stage, end.Reply, end.Failure, end.Err)
	}
	return c
}

func transaction(to ...string) *session.Transaction {
	return &session.Transaction{From: "a@example.com", To: to, Body: []byte(body), Size: int64(len(message))}
}

func transact(t *testing.T, c *session.Conn, tx *session.Transaction) session.Result {
	t.Helper()
	var res session.Result
	c.Transact(t.Context(), tx, &res)
	return res
}

func accepted(r session.Result) bool {
	return r.End.Stage == reply.StageFinal && r.End.Reply.Positive()
}

// bubble runs f with an in-memory network in fake time.
func bubble(t *testing.T, f func(t *testing.T, n *smtptest.Network)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, smtptest.NewNetwork()) })
}

func TestDelivers(t *testing.T) {
	for _, how := range []struct {
		name string
		opts []smtptest.Option
		tls  session.TLS
	}{
		{"plain", nil, session.TLSNone},
		{"starttls", []smtptest.Option{smtptest.WithTLS()}, session.TLSStart},
		{"implicit", []smtptest.Option{smtptest.WithImplicitTLS()}, session.TLSImplicit},
		{"no pipelining", []smtptest.Option{smtptest.WithoutExtensions("PIPELINING")}, session.TLSNone},
		{"helo", []smtptest.Option{smtptest.WithoutEHLO()}, session.TLSNone},
	} {
		t.Run(how.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network) {
				s := n.NewServer(addr, how.opts...)
				defer s.Close()
				cfg := config(n)
				if how.tls != session.TLSNone {
					secure(cfg, s, how.tls)
				}
				c := dial(t, cfg)
				defer c.Close()
				for i := range 3 {
					res := transact(t, c, transaction("x@example.com", "y@example.com"))
					if !accepted(res) || !res.Committed || res.Reused != (i > 0) || !c.Reusable() {
						t.Fatalf("message %d: %+v, reusable %v", i, res, c.Reusable())
					}
					if !c.Alive() {
						t.Fatalf("message %d: the connection is not alive afterwards", i)
					}
				}
				msgs := s.Messages()
				if len(msgs) != 3 {
					t.Fatalf("%d messages are stored", len(msgs))
				}
				for _, m := range msgs {
					if string(m.Data) != message || m.From != "a@example.com" || fmt.Sprint(m.To) != "[x@example.com y@example.com]" || m.TLS != (how.tls != session.TLSNone) {
						t.Errorf("stored %+v", m)
					}
				}
				c.Quit(t.Context())
			})
		})
	}
}

func TestBodySizes(t *testing.T) {
	for _, size := range []int{1, 100, 65530, 65531, 65532, 65533, 65534, 65535, 65536, 65537, 131072, 200000, 1 << 20} {
		for _, tls := range []bool{false, true} {
			bubble(t, func(t *testing.T, n *smtptest.Network) {
				var opts []smtptest.Option
				if tls {
					opts = append(opts, smtptest.WithTLS())
				}
				s := n.NewServer(addr, opts...)
				defer s.Close()
				cfg := config(n)
				if tls {
					secure(cfg, s, session.TLSStart)
				}
				c := dial(t, cfg)
				defer c.Close()
				tx := transaction("x@example.com")
				tx.Body = []byte(strings.Repeat(strings.Repeat("x", 76)+"\r\n", size/78+1)[:size])
				if size > 2 {
					copy(tx.Body[size-2:], "\r\n")
				} else {
					tx.Body = []byte("x\r\n")
				}
				if res := transact(t, c, tx); !accepted(res) {
					t.Fatalf("size %d, TLS %v: %+v", size, tls, res.End)
				}
				if got := string(s.Messages()[0].Data); got != string(tx.Body) {
					t.Fatalf("size %d, TLS %v: %d bytes are stored", size, tls, len(got))
				}
			})
		}
	}
}

func TestManyRecipients(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		s := n.NewServer(addr, smtptest.WithMaxRecipients(10000))
		defer s.Close()
		s.On(smtptest.Rcpt).For("user7@example.com").Reply(550, "5.1.1 No such user")
		s.On(smtptest.Rcpt).For("user300@example.com").Reply(451, "4.7.1 Greylisted")
		c := dial(t, config(n))
		defer c.Close()
		var to []string
		for i := range 500 {
			to = append(to, fmt.Sprintf("user%d@example.com", i))
		}
		res := transact(t, c, transaction(to...))
		if !accepted(res) {
			t.Fatalf("%+v", res.End)
		}
		for i, r := range res.Rcpts {
			want := 250
			switch i {
			case 7:
				want = 550
			case 300:
				want = 451
			}
			if r.Code != want {
				t.Errorf("recipient %d: %v, want %d", i, r, want)
			}
		}
		if m := s.Messages(); len(m) != 1 || len(m[0].To) != 498 {
			t.Fatalf("stored %d messages", len(m))
		}
	})
}

func TestAuth(t *testing.T) {
	for _, mech := range []string{"PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256", "XOAUTH2"} {
		for _, pass := range []string{"secret", "wrong"} {
			t.Run(mech+" "+pass, func(t *testing.T) {
				bubble(t, func(t *testing.T, n *smtptest.Network) {
					s := n.NewServer(addr, smtptest.WithTLS(), smtptest.WithAuth("user", "secret", mech))
					defer s.Close()
					cfg := config(n)
					secure(cfg, s, session.TLSStart)
					cfg.Username, cfg.Password, cfg.Mechanisms = "user", pass, []string{mech}
					c, end, _ := session.Dial(t.Context(), cfg, time.Time{}, 0, nil)
					if pass == "wrong" {
						if end == nil || end.Stage != reply.StageAuth || end.Reply.Code != 535 {
							t.Fatalf("a wrong password: %+v", end)
						}
						return
					}
					if end != nil {
						t.Fatalf("%v %v %v %v", end.Stage, end.Reply, end.Failure, end.Err)
					}
					defer c.Close()
					if res := transact(t, c, transaction("x@example.com")); !accepted(res) {
						t.Fatalf("%+v", res.End)
					}
				})
			})
		}
	}
}

func TestScramChecksTheServer(t *testing.T) {
	for name, opt := range map[string]smtptest.Option{
		"no signature":        smtptest.WithScramNoServerSignature(),
		"wrong signature":     smtptest.WithScramBadServerSignature(),
		"too few iterations":  smtptest.WithScramIterations(1000),
		"too many iterations": smtptest.WithScramIterations(20_000_000),
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network) {
				s := n.NewServer(addr, smtptest.WithTLS(), smtptest.WithAuth("user", "secret", "SCRAM-SHA-256"), opt)
				defer s.Close()
				cfg := config(n)
				secure(cfg, s, session.TLSStart)
				cfg.Username, cfg.Password = "user", "secret"
				_, end, _ := session.Dial(t.Context(), cfg, time.Time{}, 0, nil)
				if end == nil || end.Stage != reply.StageAuth || end.Failure != reply.FailAuth {
					t.Fatalf("%+v", end)
				}
			})
		})
	}
}

func TestCredentialsStayHome(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		s := n.NewServer(addr, smtptest.WithAuth("user", "secret", "PLAIN"))
		defer s.Close()
		cfg := config(n)
		cfg.Username, cfg.Password = "user", "secret"
		_, end, _ := session.Dial(t.Context(), cfg, time.Time{}, 0, nil)
		if end == nil || end.Failure != reply.FailAuth {
			t.Fatalf("without TLS: %+v", end)
		}
		if got := s.Stats().Auths + s.Stats().AuthFailures; got != 0 {
			t.Fatal("AUTH was tried without TLS")
		}
	})
}

func TestDialFailures(t *testing.T) {
	for _, test := range []struct {
		name    string
		opts    []smtptest.Option
		script  func(s *smtptest.Server)
		cfg     func(cfg *session.Config, s *smtptest.Server)
		stage   reply.Stage
		code    int
		failure reply.Failure
	}{
		{name: "banner 554", script: func(s *smtptest.Server) { s.On(smtptest.Banner).Reply(554, "5.3.2 go away") }, stage: reply.StageBanner, code: 554},
		{name: "banner 421", script: func(s *smtptest.Server) { s.On(smtptest.Banner).Reply(421, "4.3.2 busy") }, stage: reply.StageBanner, code: 421},
		{name: "banner stalls", script: func(s *smtptest.Server) { s.On(smtptest.Banner).Stall() }, stage: reply.StageBanner, failure: reply.FailTimeout},
		{name: "banner garbage", script: func(s *smtptest.Server) { s.On(smtptest.Banner).Raw("SSH-2.0-OpenSSH_9\r\n") }, stage: reply.StageBanner, failure: reply.FailMalformed},
		{name: "endless banner", script: func(s *smtptest.Server) { s.On(smtptest.Banner).Endless("220-welcome\r\n") }, stage: reply.StageBanner, failure: reply.FailMalformed},
		{name: "10 MB line", script: func(s *smtptest.Server) { s.On(smtptest.Banner).Raw("220 " + strings.Repeat("a", 10<<20) + "\r\n") }, stage: reply.StageBanner, failure: reply.FailMalformed},
		{name: "a byte a second", script: func(s *smtptest.Server) { s.On(smtptest.Banner).Drip(time.Second) }, stage: reply.StageBanner, failure: reply.FailTimeout},
		{name: "banner dropped", script: func(s *smtptest.Server) { s.On(smtptest.Banner).DropFIN() }, stage: reply.StageBanner, failure: reply.FailEOF},
		{name: "ehlo 421", script: func(s *smtptest.Server) { s.On(smtptest.Ehlo).Reply(421, "4.3.2 busy") }, stage: reply.StageHello, code: 421},
		{name: "ehlo dropped", script: func(s *smtptest.Server) { s.On(smtptest.Ehlo).Drop() }, stage: reply.StageHello, failure: reply.FailReset},
		{name: "no STARTTLS", cfg: func(cfg *session.Config, s *smtptest.Server) { cfg.TLS = session.TLSStart }, stage: reply.StageStartTLS, failure: reply.FailCapability},
		{name: "STARTTLS refused", opts: []smtptest.Option{smtptest.WithTLS()}, script: func(s *smtptest.Server) { s.On(smtptest.StartTLS).Reply(454, "4.7.0 not now") },
			cfg: func(cfg *session.Config, s *smtptest.Server) { secure(cfg, s, session.TLSStart) }, stage: reply.StageStartTLS, code: 454},
		{name: "wrong name", opts: []smtptest.Option{smtptest.WithTLS(), smtptest.WithCertificateFor("other.test")},
			cfg: func(cfg *session.Config, s *smtptest.Server) { secure(cfg, s, session.TLSStart) }, stage: reply.StageTLS, failure: reply.FailCertificate},
		{name: "expired", opts: []smtptest.Option{smtptest.WithTLS(), smtptest.WithExpiredCertificate()},
			cfg: func(cfg *session.Config, s *smtptest.Server) { secure(cfg, s, session.TLSStart) }, stage: reply.StageTLS, failure: reply.FailCertificate},
		{name: "plain text behind STARTTLS", opts: []smtptest.Option{smtptest.WithTLS()},
			script: func(s *smtptest.Server) { s.On(smtptest.StartTLS).Raw("220 go\r\n250 injected\r\n") },
			cfg:    func(cfg *session.Config, s *smtptest.Server) { secure(cfg, s, session.TLSStart) }, stage: reply.StageStartTLS, failure: reply.FailOutOfStep},
		{name: "no AUTH", opts: []smtptest.Option{smtptest.WithTLS()},
			cfg: func(cfg *session.Config, s *smtptest.Server) {
				secure(cfg, s, session.TLSStart)
				cfg.Username, cfg.Password = "u", "p"
			}, stage: reply.StageAuth, failure: reply.FailCapability},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network) {
				s := n.NewServer(addr, test.opts...)
				defer s.Close()
				if test.script != nil {
					test.script(s)
				}
				cfg := config(n)
				if test.cfg != nil {
					test.cfg(cfg, s)
				}
				c, end, _ := session.Dial(t.Context(), cfg, time.Time{}, 0, nil)
				if c != nil {
					c.Close()
				}
				if end == nil || end.Stage != test.stage || end.Reply.Code != test.code || end.Failure != test.failure {
					t.Fatalf("ended %+v", end)
				}
				synctest.Wait()
				if a := s.Stats().Active; a != 0 {
					time.Sleep(2 * time.Second)                                        // the server may still be writing to nobody
					if a := s.Stats().Active; a != 0 && test.name != "banner stalls" { // a stalled script doesn't see us go
						t.Errorf("%d connections are left open", a)
					}
				}
			})
		})
	}
}

func TestNobodyListens(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		_, end, _ := session.Dial(t.Context(), config(n), time.Time{}, 0, nil)
		if end == nil || end.Stage != reply.StageDial || end.Failure != reply.FailConnect {
			t.Fatalf("%+v", end)
		}
		n.Blackhole(addr, true)
		begun := time.Now()
		_, end, _ = session.Dial(t.Context(), config(n), time.Time{}, 0, nil)
		if end == nil || end.Failure != reply.FailTimeout || time.Since(begun) != session.DefaultTimeouts.Dial {
			t.Fatalf("%+v after %v", end, time.Since(begun))
		}
	})
}

func TestTransactionEnds(t *testing.T) {
	for _, test := range []struct {
		name      string
		script    func(s *smtptest.Server)
		stage     reply.Stage
		code      int
		failure   reply.Failure
		committed bool
		reusable  bool
		stored    int
	}{
		{name: "mail 451", script: func(s *smtptest.Server) { s.On(smtptest.Mail).Reply(451, "4.3.0 later") }, stage: reply.StageMail, code: 451, reusable: true},
		{name: "mail 421", script: func(s *smtptest.Server) { s.On(smtptest.Mail).Reply(421, "4.3.2 bye") }, stage: reply.StageMail, code: 421},
		{name: "mail dropped", script: func(s *smtptest.Server) { s.On(smtptest.Mail).Drop() }, stage: reply.StageMail, failure: reply.FailReset},
		{name: "mail stalls", script: func(s *smtptest.Server) { s.On(smtptest.Mail).Stall() }, stage: reply.StageMail, failure: reply.FailTimeout},
		{name: "mail 354", script: func(s *smtptest.Server) { s.On(smtptest.Mail).Raw("354 what?\r\n") }, stage: reply.StageMail, failure: reply.FailOutOfStep},
		{name: "all refused", script: func(s *smtptest.Server) { s.On(smtptest.Rcpt).Reply(550, "5.1.1 no") }, stage: reply.StageRcpt, reusable: true},
		{name: "rcpt 421", script: func(s *smtptest.Server) { s.On(smtptest.Rcpt).Reply(421, "4.3.2 bye") }, stage: reply.StageRcpt, code: 421},
		{name: "data 451", script: func(s *smtptest.Server) { s.On(smtptest.Data).Reply(451, "4.3.0 later") }, stage: reply.StageData, code: 451, reusable: true},
		{name: "data 250", script: func(s *smtptest.Server) { s.On(smtptest.Data).Raw("250 eh\r\n") }, stage: reply.StageData, failure: reply.FailOutOfStep},
		{name: "data stalls", script: func(s *smtptest.Server) { s.On(smtptest.Data).Stall() }, stage: reply.StageData, failure: reply.FailTimeout},
		{name: "354 and a stale 250", script: func(s *smtptest.Server) { s.On(smtptest.Data).Raw("354 go\r\n250 stale\r\n") }, stage: reply.StageBody, failure: reply.FailOutOfStep},
		{name: "final 451", script: func(s *smtptest.Server) { s.On(smtptest.EndOfData).Reply(451, "4.3.0 later") }, stage: reply.StageFinal, code: 451, committed: true, reusable: true},
		{name: "final 554", script: func(s *smtptest.Server) { s.On(smtptest.EndOfData).Reply(554, "5.6.0 no") }, stage: reply.StageFinal, code: 554, committed: true, reusable: true},
		{name: "final drop", script: func(s *smtptest.Server) { s.On(smtptest.EndOfData).Drop() }, stage: reply.StageFinal, failure: reply.FailReset, committed: true, stored: 1},
		{name: "final drop unstored", script: func(s *smtptest.Server) { s.On(smtptest.EndOfData).DropUnstored() }, stage: reply.StageFinal, failure: reply.FailReset, committed: true},
		{name: "final stalls", script: func(s *smtptest.Server) { s.On(smtptest.EndOfData).Stall() }, stage: reply.StageFinal, failure: reply.FailTimeout, committed: true, stored: 1},
		{name: "final 354", script: func(s *smtptest.Server) { s.On(smtptest.EndOfData).Raw("354 more\r\n") }, stage: reply.StageFinal, failure: reply.FailOutOfStep, committed: true},
		{name: "final and more", script: func(s *smtptest.Server) { s.On(smtptest.EndOfData).Raw("250 ok\r\n421 bye\r\n") }, stage: reply.StageFinal, code: 250, committed: true},
		{name: "421, then the truth", script: func(s *smtptest.Server) { s.On(smtptest.EndOfData).Raw("421 closing\r\n250 2.0.0 stored\r\n") }, stage: reply.StageFinal, code: 250, committed: true},
	} {
		for _, pipelining := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, pipelining %v", test.name, pipelining), func(t *testing.T) {
				bubble(t, func(t *testing.T, n *smtptest.Network) {
					var opts []smtptest.Option
					if !pipelining {
						opts = append(opts, smtptest.WithoutExtensions("PIPELINING"))
					}
					s := n.NewServer(addr, opts...)
					defer s.Close()
					test.script(s)
					c := dial(t, config(n))
					defer c.Close()
					res := transact(t, c, transaction("x@example.com"))
					if res.End.Stage != test.stage || res.End.Reply.Code != test.code || res.End.Failure != test.failure || res.Committed != test.committed || c.Reusable() != test.reusable {
						t.Fatalf("ended %+v, committed %v, reusable %v", res.End, res.Committed, c.Reusable())
					}
					if got := len(s.Messages()); got != test.stored && !strings.Contains(test.name, "truth") && !strings.Contains(test.name, "more") && !strings.Contains(test.name, "354") {
						t.Errorf("%d messages are stored, want %d", got, test.stored)
					}
					if test.reusable { // a refused transaction leaves nothing behind
						s.ClearScript()
						if res := transact(t, c, transaction("y@example.com")); !accepted(res) {
							t.Fatalf("the next message: %+v", res.End)
						}
						m := s.Messages()
						if fmt.Sprint(m[len(m)-1].To) != "[y@example.com]" {
							t.Fatalf("it went to %v", m[len(m)-1].To)
						}
					}
				})
			})
		}
	}
}

// A cancelled context ends a transaction at once before the commit point, and after the grace behind it.
func TestCancel(t *testing.T) {
	for _, test := range []struct {
		stage smtptest.Stage
		want  reply.Stage
		grace time.Duration
	}{
		{smtptest.Mail, reply.StageMail, 0},
		{smtptest.Data, reply.StageData, 0},
		{smtptest.EndOfData, reply.StageFinal, session.DefaultTimeouts.Grace},
	} {
		bubble(t, func(t *testing.T, n *smtptest.Network) {
			s := n.NewServer(addr)
			defer s.Close()
			s.On(test.stage).Stall()
			c := dial(t, config(n))
			defer c.Close()
			ctx, cancel := context.WithCancelCause(t.Context())
			cause := errors.New("the user left")
			time.AfterFunc(time.Second, func() { cancel(cause) })
			begun := time.Now()
			var res session.Result
			c.Transact(ctx, transaction("x@example.com"), &res)
			if took := time.Since(begun); took != time.Second+test.grace {
				t.Errorf("%v: took %v", test.stage, took)
			}
			if res.End.Stage != test.want || res.End.Failure != reply.FailCanceled || !errors.Is(res.End.Err, cause) || c.Reusable() {
				t.Errorf("%v: %+v, reusable %v", test.stage, res.End, c.Reusable())
			}
		})
	}
}

// The grace is used: a reply that comes in it counts.
func TestGrace(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		s := n.NewServer(addr)
		defer s.Close()
		s.On(smtptest.EndOfData).Delay(3 * time.Second)
		c := dial(t, config(n))
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var res session.Result
		c.Transact(ctx, transaction("x@example.com"), &res)
		if !accepted(res) || c.Reusable() {
			t.Fatalf("%+v, reusable %v", res.End, c.Reusable())
		}
	})
}

// The grace doesn't prolong a stage whose own time is over before, whenever the context
// ends.
func TestGraceWithinFinalTimeout(t *testing.T) {
	for _, ends := range []time.Duration{time.Second, 1900 * time.Millisecond, 3 * time.Second} {
		bubble(t, func(t *testing.T, n *smtptest.Network) {
			s := n.NewServer(addr)
			defer s.Close()
			s.On(smtptest.EndOfData).Stall()
			cfg := config(n)
			cfg.Timeouts.Final = 2 * time.Second
			c := dial(t, cfg)
			defer c.Close()
			ctx, cancel := context.WithTimeout(t.Context(), ends)
			defer cancel()
			start := time.Now()
			var res session.Result
			c.Transact(ctx, transaction("x@example.com"), &res)
			if took := time.Since(start); took != 2*time.Second || !res.Committed || res.End.Stage != reply.StageFinal {
				t.Errorf("context of %v: took %v, %+v", ends, took, res)
			}
		})
	}
}

// Nothing is begun that can't be finished: with too little time left the connection is cut before the dot.
func TestCommitBy(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		s := n.NewServer(addr)
		defer s.Close()
		s.On(smtptest.Data).Delay(2 * time.Second)
		c := dial(t, config(n))
		defer c.Close()
		tx := transaction("x@example.com")
		tx.CommitBy = time.Now().Add(time.Second)
		res := transact(t, c, tx)
		if res.End.Stage != reply.StageBody || res.End.Failure != reply.FailDeadline || res.Committed || c.Reusable() {
			t.Fatalf("%+v", res)
		}
		c.Close()
		synctest.Wait()
		if len(s.Messages()) != 0 {
			t.Fatal("a message was stored")
		}
	})
}

// A server that reads nothing must not hang us: writes have deadlines too.
func TestWriteStalls(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		n.SetBuffer(64 << 10)
		s := n.NewServer(addr)
		defer s.Close()
		s.On(smtptest.Body).After(1000).Stall()
		c := dial(t, config(n))
		defer c.Close()
		tx := transaction("x@example.com")
		tx.Body = []byte(strings.Repeat("0123456789\r\n", 100000))
		res := transact(t, c, tx)
		if res.End.Stage != reply.StageBody || res.End.Failure != reply.FailTimeout || res.Committed {
			t.Fatalf("%+v", res)
		}
	})
}

// opaque hides what a connection is: its writes are not trusted to be exact.
type opaque struct{ net.Conn }

// failAfter fails the n-th write whole, as a broken proxy may, though the bytes went out.
type failAfter struct {
	net.Conn
	n int
}

func (f *failAfter) Write(p []byte) (int, error) {
	f.n--
	if f.n == 0 {
		_, _ = f.Conn.Write(p)
		return 0, errors.New("the write failed")
	}
	return f.Conn.Write(p)
}

// On a connection whose writes are not exact a message is committed as soon as its last write begins.
func TestInexactWrites(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		s := n.NewServer(addr)
		defer s.Close()
		s.On(smtptest.EndOfData).Stall()
		cfg := config(n)
		cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := n.DialContext(ctx, network, addr)
			return &failAfter{Conn: opaque{c}, n: 3}, err // EHLO, the envelope, the body
		}
		c := dial(t, cfg)
		defer c.Close()
		res := transact(t, c, transaction("x@example.com"))
		if !res.Committed {
			t.Fatalf("%+v", res)
		}
	})
}
