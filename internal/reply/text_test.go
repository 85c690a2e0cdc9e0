package reply_test

import (
	"strings"
	"testing"

	"github.com/smtplb/smtplb/internal/reply"
)

var queueIDs = []struct{ from, text, want string }{
	{"Postfix", "2.0.0 Ok: queued as 4F3C92A0B1", "4F3C92A0B1"},
	{"Postfix, long IDs", "2.0.0 Ok: queued as 4Wc2Nk1xX3z9rXB", "4Wc2Nk1xX3z9rXB"},
	{"Postfix behind amavisd", "2.0.0 from MTA(smtp:[127.0.0.1]:10025): 250 2.0.0 Ok: queued as 1B2C3D4E5F", "1B2C3D4E5F"},
	{"SendGrid", "Ok: queued as Xy_zAbC-QfmLqk5gD8w0Og", "Xy_zAbC-QfmLqk5gD8w0Og"},
	{"Brevo", "2.0.0 OK: queued as <202401020304.12345678@smtp-relay.mailin.fr>", "202401020304.12345678@smtp-relay.mailin.fr"},
	{"in a sentence", "2.0.0 Thank you, queued as 12345.", "12345"},
	{"on the second line", "2.0.0 Thank you\n2.0.0 Ok: queued as 12345", "12345"},
	{"Exim", "OK id=1rX0Ab-0004Cd-Ef", "1rX0Ab-0004Cd-Ef"},
	{"Exim 4.97", "OK id=1rX0Ab-000000004Cd-3EfG", "1rX0Ab-000000004Cd-3EfG"},
	{"OpenSMTPD", "2.0.0 8a3b2c1d Message accepted for delivery", "8a3b2c1d"},
	{"Sendmail", "2.0.0 42A1B2C3012345 Message accepted for delivery", "42A1B2C3012345"},
	{"Sendmail without enhanced codes", "h61Fw2S01234 Message accepted for delivery", "h61Fw2S01234"},
	{"Exchange", "2.6.0 <BN8PR12MB1234ABCD@BN8PR12MB1234.namprd12.prod.outlook.com> [InternalId=1234567890123, Hostname=BN8PR12MB5678.namprd12.prod.outlook.com] 12345 bytes in 0.123, 98.765 KB/sec Queued mail for delivery",
		"BN8PR12MB1234ABCD@BN8PR12MB1234.namprd12.prod.outlook.com"},
	{"Gmail", "2.0.0 OK  1700000000 d2e1a72fcca58-6c4cbb4c5e1si1234567b3a.123 - gsmtp", "d2e1a72fcca58-6c4cbb4c5e1si1234567b3a.123"},
	{"Gmail without a time", "2.0.0 OK a640c23a62f3a-a1b2c3d4 - gsmtp", "a640c23a62f3a-a1b2c3d4"},
	{"SES", "Ok 0102018c1e0f3a5b-1a2b3c4d-5e6f-7a8b-9c0d-1e2f3a4b5c6d-000000", "0102018c1e0f3a5b-1a2b3c4d-5e6f-7a8b-9c0d-1e2f3a4b5c6d-000000"},

	{"nothing before it", "queued as 12", "12"},
	{"nothing before id=", "id=12", "12"},
	{"thirty hexadecimal digits", "Ok 0123456789-abcdef-ABCDEF-01234567", "0123456789-abcdef-ABCDEF-01234567"},
	{"one less", "Ok 0123456789-abcdef-ABCDEF-0123456", ""},

	{"nothing", "", ""},
	{"a plain ok", "2.0.0 Ok", ""},
	{"Mailgun", "Great success", ""},
	{"Exchange without an ID", "2.6.0 Queued mail for delivery", ""},
	{"Exchange, the ID not in brackets", "2.6.0 message [InternalId=1, Hostname=a] Queued mail for delivery", ""},
	{"accepted without an ID", "2.0.0 Message accepted for delivery", ""},
	{"accepted, and nothing before", "Message accepted for delivery", ""},
	{"queued as nothing", "2.0.0 Ok: queued as ", ""},
	{"queued as brackets", "2.0.0 Ok: queued as <>", ""},
	{"id= within a word", "OK grid=5 paid=6", ""},
	{"id= after such a word", "OK grid=5 id=6", "6"},
	{"too few hexadecimal digits", "Ok 0102018c1e0f3a5b", ""},
	{"hyphens don't count", "Ok 0102018c1e0f3a5b" + strings.Repeat("-", 20), ""},
	{"not hexadecimal", "Ok this-is-some-text-that-is-long-enough-for-it", ""},
	{"not ok", "2.0.0 0102018c1e0f3a5b1a2b3c4d5e6f7a8b", ""},
	{"a control byte", "2.0.0 Ok: queued as 12\x1b[31m34", ""},
	{"NUL", "OK id=12\x00", ""},
	{"DEL", "OK id=12\x7f", ""},
	{"not ASCII", "OK id=12ü", ""},
	{"256 bytes", "OK id=" + strings.Repeat("a", 256), strings.Repeat("a", 256)},
	{"257 bytes", "OK id=" + strings.Repeat("a", 257), ""},
}

func TestQueueID(t *testing.T) {
	for _, tt := range queueIDs {
		if got := reply.QueueID(tt.text); got != tt.want {
			t.Errorf("%s: QueueID(%q) = %q, want %q", tt.from, tt.text, got, tt.want)
		}
	}
}

func TestMaskedBanner(t *testing.T) {
	for text, want := range map[string]bool{
		"***************************************************************0*0*0***********": true,
		"**** ** 2*** 0":            true,
		"*":                         true,
		"*\t2":                      true,
		"":                          false,
		"2 0 0 2":                   false,
		"   ":                       false,
		"*** ESMTP":                 false,
		"mx.example.net ESMTP":      false,
		"**1**":                     false,
		"**\n**":                    false,
		"** mx.example.net ESMTP**": false,
	} {
		if got := reply.MaskedBanner(text); got != want {
			t.Errorf("MaskedBanner(%q) = %v", text, got)
		}
	}
}

func TestReplyString(t *testing.T) {
	for _, tt := range []struct {
		in   reply.Reply
		want string
	}{
		{reply.Reply{}, ""},
		{reply.Reply{Code: 250}, "250"},
		{reply.Reply{Code: 250, Text: "2.1.0 Ok"}, "250 2.1.0 Ok"},
		{reply.Reply{Code: 550, Text: "5.1.1 no\n5.1.1 such user"}, "550 5.1.1 no; 5.1.1 such user"},
		{reply.Reply{Code: 550, Text: "\x00\x1b[31m\r\t\x7fé\xff\u0085\u2028\u202e"}, `550 \x00\x1b[31m\r\t\x7fé\xff\u0085\u2028\u202e`},
		{reply.Reply{Code: 250, Text: `a"b'c\d`}, `250 a"b'c\d`},
		{reply.Reply{Code: 250, Text: strings.Repeat("a", 508)}, "250 " + strings.Repeat("a", 508)},
		{reply.Reply{Code: 250, Text: strings.Repeat("a", 509)}, "250 " + strings.Repeat("a", 505) + "…"},
		{reply.Reply{Code: 250, Text: strings.Repeat("\x00", 5000)}, "250 " + strings.Repeat(`\x00`, 126) + "…"},
	} {
		if got := tt.in.String(); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestEnhancedString(t *testing.T) {
	for _, tt := range []struct {
		in   reply.Enhanced
		want string
	}{
		{reply.Enhanced{}, ""},
		{reply.Enhanced{Class: 2}, "2.0.0"},
		{reply.Enhanced{Class: 4, Subject: 7, Detail: 650}, "4.7.650"},
		{reply.Enhanced{Class: 5, Subject: 999, Detail: 999}, "5.999.999"},
	} {
		if got := tt.in.String(); got != tt.want {
			t.Errorf("%#v: %q, want %q", tt.in, got, tt.want)
		}
		if tt.in.IsZero() != (tt.want == "") {
			t.Errorf("%#v: IsZero is %v", tt.in, tt.in.IsZero())
		}
	}
}

func TestClasses(t *testing.T) {
	for code, want := range map[int][4]bool{
		0: {}, 199: {}, 200: {true}, 299: {true}, 300: {false, true}, 399: {false, true},
		400: {2: true}, 499: {2: true}, 500: {3: true}, 599: {3: true}, 600: {},
	} {
		r := reply.Reply{Code: code}
		if got := [4]bool{r.Positive(), r.Intermediate(), r.Temporary(), r.Permanent()}; got != want {
			t.Errorf("%d: %v, want %v", code, got, want)
		}
	}
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for s := reply.StageNone + 1; s <= reply.StageNoop; s++ {
		if n := s.String(); n == "" || n == "invalid" || seen[n] {
			t.Errorf("stage %d: %q", s, n)
		} else {
			seen[n] = true
		}
	}
	if got := (reply.StageNoop + 1).String(); got != "invalid" {
		t.Errorf("a stage too far: %q", got)
	}
	clear(seen)
	for f := reply.FailNone + 1; f <= reply.FailSource; f++ {
		if n := f.String(); n == "" || n == "invalid" || seen[n] {
			t.Errorf("failure %d: %q", f, n)
		} else {
			seen[n] = true
		}
	}
	if got := (reply.FailSource + 1).String(); got != "invalid" {
		t.Errorf("a failure too far: %q", got)
	}
	if reply.StageNone.String() != "" || reply.FailNone.String() != "" {
		t.Error("nothing has a name")
	}
}
