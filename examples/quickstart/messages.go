package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/smtplb/smtplb"
	"github.com/wneessen/go-mail"
)

// newEnvelope makes message n of the demo, with go-mail. pool.Send(ctx, msg) would do the same in one call; with the envelope in hand one can
// give it an ID, and send again what was deferred (Receipt.Retry).
func newEnvelope(n int) (*smtplb.Envelope, error) {
	msg, err := newMessage(n)
	if err != nil {
		return nil, err
	}
	e, err := smtplb.NewEnvelope(msg)
	if err != nil {
		return nil, err
	}
	e.ID = msg.GetMessageID() // it comes back in the receipt
	return e, nil
}

// newMessage makes a message of about 2 KB. Every tenth has three recipients.
func newMessage(n int) (*mail.Msg, error) {
	msg := mail.NewMsg()
	err := errors.Join(
		msg.From("billing@example.com"),
		msg.To(fmt.Sprintf("customer-%d@example.org", n)),
	)
	if n%10 == 0 {
		err = errors.Join(err,
			msg.Cc(fmt.Sprintf("accounts-%d@example.net", n)),
			msg.Bcc("archive@example.com"), // a recipient, and not in the header
		)
	}
	msg.SetMessageIDWithValue(fmt.Sprintf("invoice-%d@example.com", n))
	msg.Subject(fmt.Sprintf("Your invoice no. %d", n))
	msg.SetBodyString(mail.TypeTextPlain, fmt.Sprintf("Hello,\r\n\r\nthis is your invoice no. %d.\r\n\r\n%s", n, items))
	return msg, err
}

var items = strings.Repeat("1 x Something that we all need a lot of            9.99 EUR\r\n", 25)
