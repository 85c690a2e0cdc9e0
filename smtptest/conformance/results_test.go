package conformance_test

import (
	"errors"
	"flag"
	"fmt"
	"net/textproto"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/smtptest/conformance"
	"github.com/wneessen/go-mail"
)

var update = flag.Bool("update", false, "write RESULTS.md anew")

// Why the others fail.
const (
	dotWriter   = "net/textproto's dot writer lets a lone CR through"
	anyAddress  = "an address is looked at for CR and LF alone"
	utf8Always  = "SMTPUTF8 is asked for wherever it is offered"
	asItIs      = "the text is sent as it is"
	noSize      = "SIZE is not looked at"
	bareCode    = "net/textproto refuses a code with nothing behind it"
	mixedCodes  = "net/textproto goes on waiting for a last line with the first code"
	quitError   = "an error of QUIT is returned for a message that was accepted"
	resetError  = "an error of RSET or QUIT is returned for a message that was accepted"
	noTime      = "it takes no context and sets no deadline"
	opportunist = "STARTTLS is used where it is offered, and not required"
	loopback    = "STARTTLS is not required, and on loopback PlainAuth asks for none"
	ends        = "what was written until the source failed is ended with a dot"
	leak        = "the connection is left open"
)

// senders are those in RESULTS.md. What is said to be known must stay so: a case that
// passes and is listed fails the test, and so does one that fails and is not.
var senders = []struct {
	name  string
	send  conformance.Sender
	opts  []conformance.Option
	known map[string]string
}{
	{name: "smtplb Deliver", send: poolDeliver, opts: []conformance.Option{
		conformance.FromReader(poolDeliverReader),
		conformance.Temporary(func(err error) bool { return errors.Is(err, smtplb.ErrTemporary) }),
	}},
	{name: "smtplb SendMail", send: poolSendMail, opts: []conformance.Option{
		conformance.Temporary(func(err error) bool { return errors.Is(err, smtplb.ErrTemporary) }),
	}},
	{name: "net/smtp SendMail", send: netSMTP, opts: []conformance.Option{
		conformance.Temporary(func(err error) bool {
			var reply *textproto.Error
			return errors.As(err, &reply) && reply.Code < 500
		}),
	}, known: map[string]string{
		"bare-cr": dotWriter, "smuggling": dotWriter,
		"inject-parameter":    anyAddress,
		"smtputf8-not-needed": utf8Always,
		"8bit-missing":        asItIs,
		"size-early":          noSize,
		"bare-code":           bareCode,
		"mixed-codes-rcpt":    mixedCodes, "mixed-codes-final": mixedCodes,
		"quit-fails": quitError, "quit-refused": quitError, "hang-up-after-250": quitError, "idle-421-segment": quitError, "tls-idle-421-segment": quitError,
		"no-reply": noTime, "cancelled-in-body": noTime,
		"hang-banner": noTime, "hang-ehlo": noTime, "hang-starttls": noTime, "hang-handshake": noTime, "hang-mail": noTime, "hang-rcpt": noTime, "hang-data": noTime,
		"drip-banner": noTime, "drip-ehlo": noTime, "drip-final": noTime, "endless-reply": noTime, "endless-line": noTime,
		"starttls-stripped": opportunist, "auth-in-clear": loopback,
	}},
	{name: "go-mail DialAndSend", send: goMail, opts: []conformance.Option{
		conformance.FromReader(goMailReader),
		conformance.Temporary(func(err error) bool {
			var sent *mail.SendError
			return errors.As(err, &sent) && sent.IsTemp()
		}),
	}, known: map[string]string{
		"reader-fails":        ends,
		"smtputf8-not-needed": utf8Always,
		"size-early":          noSize,
		"bare-code":           bareCode,
		"mixed-codes-rcpt":    mixedCodes + "; " + leak, "mixed-codes-final": mixedCodes + "; " + leak,
		"quit-fails": quitError, "quit-refused": quitError, "hang-up-after-250": resetError, "idle-421-segment": resetError, "tls-idle-421-segment": resetError,
		"rset-refused": resetError, "after-refused-rset": resetError,
		"no-reply": leak, "cancelled-in-body": leak,
		"hang-ehlo": leak, "hang-starttls": leak, "hang-handshake": leak, "hang-mail": leak, "hang-rcpt": leak, "hang-data": leak,
		"drip-ehlo": leak, "drip-final": leak, "endless-reply": leak, "endless-line": leak,
		"starttls-stripped": leak, "starttls-refused": leak, "auth-in-clear": leak,
	}},
}

// outcomes runs all senders at the same time, once.
var outcomes = sync.OnceValue(func() [][]conformance.Outcome {
	all := make([][]conformance.Outcome, len(senders))
	var wg sync.WaitGroup
	for i, s := range senders {
		wg.Go(func() { all[i] = conformance.Check(s.send, s.opts...) })
	}
	wg.Wait()
	return all
})

func TestSenders(t *testing.T) {
	for i, s := range senders {
		t.Run(s.name, func(t *testing.T) {
			left := map[string]bool{}
			for name := range s.known {
				left[name] = true
			}
			for _, o := range outcomes()[i] {
				name := o.Case.Name
				why, known := s.known[name]
				delete(left, name)
				switch failed := o.Status == conformance.Failed; {
				case failed && !known:
					t.Errorf("%v\n%s\n%s", o, o.Case.Why, o.Transcript)
				case !failed && known:
					t.Errorf("%v, and is said to fail: %s", o, why)
				}
			}
			for name := range left {
				t.Errorf("there is no case %q", name)
			}
		})
	}
}

// TestResults holds RESULTS.md to what is true.
func TestResults(t *testing.T) {
	const file = "RESULTS.md"
	got := table(t)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.ReplaceAll(string(want), "\r\n", "\n"), got); diff != "" {
		t.Errorf("%s is out of date; go test ./smtptest/conformance -run TestResults -update writes it anew (-want +got):\n%s", file, diff)
	}
}

func table(t *testing.T) string {
	mark := map[conformance.Status]string{conformance.Passed: "✓", conformance.Failed: "**✗**", conformance.Skipped: "–"}
	all := outcomes()
	var b strings.Builder
	b.WriteString("# Who passes what\n\n" +
		"Written by `go test ./smtptest/conformance -run TestResults -update`, and held to be true by the same test without `-update`.\n" +
		"go-mail is " + version(t, "github.com/wneessen/go-mail") + ", net/smtp that of the Go version in use. ✓ passes, ✗ fails, – does not apply.\n\n" +
		"| case |")
	for _, s := range senders {
		b.WriteString(" " + s.name + " |")
	}
	b.WriteString(" why it matters |\n|---|" + strings.Repeat(":-:|", len(senders)) + "---|\n")
	passed, applied := make([]int, len(senders)), make([]int, len(senders))
	for n, c := range conformance.Cases() {
		b.WriteString("| `" + c.Name + "` |")
		for i := range senders {
			status := all[i][n].Status
			b.WriteString(" " + mark[status] + " |")
			if status != conformance.Skipped {
				applied[i]++
			}
			if status == conformance.Passed {
				passed[i]++
			}
		}
		b.WriteString(" " + c.Why + " |\n")
	}
	b.WriteString("| **passed** |")
	for i := range senders {
		fmt.Fprintf(&b, " %d of %d |", passed[i], applied[i])
	}
	b.WriteString(" |\n")
	for _, s := range senders {
		if len(s.known) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\nWhy %s fails:\n\n", s.name)
		byReason := map[string][]string{}
		for _, c := range conformance.Cases() {
			if why, ok := s.known[c.Name]; ok {
				byReason[why] = append(byReason[why], "`"+c.Name+"`")
			}
		}
		var lines []string
		for why, names := range byReason {
			lines = append(lines, "- "+strings.Join(names, ", ")+": "+why+".\n")
		}
		slices.Sort(lines)
		b.WriteString(strings.Join(lines, ""))
	}
	return b.String()
}

// version returns the version of a module that is required here.
func version(t *testing.T, module string) string {
	b, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == module {
			return f[1]
		}
	}
	t.Fatalf("go.mod doesn't require %s", module)
	return ""
}
