package main

import (
	"bytes"
	"flag"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
)

// run is main, but for the exit.
func run(t *testing.T, args ...string) (*report, string) {
	t.Helper()
	o, err := parse(args, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	var progress, out bytes.Buffer
	r := simulate(t, o, &progress)
	if !strings.Contains(progress.String(), "100 %") {
		t.Errorf("progress: %s", &progress)
	}
	r.print(&out)
	if t.Failed() || testing.Verbose() {
		t.Logf("\n%s", &out)
	}
	return r, out.String()
}

func TestFairWeather(t *testing.T) {
	r, out := run(t, "-relays", "45", "-weights", "3,1,1", "-messages", "3000", "-sigma", "0", "-rate", "300")
	if r.accepted != 3000 || !r.truthful() || r.failovers != 0 || r.all.at(100) != 100*time.Millisecond {
		t.Errorf("%+v", r)
	}
	if d := r.took - 10*time.Second; d < -time.Second || d > time.Second {
		t.Errorf("3000 messages at 300/s took %v", r.took)
	}
	for _, g := range r.rows {
		if share := r.share(g.messages, g.weight); share < 0.9 || share > 1.1 {
			t.Errorf("%s has %.2f of its weight's share", g.name(), share)
		}
	}
	for _, want := range []string{"\nrelay-0-2 ", "\nrelay-42-44 ", "accepted 3000 ", "lost 0 · duplicated 0", "▄▄▄", "p50 100ms · p90 100ms"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
}

func TestTroubles(t *testing.T) {
	r, out := run(t, "-relays", "5", "-messages", "3000", "-rate", "50", "-slow", "0=5s@10s-30s", "-fail", "1@10s-30s", "-down", "2@10s-30s", "-flap", "3=5s/2s@0s-40s", "-timeout", "40s")
	if !r.truthful() || r.accepted+r.unknown != 3000 || r.unknown > 30 {
		t.Errorf("%+v", r)
	}
	during := func(row int) (n int) { // from 12 to 29 s of about 60
		for _, m := range r.rows[row].perColumn[12:28] {
			n += m
		}
		return n
	}
	for _, row := range []int{1, 2} {
		if during(row) > 0 || r.rows[row].faults == 0 {
			t.Errorf("%s had %d messages in its trouble, and %d faults", relayName(row), during(row), r.rows[row].faults)
		}
	}
	if r.rows[3].faults == 0 || r.all.at(99.9) < 4*time.Second || during(4) == 0 {
		t.Errorf("%+v", r)
	}
	if !strings.Contains(out, "relay-3 *") || strings.Contains(out, "relay-4 *") {
		t.Error(out)
	}
}

func TestCallers(t *testing.T) {
	r, _ := run(t, "-relays", "2", "-conns", "2", "-messages", "500", "-callers", "3", "-sigma", "0", "-service", "100ms", "-rtt", "20ms")
	// Three at a time. Nobody waits for a connection, so each message costs two round trips; a connection costs more.
	if r.accepted != 500 || !r.truthful() || r.all.at(50) != 140*time.Millisecond || r.took < 23*time.Second || r.took > 25*time.Second {
		t.Errorf("took %v, p50 %v: %+v", r.took, r.all.at(50), r)
	}
}

// TestTruth sees to it that what goes wrong is told.
func TestTruth(t *testing.T) {
	o, err := parse([]string{"-relays", "1", "-messages", "6"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	record := newRecord(o)
	record.ended = record.began.Add(time.Second)
	copy(record.outcome, []smtplb.Outcome{smtplb.Accepted, smtplb.Accepted, smtplb.Accepted, smtplb.Deferred, smtplb.Unknown, smtplb.Failed})
	for _, n := range []int{0, 1, 1, 3, 4} { // 1 twice, 2 and 5 not at all
		record.stored(n, 0)
	}
	r := newReport(o, record, &fleet{}, smtplb.Stats{})
	if r.lost != 1 || r.duplicated != 1 || r.untold != 1 || r.unknown != 1 || r.unknownHad != 1 || r.accepted != 3 || r.deferred != 1 || r.failed != 1 || r.truthful() {
		t.Errorf("%+v", r)
	}
}

func TestFlags(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"x", `"x" belongs to no flag`},
		{"-relays 0", "-relays must be"},
		{"-conns 0", "-conns must be"},
		{"-messages 0", "-messages must be"},
		{"-weights 3,0", `"0" is no weight`},
		{"-sigma NaN", "-sigma must be"},
		{"-answer 2", "-answer must be"},
		{"-rate -1", "-rate must be"},
		{"-rate 5 -callers 5", "exclude each other"},
		{"-callers -5", "-callers must not"},
		{"-tick 0s", "-tick must be above 0"},
		{"-balancer dice", `-balancer "dice" is not known`},
		{"-fail 10@1s-", "there is no relay 10; they are 0 to 9"},
		{"-fail 1", "no @FROM-TILL"},
		{"-fail x@1s-", "does not begin with a relay"},
		{"-fail 3-2@1s-", "does not begin with a relay"},
		{"-fail 1=2@1s-", "-fail takes RELAYS@FROM-TILL"},
		{"-down 1@2s-1s", "ends before it begins"},
		{"-down 1@-1s-", "no @FROM-TILL"},
		{"-slow 1@1s-", "no =MEDIAN"},
		{"-flap 1=2s@1s-", "no =UP/DOWN"},
		{"-size 5000000", "-size must be"},
	} {
		if _, err := parse(strings.Fields(test.args), io.Discard); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.args, err, test.want)
		}
	}
	var help bytes.Buffer
	if _, err := parse([]string{"-h"}, &help); err != flag.ErrHelp || !strings.Contains(help.String(), "-slow RELAYS=MEDIAN@FROM-TILL") {
		t.Errorf("%v\n%s", err, &help)
	}
	o, err := parse(strings.Fields("-slow 2-4=1s@1m-2m -conns 20 -relays 7 -service 100ms -sigma 0"), io.Discard)
	if err != nil || o.rate != 840 {
		t.Fatalf("%v: %+v", err, o)
	}
	if s := o.troubles[0]; s.hits(1, 90*time.Second) || !s.hits(2, 90*time.Second) || !s.hits(4, time.Minute) || s.hits(3, 2*time.Minute) || s.hits(5, time.Minute) {
		t.Errorf("%+v", s)
	}
}
