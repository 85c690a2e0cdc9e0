package smtplb

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/wneessen/go-mail"
)

// intake reads a message: once, whole, and in pieces, so that no more of it than a buffer need lie in memory.
type intake struct {
	scanner
	spool spool
	limit int64 // of what is read; 0 or less: none
	read  int64
	begun bool // its Reader was asked
	have  int  // how much of buf waits to be scanned
	raw   bool
	err   error // why no more is taken in
	ctx   context.Context

	lean bool   // render writes attachments itself
	tail []byte // then: the end of the last Write
	held bool   // one of the pool's renders is ours

	buf [scanWindow]byte
}

var intakes = sync.Pool{New: func() any { return new(intake) }}

// newIntake is an intake for a message of a send, or, with a nil pool, for NewEnvelope.
func newIntake(ctx context.Context, p *Pool, ends LineEndings) *intake {
	in := intakes.Get().(*intake)
	in.ctx, in.ends = ctx, ends
	in.spool.most = defaultSpillSize
	if p != nil {
		in.limit = p.maxSize
		in.spool.most, in.spool.dir, in.spool.pool = p.spillSize, p.spillDir, p
	}
	return in
}

// free lets go of what was not handed over.
func (in *intake) free() {
	in.spool.drop()
	if in.held {
		<-in.spool.pool.renders
	}
	clear(in.tail)
	in.scanner, in.spool = scanner{}, spool{}
	in.limit, in.read, in.have, in.raw, in.err, in.ctx = 0, 0, 0, false, nil, nil
	in.lean, in.tail, in.held, in.begun = false, in.tail[:0], false, false
	intakes.Put(in)
}

// readBody reads the envelope's body whole and brings it into canonical form. Its error is an *EnvelopeError or a *SourceError.
func (d *delivery) readBody(ctx context.Context, limit int64) error {
	b, ends := &d.env.Body, d.env.LineEndings
	if ends > LineEndingsLenient {
		return &EnvelopeError{Field: "LineEndings", Reason: fmt.Sprintf("%d is not a value of it", ends)}
	}
	c := &d.msg.content
	switch {
	case b.kind == bodyBytes:
		if limit > 0 && int64(len(b.b)) > limit {
			return tooLarge(limit)
		}
		if err := d.readBytes(b.b); err != nil {
			return err
		}
	case b.kind == bodyKept && !b.kept.raw:
		if limit > 0 && b.kept.read > limit {
			return tooLarge(limit)
		}
		*c = *b.kept
	default:
		in := newIntake(ctx, d.pool, ends)
		defer in.free()
		err := in.body(b)
		d.begun = in.begun
		if err != nil {
			return err
		}
		if *c, err = in.content(); err != nil {
			return err
		}
		d.owned = c.file != nil
	}
	d.msg.utf8 = d.msg.utf8 || c.header8
	d.whole = true
	return nil
}

// readBytes takes a message in memory: as it lies there, if it is in order.
func (d *delivery) readBytes(b []byte) error {
	if len(b) == 0 {
		return errEmpty()
	}
	s := scanner{ends: d.env.LineEndings}
	s.memory(b)
	if s.fault != nil {
		return s.fault
	}
	c := &d.msg.content
	*c = content{body: b, size: s.size, dots: s.dots, eightBit: s.eightBit, header8: s.headerUTF8(), read: int64(len(b))}
	if !s.changed {
		return nil
	}
	p, out := d.pool, &d.spool
	*out = spool{most: p.spillSize, dir: p.spillDir, pool: p}
	defer out.drop()
	if out.expect(s.size); out.file == nil {
		out.buf = make([]byte, 0, s.size)
	}
	s = scanner{ends: d.env.LineEndings, out: out}
	s.memory(b)
	err := s.lost
	if err == nil {
		c.body, c.file, err = out.finish()
	}
	if err != nil {
		return &SourceError{err}
	}
	d.owned = c.file != nil
	return nil
}

func tooLarge(limit int64) error {
	return &EnvelopeError{Field: "Body", Reason: fmt.Sprintf("is larger than Config.MaxMessageSize, %d bytes", limit)}
}

func errEmpty() error { return &EnvelopeError{Field: "Body", Reason: "the message is empty"} }

// body reads b.
func (in *intake) body(b *Body) error {
	var err error
	switch b.kind {
	case bodyNone:
		return &EnvelopeError{Field: "Body", Reason: "is missing"}
	case bodySpent:
		return &EnvelopeError{Field: "Body", Reason: "its Reader failed half-way, and what is left of it is not the message: set a new Body"}
	case bodyFile:
		err = in.file(b.path)
	case bodyReader:
		if b.r == nil {
			return &EnvelopeError{Field: "Body", Reason: "its Reader is nil"}
		}
		err = in.from(b.r)
	case bodyMessage:
		err = in.render(b.msg)
	case bodyKept:
		err = in.from(b.kept.reader())
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errLimit):
		return tooLarge(in.limit)
	}
	return &SourceError{err}
}

var errLimit = errors.New("the message is too large")

func (in *intake) file(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && (in.limit <= 0 || info.Size() <= in.limit) {
		in.spool.expect(info.Size())
	}
	return in.from(f)
}

// from reads r to its end.
func (in *intake) from(r io.Reader) error {
	for {
		if in.ctx.Err() != nil {
			return context.Cause(in.ctx)
		}
		p := in.buf[in.have:]
		if in.limit > 0 && int64(len(p)) > in.limit-in.read {
			p = p[:in.limit-in.read+1] // one more tells that it is too large
		}
		in.begun = true
		n, err := r.Read(p)
		if more := in.take(n); more != nil {
			return more
		}
		switch {
		case err != nil && err != io.EOF:
			return err
		case in.limit > 0 && in.read > in.limit:
			return errLimit
		case err != nil:
			return nil
		}
	}
}

// take notes that n bytes more are in the buffer, and makes room in it.
func (in *intake) take(n int) error {
	in.read += int64(n)
	in.have += n
	switch {
	case in.have < len(in.buf):
		return nil
	case in.ctx.Err() != nil:
		return context.Cause(in.ctx)
	}
	return in.scan(false)
}

// scan looks over what is in the buffer.
func (in *intake) scan(last bool) error {
	if !in.raw && in.out == nil {
		in.out = &in.spool
	}
	b := in.buf[:in.have]
	n := in.scanner.scan(b, last)
	if in.raw && in.lost == nil {
		in.lost = in.spool.write(b[:n])
	}
	if in.fault != nil && !in.raw {
		in.spool.drop() // the rest is read all the same: a source that fails, or is too large, is told first
	}
	in.have = copy(in.buf[:], b[n:])
	return in.lost
}

// Write takes in what go-mail renders.
func (in *intake) Write(p []byte) (int, error) {
	if in.err != nil {
		return 0, in.err
	}
	if in.limit > 0 && int64(len(p)) > in.limit-in.read {
		in.err = errLimit
		return 0, in.err
	}
	for left := p; len(left) > 0; {
		n := copy(in.buf[in.have:], left)
		left = left[n:]
		if in.err = in.take(n); in.err != nil {
			return len(p) - len(left), in.err
		}
	}
	if in.lean {
		in.tail = append(in.tail[:0], p[max(0, len(p)-cap(in.tail)):]...)
	}
	return len(p), nil
}

// content is what was read. Its error is an *EnvelopeError or a *SourceError.
func (in *intake) content() (content, error) {
	if in.read == 0 {
		return content{}, errEmpty()
	}
	err := in.scan(true)
	if in.fault != nil && !in.raw {
		return content{}, in.fault
	}
	c := content{size: in.size, dots: in.dots, eightBit: in.eightBit, header8: in.headerUTF8(), read: in.read}
	if in.raw && (in.fault != nil || in.changed) {
		c = content{raw: true, size: in.read, read: in.read}
	}
	if err == nil {
		c.body, c.file, err = in.spool.finish()
	}
	if err != nil {
		return content{}, &SourceError{err}
	}
	return c, nil
}

// render has go-mail write msg into in.
//
// For each attachment go-mail's renderer makes a buffer that grows until it holds all of it, encoded. That is 2.5 times its size and more. So leanCopy lets it write the header of each attachment, and writes
// what comes below it itself.
func (in *intake) render(msg *mail.Msg) error {
	if len(msg.GetAttachments())+len(msg.GetEmbeds()) > 0 {
		in.lean = true
		msg = in.leanCopy(msg)
	}
	_, err := msg.WriteTo(in)
	if err == nil {
		err = in.err
	}
	return err
}

// leanCopy is a copy of msg whose attachments and embedded files don't go through go-mail's buffer. It is a copy as msg, and each mail.File, is the caller's, who may be using it elsewhere; what rendering fills in
// (Date, Message-ID, the headers of files) stands in maps that both have.
func (in *intake) leanCopy(msg *mail.Msg) *mail.Msg {
	if cap(in.tail) == 0 {
		in.tail = make([]byte, 0, 1<<10)
	}
	m := *msg
	m.SetAttachments(in.leanFiles(m.GetAttachments()))
	m.SetEmbeds(in.leanFiles(m.GetEmbeds()))
	return &m
}

func (in *intake) leanFiles(files []*mail.File) []*mail.File {
	files = slices.Clone(files)
	for i, f := range files {
		if f == nil || f.Writer == nil { // go-mail will have its say
			continue
		}
		lean, write := *f, f.Writer
		// Whatever Enc says, go-mail encodes in base64 where the header is there already.
		encoded := f.Enc == "" || f.Enc == mail.EncodingB64 || f.Header.Get(mail.HeaderContentTransferEnc.String()) != ""
		lean.Writer = func(w io.Writer) (int64, error) {
			if !encoded || !in.endsWith(lean.Header) {
				if err := in.hold(); err != nil {
					return 0, err
				}
				return write(w)
			}
			e := encoder{in: in}
			n, err := write(&e)
			if err == nil {
				err = e.close()
			}
			e.err = errLate
			return n, err
		}
		files[i] = &lean
	}
	return files
}

// endsWith reports whether what was written last ends with this part header as multipart.Writer writes it. Then nothing lies in a buffer of go-mail's, and what comes next
// is the content. It is not so where go-mail renders into memory first: to sign the message (S/MIME, DKIM), or for a middleware.
func (in *intake) endsWith(header map[string][]string) bool {
	var b []byte
	for _, k := range slices.Sorted(maps.Keys(header)) {
		for _, v := range header[k] {
			b = fmt.Appendf(b, "%s: %s\r\n", k, v)
		}
	}
	b = append(b, "\r\n"...)
	return len(in.tail) >= len(b) && string(in.tail[len(in.tail)-len(b):]) == string(b)
}

// hold waits for leave to hold a whole attachment in memory, several times over. NewEnvelope, which has no context that a wait could end with, needs none.
func (in *intake) hold() error {
	p := in.spool.pool
	if in.held || p == nil {
		return nil
	}
	err := in.err
	if err == nil && in.ctx.Err() != nil {
		err = contextError(in.ctx)
	}
	if err == nil {
		select {
		case p.renders <- struct{}{}:
			in.held = true
			return nil
		case <-in.ctx.Done():
			err = contextError(in.ctx)
		case <-p.ctx.Done():
			err = ErrClosed
		}
	}
	in.err = err // whatever becomes of it on its way through go-mail
	return err
}

// encoder writes base64 in lines of 76 characters (RFC 2045 §6.8), as go-mail does.
type encoder struct {
	in   *intake
	part [57]byte // bytes that make a line,
	n    int      // as far as they are there
	out  [32 * 78]byte
	used int
	err  error
}

var errLate = errors.New("written after its Writer had returned")

func (e *encoder) Write(p []byte) (int, error) {
	n := len(p)
	if e.n > 0 {
		k := copy(e.part[e.n:], p)
		p = p[k:]
		if e.n += k; e.n == len(e.part) {
			e.line(e.part[:])
			e.n = 0
		}
	}
	for ; len(p) >= len(e.part); p = p[len(e.part):] {
		e.line(p[:len(e.part)])
	}
	if len(p) > 0 {
		e.n += copy(e.part[e.n:], p)
	}
	if e.err != nil {
		return 0, e.err
	}
	return n, nil
}

func (e *encoder) line(b []byte) {
	o := e.out[e.used:]
	n := base64.StdEncoding.EncodedLen(len(b))
	base64.StdEncoding.Encode(o, b)
	n += copy(o[n:], crlf)
	if e.used += n; len(e.out)-e.used < 78 {
		e.flush()
	}
}

func (e *encoder) flush() {
	if e.err == nil {
		_, e.err = e.in.Write(e.out[:e.used])
	}
	e.used = 0
}

func (e *encoder) close() error {
	if e.n > 0 {
		e.line(e.part[:e.n])
	}
	e.flush()
	return e.err
}
