package smtplb_test

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// Where a relay's limit counts recipients, what is held back is so many messages of those that went before, and Stats says so: "12/s" alone would be taken for the configured limit's unit.
func TestBackoffBesideALimitOfRecipients(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].Limits.Recipients = smtplb.Rate{N: 1000, Burst: 1000} })
		defer h.close()
		for range 80 { // 8 a second, of 3 recipients each
			h.sends(envelope("x@example.com", "y@example.com", "z@example.com"), "accepted accepted accepted")
			time.Sleep(125 * time.Millisecond)
		}
		h.relays[0].On(smtptest.Mail).Times(1).Reply(451, "4.7.0 Too many messages, slow down")
		if _, err := h.pool.Deliver(context.Background(), envelope("x@example.com")); err == nil {
			t.Error("not refused")
		}
		time.Sleep(time.Minute)
		text := h.pool.Stats().Relays[0].BackOff
		if !regexp.MustCompile(`^halved at \d\d:\d\d \(451 4\.7\.0 Too many messages, slow down\), 4\S*/s of messages, where 8\S*/s went before, window \d+ of 10$`).MatchString(text) {
			t.Error(text)
		}
	})
}

// A message that parts for its providers' limits alone is explained without routes that nobody has configured.
func TestExplainPartsWithoutRoutes(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		limits := smtplb.Limits{Messages: smtplb.PerHour(1)}
		h := newHouse(t, 1, func(c *smtplb.Config) { c.Providers = []smtplb.Provider{{Name: "gmail", Limits: limits}} })
		defer h.close()
		e := envelope("x@gmail.com", "y@example.com", "z@googlemail.com")
		explain := func() string {
			p, err := h.pool.Explain(context.Background(), e)
			if err != nil {
				t.Fatal(err)
			}
			return p.String()
		}
		text := explain()
		if strings.Contains(text, "oute") || !strings.HasPrefix(text, "2 recipients of gmail: goes out now") || !strings.Contains(text, "\n1 other recipients: goes out now") {
			t.Error(text)
		}
		if err := h.pool.Update(h.config(func(c *smtplb.Config) {
			c.Providers = []smtplb.Provider{{Name: "gmail", Limits: limits}}
			c.Routes = []smtplb.Route{{Name: "mine", Recipients: []string{"example.com"}, Relays: []string{"r0"}}}
		})); err != nil {
			t.Fatal(err)
		}
		if text := explain(); !strings.HasPrefix(text, "route of all that no Route is for, 2 recipients of gmail: ") || !strings.Contains(text, "\nroute mine, 1 recipients: ") {
			t.Error(text)
		}
	})
}
