package reply_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/smtplb/smtplb/internal/reply"
)

// readAll reads what chunks hold, the buffer being of that size, and describes how it ended.
func readAll(size int, chunks ...string) (replies []reply.Reply, end string) {
	src := make([]io.Reader, len(chunks))
	for i, c := range chunks {
		src[i] = strings.NewReader(c)
	}
	r := new(reply.Reader)
	r.Reset(io.MultiReader(src...), make([]byte, size))
	for {
		x, err := r.Read()
		var m *reply.MalformedError
		switch {
		case err == nil:
			replies = append(replies, x)
		case errors.As(err, &m):
			return replies, m.Reason // how much of the line had come may differ
		default:
			return replies, err.Error()
		}
	}
}

// serialise writes a reply with the least line ends that give the same text.
func serialise(r reply.Reply) string {
	var b strings.Builder
	lines := strings.Split(r.Text, "\n")
	for i, l := range lines {
		sep := "-"
		if i == len(lines)-1 {
			sep = " "
			if l == "" {
				sep = ""
			}
		}
		fmt.Fprintf(&b, "%d%s%s", r.Code, sep, l)
		if strings.HasSuffix(l, "\r") {
			b.WriteByte('\r')
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func FuzzRead(f *testing.F) {
	for _, s := range []string{
		"", "2", "250\r\n", "250 \n", "250 2.1.0 Ok\r\n", "250-a\r\n250 b\r\n", "250-a\r\n550 b\r\n", "250-\n250-\n250\n", "250\rx\r\n",
		"220 mx.example ESMTP\r\n250-mx.example\r\n250-PIPELINING\r\n250 SIZE 35882577\r\n354 go\r\n421 4.7.0 bye", "250 a\r\r\n", "SSH-2.0-x\r\n",
		"550-5.7.1 \x00\x1b[2J\xff\xfe\r\n550 5.7.1 \u202e\r\n", "452 5.5.3 x\r\n", "550 5.1.1234 x\n", "220 **2****0*\r\n", "599 5.999.999\n",
		// Real servers: Postfix, Exchange, Gmail, Exim, a relay that says why, one that goes in the same breath, and a middlebox.
		"550-5.1.1 <x@example.com>: Recipient address rejected: User unknown\r\n550 5.1.1 in local recipient table\r\n", "220 EXCH01.example.com Microsoft ESMTP MAIL Service ready at Wed, 1 Jan 2025 00:00:00 +0000\r\n",
		"550-5.7.26 Your email has been blocked because the sender is unauthenticated.\r\n550-5.7.26  \r\n550 5.7.26  https://support.google.com/mail 0-20020a1c.5 - gsmtp\r\n", "250 OK id=1rABCD-000000-00\r\n",
		"421-4.7.0 [192.0.2.1      15] Our system has detected an unusual rate\r\n421 4.7.0 of mail. - gsmtp\r\n", "250 2.0.0 Ok: queued as 4F\r\n421 4.4.2 bye\r\n", "554 SMTP synchronization error\r\n554-\r\n554 \r\n",
		"220 go\r\n250-injected\r\n250 AUTH PLAIN\r\n", "250-SIZE\r250 AUTH\n", "235\r\n", "334 \r\n", "334\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n", "\x15\x03\x01\x00\x02\x02\x46", "\xef\xbb\xbf220 hi\r\n", "-ERR unknown command\r\n", "* BAD\r\n",
		"250_a\r\n", "250\ta\r\n", "25O a\r\n", "0250 a\r\n", "+50 a\r\n", "250-a\r\n250\r\n", "250-a\r\n25", "600 a\r\n", "100 a\r\n", "\u0662\u0665\u0660 a\r\n",
		"250 " + strings.Repeat("a", 2042) + "\r\n", "250 " + strings.Repeat("a", 2043) + "\r\n", strings.Repeat("250-a\r\n", 128) + "250 a\r\n",
	} {
		f.Add(s, uint16(len(s)/2), uint16(16))
	}
	f.Fuzz(func(t *testing.T, in string, at, size uint16) {
		in = in[:min(len(in), 80<<10)] // longer than two replies can be
		want, wantEnd := readAll(4096, in)
		k := min(int(at), len(in))
		for _, got := range []func() ([]reply.Reply, string){
			func() ([]reply.Reply, string) { return readAll(4096, in[:k], in[k:]) },
			func() ([]reply.Reply, string) { return readAll(int(size%5000), in[:k], in[k:]) },
		} {
			replies, end := got()
			if end != wantEnd || len(replies) != len(want) {
				t.Fatalf("split at %d: %d replies and %q, want %d and %q", k, len(replies), end, len(want), wantEnd)
			}
			for i := range want {
				if replies[i] != want[i] {
					t.Fatalf("split at %d: reply %d is %+v, want %+v", k, i, replies[i], want[i])
				}
			}
		}
		for _, x := range want {
			checkReply(t, x)
			if again, end := readAll(4096, serialise(x)); len(again) != 1 || again[0] != x || end != io.EOF.Error() {
				t.Fatalf("%+v became %+v (%s) on its way through %q", x, again, end, serialise(x))
			}
		}
	})
}

func checkReply(t *testing.T, x reply.Reply) {
	t.Helper()
	if x.Code < 200 || x.Code > 599 {
		t.Fatalf("code %d", x.Code)
	}
	if len(x.Text) > 32<<10 || strings.Count(x.Text, "\n") >= 128 {
		t.Fatalf("a text of %d bytes, %d lines", len(x.Text), strings.Count(x.Text, "\n")+1)
	}
	for l := range strings.SplitSeq(x.Text, "\n") {
		if len(l) > 2048-5 {
			t.Fatalf("a line of %d bytes", len(l))
		}
	}
	if e := x.Enhanced; !e.IsZero() {
		if int(e.Class) != x.Code/100 || e.Subject > 999 || e.Detail > 999 {
			t.Fatalf("enhanced code %v in a reply with code %d", e, x.Code)
		}
	}
	checkString(t, x)
	checkQueueID(t, x.Text)
	_ = reply.MaskedBanner(x.Text)
}

func checkString(t *testing.T, x reply.Reply) {
	t.Helper()
	s := x.String()
	if len(s) > 512 || !utf8.ValidString(s) {
		t.Fatalf("String: %d bytes: %q", len(s), s)
	}
	for _, c := range s {
		if c < ' ' || c >= 0x7f && c < 0xa0 || c == '\u2028' || c == '\u202e' {
			t.Fatalf("String: %q in %q", c, s)
		}
	}
}

func checkQueueID(t *testing.T, text string) {
	t.Helper()
	id := reply.QueueID(text)
	if len(id) > 256 || !strings.Contains(text, id) {
		t.Fatalf("queue ID %q in %q", id, text)
	}
	for _, c := range []byte(id) {
		if c <= ' ' || c >= 0x7f {
			t.Fatalf("queue ID %q in %q", id, text)
		}
	}
}

func FuzzQueueID(f *testing.F) {
	for _, q := range queueIDs {
		f.Add(q.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		checkQueueID(t, text)
		checkString(t, reply.Reply{Code: 250, Text: text})
	})
}
