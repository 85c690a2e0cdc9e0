package domain

import "strings"

// Rule is one entry of a Table: for whom it is, and what it says.
type Rule struct {
	Recipient string // "user@example.com", "example.com", "*.example.com" (all its subdomains, not itself); "*" or "": everybody
	Sender    string // a domain, likewise; NullSender; "*" or "": any
	Stream    string // exact; "": any
	Value     int32  // 0 or more
	Loose     bool   // Recipient, where it is an address, stands for the same in any case, and with any extension: after those that are not loose
}

// NullSender is what stands for the domain of the null sender.
const NullSender = "<>"

// RuleFault is what is wrong with a rule.
type RuleFault struct {
	Rule   int    // its index
	Field  string // of Rule
	Reason string
	Same   int // the index of a rule before it that is for the same; -1 where the fault is another
}

// Table finds the most specific of many rules. It does not change, and may be used by many at once. What a lookup costs depends on the labels of the names, not on how many rules there are.
type Table struct {
	addresses, exact, below map[string]node // below: of "*.example.com", by "example.com"
	loose                   map[string]node // addresses that are, folded
	looseAt                 map[string]bool // their domains: others need no look
	all                     node
	delimiter               byte
}

// node is the rules for one recipient pattern.
type node struct {
	any          *leaf            // of all senders; nil: none
	exact, below map[string]*leaf // by the sender's domain
}

// leaf is the rules for a pattern of recipients and one of senders.
type leaf struct {
	any int32 // of all streams; -1: none
	by  map[string]int32
}

// NewTable makes a table. All that is wrong with the rules is returned; there is a table only where nothing is.
func NewTable(rules []Rule) (*Table, []RuleFault) { return NewTableWith(rules, 0) }

// NewTableWith is NewTable with what the extensions begin with that loose rules leave out of account; 0: there are none.
func NewTableWith(rules []Rule, delimiter byte) (*Table, []RuleFault) {
	t := &Table{addresses: map[string]node{}, exact: make(map[string]node, len(rules)), below: map[string]node{}, loose: map[string]node{}, looseAt: map[string]bool{}, delimiter: delimiter}
	seen := make(map[Rule]int, len(rules)) // in their canonical form
	var faults []RuleFault
	for i, r := range rules {
		whole := r
		var reason string
		if r.Recipient, reason = recipientPattern(r.Recipient); reason != "" {
			faults = append(faults, RuleFault{i, "Recipient", reason, -1})
		}
		sender, wrong := domainPattern(r.Sender)
		if r.Sender == NullSender {
			sender, wrong = NullSender, ""
		}
		if r.Sender = sender; wrong != "" {
			faults = append(faults, RuleFault{i, "Sender", wrong, -1})
		}
		if reason != "" || wrong != "" {
			continue
		}
		if at := strings.LastIndexByte(r.Recipient, '@'); at < 0 {
			r.Loose = false
		} else if r.Loose {
			r.Recipient = foldLocal(r.Recipient[:at]) + r.Recipient[at:]
		}
		r.Value = 0
		if first, ok := seen[r]; ok {
			faults = append(faults, RuleFault{i, "", "is for the same as another", first})
			continue
		}
		seen[r] = i
		r.Value = whole.Value
		t.add(r)
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return t, nil
}

// add puts a rule in, whose patterns are in their canonical form.
func (t *Table) add(r Rule) {
	var in map[string]node
	key := r.Recipient
	switch {
	case key == "":
	case strings.HasPrefix(key, "*."):
		in, key = t.below, key[2:]
	case r.Loose:
		in = t.loose
		t.looseAt[key[strings.LastIndexByte(key, '@')+1:]] = true
	case strings.IndexByte(key, '@') >= 0:
		in = t.addresses
	default:
		in = t.exact
	}
	n := t.all
	if in != nil {
		n = in[key]
	}
	n.add(r)
	if in == nil {
		t.all = n
	} else {
		in[key] = n
	}
}

func (n *node) add(r Rule) {
	l := n.any
	switch s := r.Sender; {
	case s == "":
		if l == nil {
			l = &leaf{any: -1}
			n.any = l
		}
	case strings.HasPrefix(s, "*."):
		l = put(&n.below, s[2:])
	default:
		l = put(&n.exact, s)
	}
	if r.Stream == "" {
		l.any = r.Value
		return
	}
	if l.by == nil {
		l.by = make(map[string]int32)
	}
	l.by[r.Stream] = r.Value
}

func put(m *map[string]*leaf, key string) *leaf {
	if *m == nil {
		*m = make(map[string]*leaf)
	}
	l := (*m)[key]
	if l == nil {
		l = &leaf{any: -1}
		(*m)[key] = l
	}
	return l
}

// Lookup returns the value of the most specific rule for a recipient, given as the String of its Address, for a sender's domain, as in an Address or NullSender, and for a stream. What a rule says of recipients
// counts before what it says of senders, and that before streams; an address before one that is loose, that before one without the extension, then a domain, that before a wildcard, of these the longest first, and what says nothing last.
func (t *Table) Lookup(rcpt, sender, stream string) (value int32, ok bool) {
	if len(t.addresses) > 0 {
		if n, ok := t.addresses[rcpt]; ok {
			if v, ok := n.find(sender, stream); ok {
				return v, true
			}
		}
	}
	at := strings.LastIndexByte(rcpt, '@')
	if at > 0 && len(t.looseAt) > 0 && t.looseAt[rcpt[at+1:]] {
		if v, ok := t.mailbox(rcpt[:at], rcpt[at:], sender, stream); ok {
			return v, true
		}
	}
	host := rcpt[at+1:]
	if n, ok := t.exact[host]; ok {
		if v, ok := n.find(sender, stream); ok {
			return v, true
		}
	}
	if len(t.below) > 0 {
		for up, ok := parent(host); ok; up, ok = parent(up) {
			if n, ok := t.below[up]; ok {
				if v, ok := n.find(sender, stream); ok {
					return v, true
				}
			}
		}
	}
	return t.all.find(sender, stream)
}

func (n *node) find(sender, stream string) (value int32, ok bool) {
	if l := n.exact[sender]; l != nil {
		if v, ok := l.find(stream); ok {
			return v, true
		}
	}
	if len(n.below) > 0 {
		for up, ok := parent(sender); ok; up, ok = parent(up) {
			if l := n.below[up]; l != nil {
				if v, ok := l.find(stream); ok {
					return v, true
				}
			}
		}
	}
	if n.any == nil {
		return 0, false
	}
	return n.any.find(stream)
}

func (l *leaf) find(stream string) (value int32, ok bool) {
	if l.by != nil {
		if v, ok := l.by[stream]; ok {
			return v, true
		}
	}
	return l.any, l.any >= 0
}

// parent is a domain without its first label. What comes of a literal is no domain, which nobody looks for.
func parent(host string) (up string, ok bool) {
	_, up, ok = strings.Cut(host, ".")
	return up, ok
}

// recipientPattern brings a pattern of recipients into its canonical form: "" for everybody.
func recipientPattern(s string) (canonical, reason string) {
	if strings.IndexByte(s, '@') < 0 {
		return domainPattern(s)
	}
	if strings.HasPrefix(s, "*@") {
		return "", starReason // it could be somebody's name, but is surely meant to be everybody's
	}
	a, reason := parse(s)
	if reason != "" {
		return "", reason
	}
	return a.Key(), ""
}

// domainPattern brings a pattern of domains into its canonical form: "" for all.
func domainPattern(s string) (canonical, reason string) {
	if s == "" || s == "*" {
		return "", ""
	}
	under, wild := strings.CutPrefix(s, "*.")
	switch {
	case strings.IndexByte(under, '*') >= 0:
		return "", starReason
	case strings.HasPrefix(s, "."): // as Postfix writes it
		return "", dotReason
	}
	canonical, upper, reason := toASCIIOrLiteral(under)
	switch {
	case reason != "":
		return "", reason
	case wild && strings.HasPrefix(under, "["):
		return "", "an address literal has no subdomains"
	case upper:
		canonical = strings.ToLower(canonical)
	}
	if wild {
		canonical = "*." + canonical
	}
	return canonical, ""
}

const (
	starReason = `a "*" stands for everybody, or with a dot at the start of a domain for all its subdomains`
	dotReason  = `a domain doesn't begin with a dot; all its subdomains are "*.example.com"`
)
