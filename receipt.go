package smtplb

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/smtplb/smtplb/internal/reply"
)

// Outcome is what became of one recipient. The zero value is invalid: no Receipt holds it.
type Outcome uint8

const (
	_ Outcome = iota

	// Accepted: a relay took the message over for this recipient (a 2xx after the message, RFC 5321 §4.2.5).
	Accepted
	// Failed: permanent. Sending the same message to this recipient again would fail again.
	Failed
	// Deferred: temporary. No relay accepted the message for this recipient; it is safe to send it again, see Receipt.Retry.
	Deferred
	// Unknown: the connection broke, or the caller left, after the relay may have accepted the message and before its reply could
	// be read (RFC 1047). Sending it again may deliver it twice; not sending it again may lose it. Only the caller can choose.
	Unknown
	// Discarded: a Route of the configuration has the message thrown away for this recipient (RouteDiscard). No relay was asked.
	Discarded
)

var outcomeNames = [...]string{"invalid", "accepted", "failed", "deferred", "unknown", "discarded"}

// String returns "accepted", "failed", "deferred", "unknown" or "discarded".
func (o Outcome) String() string {
	if int(o) < len(outcomeNames) {
		return outcomeNames[o]
	}
	return outcomeNames[0]
}

// MarshalText makes an Outcome readable in JSON and logs.
func (o Outcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// Stage is the step of an SMTP conversation at which something happened.
type Stage string

// The stages, in the order in which a conversation passes them.
const (
	StageDial     Stage = "dial"     // name resolution and connecting
	StageTLS      Stage = "tls"      // the TLS handshake
	StageBanner   Stage = "banner"   // the relay's greeting
	StageHello    Stage = "ehlo"     // EHLO or HELO
	StageStartTLS Stage = "starttls" // the STARTTLS command
	StageAuth     Stage = "auth"     // AUTH
	StageMail     Stage = "mail"     // MAIL FROM
	StageRcpt     Stage = "rcpt"     // RCPT TO
	StageData     Stage = "data"     // DATA, before the message
	StageBody     Stage = "body"     // the message, up to its terminator
	StageFinal    Stage = "final"    // from the commit point to the reply to the message
)

// Reply is a reply of a relay. The zero value stands for none.
type Reply struct {
	Code     int    // 200 to 599; 0: there was no reply
	Enhanced string // enhanced status code (RFC 3463) such as "4.7.1"; "" where the reply had none
	Text     string // as the relay sent it, lines joined by "\n"; the enhanced code stands in it
}

// String returns the reply on one line, control characters quoted, at most a few hundred bytes long.
func (r Reply) String() string {
	if r.Code == 0 {
		return ""
	}
	return reply.Reply{Code: r.Code, Text: r.Text}.String()
}

func publicReply(r reply.Reply) Reply {
	return Reply{Code: r.Code, Enhanced: enhancedString(r.Enhanced), Text: r.Text}
}

func enhancedString(e reply.Enhanced) string {
	switch e { // the common ones without an allocation
	case reply.Enhanced{}:
		return ""
	case reply.Enhanced{Class: 2}:
		return "2.0.0"
	case reply.Enhanced{Class: 2, Subject: 6}:
		return "2.6.0"
	}
	return e.String()
}

// RecipientResult is what became of one recipient.
type RecipientResult struct {
	Addr    string  // as it stands in the envelope
	Outcome Outcome // never the zero value
	Relay   string  // the name of the relay whose word this is; "" where nothing was attempted
	Stage   Stage   // where that relay said it, or failed to; "" where nothing was attempted
	Reply   Reply   // the relay's reply; the zero Reply where there was none
	QueueID string  // the relay's name for the message, read from its reply, informational; "" where it said none

	// Because, with Envelope.RequireAll, is the Addr of the recipient whose refusal this is, by a relay or by a Route, where that is another one: Outcome, Reply and Err are then about that one, and nothing was said against this one that would have
	// led to the same. "" where they are about this recipient, or about the message as a whole.
	Because string

	// RetryAfter, of a deferred recipient, is how long to wait before sending again. It is 0 for the others.
	RetryAfter time.Duration
	// Greylisted, of a deferred recipient, says that the relay wants to see the same message again later: the retry should go to
	// the same relay. Receipt.Retry arranges that.
	Greylisted bool

	err error
}

// Err returns why the recipient was not accepted, nil for an accepted one. The error is a *RelayError where a relay was tried.
func (r RecipientResult) Err() error { return r.err }

// Timings are how long the parts of an attempt took; zero where a part did not happen, as with a reused connection.
type Timings struct {
	Wait     time.Duration // for a relay with a free connection
	Dial     time.Duration // name resolution and connecting
	TLS      time.Duration // the handshake
	Hello    time.Duration // banner and EHLO
	Auth     time.Duration
	Envelope time.Duration // MAIL to the reply to DATA
	Body     time.Duration // writing the message
	Final    time.Duration // waiting for the reply to the message
}

// Attempt is one try to hand the message to one relay.
type Attempt struct {
	Relay    string
	Stage    Stage // how far it came: StageFinal where the relay answered the message
	Reused   bool  // on a connection that had been used before
	Rode     bool  // its envelope went out behind the body of another message, which saves a round trip
	Hedged   bool  // in a race of connections (see Retry.NoHedging). Err nil: the relay was slow, and another, whose attempt is the next for these recipients, was ready first; the message wasn't offered here, and this one is counted nowhere. Else it was asked beside a slow one, and failed
	Redialed bool  // the reused connection proved stale, or the relay lost the envelope that rode, and a new one took its place (RFC 5321 §3.8; counted nowhere)
	Start    time.Time
	Duration time.Duration // from Start, without Timings.Wait
	Timings  Timings       // of the last transaction, where recipients were spread over several
	Offered  int           // recipients that the attempt was for
	Accepted int           // recipients that the relay took the message over for
	Err      error         // nil where the relay took the message over for somebody; a *RelayError otherwise
}

// Receipt tells what became of every recipient of one envelope, and which relays were tried. It is the caller's. The methods of a nil Receipt,
// which goes with an *EnvelopeError, tell of no recipients.
type Receipt struct {
	ID         string            // Envelope.ID
	Recipients []RecipientResult // one for each entry of Envelope.To, in its order
	Attempts   []Attempt         // in the order in which they were made; none where no relay was available

	// The first recipient and attempt lie here: a message for one recipient that goes out at the first try costs one allocation.
	rcpt1    [1]RecipientResult
	attempt1 [1]Attempt

	body Body // what Retry sends where the envelope's own Body can be read only once
}

// Count returns how many recipients have the outcome.
func (r *Receipt) Count(o Outcome) int {
	if r == nil {
		return 0
	}
	n := 0
	for i := range r.Recipients {
		if r.Recipients[i].Outcome == o {
			n++
		}
	}
	return n
}

// Retry returns a copy of e for the deferred recipients only, to be sent after SendError.RetryAfter; nil if there are none. Who was greylisted is offered to the same relay first, which knows for how long it has
// waited: Prefer names that relay, the first of several; where several relays did so, the copy knows the others' too, as long as Prefer isn't changed, and is sent in as many parts (with RequireAll it can't be). e must be the envelope that r is the receipt of; of a Send, one with the same From, whose
// Body is not looked at. A Reader body, which was
// read, is replaced by what was read from it, which a large one keeps a temporary file open for as long as r, or the copy, can be reached; a File is read again.
//
// Recipients whose outcome is Unknown are not in it: sending to them again may deliver twice.
func (r *Receipt) Retry(e *Envelope) *Envelope {
	if r == nil {
		return nil
	}
	var to []string
	for i := range r.Recipients {
		if r.Recipients[i].Outcome == Deferred {
			to = append(to, r.Recipients[i].Addr)
		}
	}
	if to == nil {
		return nil
	}
	again := *e
	again.To = to
	r.prefer(e, &again)
	if r.body.kind != bodyNone {
		again.Body = r.body
	}
	return &again
}

// prefer has each greylisted recipient of again, the retry of e, offered to its relay first. Who was deferred for another reason this time still waits at the relay of the time before.
func (r *Receipt) prefer(e, again *Envelope) {
	by := greylisting{relays: make(map[string]string)}
	news := false
	for i := range r.Recipients {
		x := &r.Recipients[i]
		if x.Outcome != Deferred {
			continue
		}
		relay := e.greylister(x.Addr)
		if x.Greylisted {
			relay, news = x.Relay, true
		}
		if relay == "" {
			continue
		}
		by.relays[x.Addr] = relay
		if by.prefer == "" {
			by.prefer = relay
		}
	}
	if news {
		again.Prefer, again.greylisted = by.prefer, &by
	}
}

// String returns a line such as "3 recipients: 2 accepted, 1 deferred; tried relay-a, relay-b".
func (r *Receipt) String() string {
	if r == nil {
		return "no receipt"
	}
	b := fmt.Appendf(nil, "%s:", recipientsOf(len(r.Recipients)))
	sep := " "
	for o := Accepted; o <= Discarded; o++ {
		if n := r.Count(o); n > 0 {
			b = fmt.Appendf(b, "%s%d %v", sep, n, o)
			sep = ", "
		}
	}
	for i := range r.Attempts {
		if i == 0 {
			b = append(b, "; tried "...)
		} else {
			b = append(b, ", "...)
		}
		b = append(b, r.Attempts[i].Relay...)
	}
	return string(b)
}

// recipientsOf tells how many recipients there are.
func recipientsOf(n int) string {
	if n == 1 {
		return "1 recipient"
	}
	return fmt.Sprintf("%d recipients", n)
}

// LogValue logs the counts, not the recipients' addresses.
func (r *Receipt) LogValue() slog.Value {
	if r == nil {
		return slog.StringValue("none")
	}
	attrs := []slog.Attr{slog.String("id", r.ID), slog.Int("attempts", len(r.Attempts))}
	for o := Accepted; o <= Discarded; o++ {
		if n := r.Count(o); n > 0 {
			attrs = append(attrs, slog.Int(o.String(), n))
		}
	}
	return slog.GroupValue(attrs...)
}
