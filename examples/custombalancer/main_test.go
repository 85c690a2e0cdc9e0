package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/smtplb/smtplb"
	"github.com/smtplb/smtplb/balancertest"
)

// documented returns the lines that the package comment says are printed.
func documented(t *testing.T) []string {
	t.Helper()
	source, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	comment, _, _ := strings.Cut(string(source), "\npackage main")
	var lines []string
	for line := range strings.SplitSeq(comment, "\n") {
		if line, ok := strings.CutPrefix(line, "//\t"); ok && !strings.HasPrefix(line, "go run") {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		t.Fatal("nothing is documented")
	}
	return lines
}

// run runs the program, and returns the lines that it prints.
func run(t *testing.T) []string {
	t.Helper()
	var out strings.Builder
	err := demo(&out)
	t.Logf("\n%s", &out)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
}

func TestPrintsWhatIsDocumented(t *testing.T) {
	got, want := run(t), documented(t)
	if len(got) != len(want) {
		t.Fatalf("%d lines, want %d", len(got), len(want))
	}
	for i := range want {
		if moment := "ten at a time: "; got[i] != want[i] && !(strings.HasPrefix(got[i], moment) && strings.HasPrefix(want[i], moment)) {
			t.Errorf("%q, want %q", got[i], want[i])
		}
	}
}

type view string

func (v view) Name() string         { return string(v) }
func (view) Weight() float64        { return 1 }
func (view) InFlight() int          { return 0 }
func (view) Limit() int             { return 0 }
func (view) Latency() time.Duration { return 0 }

// TestBalancer is the test that every Balancer should have.
func TestBalancer(t *testing.T) {
	balancertest.Run(t, func() smtplb.Balancer {
		return cheapest{price: map[string]float64{"relay-1": 2}, reserve: map[string]string{"example.org": "relay-1"}}
	})
}

func TestPick(t *testing.T) {
	relays := []smtplb.RelayView{view("dear"), view("free"), view("cheap")}
	b := cheapest{price: map[string]float64{"dear": 2, "cheap": 1}, reserve: map[string]string{"partner.example": "dear", "other.example": "unknown"}}
	p := b.NewPicker(relays)
	for _, test := range []struct {
		domain string
		skip   uint64
		want   int
	}{
		{"example.org", 0b000, 1},
		{"example.org", 0b010, 2},
		{"example.org", 0b110, 0},
		{"example.org", 0b111, -1},
		{"partner.example", 0b000, 0},
		{"partner.example", 0b001, 1},
		{"other.example", 0b000, 1},
	} {
		info := smtplb.PickInfo{Domain: test.domain, Skip: smtplb.Bitset{test.skip}}
		if got := p.Pick(info); got != test.want {
			t.Errorf("%s without %03b: %d, want %d", test.domain, test.skip, got, test.want)
		}
		if n := testing.AllocsPerRun(10, func() { p.Pick(info) }); n != 0 {
			t.Errorf("a pick makes %v allocations", n)
		}
	}
}
