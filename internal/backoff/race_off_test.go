//go:build !race

package backoff_test

// raceEnabled: see the other one.
const raceEnabled = false

// thorough: see the other one.
func thorough() bool { return true }
