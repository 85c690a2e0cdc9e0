package main

import (
	"fmt"
	"time"

	"github.com/smtplb/smtplb/smtptest"
)

var relayNames = []string{"relay-a", "relay-b", "relay-c"}

// startRelays starts the demo's relays on loopback addresses. They are as real ones are: nothing is taken without STARTTLS and AUTH, and an
// answer takes a moment (without it, the 3,000 messages are gone before one sees the bar). Close them when done.
func startRelays() []*smtptest.Server {
	var relays []*smtptest.Server
	for _, name := range relayNames {
		r := smtptest.NewServer(smtptest.WithHostname(name+".example.com"), smtptest.WithRequireTLS(), smtptest.WithAuth("quickstart", "secret of "+name))
		r.On(smtptest.Mail).Delay(12 * time.Millisecond)
		relays = append(relays, r)
	}
	return relays
}

// outage is what happens to one of the relays.
type outage struct {
	relay      *smtptest.Server
	name       string
	from, till time.Time // zero: not yet
	err        error     // why it didn't come back
}

// begin kills the relay with the next message that it stores, at the worst of all moments: the message is safe, and nobody is told. All its
// connections are reset, and new ones are refused.
func (o *outage) begin() string {
	o.relay.On(smtptest.EndOfData).Times(1).Kill()
	o.from = time.Now()
	return o.name + " is killed"
}

// end starts the relay again.
func (o *outage) end() string {
	if o.err = o.relay.Restart(); o.err != nil {
		return o.name + " does not come back: " + o.err.Error()
	}
	o.till = time.Now()
	return o.name + " is back"
}

// story tells what happened, by what the relay stored.
func (o *outage) story() string {
	switch {
	case o.from.IsZero():
		return ""
	case o.err != nil:
		return fmt.Sprintf("%s was killed and could not be started again: %v\n", o.name, o.err)
	case o.till.IsZero():
		return o.name + " was killed.\n"
	}
	since := 0
	for _, m := range o.relay.Messages() {
		if m.Time.After(o.till) {
			since++
		}
	}
	return fmt.Sprintf("%s was killed, came back %.1f s later, and has stored %d messages since.\n", o.name, o.till.Sub(o.from).Seconds(), since)
}

// stored returns what all the relays have stored.
func stored(relays []*smtptest.Server) []*smtptest.Message {
	var all []*smtptest.Message
	for _, r := range relays {
		all = append(all, r.Messages()...)
	}
	return all
}
