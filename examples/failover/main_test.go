package main

import (
	"os"
	"strings"
	"testing"
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
	got := run(t)
	for i, want := range documented(t) {
		if i >= len(got) || got[i] != want {
			t.Errorf("line %d is not %q", i+1, want)
		}
	}
}

func TestEveryStep(t *testing.T) {
	out := strings.Join(run(t), "\n") + "\n"
	steps := strings.Split(out, "\n   anna@example.org: ")[1:]
	// What became of anna@example.org, and which relays were tried.
	want := []struct {
		outcome string
		tried   string
	}{
		{"accepted by relay-a", "a"}, {"accepted by relay-b", "ab"}, {"accepted by relay-a", "a"}, {"accepted by relay-b", "ab"}, {"unknown: relay-a: final: ", "a"},
		{"accepted by relay-b", "ab"}, {"accepted by relay-b", "ab"}, {"accepted by relay-b", "ab"}, {"accepted by relay-b", "b"}, {"deferred: relay-b: dial: ", "b"},
	}
	if len(steps) != len(want) {
		t.Fatalf("%d steps, want %d", len(steps), len(want))
	}
	for i, step := range steps {
		tried := ""
		for line := range strings.SplitSeq(step, "\n") {
			if relay, ok := strings.CutPrefix(line, "     relay-"); ok {
				tried += relay[:1]
			}
		}
		if !strings.HasPrefix(step, want[i].outcome) || tried != want[i].tried {
			t.Errorf("step %d: tried %s, want %s and %q:\n%s", i+1, tried, want[i].tried, want[i].outcome, step)
		}
	}
}
