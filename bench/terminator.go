package main

import "bytes"

// endOfData ends a message after DATA (RFC 5321 §4.1.1.4). Its first CRLF belongs to the message's last line, or is that of the DATA command.
const endOfData = "\r\n.\r\n"

// A terminator finds the end of a message in a stream that comes in pieces of any size.
type terminator struct {
	have int // bytes of endOfData that the stream ends with so far
}

// begin is called after DATA: its line end may be the first half of the terminator, of a message without a line.
func (t *terminator) begin() { t.have = 2 }

// scan returns how many bytes of b belong to the message and its terminator, and whether that is complete. What lies behind it is the next
// envelope.
func (t *terminator) scan(b []byte) (n int, done bool) {
	for ; t.have > 0 && n < len(b); n++ { // a match that began in an earlier piece
		switch {
		case b[n] == endOfData[t.have]:
			t.have++
		case b[n] == '\r': // the only byte that a match begins with
			t.have = 1
		default:
			t.have = 0
		}
		if t.have == len(endOfData) {
			t.have = 0
			return n + 1, true
		}
	}
	rest := b[n:]
	if len(rest) == 0 {
		return n, false
	}
	if i := bytes.Index(rest, []byte(endOfData)); i >= 0 {
		return n + i + len(endOfData), true
	}
	for k := min(len(rest), len(endOfData)-1); k > 0; k-- {
		if string(rest[len(rest)-k:]) == endOfData[:k] {
			t.have = k
			break
		}
	}
	return len(b), false
}
