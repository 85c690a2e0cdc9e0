package smtptest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/internal/memnet"
)

// closeTimeout is how long Close waits for connections that are at work, and
// killTimeout how long it then waits for their goroutines.
const (
	closeTimeout = 5 * time.Second
	killTimeout  = time.Second
)

// Server is a fake SMTP relay, running from NewServer or Network.NewServer on.
// All methods are safe for concurrent use.
type Server struct {
	// Addr is the address to dial, "127.0.0.1:2525" say.
	Addr string
	// Username and Password are the first credentials given with WithAuth, "" if none
	// were.
	Username, Password string

	cfg    *config
	listen func(addr string) (net.Listener, error)
	tls    *tls.Config // nil without TLS
	leaf   *x509.Certificate
	salt   []byte // of SCRAM

	plain, secure atomic.Pointer[extensions] // what is offered without and with TLS

	rules    atomic.Pointer[[]*Rule] // written with mu held
	scripted atomic.Uint32           // bit n: there are rules for Stage n
	count    counters

	// mu protects the following fields. It is never held while waiting or calling out.
	// Lock order: mu, then transcript.mu; Rule.mu and conn.mu stand alone.
	mu          sync.Mutex
	run         *run // the last one; nil before the first
	closed      bool
	conns       map[*conn]struct{} // whose goroutine has not ended
	lastConn    int
	lastQueueID int
	active      int // conns that are being served
	maxActive   int
	stored      int // messages since Reset, kept or not
	recipients  int
	bytes       int64
	messages    []*Message
	waiters     []waiter
	transcripts []*transcript
	passwords   map[string]string
	salted      map[saltedKey][]byte
	resume      chan struct{} // closed by Resume; nil when not paused
	writing     int           // flushes at work
	quiet       chan struct{} // closed when writing reaches 0; nil when nobody waits for that
}

// run is the time between a start and a Kill.
type run struct {
	listener net.Listener
	ended    chan struct{} // closed when the accept loop has ended
	dead     bool          // protected by Server.mu
}

type waiter struct {
	n    int
	done chan struct{} // closed when n messages are stored, or none can come any more
}

// counters are the statistics that need no lock.
type counters struct {
	connections, refused, tlsHandshakes, tlsFailures, auths, authFailures atomic.Int64
	transactions, reused, early                                           atomic.Int64
	verbs                                                                 [len(verbNames)]atomic.Int64
}

// NewServer starts a relay on 127.0.0.1, on a port of the system's choice. Its
// address is in Addr. It panics if it can't listen, or if the options contradict
// themselves. Close it when done.
func NewServer(opts ...Option) *Server {
	return newServer(opts, "127.0.0.1:0", func(a string) (net.Listener, error) { return net.Listen("tcp", a) })
}

func newServer(opts []Option, addr string, listen func(string) (net.Listener, error)) *Server {
	s := &Server{
		cfg:       newConfig(opts),
		listen:    listen,
		salt:      newSalt(),
		conns:     make(map[*conn]struct{}),
		passwords: make(map[string]string),
		salted:    make(map[saltedKey][]byte),
	}
	s.plain.Store(s.cfg.offer(s.cfg.extensions))
	s.secure.Store(s.plain.Load())
	if s.cfg.extensionsTLS != nil {
		s.secure.Store(s.cfg.offer(s.cfg.extensionsTLS))
	}
	for i, u := range s.cfg.users {
		if i == 0 {
			s.Username, s.Password = u.name, u.pass
		}
		s.passwords[u.name] = u.pass
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	if s.cfg.hostname == "" {
		s.cfg.hostname = host
		if host == "127.0.0.1" {
			s.cfg.hostname = "localhost"
		}
	}
	if s.cfg.banner == "" {
		s.cfg.banner = s.cfg.hostname + " ESMTP smtptest"
	}
	if err := s.setupTLS(host); err != nil {
		panic(err.Error())
	}
	if err := s.start(addr); err != nil {
		panic("smtptest: " + err.Error())
	}
	return s
}

func (s *Server) start(addr string) error {
	l, err := s.listen(addr)
	if err != nil {
		return err
	}
	r := &run{listener: l, ended: make(chan struct{})}
	s.mu.Lock()
	if s.closed || s.run != nil && !s.run.dead {
		s.mu.Unlock()
		l.Close()
		return errors.New("already running, or closed")
	}
	s.run = r
	if s.Addr == "" {
		s.Addr = l.Addr().String()
	}
	s.mu.Unlock()
	go s.accept(r)
	return nil
}

func (s *Server) accept(r *run) {
	defer close(r.ended)
	for {
		nc, err := r.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		} else if err != nil { // too many open files, say
			s.cfg.logf("smtptest: %s: %v", s.Addr, err)
			<-time.After(10 * time.Millisecond)
			continue
		}
		s.mu.Lock()
		if r.dead || s.closed {
			s.mu.Unlock()
			resetConn(nc)
			continue
		}
		s.lastConn++
		c := newConn(s, nc, s.lastConn)
		s.conns[c] = struct{}{}
		s.count.connections.Add(1)
		if s.cfg.maxConns > 0 && s.active >= s.cfg.maxConns {
			c.refused = true
			s.count.refused.Add(1)
		} else {
			s.active++
			s.maxActive = max(s.maxActive, s.active)
		}
		if c.transcript != nil {
			if len(s.transcripts) == maxTranscripts {
				s.transcripts = s.transcripts[1:]
			}
			s.transcripts = append(s.transcripts, c.transcript)
		}
		s.mu.Unlock()
		go c.serve()
	}
}

// URL returns the address as a URL, "smtp://user:password@127.0.0.1:2525" say, with
// the scheme smtps where WithImplicitTLS is on, and the parameter tls=none where the
// server has no TLS.
func (s *Server) URL() string {
	u := url.URL{Scheme: "smtp", Host: s.Addr}
	if s.cfg.tls == tlsImplicit {
		u.Scheme = "smtps"
	}
	if s.Username != "" {
		u.User = url.UserPassword(s.Username, s.Password)
	}
	if s.cfg.tls == tlsOff {
		u.RawQuery = "tls=none"
	}
	return u.String()
}

// SetPassword changes the password (or XOAUTH2 token) of a user, or adds the user,
// for AUTH commands from now on. The fields Username and Password stay as they
// were.
func (s *Server) SetPassword(username, pass string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.passwords[username] = pass
}

// Messages returns the messages that are stored, oldest first.
func (s *Server) Messages() []*Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.messages)
}

// WaitFor waits until n messages are stored and returns all that are, oldest
// first. When ctx ends before, or the server is closed, it returns what came and
// an error that says how many that were; it wraps the context's error.
func (s *Server) WaitFor(ctx context.Context, n int) ([]*Message, error) {
	s.mu.Lock()
	w := waiter{n: n, done: make(chan struct{})}
	wait := s.stored < n && !s.closed
	if wait {
		s.waiters = append(s.waiters, w)
	}
	s.mu.Unlock()
	if wait {
		select {
		case <-w.done:
		case <-ctx.Done():
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiters = slices.DeleteFunc(s.waiters, func(x waiter) bool { return x.done == w.done })
	msgs := slices.Clone(s.messages)
	switch {
	case s.stored >= n:
		return msgs, nil
	case ctx.Err() != nil:
		return msgs, fmt.Errorf("smtptest: waiting for %d messages, %d came: %w", n, s.stored, ctx.Err())
	}
	return msgs, fmt.Errorf("smtptest: waiting for %d messages, %d came before the server was closed", n, s.stored)
}

// Reset forgets the messages, the counters (not the connections that are active)
// and the transcripts of connections that have ended. The script, the queue IDs and
// the numbers of the connections go on.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.messages, s.stored, s.recipients, s.bytes = nil, 0, 0, 0
	s.maxActive = s.active
	s.transcripts = slices.DeleteFunc(s.transcripts, func(t *transcript) bool { return t.ended() })
	s.count.reset()
}

func (k *counters) all() []*atomic.Int64 {
	return []*atomic.Int64{&k.connections, &k.refused, &k.tlsHandshakes, &k.tlsFailures, &k.auths, &k.authFailures, &k.transactions, &k.reused, &k.early}
}

func (k *counters) reset() {
	for _, c := range k.all() {
		c.Store(0)
	}
	for i := range k.verbs {
		k.verbs[i].Store(0)
	}
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	k := &s.count
	st := Stats{
		Connections:   int(k.connections.Load()),
		Refused:       int(k.refused.Load()),
		TLSHandshakes: int(k.tlsHandshakes.Load()),
		TLSFailures:   int(k.tlsFailures.Load()),
		Auths:         int(k.auths.Load()),
		AuthFailures:  int(k.authFailures.Load()),
		Transactions:  int(k.transactions.Load()),
		Reused:        int(k.reused.Load()),
		EarlyBytes:    int(k.early.Load()),
		Commands:      make(map[string]int),
	}
	for i, name := range verbNames {
		if n := k.verbs[i].Load(); n > 0 {
			st.Commands[name] = int(n)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Active, st.MaxActive = s.active, s.maxActive
	st.Messages, st.Recipients, st.Bytes = s.stored, s.recipients, s.bytes
	return st
}

// Transcripts returns what was said on each connection, in their order: of the
// last 1000 connections, and of each at most 64 KiB. It is empty under WithDiscard.
func (s *Server) Transcripts() []*Transcript {
	s.mu.Lock()
	ts := slices.Clone(s.transcripts)
	s.mu.Unlock()
	out := make([]*Transcript, len(ts))
	for i, t := range ts {
		out[i] = t.export()
	}
	return out
}

// Transcript returns all transcripts as one text, for t.Log.
func (s *Server) Transcript() string {
	var b strings.Builder
	for _, t := range s.Transcripts() {
		b.WriteString(t.String())
	}
	return b.String()
}

// store takes m over and gives it its queue ID; false when the connection was
// killed. It waits while the server is paused.
func (s *Server) store(c *conn, m *Message, size int64) bool {
	for {
		s.mu.Lock()
		if s.resume == nil || c.dead {
			break
		}
		s.mu.Unlock()
		if !c.gate() {
			return false
		}
	}
	defer s.mu.Unlock()
	if c.dead {
		return false
	}
	m.QueueID = s.nextQueueIDLocked()
	m.Time = time.Now()
	if !s.cfg.discard {
		s.messages = append(s.messages, m)
	}
	s.stored++
	s.recipients += len(m.To)
	s.bytes += size
	s.wakeLocked()
	return true
}

func (s *Server) nextQueueIDLocked() string {
	s.lastQueueID++
	return fmt.Sprintf("%010X", s.lastQueueID)
}

func (s *Server) nextQueueID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nextQueueIDLocked()
}

func (s *Server) wakeLocked() {
	s.waiters = slices.DeleteFunc(s.waiters, func(w waiter) bool {
		if s.stored < w.n && !s.closed {
			return false
		}
		close(w.done)
		return true
	})
}

// Kill is the end of the process: the listener is closed and every connection
// reset. Nothing is stored any more when it returns; what is stored stays. The
// server can be started anew with Restart. Killing a killed server does nothing.
func (s *Server) Kill() {
	s.mu.Lock()
	r := s.run
	r.dead = true
	victims := s.killConnsLocked()
	s.resumeLocked()
	s.mu.Unlock()
	r.listener.Close() // an error means that it is closed already
	for _, c := range victims {
		c.abort()
	}
	<-r.ended // else the address may still be taken
}

// killConnsLocked bars all connections from storing. The caller aborts them.
func (s *Server) killConnsLocked() []*conn {
	for c := range s.conns {
		c.dead = true
	}
	return slices.Collect(maps.Keys(s.conns))
}

// Restart starts a killed server anew, on the same address. A server that runs is
// killed first. The error is the listener's, or says that the server is closed.
func (s *Server) Restart() error {
	s.Kill()
	if err := s.start(s.Addr); err != nil {
		return fmt.Errorf("smtptest: restart: %w", err)
	}
	return nil
}

// Pause stops the server like a process that got SIGSTOP: connections are accepted
// and bytes taken in as far as buffers go, but when it has returned nothing is
// stored and no reply is begun until Resume. Replies that are being written may
// take up to a second to get out, if the client doesn't read them.
func (s *Server) Pause() {
	s.mu.Lock()
	if s.resume == nil && !s.closed {
		s.resume = make(chan struct{})
	}
	var quiet chan struct{}
	if s.writing > 0 {
		if s.quiet == nil {
			s.quiet = make(chan struct{})
		}
		quiet = s.quiet
	}
	s.mu.Unlock()
	if quiet == nil {
		return
	}
	t := time.NewTimer(time.Second)
	defer t.Stop()
	select {
	case <-quiet:
	case <-t.C:
	}
}

// Resume ends a Pause. What has come in meanwhile is answered.
func (s *Server) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resumeLocked()
}

func (s *Server) resumeLocked() {
	if s.resume != nil {
		close(s.resume)
		s.resume = nil
	}
}

// Close ends the server: the listener is closed, connections that wait for a
// command get "421 4.3.2 Service shutting down" and are closed, stalls, delays and
// the like of a script are ended, and a message on its way in may finish. What has
// not ended after 5 s is reported through WithLogf, with the connection and the
// stage that hangs, and reset. If a connection's goroutine does not even end then
// (an If function that blocks), Close panics. Closing a closed server does nothing.
func (s *Server) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	r := s.run
	paused := s.resume != nil
	if paused {
		s.killConnsLocked()
	}
	s.resumeLocked()
	s.wakeLocked()
	s.mu.Unlock()

	r.listener.Close()
	<-r.ended
	// No connection is added from here on.
	left := s.liveConns()
	for _, c := range left {
		if paused {
			c.abort()
		} else {
			c.shutdown()
		}
	}
	if left = waitEnd(left, closeTimeout); len(left) == 0 {
		return
	}
	s.cfg.logf("smtptest: Close of %s: blocked for %v, resetting\n%s", s.Addr, closeTimeout, describe(left))
	s.mu.Lock()
	s.killConnsLocked()
	s.mu.Unlock()
	for _, c := range left {
		c.abort()
	}
	if left = waitEnd(left, killTimeout); len(left) > 0 {
		panic(fmt.Sprintf("smtptest: Close of %s: goroutines that don't end\n%s", s.Addr, describe(left)))
	}
}

func (s *Server) liveConns() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	cs := slices.Collect(maps.Keys(s.conns))
	slices.SortFunc(cs, func(a, b *conn) int { return a.id - b.id })
	return cs
}

// waitEnd waits for the connections' goroutines, at most d, and returns those left.
func waitEnd(cs []*conn, d time.Duration) []*conn {
	t := time.NewTimer(d)
	defer t.Stop()
	for i, c := range cs {
		select {
		case <-c.ended:
		case <-t.C:
			return slices.DeleteFunc(slices.Clone(cs[i:]), func(c *conn) bool {
				select {
				case <-c.ended:
					return true
				default:
					return false
				}
			})
		}
	}
	return nil
}

func describe(cs []*conn) string {
	var b strings.Builder
	for _, c := range cs {
		fmt.Fprintf(&b, "\t%s\n", c.describe())
	}
	return b.String()
}

// release forgets a connection whose goroutine ends.
func (s *Server) release(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// inactive counts a connection out that is no longer served, and reports whether it
// was killed.
func (s *Server) inactive(c *conn) (dead bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !c.refused {
		s.active--
	}
	return c.dead
}

// beginWrite waits while the server is paused and then counts a write as being at
// work; false when the connection ends.
func (s *Server) beginWrite(c *conn) bool {
	for {
		s.mu.Lock()
		if c.dead {
			s.mu.Unlock()
			return false
		}
		if s.resume == nil {
			s.writing++
			s.mu.Unlock()
			return true
		}
		s.mu.Unlock()
		if !c.gate() {
			return false
		}
	}
}

func (s *Server) endWrite() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing--
	if s.writing == 0 && s.quiet != nil {
		close(s.quiet)
		s.quiet = nil
	}
}

// resetConn closes nc so that the peer gets a reset.
func resetConn(nc net.Conn) {
	switch nc := nc.(type) {
	case *memnet.Conn:
		nc.ResetAfterDrain() // as on Linux
		return
	case *net.TCPConn:
		_ = nc.SetLinger(0) // an error means that it is closed already
	}
	nc.Close()
}
