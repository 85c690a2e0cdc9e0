package smtplb

import (
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ParseRelay reads a relay from a URL:
//
//	smtp://user:pass@mx1.example.com:587?weight=3&tier=1
//	smtps://user:pass@mail.example.com
//	smtp+srv://user:pass@example.com
//
// smtp means STARTTLS, required unless the host is this one (TLSAuto), on port 587 if none is given; smtps means implicit TLS, on port 465. smtp+srv means the relays that the domain's SRV records name, Addr "srv:example.com", and
// smtps+srv of them only those that take implicit TLS; there is no port then. User and
// password are percent-encoded: of the characters that passwords often have, write "%" as %25, "@" as %40, ":" as %3A, "/" as %2F, "?" as %3F, "#" as %23;
// "+" means itself.
//
// The parameters are name, weight, tier, tag (repeatable), tls (auto, starttls, opportunistic, none; with smtps also implicit), chunking and no_riding (true, false), auth (mechanisms, comma-separated), max_conns,
// max_idle, max_messages, max_age, max_idle_time (durations such as 90s), ignore_ehlo (keywords, comma-separated), local_addr and server_name (the name that the
// certificate must carry). Any other is an error. No error holds the password.
func ParseRelay(s string) (Relay, error) {
	shown := "the URL" // as much of it as can't be a password
	fail := func(format string, args ...any) (Relay, error) {
		return Relay{}, &RelayURLError{URL: shown, Reason: fmt.Sprintf(format, args...)}
	}
	if s == "" {
		return fail(`is empty (is an environment variable missing?); it must begin with "smtp://" or "smtps://"`)
	}
	scheme, rest, ok := strings.Cut(s, "://")
	plain, srv := strings.CutSuffix(scheme, "+srv")
	if !ok || plain != "smtp" && plain != "smtps" {
		return fail(`must begin with "smtp://" or "smtps://"`)
	}
	shown = scheme + "://…"
	if hint := encodingHint(rest); hint != "" {
		return fail("%s", hint)
	}
	u, err := url.Parse(s)
	if err != nil { // its text would repeat the URL
		return fail("%s", noHost)
	}
	if u.Path != "" && u.Path != "/" || u.Fragment != "" || u.RawFragment != "" {
		return fail("nothing may stand between the host and the parameters")
	}
	r := Relay{Addr: u.Host}
	if u.User != nil {
		r.Username = u.User.Username()
		r.Password, _ = u.User.Password()
		if r.Username == "" {
			return fail("the user name is empty")
		}
	}
	if plain == "smtps" {
		r.TLS = TLSImplicit
	}
	if u.Hostname() == "" {
		return fail("the host is missing")
	}
	switch {
	case srv && u.Port() != "":
		return fail("a port has no meaning with %s, as SRV records tell it", scheme)
	case srv:
		r.Addr = "srv:" + u.Hostname()
	case u.Port() == "":
		port := "587"
		if scheme == "smtps" {
			port = "465"
		}
		r.Addr = net.JoinHostPort(u.Hostname(), port)
	}
	if _, err := parseAddr(r.Addr, r.TLS); err != nil { // it would repeat the address, which may be a password that lacks its "@"
		return fail("%s", noHost)
	}
	if u.User != nil {
		shown = scheme + "://…@" + u.Host
	}
	query, err := url.ParseQuery(strings.ReplaceAll(u.RawQuery, "+", "%2B")) // a plus is a plus here
	if err != nil {
		return fail("the parameters are not well encoded")
	}
	keys := slices.Sorted(maps.Keys(query))
	for _, key := range keys {
		values := query[key]
		if !slices.Contains(relayParameters, key) {
			if !token(strings.ReplaceAll(key, "_", "-")) {
				key = "a key"
			}
			return fail("%s is not a parameter; known are %s", key, strings.Join(relayParameters, ", "))
		}
		if len(values) > 1 && key != "tag" {
			return fail("%s is given %d times", key, len(values))
		}
		for _, v := range values {
			if err := r.setParameter(key, v); err != nil {
				return fail("%s %v", key, err)
			}
		}
	}
	return r, nil
}

const noHost = `has no valid host and port (credentials end with an "@"; what they have of "%", "@", ":", "/", "?" and "#" is percent-encoded)`

// RelayURLError says why a URL is not a relay. It does not hold the password.
type RelayURLError struct {
	URL    string // as much of it as can't be a password
	Reason string
}

// Error tells what of the URL can be told, and the reason.
func (e *RelayURLError) Error() string { return "smtplb: relay URL: " + e.URL + ": " + e.Reason }

var relayParameters = []string{
	"name", "weight", "tier", "tag", "tls", "auth", "max_conns", "max_idle", "max_messages", "max_age", "max_idle_time", "ignore_ehlo",
	"local_addr", "server_name", "chunking", "no_riding",
}

func (r *Relay) setParameter(key, v string) (err error) {
	integer := func(p *int) {
		if *p, err = strconv.Atoi(v); err != nil {
			err = errors.New("is not a number")
		}
	}
	duration := func(p *time.Duration) {
		if *p, err = time.ParseDuration(v); err != nil {
			err = errors.New("is not a duration such as 90s")
		}
	}
	boolean := func(p *bool) {
		if *p, err = strconv.ParseBool(v); err != nil {
			err = errors.New("is neither true nor false")
		}
	}
	switch key {
	case "name":
		r.Name = v
	case "weight":
		if integer(&r.Weight); err == nil && r.Weight < 1 {
			err = fmt.Errorf("is %d; it must be 1 or more", r.Weight)
		}
	case "tier":
		if integer(&r.Tier); err == nil && r.Tier < 0 {
			err = fmt.Errorf("is %d; it must be 0 or more", r.Tier)
		}
	case "tag":
		r.Tags = append(r.Tags, v)
	case "tls":
		i := slices.Index(tlsModeNames[:], v)
		switch {
		case i < 0:
			err = fmt.Errorf("is not one of %s", strings.Join(tlsModeNames[:], ", "))
		case TLSMode(i) == TLSImplicit && r.TLS != TLSImplicit:
			err = errors.New("implicit is what smtps:// means")
		case r.TLS == TLSImplicit && TLSMode(i) != TLSImplicit:
			err = errors.New("contradicts smtps://, which is implicit TLS")
		default:
			r.TLS = TLSMode(i)
		}
	case "auth":
		r.AuthMechanisms = strings.Split(strings.ToUpper(v), ",")
	case "max_conns":
		integer(&r.Conns.Max)
	case "max_idle":
		integer(&r.Conns.MaxIdle)
	case "max_messages":
		integer(&r.Conns.MaxMessages)
	case "max_age":
		duration(&r.Conns.MaxAge)
	case "max_idle_time":
		duration(&r.Conns.MaxIdleTime)
	case "ignore_ehlo":
		r.IgnoreEHLO = strings.Split(strings.ToUpper(v), ",")
	case "local_addr":
		r.LocalAddr = v
	case "chunking":
		boolean(&r.Chunking)
	case "no_riding":
		boolean(&r.NoRiding)
	case "server_name":
		r.TLSConfig = &tls.Config{ServerName: v} // the rest of it is set by New
	}
	return err
}

// encodingHint finds the ways in which people write credentials that aren't percent-encoded.
func encodingHint(rest string) string {
	at := strings.LastIndexByte(rest, '@')
	if at < 0 {
		if strings.ContainsFunc(rest, isControl) || strings.Contains(rest, " ") {
			return "has a blank or control character"
		}
		return ""
	}
	if end := strings.IndexAny(rest, "/?#"); end >= 0 && end < at {
		return fmt.Sprintf(`the user or password has a %q: write it as %%%02X (or a parameter has an "@": write it as %%40)`, rest[end:end+1], rest[end])
	}
	user := rest[:at]
	if strings.Contains(user, "@") {
		return `the user or password has an "@": write it as %40`
	}
	for i := 0; i < len(user); i++ {
		switch b := user[i]; {
		case b == '%' && (i+2 >= len(user) || !isHex(user[i+1]) || !isHex(user[i+2])):
			return `the user or password has a "%" that is not followed by two hexadecimal digits: write it as %25`
		case b <= ' ' || b == 0x7f:
			return fmt.Sprintf("the user or password has a blank or control character: write it as %%%02X", b)
		case b >= 0x80:
			return fmt.Sprintf("the user or password has a character beyond ASCII: write each of its bytes percent-encoded, the first as %%%02X", b)
		case strings.IndexByte(`[]<>"{}|\^`+"`", b) >= 0:
			return fmt.Sprintf("the user or password has a %q: write it as %%%02X", string(rune(b)), b)
		}
	}
	if _, pass, ok := strings.Cut(user, ":"); ok && strings.Contains(pass, ":") {
		return `the password has a ":": write it as %3A`
	}
	if strings.ContainsFunc(rest[at:], isControl) || strings.Contains(rest[at:], " ") {
		return "has a blank or control character"
	}
	return ""
}

func isHex(b byte) bool {
	return b >= '0' && b <= '9' || b >= 'a' && b <= 'f' || b >= 'A' && b <= 'F'
}

// redactedURL is the relay as a URL, with "xxxxx" for the password.
func (r Relay) redactedURL() string {
	u := url.URL{Scheme: "smtp", Host: r.printableAddr()}
	if r.TLS == TLSImplicit {
		u.Scheme = "smtps"
	}
	if host, ok := strings.CutPrefix(u.Host, "srv:"); ok {
		u.Scheme, u.Host = u.Scheme+"+srv", host
	}
	switch {
	case r.Username != "":
		u.User = url.UserPassword(r.Username, "xxxxx")
	case r.Auth != nil:
		u.User = url.User("auth")
	}
	q := url.Values{}
	if r.Name != "" && r.Name != r.Addr {
		q.Set("name", r.Name)
	}
	if r.Weight != 0 {
		q.Set("weight", strconv.Itoa(r.Weight))
	}
	if r.Tier != 0 {
		q.Set("tier", strconv.Itoa(r.Tier))
	}
	for _, t := range r.Tags {
		q.Add("tag", t)
	}
	if r.TLS != TLSAuto && r.TLS != TLSImplicit {
		q.Set("tls", r.TLS.String())
	}
	set := func(key, value string, given bool) {
		if given {
			q.Set(key, value)
		}
	}
	c := r.Conns
	set("auth", strings.Join(r.AuthMechanisms, ","), len(r.AuthMechanisms) > 0)
	set("max_conns", strconv.Itoa(c.Max), c.Max != 0)
	set("max_idle", strconv.Itoa(c.MaxIdle), c.MaxIdle != 0)
	set("max_messages", strconv.Itoa(c.MaxMessages), c.MaxMessages != 0)
	set("max_age", c.MaxAge.String(), c.MaxAge != 0)
	set("max_idle_time", c.MaxIdleTime.String(), c.MaxIdleTime != 0)
	set("ignore_ehlo", strings.Join(r.IgnoreEHLO, ","), len(r.IgnoreEHLO) > 0)
	set("local_addr", r.LocalAddr, r.LocalAddr != "")
	set("chunking", "true", r.Chunking)
	set("no_riding", "true", r.NoRiding)
	if r.TLSConfig != nil {
		set("server_name", r.TLSConfig.ServerName, r.TLSConfig.ServerName != "")
	}
	u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20") // a plus is a plus here
	return u.String()
}
