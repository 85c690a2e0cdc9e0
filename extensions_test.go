package smtplb_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

func TestDSN(t *testing.T) {
	for _, tc := range []struct {
		dsn        smtplb.DSN
		mail, rcpt string // parameters, but for SIZE
	}{
		{smtplb.DSN{}, "", ""},
		{smtplb.DSN{Notify: smtplb.DSNNever}, "", "NOTIFY=NEVER"},
		{smtplb.DSN{Notify: smtplb.DSNFailure}, "", "NOTIFY=FAILURE"},
		{smtplb.DSN{Notify: smtplb.DSNSuccess | smtplb.DSNFailure | smtplb.DSNDelay, Return: smtplb.DSNReturnHeaders}, "RET=HDRS", "NOTIFY=SUCCESS,FAILURE,DELAY"},
		{smtplb.DSN{Return: smtplb.DSNReturnFull, EnvelopeID: "order 7+8=15"}, "RET=FULL ENVID=order+207+2B8+3D15", ""},
	} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, nil)
			defer h.close()
			e := envelope("x@example.com", "y@example.com")
			e.DSN = &tc.dsn
			if _, err := h.pool.Deliver(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			m := h.relays[0].Messages()[0]
			var params []string
			for _, p := range m.MailParams {
				if !strings.HasPrefix(p, "SIZE=") {
					params = append(params, p)
				}
			}
			if got := strings.Join(params, " "); got != tc.mail {
				t.Errorf("%+v: MAIL with %q, want %q", tc.dsn, got, tc.mail)
			}
			for _, p := range m.RcptParams {
				if got := strings.Join(p, " "); got != tc.rcpt {
					t.Errorf("%+v: RCPT with %q, want %q", tc.dsn, got, tc.rcpt)
				}
			}
		})
	}
}

func TestDSNFaults(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		for field, dsn := range map[string]smtplb.DSN{
			"DSN.Notify":     {Notify: smtplb.DSNNever | smtplb.DSNFailure},
			"DSN.Return":     {Return: 7},
			"DSN.EnvelopeID": {EnvelopeID: "x\r\nRCPT TO:<evil@example.com>"},
		} {
			e := envelope("x@example.com")
			e.DSN = &dsn
			_, err := h.pool.Deliver(t.Context(), e)
			var ee *smtplb.EnvelopeError
			if !errors.As(err, &ee) || ee.Field != field {
				t.Errorf("%s: %v", field, err)
			}
		}
		for _, dsn := range []smtplb.DSN{{Notify: 200}, {EnvelopeID: strings.Repeat("x", 101)}, {EnvelopeID: "ä"}, {EnvelopeID: "\x00"}} {
			e := envelope("x@example.com")
			e.DSN = &dsn
			if _, err := h.pool.Deliver(t.Context(), e); !errors.Is(err, smtplb.ErrPermanent) {
				t.Errorf("%+v: %v", dsn, err)
			}
		}
		if n := h.relays[0].Stats().Connections; n != 0 {
			t.Errorf("%d connections", n)
		}
	})
}

// TestIncapableRelaysAreSkipped, uncounted, for each thing that a message may need; where no relay is capable the message has failed.
func TestIncapableRelaysAreSkipped(t *testing.T) {
	for keyword, change := range map[string]func(e *smtplb.Envelope){
		"DSN":      func(e *smtplb.Envelope) { e.DSN = &smtplb.DSN{Notify: smtplb.DSNNever} },
		"8BITMIME": func(e *smtplb.Envelope) { e.Body = smtplb.Bytes([]byte("Subject: x\r\n\r\n\xe4\r\n")) },
		"SMTPUTF8": func(e *smtplb.Envelope) { e.To = []string{"jürgen@example.com"} },
	} {
		t.Run(keyword, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 1, nil, smtptest.WithoutExtensions(keyword))
				defer h.close()
				able := h.net.NewServer("able.test:25")
				defer able.Close()
				pool, err := smtplb.New(smtplb.Config{Dial: h.net.DialContext, Relays: []smtplb.Relay{
					{Addr: h.relays[0].Addr, TLS: smtplb.TLSNone, Breaker: smtplb.Breaker{Consecutive: 1}},
					{Addr: able.Addr, TLS: smtplb.TLSNone, Tier: 1},
				}})
				if err != nil {
					t.Fatal(err)
				}
				defer pool.Close()
				for range 3 {
					e := envelope("x@example.com")
					change(e)
					if _, err := pool.Deliver(t.Context(), e); err != nil {
						t.Error(err)
					}
				}
				s := pool.Stats()
				if s.Relays[0].Faults != 0 || s.Relays[0].Breaker != "closed" || s.Relays[0].Attempts > 1 || len(able.Messages()) != 3 {
					t.Errorf("%+v, %d stored", s.Relays[0], len(able.Messages()))
				}
				e := envelope("x@example.com")
				change(e)
				if _, err := h.pool.Deliver(t.Context(), e); !errors.Is(err, smtplb.ErrPermanent) || !strings.Contains(err.Error(), keyword) {
					t.Errorf("with no capable relay: %v", err)
				}
			})
		})
	}
}

// TestChunking sends by BDAT, and by DATA on the same relay where it turns out not to know the BDAT that it offers.
func TestChunking(t *testing.T) {
	for _, known := range []bool{true, false} {
		t.Run(fmt.Sprintf("known=%v", known), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].Chunking = true }, smtptest.WithExtensions("PIPELINING", "CHUNKING", "8BITMIME"))
				defer h.close()
				if !known {
					// By number: BDAT and DATA are one stage to a script.
					h.relays[0].On(smtptest.Data).Nth(1).Reply(502, "5.5.1 Command not implemented")
				}
				for i := range 3 {
					r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
					if err != nil || len(r.Attempts) != 1 {
						t.Fatalf("message %d: %v: %v", i, r, err)
					}
				}
				for _, m := range h.relays[0].Messages() {
					if string(m.Data) != text {
						t.Errorf("stored %q", m.Data)
					}
				}
				log := h.relays[0].Transcript()
				bdat, data := strings.Count(log, "BDAT "), strings.Count(log, " DATA")
				if known && (bdat != 3 || data != 0) || !known && (bdat != 1 || data != 3) || len(h.relays[0].Messages()) != 3 {
					t.Errorf("%d BDAT, %d DATA:\n%s", bdat, data, log)
				}
				if s := h.pool.Stats().Relays[0]; s.Faults != 0 || s.Attempts != 3 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// TestLostEnvelope: a relay that loses what follows the dot costs one timeout, and nobody rides with it for an hour.
func TestLostEnvelope(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, func(c *smtplb.Config) {
			c.Relays[0].Conns.Max = 1
			c.Relays[1].Tier = 1
		})
		defer h.close()
		lossy := h.relays[0].On(smtptest.Mail).Nth(2).Stall()
		h.relays[0].On(smtptest.Data).Nth(1).Delay(100 * time.Millisecond) // until the second one waits
		send := func(to string, rode bool) <-chan error {
			done := make(chan error, 1)
			go func() {
				r, err := h.pool.Deliver(t.Context(), envelope(to))
				if err == nil && r.Attempts[0].Rode != rode {
					err = fmt.Errorf("rode: %v", r)
				}
				done <- err
			}()
			return done
		}
		first := send("first@example.com", false)
		time.Sleep(10 * time.Millisecond)
		second := send("second@example.com", true)
		for _, done := range []<-chan error{first, second} {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if lossy.Fired() != 1 || h.stored("first@example.com") != 1 || h.stored("second@example.com") != 1 {
			t.Errorf("stored %d and %d times", h.stored("first@example.com"), h.stored("second@example.com"))
		}
		h.relays[0].On(smtptest.Data).Delay(100 * time.Millisecond)
		for i := range 5 {
			a := send(fmt.Sprintf("a%d@example.com", i), false)
			time.Sleep(10 * time.Millisecond)
			b := send(fmt.Sprintf("b%d@example.com", i), false)
			if err := errors.Join(<-a, <-b); err != nil {
				t.Error(err)
			}
		}
		if n := h.pool.Stats().Relays[0].Rides; n != 1 {
			t.Errorf("%d rides", n)
		}
	})
}

// TestNoRiding: the option keeps envelopes apart.
func TestNoRiding(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Relays[0].Conns.Max = 1
			c.Relays[0].NoRiding = true
		})
		defer h.close()
		pulled := 0
		for r := range h.pool.DeliverAll(t.Context(), letters(50, &pulled), smtplb.Bulk{}) {
			if r.Err != nil || r.Receipt.Attempts[0].Rode {
				t.Error(r.Receipt, r.Err)
			}
		}
		if n := h.pool.Stats().Relays[0].Rides; n != 0 {
			t.Errorf("%d rides", n)
		}
	})
}

// TestSessionTickets: the second connection to a relay resumes the first one's TLS session, unless that would go past a check of the caller's.
func TestSessionTickets(t *testing.T) {
	for _, custom := range []bool{false, true} {
		s := smtptest.NewServer(smtptest.WithRequireTLS())
		var resumed []bool
		tc := s.ClientTLS()
		tc.VerifyConnection = func(cs tls.ConnectionState) error {
			resumed = append(resumed, cs.DidResume)
			return nil
		}
		if custom {
			tc.VerifyPeerCertificate = func([][]byte, [][]*x509.Certificate) error { return nil }
		}
		pool, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{{Addr: s.Addr, TLS: smtplb.TLSStartTLS, TLSConfig: tc, Conns: smtplb.Conns{MaxMessages: 1}}}})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
				t.Fatal(err)
			}
		}
		pool.Close()
		s.Close()
		if want := []bool{false, !custom, !custom}; !reflect.DeepEqual(resumed, want) {
			t.Errorf("with a check of the caller's: %v: resumed %v, want %v", custom, resumed, want)
		}
	}
}

// TestRideOfARefusedRecipient: recipients refused on the way, whole envelopes of them too, cost neither the connection nor anybody else.
func TestRideOfARefusedRecipient(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].Conns.Max = 1 })
		defer h.close()
		h.net.SetLatency(5*time.Millisecond, 5*time.Millisecond) // time for others to queue up
		h.relays[0].On(smtptest.Rcpt).For("gone@example.com").Reply(550, "5.1.1 No such user")
		seq := func(yield func(*smtplb.Envelope) bool) {
			for i := range 60 {
				to := []string{fmt.Sprintf("u%d@example.com", i), "gone@example.com"}
				if i%3 == 0 {
					to = to[:1]
				}
				if i%3 == 1 {
					to = to[1:]
				}
				if !yield(envelope(to...)) {
					return
				}
			}
		}
		for r := range h.pool.DeliverAll(t.Context(), seq, smtplb.Bulk{}) {
			for i, x := range r.Receipt.Recipients {
				want := smtplb.Accepted
				if r.Envelope.To[i] == "gone@example.com" {
					want = smtplb.Failed
				} else if n := h.stored(x.Addr); n != 1 {
					t.Errorf("%s is stored %d times", x.Addr, n)
				}
				if x.Outcome != want {
					t.Errorf("%s: %v", x.Addr, x)
				}
			}
		}
		if s := h.pool.Stats().Relays[0]; s.Opened != 1 || s.Rides < 10 {
			t.Errorf("%d connections, %d rides", s.Opened, s.Rides)
		}
		for _, m := range h.relays[0].Messages() {
			for _, to := range m.To {
				if to == "gone@example.com" {
					t.Error("sent to who was refused")
				}
			}
		}
	})
}
