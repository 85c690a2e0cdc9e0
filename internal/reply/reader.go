package reply

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
)

// The bounds of a reply. RFC 5321 §4.5.3.1.5 asks for 512 bytes a line; real relays send more, endless ones are an attack.
const (
	maxLine  = 2048     // bytes in a line, its end included
	maxLines = 128      // lines in a reply
	maxReply = 32 << 10 // bytes in a reply
)

// Texts that relays repeat ("2.1.0 Ok") are kept, so that the same text costs no allocation when it comes again.
const (
	internTexts  = 4
	internLength = 128 // bytes; a longer text is not kept
)

// A Reader reads replies from a connection. It asks for no more bytes than it needs, and never resynchronises: once a reply was
// malformed or broke off in the middle, every later Read fails alike until Reset. How long a Read may take is the business of
// the deadline on the connection.
//
// The zero Reader is ready for Reset. A Reader is for one goroutine at a time.
type Reader struct {
	src io.Reader
	buf []byte // borrowed, or our own where a reply did not fit
	err error  // of src, to be returned once the bytes before it are used up
	bad error  // what every Read returns until Reset

	// buf[text:end] is the text of the reply so far, buf[pos:lim] was received and not looked at. text ≤ end ≤ pos ≤ lim.
	text, end, pos, lim int

	intern [internTexts]string
	seen   [internTexts]bool // used since the hand passed
	hand   uint8             // the next text to be given up, unless it was seen (second chance)
}

// Reset makes r read from src, with buf as its buffer until the next Reset: 4 KiB are plenty, and a reply that does not fit is
// still read, in memory of r's own that the next Reset lets go. What was buffered is forgotten. After Reset(nil, nil) r
// holds nothing but its intern table.
func (r *Reader) Reset(src io.Reader, buf []byte) {
	r.src, r.buf = src, buf
	r.err, r.bad = nil, nil
	r.text, r.end, r.pos, r.lim = 0, 0, 0, 0
}

// Buffered is the number of bytes that were received and not yet returned as a reply.
func (r *Reader) Buffered() int { return r.lim - r.pos }

// A MalformedError says that what came is not an SMTP reply, or exceeds its bounds.
type MalformedError struct {
	Reason  string
	Excerpt string // the beginning of the line at fault, as of strconv.Quote, at most 80 bytes; what a relay echoes may be in it
}

func (e *MalformedError) Error() string {
	if e.Excerpt == "" {
		return "malformed reply: " + e.Reason
	}
	return "malformed reply: " + e.Reason + ": " + e.Excerpt
}

// Read reads one reply. Its errors are those of the source as they are, but for io.EOF in the middle of a reply, which is
// io.ErrUnexpectedEOF; or a *MalformedError.
func (r *Reader) Read() (Reply, error) {
	if r.bad != nil {
		return Reply{}, r.bad
	}
	if r.pos == r.lim {
		r.pos, r.lim = 0, 0
	}
	r.text, r.end = r.pos, r.pos
	var (
		code     int
		enhanced Enhanced
		total    int
	)
	for lines := 1; ; lines++ {
		line, n, err := r.line(code)
		if err != nil {
			if code != 0 || r.lim > r.pos { // in the middle
				r.bad = err
			}
			return Reply{}, err
		}
		if total += n; total > maxReply {
			return Reply{}, r.malformed("the reply is too long", line)
		}
		start := r.pos - n // of the line in buf
		last := len(line) == 3 || line[3] == ' '
		body := line[min(len(line), 4):]
		if code == 0 {
			code = int(line[0]-'0')*100 + int(line[1]-'0')*10 + int(line[2]-'0')
			r.text = start + len(line) - len(body)
			r.end = r.text + len(body)
		} else { // in place: the code and the line end leave more room than the "\n" takes
			r.buf[r.end] = '\n'
			r.end += 1 + copy(r.buf[r.end+1:], body)
		}
		if enhanced.Class == 0 {
			enhanced = parseEnhanced(r.buf[r.end-len(body):r.end], byte(code/100)+'0')
		}
		if last {
			return Reply{Code: code, Enhanced: enhanced, Text: r.string(r.buf[r.text:r.end])}, nil
		}
		if lines == maxLines {
			return Reply{}, r.malformed("the reply has too many lines", line)
		}
	}
}

// line reads one line of a reply whose first line had that code, 0 for the first line itself. It returns the line without its end,
// and the bytes it took. A line that can't be a reply's is refused before its end has come.
func (r *Reader) line(code int) ([]byte, int, error) {
	for searched := 0; ; {
		b := r.buf[r.pos:r.lim]
		eol := bytes.IndexByte(b[searched:], '\n')
		if eol >= 0 {
			eol += searched
			b = b[:eol+1]
		}
		if reason := checkStart(b, code); reason != "" {
			return nil, 0, r.malformed(reason, b)
		}
		if len(b) > maxLine || eol < 0 && len(b) == maxLine {
			return nil, 0, r.malformed("the line is too long", b)
		}
		if eol >= 0 {
			r.pos += eol + 1
			n := len(b)
			b = b[:eol]
			if b[eol-1] == '\r' { // checkStart saw at least three digits
				b = b[:eol-1]
			}
			return b, n, nil
		}
		searched = len(b)
		if err := r.fill(); err != nil {
			if err == io.EOF && (code != 0 || len(b) > 0) {
				err = io.ErrUnexpectedEOF
			}
			return nil, 0, err
		}
	}
}

// checkStart says what is wrong with the beginning of a line, as far as b tells: b may be a part of the line.
func checkStart(b []byte, code int) string {
	if code != 0 { // RFC 5321 §4.2.1: the code is the same on every line; a client that believes the first or the last is fooled
		if len(b) >= 1 && b[0] != byte(code/100)+'0' || len(b) >= 2 && b[1] != byte(code/10%10)+'0' || len(b) >= 3 && b[2] != byte(code%10)+'0' {
			return "the code differs between lines"
		}
	} else if len(b) >= 1 && (b[0] < '2' || b[0] > '5') || len(b) >= 2 && (b[1] < '0' || b[1] > '9') || len(b) >= 3 && (b[2] < '0' || b[2] > '9') {
		return "no code from 200 to 599"
	}
	if len(b) < 4 || b[3] == ' ' || b[3] == '-' || b[3] == '\n' || b[3] == '\r' && (len(b) == 4 || b[4] == '\n') {
		return ""
	}
	return "no blank or hyphen behind the code"
}

// fill receives more bytes: at least one, or an error.
func (r *Reader) fill() error {
	if r.err != nil {
		err := r.err
		r.err = nil
		return err
	}
	if r.src == nil {
		return io.ErrClosedPipe
	}
	if r.lim == len(r.buf) {
		r.makeRoom()
	}
	for range 100 { // as bufio: a source that keeps returning nothing is broken
		n, err := r.src.Read(r.buf[r.lim:])
		if n < 0 || n > len(r.buf)-r.lim {
			return fmt.Errorf("a connection's Read returned %d of %d bytes", n, len(r.buf)-r.lim)
		}
		r.lim += n
		if n > 0 {
			r.err = err
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// makeRoom moves the bytes in use to the front of the buffer, and where that does not help to a larger one of our own. The bounds
// of a reply bound that too.
func (r *Reader) makeRoom() {
	to := r.buf
	text, rest := r.buf[r.text:r.end], r.buf[r.pos:r.lim]
	if len(text)+len(rest) >= len(r.buf)/2 { // moving alone would be needed again soon, in the end for each byte
		to = make([]byte, max(2*len(r.buf), 512))
	}
	n := copy(to, text)
	m := copy(to[n:], rest)
	r.buf = to
	r.text, r.end, r.pos, r.lim = 0, n, n, n+m
}

func (r *Reader) malformed(reason string, line []byte) error {
	const limit = 80
	line = line[:min(len(line), limit-2)]
	q := strconv.Quote(string(line))
	for len(q) > limit {
		line = line[:len(line)-1]
		q = strconv.Quote(string(line))
	}
	r.bad = &MalformedError{Reason: reason, Excerpt: q}
	return r.bad
}

// string returns b as a string, the one it returned before where it can.
func (r *Reader) string(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if len(b) > internLength {
		return string(b)
	}
	for i := range r.intern {
		if string(b) == r.intern[i] { // no allocation
			r.seen[i] = true
			return r.intern[i]
		}
	}
	for r.seen[r.hand] { // a text that is new with every message must not drive out those that come with each
		r.seen[r.hand] = false
		r.hand = (r.hand + 1) % internTexts
	}
	s := string(b)
	r.intern[r.hand] = s
	r.hand = (r.hand + 1) % internTexts
	return s
}
