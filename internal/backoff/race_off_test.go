//go:build !race

package backoff_test

// raceEnabled: see the other one.
const raceEnabled = false
