package session

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	netsmtp "net/smtp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/smtplb/smtplb/internal/reply"
	"github.com/wneessen/go-mail/smtp"
)

// DefaultMechanisms are tried in this order: the first that the relay offers is used. CRAM-MD5 (which makes the relay keep
// passwords) and XOAUTH2 are used only where they are named.
var DefaultMechanisms = []string{"SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN", "LOGIN"}

// A SCRAM server that asks for fewer rounds gives the password away cheaply (RFC 7677 §4), one that asks for more burns our CPU.
const minIterations, maxIterations = 4096, 1_000_000

// maxAuthSteps bounds an exchange; the longest known one has four.
const maxAuthSteps = 8

func (c *Conn) hasCredentials() bool { return c.cfg.Auth != nil || c.cfg.Username != "" }

// authenticate runs AUTH (RFC 4954). After a refusal no second mechanism is tried: that is how accounts are locked.
func (c *Conn) authenticate(ctx context.Context, refused error) *End {
	if !c.hasCredentials() {
		return nil
	}
	c.begin(reply.StageAuth, c.cfg.Timeouts.Auth)
	if !c.secured && !c.cfg.PlainAuth {
		return c.give(reply.FailAuth, errors.New("credentials are not sent without TLS"))
	}
	if len(c.mechs) == 0 {
		return c.give(reply.FailCapability, errors.New("the relay does not offer AUTH, and credentials are configured"))
	}
	if c.noLogin {
		return nil
	}
	auth, end := c.mechanism(ctx, refused)
	if end != nil {
		return end
	}
	name, initial, err := auth.Start(&smtp.ServerInfo{Name: c.cfg.Host, TLS: c.secured, Auth: c.mechs})
	if err != nil {
		return c.give(reply.FailAuth, c.redact(err))
	}
	if !plainToken(name) {
		return c.give(reply.FailAuth, fmt.Errorf("the Auth has no valid mechanism name: %q", name))
	}
	c.keepSecret([]byte(c.cfg.Password))
	c.keepSecret(initial)
	line := "AUTH " + name
	if initial != nil {
		line += " " + encodeSASL(initial)
	}
	return c.converse(auth, strings.HasPrefix(strings.ToUpper(name), "SCRAM-"), line)
}

// converse sends lines and answers challenges until the relay has decided.
func (c *Conn) converse(auth smtp.Auth, scram bool, line string) *End {
	next := scramBegin
	if strings.Count(line, " ") > 1 { // the client's first message goes out with the command
		next = scramChallenge
	}
	for range maxAuthSteps {
		r, end := c.command(reply.StageAuth, c.cfg.Timeouts.Auth, line)
		if end != nil {
			return end
		}
		switch {
		case r.Code == 334:
		case r.Positive():
			if scram && next != scramDone { // RFC 5802 §5: the client must check the signature; go-mail takes a bare 235
				return c.give(reply.FailAuth, errors.New("the relay accepted SCRAM without proving that it knows the password"))
			}
			if _, err := auth.Next(nil, false); err != nil {
				return c.give(reply.FailAuth, c.redact(err))
			}
			return nil
		case r.Intermediate():
			return c.give(reply.FailOutOfStep, fmt.Errorf("AUTH answered with %d", r.Code))
		default:
			r.Text = c.redactText(r.Text)
			return c.refused(r)
		}
		challenge, err := base64.StdEncoding.DecodeString(strings.TrimSpace(r.Text))
		if err != nil {
			return c.give(reply.FailMalformed, errors.New("the relay's challenge is not base64"))
		}
		if scram {
			next, err = checkSCRAM(challenge, next)
		}
		var response []byte
		if err == nil {
			response, err = auth.Next(challenge, true)
		}
		if err != nil {
			_, _ = c.command(reply.StageAuth, c.cfg.Timeouts.Quit, "*") // RFC 4954 §4: cancels the exchange
			c.stage = reply.StageAuth
			return c.give(reply.FailAuth, c.redact(err))
		}
		c.keepSecret(response)
		line = base64.StdEncoding.EncodeToString(response)
	}
	return c.give(reply.FailMalformed, errors.New("AUTH does not come to an end"))
}

// encodeSASL encodes an initial response; an empty one is "=" (RFC 4954 §4).
func encodeSASL(b []byte) string {
	if len(b) == 0 {
		return "="
	}
	return base64.StdEncoding.EncodeToString(b)
}

// scramStep is the server's message that comes next in a SCRAM exchange.
type scramStep uint8

const (
	scramBegin     scramStep = iota // nothing: the client speaks first
	scramChallenge                  // nonce, salt and iterations
	scramSignature                  // the proof that the server knows the password
	scramDone
)

// checkSCRAM holds a server to the order of RFC 5802 §5, each message once, and to bounds. go-mail doesn't look at the order: asked to begin
// anew it forgets the challenge, and then checks the signature against a key that anybody knows.
func checkSCRAM(challenge []byte, step scramStep) (next scramStep, err error) {
	switch {
	case step == scramBegin && len(challenge) == 0:
		return scramChallenge, nil
	case step == scramChallenge && bytes.HasPrefix(challenge, []byte("r=")):
		return scramSignature, checkIterations(challenge)
	case step == scramSignature && bytes.HasPrefix(challenge, []byte("v=")):
		return scramDone, nil // once the mechanism has checked it
	case step == scramSignature && bytes.HasPrefix(challenge, []byte("e=")):
		return step, errors.New("the relay ended SCRAM with an error")
	}
	return step, errors.New("the relay's SCRAM messages are out of order")
}

func checkIterations(challenge []byte) error {
	for _, f := range bytes.Split(challenge, []byte(",")) {
		if n, ok := bytes.CutPrefix(f, []byte("i=")); ok {
			i, err := strconv.Atoi(string(n))
			if err != nil || i < minIterations || i > maxIterations {
				return fmt.Errorf("the relay asks for %q SCRAM iterations; %d to %d are accepted", n, minIterations, maxIterations)
			}
			return nil
		}
	}
	return errors.New("the relay's SCRAM challenge has no iteration count")
}

// mechanism chooses how to authenticate.
func (c *Conn) mechanism(ctx context.Context, refused error) (smtp.Auth, *End) {
	if c.cfg.Auth != nil {
		limit := time.Now().Add(c.cfg.Timeouts.Auth)
		if !c.cut.IsZero() && c.cut.Before(limit) {
			limit = c.cut
		}
		actx, cancel := context.WithDeadline(ctx, limit) // it holds a slot: it must end where the caller's context never does
		defer cancel()
		a, err := c.cfg.Auth(actx, append([]string(nil), c.mechs...), refused)
		if err == nil && a == nil {
			err = errors.New("the Auth function returned neither an Auth nor an error")
		}
		if err != nil {
			switch ended := ctx.Err(); {
			case errors.Is(ended, context.DeadlineExceeded):
				return nil, c.give(reply.FailDeadline, contextError(ctx))
			case ended != nil:
				return nil, c.give(reply.FailCanceled, contextError(ctx))
			}
			return nil, c.give(reply.FailToken, err)
		}
		c.begin(reply.StageAuth, c.cfg.Timeouts.Auth) // fetching a token is not the relay's time
		return netAuth{a}, nil
	}
	allowed := c.cfg.Mechanisms
	if allowed == nil {
		allowed = DefaultMechanisms
	}
	user, pass := c.cfg.Username, c.cfg.Password
	for _, m := range allowed {
		if !contains(c.mechs, m) {
			continue
		}
		switch m { // whether credentials may go out in clear was decided in authenticate
		case "SCRAM-SHA-256":
			return smtp.ScramSHA256Auth(user, pass), nil
		case "SCRAM-SHA-1":
			return smtp.ScramSHA1Auth(user, pass), nil
		case "PLAIN":
			return smtp.PlainAuth("", user, pass, c.cfg.Host, true), nil
		case "LOGIN":
			return smtp.LoginAuth(user, pass, c.cfg.Host, true), nil
		case "CRAM-MD5":
			return smtp.CRAMMD5Auth(user, pass), nil
		case "XOAUTH2":
			return smtp.XOAuth2Auth(user, pass), nil
		}
	}
	return nil, c.give(reply.FailCapability, fmt.Errorf("no common AUTH mechanism: the relay offers %q, allowed are %q", c.mechs, allowed))
}

// netAuth lets a mechanism written for net/smtp be driven as one of go-mail's.
type netAuth struct{ auth netsmtp.Auth }

func (a netAuth) Start(s *smtp.ServerInfo) (string, []byte, error) {
	return a.auth.Start(&netsmtp.ServerInfo{Name: s.Name, TLS: s.TLS, Auth: s.Auth})
}

func (a netAuth) Next(fromServer []byte, more bool) ([]byte, error) {
	return a.auth.Next(fromServer, more)
}

// redact keeps secrets out of what a mechanism or a relay says about them.
func (c *Conn) redact(err error) error {
	if s := err.Error(); c.redactText(s) != s {
		return errors.New(c.redactText(s))
	}
	return err
}

func (c *Conn) redactText(s string) string {
	for _, secret := range c.secrets {
		s = strings.ReplaceAll(s, secret, redacted)
	}
	return s
}

// keepSecret notes what is about to be sent, so that a relay that repeats it can't make it known: the response as a whole and each
// of its fields, as they are and in base64. What is shorter than 4 bytes would only garble texts.
func (c *Conn) keepSecret(response []byte) {
	add := func(b []byte) {
		if len(b) >= 4 && string(b) != c.cfg.Username {
			c.secrets = append(c.secrets, string(b), base64.StdEncoding.EncodeToString(b))
		}
	}
	add(response)
	for _, field := range bytes.FieldsFunc(response, func(r rune) bool { return r == 0 || r == 1 }) {
		add(field)
		if _, token, ok := bytes.Cut(field, []byte("auth=Bearer ")); ok {
			add(token)
		}
	}
	// The longest first: a part of a secret must not hide the whole from ReplaceAll.
	slices.SortFunc(c.secrets, func(a, b string) int { return len(b) - len(a) })
}

func plainToken(s string) bool {
	if s == "" || len(s) > 20 { // RFC 4422 §3.1
		return false
	}
	for i := 0; i < len(s); i++ {
		if b := s[i]; (b < 'A' || b > 'Z') && (b < 'a' || b > 'z') && (b < '0' || b > '9') && b != '-' && b != '_' {
			return false
		}
	}
	return true
}
