//go:build !race

package throttle_test

// raceEnabled: see the other one.
const raceEnabled = false
