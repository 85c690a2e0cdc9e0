package smtptest

import (
	"bytes"
	"strings"
	"sync"
	"time"
)

// transcript gathers a Transcript. A nil one takes everything and keeps nothing.
type transcript struct {
	conn   int
	remote string
	start  time.Time

	mu        sync.Mutex // protects the following fields
	text      []byte
	truncated bool
	over      bool
}

func (t *transcript) add(prefix string, line []byte) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.text)+len(prefix)+len(line)+1 > maxTranscript {
		t.truncated = true
		return
	}
	t.text = append(t.text, prefix...)
	at := len(t.text)
	t.text = append(t.text, line...)
	for added := t.text[at:]; ; { // a line is one line, whatever is in it
		i := bytes.IndexByte(added, '\n')
		if i < 0 {
			break
		}
		added[i] = ' '
		added = added[i+1:]
	}
	t.text = append(t.text, '\n')
}

func (t *transcript) server(code int, line []byte) {
	if code == 334 {
		line = append(line[:4:4], "<redacted>"...)
	}
	t.add("S: ", line)
}

func (t *transcript) client(line []byte) { t.add("C: ", line) }

func (t *transcript) note(text string) {
	if t != nil {
		t.add("-- ", []byte(text))
	}
}

func (t *transcript) end(err error) {
	if t == nil {
		return
	}
	text := err.Error()
	if err == errGone {
		text = "the client has left, or the server was closed"
	}
	t.note(text)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = true
}

func (t *transcript) ended() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.over
}

func (t *transcript) export() *Transcript {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := &Transcript{Conn: t.conn, Remote: t.remote, Start: t.start, Truncated: t.truncated}
	if len(t.text) > 0 {
		x.Lines = strings.Split(strings.TrimSuffix(string(t.text), "\n"), "\n")
	}
	return x
}
