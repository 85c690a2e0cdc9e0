package smtptest

import (
	"slices"
	"strconv"
	"strings"
)

// extensions is what an EHLO reply offers, but for STARTTLS and AUTH, which depend on
// the state of the connection. It is immutable.
type extensions struct {
	lines                            []string
	enhanced, pipelining, requireTLS bool
}

// offers reports whether the keyword is among the extensions.
func (e *extensions) offers(kw string) bool {
	return slices.ContainsFunc(e.lines, func(l string) bool { return keyword(l) == kw })
}

// lines returns the keyword lines as the other options leave them.
func (cfg *config) lines(keywords []string) []string {
	lines := slices.Clone(keywords)
	set := func(kw, line string) {
		if i := slices.IndexFunc(lines, func(l string) bool { return keyword(l) == kw }); i >= 0 {
			lines[i] = line
		} else {
			lines = append(lines, line)
		}
	}
	if cfg.maxSizeSet {
		size := "SIZE"
		if cfg.maxSize > 0 {
			size += " " + strconv.FormatInt(cfg.maxSize, 10)
		}
		set("SIZE", size)
	}
	if cfg.limits != "" {
		set("LIMITS", cfg.limits)
	}
	return slices.DeleteFunc(lines, func(l string) bool { return slices.Contains(cfg.without, keyword(l)) })
}

func (cfg *config) offer(keywords []string) *extensions {
	e := &extensions{}
	if !cfg.noEHLO {
		e.lines = cfg.lines(keywords)
	}
	e.enhanced, e.pipelining, e.requireTLS = e.offers("ENHANCEDSTATUSCODES"), e.offers("PIPELINING"), e.offers("REQUIRETLS")
	return e
}

// offered returns what is offered now, without or with TLS.
func (s *Server) offered(tls bool) *extensions {
	if tls {
		return s.secure.Load()
	}
	return s.plain.Load()
}

// keyword returns the EHLO keyword at the start of line, in capitals.
func keyword(line string) string {
	k, _, _ := strings.Cut(line, " ")
	return strings.ToUpper(k)
}

// SetExtensions sets the EHLO keyword lines anew, as WithExtensions does, for each
// EHLO from now on, with and without TLS: a relay that was restarted with another
// configuration, or another machine behind the same name. A connection that is
// greeted already goes on by what it was told. The size that is held, if any, stays
// what it was. Options that add lines or take them out (WithMaxSize, WithLimits,
// WithoutExtensions) still do.
func (s *Server) SetExtensions(keywords ...string) {
	e := s.cfg.offer(keywords)
	s.plain.Store(e)
	s.secure.Store(e)
}

// WithTLSExtensions sets the EHLO keyword lines under TLS, where they are to differ
// from those before STARTTLS: what was offered in the clear must be forgotten then
// (RFC 3207 §4.2).
func WithTLSExtensions(keywords ...string) Option {
	return func(cfg *config) { cfg.extensionsTLS = append([]string{}, keywords...) }
}

// WithLimits advertises LIMITS (RFC 9422) and holds the limits: at most mailMax
// messages on a connection (MAILMAX, see WithMaxMessages) and rcptMax recipients per
// message (RCPTMAX, see WithMaxRecipients). 0 leaves a limit out.
//
//	smtptest.NewServer(smtptest.WithLimits(0, 50)) // LIMITS RCPTMAX=50
func WithLimits(mailMax, rcptMax int) Option {
	return func(cfg *config) {
		line := "LIMITS"
		if mailMax > 0 {
			cfg.maxMessages = mailMax
			line += " MAILMAX=" + strconv.Itoa(mailMax)
		}
		if rcptMax > 0 {
			cfg.maxRecipients = rcptMax
			line += " RCPTMAX=" + strconv.Itoa(rcptMax)
		}
		cfg.limits = line
	}
}

// WithLossyInput loses whatever has come in behind the end of a body by the time that
// the body is read, as OpenSMTPD 6.8 does: a client that sends the next envelope in
// the same segment as the dot, although PIPELINING is not offered, waits for a reply
// that never comes.
func WithLossyInput() Option {
	return func(cfg *config) { cfg.lossy = true }
}
