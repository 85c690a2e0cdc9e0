package main

import (
	"strings"
	"testing"
	"time"
)

func TestLimitsAreKept(t *testing.T) {
	var out strings.Builder
	without, with := demo(t, &out)
	t.Logf("\n%s", &out)
	for _, r := range []result{without, with} {
		for to, n := range r.stored {
			if n != 1 {
				t.Errorf("%s has it %d times", to, n)
			}
		}
		if len(r.stored) != r.accepted || r.accepted+r.deferred != each*len(mailboxes) {
			t.Errorf("%d accepted, %d deferred, %d stored", r.accepted, r.deferred, len(r.stored))
		}
	}
	if with.deferred != 0 || with.took > 45*time.Second { // Yahoo takes 5 a second
		t.Errorf("with limits: %+v", with)
	}
	for _, m := range mailboxes {
		if without.refused[m.name] == 0 || with.refused[m.name] != 0 {
			t.Errorf("%s refused %d without limits, %d with them", m.name, without.refused[m.name], with.refused[m.name])
		}
	}
}
