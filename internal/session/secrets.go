package session

import (
	"encoding/base64"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/smtplb/smtplb/internal/reply"
)

// A relay that was told the credentials may repeat them at any time, in its banner as well as behind a message: a server in debugging mode,
// or one that wants them in somebody's log. So they are taken out of every reply before anybody sees it. What is shorter than
// this is left, but in AUTH itself: it might be a word of the relay's own.
const shortestSecret = 8

// Secrets are what the connections of a relay told it. The zero value is ready for use.
type Secrets struct{ list atomic.Pointer[[]string] }

// told returns what the relay may know of the credentials, in the forms in which it may repeat them, the longest first. The token that
// Auth gives is among it once it was sent.
func (cfg *Config) told() []string {
	if cfg.Secrets == nil {
		return nil
	}
	if s := cfg.Secrets.list.Load(); s != nil {
		return *s
	}
	if cfg.Password == "" {
		return nil
	}
	return cfg.tell([]string{
		cfg.Password,
		base64.StdEncoding.EncodeToString([]byte(cfg.Password)),                                                            // LOGIN
		base64.StdEncoding.EncodeToString([]byte("\x00" + cfg.Username + "\x00" + cfg.Password)),                           // PLAIN
		base64.StdEncoding.EncodeToString([]byte("user=" + cfg.Username + "\x01auth=Bearer " + cfg.Password + "\x01\x01")), // XOAUTH2
	})
}

// tell notes that the relay knows these.
func (cfg *Config) tell(secrets []string) []string {
	secrets = slices.DeleteFunc(slices.Clone(secrets), func(s string) bool { return len(s) < shortestSecret })
	for {
		old := cfg.Secrets.list.Load()
		if old != nil { // connections that were opened with an earlier token live on
			for _, s := range *old {
				if len(secrets) < keptSecrets && !slices.Contains(secrets, s) {
					secrets = append(secrets, s)
				}
			}
		}
		slices.SortStableFunc(secrets, func(a, b string) int { return len(b) - len(a) })
		if cfg.Secrets.list.CompareAndSwap(old, &secrets) {
			break
		}
	}
	return secrets
}

// read reads a reply, and takes out of it what the relay was told.
func (c *Conn) read() (reply.Reply, error) {
	r, err := c.rd.Read()
	if err == nil {
		c.code = int16(r.Code)
	}
	for _, secret := range c.cfg.told() {
		r.Text = strings.ReplaceAll(r.Text, secret, redacted)
	}
	return r, err
}

const redacted = "[redacted]"

// keptSecrets bounds what is remembered of tokens that come anew with each connection.
const keptSecrets = 64

// cleaned is what may be told of a malformed reply: without its excerpt where that may repeat what the relay was told, as a whole or, cut
// off, the beginning of it.
func (c *Conn) cleaned(m *reply.MalformedError) *reply.MalformedError {
	const cut = 70 // an excerpt of this length may have been cut
	suspect := c.stage == reply.StageAuth || c.hasCredentials() && len(m.Excerpt) > cut
	for _, secret := range c.cfg.told() {
		suspect = suspect || strings.Contains(unquoted(m.Excerpt), secret)
	}
	if !suspect {
		return m
	}
	return &reply.MalformedError{Reason: m.Reason}
}

// unquoted undoes strconv.Quote, also where the end is cut off.
func unquoted(s string) string {
	if u, err := strconv.Unquote(s); err == nil {
		return u
	}
	return strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(s)
}
