package discover_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/smtplb/smtplb/internal/discover"
)

// mxs is an MXResolver with one answer.
type mxs struct {
	records []*net.MX
	err     error
	asked   string
}

func (m *mxs) LookupMX(_ context.Context, name string) ([]*net.MX, error) {
	m.asked = name
	return m.records, m.err
}

func TestLookupMX(t *testing.T) {
	of := func(hosts ...string) (list []*net.MX) {
		for _, h := range hosts {
			list = append(list, &net.MX{Host: h, Pref: 10})
		}
		return list
	}
	many := make([]string, 65)
	for i := range many {
		many[i] = "mx.example.com."
	}
	for _, x := range []struct {
		name    string
		records []*net.MX
		err     error
		want    string
		fails   bool
	}{
		{"hosts in any case", of("MX1.Example.COM.", "mx2.example.com"), nil, "mx1.example.com mx2.example.com", false},
		{"null MX", of("."), nil, "", false},
		{"null MX beside a host", of("mx1.example.com.", "."), nil, "", false},
		{"an address", of("192.0.2.1."), nil, "", false},
		{"nothing", nil, nil, "", false},
		{"a nil record", []*net.MX{nil, {Host: "mx1.example.com."}}, nil, "mx1.example.com", false},
		{"no such domain", nil, &net.DNSError{Err: "no such host", IsNotFound: true}, "", false},
		{"a part of it", of("mx1.example.com."), &net.DNSError{Err: "records with invalid names"}, "", false},
		{"too many", of(many...), nil, "", false},
		{"as many as may be", of(many[1:]...), nil, strings.TrimSpace(strings.Repeat("mx.example.com ", 64)), false},
		{"a failure", nil, &net.DNSError{Err: "server misbehaving", IsTemporary: true}, "", true},
		{"another failure", nil, errors.New("broken"), "", true},
	} {
		m := &mxs{records: x.records, err: x.err}
		hosts, err := discover.LookupMX(t.Context(), m, "example.com")
		if got := strings.Join(hosts, " "); got != x.want || errors.Is(err, discover.ErrUnavailable) != x.fails || (err != nil) != x.fails {
			t.Errorf("%s: %q, %v", x.name, got, err)
		}
		if m.asked != "example.com." {
			t.Errorf("%s: asked for %q", x.name, m.asked)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := discover.LookupMX(ctx, &mxs{err: &net.DNSError{IsNotFound: true}}, "example.com"); !errors.Is(err, discover.ErrUnavailable) {
		t.Errorf("what a cancelled lookup found counts: %v", err)
	}
}

func TestSuffixes(t *testing.T) {
	s := discover.Suffixes{"google.com": "g", "googlemail.com": "g", "mail.example": "m", "eu.mail.example": "e"}
	for hosts, want := range map[string]string{
		"aspmx.l.google.com": "g",
		"google.com":         "g",
		"aspmx.l.google.com aspmx2.googlemail.com": "g",
		"notgoogle.com":                      "",
		"google.com.evil.test":               "",
		"aspmx.l.google.com backup.test":     "",
		"backup.test aspmx.l.google.com":     "",
		"aspmx.l.google.com mx.mail.example": "",
		"mx.eu.mail.example":                 "e",
		"mx.mail.example a.mail.example":     "m",
		"mx.eu.mail.example mx.mail.example": "",
		"com":                                "",
		"":                                   "",
	} {
		if got := s.Owner(strings.Fields(hosts)); got != want {
			t.Errorf("%s: %q, want %q", hosts, got, want)
		}
	}
}
