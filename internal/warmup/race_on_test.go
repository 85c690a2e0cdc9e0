//go:build race

package warmup_test

import "flag"

var raceFull = flag.Bool("race.full", false, "nothing is left out under the race detector that it has time for in minutes")

// raceEnabled: what one goroutine computes alone is computed in full without the race detector, which finds nothing in it.
const raceEnabled = true

// thorough reports whether a test whose further cases and seeds show the race detector nothing new goes through all of them but those that raceEnabled leaves out.
func thorough() bool { return *raceFull }
