// Package backoff knows what a relay's reply says about how much it wants to be sent, and how much to send it then. It starts nothing, asks no clock and knows no pool:
//
//   - Classify (classify.go) reads a refusal, by the rules of the caller, of the relay's profile, and its own, and makes a Signal of it.
//   - State (state.go, rate.go) keeps, for one relay or for one relay and one mailbox provider, what follows from the signals: how many connections, how many messages a second, and until when none at all.
//
// Nothing here opens a circuit breaker: a relay that wants less mail is well.
package backoff

import (
	"strconv"
	"time"
)

// A Kind is what a refusal says about the amount of mail.
type Kind uint8

// The kinds.
const (
	None        Kind = iota // nothing: session.md §3 alone decides
	Throttle                // messages come too fast
	Connections             // too many connections at a time
	Quota                   // what may be sent in an hour, a day or a month is sent
	Greylist                // this recipient later, over the same relay; nothing follows for a State
	Block                   // the relay doesn't want this sender or its mail, in whatever amount; nothing follows for a State
)

var kindNames = [...]string{"none", "throttle", "connections", "quota", "greylist", "block"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "Kind(" + strconv.Itoa(int(k)) + ")"
}

// A Scope is whom a signal is about.
type Scope uint8

// The scopes.
const (
	Account  Scope = iota // the account, or the address that we come from: all that the relay gets
	Provider              // what the relay gets for one mailbox provider
)

func (s Scope) String() string {
	if s == Provider {
		return "provider"
	}
	return "account"
}

// A Signal is what one reply says. The zero Signal says nothing.
type Signal struct {
	Kind    Kind
	Scope   Scope
	BackOff bool          // of a Throttle: back-off mode at once
	For     time.Duration // how long the reply (10 s are added, an hour is the most), or the rule, says to wait; 0: it doesn't. Kept for Kind None too: the message may come again then
	Rule    *Rule         // which said so; nil: a built-in one
	Reply   string        // the reply's beginning, for people

	// What the caller of State.Signal may add.
	Began time.Time // when the message, or the connection, was begun. One that was before the last decrease says nothing new. Zero: unknown
	InUse int       // of Connections: how many there were with the one that was refused; 0: unknown
}
