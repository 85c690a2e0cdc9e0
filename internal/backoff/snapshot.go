package backoff

import (
	"fmt"
	"strings"
	"time"
)

// Snapshot is a State at one time.
type Snapshot struct {
	Window, MaxConns int     // MaxConns 0: any number; Window 0, which State doesn't say: there is nothing to tell of it
	Rate, Configured float64 // messages a second; 0: any number
	BackOff          bool
	BackOffUntil     time.Time // at the latest
	Suspended        time.Time // zero: it isn't
	Why              string    // of Suspended: a reply
	Since            time.Time // when a reply had an effect last, while there is one; zero: there is none
	Effect, Reply    string    // of Since
	Measured         float64   // messages a second that went before Rate was bounded, where none is Configured
}

// Snapshot tells how things are at now.
func (s *State) Snapshot(now time.Time) Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance(now)
	x := Snapshot{
		Window: s.windowNow(now), MaxConns: max(s.cfg.MaxConns, 0), Rate: s.rateNow(now), Configured: s.cfg.Rate, BackOff: s.mode,
	}
	if s.mode {
		x.BackOffUntil = s.modeUntil
	}
	if now.Before(s.suspended) {
		x.Suspended, x.Why = s.suspended, s.whySusp
	}
	if s.limited || s.mode || s.quota || s.ceiling > 0 || !x.Suspended.IsZero() {
		x.Since, x.Effect, x.Reply = s.lastAt, s.lastEffect, s.lastText
	}
	if s.limited && s.cfg.Rate == 0 {
		x.Measured = s.base
	}
	return x
}

// String tells it in words, as "halved at 12:03 (421 4.7.28 …), 12.5/s of 25/s, window 3 of 10"; "" where no reply has an effect.
func (x Snapshot) String() string {
	if x.Since.IsZero() {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s at %s", x.Effect, x.Since.Format("15:04"))
	if x.Reply != "" {
		fmt.Fprintf(&b, " (%s)", x.Reply)
	}
	if x.Rate > 0 {
		b.WriteString(", " + rateText(x.Rate))
		switch {
		case x.Configured > 0:
			b.WriteString(" of " + rateText(x.Configured))
		case x.Measured > 0: // there may be a limit in other units, which this must not be taken for
			b.WriteString(" of messages, where " + rateText(x.Measured) + " went before")
		}
	}
	if x.Window > 0 {
		fmt.Fprintf(&b, ", window %d", x.Window)
	}
	if x.Window > 0 && x.MaxConns > 0 {
		fmt.Fprintf(&b, " of %d", x.MaxConns)
	}
	if x.BackOff && x.Effect != effectBackOff {
		b.WriteString(", back-off mode")
	}
	if x.BackOff {
		b.WriteString(" until " + x.BackOffUntil.Format("15:04") + " at the latest")
	}
	if !x.Suspended.IsZero() {
		b.WriteString(", nothing until " + x.Suspended.Format(time.TimeOnly))
		if x.Why != "" && x.Why != x.Reply {
			fmt.Fprintf(&b, " (%s)", x.Why)
		}
	}
	return b.String()
}

func rateText(perSecond float64) string {
	if perSecond < 1 {
		return fmt.Sprintf("%.3g/min", perSecond*60)
	}
	return fmt.Sprintf("%.3g/s", perSecond)
}
