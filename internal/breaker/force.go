package breaker

import "time"

// Force is Allow for a caller who goes past an open breaker, because nearly all relays have one. What the message says of the relay counts all the same: a Success
// ends the opening, so that the next message is a probe, a Long outcome prolongs it, and if the breaker has closed by then, it counts as any.
func (b *Breaker) Force() Permit {
	b.mu.Lock()
	defer b.mu.Unlock() // nothing was changed
	return Permit{b: b, gen: b.retries, forced: true}
}

// forcedLocked takes the report of a message that was let past the breaker.
func (b *Breaker) forcedLocked(o Outcome) {
	now := time.Now()
	switch before := b.State(); {
	case before == Closed:
		b.countLocked(o)
	case before == Open && o == Success:
		b.retryAt = now.Add(minOpen)
		b.armLocked(now, minOpen)
	case before == Open && o == Long:
		b.openLocked(o, causeLong, now)
		b.longer = true
	case o == Long: // the probe decides, but Long says so from now on
		b.cause = causeLong
		b.longer = true
	}
}

// Long reports whether the breaker opened for a Long outcome, and has not closed since.
func (b *Breaker) Long() bool {
	if b.State() == Closed {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock() // nothing was changed
	return b.cause == causeLong && b.State() != Closed
}
