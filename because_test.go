package smtplb_test

import (
	"errors"
	"fmt"
	"net/textproto"
	"strings"
	"testing"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// fates is what became of each recipient, in whose words, and because of whom where that is another: "gone failed 550 5.1.1, ok failed 550 5.1.1 <gone". Of an address its local part; of a route its text.
func fates(r *smtplb.Receipt) string {
	local := func(addr string) string { return addr[:strings.IndexByte(addr, '@')] }
	var all []string
	for _, x := range r.Recipients {
		s := local(x.Addr) + " " + x.Outcome.String()
		var by *smtplb.RouteError
		switch {
		case x.Reply.Code != 0:
			s += fmt.Sprintf(" %d %s", x.Reply.Code, x.Reply.Enhanced)
		case errors.As(x.Err(), &by):
			s += " " + by.Reason
		}
		if x.Because != "" {
			s += " <" + local(x.Because)
		}
		all = append(all, s)
	}
	return strings.Join(all, ", ")
}

// refuser refuses recipients by their local parts.
func refuser(s *smtptest.Server) {
	for local, text := range map[string]string{
		"gone": "550 5.1.1 No such user", "left": "551 5.1.6 Moved", "busy": "450 4.2.1 Mailbox busy", "full": "452 4.2.2 Mailbox full", "grey": "451 4.7.1 Greylisted", "away": "550 5.7.1 Relaying denied",
	} {
		s.On(smtptest.Rcpt).For(local + "@example.com").Raw(text + "\r\n")
	}
}

func together(to string) *smtplb.Envelope {
	e := envelope()
	for _, local := range strings.Fields(to) {
		e.To = append(e.To, local+"@example.com")
	}
	e.RequireAll = true
	return e
}

// Who isn't refused, and fares as another does, is told who that is; who is refused is told what was said of him.
func TestRequireAllSaysBecauseOfWhom(t *testing.T) {
	for _, test := range []struct{ to, want string }{
		{"gone ok", "gone failed 550 5.1.1, ok failed 550 5.1.1 <gone"},
		{"ok gone fine", "ok failed 550 5.1.1 <gone, gone failed 550 5.1.1, fine failed 550 5.1.1 <gone"},
		{"ok busy", "ok deferred 450 4.2.1 <busy, busy deferred 450 4.2.1"},
		{"ok grey", "ok deferred 451 4.7.1 <grey, grey deferred 451 4.7.1"},
		{"ok away", "ok failed 550 5.7.1 <away, away failed 550 5.7.1"},
		{"gone ok left", "gone failed 550 5.1.1, ok failed 550 5.1.1 <gone, left failed 551 5.1.6"},
		{"full busy ok", "full deferred 452 4.2.2, busy deferred 450 4.2.1, ok deferred 452 4.2.2 <full"},
		{"busy gone", "busy failed 550 5.1.1 <gone, gone failed 550 5.1.1"}, // by itself it would have been deferred
		{"gone busy", "gone failed 550 5.1.1, busy failed 550 5.1.1 <gone"},
		{"away busy", "away failed 550 5.7.1, busy failed 550 5.7.1 <away"},
		{"grey busy", "grey deferred 451 4.7.1, busy deferred 451 4.7.1 <grey"},
		{"gone", "gone failed 550 5.1.1"},
		{"gone ok gone ok", "gone failed 550 5.1.1, ok failed 550 5.1.1 <gone, gone failed 550 5.1.1, ok failed 550 5.1.1 <gone"},
	} {
		for name, opts := range map[string][]smtptest.Option{"pipelining": nil, "stepwise": {smtptest.WithoutExtensions("PIPELINING")}, "chunking": {smtptest.WithExtensions("PIPELINING", "CHUNKING")}} {
			t.Run(test.to+" "+name, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].Chunking = name == "chunking" }, opts...)
					defer h.close()
					refuser(h.relays[0])
					r, err := h.pool.Deliver(t.Context(), together(test.to))
					if got := fates(r); got != test.want {
						t.Errorf("%s: %v", got, err)
					}
					for _, x := range r.Recipients { // the error and the reply are of the same refusal
						var re *smtplb.RelayError
						if !errors.As(x.Err(), &re) || re.Reply != x.Reply || re.Stage != smtplb.StageRcpt {
							t.Errorf("%+v", x)
						}
					}
				})
			})
		}
	}
}

// A 421 that ends the connection is about nobody: who got it beside one who was refused by name fares as that one.
func TestBecauseBesideTheEndOfTheConnection(t *testing.T) {
	for _, text := range []string{"4.3.2 Going down", "4.2.1 Busy", "4.7.1 Greylisted", ""} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, nil)
			defer h.close()
			refuser(h.relays[0])
			h.relays[0].On(smtptest.Rcpt).For("ok@example.com").Reply(421, text)
			if r, err := h.pool.Deliver(t.Context(), together("busy ok fine")); fates(r) != "busy deferred 450 4.2.1, ok deferred 450 4.2.1 <busy, fine deferred 450 4.2.1 <busy" {
				t.Errorf("%q: %s: %v", text, fates(r), err)
			}
		})
	}
}

// Because is an Addr of the receipt, as it stands in the envelope.
func TestBecauseIsAnAddr(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		refuser(h.relays[0])
		e := envelope("ok@example.com", "gone@EXAMPLE.com", "gone@example.com", "ok@Example.com")
		e.RequireAll = true
		r, _ := h.pool.Deliver(t.Context(), e)
		var got []string
		for _, x := range r.Recipients {
			got = append(got, x.Because)
		}
		if want := "gone@EXAMPLE.com,,,gone@EXAMPLE.com"; strings.Join(got, ",") != want {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

// What a relay says of the sender or of the message is nobody else's verdict, and neither is what one says of a recipient alone who needn't go with the others.
func TestBecauseOfNobody(t *testing.T) {
	for name, act := range map[string]func(s *smtptest.Server){
		"sender":   func(s *smtptest.Server) { s.On(smtptest.Mail).Reply(550, "5.1.8 Bad sender") },
		"data":     func(s *smtptest.Server) { s.On(smtptest.Data).Reply(554, "5.7.1 Spam") },
		"message":  func(s *smtptest.Server) { s.On(smtptest.EndOfData).Reply(554, "5.7.1 Spam") },
		"size":     func(s *smtptest.Server) { s.On(smtptest.EndOfData).Reply(552, "5.3.4 Message too big") },
		"broken":   func(s *smtptest.Server) { s.On(smtptest.Rcpt).Drop() },
		"unknown":  func(s *smtptest.Server) { s.On(smtptest.EndOfData).DropUnstored() },
		"refusing": func(s *smtptest.Server) { s.On(smtptest.Banner).Reply(554, "5.3.2 No service") },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 1, nil)
				defer h.close()
				act(h.relays[0])
				r, err := h.pool.Deliver(t.Context(), together("ok fine"))
				if r.Count(smtplb.Accepted) != 0 || strings.Contains(fates(r), "<") || strings.Contains(err.Error(), "because") {
					t.Errorf("%s: %v", fates(r), err)
				}
			})
		})
	}
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil, smtptest.WithExtensions("PIPELINING", "SIZE 10", "LIMITS RCPTMAX=2"))
		defer h.close()
		for range 2 { // before and after it is known what the relay takes
			if r, err := h.pool.Deliver(t.Context(), together("ok fine good")); outcomes(r) != "failed failed failed" || strings.Contains(fates(r), "<") {
				t.Errorf("beyond what the relay takes: %s: %v", fates(r), err)
			}
		}
	})
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		refuser(h.relays[0])
		e := together("gone ok busy")
		e.RequireAll = false
		if r, err := h.pool.Deliver(t.Context(), e); fates(r) != "gone failed 550 5.1.1, ok accepted 250 2.0.0, busy deferred 450 4.2.1" {
			t.Errorf("%s: %v", fates(r), err)
		}
	})
}

// The result tells of the last relay that was tried: because of whom goes with what that one said.
func TestBecauseGoesWithTheLastWord(t *testing.T) {
	for _, test := range []struct {
		name, want string
		second     func(s *smtptest.Server)
	}{
		{"another one", "ok deferred 450 4.2.0 <fine, busy deferred 450 4.2.0 <fine, fine deferred 450 4.2.0", func(s *smtptest.Server) { s.On(smtptest.Rcpt).For("fine@example.com").Reply(450, "4.2.0 Busy") }},
		{"the message", "ok failed 554 5.7.1, busy failed 554 5.7.1, fine failed 554 5.7.1", func(s *smtptest.Server) { s.On(smtptest.EndOfData).Reply(554, "5.7.1 Spam") }},
		{"nothing", "ok deferred, busy deferred, fine deferred", func(s *smtptest.Server) { s.Kill() }},
		{"it takes it", "ok accepted 250 2.0.0, busy accepted 250 2.0.0, fine accepted 250 2.0.0", func(*smtptest.Server) {}},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 2, tiered)
				defer h.close()
				refuser(h.relays[0])
				test.second(h.relays[1])
				if r, err := h.pool.Deliver(t.Context(), together("ok busy fine")); fates(r) != test.want || relaysTried(r) != "r0 r1" {
					t.Errorf("%s: %v, %v", fates(r), r, err)
				}
			})
		})
	}
}

// A relay that may have the message is asked again, and refuses one of them: unknown stays unknown, and whose words these are is told there too.
func TestBecauseOfAnUnknown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		h.relays[0].On(smtptest.EndOfData).Times(1).DropUnstored()
		h.relays[0].On(smtptest.Rcpt).For("late@example.com").Nth(2).Reply(550, "5.1.1 No such user")
		e := together("ok late")
		e.AtLeastOnce = true
		if r, err := h.pool.Deliver(t.Context(), e); fates(r) != "ok unknown 550 5.1.1 <late, late unknown 550 5.1.1" {
			t.Errorf("%s: %v", fates(r), err)
		}
	})
}

// A route that fails or defers one, does so to all, and tells the others because of whom; who is discarded stays so, as he isn't one of them.
func TestRoutesRequireAllSayBecauseOfWhom(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, tagged([]string{"a"},
			smtplb.Route{Recipients: []string{"ok@example.com", "fine@example.com"}, Tags: []string{"a"}},
			smtplb.Route{Recipients: []string{"fail@example.com"}, Action: smtplb.RouteFail, Text: "closed"},
			smtplb.Route{Recipients: []string{"never@example.com"}, Action: smtplb.RouteFail, Text: "barred"},
			smtplb.Route{Recipients: []string{"defer@example.com"}, Action: smtplb.RouteDefer, Text: "moving"},
			smtplb.Route{Recipients: []string{"later@example.com"}, Action: smtplb.RouteDefer, Text: "holiday"},
			smtplb.Route{Recipients: []string{"void@example.com"}, Action: smtplb.RouteDiscard, Text: "test"}))
		defer h.close()
		for _, test := range []struct {
			to, want string
			is       error
		}{
			{"ok fail fine", "ok failed closed <fail, fail failed closed, fine failed closed <fail", smtplb.ErrPermanent},
			{"ok defer", "ok deferred moving <defer, defer deferred moving", smtplb.ErrTemporary},
			{"fail ok never", "fail failed closed, ok failed closed <fail, never failed barred", smtplb.ErrPermanent},
			{"later ok defer", "later deferred holiday, ok deferred holiday <later, defer deferred moving", smtplb.ErrTemporary},
			{"defer fail", "defer failed closed <fail, fail failed closed", smtplb.ErrPermanent}, // by itself it would have been deferred
			{"fail void", "fail failed closed, void discarded test", smtplb.ErrPermanent},
			{"void ok fail", "void discarded test, ok failed closed <fail, fail failed closed", smtplb.ErrPermanent},
			{"void defer", "void discarded test, defer deferred moving", smtplb.ErrTemporary},
			{"ok defer void", "ok deferred moving <defer, defer deferred moving, void discarded test", smtplb.ErrTemporary},
		} {
			e := together(test.to)
			r, err := h.pool.Deliver(t.Context(), e)
			if fates(r) != test.want || !errors.Is(err, test.is) {
				t.Errorf("%s: %v", fates(r), err)
			}
			if again := r.Retry(e); again != nil && strings.Contains(strings.Join(again.To, " "), "void@") {
				t.Errorf("%s: the retry is for %v", test.to, again.To)
			}
			plan, err := h.pool.Explain(t.Context(), e)
			if err != nil || strings.Contains(test.want, "discarded") != strings.Contains(plan.String(), "discarded") {
				t.Errorf("%s: %v, %v", test.to, plan, err)
			}
		}
		if n := h.relays[0].Stats().Connections; n != 0 {
			t.Errorf("%d connections for what must not be sent", n)
		}
	})
}

// The error counts the innocent, and names nobody; code that was written for net/smtp finds the refusal as before.
func TestSendErrorTellsOfTheInnocent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		refuser(h.relays[0])
		for _, test := range []struct {
			to, want string
			code     int
		}{
			{"gone ok fine", "smtplb: 3 of 3 failed (2 because of another); r0: rcpt: 550 5.1.1 No such user", 550},
			{"ok busy", "smtplb: 2 of 2 deferred (1 because of another); r0: rcpt: 450 4.2.1 Mailbox busy", 450},
			{"gone left", "smtplb: 2 of 2 failed; r0: rcpt: 550 5.1.1 No such user; r0: rcpt: 551 5.1.6 Moved", 550},
			{"gone", "smtplb: failed; r0: rcpt: 550 5.1.1 No such user", 550},
		} {
			e := together(test.to)
			err := h.pool.SendMail("", nil, e.From, e.To, []byte(text))
			var tp *textproto.Error
			if err == nil || err.Error() != test.want || !errors.As(err, &tp) || tp.Code != test.code {
				t.Errorf("%s: %v, and found %v", test.to, err, tp)
			}
		}
	})
}
