package lab

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Message is one stored file: one message for one recipient.
type Message struct {
	Relay   string
	Path    string
	To      string // the recipient, from Postfix's Delivered-To
	QueueID string // from Postfix's Received; unique within the relay
	// Digest is that of the message below Postfix's header fields. It equals
	// lab.Digest of what the client sent.
	Digest [sha256.Size]byte

	header []byte
}

// Header returns the first field of that name, without its line breaks, of
// Postfix's own fields and the client's.
func (m *Message) Header(name string) string {
	for _, f := range fields(m.header) {
		if k, v, ok := strings.Cut(f, ":"); ok && strings.EqualFold(strings.TrimSpace(k), name) {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

var queueID = regexp.MustCompile(`\(Postfix\) with \w+ id (\w+)`)

// Stored reads the relay's mail store.
func (r *Relay) Stored() ([]Message, error) {
	var msgs []Message
	for _, sub := range []string{"new", "cur"} {
		dir := r.path(filepath.Join("store/inbox", sub))
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) { // made with the first delivery
			return nil, err
		}
		for _, e := range entries {
			m, err := readMessage(filepath.Join(dir, e.Name()))
			if err != nil {
				return nil, err
			}
			m.Relay = r.Name
			msgs = append(msgs, m)
		}
	}
	return msgs, nil
}

func readMessage(path string) (Message, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Message{}, err
	}
	m := Message{Path: path}
	m.header, _, _ = bytes.Cut(b, []byte("\n\n"))
	// Postfix puts Return-Path, X-Original-To, Delivered-To and Received on top.
	// The client's fields come after, and may have the same names.
	own := firstFields(b, 4)
	for _, f := range fields(own) {
		if v, ok := strings.CutPrefix(f, "Delivered-To: "); ok {
			m.To = v
		}
		if v, ok := strings.CutPrefix(f, "Received: "); ok {
			if id := queueID.FindStringSubmatch(v); id != nil {
				m.QueueID = id[1]
			}
		}
	}
	if m.To == "" || m.QueueID == "" {
		return Message{}, fmt.Errorf("%s does not begin with Postfix's header fields:\n%.400s", path, b)
	}
	m.Digest = sha256.Sum256(b[len(own):])
	return m, nil
}

// Digest returns the SHA-256 that a relay's store has of a message. Postfix
// stores the lines that it was sent, with LF line ends, and changes two things:
// an mbox separator on top becomes a header field, and where no empty line ends
// the header, one is put before the first line that isn't a header's.
func Digest(msg []byte) [sha256.Size]byte {
	msg = bytes.ReplaceAll(msg, []byte("\r\n"), []byte("\n"))
	if !bytes.HasSuffix(msg, []byte("\n")) {
		msg = append(msg, '\n')
	}
	if bytes.HasPrefix(bytes.TrimLeft(msg, ">"), []byte("From ")) {
		msg = append([]byte("X-Mailbox-Line: "), msg...)
	}
	end := 0
	for line := range bytes.Lines(msg) {
		if len(line) == 1 {
			break
		}
		continued := end > 0 && (line[0] == ' ' || line[0] == '\t')
		if !continued && !field.Match(line) {
			msg = slices.Insert(msg, end, '\n')
			break
		}
		end += len(line)
	}
	return sha256.Sum256(msg)
}

var field = regexp.MustCompile(`^[!-9;-~]+[ \t]*:`)

// firstFields returns the part of b that holds the first n header fields.
func firstFields(b []byte, n int) []byte {
	end := 0
	for end < len(b) {
		i := bytes.IndexByte(b[end:], '\n')
		if i < 0 {
			break
		}
		if c := b[end]; c != ' ' && c != '\t' {
			if n == 0 || c == '\n' {
				break
			}
			n--
		}
		end += i + 1
	}
	return b[:end]
}

// fields unfolds a header.
func fields(header []byte) []string {
	var fs []string
	for line := range strings.Lines(string(header)) {
		line = strings.TrimRight(line, "\r\n")
		if len(fs) > 0 && line != "" && strings.ContainsAny(line[:1], " \t") {
			fs[len(fs)-1] += " " + strings.TrimSpace(line)
			continue
		}
		fs = append(fs, line)
	}
	return fs
}
