package smtplb

import (
	"cmp"
	"strings"
	"time"

	"github.com/smtplb/smtplb/internal/backoff"
)

// Profile is what a service publishes about its relays: limits, and what its refusals mean. ProfileSES and the others make those of known services; they may be changed before use, as accounts differ.
//
// A figure that a service doesn't publish is not there. What a service allows one account (SES's rate, a plan's monthly volume) is for Relay to say.
type Profile struct {
	Name          string // for people
	Conns         Conns  // where Relay.Conns says nothing
	Messages      Rate   // transactions, where the relay's own limits say nothing
	Recipients    Rate   // likewise
	MaxRecipients int    // in one transaction; 0: no less than usual
	Rules         []Rule // after the caller's, before the built-in ones
}

// validate adds the profile's faults to f, and returns its rules.
func (p *Profile) validate(path string, f *faults) []backoff.Rule {
	if strings.ContainsFunc(p.Name, isControl) || len(p.Name) > 255 {
		f.add(path+".Name", "control characters, or more than 255 bytes")
	}
	if p.MaxRecipients < 0 {
		f.add(path+".MaxRecipients", "is negative; 0: no less than usual")
	}
	Limits{Messages: p.Messages, Recipients: p.Recipients}.validate(path, scopeRelay, f)
	if limits := p.Conns.limits(); p.Conns.Reserved > 0 && limits.Max > 0 && limits.Reserved >= limits.Max {
		f.add(path+".Conns.Reserved", "is %d of %d connections; bulk needs one at least", p.Conns.Reserved, limits.Max)
	}
	for _, d := range []struct {
		field string
		value time.Duration
	}{{"Conns.MaxAge", p.Conns.MaxAge}, {"Conns.MaxIdleTime", p.Conns.MaxIdleTime}} {
		if d.value > 0 && d.value < leastRule {
			f.add(path+"."+d.field, "is %v; a millisecond is the least (30 is 30ns: write 30*time.Second)", d.value)
		}
	}
	return compileRules(p.Rules, path+".Rules", f)
}

// ProfileSES is Amazon SES's SMTP interface.
//
//   - 50 recipients in a message: https://docs.aws.amazon.com/ses/latest/dg/quotas.html, read in November 2026.
//   - Idle connections are closed after 10 s, which AWS doesn't publish: https://github.com/juhasev/laravel-ses/pull/15, June 2022; so they are kept for 8 s.
//   - Its rate and its daily quota are the account's, and not published; they count recipients (the same page). In the sandbox, 1 a second and 200 a day.
//   - "454 Throttling failure" and its two reasons: https://docs.aws.amazon.com/ses/latest/dg/manage-sending-quotas-errors.html, read in November 2026, which recommends to wait for up to 10 minutes.
func ProfileSES() Profile {
	return Profile{
		Name:          "Amazon SES",
		Conns:         Conns{MaxIdleTime: 8 * time.Second},
		MaxRecipients: 50,
		Rules: []Rule{
			{Match: `Too many concurrent SMTP connections`, Code: 421, Action: RuleConnections},
			{Match: `Throttling failure: Daily message quota exceeded`, Code: 454, Action: RuleQuota},
			{Match: `Throttling failure`, Code: 454, Action: RuleThrottle},
			{Match: `is not verified`, Code: 554, Action: RuleBlock},
		},
	}
}

// ProfileMicrosoft365 is SMTP client submission to Exchange Online (smtp.office365.com), by one mailbox.
//
//   - 3 connections at a time, 30 messages a minute, 10,000 recipients a day: https://learn.microsoft.com/en-us/exchange/troubleshoot/send-emails/smtp-submission-improvements, read in November 2026. The connections since
//     June 2018: https://techcommunity.microsoft.com/blog/exchange/changes-coming-to-the-smtp-authenticated-submission-client-protocol/607825, April 2018.
//   - The replies to more connections, to a full day (554 5.2.0) and to a full mailbox (554 5.2.2): the same page.
//   - 4.7.500 and the like come from the mailbox's own server here, so they are about the account.
func ProfileMicrosoft365() Profile {
	return Profile{
		Name:       "Microsoft 365",
		Conns:      Conns{Max: 3},
		Messages:   PerMinute(30),
		Recipients: PerDay(10000),
		Rules: []Rule{
			{Enhanced: "4.7.12", Action: RuleIgnore}, // RFC 4954 §6: a password transition
			{Code: 432, Action: RuleConnections},
			{Match: `SendAsDenied`, Code: 5, Action: RuleBlock},
			{Match: `STOREDRV\.Submission\.Exception:\s?(Submission)?QuotaExceeded`, Code: 554, Action: RuleQuota},
			{Match: `throttled`, Enhanced: "5.2.*", Action: RuleThrottle},
			{Enhanced: "5.7.232", Action: RuleQuota},
			{Enhanced: "5.7.233", Action: RuleQuota},
			{Enhanced: "5.7.236", Action: RuleQuota},
			{Enhanced: "5.1.90", Action: RuleQuota},
			{Enhanced: "4.7.500", Action: RuleThrottle},
		},
	}
}

// ProfileGoogleRelay is Google Workspace's SMTP relay service (smtp-relay.gmail.com).
//
//   - 100 recipients in a transaction, and the replies to too many: https://support.google.com/a/answer/6140680, read in November 2026.
//   - A user's 10,000 recipients in 24 hours: https://support.google.com/a/answer/2956491, read in November 2026. They are a user's and not the relay's, which has a limit of its own for the whole organisation that isn't
//     published; so there is no rate here.
func ProfileGoogleRelay() Profile {
	return Profile{
		Name:          "Google Workspace SMTP relay",
		MaxRecipients: 100,
		Rules: []Rule{
			{Match: `Peak SMTP relay limit exceeded`, Code: 450, Enhanced: "4.2.1", Action: RuleThrottle},
			{Match: `Daily SMTP relay limit exceeded`, Code: 550, Action: RuleQuota},
			{Enhanced: "5.4.5", Action: RuleQuota},
			{Enhanced: "4.7.28", Action: RuleThrottle}, // of the relay itself it is about the account
			{Match: `unusual rate`, Code: 421, Action: RuleThrottle},
		},
	}
}

// ProfileSendGrid is Twilio SendGrid's SMTP relay.
//
//   - 5,000 messages on a connection, 10,000 connections from one server: https://www.twilio.com/docs/sendgrid/for-developers/sending-email/integrating-with-the-smtp-api, read in November 2026. Both are more than
//     the defaults, which stay.
//   - No rate is published for SMTP. A plan's volume ends in "credits exceeded", which the built-in rules know.
func ProfileSendGrid() Profile {
	return Profile{
		Name: "SendGrid",
		Rules: []Rule{
			{Match: `maximum credits exceeded`, Action: RuleQuota},
		},
	}
}

// ProfileMailgun is Mailgun's SMTP service.
//
// It has rate limits, and publishes no figures for SMTP: https://documentation.mailgun.com/docs/mailgun/user-manual/sending-messages, read in November 2026. Nor is there a list of its replies, so the built-in rules have to do.
func ProfileMailgun() Profile { return Profile{Name: "Mailgun"} }

// ProfilePostmark is Postmark's SMTP service.
//
//   - 10 connections at a time from one address, which is recommended, not enforced: https://postmarkapp.com/support/article/do-we-have-rate-limits-for-smtp, August 2026.
//   - 50 recipients in a message: https://postmarkapp.com/developer, read in November 2026.
//   - No rate is published.
func ProfilePostmark() Profile {
	return Profile{Name: "Postmark", Conns: Conns{Max: 10}, MaxRecipients: 50}
}

// ProfileSparkPost is SparkPost's SMTP relay (not that of enterprise accounts).
//
//   - 10 connections at a time: https://support.sparkpost.com/docs/tech-resources/smtp-rest-api-performance, June 2021.
//   - 100 messages on a connection, which is recommended: https://developers.sparkpost.com/api/smtp/, read in November 2026.
//   - A new account's daily limit is the plan's: https://support.sparkpost.com/docs/faq/daily-and-monthly-quota-limits. The reply to more isn't published; the built-in rules know the usual words.
func ProfileSparkPost() Profile {
	return Profile{Name: "SparkPost", Conns: Conns{Max: 10, MaxMessages: 100}}
}

// conns is Conns, and where it says nothing what the profile does.
func (r *Relay) conns() Conns {
	c, p := r.Conns, r.Profile.Conns
	return Conns{
		Max: cmp.Or(c.Max, p.Max), Reserved: cmp.Or(c.Reserved, p.Reserved), MaxIdle: cmp.Or(c.MaxIdle, p.MaxIdle), MaxMessages: cmp.Or(c.MaxMessages, p.MaxMessages),
		MaxAge: cmp.Or(c.MaxAge, p.MaxAge), MaxIdleTime: cmp.Or(c.MaxIdleTime, p.MaxIdleTime),
	}
}

// limits is Limits likewise.
func (r *Relay) limits() Limits {
	l := r.Limits
	l.Messages, l.Recipients = cmp.Or(l.Messages, r.Profile.Messages), cmp.Or(l.Recipients, r.Profile.Recipients)
	return l
}

// maxRecipients is how many recipients a transaction may have.
func (r *Relay) maxRecipients() int {
	if n := r.Profile.MaxRecipients; n > 0 {
		return min(n, maxRecipients)
	}
	return maxRecipients
}
