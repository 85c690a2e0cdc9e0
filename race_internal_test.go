//go:build race

package smtplb

// underRace: what takes time takes ten times as much.
const underRace = true
