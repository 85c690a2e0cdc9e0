package domain_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/smtplb/smtplb/internal/domain"
)

var (
	label63 = strings.Repeat("a", 63)
	// 253 octets: three labels of 63 and one of 61.
	domain253 = label63 + "." + label63 + "." + label63 + "." + strings.Repeat("b", 61)
)

// checkError makes sure that a refusal is typed and its text harmless.
func checkError(t *testing.T, input string, err error, reason string) {
	t.Helper()
	var ae *domain.AddressError
	if !errors.As(err, &ae) {
		t.Fatalf("%q: %v is no *AddressError", input, err)
	}
	if !strings.Contains(ae.Reason, reason) {
		t.Errorf("%q: refused because of %q, want %q", input, ae.Reason, reason)
	}
	if got := err.Error(); len(got) > 1000 || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r > '~' && r != '…' }) {
		t.Errorf("%q: unfit to be logged: %q", input, got)
	}
}

func TestToASCII(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"example.com", "example.com"},
		{"EXAMPLE.Com", "example.com"},
		{"example.com.", "example.com"},
		{"localhost", "localhost"},
		{"a", "a"},
		{"1.2.3.4", "1.2.3.4"},
		{"_dmarc.example.com", "_dmarc.example.com"},
		{"under_score_.example", "under_score_.example"},
		{"a--b.r3---sn.example", "a--b.r3---sn.example"},
		{"bücher.example", "xn--bcher-kva.example"},
		{"BÜCHER.Example.", "xn--bcher-kva.example"},
		{"bu\u0308cher.example", "xn--bcher-kva.example"}, // not composed
		{"xn--bcher-kva.example", "xn--bcher-kva.example"},
		{"XN--BCHER-KVA.example", "xn--bcher-kva.example"},
		{"xn--bcher-kva.bücher.example", "xn--bcher-kva.xn--bcher-kva.example"},
		{"xn--a.example", "xn--a.example"}, // not what any U-label becomes, but harmless
		{"straße.example", "xn--strae-oqa.example"},
		{"例え。テスト", "xn--r8jz45g.xn--zckzah"}, // with an ideographic full stop
		{"例え。テスト。", "xn--r8jz45g.xn--zckzah"},
		{"ｅｘａｍｐｌｅ．ｃｏｍ", "example.com"},
		{"_x.bücher.example", "_x.xn--bcher-kva.example"},
		{"עברית.example", "xn--5dbqzzl.example"},
		{"i❤.ws", "xn--i-7iq.ws"},
		{label63 + ".de", label63 + ".de"},
		{domain253, domain253},
		{domain253 + ".", domain253},
	} {
		got, err := domain.ToASCII(tt.in)
		if err != nil || got != tt.want {
			t.Errorf("%q: %q, %v; want %q", tt.in, got, err, tt.want)
		}
		if again, err := domain.ToASCII(got); err != nil || again != got {
			t.Errorf("%q became %q, and that %q, %v", tt.in, got, again, err)
		}
		if lit, err := domain.ToASCIIOrLiteral(tt.in); err != nil || lit != got {
			t.Errorf("%q: ToASCIIOrLiteral says %q, %v", tt.in, lit, err)
		}
		if fold := domain.Fold(tt.in); fold != got {
			t.Errorf("%q folds to %q", tt.in, fold)
		}
	}
}

func TestToASCIIRefuses(t *testing.T) {
	for _, tt := range []struct{ in, reason string }{
		{"", "empty domain"},
		{".", "empty domain"},
		{"..", "empty label"},
		{".com", "empty label"},
		{"a..b", "empty label"},
		{"a.b..", "empty label"},
		{"a。。", "empty label"},
		{"a.。", "empty label"},
		{"a b.com", "character"},
		{" a.com", "character"},
		{"a.com ", "character"},
		{"a.com\r\n", "character"},
		{"a.com\r\nRCPT TO:<x@y>", "character"},
		{"a\x00.com", "character"},
		{"a\x7f.com", "character"},
		{"a\t.com", "character"},
		{"a@b.com", "character"},
		{"a>.com", "character"},
		{"a/b", "character"},
		{"a:25", "character"},
		{"*.example.com", "character"},
		{"[192.0.2.1]", "character"},
		{"-a.com", "hyphen"},
		{"a-.com", "hyphen"},
		{"a.b-", "hyphen"},
		{"a.-", "hyphen"},
		{"a.b-.", "hyphen"},
		{label63 + "a.com", "63"},
		{"com." + label63 + "a", "63"},
		{"b" + domain253, "253"},
		{strings.Repeat("a.", 127) + "a", "253"}, // 255
		{strings.Repeat("ü", 5000), "253"},
		{strings.Repeat("\u00ad", 2000) + "a", "253"}, // which would become a single letter
		{strings.Repeat("ü", 100) + ".de", "63"},
		{"\xff.com", "UTF-8"},
		{"a.\xc3", "UTF-8"},
		{"-bücher.de", "internationalised"},
		{"bücher-.de", "internationalised"},
		{"\u0301a.de", "internationalised"}, // starts with a combining mark
		{"a\u0085b.de", "internationalised"},
		{"a\u2028b.de", "internationalised"},
		{"a\u202eb.de", "internationalised"},
		{"xn--\u00fc.de", "internationalised"},
		{"ü.xn--a.de", "internationalised"},
		{"אa1.ü", "internationalised"}, // directions mixed
		// These become ASCII characters that have no business in a domain.
		{"a\u00a0b.de", "character"},        // blank
		{"a\u3000b.de", "character"},        // wide blank
		{"a＞b.de", "character"},             // wide >
		{"a＠b.de", "character"},             // wide @
		{"a℀b.de", "character"},             // a/c
		{"a\uff0d.de", "internationalised"}, // wide hyphen
		{"a\uff3cb.de", "character"},        // wide backslash
		{"a．．b.de", "empty label"},          // wide dots
		{"\u3002a.de", "empty label"},       // leading
		{"\u00ad", "empty domain"},          // a soft hyphen becomes nothing
	} {
		got, err := domain.ToASCII(tt.in)
		if err == nil || got != "" {
			t.Errorf("%q was accepted as %q", tt.in, got)
			continue
		}
		checkError(t, tt.in, err, tt.reason)
	}
}

func TestLiterals(t *testing.T) {
	for in, want := range map[string]string{
		"[192.0.2.1]":              "[192.0.2.1]",
		"[IPv6:2001:db8::1]":       "[IPv6:2001:db8::1]",
		"[ipv6:2001:DB8:0:0::1]":   "[IPv6:2001:db8::1]",
		"[IPV6:::1]":               "[IPv6:::1]",
		"[IPv6:::ffff:192.0.2.1]":  "[IPv6:::ffff:192.0.2.1]",
		"[IPv6:::FFFF:c000:201]":   "[IPv6:::ffff:192.0.2.1]",
		"[192.0.2.1":               "",
		"[192.0.2.1x":              "",
		"[192.0.2.11":              "",
		"192.0.2.1]":               "",
		"[]":                       "",
		"[":                        "",
		"[IPv6:]":                  "",
		"[192.0.2.1].":             "",
		"[192.0.2.01]":             "",
		"[192.0.2.256]":            "",
		"[192.0.2]":                "",
		"[ 192.0.2.1]":             "",
		"[2001:db8::1]":            "",
		"[IPv6:192.0.2.1]":         "",
		"[IPv6:fe80::1%eth0]":      "",
		"[IPv6:fe80::1%>\r\nQUIT]": "",
		"[IPv6:2001:db8::1]>":      "",
		"[X:abc]":                  "",
		"[example.com]":            "",
	} {
		got, err := domain.ToASCIIOrLiteral(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
		if err != nil {
			checkError(t, in, err, "")
		}
		if strings.HasPrefix(in, "[") {
			if _, err := domain.ToASCII(in); err == nil {
				t.Errorf("ToASCII takes the literal %q", in)
			}
		}
	}
}

func TestFold(t *testing.T) {
	for _, same := range [][]string{
		{"Example.COM", "example.com", "example.com.", "ＥＸＡＭＰＬＥ.com"},
		{"bücher.de", "BÜCHER.DE.", "xn--bcher-kva.de", "Xn--Bcher-Kva.de"},
		{"[IPv6:::1]", "[ipv6:0:0::1]"},
		{"not a domain", "Not A Domain"},
	} {
		for _, s := range same {
			if got, want := domain.Fold(s), domain.Fold(same[0]); got != want {
				t.Errorf("%q folds to %q, %q to %q", s, got, same[0], want)
			}
		}
	}
	for _, pair := range [][2]string{{"a.de", "b.de"}, {"a.de", "a.de.."}, {"a.de", " a.de"}, {"straße.de", "strasse.de"}, {"[192.0.2.1]", "192.0.2.1"}} {
		if domain.Fold(pair[0]) == domain.Fold(pair[1]) {
			t.Errorf("%q and %q fold to the same", pair[0], pair[1])
		}
	}
}

func FuzzToASCII(f *testing.F) {
	for _, s := range []string{"example.com", "EXAMPLE.com.", "bücher.de", "例え。テスト", "xn--bcher-kva.de", "xn--a.ü", "_x.de", "a..b", "-a", "a\u00a0b", "a＞.de",
		"a.de\r\nRCPT TO:<x@y>", "[192.0.2.1]", "עברית.1.de", "\u00ad", "ß.de", "a\u200db", domain253, label63 + "a", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := domain.ToASCII(s)
		if err != nil {
			checkError(t, s, err, "")
			return
		}
		if len(got) == 0 || len(got) > 253 {
			t.Fatalf("%q: %d octets", s, len(got))
		}
		for _, l := range strings.Split(got, ".") {
			if len(l) == 0 || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
				t.Fatalf("%q: label %q", s, l)
			}
			for i := range l {
				if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-_", rune(l[i])) {
					t.Fatalf("%q: label %q", s, l)
				}
			}
		}
		if again, err := domain.ToASCII(got); err != nil || again != got {
			t.Fatalf("%q became %q, and that %q, %v", s, got, again, err)
		}
		if domain.Fold(s) != got {
			t.Fatalf("%q becomes %q and folds to %q", s, got, domain.Fold(s))
		}
		ascii := !strings.ContainsFunc(s, func(r rune) bool { return r >= 0x80 })
		if ascii && !strings.EqualFold(strings.TrimSuffix(s, "."), got) {
			t.Fatalf("%q became %q", s, got)
		}
	})
}

func TestToASCIIAllocations(t *testing.T) {
	for in, most := range map[string]float64{"mail.example.com": 0, "mail.example.com.": 0, "Mail.example.com": 1, "[192.0.2.1]": 0, "[IPv6:2001:db8::1]": 0} {
		if n := testing.AllocsPerRun(100, func() {
			if _, err := domain.ToASCIIOrLiteral(in); err != nil {
				t.Error(err)
			}
		}); n > most {
			t.Errorf("%q: %v allocations, want at most %v", in, n, most)
		}
	}
}

func ExampleToASCII() {
	for _, s := range []string{"Example.COM.", "bücher.example", "a b.example"} {
		ascii, err := domain.ToASCII(s)
		fmt.Println(ascii, err)
	}
	// Output:
	// example.com <nil>
	// xn--bcher-kva.example <nil>
	//  "a b.example": character not allowed in a domain
}

func BenchmarkToASCII(b *testing.B) {
	for _, s := range []string{"mail.example.com", "Mail.Example.com", "bücher.example"} {
		b.Run(s, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = domain.ToASCII(s)
			}
		})
	}
}
