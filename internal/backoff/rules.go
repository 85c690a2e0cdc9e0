package backoff

import "time"

const maxRules = 100

// A Rule ...
type Rule struct {
	Threshold int
	Per       time.Duration
}
