package smtplb

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/internal/connpool"
	"github.com/smtplb/smtplb/internal/domain"
)

// This file holds what is allowed: attempts, connections, which relays serve which mail, and which relay is left alone for which sender.

// Retry bounds the attempts for one message.
type Retry struct {
	// Attempts is how many relays are tried for a recipient at the most, each once (with AtLeastOnce, one that left the outcome unknown once more). Default: 3. Negative: as many as there are. The free redial of
	// a connection that proved stale is not an attempt.
	Attempts int
	// Budget bounds the attempts beyond the first of each message, so that an outage of everything isn't made worse by retries: it is the share of first attempts that may be
	// added to them. Default: 0.2. Negative: no bound.
	//
	// Each first attempt brings that share of a token into the pool's account, where it lapses after 60 s, and each further one takes a token out. At first the account holds as many as
	// the relays may have connections together (those without a limit not counted), and at least 10. An attempt at a relay that is well is made even where the account is empty; without a token
	// nobody probes a relay that has just failed, or tries the same one again (AtLeastOnce). Who finds no other is deferred with ErrNoRelay. A further attempt
	// because of a recipient's own 4xx costs nothing.
	Budget float64
	// NoHedging: a slow relay is waited for. By default, when no connection has come about after 250 ms (or what this relay takes in 19 of 20 cases, if that is
	// more), another relay of the same tier that is well and has a free connection is asked too, and the message goes to the one that is ready first; it is never offered to both. The other connection is
	// kept for the next message. At most 5 % more connections are opened for that. Dial and Auth functions are then called in a goroutine of their own.
	NoHedging bool
}

func (r Retry) validate(f *faults) {
	if r.Budget != r.Budget || r.Budget > 1000 {
		f.add("Retry.Budget", "is %v; it is a share, such as 0.2 (negative: no bound)", r.Budget)
	}
}

const defaultAttempts = 3

// Route says which relays serve some of the mail. It is for the recipients whom one of its Recipients matches, in messages whose sender one of its Senders, and whose Stream one of its Streams
// matches; the mail goes to the relays of its group, with their tiers, and to no others, whatever happens.
//
// Of several Routes that match, the most specific counts: first by recipient (an address, then a domain, then the wildcard with the most labels, then everybody), then likewise by sender, then by stream. Their
// order has no meaning. Recipients whom no Route matches go to all relays but those that are RoutedOnly.
//
// A message whose recipients leave by the groups of several Routes is sent to each group apart, at the same time, in a goroutine for each (Dial, Auth and Hooks are called there), and the Receipt has what became of each recipient, in the envelope's order. With
// Envelope.RequireAll it goes in one piece to a relay that is in all of these groups; it is an error if there is none.
type Route struct {
	// Name says which route is meant in errors and plans. Default: its place in Config.Routes: "Routes[2]". What was used of Limits goes by it, also over an Update: a Route that has some needs a name of its own where its place may be another then, or
	// in another process that asks the same Limiter.
	Name string
	// Recipients are patterns of recipients: "example.com" (everybody in that domain), "*.example.com" (in all its subdomains, however deep, but not in the domain itself), "*" (everybody), or an
	// address, "user@example.com". Case doesn't matter in domains, and internationalised names match in both their forms. nil: everybody.
	Recipients []string
	// AnyCase: case doesn't matter in the local parts of the addresses among Recipients either. A Route that names the address as it is written counts before. Default: "User@example.com" is not user@example.com, as only the
	// receiving host knows better (RFC 5321 §2.4).
	AnyCase bool
	// Delimiter is what an extension of a local part begins with: "+" makes "user@example.com" stand for user+news@example.com too, where no Route of that stream and sender names the whole address. It is a character of !#$%&'*+-/=?^_`{|}~ and goes
	// with AnyCase; all Routes with AnyCase must have the same. Default: addresses have no extensions.
	Delimiter string
	// Senders are patterns of the domain of Envelope.From, as in Recipients, without addresses; "<>" is the null sender. nil: any, the null sender included.
	Senders []string
	// Streams are values of Envelope.Stream. They need not be in Config.Streams, which is about waiting and limits, so a name that no envelope has is no error: the Route is for nothing then. nil: any, and envelopes that name none, for which there is no other pattern.
	Streams []string

	// Relays and Tags name the group: it is the relays that have one of these names, or at least one of these tags. It must have a relay, unless there is an Action.
	Relays []string
	Tags   []string
	// Ordered: the group's relays are tried in the order in which Relays names them, as if each were in a tier of its own, whatever their Tiers: mail goes to one only when none before it can take it. Plan.Tier is then the place in Relays. It
	// goes without Tags, which have no order. Default: by Tier and Weight.
	Ordered bool

	// Limits bound what leaves by the route. Default: none of its own.
	Limits Limits

	// Action is what becomes of the mail. Default: it is delivered through the group.
	Action RouteAction
	// Text says why, for an Action other than RouteDeliver: "5.7.1 no mail for this domain". It stands in the recipients' errors.
	Text string

	_ struct{}
}

// RouteAction is what a Route does with its mail.
type RouteAction uint8

const (
	// RouteDeliver: a relay of the group takes it over.
	RouteDeliver RouteAction = iota
	// RouteFail: its recipients have Failed. No relay is asked.
	RouteFail
	// RouteDefer: its recipients are Deferred, and may be tried again when the configuration is another.
	RouteDefer
	// RouteDiscard: its recipients are Discarded: the message goes nowhere.
	RouteDiscard
	// RouteDefault: its mail goes where mail goes that no Route is for, to all relays but those that are RoutedOnly. It makes an exception to a Route that is less specific.
	RouteDefault
)

// String returns the action in lower case.
func (a RouteAction) String() string {
	return nameOf([]string{"deliver", "fail", "defer", "discard", "default"}, int(a), "RouteAction")
}

// routeName is how the i-th route is called.
func (c *Config) routeName(i int) string {
	if name := c.Routes[i].Name; name != "" {
		return name
	}
	return fmt.Sprintf("Routes[%d]", i)
}

// validateRoutes adds the faults of the routes to f, and returns them as a table.
func (c *Config) validateRoutes(f *faults) *domain.Table {
	relays, tags := make(map[string]bool), make(map[string]bool)
	open := false        // a relay takes what no route is for
	delimiter := byte(0) // of all routes with AnyCase
	loose := -1          // the first of them
	for i := range c.Relays {
		r := &c.Relays[i]
		relays[r.name()] = true
		for _, tag := range r.Tags {
			tags[tag] = true
		}
		open = open || !r.RoutedOnly
	}
	standard := open // what no route is for, and what a RouteDefault is for
	var rules []domain.Rule
	var places []rulePlace // of rules
	names := make(map[string]int)
	for i := range c.Routes {
		x, path := &c.Routes[i], fmt.Sprintf("Routes[%d]", i)
		x.validate(path, relays, tags, f)
		switch {
		case x.Action == RouteDefault && !standard && len(c.Relays) > 0:
			f.add(path+".Action", "leads to the relays that are not RoutedOnly, and all are")
		case !x.AnyCase:
		case loose < 0:
			if loose = i; x.Delimiter != "" {
				delimiter = x.Delimiter[0]
			}
		case x.Delimiter != c.Routes[loose].Delimiter:
			f.add(path+".Delimiter", "is %q, and that of Routes[%d] %q: all with AnyCase must have the same", x.Delimiter, loose, c.Routes[loose].Delimiter)
		}
		if x.Name != "" {
			if first, ok := names[x.Name]; ok {
				f.add(path+".Name", "%q is the name of Routes[%d] too", x.Name, first)
			}
			names[x.Name] = i
		}
		if n := len(rules) + len(orAny(x.Recipients))*len(orAny(x.Senders))*len(orAny(x.Streams)); n > maxRules {
			f.add(path, "makes %d combinations of recipients, senders and streams with those before it; at most %d", n, maxRules)
			return nil
		}
		for r, rcpt := range orAny(x.Recipients) {
			open = open || rcpt == "*" && x.Action != RouteDefault && slices.Contains(orAny(x.Senders), "*") && x.Streams == nil
			for s, sender := range orAny(x.Senders) {
				for t, stream := range orAny(x.Streams) {
					if x.Streams == nil {
						stream = ""
					}
					rules = append(rules, domain.Rule{Recipient: rcpt, Sender: sender, Stream: stream, Value: int32(i), Loose: x.AnyCase})
					places = append(places, rulePlace{i, r, s, t})
				}
			}
		}
	}
	if !open && len(c.Relays) > 0 {
		f.add("Relays", "all are RoutedOnly, and no Route is for everybody: there is mail that would go nowhere")
	}
	if len(rules) == 0 {
		return nil
	}
	table, wrong := domain.NewTableWith(rules, delimiter)
	told := make(map[string]bool) // a pattern stands in as many rules as there are of the others
	for _, w := range wrong {
		at := places[w.Rule]
		path, reason := at.path(w.Field), w.Reason
		if w.Same >= 0 {
			if path = fmt.Sprintf("Routes[%d]", at.route); c.Routes[at.route].Recipients != nil {
				path = at.path("Recipient")
			}
			reason = fmt.Sprintf("is for the same mail as Routes[%d]", places[w.Same].route)
		}
		if !told[path+reason] {
			told[path+reason] = true
			f.add(path, "%s", reason)
		}
	}
	return table
}

// maxRules bounds the combinations of all routes' patterns: they take some 170 bytes each.
const maxRules = 10_000_000

// rulePlace is where a rule of the table comes from.
type rulePlace struct{ route, recipient, sender, stream int }

func (at rulePlace) path(field string) string {
	n := at.recipient
	switch field {
	case "Sender":
		n = at.sender
	case "Stream":
		n = at.stream
	}
	return fmt.Sprintf("Routes[%d].%ss[%d]", at.route, field, n)
}

// anything is the pattern that a list stands for that isn't there.
var anything = []string{"*"}

func orAny(patterns []string) []string {
	if patterns == nil {
		return anything
	}
	return patterns
}

// delimiters are what may divide a local part from its extension: what needs no quotes there, and is part of no word.
const delimiters = "!#$%&'*+-/=?^_`{|}~"

// validate adds the route's own faults to f: it may name the relays and tags that there are.
func (x *Route) validate(path string, relays, tags map[string]bool, f *faults) {
	if strings.ContainsFunc(x.Name, isControl) || len(x.Name) > 255 {
		f.add(path+".Name", "control characters, or more than 255 bytes")
	}
	for _, l := range []struct {
		field string
		list  []string
	}{{"Recipients", x.Recipients}, {"Senders", x.Senders}, {"Streams", x.Streams}} {
		if l.list != nil && len(l.list) == 0 {
			f.add(path+"."+l.field, "is empty; nil stands for all")
		}
		for n, s := range l.list {
			if s == "" {
				f.add(fmt.Sprintf("%s.%s[%d]", path, l.field, n), "is empty")
			}
		}
	}
	for n, s := range x.Streams {
		if s == "*" {
			f.add(fmt.Sprintf("%s.Streams[%d]", path, n), "is no pattern; nil stands for all")
		}
		if len(s) > maxStream || strings.ContainsFunc(s, isControl) {
			f.add(fmt.Sprintf("%s.Streams[%d]", path, n), "control characters, or more than %d bytes", maxStream)
		}
	}
	switch {
	case x.Delimiter != "" && (len(x.Delimiter) != 1 || !strings.Contains(delimiters, x.Delimiter)):
		f.add(path+".Delimiter", "%q is not one of the characters %s", x.Delimiter, delimiters)
	case x.Delimiter != "" && !x.AnyCase:
		f.add(path+".Delimiter", "goes with AnyCase only")
	}
	for n, name := range x.Relays {
		if !relays[name] {
			f.add(fmt.Sprintf("%s.Relays[%d]", path, n), "no relay is called %q", name)
		}
	}
	for n, tag := range x.Tags {
		if !tags[tag] {
			f.add(fmt.Sprintf("%s.Tags[%d]", path, n), "no relay has the tag %q", tag)
		}
	}
	switch {
	case x.Action > RouteDefault:
		f.add(path+".Action", "%d is none", x.Action)
	case x.Action != RouteDeliver && len(x.Relays)+len(x.Tags) > 0:
		f.add(path+".Action", "goes without Relays and Tags: it is not for relays of its own")
	case x.Action == RouteDeliver && len(x.Relays)+len(x.Tags) == 0:
		f.add(path+".Relays", "names no relay, nor does Tags")
	case (x.Action == RouteDeliver || x.Action == RouteDefault) && x.Text != "":
		f.add(path+".Text", "is for an Action that no relay has a part in")
	}
	switch {
	case x.Ordered && len(x.Tags) > 0:
		f.add(path+".Ordered", "goes without Tags, which have no order")
	case x.Ordered && x.Action != RouteDeliver:
		f.add(path+".Ordered", "is for relays, and the Action names none")
	}
	x.Limits.validate(path+".Limits", scopeRoute, f)
	if x.Action != RouteDeliver && x.Limits.any() {
		f.add(path+".Limits", "go with RouteDeliver only")
	}
	if strings.ContainsFunc(x.Text, isControl) || len(x.Text) > 500 {
		f.add(path+".Text", "control characters, or more than 500 bytes")
	}
}

// Conns limits a relay's connections. Zero fields mean the default, negative ones no limit (MaxIdle: none is kept).
type Conns struct {
	Max         int           // at a time; default 10
	Reserved    int           // of Max, kept free of bulk (see Stream); default a tenth of Max, one at least, none of one; negative: none
	MaxIdle     int           // kept open while idle; default Max
	MaxMessages int           // on one connection; default 100
	MaxAge      time.Duration // of one connection, ±10 %; default 5 min
	MaxIdleTime time.Duration // default 30 s
}

func (c Conns) limits() connpool.Limits {
	l := connpool.Limits{Max: 10, MaxIdle: c.MaxIdle, MaxUses: 100, MaxAge: 5 * time.Minute, MaxIdleTime: 30 * time.Second}
	if c.Max != 0 {
		l.Max = c.Max
	}
	if l.Reserved = c.Reserved; c.Reserved == 0 && l.Max > 1 {
		l.Reserved = (l.Max + 9) / 10
	}
	if c.MaxMessages != 0 {
		l.MaxUses = c.MaxMessages
	}
	if c.MaxAge != 0 {
		l.MaxAge = c.MaxAge
	}
	if c.MaxIdleTime != 0 {
		l.MaxIdleTime = c.MaxIdleTime
	}
	return l
}

// defaultMaxMessageSize is Config.MaxMessageSize's default.
const defaultMaxMessageSize = 100 << 20

// maxRecipients is how many recipients go into one transaction; more are spread over several on the same connection. RFC 5321
// §4.5.3.1.8 makes relays take 100.
const maxRecipients = 100

// What a deferred recipient is told to wait, by reason, and how long relays are left alone or waited for.
const (
	retrySoon       = 30 * time.Second // nothing is known: another relay, or the same one, may do
	retryTemporary  = 5 * time.Minute  // a relay's 4xx
	retryGreylisted = 5 * time.Minute  // most greylists want 5 minutes at least
	coolDown        = 10 * time.Second // of a relay that wants less mail, or whose quota is used up
	maxPreferWait   = 30 * time.Second // for a slot on the relay that Envelope.Prefer names
	apartFor        = 10 * time.Minute // of a relay and a sender domain that it refuses
)

// apart remembers which sender domains a relay refuses ("relaying denied", "sender not verified"). It is bounded.
type apart struct {
	n     atomic.Int32 // len(until): a relay that refuses nobody costs one load
	mu    sync.Mutex   // guards until; held for map operations only
	until map[string]time.Time
}

const maxApart = 1024

func (a *apart) add(domain string, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.until == nil {
		a.until = make(map[string]time.Time)
	}
	if len(a.until) >= maxApart {
		for d, t := range a.until { // the expired ones, else any
			if now.After(t) || len(a.until) >= maxApart {
				delete(a.until, d)
			}
		}
	}
	a.until[domain] = now.Add(apartFor)
	a.n.Store(int32(len(a.until)))
}

func (a *apart) has(domain string) bool {
	if a.n.Load() == 0 {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	t, ok := a.until[domain]
	if ok && time.Now().After(t) {
		delete(a.until, domain)
		a.n.Store(int32(len(a.until)))
		ok = false
	}
	return ok
}

// endOf returns until when a domain is refused, if it is.
func (a *apart) endOf(domain string) (until time.Time, ok bool) {
	if !a.has(domain) {
		return until, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	until, ok = a.until[domain]
	return until, ok
}

func (a *apart) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.until = nil
	a.n.Store(0)
}
