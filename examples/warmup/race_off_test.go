//go:build !race

package main

// thorough: see the other one.
func thorough() bool { return true }
