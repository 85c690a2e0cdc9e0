package smtplb_test

// This file is the specification of what every failure means, to be held against the code by TestFailureMatrix and its neighbours, and the source of docs/failures.md.
// It was written by hand from RFC 5321 and the contracts in the package documentation, not from what the code does.
//
// A cell is three words.
//
//	The recipients that were not settled before:
//	  F   another relay tries; where there is none they are deferred
//	  Fr  another relay tries; where all refuse in this way they have failed
//	  P   failed
//	  D   deferred, and no other relay tries
//	  A   unknown: the relay may have accepted the message
//	  R   the same relay tries, on a new connection, free of charge: the old one was stale
//	  I   their result stands, whatever comes of this
//
//	What the relay's circuit breaker counts:
//	  =  an answer   +  a fault   .  nothing   !  a fault that opens it at once, for minutes   ~  nothing, but the relay is left alone for 10 s
//
//	The connection:
//	  K  kept, and used again   X  closed
//
// A cell that can't be says why, behind a dash.

// failureRow is what becomes of a message when a relay fails in one way at one stage.
type failureRow struct {
	stage, fault string
	fresh        string // on a new connection
	reused       string // on one that has carried a message before; "": the same
	but          but    // where something else decides: see matrixModes and matrixTLS
}

// but holds a row's exceptions, by mode or TLS.
type but map[string]string

// matrixModes are the ways in which an envelope and a message go over the wire.
var matrixModes = []struct{ name, what string }{
	{"stepwise", "one command, one reply: a relay without PIPELINING"},
	{"pipelined", "the envelope in one write, then the message (RFC 2920)"},
	{"rider", "the message whose envelope rode behind another message's body"},
	{"driver", "the message behind whose body another one's envelope rode"},
	{"bdat", "a relay with `Relay.Chunking`: BDAT in the place of DATA (RFC 3030)"},
}

// matrixTLS are the ways in which a connection is secured.
var matrixTLS = []string{"plain", "starttls", "implicit"}

// matrixFaults are what can go wrong, as far as the wire is concerned.
var matrixFaults = []struct{ name, what string }{
	{"4xx", "a temporary refusal with no more than its code"},
	{"5xx", "a permanent refusal with no more than its code"},
	{"421", "the relay says that it closes the connection (RFC 5321 §3.8)"},
	{"timeout", "silence for as long as `Relay.Timeouts` allows, and the connection stays open"},
	{"EOF", "the relay ends the connection"},
	{"RST", "the connection breaks; at dialling, it is refused"},
	{"malformed", "bytes that are no SMTP reply"},
	{"TLS error", "a TLS record that was tampered with, or an alert"},
}

// matrixStages are the steps of a conversation, in their order.
var matrixStages = []struct{ name, title, what string }{
	{"dial", "Connecting", ""},
	{"tls", "TLS handshake", "Nothing ever falls back to plain text."},
	{"banner", "Greeting", "A greeting never fails a message: nothing was said about it."},
	{"ehlo", "EHLO", "After STARTTLS, too. HELO is tried after 500, 501, 502 and 504, but only where nothing is required that EHLO has to offer: STARTTLS or AUTH."},
	{"starttls", "STARTTLS", ""},
	{"auth", "AUTH", "One more try, with a new token, is made where `Relay.Auth` gave the refused one."},
	{"mail", "MAIL", "A refused sender is the relay's policy: another relay may think otherwise."},
	{"rcpt", "RCPT", "A refusal is about its own recipient; the others go on. All else is about those that were not refused with a 5xx before. The message is not sent to a relay that refused everybody."},
	{"data", "DATA, before the message", ""},
	{"body", "The message, before its end", "Whatever happens here, the message isn't ended: the relay can't take half of it for the whole. A reply that comes now, a 2xx among them, can't be the one to the message."},
	{"final", "After the end of the message", "Once the end of the message has gone out the relay may have accepted it, whether its reply comes or not (RFC 1047). With Envelope.AtLeastOnce another try is made in the place of `Unknown`: at the same relay, then at another."},
	{"rset", "RSET", "It is sent in front of an envelope that follows a refused one, and counts as the beginning of its MAIL. The refused one's result stands in any case."},
	{"quit", "QUIT", "Sent in the background when a connection is retired. The results were settled before."},
}

const (
	noConnection = "– there is no connection yet"
	onlyFresh    = "– it is past this"
	noTLS        = "– no TLS"
	noReply      = "– no replies in a handshake"
	notAsked     = "– STARTTLS isn't asked for"
	notYetTLS    = "– TLS has not begun"
	ridesOnOpen  = "– it rides on a connection that is past this"
	notYetRidden = "– nobody rides before the message in front is on its way"
	noData       = "– BDAT takes the place of DATA"
	freshNoRSET  = "– a new connection has nothing to reset"
	ridesAlone   = "– no RSET with riders"
	quitAlone    = "– nobody rides on a connection's last message"
)

var failureTable = []failureRow{
	// stage, fault, new connection, used again, exceptions
	{"dial", "4xx", noConnection, onlyFresh, nil},
	{"dial", "5xx", noConnection, onlyFresh, nil},
	{"dial", "421", noConnection, onlyFresh, nil},
	{"dial", "timeout", "F + X", onlyFresh, nil},
	{"dial", "EOF", noConnection, onlyFresh, nil},
	{"dial", "RST", "F + X", onlyFresh, nil},
	{"dial", "malformed", noConnection, onlyFresh, nil},
	{"dial", "TLS error", noConnection, onlyFresh, nil},

	{"tls", "4xx", noReply, onlyFresh, nil},
	{"tls", "5xx", noReply, onlyFresh, nil},
	{"tls", "421", noReply, onlyFresh, nil},
	{"tls", "timeout", "F + X", onlyFresh, but{"plain": noTLS}},
	{"tls", "EOF", "F + X", onlyFresh, but{"plain": noTLS}},
	{"tls", "RST", "F + X", onlyFresh, but{"plain": noTLS}},
	{"tls", "malformed", "F + X", onlyFresh, but{"plain": noTLS}},
	{"tls", "TLS error", "F + X", onlyFresh, but{"plain": noTLS}},

	{"banner", "4xx", "F + X", onlyFresh, nil},
	{"banner", "5xx", "F + X", onlyFresh, nil},
	{"banner", "421", "F + X", onlyFresh, nil},
	{"banner", "timeout", "F + X", onlyFresh, nil},
	{"banner", "EOF", "F + X", onlyFresh, nil},
	{"banner", "RST", "F + X", onlyFresh, nil},
	{"banner", "malformed", "F + X", onlyFresh, nil},
	{"banner", "TLS error", "F + X", onlyFresh, but{"plain": noTLS, "starttls": notYetTLS}},

	{"ehlo", "4xx", "F + X", onlyFresh, nil},
	{"ehlo", "5xx", "F + X", onlyFresh, nil},
	{"ehlo", "421", "F + X", onlyFresh, nil},
	{"ehlo", "timeout", "F + X", onlyFresh, nil},
	{"ehlo", "EOF", "F + X", onlyFresh, nil},
	{"ehlo", "RST", "F + X", onlyFresh, nil},
	{"ehlo", "malformed", "F + X", onlyFresh, nil},
	{"ehlo", "TLS error", "F + X", onlyFresh, but{"plain": noTLS}},

	{"starttls", "4xx", "F + X", onlyFresh, but{"plain": notAsked, "implicit": notAsked}},
	{"starttls", "5xx", "F + X", onlyFresh, but{"plain": notAsked, "implicit": notAsked}},
	{"starttls", "421", "F + X", onlyFresh, but{"plain": notAsked, "implicit": notAsked}},
	{"starttls", "timeout", "F + X", onlyFresh, but{"plain": notAsked, "implicit": notAsked}},
	{"starttls", "EOF", "F + X", onlyFresh, but{"plain": notAsked, "implicit": notAsked}},
	{"starttls", "RST", "F + X", onlyFresh, but{"plain": notAsked, "implicit": notAsked}},
	{"starttls", "malformed", "F + X", onlyFresh, but{"plain": notAsked, "implicit": notAsked}},
	{"starttls", "TLS error", notYetTLS, onlyFresh, nil},

	{"auth", "4xx", "F + X", onlyFresh, nil},
	{"auth", "5xx", "F ! X", onlyFresh, nil}, // a login that is tried again and again gets locked
	{"auth", "421", "F + X", onlyFresh, nil},
	{"auth", "timeout", "F + X", onlyFresh, nil},
	{"auth", "EOF", "F + X", onlyFresh, nil},
	{"auth", "RST", "F + X", onlyFresh, nil},
	{"auth", "malformed", "F + X", onlyFresh, nil},
	{"auth", "TLS error", "F + X", onlyFresh, but{"plain": noTLS}},

	{"mail", "4xx", "F = K", "", but{"driver": notYetRidden}},
	{"mail", "5xx", "Fr = K", "", but{"driver": notYetRidden}},
	{"mail", "421", "F + X", "R . X", but{"rider": "R . X", "driver": notYetRidden}},
	{"mail", "timeout", "F + X", "", but{"rider": "R . X", "driver": notYetRidden}},
	{"mail", "EOF", "F + X", "R . X", but{"rider": "R . X", "driver": notYetRidden}},
	{"mail", "RST", "F + X", "R . X", but{"rider": "R . X", "driver": notYetRidden}},
	{"mail", "malformed", "F + X", "", but{"driver": notYetRidden}},
	{"mail", "TLS error", "F + X", "", but{"plain": noTLS, "driver": notYetRidden}},

	{"rcpt", "4xx", "F = K", "", but{"driver": notYetRidden}},
	{"rcpt", "5xx", "P = K", "", but{"driver": notYetRidden}},
	{"rcpt", "421", "F + X", "", but{"driver": notYetRidden}},
	{"rcpt", "timeout", "F + X", "", but{"driver": notYetRidden}},
	{"rcpt", "EOF", "F + X", "", but{"driver": notYetRidden}},
	{"rcpt", "RST", "F + X", "", but{"driver": notYetRidden}},
	{"rcpt", "malformed", "F + X", "", but{"driver": notYetRidden}},
	{"rcpt", "TLS error", "F + X", "", but{"plain": noTLS, "driver": notYetRidden}},

	{"data", "4xx", "F = K", "", but{"driver": notYetRidden, "bdat": noData}},
	{"data", "5xx", "P = K", "", but{"driver": notYetRidden, "bdat": noData}},
	{"data", "421", "F + X", "", but{"driver": notYetRidden, "bdat": noData}},
	{"data", "timeout", "F + X", "", but{"driver": notYetRidden, "bdat": noData}},
	{"data", "EOF", "F + X", "", but{"driver": notYetRidden, "bdat": noData}},
	{"data", "RST", "F + X", "", but{"driver": notYetRidden, "bdat": noData}},
	{"data", "malformed", "F + X", "", but{"driver": notYetRidden, "bdat": noData}},
	{"data", "TLS error", "F + X", "", but{"plain": noTLS, "driver": notYetRidden, "bdat": noData}},

	{"body", "4xx", "F = X", "", nil},
	{"body", "5xx", "P = X", "", nil},
	{"body", "421", "F + X", "", nil},
	{"body", "timeout", "F + X", "", nil},
	{"body", "EOF", "F + X", "", nil},
	{"body", "RST", "F + X", "", nil},
	{"body", "malformed", "F + X", "", nil},
	{"body", "TLS error", "F + X", "", but{"plain": noTLS}},

	// The envelope behind a message that was not accepted goes over another connection.
	{"final", "4xx", "F = K", "", but{"driver": "F = X"}},
	{"final", "5xx", "P = K", "", but{"driver": "P = X"}},
	{"final", "421", "F + X", "", nil},
	{"final", "timeout", "A + X", "", nil},
	{"final", "EOF", "A + X", "", nil},
	{"final", "RST", "A + X", "", nil},
	{"final", "malformed", "A + X", "", nil},
	{"final", "TLS error", "A + X", "", but{"plain": noTLS}},

	// Here the columns tell what becomes of the message whose envelope follows the RSET.
	{"rset", "4xx", freshNoRSET, "R . X", but{"rider": ridesAlone, "driver": ridesAlone}},
	{"rset", "5xx", freshNoRSET, "R . X", but{"rider": ridesAlone, "driver": ridesAlone}},
	{"rset", "421", freshNoRSET, "R . X", but{"rider": ridesAlone, "driver": ridesAlone}},
	{"rset", "timeout", freshNoRSET, "F + X", but{"rider": ridesAlone, "driver": ridesAlone}},
	{"rset", "EOF", freshNoRSET, "R . X", but{"rider": ridesAlone, "driver": ridesAlone}},
	{"rset", "RST", freshNoRSET, "R . X", but{"rider": ridesAlone, "driver": ridesAlone}},
	{"rset", "malformed", freshNoRSET, "F + X", but{"rider": ridesAlone, "driver": ridesAlone}},
	{"rset", "TLS error", freshNoRSET, "F + X", but{"plain": noTLS, "rider": ridesAlone, "driver": ridesAlone}},

	{"quit", "4xx", "I . X", "", but{"rider": quitAlone, "driver": quitAlone}},
	{"quit", "5xx", "I . X", "", but{"rider": quitAlone, "driver": quitAlone}},
	{"quit", "421", "I . X", "", but{"rider": quitAlone, "driver": quitAlone}},
	{"quit", "timeout", "I . X", "", but{"rider": quitAlone, "driver": quitAlone}},
	{"quit", "EOF", "I . X", "", but{"rider": quitAlone, "driver": quitAlone}},
	{"quit", "RST", "I . X", "", but{"rider": quitAlone, "driver": quitAlone}},
	{"quit", "malformed", "I . X", "", but{"rider": quitAlone, "driver": quitAlone}},
	{"quit", "TLS error", "I . X", "", but{"plain": noTLS, "rider": quitAlone, "driver": quitAlone}},
}

// replyRow is a reply of which the first digit doesn't tell all. Its cells know two words more for the recipients:
//
//	L  another relay tries, unless it is known to take no larger messages; where there is none they have failed
//	G  the same relay, in another transaction on the same connection; where it took nobody in this one, as F
//
// An empty cell is as that of the class of the code in failureTable. Within the message a reply means what it means after it, but the connection is closed.
type replyRow struct {
	about                         string // whose fault it is
	reply                         string
	auth, mail, rcpt, data, final string
}

// replyTable is read from top to bottom: the enhanced code (RFC 3463) goes before the basic code, and that before the words.
var replyTable = []replyRow{
	// about, reply, AUTH, MAIL, RCPT, DATA, after the message
	{"the recipient", "550 5.1.1 No such user", "", "", "P = K", "", ""},
	{"the recipient", "550 5.1.2 No such domain", "", "", "P = K", "", ""},
	{"the recipient", "501 5.1.3 Bad address", "", "F = X", "P = K", "F = X", "F = X"},
	{"the recipient", "550 5.1.4 Ambiguous address", "", "", "P = K", "", ""},
	{"the recipient", "551 5.1.6 Moved", "", "", "P = K", "", ""},
	{"the recipient", "556 5.1.10 No mail here", "", "", "P = K", "", ""},
	{"the recipient", "550 5.2.1 Mailbox disabled", "", "", "P = K", "", ""},
	{"the recipient", "552 5.2.2 Mailbox full", "", "", "P = K", "", ""},
	{"the recipient", "530 5.1.1 No such user", "", "F ! X", "P = K", "F ! X", "F ! X"}, // the enhanced code first

	{"the sender", "553 5.1.7 Bad sender address", "", "P = K", "P = K", "P = K", "P = K"},
	{"the sender", "550 5.1.8 Bad sender domain", "", "P = K", "P = K", "P = K", "P = K"},
	{"the sender", "550 5.7.27 The sender takes no mail", "", "P = K", "P = K", "P = K", "P = K"},

	{"the message", "552 5.3.4 Message too big", "", "L = K", "P = K", "L = K", "L = K"},
	{"the message", "550 5.3.4 Message too big", "", "L = K", "P = K", "L = K", "L = K"},
	{"the message", "552 Message too big", "", "L = K", "P = K", "L = K", "L = K"},

	{"a limit of the relay", "552 5.5.3 Enough of them", "", "", "G = K", "", ""},
	{"a limit of the relay", "550 5.5.3 Enough of them", "", "", "G = K", "", ""},
	{"a limit of the relay", "552 Too many recipients", "", "L = K", "G = K", "L = K", "L = K"},
	{"a limit of the relay", "550 Too many recipients", "", "", "G = K", "", ""}, // RFC 5321 §4.5.3.1.10
	{"a limit of the relay", "452 4.5.3 Enough of them", "F + X", "F ~ K", "G = K", "", ""},
	{"a limit of the relay", "452 Too many recipients", "F + X", "", "G = K", "", ""},

	{"what the relay can do", "553 5.6.7 Not in this alphabet", "", "Fr = K", "Fr = K", "Fr = K", "Fr = K"},
	{"what the relay can do", "555 Parameter not known", "", "Fr = K", "Fr = K", "Fr = K", "Fr = K"},

	// After the message 5.7.8 and 5.7.9 are policy about the message, and mustn't close the relay to all others.
	{"our login", "530 5.7.0 Authentication required", "", "F ! X", "F ! X", "F ! X", "F ! X"},
	{"our login", "534 Too weak", "", "F ! X", "F ! X", "F ! X", "F ! X"},
	{"our login", "535 5.7.8 Wrong password", "", "F ! X", "F ! X", "F ! X", "F ! X"},
	{"our login", "538 Encryption required", "", "F ! X", "F ! X", "F ! X", "F ! X"},
	{"our login", "550 5.7.8 Log in first", "", "F ! X", "F ! X", "F ! X", "P = K"},
	{"our login", "554 5.7.9 Log in first", "", "F ! X", "F ! X", "F ! X", "P = K"},

	{"the protocol", "500 What", "", "F = X", "F = X", "F = X", "F = X"},
	{"the protocol", "501 Syntax", "", "F = X", "F = X", "F = X", "F = X"},
	{"the protocol", "502 5.5.1 Not implemented", "", "F = X", "F = X", "F = X", "F = X"},
	{"the protocol", "503 Bad sequence", "", "F = X", "F = X", "F = X", "F = X"},
	{"the protocol", "504 Parameter", "", "F = X", "F = X", "F = X", "F = X"},

	{"our quota at the relay", "550 5.4.5 Enough for today", "F ~ X", "F ~ K", "F ~ K", "F ~ K", "F ~ K"},
	{"our quota at the relay", "550 Daily sending quota exceeded", "F ~ X", "F ~ K", "F ~ K", "F ~ K", "F ~ K"},
	{"our quota at the relay", "550 Too many messages", "F ~ X", "F ~ K", "F ~ K", "F ~ K", "F ~ K"},

	// The relay is then left alone for ten minutes with mail from this sender's domain, where there is another one.
	{"this sender at this relay", "554 5.7.1 Relay access denied", "", "Fr = K", "Fr = K", "Fr = K", "Fr = K"},
	{"this sender at this relay", "550 Relaying denied", "", "Fr = K", "Fr = K", "Fr = K", "Fr = K"},
	{"this sender at this relay", "554 Email address is not verified", "", "Fr = K", "Fr = K", "Fr = K", "Fr = K"},

	{"the message, or policy", "554 5.7.1 Spam", "", "", "", "", ""},
	{"the message, or policy", "571 Spam", "", "", "", "", ""},

	// RFC 3463 §3.4: the mail system itself is at fault. It counts, whatever becomes of the message.
	{"the relay itself", "554 5.3.0 Out of order", "", "Fr + K", "P = K", "P + K", "P + K"},
	{"the relay itself", "452 4.3.1 Disk full", "F + X", "F + K", "F + K", "F + K", "F + K"},

	{"the recipient", "450 4.2.1 Mailbox busy", "F + X", "F = K", "F = K", "F = K", "F = K"},
	{"the recipient", "450 4.2.0 Greylisted, come back later", "F + X", "F = K", "D = K", "F = K", "F = K"}, // another relay would begin to wait anew
	{"policy", "451 4.7.1 Come back later", "F + X", "F = K", "F = K", "F = K", "F = K"},

	{"our rate", "454 Throttling failure: Maximum sending rate exceeded", "F ~ X", "F ~ K", "F ~ K", "F ~ K", "F ~ K"},
	{"our rate", "432 4.3.2 Concurrent connections limit exceeded", "F ~ X", "F ~ K", "F ~ K", "F ~ K", "F ~ K"},
	{"our rate", "450 4.7.1 Too much mail", "F ~ X", "F ~ K", "F ~ K", "F ~ K", "F ~ K"},
	{"our rate", "421 4.7.0 Too many connections", "F ~ X", "F ~ X", "F ~ X", "F ~ X", "F ~ X"},
	{"the connection", "421 Too many messages in this connection", "F ~ X", "F ~ X", "F ~ X", "F ~ X", "F ~ X"},
	{"the connection", "421 4.4.2 Connection expired", "F ~ X", "F ~ X", "F ~ X", "F ~ X", "F ~ X"},
}
