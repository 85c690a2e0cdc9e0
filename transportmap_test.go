package smtplb_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/internal/domain"
	"github.com/smtplb/smtplb/smtptest"
)

// plain is how relays in memory are reached.
var plain = smtplb.Relay{TLS: smtplb.TLSNone}

func parseMap(t testing.TB, text string, o smtplb.TransportMapOptions) *smtplb.TransportMap {
	t.Helper()
	m, err := smtplb.ParseTransportMap(strings.NewReader(text), o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// newMapped is a pool with the relays and routes of a table, each relay a server in memory.
func newMapped(t *testing.T, text string, o smtplb.TransportMapOptions) (*house, *smtplb.TransportMap) {
	t.Helper()
	m := parseMap(t, text, o)
	h := &house{T: t, net: smtptest.NewNetwork()}
	for _, r := range m.Relays {
		if r.Name == "" { // the others are the same hosts
			h.relays = append(h.relays, h.net.NewServer(r.Addr))
		}
	}
	pool, err := smtplb.New(smtplb.Config{Dial: h.net.DialContext, Relays: m.Relays, Routes: m.Routes})
	if err != nil {
		t.Fatal(err)
	}
	h.pool = pool
	return h, m
}

// fate is what became of a message to one address: who took it, or the outcome and why.
func (h *house) fate(to string) string {
	h.Helper()
	r, err := h.pool.Deliver(h.Context(), envelope(to))
	if r == nil {
		h.Fatalf("%s: %v", to, err)
	}
	x := r.Recipients[0]
	if x.Outcome == smtplb.Accepted {
		return x.Relay
	}
	s := x.Outcome.String()
	var route *smtplb.RouteError
	if errors.As(x.Err(), &route) {
		s += " " + route.Route + " " + route.Reason
	}
	return s
}

const vectors = `user@example.com  smtp:[u.example.net]:2525
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
later.test retry:
gone.test discard:nobody reads it
`

// Postfix's own test program says where each of these goes; a pool with the table's routes sends them there.
func TestTransportMapVectors(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h, m := newMapped(t, vectors, smtplb.TransportMapOptions{
			Relay: plain, Delimiter: "+", Default: []smtplb.Relay{{Addr: "hub:25", TLS: smtplb.TLSNone}},
			Transports: map[string]smtplb.PostfixTransport{"slow": {NextHop: "[ch.slow]"}},
		})
		defer h.close()
		for _, x := range []struct{ to, want string }{
			{"USER@EXAMPLE.com", "u.example.net:2525"},
			{"user+tag@example.com", "tag:25"},
			{"User+TAG@example.com", "tag:25"},
			{"user+other@example.com", "u.example.net:2525"},
			{"bob@example.com", "d:587"},
			{"bob+user@example.com", "d:587"},
			{"x@a.b.example.com", "sub:25"},
			{"x@bad.example.com", "failed transport:5 5.7.1 no mail: here"},
			{"x@err.example.com", "failed transport:6 5.0.0 Address is undeliverable"},
			{"x@local.test", "hub:25"},
			{"x@nh.test", "only:25"},
			{"x@ch.test", "ch.slow:25"},
			{"x@foo.com", "dotcom:25"},
			{"x@list.test", "bar.example:25"},
			{"x@at.test", "star:25"},
			{"x@sub.nh.test", "star:25"},
			{"x@later.test", "deferred transport:14 4.0.0 Address is undeliverable"},
			{"x@gone.test", "discarded transport:15 nobody reads it"},
		} {
			if got := h.fate(x.to); got != x.want {
				t.Errorf("%s: %s, want %s", x.to, got, x.want)
			}
		}
		h.net.Blackhole("bar.example:25", false)
		for _, r := range h.relays {
			if r.Addr == "bar.example:25" {
				r.Kill()
			}
		}
		if got := h.fate("y@list.test"); got != "foo.example:2525" {
			t.Errorf("where the first host is down: %s", got)
		}
		var warned []string
		for _, w := range m.Warnings {
			s, _, _ := strings.Cut(w.String(), ":")
			warned = append(warned, s)
		}
		if diff := cmp.Diff([]string{"line 11", "line 12"}, warned); diff != "" {
			t.Error(diff)
		}
	})
}

// The table of the kind that tutorials on HAProxy and Postfix show does what its author meant, with a warning where Postfix would not.
func TestTransportMapOfTutorials(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h, m := newMapped(t, `# /etc/postfix/transport
gmail.com       smtp:[127.0.0.1]:10025
*.gmail.com     smtp:[127.0.0.1]:10025
outlook.com     smtp:[127.0.0.1]:10026
hotmail.com     smtp:[127.0.0.1]:10026
yahoo.com       smtp:[127.0.0.1]:10027
*               smtp:[127.0.0.1]:10028
`, smtplb.TransportMapOptions{Name: "/etc/postfix/transport"})
		defer h.close()
		for to, want := range map[string]string{
			"a@gmail.com": "10025", "a@x.gmail.com": "10025", "a@y.x.GMAIL.com": "10025", "a@outlook.com": "10026", "a@hotmail.com": "10026",
			"a@yahoo.com": "10027", "a@example.com": "10028", "a@x.outlook.com": "10028", "a@notgmail.com": "10028",
		} {
			if got := h.fate(to); got != "127.0.0.1:"+want {
				t.Errorf("%s: %s, want %s", to, got, want)
			}
		}
		var names []string
		for _, r := range h.pool.Stats().Relays {
			names = append(names, r.Name)
		}
		if diff := cmp.Diff([]string{"127.0.0.1:10025", "127.0.0.1:10026", "127.0.0.1:10027", "127.0.0.1:10028"}, names); diff != "" {
			t.Error(diff)
		}
		want := []smtplb.TransportMapWarning{{Line: 3, Reason: `"*.domain" is not Postfix's way to write ".domain", which it was taken for`}}
		if diff := cmp.Diff(want, m.Warnings); diff != "" {
			t.Error(diff)
		}
		if p := h.plan(envelope("a@x.gmail.com")); p.Route != "/etc/postfix/transport:3" {
			t.Errorf("the route is %s", p.Route)
		}
	})
}

// Whatever stands in a table, and whoever a message is for: the routes of a pool say what Postfix's lookup says.
func TestTransportMapAgainstLookup(t *testing.T) {
	r := rand.New(rand.NewPCG(14, 5))
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	host := func() string {
		return pick("a.test", "b.a.test", "C.b.a.TEST", "y.x.a.test", "test", "Bücher.test", "xn--bcher-kva.test", "[192.0.2.1]")
	}
	local := func() string {
		return pick("u", "U+x", "u+x+y", `"u v"`, `"u v+x"`, `"\"u v\""`, "ü", "Ü+x", "u.v", "u-x", "owner-u", "*", "\u212a", "k+x", `"u.+v"`)
	}
	found, exempt := 0, 0
	for range 300 {
		var text strings.Builder
		for range r.IntN(24) {
			key := pick("", ".", "*.") + host()
			switch {
			case r.IntN(2) == 0:
				key = local() + "@" + pick("A.test", "bücher.test")
			case strings.HasSuffix(key, ".[192.0.2.1]"):
				key = pick("*", "@a.test", `u\ v@a.test`, `\"u\ v\"@a.test`)
			}
			fmt.Fprintf(&text, "%s %s\n", key, pick("smtp:[a]", "smtp:[b]:2525, [a]", "relay:[a],[b]:2525", ":", ":[b]", "error:5.1.1 no", "retry:", "discard:"))
		}
		delimiter := pick("", "+", "-")
		var b byte
		if delimiter != "" {
			b = delimiter[0]
		}
		table, err := domain.ParseTransport(strings.NewReader(text.String()), nil)
		if err != nil {
			t.Fatal(err)
		}
		m := parseMap(t, text.String(), smtplb.TransportMapOptions{Default: []smtplb.Relay{{Addr: "hub:25"}}, Delimiter: delimiter})
		pool, err := smtplb.New(smtplb.Config{Relays: m.Relays, Routes: m.Routes})
		if err != nil {
			t.Fatalf("%s\n%v", text.String(), err)
		}
		for range 20 {
			a, err := domain.ParseAddress(local() + "@" + pick("a.test", "bücher.test", host()))
			if err != nil {
				t.Fatal(err)
			}
			want, decided, first := "", smtplb.Outcome(0), "hub:25"
			if entry, ok := table.Lookup(a, b); ok {
				found++
				want = fmt.Sprintf("transport:%d", entry.Line)
				switch {
				case entry.Name == "error":
					decided = smtplb.Failed
				case entry.Name == "retry":
					decided = smtplb.Deferred
				case entry.Name == "discard":
					decided = smtplb.Discarded
				case len(entry.Hops) > 0:
					if first = entry.Hops[0].Host + ":25"; entry.Hops[0].Port != "" {
						first = entry.Hops[0].Host + ":" + entry.Hops[0].Port
					}
				default:
					exempt++
				}
			}
			p, err := pool.Explain(t.Context(), envelope(a.String()))
			switch {
			case err != nil:
				t.Fatal(err)
			case p.Route != want || p.Decided != decided:
				t.Fatalf("%s, delimiter %q: route %q, %v, want %q, %v\n%s", a, delimiter, p.Route, p.Decided, want, decided, text.String())
			case decided == 0 && (len(p.Candidates) != 1 || p.Candidates[0].Name != first):
				t.Fatalf("%s, delimiter %q: %+v, want %s\n%s", a, delimiter, p.Candidates, first, text.String())
			}
		}
		pool.Close()
	}
	if found < 3000 || exempt < 200 {
		t.Errorf("only %d of 6,000 were found, %d of them by a \":\"", found, exempt)
	}
}

// Entries with the same host share its relay, also where it is one of Default; a transport with a Relay of its own has relays of its own.
func TestTransportMapRelays(t *testing.T) {
	slow := smtplb.Relay{TLS: smtplb.TLSNone, Conns: smtplb.Conns{Max: 1}, Tags: []string{"slow"}}
	m := parseMap(t, `
a.test smtp:[Relay.Example.net]
b.test relay:[relay.example.net]:25
c.test :[relay.example.net.]:smtp
d.test smtp:[hub.example.net]:587
e.test other:[relay.example.net]
f.test slow:[relay.example.net]:25
g.test slow:
h.test smtp:[ipv6:2001:db8::1], [192.0.2.1]:465, [2001:db8:0::1]
i.test lock:[wherever]
j.test virtual:
k.test slow:[fixed.example.net]
* :
`, smtplb.TransportMapOptions{
		Relay:   smtplb.Relay{Username: "me", Password: "hunter2", Tags: []string{"mapped"}, Tier: 1},
		Default: []smtplb.Relay{{Name: "hub", Addr: "hub.example.net"}, {Addr: "srv:example.net"}, {Addr: "unix:/run/smtp"}},
		Transports: map[string]smtplb.PostfixTransport{
			"slow": {Relay: &slow, NextHop: "[fixed.example.net]"}, "other": {}, "lock": {Action: smtplb.RouteDefer, Text: "4.2.1 locked"}, "virtual": {Action: smtplb.RouteDefault},
		},
	})
	var relays []string
	for _, r := range m.Relays {
		relays = append(relays, fmt.Sprintf("%s|%s|%s|%v|%t|%d", r.Name, r.Addr, r.Username, r.Tags, r.RoutedOnly, r.Conns.Max))
	}
	if diff := cmp.Diff([]string{
		"hub|hub.example.net||[]|false|0",
		"|srv:example.net||[]|false|0",
		"|unix:/run/smtp||[]|false|0",
		"|relay.example.net:25|me|[mapped]|true|0",
		"slow:relay.example.net:25|relay.example.net:25||[slow]|true|1",
		"slow:fixed.example.net:25|fixed.example.net:25||[slow]|true|1",
		"|[2001:db8::1]:25|me|[mapped]|true|0",
		"|192.0.2.1:465|me|[mapped]|true|0",
	}, relays); diff != "" {
		t.Error(diff)
	}
	var routes []string
	for _, x := range m.Routes {
		routes = append(routes, fmt.Sprintf("%s %v %v %t %d %s", x.Name, x.Recipients, x.Relays, x.Ordered, x.Action, x.Text))
	}
	if diff := cmp.Diff([]string{
		"transport:2 [a.test] [relay.example.net:25] false 0 ",
		"transport:3 [b.test] [relay.example.net:25] false 0 ",
		"transport:4 [c.test] [relay.example.net:25] false 0 ",
		"transport:5 [d.test] [hub] false 0 ",
		"transport:6 [e.test] [relay.example.net:25] false 0 ",
		"transport:7 [f.test] [slow:relay.example.net:25] false 0 ",
		"transport:8 [g.test] [slow:fixed.example.net:25] false 0 ",
		"transport:9 [h.test] [[2001:db8::1]:25 192.0.2.1:465] true 0 ",
		"transport:10 [i.test] [] false 2 4.2.1 locked",
		"transport:11 [j.test] [] false 4 ",
		"transport:12 [k.test] [slow:fixed.example.net:25] false 0 ",
		"transport:13 [*] [] false 4 ",
	}, routes); diff != "" {
		t.Error(diff)
	}
	slow.Tags[0] = "changed"
	if m.Relays[4].Tags[0] != "slow" {
		t.Error("relays share the template's tags")
	}
	pool, err := smtplb.New(smtplb.Config{Relays: m.Relays, Routes: m.Routes})
	if err != nil {
		t.Fatal(err)
	}
	pool.Close()
}

// All faults come at once, typed, with their lines, in the order of the table.
func TestTransportMapFaults(t *testing.T) {
	text := `a.test lmtp:[x]
b.test smtp:
c..test smtp:[x]
d.test maildrop:
e.test smtp:[x]:0
f.test :
g.test slow:
h.test slow:[y
i.test smtp:[x], [z]
 , [x]
j.test smtp:[again]
`
	m, err := smtplb.ParseTransportMap(strings.NewReader(text), smtplb.TransportMapOptions{
		Relay: smtplb.Relay{TLS: smtplb.TLSNone, Username: "me", Password: "hunter2"}, Transports: map[string]smtplb.PostfixTransport{"slow": {}},
	})
	joined, ok := err.(interface{ Unwrap() []error })
	if m != nil || !ok {
		t.Fatalf("%v, %v", m, err)
	}
	var got []string
	for _, e := range joined.Unwrap() {
		var at *smtplb.TransportMapError
		if !errors.As(e, &at) {
			t.Fatalf("%T: %v", e, e)
		}
		got = append(got, fmt.Sprintf("%d %.40s", at.Line, at.Reason))
	}
	if diff := cmp.Diff([]string{
		"1 lmtp: there is no LMTP here",
		"2 smtp and relay need a nexthop: without o",
		"3 bad key: empty label in the domain",
		`4 transport "maildrop" is not known: Trans`,
		"5 bad nexthop: the port is neither a numbe",
		"6 its mail is for TransportMapOptions.Defa",
		"7 it names no host, nor does NextHop of Tr",
		`8 bad nexthop: a "[" without its "]"`,
		"9 TransportMapOptions.Relay.TLS: credentia",
	}, got); diff != "" {
		t.Error(diff)
	}
	var config *smtplb.ConfigError
	if !errors.As(err, &config) || config.Path != "TransportMapOptions.Relay.TLS" {
		t.Errorf("what New would say of the relays is not there: %v", err)
	}
	if strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "smtplb: transport map: line 8: ") {
		t.Error(err)
	}
}

func TestTransportMapWholeFaults(t *testing.T) {
	broken := errors.New("the disk is gone")
	for _, x := range []struct {
		r    io.Reader
		o    smtplb.TransportMapOptions
		want string
	}{
		{strings.NewReader("a.test smtp:[x]\n"), smtplb.TransportMapOptions{}, `transport map: there is no entry "*", and TransportMapOptions.Default has no relay`},
		{strings.NewReader(""), smtplb.TransportMapOptions{}, `transport map: there is no entry "*"`},
		{strings.NewReader("* error:"), smtplb.TransportMapOptions{}, "transport map: it names no relay"},
		{strings.NewReader("* x:"), smtplb.TransportMapOptions{Transports: map[string]smtplb.PostfixTransport{"x": {Action: smtplb.RouteDefault}}}, "transport map: line 1: its mail is for"},
		{io.MultiReader(strings.NewReader("* smtp:[x]\n"), iotest.ErrReader(broken)), smtplb.TransportMapOptions{}, "transport map: after line 1: the disk is gone"},
		{nil, smtplb.TransportMapOptions{}, "TransportMapOptions: the reader is nil"},
		{strings.NewReader("* smtp:[d]:587"), smtplb.TransportMapOptions{Default: []smtplb.Relay{{Name: "d:587", Addr: "e:587"}}}, `transport map: line 1: TransportMapOptions.Default: the relay "d:587" at e:587 has the name`},
		{strings.NewReader(""), smtplb.TransportMapOptions{Delimiter: "+-"}, `TransportMapOptions.Delimiter: "+-" is not one of`},
		{strings.NewReader(""), smtplb.TransportMapOptions{Delimiter: "@"}, `TransportMapOptions.Delimiter: "@" is not one of`},
		{strings.NewReader(""), smtplb.TransportMapOptions{Relay: smtplb.Relay{Addr: "x:25"}}, "TransportMapOptions.Relay.Addr: is for the table to say"},
		{strings.NewReader(""), smtplb.TransportMapOptions{Relay: smtplb.Relay{Name: "x"}}, "TransportMapOptions.Relay.Name: is for the table to say"},
		{strings.NewReader(""), smtplb.TransportMapOptions{Default: []smtplb.Relay{{Addr: "hub:0"}}}, "TransportMapOptions.Default[0].Addr: "},
		{strings.NewReader(""), smtplb.TransportMapOptions{Default: []smtplb.Relay{{Addr: "hub"}, {Addr: "hub"}}}, "TransportMapOptions.Default[1].Name: "},
		{strings.NewReader(""), smtplb.TransportMapOptions{Default: []smtplb.Relay{{Addr: "hub", RoutedOnly: true}}}, "TransportMapOptions.Default[0].RoutedOnly: "},
		{strings.NewReader(""), smtplb.TransportMapOptions{Name: "a\nb"}, "TransportMapOptions.Name: "},
		{strings.NewReader(""), transports("smtp", smtplb.PostfixTransport{}), `TransportMapOptions.Transports["smtp"]: is Postfix's own`},
		{strings.NewReader(""), transports("", smtplb.PostfixTransport{}), `TransportMapOptions.Transports[""]: is Postfix's own`},
		{strings.NewReader(""), transports("a:b", smtplb.PostfixTransport{}), `TransportMapOptions.Transports["a:b"]: is no name`},
		{strings.NewReader(""), transports("x", smtplb.PostfixTransport{Action: 9}), `TransportMapOptions.Transports["x"].Action: 9 is none`},
		{strings.NewReader(""), transports("x", smtplb.PostfixTransport{Action: smtplb.RouteFail, NextHop: "[a]"}), `TransportMapOptions.Transports["x"].Action: goes without`},
		{strings.NewReader(""), transports("x", smtplb.PostfixTransport{Text: "why"}), `TransportMapOptions.Transports["x"].Text: is for an Action`},
		{strings.NewReader(""), transports("x", smtplb.PostfixTransport{Action: smtplb.RouteFail, Text: "a\nb"}), `TransportMapOptions.Transports["x"].Text: control`},
		{strings.NewReader(""), transports("x", smtplb.PostfixTransport{Relay: &smtplb.Relay{Addr: "x"}}), `TransportMapOptions.Transports["x"].Relay.Addr: is for`},
		{strings.NewReader(""), transports("x", smtplb.PostfixTransport{NextHop: "[a"}), `TransportMapOptions.Transports["x"].NextHop: bad nexthop`},
		{strings.NewReader("* x:[y]"), transports("x", smtplb.PostfixTransport{Relay: &smtplb.Relay{Weight: -1}}), `transport map: line 1: TransportMapOptions.Transports["x"].Relay.Weight: is -1`},
		{strings.NewReader("* " + strings.Repeat("y", 1000) + ":"), smtplb.TransportMapOptions{}, `transport map: line 1: transport "yyyy`},
	} {
		m, err := smtplb.ParseTransportMap(x.r, x.o)
		if m != nil || err == nil || !strings.HasPrefix(err.Error(), "smtplb: "+x.want) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 800 {
			t.Errorf("%+v:\n got %v\nwant %s", x.o, err, x.want)
			continue
		}
		var config *smtplb.ConfigError
		var table *smtplb.TransportMapError
		if !errors.As(err, &config) && !errors.As(err, &table) {
			t.Errorf("%T", err)
		}
		if strings.Contains(x.want, "disk") != errors.Is(err, broken) {
			t.Errorf("%v is not what the reader said", err)
		}
	}
}

func transports(name string, x smtplb.PostfixTransport) smtplb.TransportMapOptions {
	return smtplb.TransportMapOptions{Transports: map[string]smtplb.PostfixTransport{name: x}}
}

// Texts that are too long are cut between characters, hosts without brackets and entries that are never asked are told of.
func TestTransportMapWarnings(t *testing.T) {
	m := parseMap(t, "a.test error:x"+strings.Repeat("ü", 300)+"\n* smtp:host\nb.test slow:host\n*.c.test smtp:[x]\n\"u\\\\ v\"@a.test :[x]\nu\\ v@a.test :[x]\n"+strings.Repeat("a", 64)+"@"+strings.Repeat("a.", 97)+"test :[x]\nb.test :[x]\n", transports("slow", smtplb.PostfixTransport{}))
	var got []string
	for _, w := range m.Warnings {
		got = append(got, fmt.Sprintf("%.32s", w))
	}
	if diff := cmp.Diff([]string{
		"line 1: the text is cut: it may ", "line 2: a host without brackets:", "line 3: a host without brackets:", "line 4: \"*.domain\" is not Postfi",
		"line 6: only a mailbox with thes", "line 6: skipped: no address has ", "line 7: skipped: no address has ", "line 8: skipped, as Postfix does",
	}, got); diff != "" {
		t.Error(diff)
	}
	if text := m.Routes[0].Text; len(text) > 500 || text != "5.0.0 x"+strings.Repeat("ü", 246) {
		t.Errorf("%d bytes: %s", len(text), text)
	}
	if names := fmt.Sprint(m.Routes[len(m.Routes)-1].Name, len(m.Routes)); names != "transport:55" {
		t.Error(names)
	}
}

// Nothing prints a password.
func TestTransportMapKeepsSecrets(t *testing.T) {
	r := smtplb.Relay{Username: "me", Password: "hunter2"}
	o := smtplb.TransportMapOptions{Relay: r, Default: []smtplb.Relay{{Addr: "hub", Username: "me", Password: "hunter2"}}, Transports: map[string]smtplb.PostfixTransport{"slow": {Relay: &r}}}
	m := parseMap(t, "* slow:[x]\na.test smtp:[x]", o)
	for _, v := range []any{o, &o, m, *m} {
		out, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{string(out), fmt.Sprintf("%v %+v %#v %s", v, v, v, v)} {
			if strings.Contains(s, "hunter2") {
				t.Errorf("%T: %s", v, s)
			}
		}
	}
	if len(m.Relays) != 3 || m.Relays[1].Password != "hunter2" || m.Relays[2].Password != "hunter2" {
		t.Error("the relays have no credentials")
	}
}

// FuzzTransportMap: no table makes ParseTransportMap panic, what it takes New takes too, and the pool's routes say what Postfix's lookup says. Of what it doesn't take, each fault is typed and fit to be logged.
func FuzzTransportMap(f *testing.F) {
	for _, text := range []string{
		vectors, "gmail.com smtp:[h]:10025\n*.gmail.com smtp:[h]:10025\n* smtp:[h]:10026\n", "a.test lmtp:x\nb..test x:\nc.test smtp:\n* smtp:[x]:0\n", "a.test error:" + strings.Repeat("ü", 300) + "\n",
		"\"a b\"@a.test slow:\na\\ b@a.test slow:[x],y\n*@a.test fail:[z\nÜ@bücher.example standard:\n", "a.test smtp:[hub]:25,[hub.]:25,[hub],[::1],[ipv6:::1]:25\nb.test slow:hub\n", "a.test unheard of:\n\xff x:\n a\n",
		"* smtp:[" + strings.Repeat("a.", 126) + "a]\nb.test slow:[" + strings.Repeat("a.", 126) + "a]\n", "a.test :hub,other\nb.test \"x:[y]\n\"open x:\n", "a.test smtp:[127.1]\nb.test smtp:[localhost]:465\nc.test smtp:[xn--a]\n",
	} {
		f.Add(text, "user+x@a.example.com", "+")
		f.Add(text, `"A b"@a.test`, "")
	}
	slow := smtplb.Relay{TLS: smtplb.TLSNone}
	f.Fuzz(func(t *testing.T, text, addr, delimiter string) {
		if len(text) > 32<<10 {
			return
		}
		m, err := smtplb.ParseTransportMap(strings.NewReader(text), smtplb.TransportMapOptions{
			Default: []smtplb.Relay{{Addr: "hub:25"}}, Delimiter: delimiter,
			Transports: map[string]smtplb.PostfixTransport{"slow": {Relay: &slow, NextHop: "[fixed]"}, "fail": {Action: smtplb.RouteFail}, "standard": {Action: smtplb.RouteDefault}},
		})
		if err != nil {
			for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
				var table *smtplb.TransportMapError
				var config *smtplb.ConfigError
				if !errors.As(e, &table) && !errors.As(e, &config) || !printable(e.Error()) {
					t.Fatalf("%T: %q", e, e)
				}
			}
			return
		}
		pool, err := smtplb.New(smtplb.Config{Relays: m.Relays, Routes: m.Routes})
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		defer pool.Close()
		a, err := domain.ParseAddress(addr)
		if err != nil {
			return
		}
		table, err := domain.ParseTransport(strings.NewReader(text), nil)
		if err != nil {
			t.Fatal(err)
		}
		want := ""
		if x, ok := table.Lookup(a, append([]byte(delimiter), 0)[0]); ok {
			want = fmt.Sprintf("transport:%d", x.Line)
		}
		if p, err := pool.Explain(t.Context(), &smtplb.Envelope{From: "a@example.com", To: []string{a.String()}, Body: smtplb.Bytes(nil)}); err != nil || p.Route != want {
			t.Fatalf("%q, %s: %+v, %v, want %s", text, a, p, err, want)
		}
	})
}

// BenchmarkParseTransportMap reads 100,000 entries over 20 relays, and makes a pool of them.
func BenchmarkParseTransportMap(b *testing.B) {
	var text strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&text, "host%d.example.com smtp:[relay%d.example.net]:587\n", i, i%20)
	}
	text.WriteString("* smtp:[rest.example.net]\n")
	b.SetBytes(int64(text.Len()))
	b.ReportAllocs()
	for b.Loop() {
		m := parseMap(b, text.String(), smtplb.TransportMapOptions{})
		pool, err := smtplb.New(smtplb.Config{Relays: m.Relays, Routes: m.Routes})
		if err != nil {
			b.Fatal(err)
		}
		pool.Close()
	}
}
