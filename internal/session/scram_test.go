package session_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	netsmtp "net/smtp"
	"strings"
	"testing"
	"time"

	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/session"
	"github.com/smtplb/smtplb/smtptest"
	"github.com/wneessen/go-mail/smtp"
)

// anybodys is the signature that needs no password: made with an empty key for an empty conversation, which is what go-mail's SCRAM
// knows before the relay's challenge, and again when it was made to begin anew.
func anybodys() string {
	key := hmac.New(sha256.New, nil)
	key.Write([]byte("Server Key"))
	sig := hmac.New(sha256.New, key.Sum(nil))
	return "v=" + base64.StdEncoding.EncodeToString(sig.Sum(nil))
}

// A relay that doesn't know the password doesn't pass, in whatever order it says what. NONCE stands for the client's, with more behind it.
func TestScramOrder(t *testing.T) {
	const challenge = "r=NONCE,s=c2FsdA==,i=4096"
	for name, says := range map[string][]string{
		"the signature alone":                   {anybodys()},
		"no challenge":                          {"", anybodys()},
		"begun anew":                            {"", challenge, "", anybodys()},
		"begun anew, and again":                 {"", challenge, "", challenge, "", anybodys()},
		"two challenges":                        {"", challenge, challenge},
		"a challenge that isn't for our nonce":  {"", "r=abc,s=c2FsdA==,i=4096"},
		"a challenge before we began":           {challenge},
		"two signatures":                        {"", challenge, anybodys(), anybodys()},
		"a signature that isn't one":            {"", challenge, "v="},
		"an error":                              {"", challenge, "e=other-error"},
		"an error, and on":                      {"", challenge, "e=other-error", "", anybodys()},
		"two counts of iterations, one is good": {"", "r=NONCE,s=c2FsdA==,i=1,i=4096"},
		"and the other way round":               {"", "r=NONCE,i=4096,s=c2FsdA==,i=1"},
		"a count behind another field":          {"", "r=NONCE,i=4096,i=1"},
		"a count that isn't one":                {"", "r=NONCE,s=c2FsdA==,i=4096x"},
		"nothing at all":                        {},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *smtptest.Network) {
				proofs := 0
				cfg, end := secureRelay(t, n, func(p *peer, _ *batch) {
					p.say("220 hi\r\n")
					if !p.chat("AUTH", "AUTH SCRAM-SHA-256") {
						return
					}
					nonce := ""
					for _, s := range says {
						p.say("334 " + base64.StdEncoding.EncodeToString([]byte(strings.ReplaceAll(s, "NONCE", nonce+"more"))) + "\r\n")
						l, err := base64.StdEncoding.DecodeString(p.line())
						if err != nil {
							return // "*"
						}
						if _, r, ok := strings.Cut(string(l), ",r="); ok && strings.HasPrefix(string(l), "n,,") {
							nonce = r
						}
						if strings.Contains(string(l), ",p=") {
							proofs++
						}
					}
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
					t.Errorf("a relay that doesn't know the password passed: %+v", fail)
				}
				if proofs > 1 {
					t.Errorf("it was given %d proofs", proofs)
				}
			})
		})
	}
}

// A caller's Auth may send the first message with the command (RFC 4954 §4).
func TestScramInitialResponse(t *testing.T) {
	for _, opt := range []smtptest.Option{smtptest.WithScramIterations(4096), smtptest.WithScramNoServerSignature()} {
		bubble(t, func(t *testing.T, n *smtptest.Network) {
			s := n.NewServer(addr, smtptest.WithTLS(), smtptest.WithAuth("user", "secret", "SCRAM-SHA-256"), opt)
			defer s.Close()
			cfg := config(n)
			secure(cfg, s, session.TLSStart)
			cfg.Auth = func(context.Context, []string, error) (netsmtp.Auth, error) {
				return eager{smtp.ScramSHA256Auth("user", "secret")}, nil
			}
			c, fail, _ := session.Dial(t.Context(), cfg, time.Time{}, 0, nil)
			if c != nil {
				c.Close()
			}
			if !strings.Contains(s.Transcript(), "S: 235") {
				t.Fatal(s.Transcript())
			}
			if signed := strings.Count(s.Transcript(), "S: 334") == 2; signed != (fail == nil) {
				t.Errorf("signed %v: %+v\n%s", signed, fail, s.Transcript())
			}
		})
	}
}

// eager speaks first.
type eager struct{ auth smtp.Auth }

func (a eager) Start(*netsmtp.ServerInfo) (string, []byte, error) {
	first, err := a.auth.Next(nil, true)
	return "SCRAM-SHA-256", first, err
}

func (a eager) Next(fromServer []byte, more bool) ([]byte, error) {
	return a.auth.Next(fromServer, more)
}
