package session_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/internal/session"
	"github.com/smtplb/smtplb/smtptest"
)

// idle is longer than a connection counts as just used.
const idle = 11 * time.Millisecond

// A relay that gave an idle connection up, with or without a word, is noticed before the next message.
func TestIdleConnectionDies(t *testing.T) {
	for name, act := range map[string]func(r *smtptest.Rule){
		"421":   func(r *smtptest.Rule) { r.Reply(421, "4.4.2 Idle timeout") },
		"FIN":   func(r *smtptest.Rule) { r.DropFIN() },
		"reset": func(r *smtptest.Rule) { r.Drop() },
		"words": func(r *smtptest.Rule) { r.Raw("250 2.0.0 for nobody\r\n") },
	} {
		for _, how := range []session.TLS{session.TLSNone, session.TLSStart, session.TLSImplicit} {
			t.Run(name, func(t *testing.T) {
				bubble(t, func(t *testing.T, n *smtptest.Network) {
					var opts []smtptest.Option
					switch how {
					case session.TLSStart:
						opts = append(opts, smtptest.WithTLS())
					case session.TLSImplicit:
						opts = append(opts, smtptest.WithImplicitTLS())
					}
					s := n.NewServer(addr, opts...)
					defer s.Close()
					act(s.On(smtptest.Idle).Nth(2).Delay(5 * time.Second))
					cfg := config(n)
					if how != session.TLSNone {
						secure(cfg, s, how)
					}
					c := dial(t, cfg)
					defer c.Close()
					for range 2 {
						if res := transact(t, c, transaction("x@example.com")); !accepted(res) {
							t.Fatalf("%+v", res.End)
						}
						time.Sleep(4 * time.Second)
						for range 3 { // asking changes nothing
							if !c.Alive() {
								t.Fatal("a quiet connection counts as dead")
							}
						}
					}
					time.Sleep(2 * time.Second)
					if c.Alive() {
						t.Error("a connection that the relay gave up counts as alive")
					}
				})
			})
		}
	}
}

// What came with the last reply, in the same segment, waits inside crypto/tls where no socket tells of it.
func TestFarewellBehindTheLastReply(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		cfg, end := secureRelay(t, n, func(p *peer, wire *batch) {
			p.say("220 hi\r\n")
			if p.chat("DATA") {
				p.say("354 go\r\n")
				p.message()
				wire.hold = true
				p.say("250 stored\r\n")
				p.say("421 4.3.2 and good-bye\r\n")
				wire.flush()
				p.line()
			}
		})
		defer end()
		c := dial(t, cfg)
		defer c.Close()
		if res := transact(t, c, transaction("x@example.com")); !accepted(res) || !c.Reusable() {
			t.Fatalf("%+v", res.End)
		}
		time.Sleep(idle)
		if c.Alive() {
			t.Error("a connection that the relay said good-bye on counts as alive")
		}
	})
}

// What was in use less than 10 ms ago is not looked at, and a broken or closed connection is not alive however fresh.
func TestFreshConnections(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		s := n.NewServer(addr)
		defer s.Close()
		c := dial(t, config(n))
		defer c.Close()
		if res := transact(t, c, transaction("x@example.com")); !accepted(res) {
			t.Fatalf("%+v", res.End)
		}
		s.Kill()
		if !c.Alive() {
			t.Error("a fresh connection was looked at")
		}
		time.Sleep(idle)
		if c.Alive() {
			t.Error("a connection of a killed relay counts as alive")
		}
		_ = s.Restart()
		broken, closed := dial(t, config(n)), dial(t, config(n))
		broken.Discard()
		closed.Close()
		if broken.Alive() || closed.Alive() {
			t.Errorf("broken: alive %v, closed: alive %v", broken.Alive(), closed.Alive())
		}
		broken.Close()
	})
}

// On a real socket the kernel is asked, and what it says of a quiet connection leaves the connection as it was.
func TestAliveOnTCP(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hangUp, hungUp := make(chan string), make(chan struct{})
	end := meet(ln, func(c net.Conn) {
		p := newPeer(c)
		p.say("220 hi\r\n")
		for p.chat("DATA") {
			p.say("354 go\r\n")
			p.message()
			p.say("250 stored\r\n")
			if last, ok := <-hangUp; ok {
				p.say(last)
				c.Close()
				hungUp <- struct{}{}
				return
			}
		}
	})
	defer end()
	for _, last := range []string{"421 4.4.2 Idle timeout\r\n", ""} {
		c := dial(t, &session.Config{Network: "tcp", Addr: ln.Addr().String(), LocalName: "client.test", TLS: session.TLSNone, Timeouts: session.DefaultTimeouts})
		if res := transact(t, c, transaction("x@example.com")); !accepted(res) {
			t.Fatalf("%+v", res.End)
		}
		for begun := time.Now(); time.Since(begun) < 2*idle; {
			if !c.Alive() {
				t.Fatal("a quiet connection counts as dead")
			}
		}
		hangUp <- last
		<-hungUp
		for begun := time.Now(); c.Alive(); { // loopback takes a moment
			if time.Since(begun) > 10*time.Second {
				t.Fatalf("a connection that was closed after %q counts as alive", last)
			}
		}
		c.Close()
	}
	close(hangUp)
}

// sealer writes TLS 1.3 records of the server's, which crypto/tls itself can't be asked for: a session ticket when it likes.
type sealer struct {
	wire io.Writer
	aead cipher.AEAD
	iv   []byte
	seq  uint64
}

// secretKeeper is a key log that keeps the server's first traffic secret.
type secretKeeper struct{ secret []byte }

func (k *secretKeeper) Write(p []byte) (int, error) {
	if f := strings.Fields(string(p)); len(f) == 3 && f[0] == "SERVER_TRAFFIC_SECRET_0" {
		k.secret, _ = hex.DecodeString(f[2])
	}
	return len(p), nil
}

func newSealer(t *testing.T, wire io.Writer, suite uint16, secret []byte) *sealer {
	newHash, keyLen := func() hash.Hash { return sha256.New() }, 16
	if suite == tls.TLS_AES_256_GCM_SHA384 {
		newHash, keyLen = sha512.New384, 32
	}
	expand := func(label string, n int) []byte { // RFC 8446 §7.1
		info := append([]byte{byte(n >> 8), byte(n), byte(len("tls13 " + label))}, "tls13 "+label...)
		b, err := hkdf.Expand(newHash, secret, string(append(info, 0)), n)
		if err != nil {
			t.Error(err)
		}
		return b
	}
	block, err := aes.NewCipher(expand("key", keyLen))
	if err != nil {
		t.Error(err)
		return nil
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Error(err)
	}
	return &sealer{wire: wire, aead: aead, iv: expand("iv", 12)}
}

const handshakeRecord, dataRecord = 22, 23

func (s *sealer) record(kind byte, b []byte) {
	nonce := append([]byte(nil), s.iv...)
	for i, x := range binary.BigEndian.AppendUint64(nil, s.seq) {
		nonce[4+i] ^= x
	}
	s.seq++
	n := len(b) + 1 + s.aead.Overhead()
	header := []byte{dataRecord, 3, 3, byte(n >> 8), byte(n)}
	_, _ = s.wire.Write(s.aead.Seal(header, nonce, append(append([]byte(nil), b...), kind), header))
}

// Write makes a sealer the voice of a peer.
func (s *sealer) Write(p []byte) (int, error) {
	s.record(dataRecord, p)
	return len(p), nil
}

// voiced is a TLS connection whose other direction is written by hand.
type voiced struct {
	net.Conn
	voice io.Writer
}

func (v voiced) Write(p []byte) (int, error) { return v.voice.Write(p) }

// Session tickets come when the server likes. They are bytes to read, but nothing was said.
func TestSessionTicketIsNoData(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network) {
		cert, trust := certificate(t)
		ln, err := n.Listen(addr)
		if err != nil {
			t.Fatal(err)
		}
		end := meet(ln, func(raw net.Conn) {
			var keys secretKeeper
			c := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, KeyLogWriter: &keys})
			if err := c.Handshake(); err != nil {
				t.Error(err)
				return
			}
			if c.ConnectionState().CipherSuite == tls.TLS_CHACHA20_POLY1305_SHA256 {
				t.Error("the machine has no AES; the test knows nothing else")
				return
			}
			voice := newSealer(t, raw, c.ConnectionState().CipherSuite, keys.secret)
			p := newPeer(voiced{c, voice})
			p.say("220 hi\r\n")
			for p.chat("DATA") {
				p.say("354 go\r\n")
				p.message()
				p.say("250 stored\r\n")
				time.Sleep(time.Second)
				// RFC 8446 §4.6.1: lifetime, age_add, nonce, ticket, no extensions
				voice.record(handshakeRecord, []byte{4, 0, 0, 17, 0, 0, 14, 16, 1, 2, 3, 4, 1, 9, 0, 3, 'a', 'b', 'c', 0, 0})
			}
		})
		cfg := config(n)
		cfg.TLS, cfg.TLSConfig = session.TLSImplicit, trust
		c := dial(t, cfg)
		for i := range 3 {
			if res := transact(t, c, transaction("x@example.com")); !accepted(res) {
				t.Fatalf("message %d: %+v", i, res.End)
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if !c.Alive() {
				t.Fatalf("after message %d a session ticket was taken for words", i)
			}
		}
		c.Close()
		end()
	})
}
