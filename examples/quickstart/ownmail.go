package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/mail"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/smtplb/smtplb"
)

// ownMail sends the *.eml files of a folder through a person's own relays, and tells what became of each.
func ownMail(ctx context.Context, o *options, stdout, stderr io.Writer) int {
	files, err := emlFiles(o.dir)
	if err != nil {
		fmt.Fprintf(stderr, "quickstart: -eml: %v\n%s", err, usageLine)
		return exitUsage
	}
	pool, err := smtplb.New(smtplb.Config{Relays: o.relays})
	if err != nil {
		fmt.Fprintf(stderr, "quickstart: -relay: %v\n%s", err, usageLine)
		return exitUsage
	}
	defer shutdown(pool)

	began := time.Now()
	var sum summary
	for r := range send(ctx, pool, o.goroutines, len(files), o.timeout, func(n int) (*smtplb.Envelope, error) {
		return readEnvelope(files[n], o)
	}) {
		sum.add(r)
		fmt.Fprint(stdout, describe(filepath.Base(files[r.number]), r))
	}
	if n := len(files) - sum.messages; n > 0 {
		fmt.Fprintf(stdout, "Interrupted: %d of %d messages were not begun.\n", n, len(files))
	}
	if sum.unknown > 0 {
		fmt.Fprint(stdout, unknownMeans)
	}
	fmt.Fprintf(stdout, "%v · %.1f s\n", &sum, time.Since(began).Seconds())
	if sum.accepted < sum.recipients || sum.unsent > 0 || sum.messages < len(files) {
		return exitBad
	}
	return 0
}

// summary counts what became of recipients.
type summary struct {
	messages, unsent                                int // unsent: nothing was tried, because of the message itself
	recipients, accepted, failed, deferred, unknown int
}

func (s *summary) add(r result) {
	s.messages++
	if r.receipt == nil {
		s.unsent++
		return
	}
	s.recipients += len(r.receipt.Recipients)
	s.accepted += r.receipt.Count(smtplb.Accepted)
	s.failed += r.receipt.Count(smtplb.Failed)
	s.deferred += r.receipt.Count(smtplb.Deferred)
	s.unknown += r.receipt.Count(smtplb.Unknown)
}

func (s *summary) String() string {
	line := fmt.Sprintf("messages %d", s.messages)
	if s.unsent > 0 {
		line += fmt.Sprintf(" · not sendable %d", s.unsent)
	}
	return fmt.Sprintf("%s · recipients %d · accepted %d · failed %d · deferred %d · unknown %d", line, s.recipients, s.accepted, s.failed, s.deferred, s.unknown)
}

// describe tells what became of a message: a line, and one more for each recipient that was not accepted.
func describe(name string, r result) string {
	var b strings.Builder
	line := func(format string, args ...any) { b.WriteString(printable(fmt.Sprintf(format, args...)) + "\n") }
	if r.receipt == nil {
		line("%s: not sent: %s", name, strings.TrimPrefix(r.err.Error(), "smtplb: "))
		return b.String()
	}
	var by []string
	for _, rcpt := range r.receipt.Recipients {
		relay := rcpt.Relay
		if rcpt.QueueID != "" {
			relay += " as " + rcpt.QueueID
		}
		if rcpt.Outcome == smtplb.Accepted && !slices.Contains(by, relay) {
			by = append(by, relay)
		}
	}
	if by == nil {
		line("%s: not accepted", name)
	} else {
		line("%s: accepted for %d of %d recipients by %s", name, r.receipt.Count(smtplb.Accepted), len(r.receipt.Recipients), strings.Join(by, ", "))
	}
	for _, rcpt := range r.receipt.Recipients {
		switch rcpt.Outcome {
		case smtplb.Accepted:
		case smtplb.Deferred:
			line("    %s: deferred, try again in %v: %v", rcpt.Addr, rcpt.RetryAfter.Round(time.Second), rcpt.Err())
		default:
			line("    %s: %v: %v", rcpt.Addr, rcpt.Outcome, rcpt.Err())
		}
	}
	return b.String()
}

// printable keeps what files and relays say from moving the cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

func emlFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if info, err := os.Stat(path); strings.EqualFold(filepath.Ext(path), ".eml") && err == nil && info.Mode().IsRegular() {
			files = append(files, path)
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("there is no *.eml file in %s", dir)
	}
	return files, nil
}

// readEnvelope reads a message, and takes from its header whom it is from and for unless the command line says so.
func readEnvelope(path string, o *options) (*smtplb.Envelope, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	raw = bytes.TrimPrefix(raw, []byte("\ufeff")) // a byte order mark, which some editors write
	from, to := o.from, o.to
	if from == "" || len(to) == 0 {
		msg, err := mail.ReadMessage(bytes.NewReader(raw))
		if err != nil {
			return nil, fmt.Errorf("its header can't be read: %w", err)
		}
		if from == "" {
			list, err := addresses(msg.Header, "From")
			if err != nil {
				return nil, err
			}
			if len(list) == 0 {
				return nil, errors.New("its header has no From address, and there is no -from")
			}
			from = list[0]
		}
		if len(to) == 0 {
			if to, err = addresses(msg.Header, "To", "Cc", "Bcc"); err != nil {
				return nil, err
			}
			if len(to) == 0 {
				return nil, errors.New("its header has no To, Cc or Bcc address, and there is no -to")
			}
		}
	}
	return &smtplb.Envelope{ID: filepath.Base(path), From: from, To: to, Body: smtplb.Bytes(stripBcc(raw))}, nil
}

// addresses returns the addresses in all fields of these names.
func addresses(h mail.Header, names ...string) ([]string, error) {
	// People's names may be in any charset. They are not needed, so their bytes will do.
	anyCharset := func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	parser := mail.AddressParser{WordDecoder: &mime.WordDecoder{CharsetReader: anyCharset}}
	var all []string
	for _, name := range names {
		for _, field := range h[name] {
			if strings.TrimSpace(field) == "" { // as mail programs write an empty Bcc
				continue
			}
			list, err := parser.ParseList(field)
			if err != nil {
				return nil, fmt.Errorf("its %s field can't be read: %w", name, err)
			}
			for _, a := range list {
				all = append(all, bare(a))
			}
		}
	}
	return all, nil
}

// bare returns an address as an envelope has it, quoted where it must be: net/mail takes the quotes off.
func bare(a *mail.Address) string {
	s := (&mail.Address{Address: a.Address}).String()
	return strings.TrimSuffix(strings.TrimPrefix(s, "<"), ">")
}

// stripBcc removes the Bcc and Resent-Bcc fields from a message's header, with their continuation lines: whom they name is nobody else's
// business, and a relay passes them on (RFC 5322 §3.6.3). All other bytes stay as they are.
func stripBcc(msg []byte) []byte {
	var out []byte
	cut := false // the last field is one to remove
	rest := msg
	for len(rest) > 0 {
		line := rest
		if i := bytes.IndexByte(rest, '\n'); i >= 0 {
			line = rest[:i+1]
		}
		if len(bytes.TrimRight(line, "\r\n")) == 0 { // the header ends here
			break
		}
		rest = rest[len(line):]
		if line[0] != ' ' && line[0] != '\t' { // else it continues the field before it
			name, _, colon := bytes.Cut(line, []byte(":"))
			name = bytes.TrimRight(name, " \t") // blanks before the colon: RFC 5322 §4.5.3
			cut = colon && (bytes.EqualFold(name, []byte("Bcc")) || bytes.EqualFold(name, []byte("Resent-Bcc")))
		}
		if !cut {
			out = append(out, line...)
		}
	}
	return append(out, rest...)
}
