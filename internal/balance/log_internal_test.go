package balance

import (
	"math"
	"math/rand/v2"
	"testing"
)

// The quick logarithm is one: what Hash makes of it depends on it alone, and on its being above 0, where the order of two numbers is that of their bits.
func TestMinusLog(t *testing.T) {
	check := func(x uint64) {
		want := -math.Log((float64(x>>11) + 0.5) / (1 << 53))
		if got := minusLog(x); math.Abs(got-want-1e-8) > 5e-9 && x > 1<<60 || math.Abs(got-want) > 1e-3*want && x > 1<<30 && x < 1<<60 || !(got > 0) {
			t.Fatalf("%#x: %v, want %v", x, got, want)
		}
	}
	for _, x := range []uint64{0, 1, 2, math.MaxUint64, math.MaxUint64 - 1, 1 << 63, 1<<63 - 1} {
		check(x)
	}
	for range 200000 {
		check(rand.Uint64() >> rand.IntN(64))
	}
	for i := range uint64(1 << logBits) { // where two cells meet
		check(1<<63 | i<<(63-logBits))
		check(1<<63 | i<<(63-logBits) - 1)
	}
}

// The table is the same on every platform, or two processes would not agree.
func TestLogsAreForEver(t *testing.T) {
	h := Sum("")
	for _, c := range logs {
		h = fold(h ^ math.Float64bits(c.inverse))
		h = fold(h ^ math.Float64bits(c.ln))
	}
	if h != goldenLogs {
		t.Errorf("%#x, want %#x", h, uint64(goldenLogs))
	}
}

const goldenLogs = 0x44c3d74f1e1b5982
