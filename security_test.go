package smtplb_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/smtp"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
	"github.com/wneessen/go-mail"
)

// What is promised about security, and the tests that hold it. Where no file is named they stand here.
//
//  1. Nothing of an envelope, or of the configuration, ends a command: TestEnvelopeInjection, TestControlBytesInIDAndPrefer, TestParseAddressRefuses and
//     FuzzParseAddress (internal/domain), FuzzEnvelope, TestConfigNames (EHLO name), TestAddr, TestNothingOfTheConfigurationEndsACommand.
//     There is no DSN yet, and so no xtext.
//  2. No part of a message is its end to any server: TestCanonicalForm, TestSmuggling, TestGoMailInjection, FuzzBody, FuzzSendMail.
//  3. Nothing said before TLS counts under it: TestTLSModes ("injected reply"), TestDialFailures ("plain text behind STARTTLS", internal/session),
//     TestOffersBeforeTLSAreForgotten.
//  4. TLS 1.2 or better, verified, required, and no plain text instead: TestTLSModes, TestTLSVersion, TestOldTLS, TestConfigRules.
//  5. Credentials under TLS only, SCRAM checks the server, one mechanism: TestTLSModes ("credentials"), TestCredentialsStayHome, TestScramChecksTheServer and
//     TestScramSignatureBeforeTheChallenge (internal/session), TestScramIterations, TestOneMechanism, TestBadCredentialsStopAtOnce.
//  6. No secret is printed: TestSecretsAreNotPrinted, TestSecretsInTheWrongPlace, TestSecretsInReplies, TestSecretsInEveryReply, FuzzParseRelay.
//  7. Replies are bounded, in bytes and in time: TestReadMalformed, TestReadDeadline and FuzzRead (internal/reply), TestDialFailures (internal/session),
//     TestHostileReplies, TestEndlessReplies, TestDrip.
//  8. A connection is used with the identity that it was made with: TestConnectionsAreNotShared.
//  9. A relay without what the message needs is skipped, uncounted: TestCapabilities, TestIncapableSaysWhy, TestNullSenderAndDomains (SMTPUTF8 only where needed).

// Item 1. New refuses what would be another command, or goes out encoded.
func TestNothingOfTheConfigurationEndsACommand(t *testing.T) {
	const evil = "a\r\nMAIL FROM:<b@example.com>"
	for field, r := range map[string]smtplb.Relay{
		"Name": {Name: evil, Addr: "r.test"}, "Addr": {Addr: "r.test" + evil}, "IgnoreEHLO[0]": {Addr: "r.test", IgnoreEHLO: []string{evil}},
		"AuthMechanisms[0]": {Addr: "r.test", Username: "u", Password: "p", AuthMechanisms: []string{evil}}, "LocalAddr": {Addr: "r.test", LocalAddr: evil},
	} {
		_, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{r}})
		var ce *smtplb.ConfigError
		if !errors.As(err, &ce) || ce.Path != "Relays[0]."+field || !printable(err.Error()) {
			t.Errorf("%s: %v", field, err)
		}
	}
	for _, mechanism := range []string{"PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256", "XOAUTH2", "TokenAuth", "PLAIN " + evil} {
		bubble(t, func(t *testing.T) {
			n := smtptest.NewNetwork()
			s := n.NewServer("r.test:587", smtptest.WithTLS(), smtptest.WithAuth("user", "pass", "PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256", "XOAUTH2"))
			defer s.Close()
			r := smtplb.Relay{Addr: "r.test:587", TLSConfig: s.ClientTLS()}
			switch mechanism {
			case "TokenAuth":
				r.Auth = smtplb.TokenAuth(evil, func(context.Context, smtplb.AuthRequest) (string, error) { return evil, nil })
			case "PLAIN " + evil:
				r.Auth = func(context.Context, smtplb.AuthRequest) (smtp.Auth, error) { return namedAuth(mechanism), nil }
			default:
				r.Username, r.Password, r.AuthMechanisms = evil, evil, []string{mechanism}
			}
			pool, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{r}, Dial: n.DialContext})
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			if _, err := pool.Deliver(t.Context(), envelope("x@example.com")); !errors.Is(err, smtplb.ErrTemporary) {
				t.Errorf("%s: %v", mechanism, err)
			}
			// SASLprep refuses control characters in SCRAM, and a mechanism has no such name.
			if c := s.Stats().Commands; c["MAIL"] != 0 || c["AUTH"] == 0 && mechanism != "SCRAM-SHA-256" && mechanism != "PLAIN "+evil {
				t.Errorf("%s: %v\n%s", mechanism, c, s.Transcript())
			}
		})
	}
}

// namedAuth is an Auth of the caller's whose mechanism has a strange name.
type namedAuth string

func (a namedAuth) Start(*smtp.ServerInfo) (string, []byte, error) { return string(a), nil, nil }
func (namedAuth) Next([]byte, bool) ([]byte, error)                { return nil, nil }

// smuggled are ends of data to this server or that one, before a message of somebody else's.
func smuggled() []string {
	var all []string
	for _, end := range []string{
		"\n.\n", "\r.\r", "\r\n.\r", "\n.\r\n", "\r.\r\n", "\r\n.\n", "\n.\r", "\r.\n", "\r\n\x00.\r\n", "\r\n.\x00\r\n", "\r\n.\r\x00\n", "\x00.\r\n",
		"\r\n.\r\n", "\r\r\n.\r\r\n", "\n\r.\n\r", "\r\n.\r\r\n", "\r\n.\n\r\n", "\r\n . \r\n", "\r\n.\t\r\n", "\x85.\x85", "\u0085.\u0085", "\u2028.\u2028",
	} {
		all = append(all, "Subject: a\r\n\r\nb"+end+"MAIL FROM:<b@example.com>\r\nRCPT TO:<y@example.com>\r\nDATA\r\nSubject: c\r\n\r\nd\r\n.\r\n")
	}
	return all
}

// watched is a house of one relay whose connections keep what is written to them; the function makes sure of what a send was.
func watched(t *testing.T, opts ...smtptest.Option) (h *house, one func(what string, err error, want string)) {
	h = &house{T: t, net: smtptest.NewNetwork()}
	s := h.net.NewServer("r0.test:25", opts...)
	h.relays = []*smtptest.Server{s}
	var conns []*writes
	var err error
	h.pool, err = smtplb.New(smtplb.Config{
		Relays: []smtplb.Relay{{Name: "r0", Addr: s.Addr, TLS: smtplb.TLSNone, Conns: smtplb.Conns{MaxMessages: -1}}},
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := h.net.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			conns = append(conns, &writes{Conn: nc, looks: nc.(looks)})
			return conns[len(conns)-1], nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return h, func(what string, err error, want string) {
		t.Helper()
		var wire []byte
		for _, w := range conns {
			wire = append(wire, w.taken()...)
		}
		stored, c := s.Messages(), s.Stats().Commands
		s.Reset()
		var ee *smtplb.EnvelopeError
		switch {
		case err != nil:
			if !errors.As(err, &ee) || len(stored) != 0 || c["MAIL"] != 0 {
				t.Errorf("%s: %v; %d stored, %v", what, err, len(stored), c)
			}
		case len(stored) != 1 || fmt.Sprint(stored[0].To) != "[x@example.com]" || stored[0].From != "a@example.com" || c["MAIL"] != 1 || c["DATA"] != 1 || want != "" && string(stored[0].Data) != want:
			t.Errorf("%s: stored %v, %q; %v", what, stored, stored[0].Data, c)
		default:
			if err := endsOnce(wire); err != nil {
				t.Errorf("%s: %v in %q", what, err, wire)
			}
		}
	}
}

// Item 2, by every way in which a message comes.
func TestSmuggling(t *testing.T) {
	for _, opts := range [][]smtptest.Option{nil, {smtptest.WithoutExtensions("PIPELINING")}} {
		bubble(t, func(t *testing.T) {
			h, one := watched(t, opts...)
			defer h.close()
			file := filepath.Join(t.TempDir(), "m.eml")
			for _, msg := range smuggled() {
				if err := os.WriteFile(file, []byte(msg), 0o600); err != nil {
					t.Fatal(err)
				}
				for ends := range smtplb.LineEndingsLenient + 1 {
					want, ok := canonical([]byte(msg), ends)
					for how, body := range map[string]smtplb.Body{
						"Bytes": smtplb.Bytes([]byte(msg)), "Reader": smtplb.Reader(iotest.OneByteReader(strings.NewReader(msg))), "File": smtplb.File(file),
					} {
						e := envelope("x@example.com")
						e.Body, e.LineEndings = body, ends
						_, err := h.pool.Deliver(t.Context(), e)
						if (err == nil) != ok {
							t.Errorf("%s of %q, %d: %v", how, msg, ends, err)
						}
						one(fmt.Sprintf("%s of %q, %d", how, msg, ends), err, want)
					}
				}
				err := h.pool.SendMail("", nil, "a@example.com", []string{"x@example.com"}, []byte(msg))
				want, ok := canonical([]byte(msg), smtplb.LineEndingsLenient)
				if (err == nil) != ok {
					t.Errorf("SendMail of %q: %v", msg, err)
				}
				one(fmt.Sprintf("SendMail of %q", msg), err, want)
			}
		})
	}
}

// Items 1 and 2 with go-mail: whatever is put into its fields, names of header fields included (which go-mail writes as they are), the relay gets one
// message, from and to the addresses of the envelope, or none. What it can't be kept from is a header that the caller himself wrote.
func TestGoMailInjection(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h, one := watched(t)
		defer h.close()
		evil := append(smuggled(), "v\r\nBcc: y@example.com", "v\nBcc: y@example.com\n\n.\n", "v\rBcc: y@example.com", "v\r\n\r\nbody", strings.Repeat("x", 2000), ".\r\n.", "v\u2028Bcc: y@example.com")
		for _, v := range evil {
			for where, set := range map[string]func(m *mail.Msg){
				"a field's name":        func(m *mail.Msg) { m.SetGenHeader(mail.Header("X-A: "+v+"\r\nX-B"), "value") },
				"a preformatted name":   func(m *mail.Msg) { m.SetGenHeaderPreformatted(mail.Header(v), "value") },
				"a preformatted value":  func(m *mail.Msg) { m.SetGenHeaderPreformatted("X-A", v) },
				"a field's value":       func(m *mail.Msg) { m.SetGenHeader("X-A", v) },
				"the subject":           func(m *mail.Msg) { m.Subject(v) },
				"a display name":        func(m *mail.Msg) { _ = m.FromFormat(v, "a@example.com") },
				"a recipient's name":    func(m *mail.Msg) { _ = m.AddToFormat(v, "x@example.com") },
				"a recipient":           func(m *mail.Msg) { _ = m.AddTo("x@example.com" + v) },
				"the envelope's sender": func(m *mail.Msg) { _ = m.EnvelopeFrom("a@example.com" + v) },
				"the message ID":        func(m *mail.Msg) { m.SetMessageIDWithValue(v) },
				"the boundary":          func(m *mail.Msg) { m.SetBoundary(v); m.AddAlternativeString(mail.TypeTextHTML, "b") },
				"the charset":           func(m *mail.Msg) { m.SetCharset(mail.Charset(v)); m.SetBodyString(mail.TypeTextPlain, "b") },
				"the body":              func(m *mail.Msg) { m.SetBodyString(mail.TypeTextPlain, v) },
				"the body, not encoded": func(m *mail.Msg) { m.SetBodyString(mail.TypeTextPlain, v, mail.WithPartEncoding(mail.NoEncoding)) },
				"the body's type":       func(m *mail.Msg) { m.SetBodyString(mail.ContentType(v), "b") },
				"an attachment's name":  func(m *mail.Msg) { _ = m.AttachReader(v, strings.NewReader("b")) },
				"an attachment":         func(m *mail.Msg) { _ = m.AttachReader("b", strings.NewReader(v)) },
				"an attachment, not encoded": func(m *mail.Msg) {
					_ = m.AttachReader("b", strings.NewReader(v), mail.WithFileEncoding(mail.NoEncoding))
				},
				"an attachment's content ID": func(m *mail.Msg) { m.EmbedFile("security_test.go", mail.WithFileContentID(v)) },
			} {
				m := mail.NewMsg()
				_ = m.From("a@example.com")
				_ = m.To("x@example.com")
				m.SetBodyString(mail.TypeTextPlain, "text")
				set(m)
				_, err := h.pool.Send(t.Context(), m)
				var se *smtplb.SourceError
				if errors.As(err, &se) { // go-mail doesn't render it
					continue
				}
				one(fmt.Sprintf("%q in %s", v, where), err, "")
			}
		}
	})
}

// Item 3. What was offered before TLS is forgotten (RFC 3207 §4.2), the good and the bad.
func TestOffersBeforeTLSAreForgotten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := smtptest.NewNetwork()
		s := n.NewServer("r.test:587", smtptest.WithTLS(), smtptest.WithStrictPipelining(), smtptest.WithoutExtensions("PIPELINING", "8BITMIME"))
		defer s.Close()
		s.On(smtptest.Ehlo).If(func(e *smtptest.Event) bool { return !e.TLS }).Reply(250, "r.test\nPIPELINING\n8BITMIME\nSIZE 1\nLIMITS RCPTMAX=1 MAILMAX=1\nSTARTTLS")
		pool, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{{Addr: "r.test:587", TLSConfig: s.ClientTLS()}}, Dial: n.DialContext})
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		if _, err := pool.Deliver(t.Context(), envelope("x@example.com", "y@example.com")); err != nil {
			t.Fatalf("%v\n%s", err, s.Transcript())
		}
		if st := s.Stats(); st.EarlyBytes != 0 || st.Commands["EHLO"] != 2 || len(s.Messages()) != 1 || len(s.Messages()[0].To) != 2 {
			t.Errorf("%+v\n%s", st, s.Transcript())
		}
		e := envelope("x@example.com")
		e.Body = smtplb.Bytes([]byte("Subject: a\r\n\r\n\xfc\r\n"))
		if _, err := pool.Deliver(t.Context(), e); !errors.Is(err, smtplb.ErrPermanent) {
			t.Errorf("8-bit: %v", err)
		}
	})
}

// Item 4. A relay that knows nothing better than TLS 1.1 gets no mail, nor plain text, whatever TLSConfig says.
func TestOldTLS(t *testing.T) {
	for _, latest := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12} {
		bubble(t, func(t *testing.T) {
			n := smtptest.NewNetwork()
			l, err := n.Listen("r.test:25")
			if err != nil {
				t.Fatal(err)
			}
			cert := selfSigned(t, "r.test")
			roots := x509.NewCertPool()
			roots.AddCert(cert.Leaf)
			var told []string
			var serving sync.WaitGroup
			dials := 0
			serving.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					dials++
					_, _ = io.WriteString(c, "220 hi\r\n")
					line := lines(c)
					for _, answer := range []string{"250-hi\r\n250 STARTTLS\r\n", "220 go\r\n"} {
						line()
						_, _ = io.WriteString(c, answer)
					}
					told = append(told, lines(tls.Server(c, &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: latest, Certificates: []tls.Certificate{cert}}))())
					told = append(told, line())
					c.Close()
				}
			})
			pool, err := smtplb.New(smtplb.Config{
				Relays: []smtplb.Relay{{Addr: "r.test:25", TLSConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS10}}}, LocalName: "c.test", Dial: n.DialContext,
				Health: smtplb.Health{Interval: -1}, // dials are counted
			})
			if err != nil {
				t.Fatal(err)
			}
			_, err = pool.Deliver(t.Context(), envelope("x@example.com"))
			pool.Close()
			l.Close()
			serving.Wait()
			var re *smtplb.RelayError
			stage, want := smtplb.StageTLS, "[ ]"
			if latest == tls.VersionTLS12 {
				stage, want = smtplb.StageHello, "[EHLO c.test ]"
			}
			if !errors.As(err, &re) || re.Stage != stage || dials != 1 || fmt.Sprint(told) != want {
				t.Errorf("%s: %v, after %d dials: %q", tls.VersionName(latest), err, dials, told)
			}
		})
	}
}

// selfSigned is a certificate for name that is its own root.
func selfSigned(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{name}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(crand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// Item 5. The count of iterations that a relay may ask for, at its ends.
func TestScramIterations(t *testing.T) {
	for i, good := range map[int]bool{-1: false, 0: false, 1: false, 4095: false, 4096: true, 10_000: true, 1_000_001: false, 20_000_000: false} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 0, func(c *smtplb.Config) { c.Relays = []smtplb.Relay{{Addr: "unused.test"}} })
			h.pool.Close()
			s := h.net.NewServer("r.test:587", smtptest.WithTLS(), smtptest.WithAuth("user", "pass", "SCRAM-SHA-256", "PLAIN", "LOGIN"), smtptest.WithScramIterations(i))
			defer s.Close()
			pool, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{{Addr: "r.test:587", TLSConfig: s.ClientTLS(), Username: "user", Password: "pass"}}, Dial: h.net.DialContext})
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			_, err = pool.Deliver(t.Context(), envelope("x@example.com"))
			var re *smtplb.RelayError
			if good != (err == nil) || err != nil && (!errors.As(err, &re) || re.Stage != smtplb.StageAuth || re.Failure != "auth" || s.Stats().Commands["AUTH"] != 1 || s.Stats().Auths != 0) {
				t.Errorf("%d iterations: %v", i, err)
			}
		})
	}
}

// Item 5. After a refusal no weaker mechanism is tried, and no other connection.
func TestOneMechanism(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := smtptest.NewNetwork()
		s := n.NewServer("r.test:587", smtptest.WithTLS(), smtptest.WithAuth("user", "another", "SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2"))
		defer s.Close()
		pool, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{{Addr: "r.test:587", TLSConfig: s.ClientTLS(), Username: "user", Password: "pass"}}, Dial: n.DialContext})
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		for range 3 {
			if _, err := pool.Deliver(t.Context(), envelope("x@example.com")); !errors.Is(err, smtplb.ErrTemporary) {
				t.Error(err)
			}
		}
		if st := s.Stats(); st.Commands["AUTH"] != 1 || st.Connections != 1 || !strings.Contains(s.Transcript(), "AUTH SCRAM-SHA-256") {
			t.Errorf("%+v\n%s", st, s.Transcript())
		}
	})
}

// Item 6. A relay that has the credentials, and says them in each of its replies, good or bad, doesn't make them known.
func TestSecretsInEveryReply(t *testing.T) {
	t.Parallel()
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	echo := secret + " " + b64(secret) + " " + b64("\x00user\x00"+secret) + " " + b64("user=user\x01auth=Bearer "+secret+"\x01\x01")
	stages := []smtptest.Stage{smtptest.Banner, smtptest.Ehlo, smtptest.StartTLS, smtptest.Auth, smtptest.Mail, smtptest.Rcpt, smtptest.Data, smtptest.EndOfData, smtptest.Rset, smtptest.Quit}
	good := map[smtptest.Stage]int{smtptest.Banner: 220, smtptest.StartTLS: 220, smtptest.Data: 354}
	for _, token := range []bool{false, true} {
		for _, bad := range stages { // the one that refuses; the others accept
			for _, code := range []int{421, 451, 550, 0, -1} {
				t.Run(fmt.Sprint(bad, code, token), func(t *testing.T) {
					bubble(t, func(t *testing.T) {
						n := smtptest.NewNetwork()
						s := n.NewServer("r.test:587", smtptest.WithTLS(), smtptest.WithAuth("user", secret, "PLAIN", "XOAUTH2"), smtptest.WithLogf(t.Logf))
						defer s.Close()
						when := func(e *smtptest.Event) bool { // a token can be repeated only by a relay that was told it before
							return (e.TLS || e.Stage != smtptest.Ehlo) && (!token || s.Stats().Auths > 0)
						}
						for _, stage := range stages {
							rule := s.On(stage).If(when)
							switch {
							case stage == bad && code == -1:
								rule.Raw("250-" + echo + "\r\n999 " + echo + "\r\n")
							case stage == bad && code == 0:
								rule.Raw(echo + "\r\n")
							case stage == bad:
								rule.Reply(code, echo)
							case stage == smtptest.Auth: // it is really carried out
							case stage == smtptest.Ehlo:
								rule.Reply(250, "r.test\nAUTH PLAIN XOAUTH2\nX-ECHO "+echo+"\n"+echo)
							case good[stage] != 0:
								rule.Reply(good[stage], echo)
							default:
								rule.Reply(250, "2.0.0 Ok: queued as "+echo)
							}
						}
						trust := s.ClientTLS()
						trust.CurvePreferences = cheap
						r := smtplb.Relay{Name: "r", Addr: "r.test:587", TLSConfig: trust, Username: "user", Password: secret, AuthMechanisms: []string{"PLAIN"}, Conns: smtplb.Conns{MaxMessages: 1}}
						if token {
							r.Username, r.Password, r.AuthMechanisms = "", "", nil
							r.Auth = smtplb.TokenAuth("user", func(context.Context, smtplb.AuthRequest) (string, error) { return secret, nil })
						}
						var mu sync.Mutex
						var said bytes.Buffer
						log := slog.New(slog.NewJSONHandler(lockedWriter{&mu, &said}, &slog.HandlerOptions{Level: slog.LevelDebug}))
						note := func(v any) {
							b, _ := json.Marshal(v)
							mu.Lock()
							fmt.Fprintf(&said, "%v\n%+v\n%#v\n%q\n%s\n%s\n", v, v, v, v, v, b)
							mu.Unlock()
							log.Info("x", "v", v)
						}
						c := smtplb.Config{Relays: []smtplb.Relay{r}, Dial: n.DialContext, Logger: log, Hooks: smtplb.Hooks{
							AttemptStart: func(_ context.Context, a smtplb.AttemptInfo) func(smtplb.Attempt) {
								note(a)
								return func(a smtplb.Attempt) { note(a) }
							},
							Done:       func(_ context.Context, r *smtplb.Receipt, err error) { note(r); note(err) },
							RelayState: func(e smtplb.RelayEvent) { note(e) },
						}}
						pool, err := smtplb.New(c)
						if err != nil {
							t.Fatal(err)
						}
						for range 2 {
							receipt, err := pool.Deliver(t.Context(), envelope("x@example.com", "y@example.com"))
							note(receipt)
							note(*receipt)
							for _, x := range receipt.Recipients {
								note(x)
								noteErrors(note, x.Err())
							}
							for _, a := range receipt.Attempts {
								noteErrors(note, a.Err)
							}
							noteErrors(note, err)
							note(pool.Stats())
						}
						note(c)
						note(r)
						pool.Close()
						if !raceEnabled { // fmt reads the fields past all locks
							note(pool)
						}
						mustNotLeak(t, "what came back, or went to log and hooks,", said.String())
						if said.Len() < 1000 {
							t.Error("nothing was said")
						}
					})
				})
			}
		}
	}
}

// noteErrors notes err and all that lies behind it.
func noteErrors(note func(any), err error) {
	if err == nil {
		return
	}
	note(err)
	switch x := err.(type) {
	case interface{ Unwrap() []error }:
		for _, e := range x.Unwrap() {
			noteErrors(note, e)
		}
	case interface{ Unwrap() error }:
		noteErrors(note, x.Unwrap())
	}
}

// Item 7. A relay that never stops talking is left after some kilobytes, wherever it begins to.
func TestEndlessReplies(t *testing.T) {
	for _, at := range []string{"banner", "EHLO", "MAIL", "RCPT", "DATA", "."} {
		for name, forever := range map[string]string{"lines": "250-and so on\r\n", "one line": "250 and so on ", "a line without a code": "and so on ", "blank lines": "\r\n", "NUL": "\x00"} {
			t.Run(at+" "+name, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					n := smtptest.NewNetwork()
					l, err := n.Listen("r.test:25")
					if err != nil {
						t.Fatal(err)
					}
					written := 0
					var serving sync.WaitGroup
					serving.Go(func() {
						for {
							c, err := l.Accept()
							if err != nil {
								return
							}
							if written += talk(c, at, strings.Repeat(forever, 1+4096/len(forever))); written > 1<<30 {
								written = 1 << 30
							}
							c.Close()
						}
					})
					pool, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{{Name: "r", Addr: "r.test:25", TLS: smtplb.TLSNone}}, Dial: n.DialContext})
					if err != nil {
						t.Fatal(err)
					}
					begun := time.Now()
					r, err := pool.Deliver(t.Context(), envelope("x@example.com"))
					took := time.Since(begun)
					pool.Close()
					l.Close()
					serving.Wait()
					want := "deferred"
					if at == "." {
						want = "unknown"
					}
					if outcomes(r) != want || took > time.Second || len(err.Error()) > 4096 || !printable(err.Error()) {
						t.Errorf("%v after %v: %v", r, took, err)
					}
					if most := 2 << 20; written > most { // what lies in the network's buffers is not the pool's
						t.Errorf("%d bytes were sent to a client that listens to 32 KiB", written)
					}
				})
			})
		}
	}
}

// talk is a relay that says endless at some point until the client has gone; it returns how many bytes of that it got rid of.
func talk(c net.Conn, at, endless string) (n int) {
	forever := func() int {
		for {
			k, err := io.WriteString(c, endless)
			n += k
			if err != nil || n >= 1<<30 {
				return n
			}
		}
	}
	if at == "banner" {
		return forever()
	}
	_, _ = io.WriteString(c, "220 hi\r\n")
	p := lines(c)
	for l := p(); l != ""; l = p() {
		if strings.HasPrefix(l, at) {
			return forever()
		}
		switch verb, _, _ := strings.Cut(l, " "); verb {
		case "EHLO", "MAIL", "RCPT":
			_, _ = io.WriteString(c, "250 fine\r\n")
		case "DATA":
			_, _ = io.WriteString(c, "354 go\r\n")
		}
	}
	return n
}

// lines returns a function that reads c's next line, "" when there is none.
func lines(c net.Conn) func() string {
	var buf []byte
	return func() string {
		for {
			if l, rest, ok := bytes.Cut(buf, []byte("\r\n")); ok {
				buf = rest
				if len(l) == 0 {
					continue
				}
				return string(l)
			}
			b := make([]byte, 4096)
			n, err := c.Read(b)
			buf = append(buf, b[:n]...)
			if err != nil {
				return ""
			}
		}
	}
}

// Item 7. A relay that sends a byte a second has as long as any other.
func TestDrip(t *testing.T) {
	long := strings.Repeat("x", 1000)
	for stage, limit := range map[smtptest.Stage]time.Duration{
		smtptest.Banner: 30 * time.Second, smtptest.Ehlo: 30 * time.Second, smtptest.Mail: time.Minute, smtptest.Rcpt: time.Minute, smtptest.Data: time.Minute, smtptest.EndOfData: 10 * time.Minute,
	} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, nil)
			defer h.close()
			h.relays[0].On(stage).Reply(250, long).Drip(time.Second)
			begun := time.Now()
			r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
			if took := time.Since(begun); took > limit+5*time.Second || err == nil || r.Attempts[0].Err == nil {
				t.Errorf("%v: %v after %v, want %v: %v", stage, r, took, limit, err)
			}
		})
	}
}

// Item 8. Relays at one address with other credentials, another TLS configuration or another EHLO name don't use each other's connections.
func TestConnectionsAreNotShared(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := smtptest.NewNetwork()
		s := n.NewServer("r.test:587", smtptest.WithTLS(), smtptest.WithAuth("alice", "a"), smtptest.WithAuth("bob", "b"))
		defer s.Close()
		trust := s.ClientTLS()
		pool, err := smtplb.New(smtplb.Config{Dial: n.DialContext, Relays: []smtplb.Relay{
			{Name: "alice", Addr: s.Addr, TLSConfig: trust, Username: "alice", Password: "a"},
			{Name: "bob", Addr: s.Addr, TLSConfig: trust, Username: "bob", Password: "b"},
			{Name: "mallory", Addr: s.Addr, TLSConfig: &tls.Config{}, Username: "alice", Password: "a"}, // doesn't trust the certificate
			{Name: "eve", Addr: s.Addr, TLSConfig: trust, Username: "alice", Password: "wrong"},
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				time.Sleep(time.Duration(i/8) * time.Second)
				r, err := pool.Deliver(t.Context(), envelope(fmt.Sprintf("u%d@example.com", i)))
				if err != nil {
					t.Errorf("%v: %v", r, err)
					return
				}
				for _, m := range s.Messages() {
					if x := r.Recipients[0]; m.QueueID == x.QueueID && (m.Auth != x.Relay || !m.TLS) {
						t.Errorf("%s's message went out as %s", x.Relay, m.Auth)
					}
				}
			})
		}
		wg.Wait()
		by := map[string]int{}
		for _, m := range s.Messages() {
			by[m.Auth]++
		}
		st := pool.Stats()
		if by["alice"] == 0 || by["bob"] == 0 || len(by) != 2 || st.Relays[2].Accepted != 0 || st.Relays[3].Accepted != 0 || st.Relays[0].Reused == 0 {
			t.Errorf("%v: %+v", by, st.Relays)
		}
	})
}
