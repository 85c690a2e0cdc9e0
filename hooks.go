package smtplb

import (
	"context"
	"time"
)

// Hooks are called as things happen. Each may be nil; they run concurrently, in the goroutine in which the thing happens, never
// under a lock, and should return soon. The context of a send's hooks is the caller's, values included.
type Hooks struct {
	// AttemptStart is called before a relay is tried, when a connection slot of it is held (of a message that rode behind another's body the envelope has been sent
	// by then, see Attempt.Rode). The function that it returns may be nil;
	// it is called at the attempt's end.
	AttemptStart func(ctx context.Context, a AttemptInfo) func(Attempt)
	// Done is called at the end of every Deliver, Send and SendMail whose envelope was in order, with what is returned.
	Done func(ctx context.Context, r *Receipt, err error)
	// RelayState may be called in a timer's goroutine. None is begun after Close, but one that is under way then may go on. It is called after a relay's state, or that of its circuit breaker, changed. An authentication failure or a certificate that
	// isn't accepted shows here at once.
	RelayState func(RelayEvent)

	_ struct{}
}

// AttemptInfo is what is known before an attempt.
type AttemptInfo struct {
	EnvelopeID string
	Relay      string
	Number     int           // from 1
	Recipients int           // that the attempt is for
	Wait       time.Duration // for a free connection
}

// RelayEvent is a change of a relay's state.
type RelayEvent struct {
	Relay   string
	State   string    // see RelayStats.State
	Breaker string    // of the circuit breaker: "closed", "open" (nothing goes through), "half-open" (the next message is a probe), "probing"
	Reason  string    // why it is in State
	RetryAt time.Time // when an open breaker lets a probe through, or a relay that is down is checked again; zero otherwise
	Time    time.Time
}
