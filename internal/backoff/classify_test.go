package backoff_test

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/smtplb/smtplb/internal/backoff"
	"github.com/smtplb/smtplb/internal/reply"
)

// parse reads a reply as the session does.
func parse(tb testing.TB, lines string) reply.Reply {
	tb.Helper()
	var rd reply.Reader
	rd.Reset(strings.NewReader(strings.ReplaceAll(lines, "\n", "\r\n")+"\r\n"), make([]byte, 4096))
	r, err := rd.Read()
	if err != nil {
		tb.Fatalf("%q: %v", lines, err)
	}
	return r
}

// TestSamples are the replies that services and mailbox providers are known to give.
func TestSamples(t *testing.T) {
	const (
		banner, hello, auth, mail, rcpt, data, final = reply.StageBanner, reply.StageHello, reply.StageAuth, reply.StageMail, reply.StageRcpt, reply.StageData, reply.StageFinal

		none, throttle, connections, quota, grey, block = backoff.None, backoff.Throttle, backoff.Connections, backoff.Quota, backoff.Greylist, backoff.Block
		account, provider                               = backoff.Account, backoff.Provider
	)
	for _, x := range []struct {
		stage reply.Stage
		reply string
		kind  backoff.Kind
		scope backoff.Scope
		at    time.Duration // For
		hard  bool          // BackOff
	}{
		// Amazon SES
		{banner, "421 Too many concurrent SMTP connections", connections, account, 0, false},
		{final, "454 Throttling failure: Maximum sending rate exceeded", throttle, account, 0, false},
		{mail, "454 Throttling failure: Maximum sending rate exceeded", throttle, account, 0, false},
		{final, "454 Throttling failure: Daily message quota exceeded", quota, account, 0, false},
		{final, "554 Message rejected: Email address is not verified. The following identities failed the check", block, account, 0, false},
		// Microsoft 365
		{mail, "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending", connections, account, 0, false},
		{final, "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded", connections, account, 0, false},
		{auth, "432 4.7.12 A password transition is needed", none, account, 0, false},
		{final, "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message", quota, account, 0, false},
		{final, "554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed", block, account, 0, false},
		{final, "550 5.2.251 Sender throttled due to continuous invalid recipients errors", throttle, account, 0, false},
		{final, "550 5.2.252 Sender throttled", throttle, account, 0, false},
		{rcpt, "550 5.2.252 SendAsDenied; a@example.com not allowed to send as b@example.com", block, account, 0, false},
		{rcpt, "550 5.2.253 Sender throttled", throttle, account, 0, false},
		{mail, "550 5.2.254 Sender throttled", throttle, account, 0, false},
		{data, "550 5.2.255 Sender throttled", throttle, account, 0, false},
		{rcpt, "550 5.2.250 no such mailbox", none, account, 0, false},
		{final, "550 5.7.233 Your message can't be sent because the tenant exceeded its limit", quota, account, 0, false},
		{final, "550 5.7.232 Your message can't be sent because your trial tenant has exceeded its limit", quota, account, 0, false},
		{rcpt, "550 5.1.90 Your message can't be sent because you've reached your daily limit for message recipients", quota, account, 0, false},
		// Google's relay
		{rcpt, "450 4.2.1 Peak SMTP relay limit exceeded for customer. This is a temporary error.", throttle, account, 0, false},
		{rcpt, "550 5.7.1 Daily SMTP relay limit exceeded for customer.", quota, account, 0, false},
		{rcpt, "550 5.4.5 Daily SMTP relay limit exceeded for user.", quota, account, 0, false},
		{final, "550-5.4.5 Daily user sending limit exceeded. For more information\n550 5.4.5 go to https://support.google.com/a/answer/166852 x1 - gsmtp", quota, account, 0, false},
		// SocketLabs
		{banner, "421 4.4.5 - Too many connections from your host", connections, account, 0, false},
		{hello, "421 4.4.5 Service unavailable", throttle, account, 0, false},
		{rcpt, "452 5.5.3 - Too many recipients", none, account, 0, false},
		{mail, "452 5.5.3 Message limit reached", quota, account, 0, false},
		// Emailit
		{mail, "452 4.4.5 Messages per second limit exceeded", throttle, account, 0, false},
		{mail, "452 4.5.3 Daily message limit exceeded", quota, account, 0, false},
		{rcpt, "452 4.5.3 Too many recipients", none, account, 0, false},
		{rcpt, "452 4.5.3 Daily message limit exceeded", none, account, 0, false},
		// msndr
		{auth, "550 Too many messages. Try again in 92 seconds.", throttle, account, 102 * time.Second, false},
		// Gmail
		{final, "421-4.7.28 Our system has detected an unusual rate of unsolicited mail\n421 4.7.28 originating from your IP address. x - gsmtp", throttle, provider, 0, false},
		{rcpt, "421 4.7.0 [192.0.2.1] Our system has detected an unusual rate of unsolicited mail", throttle, provider, 0, false},
		{rcpt, "450 4.2.1 The user you are trying to contact is receiving mail too quickly.", throttle, provider, 0, false},
		{rcpt, "450-4.2.1 The user you are trying to contact is receiving mail at a rate\n450 4.2.1 that prevents additional messages from being delivered.", throttle, provider, 0, false},
		// Microsoft's mailboxes
		{final, "451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation.", throttle, provider, 0, false},
		{rcpt, "451 4.7.651 The mail server has been temporarily rate limited", throttle, provider, 0, false},
		{rcpt, "451 4.7.652 The mail server has exceeded the maximum number of connections.", throttle, provider, 0, false},
		{mail, "421 RP-001 (BAY0-MC4-F1) Unfortunately, some messages weren't sent.", throttle, provider, 0, false},
		{mail, "421 RP-002 The mail server IP has exceeded the rate limit", throttle, provider, 0, false},
		{mail, "421 RP-003 The connection limit was exceeded", throttle, provider, 0, false},
		{rcpt, "451 4.7.500 Server busy. Please try again later from [192.0.2.1].", throttle, provider, 0, false},
		// Yahoo
		{mail, "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints", throttle, provider, 0, false},
		{mail, "421 4.7.1 [TS03] All messages from 192.0.2.1 will be permanently deferred; Retrying will NOT succeed.", throttle, provider, 0, true},
		// iCloud
		{rcpt, "421 4.7.1 Messages to <x@icloud.com> deferred due to excessive volume. Try again later", throttle, provider, 0, false},
		// Greylisting
		{rcpt, "450 4.2.0 <x@example.com>: Recipient address rejected: Greylisted", grey, account, 0, false},
		{rcpt, "451 4.7.1 Greylisting in action, please come back in 00:05:00", grey, account, 310 * time.Second, false},
		{rcpt, "450 4.7.1 Client host rejected: cannot find your hostname", none, account, 0, false},
		{mail, "451 4.7.1 Greylisted, please try again in 300 seconds", none, account, 310 * time.Second, false},
		// Others
		// Postfix's anvil: the number of connections, and their rate, which has the same words; messages, recipients, logins, TLS handshakes (by STARTTLS, and on a port that is TLS from the first byte) in a time
		{banner, "421 4.7.0 mx.example.com Error: too many connections from 192.0.2.1", connections, account, 0, false},
		{mail, "450 4.7.1 Error: too much mail from 192.0.2.1", throttle, account, 0, false},
		{rcpt, "450 4.7.1 Error: too many recipients from 192.0.2.1", throttle, account, 0, false},
		{auth, "450 4.7.1 Error: too many AUTH commands from 192.0.2.1", throttle, account, 0, false},
		{reply.StageStartTLS, "454 4.7.0 Error: too many new TLS sessions from 192.0.2.1", throttle, account, 0, false},
		{banner, "421 4.7.0 mx.example.com Error: too many new TLS sessions from 192.0.2.1", throttle, account, 0, false},
		{rcpt, "452 4.5.3 Error: too many recipients", none, account, 0, false}, // in this transaction
		{rcpt, "452 4.5.3 Error: too many recipients from 192.0.2.1", none, account, 0, false},
		{rcpt, "550 5.7.1 Error: too many recipients from 192.0.2.1", none, account, 0, false},
		{mail, "421 4.7.0 mx.example.com Error: too many connections from 192.0.2.1", connections, account, 0, false},
		{banner, "421 4.7.0 Connection rate limit exceeded", throttle, account, 0, false},
		{mail, "421 4.7.0 Too many messages in this connection", none, account, 0, false},
		{mail, "451 4.4.5 congestion", throttle, account, 0, false},
		{rcpt, "452 4.2.2 Mailbox full: daily limit of messages exceeded", none, account, 0, false},
		{rcpt, "550 5.1.1 <rate-limit@example.com>: no such user", none, account, 0, false},
		{rcpt, "450 4.1.1 <too-many-messages@example.com> unknown, throttled", none, account, 0, false},
		{rcpt, "450 <throttled@example.com>: rejected", none, account, 0, false},
		{final, "451 Try again in 3 hours", none, account, time.Hour, false},
		{mail, "535 5.7.8 Too many messages", none, account, 0, false},
		{reply.StageQuit, "421 4.7.0 too many connections", none, account, 0, false},
		{final, "250 2.0.0 Ok, throttled to nothing, try again in 5 minutes", none, account, 0, false},
	} {
		r := parse(t, x.reply)
		g := (*backoff.Rules)(nil).Classify(x.stage, &r)
		if g.Kind != x.kind || g.Scope != x.scope || g.For != x.at || g.BackOff != x.hard {
			t.Errorf("%v: %s: is %v (%v), for %v, back-off %v; want %v (%v), %v, %v", x.stage, x.reply, g.Kind, g.Scope, g.For, g.BackOff, x.kind, x.scope, x.at, x.hard)
		}
		if (g.Reply != "") != (g.Kind != none) || len(g.Reply) > 123 {
			t.Errorf("%v: %s: Reply is %q", x.stage, x.reply, g.Reply)
		}
	}
}

func TestHints(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"Try again in 92 seconds.":              102 * time.Second,
		"please RETRY after 5 min":              310 * time.Second,
		"try again later, in 2 minutes please":  130 * time.Second,
		"wait 30s":                              40 * time.Second,
		"come back in 01:00:00":                 time.Hour,
		"greylisted for 300 seconds":            310 * time.Second,
		"Graylisted for 60 sec.":                70 * time.Second,
		"retry in 1 hour":                       time.Hour,
		"try again in 999999 hours":             time.Hour,
		"try again in 0 seconds":                10 * time.Second,
		"try again\nin 20 seconds":              30 * time.Second,
		"try again in 99999999999999999 second": 0,
		"try again in 5 mailboxes":              0,
		"try again later":                       0,
		"the last 5 minutes":                    0,
		"again@example.com in 5 seconds":        0,
	} {
		r := reply.Reply{Code: 450, Text: text}
		if g := (*backoff.Rules)(nil).Classify(reply.StageMail, &r); g.For != want {
			t.Errorf("%q: %v, want %v", text, g.For, want)
		}
	}
}

func TestRules(t *testing.T) {
	p := func(c, s, d int) backoff.Pattern {
		return backoff.Pattern{Class: uint16(c + 1), Subject: uint16(s + 1), Detail: uint16(d + 1)}
	}
	first := []backoff.Rule{
		{Code: 450, Stage: reply.StageRcpt, Kind: backoff.Quota, For: 5 * time.Minute},
		{Match: regexp.MustCompile("(?i)house full"), Kind: backoff.Throttle, BackOff: true},
		{Enhanced: p(4, 9, -1), Kind: backoff.Connections},
	}
	second := []backoff.Rule{
		{Code: 450, Kind: backoff.Greylist},
		{Code: 5, Enhanced: p(-1, 7, 99), Kind: backoff.Throttle, Scope: backoff.Provider},
		{Match: regexp.MustCompile("Throttling"), Kind: backoff.None},
	}
	rules := backoff.NewRules(first, second)
	for _, x := range []struct {
		stage reply.Stage
		reply string
		want  backoff.Signal
		rule  bool
	}{
		{reply.StageRcpt, "450 4.2.1 try again in 20 seconds", backoff.Signal{Kind: backoff.Quota, For: 5 * time.Minute, Reply: "450 4.2.1 try again in 20 seconds"}, true},
		{reply.StageMail, "450 4.2.1 try again in 20 seconds", backoff.Signal{Kind: backoff.Greylist, For: 30 * time.Second, Reply: "450 4.2.1 try again in 20 seconds"}, true},
		{reply.StageMail, "451-4.0.0 House\n451 4.0.0 full", backoff.Signal{}, false}, // the enhanced code stands between
		{reply.StageMail, "451-House\n451 full", backoff.Signal{Kind: backoff.Throttle, BackOff: true, Reply: "451 House; full"}, true},
		{reply.StageMail, "451 4.9.3 x", backoff.Signal{Kind: backoff.Connections, Reply: "451 4.9.3 x"}, true},
		{reply.StageMail, "451 x", backoff.Signal{}, false},
		{reply.StageMail, "551 5.7.99 x", backoff.Signal{Kind: backoff.Throttle, Scope: backoff.Provider, Reply: "551 5.7.99 x"}, true},
		{reply.StageMail, "451 4.7.99 x", backoff.Signal{}, false},
		{reply.StageFinal, "454 Throttling failure: Maximum sending rate exceeded", backoff.Signal{}, true},
		{reply.StageFinal, "454 4.3.2 busy", backoff.Signal{Kind: backoff.Throttle, Reply: "454 4.3.2 busy"}, false}, // the built-in ones follow
		{reply.StageRcpt, "250 house full", backoff.Signal{}, false},
	} {
		r := parse(t, x.reply)
		g := rules.Classify(x.stage, &r)
		if (g.Rule != nil) != x.rule {
			t.Errorf("%s: by a rule: %v, want %v", x.reply, g.Rule != nil, x.rule)
		}
		g.Rule = nil
		if d := cmp.Diff(x.want, g); d != "" {
			t.Errorf("%v: %s (-want +got):\n%s", x.stage, x.reply, d)
		}
	}
}

// TestClassifySuccessIsFree holds that what is no refusal costs nothing.
func TestClassifySuccessIsFree(t *testing.T) {
	rules := backoff.NewRules([]backoff.Rule{{Match: regexp.MustCompile("ok"), Kind: backoff.Quota}}, nil)
	r := reply.Reply{Code: 250, Text: "2.0.0 ok"}
	if n := testing.AllocsPerRun(100, func() { rules.Classify(reply.StageFinal, &r) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkClassifySuccess(b *testing.B) {
	rules := backoff.NewRules([]backoff.Rule{{Match: regexp.MustCompile("ok"), Kind: backoff.Quota}}, nil)
	r := reply.Reply{Code: 250, Text: "2.0.0 Ok: queued as 4Wc2Nk1xX3z9rXB"}
	b.ReportAllocs()
	for b.Loop() {
		rules.Classify(reply.StageFinal, &r)
	}
}

func BenchmarkClassifyRefusal(b *testing.B) {
	r := reply.Reply{Code: 550, Enhanced: reply.Enhanced{Class: 5, Subject: 1, Detail: 1}, Text: "5.1.1 <somebody@example.com>: Recipient address rejected: User unknown in virtual mailbox table"}
	b.ReportAllocs()
	for b.Loop() {
		(*backoff.Rules)(nil).Classify(reply.StageRcpt, &r)
	}
}
