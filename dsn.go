package smtplb

import (
	"fmt"
	"strings"

	"github.com/smtplb/smtplb/internal/session"
)

// DSN asks for delivery status notifications (RFC 3461), which relays send to the envelope's sender. Relays that don't offer DSN are skipped for such a
// message; it is Failed where none offers it. The zero DSN asks for nothing.
type DSN struct {
	// Notify says when a notification is wanted, for every recipient: DSNNever, or any of the others together (DSNSuccess|DSNFailure). 0: as the
	// relay does by itself, which is for failures, and perhaps delays.
	Notify DSNNotify
	// Return says how much of the message a notification of failure brings back. Default: the relay decides.
	Return DSNReturn
	// EnvelopeID comes back in every notification (RFC 3461 §4.4): up to 100 printable ASCII characters. Default: none.
	EnvelopeID string

	_ struct{}
}

// DSNNotify is when notifications are wanted (RFC 3461 §4.1).
type DSNNotify uint8

// The occasions.
const (
	DSNSuccess DSNNotify = 1 << iota // delivered
	DSNFailure                       // could not be delivered
	DSNDelay                         // is late
	DSNNever                         // never; it stands alone
)

// DSNReturn is how much of a message comes back (RFC 3461 §4.3).
type DSNReturn uint8

// The amounts.
const (
	DSNReturnDefault DSNReturn = iota // as the relay decides
	DSNReturnFull                     // all of it
	DSNReturnHeaders                  // its header
)

const maxEnvelopeID = 100 // RFC 3461 §5.4

// session checks d and brings it into the form that goes over the wire.
func (d *DSN) session() (*session.DSN, error) {
	if d == nil || *d == (DSN{}) {
		return nil, nil
	}
	s := new(session.DSN)
	switch {
	case d.Notify >= DSNNever<<1, d.Notify&DSNNever != 0 && d.Notify != DSNNever:
		return nil, &EnvelopeError{Field: "DSN.Notify", Reason: fmt.Sprintf("%d is none; DSNNever stands alone, the others may be joined by |", d.Notify)}
	case d.Notify == DSNNever:
		s.Notify = "NEVER"
	default:
		var when []string
		for i, name := range [...]string{"SUCCESS", "FAILURE", "DELAY"} {
			if d.Notify&(1<<i) != 0 {
				when = append(when, name)
			}
		}
		s.Notify = strings.Join(when, ",")
	}
	switch d.Return {
	case DSNReturnDefault:
	case DSNReturnFull:
		s.Ret = "FULL"
	case DSNReturnHeaders:
		s.Ret = "HDRS"
	default:
		return nil, &EnvelopeError{Field: "DSN.Return", Reason: fmt.Sprintf("%d is not a value of it", d.Return)}
	}
	if len(d.EnvelopeID) > maxEnvelopeID {
		return nil, &EnvelopeError{Field: "DSN.EnvelopeID", Reason: fmt.Sprintf("has %d characters; RFC 3461 allows %d", len(d.EnvelopeID), maxEnvelopeID)}
	}
	var id strings.Builder
	for i := 0; i < len(d.EnvelopeID); i++ {
		switch b := d.EnvelopeID[i]; {
		case b < ' ' || b > '~':
			return nil, &EnvelopeError{Field: "DSN.EnvelopeID", Reason: "has characters that are not printable ASCII"}
		case b == ' ' || b == '+' || b == '=':
			fmt.Fprintf(&id, "+%02X", b) // xtext, RFC 3461 §4
		default:
			id.WriteByte(b)
		}
	}
	s.EnvID = id.String()
	return s, nil
}
