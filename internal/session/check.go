package session

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/smtplb/smtplb/internal/reply"
)

// CheckInfo is what a check saw, as far as it came.
type CheckInfo struct {
	Code       int        // of the last reply before QUIT, 0 for none
	Extensions Extensions // that were offered last
	NotAfter   time.Time  // when the relay's certificate expires, be it accepted or not; zero without one
}

// Check sees whether a relay would take a transaction: it opens a conversation as Dial does, connect, banner, EHLO, STARTTLS with the certificate, and says
// QUIT, for whose answer it waits within Timeouts.Quit. It ends with ctx, and at cut where that is not zero. The End is nil where all went well, and else
// the same as Dial's.
//
// Only with auth it logs in: many relays lock an account, or write it down as an attack, when that happens several times a minute. Without it a relay whose
// configuration has credentials is still held to offering AUTH, in the way that Dial would need it. The handshake is always a full one: a resumed session shows no
// certificate.
//
// A relay that refuses, or lacks something, hears a QUIT all the same (RFC 5321 §4.1.1.10; to a greeting of 554 it is the one thing to say, §3.1). Nobody waits for
// more than its answer, and nothing is left open.
func Check(ctx context.Context, cfg *Config, cut time.Time, auth bool) (*End, Timings, CheckInfo) {
	var (
		t    Timings
		info CheckInfo
		own  = *cfg
	)
	if own.TLSConfig != nil && own.TLSConfig.ClientSessionCache != nil {
		own.TLSConfig = own.TLSConfig.Clone()
		own.TLSConfig.ClientSessionCache = nil
	}
	c := &Conn{cfg: &own, noLogin: !auth}
	end := c.open(ctx, cut, timeLeft(ctx), nil, &t)
	if c.raw == nil {
		return end, t, info
	}
	info.Code, info.Extensions, info.NotAfter = int(c.code), c.ext, c.expiry(end)
	// Behind the end of ctx the deadline lies in the past, or is about to.
	if ctx.Err() == nil && (end == nil || end.Reply.Code != 0 && end.Reply.Code != 421 || end.Failure == reply.FailCapability) {
		c.broken = false // the two are in step
		c.Quit(ctx)
	}
	_ = c.Close()
	return end, t, info
}

// timeLeft is the length of a context, 0 without a deadline.
func timeLeft(ctx context.Context) time.Duration {
	if d, ok := ctx.Deadline(); ok {
		return max(time.Until(d), 1)
	}
	return 0
}

// expiry is when the relay's certificate expires. One that was not accepted lies in the error.
func (c *Conn) expiry(end *End) time.Time {
	if tc, ok := c.nc.(*tls.Conn); ok {
		if certs := tc.ConnectionState().PeerCertificates; len(certs) > 0 {
			return certs[0].NotAfter
		}
	}
	var refused *tls.CertificateVerificationError
	if end != nil && errors.As(end.Err, &refused) && len(refused.UnverifiedCertificates) > 0 {
		return refused.UnverifiedCertificates[0].NotAfter
	}
	return time.Time{}
}

// noopPatience is how long NOOP waits for something unasked where the socket can't be looked into.
const noopPatience = time.Millisecond

// Noop asks the relay for a sign of life on an idle connection (NOOP, RFC 5321 §4.1.1.9), and waits for the answer within the timeout, which must be positive, and
// ctx. nil: the relay is well, and the connection can be used as before. It is no use in the sense of Uses, and changes nothing of what the
// relay holds.
//
// Behind an End the connection can't be used again, but for one: ctx had ended before anything was done. End.Stale tells two cases apart:
//
//   - true: the relay had given up this connection (421, the end of the stream, a reset), or it was out of step. Idle connections end so, also those to a relay that is well.
//   - false: the relay answered with another refusal, or not in time, or ctx ended. Silence may be a firewall's that forgot the connection; a new one
//     tells (Check).
func (c *Conn) Noop(ctx context.Context, timeout time.Duration) *End {
	if err := ctx.Err(); err != nil {
		end := &End{Stage: reply.StageNoop, Failure: reply.FailCanceled, Err: contextError(ctx)}
		if errors.Is(err, context.DeadlineExceeded) {
			end.Failure = reply.FailDeadline
		}
		return end
	}
	c.stage = reply.StageNoop
	if c.broken || c.rider != nil {
		end := c.give(reply.FailOutOfStep, errors.New("the connection is not idle"))
		end.Stale = true
		return end
	}
	c.spend(time.Time{}, timeLeft(ctx))
	stop := c.watch(ctx)
	buf := borrowReadBuffer()
	c.rd.Reset(c, buf[:])
	end := c.noop(timeout)
	if end == nil && c.rd.Buffered() > 0 {
		end = c.give(reply.FailOutOfStep, errUnasked)
		end.Stale = true
	}
	c.rd.Reset(nil, nil)
	returnReadBuffer(buf)
	if stop() {
		c.ctx = nil
	} else if end == nil {
		c.interrupt(contextError(ctx))
		end = c.fail(contextError(ctx))
	}
	if end == nil {
		c.setDeadline(time.Time{})
	}
	return end
}

func (c *Conn) noop(timeout time.Duration) *End {
	c.begin(reply.StageNoop, timeout)
	if c.npre > 0 || !c.probe(noopPatience) {
		// What lies there can't be the answer to a command that was not sent: a 421, the end, or something odd.
		c.begin(reply.StageNoop, min(timeout, salvageTime))
		r, err := c.read()
		var end *End
		switch {
		case err != nil:
			end = c.fail(err)
		case r.Code == 421:
			end = c.refused(r)
		default:
			end = c.give(reply.FailOutOfStep, errUnasked)
		}
		end.Stale = end.Failure != reply.FailCanceled && end.Failure != reply.FailDeadline
		return end
	}
	r, end := c.command(reply.StageNoop, timeout, "NOOP")
	switch {
	case end != nil:
		end.Stale = end.Failure == reply.FailEOF || end.Failure == reply.FailReset || end.Failure == reply.FailTLS
		return end
	case r.Positive():
		return nil
	case r.Intermediate():
		return c.give(reply.FailOutOfStep, fmt.Errorf("NOOP answered with %v", r))
	}
	end = c.refused(r)
	end.Stale = r.Code == 421
	return end
}
