package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// report compares what the pool reported with what the relays stored. Messages are counted whole, by their worst recipient; what must not
// happen, lost and duplicated, is counted for each recipient of each message.
type report struct {
	sent, accepted, unknown, deferred, failed int // messages, as reported

	unknownStored  int // of the unknown ones, those that are stored for all of their unknown recipients
	deferredStored int // of the deferred ones, those stored for a deferred recipient: sending them again would duplicate them
	failedOver     int // messages that took more than one relay

	lost       int // recipients reported accepted whose message no relay stored
	duplicated int // recipients whose message is stored more than once

	problems []string // each lost or duplicated one in words
	elapsed  time.Duration
}

// copyOf is one message for one recipient.
type copyOf struct{ messageID, recipient string }

// audit counts. The truth is stored, all that the relays hold.
func audit(results []result, stored []*smtptest.Message) *report {
	copies := map[copyOf]int{}
	for _, m := range stored {
		for _, to := range m.To {
			copies[copyOf{m.MessageID(), to}]++
		}
	}
	rep := &report{}
	for _, r := range results {
		rep.sent++
		if r.receipt == nil { // the envelope was at fault, nothing was tried
			rep.failed++
			continue
		}
		if len(r.receipt.Attempts) > 1 {
			rep.failedOver++
		}
		unknownMissing, deferredStored := false, false
		for _, rcpt := range r.receipt.Recipients {
			c := copyOf{r.receipt.ID, rcpt.Addr}
			n := copies[c]
			switch rcpt.Outcome {
			case smtplb.Accepted:
				if n == 0 {
					rep.lost++
					rep.problems = append(rep.problems, fmt.Sprintf("lost: %s for %s, which %s accepted", c.messageID, c.recipient, rcpt.Relay))
				}
			case smtplb.Unknown:
				unknownMissing = unknownMissing || n == 0
			case smtplb.Deferred:
				deferredStored = deferredStored || n > 0
			}
			if n > 1 {
				rep.duplicated++
				rep.problems = append(rep.problems, fmt.Sprintf("duplicated: %s for %s is stored %d times", c.messageID, c.recipient, n))
			}
		}
		switch {
		case r.err == nil:
			rep.accepted++
		case r.receipt.Count(smtplb.Unknown) > 0:
			rep.unknown++
			if !unknownMissing {
				rep.unknownStored++
			}
		case r.receipt.Count(smtplb.Deferred) > 0:
			rep.deferred++
			if deferredStored {
				rep.deferredStored++
			}
		default:
			rep.failed++
		}
	}
	return rep
}

// String is the last line of the demo.
func (r *report) String() string {
	line := []string{
		fmt.Sprintf("sent %d", r.sent), fmt.Sprintf("accepted %d", r.accepted), fmt.Sprintf("unknown %d (stored %d)", r.unknown, r.unknownStored),
	}
	if r.deferred > 0 {
		line = append(line, fmt.Sprintf("deferred %d (stored %d)", r.deferred, r.deferredStored))
	}
	if r.failed > 0 {
		line = append(line, fmt.Sprintf("failed %d", r.failed))
	}
	line = append(line,
		fmt.Sprintf("lost %d", r.lost), fmt.Sprintf("duplicated %d", r.duplicated), fmt.Sprintf("failed over %d", r.failedOver),
		fmt.Sprintf("%.1f s", r.elapsed.Seconds()))
	return strings.Join(line, " · ")
}

const unknownMeans = "Unknown: the connection broke when the message had gone out whole and the relay had not answered yet. It may be delivered or not: sending\n" +
	"it again may deliver it twice, so smtplb leaves that to you (Envelope.AtLeastOnce).\n"

// notes explains the last line, where it needs it.
func (r *report) notes(total int) string {
	var b strings.Builder
	if r.sent < total {
		fmt.Fprintf(&b, "Interrupted: %d of %d messages were not begun.\n", total-r.sent, total)
	}
	if r.unknown > 0 {
		b.WriteString(unknownMeans)
	}
	for i, p := range r.problems {
		if i == 10 {
			fmt.Fprintf(&b, "… and %d more\n", len(r.problems)-i)
			break
		}
		fmt.Fprintln(&b, p)
	}
	b.WriteString("In the last line: messages (accepted: a relay took it over for every recipient); only lost (accepted, but not stored) and duplicated\n" +
		"(stored twice) are counted for each recipient.\n\n")
	return b.String()
}

// printTable tells for each relay what the pool reports and, under "stored", what the relay itself holds.
func printTable(w io.Writer, stats smtplb.Stats, relays []*smtptest.Server) {
	fmt.Fprintln(w, "\n           |  messages         |  recipients                   |              breaker")
	fmt.Fprintln(w, "relay      |  tried  moved on  |  accepted  unknown    stored  |  connections  opened")
	for i, s := range stats.Relays {
		own := relays[i].Stats()
		fmt.Fprintf(w, "%-10s | %6d %9d  | %9d %8d %9d  | %12d %6d×\n", s.Name, s.Attempts, s.Away, s.Accepted, s.Unknown, own.Recipients, own.Connections, s.Trips)
	}
	fmt.Fprintln(w)
}
