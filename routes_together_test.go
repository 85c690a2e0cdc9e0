package smtplb_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// Where routes fail one recipient of RequireAll and defer another, the message has one fate whatever their order: it failed, as no retry could do better. Who is discarded is none of them, as where a relay refuses one.
func TestRoutesRequireAllHasOneFate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, tagged([]string{"a"},
			smtplb.Route{Recipients: []string{"a.test"}, Tags: []string{"a"}},
			smtplb.Route{Recipients: []string{"fail.test"}, Action: smtplb.RouteFail, Text: "5.7.1 gone"},
			smtplb.Route{Recipients: []string{"defer.test"}, Action: smtplb.RouteDefer},
			smtplb.Route{Recipients: []string{"void.test"}, Action: smtplb.RouteDiscard}))
		defer h.close()
		for _, x := range []struct {
			to   []string
			want string
			is   error
		}{
			{[]string{"x@fail.test", "x@defer.test", "x@a.test"}, "failed failed failed", smtplb.ErrPermanent},
			{[]string{"x@defer.test", "x@a.test", "x@fail.test"}, "failed failed failed", smtplb.ErrPermanent},
			{[]string{"x@void.test", "x@fail.test", "x@a.test"}, "discarded failed failed", smtplb.ErrPermanent},
			{[]string{"x@fail.test", "x@void.test", "x@a.test"}, "failed discarded failed", smtplb.ErrPermanent},
			{[]string{"x@void.test", "x@a.test", "x@defer.test"}, "discarded deferred deferred", smtplb.ErrTemporary},
			{[]string{"x@defer.test", "x@void.test", "x@a.test"}, "deferred discarded deferred", smtplb.ErrTemporary},
			{[]string{"x@a.test", "x@void.test", "y@a.test"}, "accepted discarded accepted", smtplb.ErrPartial},
		} {
			e := envelope(x.to...)
			e.RequireAll = true
			r, err := h.pool.Deliver(t.Context(), e)
			if outcomes(r) != x.want || !errors.Is(err, x.is) {
				t.Errorf("%v: %v, %v", x.to, r, err)
			}
			if p, err := h.pool.Explain(t.Context(), e); err != nil || (p.Others == nil) != !strings.Contains(x.want, "discarded") {
				t.Errorf("%v: %+v, %v", x.to, p, err)
			}
		}
	})
}

// Who is discarded doesn't go together with the others: a relay that takes two recipients at a time is enough for two beside him, and not for three.
func TestRoutesRequireAllLeavesOutTheDiscarded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) {
			c.Routes = []smtplb.Route{{Recipients: []string{"void.test"}, Action: smtplb.RouteDiscard}}
		}, smtptest.WithExtensions("PIPELINING", "LIMITS RCPTMAX=2"))
		defer h.close()
		h.sends(envelope("w@a.test"), "accepted") // what the relay offers is known
		e := envelope("x@a.test", "x@void.test", "y@a.test")
		e.RequireAll = true
		if r, err := h.pool.Deliver(t.Context(), e); outcomes(r) != "accepted discarded accepted" {
			t.Errorf("%v, %v", r, err)
		}
		e = envelope("x@a.test", "y@a.test", "x@void.test", "z@a.test")
		e.RequireAll = true
		if r, err := h.pool.Deliver(t.Context(), e); outcomes(r) != "failed failed discarded failed" {
			t.Errorf("%v, %v", r, err)
		}
	})
}
