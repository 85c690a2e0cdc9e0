package lab_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/smtp"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smtplb/smtplb/e2e/lab"
)

// TestLab proves the lab with net/smtp: what it stores, and that it survives
// what the other tests do to it.
func TestLab(t *testing.T) {
	l := lab.New(t, 2)
	a, b := l.Relays[0], l.Relays[1]
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	if err := send(l, b, "once@in.test", "Message-ID: <once@app.test>\r\nX-Folded: one\r\n two\r\n\r\nHello.\r\n", "second@in.test"); err != nil {
		t.Fatal(err)
	}
	if err := l.WaitDrained(ctx); err != nil {
		t.Fatal(err)
	}
	msgs := stored(t, l)
	if len(msgs) != 2 {
		t.Fatalf("stored %d files, want 2: %+v", len(msgs), msgs)
	}
	for _, m := range msgs {
		if m.Relay != b.Name || m.Header("message-id") != "<once@app.test>" || m.Header("X-Folded") != "one two" ||
			m.Header("X-Original-To") != m.To || m.QueueID != msgs[0].QueueID {
			t.Errorf("stored %+v", m)
		}
	}
	if msgs[0].To == msgs[1].To {
		t.Errorf("both files are for %s", msgs[0].To)
	}

	t.Run("refuses without authentication", func(t *testing.T) {
		c, err := smtp.Dial(a.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if ok, _ := c.Extension("AUTH"); ok {
			t.Error("AUTH is offered without TLS")
		}
		if err := c.Mail("app@app.test"); err != nil {
			t.Fatal(err)
		}
		var perr *textproto.Error
		if err := c.Rcpt("nobody@in.test"); !errors.As(err, &perr) || perr.Code != 554 {
			t.Errorf("RCPT: %v, want 554", err)
		}
	})

	t.Run("kill and restart", func(t *testing.T) {
		if err := a.Start(ctx); err == nil || !strings.Contains(err.Error(), "already running") {
			t.Errorf("a second start: %v", err)
		}
		// Killed in the middle of deliveries: what was accepted must be there after
		// the restart, once or, with the same queue ID, more often.
		want := map[string]bool{}
		for round := range 3 {
			for i := range 20 {
				to := fmt.Sprintf("kill%d-%d@in.test", round, i)
				if err := send(l, a, to, "Subject: kill\r\n\r\n.\r\n"); err != nil {
					t.Fatal(err)
				}
				want[to] = true
			}
			if err := a.Kill9(); err != nil {
				t.Fatal(err)
			}
			if err := send(l, a, "dead@in.test", "\r\n"); err == nil {
				t.Fatal("the killed relay accepted a message")
			}
			if err := a.Restart(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.WaitDrained(ctx); err != nil {
			t.Fatal(err)
		}
		ids := map[string]string{}
		msgs, err := a.Stored()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range msgs {
			if !want[m.To] {
				t.Errorf("stored for %s", m.To)
			}
			if id, ok := ids[m.To]; ok && id != m.QueueID {
				t.Errorf("%s: queue IDs %s and %s", m.To, id, m.QueueID)
			}
			ids[m.To] = m.QueueID
		}
		if len(ids) != len(want) {
			t.Errorf("stored for %d recipients, want %d", len(ids), len(want))
		}
		t.Logf("%d recipients, %d files", len(ids), len(msgs))
	})

	t.Run("orphan", func(t *testing.T) {
		c := dial(t, a.Addr) // an smtpd that lives on
		if err := a.KillMaster(); err != nil {
			t.Fatal(err)
		}
		if err := a.Start(ctx); err == nil {
			t.Fatal("started beside an orphan")
		}
		if err := a.Restart(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the orphan's connection is still open")
		}
		if err := send(l, a, "orphan@in.test", "\r\n"); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("suspend", func(t *testing.T) {
		if err := b.Suspend(); err != nil {
			t.Fatal(err)
		}
		c := dial(t, b.Addr) // the kernel accepts
		if err := c.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read from a suspended relay: %v", err)
		}
		if err := b.Resume(); err != nil {
			t.Fatal(err)
		}
		if err := send(l, b, "resumed@in.test", "\r\n"); err != nil {
			t.Fatal(err)
		}
		if err := b.Suspend(); err != nil {
			t.Fatal(err)
		}
		if err := b.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		if err := b.Start(ctx); err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(ctx, time.Millisecond)
		defer cancel()
		if err := b.WaitDrained(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("WaitDrained, when its context ended: %v", err)
		}
	})
	if n, err := a.Queued(); n != 0 || err != nil {
		t.Errorf("Queued: %d, %v", n, err)
	}
}

// TestStoredAsSent sends CPython's collection of mails: Postfix stores what was
// sent, octet for octet, with the two exceptions of lab.Digest.
func TestStoredAsSent(t *testing.T) {
	l := lab.New(t, 1)
	paths, err := filepath.Glob("/usr/lib/python3*/test/test_email/data/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no real mails: %v: `make e2e` in the root of the repository installs them", err)
	}
	want := map[string][sha256.Size]byte{}
	for i, p := range paths {
		mail, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		to := fmt.Sprintf("mail%d@in.test", i)
		want[to] = lab.Digest(mail)
		if err := send(l, l.Relays[0], to, string(mail)); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
	if err := l.WaitDrained(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, m := range stored(t, l) {
		if m.Digest != want[m.To] {
			t.Errorf("%s: the stored message differs from the one sent: %s", m.To, m.Path)
		}
		delete(want, m.To)
	}
	for to := range want {
		t.Errorf("%s: nothing is stored", to)
	}
	t.Logf("%d mails", len(paths))
}

func send(l *lab.Lab, r *lab.Relay, to, msg string, more ...string) error {
	host, _, err := net.SplitHostPort(r.Addr)
	if err != nil {
		return err
	}
	c, err := smtp.Dial(r.Addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.StartTLS(&tls.Config{ServerName: host, RootCAs: l.Roots}); err != nil {
		return err
	}
	if err := c.Auth(smtp.PlainAuth("", lab.Username, lab.Password, host)); err != nil {
		return err
	}
	if err := c.Mail("app@app.test"); err != nil {
		return err
	}
	for _, to := range append(more, to) {
		if err := c.Rcpt(to); err != nil {
			return err
		}
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := io.WriteString(w, msg); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return c.Quit()
}

func stored(t *testing.T, l *lab.Lab) []lab.Message {
	t.Helper()
	msgs, err := l.Stored()
	if err != nil {
		t.Fatal(err)
	}
	return msgs
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}
