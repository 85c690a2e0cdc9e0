package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/e2e/lab"
)

// realMails are the mails of CPython's own test suite: real ones, and malformed
// ones that somebody once met.
const realMails = "/usr/lib/python3*/test/test_email/data/*.txt"

// parcel is one message of a run, and what became of it.
type parcel struct {
	env    *smtplb.Envelope
	source string // where the message comes from; "" if it was generated
	digest [sha256.Size]byte
	refuse string // why the library must refuse it; "" if it must not

	start, end time.Time
	receipt    *smtplb.Receipt
	err        error
}

// newParcel addresses a message to recipients of its own: messages go out raw,
// and the recipient's name is what tells them apart in the stores.
func newParcel(i, recipients int, source string, msg []byte) *parcel {
	p := &parcel{source: source, digest: lab.Digest(msg), refuse: fault(msg)}
	var to []string
	for k := range recipients {
		to = append(to, fmt.Sprintf("m%05d.%d@in.test", i, k))
	}
	p.env = &smtplb.Envelope{ID: fmt.Sprintf("m%05d", i), From: "app@app.test", To: to, Body: smtplb.Bytes(msg)}
	return p
}

// fault tells why SMTP can't carry msg, by rules of its own and not the
// library's. 8-bit text is no fault: Postfix offers 8BITMIME.
func fault(msg []byte) string {
	switch {
	case len(msg) == 0:
		return "empty"
	case bytes.IndexByte(msg, 0) >= 0:
		return "NUL"
	}
	for line := range bytes.Lines(msg) {
		line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		if bytes.IndexByte(line, '\r') >= 0 {
			return "bare CR"
		}
		if len(line) > 998 {
			return "long line"
		}
	}
	return ""
}

// corpus returns n messages: the real mails and some special ones, spread evenly
// among generated ones of about 1 to 20 KB. A tenth has three recipients.
func corpus(t *testing.T, n int) []*parcel {
	t.Helper()
	type mail struct {
		source string
		msg    []byte
	}
	var given []mail
	paths, err := filepath.Glob(realMails)
	if err != nil || len(paths) == 0 {
		t.Fatalf("no real mails in %s (%v): run `make e2e` in the root of the repository as root on Debian or a relative, "+
			"which installs what these tests need", realMails, err)
	}
	for _, p := range paths {
		msg, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		given = append(given, mail{filepath.Base(p), msg})
	}
	const header = "From: <app@app.test>\r\nSubject: special\r\n\r\n"
	given = append(given, []mail{
		{"empty", nil},
		{"NUL", []byte(header + "a\x00b\r\n")},
		{"bare CR", []byte(header + "a\rb\r\n")},
		{"CR dot CR", []byte(header + "smuggled\r\n.\r\r\nMAIL FROM:<a@b>\r\n")},
		{"999 octets", []byte(header + strings.Repeat("x", 999) + "\r\n")},
		{"998 octets", []byte(header + strings.Repeat("x", 998) + "\r\n")},
		{"8-bit", []byte(header + "Gr\xfc\xdfe, \xe4\xb8\x96\xe7\x95\x8c\r\n")},
		{"dots", []byte(header + ".\r\n..\r\n...\r\n.x\n.\n\r\n.")},
		{"LF dot LF", []byte(header + "end\n.\nMAIL FROM:<a@b>\nRCPT TO:<c@d>\nDATA\n")},
		{"header only", []byte("Subject: special\r\n\r\n")},
		{"1 MiB", []byte(header + strings.Repeat("A line of a large message.\r\n.\r\n", 1<<20/31))},
	}...)
	if n < 2*len(given) {
		t.Fatalf("-messages %d: %d at least, for there are %d given ones", n, 2*len(given), len(given))
	}

	rng := rand.New(rand.NewPCG(1, uint64(n)))
	var all []*parcel
	for i := range n {
		recipients := 1
		if i%10 == 5 {
			recipients = 3
		}
		// The k-th given message stands at k*n/len(given).
		if k := (i*len(given) + n - 1) / n; k < len(given) && k*n/len(given) == i {
			all = append(all, newParcel(i, recipients, given[k].source, given[k].msg))
			continue
		}
		size := int(1000 * math.Pow(20, rng.Float64()))
		all = append(all, newParcel(i, recipients, "", generated(rng, i, size)))
	}
	return all
}

// generated makes a message of about size bytes, some of its lines with a dot in
// front.
func generated(rng *rand.Rand, i, size int) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "From: App <app@app.test>\r\nTo: undisclosed-recipients:;\r\nSubject: message %d\r\n"+
		"Message-ID: <%d.%d@app.test>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n", i, i, rng.Uint64())
	const letters = "abcdefghijklmnopqrstuvwxyz     .,"
	for b.Len() < size {
		if rng.IntN(20) == 0 {
			b.WriteByte('.')
		}
		for range rng.IntN(76) {
			b.WriteByte(letters[rng.IntN(len(letters))])
		}
		b.WriteString("\r\n")
	}
	return b.Bytes()
}
