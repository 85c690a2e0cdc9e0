//go:build race

package throttle_test

// raceEnabled: what one goroutine computes alone is computed in full without the race detector, which finds nothing in it.
const raceEnabled = true
