package conformance

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"

	"github.com/smtplb/smtplb/smtptest"
)

// What becomes of the text.
var messageCases = []Case{
	{Name: "delivery", Why: "A message arrives once, as it is, from its sender and for all of its recipients.",
		run: func(t *trial) {
			t.accepted(t.send("Hello.\r\n\r\nBye.\r\n", bob, carol))
			if m := t.once("Hello.\r\n\r\nBye.\r\n", bob, carol); m.From != alice {
				t.failf("the sender is %q", m.From)
			}
		}},
	{Name: "many-recipients", Why: "A hundred recipients are what every relay must take (RFC 5321 §4.5.3.1.8).",
		run: func(t *trial) {
			var to []string
			for i := range 100 {
				to = append(to, "r"+string(rune('a'+i/10))+string(rune('a'+i%10))+"@rcpt.test")
			}
			t.accepted(t.send("Hello.\r\n", to...))
			t.once("Hello.\r\n", to...)
		}},
	{Name: "dot-stuffing", Why: "A line that begins with a dot loses it, or ends the message, unless another is put before it (RFC 5321 §4.5.2).",
		run: func(t *trial) { t.text(".\r\n..\r\n.x\r\n ..\r\nx.\r\n\r\n.\r\n.QUIT\r\n...\r\n.\r\n") }},
	{Name: "lone-dot", Why: "A body that is nothing but a dot is a message, not its end.",
		run: func(t *trial) { t.text(".") }},
	{Name: "no-final-newline", Why: "The end of the message is CRLF.CRLF: a last line without a line end must get one, or the dot becomes part of it.",
		run: func(t *trial) { t.text("first\r\nlast") }},
	{Name: "empty-body", Why: "A message without text is a message.",
		run: func(t *trial) { t.text("") }},
	{Name: "looks-like-commands", Why: "Text is text, also where it reads like SMTP.",
		run: func(t *trial) { t.text("RSET\r\nMAIL FROM:<evil@x.test>\r\nQUIT\r\n250 ok\r\n") }},
	{Name: "lf-only", Why: "Text files have LF line ends, SMTP has CRLF only (RFC 5321 §2.3.8): relays refuse a lone LF, or take it for the end of a message. It is refused, or made CRLF.",
		run: func(t *trial) {
			msg := strings.ReplaceAll(string(letter("one\r\ntwo\r\n.\r\nfour\r\n", bob)), "\r\n", "\n")
			if err := t.sendRaw(alice, []string{bob}, []byte(msg)); err != nil {
				t.stored(0)
				return
			}
			t.once("one\r\ntwo\r\n.\r\nfour\r\n", bob)
		}},
	{Name: "bare-cr", Why: "A lone CR is a line end to some relays and not to others, and so a way to smuggle: it is refused, or made CRLF (RFC 5321 §2.3.8).",
		run: func(t *trial) {
			if err := t.send("one\rtwo\r.\r\nthree\r\n", bob); err != nil {
				t.stored(0)
				return
			}
			for _, m := range t.stored(1) {
				t.clean(m)
			}
		}},
	{Name: "smuggling", Why: "A message that ends early for the next relay, by a dot between other line ends than CRLF, carries a second one that nobody has checked (CVE-2023-51764).",
		run: func(t *trial) {
			evil := "MAIL FROM:<evil@x.test>\r\nRCPT TO:<" + gone + ">\r\nDATA\r\nSubject: evil\r\n\r\nevil\r\n"
			var text strings.Builder
			for _, end := range []string{"\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r", "\r.\r\n", "\r\n.\r"} {
				text.WriteString("text" + end + evil)
			}
			if err := t.send(text.String(), bob); err != nil {
				t.stored(0)
				return
			}
			for _, m := range t.stored(1) {
				t.clean(m)
				if strings.Join(m.To, " ") != bob {
					t.failf("stored for %q", m.To)
				}
			}
		}},
	{Name: "line-998", Why: "A line may have 998 bytes before its CRLF (RFC 5322 §2.1.1).",
		opts: []option{smtptest.WithMaxLineLength(998)},
		run:  func(t *trial) { t.text(strings.Repeat("x", 998) + "\r\n" + "y\r\n") }},
	{Name: "long-lines", Why: "A line that is too long is refused or encoded, never cut: cut lines break signatures and tables.",
		opts: []option{smtptest.WithMaxLineLength(998)},
		run: func(t *trial) {
			text := strings.Repeat("long ", 2000) + "\r\nshort\r\n"
			if err := t.send(text, bob); err != nil {
				t.stored(0)
				return
			}
			t.once(text, bob)
		}},
	{Name: "large", Why: "A message of some megabytes arrives whole.",
		run: func(t *trial) {
			t.text(strings.Repeat("A line of text of a large message, number such and such.\r\n", 25_000))
		}},
	{Name: "reader", Why: "A message that comes from a reader, in pieces, arrives whole.", reader: true,
		run: func(t *trial) {
			text := strings.Repeat("a line\r\n.\r\n", 10_000)
			t.accepted(t.sendReader(&pieces{b: letter(text, bob), n: 777}))
			t.once(text, bob)
		}},
	{Name: "reader-fails", Why: "A source that fails half-way must not be mistaken for the end of the message: the relay would accept, and deliver, half of it.", reader: true,
		run: func(t *trial) {
			t.refused(t.sendReader(&pieces{b: letter(strings.Repeat("a line\r\n", 20_000), bob), n: 777, err: errors.New("the disk is gone")}))
			t.stored(0)
		}},
}

// text lets the sender send a message of this text, which the relay accepts.
func (t *trial) text(text string) {
	t.accepted(t.send(text, bob))
	t.once(text, bob)
}

func (t *trial) sendReader(r io.Reader) error {
	return t.call(func(ctx context.Context) error { return t.cfg.reader(ctx, t.relay, alice, []string{bob}, r) })
}

// pieces is a reader of b, n bytes at a time; where err is set it stands in the place of
// the second half.
type pieces struct {
	b   []byte
	n   int
	err error
	off int
}

func (p *pieces) Read(b []byte) (int, error) {
	switch {
	case p.err != nil && p.off > len(p.b)/2:
		return 0, p.err
	case p.off == len(p.b):
		return 0, io.EOF
	}
	n := copy(b, p.b[p.off:min(p.off+p.n, len(p.b))])
	p.off += n
	return n, nil
}

// What goes with the message: addresses, parameters, extensions.
var envelopeCases = []Case{
	{Name: "inject-recipient", Why: "A CR LF in a recipient's address is a command of its own: whoever fills in a form would send what he likes.",
		run: func(t *trial) { t.inject(alice, bob+">\r\nRCPT TO:<evil@x.test") }},
	{Name: "inject-sender", Why: "A CR LF in a sender's address is a command of its own, as in a recipient's.",
		run: func(t *trial) { t.inject(alice+">\r\nRCPT TO:<evil@x.test", bob) }},
	{Name: "inject-lf", Why: "A lone LF ends a command for many relays.",
		run: func(t *trial) { t.inject(alice, bob+">\nRCPT TO:<evil@x.test") }},
	{Name: "inject-parameter", Why: "What follows the closing bracket of an address is a parameter: an address must not be able to hold one (CVE-2025-59937).",
		run: func(t *trial) { t.inject(alice, bob+"> NOTIFY=NEVER ORCPT=rfc822;evil@x.test") }},
	{Name: "smtputf8-not-needed", Why: "A message that asks for SMTPUTF8 must not be passed on to a relay without it: asked for without need, mail bounces further on (RFC 6531 §3.6).",
		run: func(t *trial) {
			t.accepted(t.send("Hello.\r\n", bob))
			if m := t.once("Hello.\r\n", bob); contained(m.MailParams, "SMTPUTF8") {
				t.failf("MAIL has SMTPUTF8 for an ASCII message")
			}
		}},
	{Name: "smtputf8-needed", Why: "An address that is not ASCII is sent with SMTPUTF8, or with an ASCII domain where that is enough (RFC 6531 §3.4).",
		run: func(t *trial) {
			to := "bärbel@rcpt.test"
			t.accepted(t.send("Hello.\r\n", to))
			if m := t.once("Hello.\r\n", to); !contained(m.MailParams, "SMTPUTF8") {
				t.failf("MAIL has no SMTPUTF8: %q", m.MailParams)
			}
		}},
	{Name: "smtputf8-missing", Why: "A relay without SMTPUTF8 can't be given such an address, nor another one in its place.",
		opts: []option{smtptest.WithoutExtensions("SMTPUTF8")},
		run: func(t *trial) {
			t.refused(t.send("Hello.\r\n", "bärbel@rcpt.test"))
			t.stored(0)
		}},
	{Name: "8bit-declared", Why: "A text that is not ASCII is declared (BODY=8BITMIME, RFC 6152) or encoded.",
		run: func(t *trial) {
			if err := t.sendEightBit(); err != nil {
				t.accepted(err)
			}
			if m := t.once("Grüße\r\n", bob); !ascii(m.Data) && !contained(m.MailParams, "BODY=8BITMIME") {
				t.failf("8-bit text without BODY=8BITMIME: %q", m.MailParams)
			}
		}},
	{Name: "8bit-missing", Why: "A relay without 8BITMIME may strip the eighth bit: the text is encoded for it, or not sent, and never declared as what it doesn't know.",
		opts: []option{smtptest.WithoutExtensions("8BITMIME")},
		run: func(t *trial) {
			if err := t.sendEightBit(); err != nil {
				t.stored(0)
				return
			}
			if m := t.once("Grüße\r\n", bob); !ascii(m.Data) {
				t.failf("8-bit text was sent to a relay without 8BITMIME")
			}
		}},
	{Name: "size-early", Why: "A message that the relay has said it won't take (SIZE, RFC 1870) is not sent to it first: that costs minutes, and it hangs up in the middle.",
		opts: []option{smtptest.WithMaxSize(10_000)},
		run: func(t *trial) {
			var began atomic.Bool
			t.server.On(smtptest.Body).If(func(*smtptest.Event) bool { began.Store(true); return false }).Delay(0)
			t.refused(t.send(strings.Repeat("A line of text.\r\n", 2000), bob))
			t.stored(0)
			if began.Load() {
				t.failf("the body was sent")
			}
		}},
	{Name: "pipelining", Why: "Commands that must end a group do end it (RFC 2920 §3.1): Postfix and Exim hang up otherwise.",
		opts: []option{smtptest.WithStrictPipelining()},
		run:  func(t *trial) { t.inStep("Hello.\r\n") }},
	{Name: "pipelining-not-offered", Why: "Where PIPELINING is not offered, nothing is sent before the reply has come: OpenSMTPD loses it, others hang up.",
		opts: []option{smtptest.WithStrictPipelining(), smtptest.WithLossyInput(), smtptest.WithoutExtensions("PIPELINING", "CHUNKING")},
		run:  func(t *trial) { t.inStep("Hello.\r\n") }},
	{Name: "no-extensions", Why: "A relay that offers nothing gets no parameters: it would refuse MAIL.",
		opts: []option{smtptest.WithExtensions(), smtptest.WithStrictPipelining()},
		run:  func(t *trial) { t.inStep("Hello.\r\n") }},
	{Name: "helo-only", Why: "A relay that knows no EHLO is greeted with HELO (RFC 5321 §3.2).",
		opts: []option{smtptest.WithoutEHLO()},
		run:  func(t *trial) { t.text("Hello.\r\n") }},
	{Name: "rcpt-limit", Why: "A 452 to one recipient too many is about that recipient, who must not be lost in silence (RFC 5321 §4.5.3.1.10).",
		opts: []option{smtptest.WithMaxRecipients(2)},
		run: func(t *trial) {
			err := t.send("Hello.\r\n", bob, carol, "dave@rcpt.test")
			t.end()
			var got int
			for _, m := range t.server.Messages() {
				got += len(m.To)
			}
			if err == nil && got != 3 {
				t.failf("no error, and stored for %d of 3 recipients", got)
			}
		}},
}

// inStep sends two messages, and expects that nothing was sent too early.
func (t *trial) inStep(text string) {
	t.accepted(t.send(text, bob))
	t.accepted(t.send(text, carol))
	t.stored(2)
	if n := t.server.Stats().EarlyBytes; n > 0 {
		t.failf("bytes came too early %d times", n)
	}
}

// inject lets the sender send with an address that holds more than an address.
func (t *trial) inject(from, to string) {
	t.refused(t.sendRaw(from, []string{to}, letter("Hello.\r\n", bob)))
	t.stored(0)
	if strings.Contains(t.server.Transcript(), "evil") {
		t.failf("the relay was sent what the address held")
	}
}

func (t *trial) sendEightBit() error {
	head, _, _ := strings.Cut(string(letter("", bob)), "\r\n\r\n")
	return t.sendRaw(alice, []string{bob}, []byte(head+"\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nGrüße\r\n"))
}

func contained(params []string, p string) bool {
	for _, x := range params {
		if strings.EqualFold(x, p) {
			return true
		}
	}
	return false
}

func ascii(b []byte) bool {
	for _, x := range b {
		if x >= 0x80 {
			return false
		}
	}
	return true
}
