package session

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/smtplb/smtplb/internal/reply"
)

// Dial opens a conversation as far as a transaction needs it: connect, TLS, banner, EHLO, STARTTLS, AUTH. It ends with ctx, and
// at cut where that is not zero; total is the length of the caller's time, 0 for no limit. refused is handed to Config.Auth: it is the relay's refusal of the credentials that Auth gave
// the last time. Exactly one of the connection and the End is nil; nothing is left open behind an End.
func Dial(ctx context.Context, cfg *Config, cut time.Time, total time.Duration, refused error) (*Conn, *End, Timings) {
	var t Timings
	c := &Conn{cfg: cfg}
	if end := c.open(ctx, cut, total, refused, &t); end != nil {
		if c.raw != nil {
			c.farewell(ctx, end)
			_ = c.Close()
		}
		return nil, end, t
	}
	return c, nil, t
}

// farewellTime is how long a QUIT may take that nobody waits for: it is six bytes, and the connection has next to nothing to send.
const farewellTime = 50 * time.Millisecond

// farewell says QUIT to a relay with which no session has come about though both know where they are: it has refused, or doesn't offer what is needed (RFC 5321 §4.1.1.10: no client closes without). The answer isn't waited for.
func (c *Conn) farewell(ctx context.Context, end *End) {
	inStep := end.Reply.Code >= 400 && end.Reply.Code != 421 || end.Failure == reply.FailAuth || end.Failure == reply.FailCapability
	if !inStep || c.nc == nil || c.stopCause() != nil || ctx.Err() != nil {
		return
	}
	_ = c.nc.SetDeadline(time.Now().Add(farewellTime))
	_, _ = io.WriteString(c.nc, "QUIT\r\n")
}

// open does what Dial says. Behind an End it leaves the raw connection as it is, if there is one: the caller closes it.
func (c *Conn) open(ctx context.Context, cut time.Time, total time.Duration, refused error, t *Timings) *End {
	begun := time.Now()
	c.spend(cut, total)
	end := c.connect(ctx)
	t.Dial = time.Since(begun)
	if end != nil {
		return end
	}
	stop := c.watch(ctx)
	buf := borrowReadBuffer()
	c.rd.Reset(c, buf[:])
	returned := false
	defer func() { // Config.Auth is the caller's code, and may panic or end the goroutine
		if !returned {
			stop()
			_ = c.Close()
		}
	}()
	end = c.greet(ctx, refused, t)
	returned = true
	if end == nil && c.rd.Buffered() > 0 {
		end = c.give(reply.FailOutOfStep, errUnasked)
	}
	c.rd.Reset(nil, nil)
	returnReadBuffer(buf)
	if stop() {
		c.ctx = nil
	} else if end == nil {
		c.interrupt(contextError(ctx))
		end = c.fail(contextError(ctx))
	}
	c.spend(time.Time{}, 0)
	return end
}

var errUnasked = errors.New("the relay sent something that nobody asked for")

func (c *Conn) connect(ctx context.Context) *End {
	c.stage, c.start, c.timeout = reply.StageDial, time.Now(), c.cfg.Timeouts.Dial
	limit := c.start.Add(c.timeout)
	if !c.cut.IsZero() && c.cut.Before(limit) {
		limit, c.shortened = c.cut, true
	}
	dctx, cancel := context.WithDeadline(ctx, limit)
	defer cancel()
	dial := c.cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	raw, err := dial(dctx, c.cfg.Network, c.cfg.Addr)
	if err == nil && raw == nil {
		err = errors.New("the Dial function returned neither a connection nor an error")
	}
	if err == nil && ctx.Err() != nil {
		_ = raw.Close()
		err = contextError(ctx)
	}
	if err != nil {
		if d, ok := ctx.Deadline(); ok && isTimeout(err) && !time.Now().Before(d) {
			<-ctx.Done() // the dialler saw the caller's deadline a moment before the context's own timer
		}
		if ctx.Err() != nil {
			c.stopped = contextError(ctx)
		}
		end := c.fail(err)
		switch {
		case end.Failure != reply.FailReset && end.Failure != reply.FailEOF:
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
			end.Failure = reply.FailLocal
		default:
			end.Failure = reply.FailConnect
		}
		return end
	}
	c.raw, c.nc = raw, raw
	c.exact = writesExactly(raw)
	c.prober.init(raw)
	switch raw.(type) {
	case *net.TCPConn, *net.UnixConn:
		c.bare = true
	}
	return nil
}

// writesExactly reports whether a Write on conn tells exactly how many bytes may reach the relay. Any other connection is
// trusted with less: its message counts as committed when the write that carries the terminator starts.
func writesExactly(conn net.Conn) bool {
	switch conn := conn.(type) {
	case *net.TCPConn, *net.UnixConn:
		return true
	case interface{ ExactWrite() bool }:
		return conn.ExactWrite()
	}
	return false
}

func (c *Conn) greet(ctx context.Context, refused error, t *Timings) *End {
	if c.cfg.TLS == TLSImplicit {
		if end := c.handshake(t); end != nil {
			return end
		}
	}
	begun := time.Now()
	masked, end := c.banner()
	if end == nil {
		end = c.hello(masked)
	}
	t.Hello = time.Since(begun)
	if end != nil {
		return end
	}
	if end := c.startTLS(t); end != nil {
		return end
	}
	begun = time.Now()
	end = c.authenticate(ctx, refused)
	if c.hasCredentials() && !c.noLogin {
		t.Auth = time.Since(begun)
	}
	if c.cfg.Auth != nil && c.cfg.Secrets != nil && len(c.secrets) > 0 {
		c.cfg.tell(c.secrets)
	}
	c.mechs, c.secrets = nil, nil // not needed again
	return end
}

func (c *Conn) banner() (masked bool, end *End) {
	r, end := c.expect(reply.StageBanner, c.cfg.Timeouts.Banner)
	if end != nil {
		return false, end
	}
	if !r.Positive() {
		if r.Intermediate() {
			return false, c.give(reply.FailOutOfStep, fmt.Errorf("greeted with %v", r))
		}
		return false, c.refused(r)
	}
	return reply.MaskedBanner(r.Text), nil
}

// refused ends a dial with a reply.
func (c *Conn) refused(r reply.Reply) *End {
	c.broken = true
	return &End{Stage: c.stage, Reply: r}
}

// hello greets the relay. HELO is tried only where EHLO is not known there (RFC 5321 §3.2) and nothing that needs an extension is
// required. Behind a masked banner a middlebox mangles extensions, so none is used.
func (c *Conn) hello(masked bool) *End {
	needsESMTP := c.cfg.TLS == TLSStart || c.hasCredentials()
	c.ext, c.mechs = Extensions{}, nil
	if !masked || needsESMTP {
		r, end := c.command(reply.StageHello, c.cfg.Timeouts.Hello, "EHLO "+c.cfg.LocalName)
		if end != nil {
			return end
		}
		switch {
		case r.Positive():
			c.ext, c.mechs = parseExtensions(r.Text, c.cfg.Ignore)
			c.ext.RequireTLS = c.ext.RequireTLS && c.verified // RFC 8689 §4.2.1: only over TLS, and with a verified certificate
			if masked {
				c.ext.Pipelining = false
			}
			return nil
		case r.Intermediate():
			return c.give(reply.FailOutOfStep, fmt.Errorf("EHLO answered with %v", r))
		case needsESMTP || r.Code != 500 && r.Code != 501 && r.Code != 502 && r.Code != 504:
			return c.refused(r)
		}
	}
	r, end := c.command(reply.StageHello, c.cfg.Timeouts.Hello, "HELO "+c.cfg.LocalName)
	if end != nil {
		return end
	}
	if r.Intermediate() {
		return c.give(reply.FailOutOfStep, fmt.Errorf("HELO answered with %v", r))
	}
	if !r.Positive() {
		return c.refused(r)
	}
	return nil
}

// command sends one command and reads its reply.
func (c *Conn) command(stage reply.Stage, timeout time.Duration, line string) (reply.Reply, *End) {
	if c.rd.Buffered() > 0 {
		c.stage = stage
		return reply.Reply{}, c.give(reply.FailOutOfStep, errUnasked)
	}
	c.begin(stage, timeout)
	if _, err := c.nc.Write([]byte(line + "\r\n")); err != nil {
		return c.salvage(err)
	}
	return c.expect(stage, timeout)
}

// salvage reads what the relay said before a write failed, for up to 2 s: a relay that hangs up often says why first.
func (c *Conn) salvage(werr error) (reply.Reply, *End) {
	if c.stopCause() == nil {
		c.setDeadline(time.Now().Add(salvageTime))
		if r, err := c.read(); err == nil {
			return r, nil
		}
	}
	return reply.Reply{}, c.fail(werr)
}

const salvageTime = 2 * time.Second

func (c *Conn) startTLS(t *Timings) *End {
	if c.cfg.TLS != TLSStart && c.cfg.TLS != TLSOpportunistic {
		return nil
	}
	if !c.ext.StartTLS {
		if c.cfg.TLS == TLSOpportunistic {
			return nil
		}
		c.stage = reply.StageStartTLS
		return c.give(reply.FailCapability, errors.New("the relay does not offer STARTTLS, which is required unless TLSNone (tls=none) says otherwise"))
	}
	r, end := c.command(reply.StageStartTLS, c.cfg.Timeouts.TLS, "STARTTLS")
	if end != nil {
		return end
	}
	if r.Code != 220 {
		if r.Positive() || r.Intermediate() {
			return c.give(reply.FailOutOfStep, fmt.Errorf("STARTTLS answered with %v", r))
		}
		return c.refused(r)
	}
	if c.rd.Buffered() > 0 { // injected plain text would be taken for the relay's words under TLS (CVE-2011-0411)
		return c.give(reply.FailOutOfStep, errors.New("plain text behind the reply to STARTTLS"))
	}
	if end := c.handshake(t); end != nil {
		return end
	}
	begun := time.Now()
	end = c.hello(false) // RFC 3207 §4.2: what was offered before is forgotten
	t.Hello += time.Since(begun)
	return end
}

func (c *Conn) handshake(t *Timings) *End {
	begun := time.Now()
	defer func() { t.TLS = time.Since(begun) }()
	c.begin(reply.StageTLS, c.cfg.Timeouts.TLS)
	tc := tls.Client(c.raw, c.cfg.TLSConfig)
	if err := tc.Handshake(); err != nil {
		end := c.fail(err)
		var op *net.OpError
		if end.Failure == reply.FailReset && !errors.As(err, &op) { // crypto/tls's own findings are plain errors
			end.Failure = reply.FailTLS
		}
		var header tls.RecordHeaderError
		if errors.As(err, &header) && c.stopCause() == nil {
			end.Err = fmt.Errorf("%w (the relay speaks plain text here: is it a STARTTLS port?)", err)
		}
		return end
	}
	c.nc, c.secured, c.verified = tc, true, !c.cfg.TLSConfig.InsecureSkipVerify
	return nil
}

// Extensions are what a relay offers (RFC 5321 §2.2, and the RFC of each). They can be compared.
type Extensions struct {
	Pipelining, EightBitMIME, SMTPUTF8, StartTLS, DSN, Chunking, RequireTLS bool
	HasSize                                                                 bool
	Size                                                                    int64 // RFC 1870; 0: no fixed limit
	RcptMax, MailMax                                                        int   // RFC 9422; 0: not said
}

// parseExtensions reads the reply to EHLO: what is offered, and the mechanisms of AUTH, in upper case.
func parseExtensions(text string, ignore []string) (x Extensions, auth []string) {
	_, text, more := strings.Cut(text, "\n") // the first line is the relay's name
	for more {
		var line string
		line, text, more = strings.Cut(text, "\n")
		keyword, rest, _ := strings.Cut(strings.TrimRight(line, " \t"), " ")
		keyword = upper(keyword)
		if strings.HasPrefix(keyword, "AUTH=") { // the form of old Exchange and Netscape servers
			keyword, rest = "AUTH", line[len("AUTH="):]
		}
		if contains(ignore, keyword) {
			continue
		}
		switch keyword {
		case "PIPELINING":
			x.Pipelining = true
		case "8BITMIME":
			x.EightBitMIME = true
		case "SMTPUTF8":
			x.SMTPUTF8 = true
		case "STARTTLS":
			x.StartTLS = true
		case "DSN":
			x.DSN = true
		case "CHUNKING":
			x.Chunking = true
		case "REQUIRETLS":
			x.RequireTLS = true
		case "SIZE":
			x.HasSize = true
			x.Size = number(rest)
		case "AUTH":
			for _, m := range strings.Fields(upper(rest)) {
				if !contains(auth, m) && len(auth) < 32 {
					auth = append(auth, m)
				}
			}
		case "LIMITS":
			for _, f := range strings.Fields(upper(rest)) {
				name, value, _ := strings.Cut(f, "=")
				switch name {
				case "RCPTMAX":
					x.RcptMax = int(min(number(value), 1<<30))
				case "MAILMAX":
					x.MailMax = int(min(number(value), 1<<30))
				}
			}
		}
	}
	return x, auth
}

// Need is what a message needs of a relay.
type Need struct {
	UTF8     bool  // an address or a header needs SMTPUTF8
	EightBit bool  // the message has bytes above 127
	Size     int64 // in bytes, before dot-stuffing
	Together int   // recipients that must go in one transaction; 0: any number at a time will do

	DSN, RequireTLS bool
}

var (
	errNoUTF8     = errors.New("it does not offer SMTPUTF8 (RFC 6531), which an address or a header needs")
	errNoEightBit = errors.New("it does not offer 8BITMIME (RFC 6152), which the body needs")
	errNoDSN      = errors.New("it does not offer DSN (RFC 3461), which the envelope asks for")
	errNoTLS      = errors.New("it does not offer REQUIRETLS (RFC 8689) over verified TLS, which the envelope asks for")
)

// Lacks reports what n needs and is not offered, nil where nothing is missing.
func (x *Extensions) Lacks(n Need) error {
	switch {
	case n.UTF8 && !x.SMTPUTF8:
		return errNoUTF8
	case n.EightBit && !x.EightBitMIME:
		return errNoEightBit
	case n.DSN && !x.DSN:
		return errNoDSN
	case n.RequireTLS && !x.RequireTLS:
		return errNoTLS
	case x.RcptMax > 0 && n.Together > x.RcptMax:
		return fmt.Errorf("it takes %d recipients at a time (LIMITS, RFC 9422), and all %d must go together", x.RcptMax, n.Together)
	case x.Size > 0 && n.Size > x.Size:
		return fmt.Errorf("it takes %d bytes, and the message has %d (SIZE, RFC 1870)", x.Size, n.Size)
	}
	return nil
}

// number reads a decimal number; anything else is 0, which stands for "not said" everywhere here.
func number(s string) int64 {
	s = strings.TrimSpace(s)
	if s == "" || len(s) > 18 {
		return 0
	}
	var n int64
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n
}

// upper is s with ASCII's letters in upper case, and no others: strings.ToUpper makes keywords out of letters that only look like them (U+017F
// becomes S, U+0131 becomes I).
func upper(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'a' && c <= 'z' {
			b[i] = c - ('a' - 'A')
		}
	}
	return string(b)
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
