package smtplb

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/smtplb/smtplb/internal/backoff"
	"github.com/smtplb/smtplb/internal/reply"
)

// Rule tells what refusals like it mean for how much mail a relay is given from then on. What becomes of the message that was refused is not a rule's business.
//
// The first rule that a refusal is like counts: of the caller's, then of the relay's Profile, then of those that are built in, which know the replies of common services and mailbox providers. Replies other than 4xx and 5xx are
// never looked at. At least one of Match, Code and Enhanced must be set.
type Rule struct {
	Match    string // regular expression (RE2) found in the reply's text, in any case, the text's lines joined by blanks. Enhanced codes are part of the text
	Code     int    // 400 to 599, or 4 or 5 for all that begin so; 0: any
	Enhanced string // enhanced status code "4.7.28"; "*" in place of a number is any, as in "4.7.*". "": any, or none
	Stage    Stage  // where the reply came; "": anywhere

	Threshold int           // acts with this many matches within Per, and from then on as long as there are so many; default 1. One that doesn't act yet is still a match: no other rule is looked at
	Per       time.Duration // needed where Threshold is above 1; at most 24 hours

	Action   RuleAction
	Provider bool          // it says something about mail for this recipient's mailbox provider alone, not about all that the relay gets
	For      time.Duration // how long the action lasts, or nothing is sent, instead of what the reply says or is usual; at most 24 hours. 0: what the reply says, else what is usual
}

// RuleAction is what a Rule does.
type RuleAction uint8

// The actions.
const (
	RuleThrottle    RuleAction = iota // messages come too fast: half the rate and half the connections, from where they grow again
	RuleConnections                   // half the connections; so many aren't tried again for an hour
	RuleQuota                         // nothing is sent for an hour, then one message in each hour until one is taken
	RuleGreylist                      // a 4xx at RCPT: the recipient again later, over the same relay
	RuleBackOff                       // a tenth of the rate, over one connection, until ten messages in a row were taken, a minute at the least and 30 at the most
	RuleBlock                         // refused, whatever the amount: nothing follows
	RuleIgnore                        // nothing follows, and no rule behind this one is looked at
)

var ruleActions = [...]string{"throttle", "connections", "quota", "greylist", "back-off", "block", "ignore"}

// String returns the action in lower case.
func (a RuleAction) String() string {
	if int(a) < len(ruleActions) {
		return ruleActions[a]
	}
	return "RuleAction(" + strconv.Itoa(int(a)) + ")"
}

const (
	maxRulesOf     = 200 // rules in a list: each refusal may have to be held against all of them
	maxMatch       = 1000
	maxThreshold   = 1000
	longestRule    = 24 * time.Hour
	leastRule      = time.Millisecond
	anyInPattern   = "*"
	enhancedNumber = 999
)

// compileRules adds the faults of rules to f, and returns them as backoff wants them; the list at path is theirs.
func compileRules(rules []Rule, path string, f *faults) []backoff.Rule {
	if len(rules) > maxRulesOf {
		f.add(path, "has %d rules; at most %d", len(rules), maxRulesOf)
		return nil
	}
	list := make([]backoff.Rule, len(rules))
	for i := range rules {
		list[i] = rules[i].compile(fmt.Sprintf("%s[%d]", path, i), f)
	}
	return list
}

func (x *Rule) compile(path string, f *faults) backoff.Rule {
	r := backoff.Rule{Code: x.Code, Threshold: x.Threshold, Per: x.Per, For: x.For}
	if x.Match == "" && x.Code == 0 && x.Enhanced == "" {
		f.add(path, "is like every refusal; one of Match, Code and Enhanced is needed")
	}
	if x.Provider {
		r.Scope = backoff.Provider
	}
	if len(x.Match) > maxMatch {
		f.add(path+".Match", "has %d bytes; at most %d", len(x.Match), maxMatch)
	} else if x.Match != "" {
		var err error
		if r.Match, err = regexp.Compile("(?i)" + x.Match); err != nil {
			_, err = regexp.Compile(x.Match) // so that it tells of the expression as it was written
			f.add(path+".Match", "%v", err)
		}
	}
	if x.Code != 0 && x.Code != 4 && x.Code != 5 && (x.Code < 400 || x.Code > 599) {
		f.add(path+".Code", "is %d; it must be from 400 to 599, or 4 or 5 for all that begin so", x.Code)
	}
	var err error
	if r.Enhanced, err = parsePattern(x.Enhanced); err != nil {
		f.add(path+".Enhanced", "%q: %v", x.Enhanced, err)
	} else if class := int(r.Enhanced.Class); class > 0 && x.Code > 0 && firstDigit(x.Code) != class-1 {
		f.add(path+".Enhanced", "%q never comes with code %d", x.Enhanced, x.Code)
	}
	if x.Stage != "" {
		switch s := stageNamed(x.Stage); {
		case s == reply.StageNone:
			f.add(path+".Stage", "%q is none", x.Stage)
		case s < reply.StageBanner:
			f.add(path+".Stage", "there are no replies at %q", x.Stage)
		default:
			r.Stage = s
		}
	}
	switch {
	case x.Threshold < 0 || x.Threshold > maxThreshold:
		f.add(path+".Threshold", "is %d; it must be from 0 to %d (0: 1)", x.Threshold, maxThreshold)
	case x.Threshold > 1 && x.Per == 0:
		f.add(path+".Per", "is needed with a Threshold")
	case x.Threshold <= 1 && x.Per != 0:
		f.add(path+".Per", "is of a Threshold above 1")
	}
	for _, d := range []struct {
		field string
		value time.Duration
	}{{"Per", x.Per}, {"For", x.For}} {
		switch {
		case d.value < 0:
			f.add(path+"."+d.field, "is negative")
		case d.value > 0 && d.value < leastRule:
			f.add(path+"."+d.field, "is %v; a millisecond is the least (30 is 30ns: write 30*time.Second)", d.value)
		case d.value > longestRule:
			f.add(path+"."+d.field, "is %v; at most %v", d.value, longestRule)
		}
	}
	switch x.Action {
	case RuleThrottle:
		r.Kind = backoff.Throttle
	case RuleConnections:
		r.Kind = backoff.Connections
	case RuleQuota:
		r.Kind = backoff.Quota
	case RuleGreylist:
		r.Kind = backoff.Greylist
		if x.Stage != "" && x.Stage != StageRcpt {
			f.add(path+".Action", "greylisting is of a recipient: Stage is %q", StageRcpt)
		}
	case RuleBackOff:
		r.Kind, r.BackOff = backoff.Throttle, true
	case RuleBlock:
		r.Kind = backoff.Block
	case RuleIgnore:
	default:
		f.add(path+".Action", "%d is none", x.Action)
	}
	return r
}

func firstDigit(code int) int {
	if code >= 100 {
		return code / 100
	}
	return code
}

var errPattern = errors.New(`must be like "4.7.28" or "4.7.*", of class 4 or 5`)

// parsePattern reads Rule.Enhanced.
func parsePattern(s string) (p backoff.Pattern, err error) {
	if s == "" {
		return p, nil
	}
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return p, errPattern
	}
	for i, to := range []*uint16{&p.Class, &p.Subject, &p.Detail} {
		if parts[i] == anyInPattern {
			continue
		}
		n, err := strconv.ParseUint(parts[i], 10, 16)
		if err != nil || n > enhancedNumber || len(parts[i]) > 3 || i == 0 && n != 4 && n != 5 {
			return backoff.Pattern{}, errPattern
		}
		*to = uint16(n) + 1
	}
	if p == (backoff.Pattern{}) {
		return p, errPattern // "*.*.*" says nothing
	}
	return p, nil
}

// stageNamed is the stage that the API calls s; StageNone: there is none.
func stageNamed(s Stage) reply.Stage {
	for x := reply.StageDial; x <= reply.StageFinal; x++ {
		if x.String() == string(s) {
			return x
		}
	}
	return reply.StageNone
}
