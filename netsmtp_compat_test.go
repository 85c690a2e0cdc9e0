package smtplb_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/smtp"
	"net/textproto"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// twins are net/smtp.SendMail and Pool.SendMail before the same relay, on a real socket since net/smtp knows no other.
type twins struct {
	*testing.T
	relay *smtptest.Server
	pool  *smtplb.Pool
}

func newTwins(t *testing.T, change func(r *smtplb.Relay, s *smtptest.Server), opts ...smtptest.Option) *twins {
	t.Helper()
	w := &twins{T: t, relay: smtptest.NewServer(opts...)}
	t.Cleanup(w.relay.Close)
	r := smtplb.Relay{Name: "r0", Addr: w.relay.Addr, TLS: smtplb.TLSNone, Breaker: smtplb.Breaker{Off: true}}
	if change != nil {
		change(&r, w.relay)
	}
	var err error
	if w.pool, err = smtplb.New(smtplb.Config{Relays: []smtplb.Relay{r}, LocalName: "client.example"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.pool.Close() })
	return w
}

// sent is what one of the twins did.
type sent struct {
	err         error
	stored      []*smtptest.Message
	connections int
}

// reply is the relay's reply as code that was written for net/smtp looks for it; "" where there is none.
func (s sent) reply() string {
	var tp *textproto.Error
	if errors.As(s.err, &tp) {
		return fmt.Sprintf("%d %q", tp.Code, tp.Msg)
	}
	return ""
}

// send lets both send the same.
func (w *twins) send(from string, to []string, msg string) (theirs, ours sent) {
	w.Helper()
	theirs = w.note(func() error { return smtp.SendMail(w.relay.Addr, nil, from, to, []byte(msg)) })
	ours = w.note(func() error { return w.pool.SendMail(w.relay.Addr, nil, from, to, []byte(msg)) })
	return theirs, ours
}

func (w *twins) note(send func() error) sent {
	w.relay.Reset()
	err := send()
	return sent{err, w.relay.Messages(), w.relay.Stats().Connections}
}

var toOne = []string{"x@example.com"}

// What net/smtp refuses without dialling is refused so here too, and more: what would be another command, or another address.
func TestCompatValidationBeforeDialling(t *testing.T) {
	w := newTwins(t, nil)
	for _, bad := range []string{"a@example.com\r\nRSET", "a@example.com\r", "a@example.com\n", "\n", "a\r@example.com"} {
		for _, e := range []struct {
			from string
			to   []string
		}{{bad, toOne}, {"a@example.com", []string{bad}}, {"a@example.com", []string{"x@example.com", bad}}} {
			theirs, ours := w.send(e.from, e.to, text)
			if theirs.err == nil || theirs.connections != 0 {
				t.Errorf("net/smtp, %q: %v, %d connections", e, theirs.err, theirs.connections)
			}
			if !errors.Is(ours.err, smtplb.ErrPermanent) || ours.connections != 0 || len(ours.stored) != 0 {
				t.Errorf("%q: %v, %d connections", e, ours.err, ours.connections)
			}
		}
	}
	// Here net/smtp asks the relay.
	for _, bad := range []string{"a@example.com> SIZE=1", "A <a@example.com>", "a b@example.com", "a@example.com\x00", "a", "a@", "a@example..com", "a@example.com,b@example.com", "a\u2028b@example.com"} {
		theirs, ours := w.send("a@example.com", []string{bad}, text)
		if theirs.connections != 1 {
			t.Errorf("net/smtp, %q: %v, %d connections", bad, theirs.err, theirs.connections)
		}
		if !errors.Is(ours.err, smtplb.ErrPermanent) || ours.connections != 0 {
			t.Errorf("%q: %v, %d connections", bad, ours.err, ours.connections)
		}
	}
	if theirs, ours := w.send("a@example.com", nil, text); theirs.err == nil || !errors.Is(ours.err, smtplb.ErrPermanent) || ours.connections != 0 {
		t.Errorf("nobody: %v, %v", theirs.err, ours.err)
	}
}

// The relay's refusal is found as a *textproto.Error, the same as with net/smtp, at each stage.
func TestCompatTextprotoError(t *testing.T) {
	for _, stage := range []smtptest.Stage{smtptest.Mail, smtptest.Rcpt, smtptest.Data, smtptest.EndOfData} {
		for _, r := range []struct {
			code int
			text string
		}{
			{421, "4.3.2 Going down"}, {450, "4.2.0 Busy"}, {451, "4.3.0 Try again"}, {452, "4.3.1 Full"}, {550, "5.1.1 No such user"}, {553, "No"}, {554, "5.7.1 One\n5.7.1 two\n5.7.1 three"}, {550, ""},
		} {
			t.Run(fmt.Sprintf("%v %d", stage, r.code), func(t *testing.T) {
				w := newTwins(t, nil)
				w.relay.On(stage).Reply(r.code, r.text)
				theirs, ours := w.send("a@example.com", toOne, text)
				want := fmt.Sprintf("%d %q", r.code, r.text)
				if theirs.reply() != want {
					t.Fatalf("net/smtp: %v", theirs.err)
				}
				if ours.reply() != want || len(ours.stored) != 0 || errors.Is(ours.err, smtplb.ErrPermanent) != (r.code >= 500) || errors.Is(ours.err, smtplb.ErrTemporary) != (r.code < 500) {
					t.Errorf("found %s, want %s, in %v", ours.reply(), want, ours.err)
				}
			})
		}
	}
}

// A recipient that is refused refuses the message for all of them.
func TestCompatAllOrNobody(t *testing.T) {
	for _, code := range []int{450, 550} {
		for _, to := range [][]string{{"gone@example.com", "x@example.com"}, {"x@example.com", "gone@example.com", "y@example.com"}, {"x@example.com", "y@example.com", "gone@example.com"}} {
			w := newTwins(t, nil)
			w.relay.On(smtptest.Rcpt).For("gone@example.com").Reply(code, "no such user")
			theirs, ours := w.send("a@example.com", to, text)
			if theirs.err == nil || len(theirs.stored) != 0 {
				t.Fatalf("net/smtp, %v: %d stored: %v", to, len(theirs.stored), theirs.err)
			}
			if ours.reply() != theirs.reply() || len(ours.stored) != 0 || w.relay.Stats().Commands["DATA"] != 0 {
				t.Errorf("%v: %d stored: %v", to, len(ours.stored), ours.err)
			}
		}
	}
}

// Sender and recipients arrive the same, in their order; "" is the null sender.
func TestCompatEnvelope(t *testing.T) {
	w := newTwins(t, nil)
	for _, from := range []string{"", "a@example.com", `"a b"@example.com`} {
		theirs, ours := w.send(from, []string{"z@example.com", "x@example.com", `"y@z"@example.com`}, text)
		if theirs.err != nil || ours.err != nil || len(theirs.stored) != 1 || len(ours.stored) != 1 {
			t.Fatalf("%q: %v, %v", from, theirs.err, ours.err)
		}
		a, b := theirs.stored[0], ours.stored[0]
		if a.From != from || b.From != from || fmt.Sprint(a.To) != fmt.Sprint(b.To) || !bytes.Equal(a.Data, b.Data) {
			t.Errorf("%q: %v %q, and %v %q", from, a, a.Data, b, b.Data)
		}
	}
}

// What net/smtp's relay stores is what ours stores, byte for byte: line ends, the final one, dots.
func TestCompatStoredBytes(t *testing.T) {
	w := newTwins(t, nil)
	check := func(msg string) {
		t.Helper()
		theirs, ours := w.send("a@example.com", toOne, msg)
		if theirs.err != nil || ours.err != nil || len(theirs.stored) != 1 || len(ours.stored) != 1 || !bytes.Equal(theirs.stored[0].Data, ours.stored[0].Data) {
			t.Errorf("%.200q:\nnet/smtp: %v, %.200q\n    here: %v, %.200q", msg, theirs.err, theirs.stored, ours.err, ours.stored)
		}
	}
	n := 0
	for _, msg := range append(bodies, "Subject: a\n\nb\n.c\n..d\n.\n", "a\n\n\n", "a\r\n\r\n\n", ".a\r\n.b", "..\n..", "\n.", "a\r\n.") {
		if sameAsTheirs(msg) {
			check(msg)
			n++
		}
	}
	if n < 30 {
		t.Errorf("only %d bodies can be compared", n)
	}
	const seed = 5
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range 200 {
		var b strings.Builder
		for range 1 + r.IntN(60) {
			b.WriteString(oneOf(r, "\n", "\n", "\r\n", "\r\n", ".", ".", "..", "a", " ", "ü", "\xff", ".\r\n.", "line of text", strings.Repeat("x", r.IntN(300))))
		}
		if sameAsTheirs(b.String()) {
			check(b.String())
		}
		if t.Failed() {
			t.Fatalf("body %d of seed %d", i, seed)
		}
	}
}

// sameAsTheirs reports whether net/smtp and this package mean to send the same: not so where a CR stands alone, which net/smtp passes on
// as it is, dot and all, or where there is nothing, a NUL or a line that is too long, which it sends too.
func sameAsTheirs(msg string) bool {
	_, ok := canonical([]byte(msg), smtplb.LineEndingsText)
	return ok
}

// FuzzSendMail writes bodies to the wire as net/smtp does.
func FuzzSendMail(f *testing.F) {
	for _, s := range bodies {
		f.Add([]byte(s))
	}
	n := smtptest.NewNetwork()
	s := n.NewServer("r0.test:25", smtptest.WithDiscard())
	f.Cleanup(s.Close)
	var conn *writes
	pool, err := smtplb.New(smtplb.Config{
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := n.DialContext(ctx, network, addr)
			if err == nil {
				conn = &writes{Conn: nc, looks: nc.(looks)}
			}
			return conn, err
		},
		Relays: []smtplb.Relay{{Addr: s.Addr, TLS: smtplb.TLSNone, Conns: smtplb.Conns{MaxMessages: -1, MaxAge: -1, MaxIdleTime: -1}}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { pool.Close() })
	f.Fuzz(func(t *testing.T, msg []byte) {
		if !sameAsTheirs(string(msg)) {
			return
		}
		if err := pool.SendMail("", nil, "a@example.com", toOne, msg); err != nil {
			t.Fatalf("%q: %v", msg, err)
		}
		var theirs bytes.Buffer
		w := textproto.NewWriter(bufio.NewWriter(&theirs)).DotWriter() // what net/smtp.Client.Data returns
		_, _ = w.Write(msg)
		_ = w.Close()
		_, ours, _ := bytes.Cut(conn.taken(), []byte("\r\nDATA\r\n"))
		if !bytes.Equal(ours, theirs.Bytes()) {
			t.Errorf("%q: on the wire %q, with net/smtp %q", msg, ours, theirs.Bytes())
		}
	})
}

// Where this package means to differ from net/smtp.
func TestCompatDeviations(t *testing.T) {
	t.Run("a lone CR ends a line", func(t *testing.T) { // net/smtp lets the sequence of CVE-2023-51764 and its sisters through
		w := newTwins(t, nil)
		theirs, ours := w.send("a@example.com", toOne, "a\r.\r\nb\rc")
		if len(theirs.stored) != 1 || string(theirs.stored[0].Data) != "a\r.\r\nb\rc\r\n" {
			t.Errorf("net/smtp: %v, %q", theirs.err, theirs.stored)
		}
		if ours.err != nil || len(ours.stored) != 1 || string(ours.stored[0].Data) != "a\r\n.\r\nb\r\nc\r\n" {
			t.Errorf("%v: %v", ours.err, ours.stored)
		}
	})
	t.Run("what no relay should be given is refused", func(t *testing.T) {
		w := newTwins(t, nil)
		for name, msg := range map[string]string{"nothing": "", "NUL": "a\x00b", "999 bytes in a line": strings.Repeat("x", 999)} {
			theirs, ours := w.send("a@example.com", toOne, msg)
			if theirs.err != nil || len(theirs.stored) != 1 {
				t.Errorf("net/smtp, %s: %v", name, theirs.err)
			}
			if !errors.Is(ours.err, smtplb.ErrPermanent) || ours.connections != 0 || len(ours.stored) != 0 {
				t.Errorf("%s: %v", name, ours.err)
			}
		}
	})
	t.Run("8-bit only where 8BITMIME is offered, SMTPUTF8 only where it is needed", func(t *testing.T) {
		w := newTwins(t, nil, smtptest.WithoutExtensions("8BITMIME"))
		theirs, ours := w.send("a@example.com", toOne, "Subject: a\n\nGr\xc3\xbc\xc3\x9fe")
		if theirs.err != nil || !errors.Is(ours.err, smtplb.ErrPermanent) || len(ours.stored) != 0 {
			t.Errorf("%v, %v", theirs.err, ours.err)
		}
		w = newTwins(t, nil)
		theirs, ours = w.send("a@example.com", toOne, text)
		if p := fmt.Sprint(theirs.stored[0].MailParams); p != "[BODY=8BITMIME SMTPUTF8]" {
			t.Errorf("net/smtp says %s", p)
		}
		if p := fmt.Sprint(ours.stored[0].MailParams); p != fmt.Sprintf("[SIZE=%d]", len(text)) {
			t.Errorf("MAIL has %s", p)
		}
	})
	t.Run("a recipient that is named twice gets one copy", func(t *testing.T) {
		w := newTwins(t, nil)
		theirs, ours := w.send("a@example.com", []string{"x@example.com", "x@EXAMPLE.com"}, text)
		if theirs.err != nil || ours.err != nil || len(theirs.stored[0].To) != 2 || fmt.Sprint(ours.stored[0].To) != "[x@example.com]" {
			t.Errorf("%v %v, %v %v", theirs.err, theirs.stored, ours.err, ours.stored)
		}
	})
	t.Run("the pool's EHLO name", func(t *testing.T) {
		w := newTwins(t, nil)
		theirs, ours := w.send("a@example.com", toOne, text)
		if theirs.stored[0].HELO != "localhost" || ours.stored[0].HELO != "client.example" {
			t.Errorf("%q, %q", theirs.stored[0].HELO, ours.stored[0].HELO)
		}
	})
	t.Run("the pool's TLS", func(t *testing.T) {
		w := newTwins(t, func(r *smtplb.Relay, _ *smtptest.Server) { r.TLS = smtplb.TLSStartTLS })
		theirs, ours := w.send("a@example.com", toOne, text) // net/smtp takes what is offered
		if theirs.err != nil || theirs.stored[0].TLS || !errors.Is(ours.err, smtplb.ErrTemporary) || len(ours.stored) != 0 {
			t.Errorf("%v, %v", theirs.err, ours.err)
		}
		w = newTwins(t, func(r *smtplb.Relay, s *smtptest.Server) { r.TLS, r.TLSConfig = smtplb.TLSStartTLS, s.ClientTLS() }, smtptest.WithTLS())
		theirs, ours = w.send("a@example.com", toOne, text) // and its SendMail can't be given roots
		if theirs.err == nil || ours.err != nil || len(ours.stored) != 1 || !ours.stored[0].TLS {
			t.Errorf("%v, %v", theirs.err, ours.err)
		}
	})
	t.Run("QUIT can't spoil what was accepted", func(t *testing.T) {
		for _, script := range []func(r *smtptest.Rule){func(r *smtptest.Rule) { r.Drop() }, func(r *smtptest.Rule) { r.Reply(500, "what?") }, func(r *smtptest.Rule) { r.DropFIN() }} {
			w := newTwins(t, func(r *smtplb.Relay, _ *smtptest.Server) { r.Conns.MaxMessages = 1 }) // so that there is a QUIT at once
			script(w.relay.On(smtptest.Quit))
			theirs, ours := w.send("a@example.com", toOne, text)
			if theirs.err == nil || len(theirs.stored) != 1 {
				t.Errorf("net/smtp: %v", theirs.err)
			}
			if ours.err != nil || len(ours.stored) != 1 {
				t.Errorf("%v", ours.err)
			}
		}
	})
	t.Run("addr and a are not looked at", func(t *testing.T) {
		w := newTwins(t, nil)
		ours := w.note(func() error {
			return w.pool.SendMail("nowhere.invalid:1", noAuth{}, "a@example.com", toOne, []byte(text))
		})
		if ours.err != nil || len(ours.stored) != 1 {
			t.Errorf("%v", ours.err)
		}
	})
	t.Run("a 5xx that is not about the message is no 5xx", func(t *testing.T) { // code written for net/smtp drops mail on one
		for _, stage := range []smtptest.Stage{smtptest.Banner, smtptest.Ehlo} {
			w := newTwins(t, nil)
			w.relay.On(stage).Reply(554, "5.3.2 go away")
			w.relay.On(smtptest.Helo).Reply(554, "5.3.2 go away") // net/smtp tries it after whatever EHLO says
			theirs, ours := w.send("a@example.com", toOne, text)
			if !strings.HasPrefix(theirs.reply(), "554") || !strings.HasPrefix(ours.reply(), "451") || !errors.Is(ours.err, smtplb.ErrTemporary) {
				t.Errorf("%v: %s, %s: %v", stage, theirs.reply(), ours.reply(), ours.err)
			}
		}
	})
	t.Run("a body that breaks off is not ended", func(t *testing.T) {
		w := newTwins(t, nil)
		broken := func() io.Reader {
			return io.MultiReader(strings.NewReader(text), iotest.ErrReader(errors.New("disk on fire")))
		}
		theirs := w.note(func() error { return sendWithClient(w.relay.Addr, broken()) })
		if theirs.err == nil || len(theirs.stored) != 1 { // the half of it was accepted as the whole
			t.Errorf("net/smtp: %d stored: %v", len(theirs.stored), theirs.err)
		}
		ours := w.note(func() error {
			e := envelope(toOne...)
			e.Body = smtplb.Reader(broken())
			_, err := w.pool.Deliver(t.Context(), e)
			return err
		})
		if !errors.Is(ours.err, smtplb.ErrTemporary) || len(ours.stored) != 0 || ours.connections != 0 {
			t.Errorf("%d stored: %v", len(ours.stored), ours.err)
		}
	})
}

// noAuth is an Auth that nobody may ask.
type noAuth struct{}

func (noAuth) Start(*smtp.ServerInfo) (string, []byte, error) { panic("Start") }
func (noAuth) Next([]byte, bool) ([]byte, error)              { panic("Next") }

// sendWithClient sends with net/smtp as its documentation does, Close deferred.
func sendWithClient(addr string, body io.Reader) (err error) {
	c, err := smtp.Dial(addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := errors.Join(c.Mail("a@example.com"), c.Rcpt(toOne[0])); err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	defer w.Close()
	_, err = io.Copy(w, body)
	return err
}
