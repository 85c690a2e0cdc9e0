package smtplb_test

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
	"github.com/wneessen/go-mail"
)

// This file holds code that stands in the documentation, word for word, and tries it.

// howMuch is the configuration of README's "How much is sent".
func howMuch() smtplb.Config {
	config := smtplb.Config{
		Relays: []smtplb.Relay{
			{Addr: "email-smtp.eu-west-1.amazonaws.com:587", Profile: smtplb.ProfileSES(), Limits: smtplb.Limits{Recipients: smtplb.Rate{N: 14, Burst: 1}}},
			{Addr: "mx1.example.com:587", Limits: smtplb.Limits{Messages: smtplb.PerMinute(600)}},
			{Addr: "mx2.example.com:587", Warmup: smtplb.Warmup{Curve: smtplb.SparkPostCurve()}}, // a new address: 200 recipients today, 500 tomorrow, …
		},
		Providers: []smtplb.Provider{
			{Name: "gmail", Limits: smtplb.Limits{Recipients: smtplb.Rate{N: 20, Burst: 1}}}, // over all relays
			{Name: "partner", Domains: []string{"partner.example", "*.partner.example"}, Limits: smtplb.Limits{Concurrency: 2}},
		},
		// Each Envelope.Key, or domain of From: 10 messages a second, and never more than 10,000 recipients in any 24 hours.
		PerSender: smtplb.Limits{Messages: smtplb.PerSecond(10), Recipients: smtplb.Rate{N: 5_000, Per: 24 * time.Hour, Burst: 5_000}},
		Store:     smtplb.NewFileStore("/var/lib/app/warmup"), // how far the warm-up is, over restarts
	}
	return config
}

// listed signs what marketing needs to have signed, as docs/deliverability.md says.
func listed(key ed25519.PrivateKey) *mail.Msg {
	signer := mail.NewDKIMSigner("example.com", "selector", key)
	signer.SignHeaders("From", "To", "Subject", "Date", "Message-ID", "Content-Type", "MIME-Version", "List-Unsubscribe", "List-Unsubscribe-Post")
	msg := mail.NewMsg(mail.WithDKIM(signer))
	return msg
}

// What is tried here is what is printed there.
func TestPrintedCode(t *testing.T) {
	own, err := os.ReadFile("readme_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for file, begins := range map[string]string{"README.md": "config := smtplb.Config{\n", "docs/deliverability.md": "signer := mail.NewDKIMSigner("} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, code, _ := strings.Cut(string(b), "```go\n"+begins)
		code, _, ok := strings.Cut(begins+code, "```")
		if code = "\t" + strings.ReplaceAll(strings.TrimSuffix(code, "\n"), "\n", "\n\t") + "\n"; !ok || !strings.Contains(string(own), code) {
			t.Errorf("%s has other code than this file:\n%s", file, code)
		}
	}
}

// README's limits let an application send: 100 messages of one sender are gone within seconds.
func TestReadmeLimits(t *testing.T) {
	t.Parallel()
	store := filepath.Join(t.TempDir(), "warmup")
	bubble(t, func(t *testing.T) {
		network := smtptest.NewNetwork()
		config := howMuch()
		config.Dial, config.Store = network.DialContext, smtplb.NewFileStore(store)
		for i := range config.Relays {
			config.Relays[i].TLS = smtplb.TLSNone
			s := network.NewServer(config.Relays[i].Addr)
			defer s.Close()
		}
		pool, err := smtplb.New(config)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		var list []*smtplb.Envelope
		for i := range 100 {
			list = append(list, envelope(fmt.Sprintf("x%d@example.com", i)))
		}
		begun := time.Now()
		for r := range pool.DeliverAll(t.Context(), slices.Values(list), smtplb.Bulk{}) {
			if r.Err != nil {
				t.Error(r.Err)
			}
		}
		if took := time.Since(begun); took > 12*time.Second {
			t.Errorf("100 messages took %v", took)
		}
	})
}

// The recipe for a quota of a day never lets more than that through in any 24 hours, however it is used.
func TestDailyQuotaRecipe(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		const n = 240
		l := smtplb.LocalLimiter()
		charge := []smtplb.Charge{{Scope: "relay", Rate: smtplb.Rate{N: n / 2, Per: 24 * time.Hour, Burst: n / 2}, N: 1}}
		begun := time.Now()
		var at []time.Duration
		for minute := range 5 * 24 * 60 {
			for minute > 24*60 || minute%7 == 0 { // as much as there is, from the second day on; little before
				if _, err := l.Reserve(t.Context(), charge, 0); err != nil {
					break
				}
				if at = append(at, time.Since(begun)); minute <= 24*60 {
					break
				}
			}
			time.Sleep(time.Minute)
		}
		most := 0
		for i := range at {
			k := i
			for k < len(at) && at[k]-at[i] < 24*time.Hour {
				k++
			}
			most = max(most, k-i)
		}
		if most > n || most < n*9/10 {
			t.Errorf("%d in 24 hours, of %d", most, n)
		}
	})
}

// go-mail signs the fields of RFC 8058 where it is told to.
func TestListUnsubscribeIsSigned(t *testing.T) {
	t.Parallel()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for msg, want := range map[*mail.Msg]bool{
		listed(key): true,
		mail.NewMsg(mail.WithDKIM(mail.NewDKIMSigner("example.com", "selector", key))): false,
	} {
		if err := errors.Join(msg.From("a@example.com"), msg.To("x@example.com")); err != nil {
			t.Fatal(err)
		}
		msg.SetGenHeader("List-Unsubscribe", "<https://example.com/u/1>")
		msg.SetGenHeader("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")
		msg.SetBodyString(mail.TypeTextPlain, "Hello")
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, nil)
			defer h.close()
			if _, err := h.pool.Send(t.Context(), msg); err != nil {
				t.Fatal(err)
			}
			text := strings.ReplaceAll(string(h.relays[0].Messages()[0].Data), "\r\n ", "")
			_, signature, _ := strings.Cut(text, "DKIM-Signature:")
			signature, _, _ = strings.Cut(signature, "bh=")
			if signed := strings.Contains(signature, ":List-Unsubscribe:List-Unsubscribe-Post"); signed != want {
				t.Errorf("signed: %v, not %v: %s", signed, want, text)
			}
		})
	}
}

// Words that say nothing of an amount are no throttling, unless Rules say so, as README's do.
func TestGenericWordsNeedRules(t *testing.T) {
	t.Parallel()
	rules := []smtplb.Rule{{Code: 451, Match: "please try again later"}, {Code: 452, Enhanced: "4.3.1"}}
	for code, text := range map[int]string{451: "4.7.1 please try again later", 452: "4.3.1 no"} {
		for _, own := range [][]smtplb.Rule{nil, rules} {
			bubble(t, func(t *testing.T) {
				h := newHouse(t, 1, func(c *smtplb.Config) { c.Relays[0].Rules = own })
				defer h.close()
				h.relays[0].On(smtptest.Mail).Times(1).Reply(code, text)
				h.sends(envelope("x@example.com"), "deferred")
				if spared := len(h.pool.Stats().Relays[0].BackOff) > 0; spared != (own != nil) {
					t.Errorf("%d %s, with %d rules: spared %v", code, text, len(own), spared)
				}
			})
		}
	}
}

// What a DeliverAll has to wait for longer than MaxThrottleWait is deferred at once, and goes at the limit's pace where that is longer.
func TestSlowRateInBulk(t *testing.T) {
	t.Parallel()
	for _, most := range []time.Duration{0, 61 * time.Second, -1} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, func(c *smtplb.Config) {
				c.Relays[0].Limits.Messages, c.MaxThrottleWait = smtplb.PerMinute(1), most
			})
			defer h.close()
			list := []*smtplb.Envelope{envelope("a@example.com"), envelope("b@example.com"), envelope("c@example.com")}
			accepted, begun := 0, time.Now()
			for r := range h.pool.DeliverAll(t.Context(), slices.Values(list), smtplb.Bulk{}) {
				if r.Err == nil {
					accepted++
				}
			}
			if took := time.Since(begun); most == 0 && (accepted != 1 || took > time.Second) || most != 0 && (accepted != 3 || took < 2*time.Minute) {
				t.Errorf("MaxThrottleWait %v: %d accepted in %v", most, accepted, took)
			}
		})
	}
}
