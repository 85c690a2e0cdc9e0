//go:build race

package smtplb_test

// raceEnabled: the race detector allocates for itself.
const raceEnabled = true
