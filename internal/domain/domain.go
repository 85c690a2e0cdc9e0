// Package domain understands domains and envelope addresses. It lets through what a grammar allows and nothing else, so that what
// has passed can be written into an SMTP command as it is.
package domain

import (
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Limits in octets: RFC 1035 §2.3.4 for a domain without its trailing dot; RFC 5321 §4.5.3.1.1 for a local part; RFC 3696 erratum
// 1690 for a whole address (a path is 256 with its angle brackets, RFC 5321 §4.5.3.1.3).
const (
	maxLabel   = 63
	maxDomain  = 253
	maxLocal   = 64
	maxAddress = 254
	maxInput   = 2048 // what is longer in Unicode can't be short enough in ASCII
)

// An AddressError says what is wrong with an address or a domain.
type AddressError struct {
	Input  string // quoted, and cut where it is long
	Reason string
}

func (e *AddressError) Error() string { return e.Input + ": " + e.Reason }

func refuse(input, reason string) *AddressError {
	const most = 80
	more := ""
	if len(input) > most {
		cut := most
		for cut > most-utf8.UTFMax && !utf8.RuneStart(input[cut]) {
			cut--
		}
		input, more = input[:cut], "…"
	}
	return &AddressError{Input: strconv.QuoteToASCII(input) + more, Reason: reason}
}

// Reasons. They are constants lest a part of a hostile input gets into them.
const (
	reasonEmpty       = "empty"
	reasonTooLong     = "too long"
	reasonUTF8        = "not valid UTF-8"
	reasonNoDomain    = "no domain"
	reasonNoLocal     = "no local part"
	reasonRoute       = "source routes are not accepted"
	reasonLocalLong   = "local part longer than 64 octets"
	reasonLocalByte   = "character not allowed in a local part without quotes"
	reasonLocalDot    = "dot at the start or the end of the local part, or two in a row"
	reasonQuotedByte  = "character not allowed in a quoted local part"
	reasonQuoteOpen   = "quoted local part does not end"
	reasonQuoteAfter  = "no @ after the quoted local part"
	reasonDomainEmpty = "empty domain"
	reasonDomainLong  = "domain longer than 253 octets"
	reasonDomainByte  = "character not allowed in a domain"
	reasonLabelEmpty  = "empty label in the domain"
	reasonLabelLong   = "domain label longer than 63 octets"
	reasonHyphen      = "domain label starts or ends with a hyphen"
	reasonIDN         = "not a valid internationalised domain"
	reasonLiteral     = "not a valid address literal"
)

// profile is that of a look-up (RFC 5891 §5, UTS #46) but for the ASCII characters, which are left to us: real domains have
// underscores.
var profile = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.Transitional(false), idna.StrictDomainName(false))

// What a byte may be.
const (
	isAtext  = 1 << iota // RFC 5321 §4.1.2: may stand in a local part without quotes
	isPrint              // may stand in quotes, some of them after a backslash
	isLDH                // letter, digit, hyphen or underscore
	isUpper              // A to Z
	isHyphen             // also isLDH
)

var class = func() (c [256]uint8) {
	for b := byte('0'); b <= '9'; b++ {
		c[b] = isAtext | isLDH
	}
	for b := byte('a'); b <= 'z'; b++ {
		c[b] = isAtext | isLDH
		c[b-'a'+'A'] = isAtext | isLDH | isUpper
	}
	for _, b := range []byte("!#$%&'*+-/=?^_`{|}~") {
		c[b] |= isAtext
	}
	c['-'] |= isLDH | isHyphen
	c['_'] |= isLDH
	for b := byte(' '); b <= '~'; b++ {
		c[b] |= isPrint
	}
	return c
}()

// ToASCII returns the one form of a domain that goes over the wire: A-labels in lower case, without a trailing dot. It refuses
// what is not a sequence of labels of letters, digits, hyphens and underscores (which no host name has but real domains do) of 1
// to 63 octets, 253 in all, none of them starting or ending with a hyphen, once it is mapped to ASCII by IDNA (RFC 5891, with the
// mappings of UTS #46, not transitional). An A-label is taken for what it is, even where it decodes to something that this version
// of Unicode doesn't know. Errors are of type *AddressError. A domain in its final form is returned without allocation.
func ToASCII(domain string) (string, error) {
	ascii, upper, reason := toASCII(domain)
	return finish(domain, ascii, upper, reason)
}

// ToASCIIOrLiteral is ToASCII that also accepts address literals: [192.0.2.1] and [IPv6:2001:db8::1] (RFC 5321 §4.1.3), the latter
// written as RFC 5952 wants it. There are no other kinds in use.
func ToASCIIOrLiteral(domain string) (string, error) {
	ascii, upper, reason := toASCIIOrLiteral(domain)
	return finish(domain, ascii, upper, reason)
}

func finish(input, ascii string, upper bool, reason string) (string, error) {
	if reason != "" {
		return "", refuse(input, reason)
	}
	if upper {
		ascii = strings.ToLower(ascii)
	}
	return ascii, nil
}

// Fold returns what two domains have in common exactly if they are the same: their form in ASCII or, where there is none, the
// lower-cased input.
func Fold(domain string) string {
	ascii, upper, reason := toASCIIOrLiteral(domain)
	if reason != "" {
		ascii, upper = domain, true
	}
	if upper {
		ascii = strings.ToLower(ascii)
	}
	return ascii
}

// toASCIIOrLiteral, like toASCII and ldh, returns either a reason for refusing or the domain in ASCII and whether it is still to be
// lower-cased.
func toASCIIOrLiteral(domain string) (ascii string, upper bool, reason string) {
	if strings.HasPrefix(domain, "[") {
		ascii, reason = literal(domain)
		return ascii, false, reason
	}
	return toASCII(domain)
}

func toASCII(domain string) (ascii string, upper bool, reason string) {
	if len(domain) > maxInput {
		return "", false, reasonDomainLong
	}
	for i := 0; i < len(domain); i++ {
		if domain[i] >= utf8.RuneSelf {
			if !utf8.ValidString(domain) {
				return "", false, reasonUTF8
			}
			mapped, err := profile.ToASCII(domain)
			if err != nil {
				return "", false, reasonIDN
			}
			domain = mapped // which may hold any ASCII character
			break
		}
	}
	domain = strings.TrimSuffix(domain, ".")
	upper, reason = ldh(domain)
	return domain, upper, reason
}

// ldh checks a domain in ASCII, and reports whether there is a capital in it.
func ldh(domain string) (upper bool, reason string) {
	if domain == "" {
		return false, reasonDomainEmpty
	}
	if len(domain) > maxDomain {
		return false, reasonDomainLong
	}
	var seen, last uint8 // classes of all octets and of the last one
	label := 0           // octets of the label so far
	for i := 0; i <= len(domain); i++ {
		if i == len(domain) || domain[i] == '.' {
			switch {
			case label == 0:
				return false, reasonLabelEmpty
			case label > maxLabel:
				return false, reasonLabelLong
			case last&isHyphen != 0:
				return false, reasonHyphen
			}
			label = 0
			continue
		}
		last = class[domain[i]]
		switch {
		case last&isLDH == 0:
			return false, reasonDomainByte
		case label == 0 && last&isHyphen != 0:
			return false, reasonHyphen
		}
		label++
		seen |= last
	}
	return seen&isUpper != 0, ""
}

// literal takes s, which starts with a bracket, for an address literal.
func literal(s string) (canonical, reason string) {
	const v6 = "IPv6:"
	if s[len(s)-1] != ']' {
		return "", reasonLiteral
	}
	inner, prefix := s[1:len(s)-1], ""
	if len(inner) > len(v6) && strings.EqualFold(inner[:len(v6)], v6) {
		inner, prefix = inner[len(v6):], v6
	}
	ip, err := netip.ParseAddr(inner)
	if err != nil || ip.Zone() != "" || ip.Is6() != (prefix != "") {
		return "", reasonLiteral
	}
	var buf [64]byte
	b := append(append(buf[:0], '['), prefix...)
	b = append(ip.AppendTo(b), ']')
	if string(b) == s {
		return s, ""
	}
	return string(b), ""
}
