package smtplb_test

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// cell is one cell of the failure matrix, and the way in which it is brought about.
type cell struct {
	stage, fault string
	reused       bool
	tls, mode    string
	lone         bool // no other relay

	all    bool // at RCPT: everybody is refused, not one of several
	stored bool // after the end of the message: the relay has stored it
	late   bool // at EHLO with STARTTLS: the second one
	alert  bool // a TLS error: an alert, not a record that was tampered with

	note *noteRow // where the fault is one of noteTable
}

func (c cell) name() string {
	b := []string{c.mode, c.tls, "new"}
	if c.reused {
		b[2] = "reused"
	}
	for _, f := range []struct {
		set  bool
		name string
	}{{c.lone, "alone"}, {c.all, "all"}, {c.stored, "stored"}, {c.late, "underTLS"}, {c.alert, "alert"}} {
		if f.set {
			b = append(b, f.name)
		}
	}
	return strings.Join(b, ",")
}

// before reports whether the cell's stage comes before another one.
func (c cell) before(stage string) bool { return stageNumber(c.stage) < stageNumber(stage) }

func stageNumber(name string) int {
	for i, s := range matrixStages {
		if s.name == name {
			return i
		}
	}
	panic("no stage " + name)
}

// expects returns what the table says of the cell: a cell's three words, or why it can't be.
func (r failureRow) expects(c cell) string {
	if c.before("mail") {
		switch c.mode {
		case "rider":
			return ridesOnOpen
		case "driver":
			return notYetRidden
		}
	}
	for _, key := range []string{c.tls, c.mode} {
		if s, ok := r.but[key]; ok {
			return s
		}
	}
	if c.reused && r.reused != "" {
		return r.reused
	}
	return r.fresh
}

// reply is what A says, where the fault is a reply.
func (c cell) reply() (code int, text string, ok bool) {
	switch c.fault {
	case "4xx":
		return 451, "not now", true
	case "5xx":
		return 550, "no", true
	case "421":
		return 421, "closing", true
	}
	n, err := fmt.Sscanf(c.fault, "%d", &code)
	return code, strings.TrimPrefix(c.fault[min(3, len(c.fault)):], " "), n == 1 && err == nil
}

// refusal reports whether A refuses, and goes on.
func (c cell) refusal() bool {
	code, _, ok := c.reply()
	return ok && code != 421
}

// one reports whether one recipient of several is refused.
func (c cell) one() bool { return c.stage == "rcpt" && !c.all && c.refusal() }

// ways are the ways in which c can be brought about.
func (c cell) ways() []cell {
	list := []cell{c}
	fork := func(when bool, change func(*cell)) {
		if !when {
			return
		}
		for _, x := range list {
			change(&x)
			list = append(list, x)
		}
	}
	refusal := c.refusal()
	fork(c.stage == "rcpt" && refusal, func(x *cell) { x.all = true })
	fork(c.stage == "final" && !refusal && c.fault != "421" && !strings.HasPrefix(c.fault, "421 "), func(x *cell) { x.stored = true })
	fork(c.stage == "ehlo" && c.tls == "starttls" && c.fault != "TLS error", func(x *cell) { x.late = true })
	if c.stage == "ehlo" && c.tls == "starttls" && c.fault == "TLS error" {
		list[0].late = true
	}
	// An alert answers bytes behind the command, which can't be put behind one of a group.
	ends := c.mode == "stepwise" || c.stage == "data" || c.stage == "final" && c.mode != "driver" || c.before("mail")
	fork(c.fault == "TLS error" && ends && c.stage != "body" && c.stage != "tls", func(x *cell) { x.alert = true })
	fork(c.fault == "TLS error" && c.stage == "tls", func(x *cell) { x.alert = true })
	fork(true, func(x *cell) { x.lone = true })
	return list
}

var serverStages = map[string]smtptest.Stage{
	"tls": smtptest.TLSHandshake, "banner": smtptest.Banner, "ehlo": smtptest.Ehlo, "starttls": smtptest.StartTLS, "auth": smtptest.Auth, "mail": smtptest.Mail,
	"rcpt": smtptest.Rcpt, "data": smtptest.Data, "body": smtptest.Body, "final": smtptest.EndOfData, "rset": smtptest.Rset, "quit": smtptest.Quit,
}

// success is what a relay says at a stage when all is well.
var success = map[string]int{"banner": 220, "starttls": 220, "auth": 235, "data": 354, "quit": 221}

// arrange scripts the fault, once. What it returns tells whether it has happened.
func (c cell) arrange(s *scene) (happened func() bool) {
	if c.note != nil {
		if c.note.script != nil {
			c.note.script(s, c)
		}
		return s.everyRuleFired
	}
	if c.stage == "dial" {
		if c.fault == "timeout" {
			s.net.Blackhole(addrA, true)
			return func() bool { s.net.Blackhole(addrA, false); return true }
		}
		s.refuseDial.Store(true)
		return func() bool { return !s.refuseDial.Load() }
	}
	times := 1
	if c.all {
		times = 2
	}
	r := s.a.On(serverStages[c.stage]).Times(times)
	var armed func()
	switch c.fault {
	case "timeout":
		r.Stall()
	case "EOF":
		r.DropFIN()
	case "RST":
		r.Drop()
	case "malformed":
		r.Raw("garbage\r\n")
	case "TLS error":
		switch code := success[c.stage]; {
		case c.stage == "tls" && c.alert:
			r.Raw("\x15\x03\x03\x00\x02\x02\x28") // handshake_failure, in clear
		case c.alert:
			armed = s.alert
			r.Raw("")
		default: // what was said before is on its way by then, and the reply is not
			armed = func() { time.AfterFunc(time.Millisecond, func() { s.tamper.Store(true) }) }
			r.Delay(2 * time.Millisecond)
			if code == 0 {
				code = 250
			}
			if c.stage != "tls" && c.stage != "ehlo" {
				r.Reply(code, "well")
			}
		}
	default:
		code, text, _ := c.reply()
		r.Reply(code, text)
	}
	if c.stage == "tls" { // else it would lie behind the reply to STARTTLS, which is another matter
		r.Delay(2 * time.Millisecond)
	}
	if c.stage == "body" {
		r.After(10)
	}
	if c.stage == "final" {
		if c.stored {
			r.Stored()
		} else {
			r.Unstored()
		}
	}
	r.If(func(e *smtptest.Event) bool {
		switch {
		case c.mode == "rider" && (c.stage == "body" || c.stage == "final") && !slices.Contains(e.To, "x@example.com"): // the message in front
			return false
		case c.stage == "ehlo" && c.tls == "starttls" && e.TLS != c.late, c.stage == "rcpt" && e.Rcpt != "y@example.com" && !(c.all && e.Rcpt == "x@example.com"):
			return false
		case armed != nil && r.Fired() == 0:
			armed()
		}
		return true
	})
	return func() bool { return r.Fired() > 0 }
}

// patience is how long the pool waits for the relay in the cell.
func (c cell) patience() time.Duration {
	if c.note != nil {
		return c.note.patience
	}
	if c.fault != "timeout" {
		return 0
	}
	switch t := matrixTimeouts; c.stage {
	case "dial":
		return t.Dial
	case "tls", "starttls":
		return t.TLS
	case "banner", "ehlo", "auth":
		return t.Greeting
	case "mail", "rcpt", "data":
		return t.Command
	case "body":
		return t.Body + 2*time.Second // in which it looks for a word behind a write that failed
	case "final":
		return t.Final
	case "rset":
		if c.mode == "stepwise" {
			return 20 * time.Second
		}
		return t.Command
	}
	return 0
}

// isTold reports whether err tells the fault.
func (c cell) isTold(err *smtplb.RelayError) bool {
	if code, _, ok := c.reply(); ok {
		return err.Reply.Code == code && err.Failure == "" || c.all && err.Reply.Code == 550 // another recipient's
	}
	switch c.fault {
	case "EOF", "RST": // a write that fails tells as little of which it was as a read that does
		return err.Failure == "eof" || err.Failure == "reset" || c.stage == "dial" && err.Failure == "connect"
	case "malformed":
		return err.Failure == "malformed" || c.stage == "tls" && err.Failure == "tls"
	case "TLS error":
		return err.Failure == "tls"
	}
	return err.Failure == c.fault
}

// words3 are the three words of a cell.
type words3 struct{ move, blame, conn string }

// setting is what the relays and the pool are like in the cell.
func (c cell) setting() setting {
	set := setting{tls: c.tls, stepwise: c.mode == "stepwise", chunks: c.mode == "bdat", lone: c.lone, auth: c.stage == "auth"}
	if c.rides() {
		set.conns = 1
	}
	if c.stage == "body" {
		set.buffer = 32 << 10
	}
	if c.note != nil && c.note.relay != nil {
		c.note.relay(&set)
	}
	if c.stage == "quit" {
		set.uses = 1
		if c.reused {
			set.uses = 2
		}
	}
	return set
}

// rides reports whether two messages are under way, one of which rides behind the other.
func (c cell) rides() bool { return c.mode == "rider" || c.mode == "driver" }

// warm sends what goes before. It returns what A's breaker has to count, and how many messages A gets whole.
func (c cell) warm(s *scene) (outcomes, bodies int) {
	switch {
	case c.stage == "rset": // an envelope that is refused
		s.a.On(smtptest.Mail).Times(1).Reply(451, "not now")
		s.deliver(nil, "warm@example.com")
		return 1, 0
	case !c.reused:
		return 0, 0
	}
	if c.note != nil && c.note.warm != nil {
		c.note.warm(s)
	}
	if _, err := s.deliver(nil, "warm@example.com"); err != nil {
		s.Fatal(err)
	}
	if c.note != nil {
		time.Sleep(c.note.idle)
	}
	return 1, 1
}

// toldStage is the stage that errors name.
func (c cell) toldStage() string {
	switch {
	case c.note != nil && c.note.toldStage != "":
		return c.note.toldStage
	case c.stage == "rset": // its part in an envelope is MAIL's beginning
		return "mail"
	case c.stage == "starttls" && c.fault == "TLS error":
		return "tls"
	}
	return c.stage
}
