package smtplb

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/smtplb/smtplb/internal/warmup"
)

// Warmup bounds what a new relay (or one whose address is new) sends each day, so that mailbox providers get to know it little by little. The zero value is none; naming a Start, a Curve or PerProvider begins one.
//
// A day is a UTC day, and has a stage; each stage has a cap. The cap is spread over the day: it begins with a twenty-fourth of it and is whole at 23:00. What the day is behind may be caught up with, by a twenty-fourth at once and the next a
// quarter of an hour later. What goes to a relay is counted when the relay is chosen, and given back when it certainly didn't get it; a recipient whose outcome is Unknown counts. The cap is never exceeded.
//
// After the last stage there is no cap any more. After more than 30 days without mail the warm-up begins again, as mailbox providers have forgotten the relay (SendGrid: "if you haven't sent on it in more than 30 days"). A
// day on which refusals brought the relay into back-off mode (three throttles within five minutes, say, see RuleBackOff) holds its stage: the next day has the same.
//
// What was sent is kept in the Store. A restart goes on where the process ended: it is lost without Shutdown, then at most a twenty-fourth of the day's cap (or one message, if that is more) counts as sent that wasn't, and as sent at once. Processes that share a Store share the cap.
// A Store that fails or is slow holds nothing up: the relay sends what it was granted before, a twenty-fourth of the cap at the most, and then counts as having no more for now.
type Warmup struct {
	// Start is the UTC day of the first stage; the time of day doesn't matter. Before that day the relay gets no mail. Where the Store knows nothing of the warm-up, as many stages have passed as days since then (with
	// AdvanceDelivered: none). Default: the first day on which there is mail for the relay, which the Store remembers.
	//
	// It must be a fixed day, kept in the configuration: a Start that is changed begins the warm-up anew, so time.Now() at the start of a process begins it anew on each day on which one starts. Without a Store that outlives the process it is Start alone that
	// tells how many stages have passed; who wants "from the first mail" leaves it out and sets Config.Store.
	Start time.Time
	// Curve are the caps of the stages, each at least as large as the one before. Default: SparkPostCurve(). A relay that has some stages behind it elsewhere gets a part: SparkPostCurve()[2:].
	Curve []int
	// PerProvider are caps for single mailbox providers, by their names, in addition to those of the Curve: of the relay's mail only so much goes to that provider. A message that is for several of them counts for each, with WarmupMessages too. The stage is the relay's; after the last of the provider's it has no cap of its own.
	PerProvider map[string][]int
	// Unit is what is counted. Default: WarmupRecipients.
	Unit WarmupUnit
	// Advance says when a stage is over. Default: AdvanceDaily.
	Advance WarmupAdvance
	// Overflow says where mail goes that is more than the cap. Default: OverflowGroup.
	Overflow WarmupOverflow

	_ struct{}
}

// WarmupUnit is what a Warmup counts.
type WarmupUnit uint8

const (
	// WarmupRecipients: the recipients of each message, as mailbox providers see them.
	WarmupRecipients WarmupUnit = iota
	// WarmupMessages: the messages that the relay is handed, however many recipients each has.
	WarmupMessages
)

// String returns the unit's name.
func (u WarmupUnit) String() string {
	return nameOf([]string{"recipients", "messages"}, int(u), "WarmupUnit")
}

// WarmupAdvance says when the stage of a Warmup is over.
type WarmupAdvance uint8

const (
	// AdvanceDaily: with the day, whether there was mail or not.
	AdvanceDaily WarmupAdvance = iota
	// AdvanceDelivered: with a day on which the relay accepted at least 90 % of the cap. It is for mail that doesn't come every day, or not as much. A message to more recipients than the whole cap waits for a later stage, and so for other mail
	// that brings it about: alone it is deferred day after day, with a RetryAfter of 24 h and an error that says so.
	AdvanceDelivered
)

// String returns "daily" or "delivered".
func (a WarmupAdvance) String() string {
	return nameOf([]string{"daily", "delivered"}, int(a), "WarmupAdvance")
}

// WarmupOverflow says where mail goes that is more than a Warmup allows. Where no relay is left, it is deferred with ErrThrottled and a RetryAfter that says when the relay may have it.
type WarmupOverflow uint8

const (
	// OverflowGroup: to the other relays of its group, and to the next tier if there is none in this one.
	OverflowGroup WarmupOverflow = iota
	// OverflowTier: to the other relays of its group in the same tier only. What these can't take isn't a reason to use the next.
	OverflowTier
)

// String returns "group" or "tier".
func (o WarmupOverflow) String() string {
	return nameOf([]string{"group", "tier"}, int(o), "WarmupOverflow")
}

// SparkPostCurve is the default curve: SparkPost's "IP Warm-up Strategy Overview", daily volume for an address, days 1 to 29, as of 4 September 2020
// (github.com/SparkPost/support-docs, content/docs/deliverability/ip-warm-up-overview.md).
func SparkPostCurve() []int {
	return []int{
		200, 500, 1_000, 2_000, 5_000, 10_000, 20_000,
		40_000, 50_000, 75_000, 100_000, 150_000, 200_000, 250_000,
		325_000, 400_000, 500_000, 600_000, 750_000, 1_000_000, 1_250_000,
		1_750_000, 2_000_000, 3_000_000, 4_250_000, 5_000_000, 6_000_000, 7_500_000,
		10_000_000,
	}
}

// SendGridCurve is that of SendGrid's "Automated IP Warmup Schedule": ×1.4 a day for 42 days, but for a smaller step on the 13th. It is published as a limit for each hour, 20 at first, of which this is 24 times as much (github.com/sendgrid/docs,
// source/API_Reference/Web_API_v3/IP_Management/ip_warmup_schedule.md; the page bears no date).
func SendGridCurve() []int {
	hourly := []int{
		20, 28, 39, 55, 77, 108, 151, 211, 295, 413, 579, 810, 1_000, 1_587, 2_222, 3_111, 4_356, 6_098, 8_583, 11_953, 16_734,
		23_427, 32_798, 45_917, 64_284, 89_998, 125_997, 176_395, 246_953, 345_735, 484_029, 677_640, 948_696, 1_328_175, 1_859_444, 2_603_222, 3_644_511, 5_102_316, 7_143_242, 10_000_539, 14_000_754,
		19_601_056,
	}
	for i := range hourly {
		hourly[i] *= 24
	}
	return hourly
}

const (
	maxWarmupStages    = 1000
	maxWarmupProviders = 1000
)

// on reports whether there is a warm-up.
func (w *Warmup) on() bool { return !w.Start.IsZero() || w.Curve != nil || w.PerProvider != nil }

func (w *Warmup) validate(path string, f *faults) {
	if !w.on() && (w.Unit != 0 || w.Advance != 0 || w.Overflow != 0) {
		f.add(path, "needs a Start, a Curve or PerProvider; without them there is no warm-up")
	}
	if y := w.Start.UTC().Year(); !w.Start.IsZero() && (y < 2000 || y > 2200) {
		f.add(path+".Start", "is in the year %d", y)
	}
	if w.Curve != nil {
		validateCurve(path+".Curve", w.Curve, f)
	}
	if len(w.PerProvider) > maxWarmupProviders {
		f.add(path+".PerProvider", "names %d providers; at most %d", len(w.PerProvider), maxWarmupProviders)
	}
	for _, name := range slices.Sorted(maps.Keys(w.PerProvider)) {
		at := fmt.Sprintf("%s.PerProvider[%q]", path, name)
		if name == "" || len(name) > 255 || strings.ContainsFunc(name, isControl) {
			f.add(at, "the provider's name is empty, has control characters, or more than 255 bytes")
		}
		validateCurve(at, w.PerProvider[name], f)
	}
	if w.Unit > WarmupMessages {
		f.add(path+".Unit", "is %d, which is none", w.Unit)
	}
	if w.Advance > AdvanceDelivered {
		f.add(path+".Advance", "is %d, which is none", w.Advance)
	}
	if w.Overflow > OverflowTier {
		f.add(path+".Overflow", "is %d, which is none", w.Overflow)
	}
}

func validateCurve(path string, curve []int, f *faults) {
	if len(curve) == 0 || len(curve) > maxWarmupStages {
		f.add(path, "has %d stages; it must be 1 to %d", len(curve), maxWarmupStages)
		return
	}
	for i, limit := range curve {
		at := fmt.Sprintf("%s[%d]", path, i)
		switch {
		case limit < 1:
			f.add(at, "is %d; it must be 1 or more", limit)
		case limit > warmup.MaxCap:
			f.add(at, "is %d; at most %d", limit, warmup.MaxCap)
		case i > 0 && limit < curve[i-1]:
			f.add(at, "is %d, and the stage before had %d", limit, curve[i-1])
		}
	}
}

// config is w in plain numbers.
func (w *Warmup) config(writer string) warmup.Config {
	c := warmup.Config{Curve: w.Curve, PerProvider: w.PerProvider, OnDelivery: w.Advance == AdvanceDelivered, Writer: writer}
	if !w.Start.IsZero() {
		c.Start = warmup.On(w.Start)
	}
	if c.Curve == nil {
		c.Curve = SparkPostCurve()
	}
	return c
}

// clone is a copy that the caller's can't change.
func (w *Warmup) clone() Warmup {
	own := *w
	own.Curve, own.PerProvider = slices.Clone(w.Curve), maps.Clone(w.PerProvider)
	for name, curve := range own.PerProvider {
		own.PerProvider[name] = slices.Clone(curve)
	}
	return own
}

// count is what a message to so many recipients counts.
func (w *Warmup) count(recipients int) int {
	if w.Unit == WarmupMessages {
		return min(recipients, 1)
	}
	return recipients
}
