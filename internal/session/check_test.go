package session_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	netsmtp "net/smtp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/session"
	"github.com/smtplb/smtplb/smtptest"
)

// openConns lets cfg's Dial count the connections that are open.
func openConns(cfg *session.Config) *atomic.Int32 {
	open, dial := new(atomic.Int32), cfg.Dial
	cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		open.Add(1)
		return &countedConn{Conn: c, open: open}, nil
	}
	return open
}

type countedConn struct {
	net.Conn
	open *atomic.Int32
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

func (c *countedConn) ExactWrite() bool { return true }

// heard is what the relay heard on its connection number i, one command after the other.
func heard(s *smtptest.Server, i int) string {
	var commands []string
	for _, line := range strings.Split(s.Transcripts()[i].String(), "\n") {
		if c, ok := strings.CutPrefix(line, "C: "); ok {
			commands = append(commands, c)
		}
	}
	return strings.Join(commands, "|")
}

// The check climbs as far as the relay lets it, says where it ended, and says QUIT wherever the relay still listens.
func TestCheckLadder(t *testing.T) {
	refuse := func(stage smtptest.Stage, code int, text string) func(*smtptest.Server) {
		return func(s *smtptest.Server) { s.On(stage).Reply(code, text) }
	}
	stall := func(stage smtptest.Stage) func(*smtptest.Server) {
		return func(s *smtptest.Server) { s.On(stage).Stall() }
	}
	start := []smtptest.Option{smtptest.WithTLS()}
	implicit := []smtptest.Option{smtptest.WithImplicitTLS()}
	for _, test := range []struct {
		name    string
		opts    []smtptest.Option
		secure  bool
		tls     session.TLS
		prepare func(s *smtptest.Server)
		change  func(cfg *session.Config)
		stage   reply.Stage // StageNone: all is well
		code    int         // of the End
		failure reply.Failure
		last    int // CheckInfo.Code
		heard   string
		takes   time.Duration
	}{
		{name: "plain", last: 250, heard: "EHLO client.test|QUIT"},
		{name: "STARTTLS", opts: start, secure: true, tls: session.TLSStart, last: 250, heard: "EHLO client.test|STARTTLS|EHLO client.test|QUIT"},
		{name: "implicit TLS", opts: implicit, secure: true, tls: session.TLSImplicit, last: 250, heard: "EHLO client.test|QUIT"},
		{name: "HELO", opts: []smtptest.Option{smtptest.WithoutEHLO()}, last: 250, heard: "EHLO client.test|HELO client.test|QUIT"},
		{name: "refused", prepare: func(s *smtptest.Server) { s.Kill() }, stage: reply.StageDial, failure: reply.FailConnect, heard: "none"},
		{name: "swallowed", change: func(cfg *session.Config) {
			cfg.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
		}, stage: reply.StageDial, failure: reply.FailTimeout, heard: "none", takes: 10 * time.Second},
		{name: "no banner", prepare: stall(smtptest.Banner), stage: reply.StageBanner, failure: reply.FailTimeout, takes: 30 * time.Second},
		{name: "banner 554", prepare: refuse(smtptest.Banner, 554, "5.3.2 No service"), stage: reply.StageBanner, code: 554, last: 554, heard: "any"},
		{name: "banner 421", prepare: refuse(smtptest.Banner, 421, "4.3.2 Shutting down"), stage: reply.StageBanner, code: 421, last: 421},
		{name: "not SMTP", prepare: func(s *smtptest.Server) { s.On(smtptest.Banner).Raw("HTTP/1.1 400 Bad Request\r\n") }, stage: reply.StageBanner, failure: reply.FailMalformed},
		{name: "hangs up", prepare: func(s *smtptest.Server) { s.On(smtptest.Connect).DropFIN() }, stage: reply.StageBanner, failure: reply.FailEOF},
		{name: "EHLO 451", prepare: refuse(smtptest.Ehlo, 451, "4.3.0 Later"), stage: reply.StageHello, code: 451, last: 451, heard: "EHLO client.test|QUIT"},
		{name: "EHLO silent", prepare: stall(smtptest.Ehlo), stage: reply.StageHello, failure: reply.FailTimeout, last: 220, heard: "EHLO client.test", takes: 30 * time.Second},
		{name: "no STARTTLS", secure: true, tls: session.TLSStart, stage: reply.StageStartTLS, failure: reply.FailCapability, last: 250, heard: "EHLO client.test|QUIT"},
		{name: "STARTTLS 454", opts: start, secure: true, tls: session.TLSStart, prepare: refuse(smtptest.StartTLS, 454, "4.7.0 TLS not available"), stage: reply.StageStartTLS, code: 454, last: 454, heard: "EHLO client.test|STARTTLS|QUIT"},
		{name: "handshake silent", opts: start, secure: true, tls: session.TLSStart, prepare: stall(smtptest.TLSHandshake), stage: reply.StageTLS, failure: reply.FailTimeout, last: 220, heard: "EHLO client.test|STARTTLS", takes: 15 * time.Second},
		{name: "wrong name", opts: append(start, smtptest.WithCertificateFor("other.test")), secure: true, tls: session.TLSStart, stage: reply.StageTLS, failure: reply.FailCertificate, last: 220, heard: "EHLO client.test|STARTTLS"},
		{name: "expired", opts: append(implicit, smtptest.WithExpiredCertificate()), secure: true, tls: session.TLSImplicit, stage: reply.StageTLS, failure: reply.FailCertificate},
		{name: "EHLO under TLS", opts: start, secure: true, tls: session.TLSStart, prepare: func(s *smtptest.Server) {
			s.On(smtptest.Ehlo).If(func(e *smtptest.Event) bool { return e.TLS }).Reply(421, "4.3.2 Busy")
		}, stage: reply.StageHello, code: 421, last: 421, heard: "EHLO client.test|STARTTLS|EHLO client.test"},
		{name: "words behind EHLO", prepare: func(s *smtptest.Server) { s.On(smtptest.Ehlo).Raw("250 hi\r\n250 more\r\n") }, stage: reply.StageHello, failure: reply.FailOutOfStep, last: 250, heard: "EHLO client.test"},
		{name: "QUIT not answered", prepare: stall(smtptest.Quit), last: 250, heard: "EHLO client.test|QUIT", takes: time.Second},
		{name: "QUIT refused", prepare: refuse(smtptest.Quit, 500, "What?"), last: 250, heard: "EHLO client.test|QUIT"},
		{name: "hangs up at QUIT", prepare: func(s *smtptest.Server) { s.On(smtptest.Quit).Drop() }, last: 250, heard: "EHLO client.test|QUIT"},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network) {
				s := n.NewServer(addr, test.opts...)
				defer s.Close()
				cfg := config(n)
				if test.secure {
					cfg.TLS, cfg.TLSConfig = test.tls, &tls.Config{ServerName: "relay.test"}
					if len(test.opts) > 0 {
						secure(cfg, s, test.tls)
					}
				}
				if test.prepare != nil {
					test.prepare(s)
				}
				if test.change != nil {
					test.change(cfg)
				}
				open, begun := openConns(cfg), time.Now()
				end, timings, info := session.Check(t.Context(), cfg, time.Time{}, false)
				took := time.Since(begun)
				if test.stage == reply.StageNone {
					if end != nil {
						t.Fatalf("%+v", end)
					}
				} else if end == nil || end.Stage != test.stage || end.Reply.Code != test.code || end.Failure != test.failure {
					t.Fatalf("%+v, want %v %d %v", end, test.stage, test.code, test.failure)
				}
				if info.Code != test.last {
					t.Errorf("the last code is %d, want %d", info.Code, test.last)
				}
				if took != test.takes {
					t.Errorf("it took %v, want %v", took, test.takes)
				}
				if timings.Auth != 0 {
					t.Errorf("%+v", timings)
				}
				if open.Load() != 0 {
					t.Error("a connection is left open")
				}
				if cert := test.secure && len(test.opts) > 0 && test.failure != reply.FailTimeout && test.code != 454; cert == info.NotAfter.IsZero() {
					t.Errorf("the certificate expires at %v", info.NotAfter)
				}
				offered := (test.last == 250 || strings.Contains(test.heard, "STARTTLS")) && test.stage != reply.StageHello && test.name != "HELO"
				if offered != info.Extensions.Pipelining {
					t.Errorf("offered: %+v", info.Extensions)
				}
				time.Sleep(time.Hour) // the relay's end of it
				synctest.Wait()
				switch test.heard {
				case "none":
					if n := len(s.Transcripts()); n != 0 {
						t.Errorf("the relay saw %d connections", n)
					}
				case "any":
				default:
					if got := heard(s, 0); got != test.heard {
						t.Errorf("the relay heard %q, want %q", got, test.heard)
					}
				}
				if s.Stats().Connections > 1 {
					t.Errorf("%+v", s.Stats())
				}
			})
		})
	}
}

// A relay that greets with 554 may wait for QUIT, and for nothing else (RFC 5321 §3.1); one that says 421 closes by itself (§3.8).
func TestCheckQuitsAfter554(t *testing.T) {
	for code, want := range map[int]string{554: "QUIT|", 421: "|"} {
		bubble(t, func(t *testing.T, n *smtptest.Network) {
			var told []string
			stop := relayOf(t, n, func(p *peer) {
				p.say(fmt.Sprint(code, " no service here\r\n"))
				told = append(told, p.line())
				p.say("221 bye\r\n")
				told = append(told, p.line())
			})
			end, _, info := session.Check(t.Context(), config(n), time.Time{}, true)
			stop()
			if end == nil || end.Reply.Code != code || info.Code != code || strings.Join(told, "|") != want {
				t.Errorf("%+v, %+v: told %q", end, info, told)
			}
		})
	}
}

// Without auth nobody logs in, and no token is asked for; but AUTH must be offered as a send needs it.
func TestCheckAuth(t *testing.T) {
	for _, auth := range []bool{false, true} {
		for _, pass := range []string{"secret", "wrong"} {
			bubble(t, func(t *testing.T, n *smtptest.Network) {
				s := n.NewServer(addr, smtptest.WithTLS(), smtptest.WithAuth("user", "secret", "PLAIN"))
				defer s.Close()
				cfg := config(n)
				secure(cfg, s, session.TLSStart)
				cfg.Secrets = new(session.Secrets)
				asked := 0
				cfg.Auth = func(context.Context, []string, error) (netsmtp.Auth, error) {
					asked++
					return netsmtp.PlainAuth("", "user", pass, "relay.test"), nil
				}
				end, timings, info := session.Check(t.Context(), cfg, time.Time{}, auth)
				synctest.Wait()
				said := heard(s, 0)
				switch {
				case !auth && (end != nil || asked != 0 || strings.Contains(said, "AUTH") || info.Code != 250 || timings.Auth != 0):
					t.Errorf("%+v: asked %d times, heard %q", end, asked, said)
				case auth && pass == "secret" && (end != nil || asked != 1 || strings.Count(said, "AUTH") != 1 || info.Code != 235):
					t.Errorf("%+v: asked %d times, heard %q, %+v", end, asked, said, info)
				case auth && pass == "wrong" && (end == nil || end.Stage != reply.StageAuth || end.Reply.Code != 535 || asked != 1 || info.Code != 535):
					t.Errorf("%+v: asked %d times, heard %q, %+v", end, asked, said, info)
				}
				if !strings.HasSuffix(said, "|QUIT") {
					t.Errorf("heard %q", said)
				}
				if cfg.Auth == nil {
					t.Error("the Config was changed")
				}
			})
		}
	}
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		s := n.NewServer(addr, smtptest.WithTLS())
		defer s.Close()
		cfg := config(n)
		secure(cfg, s, session.TLSStart)
		cfg.Username, cfg.Password = "user", "secret"
		if end, _, _ := session.Check(t.Context(), cfg, time.Time{}, false); end == nil || end.Stage != reply.StageAuth || end.Failure != reply.FailCapability {
			t.Errorf("credentials, and no AUTH: %+v", end)
		}
		synctest.Wait()
		if said := heard(s, 0); !strings.HasSuffix(said, "|QUIT") {
			t.Errorf("heard %q", said)
		}
	})
	bubble(t, func(t *testing.T, n *smtptest.Network) { // an EHLO that a send with credentials couldn't do without
		s := n.NewServer(addr, smtptest.WithoutEHLO())
		defer s.Close()
		cfg := config(n)
		cfg.Username, cfg.Password, cfg.PlainAuth = "user", "secret", true
		if end, _, _ := session.Check(t.Context(), cfg, time.Time{}, false); end == nil || end.Stage != reply.StageHello {
			t.Errorf("credentials, and no EHLO: %+v", end)
		}
	})
}

// At every rung the end of the context, or of the time, ends the check at once, and nothing is left.
func TestCheckEnds(t *testing.T) {
	for _, at := range []smtptest.Stage{smtptest.Connect, smtptest.Banner, smtptest.Ehlo, smtptest.StartTLS, smtptest.TLSHandshake, smtptest.Auth, smtptest.AuthChallenge, smtptest.Quit} {
		for _, how := range []string{"cancel", "deadline", "cut"} {
			t.Run(at.String()+" "+how, func(t *testing.T) {
				bubble(t, func(t *testing.T, n *smtptest.Network) {
					s := n.NewServer(addr, smtptest.WithTLS(), smtptest.WithAuth("user", "secret", "LOGIN"))
					defer s.Close()
					cfg := config(n)
					secure(cfg, s, session.TLSStart)
					cfg.Username, cfg.Password, cfg.Mechanisms = "user", "secret", []string{"LOGIN"}
					cfg.Timeouts.Quit = 10 * time.Second
					s.On(at).Stall()
					ctx, cancel, cut, want := t.Context(), context.CancelFunc(func() {}), time.Time{}, reply.FailTimeout
					switch how {
					case "cancel":
						ctx, cancel = context.WithCancel(ctx)
						time.AfterFunc(3*time.Second, cancel)
						want = reply.FailCanceled
					case "deadline":
						ctx, cancel = context.WithTimeout(ctx, 3*time.Second)
						want = reply.FailDeadline
					case "cut":
						cut = time.Now().Add(3 * time.Second)
					}
					defer cancel()
					open, begun := openConns(cfg), time.Now()
					end, _, _ := session.Check(ctx, cfg, cut, true)
					took := time.Since(begun)
					if at == smtptest.Quit {
						if end != nil {
							t.Errorf("the relay is well, and hears QUIT: %+v", end)
						}
						if how == "cut" { // bounds the ladder; QUIT has its own time
							took -= 7 * time.Second
						}
					} else if end == nil || end.Failure != want || end.Stale || (how != "cancel") != end.LongWait {
						t.Errorf("%+v, want %v", end, want)
					}
					if took != 3*time.Second {
						t.Errorf("it took %v", took)
					}
					if open.Load() != 0 {
						t.Error("a connection is left open")
					}
				})
			})
		}
	}
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if end, _, info := session.Check(ctx, config(n), time.Time{}, false); end == nil || end.Failure != reply.FailCanceled || info != (session.CheckInfo{}) {
			t.Errorf("%+v, %+v", end, info)
		}
	})
}

// A resumed TLS session shows no certificate, so a check makes none, though the sends do.
func TestCheckHandshakesInFull(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		s := n.NewServer(addr, smtptest.WithTLS())
		defer s.Close()
		cfg := config(n)
		secure(cfg, s, session.TLSStart)
		cfg.TLSConfig.ClientSessionCache = tls.NewLRUClientSessionCache(8)
		var resumed []bool
		cfg.TLSConfig.VerifyConnection = func(cs tls.ConnectionState) error {
			resumed = append(resumed, cs.DidResume)
			return nil
		}
		c := dial(t, cfg)
		transact(t, c, transaction("x@example.com")) // the tickets come with the first bytes
		c.Quit(t.Context())
		end, _, info := session.Check(t.Context(), cfg, time.Time{}, false)
		if end != nil || !info.NotAfter.Equal(s.Certificate().NotAfter) {
			t.Errorf("%+v, %+v", end, info)
		}
		dial(t, cfg).Quit(t.Context())
		if len(resumed) != 3 || resumed[0] || resumed[1] || !resumed[2] {
			t.Errorf("resumed: %v; want only the send's", resumed)
		}
		if cfg.TLSConfig.ClientSessionCache == nil {
			t.Error("the Config was changed")
		}
	})
}

// Config.Auth is the caller's code: should it panic, nothing is left open.
func TestCheckAuthPanics(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		s := n.NewServer(addr, smtptest.WithAuth("user", "secret"))
		defer s.Close()
		cfg := config(n)
		cfg.PlainAuth = true
		cfg.Auth = func(context.Context, []string, error) (netsmtp.Auth, error) { panic(errors.New("no token")) }
		open := openConns(cfg)
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic was swallowed")
				}
			}()
			session.Check(t.Context(), cfg, time.Time{}, true)
		}()
		if open.Load() != 0 {
			t.Error("a connection is left open")
		}
	})
}
