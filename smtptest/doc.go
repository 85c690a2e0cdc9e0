// Package smtptest provides scriptable fake SMTP relays for tests, as
// net/http/httptest provides fake web servers.
//
//  1. Start a relay: [NewServer] listens on 127.0.0.1, [NewNetwork] gives a
//     network in memory whose relays also work in a testing/synctest bubble.
//  2. Say what it should do wrong, if anything: s.On(stage)… (see [Server.On]).
//  3. Let the code under test send its mail to s.Addr.
//  4. Look at what came: [Server.WaitFor], [Server.Messages], [Server.Stats],
//     [Server.Transcript].
//  5. [Server.Close]. It names the connection that hangs, if one does.
//
// Without a script the relay is a correct one: RFC 5321, pipelining (RFC 2920),
// STARTTLS (RFC 3207), AUTH (RFC 4954), BDAT (RFC 3030, where CHUNKING is among
// its extensions), the body ends at CRLF.CRLF and nowhere else, and a message is
// stored before the reply says so.
package smtptest
