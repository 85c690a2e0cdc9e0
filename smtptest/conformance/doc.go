// Package conformance is a kit through which any Go function that sends mail can be
// run, as testing/fstest does it for file systems and testing/slogtest for log
// handlers. Each case is a relay that behaves, or misbehaves, in one way; the sender
// is judged by what the relay stored, and by whether it returned an error.
//
//  1. Wrap the function under test in a [Sender].
//  2. Call [Run] in a test. Each case is a subtest, and says why it matters when it
//     fails. [Check] returns the outcomes instead.
//
// A case fails, too, when the sender leaves a connection or a goroutine behind.
//
// All cases run at the same time, over TCP on 127.0.0.1; the whole kit takes a few
// seconds.
package conformance
