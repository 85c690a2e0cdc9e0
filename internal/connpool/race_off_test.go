//go:build !race

package connpool_test

// thorough: see the other one.
func thorough() bool { return true }
