package conformance

import (
	"strings"
	"time"

	"github.com/smtplb/smtplb/smtptest"
)

// What is certain, and what is not, when the connection breaks (RFC 1047).
var commitCases = []Case{
	{Name: "gone-before-body", Why: "A relay that goes away before the message is sent has not accepted it.",
		run: func(t *trial) {
			t.server.On(smtptest.Data).Drop()
			t.refused(t.send("Hello.\r\n", bob))
			t.stored(0)
		}},
	{Name: "gone-in-body", Why: "A relay that goes away within the message has not accepted it.",
		run: func(t *trial) {
			t.server.On(smtptest.Body).After(100_000).Drop()
			t.refused(t.send(strings.Repeat("A line of text.\r\n", 20_000), bob))
			t.stored(0)
		}},
	{Name: "552-in-body", Why: "A relay that says 552 in the middle and hangs up has refused the message.",
		run: func(t *trial) {
			t.server.On(smtptest.Body).After(100_000).Reply(552, "5.3.4 Too big").ThenDrop()
			t.refused(t.send(strings.Repeat("A line of text.\r\n", 20_000), bob))
			t.stored(0)
		}},
	{Name: "reply-lost", Why: "A relay that takes the message and breaks before it can say so: nobody knows, so it is an error, and sending again by itself would make two of it (RFC 1047).",
		run: func(t *trial) { t.lost(t.server.On(smtptest.EndOfData).Drop()) }},
	{Name: "reply-lost-fin", Why: "The end of the stream in the place of the last reply is no reply: the message may be stored, so it is an error, and not sent again.",
		run: func(t *trial) { t.lost(t.server.On(smtptest.EndOfData).DropFIN()) }},
	{Name: "reply-cut", Why: "Half a reply is none: it might have gone on to anything.",
		run: func(t *trial) { t.lost(t.server.On(smtptest.EndOfData).CutSent(2).AndFIN()) }},
	{Name: "reply-without-end", Why: "A reply ends with CRLF: \"250-accepted\" with nothing behind it is none.",
		run: func(t *trial) { t.lost(t.server.On(smtptest.EndOfData).Raw("250-accepted\r\n").ThenClose()) }},
	{Name: "no-reply", Why: "A relay that never answers the dot may have the message: an error, after a while, and no second copy.", hangs: true,
		run: func(t *trial) {
			t.hangAt(t.server.On(smtptest.EndOfData))
			t.refused(t.send("Hello.\r\n", bob))
			if t.end(); t.hung.Load() && !t.gaveUp {
				t.once("Hello.\r\n", bob)
			}
		}},
	{Name: "cancelled-in-body", Why: "A message whose sending is given up half-way must not be ended with a dot: the relay would accept, and deliver, half of it.", hangs: true,
		run: func(t *trial) {
			text := strings.Repeat("A line of text.\r\n", 350_000)
			t.hangAt(t.server.On(smtptest.Body).After(100_000))
			err := t.send(text, bob) // the buffers between may hold all of it
			if t.end(); err == errNotReturned {
				return
			}
			for _, m := range t.server.Messages() {
				t.same(m, text, bob)
			}
		}},
}

// lost expects an error and one message.
func (t *trial) lost(*smtptest.Rule) {
	t.refused(t.send("Hello.\r\n", bob))
	t.once("Hello.\r\n", bob)
}

// A relay that takes its time. A Sender ends with its context.
var timeCases = []Case{
	hang("banner", smtptest.Banner, false),
	hang("ehlo", smtptest.Ehlo, false),
	hang("starttls", smtptest.StartTLS, true),
	hang("handshake", smtptest.TLSHandshake, true),
	hang("mail", smtptest.Mail, false),
	hang("rcpt", smtptest.Rcpt, false),
	hang("data", smtptest.Data, false),
	{Name: "drip-banner", Why: "A relay that sends a byte now and then must not keep its caller for ever: the limit is for the reply, not for the byte.", hangs: true,
		run: func(t *trial) { t.drip(smtptest.Banner) }},
	{Name: "drip-ehlo", Why: "A reply of several lines that comes a byte at a time is one reply, and has one limit.", hangs: true,
		run: func(t *trial) { t.drip(smtptest.Ehlo) }},
	{Name: "drip-final", Why: "A reply to the message that comes a byte at a time comes too late in the end: the message may be stored, so it is an error, and not sent again.", hangs: true,
		run: func(t *trial) {
			t.drip(smtptest.EndOfData)
			if t.hung.Load() {
				t.stored(1)
			}
		}},
	{Name: "endless-reply", Why: "A reply without an end must not keep its caller, nor fill his memory.", hangs: true,
		run: func(t *trial) {
			t.endless(strings.Repeat("250-and another line\r\n", 50_000))
		}},
	{Name: "endless-line", Why: "A line without an end must not keep its caller, nor fill his memory.", hangs: true,
		run: func(t *trial) {
			t.endless("250-" + strings.Repeat("x", 1<<20))
		}},
	{Name: "slow-relay", Why: "A relay that needs a moment for each reply is slow, not dead.",
		run: func(t *trial) {
			for _, s := range []smtptest.Stage{smtptest.Banner, smtptest.Ehlo, smtptest.Mail, smtptest.Rcpt, smtptest.Data, smtptest.EndOfData} {
				t.server.On(s).Delay(100 * time.Millisecond)
			}
			t.text("Hello.\r\n")
		}},
}

func hang(name string, stage smtptest.Stage, secure bool) Case {
	return Case{Name: "hang-" + name, Why: "A relay that hangs at " + stage.String() + " must not keep its caller beyond his context, and has not accepted the message.",
		secure: secure, hangs: true,
		run: func(t *trial) {
			t.hangAt(t.server.On(stage))
			t.refused(t.send("Hello.\r\n", bob))
			t.stored(0)
		}}
}

// reached notes that the relay is where it hangs.
func (t *trial) reached(*smtptest.Event) bool {
	t.hung.Store(true)
	return true
}

// endless sends a reply that takes longer than anybody waits, at a rate that doesn't keep the
// machine busy.
func (t *trial) endless(reply string) {
	const piece = 1000
	var at []int
	for i := piece; i < len(reply); i += piece {
		at = append(at, i)
	}
	t.server.On(smtptest.Ehlo).If(t.reached).Raw(reply).Segments(at...).Pause(20 * time.Millisecond)
	t.refused(t.send("Hello.\r\n", bob))
	t.stored(0)
}

// drip lets a reply take longer than anybody waits.
func (t *trial) drip(stage smtptest.Stage) {
	t.server.On(stage).If(t.reached).Drip(300 * time.Millisecond)
	t.refused(t.send("Hello.\r\n", bob))
	t.end()
}

// What becomes of the message that follows another.
var reuseCases = []Case{
	reuse("idle-fin", "closes it", func(t *trial) *smtptest.Rule { return t.server.On(smtptest.Idle).Delay(idleFor).DropFIN() }),
	reuse("idle-rst", "resets it", func(t *trial) *smtptest.Rule { return t.server.On(smtptest.Idle).Delay(idleFor).Drop() }),
	reuse("idle-421", "says 421 and closes it", func(t *trial) *smtptest.Rule {
		return t.server.On(smtptest.Idle).Delay(idleFor).Reply(421, "4.4.2 Idle for too long")
	}),
	reuse("idle-421-segment", "says 421 in the segment of its 250, and closes it", func(t *trial) *smtptest.Rule {
		return t.server.On(smtptest.EndOfData).Then("421 4.3.2 Going down\r\n").ThenClose()
	}),
	{Name: "next-421", Why: "A relay that says 421 to the second MAIL of a connection has had enough of the connection, not of mail: it is sent over another one.",
		run: func(t *trial) {
			t.server.On(smtptest.Mail).If(func(ev *smtptest.Event) bool { return ev.Transaction > 1 }).Reply(421, "4.7.0 Too many messages on this connection")
			t.accepted(t.send("First.\r\n", bob))
			t.accepted(t.send("Second.\r\n", carol))
			t.two()
		}},
	{Name: "after-restart", Why: "A relay that was restarted takes the next message, whatever was kept from before; it may offer less now.",
		run: func(t *trial) {
			t.accepted(t.send("First.\r\n", bob))
			t.server.SetExtensions("SIZE")
			if err := t.server.Restart(); err != nil {
				t.failf("%v", err)
			}
			t.accepted(t.send("Second.\r\n", carol))
			t.two()
		}},
	{Name: "after-refused-recipient", Why: "The recipients of a message are its own: none is left over from the one before, which was refused.",
		run: func(t *trial) {
			t.server.On(smtptest.Rcpt).For(gone).Times(1).Reply(550, "5.1.1 No such user")
			t.refused(t.send("First.\r\n", gone))
			t.accepted(t.send("Second.\r\n", carol))
			t.once("Second.\r\n", carol)
		}},
	{Name: "after-refused-data", Why: "Behind a refused DATA the relay still has the envelope: without RSET the next message goes to its recipients, too.",
		run: func(t *trial) {
			t.server.On(smtptest.Data).Times(1).Reply(451, "4.3.0 Not now")
			t.refused(t.send("First.\r\n", bob))
			t.accepted(t.send("Second.\r\n", carol))
			t.once("Second.\r\n", carol)
		}},
	{Name: "after-refused-rset", Why: "A connection on which RSET is refused is of no use any more: the next message takes another one.",
		run: func(t *trial) {
			t.server.On(smtptest.Data).Times(1).Reply(451, "4.3.0 Not now")
			t.server.On(smtptest.Rset).Reply(500, "5.5.1 What?")
			t.refused(t.send("First.\r\n", bob))
			t.accepted(t.send("Second.\r\n", carol))
			t.once("Second.\r\n", carol)
		}},
	{Name: "after-refused-message", Why: "A refused message is no reason to refuse the next one.",
		run: func(t *trial) {
			t.server.On(smtptest.EndOfData).Times(1).Reply(554, "5.7.1 Spam")
			t.refused(t.send("First.\r\n", bob))
			t.accepted(t.send("Second.\r\n", carol))
			t.once("Second.\r\n", carol)
		}},
}

func reuse(name, what string, rule func(*trial) *smtptest.Rule) Case {
	return Case{Name: name, Why: "A relay that " + what + " while a connection waits for the next message is no error: it is sent over another one, once.",
		run: func(t *trial) {
			r := rule(t).Times(1)
			t.accepted(t.send("First.\r\n", bob))
			// Over when the relay has closed the connection, or the sender has.
			within(3*idleFor, func() bool { return r.Fired() > 0 || t.server.Stats().Active == 0 })
			<-time.After(50 * time.Millisecond)
			t.accepted(t.send("Second.\r\n", carol))
			t.two()
		}}
}

// two expects both messages of a case, once each.
func (t *trial) two() {
	if msgs := t.stored(2); len(msgs) == 2 {
		t.same(msgs[0], "First.\r\n", bob)
		t.same(msgs[1], "Second.\r\n", carol)
	}
}
