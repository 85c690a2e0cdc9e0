package domain

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// An Address is a mailbox as it stands in an envelope. The zero value is no address; ParseAddress makes one. Two addresses are
// equal (==) exactly if their Keys are.
type Address struct {
	Local  string // canonical: in quotes only where it needs them. Compared as it is: only the receiving host knows better
	Domain string // A-labels in lower case, or an address literal
	UTF8   bool   // the local part is not ASCII: it takes SMTPUTF8 (RFC 6531) to transport it

	whole string
}

// String returns the address as it goes into MAIL FROM:<> and RCPT TO:<>.
func (a Address) String() string {
	if l := len(a.Local); len(a.whole) == l+1+len(a.Domain) && a.whole[:l] == a.Local && a.whole[l+1:] == a.Domain {
		return a.whole
	}
	return a.Local + "@" + a.Domain
}

// Key returns what all spellings of the address have in common: it is String, since both parts are canonical.
func (a Address) Key() string { return a.String() }

// ParseAddress parses an address of an envelope (RFC 5321 §4.1.2, RFC 6531 §3.3): local-part@domain and nothing around it. It
// returns an *AddressError for anything else: for blanks, comments, angle brackets and names around the address, source routes
// (RFC 5321 appendix C lets us), the null sender, and "postmaster" without a domain, since it would be another person at each relay.
//
// The local part may be quoted, and keeps its quotes only if it is not a dot-string: "a.b"@example.com is a.b@example.com, and
// backslashes remain only before a quote and a backslash. No control character is accepted anywhere, nor those of Unicode that
// can't be seen: its C1 controls, line and paragraph separators, format characters (direction marks, byte order marks; but the
// zero-width joiners) and noncharacters. Unicode's blanks need quotes as the plain one does. The domain is that of ToASCIIOrLiteral.
//
// An address that is in its canonical form already is returned without allocation, other ASCII ones with one.
func ParseAddress(s string) (Address, error) {
	a, reason := parse(s)
	if reason != "" {
		return Address{}, refuse(s, reason)
	}
	return a, nil
}

func parse(s string) (a Address, reason string) {
	switch {
	case s == "":
		return a, reasonEmpty
	case len(s) > maxInput:
		return a, reasonTooLong
	}
	var buf [2 * maxLocal]byte
	var local []byte // canonical, if it is not what stands in s
	var end int      // of the local part in s
	if s[0] == '"' {
		local, end, a.UTF8, reason = quotedString(buf[:0], s)
	} else {
		end, a.UTF8, reason = dotString(s)
	}
	if reason != "" {
		return a, reason
	}
	if s[0] == '"' && string(local) == s[:end] {
		local = nil
	}
	if n := len(local); n > maxLocal || n == 0 && end > maxLocal {
		return a, reasonLocalLong
	}
	domain, upper, reason := toASCIIOrLiteral(s[end+1:])
	if reason != "" {
		return a, reason
	}
	if local == nil && !upper && domain == s[end+1:] {
		a.whole = s
	} else {
		var whole [maxAddress + maxLocal]byte
		w := whole[:0]
		if local == nil {
			w = append(w, s[:end]...)
		} else {
			w = append(w, local...)
			end = len(local)
		}
		w = append(w, '@')
		for i := range len(domain) {
			b := domain[i]
			if upper && class[b]&isUpper != 0 {
				b += 'a' - 'A'
			}
			w = append(w, b)
		}
		a.whole = string(w)
	}
	if len(a.whole) > maxAddress {
		return a, reasonTooLong
	}
	a.Local, a.Domain = a.whole[:end], a.whole[end+1:]
	return a, ""
}

// dotString finds the end of a dot-string: the place of its @.
func dotString(s string) (end int, utf bool, reason string) {
	dot := true // the last octet was a dot, or there was none
	for i := 0; i < len(s); {
		b := s[i]
		switch {
		case class[b]&isAtext != 0:
			dot = false
		case b == '.':
			if dot {
				return 0, false, reasonLocalDot
			}
			dot = true
		case b == '@':
			switch {
			case i == 0 && strings.Contains(s, ":"):
				return 0, false, reasonRoute
			case i == 0:
				return 0, false, reasonNoLocal
			case dot:
				return 0, false, reasonLocalDot
			}
			return i, utf, ""
		case b >= utf8.RuneSelf:
			r, n := utf8.DecodeRuneInString(s[i:])
			switch {
			case r == utf8.RuneError && n == 1:
				return 0, false, reasonUTF8
			case !quotable(r) || unicode.IsSpace(r):
				return 0, false, reasonLocalByte
			}
			dot, utf = false, true
			i += n
			continue
		default:
			return 0, false, reasonLocalByte
		}
		i++
	}
	return 0, false, reasonNoDomain
}

// quotedString reads a quoted string and appends its canonical form to dst, which may be without quotes.
func quotedString(dst []byte, s string) (local []byte, end int, utf bool, reason string) {
	plain, dot := true, true // so far it is a dot-string; the last octet was a dot, or there was none
	dst = append(dst, '"')
	i := 1
	for {
		if i >= len(s) {
			return nil, 0, false, reasonQuoteOpen
		}
		b := s[i]
		if b == '"' {
			break
		}
		if b >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			switch {
			case r == utf8.RuneError && n == 1:
				return nil, 0, false, reasonUTF8
			case !quotable(r):
				return nil, 0, false, reasonQuotedByte
			}
			dst = append(dst, s[i:i+n]...)
			i += n
			plain = plain && !unicode.IsSpace(r)
			dot, utf = false, true
			continue
		}
		if b == '\\' {
			if i++; i >= len(s) {
				return nil, 0, false, reasonQuoteOpen
			}
			b = s[i]
		}
		if class[b]&isPrint == 0 {
			return nil, 0, false, reasonQuotedByte
		}
		if b == '"' || b == '\\' {
			dst = append(dst, '\\')
		}
		dst = append(dst, b)
		i++
		plain = plain && (class[b]&isAtext != 0 || b == '.' && !dot)
		dot = b == '.'
	}
	i++
	switch {
	case i >= len(s):
		return nil, 0, false, reasonNoDomain
	case s[i] != '@':
		return nil, 0, false, reasonQuoteAfter
	}
	if plain && !dot {
		return dst[1:], i, utf, ""
	}
	return append(dst, '"'), i, utf, ""
}

// quotable reports whether a character that is not ASCII may stand in a local part at all.
func quotable(r rune) bool {
	const zeroWidthNonJoiner, zeroWidthJoiner = '\u200C', '\u200D' // which some scripts can't do without
	return r == zeroWidthNonJoiner || r == zeroWidthJoiner ||
		!unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Noncharacter_Code_Point)
}
