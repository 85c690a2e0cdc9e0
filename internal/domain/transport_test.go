package domain_test

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/smtplb/smtplb/internal/domain"
)

func mustTransport(t testing.TB, text string) *domain.TransportMap {
	t.Helper()
	m, err := domain.ParseTransport(strings.NewReader(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// ask looks an address up and says in short what is found: the name and the nexthop as Postfix would have them.
func ask(t testing.TB, m *domain.TransportMap, addr string, delimiter byte) string {
	t.Helper()
	a, err := domain.ParseAddress(addr)
	if err != nil {
		t.Fatal(err)
	}
	found, ok := m.Lookup(a, delimiter)
	switch {
	case !ok:
		return "nothing"
	case found.Name != "" && found.NextHop == "":
		return found.Name + ":" + a.Domain
	}
	return found.Name + ":" + found.NextHop
}

// What Postfix's own test program says of this table.
func TestTransportVectors(t *testing.T) {
	m := mustTransport(t, `user@example.com  smtp:[u.example.net]:2525
example.com  smtp:[d]:587
user+tag@example.com smtp:[tag]
.example.com relay:[sub]
bad.example.com error:5.7.1 no mail: here
err.example.com error:
local.test :
nh.test :[only]
ch.test slow:
.com smtp:[dotcom]
list.test smtp:bar.example, foo.example:2525
@at.test smtp:[at]
* smtp:[star]
`)
	for addr, want := range map[string]string{
		"USER@EXAMPLE.com":       "smtp:[u.example.net]:2525",
		"user+tag@example.com":   "smtp:[tag]",
		"user+other@example.com": "smtp:[u.example.net]:2525",
		"bob@example.com":        "smtp:[d]:587",
		"x@a.b.example.com":      "relay:[sub]",
		"x@bad.example.com":      "error:5.7.1 no mail: here",
		"x@err.example.com":      "error:Address is undeliverable",
		"x@local.test":           ":",
		"x@nh.test":              ":[only]",
		"x@ch.test":              "slow:ch.test",
		"x@foo.com":              "smtp:[dotcom]",
		"x@list.test":            "smtp:bar.example, foo.example:2525",
		"x@at.test":              "smtp:[star]",
		"x@sub.nh.test":          "smtp:[star]",
	} {
		if got := ask(t, m, addr, '+'); got != want {
			t.Errorf("%s: %q, want %q", addr, got, want)
		}
	}
	if diff := cmp.Diff([]string{"11 a host without", "12 skipped: Postfix never asks"}, warnings(m, 3)); diff != "" {
		t.Error(diff)
	}
}

// warnings returns the lines and first words of a map's warnings.
func warnings(m *domain.TransportMap, words int) (got []string) {
	for _, w := range m.Warnings {
		f := strings.Fields(w.Reason)
		n := words
		if f[0] == "skipped:" || f[0] == "skipped," {
			n++
		}
		got = append(got, fmt.Sprintf("%d %s", w.Line, strings.Join(f[:min(n, len(f))], " ")))
	}
	return got
}

// The map that HAProxy-and-Postfix tutorials show: "*.gmail.com" isn't Postfix's way, but what its author meant.
func TestTransportOfTutorials(t *testing.T) {
	m := mustTransport(t, `# /etc/postfix/transport
gmail.com       smtp:[haproxy.internal]:10025
*.gmail.com     smtp:[haproxy.internal]:10025
outlook.com     smtp:[haproxy.internal]:10026
hotmail.com     smtp:[haproxy.internal]:10026
yahoo.com       smtp:[haproxy.internal]:10027
*               smtp:[haproxy.internal]:10028
`)
	for addr, port := range map[string]string{
		"a@gmail.com": "10025", "a@x.gmail.com": "10025", "a@y.x.GMAIL.com": "10025", "a@outlook.com": "10026", "a@hotmail.com": "10026",
		"a@yahoo.com": "10027", "a@example.com": "10028", "a@x.outlook.com": "10028", "a@notgmail.com": "10028",
	} {
		if got, want := ask(t, m, addr, 0), "smtp:[haproxy.internal]:"+port; got != want {
			t.Errorf("%s: %q, want %q", addr, got, want)
		}
	}
	if diff := cmp.Diff([]string{`3 "*.domain" is`}, warnings(m, 2)); diff != "" {
		t.Error(diff)
	}
	if got := m.Entries[1].Key; got != ".gmail.com" {
		t.Error(got)
	}
	// Only what stands in front is a pattern for what is below: it doesn't match itself.
	m = mustTransport(t, "*.a.test smtp:[x]\n.b.test smtp:[x]\n")
	for _, addr := range []string{"x@a.test", "x@b.test"} {
		if got := ask(t, m, addr, 0); got != "nothing" {
			t.Errorf("%s: %q", addr, got)
		}
	}
}

func TestTransportLines(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []string // line, key, nexthop
		warn       []string
	}{
		{"empty", "", nil, nil},
		{"comments only", "# a\n\n  # b\n \t \n#", nil, nil},
		{"no line feed at the end", "a.test x:1", []string{"1 a.test x:1"}, nil},
		{"CRLF", "a.test x:1\r\n\r\n# c\r\nb.test x:2\r\n", []string{"1 a.test x:1", "4 b.test x:2"}, nil},
		{"white space around the value", "a.test \t\v\f x:1 \t\r\n", []string{"1 a.test x:1"}, nil},
		{"continued", "a.test x:1,\n\t2\n 3\nb.test x:4\n", []string{"1 a.test x:1,\t2 3", "4 b.test x:4"}, nil},
		{"value in a continuation", "a.test\n x:1\n", []string{"1 a.test x:1"}, nil},
		{"comments and blank lines in a continuation", "\n# c\na.test x:1\n# c\n\n   \n\t# c 2\n  2\n#\nb.test x:3", []string{"3 a.test x:1  2", "10 b.test x:3"}, nil},
		{"comment behind a value is none", "a.test x:1 # c\n", []string{"1 a.test x:1 # c"}, nil},
		{"continued behind a comment", "a.test x:1\n# c\n 2", []string{"1 a.test x:1 2"}, nil},
		{"starts continued", "# c\n  a.test x:1\n  2\nb.test x:3\n", []string{"4 b.test x:3"}, []string{"2 skipped, as Postfix does: the first"}},
		{"no value", "a.test\nb.test  \nc.test x:1\n", []string{"3 c.test x:1"}, []string{"1 skipped, as Postfix does: there is", "2 skipped, as Postfix does: there is"}},
		{"no value, so the next one is the first", "a.test\na.test x:2", []string{"2 a.test x:2"}, []string{"1 skipped, as Postfix does: there is"}},
		{"duplicates", "a.test x:1\nA.Test x:2\n*.a.test x:3\n.a.test x:4\n", []string{"1 a.test x:1", "3 .a.test x:3"},
			[]string{"2 skipped, as Postfix does: the same", `3 "*.domain" is not Postfix's way`, "4 skipped, as Postfix does: the same"}},
		{"a duplicate is not looked at", "a.test x:1\na.test lmtp:x\n", []string{"1 a.test x:1"}, []string{"2 skipped, as Postfix does: the same"}},
		{"quotes", "\"a b\"@x.test x:1\n\"c # d\"@x.test\tx:2\n", []string{`1 "a b"@x.test x:1`, `2 "c # d"@x.test x:2`}, nil},
		{"escapes", `"a\" b"@x.test x:1`, []string{`1 "a\" b"@x.test x:1`}, nil},
		{"escaped white space", `a\ b@x.test x:1`, []string{`1 a\ b@x.test x:1`}, []string{"1 only a mailbox with these"}},
		{"quotes for nothing", `"a"@x.test x:1`, []string{`1 "a"@x.test x:1`}, []string{"1 only a mailbox with these"}},
		{"a quote in a value", `a.test error:say "no`, []string{`1 a.test error:say "no`}, nil},
		{"unbalanced", "\"a x:1\nb.test x:2\n", []string{"2 b.test x:2"}, []string{"1 skipped, as Postfix does: the key"}},
		{"an escaped quote ends nothing", "\"a\\\" x:1\nb.test x:2\n", []string{"2 b.test x:2"}, []string{"1 skipped, as Postfix does: the key"}},
		{"a backslash at the end", "a\\", nil, []string{"1 skipped, as Postfix does: there is"}},
		{"not UTF-8", "\xff.test x:1\nb.test error:\xff\nc.test x:3", []string{"3 c.test x:3"}, []string{"1 skipped, as Postfix does: not valid", "2 skipped, as Postfix does: not valid"}},
		{"case and IDNA", "BÜCHER.example x:1\nxn--bcher-kva.example x:2\n.Bücher.Example x:3\nMÜLLER@Bücher.example x:4\nmüller@xn--bcher-kva.example x:5",
			[]string{"1 xn--bcher-kva.example x:1", "3 .xn--bcher-kva.example x:3", "4 müller@xn--bcher-kva.example x:4"},
			[]string{"2 skipped, as Postfix does: the same", "5 skipped, as Postfix does: the same"}},
		{"never asked", "@a.test x:1\na.test. x:2\nu@a.test. x:3\n@ x:4\n", nil, []string{
			`1 skipped: Postfix never asks for "@domain";`, "2 skipped: Postfix never asks for a", "3 skipped: Postfix never asks for a", `4 skipped: Postfix never asks for "@domain";`}},
		{"no wildcard", "*@a.test x:1\nlist*@a.test x:2\n", []string{"1 *@a.test x:1", "2 list*@a.test x:2"}, []string{`1 "*" is no wildcard in`, `2 "*" is no wildcard in`}},
		{"literals", "[192.0.2.1] x:1\nu@[IPv6:2001:DB8:0::1] x:2\n", []string{"1 [192.0.2.1] x:1", "2 u@[IPv6:2001:db8::1] x:2"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := mustTransport(t, tt.text)
			var got []string
			for _, e := range m.Entries {
				got = append(got, fmt.Sprintf("%d %s %s:%s", e.Line, e.Key, e.Name, e.NextHop))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tt.warn, warnings(m, 5)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTransportValues(t *testing.T) {
	const undeliverable = "Address is undeliverable"
	br := func(host, port string) domain.Hop { return domain.Hop{Host: host, Port: port, Bracketed: true} }
	for value, want := range map[string]domain.Transport{
		":":                                   {},
		"slow:":                               {Name: "slow"},
		"slow":                                {Name: "slow"},
		"slow:any [thing: at, all":            {Name: "slow", NextHop: "any [thing: at, all"},
		"SMTP:[x]":                            {Name: "SMTP", NextHop: "[x]"},
		"local:$myhostname":                   {Name: "local", NextHop: "$myhostname"},
		":[gw.example]":                       {NextHop: "[gw.example]", Hops: []domain.Hop{br("gw.example", "")}},
		"smtp:[gw.example]:2525":              {Name: "smtp", NextHop: "[gw.example]:2525", Hops: []domain.Hop{br("gw.example", "2525")}},
		"smtp: [gw.example]":                  {Name: "smtp", NextHop: " [gw.example]", Hops: []domain.Hop{br("gw.example", "")}},
		"relay:[GW.Example]:submission":       {Name: "relay", NextHop: "[GW.Example]:submission", Hops: []domain.Hop{br("gw.example", "587")}},
		"relay:[bücher.example]:":             {Name: "relay", NextHop: "[bücher.example]:", Hops: []domain.Hop{br("xn--bcher-kva.example", "")}},
		"smtp:[192.0.2.1]:00025":              {Name: "smtp", NextHop: "[192.0.2.1]:00025", Hops: []domain.Hop{br("192.0.2.1", "25")}},
		"smtp:[::1]":                          {Name: "smtp", NextHop: "[::1]", Hops: []domain.Hop{br("::1", "")}},
		"smtp:[ipv6:::1]:65535":               {Name: "smtp", NextHop: "[ipv6:::1]:65535", Hops: []domain.Hop{br("::1", "65535")}},
		"smtp:[IPv6:2001:DB8:0:0::1]:smtp":    {Name: "smtp", NextHop: "[IPv6:2001:DB8:0:0::1]:smtp", Hops: []domain.Hop{br("2001:db8::1", "25")}},
		"smtp:[a],[b]:1\t[c] , ,[d]:smtps,":   {Name: "smtp", NextHop: "[a],[b]:1\t[c] , ,[d]:smtps,", Hops: []domain.Hop{br("a", ""), br("b", "1"), br("c", ""), br("d", "465")}},
		"error:":                              {Name: "error", NextHop: undeliverable, Status: "5.0.0", Text: undeliverable},
		"error":                               {Name: "error", NextHop: undeliverable, Status: "5.0.0", Text: undeliverable},
		"error:5.1.1":                         {Name: "error", NextHop: "5.1.1", Status: "5.1.1", Text: undeliverable},
		"error: 5.7.1  no mail:\there":        {Name: "error", NextHop: " 5.7.1  no mail:\there", Status: "5.7.1", Text: "no mail: here"},
		"error:gone 5.7.1":                    {Name: "error", NextHop: "gone 5.7.1", Status: "5.0.0", Text: "gone 5.7.1"},
		"error:5.7.1: x":                      {Name: "error", NextHop: "5.7.1: x", Status: "5.0.0", Text: "5.7.1: x"},
		"error:5.7.1000 x":                    {Name: "error", NextHop: "5.7.1000 x", Status: "5.0.0", Text: "5.7.1000 x"},
		"error:5.7 x":                         {Name: "error", NextHop: "5.7 x", Status: "5.0.0", Text: "5.7 x"},
		"error:6.7.1 x":                       {Name: "error", NextHop: "6.7.1 x", Status: "5.0.0", Text: "6.7.1 x"},
		"retry:":                              {Name: "retry", NextHop: undeliverable, Status: "4.0.0", Text: undeliverable},
		"retry:4.4.1 down for\n maintenance":  {Name: "retry", NextHop: "4.4.1 down for maintenance", Status: "4.4.1", Text: "down for maintenance"},
		"retry:later":                         {Name: "retry", NextHop: "later", Status: "4.0.0", Text: "later"},
		"discard:":                            {Name: "discard"},
		"discard:5.7.1 spam\r\n  trap":        {Name: "discard", NextHop: "5.7.1 spam\r  trap", Text: "5.7.1 spam trap"},
		"error:mail for *.x is undeliverable": {Name: "error", NextHop: "mail for *.x is undeliverable", Status: "5.0.0", Text: "mail for *.x is undeliverable"},
	} {
		m := mustTransport(t, "a.test "+value+"\n")
		want.Line, want.Key = 1, "a.test"
		if diff := cmp.Diff([]domain.Transport{want}, m.Entries); diff != "" {
			t.Errorf("%q: %s", value, diff)
		}
		if len(m.Warnings) > 0 {
			t.Errorf("%q: %v", value, m.Warnings)
		}
	}
	// These are taken, with a word about it.
	for value, want := range map[string]domain.Transport{
		"smtp:gw.example":            {Name: "smtp", NextHop: "gw.example", Hops: []domain.Hop{{Host: "gw.example"}}},
		":gw.example:":               {NextHop: "gw.example:", Hops: []domain.Hop{{Host: "gw.example"}}},
		"relay:[a] GW.example:2525":  {Name: "relay", NextHop: "[a] GW.example:2525", Hops: []domain.Hop{br("a", ""), {Host: "gw.example", Port: "2525"}}},
		"smtp:192.0.2.1":             {Name: "smtp", NextHop: "192.0.2.1", Hops: []domain.Hop{{Host: "192.0.2.1"}}},
		"error:4.7.1 later":          {Name: "error", NextHop: "4.7.1 later", Status: "5.0.0", Text: "later"},
		"retry:5.7.1 never":          {Name: "retry", NextHop: "5.7.1 never", Status: "4.0.0", Text: "never"},
		"retry:2.0.0":                {Name: "retry", NextHop: "2.0.0", Status: "4.0.0", Text: undeliverable},
		"smtp:bar.example,foo.x:587": {Name: "smtp", NextHop: "bar.example,foo.x:587", Hops: []domain.Hop{{Host: "bar.example"}, {Host: "foo.x", Port: "587"}}},
	} {
		m := mustTransport(t, "# c\na.test "+value+"\nb.test "+value+"\n")
		want.Line, want.Key = 2, "a.test"
		other := want
		other.Line, other.Key = 3, "b.test"
		if diff := cmp.Diff([]domain.Transport{want, other}, m.Entries); diff != "" {
			t.Errorf("%q: %s", value, diff)
		}
		if len(m.Warnings) != 2 || m.Warnings[0].Line != 2 || m.Warnings[1].Line != 3 || m.Warnings[0].Reason != m.Warnings[1].Reason {
			t.Errorf("%q: %v", value, m.Warnings)
		}
	}
}

func TestTransportRefuses(t *testing.T) {
	for _, tt := range []struct{ line, reason string }{
		{"a.test lmtp:unix:/run/x", "no LMTP"},
		{"a.test lmtp:", "no LMTP"},
		{"a.test smtp:", "need a nexthop"},
		{"a.test relay:", "need a nexthop"},
		{"a.test smtp", "need a nexthop"},
		{"a.test smtp: , ,", "need a nexthop"},
		{"a.test smtp :[x]", "name of the transport"},
		{"a.test smtp:[x]:0", "port"},
		{"a.test smtp:[x]:65536", "port"},
		{"a.test smtp:[x]:99999999999999999999", "port"},
		{"a.test smtp:[x]:+25", "port"},
		{"a.test smtp:[x]:25a", "port"},
		{"a.test smtp:[x]:imap", "port"},
		{"a.test :x:0", "port"},
		{"a.test relay:x.example:-1", "port"},
		{"a.test smtp:[x", "without its"},
		{"a.test smtp:[x y]", "without its"},
		{"a.test smtp:[x]25", "behind the"},
		{"a.test smtp:[]", "no host"},
		{"a.test smtp:[]:25", "no host"},
		{"a.test smtp::25", "no host"},
		{"a.test smtp:[a..b]", "host name"},
		{"a.test smtp:[a],-b", "host name"},
		{"a.test smtp:2001:db8::1", "host name"},
		{"a.test smtp:::1:25", "host name"},
		{"a.test smtp:[ipv6:x]", "host name"},
		{"a.test smtp:[ipv6:192.0.2.1]", "host name"},
		{"a.test smtp:ipv6:::1:25", "host name"},
		{"a.test smtp:[fe80::1%eth0]", "host name"},
		{"a.test smtp:[192.0.2]", "host name"},
		{"a.test smtp:[192.0.2.256]", "host name"},
		{"a.test smtp:[x]:25:25", "port"},
		{"a.test error:a\x00b", "control"},
		{"a.test x:\u0085", "control"},
		{"a.test x:a\x7f", "control"},
		{"a..test x:", "bad key: empty label"},
		{"... x:", "bad key: empty label"},
		{". x:", "bad key: empty domain"},
		{"*. x:", "bad key: empty domain"},
		{"** x:", `bad key: "*"`},
		{"a.*.test x:", `bad key: "*"`},
		{"*a.test x:", `bad key: "*"`},
		{"*.*.test x:", `bad key: "*"`},
		{"u@*.test x:", `bad key: "*"`},
		{"u@*.a.test x:", `bad key: "*"`},
		{"u@.a.test x:", "bad key: empty label"},
		{"u@ x:", "bad key: empty domain"},
		{"-a.test x:", "bad key: domain label starts"},
		{"\u0301a.test x:", "bad key: not a valid int"},
		{"a/b x:", "bad key: character"},
		{"a.test: x:", "bad key: character"},
		{".[192.0.2.1] x:", "bad key: character"},
		{"[192.0.2.1 x:", "bad key: not a valid address literal"},
		{"\"a.test b\" x:", "bad key: character"},
		{"u\x01@a.test x:", "bad key: character"},
		{local64 + "a@a.test x:", "bad key: local part longer"},
	} {
		for _, before := range []string{"", "# c\n\nok.test x:\n"} {
			m, err := domain.ParseTransport(strings.NewReader(before+tt.line+"\n# c\n\nend.test x:\n"), nil)
			var te *domain.TransportError
			if m != nil || !errors.As(err, &te) {
				t.Errorf("%q: %+v, %v", tt.line, m, err)
				continue
			}
			if want := 1 + strings.Count(before, "\n"); te.Line != want || !strings.Contains(te.Reason, tt.reason) {
				t.Errorf("%q: line %d: %s, want line %d: %s", tt.line, te.Line, te.Reason, want, tt.reason)
			}
		}
	}
}

// unjoin returns the faults of a table, one a string.
func unjoin(t *testing.T, err error) (faults []string) {
	t.Helper()
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("%v is not joined", err)
	}
	for _, err := range joined.Unwrap() {
		faults = append(faults, err.Error())
	}
	return faults
}

func TestTransportTellsAllFaults(t *testing.T) {
	_, err := domain.ParseTransport(strings.NewReader("a.test lmtp:x\nb..test smtp:[x]\nc.test smtp:[x]\nd.test smtp:[x]:0\nc.test lmtp:\ne.test\n  lmtp:y\n"), nil)
	want := []string{
		"line 1: lmtp: there is no LMTP here",
		"line 2: bad key: empty label in the domain",
		"line 4: bad nexthop: the port is neither a number from 1 to 65535 nor smtp, smtps, submission or submissions",
		"line 6: lmtp: there is no LMTP here",
	}
	if diff := cmp.Diff(want, unjoin(t, err)); diff != "" {
		t.Error(diff)
	}
	// But not of a file of another kind.
	r := &endless{text: "a..test x:\n"}
	_, err = domain.ParseTransport(r, nil)
	faults := unjoin(t, err)
	if len(faults) != 1001 || faults[1000] != "line 1000: too many errors, gave up" {
		t.Errorf("%d faults, the last one %q", len(faults), faults[len(faults)-1])
	}
	if r.read > 64<<10 {
		t.Errorf("%d octets were read to find that out", r.read)
	}
}

// endless reads the same again and again.
type endless struct {
	text string
	read int
}

func (e *endless) Read(p []byte) (n int, err error) {
	for n < len(p) {
		k := copy(p[n:], e.text[e.read%len(e.text):])
		n += k
		e.read += k
	}
	return n, nil
}

func TestTransportReadError(t *testing.T) {
	broken := errors.New("broken")
	for _, text := range []string{"", "a.test", "a.test x:1", "a.test x:1\n", "a.test x:1\n ", "a.test x:1\n# c", "a.test x:1\nb.test x"} {
		for name, r := range map[string]io.Reader{
			"for good": io.MultiReader(strings.NewReader(text), iotest.ErrReader(broken)),
			"once":     &once{text: text, err: broken},
		} {
			m, err := domain.ParseTransport(r, nil)
			if m != nil || !errors.Is(err, broken) {
				t.Errorf("%q, %s: %v, %v", text, name, m, err)
				continue
			}
			if want := fmt.Sprintf("after line %d: broken", strings.Count(text, "\n")); err.Error() != want {
				t.Errorf("%q, %s: %v, want %s", text, name, err, want)
			}
		}
	}
	// What was wrong before that is told too.
	_, err := domain.ParseTransport(io.MultiReader(strings.NewReader("a..b x:\nb.test x:\n"), iotest.ErrReader(broken)), nil)
	if diff := cmp.Diff([]string{"line 1: bad key: empty label in the domain", "after line 2: broken"}, unjoin(t, err)); diff != "" {
		t.Error(diff)
	}
}

// once fails after its text, and then is at its end as if nothing had been.
type once struct {
	text string
	err  error
}

func (o *once) Read(p []byte) (int, error) {
	if o.text == "" {
		err := o.err
		if o.err = nil; err == nil {
			err = io.EOF
		}
		return 0, err
	}
	n := copy(p, o.text)
	o.text = o.text[n:]
	return n, nil
}

func TestTransportLineLength(t *testing.T) {
	const most = 64 << 10
	fill := func(prefix string, n int) string { return prefix + strings.Repeat("x", n-len(prefix)) }
	for _, tt := range []struct {
		name, text string
		fault      string
		entries    int
	}{
		{"at the limit", fill("a.test error:", most) + "\nb.test x:", "", 2},
		{"at the limit, without an end", fill("a.test error:", most), "", 1},
		{"one more", fill("\na.test error:", most+2) + "\nb..test x:", "line 2: longer than 64 KiB\nline 3: bad key: empty label in the domain", 0},
		{"continued to the limit", fill("a.test error:", 100) + "\n" + fill("\t", most-100) + "\n", "", 1},
		{"continued beyond it", fill("a.test error:", 100) + "\n#\n" + fill("\t", most-99) + "\n x\nb..test x:", "line 1: longer than 64 KiB\nline 5: bad key: empty label in the domain", 0},
		{"long comment", fill("#", 3*most) + "\na.test x:\n" + fill(" #", 3*most) + "\n  y\n", "", 1},
		{"long blank line", strings.Repeat(" ", 3*most) + "\na.test x:\n" + strings.Repeat("\t", 3*most) + "\n  y\n", "", 1},
		{"long indent of a comment", "a.test x:\n" + strings.Repeat("\t", 3*most) + "#\n  y\n", "", 1},
		{"long indent of a continuation", "a.test x:\n" + strings.Repeat("\t", 3*most) + "y\n", "line 1: longer than 64 KiB", 0},
	} {
		m, err := domain.ParseTransport(strings.NewReader(tt.text), nil)
		switch {
		case tt.fault != "":
			if err == nil || err.Error() != tt.fault {
				t.Errorf("%s: %v, want %s", tt.name, err, tt.fault)
			}
		case err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case len(m.Entries) != tt.entries:
			t.Errorf("%s: %d entries, want %d", tt.name, len(m.Entries), tt.entries)
		}
	}
}

// A file is never held whole, whatever it is full of.
func TestTransportStreams(t *testing.T) {
	const size = 2 << 20
	for _, text := range []string{strings.Repeat("# a comment of some length\n", 1000), strings.Repeat(" \t \n", 1000), "a.test smtp:[x]\n# c\n" + strings.Repeat("\n#", 1<<20), strings.Repeat("x", 1<<20), strings.Repeat(" ", 1<<20)} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := domain.ParseTransport(io.LimitReader(&endless{text: text}, size), nil)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 512<<10 {
			t.Errorf("%.10q…: %d octets of memory for a file of %d", text, n, size)
		}
		if long := text[0] == 'x'; long != (err != nil) {
			t.Errorf("%.10q…: %v", text, err)
		}
	}
}

func TestTransportLookup(t *testing.T) {
	m := mustTransport(t, `
user@example.com x:user
user+ext@example.com x:ext
"a b"@example.com x:blank
c,d@example.com x:comma
k@e@example.com x:at
owner-list@example.com x:owner
owner@example.com x:cut
list@example.com x:list
double@example.com x:double
mailer@example.com x:mailer
straße@example.com x:sharp
+x@example.com x:plus
""@example.com x:empty
σς@example.com x:sigma
u@[192.0.2.1] x:literal
.0.2.1 x:numbers
.com x:com
example.com x:domain
.a.example.com x:a
b.a.example.com x:b
.xn--bcher-kva.example x:idn
bücher.example x:idn itself
[192.0.2.2] x:literal itself
`)
	for _, tt := range []struct {
		addr  string
		delim byte
		want  string
	}{
		{"user@example.com", '+', "x:user"}, {"USER@Example.COM", 0, "x:user"},
		{"user+ext@example.com", '+', "x:ext"}, {"user+ext@example.com", 0, "x:ext"}, {"User+EXT@example.com", '-', "x:ext"},
		{"user+other@example.com", '+', "x:user"}, {"user+a+b@example.com", '+', "x:user"}, {"user+@example.com", '+', "x:user"},
		{"user+other@example.com", 0, "x:domain"}, {"user+other@example.com", '-', "x:domain"}, {"user-other@example.com", '-', "x:user"},
		{"user@sub.example.com", '+', "x:com"}, {"+x@example.com", '+', "x:plus"}, {"+y@example.com", '+', "x:domain"}, {"++x@example.com", '+', "x:domain"},
		{`"a b"@example.com`, 0, "x:blank"}, {`"A B"@example.com`, 0, "x:blank"}, {`"a b+x"@example.com`, '+', "x:blank"}, {`"user+ x"@example.com`, '+', "x:user"},
		{`"c,d"@example.com`, 0, "x:comma"}, {`"C,d+e"@example.com`, '+', "x:comma"}, {`"k@e"@example.com`, 0, "x:at"},
		{"owner-list@example.com", '-', "x:owner"}, {"owner-other@example.com", '-', "x:domain"}, {"owner+other@example.com", '+', "x:cut"},
		{"list-request@example.com", '-', "x:domain"}, {"list-Request@example.com", '-', "x:domain"}, {"list+request@example.com", '+', "x:list"},
		{"list-help@example.com", '-', "x:list"}, {"double-bounce@example.com", '-', "x:domain"}, {"Mailer-Daemon@example.com", '-', "x:domain"},
		{"mailer-x@example.com", '-', "x:mailer"}, {"double-x@example.com", '-', "x:double"}, {"STRAẞE@example.com", 0, "x:sharp"}, {"strasse@example.com", 0, "x:domain"},
		{`""@example.com`, '+', "x:empty"}, {"ΣΣ@example.com", 0, "x:sigma"}, {"σσ@example.com", 0, "x:sigma"},
		{"x@example.com", 0, "x:domain"}, {"x@other.com", 0, "x:com"}, {"x@com", 0, "nothing"}, {"x@example.org", 0, "nothing"},
		{"x@a.example.com", 0, "x:com"}, {"x@b.a.example.com", 0, "x:b"}, {"x@c.a.example.com", 0, "x:a"}, {"x@d.c.b.a.example.com", 0, "x:a"},
		{"x@bücher.example", 0, "x:idn itself"}, {"x@a.BÜCHER.example", 0, "x:idn"}, {"x@a.xn--bcher-kva.example", 0, "x:idn"},
		{"u@[192.0.2.1]", 0, "x:literal"}, {"x@[192.0.2.1]", 0, "nothing"}, {"x@[192.0.2.2]", 0, "x:literal itself"}, {"x@192.0.2.1", 0, "x:numbers"},
	} {
		if got := ask(t, m, tt.addr, tt.delim); got != tt.want {
			t.Errorf("%s, delimiter %q: %q, want %q", tt.addr, tt.delim, got, tt.want)
		}
	}
}

func TestTransportAllocations(t *testing.T) {
	m := mustTransport(t, "user@example.com x:1\n.example.com x:2\n* x:3")
	for _, s := range []string{"user@example.com", "user+tag@example.com", "x@d.c.b.a.example.com", "x@example.org", local64 + "@" + domain253[64:]} {
		a, err := domain.ParseAddress(s)
		if err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(100, func() {
			if _, ok := m.Lookup(a, '+'); !ok {
				t.Error(s, "was not found")
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", s, n)
		}
	}
}

func ExampleParseTransport() {
	m, err := domain.ParseTransport(strings.NewReader(`
example.com    smtp:[relay-a.example.net]:587,
               [relay-b.example.net]:587
.example.com   error:5.1.2 subdomains take no mail
*              smtp:relay-c.example.net
`), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, w := range m.Warnings {
		fmt.Println(&w)
	}
	for _, s := range []string{"user@example.com", "user@www.example.com", "user@example.org"} {
		a, _ := domain.ParseAddress(s)
		t, _ := m.Lookup(a, '+')
		fmt.Printf("%s %s %v %q\n", a, t.Name, t.Hops, t.Text)
	}
	// Output:
	// line 5: a host without brackets: Postfix would ask for its MX records; here it is the relay itself
	// user@example.com smtp [{relay-a.example.net 587 true} {relay-b.example.net 587 true}] ""
	// user@www.example.com error [] "subdomains take no mail"
	// user@example.org smtp [{relay-c.example.net  false}] ""
}

func BenchmarkTransportLookup(b *testing.B) {
	var text strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&text, "host%d.example.com smtp:[relay%d.example.net]:587\n", i, i%10)
	}
	text.WriteString("user@example.com :\n* :\n")
	m := mustTransport(b, text.String())
	for _, s := range []string{"user@host77777.example.com", "user@a.b.elsewhere.test"} {
		a, _ := domain.ParseAddress(s)
		b.Run(s, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := m.Lookup(a, '+'); !ok {
					b.Fatal("not found")
				}
			}
		})
	}
}

func BenchmarkParseTransport(b *testing.B) {
	var text strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&text, "host%d.example.com smtp:[relay%d.example.net]:587\n", i, i%10)
	}
	b.SetBytes(int64(text.Len()))
	b.ReportAllocs()
	for b.Loop() {
		mustTransport(b, text.String())
	}
}
