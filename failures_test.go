package smtplb_test

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// slow reports whether the nth way of a row is left out: under the race detector, which takes ten times as long, it is one of ten that is tried.
func slow(n int) bool { return !smtplb.Thorough() && n%10 != 0 }

// TestFailureMatrix brings about every cell of failureTable with a pool of two relays, and with one of the faulty relay alone. It checks the outcome for each recipient, who was tried,
// what the breaker counted, what became of the connection, how long it took, what the relays stored, and that nothing was sent
// that a relay could take for a message which the pool says it doesn't have.
func TestFailureMatrix(t *testing.T) {
	t.Parallel()
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	var done, impossible atomic.Int64
	t.Run("table", func(t *testing.T) {
		for n, row := range failureTable {
			t.Run(row.stage+"/"+row.fault, func(t *testing.T) {
				t.Parallel()
				slots <- struct{}{}
				defer func() { <-slots }()
				for _, mode := range matrixModes {
					for _, secured := range matrixTLS {
						for _, reused := range []bool{false, true} {
							c := cell{stage: row.stage, fault: row.fault, reused: reused, tls: secured, mode: mode.name}
							want := row.expects(c)
							if strings.HasPrefix(want, "– ") {
								impossible.Add(1)
								continue
							}
							for _, c := range c.ways() {
								if n++; slow(n) {
									continue
								}
								t.Run(c.name(), func(t *testing.T) {
									synctest.Test(t, func(t *testing.T) { c.run(t, want) })
								})
								done.Add(1)
							}
						}
					}
				}
			})
		}
	})
	t.Logf("%d cells in all their ways; %d can't be", done.Load(), impossible.Load())
}

// TestReplyMatrix does the same for the replies whose code or words tell more than their first digit.
func TestReplyMatrix(t *testing.T) {
	t.Parallel()
	t.Run("table", func(t *testing.T) {
		for n, row := range replyTable {
			t.Run(row.reply, func(t *testing.T) {
				t.Parallel()
				for i, want := range []string{row.auth, row.mail, row.rcpt, row.data, row.final, row.final} {
					stage := []string{"auth", "mail", "rcpt", "data", "final", "body"}[i]
					if want == "" {
						want = asClass(stage, row.reply)
					}
					if stage == "body" {
						want = want[:len(want)-1] + "X"
					}
					for _, mode := range matrixModes {
						for _, reused := range []bool{false, true} {
							c := cell{stage: stage, fault: row.reply, tls: "plain", mode: mode.name, reused: reused}
							want := want
							switch general := asClassOf(c); {
							case strings.HasPrefix(general, "– "), stage == "body" && mode.name != "pipelined", mode.name == "bdat" && row.about == "the protocol":
								continue
							case strings.HasPrefix(general, "R "): // stale, whatever it says
								want = general
							case strings.HasSuffix(general, " X"):
								want = want[:len(want)-1] + "X"
							}
							for _, c := range c.ways() {
								if n++; slow(n) {
									continue
								}
								t.Run(stage+","+c.name(), func(t *testing.T) {
									synctest.Test(t, func(t *testing.T) { c.run(t, want) })
								})
							}
						}
					}
				}
			})
		}
	})
}

// asClassOf is what failureTable says of a reply by its class: the same code's, without a word.
func asClassOf(c cell) string {
	code, _, _ := c.reply()
	class := fmt.Sprintf("%dxx", code/100)
	if code == 421 {
		class = "421"
	}
	for _, row := range failureTable {
		if row.stage == c.stage && row.fault == class {
			return row.expects(c)
		}
	}
	panic("no row for " + c.stage + " and " + class)
}

func asClass(stage, reply string) string {
	return asClassOf(cell{stage: stage, fault: reply, tls: "plain", mode: "pipelined"})
}

// result is how the message of a cell went.
type result struct {
	*smtplb.Receipt
	err  error
	took time.Duration
}

// run brings the cell about, and looks at everything.
func (c cell) run(t *testing.T, cell string) {
	var want words3
	if n, err := fmt.Sscan(cell, &want.move, &want.blame, &want.conn); n != 3 {
		t.Fatalf("the table says %q: %v", cell, err)
	}
	s := newScene(t, c.setting())
	defer s.close()
	outcomes, bodies := c.warm(s)
	to := []string{"x@example.com", "y@example.com"}
	if !c.lone && c.mode != "driver" { // nobody rides behind a message of which a recipient was refused
		to = append([]string{"gone@example.com"}, to...)
		s.a.On(smtptest.Rcpt).For("gone@example.com").Reply(550, "5.1.1 No such user")
	}
	text := poison
	if c.stage == "body" {
		text = longPoison
	}
	before := s.statsA()
	attempts := uint64(1) // at A
	var r result
	var happened func() bool
	if c.rides() {
		var other result
		r, other, happened = c.together(s, text, to)
		if c.checkOther(s, want, other) {
			attempts++
			outcomes++
			bodies++
		}
	} else {
		happened = c.arrange(s)
		begun := time.Now()
		r.Receipt, r.err = s.send(text, preferA, to...)
		r.took = time.Since(begun)
	}
	if c.stage == "quit" { // it goes out in the background, and has a second
		time.Sleep(time.Second)
		synctest.Wait()
	}
	defer func() {
		if t.Failed() {
			t.Logf("want %v\n%v: %v\n%s", want, r.Receipt, r.err, s.a.Transcript())
		}
	}()
	if !happened() {
		t.Fatal("it didn't happen")
	}
	s.checkOutcome(c, want, r.Receipt, r.err)
	c.checkTime(s, r.took)
	if want.move == "R" || want.move == "I" || c.stage == "final" || c.one() {
		bodies++
	}
	if want.move == "G" && c.one() {
		bodies++
	}
	if c.note != nil {
		bodies += c.note.bodies
	}
	after := s.statsA()
	if c.note != nil && c.note.redialed {
		before.Redials++
	}
	s.checkBooks(want, before, after, attempts)
	if want.blame == "=" || want.blame == "+" || want.move == "R" || want.move == "I" { // in the end the message was accepted
		outcomes++
	}
	if want.blame != "!" {
		s.checkConnection(c, want)
		outcomes++
		bodies++
	}
	s.onTheWire(bodies)
	if want.blame != "!" {
		if got := s.counted(); got != outcomes {
			t.Errorf("A's breaker has counted %d outcomes, want %d", got, outcomes)
		}
	}
	s.master()
}

// together sends two messages of which one rides behind the other, and returns the cell's and the other one's result.
func (c cell) together(s *scene, text string, to []string) (mine, other result, happened func() bool) {
	const hesitation = 100 * time.Millisecond // before A lets the first message begin, so that the second one is waiting by then
	s.a.On(smtptest.Data).Times(1).Delay(hesitation)
	first, second := &other, &mine
	firstText, secondText, firstTo, secondTo := poison, text, []string{"other@example.com"}, to
	if c.mode == "driver" {
		first, second = second, first
		firstText, secondText, firstTo, secondTo = text, poison, to, firstTo
	}
	var w sync.WaitGroup
	begun := time.Now()
	var over time.Time // the first one is
	w.Go(func() {
		first.Receipt, first.err = s.send(firstText, nil, firstTo...)
		over = time.Now()
		first.took = over.Sub(begun) - hesitation
	})
	time.Sleep(hesitation / 2)
	happened = c.arrange(s)
	var end time.Time
	w.Go(func() {
		second.Receipt, second.err = s.send(secondText, nil, secondTo...)
		end = time.Now()
	})
	w.Wait()
	second.took = end.Sub(over)
	return mine, other, happened
}

// checkOther looks at the message that goes with the cell's: the one in front was accepted, and the one behind goes on as if nothing had been. It reports whether A took it.
func (c cell) checkOther(s *scene, want words3, r result) bool {
	s.Helper()
	relay := "a"
	if c.mode == "driver" && want.blame == "!" { // A is closed to everybody
		relay = "b"
		if c.lone {
			if outcomes(r.Receipt) != "deferred" || len(r.Attempts) != 0 || !errors.Is(r.err, smtplb.ErrNoRelay) {
				s.Errorf("the other message: %v: %v", r.Receipt, r.err)
			}
			return false
		}
	}
	if r.err != nil || relaysTried(r.Receipt) != relay || len(r.Attempts) != 1 || r.Attempts[0].Rode || r.Attempts[0].Redialed {
		s.Errorf("the other message: %v, %+v: %v", r.Receipt, r.Attempts, r.err)
	}
	if c.mode == "driver" && c.stage == "final" && c.tls == "plain" && !bytes.Contains(s.wires()[0].bytes(), []byte("RCPT TO:<other@example.com>")) {
		s.Errorf("the other message didn't ride")
	}
	if c.mode == "driver" && r.took > 10*time.Millisecond {
		s.Errorf("the other message took %v more", r.took)
	}
	return relay == "a"
}

// checkTime looks at how long it took.
func (c cell) checkTime(s *scene, took time.Duration) {
	s.Helper()
	least := c.patience()
	most := least + 10*time.Millisecond
	if c.stage == "body" && c.fault == "timeout" { // its time begins anew where some of a write got through
		most += matrixTimeouts.Body
	}
	if took < least || took > most {
		s.Errorf("it took %v, want %v to %v", took, least, most)
	}
}

// checkOutcome holds a receipt against the table.
func (s *scene) checkOutcome(c cell, want words3, r *smtplb.Receipt, err error) {
	s.Helper()
	named := !c.before("rcpt") && c.before("rset") || want.move == "R" || want.move == "I" // A has been told the recipients,
	if c.fault == "out of step" && c.before("body") {                                      // and what it said of them is certain
		named = false
	}
	one := c.one()
	outcomes := map[string]smtplb.Outcome{}
	next := false
	for _, x := range r.Recipients {
		move := want.move
		switch {
		case x.Addr == "gone@example.com" && named:
			move = "P"
		case one && x.Addr == "x@example.com":
			move = "I"
		}
		if move == "G" && c.all {
			move = "F"
		}
		o, relay := smtplb.Accepted, "a"
		switch move {
		case "F", "Fr", "L":
			next = true
			switch {
			case !c.lone:
				relay = "b"
			case move != "F":
				o = smtplb.Failed
			default:
				o = smtplb.Deferred
			}
		case "P":
			o = smtplb.Failed
		case "D":
			o = smtplb.Deferred
		case "A":
			o = smtplb.Unknown
		}
		outcomes[x.Addr] = o
		if x.Outcome != o || x.Relay != relay {
			s.Errorf("%s is %v (%s), want %v (%s)", x.Addr, x.Outcome, x.Relay, o, relay)
		}
		if (x.Err() == nil) != (o == smtplb.Accepted) {
			s.Errorf("%s is %v with the error %v", x.Addr, x.Outcome, x.Err())
		}
		if (x.RetryAfter > 0) != (x.Outcome == smtplb.Deferred) {
			s.Errorf("%s is %v and to be tried again after %v", x.Addr, x.Outcome, x.RetryAfter)
		}
		if x.Greylisted != (move == "D") {
			s.Errorf("%s is greylisted: %v", x.Addr, x.Greylisted)
		}
		if inA, _ := s.stores(x.Addr); o == smtplb.Unknown && (inA > 0) != c.stored {
			s.Errorf("%s is stored %d times in a, and the relay was told otherwise", x.Addr, inA)
		}
	}
	if got, want := mainClasses(err), wantClasses(outcomes); got != want || (err == nil) != (want == "") {
		s.Errorf("the error is %q, want %q: %v", got, want, err)
	}
	tried := "a"
	if next && !c.lone {
		tried = "a b"
	}
	if got := relaysTried(r); got != tried {
		s.Fatalf("%s were tried, want %s", got, tried)
	}
	a := r.Attempts[0]
	if a.Rode != (c.mode == "rider") {
		s.Errorf("the message rode: %v", a.Rode)
	}
	if reused, redialed := (c.reused || c.mode == "rider") && (c.note == nil || !c.note.noticed), want.move == "R" || c.note != nil && c.note.redialed; a.Reused != reused || a.Redialed != redialed {
		s.Errorf("the attempt reused %v, redialed %v", a.Reused, a.Redialed)
	}
	if took := want.move == "R" || want.move == "I" || one; took != (a.Err == nil) {
		s.Errorf("the attempt's error is %v", a.Err)
	} else if !took {
		var re *smtplb.RelayError
		if !errors.As(a.Err, &re) || string(re.Stage) != c.toldStage() || string(a.Stage) != c.toldStage() || !c.isTold(re) {
			s.Errorf("the attempt ended at %s, and its error is %+v", a.Stage, a.Err)
		}
	}
}

// checkBooks holds A's figures against the table.
func (s *scene) checkBooks(want words3, before, after smtplb.RelayStats, attempts uint64) {
	s.Helper()
	faults, state, redials := uint64(0), "closed", uint64(0)
	switch want.blame {
	case "+":
		faults = 1
	case "!":
		faults, state = 1, "open"
	}
	if want.move == "R" {
		redials = 1
	}
	if got := after.Faults - before.Faults; got != faults {
		s.Errorf("%d faults were counted, want %d", got, faults)
	}
	if after.Breaker != state || after.Cooling != (want.blame == "~") {
		s.Errorf("A is %s (%s), cooling %v", after.State, after.Reason, after.Cooling)
	}
	if got := after.Redials - before.Redials; got != redials {
		s.Errorf("%d redials, want %d", got, redials)
	}
	if got := after.Attempts - before.Attempts; got != attempts {
		s.Errorf("%d attempts at A, want %d", got, attempts)
	}
	if want.blame == "!" {
		if d := time.Until(after.RetryAt); d < 4*time.Minute || d > 6*time.Minute {
			s.Errorf("A is open for %v", d)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if fmt.Sprint(s.states) != "[open]" {
			s.Errorf("the hook was told %v", s.states)
		}
	}
}

// checkConnection sends another message over A, and sees over which connection.
func (s *scene) checkConnection(c cell, want words3) {
	s.Helper()
	wires := s.wires()
	s.a.ClearScript()
	if c.stage != "dial" {
		if closed := wires[0].isClosed(); closed != (want.conn == "X") {
			s.Errorf("the connection is closed: %v", closed)
		}
	}
	refused := want.move != "R" && want.move != "I" && want.conn == "K" && !c.one()
	last := len(wires)
	another := want.move == "R" || c.mode == "driver" || c.note != nil && (c.note.noticed || c.note.another) // one that the message was sent over in the end
	if want.conn == "X" && !another {
		last++
	}
	resets := s.a.Stats().Commands["RSET"]
	r, err := s.deliver(preferA, "after@example.com")
	if err != nil || relaysTried(r) != "a" {
		s.Fatalf("the next message: %v: %v", r, err)
	}
	if got := r.Attempts[0].Reused; got != (want.conn == "K" || another) {
		s.Errorf("the next message reuses a connection: %v", got)
	}
	m := s.a.Messages()
	if got := m[len(m)-1].Conn; got != len(s.wires()) || got != last {
		s.Errorf("the next message went over connection %d of %d, want %d", got, len(s.wires()), last)
	}
	if got := s.a.Stats().Commands["RSET"] - resets; got > 1 || (got == 1) != refused {
		s.Errorf("the next message began with %d RSET", got)
	}
}
