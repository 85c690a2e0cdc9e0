package domain_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/smtplb/smtplb/internal/domain"
)

// modelEntry is an entry as it stands.
type modelEntry struct {
	line       int
	key, value string
}

// modelTransport reads a table by another way: the text whole, line after line, as transport(5) describes it.
func modelTransport(text string) (entries []modelEntry) {
	type logical struct {
		line int
		text string
	}
	var all []logical
	scan := bufio.NewScanner(strings.NewReader(text))
	scan.Buffer(nil, len(text)+1)
	scan.Split(func(data []byte, atEOF bool) (int, []byte, error) { // ScanLines takes carriage returns away
		if i := strings.IndexByte(string(data), '\n'); i >= 0 {
			return i + 1, data[:i], nil
		}
		if atEOF && len(data) > 0 {
			return len(data), data, nil
		}
		return 0, nil, nil
	})
	const space = " \t\v\f\r"
	for n := 1; scan.Scan(); n++ {
		line := scan.Text()
		body := strings.TrimLeft(line, space)
		switch {
		case body == "" || body[0] == '#':
		case line == body || len(all) == 0:
			all = append(all, logical{n, line})
		default:
			all[len(all)-1].text += line
		}
	}
	for _, l := range all {
		var key strings.Builder
		quoted, escaped, done := false, false, false
		rest := ""
		for i, r := range l.text {
			switch {
			case escaped:
				escaped = false
			case r == '\\':
				escaped = true
			case r == '"':
				quoted = !quoted
			case strings.ContainsRune(space, r) && !quoted:
				done = true
			}
			if done {
				rest = strings.Trim(l.text[i:], space)
				break
			}
			key.WriteRune(r)
		}
		if utf8.ValidString(l.text) && key.String() != "" && rest != "" && !quoted {
			entries = append(entries, modelEntry{l.line, key.String(), rest})
		}
	}
	return entries
}

// modelLookup asks all entries for each form of an address, in the order of transport(5).
func modelLookup(m *domain.TransportMap, a domain.Address, delimiter byte) (*domain.Transport, bool) {
	var forms []string
	add := func(plain string) {
		forms = append(forms, canonicalLocal(plain)+"@"+a.Domain, plain+"@"+a.Domain)
	}
	plain := a.Local
	if strings.HasPrefix(plain, `"`) {
		plain = strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(plain[1 : len(plain)-1])
	}
	add(plain)
	if bare, _, ok := strings.Cut(plain, string(rune(delimiter))); ok && bare != "" && delimiter == '+' {
		add(bare)
	}
	forms = append(forms, a.Domain)
	if labels := strings.Split(a.Domain, "."); a.Domain[0] != '[' {
		for i := range labels[1:] {
			forms = append(forms, "."+strings.Join(labels[i+1:], "."))
		}
	}
	for _, form := range append(forms, "*") {
		for i := range m.Entries {
			if strings.EqualFold(m.Entries[i].Key, form) {
				return &m.Entries[i], true
			}
		}
	}
	return nil, false
}

// canonicalLocal writes a local part as an envelope has it.
func canonicalLocal(plain string) string {
	a, err := domain.ParseAddress(`"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(plain) + `"@x`)
	if err != nil {
		return "" // one that is cut in the middle of what can't be cut
	}
	return a.Local
}

// checkTransport holds what is made of a text, and found in it, against the models.
func checkTransport(t *testing.T, text string, addrs ...domain.Address) {
	t.Helper()
	m, err := domain.ParseTransport(strings.NewReader(text), nil)
	slow, slowErr := domain.ParseTransport(iotest.OneByteReader(strings.NewReader(text)), nil)
	if fmt.Sprint(err) != fmt.Sprint(slowErr) {
		t.Fatalf("%q: %v, octet by octet %v", text, err, slowErr)
	}
	if err != nil {
		for _, line := range unjoin(t, err) {
			if !strings.HasPrefix(line, "line ") || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%q: unfit to be logged: %q", text, line)
			}
		}
		return
	}
	if !reflect.DeepEqual(m, slow) { // cmp takes much longer
		t.Fatalf("%q, whole and octet by octet: %s", text, cmp.Diff(m, slow, cmp.AllowUnexported(domain.TransportMap{})))
	}
	model := map[int]modelEntry{}
	for _, e := range modelTransport(text) {
		model[e.line] = e
	}
	warned := map[int]bool{}
	for _, w := range m.Warnings {
		warned[w.Line] = true
	}
	for _, e := range m.Entries {
		want, ok := model[e.Line]
		if !ok {
			t.Fatalf("%q: there is no entry in line %d", text, e.Line)
		}
		delete(model, e.Line)
		name, hop, _ := strings.Cut(want.value, ":")
		if e.Name != name || e.NextHop != hop && (hop != "" || e.Status == "") {
			t.Fatalf("%q: line %d is %q and %q, want %q", text, e.Line, e.Name, e.NextHop, want.value)
		}
		key := want.key
		at := strings.LastIndexByte(key, '@')
		if at < 0 && strings.HasPrefix(key, "*.") {
			key = key[1:]
		}
		dot := len(key[at+1:]) - len(strings.TrimPrefix(key[at+1:], "."))
		if host := key[at+1+dot:]; host != "*" && !strings.EqualFold(e.Key, key[:at+1+dot]+domain.Fold(host)) {
			t.Fatalf("%q: line %d has the key %q, want %q", text, e.Line, e.Key, want.key)
		}
		for _, h := range e.Hops {
			if h.Host == "" || strings.ContainsAny(h.Host, "[]* \t\r\n") || strings.Trim(h.Port, "0123456789") != "" {
				t.Fatalf("%q: %+v", text, e)
			}
		}
	}
	for line := range model {
		if !warned[line] {
			t.Fatalf("%q: nothing is said of line %d", text, line)
		}
	}
	for _, a := range addrs {
		for _, delimiter := range []byte{0, '+'} {
			got, ok := m.Lookup(a, delimiter)
			want, found := modelLookup(m, a, delimiter)
			if ok != found || got != want {
				t.Fatalf("%q: %s is %+v, want %+v", text, a, got, want)
			}
		}
	}
}

func TestTransportAgainstModel(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 1))
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	host := func() string {
		return pick("a.test", "b.a.test", "C.b.a.TEST", "y.x.a.test", "test", "Bücher.test", "xn--bcher-kva.test", "[192.0.2.1]")
	}
	local := func() string { return pick("u", "U+x", "u+x+y", `"u v"`, `"u v+x"`, "ü", "Ü", "u.v", `"u\"+v"`) }
	for range 3000 {
		var text strings.Builder
		for range r.IntN(12) {
			switch r.IntN(12) {
			case 0:
				text.WriteString(pick("# c", " # c", "", " ", "\t\r", "nothing", ` "`))
			case 1:
				text.WriteString(pick(" continued", "\tcontinued, with # this", " \\", " [y]:25"))
			default:
				key := pick("", ".", "*.", local()+"@", local()+"@") + host()
				if key == ".[192.0.2.1]" || key == "*.[192.0.2.1]" {
					key = pick("*", "@a.test", `"open`, `"u"@a.test`, "u,v@a.test", `u\ v@a.test`)
				}
				text.WriteString(key + pick(" ", "\t", "  \n ", "\n#\n\t", "") + pick(":", "x:", "x:[y]", "error:", "error:5.1.1 no", "discard:", `x:"a`))
			}
			text.WriteString(pick("\n", "\n", "\n", "\r\n"))
		}
		var addrs []domain.Address
		for range 10 {
			a, err := domain.ParseAddress(local() + "@" + host())
			if err != nil {
				t.Fatal(err)
			}
			addrs = append(addrs, a)
		}
		checkTransport(t, text.String(), addrs...)
	}
}

func FuzzTransport(f *testing.F) {
	for _, s := range []string{
		"user@example.com smtp:[u.example.net]:2525\nexample.com smtp:[d]:587\n.example.com relay:[sub]\n* smtp:[star]\n",
		"bad.example.com error:5.7.1 no mail: here\nerr.example.com error:\nretry.test retry:4.4.1 later\ngone.test discard:why\n",
		"local.test :\nnh.test :[only]\nch.test slow:\nlist.test smtp:bar.example, foo.example:2525\n@at.test smtp:[at]\n",
		"# c\n\n a continued x:\na.test\n# c\n\n\tsmtp:[a]\n  # c\n ,[b]:submission\r\nb.test x:\nb.test x:\n", "*.gmail.com smtp:[h]:10025\n*@a.test x:\n*.@a.test x:\n",
		"\"user b\"@example.com x:1\n\"q\\\" r\"@x.test x:2\na\\ b@x.test x:3\n\"open x:4\n", "BÜCHER.example x:\nxn--bcher-kva.example y:\nÜ@bücher.example z:\n",
		"a.test smtp:[ipv6:::1]:25,[::1],[192.0.2.1]:smtp\n", "a.test lmtp:x\nb..test x:\nc.test smtp:\nd.test smtp:[x]:0\n", "a\x00b x:\n\xff x:\na.test error:\x01", "user@a.b.com x:\nuser+x@a.b.com y:\na.b.com z:",
	} {
		f.Add(s, "user+x@a.b.com")
		f.Add(s, `"User b"@Bücher.example`)
	}
	f.Fuzz(func(t *testing.T, text, addr string) {
		if len(text) > 32<<10 {
			return // longer entries have a test of their own
		}
		if a, err := domain.ParseAddress(addr); err == nil {
			checkTransport(t, text, a)
			return
		}
		checkTransport(t, text)
	})
}
