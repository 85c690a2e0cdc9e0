package smtplb_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

var classes = map[string]error{
	"closed": smtplb.ErrClosed, "no relay": smtplb.ErrNoRelay, "throttled": smtplb.ErrThrottled, "temporary": smtplb.ErrTemporary,
	"permanent": smtplb.ErrPermanent, "unknown": smtplb.ErrUnknown, "partial": smtplb.ErrPartial,
}

// classesOf is the sentinels that err matches, as words.
func classesOf(err error) string {
	var s []string
	for name, class := range classes {
		if errors.Is(err, class) {
			s = append(s, name)
		}
	}
	slices.Sort(s)
	return strings.Join(s, " ")
}

// Every mix of outcomes, and the classes that its error has.
func TestErrorClasses(t *testing.T) {
	script := func(h *house) {
		r := h.relays[0]
		r.On(smtptest.Rcpt).For("@accepted.test").Reply(450, "4.2.1 Mailbox busy") // and taken by the next relay
		r.On(smtptest.Rcpt).For("@failed.test").Reply(550, "5.1.1 No such user")
		r.On(smtptest.Rcpt).For("@deferred.test").Reply(451, "4.7.1 Greylisted")
		r.On(smtptest.EndOfData).For("@unknown.test").DropUnstored()
	}
	words := []string{"accepted", "failed", "deferred", "unknown"}
	for set := 1; set < 1<<len(words); set++ {
		for _, atLeastOnce := range []bool{false, true} {
			t.Run(fmt.Sprintf("%04b %v", set, atLeastOnce), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					h := newHouse(t, 2, func(c *smtplb.Config) { c.Relays[1].Tier = 1 })
					defer h.close()
					script(h)
					if atLeastOnce { // nobody takes what is unknown
						h.relays[1].On(smtptest.Rcpt).For("@unknown.test").Reply(550, "5.1.1 No such user")
					}
					e := envelope()
					e.AtLeastOnce = atLeastOnce
					has := map[string]bool{}
					var want []string
					for i, w := range words {
						if set&(1<<i) != 0 {
							has[w] = true
							want = append(want, w, w)
							e.To = append(e.To, "a@"+w+".test", "b@"+w+".test")
						}
					}
					r, err := h.pool.Deliver(t.Context(), e)
					if got := outcomes(r); got != strings.Join(want, " ") {
						t.Fatalf("%v: %s: %v", want, got, err)
					}
					var class []string
					if has["accepted"] && len(has) > 1 {
						class = append(class, "partial")
					}
					if !has["accepted"] && !has["unknown"] {
						if has["deferred"] {
							class = append(class, "temporary")
						} else {
							class = append(class, "permanent")
						}
					}
					if has["unknown"] {
						class = append(class, "unknown")
					}
					if got := classesOf(err); got != strings.Join(class, " ") {
						t.Errorf("%v is %q, want %q: %v", want, got, class, err)
					}
					if (err == nil) != (len(has) == 1 && has["accepted"]) {
						t.Errorf("%v: %v", want, err)
					}
					var se *smtplb.SendError
					if err != nil && (!errors.As(err, &se) || se.Receipt != r || se.RetryAfter > 0 != has["deferred"]) {
						t.Errorf("%v: %+v", want, se)
					}
					again := r.Retry(e)
					if has["deferred"] != (again != nil) || again != nil && fmt.Sprint(again.To) != "[a@deferred.test b@deferred.test]" {
						t.Errorf("%v: Retry is %+v", want, again)
					}
					for _, x := range r.Recipients {
						if n := h.stored(x.Addr); (n > 0) != (x.Outcome == smtplb.Accepted) || n > 1 {
							t.Errorf("%v: %s is stored %d times", want, x.Addr, n)
						}
						var re *smtplb.RelayError
						var tp *textproto.Error
						if found := errors.As(x.Err(), &re); found != (x.Outcome != smtplb.Accepted) || found && re.Relay != x.Relay {
							t.Errorf("%s: %v", x.Addr, x.Err())
						}
						if found := errors.As(x.Err(), &tp); found != (x.Reply.Code != 0 && x.Outcome != smtplb.Accepted) || found && (tp.Code != x.Reply.Code || tp.Msg != x.Reply.Text) {
							t.Errorf("%s: %+v", x.Addr, tp)
						}
						if (x.RetryAfter > 0) != (x.Outcome == smtplb.Deferred) || x.Outcome == smtplb.Deferred != x.Greylisted {
							t.Errorf("%+v", x)
						}
					}
					if err != nil && (!printable(err.Error()) || strings.Contains(err.Error(), "@")) {
						t.Errorf("%v: %q", want, err.Error())
					}
				})
			})
		}
	}
}

func TestErrorCauses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].Breaker.Consecutive = 1 })
		defer h.close()
		h.relays[0].Kill()
		e := envelope("x@example.com")
		r, err := h.pool.Deliver(t.Context(), e)
		var re *smtplb.RelayError
		var op *net.OpError
		if classesOf(err) != "temporary" || !errors.As(err, &re) || re.Stage != smtplb.StageDial || re.Failure != "connect" || re.Relay != "r0" || !errors.Is(err, syscall.ECONNREFUSED) || !errors.As(err, &op) {
			t.Errorf("%v: %v", r, err)
		}
		r, err = h.pool.Deliver(t.Context(), e) // the breaker is open
		if classesOf(err) != "no relay temporary" || r.Recipients[0].Relay != "" || r.Recipients[0].Err() == nil || len(r.Attempts) != 0 || errors.As(err, &re) {
			t.Errorf("%v: %q: %v", r, classesOf(err), err)
		}
		e.Body = smtplb.Reader(iotest.ErrReader(io.ErrUnexpectedEOF))
		var src *smtplb.SourceError
		if _, err = h.pool.Deliver(t.Context(), e); classesOf(err) != "temporary" || !errors.Is(err, io.ErrUnexpectedEOF) || !errors.As(err, &src) {
			t.Errorf("%q: %v", classesOf(err), err)
		}
		h.pool.Close()
		r, err = h.pool.Deliver(t.Context(), envelope("x@example.com"))
		if classesOf(err) != "closed temporary" || outcomes(r) != "deferred" {
			t.Errorf("%v: %q: %v", r, classesOf(err), err)
		}
		if err := h.pool.SendMail("", nil, "a@example.com", []string{"x@example.com"}, []byte(text)); classesOf(err) != "closed temporary" {
			t.Errorf("%q: %v", classesOf(err), err)
		}
		// A faulty envelope is a faulty envelope, even here.
		if _, err = h.pool.Deliver(t.Context(), &smtplb.Envelope{}); classesOf(err) != "permanent" {
			t.Errorf("%q: %v", classesOf(err), err)
		}
	})
}

// ErrThrottled is the word of relays that want less mail now, and only where somebody is left to be sent to later.
func TestThrottled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) { c.Relays[1].Tier = 1 })
		defer h.close()
		h.relays[0].On(smtptest.Mail).Reply(450, "4.7.28 Unusual rate of mail")
		if r, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
			t.Errorf("%v: %v", r, err)
		}
		h.relays[1].On(smtptest.Mail).Reply(450, "4.7.28 Unusual rate of mail")
		r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		if classesOf(err) != "temporary throttled" || outcomes(r) != "deferred" {
			t.Errorf("%q: %v: %v", classesOf(err), r, err)
		}
		h.relays[1].ClearScript()
		h.relays[1].On(smtptest.Rcpt).Reply(550, "5.1.1 No such user")
		if r, err = h.pool.Deliver(t.Context(), envelope("x@example.com")); classesOf(err) != "permanent" {
			t.Errorf("%q: %v: %v", classesOf(err), r, err)
		}
		if s := h.pool.Stats().Relays; s[0].Faults != 0 || !s[0].Cooling {
			t.Errorf("%+v", s[0])
		}
	})
}

// The errors of the caller's context are found, and so is its cause, wherever it ends.
func TestContextErrors(t *testing.T) {
	cause := errors.New("the user went home")
	for _, test := range []struct {
		name   string
		script func(h *house)
		want   string
	}{
		{"before the start", nil, "deferred"},
		{"dial", func(h *house) { h.net.Blackhole("r0.test:25", true) }, "deferred"},
		{"banner", func(h *house) { h.relays[0].On(smtptest.Banner).Stall() }, "deferred"},
		{"mail", func(h *house) { h.relays[0].On(smtptest.Mail).Stall() }, "deferred"},
		{"data", func(h *house) { h.relays[0].On(smtptest.Data).Stall() }, "deferred"},
		{"final", func(h *house) { h.relays[0].On(smtptest.EndOfData).Stall() }, "unknown"},
		{"waiting for a connection", func(h *house) {
			h.relays[0].On(smtptest.EndOfData).For("first@example.com").Stall()
			go h.pool.Deliver(context.Background(), envelope("first@example.com"))
			time.Sleep(time.Second)
		}, "deferred"},
	} {
		for _, how := range []string{"cancel", "cause", "deadline", "deadline cause"} {
			t.Run(test.name+" "+how, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].Conns.Max = 1 })
					defer h.close()
					if test.script != nil {
						test.script(h)
					}
					wait := 3 * time.Second
					if test.script == nil {
						wait = 0
					}
					var ctx context.Context
					var cancel func()
					wantIs := []error{context.DeadlineExceeded}
					switch how {
					case "cancel":
						ctx, cancel = context.WithCancel(t.Context())
						time.AfterFunc(wait, cancel)
						wantIs = []error{context.Canceled}
					case "cause":
						c, cancelCause := context.WithCancelCause(t.Context())
						ctx, cancel = c, func() { cancelCause(nil) }
						time.AfterFunc(wait, func() { cancelCause(cause) })
						wantIs = []error{context.Canceled, cause}
					case "deadline":
						ctx, cancel = context.WithTimeout(t.Context(), wait)
					case "deadline cause":
						ctx, cancel = context.WithTimeoutCause(t.Context(), wait, cause)
						wantIs = append(wantIs, cause)
					}
					defer cancel()
					if wait == 0 {
						<-ctx.Done()
					}
					begun := time.Now()
					r, err := h.pool.Deliver(ctx, envelope("x@example.com"))
					if took := time.Since(begun); took > wait+5*time.Second || took > wait && test.want == "deferred" {
						t.Errorf("took %v", took)
					}
					if outcomes(r) != test.want {
						t.Errorf("%v: %v", outcomes(r), err)
					}
					for _, want := range wantIs {
						if !errors.Is(err, want) {
							t.Errorf("%v is not found in %v", want, err)
						}
					}
					h.pool.Close()
					synctest.Wait() // for the other send
					for _, other := range []error{context.Canceled, context.DeadlineExceeded} {
						if errors.Is(err, other) && !slices.Contains(wantIs, other) {
							t.Errorf("%v is found in %v", other, err)
						}
					}
				})
			})
		}
	}
}

// Whatever relays say, an error is one line, of some kilobytes at the most, and does nothing to a terminal.
func TestHostileReplies(t *testing.T) {
	const esc = "\x1b]0;owned\x07\x1b[2J\b\b\x00\xff\xfe\u202e\u2028"
	long := strings.Repeat(esc, 60)
	for name, script := range map[string]func(s *smtptest.Server){
		"banner":    func(s *smtptest.Server) { s.On(smtptest.Banner).Reply(554, esc+"\n"+long) },
		"no banner": func(s *smtptest.Server) { s.On(smtptest.Banner).Raw(long + "\r\n") },
		"half line": func(s *smtptest.Server) { s.On(smtptest.Mail).Raw("250 " + esc + "\n" + esc + "\r") },
		"mail": func(s *smtptest.Server) {
			s.On(smtptest.Mail).Reply(550, "5.7.1 "+esc+"\n5.7.1 "+long+"\nsmtplb: accepted")
		},
		"each rcpt":  func(s *smtptest.Server) { s.On(smtptest.Rcpt).Reply(550, "5.1.1 "+long+"\n"+long) },
		"final":      func(s *smtptest.Server) { s.On(smtptest.EndOfData).Reply(554, strings.Repeat(esc+"\n", 50)) },
		"many lines": func(s *smtptest.Server) { s.On(smtptest.Mail).Reply(550, strings.Repeat("x\n", 100)) },
		"endless":    func(s *smtptest.Server) { s.On(smtptest.Mail).Endless("250-" + esc) },
		"long line":  func(s *smtptest.Server) { s.On(smtptest.Mail).Reply(550, strings.Repeat("x", 5000)) },
		"code only":  func(s *smtptest.Server) { s.On(smtptest.Mail).Raw("550\r\n") },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 8, func(c *smtplb.Config) { c.Retry.Attempts = -1 })
				defer h.close()
				var to []string
				for i := range 20 {
					to = append(to, fmt.Sprintf("u%d@example.com", i))
				}
				for i, s := range h.relays {
					s.On(smtptest.Rcpt).For("@never.test").Reply(550, fmt.Sprint(i))
					script(s)
				}
				r, err := h.pool.Deliver(t.Context(), envelope(to...))
				if err == nil {
					t.Fatalf("%v", r)
				}
				check := func(what, s string) {
					t.Helper()
					if !printable(s) || strings.ContainsRune(s, '\u202e') || len(s) > 4096 {
						t.Errorf("%s: %d bytes: %.200q", what, len(s), s)
					}
				}
				check("error", err.Error())
				check("receipt", r.String())
				for _, a := range r.Attempts {
					check("attempt", fmt.Sprint(a.Err))
				}
				for _, x := range r.Recipients {
					check("recipient", fmt.Sprint(x.Err()))
					check("reply", x.Reply.String())
				}
				for _, s := range h.pool.Stats().Relays {
					check("reason", s.Reason)
				}
			})
		})
	}
}

// The same holds for what does not come from a relay's replies: a caller's Dial, a certificate.
func TestHostileFailures(t *testing.T) {
	check := func(t *testing.T, err error) {
		t.Helper()
		if err == nil || !printable(err.Error()) || len(err.Error()) > 4096 {
			t.Errorf("%d bytes: %.200q", len(fmt.Sprint(err)), fmt.Sprint(err))
		}
	}
	t.Run("dial", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			bad := errors.New("two\nlines\x1b[2J" + strings.Repeat("x", 10000))
			h := newHouse(t, 1, func(c *smtplb.Config) {
				c.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, bad }
			})
			defer h.close()
			r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
			check(t, err)
			check(t, r.Attempts[0].Err)
			if !errors.Is(err, bad) {
				t.Error("the error itself is lost")
			}
		})
	})
	t.Run("source", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, nil)
			defer h.close()
			e := envelope("x@example.com")
			e.Body = smtplb.Reader(iotest.ErrReader(errors.New("two\nlines" + strings.Repeat("x", 10000))))
			_, err := h.pool.Deliver(t.Context(), e)
			check(t, err)
		})
	})
	t.Run("certificate", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			var names []string
			for i := range 90 {
				names = append(names, fmt.Sprintf("%s%d.test", strings.Repeat("n", 50), i))
			}
			n := smtptest.NewNetwork()
			s := n.NewServer("r.test:587", smtptest.WithCertificateFor(names...))
			defer s.Close()
			pool, err := smtplb.New(smtplb.Config{Dial: n.DialContext, Relays: []smtplb.Relay{{Name: "r", Addr: "r.test:587", TLSConfig: s.ClientTLS()}}})
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			_, err = pool.Deliver(t.Context(), envelope("x@example.com"))
			check(t, err)
			var ce *tls.CertificateVerificationError
			if !errors.As(err, &ce) {
				t.Errorf("%T", errors.Unwrap(err))
			}
		})
	})
}

// An error of many relays tells what each of them said, once.
func TestErrorTellsWhatRelaysSaid(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 3, nil)
		defer h.close()
		for i, s := range h.relays {
			s.On(smtptest.Mail).Reply(451, fmt.Sprintf("4.3.0 no%d", i))
		}
		_, err := h.pool.Deliver(t.Context(), envelope("x@example.com", "y@example.com"))
		for i := range 3 {
			if n := strings.Count(err.Error(), fmt.Sprintf("r%d: mail: 451 4.3.0 no%d", i, i)); n != 1 {
				t.Errorf("relay %d's word stands %d times in %v", i, n, err)
			}
		}
		if !strings.HasPrefix(err.Error(), "smtplb: 2 of 2 deferred; ") || strings.Contains(err.Error(), "example.com") {
			t.Error(err)
		}
		// errors.As leads to each relay's word.
		said := map[string]bool{}
		var walk func(err error)
		walk = func(err error) {
			if re, ok := err.(*smtplb.RelayError); ok {
				said[re.Relay+" "+re.Reply.Enhanced] = true
			}
			switch x := err.(type) {
			case interface{ Unwrap() []error }:
				for _, e := range x.Unwrap() {
					walk(e)
				}
			case interface{ Unwrap() error }:
				walk(x.Unwrap())
			}
		}
		walk(err)
		if len(said) != 3 || !said["r2 4.3.0"] {
			t.Errorf("%v", said)
		}
	})
}
