package smtplb

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/smtplb/smtplb/internal/backoff"
	"github.com/smtplb/smtplb/internal/reply"
	"github.com/smtplb/smtplb/internal/verdict"
)

// TestProfileFaults holds that every fault is told with its path.
func TestProfileFaults(t *testing.T) {
	p := Profile{
		Name:          "a\nb",
		Conns:         Conns{Max: 3, Reserved: 3, MaxIdleTime: 30, MaxAge: 5},
		MaxRecipients: -1,
		Messages:      Rate{N: -1},
		Recipients:    Rate{N: 1, Per: -time.Hour},
		Rules: []Rule{
			{},
			{Match: "(", Code: 99},
			{Match: strings.Repeat("x", 1001), Code: 600},
			{Code: 450, Enhanced: "5.7.1"},
			{Enhanced: "4.7"},
			{Enhanced: "*.*.*"},
			{Enhanced: "2.0.0"},
			{Enhanced: "4.7.1000"},
			{Code: 4, Stage: "lunch", Action: 99},
			{Code: 4, Stage: StageDial, Threshold: -1},
			{Code: 4, Threshold: 2},
			{Code: 4, Threshold: 1, Per: time.Minute},
			{Code: 4, Threshold: 1001, Per: 25 * time.Hour, For: -1},
			{Code: 4, For: 30},
			{Stage: StageMail, Action: RuleIgnore},
			{Code: 5, Enhanced: "5.*.3", Stage: StageFinal, Threshold: 3, Per: time.Minute, For: time.Hour, Action: RuleBackOff}, // nothing is wrong with this one
		},
	}
	var f faults
	p.validate("Relays[0].Profile", &f)
	var got []string
	for _, err := range f {
		var c *ConfigError
		if !errors.As(err, &c) {
			t.Fatalf("%T", err)
		}
		got = append(got, c.Path)
		if c.Reason == "" || strings.Contains(c.Reason, "%!") {
			t.Errorf("%s: reason %q", c.Path, c.Reason)
		}
	}
	want := []string{
		".Name", ".MaxRecipients", ".Messages", ".Recipients", ".Conns.Reserved", ".Conns.MaxAge", ".Conns.MaxIdleTime",
		".Rules[0]", ".Rules[1].Match", ".Rules[1].Code", ".Rules[2].Match", ".Rules[2].Code", ".Rules[3].Enhanced", ".Rules[4].Enhanced", ".Rules[5].Enhanced", ".Rules[6].Enhanced", ".Rules[7].Enhanced",
		".Rules[8].Stage", ".Rules[8].Action", ".Rules[9].Stage", ".Rules[9].Threshold", ".Rules[10].Per", ".Rules[11].Per", ".Rules[12].Threshold", ".Rules[12].Per", ".Rules[12].For", ".Rules[13].For", ".Rules[14]",
	}
	for i := range want {
		want[i] = "Relays[0].Profile" + want[i]
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	f = nil
	(&Profile{Rules: make([]Rule, maxRulesOf+1)}).validate("P", &f)
	if len(f) != 1 || !strings.HasPrefix(f[0].Error(), "smtplb: P.Rules: ") {
		t.Errorf("too many rules: %v", f)
	}
	if _, err := parsePattern("4.7.28"); err != nil {
		t.Error(err)
	}
	f = nil
	if (&Rule{Match: "a(b"}).compile("R", &f); len(f) != 1 || !strings.Contains(f[0].Error(), "`a(b`") {
		t.Errorf("the expression is not told as it was written: %v", f)
	}
}

var allProfiles = []func() Profile{ProfileSES, ProfileMicrosoft365, ProfileGoogleRelay, ProfileSendGrid, ProfileMailgun, ProfilePostmark, ProfileSparkPost}

// TestProfilesAreValid looks at each of ours, and holds that nobody changes another's.
func TestProfilesAreValid(t *testing.T) {
	for _, make := range allProfiles {
		p := make()
		var f faults
		rules := p.validate("Profile", &f)
		if len(f) > 0 || len(rules) != len(p.Rules) || p.Name == "" {
			t.Errorf("%s: %v", p.Name, errors.Join(f...))
		}
		for i := range p.Rules {
			p.Rules[i] = Rule{}
		}
		f = nil
		if p = make(); len(p.Rules) > 0 {
			if p.validate("Profile", &f); len(f) > 0 {
				t.Errorf("%s: changed through another", p.Name)
			}
		}
	}
}

// TestProfileReplies are the replies that services are known to give, by their profiles.
func TestProfileReplies(t *testing.T) {
	for _, x := range []struct {
		profile func() Profile
		stage   reply.Stage
		code    int
		text    string
		kind    backoff.Kind
	}{
		{ProfileSES, reply.StageBanner, 421, "Too many concurrent SMTP connections", backoff.Connections},
		{ProfileSES, reply.StageFinal, 454, "Throttling failure: Maximum sending rate exceeded", backoff.Throttle},
		{ProfileSES, reply.StageFinal, 454, "Throttling failure: Daily message quota exceeded", backoff.Quota},
		{ProfileSES, reply.StageFinal, 554, "Message rejected: Email address is not verified", backoff.Block},
		{ProfileMicrosoft365, reply.StageMail, 432, "4.3.2 Concurrent connections limit exceeded", backoff.Connections},
		{ProfileMicrosoft365, reply.StageAuth, 432, "4.7.12 A password transition is needed", backoff.None},
		{ProfileMicrosoft365, reply.StageFinal, 554, "5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed", backoff.Quota},
		{ProfileMicrosoft365, reply.StageFinal, 554, "5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded", backoff.Quota},
		{ProfileMicrosoft365, reply.StageFinal, 554, "5.2.252 SendAsDenied; a not allowed to send as b; throttled", backoff.Block},
		{ProfileMicrosoft365, reply.StageFinal, 550, "5.2.251 Sender throttled", backoff.Throttle},
		{ProfileMicrosoft365, reply.StageFinal, 550, "5.7.233 Tenant exceeded", backoff.Quota},
		{ProfileMicrosoft365, reply.StageRcpt, 550, "5.1.1 no such user", backoff.None},
		{ProfileMicrosoft365, reply.StageRcpt, 451, "4.7.500 Server busy", backoff.Throttle},
		{ProfileGoogleRelay, reply.StageRcpt, 450, "4.2.1 Peak SMTP relay limit exceeded for customer.", backoff.Throttle},
		{ProfileGoogleRelay, reply.StageRcpt, 550, "5.7.1 Daily SMTP relay limit exceeded for customer.", backoff.Quota},
		{ProfileGoogleRelay, reply.StageRcpt, 550, "5.4.5 Daily SMTP relay limit exceeded for user.", backoff.Quota},
		{ProfileGoogleRelay, reply.StageMail, 421, "4.7.28 rate", backoff.Throttle},
		{ProfileGoogleRelay, reply.StageMail, 421, "4.7.0 unusual rate", backoff.Throttle},
		{ProfileSendGrid, reply.StageMail, 451, "Authentication failed: Maximum credits exceeded", backoff.Quota},
		{ProfileSparkPost, reply.StageRcpt, 550, "5.7.1 daily sending limit exceeded", backoff.Quota},
	} {
		p := x.profile()
		var f faults
		rules := backoff.NewRules(nil, p.validate("", &f))
		r := readReply(t, x.code, x.text)
		if g := rules.Classify(x.stage, &r); g.Kind != x.kind || g.Scope != backoff.Account {
			t.Errorf("%s: %d %s: %v (%v), want %v", p.Name, x.code, x.text, g.Kind, g.Scope, x.kind)
		}
	}
}

func readReply(t *testing.T, code int, text string) reply.Reply {
	t.Helper()
	var rd reply.Reader
	rd.Reset(strings.NewReader(fmt.Sprintf("%d %s\r\n", code, text)), make([]byte, 4096))
	r, err := rd.Read()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestBackoffAgreesWithVerdict holds that the two that read a refusal's words say the same of it: one that asks for less mail is a Throttle, Connections or Quota to the one, and a Throttle or CoolDown to the other.
func TestBackoffAgreesWithVerdict(t *testing.T) {
	texts := []string{
		"", "no", "Too many concurrent SMTP connections", "Throttling failure: Maximum sending rate exceeded", "Daily message quota exceeded", "rate limit", "rate limited", "too many messages", "too many messages in this session",
		"connection expired", "Concurrent connections limit exceeded", "sender thread limit exceeded", "STOREDRV.Submission.Exception:SubmissionQuotaExceededException", "SendAsDenied; not allowed to send as", "Sender throttled", "smtp relay limit exceeded",
		"unusual rate of mail", "receiving mail too quickly", "at a rate that prevents", "[TSS04] unexpected volume", "[TS03] permanently deferred", "RP-001 no", "excessive volume", "suspicious volume", "Greylisted", "mailbox full", "too many recipients", "Error: too many recipients from 192.0.2.1", "Error: too many AUTH commands from 192.0.2.1", "Error: too many new TLS sessions from 192.0.2.1", "server busy",
		"all ports are busy", "connection rate limit exceeded", "submission rate", "relaying denied", "email address is not verified", "too many", "quota exceeded", "sending quota", "daily limit of received mail", "credits exceeded", "slow down", "too many login attempts",
		"connections limit", "message rate", "too much mail", "5.5.3 too many recipients", "5.5.3 no", "throttled-by@example.com", "unknown user daily@limit.example", "per day limit", "messages per second", "recipient limit", "too frequent", "try again in 5 minutes",
	}
	subjects := []string{"", "0.0", "1.1", "1.5", "1.7", "1.8", "1.90", "2.0", "2.1", "2.2", "2.251", "2.252", "2.256", "3.0", "3.1", "3.2", "3.4", "4.2", "4.5", "5.3", "6.7", "7.0", "7.1", "7.8", "7.9", "7.12", "7.27", "7.28", "7.232", "7.233", "7.236", "7.500", "7.650", "7.651", "7.652", "7.653"}
	n, asks, tried := 0, 0, 0
	for _, code := range []int{421, 432, 450, 451, 452, 454, 500, 504, 530, 535, 550, 552, 553, 554, 555} {
		for _, subject := range subjects {
			for _, text := range texts {
				if tried++; !Thorough() && tried%7 > 0 {
					continue
				}
				if subject != "" {
					text = fmt.Sprintf("%d.%s %s", code/100, subject, text)
				}
				r := readReply(t, code, text)
				for stage := reply.StageBanner; stage <= reply.StageFinal; stage++ {
					v := verdict.Judge(verdict.Fact{Stage: stage, Reply: r})
					less := v.Blame == verdict.Throttle || v.Blame == verdict.CoolDown
					if less && v.Discard && spent(text) {
						continue // this connection alone
					}
					g := (*backoff.Rules)(nil).Classify(stage, &r)
					if got := g.Kind == backoff.Throttle || g.Kind == backoff.Connections || g.Kind == backoff.Quota; got != less {
						t.Errorf("%v: %d %s: to the verdict it asks for less mail: %v; here it is %v", stage, code, text, less, g.Kind)
					}
					if v.Greylist != (g.Kind == backoff.Greylist) {
						t.Errorf("%v: %d %s: greylisting to the verdict: %v; here it is %v", stage, code, text, v.Greylist, g.Kind)
					}
					if n++; less {
						asks++
					}
				}
			}
			if t.Failed() && n > 100_000 {
				return
			}
		}
	}
	if asks < n/10 || asks > n*9/10 {
		t.Errorf("%d of %d ask for less: that shows little", asks, n)
	}
}

// spent: texts of TestBackoffAgreesWithVerdict about a connection that has lasted long enough.
func spent(text string) bool {
	return strings.Contains(text, "in this session") || strings.Contains(text, "connection expired")
}
