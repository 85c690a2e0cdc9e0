package smtplb

import (
	"testing"
	"time"
)

// What a relay answered before it was left alone says nothing about how it is since.
func TestSlowTrials(t *testing.T) {
	const limit = time.Second
	var s slowness
	now := time.Now()
	for round := range 2 {
		if s.rests() || s.tried(0) || s.tried(0) {
			t.Errorf("round %d: nobody has found it slow", round)
		}
		s.leave(true, limit, now)
		for i, took := range []time.Duration{0, limit, limit + 1, limit, 0, limit} {
			if s.leave(true, limit, now); !s.rests() || s.tried(took) != (i == 5) {
				t.Errorf("round %d: after %v, the %dth, it is well, or doesn't rest", round, took, i+1)
			}
		}
		for _, took := range []time.Duration{limit + 1, 0, 0} {
			s.tried(took)
		}
		s.leave(false, limit, now)
	}
}
