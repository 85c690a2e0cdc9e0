package domain_test

import (
	"fmt"
	"net/mail"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/smtplb/smtplb/internal/domain"
)

var local64 = strings.Repeat("l", 64)

func TestParseAddress(t *testing.T) {
	for _, tt := range []struct {
		in, local, domain string
		utf8              bool
	}{
		{in: "a@b", local: "a", domain: "b"},
		{in: "user@example.com", local: "user", domain: "example.com"},
		{in: "User.Name+Tag@EXAMPLE.Com.", local: "User.Name+Tag", domain: "example.com"},
		{in: "!#$%&'*+-/=?^_`{|}~@example.com", local: "!#$%&'*+-/=?^_`{|}~", domain: "example.com"},
		{in: "0@0", local: "0", domain: "0"},
		{in: "postmaster@[192.0.2.1]", local: "postmaster", domain: "[192.0.2.1]"},
		{in: "postmaster@[ipv6:2001:DB8::0:1]", local: "postmaster", domain: "[IPv6:2001:db8::1]"},
		{in: "a@bücher.example", local: "a", domain: "xn--bcher-kva.example"},
		{in: "a@BÜCHER.example", local: "a", domain: "xn--bcher-kva.example"},
		{in: "a%b@example.com", local: "a%b", domain: "example.com"},
		{in: "bounce=user=example.org@example.com", local: "bounce=user=example.org", domain: "example.com"},

		// Quotes go where they are not needed …
		{in: `"user"@example.com`, local: "user", domain: "example.com"},
		{in: `"us\er"@example.com`, local: "user", domain: "example.com"},
		{in: `"first.last"@example.com`, local: "first.last", domain: "example.com"},
		{in: `"müller"@example.com`, local: "müller", domain: "example.com", utf8: true},
		{in: `"a.ü"@example.com`, local: "a.ü", domain: "example.com", utf8: true},
		{in: `"\a\.\b"@EXAMPLE.com`, local: "a.b", domain: "example.com"},
		// … and stay, at the least, where they are.
		{in: `"a b"@example.com`, local: `"a b"`, domain: "example.com"},
		{in: `"a b"@EXAMPLE.com`, local: `"a b"`, domain: "example.com"},
		{in: `"a\ b"@example.com`, local: `"a b"`, domain: "example.com"},
		{in: `" "@example.com`, local: `" "`, domain: "example.com"},
		{in: `"~ !"@example.com`, local: `"~ !"`, domain: "example.com"},
		{in: `""@example.com`, local: `""`, domain: "example.com"},
		{in: `".a"@example.com`, local: `".a"`, domain: "example.com"},
		{in: `"a."@example.com`, local: `"a."`, domain: "example.com"},
		{in: `"a..b"@example.com`, local: `"a..b"`, domain: "example.com"},
		{in: `"."@example.com`, local: `"."`, domain: "example.com"},
		{in: `"a@b"@example.com`, local: `"a@b"`, domain: "example.com"},
		{in: `"a\"b"@example.com`, local: `"a\"b"`, domain: "example.com"},
		{in: `"a\\b"@example.com`, local: `"a\\b"`, domain: "example.com"},
		{in: `"\\"@example.com`, local: `"\\"`, domain: "example.com"},
		{in: `"\@\>\x"@example.com`, local: `"@>x"`, domain: "example.com"},
		{in: `"<a>(b),c:d;e[f]"@example.com`, local: `"<a>(b),c:d;e[f]"`, domain: "example.com"},
		{in: `"müller lüdenscheidt"@example.com`, local: `"müller lüdenscheidt"`, domain: "example.com", utf8: true},
		{in: "\"a\u00a0b\"@example.com", local: "\"a\u00a0b\"", domain: "example.com", utf8: true},
		{in: "\"\u3000\"@example.com", local: "\"\u3000\"", domain: "example.com", utf8: true},
		{in: `"user@evil.example> ORCPT=x"@example.com`, local: `"user@evil.example> ORCPT=x"`, domain: "example.com"},

		{in: "müller@example.com", local: "müller", domain: "example.com", utf8: true},
		{in: "用户@例え。テスト", local: "用户", domain: "xn--r8jz45g.xn--zckzah", utf8: true},
		{in: "a.ü.b@example.com", local: "a.ü.b", domain: "example.com", utf8: true},
		{in: "👩\u200d💻@example.com", local: "👩\u200d💻", domain: "example.com", utf8: true},
		{in: "a\ufffd@example.com", local: "a\ufffd", domain: "example.com", utf8: true},

		{in: local64 + "@example.com", local: local64, domain: "example.com"},
		{in: `"` + local64 + `"@example.com`, local: local64, domain: "example.com"},
		{in: `"` + strings.Repeat(" ", 62) + `"@example.com`, local: `"` + strings.Repeat(" ", 62) + `"`, domain: "example.com"},
		{in: `"` + strings.Repeat(`\l`, 64) + `"@example.com`, local: local64, domain: "example.com"},
		{in: strings.Repeat("ü", 32) + "@example.com", local: strings.Repeat("ü", 32), domain: "example.com", utf8: true},
		{in: local64 + "@" + domain253[64:], local: local64, domain: domain253[64:]}, // 254 octets
		{in: local64 + "@" + domain253[64:] + ".", local: local64, domain: domain253[64:]},
	} {
		got, err := domain.ParseAddress(tt.in)
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		if diff := cmp.Diff(domain.Address{Local: tt.local, Domain: tt.domain, UTF8: tt.utf8}, got, cmpopts.IgnoreUnexported(domain.Address{})); diff != "" {
			t.Errorf("%q: %s", tt.in, diff)
		}
		checkAccepted(t, tt.in, got)
	}
}

func TestParseAddressRefuses(t *testing.T) {
	const (
		local  = "local part without quotes"
		quoted = "in a quoted local part"
		dot    = "dot at"
		dom    = "in a domain"
		end    = "does not end"
		after  = "no @ after"
	)
	for _, tt := range []struct{ in, reason string }{
		{"", "empty"},
		{"postmaster", "no domain"},
		{"user", "no domain"},
		{`"user"`, "no domain"},
		{"müller", "no domain"},
		{"@example.com", "no local part"},
		{"user@", "empty domain"},
		{"user@.", "empty domain"},
		{`""@`, "empty domain"},
		{"@", "no local part"},
		{"<>", local},
		{"<user@example.com>", local},
		{"User <user@example.com>", local},
		{"user@example.com>", dom},
		{" user@example.com", local},
		{"user@example.com ", dom},
		{"user @example.com", local},
		{"user@ example.com", dom},
		{"us(er)@example.com", local},
		{"user@example.com(home)", dom},
		{"a,b@example.com", local},
		{"a@example.com,b@example.com", dom},
		{"a;b@example.com", local},
		{"mailto:user@example.com", local},
		{"@a.example,@b.example:user@example.com", "source route"},
		{"@a.example:user@example.com", "source route"},
		{"a@b@c", dom},
		{".user@example.com", dot},
		{"user.@example.com", dot},
		{"us..er@example.com", dot},
		{".@example.com", dot},
		{"ü.@example.com", dot},
		{`us"er@example.com`, local},
		{`"us"er@example.com`, after},
		{`"us".er@example.com`, after},
		{`"a""b"@example.com`, after},
		{`"a" @example.com`, after},
		{`us\er@example.com`, local},
		{`"user@example.com`, end},
		{`"`, end},
		{`"\`, end},
		{`"user\"@example.com`, end},
		{`"user\`, end},
		{"\"a\tb\"@example.com", quoted},
		{"\"a\\\tb\"@example.com", quoted},
		{"\"a\r\nb\"@example.com", quoted},
		{"\"a\\\nb\"@example.com", quoted},
		{"\"a\x00b\"@example.com", quoted},
		{"\"a\\\x00b\"@example.com", quoted},
		{"\"a\x7fb\"@example.com", quoted},
		{"\"a\\\x7fb\"@example.com", quoted},
		{"\"a\\üb\"@example.com", quoted},
		{"\"a\u0085b\"@example.com", quoted},
		{"\"a\u2028b\"@example.com", quoted},
		{"\"a\u2029b\"@example.com", quoted},
		{"\"a\xffb\"@example.com", "UTF-8"},
		{"a\r\nRCPT TO:<x@y>@example.com", local},
		{"user@example.com\r\nRCPT TO:<x@y>", dom},
		{"user@example.com\n", dom},
		{"a\x00@example.com", local},
		{"a\x7f@example.com", local},
		{"a\x80@example.com", "UTF-8"},
		{"a\xc3@example.com", "UTF-8"},
		{"\xed\xa0\x80@example.com", "UTF-8"}, // a surrogate
		{"a\u0080@example.com", local},
		{"a\u009f@example.com", local},
		{"a\u00a0b@example.com", local},
		{"a\u3000b@example.com", local},
		{"a\u2028b@example.com", local},
		{"a\u2029b@example.com", local},
		{"a\u202eb@example.com", local},
		{"a\u2066b@example.com", local},
		{"a\u200eb@example.com", local},
		{"a\u200bb@example.com", local},
		{"a\u00adb@example.com", local},
		{"\ufeffa@example.com", local},
		{"a\ufffeb@example.com", local},
		{"a\U0001ffffb@example.com", local},
		{"a@exa＞mple.com", dom},
		{"a@xn--ü.com", "internationalised"},
		{"a@-b.com", "hyphen"},
		{"a@b..com", "empty label"},
		{"a@[192.0.2.300]", "address literal"},
		{"a@[192.0.2.1]>", "address literal"},
		{"a@[example.com]", "address literal"},
		{local64 + "l@example.com", "64"},
		{`"` + local64 + `l"@example.com`, "64"},
		{`"` + strings.Repeat(" ", 63) + `"@example.com`, "64"},
		{`"` + strings.Repeat(`\\`, 32) + `"@example.com`, "64"},
		{strings.Repeat("ü", 33) + "@example.com", "64"},
		{local64 + "@" + domain253[64:] + "b", "too long"}, // 255 octets
		{"a@b" + domain253, "253"},
		{strings.Repeat("l", 5000), "too long"},
		{`"` + strings.Repeat("l", 2000) + `"@a`, "64"},

		// CVE-2025-59937 (go-mail) without the quotes that make it a legal address, CVE-2025-7962, nodemailer GHSA-c7w3-x93f-qmm8 …
		{"toni.tester@example.com> ORCPT=admin@admin.com", dom},
		{"toni.tester@example.com>@example.com", dom},
		{"user@example.com> SIZE=1", dom},
		{"user@example.com>\r\nDATA", dom},
		{"ü@example.com>\r\nDATA", dom},
	} {
		got, err := domain.ParseAddress(tt.in)
		if err == nil || got != (domain.Address{}) {
			t.Errorf("%q was accepted as %q", tt.in, got)
			continue
		}
		checkError(t, tt.in, err, tt.reason)
	}
}

// checkAccepted checks what holds for each accepted address.
func checkAccepted(t *testing.T, in string, a domain.Address) {
	t.Helper()
	s := a.String()
	if s != a.Local+"@"+a.Domain || s != a.Key() {
		t.Fatalf("%q: %q, key %q, of %q and %q", in, s, a.Key(), a.Local, a.Domain)
	}
	if len(a.Local) == 0 || len(a.Local) > 64 || len(a.Domain) == 0 || len(a.Domain) > 253 || len(s) > 254 {
		t.Fatalf("%q: %d@%d octets", in, len(a.Local), len(a.Domain))
	}
	if !utf8.ValidString(s) {
		t.Fatalf("%q: %q is not UTF-8", in, s)
	}
	// As a strict server reads it after "MAIL FROM:<": in quotes everything up to the quote that no backslash precedes, outside
	// nothing but the @ and the dots divides.
	ats, inQuotes, nonASCII := 0, false, false
	for i := 0; i < len(s); i++ {
		b := s[i]
		switch {
		case b < ' ' || b == 0x7f:
			t.Fatalf("%q: control character in %q", in, s)
		case b >= 0x80:
			nonASCII = true
			if i > len(a.Local) {
				t.Fatalf("%q: the domain of %q is not ASCII", in, s)
			}
		case inQuotes && b == '\\':
			i++
			if i == len(s) || s[i] != '"' && s[i] != '\\' {
				t.Fatalf("%q: needless or open backslash in %q", in, s)
			}
		case b == '"':
			if inQuotes = !inQuotes; inQuotes && i != 0 || !inQuotes && i != len(a.Local)-1 {
				t.Fatalf("%q: quote in the middle of %q", in, s)
			}
		case inQuotes:
		case b == '@':
			ats++
		case strings.IndexByte(" <>(),;\\", b) >= 0, strings.IndexByte(":[]", b) >= 0 && (i <= len(a.Local) || a.Domain[0] != '['):
			t.Fatalf("%q: %q outside of quotes in %q", in, b, s)
		}
	}
	if inQuotes || ats != 1 {
		t.Fatalf("%q: open quotes or %d @ in %q", in, ats, s)
	}
	if a.UTF8 != nonASCII {
		t.Fatalf("%q: UTF8 is %v for %q", in, a.UTF8, s)
	}
	again, err := domain.ParseAddress(s)
	if err != nil || again != a {
		t.Fatalf("%q became %q, and that %q, %v", in, s, again, err)
	}
	if d, err := domain.ToASCIIOrLiteral(a.Domain); err != nil || d != a.Domain || domain.Fold(a.Domain) != a.Domain {
		t.Fatalf("%q: the domain %q becomes %q, %v", in, a.Domain, d, err)
	}
	// Another parser sees the same in what went in and in what came out. It knows no empty local part, and no tag in a literal.
	if a.Local == `""` || a.Domain[0] == '[' {
		return
	}
	m, err := mail.ParseAddress("<" + s + ">")
	if err != nil || m.Address != unquote(a.Local)+"@"+a.Domain {
		t.Fatalf("%q: net/mail reads %q as %v, %v", in, s, m, err)
	}
	if m, err := mail.ParseAddress("<" + in + ">"); err == nil {
		if at := strings.LastIndexByte(m.Address, '@'); m.Address[:at] != unquote(a.Local) || domain.Fold(m.Address[at+1:]) != a.Domain {
			t.Fatalf("%q became %q, and net/mail reads %q", in, s, m.Address)
		}
	}
}

func unquote(local string) string {
	if local[0] != '"' {
		return local
	}
	return strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(local[1 : len(local)-1])
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{
		"user@example.com", "User@EXAMPLE.com.", "müller@bücher.example", "a@[192.0.2.1]", "a@[ipv6:2001:DB8::1]", "postmaster", "<>",
		`"toni.tester@example.com> ORCPT=admin@admin.com"@example.com`, "toni.tester@example.com> ORCPT=admin@admin.com", // CVE-2025-59937
		`"xclow3n@gmail.com x"@internal.domain`, `"user@evil.example"@example.com`, `"a@b"@c`, // nodemailer's quoted local parts
		"user@example.com\r\nRCPT TO:<x@y>", "\"a\r\nDATA\r\n\"@example.com", "a\n@b", "a\x00@b", "\"\\\r\"@b", // injections
		`"a\"b"@c`, `"a\\"@c`, `"\a.\b"@c`, `""@c`, `".."@c`, "@a,@b:c@d", "a@b@c", "us(er)@example.com", "a\u2028@b", "\"\u00a0\"@b", "a\u202e@b", "\xff@b",
		"a@b\uff1e SIZE=1", "a@\uff3b127.0.0.1\uff3d", "👩\u200d💻@例え。テスト", local64 + "@" + domain253[64:],
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := domain.ParseAddress(s)
		if err != nil {
			checkError(t, s, err, "")
			return
		}
		checkAccepted(t, s, a)
	})
}

func TestAddressKey(t *testing.T) {
	key := func(s string) string {
		a, err := domain.ParseAddress(s)
		if err != nil {
			t.Fatal(err)
		}
		return a.Key()
	}
	for _, same := range [][]string{
		{"User@example.com", "User@EXAMPLE.COM", `"User"@example.com.`, `"\User"@Example.com`},
		{"a@bücher.de", "a@BÜCHER.de", "a@xn--bcher-kva.de", "a@XN--BCHER-KVA.DE."},
		{`"a b"@c`, `"a\ b"@C`},
		{"a@[IPv6:::1]", "a@[ipv6:0::0:1]"},
	} {
		for _, s := range same {
			if key(s) != key(same[0]) {
				t.Errorf("%q has key %q, %q has %q", s, key(s), same[0], key(same[0]))
			}
		}
	}
	for _, different := range [][2]string{{"User@example.com", "user@example.com"}, {`"a b"@c`, `"a  b"@c`}, {`"a\\b"@c`, `"ab"@c`}, {"a@b", "a@b.c"}, {"ü@b", "u\u0308@b"}} {
		if key(different[0]) == key(different[1]) {
			t.Errorf("%q and %q have the same key", different[0], different[1])
		}
	}
}

// An address put together or changed by hand is written as its fields say.
func TestAddressByHand(t *testing.T) {
	if got := (domain.Address{Local: "a", Domain: "b.example"}).String(); got != "a@b.example" {
		t.Error(got)
	}
	a, err := domain.ParseAddress("a@b.example")
	if err != nil {
		t.Fatal(err)
	}
	a.Local = "c"
	if got := a.String(); got != "c@b.example" {
		t.Error(got)
	}
	a.Local, a.Domain = "a", "d.example"
	if got := a.Key(); got != "a@d.example" {
		t.Error(got)
	}
}

func TestErrorIsBounded(t *testing.T) {
	_, err := domain.ParseAddress(strings.Repeat("\x00ü", 10000))
	checkError(t, "zeros", err, "too long")
	for _, in := range []string{strings.Repeat("a", 79) + "ü b", strings.Repeat("\xbf", 200) + " ", strings.Repeat("ü", 200) + " "} {
		_, err := domain.ParseAddress(in)
		checkError(t, in, err, "")
	}
	_, err = domain.ParseAddress(strings.Repeat("a", 79) + "ü b@example.com")
	if want := `"` + strings.Repeat("a", 79) + `"…: character not allowed in a local part without quotes`; err == nil || err.Error() != want {
		t.Errorf("%v, want %v", err, want)
	}
	_, err = domain.ParseAddress("a\r\n@b")
	if want := `"a\r\n@b": character not allowed in a local part without quotes`; err == nil || err.Error() != want {
		t.Errorf("%v, want %v", err, want)
	}
}

func TestParseAddressAllocations(t *testing.T) {
	for in, most := range map[string]float64{
		"user.name+tag@mail.example.com":           0,
		`"user name"@mail.example.com`:             0,
		"müller@mail.example.com":                  0,
		"a@[192.0.2.1]":                            0,
		"user@Example.COM":                         1,
		"user@example.com.":                        1,
		`"user"@Example.com`:                       1,
		`"a\ b"@Example.com`:                       1,
		local64 + "@" + domain253[64:]:             0,
		local64 + "@B" + domain253[65:]:            1,
		`"` + local64 + `"@B` + domain253[65:]:     1,
		`"` + local64[2:] + `"@b` + domain253[65:]: 1,
	} {
		if n := testing.AllocsPerRun(100, func() {
			a, err := domain.ParseAddress(in)
			if err != nil {
				t.Error(err)
			}
			_, _ = a.String(), a.Key()
		}); n > most {
			t.Errorf("%q: %v allocations, want at most %v", in, n, most)
		}
	}
}

func ExampleParseAddress() {
	for _, s := range []string{
		"User@Example.COM",
		`"first.last"@bücher.example`,
		`"a@b> SIZE=1"@example.com`,
		"a@b> SIZE=1",
	} {
		a, err := domain.ParseAddress(s)
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(a)
	}
	// Output:
	// User@example.com
	// first.last@xn--bcher-kva.example
	// "a@b> SIZE=1"@example.com
	// "a@b> SIZE=1": character not allowed in a domain
}

func BenchmarkParseAddress(b *testing.B) {
	for _, s := range []string{"user.name+tag@mail.example.com", "User@Mail.Example.com", `"user name"@mail.example.com`, "müller@mail.example.com", "user@bücher.example"} {
		b.Run(s, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				a, _ := domain.ParseAddress(s)
				_ = a.String()
			}
		})
	}
}
