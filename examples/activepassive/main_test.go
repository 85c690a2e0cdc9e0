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

// TestPrintsWhatIsDocumented looks for the documented lines in the output, in their order. Numbers in the last one, and what stands behind a … or before one, are of the
// moment.
func TestPrintsWhatIsDocumented(t *testing.T) {
	got := run(t)
	i := 0
	for _, want := range documented(t) {
		want, _, open := strings.Cut(want, "…")
		if head, _, last := strings.Cut(want, ": 3 of them"); last {
			want, open = head, true
		}
		for i < len(got) && got[i] != want && (!open || !strings.HasPrefix(got[i], want)) {
			i++
		}
		if i == len(got) {
			t.Fatalf("no line is %q behind those before it", want)
		}
		i++
	}
}
