package verdict

import "bytes"

// Where codes don't tell, relays do so in words. What follows recognises the words that matter, and rather too few than too many:
// a phrase that is missed costs a little, one that is seen where it is not meant blames a relay for what it didn't do.

// folded is the beginning of a reply's text in one case and one line: enhanced codes at the lines' starts, addresses and runs of blanks
// are taken out (an address leaves an "@"), so that a phrase that is wrapped is found, and a recipient's name is not taken for a phrase.
type folded struct {
	n int
	b [maxFolded]byte
}

// maxFolded bounds the work that a relay can cause with a long text, in bytes.
const maxFolded = 1024

func fold(text string) (t folded) {
	if len(text) > maxFolded {
		text = text[:maxFolded]
	}
	b := t.b[:0] // never longer than text
	lineStart := true
	for i := 0; i < len(text); {
		if text[i] <= ' ' {
			lineStart = lineStart || text[i] == '\n'
			i++
			continue
		}
		j, address := i, false
		for ; j < len(text) && text[j] > ' '; j++ {
			address = address || text[j] == '@'
		}
		word := text[i:j]
		i = j
		if lineStart && looksEnhanced(word) {
			continue
		}
		lineStart = false
		if len(b) > 0 {
			b = append(b, ' ')
		}
		if address {
			b = append(b, '@')
			continue
		}
		for k := 0; k < len(word); k++ {
			c := word[k]
			if c >= 'A' && c <= 'Z' {
				c |= 0x20
			}
			b = append(b, c)
		}
	}
	t.n = len(b)
	return t
}

// looksEnhanced reports whether a word is digits and dots only, as an enhanced code is.
func looksEnhanced(word string) bool {
	for i := 0; i < len(word); i++ {
		if word[i] != '.' && (word[i] < '0' || word[i] > '9') {
			return false
		}
	}
	return len(word) >= 5 && word[1] == '.'
}

// phrases are what to look for: lower case, no blanks at the ends.
type phrases [][]byte

func list(s ...string) phrases {
	p := make(phrases, len(s))
	for i := range s {
		p[i] = []byte(s[i])
	}
	return p
}

func (t *folded) has(p phrases) bool {
	for _, x := range p {
		if bytes.Contains(t.b[:t.n], x) {
			return true
		}
	}
	return false
}

// hasWord reports whether one of p stands in the text between blanks or punctuation. A host name's parts are not words.
func (t *folded) hasWord(p phrases) bool {
	b := t.b[:t.n]
	for _, x := range p {
		for at := 0; ; {
			i := bytes.Index(b[at:], x)
			if i < 0 {
				break
			}
			at += i + len(x)
			if (at == len(x) || boundary(b, at-len(x)-1)) && (at == len(b) || boundary(b, at)) {
				return true
			}
		}
	}
	return false
}

// boundary reports whether b[i] ends a word: not a letter, digit or hyphen, nor a dot within a name.
func boundary(b []byte, i int) bool {
	switch c := b[i]; {
	case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_', c >= 0x80:
		return false
	case c == '.':
		return i+1 == len(b) || b[i+1] == ' '
	}
	return true
}

// greylisted: the words of Postgrey, SQLgrey, milter-greylist, rspamd, Exim's and Haraka's recipes. A bare 4.7.1 may as well be a client that is not
// wanted.
func (t *folded) greylisted() bool { return t.has(greyPhrases) || t.hasWord(greyWords) }

var (
	greyPhrases = list("greylist", "graylist", "grey-list", "gray-list", "grey list", "gray list", "postgrey", "sqlgrey")
	greyWords   = list("grey", "greyed", "grayed")
)

// connectionSpent: the connection has lasted, or carried, as much as the relay allows.
func (t *folded) connectionSpent() bool {
	return t.has(agePhrases) || t.has(perConnection) && t.hasWord(messageWords)
}

var (
	agePhrases = list(
		"connection expired", "session expired", "connection too long", "session too long", "open for too long", "open too long", "connected too long",
		"connection time limit", "session time limit", "maximum session time", "maximum session duration", "maximum connection time", "maximum connection age",
		"connection age", "session duration", "connection lifetime", "session lifetime",
	)
	perConnection = list("in this connection", "on this connection", "over this connection", "in this session", "per connection", "per session", "per smtp session", "per smtp connection")
	messageWords  = list("message", "messages", "mail", "mails", "email", "emails", "transactions", "deliveries")
)

// quota: the account has sent what it may send for now. A quota of the recipient's mailbox is another matter.
func (t *folded) quota() bool {
	return t.submissionQuota() || t.has(quotaPhrases) ||
		t.hasWord(periodWords) && t.hasWord(amountWords) && !t.has(receiverPhrases)
}

// submissionQuota: Exchange Online's words for a sender who has sent enough, or whose own mailbox is full of sent mail. The
// enhanced code may be one that speaks of a recipient elsewhere.
func (t *folded) submissionQuota() bool { return t.has(submissionPhrases) }

var (
	submissionPhrases = list("submission quota", "submissionquota", "storedrv.submission.exception:quotaexceeded")
	quotaPhrases      = list(
		"sending quota", "sending limit", "send quota", "send limit", "outbound quota", "sender quota", "quota for sending",
		"credits exceeded", "out of credit", "not enough credit", "insufficient credit", "no credits", // SendGrid and others that sell by number
	)
	periodWords     = list("daily", "hourly", "weekly", "monthly", "per day", "per hour", "per month", "24 hours", "24-hour")
	amountWords     = list("limit", "limits", "quota", "quotas", "exceeded", "exceeds", "allowance", "max", "maximum", "threshold")
	receiverPhrases = list("receiv")
)

// rate: the relay asks for less, or says that it has more to do than it can.
func (t *folded) rate() bool { return t.has(ratePhrases) || t.hasWord(rateWords) }

var (
	ratePhrases = list(
		"too many connection", "too many concurrent", "too many simultaneous", "too many smtp", "too many session", "too many open", "too many parallel",
		"too many message", "too many mails", "too many email", "too many e-mail", "too many request", "too many login", "too many auth commands", "too many new tls sessions", "too many transactions",
		"too much mail", "too fast", "too quickly", "too frequent", "slow down",
		"throttling", "throttled", "rate limit", "rate-limit", "ratelimit", "rate exceeded", "unusual rate", "at a rate that",
		"connections limit", "connection limit", "concurrent connections", "concurrency limit", "thread limit", "smtp relay limit", "limit on concurrent",
		"messages per second", "messages per minute", "emails per second", "emails per minute", "recipients per minute",
		"excessive volume", "unexpected volume", "unusual volume", "suspicious volume", "excessive rate",
		"server busy", "server too busy", "server is busy", "ports are busy", "too busy",
	)
	rateWords = list(
		"sending rate", "submission rate", "message rate", "connection rate",
		"rp-001", "rp-002", "rp-003", // Microsoft
		"[tss01]", "[tss02]", "[tss03]", "[tss04]", "[tss05]", "[tss09]", "[tss11]", "[ts01]", "[ts02]", "[ts03]", "[ts04]", // Yahoo
	)
)

// tooManyRecipients and tooMany: RCPT, where the rest may go in another transaction.
func (t *folded) tooManyRecipients() bool { return t.has(recipientPhrases) }
func (t *folded) tooMany() bool           { return t.has(tooManyPhrases) }

// tooManyRecipientsFrom: from this client, in a time; not in this message.
func (t *folded) tooManyRecipientsFrom() bool { return t.has(recipientRatePhrases) }

var (
	tooManyPhrases   = list("too many")
	recipientPhrases = list("too many recipient", "too many rcpt", "too many envelope recipient", "recipient limit", "recipients limit", "maximum number of recipients",
		"maximum recipients", "max recipients", "number of recipients exceed")
	recipientRatePhrases = list("too many recipients from")
)

// refusesSender: this relay won't have mail from this sender or this client, whoever the recipient is.
func (t *folded) refusesSender() bool {
	return t.has(clientPhrases) || t.has(senderPhrases) || t.sendAsDenied()
}

// sendAsDenied: Exchange's word for a sender that is not the account's.
func (t *folded) sendAsDenied() bool { return t.has(sendAsPhrases) }

var (
	// We may not relay here: Postfix, Exim, Exchange, Sendmail, qmail, hMailServer.
	clientPhrases = list(
		"relaying denied", "relay access denied", "relay denied", "relaying not allowed", "relaying not permitted", "relay not permitted", "not permitted to relay", "not allowed to relay",
		"not authorized to relay", "not authorised to relay", "unable to relay", "relaying is prohibited", "relaying prohibited", "relaying disallowed", "we do not relay", "not relaying",
		"allowed rcpthosts", "authentication required", "authentication is required", "client host rejected", "client host [",
	)
	// The sender is not ours: SES, SendGrid, Postfix's reject_sender_login_mismatch, Exim's sender verification, others.
	senderPhrases = list(
		"email address is not verified", "address not verified", "a verified sender", "not a verified", "unverified sender", "unverified domain",
		"sender not verified", "sender is not verified", "domain not verified", "domain is not verified", "sender verify failed", "sender verification failed", "not owned by",
		"sender not authorized", "sender not authorised", "sender is not authorized", "sender is not authorised", "sender unauthorized", "unauthorized sender",
		"not authorized to send", "not authorised to send", "sender not allowed", "sender is not allowed", "not allowed to send", "not authorized to use",
	)
	sendAsPhrases = list("sendasdenied", "not allowed to send as", "permissions to send as", "permission to send as")
)
