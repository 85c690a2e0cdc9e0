package smtplb_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// noteRow is a failure of which stage and fault don't tell all. Its cell is read as those of failureTable.
type noteRow struct {
	stage  string
	what   string
	plain  string // the cell without TLS, "" where it can't be
	tls    string // under TLS; "": the same
	direct string // with TLS from the first byte; "": as tls
	reused bool   // only on a connection that has carried a message before

	modes     string                 // "": all
	all       bool                   // everybody is refused, by name
	relay     func(*setting)         // what A is like; may be nil
	warm      func(s *scene)         // before the message in front, where there is one; may be nil
	idle      time.Duration          // between that and the message
	script    func(s *scene, c cell) // what goes wrong
	told      string                 // the code or failure that the attempt's error tells
	toldStage string                 // and the stage; "": stage
	patience  time.Duration          // that the pool has
	redialed  bool                   // though the recipients went to another relay
	noticed   bool                   // the connection is known to be dead before it is used
	another   bool                   // the message went out over another connection in the end
	bodies    int                    // more messages that A gets whole
}

var noteTable = []noteRow{
	{
		stage: "dial", what: "the relay's name doesn't resolve", plain: "F + X", told: "dns",
		script: func(s *scene, _ cell) { s.noSuchHost.Store(true) },
	},
	{
		stage: "tls", what: "the relay's certificate has expired", tls: "F ! X", told: "certificate",
		relay: func(set *setting) { set.cert = smtptest.WithExpiredCertificate() },
	},
	{
		stage: "tls", what: "the relay's certificate is another host's", tls: "F ! X", told: "certificate",
		relay: func(set *setting) { set.cert = smtptest.WithCertificateFor("other.test") },
	},
	{
		stage: "tls", what: "nobody we trust has signed the relay's certificate", tls: "F ! X", told: "certificate",
		relay: func(set *setting) { set.cert, set.stranger = smtptest.WithCertificateFor("127.0.0.1"), true },
	},
	{
		stage: "banner", what: "a 3xx", plain: "F + X", told: "out of step",
		script: func(s *scene, _ cell) { s.on(smtptest.Banner).Times(1).Reply(354, "go ahead") },
	},
	{
		stage: "ehlo", what: "500, nothing being required that EHLO has to offer", plain: "I = K", tls: "F + X", direct: "I = K", told: "500",
		script: func(s *scene, _ cell) { s.on(smtptest.Ehlo).Times(1).Reply(500, "What?") },
	},
	{
		stage: "ehlo", what: "501, nothing being required that EHLO has to offer", plain: "I = K", tls: "F + X", direct: "I = K", told: "501",
		script: func(s *scene, _ cell) { s.on(smtptest.Ehlo).Times(1).Reply(501, "What?") },
	},
	{
		stage: "ehlo", what: "502, nothing being required that EHLO has to offer", plain: "I = K", tls: "F + X", direct: "I = K", told: "502",
		script: func(s *scene, _ cell) { s.on(smtptest.Ehlo).Times(1).Reply(502, "What?") },
	},
	{
		stage: "ehlo", what: "504, nothing being required that EHLO has to offer", plain: "I = K", tls: "F + X", direct: "I = K", told: "504",
		script: func(s *scene, _ cell) { s.on(smtptest.Ehlo).Times(1).Reply(504, "What?") },
	},
	{
		stage: "ehlo", what: "502, AUTH being required", plain: "F + X", told: "502",
		relay:  func(set *setting) { set.auth = true },
		script: func(s *scene, _ cell) { s.on(smtptest.Ehlo).Times(1).Reply(502, "What?") },
	},
	{
		stage: "starttls", what: "it is not offered", tls: "F + X", told: "capability", // and nothing is sent without it
		script: func(s *scene, _ cell) { s.on(smtptest.Ehlo).Times(1).Reply(250, "localhost") },
	},
	{
		stage: "starttls", what: "plain text behind its reply (CVE-2011-0411)", tls: "F + X", told: "out of step",
		script: func(s *scene, _ cell) { s.on(smtptest.StartTLS).Times(1).Raw("220 Go\r\n250 injected\r\n") },
	},
	{
		stage: "starttls", what: "a 2xx other than 220", tls: "F + X", told: "out of step",
		script: func(s *scene, _ cell) { s.on(smtptest.StartTLS).Times(1).Reply(250, "Well") },
	},
	{
		stage: "auth", what: "it is not offered", plain: "F ! X", told: "capability",
		relay: func(set *setting) { set.auth, set.a = true, []smtptest.Option{smtptest.WithoutExtensions("AUTH")} },
	},
	{
		stage: "auth", what: "a challenge that is no base64", plain: "F + X", told: "malformed",
		relay:  func(set *setting) { set.auth = true },
		script: func(s *scene, _ cell) { s.on(smtptest.Auth).Times(1).Reply(334, "???") },
	},
	{
		stage: "mail", what: "the connection was found stale, and the relay doesn't take a new one", plain: "F + X", reused: true, redialed: true,
		told: "connect", toldStage: "dial",
		script: func(s *scene, _ cell) {
			s.on(smtptest.Mail).Times(1).DropFIN()
			s.refuseDial.Store(true)
		},
	},
	{
		stage: "mail", what: "the relay closed the connection a moment ago", plain: "R . X", reused: true, idle: 2 * time.Millisecond,
		warm: func(s *scene) { s.on(smtptest.Idle).Times(1).Delay(time.Millisecond).DropFIN() },
	},
	{
		stage: "mail", what: "the relay closed the connection a moment ago, with a reset", plain: "R . X", reused: true, idle: 2 * time.Millisecond,
		warm: func(s *scene) { s.on(smtptest.Idle).Times(1).Delay(time.Millisecond).Drop() },
	},
	{
		stage: "mail", what: "the relay said 421 and closed the connection a moment ago", plain: "R . X", reused: true, idle: 2 * time.Millisecond,
		warm: func(s *scene) { s.on(smtptest.Idle).Times(1).Delay(time.Millisecond).Reply(421, "Idle for too long") },
	},
	{
		stage: "mail", what: "the relay closed the connection a second ago", plain: "I = X", reused: true, noticed: true, idle: time.Second,
		warm: func(s *scene) { s.on(smtptest.Idle).Times(1).Delay(time.Millisecond).DropFIN() },
	},
	{
		stage: "mail", what: "the relay said 421 and closed the connection a second ago", plain: "I = X", reused: true, noticed: true, idle: time.Second,
		warm: func(s *scene) { s.on(smtptest.Idle).Times(1).Delay(time.Millisecond).Reply(421, "Idle for too long") },
	},
	{
		stage: "mail", what: "the relay said something that nobody asked for a second ago", plain: "I = X", reused: true, noticed: true, idle: time.Second,
		warm: func(s *scene) { s.on(smtptest.Idle).Times(1).Delay(time.Millisecond).Raw("250 unasked\r\n") },
	},
	{
		stage: "mail", what: "a 3xx", plain: "F + X", told: "out of step",
		script: func(s *scene, _ cell) { s.on(smtptest.Mail).Times(1).Reply(354, "go ahead") },
	},
	{
		stage: "mail", what: "refused for now, and a 354 to the DATA behind it", plain: "F = X", modes: "pipelined", told: "451",
		script: func(s *scene, _ cell) {
			s.on(smtptest.Mail).Times(1).Reply(451, "not now")
			s.on(smtptest.Data).Times(1).Reply(354, "go ahead")
		},
	},
	{
		stage: "mail", what: "refused for good, and a 354 to the DATA behind it", plain: "Fr = X", modes: "pipelined", told: "550",
		script: func(s *scene, _ cell) {
			s.on(smtptest.Mail).Times(1).Reply(550, "no")
			s.on(smtptest.Data).Times(1).Reply(354, "go ahead")
		},
	},
	{
		stage: "mail", what: "refused for now, and a 2xx to the RCPT behind it", plain: "F = X", modes: "rider", told: "451",
		script: func(s *scene, _ cell) {
			s.on(smtptest.Mail).Times(1).Reply(451, "not now")
			s.on(smtptest.Rcpt).For("x@example.com").Times(1).Reply(250, "well")
		},
	},
	{
		stage: "mail", what: "refused for now, and a 354 to the DATA behind it, with the envelope behind another message", plain: "F = X", modes: "rider", told: "451",
		script: func(s *scene, _ cell) {
			s.on(smtptest.Mail).Times(1).Reply(451, "not now")
			s.on(smtptest.Data).Times(1).Reply(354, "go ahead")
		},
	},
	{
		stage: "rcpt", what: "a 3xx", plain: "F + X", told: "out of step",
		script: func(s *scene, _ cell) {
			s.on(smtptest.Rcpt).For("y@example.com").Times(1).Reply(354, "go ahead")
		},
	},
	{
		stage: "rcpt", what: "everybody is refused for now, and a 354 to the DATA behind it", plain: "F = X", modes: "pipelined", told: "451", all: true,
		script: func(s *scene, _ cell) {
			s.on(smtptest.Rcpt).Times(2).Reply(451, "not now")
			s.on(smtptest.Data).Times(1).Reply(354, "go ahead")
		},
	},
	{
		stage: "rcpt", what: "everybody is refused for good, and a 354 to the DATA behind it", plain: "P = X", modes: "pipelined", told: "550", all: true,
		script: func(s *scene, _ cell) {
			s.on(smtptest.Rcpt).Times(2).Reply(550, "no")
			s.on(smtptest.Data).Times(1).Reply(354, "go ahead")
		},
	},
	{
		stage: "rcpt", what: "everybody is refused for good, and a 250 to the DATA behind it", plain: "P = X", modes: "pipelined", told: "550", all: true,
		script: func(s *scene, _ cell) {
			s.on(smtptest.Rcpt).Times(2).Reply(550, "no")
			s.on(smtptest.Data).Times(1).Reply(250, "thank you")
		},
	},
	{
		stage: "data", what: "a 2xx", plain: "F + X", told: "out of step",
		script: func(s *scene, _ cell) { s.on(smtptest.Data).Times(1).Reply(250, "thank you") },
	},
	{
		stage: "data", what: "a 3xx other than 354", plain: "F + X", told: "out of step",
		script: func(s *scene, _ cell) { s.on(smtptest.Data).Times(1).Reply(334, "go ahead") },
	},
	{
		stage: "body", what: "a 2xx", plain: "F + X", told: "out of step",
		script: func(s *scene, _ cell) { s.on(smtptest.Body).After(10).Times(1).Reply(250, "thank you") },
	},
	{
		stage: "body", what: "a 3xx", plain: "F + X", told: "out of step",
		script: func(s *scene, _ cell) { s.on(smtptest.Body).After(10).Times(1).Reply(354, "go on") },
	},
	{
		stage: "body", what: "a 552, and a reset while more is being written", plain: "L = X", told: "552",
		script: func(s *scene, _ cell) {
			s.on(smtptest.Body).After(10).Times(1).Reply(552, "5.3.4 Too big").ThenDrop()
		},
	},
	{
		stage: "final", what: "a 3xx", plain: "A + X", told: "out of step",
		script: func(s *scene, _ cell) { s.on(smtptest.EndOfData).Times(1).Reply(354, "go on").Unstored() },
	},
	{
		stage: "final", what: "a 2xx, and more behind it that nobody asked for", plain: "I = X",
		script: func(s *scene, _ cell) {
			s.on(smtptest.EndOfData).Times(1).Raw("250 2.0.0 Ok\r\n250 2.0.0 Ok\r\n").Stored()
		},
	},
	{
		stage: "final", what: "a 4xx, and more behind it that nobody asked for", plain: "F = X", told: "451",
		script: func(s *scene, _ cell) {
			s.on(smtptest.EndOfData).Times(1).Raw("451 not now\r\n250 2.0.0 Ok\r\n").Unstored()
		},
	},
	{
		stage: "final", what: "a 421, and then the 2xx", plain: "I = X",
		script: func(s *scene, _ cell) {
			s.on(smtptest.EndOfData).Times(1).Raw("421 closing\r\n250 2.0.0 Ok\r\n").Stored()
		},
	},
	{
		stage: "final", what: "a 421, and then another refusal", plain: "F + X", told: "421",
		script: func(s *scene, _ cell) {
			s.on(smtptest.EndOfData).Times(1).Raw("421 closing\r\n550 no\r\n").Unstored()
		},
	},
	{
		stage: "final", what: "a 421, and no end of the connection", plain: "F + X", told: "421", patience: 2 * time.Second, // for the 2xx
		script: func(s *scene, _ cell) { s.on(smtptest.EndOfData).Times(1).Raw("421 closing\r\n").Unstored() },
	},
	{
		stage: "final", what: "a 421, no end of the connection, and then the 2xx to the envelope behind the message", plain: "F + X", modes: "driver", told: "421",
		script: func(s *scene, _ cell) { s.on(smtptest.EndOfData).Times(1).Raw("421 closing\r\n").Unstored() },
	},
	{
		stage: "final", what: "500 to BDAT, which isn't used with this relay from then on", plain: "I . X", modes: "bdat", another: true, bodies: 1,
		script: func(s *scene, _ cell) { s.on(smtptest.Data).Times(1).Reply(500, "What?") },
	},
	{
		stage: "final", what: "502 to BDAT, which isn't used with this relay from then on", plain: "I . X", modes: "bdat", another: true, bodies: 1,
		script: func(s *scene, _ cell) { s.on(smtptest.Data).Times(1).Reply(502, "What?") },
	},
	{
		stage: "final", what: "503 to BDAT, which isn't used with this relay from then on", plain: "I . X", modes: "bdat", another: true, bodies: 1,
		script: func(s *scene, _ cell) { s.on(smtptest.Data).Times(1).Reply(503, "What?") },
	},
}

// TestFailureNotes brings about the rows of noteTable, as TestFailureMatrix does.
func TestFailureNotes(t *testing.T) {
	for i := range noteTable {
		n := &noteTable[i]
		t.Run(n.stage+"/"+strings.ReplaceAll(n.what, " ", "_"), func(t *testing.T) {
			t.Parallel()
			cells := 0
			modes := []string{"stepwise", "pipelined"}
			if n.modes != "" {
				modes = []string{n.modes}
			}
			for _, mode := range modes {
				for _, secured := range matrixTLS {
					for _, reused := range []bool{false, true} {
						for _, lone := range []bool{false, true} {
							c := cell{stage: n.stage, fault: n.told, tls: secured, mode: mode, reused: reused, lone: lone, note: n, all: n.all}
							want := n.plain
							if secured != "plain" && n.tls != "" {
								want = n.tls
							}
							if secured == "implicit" && n.direct != "" {
								want = n.direct
							}
							switch {
							case want == "", n.reused && !reused, reused && c.before("mail"), secured != "starttls" && n.stage == "starttls":
								continue
							}
							cells++
							if !smtplb.Thorough() && cells%5 != 1 {
								continue
							}
							t.Run(c.name(), func(t *testing.T) {
								synctest.Test(t, func(t *testing.T) { c.run(t, want) })
							})
						}
					}
				}
			}
			if cells == 0 {
				t.Error("it was tried nowhere")
			}
		})
	}
}

// A caller who leaves is answered at once before the end of the message has gone out, and 5 s later after it. It says nothing about the relay, no other one is tried, and the message
// in front of one that rides is not touched.
func TestCallerLeaves(t *testing.T) {
	for _, stage := range matrixStages[:stageNumber("final")+1] {
		for _, mode := range matrixModes {
			for _, secured := range matrixTLS {
				c := cell{stage: stage.name, fault: "timeout", tls: secured, mode: mode.name, reused: !cell{stage: stage.name}.before("mail")}
				for _, row := range failureTable {
					if row.stage != c.stage || row.fault != c.fault || strings.HasPrefix(row.expects(c), "– ") || c.mode == "driver" {
						continue
					}
					t.Run(stage.name+","+c.name(), func(t *testing.T) {
						bubble(t, func(t *testing.T) { c.leave(t) })
					})
				}
			}
		}
	}
}

func (c cell) leave(t *testing.T) {
	s := newScene(t, c.setting())
	defer s.close()
	_, bodies := c.warm(s)
	s.leave = 700 * time.Millisecond
	text, to := poison, []string{"x@example.com", "y@example.com"}
	if c.stage == "body" {
		text = longPoison
	}
	var r result
	begun := time.Now()
	if c.rides() {
		var other result
		if r, other, _ = c.together(s, text, to); other.err != nil {
			t.Errorf("the message in front: %v: %v", other.Receipt, other.err)
		}
		bodies++
	} else {
		c.arrange(s)
		r.Receipt, r.err = s.send(text, nil, to...)
	}
	want, class, took := "deferred deferred", "temporary", s.leave
	if c.stage == "final" {
		want, class, took = "unknown unknown", "unknown", s.leave+5*time.Second
		bodies++
	}
	if c.rides() { // it has waited for a while
		took += 50 * time.Millisecond
	}
	if outcomes(r.Receipt) != want || mainClasses(r.err) != class || !errors.Is(r.err, context.Canceled) || relaysTried(r.Receipt) != "a" {
		t.Errorf("%s, %s: %v: %v", outcomes(r.Receipt), mainClasses(r.err), r.Receipt, r.err)
	}
	if d := time.Since(begun); d < took || d > took+10*time.Millisecond {
		t.Errorf("it took %v, want %v", d, took)
	}
	if a := s.statsA(); a.Faults != 0 || a.Breaker != "closed" || a.Cooling || a.Redials != 0 {
		t.Errorf("%+v", a)
	}
	for _, w := range s.wires() {
		if !w.isClosed() {
			t.Error("the connection is open")
		}
	}
	s.onTheWire(bodies)
	s.master()
	if t.Failed() {
		t.Log(s.a.Transcript())
	}
}

// A stray reply shifts all that follow by one. When that comes out, no recipient may have been given another's refusal.
func TestStrayReplyRefusesNobody(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t, setting{tls: "plain"})
		defer s.close()
		s.a.On(smtptest.Idle).Times(1).Delay(time.Millisecond).Raw("250 unasked\r\n")
		s.deliver(nil, "warm@example.com")
		time.Sleep(2 * time.Millisecond) // too short for the connection to be looked at
		s.a.On(smtptest.Rcpt).For("gone@example.com").Reply(550, "5.1.1 No such user")
		r, err := s.deliver(preferA, "gone@example.com", "x@example.com", "y@example.com")
		if err != nil || relaysTried(r) != "a b" || s.statsA().Faults != 1 {
			t.Errorf("%v, %d faults: %v\n%s", r, s.statsA().Faults, err, s.a.Transcript())
		}
		s.master()
	})
}

// A message that a relay refuses for its size goes to no relay that is known to take no larger ones.
func TestTooLargeForOneIsNotOfferedToItsLike(t *testing.T) {
	for _, test := range []struct {
		name string
		size int64 // of B
		want string
	}{{"the same", 10 << 20, "failed"}, {"smaller", 1 << 20, "failed"}, {"larger", 11 << 20, "accepted"}, {"no limit", 0, "accepted"}} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newScene(t, setting{tls: "plain", b: []smtptest.Option{smtptest.WithMaxSize(test.size)}})
				defer s.close()
				s.deliver(func(e *smtplb.Envelope) { e.Prefer = "b" }, "known@example.com")
				s.a.On(smtptest.EndOfData).Reply(552, "5.3.4 Too big")
				if r, err := s.deliver(preferA, "x@example.com"); outcomes(r) != test.want {
					t.Errorf("%v: %v", r, err)
				}
				s.master()
			})
		})
	}
}

// A relay that refuses a sender is left alone with that sender's domain for ten minutes.
func TestRefusedSenderIsKeptApart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t, setting{tls: "plain"})
		defer s.close()
		s.a.On(smtptest.Mail).From("a@example.com").Times(1).Reply(554, "5.7.1 Relaying denied")
		tried := func(from, want string) {
			t.Helper()
			r, err := s.pool.Deliver(t.Context(), &smtplb.Envelope{From: from, To: []string{"x@example.com"}, Body: smtplb.Bytes([]byte(text))})
			if err != nil || relaysTried(r) != want {
				t.Errorf("%s: %v, want %s: %v", from, r, want, err)
			}
		}
		tried("a@example.com", "a b")
		tried("b@example.com", "b")
		tried("a@example.org", "a")
		time.Sleep(10*time.Minute - time.Second)
		tried("a@example.com", "b")
		time.Sleep(2 * time.Second)
		tried("a@example.com", "a")
		if f := s.statsA().Faults; f != 0 {
			t.Errorf("%d faults were counted", f)
		}
	})
}

// Three messages in a row that were never answered after their end are too many.
func TestThreeUnansweredMessages(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScene(t, setting{tls: "plain"})
		defer s.close()
		s.a.On(smtptest.EndOfData).Times(2).Stall()
		for range 2 {
			if r, err := s.deliver(preferA, "x@example.com"); outcomes(r) != "unknown" || s.statsA().Breaker != "closed" {
				t.Fatalf("%v: %v", r, err)
			}
			s.sent = nil
		}
		if r, err := s.deliver(preferA, "answered@example.com"); err != nil { // the row ends
			t.Fatalf("%v: %v", r, err)
		}
		s.a.On(smtptest.EndOfData).Stall()
		for i := range 3 {
			want := "closed"
			if i == 2 {
				want = "open"
			}
			r, err := s.deliver(preferA, "y@example.com")
			if outcomes(r) != "unknown" || s.statsA().Breaker != want {
				t.Fatalf("%v, A is %s: %v", r, s.statsA().State, err)
			}
		}
		if d := time.Until(s.statsA().RetryAt); d < 4*time.Minute || d > 6*time.Minute {
			t.Errorf("A is open for %v", d)
		}
	})
}
