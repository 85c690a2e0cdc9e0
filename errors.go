package smtplb

import (
	"errors"
	"fmt"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What the error of a send can be asked with errors.Is. See SendError for how they go together.
var (
	// ErrClosed: the pool is shut down or closed.
	ErrClosed = errors.New("smtplb: pool is closed")
	// ErrNoRelay: no relay that may take the message is available now: all are down, busy for longer than Config.MaxWait, or not worth a further attempt (Retry.Budget).
	ErrNoRelay = errors.New("smtplb: no relay available")
	// ErrThrottled: the relays that may take the message want less mail now.
	ErrThrottled = errors.New("smtplb: throttled")
	// ErrTemporary: nobody was accepted, nobody is unknown, and at least one recipient is worth another try: sending the whole
	// message again later delivers nothing twice.
	ErrTemporary = errors.New("smtplb: temporary failure")
	// ErrPermanent: every recipient failed for good, or the envelope itself is at fault: sending it again would fail again.
	ErrPermanent = errors.New("smtplb: permanent failure")
	// ErrUnknown: for at least one recipient it can't be known whether a relay accepted the message.
	ErrUnknown = errors.New("smtplb: outcome unknown")
	// ErrPartial: some recipients were accepted and others were not.
	ErrPartial = errors.New("smtplb: not all recipients accepted")
	// ErrDiscarded: the recipients who weren't accepted were Discarded by a Route, at least one. There is nothing to be done about them.
	ErrDiscarded = errors.New("smtplb: discarded by a route")
)

// SendError is the error of a send whose envelope was in order, but not accepted for every recipient.
//
// errors.Is answers with the classes above: ErrUnknown if any recipient's outcome is unknown; ErrPartial if some were accepted;
// and only if nobody was accepted and nobody is unknown, ErrPermanent (all failed, but for those that were discarded) or ErrTemporary. ErrDiscarded matches where nobody failed, was deferred or is unknown. So a caller who sends the whole
// message again on ErrTemporary never sends twice. ErrNoRelay, ErrThrottled and ErrClosed match in addition, where that
// is why, and so do the errors of the caller's context. errors.As finds the *RelayError of each recipient and attempt. It finds a *textproto.Error
// of class 5 only where the send matches ErrPermanent, one of class 4 where it is worth another try, and none where the outcome is unknown, so that code
// written for net/smtp, which drops mail on a 5xx, drops none that could still be sent.
type SendError struct {
	// RetryAfter is how long to wait before Receipt.Retry's envelope is worth sending: the longest of the deferred recipients'.
	RetryAfter time.Duration
	// Receipt is what the send returned beside the error.
	Receipt *Receipt

	cause     error // why no (further) attempt was made; nil where attempts decided
	throttled bool  // a relay wanted less mail
}

// Error tells the counts, for how many that is because of another (RecipientResult.Because), and what the relays said. It names no recipient (addresses don't belong in logs by default) and no secret.
func (e *SendError) Error() string {
	var b strings.Builder
	b.WriteString("smtplb: ")
	n := len(e.Receipt.Recipients)
	if n == 1 {
		b.WriteString(e.Receipt.Recipients[0].Outcome.String())
	} else {
		sep := ""
		for o := Accepted; o <= Discarded; o++ {
			if k := e.Receipt.Count(o); k > 0 {
				fmt.Fprintf(&b, "%s%d of %d %v", sep, k, n, o)
				if k = e.innocent(o); k > 0 {
					fmt.Fprintf(&b, " (%d because of another)", k)
				}
				sep = ", "
			}
		}
	}
	if e.cause != nil {
		b.WriteString(": ")
		b.WriteString(oneLine(strings.TrimPrefix(e.cause.Error(), "smtplb: ")))
	}
	said := 0
	for _, err := range e.distinct() {
		if said == 5 {
			b.WriteString("; …")
			break
		}
		b.WriteString("; ")
		b.WriteString(err.Error())
		said++
	}
	return b.String()
}

// innocent counts those that have the outcome because of another recipient.
func (e *SendError) innocent(o Outcome) int {
	n := 0
	for i := range e.Receipt.Recipients {
		if x := &e.Receipt.Recipients[i]; x.Outcome == o && x.Because != "" {
			n++
		}
	}
	return n
}

// distinct returns the errors of attempts and recipients, each relay's words once.
func (e *SendError) distinct() []error {
	var list []error
	seen := map[string]bool{}
	add := func(err error) {
		if err == nil || err == e.cause {
			return
		}
		if s := err.Error(); !seen[s] {
			seen[s] = true
			list = append(list, err)
		}
	}
	for i := range e.Receipt.Attempts {
		add(e.Receipt.Attempts[i].Err)
	}
	for i := range e.Receipt.Recipients {
		add(e.Receipt.Recipients[i].err)
	}
	return list
}

// Is tells the error's classes.
func (e *SendError) Is(target error) bool {
	accepted, unknown := e.Receipt.Count(Accepted), e.Receipt.Count(Unknown)
	deferred, failed := e.Receipt.Count(Deferred), e.Receipt.Count(Failed)
	switch target {
	case ErrUnknown:
		return unknown > 0
	case ErrPartial:
		return accepted > 0
	case ErrPermanent:
		return accepted == 0 && unknown == 0 && deferred == 0 && failed > 0
	case ErrTemporary:
		return accepted == 0 && unknown == 0 && deferred > 0
	case ErrDiscarded:
		return unknown == 0 && deferred == 0 && failed == 0
	case ErrThrottled:
		return e.throttled && deferred > 0
	}
	return false
}

// As finds the *textproto.Error that goes with the outcome: a 5xx only if every recipient failed, so that a caller of net/smtp who drops mail
// on a 5xx drops none that is deferred.
func (e *SendError) As(target any) bool {
	t, ok := target.(**textproto.Error)
	if !ok || e.Is(ErrUnknown) {
		return false
	}
	for i := range e.Receipt.Recipients {
		x := &e.Receipt.Recipients[i]
		if c := x.Reply.Code; x.Outcome == Deferred && c >= 400 && c < 500 || c >= 500 && e.Is(ErrPermanent) {
			*t = &textproto.Error{Code: c, Msg: x.Reply.Text}
			return true
		}
	}
	switch {
	case e.Receipt.Count(Deferred) > 0:
		*t = &textproto.Error{Code: 451, Msg: e.Error()}
		return true
	case e.Is(ErrPermanent) && slices.ContainsFunc(e.Receipt.Recipients, func(x RecipientResult) bool { return errors.As(x.err, new(*RouteError)) }):
		*t = &textproto.Error{Code: 550, Msg: e.Error()}
		return true
	}
	return false
}

// Unwrap returns why sending stopped, and what the relays said.
func (e *SendError) Unwrap() []error {
	list := e.distinct()
	for i, err := range list { // which *textproto.Error there is to find, As decides for the send as a whole
		if re := (*RelayError)(nil); errors.As(err, &re) {
			quiet := *re
			quiet.quiet = true
			list[i] = &quiet
		}
	}
	if e.cause != nil {
		list = append([]error{e.cause}, list...)
	}
	return list
}

// RelayError is what one relay said, or failed to say, at one stage.
type RelayError struct {
	Relay   string // its name
	Stage   Stage
	Reply   Reply  // the zero Reply where none could be used
	Failure string // why there was none: "dns", "connect", "timeout", "eof", "reset", "malformed", "out of step", "tls", "certificate", "capability", "auth", "token", "local" (this process is out of files), "canceled", "deadline"; "" where there was a reply
	Err     error  // what lies behind Failure; may be nil

	quiet bool // As finds nothing
}

// Error tells relay, stage and reply or failure, on one line.
func (e *RelayError) Error() string {
	switch {
	case e.Reply.Code != 0:
		return fmt.Sprintf("%s: %s: %s", e.Relay, e.Stage, e.Reply)
	case e.Err != nil:
		return fmt.Sprintf("%s: %s: %s: %s", e.Relay, e.Stage, e.Failure, oneLine(e.Err.Error()))
	}
	return fmt.Sprintf("%s: %s: %s", e.Relay, e.Stage, e.Failure)
}

// Unwrap returns Err.
func (e *RelayError) Unwrap() error { return e.Err }

// As lets a *textproto.Error be found, which is how net/smtp tells a reply.
func (e *RelayError) As(target any) bool {
	if t, ok := target.(**textproto.Error); ok && e.Reply.Code != 0 && !e.quiet {
		*t = &textproto.Error{Code: e.Reply.Code, Msg: e.Reply.Text}
		return true
	}
	return false
}

// RouteError says that a Route of the configuration decided what became of a recipient. No relay was asked.
type RouteError struct {
	Route  string // its name
	Reason string // Route.Text
}

// Error tells the route and its reason.
func (e *RouteError) Error() string {
	if e.Reason == "" {
		return "route " + e.Route
	}
	return "route " + e.Route + ": " + e.Reason
}

// EnvelopeError says that an envelope can't be sent by any relay. It matches ErrPermanent; nothing was sent.
type EnvelopeError struct {
	Field  string // "From", "To[2]", "Body", …; "" for the envelope itself
	Reason string
	Err    error // what lies behind; may be nil
}

// Error tells the field and the reason.
func (e *EnvelopeError) Error() string {
	if e.Field == "" {
		return "smtplb: " + e.Reason
	}
	return "smtplb: Envelope." + e.Field + ": " + e.Reason
}

// Is matches ErrPermanent.
func (e *EnvelopeError) Is(target error) bool { return target == ErrPermanent }

// Unwrap returns Err.
func (e *EnvelopeError) Unwrap() error { return e.Err }

// SourceError says that the caller's own source of the message (a Reader, a File, a go-mail message's attachment) failed, or the wait for leave to render it. Nothing was sent
// to any relay; it matches ErrTemporary.
type SourceError struct{ Err error }

// Error tells what the source said.
func (e *SourceError) Error() string { return "smtplb: reading the message: " + oneLine(e.Err.Error()) }

// Is matches ErrTemporary.
func (e *SourceError) Is(target error) bool { return target == ErrTemporary }

// Unwrap returns Err.
func (e *SourceError) Unwrap() error { return e.Err }

// ConfigError is one fault of a Config. New returns all faults at once, joined; errors.As finds the first.
type ConfigError struct {
	Path   string // "Relays[2].Addr"
	Reason string
}

// Error tells the path and the reason. It holds no credential.
func (e *ConfigError) Error() string { return "smtplb: " + e.Path + ": " + e.Reason }

// oneLine makes a text of somebody else's fit to be printed: no control characters, and not longer than a few hundred bytes.
func oneLine(s string) string {
	const most = 400
	if len(s) <= most && !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return s
	}
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	q := strconv.QuoteToGraphic(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}
