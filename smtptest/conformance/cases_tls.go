package conformance

import (
	"strings"
	"time"

	"github.com/smtplb/smtplb/smtptest"
)

// What is secret stays so. In these cases TLS is required.
var tlsCases = []Case{
	{Name: "tls", Why: "A message is sent under TLS where that is asked for.", secure: true,
		run: func(t *trial) {
			t.accepted(t.send("Hello.\r\n", bob))
			if m := t.once("Hello.\r\n", bob); !m.TLS {
				t.failf("it was sent in the clear")
			}
		}},
	{Name: "auth", Why: "A sender with an account uses it, under TLS.", secure: true, account: true,
		opts: []option{smtptest.WithAuth("user", "s3cret")},
		run: func(t *trial) {
			t.accepted(t.send("Hello.\r\n", bob))
			if m := t.once("Hello.\r\n", bob); m.Auth != "user" || !m.TLS {
				t.failf("authenticated as %q, TLS %v", m.Auth, m.TLS)
			}
		}},
	{Name: "auth-refused", Why: "Wrong credentials are an error, and tried once: relays lock accounts.", secure: true, account: true,
		opts: []option{smtptest.WithAuth("user", "another")},
		run: func(t *trial) {
			t.refused(t.send("Hello.\r\n", bob))
			t.stored(0)
			if n := t.server.Stats().AuthFailures; n != 1 {
				t.failf("AUTH was tried %d times", n)
			}
		}},
	{Name: "starttls-stripped", Why: "Whoever sits between can take STARTTLS out of the EHLO reply: where TLS is required its absence ends the matter.", secure: true,
		opts: []option{smtptest.WithoutExtensions("STARTTLS")},
		run:  (*trial).closed},
	{Name: "starttls-refused", Why: "A 454 to STARTTLS, which whoever sits between can say, is not followed by plain text where TLS is required.", secure: true,
		run: func(t *trial) {
			t.server.On(smtptest.StartTLS).Reply(454, "4.7.0 TLS not available")
			t.closed()
		}},
	{Name: "auth-in-clear", Why: "Credentials are not shown to whoever sits between and takes out STARTTLS.", secure: true, account: true,
		opts: []option{smtptest.WithExtensions("AUTH PLAIN LOGIN"), smtptest.WithoutExtensions("STARTTLS")},
		run: func(t *trial) {
			t.closed()
			if t.server.Stats().Commands["AUTH"] > 0 {
				t.failf("AUTH was sent in the clear")
			}
		}},
	{Name: "starttls-injection", Why: "What lies behind the 220 to STARTTLS was sent by whoever sits between: it must not be taken for a reply under TLS (RFC 3207 §6, CVE-2011-0411).", secure: true,
		run: func(t *trial) {
			t.server.On(smtptest.StartTLS).Raw("220 Go ahead\r\n554 injected\r\n")
			err := t.send("Hello.\r\n", bob)
			t.end()
			switch msgs := t.server.Messages(); {
			case err == nil:
				t.once("Hello.\r\n", bob)
			case strings.Contains(err.Error(), "injected"):
				t.failf("it was taken for a reply: %v", err)
			case len(msgs) > 0:
				t.failf("an error, and a message is stored")
			}
		}},
	{Name: "extensions-after-tls", Why: "What was offered before TLS is forgotten: whoever sits between may have written it (RFC 3207 §4.2).", secure: true,
		opts: []option{smtptest.WithTLSExtensions("ENHANCEDSTATUSCODES"), smtptest.WithStrictPipelining()},
		run:  func(t *trial) { t.inStep("Hello.\r\n") }},
	{Name: "wrong-name", Why: "A certificate for another host is anybody's.", secure: true,
		cert: func() option { return smtptest.WithCertificate(certificate("other.test")) },
		run:  (*trial).closed},
	{Name: "unknown-authority", Why: "A certificate that nobody vouches for is anybody's.", secure: true,
		cert: func() option { return smtptest.WithCertificateFor("127.0.0.1") },
		run:  (*trial).closed},
	{Name: "expired", Why: "An expired certificate is not trusted, nor is plain text then.", secure: true,
		cert: func() option { return smtptest.WithCertificate(mint("127.0.0.1", time.Now().Add(-time.Hour))) },
		run:  (*trial).closed},
	{Name: "handshake-cut", Why: "A handshake that fails is not followed by an attempt in plain text.", secure: true,
		run: func(t *trial) {
			t.server.On(smtptest.TLSHandshake).CutSent(40)
			t.closed()
		}},
	{Name: "handshake-garbage", Why: "Where something else than TLS answers nothing is sent, least of all in plain text.", secure: true,
		run: func(t *trial) {
			t.server.On(smtptest.TLSHandshake).ServerHello("220 What do you mean?\r\n")
			t.closed()
		}},
	{Name: "handshake-alert", Why: "A relay that ends the handshake with an alert gets no mail, least of all in plain text.", secure: true,
		run: func(t *trial) {
			t.server.On(smtptest.TLSHandshake).Alert(40)
			t.closed()
		}},
	{Name: "tls-reply-corrupted", Why: "A reply whose record was tampered with is none: the message may be stored, and it is an error.", secure: true,
		run: func(t *trial) { t.lost(t.server.On(smtptest.EndOfData).CorruptRecord()) }},
	{Name: "tls-truncation", Why: "The end of the stream without a close_notify is no reply either: whoever sits between can make one.", secure: true,
		run: func(t *trial) { t.lost(t.server.On(smtptest.EndOfData).DropFIN()) }},
	{Name: "tls-idle-421-segment", Why: "A 421 in the TLS record of the 250 is not seen by a look at the socket; the next message is sent over another connection, once.", secure: true,
		run: func(t *trial) {
			t.server.On(smtptest.EndOfData).Times(1).Then("421 4.3.2 Going down\r\n").ThenClose()
			t.accepted(t.send("First.\r\n", bob))
			<-time.After(50 * time.Millisecond)
			t.accepted(t.send("Second.\r\n", carol))
			t.two()
		}},
}

// closed expects that nothing is sent, encrypted or not.
func (t *trial) closed() {
	t.refused(t.send("Hello.\r\n", bob))
	t.stored(0)
	if n := t.server.Stats().Commands["MAIL"]; n > 0 {
		t.failf("MAIL was sent all the same")
	}
}
