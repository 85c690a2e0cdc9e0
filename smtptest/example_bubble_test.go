package smtptest_test

import (
	"context"
	"net"
	"net/smtp"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb/smtptest"
)

// Sender is the application's code under test: it tries again every minute.
type Sender struct {
	Dialer interface { // a *net.Dialer, or in tests a *smtptest.Network
		DialContext(ctx context.Context, network, addr string) (net.Conn, error)
	}
	Addr string
}

func (s *Sender) Send(ctx context.Context, from, to, msg string) error {
	for {
		err := s.try(ctx, from, to, msg)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(time.Minute):
		case <-ctx.Done():
			return err
		}
	}
}

func (s *Sender) try(ctx context.Context, from, to, msg string) error {
	nc, err := s.Dialer.DialContext(ctx, "tcp", s.Addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	c, err := smtp.NewClient(nc, "relay.test")
	if err != nil {
		return err
	}
	if err := c.Mail(from); err != nil {
		return err
	}
	if err := c.Rcpt(to); err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := w.Write([]byte(msg)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return c.Quit()
}

// CheckGreylisting is the test: in an application, "func TestGreylisting".
func CheckGreylisting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := smtptest.NewNetwork() // real sockets would keep fake time from passing
		relay := network.NewServer("relay.test:25")
		defer relay.Close()
		relay.On(smtptest.Rcpt).Times(5).Reply(450, "4.7.1 Greylisted, come back later")

		start := time.Now()
		sender := &Sender{Dialer: network, Addr: relay.Addr}
		if err := sender.Send(t.Context(), "shop@example.org", "bob@example.com", "Subject: Hello\r\n\r\nBob\r\n"); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 5*time.Minute { // to the nanosecond, and in no time
			t.Errorf("the message took %v", took)
		}
		if n := len(relay.Messages()); n != 1 {
			t.Errorf("%d messages\n%s", n, relay.Transcript())
		}
	})
}

// A test in fake time: five minutes of greylisting pass at once. The network is in
// memory, so nothing in the bubble waits for the outside.
func Example_fakeTime() {
	var t *testing.T // the test's
	CheckGreylisting(t)
}
