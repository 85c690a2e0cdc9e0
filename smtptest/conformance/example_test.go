package conformance_test

import (
	"context"
	"fmt"
	"net/smtp"
	"testing"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest/conformance"
)

// A test of the application runs its function through all cases.
func ExampleRun() {
	var t *testing.T // the test's
	send := func(_ context.Context, r *conformance.Relay, from string, to []string, msg []byte) error {
		return smtp.SendMail(r.Addr, nil, from, to, msg)
	}
	conformance.Run(t, send, conformance.Known(map[string]string{
		"quit-fails": "net/smtp returns QUIT's error", // and so on
	}))
}

// The outcomes themselves, for a table.
func ExampleCheck() {
	send := func(_ context.Context, r *conformance.Relay, from string, to []string, msg []byte) error {
		return smtp.SendMail(r.Addr, nil, from, to, msg)
	}
	some := func(name string) bool { return name == "delivery" || name == "quit-fails" }
	for _, o := range conformance.Check(send, conformance.Only(some)) {
		fmt.Printf("%s: %v\n", o.Case.Name, o.Status)
	}
	// Output:
	// delivery: passed
	// quit-fails: failed
}

// A sender that keeps connections from one message to the next.
func ExampleKeep() {
	send := func(ctx context.Context, r *conformance.Relay, from string, to []string, msg []byte) error {
		pool, err := conformance.Keep(r, func() (*smtplb.Pool, func(), error) {
			p, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{{Addr: r.Addr, TLS: smtplb.TLSNone}}})
			return p, func() { p.Close() }, err
		})
		if err != nil {
			return err
		}
		_, err = pool.Deliver(ctx, &smtplb.Envelope{From: from, To: to, Body: smtplb.Bytes(msg)})
		return err
	}
	for _, o := range conformance.Check(send, conformance.Only(func(name string) bool { return name == "idle-421" })) {
		fmt.Println(o)
	}
	// Output: idle-421: passed
}
