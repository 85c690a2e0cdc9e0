package conformance_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smtplb/smtplb/smtptest/conformance"
)

// TestCases: each has a name of its own and a sentence.
func TestCases(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range conformance.Cases() {
		if c.Name == "" || seen[c.Name] || strings.Trim(c.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			t.Errorf("name %q", c.Name)
		}
		seen[c.Name] = true
		if !strings.HasSuffix(c.Why, ".") || strings.Contains(c.Why, "|") || strings.HasPrefix(c.Why, "The same") || len(c.Why) < 30 {
			t.Errorf("%s: %q is no sentence", c.Name, c.Why)
		}
	}
}

// TestEveryCaseCanFail: none is passed by both a sender that does nothing and is content, and
// one that does nothing and complains.
func TestEveryCaseCanFail(t *testing.T) {
	check := func(err error) []conformance.Outcome {
		return conformance.Check(
			func(context.Context, *conformance.Relay, string, []string, []byte) error { return err },
			conformance.FromReader(func(context.Context, *conformance.Relay, string, []string, io.Reader) error { return err }))
	}
	content, complains := check(nil), check(errors.New("no"))
	for i, o := range content {
		if o.Status != conformance.Failed && complains[i].Status != conformance.Failed {
			t.Errorf("%s: nothing sent, and content: %v; and complaining: %v", o.Case.Name, o, complains[i])
		}
	}
}

// raw is a sender that looks at nothing: it writes what it is given, in as many writes
// as it must, or in one. It never ends by itself.
func raw(early bool) conformance.Sender {
	return func(_ context.Context, r *conformance.Relay, from string, to []string, msg []byte) error {
		nc, err := net.Dial("tcp", r.Addr)
		if err != nil {
			return err
		}
		defer nc.Close()
		c := textproto.NewConn(nc)
		commands := []string{"EHLO client.test", "MAIL FROM:<" + from + ">"}
		for _, addr := range to {
			commands = append(commands, "RCPT TO:<"+addr+">")
		}
		commands = append(commands, "DATA", string(msg)+"\r\n.")
		if early {
			if _, err := io.WriteString(nc, strings.Join(commands, "\r\n")+"\r\n"); err != nil {
				return err
			}
		}
		var last error
		for i := range len(commands) + 1 {
			if i > 0 && !early {
				if _, err := io.WriteString(nc, commands[i-1]+"\r\n"); err != nil {
					return err
				}
			}
			if _, _, last = c.ReadResponse(0); last != nil {
				var reply *textproto.Error
				if !errors.As(last, &reply) {
					return last
				}
			}
		}
		return last
	}
}

// TestFaultySenders: a good sender with one fault fails the cases that are about it, and
// passes a case that is not.
func TestFaultySenders(t *testing.T) {
	var mu sync.Mutex // protects leaked
	var leaked []io.Closer
	t.Cleanup(func() {
		for _, c := range leaked {
			c.Close()
		}
	})
	stuck := make(chan struct{})
	t.Cleanup(func() { close(stuck) })
	fault := func(f func(ctx context.Context, r *conformance.Relay, from string, to []string, msg []byte, send conformance.Sender) error) conformance.Sender {
		return func(ctx context.Context, r *conformance.Relay, from string, to []string, msg []byte) error {
			return f(ctx, r, from, to, msg, poolDeliver)
		}
	}
	// edited changes the text on its way.
	edited := func(edit func(head, text string) string) conformance.Sender {
		return fault(func(ctx context.Context, r *conformance.Relay, from string, to []string, msg []byte, send conformance.Sender) error {
			head, text, _ := strings.Cut(string(msg), "\r\n\r\n")
			return send(ctx, r, from, to, []byte(head+"\r\n\r\n"+edit(head, text)))
		})
	}
	for _, tt := range []struct {
		name  string
		send  conformance.Sender
		opts  []conformance.Option
		fails string // case: what is said
		good  string // a case that it passes
	}{
		{"sends again after any error", fault(func(ctx context.Context, r *conformance.Relay, from string, to []string, msg []byte, send conformance.Sender) error {
			if err := send(ctx, r, from, to, msg); err != nil {
				return send(ctx, r, from, to, msg)
			}
			return nil
		}), nil, "reply-lost: stored 2 messages; reply-cut: stored 2", "delivery"},
		{"sends twice", fault(func(ctx context.Context, r *conformance.Relay, from string, to []string, msg []byte, send conformance.Sender) error {
			return errors.Join(send(ctx, r, from, to, msg), send(ctx, r, from, to, msg))
		}), nil, "delivery: stored 2 messages", "all-recipients-refused"},
		{"forgets a recipient", fault(func(ctx context.Context, r *conformance.Relay, from string, to []string, msg []byte, send conformance.Sender) error {
			return send(ctx, r, from, to[:1], msg)
		}), nil, "delivery: stored for; one-recipient-refused: no error; many-recipients: stored for", "dot-stuffing"},
		{"forgets an error", fault(func(ctx context.Context, r *conformance.Relay, from string, to []string, msg []byte, send conformance.Sender) error {
			send(ctx, r, from, to, msg)
			return nil
		}), nil, "final-5xx: no error; reply-lost: no error; hang-mail: no error; 354-to-nobody: no error", "delivery"},
		{"loses a dot", edited(func(_, text string) string { return strings.ReplaceAll(text, "\r\n.", "\r\n") }), nil, "dot-stuffing: the text is", "delivery"},
		{"cuts lines", edited(func(_, text string) string { return text[:min(len(text), 900)] + "\r\n" }), nil, "long-lines: the text is; large: the text is", "delivery"},
		{"leaves a connection", fault(func(ctx context.Context, r *conformance.Relay, from string, to []string, msg []byte, send conformance.Sender) error {
			nc, err := net.Dial("tcp", r.Addr)
			if err != nil {
				return err
			}
			mu.Lock()
			leaked = append(leaked, nc)
			mu.Unlock()
			return send(ctx, r, from, to, msg)
		}), nil, "delivery: 1 connections are left open", ""},
		{"leaves a goroutine", fault(func(ctx context.Context, r *conformance.Relay, from string, to []string, msg []byte, send conformance.Sender) error {
			go func() { <-stuck }()
			return send(ctx, r, from, to, msg)
		}), nil, "delivery: 1 goroutines are left", ""},
		{"panics", func(context.Context, *conformance.Relay, string, []string, []byte) error { panic("oops") }, nil, "delivery: the sender panicked: oops", ""},
		{"calls everything temporary", poolDeliver, []conformance.Option{conformance.Temporary(func(error) bool { return true })},
			"mail-5xx: is permanent; rcpt-5xx: is permanent; data-5xx: is permanent; final-5xx: is permanent", "final-4xx"},
		{"calls everything permanent", poolDeliver, []conformance.Option{conformance.Temporary(func(error) bool { return false })},
			"mail-4xx: is temporary; rcpt-4xx: is temporary; data-421: is temporary; final-421: is temporary", "final-5xx"},
		{"needs no TLS", fault(func(ctx context.Context, r *conformance.Relay, from string, to []string, msg []byte, send conformance.Sender) error {
			r.TLS = nil
			return send(ctx, r, from, to, msg)
		}), nil, "tls: in the clear; starttls-stripped: no error; handshake-alert: no error; auth-in-clear: in the clear", "delivery"},
		{"trusts anybody", fault(func(ctx context.Context, r *conformance.Relay, from string, to []string, msg []byte, send conformance.Sender) error {
			if r.TLS != nil {
				r.TLS = r.TLS.Clone()
				r.TLS.InsecureSkipVerify = true
			}
			return send(ctx, r, from, to, msg)
		}), nil, "wrong-name: no error; unknown-authority: no error; expired: no error", "starttls-stripped"},
		{"looks at no address, and waits for ever", raw(false), nil,
			"inject-recipient: what the address held; inject-sender: what the address held; inject-parameter: what the address held; hang-data: had not returned; no-reply: had not returned", "pipelining"},
		{"writes too early", raw(true), nil, "pipelining: error although; pipelining-not-offered: error although", "delivery"},
		{"takes a failing source for the end", nil, []conformance.Option{
			conformance.FromReader(func(ctx context.Context, r *conformance.Relay, from string, to []string, msg io.Reader) error {
				b, _ := io.ReadAll(msg)
				return poolDeliver(ctx, r, from, to, b)
			}),
		}, "reader-fails: no error", "reader"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			want := map[string]string{tt.good: ""}
			for part := range strings.SplitSeq(tt.fails, "; ") {
				name, says, _ := strings.Cut(part, ": ")
				want[name] = says
			}
			for _, o := range conformance.Check(tt.send, append(tt.opts, conformance.Only(func(name string) bool { _, ok := want[name]; return ok }))...) {
				says := want[o.Case.Name]
				delete(want, o.Case.Name)
				if o.Case.Name == tt.good {
					if o.Status != conformance.Passed {
						t.Errorf("%v\n%s", o, o.Transcript)
					}
				} else if o.Status != conformance.Failed || !strings.Contains(o.String(), says) {
					t.Errorf("%v, want %q\n%s", o, says, o.Transcript)
				}
			}
			delete(want, "")
			if len(want) > 0 {
				t.Errorf("there are no cases %v", want)
			}
		})
	}
}

// TestKeep: what is kept is closed when the case is over, once, and an error is not kept.
func TestKeep(t *testing.T) {
	var mu sync.Mutex // protects the following variables
	opened, closed, calls := 0, 0, 0
	send := func(ctx context.Context, r *conformance.Relay, from string, to []string, msg []byte) error {
		mu.Lock()
		calls++
		mu.Unlock()
		if _, err := conformance.Keep(r, func() (*int, func(), error) { return nil, nil, io.ErrUnexpectedEOF }); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		n, err := conformance.Keep(r, func() (*int, func(), error) {
			mu.Lock()
			defer mu.Unlock()
			opened++
			return new(int), func() { mu.Lock(); closed++; mu.Unlock() }, nil
		})
		if err != nil {
			return err
		}
		*n++ // one call follows the other
		return poolless(ctx, r, from, to, msg)
	}
	for _, o := range conformance.Check(send, conformance.Only(func(name string) bool { return name == "after-refused-message" })) {
		if o.Status != conformance.Passed {
			t.Error(o)
		}
	}
	if opened != 1 || closed != 1 || calls != 2 {
		t.Errorf("opened %d times, closed %d times in %d calls", opened, closed, calls)
	}
}

// poolless sends over a connection of its own.
func poolless(ctx context.Context, r *conformance.Relay, from string, to []string, msg []byte) error {
	return netSMTP(ctx, r, from, to, msg)
}

// TestRun: Run in a process of its own, as it fails there. The subtests are named for
// the cases, and say why.
func TestRun(t *testing.T) {
	if os.Getenv("CONFORMANCE_RUN") != "" {
		conformance.Run(t, netSMTP, conformance.Known(map[string]string{"quit-refused": "we know", "delivery": "we thought so", "nonsense": ""}),
			conformance.Only(func(name string) bool {
				return name == "delivery" || name == "quit-refused" || name == "quit-fails" || name == "reader" || name == "dot-stuffing"
			}))
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestRun$", "-test.v")
	cmd.Env = append(os.Environ(), "CONFORMANCE_RUN=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		"--- FAIL: TestRun/delivery", "passes, and is said to be known to fail: we thought so",
		"--- PASS: TestRun/quit-refused", "known to fail (we know)",
		"--- FAIL: TestRun/quit-fails", "an error would make the caller send it twice", "C: QUIT",
		"--- PASS: TestRun/reader", "does not apply",
		"--- PASS: TestRun/dot-stuffing",
		`there is no case "nonsense"`,
	} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("%q is not said", want)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}

func TestStatus(t *testing.T) {
	for s, want := range map[conformance.Status]string{conformance.Passed: "passed", conformance.Failed: "failed", conformance.Skipped: "skipped", 77: "Status(77)"} {
		if got := fmt.Sprint(s); got != want {
			t.Errorf("%d is %q, want %q", s, got, want)
		}
	}
}
