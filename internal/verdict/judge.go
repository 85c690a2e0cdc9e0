package verdict

import "github.com/smtplb/smtplb/internal/reply"

// Judge says what f means. Where the wording of a reply has to decide, it leans to the side that loses no mail and sends none twice:
// Accepted needs a 2xx to the message, Unknown is all that is left when nothing readable came after the commit point, and a refusal that
// is clearly not about the message or its recipient lets another relay try.
//
// f is about one reply, or the lack of one. Which recipients it concerns is for the caller to know: a 421 at RCPT concerns all that were
// not refused with a 5xx, a 4xx only its own. A Failure other than FailNone stands for itself, and Reply is not looked at.
//
// A reply with which the conversation simply goes on (2xx before DATA, 354, 334) settles nothing: Ignore, NotCounted.
// Section numbers without a document are RFC 5321's; "table" is that of specs/session.md §3.
func Judge(f Fact) Verdict {
	if f.Stage == reply.StageReset || f.Stage == reply.StageQuit {
		// Table, last row: the message was settled before. Only a 2xx to RSET leaves a connection that can be used.
		return Verdict{Move: Ignore, Discard: f.Stage == reply.StageQuit || f.Failure != reply.FailNone || !f.Reply.Positive()}
	}
	if f.Stage > reply.StageQuit {
		f.Stage = reply.StageNone // no stage at all: nothing that is said there settles a message
	}
	// Waiting for the final reply is, by its nature, behind the commit point.
	f.Committed = f.Committed || f.Stage == reply.StageFinal

	switch r := f.Reply; {
	case f.Failure != reply.FailNone || r.Code == 0:
		return judgeFailure(f)
	case f.Committed && f.Stage < reply.StageMail:
		// The reply belongs to another conversation than the one that carried the message, and can't settle it.
		return Verdict{Move: Unknown, Discard: true}
	case r.Positive():
		return judgePositive(f)
	case r.Intermediate():
		if r.Code == 354 && f.Stage == reply.StageData || r.Code == 334 && f.Stage == reply.StageAuth {
			return Verdict{Move: Ignore}
		}
		return outOfStep(f)
	case r.Temporary():
		return judgeTemporary(f)
	case r.Permanent():
		return judgePermanent(f)
	}
	return outOfStep(f) // not a code that the reader lets through
}

// judgePositive: §4.2.1, 2yz.
func judgePositive(f Fact) Verdict {
	switch f.Stage {
	case reply.StageFinal:
		return Verdict{Move: Accepted, Blame: Answered} // §4.2.5: the relay is responsible from here on
	case reply.StageBanner, reply.StageHello, reply.StageStartTLS, reply.StageAuth, reply.StageMail, reply.StageRcpt:
		return Verdict{Move: Ignore}
	}
	return outOfStep(f) // to DATA (§4.1.1.4 knows only 354), or before the terminator: whatever it answers, it is not this message
}

// outOfStep is a reply that can't belong where it came: the next one would be taken for the answer to something else.
func outOfStep(f Fact) Verdict {
	v := Verdict{Move: NextRelay, Blame: Fault, Discard: true}
	if f.Committed {
		v.Move = Unknown
	}
	return v
}

// stale reports whether all that f tells is that the relay gave up an idle connection (§3.8 lets it do so with a 421, §4.5.3.2.7 after
// its timeout). RFC 9112 §9.3.1 and net/http draw the same line: nothing was received on a connection that had been idle.
func stale(f Fact) bool {
	return f.Reused && f.First && !f.Committed && f.Stage >= reply.StageMail &&
		(f.Failure == reply.FailEOF || f.Failure == reply.FailReset || f.Failure == reply.FailNone && f.Reply.Code == 421)
}

// judgeFailure: there is no reply. Before the commit point the relay can't have accepted the message, so another may have it; after
// it nobody knows (RFC 1047). Whose fault it was does not depend on that.
func judgeFailure(f Fact) Verdict {
	if stale(f) {
		return Verdict{Move: Redial, Discard: true}
	}
	v := Verdict{Move: NextRelay, Blame: Fault, Discard: true}
	switch f.Failure {
	case reply.FailNone: // there is nothing to judge
		v.Blame = NotCounted
	case reply.FailTimeout:
		if f.Shortened && !f.LongWait { // we gave it less than its due
			v.Blame = NotCounted
		}
	case reply.FailCertificate:
		v.Blame = ConfigFault // it won't mend itself; never plain text instead
	case reply.FailAuth:
		v.Blame = AuthFault
	case reply.FailToken, reply.FailLocal: // not the relay's fault; another relay's credentials may come from elsewhere, and it may have an idle connection
		v.Blame = NotCounted
	case reply.FailCapability:
		switch f.Stage {
		case reply.StageAuth: // no AUTH, or no mechanism in common: the credentials can't be used here
			v.Blame = AuthFault
		case reply.StageMail, reply.StageRcpt, reply.StageData: // 8BITMIME, SMTPUTF8, SIZE …: nothing was sent, nothing is wrong (specs/session.md §6.9)
			v = Verdict{Move: NextRelay, Need: NeedCapability}
		}
	case reply.FailCanceled, reply.FailSource: // ours
		v.Move, v.Blame = Deferred, NotCounted
	case reply.FailDeadline:
		v.Move = Deferred
		if !f.LongWait {
			v.Blame = NotCounted
		}
	}
	if f.Committed {
		v.Move, v.Need, v.Discard = Unknown, NeedNothing, true
	}
	return v
}

// judgeTemporary: §4.2.1, 4yz. It is as definite as a 5yz: the relay has not accepted, so another may try.
func judgeTemporary(f Fact) Verdict {
	if stale(f) {
		return Verdict{Move: Redial, Discard: true}
	}
	r := f.Reply
	t := fold(r.Text)
	v := Verdict{Move: NextRelay, Blame: Answered}
	switch {
	case r.Code == 421: // §3.8: the relay closes the connection
		v.Blame, v.Discard = Fault, true
	case f.Stage < reply.StageMail: // table: F + X
		v.Blame, v.Discard = Fault, true
	case f.Stage == reply.StageRcpt && r.Code == 452 && tooManyRecipients(r, &t):
		v.Move = Again // §4.5.3.1.10: those that were taken are fine, the rest want a transaction of their own
		return v
	case f.Stage == reply.StageRcpt && t.greylisted():
		// RFC 6647: another relay would begin to wait anew, and a pool that rotates would wait for ever.
		return Verdict{Move: Deferred, Blame: Answered, Greylist: true}
	case f.Stage == reply.StageBody: // the relay gave up on us, and half a message lies in the connection
		v.Discard = true
	}
	switch {
	case t.connectionSpent(): // this connection is used up, the relay is well
		v.Blame, v.Discard = CoolDown, true
	case quotaCode(f.Stage, r), sendingQuota(r, &t):
		v.Blame = CoolDown
	case rateCode(r), sendingRate(r, &t), recipientRate(r, &t):
		v.Blame = Throttle
	case systemCode(r.Enhanced):
		v.Blame = Fault
	}
	return v
}

// quotaCode: 452 4.5.3 is RFC 3463's "too many recipients", and at MAIL, where there are none yet, a quota.
func quotaCode(stage reply.Stage, r reply.Reply) bool {
	return stage == reply.StageMail && r.Code == 452 && (is(r.Enhanced, 5, 3) || leads(r.Text, "5.5.3"))
}

// rateCode: codes that ask for less whatever the text says.
func rateCode(r reply.Reply) bool {
	e := r.Enhanced
	if r.Code == 432 { // Microsoft 365: concurrency; RFC 4954 §6 has it for a password transition, 4.7.12
		return !is(e, 7, 12)
	}
	switch e.Subject {
	case 3:
		return e.Detail == 2 && e.Class == 4 // system not accepting messages now
	case 4:
		return e.Detail == 5 && e.Class == 4 // system congestion
	case 7:
		switch e.Detail { // Gmail's unusual rate; Microsoft's "server busy" and reputation throttling
		case 28, 500, 650, 651, 652:
			return e.Class == 4
		}
	}
	return false
}

// systemCode: RFC 3463 §3.4, the relay's own trouble: other, full, misconfigured.
func systemCode(e reply.Enhanced) bool { return is(e, 3, 0) || is(e, 3, 1) || is(e, 3, 5) }

// sendingQuota and sendingRate: what the text says, unless the code says that a recipient is meant.
func sendingQuota(r reply.Reply, t *folded) bool {
	return t.submissionQuota() || t.quota() && !recipientCode(r.Enhanced)
}

func sendingRate(r reply.Reply, t *folded) bool { return t.rate() && !recipientCode(r.Enhanced) }

// recipientRate: Postfix's 450 4.7.1 for too many recipients in a time. Those of one transaction are told of with 452, and were looked at before; what is permanent is never about a time.
func recipientRate(r reply.Reply, t *folded) bool {
	return t.tooManyRecipientsFrom() && !recipientCode(r.Enhanced)
}

// recipientCode: RFC 3463 §3.2 and §3.3 speak of the recipient's address and mailbox. A full mailbox is no quota of the relay's.
// X.2.1 is left out: Google's relay answers 4.2.1 when the account sends too much.
func recipientCode(e reply.Enhanced) bool {
	return e.Subject == 1 || e.Subject == 2 && e.Detail != 0 && e.Detail != 1
}

// judgePermanent: §4.2.1, 5yz. The switch is the second table of specs/session.md §3 from top to bottom, the rows' enhanced codes
// before their basic codes and texts.
func judgePermanent(f Fact) Verdict {
	r, e := f.Reply, f.Reply.Enhanced
	t := fold(r.Text)

	var (
		here      = Verdict{Move: NextRelay, Blame: Answered, Refused: true}                   // this relay won't, another may
		coolDown  = Verdict{Move: NextRelay, Blame: CoolDown}                                  // this relay's quota
		auth      = Verdict{Move: NextRelay, Blame: AuthFault, Discard: true}                  // RFC 4954 §6
		permanent = Verdict{Move: Failed, Blame: Answered}                                     // tell the caller
		larger    = Verdict{Move: NextRelay, Blame: Answered, Refused: true, Need: NeedLarger} // RFC 1870 §6
		capable   = Verdict{Move: NextRelay, Blame: Answered, Refused: true, Need: NeedCapability}
		apart     = Verdict{Move: NextRelay, Blame: Answered, Refused: true, Apart: true} // this relay refuses this sender
	)
	rcpt := f.Stage == reply.StageRcpt
	// 5.7.8 and 5.7.9 are RFC 4954's, but after the message they are policy about the message (Yahoo's DMARC refusals say 554 5.7.9), and must
	// not close the relay to all others.
	authCode := f.Stage < reply.StageBody && (is(e, 7, 8) || is(e, 7, 9))
	authRefused := authCode || r.Code == 530 || r.Code == 534 || r.Code == 535 || r.Code == 538

	if f.Stage < reply.StageMail {
		// A refused connection never fails a message: nothing was said about it.
		switch {
		case authRefused:
			return auth
		case quotaEnhanced(e), sendingQuota(r, &t), sendingRate(r, &t):
			coolDown.Discard = true
			return coolDown
		case f.Stage == reply.StageAuth:
			return auth
		}
		return Verdict{Move: NextRelay, Blame: Fault, Discard: true}
	}

	v := permanent
	switch {
	// The enhanced codes.
	case rcpt && recipientRefused(e): // RFC 3463 §3.2, §3.3; RFC 7505 for 5.1.10
	case is(e, 1, 7), is(e, 1, 8), is(e, 7, 27): // the sender's address; RFC 7505 for 5.7.27
	case !rcpt && is(e, 3, 4): // message too big for the system
		v = larger
	case rcpt && is(e, 5, 3): // too many recipients
		v = Verdict{Move: Again, Blame: Answered}
	case is(e, 6, 7): // RFC 6531: non-ASCII address not permitted
		v = capable
	case authCode: // RFC 4954 §6
		v = auth
	case quotaEnhanced(e) && !t.sendAsDenied(): // 5.2.252 comes with both meanings
		v = coolDown

	// The basic codes and the texts.
	case r.Code == 552 && sendingQuota(r, &t): // neither a size nor a mailbox
		v = coolDown
	case r.Code == 552 && !rcpt && sizeMayBeMeant(e): // RFC 1870 §6.1
		v = larger
	case rcpt && r.Code == 552 && t.tooMany(), rcpt && t.tooManyRecipients() && !t.quota(): // §4.5.3.1.10: to be treated as 452
		v = Verdict{Move: Again, Blame: Answered}
	case rcpt && r.Code == 552: // §4.2.3: exceeded storage allocation
	case r.Code == 555: // §4.1.1.11: parameters of MAIL or RCPT not known
		v = capable
	case authRefused:
		v = auth
	case r.Code >= 500 && r.Code <= 504: // §4.2.2: we do not understand each other
		v = Verdict{Move: NextRelay, Blame: Answered, Discard: true}
	case sendingQuota(r, &t), sendingRate(r, &t):
		v = coolDown
	case t.refusesSender():
		v = apart

	// Any other 5xx.
	case f.Stage == reply.StageMail: // the relay's policy
		v = here
	case rcpt: // the recipient
	default: // the message, or policy, 5.7.1 among it
	}
	if (v == here || v == permanent) && !rcpt && e.Subject == 3 {
		v.Blame = Fault // RFC 3463 §3.4: the relay's own trouble, whatever becomes of the message
	}
	if f.Stage == reply.StageBody {
		v.Discard = true // half a message lies in the connection
	}
	return v
}

// recipientRefused: what a relay says of a recipient, and no other relay would change. 5.2.251 to 5.2.255 are Microsoft 365's
// throttling of the sender.
func recipientRefused(e reply.Enhanced) bool {
	switch e.Subject {
	case 1:
		return e.Detail >= 1 && e.Detail <= 4 || e.Detail == 6 || e.Detail == 10
	case 2:
		return e.Detail < 251 || e.Detail > 255
	}
	return false
}

// quotaEnhanced: enhanced codes that say in any text that the account has sent enough.
func quotaEnhanced(e reply.Enhanced) bool {
	switch e.Subject {
	case 1:
		return e.Detail == 90 // Microsoft 365: the daily limit for recipients
	case 2:
		return e.Detail >= 251 && e.Detail <= 255 // Microsoft 365: sender throttled
	case 4:
		return e.Detail == 5 // Google: daily sending quota
	case 7:
		return e.Detail == 232 || e.Detail == 233 || e.Detail == 236 // Microsoft 365: the tenant's quotas
	}
	return false
}

// sizeMayBeMeant: 552 is also what relays say of full mailboxes and forbidden content, and then their enhanced code says so.
func sizeMayBeMeant(e reply.Enhanced) bool {
	return e.IsZero() || e.Subject == 0 || e.Subject == 3 || is(e, 2, 3)
}

// tooManyRecipients: 452 at RCPT. 4.5.3, or the 5.5.3 that some relays send with it, or no more than the code itself, which §4.5.3.1.10
// defines so.
func tooManyRecipients(r reply.Reply, t *folded) bool {
	return is(r.Enhanced, 5, 3) || r.Enhanced.IsZero() && (r.Text == "" || leads(r.Text, "5.5.3") || t.tooManyRecipients() && !t.quota())
}

// is reports whether e is X.subject.detail; its class is always that of the reply.
func is(e reply.Enhanced, subject, detail uint16) bool {
	return e.Class != 0 && e.Subject == subject && e.Detail == detail
}

// leads reports whether text begins with the word code.
func leads(text, code string) bool {
	return len(text) >= len(code) && text[:len(code)] == code && (len(text) == len(code) || text[len(code)] == ' ')
}
