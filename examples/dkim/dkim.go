package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/smtplb/smtplb"
)

// This file is the part to copy: a Signer with the standard library alone.

// signedFields are the fields that a signature covers (RFC 6376 §5.4.1), each as often as it is there and once more, so that nobody can add another.
var signedFields = []string{"from", "to", "cc", "reply-to", "subject", "date", "message-id", "mime-version", "content-type", "list-unsubscribe", "list-unsubscribe-post"}

// maxHeader bounds what is held in memory of a message: its header.
const maxHeader = 1 << 20

// signer signs with an RSA key (RFC 6376; 2,048 bits) or an Ed25519 one (RFC 8463), in relaxed/relaxed canonical form. The public key stands in DNS under selector._domainkey.domain.
// Some receivers don't know Ed25519 yet: who wants it makes two signatures, and returns one behind the other.
func signer(domain, selector string, key crypto.Signer) smtplb.Signer {
	return func(_ context.Context, r smtplb.SignRequest) ([]byte, error) {
		body := bufio.NewReader(r.Message)
		fields, err := readHeader(body)
		if err != nil {
			return nil, err
		}
		sum := sha256.New()
		if err := relaxedBody(sum, body); err != nil {
			return nil, err
		}
		algorithm, options := "rsa-sha256", crypto.SignerOpts(crypto.SHA256)
		switch key.Public().(type) {
		case ed25519.PublicKey:
			algorithm, options = "ed25519-sha256", crypto.Hash(0) // what it signs is the hash (RFC 8463 §3)
		case *rsa.PublicKey:
		default:
			return nil, fmt.Errorf("a key of type %T: %w", key, smtplb.ErrPermanent)
		}
		names, signed := choose(fields, signedFields)
		field := fmt.Sprintf("DKIM-Signature: v=1; a=%s; c=relaxed/relaxed; d=%s; s=%s; t=%d;\r\n\th=%s;\r\n\tbh=%s;\r\n\tb=",
			algorithm, domain, selector, time.Now().Unix(), strings.Join(names, ":\r\n\t "), base64.StdEncoding.EncodeToString(sum.Sum(nil)))
		hash := sha256.Sum256([]byte(signed + strings.TrimSuffix(relaxedField(field), "\r\n")))
		signature, err := key.Sign(rand.Reader, hash[:], options)
		if err != nil {
			return nil, err
		}
		b := []byte(field)
		for s := base64.StdEncoding.EncodeToString(signature); s != ""; {
			n := min(len(s), 72)
			b = fmt.Appendf(b, "\r\n\t%s", s[:n])
			s = s[n:]
		}
		return append(b, "\r\n"...), nil
	}
}

// readHeader reads the header, field by field as they stand there, and the blank line behind it.
func readHeader(r *bufio.Reader) (fields []string, err error) {
	var field []byte // the one that is being read
	for size := 0; ; {
		line, err := r.ReadBytes('\n')
		if err != nil && err != io.EOF {
			return nil, err
		}
		size += len(line)
		folded := len(line) > 0 && (line[0] == ' ' || line[0] == '\t')
		if !folded && field != nil {
			fields, field = append(fields, string(field)), nil
		}
		switch {
		case size > maxHeader:
			return nil, fmt.Errorf("the header is larger than %d bytes: %w", maxHeader, smtplb.ErrPermanent)
		case len(line) == 0 || string(line) == "\r\n":
			if !slices.Contains(fieldNames(fields), "from") { // RFC 6376 §5.4
				return nil, fmt.Errorf("the message has no From field: %w", smtplb.ErrPermanent)
			}
			return fields, nil
		case folded && field != nil, !folded && bytes.IndexByte(line, ':') > 0:
			field = append(field, line...)
		default:
			return nil, fmt.Errorf("the header has a line that is no field: %w", smtplb.ErrPermanent)
		}
	}
}

// choose returns the names for h=, and what is signed of them: of several fields of a name the last comes first (RFC 6376 §5.4.2).
func choose(fields, names []string) (h []string, signed string) {
	all := fieldNames(fields)
	for _, name := range names {
		for i := len(fields) - 1; i >= 0; i-- {
			if all[i] == name {
				h = append(h, name)
				signed += relaxedField(fields[i])
			}
		}
		h = append(h, name)
	}
	return h, signed
}

func fieldNames(fields []string) []string {
	names := make([]string, len(fields))
	for i, f := range fields {
		name, _, _ := strings.Cut(f, ":")
		names[i] = strings.ToLower(strings.TrimRight(name, " \t"))
	}
	return names
}

// relaxedField is a field in canonical form (RFC 6376 §3.4.2).
func relaxedField(f string) string {
	name, value, _ := strings.Cut(f, ":")
	value = strings.ReplaceAll(value, "\r\n", "")
	return strings.ToLower(strings.TrimRight(name, " \t")) + ":" + strings.Trim(string(squeeze([]byte(value))), " ") + "\r\n"
}

// relaxedBody writes a body in canonical form (RFC 6376 §3.4.4), line by line: smtplb has looked after it that no line is longer than 998 bytes.
func relaxedBody(w io.Writer, r *bufio.Reader) error {
	blank := 0 // lines that count if another comes
	for {
		line, err := r.ReadBytes('\n')
		if err != nil && err != io.EOF {
			return err
		}
		text := bytes.TrimRight(squeeze(bytes.TrimSuffix(line, []byte("\r\n"))), " ")
		switch {
		case len(text) > 0:
			_, _ = io.WriteString(w, strings.Repeat("\r\n", blank)) // a hash takes everything
			_, _ = w.Write(append(text, "\r\n"...))
			blank = 0
		case len(line) > 0:
			blank++
		}
		if err == io.EOF {
			return nil
		}
	}
}

// squeeze makes each run of spaces and tabs one space.
func squeeze(b []byte) []byte {
	out := b[:0:0]
	for i, c := range b {
		if c == '\t' {
			c = ' '
		}
		if c == ' ' && i > 0 && (b[i-1] == ' ' || b[i-1] == '\t') {
			continue
		}
		out = append(out, c)
	}
	return out
}
