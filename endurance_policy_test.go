package smtplb_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/smtplb/smtplb"
)

// In some seeds' endurance relays warm up, with a Store that has troubles of its own and outlives the pool; refusals have rules and profiles, domains have providers whom only DNS knows, and messages are signed. Updates add, change and take away all of that.

// policy is what a seed has of these.
type policy struct {
	store    *wildStore
	resolver *operators
	signs    bool
	day      time.Time // the UTC day on which the run began

	mu    sync.Mutex                 // guards the following fields
	warm  map[string][]warmSpan      // by the relay's name, in the order of time
	spent map[string][]warmRecipient // likewise, but not in order
}

// warmSpan is a time from which on a relay has a warm-up, until the next one's begins.
type warmSpan struct {
	from   time.Time
	warmup smtplb.Warmup // zero: it has none
}

// warmRecipient is a recipient who is accepted, or may be, by a relay that was chosen then.
type warmRecipient struct {
	at      time.Time
	first   time.Time // it may have been that early, as more than one attempt can have been the one
	message int       // the receipt's number
	ambig   bool      // paid some time before: it rode
	gmail   bool
	receipt *smtplb.Receipt
}

// lateStart is how much longer than its choice the start of an attempt may lie behind: a message that rides has its relay as soon as it boards, and an attempt when the message before has ended.
const lateStart = 15 * time.Second

// policyHosts are domains of recipients beside those that have routes: a provider's, one of its customers', and one whose records nobody knows the owner of.
var policyHosts = []string{"gmail.com", "corp.example.net", "misc.example.net"}

// makePolicy gives the configuration all that, or nothing.
func (c *endurance) makePolicy(r *rand.Rand, cfg *smtplb.Config) {
	if r.IntN(3) > 0 {
		return
	}
	p := &policy{day: c.start.UTC().Truncate(24 * time.Hour), warm: map[string][]warmSpan{}, spent: map[string][]warmRecipient{}}
	c.policy = p
	p.store = &wildStore{c: c.chaos}
	cfg.Store = p.store
	if r.IntN(2) == 0 {
		p.resolver = &operators{hosts: map[string]string{"corp.example.net": google, "misc.example.net": "mx.misc.example.net."}, does: c.askedMX}
		cfg.MXResolver = p.resolver
	}
	if r.IntN(2) == 0 {
		p.signs = true
		cfg.Signer = c.signer
	}
	for i := range cfg.Relays {
		x := &cfg.Relays[i]
		x.Rules, x.Profile = c.rules(r), oneOf(r, smtplb.Profile{}, smtplb.ProfileSES(), smtplb.ProfileGoogleRelay(), smtplb.ProfileSparkPost())
		x.Warmup = oneOf(r, smtplb.Warmup{}, c.warmup(r))
	}
	if c.zone != nil { // its relay stands for all that DNS names
		return
	}
	c.whole = slices.Clone(cfg.Relays)
	p.note(cfg.Relays, c.start)
}

// warmup makes a warm-up, whose first days are these.
func (c *endurance) warmup(r *rand.Rand) smtplb.Warmup {
	w := smtplb.Warmup{Unit: oneOf(r, smtplb.WarmupRecipients, smtplb.WarmupRecipients, smtplb.WarmupMessages), Overflow: oneOf(r, smtplb.OverflowGroup, smtplb.OverflowGroup, smtplb.OverflowTier), Advance: oneOf(r, smtplb.AdvanceDaily, smtplb.AdvanceDelivered)}
	n := oneOf(r, 1, 10, 24, 240, 1000, 5000)
	w.Curve = []int{n, n + n/2, 2 * n, 3 * n, 5 * n, 5 * n}
	if start := c.policy.day.AddDate(0, 0, -r.IntN(3)); r.IntN(3) > 0 && start.Year() >= 2000 {
		w.Start = start
	}
	if r.IntN(2) == 0 {
		w.PerProvider = map[string][]int{"gmail": {1 + n/10, 1 + n/5, 1 + n/5, 1 + n/4}}
	}
	return w
}

// rules are a few for what relays say here, with all their actions.
func (c *endurance) rules(r *rand.Rand) (list []smtplb.Rule) {
	for range r.IntN(4) {
		x := smtplb.Rule{Match: oneOf(r, "not now", "too much mail", "too many messages", "going down"), Action: oneOf(r, smtplb.RuleThrottle, smtplb.RuleConnections, smtplb.RuleQuota, smtplb.RuleGreylist, smtplb.RuleBackOff, smtplb.RuleBlock, smtplb.RuleIgnore)}
		x.Provider = r.IntN(3) == 0
		x.For = time.Duration(r.IntN(3)) * time.Minute
		if r.IntN(3) == 0 {
			x.Threshold, x.Per = 2+r.IntN(3), time.Minute
		}
		list = append(list, x)
	}
	return list
}

// repolicy changes some of it.
func (c *endurance) repolicy(r *rand.Rand, cfg *smtplb.Config) (what string) {
	x := &cfg.Relays[r.IntN(len(cfg.Relays))]
	switch r.IntN(5) {
	case 0:
		x.Rules = c.rules(r)
		return fmt.Sprintf(", %s has rules %+v", x.Name, x.Rules)
	case 1:
		if cfg.MXResolver != nil {
			cfg.MXResolver = nil
			return ", no MXResolver"
		} else if c.policy.resolver != nil {
			cfg.MXResolver = c.policy.resolver
			return ", an MXResolver"
		}
	default:
		switch was := x.Warmup; {
		case was.Curve == nil:
			start := c.started(x.Name)
			x.Warmup = c.warmup(r)
			if start.known {
				x.Warmup.Start = start.Time // another would begin the day anew
			}
		case r.IntN(2) == 0:
			x.Warmup = smtplb.Warmup{}
		default:
			x.Warmup = c.warmup(r)
			x.Warmup.Start = was.Start
		}
		return fmt.Sprintf(", %s has warm-up %+v", x.Name, x.Warmup)
	}
	return ""
}

// firstStart is a Warmup.Start that a relay had.
type firstStart struct {
	time.Time
	known bool
}

func (c *endurance) started(relay string) (s firstStart) {
	c.policy.mu.Lock()
	defer c.policy.mu.Unlock()
	for _, x := range c.policy.warm[relay] {
		if x.warmup.Curve != nil {
			return firstStart{x.warmup.Start, true}
		}
	}
	return s
}

// note keeps which relays warm up from now on.
func (p *policy) note(relays []smtplb.Relay, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range relays {
		p.warm[x.Name] = append(p.warm[x.Name], warmSpan{now, x.Warmup})
	}
	for name := range p.warm {
		if !slices.ContainsFunc(relays, func(x smtplb.Relay) bool { return x.Name == name }) {
			p.warm[name] = append(p.warm[name], warmSpan{from: now})
		}
	}
}

// spend keeps which relays have, or may have, the message of a receipt.
func (p *policy) spend(s *chaosSend, number int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range s.receipt.Recipients {
		if x.Outcome != smtplb.Accepted && x.Outcome != smtplb.Unknown {
			continue
		}
		var first, last *smtplb.Attempt
		ambig := false
		for i := range s.receipt.Attempts {
			a := &s.receipt.Attempts[i]
			if a.Relay != x.Relay || a.Hedged && a.Err == nil || x.Outcome == smtplb.Accepted && a.Accepted == 0 {
				continue // another attempt at the same relay is for those whom this one has deferred
			}
			ambig = ambig || a.Rode || last != nil && !midnight(last.Start).Equal(midnight(a.Start)) // which of them it was isn't certain
			if first == nil || a.Start.Before(first.Start) {
				first = a
			}
			if last == nil || a.Start.After(last.Start) {
				last = a
			}
		}
		if last != nil {
			p.spent[x.Relay] = append(p.spent[x.Relay], warmRecipient{last.Start, first.Start, number, ambig, strings.HasSuffix(x.Addr, "@gmail.com"), s.receipt})
		}
	}
}

// midnight is the beginning of t's UTC day.
func midnight(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }

// warmDay is what a relay that warms up had of a day.
type warmDay struct {
	all, gmail int
	messages   map[int]bool // whose recipients are counted already
	gmails     map[int]bool // of them, those that are for gmail
}

// kept checks that no relay got more than its warm-up allowed: not in a day, and not in the part of one that had gone by.
func (c *endurance) kept() {
	p := c.policy
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, list := range p.spent {
		slices.SortFunc(list, func(a, b warmRecipient) int { return a.at.Compare(b.at) })
		var day *warmDay
		var begun time.Time
		for i, x := range list {
			now, most, gmailMost := p.at(name, x.at)
			if before, _, _ := p.at(name, x.first); now == nil || before == nil || x.ambig && x.at.Sub(midnight(x.at)) < lateStart {
				continue
			}
			if day == nil || begun != midnight(x.at) {
				day, begun = &warmDay{messages: map[int]bool{}, gmails: map[int]bool{}}, midnight(x.at)
				c.happened("%s warms up on %v, by %+v", name, begun.Format(time.DateOnly), *now)
			}
			if now.Unit == smtplb.WarmupRecipients || !day.messages[x.message] {
				day.all++
			}
			day.messages[x.message] = true
			if x.gmail && (now.Unit == smtplb.WarmupRecipients || !day.gmails[x.message]) {
				day.gmail++
			}
			day.gmails[x.message] = day.gmails[x.message] || x.gmail
			gone := min(1, (x.at.Sub(begun)+time.Hour).Hours()/24)
			if float64(day.all) > gone*float64(most)+1e-6 || float64(day.gmail) > gone*float64(gmailMost)+1e-6 {
				c.Errorf("%s, which warms up: by %v it had %d of the day's %d, of which %d of %d for Gmail; now it has %+v", name, x.at.UTC(), day.all, most, day.gmail, gmailMost, *now)
				for _, y := range list[max(0, i-9) : i+1] {
					c.Logf("%+v: %+v, %+v", y.at.Sub(c.start), y.receipt.Recipients, y.receipt.Attempts)
				}
				break
			}
		}
	}
}

// at is the warm-up that a relay had for some time by then, nil where it had none, or that isn't certain, and the largest caps that it had that day until then.
func (p *policy) at(relay string, t time.Time) (now *smtplb.Warmup, most, gmailMost int) {
	spans := p.warm[relay]
	begun := time.Time{} // when it had one last that it has still
	for i := range spans {
		x := &spans[i]
		if t.Before(x.from) {
			break
		}
		if now = &x.warmup; now.Curve == nil {
			now, begun = nil, time.Time{}
			continue
		}
		if begun.IsZero() {
			begun = x.from
		}
		if i+1 < len(spans) && spans[i+1].from.Before(midnight(t)) {
			continue
		}
		start := x.warmup.Start
		if start.IsZero() {
			start = p.day
		}
		stage := int(midnight(t).Sub(start) / (24 * time.Hour))
		limit := func(curve []int) int {
			if stage >= len(curve) {
				return 1 << 30
			}
			return curve[stage]
		}
		most, gmailMost = max(most, limit(x.warmup.Curve)), max(gmailMost, limit(x.warmup.PerProvider["gmail"]))
	}
	if now != nil && begun != spans[0].from && t.Sub(begun) <= lateStart {
		now = nil
	}
	return now, most, gmailMost
}

// signer is a Config.Signer with troubles.
func (c *endurance) signer(ctx context.Context, r smtplb.SignRequest) ([]byte, error) {
	switch c.pick(100) {
	case 0:
		return nil, errors.New("no key")
	case 1:
		panic("chaos: the Signer")
	case 2:
		return []byte("\r\nthe body begins\r\n"), nil
	case 3:
		return nil, nil
	case 4, 5: // some callers' contexts never end
		select {
		case <-time.After(time.Duration(4*c.pick(2)) * time.Second):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return fmt.Appendf(nil, "X-Signed: %s\r\n\tof %d bytes\r\n", r.ID, r.Message.Size()), nil
}

// plain is what a relay holds of a message without its signature, which it checks.
func (c *chaos) plain(id int, data []byte) []byte {
	head := fmt.Appendf(nil, "X-Signed: %d\r\n\tof ", id)
	rest, ok := bytes.CutPrefix(data, head)
	if !ok {
		return data
	}
	n := 0
	_, _ = fmt.Sscanf(string(rest[:min(len(rest), 20)]), "%d", &n)
	_, rest, _ = bytes.Cut(rest, []byte("\r\n"))
	if n != len(rest) {
		c.Errorf("message %d: %d bytes were signed, and %d sent", id, n, len(rest))
	}
	return rest
}

// askedMX is what befalls a lookup.
func (c *endurance) askedMX(ctx context.Context) {
	switch c.pick(10) {
	case 0:
		panic("chaos: the MXResolver")
	case 1:
		runtime.Goexit()
	case 2:
		<-ctx.Done()
	case 3:
		time.Sleep(2 * time.Second)
	}
}

// wildStore is a Store that fails, is slow or hangs, panics, and does what it says it did not.
type wildStore struct {
	smtplb.MemoryStore
	c *chaos
}

// trouble befalls a call before it has done anything.
func (s *wildStore) trouble(ctx context.Context) error {
	switch s.c.pick(16) {
	case 0:
		return errors.New("the disk is on fire")
	case 1:
		<-ctx.Done()
		return ctx.Err()
	case 2:
		panic("chaos: the Store")
	case 3:
		runtime.Goexit()
	case 4, 5:
		select {
		case <-time.After(3 * time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (s *wildStore) Load(ctx context.Context, key string) ([]byte, error) {
	if err := s.trouble(ctx); err != nil {
		return nil, err
	}
	return s.MemoryStore.Load(ctx, key)
}

func (s *wildStore) Swap(ctx context.Context, key string, was, now []byte) (bool, error) {
	if err := s.trouble(ctx); err != nil {
		return false, err
	}
	ok, err := s.MemoryStore.Swap(ctx, key, was, now)
	if s.c.pick(12) == 0 {
		return false, errors.New("the connection was lost")
	}
	return ok, err
}

// reopen has another pool go on where the first has ended, with its Store.
func (c *endurance) reopen() {
	pool, err := smtplb.New(c.config)
	if err != nil {
		c.Error(err)
		return
	}
	c.pool = pool
	c.until = time.Now().Add(30 * time.Second)
	c.policy.note(c.config.Relays, time.Now())
	var senders sync.WaitGroup
	for range 10 {
		r := c.dice()
		senders.Go(func() {
			for !c.over() {
				pause(r, time.Second)
				c.single(r)
			}
		})
	}
	senders.Wait()
	if err := pool.Shutdown(c.Context()); err != nil {
		c.Errorf("Shutdown: %v", err)
	}
	if n := pool.Background(); n != 0 {
		c.Errorf("%d goroutines of the second pool are left", n)
	}
}
