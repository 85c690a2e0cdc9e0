// Package session holds one SMTP conversation with one relay: connecting, TLS, authentication, transactions.
//
// It reports facts and judges nothing: what a reply means for a recipient or for the relay is decided elsewhere. Three rules
// hold throughout:
//
//   - The connection is ours. Nothing blocks without a deadline on it, and the end of the caller's context sets that deadline
//     into the past (or, after the commit point, a grace ahead).
//   - The commit point is tracked to the byte. Before the terminator's dot is written the relay cannot have accepted the
//     message, so a body that stops in the middle ends in a hard close, never in a dot or a QUIT.
//   - A reply belongs to the command that asked for it. Bytes that nobody asked for end the connection.
package session

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	netsmtp "net/smtp"
	"os"
	"sync"
	"time"

	"github.com/smtplb/smtplb/internal/reply"
)

// TLS says how a conversation is encrypted.
type TLS uint8

// The ways of TLS. There is no way that falls back to plain text after a failed handshake.
const (
	TLSStart         TLS = iota // STARTTLS, required
	TLSImplicit                 // from the first byte
	TLSOpportunistic            // STARTTLS where it is offered
	TLSNone                     // plain text
)

// Timeouts are the longest times that the stages may take. None may be zero.
type Timeouts struct {
	Dial, TLS, Banner, Hello, Auth, Mail, Rcpt, Data time.Duration
	Body                                             time.Duration // without progress
	Final                                            time.Duration // from the commit point to the reply
	Reset, Quit                                      time.Duration
	Grace                                            time.Duration // after the commit point, once the caller has gone
}

// DefaultTimeouts are short where failing over is safe, and RFC 5321 §4.5.3.2.6's ten minutes where it is not.
var DefaultTimeouts = Timeouts{
	Dial: 10 * time.Second, TLS: 15 * time.Second, Banner: 30 * time.Second, Hello: 30 * time.Second, Auth: 30 * time.Second,
	Mail: time.Minute, Rcpt: time.Minute, Data: time.Minute, Body: 30 * time.Second, Final: 10 * time.Minute,
	Reset: 20 * time.Second, Quit: time.Second, Grace: 5 * time.Second,
}

// Config is what a conversation needs to know. It is shared by all connections of a relay and not changed.
type Config struct {
	Network, Addr string                                                            // for Dial
	Host          string                                                            // the relay's name, for SASL
	Dial          func(ctx context.Context, network, addr string) (net.Conn, error) // nil: a net.Dialer
	LocalName     string                                                            // EHLO
	TLS           TLS
	TLSConfig     *tls.Config // with ServerName or InsecureSkipVerify set, unless TLS is TLSNone

	// Credentials: Auth, or Username with Password, or none.
	Auth               func(ctx context.Context, mechanisms []string, refused error) (netsmtp.Auth, error)
	Username, Password string
	Mechanisms         []string // allowed, most wanted first; nil: SCRAM-SHA-256, SCRAM-SHA-1, PLAIN, LOGIN
	PlainAuth          bool     // credentials may be sent without TLS

	Ignore   []string // EHLO keywords that are treated as not offered, upper case
	Timeouts Timeouts

	Secrets *Secrets // what the relay was told in AUTH; nil: it is not looked for in later replies
}

// End says where and how a dial or a transaction ended.
type End struct {
	Stage     reply.Stage
	Reply     reply.Reply   // the reply that ended it, if one did
	Failure   reply.Failure // why there was none
	Err       error         // what lies behind Failure
	LongWait  bool          // the stage lasted long enough for the relay to be blamed although the caller's deadline ended it
	Shortened bool          // FailTimeout: the stage's time was cut for the caller's deadline
	Stale     bool          // Noop: the relay had given up this one connection, which says nothing of the relay
}

// Timings are how long the parts of an attempt took; zero where a part did not happen.
type Timings struct {
	Dial, TLS, Hello, Auth time.Duration // Hello: banner and EHLO
	Envelope               time.Duration // MAIL to the reply to DATA
	Body                   time.Duration // writing the message
	Final                  time.Duration // from the terminator to the reply
}

// Conn is one conversation. Its methods are for one goroutine at a time, but for Abort and Close.
type Conn struct {
	cfg       *Config
	raw       net.Conn // what Dial returned
	nc        net.Conn // raw, or TLS over it
	prober    prober
	ext       Extensions
	mechs     []string // that AUTH offers, until it is done
	secrets   []string // what AUTH sent, until it is done
	rd        reply.Reader
	code      int16        // of the last reply
	rbuf      *[4096]byte  // lent to rd while a transaction is under way, or somebody rides
	rider     *Transaction // its envelope was sent behind the last body, and its replies were not read
	uses      int
	kept      bool // it was idle before its first use
	secured   bool
	verified  bool // under TLS with a certificate that was checked
	noLogin   bool // a check that doesn't log in
	bare      bool // raw is a socket, and no type of somebody else's
	exact     bool // what a Write on raw reports is exactly what may have reached the relay
	needReset bool // the relay holds the rest of an earlier transaction
	broken    bool
	pre       [1]byte // a byte that a probe had to take off nc
	npre      int
	heard     bool // bytes were received since the transaction began
	drained   bool // since then the socket was read, and had no more than that

	stage     reply.Stage
	start     time.Time     // of the stage
	timeout   time.Duration // of the stage
	shortened bool
	armed     bool          // the stage's deadline is set, or due, and no reply was read since
	due       bool          // the stage's deadline is to be set before something is waited for
	cut       time.Time     // the stages before the commit point end here
	total     time.Duration // the length of the caller's context, 0 without a deadline
	share     time.Duration // what cut leaves, 0 without one

	ctx   context.Context // of the operation
	onEnd func()          // what its end does

	mu        sync.Mutex // guards the following fields, and orders SetDeadline against the end of the context; never held across I/O
	committed bool
	stopped   error     // why the operation in progress must end
	deadline  time.Time // the last that was set, but for a past one that ends an uncommitted operation
	closed    bool
}

var aLongTimeAgo = time.Unix(1, 0)

// Uses is the number of transactions that were begun.
func (c *Conn) Uses() int { return c.uses }

// Extensions are what the relay offered last.
func (c *Conn) Extensions() *Extensions { return &c.ext }

// Keep says that the connection, which no transaction was made on yet, is going to be idle: what breaks later is a stale connection, as after a use.
func (c *Conn) Keep() { c.kept = true }

// Discard makes the connection one that must not be used again.
func (c *Conn) Discard() { c.broken = true }

// Reusable reports whether another transaction may be tried.
func (c *Conn) Reusable() bool { return !c.broken }

// Close cuts the connection: no dot, no QUIT, no close_notify, so that a relay can't take half a message for a whole one.
func (c *Conn) Close() error {
	c.mu.Lock()
	done := c.closed
	c.closed = true
	c.mu.Unlock()
	if done {
		return nil
	}
	return c.raw.Close()
}

// Abort cuts whatever is under way, which ends with cause. It may be called at any time, by anybody.
func (c *Conn) Abort(cause error) {
	c.mu.Lock()
	if c.stopped == nil {
		c.stopped = cause
	}
	c.mu.Unlock()
	_ = c.Close()
}

// Quit says good-bye and closes, within the context and the timeout for QUIT. It must not be called while a body is open.
func (c *Conn) Quit(ctx context.Context) {
	defer c.Close()
	if c.broken || c.rider != nil {
		return
	}
	stop := c.watch(ctx)
	defer stop()
	c.begin(reply.StageQuit, c.cfg.Timeouts.Quit)
	if _, err := io.WriteString(c.nc, "QUIT\r\n"); err != nil {
		return
	}
	buf := borrowReadBuffer()
	defer returnReadBuffer(buf)
	c.rd.Reset(c, buf[:])
	_, _ = c.rd.Read()
}

// watch lets the end of ctx end what c does. The function that it returns undoes that; it reports false where the context
// ended meanwhile, after which the connection must not be used again.
func (c *Conn) watch(ctx context.Context) func() bool {
	if ctx.Done() == nil {
		return nothingToStop
	}
	if c.onEnd == nil { // made once: a closure for each message would allocate
		c.onEnd = func() { c.interrupt(contextError(c.ctx)) }
	}
	c.ctx = ctx // written only while no such function can be called: after one was, the connection is not used again
	return context.AfterFunc(ctx, c.onEnd)
}

// contextError is why ctx ended: its error, and its cause where that says more.
func contextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if err == cause {
		return err
	}
	return fmt.Errorf("%w: %w", err, cause)
}

func nothingToStop() bool { return true }

// interrupt ends the operation in progress: at once before the commit point, after the grace behind it (contract: no reply is
// given up early once the relay may have accepted).
func (c *Conn) interrupt(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped != nil {
		return
	}
	c.stopped = cause
	if !c.committed {
		_ = c.raw.SetDeadline(aLongTimeAgo)
	} else if t := time.Now().Add(c.cfg.Timeouts.Grace); c.deadline.IsZero() || t.Before(c.deadline) { // the grace bounds the stage, and never prolongs it
		c.deadline = t
		_ = c.raw.SetDeadline(t)
	}
}

// commit marks the commit point: from here on the relay may have accepted the message.
func (c *Conn) commit() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.committed {
		return
	}
	c.committed = true
	if c.stopped != nil { // interrupt saw an uncommitted message and set a past deadline
		c.deadline = time.Now().Add(c.cfg.Timeouts.Grace)
		_ = c.raw.SetDeadline(c.deadline)
	}
}

func (c *Conn) isCommitted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.committed
}

func (c *Conn) stopCause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stopped
}

// spend sets what time there is for an operation.
func (c *Conn) spend(cut time.Time, total time.Duration) {
	c.cut, c.total, c.share = cut, total, 0
	if !cut.IsZero() {
		c.share = max(time.Until(cut), 1)
	}
}

// begin starts a stage: its deadline is absolute, and earlier than its timeout where the caller's time is short.
func (c *Conn) begin(stage reply.Stage, timeout time.Duration) {
	c.enter(stage, timeout)
	c.arm()
}

// enter is begin for a stage in which nothing may have to be waited for: to set a deadline costs more than to note it.
func (c *Conn) enter(stage reply.Stage, timeout time.Duration) {
	now := time.Now()
	c.stage, c.start, c.timeout, c.armed, c.due = stage, now, timeout, true, true
	c.shortened = !c.cut.IsZero() && stage < reply.StageFinal && c.cut.Before(now.Add(timeout))
}

// end is when the stage must be over.
func (c *Conn) end() time.Time {
	if c.shortened {
		return c.cut
	}
	return c.start.Add(c.timeout)
}

// arm sets the deadline that is due.
func (c *Conn) arm() {
	if c.due {
		c.setDeadline(c.end())
	}
}

// setDeadline sets a deadline unless the operation was told to stop: then its deadline is in place, and behind the commit point only an
// earlier one takes it.
func (c *Conn) setDeadline(t time.Time) {
	c.due = false
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped == nil || c.committed && !t.IsZero() && t.Before(c.deadline) {
		c.deadline = t
		_ = c.raw.SetDeadline(t)
	}
}

// Read feeds the reply reader.
func (c *Conn) Read(p []byte) (int, error) {
	if c.npre > 0 && len(p) > 0 {
		p[0], c.npre, c.heard = c.pre[0], 0, true
		return 1, nil
	}
	c.arm()
	n, err := c.nc.Read(p)
	c.drained = n < len(p) && !c.secured
	if n > 0 {
		c.heard = true
		return n, nil // an error comes again
	}
	return n, err
}

// expect reads one reply. The deadline is set anew only where the reply must be waited for, and was not asked for just now.
func (c *Conn) expect(stage reply.Stage, timeout time.Duration) (reply.Reply, *End) {
	switch {
	case c.rd.Buffered() > 0:
		c.stage = stage
	case !c.armed || stage != c.stage:
		c.begin(stage, timeout)
	}
	r, err := c.read()
	if err != nil {
		return reply.Reply{}, c.fail(err)
	}
	c.armed = false
	return r, nil
}

// fail describes err at the present stage and gives the connection up.
func (c *Conn) fail(err error) *End {
	c.broken = true
	e := &End{Stage: c.stage, Failure: classify(err), Err: err}
	var malformed *reply.MalformedError
	if errors.As(err, &malformed) {
		e.Err = c.cleaned(malformed)
	}
	if cause := c.stopCause(); cause != nil {
		e.Err = cause
		e.Failure = reply.FailCanceled
		if errors.Is(cause, context.DeadlineExceeded) {
			e.Failure = reply.FailDeadline
			e.LongWait = c.longWait(c.total)
		}
		return e
	}
	if e.Failure == reply.FailTimeout {
		e.Shortened = c.shortened
		e.LongWait = c.longWait(c.share)
		e.Err = fmt.Errorf("no answer within %v: %w", time.Since(c.start).Round(time.Millisecond), os.ErrDeadlineExceeded)
	}
	return e
}

// longWait reports whether the stage lasted so long that the relay is to blame: 2 s at least, and half of what it could have
// had. Without that a relay that hangs stays invisible where all callers are in a hurry.
func (c *Conn) longWait(had time.Duration) bool {
	limit := c.timeout
	if had > 0 && had < limit {
		limit = had
	}
	d := time.Since(c.start)
	return d >= 2*time.Second && d >= limit/2
}

// give ends an operation with a failure of our own finding.
func (c *Conn) give(f reply.Failure, err error) *End {
	c.broken = true
	return &End{Stage: c.stage, Failure: f, Err: err}
}

// unasked ends an operation before a command of stage, because something that nobody asked for lies in the buffer. A 421 may come
// at any time (RFC 5321 §3.8), and is as good as an answer to that command; anything else is out of step.
func (c *Conn) unasked(stage reply.Stage) *End {
	c.begin(stage, salvageTime) // it may not be there whole
	if r, err := c.read(); err == nil && r.Code == 421 {
		return c.refused(r)
	}
	return c.give(reply.FailOutOfStep, errUnasked)
}

func classify(err error) reply.Failure {
	var (
		malformed *reply.MalformedError
		dns       *net.DNSError
		cert      *tls.CertificateVerificationError
		header    tls.RecordHeaderError
		alert     tls.AlertError
		op        *net.OpError
	)
	switch {
	case errors.As(err, &malformed):
		return reply.FailMalformed
	case errors.As(err, &cert), isX509(err):
		return reply.FailCertificate
	case errors.As(err, &header), errors.As(err, &alert):
		return reply.FailTLS
	case errors.As(err, &dns) && !dns.IsTimeout:
		return reply.FailDNS
	case isTimeout(err):
		return reply.FailTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return reply.FailEOF
	case errors.As(err, &op) && op.Op == "remote error", errors.As(err, &op) && op.Op == "local error":
		return reply.FailTLS // crypto/tls wraps alerts so
	}
	return reply.FailReset
}

func isX509(err error) bool {
	var (
		a x509.UnknownAuthorityError
		h x509.HostnameError
		i x509.CertificateInvalidError
	)
	return errors.As(err, &a) || errors.As(err, &h) || errors.As(err, &i)
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

// A buffer for replies is borrowed only while a connection is active.
var readBuffers = sync.Pool{New: func() any { return new([4096]byte) }}

func borrowReadBuffer() *[4096]byte  { return readBuffers.Get().(*[4096]byte) }
func returnReadBuffer(b *[4096]byte) { readBuffers.Put(b) }
