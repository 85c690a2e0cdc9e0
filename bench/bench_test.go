package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestMain: this program is the sink's process, too.
func TestMain(m *testing.M) {
	if serveIfAsked() {
		return
	}
	os.Exit(m.Run())
}

// tiny is the work with everything in it, but little of it, and the number of messages for a turn.
func tiny(w work) (*work, int) {
	count := 20
	switch {
	case w.rcpts > 1:
		count = 1
	case w.rtt > 0 || w.size > 100*kB:
		count = 3
	}
	w.size = min(w.size, 200*kB)
	w.rtt = min(w.rtt, 200*time.Microsecond)
	return &w, count
}

// testLog passes what the run says to the test's log.
type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// TestEveryWorkAndClient sends a few messages by each client in each work, in two rounds. That the sink got them is checked by the run itself.
func TestEveryWorkAndClient(t *testing.T) {
	for _, w := range works {
		t.Run(w.name, func(t *testing.T) {
			w, count := tiny(w)
			clients := slices.DeleteFunc(slices.Clone(entries), func(e entry) bool {
				// Its Pool reads the number of its connections without the lock that guards it.
				return raceEnabled && e.client == "email" && w.workers > 1
			})
			var left bytes.Buffer
			rows, err := w.run(t.Context(), clients, options{rounds: 2, count: count, log: io.MultiWriter(testLog{t}, &left)})
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(left.String(), w.name+": left out") {
				if !w.smtpSink {
					t.Error("a work was left out that needs nothing")
				}
				return
			}
			got := map[identity]bool{}
			for _, r := range rows {
				got[identity{r.Client, r.Mode}] = true
				if r.Work != w.name || r.RateX == nil || *r.RateX <= 0 || *r.RateMin > *r.RateX || *r.RateMax < *r.RateX || r.Rounds != w.rounds(2) {
					t.Errorf("%+v", r)
				}
			}
			if rows[0].RateX == nil || *rows[0].RateX != 1 {
				t.Errorf("the base is no multiple of itself: %+v", rows[0])
			}
			for _, e := range clients {
				absent := strings.Contains(left.String(), e.String()+" left out") && e.client == "nodemailer"
				if takesPart := e.fits == nil || e.fits(w); got[e.identity] != (takesPart && !absent) {
					t.Errorf("%s is in the report: %v", e.identity, got[e.identity])
				}
			}
		})
	}
}

func TestIdleMemory(t *testing.T) {
	rows, err := idleMemory(200) // what the tests before leave behind, and is freed meanwhile, is some 50 KB
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rows {
		got = append(got, r.Client+" "+r.Mode)
		if r.Heap == nil || *r.Heap < 100 || *r.Heap > 1<<20 {
			t.Errorf("%s, %s: %s", r.Client, r.Mode, size(r.Heap))
		}
	}
	if diff := cmp.Diff([]string{"net/smtp plain", "smtplb plain", "net/smtp tls", "smtplb tls"}, got); diff != "" {
		t.Error(diff)
	}
}

// forger is a client that says something else than what it does.
type forger struct {
	client
	more int
	err  error
}

func (f *forger) turn(ctx context.Context, q *quota) (turn, error) {
	t, err := f.client.turn(ctx, q)
	t.sent += f.more
	return t, errors.Join(err, f.err)
}

// forged is net/smtp's entry with a forger around it.
func forged(name string, f forger) entry {
	return entry{identity{name, "x"}, nil, func(s *setup) (client, error) {
		c, err := openNetSMTP(s)
		f.client = c
		return &f, err
	}}
}

// TestLostMailIsAnError: a client that counts a message that the sink hasn't, or doesn't count one, spoils its own figures only, and the run says so.
func TestLostMailIsAnError(t *testing.T) {
	clients := []entry{
		entries[0],
		forged("boaster", forger{more: 1}),
		forged("modest", forger{more: -1}),
		forged("idler", forger{more: -20}),
		forged("broken", forger{err: errors.New("it broke")}),
		{identity{"absent", "x"}, nil, func(*setup) (client, error) { return nil, &absentError{"there is none"} }},
	}
	var log bytes.Buffer
	w, count := tiny(works[0])
	rows, err := w.run(t.Context(), clients, options{rounds: 1, count: count, log: &log})
	if len(rows) != 1 || rows[0].Client != base.client {
		t.Errorf("rows: %+v", rows)
	}
	for _, want := range []string{
		"boaster:x: the client says that it sent 21 messages, the sink has 20",
		"modest:x: the client says that it sent 19 messages, the sink has 20",
		"idler:x: nothing was sent",
		"broken:x: it broke",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %q", err, want)
		}
	}
	if want := "2k-c8: absent:x left out: there is none\n"; log.String() != want {
		t.Errorf("log %q, want %q", &log, want)
	}
}

// TestLostRecipients: 50 recipients were to be told, and one was.
func TestLostRecipients(t *testing.T) {
	w, _ := tiny(works[0])
	to, err := w.start()
	if err != nil {
		t.Fatal(err)
	}
	defer to.stop()
	c, err := openNetSMTP(&setup{w, to, w.letter()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	w.rcpts = 50
	_, err = w.turnOf(t.Context(), &racer{identity: base, client: c}, &quota{count: 1}, to)
	if err == nil || !strings.Contains(err.Error(), "the sink has 1 recipients") {
		t.Error(err)
	}
}

func TestChoose(t *testing.T) {
	names := func(all []entry) (s []string) {
		for _, e := range all {
			s = append(s, e.String())
		}
		return s
	}
	for list, want := range map[string][]string{
		"":                         names(entries),
		"go-smtp":                  {"net/smtp:reused", "go-smtp:kept"},
		"bound-c,go-mail:kept":     {"net/smtp:reused", "go-mail:kept", "bound-c:c"},
		"net/smtp":                 {"net/smtp:reused", "net/smtp:dial"},
		"smtplb:b,net/smtp:reused": {"net/smtp:reused", "smtplb:b"},
	} {
		got, err := choose(list)
		if diff := cmp.Diff(want, names(got)); diff != "" || err != nil {
			t.Errorf("%q: %v\n%s", list, err, diff)
		}
	}
	if _, err := choose("sendmail"); err == nil || !strings.Contains(err.Error(), `no client "sendmail"`) {
		t.Error(err)
	}
}

// TestJSON holds the names of what others read.
func TestJSON(t *testing.T) {
	var out, log bytes.Buffer
	if err := command([]string{"-json", "-work", "2k-c8", "-clients", "go-smtp,bound-c", "-rounds", "1", "-messages", "20"}, &out, &log); err != nil {
		t.Fatal(err)
	}
	keys := []string{
		"allocs", "bytes", "client", "cpu_us", "cpu_x", "cpu_x_max", "cpu_x_min", "mode", "p50_ms", "p99_ms",
		"rate", "rate_x", "rate_x_max", "rate_x_min", "rounds", "work",
	}
	var who []string
	for line := range strings.Lines(out.String()) {
		var o map[string]any
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if diff := cmp.Diff(keys, slices.Sorted(maps.Keys(o))); diff != "" {
			t.Error(diff)
		}
		client, _ := o["client"].(string)
		who = append(who, client)
		for _, k := range keys {
			_, isText := o[k].(string)
			_, isNumber := o[k].(float64)
			text := k == "work" || k == "client" || k == "mode"
			meaningless := client == "bound-c" && (k == "p50_ms" || k == "p99_ms")
			if isText != text || isNumber != (!text && !meaningless) {
				t.Errorf("%s of %s is %v", k, client, o[k])
			}
		}
	}
	if diff := cmp.Diff([]string{"net/smtp", "go-smtp", "bound-c"}, who); diff != "" {
		t.Error(diff)
	}
}

func TestRounded(t *testing.T) {
	for v, want := range map[float64]float64{0: 0, 1: 1, 2.05049: 2.05, 0.0123456: 0.01235, 65432.1: 65430, -1.23456: -1.235} {
		if got := *rounded(&v); got != want {
			t.Errorf("%v becomes %v, want %v", v, got, want)
		}
	}
	if rounded(nil) != nil {
		t.Error("something came of nothing")
	}
}

// TestMarkdown: the machine, the overview, and a table of each work.
func TestMarkdown(t *testing.T) {
	two, three, kb := 2.0, 3.0, 1500.0
	rows := []result{
		{Work: "2k-c8", Client: "net/smtp", Mode: "reused", RateX: &two, Rounds: 7},
		{Work: "2k-c8", Client: "smtplb", Mode: "b", RateX: &three, RateMin: &two, RateMax: &three, CPUX: &two, CPUMin: &two, CPUMax: &two, Bytes: &kb, Rounds: 7},
		{Work: "attach10m", Client: "go-mail", Mode: "kept", RateX: &two, Rounds: 7},
		{Work: idleWork, Client: "smtplb", Mode: "tls", Heap: &kb, Rounds: 1},
	}
	var b bytes.Buffer
	if err := writeMarkdown(&b, rows, about); err != nil {
		t.Fatal(err)
	}
	first, rest, _ := strings.Cut(b.String(), "\n")
	if !regexp.MustCompile(`^Measured on a machine with \d+ cores, \w+/\w+, go1\.`).MatchString(first) {
		t.Errorf("%q", first)
	}
	for _, want := range []string{
		"| client | 2k-c8 | attach10m |\n|---|---|---|\n| go-mail, kept | – | 2.00 / – |\n| smtplb, b | 3.00 / 2.00 | – |\n",
		"**2k-c8**: 2 KB, 8 workers, 8 connections; 7 rounds\n",
		"| smtplb | b | 3.00 (2.00–3.00) | 2.00 (2.00–2.00) | – | – | 1.50 KB | – | – |\n",
		"| smtplb | tls | 1.50 KB |\n",
	} {
		if !strings.Contains(rest, want) {
			t.Errorf("%s\nlacks\n%s", rest, want)
		}
	}
}

func TestWrongArguments(t *testing.T) {
	for _, args := range [][]string{{"-work", "tea"}, {"-clients", "sendmail"}, {"-rounds", "0"}, {"-messages", "-1"}, {"extra"}} {
		var out bytes.Buffer
		if err := command(args, &out, io.Discard); err == nil || out.Len() > 0 {
			t.Errorf("%q: %v, %q", args, err, &out)
		}
	}
}
