// Package smtplb spreads an application's outgoing mail over several SMTP relays, and always tells what became of every recipient.
//
// # How to use it
//
//  1. Describe the relays in a [Config], by hand or with [ParseRelay], and make one [Pool] with [New]. New connects to nothing.
//  2. Send with [Pool.Send] (go-mail messages), [Pool.Deliver] (an [Envelope] with bytes, a file or a reader), or [Pool.SendMail] (in
//     the place of net/smtp.SendMail). Each may be called from any number of goroutines.
//  3. A nil error means that a relay accepted the message for every recipient. Otherwise the [Receipt] tells, for each recipient, an
//     [Outcome]: [Accepted], [Failed], [Deferred] or [Unknown], or [Discarded] by a [Route]; and the error matches [ErrTemporary],
//     [ErrPermanent], [ErrPartial], [ErrUnknown] or [ErrDiscarded].
//  4. What is deferred goes out again, later, by [Receipt.Retry].
//  5. At the end, [Pool.Shutdown] lets the sends in progress finish, and [Pool.Close] doesn't.
//
// # What it promises
//
// A recipient moves to another relay only while it is certain that no relay accepted the message for it: before the end of the message
// was sent, or after a definitive refusal. When the end was sent and no answer could be read, the outcome is Unknown, and stays so unless
// [Envelope].AtLeastOnce is set.
//
// A message is read or rendered once, whole, in the calling goroutine, before any relay is tried; all attempts send the same bytes.
//
// Only what a relay did wrong counts against it: not a refused recipient, not a caller who leaves.
//
// Nothing waits for ever: every wait ends with its context, plus at most 5 s for the answer to a message that was already sent. No lock is
// held across I/O or a callback. No goroutine outlives Close.
//
// TLS is required and verified by default, and credentials are never printed.
//
// Package smtptest has fake relays for tests.
package smtplb
