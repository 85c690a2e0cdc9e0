package session_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/session"
	"github.com/smtplb/smtplb/smtptest"
)

var ways = map[string]session.TLS{"plain": session.TLSNone, "STARTTLS": session.TLSStart, "implicit TLS": session.TLSImplicit}

// server is a relay that cfg can talk to in the given way.
func server(n *smtptest.Network, how session.TLS) (*smtptest.Server, *session.Config) {
	var opts []smtptest.Option
	switch how {
	case session.TLSStart:
		opts = append(opts, smtptest.WithTLS())
	case session.TLSImplicit:
		opts = append(opts, smtptest.WithImplicitTLS())
	}
	s, cfg := n.NewServer(addr, opts...), config(n)
	if how != session.TLSNone {
		secure(cfg, s, how)
	}
	return s, cfg
}

// deadlines keeps the last deadline that was set on a connection.
type deadlines struct {
	net.Conn
	last time.Time
}

func (d *deadlines) SetDeadline(t time.Time) error {
	d.last = t
	return d.Conn.SetDeadline(t)
}

// NOOP leaves an idle connection as it was: fresh, used, and behind a refused message.
func TestNoop(t *testing.T) {
	for name, how := range ways {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network) {
				s, cfg := server(n, how)
				defer s.Close()
				var watched *deadlines
				cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
					c, err := n.DialContext(ctx, network, addr)
					watched = &deadlines{Conn: c}
					return watched, err
				}
				s.On(smtptest.Mail).Nth(2).Reply(451, "4.3.0 Later")
				c := dial(t, cfg)
				defer c.Close()
				uses := 0
				for i := range 4 {
					for range 2 {
						time.Sleep(time.Hour)
						ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
						if end := c.Noop(ctx, 5*time.Second); end != nil {
							t.Fatalf("message %d: %+v", i, end)
						}
						cancel() // an idle connection is nobody's business
						synctest.Wait()
						if !watched.last.IsZero() {
							t.Errorf("a deadline is left: %v", watched.last)
						}
					}
					if c.Uses() != uses || !c.Reusable() || !c.Alive() {
						t.Errorf("%d uses, reusable %v, alive %v", c.Uses(), c.Reusable(), c.Alive())
					}
					time.Sleep(time.Hour)
					if !c.Alive() {
						t.Error("later it is not alive")
					}
					res := transact(t, c, transaction("x@example.com"))
					if uses++; accepted(res) == (i == 1) || res.Reused != (i > 0) {
						t.Fatalf("message %d: %+v", i, res)
					}
				}
				c.Quit(t.Context())
				if len(s.Messages()) != 3 || strings.Count(s.Transcript(), "C: NOOP") != 8 || strings.Count(s.Transcript(), "C: RSET") != 1 {
					t.Error(s.Transcript())
				}
			})
		})
	}
}

// A relay that has given an idle connection up is not sick for that, however it did so, and whether or not there is a look at the socket.
func TestNoopOnStaleConnections(t *testing.T) {
	for name, test := range map[string]struct {
		act  func(r *smtptest.Rule)
		code int
		fail reply.Failure
	}{
		"421":       {func(r *smtptest.Rule) { r.Reply(421, "4.4.2 Idle timeout") }, 421, reply.FailNone},
		"FIN":       {func(r *smtptest.Rule) { r.DropFIN() }, 0, reply.FailEOF},
		"reset":     {func(r *smtptest.Rule) { r.Drop() }, 0, reply.FailReset},
		"words":     {func(r *smtptest.Rule) { r.Raw("250 2.0.0 for nobody\r\n") }, 0, reply.FailOutOfStep},
		"half":      {func(r *smtptest.Rule) { r.Raw("421 4.4.2 I am ab") }, 0, reply.FailTimeout},
		"malformed": {func(r *smtptest.Rule) { r.Raw("goodbye\r\n") }, 0, reply.FailMalformed},
	} {
		for way, how := range ways {
			for _, looked := range []bool{false, true} { // Alive has seen it before
				t.Run(name+" "+way, func(t *testing.T) {
					bubble(t, func(t *testing.T, n *smtptest.Network) {
						s, cfg := server(n, how)
						defer s.Close()
						test.act(s.On(smtptest.Idle).Delay(time.Second))
						c := dial(t, cfg)
						defer c.Close()
						if res := transact(t, c, transaction("x@example.com")); !accepted(res) {
							t.Fatalf("%+v", res.End)
						}
						time.Sleep(2 * time.Second)
						if looked && c.Alive() {
							t.Error("it is alive")
						}
						begun := time.Now()
						end := c.Noop(t.Context(), 5*time.Second)
						if end == nil || end.Stage != reply.StageNoop || !end.Stale || end.Reply.Code != test.code || end.Failure != test.fail || c.Reusable() {
							t.Errorf("%+v, reusable %v", end, c.Reusable())
						}
						want := time.Duration(0)
						if name == "half" {
							want = 2 * time.Second
						}
						if took := time.Since(begun); took != want {
							t.Errorf("it took %v", took)
						}
						time.Sleep(time.Second)
						synctest.Wait()
						if strings.Contains(s.Transcript(), "NOOP") {
							t.Error("NOOP was sent on it")
						}
					})
				})
			}
		}
	}
}

// What the relay makes of NOOP itself.
func TestNoopAnswers(t *testing.T) {
	for _, test := range []struct {
		name  string
		act   func(r *smtptest.Rule)
		code  int
		fail  reply.Failure
		stale bool
		takes time.Duration
	}{
		{"421", func(r *smtptest.Rule) { r.Reply(421, "4.3.2 Shutting down") }, 421, reply.FailNone, true, 0},
		{"451", func(r *smtptest.Rule) { r.Reply(451, "4.3.0 Later") }, 451, reply.FailNone, false, 0},
		{"502", func(r *smtptest.Rule) { r.Reply(502, "5.5.1 Never heard of it") }, 502, reply.FailNone, false, 0},
		{"354", func(r *smtptest.Rule) { r.Reply(354, "Go on") }, 0, reply.FailOutOfStep, false, 0},
		{"FIN", func(r *smtptest.Rule) { r.DropFIN() }, 0, reply.FailEOF, true, 0},
		{"reset", func(r *smtptest.Rule) { r.Drop() }, 0, reply.FailReset, true, 0},
		{"more", func(r *smtptest.Rule) { r.Raw("250 ok\r\n250 ok\r\n") }, 0, reply.FailOutOfStep, true, 0},
		{"malformed", func(r *smtptest.Rule) { r.Raw("goodbye\r\n") }, 0, reply.FailMalformed, false, 0},
		{"silence", func(r *smtptest.Rule) { r.Stall() }, 0, reply.FailTimeout, false, 5 * time.Second},
		{"too slow", func(r *smtptest.Rule) { r.Delay(6 * time.Second) }, 0, reply.FailTimeout, false, 5 * time.Second},
	} {
		for way, how := range ways {
			t.Run(test.name+" "+way, func(t *testing.T) {
				bubble(t, func(t *testing.T, n *smtptest.Network) {
					s, cfg := server(n, how)
					defer s.Close()
					test.act(s.On(smtptest.Noop))
					c := dial(t, cfg)
					defer c.Close()
					time.Sleep(time.Minute)
					begun := time.Now()
					end := c.Noop(t.Context(), 5*time.Second)
					if end == nil || end.Stage != reply.StageNoop || end.Reply.Code != test.code || end.Failure != test.fail || end.Stale != test.stale || end.LongWait != (test.fail == reply.FailTimeout) {
						t.Errorf("%+v", end)
					}
					if took := time.Since(begun); took != test.takes {
						t.Errorf("it took %v", took)
					}
					if c.Reusable() || c.Alive() {
						t.Error("it may be used again")
					}
				})
			})
		}
	}
}

// close_notify is an end of the stream like any other, and it lies inside TLS.
func TestNoopAfterCloseNotify(t *testing.T) {
	for _, waiting := range []bool{true, false} {
		bubble(t, func(t *testing.T, n *smtptest.Network) {
			cert, trust := certificate(t)
			ln, err := n.Listen(addr)
			if err != nil {
				t.Fatal(err)
			}
			end := meet(ln, func(raw net.Conn) {
				c := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{cert}})
				p := newPeer(c)
				p.say("220 hi\r\n")
				if !waiting {
					p.chat("NOOP")
				} else {
					p.chat("EHLO") // never ends in more
					p.say("250 hi\r\n")
				}
				_ = c.CloseWrite() // and the TCP connection stays
				p.line()
			})
			defer end()
			cfg := config(n)
			cfg.TLS, cfg.TLSConfig = session.TLSImplicit, trust
			c := dial(t, cfg)
			defer c.Close()
			time.Sleep(time.Second)
			if e := c.Noop(t.Context(), 5*time.Second); e == nil || !e.Stale || e.Failure != reply.FailEOF {
				t.Errorf("waiting %v: %+v", waiting, e)
			}
		})
	}
}

// Where the socket can't be looked into, NOOP must still not take an older word for its answer.
func TestNoopWithoutALook(t *testing.T) {
	for _, unasked := range []string{"421 4.4.2 Idle timeout\r\n", "250 for nobody\r\n"} {
		bubble(t, func(t *testing.T, n *smtptest.Network) {
			stop := relayOf(t, n, func(p *peer) {
				p.say("220 hi\r\n")
				p.chat("NOOP")
				p.say("250 ok\r\n")
				time.Sleep(time.Second)
				p.say(unasked)
				if p.chat("NOOP") {
					t.Error("NOOP was sent behind something unasked")
				}
			})
			defer stop()
			cfg := config(n)
			cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				c, err := n.DialContext(ctx, network, addr)
				return struct{ net.Conn }{c}, err
			}
			c := dial(t, cfg)
			defer c.Close()
			if end := c.Noop(t.Context(), 5*time.Second); end != nil {
				t.Fatalf("%+v", end)
			}
			time.Sleep(2 * time.Second)
			if end := c.Noop(t.Context(), 5*time.Second); end == nil || !end.Stale || (end.Reply.Code == 421) != strings.HasPrefix(unasked, "421") {
				t.Errorf("%q: %+v", unasked, end)
			}
		})
	}
}

// NOOP ends with its context at once, and says so; before it was begun that costs nothing.
func TestNoopEndsWithItsContext(t *testing.T) {
	for way, how := range ways {
		t.Run(way, func(t *testing.T) {
			for _, want := range []reply.Failure{reply.FailCanceled, reply.FailDeadline} {
				bubble(t, func(t *testing.T, n *smtptest.Network) {
					s, cfg := server(n, how)
					defer s.Close()
					s.On(smtptest.Noop).Nth(2).Stall()
					c := dial(t, cfg)
					defer c.Close()
					gone, cancel := context.WithCancel(t.Context())
					cancel()
					if end := c.Noop(gone, 5*time.Second); end == nil || end.Failure != reply.FailCanceled || end.Stale || !c.Reusable() {
						t.Errorf("%+v", end)
					}
					if end := c.Noop(t.Context(), 5*time.Second); end != nil {
						t.Errorf("the connection was untouched, and now %+v", end)
					}
					ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
					if want == reply.FailCanceled {
						ctx, cancel = context.WithCancel(t.Context())
						time.AfterFunc(3*time.Second, cancel)
					}
					defer cancel()
					begun := time.Now()
					end := c.Noop(ctx, 20*time.Second)
					if end == nil || end.Failure != want || end.Stale || c.Reusable() || end.LongWait != (want == reply.FailDeadline) {
						t.Errorf("%+v, want %v", end, want)
					}
					if took := time.Since(begun); took != 3*time.Second {
						t.Errorf("it took %v", took)
					}
				})
			}
		})
	}
	bubble(t, func(t *testing.T, n *smtptest.Network) { // while half of a 421 lies there: it may have been about to become something else
		s, cfg := server(n, session.TLSNone)
		defer s.Close()
		s.On(smtptest.Idle).Delay(500 * time.Millisecond).Raw("421 4.4.2 I am ab")
		c := dial(t, cfg)
		defer c.Close()
		transact(t, c, transaction("x@example.com"))
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if end := c.Noop(ctx, 5*time.Second); end == nil || end.Failure != reply.FailDeadline || end.Stale {
			t.Errorf("%+v", end)
		}
	})
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		s, cfg := server(n, session.TLSNone)
		defer s.Close()
		s.On(smtptest.Noop).Stall()
		c := dial(t, cfg)
		closed := errors.New("the pool was closed")
		time.AfterFunc(time.Second, func() { c.Abort(closed) })
		if end := c.Noop(t.Context(), 5*time.Second); end == nil || end.Failure != reply.FailCanceled || !errors.Is(end.Err, closed) || end.Stale {
			t.Errorf("%+v", end)
		}
	})
}

// A connection that was given up before is not asked.
func TestNoopOnWhatIsNotIdle(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		s, cfg := server(n, session.TLSNone)
		defer s.Close()
		c := dial(t, cfg)
		c.Discard()
		if end := c.Noop(t.Context(), time.Second); end == nil || !end.Stale {
			t.Errorf("%+v", end)
		}
		c.Close()
		c = dial(t, cfg)
		c.Close()
		if end := c.Noop(t.Context(), time.Second); end == nil || !end.Stale || c.Reusable() {
			t.Errorf("%+v", end)
		}
		synctest.Wait()
		if strings.Contains(s.Transcript(), "NOOP") {
			t.Error(s.Transcript())
		}
	})
}

// An idle connection's NOOP borrows what it needs.
func TestNoopAllocates(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	end := meet(ln, func(c net.Conn) {
		p := newPeer(c)
		p.say("220 hi\r\n")
		p.chat("QUIT")
	})
	defer end()
	c := dial(t, &session.Config{Network: "tcp", Addr: ln.Addr().String(), LocalName: "client.test", TLS: session.TLSNone, Timeouts: session.DefaultTimeouts})
	defer c.Close()
	ctx := context.Background()
	allocs := testing.AllocsPerRun(200, func() {
		if e := c.Noop(ctx, 5*time.Second); e != nil {
			t.Errorf("%+v", e)
		}
	})
	if allocs > 3 { // the command, and what the peer makes of it
		t.Errorf("%v allocations", allocs)
	}
}
