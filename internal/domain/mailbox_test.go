package domain

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// asTable makes a table of what a transport table says.
func asTable(tb testing.TB, m *TransportMap, delimiter byte) *Table {
	tb.Helper()
	var rules []Rule
	for i := range m.Entries {
		for _, p := range m.Patterns(&m.Entries[i]) {
			rules = append(rules, Rule{Recipient: p, Value: int32(i), Loose: true})
		}
	}
	table, faults := NewTableWith(rules, delimiter)
	if faults != nil {
		tb.Fatalf("%+v of %+v", faults, rules)
	}
	return table
}

// agree makes sure that a table and the transport table that it is made of say the same of an address.
func agree(t *testing.T, m *TransportMap, table *Table, a Address, delimiter byte) (found bool) {
	t.Helper()
	want, found := m.Lookup(a, delimiter)
	got, ok := table.Lookup(a.String(), "sender.test", "")
	switch {
	case ok != found:
		t.Fatalf("%s, delimiter %q: found %t, want %t\n%+v", a, delimiter, ok, found, m.Entries)
	case ok && &m.Entries[got] != want:
		t.Fatalf("%s, delimiter %q: %+v, want %+v", a, delimiter, m.Entries[got], want)
	}
	return found
}

// A Table with the patterns of a transport table finds what Postfix does there.
func TestPatterns(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 1))
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	host := func() string {
		return pick("a.test", "b.a.test", "C.b.a.TEST", "y.x.a.test", "test", "Bücher.test", "xn--bcher-kva.test", "[192.0.2.1]", "192.0.2.1")
	}
	local := func() string {
		return pick("u", "U+x", "u+x+y", `"u v"`, `"u v+x"`, `"\"u v\""`, "ü", "Ü+x", "uü", "UÜ+x", "u.v", `"u\"+v"`, `"u.+v"`, `"u."`, "u-x", "owner-u", "u-request", "*", "\u212a", "k", "ſ+x", "S", `"+"`, "+", "postmaster+x", "double-bounce", "Ⱥ", "ⱥ")
	}
	mailboxes, found := 0, 0
	for range 3000 {
		var text strings.Builder
		for range r.IntN(14) {
			key := pick("", ".", "*.") + host()
			if r.IntN(2) == 0 {
				key = local() + "@" + pick("a.test", "A.test", "Bücher.test")
			}
			if strings.HasSuffix(key, ".[192.0.2.1]") {
				key = pick("*", "*", "@a.test", `"u"@a.test`, `u\ v@a.test`, `u\ v+x@a.test`, `\"u\ v\"@a.test`)
			}
			text.WriteString(key + " x:\n")
		}
		m, err := ParseTransport(strings.NewReader(text.String()), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, delimiter := range []byte{0, '+', '-'} {
			table := asTable(t, m, delimiter)
			for range 20 {
				a, err := ParseAddress(local() + "@" + pick("a.test", "bücher.test", host()))
				if err != nil {
					t.Fatal(err)
				}
				if agree(t, m, table, a, delimiter) {
					found++
				}
				if hit, ok := m.Lookup(a, delimiter); ok && strings.Contains(hit.Key, "@") {
					mailboxes++
				}
			}
		}
	}
	if found < 50_000 || mailboxes < 5_000 {
		t.Errorf("only %d of 180,000 were found, %d of them as mailboxes", found, mailboxes)
	}
}

func TestPatternsOfKeys(t *testing.T) {
	long := strings.Repeat("a.", 97) + "b.test" // a domain may be 253 octets, a local part 64, an address 254
	for _, x := range []struct {
		text string
		want []string // of the last entry
	}{
		{"* x:", []string{"*"}},
		{".test x:", []string{"*.test"}},
		{"*.a.test x:", []string{"*.a.test"}},
		{"A.test x:", []string{"a.test"}},
		{"[192.0.2.1] x:", []string{"[192.0.2.1]"}},
		{"User@A.test x:", []string{"User@a.test"}},
		{"*@a.test x:", []string{`"*"@a.test`}},
		{`"u v"@a.test x:`, []string{`"u v"@a.test`, `"\"u v\""@a.test`}},
		{`u\ v@a.test x:`, []string{`"u\\ v"@a.test`}},
		{"\"\\\"u v\\\"\"@a.test x:1\n\"u v\"@a.test x:2", []string{`"u v"@a.test`}}, // the other one has its name
		{strings.Repeat("a", 64) + "@" + long + " x:", nil},
	} {
		m, err := ParseTransport(strings.NewReader(x.text), nil)
		if err != nil {
			t.Fatalf("%s: %v", x.text, err)
		}
		last := &m.Entries[len(m.Entries)-1]
		if got := m.Patterns(last); !slices.Equal(got, x.want) {
			t.Errorf("%s: %q, want %q", x.text, got, x.want)
		}
	}
}

// What is exact counts before what is loose, the whole address before the one without its extension, and both before the domain; senders and streams that don't match let the next have it.
func TestTableLoose(t *testing.T) {
	rules := []Rule{
		{Recipient: "a.test", Value: 1}, {Recipient: "User@a.test", Value: 2, Loose: true}, {Recipient: "USER@a.test", Value: 3},
		{Recipient: "user+Tag@a.test", Value: 4, Loose: true}, {Recipient: "user+tag@a.test", Sender: "from.test", Value: 5, Loose: true}, {Recipient: "user@a.test", Stream: "s", Value: 6, Loose: true},
		{Recipient: "strict@a.test", Value: 7}, {Recipient: `"a b"@a.test`, Value: 8, Loose: true}, {Recipient: "only+tag@a.test", Sender: "from.test", Value: 9, Loose: true},
		{Recipient: "only@a.test", Sender: "other.test", Value: 10, Loose: true},
	}
	table, faults := NewTableWith(rules, '+')
	if faults != nil {
		t.Fatal(faults)
	}
	for _, x := range []struct {
		rcpt, sender, stream string
		want                 int32
	}{
		{"user@a.test", "", "", 2}, {"uSeR@a.test", "", "", 2}, {"USER@a.test", "", "", 3}, {"USER+x@a.test", "", "", 2}, {"user+x@a.test", "", "s", 6},
		{"USER+TAG@a.test", "", "", 4}, {"user+tag@a.test", "from.test", "", 5}, {"user+tag+x@a.test", "", "", 2}, {"strict@a.test", "", "", 7}, {"Strict@a.test", "", "", 1}, {"strict+x@a.test", "", "", 1},
		{`"A b"@a.test`, "", "", 8}, {`"a b+x"@a.test`, "", "", 8}, {"only+tag@a.test", "", "", 1}, {"only+TAG@a.test", "from.test", "", 9}, {"only@a.test", "from.test", "", 1}, {"only+tag@a.test", "other.test", "", 10}, {"+user@a.test", "", "", 1},
	} {
		if v, ok := table.Lookup(x.rcpt, x.sender, x.stream); !ok || v != x.want {
			t.Errorf("%s from %q, stream %q: %d, want %d", x.rcpt, x.sender, x.stream, v, x.want)
		}
	}
	if table, _ = NewTableWith(rules, 0); table == nil {
		t.Fatal("no table")
	}
	if v, _ := table.Lookup("user+x@a.test", "", ""); v != 1 {
		t.Errorf("without a delimiter there are no extensions: %d", v)
	}
	_, faults = NewTableWith([]Rule{{Recipient: "user@a.test", Loose: true}, {Recipient: "USER@A.test", Loose: true}, {Recipient: "user@a.test"}, {Recipient: "b.test", Loose: true}, {Recipient: "b.test"}}, '+')
	if len(faults) != 2 || faults[0].Rule != 1 || faults[0].Same != 0 || faults[1].Rule != 4 || faults[1].Same != 3 {
		t.Errorf("%+v", faults)
	}
}

// loosely is a table of 100,000 rules, of which most are for mailboxes in any case.
func loosely(tb testing.TB) *Table {
	rules := []Rule{{Value: 100_000}}
	for i := range 100_000 {
		r := Rule{Recipient: fmt.Sprintf("user%d@example.com", i), Value: int32(i), Loose: true}
		if i%10 == 0 {
			r.Recipient = fmt.Sprintf("*.sub%d.example.com", i)
		}
		rules = append(rules, r)
	}
	t, faults := NewTableWith(rules, '+')
	if faults != nil {
		tb.Fatal(faults[0])
	}
	return t
}

var looseLookups = []struct {
	name, rcpt string
	want       int32
}{
	{"mailbox", "user77777@example.com", 77777},
	{"in another case", "USER77777@example.com", 77777},
	{"with an extension", "user77777+Some.Tag@example.com", 77777},
	{"wildcard, 4 labels up", "somebody@a.b.c.d.sub77770.example.com", 77770},
	{"the longest local part", strings.Repeat("U", 32) + "+" + strings.Repeat("t", 31) + "@example.com", 100_000},
	{"everybody, with an extension, through 4 labels", "somebody+tag@a.b.elsewhere.test", 100_000},
}

func BenchmarkTableLoose(b *testing.B) {
	t := loosely(b)
	for _, x := range looseLookups {
		b.Run(x.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := t.Lookup(x.rcpt, "example.net", ""); !ok {
					b.Fatal("not found")
				}
			}
		})
	}
}

func TestTableLooseAllocations(t *testing.T) {
	table := loosely(t)
	for _, x := range looseLookups {
		if n := testing.AllocsPerRun(100, func() {
			if v, ok := table.Lookup(x.rcpt, "example.net", ""); !ok || v != x.want {
				t.Errorf("%s: %d, want %d", x.name, v, x.want)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", x.name, n)
		}
	}
}

// FuzzPatterns: whatever a transport table says, a Table says the same.
func FuzzPatterns(f *testing.F) {
	f.Add("user@example.com x:\nuser+tag@example.com x:\nexample.com x:\n.example.com x:\n* x:\n", "User+other@example.com", byte('+'))
	f.Add("\"a b\"@a.test x:\na\\ b@a.test x:\n\"\\\"a b\\\"\"@a.test x:\n*@a.test x:\n", `"a b-c"@a.test`, byte('-'))
	f.Add("BÜCHER.example x:\nÜ@bücher.example x:\n\u212a@a.test x:\n", "ü+x@xn--bcher-kva.example", byte('+'))
	f.Fuzz(func(t *testing.T, text, addr string, delimiter byte) {
		m, err := ParseTransport(strings.NewReader(text), nil)
		a, bad := ParseAddress(addr)
		if err != nil || bad != nil || delimiter >= 0x80 || delimiter == '"' || delimiter == '\\' {
			return
		}
		agree(t, m, asTable(t, m, delimiter), a, delimiter)
	})
}
