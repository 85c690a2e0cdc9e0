package smtplb_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// Errors that come long after their cause still name it.
func TestNoRelaySaysWhy(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var reasons []string
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Hooks.RelayState = func(e smtplb.RelayEvent) { reasons = append(reasons, e.Breaker+": "+e.Reason) }
		})
		defer h.close()
		h.relays[0].On(smtptest.Mail).Reply(530, "5.7.0 Authentication required")
		r, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		var se *smtplb.SendError
		if !errors.As(err, &se) || se.RetryAfter < 4*time.Minute || r.Recipients[0].RetryAfter != se.RetryAfter {
			t.Errorf("the relay was closed for minutes, and the retry is to come after %v: %v", se.RetryAfter, err)
		}
		_, err = h.pool.Deliver(t.Context(), envelope("x@example.com"))
		if !errors.Is(err, smtplb.ErrNoRelay) || !strings.Contains(err.Error(), "r0 is open until") || !strings.Contains(err.Error(), "530 5.7.0 Authentication required") {
			t.Errorf("no reason in %v", err)
		}
		if s := h.pool.Stats().Relays[0]; !strings.Contains(s.Reason, "mail: 530 5.7.0") {
			t.Errorf("Stats says %q", s.Reason)
		}
		if len(reasons) != 1 || !strings.HasPrefix(reasons[0], "open: mail: 530") {
			t.Errorf("hooks heard %q", reasons)
		}
	})
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		h.relays[0].Kill()
		for range 5 {
			h.pool.Deliver(t.Context(), envelope("x@example.com"))
		}
		_, err := h.pool.Deliver(t.Context(), envelope("x@example.com"))
		if !strings.Contains(err.Error(), "5 consecutive faults; the last: dial: connect") {
			t.Errorf("no reason in %v", err)
		}
	})
}

// A message that no relay can take is told why, from what is known of them too.
func TestIncapableSaysWhy(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, nil, smtptest.WithMaxSize(1000))
		defer h.close()
		for range 4 {
			if _, err := h.pool.Deliver(t.Context(), envelope("x@example.com")); err != nil {
				t.Fatal(err)
			}
		}
		e := envelope("x@example.com")
		e.Body = smtplb.Bytes([]byte(text + strings.Repeat("A line.\r\n", 200)))
		r, err := h.pool.Deliver(t.Context(), e)
		if outcomes(r) != "failed" || !strings.Contains(err.Error(), "r0: it takes 1000 bytes, and the message has 1847") {
			t.Errorf("%v", err)
		}
	})
}

func TestHintsForAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		for addr, hint := range map[string]string{
			"Alice <a@x.example>":   "without a name",
			"a@x.example,b@example": "one address for each entry",
			"a@@x.example":          `more than one "@"`,
			"a@x.example ":          "blank",
		} {
			_, err := h.pool.Deliver(t.Context(), envelope(addr))
			var ee *smtplb.EnvelopeError
			if !errors.As(err, &ee) || ee.Field != "To[0]" || !strings.Contains(ee.Reason, hint) {
				t.Errorf("%q: %v", addr, err)
			}
		}
	})
}

func TestDurationsWithoutAUnit(t *testing.T) {
	_, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{{
		Addr: "mx.example.com:587", Timeouts: smtplb.Timeouts{Final: 30, Dial: -1}, Conns: smtplb.Conns{MaxAge: 90}, Breaker: smtplb.Breaker{OpenFor: 15},
	}}})
	for _, path := range []string{"Relays[0].Timeouts.Final", "Relays[0].Conns.MaxAge", "Relays[0].Breaker.OpenFor"} {
		if err == nil || !strings.Contains(err.Error(), path+": is ") {
			t.Errorf("%s is not in %v", path, err)
		}
	}
	if err != nil && strings.Contains(err.Error(), "Dial") {
		t.Errorf("a negative one means no limit: %v", err)
	}
}

func TestNilReceiptAndZeroPool(t *testing.T) {
	var r *smtplb.Receipt
	if r.Retry(envelope("x@example.com")) != nil || r.Count(smtplb.Accepted) != 0 || r.String() == "" || fmt.Sprint(r.LogValue()) == "" {
		t.Error("a nil Receipt tells of recipients")
	}
	var p smtplb.Pool
	r, err := p.Deliver(t.Context(), envelope("x@example.com"))
	if r != nil || err == nil || errors.Is(err, smtplb.ErrPermanent) || errors.Is(err, smtplb.ErrTemporary) {
		t.Errorf("%v: %v", r, err)
	}
	if p.Close() == nil || p.Shutdown(t.Context()) == nil || len(p.Stats().Relays) != 0 {
		t.Error("a Pool that New didn't make works")
	}
}
