//go:build !race

package balance_test

// thorough: see the other one.
func thorough() bool { return true }
