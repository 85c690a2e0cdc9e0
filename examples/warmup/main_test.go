package main

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestCapsAreKept(t *testing.T) {
	days := days
	if !thorough() {
		days = 1
	}
	r := demo(t, filepath.Join(t.TempDir(), "state"), days)
	var out strings.Builder
	r.print(&out)
	t.Logf("\n%s", &out)
	for i, most := range []int{200, 500, 1000, 2000}[:days] {
		want := min(most, perDay/2)
		if r.fresh[i] > most || r.fresh[i] < want*9/10 || r.fresh[i]+r.old[i] != perDay {
			t.Errorf("day %d: %d and %d, of at most %d", i+1, r.fresh[i], r.old[i], most)
		}
	}
	for to, n := range r.copies {
		if n != 1 {
			t.Errorf("%s has it %d times", to, n)
		}
	}
	if len(r.copies) != days*perDay || !strings.Contains(out.String(), "warm-up: 1") {
		t.Errorf("%d recipients have it\n%s", len(r.copies), &out)
	}
}
