package smtptest

import (
	"bytes"
	"fmt"
	"net/mail"
	"strings"
	"time"
)

// Message is one message that a relay took over. It is shared by all who ask for
// it and must not be modified.
type Message struct {
	From       string     // the reverse-path without its angle brackets; "" is the null sender
	To         []string   // the accepted recipients, in the order they were named
	MailParams []string   // the parameters of MAIL as they were sent, "BODY=8BITMIME" say
	RcptParams [][]string // the parameters of RCPT, for each of To

	Data   []byte      // header and body as sent, dots unstuffed, line ends untouched
	Header mail.Header // nil if net/mail could not parse it

	QueueID string    // what the relay called the message; unique for the life of the Server
	Auth    string    // the user that had authenticated, "" for none
	TLS     bool      // whether it came over TLS
	HELO    string    // the argument of the last EHLO or HELO
	Conn    int       // the number of the connection, see Transcript.Conn
	Time    time.Time // when it was stored
}

// Body returns what follows the first empty line of Data, nil if there is none.
// It shares its memory with Data.
func (m *Message) Body() []byte {
	if bytes.HasPrefix(m.Data, crlf) {
		return m.Data[2:]
	}
	if _, body, ok := bytes.Cut(m.Data, []byte("\r\n\r\n")); ok {
		return body
	}
	return nil
}

// MessageID returns the Message-ID header field with its angle brackets, "" if
// there is none.
func (m *Message) MessageID() string { return m.Header.Get("Message-ID") }

// String names the message in a line.
func (m *Message) String() string {
	return fmt.Sprintf("%s from <%s> to <%s>, %d bytes", m.QueueID, m.From, strings.Join(m.To, ">, <"), len(m.Data))
}

// Stats counts what a Server has seen since its start or its last Reset.
type Stats struct {
	Connections   int // connections accepted, refused ones included
	Refused       int // connections turned away by WithMaxConns
	Active        int // connections being served now
	MaxActive     int // the most that were served at the same time
	Messages      int // messages stored, or with WithDiscard counted
	Recipients    int // recipients of those messages
	Bytes         int64
	TLSHandshakes int            // completed TLS handshakes
	TLSFailures   int            // failed ones
	Auths         int            // successful AUTH commands
	AuthFailures  int            // refused ones
	Transactions  int            // MAIL commands that were accepted
	Reused        int            // transactions beyond the first on their connection
	EarlyBytes    int            // times that input lay behind a command that must end its group (RFC 2920 §3.1), or behind any command where PIPELINING was not offered
	Commands      map[string]int // by verb in capitals; what is not a command is counted as "?"
}

// Transcript is what was said on one connection.
type Transcript struct {
	Conn   int       // 1 for the first connection of the Server; Reset does not start anew
	Remote string    // the client's address
	Start  time.Time // when it was accepted
	// Lines begin with "C: " (client), "S: " (server) or "-- " (a remark, such as a
	// TLS handshake or a cut). AUTH secrets are replaced by "<redacted>", a body by
	// its length. A server line stands here when it was decided on, which is no proof
	// that it reached the client.
	Lines     []string
	Truncated bool // lines are missing at the end: it had become too long
}

// String returns the lines under a heading.
func (t *Transcript) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "-- connection %d from %s\n", t.Conn, t.Remote)
	for _, l := range t.Lines {
		b.WriteString(l)
		b.WriteByte('\n')
	}
	if t.Truncated {
		b.WriteString("-- (truncated)\n")
	}
	return b.String()
}

const (
	maxTranscript  = 64 << 10 // bytes kept of a connection
	maxTranscripts = 1000     // connections kept, the oldest ones go
)

var crlf = []byte("\r\n")
