package smtplb_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
	"github.com/wneessen/go-mail"
)

// mixed is a house whose relays differ: one for each set of options, in tiers in their order.
func mixed(t *testing.T, relays ...[]smtptest.Option) *house {
	t.Helper()
	h := &house{T: t, net: smtptest.NewNetwork()}
	c := smtplb.Config{Dial: h.net.DialContext}
	for i, opts := range relays {
		addr := fmt.Sprintf("r%d.test:25", i)
		h.relays = append(h.relays, h.net.NewServer(addr, opts...))
		c.Relays = append(c.Relays, smtplb.Relay{Name: fmt.Sprintf("r%d", i), Addr: addr, TLS: smtplb.TLSNone, Tier: i})
	}
	pool, err := smtplb.New(c)
	if err != nil {
		t.Fatal(err)
	}
	h.pool = pool
	return h
}

// connections is how many connections the relays have seen.
func (h *house) connections() int {
	n := 0
	for _, r := range h.relays {
		n += r.Stats().Connections
	}
	return n
}

// refused makes sure that e is nobody's to send: an *EnvelopeError for field, no receipt, no relay bothered.
func (h *house) refused(e *smtplb.Envelope, field, reason string) {
	h.Helper()
	before := h.connections()
	r, err := h.pool.Deliver(h.Context(), e)
	var ee *smtplb.EnvelopeError
	if !errors.As(err, &ee) {
		h.Errorf("%s: no *EnvelopeError: %v", field, err)
		return
	}
	if r != nil {
		h.Errorf("%s: a receipt: %v", field, r)
	}
	if ee.Field != field || !strings.Contains(ee.Reason, reason) {
		h.Errorf("the fault is in %q (%s), want %q (%s)", ee.Field, ee.Reason, field, reason)
	}
	if !errors.Is(err, smtplb.ErrPermanent) || errors.Is(err, smtplb.ErrTemporary) || errors.Is(err, smtplb.ErrUnknown) || errors.Is(err, smtplb.ErrPartial) {
		h.Errorf("%s: classes of %v", field, err)
	}
	if s := err.Error(); !printable(s) || len(s) > 1000 {
		h.Errorf("%s: unfit to be logged: %q", field, s)
	}
	if n := h.connections() - before; n != 0 {
		h.Errorf("%s: %d connections were made for it", field, n)
	}
}

// printable reports whether s is one line without control characters.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return r < 0x20 || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || r == '\ufffd'
	})
}

func TestEnvelopeInjection(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		bad := []string{"\r", "\n", "\r\n", "\x00", "\x7f", "\r\nRCPT TO:<evil@example.com>", "> ORCPT=rfc822;x", "<", ">", " ", "\t", "\u0085", "\u2028", "\xff"}
		for c := range 0x20 {
			bad = append(bad, string(rune(c)))
		}
		for _, b := range bad {
			for _, addr := range []string{b + "a@example.com", "a" + b + "b@example.com", "a@exam" + b + "ple.com", "a@example.com" + b, b, "a@" + b, `"a` + b + `"@example.com`} {
				if (b == "<" || b == ">" || b == " ") && addr[0] == '"' || b == "> ORCPT=rfc822;x" && addr[0] == '"' {
					continue // a quoted local part may hold them
				}
				e := envelope("x@example.com", "y@example.com", "z@example.com")
				e.From = addr
				h.refused(e, "From", "")
				e = envelope("x@example.com", "y@example.com", addr)
				h.refused(e, "To[2]", "")
			}
		}
		h.refused(&smtplb.Envelope{From: "a@example.com\r\n", To: []string{"\r\n"}}, "From", "")
		if h.relays[0].Stats().Connections != 0 {
			t.Error("a relay was contacted")
		}
		// What stands in quotes goes out in quotes, and ends no command.
		e := envelope(`"x> SIZE=1"@example.com`, `"a\"b"@example.com`, `"plain"@example.com`)
		e.From = `"<>"@example.com`
		if _, err := h.pool.Deliver(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		m := h.relays[0].Messages()
		if len(m) != 1 || m[0].From != `"<>"@example.com` || fmt.Sprint(m[0].To) != `["x> SIZE=1"@example.com "a\"b"@example.com plain@example.com]` {
			t.Errorf("%v", m)
		}
	})
}

func TestEnvelopeFaults(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.MaxMessageSize = 2000 })
		defer h.close()
		good := smtplb.Bytes([]byte(text))
		to := []string{"x@example.com"}
		for _, test := range []struct {
			e             *smtplb.Envelope
			field, reason string
		}{
			{nil, "", "nil"},
			{&smtplb.Envelope{}, "From", `"<>"`},
			{&smtplb.Envelope{To: to, Body: good}, "From", `"<>"`},
			{&smtplb.Envelope{From: "<a@example.com>", To: to, Body: good}, "From", ""},
			{&smtplb.Envelope{From: "a", To: to, Body: good}, "From", "domain"},
			{&smtplb.Envelope{From: "A <a@example.com>", To: to, Body: good}, "From", ""},
			{&smtplb.Envelope{From: "@", To: to, Body: good}, "From", ""},
			{&smtplb.Envelope{From: strings.Repeat("a", 65) + "@example.com", To: to, Body: good}, "From", "64"},
			{&smtplb.Envelope{From: "a@" + strings.Repeat("b.", 127) + "com", To: to, Body: good}, "From", ""},
			{&smtplb.Envelope{From: strings.Repeat("a", 1<<20), To: to, Body: good}, "From", "long"},
			{&smtplb.Envelope{From: "a@example.com", Body: good}, "To", "no recipients"},
			{&smtplb.Envelope{From: "a@example.com", To: []string{}, Body: good}, "To", "no recipients"},
			{&smtplb.Envelope{From: "a@example.com", To: []string{""}, Body: good}, "To[0]", ""},
			{&smtplb.Envelope{From: "a@example.com", To: []string{"x@example.com", "<>"}, Body: good}, "To[1]", ""},
			{&smtplb.Envelope{From: "a@example.com", To: []string{"x@example.com,y@example.com"}, Body: good}, "To[0]", ""},
			{&smtplb.Envelope{From: "a@example.com", To: to}, "Body", "missing"},
			{&smtplb.Envelope{From: "a@example.com", To: to, Body: smtplb.Bytes(nil)}, "Body", "empty"},
			{&smtplb.Envelope{From: "a@example.com", To: to, Body: smtplb.Reader(nil)}, "Body", "nil"},
			{&smtplb.Envelope{From: "a@example.com", To: to, Body: smtplb.Reader(strings.NewReader(""))}, "Body", "empty"},
			{&smtplb.Envelope{From: "a@example.com", To: to, Body: smtplb.File(os.DevNull)}, "Body", "empty"},
			{&smtplb.Envelope{From: "a@example.com", To: to, Body: good, LineEndings: 3}, "LineEndings", "3"},
			{&smtplb.Envelope{From: "a@example.com", To: to, Body: smtplb.Bytes(make([]byte, 2001))}, "Body", "2000"},
			{&smtplb.Envelope{From: "a@example.com", To: to, Body: smtplb.Bytes([]byte("a\r\nb\x00"))}, "Body", "NUL (line 2, byte 4)"},
			{&smtplb.Envelope{From: "a@example.com", To: to, Body: smtplb.Bytes([]byte("a\nb\n" + strings.Repeat("x", 999)))}, "Body", "999 bytes; SMTP allows 998 (line 3"},
		} {
			h.refused(test.e, test.field, test.reason)
		}
		for name, f := range map[string]func(m *mail.Msg){
			"From": func(m *mail.Msg) { _ = m.To("x@example.com") },
			"To":   func(m *mail.Msg) { _ = m.From("a@example.com") },
		} {
			m := mail.NewMsg()
			f(m)
			m.SetBodyString(mail.TypeTextPlain, "text")
			var ee *smtplb.EnvelopeError
			if r, err := h.pool.Send(t.Context(), m); r != nil || !errors.As(err, &ee) || ee.Field != name {
				t.Errorf("go-mail without %s: %v, %v", name, r, err)
			}
			if e, err := smtplb.NewEnvelope(m); e != nil || !errors.As(err, &ee) || ee.Field != name || !errors.Is(err, smtplb.ErrPermanent) {
				t.Errorf("go-mail without %s: %v, %v", name, e, err)
			}
		}
		if e, err := smtplb.NewEnvelope(nil); e != nil || !errors.Is(err, smtplb.ErrPermanent) {
			t.Errorf("nil message: %v, %v", e, err)
		}
		if n, s := h.connections(), h.pool.Stats(); n != 0 || s.Sends != 0 || s.InFlight != 0 {
			t.Errorf("%d connections, %+v", n, s)
		}
	})
}

func TestNullSenderAndDomains(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		e := envelope("x@BÜCHER.example", "y@[192.0.2.1]", "Z@Example.COM")
		e.From = "<>"
		if _, err := h.pool.Deliver(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		e = envelope("x@example.com")
		e.From = "a@例え。テスト"
		if _, err := h.pool.Deliver(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		tr := h.relays[0].Transcript()
		for _, want := range []string{"C: MAIL FROM:<>", "C: RCPT TO:<x@xn--bcher-kva.example>", "C: RCPT TO:<y@[192.0.2.1]>", "C: RCPT TO:<Z@example.com>", "C: MAIL FROM:<a@xn--r8jz45g.xn--zckzah>"} {
			if !strings.Contains(tr, want) {
				t.Errorf("no %q in\n%s", want, tr)
			}
		}
		if strings.Contains(strings.ReplaceAll(tr, "S: 250-SMTPUTF8", ""), "SMTPUTF8") { // A-labels don't need it
			t.Errorf("SMTPUTF8 was asked for\n%s", tr)
		}
	})
}

// What a message needs is looked for among the relays, and is nobody's fault where it is not offered.
func TestCapabilities(t *testing.T) {
	without := func(kw ...string) []smtptest.Option { return []smtptest.Option{smtptest.WithoutExtensions(kw...)} }
	size := func(n int64) []smtptest.Option { return []smtptest.Option{smtptest.WithMaxSize(n)} }
	eight := text + "Gr\xc3\xbc\xc3\x9fe\r\n"
	long := text + strings.Repeat("A line.\r\n", 200) // 1,800 bytes more
	for _, test := range []struct {
		name     string
		relays   [][]smtptest.Option
		from, to string
		body     string
		want     string // outcome and the relay that has it
		param    string // of MAIL, as it reached the relay
	}{
		{"plain", [][]smtptest.Option{without("8BITMIME", "SMTPUTF8")}, "a@example.com", "x@example.com", text, "accepted r0", ""},
		{"8-bit body", [][]smtptest.Option{nil}, "a@example.com", "x@example.com", eight, "accepted r0", "BODY=8BITMIME"},
		{"8-bit body, second relay", [][]smtptest.Option{without("8BITMIME"), without("SMTPUTF8")}, "a@example.com", "x@example.com", eight, "accepted r1", "BODY=8BITMIME"},
		{"8-bit body, nobody", [][]smtptest.Option{without("8BITMIME"), without("8BITMIME")}, "a@example.com", "x@example.com", eight, "failed", ""},
		{"8-bit body after LF, CRLF", [][]smtptest.Option{without("SMTPUTF8")}, "a@example.com", "x@example.com", "Subject: a\n\r\nGr\xc3\xbc\xc3\x9fe\n", "accepted r0", "BODY=8BITMIME"},
		{"8-bit body without a header", [][]smtptest.Option{without("SMTPUTF8")}, "a@example.com", "x@example.com", "\r\nGr\xc3\xbc\xc3\x9fe\r\n", "accepted r0", "BODY=8BITMIME"},
		{"latin-1 header", [][]smtptest.Option{without("SMTPUTF8")}, "a@example.com", "x@example.com", "Subject: Gr\xfc\xdfe\r\n\r\na\r\n", "accepted r0", "BODY=8BITMIME"},
		{"utf-8 header", [][]smtptest.Option{without("SMTPUTF8"), nil}, "a@example.com", "x@example.com", "Subject: Gr\xc3\xbc\xc3\x9fe\r\n\r\na\r\n", "accepted r1", "SMTPUTF8"},
		{"utf-8 header, nobody", [][]smtptest.Option{without("SMTPUTF8")}, "a@example.com", "x@example.com", "Subject: Gr\xc3\xbc\xc3\x9fe\r\n\r\na\r\n", "failed", ""},
		{"utf-8 recipient", [][]smtptest.Option{without("SMTPUTF8"), nil}, "a@example.com", "grüße@bücher.example", text, "accepted r1", "SMTPUTF8"},
		{"utf-8 sender", [][]smtptest.Option{without("SMTPUTF8"), nil}, "grüße@example.com", "x@example.com", text, "accepted r1", "SMTPUTF8"},
		{"utf-8 sender, nobody", [][]smtptest.Option{without("SMTPUTF8"), without("SMTPUTF8")}, "grüße@example.com", "x@example.com", text, "failed", ""},
		{"utf-8 sender, no extensions", [][]smtptest.Option{{smtptest.WithoutEHLO()}}, "grüße@example.com", "x@example.com", text, "failed", ""},
		{"size", [][]smtptest.Option{size(int64(len(long)))}, "a@example.com", "x@example.com", long, "accepted r0", fmt.Sprintf("SIZE=%d", len(long))},
		{"size, one byte too many", [][]smtptest.Option{size(int64(len(long) - 1)), size(1000), size(0)}, "a@example.com", "x@example.com", long, "accepted r2", fmt.Sprintf("SIZE=%d", len(long))},
		{"size, nobody", [][]smtptest.Option{size(1000), size(1001)}, "a@example.com", "x@example.com", long, "failed", ""},
		{"size before dot-stuffing", [][]smtptest.Option{size(1200)}, "a@example.com", "x@example.com", strings.Repeat(".\r\n", 400), "accepted r0", "SIZE=1200"},
		{"size with CRLF", [][]smtptest.Option{size(1199)}, "a@example.com", "x@example.com", strings.Repeat(".\n", 400), "failed", ""},
		{"no SIZE", [][]smtptest.Option{without("SIZE")}, "a@example.com", "x@example.com", long, "accepted r0", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				h := mixed(t, test.relays...)
				defer h.close()
				for try := range 3 { // once learnt, a relay that can't is not asked again
					before := h.connections()
					e := &smtplb.Envelope{From: test.from, To: []string{test.to}, Body: smtplb.Bytes([]byte(test.body))}
					r, err := h.pool.Deliver(t.Context(), e)
					got := outcomes(r)
					if err == nil {
						got += " " + r.Recipients[0].Relay
					}
					if got != test.want || (err == nil) == (test.want == "failed") || err != nil && !errors.Is(err, smtplb.ErrPermanent) {
						t.Fatalf("%s, want %s: %v", got, test.want, err)
					}
					if n := len(r.Attempts); try > 0 && (n > 1 || n == 1 && err != nil || h.connections() != before) {
						t.Errorf("try %d: %v, %d connections more", try, r, h.connections()-before)
					}
				}
				for i, s := range h.relays {
					ms := s.Messages()
					if want := fmt.Sprintf("accepted r%d", i) == test.want; len(ms) != 0 != want {
						t.Errorf("r%d has %d messages", i, len(ms))
					}
					if p := strings.Fields(test.param); len(ms) > 0 && len(p) > 0 && !slices.Contains(ms[0].MailParams, p[0]) {
						t.Errorf("MAIL has %q, want %s", ms[0].MailParams, test.param)
					}
					if test.want == "failed" && s.Stats().Commands["MAIL"] != 0 {
						t.Errorf("r%d was bothered", i)
					}
				}
				for _, s := range h.pool.Stats().Relays {
					if s.Faults != 0 || s.Breaker != "closed" {
						t.Errorf("held against a relay: %+v", s)
					}
				}
			})
		})
	}
}

// Each body, and what is stored with LineEndingsText, -Strict and -Lenient; refused is what no relay sees.
func TestCanonicalForm(t *testing.T) {
	const refused = "\x00"
	l998, l999 := strings.Repeat("x", 998), strings.Repeat("x", 999)
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, nil)
		defer h.close()
		for _, test := range []struct{ raw, text, strict, lenient string }{
			{"a\r\n", "a\r\n", "a\r\n", "a\r\n"},
			{"a", "a\r\n", "a\r\n", "a\r\n"},
			{"a\r\nb", "a\r\nb\r\n", "a\r\nb\r\n", "a\r\nb\r\n"},
			{"a\nb\n", "a\r\nb\r\n", refused, "a\r\nb\r\n"},
			{"a\nb", "a\r\nb\r\n", refused, "a\r\nb\r\n"},
			{"a\rb\r", refused, refused, "a\r\nb\r\n"},
			{"a\r\nb\nc\rd", refused, refused, "a\r\nb\r\nc\r\nd\r\n"},
			{"a\r\nb\nc\r\n", "a\r\nb\r\nc\r\n", refused, "a\r\nb\r\nc\r\n"},
			{"\n", "\r\n", refused, "\r\n"},
			{"\r", refused, refused, "\r\n"},
			{"\r\n", "\r\n", "\r\n", "\r\n"},
			{"\n\r", refused, refused, "\r\n\r\n"},
			{"\r\r\n", refused, refused, "\r\n\r\n"},
			{"a\r\r\nb", refused, refused, "a\r\n\r\nb\r\n"},
			{"\n\n\n", "\r\n\r\n\r\n", refused, "\r\n\r\n\r\n"},
			{"a\r", refused, refused, "a\r\n"},
			// Dots.
			{".", ".\r\n", ".\r\n", ".\r\n"},
			{"..", "..\r\n", "..\r\n", "..\r\n"},
			{".\r\n", ".\r\n", ".\r\n", ".\r\n"},
			{".a\r\n..b\r\n...\r\n", ".a\r\n..b\r\n...\r\n", ".a\r\n..b\r\n...\r\n", ".a\r\n..b\r\n...\r\n"},
			{"a\r\n.\r\nb\r\n", "a\r\n.\r\nb\r\n", "a\r\n.\r\nb\r\n", "a\r\n.\r\nb\r\n"},
			{"a\r\n\r\n.", "a\r\n\r\n.\r\n", "a\r\n\r\n.\r\n", "a\r\n\r\n.\r\n"},
			{"a.\r\n.b.\r\n", "a.\r\n.b.\r\n", "a.\r\n.b.\r\n", "a.\r\n.b.\r\n"},
			{"a\n.\nb", "a\r\n.\r\nb\r\n", refused, "a\r\n.\r\nb\r\n"},
			// Smuggling (CVE-2023-51764 and its sisters).
			{"a\n.\r\nb\r\n", "a\r\n.\r\nb\r\n", refused, "a\r\n.\r\nb\r\n"},
			{"a\r.\r\nb\r\n", refused, refused, "a\r\n.\r\nb\r\n"},
			{"a\r\n.\nb\r\n", "a\r\n.\r\nb\r\n", refused, "a\r\n.\r\nb\r\n"},
			{"a\r\n.\rb\r\n", refused, refused, "a\r\n.\r\nb\r\n"},
			{"a\r.\rb\r\n", refused, refused, "a\r\n.\r\nb\r\n"},
			{"a\n.\rb\r\n", refused, refused, "a\r\n.\r\nb\r\n"},
			{"a\n\r.\r\nb\r\n", refused, refused, "a\r\n\r\n.\r\nb\r\n"},
			{"a\r\r\n.\r\r\nb\r\n", refused, refused, "a\r\n\r\n.\r\n\r\nb\r\n"},
			{"a\r\n.\r\r\nMAIL FROM:<b@example.com>\r\n", refused, refused, "a\r\n.\r\n\r\nMAIL FROM:<b@example.com>\r\n"},
			{"a\r\n.\r\nMAIL FROM:<b@example.com>\r\nRCPT TO:<y@example.com>\r\nDATA\r\nb\r\n.\r\n", "=", "=", "="},
			{"a\n.\nMAIL FROM:<b@example.com>\nRCPT TO:<y@example.com>\nDATA\nb\n.\n", "a\r\n.\r\nMAIL FROM:<b@example.com>\r\nRCPT TO:<y@example.com>\r\nDATA\r\nb\r\n.\r\n", refused, "a\r\n.\r\nMAIL FROM:<b@example.com>\r\nRCPT TO:<y@example.com>\r\nDATA\r\nb\r\n.\r\n"},
			{"a\r\n\x00.\r\n", refused, refused, refused},
			{"\x00", refused, refused, refused},
			// Long lines.
			{l998 + "\r\n", "=", "=", "="},
			{l998, l998 + "\r\n", l998 + "\r\n", l998 + "\r\n"},
			{l998 + "\n" + l998, l998 + "\r\n" + l998 + "\r\n", refused, l998 + "\r\n" + l998 + "\r\n"},
			{"." + l998[1:] + "\r\n", "=", "=", "="}, // 999 with its second dot, which doesn't count
			{l999 + "\r\n", refused, refused, refused},
			{"a\r\n" + l999, refused, refused, refused},
			{l998 + "\r" + l998, refused, refused, l998 + "\r\n" + l998 + "\r\n"},
			// 8-bit, and what is odd but harmless.
			{"gr\xc3\xbc\xc3\x9fe\r\n", "=", "=", "="},
			{"\xff\xfe\x80\r\n", "=", "=", "="},
			{"\x01\x08\x1b\x7f\t\v\f\r\n", "=", "=", "="},
			{"Bcc: y@example.com\r\n\r\na\r\n", "=", "=", "="},
			{strings.Repeat(".\r\n", 50000), "=", "=", "="},
			{strings.Repeat(".\n", 50000), strings.Repeat(".\r\n", 50000), refused, strings.Repeat(".\r\n", 50000)},
		} {
			for mode, want := range []string{test.text, test.strict, test.lenient} {
				if want == "=" {
					want = test.raw
				}
				raw := []byte(test.raw)
				e := envelope("x@example.com")
				e.Body, e.LineEndings = smtplb.Bytes(raw), smtplb.LineEndings(mode)
				name := fmt.Sprintf("%.60q with LineEndings %d", test.raw, mode)
				if want == refused {
					h.refused(e, "Body", "")
				} else if _, err := h.pool.Deliver(t.Context(), e); err != nil {
					t.Errorf("%s: %v", name, err)
				} else if m := h.relays[0].Messages(); len(m) != 1 || string(m[0].Data) != want || fmt.Sprint(m[0].To) != "[x@example.com]" {
					t.Errorf("%s: stored %d: %.100q, want %.100q", name, len(m), m[0].Data, want)
				}
				if string(raw) != test.raw {
					t.Errorf("%s: the caller's bytes were changed", name)
				}
				h.relays[0].Reset()
			}
		}
	})
}

type endless struct{ read int }

func (r *endless) Read(p []byte) (int, error) {
	r.read += len(p)
	for i := range p {
		p[i] = "line\r\n"[i%6]
	}
	return len(p), nil
}

func TestMaxMessageSize(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const limit = 10000
		h := newHouse(t, 1, func(c *smtplb.Config) { c.MaxMessageSize = limit })
		defer h.close()
		exact := []byte(strings.Repeat("line.\r\n\r\n.", limit/10))
		file := func(b []byte) smtplb.Body {
			name := filepath.Join(t.TempDir(), "m.eml")
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
			return smtplb.File(name)
		}
		e := envelope("x@example.com")
		for _, b := range []smtplb.Body{smtplb.Bytes(exact), smtplb.Reader(bytes.NewReader(exact)), file(exact)} {
			e.Body = b
			if _, err := h.pool.Deliver(t.Context(), e); err != nil {
				t.Error(err)
			}
		}
		if n := len(h.relays[0].Messages()); n != 3 {
			t.Errorf("%d are stored", n)
		}
		for _, m := range h.relays[0].Messages() {
			if !bytes.Equal(m.Data, append(exact[:limit:limit], "\r\n"...)) {
				t.Errorf("stored %d bytes, %.30q", len(m.Data), m.Data)
			}
		}
		src := new(endless)
		for _, b := range []smtplb.Body{smtplb.Bytes(append(exact, 'x')), smtplb.Reader(bytes.NewReader(append(exact, 'x'))), file(append(exact, 'x')), smtplb.Reader(src)} {
			e.Body = b
			h.refused(e, "Body", "10000")
		}
		if src.read > 2*limit {
			t.Errorf("%d bytes were read of an endless source", src.read)
		}
		msg := mail.NewMsg()
		_ = msg.From("a@example.com")
		_ = msg.To("x@example.com")
		msg.SetBodyString(mail.TypeTextPlain, strings.Repeat("line\n", limit))
		var ee *smtplb.EnvelopeError
		if r, err := h.pool.Send(t.Context(), msg); r != nil || !errors.As(err, &ee) || ee.Field != "Body" || !errors.Is(err, smtplb.ErrPermanent) {
			t.Errorf("go-mail: %v, %v", r, err)
		}
		_ = msg.AttachReader("a", strings.NewReader(strings.Repeat("x", 2*limit)))
		msg.SetBodyString(mail.TypeTextPlain, "short")
		if r, err := h.pool.Send(t.Context(), msg); r != nil || !errors.As(err, &ee) || ee.Field != "Body" {
			t.Errorf("go-mail with an attachment: %v, %v", r, err)
		}
	})
	// As large as can be written, and unlimited.
	for _, limit := range []int64{math.MaxInt64, -1, 0} {
		bubble(t, func(t *testing.T) {
			h := newHouse(t, 1, func(c *smtplb.Config) { c.MaxMessageSize = limit })
			defer h.close()
			e := envelope("x@example.com")
			e.Body = smtplb.Reader(strings.NewReader(text))
			if _, err := h.pool.Deliver(t.Context(), e); err != nil {
				t.Errorf("MaxMessageSize %d: %v", limit, err)
			}
		})
	}
}

// A source is read whole before a relay is bothered, and stops with the context.
func TestSourceAndContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 1, func(c *smtplb.Config) { c.MaxMessageSize = -1 })
		defer h.close()
		ctx, cancel := context.WithCancel(t.Context())
		e := envelope("x@example.com")
		e.Body = smtplb.Reader(readerFunc(func(p []byte) (int, error) {
			if h.connections() != 0 {
				t.Error("a relay was bothered while the source was read")
			}
			cancel()
			return copy(p, "line\r\n"), nil
		}))
		r, err := h.pool.Deliver(ctx, e)
		if outcomes(r) != "deferred" || !errors.Is(err, context.Canceled) || !errors.Is(err, smtplb.ErrTemporary) || h.connections() != 0 {
			t.Errorf("%v: %v", r, err)
		}
	})
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Deliver neither changes nor keeps an envelope: many may send the same one at a time, and it is as it was afterwards.
func TestEnvelopeIsNotTouched(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h := newHouse(t, 2, nil)
		defer h.close()
		h.relays[0].On(smtptest.Rcpt).For("grey@example.com").Reply(451, "4.7.1 Greylisted")
		raw := []byte("From: a\n.dots\n..\nand no end")
		e := &smtplb.Envelope{
			ID: "id", From: "A@EXAMPLE.com", To: []string{"x@Example.COM", "grey@example.com", "x@example.com", "y@bücher.example"},
			Body: smtplb.Bytes(raw), Prefer: "r0", AtLeastOnce: true,
		}
		raw2, to2, e2 := bytes.Clone(raw), slices.Clone(e.To), *e
		e2.To, e2.Body = to2, smtplb.Bytes(raw2)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				r, err := h.pool.Deliver(t.Context(), e)
				if r == nil || r.Retry(e) == nil || r.Retry(e).Prefer != "r0" {
					t.Errorf("%v: %v", r, err)
				}
			})
		}
		wg.Wait()
		if d := cmp.Diff(to2, e.To); d != "" || !bytes.Equal(raw, raw2) || !reflect.DeepEqual(*e, e2) {
			t.Errorf("the envelope was changed: %+v\n%s", e, d)
		}
		// What came back is the caller's: to change it does not reach into the pool or the envelope.
		r, _ := h.pool.Deliver(t.Context(), e)
		again := r.Retry(e)
		again.To[0], r.Recipients[0].Addr = "changed@example.com", "changed@example.com"
		if d := cmp.Diff(to2, e.To); d != "" {
			t.Errorf("Retry shares the recipients\n%s", d)
		}
	})
}

// A message whose line ends are in order is sent as it lies in memory: it is not copied.
func TestPreparedBytesAreNotCopied(t *testing.T) {
	s := smtptest.NewServer(smtptest.WithDiscard())
	defer s.Close()
	pool, err := smtplb.New(smtplb.Config{Relays: []smtplb.Relay{{Addr: s.Addr, TLS: smtplb.TLSNone}}})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	raw := []byte(strings.Repeat("A line of a message that is as SMTP wants it. ..\r\n", 1<<20/50))
	send := func(body func() smtplb.Body) {
		t.Helper()
		e := envelope("x@example.com")
		e.Body = body()
		if _, err := pool.Deliver(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	measure := func(body func() smtplb.Body) uint64 {
		send(body)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 10 {
			send(body)
		}
		runtime.ReadMemStats(&after)
		return (after.TotalAlloc - before.TotalAlloc) / 10
	}
	if n := measure(func() smtplb.Body { return smtplb.Bytes(raw) }); n > 200<<10 {
		t.Errorf("%d bytes were allocated for a message of %d", n, len(raw))
	}
	if n := measure(func() smtplb.Body { return smtplb.Reader(io.LimitReader(bytes.NewReader(raw), 1<<30)) }); n < uint64(len(raw)) {
		t.Errorf("%d bytes for a Reader's: this test measures nothing", n)
	}
}
