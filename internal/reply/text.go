package reply

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxString bounds what String returns, in bytes.
const maxString = 512

// String returns the reply on one line, for errors and logs: "550 5.1.1 No such user; try later". Lines are joined by "; ", what is
// not printable is escaped as in Go's strings, and a long text ends in "…" after at most 512 bytes.
// It is "" for the zero Reply.
func (r Reply) String() string {
	if r.Code == 0 && r.Text == "" {
		return ""
	}
	const more = "…"
	b := make([]byte, 0, min(len(r.Text)+8, maxString))
	b = strconv.AppendInt(b, int64(r.Code), 10)
	if r.Text != "" {
		b = append(b, ' ')
	}
	cut := len(b) // where "…" still fits
	for s := r.Text; s != ""; {
		c, n := utf8.DecodeRuneInString(s)
		switch {
		case c == '\n':
			b = append(b, "; "...)
		case c == utf8.RuneError && n == 1:
			b = append(b, `\x`...)
			b = append(b, hex[s[0]>>4], hex[s[0]&15])
		case strconv.IsPrint(c):
			b = append(b, s[:n]...)
		default: // without the quotes
			q := strconv.QuoteRune(c)
			b = append(b, q[1:len(q)-1]...)
		}
		s = s[n:]
		if len(b) > maxString {
			return string(append(b[:cut], more...))
		}
		if len(b) <= maxString-len(more) {
			cut = len(b)
		}
	}
	return string(b)
}

const hex = "0123456789abcdef"

// MaskedBanner reports whether the text of a greeting is one that a Cisco-style middlebox has masked: nothing but "2", "0", "*" and
// blanks, and a "*" at least. Behind one, extensions are mangled.
func MaskedBanner(text string) bool {
	star := false
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '*':
			star = true
		case '2', '0', ' ', '\t':
		default:
			return false
		}
	}
	return star
}

// maxQueueID bounds a queue ID, in bytes. A longer one is none: cut short it would find nothing.
const maxQueueID = 256

// QueueID returns the name under which a relay says that it took a message, as far as its reply's text has one of the known forms, and
// "" otherwise. It is for people who search a relay's logs, and proves nothing.
func QueueID(text string) string {
	for text != "" {
		var line string
		line, text, _ = strings.Cut(text, "\n")
		if id := queueID(line); id != "" {
			return id
		}
	}
	return ""
}

func queueID(line string) string {
	// Postfix, SendGrid and many more: "2.0.0 Ok: queued as 4Wc2Nk1xX3z9rXB"
	if i := indexFold(line, "queued as "); i >= 0 {
		return cleanID(firstField(line[i+len("queued as "):]))
	}
	// Exchange: "2.6.0 <X@host> [InternalId=1, Hostname=h] Queued mail for delivery"
	if i := indexFold(line, " [InternalId="); i >= 0 {
		if id := lastField(line[:i]); strings.HasPrefix(id, "<") {
			return cleanID(id)
		}
		return ""
	}
	// OpenSMTPD, Sendmail: "2.0.0 X Message accepted for delivery"
	if i := indexFold(line, " Message accepted for delivery"); i >= 0 {
		id := lastField(line[:i])
		if isEnhanced(id) {
			return ""
		}
		return cleanID(id)
	}
	// Exim: "OK id=1rX0Ab-0004Cd-Ef"
	for rest := line; ; {
		i := indexFold(rest, "id=")
		if i < 0 {
			break
		}
		if i == 0 || rest[i-1] == ' ' {
			return cleanID(firstField(rest[i+len("id="):]))
		}
		rest = rest[i+len("id="):]
	}
	rest := line
	if f := firstField(rest); isEnhanced(f) {
		rest = strings.TrimLeft(rest, " ")[len(f):]
	}
	rest = strings.TrimLeft(rest, " ")
	if len(rest) < 3 || !strings.EqualFold(rest[:3], "ok ") {
		return ""
	}
	rest = rest[3:]
	// Gmail: "2.0.0 OK  1700000000 a1-20020a05622a1a0100b0si123qtb.1 - gsmtp"; the number is a time
	if before, ok := strings.CutSuffix(strings.TrimRight(rest, " "), " - gsmtp"); ok {
		return cleanID(lastField(before))
	}
	// SES: "Ok 0102018c1e0f3a5b-…-000000"
	if id := firstField(rest); hexDigits(id) >= 30 {
		return cleanID(id)
	}
	return ""
}

// cleanID takes brackets, quotes and punctuation off an ID, and refuses one that is not printable ASCII or too long.
func cleanID(s string) string {
	s = strings.Trim(s, `<>()[]"'.,;:`)
	if len(s) > maxQueueID {
		return ""
	}
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return ""
		}
	}
	return s
}

// hexDigits counts the digits of s, or returns 0 where it holds anything but hexadecimal digits and hyphens.
func hexDigits(s string) (n int) {
	for i := 0; i < len(s); i++ {
		switch c := s[i] | 0x20; {
		case s[i] == '-':
		case s[i] >= '0' && s[i] <= '9', c >= 'a' && c <= 'f':
			n++
		default:
			return 0
		}
	}
	return n
}

func isEnhanced(s string) bool {
	return s != "" && !parseEnhanced([]byte(s), s[0]).IsZero()
}

// firstField and lastField return a word between blanks; other white space stays, and cleanID refuses it.
func firstField(s string) string {
	s, _, _ = strings.Cut(strings.TrimLeft(s, " "), " ")
	return s
}

func lastField(s string) string {
	s = strings.TrimRight(s, " ")
	return s[strings.LastIndexByte(s, ' ')+1:]
}

// indexFold is strings.Index for an ASCII needle, whatever the case of its letters.
func indexFold(s, needle string) int {
	for i := 0; i+len(needle) <= len(s); i++ {
		if s[i]|0x20 == needle[0]|0x20 && strings.EqualFold(s[i:i+len(needle)], needle) {
			return i
		}
	}
	return -1
}
