// Activepassive sends all mail through a primary relay, and through a standby only while the primary is down.
//
//	go run ./examples/activepassive
//
// It starts both relays inside its process, kills the primary, and starts it again. It takes a second, sends nothing anywhere else, and prints which
// relay took how many messages, and how the pool's view of the primary changed:
//
//	all is well: primary 20, standby 0
//	primary is killed
//	  primary is open: …
//	the standby has taken over: primary 0, standby 20
//	primary is started again
//	  primary is half-open
//	  primary is in slow start
//	the primary has it all again: primary 20, standby 0
//	every message was accepted, and none is stored twice: 3 of them needed a second relay, of 61
//
// (more such lines, and other numbers in the last one: they depend on the moment.)
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

func main() {
	if err := demo(os.Stdout); err != nil {
		log.Fatal(err)
	}
}

// config is the part to copy: the standby's tier is used only when the first has nobody who can take a message.
func config(primary, standby string, tell func(smtplb.RelayEvent)) smtplb.Config {
	return smtplb.Config{
		Relays: []smtplb.Relay{
			{
				Name: "primary", Addr: primary,
				// Three faults in a row, and the primary is left alone; then one message at a time asks whether it is back, until two have
				// gone well. By default these are 5 faults and 15 s, up to 5 min: this demo is over in one.
				Breaker: smtplb.Breaker{Consecutive: 3, OpenFor: 200 * time.Millisecond, MaxOpen: 200 * time.Millisecond},
			},
			{Name: "standby", Addr: standby, Tier: 1},
		},
		Hooks: smtplb.Hooks{RelayState: tell}, // somebody should look after the primary
	}
}

func demo(w io.Writer) error {
	primary, standby := smtptest.NewServer(), smtptest.NewServer() // in the place of real ones
	defer primary.Close()
	defer standby.Close()

	last := ""
	events := make(chan smtplb.RelayEvent, 100) // a hook may be called in any goroutine
	pool, err := smtplb.New(config(primary.Addr, standby.Addr, func(e smtplb.RelayEvent) {
		select {
		case events <- e:
		default: // a hook doesn't wait
		}
	}))
	if err != nil {
		return err
	}
	defer pool.Close()

	sent, hops := 0, 0
	// send sends a message, and tells which relay took it.
	send := func() (relay string, err error) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		sent++
		receipt, err := pool.Deliver(ctx, &smtplb.Envelope{
			From: "app@example.com", To: []string{fmt.Sprintf("customer-%d@example.org", sent)},
			Body: smtplb.Bytes([]byte("From: app@example.com\r\nSubject: Hello\r\n\r\nHello.\r\n")),
		})
		if err != nil {
			return "", err
		}
		hops += len(receipt.Attempts) - 1
		for len(events) > 0 {
			e := <-events
			if e.State == last { // its circuit breaker has moved: half-open, it lets one message after the other try
				continue
			}
			last = e.State
			fmt.Fprintf(w, "  %s is %s", e.Relay, strings.Replace(e.State, "slow", "in slow", 1))
			if e.State == "open" { // else it is why it opened last
				fmt.Fprintf(w, ": %s", e.Reason)
			}
			fmt.Fprintln(w)
		}
		return receipt.Recipients[0].Relay, nil
	}
	// sendUntil sends until a relay has taken five messages in a row.
	sendUntil := func(relay string) error {
		for inARow, deadline := 0, time.Now().Add(30*time.Second); inARow < 5; {
			took, err := send()
			switch {
			case err != nil:
				return err
			case took == relay:
				inARow++
			case time.Now().After(deadline):
				return fmt.Errorf("%s still takes the mail, not %s", took, relay)
			default:
				inARow = 0
			}
			<-time.After(10 * time.Millisecond)
		}
		return nil
	}
	count := func(title string) error {
		by := map[string]int{}
		for range 20 {
			relay, err := send()
			if err != nil {
				return err
			}
			by[relay]++
		}
		fmt.Fprintf(w, "%s: primary %d, standby %d\n", title, by["primary"], by["standby"])
		return nil
	}

	if err := count("all is well"); err != nil {
		return err
	}
	primary.Kill()
	fmt.Fprintln(w, "primary is killed")
	if err := sendUntil("standby"); err != nil {
		return err
	}
	if err := count("the standby has taken over"); err != nil {
		return err
	}
	if err := primary.Restart(); err != nil {
		return err
	}
	fmt.Fprintln(w, "primary is started again")
	if err := sendUntil("primary"); err != nil {
		return err
	}
	if err := count("the primary has it all again"); err != nil {
		return err
	}

	stored := map[string]int{}
	for _, relay := range []*smtptest.Server{primary, standby} {
		for _, m := range relay.Messages() {
			stored[m.To[0]]++
		}
	}
	for to, n := range stored {
		if n != 1 {
			return fmt.Errorf("the relays have %d messages to %s", n, to)
		}
	}
	if len(stored) != sent {
		return fmt.Errorf("%d messages were accepted, and the relays have %d", sent, len(stored))
	}
	fmt.Fprintf(w, "every message was accepted, and none is stored twice: %d of them needed a second relay, of %d\n", hops, sent)
	return nil
}
