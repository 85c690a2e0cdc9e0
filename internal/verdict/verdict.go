// Package verdict is one pure table: what a reply, or the lack of one, at a stage of an SMTP conversation means.
package verdict

import "github.com/smtplb/smtplb/internal/reply"

// A Fact is what happened, as the session saw it.
type Fact struct {
	Stage     reply.Stage
	Reply     reply.Reply   // the zero Reply: none could be used
	Failure   reply.Failure // why there was none
	Committed bool          // the terminator's dot may have reached the relay
	Reused    bool          // the connection was idle before this transaction
	First     bool          // no byte of an answer to this transaction had been received before
	LongWait  bool          // for FailDeadline, and for a FailTimeout that was cut short by the caller's deadline: this stage alone lasted long enough to be the relay's fault
	Shortened bool          // for FailTimeout: the stage's time was cut below its own timeout for the caller's deadline
}

// A Move is what becomes of the recipients that the fact is about.
type Move uint8

const (
	Invalid   Move = iota
	Accepted       // the relay took over
	NextRelay      // certain that no relay accepted: another relay may try
	Failed         // permanent, tell the caller
	Deferred       // temporary, and no other relay is tried: greylisting, the caller's cancellation, a local error
	Unknown        // ambiguous
	Again          // a new transaction on the same connection if it accepted at least one recipient, else NextRelay (too many recipients)
	Redial         // a stale connection: once more on a fresh connection of the same relay, counted nowhere
	Ignore         // the result stays as it was (RSET, QUIT)
)

// Blame is what the fact says of the relay.
type Blame uint8

const (
	NotCounted  Blame = iota // says nothing about the relay
	Answered                 // the relay did its job, whatever it said
	Fault                    // counts on the breaker
	AuthFault                // credentials refused: long open
	ConfigFault              // a certificate that is not accepted: long open
	Throttle                 // the relay asks for less
	CoolDown                 // a quota, or a limit on connection age or messages: leave it alone for a while, nothing is wrong with it
)

// A Need restricts which other relays may try (with NextRelay).
type Need uint8

const (
	NeedNothing    Need = iota
	NeedLarger          // only a relay whose SIZE is larger or absent, else Failed
	NeedCapability      // only a relay that is capable of what the message needs, else Failed
)

// A Verdict is the table's answer.
type Verdict struct {
	Move     Move
	Blame    Blame
	Discard  bool // the connection must not be used again
	Refused  bool // with NextRelay: a definitive 5xx of this relay's policy; the recipient is failed when every eligible relay gave one
	Apart    bool // keep (relay, sender domain) apart for 10 minutes
	Need     Need
	Greylist bool // with Deferred: stays with this relay
}
