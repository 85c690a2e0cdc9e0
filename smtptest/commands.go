package smtptest

import (
	"slices"
	"strconv"
	"strings"
)

// session is the SMTP state of a connection.
type session struct {
	helo     string
	esmtp    bool // greeted with EHLO
	rejected bool // the banner was a refusal: only QUIT is welcome (RFC 5321 §3.1)
	user     string
	authed   bool
	secrets  bool // AUTH was tried: what is not a command may be a secret

	transactions int
	over         bool // a transaction has ended
	idleSeen     bool // the Idle rules were asked in this pause

	inMail     bool
	from       string
	mailParams []string
	utf8       bool
	declared   int64 // SIZE=
	to         []string
	rcptParams [][]string
	body
}

// verbNames are the keys of Stats.Commands. The first stands for everything else.
var verbNames = [...]string{"?", "EHLO", "HELO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "QUIT", "VRFY", "EXPN", "HELP"}

const (
	vUnknown = iota
	vEHLO
	vHELO
	vSTARTTLS
	vAUTH
	vMAIL
	vRCPT
	vDATA
	vBDAT
	vRSET
	vNOOP
	vQUIT
	vVRFY
	vEXPN
	vHELP
)

// endsGroup holds the commands that must be the last of a pipelined group
// (RFC 2920 §3.1).
const endsGroup = 1<<vEHLO | 1<<vHELO | 1<<vSTARTTLS | 1<<vAUTH | 1<<vDATA | 1<<vNOOP | 1<<vQUIT | 1<<vVRFY | 1<<vEXPN | 1<<vHELP

// parseVerb splits a command line; it does not allocate.
func parseVerb(line []byte) (verb int, args []byte) {
	n := slices.Index(line, ' ')
	if n < 0 {
		n = len(line)
	} else {
		args = line[n+1:]
	}
	var up [8]byte
	if n > len(up) {
		return vUnknown, args
	}
	for i, b := range line[:n] {
		if 'a' <= b && b <= 'z' {
			b -= 'a' - 'A'
		}
		up[i] = b
	}
	for i, name := range verbNames[1:] {
		if name == string(up[:n]) {
			return i + 1, args
		}
	}
	return vUnknown, args
}

// talk holds the conversation; its error says how the connection ends.
func (c *conn) talk() error {
	if !c.gate() {
		return errGone
	}
	if _, answered, err := c.at(Connect); err != nil {
		return err
	} else if answered {
		if err := c.settle(); err != nil {
			return err
		}
		return errFIN
	}
	if c.s.cfg.tls == tlsImplicit {
		if err := c.startTLS(); err != nil {
			return err
		}
	}
	if err := c.greet(); err != nil {
		return err
	}
	for {
		if err := c.settle(); err != nil {
			return err
		}
		if err := c.idle(); err != nil {
			return err
		}
		line, crlf, long, err := c.readLine(maxAuthLine, c.s.cfg.idle)
		if err == errIdle {
			return c.timeout()
		} else if err != nil {
			return err
		}
		c.idleSeen = false
		if err := c.command(line, crlf, long); err != nil {
			return err
		}
	}
}

func (c *conn) greet() error {
	if c.refused {
		c.enter(Banner)
		c.reply(421, "4.7.0", "Too many connections")
		return errBye
	}
	code, answered, err := c.at(Banner)
	if err != nil {
		return err
	}
	if !answered {
		c.replyText(220, c.s.cfg.banner)
	}
	c.rejected = code >= 400
	return nil
}

// timeout ends a connection by WithIdleTimeout.
func (c *conn) timeout() error {
	c.transcript.note("idle timeout")
	if c.s.cfg.idleSilent {
		return errFIN
	}
	c.reply(421, "4.4.2", "Idle timeout")
	return errBye
}

// idle asks the script what happens between two transactions.
func (c *conn) idle() error {
	if c.buffered() > 0 || !c.over || c.inMail || c.idleSeen {
		return nil
	}
	c.idleSeen = true
	ev := c.event(Idle)
	if ev == nil {
		return nil
	}
	e := c.s.decide(ev)
	if e == nil {
		return nil
	}
	if e.delay > 0 {
		err := c.fill(forCommand, e.delay)
		if err != errIdle {
			return err // nil: the client was faster
		}
		e.delay = 0
	}
	if _, _, err := c.carryOut(e); err != nil {
		return err
	}
	return c.settle()
}

// command carries out one command line.
func (c *conn) command(line []byte, crlf, long bool) error {
	verb, args := parseVerb(line)
	if long = long || verb != vAUTH && len(line) > maxLine; long {
		line = []byte("<too long>")
	}
	if long || verb == vRSET && len(args) > 0 {
		verb = vUnknown
	}
	c.s.count.verbs[verb].Add(1)
	c.noteCommand(verb, line)
	switch {
	case long:
		c.reply(500, "5.5.2", "Line too long")
		return nil
	case !crlf:
		c.reply(500, "5.5.2", "Lines end with CRLF")
		return nil
	}
	if c.buffered() > 0 && verb != vUnknown && verb != vBDAT && (endsGroup>>verb&1 == 1 || !c.pipelining()) {
		if err := c.early(); err != nil {
			return err
		}
	}
	cfg := c.s.cfg
	switch {
	case c.rejected && verb != vQUIT:
		c.reply(503, "5.5.1", "No service here, please QUIT")
		return nil
	case cfg.requireTLS && c.nc == c.raw && verb != vEHLO && verb != vHELO && verb != vNOOP && verb != vSTARTTLS && verb != vQUIT:
		c.reply(530, "5.7.0", "Must issue a STARTTLS command first")
		return nil
	}
	switch verb {
	case vEHLO, vHELO:
		return c.hello(verb, string(args))
	case vSTARTTLS:
		return c.starttls(args)
	case vAUTH:
		return c.auth(string(args))
	case vMAIL:
		return c.mail(string(args))
	case vRCPT:
		return c.rcpt(string(args))
	case vDATA:
		return c.dataCommand(args)
	case vBDAT:
		return c.bdat(string(args))
	case vRSET:
		return c.simple(Rset, 250, "2.0.0", "Ok", c.endTransaction)
	case vNOOP:
		return c.simple(Noop, 250, "2.0.0", "Ok", nil)
	case vQUIT:
		if err := c.simple(Quit, 221, "2.0.0", "Bye", nil); err != nil {
			return err
		}
		if err := c.settle(); err != nil {
			return err
		}
		return errBye
	case vVRFY:
		c.reply(252, "2.5.0", "Cannot VRFY user, but will accept mail for delivery")
	case vEXPN:
		c.reply(502, "5.5.1", "EXPN is not implemented")
	case vHELP:
		c.reply(214, "2.0.0", "This is smtptest, a relay for tests")
	default:
		c.reply(500, "5.5.2", "Command not recognized")
	}
	return nil
}

// noteCommand keeps the line for describe and the transcript, without secrets.
func (c *conn) noteCommand(verb int, line []byte) {
	switch {
	case verb == vAUTH:
		if f := strings.Fields(string(line)); len(f) > 2 {
			line = []byte(f[0] + " " + f[1] + " <redacted>")
		}
		c.secrets = true
	case verb == vUnknown && c.secrets:
		line = []byte("<redacted>")
	}
	c.transcript.client(line)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.line = append(c.line[:0], line[:min(len(line), 100)]...)
}

// pipelining reports whether the client may send before it has its reply.
func (c *conn) pipelining() bool { return c.esmtp && c.ext.pipelining }

// early counts input that came too early, and refuses it where that is asked for.
func (c *conn) early() error {
	c.s.count.early.Add(1)
	c.transcript.note("input that came too early: " + strconv.Itoa(c.buffered()) + " bytes")
	if !c.s.cfg.strict {
		return nil
	}
	c.reply(554, "5.5.0", "Improper use of SMTP command pipelining")
	return errBye
}

// simple answers a command that has no more to it; then is called where the answer
// is 2xx.
func (c *conn) simple(stage Stage, code int, enhanced, text string, then func()) error {
	said, answered, err := c.at(stage)
	if err != nil {
		return err
	}
	if !answered {
		c.reply(code, enhanced, text)
		said = code
	}
	if then != nil && said/100 == 2 {
		then()
	}
	return nil
}

// endTransaction clears the buffers of RFC 5321 §4.1.1.
func (c *conn) endTransaction() {
	c.over = c.over || c.inMail
	c.inMail, c.from, c.mailParams, c.utf8, c.declared = false, "", nil, false, 0
	c.to, c.rcptParams = nil, nil
	c.body = body{}
}

func (c *conn) hello(verb int, arg string) error {
	stage := Helo
	if verb == vEHLO {
		stage = Ehlo
	}
	arg = strings.TrimSpace(arg)
	old := c.helo
	c.helo = arg
	c.ext = c.s.offered(c.nc != c.raw)
	code, answered, err := c.at(stage)
	switch {
	case err != nil:
		return err
	case answered && code/100 != 2:
		c.helo = old
		return nil
	case answered:
	case arg == "":
		c.helo = old
		c.reply(501, "5.5.4", "A host name is missing")
		return nil
	case verb == vHELO:
		c.replyText(250, c.s.cfg.hostname)
	case c.s.cfg.noEHLO:
		c.helo = old
		c.reply(502, "5.5.1", "Command not implemented")
		return nil
	default:
		c.replyText(250, strings.Join(append([]string{c.s.cfg.hostname}, c.extensions()...), "\n"))
	}
	c.esmtp = verb == vEHLO
	c.endTransaction()
	return nil
}

// extensions returns the EHLO keyword lines for the state of the connection.
func (c *conn) extensions() []string {
	cfg := c.s.cfg
	lines := slices.Clone(c.ext.lines)
	if c.nc == c.raw { // RFC 8689 §2
		lines = slices.DeleteFunc(lines, func(l string) bool { return keyword(l) == "REQUIRETLS" })
	}
	if cfg.tls == tlsStart && c.nc == c.raw && !slices.Contains(cfg.without, "STARTTLS") {
		lines = append(lines, "STARTTLS")
	}
	if c.authOffered() && !slices.Contains(cfg.without, "AUTH") {
		lines = append(lines, "AUTH "+strings.Join(cfg.mechanisms, " "))
	}
	return lines
}

// authOffered reports whether AUTH is possible here: with TLS only, where there is
// TLS.
func (c *conn) authOffered() bool {
	return len(c.s.cfg.mechanisms) > 0 && (c.s.cfg.tls == tlsOff || c.nc != c.raw)
}

func (c *conn) starttls(args []byte) error {
	code, answered, err := c.at(StartTLS)
	switch {
	case err != nil:
		return err
	case answered:
		if code != 220 || c.s.tls == nil {
			return nil
		}
	case c.s.cfg.tls != tlsStart || !c.esmtp:
		c.reply(502, "5.5.1", "STARTTLS is not offered")
		return nil
	case c.nc != c.raw:
		c.reply(503, "5.5.1", "TLS is on already")
		return nil
	case len(args) > 0:
		c.reply(501, "5.5.4", "STARTTLS takes no parameters")
		return nil
	default:
		c.reply(220, "2.0.0", "Ready to start TLS")
	}
	if err := c.settle(); err != nil {
		return err
	}
	// Commands that were sent in the clear must not be taken for secured ones
	// (CVE-2011-0411).
	if c.buffered() > 0 {
		c.transcript.note("input behind STARTTLS is dropped")
		c.r = c.w
	}
	if err := c.startTLS(); err != nil {
		return err
	}
	// RFC 3207 §4.2: all knowledge from before is forgotten.
	c.session = session{transactions: c.transactions, secrets: c.secrets}
	c.ext = c.s.offered(true)
	return nil
}

func (c *conn) mail(args string) error {
	rest, ok := cutPrefixFold(args, "FROM:")
	addr, params, pok := parsePath(rest)
	if !ok || !pok {
		c.reply(501, "5.5.4", "Syntax: MAIL FROM:<address>")
		return nil
	}
	if ev := c.event(Mail); ev != nil {
		ev.From = addr
		code, answered, err := c.carryOut(c.s.decide(ev))
		if err != nil {
			return err
		}
		if answered {
			if code/100 == 2 {
				c.endTransaction()
				c.begin(addr, params)
			}
			return nil
		}
	}
	cfg := c.s.cfg
	switch {
	case c.helo == "":
		c.reply(503, "5.5.1", "Send EHLO or HELO first")
	case len(cfg.mechanisms) > 0 && !c.authed:
		c.reply(530, "5.7.0", "Authentication required")
	case c.inMail:
		c.reply(503, "5.5.1", "Nested MAIL command")
	case cfg.maxMessages > 0 && c.transactions >= cfg.maxMessages:
		c.reply(421, "4.7.0", "Too many messages on this connection")
	case addr != "" && !validAddress(addr):
		c.reply(501, "5.1.7", "Bad sender address syntax")
	default:
		if code, enhanced, text := c.checkMailParams(addr, params); code != 0 {
			c.reply(code, enhanced, text)
			return nil
		}
		c.begin(addr, params)
		c.reply(250, "2.1.0", "Ok")
	}
	return nil
}

func (c *conn) begin(from string, params []string) {
	c.inMail, c.from, c.mailParams = true, from, params
	for _, p := range params {
		key, value, _ := strings.Cut(p, "=")
		switch strings.ToUpper(key) {
		case "SMTPUTF8":
			c.utf8 = true
		case "SIZE":
			c.declared, _ = strconv.ParseInt(value, 10, 64)
		}
	}
	c.transactions++
	c.s.count.transactions.Add(1)
	if c.transactions > 1 {
		c.s.count.reused.Add(1)
	}
}

// mailKeywords and rcptKeywords name the extension that a parameter belongs to.
var (
	mailKeywords = map[string]string{
		"SIZE": "SIZE", "BODY": "8BITMIME", "SMTPUTF8": "SMTPUTF8", "RET": "DSN", "ENVID": "DSN", "AUTH": "AUTH",
		"REQUIRETLS": "REQUIRETLS", "MT-PRIORITY": "MT-PRIORITY", "HOLDFOR": "FUTURERELEASE", "HOLDUNTIL": "FUTURERELEASE", "BY": "DELIVERBY",
	}
	rcptKeywords = map[string]string{"NOTIFY": "DSN", "ORCPT": "DSN", "RRVS": "RRVS"}
)

// known reports whether the parameter belongs to an extension that is offered.
func (c *conn) known(keywords map[string]string, param string) bool {
	kw := keywords[param]
	if kw == "AUTH" {
		return c.esmtp && c.authOffered()
	}
	return kw != "" && c.esmtp && c.ext.offers(kw)
}

// checkMailParams returns the refusal that the parameters deserve, code 0 if none.
func (c *conn) checkMailParams(addr string, params []string) (code int, enhanced, text string) {
	cfg, utf8 := c.s.cfg, false
	for _, p := range params {
		key, value, _ := strings.Cut(p, "=")
		key = strings.ToUpper(key)
		if key == "REQUIRETLS" && c.nc == c.raw && c.ext.requireTLS {
			return 530, "5.7.0", "REQUIRETLS needs TLS"
		}
		if !c.known(mailKeywords, key) {
			return 555, "5.5.4", "Unsupported parameter " + key
		}
		switch key {
		case "SIZE":
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil || n < 0 {
				return 501, "5.5.4", "Bad SIZE"
			}
			if cfg.maxSize > 0 && n > cfg.maxSize {
				return 552, "5.3.4", "Message size exceeds fixed limit"
			}
		case "BODY":
			switch v := strings.ToUpper(value); {
			case v == "7BIT", v == "8BITMIME", v == "BINARYMIME" && c.ext.offers("BINARYMIME"):
			default:
				return 555, "5.5.4", "Unsupported BODY"
			}
		case "SMTPUTF8":
			utf8 = true
		}
	}
	if !utf8 && !ascii(addr) {
		return 553, "5.6.7", "SMTPUTF8 is needed for this address"
	}
	return 0, "", ""
}

func (c *conn) rcpt(args string) error {
	rest, ok := cutPrefixFold(args, "TO:")
	addr, params, pok := parsePath(rest)
	if !ok || !pok || addr == "" {
		c.reply(501, "5.5.4", "Syntax: RCPT TO:<address>")
		return nil
	}
	accept := func() { c.to, c.rcptParams = append(c.to, addr), append(c.rcptParams, params) }
	if ev := c.event(Rcpt); ev != nil {
		ev.Rcpt = addr
		code, answered, err := c.carryOut(c.s.decide(ev))
		if err != nil {
			return err
		}
		if answered {
			if code/100 == 2 {
				accept()
			}
			return nil
		}
	}
	cfg := c.s.cfg
	switch {
	case !c.inMail:
		c.reply(503, "5.5.1", "Send MAIL first")
	case !validAddress(addr) && !strings.EqualFold(addr, "postmaster"):
		c.reply(501, "5.1.3", "Bad recipient address syntax")
	case !c.utf8 && !ascii(addr):
		c.reply(553, "5.6.7", "SMTPUTF8 is needed for this address")
	case cfg.maxRecipients > 0 && len(c.to) >= cfg.maxRecipients:
		c.reply(452, "4.5.3", "Too many recipients")
	default:
		for _, p := range params {
			key, _, _ := strings.Cut(p, "=")
			if key = strings.ToUpper(key); !c.known(rcptKeywords, key) {
				c.reply(555, "5.5.4", "Unsupported parameter "+key)
				return nil
			}
		}
		accept()
		c.reply(250, "2.1.5", "Ok")
	}
	return nil
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

// parsePath takes a path and its parameters apart. Blanks before the path are not
// allowed by RFC 5321 but by every relay.
func parsePath(s string) (addr string, params []string, ok bool) {
	s, ok = strings.CutPrefix(strings.TrimLeft(s, " "), "<")
	if !ok {
		return "", nil, false
	}
	if strings.HasPrefix(s, "@") { // a source route, to be ignored (RFC 5321 appendix C)
		if _, s, ok = strings.Cut(s, ":"); !ok {
			return "", nil, false
		}
	}
	quoted := false
	for i := 0; i < len(s); i++ {
		switch b := s[i]; {
		case b < ' ' || b == 0x7f:
			return "", nil, false
		case quoted && b == '\\':
			i++
		case b == '"':
			quoted = !quoted
		case quoted:
		case b == ' ' || b == '<':
			return "", nil, false
		case b == '>':
			addr, s = s[:i], s[i+1:]
			if s != "" && s[0] != ' ' {
				return "", nil, false
			}
			return addr, strings.Fields(s), true
		}
	}
	return "", nil, false
}

func validAddress(addr string) bool {
	i := strings.LastIndexByte(addr, '@')
	return i > 0 && i < len(addr)-1
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
