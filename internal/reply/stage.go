package reply

// A Stage is a step of an SMTP conversation. A reply, or the lack of one, means different things at different stages.
type Stage uint8

// The stages, in the order in which a conversation passes them.
const (
	StageNone     Stage = iota
	StageDial           // name resolution and connecting
	StageTLS            // the TLS handshake, implicit or after STARTTLS
	StageBanner         // the greeting (RFC 5321 §3.1)
	StageHello          // EHLO or HELO, before or after TLS
	StageStartTLS       // the STARTTLS command (RFC 3207)
	StageAuth           // AUTH and its challenges (RFC 4954)
	StageMail           // MAIL FROM
	StageRcpt           // RCPT TO
	StageData           // DATA, before its 354
	StageBody           // the message, up to the terminator
	StageFinal          // after the commit point, waiting for the reply to the message
	StageReset          // RSET
	StageQuit           // QUIT
	StageNoop           // NOOP on an idle connection; no message is concerned
)

var stageNames = [...]string{"", "dial", "tls", "banner", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "body", "final", "rset", "quit", "noop"}

// String returns the stage's name in lower case, "" for StageNone.
func (s Stage) String() string {
	if int(s) < len(stageNames) {
		return stageNames[s]
	}
	return "invalid"
}

// A Failure says why a stage ended without a reply that could be used.
type Failure uint8

// The failures.
const (
	FailNone        Failure = iota
	FailDNS                 // the relay's name did not resolve
	FailConnect             // the connection could not be made
	FailTimeout             // our timeout for the stage passed
	FailEOF                 // the relay closed the connection
	FailReset               // the connection broke: reset, broken pipe, any other I/O error
	FailMalformed           // what came is not an SMTP reply, or exceeds the bounds
	FailOutOfStep           // a reply that cannot belong here: 3xx to MAIL, 2xx to DATA, bytes nobody asked for
	FailTLS                 // the handshake or a record failed
	FailCertificate         // the certificate was not accepted
	FailCapability          // the relay lacks what we require: STARTTLS, AUTH, a mechanism
	FailAuth                // our side refused the authentication: a wrong server signature, no token, a forbidden mechanism
	FailToken               // our side could not get credentials: the source of tokens failed
	FailLocal               // our side is out of something that a connection needs: files, memory
	FailCanceled            // the caller's context was cancelled, or the pool was closed
	FailDeadline            // the caller's deadline passed, or too little of it is left to commit
	FailSource              // the source of the message failed
)

var failureNames = [...]string{"", "dns", "connect", "timeout", "eof", "reset", "malformed", "out of step", "tls", "certificate", "capability", "auth", "token", "local", "canceled", "deadline", "source"}

// String returns the failure's name in lower case, "" for FailNone.
func (f Failure) String() string {
	if int(f) < len(failureNames) {
		return failureNames[f]
	}
	return "invalid"
}
