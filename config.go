package smtplb

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/smtp"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/smtplb/smtplb/internal/backoff"
	"github.com/smtplb/smtplb/internal/domain"
	"github.com/smtplb/smtplb/internal/session"
)

// Config configures a Pool. Only Relays is required. In all of it, the zero value of a field means the documented default, and a
// negative number means off or unlimited where the field says so, else it is an error. New validates everything and reports all faults at once.
type Config struct {
	// Relays are the relays that mail leaves through: at least one, with distinct names.
	Relays []Relay
	// Routes say which relays serve which mail. nil: every relay serves every message.
	Routes []Route
	// Balancer chooses among the relays of a tier. nil: Adaptive().
	Balancer Balancer
	// Retry bounds the attempts for a message.
	Retry Retry
	// Streams are the classes of traffic that Envelope.Stream names, and how they wait for connections. nil: "bulk" and "marketing" are put back by 30 s and get no slots that
	// Conns.Reserved keeps back; all others are equal.
	Streams []Stream
	// MaxWait bounds how long a message waits for a free connection. What waits longer is deferred with ErrNoRelay, or, with SpillOver, may use the next tier as well. Default: only the
	// caller's context bounds it. What waits for a limit in a DeliverAll isn't bounded by it. Negative is an error.
	MaxWait time.Duration
	// SpillOver lets a message that has waited for MaxWait while all relays of its tier were busy use the next tier beside it, and another MaxWait later the one after that; when all are
	// busy, it is deferred. Without it a tier is used only when no relay of a lower one can take mail at all.
	SpillOver bool
	// Health says how relays are checked that no message tells of, and how one that was away is used again.
	Health Health
	// Limits bound what the whole pool sends. Default: nothing.
	Limits Limits
	// PerSender bound what each sender sends: each Envelope.Key, and where there is none each domain of Envelope.From. Default: nothing.
	PerSender Limits
	// Providers are operators of mailboxes, whose domains share limits. Those that Providers returns are known without being named; an entry with the Name of one of these takes its place.
	Providers []Provider
	// MXResolver is asked who takes the mail of domains that no Provider names, so that those of a provider's customers count as its own (Provider.MXSuffixes). *net.Resolver is one: net.DefaultResolver. nil: nobody is
	// asked.
	//
	// The first message to a domain waits for the answer, but no longer than a second for all of its recipients together, nor than a tenth of its context's time; then it goes out without a provider, as it does where DNS fails,
	// and while DNS is slow nobody waits. No message waits for a lookup that a domain had before. An answer is asked for again after an hour, one that names no host after 10 minutes, and a lookup that failed after one, with the next message to
	// the domain; until then, and where DNS fails, the last answer holds. The pool remembers 65,536 domains and asks for 16 at a time. Whose limits count is decided once for each send.
	MXResolver MXResolver
	// Limiter keeps the rates of all Limits, for several pools or processes together. nil: token buckets of this pool.
	Limiter Limiter
	// Store keeps what must outlive the process: how far the Relay.Warmup of each relay is. nil: the pool's memory.
	Store Store
	// MaxThrottleWait bounds how long a message waits for a limit, before each of its attempts. Default: 30 s. Negative: only the caller's context bounds it. A wait that is longer than what is left of the context's time (see Deliver) doesn't begin either. In a DeliverAll what is waited for because of others of the same loop doesn't count. What goes on waiting all the same, for a limit or for a connection, looks again after as long once more, and after 100 ms at the least.
	MaxThrottleWait time.Duration
	// LocalName is the name given in EHLO (RFC 5321 §4.1.1.1). Default: the host's name where it is fully qualified, else "localhost".
	LocalName string
	// Dial opens connections, where a Relay has no Dial of its own: a proxy, an in-memory network. It must end with its context. Default: a
	// net.Dialer. A connection that is neither a *net.TCPConn nor a *net.UnixConn should have a method ExactWrite() bool that returns
	// true if the count a Write returns is exactly what may reach the relay; otherwise a message counts as committed when its last
	// write begins, and a failure then means Unknown more often.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Resolver is asked for names where no Dial is given, and for SRV records always. nil: net.DefaultResolver.
	Resolver Resolver
	// MaxMessageSize bounds what is read of a message, in bytes, attachments encoded (base64 adds a third), and with what a Signer adds. Default: 100 MiB. Negative: unlimited.
	MaxMessageSize int64
	// SpillSize is the largest message, in bytes, that is held in memory: a larger one lies in a temporary file, from its reading to the end of its send, or for as long as a Receipt is kept that
	// can be asked for a Retry of it. Bytes whose line ends are in order stay where they are, whatever their size. Default: 1 MiB. Negative: all messages are held in memory.
	SpillSize int64
	// SpillDir is where the temporary files are made, with mode 0600. On Unix they have no name from the start, so that nothing is left of them, however the program ends. New
	// doesn't look whether it exists: where no file can be made, or the disk is full, messages are held in memory, which the Logger is told once. Default: os.TempDir().
	SpillDir string
	// Signer puts a signature in front of each message: DKIM. nil: messages go out as they are.
	Signer Signer
	// Logger hears of state changes (Info, Warn), failed attempts (Info), sends (Debug) and sends that weren't accepted for everybody (Warn). Never of credentials, message text or
	// recipients, but for what a relay's replies say. nil: silent.
	Logger *slog.Logger
	// Hooks are called as things happen.
	Hooks Hooks

	_ struct{}
}

// Relay is one SMTP server that mail may be handed to: a smarthost, a provider's submission service, a local Postfix.
//
// A Relay never prints its password: String, GoString, Format, LogValue and MarshalJSON redact it. Only where a Relay stands in an unexported field of
// another struct does package fmt print fields past all methods: log relay.String() there.
type Relay struct {
	// Name identifies the relay in receipts, logs and statistics. Default: Addr.
	Name string
	// Addr is "host:port", "[::1]:587", "unix:/path" or "srv:example.com". Without a port: 587, or 465 with TLSImplicit. Internationalised names are turned into A-labels.
	//
	// A host's name is resolved again at every dial. Of several addresses the families take turns, as the dials do within a family, and the next is tried when one doesn't answer within 250 ms (RFC 8305). The
	// relay is one all the same: one breaker, one limit of connections. (A Dial function gets the name as it is.)
	//
	// "srv:example.com" stands for the relays that the domain's SRV records name: _submissions._tcp (implicit TLS, RFC 8314 §5.1), or, where there are none, _submission._tcp (STARTTLS, RFC 6186). Each is a relay with a
	// name of its own, "NAME/host:port", where NAME is Name; it has this Relay's settings, and limits, breaker and figures of its own. The records' priorities order them within Tier, and
	// their weights multiply Weight. Certificates are checked against the domain, unless TLSConfig names another. TLS must be TLSAuto, or TLSImplicit for _submissions only. DNS is asked by the first message,
	// and while the pool is in use again every minute, ±20 %; the last good answer is kept where DNS fails. Relays that are no longer named are drained.
	Addr string
	// Weight is the relay's share beside the others of its tier. Default: 1. Negative is an error; to stop using a relay leave it out.
	Weight int
	// Tier orders groups of relays: mail goes to a tier only when no relay of a lower one can take it. Default: 0, the first. Negative is an error.
	Tier int
	// Tags are free words by which a Route can name the relay, together with others.
	Tags []string
	// RoutedOnly: the relay gets only mail that a Route sends there. Default: mail that no Route is for, too.
	RoutedOnly bool

	// TLS says how the conversation is encrypted. Default: TLSAuto.
	TLS TLSMode
	// TLSConfig is the base of the TLS configuration: roots, client certificates, versions. It is cloned; ServerName is set to Addr's
	// host where it is empty, MinVersion to TLS 1.2 where it is lower, and sessions are resumed where it has neither a ClientSessionCache nor a
	// VerifyPeerCertificate, which resumption would go past. nil: the system's roots.
	TLSConfig *tls.Config

	// Username and Password are for AUTH (RFC 4954). Default: no authentication. They are sent over TLS only, unless TLS is TLSNone and
	// Addr is on this host.
	Username, Password string
	// AuthMechanisms are the mechanisms to use with Username and Password; the first that the relay offers is taken, and after a refusal no
	// other is tried. Default: SCRAM-SHA-256, SCRAM-SHA-1, PLAIN, LOGIN. CRAM-MD5 and XOAUTH2 (Password is the access token) must be named.
	AuthMechanisms []string
	// Auth makes the authentication of one connection, in the place of Username and Password: for tokens that expire (see TokenAuth) or mechanisms
	// of your own. It is called for each new connection, must return a fresh value each time, and must end with its context, which has
	// Timeouts.Greeting at the most. Its error sends the message to another relay, and is not held against this one. nil: Username and Password.
	Auth func(ctx context.Context, r AuthRequest) (smtp.Auth, error)

	// Conns limits connections.
	Conns Conns
	// Limits bound what the relay gets. Default: nothing beside Conns.
	Limits Limits
	// Profile is what a service publishes about its relays: ProfileSES() and the like. What Conns and Limits say goes before it. The zero Profile says nothing.
	Profile Profile
	// Rules say what the relay's refusals mean for how much mail it is given. They go before those of Profile, and the built-in ones, which take words for throttling only where they speak of an amount or a rate: "451 4.7.1 please try again later" or
	// "452 4.3.1" may be anything. For a service that says so when it wants less:
	//
	//	Rules: []smtplb.Rule{{Code: 451, Match: "please try again later"}, {Code: 452, Enhanced: "4.3.1"}}, // RuleThrottle is the default
	//
	// What the circuit breaker counts they don't change: see Breaker.
	Rules []Rule
	// Warmup bounds what a relay that mailbox providers don't know yet sends each day. The zero Warmup: nothing.
	Warmup Warmup
	// NoBackOff: the relay is given as much mail as before whatever it says. Default: where it refuses mail for its amount it is given less, and then little by little more again.
	NoBackOff bool
	// Breaker decides when a sick relay is left alone.
	Breaker Breaker
	// Timeouts bound the stages of a conversation.
	Timeouts Timeouts
	// NoRiding: the envelope of the next message is never sent behind the body of the message in progress. By default, where a send waits for a connection of a relay
	// that offers PIPELINING, its envelope goes out so, as RFC 2920 §3.1 allows, which saves a round trip. It is for relays that lose what follows the
	// dot; where that is noticed, the pool leaves it off for an hour by itself.
	NoRiding bool
	// Chunking sends messages by BDAT (RFC 3030), without looking for dots, where the relay offers both CHUNKING and PIPELINING. It needs a round trip more than
	// DATA does: the recipients' replies are waited for before the message. Nothing rides behind it. Default: DATA.
	Chunking bool
	// IgnoreEHLO are EHLO keywords that are treated as not offered, such as "PIPELINING" for a relay whose pipelining is broken.
	IgnoreEHLO []string
	// LocalAddr is the address that connections come from ("192.0.2.1"). Default: the system chooses. It can't be combined with a Dial function.
	LocalAddr string
	// Dial opens this relay's connections. Default: Config.Dial.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	_ struct{}
}

// AuthRequest is what Relay.Auth is asked.
type AuthRequest struct {
	Relay      string   // its name
	Mechanisms []string // that the relay offers
	// Refused is the relay's refusal of the authentication that Auth made a moment ago, nil otherwise. An Auth that returned a cached token fetches a
	// new one. It is asked so once; a second refusal opens the relay's breaker for 5 minutes and longer.
	Refused error
}

// TokenAuth makes a Relay.Auth that authenticates by XOAUTH2 with an access token. token is called for each new connection and caches as it
// likes; when the relay refused the last token, r.Refused is set and a new one is wanted.
func TokenAuth(username string, token func(ctx context.Context, r AuthRequest) (string, error)) func(context.Context, AuthRequest) (smtp.Auth, error) {
	return func(ctx context.Context, r AuthRequest) (smtp.Auth, error) {
		t, err := token(ctx, r)
		if err != nil {
			return nil, err
		}
		if t == "" {
			return nil, errors.New("the token function returned an empty token")
		}
		return xoauth2{username, t}, nil
	}
}

type xoauth2 struct{ user, token string }

func (a xoauth2) Start(*smtp.ServerInfo) (string, []byte, error) {
	return "XOAUTH2", []byte("user=" + a.user + "\x01auth=Bearer " + a.token + "\x01\x01"), nil
}

func (a xoauth2) Next(_ []byte, more bool) ([]byte, error) {
	if more { // the relay explains a refusal in a challenge; an empty answer gets its 5xx
		return []byte{}, nil
	}
	return nil, nil
}

// TLSMode says how a conversation with a relay is encrypted. No mode falls back to plain text after a failed handshake.
type TLSMode uint8

const (
	// TLSAuto: implicit TLS on port 465 (RFC 8314), required STARTTLS elsewhere, certificates verified. Only where Addr's host is
	// 127.0.0.0/8, ::1, localhost or a unix socket, and no credentials are configured: TLSOpportunistic.
	TLSAuto TLSMode = iota
	// TLSImplicit: from the first byte.
	TLSImplicit
	// TLSStartTLS: STARTTLS (RFC 3207), required.
	TLSStartTLS
	// TLSOpportunistic: STARTTLS where it is offered; credentials are not allowed. Certificates are verified against TLSConfig, or not at
	// all where TLSConfig is nil and Addr is on this host.
	TLSOpportunistic
	// TLSNone: plain text. Credentials are not allowed unless Addr is on this host.
	TLSNone
)

var tlsModeNames = [...]string{"auto", "implicit", "starttls", "opportunistic", "none"}

// String returns the mode's name as ParseRelay takes it.
func (m TLSMode) String() string {
	if int(m) < len(tlsModeNames) {
		return tlsModeNames[m]
	}
	return "TLSMode(" + strconv.Itoa(int(m)) + ")"
}

// Timeouts bound the stages of a conversation. Zero fields mean the default, negative ones that only the caller's context
// bounds the stage. Short timeouts are safe in all but Final: before the commit point the message just goes to another relay.
type Timeouts struct {
	Dial     time.Duration // name resolution and connecting; default 10 s
	TLS      time.Duration // STARTTLS and the handshake; default 15 s
	Greeting time.Duration // the banner, and each of EHLO and AUTH's steps; default 30 s
	Command  time.Duration // each reply to MAIL, RCPT and DATA; default 60 s
	Body     time.Duration // writing the message, for each 64 KiB of it; default 30 s
	Final    time.Duration // the reply to the message; default 10 min (RFC 5321 §4.5.3.2.6); what comes later is Unknown
}

func (t Timeouts) session() session.Timeouts {
	s := session.DefaultTimeouts
	set := func(d time.Duration, to ...*time.Duration) {
		for _, p := range to {
			switch {
			case d > 0:
				*p = d
			case d < 0:
				*p = 100 * 365 * 24 * time.Hour
			}
		}
	}
	set(t.Dial, &s.Dial)
	set(t.TLS, &s.TLS)
	set(t.Greeting, &s.Banner, &s.Hello, &s.Auth)
	set(t.Command, &s.Mail, &s.Rcpt, &s.Data)
	set(t.Body, &s.Body)
	set(t.Final, &s.Final)
	return s
}

// String returns the relay in the form of a URL as ParseRelay takes it, with the password replaced.
func (r Relay) String() string { return r.redactedURL() }

// GoString is String.
func (r Relay) GoString() string { return "smtplb.Relay(" + strconv.Quote(r.redactedURL()) + ")" }

// Format prints String for every verb, so that no verb shows the password.
func (r Relay) Format(f fmt.State, verb rune) {
	if verb == 'v' && f.Flag('#') {
		fmt.Fprint(f, r.GoString())
		return
	}
	fmt.Fprint(f, r.redactedURL())
}

// LogValue logs String.
func (r Relay) LogValue() slog.Value { return slog.StringValue(r.redactedURL()) }

// MarshalJSON encodes String.
func (r Relay) MarshalJSON() ([]byte, error) { return json.Marshal(r.redactedURL()) }

// String lists the relays, without passwords.
func (c Config) String() string { return fmt.Sprintf("smtplb.Config%v", c.Relays) }

// GoString is String.
func (c Config) GoString() string { return c.String() }

// Format prints String for every verb, so that no verb shows a password.
func (c Config) Format(f fmt.State, _ rune) { fmt.Fprint(f, c.String()) }

// LogValue logs the relays, without passwords.
func (c Config) LogValue() slog.Value { return slog.AnyValue(c.Relays) }

// MarshalJSON encodes the relays, without passwords.
func (c Config) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct{ Relays []Relay }{c.Relays})
}

// faults collects what is wrong with a Config.
type faults []error

func (f *faults) add(path, format string, args ...any) {
	*f = append(*f, &ConfigError{Path: path, Reason: fmt.Sprintf(format, args...)})
}

// validate checks c and returns, for each relay, what the session needs, with all faults joined.
func (c *Config) validate() (*checked, error) {
	var f faults
	if len(c.Relays) == 0 {
		f.add("Relays", "at least one is needed")
	}
	local := c.LocalName
	if local == "" {
		local = defaultLocalName()
	} else if name, err := ehloName(local); err != nil {
		f.add("LocalName", "%v", err)
	} else {
		local = name
	}
	if b, ok := c.Balancer.(*ownBalancer); ok && b.fault != "" {
		f.add("Balancer", "%s", b.fault)
	}
	if s, ok := c.Store.(*FileStore); ok && (s == nil || s.path == "") {
		f.add("Store", "is a FileStore without the name of a file")
	}
	c.validateStreams(&f)
	switch {
	case c.MaxWait < 0:
		f.add("MaxWait", "is negative; 0: only the context bounds it")
	case c.MaxWait > 0 && c.MaxWait < time.Millisecond:
		f.add("MaxWait", "is %v; a millisecond is the least (30 is 30ns: write 30*time.Second)", c.MaxWait)
	case c.MaxWait == 0 && c.SpillOver:
		f.add("SpillOver", "needs a MaxWait")
	}
	if c.MaxThrottleWait > 0 && c.MaxThrottleWait < time.Millisecond {
		f.add("MaxThrottleWait", "is %v; a millisecond is the least (30 is 30ns: write 30*time.Second)", c.MaxThrottleWait)
	}
	c.Limits.validate("Limits", scopePool, &f)
	c.PerSender.validate("PerSender", scopeSender, &f)
	providers, domains := c.validateProviders(&f)
	suffixes := suffixesOf(providers)
	c.Retry.validate(&f)
	c.Health.validate(&f)
	names := make(map[string]int, len(c.Relays))
	sessions := make([]*session.Config, len(c.Relays))
	rules := make([]*backoff.Rules, len(c.Relays))
	for i := range c.Relays {
		r, path := &c.Relays[i], fmt.Sprintf("Relays[%d]", i)
		sessions[i] = r.validate(path, &f)
		for name := range r.Warmup.PerProvider {
			if !slices.ContainsFunc(providers, func(p Provider) bool { return p.Name == name }) {
				f.add(fmt.Sprintf("%s.Warmup.PerProvider[%q]", path, name), "there is no such provider")
			}
		}
		rules[i] = backoff.NewRules(compileRules(r.Rules, path+".Rules", &f), r.Profile.validate(path+".Profile", &f))
		sessions[i].LocalName = local
		if c.Dial != nil && r.Dial == nil && r.LocalAddr != "" {
			f.add(path+".LocalAddr", "goes without Config.Dial, which chooses its own address")
		}
		c.dialWith(r, sessions[i])
		if first, ok := names[r.name()]; ok && r.name() != "" {
			f.add(path+".Name", "%q is the name of Relays[%d] too", r.name(), first)
		}
		names[r.name()] = i
	}
	table := c.validateRoutes(&f)
	if err := errors.Join(f...); err != nil {
		return nil, err
	}
	own := *c
	own.Relays, own.Routes, own.Streams = slices.Clone(c.Relays), slices.Clone(c.Routes), slices.Clone(c.Streams)
	for i := range own.Relays { // what DNS changes is put together from these again
		x := &own.Relays[i]
		x.Tags, x.Warmup = slices.Clone(x.Tags), x.Warmup.clone()
	}
	for i := range own.Routes {
		x := &own.Routes[i]
		x.Relays, x.Tags = slices.Clone(x.Relays), slices.Clone(x.Tags)
	}
	valid := &checked{Config: &own, sessions: sessions, table: table, providers: providers, domains: domains, suffixes: suffixes, rules: make(map[*Relay]*backoff.Rules, len(rules))}
	for i := range own.Relays {
		valid.rules[&own.Relays[i]] = rules[i]
	}
	return valid, nil
}

func (r *Relay) name() string {
	if r.Name != "" {
		return r.Name
	}
	return r.printableAddr()
}

// printableAddr is Addr without what may be credentials that were put there by mistake.
func (r *Relay) printableAddr() string {
	if at := strings.LastIndexByte(r.Addr, '@'); at >= 0 && !strings.HasPrefix(r.Addr, "unix:") {
		return "…" + r.Addr[at:]
	}
	return r.Addr
}

// validate adds the relay's faults to f and returns the session's view of it.
func (r *Relay) validate(path string, f *faults) *session.Config {
	s := &session.Config{
		Dial: r.Dial, Username: r.Username, Password: r.Password, Timeouts: r.Timeouts.session(), Secrets: new(session.Secrets),
	}
	if strings.ContainsFunc(r.Name, isControl) || len(r.Name) > 255 {
		f.add(path+".Name", "control characters, or more than 255 bytes")
	}
	target, err := parseAddr(r.Addr, r.TLS)
	if err != nil {
		f.add(path+".Addr", "%v", err)
	}
	s.Network, s.Addr, s.Host = target.network, target.addr, target.host
	r.Limits.validate(path+".Limits", scopeRelay, f)
	r.Warmup.validate(path+".Warmup", f)
	if r.Weight < 0 {
		f.add(path+".Weight", "is %d; it must be 1 or more (0: 1)", r.Weight)
	}
	if r.Weight > 1_000_000 {
		f.add(path+".Weight", "is %d; at most 1000000", r.Weight)
	}
	if r.Tier < 0 {
		f.add(path+".Tier", "is %d; it must be 0 or more", r.Tier)
	}
	r.validateTLS(path, f, s, target)
	r.validateAuth(path, f, s)
	if limits := r.conns().limits(); r.Conns.Reserved > 0 && limits.Max > 0 && limits.Reserved >= limits.Max {
		f.add(path+".Conns.Reserved", "is %d of %d connections; bulk needs one at least", r.Conns.Reserved, limits.Max)
	}
	r.Breaker.validate(path+".Breaker", f)
	for _, d := range []struct {
		field string
		value time.Duration
	}{
		{"Timeouts.Dial", r.Timeouts.Dial}, {"Timeouts.TLS", r.Timeouts.TLS}, {"Timeouts.Greeting", r.Timeouts.Greeting}, {"Timeouts.Command", r.Timeouts.Command},
		{"Timeouts.Body", r.Timeouts.Body}, {"Timeouts.Final", r.Timeouts.Final}, {"Conns.MaxAge", r.Conns.MaxAge}, {"Conns.MaxIdleTime", r.Conns.MaxIdleTime},
		{"Breaker.OpenFor", r.Breaker.OpenFor}, {"Breaker.MaxOpen", r.Breaker.MaxOpen},
	} {
		if d.value > 0 && d.value < time.Millisecond {
			f.add(path+"."+d.field, "is %v; a millisecond is the least (30 is 30ns: write 30*time.Second)", d.value)
		}
	}
	for i, k := range r.IgnoreEHLO {
		if !token(k) {
			f.add(fmt.Sprintf("%s.IgnoreEHLO[%d]", path, i), "%q is no EHLO keyword", k)
		}
		s.Ignore = append(s.Ignore, strings.ToUpper(k))
	}
	if r.LocalAddr != "" {
		_, err := netip.ParseAddr(r.LocalAddr)
		switch {
		case err != nil:
			f.add(path+".LocalAddr", "%q is no IP address", r.LocalAddr)
		case target.network == "unix":
			f.add(path+".LocalAddr", "has no meaning for a unix socket")
		case r.Dial != nil:
			f.add(path+".LocalAddr", "goes without Dial, which chooses its own address")
		}
	}
	return s
}

func (r *Relay) validateTLS(path string, f *faults, s *session.Config, t target) {
	mode := r.TLS
	if mode > TLSNone {
		f.add(path+".TLS", "%v is not a mode", mode)
		return
	}
	credentials := r.Auth != nil || r.Username != ""
	unverified := false
	if t.network == networkSRV {
		if mode != TLSAuto && mode != TLSImplicit {
			f.add(path+".TLS", "%v does not go with a domain whose SRV records say how its servers are reached, by TLS in any case; auto, or implicit for only those", mode)
		}
		mode = TLSImplicit // as good as STARTTLS for what is checked here; the relays that are found have their own
	}
	if mode == TLSAuto {
		switch {
		case t.network != "unix" && t.port == "465":
			mode = TLSImplicit
		case t.local && !credentials:
			mode = TLSOpportunistic
		default:
			mode = TLSStartTLS
		}
	}
	switch mode {
	case TLSImplicit:
		s.TLS = session.TLSImplicit
	case TLSStartTLS:
		s.TLS = session.TLSStart
	case TLSOpportunistic:
		s.TLS = session.TLSOpportunistic
		unverified = t.local && r.TLSConfig == nil
		if credentials {
			f.add(path+".TLS", "opportunistic TLS does not protect credentials; use starttls or implicit")
		}
	case TLSNone:
		s.TLS = session.TLSNone
		s.PlainAuth = t.local
		if credentials && !t.local {
			f.add(path+".TLS", "credentials would be sent in clear; TLS may be none with credentials on this host only")
		}
		return
	}
	tc := &tls.Config{}
	if r.TLSConfig != nil {
		tc = r.TLSConfig.Clone()
	}
	if tc.ServerName == "" {
		tc.ServerName = t.host
	}
	if tc.MaxVersion != 0 && tc.MaxVersion < tls.VersionTLS12 {
		f.add(path+".TLSConfig.MaxVersion", "TLS 1.2 is the least")
	}
	tc.MinVersion = max(tc.MinVersion, tls.VersionTLS12)
	if tc.ClientSessionCache == nil && tc.VerifyPeerCertificate == nil { // which is not asked about a resumed session
		tc.ClientSessionCache = tls.NewLRUClientSessionCache(sessionTickets)
	}
	if unverified {
		tc.InsecureSkipVerify = true
	}
	s.TLSConfig = tc
}

// sessionTickets is how many TLS sessions are remembered for a relay: one for each server name, of which a relay has one.
const sessionTickets = 2

func (r *Relay) validateAuth(path string, f *faults, s *session.Config) {
	if r.Auth != nil {
		if r.Username != "" || r.Password != "" || r.AuthMechanisms != nil {
			f.add(path+".Auth", "goes without Username, Password and AuthMechanisms")
		}
		auth, name := r.Auth, r.name()
		s.Auth = func(ctx context.Context, mechanisms []string, refused error) (smtp.Auth, error) {
			return auth(ctx, AuthRequest{Relay: name, Mechanisms: mechanisms, Refused: refused})
		}
	}
	if r.Username == "" && r.Password != "" {
		f.add(path+".Password", "is set without a Username")
	}
	if strings.ContainsRune(r.Username, 0) || strings.ContainsRune(r.Password, 0) {
		f.add(path+".Username", "Username and Password must not contain NUL")
	}
	for i, m := range r.AuthMechanisms {
		m = strings.ToUpper(m)
		switch m {
		case "SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2":
			s.Mechanisms = append(s.Mechanisms, m)
		default:
			f.add(fmt.Sprintf("%s.AuthMechanisms[%d]", path, i), "%q is not known; known are SCRAM-SHA-256, SCRAM-SHA-1, PLAIN, LOGIN, CRAM-MD5, XOAUTH2", m)
		}
	}
}

// networkSRV is the network of an address that SRV records tell.
const networkSRV = "srv"

// target is where a relay is.
type target struct {
	network, addr string // for Dial
	host, port    string
	local         bool // on this host, by the configured name
}

func parseAddr(addr string, mode TLSMode) (target, error) {
	if addr == "" {
		return target{}, errors.New(`is empty; "host:port" is wanted`)
	}
	if strings.ContainsFunc(addr, isControl) {
		return target{}, errors.New("has control characters")
	}
	if strings.Contains(addr, "://") || strings.Contains(addr, "@") && !strings.HasPrefix(addr, "unix:") { // not quoted: there may be a password in it
		return target{}, errors.New(`is a URL or holds credentials; ParseRelay reads URLs, and credentials go into Username and Password`)
	}
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		if path == "" {
			return target{}, errors.New(`"unix:" without a path`)
		}
		return target{network: "unix", addr: path, host: "localhost", local: true}, nil
	}
	if name, ok := strings.CutPrefix(addr, "srv:"); ok {
		if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil || strings.Contains(name, ":") || !strings.Contains(strings.TrimSuffix(name, "."), ".") {
			return target{}, fmt.Errorf(`%q is not "srv:" and a domain: the ports and hosts are what DNS tells`, addr)
		}
		host, err := domain.ToASCII(strings.TrimSuffix(name, "."))
		if err != nil {
			return target{}, fmt.Errorf("%q has no valid domain: %w", addr, err)
		}
		return target{network: networkSRV, addr: host, host: host}, nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil { // no port?
		port = "587"
		if mode == TLSImplicit {
			port = "465"
		}
		host = addr
		if strings.ContainsAny(addr, "[]:") {
			host = strings.TrimSuffix(strings.TrimPrefix(addr, "["), "]")
			if ip, e := netip.ParseAddr(host); e != nil || !ip.Is6() || "["+host+"]" != addr {
				return target{}, fmt.Errorf(`%q is not "host:port" (an IPv6 address stands in brackets)`, addr)
			}
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n < 1 {
		return target{}, fmt.Errorf("%q has no port from 1 to 65535", addr)
	}
	if host == "" {
		return target{}, fmt.Errorf("%q has no host", addr)
	}
	t := target{network: "tcp", port: port}
	if ip, err := netip.ParseAddr(host); err == nil {
		t.host, t.local = ip.String(), ip.IsLoopback()
	} else {
		t.host, err = domain.ToASCII(host)
		if err != nil {
			return target{}, fmt.Errorf("%q has no valid host: %w", addr, err)
		}
		t.local = t.host == "localhost"
	}
	t.addr = net.JoinHostPort(t.host, port)
	return t, nil
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

func token(s string) bool {
	for i := 0; i < len(s); i++ {
		if b := s[i]; (b < 'A' || b > 'Z') && (b < 'a' || b > 'z') && (b < '0' || b > '9') && b != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// ehloName checks a name for EHLO: a domain, or an address literal (RFC 5321 §4.1.3).
func ehloName(s string) (string, error) {
	if lit, ok := strings.CutPrefix(s, "["); ok {
		lit, ok = strings.CutSuffix(lit, "]")
		ip, err := netip.ParseAddr(strings.TrimPrefix(lit, "IPv6:"))
		if !ok || err != nil || ip.Zone() != "" || ip.Is6() != strings.HasPrefix(lit, "IPv6:") {
			return "", fmt.Errorf("%q is no address literal", s)
		}
		return s, nil
	}
	return domain.ToASCII(s)
}

// defaultLocalName is the host's name where that is fully qualified: "localhost" is honest elsewhere.
func defaultLocalName() string {
	host, err := os.Hostname()
	if err == nil && strings.Contains(strings.Trim(host, "."), ".") {
		if name, err := domain.ToASCII(host); err == nil {
			return name
		}
	}
	return "localhost"
}
