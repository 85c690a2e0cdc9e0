package smtplb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"unicode/utf8"

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
	// Prefer names a relay to try first: see Receipt.Retry. Where it has no free connection it is waited for, up to 30 s; where it is sick, or unknown, others are
	// tried at once.
	Prefer string
	// DSN asks for delivery status notifications. nil: as the relay does by itself.
	DSN *DSN
	// RequireTLS asks each relay on the way to pass the message on over verified TLS only, or not at all (RFC 8689). Relays that don't offer REQUIRETLS, or whose own
	// certificate isn't verified, are skipped.
	RequireTLS bool
	// RequireAll sends to all recipients, in one transaction, or to none. A relay that takes fewer recipients at once than there are can't be used.
	RequireAll bool
	// AtLeastOnce sends again where the outcome is unknown, the same bytes, to the same relay first. The recipient may get the message twice. Default: at most once.
	AtLeastOnce bool

	_ struct{}
}

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

type bodyKind uint8

const (
	bodyNone bodyKind = iota
	bodyBytes
	bodyFile
	bodyReader
	bodyMessage
	bodySpent // a Reader of which a part was read
)

// Body is where a message comes from: Bytes, File or Reader. It is read once, whole, in the goroutine of the caller, before any relay is tried, so that
// every attempt sends the same bytes and a source that fails half-way is never mistaken for the end of the message. The
// zero value is no message, which is an error.
//
// The header goes out as it is, Bcc fields included, as with net/smtp; that it has a From field, or is there at all, is not looked at. Lines may have 998 bytes (RFC 5322 §2.1.1); NUL is an error. A final line end is added where
// there is none.
type Body struct {
	kind bodyKind
	b    []byte
	path string
	r    io.Reader
	msg  *mail.Msg
}

// Bytes is a message in memory. It must not be changed before the send returns; it is not copied where its line ends are in order.
func Bytes(b []byte) Body { return Body{kind: bodyBytes, b: b} }

// File is a message in a file.
func File(path string) Body { return Body{kind: bodyFile, path: path} }

// Reader is a message that is read from r, once. Where r is an io.Closer too, it stays open.
func Reader(r io.Reader) Body { return Body{kind: bodyReader, r: r} }

// NewEnvelope renders a go-mail message, once, and takes the envelope from it: the sender is the message's EnvelopeFrom, else its From, and the recipients
// are those of To, Cc and Bcc. What go-mail itself refused, such as an address with a typo, is not in msg: check the errors of its methods. msg isn't needed afterwards. go-mail itself fills in a missing Date and Message-ID in msg.
func NewEnvelope(msg *mail.Msg) (*Envelope, error) {
	e, err := addressed(msg)
	if err != nil {
		return nil, err
	}
	raw, err := e.Body.read(context.Background(), 0)
	if err != nil {
		return nil, err
	}
	e.Body = Bytes(raw)
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
	wire       []byte // CRLF line ends, dot-stuffed, ends with CRLF
	size       int64  // before dot-stuffing
	eightBit   bool
	utf8       bool
	dsn        *session.DSN
}

// checkAddresses fills d's recipients from the envelope.
func (d *delivery) checkAddresses() error {
	e, m := d.env, &d.msg
	if strings.ContainsFunc(e.ID, isControl) {
		return &EnvelopeError{Field: "ID", Reason: "has control characters"}
	}
	if strings.ContainsFunc(e.Prefer, isControl) {
		return &EnvelopeError{Field: "Prefer", Reason: "has control characters"}
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

// readBody reads the envelope's body whole and brings it into canonical form. Its error is an *EnvelopeError or a *SourceError.
func (d *delivery) readBody(ctx context.Context, limit int64) error {
	e := d.env
	raw, err := e.Body.read(ctx, limit)
	if err != nil {
		return err
	}
	if len(raw) == 0 {
		return &EnvelopeError{Field: "Body", Reason: "the message is empty"}
	}
	d.raw = raw
	return d.msg.canonicalise(raw, e.LineEndings)
}

func (b *Body) read(ctx context.Context, limit int64) ([]byte, error) {
	tooLarge := func() error {
		return &EnvelopeError{Field: "Body", Reason: fmt.Sprintf("is larger than Config.MaxMessageSize, %d bytes", limit)}
	}
	var r io.Reader
	switch b.kind {
	case bodyNone:
		return nil, &EnvelopeError{Field: "Body", Reason: "is missing"}
	case bodySpent:
		return nil, &EnvelopeError{Field: "Body", Reason: "its Reader failed half-way, and what is left of it is not the message: set a new Body"}
	case bodyBytes:
		if limit > 0 && int64(len(b.b)) > limit {
			return nil, tooLarge()
		}
		return b.b, nil
	case bodyFile:
		f, err := os.Open(b.path)
		if err != nil {
			return nil, &SourceError{err}
		}
		defer f.Close()
		r = f
	case bodyReader:
		if b.r == nil {
			return nil, &EnvelopeError{Field: "Body", Reason: "its Reader is nil"}
		}
		r = b.r
	case bodyMessage:
		var buf bytes.Buffer
		if _, err := b.msg.WriteTo(&limitedWriter{&buf, limit}); err != nil {
			if errors.Is(err, errLimit) {
				return nil, tooLarge()
			}
			return nil, &SourceError{err}
		}
		return buf.Bytes(), nil
	}
	if limit > 0 && limit < math.MaxInt64 {
		r = io.LimitReader(r, limit+1)
	}
	all, err := io.ReadAll(contextReader{ctx, r})
	if err != nil {
		return nil, &SourceError{err}
	}
	if limit > 0 && int64(len(all)) > limit {
		return nil, tooLarge()
	}
	return all, nil
}

var errLimit = errors.New("the message is too large")

// limitedWriter refuses what exceeds a limit; 0 or less: none.
type limitedWriter struct {
	buf   *bytes.Buffer
	limit int64
}

func (w *limitedWriter) Write(p []byte) (int, error) {
	if w.limit > 0 && int64(w.buf.Len()+len(p)) > w.limit {
		return 0, errLimit
	}
	return w.buf.Write(p)
}

// contextReader stops between reads when its context has ended.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// maxLine is the longest line, without its CRLF (RFC 5321 §4.5.3.1.6).
const maxLine = 998

// canonicalise checks raw and sets m's wire form. raw itself is used where nothing has to change.
func (m *message) canonicalise(raw []byte, ends LineEndings) error {
	if ends > LineEndingsLenient {
		return &EnvelopeError{Field: "LineEndings", Reason: fmt.Sprintf("%d is not a value of it", ends)}
	}
	if i := bytes.IndexByte(raw, 0); i >= 0 {
		return bodyFault(raw, i, "has a NUL")
	}
	m.eightBit = !ascii(raw)
	if m.eightBit {
		m.utf8 = m.utf8 || headerNeedsUTF8(raw)
	}
	var out []byte // nil as long as raw is in order up to done
	done, size := 0, int64(0)
	lf := -1 // the next LF, or len(raw)
	for start := 0; start < len(raw); {
		// A line runs to the next LF; where lone CRs count as line ends, to the next of either.
		if lf < start {
			if lf = bytes.IndexByte(raw[start:], '\n'); lf < 0 {
				lf = len(raw)
			} else {
				lf += start
			}
		}
		stop, next := lf, lf
		ending := 0 // bytes of the line end that stands there
		if lf < len(raw) {
			next, ending = lf+1, 1
			if lf > start && raw[lf-1] == '\r' {
				stop, ending = lf-1, 2
			}
		}
		if cr := bytes.IndexByte(raw[start:stop], '\r'); cr >= 0 {
			if ends != LineEndingsLenient {
				return bodyFault(raw, start+cr, "has a CR without LF")
			}
			stop, next, ending = start+cr, start+cr+1, 1
		}
		if ending == 1 && ends == LineEndingsStrict {
			return bodyFault(raw, stop, "has an LF without CR")
		}
		if stop-start > maxLine {
			return bodyFault(raw, start, fmt.Sprintf("has a line of %d bytes; SMTP allows %d", stop-start, maxLine))
		}
		dot := stop > start && raw[start] == '.' // RFC 5321 §4.5.2
		size += int64(stop-start) + 2
		if dot || ending != 2 {
			if out == nil {
				out = make([]byte, 0, len(raw)+len(raw)/32+64)
			}
			out = append(out, raw[done:start]...)
			if dot {
				out = append(out, '.')
			}
			out = append(out, raw[start:stop]...)
			out = append(out, '\r', '\n')
			done = next
		}
		start = next
	}
	m.size = size
	if out == nil {
		m.wire = raw
		return nil
	}
	m.wire = append(out, raw[done:]...)
	return nil
}

func bodyFault(raw []byte, at int, what string) error {
	line := bytes.Count(raw[:at], []byte{'\n'}) + 1
	return &EnvelopeError{Field: "Body", Reason: fmt.Sprintf("%s (line %d, byte %d)", what, line, at)}
}

func ascii(b []byte) bool {
	for len(b) >= 8 {
		if (b[0]|b[1]|b[2]|b[3]|b[4]|b[5]|b[6]|b[7])&0x80 != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}

// headerNeedsUTF8 reports whether the header has UTF-8 text in it (RFC 6532), which only an SMTPUTF8 relay may be given. Other
// 8-bit bytes there are as wrong for it as for any other relay, and have always been passed on.
func headerNeedsUTF8(raw []byte) bool {
	header := raw[:headerLength(raw)]
	return !ascii(header) && utf8.Valid(header)
}

// headerLength is where the header ends: at a blank line, whatever its line end, or where a line is neither a field nor goes on with one.
func headerLength(raw []byte) int {
	for at := 0; at < len(raw); {
		line := raw[at:]
		next := len(raw)
		if i := bytes.IndexAny(line, "\r\n"); i >= 0 {
			line, next = line[:i], at+i+1
			if raw[at+i] == '\r' && next < len(raw) && raw[next] == '\n' {
				next++
			}
		}
		folded := len(line) > 0 && (line[0] == ' ' || line[0] == '\t')
		if !folded && bytes.IndexByte(line, ':') < 1 || folded && at == 0 {
			return at
		}
		at = next
	}
	return len(raw)
}
