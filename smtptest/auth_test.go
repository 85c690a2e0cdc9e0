package smtptest_test

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb/smtptest"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// challenge sends a line and returns the challenge that it gets.
func (c *client) challenge(format string, args ...any) string {
	c.t.Helper()
	reply := c.cmd("334 ", format, args...)
	text, err := base64.StdEncoding.DecodeString(reply[4:])
	if err != nil {
		c.t.Fatalf("challenge %q: %v", reply, err)
	}
	return string(text)
}

func TestAuthLines(t *testing.T) {
	all := smtptest.WithAuth("user", "p w", "PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "SCRAM-SHA-1", "SCRAM-SHA-256")
	plain := b64("\x00user\x00p w")
	tests := []struct {
		name string
		conv conversation
		auth bool
	}{
		{"PLAIN", conversation{{"AUTH PLAIN " + plain, "235 2.7.0"}}, true},
		{"PLAIN in lower case", conversation{{"auth plain " + plain, "235 "}}, true},
		{"PLAIN with the same authorization identity", conversation{{"AUTH PLAIN " + b64("user\x00user\x00p w"), "235 "}}, true},
		{"PLAIN with another", conversation{{"AUTH PLAIN " + b64("root\x00user\x00p w"), "535 5.7.8"}}, false},
		{"PLAIN without initial response", conversation{{"AUTH PLAIN", "334 "}, {plain, "235 "}}, true},
		{"PLAIN wrong", conversation{{"AUTH PLAIN " + b64("\x00user\x00x"), "535 5.7.8"}, {"AUTH PLAIN " + plain, "235 "}}, true},
		{"PLAIN unknown user", conversation{{"AUTH PLAIN " + b64("\x00nobody\x00"), "535 "}}, false},
		{"PLAIN empty", conversation{{"AUTH PLAIN =", "535 "}}, false},
		{"PLAIN not base64", conversation{{"AUTH PLAIN !", "501 5.5.2"}}, false},
		{"PLAIN cancelled", conversation{{"AUTH PLAIN", "334 "}, {"*", "501 5.7.0"}}, false},
		{"PLAIN too long", conversation{{"AUTH PLAIN", "334 "}, {strings.Repeat("A", 13000), "501 5.5.2"}, {"NOOP", "250 "}}, false},
		{"PLAIN long but allowed", conversation{{"AUTH PLAIN", "334 "}, {strings.Repeat("A", 12000), "535 "}}, false},
		{"PLAIN long initial response", conversation{{"AUTH PLAIN " + strings.Repeat("A", 12000), "535 "}, {"AUTH PLAIN " + strings.Repeat("A", 13000), "500 5.5.2"}}, false},
		{"LOGIN", conversation{{"AUTH LOGIN", "334 VXNlcm5hbWU6"}, {b64("user"), "334 UGFzc3dvcmQ6"}, {b64("p w"), "235 "}}, true},
		{"LOGIN with initial response", conversation{{"AUTH LOGIN " + b64("user"), "334 UGFzc3dvcmQ6"}, {b64("p w"), "235 "}}, true},
		{"LOGIN wrong", conversation{{"AUTH LOGIN", "334 "}, {b64("user"), "334 "}, {b64("p"), "535 "}}, false},
		{"LOGIN not base64", conversation{{"AUTH LOGIN", "334 "}, {"*?", "501 "}}, false},
		{"XOAUTH2", conversation{{"AUTH XOAUTH2 " + b64("user=user\x01auth=Bearer p w\x01\x01"), "235 "}}, true},
		{"XOAUTH2 without initial response", conversation{{"AUTH XOAUTH2", "334 "}, {b64("user=user\x01auth=Bearer p w\x01\x01"), "235 "}}, true},
		{"XOAUTH2 wrong", conversation{{"AUTH XOAUTH2 " + b64("user=user\x01auth=Bearer old\x01\x01"), "334 eyJzdGF0dXMiOiI0MDEi"}, {"", "535 5.7.8"}}, false},
		{"CRAM-MD5 with initial response", conversation{{"AUTH CRAM-MD5 " + plain, "535 "}}, false},
		{"CRAM-MD5 without a blank", conversation{{"AUTH CRAM-MD5", "334 "}, {b64("user"), "535 "}}, false},
		{"CRAM-MD5 wrong", conversation{{"AUTH CRAM-MD5", "334 "}, {b64("user 00112233445566778899aabbccddeeff"), "535 "}}, false},
		{"SCRAM with channel binding", conversation{{"AUTH SCRAM-SHA-1 " + b64("p=tls-unique,,n=user,r=abc"), "535 "}}, false},
		{"SCRAM without nonce", conversation{{"AUTH SCRAM-SHA-1 " + b64("n,,n=user"), "535 "}}, false},
		{"SCRAM garbage", conversation{{"AUTH SCRAM-SHA-1 " + b64("n"), "535 "}}, false},
		{"SCRAM without proof", conversation{{"AUTH SCRAM-SHA-256", "334 "}, {b64("n,,n=user,r=abc"), "334 "}, {b64("c=biws,r=abc"), "535 "}}, false},
		{"unknown mechanism", conversation{{"AUTH NTLM", "504 5.5.4"}}, false},
		{"no mechanism", conversation{{"AUTH", "501 5.5.4"}, {"AUTH PLAIN a b", "501 5.5.4"}}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
				c := greeted(t, n)
				c.play(tt.conv)
				want := "530 5.7.0"
				if tt.auth {
					want = "250 "
				}
				c.cmd(want, "MAIL FROM:<a@x.test>")
				if st := s.Stats(); tt.auth && st.Auths != 1 || !tt.auth && st.Auths != 0 {
					t.Errorf("%+v", st)
				}
			}, all)
		})
	}
}

func TestAuthOnlyAfterEHLO(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := dial(t, n)
		c.expect("220 ")
		c.cmd("503 ", "AUTH PLAIN AHUAcA==")
		c.cmd("250 ", "HELO client.test")
		c.cmd("503 ", "AUTH PLAIN AHUAcA==")
		c.cmd("250 ", "EHLO client.test")
		c.cmd("504 ", "AUTH CRAM-MD5") // known, but not offered
		c.cmd("235 ", "AUTH PLAIN AHUAcA==")
	}, smtptest.WithAuth("u", "p"))
}

func TestUsersAndPasswords(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		if s.Username != "u" || s.Password != "p" || s.URL() != "smtp://u:p@relay-a.test:587?tls=none" {
			t.Errorf("%q, %q, %q", s.Username, s.Password, s.URL())
		}
		auth := func(want, user, pass string) {
			t.Helper()
			greeted(t, n).cmd(want, "AUTH PLAIN %s", b64("\x00"+user+"\x00"+pass))
		}
		auth("235 ", "u", "p")
		auth("235 ", "v", "q")
		s.SetPassword("v", "new")
		auth("535 ", "v", "q")
		auth("235 ", "v", "new")
		s.SetPassword("w", "r")
		auth("235 ", "w", "r")
		if st := s.Stats(); st.Auths != 4 || st.AuthFailures != 1 {
			t.Errorf("%+v", st)
		}
	}, smtptest.WithAuth("u", "p"), smtptest.WithAuth("v", "q"))
}

func TestUnknownMechanismPanics(t *testing.T) {
	defer func() {
		if r := recover(); r != `smtptest: WithAuth: unknown mechanism "NTLM"` {
			t.Errorf("panic %v", r)
		}
	}()
	smtptest.NewServer(smtptest.WithAuth("u", "p", "NTLM")).Close()
}

func TestCramMD5(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		challenge := c.challenge("AUTH CRAM-MD5")
		m := hmac.New(md5.New, []byte("p"))
		m.Write([]byte(challenge))
		c.cmd("235 ", "%s", b64("u "+hex.EncodeToString(m.Sum(nil))))
		if again := greeted(t, n).challenge("AUTH CRAM-MD5"); again == challenge {
			t.Error("the challenge is always the same")
		}
	}, smtptest.WithAuth("u", "p", "CRAM-MD5"))
}

// scram is a client's side of RFC 5802. It returns the server's final message, and
// the signature that it ought to have.
func scram(c *client, mechanism string, newHash func() hash.Hash, user, pass string) (got, want string, iterations int) {
	c.t.Helper()
	mac := func(key []byte, s string) []byte {
		m := hmac.New(newHash, key)
		m.Write([]byte(s))
		return m.Sum(nil)
	}
	bare := "n=" + strings.NewReplacer("=", "=3D", ",", "=2C").Replace(user) + ",r=fyko+d2lbbFgONRv9qkxdawL"
	first := c.challenge("AUTH %s %s", mechanism, b64("n,,"+bare))
	var nonce, salt64 string
	if _, err := fmt.Sscanf(strings.ReplaceAll(first, ",", " "), "r=%s s=%s i=%d", &nonce, &salt64, &iterations); err != nil || !strings.HasPrefix(nonce, "fyko+d2lbbFgONRv9qkxdawL") {
		c.t.Fatalf("server-first %q: %v", first, err)
	}
	salt, err := base64.StdEncoding.DecodeString(salt64)
	if err != nil {
		c.t.Fatal(err)
	}
	salted, err := pbkdf2.Key(newHash, pass, salt, iterations, newHash().Size())
	if err != nil {
		c.t.Fatal(err)
	}
	final := "c=biws,r=" + nonce
	message := bare + "," + first + "," + final
	key := mac(salted, "Client Key")
	h := newHash()
	h.Write(key)
	for i, b := range mac(h.Sum(nil), message) {
		key[i] ^= b
	}
	c.send("%s\r\n", b64(final+",p="+base64.StdEncoding.EncodeToString(key)))
	got, err = c.reply()
	if err != nil {
		c.t.Fatal(err)
	}
	return got, "334 " + b64("v="+base64.StdEncoding.EncodeToString(mac(mac(salted, "Server Key"), message))), iterations
}

func TestScram(t *testing.T) {
	hashes := map[string]func() hash.Hash{"SCRAM-SHA-1": sha1.New, "SCRAM-SHA-256": sha256.New}
	for name, newHash := range hashes {
		auth := smtptest.WithAuth("u,=", "p", name)
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
				for range 2 {
					c := greeted(t, n)
					got, want, iterations := scram(c, name, newHash, "u,=", "p")
					if got != want || iterations != 4096 {
						t.Errorf("server-final %q, want %q, %d iterations", got, want, iterations)
					}
					c.cmd("235 ", "")
					c.mail("a@x.test", "x\r\n", "b@y.test")
				}
				if got := s.Messages()[0].Auth; got != "u,=" {
					t.Errorf("Auth = %q", got)
				}
				if got, _, _ := scram(greeted(t, n), name, newHash, "u,=", "wrong"); !strings.HasPrefix(got, "535 ") {
					t.Errorf("wrong password: %q", got)
				}
				if got, _, _ := scram(greeted(t, n), name, newHash, "nobody", ""); !strings.HasPrefix(got, "535 ") {
					t.Errorf("unknown user: %q", got)
				}
			}, auth)
		})
		t.Run(name+" iterations", func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
				if _, _, iterations := scram(greeted(t, n), name, newHash, "u,=", "p"); iterations != 5 {
					t.Errorf("%d iterations", iterations)
				}
			}, auth, smtptest.WithScramIterations(5))
			const many = 1 << 30 // only a client that computes it would notice
			bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
				c := greeted(t, n)
				if first := c.challenge("AUTH %s %s", name, b64("n,,n=u,r=abc")); !strings.HasSuffix(first, ",i="+strconv.Itoa(many)) {
					t.Errorf("server-first %q", first)
				}
				c.cmd("501 ", "*")
			}, auth, smtptest.WithScramIterations(many))
		})
		t.Run(name+" no signature", func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
				if got, _, _ := scram(greeted(t, n), name, newHash, "u,=", "p"); !strings.HasPrefix(got, "235 ") {
					t.Errorf("got %q", got)
				}
			}, auth, smtptest.WithScramNoServerSignature())
		})
		t.Run(name+" bad signature", func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
				c := greeted(t, n)
				if got, want, _ := scram(c, name, newHash, "u,=", "p"); got == want || len(got) != len(want) {
					t.Errorf("got %q", got)
				}
				c.cmd("235 ", "")
			}, auth, smtptest.WithScramBadServerSignature())
		})
	}
}

func TestAuthScripts(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		s.On(smtptest.Auth).Conn(1).Reply(235, "2.7.0 anybody")
		s.On(smtptest.AuthChallenge).Conn(2).Nth(2).Reply(334, b64("Secret:"))
		s.On(smtptest.AuthChallenge).Conn(3).Reply(454, "4.7.0 not now")
		s.On(smtptest.AuthChallenge).Conn(4).Raw("334 !!!\r\n")
		s.On(smtptest.Auth).Conn(5).Reply(535, "5.7.8 no")
		s.On(smtptest.AuthChallenge).Conn(6).Delay(time.Hour)

		c := greeted(t, n)
		c.cmd("235 ", "AUTH FOO")
		c.cmd("250 ", "MAIL FROM:<a@x.test>")

		greeted(t, n).play(conversation{{"AUTH LOGIN", "334 VXNlcm5hbWU6"}, {b64("u"), "334 " + b64("Secret:")}, {b64("p"), "235 "}})
		greeted(t, n).play(conversation{{"AUTH LOGIN", "454 4.7.0"}, {"NOOP", "250 "}, {"MAIL FROM:<a@x.test>", "530 "}})
		greeted(t, n).play(conversation{{"AUTH LOGIN", "334 !!!"}, {b64("u"), "334 !!!"}, {b64("p"), "235 "}})
		greeted(t, n).play(conversation{{"AUTH PLAIN AHUAcA==", "535 5.7.8 no"}, {"MAIL FROM:<a@x.test>", "530 "}})
		start := time.Now()
		greeted(t, n).cmd("334 ", "AUTH LOGIN")
		if d := time.Since(start); d != time.Hour {
			t.Errorf("the challenge took %v", d)
		}
		if st := s.Stats(); st.Auths != 3 || st.AuthFailures != 2 {
			t.Errorf("%+v", st)
		}
	}, smtptest.WithAuth("u", "p"))
}

func TestIdleTimeoutInAuth(t *testing.T) {
	bubble(t, func(t *testing.T, n *smtptest.Network, s *smtptest.Server) {
		c := greeted(t, n)
		c.cmd("334 ", "AUTH LOGIN")
		c.expect("421 4.4.2")
		c.eof()
	}, smtptest.WithAuth("u", "p"), smtptest.WithIdleTimeout(time.Minute))
}

// TestAuthOptionForSeveralServers: one Option value is good for any number of servers, at
// once (under the race detector).
func TestAuthOptionForSeveralServers(t *testing.T) {
	opt := smtptest.WithAuth("u", "p")
	n := smtptest.NewNetwork()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			s := n.NewServer(fmt.Sprintf("relay-%d.test:25", i), opt)
			defer s.Close()
			if s.Username != "u" {
				t.Errorf("user %q", s.Username)
			}
		})
	}
	wg.Wait()
}
