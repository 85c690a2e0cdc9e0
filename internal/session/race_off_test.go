//go:build !race

package session_test

// thorough: see the other one.
func thorough() bool { return true }
