package backoff

import (
	"time"

	"github.com/smtplb/smtplb/internal/reply"
)

// Classify says what the reply r at the stage means for the amount of mail. A reply that is no refusal costs next to nothing.
//
// What becomes of the recipients and whose fault it was is judged elsewhere, and both agree: what is a Throttle, Connections or a Quota here counts there as a relay that wants less mail, and nothing else does but a connection
// that has carried what it may.
func (rules *Rules) Classify(stage reply.Stage, r *reply.Reply) Signal {
	if r.Code < 400 {
		return Signal{}
	}
	return rules.refusal(stage, r)
}

func (rules *Rules) refusal(stage reply.Stage, r *reply.Reply) Signal {
	if stage == reply.StageReset || stage == reply.StageQuit {
		return Signal{}
	}
	t := fold(r.Text)
	g := Signal{For: t.hint()}
	if x := rules.find(stage, r); x != nil {
		g.Kind, g.Scope, g.BackOff, g.Rule = x.Kind, x.Scope, x.BackOff, x
		if x.For > 0 {
			g.For = x.For
		}
	} else {
		g.Kind, g.Scope, g.BackOff = builtIn(stage, r, t)
	}
	if g.Kind != None {
		g.Reply = beginning(r)
	}
	return g
}

// builtIn goes by the enhanced code and the stage, then by the code and the stage, then by the first digit; where these leave it open, by the text.
func builtIn(stage reply.Stage, r *reply.Reply, t folded) (Kind, Scope, bool) {
	if r.Permanent() {
		return permanent(stage, r, t)
	}
	e, rcpt := r.Enhanced, stage == reply.StageRcpt
	switch {
	case rcpt && r.Code == 452 && tooManyRecipients(r, t): // RFC 5321 §4.5.3.1.10: the rest in another transaction
		return None, Account, false
	case rcpt && r.Code != 421 && t.greylisted(): // RFC 6647
		return Greylist, Account, false
	case t.connectionSpent(): // only this connection is
		return None, Account, false
	case stage == reply.StageMail && r.Code == 452 && (is(e, 5, 3) || leads(r.Text, "5.5.3")): // at RCPT it is the recipients' number
		return Quota, Account, false
	case t.quota() && !recipientCode(e) || t.submissionQuota():
		return Quota, Account, false
	case e.Class == 4 && e.Subject == 7 && (e.Detail == 28 || e.Detail == 500 || e.Detail >= 650 && e.Detail <= 652): // Gmail; Microsoft's "server busy", and a reputation
		return Throttle, Provider, false
	case r.Code == 432 && !is(e, 7, 12): // Microsoft 365; RFC 4954 §6 has it for a password transition
		return Connections, Account, false
	}
	if !recipientCode(e) {
		if kind, scope, backOff := t.amount(); kind != None {
			return kind, scope, backOff
		}
		if t.has(recipientRatePhrases) {
			return Throttle, Account, false
		}
	}
	if is(e, 3, 2) || is(e, 4, 5) { // RFC 3463 §3.4, §3.5: not accepting messages now; congestion
		return Throttle, Account, false
	}
	return None, Account, false
}

// permanent is builtIn for 5xx: what is said of a recipient, of the message or of the login comes first.
func permanent(stage reply.Stage, r *reply.Reply, t folded) (Kind, Scope, bool) {
	e, rcpt := r.Enhanced, stage == reply.StageRcpt
	authCode := stage < reply.StageBody && (is(e, 7, 8) || is(e, 7, 9))
	authRefused := authCode || r.Code == 530 || r.Code == 534 || r.Code == 535 || r.Code == 538
	if stage < reply.StageMail {
		if authRefused {
			return None, Account, false
		}
	} else {
		switch {
		case rcpt && recipientRefused(e):
			return None, Account, false
		case is(e, 1, 7), is(e, 1, 8), is(e, 7, 27): // the sender's address
			return Block, Account, false
		case !rcpt && is(e, 3, 4), rcpt && is(e, 5, 3), is(e, 6, 7), authCode: // size, recipients, SMTPUTF8, login
			return None, Account, false
		}
	}
	switch {
	case throttledSender(e):
		if stage >= reply.StageMail && t.sendAsDenied() { // 5.2.252 comes with both meanings
			return Block, Account, false
		}
		return Throttle, Account, false
	case usedUp(e):
		if stage >= reply.StageMail && t.sendAsDenied() {
			return Block, Account, false
		}
		return Quota, Account, false
	}
	if stage >= reply.StageMail {
		quota := t.quota() && !recipientCode(e) || t.submissionQuota()
		switch {
		case r.Code == 552:
			if quota {
				return Quota, Account, false
			}
			if !rcpt && sizeMayBeMeant(e) || rcpt {
				return None, Account, false
			}
		case rcpt && t.tooManyRecipients() && !t.quota():
			return None, Account, false
		}
		if r.Code == 555 || authRefused || r.Code >= 500 && r.Code <= 504 {
			return None, Account, false
		}
	}
	if t.quota() && !recipientCode(e) || t.submissionQuota() {
		return Quota, Account, false
	}
	if !recipientCode(e) {
		if kind, scope, backOff := t.amount(); kind != None {
			return kind, scope, backOff
		}
	}
	if stage >= reply.StageMail && t.refusesSender() {
		return Block, Account, false
	}
	return None, Account, false
}

// tooManyRecipients: 452 at RCPT, by its code or by its words.
func tooManyRecipients(r *reply.Reply, t folded) bool {
	return is(r.Enhanced, 5, 3) || r.Enhanced.IsZero() && (r.Text == "" || leads(r.Text, "5.5.3") || t.tooManyRecipients() && !t.quota())
}

// recipientCode: RFC 3463 §3.2, §3.3: the recipient's address and mailbox. X.2.1 is left out, as Google's relay says 4.2.1 of the account.
func recipientCode(e reply.Enhanced) bool {
	return e.Subject == 1 || e.Subject == 2 && e.Detail != 0 && e.Detail != 1
}

// recipientRefused: what no other relay would change.
func recipientRefused(e reply.Enhanced) bool {
	switch e.Subject {
	case 1:
		return e.Detail >= 1 && e.Detail <= 4 || e.Detail == 6 || e.Detail == 10
	case 2:
		return !throttledSender(e)
	}
	return false
}

// throttledSender: Microsoft 365's 5.2.251 to 5.2.255.
func throttledSender(e reply.Enhanced) bool {
	return e.Subject == 2 && e.Detail >= 251 && e.Detail <= 255
}

// usedUp: codes that say so in any words. Microsoft 365's daily limit for recipients and the tenant's quotas, Google's daily quota.
func usedUp(e reply.Enhanced) bool {
	return is(e, 1, 90) || is(e, 4, 5) || is(e, 7, 232) || is(e, 7, 233) || is(e, 7, 236)
}

// sizeMayBeMeant: 552 is also said of full mailboxes and forbidden content.
func sizeMayBeMeant(e reply.Enhanced) bool {
	return e.IsZero() || e.Subject == 0 || e.Subject == 3 || is(e, 2, 3)
}

// is reports whether e is X.subject.detail.
func is(e reply.Enhanced, subject, detail uint16) bool {
	return e.Class != 0 && e.Subject == subject && e.Detail == detail
}

// leads reports whether text begins with the word code.
func leads(text, code string) bool {
	return len(text) >= len(code) && text[:len(code)] == code && (len(text) == len(code) || text[len(code)] == ' ')
}

// beginning is the reply for people, short.
func beginning(r *reply.Reply) string {
	const most = 120
	s := r.String()
	if len(s) <= most {
		return s
	}
	cut := 0
	for i := range s { // not within a character
		if i > most {
			break
		}
		cut = i
	}
	return s[:cut] + "…"
}

// hintSlack is added to what a reply says to wait.
const hintSlack = 10 * time.Second
