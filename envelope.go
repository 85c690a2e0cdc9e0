package smtplb

import (
	"context"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/smtplb/smtplb/internal/domain"
	"github.com/smtplb/smtplb/internal/session"
	"github.com/wneessen/go-mail"
)

// Envelope is one message and whom it is for. Deliver neither changes nor keeps it.
type Envelope struct {
	// ID is copied to receipt, hooks and logs; it means nothing to the pool. May be empty.
	ID string
	// From is the reverse-path (RFC 5321 §3.3), without angle brackets. "<>" is the null sender, of bounces; "" is an error.
	From string
	// To are the recipients, without angle brackets: at least one. An address that stands here twice (domains are compared without regard to case, local parts with it) is
	// sent to once, and has a result for each entry.
	To []string
	// Body is the message: header, blank line, text. Required.
	Body Body
	// LineEndings says what becomes of line ends that aren't CRLF. Default: LineEndingsText.
	LineEndings LineEndings
	// Key is what a Hash balancer goes by: all envelopes with the same key, such as a tenant's, leave through the same relay while it can be used. At most 1,024 bytes; may be empty.
	Key string
	// Stream names the traffic class that the message belongs to, see Config.Streams: "bulk", say, which then doesn't delay the others. A name that Config.Streams doesn't have is no error, and its mail is like that of any other class without
	// settings: ordinary mail, for which a Route.Streams may have the name all the same. So a typo is silent; Explain shows the route. At most 64 bytes; may be empty.
	Stream string
	// Prefer names a relay to try first: see Receipt.Retry. Where it has no free connection it is waited for, up to 30 s; where it is sick, or unknown, others are
	// tried at once.
	Prefer string
	// DSN asks for delivery status notifications. nil: as the relay does by itself.
	DSN *DSN
	// RequireTLS asks each relay on the way to pass the message on over verified TLS only, or not at all (RFC 8689). Relays that don't offer REQUIRETLS, or whose own
	// certificate isn't verified, are skipped.
	RequireTLS bool
	// RequireAll sends to all recipients, in one transaction, or to none. A relay that takes fewer recipients at once than there are can't be used, nor one that a Route keeps from a recipient; where that leaves none, it is an error.
	// Where a relay refuses one of them, it does so to all; where a Route fails or defers one, too, and to fail counts before to defer. RecipientResult.Because tells the others of whom it was said: an address that a relay doesn't know is no reason to take them off a list.
	// Who is discarded by a Route is not one of them: he is Discarded, whatever becomes of them.
	RequireAll bool
	// AtLeastOnce sends again where the outcome is unknown, the same bytes, to the same relay first. The recipient may get the message twice. Default: at most once.
	AtLeastOnce bool

	greylisted *greylisting // set by Receipt.Retry

	_ struct{}
}

// greylisting is who was greylisted by whom. It does not change.
type greylisting struct {
	prefer string            // the Envelope.Prefer that goes with it: where the caller has set another, that counts
	relays map[string]string // by address, as it stands in Envelope.To
}

// greylister is the relay that a recipient was greylisted by, as far as Receipt.Retry has told; "" for none.
func (e *Envelope) greylister(addr string) string {
	if e.greylisted == nil || e.greylisted.prefer != e.Prefer {
		return ""
	}
	return e.greylisted.relays[addr]
}

const (
	maxKey    = 1024 // bytes of Envelope.Key
	maxStream = 64   // of Envelope.Stream
)

// LineEndings says what becomes of line ends in a Body that aren't CRLF, the only one that SMTP knows (RFC 5321 §2.3.8).
type LineEndings uint8

const (
	// LineEndingsText: a lone LF, the line end of text files on most systems, becomes CRLF; a lone CR is an error.
	LineEndingsText LineEndings = iota
	// LineEndingsStrict: a lone LF or CR is an error.
	LineEndingsStrict
	// LineEndingsLenient: a lone LF or CR becomes CRLF. SendMail does so.
	LineEndingsLenient
)

// String returns "text", "strict" or "lenient".
func (l LineEndings) String() string {
	return nameOf([]string{"text", "strict", "lenient"}, int(l), "LineEndings")
}

type bodyKind uint8

const (
	bodyNone bodyKind = iota
	bodyBytes
	bodyFile
	bodyReader
	bodyMessage
	bodySpent // a Reader of which a part was read
	bodyKept  // what was read or rendered before: see content
)

// Body is where a message comes from: Bytes, File or Reader. It is read once, whole, in the goroutine of the caller (a File or Bytes of a DeliverAll in one of its own), before any relay is tried, so that
// every attempt sends the same bytes and a source that fails half-way is never mistaken for the end of the message. A message larger than Config.SpillSize is read into a temporary
// file, unless it lies in memory as it is to be sent. The zero value is no message, which is an error.
//
// The header goes out as it is, Bcc fields included, as with net/smtp; that it has a From field, or is there at all, is not looked at. Lines may have 998 bytes (RFC 5322 §2.1.1); NUL is an error. A final line end is added where
// there is none.
type Body struct {
	kind bodyKind
	b    []byte
	path string
	r    io.Reader
	msg  *mail.Msg
	kept *content
}

// Bytes is a message in memory. It must not be changed before the send returns; it is not copied where its line ends are in order.
func Bytes(b []byte) Body { return Body{kind: bodyBytes, b: b} }

// File is a message in a file.
func File(path string) Body { return Body{kind: bodyFile, path: path} }

// Reader is a message that is read from r, once. Where r is an io.Closer too, it stays open.
func Reader(r io.Reader) Body { return Body{kind: bodyReader, r: r} }

// NewEnvelope renders a go-mail message, once, and takes the envelope from it: the sender is the message's EnvelopeFrom, else its From, and the recipients
// are those of To, Cc and Bcc. What go-mail itself refused, such as an address with a typo, is not in msg: check the errors of its methods. (Its
// AttachFile returns none: it leaves out a file that it can't open.) msg isn't needed afterwards. go-mail itself fills in a missing Date and Message-ID in msg.
//
// A message larger than 1 MiB lies in a temporary file (in os.TempDir(), see Config.SpillDir) for as long as the envelope, or a Retry of it, can be reached; or in memory where no
// file can be made. It can be delivered as often as is wanted. Attachments that are signed (S/MIME, DKIM), or not in base64, are in memory while they are rendered: unlike Send, NewEnvelope doesn't
// bound how many at a time.
func NewEnvelope(msg *mail.Msg) (*Envelope, error) {
	e, err := addressed(msg)
	if err != nil {
		return nil, err
	}
	in := newIntake(context.Background(), nil, e.LineEndings)
	defer in.free()
	in.raw = true // what becomes of its line ends may still be changed
	if err := in.body(&e.Body); err != nil {
		return nil, err
	}
	c, err := in.content()
	if err != nil {
		return nil, err
	}
	if e.Body = (Body{kind: bodyKept, kept: &c}); c.file == nil {
		e.Body = Bytes(c.body)
	}
	return e, nil
}

// addressed makes an envelope whose body is msg, not rendered yet.
func addressed(msg *mail.Msg) (*Envelope, error) {
	if msg == nil {
		return nil, &EnvelopeError{Field: "Body", Reason: "the message is nil"}
	}
	from, err := msg.GetSender(false)
	if err != nil {
		return nil, &EnvelopeError{Field: "From", Reason: "the message has no sender (did its From return an error?)", Err: err}
	}
	to, err := msg.GetRecipients()
	if err != nil {
		return nil, &EnvelopeError{Field: "To", Reason: "the message has no recipients (did its To return an error?)", Err: err}
	}
	for i := range to {
		to[i] = bareAddress(to[i])
	}
	return &Envelope{From: bareAddress(from), To: to, Body: Body{kind: bodyMessage, msg: msg}}, nil
}

// bareAddress removes the angle brackets that net/mail puts around an address.
func bareAddress(s string) string {
	if strings.HasPrefix(s, "<") && strings.HasSuffix(s, ">") && len(s) > 2 {
		return s[1 : len(s)-1]
	}
	return s
}

// message is an envelope made ready: checked, read, and in the one form in which every attempt sends it.
type message struct {
	from       string // canonical, "" for the null sender
	fromDomain string // A-label, "" for the null sender
	content
	utf8 bool // an address or a header needs SMTPUTF8
	dsn  *session.DSN
}

// checkAddresses fills d's recipients from the envelope.
func (d *delivery) checkAddresses() error {
	e, m := d.env, &d.msg
	for _, x := range [...]struct {
		field, value string
		most         int
	}{{"ID", e.ID, math.MaxInt}, {"Key", e.Key, maxKey}, {"Stream", e.Stream, maxStream}, {"Prefer", e.Prefer, math.MaxInt}} {
		if len(x.value) > x.most {
			return &EnvelopeError{Field: x.field, Reason: fmt.Sprintf("has %d bytes; at most %d", len(x.value), x.most)}
		}
		if strings.ContainsFunc(x.value, isControl) {
			return &EnvelopeError{Field: x.field, Reason: "has control characters"}
		}
	}
	switch e.From {
	case "":
		return &EnvelopeError{Field: "From", Reason: `is empty; the null sender is "<>"`}
	case "<>":
	default:
		a, err := domain.ParseAddress(e.From)
		if err != nil {
			return &EnvelopeError{Field: "From", Reason: addressReason(e.From, err), Err: err}
		}
		m.from, m.fromDomain, m.utf8 = a.String(), a.Domain, a.UTF8
	}
	if len(e.To) == 0 {
		return &EnvelopeError{Field: "To", Reason: "there are no recipients"}
	}
	var err error
	if m.dsn, err = e.DSN.session(); err != nil {
		return err
	}
	for i, to := range e.To {
		a, err := domain.ParseAddress(to)
		if err != nil {
			return &EnvelopeError{Field: fmt.Sprintf("To[%d]", i), Reason: addressReason(to, err), Err: err}
		}
		m.utf8 = m.utf8 || a.UTF8
		d.addRecipient(a.String(), a.Key())
		if by := e.greylister(to); by != "" {
			d.rcpts[d.entry[i]].greylister = by
			d.sticks = true
		}
	}
	return nil
}

// addressReason is err with a hint at what people write in the place of a bare address.
func addressReason(addr string, err error) string {
	hint := ""
	switch {
	case strings.TrimSpace(addr) != addr:
		hint = ": it has a blank at its start or end"
	case strings.ContainsAny(addr, "<>"):
		hint = ": write the bare address, without a name and without angle brackets"
	case strings.ContainsAny(addr, ",;"):
		hint = ": one address for each entry"
	case strings.Count(addr, "@") > 1:
		hint = `: it has more than one "@"`
	}
	return err.Error() + hint
}
