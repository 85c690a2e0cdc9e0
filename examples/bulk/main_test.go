package main

import (
	"strings"
	"testing"
	"time"
)

func TestNewsletterAndResets(t *testing.T) {
	const messages = 8000
	var out strings.Builder
	r := demo(t, messages, &out)
	t.Logf("\n%s", &out)
	if r.lost > 0 || r.twice > 0 || r.refused > 0 || r.others > 0 {
		t.Errorf("%+v", r)
	}
	if r.unknown+r.resetsUnknown > 10 || r.accepted+r.unknown != messages || r.resetsAccepted+r.resetsUnknown != r.resets || r.resets == 0 {
		t.Errorf("%+v", r)
	}
	if r.longest > time.Second || r.took > 5*time.Minute {
		t.Errorf("a reset waited %v; it took %v", r.longest, r.took)
	}
	if !strings.Contains(out.String(), "1m0s: ") {
		t.Errorf("no progress in\n%s", &out)
	}
}
