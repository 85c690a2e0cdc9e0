package conformance_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	netmail "net/mail"
	"net/smtp"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest/conformance"
	"github.com/wneessen/go-mail"
)

// TestMain lets senders that take no TLS configuration trust the kit's relays.
func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "conformance")
		if err != nil {
			log.Fatal(err)
		}
		defer os.RemoveAll(dir)
		file := filepath.Join(dir, "root.pem")
		root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: conformance.Authority().Raw})
		if err := errors.Join(os.WriteFile(file, root, 0o600), os.Setenv("SSL_CERT_FILE", file)); err != nil {
			log.Fatal(err)
		}
		return m.Run()
	}())
}

// pool returns the pool that stays with r.
func pool(r *conformance.Relay) (*smtplb.Pool, error) {
	return conformance.Keep(r, func() (*smtplb.Pool, func(), error) {
		wait := r.Patience
		relay := smtplb.Relay{
			Addr: r.Addr, TLS: smtplb.TLSNone, Username: r.Username, Password: r.Password,
			Timeouts: smtplb.Timeouts{Dial: wait, TLS: wait, Greeting: wait, Command: wait, Body: wait, Final: wait},
		}
		if r.TLS != nil {
			relay.TLS, relay.TLSConfig = smtplb.TLSStartTLS, r.TLS
		}
		p, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{relay}})
		if err != nil {
			return nil, nil, err
		}
		return p, func() { p.Close() }, nil
	})
}

func deliver(ctx context.Context, r *conformance.Relay, from string, to []string, body smtplb.Body) error {
	p, err := pool(r)
	if err != nil {
		return err
	}
	_, err = p.Deliver(ctx, &smtplb.Envelope{From: from, To: to, Body: body})
	return err
}

func poolDeliver(ctx context.Context, r *conformance.Relay, from string, to []string, msg []byte) error {
	return deliver(ctx, r, from, to, smtplb.Bytes(msg))
}

func poolDeliverReader(ctx context.Context, r *conformance.Relay, from string, to []string, msg io.Reader) error {
	return deliver(ctx, r, from, to, smtplb.Reader(msg))
}

// poolSendMail has no context: the relay's timeouts are what ends it.
func poolSendMail(_ context.Context, r *conformance.Relay, from string, to []string, msg []byte) error {
	p, err := pool(r)
	if err != nil {
		return err
	}
	return p.SendMail("ignored.test:25", nil, from, to, msg)
}

// netSMTP has no context either, and no timeouts.
func netSMTP(_ context.Context, r *conformance.Relay, from string, to []string, msg []byte) error {
	var auth smtp.Auth
	if r.Username != "" {
		auth = smtp.PlainAuth("", r.Username, r.Password, "127.0.0.1")
	}
	return smtp.SendMail(r.Addr, auth, from, to, msg)
}

// held keeps the connections of go-mail: one that is left open is to stay open, and not
// to be closed by the garbage collector before the kit has seen it.
var held struct {
	sync.Mutex
	conns []net.Conn
}

func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, addr)
	held.Lock()
	defer held.Unlock()
	held.conns = append(held.conns, nc)
	return nc, err
}

// goMail dials for each message, as DialAndSend does.
func goMail(ctx context.Context, r *conformance.Relay, from string, to []string, msg []byte) error {
	parsed, err := netmail.ReadMessage(bytes.NewReader(msg))
	if err != nil {
		return err
	}
	body, err := io.ReadAll(parsed.Body)
	if err != nil {
		return err
	}
	return goMailSend(ctx, r, from, to, parsed.Header, func(m *mail.Msg) { m.SetBodyString(mail.TypeTextPlain, string(body)) })
}

// goMailReader lets go-mail read the body when it sends.
func goMailReader(ctx context.Context, r *conformance.Relay, from string, to []string, msg io.Reader) error {
	parsed, err := netmail.ReadMessage(msg)
	if err != nil {
		return err
	}
	return goMailSend(ctx, r, from, to, parsed.Header, func(m *mail.Msg) {
		m.SetBodyWriter(mail.TypeTextPlain, func(w io.Writer) (int64, error) { return io.Copy(w, parsed.Body) })
	})
}

func goMailSend(ctx context.Context, r *conformance.Relay, from string, to []string, header netmail.Header, body func(*mail.Msg)) error {
	m := mail.NewMsg()
	if err := errors.Join(m.From(from), m.To(to...)); err != nil {
		return err
	}
	m.Subject(header.Get("Subject"))
	m.SetMessageIDWithValue(strings.Trim(header.Get("Message-ID"), "<>"))
	body(m)
	host, port, _ := strings.Cut(r.Addr, ":")
	n, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	opts := []mail.Option{mail.WithPort(n), mail.WithTimeout(r.Patience), mail.WithTLSPolicy(mail.NoTLS), mail.WithHELO("client.test"), mail.WithDialContextFunc(dial)}
	if r.TLS != nil {
		opts = append(opts, mail.WithTLSPolicy(mail.TLSMandatory), mail.WithTLSConfig(r.TLS))
	}
	if r.Username != "" {
		opts = append(opts, mail.WithSMTPAuth(mail.SMTPAuthPlain), mail.WithUsername(r.Username), mail.WithPassword(r.Password))
	}
	c, err := mail.NewClient(host, opts...)
	if err != nil {
		return err
	}
	return c.DialAndSendWithContext(ctx, m)
}
