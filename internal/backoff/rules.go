package backoff

import (
	"regexp"
	"time"

	"github.com/smtplb/smtplb/internal/reply"
)

// maxRules is how many rules State keeps matches of.
const maxRules = 1000

// A Rule says what a refusal means that is like it. The zero values of Match to Stage are like anything.
type Rule struct {
	Match    *regexp.Regexp // of the text, its lines joined by blanks
	Code     int            // 4 and 5 are all codes that begin so
	Enhanced Pattern
	Stage    reply.Stage

	Threshold int           // so many matches in Per before it means anything, with the last of them; 1 where it is 0
	Per       time.Duration // of Threshold

	Kind    Kind
	Scope   Scope
	BackOff bool
	For     time.Duration // instead of what the reply says; 0: that
}

// Pattern is like an enhanced code. Each part is the code's plus one, 0 is like any.
type Pattern struct{ Class, Subject, Detail uint16 }

func (p Pattern) matches(e reply.Enhanced) bool {
	return p == Pattern{} || !e.IsZero() && part(p.Class, e.Class) && part(p.Subject, e.Subject) && part(p.Detail, e.Detail)
}

func part(p, e uint16) bool { return p == 0 || p == e+1 }

// Rules are what replies are classified by. They don't change; nil are the built-in ones alone.
type Rules struct{ list []Rule }

// NewRules makes Rules that go by first, in its order, then by second, then by the built-in ones.
func NewRules(first, second []Rule) *Rules {
	r := &Rules{list: make([]Rule, 0, len(first)+len(second))}
	r.list = append(append(r.list, first...), second...)
	return r
}

// find returns the first rule that the reply is like.
func (rules *Rules) find(stage reply.Stage, r *reply.Reply) *Rule {
	if rules == nil {
		return nil
	}
	text := ""
	for i := range rules.list {
		x := &rules.list[i]
		if x.Stage != reply.StageNone && x.Stage != stage || x.Code != 0 && x.Code != r.Code && x.Code != r.Code/100 || !x.Enhanced.matches(r.Enhanced) {
			continue
		}
		if x.Match != nil {
			if text == "" {
				text = oneLine(r.Text)
			}
			if !x.Match.MatchString(text) {
				continue
			}
		}
		return x
	}
	return nil
}
