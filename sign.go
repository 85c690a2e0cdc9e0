package smtplb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"unicode/utf8"
)

// Signer makes header fields that go in front of a message: a DKIM-Signature (RFC 6376), say, or one for each of two keys (RFC 8463 §3).
//
// It is called once for each message, after it was read or rendered (and signed by go-mail, where the message is set up so: S/MIME, DKIM), and before it parts by routes or a relay is chosen: all
// attempts, all parts and all copies send the same signed bytes. It runs in the goroutine of the send, which is the caller's (one of DeliverAll's own in a DeliverAll), with the context of the send, which ends with the pool, too, and with
// which it must end; several may run at a time. examples/dkim has one with nothing but the standard library.
//
// What it returns are whole header fields, each line ending with CRLF, or nothing: then the message goes out without. A field name is printable ASCII, a line that goes on with a field begins with
// a space or a tab and isn't blank, lines have 998 bytes at the most, all together 64 KiB. Anything else (a bare CR or LF, NUL, a blank line, which would begin the body) is an error of the signer's, as is a panic, and nothing is sent.
// UTF-8 needs relays with SMTPUTF8. What is added counts for MaxMessageSize and a relay's SIZE.
//
// Where it fails, nothing was sent, and all recipients are deferred, with a *SignError: a service that signs may be down for a while. Where its error matches ErrPermanent (there is no key for
// this sender, and never will be), Deliver returns an *EnvelopeError, as nobody can send this envelope.
//
// Receipt.Retry of a Reader or a go-mail message sends what was signed, and the Signer isn't asked again, unless it had failed; so it is with a large message of NewEnvelope's. Bytes and a File are the caller's, who may have changed them, and are read and
// signed anew by each Deliver: the message is the same then, its signature need not be (its time differs, for one). Within one Deliver nothing is signed twice.
type Signer func(ctx context.Context, r SignRequest) (header []byte, err error)

// SignRequest is a message to be signed.
type SignRequest struct {
	// ID, From, Stream and Key are the envelope's. From is the Return-Path, and may be "<>": the domain that a DKIM signature is to be aligned with is that of the From field, which stands in Message.
	ID, From, Stream, Key string
	// Message is the message as it will be sent, before dots are doubled (RFC 5321 §4.5.2): header, blank line, text, line ends CRLF, one at its end. It may be read as often as is wanted, but not after the Signer has returned. It may lie in a file, and be large: to hash it in pieces needs
	// no memory.
	Message *io.SectionReader

	_ struct{}
}

// SignError says that Config.Signer failed, or returned what is no header. Nothing was sent to any relay; it matches ErrTemporary.
type SignError struct{ Err error }

// Error tells what the signer said.
func (e *SignError) Error() string { return "smtplb: signing the message: " + oneLine(e.Err.Error()) }

// Is matches ErrTemporary, unless Err says that it is permanent.
func (e *SignError) Is(target error) bool {
	return target == ErrTemporary && !errors.Is(e.Err, ErrPermanent)
}

// Unwrap returns Err.
func (e *SignError) Unwrap() error { return e.Err }

// maxSigned is the most that a Signer may add: a DKIM-Signature with a key of 4,096 bits has about 1,200 bytes.
const maxSigned = 64 << 10

// sign has the pool's Signer sign the message that was read. Its error is an *EnvelopeError, or a reason to defer.
func (d *delivery) sign(ctx context.Context) error {
	c := &d.msg.content
	if d.pool.signer == nil || c.signed {
		return nil
	}
	if ctx.Err() != nil {
		return contextError(ctx)
	}
	var first [1]byte
	if _, err := c.at(nil).ReadAt(first[:], 0); err != nil {
		return &SourceError{err}
	}
	if first[0] == ' ' || first[0] == '\t' { // it would go on with the signature's last field
		return &EnvelopeError{Field: "Body", Reason: "begins with white space, and can't be signed"}
	}
	e := d.env
	head, err := d.pool.askSigner(ctx, SignRequest{ID: e.ID, From: e.From, Stream: e.Stream, Key: e.Key, Message: io.NewSectionReader(c.at(nil), 0, c.size)})
	if err == nil {
		err = checkHeader(head)
	}
	switch {
	case errors.Is(err, ErrPermanent):
		return &EnvelopeError{Field: "Body", Reason: "Config.Signer refuses it: " + oneLine(err.Error()), Err: &SignError{err}}
	case err != nil && d.pool.ctx.Err() != nil:
		return ErrClosed
	case err != nil:
		return &SignError{err}
	}
	if limit := d.pool.maxSize; limit > 0 && c.read+int64(len(head)) > limit {
		return tooLarge(limit)
	}
	c.signed = true
	if len(head) == 0 {
		return nil
	}
	c.head = bytes.Clone(head) // the signer may use it again
	c.size += int64(len(head))
	c.read += int64(len(head))
	c.dots = c.dots || head[0] == '.' || bytes.Contains(head, []byte("\n."))
	if !ascii(head) {
		c.eightBit, c.header8, d.msg.utf8 = true, true, true
	}
	return nil
}

// askSigner calls the Signer. Its panic is an error of its own, which costs no more than the message.
func (p *Pool) askSigner(ctx context.Context, r SignRequest) (head []byte, err error) {
	defer func() {
		if v := recover(); v != nil {
			head, err = nil, fmt.Errorf("Config.Signer panicked: %v", v)
			p.log(ctx, slog.LevelError, "Config.Signer panicked", slog.String("panic", oneLine(fmt.Sprint(v))), slog.String("stack", string(debug.Stack())))
		}
	}()
	open, end := p.untilClosed(ctx)
	defer end()
	return p.signer(open, r)
}

// checkHeader reports whether head is header fields and nothing else (RFC 5322 §2.2, RFC 6532 §3.2), so that what stands behind it is the message still.
func checkHeader(head []byte) error {
	if len(head) > maxSigned {
		return fmt.Errorf("the header that Config.Signer returned has %d bytes; %d are the most", len(head), maxSigned)
	}
	for n, rest := 1, head; len(rest) > 0; n++ {
		line, after, ok := bytes.Cut(rest, crlf)
		what := ""
		switch {
		case !ok:
			what = "doesn't end with CRLF"
		case len(line) > maxLine:
			what = fmt.Sprintf("has %d bytes; SMTP allows %d", len(line), maxLine)
		case bytes.ContainsFunc(line, func(r rune) bool { return isControl(r) && r != '\t' }):
			what = "has control characters"
		case !utf8.Valid(line):
			what = "is not UTF-8"
		case len(bytes.Trim(line, " \t")) == 0:
			what = "is blank"
		case line[0] == ' ' || line[0] == '\t':
			if n == 1 {
				what = "goes on with a field, and there is none"
			}
		case !startsField(line):
			what = "begins with no field name"
		}
		if what != "" {
			return fmt.Errorf("line %d of the header that Config.Signer returned %s", n, what)
		}
		rest = after
	}
	return nil
}

// startsField reports whether a line begins with the name of a field and a colon (RFC 5322 §3.6.8).
func startsField(line []byte) bool {
	i := bytes.IndexByte(line, ':')
	return i > 0 && !bytes.ContainsFunc(line[:i], func(r rune) bool { return r <= ' ' || r > '~' })
}

// at is c behind head, from its start.
func (c *content) at(head []byte) io.ReaderAt {
	var tail io.ReaderAt = bytes.NewReader(c.body)
	if c.file != nil {
		tail = c.file
	}
	if len(head) == 0 {
		return tail
	}
	return &headed{head, tail}
}

// headed is a message with header fields in front of it, neither of which is copied.
type headed struct {
	head []byte
	tail io.ReaderAt
}

// ReadAt reads from both.
func (h *headed) ReadAt(b []byte, at int64) (n int, err error) {
	if at < int64(len(h.head)) {
		if n = copy(b, h.head[at:]); n == len(b) {
			return n, nil
		}
		at += int64(n)
	}
	m, err := h.tail.ReadAt(b[n:], at-int64(len(h.head)))
	return n + m, err
}
