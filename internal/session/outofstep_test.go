package session_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/memnet"
	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/session"
	"github.com/smtplb/smtplb/smtptest"
)

// peer is a relay of the test's own, which says word for word what the test wants.
type peer struct {
	net.Conn
	br   *bufio.Reader
	told []string // the client's lines, in command mode
}

func newPeer(c net.Conn) *peer { return &peer{Conn: c, br: bufio.NewReader(c)} }

func (p *peer) say(s string) { _, _ = io.WriteString(p, s) }

// line is the client's next line; "" when it has left.
func (p *peer) line() string {
	l, err := p.br.ReadString('\n')
	if err != nil {
		return ""
	}
	l = strings.TrimSuffix(l, "\r\n")
	p.told = append(p.told, l)
	return l
}

// chat says 250 to everything, and offers to EHLO, until a line that begins with until; false when the client left before.
func (p *peer) chat(until string, offers ...string) bool {
	for {
		l := p.line()
		switch {
		case l == "":
			return false
		case strings.HasPrefix(l, until):
			return true
		case strings.HasPrefix(l, "EHLO"):
			p.say("250-hi\r\n")
			for _, o := range offers {
				p.say("250-" + o + "\r\n")
			}
			p.say("250 PIPELINING\r\n")
		default:
			p.say("250 fine\r\n")
		}
	}
}

// message reads a body up to its terminator; false when the client left before.
func (p *peer) message() bool {
	for {
		l, err := p.br.ReadString('\n')
		if err != nil {
			return false
		}
		if l == ".\r\n" {
			return true
		}
	}
}

// meet lets f serve each connection that ln accepts. The function that it returns ends that, and waits for f's ends.
func meet(ln net.Listener, f func(c net.Conn)) (end func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			f(c)
			c.Close()
		}
	}()
	return func() {
		ln.Close()
		<-done
	}
}

// relayOf is a peer at addr in n, without TLS.
func relayOf(t *testing.T, n *smtptest.Network, f func(p *peer)) (end func()) {
	t.Helper()
	ln, err := n.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	return meet(ln, func(c net.Conn) { f(newPeer(c)) })
}

// certificate is one for relay.test, and what trusts it.
func certificate(t *testing.T) (tls.Certificate, *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"relay.test"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, &tls.Config{RootCAs: roots, ServerName: "relay.test", MinVersion: tls.VersionTLS12}
}

// batch keeps what is written while hold is set, so that several records leave in one segment.
type batch struct {
	net.Conn
	hold bool
	buf  bytes.Buffer
}

func (b *batch) Write(p []byte) (int, error) {
	if b.hold {
		return b.buf.Write(p)
	}
	return b.Conn.Write(p)
}

func (b *batch) flush() {
	b.hold = false
	_, _ = b.Conn.Write(b.buf.Bytes())
}

// secureRelay is relayOf with implicit TLS. f has the transport too.
func secureRelay(t *testing.T, n *smtptest.Network, f func(p *peer, wire *batch)) (cfg *session.Config, end func()) {
	t.Helper()
	cert, trust := certificate(t)
	ln, err := n.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	cfg = config(n)
	cfg.TLS, cfg.TLSConfig = session.TLSImplicit, trust
	return cfg, meet(ln, func(c net.Conn) {
		wire := &batch{Conn: c}
		f(newPeer(tls.Server(wire, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})), wire)
	})
}

func wantOutOfStep(t *testing.T, res session.Result, stage reply.Stage) {
	t.Helper()
	if res.End.Stage != stage || res.End.Failure != reply.FailOutOfStep || res.Committed {
		t.Errorf("ended %+v, committed %v; want out of step at %v", res.End, res.Committed, stage)
	}
}

// A 250 that came before the terminator is no answer to the message, wherever it hides: here in a record of its own behind that of the 354.
func TestEarlyReplyInAnotherRecord(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		cfg, end := secureRelay(t, n, func(p *peer, wire *batch) {
			p.say("220 hi\r\n")
			if p.chat("DATA") {
				wire.hold = true
				p.say("354 go\r\n")
				p.say("250 2.0.0 Ok: queued as FAKE\r\n")
				wire.flush()
				p.line()
			}
		})
		defer end()
		c := dial(t, cfg)
		defer c.Close()
		wantOutOfStep(t, transact(t, c, transaction("x@example.com")), reply.StageBody)
	})
}

// Nor where the connection can't be looked into, in the middle of a long body.
func TestEarlyReplyOnAnOpaqueConnection(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		n.SetBuffer(64 << 10)
		end := relayOf(t, n, func(p *peer) {
			p.say("220 hi\r\n")
			if p.chat("DATA") {
				p.say("354 go\r\n")
				_, _ = io.ReadFull(p.br, make([]byte, 200<<10))
				p.say("250 2.0.0 Ok: queued as FAKE\r\n")
				p.message()
			}
		})
		defer end()
		cfg := config(n)
		cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := n.DialContext(ctx, network, addr)
			return opaque{c}, err
		}
		c := dial(t, cfg)
		defer c.Close()
		tx := transaction("x@example.com")
		tx.Body = bytes.Repeat([]byte("A line that makes it long.....\r\n"), 1<<15)
		wantOutOfStep(t, transact(t, c, tx), reply.StageBody)
	})
}

// On a real socket the kernel is asked. The body is larger than what socket buffers hold.
func TestEarlyReplyInTheKernel(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	end := meet(ln, func(c net.Conn) {
		p := newPeer(c)
		p.say("220 hi\r\n")
		if p.chat("DATA") {
			p.say("354 go\r\n")
			_, _ = io.ReadFull(p.br, make([]byte, 1<<20))
			p.say("250 2.0.0 Ok: queued as FAKE\r\n")
			_, _ = io.Copy(io.Discard, p.br)
		}
	})
	defer end()
	c := dial(t, &session.Config{Network: "tcp", Addr: ln.Addr().String(), LocalName: "client.test", TLS: session.TLSNone, Timeouts: session.DefaultTimeouts})
	defer c.Close()
	tx := transaction("x@example.com")
	tx.Body = bytes.Repeat([]byte("A line that makes it long.....\r\n"), 1<<20)
	wantOutOfStep(t, transact(t, c, tx), reply.StageBody)
	c.Close()
}

// A reply more than there were commands would be taken for the answer to the next group's first one, and each reply after it for another's.
func TestStrayReply(t *testing.T) {
	for _, test := range []struct {
		name  string
		opts  []smtptest.Option
		at    int // the recipient whose answer comes with a stray one
		all   bool
		stage reply.Stage
	}{
		{"between groups", nil, 62, false, reply.StageRcpt},
		{"before DATA alone", nil, 69, true, reply.StageData},
		{"step by step", []smtptest.Option{smtptest.WithoutExtensions("PIPELINING")}, 5, false, reply.StageRcpt},
		{"step by step before DATA", []smtptest.Option{smtptest.WithoutExtensions("PIPELINING")}, 69, false, reply.StageData},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network) {
				s := n.NewServer(addr, test.opts...)
				defer s.Close()
				s.On(smtptest.Rcpt).For(fmt.Sprintf("r%d@example.com", test.at)).Raw("250 2.1.5 fine\r\n250 2.1.5 stray\r\n")
				var to []string
				for i := range 70 {
					to = append(to, fmt.Sprintf("r%d@example.com", i))
				}
				c := dial(t, config(n))
				defer c.Close()
				tx := transaction(to...)
				tx.All = test.all
				wantOutOfStep(t, transact(t, c, tx), test.stage)
				c.Close()
				synctest.Wait() // the relay has read all that we said
				if got := s.Stats().Commands["DATA"]; c.Reusable() || got != 0 {
					t.Errorf("reusable %v, %d DATAs were sent", c.Reusable(), got)
				}
			})
		})
	}
}

// Nothing may come with the greeting, or behind the answer to EHLO.
func TestUnaskedBytesAfterTheGreeting(t *testing.T) {
	for name, talk := range map[string][2]string{
		"banner": {"220 hi\r\n250 stray\r\n", "250 hi\r\n"},
		"EHLO":   {"220 hi\r\n", "250 hi\r\n250 stray\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network) {
				end := relayOf(t, n, func(p *peer) {
					p.say(talk[0])
					p.line()
					p.say(talk[1])
					p.line()
				})
				defer end()
				c, fail, _ := session.Dial(t.Context(), config(n), time.Time{}, 0, nil)
				if c != nil {
					c.Close()
				}
				if fail == nil || fail.Stage != reply.StageHello || fail.Failure != reply.FailOutOfStep {
					t.Errorf("%+v", fail)
				}
			})
		})
	}
}

// A 354 that comes though MAIL was refused, or nobody was taken, waits for a body. It gets a cut, not a byte: a lone dot would be a message.
func TestUnwanted354(t *testing.T) {
	for name, refuse := range map[string]string{"MAIL refused": "MAIL", "nobody taken": "RCPT"} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network) {
				var after []byte
				var said bool
				end := relayOf(t, n, func(p *peer) {
					p.say("220 hi\r\n")
					for {
						switch l := p.line(); {
						case l == "":
							return
						case strings.HasPrefix(l, "EHLO"):
							p.say("250-hi\r\n250 PIPELINING\r\n")
						case strings.HasPrefix(l, refuse):
							p.say("550 5.7.1 no\r\n")
						case l == "DATA":
							p.say("354 go\r\n")
							said = true
							after, _ = io.ReadAll(p.br)
							return
						default:
							p.say("250 fine\r\n")
						}
					}
				})
				c := dial(t, config(n))
				res := transact(t, c, transaction("x@example.com"))
				if c.Reusable() || res.Committed {
					t.Errorf("reusable %v, committed %v", c.Reusable(), res.Committed)
				}
				if want := map[string]reply.Stage{"MAIL": reply.StageMail, "RCPT": reply.StageRcpt}[refuse]; res.End.Stage != want || res.End.Failure != reply.FailNone {
					t.Errorf("%+v", res.End)
				}
				c.Quit(t.Context()) // which is silent
				end()
				if !said || len(after) != 0 {
					t.Errorf("354 was said: %v; behind it came %q", said, after)
				}
			})
		})
	}
}

// What a refused transaction left at the relay is cleared away before the next one.
func TestResetBeforeTheNext(t *testing.T) {
	for _, stage := range []smtptest.Stage{smtptest.Mail, smtptest.Rcpt, smtptest.Data, smtptest.EndOfData} {
		for _, opts := range [][]smtptest.Option{nil, {smtptest.WithoutExtensions("PIPELINING")}} {
			bubble(t, func(t *testing.T, n *smtptest.Network) {
				s := n.NewServer(addr, opts...)
				defer s.Close()
				s.On(stage).Times(1).Reply(451, "4.3.0 later")
				c := dial(t, config(n))
				defer c.Close()
				transact(t, c, transaction("x@example.com"))
				for i, want := range []int{1, 1} { // once is enough
					if res := transact(t, c, transaction("y@example.com")); !accepted(res) {
						t.Fatalf("%v: %+v", stage, res.End)
					}
					if got := s.Stats().Commands["RSET"]; got != want {
						t.Errorf("%v: %d RSETs before message %d\n%s", stage, got, i+2, s.Transcript())
					}
				}
			})
		}
	}
}

// A relay that refuses RSET may hold the rest of another message: the connection counts as one that broke while it was idle.
func TestRefusedReset(t *testing.T) {
	for _, opts := range [][]smtptest.Option{nil, {smtptest.WithoutExtensions("PIPELINING")}} {
		bubble(t, func(t *testing.T, n *smtptest.Network) {
			s := n.NewServer(addr, opts...)
			defer s.Close()
			s.On(smtptest.Mail).Times(1).Reply(451, "4.3.0 later")
			s.On(smtptest.Rset).Reply(502, "5.5.1 not here")
			c := dial(t, config(n))
			defer c.Close()
			transact(t, c, transaction("x@example.com"))
			res := transact(t, c, transaction("y@example.com"))
			if res.End.Stage != reply.StageMail || res.End.Failure != reply.FailReset || !res.First || !res.Reused || c.Reusable() || len(s.Messages()) != 0 {
				t.Errorf("%+v, reusable %v, %d stored", res, c.Reusable(), len(s.Messages()))
			}
		})
	}
}

// A relay that answers only when nothing more comes is never left with more than 64 commands, nor 8 KiB of them.
func TestPipeliningBounds(t *testing.T) {
	for _, width := range []int{1, 200} {
		bubble(t, func(t *testing.T, n *smtptest.Network) {
			most, bytesMost, resets := 0, 0, 0
			end := relayOf(t, n, func(p *peer) {
				p.say("220 hi\r\n")
				if !p.chat("MAIL") { // with the answer to EHLO
					return
				}
				refuse, waiting, size := true, []string{p.told[len(p.told)-1]}, len(p.told[len(p.told)-1])+2
				for {
					synctest.Wait() // the client waits for us
					if p.br.Buffered() == 0 && p.Conn.(*memnet.Conn).Buffered() == 0 {
						most, bytesMost = max(most, len(waiting)), max(bytesMost, size)
						for _, l := range waiting {
							switch {
							case l == "DATA" && refuse:
								p.say("554 5.5.1 for whom?\r\n")
								refuse = false
							case l == "DATA":
								p.say("354 go\r\n")
								p.message()
								p.say("250 stored\r\n")
							case refuse && strings.HasPrefix(l, "RCPT"):
								p.say("550 5.1.1 no\r\n")
							case l == "RSET":
								resets++
								p.say("250 fine\r\n")
							default:
								p.say("250 fine\r\n")
							}
						}
						waiting, size = nil, 0
					}
					l := p.line()
					if l == "" {
						return
					}
					waiting, size = append(waiting, l), size+len(l)+2
				}
			})
			c := dial(t, config(n))
			var to []string
			for i := range 500 {
				to = append(to, fmt.Sprintf("%s%d@example.com", strings.Repeat("x", width), i))
			}
			if res := transact(t, c, transaction("nobody@example.com")); res.End.Stage != reply.StageRcpt {
				t.Errorf("%+v", res.End)
			}
			if res := transact(t, c, transaction(to...)); !accepted(res) {
				t.Errorf("%+v", res.End)
			}
			c.Close()
			end()
			if most > 64 || bytesMost > 8<<10 || resets != 1 {
				t.Errorf("%d commands of %d bytes were unanswered, with %d RSETs", most, bytesMost, resets)
			}
			if width == 1 && most != 64 || width == 200 && bytesMost < 7<<10 {
				t.Errorf("only %d commands, or %d bytes, went out at once", most, bytesMost)
			}
		})
	}
}

// Behind a banner of stars sits a firewall that mangles extensions: none is used.
func TestMaskedBanner(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		var told []string
		end := relayOf(t, n, func(p *peer) {
			p.say("220 ****2**0***\r\n")
			for p.chat("DATA") {
				p.say("354 go\r\n")
				p.message()
				p.say("250 stored\r\n")
			}
			told = p.told
		})
		c := dial(t, config(n))
		if x := c.Extensions(); *x != (session.Extensions{}) {
			t.Errorf("uses %+v", *x)
		}
		if res := transact(t, c, transaction("x@example.com")); !accepted(res) {
			t.Errorf("%+v", res.End)
		}
		c.Close()
		end()
		if len(told) == 0 || told[0] != "HELO client.test" || strings.Contains(strings.Join(told, " "), "EHLO") {
			t.Errorf("said %q", told)
		}
	})
	// With TLS required EHLO can't be avoided, but pipelining can.
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		cfg, end := secureRelay(t, n, func(p *peer, _ *batch) {
			p.say("220 ***********\r\n")
			if p.chat("AUTH", "AUTH PLAIN") {
				p.say("235 in\r\n")
				p.chat("QUIT")
			}
		})
		cfg.Username, cfg.Password = "user", "secret"
		c := dial(t, cfg)
		if c.Extensions().Pipelining {
			t.Error("pipelines behind a masked banner")
		}
		c.Close()
		end()
	})
}

// A relay that refuses a message in its middle and then resets has said why: that is the truth, not the failed write.
func TestReplyBeforeAReset(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		n.SetBuffer(64 << 10)
		end := relayOf(t, n, func(p *peer) {
			p.say("220 hi\r\n")
			if p.chat("DATA") {
				p.say("354 go\r\n")
				synctest.Wait() // a write of the body waits for room
				p.say("552 5.3.4 Message too big\r\n")
				p.Conn.(*memnet.Conn).ResetAfterDrain()
			}
		})
		defer end()
		c := dial(t, config(n))
		defer c.Close()
		tx := transaction("x@example.com")
		tx.Body = bytes.Repeat([]byte("A line that makes it long.....\r\n"), 1<<15)
		res := transact(t, c, tx)
		if res.End.Stage != reply.StageBody || res.End.Reply.Code != 552 || res.End.Failure != reply.FailNone || res.Committed || c.Reusable() {
			t.Errorf("ended %+v, committed %v, reusable %v", res.End, res.Committed, c.Reusable())
		}
	})
}

// A stage that the caller's end cut short is held against the relay only after 2 s, and half of what it could have had.
func TestLongWait(t *testing.T) {
	for _, test := range []struct {
		total, left time.Duration // of the caller's time; at the transaction's begin
		want        bool
	}{
		{10 * time.Second, 10 * time.Second, true},
		{10 * time.Second, 5 * time.Second, true},
		{10 * time.Second, 4 * time.Second, false}, // less than half
		{3 * time.Second, 1999 * time.Millisecond, false},
		{3 * time.Second, 2 * time.Second, true},
		{time.Second, time.Second, false},
		{10 * time.Minute, 31 * time.Second, true}, // half of the stage's own timeout
		{10 * time.Minute, 29 * time.Second, false},
	} {
		for _, cut := range []bool{false, true} {
			bubble(t, func(t *testing.T, n *smtptest.Network) {
				s := n.NewServer(addr)
				defer s.Close()
				s.On(smtptest.Mail).Stall()
				c := dial(t, config(n))
				defer c.Close()
				tx := transaction("x@example.com")
				ctx, want := t.Context(), reply.FailTimeout
				if cut { // the others' share: what counts is what was left for this one
					tx.Cut, tx.Total = time.Now().Add(test.left), 10*test.total
				} else {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, test.left)
					defer cancel()
					tx.Total, want = test.total, reply.FailDeadline
				}
				var res session.Result
				c.Transact(ctx, tx, &res)
				long := test.want
				if cut {
					long = test.left >= 2*time.Second
				}
				if res.End.Failure != want || res.End.LongWait != long || res.End.Shortened != cut {
					t.Errorf("%v of %v, cut %v: %+v", test.left, test.total, cut, res.End)
				}
			})
		}
	}
}

// A dialler that sees the caller's deadline before the context does is no relay's timeout.
func TestDiallerSeesTheDeadlineFirst(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		cfg := config(n)
		cfg.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			d, _ := ctx.Deadline()
			time.Sleep(time.Until(d))
			return nil, &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 21*time.Millisecond)
		defer cancel()
		_, end, _ := session.Dial(hasty{ctx, time.Now().Add(20 * time.Millisecond)}, cfg, time.Time{}, 20*time.Millisecond, nil)
		if end == nil || end.Failure != reply.FailDeadline || end.LongWait {
			t.Errorf("%+v", end)
		}
	})
}

// hasty is a context whose timer is late.
type hasty struct {
	context.Context
	deadline time.Time
}

func (h hasty) Deadline() (time.Time, bool) { return h.deadline, true }

// A server's SCRAM signature before its challenge is made with a key that anybody knows.
func TestScramSignatureBeforeTheChallenge(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		cfg, end := secureRelay(t, n, func(p *peer, _ *batch) {
			p.say("220 hi\r\n")
			if !p.chat("AUTH", "AUTH SCRAM-SHA-256") {
				return
			}
			key := hmac.New(sha256.New, nil)
			key.Write([]byte("Server Key"))
			sig := hmac.New(sha256.New, key.Sum(nil))
			p.say("334 " + base64.StdEncoding.EncodeToString([]byte("v="+base64.StdEncoding.EncodeToString(sig.Sum(nil)))) + "\r\n")
			p.line()
			p.say("235 fine\r\n")
			p.line()
		})
		defer end()
		cfg.Username, cfg.Password = "user", "secret"
		c, fail, _ := session.Dial(t.Context(), cfg, time.Time{}, 0, nil)
		if c != nil {
			c.Close()
		}
		if fail == nil || fail.Stage != reply.StageAuth || fail.Failure != reply.FailAuth {
			t.Errorf("a server that doesn't know the password passed: %+v", fail)
		}
	})
}
