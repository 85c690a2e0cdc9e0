package smtptest

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/smtplb/smtplb/internal/memnet"
)

const (
	inputSize     = 64 << 10
	maxLine       = 4096     // of a command, RFC 5321 §4.5.3.1.4 asks for 512 and more with parameters
	maxAuthLine   = 12 << 10 // RFC 4954 §4
	flushSize     = 32 << 10 // replies are sent at this size though input is left
	lingerTimeout = 500 * time.Millisecond
)

// How a connection ends, as errors that unwind its goroutine.
var (
	errBye   = errors.New("closed in good order")
	errFIN   = errors.New("closed")
	errReset = errors.New("reset")
	errGone  = errors.New("gone") // the client has left, or the server is closed
)

var inputPool = sync.Pool{New: func() any { return new([inputSize]byte) }}

// conn is one connection. Fields without a note are its goroutine's own.
type conn struct {
	s          *Server
	id         int
	raw        net.Conn // the transport
	nc         net.Conn // raw, or TLS over it
	transcript *transcript
	refused    bool // by WithMaxConns

	in     *[inputSize]byte
	r, w   int         // in[r:w] is unread
	outbuf []byte      // replies that were not sent
	timer  *time.Timer // sleep's; nil: it was not called

	done    chan struct{} // closed by abort: the connection is dead
	closing chan struct{} // closed by shutdown: finish
	ended   chan struct{} // closed when the goroutine has ended
	once    sync.Once     // guards done

	dead bool // killed: must not store, nor say anything; protected by Server.mu

	mu       sync.Mutex // protects the following fields; never held while waiting
	waiting  waiting
	shut     bool // shutdown was called
	deadline bool // a read deadline is set
	stage    Stage
	line     []byte // the last command, shortened

	ext *extensions // what was offered in the last EHLO, or would be

	// What a script has ordered for the reply under way.
	drip     time.Duration
	segments []int
	pause    time.Duration
	tail     string
	corrupt  bool
	then     ending

	cut   *cut // what a script has ordered for the connection's end
	ahead int  // within the body: bytes that the script has seen and that are still unread

	session
}

// waiting is what a connection's goroutine waits for.
type waiting uint8

const (
	notWaiting    waiting = iota
	forCommand            // shutdown may interrupt
	forBody               // shutdown lets it finish
	forScript             // a scripted write, shutdown may interrupt
	forHandshake          // shutdown may interrupt
	forClientRead         // a reply is being written
)

var waitingNames = [...]string{"at work", "waiting for a command", "waiting for the body", "carrying out a script", "in the TLS handshake", "writing to a client that does not read"}

func newConn(s *Server, nc net.Conn, id int) *conn {
	c := &conn{
		s: s, id: id, raw: nc, nc: nc,
		in:      inputPool.Get().(*[inputSize]byte),
		done:    make(chan struct{}),
		closing: make(chan struct{}),
		ended:   make(chan struct{}),
		stage:   Connect,
		ext:     s.offered(false),
	}
	if !s.cfg.discard {
		c.transcript = &transcript{conn: id, remote: nc.RemoteAddr().String(), start: time.Now()}
	}
	return c
}

// serve is the connection's goroutine.
func (c *conn) serve() {
	defer close(c.ended)
	defer c.s.release(c)
	err := c.talk()
	if err == errBye || err == errFIN {
		if c.flush() != nil {
			err = errGone
		}
	}
	if c.cut.over() {
		err = c.cut.how
	}
	if c.s.inactive(c) {
		err = errReset
	}
	c.transcript.end(err)
	switch err {
	case errReset:
		resetConn(c.raw)
	case errBye:
		if t, ok := c.nc.(*tls.Conn); ok {
			_ = t.CloseWrite() // close_notify; fails when the client has left
		}
		c.linger()
	case errFIN:
		c.linger()
	default:
		c.raw.Close()
	}
	inputPool.Put(c.in)
}

// linger closes the transport. A kernel turns the close of a socket with unread
// bytes into a reset, which may overtake the last reply; hence the bytes are read
// until the client leaves, for a short time.
func (c *conn) linger() {
	defer c.raw.Close()
	if _, ok := c.raw.(*memnet.Conn); ok {
		return // it makes no difference there
	}
	if cw, ok := c.raw.(interface{ CloseWrite() error }); !ok || cw.CloseWrite() != nil {
		return
	}
	c.mu.Lock()
	if c.shut {
		c.mu.Unlock()
		return
	}
	c.waiting = forCommand
	_ = c.raw.SetReadDeadline(time.Now().Add(lingerTimeout))
	c.mu.Unlock()
	for {
		if _, err := c.raw.Read(c.in[:]); err != nil {
			return
		}
	}
}

// abort resets the connection. It may be called from anywhere, more than once.
func (c *conn) abort() {
	c.once.Do(func() { close(c.done) })
	resetConn(c.raw)
}

// shutdown asks the connection to finish. It is called once, by Close.
func (c *conn) shutdown() {
	close(c.closing)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shut = true
	switch c.waiting {
	case forCommand, forHandshake:
		_ = c.raw.SetReadDeadline(time.Unix(1, 0))
		c.deadline = true
	case forScript:
		_ = c.raw.SetDeadline(time.Unix(1, 0))
	}
}

// wait notes what the goroutine is about to wait for; false when the server shuts
// down and such a wait is not to begin.
func (c *conn) wait(w waiting, idle time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shut && (w == forCommand || w == forScript || w == forHandshake) {
		return false
	}
	c.waiting = w
	if idle > 0 {
		_ = c.raw.SetReadDeadline(time.Now().Add(idle))
		c.deadline = true
	} else if c.deadline && w != forScript && w != forClientRead {
		_ = c.raw.SetReadDeadline(time.Time{})
		c.deadline = false
	}
	return true
}

func (c *conn) endWait() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = notWaiting
}

func (c *conn) isShut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shut
}

// enter notes the stage for describe.
func (c *conn) enter(stage Stage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stage = stage
}

func (c *conn) describe() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := fmt.Sprintf("connection %d from %v: stage %v, %s", c.id, c.raw.RemoteAddr(), c.stage, waitingNames[c.waiting])
	if len(c.line) > 0 {
		s += fmt.Sprintf(", last command %q", c.line)
	}
	return s
}

// gate waits while the server is paused; false when the connection ends.
func (c *conn) gate() bool {
	for {
		c.s.mu.Lock()
		resume, dead := c.s.resume, c.dead
		c.s.mu.Unlock()
		if resume == nil || dead {
			return !dead
		}
		select {
		case <-resume: // perhaps because the server was killed
		case <-c.done:
			return false
		case <-c.closing:
			return false
		}
	}
}

// sleep waits for d, after what was said before is sent; false when the
// connection is dead. A shutdown cuts it short.
func (c *conn) sleep(d time.Duration) error {
	if err := c.flush(); err != nil || d <= 0 {
		return err
	}
	if c.timer == nil {
		c.timer = time.NewTimer(d)
	} else {
		c.timer.Reset(d)
	}
	defer c.timer.Stop()
	select {
	case <-c.timer.C:
	case <-c.closing:
	case <-c.done:
		return errGone
	}
	return nil
}

// stall keeps the connection as it is until the server is closed or killed.
func (c *conn) stall() {
	select {
	case <-c.closing:
	case <-c.done:
	}
}

// errIdle is the end of an idle limit.
var errIdle = errors.New("idle")

// fill reads more input, after the replies are sent. It returns errIdle when idle
// is not 0 and has passed, errBye when the server shuts down and w is forCommand.
func (c *conn) fill(w waiting, idle time.Duration) error {
	if err := c.flush(); err != nil {
		return err
	}
	if c.cut.over() {
		return errGone
	}
	if c.r > 0 {
		c.w = copy(c.in[:], c.in[c.r:c.w])
		c.r = 0
	}
	if !c.wait(w, idle) {
		return c.shutDown()
	}
	n, err := c.nc.Read(c.in[c.w:])
	c.endWait()
	n = c.cut.received(n)
	c.w += n
	if n > 0 {
		if c.gate() {
			return nil
		}
		return errGone
	}
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		if !c.gate() {
			return errGone
		}
		if c.isShut() {
			return c.shutDown()
		}
		return errIdle
	}
	return errGone
}

// shutDown says goodbye for Close.
func (c *conn) shutDown() error {
	c.reply(421, "4.3.2", "Service shutting down")
	return errBye
}

// flush sends the replies that have gathered, in pieces where a script says so.
func (c *conn) flush() error {
	if len(c.outbuf) == 0 {
		return nil
	}
	b := c.outbuf
	c.outbuf = c.outbuf[:0]
	if c.drip > 0 {
		d := c.drip
		c.drip = 0
		for i := range b {
			if err := c.sleep(d); err != nil {
				return err
			}
			if err := c.write(b[i:i+1], forScript); err != nil {
				return err
			}
		}
		return nil
	}
	if at := c.segments; at != nil {
		c.segments = nil
		return c.writeSegments(b, at)
	}
	return c.write(b, forClientRead)
}

func (c *conn) write(b []byte, w waiting) error {
	if c.cut.over() {
		return errGone
	}
	b = b[:c.cut.sent(len(b))]
	if c.nc == c.raw { // else gatedConn does it
		if !c.s.beginWrite(c) {
			return errGone
		}
		defer c.s.endWrite()
	}
	if !c.wait(w, 0) {
		return errGone
	}
	defer c.endWait()
	if _, err := c.nc.Write(b); err != nil || c.cut.over() {
		return errGone
	}
	return nil
}

// reply gathers a reply of the server's own. The enhanced code is left out where
// it is not offered (RFC 2034 §3).
func (c *conn) reply(code int, enhanced, text string) {
	if enhanced != "" && c.ext.enhanced {
		text = enhanced + " " + text
	}
	c.replyText(code, text)
}

// replyText gathers a reply with the lines of text as they are.
func (c *conn) replyText(code int, text string) {
	for more := true; more; {
		var line string
		line, text, more = strings.Cut(text, "\n")
		start := len(c.outbuf)
		c.outbuf = strconv.AppendInt(c.outbuf, int64(code), 10)
		if more {
			c.outbuf = append(c.outbuf, '-')
		} else {
			c.outbuf = append(c.outbuf, ' ')
		}
		c.outbuf = append(c.outbuf, strings.TrimSuffix(line, "\r")...)
		c.transcript.server(code, c.outbuf[start:])
		c.outbuf = append(c.outbuf, '\r', '\n')
	}
	if code == 421 && c.then == goOn {
		c.then = bye
	}
}

// event describes the moment for a script, nil when there is no rule for the stage.
func (c *conn) event(stage Stage) *Event {
	c.enter(stage)
	if c.s.scripted.Load()&(1<<stage) == 0 {
		return nil
	}
	ev := &Event{
		Stage: stage, Conn: c.id, HELO: c.helo, TLS: c.nc != c.raw, Auth: c.user,
		Transaction: c.transactions, From: c.from, To: c.to, Bytes: c.bodyBytes,
		hasSender: c.inMail || stage == Mail,
	}
	if stage == Mail && !c.inMail {
		ev.Transaction++
	}
	return ev
}

// at carries out what the script says at a stage that needs no more description.
func (c *conn) at(stage Stage) (code int, answered bool, err error) {
	ev := c.event(stage)
	if ev == nil {
		return 0, false, nil
	}
	return c.carryOut(c.s.decide(ev))
}

// carryOut does what the script has decided: answered means that there is nothing
// left to say, code being what was said. An error ends the connection.
func (c *conn) carryOut(e *effect) (code int, answered bool, err error) {
	if e == nil {
		return 0, false, nil
	}
	if err := c.sleep(e.delay); err != nil {
		return 0, false, err
	}
	if !c.gate() {
		return 0, false, errGone
	}
	c.order(e)
	switch e.act {
	case actReply:
		c.replyText(e.code, e.text)
		return e.code, true, nil
	case actRaw:
		c.outbuf = append(c.outbuf, e.text...)
		c.transcript.note("raw bytes by script: " + strconv.Quote(e.text))
		return e.code, true, nil
	case actEndless:
		c.transcript.note("endless lines by script")
		lines := bytes.Repeat([]byte(e.text), 1+4096/len(e.text))
		for {
			if err := c.write(lines, forScript); err != nil {
				return 0, true, err
			}
		}
	case actDrop:
		return 0, true, errReset
	case actDropFIN:
		return 0, true, errFIN
	case actHangUp:
		return 0, true, errBye
	case actServerHello:
		return 0, true, c.serverHello(e.text)
	case actStall:
		c.transcript.note("stalled by script")
		c.stall()
		return 0, true, errReset
	case actKill:
		c.transcript.note("killed by script")
		c.s.Kill()
		return 0, true, errGone
	}
	return 0, false, nil
}

// settle does what a script or a 421 has ordered for behind the reply.
func (c *conn) settle() error {
	if c.tail != "" {
		c.outbuf = append(c.outbuf, c.tail...)
		c.transcript.note("raw bytes by script behind the reply: " + strconv.Quote(c.tail))
		c.tail = ""
	}
	if c.drip > 0 || c.segments != nil || c.corrupt {
		if err := c.flush(); err != nil {
			return err
		}
		c.drip, c.segments, c.corrupt = 0, nil, false
	}
	then := c.then
	c.then = goOn
	switch then {
	case goOn:
		if len(c.outbuf) >= flushSize {
			return c.flush()
		}
		return nil
	case reset:
		if err := c.flush(); err != nil {
			return err
		}
		return errReset
	}
	return errBye
}

// readLine returns the next line without its CRLF; it is valid until the next
// read. crlf is false when it ended in LF alone; long means that it was longer than
// limit and is lost.
func (c *conn) readLine(limit int, idle time.Duration) (line []byte, crlf, long bool, err error) {
	scanned := 0
	for {
		if i := bytes.IndexByte(c.in[c.r+scanned:c.w], '\n'); i >= 0 {
			line = c.in[c.r : c.r+scanned+i]
			c.r += scanned + i + 1
			long = long || len(line) > limit
			line, crlf = bytes.CutSuffix(line, []byte{'\r'})
			return line, crlf, long, nil
		}
		scanned = c.w - c.r
		if scanned > limit {
			long = true
			c.r, scanned = c.w, 0
		}
		if err := c.fill(forCommand, idle); err != nil {
			return nil, false, false, err
		}
	}
}

// buffered returns how many bytes of input are waiting.
func (c *conn) buffered() int { return c.w - c.r }

// startTLS does the handshake.
func (c *conn) startTLS() error {
	before := c.cut
	c.cut = nil // that of the handshake is one of its own
	if _, answered, err := c.at(TLSHandshake); err != nil {
		return err
	} else if answered {
		return errFIN
	}
	if err := c.flush(); err != nil {
		return err
	}
	if !c.wait(forHandshake, 0) {
		return errFIN
	}
	g := &gatedConn{Conn: c.raw, c: c, cut: c.cut}
	c.cut = before
	t := tls.Server(g, c.s.tls)
	err := t.Handshake()
	c.endWait()
	if g.cut.over() {
		c.cut = g.cut
	}
	g.cut = nil
	if err != nil {
		c.s.count.tlsFailures.Add(1)
		c.transcript.note("TLS handshake failed: " + err.Error())
		return errFIN
	}
	c.s.count.tlsHandshakes.Add(1)
	st := t.ConnectionState()
	c.transcript.note("TLS handshake: " + tls.VersionName(st.Version) + ", server name " + strconv.Quote(st.ServerName))
	c.nc = t
	if !c.gate() {
		return errGone
	}
	return nil
}
