package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/smtp"
	"strconv"
	"time"

	gosmtp "github.com/emersion/go-smtp"
	"github.com/jordan-wright/email"
	"github.com/knadh/smtppool"
	"github.com/wneessen/go-mail"
)

// This file is the peers in Go. Where a peer takes a finished message it is given one; go-mail, email and smtppool render the message at every send, as they
// always do, and are given it in the form that costs them least.

// patience is each peer's timeout, where it has one: no connection may be lost between two turns.
const patience = 5 * time.Minute

func dialNetSMTP(s *setup) (*smtp.Client, error) {
	c, err := smtp.Dial(s.to.addr)
	if err != nil {
		return nil, err
	}
	if s.to.tls != nil {
		err = c.StartTLS(s.to.tls)
	} else {
		err = c.Hello("localhost")
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// transact is a transaction as net/smtp's documentation has it.
func transact(c *smtp.Client, l *letter) error {
	if err := c.Mail(l.from); err != nil {
		return err
	}
	for _, to := range l.to {
		if err := c.Rcpt(to); err != nil {
			return err
		}
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if l.file != nil {
		var msg *mail.Msg
		if msg, err = goMailMessage(l); err == nil {
			_, err = msg.WriteTo(w)
		}
	} else {
		_, err = w.Write(l.raw)
	}
	return errors.Join(err, w.Close())
}

// openNetSMTP is the base: a connection that is kept, with RSET after each message.
func openNetSMTP(s *setup) (client, error) {
	return keptClient(s,
		func() (*smtp.Client, error) { return dialNetSMTP(s) },
		func(c *smtp.Client) { _ = c.Quit() },
		func(c *smtp.Client) error {
			if err := transact(c, s.letter); err != nil {
				return err
			}
			return c.Reset()
		})
}

func openNetSMTPDial(s *setup) (client, error) {
	none := func() (struct{}, error) { return struct{}{}, nil }
	return keptClient(s, none, func(struct{}) {}, func(struct{}) error {
		c, err := dialNetSMTP(s)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := transact(c, s.letter); err != nil {
			return err
		}
		return c.Quit()
	})
}

// goMailMessage makes the letter in go-mail's form.
func goMailMessage(l *letter) (*mail.Msg, error) {
	m := mail.NewMsg(mail.WithEncoding(mail.NoEncoding))
	err := errors.Join(m.From(l.from), m.To(l.to[0]))
	if len(l.to) > 1 {
		err = errors.Join(err, m.Bcc(l.to[1:]...))
	}
	m.Subject(subject)
	m.SetBodyString(mail.TypeTextPlain, string(l.text))
	if l.file != nil {
		m.AttachReadSeeker("data.bin", bytes.NewReader(l.file))
	}
	return m, err
}

// goMailClient is a client of go-mail and its message, for one worker at a time: a Msg must not be rendered by two.
type goMailClient struct {
	*mail.Client
	msg *mail.Msg
}

func newGoMail(s *setup, opts ...mail.Option) (*goMailClient, error) {
	host, port, err := hostPort(s.to.addr)
	if err != nil {
		return nil, err
	}
	policy := mail.WithTLSPolicy(mail.NoTLS)
	if s.to.tls != nil {
		policy = mail.WithTLSPolicy(mail.TLSMandatory)
		opts = append(opts, mail.WithTLSConfig(s.to.tls))
	}
	opts = append(opts, mail.WithPort(port), policy, mail.WithHELO("localhost"), mail.WithTimeout(patience))
	c, err := mail.NewClient(host, opts...)
	if err != nil {
		return nil, err
	}
	msg, err := goMailMessage(s.letter)
	return &goMailClient{c, msg}, err
}

// message is what the client sends next: with an attachment, one that was made for this send.
func (c *goMailClient) message(l *letter) (*mail.Msg, error) {
	if l.file == nil {
		return c.msg, nil
	}
	return goMailMessage(l)
}

func openGoMailDial(s *setup) (client, error) {
	return keptClient(s,
		func() (*goMailClient, error) { return newGoMail(s) },
		func(*goMailClient) {},
		func(c *goMailClient) error {
			m, err := c.message(s.letter)
			if err != nil {
				return err
			}
			return c.DialAndSend(m)
		})
}

func openGoMailKept(s *setup) (client, error) { return keepGoMail(s) }

// openGoMailBare is without the NOOP before and the RSET after each message.
func openGoMailBare(s *setup) (client, error) {
	return keepGoMail(s, mail.WithoutNoop(), mail.WithoutRset())
}

func keepGoMail(s *setup, opts ...mail.Option) (client, error) {
	return keptClient(s,
		func() (*goMailClient, error) {
			c, err := newGoMail(s, opts...)
			if err != nil {
				return nil, err
			}
			return c, c.DialWithContext(context.Background())
		},
		func(c *goMailClient) { _ = c.Close() },
		func(c *goMailClient) error {
			m, err := c.message(s.letter)
			if err != nil {
				return err
			}
			return c.Send(m)
		})
}

// openEmail is the Pool of jordan-wright/email. It starts TLS wherever that is offered.
func openEmail(s *setup) (client, error) {
	p, err := email.NewPool(s.to.addr, s.work.conns, nil, s.to.tls)
	if err != nil {
		return nil, err
	}
	l := s.letter
	e := &email.Email{From: l.from, To: l.to[:1], Bcc: l.to[1:], Subject: subject, Text: l.text}
	return &crowd{
		workers: s.work.workers,
		send:    func(context.Context, int) error { return p.Send(e, patience) },
		done:    p.Close,
	}, nil
}

// openSMTPPool is the pool that listmonk sends with.
func openSMTPPool(s *setup) (client, error) {
	host, port, err := hostPort(s.to.addr)
	if err != nil {
		return nil, err
	}
	p, err := smtppool.New(smtppool.Opt{Host: host, Port: port, MaxConns: s.work.conns, PoolWaitTimeout: 10 * time.Second, TLSConfig: s.to.tls})
	if err != nil {
		return nil, err
	}
	l := s.letter
	e := smtppool.Email{From: l.from, To: l.to[:1], Bcc: l.to[1:], Subject: subject, Text: l.text}
	return &crowd{
		workers: s.work.workers,
		send:    func(context.Context, int) error { return p.Send(e) },
		done:    func() { go p.Close() }, // it waits for its sweeper, a second and more
	}, nil
}

func openGoSMTP(s *setup) (client, error) {
	return keptClient(s,
		func() (*gosmtp.Client, error) {
			if s.to.tls != nil {
				return gosmtp.DialStartTLS(s.to.addr, s.to.tls)
			}
			return gosmtp.Dial(s.to.addr)
		},
		func(c *gosmtp.Client) { _ = c.Quit() },
		func(c *gosmtp.Client) error {
			return c.SendMail(s.letter.from, s.letter.to, bytes.NewReader(s.letter.raw))
		})
}

func hostPort(addr string) (string, int, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.Atoi(port)
	return host, n, err
}
