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
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/smtplb/smtplb"
)

// RFC 8463, appendix A: a message, and the public keys that its signatures are verified with.
const (
	vectorEd25519 = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
	vectorMessage = `DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :
 subject : date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus
 Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==
From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game.  Are you hungry yet?

Joe.
`
)

var (
	folds     = regexp.MustCompile(`\s+`)
	signature = regexp.MustCompile(`(;\s*b=)[^;]*$`)
)

// verify verifies the first field of a message, by other means than those that signed it: regular expressions over the whole of it (RFC 6376 §3.7, §6.1).
func verify(message string, key crypto.PublicKey) error {
	header, body, ok := strings.Cut(message, "\r\n\r\n")
	if !ok {
		return errors.New("no body")
	}
	fields := regexp.MustCompile(`\r\n([^ \t])`).Split(header, -1)
	starts := regexp.MustCompile(`\r\n([^ \t])`).FindAllStringSubmatch(header, -1)
	for i := range starts {
		fields[i+1] = starts[i][1] + fields[i+1]
	}
	tags := map[string]string{}
	_, list, _ := strings.Cut(fields[0], ":")
	for _, tag := range strings.Split(list, ";") {
		k, v, _ := strings.Cut(tag, "=")
		tags[strings.TrimSpace(k)] = folds.ReplaceAllString(v, "")
	}
	text := regexp.MustCompile(`[ \t]+`).ReplaceAllString(body, " ")
	text = strings.ReplaceAll(text, " \r\n", "\r\n")
	for strings.HasSuffix(text, "\r\n") {
		text = strings.TrimSuffix(text, "\r\n")
	}
	if text != "" {
		text += "\r\n"
	}
	if sum := sha256.Sum256([]byte(text)); base64.StdEncoding.EncodeToString(sum[:]) != tags["bh"] {
		return errors.New("the body is another")
	}
	relaxed := func(f string) string {
		k, v, _ := strings.Cut(f, ":")
		return strings.ToLower(strings.TrimSpace(k)) + ":" + strings.TrimSpace(folds.ReplaceAllString(v, " "))
	}
	left := slices.Clone(fields[1:])
	var signed string
	for _, name := range strings.Split(tags["h"], ":") {
		for i := len(left) - 1; i >= 0; i-- {
			if k, _, _ := strings.Cut(left[i], ":"); strings.EqualFold(strings.TrimSpace(k), name) {
				signed += relaxed(left[i]) + "\r\n"
				left = slices.Delete(left, i, i+1)
				break
			}
		}
	}
	signed += relaxed(signature.ReplaceAllString(fields[0], "$1"))
	hash := sha256.Sum256([]byte(signed))
	b, err := base64.StdEncoding.DecodeString(tags["b"])
	if err != nil {
		return err
	}
	switch k := key.(type) {
	case ed25519.PublicKey:
		if tags["a"] != "ed25519-sha256" || !ed25519.Verify(k, hash[:], b) {
			return errors.New("the signature is another's")
		}
		return nil
	case *rsa.PublicKey:
		if tags["a"] != "rsa-sha256" {
			return errors.New("the algorithm is another")
		}
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, hash[:], b)
	}
	return fmt.Errorf("a key of type %T", key)
}

func crlf(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

// The verifier is right about the RFC's message; so what it says of ours counts. And what the signer makes of that message's parts is what was signed there.
func TestVector(t *testing.T) {
	key, err := base64.StdEncoding.DecodeString(vectorEd25519)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(crlf(vectorMessage), ed25519.PublicKey(key)); err != nil {
		t.Error(err)
	}
	if err := verify(crlf(strings.Replace(vectorMessage, "dinner", "lunch", 1)), ed25519.PublicKey(key)); err == nil {
		t.Error("another subject is verified")
	}
	_, body, _ := strings.Cut(crlf(vectorMessage), "\r\n\r\n")
	sum := sha256.New()
	if err := relaxedBody(sum, bufio.NewReader(strings.NewReader(body))); err != nil || base64.StdEncoding.EncodeToString(sum.Sum(nil)) != "2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=" {
		t.Errorf("bh is %x: %v", sum.Sum(nil), err)
	}
}

// RFC 6376 §3.4.5: the examples of canonical forms.
func TestCanonicalForms(t *testing.T) {
	var b bytes.Buffer
	if err := relaxedBody(&b, bufio.NewReader(strings.NewReader(" C \r\nD \t E\r\n\r\n\r\n"))); err != nil || b.String() != " C\r\nD E\r\n" {
		t.Errorf("body: %q, %v", b.String(), err)
	}
	if got := relaxedField("A: X\r\n") + relaxedField("B : Y\t\r\n\tZ  \r\n"); got != "a:X\r\nb:Y Z\r\n" {
		t.Errorf("header: %q", got)
	}
	if sum := sha256.Sum256(nil); base64.StdEncoding.EncodeToString(sum[:]) != "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=" { // §3.4.4: of a body of blank lines
		t.Error("the hash of nothing")
	}
}

func TestSigner(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(key crypto.Signer, m string) (string, error) {
		head, err := signer("example.com", "s", key)(context.Background(), smtplb.SignRequest{Message: io.NewSectionReader(strings.NewReader(m), 0, int64(len(m)))})
		return string(head), err
	}
	for _, m := range []string{
		message,
		"From: a\r\nFrom: b\r\nSubject: x\r\n\ty \r\nSUBJECT : z\r\n\r\n\r\n\r\n",
		"From: a\r\n\r\n",
		"X: y\r\nfrom:a@example.com\r\n\r\n \r\n\r\na\tb \r\n.\r\n" + strings.Repeat(" line  of text\r\n\r\n", 500) + "\r\n\r\n",
	} {
		for _, key := range []crypto.Signer{ed, r} {
			head, err := sign(key, m)
			if err != nil {
				t.Fatal(err)
			}
			if err := verify(head+m, key.Public()); err != nil {
				t.Errorf("%.100q is signed with %q: %v", m, head, err)
			}
			for _, changed := range []string{"From: x\r\n" + m, "Subject: x\r\n" + m, m + "x\r\n", strings.Replace(m, ":", ": x", 1) + "x\r\n"} {
				if err := verify(head+changed, key.Public()); err == nil {
					t.Errorf("%.100q passes as %.100q", changed, m)
				}
			}
		}
	}
	for _, m := range []string{"Subject: x\r\n\r\nno sender\r\n", "Resent-From: x\r\n\r\nno sender\r\n", "\r\nno header\r\n", "From: a\r\nno field\r\n\r\n", "From: a\r\nX: " + strings.Repeat("y\r\n ", maxHeader/3) + "\r\n\r\n"} {
		if head, err := sign(ed, m); !errors.Is(err, smtplb.ErrPermanent) {
			t.Errorf("%.50q: %q, %v", m, head, err)
		}
	}
}

// What the second relay has stored is signed with the key that the demo prints.
func TestDemo(t *testing.T) {
	var out bytes.Buffer
	if err := demo(&out); err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?s)tried first, second\n\nIn DNS: .* p=(\S+)"\n\n(.*)$`).FindStringSubmatch(out.String())
	if found == nil {
		t.Fatalf("%s", out.String())
	}
	key, err := base64.StdEncoding.DecodeString(found[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(found[2], ed25519.PublicKey(key)); err != nil {
		t.Errorf("%v: %s", err, found[2])
	}
}
