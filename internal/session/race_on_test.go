//go:build race

package session_test

import "flag"

var raceFull = flag.Bool("race.full", false, "nothing is left out under the race detector that the plain tests do")

// thorough reports whether a test whose further cases and seeds show the race detector nothing new goes through all of them, as it does without the race detector.
func thorough() bool { return *raceFull }
