package smtptest

import (
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Stage is a point of an SMTP conversation at which a script can interfere.
type Stage uint8

// The stages, in the order in which a connection meets them.
const (
	Connect       Stage = iota + 1 // a connection was accepted; before the TLS handshake of WithImplicitTLS. A Reply or Raw here closes.
	Banner                         // the greeting is due
	Ehlo                           // EHLO
	Helo                           // HELO
	StartTLS                       // STARTTLS, before its reply; the handshake follows a reply of 220
	TLSHandshake                   // the handshake is due. A Reply or Raw is sent in the clear in its place, and the connection closed.
	Auth                           // AUTH, before the first challenge; a Reply of 235 lets the client in
	AuthChallenge                  // each challenge of an AUTH exchange; a Reply of 334 is sent in its place, any other one ends the exchange
	Mail                           // MAIL
	Rcpt                           // RCPT, once for each
	Data                           // DATA, and each BDAT; the body follows a reply of 354
	Body                           // within the body: when it has begun, or has as many bytes as After says. After a Reply the rest is read and dropped, and no other reply follows.
	EndOfData                      // the whole body has come: the final reply is due
	Rset                           // RSET
	Noop                           // NOOP
	Quit                           // QUIT; the connection is closed whatever the reply
	Idle                           // a transaction is over and no other has begun: the connection waits for a command. A Delay is cut short by the client's next bytes, and then nothing happens.
	numStages
)

var stageNames = [numStages]string{
	"?", "Connect", "Banner", "Ehlo", "Helo", "StartTLS", "TLSHandshake", "Auth", "AuthChallenge", "Mail", "Rcpt", "Data", "Body", "EndOfData", "Rset", "Noop", "Quit", "Idle",
}

// String returns the name of the constant.
func (s Stage) String() string {
	if s < numStages {
		return stageNames[s]
	}
	return "Stage(" + strconv.Itoa(int(s)) + ")"
}

// Event is what a Rule's If is asked about.
type Event struct {
	Stage       Stage
	Conn        int      // the number of the connection, see Transcript.Conn
	HELO        string   // the argument of the last EHLO or HELO
	TLS         bool     // whether the connection is under TLS
	Auth        string   // the user that has authenticated
	Transaction int      // the number of the transaction on this connection, 1 for the first; at Mail the one that would begin
	From        string   // the sender, from Mail on; "" is the null sender
	To          []string // the recipients that were accepted so far; not to be modified
	Rcpt        string   // at Rcpt: the recipient in question
	Bytes       int64    // at Body and EndOfData: how many bytes of the body have come, as on the wire
	Message     *Message // at EndOfData: what would be stored; without Data under WithDiscard

	hasSender bool // From is that of a transaction
}

// Rule says what happens at a stage. Make one with Server.On, narrow it, then say
// what it does: it takes effect with the first action (Reply, Raw, Drop, Stall,
// Delay, …). Its methods return the rule itself. They are safe for concurrent use
// and may be called while the server runs.
//
// Of several rules the first one that matches wins, in the order of On. Each rule
// counts, for Nth and Every, all the occurrences that meet its other conditions,
// also those at which an earlier rule wins.
type Rule struct {
	server *Server
	stage  Stage

	mu    sync.Mutex // protects the following fields; never held while If is called
	spec  ruleSpec
	seen  int // occurrences that met every condition but the ones about their number
	fired int
}

// ruleSpec is a Rule's contents, copied out to be used.
type ruleSpec struct {
	rcpts             []string
	from              *string
	conn              int
	nth, times, every int
	cond              func(*Event) bool
	after             int64
	effect            effect
}

type action uint8

const (
	actNone   action = iota // no action was set: the rule is not in effect
	actNormal               // the server's own reply, perhaps late or slow
	actReply
	actRaw
	actEndless
	actDrop
	actDropFIN
	actStall
	actKill
	actHangUp
	actServerHello
)

type effect struct {
	act    action
	delay  time.Duration
	by     func(*Event) time.Duration // what makes delay, where it is not fixed
	drip   time.Duration
	code   int
	text   string
	then   ending
	stored int8 // +1 stored, -1 not stored, 0 by the action

	segments []int
	pause    time.Duration
	tail     string
	corrupt  bool
	cut      cut
}

// ending is how a connection ends.
type ending uint8

const (
	goOn  ending = iota
	bye          // close_notify, FIN
	fin          // FIN
	reset        // RST
)

// On adds a rule for a stage, behind those that exist. It has no effect until an
// action is set.
//
//	s.On(smtptest.Rcpt).For("bob@example.com").Reply(550, "5.1.1 No such user")
//	s.On(smtptest.Mail).Nth(3).Reply(451, "4.3.0 Try again later")
//	s.On(smtptest.Data).Times(2).Delay(5 * time.Second)
//	s.On(smtptest.EndOfData).Drop() // stored, and the reply is lost
func (s *Server) On(stage Stage) *Rule {
	r := &Rule{server: s, stage: stage}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setRulesLocked(append(slices.Clone(s.rulesLocked()), r))
	return r
}

// ClearScript removes all rules.
func (s *Server) ClearScript() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setRulesLocked(nil)
}

func (s *Server) rulesLocked() []*Rule {
	if p := s.rules.Load(); p != nil {
		return *p
	}
	return nil
}

func (s *Server) setRulesLocked(rules []*Rule) {
	var mask uint32
	for _, r := range rules {
		mask |= 1 << r.stage
	}
	s.rules.Store(&rules)
	s.scripted.Store(mask)
}

// Remove takes the rule out of the script.
func (r *Rule) Remove() {
	s := r.server
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setRulesLocked(slices.DeleteFunc(slices.Clone(s.rulesLocked()), func(x *Rule) bool { return x == r }))
}

// Fired returns how many times the rule has taken effect.
func (r *Rule) Fired() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fired
}

func (r *Rule) set(f func(*ruleSpec)) *Rule {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.spec)
	return r
}

// For narrows the rule to recipients: at Rcpt the one in question, from Data on
// any accepted one. "@example.com" stands for all of a domain. Case is not looked
// at.
func (r *Rule) For(rcpts ...string) *Rule {
	return r.set(func(s *ruleSpec) { s.rcpts = append(slices.Clone(s.rcpts), rcpts...) })
}

// From narrows the rule to a sender, at Mail and within a transaction; "" and "<>" are the null sender,
// "@example.com" stands for all of a domain. Case is not looked at.
func (r *Rule) From(sender string) *Rule {
	if sender == "<>" {
		sender = ""
	}
	return r.set(func(s *ruleSpec) { s.from = &sender })
}

// Conn narrows the rule to the n-th connection of the server, 1 being the first.
func (r *Rule) Conn(n int) *Rule { return r.set(func(s *ruleSpec) { s.conn = n }) }

// If narrows the rule to events for which f returns true. f runs in the
// connection's goroutine, perhaps in several at once, and with no lock held: it may
// call the server's methods, except Close.
func (r *Rule) If(f func(*Event) bool) *Rule { return r.set(func(s *ruleSpec) { s.cond = f }) }

// Nth narrows the rule to the n-th occurrence since On, 1 being the first, counted
// over all connections.
func (r *Rule) Nth(n int) *Rule { return r.set(func(s *ruleSpec) { s.nth = n }) }

// Times lets the rule take effect at most n times. Together with Nth it does so from
// the n-th occurrence on.
func (r *Rule) Times(n int) *Rule { return r.set(func(s *ruleSpec) { s.times = n }) }

// Every narrows the rule to each n-th occurrence: n, 2n, 3n…
func (r *Rule) Every(n int) *Rule { return r.set(func(s *ruleSpec) { s.every = n }) }

// After sets, at Body, how many bytes of the body must have come, as on the wire:
// with the dots that were stuffed, and with the terminator but for its last byte.
// The rule takes effect at exactly that byte; it does not if the body is shorter.
// The default is 1.
func (r *Rule) After(bytes int64) *Rule { return r.set(func(s *ruleSpec) { s.after = bytes }) }

// Reply answers with code and text in place of the server; newlines in text make
// it a reply of several lines. The server then takes code at its word: a recipient
// is accepted with 250, a message is stored with 2xx at EndOfData and only then.
// "{queueid}" in text stands for the queue ID there. After 421 the connection is
// closed, as RFC 5321 §3.8 has it.
func (r *Rule) Reply(code int, text string) *Rule {
	return r.set(func(s *ruleSpec) { s.effect.act, s.effect.code, s.effect.text = actReply, code, text })
}

// Raw sends exactly these bytes in place of the reply, and goes on. The server takes
// the code at their start, if any, as with Reply. It is for replies that no server
// should send, and that a client must survive:
//
//	"250\r\n"                            // a bare code, which is legal (RFC 5321 §4.2)
//	"250-ok\r\n550 no\r\n"               // different codes in one reply
//	"ok\r\n"                             // no code
//	"250 \x00\r\n"                       // a NUL
//	"250 gr\xfc\xdf dich\r\n"            // 8 bits that are no UTF-8
//	"250 " + strings.Repeat("x", 1<<20)  // a line that is too long, and has no end
//	strings.Repeat("250-x\r\n", 1000)    // too many lines, and no last one
func (r *Rule) Raw(bytes string) *Rule {
	code := 0
	if len(bytes) >= 3 {
		code, _ = strconv.Atoi(bytes[:3])
	}
	return r.set(func(s *ruleSpec) { s.effect.act, s.effect.code, s.effect.text = actRaw, code, bytes })
}

// Endless sends line and CRLF again and again, until the client is gone or the
// server closed.
func (r *Rule) Endless(line string) *Rule {
	return r.set(func(s *ruleSpec) { s.effect.act, s.effect.text = actEndless, line+"\r\n" })
}

// Drop resets the connection without a reply. At EndOfData the message is stored
// all the same, the client just isn't told; see DropUnstored.
func (r *Rule) Drop() *Rule { return r.set(func(s *ruleSpec) { s.effect.act = actDrop }) }

// DropFIN is Drop with an end of the stream in place of the reset (and no TLS
// close_notify).
func (r *Rule) DropFIN() *Rule { return r.set(func(s *ruleSpec) { s.effect.act = actDropFIN }) }

// DropUnstored is, at EndOfData, Drop without storing the message.
func (r *Rule) DropUnstored() *Rule {
	return r.set(func(s *ruleSpec) { s.effect.act, s.effect.stored = actDrop, -1 })
}

// Stall answers nothing, reads nothing and keeps the connection open until the
// server is closed or killed. At EndOfData the message is stored first; add
// Unstored to have it otherwise.
func (r *Rule) Stall() *Rule { return r.set(func(s *ruleSpec) { s.effect.act = actStall }) }

// Kill is the end of the whole relay at this point, see Server.Kill. At EndOfData
// the message is stored first; add Unstored to have it otherwise.
func (r *Rule) Kill() *Rule { return r.set(func(s *ruleSpec) { s.effect.act = actKill }) }

// Delay waits for d before the normal reply, or before the action that is set
// beside it: Delay(d).Drop(). At EndOfData the message is stored after the delay.
func (r *Rule) Delay(d time.Duration) *Rule {
	return r.set(func(s *ruleSpec) {
		s.effect.delay, s.effect.by = d, nil
		s.effect.act = max(s.effect.act, actNormal)
	})
}

// DelayBy is Delay with a time of f's choice for each occurrence: one drawn from a
// distribution, or one that depends on the sender. f runs as If's does, once for each
// time that the rule takes effect.
//
//	s.On(smtptest.Rcpt).DelayBy(func(*smtptest.Event) time.Duration { // half of them within 100 ms
//		return time.Duration(100e6 * math.Exp(0.5*rand.NormFloat64()))
//	})
func (r *Rule) DelayBy(f func(*Event) time.Duration) *Rule {
	return r.set(func(s *ruleSpec) {
		s.effect.by = f
		s.effect.act = max(s.effect.act, actNormal)
	})
}

// Drip sends the reply, the normal one or that of Reply or Raw, a byte at a time
// with a pause of d before each.
func (r *Rule) Drip(d time.Duration) *Rule {
	return r.set(func(s *ruleSpec) {
		s.effect.drip = d
		s.effect.act = max(s.effect.act, actNormal)
	})
}

// ThenClose closes the connection in good order once the reply is sent.
func (r *Rule) ThenClose() *Rule {
	return r.set(func(s *ruleSpec) {
		s.effect.then = bye
		s.effect.act = max(s.effect.act, actNormal)
	})
}

// ThenDrop resets the connection once the reply is sent.
func (r *Rule) ThenDrop() *Rule {
	return r.set(func(s *ruleSpec) {
		s.effect.then = reset
		s.effect.act = max(s.effect.act, actNormal)
	})
}

// Stored lets the message be stored, at EndOfData, whatever the reply: a relay that
// says 451 and delivers.
func (r *Rule) Stored() *Rule {
	return r.set(func(s *ruleSpec) {
		s.effect.stored = 1
		s.effect.act = max(s.effect.act, actNormal)
	})
}

// Unstored lets the message not be stored, at EndOfData, whatever the reply: a
// relay that says 250 and loses it, or one that stalls before it has it safe.
func (r *Rule) Unstored() *Rule {
	return r.set(func(s *ruleSpec) {
		s.effect.stored = -1
		s.effect.act = max(s.effect.act, actNormal)
	})
}

// decide returns the effect of the first rule that matches ev, nil if none does. The
// others are asked all the same, for their count.
func (s *Server) decide(ev *Event) *effect {
	rules := s.rules.Load()
	if rules == nil {
		return nil
	}
	var winner *effect
	for _, r := range *rules {
		if r.stage != ev.Stage {
			continue
		}
		r.mu.Lock()
		spec := r.spec
		r.mu.Unlock()
		if spec.matches(ev) && (spec.cond == nil || spec.cond(ev)) && r.count(winner == nil) {
			winner = &spec.effect
		}
	}
	if winner != nil && winner.by != nil {
		winner.delay = winner.by(ev)
	}
	return winner
}

// count counts an occurrence and reports whether the rule takes effect, which it
// only may if it is free to.
func (r *Rule) count(free bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen++
	n, spec := r.seen, &r.spec
	switch {
	case !free,
		spec.nth > 0 && spec.times > 0 && n < spec.nth,
		spec.nth > 0 && spec.times == 0 && n != spec.nth,
		spec.times > 0 && r.fired >= spec.times,
		spec.every > 0 && n%spec.every != 0:
		return false
	}
	r.fired++
	return true
}

func (spec *ruleSpec) matches(ev *Event) bool {
	switch {
	case spec.effect.act == actNone:
		return false
	case spec.conn > 0 && spec.conn != ev.Conn:
		return false
	case spec.from != nil && (!ev.hasSender || !addrMatch(*spec.from, ev.From)):
		return false
	case ev.Stage == Body && max(spec.after, 1) != ev.Bytes:
		return false
	case spec.rcpts == nil:
		return true
	case ev.Stage == Rcpt:
		return rcptMatch(spec.rcpts, ev.Rcpt)
	}
	return slices.ContainsFunc(ev.To, func(to string) bool { return rcptMatch(spec.rcpts, to) })
}

func rcptMatch(patterns []string, addr string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return addrMatch(p, addr) })
}

func addrMatch(pattern, addr string) bool {
	if strings.HasPrefix(pattern, "@") {
		if i := strings.LastIndexByte(addr, '@'); i >= 0 {
			addr = addr[i:]
		}
	}
	return strings.EqualFold(pattern, addr)
}

// nextBodyByte returns the smallest number of body bytes in (low, high] at which a
// rule for Body is to be looked at, 0 if there is none.
func (s *Server) nextBodyByte(low, high int64) int64 {
	var next int64
	for _, r := range *s.rules.Load() {
		if r.stage != Body {
			continue
		}
		r.mu.Lock()
		at := max(r.spec.after, 1)
		r.mu.Unlock()
		if at > low && at <= high && (next == 0 || at < next) {
			next = at
		}
	}
	return next
}
