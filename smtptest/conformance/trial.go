package conformance

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime/quotedprintable"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/smtplb/smtplb/smtptest"
)

type option = smtptest.Option

const (
	patience      = 2 * time.Minute        // for a relay that answers
	shortPatience = 500 * time.Millisecond // for a relay that hangs
	grace         = 8 * time.Second        // a sender may need as long after its context's end
	endTimeout    = 3 * time.Second        // for connections and goroutines to end
	idleFor       = 4 * time.Second        // what a sender that closes its connections has for that
	maxTries      = 6
)

const (
	alice = "alice@sender.test"
	bob   = "bob@rcpt.test"
	carol = "carol@rcpt.test"
	gone  = "gone@rcpt.test"
)

var lastTrial atomic.Int64

// errNotReturned stands for the error of a sender that had to be given up.
var errNotReturned = errors.New("the sender had not returned")

// trial is one sender in one case.
type trial struct {
	c      Case
	cfg    *config
	sender Sender
	server *smtptest.Server
	relay  *Relay
	id     string

	release  func()        // lets a relay that hangs go on
	released chan struct{} // closed by release
	hung     atomic.Bool   // the relay was reached where it hangs
	gaveUp   bool          // on the sender: what the relay stored says nothing then
	ended    bool

	mu       sync.Mutex // protects problems
	problems []string
}

// try runs a case. A relay that hangs gets the sender less time than it may need on a busy
// machine to get as far as that: then it is tried again with more.
func try(s Sender, cfg *config, c Case) Outcome {
	start := time.Now()
	if c.reader && cfg.reader == nil {
		return Outcome{Case: c, Status: Skipped}
	}
	wait := patience
	if c.hangs {
		wait = shortPatience
	}
	for n := 1; ; n++ {
		t := newTrial(s, cfg, c, wait)
		c.run(t)
		t.end()
		t.server.Close()
		if c.hangs && !t.hung.Load() && n < maxTries {
			wait *= 2
			continue
		}
		if c.hangs && !t.hung.Load() {
			t.failf("the sender never came as far as the relay's hanging")
		}
		o := Outcome{Case: c, Status: Passed, Problems: t.problems, Took: time.Since(start), Transcript: t.server.Transcript()}
		if len(t.problems) > 0 {
			o.Status = Failed
		}
		return o
	}
}

func newTrial(s Sender, cfg *config, c Case, wait time.Duration) *trial {
	t := &trial{c: c, cfg: cfg, sender: s, id: strconv.FormatInt(lastTrial.Add(1), 10), released: make(chan struct{})}
	t.release = sync.OnceFunc(func() { close(t.released) })
	opts := append([]option{smtptest.WithLogf(t.failf)}, c.opts...)
	t.relay = &Relay{Patience: wait}
	if c.secure {
		if c.cert != nil {
			opts = append(opts, c.cert())
		} else {
			opts = append(opts, smtptest.WithCertificate(certificate("127.0.0.1")))
		}
		t.relay.TLS = clientTLS()
	}
	if c.account {
		t.relay.Username, t.relay.Password = "user", "s3cret"
	}
	t.server = smtptest.NewServer(opts...)
	t.relay.Addr = t.server.Addr
	return t
}

func (t *trial) failf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.problems = append(t.problems, fmt.Sprintf(format, args...))
}

// letter makes a message of alice's with this text.
func letter(text string, to ...string) []byte {
	id := strconv.FormatInt(time.Now().UnixNano(), 36)
	return []byte("From: " + alice + "\r\nTo: " + strings.Join(to, ",\r\n\t") + "\r\nSubject: conformance\r\nMessage-ID: <" + id + "@sender.test>\r\n" +
		"Date: Mon, 02 Jan 2006 15:04:05 +0000\r\n\r\n" + text)
}

// send lets the sender send a message with this text from alice.
func (t *trial) send(text string, to ...string) error {
	return t.sendRaw(alice, to, letter(text, to...))
}

func (t *trial) sendRaw(from string, to []string, msg []byte) error {
	return t.call(func(ctx context.Context) error { return t.sender(ctx, t.relay, from, to, msg) })
}

// call calls the sender, sees that it returns in time, and lets the relay go on.
func (t *trial) call(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), t.relay.Patience)
	defer cancel()
	done := make(chan error, 1)
	go pprof.Do(ctx, pprof.Labels(label, t.id), func(ctx context.Context) {
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("the sender panicked: %v", p)
				t.failf("the sender panicked: %v", p)
			}
		}()
		done <- f(ctx)
	})
	defer t.release()
	const tick = 200 * time.Millisecond
	for range (t.relay.Patience + grace) / tick { // counted, as in within
		select {
		case err := <-done:
			return err
		case <-time.After(tick):
		}
	}
	t.failf("the sender had not returned %v after its context's end", grace)
	t.gaveUp = true
	t.release()
	t.server.Kill()
	if !within(endTimeout, func() bool { return len(done) > 0 }) {
		t.failf("and not %v after its connection was reset", endTimeout)
	}
	return errNotReturned
}

// hangAt lets the relay hang at a stage, until the sender has returned, and then go on
// as if nothing had been.
func (t *trial) hangAt(rule *smtptest.Rule) {
	rule.If(func(*smtptest.Event) bool {
		t.hung.Store(true)
		<-t.released
		return false
	}).Delay(0)
}

// end lets the sender close what it kept, and sees that nothing is left of it.
func (t *trial) end() {
	if t.ended {
		return
	}
	t.ended = true
	t.release()
	t.relay.release()
	if !within(endTimeout, func() bool { return t.server.Stats().Active == 0 }) {
		t.failf("%d connections are left open", t.server.Stats().Active)
		t.server.Kill()
	}
	for tries := 1; ; tries++ {
		n := goroutines.count(t.id)
		if n > 0 && time.Duration(tries)*censusPause < endTimeout {
			continue
		}
		if n > 0 {
			t.failf("%d goroutines are left", n)
		}
		return
	}
}

// within waits until f returns true, for about d. What counts is how often it looks: on a
// machine that is too busy to let the sender run, time passes more slowly.
func within(d time.Duration, f func() bool) bool {
	const look = 20 * time.Millisecond
	for range d / look {
		if f() {
			return true
		}
		<-time.After(look)
	}
	return f()
}

// accepted expects that err is nil.
func (t *trial) accepted(err error) {
	if err != nil {
		t.failf("error although the relay accepted the message: %v", err)
	}
}

// refused expects that err is not nil.
func (t *trial) refused(err error) {
	if err == nil {
		t.failf("no error although the message was not accepted for every recipient")
	}
}

// temporary expects that err is worth sending again, or that it is not.
func (t *trial) temporary(err error, want bool) {
	if t.cfg.temporary == nil || err == nil || err == errNotReturned {
		return
	}
	if got := t.cfg.temporary(err); got != want {
		kind := map[bool]string{true: "temporary", false: "permanent"}
		t.failf("the relay's refusal is %s, the error says %s: %v", kind[want], kind[got], err)
	}
}

// stored ends the sender and expects that the relay has stored n messages.
func (t *trial) stored(n int) []*smtptest.Message {
	t.end()
	msgs := t.server.Messages()
	if len(msgs) != n && !t.gaveUp {
		t.failf("the relay stored %d messages, and not %d", len(msgs), n)
	}
	return msgs
}

// once ends the sender and expects one message with this text, to these recipients.
func (t *trial) once(text string, to ...string) *smtptest.Message {
	msgs := t.stored(1)
	if len(msgs) != 1 {
		return &smtptest.Message{}
	}
	t.same(msgs[0], text, to...)
	return msgs[0]
}

func (t *trial) same(m *smtptest.Message, text string, to ...string) {
	if got, want := strings.Join(m.To, " "), strings.Join(to, " "); got != want {
		t.failf("stored for %q, and not for %q", got, want)
	}
	if got, want := decoded(m), strings.TrimRight(text, "\r\n"); got != want {
		t.failf("the text is %s, and not %s", excerpt(got, want), excerpt(want, got))
	}
	t.clean(m)
}

// clean expects that no line end is anything but CRLF (RFC 5321 §2.3.8).
func (t *trial) clean(m *smtptest.Message) {
	rest := bytes.ReplaceAll(m.Data, []byte("\r\n"), nil)
	if i := bytes.IndexAny(rest, "\r\n"); i >= 0 {
		t.failf("a lone CR or LF was sent: %q", rest[max(i-10, 0):min(i+10, len(rest))])
	}
}

// excerpt quotes s around the first byte in which it differs from other.
func excerpt(s, other string) string {
	i := 0
	for i < len(s) && i < len(other) && s[i] == other[i] {
		i++
	}
	from, to := max(i-20, 0), min(i+40, len(s))
	return fmt.Sprintf("%q (from byte %d of %d)", s[from:to], from, len(s))
}

// decoded returns the text of a message without its transfer encoding and the line ends
// at its end.
func decoded(m *smtptest.Message) string {
	text := m.Body()
	var err error
	switch strings.ToLower(strings.TrimSpace(m.Header.Get("Content-Transfer-Encoding"))) {
	case "quoted-printable":
		text, err = io.ReadAll(quotedprintable.NewReader(bytes.NewReader(text)))
	case "base64":
		text, err = io.ReadAll(base64.NewDecoder(base64.StdEncoding, bytes.NewReader(text)))
	}
	if err != nil {
		return "(" + err.Error() + ")"
	}
	return strings.TrimRight(string(text), "\r\n")
}
