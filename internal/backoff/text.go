package backoff

import (
	"regexp"
	"strconv"
	"strings"
	"time"
)

// folded is the beginning of a reply's text in lower case and in one line. Enhanced codes at the lines' starts are taken out, and an address leaves an "@": a recipient's name must not be taken for a phrase.
type folded string

// maxFolded bounds the work that a relay can cause with a long text, in bytes.
const maxFolded = 1024

func fold(text string) folded {
	if len(text) > maxFolded {
		text = text[:maxFolded]
	}
	var b strings.Builder
	b.Grow(len(text))
	for line := range strings.SplitSeq(text, "\n") {
		start := true
		for word := range strings.FieldsFuncSeq(line, func(r rune) bool { return r <= ' ' }) {
			if start && looksEnhanced(word) {
				continue
			}
			start = false
			if b.Len() > 0 {
				b.WriteByte(' ')
			}
			if strings.IndexByte(word, '@') >= 0 {
				b.WriteByte('@')
				continue
			}
			for i := 0; i < len(word); i++ {
				c := word[i]
				if c >= 'A' && c <= 'Z' {
					c |= 0x20
				}
				b.WriteByte(c)
			}
		}
	}
	return folded(b.String())
}

// oneLine is what rules match: at most maxFolded bytes, lines joined by blanks.
func oneLine(text string) string {
	if len(text) > maxFolded {
		text = text[:maxFolded]
	}
	return strings.ReplaceAll(text, "\n", " ")
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

func (t folded) has(phrases []string) bool {
	for _, x := range phrases {
		if strings.Contains(string(t), x) {
			return true
		}
	}
	return false
}

// hasWord reports whether one of words stands in the text between blanks or punctuation. A host name's parts are not words.
func (t folded) hasWord(words []string) bool {
	for _, x := range words {
		for at := 0; ; {
			i := strings.Index(string(t[at:]), x)
			if i < 0 {
				break
			}
			at += i + len(x)
			if (at == len(x) || boundary(t, at-len(x)-1)) && (at == len(t) || boundary(t, at)) {
				return true
			}
		}
	}
	return false
}

// boundary reports whether t[i] ends a word: not a letter, digit or hyphen, nor a dot within a name.
func boundary(t folded, i int) bool {
	switch c := t[i]; {
	case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_', c >= 0x80:
		return false
	case c == '.':
		return i+1 == len(t) || t[i+1] == ' '
	}
	return true
}

// amount: too much at a time, or in a time.
func (t folded) amount() (Kind, Scope, bool) {
	switch {
	case t.hasWord(givenUpWords):
		return Throttle, Provider, true
	case t.has(providerPhrases), t.hasWord(providerWords):
		return Throttle, Provider, false
	case t.hasWord(connectionRateWords):
		return Throttle, Account, false
	case t.has(connectionPhrases):
		return Connections, Account, false
	case t.has(ratePhrases), t.hasWord(rateWords):
		return Throttle, Account, false
	}
	return None, Account, false
}

// quota: the account has sent what it may for now. A quota of the recipient's is another matter.
func (t folded) quota() bool {
	return t.submissionQuota() || t.has(quotaPhrases) || t.hasWord(periodWords) && t.hasWord(amountWords) && !t.has(receiverPhrases)
}

// submissionQuota: Exchange Online's words. The enhanced code may be one that speaks of a recipient elsewhere.
func (t folded) submissionQuota() bool { return t.has(submissionPhrases) }

func (t folded) greylisted() bool { return t.has(greyPhrases) || t.hasWord(greyWords) }

// connectionSpent: the connection has lasted, or carried, as much as the relay allows.
func (t folded) connectionSpent() bool {
	return t.has(agePhrases) || t.has(perConnection) && t.hasWord(messageWords)
}

func (t folded) tooManyRecipients() bool { return t.has(recipientPhrases) }
func (t folded) sendAsDenied() bool      { return t.has(sendAsPhrases) }
func (t folded) refusesSender() bool {
	return t.has(clientPhrases) || t.has(senderPhrases) || t.sendAsDenied()
}

// hint is how long the text says to wait, and a little more; 0 where it doesn't.
func (t folded) hint() time.Duration {
	m := hintPattern.FindStringSubmatch(string(t))
	if m == nil {
		return 0
	}
	var d time.Duration
	if m[3] != "" {
		for _, x := range m[3:6] {
			n, _ := strconv.Atoi(x)
			d = d*60 + time.Duration(n)*time.Second
		}
	} else {
		n, _ := strconv.Atoi(m[1])
		d = time.Duration(n) * time.Second
		switch m[2][0] {
		case 'm':
			d *= 60
		case 'h':
			d *= 3600
		}
	}
	return min(d+hintSlack, longestHint)
}

// hintPattern finds "try again in 92 seconds", "retry after 5 min", "come back in 00:04:59", "greylisted for 300 seconds". The numbers are bounded, so that nothing overflows.
var hintPattern = regexp.MustCompile(`(?:again|retry|wait|back|gr[ae]ylist(?:ed|ing)?)(?: [a-z]+,?){0,5}[ :=]+(?:(\d{1,6}) ?(s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?)\b|(\d\d):(\d\d):(\d\d)\b)`)
