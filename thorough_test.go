package smtplb

import "flag"

var raceFull = flag.Bool("race.full", false, "nothing is left out under the race detector that it has time for in minutes: samples are what they are without it, but where raceEnabled says otherwise")

// Thorough reports whether a test whose further cases and seeds show the race detector nothing new goes through all of them. The whole suite under the race detector has two minutes on two cores; .ci/run gives -race.full in a
// step of its own.
func Thorough() bool { return !underRace || *raceFull }
