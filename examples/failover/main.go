// Failover shows what a receipt tells when a relay begins to fail: which relays were tried, what each said, and when nothing more is tried.
//
//	go run ./examples/failover
//
// It starts two relays inside its process, and breaks one of them in ways that real relays break. It takes a moment, sends nothing anywhere else, and
// prints for each message what became of its recipients, and the attempts that led there:
//
//	[1] Both relays are well
//	   anna@example.org: accepted by relay-a
//	     relay-a: ok
//	[2] relay-a says that it is out of order: its fault, so the message goes to relay-b
//	   anna@example.org: accepted by relay-b
//	     relay-a: mail: 451 4.3.0 Queue file write error
//	     relay-b: ok
//	[3] relay-a doesn't know one of the recipients: nobody's fault, and no other relay is asked
//	   anna@example.org: accepted by relay-a
//	   gone@example.org: failed: relay-a: rcpt: 550 5.1.1 No such user
//	     relay-a: ok
//
// and so on: a relay that hangs up before it has the message, one that does so when it has it, one that is down, and both of them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

func main() {
	if err := demo(os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func demo(w io.Writer) error {
	a, b := smtptest.NewServer(), smtptest.NewServer() // in the place of real ones
	defer a.Close()
	defer b.Close()
	pool, err := smtplb.New(smtplb.Config{
		Relays: []smtplb.Relay{{Name: "relay-a", Addr: a.Addr}, {Name: "relay-b", Addr: b.Addr}},
	})
	if err != nil {
		return err
	}
	defer pool.Close()

	step := 0
	send := func(title string, to ...string) (*smtplb.Receipt, error) {
		step++
		fmt.Fprintf(w, "[%d] %s\n", step, title)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		receipt, err := pool.Deliver(ctx, &smtplb.Envelope{
			From: "billing@example.com",
			To:   to,
			Body: smtplb.Bytes([]byte("From: billing@example.com\r\nSubject: Your invoice\r\n\r\nThank you.\r\n")),
			// Left out, every second message would begin with relay-b. Here relay-a is to be seen failing.
			Prefer: "relay-a",
		})
		if receipt == nil {
			return nil, err // the envelope itself is wrong: an *smtplb.EnvelopeError. Nothing was sent
		}
		tell(w, receipt)
		return receipt, err
	}

	if _, err := send("Both relays are well", "anna@example.org"); err != nil {
		return err
	}

	a.On(smtptest.Mail).Times(1).Reply(451, "4.3.0 Queue file write error")
	if _, err := send("relay-a says that it is out of order: its fault, so the message goes to relay-b", "anna@example.org"); err != nil {
		return err
	}

	a.On(smtptest.Rcpt).For("gone@example.org").Times(1).Reply(550, "5.1.1 No such user")
	_, err = send("relay-a doesn't know one of the recipients: nobody's fault, and no other relay is asked", "anna@example.org", "gone@example.org")
	if !errors.Is(err, smtplb.ErrPartial) { // some were accepted, and some were not
		return fmt.Errorf("one of two was refused, and the error is %w", err)
	}

	a.On(smtptest.Data).Times(1).Drop()
	if _, err := send("relay-a hangs up before it has the message: relay-b gets it", "anna@example.org"); err != nil {
		return err
	}

	// The moment that matters: relay-a has the message, and the connection breaks before it can say so. To send it again could deliver it twice, so
	// the pool doesn't. Envelope.AtLeastOnce would let it.
	a.On(smtptest.EndOfData).Times(1).Drop()
	if _, err := send("relay-a hangs up when it has the message: nobody can know, and nothing is sent twice", "anna@example.org"); !errors.Is(err, smtplb.ErrUnknown) {
		return fmt.Errorf("the outcome is unknown, and the error is %w", err)
	}

	a.Kill()
	for range 5 { // faults in a row, after which a relay is left alone for 15 s and longer
		if _, err := send("relay-a is down: it is tried, and relay-b gets the message", "anna@example.org"); err != nil {
			return err
		}
		if pool.Stats().Relays[0].State == "open" {
			break
		}
	}
	if _, err := send("relay-a is known to be down by now: nobody waits for it any more", "anna@example.org"); err != nil {
		return err
	}

	b.Kill()
	receipt, err := send("relay-b is down too: the message is deferred, and no relay has it", "anna@example.org")
	var failed *smtplb.SendError
	if !errors.As(err, &failed) || !errors.Is(err, smtplb.ErrTemporary) {
		return fmt.Errorf("no relay is left, and the error is %w", err)
	}
	// What to do with it: wait for failed.RetryAfter, then deliver receipt.Retry(envelope). It is the envelope of those who were deferred.
	if receipt.Count(smtplb.Deferred) == 1 && failed.RetryAfter > 0 {
		fmt.Fprintln(w, "   To be sent again later: failed.RetryAfter says when, receipt.Retry says what.")
	}
	return nil
}

// tell prints what a receipt tells.
func tell(w io.Writer, receipt *smtplb.Receipt) {
	for _, r := range receipt.Recipients {
		if r.Outcome == smtplb.Accepted {
			fmt.Fprintf(w, "   %s: accepted by %s\n", r.Addr, r.Relay)
		} else {
			fmt.Fprintf(w, "   %s: %v: %v\n", r.Addr, r.Outcome, r.Err()) // Err is a *smtplb.RelayError where a relay was tried
		}
	}
	for _, a := range receipt.Attempts {
		if a.Err == nil {
			fmt.Fprintf(w, "     %s: ok\n", a.Relay)
		} else {
			fmt.Fprintf(w, "     %v\n", a.Err) // it begins with the relay's name
		}
	}
}
