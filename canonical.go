package smtplb

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// maxLine is the longest line, without its CRLF (RFC 5321 §4.5.3.1.6).
const maxLine = 998

// scanWindow is how much is looked at in one go: small enough to lie in the processor's cache for the four looks at it.
const scanWindow = 64 << 10

// scanner looks a message over, block by block: what is wrong with it, what it needs of a relay, and what has to change for its canonical form, which is CRLF
// line ends (RFC 5321 §2.3.8), one of them at its end. The first fault ends the looking, but for NUL: wherever one stands it is the fault that is told, as
// if all of the message had been looked over for it first.
type scanner struct {
	ends LineEndings
	out  *spool // gets the canonical form; nil: nothing does

	at    int64 // how much of the message was taken in
	line  int   // LFs in that
	fault error // what is wrong with the message
	nul   bool  // it is a NUL
	lost  error // what out said

	// A line that is longer than it may be, and whose end has not been seen: its length so far and where it begins.
	long     int64
	longAt   int64
	longLine int

	size     int64 // of the canonical form
	changed  bool  // it differs from what came
	dots     bool  // a line begins with a dot
	eightBit bool

	headerEnded bool
	headerEight bool // the header has 8-bit bytes,
	headerOdd   bool // and not all of them are UTF-8
}

// memory looks over a message that lies in memory, whole.
func (s *scanner) memory(raw []byte) {
	s.headerEnded = true // it is only looked at where that matters
	for at := 0; at < len(raw); {
		end := min(at+scanWindow, len(raw))
		at += s.scan(raw[at:end], end == len(raw))
	}
	if s.eightBit && s.fault == nil {
		s.at, s.headerEnded = 0, false
		s.header(raw)
	}
}

// scan takes in what it can of block, whole lines, and returns how much that was: the rest comes again, with more behind it. last says that the message ends with the block;
// then all is taken in. A block that is not the last and has more than maxLine+1 bytes is never left whole.
func (s *scanner) scan(block []byte, last bool) int {
	n, lines := 0, 0
	if s.fault == nil {
		n, lines = s.lines(block, last)
	}
	if s.fault != nil {
		if i := bytes.IndexByte(block, 0); i >= 0 && !s.nul {
			s.fail(block, i, "has a NUL")
			s.nul = true
		}
		n, lines = len(block), bytes.Count(block, lf)
	} else if !s.headerEnded {
		s.header(block[:n])
	}
	s.line += lines
	s.at += int64(n)
	return n
}

var cr, lf, crlf = []byte("\r"), []byte("\n"), []byte("\r\n")

// lines is scan as long as there is no fault. Most messages are in order, which four quick looks prove: no NUL, 8-bit bytes or not, where each line ends, and that there are as many
// CRs as lines. It returns how much it took in, and the LFs in that.
func (s *scanner) lines(block []byte, last bool) (n, lines int) {
	if i := bytes.IndexByte(block, 0); i >= 0 {
		s.fail(block, i, "has a NUL")
		s.nul = true
		return 0, 0
	}
	if !s.eightBit && !ascii(block) {
		s.eightBit = true
	}
	if s.long > 0 {
		return s.goOn(block, last), 0
	}
	good, count, dots := 0, 0, false
	for good < len(block) {
		i := bytes.IndexByte(block[good:], '\n')
		if i < 1 || i > maxLine+1 || block[good+i-1] != '\r' {
			break
		}
		if block[good] == '.' { // RFC 5321 §4.5.2
			dots = true
		}
		good += i + 1
		count++
	}
	if bytes.Count(block[:good], cr) != count { // a CR stands alone somewhere
		good = 0
	}
	if good == 0 {
		return s.slow(block, 0, last)
	}
	s.dots = s.dots || dots
	s.size += int64(good)
	s.write(block[:good])
	if good == len(block) {
		return good, count
	}
	n, lines = s.slow(block, good, last)
	return n, count + lines
}

// slow looks at each line of block[start:], and returns where it stopped in block, and how many LFs it passed.
func (s *scanner) slow(block []byte, start int, last bool) (end, lines int) {
	done := start
	next := -1 // the next LF, or len(block)
	for start < len(block) {
		// A line runs to the next LF; where lone CRs count as line ends, to the next of either.
		if next < start {
			if next = bytes.IndexByte(block[start:], '\n'); next < 0 {
				next = len(block)
			} else {
				next += start
			}
		}
		stop, after := next, next
		ending := 0 // bytes of the line end that stands there
		if next < len(block) {
			after, ending = next+1, 1
			if next > start && block[next-1] == '\r' {
				stop, ending = next-1, 2
			}
		}
		i := bytes.IndexByte(block[start:stop], '\r')
		if !last && ending == 0 && (i < 0 || start+i+1 == len(block)) { // the line is not all there; its last CR may have an LF behind it
			break
		}
		if i >= 0 {
			if s.ends != LineEndingsLenient {
				s.fail(block, start+i, "has a CR without LF")
				return start, 0
			}
			stop, after, ending = start+i, start+i+1, 1
		}
		if ending == 1 && s.ends == LineEndingsStrict {
			s.fail(block, stop, "has an LF without CR")
			return start, 0
		}
		if stop-start > maxLine {
			s.tooLong(int64(stop-start), s.at+int64(start), s.line+bytes.Count(block[:start], lf))
			return start, 0
		}
		if stop > start && block[start] == '.' {
			s.dots = true
		}
		if after > 0 && block[after-1] == '\n' {
			lines++
		}
		s.size += int64(stop-start) + 2
		if ending != 2 {
			s.changed = true
			s.write(block[done:stop])
			s.write(crlf)
			done = after
		}
		start = after
	}
	s.write(block[done:start])
	if rest := block[start:]; len(rest) > maxLine+1 {
		if rest[len(rest)-1] == '\r' {
			rest = rest[:len(rest)-1]
		}
		s.long, s.longAt, s.longLine = int64(len(rest)), s.at+int64(start), s.line+bytes.Count(block[:start], lf)
		start += len(rest)
	}
	return start, lines
}

// goOn looks for the end of a line that is too long, which decides what the fault is. It returns how much of block belongs to the line; when it has found the
// end, s.long is 0.
func (s *scanner) goOn(block []byte, last bool) int {
	i := bytes.IndexAny(block, "\r\n")
	switch {
	case i < 0 && !last, i >= 0 && block[i] == '\r' && i+1 == len(block) && !last:
		if i < 0 {
			i = len(block)
		}
		s.long += int64(i)
		return i
	case i < 0:
		i = len(block)
		s.tooLong(s.long+int64(i), s.longAt, s.longLine)
	case block[i] == '\n' && s.ends == LineEndingsStrict:
		s.fail(block, i, "has an LF without CR")
	case block[i] == '\r' && s.ends != LineEndingsLenient && (i+1 == len(block) || block[i+1] != '\n'):
		s.fail(block, i, "has a CR without LF")
	default:
		s.tooLong(s.long+int64(i), s.longAt, s.longLine)
	}
	s.long = 0
	return i
}

func (s *scanner) write(b []byte) {
	if s.out != nil && s.lost == nil && len(b) > 0 {
		s.lost = s.out.write(b)
	}
}

// fail notes a fault at block[i], where block is what comes behind what was taken in.
func (s *scanner) fail(block []byte, i int, what string) {
	s.fault = bodyFault(what, s.line+bytes.Count(block[:i], lf), s.at+int64(i))
}

func (s *scanner) tooLong(length, at int64, line int) {
	s.fault = bodyFault(fmt.Sprintf("has a line of %d bytes; SMTP allows %d", length, maxLine), line, at)
}

// bodyFault is a fault at a byte of the message, behind so many LFs.
func bodyFault(what string, lines int, at int64) error {
	return &EnvelopeError{Field: "Body", Reason: fmt.Sprintf("%s (line %d, byte %d)", what, lines+1, at)}
}

// header takes in lines of the header, which may end among them. Lines are whole, so that no UTF-8 is cut.
func (s *scanner) header(lines []byte) {
	n := headerLength(lines, s.at == 0)
	s.headerEnded = n < len(lines)
	if h := lines[:n]; !ascii(h) {
		s.headerEight = true
		s.headerOdd = s.headerOdd || !utf8.Valid(h)
	}
}

// headerUTF8 reports whether the header has UTF-8 text in it (RFC 6532), which only an SMTPUTF8 relay may be given. Other 8-bit bytes there are as wrong
// for it as for any other relay, and have always been passed on.
func (s *scanner) headerUTF8() bool { return s.headerEight && !s.headerOdd }

// headerLength is where the header ends, of which b are lines, the first ones or later ones: at a blank line, whatever its line end, or where a line is neither a
// field nor goes on with one.
func headerLength(b []byte, first bool) int {
	for at := 0; at < len(b); {
		line := b[at:]
		next := len(b)
		if i := bytes.IndexAny(line, "\r\n"); i >= 0 {
			line, next = line[:i], at+i+1
			if b[at+i] == '\r' && next < len(b) && b[next] == '\n' {
				next++
			}
		}
		folded := len(line) > 0 && (line[0] == ' ' || line[0] == '\t')
		if !folded && bytes.IndexByte(line, ':') < 1 || folded && first && at == 0 {
			return at
		}
		at = next
	}
	return len(b)
}

// ascii reports whether b has no byte above 127.
func ascii(b []byte) bool {
	const high = 0x8080808080808080
	for ; len(b) >= 64; b = b[64:] {
		w := b[:64]
		x := binary.LittleEndian.Uint64(w) | binary.LittleEndian.Uint64(w[8:]) | binary.LittleEndian.Uint64(w[16:]) | binary.LittleEndian.Uint64(w[24:]) |
			binary.LittleEndian.Uint64(w[32:]) | binary.LittleEndian.Uint64(w[40:]) | binary.LittleEndian.Uint64(w[48:]) | binary.LittleEndian.Uint64(w[56:])
		if x&high != 0 {
			return false
		}
	}
	for ; len(b) >= 8; b = b[8:] {
		if binary.LittleEndian.Uint64(b)&high != 0 {
			return false
		}
	}
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}
