package conformance

import (
	"fmt"
	"strings"

	"github.com/smtplb/smtplb/smtptest"
)

// stages are where a relay can refuse a message.
var stages = []struct {
	stage smtptest.Stage
	name  string
	where string
	about bool // the refusal is about the message, and as permanent as its code; else it may be survived
}{
	{smtptest.Banner, "banner", "in the place of a greeting", false},
	{smtptest.Ehlo, "ehlo", "to EHLO", false},
	{smtptest.Mail, "mail", "to MAIL", true},
	{smtptest.Rcpt, "rcpt", "to the only RCPT", true},
	{smtptest.Data, "data", "to DATA", true},
	{smtptest.EndOfData, "final", "to the message", true},
}

// replyCases are about what the relay says.
func replyCases() []Case {
	var all []Case
	for _, s := range stages {
		for _, kind := range []struct {
			name string
			code int
			text string
			why  string
		}{
			{"4xx", 451, "4.3.0 Try again later", "is an error, and worth sending again later"},
			{"5xx", 554, "5.0.0 No", "is an error, and final"},
			{"421", 421, "4.3.2 Going down", "is an error, worth sending again later, and the end of the connection"},
		} {
			why := kind.why
			if !s.about {
				why = "is an error, unless the sender can do without; it says nothing about the message"
			}
			all = append(all, Case{
				Name: s.name + "-" + kind.name,
				Why:  fmt.Sprintf("A %s %s %s.", kind.name, s.where, why),
				run: func(t *trial) {
					rule := t.server.On(s.stage).Reply(kind.code, kind.text)
					err := t.send("Hello.\r\n", bob)
					if s.stage == smtptest.Ehlo && err == nil {
						t.once("Hello.\r\n", bob) // with HELO
						return
					}
					t.refused(err)
					if s.about {
						t.temporary(err, kind.code < 500)
					}
					t.stored(0)
					if rule.Fired() == 0 {
						t.failf("the sender never came as far")
					}
				},
			})
		}
	}
	return append(all, otherReplyCases...)
}

var otherReplyCases = []Case{
	{Name: "one-recipient-refused", Why: "One refused recipient among several must be reported, whether or not the others get their mail.",
		run: func(t *trial) {
			t.server.On(smtptest.Rcpt).For(gone).Reply(550, "5.1.1 No such user")
			t.refused(t.send("Hello.\r\n", bob, gone, carol))
			t.end()
			msgs := t.server.Messages()
			if len(msgs) > 1 {
				t.failf("stored %d times", len(msgs))
			}
			for _, m := range msgs {
				t.same(m, "Hello.\r\n", bob, carol)
			}
		}},
	{Name: "all-recipients-refused", Why: "With all recipients refused there is nobody to send to: no message, and an error.",
		run: func(t *trial) {
			t.server.On(smtptest.Rcpt).Reply(550, "5.1.1 No such user")
			err := t.send("Hello.\r\n", bob, carol)
			t.refused(err)
			t.temporary(err, false)
			t.stored(0)
		}},
	{Name: "354-to-nobody", Why: "A relay that says 354 although it refused every recipient must not be sent the message: it might take a lone dot for one.",
		run: func(t *trial) {
			t.server.On(smtptest.Rcpt).Reply(550, "5.1.1 No such user")
			t.server.On(smtptest.Data).Reply(354, "Go ahead")
			t.server.On(smtptest.EndOfData).Reply(250, "2.0.0 Ok")
			t.refused(t.send("Hello.\r\n", bob))
			t.stored(0)
		}},
	{Name: "multi-line", Why: "Every reply may have several lines (RFC 5321 §4.2.1).",
		run: func(t *trial) {
			t.server.On(smtptest.Banner).Reply(220, "mx.test\nNo spam, please\nbye")
			for _, s := range []smtptest.Stage{smtptest.Mail, smtptest.Rcpt, smtptest.EndOfData} {
				t.server.On(s).Reply(250, "2.0.0 one\n2.0.0 two\nthree")
			}
			t.server.On(smtptest.Data).Reply(354, "one\ntwo")
			t.text("Hello.\r\n")
		}},
	{Name: "bare-code", Why: "A code without a text is a reply (RFC 5321 §4.2), and what some relays send.",
		run: func(t *trial) {
			for _, s := range []smtptest.Stage{smtptest.Mail, smtptest.Rcpt, smtptest.EndOfData} {
				t.server.On(s).Raw("250\r\n")
			}
			t.text("Hello.\r\n")
		}},
	{Name: "segments", Why: "TCP knows no messages: a reply may come in pieces, cut anywhere.",
		run: func(t *trial) {
			for _, s := range []smtptest.Stage{smtptest.Banner, smtptest.Ehlo, smtptest.Mail, smtptest.Rcpt, smtptest.Data, smtptest.EndOfData} {
				t.server.On(s).Segments(1, 3, 4, 10)
			}
			t.text("Hello.\r\n")
		}},
	{Name: "mixed-codes-rcpt", Why: "The lines of a reply must have one code (RFC 5321 §4.2.1): 250-… 550 … is no success, and nothing more is to be waited for.", hangs: true,
		run: func(t *trial) {
			t.server.On(smtptest.Rcpt).If(t.reached).Raw("250-ok\r\n550 5.1.1 No such user\r\n")
			t.refused(t.send("Hello.\r\n", bob))
		}},
	{Name: "mixed-codes-final", Why: "A reply to the message whose lines have different codes accepts nothing.", hangs: true,
		run: func(t *trial) {
			t.server.On(smtptest.EndOfData).If(t.reached).Raw("250-checking\r\n554 5.7.1 Spam\r\n").Unstored()
			t.refused(t.send("Hello.\r\n", bob))
			t.stored(0)
		}},
	{Name: "no-code", Why: "What is not a reply is not a success.",
		run: func(t *trial) {
			t.server.On(smtptest.EndOfData).Raw("ok, queued\r\n")
			t.refused(t.send("Hello.\r\n", bob))
			t.stored(0)
		}},
	{Name: "3xx-to-message", Why: "Only 2xx accepts a message (RFC 5321 §4.2.1).",
		run: func(t *trial) {
			t.server.On(smtptest.EndOfData).Reply(354, "Go on")
			t.refused(t.send("Hello.\r\n", bob))
			t.stored(0)
		}},
	{Name: "2xx-to-data", Why: "Only 354 asks for the message: after a 250 relay and sender are out of step, and the next reply belongs to something else.",
		run: func(t *trial) {
			t.server.On(smtptest.Data).Reply(250, "2.0.0 Ok")
			t.refused(t.send("Hello.\r\n", bob))
			t.stored(0)
		}},
	{Name: "quit-fails", Why: "The message was accepted with the 250: whatever becomes of QUIT, an error would make the caller send it twice.",
		run: func(t *trial) {
			t.server.On(smtptest.Quit).Drop()
			t.text("Hello.\r\n")
		}},
	{Name: "quit-refused", Why: "The message was accepted with the 250: a refusal of QUIT is nobody's concern.",
		run: func(t *trial) {
			t.server.On(smtptest.Quit).Reply(500, "5.5.1 What?")
			t.text("Hello.\r\n")
		}},
	{Name: "rset-refused", Why: "A message that was accepted stays so, and the next one is sent, whatever becomes of an RSET between them.",
		run: func(t *trial) {
			t.server.On(smtptest.Rset).Reply(451, "4.3.0 Not now")
			t.accepted(t.send("First.\r\n", bob))
			t.accepted(t.send("Second.\r\n", carol))
			t.two()
		}},
	{Name: "hang-up-after-250", Why: "The message was accepted with the 250: a relay that hangs up behind it has done what it should.",
		run: func(t *trial) {
			t.server.On(smtptest.EndOfData).ThenClose()
			t.text("Hello.\r\n")
		}},
	{Name: "long-reply", Why: "A relay may explain itself: 100 lines are a reply yet.",
		run: func(t *trial) {
			t.server.On(smtptest.EndOfData).Reply(250, strings.Repeat("2.0.0 blah\n", 99)+"2.0.0 Ok")
			t.text("Hello.\r\n")
		}},
}
