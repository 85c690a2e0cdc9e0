package smtplb

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wneessen/go-mail"
)

// addressedMail is a go-mail message of which change makes something. What would be new each time it is rendered is fixed.
func addressedMail(t *testing.T, change func(m *mail.Msg)) *mail.Msg {
	t.Helper()
	m := mail.NewMsg()
	if err := errors.Join(m.From("a@example.com"), m.To("x@example.com")); err != nil {
		t.Fatal(err)
	}
	m.Subject("Gr\u00fc\u00dfe")
	m.SetDateWithValue(time.Unix(1e9, 0))
	m.SetMessageIDWithValue("1@example.com")
	change(m)
	return m
}

// rendered is what an intake takes in of m: as it is, or in canonical form.
func rendered(t *testing.T, p *Pool, m *mail.Msg, raw bool) ([]byte, error) {
	t.Helper()
	in := newIntake(t.Context(), p, LineEndingsText)
	defer in.free()
	in.raw = raw
	if err := in.body(&Body{kind: bodyMessage, msg: m}); err != nil {
		return nil, err
	}
	c, err := in.content()
	if err != nil {
		return nil, err
	}
	if c.file != nil {
		defer c.file.close()
		return io.ReadAll(c.reader())
	}
	return c.body, nil
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * i >> 3)
	}
	return b
}

// inPieces gives b in pieces of every length.
func inPieces(b []byte) func(w io.Writer) (int64, error) {
	return func(w io.Writer) (int64, error) {
		for n, i := 0, 0; n < len(b); i++ {
			part := b[n:min(n+i%200, len(b))]
			if _, err := w.Write(part); err != nil {
				return int64(n), err
			}
			n += len(part)
		}
		return int64(len(b)), nil
	}
}

type addsAttachment struct{}

func (addsAttachment) Type() mail.MiddlewareType { return "adds" }

func (addsAttachment) Handle(m *mail.Msg) *mail.Msg {
	var b bytes.Buffer
	m.SetGenHeader("X-Sum", "0")
	_, _ = m.WriteToSkipMiddleware(&b, "adds")
	m.SetGenHeader("X-Sum", fmt.Sprintf("%x", sha256.Sum256(b.Bytes())))
	return m
}

// What is taken in is what go-mail renders, byte for byte; buffered says for how many attachments its buffer was used.
func TestRenderedAsByGoMail(t *testing.T) {
	attach := func(m *mail.Msg, name string, b []byte, o ...mail.FileOption) {
		_ = m.AttachReader(name, strings.NewReader(""), o...)
		m.GetAttachments()[len(m.GetAttachments())-1].Writer = inPieces(b)
	}
	embed := func(m *mail.Msg, name string, b []byte, o ...mail.FileOption) {
		_ = m.EmbedReader(name, strings.NewReader(""), o...)
		m.GetEmbeds()[len(m.GetEmbeds())-1].Writer = inPieces(b)
	}
	text := func(m *mail.Msg) { m.SetBodyString(mail.TypeTextPlain, "Gr\u00fc\u00dfe\n.\n") }
	for name, test := range map[string]struct {
		buffered bool
		change   func(m *mail.Msg)
	}{
		"text":        {false, text},
		"attachment":  {false, func(m *mail.Msg) { text(m); attach(m, "a.bin", pattern(100000)) }},
		"attachments": {false, func(m *mail.Msg) { text(m); attach(m, "a.bin", pattern(57)); attach(m, "b.bin", pattern(70000)) }},
		"no text":     {false, func(m *mail.Msg) { attach(m, "a.bin", pattern(57)); attach(m, "b.bin", pattern(1)) }},
		"alternatives and embeds": {false, func(m *mail.Msg) {
			text(m)
			m.AddAlternativeString(mail.TypeTextHTML, "<p>a</p>")
			embed(m, "\u00fc.png", pattern(3000), mail.WithFileDescription("described"))
			embed(m, "b.png", pattern(58), mail.WithFileContentType("image/png"))
			attach(m, `a".txt`, []byte("x"), mail.WithFileEncoding(mail.EncodingB64))
		}},
		"empty":            {false, func(m *mail.Msg) { text(m); attach(m, "a", nil); attach(m, "a", nil) }},
		"same twice":       {false, func(m *mail.Msg) { text(m); attach(m, "a", pattern(10)); attach(m, "a", pattern(11)) }},
		"long header":      {true, func(m *mail.Msg) { text(m); attach(m, strings.Repeat("a", 600), pattern(1000)) }},
		"one file alone":   {true, func(m *mail.Msg) { attach(m, "a.bin", pattern(1000)) }},
		"quoted-printable": {true, func(m *mail.Msg) { text(m); attach(m, "a", pattern(1000)); m.GetAttachments()[0].Enc = mail.EncodingQP }},
		"not encoded":      {true, func(m *mail.Msg) { text(m); attach(m, "a", []byte("a\nb"), mail.WithFileEncoding(mail.NoEncoding)) }},
		"middleware":       {true, func(m *mail.Msg) { text(m); attach(m, "a", pattern(1000)); mail.WithMiddleware(addsAttachment{})(m) }},
		"Content-Transfer-": {false, func(m *mail.Msg) { // go-mail encodes in base64 whatever stands there
			text(m)
			attach(m, "a", pattern(1000), mail.WithFileEncoding(mail.NoEncoding))
			m.GetAttachments()[0].Header.Set("Content-Transfer-Encoding", "8bit")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p := &Pool{renders: make(chan struct{}, maxRenders), ctx: context.Background(), spillSize: -1}
			for _, raw := range []bool{true, false} {
				m := addressedMail(t, test.change)
				var want bytes.Buffer
				first := *m
				first.SetAttachments(copied(m.GetAttachments())) // so that the headers are filled in by the rendering that is looked at
				first.SetEmbeds(copied(m.GetEmbeds()))
				if _, err := first.WriteTo(&want); err != nil {
					t.Fatal(err)
				}
				files := append(m.GetAttachments(), m.GetEmbeds()...)
				for range 2 {
					got, err := rendered(t, p, m, raw)
					if err != nil {
						t.Fatal(err)
					}
					if name == "one file alone" { // in the order of a map
						continue
					}
					if name == "quoted-printable" || name == "not encoded" { // go-mail forgets the encoding when it has written it down
						for _, f := range m.GetAttachments() {
							f.Header.Del("Content-Transfer-Encoding")
						}
					}
					w := want.Bytes()
					if !raw {
						w = []byte(plainly(w, LineEndingsText).canonical)
					}
					if !bytes.Equal(got, w) {
						t.Errorf("raw %v:\n%.1000q\nwant\n%.1000q", raw, got, w)
					}
				}
				for i, f := range append(m.GetAttachments(), m.GetEmbeds()...) {
					if f != files[i] {
						t.Error("the message's files were changed")
					}
				}
			}
			if n := len(p.renders); n != 0 {
				t.Errorf("%d slots were not given back", n)
			}
			// With no slot to be had, what needs none is rendered, and the rest waits.
			for range maxRenders {
				p.renders <- struct{}{}
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			p.ctx = ctx
			in := newIntake(t.Context(), p, LineEndingsText)
			defer in.free()
			if err := in.body(&Body{kind: bodyMessage, msg: addressedMail(t, test.change)}); errors.Is(err, ErrClosed) != test.buffered {
				t.Errorf("%v", err)
			}
		})
	}
}

func copied(files []*mail.File) (c []*mail.File) {
	for _, f := range files {
		g := *f
		g.Header = map[string][]string{}
		for k, v := range f.Header {
			g.Header[k] = v
		}
		c = append(c, &g)
	}
	return c
}

// A message that is signed is signed for what is sent.
func TestRenderedSigned(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	m := addressedMail(t, func(m *mail.Msg) {
		m.SetBodyString(mail.TypeTextPlain, "text\r\n")
		_ = m.AttachReader("a.bin", bytes.NewReader(pattern(100000)))
		if err := m.SignWithKeypair(key, cert, nil); err != nil {
			t.Fatal(err)
		}
	})
	for range 2 {
		b, err := rendered(t, nil, m, false)
		if err != nil {
			t.Fatal(err)
		}
		boundary := regexp.MustCompile(`multipart/signed;[^\0]*?boundary=(\S+)`).FindSubmatch(b)
		if boundary == nil {
			t.Fatalf("%.2000s", b)
		}
		parts := bytes.Split(b, append([]byte("\r\n--"), boundary[1]...))
		if len(parts) != 4 {
			t.Fatalf("%d parts: %.2000s", len(parts), b)
		}
		sum := sha256.Sum256(bytes.TrimPrefix(parts[1], crlf))
		_, text, _ := bytes.Cut(parts[2], []byte("\r\n\r\n"))
		signature, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(string(text), "\r\n", ""))
		if err != nil || !bytes.Contains(signature, sum[:]) {
			t.Errorf("the signature is not of %d bytes %.300q…: %v", len(parts[1]), parts[1], err)
		}
	}
}

// What the renderer of a large attachment allocates.
func TestRenderMemory(t *testing.T) {
	m := addressedMail(t, func(m *mail.Msg) {
		m.SetBodyString(mail.TypeTextPlain, "text")
		m.AttachReadSeeker("a.bin", bytes.NewReader(pattern(10<<20)))
	})
	p := &Pool{renders: make(chan struct{}, maxRenders), ctx: context.Background(), spillSize: 1 << 10, spillDir: t.TempDir()}
	measure := func(f func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	n := measure(func() {
		in := newIntake(t.Context(), p, LineEndingsText)
		defer in.free()
		if err := in.body(&Body{kind: bodyMessage, msg: m}); err != nil {
			t.Fatal(err)
		}
		if c, err := in.content(); err != nil || c.file == nil || c.size < 10<<20*4/3 {
			t.Errorf("%+v: %v", c, err)
		}
	})
	theirs := measure(func() { _, _ = m.WriteTo(io.Discard) })
	if n > 1<<20 || theirs < 10<<20 {
		t.Errorf("%d bytes were allocated; by go-mail alone %d", n, theirs)
	}
}

// At most so many sends have go-mail hold attachments at a time; the wait ends with the context, or with the pool.
func TestRenderSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := New(Config{
			Relays: []Relay{{Addr: "unused.test:25", TLS: TLSNone}}, Health: Health{Interval: -1},
			Dial: func(context.Context, string, string) (net.Conn, error) {
				t.Error("a relay is dialled, with nothing rendered")
				return nil, errors.New("unused")
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		release := make(chan struct{})
		var inside, done atomic.Int32
		msg := func() *mail.Msg {
			return addressedMail(t, func(m *mail.Msg) {
				m.SetBodyString(mail.TypeTextPlain, "text")
				for range 2 { // the second needs no second slot
					_ = m.AttachReader("a", strings.NewReader(""), mail.WithFileEncoding(mail.NoEncoding))
				}
				m.GetAttachments()[0].Writer = func(w io.Writer) (int64, error) {
					inside.Add(1)
					<-release
					return 0, errors.New("enough")
				}
			})
		}
		for range maxRenders {
			go func() {
				if _, err := p.Send(t.Context(), msg()); !errors.Is(err, ErrTemporary) || !strings.Contains(err.Error(), "enough") {
					t.Error(err)
				}
				done.Add(1)
			}()
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begun := time.Now()
		r, err := p.Send(ctx, msg())
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrTemporary) || r == nil || len(r.Attempts) != 0 || time.Since(begun) != time.Minute {
			t.Errorf("%v after %v: %v", r, time.Since(begun), err)
		}
		go func() {
			if _, err := p.Send(t.Context(), msg()); !errors.Is(err, ErrClosed) || !errors.Is(err, ErrTemporary) {
				t.Error(err)
			}
			done.Add(1)
		}()
		synctest.Wait()
		if n := inside.Load(); n != maxRenders {
			t.Errorf("%d are rendering", n)
		}
		p.Close()
		synctest.Wait()
		if n := done.Load(); n != 1 {
			t.Errorf("%d sends have ended with the pool", n)
		}
		close(release)
		synctest.Wait()
		if n := done.Load(); n != maxRenders+1 || len(p.renders) != 0 {
			t.Errorf("%d sends have ended, %d slots are taken", n, len(p.renders))
		}
	})
}

// An attachment that never ends, ends with the context.
func TestRenderEndsWithContext(t *testing.T) {
	p, err := New(Config{Relays: []Relay{{Addr: "unused.test:25", TLS: TLSNone}}, MaxMessageSize: -1, SpillDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	written := 0
	m := addressedMail(t, func(m *mail.Msg) {
		m.SetBodyString(mail.TypeTextPlain, "text")
		m.AttachReadSeeker("a", strings.NewReader(""))
		m.GetAttachments()[0].Writer = func(w io.Writer) (int64, error) {
			for {
				n, err := w.Write(make([]byte, 10<<10))
				if written += n; err != nil {
					return int64(written), err
				}
				if written > 3<<20 {
					cancel()
				}
			}
		}
	})
	r, err := p.Send(ctx, m)
	if !errors.Is(err, context.Canceled) || !errors.Is(err, ErrTemporary) || r == nil || len(r.Attempts) != 0 || written > 4<<20 {
		t.Errorf("%v after %d bytes: %v", r, written, err)
	}
}
