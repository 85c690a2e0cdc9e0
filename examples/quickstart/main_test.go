package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest"
)

func runDemo(ctx context.Context, t *testing.T, relays []*smtptest.Server, total int, progress io.Writer) (*report, string) {
	t.Helper()
	var out bytes.Buffer
	rep, err := demo(ctx, relays, total, &out, newProgress(progress, total))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", &out)
	return rep, out.String()
}

func testRelays(t *testing.T) []*smtptest.Server {
	relays := startRelays()
	t.Cleanup(func() {
		for _, r := range relays {
			r.Close()
		}
	})
	return relays
}

func TestDemo(t *testing.T) {
	const total = 300
	relays := testRelays(t)
	rep, out := runDemo(t.Context(), t, relays, total, io.Discard)
	if rep.sent != total || rep.accepted+rep.unknown != total || rep.unknown == 0 || rep.unknownStored == 0 {
		t.Errorf("%v; want %d sent, all accepted but a few unknown, one of them stored", rep, total)
	}
	if rep.lost != 0 || rep.duplicated != 0 || rep.failedOver == 0 {
		t.Errorf("%v; want failovers, nothing lost, nothing duplicated", rep)
	}
	if !strings.HasSuffix(out, "\n"+rep.String()+"\n") {
		t.Error("the report is not the last line")
	}
	ids := map[string]bool{}
	for _, m := range stored(relays) {
		id := m.MessageID()
		if ids[id] {
			t.Errorf("%s is stored twice", id)
		}
		ids[id] = true
		want := 1
		if strings.HasSuffix(id, "0@example.com>") {
			want = 3
		}
		if len(m.To) != want || !m.TLS || m.Auth != "quickstart" || m.Header.Get("Bcc") != "" || len(m.Data) < 1800 || len(m.Data) > 2400 {
			t.Errorf("%v: %d recipients, TLS %v, AUTH %q, Bcc %q, %d bytes", m, len(m.To), m.TLS, m.Auth, m.Header.Get("Bcc"), len(m.Data))
		}
	}
	if n := len(ids); n != rep.accepted+rep.unknownStored {
		t.Errorf("%d messages stored; %v", n, rep)
	}
}

// TestDemoNotices: relays that lose or duplicate mail are found out.
func TestDemoNotices(t *testing.T) {
	t.Run("loss", func(t *testing.T) {
		relays := testRelays(t)
		relays[0].On(smtptest.EndOfData).Nth(7).Reply(250, "2.0.0 Ok: queued as NOWHERE").Unstored()
		if rep, out := runDemo(t.Context(), t, relays, 100, io.Discard); rep.lost == 0 || rep.duplicated != 0 || !strings.Contains(out, "lost: <invoice-") {
			t.Errorf("%v", rep)
		}
	})
	t.Run("duplicate", func(t *testing.T) {
		relays := testRelays(t)
		// Another relay takes these again. They are several, and early, as that relay may be the one that is killed.
		relays[0].On(smtptest.EndOfData).Nth(2).Times(5).Reply(452, "4.3.1 Insufficient system storage").Stored()
		if rep, out := runDemo(t.Context(), t, relays, 100, io.Discard); rep.duplicated == 0 || rep.lost != 0 || !strings.Contains(out, "duplicated: <invoice-") {
			t.Errorf("%v", rep)
		}
	})
}

func TestDemoInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	rep, out := runDemo(ctx, t, testRelays(t), 300, writerFunc(cancel)) // at 10 %
	if rep.sent == 0 || rep.sent == 300 || rep.lost != 0 || rep.duplicated != 0 {
		t.Errorf("%v", rep)
	}
	if !strings.Contains(out, fmt.Sprintf("Interrupted: %d of 300 messages were not begun.", 300-rep.sent)) {
		t.Error("it does not say that it was interrupted")
	}
}

type writerFunc func()

func (f writerFunc) Write(p []byte) (int, error) {
	f()
	return len(p), nil
}

func TestAudit(t *testing.T) {
	rcpt := func(addr string, o smtplb.Outcome) smtplb.RecipientResult {
		return smtplb.RecipientResult{Addr: addr, Outcome: o, Relay: "relay-a"}
	}
	message := func(id string, to ...string) *smtptest.Message {
		return &smtptest.Message{To: to, Header: map[string][]string{"Message-Id": {id}}}
	}
	const ok, unknown, deferred, failed = smtplb.Accepted, smtplb.Unknown, smtplb.Deferred, smtplb.Failed
	for _, tt := range []struct {
		name     string
		reported []smtplb.RecipientResult
		stored   []*smtptest.Message
		want     report
	}{
		{"in order", []smtplb.RecipientResult{rcpt("x", ok), rcpt("y", ok)}, []*smtptest.Message{message("<1>", "x", "y"), message("<2>", "x")}, report{sent: 1, accepted: 1}},
		{"in two parts", []smtplb.RecipientResult{rcpt("x", ok), rcpt("y", ok)}, []*smtptest.Message{message("<1>", "x"), message("<1>", "y")}, report{sent: 1, accepted: 1}},
		{"lost", []smtplb.RecipientResult{rcpt("x", ok)}, []*smtptest.Message{message("<2>", "x")}, report{sent: 1, accepted: 1, lost: 1}},
		{"lost for one", []smtplb.RecipientResult{rcpt("x", ok), rcpt("y", ok)}, []*smtptest.Message{message("<1>", "y")}, report{sent: 1, accepted: 1, lost: 1}},
		{"twice", []smtplb.RecipientResult{rcpt("x", ok), rcpt("y", ok)}, []*smtptest.Message{message("<1>", "x", "y"), message("<1>", "y")}, report{sent: 1, accepted: 1, duplicated: 1}},
		{"twice, unknown", []smtplb.RecipientResult{rcpt("x", unknown)}, []*smtptest.Message{message("<1>", "x"), message("<1>", "x")}, report{sent: 1, unknown: 1, unknownStored: 1, duplicated: 1}},
		{"unknown and stored", []smtplb.RecipientResult{rcpt("x", unknown)}, []*smtptest.Message{message("<1>", "x")}, report{sent: 1, unknown: 1, unknownStored: 1}},
		{"unknown and not stored", []smtplb.RecipientResult{rcpt("x", unknown)}, nil, report{sent: 1, unknown: 1}},
		{"one unknown", []smtplb.RecipientResult{rcpt("x", ok), rcpt("y", unknown), rcpt("z", failed)}, []*smtptest.Message{message("<1>", "x")}, report{sent: 1, unknown: 1}},
		{"deferred", []smtplb.RecipientResult{rcpt("x", deferred)}, nil, report{sent: 1, deferred: 1}},
		{"deferred but stored", []smtplb.RecipientResult{rcpt("x", deferred)}, []*smtptest.Message{message("<1>", "x")}, report{sent: 1, deferred: 1, deferredStored: 1}},
		{"one failed", []smtplb.RecipientResult{rcpt("x", ok), rcpt("y", failed)}, []*smtptest.Message{message("<1>", "x")}, report{sent: 1, failed: 1}},
		{"not sendable", nil, nil, report{sent: 1, failed: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := result{err: io.ErrUnexpectedEOF}
			if tt.reported != nil {
				r.receipt = &smtplb.Receipt{ID: "<1>", Recipients: tt.reported}
				if r.receipt.Count(ok) == len(tt.reported) {
					r.err = nil
				}
			}
			got := audit([]result{r}, tt.stored)
			if len(got.problems) != tt.want.lost+tt.want.duplicated {
				t.Errorf("problems: %q", got.problems)
			}
			got.problems = nil
			if diff := cmp.Diff(&tt.want, got, cmp.AllowUnexported(report{})); diff != "" {
				t.Error("-want +got", diff)
			}
		})
	}
}

func TestReportLine(t *testing.T) {
	rep := report{sent: 3000, accepted: 2999, unknown: 1, unknownStored: 1, failedOver: 12, elapsed: 1_940_000_000}
	if got, want := rep.String(), "sent 3000 · accepted 2999 · unknown 1 (stored 1) · lost 0 · duplicated 0 · failed over 12 · 1.9 s"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	rep.deferred, rep.failed = 3, 4
	if got, want := rep.String(), " · deferred 3 (stored 0) · failed 4 · lost 0"; !strings.Contains(got, want) {
		t.Errorf("got %s, without %s", got, want)
	}
}

func TestProgressLines(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out, 30)
	for i := range 30 {
		p.step()
		if i == 9 {
			p.say("a relay dies")
		}
	}
	p.finish()
	if lines := strings.Split(out.String(), "\n"); len(lines) != 12 || lines[3] != " 33 %  a relay dies" || lines[10] != "100 %  30 of 30 messages" {
		t.Errorf("%s", &out)
	}
	if strings.ContainsAny(out.String(), "\r█") {
		t.Error("a bar where there is no terminal")
	}
}

func TestProgressBar(t *testing.T) {
	var out bytes.Buffer
	p := &progress{w: &out, bar: true, total: 30}
	for range 10 {
		p.step()
	}
	p.say("a relay dies")
	p.finish()
	s := out.String()
	if !strings.Contains(s, strings.Repeat("█", 13)+strings.Repeat("░", 27)+"  10 of 30 messages") || strings.Count(s, "\n") != 1 {
		t.Errorf("%q", s)
	}
	if last := s[strings.LastIndexByte(strings.TrimSuffix(s, "\r"), '\r'):]; strings.TrimSpace(last) != "" {
		t.Errorf("the bar stands there after the end: %q", last)
	}
}

func TestStripBcc(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"none", "From: a\r\n\r\nBcc: body\r\n", "From: a\r\n\r\nBcc: body\r\n"},
		{"one", "From: a\r\nBcc: x@example.com\r\nTo: b\r\n\r\nhi", "From: a\r\nTo: b\r\n\r\nhi"},
		{"first", "Bcc: x\r\nTo: b\r\n\r\nhi", "To: b\r\n\r\nhi"},
		{"last", "To: b\r\nBcc: x\r\n\r\nhi", "To: b\r\n\r\nhi"},
		{"case", "bCC: x\nBCC: y\nTo: b\n\nhi", "To: b\n\nhi"},
		{"continued", "To: b,\n c\nBcc: x,\n\ty,\n z\nSubject: s\n t\n\nhi\n", "To: b,\n c\nSubject: s\n t\n\nhi\n"},
		{"continued by a blank line", "Bcc: x,\n \n y\nTo: b\n\nhi", "To: b\n\nhi"},
		{"blank before the colon", "Bcc \t: x\nTo: b\n\nhi", "To: b\n\nhi"},
		{"resent", "Resent-Bcc: x\nTo: b\n\nhi", "To: b\n\nhi"},
		{"similar names", "X-Bcc: x\nBccs: y\nBcc\nTo: Bcc: z\n\nhi", "X-Bcc: x\nBccs: y\nBcc\nTo: Bcc: z\n\nhi"},
		{"empty", "Bcc:\nTo: b\n\nhi", "To: b\n\nhi"},
		{"body", "To: b\n\nBcc: x\n y\n\nBcc: z\n", "To: b\n\nBcc: x\n y\n\nBcc: z\n"},
		{"no body", "To: b\nBcc: x", "To: b\n"},
		{"nothing else", "Bcc: x\n", ""},
		{"no header", "\nBcc: x\n", "\nBcc: x\n"},
		{"nothing", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := []byte(tt.in)
			if got := string(stripBcc(in)); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if string(in) != tt.in {
				t.Error("the message itself was changed")
			}
		})
	}
}

// own runs the program on a folder with these files.
func own(t *testing.T, files map[string]string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out, errs bytes.Buffer
	status = run(t.Context(), append([]string{"-eml", dir}, args...), &out, &errs)
	t.Logf("%s%s", &out, &errs)
	return status, out.String(), errs.String()
}

func recipients(servers ...*smtptest.Server) (list []string) {
	for _, m := range stored(servers) {
		for _, to := range m.To {
			list = append(list, m.From+" → "+to)
		}
	}
	slices.Sort(list)
	return list
}

func TestOwnMail(t *testing.T) {
	a := smtptest.NewServer(smtptest.WithAuth("me", "p@ss"))
	defer a.Close()
	b := smtptest.NewServer()
	defer b.Close()
	urlA := "smtp://me:p%40ss@" + a.Addr + "?tls=none&name=first"
	files := map[string]string{
		"one.eml":   "From: Me <me@example.com>\nTo: x@example.org\nCc: \"y\" <y@example.org>\nBcc: hidden@example.org,\n\tz@example.org\nSubject: 1\n\nhello\n",
		"two.EML":   "\ufeffFrom: =?windows-1252?Q?J=FCrgen?= <j@example.com>\r\nTo: undisclosed-recipients:;\r\nBcc: \"odd name\"@example.org\r\n\r\nhello\r\n",
		"other.txt": "To: nobody@example.com\n\nnot mail\n",
	}
	status, out, _ := own(t, files, "-relay", urlA, "-relay", b.URL(), "-n", "1")
	want := []string{
		`j@example.com → "odd name"@example.org`,
		"me@example.com → hidden@example.org", "me@example.com → x@example.org", "me@example.com → y@example.org", "me@example.com → z@example.org",
	}
	if diff := cmp.Diff(want, recipients(a, b)); diff != "" || status != 0 {
		t.Errorf("status %d, -want +got %s", status, diff)
	}
	for _, m := range stored([]*smtptest.Server{a, b}) {
		if bytes.Contains(m.Data, []byte("Bcc")) || bytes.Contains(m.Data, []byte("hidden")) || bytes.Contains(m.Data, []byte("odd")) {
			t.Errorf("a Bcc field went out:\n%s", m.Data)
		}
	}
	if len(a.Messages()) != 1 || len(b.Messages()) != 1 {
		t.Errorf("%d and %d messages; want one through each relay", len(a.Messages()), len(b.Messages()))
	}
	if !strings.Contains(out, "one.eml: accepted for 4 of 4 recipients by ") ||
		!strings.Contains(out, "messages 2 · recipients 5 · accepted 5 · failed 0 · deferred 0 · unknown 0 · ") {
		t.Error("outcome lines are missing")
	}
}

func TestOwnMailTo(t *testing.T) {
	s := smtptest.NewServer()
	defer s.Close()
	files := map[string]string{"a.eml": "From: a@example.com\nTo: not@example.com\nBcc: nor@example.com\n\nhello\n", "b.eml": "no header at all\n\nhello\n"}
	status, _, _ := own(t, files, "-relay", s.URL(), "-to", "Me <me@example.org>", "-to", "you@example.org", "-from", "<>")
	want := []string{" → me@example.org", " → me@example.org", " → you@example.org", " → you@example.org"}
	if diff := cmp.Diff(want, recipients(s)); diff != "" || status != 0 {
		t.Errorf("status %d, -want +got %s", status, diff)
	}
}

func TestOwnMailNotAccepted(t *testing.T) {
	s := smtptest.NewServer()
	defer s.Close()
	s.On(smtptest.Rcpt).For("gone@example.org").Reply(550, "5.1.1 No \x1b[31m such user")
	s.On(smtptest.EndOfData).For("silence@example.org").DropUnstored()
	const from = "From: me@example.com\n"
	for _, tt := range []struct{ name, eml, want string }{
		{"one of two", from + "To: gone@example.org, here@example.org\n\nhi\n", "m.eml: accepted for 1 of 2 recipients by "},
		{"refused", from + "To: gone@example.org\n\nhi\n", "m.eml: not accepted\n    gone@example.org: failed: " + s.Addr + ": rcpt: 550 5.1.1 No"},
		{"unknown", from + "To: silence@example.org\n\nhi\n", "Unknown: the connection broke"},
		{"no recipient", from + "To:\n\nhi\n", "m.eml: not sent: its header has no To, Cc or Bcc address"},
		{"no sender", "To: x@example.org\n\nhi\n", "m.eml: not sent: its header has no From address"},
		{"bad recipient", from + "To: x@\n\nhi\n", "m.eml: not sent: its To field can't be read"},
		{"no header", "hello\n", "m.eml: not sent: its header can't be read"},
		{"empty", "", "m.eml: not sent: its header can't be read"},
		{"long line", from + "To: x@example.org\n\n" + strings.Repeat("x", 999) + "\n", "m.eml: not sent: Envelope.Body: has a line of 999 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, out, _ := own(t, map[string]string{"m.eml": tt.eml}, "-relay", s.URL(), "-timeout", "5s")
			if status != exitBad || !strings.Contains(out, tt.want) {
				t.Errorf("status %d; want %d, and %q in the output", status, exitBad, tt.want)
			}
			if strings.Contains(out, "\x1b") {
				t.Error("a relay's escape sequence reached the terminal")
			}
		})
	}
}

func TestFlags(t *testing.T) {
	eml := t.TempDir()
	if err := os.WriteFile(filepath.Join(eml, "a.eml"), []byte("From: a@example.com\n\nhi\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const relay = "smtp://u:secret@127.0.0.1:1"
	for _, tt := range []struct {
		args string
		want string
	}{
		{"-relay " + relay, "-eml DIR is missing"},
		{"-eml " + eml, "-relay URL is missing"},
		{"-to a@example.com", "-to is for your own mail: -relay URL and -eml DIR are missing"},
		{"-relay http://u:secret@host -eml " + eml, "-relay: relay URL"},
		{"-relay smtp://u:secret%@host -eml " + eml, "-relay: relay URL"},
		{"-relay " + relay + " -relay " + relay + " -eml " + eml, "is the name of Relays[0] too"},
		{"-relay " + relay + " " + relay + " -eml " + eml, "belongs to no flag"},
		{"-relay " + relay + " -eml " + eml + " -to nobody", `-to "nobody": `},
		{"-relay " + relay + " -eml " + eml + " -from nobody", `-from "nobody": `},
		{"-relay " + relay + " -eml " + eml + " -timeout 30", "missing unit"},
		{"-relay " + relay + " -eml " + eml + " -timeout 0s", "-timeout is 0s"},
		{"-relay " + relay + " -eml " + eml + " -n 0", "-n is 0"},
		{"-relay " + relay + " -eml " + t.TempDir(), "there is no *.eml file in"},
		{"-relay " + relay + " -eml " + eml + "/none", "-eml: open "},
		{"-relays " + relay, "not defined: -relays"},
		{relay, "belongs to no flag"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			var out, errs bytes.Buffer
			if status := run(t.Context(), strings.Fields(tt.args), &out, &errs); status != exitUsage {
				t.Errorf("status %d, want %d", status, exitUsage)
			}
			if got := errs.String(); !strings.Contains(got, tt.want) || !strings.Contains(got, "\nusage: quickstart") || strings.Contains(got, "secret") {
				t.Errorf("got %s, want %q, a usage line and no password", got, tt.want)
			}
			if out.Len() > 0 {
				t.Errorf("on stdout: %s", &out)
			}
		})
	}
	var out, errs bytes.Buffer
	if status := run(t.Context(), []string{"-h"}, &out, &errs); status != 0 || !strings.Contains(out.String(), "-relay URL") || errs.Len() > 0 {
		t.Errorf("-h: status %d\n%s%s", status, &out, &errs)
	}
}
