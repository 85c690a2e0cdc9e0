package smtplb_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/smtplb/smtplb"
)

// What stands for a choice has a name, each its own; what is none has its number.
func TestNames(t *testing.T) {
	for want, list := range map[string][]any{
		"[deliver fail defer discard default RouteAction(5)]": {smtplb.RouteDeliver, smtplb.RouteFail, smtplb.RouteDefer, smtplb.RouteDiscard, smtplb.RouteDefault, smtplb.RouteAction(5)},
		"[recipients messages WarmupUnit(255)]":               {smtplb.WarmupRecipients, smtplb.WarmupMessages, smtplb.WarmupUnit(255)},
		"[daily delivered WarmupAdvance(2)]":                  {smtplb.AdvanceDaily, smtplb.AdvanceDelivered, smtplb.WarmupAdvance(2)},
		"[group tier WarmupOverflow(2)]":                      {smtplb.OverflowGroup, smtplb.OverflowTier, smtplb.WarmupOverflow(2)},
		"[text strict lenient LineEndings(3)]":                {smtplb.LineEndingsText, smtplb.LineEndingsStrict, smtplb.LineEndingsLenient, smtplb.LineEndings(3)},
		"[messages recipients connections Unit(3)]":           {smtplb.Messages, smtplb.Recipients, smtplb.Connections, smtplb.Unit(3)},
	} {
		if got := fmt.Sprint(list); got != want {
			t.Errorf("%s; wanted %s", got, want)
		}
		if slices.ContainsFunc(list, func(x any) bool { _, ok := x.(fmt.Stringer); return !ok }) {
			t.Errorf("%T has no String", list[0])
		}
	}
}
