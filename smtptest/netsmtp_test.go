package smtptest_test

import (
	"context"
	"net/smtp"
	"net/textproto"
	"slices"
	"testing"
	"time"

	"github.com/smtplb/smtplb/smtptest"
)

const letter = "From: alice@example.org\r\nTo: bob@example.com\r\nMessage-ID: <1@example.org>\r\nSubject: Hello\r\n\r\nHello, Bob.\r\n.\r\n..dots\r\n"

// TestNetSMTP: the standard library's client over TCP.
func TestNetSMTP(t *testing.T) {
	s := smtptest.NewServer(smtptest.WithTLS(), smtptest.WithAuth("user", "s3cret"))
	defer s.Close()
	if want := "smtp://user:s3cret@" + s.Addr; s.URL() != want {
		t.Errorf("URL %q, want %q", s.URL(), want)
	}
	err := smtp.SendMail(s.Addr, nil, "alice@example.org", []string{"bob@example.com"}, []byte(letter))
	// net/smtp does not trust the certificate: nothing is sent.
	if err == nil {
		t.Error("SendMail trusts the certificate")
	}
	c, err := smtp.Dial(s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Mail("alice@example.org"); err == nil || err.(*textproto.Error).Code != 530 {
		t.Errorf("MAIL without AUTH: %v", err)
	}
	if ok, _ := c.Extension("AUTH"); ok {
		t.Error("AUTH is offered before TLS")
	}
	cfg := s.ClientTLS()
	cfg.ServerName = "127.0.0.1"
	if err := c.StartTLS(cfg); err != nil {
		t.Fatal(err)
	}
	if err := c.Auth(smtp.PlainAuth("", s.Username, "wrong", "127.0.0.1")); err == nil {
		t.Error("a wrong password is accepted")
	}
	c.Close()

	if c, err = smtp.Dial(s.Addr); err != nil {
		t.Fatal(err)
	}
	if err := c.StartTLS(cfg); err != nil {
		t.Fatal(err)
	}
	if err := c.Auth(smtp.PlainAuth("", s.Username, s.Password, "127.0.0.1")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.Mail("alice@example.org"); err != nil {
			t.Fatal(err)
		}
		for _, to := range []string{"bob@example.com", "carol@example.com"} {
			if err := c.Rcpt(to); err != nil {
				t.Fatal(err)
			}
		}
		w, err := c.Data()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(letter)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Quit(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	msgs, err := s.WaitFor(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	m := msgs[1]
	if m.From != "alice@example.org" || !slices.Equal(m.To, []string{"bob@example.com", "carol@example.com"}) ||
		string(m.Data) != letter || m.Header.Get("Subject") != "Hello" || m.MessageID() != "<1@example.org>" ||
		string(m.Body()) != "Hello, Bob.\r\n.\r\n..dots\r\n" || m.Auth != "user" || !m.TLS || m.HELO != "localhost" || m.Conn != 3 ||
		m.QueueID == "" || m.QueueID == msgs[0].QueueID || m.Time.IsZero() || !slices.Equal(m.MailParams, []string{"BODY=8BITMIME", "SMTPUTF8"}) {
		t.Errorf("message %+v", m)
	}
	st := s.Stats()
	for st.Active > 0 && ctx.Err() == nil { // what the first connection came to may still be on its way
		time.Sleep(time.Millisecond)
		st = s.Stats()
	}
	if st.Connections != 3 || st.Messages != 2 || st.Recipients != 4 || st.TLSHandshakes != 2 || st.TLSFailures != 1 || st.Auths != 1 ||
		st.AuthFailures != 1 || st.Transactions != 2 || st.Reused != 1 || st.EarlyBytes != 0 || st.Commands["MAIL"] != 3 || st.Bytes != int64(2*len(letter)) {
		t.Errorf("%+v", st)
	}
	if t.Failed() {
		t.Log(s.Transcript())
	}
}
