package main

import (
	"strings"
	"testing"
)

// feed gives the terminator the pieces in turn, and returns where the message ended in the whole; -1: nowhere.
func feed(pieces ...string) int {
	var t terminator
	t.begin()
	at := 0
	for _, p := range pieces {
		n, done := t.scan([]byte(p))
		at += n
		if done {
			return at
		}
		if n != len(p) {
			return -2 // what isn't the end must be taken whole
		}
	}
	return -1
}

// endOf is the definition: the terminator is CRLF . CRLF, the line end of DATA counted in.
func endOf(stream string) int {
	i := strings.Index("\r\n"+stream, endOfData)
	if i < 0 {
		return -1
	}
	return i + len(endOfData) - 2
}

// TestTerminatorEverySplit cuts every stream of up to seven characters of those that matter at every place, and into single bytes.
func TestTerminatorEverySplit(t *testing.T) {
	found := 0
	var try func(s string)
	try = func(s string) {
		want := endOf(s)
		if want >= 0 {
			found++
		}
		for i := range len(s) + 1 {
			if got := feed(s[:i], s[i:]); got != want {
				t.Fatalf("%q + %q ends at %d, want %d", s[:i], s[i:], got, want)
			}
		}
		if got := feed(strings.Split(s, "")...); got != want {
			t.Fatalf("%q, a byte at a time, ends at %d, want %d", s, got, want)
		}
		if len(s) < 7 {
			for _, c := range "\r\n.x" {
				try(s + string(c))
			}
		}
	}
	try("")
	if found == 0 {
		t.Error("no stream with an end was tried")
	}
}

// TestTerminatorLongMessages cuts messages of several lines, with the next envelope behind them, in two and in three.
func TestTerminatorLongMessages(t *testing.T) {
	for _, body := range []string{
		"",                              // no line at all
		"\r\n",                          // an empty line
		"Subject: x\r\n\r\ntext\r\n",    // the usual
		"..\r\n...\r\n.x\r\n",           // stuffed dots
		"a\n.\nb\r.\rc\n.\r\nd\r\n.\ne", // bare line ends are none
		"\r\r\n\n.\r\n\r\r",             // nearly
		strings.Repeat("\r", 9) + "\n.",
	} {
		const next = ".\r\nMAIL FROM:<a@example.com>\r\n"
		if body != "" && !strings.HasSuffix(body, "\r\n") {
			body += "\r\n"
		}
		s := body + next
		want := endOf(s)
		if want < 0 {
			t.Fatalf("%q has no end", s)
		}
		for i := range len(s) + 1 {
			for j := i; j <= len(s); j++ {
				if got := feed(s[:i], s[i:j], s[j:]); got != want {
					t.Fatalf("%q + %q + %q ends at %d, want %d", s[:i], s[i:j], s[j:], got, want)
				}
			}
		}
	}
}
