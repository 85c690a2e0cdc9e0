package smtplb

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/smtplb/smtplb/internal/domain"
)

// This file turns a Postfix transport(5) table into relays and routes. internal/domain reads it.

// TransportMap is what a Postfix transport(5) table says, as it goes into a Config:
//
//	pool, err := smtplb.New(smtplb.Config{Relays: m.Relays, Routes: m.Routes})
//
// Both may be changed and added to before.
type TransportMap struct {
	// Relays are those of TransportMapOptions.Default, then one for each host and port that the table names, with RoutedOnly, in the order in which they first appear there. Its name is its address, "relay.example.com:25";
	// for a transport with a Relay of its own, "slow:relay.example.com:25".
	Relays []Relay
	// Routes are one for each entry, in the order of the table, but for entries that are never asked. Their names are those of TransportMapOptions.Name and the line: "transport:12".
	Routes []Route
	// Warnings tell of entries that were skipped, as Postfix does, and of those that do not say what their author may think, in the order of the table.
	Warnings []TransportMapWarning

	_ struct{}
}

// TransportMapWarning is what a person should look at in a transport table.
type TransportMapWarning struct {
	Line   int // where the entry begins
	Reason string
}

// String tells the line and the reason.
func (w TransportMapWarning) String() string { return "line " + strconv.Itoa(w.Line) + ": " + w.Reason }

// TransportMapError is a fault in a transport table. ParseTransportMap's error joins all that there are.
type TransportMapError struct {
	Line   int // where the entry begins; 0: it is about the table as a whole
	Reason string
	Err    error // what lies behind: that of the reader, or a *ConfigError about a relay that the entry asks for; may be nil
}

// Error tells the line and the reason. It holds no credential.
func (e *TransportMapError) Error() string {
	if e.Line == 0 {
		return "smtplb: transport map: " + e.Reason
	}
	return "smtplb: transport map: line " + strconv.Itoa(e.Line) + ": " + e.Reason
}

// Unwrap returns Err.
func (e *TransportMapError) Unwrap() error { return e.Err }

// TransportMapOptions say what a transport table leaves to the rest of Postfix's configuration. The zero value does for a table that settles all mail, with relays that need no credentials.
type TransportMapOptions struct {
	// Relay is what all relays of the table have in common: credentials, TLS, limits, tags. Name and Addr are the table's business, and an error here. The zero value: TLS is required, unless the host is this one, and nobody logs
	// in. Postfix itself falls back to plain text where its smtp_tls_security_level is not set: here that is TLSOpportunistic, without credentials.
	Relay Relay
	// Default are the relays for mail that the table leaves alone: to recipients for whom it has no entry, and to those of whom it says ":". In Postfix that is relayhost. Where the table names the host and port of one
	// of them, it is that relay. nil: there is no such mail; a table that has some is an error.
	Default []Relay
	// Delimiter is Postfix's recipient_delimiter: with "+", an entry for user@example.com is for user+news@example.com too, as for Route.Delimiter. Default: addresses have no extensions.
	Delimiter string
	// Transports say what the transports are that the table names, other than smtp, relay, error, retry and discard, which can't be given: those of master.cf. An entry with a name that is not here is an error.
	Transports map[string]PostfixTransport
	// Name is how the routes are called, with the line: that of the file, for instance. Default: "transport".
	Name string

	_ struct{}
}

// PostfixTransport says what a transport of one's own is. The zero value is an SMTP client like Postfix's smtp.
type PostfixTransport struct {
	// Relay is what the relays have in common that entries of this transport name, in the place of TransportMapOptions.Relay: other limits, for instance. They are relays of their own then, whoever else names the same
	// host. nil: TransportMapOptions.Relay, and the same relays as those of smtp.
	Relay *Relay
	// NextHop is where mail goes whose entry names no host ("slow:"), written as in the table: "[a.example.com]:587, [b.example.com]". Default: such an entry is an error, as for smtp: it would be delivered to the recipient's
	// own MX.
	NextHop string
	// Action settles the mail in another way, whatever host an entry names: RouteFail, RouteDefer or RouteDiscard; or RouteDefault, as for ":". Default: RouteDeliver, to the hosts. It goes without Relay and NextHop.
	Action RouteAction
	// Text is Route.Text, for RouteFail, RouteDefer and RouteDiscard.
	Text string

	_ struct{}
}

// maxRouteText is how long Route.Text may be.
const maxRouteText = 500

// ParseTransportMap reads a table in the form of Postfix's transport(5), a text file as it stands beside main.cf, and returns the relays and routes that do what it says.
//
// Entries count as they do in Postfix: the address, the address without its extension, the domain, ".domain" for all that is below it, the nearest first, and "*"; without regard to case, also in local
// parts. "*.domain" is taken for ".domain", with a warning. What an entry says comes to this:
//
//   - smtp:[host]:port, relay:[host]: that relay. A list, "[a], [b]:587", is tried in its order (Route.Ordered). The port is 25 unless one is given. A host without brackets is the relay itself, with a warning: Postfix would ask for
//     its MX records. Without a host it is an error: there is no delivery to the recipient's MX here.
//   - error:text, retry:text: RouteFail and RouteDefer, with that text, "5.0.0 Address is undeliverable" and "4.0.0 Address is undeliverable" where there is none.
//   - discard:text: RouteDiscard.
//   - ":" alone: RouteDefault. ":[host]" is smtp:[host], Postfix's default transport.
//   - lmtp: an error. All other names: what TransportMapOptions.Transports says.
//
// The error joins all faults: a *TransportMapError for each of the table, a *ConfigError for each of the options. What is returned without one is valid: New finds no fault in a Config that has it and nothing
// else of its own. An entry may have 64 KiB; after 1,000 faults the rest is not read.
func ParseTransportMap(r io.Reader, o TransportMapOptions) (*TransportMap, error) {
	var f faults
	o.validate(&f)
	if r == nil {
		f.add("TransportMapOptions", "the reader is nil")
	}
	if len(f) > 0 {
		return nil, errors.Join(f...)
	}
	b := mapBuilder{options: &o, byHop: map[hopKey]int{}, named: map[string]int{}, told: map[string]bool{}, m: &TransportMap{}}
	for i := range o.Default {
		b.have(o.Default[i])
	}
	table, err := domain.ParseTransport(r, b.entry)
	var all []error
	for _, e := range flatten(err) {
		var at *domain.TransportError
		switch {
		case !errors.As(e, &at):
			all = append(all, &TransportMapError{Reason: e.Error(), Err: errors.Unwrap(e)})
		case b.behind[at.Reason] != nil:
			all = append(all, &TransportMapError{Line: at.Line, Reason: at.Reason, Err: b.behind[at.Reason]})
		default:
			all = append(all, &TransportMapError{Line: at.Line, Reason: at.Reason})
		}
	}
	if err == nil {
		all = b.finish(table)
	}
	if len(all) > 0 {
		return nil, errors.Join(all...)
	}
	return b.m, nil
}

// flatten returns the errors that were joined.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// validate adds the options' own faults to f.
func (o *TransportMapOptions) validate(f *faults) {
	template := func(path string, r *Relay) {
		for _, x := range []struct{ field, value string }{{"Name", r.Name}, {"Addr", r.Addr}} {
			if x.value != "" {
				f.add(path+"."+x.field, "is for the table to say")
			}
		}
	}
	template("TransportMapOptions.Relay", &o.Relay)
	names := make(map[string]bool, len(o.Default))
	for i := range o.Default {
		x, path := &o.Default[i], fmt.Sprintf("TransportMapOptions.Default[%d]", i)
		x.validate(path, f)
		if x.RoutedOnly {
			f.add(path+".RoutedOnly", "contradicts what Default is for")
		}
		if names[x.name()] {
			f.add(path+".Name", "%q is the name of another too", x.name())
		}
		names[x.name()] = true
	}
	if o.Delimiter != "" && (len(o.Delimiter) != 1 || !strings.Contains(delimiters, o.Delimiter)) {
		f.add("TransportMapOptions.Delimiter", "%q is not one of the characters %s", o.Delimiter, delimiters)
	}
	if strings.ContainsFunc(o.Name, isControl) || len(o.Name) > 200 {
		f.add("TransportMapOptions.Name", "control characters, or more than 200 bytes")
	}
	for _, name := range slices.Sorted(maps.Keys(o.Transports)) {
		x, path := o.Transports[name], fmt.Sprintf("TransportMapOptions.Transports[%q]", name)
		switch {
		case slices.Contains([]string{"smtp", "relay", "lmtp", "error", "retry", "discard", ""}, name):
			f.add(path, "is Postfix's own")
		case strings.ContainsFunc(name, func(r rune) bool { return isControl(r) || strings.ContainsRune(" :", r) }) || !utf8.ValidString(name):
			f.add(path, "is no name of a transport: it has a blank, a colon or a control character")
		case x.Action > RouteDefault:
			f.add(path+".Action", "%d is none", x.Action)
		case x.Action != RouteDeliver && (x.Relay != nil || x.NextHop != ""):
			f.add(path+".Action", "goes without Relay and NextHop: its mail is not for relays of its own")
		case (x.Action == RouteDeliver || x.Action == RouteDefault) && x.Text != "":
			f.add(path+".Text", "is for an Action that no relay has a part in")
		}
		if strings.ContainsFunc(x.Text, isControl) || len(x.Text) > maxRouteText {
			f.add(path+".Text", "control characters, or more than %d bytes", maxRouteText)
		}
		if x.Relay != nil {
			template(path+".Relay", x.Relay)
		}
		if _, reason := domain.ParseNextHop(x.NextHop); reason != "" {
			f.add(path+".NextHop", "%s", reason)
		}
	}
}

// hopKey is what relays of a table are told apart by.
type hopKey struct {
	transport string // with a Relay of its own
	addr      string // as for Dial
}

// mapBuilder makes a TransportMap while the table is read.
type mapBuilder struct {
	options *TransportMapOptions
	m       *TransportMap
	routes  []Route          // of the table's entries, without their Recipients
	byHop   map[hopKey]int   // in m.Relays
	named   map[string]int   // likewise
	told    map[string]bool  // faults of templates, which every host has
	behind  map[string]error // faults' reasons
}

// have takes in a relay of which there may already be one for the same host.
func (b *mapBuilder) have(r Relay) {
	if t, err := parseAddr(r.Addr, r.TLS); err == nil && t.network == "tcp" {
		if _, ok := b.byHop[hopKey{addr: t.addr}]; !ok {
			b.byHop[hopKey{addr: t.addr}] = len(b.m.Relays)
		}
	}
	b.named[r.name()] = len(b.m.Relays)
	b.m.Relays = append(b.m.Relays, r)
}

// entry makes a route of one entry, and the relays that it asks for.
func (b *mapBuilder) entry(t *domain.Transport) (warnings, faults []string) {
	x := Route{Name: b.routeName(t.Line), AnyCase: true, Delimiter: b.options.Delimiter}
	switch t.Name {
	case "smtp", "relay":
		x.Relays, faults = b.group("", &b.options.Relay, t.Hops)
	case "error":
		x.Action, x.Text = RouteFail, t.Status+" "+t.Text
	case "retry":
		x.Action, x.Text = RouteDefer, t.Status+" "+t.Text
	case "discard":
		x.Action, x.Text = RouteDiscard, t.Text
	case "":
		if x.Action = RouteDefault; len(t.Hops) > 0 {
			x.Action = RouteDeliver
			x.Relays, faults = b.group("", &b.options.Relay, t.Hops)
		}
	default:
		warnings, faults = b.custom(t, &x)
	}
	if len(x.Text) > maxRouteText {
		x.Text = strings.ToValidUTF8(x.Text[:maxRouteText], "")
		warnings = append(warnings, fmt.Sprintf("the text is cut: it may have %d bytes", maxRouteText))
	}
	if x.Action == RouteDefault && len(b.options.Default) == 0 {
		faults = append(faults, "its mail is for TransportMapOptions.Default, which has no relay")
	}
	x.Ordered = len(x.Relays) > 1
	b.routes = append(b.routes, x)
	return warnings, faults
}

// custom makes x of an entry with a transport that the options tell of.
func (b *mapBuilder) custom(t *domain.Transport, x *Route) (warnings, faults []string) {
	o, ok := b.options.Transports[t.Name]
	if !ok {
		return nil, []string{fmt.Sprintf("transport %s is not known: TransportMapOptions.Transports has to say what it is", oneLine(strconv.QuoteToASCII(t.Name)))}
	}
	if x.Action, x.Text = o.Action, o.Text; x.Action != RouteDeliver {
		return nil, nil
	}
	hops, reason := domain.ParseNextHop(t.NextHop)
	if reason != "" {
		return nil, []string{reason}
	}
	if len(hops) == 0 {
		hops, _ = domain.ParseNextHop(o.NextHop)
	} else if slices.ContainsFunc(hops, func(h domain.Hop) bool { return !h.Bracketed }) {
		warnings = []string{domain.ReasonUnbracketed}
	}
	if len(hops) == 0 {
		return nil, []string{"it names no host, nor does NextHop of TransportMapOptions.Transports: Postfix delivers to the recipient's MX then, which is not done here"}
	}
	if o.Relay == nil {
		x.Relays, faults = b.group("", &b.options.Relay, hops)
	} else {
		x.Relays, faults = b.group(t.Name, o.Relay, hops)
	}
	return warnings, faults
}

// group returns the names of the hosts' relays, which it makes where there are none. own: the transport whose template it is.
func (b *mapBuilder) group(own string, template *Relay, hops []domain.Hop) (names, wrong []string) {
	for _, h := range hops {
		port := h.Port
		if port == "" {
			port = "25"
		}
		addr := net.JoinHostPort(h.Host, port)
		at, ok := b.byHop[hopKey{own, addr}]
		if !ok {
			var faults []string
			if at, faults = b.add(own, template, addr); len(faults) > 0 {
				wrong = append(wrong, faults...)
				continue
			}
		}
		if name := b.m.Relays[at].name(); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, wrong
}

// add makes a relay. What is wrong with a template is told once, and not of each host again.
func (b *mapBuilder) add(own string, template *Relay, addr string) (at int, wrong []string) {
	r := *template
	r.Addr, r.RoutedOnly, r.Tags = addr, true, slices.Clone(r.Tags)
	if own != "" {
		r.Name = own + ":" + addr
	}
	path := "TransportMapOptions.Relay"
	if own != "" {
		path = fmt.Sprintf("TransportMapOptions.Transports[%q].Relay", own)
	}
	var f faults
	r.validate(path, &f)
	if at, taken := b.named[r.name()]; taken {
		f.add("TransportMapOptions.Default", "the relay %q at %s has the name of one that the table asks for, at %s", r.name(), b.m.Relays[at].printableAddr(), addr)
	}
	for _, err := range f {
		reason := strings.TrimPrefix(err.Error(), "smtplb: ")
		if b.told[reason] {
			continue
		}
		b.told[reason] = true
		if b.behind == nil {
			b.behind = map[string]error{}
		}
		b.behind[reason] = err
		wrong = append(wrong, reason)
	}
	at = len(b.m.Relays)
	b.byHop[hopKey{own, addr}], b.named[r.name()] = at, at
	b.m.Relays = append(b.m.Relays, r)
	return at, wrong
}

func (b *mapBuilder) routeName(line int) string {
	name := b.options.Name
	if name == "" {
		name = "transport"
	}
	return name + ":" + strconv.Itoa(line)
}

// finish gives the routes their recipients, where nothing is wrong with the table.
func (b *mapBuilder) finish(table *domain.TransportMap) (wrong []error) {
	all := false
	asked := make([]bool, len(table.Entries))
	for i := range table.Entries {
		t := &table.Entries[i]
		all = all || t.Key == "*"
		x := b.routes[i]
		if x.Recipients = table.Patterns(t); x.Recipients != nil {
			asked[i] = true
			b.m.Routes = append(b.m.Routes, x)
		}
	}
	if !all && len(b.options.Default) == 0 {
		wrong = append(wrong, &TransportMapError{Reason: `there is no entry "*", and TransportMapOptions.Default has no relay: mail for others would go nowhere`})
	} else if len(b.m.Relays) == 0 {
		wrong = append(wrong, &TransportMapError{Reason: "it names no relay, and TransportMapOptions.Default has none: a Config needs one"})
	}
	for _, w := range table.Warnings {
		b.m.Warnings = append(b.m.Warnings, TransportMapWarning{w.Line, w.Reason})
	}
	for i, ok := range asked {
		if !ok {
			b.m.Warnings = append(b.m.Warnings, TransportMapWarning{table.Entries[i].Line, "skipped: no address has this key, or another entry is asked before it"})
		}
	}
	slices.SortStableFunc(b.m.Warnings, func(x, y TransportMapWarning) int { return x.Line - y.Line })
	return wrong
}
