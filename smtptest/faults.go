package smtptest

import (
	"net"
	"slices"
	"strconv"
	"time"
)

// defaultPause is what lies between two segments where Pause says nothing: enough for
// a client on the same machine to read the first one by itself.
const defaultPause = 10 * time.Millisecond

// Segments sends the reply, the normal one or that of Reply or Raw, with what Then
// adds, cut into segments behind these numbers of bytes: each is a write of its own
// (under TLS a record of its own), with a pause between them that lets the client
// read it. For replies that are cut within a code, between CR and LF, between two
// lines.
//
//	s.On(smtptest.Mail).Segments(2, 4) // "25", "0 ", "2.1.0 Ok\r\n"
func (r *Rule) Segments(at ...int) *Rule {
	at = slices.Sorted(slices.Values(at))
	return r.set(func(s *ruleSpec) {
		s.effect.segments = at
		s.effect.act = max(s.effect.act, actNormal)
	})
}

// Pause sets how long lies between two Segments. The default is 10 ms.
func (r *Rule) Pause(d time.Duration) *Rule { return r.set(func(s *ruleSpec) { s.effect.pause = d }) }

// Then sends these bytes behind the reply, in the same write, and so in the same
// segment and TLS record: a reply to a command that has not come yet, or none at all.
// The server itself knows nothing of them: to say 421 like that and mean it, add
// ThenClose.
//
//	s.On(smtptest.EndOfData).Then("421 4.3.2 Going down\r\n").ThenClose()
func (r *Rule) Then(raw string) *Rule {
	return r.set(func(s *ruleSpec) {
		s.effect.tail = raw
		s.effect.act = max(s.effect.act, actNormal)
	})
}

// HangUp closes the connection in good order without a reply: under TLS with a
// close_notify, where DropFIN has none. At EndOfData the message is stored all the
// same.
func (r *Rule) HangUp() *Rule { return r.set(func(s *ruleSpec) { s.effect.act = actHangUp }) }

// CutReceived resets the connection as soon as exactly n more bytes were received
// from the client, counted from behind the command at which the rule takes effect.
// What they ask for is carried out (a message that is complete with the last of them
// is stored), and then the connection ends; nothing that was not sent before gets
// out any more. A rule at Mail counts from RCPT on, at Data from the first byte of
// the body. The bytes are those of SMTP, under TLS those inside of it, but at
// TLSHandshake, where they are the handshake's own: a handshake that is shorter is
// left alone.
//
// Network.CutAfter counts on the wire. AndFIN ends the stream in the place of the
// reset.
func (r *Rule) CutReceived(n int64) *Rule {
	return r.set(func(s *ruleSpec) {
		s.effect.cut.in, s.effect.cut.hasIn = n, true
		s.effect.act = max(s.effect.act, actNormal)
	})
}

// CutSent resets the connection as soon as exactly n more bytes were sent to the
// client, counted from the first byte of the reply on; what they belong to and what is
// counted is as with CutReceived. At TLSHandshake it cuts within the server's side of
// the handshake.
//
//	s.On(smtptest.EndOfData).CutSent(3)     // stored, and the client reads "250"
//	s.On(smtptest.TLSHandshake).CutSent(40) // in the middle of ServerHello
func (r *Rule) CutSent(n int64) *Rule {
	return r.set(func(s *ruleSpec) {
		s.effect.cut.out, s.effect.cut.hasOut = n, true
		s.effect.act = max(s.effect.act, actNormal)
	})
}

// AndFIN lets CutReceived and CutSent end with the end of the stream in the place of
// the reset (and no TLS close_notify).
func (r *Rule) AndFIN() *Rule { return r.set(func(s *ruleSpec) { s.effect.cut.how = errFIN }) }

// ServerHello waits, at TLSHandshake, for the client's first bytes, answers with these
// in the place of a ServerHello, and closes the connection: garbage, or a relay that
// talks SMTP where TLS is expected. (Raw does not wait.)
func (r *Rule) ServerHello(raw string) *Rule {
	return r.set(func(s *ruleSpec) { s.effect.act, s.effect.text = actServerHello, raw })
}

// Alert ends the TLS handshake, at TLSHandshake, with a fatal alert (RFC 8446 §6.2) in
// the place of a ServerHello: 40 is handshake_failure, 70 protocol_version, 80
// internal_error.
func (r *Rule) Alert(code uint8) *Rule {
	return r.ServerHello("\x15\x03\x03\x00\x02\x02" + string([]byte{code}))
}

// CorruptRecord damages the TLS record in which the reply goes out, so that its
// authentication fails at the client (bad_record_mac). Without TLS it does nothing.
func (r *Rule) CorruptRecord() *Rule {
	return r.set(func(s *ruleSpec) {
		s.effect.corrupt = true
		s.effect.act = max(s.effect.act, actNormal)
	})
}

// cut is an order to end a connection at an exact byte. A nil one orders nothing.
type cut struct {
	in, out       int64 // bytes that may still come and go, where there is a bound
	hasIn, hasOut bool
	how           error // errReset or errFIN
	done          bool
}

// over reports whether the last byte has come or gone.
func (k *cut) over() bool { return k != nil && k.done }

// received returns how many of n bytes that have come still count.
func (k *cut) received(n int) int {
	if k == nil || !k.hasIn || k.done {
		return n
	}
	n = int(min(int64(n), k.in))
	k.in -= int64(n)
	k.done = k.in == 0
	return n
}

// sent returns how many of n bytes may still go.
func (k *cut) sent(n int) int {
	if k == nil || !k.hasOut || k.done {
		return n
	}
	n = int(min(int64(n), k.out))
	k.out -= int64(n)
	k.done = k.out == 0
	return n
}

// order notes what e says of the reply under way and of the connection's end. All
// that was said before has been sent.
func (c *conn) order(e *effect) {
	c.drip, c.then, c.segments, c.pause, c.tail = e.drip, e.then, e.segments, e.pause, e.tail
	c.corrupt = e.corrupt && c.nc != c.raw
	if !e.cut.hasIn && !e.cut.hasOut {
		return
	}
	k := e.cut
	if k.how == nil {
		k.how = errReset
	}
	c.transcript.note("the connection is to be cut by script")
	unread := c.buffered() - c.ahead
	if k.done = k.hasIn && k.in <= 0 || k.hasOut && k.out <= 0; k.done {
		unread = 0
	}
	c.w = c.r + c.ahead + k.received(unread)
	c.cut = &k
}

// writeSegments sends b in pieces, behind each of the bytes at.
func (c *conn) writeSegments(b []byte, at []int) error {
	pause := c.pause
	if pause <= 0 {
		pause = defaultPause
	}
	start := 0
	for _, end := range at {
		if end <= start || end >= len(b) {
			continue
		}
		if err := c.write(b[start:end], forScript); err != nil {
			return err
		}
		if err := c.sleep(pause); err != nil {
			return err
		}
		start = end
	}
	return c.write(b[start:], forScript)
}

// serverHello answers the client's first bytes with raw, and ends the connection.
func (c *conn) serverHello(raw string) error {
	if err := c.fill(forHandshake, 0); err != nil {
		return err
	}
	c.r = c.w
	c.outbuf = append(c.outbuf, raw...)
	c.transcript.note("raw bytes by script in the place of ServerHello: " + strconv.Quote(raw))
	return errFIN
}

// gatedConn is the transport under TLS: crypto/tls writes without asking, in the
// handshake say, and a paused server must not. It also carries out the faults of the
// transport.
type gatedConn struct {
	net.Conn
	c   *conn
	cut *cut // the handshake's
}

func (g *gatedConn) Read(b []byte) (int, error) {
	if g.cut.over() {
		return 0, net.ErrClosed
	}
	n, err := g.Conn.Read(b)
	if k := g.cut.received(n); k < n {
		return k, nil
	}
	return n, err
}

func (g *gatedConn) Write(b []byte) (int, error) {
	if !g.c.s.beginWrite(g.c) {
		return 0, net.ErrClosed
	}
	defer g.c.s.endWrite()
	if g.c.corrupt {
		g.c.corrupt = false
		b = slices.Clone(b)
		b[len(b)-1] ^= 1
	}
	if g.cut.over() {
		return 0, net.ErrClosed
	}
	n := g.cut.sent(len(b))
	if n, err := g.Conn.Write(b[:n]); err != nil {
		return n, err
	}
	if n < len(b) {
		return n, net.ErrClosed
	}
	return n, nil
}
