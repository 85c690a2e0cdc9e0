package smtplb

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"
)

// lookedOver is what is known of a message after it was looked over.
type lookedOver struct {
	canonical      string
	size           int64
	dots, eightBit bool
	utf8           bool
	err            string
}

// plainly looks a message over in the plainest way: once for NULs, once for its lines.
func plainly(raw []byte, ends LineEndings) (l lookedOver) {
	fault := func(at int, what string) lookedOver {
		return lookedOver{err: fmt.Sprintf("smtplb: Envelope.Body: %s (line %d, byte %d)", what, bytes.Count(raw[:at], []byte("\n"))+1, at)}
	}
	if i := bytes.IndexByte(raw, 0); i >= 0 {
		return fault(i, "has a NUL")
	}
	var header, canonical strings.Builder
	inHeader := true
	for start := 0; start < len(raw); {
		stop := start
		for stop < len(raw) && raw[stop] != '\r' && raw[stop] != '\n' {
			stop++
		}
		next := min(stop+1, len(raw))
		switch end := string(raw[stop:min(stop+2, len(raw))]); {
		case end == "\r\n":
			next = stop + 2
		case end != "" && end[0] == '\r' && ends != LineEndingsLenient:
			return fault(stop, "has a CR without LF")
		case end != "" && end[0] == '\n' && ends == LineEndingsStrict:
			return fault(stop, "has an LF without CR")
		}
		line := string(raw[start:stop])
		if len(line) > 998 {
			return fault(start, fmt.Sprintf("has a line of %d bytes; SMTP allows 998", len(line)))
		}
		l.dots = l.dots || strings.HasPrefix(line, ".")
		folded := strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t")
		if inHeader = inHeader && (folded && start > 0 || !folded && strings.IndexByte(line, ':') > 0); inHeader {
			header.WriteString(line + "\n")
		}
		canonical.WriteString(line + "\r\n")
		start = next
	}
	l.canonical = canonical.String()
	l.size = int64(len(l.canonical))
	eight := func(s string) bool { return strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) }
	l.eightBit, l.utf8 = eight(string(raw)), eight(header.String()) && utf8.ValidString(header.String())
	return l
}

func (s *scanner) result(canonical string) lookedOver {
	if s.fault != nil {
		return lookedOver{err: s.fault.Error()}
	}
	return lookedOver{canonical: canonical, size: s.size, dots: s.dots, eightBit: s.eightBit, utf8: s.headerUTF8()}
}

// inMemory looks over a message in memory, and then makes its canonical form.
func inMemory(raw []byte, ends LineEndings) lookedOver {
	s := scanner{ends: ends}
	s.memory(raw)
	canonical := string(raw)
	if s.fault == nil && s.changed {
		out := spool{most: -1}
		again := scanner{ends: ends, out: &out}
		again.memory(raw)
		canonical = string(out.buf)
	}
	return s.result(canonical)
}

// inBlocks looks over a message as it comes in, in blocks whose sizes size says.
func inBlocks(t testing.TB, raw []byte, ends LineEndings, size func() int) lookedOver {
	out := spool{most: -1}
	s := scanner{ends: ends, out: &out}
	taken, come := 0, 0
	for come < len(raw) || taken < len(raw) {
		come = min(come+size(), len(raw))
		block := raw[taken:come]
		n := s.scan(block, come == len(raw))
		if n < 0 || n > len(block) || come == len(raw) && n != len(block) || len(block)-n > maxLine+1 {
			t.Fatalf("%d of %d bytes were taken in; the message has %d", n, len(block), len(raw))
		}
		taken += n
	}
	return s.result(string(out.buf))
}

func checkScanner(t testing.TB, raw []byte, size func() int) {
	for ends := range LineEndingsLenient + 1 {
		given := bytes.Clone(raw)
		want := plainly(raw, ends)
		if got := inMemory(raw, ends); got != want {
			t.Fatalf("%d: in memory, of %.200q:\n%+.300v\nwant\n%+.300v", ends, raw, got, want)
		}
		if got := inBlocks(t, raw, ends, size); got != want {
			t.Fatalf("%d: in blocks, of %.200q:\n%+.300v\nwant\n%+.300v", ends, raw, got, want)
		}
		if !bytes.Equal(raw, given) {
			t.Fatalf("%.200q was changed", given)
		}
	}
}

// randomMessage is a text with what is rare in a message put in here and there: mostly at edges, which are places near which a block begins.
func randomMessage(r *rand.Rand, lines int, edges ...int) []byte {
	var b []byte
	end := []string{"\r\n", "\r\n", "\n", "\r"}[r.IntN(4)]
	for range lines {
		switch n := r.IntN(60); {
		case n < 40:
			b = append(b, strings.Repeat("word ", r.IntN(15))...)
		case n < 44:
			b = append(b, "."...)
		case n < 48:
			b = append(b, "Field: x\r\n y"...)
		case n < 50:
			b = append(b, strings.Repeat("x", 996+r.IntN(4))...)
		}
		b = append(b, end...)
	}
	for range r.IntN(4) {
		odd := []string{"\r", "\n", "\r\n", "\x00", ".", "\r\n.", "\xc3\xbc", "\xff", strings.Repeat("y", 999), strings.Repeat("z", 990)}[r.IntN(10)]
		at := r.IntN(len(b) + 1)
		if len(edges) > 0 && r.IntN(4) > 0 {
			at = max(min(edges[r.IntN(len(edges))]+r.IntN(5)-2, len(b)), 0)
		}
		b = append(b[:at:at], append([]byte(odd), b[at:]...)...)
	}
	return b[:len(b)-r.IntN(min(3, len(b)+1))]
}

// Blocks of every size, down to a byte: CR and LF apart, dots at a block's start, lines of 998 and 999 bytes over its end.
func TestScannerBlocks(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	messages := 1000
	if !Thorough() {
		messages = 200
	}
	for i := range messages {
		raw := randomMessage(r, r.IntN(30), 0, 1, 100, 1000)
		most := []int{1, 2, 7, 100, 1000, 5000}[i%6]
		checkScanner(t, raw, func() int { return 1 + r.IntN(most) })
	}
	for _, raw := range scannerSeeds {
		for _, size := range []int{1, 2, 3, 998, 999, 1000, 1001} {
			checkScanner(t, []byte(raw), func() int { return size })
		}
	}
}

// Larger than the window in which a message in memory is looked over.
func TestScannerWindows(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(3, 4))
	for range 60 {
		raw := randomMessage(r, 3000+r.IntN(1000), scanWindow, 2*scanWindow)
		checkScanner(t, raw, func() int { return scanWindow })
	}
}

var scannerSeeds = []string{
	"", "a", "\r", "\n", "\r\n", ".\r\n", "a\r\n.b\r\n\r\n.\r\n", "a\nb\rc\r\n", "\r\r\n", "\n\r", "a\x00", "\x00\r", "a\rb\x00", "Subject: \xc3\xbc\r\n\r\n\xff", "Subject: a\r\n\xc3\xbc: b\r\n c\r\n",
	" \xc3\xbc: folded\r\n", strings.Repeat("x", 998) + "\r\n", strings.Repeat("x", 999) + "\r\n", strings.Repeat("x", 999), strings.Repeat("x", 3000) + "\r", strings.Repeat("x", 3000) + "\n", strings.Repeat("x", 3000) + "\ry",
	strings.Repeat("x", 5000) + "\r\n\x00", strings.Repeat("x", 998) + "\r", strings.Repeat("x", 998) + "\n" + strings.Repeat("y", 998),
	"a: b\r\n\tc\r\n\r\n" + strings.Repeat("line\r\n", 300),
}

func FuzzScanner(f *testing.F) {
	for _, s := range scannerSeeds {
		f.Add([]byte(s), uint16(len(s)/2))
	}
	f.Fuzz(func(t *testing.T, raw []byte, size uint16) {
		checkScanner(t, raw, func() int { return 1 + int(size) })
	})
}

// BenchmarkCanonical looks over messages in memory that are in order, in lines of 76 bytes.
func BenchmarkCanonical(b *testing.B) {
	for _, size := range []int{2 << 10, 50 << 10, 10 << 20} {
		raw := bytes.Repeat([]byte(strings.Repeat("0123456789abcdef", 5)[:76]+"\r\n"), size/78)
		b.Run(fmt.Sprint(size>>10, "KB"), func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			for b.Loop() {
				s := scanner{}
				s.memory(raw)
				if s.fault != nil || s.changed {
					b.Fatal(s.fault)
				}
			}
		})
	}
}
