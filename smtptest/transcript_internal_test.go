package smtptest

import "testing"

// A line of a transcript is one line, whatever somebody said.
func TestTranscriptLines(t *testing.T) {
	var x transcript
	x.client([]byte("a\nb\n\nc"))
	x.note("\n")
	x.server(250, []byte("250 Ok"))
	if got, want := string(x.text), "C: a b  c\n--  \nS: 250 Ok\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
