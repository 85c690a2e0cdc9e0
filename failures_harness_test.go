package smtplb_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// poison is a message that would be a second one, to other recipients, for a relay that took it for commands.
const poison = "From: a@example.com\r\nSubject: poison\r\n\r\n.\r\nRSET\r\nMAIL FROM:<forged@example.com>\r\nRCPT TO:<forged@example.com>\r\nDATA\r\nSubject: forged\r\n\r\nforged\r\n.\r\nQUIT\r\n"

// longPoison needs several writes, and more room than a connection of the matrix has.
var longPoison = poison + strings.Repeat("A line that makes it long.\r\n", 8000) + poison

// matrixTimeouts are all different, so that a wrong one shows.
var matrixTimeouts = smtplb.Timeouts{
	Dial: time.Second, TLS: 2 * time.Second, Greeting: 3 * time.Second, Command: 4 * time.Second, Body: 5 * time.Second, Final: 6 * time.Second,
}

// matrixOutcomes is how many outcomes, one fault among them, open the breakers of the matrix: so it can be told from outside how many were counted.
const matrixOutcomes = 7

// matrixCert is relay A's certificate. It is made once, for all bubbles: their time begins in the year 2000.
var matrixCert = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
})

// scene is a faulty relay, A, a good one, B, and a pool that prefers A, in memory and in a bubble of fake time.
type scene struct {
	*testing.T
	net  *smtptest.Network
	a, b *smtptest.Server // b is nil where there is no other relay
	pool *smtplb.Pool
	set  setting

	leave time.Duration // after which the sender of a message to x@example.com leaves; 0: never

	refuseDial, noSuchHost atomic.Bool // what the next dial to A meets
	tamper                 atomic.Bool // the next bytes from A are changed on their way

	rules []*smtptest.Rule // of on

	mu     sync.Mutex // guards the following fields
	conns  []*wire    // to A
	states []string   // of A's breaker
	sent   []sending
}

// sending is a message that was handed to the pool, and what the pool said of it.
type sending struct {
	text    string
	receipt *smtplb.Receipt
}

// setting is what scenes differ in.
type setting struct {
	tls      string          // of A: one of matrixTLS
	stepwise bool            // A has no PIPELINING
	chunks   bool            // A has CHUNKING, and it is used
	lone     bool            // there is no B
	auth     bool            // A wants a login
	uses     int             // messages on one connection; 0: no limit
	conns    int             // to A at a time; 0: the default
	buffer   int             // bytes that a connection holds; 0: the default
	cert     smtptest.Option // A's certificate; nil: matrixCert
	stranger bool            // matrixCert is all that we trust, whatever A has
	a, b     []smtptest.Option
}

const (
	addrA = "127.0.0.1:25" // on this host, so that AUTH may be tried without TLS
	addrB = "127.0.0.2:25"
)

func newScene(t *testing.T, set setting) *scene {
	s := &scene{T: t, net: smtptest.NewNetwork(), set: set}
	s.net.SetBuffer(set.buffer)
	opts := append([]smtptest.Option{smtptest.WithStrictPipelining()}, set.a...)
	relay := smtplb.Relay{
		Name: "a", Addr: addrA, TLS: smtplb.TLSNone, Timeouts: matrixTimeouts, Conns: smtplb.Conns{MaxMessages: set.uses, Max: set.conns}, Chunking: set.chunks,
		Breaker: smtplb.Breaker{Consecutive: -1, MinOutcomes: matrixOutcomes, Ratio: 0.01}, NoBackOff: true, // or the next message would wait for it
	}
	if set.cert == nil {
		set.cert = smtptest.WithCertificate(matrixCert())
	}
	switch set.tls {
	case "starttls":
		relay.TLS = smtplb.TLSStartTLS
		opts = append(opts, set.cert, smtptest.WithRequireTLS())
	case "implicit":
		relay.TLS = smtplb.TLSImplicit
		opts = append(opts, set.cert, smtptest.WithImplicitTLS())
	}
	if set.stepwise {
		opts = append(opts, smtptest.WithoutExtensions("PIPELINING"))
	}
	if set.chunks {
		opts = append(opts, smtptest.WithExtensions("PIPELINING", "SIZE 10485760", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "CHUNKING"))
	}
	if set.auth {
		opts = append(opts, smtptest.WithAuth("user", "secret", "PLAIN"))
		relay.Username, relay.Password = "user", "secret"
	}
	s.a = s.net.NewServer(addrA, opts...)
	if set.tls != "plain" {
		relay.TLSConfig = s.a.ClientTLS()
		if set.stranger {
			relay.TLSConfig.RootCAs = x509.NewCertPool()
			relay.TLSConfig.RootCAs.AddCert(matrixCert().Leaf)
		}
		relay.TLSConfig.CurvePreferences = cheap
	}
	c := smtplb.Config{Dial: s.dial, Relays: []smtplb.Relay{relay}, Health: smtplb.Health{Interval: -1}} // connections are counted
	c.Hooks.RelayState = func(e smtplb.RelayEvent) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if e.Relay == "a" {
			s.states = append(s.states, e.Breaker)
		}
	}
	if !set.lone {
		s.b = s.net.NewServer(addrB, append([]smtptest.Option{smtptest.WithStrictPipelining()}, set.b...)...)
		c.Relays = append(c.Relays, smtplb.Relay{Name: "b", Addr: addrB, TLS: smtplb.TLSNone, Tier: 1})
	}
	pool, err := smtplb.New(c)
	if err != nil {
		t.Fatal(err)
	}
	s.pool = pool
	return s
}

func (s *scene) close() {
	s.Helper()
	s.pool.Close()
	s.a.Close()
	if s.b != nil {
		s.b.Close()
	}
	for _, r := range s.pool.Stats().Relays {
		if r.InFlight != 0 || r.Waiting != 0 || r.Idle != 0 {
			s.Errorf("left behind in %s: %d in flight, %d waiting, %d idle", r.Name, r.InFlight, r.Waiting, r.Idle)
		}
	}
}

// wire is a connection to A, seen from the client's end.
type wire struct {
	memConn
	scene  *scene
	mu     sync.Mutex // guards the following fields
	wrote  []byte
	closed bool
}

type memConn interface {
	net.Conn
	ExactWrite() bool
	Alive() bool
}

func (s *scene) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if addr != addrA {
		return s.net.DialContext(ctx, network, addr)
	}
	if s.refuseDial.CompareAndSwap(true, false) {
		return s.net.DialContext(ctx, network, "127.0.0.9:25") // where nobody listens
	}
	if s.noSuchHost.CompareAndSwap(true, false) {
		return nil, &net.OpError{Op: "dial", Net: network, Err: &net.DNSError{Err: "no such host", Name: "a.test", IsNotFound: true}}
	}
	c, err := s.net.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	w := &wire{memConn: c.(memConn), scene: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = append(s.conns, w)
	return w, nil
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.memConn.Read(p)
	if n > 0 && w.scene.tamper.CompareAndSwap(true, false) {
		p[min(n-1, 7)] ^= 0x55 // in the first record, behind its header
	}
	return n, err
}

func (w *wire) Write(p []byte) (int, error) {
	n, err := w.memConn.Write(p)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrote = append(w.wrote, p[:n]...)
	return n, err
}

func (w *wire) Close() error {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	return w.memConn.Close()
}

func (w *wire) isClosed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closed
}

// bytes returns what reached the relay's end, in clear or not.
func (w *wire) bytes() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.wrote)
}

func (s *scene) wires() []*wire {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.conns)
}

// alert puts a record that can't be read into the newest connection, behind what the client has sent: the relay then answers with an alert.
func (s *scene) alert() {
	w := s.wires()
	_, _ = w[len(w)-1].memConn.Write([]byte("\x17\x03\x03\x00\x20this was never under any key.....")[:37]) // an error means that the connection is gone
}

// deliver sends poison to the recipients.
func (s *scene) deliver(change func(*smtplb.Envelope), to ...string) (*smtplb.Receipt, error) {
	s.Helper()
	return s.send(poison, change, to...)
}

// send sends a message to the recipients. It may be called from several goroutines.
func (s *scene) send(text string, change func(*smtplb.Envelope), to ...string) (*smtplb.Receipt, error) {
	s.Helper()
	e := &smtplb.Envelope{From: "a@example.com", To: to, Body: smtplb.Bytes([]byte(text))}
	if change != nil {
		change(e)
	}
	ctx := s.Context()
	if s.leave > 0 && slices.Contains(to, "x@example.com") {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		defer time.AfterFunc(s.leave, cancel).Stop()
	}
	r, err := s.pool.Deliver(ctx, e)
	if r == nil {
		s.Errorf("no receipt: %v", err)
		r = new(smtplb.Receipt)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, sending{text, r})
	return r, err
}

func preferA(e *smtplb.Envelope) { e.Prefer = "a" }

// on adds a rule to A's script, of which everyRuleFired is to tell.
func (s *scene) on(stage smtptest.Stage) *smtptest.Rule {
	r := s.a.On(stage)
	s.rules = append(s.rules, r)
	return r
}

// everyRuleFired reports whether every rule that on added has taken effect.
func (s *scene) everyRuleFired() bool {
	return !slices.ContainsFunc(s.rules, func(r *smtptest.Rule) bool { return r.Fired() == 0 })
}

// statsA are A's figures.
func (s *scene) statsA() smtplb.RelayStats { return s.pool.Stats().Relays[0] }

// counted tells how many outcomes A's breaker has counted so far, by adding faults until it opens. It ends A.
func (s *scene) counted() int {
	s.Helper()
	s.a.ClearScript()
	s.a.Kill()
	for k := 1; k <= matrixOutcomes; k++ {
		s.deliver(preferA, fmt.Sprintf("fault%d@example.com", k))
		if s.statsA().Breaker == "open" {
			return matrixOutcomes - k
		}
	}
	s.Errorf("%d faults didn't open the breaker", matrixOutcomes)
	return -1
}

// stores are the relays' messages that hold the recipient.
func (s *scene) stores(to string) (inA, inB int) {
	count := func(srv *smtptest.Server) (n int) {
		if srv == nil {
			return 0
		}
		for _, m := range srv.Messages() {
			for _, x := range m.To {
				if x == to {
					n++
				}
			}
		}
		return n
	}
	return count(s.a), count(s.b)
}

// master holds what was reported of every recipient against what the relays stored, and looks for what nobody sent.
func (s *scene) master() {
	s.Helper()
	texts := map[string]string{} // by recipient
	for _, x := range s.sent {
		for _, r := range x.receipt.Recipients {
			texts[r.Addr] = x.text
			inA, inB := s.stores(r.Addr)
			want := ""
			switch r.Outcome {
			case smtplb.Accepted:
				if inA+inB != 1 || r.Relay == "a" && inA != 1 || r.Relay == "b" && inB != 1 {
					want = "once, in " + r.Relay
				}
			case smtplb.Unknown:
				if inA > 1 || inB > 0 {
					want = "once at the most, in a"
				}
			default:
				if inA+inB > 0 {
					want = "nowhere"
				}
			}
			if want != "" {
				s.Errorf("%s is %v and stored %d times in a and %d times in b, want %s", r.Addr, r.Outcome, inA, inB, want)
			}
		}
	}
	for name, srv := range map[string]*smtptest.Server{"a": s.a, "b": s.b} {
		if srv == nil {
			continue
		}
		for _, m := range srv.Messages() {
			for _, to := range m.To {
				if text, ok := texts[to]; !ok || m.From != "a@example.com" || string(m.Data) != text {
					s.Errorf("%s stored what nobody sent to %s: %v", name, to, m)
				}
			}
		}
		if n := srv.Stats().EarlyBytes; n > 0 {
			s.Errorf("%s got bytes too early, %d times", name, n)
		}
	}
}

// onTheWire checks that nothing went to A that a relay could take for a message we don't report: bodies is the number of messages that were sent whole.
func (s *scene) onTheWire(bodies int) {
	s.Helper()
	noted := 0
	for _, tr := range s.a.Transcripts() {
		for _, line := range tr.Lines {
			if strings.HasPrefix(line, "-- body of") {
				noted++
			}
			line, ok := strings.CutPrefix(line, "C: ")
			if ok && !slices.ContainsFunc([]string{
				"EHLO ", "HELO ", "STARTTLS", "AUTH ", "MAIL FROM:<a@example.com>", "RCPT TO:<", "DATA", "BDAT ", "RSET", "QUIT",
			}, func(p string) bool { return strings.HasPrefix(line, p) }) {
				s.Errorf("A was told %q", line)
			}
		}
	}
	if noted != bodies && !s.set.chunks {
		s.Errorf("A got %d whole messages, want %d", noted, bodies)
	}
	// A's own count ends where it stops reading. In plain text the bytes themselves tell.
	if s.set.tls == "plain" {
		ends := 0
		for _, w := range s.wires() {
			ends += messageEnds(w.bytes())
		}
		if ends != bodies {
			s.Errorf("A was sent %d ends of messages, want %d", ends, bodies)
		}
	}
}

// messageEnds counts the messages in b that were written to their end: to the dot alone on its line, or to the last byte of a last chunk.
func messageEnds(b []byte) (n int) {
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte("\r\n"))
		if size, ok := lastChunk(line); ok {
			if size > len(rest) {
				return n
			}
			rest = rest[size:]
			n++
		} else if string(line) == "." {
			n++
		}
		b = rest
	}
	return n
}

// lastChunk is the size that a BDAT command tells.
func lastChunk(line []byte) (size int, ok bool) {
	line, ok = bytes.CutPrefix(line, []byte("BDAT "))
	if !ok {
		return 0, false
	}
	size, err := strconv.Atoi(string(bytes.TrimSuffix(line, []byte(" LAST"))))
	return size, err == nil
}

// mainClasses are the classes of err that tell what may be sent again.
func mainClasses(err error) string {
	var b []string
	for _, c := range []struct {
		name string
		err  error
	}{{"temporary", smtplb.ErrTemporary}, {"permanent", smtplb.ErrPermanent}, {"unknown", smtplb.ErrUnknown}, {"partial", smtplb.ErrPartial}} {
		if errors.Is(err, c.err) {
			b = append(b, c.name)
		}
	}
	return strings.Join(b, " ")
}

// wantClasses are the classes that an error must have with these outcomes, by the documentation of SendError.
func wantClasses(outcomes map[string]smtplb.Outcome) string {
	n := map[smtplb.Outcome]int{}
	for _, o := range outcomes {
		n[o]++
	}
	var b []string
	if n[smtplb.Accepted] == len(outcomes) {
		return ""
	}
	if n[smtplb.Accepted]+n[smtplb.Unknown] == 0 {
		if n[smtplb.Deferred] > 0 {
			b = append(b, "temporary")
		} else {
			b = append(b, "permanent")
		}
	}
	if n[smtplb.Unknown] > 0 {
		b = append(b, "unknown")
	}
	if n[smtplb.Accepted] > 0 {
		b = append(b, "partial")
	}
	return strings.Join(b, " ")
}
