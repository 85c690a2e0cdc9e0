package smtplb_test

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/smtplb/smtplb"
)

func TestParseRelay(t *testing.T) {
	for in, want := range map[string]smtplb.Relay{
		"smtp://mx.example.com":               {Addr: "mx.example.com:587"},
		"smtp://mx.example.com/":              {Addr: "mx.example.com:587"},
		"smtp://mx.example.com:25":            {Addr: "mx.example.com:25"},
		"smtps://mx.example.com":              {Addr: "mx.example.com:465", TLS: smtplb.TLSImplicit},
		"smtps://mx.example.com:2465":         {Addr: "mx.example.com:2465", TLS: smtplb.TLSImplicit},
		"smtps://mx.example.com?tls=implicit": {Addr: "mx.example.com:465", TLS: smtplb.TLSImplicit},
		"smtp://[::1]:25":                     {Addr: "[::1]:25"},
		"smtp://[2001:db8::1]":                {Addr: "[2001:db8::1]:587"},
		"smtp://192.0.2.1":                    {Addr: "192.0.2.1:587"},
		"smtp://bücher.example:25":            {Addr: "bücher.example:25"},

		"smtp+srv://example.com":            {Addr: "srv:example.com"},
		"smtp+srv://u:p@example.com?tier=1": {Addr: "srv:example.com", Username: "u", Password: "p", Tier: 1},
		"smtps+srv://bücher.example":        {Addr: "srv:bücher.example", TLS: smtplb.TLSImplicit},

		"smtp://user@mx.example.com":                                {Addr: "mx.example.com:587", Username: "user"},
		"smtp://user:@mx.example.com":                               {Addr: "mx.example.com:587", Username: "user"},
		"smtp://user:pass@mx.example.com":                           {Addr: "mx.example.com:587", Username: "user", Password: "pass"},
		"smtp://me%40example.com:p@mx.example.com:25":               {Addr: "mx.example.com:25", Username: "me@example.com", Password: "p"},
		"smtp://u:a+b%2Bc@mx.example.com":                           {Addr: "mx.example.com:587", Username: "u", Password: "a+b+c"},
		"smtp://u+tag:p@mx.example.com":                             {Addr: "mx.example.com:587", Username: "u+tag", Password: "p"},
		"smtp://u:%25%40%3A%2F%3F%23%20%26@mx.example.com":          {Addr: "mx.example.com:587", Username: "u", Password: "%@:/?# &"},
		"smtp://u:a!$&'()*,;=-._~b@mx.example.com":                  {Addr: "mx.example.com:587", Username: "u", Password: "a!$&'()*,;=-._~b"},
		"smtp://u:%C3%A9%e2%82%ac@mx.example.com":                   {Addr: "mx.example.com:587", Username: "u", Password: "é€"},
		"smtp://u:%5B%5D%3C%3E%22%7B%7C%7D%5C%5E%60@mx.example.com": {Addr: "mx.example.com:587", Username: "u", Password: "[]<>\"{|}\\^`"},

		"smtp://mx.example.com?tls=auto":               {Addr: "mx.example.com:587"},
		"smtp://mx.example.com?tls=starttls":           {Addr: "mx.example.com:587", TLS: smtplb.TLSStartTLS},
		"smtp://mx.example.com?tls=opportunistic":      {Addr: "mx.example.com:587", TLS: smtplb.TLSOpportunistic},
		"smtp://mx.example.com:25?tls=none":            {Addr: "mx.example.com:25", TLS: smtplb.TLSNone},
		"smtp://mx.example.com?weight=3&tier=1":        {Addr: "mx.example.com:587", Weight: 3, Tier: 1},
		"smtp://mx.example.com?tier=0&name=a%20b%26c":  {Addr: "mx.example.com:587", Name: "a b&c"},
		"smtp://mx.example.com?tag=eu&tag=bulk&tag=eu": {Addr: "mx.example.com:587", Tags: []string{"eu", "bulk", "eu"}},
		"smtp://u:p@mx.example.com?auth=login,Plain":   {Addr: "mx.example.com:587", Username: "u", Password: "p", AuthMechanisms: []string{"LOGIN", "PLAIN"}},
		"smtp://mx.example.com?max_conns=7&max_idle=-1&max_messages=50&max_age=90s&max_idle_time=1m30s": {
			Addr: "mx.example.com:587", Conns: smtplb.Conns{Max: 7, MaxIdle: -1, MaxMessages: 50, MaxAge: 90 * time.Second, MaxIdleTime: 90 * time.Second}},
		"smtp://mx.example.com?ignore_ehlo=pipelining,SIZE&local_addr=192.0.2.9": {Addr: "mx.example.com:587", IgnoreEHLO: []string{"PIPELINING", "SIZE"}, LocalAddr: "192.0.2.9"},
	} {
		got, err := smtplb.ParseRelay(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if d := cmp.Diff(want, got); d != "" || got.Password != want.Password { // Diff doesn't print the password
			t.Errorf("%s: password %q, want %q (-want +got)\n%s", in, got.Password, want.Password, d)
		}
		if _, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{got}}); err != nil {
			t.Errorf("%s: %v", in, err)
		}
	}
	r, err := smtplb.ParseRelay("smtps://mx.example.com?server_name=cert.example.com")
	if err != nil || r.TLSConfig == nil || r.TLSConfig.ServerName != "cert.example.com" || r.TLSConfig.InsecureSkipVerify {
		t.Errorf("server_name: %v, %v", r, err)
	}
}

func TestParseRelayRefuses(t *testing.T) {
	for _, test := range []struct{ in, reason string }{
		{"", "smtp://"},
		{"mx.example.com", "smtp://"},
		{"mx.example.com:587", "smtp://"},
		{"user:hunter2@mx.example.com:587", "smtp://"},
		{"http://user:hunter2@mx.example.com", "smtps://"},
		{"SMTP+TLS://user:hunter2@mx.example.com", "smtps://"},
		{"a-scheme-that-is-long://user:hunter2@mx.example.com", "smtps://"},
		{"smtp:/user:hunter2@mx.example.com", "smtp://"},
		{"smtp:user:hunter2@mx.example.com", "smtp://"},
		{" smtp://user:hunter2@mx.example.com", "smtp://"},
		{"smtp//user:hunter2@mx.example.com", "smtp://"},
		{"smtp://", "host"},
		{"smtp://:25", "host"},
		{"smtp://user:hunter2@", "host"},
		{"smtp://user:hunter2@:25", "host"},
		{"smtp://user:hunter2@?weight=1", "host"},
		{"smtp:///path", ""},

		// What people's passwords have in them.
		{"smtp://user:hunter2%@mx.example.com", "%25"},
		{"smtp://user:100%hunter2@mx.example.com", "%25"},
		{"smtp://user:hunter2%z1@mx.example.com", "%25"},
		{"smtp://user:hun@hunter2@mx.example.com", "%40"},
		{"smtp://me@example.com:hunter2@mx.example.com", "%40"},
		{"smtp://user:a:hunter2@mx.example.com", "%3A"},
		{"smtp://user:hunter2:@mx.example.com", "%3A"},
		{"smtp://user:a/hunter2@mx.example.com", "%2F"},
		{"smtp://user:hunter2/@mx.example.com:25", "%2F"},
		{"smtp://user:a?hunter2@mx.example.com", "%3F"},
		{"smtp://user:hunter2#@mx.example.com", "%23"},
		{"smtp://user:a#hunter2@mx.example.com?weight=1", "%23"},
		{"smtp://user:a hunter2@mx.example.com", "%20"},
		{"smtp://user:hunter2\t@mx.example.com", "%09"},
		{"smtp://user:hunter2\n@mx.example.com", "%0A"},
		{"smtp://user:hunter2[@mx.example.com", "%5B"},
		{`smtp://user:hunter2\@mx.example.com`, "%5C"},
		{`smtp://user:"hunter2"@mx.example.com`, "%22"},
		{"smtp://user:hunter2^@mx.example.com", "%5E"},
		{"smtp://user:<hunter2>@mx.example.com", "%3C"},
		{"smtp://user:hunter2é@mx.example.com", "%C3"},
		{"smtp://us er:hunter2@mx.example.com", "%20"},
		{"smtp://:hunter2@mx.example.com", "user name"},
		// Several of them at once: the part behind the first @ must not pass for host and parameters.
		{"smtp://user:a@b/hunter2@mx.example.com", ""},
		{"smtp://user:a@b?hunter2@mx.example.com", ""},
		{"smtp://user:a@b?weight=hunter2@mx.example.com", ""},
		{"smtp://user:a@b?name=hunter2@mx.example.com", ""},
		{"smtp://user:a@b#hunter2@mx.example.com", ""},
		{"smtp://user:a@b:hunter2@mx.example.com", ""},
		{"smtp://user:a@hunter2_?@mx.example.com", ""},
		{"smtp://user:hunter2/x@b@mx.example.com", ""},
		// No @ at all: what should be the password is where the host stands.
		{"smtp://user:hunter2", ""},
		{"smtp://user:hunter2%40mx.example.com:587", ""},
		{"smtp://user:hunter2:mx.example.com:587", ""},
		{"smtp://user:hunter2/mx.example.com", ""},
		{"smtp://user%3Ahunter2%40mx.example.com", ""},
		{"user:hunter2", "smtp://"},

		{"smtp://mx.example.com/path", "between"},
		{"smtp://mx.example.com#fragment", "between"},
		{"smtp://user:hunter2@mx.example.com/path?weight=1", "between"},
		{"smtp://mx.example.com:0", "port"},
		{"smtp://mx.example.com:65536", "port"},
		{"smtp://user:hunter2@mx.example.com:smtp", ""},
		{"smtp://user:hunter2@2001:db8::1", ""},
		{"smtp://user:hunter2@[2001:db8::1", ""},
		{"smtp://user:hunter2@mx example.com", ""},
		{"smtp://user:hunter2@mx..example.com", "host"},
		{"smtp://user:hunter2@mx%zz.example.com", ""},
		{"smtp://user:hunter2@mx.example.com\r\n", ""},

		{"smtp://mx.example.com?colour=red", "known are name, weight, tier, tag, tls, auth"},
		{"smtp://mx.example.com?Weight=3", "known are"},
		{"smtp://mx.example.com?=3", "known are"},
		{"smtp://user:hunter2@mx.example.com?pass=x", "known are"},
		{"smtp://mx.example.com?user=user&password=hunter2", "known are"},
		{"smtp://user@mx.example.com?password=hunter2", "known are"},
		{"smtp://mx.example.com?weight=1&weight=2", "weight is given 2 times"},
		{"smtp://mx.example.com?tls=none&tls=starttls", "tls is given 2 times"},
		{"smtp://mx.example.com?weight=0", "weight"},
		{"smtp://mx.example.com?weight=-1", "weight"},
		{"smtp://mx.example.com?weight=many", "weight is not a number"},
		{"smtp://mx.example.com?weight=", "number"},
		{"smtp://mx.example.com?weight", "number"},
		{"smtp://mx.example.com?weight=99999999999999999999", "number"},
		{"smtp://mx.example.com?tier=-1", "tier"},
		{"smtp://mx.example.com?tls=yes", "starttls"},
		{"smtp://mx.example.com?tls=", "starttls"},
		{"smtp://mx.example.com?max_age=90", "90s"},
		{"smtp://mx.example.com?max_conns=a%0Ab", "number"},
		{"smtp://mx.example.com?a=%zz", "encoded"},
		{"smtp://mx.example.com?weight=1;tier=2", "encoded"},
		{"smtps://user:hunter2@mx.example.com?tls=none", "implicit"},
		{"smtp+srv://user:hunter2@example.com:587", "port"},
		{"smtp+srv://user:hunter2@192.0.2.1", "host"},
		{"smtp+srv://user:hunter2@localhost", "host"},
		{"tcp+srv://user:hunter2@example.com", "smtps://"},
		{"smtps://mx.example.com?tls=starttls", "implicit"},
		{"smtps://mx.example.com?tls=auto", "implicit"},
	} {
		r, err := smtplb.ParseRelay(test.in)
		if err == nil {
			t.Errorf("%q is accepted: %v", test.in, r)
			continue
		}
		var ue *smtplb.RelayURLError
		if !errors.As(err, &ue) {
			t.Errorf("%q: %T", test.in, err)
			continue
		}
		if d := cmp.Diff(smtplb.Relay{}, r); d != "" || r.Password != "" {
			t.Errorf("%q: a relay beside the error: %s", test.in, d)
		}
		if !strings.Contains(ue.Reason, test.reason) {
			t.Errorf("%q: %q does not speak of %q", test.in, ue.Reason, test.reason)
		}
		if s := err.Error(); strings.ContainsAny(s, "\r\n\t\x00") || len(s) > 500 || strings.Contains(s, "net/url") {
			t.Errorf("%q: unfit to be read: %q", test.in, s)
		}
		if all := fmt.Sprintf("%v %+v %#v", err, *ue, ue); strings.Contains(all, "hunter2") {
			t.Errorf("%q: the password is in %s", test.in, all)
		}
	}
	if _, err := smtplb.ParseRelay("smtp://user:hunter2@" + strings.Repeat("x", 100000) + ":port"); err == nil || len(err.Error()) > 1000 {
		t.Errorf("a long URL makes an error of %d bytes", len(fmt.Sprint(err)))
	}
}

// An error says where the trouble is: the host is shown, the credentials are not.
func TestParseRelayErrorsTellTheHost(t *testing.T) {
	_, err := smtplb.ParseRelay("smtp://user:hunter2@mx.example.com:587?colour=red")
	if err == nil || !strings.Contains(err.Error(), "mx.example.com:587") {
		t.Error(err)
	}
}

// A relay's String is its URL, but for the password.
func TestRelayStringRoundTrip(t *testing.T) {
	for _, r := range []smtplb.Relay{
		{Addr: "mx.example.com:587"},
		{Addr: "mx.example.com:465", TLS: smtplb.TLSImplicit},
		{Addr: "[2001:db8::1]:25"},
		{Addr: "bücher.example:25"},
		{Addr: "mx.example.com:25", Name: "a b&c=d/é?#%+", Weight: 3, Tier: 2, Tags: []string{"x", "y&z", "x"}},
		{Addr: "mx.example.com:25", Username: "me@example.com", Password: secret},
		{Addr: "mx.example.com:25", Username: `a:b/c?d#e%f g[h]"i\j|é+`, Password: "p"},
		{Addr: "mx.example.com:25", TLS: smtplb.TLSNone},
		{Addr: "mx.example.com:25", TLS: smtplb.TLSOpportunistic},
		{Addr: "mx.example.com:25", TLS: smtplb.TLSStartTLS},
		{Addr: "mx.example.com:25", Username: "u", Password: "p", AuthMechanisms: []string{"LOGIN", "CRAM-MD5"}},
		{Addr: "mx.example.com:25", Conns: smtplb.Conns{Max: 3, MaxIdle: -1, MaxMessages: 5, MaxAge: time.Minute, MaxIdleTime: 90 * time.Second}},
		{Addr: "mx.example.com:25", IgnoreEHLO: []string{"PIPELINING", "SIZE"}, LocalAddr: "192.0.2.9"},
	} {
		s := r.String()
		got, err := smtplb.ParseRelay(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		if r.Password != "" && (got.Password == r.Password || strings.Contains(s, url.PathEscape(r.Password)) && len(r.Password) > 1) {
			t.Errorf("%s has the password", s)
		}
		got.Password, r.Password = "", ""
		if d := cmp.Diff(r, got); d != "" {
			t.Errorf("%s (-want +got)\n%s", s, d)
		}
	}
	// A relay by its name alone means the same when it is read again.
	r, err := smtplb.ParseRelay(smtplb.Relay{Addr: "mx.example.com"}.String())
	if err != nil || r.Addr != "mx.example.com:587" {
		t.Errorf("%v, %v", r, err)
	}
}

func TestTLSModeString(t *testing.T) {
	var got []string
	for m := smtplb.TLSAuto; m <= smtplb.TLSNone+1; m++ {
		got = append(got, m.String())
	}
	if s := strings.Join(got, " "); s != "auto implicit starttls opportunistic none TLSMode(5)" {
		t.Error(s)
	}
}
