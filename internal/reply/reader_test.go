package reply_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/smtplb/smtplb/internal/reply"
)

func newReader(src io.Reader) *reply.Reader {
	r := new(reply.Reader)
	r.Reset(src, make([]byte, 4096))
	return r
}

func TestRead(t *testing.T) {
	none := reply.Enhanced{}
	tests := []struct {
		name, in string
		want     reply.Reply
	}{
		{"simple", "250 2.1.0 Ok\r\n", reply.Reply{Code: 250, Enhanced: reply.Enhanced{Class: 2, Subject: 1}, Text: "2.1.0 Ok"}},
		{"LF alone", "250 Ok\n", reply.Reply{Code: 250, Text: "Ok"}},
		{"bare code", "250\r\n", reply.Reply{Code: 250}},
		{"bare code, LF", "250\n", reply.Reply{Code: 250}},
		{"code and blank", "250 \r\n", reply.Reply{Code: 250}},
		{"only one CR belongs to the line's end", "250 Ok\r\r\n", reply.Reply{Code: 250, Text: "Ok\r"}},
		{"blanks are text", "250   Ok \r\n", reply.Reply{Code: 250, Text: "  Ok "}},
		{"lowest", "200 x\r\n", reply.Reply{Code: 200, Text: "x"}},
		{"highest", "599 x\r\n", reply.Reply{Code: 599, Text: "x"}},
		{"data", "354 End data with <CR><LF>.<CR><LF>\r\n", reply.Reply{Code: 354, Text: "End data with <CR><LF>.<CR><LF>"}},
		{"control bytes stay", "550 a\x00b\x1b[31m\rc\xff\r\n", reply.Reply{Code: 550, Text: "a\x00b\x1b[31m\rc\xff"}},
		{"EHLO", "250-mx.example Hello\r\n250-PIPELINING\r\n250-SIZE 35882577\r\n250 SMTPUTF8\r\n",
			reply.Reply{Code: 250, Text: "mx.example Hello\nPIPELINING\nSIZE 35882577\nSMTPUTF8"}},
		{"mixed line ends", "250-a\n250-b\r\n250 c\n", reply.Reply{Code: 250, Text: "a\nb\nc"}},
		{"empty lines", "250-\r\n250-\r\n250\r\n", reply.Reply{Code: 250, Text: "\n\n"}},
		{"ends with a bare code", "250-a\r\n250\r\n", reply.Reply{Code: 250, Text: "a\n"}},
		{"enhanced on each line", "550-5.7.1 a\r\n550 5.7.26 b\r\n", reply.Reply{Code: 550, Enhanced: reply.Enhanced{Class: 5, Subject: 7, Detail: 1}, Text: "5.7.1 a\n5.7.26 b"}},
		{"enhanced on a later line", "550-sorry\r\n550 5.7.26 b\r\n", reply.Reply{Code: 550, Enhanced: reply.Enhanced{Class: 5, Subject: 7, Detail: 26}, Text: "sorry\n5.7.26 b"}},
		{"enhanced of another class is none", "452 5.5.3 too many\r\n", reply.Reply{Code: 452, Enhanced: none, Text: "5.5.3 too many"}},
		{"the first of the right class wins", "451-5.1.1 a\r\n451 4.7.650 b\r\n", reply.Reply{Code: 451, Enhanced: reply.Enhanced{Class: 4, Subject: 7, Detail: 650}, Text: "5.1.1 a\n4.7.650 b"}},
		{"enhanced alone", "221 2.0.0\r\n", reply.Reply{Code: 221, Enhanced: reply.Enhanced{Class: 2}, Text: "2.0.0"}},
		{"enhanced and tab", "250 2.0.0\tOk\r\n", reply.Reply{Code: 250, Enhanced: reply.Enhanced{Class: 2}, Text: "2.0.0\tOk"}},
		{"three digits each", "550 5.123.456 x\r\n", reply.Reply{Code: 550, Enhanced: reply.Enhanced{Class: 5, Subject: 123, Detail: 456}, Text: "5.123.456 x"}},
		{"four digits are none", "550 5.1.1234 x\r\n", reply.Reply{Code: 550, Text: "5.1.1234 x"}},
		{"four digits in the middle are none", "550 5.1234.1 x\r\n", reply.Reply{Code: 550, Text: "5.1234.1 x"}},
		{"a colon behind it makes it none", "550 5.1.1: x\r\n", reply.Reply{Code: 550, Text: "5.1.1: x"}},
		{"an address is none", "550 5.1.1.1 x\r\n", reply.Reply{Code: 550, Text: "5.1.1.1 x"}},
		{"not at the start", "550  5.1.1 x\r\n", reply.Reply{Code: 550, Text: " 5.1.1 x"}},
		{"no detail", "550 5.1. x\r\n", reply.Reply{Code: 550, Text: "5.1. x"}},
		{"no subject", "550 5..1 x\r\n", reply.Reply{Code: 550, Text: "5..1 x"}},
		{"all nines", "599 5.999.999 x\r\n", reply.Reply{Code: 599, Enhanced: reply.Enhanced{Class: 5, Subject: 999, Detail: 999}, Text: "5.999.999 x"}},
		{"it breaks off", "550 5.123\r\n", reply.Reply{Code: 550, Text: "5.123"}},
		{"not a dot", "550 5.1x2 y\r\n", reply.Reply{Code: 550, Text: "5.1x2 y"}},
		{"not a dot in front", "550 5x1.2 y\r\n", reply.Reply{Code: 550, Text: "5x1.2 y"}},
		{"no class 3", "354 3.0.0 go\r\n", reply.Reply{Code: 354, Text: "3.0.0 go"}},
		{"longest line", "250 " + strings.Repeat("a", 2042) + "\r\n", reply.Reply{Code: 250, Text: strings.Repeat("a", 2042)}},
		{"longest line, LF", "250 " + strings.Repeat("a", 2043) + "\n", reply.Reply{Code: 250, Text: strings.Repeat("a", 2043)}},
		{"most lines", strings.Repeat("250-a\r\n", 127) + "250 a\r\n", reply.Reply{Code: 250, Text: strings.Repeat("a\n", 127) + "a"}},
		{"longest reply", strings.Repeat("250-"+strings.Repeat("b", 1018)+"\r\n", 31) + "250 " + strings.Repeat("b", 1018) + "\r\n",
			reply.Reply{Code: 250, Text: strings.Repeat(strings.Repeat("b", 1018)+"\n", 31) + strings.Repeat("b", 1018)}},
	}
	for _, tt := range tests {
		for _, size := range []int{0, 1, 16, 100, 4096} {
			r := new(reply.Reader)
			r.Reset(strings.NewReader(tt.in), make([]byte, size))
			got, err := r.Read()
			if err != nil {
				t.Errorf("%s, buffer of %d: %v", tt.name, size, err)
				continue
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("%s, buffer of %d (-want +got):\n%s", tt.name, size, diff)
			}
			if n := r.Buffered(); n != 0 {
				t.Errorf("%s: %d bytes left", tt.name, n)
			}
			if _, err := r.Read(); err != io.EOF {
				t.Errorf("%s: at the end: %v, want io.EOF", tt.name, err)
			}
		}
	}
}

func TestReadMalformed(t *testing.T) {
	const noCode, differs, behind = "no code from 200 to 599", "the code differs between lines", "no blank or hyphen behind the code"
	tests := []struct{ name, in, reason, excerpt string }{
		{"SSH", "SSH-2.0-OpenSSH_9.6\r\n", noCode, `"SSH-2.0-OpenSSH_9.6\r\n"`},
		{"HTTP", "HTTP/1.1 400 Bad Request\r\n", noCode, `"HTTP/1.1 400 Bad Request\r\n"`},
		{"TLS alert", "\x15\x03\x01\x00\x02\x02\x46", noCode, `"\x15\x03\x01\x00\x02\x02F"`},
		{"a blank line", "\r\n", noCode, `"\r\n"`},
		{"1xx", "199 x\r\n", noCode, `"199 x\r\n"`},
		{"6xx", "600 x\r\n", noCode, `"600 x\r\n"`},
		{"two digits", "25\r\n", noCode, `"25\r\n"`},
		{"a leading blank", " 250 ok\r\n", noCode, `" 250 ok\r\n"`},
		{"a sign", "2+0 ok\r\n", noCode, `"2+0 ok\r\n"`},
		{"four digits", "2500 ok\r\n", behind, `"2500 ok\r\n"`},
		{"a tab", "250\tok\r\n", behind, `"250\tok\r\n"`},
		{"an underscore", "250_ok\r\n", behind, `"250_ok\r\n"`},
		{"a CR that ends no line", "250\rok\r\n", behind, `"250\rok\r\n"`},
		{"the code changes to a refusal", "250-a\r\n550 b\r\n", differs, `"550 b\r\n"`},
		{"the code changes to a success", "550-a\r\n250 b\r\n", differs, `"250 b\r\n"`},
		{"the code changes in its last digit", "250-a\r\n251 b\r\n", differs, `"251 b\r\n"`},
		{"no code on the second line", "250-a\r\nb\r\n", differs, `"b\r\n"`},
		{"a line too long", "250 " + strings.Repeat("a", 2043) + "\r\n", "the line is too long", `"250 ` + strings.Repeat("a", 74) + `"`},
		{"an endless line", "220 " + strings.Repeat("a", 1<<20), "the line is too long", `"220 ` + strings.Repeat("a", 74) + `"`},
		{"too many lines", strings.Repeat("250-a\r\n", 129), "the reply has too many lines", `"250-a"`},
		{"a reply too long", strings.Repeat("250-"+strings.Repeat("b", 1018)+"\r\n", 31) + "250 " + strings.Repeat("b", 1019) + "\r\n",
			"the reply is too long", `"250 ` + strings.Repeat("b", 74) + `"`},
		{"an excerpt of escapes", "250 " + strings.Repeat("\x01", 3000), "the line is too long", `"250 ` + strings.Repeat(`\x01`, 18) + `"`},
		{"an excerpt of escapes that fills its bound less one", "250 x" + strings.Repeat("\x01", 3000), "the line is too long", `"250 x` + strings.Repeat(`\x01`, 18) + `"`},
	}
	for _, tt := range tests {
		for _, size := range []int{0, 7, 4096} {
			r := new(reply.Reader)
			r.Reset(strings.NewReader(tt.in), make([]byte, size))
			_, err := r.Read()
			var m *reply.MalformedError
			if !errors.As(err, &m) {
				t.Errorf("%s: %v, want a *MalformedError", tt.name, err)
				continue
			}
			if m.Reason != tt.reason {
				t.Errorf("%s: reason %q, want %q", tt.name, m.Reason, tt.reason)
			}
			if size == 4096 && m.Excerpt != tt.excerpt { // with smaller buffers less has come by the time it is refused
				t.Errorf("%s: excerpt %s, want %s", tt.name, m.Excerpt, tt.excerpt)
			}
			if len(m.Excerpt) > 80 {
				t.Errorf("%s: excerpt of %d bytes", tt.name, len(m.Excerpt))
			}
			if want := "malformed reply: " + m.Reason + ": " + m.Excerpt; err.Error() != want {
				t.Errorf("%s: %q, want %q", tt.name, err, want)
			}
			if _, again := r.Read(); again != err {
				t.Errorf("%s: the next Read: %v, want the same error", tt.name, again)
			}
		}
	}
	if got := (&reply.MalformedError{Reason: "x"}).Error(); got != "malformed reply: x" {
		t.Errorf("without an excerpt: %q", got)
	}
}

// What can't be an SMTP reply is refused before its line has ended: a peer that waits for us would cost the whole timeout.
func TestReadRefusesEarly(t *testing.T) {
	for _, in := range []string{"\x16", "H", "2x", "25x", "250x", "250\rx", "250-a\r\n3", "250-a\r\n26", "250-a\r\n251"} {
		r := newReader(io.MultiReader(strings.NewReader(in), iotest.ErrReader(errors.New("waited for more"))))
		_, err := r.Read()
		var m *reply.MalformedError
		if !errors.As(err, &m) {
			t.Errorf("%q: %v, want a *MalformedError", in, err)
		}
	}
}

func TestReadSeveral(t *testing.T) {
	const in = "250 2.1.0 Ok\r\n550-5.1.1 no\r\n550 5.1.1 such user\r\n354 go\r\n421"
	r := newReader(strings.NewReader(in))
	left := []int{len(in) - 14, 11, 3}
	for i, want := range []string{"250 2.1.0 Ok", "550 5.1.1 no; 5.1.1 such user", "354 go"} {
		got, err := r.Read()
		if err != nil || got.String() != want {
			t.Fatalf("reply %d: %q, %v, want %q", i, got, err, want)
		}
		if n := r.Buffered(); n != left[i] {
			t.Errorf("after reply %d: %d bytes buffered, want %d", i, n, left[i])
		}
	}
	for range 2 {
		if _, err := r.Read(); err != io.ErrUnexpectedEOF {
			t.Fatalf("a reply cut short: %v, want io.ErrUnexpectedEOF", err)
		}
	}
}

// The texts of earlier replies stay as they were although their buffer is used again.
func TestReadTextsAreCopies(t *testing.T) {
	long := strings.Repeat("long", 100)
	src := strings.NewReader("250 one\r\n250-" + long + "\r\n250 two\r\n250 xxxx\r\n250-yy\r\n250 " + strings.Repeat("y", 400) + "\r\n")
	buf := make([]byte, 512)
	r := new(reply.Reader)
	r.Reset(src, buf)
	var got []string
	for {
		x, err := r.Read()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, x.Text)
		if r.Buffered() == 0 {
			for i := range buf {
				buf[i] = '!'
			}
		}
	}
	want := []string{"one", long + "\ntwo", "xxxx", "yy\n" + strings.Repeat("y", 400)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestReadErrors(t *testing.T) {
	boom := errors.New("boom")
	t.Run("EOF between replies", func(t *testing.T) {
		if _, err := newReader(strings.NewReader("")).Read(); err != io.EOF {
			t.Errorf("%v, want io.EOF", err)
		}
	})
	for _, in := range []string{"2", "250", "250 ok", "250 ok\r", "250-a\r\n", "250-a\r\n250 b\r"} {
		if _, err := newReader(strings.NewReader(in)).Read(); err != io.ErrUnexpectedEOF {
			t.Errorf("%q: %v, want io.ErrUnexpectedEOF", in, err)
		}
		failed := false
		once := readerFunc(func([]byte) (int, error) {
			if failed {
				return 0, io.EOF // the MultiReader goes on
			}
			failed = true
			return 0, boom
		})
		r := newReader(io.MultiReader(strings.NewReader(in), once, strings.NewReader("0 0 later\r\n250 later\r\n")))
		if _, err := r.Read(); err != boom {
			t.Errorf("%q: %v, want the source's error", in, err)
		}
		if got, err := r.Read(); err != boom { // or the rest of one reply would be taken for another
			t.Errorf("%q: after an error in the middle: %v, %v", in, got, err)
		}
	}
	t.Run("an error that comes with the last bytes", func(t *testing.T) {
		r := newReader(iotest.DataErrReader(strings.NewReader("250 a\r\n250 b\r\n")))
		for _, want := range []string{"250 a", "250 b"} {
			if got, err := r.Read(); err != nil || got.String() != want {
				t.Fatalf("%q, %v, want %q", got, err, want)
			}
		}
		if _, err := r.Read(); err != io.EOF {
			t.Errorf("%v, want io.EOF", err)
		}
	})
	t.Run("no progress", func(t *testing.T) {
		if _, err := newReader(readerFunc(func([]byte) (int, error) { return 0, nil })).Read(); err != io.ErrNoProgress {
			t.Errorf("%v, want io.ErrNoProgress", err)
		}
	})
	t.Run("a source that lies", func(t *testing.T) {
		for _, n := range []int{-1, 5000} {
			if _, err := newReader(readerFunc(func([]byte) (int, error) { return n, nil })).Read(); err == nil {
				t.Errorf("Read returned %d: no error", n)
			}
		}
	})
	t.Run("without a source", func(t *testing.T) {
		var r reply.Reader
		if _, err := r.Read(); err == nil {
			t.Error("no error")
		}
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// A deadline that passes in the middle of a reply is returned as it is, and between two replies costs nothing.
func TestReadDeadline(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	r := newReader(client)
	timeout := func() {
		t.Helper()
		_ = client.SetReadDeadline(time.Unix(1, 0))
		_, err := r.Read()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%v, want a timeout", err)
		}
		_ = client.SetReadDeadline(time.Time{})
	}
	write := func(s string) {
		go func() { _, _ = io.WriteString(server, s) }()
	}
	timeout()
	write("250 a\r\n")
	if got, err := r.Read(); err != nil || got.Text != "a" {
		t.Fatalf("%v, %v", got, err)
	}
	write("250-b\r\n25")
	one := make([]byte, 9)
	if _, err := io.ReadFull(client, one); err != nil {
		t.Fatal(err)
	}
	r.Reset(io.MultiReader(bytes.NewReader(one), client), make([]byte, 64))
	timeout()
	if _, err := r.Read(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("after a timeout in the middle: %v", err)
	}
}

func TestReset(t *testing.T) {
	r := newReader(strings.NewReader("250 a\r\n250 left over\r\n"))
	if _, err := r.Read(); err != nil {
		t.Fatal(err)
	}
	if r.Buffered() == 0 {
		t.Fatal("nothing buffered")
	}
	r.Reset(nil, nil)
	if n := r.Buffered(); n != 0 {
		t.Errorf("%d bytes buffered after Reset(nil, nil)", n)
	}
	if _, err := r.Read(); err == nil {
		t.Error("a Read after Reset(nil, nil) succeeded")
	}
	r.Reset(strings.NewReader("bad\r\n"), make([]byte, 32))
	if _, err := r.Read(); err == nil {
		t.Error("a malformed reply was read")
	}
	r.Reset(strings.NewReader("250 b\r\n"), make([]byte, 32))
	if got, err := r.Read(); err != nil || got.Text != "b" {
		t.Errorf("after Reset: %v, %v", got, err)
	}
}

// The buffer that is lent is the one that is read into, and one that was grown is let go by Reset.
func TestReadBuffer(t *testing.T) {
	var at []int
	src := func(s string) io.Reader {
		in := strings.NewReader(s)
		return readerFunc(func(p []byte) (int, error) { at = append(at, len(p)); return in.Read(p) })
	}
	r := new(reply.Reader)
	r.Reset(src("250 a\r\n"), make([]byte, 64))
	if _, err := r.Read(); err != nil {
		t.Fatal(err)
	}
	r.Reset(src("250 "+strings.Repeat("a", 1000)+"\r\n"), make([]byte, 64))
	if _, err := r.Read(); err != nil {
		t.Fatal(err)
	}
	r.Reset(src("250 a\r\n"), make([]byte, 64))
	if _, err := r.Read(); err != nil {
		t.Fatal(err)
	}
	if at[0] != 64 || at[1] != 64 || at[len(at)-1] != 64 || at[2] <= 64 {
		t.Errorf("room asked for: %v", at)
	}
	// However large a reply, and however it comes: what is held stays bounded.
	at = nil
	r.Reset(src(strings.Repeat("250-"+strings.Repeat("b", 1018)+"\r\n", 100)), make([]byte, 4096))
	if _, err := r.Read(); err == nil {
		t.Fatal("a reply of 100 KiB was read")
	}
	for _, n := range at {
		if n > 128<<10 {
			t.Errorf("a buffer of at least %d bytes", n)
		}
	}
}

const session = "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 End data with <CR><LF>.<CR><LF>\r\n"

type repeating struct {
	s   string
	pos int
}

func (r *repeating) Read(p []byte) (int, error) {
	n := copy(p, r.s[r.pos:])
	r.pos += n
	if r.pos == len(r.s) {
		r.pos = 0
	}
	return n, nil
}

// allocations counts those of n calls of f together, for an average would be rounded down.
func allocations(n int, f func()) int {
	return int(testing.AllocsPerRun(1, func() {
		for range n {
			f()
		}
	}))
}

func TestReadDoesNotAllocate(t *testing.T) {
	src := &repeating{s: session}
	buf := make([]byte, 4096)
	r := new(reply.Reader)
	n := allocations(1000, func() {
		r.Reset(src, buf)
		for range 3 {
			if _, err := r.Read(); err != nil {
				t.Fatal(err)
			}
		}
		r.Reset(nil, nil)
	})
	if n > 5 { // the runtime's own
		t.Errorf("%d allocations in 1000 transactions, want 0", n)
	}
}

// A text that is new with each message, as the reply to a body is, must not drive the others out of the table: it alone costs.
func TestReadInternSurvivesUniqueTexts(t *testing.T) {
	var all strings.Builder
	const messages = 500
	for i := range 2 * messages {
		fmt.Fprintf(&all, "%s250 2.0.0 Ok: queued as 4Wc2Nk%09d\r\n", session, i)
	}
	r := newReader(strings.NewReader(all.String()))
	n := allocations(messages, func() {
		for range 4 {
			if _, err := r.Read(); err != nil {
				t.Fatal(err)
			}
		}
	})
	if n < messages || n > messages+5 {
		t.Errorf("%d allocations for %d messages, want one each", n, messages)
	}
}

func TestReadInternsFourTexts(t *testing.T) {
	r := newReader(&repeating{s: "250 a\r\n250 b\r\n354 c\r\n250 d\r\n"})
	if n := allocations(1000, func() { _, _ = r.Read() }); n > 5 {
		t.Errorf("%d allocations for 1000 replies, want 0", n)
	}
}

func TestReadDoesNotInternLongTexts(t *testing.T) {
	for _, tt := range []struct {
		length int
		want   float64
	}{{128, 0}, {129, 1}} {
		src := &repeating{s: "250 " + strings.Repeat("a", tt.length) + "\r\n"}
		r := newReader(src)
		if n := testing.AllocsPerRun(100, func() { _, _ = r.Read() }); n != tt.want {
			t.Errorf("a text of %d bytes: %v allocations, want %v", tt.length, n, tt.want)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	for _, bb := range []struct{ name, in string }{
		{"short", "250 2.1.0 Ok\r\n"},
		{"three", session},
		{"ehlo", "250-mx.example.net\r\n250-PIPELINING\r\n250-SIZE 35882577\r\n250-STARTTLS\r\n250-AUTH PLAIN LOGIN\r\n250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-DSN\r\n250-SMTPUTF8\r\n250 CHUNKING\r\n"},
	} {
		b.Run(bb.name, func(b *testing.B) {
			in := []byte(strings.Repeat(bb.in, 3500/len(bb.in)))
			src := bytes.NewReader(in)
			r := newReader(src)
			b.ReportAllocs()
			for b.Loop() {
				if r.Buffered() == 0 {
					src.Reset(in)
				}
				if _, err := r.Read(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// However the bytes are cut into pieces, the replies are the same.
func TestReadSplit(t *testing.T) {
	for _, in := range []string{
		session + "250-a\r\n250-\n250\r\n550-5.7.1 b\r\n550 c\r\n421 4.3.2",
		"250-a\r\n250-b\rc\r\r\n250d\r\n",
		"250 ok\r\n250\rx\r\n",
		"250-a\r\n251 b\r\n",
		strings.Repeat("250-a\r\n", 127) + "250 a\r\n" + strings.Repeat("250-a\r\n", 128) + "250 a\r\n",
		"250 " + strings.Repeat("a", 2042) + "\r\n250 " + strings.Repeat("a", 2043) + "\r\n",
	} {
		want, wantEnd := readAll(4096, in)
		for k := range len(in) {
			for _, size := range []int{3, 32, 4096} {
				if got, end := readAll(size, in[:k], in[k:]); end != wantEnd || !cmp.Equal(got, want) {
					t.Fatalf("%q split at %d, buffer of %d: %v and %q, want %v and %q", in, k, size, got, end, want, wantEnd)
				}
			}
		}
	}
}
