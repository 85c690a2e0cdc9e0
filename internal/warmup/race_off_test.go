//go:build !race

package warmup_test

// raceEnabled: see the other one.
const raceEnabled = false
