package domain

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxLogicalLine     = 64 << 10 // octets of an entry with all its continuations
	maxTransportErrors = 1000     // after so many a file is given up: it is another kind of file
)

// A Transport is one entry of a Postfix transport(5) table: what is to become of mail for its key.
type Transport struct {
	Line    int    // where the entry begins
	Key     string // as it is looked up: folded, with A-labels; "*.example.com" has become ".example.com"
	Name    string // of the transport, as it stands there; "": the one that mail would take without the table
	NextHop string // as it stands there. "": the recipient's domain where there is a Name, else what it would be without the table
	Hops    []Hop  // what NextHop says, in order; only without a Name and with smtp and relay. Shared among entries: not to be changed
	As      string // Key with the local part as the file has it; "": the same
	Status  string // of error (5.0.0 if it says nothing else) and retry (4.0.0): an enhanced status code (RFC 3463)
	Text    string // of error, retry and discard: why
}

// A Hop is a host that mail is handed to.
type Hop struct {
	Host      string // A-labels in lower case, or an IP address without brackets
	Port      string // a number; "": none is named
	Bracketed bool   // Postfix would not ask for the host's MX records
}

// A TransportMap is a transport(5) table. It does not change, and may be used by many at once.
type TransportMap struct {
	Entries  []Transport // in the order of the file, without those that are never asked
	Warnings []TransportError

	index   map[string]int32 // of Entries, by Key
	mailbox bool             // there are keys with an @
}

// A TransportError is what is wrong with a line of a transport table.
type TransportError struct {
	Line   int // where the entry begins
	Reason string
}

func (e *TransportError) Error() string { return "line " + strconv.Itoa(e.Line) + ": " + e.Reason }

// Reasons. As those of addresses they hold nothing of the input, but numbers of lines. The one with a capital is for those who ask ParseNextHop too.
const (
	reasonLeading     = "skipped, as Postfix does: the first entry starts with white space, it continues nothing"
	reasonNotUTF8     = "skipped, as Postfix does: not valid UTF-8"
	reasonUnbalanced  = "skipped, as Postfix does: the key has a quote that doesn't end"
	reasonNoValue     = "skipped, as Postfix does: there is no value behind the key"
	reasonDuplicate   = "skipped, as Postfix does: the same key stands in line "
	reasonWildcard    = `"*.domain" is not Postfix's way to write ".domain", which it was taken for`
	reasonAtDomain    = `skipped: Postfix never asks for "@domain"; without the @ it would`
	reasonLocalStar   = `"*" is no wildcard in a local part: this matches only a mailbox that has it in its name`
	reasonRequoted    = "only a mailbox with these quotes or backslashes in its name has this key: they were not needed, or are not where they have to be"
	reasonEndDot      = "skipped: Postfix never asks for a domain with a dot at its end"
	ReasonUnbracketed = "a host without brackets: Postfix would ask for its MX records; here it is the relay itself"
	reasonStatus      = "the enhanced status code contradicts the transport, and is left out: error has 5.x.x, retry 4.x.x"

	reasonLineLong    = "longer than 64 KiB"
	reasonControl     = "control character"
	reasonKey         = "bad key: "
	reasonKeyStar     = `"*" stands for everybody, or with a dot at the start for all subdomains`
	reasonName        = "white space in the name of the transport"
	reasonLMTP        = "lmtp: there is no LMTP here"
	reasonDirect      = "smtp and relay need a nexthop: without one Postfix delivers to the recipient's MX, which is not done here"
	reasonHop         = "bad nexthop: "
	reasonHopHost     = reasonHop + "no valid host name or IP address"
	reasonHopMissing  = reasonHop + "no host"
	reasonHopBracket  = reasonHop + `a "[" without its "]"`
	reasonHopGarbage  = reasonHop + `something other than a port behind the "]"`
	reasonHopPort     = reasonHop + "the port is neither a number from 1 to 65535 nor smtp, smtps, submission or submissions"
	reasonManyFaults  = "too many errors, gave up"
	textUndeliverable = "Address is undeliverable" // what error and retry say where the table doesn't
)

// ParseTransport reads a table as Postfix's texthash has it (transport(5), postmap(1)): the first of several entries for a key is
// the one that holds, and what Postfix would skip is skipped, with a warning. Keys are compared without regard to case, as
// strings.EqualFold does, and domains in whatever form they stand.
//
// There is a map only where nothing is wrong. Otherwise all faults are told, joined, each a *TransportError, but for an error of
// r's, which is there as it is. An entry is 64 KiB at the most; a file is never held whole.
//
// check, which may be nil, is asked about each entry before it is taken in, and says what else there is to warn of, or what is wrong with it.
func ParseTransport(r io.Reader, check func(*Transport) (warnings, faults []string)) (*TransportMap, error) {
	p := transportParser{m: &TransportMap{index: map[string]int32{}}, values: map[string]*transportValue{}, check: check}
	lines := logicalLines{r: bufio.NewReader(r)}
	for {
		line, at, reason, err := lines.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			p.errs = append(p.errs, fmt.Errorf("after line %d: %w", lines.n, err))
			break
		}
		if reason == "" {
			reason = p.entry(string(line), at)
		}
		if reason != "" {
			p.errs = append(p.errs, &TransportError{at, reason})
		}
		if len(p.errs) >= maxTransportErrors {
			p.errs = append(p.errs, &TransportError{at, reasonManyFaults})
			break
		}
	}
	if len(p.errs) > 0 {
		return nil, errors.Join(p.errs...)
	}
	return p.m, nil
}

// logicalLines puts lines and their continuations together as Postfix's readllines does: lines that are blank or a comment are left
// out wherever they are, a line that starts with white space continues the one before, and keeps that white space.
type logicalLines struct {
	r   *bufio.Reader
	n   int // whole lines read
	buf []byte
	err error // of r, met by looking ahead
}

// next returns a logical line, valid until the next call, and the number of its first line; or a reason why it can't be used.
func (l *logicalLines) next() (line []byte, first int, reason string, err error) {
	l.buf = l.buf[:0]
	long := false
	for {
		start := len(l.buf)
		blank, comment, tooLong, err := l.physical()
		if err != nil && err != io.EOF {
			return nil, 0, "", err
		}
		if blank || comment {
			l.buf, tooLong = l.buf[:start], false
		} else if first == 0 {
			first = l.n
		}
		long = long || tooLong
		if first == 0 {
			if err == io.EOF {
				return nil, 0, "", io.EOF
			}
			continue
		}
		if err == nil {
			ahead, failed := l.r.Peek(1)
			if failed != nil && failed != io.EOF {
				l.err = failed // bufio tells only once
			}
			if len(ahead) > 0 && (ahead[0] == '#' || isSpace(ahead[0])) {
				continue
			}
		}
		if long {
			return nil, first, reasonLineLong, nil
		}
		return l.buf, first, "", nil
	}
}

// physical appends a line to buf, up to what is too long, without its line feed.
func (l *logicalLines) physical() (blank, comment, tooLong bool, err error) {
	if l.err != nil {
		return false, false, false, l.err
	}
	blank = true
	some := false // was read
	for {
		part, err := l.r.ReadSlice('\n')
		if err == nil {
			part = part[:len(part)-1]
		}
		some = some || err == nil || len(part) > 0
		if blank {
			if rest := bytes.TrimLeft(part, whiteSpace); len(rest) > 0 {
				blank, comment = false, rest[0] == '#'
			}
		}
		if len(l.buf)+len(part) > maxLogicalLine {
			part, tooLong = part[:maxLogicalLine-len(l.buf)], true
		}
		l.buf = append(l.buf, part...)
		if err != bufio.ErrBufferFull {
			if some && (err == nil || err == io.EOF) {
				l.n++
			}
			return blank, comment, tooLong, err
		}
	}
}

const whiteSpace = " \t\n\v\f\r" // of C's isspace

func isSpace(b byte) bool { return strings.IndexByte(whiteSpace, b) >= 0 }

// transportParser makes entries out of lines.
type transportParser struct {
	m      *TransportMap
	errs   []error
	values map[string]*transportValue // many keys have the same
	check  func(*Transport) (warnings, faults []string)
}

// transportValue is what a value says: a Transport without its key.
type transportValue struct {
	Transport
	warning, reason string
}

func (p *transportParser) warn(line int, reason string) {
	p.m.Warnings = append(p.m.Warnings, TransportError{line, reason})
}

// entry takes one entry in, or returns what is wrong with it.
func (p *transportParser) entry(line string, at int) (reason string) {
	if isSpace(line[0]) {
		p.warn(at, reasonLeading)
		return ""
	}
	if !utf8.ValidString(line) {
		p.warn(at, reasonNotUTF8)
		return ""
	}
	end, balanced := keyEnd(line)
	if !balanced {
		p.warn(at, reasonUnbalanced)
		return ""
	}
	key, value := line[:end], strings.Trim(line[end:], whiteSpace)
	if value == "" {
		p.warn(at, reasonNoValue)
		return ""
	}
	key, as, warning, reason := transportKey(key)
	if reason != "" {
		return reasonKey + reason
	}
	if key == "" {
		p.warn(at, warning)
		return ""
	}
	if first, ok := p.m.index[key]; ok {
		p.warn(at, reasonDuplicate+strconv.Itoa(p.m.Entries[first].Line))
		return ""
	}
	if warning != "" {
		p.warn(at, warning)
	}
	v := p.values[value]
	if v == nil {
		v = new(transportValue)
		value = strings.Clone(value) // lest the line is kept for it
		v.reason = v.parse(value)
		p.values[value] = v
	}
	if v.reason != "" {
		return v.reason
	}
	if v.warning != "" {
		p.warn(at, v.warning)
	}
	entry := v.Transport
	key = strings.Clone(key)
	entry.Line, entry.Key = at, key
	if as != key {
		entry.As = strings.Clone(as)
	}
	if p.check != nil {
		warnings, faults := p.check(&entry)
		for _, w := range warnings {
			p.warn(at, w)
		}
		for _, f := range faults {
			p.errs = append(p.errs, &TransportError{at, f})
		}
	}
	p.m.index[key] = int32(len(p.m.Entries))
	p.m.Entries = append(p.m.Entries, entry)
	p.m.mailbox = p.m.mailbox || strings.IndexByte(key, '@') >= 0
	return ""
}

// keyEnd is where the key of a line ends: at the first white space that is neither in quotes nor behind a backslash.
func keyEnd(line string) (end int, balanced bool) {
	quoted := false
	for i := 0; i < len(line); i++ {
		switch b := line[i]; {
		case b == '\\':
			i++
		case b == '"':
			quoted = !quoted
		case !quoted && isSpace(b):
			return i, true
		}
	}
	return len(line), !quoted
}

// transportKey brings a key into the form that is looked up, and Transport.As. It is "" where nobody ever asks for it; the warning says why.
func transportKey(s string) (key, as, warning, reason string) {
	if s == "*" {
		return s, s, "", ""
	}
	at := strings.LastIndexByte(s, '@')
	host := s[at+1:]
	if at == 0 {
		return "", "", reasonAtDomain, ""
	}
	if at < 0 {
		if under, ok := strings.CutPrefix(host, "*."); ok {
			host, warning = "."+under, reasonWildcard
		}
	}
	if strings.IndexByte(host, '*') >= 0 {
		return "", "", "", reasonKeyStar
	}
	dot := ""
	ascii := toASCIIOrLiteral
	if at < 0 && strings.HasPrefix(host, ".") {
		dot, host, ascii = ".", host[1:], toASCII
	}
	name, upper, reason := ascii(host)
	switch {
	case reason != "":
		return "", "", "", reason
	case strings.HasSuffix(host, "."):
		return "", "", reasonEndDot, ""
	case upper:
		name = strings.ToLower(name)
	}
	if at < 0 {
		return dot + name, dot + name, warning, ""
	}
	// Postfix asks for an address as it is written in an envelope, and then without quotes and backslashes. So a key is either a local
	// part in its canonical form, or taken for one without quotes.
	local := s[:at]
	if a, why := parse(local + "@a"); why != "" || a.Local != local {
		if _, why := parse(quoteLocal(local) + "@a"); why != "" {
			return "", "", "", why
		}
		if strings.ContainsAny(local, `"\`) {
			warning = reasonRequoted
		}
	}
	if strings.IndexByte(local, '*') >= 0 {
		warning = reasonLocalStar
	}
	return foldLocal(local) + "@" + name, local + "@" + name, warning, ""
}

// parse takes a value apart.
func (v *transportValue) parse(s string) (reason string) {
	if strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) && (r >= utf8.RuneSelf || !isSpace(byte(r))) }) {
		return reasonControl
	}
	v.Name, v.NextHop, _ = strings.Cut(s, ":")
	if strings.ContainsAny(v.Name, whiteSpace) {
		return reasonName
	}
	switch v.Name {
	case "lmtp":
		return reasonLMTP
	case "error":
		v.explain("5.0.0")
	case "retry":
		v.explain("4.0.0")
	case "discard":
		v.Text = clean(v.NextHop)
	case "smtp", "relay", "":
		if v.Hops, reason = ParseNextHop(v.NextHop); reason != "" {
			return reason
		}
		if len(v.Hops) == 0 && v.Name != "" {
			return reasonDirect
		}
		for _, h := range v.Hops {
			if !h.Bracketed {
				v.warning = ReasonUnbracketed
			}
		}
	}
	return ""
}

// explain takes NextHop for the text of a transport that fails mail: an enhanced status code may stand in front.
func (v *transportValue) explain(status string) {
	if v.NextHop == "" {
		v.NextHop = textUndeliverable
	}
	v.Status, v.Text = status, clean(v.NextHop)
	first, rest, _ := strings.Cut(v.Text, " ")
	if isStatus(first) {
		v.Text = rest
		if first[0] == status[0] {
			v.Status = first
		} else {
			v.warning = reasonStatus
		}
	}
	if v.Text == "" {
		v.Text = textUndeliverable
	}
}

// isStatus reports whether s is an enhanced status code (RFC 3463 §2).
func isStatus(s string) bool {
	parts := strings.Split(s, ".")
	if len(parts) != 3 || parts[0] != "2" && parts[0] != "4" && parts[0] != "5" {
		return false
	}
	for _, p := range parts[1:] {
		if p == "" || len(p) > 3 || strings.Trim(p, "0123456789") != "" {
			return false
		}
	}
	return true
}

// clean makes one line of a text that may have been continued.
func clean(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < utf8.RuneSelf && isSpace(byte(r)) }), " ")
}

// ParseNextHop takes a list of hosts apart as Postfix's SMTP client does, or says what is wrong with it. Commas and white space
// separate; each is [host]:port, [host], host:port or host. In brackets the host may be an IPv6 address, with ipv6: in front or not.
// A Transport with a name of one's own comes without Hops; where it stands for an SMTP client, this says what its NextHop means.
func ParseNextHop(s string) (hops []Hop, reason string) {
	for _, site := range strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune(", \t\r\n", r) }) {
		h, reason := parseHop(site)
		if reason != "" {
			return nil, reason
		}
		hops = append(hops, h)
	}
	return hops, ""
}

func parseHop(s string) (h Hop, reason string) {
	var port string
	if inner, ok := strings.CutPrefix(s, "["); ok {
		h.Bracketed = true
		var behind string
		if h.Host, behind, ok = strings.Cut(inner, "]"); !ok {
			return h, reasonHopBracket
		}
		if port, ok = strings.CutPrefix(behind, ":"); !ok && behind != "" {
			return h, reasonHopGarbage
		}
	} else if i := strings.LastIndexByte(s, ':'); i >= 0 {
		h.Host, port = s[:i], s[i+1:]
	} else {
		h.Host = s
	}
	if h.Host == "" {
		return h, reasonHopMissing
	}
	if port != "" {
		if h.Port = portNumber(port); h.Port == "" {
			return h, reasonHopPort
		}
	}
	const v6 = "ipv6:"
	if len(h.Host) > len(v6) && strings.EqualFold(h.Host[:len(v6)], v6) && h.Bracketed {
		ip, err := netip.ParseAddr(h.Host[len(v6):])
		if err != nil || ip.Zone() != "" || !ip.Is6() {
			return h, reasonHopHost
		}
		h.Host = ip.String()
		return h, ""
	}
	if ip, err := netip.ParseAddr(h.Host); err == nil {
		if ip.Zone() != "" || ip.Is6() && !h.Bracketed {
			return h, reasonHopHost
		}
		h.Host = ip.String()
		return h, ""
	}
	host, upper, reason := toASCII(h.Host)
	if reason != "" || strings.Trim(host[strings.LastIndexByte(host, '.')+1:], "0123456789") == "" {
		return h, reasonHopHost
	}
	if upper {
		host = strings.ToLower(host)
	}
	h.Host = host
	return h, ""
}

// portNumber returns a port as a number, or "" for what is none.
func portNumber(s string) string {
	switch s { // Postfix's known_tcp_ports
	case "smtp":
		return "25"
	case "smtps", "submissions":
		return "465"
	case "submission":
		return "587"
	}
	if strings.Trim(s, "0123456789") != "" {
		return ""
	}
	if n, err := strconv.ParseUint(s, 10, 16); err == nil && n > 0 {
		return strconv.FormatUint(n, 10)
	}
	return ""
}

// Lookup returns the entry for an address in Postfix's order: the address, the address without its extension, the domain, its
// parent domains with a dot in front, the nearest first, and "*". The extension is what follows the delimiter (Postfix's
// recipient_delimiter; 0: none) in the local part.
func (m *TransportMap) Lookup(a Address, delimiter byte) (*Transport, bool) {
	if m.mailbox {
		plain := unquoteLocal(a.Local)
		if t, ok := m.address(a.Local, plain, a.Domain); ok {
			return t, true
		}
		if bare, ok := withoutExtension(plain, delimiter); ok {
			if t, ok := m.address(quoteLocal(bare), bare, a.Domain); ok {
				return t, true
			}
		}
	}
	for name := a.Domain; name != ""; {
		if t, ok := m.find(name); ok {
			return t, true
		}
		next := strings.IndexByte(name[1:], '.')
		if next < 0 {
			break
		}
		name = name[1+next:]
	}
	return m.find("*")
}

func (m *TransportMap) find(key string) (*Transport, bool) {
	i, ok := m.index[key]
	if !ok {
		return nil, false
	}
	return &m.Entries[i], true
}

// address looks for an address in the two forms that Postfix asks for.
func (m *TransportMap) address(quoted, plain, host string) (*Transport, bool) {
	var buf [maxAddress + 1]byte // without an allocation
	for _, local := range [2]string{quoted, plain} {
		key := append(append(append(buf[:0], foldLocal(local)...), '@'), host...)
		if i, ok := m.index[string(key)]; ok {
			return &m.Entries[i], true
		}
		if plain == quoted {
			break
		}
	}
	return nil, false
}
