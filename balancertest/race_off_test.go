//go:build !race

package balancertest

// thorough: see the other one.
func thorough() bool { return true }
