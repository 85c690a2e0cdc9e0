package smtplb_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

// FuzzParseRelay puts a URL together around a password that it would recognise, and reads it.
func FuzzParseRelay(f *testing.F) {
	const core = "hunter2"
	f.Add("smtp://user:", "", "", "@mx.example.com:587?weight=3&tier=1")
	f.Add("smtps://user:", "a%", "b", "@mx.example.com")
	f.Add("smtp://user:", "a@b?", "", "@mx.example.com")
	f.Add("smtp://user:", "a@b?name=", "", "@mx.example.com")
	f.Add("smtp://user:", "a:/?#[]", "é\x00", "@[::1]:25")
	f.Add("smtp://user:", "", "", "")
	f.Add("smtp://user:", "", "%40mx.example.com", "")
	f.Add("smtp://user:", "", ":mx.example.com", ":587")
	f.Add("smtp://user:", "a/", "", "@mx.example.com/path#frag")
	f.Add("user:", "", "", "@mx.example.com")
	f.Add("smtp://mx.example.com?password=", "", "", "")
	f.Add("smtp://user:", "%41+", "%20", "@mx.example.com?tls=none&tag=a&tag=b&max_age=1m&auth=plain")
	for _, after := range []string{ // hosts that one reads so and another otherwise, and what would be another command
		"@evil.example\\@mx.example.com", "@evil.example#@mx.example.com", "@evil.example?@mx.example.com", "@evil.example/@mx.example.com", "@mx.example.com:587@evil.example", "@[::1%25lo]:25", "@[::ffff:127.0.0.1]", "@127.1", "@0x7f000001",
		"@mx.example.com%0d%0aRCPT", "@mx.example.com\r\n", "@mx\u3002example\u3002com", "@\u24dcx.example.com", "@mx.example.com:0", "@mx.example.com:65536", "@mx.example.com:", "@", "@:587", "@%2Frun%2Fsmtp.sock", "@localhost.", "@mx.example.com?tls=none", "@localhost?tls=none&tls=starttls",
	} {
		f.Add("smtp://user:", "", "", after)
		f.Add("smtps://user:", "%", "%00", after)
	}
	f.Fuzz(func(t *testing.T, before, start, end, after string) {
		s := before + start + core + end + after
		r, err := smtplb.ParseRelay(s)
		if err != nil {
			var ue *smtplb.RelayURLError
			if !errors.As(err, &ue) || !printable(err.Error()) || len(err.Error()) > 2000 {
				t.Fatalf("%q: %T, %q", s, err, err)
			}
			if isSecret(before, start, end, after) && strings.Contains(fmt.Sprintf("%v %+v", err, *ue), core) && !strings.Contains(after, core) {
				t.Fatalf("%q: the password is in %v", s, err)
			}
			return
		}
		for _, out := range []string{r.String(), r.GoString(), fmt.Sprintf("%+v %#v %x %d", r, r, r, r)} {
			if strings.Contains(r.Password, core) && strings.Contains(out, core) && !strings.Contains(r.Username+r.Name+r.Addr+strings.Join(r.Tags, ""), core) {
				t.Fatalf("%q: the password %q is in %s", s, r.Password, out)
			}
		}
		if isSecret(before, start, end, after) && !strings.Contains(after, core) && !strings.Contains(r.Password, core) {
			t.Fatalf("%q: the password went elsewhere: %s", s, r)
		}
		again, err := smtplb.ParseRelay(r.String())
		if err != nil {
			t.Fatalf("%q: its String %s can't be read: %v", s, r, err)
		}
		if again.String() != r.String() || again.Username != r.Username || again.Addr != r.Addr || again.TLS != r.TLS || again.Name != r.Name && r.Name != r.Addr {
			t.Fatalf("%q: %s became %s", s, r, again)
		}
	})
}

// isSecret reports whether what stands between before and after is meant as a password: it ends with an "@", or should have.
func isSecret(before, start, end, after string) bool {
	switch before {
	case "smtp://user:", "smtps://user:", "user:":
		return strings.HasPrefix(after, "@") || !strings.Contains(start+end+after, "@") && !strings.ContainsAny(start, "/?#")
	}
	return false
}

// canonical is what a body must become, told in the plainest way: false where it can't be sent.
func canonical(raw []byte, ends smtplb.LineEndings) (string, bool) {
	var lines []string
	start := 0 // of the line
	for i := 0; i < len(raw); i++ {
		end := i
		switch b := raw[i]; {
		case b == 0:
			return "", false
		case b == '\r' && i+1 < len(raw) && raw[i+1] == '\n':
			i++
		case b == '\r' && ends != smtplb.LineEndingsLenient:
			return "", false
		case b == '\n' && ends == smtplb.LineEndingsStrict:
			return "", false
		case b != '\r' && b != '\n':
			continue
		}
		lines, start = append(lines, string(raw[start:end])), i+1
	}
	if start < len(raw) {
		lines = append(lines, string(raw[start:]))
	}
	for _, l := range lines {
		if len(l) > 998 {
			return "", false
		}
	}
	return strings.Join(lines, "\r\n") + "\r\n", len(raw) > 0
}

// bodies are what FuzzBody begins with: line ends, dots, and the sequences of SMTP smuggling, which one server takes for the end of the
// message and another doesn't (CVE-2023-51764 Postfix, -51765 Sendmail, -51766 Exim; textproto's DotWriter lets the third through).
var bodies = []string{
	"a\r\n", "", ".", "\r\n.\r\n", "\n.\n", "\r.\r", "a\n.\r\nb", "a\r.\r\nb", "a\r\n.\nb", "a\r\n.\rb", "\r\r\n.\r\r\n", "..\r\n...\n....\r", "a\x00b", "\xff\xfe", "Subject: ü\n\nü",
	"a\r.\rb", "a\n.\rb", "a\r.\nb", "a\n\r.\n\rb", "a\r\n.\r\r\nb", "a\r\n\x00.\r\nb", "a\r\n.\x00\r\nb", "a\r\n.\r\x00\nb", "a\r\n. \r\nb", "a\u0085.\u0085b", "a\u2028.\u2028b", "a\v.\fb", "a\x1e.\x1eb",
	"\r", "\n", "\r\n", "\n\r", "\r\r\n", "a\r", "a\r\n.", ".\r\n", "..", ".\r", ".\n", "\r\n..\r\n", "a\r\n.b\r\n.\r\n..", "QUIT\r\n.QUIT\r\n", "\xef\xbb\xbf.\r\n", "a\x8d\x8a.\x8d\x8ab",
	strings.Repeat("x", 998), strings.Repeat("x", 999), strings.Repeat(".", 998) + "\n.", "\r\n.\r\nMAIL FROM:<b@example.com>\r\nRCPT TO:<y@example.com>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n",
	strings.Repeat("x", 998) + "\r\n.", strings.Repeat("x", 997) + "\r.\r\n", "." + strings.Repeat("x", 997) + "\r\n.\r\n", // a dot where a line is as long as it may be
	"a\n.\nMAIL FROM:<b@example.com>\nRCPT TO:<y@example.com>\nDATA\nx\n.\n", "a\r\n.\rMAIL FROM:<b@example.com>\r\n", "a\r\nBDAT 0 LAST\r\n.\r\n",
	strings.Repeat("\n", 100), strings.Repeat(".\n", 40000), strings.Repeat("a line of text\r\n", 4096) + ".\r\n", // the last dots behind 64 KiB, where writes end
}

// writes keeps what is written to one connection.
type writes struct {
	net.Conn
	looks

	mu   sync.Mutex // guards wire
	wire []byte
}

func (w *writes) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wire = append(w.wire, p[:n]...)
	return n, err
}

// taken is what was written since it was asked last.
func (w *writes) taken() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.wire
	w.wire = nil
	return b
}

// endsOnce makes sure that a message on the wire has one end, for any server, however it reads: no CR or LF stands alone, and no line
// is a lone dot but the last.
func endsOnce(wire []byte) error {
	_, body, ok := bytes.Cut(wire, []byte("\r\nDATA\r\n"))
	if !ok {
		return errors.New("there is no DATA")
	}
	for i, b := range body {
		switch {
		case b == 0:
			return fmt.Errorf("a NUL at %d", i)
		case b == '\r' && (i+1 == len(body) || body[i+1] != '\n'), b == '\n' && (i == 0 || body[i-1] != '\r'):
			return fmt.Errorf("a lone %q at %d", b, i)
		case b == '.' && (i == 0 || body[i-1] == '\n') && body[i+1] != '.' && i != len(body)-3:
			return fmt.Errorf("a line with a lone dot at its start at %d of %d", i, len(body))
		}
	}
	if !bytes.HasSuffix(body, []byte("\r\n.\r\n")) {
		return errors.New("the end is missing")
	}
	return nil
}

// FuzzBody sends bodies: what is accepted is stored once, in canonical form, and nothing else is; what goes over the wire has one
// end of data, for the strictest server and the most lenient.
func FuzzBody(f *testing.F) {
	for _, s := range bodies {
		for ends := range smtplb.LineEndingsLenient + 1 {
			f.Add([]byte(s), uint8(ends), len(s)%2 == 0)
		}
	}
	n := smtptest.NewNetwork()
	servers := []*smtptest.Server{n.NewServer("r0.test:25"), n.NewServer("r1.test:25", smtptest.WithoutExtensions("PIPELINING", "SIZE"))}
	var conns []*writes
	c := smtplb.Config{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := n.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		w := &writes{Conn: nc, looks: nc.(looks)}
		conns = append(conns, w)
		return w, nil
	}}
	for _, s := range servers {
		f.Cleanup(s.Close)
		c.Relays = append(c.Relays, smtplb.Relay{Name: s.Addr, Addr: s.Addr, TLS: smtplb.TLSNone, Conns: smtplb.Conns{MaxMessages: -1, MaxAge: -1, MaxIdleTime: -1}})
	}
	pool, err := smtplb.New(c)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { pool.Close() })
	f.Fuzz(func(t *testing.T, raw []byte, mode uint8, reader bool) {
		ends := smtplb.LineEndings(mode % 3)
		want, ok := canonical(raw, ends)
		given := string(raw)
		e := envelope("x@example.com")
		e.LineEndings, e.Body = ends, smtplb.Bytes(raw)
		if reader {
			e.Body = smtplb.Reader(strings.NewReader(given))
		}
		r, err := pool.Deliver(t.Context(), e)
		var stored []*smtptest.Message
		for _, s := range servers {
			stored = append(stored, s.Messages()...)
			s.Reset()
		}
		var wire []byte
		for _, w := range conns {
			wire = append(wire, w.taken()...)
		}
		var ee *smtplb.EnvelopeError
		switch {
		case string(raw) != given:
			t.Errorf("%q became %q", given, raw)
		case !ok && (!errors.As(err, &ee) || ee.Field != "Body" || r != nil || len(stored) != 0):
			t.Errorf("%q, %d: %v, %d stored: %v", given, ends, r, len(stored), err)
		case ok && (err != nil || len(stored) != 1 || string(stored[0].Data) != want || fmt.Sprint(stored[0].To) != "[x@example.com]" || stored[0].From != "a@example.com"):
			t.Errorf("%q, %d: %v, want %q: stored %v: %v", given, ends, r, want, stored, err)
		case ok:
			if err := endsOnce(wire); err != nil {
				t.Errorf("%q, %d: %v in %q", given, ends, err, wire)
			}
		}
	})
}

// FuzzEnvelope sends addresses: whatever they are, one command stays one command, and an accepted message has as many recipients as were given.
func FuzzEnvelope(f *testing.F) {
	for _, s := range []string{"a@example.com", "<>", "", "a@b\r\nRSET", `"a b"@example.com`, `"\""@example.com`, "a@[192.0.2.1]", "ü@bücher.example", "a@b>\tSIZE=1", "@a:b@c", "a@\x00", "a\u2028@b", "a@b.", "A@B"} {
		f.Add(s, "x@example.com")
		f.Add("a@example.com", s)
	}
	n := smtptest.NewNetwork()
	s := n.NewServer("r0.test:25")
	f.Cleanup(s.Close)
	pool, err := smtplb.New(smtplb.Config{Dial: n.DialContext, Relays: []smtplb.Relay{{Addr: s.Addr, TLS: smtplb.TLSNone, Breaker: smtplb.Breaker{Off: true}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { pool.Close() })
	f.Fuzz(func(t *testing.T, from, to string) {
		e := envelope(to)
		e.From = from
		r, err := pool.Deliver(t.Context(), e)
		stored, commands := s.Messages(), s.Stats().Commands
		s.Reset()
		var ee *smtplb.EnvelopeError
		switch {
		case errors.As(err, &ee):
			if r != nil || ee.Field != "From" && ee.Field != "To[0]" || !printable(err.Error()) || len(err.Error()) > 1000 || len(stored) != 0 || commands["MAIL"] != 0 {
				t.Errorf("%q, %q: %v: %q", from, to, r, err)
			}
		case err != nil || len(stored) != 1 || len(stored[0].To) != 1 || commands["MAIL"] != 1 || commands["RCPT"] != 1 || commands["DATA"] != 1:
			t.Errorf("%q, %q: %v, %v, %v: %v", from, to, r, commands, stored, err)
		case !printable(stored[0].From+stored[0].To[0]) || strings.ContainsAny(from+to, "\r\n\x00"):
			t.Errorf("%q, %q: stored %v", from, to, stored[0])
		}
	})
}
