package domain

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
)

// rank is how specific a pattern is that matches, -1 where it doesn't. An address is given whole, a domain with an "@" in front.
func rank(pattern, name string) int {
	host := name[strings.LastIndexByte(name, '@')+1:]
	switch under, wild := strings.CutPrefix(pattern, "*."); {
	case pattern == "" || pattern == "*":
		return 0
	case wild:
		if strings.HasSuffix(host, "."+under) && !strings.HasPrefix(host, "[") {
			return 1 + strings.Count(under, ".")
		}
	case pattern == name:
		return 1000
	case pattern == host:
		return 999
	}
	return -1
}

// scan looks at all rules, whose patterns are in their canonical form.
func scan(rules []Rule, rcpt, sender, stream string) (value int32, ok bool) {
	best := -1
	for _, r := range rules {
		a, b, c := rank(r.Recipient, rcpt), rank(r.Sender, "@"+sender), 0
		switch {
		case r.Stream == stream && stream != "":
			c = 1
		case r.Stream != "":
			c = -1
		}
		if a < 0 || b < 0 || c < 0 {
			continue
		}
		if n := (a*1001+b)*2 + c; n > best {
			best, value, ok = n, r.Value, true
		}
	}
	return value, ok
}

func TestTableAgainstAScan(t *testing.T) {
	hosts := []string{"test", "a.test", "b.test", "a.b.test", "x.a.b.test", "c.test", "[192.0.2.1]"}
	pick := func(r *rand.Rand, list ...string) string { return list[r.IntN(len(list))] }
	pattern := func(r *rand.Rand) string {
		h := pick(r, hosts...)
		switch r.IntN(5) {
		case 0:
			return pick(r, "", "*")
		case 1, 2:
			if !strings.HasPrefix(h, "[") {
				return "*." + h
			}
		}
		return h
	}
	hits := 0
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		var rules []Rule
		seen := map[Rule]bool{}
		for i := range 1 + r.IntN(40) {
			x := Rule{Recipient: pattern(r), Sender: pattern(r), Stream: pick(r, "", "", "s", "t")}
			if r.IntN(4) == 0 {
				x.Recipient = pick(r, "u", "v", "U") + "@" + pick(r, hosts...)
			}
			if r.IntN(6) == 0 {
				x.Sender = NullSender
			}
			key := x
			key.Recipient, key.Sender = strings.TrimPrefix(x.Recipient, "*"), strings.TrimPrefix(x.Sender, "*")
			if seen[key] {
				continue
			}
			seen[key] = true
			x.Value = int32(i)
			rules = append(rules, x)
		}
		table, faults := NewTable(rules)
		if faults != nil {
			t.Fatalf("%v of %+v", faults, rules)
		}
		for range 50 {
			rcpt, sender, stream := pick(r, "u", "v", "w")+"@"+pick(r, append(hosts, "q.x.a.b.test", "z")...), pick(r, append(hosts, NullSender, "y.c.test")...), pick(r, "", "s", "u")
			v, ok := table.Lookup(rcpt, sender, stream)
			want, found := scan(rules, rcpt, sender, stream)
			if ok != found || ok && v != want {
				t.Fatalf("%s from %s, stream %q: %d %t, want %d %t\n%+v", rcpt, sender, stream, v, ok, want, found, rules)
			}
			if ok {
				hits++
			}
		}
	}
	if hits < 20_000 {
		t.Errorf("%d of 100,000 found anything", hits)
	}
}

func TestTableForms(t *testing.T) {
	table, faults := NewTable([]Rule{
		{Recipient: "Bücher.Example", Value: 1}, {Recipient: "*.BÜCHER.example", Value: 2}, {Recipient: `"vip"@Example.COM`, Value: 3}, {Sender: "Bücher.example", Value: 4},
		{Recipient: "[IPv6:2001:DB8:0:0::1]", Value: 5}, {Recipient: "*.com", Value: 6}, {Recipient: "example.com.", Value: 7},
	})
	if faults != nil {
		t.Fatal(faults)
	}
	for _, x := range []struct {
		rcpt, sender string
		want         int32
	}{
		{"x@bücher.example", "", 1}, {"x@XN--BCHER-KVA.example", "", 1}, {"x@a.b.bücher.example", "", 2}, {"vip@example.com", "", 3}, {"VIP@example.com", "", 7},
		{"x@else.test", "xn--bcher-kva.example", 4}, {"x@[IPv6:2001:db8::1]", "", 5}, {"x@example.org", "", -1}, {"x@deep.example.com", "", 6},
	} {
		a, err := ParseAddress(x.rcpt)
		if err != nil {
			t.Fatal(err)
		}
		v, ok := table.Lookup(a.String(), x.sender, "")
		if !ok {
			v = -1
		}
		if v != x.want {
			t.Errorf("%s from %q: %d, want %d", x.rcpt, x.sender, v, x.want)
		}
	}
}

func TestTableFaults(t *testing.T) {
	for _, x := range []struct {
		rules []Rule
		want  string
	}{
		{[]Rule{{Recipient: "a.test"}, {Recipient: "A.TEST."}}, "1  0"},
		{[]Rule{{Recipient: "*"}, {Value: 7}}, "1  0"},
		{[]Rule{{Recipient: "*@a.test"}}, "0 Recipient -1"},
		{[]Rule{{Sender: "*"}, {Stream: "s"}, {Stream: "s", Sender: ""}}, "2  1"},
		{[]Rule{{Recipient: "*.a*.test"}}, "0 Recipient -1"},
		{[]Rule{{Recipient: "a.*"}, {Sender: "**"}}, "0 Recipient -1, 1 Sender -1"},
		{[]Rule{{Recipient: "a..test", Sender: "-.test"}}, "0 Recipient -1, 0 Sender -1"},
		{[]Rule{{Recipient: "*.[192.0.2.1]"}}, "0 Recipient -1"},
		{[]Rule{{Recipient: "a@b@c.test"}}, "0 Recipient -1"},
		{[]Rule{{Recipient: "@c.test"}}, "0 Recipient -1"},
		{[]Rule{{Sender: "a@c.test"}}, "0 Sender -1"},
		{[]Rule{{Recipient: NullSender}}, "0 Recipient -1"},
		{[]Rule{{Recipient: "*."}}, "0 Recipient -1"},
		{[]Rule{{Recipient: ".a.test"}}, "0 Recipient -1"},
	} {
		table, faults := NewTable(x.rules)
		var got []string
		for _, f := range faults {
			got = append(got, fmt.Sprintf("%d %s %d", f.Rule, f.Field, f.Same))
			if f.Reason == "" {
				t.Errorf("%+v: no reason", x.rules)
			}
		}
		if s := strings.Join(got, ", "); s != x.want || table != nil {
			t.Errorf("%+v: %s, want %s", x.rules, s, x.want)
		}
	}
}

// FuzzTable: whatever the patterns and the names are, a table finds what a look at each rule finds.
func FuzzTable(f *testing.F) {
	f.Add("example.com", "*", "", "*.example.com", "<>", "s", "user@sub.example.com", "example.net", "s")
	f.Add("*.com", "*.net", "", "user@example.com", "", "", "user@example.com", "a.b.net", "")
	f.Add("bücher.example", "", "s", "[192.0.2.1]", "", "", "x@xn--bcher-kva.example", "[192.0.2.1]", "s")
	f.Fuzz(func(t *testing.T, r1, s1, t1, r2, s2, t2, rcpt, sender, stream string) {
		rules := []Rule{{Recipient: r1, Sender: s1, Stream: t1, Value: 1}, {Recipient: r2, Sender: s2, Stream: t2, Value: 2}}
		table, faults := NewTable(rules)
		a, err := ParseAddress(rcpt)
		if s, bad := ToASCIIOrLiteral(sender); bad == nil {
			sender = s
		} else {
			sender = NullSender
		}
		if faults != nil || err != nil {
			return
		}
		for i := range rules {
			r := &rules[i]
			r.Recipient, _ = recipientPattern(r.Recipient)
			if r.Sender != NullSender {
				r.Sender, _ = domainPattern(r.Sender)
			}
		}
		v, ok := table.Lookup(a.String(), sender, stream)
		if want, found := scan(rules, a.String(), sender, stream); ok != found || ok && v != want {
			t.Errorf("%d %t, want %d %t", v, ok, want, found)
		}
	})
}

// large is a table of 100,000 rules.
func large(tb testing.TB, rich bool) *Table {
	rules := make([]Rule, 0, 100_000)
	for i := range 100_000 {
		r := Rule{Recipient: fmt.Sprintf("host%d.example.com", i), Value: int32(i)}
		switch {
		case i%10 == 0:
			r.Recipient = fmt.Sprintf("*.sub%d.example.com", i)
		case i == 1:
			r.Recipient = ""
		case rich && i%10 == 1:
			r.Recipient = fmt.Sprintf("user%d@example.com", i)
		case rich && i%10 == 2:
			r.Sender, r.Stream = "*.example.org", "bulk"
		}
		rules = append(rules, r)
	}
	t, faults := NewTable(rules)
	if faults != nil {
		tb.Fatal(faults[0])
	}
	return t
}

var lookups = []struct{ name, rcpt, sender, stream string }{
	{"exact", "somebody@host77777.example.com", "example.net", ""},
	{"wildcard, 4 labels up", "somebody@a.b.c.d.sub77770.example.com", "example.net", ""},
	{"everybody, through 4 labels", "somebody@a.b.elsewhere.test", "example.net", ""},
	{"sender and stream", "somebody@host77772.example.com", "mail.example.org", "bulk"},
}

func BenchmarkTable(b *testing.B) {
	for _, rich := range []bool{false, true} {
		t := large(b, rich)
		for _, x := range lookups {
			if x.stream != "" && !rich {
				continue
			}
			b.Run(fmt.Sprintf("%s/addresses and senders %t", x.name, rich), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, ok := t.Lookup(x.rcpt, x.sender, x.stream); !ok {
						b.Fatal("not found")
					}
				}
			})
		}
	}
}

func TestTableIsLean(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	table := large(t, true)
	runtime.GC()
	runtime.ReadMemStats(&after)
	size := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("100,000 rules take %d KB", size>>10)
	if size > 40<<20 {
		t.Errorf("100,000 rules take %d bytes", size)
	}
	for _, x := range lookups {
		if n := testing.AllocsPerRun(100, func() {
			if _, ok := table.Lookup(x.rcpt, x.sender, x.stream); !ok {
				t.Error(x.name, "was not found")
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", x.name, n)
		}
	}
	runtime.KeepAlive(table)
}
