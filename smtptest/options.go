package smtptest

import (
	"crypto/tls"
	"log"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Option sets something on a Server before it starts.
type Option func(*config)

type config struct {
	tls         tlsMode
	cert        *tls.Certificate
	certNames   []string
	certExpired bool

	users      []user
	mechanisms []string // in the order they are advertised
	scram      scramConfig
	requireTLS bool

	extensions    []string // in place of defaultExtensions when not nil
	extensionsTLS []string // in place of extensions under TLS when not nil
	without       []string
	noEHLO        bool

	banner, hostname string

	maxConns, maxMessages, maxRecipients int
	limits                               string // the LIMITS line
	maxSize                              int64
	maxSizeSet                           bool
	maxLine                              int
	idle                                 time.Duration
	idleSilent                           bool
	strict                               bool
	lossy                                bool
	discard                              bool
	stored                               func(*Message) // nil: nobody asks
	logf                                 func(string, ...any)
}

type tlsMode uint8

const (
	tlsOff tlsMode = iota
	tlsStart
	tlsImplicit
)

type user struct{ name, pass string }

// defaultSize is the SIZE that is advertised by default, in bytes.
const defaultSize = 10 << 20

// defaultExtensions are the EHLO keywords without options. STARTTLS and AUTH are
// added where they are offered.
var defaultExtensions = []string{
	"PIPELINING", "SIZE " + strconv.Itoa(defaultSize), "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN",
}

func newConfig(opts []Option) *config {
	cfg := &config{scram: scramConfig{iterations: 4096}, logf: log.Printf}
	for _, o := range opts {
		o(cfg)
	}
	if cfg.extensions == nil {
		cfg.extensions = slices.Clone(defaultExtensions)
	}
	if !cfg.maxSizeSet {
		for _, l := range cfg.lines(cfg.extensions) {
			if n, ok := strings.CutPrefix(strings.ToUpper(l), "SIZE "); ok {
				cfg.maxSize, _ = strconv.ParseInt(n, 10, 64)
			}
		}
	}
	return cfg
}

// WithTLS offers STARTTLS, with a certificate of the server's own that is made at
// its start, valid from an hour ago for ten years, for the host of the address,
// localhost, 127.0.0.1 and ::1. Trust it with Server.ClientTLS. AUTH is then
// offered after the handshake only. Mail without TLS is still taken, see
// WithRequireTLS.
func WithTLS() Option {
	return func(cfg *config) {
		if cfg.tls == tlsOff {
			cfg.tls = tlsStart
		}
	}
}

// WithImplicitTLS is WithTLS with TLS from the first byte, as on port 465.
func WithImplicitTLS() Option {
	return func(cfg *config) { cfg.tls = tlsImplicit }
}

// WithRequireTLS is WithTLS, and refuses MAIL, AUTH and most other commands before
// STARTTLS with "530 5.7.0 Must issue a STARTTLS command first".
func WithRequireTLS() Option {
	return func(cfg *config) {
		WithTLS()(cfg)
		cfg.requireTLS = true
	}
}

// WithCertificateFor is WithTLS with a certificate for these host names and IP
// addresses in place of the server's own: for tests of a name mismatch.
// Server.ClientTLS trusts it.
func WithCertificateFor(names ...string) Option {
	return func(cfg *config) {
		WithTLS()(cfg)
		cfg.certNames = names
	}
}

// WithCertificate is WithTLS with the caller's certificate. Server.ClientTLS
// trusts its leaf.
func WithCertificate(cert tls.Certificate) Option {
	return func(cfg *config) {
		WithTLS()(cfg)
		cfg.cert = &cert
	}
}

// WithExpiredCertificate is WithTLS with a certificate that expired a day ago.
// Server.ClientTLS trusts it apart from that.
func WithExpiredCertificate() Option {
	return func(cfg *config) {
		WithTLS()(cfg)
		cfg.certExpired = true
	}
}

// WithAuth requires AUTH before MAIL (else 530 5.7.0) and accepts these
// credentials. The mechanisms default to PLAIN and LOGIN; CRAM-MD5, SCRAM-SHA-1,
// SCRAM-SHA-256 and XOAUTH2 (where pass is the token) are known as well, and any
// other name makes the server's start panic. Given more than once it adds users
// and mechanisms. Server.SetPassword changes a password later.
func WithAuth(username, pass string, mechanisms ...string) Option {
	return func(cfg *config) {
		cfg.users = append(cfg.users, user{username, pass})
		names := mechanisms // an Option may be used for several servers at once
		if len(names) == 0 {
			names = []string{"PLAIN", "LOGIN"}
		}
		for _, m := range names {
			m = strings.ToUpper(m)
			if authMechanisms[m] == nil {
				panic("smtptest: WithAuth: unknown mechanism " + strconv.Quote(m))
			}
			if !slices.Contains(cfg.mechanisms, m) {
				cfg.mechanisms = append(cfg.mechanisms, m)
			}
		}
	}
}

// WithScramIterations sets the iteration count of SCRAM; the default is 4096.
func WithScramIterations(n int) Option {
	return func(cfg *config) { cfg.scram.iterations = n }
}

// WithScramNoServerSignature lets SCRAM end with 235 without the server's
// signature, as a server would that does not know the password.
func WithScramNoServerSignature() Option {
	return func(cfg *config) { cfg.scram.noSignature = true }
}

// WithScramBadServerSignature lets SCRAM end with a wrong signature and then 235.
func WithScramBadServerSignature() Option {
	return func(cfg *config) { cfg.scram.badSignature = true }
}

// WithExtensions sets the EHLO keyword lines, "LIMITS RCPTMAX=10" say, in place of
// the default: PIPELINING, SIZE 10485760, 8BITMIME, SMTPUTF8, ENHANCEDSTATUSCODES
// and DSN. None are offered if none are given. STARTTLS and AUTH are always added
// where TLS and AUTH are on. CHUNKING switches BDAT on. REQUIRETLS (RFC 8689) is
// offered under TLS only. Without ENHANCEDSTATUSCODES the server's own replies have no
// enhanced codes.
func WithExtensions(keywords ...string) Option {
	return func(cfg *config) { cfg.extensions = append([]string{}, keywords...) }
}

// WithoutExtensions takes keywords out of the EHLO reply, STARTTLS and AUTH
// included: a middlebox that strips them.
func WithoutExtensions(keywords ...string) Option {
	return func(cfg *config) {
		for _, k := range keywords {
			cfg.without = append(cfg.without, strings.ToUpper(k))
		}
	}
}

// WithoutEHLO answers EHLO with 502, so that only HELO works and nothing is
// offered.
func WithoutEHLO() Option {
	return func(cfg *config) { cfg.noEHLO = true }
}

// WithBanner sets the text of the 220 greeting; the default is the host name and
// "ESMTP smtptest". Newlines make it a reply of several lines.
func WithBanner(text string) Option {
	return func(cfg *config) { cfg.banner = text }
}

// WithHostname sets the name by which the server calls itself; the default is the
// host of the address in a Network and "localhost" on TCP.
func WithHostname(name string) Option {
	return func(cfg *config) { cfg.hostname = name }
}

// WithMaxConns serves at most n connections at a time; the next one gets "421
// 4.7.0 Too many connections" for a banner and is closed. 0 is no limit.
func WithMaxConns(n int) Option {
	return func(cfg *config) { cfg.maxConns = n }
}

// WithMaxMessages takes at most n messages (transactions, refused ones included)
// on one connection; the next MAIL gets "421 4.7.0 Too many messages on this
// connection" and the connection is closed. 0 is no limit.
func WithMaxMessages(n int) Option {
	return func(cfg *config) { cfg.maxMessages = n }
}

// WithMaxRecipients takes at most n recipients per message; further ones get "452
// 4.5.3 Too many recipients". 0 is no limit.
func WithMaxRecipients(n int) Option {
	return func(cfg *config) { cfg.maxRecipients = n }
}

// WithMaxSize sets the size that is advertised and held, in bytes; a larger message
// gets "552 5.3.4", at MAIL where its SIZE was declared and else after the dot. 0
// is no limit. The default is 10 MiB.
func WithMaxSize(bytes int64) Option {
	return func(cfg *config) { cfg.maxSize, cfg.maxSizeSet = max(bytes, 0), true }
}

// WithMaxLineLength refuses a body with a line of more than n bytes (CRLF not
// counted; RFC 5321 §4.5.3.1.6 says 998) with "554 5.6.0 Line too long". 0, the
// default, is no limit.
func WithMaxLineLength(bytes int) Option {
	return func(cfg *config) { cfg.maxLine = bytes }
}

// WithIdleTimeout closes a connection that waited d for a command, after "421
// 4.4.2 Idle timeout". 0 is no limit.
func WithIdleTimeout(d time.Duration) Option {
	return func(cfg *config) { cfg.idle, cfg.idleSilent = d, false }
}

// WithSilentIdleTimeout is WithIdleTimeout without the 421: the client finds the
// end of the stream.
func WithSilentIdleTimeout(d time.Duration) Option {
	return func(cfg *config) { cfg.idle, cfg.idleSilent = d, true }
}

// WithStrictPipelining answers bytes that lie behind a command which must end its
// group (RFC 2920 §3.1: EHLO, HELO, STARTTLS, AUTH, DATA, NOOP, VRFY, QUIT…), or
// behind any command where PIPELINING was not offered, with "554 5.5.0 Improper
// use of SMTP command pipelining" and closes, as Postfix and Exim do. Without it
// they are only counted, in Stats.EarlyBytes.
func WithStrictPipelining() Option {
	return func(cfg *config) { cfg.strict = true }
}

// WithDiscard keeps no messages and no transcripts, only counters: for benchmarks.
// Server.WaitFor counts all the same, Server.Messages stays empty.
func WithDiscard() Option {
	return func(cfg *config) { cfg.discard = true }
}

// WithStored calls f for each message when it has been stored, before the client is
// told, and once in all for each: a test that sends more than it can keep can count
// recipients as they come, under WithDiscard too (Data is nil then). f runs in the
// connection's goroutine, perhaps in several at once, with no lock held.
func WithStored(f func(*Message)) Option {
	return func(cfg *config) { cfg.stored = f }
}

// WithLogf sets where a server reports what a test should know but did not ask
// for, such as a connection that hangs in Close. The default is log.Printf; t.Logf
// fits.
func WithLogf(logf func(format string, args ...any)) Option {
	return func(cfg *config) { cfg.logf = logf }
}
